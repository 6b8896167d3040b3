"""Sums and counts over micro-batches: a mean is taken once, over the whole optimiser step."""

from collections.abc import Mapping

from torch import Tensor

from keel.functional.masked import masked_sum

__all__ = ["Tally"]


class Tally:
    """Adds up per-element statistics; `means()` divides each sum by its own count and starts again."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, Tensor | int] = {}

    def add(self, stats: Mapping[str, Tensor], where: Tensor | None = None) -> None:
        """Add every element, or those where the mask is True. No value leaves its device here."""
        for name, x in stats.items():
            total = x.detach().sum() if where is None else masked_sum(x.detach(), where)
            count = x.numel() if where is None else where.sum()
            self._sums[name] = self._sums.get(name, 0.0) + total
            self._counts[name] = self._counts.get(name, 0) + count

    def means(self) -> dict[str, float]:
        """Means by name, in the order in which names came; empties the tally."""
        means = {name: float(total) / max(int(self._counts[name]), 1) for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means
