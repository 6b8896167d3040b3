"""The records that every reader ends in and everything downstream starts from. Validated once, here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Demonstration", "Message", "PreferencePair", "Prompt"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; role is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """A conversation whose next turn is the assistant's.

    Attributes:
        id: stable name, used in logs, random streams and error messages.
        messages: the turns so far; the last one is not the assistant's. Empty for continuation of plain text.
        text: plain text to continue, for models without a chat template; then `messages` is empty.
        meta: what the file says beside (domain, subset, ...); shown in reports, never trained on.
        truth: what only a simulation knows (gold parts, whether a label is wrong); training code never reads it.
    """

    id: str
    messages: tuple[Message, ...]
    text: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    truth: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the response to imitate. With `prompt.text == ""` and no messages: plain text to model from the start."""

    prompt: Prompt
    response: str

    @property
    def id(self) -> str:
        return self.prompt.id


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one prompt, of which annotators preferred the first.

    Attributes:
        margin: gap asked of the two scores, inside the log-sigmoid; 0 where the data give none.
        label_prob: probability in [0, 1] that chosen is really the better one.
        weight: share of the pair in the loss, >= 0; 0 drops it.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float = 0.0
    label_prob: float = 1.0
    weight: float = 1.0

    @property
    def id(self) -> str:
        return self.prompt.id
