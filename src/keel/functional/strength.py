"""Preference strength: how far an ensemble of reward models stands behind each label."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Votes", "lowest", "quantile_of", "ranks", "votes"]

EPS = 1e-6


@dataclass(frozen=True)
class Votes:
    """Statistics over the K members, one per pair.

    Attributes:
        mean: of the difference of scores; below 0 the ensemble sides against the label.
        std: of the differences, divisor K.
        share_for: share of the members whose difference is above 0.
        z: mean / (std + 1e-6).
    """

    mean: Float[Tensor, " N"]
    std: Float[Tensor, " N"]
    share_for: Float[Tensor, " N"]
    z: Float[Tensor, " N"]


def votes(
    chosen_scores: Float[Tensor, "K N"], rejected_scores: Float[Tensor, "K N"], *, one_scale: bool = False,
) -> Votes:
    """Mean and spread of the members' differences d_ik = chosen - rejected.

        mean_i = (1/K) sum_k d_ik,    std_i = sqrt((1/K) sum_k (d_ik - mean_i)^2)

    Source: arXiv:2401.06080, Eq. 4.

    Args:
        chosen_scores: of each member.
        rejected_scores: of each member.
        one_scale: divide each member's differences by their standard deviation over the pairs first.
    Raises:
        ValueError: with one_scale, a member has the same difference for every pair.
    """
    gap = chosen_scores.detach().double() - rejected_scores.detach().double()
    if one_scale:
        for member, same in enumerate((gap == gap[:, :1]).all(1)):
            if same:
                raise ValueError(f"member {member} has the same difference for every pair and so no scale: leave it "
                                 f"out of the vote, or vote without one_scale")
        gap = gap / gap.std(1, correction=0, keepdim=True)
    mean, std = gap.mean(0), gap.std(0, correction=0)
    return Votes(mean, std, (gap > 0).double().mean(0), mean / (std + EPS))


def ranks(strength: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Place of each pair in ascending order of strength, from 0; ties in their original order.

    Source: arXiv:2401.06080, section 2.2 (pairs sorted by mean strength into groups).
    """
    order = strength.argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places


def quantile_of(strength: Float[Tensor, " N"], *, n: int = 10) -> Int[Tensor, " N"]:
    """Which of n groups of equal size, 0 the weakest: floor(rank * n / N).

    Source: arXiv:2401.06080, section 2.2, Figs. 3-5.
    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n={n} groups: take 1 or more; the report's figures have 10 and 20")
    return ranks(strength) * n // len(strength)


def lowest(strength: Float[Tensor, " N"], *, share: float) -> Bool[Tensor, " N"]:
    """True for the floor(share * N) weakest pairs.

    Source: arXiv:2401.06080, section 2.3 (the bottom 10% and 20% of the mean strength).
    Raises:
        ValueError: share is outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is outside 0 to 1: 0.1 names the weakest tenth")
    # 0.29 * 100 is 28.999999999999996 in floating point; a share means the whole number that it names.
    return ranks(strength) < int(share * len(strength) + EPS)
