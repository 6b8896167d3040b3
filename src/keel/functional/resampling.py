"""How sure is that: bootstrap over clusters, tests by turning signs, corrections, ranks, correlations of few rows."""

from itertools import accumulate
from statistics import NormalDist

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from keel.functional.statistics import correlation, rank_correlation

__all__ = [
    "FEWEST_ROWS", "area_draws", "association", "association_draws", "cluster_draws", "descending_ranks",
    "group_letters", "harmonic_draws", "holm", "kendall_tau_b", "leave_one_out", "percentile_interval",
    "ratio_draws", "sign_flip_p", "top_one_regret", "two_sided_p", "wilson_interval",
]

MOST_EXACT = 16
"""Differences up to which all ways to turn their signs are tried: 65 536."""
DECIMALS = 9
"""Kept of a sum: the same numbers added in another order are equal to this many, and so tie."""
FEWEST_ROWS = 3
"""That a correlation with one row left out needs."""


def cluster_draws(n_clusters: int, *, n_draws: int, generator: torch.Generator) -> Float[Tensor, "R P"]:
    """How often each cluster occurs in each resample of as many clusters, drawn with replacement.

    Source: Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8 (clusters drawn whole).
    Raises:
        ValueError: there is no cluster.
    """
    if n_clusters < 1:
        raise ValueError(f"n_clusters={n_clusters}: there is nothing to resample")
    picks = (torch.randint(n_clusters, (n_clusters,), generator=generator) for _ in range(n_draws))
    return torch.stack([torch.bincount(pick, minlength=n_clusters).double() for pick in picks])


def ratio_draws(
    draws: Float[Tensor, "R P"], totals: Float[Tensor, "P K"], sizes: Float[Tensor, "P K"],
) -> Float[Tensor, "R K"]:
    """K means under every resample: the totals of the clusters drawn, by their sizes; NaN where nothing was drawn.

    Two models asked the same are compared on the same draws: their difference is a difference of two columns.
    Source: Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8.

    Args:
        draws: as from `cluster_draws`.
        totals: sum of what is averaged over the items of a cluster, for each of K things that are averaged.
        sizes: number of items of the cluster, or sum of their weights, in each of them.
    """
    size = draws @ sizes
    return torch.where(size > 0, draws @ totals / size, torch.nan)


def harmonic_draws(
    draws: Float[Tensor, "R P"], totals: Float[Tensor, "P 2"], sizes: Float[Tensor, "P 2"],
) -> Float[Tensor, " R"]:
    """Harmonic mean of two means under every resample; 0 where both are 0, NaN where one of them has nothing drawn.

    Source: Zheng et al. 2024, arXiv:2412.06559, section 3 (F1 of two accuracies), with `ratio_draws`.

    Args:
        draws, totals, sizes: see `ratio_draws`.
    """
    first, second = ratio_draws(draws, totals, sizes).unbind(1)
    both = first + second
    return torch.where(both == 0, 0.0, 2 * first * second / both)


def area_draws(
    counts: Float[Tensor, "R N"], scores: Float[Tensor, " N"], positive: Bool[Tensor, " N"],
) -> Float[Tensor, " R"]:
    """Area under the ROC curve under every resample; NaN where one drew no positive item, or no other one.

    Source: Hanley and McNeil 1982, "The Meaning and Use of the Area under a ROC Curve" (share of the pairs in order, a
        tie counting half), an item that is drawn twice counting twice.

    Args:
        counts: how often each item is in each resample.
        scores: higher for what is held to be positive.
        positive: which items are.
    """
    levels, level = scores.unique(return_inverse=True)
    nothing = counts.new_zeros(len(counts), len(levels))
    ups, downs = (nothing.index_add(1, level[kind], counts[:, kind]) for kind in (positive, ~positive))
    in_order = (ups * (downs.cumsum(1) - downs / 2)).sum(1)
    n_pairs = ups.sum(1) * downs.sum(1)
    return torch.where(n_pairs > 0, in_order / n_pairs, torch.nan)


