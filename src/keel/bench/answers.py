"""What models answered, one file a model: written whole or not at all, and known by what it was made from.

    answers/NAME.jsonl    first {"made_by": digest, "n": responses}, then {"id", "text", "ended", "n_tokens"} each
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keel.bench.items import keyed_prompt
from keel.data.records import Graded, Prompt
from keel.errors import DataError, RunError
from keel.runs import explained_disk_errors

__all__ = ["Answer", "answers_given", "keep_answers", "kept_answers", "made_by", "seen_counts"]

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


def kept_answers(folders: Sequence[Path], origin: str) -> list[Answer] | None:
    """The answers of this origin in a file of these folders; none where there is no such file.

    Raises:
        RunError: a file is damaged.
    """
    files = [file for folder in folders for file in sorted(folder.glob("*.jsonl"))]
    return next((found for file in files if (found := _read(file, origin)) is not None), None)


def _read(file: Path, origin: str) -> list[Answer] | None:
    """None where what the answers were made from is something else."""
    try:
        with file.open(encoding="utf-8") as lines:
            head = json.loads(next(lines, "null"))
            if head["made_by"] != origin:
                return None
            rows = [json.loads(line) for line in lines]
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


def answers_given(told: Sequence[Graded], prompts: Sequence[Prompt], n_tokens: Callable[[Prompt, str], int],
                  where: str) -> list[Answer]:
    """Answers that a file holds, found by the words of their prompts; of a prompt that recurs each one in turn.

    Args:
        told: what the file holds.
        prompts: to be answered.
        n_tokens: how many tokens an answer has.
        where: the file, for messages.

    Raises:
        DataError: a prompt has no answer.
    """
    by_prompt: dict[str, list[str]] = {}
    for one in told:
        by_prompt.setdefault(_key(one.prompt), []).append(one.response)
    lacking = [prompt.id for prompt in prompts if _key(prompt) not in by_prompt]
    if lacking:
        raise DataError(f"{len(lacking)} of {len(prompts)} prompts have no response in this file, such as "
                        f"{', '.join(lacking[:4])}", where=where,
                        remedy="Prompts are found by their words: give a file with a response to each of them, or "
                               "fewer prompts.")
    n_used: dict[str, int] = {}
    found = []
    for prompt in prompts:
        key = _key(prompt)
        n_used[key] = place = n_used.get(key, -1) + 1
        text = by_prompt[key][place % len(by_prompt[key])]
        found.append(Answer(prompt.id, text, True, n_tokens(prompt, text)))
    return found


def _key(prompt: Prompt) -> str:
    return keyed_prompt(prompt.messages, prompt.text).id


def seen_counts(records: Sequence[Prompt], folders: Mapping[str, Sequence[Path]],
                ) -> tuple[dict[str, int | None], list[Prompt]]:
    """Of each model how many of these prompts it was trained on, none where its run does not say; and the prompts that
    no model is known to have been trained on.

    Args:
        records: prompts.
        folders: name -> where the model lies, and its adapter.

    Raises:
        RunError: a list of prompts is damaged.
    """
    keys, counts, known = [_key(one) for one in records], dict[str, int | None](), dict[str, None]()
    for name, places in folders.items():
        told = [seen for place in places if (seen := _prompts_seen(place)) is not None]
        counts[name] = sum(any(key in seen for seen in told) for key in keys) if told else None
        known |= dict.fromkeys(key for key in keys if any(key in seen for seen in told))
    return counts, [one for one, key in zip(records, keys, strict=True) if key not in known]


def _prompts_seen(folder: Path) -> frozenset[str] | None:
    """Keys of the prompts that the run which wrote a model was trained on; none where it does not say.

    The list lies in the model's folder, or in the run's folder above it.
    """
    whole = folder.expanduser().absolute()
    file = next((above / SEEN for above in [whole, *whole.parents][:HIGHEST] if (above / SEEN).is_file()), None)
    if file is None:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["keys"]
        if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
            raise ValueError("no list of keys")
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"the list of prompts that a run was trained on is damaged: {error}", where=str(file),
                       remedy="Put back a copy of it, or remove it: then nobody knows which prompts were seen.",
                       ) from error
    return frozenset(found)
