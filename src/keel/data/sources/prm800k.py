"""PRM800K (Lightman et al. 2023, arXiv:2305.20050), as published: `question` and `label`, both objects.

A step lists completions with a `rating` each: 1 right, 0 neutral, -1 wrong. The labeller went on from the chosen one,
or wrote one where none would do. Those are the solution; where the labelling stopped at an error, it ends with that
error. Every other rated completion becomes a further solution that ends with it. There the steps before have no label,
so that each rating stands in the data once.

Neutral counts as right. So does the labeller's own completion, which has no rating.
"""

from collections.abc import Mapping
from typing import Any

from keel.data.problems import RowError

__all__ = ["BRANCHES", "NAME", "adapt", "matches"]

NAME = "PRM800K"
BRANCHES = "prm800k_branches"
"""Column under which the further solutions of a row travel."""
_RENAMED = {"problem": "prompt", "ground_truth_answer": "answer", "ground_truth_solution": "gold_solution",
            "pre_generated_answer": "model_answer"}
_REPEATED = "pre_generated_steps"


def matches(value: Mapping[str, Any]) -> bool:
    question, label = value.get("question"), value.get("label")
    return isinstance(question, Mapping) and "problem" in question and isinstance(label, Mapping) and "steps" in label


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    question, label = value["question"], value["label"]
    row = {name: cell for name, cell in value.items() if name not in ("question", "label")}
    row |= {_RENAMED.get(name, name): cell for name, cell in question.items() if name != _REPEATED}
    row |= {"finish_reason": label.get("finish_reason"), "completions": [], "labels": [], BRANCHES: []}
    ended = label.get("finish_reason") == "solution"
    for number, step in enumerate(label["steps"] if isinstance(label["steps"], list) else [], start=1):
        taken, others = _parted(step, number)
        before = row["completions"]
        row[BRANCHES] += [{"completions": [*before, one["text"]], "labels": [None] * len(before) + [_right(one)]}
                          for one in others]
        if taken is None:
            ended = False
            break
        row["completions"], row["labels"] = [*before, taken["text"]], [*row["labels"], _right(taken)]
    # Else nobody labelled what the solution would have gone on with.
    return row | ({"outcome": True} if ended else {"ended": False})


def _parted(step: Any, number: int) -> tuple[Mapping[str, Any] | None, list[Mapping[str, Any]]]:
    """The completion that the solution goes on with, if any, and the other ones that were rated."""
    completions = (step.get("completions") or []) if isinstance(step, Mapping) else None
    own = step.get("human_completion") if isinstance(step, Mapping) else None
    if not isinstance(completions, list) or not all(
            isinstance(one, Mapping) and isinstance(one.get("text"), str)
            for one in [*completions, *([] if own is None else [own])]):
        raise RowError("bad step of PRM800K", f"step {number} has no list of completions with a text each",
                       "A step is {completions: [{text, rating}, ...], human_completion, chosen_completion}.")
    place = step.get("chosen_completion")
    if place is not None and (not isinstance(place, int) or not 0 <= place < len(completions)):
        raise RowError("bad step of PRM800K", f"step {number} chose completion {place!r} of {len(completions)}",
                       "chosen_completion is an index from 0 on, or null.")
    if place is None:
        place = next((i for i, one in enumerate(completions) if own is None and one.get("rating") == -1), None)
    others = [one for i, one in enumerate(completions) if i != place and one.get("rating") is not None]
    if place is None:
        return (None if own is None else {"text": own["text"], "rating": 1}), others
    return completions[place], others


def _right(completion: Mapping[str, Any]) -> bool | None:
    rating = completion.get("rating")
    if rating not in (-1, 0, 1, None):
        raise RowError("bad rating", f"the rating of a completion is {rating!r}",
                       "PRM800K rates with -1, 0, 1 or null.")
    return None if rating is None else rating >= 0
