"""Sums and counts over micro-batches: a mean is taken once, over the whole optimiser step."""

from collections.abc import Mapping

from torch import Tensor

from keel.functional.masked import weighted_sum

__all__ = ["Tally"]


class Tally:
    """Adds up per-element statistics; `means()` divides each sum by its own weight and starts again."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._weights: dict[str, Tensor | float] = {}

    def add(self, stats: Mapping[str, Tensor], weights: Tensor | None = None) -> None:
        """Add every element, by its weight where weights (or a mask) are given. No value leaves its device here."""
        for name, x in stats.items():
            total = x.detach().sum() if weights is None else weighted_sum(x.detach(), weights.float())
            weight = x.numel() if weights is None else weights.sum()
            self._sums[name] = self._sums.get(name, 0.0) + total
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def means(self) -> dict[str, float]:
        """Means by name, in the order in which names came, 0 where nothing had weight; empties the tally."""
        means = {name: float(total) / (float(self._weights[name]) or 1.0) for name, total in self._sums.items()}
        self._sums, self._weights = {}, {}
        return means
