"""Learning-rate factors."""

import math
from typing import Literal

__all__ = ["Schedule", "factor"]

Schedule = Literal["constant", "linear", "cosine", "inverse_sqrt"]


def factor(step: int, *, kind: Schedule, warmup: int, total: int, floor: float) -> float:
    """Multiplier of the peak learning rate at a step counted from 1.

    Warm-up: max(step / warmup, floor). Then `constant` 1; `linear` and `cosine` fall from 1 to `floor` at `total`;
    `inverse_sqrt` is sqrt(warmup / step), the schedule of MOSS-RLHF.
    """
    if step <= warmup:
        return max(step / warmup, floor)
    if kind == "constant":
        return 1.0
    if kind == "inverse_sqrt":
        return math.sqrt(max(warmup, 1) / step)
    share = min((step - warmup) / max(total - warmup, 1), 1.0)
    return 1 - (1 - floor) * share if kind == "linear" else floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
