"""What models answered, one file a model: written whole or not at all, and known by what it was made from.

    answers/NAME.jsonl    first {"made_by": digest, "n": responses}, then {"id", "text", "ended", "n_tokens"} each
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keel.data.records import Graded, Prompt
from keel.data.seen import prompt_key
from keel.errors import DataError, RunError
from keel.runs import explained_disk_errors

__all__ = ["Answer", "answers_given", "keep_answers", "kept_answers", "made_by"]


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
        DataError: a prompt has no answer, or recurs more often than there are answers to it.
    """
    by_prompt: dict[str, list[str]] = {}
    for one in told:
        by_prompt.setdefault(prompt_key(one.prompt), []).append(one.response)
    lacking = [prompt.id for prompt in prompts if prompt_key(prompt) not in by_prompt]
    if lacking:
        raise DataError(f"{len(lacking)} of {len(prompts)} prompts have no response in this file, such as "
                        f"{', '.join(lacking[:4])}", where=where,
                        remedy="Prompts are found by their words: give a file with a response to each of them, or "
                               "fewer prompts.")
    # An answer given twice would make this set less varied than one of as many answers by a model.
    n_asked = Counter(prompt_key(prompt) for prompt in prompts)
    short = [prompt.id for prompt in prompts if n_asked[prompt_key(prompt)] > len(by_prompt[prompt_key(prompt)])]
    if short:
        raise DataError(f"{len(short)} prompts are of a text that is asked more often than this file has responses to "
                        f"it, such as {', '.join(short[:4])}", where=where,
                        remedy="Give each prompt once (`keel data check` counts those of one text), or a response for "
                               "each time.")
    found, left = [], {key: iter(texts) for key, texts in by_prompt.items()}
    for prompt in prompts:
        text = next(left[prompt_key(prompt)])
        found.append(Answer(prompt.id, text, True, n_tokens(prompt, text)))
    return found
