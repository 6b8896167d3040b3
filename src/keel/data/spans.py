"""Whole conversations as tokens, and which of the tokens are the content of which turn.

The template runs twice: over the contents, and over the contents with marks at both ends that occur nowhere else. Where
the marks come out is where the content is, wherever the template moves it. Nothing is guessed from a model's name or
from the order of the turns.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, NamedTuple

from keel.data.chat import Template
from keel.data.records import Message
from keel.errors import DataError

__all__ = ["Conversation", "Reasoning", "TurnSpan", "Window", "render_conversation", "windows"]

Reasoning = Literal["keep", "leave_out"]
Spot = tuple[int, int]
_FIRST, _LAST = 0xF0000, 0x10FFFD
"""Private characters: no text that people write holds them; one that does is passed over."""
# A closed block; the beginning up to a closing tag that nothing opened; a block that was cut before its end.
_THOUGHT = re.compile(r"<think>(.*?)</think>|\A((?:(?!<think>).)*?)</think>|<think>(.*)\Z", re.DOTALL)
_SHOWN = 40


@dataclass(frozen=True)
class TurnSpan:
    """The tokens of one turn's content, without its header and what ends it.

    A token that holds a character of the content other than white space belongs to it, also where it holds white space
    of the template too. White space at the ends of the content does not count.

    Attributes:
        index: number of the message, from 0.
        role: of the message.
        start, end: first token, and the one behind the last. Equal where the turn has no content, or where the template
            leaves it out.
        pieces: the parts that count, in order; several where reasoning in the middle is left out.
    """

    index: int
    role: str
    start: int
    end: int
    pieces: tuple[Spot, ...]

    @property
    def positions(self) -> list[int]:
        """Every token that counts."""
        return [position for start, end in self.pieces for position in range(start, end)]


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation.

    Attributes:
        ids: its tokens, as the template writes them; no turn is left open.
        turns: one for each message, in the order of the messages.
        record_id: of the conversation.
        joined: True where the system turn stands in front of the first user turn's content, because the template
            refuses it or drops it.
    """

    ids: list[int]
    turns: tuple[TurnSpan, ...]
    record_id: str = ""
    joined: bool = False


class Window(NamedTuple):
    """Tokens `start` to `stop` of a row, of which those from `read_from` on are read."""

    start: int
    stop: int
    read_from: int


class _Segment(NamedTuple):
    """A part of a turn's content between two marks."""

    turn: int
    opening: str
    closing: str
    text: str
    reasoning: bool


def render_conversation(
    template: Template, messages: Sequence[Message], *, record_id: str = "", reasoning: Reasoning = "keep",
) -> Conversation:
    """The conversation as tokens, with the place of each turn's content.

    Args:
        template: of the tokenizer.
        messages: any roles in any order that the template takes. A leading system turn that it refuses or drops is
            joined to the user turn behind it, with an empty line between.
        record_id: for errors.
        reasoning: whether `<think>` blocks inside the assistant's turns count as content.

    Raises:
        DataError: the template refuses the conversation, writes a turn otherwise than it stands there, or the tokens
            of a turn do not spell its content.
    """
    system = bool(messages) and messages[0].role == "system" and bool(messages[0].content.strip())
    joinable = system and len(messages) > 1 and messages[1].role == "user"
    try:
        found = _rendered(template, messages, record_id, reasoning, joined=False)
    except DataError:
        if not joinable:
            raise
        return _rendered(template, messages, record_id, reasoning, joined=True)
    if joinable and not found.turns[0].pieces:
        return _rendered(template, messages, record_id, reasoning, joined=True)
    return found


