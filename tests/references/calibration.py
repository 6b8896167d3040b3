"""Calibration of sigmoid(margin) by counting; section 8 of the reward modelling spec."""

import math
import statistics

from references.preference import sigmoid, softplus


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


def equal_mass_calibration_error(margins: list[float], n_bins: int) -> float:
    """The same over groups of equal size: pair k from the least certain is in floor(kB/N), ties in order."""
    order = sorted(range(len(margins)), key=lambda i: (abs(margins[i]), i))
    bins: dict[int, list[float]] = {}
    for k, i in enumerate(order):
        bins.setdefault(k * n_bins // len(margins), []).append(margins[i])
    return math.fsum(
        len(inside) / len(margins) * abs(statistics.fmean(float(m > 0) for m in inside)
                                         - statistics.fmean(sigmoid(abs(m)) for m in inside))
        for inside in bins.values())


def reliability(margins: list[float], n_bins: int) -> list[tuple[int, float | None, float | None]]:
    """Count, mean confidence and accuracy of each of the equal-width bins."""
    rows = []
    for b in range(n_bins):
        low, high = 0.5 + 0.5 * b / n_bins, 0.5 + 0.5 * (b + 1) / n_bins
        inside = [m for m in margins if low < sigmoid(abs(m)) <= high or (b == 0 and sigmoid(abs(m)) == low)]
        rows.append((len(inside), statistics.fmean(sigmoid(abs(m)) for m in inside) if inside else None,
                     statistics.fmean(float(m > 0) for m in inside) if inside else None))
    return rows


def nll(margins: list[float]) -> float:
    """Mean of -log s(d)."""
    return statistics.fmean(softplus(-m) for m in margins)


def brier(margins: list[float]) -> float:
    """Mean of (1 - s(d))^2."""
    return statistics.fmean((1 - sigmoid(m)) ** 2 for m in margins)


def temperature(margins: list[float]) -> float:
    """Golden section on the likelihood over log T from log 1/1000 to log 1000."""
    low, high = math.log(1e-3), math.log(1e3)
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(100):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if nll([m / math.exp(left) for m in margins]) <= nll([m / math.exp(right) for m in margins]):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)
