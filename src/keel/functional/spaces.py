"""What is known about a direction and the space of personas: running sums, reliability, shares, errors of quantiles."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from keel.functional.directions import Components, cosine, mean_difference
from keel.functional.masked import wide

__all__ = [
    "Sums", "components_needed", "coordinates_of", "explained_share", "mean_of", "merge_sums", "no_sums",
    "quantile_with_error", "split_half_cosine", "sum_rows", "whole_cosine",
]


# --- running sums


@dataclass(frozen=True)
class Sums:
    """Sums over vectors seen so far, in float64; those of two parts added are those of the whole.

    Attributes:
        count: [], vectors.
        total: [L D], their sum.
        squares: [L], sum of their squared lengths.
    """

    count: Tensor
    total: Tensor
    squares: Tensor


def no_sums(n_layers: int, width: int) -> Sums:
    """The sums of nothing. Source: arXiv:2601.10387, section 13 of our spec (streaming)."""
    return Sums(*(torch.zeros(shape, dtype=torch.float64) for shape in [(), (n_layers, width), (n_layers,)]))


def sum_rows(rows: Float[Tensor, "N L D"]) -> Sums:
    """The sums of N vectors. Source: arXiv:2601.10387, section 13 of our spec (count, sum and sum of squares)."""
    x = rows.detach().double()
    count = torch.tensor(float(len(x)), dtype=torch.float64, device=x.device)
    return Sums(count, x.sum(0), x.square().sum((0, 2)))


def merge_sums(first: Sums, second: Sums) -> Sums:
    """The sums of both parts together. Source: arXiv:2601.10387, section 13 of our spec (merging over workers)."""
    return Sums(first.count + second.count, first.total + second.total, first.squares + second.squares)


def mean_of(sums: Sums) -> Float[Tensor, "L D"]:
    """Mean vector per layer, in float32.

    Source: arXiv:2601.10387, section 3 of our spec (role vectors and default vector).
    Raises:
        ValueError: nothing was seen.
    """
    if float(sums.count) == 0:
        raise ValueError("no vectors were added: a mean over nothing points nowhere")
    return (sums.total / sums.count).float()


# --- reliability


def split_half_cosine(
    default_halves: Float[Tensor, "2 L D"], role_halves: Float[Tensor, "2 R L D"],
) -> Float[Tensor, " L"]:
    """Cosine, per layer, of the axis found from one half of the questions with that found from the other half.

    Source: arXiv:2601.10387, section 13 of our spec (even and odd questions); Spearman 1910, "Correlation Calculated
        from Faulty Data" (split halves).

    Args:
        default_halves: mean over default responses, to each half of the questions.
        role_halves: the role vectors of each half.
    """
    first, second = (mean_difference(d, r) for d, r in zip(default_halves, role_halves, strict=True))
    return cosine(first, second)


def whole_cosine(split_half: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Cosine that the axis of both halves together is expected to have with that of endlessly many questions.

        sqrt(2 r / (1 + r)),    0 where the halves do not agree at all

    Half the questions give the axis plus noise n, all of them the axis plus noise of half that variance; r is the
    cosine of two such halves, |a|^2 / (|a|^2 + n^2).
    Source: Spearman 1910, "Correlation Calculated from Faulty Data"; Brown 1910, "Some Experimental Results in the
        Correlation of Mental Abilities" (reliability of the whole; its root is the correlation with the truth).

    Args:
        split_half: r, from `split_half_cosine`.
    """
    r = split_half.clamp_min(0.0)
    return (2 * r / (1 + r)).sqrt()


# --- the space of personas


def coordinates_of(components: Components, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
    """Where other rows lie: their distances from the mean along the components, scaled as the rows of the space were.

    Source: arXiv:2601.10387, section 4 of our spec (the default vector, centred with the mean of the roles).
    """
    x = rows.double() - components.mean.double()
    if components.centre is not None:
        x = torch.nn.functional.normalize(x, dim=-1) - components.centre.double()
    return (x @ components.directions.double().T).to(wide(rows).dtype)


def components_needed(variance_share: Float[Tensor, " K"], share: float) -> int:
    """How many components, largest first, together reach a share of the variance.

    Source: arXiv:2601.10387, section 4 of our spec (4, 8 and 19 components reach 70 %).
    Raises:
        ValueError: share is not within (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share} is outside (0, 1): a share of the variance")
    return min(int((variance_share.double().cumsum(0) < share).sum()) + 1, len(variance_share))


def explained_share(rows: Float[Tensor, "N D"], directions: Float[Tensor, "K D"]) -> float:
    """Share of the rows' variance about their mean that lies within the span of orthonormal directions.

    Source: arXiv:2601.10387, section 4 of our spec (variance of real chat responses within persona space).
    Raises:
        ValueError: the rows are all the same.
    """
    x = rows.detach().double()
    x = x - x.mean(0)
    total = x.square().sum()
    if float(total) == 0:
        raise ValueError("all rows are the same: there is no variance to have a share of")
    return float((x @ directions.double().T).square().sum() / total)


# --- thresholds


def quantile_with_error(
    values: Float[Tensor, " N"], q: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """A quantile of a sample, and its standard error sqrt(q (1 - q) / N) / density.

    The quantile is interpolated between neighbours; the density there is a sum of normal kernels.
    Source: arXiv:2601.10387, sections 8 and 13 of our spec (percentiles of projections, error of a subsample); kernel
        width: Silverman 1986, "Density Estimation", Eq. 3.31.
    Returns:
        Both in float64; the error is 0 where no two values differ.
    Raises:
        ValueError: fewer than two values, one that is not finite, or q outside (0, 1).
    """
    if not 0 < q < 1:
        raise ValueError(f"q={q} is outside (0, 1): a quantile is between the lowest and the highest value")
    if len(values) < 2 or not bool(values.isfinite().all()):
        raise ValueError(f"{len(values)} values: a quantile with an error needs two or more, all finite")
    x = values.detach().double().sort().values
    # By hand: torch.quantile takes 16 million values at most.
    place = q * (len(x) - 1)
    at = torch.lerp(x[math.floor(place)], x[math.ceil(place)], place - math.floor(place))
    quarters = x[round(0.75 * (len(x) - 1))] - x[round(0.25 * (len(x) - 1))]
    deviation = x.std()
    narrow = torch.where(quarters > 0, torch.minimum(deviation, quarters / 1.34), deviation)
    if float(narrow) == 0:
        return at, torch.zeros_like(at)
    kernel = 0.9 * narrow * len(x) ** -0.2
    density = torch.exp(-((x - at) / kernel).square() / 2).mean() / (kernel * (2 * torch.pi) ** 0.5)
    return at, (q * (1 - q) / len(x)) ** 0.5 / density
