"""Whole conversations, to be measured and not to be learnt from: any number of turns, some of them empty."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keel.data.formats import missing
from keel.data.kinds import parts_of, prompt_in
from keel.data.problems import RowError
from keel.data.records import ROLES, Message
from keel.data.rows import Row, stem
from keel.data.turns import messages, spelled_out

__all__ = ["Dialogue", "dialogue_of"]

_SUFFIX = ".json"


@dataclass(frozen=True)
class Dialogue:
    """A conversation as it took place.

    Attributes:
        id: stable name.
        messages: its turns in order; whose each is, only its role says.
        domain: what it is about, where the file says so.
        label: under which condition it took place (capped, ...), where the file says so.
        meta: everything else in the row.
    """

    id: str
    messages: tuple[Message, ...]
    domain: str | None = None
    label: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def dialogue_of(
    row: Row, *, domain: str, label: str, strip: Sequence[str], left_out: Counter[str],
) -> tuple[str, list[Dialogue]]:
    """The layout's name and the row's conversation: messages, ShareGPT, a prompt with a response, or a row of the
    transcripts published with "The Assistant Axis" (arXiv:2601.10387).

    Args:
        row: of a file.
        domain: column with what it is about; in the published rows `domain` is the scenario.
        label: column with its condition; in the published rows `variant`.
        strip: names of tags: blocks <NAME>...</NAME> and lone tags <NAME> are cut out of all turns.
        left_out: counts what was cut.

    Raises:
        RowError: the row holds no conversation, or one in which the assistant says nothing.
    """
    layout, read = _read(row)
    found = tuple(Message(turn.role, _stripped(turn.content, strip, left_out)) for turn in read.messages)
    for number, turn in enumerate(found, start=1):
        if turn.role not in ROLES:
            raise RowError("unknown role", f"message {number} of the conversation is by {turn.role!r}",
                           f"Roles are {', '.join(ROLES)}; rename it, or leave the message out.")
    if not any(turn.role == "assistant" and turn.content.strip() for turn in found):
        raise RowError("no assistant turn", "the assistant says nothing in this conversation",
                       "There is nothing to measure; remove the record.")
    return layout, [Dialogue(read.id, found, _word(read.meta, domain), _word(read.meta, label), read.meta)]


def _read(row: Row) -> tuple[str, Dialogue]:
    """The layout's name, and the conversation as the row holds it; what it is about is still in its meta."""
    value = {key: spelled_out(cell) for key, cell in row.value.items()} if row.textual else row.value
    inner = value.get("transcript")
    if isinstance(inner, Mapping) and "conversation" in inner:
        # `turns` of these rows counts sometimes messages, sometimes user turns, sometimes neither; it is not read.
        meta = _without({**inner, **value}, "conversation", "transcript")
        name = str(value.get("source_path", _numbered(row)))
        while name.endswith(_SUFFIX):  # one of the published names has it twice
            name = name.removesuffix(_SUFFIX)
        meta |= {"domain": meta.get("scenario", meta.get("domain"))}
        return "transcript", Dialogue(name, messages(inner["conversation"], "conversation"), meta=meta)
    if "conversation" in value:
        name, turns = str(value.get("id", _numbered(row))), messages(value["conversation"], "conversation")
        return "conversation", Dialogue(name, turns, meta=_without(value, "id", "conversation"))
    found, columns = parts_of(row)
    if len(found.responses) > 1 or found.layout in ("text", "ranking"):
        raise missing(columns, "a conversation", ("messages", "conversations", "conversation"))
    prompt = prompt_in(row, found, columns, False)
    said = tuple(Message("assistant", text) for text in found.responses)
    return found.layout, Dialogue(prompt.id, prompt.messages + said, meta=prompt.meta)


def _without(value: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: cell for key, cell in value.items() if key not in names}


def _numbered(row: Row) -> str:
    return f"{stem(row.file)}:{row.line}"


def _stripped(text: str, names: Sequence[str], left_out: Counter[str]) -> str:
    """Without the tagged parts; the space before one that stood at the end goes too."""
    for name in names:
        tag = re.escape(name)
        text, n_blocks = re.subn(rf"\s*<{tag}>.*?</{tag}>\s*\Z|<{tag}>.*?</{tag}>", "", text, flags=re.DOTALL)
        text, n_tags = re.subn(rf"\s*<{tag}>\s*\Z|<{tag}>", "", text)
        left_out.update({f"{name} blocks": n_blocks} if n_blocks else {})
        left_out.update({f"{name} marks": n_tags} if n_tags else {})
    return text


def _word(meta: Mapping[str, Any], column: str) -> str | None:
    """What stands under a name as a word; none where nothing does."""
    cell = meta.get(column)
    return str(cell) if isinstance(cell, str | int | float) and str(cell).strip() else None
