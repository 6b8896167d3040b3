"""Directions in the residual stream: found from means, read by a projection, and used to change hidden states.

A direction is used at unit length, in float32, whatever format the model computes in. The sums below are products and
`sum`, no matrix products: under autocast those would be done in bfloat16.
"""

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from keel.functional.masked import Stats, wide

__all__ = [
    "Components", "ablate", "add", "anchor_loss", "bound", "bound_jointly", "cosine", "mean_difference",
    "principal_components", "project", "random_directions", "slope", "token_means", "unit",
]

MOST_JOINT = 4
"""Directions that can be bounded at once: every way to be free, low or high is tried, 81 of them."""
JOINT_ERROR = 1e-9
"""By which a solution may miss a bound or have a force of the wrong sign, relative to the projections; in float64."""


# --- reading


def unit(direction: Float[Tensor, "*S D"]) -> Float[Tensor, "*S D"]:
    """The direction at length 1, in float32.

    Source: arXiv:2601.10387, section 5 of our spec (projections are on the axis over its norm).
    Raises:
        ValueError: a direction is zero or not finite.
    """
    exact = direction.detach().double()
    length = exact.norm(dim=-1, keepdim=True)
    if not bool(((length > 0) & length.isfinite()).all()):
        raise ValueError("a direction without a length: it is zero or not finite, and points nowhere")
    return (exact / length).to(wide(direction).dtype)


def project(hidden: Float[Tensor, "*S D"], unit: Float[Tensor, " D"]) -> Float[Tensor, "*S"]:
    """<h, u>: how far each state lies along u, in float32.

    Source: arXiv:2601.10387, section 5 of our spec (package, transcripts and monitor: raw h, no centring).
    """
    return (wide(hidden) * unit).sum(-1)


def cosine(a: Float[Tensor, "*#S D"], b: Float[Tensor, "*#S D"]) -> Float[Tensor, "*#S"]:
    """Cosine of the angle between two directions; 0 where one of them is zero.

    Source: arXiv:2601.10387, section 4 of our spec (cosine of axis and components, of role vectors and components).
    """
    x, y = a.detach().double(), b.detach().double()
    lengths = x.norm(dim=-1) * y.norm(dim=-1)
    return torch.where(lengths > 0, (x * y).sum(-1) / lengths, 0.0).clamp(-1.0, 1.0)


# --- changing


def add(
    hidden: Float[Tensor, "*S D"], vector: Float[Tensor, " D"], coef: Float[Tensor, "*#S"] | float,
) -> Float[Tensor, "*S D"]:
    """h + c v, rounded once to the format of h; where c is 0, h keeps its bits.

    Source: arXiv:2601.10387, section 7 of our spec (steering; v is not normalised).
    """
    size = torch.as_tensor(coef, dtype=wide(hidden).dtype, device=hidden.device)[..., None]
    return torch.where(size != 0, (wide(hidden) + size * wide(vector)).to(hidden.dtype), hidden)


def bound(
    hidden: Float[Tensor, "*S D"], unit: Float[Tensor, " D"], *, lower: Float[Tensor, "*#S"] | float | None = None,
    upper: Float[Tensor, "*#S"] | float | None = None,
) -> tuple[Float[Tensor, "*S D"], Float[Tensor, "*S"]]:
    """The nearest state whose projection is within [lower, upper]; a state that is within keeps its bits.

        h <- h + m u,    m = lower - <h, u> below, upper - <h, u> above, 0 between

    Source: arXiv:2601.10387, section 8 of our spec (activation capping; with u pointing to the Assistant the paper's
        cap is a lower bound).

    Args:
        hidden: states; a NaN is left alone.
        unit: as from `unit`.
        lower, upper: a number, or one for each state; none, or an infinite one: no bound. Where a table's lower bound
            is above the upper one, a state below it goes to the lower bound.
    Returns:
        The states in the format they came in, so that the bound holds up to the rounding of that format; and m.
    Raises:
        ValueError: lower and upper are numbers, and lower is above upper.
    """
    if isinstance(lower, int | float) and isinstance(upper, int | float) and lower > upper:
        raise ValueError(f"lower={lower} is above upper={upper}: no projection is within both bounds")
    p = project(hidden, unit)
    low = torch.as_tensor(-torch.inf if lower is None else lower, dtype=p.dtype, device=p.device)
    high = torch.as_tensor(torch.inf if upper is None else upper, dtype=p.dtype, device=p.device)
    moved = torch.where(p < low, low - p, torch.where(p > high, high - p, 0.0))
    # Adding 0 u would keep the value but not the sign of -0.0.
    changed = (wide(hidden) + moved[..., None] * unit).to(hidden.dtype)
    return torch.where((moved != 0)[..., None], changed, hidden), moved


