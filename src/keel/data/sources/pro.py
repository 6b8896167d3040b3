"""PRO's files of HH-RLHF (Song et al. 2023, arXiv:2306.17492): tagged turns in `prefix`, responses in `suffix`.

`prefix` holds the same conversation once for every response, its last turn an open tag. The first of two responses is
chosen; more than two are ranked by `reward`, the raw score of a reward model, or stand best first where it is absent.
The folder that `meta.path` names (harmless-base, ...) becomes `subset`.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from keel.data.problems import RowError
from keel.data.rows import kind_of

__all__ = ["adapt", "matches"]

_ROLES = {"prompter": "user", "assistant": "assistant"}
_TURN = re.compile(r"<\|(prompter|assistant)\|>")
_TWO = 2


def matches(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("prefix"), list) and isinstance(value.get("suffix"), list)


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: cell for name, cell in value.items() if name not in ("prefix", "suffix", "reward")}
    named: Any
    row["prompt"], responses, rewards = _conversation(value["prefix"]), value["suffix"], value.get("reward")
    if rewards is not None and (not isinstance(rewards, list) or len(rewards) != len(responses)):
        found = len(rewards) if isinstance(rewards, list) else kind_of(rewards)
        raise RowError("rewards of unequal number", f"suffix has {len(responses)} responses and reward {found}",
                       "`reward` is a list with one number for each response; or leave it out.")
    if len(responses) == _TWO:
        row["chosen"], row["rejected"] = responses
        named = None if rewards is None else dict(zip(("chosen", "rejected"), rewards, strict=True))
    else:
        row["responses"], named = responses, rewards
        row |= {"ranks": list(range(1, len(responses) + 1))} if rewards is None else {"scores": rewards}
    meta = row.get("meta")
    if isinstance(meta, Mapping) and isinstance(meta.get("path"), str) and "subset" not in row:
        row["subset"] = PurePosixPath(meta["path"]).parent.name
    return row if named is None else row | {"rewards": named}


def _conversation(prefix: list[Any]) -> list[dict[str, str]]:
    """The turns that all responses answer, without the tag that opens the last one."""
    copies = prefix if all(isinstance(one, list) for one in prefix) else [prefix]
    if any(one != copies[0] for one in copies):
        raise RowError("prompts differ", "the conversations of `prefix` differ from each other",
                       "All responses of a row must answer the same conversation; split the row.")
    turns = []
    for number, said in enumerate(copies[0] if copies else [], start=1):
        tag = _TURN.match(said) if isinstance(said, str) else None
        if tag is None:
            raise RowError("untagged turn", f"turn {number} of `prefix` begins with no speaker's tag",
                           "Each turn is a text that begins with <|prompter|> or <|assistant|>.")
        turns.append({"role": _ROLES[tag[1]], "content": said[tag.end():]})
    if turns and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return turns
