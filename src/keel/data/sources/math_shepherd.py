"""Math-Shepherd (Wang et al. 2023, arXiv:2312.08935): a question and its steps in one text, a mark behind each step.

`input` has the mark `ки` where `label`, otherwise the same text, has `+` or `-`. The question ends where `Step 1:`
begins; each step keeps its number, as the model wrote it. Text behind the last mark is a step that nobody judged.
"""

from collections.abc import Mapping
from typing import Any

from keel.data.problems import RowError

__all__ = ["adapt", "matches"]

_MARK, _FIRST = "ки", "Step 1:"
_SIGNS = {"+": True, "-": False}


def matches(value: Mapping[str, Any]) -> bool:
    text = value.get("input")
    return isinstance(text, str) and _MARK in text and isinstance(value.get("label"), str)


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: cell for name, cell in value.items() if name not in ("input", "label")}
    marked, signed = value["input"].split(_MARK), value["label"]
    labels: list[bool | None] = []
    at = 0
    for piece in marked[:-1]:
        sign = _SIGNS.get(signed[at + len(piece):at + len(piece) + 1])
        if sign is None or not signed.startswith(piece, at):
            raise RowError("label does not follow input", f"the label's text differs from the input's before mark "
                           f"{len(labels) + 1}, or has no sign there",
                           f"label repeats input with + or - in place of each {_MARK}.")
        labels.append(sign)
        at += len(piece) + 1
    question, first, step = marked[0].rpartition(_FIRST)
    if not first:
        raise RowError("no first step", f"there is no {_FIRST!r} before the first mark",
                       "The text before the first mark is the question and the first step.")
    steps = [first + step, *marked[1:]]
    if not steps[-1].strip():
        steps.pop()
    row |= {"prompt": question.strip(), "completions": [text.strip() for text in steps]}
    return {**row, "labels": labels + [None] * (len(steps) - len(labels))}
