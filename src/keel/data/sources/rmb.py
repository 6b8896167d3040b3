"""RMB (Zhou et al. 2024, arXiv:2410.09893), pairwise: each response is an object with its text and its model."""

from collections.abc import Mapping
from typing import Any

__all__ = ["adapt", "matches"]

_SIDES = ("chosen", "rejected")


def matches(value: Mapping[str, Any]) -> bool:
    return "prompt" in value and all(isinstance(value.get(side), dict) and "text" in value[side] for side in _SIDES)


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: cell for name, cell in value.items() if name not in _SIDES}
    for side in _SIDES:
        response = value[side]
        rest[side] = response["text"]
        rest |= {f"{side}_{name}": cell for name, cell in response.items() if name != "text"}
    return rest
