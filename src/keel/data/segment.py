"""Steps of a response and the tokens in which they end.

A separator parts the steps; it belongs to the step that it ends. What is only whitespace is no step. Without a
separator behind it, the last step of a response that ended by itself ends with the response, at the token that ends the
turn; a last step that was cut has no end. A separator may be spread over several tokens, or share one with what follows
it: the step ends in the token that completes it.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from keel.data.chat import Template

__all__ = ["Separator", "Steps", "cut_text", "places_in_text", "split", "steps_in_text", "steps_of", "token_places"]


def _spelled_out(text: str) -> str:
    """On a command line nobody can type a line break: there \\n and \\t, and nothing else, stand for one and a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t") if set(text) <= set("\\nt") else text


Separator = Annotated[str, AfterValidator(_spelled_out)]
"""Text that parts steps, as a setting."""


@dataclass(frozen=True)
class Steps:
    """The steps of one response.

    Attributes:
        texts: of each step, without its separator.
        ends: index, among the tokens of the response, of the token in which each step ends.
        unfinished: text of a last step that was cut; empty where there is none.
    """

    texts: tuple[str, ...]
    ends: tuple[int, ...]
    unfinished: str = ""


def cut_text(text: str, separator: str) -> tuple[list[tuple[str, int]], str]:
    """Steps with the position in the text behind the separator of each; and what follows the last separator.

    Raises:
        ValueError: the separator is empty.
    """
    if not separator:
        raise ValueError("separator='' would end a step after every character; give the text that parts steps")
    found, start = list[tuple[str, int]](), 0
    while (at := text.find(separator, start)) >= 0:
        behind = at + len(separator)
        if text[start:at].strip():
            found.append((text[start:at], behind))
        start = behind
    return found, text[start:]


def split(text: str, separator: str, *, ended: bool = True) -> list[str]:
    """Texts of the steps; the last one, where nothing parts it from the end, only if the response ended by itself."""
    found, rest = cut_text(text, separator)
    return [step for step, _ in found] + ([rest] if ended and rest.strip() else [])


def steps_of(template: Template, ids: Sequence[int], separator: str, *, ended: bool) -> Steps:
    """The steps of a sampled response, whose tokens are kept as they are.

    Args:
        template: of the tokenizer that wrote them.
        ids: tokens of the response, with the one that ends the turn where it ended by itself; no padding.
        separator: text that parts steps.
        ended: whether it ended by itself.
    """
    found, rest = cut_text(template.decode(list(ids)), separator)
    return _with_rest(found, rest, token_places(template, ids, [behind for _, behind in found]), len(ids), ended)


def token_places(template: Template, ids: Sequence[int], positions: Sequence[int]) -> list[int]:
    """For each position in the decoded text, the token with which all that stands before it is there.

    A character may take several tokens; decoding only some of them gives another one, so it is there with the last.

    Args:
        template: of the tokenizer.
        ids: of a response, as sampled.
        positions: in `template.decode(ids)`, from 1 on, in rising order.
    """
    ids, found = list(ids), list[int]()
    text, start, behind = template.decode(ids), 0, 0  # the tokens before `start` spell the text before `behind`
    for position in positions:
        if found and position <= behind:
            found.append(found[-1])
            continue
        # Decoding everything for every token would cost the square of the length: a few tokens guess, one look tells.
        k, n_spelled = _guess(template, ids, start, text[behind:position])
        whole = template.decode(ids[: k + 1])
        if not text.startswith(whole) or len(whole) != behind + n_spelled:
            k = bisect_left(range(len(ids)), True, lo=start, key=lambda k: template.decode(
                ids[: k + 1])[:position] == text[:position])
            whole = template.decode(ids[: k + 1])
        found.append(k)
        if text.startswith(whole):
            start, behind = k + 1, len(whole)
    return found


