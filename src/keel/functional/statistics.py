"""Numbers for people: shares with intervals, who wins, correlations, how much of the returns a critic explains."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from keel.functional.masked import masked_mean

__all__ = [
    "agreed_points", "area_under_curve", "bootstrap_interval", "correlation", "explained_variance", "rank_correlation",
    "repeated_share", "sign_test", "win_points",
]


def bootstrap_interval(
    values: Float[Tensor, " N"], *, generator: torch.Generator, n_resamples: int = 1000, confidence: float = 0.95,
    groups: Int[Tensor, " N"] | None = None,
) -> tuple[float, float, float]:
    """Mean, lower and upper end of its percentile bootstrap interval.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3; groups are resampled whole
        (Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8).

    Args:
        values: what the mean is of.
        generator: of the resamples.
        n_resamples: how many.
        confidence: of the interval.
        groups: numbers from 0 on that tell which values belong together (pairs of one prompt) and are drawn together;
            none: each value stands alone.
    Raises:
        ValueError: there are no values.
    """
    if values.numel() == 0:
        raise ValueError("no values: a mean over nothing has no interval")
    x = values.detach().to(torch.float64)
    sums, counts = x, torch.ones_like(x)
    if groups is not None:
        places = x.new_zeros(int(groups.max()) + 1)
        sums, counts = places.index_add(0, groups, x), places.index_add(0, groups, counts)
    # One resample at a time: the whole table of picks would take gigabytes for a large benchmark.
    n = len(sums)
    picks = (torch.randint(n, (n,), generator=generator) for _ in range(n_resamples))
    means = torch.stack([sums[pick].sum() / counts[pick].sum() for pick in picks])
    tail = (1 - confidence) / 2
    ends = torch.quantile(means, means.new_tensor([tail, 1 - tail]))
    return float(x.mean()), float(ends[0]), float(ends[1])


def explained_variance(
    values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"],
) -> Float[Tensor, ""]:
    """1 - Var(R - V) / Var(R) over the mask: 1 for a perfect critic, 0 for one that knows only the mean.

    Source: Schulman et al. 2016, arXiv:1506.02438, section 6 (value function fit); 0 where the returns do not vary.
    """
    target = returns.detach().double()
    error = target - values.detach()
    spread = masked_mean((target - masked_mean(target, mask)).square(), mask)
    left = masked_mean((error - masked_mean(error, mask)).square(), mask)
    return torch.where(spread > 1e-12, 1 - left / spread, 0.0)


def repeated_share(ids: list[int], *, n: int = 4) -> float:
    """Share of a response's n-grams that occurred earlier in it; 0 for fewer than n tokens.

    Source: Welleck et al. 2020, arXiv:1908.04319, section 4.2 (seq-rep-n).
    """
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def win_points(
    scores: Float[Tensor, " N"], others: Float[Tensor, " N"], *, tie_margin: float = 0.0,
) -> Float[Tensor, " N"]:
    """What each comparison is worth to `scores`: 1 where it wins, 1/2 at a tie, 0 where it loses.

    A tie is a difference of at most `tie_margin` either way. The mean of the points is the win rate.
    Source: Zheng et al. 2023, arXiv:2307.04964, Fig. 10 (win, tie, lose); a tie as a half: Elo 1978, "The Rating of
        Chessplayers".
    Raises:
        ValueError: tie_margin is negative.
    """
    if tie_margin < 0:
        raise ValueError(f"tie_margin={tie_margin} is negative: a pair would win and lose at once")
    gap = scores - others
    return torch.where(gap > tie_margin, 1.0, torch.where(gap < -tie_margin, 0.0, 0.5))


def agreed_points(
    first: Float[Tensor, " N"], second: Float[Tensor, " N"],
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Points of a judge that was asked in both orders: a verdict stands only where both orders give it.

    Source: Zheng et al. 2023, arXiv:2306.05685, section 3.4 (swapping positions; otherwise a tie).
    Args:
        first: probability that our text is the better one, asked with ours in the first place.
        second: the same probability, asked with ours in the second place.
    Returns:
        1, 1/2 or 0 as in `win_points`, a probability of 1/2 being a tie; and where the two orders disagree.
    """
    one = (first - 0.5).sign()
    other = (second - 0.5).sign()
    flipped = one != other
    return torch.where(flipped, 0.5, (one + 1) / 2), flipped


def sign_test(n_win: int, n_lose: int) -> float:
    """Two-sided p value of the exact sign test: how often a fair coin is at least this far from even; ties left out.

    Source: Dixon and Mood 1946, "The Statistical Sign Test", JASA 41(236), pages 557-566.
    """
    n = n_win + n_lose
    ways = tail = 1  # whole numbers of any size: the sum and the division are exact
    for i in range(min(n_win, n_lose)):
        ways = ways * (n - i) // (i + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def correlation(x: Float[Tensor, " N"], y: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Pearson's correlation of two numbers per item; 0 where one of them is the same for all items.

    Source: Pearson 1896, "Regression, Heredity, and Panmixia", section 4.
    """
    if bool((x == x[:1]).all()) or bool((y == y[:1]).all()):
        return torch.zeros((), dtype=torch.float64, device=x.device)
    x, y = x.detach().double(), y.detach().double()
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()


def rank_correlation(x: Float[Tensor, " N"], y: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Spearman's correlation: Pearson's of the ranks; equal numbers share the mean of their ranks.

    Source: Spearman 1904, "The Proof and Measurement of Association between Two Things"; ties: Kendall 1945, "The
        Treatment of Ties in Ranking Problems".
    """
    return correlation(_mean_ranks(x), _mean_ranks(y))


def area_under_curve(scores: Float[Tensor, " N"], positive: Bool[Tensor, " N"]) -> Float[Tensor, ""]:
    """Probability that a random positive item scores above a random negative one; a tie counts half.

    Source: Hanley and McNeil 1982, "The Meaning and Use of the Area under a ROC Curve", by the ranks of Mann and
        Whitney 1947.
    Raises:
        ValueError: all items are positive, or none.
    """
    n = int(positive.sum())
    if n in (0, len(positive)):
        raise ValueError(f"{n} of {len(positive)} items are positive: the area compares positive items with others")
    return (_mean_ranks(scores)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n))


def _mean_ranks(x: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Ranks from 1, equal numbers sharing the mean of theirs."""
    _, level, sizes = torch.unique(x, return_inverse=True, return_counts=True)
    return (sizes.cumsum(0) - (sizes - 1) / 2).double()[level]
