"""Solutions with the position of the first wrong step, as normalised in `step_labels/`.

`answer_correct` is the outcome. `gold_answer` becomes `answer`, under which rewards look for the right one, and an
`answer` that stood there is what the model gave: `model_answer`. `first_error` must be what the labels say.
"""

from collections.abc import Mapping
from typing import Any

from keel.data.problems import RowError

__all__ = ["adapt", "matches"]

_RENAMED = {"answer_correct": "outcome", "answer": "model_answer", "gold_answer": "answer"}


def matches(value: Mapping[str, Any]) -> bool:
    return {"prompt", "completions", "labels", "answer_correct"} <= value.keys() and "outcome" not in value


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    row = {_RENAMED.get(name, name): cell for name, cell in value.items()}
    labels, said = row["labels"], row.pop("first_error", None)
    if said is not None and (not isinstance(labels, list) or False not in labels or labels.index(False) != said):
        raise RowError("first error contradicts labels", f"first_error is {said!r}, and the labels are {labels!r}",
                       "It is the index, from 0 on, of the first false label; mend one of them, or leave it out.")
    return row
