"""What the votes of reward models say about a data set: numbers and examples for a page, and the pairs to look at."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from keel.data.records import PreferencePair

__all__ = ["audit", "suspects"]


def suspects(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Pairs that something speaks against, in plain words in `meta["reasons"]`; the weakest first."""
    found = [replace(pair, prompt=replace(pair.prompt, meta={**pair.prompt.meta, "reasons": ["against"]}))
             for pair in pairs if pair.strength and pair.strength.mean < 0]
    return sorted(found, key=lambda pair: pair.strength.mean if pair.strength else 0.0)


def audit(pairs: Sequence[PreferencePair], lengths: Sequence[tuple[int, int]], *, n_quantiles: int) -> dict[str, Any]:
    """Every number of the page."""
    return {"n": len(pairs), "n_quantiles": n_quantiles, "n_lengths": len(lengths)}
