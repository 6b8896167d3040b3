"""The best of n by going through every choice of n responses."""

import math
from itertools import combinations


def best_of_n(scores: list[float], values: list[float], n: int) -> float:
    """Mean over all subsets of size n of the mean value of those that score highest in it.

    Which of several equal scores is picked is up to chance; over all subsets each of them is picked equally often.
    """
    total, subsets = 0.0, list(combinations(range(len(scores)), n))
    for subset in subsets:
        top = max(scores[i] for i in subset)
        winners = [values[i] for i in subset if scores[i] == top]
        total += math.fsum(winners) / len(winners)
    return total / len(subsets)


def kl(n: int, cells: int) -> float:
    """KL of the best of n uniform draws from one draw, by a sum over cells of [0, 1]; the best has density n u^(n-1)"""
    total = 0.0
    for i in range(cells):
        density = (((i + 1) / cells) ** n - (i / cells) ** n) * cells
        total += density * math.log(density) / cells
    return total
