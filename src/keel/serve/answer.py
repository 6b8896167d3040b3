"""Answers in OpenAI's shapes, whole and in chunks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from keel.serve.engine import Event
from keel.serve.protocol import Refused
from keel.serve.service import Plan, Service
from keel.serve.trace import Trace

__all__ = ["Answer", "refusal"]


@dataclass(eq=False)
class _Choice:
    """One response so far."""

    trace: Trace | None
    text: str = ""
    tokens: list[tuple[int, float]] = field(default_factory=list)
    axis: dict[str, Any] = field(default_factory=dict)
    end: str | None = None
    opened: bool = False


class Answer:
    """Everything said in reply to one request."""

    def __init__(self, service: Service, plan: Plan) -> None:
        self._plan, self._words, self._model = plan, service.words, service.cfg.shown
        self._choices = [_Choice(service.trace(plan)) for _ in range(plan.n_choices)]
        self._id = f"{'chatcmpl' if plan.chat else 'cmpl'}-{service.started:x}-{plan.number}"

    @property
    def complete(self) -> bool:
        return all(choice.end is not None for choice in self._choices)

    def heard(self, event: Event) -> dict[str, Any] | None:
        """Keep an event; the chunk that tells of it, or none where it says nothing to a client."""
        choice = self._choices[event.choice]
        axis = choice.trace.heard(event) if choice.trace is not None else {}
        choice.text += event.text
        choice.tokens += event.tokens
        choice.end = event.end
        for name, value in axis.items():
            choice.axis[name] = [*choice.axis[name], *value] if name == "tokens" and name in choice.axis else value
        told = self._plan.logprobs and event.tokens
        if not (event.text or axis or told or event.end or not choice.opened):
            return None
        first, choice.opened = not choice.opened, True
        part: dict[str, Any] = {"index": event.choice, "finish_reason": event.end}
        if self._plan.chat:
            part["delta"] = ({"role": "assistant"} if first else {}) | {"content": event.text}
        else:
            part["text"] = event.text
        part["logprobs"] = self._logprobs(event.tokens) if told else None
        if axis:
            part["axis"] = axis
        return self._head("chunk") | {"choices": [part]} | ({"usage": None} if self._plan.asked.usage_asked else {})

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk, for clients that want to know what it took."""
        return self._head("chunk") | {"choices": [], "usage": self._usage()}

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        parts = []
        for index, choice in enumerate(self._choices):
            part: dict[str, Any] = {"index": index, "finish_reason": choice.end,
                                    "logprobs": self._logprobs(choice.tokens) if self._plan.logprobs else None}
            if self._plan.chat:
                part["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
            else:
                part["text"] = choice.text
            if choice.trace is not None:
                part["axis"] = choice.axis
            parts.append(part)
        return self._head("whole") | {"choices": parts, "usage": self._usage()}

    def _head(self, shape: str) -> dict[str, Any]:
        kind = "text_completion" if not self._plan.chat else {
            "chunk": "chat.completion.chunk", "whole": "chat.completion"}[shape]
        return {"id": self._id, "object": kind, "created": self._plan.created, "model": self._model}

    def _usage(self) -> dict[str, int]:
        prompt = sum(map(len, self._plan.prompts))
        written = sum(len(choice.tokens) for choice in self._choices)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def _logprobs(self, tokens: Sequence[tuple[int, float]]) -> dict[str, Any]:
        spelled = [str(self._words.tokenizer.decode([token], clean_up_tokenization_spaces=False))
                   for token, _ in tokens]
        if not self._plan.chat:
            return {"tokens": spelled, "token_logprobs": [logprob for _, logprob in tokens], "top_logprobs": None,
                    "text_offset": None}
        return {"content": [{"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
                            for text, (_, logprob) in zip(spelled, tokens, strict=True)], "refusal": None}


def refusal(event: Event) -> Refused | None:
    """The error that an event stands for; none where it is none."""
    match event.end:
        case "late":
            return Refused(504, "the response took longer than this server allows", code="timeout")
        case "closing":
            return Refused(503, "the server is being stopped; this request was not finished", code="closing")
        case "broken":
            return Refused(500, f"the model failed: {event.what}", code="model_failed")
        case "not finite":
            return Refused(500, "the model's numbers are no longer finite; steer with a smaller strength",
                           code="not_finite")
    return None
