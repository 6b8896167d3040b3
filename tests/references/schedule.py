"""Learning-rate factors at a 1-based step, as the spec and the papers state them."""

import math


def factor(step: int, *, kind: str, warmup: int, total: int, floor: float) -> float:
    """Rise to 1 over `warmup` steps, never below `floor` on the way; then hold or fall.

    constant: 1. linear: straight from 1 at the end of warm-up to `floor` at `total`. cosine: half a cosine between the
    same points. inverse_sqrt: sqrt(warmup / step), which the floor does not bound. Past `total`, the floor.
    """
    if step <= warmup:
        return max(step / warmup, floor)
    if kind == "constant":
        return 1.0
    if kind == "inverse_sqrt":
        return math.sqrt(max(warmup, 1) / step)
    done = min((step - warmup) / (total - warmup), 1.0) if total > warmup else 1.0
    if kind == "linear":
        return (1 - done) * 1.0 + done * floor
    if kind == "cosine":
        return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
    raise AssertionError(kind)
