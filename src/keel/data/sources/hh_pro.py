"""HH-RLHF as normalised in `hh_rlhf/`: the conversation is called `turns`, the two replies are strings.

`rewards` (raw scores of a public reward model) and `eval_excluded` (on the authors' exclusion list) go to meta.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["adapt", "matches"]


def matches(value: Mapping[str, Any]) -> bool:
    return {"turns", "chosen", "rejected"} <= value.keys() and isinstance(value["turns"], list)


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: cell for name, cell in value.items() if name != "turns"}
    return {**rest, "prompt": value["turns"]}
