"""Sums, means and moments over the True part of a mask. What lies under False is invisible, even NaN."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Moments", "Stats", "loss_weights", "masked_mean", "masked_sum", "merge_moments", "no_moments",
           "row_sums", "weighted_sum", "whiten", "wide"]

Stats = dict[str, Tensor]
Moments = Float[Tensor, "3"]
"""Count, mean and sum of squared deviations of everything seen so far, in float64."""


def wide(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """At least float32, whatever the model computes in. Source: arXiv:2307.04964; section 14, item 11 of our spec."""
    return x if x.dtype == torch.float64 else x.float()


def masked_sum(x: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]) -> Float[Tensor, ""]:
    """Sum of x where mask is True. Source: Zheng et al. 2023, arXiv:2307.04964, section 7 of our spec (token means)."""
    return torch.where(mask, wide(x), 0.0).sum()


def row_sums(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Sum of each row where mask is True: nats of a response from nats of its tokens. Source: as `masked_sum`."""
    return torch.where(mask, wide(x), 0.0).sum(1)


def masked_mean(x: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]) -> Float[Tensor, ""]:
    """Mean of x where mask is True; 0 where nothing is. Source: arXiv:2307.04964, token means of section 5."""
    return masked_sum(x, mask) / mask.sum().clamp_min(1)


def weighted_sum(x: Float[Tensor, "*S"], weights: Float[Tensor, "*S"]) -> Float[Tensor, ""]:
    """Sum of x times its weight; where the weight is 0, x is invisible, even NaN.

    Source: arXiv:2307.04964, token means of section 5, with the weights of `loss_weights`.
    """
    return torch.where(weights > 0, wide(x) * weights.detach(), 0.0).sum()


def loss_weights(
    response_mask: Bool[Tensor, "B T"], counted: Bool[Tensor, " B"], *, reduction: str,
) -> Float[Tensor, "B T"]:
    """What each token weighs in a loss: 0 outside responses and in rows that do not count.

    Source: `token`, every token the same: arXiv:2307.04964, section 5; `sequence`, every response the same:
    GRPO, arXiv:2402.03300, Eq. 3 (a mean over the tokens of each response, then over responses).

    Args:
        response_mask: True on response tokens.
        counted: False for responses that the loss leaves out.
        reduction: "token" or "sequence".
    Raises:
        ValueError: another reduction.
    """
    if reduction not in ("token", "sequence"):
        raise ValueError(f"reduction={reduction!r} is neither 'token' nor 'sequence'")
    weights = (response_mask & counted[:, None]).float()
    return weights if reduction == "token" else weights / weights.sum(1, keepdim=True).clamp_min(1)


def whiten(
    x: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], *, center: bool = True,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "*S"]:
    """Scale to unit (biased) variance over the mask and, with `center`, subtract the mean; zero outside the mask.

        y = (x - mean) / sqrt(var + 1e-6)

    Source: arXiv:2307.04964, section 5 (advantage normalisation); epsilon and biased variance as in MOSS-RLHF.

    Args:
        x: detached here; NaN under the mask is invisible.
        mask: True where x counts.
        center: subtract the mean; the variance is about the mean either way.
        reduce: turns the sums of this rank into those of all ranks; none: there is one rank.
    """
    x = wide(x.detach())
    everywhere = reduce or torch.clone
    # An empty mask divides by zero here, and no position shows the result.
    total, count = everywhere(torch.stack([masked_sum(x, mask), mask.sum()]))
    mean = total / count
    variance = everywhere(masked_sum((x - mean).square(), mask)) / count
    scale = (variance + 1e-6).rsqrt()
    return torch.where(mask, (x - mean) * scale if center else x * scale, 0.0)


def no_moments() -> Moments:
    """The moments of nothing. Source: Chan, Golub, LeVeque 1983, Eq. 2.1."""
    return torch.zeros(3, dtype=torch.float64)


def merge_moments(seen: Moments, x: Float[Tensor, " N"]) -> Moments:
    """Moments of everything seen before and of x together.

    Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", Eq. 2.1; used for the running
    score statistics of arXiv:2307.04964, section 5.
    """
    x = x.detach().to(seen.device, torch.float64)
    if x.numel() == 0:
        return seen.clone()
    n_old, mean_old, m2_old = seen
    n_new, mean_new = x.numel(), x.mean()
    n, gap = n_old + n_new, mean_new - mean_old
    m2 = m2_old + (x - mean_new).square().sum() + gap.square() * n_old * n_new / n
    return torch.stack([n, mean_old + gap * n_new / n, m2])
