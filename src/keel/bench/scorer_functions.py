"""Scores from a Python function."""

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from keel.bench.items import Asked
from keel.data.records import Prompt
from keel.errors import ConfigError, KeelError, NumericsError
from keel.named import named_function

__all__ = ["FunctionScorer", "as_messages", "as_text"]

BATCH = 32


class FunctionScorer:
    """A Python function of (prompt, response) -> float; a `Scorer`.

    With prompt_as = record it is one of (prompt record, response, ended) -> float, as `rewards` of `keel ppo` takes
    it. Whether a stored response ended by itself is not known, so ended is True.

    Attributes:
        name, fingerprint, concurrency, counts, flagged: see `Scorer`.
        resolution: 0: it computes in whatever it likes.
    """

    def __init__(self, name: str, function: str, prompt_as: Literal["messages", "text", "record"]) -> None:
        self.name, self.concurrency, self.resolution = name, 1, 0.0
        self._function: Callable[..., Any] = named_function(function, "function")
        self._prompt_as = prompt_as
        self.fingerprint: Mapping[str, Any] = {"kind": "function", "function": function, "prompt_as": prompt_as,
                                               "source": _source_digest(function, self._function)}
        self.counts: Mapping[str, int] = {}
        self.flagged: Mapping[str, str] = {}

    def plan(self, asked: Sequence[Asked]) -> list[list[int]]:
        """As they come, a few together: a function may be slow, and what is scored is kept batch by batch."""
        return [list(range(start, min(start + BATCH, len(asked)))) for start in range(0, len(asked), BATCH)]

    def score(self, asked: Sequence[Asked]) -> list[float]:
        """Scores of a batch.

        Raises:
            NumericsError: the function failed, or gave something that is no number.
        """
        return [self._one(one) for one in asked]

    def _one(self, asked: Asked) -> float:
        given = self._arguments(asked)
        try:
            found = self._function(*given)
        except KeelError:
            raise
        except Exception as error:
            # Its message may repeat the text, which has no place in logs.
            raise NumericsError(f"the scoring function failed with {type(error).__name__} {_place(error)}",
                                where=f"response {asked.id}", remedy="It must give a number for any text at all.",
                                ) from error
        if not isinstance(found, Real) and not (hasattr(found, "__float__") and getattr(found, "ndim", 0) == 0):
            raise NumericsError(f"the scoring function gave {type(found).__name__}, not a number",
                                where=f"response {asked.id}", remedy="Let it return one float for a response.")
        return float(found)  # type: ignore[arg-type]

    def _arguments(self, asked: Asked) -> tuple[Any, ...]:
        """What the function is called with."""
        if self._prompt_as == "record":
            return asked.prompt, asked.response, asked.ended
        shown = as_messages if self._prompt_as == "messages" else as_text
        return shown(asked.prompt), asked.response


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """The turns as dicts; a bare text is one turn of the user."""
    if prompt.text is not None:
        return [{"role": "user", "content": prompt.text}]
    return [{"role": turn.role, "content": turn.content} for turn in prompt.messages]


def as_text(prompt: Prompt) -> str:
    """A bare text as it is; the turns of a conversation as `role: content`, a blank line between them."""
    if prompt.text is not None:
        return prompt.text
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt.messages)


def _source_digest(name: str, function: Callable[..., Any]) -> str | None:
    """SHA-256 of the source files of the module that is named and of what defines the function.

    Not of what these import, nor of files that they read. None where there is no source (compiled modules).
    """
    found = [_source_file(part) for part in (sys.modules[name.partition(":")[0]], *_layers(function))]
    files = list(dict.fromkeys(file for file in found if file is not None))
    try:
        return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest() if files else None
    except OSError as error:
        raise ConfigError(f"cannot read the source of {name!r}: {error.strerror}", where="function",
                          remedy="Cached scores are told apart by it; make the module's file readable.") from error


def _layers(function: Any) -> Iterator[Any]:
    """The function, and what it wraps as decorators and `functools.partial` do; of an object its class."""
    while function is not None:
        yield function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
        inner = function.func if isinstance(function, functools.partial) else None
        function = getattr(function, "__wrapped__", inner)


def _source_file(part: Any) -> str | None:
    try:
        return inspect.getsourcefile(part)
    except TypeError:  # built in
        return None


def _place(error: BaseException) -> str:
    """Where it was raised. A trace of one frame never came into the function."""
    trace = error.__traceback__
    if trace is None or trace.tb_next is None:
        return "when it was called with a prompt and a response (and ended, where prompt_as = record)"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"in line {trace.tb_lineno}"
