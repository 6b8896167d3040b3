"""Responses that are written already: keel's own responses.jsonl, or the authors' folder of responses and scores."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.data.readers import read_rows
from keel.data.records import Message, Prompt
from keel.data.roles import Role
from keel.data.rows import Row
from keel.errors import DataError
from keel.persona.asking import Item, Kind, asked

__all__ = ["Stored", "is_stored", "row_of", "stored_units"]

KINDS: tuple[Kind, ...] = ("role", "default", "trait")


@dataclass(frozen=True)
class Stored:
    """A response with its conversation.

    Attributes:
        item: who spoke, and about what.
        prompt: the conversation before it.
        text: what was said.
        ended: False where it was cut.
        score: that a judge gave before; None where none could be read.
        judged: False where no judge was asked.
    """

    item: Item
    prompt: Prompt
    text: str
    ended: bool
    score: int | None
    judged: bool


def row_of(item: Item, text: str, ended: bool, score: int | None, judged: bool) -> dict[str, Any]:
    """A line of responses.jsonl."""
    row = {"role": item.role, "kind": item.kind, "prompt_index": item.prompt_index,
           "question_index": item.question_index, "system": item.system, "question": item.question, "response": text,
           "ended": ended}
    return row | ({"against": item.against} if item.kind == "trait" else {}) | ({"score": score} if judged else {})


def is_stored(file: Path) -> bool:
    """True for the responses of an extract run, by what its first row has. Raises: see `read_rows`."""
    first = next(iter(read_rows(file)), None)
    return first is not None and {"role", "prompt_index", "question_index", "response"} <= first.value.keys()


def stored_units(path: Path, roles: Mapping[str, Role], own_turn: bool) -> Iterator[tuple[Stored, ...]]:
    """Responses in the order of the files, those of a trait's pair together.

    Args:
        path: a responses.jsonl, or the authors' folder `responses`, beside which `scores` may lie.
        roles: by name; they give judge prompts and say which role is the default.
        own_turn: whether instructions have a turn of their own.

    Raises:
        DataError: a row is no response, or half a pair stands alone.
    """
    half: Stored | None = None
    where, scores = str(path), dict[Path, Mapping[str, Any]]()
    for row in read_rows(path):
        one = _authors(row, roles, scores) if "conversation" in row.value else _own(row, roles, own_turn)
        if not _go_together(half, one):
            raise _alone(row.where)
        if half is not None:
            yield half, one
            half = None
        elif one.item.kind == "trait":
            half, where = one, row.where
        else:
            yield (one,)
    if half is not None:
        raise _alone(where)


def _go_together(half: Stored | None, one: Stored) -> bool:
    """True where a response follows as it should: the other side behind the first one of a pair, and only there."""
    if half is None:
        return not one.item.against
    return (one.item.against and one.item.role == half.item.role and
            one.item.key.removeprefix("neg") == half.item.key.removeprefix("pos"))


def _alone(where: str) -> DataError:
    return DataError("a response of a trait has no counterpart here", where=where,
                     remedy="Keep the two responses of a pair together, the one for the trait first.")


def _own(row: Row, roles: Mapping[str, Role], own_turn: bool) -> Stored:
    value = row.value
    role, system, question, text = (_text(row, name) for name in ("role", "system", "question", "response"))
    kind = value.get("kind")
    if kind not in KINDS:
        raise DataError(f"the kind {kind!r:.40} is none of role, default and trait", where=row.where,
                        remedy="Give a responses.jsonl that `keel axis extract` wrote.")
    item = Item(role, kind, _index(row, "prompt_index"), _index(row, "question_index"), system, question,
                kind == "trait" and value.get("against") is True, roles[role].eval_prompt if role in roles else None)
    return Stored(item, asked(item, own_turn), text, value.get("ended") is not False,
                  _score(row, value.get("score"), kind), "score" in value)


def _authors(row: Row, roles: Mapping[str, Role], scores: dict[Path, Mapping[str, Any]]) -> Stored:
    """A row of RESPONSES/ROLE.jsonl: its file's name is the role, its last turn the response."""
    value, name = row.value, row.file.name.partition(".")[0]
    default = roles[name].is_default if name in roles else name == "default"
    turns = value["conversation"]
    if not isinstance(turns, list) or len(turns) < 2 or not all(
            isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns):
        raise DataError("the conversation is no list of turns that ends with a response", where=row.where,
                        remedy='Turns are objects like {"role": "user", "content": "..."}.')
    item = Item(name, "default" if default else "role", _index(row, "prompt_index"), _index(row, "question_index"),
                str(value.get("system_prompt") or ""), _text(row, "question"),
                eval_prompt=roles[name].eval_prompt if name in roles else None)
    meta = {"role": name, "kind": item.kind, "system": item.system, "question": item.question}
    said = tuple(Message(str(turn.get("role")), turn["content"]) for turn in turns[:-1])
    file = row.file.parent.parent / "scores" / f"{name}.json"
    if file not in scores:
        scores[file] = _read_scores(file)
    key = f"{value.get('label', 'pos')}_p{item.prompt_index}_q{item.question_index}"
    return Stored(item, Prompt(item.id, said, meta=meta), turns[-1]["content"], True,
                  _score(row, scores[file].get(key), item.kind), bool(scores[file]))


def _read_scores(file: Path) -> Mapping[str, Any]:
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"these scores cannot be read: {error}", where=str(file),
                        remedy='The file must be one object like {"pos_p0_q0": 3}.') from error
    return found if isinstance(found, dict) else {}


def _text(row: Row, column: str) -> str:
    text = row.value.get(column)
    if not isinstance(text, str):
        raise DataError(f"the response has no text in the column {column!r}", where=row.where,
                        remedy="Give a responses.jsonl that `keel axis extract` wrote, or the authors' responses.")
    return text


def _index(row: Row, column: str) -> int:
    number = row.value.get(column)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise DataError(f"the column {column!r} holds {number!r:.40}, no number from 0 on", where=row.where,
                        remedy="It is the place of the system prompt, or of the question, counted from 0.")
    return number


def _score(row: Row, score: Any, kind: Kind) -> int | None:
    highest = 100 if kind == "trait" else 3
    if score is not None and (isinstance(score, bool) or not isinstance(score, int) or not 0 <= score <= highest):
        raise DataError(f"the score {score!r:.40} is no whole number from 0 to {highest}", where=row.where,
                        remedy="Leave it null where no score could be read. (Traits have 0 to 100.)")
    return score
