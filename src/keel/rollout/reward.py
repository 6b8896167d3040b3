"""Where rewards come from: reward models, ensembles of them, Python functions and HTTP endpoints, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from keel.config import Config
from keel.data.check import kind_of_files
from keel.data.files import FileConfig
from keel.data.load import read_demonstrations, read_pairs
from keel.data.records import Demonstration
from keel.data.render import Template, render_demonstrations, template
from keel.endpoint import EndpointConfig, post_json
from keel.errors import ConfigError, EndpointError, ModelError
from keel.functional.advantage import process_scores, rolling_sums, token_rewards
from keel.functional.ensemble import combined_scores, standardised
from keel.functional.masked import merge_moments, no_moments
from keel.models.load import ModelConfig, load_tokenizer, scalar_model
from keel.models.members import load_members
from keel.rollout.measure import Scorer
from keel.rollout.respond import Responses, ScoringFunction, scoring_function

__all__ = ["RewardConfig", "RewardSources", "ScoreConfig", "Scores", "merged_moments", "processed"]

LARGEST = torch.finfo(torch.float32).max
SMALLEST_SPREAD = 1e-6
"""A standard deviation in units of the largest score below which float32 scores differ by rounding alone."""


class RewardConfig(Config):
    """One source of reward: exactly one of models, function and endpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="what its metrics are called: letters, digits, - and _")
    weight: float = Field(1.0, description="what its processed scores are multiplied by in the sum; not 0")
    models: tuple[ModelConfig, ...] = Field((), description="a reward model, or several: an ensemble; frozen")
    adapters: tuple[str, ...] = Field((), description="LoRA reward models (folders `adapter`), an ensemble that shares "
                                      "one trunk in memory: the only model of models")
    combine: Literal["mean", "minimum", "median", "mean_minus_std", "mean_minus_variance"] = Field(
        "mean", description="one score from the scores of an ensemble; all but mean and median distrust dissent")
    dissent_coef: float | None = Field(None, gt=0, description="how much of the std (variance) of the members "
                                       "mean_minus_std (mean_minus_variance) subtracts")
    calibration: FileConfig | None = Field(None, description="pairs or demonstrations on whose responses each member's "
                                           "mean and std are measured; its scores are then in these units; none: raw")
    function: str | None = Field(None, description="package.module:function of (prompt, text, ended) -> float")
    endpoint: EndpointConfig | None = Field(None, description="server that takes responses and returns their scores")
    batch: int = Field(32, ge=1, description="responses per request to the endpoint")

    @model_validator(mode="after")
    def _check(self) -> "RewardConfig":
        given = [name for name, value in (("models", self.models), ("function", self.function),
                                          ("endpoint", self.endpoint)) if value]
        if not given:
            raise ValueError(f"reward {self.name!r} has no source: give models, function or endpoint")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other in reward {self.name!r}: make two rewards")
        if self.weight == 0:
            raise ValueError(f"weight=0 makes reward {self.name!r} act on nothing: leave it out of rewards")
        if self.adapters and len(self.models) != 1:
            raise ValueError(f"adapters need one model, the trunk they were trained on; reward {self.name!r} has "
                             f"{len(self.models)}")
        if self.combine != "mean" and self.n_members < 2:
            raise ValueError(f"combine={self.combine!r} needs two or more models or adapters, reward {self.name!r} has "
                             f"{self.n_members}")
        if self.calibration is not None and self.n_members < 2:
            raise ValueError(f"calibration needs two or more models or adapters to bring to one scale, reward "
                             f"{self.name!r} has {self.n_members}")
        if self.combine.startswith("mean_minus") != (self.dissent_coef is not None):
            raise ValueError(f"combine={self.combine!r} and dissent_coef={self.dissent_coef} do not go together in "
                             f"reward {self.name!r}: mean_minus_std and mean_minus_variance need one, the others none")
        return self

    @property
    def n_members(self) -> int:
        """How many reward models it has."""
        return len(self.adapters or self.models)

    @property
    def whole(self) -> ModelConfig | None:
        """A reward model that a critic can start from; a trunk with adapters is none."""
        return None if self.adapters or not self.models else self.models[0]

    @property
    def warning(self) -> str | None:
        """What a reader of its scores must know."""
        if self.n_members < 2 or self.calibration is not None:
            return None
        counts = "in the disagreement that is logged" if self.combine == "mean" else "as dissent"
        return (f"reward {self.name!r} has combine={self.combine!r} without calibration: training leaves offset and "
                f"scale of each member open, and what they differ by counts {counts}.")


class ScoreConfig(Config):
    """How the scores of each source are brought to one scale before they are weighted and summed."""

    center: bool = Field(True, description="subtract the running mean of all scores so far")
    scale: Literal["scores", "rolling"] | None = Field(
        "scores", description="divide by the running std of all scores so far, or of their rolling sums per token")
    clip: float | None = Field(10.0, gt=0, description="bound on |processed score| of a source; none: unbounded")
    min_std: float = Field(1e-4, gt=0, description="smallest divisor of scale, in units of the score")


