"""The records that every reader ends in and everything downstream starts from. Validated once, here."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from keel.data.problems import RowError

__all__ = [
    "PAIR_NUMBERS", "ROLES", "Demonstration", "Graded", "Labelled", "Message", "PreferencePair", "Prompt", "Ranking",
    "Record", "Strength", "check", "check_demonstration", "check_graded", "check_pair", "check_prompt",
    "check_ranking", "check_response", "prompt_numbers",
]

ROLES = ("system", "user", "assistant")
PAIR_NUMBERS = {"margin": 0.0, "label_prob": 1.0, "weight": 1.0}
"""Columns of a pair that are one number each, and what stands for an absent one."""
_ROUNDING = 1e-6
_VOTES = "They are the mean and standard deviation of chosen minus rejected score over the members; mend one of them."


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; role is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """A conversation whose next turn is the assistant's.

    Attributes:
        id: stable name, used in logs, random streams and error messages.
        messages: the turns so far; the last one is not the assistant's. Empty for continuation of plain text.
        text: plain text to continue, for models without a chat template; then `messages` is empty.
        meta: what the file says beside (domain, subset, ...); for reports, and for known groups.
        truth: what only a simulation knows (gold parts, whether a label is wrong); training code never reads it.
    """

    id: str
    messages: tuple[Message, ...]
    text: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    truth: Mapping[str, Any] = field(default_factory=dict)

    def label(self, column: str) -> str | None:
        """What `meta` says under that name, as a word; none where it says nothing: blank, NaN, a list or an object."""
        value = self.meta.get(column)
        if not isinstance(value, str | int | float) or (isinstance(value, float) and math.isnan(value)):
            return None
        return str(value) if str(value).strip() else None


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the response to imitate. With `prompt.text == ""` and no messages: plain text from the start."""

    prompt: Prompt
    response: str

    @property
    def id(self) -> str:
        return self.prompt.id


@dataclass(frozen=True)
class Strength:
    """What an ensemble of reward models says about a pair (arXiv:2401.06080, Eq. 4).

    Attributes:
        mean: of chosen score minus rejected score over the members; below 0 the ensemble sides against the label.
        std: of the same differences (divisor: number of members).
        chosen_scores, rejected_scores: of each member, in the members' order; empty where only the summary is known.
    """

    mean: float
    std: float
    chosen_scores: tuple[float, ...] = ()
    rejected_scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one prompt, of which annotators preferred the first.

    Attributes:
        strength: votes of an ensemble; none where nobody voted. Using it is a recipe's decision.
        margin: gap asked of the two scores, inside the log-sigmoid; 0 where the data give none.
        label_prob: probability in [0, 1] that chosen is really the better one.
        weight: share of the pair in the loss, >= 0; 0 drops it.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float = 0.0
    label_prob: float = 1.0
    weight: float = 1.0
    strength: Strength | None = None

    @property
    def id(self) -> str:
        return self.prompt.id


