"""One row to the kind of record that was asked for: a prompt, demonstrations, a pair, a ranking, grades or a label."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from keel.data.formats import Parts, missing, parts
from keel.data.problems import RowError
from keel.data.records import (
    PAIR_NUMBERS,
    Demonstration,
    Graded,
    Labelled,
    Message,
    PreferencePair,
    Prompt,
    Ranking,
    Strength,
    check,
    check_graded,
)
from keel.data.rows import Row, kind_of, stem
from keel.data.turns import spelled_out

__all__ = ["OF_PAIR", "Kind", "Turns", "Which", "demonstrations_of", "graded_of", "kind_of_row", "labelled_of",
           "pair_of", "parts_of", "prompt_in", "prompt_of", "ranking_of", "responses_of", "truth_of"]

Turns = Literal["last", "all"]
Kind = Literal["prompts", "demonstrations", "labelled", "pairs", "rankings", "traces"]
Which = Literal["chosen", "all"]
_VOTES = ("chosen_scores", "rejected_scores")
_STRENGTH = ("strength_mean", "strength_std", *_VOTES)
_HUGE = 1e300
OF_PAIR = "of_pair"
"""Key of meta under which the responses of a pair find what it says of itself."""
_OWN = frozenset({"id", "meta", "truth"})
_OF_PAIRS = frozenset((*PAIR_NUMBERS, *_STRENGTH))
_SPELLED_TRUTH = {"true": True, "false": False}


def prompt_of(row: Row, *, as_text: bool) -> tuple[str, list[Prompt]]:
    """The layout's name and the row's prompt.

    Raises:
        RowError: the row is wrong or holds no prompt.
    """
    found, value = parts_of(row)
    if found.layout == "text":
        raise missing(value, "a prompt", ("prompt",))
    prompt = prompt_in(row, found, value, as_text)
    check(prompt)
    return found.layout, [prompt]


def demonstrations_of(row: Row, *, as_text: bool, turns: Turns) -> tuple[str, list[Demonstration]]:
    """The layout's name and the row's demonstrations: one, or one for every assistant turn.

    Raises:
        RowError: the row is wrong or holds nothing to imitate.
    """
    found, value = parts_of(row)
    if not found.responses or found.layout == "ranking":
        if found.prompt and found.layout in ("messages", "conversations"):
            raise RowError("no response", f"the conversation ends with the {found.prompt[-1].role}'s turn",
                           "A demonstration ends with the assistant's turn; cut what follows it.")
        raise missing(value, "a demonstration", ("completion", "messages", "text"))
    whole = Demonstration(prompt_in(row, found, value, as_text), found.responses[0])
    check(whole)
    if turns == "last" or not found.prompt:
        return found.layout, [whole]
    return found.layout, [*_earlier(whole), replace(whole, prompt=_renamed(whole.prompt, len(found.prompt)))]


def pair_of(row: Row, *, as_text: bool) -> tuple[str, list[PreferencePair]]:
    """The layout's name and the row's pair.

    Raises:
        RowError: the row is wrong or is no pair.
    """
    found, value = parts_of(row)
    if len(found.responses) != 2 or found.layout == "ranking":
        raise missing(value, "a pair", ("prompt", "chosen", "rejected"))
    chosen, rejected = found.responses
    margin, label_prob, weight = (_number(row, value, name, default) for name, default in PAIR_NUMBERS.items())
    prompt = _judged(row, prompt_in(row, found, value, as_text))
    pair = PreferencePair(prompt, chosen, rejected, margin, label_prob, weight, _strength(row, value))
    check(pair)
    return found.layout, [pair]


def ranking_of(row: Row, *, as_text: bool) -> tuple[str, list[Ranking]]:
    """The layout's name and the row's ranking, best first; a pair is a ranking of two.

    Raises:
        RowError: the row is wrong or ranks nothing.
    """
    found, value = parts_of(row)
    prompt = prompt_in(row, found, value, as_text)
    if found.layout != "ranking":
        if len(found.responses) != 2:
            raise missing(value, "a ranking", ("prompt", "responses", "ranks"))
        ranking = Ranking(prompt, found.responses, (False, False))
    else:
        places = _places(row, value, len(found.responses))
        # Sorting is stable: what ties keeps its order.
        order = sorted(range(len(places)), key=places.__getitem__)
        tied = [bool(i) and places[order[i]] == places[order[i - 1]] for i in range(len(order))]
        ranking = Ranking(prompt, tuple(found.responses[i] for i in order), tuple(tied))
    check(ranking)
    return found.layout, [ranking]


def graded_of(row: Row, *, as_text: bool, attributes: Sequence[str]) -> tuple[str, list[Graded]]:
    """The layout's name and the row's response with its grades, which are columns of the row or of its meta.

    Raises:
        RowError: the row is wrong, is no response, or has none of the grades.
    """
    found, value = parts_of(row)
    if len(found.responses) != 1:
        raise missing(value, "a graded response", ("prompt", "response"))
    prompt = prompt_in(row, found, value, as_text)
    there = {name: prompt.meta[name] for name in attributes if prompt.meta.get(name) is not None}
    grades = {name: _number(row, there, name, 0.0) for name in there}
    graded = Graded(prompt, found.responses[0], grades)
    check_graded(graded)
    return found.layout, [graded]


def labelled_of(row: Row, *, as_text: bool) -> tuple[str, list[Labelled]]:
    """The layout's name and the row's response, which the column `label` calls good (true) or bad (false).

    Raises:
        RowError: the row is wrong, is no single response, or has no such label.
    """
    found, value = parts_of(row)
    if len(found.responses) != 1 or "label" not in value:
        raise missing(value, "a labelled response", ("prompt", "completion", "label"))
    label = truth_of(row, value["label"])
    if label is None:
        raise RowError("bad label", f"label is {kind_of(value['label'])} ({value['label']!r}), not true or false",
                       "Write true for a good response and false for a bad one, without quotes.")
    prompt = prompt_in(row, found, value, as_text)
    meta = {name: cell for name, cell in prompt.meta.items() if name != "label"}
    labelled = Labelled(replace(prompt, meta=meta), found.responses[0], label)
    check(labelled)
    return found.layout, [labelled]


def responses_of(row: Row, *, as_text: bool, which: Which) -> tuple[str, list[Graded]]:
    """The layout's name and the row's responses with the rewards that the file holds for them, the best first.

    `rewards` is a column of the row or of its meta: {name: number}, or one number, which is then called `reward`; of
    several responses {"chosen": those, "rejected": those} or a list, in the order of the responses. What a pair says of
    itself (its weight, a soft label, a margin) is in the meta of both, under `of_pair`, where it is not what is usual.

    Raises:
        RowError: the row is wrong, holds no response, or rewards that do not fit them.
    """
    found, value = parts_of(row)
    if not found.responses:
        raise missing(value, "a response", ("completion", "messages", "text"))
    prompt, order = prompt_in(row, found, value, as_text), list(range(len(found.responses)))
    if found.layout == "ranking":
        order.sort(key=_places(row, value, len(order)).__getitem__)
    names = [""] if len(order) == 1 else [f"/{i}" for i in range(1, len(order) + 1)]
    if len(order) == 2 and found.layout != "ranking":
        names = ["/chosen", "/rejected"]
        own = {name: _number(row, value, name, usual) for name, usual in PAIR_NUMBERS.items()}
        unusual = {name: number for name, number in own.items() if number != PAIR_NUMBERS[name]}
        prompt = replace(prompt, meta={**prompt.meta, OF_PAIR: unusual}) if unusual else prompt
    made = [Graded(replace(prompt, id=prompt.id + name), found.responses[i], _rewards(row, prompt, i, len(order)),
                   prompt.id if name else "") for name, i in zip(names, order, strict=True)]
    for one in made:
        check(Demonstration(one.prompt, one.response))
    return found.layout, made[:1] if which == "chosen" else made


def kind_of_row(row: Row) -> Kind:
    """What the row can be read as at most: traces, rankings, pairs, labelled responses, demonstrations or prompts.

    Raises:
        RowError: no layout fits.
    """
    found, value = parts_of(row)
    if found.layout == "ranking":
        return "rankings"
    if "completions" in found.used:
        return "traces"
    if len(found.responses) == 1 and truth_of(row, value.get("label")) is not None:
        return "labelled"
    kinds: tuple[Kind, ...] = ("prompts", "demonstrations", "pairs")
    return kinds[len(found.responses)]


def parts_of(row: Row) -> tuple[Parts, Mapping[str, Any]]:
    """What the row says, and its columns as its data set's adapter left them.

    Raises:
        RowError: no layout fits, or a column holds the wrong type.
    """
    value = {name: spelled_out(cell) for name, cell in row.value.items()} if row.textual else row.value
    return parts(value)


def prompt_in(row: Row, found: Parts, value: Mapping[str, Any], as_text: bool) -> Prompt:
    """The row's prompt; what the layout does not use is its meta.

    Raises:
        RowError: the id, `meta` or `truth` is wrong, or the prompt is no plain text where that was asked for.
    """
    pair = len(found.responses) == 2 and found.layout != "ranking"
    taken = found.used | _OWN | (_OF_PAIRS if pair else frozenset())
    rest = {name: cell for name, cell in value.items() if name not in taken}
    name, meta, truth = _id(row, value), _object(value, "meta"), _object(value, "truth")
    if as_text or found.layout == "text":
        return Prompt(name, (), _plain_text(found, value), {**meta, **rest}, truth)
    if found.text is None:
        return Prompt(name, found.prompt, None, {**meta, **rest}, truth)
    return Prompt(name, (Message("user", found.text),), None, {**meta, **rest}, truth)


def _plain_text(found: Parts, value: Mapping[str, Any]) -> str:
    """The prompt as it stands in the file, a transcript included."""
    text = found.text if found.text is not None else value.get("prompt")
    if not isinstance(text, str):
        raise RowError("not plain text", "the prompt is a conversation, and as_text was asked for",
                       "Read it without as_text, or store the prompt as a string.")
    return text


def _id(row: Row, value: Mapping[str, Any]) -> str:
    given = value.get("id")
    if given is None:
        return f"{stem(row.file)}:{row.line}"
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        raise RowError("bad id", f"id is {given!r}", "An id is text or a whole number; or leave the column out.")
    return str(given)


def _object(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The column `meta` or `truth`; tables hold it as JSON text."""
    given = spelled_out(value.get(name))
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise RowError("wrong type", f"{name} is {kind_of(given)}, not an object",
                       f'Write it as {{"key": ...}}, or rename the column `{name}`.')
    return given


