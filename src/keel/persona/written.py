"""Readings of conversations as files of a run folder: trajectories, coloured tokens, and the tables beside them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from keel.data.render import Template
from keel.functional.statistics import bootstrap_interval
from keel.persona.axis import AssistantAxis
from keel.persona.drift import FEWEST_RESAMPLED
from keel.persona.readings import Reading, turn_rows
from keel.persona.tables import write_table
from keel.rng import stream
from keel.runs import write_json, write_rows

__all__ = ["default_range", "role_means", "write_drift", "write_heat", "write_trajectories"]


def write_trajectories(folder: Path, readings: Sequence[Reading], axis: AssistantAxis, *, centred: bool) -> None:
    """trajectories.jsonl at the first block that was read, and tables/turns.csv at all of them.

    Raises:
        ModelError: centred, and the axis comes without the mean of its roles.
    """
    for layer in readings[0].layers if centred else ():
        axis.centre(layer)
    lines, cells = [], []
    for one in readings:
        named = {"id": one.dialogue.id, "group": one.dialogue.domain or "", "label": one.label}
        for layer in one.layers:
            turns = turn_rows(one, axis, layer)
            cells += [named | {"layer": layer} | row for row in turns]
            if layer == one.layers[0]:
                lines.append(named | {"layer": layer, "turns": [
                    row | {"projection": row["centred" if centred else "raw"]} for row in turns]})
    write_rows(folder / "trajectories.jsonl", lines)
    write_table(folder, "turns", ("id", "group", "label", "layer", "turn", "message", "role", "raw", "centred",
                                  "n_tokens"), cells)


def write_heat(folder: Path, readings: Sequence[Reading], axis: AssistantAxis, words: Template, *, centred: bool,
               ) -> None:
    """heat.json: the tokens of each turn with their projections at the first block; and tables/tokens.csv."""
    rows = [row for one in readings for row in _coloured(one, axis, words, centred)]
    write_json(folder / "heat.json", rows)
    write_table(folder, "tokens", ("id", "label", "turn", "role", "position", "text", "projection"),
                [row | token | {"position": place} for row in rows for place, token in enumerate(row["tokens"])])


def _coloured(reading: Reading, axis: AssistantAxis, words: Template, centred: bool) -> Iterator[dict[str, Any]]:
    layer = reading.layers[0]
    centre = axis.centre(layer) if centred else 0.0
    for turn, row in zip(reading.rendered.turns, turn_rows(reading, axis, layer), strict=True):
        values = {place: float(reading.projections[0, place]) - centre for place in turn.positions
                  if not bool(reading.projections[0, place].isnan())}
        if values:
            yield {"id": reading.dialogue.id, "label": reading.label, "turn": row["turn"], "role": turn.role,
                   "tokens": [{"text": str(words.tokenizer.decode([reading.rendered.ids[place]])), "projection": value}
                              for place, value in values.items()]}


def default_range(axis: AssistantAxis, layer: int, *, centred: bool) -> dict[str, float] | None:
    """Where nine of ten responses of the default Assistant lie; none where the axis does not say it for this block."""
    told = axis.default_stats
    if told is None or told.layer != layer:
        return None
    centre = axis.centre(layer) if centred else 0.0
    return {"low": told.low - centre, "high": told.high - centre}


def write_drift(folder: Path, axis: AssistantAxis, layer: int, *, centred: bool, found: dict[str, Any]) -> None:
    """drift.json: what is known of all conversations together."""
    write_json(folder / "drift.json", {"layer": layer, "centred": centred,
                                       "default_range": default_range(axis, layer, centred=centred)} | found)


def role_means(readings: Sequence[Reading], axis: AssistantAxis, *, centred: bool, seed: int) -> list[dict[str, Any]]:
    """Mean projection of each role's turns under each condition; turns weigh the same, intervals are over
    conversations."""
    values: dict[tuple[str, str], list[float]] = {}
    places: dict[tuple[str, str], list[int]] = {}
    for one in readings:
        own: dict[tuple[str, str], int] = {}
        for row in turn_rows(one, axis, one.layers[0]):
            value, key = row["centred" if centred else "raw"], (row["role"], one.label)
            if value is not None:
                place = own.setdefault(key, len(dict.fromkeys(places.get(key, []))))
                values.setdefault(key, []).append(value)
                places.setdefault(key, []).append(place)
    found = []
    for (role, label), some in values.items():
        mean, low, high = bootstrap_interval(torch.tensor(some), generator=stream(seed, "role means", role, label),
                                             groups=torch.tensor(places[role, label]))
        several = len(dict.fromkeys(places[role, label])) >= FEWEST_RESAMPLED
        found.append({"role": role, "label": label, "mean": mean, "low": low if several else None,
                      "high": high if several else None, "n": len(some)})
    return found