@dataclass(frozen=True)
class Scores:
    """What all sources say about a batch of responses, in the units of each source, float32 on the CPU.

    Attributes:
        total: weighted sum of the raw scores. [B]
        raw: scores of each source, by its name. [B] each
        disagreement: standard deviation over the members of each ensemble of two or more, by its name. [B] each
    """

    total: Tensor
    raw: dict[str, Tensor]
    disagreement: dict[str, Tensor]


class RewardSources:
    """Every source of reward of a run, loaded and ready to score.

    Attributes:
        weights: of each source in the sum, by its name.
        calibration: mean and standard deviation of each member on the calibration set, by the name of its source.
        notes: what the length limit did to calibration sets.

    Raises:
        ConfigError: no source, two of one name, or a function that cannot be imported.
        ModelError: a reward model cannot be loaded, or gives all of a calibration set the same score.
        DataError: a calibration set cannot be read.
    """

    def __init__(self, sources: Sequence[RewardConfig], words: Template, micro_tokens: int) -> None:
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names:
            raise ConfigError("rewards is empty: there is no source of reward",
                              remedy="Give one or more [[rewards]] tables.")
        if twice:
            raise ConfigError(f"several rewards are called {', '.join(map(repr, twice))}", where="rewards",
                              remedy="Give each a name of its own; metrics and running moments go by it.")
        self.weights = {source.name: source.weight for source in sources}
        self._sources = tuple(sources)
        self._scorers = {source.name: load_scorers(source, words, micro_tokens) for source in sources if source.models}
        self.calibration: dict[str, dict[str, list[float]]] = {}
        self.notes: list[str] = []
        for source in sources:
            if source.calibration is not None:
                self.calibration[source.name], cut = measured(source.calibration, self._scorers[source.name])
                if cut is not None:
                    self.notes.append(f"reward {source.name!r}, calibration: {cut}")
        self._functions: dict[str, ScoringFunction] = {
            source.name: scoring_function(source.function) for source in sources if source.function}

    def __call__(self, responses: Responses) -> Scores:
        """Scores of every source; one forward pass per ensemble member.

        Raises:
            NumericsError: a score is not finite, or a function failed.
            ModelError: a row is longer than a reward model's context.
            EndpointError: an endpoint does not answer, or not with one finite score per response.
        """
        raw: dict[str, Tensor] = {}
        disagreement: dict[str, Tensor] = {}
        for source in self._sources:
            if source.models:
                members = self._members(source.name, responses)
                raw[source.name], spread = combined_scores(members, how=source.combine, coef=source.dissent_coef)
                if len(members) > 1:
                    disagreement[source.name] = spread
            elif source.function:
                raw[source.name] = responses.scored_by(self._functions[source.name])
            else:
                raw[source.name] = endpoint_scores(source, responses)
        return Scores(weighted(raw, self.weights), raw, disagreement)

    def _members(self, name: str, responses: Responses) -> Tensor:
        """Score of each reward model of a source, in the units that are combined. [K B]"""
        found = torch.stack([scorer(responses).float() for scorer in self._scorers[name]])
        if name not in self.calibration:
            return found
        mean, std = (torch.tensor(self.calibration[name][key], dtype=torch.float64) for key in ("mean", "std"))
        return standardised(found, mean, std).float()


def load_scorers(source: RewardConfig, words: Template, micro_tokens: int) -> list[Scorer]:
    """The frozen reward models of a source, which score the responses of a policy whose template is `words`.

    Raises:
        ConfigError: adapters are to be drawn, which nothing would train.
        ModelError: one cannot be loaded.
    """
    for spec in source.models:
        if spec.lora.rank is not None:
            raise ConfigError(f"lora.rank={spec.lora.rank} of a reward model that only scores: nothing would train it",
                              where=spec.path, remedy="Leave lora.rank out; trained adapters are named in adapters.")
    owns = [template(load_tokenizer(spec.path, trust_remote_code=spec.trust_remote_code)) for spec in source.models]
    if source.adapters:
        return [Scorer(member, owns[0], words, micro_tokens)
                for member in load_members(source.models[0], source.adapters)]
    return [Scorer(scalar_model(spec).requires_grad_(False), own, words, micro_tokens)
            for spec, own in zip(source.models, owns, strict=True)]


def measured(data: FileConfig, scorers: Sequence[Scorer]) -> tuple[dict[str, list[float]], str | None]:
    """Mean and standard deviation (divisor N) of each member over the N responses of a file; and what was cut, if any.

    Raises:
        ModelError: a member gives all responses the same score.
        DataError: the file cannot be read, or no response fits.
    """
    told, found, cut = responses_in(data), {"mean": list[float](), "std": list[float]()}, None
    for number, scorer in enumerate(scorers, start=1):
        rows, fitted = render_demonstrations(scorer.own, told, data.max_length, data.too_long)
        scores = scorer.of_rows(rows).double()
        mean, std = float(scores.mean()), float(scores.std(correction=0))
        if std <= SMALLEST_SPREAD * float(scores.abs().max()):
            raise ModelError(f"member {number} of the ensemble gives all {len(rows)} calibration responses the same "
                             f"score, {mean:.6g}", where=data.path,
                             remedy="It has no scale that could be brought to that of the others: leave it out.")
        found["mean"].append(mean)
        found["std"].append(std)
        cut = fitted.summary() if fitted.n_fewer_turns + fitted.n_cut + fitted.n_dropped else cut
    return found, cut