def _strength(row: Row, value: Mapping[str, Any]) -> Strength | None:
    """The votes on a pair; a mean without a spread, or scores without a mean, are a file cut in half."""
    there = [name for name in _STRENGTH if name in value]
    if not there:
        return None
    absent = [name for name in _STRENGTH[:2] if name not in value]
    if absent:
        raise RowError("incomplete strength", f"{', '.join(there)} without {' and '.join(absent)}",
                       "Votes are strength_mean and strength_std, with or without the two lists of scores; "
                       "add what is missing, or rename the columns.")
    mean, std = (_number(row, value, name, 0.0) for name in _STRENGTH[:2])
    return Strength(mean, std, *(_numbers(row, value, name) for name in _VOTES))


def _places(row: Row, value: Mapping[str, Any], n: int) -> list[float]:
    """Numbers that are smaller for better responses."""
    name, sign = ("ranks", 1.0) if "ranks" in value else ("scores", -1.0)
    found = _numbers(row, value, name)
    if len(found) != n:
        raise RowError("ranks of unequal number", f"{n} responses and {len(found)} {name}",
                       f"Give one of the {name} for each response, in the same order.")
    if not all(map(math.isfinite, found)):
        raise RowError("rank not finite", f"one of the {name} is not finite: {list(found)}",
                       "Leave out the response that nobody judged, and its number.")
    return [sign * number for number in found]


