"""Wizard of Wikipedia (Dinan et al. 2019, arXiv:1811.01241) and FaithDial (Dziri et al. 2022, arXiv:2204.10757).

A row of FaithDial as its loader flattens it is one response: `history`, `knowledge`, `response`. The files of both are
whole dialogues, of which `responses_of_dialogue` makes such rows.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from keel.data.problems import RowError
from keel.data.rows import kind_of
from keel.data.sources.lol_rl import turns_before_the_response

__all__ = ["adapt", "matches", "responses_of_dialogue"]

_NOTHING_CHOSEN = "no_passages_used"
_DIALOGUES = ("dialog", "utterances")


def matches(value: Mapping[str, Any]) -> bool:
    history = value.get("history")
    return {"knowledge", "response"} <= value.keys() and isinstance(history, list) and all(
        isinstance(said, str) for said in history)


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    """The knowledge is the system's turn and, for rewards that read it, in meta."""
    rest = {name: cell for name, cell in value.items() if name != "history"}
    knowledge, history = value["knowledge"], value["history"]
    if not isinstance(knowledge, str):
        raise RowError("wrong type", f"knowledge is {kind_of(knowledge)}, not one text",
                       "Write the one sentence that the response builds on.")
    return {**rest, "prompt": turns_before_the_response(knowledge.strip(), [said.strip() for said in history])}


def responses_of_dialogue(value: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
    """A row for each turn of the wizard's; None for one without a chosen passage or without anything before it.

    Raises:
        RowError: it is no dialogue of these sets.
    """
    turns = next((value[name] for name in _DIALOGUES if name in value), None)
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise RowError("no dialogue", f"there is no list of turns; there are {', '.join(value) or 'no columns'}",
                       "Wizard of Wikipedia calls it `dialog`, FaithDial `utterances`.")
    history: list[str] = []
    for turn in turns:
        if "knowledge" in turn:
            yield dict(turn) if turn.get("history") else None
            continue
        if not isinstance(turn.get("text"), str) or not isinstance(turn.get("speaker"), str):
            raise RowError("incomplete turn", f"a turn has the keys {', '.join(turn)}",
                           "Every turn of a dialogue needs a speaker and a text.")
        if "Wizard" in turn["speaker"]:
            knowledge = _chosen(turn.get("checked_sentence"))
            whole = knowledge is not None and history
            yield {"history": list(history), "knowledge": knowledge, "response": turn["text"].strip(),
                   "topic": value.get("chosen_topic")} if whole else None
        history.append(turn["text"])


def _chosen(sentence: Any) -> str | None:
    """The sentence that the wizard chose; the files hold it under its passage's name."""
    found = next(iter(sentence.values()), None) if isinstance(sentence, Mapping) else None
    return found if isinstance(found, str) and found and found != _NOTHING_CHOSEN else None
