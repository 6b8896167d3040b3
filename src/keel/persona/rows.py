"""The axis for rows that come and go: every row of a desk has its own settings, and one attachment serves them all.

Settings stand in tables with one line for each row, and taps gather them by `Columns.rows`. Per row they act as
`AssistantAxis.steer` and `AssistantAxis.cap` do, first the steering and then the cap.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor, nn

from keel.errors import ModelError
from keel.functional.directions import add, bound, project, unit
from keel.models.load import device_of
from keel.models.residual import Attachment, Columns, n_blocks
from keel.persona.axis import AssistantAxis, Unit

__all__ = ["Bounds", "Reading", "RowControl", "RowSettings", "Steering"]

WHERE = ("all", "prompt", "generation")


@dataclass(frozen=True)
class Steering:
    """A step along the axis; no layers: behind the axis's own block."""

    strength: float
    unit: Unit = "norm_fraction"
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Bounds:
    """Bounds on the projection; no layers: behind the axis's own block."""

    lower: float | None = None
    upper: float | None = None
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class RowSettings:
    """What happens to one row: a step, bounds or the name of a preset, on which tokens, and whether it is watched."""

    steer: Steering | None = None
    cap: Bounds | str | None = None
    where: Literal["all", "prompt", "generation"] = "all"
    monitor: bool = False

    @property
    def acts(self) -> bool:
        """Whether anything is done to the row."""
        return self.steer is not None or self.cap is not None


@dataclass(frozen=True)
class Reading:
    """One token of a watched row: its place, its projection behind all that acts, and whether a bound moved it."""

    row: int
    position: int
    projection: float
    bounded: bool


@dataclass(eq=False)
class _Line:
    """A direction at one block with bounds for every row."""

    unit: Tensor
    lower: Tensor
    upper: Tensor
    users: set[int] = field(default_factory=set)


@dataclass(eq=False)
class _Pass:
    """What is seen of one forward pass."""

    columns: Columns
    bounded: Tensor
    last_layer: int
    projection: Tensor | None = None


