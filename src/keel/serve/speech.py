"""The text of a response while its tokens come: only what no later token can change is given out."""

from keel.data.render import Template

__all__ = ["Speech"]

_HALF = "\ufffd"
"""What a tokenizer writes for bytes that are no character yet."""


class Speech:
    """Pieces of text whose sum is the response.

    Args:
        template: of the tokenizer.
        stops: texts that end the response; neither they nor what follows is given out.
        lead: what the template writes before a response, which is no part of it.
    """

    def __init__(self, template: Template, stops: tuple[str, ...] = (), lead: str = "") -> None:
        self.stopped = False
        self._template, self._stops = template, stops
        self._ids: list[int] = []
        self._start = self._told = 0  # a window: decoded again with each token, and how much of it has been given out
        self._held = ""
        self._lead = lead

    def add(self, token: int) -> str:
        """The text that is certain once this token is there; often none."""
        self._ids.append(token)
        before, now = self._decoded(self._ids[self._start:self._told]), self._decoded(self._ids[self._start:])
        if now.endswith(_HALF) or len(now) == len(before):
            return ""
        self._start, self._told = self._told, len(self._ids)
        return self._released(now[len(before):])

    def close(self) -> str:
        """What is left when no token follows."""
        if self.stopped:
            return ""
        before, now = self._decoded(self._ids[self._start:self._told]), self._decoded(self._ids[self._start:])
        self._start = self._told = len(self._ids)
        found = self._released(now[len(before):])
        rest, self._held = self._held, ""
        return found if self.stopped else found + rest

    def _decoded(self, ids: list[int]) -> str:
        return str(self._template.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _released(self, text: str) -> str:
        if self._lead:
            text, self._lead = text.removeprefix(self._lead), ""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[:min(found)], ""
            return out
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - kept
        out, self._held = self._held[:cut], self._held[cut:]
        return out


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of the text a stop may begin with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
