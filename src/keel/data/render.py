"""Records to rows of tokens; the only truncation, and it is counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from keel.data.chat import Template, template
from keel.data.records import Demonstration, Message, PreferencePair, Prompt, Ranking
from keel.errors import DataError

__all__ = [
    "Fitted", "PairRow", "PromptRow", "RankingRow", "Row", "Template", "TooLong", "Truncation", "fit",
    "render_demonstrations", "render_pairs", "render_prompts", "render_rankings", "template",
]

TooLong = Literal["drop_turns", "truncate_left", "truncate_response", "keep_response", "drop", "error"]
Outcome = Literal["whole", "fewer turns", "cut", "dropped"]
OPENING = 8
"""Last tokens of a prompt that `keep_response` never cuts: with them chat templates open the assistant's turn."""


@dataclass(frozen=True)
class Row:
    """Tokens of a prompt and, from index `n_prompt` on, of its response."""

    ids: list[int]
    n_prompt: int
    record_id: str

    @property
    def n_tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class PromptRow:
    """Tokens of a prompt, the assistant's turn open, and the record they come from."""

    ids: list[int]
    record: Prompt

    @property
    def n_prompt(self) -> int:
        return len(self.ids)

    @property
    def record_id(self) -> str:
        return self.record.id


@dataclass(frozen=True)
class PairRow:
    """Tokens of a prompt and of the two responses to it, and the record they come from."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    pair: PreferencePair

    @property
    def record_id(self) -> str:
        return self.pair.id

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longer response."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def n_tokens(self) -> int:
        """What the pair takes in a padded batch, which holds both sides."""
        return 2 * self.longest

    @property
    def asked(self) -> PromptRow:
        """The prompt alone."""
        return PromptRow(self.prompt_ids, self.pair.prompt)

    @property
    def chosen(self) -> Row:
        return Row(self.prompt_ids + self.chosen_ids, len(self.prompt_ids), self.record_id)

    @property
    def rejected(self) -> Row:
        return Row(self.prompt_ids + self.rejected_ids, len(self.prompt_ids), self.record_id)


@dataclass(frozen=True)
class RankingRow:
    """Tokens of a prompt and of the responses to it, the best first, and the record they come from."""

    prompt_ids: list[int]
    response_ids: tuple[list[int], ...]
    ranking: Ranking

    @property
    def record_id(self) -> str:
        return self.ranking.id

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest response."""
        return len(self.prompt_ids) + max(map(len, self.response_ids))

    @property
    def rows(self) -> list[Row]:
        return [Row(self.prompt_ids + ids, len(self.prompt_ids), self.record_id) for ids in self.response_ids]


@dataclass(frozen=True)
class Truncation:
    """What the length limit did to the rows.

    Attributes:
        n_rows: rows seen.
        n_fewer_turns: rows that lost their oldest turns.
        n_cut: rows that lost tokens of the prompt or of a response.
        n_dropped: rows left out.
        max_length: the limit, in tokens.
    """

    n_rows: int
    n_fewer_turns: int
    n_cut: int
    n_dropped: int
    max_length: int

    def summary(self) -> str:
        """One line for a log."""
        return (f"{self.n_rows} rows at most {self.max_length} tokens long: {self.n_fewer_turns} without their oldest "
                f"turns, {self.n_cut} cut, {self.n_dropped} dropped")


@dataclass(frozen=True)
class Fitted:
    """A row that fits, or the news that it cannot."""

    prompt_ids: list[int]
    responses: tuple[list[int], ...]
    outcome: Outcome


