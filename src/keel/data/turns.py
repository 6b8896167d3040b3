"""Conversations in the spellings people store them in, to tuples of `Message`."""

import json
import re
from collections.abc import Mapping
from typing import Any

from keel.data.problems import RowError
from keel.data.records import Message
from keel.data.rows import kind_of

__all__ = ["is_transcript", "messages", "one_response", "text_of", "transcript", "utterances"]

_ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "system": "system",
}
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def text_of(cell: Any, name: str) -> str:
    """The cell, which must be text.

    Raises:
        RowError: it is something else.
    """
    if not isinstance(cell, str):
        raise RowError("wrong type", f"{name} is {kind_of(cell)}, not text", "Put the text in quotes.")
    return cell


def messages(cell: Any, name: str) -> tuple[Message, ...]:
    """A list of `{role, content}` or ShareGPT's `{from, value}`.

    Raises:
        RowError: it is not such a list.
    """
    if not isinstance(cell, list) or not all(isinstance(turn, dict) for turn in cell):
        found = kind_of(cell) if not isinstance(cell, list) else "a list of other things"
        raise RowError("wrong type", f"{name} is {found}, not a list of messages",
                       'Write it as [{"role": "user", "content": "..."}, ...].')
    return tuple(_message(turn, name, number) for number, turn in enumerate(cell, start=1))


def _message(turn: Mapping[str, Any], list_name: str, number: int) -> Message:
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if isinstance(content, str) and isinstance(role, str) and role in _ROLES:
        return Message(_ROLES[role], content)
    name = f"{list_name}, turn {number}"
    if role is None or content is None:
        raise RowError("incomplete message", f"{name} has the keys {', '.join(turn) or 'of an empty object'}",
                       "Every message needs a role and a content (or ShareGPT's from and value), both filled.")
    role = text_of(role, f"{name}: role")
    return Message(_ROLES.get(role.lower(), role), _content(content, name))


def _content(content: Any, name: str) -> str:
    """Text, or the list of text parts that multimodal files use."""
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        kinds = sorted({str(part.get("type")) for part in content} - {"text"})
        if kinds:
            raise RowError("not text", f"{name} holds {', '.join(kinds)}", "keel trains on text; leave the record out.")
        return "".join(text_of(part.get("text"), name) for part in content)
    return text_of(content, name)


def utterances(cell: Any, name: str) -> tuple[Message, ...]:
    """A list of strings, speakers alternating, the user first.

    Raises:
        RowError: it is not such a list.
    """
    if not isinstance(cell, list | tuple) or not all(isinstance(turn, str) for turn in cell):
        raise RowError("wrong type", f"{name} is not a list of utterances", "Every entry of the list must be text.")
    return tuple(Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(cell))


def one_response(cell: Any, name: str) -> str:
    """A response: text, or a list with one assistant message.

    Raises:
        RowError: another type, another role, or several messages.
    """
    if isinstance(cell, str):
        return cell
    if isinstance(cell, list) and len(cell) == 1 and isinstance(cell[0], str):
        return cell[0]
    turns = messages(cell, name)
    if len(turns) != 1 or turns[0].role != "assistant":
        found = ", ".join(turn.role for turn in turns) or "nothing"
        raise RowError("not one response", f"{name} holds {found}, not one assistant message",
                       "Put earlier turns into the prompt; the response is one assistant message.")
    return turns[0].content


def is_transcript(text: Any) -> bool:
    """Anthropic's spelling: `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    return isinstance(text, str) and text.startswith(("\n\nHuman:", "Human:", "\n\nAssistant:")) \
        and "\n\nAssistant:" in text


def transcript(text: str, name: str) -> tuple[Message, ...]:
    """Its turns, without the spaces around them. An open `Assistant:` at the end of a prompt is no turn.

    Raises:
        RowError: text stands before the first speaker.
    """
    before, *rest = _SPEAKER.split(text)
    if before.strip():
        raise RowError("bad transcript", f"{name} has text before the first speaker: {before.strip()[:40]!r}",
                       "A transcript begins with `\\n\\nHuman:`.")
    turns = [Message(_ROLES[who.lower()], said.strip()) for who, said in zip(rest[::2], rest[1::2], strict=True)]
    if name == "prompt" and turns and turns[-1] == Message("assistant", ""):
        turns.pop()
    return tuple(turns)


def spelled_out(cell: Any) -> Any:
    """A cell of a text-only file: a list or an object that is written as JSON becomes one."""
    if isinstance(cell, str) and cell[:1] in "[{":
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell
