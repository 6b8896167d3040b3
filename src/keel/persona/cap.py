"""A capping preset as a value, and the one place that says what its percentile means."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from keel.errors import DataError

__all__ = ["Cap", "axis_percentile", "meaning", "preset_lines", "preset_name", "stated_percentile"]

_NAMED = re.compile(r"layers_(\d+):(\d+)-p(\d+(?:\.\d+)?)(?:-\w+)*")


@dataclass(frozen=True, eq=False)
class Cap:
    """Bounds on the projection at several blocks, one entry for each place of the tuples.

    Attributes:
        layers: decoder blocks, counted from 0; a block may occur several times, with other vectors.
        lower, upper: bounds on the projection onto the unit vector, which points to the Assistant; None: no bound.
        percentile: place of the bounds in the population, 0 to 1, on the AXIS ITSELF. Names and published floors count
            along the role-playing direction: `p0.25` is 0.75 here.
        population: what the percentile was taken over.
        source: where the preset comes from.
        vectors: directions that stand for the axis at each entry, not normalised [K D]; None: the axis itself.
        names: how the authors' file called these vectors; empty where it did not.
    """

    layers: tuple[int, ...]
    lower: tuple[float | None, ...]
    upper: tuple[float | None, ...]
    percentile: float | None = None
    population: str = ""
    source: str = ""
    vectors: Tensor | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.layers)
        if not n or len(self.lower) != n or len(self.upper) != n or (self.names and len(self.names) != n):
            raise DataError(f"a cap with {n} blocks has {len(self.lower)} lower and {len(self.upper)} upper bounds and "
                            f"{len(self.names)} names", remedy="Give one of each per block; None where there is none.")
        if min(self.layers) < 0:
            raise DataError(f"a cap acts on block {min(self.layers)}, but blocks count from 0",
                            remedy="Give the number of the block itself.")
        for layer, lower, upper in zip(self.layers, self.lower, self.upper, strict=True):
            _check_bounds(layer, lower, upper)
        if self.vectors is not None and (self.vectors.ndim != 2 or len(self.vectors) != n
                                         or not bool((self.vectors.norm(dim=-1) > 0).all())):
            raise DataError(f"the vectors of a cap have the shape {tuple(self.vectors.shape)} for {n} blocks, or one "
                            "of them is zero", remedy="Give one vector per block, [blocks hidden].")


def _check_bounds(layer: int, lower: float | None, upper: float | None) -> None:
    given = [bound for bound in (lower, upper) if bound is not None]
    if not given or not all(map(math.isfinite, given)):
        raise DataError(f"the cap at block {layer} has the bounds {lower} and {upper}: one of them has to be a number",
                        remedy="Remove the block from the cap, or give it a finite bound.")
    if lower is not None and upper is not None and lower > upper:
        raise DataError(f"the cap at block {layer} leaves no room: lower={lower} is above upper={upper}",
                        remedy="Swap the two.")


def axis_percentile(stated: float) -> float:
    """Where a published percentile lies on the axis itself, which points the other way."""
    return 1.0 - stated


def meaning(stated: float) -> str:
    """What the stated percentile of a floor says, in both directions."""
    return (f"p{stated:g}: percentile {100 * stated:g} of the role-playing direction, which is percentile "
            f"{100 * axis_percentile(stated):g} of the axis itself. The floor leaves {100 * stated:g}% of the "
            f"population as it is and lifts {100 * axis_percentile(stated):g}%.")


def preset_name(start: int, stop: int, stated: float, fit: str = "response", where: str = "all") -> str:
    """`layers_46:54-p0.25`, blocks as a Python slice; what was not done as published stands behind it."""
    return f"layers_{start}:{stop}-p{stated:g}" + ("" if fit == "response" else f"-{fit}") + (
        "" if where == "all" else f"-{where}")


def stated_percentile(name: str) -> float | None:
    """The percentile in a preset's name; none where the name is of another kind."""
    found = _NAMED.fullmatch(name)
    stated = float(found.group(3)) if found else math.nan
    return stated if 0 <= stated <= 1 else None


def preset_lines(caps: Mapping[str, Cap], limit: int = 12) -> list[str]:
    """Presets as people read them: bounds block by block, and what each percentile in the names of floors means."""
    lines = [f"{name}: {_bounds_line(cap)}" for name, cap in list(caps.items())[:limit]]
    lines += [f"and {len(caps) - limit} more presets"] if len(caps) > limit else []
    floors = [name for name, cap in caps.items() if all(bound is not None for bound in cap.lower)]
    stated = [found for name in floors if (found := stated_percentile(name)) is not None]
    return lines + [meaning(one) for one in sorted(dict.fromkeys(stated))]


def _bounds_line(cap: Cap) -> str:
    """`blocks 46-53, floors 1.2 to 3.4 on the axis`."""
    words = []
    for name, bounds in (("floors", cap.lower), ("ceilings", cap.upper)):
        given = [bound for bound in bounds if bound is not None]
        if given:
            words.append(f"{name} {min(given):.4g} to {max(given):.4g}")
    along = "on the axis" if cap.vectors is None else "on directions of its own, which point to the Assistant"
    return f"blocks {', '.join(map(str, dict.fromkeys(cap.layers)))}, {' and '.join(words)} {along}"
