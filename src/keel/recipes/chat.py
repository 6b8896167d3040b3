"""Talk to a model in the terminal, turn by turn.

Left out: a web page; `keel generate` answers files of prompts.
"""

import sys
from collections.abc import Iterable

from pydantic import Field

from keel.config import Config
from keel.data.records import Message, Prompt
from keel.data.render import render_prompts, template
from keel.errors import ConfigError, DataError
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.rollout.respond import respond
from keel.rollout.sample import SamplingConfig

__all__ = ["ChatConfig", "run"]


class ChatConfig(Config):
    """Everything `keel chat` reads."""

    model: ModelConfig = Field(description="policy to talk to")
    system: str | None = Field(None, description="system prompt")
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
    said = [Message("system", cfg.system)] if cfg.system else []
    for turn, line in enumerate(lines if lines is not None else spoken()):
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
        print(answer, flush=True)
        said.append(Message("assistant", answer))
    return said


def spoken() -> Iterable[str]:
    """Lines typed by the user, with a mark to type behind where somebody is looking."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line
