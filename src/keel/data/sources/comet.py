"""ATOMIC (Hwang et al. 2021, arXiv:2010.05953) and ATOMIC-10x (West et al. 2022, arXiv:2110.07178).

A row is `head`, `relation`, `tail`. Its prompt is spelled as COMET-distill was trained; read it with `as_text`.
ATOMIC-10x has the probability of its critic beside, `p_valid_model`, which becomes the stored reward of that name.
"""

from collections.abc import Mapping
from typing import Any

from keel.data.turns import text_of

__all__ = ["CRITIC", "RELATIONS", "adapt", "matches"]

CRITIC = "p_valid_model"
RELATIONS = ("HinderedBy", "xNeed", "xWant", "xIntent", "xReact", "xAttr", "xEffect")
"""The seven that ATOMIC-10x has, of the twenty-three of ATOMIC-2020."""


def matches(value: Mapping[str, Any]) -> bool:
    return {"head", "relation", "tail"} <= value.keys()


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: cell for name, cell in value.items() if name not in ("tail", CRITIC)}
    head, relation = (text_of(value[name], name).strip() for name in ("head", "relation"))
    row = {**rest, "prompt": f"<head> {head} </head> <relation> {relation} </relation> [GEN] ",
           "response": value["tail"]}
    return row | ({"rewards": {CRITIC: _number(value[CRITIC])}} if CRITIC in value else {})


def _number(cell: Any) -> Any:
    """The probability; tables hold it as text, and what is no number is left for the reader to refuse."""
    try:
        return float(cell) if isinstance(cell, str) else cell
    except ValueError:
        return cell
