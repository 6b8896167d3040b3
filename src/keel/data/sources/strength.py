"""`fnlp/hh-rlhf-strength-cleaned` (Wang et al. 2024, arXiv:2401.06080): HH-RLHF with the votes of ten reward models.

The columns are spelled with spaces, in some mirrors with underscores. The votes become the pair's strength and the
margin stays 0: using the strength as a margin is the recipe's decision, not the reader's. The label of the judge goes
to meta as `judge_label`: 1 where chosen is better, 0 where rejected is, -1 where there is none.
"""

from collections.abc import Mapping
from typing import Any

from keel.data.records import PAIR_NUMBERS, Message, PreferencePair

__all__ = ["adapt", "matches", "published_row"]

_MEAN, _STD = "mean preference difference", "std preference difference"
_CHOSEN, _REJECTED, _JUDGE = "chosen score list", "rejected score list", "GPT4 label"
_NAMES = {_MEAN: "strength_mean", _STD: "strength_std", _CHOSEN: "chosen_scores", _REJECTED: "rejected_scores",
          _JUDGE.lower(): "judge_label"}


def matches(value: Mapping[str, Any]) -> bool:
    return {"chosen", "rejected"} <= value.keys() and any(_plain(name) in _NAMES for name in value)


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    return {_NAMES.get(_plain(name), name): cell for name, cell in value.items()}


def published_row(pair: PreferencePair) -> dict[str, Any]:
    """A pair in the columns of the published set, with keel's own for what that set does not know.

    Both sides hold the shared history and their response: as utterances where user and assistant take turns, the user
    first, as messages otherwise. Reading the row gives the pair again (a bare string as prompt with `as_text`).
    """
    prompt, votes, meta = pair.prompt, pair.strength, dict(pair.prompt.meta)
    row: dict[str, Any] = {"id": prompt.id}
    if prompt.text is not None:
        row |= {"prompt": prompt.text, "chosen": pair.chosen, "rejected": pair.rejected}
    else:
        row |= {name: _side(prompt.messages, getattr(pair, name)) for name in ("chosen", "rejected")}
    if votes is not None:
        row |= {_MEAN: votes.mean, _STD: votes.std}
    if votes is not None and votes.chosen_scores:
        row |= {_CHOSEN: list(votes.chosen_scores), _REJECTED: list(votes.rejected_scores)}
    if meta.get("judge_label") is not None:
        row[_JUDGE] = meta.pop("judge_label")
    row |= {name: getattr(pair, name) for name, default in PAIR_NUMBERS.items() if getattr(pair, name) != default}
    return row | {name: part for name, part in (("meta", meta), ("truth", dict(prompt.truth))) if part}


def _side(messages: tuple[Message, ...], response: str) -> list[Any]:
    turns = [*messages, Message("assistant", response)]
    if all(turn.role == ("assistant" if i % 2 else "user") for i, turn in enumerate(turns)):
        return [turn.content for turn in turns]
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _plain(name: str) -> str:
    return name.replace("_", " ").lower()
