"""A capping preset as a value, and the one place that says what its percentile means."""

import math
import re
from dataclasses import dataclass

from torch import Tensor

from keel.errors import DataError

__all__ = ["Cap", "axis_percentile", "meaning", "preset_name", "stated_percentile"]

_NAMED = re.compile(r"layers_(\d+):(\d+)-p(\d+(?:\.\d+)?)(?:-\w+)?")


@dataclass(frozen=True, eq=False)
class Cap:
    """Bounds on the projection at several blocks, one entry for each place of the tuples.

    Attributes:
        layers: decoder blocks, counted from 0; a block may occur several times, with other vectors.
        lower, upper: bounds on the projection onto the unit vector, which points to the Assistant; None: no bound.
        percentile: as published, on the role-playing direction: 0.25 puts the floor at the axis's own percentile 0.75.
        population: what the percentile was taken over.
        source: where the preset comes from.
        vectors: the direction of each entry, not normalised [K D]; None: the axis itself at each block.
        names: how the authors' file called these vectors; empty where it did not.
    """

    layers: tuple[int, ...]
    lower: tuple[float | None, ...]
    upper: tuple[float | None, ...]
    percentile: float | None
    population: str
    source: str
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
    """The same place on the axis itself, which points the other way than the direction of published percentiles."""
    return 1.0 - stated


def meaning(stated: float) -> str:
    """What a stated percentile says, in both directions."""
    return (f"p{stated:g}: percentile {100 * stated:g} of the role-playing direction, which is percentile "
            f"{100 * axis_percentile(stated):g} of the axis itself. The floor leaves {100 * stated:g}% of the "
            f"population as it is and lifts {100 * axis_percentile(stated):g}%.")


def preset_name(start: int, stop: int, stated: float, where: str = "all") -> str:
    """`layers_46:54-p0.25`, blocks as a Python slice; with `-generation` where only such tokens were fitted."""
    return f"layers_{start}:{stop}-p{stated:g}" + ("" if where == "all" else f"-{where}")


def stated_percentile(name: str) -> float | None:
    """The percentile in a preset's name; none where the name is of another kind."""
    found = _NAMED.fullmatch(name)
    stated = float(found.group(3)) if found else math.nan
    return stated if 0 <= stated <= 1 else None
