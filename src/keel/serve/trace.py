"""Where a response is on the axis while it is written, and whether that is where the default Assistant is."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from keel.serve.engine import Event

__all__ = ["LEAST", "Range", "Trace"]

LEAST = 8
"""Tokens that a rolling mean has to be of before it says anything."""


@dataclass(frozen=True)
class Range:
    """Between which projections nine in ten of the default Assistant's responses are."""

    low: float
    high: float

    def side(self, value: float) -> Literal["below", "above"] | None:
        """Where a value is that is not inside."""
        return "below" if value < self.low else "above" if value > self.high else None


@dataclass(eq=False)
class Trace:
    """The projections of one response, in the order in which its tokens are fed.

    Attributes:
        layer: block they are read behind.
        window: tokens of the rolling mean.
        usual: the default range; none where nobody measured it.
        turns: role and token positions of each turn of the prompt.
    """

    layer: int
    window: int
    usual: Range | None
    turns: Sequence[tuple[str, Sequence[int]]] = ()
    values: list[float] = field(default_factory=list)
    recent: deque[float] = field(default_factory=deque)

    def heard(self, event: Event) -> dict[str, Any]:
        """What a streamed chunk says of this event; empty where there is nothing."""
        said: dict[str, Any] = {}
        if event.prompt:
            said |= {"layer": self.layer, "turns": self.of_turns(event.prompt)}
        if event.readings:
            for _, value, _ in event.readings:
                self.values.append(value)
                self.recent.append(value)
                if len(self.recent) > self.window:
                    self.recent.popleft()
            said |= {"tokens": [{"index": index, "projection": value, "bounded": bounded}
                                for index, value, bounded in event.readings]} | self.rolling()
        if event.end in ("stop", "length"):
            said["message"] = self.message()
        return said

    def rolling(self) -> dict[str, Any]:
        """The mean of the last tokens, and on which side of the default range it is."""
        mean = sum(self.recent) / len(self.recent)
        known = self.usual is not None and len(self.recent) >= min(LEAST, self.window)
        return {"rolling": mean, "outside": self.usual.side(mean) if self.usual is not None and known else None}

    def message(self) -> dict[str, Any]:
        """The mean of the whole response, which is what the default range was measured on."""
        n = len(self.values)
        mean = sum(self.values) / n if n else None
        outside = None if mean is None or self.usual is None else self.usual.side(mean)
        return {"projection": mean, "n_tokens": n, "outside": outside}

    def of_turns(self, prompt: Sequence[float]) -> list[dict[str, Any]]:
        """The mean over the content of each turn of the prompt; null where none of it is known."""
        found = []
        for index, (role, positions) in enumerate(self.turns):
            values = [prompt[place] for place in positions if place < len(prompt)]
            found.append({"turn": index, "role": role, "n_tokens": len(values),
                          "projection": sum(values) / len(values) if values else None})
        return found