def bound_jointly(
    hidden: Float[Tensor, "*S D"], units: Float[Tensor, "K D"], *, lower: Float[Tensor, "*#S K"],
    upper: Float[Tensor, "*#S K"],
) -> tuple[Float[Tensor, "*S D"], Float[Tensor, "*S K"]]:
    """The nearest state whose projections on K directions are all within their bounds; in any order the same.

    Bounds that act one after the other depend on the order and can break an earlier one. Here the forces f of
    h + sum_k f_k u_k solve the quadratic programme: every way for each direction to be free, at its lower bound
    (f >= 0) or at its upper one (f <= 0) is tried, and the one that satisfies all conditions is the nearest point.
    Source: arXiv:2601.10387, section 8 of our spec (several vectors on one layer); the conditions: Karush 1939, Kuhn
        and Tucker 1951, "Nonlinear Programming".

    Args:
        hidden: states; a NaN is left alone.
        units: at length 1 each.
        lower, upper: one for each direction, or for each state and direction; infinite: no bound.
    Returns:
        The states in the format they came in, those within all bounds bit for bit; and how far each projection moved.
    Raises:
        ValueError: more than four directions, or bounds that no state satisfies.
    """
    n = len(units)
    if n > MOST_JOINT:
        raise ValueError(f"{n} directions on one layer: at most {MOST_JOINT} can be bounded jointly")
    axes = units.double()
    gram = (axes[:, None] * axes).sum(-1)
    p = torch.stack([project(hidden, axis) for axis in units], -1).double()
    low, high = (x.to(p).expand_as(p) for x in (lower, upper))
    force, miss = torch.zeros_like(p), _outside(p, low, high).amax(-1)
    for sides in product((0, 1, -1), repeat=n):
        active = [k for k in range(n) if sides[k]]
        if not active:
            continue
        side = p.new_tensor([sides[k] for k in active])
        gap = torch.where(side > 0, low[..., active], high[..., active]) - p[..., active]
        # The pseudo-inverse: directions may be parallel, and then a smaller set of them solves it.
        some = (gap[..., None, :] * torch.linalg.pinv(gram[active][:, active], hermitian=True)).sum(-1)
        trial = torch.zeros_like(p).index_copy(-1, torch.tensor(active, device=p.device), some)
        reached = p + (trial[..., None, :] * gram).sum(-1)
        wrong = torch.maximum(_outside(reached, low, high).amax(-1), (-side * some).clamp_min(0.0).amax(-1))
        better = some.isfinite().all(-1) & (wrong < miss)
        force, miss = torch.where(better[..., None], trial, force), torch.where(better, wrong, miss)
    if bool((miss > JOINT_ERROR * (1 + p.abs().amax(-1).nan_to_num(0.0))).any()):
        raise ValueError("no state satisfies all bounds: directions that are parallel have bounds without overlap")
    changed = wide(hidden)
    for k in range(n):
        changed = changed + force[..., k, None].to(changed.dtype) * units[k]
    moved = (force[..., None, :] * gram).sum(-1).to(changed.dtype)
    return torch.where((force != 0).any(-1, keepdim=True), changed.to(hidden.dtype), hidden), moved


def _outside(
    p: Float[Tensor, "*S K"], low: Float[Tensor, "*S K"], high: Float[Tensor, "*S K"],
) -> Float[Tensor, "*S K"]:
    """By how much each projection breaks its bounds; a NaN breaks none."""
    return torch.where(p < low, low - p, torch.where(p > high, p - high, 0.0))


def ablate(
    hidden: Float[Tensor, "*S D"], unit: Float[Tensor, " D"], *, target: Float[Tensor, "*#S"] | float = 0.0,
) -> Float[Tensor, "*S D"]:
    """h - <h, u> u + target u: every projection becomes the target, all that is across u stays.

    Source: arXiv:2601.10387, section 7 of our spec (ablation; with a target it sets the projection).
    """
    p = project(hidden, unit)
    return (wide(hidden) + (target - p)[..., None] * unit).to(hidden.dtype)


def random_directions(like: Float[Tensor, "*S D"], generator: torch.Generator) -> Float[Tensor, "*S D"]:
    """Directions drawn evenly from the sphere, each as long as the one it stands in for: the control of an effect.

    Source: arXiv:2601.10387, section 15 of our spec (the control of design 1); normal draws: Muller 1959, "A Note on a
        Method for Generating Points Uniformly on N-Dimensional Spheres".
    """
    drawn = torch.randn(like.shape, generator=generator)
    length = like.detach().double().norm(dim=-1, keepdim=True)
    return (drawn / drawn.norm(dim=-1, keepdim=True)).to(like.device).mul(length).to(wide(like).dtype)


