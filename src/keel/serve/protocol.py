"""What clients may ask for and how they are answered: OpenAI's JSON, with `axis` beside it."""

import json
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from keel.data.records import Message
from keel.persona.rows import Bounds, RowSettings, Steering

__all__ = ["Asked", "AxisAsked", "ChatAsked", "CompletionAsked", "Refused", "as_json", "merged", "parsed"]

Short = Annotated[str, Field(min_length=1, max_length=256)]
Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Nothing = Literal[False] | None
"""Of a field that clients send without asking for anything by it; any other value of it is refused."""
MOST_STOPS = 16
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def _different(layers: list[int]) -> list[int]:
    if len(set(layers)) < len(layers):
        raise ValueError("a block may be named once only")
    return layers


Layers = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1024), AfterValidator(_different)]


class Refused(Exception):
    """A request that is not answered as asked.

    Args:
        status: of HTTP.
        what: for whoever sent it.
        param: the field that is wrong.
        code: a word for programs.
    """

    def __init__(self, status: int, what: str, *, param: str | None = None, code: str | None = None) -> None:
        self.status, self.what, self.param, self.code = status, what, param, code
        super().__init__(what)

    @property
    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.what, "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    """Unknown fields and values of another type are refused, and so nothing that was asked for is left undone."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Part(_Strict):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Turn(_Strict):
    """A message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: Short | None = None
    refusal: Nothing = None
    tool_calls: Nothing = None
    function_call: Nothing = None
    audio: Nothing = None
    annotations: Nothing = None

    @property
    def message(self) -> Message:
        """As keel's templates read it; developers are the system, parts one text, null is empty. Names go unread."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        return Message("system" if self.role == "developer" else self.role, text)


class SteerAsked(_Strict):
    """A step along the axis."""

    strength: Number
    unit: Literal["norm_fraction", "raw", "unit"] = "norm_fraction"
    layers: Layers = []


class CapAsked(_Strict):
    """Bounds on the projection."""

    lower: Number | None = None
    upper: Number | None = None
    layers: Layers = []


class AxisAsked(_Strict):
    """The Assistant Axis in one request. What is absent is as the operator set it; null is off."""

    cap: Short | CapAsked | None = None
    steer: Number | SteerAsked | None = None
    where: Literal["all", "prompt", "generation"] = "all"
    monitor: bool = False


class StreamOptions(_Strict):
    """What a stream says beside."""

    include_usage: bool = False


class TextFormat(_Strict):
    """The one format there is."""

    type: Literal["text"]


class Asked(_Strict):
    """What both endpoints take."""

    model: Short
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1, le=10, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Short | Annotated[list[Short], Field(max_length=MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    user: str | None = None
    axis: AxisAsked | None = None
    logit_bias: Nothing = None
    store: Nothing = None
    metadata: Nothing = None
    service_tier: Nothing = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_asked(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatAsked(Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Literal[0] | None = None
    response_format: TextFormat | None = None
    tools: Nothing = None
    tool_choice: Nothing = None
    parallel_tool_calls: Nothing = None
    functions: Nothing = None
    function_call: Nothing = None
    modalities: Nothing = None
    audio: Nothing = None
    prediction: Nothing = None
    reasoning_effort: Nothing = None
    verbosity: Nothing = None
    web_search_options: Nothing = None


class CompletionAsked(Asked):
    """POST /v1/completions."""

    prompt: str | list[str]
    logprobs: Literal[0] | None = None
    best_of: Nothing = None
    echo: Nothing = None
    suffix: Nothing = None


def parsed(kind: type[Asked], body: bytes) -> Any:
    """The request of that kind.

    Raises:
        Refused: it is not JSON, or one of its fields is wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
    # Of a value that may be of several kinds, each kind has a problem; the nearest is the one that got furthest.
    problem = max(problems, key=lambda one: (not one["type"].endswith("_type"), len(_names(one["loc"]))))
    if problem["type"] == "json_invalid":
        raise Refused(400, f"the body is not JSON: {problem['msg'].removeprefix('Invalid JSON: ')}", code="not_json")
    names = _names(problem["loc"])
    name = ".".join(names)[:200]
    if problem["type"] == "extra_forbidden" or _unused(kind, names):
        raise Refused(400, f"this server has no field {name}", param=name, code="unknown_field")
    alike = [one["msg"] for one in problems if _names(one["loc"]) == names
             and one["type"].endswith("_type") == problem["type"].endswith("_type")]
    what = " or ".join([alike[0], *(_uncapitalised(text) for text in alike[1:])]).removeprefix("Value error, ")
    raise Refused(400, f"{name or 'the body'} is not as it has to be: {what}", param=name or None,
                  code="invalid_value")


def _names(place: tuple[int | str, ...]) -> list[str]:
    return [str(part) for part in place if not _of_a_union(part)]


def _uncapitalised(text: str) -> str:
    return text[:1].lower() + text[1:]


def _unused(kind: type[Asked], names: list[str]) -> bool:
    """Whether it is one of OpenAI's fields that may only be sent with nothing in it."""
    fields: Any = Turn.model_fields if names[:1] == ["messages"] else kind.model_fields
    found = fields.get(names[2] if names[:1] == ["messages"] and len(names) > 2 else names[0] if names else "")
    return found is not None and found.annotation == Nothing


def _of_a_union(part: int | str) -> bool:
    """Words that pydantic puts into the place of a problem to say which of several kinds was tried."""
    return isinstance(part, str) and ("[" in part or part.startswith("constrained-")
                                      or part in ("str", "float", "CapAsked", "SteerAsked"))


def merged(asked: AxisAsked | None, default: RowSettings) -> RowSettings:
    """The operator's settings with what the request says in their place."""
    if asked is None:
        return default
    steer: Steering | None = default.steer
    cap: Bounds | str | None = default.cap
    given = asked.model_fields_set
    if "steer" in given:
        step = asked.steer
        steer = Steering(step.strength, step.unit, tuple(step.layers)) if isinstance(step, SteerAsked) else (
            None if step is None else Steering(step))
    if "cap" in given:
        held = asked.cap
        cap = Bounds(held.lower, held.upper, tuple(held.layers)) if isinstance(held, CapAsked) else held
    return RowSettings(steer, cap, asked.where if "where" in given else default.where, asked.monitor)


def as_json(content: Any) -> bytes:
    """Compact; a number that is not finite becomes null, for JSON has none."""
    return json.dumps(_finite(content), ensure_ascii=False, separators=(",", ":")).encode()


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
