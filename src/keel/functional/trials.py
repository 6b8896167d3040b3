"""Trials over seeds: are paired differences more than chance, tested exactly by turning their signs."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["sign_flip_test"]

MOST_SEEDS = 20
DECIMALS = 9
"""Kept of a sum: the same numbers added in another order are equal to this many, and so tie."""


def sign_flip_test(differences: Float[Tensor, "S K"]) -> Float[Tensor, " K"]:
    """Two-sided p values of K comparisons over S seeds: how easily chance alone gives differences this one-sided.

    If a comparison makes no difference, each seed's difference is as likely as its negative. All 2^S ways to turn the
    signs of the seeds, the same for every comparison, give u_k = |sum_s(x_sk)|, and p is the share of them whose
    largest u reaches the one observed; the comparisons share a unit. Comparisons are taken from the largest u down,
    each against those not yet taken (step-down), so that with probability 1 - p not one of the K is called a
    difference by mistake. A single comparison is Fisher's exact test. No p is below 2 / 2^S.

    Source: Fisher 1935, "The Design of Experiments", section 21 (turning signs); Westfall and Young 1993,
        "Resampling-Based Multiple Testing", Algorithm 2.8 (step-down, largest statistic).
    Args:
        differences: one per seed and comparison.
    Returns:
        The p values, float64; 1 for a comparison whose differences are all zero.
    Raises:
        ValueError: no seed or too many to try all signs, or a difference that is not finite.
    """
    n = differences.shape[0]
    if not 0 < n <= MOST_SEEDS:
        raise ValueError(f"{n} seeds: all 2^S ways to turn signs are tried for 1 to {MOST_SEEDS} seeds")
    if not bool(differences.isfinite().all()):
        raise ValueError("a difference is not finite: a seed that has no number has no sign to turn")
    x = differences.to(torch.float64)
    largest = x.abs().max()
    x = torch.where(largest > 0, x / largest, 0.0)  # so that it has this many decimals
    ways = 1 - 2 * (torch.arange(2**n)[:, None] >> torch.arange(n) & 1)
    u = (ways.to(torch.float64) @ x).abs().round(decimals=DECIMALS)
    seen = x.sum(0).abs().round(decimals=DECIMALS)
    order = seen.argsort(descending=True)
    left = u[:, order].flip(1).cummax(1).values.flip(1)  # the largest of this comparison and those below it
    reached = (left >= seen[order]).to(torch.float64).mean(0, keepdim=True)
    return reached.cummax(1).values.flatten()[order.argsort()]
