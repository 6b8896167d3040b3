"""How well two ways to sort the same things agree, and which words tell one pile from another."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["adjusted_rand", "normalised_information", "word_contrast"]


def adjusted_rand(a: Int[Tensor, " N"], b: Int[Tensor, " N"]) -> float:
    """Share of pairs on which two labellings agree, less what chance gives: 1 for the same groups, 0 for chance.

        (sum_ij C(n_ij, 2) - E) / ((A + B) / 2 - E),    A = sum_i C(a_i, 2),  B = sum_j C(b_j, 2),  E = A B / C(n, 2)

    Names do not matter. Where neither labelling tells any two things apart there is nothing to agree on: 0.
    Source: Hubert and Arabie 1985, "Comparing partitions", Eq. 5.
    """
    table = _table(a, b)
    if table.numel() <= 1:
        return 0.0
    together, first, second = (_pairs(x) for x in (table, table.sum(1), table.sum(0)))
    chance = first * second / _pairs(table.sum())
    highest = (first + second) / 2
    # Both leave everything alone: the groups are the same.
    return (together - chance) / (highest - chance) if highest > chance else 1.0


def normalised_information(a: Int[Tensor, " N"], b: Int[Tensor, " N"]) -> float:
    """Mutual information of two labellings over the mean of their entropies: 1 for the same groups, 0 for unrelated.

        I / ((H_a + H_b) / 2),    I = H_a + H_b - H_ab

    Where neither labelling tells any two things apart there is nothing to know: 0.
    Source: Vinh, Epps and Bailey 2010, "Information theoretic measures for clusterings comparison", Table 2 (NMI_sum).
    """
    table = _table(a, b)
    if table.numel() <= 1:
        return 0.0
    joint, first, second = (_entropy(x) for x in (table.flatten(), table.sum(1), table.sum(0)))
    return 2 * (first + second - joint) / (first + second)


def word_contrast(
    here: Mapping[str, int], elsewhere: Mapping[str, int], *, prior_total: float = 100.0,
) -> list[tuple[str, float]]:
    """Words by how much more often they occur here than elsewhere, in standard errors; most telling first.

        z = (o_here - o_elsewhere) / sqrt(1 / (y_here + a) + 1 / (y_elsewhere + a)),
        o = log((y + a) / (n + a_0 - y - a)),    a = a_0 times the word's share of both piles together

    The prior holds the log odds of a rare word near 0. A word beside which there is no other has z = 0.
    Source: Monroe, Colaresi and Quinn 2008, "Fightin' Words", Eq. 15 to 22 (informative Dirichlet prior).

    Args:
        here: how often each word occurs in this pile.
        elsewhere: and in the other one.
        prior_total: a_0, the number of words that the prior counts for.
    Raises:
        ValueError: prior_total is not positive.
    """
    if not prior_total > 0:
        raise ValueError(f"prior_total={prior_total} must be positive: without a prior an unseen word has no odds")
    pooled = {word: here.get(word, 0) + elsewhere.get(word, 0) for word in sorted({*here, *elsewhere})}
    total, seen = sum(pooled.values()), [word for word, n in pooled.items() if n > 0]
    if len(seen) < 2:
        return [(word, 0.0) for word in seen]
    ends = [sum(pile.values()) + prior_total for pile in (here, elsewhere)]
    found = []
    for word in seen:
        prior = prior_total * pooled[word] / total
        counts = [pile.get(word, 0) + prior for pile in (here, elsewhere)]
        contrast = _log_odds(counts[0], ends[0]) - _log_odds(counts[1], ends[1])
        found.append((word, contrast / math.sqrt(1 / counts[0] + 1 / counts[1])))
    return sorted(found, key=lambda row: -row[1])


def _log_odds(count: float, total: float) -> float:
    """Of a word that is `count` of `total` words."""
    return math.log(count / (total - count))


def _table(a: Int[Tensor, " N"], b: Int[Tensor, " N"]) -> Int[Tensor, "I J"]:
    """How many things have label i of the first and label j of the second."""
    (names, first), (others, second) = (torch.unique(x, return_inverse=True) for x in (a, b))
    cells = torch.bincount(first * len(others) + second, minlength=len(names) * len(others))
    return cells.view(len(names), len(others))


def _pairs(counts: Int[Tensor, "*S"]) -> float:
    """Ordered pairs inside the groups of these sizes: 2 C(n, 2), and the quotient does not see the 2."""
    return float((counts * (counts - 1)).sum())


def _entropy(counts: Int[Tensor, " K"]) -> float:
    """Of a thing drawn at random, in nats."""
    shares = counts.double() / counts.sum()
    return float(torch.special.entr(shares).sum())