def percentile_interval(
    draws: Float[Tensor, " R *K"], *, confidence: float = 0.95,
) -> tuple[Float[Tensor, "*K"], Float[Tensor, "*K"]]:
    """Lower and upper end of the percentile interval over the first dimension; NaN is left out, unless all are NaN.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    tail = (1 - confidence) / 2
    x = draws.double()
    low, high = x.nanquantile(x.new_tensor([tail, 1 - tail]), dim=0)
    return low, high


def two_sided_p(differences: Float[Tensor, " R"]) -> float:
    """min(1, 2 min(P(d <= 0), P(d >= 0))) over R bootstrapped differences d, at least 2 / (R + 1).

    Where no draw crosses 0, that is what one more draw that did would make it. NaN is left out; NaN if nothing else is
    there.
    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 15.4 (tests from intervals).
    """
    d = differences[~differences.isnan()]
    least = torch.minimum((d <= 0).double().mean(), (d >= 0).double().mean())
    return float((2 * least).clamp_min(2 / (1 + len(d))).clamp_max(1))


def sign_flip_p(differences: Float[Tensor, " P"], *, n_flips: int, generator: torch.Generator) -> float:
    """Two-sided p value of the sum of P differences, one per cluster, when each is as likely as its negative.

    The share of the ways to turn signs whose sum is at least as far from 0 as the one seen. Differences of 0 have no
    sign. Up to 16 others all ways are tried; from there on random ones, and p = (1 + those as far) / (1 + n_flips).
    Source: Fisher 1935, "The Design of Experiments", section 21 (turning signs); Phipson and Smyth 2010, "Permutation
        P-values Should Never Be Zero" (the one seen is counted with the random ones).

    Args:
        differences: summed over the items of a cluster, so that clusters weigh as they do in the mean.
        n_flips: random ways to turn signs.
        generator: of these.
    Raises:
        ValueError: a difference is not finite.
    """
    if not bool(differences.isfinite().all()):
        raise ValueError("a difference is NaN or infinite: a cluster without a number has no sign that could be turned")
    x = differences[differences != 0].double()
    n = len(x)
    if n == 0:
        return 1.0
    x = x / x.abs().max()  # so that it has this many decimals
    if n <= MOST_EXACT:
        turned = (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).double() @ x
    else:
        turned = torch.stack([torch.randint(2, (n,), generator=generator).double() @ x for _ in range(n_flips)])
    seen = x.sum().abs().round(decimals=DECIMALS)
    as_far = (x.sum() - 2 * turned).abs().round(decimals=DECIMALS) >= seen
    # The random ways do not hold the one seen; all ways do.
    return float(as_far.double().mean()) if n <= MOST_EXACT else (1 + int(as_far.sum())) / (1 + n_flips)


def holm(p: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """p values of K tests, adjusted so that with probability 1 - a none of those below a is a mistake.

    The i-th smallest times K - i + 1, never below a smaller one's, at most 1.
    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    Raises:
        ValueError: a p value outside [0, 1].
    """
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError("a p value is not within [0, 1]")
    order = p.argsort()
    steps = torch.arange(len(p), 0, -1) * p.double()[order]
    return steps.new_tensor(list(accumulate(steps, max))).clamp_max(1)[order.argsort()]


def wilson_interval(n_right: float, n: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper end of the interval of a share, by inverting the score test; for items that do not cluster.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, page 209.
    Args:
        n_right: may be broken where ties count half.
        n: all.
        confidence: of the interval.
    Raises:
        ValueError: n_right is not within [0, n], or n is 0.
    """
    if not 0 <= n_right <= n or n == 0:
        raise ValueError(f"{n_right} right of {n}: a share needs 0 to n right, and n above 0")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, wider = n_right / n, z * z / n
    middle = share + wider / 2
    half = z * (share * (1 - share) / n + wider / (4 * n)) ** 0.5
    low, high = (middle - half) / (1 + wider), (middle + half) / (1 + wider)
    return low if n_right > 0 else 0.0, high if n_right < n else 1.0  # the ends exactly, whatever rounding says


def descending_ranks(values: Float[Tensor, "R M"]) -> Float[Tensor, "R M"]:
    """Rank of each of M models in each row: 1 + how many are higher. Equals share the best rank; NaN is below all.

    Source: Hall and Miller 2009, "Using the Bootstrap to Quantify the Authority of an Empirical Ranking", Annals of
        Statistics 37(6): the ranks in every resample give the interval of a rank.
    """
    x = torch.where(values.isnan(), -torch.inf, values)
    return 1 + (x[:, None, :] > x[:, :, None]).sum(2).double()


