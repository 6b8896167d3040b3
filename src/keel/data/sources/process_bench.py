"""ProcessBench (Zheng et al. 2024, arXiv:2412.06559): `problem`, `steps` and `label`, the first error or -1.

The steps behind the first error were not judged. `subset` is what stands before the number in the id (gsm8k, ...).
"""

from collections.abc import Mapping
from typing import Any

from keel.data.problems import RowError

__all__ = ["adapt", "labels_until", "matches"]


def matches(value: Mapping[str, Any]) -> bool:
    return {"problem", "steps", "label", "final_answer_correct"} <= value.keys()


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    taken = ("problem", "steps", "label", "final_answer_correct")
    row = {name: cell for name, cell in value.items() if name not in taken}
    row |= {"prompt": value["problem"], "completions": value["steps"], "outcome": value["final_answer_correct"]}
    row["labels"] = labels_until(None if value["label"] == -1 else value["label"], value["steps"])
    before, _, number = str(value.get("id", "")).rpartition("-")
    return row if not before or not number.isdigit() else {"subset": before, **row}


def labels_until(first_error: Any, steps: Any) -> list[bool | None]:
    """Right up to the first error, wrong there, unknown behind it; right throughout where it is none.

    Raises:
        RowError: it is no index of a step.
    """
    n = len(steps) if isinstance(steps, list) else 0
    if first_error is None:
        return [True] * n
    if isinstance(first_error, bool) or not isinstance(first_error, int) or not 0 <= first_error < n:
        raise RowError("first error out of range", f"the first error is given as {first_error!r}; there are {n} steps",
                       "It is the index of a step, a whole number from 0 on.")
    return [True] * first_error + [False] + [None] * (n - first_error - 1)
