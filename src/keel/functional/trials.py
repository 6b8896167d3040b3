"""Trials over seeds: are paired differences above zero, tested exactly by turning their signs."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["sign_flip_test"]

MOST_SEEDS = 20
DECIMALS = 9
"""Kept of a statistic: sums of the same numbers in another order are equal to this many, and so tie."""


def sign_flip_test(differences: Float[Tensor, "S K"]) -> Float[Tensor, " K"]:
    """One-sided p values of K comparisons over S seeds: how easily chance alone puts each difference this far above 0.

    If a comparison makes no difference, each seed's difference is as likely as its negative. All 2^S ways to turn the
    signs of the seeds, the same for every comparison, give

        u_k = sum_s(x_sk) / sqrt(sum_s(x_sk^2)),    a rising function of the paired t,

    and p is the share of them whose largest u reaches the one observed. Comparisons are taken from the largest u down,
    each against those not yet taken (step-down), so that with probability 1 - p not one of the K is wrongly called
    positive. A single comparison is Fisher's exact test. No p is below 2^-S.

    Source: Fisher 1935, "The Design of Experiments", section 21 (turning signs); Westfall and Young 1993,
        "Resampling-Based Multiple Testing", Algorithm 2.8 (step-down, largest statistic).
    Args:
        differences: one per seed and comparison, positive where they speak for it.
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
    size = x.norm(dim=0)
    x = torch.where(size > 0, x / size, 0.0)
    turned = torch.arange(2**n)[:, None] >> torch.arange(n) & 1
    u = ((1 - 2 * turned).to(torch.float64) @ x).round(decimals=DECIMALS)  # the first row is the one observed
    order = u[0].argsort(descending=True)
    largest = u[:, order].flip(1).cummax(1).values.flip(1)  # over this comparison and those below it
    reached = (largest >= u[0, order]).to(torch.float64).mean(0, keepdim=True)
    return reached.cummax(1).values.flatten()[order.argsort()]
