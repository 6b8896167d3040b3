"""From a request to the jobs of the engine, and from their events to an answer."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from keel.data.records import Message, Prompt, check_prompt
from keel.data.render import Template
from keel.data.spans import render_conversation
from keel.errors import KeelError, ModelError
from keel.persona.rows import RowControl, RowSettings
from keel.rng import stream
from keel.rollout.desk import Draft, Draws
from keel.serve.engine import Engine, Event, Job
from keel.serve.protocol import Asked, ChatAsked, CompletionAsked, Refused, merged
from keel.serve.speech import Speech
from keel.serve.trace import Range, Trace

if TYPE_CHECKING:
    from keel.serve.command import ServeConfig

__all__ = ["Plan", "Service"]

Turns = Sequence[tuple[str, Sequence[int]]]


@dataclass(frozen=True)
class Plan:
    """A request that can be answered: its prompts as tokens, and how to answer each."""

    asked: Asked
    number: int
    prompts: tuple[list[int], ...]
    settings: RowSettings
    limit: int
    turns: Turns = ()
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def n_choices(self) -> int:
        return len(self.prompts) * (self.asked.n or 1)

    @property
    def chat(self) -> bool:
        return isinstance(self.asked, ChatAsked)

    @property
    def logprobs(self) -> bool:
        """Whether the tokens are to be told with their log-probabilities."""
        if isinstance(self.asked, ChatAsked):
            return bool(self.asked.logprobs)
        return isinstance(self.asked, CompletionAsked) and self.asked.logprobs is not None


class Service:
    """What all requests share: the engine, the words of its model, and what the operator allows."""

    def __init__(self, cfg: "ServeConfig", words: Template, engine: Engine, control: RowControl | None,
                 defaults: RowSettings) -> None:
        self.cfg, self.words, self.engine, self.control, self.defaults = cfg, words, engine, control, defaults
        self.started = int(time.time())
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        stats = control.axis.default_stats if control is not None else None
        at_watch = control is not None and stats is not None and stats.layer == control.watch
        self.usual = Range(stats.low, stats.high) if stats is not None and at_watch else None

    def plan(self, asked: Asked) -> Plan:
        """Check the request against the limits and the model; blocks while the text is split into tokens.

        Raises:
            Refused: it asks for what this server or this model cannot do.
        """
        limits = self.cfg.limits
        if asked.model != self.cfg.shown:
            raise Refused(404, f"there is no model {asked.model!r} here; this server has {self.cfg.shown!r}",
                          param="model", code="model_not_found")
        settings = self._settings(asked)
        with self._lock:  # a tokenizer is not made for several threads
            prompts, turns = self._prompts(asked, settings)
            number = next(self._numbers)
        n_choices = len(prompts) * (asked.n or 1)
        if n_choices > limits.max_choices:
            raise Refused(400, f"{n_choices} responses to one request; this server gives at most {limits.max_choices}",
                          param="prompt" if len(prompts) > limits.max_choices else "n", code="too_many_choices")
        limit = self._limit(asked, max(map(len, prompts)))
        return Plan(asked, number, prompts, settings, limit, turns)

    def jobs(self, plan: Plan, tell: Callable[[Event], object]) -> list[Job]:
        """One for each choice. The seed of the request fixes its responses; else the server's seed and its number."""
        asked, jobs = plan.asked, list[Job]()
        draws = Draws(1.0 if asked.temperature is None else asked.temperature, asked.top_p, asked.top_k,
                      asked.repetition_penalty or 1.0)
        for choice in range(plan.n_choices):
            names = (self.cfg.seed, "serve", "request", plan.number) if asked.seed is None else (asked.seed, "serve")
            uniforms = torch.rand(plan.limit, generator=stream(*names, choice)).tolist()
            draft = Draft(plan.prompts[choice // (asked.n or 1)], draws, plan.limit, uniforms, number=0)
            speech = Speech(self.words, asked.stops, self.words.lead if plan.chat else "")
            jobs.append(Job(choice, draft, speech, plan.settings, tell, self.cfg.limits.timeout_s))
        return jobs

    def trace(self, plan: Plan) -> Trace | None:
        """For the projections of one choice; none where nobody asked for them."""
        if self.control is None or not plan.settings.monitor:
            return None
        return Trace(self.control.watch, self.cfg.window, self.usual, plan.turns)

    def described(self) -> dict[str, Any]:
        """What the chat page has to know of the axis."""
        if self.control is None:
            return {"object": "axis", "available": False}
        axis, defaults, usual = self.control.axis, self.defaults, self.usual
        presets = [{"name": name, "layers": cap.layers, "percentile": cap.percentile, "population": cap.population}
                   for name, cap in axis.caps.items()]
        return {"object": "axis", "available": True, "layer": self.control.watch, "n_layers": axis.n_layers,
                "presets": presets, "window": self.cfg.window, "allow": self.cfg.allow_axis,
                "steerable": axis.token_norm is not None, "control": axis.meta.get("control"),
                "default_range": None if usual is None else {"low": usual.low, "high": usual.high},
                "defaults": {"cap": defaults.cap if isinstance(defaults.cap, str) else defaults.cap is not None,
                             "steer": None if defaults.steer is None else defaults.steer.strength,
                             "where": defaults.where}}

    def _settings(self, asked: Asked) -> RowSettings:
        if asked.axis is None:
            return self.defaults
        if self.control is None:
            raise Refused(400, "this server has no axis to act along or to watch", param="axis", code="no_axis")
        if not self.cfg.allow_axis and asked.axis.model_fields_set - {"monitor"}:
            raise Refused(403, "the operator of this server does not let requests change what the axis does",
                          param="axis", code="axis_not_allowed")
        settings = merged(asked.axis, self.defaults)
        try:
            self.control.check(settings)
        except ModelError as error:
            raise Refused(400, _said(error), param="axis", code="invalid_axis") from error
        if isinstance(settings.cap, str) or settings.cap is None:
            return settings
        low, high = settings.cap.lower, settings.cap.upper
        if low is not None and high is not None and low > high:
            raise Refused(400, f"axis.cap leaves no room: lower={low} is above upper={high}", param="axis.cap",
                          code="invalid_axis")
        return settings

    def _prompts(self, asked: Asked, settings: RowSettings) -> tuple[tuple[list[int], ...], Turns]:
        try:
            if isinstance(asked, ChatAsked):
                return self._conversation(asked, settings)
            assert isinstance(asked, CompletionAsked), "there are two kinds of requests"
            texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
            if not texts:
                raise Refused(400, "a list of prompts without any prompt", param="prompt", code="invalid_value")
            for text in texts:
                check_prompt(Prompt("request", (), text))
            return tuple(self.words.prompt_ids(Prompt("request", (), text)) for text in texts), ()
        except KeelError as error:
            raise Refused(400, _said(error), param="messages" if isinstance(asked, ChatAsked) else "prompt",
                          code="invalid_prompt") from error

    def _conversation(self, asked: ChatAsked, settings: RowSettings) -> tuple[tuple[list[int], ...], Turns]:
        if len(asked.messages) > self.cfg.limits.max_messages:
            raise Refused(400, f"{len(asked.messages)} messages; this server takes at most "
                          f"{self.cfg.limits.max_messages}", param="messages", code="too_many_messages")
        messages = tuple(turn.message for turn in asked.messages)
        _check_messages(messages)
        ids = self.words.prompt_ids(Prompt("request", messages))
        if not settings.monitor or len(ids) >= self.engine.capacity:
            return (ids,), ()
        known = render_conversation(self.words, messages, record_id="request")
        # A template may write earlier turns otherwise once the assistant's is open; those are not located.
        turns = tuple((turn.role, turn.positions if known.ids[:turn.end] == ids[:turn.end] else [])
                      for turn in known.turns)
        return (ids,), turns

    def _limit(self, asked: Asked, longest: int) -> int:
        """Most tokens of each response."""
        limits = self.cfg.limits
        wanted = asked.max_tokens
        if isinstance(asked, ChatAsked) and asked.max_completion_tokens is not None:
            wanted = asked.max_completion_tokens
        room = self.engine.capacity - longest
        if room < 1 or (wanted is not None and wanted > room):
            raise Refused(400, f"the prompt has {longest} tokens{f' and {wanted} are asked for' if wanted else ''}; "
                          f"prompt and response together have at most {self.engine.capacity} here",
                          param="messages" if isinstance(asked, ChatAsked) else "prompt",
                          code="context_length_exceeded")
        if wanted is not None and wanted > limits.max_new_tokens:
            raise Refused(400, f"{wanted} tokens are asked for; this server writes at most {limits.max_new_tokens}",
                          param="max_tokens", code="too_many_tokens")
        return min(room, limits.max_new_tokens) if wanted is None else wanted


def _said(error: KeelError) -> str:
    return f"{error.what}. {error.remedy}" if error.remedy else error.what


def _check_messages(messages: tuple[Message, ...]) -> None:
    """As for every prompt, but that the assistant may have said nothing: clients send such turns back.

    Raises:
        Refused: another message is empty.
        RowError: see `check_prompt`.
    """
    for index, message in enumerate(messages):
        if not message.content.strip() and message.role != "assistant":
            raise Refused(400, f"messages.{index}.content is empty; only the assistant's may be",
                          param=f"messages.{index}.content", code="empty_message")
    check_prompt(Prompt("request", tuple(message if message.content.strip() else Message(message.role, "nothing")
                                         for message in messages)))
