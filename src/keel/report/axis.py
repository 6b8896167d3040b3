"""The Assistant axis on the page: persona space, conversations, doses and thresholds, of whatever a run holds."""

from dataclasses import dataclass
from typing import Any

from keel.report.axis_dose import Calibration, Doses, calibration, doses
from keel.report.axis_space import Space, components, cube, space
from keel.report.axis_turns import Turns, turns
from keel.report.folder import RunFolder, part, rows
from keel.report.words import brief, finite, times

__all__ = ["Panel", "axis_evidence", "axis_title", "cubes", "panels"]


@dataclass(frozen=True)
class Panel:
    """Of one run; what it does not hold is none. `tables`: files in its folder with all numbers."""

    name: str
    space: Space | None
    turns: Turns | None
    doses: Doses | None
    calibration: Calibration | None
    tables: tuple[str, ...]


def panels(runs: list[RunFolder]) -> list[Panel]:
    """The runs that measured on an axis."""
    found = []
    for at, run in enumerate(runs):
        one = Panel(run.name if len(runs) > 1 else "", space(run, at), turns(run), doses(run), calibration(run),
                    tuple(sorted(f"tables/{file.name}" for file in (run.path / "tables").glob("*.csv"))))
        if one.space or one.turns or one.doses or one.calibration:
            found.append(one)
    return found


def cubes(runs: list[RunFolder]) -> list[dict[str, Any]]:
    """The persona spaces that the page's script turns."""
    return [found for at, run in enumerate(runs) if (found := cube(run, at)) is not None]


def axis_title(run: RunFolder) -> str:
    """One sentence on what was found; empty for any other run."""
    told = part(run.axis, "space")
    layer = finite(told.get("layer"))
    if layer is not None:
        halves = _at(told, "split_half", int(layer))
        again = "" if halves is None else f": two halves of the questions agree at a cosine of {brief(halves)}"
        return f"The Assistant axis of layer {int(layer)}{again}."
    drift = part(run.axis, "drift")
    if measured := [row for row in rows(drift, "domains") if finite(row.get("slope")) is not None]:
        first = [row for row in measured if row.get("label") == measured[0].get("label")]
        n = sum((finite(row.get("high")) or 0.0) < 0 for row in first)
        return f"The assistant's projections fall over the turns in {n} of {times(len(first), 'domain')}."
    told = part(run.axis, "dose")
    if rows(told, "curves"):
        n = sum(len(rows(row, "points")) for row in rows(told, "curves"))
        return f"{times(n, 'setting')} of the axis side by side."
    if presets := part(part(run.axis, "calibration"), "presets"):
        return f"Thresholds for {times(len(presets), 'preset')} of the axis."
    if paths := run.axis.get("trajectories"):
        n = len({(str(row.get("group")), str(row.get("id"))) for row in paths if isinstance(row, dict)})
        return f"{times(n, 'conversation')} on the Assistant axis."
    return ""


def axis_evidence(run: RunFolder) -> str:
    """The numbers behind the title."""
    told = part(run.axis, "space")
    layer = finite(told.get("layer"))
    if layer is None:
        return ""
    near = _at(told, "cosine_pc1", int(layer))
    said = "" if near is None else f"Its cosine with the first component of the roles is {brief(near)}. "
    return said + components(told)


def _at(told: dict[str, Any], key: str, layer: int) -> float | None:
    values = told.get(key)
    known = isinstance(values, list) and 0 <= layer < len(values)
    return finite(values[layer]) if known and isinstance(values, list) else None
