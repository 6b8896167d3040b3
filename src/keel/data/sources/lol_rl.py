"""The generation tasks of A-LoL (Baheti et al. 2023, arXiv:2305.14718): `prompt_or_input_text`, `references`.

GPT-2's end of text stands behind every turn of a dialogue and behind its response: such a prompt becomes turns, the
last one the user's, and `Knowledge: ...` before them the system's. A prompt without it (COMET) stays text.
`reward_components` are the stored rewards, their sum `final_reward` among them. A whole number as `id` counts dialogues
or rows, hence is not unique over the rows of several files: it goes to meta as `source_id`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from keel.data.problems import RowError
from keel.data.rows import kind_of

__all__ = ["END", "KNOWLEDGE", "adapt", "matches", "turns_before_the_response"]

END = "<|endoftext|>"
KNOWLEDGE = "Knowledge: "
_RENAMED = ("prompt_or_input_text", "references", "reward_components", "meta_data")


def matches(value: Mapping[str, Any]) -> bool:
    return {"prompt_or_input_text", "references"} <= value.keys()


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: cell for name, cell in value.items() if name not in _RENAMED}
    if isinstance(row.get("id"), int):
        row["source_id"] = row.pop("id")
    text = value["prompt_or_input_text"]
    row["prompt"] = _turns(text) if isinstance(text, str) and END in text else text
    row["response"] = _response(value["references"])
    row |= {name: cell for name, cell in (("rewards", value.get("reward_components")), ("meta", value.get("meta_data")))
            if cell is not None}
    return row


def turns_before_the_response(knowledge: str | None, history: Sequence[str]) -> list[dict[str, str]]:
    """The utterances of two speakers who take turns, the last one the user's, behind what the response builds on."""
    turns = [{"role": "user" if (len(history) - i) % 2 else "assistant", "content": said}
             for i, said in enumerate(history)]
    return turns if knowledge is None else [{"role": "system", "content": KNOWLEDGE + knowledge}, *turns]


def _turns(text: str) -> list[dict[str, str]]:
    first, *rest = text.removesuffix(END).split(END)
    if first.startswith(KNOWLEDGE) and rest:
        return turns_before_the_response(first.removeprefix(KNOWLEDGE), rest)
    return turns_before_the_response(None, [first, *rest])


def _response(references: Any) -> str:
    """The one response that the rewards are about."""
    one = references[0] if isinstance(references, list) and len(references) == 1 else references
    if not isinstance(one, str):
        found = f"a list of {len(one)}" if isinstance(one, list) else kind_of(one)
        raise RowError("not one reference", f"references is {found}, not one text",
                       "A row holds one response and its rewards; give the others rows of their own.")
    return one.removesuffix(END)
