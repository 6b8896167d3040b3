"""Settings of an axis that acts while a model runs, and the same as a context."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from keel.config import Config
from keel.persona.axis import AssistantAxis, Unit
from keel.persona.handles import Handle, Monitor

__all__ = ["AxisConfig", "acting", "applied", "for_generation", "watched"]


class AxisConfig(Config):
    """An axis that steers, caps or does both; a cap acts behind the steering."""

    path: Path = Field(description="axis.safetensors of the model that runs")
    steer: float | None = Field(None, description="strength, in units of `unit`; below 0 is away from the Assistant; "
                                "none: no steering")
    unit: Unit = Field("norm_fraction", description="of the strength: share of the mean length of a state, the axis as "
                       "it is, or length 1")
    layers: tuple[int, ...] = Field((), description="blocks that are steered, or held above `lower`; none: the axis's "
                                    "own")
    cap: str | None = Field(None, description="name of a preset in the file whose bounds hold; none: none")
    lower: float | None = Field(None, description="bound below which the projection is not let; none: none")
    where: Literal["all", "prompt", "generation"] = Field("all", description="tokens acted on; generation begins at "
                                                          "the last prompt token; left out: what `cap` was made for, "
                                                          "or all")
    monitor: int | None = Field(None, ge=0, description="block whose projection is shown; none: the axis's own")
    control: int | None = Field(None, ge=0, description="seed of a random direction of the same length, which acts in "
                                "the axis's place; none: the axis")

    @model_validator(mode="before")
    @classmethod
    def _where(cls, given: Any) -> Any:
        """A preset that was made for generated tokens acts on them, unless somebody says otherwise."""
        if isinstance(given, dict) and given.get("where") is None and for_generation(given.get("cap")):
            return given | {"where": "generation"}
        return given

    @model_validator(mode="after")
    def _check(self) -> "AxisConfig":
        if self.cap is not None and self.lower is not None:
            raise ValueError(f"cap={self.cap!r} and lower={self.lower} exclude each other: a preset has its own bounds")
        return self

    @property
    def acts(self) -> bool:
        """Whether anything is done to the stream."""
        return self.steer is not None or self.cap is not None or self.lower is not None

    def read(self) -> AssistantAxis:
        """The axis of the file, or its control. Raises: see `AssistantAxis.load`."""
        axis = AssistantAxis.load(self.path)
        return axis if self.control is None else axis.random(self.control)


def for_generation(preset: Any) -> bool:
    """Whether a preset's name says that its bounds were measured on what the model writes."""
    return isinstance(preset, str) and preset.endswith("-generation")


def acting(cfg: AxisConfig, axis: AssistantAxis, model: nn.Module) -> list[Handle]:
    """What the settings ask for, attached in the order in which it acts.

    Raises:
        ModelError: the axis does not fit the model, or has no such preset.
    """
    layers, handles = cfg.layers or None, list[Handle]()
    try:
        if cfg.steer is not None:
            handles.append(axis.steer(model, cfg.steer, unit=cfg.unit, layers=layers, where=cfg.where))
        if cfg.cap is not None:
            handles.append(axis.cap(model, cfg.cap, where=cfg.where))
        if cfg.lower is not None:
            handles.append(axis.floor(model, cfg.lower, layers=layers, where=cfg.where))
    except Exception:
        for handle in handles:
            handle.detach()
        raise
    return handles


@contextlib.contextmanager
def applied(cfg: AxisConfig | None, model: nn.Module) -> Iterator[list[Handle]]:
    """The model under these settings, and as it was afterwards; none: as it is.

    Raises:
        ModelError: see `acting`.
    """
    with contextlib.ExitStack() as stack:
        handles = [] if cfg is None else acting(cfg, cfg.read(), model)
        for handle in handles:
            stack.callback(handle.detach)
        yield handles


@contextlib.contextmanager
def watched(cfg: AxisConfig | None, model: nn.Module) -> Iterator[Monitor | None]:
    """The model under these settings, and a monitor that reads what they leave; none: as it is, and none.

    Raises:
        ModelError: see `acting`.
    """
    if cfg is None:
        yield None
        return
    axis = cfg.read()
    with contextlib.ExitStack() as stack:
        for handle in acting(cfg, axis, model):
            stack.callback(handle.detach)
        yield stack.enter_context(axis.monitor(model, layers=None if cfg.monitor is None else [cfg.monitor]))
