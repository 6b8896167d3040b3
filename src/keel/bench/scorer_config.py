"""What gives a response a number, as settings: one source, and how rows of tokens are made for it."""

import json
import re
from pathlib import PurePath
from typing import Literal

from pydantic import Field, model_validator

from keel.config import Config
from keel.data.segment import Separator
from keel.endpoint import EndpointConfig
from keel.models.load import FrozenModelConfig, ModelConfig

__all__ = ["EnsembleConfig", "RequestConfig", "ScorerConfig", "TooLong"]

TooLong = Literal["keep_response", "truncate_left", "truncate_response", "error"]
SOURCES = ("model", "process", "policy", "function", "scores", "endpoint")
ITEM_NAMES = ("id", "messages", "prompt", "response", "dialogue")
OWNERS = {"adapter": ("model",), "label": ("model",), "label_weights": ("model",), "probability": ("model",),
          "reference": ("policy",), "normalise": ("policy",), "prompt_as": ("function",),
          "request": ("endpoint",), "separator": ("process",), "aggregate": ("process",),
          "ending": ("model", "policy")} | dict.fromkeys(
              ("max_length", "too_long", "chat_template", "micro_tokens"), ("model", "process", "policy"))
"""Which source each setting belongs to; with another one it would do nothing."""


class RequestConfig(Config):
    """What an endpoint is sent and where in its answer the scores are."""

    version: str | None = Field(None, min_length=1, description="what the server runs, as you name it; enters the "
                                "cache's key")
    batch: int = Field(16, ge=1, description="responses per request")
    concurrency: int = Field(4, ge=1, le=256, description="requests under way at the same time")
    item: str = Field('{"id": "$id", "messages": "$messages", "response": "$response"}', description="one response as "
                      "JSON; $id, $messages, $prompt (text), $response, $dialogue (with the response) are filled in")
    body: str = Field('{"items": "$items"}', description="the request as JSON; $items is the list of items, $item the "
                      "only one (batch = 1)")
    scores: str = Field("scores", description="where the answer has its scores, such as data.*.score; empty: it is "
                        "the scores")
    ids: str | None = Field("ids", description="where it repeats the ids; if it does not, or none: its order is "
                            "the request's")

    @model_validator(mode="after")
    def _check(self) -> "RequestConfig":
        for name, text in (("item", self.item), ("body", self.body)):
            try:
                json.loads(text)
            except ValueError as error:
                raise ValueError(f"{name} is not JSON: {error}; names such as $id stand in quotes") from error
        if '"$item"' in self.body and self.batch > 1:
            raise ValueError(f"body asks for one item ($item) and batch = {self.batch}: set batch = 1, or use $items")
        if '"$item"' not in self.body and '"$items"' not in self.body:
            raise ValueError('body has neither "$items" nor "$item", so no response would be sent')
        strange = sorted({*re.findall(r"\$(\w+)", self.item)} - {*ITEM_NAMES})
        if strange:
            raise ValueError(f"item names ${strange[0]}, which would be sent as it stands; there are "
                             f"{', '.join(f'${name}' for name in ITEM_NAMES)}")
        if "$response" not in self.item and "$dialogue" not in self.item:
            raise ValueError('item has neither "$response" nor "$dialogue", so no response would be sent')
        return self


