"""Losses on pairs of scores."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from keel.functional.masked import Stats, wide

__all__ = ["bradley_terry", "centring"]


def bradley_terry(
    chosen_scores: Float[Tensor, " B"], rejected_scores: Float[Tensor, " B"], *,
    margin: Float[Tensor, " B"] | None = None, label_prob: Float[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, " B"], Stats]:
    """Negative log-likelihood of a preference under Bradley-Terry, one value per pair.

        loss = -p log sigmoid(d - m) - (1 - p) log sigmoid(m - d),    d = chosen - rejected

    Source: arXiv:2401.06080, Eq. 1-4 (soft label p, margin m); p = 1 and m = 0 give arXiv:2307.04964, Eq. 1.

    Args:
        chosen_scores: score of the preferred response.
        rejected_scores: score of the other one.
        margin: gap asked of d; none is 0.
        label_prob: probability that chosen is really the better one; none is 1.
    Returns:
        The loss per pair in nats; and per pair `accuracy` (1 where d > 0, without the margin; a tie is wrong) and
        `margin` (d).
    """
    gap = wide(chosen_scores) - wide(rejected_scores)
    x = gap if margin is None else gap - wide(margin.detach())
    stats = {"accuracy": (gap > 0).to(gap.dtype), "margin": gap.detach()}
    if label_prob is None:
        return -logsigmoid(x), stats
    p = wide(label_prob.detach())
    return -p * logsigmoid(x) - (1 - p) * logsigmoid(-x), stats


def centring(chosen_scores: Float[Tensor, " B"], rejected_scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Squared sum of a pair's scores: pulls the free constant of Bradley-Terry to zero.

    Source: arXiv:2312.09244, Eq. 2.
    """
    return (wide(chosen_scores) + wide(rejected_scores)).square()
