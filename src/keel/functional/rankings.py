"""How well scores put responses in the order in which people put them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Order", "order_of"]


@dataclass(frozen=True)
class Order:
    """Counts for each ranking; an ordered pair is two of its responses that do not tie.

    Attributes:
        right: ordered pairs whose better response scores higher.
        wrong: ordered pairs whose better response scores lower; an equal score is neither.
        pairs: ordered pairs.
        top: 1 where a response of the best rank scores higher than all of lower rank.
    """

    right: Float[Tensor, " B"]
    wrong: Float[Tensor, " B"]
    pairs: Float[Tensor, " B"]
    top: Float[Tensor, " B"]

    @property
    def tau(self) -> Float[Tensor, " B"]:
        """(right - wrong) / pairs: 1 for the same order, -1 for the opposite one; 0 without an ordered pair.

        Source: Kendall 1938, "A New Measure of Rank Correlation", section 2; pairs that people tied are left out.
        """
        return (self.right - self.wrong) / self.pairs.clamp_min(1)


def order_of(scores: Float[Tensor, "B N"], present: Bool[Tensor, "B N"], tied: Bool[Tensor, "B N"]) -> Order:
    """Compare scores with rankings.

    Source: Kendall 1938, "A New Measure of Rank Correlation", section 2 (concordant and discordant pairs); pairs of a
        ranking: Ouyang et al. 2022, arXiv:2203.02155, section 3.5.

    Args:
        scores: in the order of the ranking, best first, padded on the right.
        present: False where there is no response; such a score is invisible, even NaN.
        tied: True where a response is as good as the one before it.
    """
    level = (~tied).cumsum(1)
    # Padding is on the right: where the worse of two is present, so is the better one.
    better = (level[:, :, None] < level[:, None, :]) & present[:, None, :]
    one, other = scores[:, :, None], scores[:, None, :]
    right, wrong, pairs = ((better & found).flatten(1).sum(1).double() for found in (one > other, one < other, better))
    best, nothing = level == level[:, :1], torch.finfo(scores.dtype).min
    highest, next_best = (torch.where(present & which, scores, nothing).amax(1) for which in (best, ~best))
    return Order(right, wrong, pairs, (highest > next_best).double())
