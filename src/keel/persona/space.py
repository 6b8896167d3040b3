"""From sums of roles to the axis and the space of personas: role vectors, components, loadings, reliability.

Source: arXiv:2601.10387, sections 3 and 4. The axis uses responses that fully play their role; the space is spanned by
those and by vectors of responses that do so somewhat, as in the paper, or by the first alone, as in its code.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from keel.errors import DataError
from keel.functional.directions import Components, cosine, mean_difference, principal_components, project, unit
from keel.functional.spaces import (
    Sums,
    components_needed,
    coordinates_of,
    explained_share,
    mean_of,
    split_half_cosine,
    whole_cosine,
)
from keel.persona.extract import RoleSums, kept_alike

__all__ = ["SHARES", "SHOWN", "Found", "Rows", "Scale", "Space", "gathered", "space_of"]

Rows = Literal["fully_and_somewhat", "fully"]
Scale = Literal["as_is", "unit_rows"]
SHARES = (0.7, 0.8, 0.9, 0.95)
SHOWN = 3
"""Components that every vector is placed on."""
KINDS = {"fully": ("3",), "somewhat": ("2",), "all": ("all",)}
LOW, HIGH = 0.05, 0.95
"""Percentiles of the default's responses between which a projection counts as the default's."""


@dataclass(frozen=True)
class Vector:
    """Mean state of some responses of a role: those that play it fully, those that do so somewhat, or all."""

    name: str
    kind: str
    n: int
    mean: Float[Tensor, "L D"]


@dataclass
class Found:
    """What the sums of all roles come to.

    Attributes:
        vectors: of roles with enough responses of a kind, in the order of the roles.
        default: mean over the default's responses. [L D]
        n_default: how many they are.
        halves: default mean and role vectors of the even and of the odd questions, where both are there.
        token_norm: mean length of a content token's state. [L]
        kept: means of some of the default's responses at the chosen block. [N D]
        traits: vector of each trait, and how many pairs it rests on.
        counts: role -> score -> responses.
        few: roles whose fully role-playing responses are too few.
    """

    default: Float[Tensor, "L D"]
    n_default: int
    token_norm: Float[Tensor, " L"]
    kept: Float[Tensor, "N D"]
    vectors: list[Vector] = field(default_factory=list)
    halves: tuple[Float[Tensor, "2 L D"], Float[Tensor, "2 R L D"]] | None = None
    traits: dict[str, tuple[Float[Tensor, "L D"], int]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    few: list[str] = field(default_factory=list)

    def chosen(self, *kinds: str) -> list[Vector]:
        return [one for one in self.vectors if one.kind in kinds]

    @property
    def role_mean(self) -> Float[Tensor, "L D"]:
        """Mean over the vectors that the axis is made of; roles weigh the same."""
        return torch.stack([one.mean for one in self.chosen("fully", "all")]).double().mean(0).float()

    @property
    def axis(self) -> Float[Tensor, "L D"]:
        return mean_difference(self.default, torch.stack([one.mean for one in self.chosen("fully", "all")]))


def gathered(sums: Sequence[RoleSums], *, min_count: int) -> Found:
    """Vectors of all roles, from their sums.

    Args:
        sums: of every role, of the default and of traits.
        min_count: responses that a vector needs; the default takes what there is.

    Raises:
        DataError: the default has no response, or no role has enough.
    """
    defaults = [one for one in sums if one.kind == "default"]
    whole = _together(defaults, None)
    if whole is None:
        raise DataError("no response of the default has a token that counts", where="roles",
                        remedy="One role must have is_default = true; look at responses.jsonl for what it said.")
    lengths = [one.lengths for one in sums if one.lengths is not None]
    n_tokens = sum(one.n_tokens for one in sums)
    found = Found(mean_of(whole), int(whole.count), (sum(lengths[1:], lengths[0]) / n_tokens).float(),
                  kept_alike(defaults))
    for one in sums:
        found.counts[one.name] = {name: n for name, n in sorted(one.counts.items())}
        if one.kind == "role":
            _add_role(found, one, min_count)
        elif one.kind == "trait":
            _add_trait(found, one, min_count)
    if not found.chosen("fully", "all"):
        n_most = max((int(b.count) for one in sums if one.kind == "role" for b in _fully(one)), default=0)
        raise DataError(f"no role has {min_count} responses that play it fully; the best one has {n_most}",
                        where="min_count", remedy="Ask more questions, lower min_count, or look at the scores in "
                                                  "responses.jsonl: the model or the judge may not follow.")
    found.halves = _halves(sums, defaults, {one.name for one in found.chosen("fully", "all")})
    return found


def _add_role(found: Found, one: RoleSums, min_count: int) -> None:
    for kind, names in KINDS.items():
        bucket = one.bucket(names)
        if bucket is not None and int(bucket.count) >= min_count:
            found.vectors.append(Vector(one.name, kind, int(bucket.count), mean_of(bucket)))
    if one.name not in {vector.name for vector in found.chosen("fully", "all")}:
        found.few.append(one.name)


def _add_trait(found: Found, one: RoleSums, min_count: int) -> None:
    to, away = one.bucket(("for",)), one.bucket(("against",))
    if to is not None and away is not None and int(to.count) >= min_count:
        found.traits[one.name] = (mean_difference(mean_of(to), mean_of(away)), int(to.count))


def _fully(one: RoleSums) -> Iterator[Sums]:
    yield from (bucket for bucket in (one.bucket(("3",)), one.bucket(("all",))) if bucket is not None)


def _together(defaults: Sequence[RoleSums], half: str | None) -> Sums | None:
    """The default's responses, whatever a judge said of them."""
    merged = None
    for one in defaults:
        merged = one if merged is None else merged.merged(one)
    return None if merged is None else merged.bucket(sorted({name.partition("/")[0] for name in merged.buckets}), half)