def windows(n_tokens: int, width: int) -> list[Window]:
    """A row cut into overlapping windows, so that each token is read once.

    Each window goes half its width further. From the second one on only its second half is read: every token then has
    at least half a window before it.
    """
    found = [Window(0, min(width, n_tokens), 0)]
    step = max(1, width // 2)
    while found[-1].stop < n_tokens:
        last = found[-1]
        found.append(Window(last.start + step, min(last.start + step + width, n_tokens), last.stop))
    return found


# --- text


def _rendered(template: Template, messages: Sequence[Message], record_id: str, reasoning: Reasoning, *, joined: bool,
              ) -> Conversation:
    fresh = _unused(messages)
    hidden: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        hidden[mark := next(fresh)] = match.group()
        return mark

    bare = [template.control.sub(hide, turn.content) for turn in messages]
    marked, segments = [], []
    for index, (turn, content) in enumerate(zip(messages, bare, strict=True)):
        text, parts = _marked(content, index, turn.role, fresh)
        marked.append(text)
        segments += parts
    whole = template.written(_turns(messages, bare, joined), record_id)
    unmarked, places = _unmarked(template.written(_turns(messages, marked, joined), record_id), segments)
    if unmarked != whole:
        raise DataError("the chat template writes a turn otherwise when marks stand at its ends, so nobody can say "
                        "where it is", where=f"id {record_id}",
                        remedy="The template looks at how contents begin or end; simplify that part of it.")
    ids, offsets = _encoded(template, whole, hidden, sorted(places.values()))
    spots = {part: _spot(offsets, places[part.opening], places[part.closing]) for part in segments
             if part.opening in places and part.closing in places}
    for part, (start, end) in spots.items():
        _check_spelling(template, ids[start:end], _restored(part.text, hidden), messages[part.turn].role, part.turn,
                        record_id)
    with_bos = template.one_bos(ids)
    shift = len(with_bos) - len(ids)
    turns = [_turn(index, turn.role, [(part, spots[part]) for part in segments if part.turn == index and part in spots],
                   reasoning, shift) for index, turn in enumerate(messages)]
    return Conversation(with_bos, tuple(turns), record_id, joined)


def _unused(messages: Sequence[Message]) -> Iterator[str]:
    taken = {char for turn in messages for char in turn.content if ord(char) >= _FIRST}
    return (chr(code) for code in range(_FIRST, _LAST) if chr(code) not in taken)


def _marked(content: str, turn: int, role: str, fresh: Iterator[str]) -> tuple[str, list[_Segment]]:
    """The content with marks around its parts: what it says, and what was thought, without the tags."""
    text, segments, last = "", [], 0
    for start, end, reasoning in _parts(content, role):
        part = content[start:end].strip()
        if not part:
            continue
        begin = content.index(part, start)
        segments.append(_Segment(turn, next(fresh), next(fresh), part, reasoning))
        text += content[last:begin] + segments[-1].opening + part + segments[-1].closing
        last = begin + len(part)
    return text + content[last:], segments


def _parts(content: str, role: str) -> Iterator[tuple[int, int, bool]]:
    """Where the parts begin and end, and whether each is reasoning."""
    last = 0
    for block in _THOUGHT.finditer(content) if role == "assistant" else ():
        inner = next(group for group in (1, 2, 3) if block.group(group) is not None)
        yield last, block.start(), False
        yield *block.span(inner), True
        last = block.end()
    yield last, len(content), False


def _turns(messages: Sequence[Message], contents: Sequence[str], joined: bool) -> list[Message]:
    turns = [Message(turn.role, content) for turn, content in zip(messages, contents, strict=True)]
    if not joined:
        return turns
    return [Message("user", f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:]]


def _unmarked(text: str, segments: Sequence[_Segment]) -> tuple[str, dict[str, int]]:
    """The text without its marks, and where each of them was; the first time, where a template repeats a content."""
    marks = {mark for part in segments for mark in (part.opening, part.closing)}
    kept: list[str] = []
    places: dict[str, int] = {}
    for char in text:
        if char in marks:
            places.setdefault(char, len(kept))
        else:
            kept.append(char)
    return "".join(kept), places


# --- tokens


def _encoded(template: Template, text: str, hidden: dict[str, str], borders: Sequence[int],
             ) -> tuple[list[int], list[Spot]]:
    """Tokens, and the characters that each stands for. Control tokens that somebody spelled out stay plain text."""
    pieces = re.split("([" + "".join(hidden) + "])", text) if hidden else [text]
    ids: list[int] = []
    offsets: list[Spot] = []
    at = 0
    for piece in filter(None, pieces):
        spelled = hidden.get(piece)
        if spelled is None:
            found, spots = _with_offsets(template, piece, [border - at for border in borders])
            offsets += [(at + start, at + end) for start, end in spots]
        else:
            found = template.tokenizer(spelled, add_special_tokens=False, split_special_tokens=True).input_ids
            offsets += [(at, at + 1)] * len(found)
        ids += found
        at += len(piece)
    return ids, offsets


def _with_offsets(template: Template, text: str, borders: Sequence[int]) -> tuple[list[int], list[Spot]]:
    words = template.tokenizer
    if words.is_fast:
        told = words(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(told.input_ids), [(start, end) for start, end in told.offset_mapping]
    ids = _alone(template, text)
    return ids, _found_offsets(template, text, ids, [border for border in borders if 0 < border < len(text)])


def _found_offsets(template: Template, text: str, ids: list[int], borders: Sequence[int]) -> list[Spot]:
    """For tokenizers that do not tell: between which of the borders each token is.

    The tokens before a border are those that the text before it has alone. Where these do not end there, a token
    straddles the border, and the tokens behind it are those that the text behind it has alone.
    """
    starts, ends = [0] * len(ids), [len(text)] * len(ids)
    for border in borders:
        before, behind = _alone(template, text[:border]), _alone(template, text[border:])
        n_before = _n_same(before, ids)
        n_behind = len(ids) - n_before if n_before == len(before) else _n_same(behind[::-1], ids[::-1])
        ends[:n_before] = [min(end, border) for end in ends[:n_before]]
        starts[len(ids) - n_behind:] = [border] * n_behind
    return list(zip(starts, ends, strict=True))


def _alone(template: Template, text: str) -> list[int]:
    return list(template.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _n_same(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _spot(offsets: Sequence[Spot], start: int, end: int) -> Spot:
    """The tokens that hold a character from `start` to `end`."""
    first = bisect_right(offsets, start, key=lambda spot: spot[1])
    return first, max(first, bisect_left(offsets, end, key=lambda spot: spot[0]))


def _turn(index: int, role: str, parts: Sequence[tuple[_Segment, Spot]], reasoning: Reasoning, shift: int) -> TurnSpan:
    counted = [(start + shift, end + shift) for part, (start, end) in parts
               if reasoning == "keep" or not part.reasoning]
    if not counted:
        return TurnSpan(index, role, 0, 0, ())
    first, last = min(start for start, _ in counted), max(end for _, end in counted)
    pieces = ((first, last),) if reasoning == "keep" else tuple(counted)
    return TurnSpan(index, role, first, last, pieces)


def _restored(text: str, hidden: dict[str, str]) -> str:
    return "".join(hidden.get(char, char) for char in text)


def _check_spelling(template: Template, ids: list[int], text: str, role: str, turn: int, record_id: str) -> None:
    """The tokens spell the text, white space aside; or what is left of it in a tokenizer that cannot hold it all."""
    if _squeezed(_decoded(template, ids)) == _squeezed(text):
        return
    if _squeezed(_decoded(template, ids)) != _squeezed(_decoded(template, _alone(template, text))):
        raise DataError(f"the tokens of turn {turn + 1} ({role}) spell {_decoded(template, ids)[:_SHOWN]!r}, and its "
                        f"content begins {text[:_SHOWN]!r}", where=f"id {record_id}",
                        remedy="The chat template changes contents, or a token holds both content and header. Put a "
                               "control token or a line break between them in the template.")


def _decoded(template: Template, ids: list[int]) -> str:
    return str(template.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _squeezed(text: str) -> str:
    return "".join(text.split())
