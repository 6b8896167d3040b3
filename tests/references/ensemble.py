"""One score from the opinions of several members on one response."""

import math


def combined(scores: list[float], how: str, coef: float | None) -> tuple[float, float]:
    """The score, and the population standard deviation over members; section 7 of the reward modelling spec."""
    mean = math.fsum(scores) / len(scores)
    variance = math.fsum((score - mean) ** 2 for score in scores) / len(scores)
    std = math.sqrt(variance)
    ordered = sorted(scores)
    lower, upper = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if how == "minimum":
        return ordered[0], std
    if how == "median":
        return (lower + upper) / 2, std
    if how == "mean":
        return mean, std
    return mean - coef * (std if how == "mean_minus_std" else variance), std


def standardised(scores: list[float]) -> list[float]:
    """The scores of one member, less their mean, by their population standard deviation."""
    mean = math.fsum(scores) / len(scores)
    std = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    return [(score - mean) / std for score in scores]
