"""Responses by the number, and what they are worth: for tests of worth and choice."""

import torch

from keel.data.kinds import OF_PAIR
from keel.data.records import Graded, Message, Prompt
from keel.train.worth import Worth


def doubles(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def worth(rewards, values=None) -> Worth:
    return Worth(doubles(*rewards), None if values is None else doubles(*values))


def graded(i: int, text: str = "why", says: str = "yes", **meta) -> Graded:
    return Graded(Prompt(f"r{i}", (Message("user", text),), meta=meta), says, {})


def pair(name: str, own: dict | None = None, **grades) -> list[Graded]:
    """Both responses of a pair; `grades` hold two numbers a name."""
    meta = {OF_PAIR: own} if own else {}
    return [Graded(Prompt(f"{name}/{side}", (), name, meta), side, {key: x[i] for key, x in grades.items()}, name)
            for i, side in enumerate(("chosen", "rejected"))]