def _guess(template: Template, ids: Sequence[int], start: int, wanted: str) -> tuple[int, int]:
    """The token that completes a text which begins at the token `start`, by decoding from there; and how long the text
    up to it is. Some tokenizers drop a space at the beginning."""
    def spelled(k: int) -> int:
        text = template.tokenizer.decode(ids[start : k + 1], skip_special_tokens=True,
                                         clean_up_tokenization_spaces=False)
        return len(text) + (wanted[:1] == " " and text[:1] not in ("", " "))

    last, stride = start, 4
    while last < len(ids) - 1 and spelled(last) < len(wanted):
        last, stride = min(last + stride, len(ids) - 1), 2 * stride
    k = min(bisect_left(range(last + 1), len(wanted), lo=start, key=spelled), len(ids) - 1)
    return k, spelled(k)


def places_in_text(template: Template, text: str, ids: Sequence[int], positions: Sequence[int]) -> list[int]:
    """For each position in a text, the token that holds the character before it.

    Where that character is in no token, because the template strips it at the end or the tokenizer drops it
    (whitespace, in some), it is the last token: of the response, or before the position.

    Args:
        template: of the tokenizer.
        text: of a response.
        ids: `template.response_ids(text, ...)`.
        positions: in the text, from 1 on, in rising order.
    """
    kept = text.strip() if template.trims else text
    ahead, told = len(text) - len(text.lstrip()) if template.trims else 0, None
    if template.tokenizer.is_fast:
        told = template.tokenizer(template.lead + kept, add_special_tokens=False, return_offsets_mapping=True,
                                  verbose=False)
    if told is not None and list(ids[: len(told.input_ids)]) == list(told.input_ids):
        starts, ends = zip(*told.offset_mapping, strict=True) if told.offset_mapping else ((), ())
        shifted = [position - ahead + len(template.lead) for position in positions]
        places = [max(bisect_left(starts, position) - 1, 0) for position in shifted]
        if all(ends[place] >= position for place, position in zip(places, shifted, strict=True)):
            return places
    return _by_decoding(template, text, ids, positions)


def _by_decoding(template: Template, text: str, ids: Sequence[int], positions: Sequence[int]) -> list[int]:
    """The same where the tokenizer's offsets are of no use: its tokens are others behind a plain text, or it leaves
    whitespace out of its offsets."""
    decoded = template.decode(list(ids))
    for ahead in (0, len(text) - len(text.lstrip())):  # what a template or a tokenizer takes off the beginning
        if decoded and text.startswith(decoded, ahead) and not text[ahead + len(decoded) :].strip():
            kept = [max(position - ahead, 1) for position in positions if position - ahead <= len(decoded)]
            return token_places(template, ids, kept) + [len(ids) - 1] * (len(positions) - len(kept))
    return [_parted(template, text[:position], ids) for position in positions]


def _parted(template: Template, before: str, ids: Sequence[int]) -> int:
    """The same where a tokenizer gives no offsets: the last token of the text before the position, or the first that is
    another one in the whole text."""
    alone = template.response_ids(before, ended=False)
    common = next((k for k, (one, other) in enumerate(zip(alone, ids, strict=False)) if one != other), len(alone))
    return min(common, len(alone) - 1, len(ids) - 1)


def steps_in_text(template: Template, text: str, ids: Sequence[int], separator: str, *, ended: bool) -> Steps:
    """The steps of a text that was rendered, as `steps_of` those of tokens that were sampled.

    Args:
        template: of the tokenizer.
        text: of the response.
        ids: `template.response_ids(text, ended, ...)`.
        separator: text that parts steps.
        ended: whether it ended by itself.
    """
    found, rest = cut_text(text, separator)
    ends = places_in_text(template, text, ids, [behind for _, behind in found])
    return _with_rest(found, rest, ends, len(ids), ended)


def _with_rest(found: Sequence[tuple[str, int]], rest: str, ends: Sequence[int], n: int, ended: bool) -> Steps:
    """The steps, with what follows the last separator: a step that ends at the last of n tokens, or none."""
    texts = [step for step, _ in found]
    if not rest.strip():
        return Steps(tuple(texts), tuple(ends))
    return Steps((*texts, rest), (*ends, n - 1)) if ended else Steps(tuple(texts), tuple(ends), rest)
