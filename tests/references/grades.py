"""Grades as plain numbers: moments of what is there, weighted sums of attributes, and R2 against a guess."""

import math


def moments(grades: list[float | None]) -> tuple[float, float]:
    """Mean and standard deviation (divisor N) of the grades of one attribute that are there."""
    there = [grade for grade in grades if grade is not None]
    mean = math.fsum(there) / len(there)
    return mean, math.sqrt(math.fsum((grade - mean) ** 2 for grade in there) / len(there))


def weighted_sum(predicted: list[float], coefs: list[float], means: list[float], stds: list[float]) -> float:
    """Standardised predictions put back into their own units, then added by weight."""
    return math.fsum(c * (std * z + mean) for z, c, mean, std in zip(predicted, coefs, means, stds, strict=True))


def determination(predicted: list[float], target: list[float], guess: float) -> float:
    """1 - squared error of the predictions over squared error of the guess."""
    left = math.fsum((y - p) ** 2 for y, p in zip(target, predicted, strict=True))
    return 1 - left / math.fsum((y - guess) ** 2 for y in target)
