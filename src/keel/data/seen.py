"""Which prompts a run used, in its folder, so that nobody takes them for a test of its model.

    prompts_seen.json    {"learned_from": [key, ...], "held_out": [key, ...]}, keys as `said_key` makes them
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from keel.data.records import Message, Prompt
from keel.errors import RunError
from keel.runs import write_json

__all__ = ["Seen", "prompt_key", "read_seen", "said_key", "write_seen"]

SEEN = "prompts_seen.json"
HIGHEST = 3
"""Folders from the model's upward in which the list may lie: RUN/model/adapter, RUN/model, RUN."""


@dataclass(frozen=True)
class Seen:
    """Keys of prompts.

    Attributes:
        learned_from: the run trained on them.
        held_out: the run measured on them; a checkpoint, a setting or a value may have been chosen by them.
    """

    learned_from: frozenset[str]
    held_out: frozenset[str]


def said_key(messages: Sequence[Message], text: str | None, response: str = "") -> str:
    """16 hex digits of what is said: SHA-256 over role U+001E content U+001F of each message, then the response.

    A bare text has no role.
    """
    turns = messages if text is None else (Message("", text),)
    whole = "".join(f"{turn.role}\x1e{turn.content}\x1f" for turn in turns) + response
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def prompt_key(prompt: Prompt) -> str:
    """Equal for equal words, whatever the record is called."""
    return said_key(prompt.messages, prompt.text)


def write_seen(folder: Path, learned_from: Iterable[Prompt], held_out: Iterable[Prompt]) -> None:
    """Leave the list in a run's folder, which is there."""
    write_json(folder / SEEN, {"learned_from": sorted(set(map(prompt_key, learned_from))),
                               "held_out": sorted(set(map(prompt_key, held_out)))})


def read_seen(model: Path) -> Seen | None:
    """What the run that wrote a model used: the list in the model's folder or one of the two above it; none where there
    is none.

    Raises:
        RunError: the list is damaged.
    """
    whole = model.expanduser().absolute()
    file = next((above / SEEN for above in [whole, *whole.parents][:HIGHEST] if (above / SEEN).is_file()), None)
    if file is None:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Seen(*(_keys(found[name]) for name in ("learned_from", "held_out")))
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"the list of prompts that a run used is damaged: {error}", where=str(file),
                       remedy="Put back a copy of it, or remove it: then nobody knows which prompts were seen.",
                       ) from error


def _keys(found: object) -> frozenset[str]:
    if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
        raise ValueError("no list of keys")
    return frozenset(found)