def group_letters(same: Bool[Tensor, "M M"]) -> list[str]:
    """Compact letter display: two models share a letter exactly where `same` is True.

    Every largest set of models that are pairwise the same has a letter, the first one `a`; after `z` comes `a1`. Found
    by insert-and-absorb: all models in one set; each pair that differs splits the sets that hold both; a set within
    another one is dropped.
    Source: Piepho 2004, "An Algorithm for a Letter-Based Representation of All-Pairwise Comparisons", Journal of
        Computational and Graphical Statistics 13(2).

    Args:
        same: symmetric; the letters follow the order of the models, best first.
    Raises:
        ValueError: a model is not the same as itself, or sameness is not mutual.
    """
    if not bool((same == same.T).all()) or not bool(same.diagonal().all()):
        raise ValueError("same must be symmetric and True on its diagonal")
    n = len(same)
    groups = [frozenset(range(n))]
    for i, j in (~same).nonzero().tolist():
        # A set without one of the two stays as it is: less the other, it is within itself.
        split = dict.fromkeys(part for group in groups for part in [group - {i}, group - {j}])
        groups = [part for part in split if not any(part < other for other in split)]
    ordered = sorted(sorted(group) for group in groups)
    return ["".join(_letter(k) for k, group in enumerate(ordered) if i in group) for i in range(n)]


def _letter(k: int) -> str:
    """a to z, a1 to z1, a2 and so on."""
    return chr(ord("a") + k % 26) + (str(k // 26) if k >= 26 else "")


def kendall_tau_b(x: Float[Tensor, " N"], y: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Concordant less discordant pairs, by the geometric mean of the pairs untied in x and in y; 0 where there is none.

    Source: Kendall 1945, "The Treatment of Ties in Ranking Problems", (tau-b).
    """
    a, b = ((side[:, None] > side).double() - (side[:, None] < side).double() for side in [x, y])
    return ((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()).nan_to_num(0.0)  # 0 / 0 without untied pairs


def association(x: Float[Tensor, " N"], y: Float[Tensor, " N"], *, how: str) -> Float[Tensor, ""]:
    """`rank_correlation`, `kendall_tau_b` or `correlation`, by the name of its author; 0 where a side is constant.

    Source: those functions, all three in Kendall 1948, "Rank Correlation Methods".
    Raises:
        ValueError: another name.
    """
    known = {"spearman": rank_correlation, "kendall": kendall_tau_b, "pearson": correlation}
    if how not in known:
        raise ValueError(f"how={how!r} is none of {', '.join(known)}")
    return known[how](x=x, y=y)


def association_draws(
    x: Float[Tensor, " M"], y: Float[Tensor, " M"], draws: Float[Tensor, "R M"], *, how: str,
) -> Float[Tensor, " R"]:
    """The association in every resample of M rows; NaN where all rows drawn have one x or one y.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 6.3 (a correlation, rows resampled).
    """
    found = []
    for counts in draws.long():
        a = x.repeat_interleave(counts)
        b = y.repeat_interleave(counts)
        varies = len(a.unique()) > 1 and len(b.unique()) > 1
        found.append(association(x=a, y=b, how=how) if varies else draws.new_tensor(torch.nan))
    return torch.stack(found)


def leave_one_out(x: Float[Tensor, " M"], y: Float[Tensor, " M"], *, how: str) -> tuple[float, float]:
    """Lowest and highest association with one of M rows left out: does one of them make it?

    Source: Quenouille 1956, "Notes on Bias in Estimation" (one left out); Miller 1974, "The Jackknife - A Review".
    Raises:
        ValueError: fewer than three rows, or an unknown association.
    """
    if len(x) < FEWEST_ROWS:
        raise ValueError(f"{len(x)} rows: with one left out, two have to remain")
    places = torch.arange(len(x))
    found = torch.stack([association(x=x[places != i], y=y[places != i], how=how) for i in range(len(x))])
    return float(found.min()), float(found.max())


def top_one_regret(x: Float[Tensor, " M"], y: Float[Tensor, " M"]) -> float:
    """How much y is lost by taking the row with the highest x: the highest y less the mean y of the rows with that x.

    Source: Bubeck et al. 2009, "Pure Exploration in Multi-armed Bandits Problems", (simple regret).
    """
    reached = y.double()
    return float(reached.max() - reached[x == x.max()].mean())