class ScorerConfig(Config):
    """One thing that scores: exactly one of model, process, policy, function, scores and endpoint."""

    name: str | None = Field(None, min_length=1, description="what tables call it; none: named after its source")
    model: FrozenModelConfig | None = Field(None, description="reward model: any sequence classifier, or a "
                                            "language model with a value head")
    adapter: str | None = Field(None, description="LoRA reward model (folder `adapter`) on the trunk that model names")
    label: str | int | None = Field(None, description="label whose logit is the score, by name or number; none: the "
                                    "only one, or the second less the first of two")
    label_weights: tuple[float, ...] = Field((), description="weight of each label's logit in the score, in order")
    probability: bool = Field(False, description="the score is the probability of label (softmax over all labels); "
                              "where label is none, of the second of two")
    process: FrozenModelConfig | None = Field(None, description="process model: the score is made of the probabilities "
                                              "that the steps are right; a response without a step has none")
    separator: Separator = Field("\n", min_length=1, description="text between two steps, as the process model was "
                                 "trained with")
    aggregate: Literal["min", "product", "mean", "last"] = Field("min", description="how the probabilities of the "
                                                                 "steps become one score")
    policy: FrozenModelConfig | None = Field(None, description="language model trained by DPO: log-probability of the "
                                       "response less that under the reference")
    reference: FrozenModelConfig | None = Field(None, description="what DPO started from; none: reference-free")
    normalise: Literal["sum", "mean"] = Field("sum", description="sum or mean of the log-ratio over the response")
    function: str | None = Field(None, description="package.module:function of (prompt, response) -> float")
    prompt_as: Literal["messages", "text", "record"] = Field(
        "messages", description="what the function gets as prompt: {role, content} of each turn, one text, or the "
        "record (and ended = True)")
    scores: str | None = Field(None, description="file of scores made elsewhere: rows of id and score, or an object "
                               "from id to score")
    endpoint: EndpointConfig | None = Field(None, description="server that takes responses and returns their scores")
    request: RequestConfig = RequestConfig()
    max_length: int | None = Field(None, ge=16, description="longest row in tokens; none: the model's own limit")
    too_long: TooLong = Field("keep_response", description="what happens to longer rows; keep_response: the prompt is "
                              "cut from its beginning")
    chat_template: str | None = Field(None, description="template in place of the tokenizer's: chatml, plain, "
                                      "question-answer, one of the tokenizer's by name, or a file")
    ending: Literal["turn", "template"] | None = Field(None, description="end rows with the turn, or with all that the "
                                                       "template writes; none: as the model was trained")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass")

    @model_validator(mode="after")
    def _check(self) -> "ScorerConfig":
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"a scorer without a source: give one of {', '.join(SOURCES)}")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: a scorer has one source")
        for field, owners in OWNERS.items():
            # Against the default, not what was set: the settings of a run that is resumed spell out every field.
            if getattr(self, field) != type(self).model_fields[field].default and given[0] not in owners:
                raise ValueError(f"{field} does nothing with {given[0]}; it belongs to {' or '.join(owners)}")
        if self.label is not None and self.label_weights:
            raise ValueError("label and label_weights exclude each other: one label is the score, or a weighted sum is")
        if self.adapter is not None and (self.label is not None or self.label_weights):
            raise ValueError("an adapter has one number out: leave label and label_weights out")
        if self.probability and (self.adapter is not None or self.label_weights):
            raise ValueError(f"probability and {'adapter' if self.adapter is not None else 'label_weights'} exclude "
                             "each other: it is the share of one label among several")
        for spec in (self.model, self.process, self.policy, self.reference):
            if isinstance(spec, ModelConfig) and (spec.lora.rank is not None or spec.init == "scratch"):
                raise ValueError(f"lora.rank or init = scratch for {spec.path}, which only scores: nothing would train "
                                 "it")
        return self

    @property
    def source(self) -> str:
        """Which of SOURCES it is."""
        return next(name for name in SOURCES if getattr(self, name) is not None)

    @property
    def shown(self) -> str:
        """What tables call it."""
        if self.name is not None:
            return self.name
        if self.policy is not None:
            return f"{_last(self.policy.path)} ({'reference-free' if self.reference is None else 'DPO'})"
        if self.endpoint is not None:
            return self.endpoint.shown
        held = self.model or self.process
        spec = held.path if held is not None else self.scores
        return _last(self.adapter or spec) if spec is not None else str(self.function)


class EnsembleConfig(Config):
    """Several scorers whose scores are made into one answer per item."""

    name: str | None = Field(None, min_length=1, description="what tables call it; none: rule and number of members")
    members: tuple[ScorerConfig, ...] = Field((), description="the scorers; each is scored once, by itself")
    combine: Literal["majority", "vote_sum", "mean_z", "min_z", "mean_minus_std_z"] = Field(
        "majority", description="majority or sum of the members' votes on each comparison, or one of their z-scores")

    @model_validator(mode="after")
    def _check(self) -> "EnsembleConfig":
        names = [member.shown for member in self.members]
        twice = sorted({name for name in names if names.count(name) > 1})
        if len(names) < 2:
            raise ValueError(f"an ensemble needs two or more members, this one has {len(names)}")
        if twice:
            raise ValueError(f"several members are called {', '.join(map(repr, twice))}: give each a name")
        return self

    @property
    def shown(self) -> str:
        """What tables call it."""
        return self.name or f"{self.combine} of {len(self.members)}"


def _last(path: str) -> str:
    """The name of a file or folder; of `RUN/out/model`, which all runs have, that of the run."""
    parts = [part for part in PurePath(path).parts if part not in ("/", ".", "..")]
    kept = next((i for i in range(len(parts) - 1, -1, -1) if parts[i] not in ("model", "out", "adapter")), 0)
    return parts[kept] if parts else path