def responses_in(data: FileConfig) -> list[Demonstration]:
    """Every response of a file with its prompt: both of a pair, or the one of a demonstration."""
    how: dict[str, Any] = {"on_bad_record": data.on_bad_record, "as_text": data.as_text}
    if kind_of_files(data.path) != "pairs":
        return read_demonstrations(data.path, **how)[0]
    pairs = read_pairs(data.path, **how)[0]
    return [Demonstration(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]


def endpoint_scores(source: RewardConfig, responses: Responses) -> Tensor:
    """One score per response from a server, asked in batches.

        {"items": [{"id", "messages" or "prompt", "response", "ended"}, ...]}  ->  {"scores": [1.5, ...]}

    `messages` are the turns of a conversation, `prompt` is plain text to continue. Scores come in the order of the
    items; a server that also returns `ids` has them checked against it.

    Raises:
        EndpointError: no answer, or not one finite score per item in their order.
    """
    assert source.endpoint is not None
    ended, found = responses.rollout.ended.tolist(), list[float]()
    for start in range(0, len(ended), source.batch):
        items = [_item(responses, i, ended[i]) for i in range(start, min(start + source.batch, len(ended)))]
        found += _read_scores(source, items, post_json(source.endpoint, {"items": items}))
    return torch.tensor(found, dtype=torch.float32)


def _item(responses: Responses, i: int, ended: bool) -> dict[str, Any]:
    prompt = responses.prompts[i]
    asked: dict[str, Any] = {"prompt": prompt.text} if prompt.text is not None else {
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages]}
    return {"id": prompt.id} | asked | {"response": responses.texts[i], "ended": ended}


def _read_scores(source: RewardConfig, items: Sequence[Mapping[str, Any]], answer: Any) -> list[float]:
    """The scores of one answer, checked against the items that were sent."""
    ids = [item["id"] for item in items]
    where = f"reward {source.name!r}, records {', '.join(ids[:8])}{', ...' if len(ids) > 8 else ''}"
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise EndpointError("the endpoint's answer has no list `scores`", where=where,
                            remedy='It must answer {"scores": [1.5, ...]}, one number per item, in their order.')
    if len(scores) != len(ids):
        raise EndpointError(f"the endpoint gave {len(scores)} scores for {len(ids)} responses", where=where,
                            remedy="It must give one score per item, in their order.")
    if "ids" in answer and answer["ids"] != ids:
        raise EndpointError("the endpoint's ids are not those of the request, or in another order", where=where,
                            remedy="Scores must come in the order of the items; ids may be left out.")
    bad = [(name, score) for name, score in zip(ids, scores, strict=True) if not _is_score(score)]
    if bad:
        shown = "; ".join(f"{name}: {ascii(score)[:40]}" for name, score in bad[:8])
        raise EndpointError(f"the endpoint gave what is no finite number ({shown})", where=f"reward {source.name!r}",
                            remedy="It must give a finite number for any text at all.")
    return [float(score) for score in scores]


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST  # not NaN either


def merged_moments(moments: Mapping[str, Tensor], scores: Scores, response_mask: Tensor) -> dict[str, Tensor]:
    """Running moments with this batch merged in: of each source's raw scores, and of their rolling sums.

    Args:
        moments: so far, by source (`name`: of scores; `name/rolling`: of rolling sums); empty at the start.
        scores: of this batch.
        response_mask: True on response tokens; each of them counts in the rolling sums. [B T]
    Returns:
        A new dict; what came in is as it was.
    """
    found, mask = dict(moments), response_mask.cpu()
    for name, raw in scores.raw.items():
        paid = token_rewards(raw, torch.zeros(mask.shape), mask, kl_coef=0.0)
        # With the score on the last token alone the sums are 0, ..., 0, s, whatever the discount.
        for key, x in ((name, raw), (f"{name}/rolling", rolling_sums(paid, mask, gamma=1.0)[mask])):
            found[key] = merge_moments(moments.get(key, no_moments()), x)
    return found


def processed(
    scores: Scores, moments: Mapping[str, Tensor], cfg: ScoreConfig, weights: Mapping[str, float],
) -> Tensor:
    """Each source's scores on one scale, by its own moments, then weighted and summed. [B]

    Args:
        scores: of this batch.
        moments: from `merged_moments`, this batch included.
        cfg: what is done to the scores of each source.
        weights: of each source.
    """
    how = {"center": cfg.center, "scale": cfg.scale is not None, "clip": cfg.clip, "min_std": cfg.min_std}
    spreads = {name: moments[f"{name}/rolling"] if cfg.scale == "rolling" else None for name in scores.raw}
    return weighted({name: process_scores(raw, moments[name], spread=spreads[name], **how)
                     for name, raw in scores.raw.items()}, weights)


def weighted(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of each source's scores times its weight. [B]"""
    return torch.stack([weights[name] * x for name, x in scores.items()]).sum(0)
