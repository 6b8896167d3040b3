"""Kaggle's scored Reddit comments: `text` answers `parent_text`; `score` is its upvotes less its downvotes.

The score goes to meta: it tells upvoted from downvoted replies and is no reward of A-LoL's.
"""

from collections.abc import Mapping
from typing import Any

from keel.data.problems import RowError

__all__ = ["adapt", "matches"]

_COMMENT = {"parent_id", "link_id", "score"}


def matches(value: Mapping[str, Any]) -> bool:
    return value.keys() >= _COMMENT


def adapt(value: Mapping[str, Any]) -> dict[str, Any]:
    absent = [name for name in ("parent_text", "text") if name not in value]
    if absent:
        raise RowError("deleted comment", f"{' and '.join(absent)} is empty",
                       "Such rows hold nothing to answer or no answer; drop them with on_bad_record = skip.")
    rest = {name: cell for name, cell in value.items() if name not in ("parent_text", "text")}
    return {**rest, "prompt": value["parent_text"], "response": value["text"]}
