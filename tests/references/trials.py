"""Sign flips by trying every one, comparison by comparison."""

import math
from fractions import Fraction
from itertools import product


def sign_flip_test(differences: list[list[float]]) -> list[float]:
    """Adjusted p of each column; rows are seeds. Sums that are nearly equal are equal."""
    columns = list(zip(*differences, strict=True))

    def statistic(column: tuple[float, ...], signs: tuple[int, ...]) -> float:
        return abs(math.fsum(sign * value for sign, value in zip(signs, column, strict=True)))

    def reaches(one: float, other: float) -> bool:
        return one >= other or math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)

    observed = [statistic(column, (1,) * len(column)) for column in columns]
    left, p, least = sorted(range(len(columns)), key=lambda k: -observed[k]), {}, Fraction(0)
    while left:
        count = sum(reaches(max(statistic(columns[k], signs) for k in left), observed[left[0]])
                    for signs in product((1, -1), repeat=len(differences)))
        least = max(least, Fraction(count, 2 ** len(differences)))
        p[left.pop(0)] = float(least)
    return [p[k] for k in range(len(columns))]
