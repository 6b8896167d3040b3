"""`fnlp/hh-rlhf-strength-cleaned` (Wang et al. 2024, arXiv:2401.06080): HH-RLHF with the votes of ten reward models.

The columns are spelled with spaces, in some mirrors with underscores. The votes go to meta under keel's names and the
margin stays 0: using the strength as a margin is the recipe's decision, not the reader's.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["adapt", "matches"]

_NAMES = {
    "mean preference difference": "strength_mean",
    "std preference difference": "strength_std",
    "chosen score list": "chosen_scores",
    "rejected score list": "rejected_scores",
    "gpt4 label": "judge_label",
}


def matches(value: Mapping[str, Any]) -> bool:
    return {"chosen", "rejected"} <= value.keys() and "mean preference difference" in map(_plain, value)


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    return {_NAMES.get(_plain(name), name): cell for name, cell in value.items()}


def _plain(name: str) -> str:
    return name.replace("_", " ").lower()