class RowControl:
    """An axis on a model, for `n_rows` rows that can be set at any time between two passes.

    Args:
        axis: of this model.
        model: a decoder whose passes name their rows (`keel.rollout.desk` does).
        n_rows: rows of the tables; `Columns.rows` stays below it.
        watch: block whose projections are read; none: the axis's own.

    Raises:
        ModelError: the axis is of another model, or has no such block.
    """

    def __init__(self, axis: AssistantAxis, model: nn.Module, *, n_rows: int, watch: int | None = None) -> None:
        if n_blocks(model) != axis.n_layers:
            raise ModelError(f"rows cannot be controlled: the axis has {axis.n_layers} blocks and the model "
                             f"{n_blocks(model)}", remedy="An axis fits only the model it was extracted from.")
        self.axis, self.n_rows, self.device = axis, n_rows, device_of(model)
        self.watch = self._layers((axis.middle if watch is None else watch,))[0]
        self._units: dict[int, Tensor] = {}
        self._coef = torch.zeros(n_rows, axis.n_layers, device=self.device)
        self._where = torch.zeros(n_rows, dtype=torch.long, device=self.device)
        self._watched = torch.zeros(n_rows, dtype=torch.bool, device=self.device)
        self._lines: dict[tuple[str, int, int], _Line] = {}
        self._set: dict[int, RowSettings] = {}
        self._steered: dict[int, set[int]] = {}
        self._pass: _Pass | None = None
        self._attachment = Attachment(model, dict.fromkeys(range(axis.n_layers), self._tap))

    def __enter__(self) -> Self:
        self._attachment.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._attachment.__exit__()

    def check(self, settings: RowSettings) -> None:
        """Whether such settings can be had; what can be read from them alone.

        Raises:
            ModelError: no such block, no such preset, a unit that the axis has no length for, bounds without any, or a
                block at which the axis is zero.
        """
        if settings.monitor:
            self._unit(self.watch)
        if settings.steer is not None:
            for layer in self._steps(settings.steer):
                self._unit(layer)
        if settings.cap is not None:
            list(self._bounds(settings.cap))

    def set(self, row: int, settings: RowSettings) -> None:
        """From the next pass on the row has these settings. Raises: see `check`."""
        self.check(settings)
        self.forget(row)
        self._set[row] = settings
        self._where[row] = WHERE.index(settings.where)
        self._watched[row] = settings.monitor
        if settings.steer is not None:
            for layer, step in self._steps(settings.steer).items():
                self._coef[row, layer] = step
                self._steered.setdefault(layer, set()).add(row)
        if settings.cap is not None:
            for key, along, lower, upper in self._bounds(settings.cap):
                line = self._line(key, along)
                line.lower[row], line.upper[row] = lower, upper
                line.users.add(row)

    def forget(self, row: int) -> None:
        """The row has no settings any more, and nothing of them is left."""
        self._set.pop(row, None)
        self._coef[row] = 0.0
        self._watched[row] = False
        for users in self._steered.values():
            users.discard(row)
        for line in self._lines.values():
            if row in line.users:
                line.users.discard(row)
                line.lower[row], line.upper[row] = -torch.inf, torch.inf

    def read(self) -> list[Reading]:
        """What the last pass showed of watched rows; once."""
        seen, self._pass = self._pass, None
        if seen is None or seen.projection is None:
            return []
        columns = seen.columns
        rows = columns.rows[:, None].expand_as(columns.real)
        picked = columns.real & self._watched[rows]
        return [Reading(*found) for found in zip(
            rows[picked].tolist(), columns.positions[picked].tolist(), seen.projection[picked].tolist(),
            seen.bounded[picked].tolist(), strict=True)]

    def _tap(self, layer: int, hidden: Tensor, columns: Columns) -> Tensor | None:
        if not self._set:
            return None
        seen = self._pass
        if seen is None or layer <= seen.last_layer:
            seen = _Pass(columns, torch.zeros_like(columns.real), layer)
        self._pass, seen.last_layer = seen, layer
        before = hidden
        lines = [line for (_, at, _), line in self._lines.items() if at == layer and line.users]
        if self._steered.get(layer) or lines:
            rows, chosen = columns.rows, self._chosen(columns)
            if self._steered.get(layer):
                hidden = add(hidden, self._unit(layer), torch.where(chosen, self._coef[rows, layer][:, None], 0.0))
            for line in lines:
                lower = torch.where(chosen, line.lower[rows][:, None], -torch.inf)
                upper = torch.where(chosen, line.upper[rows][:, None], torch.inf)
                hidden, moved = bound(hidden, line.unit, lower=lower, upper=upper)
                seen.bounded = seen.bounded | (moved != 0)
        if layer == self.watch and any(told.monitor for told in self._set.values()):
            seen.projection = project(hidden, self._unit(layer))
        return None if hidden is before else hidden

    def _chosen(self, columns: Columns) -> Tensor:
        code = self._where[columns.rows][:, None]
        part = torch.where(code == WHERE.index("prompt"), ~columns.generated, columns.generated)
        return columns.real & (part | (code == WHERE.index("all")))

    def _unit(self, layer: int) -> Tensor:
        if layer not in self._units:
            self._units[layer] = self.axis.unit(layer).to(self.device)
        return self._units[layer]

    def _line(self, key: tuple[str, int, int], along: Tensor) -> _Line:
        if key not in self._lines:
            none = torch.full((self.n_rows,), torch.inf, device=self.device)
            self._lines[key] = _Line(along.to(self.device), -none, none.clone())
        return self._lines[key]

    def _steps(self, steer: Steering) -> Mapping[int, float]:
        """Length of the step at each block."""
        layers, norm = self._layers(steer.layers), self.axis.token_norm
        if steer.unit != "norm_fraction":
            return {at: steer.strength * (1.0 if steer.unit == "unit" else self.axis.norm(at)) for at in layers}
        if norm is None:
            raise ModelError("a row cannot be steered by a share of the mean length of a state, which the axis does "
                             "not tell", remedy="Extract the axis with keel, or steer with unit = unit or raw.")
        return {at: steer.strength * float(norm[at]) for at in layers}

    def _bounds(self, cap: Bounds | str) -> Iterator[tuple[tuple[str, int, int], Tensor, float, float]]:
        """Of each direction that is bounded: its name, itself, and the bounds."""
        if isinstance(cap, Bounds):
            if cap.lower is None and cap.upper is None:
                raise ModelError("bounds of a row without any number",
                                 remedy="Give lower, upper or both, or the name of a preset.")
            for layer in self._layers(cap.layers):
                yield ("", layer, 0), self._unit(layer), *_open(cap.lower, cap.upper)
            return
        if cap not in self.axis.caps:
            raise ModelError(f"no preset {cap!r} for this row: the axis does not have it",
                             remedy=self.axis.known_caps())
        told = self.axis.caps[cap]
        for i, layer in enumerate(told.layers):
            along = self._unit(layer) if told.vectors is None else unit(told.vectors[i])
            own = told.vectors is None and told.layers.count(layer) == 1
            yield ("" if own else cap, layer, 0 if own else i), along, *_open(told.lower[i], told.upper[i])

    def _layers(self, layers: tuple[int, ...]) -> list[int]:
        n = self.axis.n_layers
        for layer in layers:
            if not -n <= layer < n:
                raise ModelError(f"a row cannot be acted on behind block {layer}: there are blocks 0 to {n - 1}",
                                 remedy="Name blocks of the model, counted from 0.")
        return [layer % n for layer in layers or (self.axis.middle,)]


def _open(lower: float | None, upper: float | None) -> tuple[float, float]:
    return -torch.inf if lower is None else lower, torch.inf if upper is None else upper
