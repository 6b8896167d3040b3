"""Roles, traits and questions from which persona directions are extracted: JSON Lines, or the authors' folders.

A line of JSON Lines has `name`, `is_default`, `description`, `system_prompts`, and for a role that is judged
`eval_prompt`; a trait has `pairs` of `pos` and `neg` instead. The authors have one JSON file each, named after it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from keel.data.json_rows import parse_json
from keel.data.problems import Problem
from keel.data.readers import read_rows
from keel.errors import DataError

__all__ = ["MODEL_NAME", "Role", "Trait", "filled", "read_questions", "read_roles", "read_traits"]

MODEL_NAME = "{model_name}"
"""Stands in a system prompt for the short name of the model that is asked."""
_BLANK = re.compile(r"\{(question|answer)\}")
_T = TypeVar("_T", "Role", "Trait")
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Role:
    """A role that a model is asked to play, or the default that it plays unasked.

    Attributes:
        name: names its vector and its files.
        description: one sentence, where the file has one.
        systems: system prompts that give the role; an empty one gives none.
        questions: of its own, which extraction does not ask.
        eval_prompt: the judge's, with `{question}` and `{answer}`; None where nothing judges it.
        is_default: its responses are the Assistant's end of the axis, whatever its name is.
    """

    name: str
    description: str | None
    systems: tuple[str, ...]
    questions: tuple[str, ...] = ()
    eval_prompt: str | None = None
    is_default: bool = False


@dataclass(frozen=True)
class Trait:
    """A trait, by pairs of system prompts that ask for it and for its opposite.

    Attributes:
        name: names its vector.
        pairs: (for, against) by pair.
        eval_prompt: the judge's, who answers 0 to 100; None where nothing judges it.
    """

    name: str
    description: str | None
    pairs: tuple[tuple[str, str], ...]
    eval_prompt: str | None = None


def read_roles(path: str | Path) -> list[Role]:
    """Roles in the order of the file; of a folder, in the order of names.

    Raises:
        DataError: a row is no role, two share a name, or nothing is there.
    """
    return _read(Path(path), _role)


def read_traits(path: str | Path) -> list[Trait]:
    """Traits in the order of the file; of a folder, in the order of names.

    Raises:
        DataError: a row is no trait, two share a name, or nothing is there.
    """
    return _read(Path(path), _trait)


def read_questions(path: str | Path) -> list[str]:
    """The column `question` of every row. A question that is there twice is asked twice, as the authors do.

    Raises:
        DataError: a row has no question, or nothing is there.
    """
    found = []
    for row in read_rows(path):
        question = row.value.get("question")
        if not isinstance(question, str) or not question.strip():
            raise DataError("the row has no text in the column 'question'", where=row.where,
                            remedy='Each line must be like {"question": "What is a bridge?"}.')
        found.append(question)
    return found


def filled(eval_prompt: str, question: str, answer: str) -> str:
    """The judge's prompt about one response. Braces in the texts stay as they are."""
    texts = {"question": question, "answer": answer}
    return _BLANK.sub(lambda blank: texts[blank.group(1)], eval_prompt)


def _read(path: Path, make: Callable[[str, Mapping[str, Any]], _T]) -> list[_T]:
    found: dict[str, _T] = {}
    for where, name, value in _objects(path):
        try:
            one = make(name, value)
        except DataError as error:
            raise DataError(error.what, where=where, remedy=error.remedy) from error
        if one.name in found:
            raise DataError(f"a second entry is named {one.name!r}", where=where,
                            remedy="Names become names of vectors and files; give each its own.")
        found[one.name] = one
    return list(found.values())


def _objects(path: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Where each object stands, the name that its file gives it, and what it holds."""
    files = sorted(path.glob("*.json")) if path.is_dir() else []
    if not files:
        for row in read_rows(path):
            yield row.where, "", row.value
        return
    for file in files:
        value = parse_json(file.read_bytes(), str(file))
        if isinstance(value, Problem):
            raise DataError(value.what, where=value.where, remedy=value.remedy)
        if not isinstance(value, dict):
            raise DataError("the file holds no object of a role or trait", where=str(file),
                            remedy='Each file of the folder must be like {"instruction": [{"pos": "..."}]}.')
        yield str(file), file.stem, value


def _role(stem: str, value: Mapping[str, Any]) -> Role:
    name = _name(stem, value)
    systems = _texts(value, "system_prompts") if "instruction" not in value else _sides(value["instruction"], "pos")
    if not systems:
        raise DataError(f"the role {name!r} has no system prompt",
                        remedy="Give `system_prompts`, a list of texts; an empty text asks without a system prompt.")
    # Of the authors' files exactly this name is the default; a role such as `default_rebel` is not.
    default = value.get("is_default", stem == "default")
    if not isinstance(default, bool):
        raise DataError(f"is_default of {name!r} is {default!r:.40}, neither true nor false",
                        remedy="Write true for the neutral prompts and false for roles.")
    return Role(name, _text(value, "description"), systems, _texts(value, "questions"), _eval_prompt(name, value),
                default)


def _trait(stem: str, value: Mapping[str, Any]) -> Trait:
    name = _name(stem, value)
    sides = value.get("pairs", value.get("instruction"))
    pairs = tuple(zip(_sides(sides, "pos"), _sides(sides, "neg"), strict=True))
    if not pairs:
        raise DataError(f"the trait {name!r} has no pairs of system prompts",
                        remedy='Give `pairs`, a list like [{"pos": "...", "neg": "..."}].')
    return Trait(name, _text(value, "description"), pairs, _eval_prompt(name, value))


def _name(stem: str, value: Mapping[str, Any]) -> str:
    name = value.get("name", stem)
    if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME or set(name) & set("/\\\0"):
        raise DataError(f"{name!r:.60} cannot name a role or a trait",
                        remedy="Give `name`, a short text without slashes: it becomes part of file names.")
    return name


def _text(value: Mapping[str, Any], column: str) -> str | None:
    text = value.get(column)
    if text is not None and not isinstance(text, str):
        raise DataError(f"the column {column!r} holds {type(text).__name__} where text belongs",
                        remedy="Write a text, or leave the column out.")
    return text


def _texts(value: Mapping[str, Any], column: str) -> tuple[str, ...]:
    texts = value.get(column) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"the column {column!r} is no list of texts", remedy='Write a list like ["...", "..."].')
    return tuple(texts)


def _sides(pairs: Any, side: str) -> tuple[str, ...]:
    listed = pairs if isinstance(pairs, list) else [None]
    found = [pair[side] for pair in listed if isinstance(pair, dict) and isinstance(pair.get(side), str)]
    if len(found) < len(listed):
        raise DataError(f"an instruction lacks its text {side!r}",
                        remedy='Instructions are a list of objects like {"pos": "..."}; those of traits have '
                               '"neg" as well.')
    return tuple(found)


def _eval_prompt(name: str, value: Mapping[str, Any]) -> str | None:
    text = _text(value, "eval_prompt")
    if text is not None and sorted({blank.group(1) for blank in _BLANK.finditer(text)}) != ["answer", "question"]:
        raise DataError(f"the eval_prompt of {name!r} lacks {{question}} or {{answer}}",
                        remedy="The judge must see both; put the two words in braces where they belong.")
    return text