def fit(
    template: Template, prompt: Prompt, responses: Sequence[list[int]], max_length: int, too_long: TooLong,
    prompt_ids: list[int] | None = None,
) -> Fitted:
    """Make prompt + longest response fit; both responses of a pair always answer the same tokens.

    Args:
        template: of the tokenizer.
        prompt: rendered again where turns are dropped.
        responses: tokens of none, one or several responses, each with the token that ends it.
        max_length: tokens of prompt and response together.
        too_long: `drop_turns`: without the oldest turns, the system turn stays, and the row is dropped where the last
            turn alone is too long; `truncate_left`: the prompt loses its first tokens; `truncate_response`: all
            responses are cut to one budget, and one that was cut loses its end; `keep_response`: without the oldest
            turns; where the last turn does not fit beside the system turn either, the first tokens of the two go (the
            system turn, the last turn's header, the text of that turn), all but the last OPENING if need be; only then
            are responses cut at their end; `drop`; `error`.
        prompt_ids: tokens of the whole prompt, where they are known.

    Raises:
        DataError: too_long is `error`, and it is.
    """
    ids = template.prompt_ids(prompt) if prompt_ids is None else prompt_ids
    longest = max(map(len, responses), default=0)
    whole, room = tuple(responses), max_length - longest
    if len(ids) <= room:
        return Fitted(ids, whole, "whole")
    if too_long == "error":
        raise DataError(f"{len(ids)} tokens of prompt and {longest} of response do not fit into {max_length}",
                        where=f"id {prompt.id}",
                        remedy="Raise the limit, or choose another too_long: drop_turns, truncate_left, "
                               "truncate_response or drop.")
    if too_long == "keep_response":
        return _keep_response(template, prompt, ids, whole, max_length)
    if too_long == "drop_turns":
        return _without_turns(template, prompt, whole, room)
    if too_long == "truncate_left":
        return _cut_left(template, ids, whole, room)
    if too_long == "truncate_response":
        return _cut_responses(ids, whole, max_length)
    return Fitted(ids, whole, "dropped")


def render_demonstrations(
    template: Template, demonstrations: Sequence[Demonstration], max_length: int, too_long: TooLong = "drop_turns", *,
    max_response: int | None = None,
) -> tuple[list[Row], Truncation]:
    """Rows to imitate.

    Args:
        template: of the tokenizer.
        demonstrations: what is shown.
        max_length: tokens of prompt and response together.
        too_long: see `fit`.
        max_response: a longer response is cut here before the row is made to fit, and loses its end.

    Raises:
        DataError: no row fits, or one does not and too_long is `error`.
    """
    rows, outcomes = [], []
    for record in demonstrations:
        whole = template.response_ids(record.response, after=record.prompt.text)
        response = whole[:max_response]
        fitted = fit(template, record.prompt, [response], max_length, too_long)
        shorter = fitted.outcome == "whole" and len(response) < len(whole)
        outcomes.append("cut" if shorter else fitted.outcome)
        if fitted.outcome != "dropped":
            rows.append(Row(fitted.prompt_ids + fitted.responses[0], len(fitted.prompt_ids), record.id))
    return rows, _counted(outcomes, max_length)


def render_pairs(
    template: Template, pairs: Sequence[PreferencePair], max_length: int, too_long: TooLong = "drop_turns",
) -> tuple[list[PairRow], Truncation]:
    """Rows of two responses to one prompt. A pair whose responses become equal by cutting is dropped.

    Raises:
        DataError: no pair fits, or one does not and too_long is `error`.
    """
    rows, outcomes = [], []
    for pair in pairs:
        responses = [template.response_ids(text, after=pair.prompt.text) for text in (pair.chosen, pair.rejected)]
        fitted = fit(template, pair.prompt, responses, max_length, too_long)
        outcomes.append(fitted.outcome)
        if fitted.outcome != "dropped":
            chosen, rejected = fitted.responses
            rows.append(PairRow(fitted.prompt_ids, chosen, rejected, pair))
    return rows, _counted(outcomes, max_length)