def _halves(sums: Sequence[RoleSums], defaults: Sequence[RoleSums], used: set[str],
            ) -> tuple[Float[Tensor, "2 L D"], Float[Tensor, "2 R L D"]] | None:
    of_default = [_together(defaults, half) for half in ("even", "odd")]
    of_roles = [[one.bucket((*KINDS["fully"], *KINDS["all"]), half) for half in ("even", "odd")] for one in sums
                if one.kind == "role" and one.name in used]
    both = [pair for pair in of_roles if None not in pair]
    if None in of_default or not both:
        return None
    return (torch.stack([mean_of(half) for half in of_default if half is not None]),
            torch.stack([torch.stack([mean_of(half) for half in pair if half is not None]) for pair in both], 1))


@dataclass(frozen=True)
class Space:
    """The space of personas at one block, and how every block compares.

    Attributes:
        layer: the block.
        components: of the vectors there.
        table: what `space.json` holds.
    """

    layer: int
    components: Components | None
    table: Mapping[str, Any]


def space_of(found: Found, layer: int, *, rows: Rows, scale: Scale) -> Space:
    """Components, loadings and reliability.

    Args:
        found: the vectors.
        layer: block of everything that is not told by block.
        rows: vectors that span the space.
        scale: whether each centred vector counts at length 1.
    """
    axis, role_mean = found.axis, found.role_mean
    kinds = ("fully", "somewhat", "all") if rows == "fully_and_somewhat" else ("fully", "all")
    stacked = torch.stack([one.mean for one in found.chosen(*kinds)])
    per_layer = [_components(stacked[:, at], axis[at], scale) for at in range(len(axis))]
    at = per_layer[layer]
    variance = at.variance_share.tolist() if at is not None else []
    along = unit(axis[layer])
    zero = project(role_mean[layer], along)
    means = torch.stack([one.mean[layer] for one in found.vectors] + [found.default[layer]])
    placed = _placed(means, at)
    projections = (project(means, along) - zero).tolist()
    halves = split_half_cosine(*found.halves).tolist() if found.halves is not None else None
    table = {
        "layer": layer, "n_layers": len(axis),
        "cosine_pc1": [None if one is None else float(cosine(axis[i], one.directions[0]))
                       for i, one in enumerate(per_layer)],
        "axis_norm": axis.norm(dim=-1).tolist(),
        "split_half": halves if halves is not None else [None] * len(axis),
        "whole_cosine": whole_cosine(torch.tensor(halves)).tolist() if halves is not None else [None] * len(axis),
        "token_norm": found.token_norm.tolist(), "variance": variance,
        "components_for": {f"{share:g}": components_needed(at.variance_share, share) for share in SHARES}
        if at is not None else {}, "default_explained": _explained(found.kept, at),
        "vectors": [{"name": one.name, "kind": one.kind, "n": one.n, "projection": p, **where}
                    for one, p, where in zip(found.vectors, projections, placed, strict=False)],
        "default": {"n": found.n_default, "projection": projections[-1], **placed[-1]},
        "counts": found.counts, "default_range": _range(project(found.kept, along)),
        "traits": [{"name": name, "cosine": float(cosine(vector[layer], axis[layer])), "n": n}
                   for name, (vector, n) in found.traits.items()],
        "rows": rows, "scale": scale, "role_mean_projection": float(zero)}
    return Space(layer, at, table)


def _components(rows: Float[Tensor, "N D"], axis: Float[Tensor, " D"], scale: Scale) -> Components | None:
    """Components that point to the Assistant; none of a single vector, or of vectors that are all the same."""
    if len(rows) < 2 or bool((rows == rows[0]).all()):
        return None
    found = principal_components(rows, scale="none" if scale == "as_is" else scale, towards=axis)
    # As many as there are differences between rows; the last one of N centred rows has no variance.
    n = min(len(rows) - 1, rows.shape[1])
    return Components(found.mean, found.directions[:n], found.variance_share[:n], found.coordinates[:, :n],
                      found.centre)


def _placed(means: Float[Tensor, "N D"], at: Components | None) -> list[dict[str, list[float]]]:
    """Coordinates and cosines on the first components, from the mean of the vectors that span the space.

    Where those count at length 1, so does every vector that is placed; its cosines are those of the vector itself.
    """
    if at is None:
        return [{"coordinates": [], "cosines": []} for _ in means]
    shown = at.directions[:SHOWN]
    coordinates = coordinates_of(at, means)[:, :SHOWN]
    cosines = cosine((means - at.mean)[:, None], shown[None])
    return [{"coordinates": a, "cosines": b} for a, b in zip(coordinates.tolist(), cosines.tolist(), strict=True)]


def _explained(kept: Float[Tensor, "N D"], at: Components | None) -> float | None:
    """Share of the variance of the default's responses within the space; none of a single one, or of equal ones."""
    if at is None or not len(kept) or bool((kept == kept[0]).all()):
        return None
    return explained_share(kept, at.directions)


def _range(projections: Float[Tensor, " N"]) -> dict[str, float] | None:
    if not len(projections):
        return None
    low, high = torch.quantile(projections.double(), torch.tensor([LOW, HIGH], dtype=torch.float64)).tolist()
    return {"low": low, "high": high}
