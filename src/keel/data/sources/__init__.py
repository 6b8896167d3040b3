"""One adapter per public data set whose columns alone do not say what they mean. Each renames; none drops a row."""

from collections.abc import Mapping
from typing import Any

from keel.data.sources import (
    bb_mistake,
    comet,
    gsm8k,
    hh_pro,
    lol_rl,
    math_shepherd,
    prm800k,
    pro,
    process_bench,
    reddit,
    rmb,
    step_labels,
    strength,
    wow,
)

__all__ = ["adapted"]

_ADAPTERS = (("HH-RLHF with turns", hh_pro), ("RMB", rmb), ("strength annotations", strength), ("GSM8K", gsm8k),
             ("PRO", pro), ("generation task", lol_rl), ("FaithDial", wow), ("Reddit comments", reddit),
             ("ATOMIC", comet), ("step labels", step_labels), (prm800k.NAME, prm800k),
             ("Math-Shepherd", math_shepherd), ("ProcessBench", process_bench), ("BIG-Bench Mistake", bb_mistake))


def adapted(value: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """The data set's name and the row in the common columns; no name where no adapter is needed."""
    for name, adapter in _ADAPTERS:
        if adapter.matches(value):
            return name, adapter.adapt(value)
    return None, value
