"""Calibration, explained variance, repetition, wins and the sign test by counting."""

import statistics
from fractions import Fraction
from itertools import product

from references.preference import sigmoid


def expected_calibration_error(margins: list[float], n_bins: int) -> float:
    """sum over bins of (n_b / N) |accuracy_b - confidence_b|, equal-width bins on [0.5, 1], right edges included."""
    gap = 0.0
    for b in range(n_bins):
        low, high = 0.5 + 0.5 * b / n_bins, 0.5 + 0.5 * (b + 1) / n_bins
        inside = [
            (sigmoid(abs(m)), m > 0) for m in margins
            if low < sigmoid(abs(m)) <= high or (b == 0 and sigmoid(abs(m)) == low)
        ]
        if inside:
            confidence = statistics.fmean(p for p, _ in inside)
            accuracy = statistics.fmean(float(right) for _, right in inside)
            gap += len(inside) / len(margins) * abs(accuracy - confidence)
    return gap


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
