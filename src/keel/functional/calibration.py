"""How sure a reward model may be: sigmoid(margin) as a probability, its errors, and the temperature that mends it."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from keel.functional.strength import quantile_of

__all__ = ["brier", "equal_mass_calibration_error", "expected_calibration_error", "fit_temperature", "nll",
           "reliability_table"]

LOWEST, HIGHEST = 1e-3, 1e3
"""Temperatures that a fit stays between: where every pair is right, the likelihood asks for none at all."""


def nll(margins: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean of -log sigmoid(margin) in nats; of a fair coin, log 2.

    Source: Guo et al. 2017, arXiv:1706.04599, Eq. 6.
    """
    return softplus(-margins.detach().double()).mean()


def brier(margins: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean squared distance of sigmoid(margin) from 1; of a fair coin, 1/4.

    Source: Brier 1950, "Verification of Forecasts Expressed in Terms of Probability", Eq. 2, for one of the two sides.
    """
    return torch.sigmoid(-margins.detach().double()).square().mean()


def expected_calibration_error(margins: Float[Tensor, " N"], *, n_bins: int = 10) -> Float[Tensor, ""]:
    """Mean gap between stated and actual accuracy over equal-width bins of the winner's probability.

    The stated probability of the higher-scored side is sigmoid(|margin|); it is right where the margin is positive.
    A bin holds its right edge, and the first one also 0.5.
    Source: Guo et al. 2017, arXiv:1706.04599, Eq. 3.
    """
    return _mean_gap(margins, _equal_widths(margins, n_bins), n_bins)


def equal_mass_calibration_error(margins: Float[Tensor, " N"], *, n_bins: int = 10) -> Float[Tensor, ""]:
    """The same over bins that hold equally many pairs, from the least to the most certain; ties in their order.

    Source: Nguyen and O'Connor 2015, arXiv:1508.05154, section 3 (adaptive binning), with Guo et al. 2017, Eq. 3.
    """
    return _mean_gap(margins, quantile_of(margins.abs(), n=n_bins), n_bins)


def reliability_table(margins: Float[Tensor, " N"], *, n_bins: int = 10) -> list[dict[str, float | None]]:
    """The bins of `expected_calibration_error`, least certain first: `low`, `high`, `count`, `confidence`, `accuracy`.

    The means of an empty bin are None.
    Source: Guo et al. 2017, arXiv:1706.04599, Eq. 1-2 (reliability diagrams).
    """
    stated, right = _stated(margins)
    bins = _equal_widths(margins, n_bins)
    rows: list[dict[str, float | None]] = []
    for b in range(n_bins):
        inside = bins == b
        count = int(inside.sum())
        rows.append({"low": 0.5 + 0.5 * b / n_bins, "high": 0.5 + 0.5 * (b + 1) / n_bins, "count": count,
                     "confidence": float(stated[inside].mean()) if count else None,
                     "accuracy": float(right[inside].mean()) if count else None})
    return rows


def fit_temperature(margins: Float[Tensor, " N"]) -> float:
    """The T that makes `nll(margins / T)` smallest, between 1/1000 and 1000.

    Where every pair is right that is 1/1000; where the margins point the wrong way on the whole, 1000.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2 (temperature scaling), on pairs.
    Raises:
        ValueError: there are no margins.
    """
    if margins.numel() == 0:
        raise ValueError("no margins: a temperature is fitted on held-out pairs, give some")
    d = margins.detach().double()
    low, high = math.log(LOWEST), math.log(HIGHEST)
    # The likelihood is convex in 1/T: halve the interval of log T until it is one number.
    while low < (middle := (low + high) / 2) < high:
        colder = float((d * torch.sigmoid(-d / math.exp(middle))).sum()) >= 0
        low, high = (low, middle) if colder else (middle, high)
    return math.exp(middle)


def _stated(margins: Float[Tensor, " N"]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Probability that the higher-scored side is right, and whether it is."""
    return torch.sigmoid(margins.detach().abs().double()), (margins > 0).double()


def _equal_widths(margins: Float[Tensor, " N"], n_bins: int) -> Int[Tensor, " N"]:
    stated, _ = _stated(margins)
    return ((stated - 0.5) * 2 * n_bins).ceil().long().sub(1).clamp_min(0)


def _mean_gap(margins: Float[Tensor, " N"], bins: Int[Tensor, " N"], n_bins: int) -> Float[Tensor, ""]:
    stated, right = _stated(margins)
    gap = stated.new_zeros(n_bins).index_add_(0, bins, stated - right)
    return gap.abs().sum() / max(margins.numel(), 1)
