"""Agreement beyond chance, by walking through pairs of answers."""

import math
from itertools import combinations, permutations


def cohen_kappa(first: list[int], second: list[int]) -> float | None:
    """Observed agreement against that of every answer of one annotator with every answer of the other."""
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(a == b for a in first for b in second) / n**2
    return None if len({*first, *second}) < 2 else (observed - chance) / (1 - chance)


def fleiss_kappa(counts: list[list[int]]) -> float | None:
    """Share of pairs of annotators of one item that agree, against two draws with replacement from all answers."""
    items = [[c for c, times in enumerate(row) for _ in range(times)] for row in counts]
    pairs = [(a, b) for item in items for a, b in combinations(item, 2)]
    observed = sum(a == b for a, b in pairs) / len(pairs)
    answers = [answer for item in items for answer in item]
    chance = sum(a == b for a in answers for b in answers) / len(answers) ** 2
    return None if len(set(answers)) < 2 else (observed - chance) / (1 - chance)


def krippendorff_alpha(ratings: list[list[float]]) -> float | None:
    """1 - D_o / D_e from the coincidence matrix, filled by every ordered pair of answers to one item over m - 1."""
    coincidences: dict[tuple[float, float], float] = {}
    for row in ratings:
        given = [rating for rating in row if not math.isnan(rating)]
        for a, b in permutations(given, 2):
            coincidences[a, b] = coincidences.get((a, b), 0.0) + 1 / (len(given) - 1)
    totals: dict[float, float] = {}
    for (a, _), value in coincidences.items():
        totals[a] = totals.get(a, 0.0) + value
    if len(totals) < 2:
        return None
    n = math.fsum(totals.values())
    observed = math.fsum(value for (a, b), value in coincidences.items() if a != b) / n
    chance = math.fsum(totals[a] * totals[b] for a, b in permutations(totals, 2)) / (n * (n - 1))
    return 1 - observed / chance
