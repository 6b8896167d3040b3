"""Prompts of a test that a model's own run has used: counted, left out for all models, or refused."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from keel.data.records import Prompt
from keel.data.seen import Seen, prompt_key, read_seen
from keel.errors import DataError

__all__ = ["Overlap", "fresh_prompts"]

Overlap = Literal["note", "drop", "refuse"]
Counts = dict[str, dict[str, int] | None]


def fresh_prompts(records: Sequence[Prompt], folders: Mapping[str, Sequence[Path]], overlap: Overlap, *, where: str,
                  note: Callable[[str], None]) -> tuple[list[Prompt], Counts]:
    """The prompts to answer; and of each model how many of all of them its run learned from and held out, none where
    nobody knows.

    Args:
        records: prompts.
        folders: name -> where the model lies, and its adapter.
        overlap: what becomes of prompts that a model's run has used.
        where: the prompts' file, for messages.
        note: is told what a reader must know.

    Raises:
        DataError: there are such prompts and they are refused, or there are no others.
        RunError: a list of prompts is damaged.
    """
    keys = [prompt_key(one) for one in records]
    told = {name: [seen for place in places if (seen := read_seen(place)) is not None]
            for name, places in folders.items()}
    counts: Counts = {name: _counted(keys, lists) if lists else None for name, lists in told.items()}
    used = frozenset[str]().union(*(part for lists in told.values() for seen in lists
                                    for part in (seen.learned_from, seen.held_out)))
    fresh = [one for one, key in zip(records, keys, strict=True) if key not in used]
    unknown = [name for name, count in counts.items() if count is None]
    if unknown and overlap != "note":
        note(f"no list of prompts lies beside {', '.join(unknown)}: overlap = {overlap} does nothing about what they "
             "were trained on")
    if len(fresh) == len(records):
        return fresh, counts
    said = _said(counts, len(records))
    if overlap == "refuse":
        raise DataError(f"these prompts are no test: {said}", where=where,
                        remedy="Give prompts that no model's run has used, or overlap = drop to leave these out.")
    if overlap == "note":
        note(f"{said}: rewards and verdicts on them are no measure of new prompts; overlap = drop leaves them out")
        return list(records), counts
    if not fresh:
        raise DataError(f"no prompt is left without those that the models' runs have used: {said}", where=where,
                        remedy="Give prompts that no model was trained on.")
    note(f"{said}; they were left out for all, {len(fresh)} are left")
    return fresh, counts


def _counted(keys: Sequence[str], lists: Sequence[Seen]) -> dict[str, int]:
    """A prompt that was learned from once is no longer held out."""
    learned = [any(key in seen.learned_from for seen in lists) for key in keys]
    held = [any(key in seen.held_out for seen in lists) for key in keys]
    return {"learned_from": sum(learned), "held_out": sum(b and not a for a, b in zip(learned, held, strict=True))}


def _said(counts: Counts, n: int) -> str:
    """`b was trained on 3 and held out 2 of the 10 prompts`."""
    words = {"learned_from": "was trained on", "held_out": "held out"}
    return ", ".join(f"{name} {' and '.join(f'{words[key]} {k}' for key, k in row.items() if k)} of the {n} prompts"
                     for name, row in counts.items() if row is not None and any(row.values()))
