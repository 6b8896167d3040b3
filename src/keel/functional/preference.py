"""Losses on scores that annotators compared, ranked or graded."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from keel.functional.masked import Stats, wide

__all__ = ["all_pairs", "attribute_error", "bradley_terry", "centring", "eps_sigmoid", "plackett_luce"]


def bradley_terry(
    chosen_scores: Float[Tensor, " B"], rejected_scores: Float[Tensor, " B"], *,
    margin: Float[Tensor, " B"] | None = None, label_prob: Float[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, " B"], Stats]:
    """Negative log-likelihood of a preference under Bradley-Terry, one value per pair.

        loss = -p log sigmoid(d - m) - (1 - p) log sigmoid(m - d),    d = chosen - rejected

    Source: arXiv:2401.06080, Eq. 2, Eq. 5 (soft label p = 1 - alpha) and Eq. 6 (margin m); p = 1 and m = 0 give
    arXiv:2307.04964, Eq. 1.

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


def eps_sigmoid(
    chosen_scores: Float[Tensor, " B"], rejected_scores: Float[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """-log(sigmoid(d) + 1e-5), as the code of the report computes it; for parity runs only.

    It is capped at 11.51, falls a little below 0 for large d, and gives pairs with d below about -11.5 no gradient.
    Source: the code released with arXiv:2401.06080.
    """
    gap = wide(chosen_scores) - wide(rejected_scores)
    return -(gap.sigmoid() + 1e-5).log()


def plackett_luce(
    scores: Float[Tensor, "B N"], present: Bool[Tensor, "B N"], tied: Bool[Tensor, "B N"],
) -> Float[Tensor, " B"]:
    """Negative log-likelihood of a ranking, best first: at each place the best of those left is picked.

        loss = sum_k [logsumexp_{j >= k} s_j - s_k]

    Tied responses are averaged over the orders of neighbours: the loss of a ranking with ties is the mean over all
    orders that agree with it where a tie has two members, and the mean of the given and the reversed order of the tied
    ones where it has more.
    Source: Plackett 1975, "The Analysis of Permutations", section 3; Luce 1959; two responses give Bradley-Terry.

    Args:
        scores: in the order of the ranking, padded on the right.
        present: False where there is no response; such a score is invisible, even NaN.
        tied: True where a response is as good as the one before it.
    """
    x = wide(scores)
    return (_placed(x, present) + _placed(x.gather(1, _ties_turned(tied & present)), present)) / 2


def _placed(scores: Float[Tensor, "B N"], present: Bool[Tensor, "B N"]) -> Float[Tensor, " B"]:
    # Far below any score, yet finite: a sum of exponentials over minus infinity alone has no gradient.
    nothing = torch.finfo(scores.dtype).min
    left = torch.where(present, scores, nothing).flip(1).logcumsumexp(1).flip(1)
    return torch.where(present, left - scores, 0.0).sum(1)


def _ties_turned(tied: Bool[Tensor, "B N"]) -> Int[Tensor, "B N"]:
    """The order in which every run of ties stands the other way round."""
    n = tied.shape[1]
    place = torch.arange(n, device=tied.device).expand(tied.shape)
    first = torch.where(tied, 0, place).cummax(1).values
    ends = torch.where(tied.roll(-1, 1), n - 1, place)
    last = ends.flip(1).cummin(1).values.flip(1)
    return first + last - place


def all_pairs(
    scores: Float[Tensor, "B N"], present: Bool[Tensor, "B N"], tied: Bool[Tensor, "B N"],
) -> Float[Tensor, " B"]:
    """Mean Bradley-Terry loss over all pairs of a ranking, best first; tied pairs are left out.

        loss = mean_{i < j, not tied} softplus(s_j - s_i)

    Source: Ouyang et al. 2022, arXiv:2203.02155, Eq. 1.

    Args:
        scores: in the order of the ranking, padded on the right.
        present: False where there is no response; such a score is invisible, even NaN.
        tied: True where a response is as good as the one before it.
    Returns:
        One loss per ranking; 0 where all its responses tie.
    """
    x = torch.where(present, wide(scores), 0.0)
    level = (~tied).cumsum(1)
    better = (level[:, :, None] < level[:, None, :]) & present[:, None, :]
    loss = torch.where(better, softplus(x[:, None, :] - x[:, :, None]), 0.0)
    return loss.flatten(1).sum(1) / better.flatten(1).sum(1).clamp_min(1)


def attribute_error(
    predicted: Float[Tensor, "B A"], target: Float[Tensor, "B A"], present: Bool[Tensor, "B A"],
) -> Float[Tensor, " B"]:
    """Squared error summed over the attributes that a response was graded on.

    Source: Wang et al. 2023 (HelpSteer), arXiv:2311.09528, section 3 (attribute regression); the caller divides by the
    number of grades present in the whole step.

    Args:
        predicted: one number per attribute.
        target: the grades, detached here; invisible where absent, even NaN.
        present: True where there is a grade.
    """
    # Masked before the square: its derivative at a missing grade would be 0 times NaN.
    return torch.where(present, wide(predicted) - target.detach(), 0.0).square().sum(1)