def _rewards(row: Row, prompt: Prompt, i: int, n: int) -> dict[str, float]:
    """What the file says that response `i` of `n` is worth, by name."""
    given = spelled_out(prompt.meta.get("rewards"))
    if given is None:
        return {}
    if isinstance(given, Mapping) and n == 2 and {*given} == {"chosen", "rejected"}:
        given = given[("chosen", "rejected")[i]]
    elif n > 1:
        if not isinstance(given, list) or len(given) != n:
            raise RowError("rewards of unequal number", f"{n} responses and rewards that are {kind_of(given)}",
                           "Give a list with the rewards of each response, in the order of the responses.")
        given = given[i]
    named = given if isinstance(given, Mapping) else {"reward": given}
    return {str(name): _number(row, named, name, 0.0) for name in named}


def truth_of(row: Row, cell: Any) -> bool | None:
    """True or false, in a text-only file by these words; none if it is neither."""
    if row.textual and isinstance(cell, str):
        return _SPELLED_TRUTH.get(cell.strip().lower())
    return cell if isinstance(cell, bool) else None


def _numbers(row: Row, value: Mapping[str, Any], name: str) -> tuple[float, ...]:
    given = value.get(name, [])
    if not isinstance(given, list):
        raise RowError("wrong type", f"{name} is {kind_of(given)}, not a list of numbers",
                       "Write a list of numbers, [0.5, 1.25, ...], or leave the column out.")
    return tuple(_number(row, {name: score}, name, 0.0) for score in given)


def _judged(row: Row, prompt: Prompt) -> Prompt:
    """With the judge's label as a whole number, as which tables cannot always hold it; left out where it is empty."""
    label = prompt.meta.get("judge_label")
    if label is None and "judge_label" in prompt.meta:
        return replace(prompt, meta={name: cell for name, cell in prompt.meta.items() if name != "judge_label"})
    number = _spelled_number(label) if row.textual and isinstance(label, str) else label
    if isinstance(number, float) and number.is_integer():
        return replace(prompt, meta={**prompt.meta, "judge_label": int(number)})
    return prompt


def _number(row: Row, value: Mapping[str, Any], name: str, default: float) -> float:
    given = value.get(name, default)
    if row.textual and isinstance(given, str):
        given = _spelled_number(given)
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise RowError("wrong type", f"{name} is {kind_of(given)} ({given!r}), not a number",
                       "Write the number without quotes, or leave it out.")
    # A whole number with hundreds of digits is beyond any float; as infinity it fails the range check by name.
    return math.inf if abs(given) > _HUGE else float(given)


def _spelled_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _earlier(whole: Demonstration) -> list[Demonstration]:
    """A demonstration for every assistant turn before the last."""
    turns = whole.prompt.messages
    return [Demonstration(replace(_renamed(whole.prompt, index), messages=turns[:index]), turn.content)
            for index, turn in enumerate(turns) if turn.role == "assistant" and index]


def _renamed(prompt: Prompt, turn: int) -> Prompt:
    return replace(prompt, id=f"{prompt.id}#{turn}")
