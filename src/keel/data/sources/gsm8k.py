"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168): solution lines, then the final answer behind `####`.

Three spellings: the original's `question` and `answer`; `prompt`, `steps` and `answer`; and a model's solution as
`prompt` and `completions` with `is_correct`.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["adapt", "matches"]


def matches(value: Mapping[str, Any]) -> bool:
    if {"prompt", "steps", "answer"} <= value.keys():
        return _lines(value["steps"]) and isinstance(value["answer"], str)
    if {"prompt", "completions", "is_correct"} <= value.keys():
        return _lines(value["completions"])
    return {"question", "answer"} <= value.keys() and "####" in str(value["answer"])


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    if "question" in value:
        rest = {name: cell for name, cell in value.items() if name not in ("question", "answer")}
        final = value["answer"].rsplit("####", 1)[1].strip()
        return {**rest, "prompt": value["question"], "completion": value["answer"], "answer": final}
    if "steps" in value:
        return {**value, "completion": "\n".join([*value["steps"], f"#### {value['answer']}"])}
    return {**value, "completion": "\n".join(value["completions"])}


def _lines(cell: Any) -> bool:
    return isinstance(cell, list) and all(isinstance(line, str) for line in cell)
