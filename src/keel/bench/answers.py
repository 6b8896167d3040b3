"""What models answered, one file a model: written whole or not at all, and known by what it was made from.

    answers/NAME.jsonl    first {"made_by": digest, "n": responses}, then {"id", "text", "ended", "n_tokens"} each
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keel.errors import RunError
from keel.runs import explained_disk_errors

__all__ = ["Answer", "keep_answers", "kept_answers", "made_by", "prompts_seen"]

SEEN = "prompts_seen.json"
HIGHEST = 3
"""Folders above a model in which a run's list of prompts may lie: RUN/model, RUN/model/adapter."""


@dataclass(frozen=True)
class Answer:
    """One response.

    Attributes:
        id: of the prompt's record.
        text: what the model wrote.
        ended: False where the length limit cut it.
        n_tokens: written, the token that ended it included.
    """

    id: str
    text: str
    ended: bool
    n_tokens: int


def made_by(*parts: Any) -> str:
    """32 hex digits that stand for whatever can change an answer, given as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def kept_answers(file: Path, origin: str) -> list[Answer] | None:
    """The answers in a file; none where there is no file, or what they were made from is not what it was.

    Raises:
        RunError: the file is damaged.
    """
    if not file.exists():
        return None
    try:
        head, *rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if head["made_by"] != origin:
            return None
        found = [Answer(str(row["id"]), str(row["text"]), bool(row["ended"]), int(row["n_tokens"])) for row in rows]
        if len(found) != head["n"]:
            raise ValueError(f"{len(found)} rows, not {head['n']}")
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"the answers of a model are damaged: {error}", where=str(file),
                       remedy="Remove it; --resume then samples them again.") from error
    return found


def keep_answers(file: Path, origin: str, answers: Sequence[Answer]) -> None:
    """Write beside and rename, so that a file that is there is whole."""
    rows: list[Mapping[str, Any]] = [{"made_by": origin, "n": len(answers)}, *map(asdict, answers)]
    with explained_disk_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.new")
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        beside.replace(file)


def prompts_seen(folder: Path) -> frozenset[str] | None:
    """Keys of the prompts that the run which wrote a model was trained on; none where it does not say.

    Args:
        folder: of the model; the list lies there or in the run's folder above it.

    Raises:
        RunError: the list is damaged.
    """
    whole = folder.expanduser().absolute()
    file = next((above / SEEN for above in [whole, *whole.parents][:HIGHEST] if (above / SEEN).is_file()), None)
    if file is None:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
            raise ValueError("no list of keys")
    except ValueError as error:
        raise RunError(f"the list of prompts that a run was trained on is damaged: {error}", where=str(file),
                       remedy="Put back a copy of it, or remove it: then nobody knows which prompts were seen.",
                       ) from error
    return frozenset(found)
