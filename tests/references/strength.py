"""Preference strength, pair by pair; section 3 of the reward modelling spec."""

import math
import statistics


def votes(chosen: list[list[float]], rejected: list[list[float]], one_scale: bool) -> list[tuple[float, ...]]:
    """Per pair: mean and population std of the members' gaps, share of members for the label, and mean / (std + 1e-6).

    With one_scale each member's gaps are divided by their own population std first.
    """
    gaps = [[c - r for c, r in zip(*sides, strict=True)] for sides in zip(chosen, rejected, strict=True)]
    if one_scale:
        gaps = [[gap / statistics.pstdev(member) for gap in member] for member in gaps]
    rows = []
    for of_pair in zip(*gaps, strict=True):
        mean = math.fsum(of_pair) / len(of_pair)
        std = math.sqrt(math.fsum((gap - mean) ** 2 for gap in of_pair) / len(of_pair))
        rows.append((mean, std, sum(gap > 0 for gap in of_pair) / len(of_pair), mean / (std + 1e-6)))
    return rows


def ranks(strength: list[float]) -> list[int]:
    """How many pairs come before each one: the weaker ones, and the equal ones further up in the file."""
    return [sum(other < own or (other == own and j < i) for j, other in enumerate(strength))
            for i, own in enumerate(strength)]


def quantiles(strength: list[float], n: int) -> list[int]:
    """floor(rank Q / N)."""
    return [math.floor(rank * n / len(strength)) for rank in ranks(strength)]


def lowest(strength: list[float], share: float) -> set[int]:
    """The pairs with the floor(p N) smallest ranks."""
    return {i for i, rank in enumerate(ranks(strength)) if rank < math.floor(share * len(strength))}