@dataclass(frozen=True)
class Ranking:
    """Several responses to one prompt, the best first.

    Attributes:
        tied: for each response, whether it is as good as the one before it; False for the first.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    tied: tuple[bool, ...]

    @property
    def id(self) -> str:
        return self.prompt.id


@dataclass(frozen=True)
class Graded:
    """A response with grades on named attributes; an attribute that nobody graded is not there.

    Attributes:
        record: id of the record that holds this response among others; empty where it is the only one.
    """

    prompt: Prompt
    response: str
    grades: Mapping[str, float]
    record: str = ""

    @property
    def id(self) -> str:
        return self.prompt.id


@dataclass(frozen=True)
class Labelled:
    """A response that somebody called good or bad by itself, beside no other one.

    Attributes:
        label: True where it is a good response.
    """

    prompt: Prompt
    response: str
    label: bool

    @property
    def id(self) -> str:
        return self.prompt.id


Record = Prompt | Demonstration | PreferencePair | Ranking | Labelled


def prompt_numbers(prompts: Iterable[Prompt]) -> list[int]:
    """A number from 0 on for each prompt; those of the same text have the same number."""
    known: dict[object, int] = {}
    return [known.setdefault((prompt.text, prompt.messages), len(known)) for prompt in prompts]


def check(record: Record) -> None:
    """Whatever kind it is.

    Raises:
        RowError: see `check_prompt`, `check_demonstration`, `check_pair`, `check_ranking`.
    """
    if isinstance(record, PreferencePair):
        check_pair(record)
    elif isinstance(record, Ranking):
        check_ranking(record)
    elif isinstance(record, Labelled):
        check_demonstration(Demonstration(record.prompt, record.response))
    elif isinstance(record, Demonstration):
        check_demonstration(record)
    else:
        check_prompt(record)


def check_prompt(prompt: Prompt) -> None:
    """A prompt that a policy can answer.

    Raises:
        RowError: no turn, an empty turn, an unknown role, two assistant turns in a row, or the assistant spoke last.
    """
    if prompt.text is None and not prompt.messages:
        raise RowError("empty prompt", "the prompt has no turn", "Give it at least one user turn.")
    if prompt.text is not None:
        _check_text(prompt.text, "the prompt")
        return
    for number, message in enumerate(prompt.messages, start=1):
        _check_message(message, number)
    for number, (one, other) in enumerate(zip(prompt.messages, prompt.messages[1:], strict=False), start=2):
        if one.role == other.role == "assistant":
            raise RowError("two assistant turns in a row", f"turns {number - 1} and {number} are both the assistant's",
                           "Join them into one turn, or put the user's turn between them.")
    if prompt.messages[-1].role == "assistant":
        raise RowError("prompt ends with the assistant", "the last turn of the prompt is the assistant's",
                       "A prompt ends with the user's turn; move the assistant's text to the response.")
    if prompt.messages[-1].role == "system":
        raise RowError("prompt without a question", "the last turn of the prompt is the system's",
                       "A prompt ends with the user's turn.")


def check_demonstration(demonstration: Demonstration) -> None:
    """A prompt and a response worth imitating.

    Raises:
        RowError: as `check_prompt`, or an empty response.
    """
    check_prompt(demonstration.prompt)
    check_response(demonstration.response, "the response")


def check_pair(pair: PreferencePair) -> None:
    """A pair that has something to teach.

    Raises:
        RowError: as `check_prompt`; an empty or repeated response; margin, label_prob or weight out of range; votes
            that contradict each other; a judge's label that is none.
    """
    check_prompt(pair.prompt)
    check_response(pair.chosen, "chosen")
    check_response(pair.rejected, "rejected")
    if pair.chosen.strip() == pair.rejected.strip():
        raise RowError("identical responses", "chosen and rejected are identical after stripping whitespace",
                       "Such a pair has no gradient; remove it.")
    if not math.isfinite(pair.margin):
        raise RowError("margin not finite", f"margin is {pair.margin}", "Give a finite number, or leave margin out.")
    if not 0 <= pair.label_prob <= 1:
        raise RowError("label_prob out of range", f"label_prob is {pair.label_prob}, outside 0 to 1",
                       "It is the probability that chosen is really better; 1 where nothing is known.")
    if not 0 <= pair.weight < math.inf:
        raise RowError("weight out of range", f"weight is {pair.weight}",
                       "A weight is finite and 0 or more; 0 drops the pair.")
    if pair.strength is not None:
        _check_strength(pair.strength)
    label = pair.prompt.meta.get("judge_label")
    if label is not None and (isinstance(label, bool) or label not in (-1, 0, 1)):
        raise RowError("bad judge label", f"the judge's label is {label!r}",
                       "It is 1 where chosen is better, 0 where rejected is, -1 where there is none.")


def check_ranking(ranking: Ranking) -> None:
    """A ranking that prefers something.

    Raises:
        RowError: as `check_prompt`; an empty or repeated response; ties that do not fit the responses, or all tied.
    """
    check_prompt(ranking.prompt)
    first_seen: dict[str, int] = {}
    for place, text in enumerate(ranking.responses, start=1):
        check_response(text, f"response {place} of the ranking")
        before = first_seen.setdefault(text.strip(), place)
        if before != place:
            raise RowError("repeated response", f"places {before} and {place} of the ranking hold the same response",
                           "Each response stands in a ranking once; remove the other one.")
    if len(ranking.tied) != len(ranking.responses):
        raise RowError("ties of unequal number", f"{len(ranking.tied)} flags of ties for {len(ranking.responses)} "
                       "responses", "One flag for each response; the first is False.")
    if sum(not tied for tied in ranking.tied) < 2 or ranking.tied[0]:
        raise RowError("nothing ranked", f"the {len(ranking.responses)} responses have no two different ranks",
                       "A ranking needs a better and a worse response; remove the record.")


def check_graded(graded: Graded) -> None:
    """A response with something to learn about it.

    Raises:
        RowError: as `check_demonstration`, no grade at all, or one that is not finite.
    """
    check_prompt(graded.prompt)
    check_response(graded.response, "the response")
    if not graded.grades:
        raise RowError("no grade", "the response has a grade on no attribute", "Remove the record, or name other "
                       "attributes; a response may lack some of them, not all.")
    for name, grade in graded.grades.items():
        if not math.isfinite(grade):
            raise RowError("grade not finite", f"the grade {name} is {grade}", "Give a finite number, or leave it out.")


def _check_strength(found: Strength) -> None:
    """Numbers that can be votes, and a summary that is the summary of its list."""
    chosen, rejected = found.chosen_scores, found.rejected_scores
    if not all(map(math.isfinite, (found.mean, found.std, *chosen, *rejected))):
        raise RowError("strength not finite", f"mean {found.mean} or std {found.std} or one of the scores of the votes "
                       "is not finite", "Vote again with models that do not overflow, or drop the strength columns.")
    if found.std < 0:
        raise RowError("strength out of range", f"the standard deviation of the votes is {found.std}",
                       "It is 0 or more; the sign of the votes is that of the mean.")
    if len(chosen) != len(rejected):
        raise RowError("votes of unequal number", f"{len(chosen)} chosen scores and {len(rejected)} rejected ones",
                       "Every member scores both responses; leave both lists out where only the summary is known.")
    if chosen:
        _check_summary(found, [one - other for one, other in zip(chosen, rejected, strict=True)])


def _check_summary(found: Strength, gaps: list[float]) -> None:
    """The mean and std of a list, as far as the numbers of published files allow.

    Those lists are rounded to bfloat16, half a unit in the last of whose eight bits is 2^-8 of a number; score,
    difference and mean are rounded one after the other, which 2^-6 of the largest score covers. Their divisor is M or
    M - 1; either is taken.
    """
    n, mean = len(gaps), sum(gaps) / len(gaps)
    std = math.sqrt(sum((gap - mean) * (gap - mean) for gap in gaps) / n)
    grain = 2**-6 * max(map(abs, found.chosen_scores + found.rejected_scores)) + _ROUNDING
    if abs(found.mean - mean) > grain:
        raise RowError("votes contradict their mean", f"the mean of the votes is given as {found.mean:g}; "
                       f"the differences of the scores have the mean {mean:g}", _VOTES)
    if not std - grain <= found.std <= std * math.sqrt(n / max(n - 1, 1)) + grain:
        raise RowError("votes contradict their std", f"the standard deviation of the votes is given as {found.std:g}; "
                       f"that of the differences of the scores is {std:g}", _VOTES)


def _check_message(message: Message, number: int) -> None:
    if message.role not in ROLES:
        raise RowError("unknown role", f"turn {number} has the role {message.role!r}",
                       f"Roles are {', '.join(ROLES)}; rename it, or leave the turn out.")
    if not message.content.strip():
        raise RowError("empty turn", f"turn {number} ({message.role}) is empty", "Remove the turn, or the record.")
    _check_text(message.content, f"turn {number} ({message.role})")


def check_response(text: str, name: str) -> None:
    """Text that a policy can have written; `name` is what the complaint calls it.

    Raises:
        RowError: it is empty, or holds what no tokenizer and no file can.
    """
    if not text:
        raise RowError("empty response", f"{name} is empty", "Remove the record; there is nothing to learn from.")
    if not text.strip():
        raise RowError("empty response", f"{name} is only whitespace",
                       "Remove the record; there is nothing to learn from.")
    _check_text(text, name)


def _check_text(text: str, name: str) -> None:
    """Text that every tokenizer and file format can hold."""
    if "\0" in text:
        raise RowError("NUL character", f"{name} holds a NUL character at position {text.index(chr(0))}",
                       "Remove the character; it is a trace of a broken export.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError("lone surrogate", f"{name} holds half a character ({text[error.start]!r}) at {error.start}",
                       "Such text was cut inside an emoji or mis-decoded; remove the half character.") from error
