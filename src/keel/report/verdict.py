"""Did it get better? Only intervals decide; a proxy that rises while the truth falls is over-optimisation."""

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from keel.report.folder import Row
from keel.report.series import Collected, Series
from keel.report.words import finite

__all__ = ["Divergence", "divergence", "proxy_rose", "verdict"]

MIN_STEPS = 6  # fewer do not make a curve
WINDOWS = 10  # the run is judged by means over tenths of it, never by single steps
SIGMAS = 3.0  # the best of ten windows is chosen after the fact, so two would be too few


@dataclass(frozen=True)
class Divergence:
    """The proxy kept rising from the step where gold was best, and gold fell."""

    step: int
    gold_best: float
    gold_end: float
    proxy_then: float
    proxy_end: float


def verdict(headline: Row) -> str:
    """better, worse, unclear (the intervals overlap), or unknown (no interval, or nothing to compare with).

    `change`, the interval of the paired difference, decides where the run recorded one: it is sharper than
    asking whether two separate intervals overlap.
    """
    up = headline.get("higher_is_better", True)
    if change := _bounds(headline.get("change")):
        rose, fell = change[0] > 0, change[1] < 0
    else:
        before, after = _bounds(headline.get("before")), _bounds(headline.get("after"))
        if before is None or after is None:
            return "unknown"
        rose, fell = after[0] > before[1], after[1] < before[0]
    if not rose and not fell:
        return "unclear"
    return "better" if rose == bool(up) else "worse"


def divergence(series: Collected) -> Divergence | None:
    """Find the step after which the proxy score rose while the gold score fell by more than its own scatter."""
    steps, proxy, gold = _paired(series)
    if not steps:
        return None
    cuts = [i * len(steps) // min(WINDOWS, len(steps) // 2) for i in range(min(WINDOWS, len(steps) // 2) + 1)]
    windows = [slice(a, b) for a, b in pairwise(cuts)]
    gold_means, proxy_means = [_mean(gold[w]) for w in windows], [_mean(proxy[w]) for w in windows]
    best = max(range(len(windows)), key=gold_means.__getitem__)
    n_best, n_end = windows[best].stop - windows[best].start, windows[-1].stop - windows[-1].start
    error = _scatter(gold) * math.sqrt(1 / n_best + 1 / n_end)
    fall = gold_means[best] - gold_means[-1]
    if fall <= SIGMAS * error or fall <= 0 or proxy_means[-1] <= proxy_means[best]:
        return None
    peak = steps[(windows[best].start + windows[best].stop - 1) // 2]
    return Divergence(peak, gold_means[best], gold_means[-1], proxy_means[best], proxy_means[-1])


def proxy_rose(series: Collected) -> bool:
    """Whether the proxy score ended above where it began, by means over the first and last tenth."""
    proxy: Series | None = series.get(("score/mean", "eval")) or series.get(("score/mean", "train"))
    values = [v for v in proxy.values if math.isfinite(v)] if proxy else []
    tenth = max(1, len(values) // WINDOWS)
    return len(values) > 1 and _mean(values[-tenth:]) > _mean(values[:tenth])


def _bounds(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, dict):
        return None
    low, high = finite(value.get("low")), finite(value.get("high"))
    return None if low is None or high is None else (low, high)


def _paired(series: Collected) -> tuple[list[int], list[float], list[float]]:
    """Steps where both are known, from one phase: held-out prompts if they were scored, else the training ones."""
    for phase in ("eval", "train"):
        proxy, gold = series.get(("score/mean", phase)), series.get(("gold/mean", phase))
        if proxy and gold:
            by_step = dict(zip(gold.steps, gold.values, strict=True))
            both = [
                (step, value, by_step[step])
                for step, value in zip(proxy.steps, proxy.values, strict=True)
                if math.isfinite(value) and math.isfinite(by_step.get(step, math.nan))
            ]
            if len(both) >= MIN_STEPS:
                steps, scores, golds = (list(column) for column in zip(*both, strict=True))
                return steps, scores, golds
    return [], [], []


def _mean(values: list[float]) -> float:
    return statistics.fmean(values)


def _scatter(values: list[float]) -> float:
    """Step-to-step noise from successive differences, which a trend does not inflate."""
    jumps = [(b - a) ** 2 for a, b in pairwise(values)]
    return math.sqrt(_mean(jumps) / 2)