def anchor_loss(
    projections: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], *, floor: float, spread: float,
) -> tuple[Float[Tensor, "B T"], Stats]:
    """Squared shortfall below a floor, in units of the usual spread; zero above the floor and outside the mask.

        loss_t = relu(floor - p_t)^2 / spread^2

    Source: section 15 of our spec, design 1 (one layer; several are added). It follows no paper.

    Args:
        projections: of the states at one layer, under the policy being trained.
        response_mask: True on response tokens.
        floor: below it the state is pulled back; fixed before training.
        spread: standard deviation of the projections of default responses; > 0.
    Returns:
        The loss per token; and per token `anchor/below` (1 where the projection is under the floor).
    Raises:
        ValueError: spread is not above 0.
    """
    if spread <= 0:
        raise ValueError(f"spread={spread} is not above 0: a shortfall is measured in standard deviations")
    short = torch.where(response_mask, floor - wide(projections), 0.0).relu() / spread
    return short.square(), {"anchor/below": (short.detach() > 0).to(short.dtype)}


# --- finding


def token_means(hidden: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """Mean state of each row over the tokens where mask is True, summed in float32; zeros for a row without any.

    Source: arXiv:2601.10387, section 3 of our spec (mean over the tokens of a response).
    """
    # Masked in the format of the states: a float32 copy of a whole layer is the largest thing extraction would hold.
    kept = torch.where(mask[..., None], hidden, 0.0).sum(1, dtype=torch.promote_types(hidden.dtype, torch.float32))
    return kept / mask.sum(1, keepdim=True).clamp_min(1)


def mean_difference(default: Float[Tensor, "*N L D"], roles: Float[Tensor, "*R L D"]) -> Float[Tensor, "L D"]:
    """Mean of the default vectors less mean of the role vectors, per layer: it points to the Assistant.

    Source: arXiv:2601.10387, section 1 of our spec, item 4 (the Assistant Axis; roles weigh the same).
    """
    to, away = (x.double().flatten(0, -3).mean(0) if x.ndim > 2 else x.double() for x in (default, roles))
    return (to - away).to(torch.promote_types(wide(default).dtype, wide(roles).dtype))


@dataclass(frozen=True)
class Components:
    """Principal components of rows.

    Attributes:
        mean: [D], subtracted from the rows.
        directions: [K D], orthonormal, largest variance first.
        variance_share: [K], of the whole variance.
        coordinates: [N K], of the rows that they were found from.
        centre: [D], subtracted from rows once they have length 1; None: rows are not scaled.
    """

    mean: Tensor
    directions: Tensor
    variance_share: Tensor
    coordinates: Tensor
    centre: Tensor | None = None


def principal_components(
    rows: Float[Tensor, "N D"], *, centre: str = "mean", scale: str = "none",
    towards: Float[Tensor, " D"] | None = None,
) -> Components:
    """All principal components of the rows.

    Source: arXiv:2601.10387, section 4 of our spec (persona space: role vectors, centred, not scaled).

    Args:
        rows: role vectors at one layer.
        centre: "mean" subtracts the mean over rows; "none" leaves the origin where it is.
        scale: "none", or "unit_rows": each centred row at length 1, centred once more; rows of length 0 stay there.
        towards: each component is turned so that its product with it is not negative; none: so that its coordinate
            furthest from 0 is positive.
    Raises:
        ValueError: fewer than two rows, rows that do not vary, or another centre or scale.
    """
    if centre not in ("mean", "none") or scale not in ("none", "unit_rows"):
        raise ValueError(f"centre={centre!r}, scale={scale!r}: centre is mean or none, scale is none or unit_rows")
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} rows: components show how rows differ, and need two of them")
    exact = rows.detach().double()
    mean = exact.mean(0) if centre == "mean" else torch.zeros_like(exact[0])
    x = exact - mean
    again = None
    if scale == "unit_rows":
        x = torch.nn.functional.normalize(x, dim=-1)
        again = x.mean(0) if centre == "mean" else torch.zeros_like(mean)
        x = x - again
    _, sizes, directions = torch.linalg.svd(x, full_matrices=False)
    if not bool(sizes[0] > 0):
        raise ValueError("the rows do not vary: all are the same, and have no components")
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))[:, 0]
    side = largest if towards is None else (directions * towards.double()).sum(-1)
    directions = torch.where(side < 0, -1.0, 1.0)[:, None] * directions
    share = sizes.square() / sizes.square().sum()
    dtype = wide(rows).dtype
    return Components(mean.to(dtype), directions.to(dtype), share.to(dtype), (x @ directions.T).to(dtype),
                      None if again is None else again.to(dtype))


def slope(turns: Float[Tensor, " P"], values: Float[Tensor, "*S P"]) -> Float[Tensor, "*S"]:
    """Least squares slope of values on turns: change per turn, or per token where those are counted.

    A NaN is left out; the slope of fewer than two turns is NaN.
    Source: arXiv:2601.10387, section 9 of our spec (trajectories over turns); Legendre 1805 (least squares).
    """
    known = ~values.isnan()
    n = known.sum(-1, keepdim=True)
    y = torch.where(known, values.detach().double(), 0.0)
    x = torch.where(known, turns.double(), 0.0)
    across = torch.where(known, x - x.sum(-1, keepdim=True) / n, 0.0)
    size = across.square().sum(-1)
    return torch.where(size > 0, (across * y).sum(-1) / size, torch.nan)
