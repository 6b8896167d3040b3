"""Explained variance, repetition, wins, the sign test, correlations and areas by counting."""

import math
import statistics
from fractions import Fraction
from itertools import product


def explained_variance(values: list[float], returns: list[float]) -> float:
    """1 - Var(R - V) / Var(R), both population variances; 0 where the returns do not vary."""
    spread = statistics.pvariance(returns) if returns else 0.0
    if spread <= 1e-12:
        return 0.0
    return 1 - statistics.pvariance([r - v for v, r in zip(values, returns, strict=True)]) / spread


def repeated_share(ids: list[int], n: int) -> float:
    """1 - unique n-grams / all n-grams, counted by comparing each with those before it."""
    grams = [ids[i : i + n] for i in range(max(len(ids) - n + 1, 0))]
    repeats = sum(any(grams[j] == grams[i] for j in range(i)) for i in range(len(grams)))
    return repeats / len(grams) if grams else 0.0


def win_points(scores: list[float], others: list[float], tie_margin: float) -> list[float]:
    """1 for a win, 0 for a loss, 1/2 where the difference is within the margin."""
    points = []
    for ours, theirs in zip(scores, others, strict=True):
        if abs(ours - theirs) <= tie_margin:
            points.append(0.5)
        else:
            points.append(1.0 if ours > theirs else 0.0)
    return points


def agreed_points(first: list[float], second: list[float]) -> tuple[list[float], list[bool]]:
    """Each order names a winner, or nobody at 1/2; where the two names differ nobody wins."""

    def winner(probability: float) -> str:
        return "nobody" if probability == 0.5 else "ours" if probability > 0.5 else "theirs"

    named = [(winner(a), winner(b)) for a, b in zip(first, second, strict=True)]
    worth = {"ours": 1.0, "theirs": 0.0, "nobody": 0.5}
    return [worth[a] if a == b else 0.5 for a, b in named], [a != b for a, b in named]


def sign_test(n_win: int, n_lose: int) -> float:
    """Share of all outcomes of n fair coins whose distance from even is at least the one seen, outcome by outcome."""
    n, seen = n_win + n_lose, abs(n_win - n_lose)
    as_far = sum(abs(2 * sum(coins) - n) >= seen for coins in product((0, 1), repeat=n))
    return float(Fraction(as_far, 2**n))


def correlation(x: list[float], y: list[float]) -> float:
    """Covariance by the product of the standard deviations; 0 where one side does not vary."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    a, b = ([value - statistics.fmean(side) for value in side] for side in (x, y))
    covariance = math.fsum(p * q for p, q in zip(a, b, strict=True))
    return covariance / math.sqrt(math.fsum(p * p for p in a) * math.fsum(q * q for q in b))


def mean_ranks(x: list[float]) -> list[float]:
    """1 + how many are smaller, + half of how many others are equal."""
    return [1 + sum(other < own for other in x) + (sum(other == own for other in x) - 1) / 2 for own in x]


def area_under_curve(items: list[tuple[float, bool]]) -> float:
    """Each positive item against each negative one: a win counts 1, a tie a half."""
    games = [(own > other) + (own == other) / 2 for own, yes in items for other, no in items if yes and not no]
    return statistics.fmean(games)
