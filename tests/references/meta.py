"""MetaRM: the difference objective with its gradient, and one first-order step; section 6 of the spec."""

from collections.abc import Callable

from references.preference import sigmoid

Gradient = Callable[[list[float]], list[float]]


def difference_objective(scores: list[float]) -> tuple[float, list[float]]:
    """2 / k^2 times the sum over i < j of s(|r_i - r_j|), and its derivative by each score; 0 at exact ties."""
    k = len(scores)
    total, slopes = 0.0, [0.0] * k
    for i in range(k):
        for j in range(i + 1, k):
            gap = scores[i] - scores[j]
            p = sigmoid(abs(gap))
            total += p
            slope = p * (1 - p) * ((gap > 0) - (gap < 0))
            slopes[i] += slope
            slopes[j] -= slope
    return 2 / k**2 * total, [2 / k**2 * slope for slope in slopes]


def step(theta: list[float], ascent: Gradient, descent: Gradient, eta: float, alpha: float) -> list[float]:
    """Algorithm 1, first order: climb J to look, take the gradient of L there, apply it where we were."""
    there = [p + eta * g for p, g in zip(theta, ascent(theta), strict=True)]
    return [p - alpha * g for p, g in zip(theta, descent(there), strict=True)]
