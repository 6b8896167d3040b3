"""BIG-Bench Mistake (Tyen et al. 2023, arXiv:2311.08516): `input`, `steps`, `answer`, `target`, `mistake_index`.

`target` is the right answer. `mistake_index` is the first wrong step, null where there is none.
"""

from collections.abc import Mapping
from typing import Any

from keel.data.problems import RowError
from keel.data.sources.process_bench import labels_until

__all__ = ["adapt", "matches"]

_TAKEN = ("input", "steps", "answer", "target", "mistake_index")


def matches(value: Mapping[str, Any]) -> bool:
    return {"input", "steps", "target"} <= value.keys() and isinstance(value["steps"], list)


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: cell for name, cell in value.items() if name not in _TAKEN}
    given, target = value.get("answer"), value["target"]
    row |= {"prompt": value["input"], "completions": value["steps"], "answer": target,
            "labels": labels_until(value.get("mistake_index"), value["steps"])}
    if given is not None:
        row |= {"model_answer": given, "outcome": _said(given) == _said(target)}
    return row


def _said(answer: Any) -> str:
    """The text of an answer; a number may stand as one.

    Raises:
        RowError: it is neither.
    """
    if not isinstance(answer, str | int | float):
        raise RowError("answer is no text", f"`answer` or `target` of a BIG-Bench Mistake row is {answer!r:.80}",
                       "Give both as text or as numbers.")
    return str(answer).strip()
