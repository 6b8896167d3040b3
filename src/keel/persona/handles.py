"""What acts on a model's stream, or watches it: steps along a direction, bounds, erasure, and a monitor.

Each is a context manager, and `attach()` / `detach()`. Handles act in the order in which they were attached, and what
is detached last leaves the model as it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from keel.errors import ModelError
from keel.functional.directions import ablate, add, bound, bound_jointly, project
from keel.models.residual import Attachment, Columns

__all__ = ["Bounded", "BoundedJointly", "Erased", "Handle", "Monitor", "Operator", "Steered", "Where"]

Where = Literal["all", "prompt", "generation"] | Tensor
"""Which tokens a handle acts on; `generation` begins at the last prompt token, from which the first new one comes."""


@dataclass(frozen=True, eq=False)
class Steered:
    """h + strength * vector; one strength, or one for each row."""

    vector: Float[Tensor, " D"]
    strength: float | Float[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class Bounded:
    """The projection on a unit vector held within bounds; each one number, or one for each row."""

    unit: Float[Tensor, " D"]
    lower: float | Float[Tensor, " B"] | None
    upper: float | Float[Tensor, " B"] | None


@dataclass(frozen=True, eq=False)
class BoundedJointly:
    """The projections on several unit vectors held within all their bounds at once, at the nearest such state."""

    units: Float[Tensor, "K D"]
    lower: Float[Tensor, " K"]
    upper: Float[Tensor, " K"]

    @classmethod
    def of(cls, bounds: Sequence[Bounded]) -> "BoundedJointly":
        """Bounds that would act one after the other.

        Raises:
            ModelError: one of them has a number for each row.
        """
        if any(isinstance(limit, Tensor) and limit.ndim for one in bounds for limit in (one.lower, one.upper)):
            raise ModelError("bounds that hold jointly are one number for all rows",
                             remedy="Give numbers, or let the bounds act one after the other (mode = sequential).")
        lower, upper = ([none if limit is None else float(limit) for limit in limits] for limits, none in (
            ([one.lower for one in bounds], -torch.inf), ([one.upper for one in bounds], torch.inf)))
        return cls(torch.stack([one.unit for one in bounds]), torch.tensor(lower), torch.tensor(upper))


@dataclass(frozen=True, eq=False)
class Erased:
    """The projection on a unit vector set to one number."""

    unit: Float[Tensor, " D"]
    target: float


Operator = Steered | Bounded | BoundedJointly | Erased


class Handle:
    """Operators on the stream of one model.

    Args:
        model: the model.
        operators: behind each block, in the order in which they act.
        where: which tokens.
        mask: attention mask of the prompts, [B, T]; see `keel.models.residual.Attachment`.

    Raises:
        ModelError: the model has no such block.
    """

    def __init__(self, model: nn.Module, operators: Mapping[int, Sequence[Operator]], where: Where,
                 mask: Tensor | None) -> None:
        self._operators = {layer: list(some) for layer, some in operators.items()}
        self._where = where
        self._on: dict[tuple[int, torch.device], list[Operator]] = {}
        self._counts: dict[int, Tensor] = {}
        self._attachment = Attachment(model, dict.fromkeys(self._operators, self._tap), mask=mask)

    def attach(self) -> Self:
        """Start to act; what acts already goes on."""
        self._attachment.attach()
        return self

    def detach(self) -> None:
        """Leave the model as it was. The statistics stay."""
        self._attachment.detach()

    def __enter__(self) -> Self:
        self._attachment.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._attachment.__exit__()

    def stats(self) -> dict[int, dict[str, dict[str, float]]]:
        """What caps have done at each block, for `prompt` and `generation` tokens apart.

        A token that passes without a cache compute again counts once. Of each part: `n_tokens` seen, `clamped` (the
        share whose projection was moved) and `correction` (by how much the moved ones were on average, signed, towards
        the Assistant up; of bounds that hold jointly, the largest of the shifts without its sign).
        """
        return {layer: {part: _counted(*row) for part, row in zip(("prompt", "generation"), counts.tolist(),
                                                                   strict=True)}
                for layer, counts in sorted(self._counts.items())}

    def _tap(self, layer: int, hidden: Tensor, columns: Columns) -> Tensor:
        chosen = self._chosen(hidden, columns)
        for operator in self._operators_on(layer, hidden.device):
            if isinstance(operator, Steered):
                strength = torch.where(chosen, _by_row(operator.strength, hidden, columns), 0.0)
                hidden = add(hidden, operator.vector, strength)
            elif isinstance(operator, Erased):
                hidden = torch.where(chosen[..., None], ablate(hidden, operator.unit, target=operator.target), hidden)
            elif isinstance(operator, BoundedJointly):
                free = torch.full_like(operator.lower, torch.inf)
                hidden, shifts = bound_jointly(
                    hidden, operator.units, lower=torch.where(chosen[..., None], operator.lower, -free),
                    upper=torch.where(chosen[..., None], operator.upper, free))
                self._count(layer, shifts.detach().abs().amax(-1), chosen, columns)
            else:
                lower, upper = (None if limit is None else torch.where(chosen, _by_row(limit, hidden, columns), none)
                                for limit, none in ((operator.lower, -torch.inf), (operator.upper, torch.inf)))
                hidden, moved = bound(hidden, operator.unit, lower=lower, upper=upper)
                self._count(layer, moved.detach(), chosen, columns)
        return hidden

    def _operators_on(self, layer: int, device: torch.device) -> list[Operator]:
        if (layer, device) not in self._on:
            self._on[layer, device] = [_to(operator, device) for operator in self._operators[layer]]
        return self._on[layer, device]

    def _chosen(self, hidden: Tensor, columns: Columns) -> Bool[Tensor, "B T"]:
        if isinstance(self._where, Tensor):
            return columns.real & _columns_of(self._where.to(hidden.device), hidden, columns)
        if self._where == "all":
            return columns.real
        return columns.real & (columns.generated if self._where == "generation" else ~columns.generated)

    def _count(self, layer: int, moved: Tensor, chosen: Tensor, columns: Columns) -> None:
        if columns.again:
            return
        seen = chosen & columns.told
        parts = torch.stack([seen & ~columns.generated, seen & columns.generated])[..., None].flatten(1)
        told = torch.stack([torch.ones_like(moved), (moved != 0).float(), moved], -1).flatten(0, 1)
        counts = torch.stack([torch.where(part[:, None], told, 0.0).sum(0).double() for part in parts]).cpu()
        self._counts[layer] = self._counts[layer] + counts if layer in self._counts else counts


class Monitor:
    """Projections as the model runs. Padding is never read, and what follows the end of a row neither.

    Rows are numbered on: those of a second prompt, or batch, follow those of the first, until `clear`. Where whoever
    runs the model names its rows, as keel's sampler does, they keep these names.

    Args:
        model: the model.
        units: unit vector by block.
        centres: subtracted from the projections of each block.
        mask: attention mask of the prompts, [B, T].

    Raises:
        ModelError: the model has no such block.
    """

    def __init__(self, model: nn.Module, units: Mapping[int, Tensor], centres: Mapping[int, float],
                 mask: Tensor | None) -> None:
        self._units, self._centres = dict(units), dict(centres)
        self._read: list[tuple[int, Tensor, Columns]] = []
        self._first: int | None = None  # rows before those that count from 0
        self._callbacks: list[Callable[[dict[str, Any]], Any]] = []
        self._attachment = Attachment(model, dict.fromkeys(units, self._tap), mask=mask)

    def attach(self) -> Self:
        """Start to read; what reads already goes on."""
        self._attachment.attach()
        return self

    def detach(self) -> None:
        """Stop reading. What was read stays."""
        self._attachment.detach()

    def __enter__(self) -> Self:
        self._attachment.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._attachment.__exit__()

    @property
    def layers(self) -> list[int]:
        """Blocks that are watched."""
        return list(self._units)

    def clear(self) -> None:
        """Forget what was read; the next row is 0 again."""
        self._read.clear()
        self._first = None

    def on_token(self, callback: Callable[[dict[str, Any]], Any]) -> None:
        """Call it with each row of `per_token` as it is read. It costs a transfer from the device for each pass."""
        self._callbacks.append(callback)

    @property
    def per_token(self) -> list[dict[str, Any]]:
        """One row for each real token and block, as read: `row`, `layer`, `position`, `projection`, `generated`.

        Of a place where assisted decoding put another token later, the later one. What it drafted last may stay.
        """
        kept: dict[tuple[int, ...], dict[str, Any]] = {}
        for number, (layer, found, columns) in enumerate(self._read):
            for row in _rows(layer, found, columns):
                # Of rows with names nothing is known: the same name may come again for another text.
                kept[row["row"], layer, row["position"], number if columns.named else -1] = row
        return list(kept.values())

    def per_turn(self, spans: Sequence[Sequence[tuple[int, int]]], *, layer: int | None = None) -> list[list[float]]:
        """Mean projection over the tokens [start, end) of each span of each row; NaN where none of them was read.

        Args:
            spans: of each row, counted over its real tokens.
            layer: block; none: the only one that is watched.

        Raises:
            ModelError: several blocks are watched and none is named.
        """
        at = self._only(layer)
        known: dict[int, dict[int, float]] = {}
        for row in self.per_token:
            if row["layer"] == at:
                known.setdefault(row["row"], {})[row["position"]] = row["projection"]
        return [[_mean([x for place, x in known.get(i, {}).items() if start <= place < end]) for start, end in some]
                for i, some in enumerate(spans)]

    def means(self, *, part: Literal["all", "prompt", "response"] = "response", layer: int | None = None,
              ) -> dict[int, float]:
        """Mean projection of each row over its tokens of one part; a response begins behind the last prompt token.

        Raises:
            ModelError: see `per_turn`.
        """
        return {row: _mean(found) for row, found in self.traces(part=part, layer=layer).items()}

    def traces(self, *, part: Literal["all", "prompt", "response"] = "response", layer: int | None = None,
               ) -> dict[int, list[float]]:
        """The projections that `means` are of, in their order. Raises: see `per_turn`."""
        at, found = self._only(layer), dict[int, list[tuple[int, bool, float]]]()
        for row in self.per_token:
            if row["layer"] == at:
                found.setdefault(row["row"], []).append((row["position"], row["generated"], row["projection"]))
        return {row: _part(sorted(told), part) for row, told in sorted(found.items())}

    def _only(self, layer: int | None) -> int:
        if layer is None and len(self._units) > 1:
            raise ModelError(f"several blocks are watched ({', '.join(map(str, self._units))}), and none was named",
                             remedy="Say which one with layer=.")
        return next(iter(self._units)) if layer is None else layer

    def _tap(self, layer: int, hidden: Tensor, columns: Columns) -> None:
        if columns.again:
            return
        unit = self._units[layer] = self._units[layer].to(hidden.device)
        found = project(hidden.detach(), unit) - self._centres[layer]
        if not columns.named:
            self._first = columns.first if self._first is None else self._first
            columns = replace(columns, first=columns.first - self._first)
        self._read.append((layer, found, columns))
        if self._callbacks:
            for row in _rows(layer, found, columns):
                for callback in self._callbacks:
                    callback(row)


def _to(operator: Operator, device: torch.device) -> Operator:
    moved: dict[str, Any] = {name: value.to(device) for name, value in vars(operator).items()
                             if isinstance(value, Tensor)}
    return replace(operator, **moved)


def _by_row(setting: float | Tensor, hidden: Tensor, columns: Columns) -> Tensor:
    """The setting of each token, to be read against [B, T]."""
    if not isinstance(setting, Tensor) or setting.ndim == 0:
        return torch.as_tensor(setting, dtype=torch.float32, device=hidden.device)
    found = setting.float()[columns.row_of(len(setting))]
    return found if found.ndim == 2 else found[:, None]


def _columns_of(where: Tensor, hidden: Tensor, columns: Columns) -> Tensor:
    """What a mask over the columns of the whole rows says of those of this pass; behind its end it says no."""
    n_rows, width = hidden.shape[:2]
    if columns.offset is None or columns.rows.ndim == 2 or n_rows % len(where):
        raise ModelError(f"a mask of {len(where)} rows as `where` does not fit this pass of {n_rows} rows",
                         remedy="Such a mask is for whole batches with common columns; else use all, prompt or "
                                "generation.")
    wide = where.bool().repeat_interleave(n_rows // len(where), 0)
    wide = nn.functional.pad(wide, (0, max(0, columns.offset + width - wide.shape[1])))
    return wide[:, columns.offset:columns.offset + width]


def _counted(n: float, moved: float, total: float) -> dict[str, float]:
    return {"n_tokens": n, "clamped": moved / n if n else 0.0, "correction": total / moved if moved else 0.0}


def _rows(layer: int, found: Tensor, columns: Columns) -> Iterator[dict[str, Any]]:
    rows = columns.rows if columns.rows.ndim == 2 else columns.rows[:, None].expand_as(columns.real)
    rows, picked = columns.first + rows, columns.told
    for row, position, value, generated in zip(rows[picked].tolist(), columns.positions[picked].tolist(),
                                               found[picked].tolist(), columns.generated[picked].tolist(),
                                               strict=True):
        yield {"row": row, "layer": layer, "position": position, "projection": value, "generated": generated}


def _part(told: list[tuple[int, bool, float]], part: str) -> list[float]:
    last_of_prompt = min((position for position, generated, _ in told if generated), default=None)
    return [value for position, _, value in told if part == "all" or (part == "response") == (
        last_of_prompt is not None and position > last_of_prompt)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
