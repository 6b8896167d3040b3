"""The Assistant Axis as a value: project on it, steer along it, hold the stream on one side of it, watch it.

Source: Lu et al. 2026, arXiv:2601.10387, sections 3 and 5. An axis points to the Assistant at every block: a positive
projection is Assistant-like. Its vectors keep their length (default mean minus role mean); projections are on the unit
vector.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from keel.errors import ModelError
from keel.functional import directions
from keel.functional.directions import project
from keel.models.residual import n_blocks
from keel.persona.cap import Cap
from keel.persona.files import AxisFile, read_axis, write_axis
from keel.persona.handles import Bounded, BoundedJointly, Erased, Handle, Monitor, Operator, Steered, Where
from keel.persona.published import Note, read_published
from keel.rng import stream

__all__ = ["AssistantAxis", "DefaultStats", "Unit", "cap_together"]

Unit = Literal["norm_fraction", "raw", "unit"]
"""What a strength of 1 is: the mean length of a token's state there; the axis as it is; length 1."""
Mode = Literal["sequential", "joint"]
PerLayer = float | Tensor | Mapping[int, float]


@dataclass(frozen=True)
class DefaultStats:
    """How the default Assistant's responses project on the axis: one number each, the mean over its content tokens.

    Attributes:
        layer: block that they were read at.
        mean, std: over the responses (divisor of the deviation: their number).
        low, high: 5th and 95th percentile.
        n: responses.
    """

    layer: int
    mean: float
    std: float
    low: float
    high: float
    n: int

    @property
    def words(self) -> str:
        """As the metadata of an axis file spell it, under `default_stats`."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, eq=False)
class AssistantAxis:
    """One direction at every block.

    Attributes:
        vectors: the axis, [blocks, width], float32; it points to the Assistant.
        default_mean: mean state over responses of the default Assistant.
        role_mean: mean over the roles' vectors.
        roles, traits: vector of each.
        token_norm: mean length of a token's state at each block.
        meta: model, hook point, counts, judge, conventions; all strings.
        caps: bounds by name.
    """

    vectors: Float[Tensor, "L D"]
    default_mean: Float[Tensor, "L D"] | None = None
    role_mean: Float[Tensor, "L D"] | None = None
    roles: Mapping[str, Float[Tensor, "L D"]] = field(default_factory=dict)
    traits: Mapping[str, Float[Tensor, "L D"]] = field(default_factory=dict)
    token_norm: Float[Tensor, " L"] | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    caps: Mapping[str, Cap] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> "AssistantAxis":
        """Read keel's own file.

        Raises:
            DataError: there is none, or it is something else.
        """
        content = read_axis(Path(path))
        return cls(**{part.name: getattr(content, part.name) for part in fields(cls)})

    @classmethod
    def from_reference(cls, path: str | Path, note: Note = print) -> "AssistantAxis":
        """Read the authors' files: their folder, or the file of an axis alone.

        Args:
            path: see `keel.persona.published.read_published`.
            note: is told what was left out and what looks wrong.

        Raises:
            DataError: there is no axis, a file is no plain tensors, or they contradict each other.
        """
        content = read_published(Path(path), note)
        return cls(**{part.name: getattr(content, part.name) for part in fields(cls)})

    def save(self, path: str | Path) -> None:
        """Write keel's own file: beside it, then in its place."""
        write_axis(Path(path), AxisFile(**{part.name: getattr(self, part.name) for part in fields(self)}))

    @property
    def n_layers(self) -> int:
        return self.vectors.shape[0]

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    @property
    def middle(self) -> int:
        """The block at which projections are read where none is named: the file's own, else that in the middle."""
        return int(self.meta.get("layer", self.n_layers // 2))

    @property
    def default_stats(self) -> DefaultStats | None:
        """How the default Assistant projects on this axis, raw; none where the file does not say."""
        told = self.meta.get("default_stats")
        return None if told is None else DefaultStats(**json.loads(told))

    def norm(self, layer: int) -> float:
        """Length of the axis at a block."""
        return float(self.vectors[layer].norm())

    def unit(self, layer: int) -> Float[Tensor, " D"]:
        """The axis at a block, of length 1.

        Raises:
            ModelError: it is zero there.
        """
        if not bool(self.vectors[layer].any()):
            raise ModelError(f"the axis is zero at block {layer}, so it has no direction there",
                             remedy="Use other blocks, or extract the axis again.")
        return directions.unit(self.vectors[layer])

    def project(self, hidden: Float[Tensor, "*A D"], layer: int, *, centred: bool = False) -> Float[Tensor, "*A"]:
        """How far states reach towards the Assistant at a block.

        Args:
            hidden: states, in any shape; computed in float32.
            layer: block that they come from.
            centred: from the mean of the roles instead of from 0.

        Raises:
            ModelError: centred, and the file holds no mean of the roles.
        """
        found = project(hidden, self.unit(layer).to(hidden.device))
        return found - self.centre(layer) if centred else found

    def centre(self, layer: int) -> float:
        """Projection of the roles' mean at a block.

        Raises:
            ModelError: the file holds no mean of the roles.
        """
        if self.role_mean is None:
            raise ModelError("this axis comes without the mean of its roles, so nothing can be centred on it",
                             remedy="Extract the axis with keel, or leave projections as they are.")
        return float(project(self.role_mean[layer], self.unit(layer)))

    def random(self, seed: int) -> "AssistantAxis":
        """The control: at every block another direction, of the same length, drawn by the seed.

        Bounds keep their numbers, which were measured on the axis: measure them again before they are compared. Presets
        with directions of their own are left out: they would act along what they were made for, not at random.
        """
        vectors = directions.random_directions(self.vectors, stream(seed, "random axis"))
        told = {name: text for name, text in self.meta.items() if name != "default_stats"}
        caps = {name: cap for name, cap in self.caps.items() if cap.vectors is None}
        return replace(self, vectors=vectors, caps=caps, meta=told | {"control": f"random directions of seed {seed}"})

    def known_caps(self) -> str:
        """The presets as the remedy for an unknown name says them."""
        known = f"It has: {', '.join(self.caps) or 'none; keel axis calibrate makes some'}."
        return known if "control" not in self.meta else (
            f"{known} A random control keeps no preset with directions of its own.")

    def steer(self, model: nn.Module, strength: float | Tensor, *, unit: Unit = "norm_fraction",
              layers: Sequence[int] | None = None, where: Where = "all", mask: Tensor | None = None) -> Handle:
        """Add the axis to the stream: `h + strength * v`. Acts at once, and until the handle is detached or left.

        Args:
            model: the model of this axis.
            strength: one number, or one for each row of the batch; below 0 is away from the Assistant.
            unit: what a strength of 1 is: see `Unit`.
            layers: blocks to act behind; none: the middle one.
            where: every token, those of the prompt, from the last prompt token on, or a mask of columns [B, T].
            mask: attention mask of the prompts, where they are padded or have been fed before.

        Raises:
            ModelError: the model has other blocks, or a norm that `unit` needs is not in the file.
        """
        at = self.fitting(model, layers)
        vectors = {layer: self._step(layer, unit) for layer in at}
        return Handle(model, {layer: [Steered(vector, strength)] for layer, vector in vectors.items()}, where, mask,
                      ).attach()

    def cap(self, model: nn.Module, preset: str | None = None, *, lower: PerLayer | None = None,
            upper: PerLayer | None = None, layers: Sequence[int] | None = None, where: Where = "all",
            mask: Tensor | None = None, mode: Mode = "sequential") -> Handle:
        """Hold the projection within bounds; states within them keep their bits.

        Args:
            model: the model of this axis.
            preset: name of bounds in the file, which has its own blocks; else give `lower`, `upper` or both.
            lower, upper: bound on the projection: one number, one for each row [B], or one for each block.
            layers: blocks to act behind; none: those of the preset or of the bounds, else the middle one.
            where, mask: as for `steer`.
            mode: several bounds behind one block act one after the other, as the authors' code does, where the last one
                may break the first; or all hold at once.

        Raises:
            ModelError: no such preset, one beside bounds or blocks, no bound at all, or the model has other blocks.
        """
        if preset is not None and not (lower is None and upper is None and layers is None):
            raise ModelError(f"the preset {preset!r} has bounds and blocks of its own",
                             remedy="Name it alone, or give lower, upper and layers without it.")
        if preset is not None:
            taps = self._of_preset(preset)
        else:
            lower, upper = self._by_block(model, lower), self._by_block(model, upper)
            named = [part for part in (lower, upper) if isinstance(part, Mapping)]
            own = layers if layers is not None or not named else sorted({layer for part in named for layer in part})
            taps = {layer: [Bounded(self.unit(layer), _at(lower, layer), _at(upper, layer))]
                    for layer in self.fitting(model, own)}
        if not any(tap.lower is not None or tap.upper is not None for layer in taps.values() for tap in layer):
            raise ModelError("a cap without any bound holds nothing",
                             remedy="Name a preset, or give lower, upper or both.")
        self.fitting(model, list(taps))
        return Handle(model, taps if mode == "sequential" else _jointly(taps), where, mask).attach()

    def floor(self, model: nn.Module, lower: PerLayer, *, layers: Sequence[int] | None = None, where: Where = "all",
              mask: Tensor | None = None) -> Handle:
        """A cap with a lower bound alone: the stream stays at least that Assistant-like."""
        return self.cap(model, lower=lower, layers=layers, where=where, mask=mask)

    def ablate(self, model: nn.Module, *, target: float = 0.0, layers: Sequence[int] | None = None,
               where: Where = "all", mask: Tensor | None = None) -> Handle:
        """Set the projection to `target` everywhere. Other arguments and errors: as for `steer`."""
        at = self.fitting(model, layers)
        return Handle(model, {layer: [Erased(self.unit(layer), target)] for layer in at}, where, mask).attach()

    def monitor(self, model: nn.Module, *, layers: Sequence[int] | None = None, centred: bool = False,
                mask: Tensor | None = None) -> Monitor:
        """Read projections as the model runs; attached behind a cap, it sees what the cap leaves.

        Raises:
            ModelError: the model has other blocks; centred, and the file holds no mean of the roles.
        """
        at = self.fitting(model, layers)
        return Monitor(model, {layer: self.unit(layer) for layer in at},
                       {layer: self.centre(layer) if centred else 0.0 for layer in at}, mask).attach()

    def _step(self, layer: int, how: Unit) -> Tensor:
        if how == "raw":
            return self.vectors[layer]
        if how == "unit":
            return self.unit(layer)
        if self.token_norm is None:
            raise ModelError("this axis comes without the mean length of a token's state, so a fraction of it is "
                             "unknown", remedy="Extract the axis with keel, or steer with unit = unit or raw.")
        return self.unit(layer) * float(self.token_norm[layer])

    def _of_preset(self, name: str) -> dict[int, list[Bounded]]:
        if name not in self.caps:
            raise ModelError(f"the axis has no cap named {name!r}",
                             remedy=self.known_caps())
        cap = self.caps[name]
        taps: dict[int, list[Bounded]] = {}
        for i, layer in enumerate(cap.layers):
            along = self.unit(layer) if cap.vectors is None else directions.unit(cap.vectors[i])
            taps.setdefault(layer, []).append(Bounded(along, cap.lower[i], cap.upper[i]))
        return taps

    def _by_block(self, model: nn.Module, bound: PerLayer | None) -> PerLayer | None:
        """Bounds by block under the blocks' own numbers; -1 is the last block."""
        if not isinstance(bound, Mapping):
            return bound
        return dict(zip(self.fitting(model, list(bound)), bound.values(), strict=True))

    def fitting(self, model: nn.Module, layers: Sequence[int] | None) -> list[int]:
        """These blocks, or the middle one, counted from 0.

        Raises:
            ModelError: the model has other blocks than the axis, or neither has one of these.
        """
        n = n_blocks(model)
        if n != self.n_layers:
            raise ModelError(f"the axis has {self.n_layers} blocks, the model {n}",
                             remedy="An axis fits only the model it was extracted from.")
        config: Any = getattr(model, "config", None)  # a wrapper may have none
        width = getattr(config.get_text_config() if hasattr(config, "get_text_config") else config, "hidden_size",
                        self.width)
        if width != self.width:
            raise ModelError(f"the axis is {self.width} wide, the model's stream {width}",
                             remedy="An axis is of use only to a model of the same shape as its own.")
        chosen = [self.middle] if layers is None else [int(layer) for layer in layers]
        for layer in chosen:
            if not -n <= layer < n:
                raise ModelError(f"the axis has no block {layer}: it has blocks 0 to {n - 1}",
                                 remedy="Name blocks of the model, counted from 0.")
        return [layer % n for layer in chosen]


def cap_together(model: nn.Module, bounds: Sequence[tuple[AssistantAxis, float | None, float | None]], *,
                 layers: Sequence[int], where: Where = "all", mask: Tensor | None = None) -> Handle:
    """Hold the projections on several axes within (axis, lower, upper) at once, at the nearest such state.

    Raises:
        ModelError: an axis does not fit the model.
    """
    taps = {layer: [Bounded(axis.unit(layer), lower, upper) for axis, lower, upper in bounds] for layer in layers}
    for axis, _, _ in bounds:
        axis.fitting(model, layers)
    return Handle(model, _jointly(taps), where, mask).attach()


def _jointly(taps: Mapping[int, Sequence[Bounded]]) -> dict[int, Sequence[Operator]]:
    return {layer: some if len(some) == 1 else [BoundedJointly.of(some)] for layer, some in taps.items()}


def _at(bound: PerLayer | None, layer: int) -> float | Tensor | None:
    return bound.get(layer) if isinstance(bound, Mapping) else bound
