"""Rows to prompt and responses, recognised by the names and types of their columns, never by a file's name.

Every layout ends in `Parts`. The table at the end of the file lists the layouts in the order in which they are tried.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from keel.data.problems import RowError
from keel.data.records import Message
from keel.data.rows import kind_of
from keel.data.sources import adapted
from keel.data.sources.prm800k import BRANCHES
from keel.data.turns import is_transcript, messages, one_response, text_of, transcript, utterances

__all__ = ["Parts", "missing", "parts"]

_COLUMNS = ("prompt", "chosen", "rejected", "completion", "response", "messages", "conversations", "instruction",
            "input", "output", "text", "question", "completions", "labels")
_CLOSE = 0.7
_COMPARED = 50  # columns, and letters of a name: nobody misspells more
_LAYOUTS_READ = ("keel reads prompt, chosen, rejected; prompt, responses, ranks or scores; prompt, completion, "
                 "perhaps with label; prompt, completions, labels; messages; conversations; instruction, output; text; "
                 "prompt")


@dataclass(frozen=True)
class Parts:
    """What a row says, before it is asked for a prompt, a demonstration or a pair.

    Attributes:
        layout: the name of the layout that was recognised.
        prompt: the turns before the response.
        text: a prompt that came as a bare string; then `prompt` is empty.
        responses: none, one to imitate, chosen and rejected, or those of a ranking in the order of the file.
        used: the columns that are spoken for; all others are meta.
    """

    layout: str
    prompt: tuple[Message, ...]
    text: str | None
    responses: tuple[str, ...]
    used: frozenset[str]


def parts(value: Mapping[str, Any]) -> tuple[Parts, Mapping[str, Any]]:
    """The parts of a row, and the row as its data set's adapter left it.

    Raises:
        RowError: no layout fits, or a column holds the wrong type.
    """
    source, value = adapted({name: cell for name, cell in value.items() if cell is not None})
    for layout, columns, read in _LAYOUTS:
        if columns <= value.keys():
            prompt, text, responses = read(value)
            used = columns | _PROMPT_COLUMNS.get(layout, frozenset())
            # What a ranking's responses are worth relative to each other is read by this name of the layout.
            name = layout if layout == "ranking" else source or layout
            return Parts(name, prompt, text, responses, used), value
    raise missing(value, "any layout", _COLUMNS)


def missing(value: Mapping[str, Any], wanted_for: str, wanted: Sequence[str]) -> RowError:
    """The error for a row without the wanted columns; names the likely misspelling."""
    absent = [name for name in wanted if name not in value]
    strange = [name for name in islice(value, _COMPARED) if name not in _COLUMNS and len(name) <= _COMPARED]
    guesses = [f"did you mean `{guess}` by `{name}`?" for name in strange
               for guess in difflib.get_close_matches(name.lower(), absent, n=1, cutoff=_CLOSE)]
    there = ", ".join(f"`{name}`" for name in value) or "none"
    needs = f"{wanted_for[0].upper()}{wanted_for[1:]} needs {_listed(absent)}" if wanted != _COLUMNS else _LAYOUTS_READ
    return RowError("missing column", f"no columns for {wanted_for}; there are {there}",
                    " ".join([f"{needs}.", *guesses]))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


_Read = tuple[tuple[Message, ...], str | None, tuple[str, ...]]


def _pair(value: Mapping[str, Any]) -> _Read:
    """`chosen` and `rejected`, beside their prompt or with the prompt inside both."""
    chosen, rejected = value["chosen"], value["rejected"]
    if type(chosen) is not type(rejected):
        raise RowError("wrong type", f"chosen is {kind_of(chosen)} and rejected is {kind_of(rejected)}",
                       "Both must be text, or both lists of messages.")
    if _holds_prompt(chosen) or _holds_prompt(rejected):
        return _implicit(value, _conversation(chosen, "chosen"), _conversation(rejected, "rejected"))
    if "prompt" not in value:
        raise missing(value, "a pair", ("prompt", "chosen", "rejected"))
    prompt, text = _prompt(value)
    return prompt, text, (one_response(chosen, "chosen"), one_response(rejected, "rejected"))


def _holds_prompt(side: Any) -> bool:
    return is_transcript(side) if isinstance(side, str) else isinstance(side, list) and len(side) > 1


def _conversation(side: Any, name: str) -> tuple[Message, ...]:
    if isinstance(side, str):
        return transcript(side, name)
    turns = utterances(side, name) if side and isinstance(side[0], str) else messages(side, name)
    if turns and turns[-1].role != "assistant":
        raise RowError("no response", f"{name} ends with the {turns[-1].role}'s turn",
                       "The last turn of each side must be the assistant's response.")
    return turns


def _implicit(value: Mapping[str, Any], chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> _Read:
    """Two conversations that share everything but the last turn."""
    one, other = chosen[:-1], rejected[:-1]
    if one != other:
        differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False), start=1) if a != b)
        turn = next(differing, min(len(one), len(other)) + 1)
        raise RowError("prompts differ", f"the prompts of chosen and rejected differ from turn {turn} on",
                       "Both sides must answer the same conversation; only their last turns may differ.")
    if "prompt" in value and not _agrees(value["prompt"], one):
        raise RowError("prompts differ", "the column `prompt` is not the conversation that chosen and rejected answer",
                       "Remove the column `prompt`, or leave only the response in chosen and rejected.")
    return one, None, (chosen[-1].content, rejected[-1].content)


def _agrees(prompt: Any, turns: tuple[Message, ...]) -> bool:
    """A prompt column beside whole conversations repeats them, or one of their user turns."""
    if isinstance(prompt, str) and not is_transcript(prompt):
        return any(turn.role == "user" and turn.content.strip() == prompt.strip() for turn in turns)
    return (transcript(prompt, "prompt") if isinstance(prompt, str) else messages(prompt, "prompt")) == turns


def _prompt(value: Mapping[str, Any], column: str = "prompt") -> tuple[tuple[Message, ...], str | None]:
    """A prompt column: messages, a transcript, or a bare string."""
    cell = value[column]
    if isinstance(cell, list):
        turns = utterances(cell, column) if cell and isinstance(cell[0], str) else messages(cell, column)
        return turns, None
    text = text_of(cell, column)
    if is_transcript(text):
        return transcript(text, column), None
    return (), text


def _completion(column: str) -> Callable[[Mapping[str, Any]], _Read]:
    def read(value: Mapping[str, Any]) -> _Read:
        prompt, text = _prompt(value)
        return prompt, text, (one_response(value[column], column),)

    return read


def _ranking(value: Mapping[str, Any]) -> _Read:
    """Several responses, in the order of the file; which is the better one, `ranks` or `scores` say."""
    cell = value["responses"]
    if not isinstance(cell, list):
        raise RowError("wrong type", f"responses is {kind_of(cell)}, not a list",
                       "Write a list of texts, or of assistant messages.")
    prompt, text = _prompt(value)
    return prompt, text, tuple(one_response([one] if isinstance(one, dict) else one, f"responses, entry {number}")
                               for number, one in enumerate(cell, start=1))


def _messages(value: Mapping[str, Any]) -> _Read:
    return _split(messages(value["messages"], "messages"))


def _conversations(value: Mapping[str, Any]) -> _Read:
    """ShareGPT: `from` and `value`, with the system prompt in a column of its own."""
    turns = messages(value["conversations"], "conversations")
    return _split(_system(value) + turns)


def _split(turns: tuple[Message, ...]) -> _Read:
    """A conversation that ends with the assistant is a prompt and a response; any other is a prompt."""
    if turns and turns[-1].role == "assistant":
        return turns[:-1], None, (turns[-1].content,)
    return turns, None, ()


def _system(value: Mapping[str, Any]) -> tuple[Message, ...]:
    text = text_of(value.get("system") or "", "system")
    return (Message("system", text),) if text.strip() else ()


def _instruction(value: Mapping[str, Any]) -> _Read:
    """Alpaca: the input, where there is one, follows the instruction after an empty line."""
    extra = text_of(value.get("input") or "", "input")
    asked = text_of(value["instruction"], "instruction") + (f"\n\n{extra}" if extra.strip() else "")
    turns = [turn for pair in value.get("history") or () for turn in utterances(pair, "history")]
    return (*_system(value), *turns, Message("user", asked)), None, (text_of(value["output"], "output"),)


def _text(value: Mapping[str, Any]) -> _Read:
    return (), "", (text_of(value["text"], "text"),)


def _only_prompt(value: Mapping[str, Any]) -> _Read:
    return *_prompt(value), ()


def _steps(value: Mapping[str, Any]) -> _Read:
    """TRL's stepwise columns. The steps are no response to imitate: some of them are wrong."""
    return *_prompt(value), ()


