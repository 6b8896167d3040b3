"""How far a response plays its role, 0 to 3: by a Python function, a local model, or an endpoint.

What is asked is the role's own judge prompt (arXiv:2601.10387); a trait's asks for 0 to 100. A reply is read strictly:
its first number must be whole, without a sign, and within the range. What cannot be read is no score, and is counted.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, model_validator

from keel.bench.judges import Ask, ChatConfig, JudgeConfig, Said, judge_of
from keel.config import Config
from keel.data.records import Message, Prompt
from keel.data.roles import filled
from keel.errors import EndpointError, KeelError, NumericsError
from keel.models.load import FrozenModelConfig
from keel.named import named_function

__all__ = ["Rated", "RoleJudge", "RoleJudgeConfig", "read_score"]

SOURCES = ("function", "model", "endpoint")
OF_TEXT = ("temperature", "max_new_tokens", "batch_tokens", "failed_fraction")
SURE_AFTER = 100
"""Calls before which a few failures do not stop a run that has more calls."""
_NUMBER = re.compile(r"[-+\u2212\u2013]?(?<![\w.])\d+(?:[.,]\d+)*(?:\s*[-/\u2013]\s*\d+)?\w*")


class RoleJudgeConfig(Config):
    """Who scores responses. Exactly one of function, model and endpoint is given."""

    function: str | None = Field(None, description="package.module:function of (prompt, text, ended) -> 0, 1, 2, 3 or "
                                 "None; traits are not asked about")
    model: FrozenModelConfig | None = Field(None, description="a causal language model, run here")
    endpoint: ChatConfig | None = Field(None, description="an OpenAI-compatible chat endpoint")
    temperature: float = Field(0.0, ge=0, le=10, description="of its sampling; 0 takes the most probable token")
    max_new_tokens: int = Field(10, ge=1, description="longest reply in tokens")
    batch_tokens: int = Field(32768, ge=1, description="token positions that a local model holds at once")
    failed_fraction: float = Field(0.05, ge=0, le=1, description="share of calls that may fail before the run stops")

    @model_validator(mode="after")
    def _check(self) -> "RoleJudgeConfig":
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"who scores roles is exactly one of function, model and endpoint; given: "
                             f"{', '.join(given) or 'none'}")
        idle = [name for name in OF_TEXT if getattr(self, name) != type(self).model_fields[name].default]
        if idle and self.function is not None:
            raise ValueError(f"{idle[0]} acts on a judge that writes text; a function is only called")
        return self


@dataclass(frozen=True)
class Rated:
    """A response to be scored.

    Attributes:
        prompt: its conversation; `meta` names the role.
        text: the response.
        ended: False where it was cut.
        question: that the judge is shown.
        eval_prompt: of the role; None: not asked about.
        highest: 3, or 100 for a trait.
    """

    prompt: Prompt
    text: str
    ended: bool
    question: str
    eval_prompt: str | None
    highest: int = 3


def read_score(reply: str, highest: int = 3) -> int | None:
    """The first number of a reply, where it is a whole one from 0 to `highest`: neither -1 nor 3.5, nor 2-3 or 3/4."""
    found = _NUMBER.search(reply)
    if found is None or re.fullmatch(r"[0-9]{1,3}", found.group()) is None:
        return None
    return score if (score := int(found.group())) <= highest else None


@dataclass
class RoleJudge:
    """Scores batches of responses, and counts what went wrong.

    Attributes:
        cfg: who is asked.
        seed: of what a judge draws.
        n_asked, n_failed: calls so far.
    """

    cfg: RoleJudgeConfig
    seed: int
    n_asked: int = 0
    n_failed: int = 0
    _asked: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.cfg.function is not None:
            self._asked = named_function(self.cfg.function, "judge.function")
        else:
            self._asked = judge_of(JudgeConfig(
                model=self.cfg.model, endpoint=self.cfg.endpoint, mode="direct", criteria=None,
                temperature=self.cfg.temperature, max_new_tokens=self.cfg.max_new_tokens,
                batch_tokens=self.cfg.batch_tokens, retry_unparsed=False), seed=self.seed)

    @property
    def name(self) -> str:
        """Who scores, for the metadata of what comes of it."""
        return f"function {self.cfg.function}" if self.cfg.function else f"model {self._asked.name}"

    @property
    def scores_traits(self) -> bool:
        return self.cfg.function is None

    def scores(self, rated: Sequence[Rated]) -> list[int | None]:
        """A score each; none where nothing could be read, or where the role has no judge prompt.

        Raises:
            NumericsError: the function failed, or gave something else than a score.
            EndpointError: too many calls failed.
        """
        if self.cfg.function is not None:
            return [_of_function(self._asked, one) for one in rated]
        wanted = [i for i, one in enumerate(rated) if one.eval_prompt is not None]
        asks = [Ask(rated[i].prompt.id, _talk(rated[i])) for i in wanted]
        found: list[int | None] = [None] * len(rated)
        for i, said in zip(wanted, self._replies(asks), strict=True):
            found[i] = None if said.failed is not None else read_score(said.text, rated[i].highest)
        return found

    def _replies(self, asks: Sequence[Ask]) -> list[Said]:
        found: dict[int, Said] = {}
        batches = self._asked.plan(asks) if asks else []
        with ThreadPoolExecutor(self._asked.concurrency) as pool:
            for batch, said in zip(batches, pool.map(lambda batch: self._asked.reply([asks[i] for i in batch]),
                                                     batches), strict=True):
                found |= dict(zip(batch, said, strict=True))
        replies = [found[i] for i in range(len(asks))]
        self.n_asked += len(replies)
        failures = [said.failed for said in replies if said.failed is not None]
        self.n_failed += len(failures)
        if failures and self.n_failed > self.cfg.failed_fraction * max(self.n_asked, SURE_AFTER):
            raise EndpointError(f"{self.n_failed} of {self.n_asked} calls to the judge of roles failed; the last one: "
                                f"{failures[-1]}", where=self.name,
                                remedy="Mend the judge and continue with --resume, or raise judge.failed_fraction.")
        return replies


def _talk(one: Rated) -> Callable[[], list[Message]]:
    return lambda: [Message("user", filled(str(one.eval_prompt), one.question, one.text))]


def _of_function(function: Callable[[Prompt, str, bool], Any], one: Rated) -> int | None:
    if one.highest != 3:
        return None
    try:
        score = function(one.prompt, one.text, one.ended)
    except KeelError:
        raise
    except Exception as error:
        raise NumericsError(f"the function that scores roles failed: {type(error).__name__}: {error}",
                            where=f"record {one.prompt.id}", remedy="It must take any text at all.") from error
    if score is not None and (isinstance(score, bool) or score not in (0, 1, 2, 3)):
        raise NumericsError(f"the function that scores roles gave {score!r:.40}", where=f"record {one.prompt.id}",
                            remedy="It must give 0, 1, 2 or 3, or None where it cannot say.")
    return None if score is None else int(score)
