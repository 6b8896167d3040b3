"""Calibration, explained variance and repetition by counting."""

import statistics

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
