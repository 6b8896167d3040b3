"""Talk to a model in the terminal, turn by turn; with an axis, its persona is steered, capped and shown as it speaks.

Left out: the web page, which `keel serve` has; `keel generate` answers files of prompts.
"""

import math
import sys
from collections.abc import Iterable
from typing import Any

from pydantic import Field
from torch import nn

from keel.config import Config
from keel.data.records import Message, Prompt
from keel.data.render import Template, render_prompts, template
from keel.errors import ConfigError, DataError
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.persona.axis import DefaultStats
from keel.persona.handles import Monitor
from keel.persona.settings import AxisConfig, watched
from keel.rollout.respond import respond
from keel.rollout.sample import SamplingConfig

__all__ = ["ChatConfig", "Trace", "run", "sparks"]

BARS = "▁▂▃▄▅▆▇█"


class ChatConfig(Config):
    """Everything `keel chat` reads."""

    model: ModelConfig = Field(description="policy to talk to")
    system: str | None = Field(None, description="system prompt")
    axis: AxisConfig | None = Field(None, description="Assistant Axis to show each answer's projection on, and to "
                                    "steer or cap the model by; none: none")
    sampling: SamplingConfig = SamplingConfig()
    max_length: int = Field(512, ge=8, description="longest conversation in tokens; the oldest turns are dropped")
    seed: int = Field(0, ge=0, description="fixes every response")


def run(cfg: ChatConfig, *, lines: Iterable[str] | None = None) -> list[Message]:
    """Answer each line of standard input until it ends; returns the conversation."""
    if cfg.max_length <= cfg.sampling.max_new_tokens:
        raise ConfigError(f"max_length={cfg.max_length} leaves no room beside sampling.max_new_tokens="
                          f"{cfg.sampling.max_new_tokens}", remedy="Raise the first or lower the second.")
    words = template(load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code))
    policy = causal_lm(cfg.model)
    with watched(cfg.axis, policy) as monitor:
        trace = None if cfg.axis is None or monitor is None else Trace(monitor, cfg.axis.read().default_stats)
        return _conversation(cfg, words, policy, lines if lines is not None else spoken(), trace)


def _conversation(cfg: ChatConfig, words: Template, policy: nn.Module, lines: Iterable[str], trace: "Trace | None",
                  ) -> list[Message]:
    said = [Message("system", cfg.system)] if cfg.system else []
    for turn, line in enumerate(lines):
        if not line.strip():
            continue
        said.append(Message("user", line.strip()))
        prompt = Prompt(f"chat-{turn}", tuple(said))
        try:
            rows, cut = render_prompts(words, [prompt], cfg.max_length - cfg.sampling.max_new_tokens, "drop_turns")
        except DataError as error:
            print(f"(this message was not taken: {error})", file=sys.stderr)
            said.pop()
            continue
        if cut.n_fewer_turns:
            print("(the oldest turns no longer fit and were dropped)", file=sys.stderr)
        answer = respond(policy, words, rows, cfg.sampling, seed=cfg.seed, names=["chat", turn]).texts[0]
        if trace is not None:
            trace.end_turn()
        print(answer, flush=True)
        said.append(Message("assistant", answer))
    return said


class Trace:
    """Where the conversation is on the axis: live as an answer is written, and turn by turn."""

    def __init__(self, monitor: Monitor, usual: DefaultStats | None) -> None:
        self.monitor, self.turns = monitor, list[float]()
        self.usual = usual if usual is not None and usual.layer in monitor.layers else None
        if sys.stderr.isatty():
            monitor.on_token(self._live)

    def _live(self, row: dict[str, Any]) -> None:
        if row["generated"]:
            print(f"\r\033[K{self._words(row['projection'])}", end="", file=sys.stderr, flush=True)

    def end_turn(self) -> None:
        """Say where the answer was, and where all answers so far were."""
        self.turns += self.monitor.means().values()
        self.monitor.clear()
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        if self.turns:
            print(f"({self._words(self.turns[-1])}  {sparks(self.turns)})", file=sys.stderr)

    def _words(self, projection: float) -> str:
        usual = self.usual
        if usual is None:
            return f"projection {projection:+.3f}"
        place = "below" if projection < usual.low else "above" if projection > usual.high else "within"
        return f"projection {projection:+.3f}, {place} the usual {usual.low:+.3f} to {usual.high:+.3f}"


def sparks(values: list[float]) -> str:
    """The values as a line of blocks, the lowest and the highest of them at its ends."""
    known = [x for x in values if not math.isnan(x)]
    low, span = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    return "".join(" " if math.isnan(x) else BARS[round((x - low) / span * 7) if span else 3] for x in values)


def spoken() -> Iterable[str]:
    """Lines typed by the user, with a mark to type behind where somebody is looking."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line