def render_rankings(
    template: Template, rankings: Sequence[Ranking], max_length: int, too_long: TooLong = "drop_turns",
) -> tuple[list[RankingRow], Truncation]:
    """Rows of several responses to one prompt. A ranking in which two become equal by cutting is dropped.

    Raises:
        DataError: no ranking fits, or one does not and too_long is `error`.
    """
    rows, outcomes = [], []
    for ranking in rankings:
        responses = [template.response_ids(text, after=ranking.prompt.text) for text in ranking.responses]
        fitted = fit(template, ranking.prompt, responses, max_length, too_long)
        outcomes.append(fitted.outcome)
        if fitted.outcome != "dropped":
            rows.append(RankingRow(fitted.prompt_ids, fitted.responses, ranking))
    return rows, _counted(outcomes, max_length)


def render_prompts(
    template: Template, prompts: Sequence[Prompt], max_prompt_length: int, too_long: TooLong = "drop_turns",
) -> tuple[list[PromptRow], Truncation]:
    """Rows to sample from. The record keeps all its turns, whatever the tokens lost.

    Raises:
        DataError: no prompt fits, or one does not and too_long is `error`.
    """
    rows, outcomes = [], []
    for prompt in prompts:
        fitted = fit(template, prompt, (), max_prompt_length, too_long)
        outcomes.append(fitted.outcome)
        if fitted.outcome != "dropped":
            rows.append(PromptRow(fitted.prompt_ids, prompt))
    return rows, _counted(outcomes, max_prompt_length)


def _without_turns(template: Template, prompt: Prompt, responses: tuple[list[int], ...], room: int) -> Fitted:
    while (shorter := _later_turns(prompt.messages)) is not None:
        prompt = replace(prompt, messages=shorter)
        ids = template.prompt_ids(prompt)
        if len(ids) <= room:
            return Fitted(ids, responses, "fewer turns")
    return Fitted([], responses, "dropped")


def _later_turns(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """Without the oldest exchange: from the second user turn on, behind the system turn; None if there is no second."""
    n_system = 1 if messages and messages[0].role == "system" else 0
    for index in range(n_system + 1, len(messages)):
        if messages[index].role == "user":
            return messages[:n_system] + messages[index:]
    return None


def _keep_response(
    template: Template, prompt: Prompt, ids: list[int], responses: tuple[list[int], ...], max_length: int,
) -> Fitted:
    room = max_length - max(map(len, responses), default=0)
    fewer = _without_turns(template, prompt, responses, room)
    if fewer.outcome != "dropped":
        return fewer
    while (shorter := _later_turns(prompt.messages)) is not None:
        prompt = replace(prompt, messages=shorter)
        ids = template.prompt_ids(prompt)
    start = ids[:1] if ids[:1] == [template.start_id] else []
    least = min(len(ids), len(start) + OPENING, max_length // 2)
    if room >= least:
        return _cut_left(template, ids, responses, room)
    kept = ids if least == len(ids) else _cut_left(template, ids, responses, least).prompt_ids
    return _cut_responses(kept, responses, max_length)


def _cut_left(template: Template, ids: list[int], responses: tuple[list[int], ...], room: int) -> Fitted:
    start = ids[:1] if ids[:1] == [template.start_id] else []
    kept = room - len(start)
    if kept < 1:
        return Fitted(ids, responses, "dropped")
    return Fitted([*start, *ids[-kept:]], responses, "cut")


def _cut_responses(ids: list[int], responses: tuple[list[int], ...], max_length: int) -> Fitted:
    budget = max_length - len(ids)
    cut = tuple(response[:max(budget, 0)] for response in responses)
    if budget < 1 or len({tuple(response) for response in cut}) < len(cut) or not cut:
        return Fitted(ids, responses, "dropped")
    return Fitted(ids, cut, "cut")


def _counted(outcomes: list[Outcome], max_length: int) -> Truncation:
    counts = Counter(outcomes)
    if outcomes and counts["dropped"] == len(outcomes):
        raise DataError(f"none of {len(outcomes)} rows fits into {max_length} tokens",
                        remedy="Raise the limit, or choose too_long = truncate_left or truncate_response.")
    return Truncation(len(outcomes), counts["fewer turns"], counts["cut"], counts["dropped"], max_length)