def _question(value: Mapping[str, Any]) -> _Read:
    return (), text_of(value["question"], "question"), ()


_LAYOUTS: tuple[tuple[str, frozenset[str], Callable[[Mapping[str, Any]], _Read]], ...] = (
    ("pair", frozenset({"chosen", "rejected"}), _pair),
    ("ranking", frozenset({"prompt", "responses", "ranks"}), _ranking),
    ("ranking", frozenset({"prompt", "responses", "scores"}), _ranking),
    ("messages", frozenset({"messages"}), _messages),
    ("conversations", frozenset({"conversations"}), _conversations),
    ("prompt and completion", frozenset({"prompt", "completion"}), _completion("completion")),
    ("prompt and response", frozenset({"prompt", "response"}), _completion("response")),
    ("instruction", frozenset({"instruction", "output"}), _instruction),
    ("steps", frozenset({"prompt", "completions", "labels"}), _steps),
    ("prompt", frozenset({"prompt"}), _only_prompt),
    ("question", frozenset({"question"}), _question),
    ("text", frozenset({"text"}), _text),
)
_PROMPT_COLUMNS = {
    "pair": frozenset({"prompt"}),
    "conversations": frozenset({"system"}),
    "instruction": frozenset({"input", "system", "history"}),
    "steps": frozenset({"outcome", "ended", BRANCHES}),
}
