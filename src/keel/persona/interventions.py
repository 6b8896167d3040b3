"""Ways to run a model that are compared: as it is, and with axes that steer or cap it at several strengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from pydantic import Field

from keel.config import Config
from keel.errors import ConfigError
from keel.persona.axis import AssistantAxis, Unit
from keel.persona.handles import Handle
from keel.persona.settings import AxisConfig, for_generation

__all__ = ["NONE", "Intervention", "NamedAxis", "clamped_of", "grid", "remarks"]

NONE = "none"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+ -]*$"


class NamedAxis(Config):
    """An axis whose effect is measured."""

    name: str = Field("axis", pattern=_NAME, description="what tables call it")
    path: Path = Field(description="axis.safetensors; the first one is also what projections are read along")
    control: int | None = Field(None, ge=0, description="seed of a random direction of the same length, which acts in "
                                "the axis's place; none: the axis")


@dataclass(frozen=True)
class Intervention:
    """One way to run a model.

    Attributes:
        name: for tables; differs from that of every other one.
        curve: what it is a point of: the axis by name.
        where: tokens acted on.
        layers: blocks acted on, as text; empty for none.
        acts: settings; none: the model as it is.
        dose: `strength`, `percentile` (of the bound, on the axis itself, 0 to 100) or `lower`, as a number.
    """

    name: str
    curve: str
    where: str = "all"
    layers: str = ""
    acts: AxisConfig | None = None
    dose: Mapping[str, float] = field(default_factory=dict)


def grid(axes: Sequence[NamedAxis], *, steer: Sequence[float], unit: Unit, layers: tuple[int, ...],
         caps: Sequence[str], lower: Sequence[float], where: Sequence[str]) -> list[Intervention]:
    """The model as it is, then every axis at every strength, preset and bound, each with every choice of tokens.

    Raises:
        DataError: a file holds no axis.
        ConfigError: an axis has no such preset, or a bound was measured on another direction than the one that acts.
    """
    found = [Intervention(NONE, NONE)]
    for axis, place in product(axes, where):
        of_file = AssistantAxis.load(axis.path)
        tail = f", {place}" if len(where) > 1 else ""
        own = {"path": axis.path, "control": axis.control, "where": place}
        at = _blocks(layers or (of_file.middle,))
        for strength in steer:
            acts = AxisConfig.checked(own | {"steer": strength, "unit": unit, "layers": layers})
            found.append(Intervention(f"{axis.name} {strength:+g}{tail}", axis.name, place, at, acts,
                                      {"strength": strength}))
        if axis.control is not None and (caps or lower):
            raise ConfigError(f"the bounds of {axis.name!r} were measured on the axis, not on its random control",
                              where="axes", remedy="Let `keel axis calibrate --control` make a file for the control, "
                              "and name that without control.")
        for preset in caps:
            if preset not in of_file.caps:
                known = ", ".join(of_file.caps) or "none; keel axis calibrate makes some"
                raise ConfigError(f"the axis {axis.name!r} has no preset {preset!r}", where="caps",
                                  remedy=f"It has: {known}.")
            cap = of_file.caps[preset]
            dose = {} if cap.percentile is None else {"percentile": 100 * cap.percentile}
            found.append(Intervention(f"{axis.name} {preset}{tail}", axis.name, place, _blocks(cap.layers),
                                      AxisConfig.checked(own | {"cap": preset}), dose))
        for floor in lower:
            acts = AxisConfig.checked(own | {"lower": floor, "layers": layers})
            found.append(Intervention(f"{axis.name} above {floor:g}{tail}", axis.name, place, at, acts,
                                      {"lower": floor}))
    return found


def remarks(axes: Sequence[NamedAxis], *, caps: Sequence[str], where: Sequence[str]) -> list[str]:
    """What has to be known of a comparison before its numbers are believed."""
    told = []
    if axes and not any(axis.control is not None or "control" in AssistantAxis.load(axis.path).meta for axis in axes):
        told.append("none of the axes is a random control, so no effect here is known to be one of the axis: add an "
                    "axis with control, for presets a file of `keel axis calibrate --control`")
    late, early = [name for name in caps if for_generation(name)], [place for place in where if place != "generation"]
    if late and early:
        told.append(f"{', '.join(late)}: made for generation, and here where={', '.join(early)}: its bounds were not "
                    "measured on the tokens of the prompt")
    return told


def clamped_of(handles: Sequence[Handle]) -> dict[str, dict[str, dict[str, float]]]:
    """What caps moved, by block and by part: of prompts, and from the last prompt token on."""
    return {str(layer): parts for handle in handles for layer, parts in handle.stats().items()}


def _blocks(layers: Sequence[int]) -> str:
    """`4` or `4, 5, 6`."""
    return ", ".join(map(str, dict.fromkeys(layers)))
