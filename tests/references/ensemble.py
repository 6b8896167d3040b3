"""One score from the opinions of several members on one response."""

import math


def combined(scores: list[float], how: str, std_coef: float | None) -> tuple[float, float]:
    """The score, and the population standard deviation over members: arXiv:2310.02743, sections on MO, WCO and UWO."""
    mean = math.fsum(scores) / len(scores)
    std = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    if how == "minimum":
        return sorted(scores)[0], std
    return (mean if how == "mean" else mean - std_coef * std), std
