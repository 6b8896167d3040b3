"""Where rewards come from: reward models, process models, ensembles of them, functions, endpoints and known answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from keel.batches import Rollout
from keel.data.answers import verdict
from keel.data.check import kind_of_files
from keel.data.files import FileConfig
from keel.data.load import read_demonstrations, read_pairs
from keel.data.records import Demonstration, Prompt
from keel.data.render import Template, render_demonstrations, template
from keel.endpoint import post_json
from keel.errors import ConfigError, EndpointError, ModelError
from keel.functional.advantage import process_scores, rolling_sums, token_rewards
from keel.functional.ensemble import combined_scores, standardised
from keel.functional.masked import merge_moments, no_moments
from keel.models.load import load_tokenizer, scalar_model
from keel.models.members import load_members
from keel.rollout.measure import Scorer
from keel.rollout.respond import Responses, ScoringFunction, scoring_function
from keel.rollout.reward_settings import AnswerRewardConfig, RewardConfig, ScoreConfig
from keel.rollout.step_rewards import StepScores, StepSource

__all__ = ["RewardSources", "Scores", "merged_moments", "processed", "with_step_rewards"]

LARGEST = torch.finfo(torch.float32).max
SMALLEST_SPREAD = 1e-6
"""A standard deviation in units of the largest score below which float32 scores differ by rounding alone."""


@dataclass(frozen=True)
class Scores:
    """What all sources say about a batch of responses, in the units of each source, float32 on the CPU.

    Attributes:
        total: weighted sum of the raw scores. [B]
        raw: scores of each source, by its name; of a source that scores steps their mean. [B] each
        disagreement: standard deviation over the members of each ensemble of two or more, by its name. [B] each
        steps: what the sources that score steps say, by their names.
        outcome: weighted sum of the raw scores of the other sources; none where there is none. [B]
    """

    total: Tensor
    raw: dict[str, Tensor]
    disagreement: dict[str, Tensor]
    steps: dict[str, StepScores] = field(default_factory=dict)
    outcome: Tensor | None = None


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
        self._steps = {source.name: StepSource(source, words, micro_tokens) for source in sources if source.steps}
        self._scorers = {source.name: load_scorers(source, words, micro_tokens) for source in sources
                         if source.models and not source.steps}
        self.calibration: dict[str, dict[str, list[float]]] = {}
        self.notes: list[str] = []
        for source in sources:
            if source.calibration is not None:
                self.calibration[source.name], cut = measured(source.calibration, self._scorers[source.name])
                if cut is not None:
                    self.notes.append(f"reward {source.name!r}, calibration: {cut}")
        self._functions: dict[str, ScoringFunction] = {
            source.name: scoring_function(source.function) for source in sources
            if source.function and not source.steps}

    def __call__(self, responses: Responses) -> Scores:
        """Scores of every source; one forward pass per ensemble member.

        Raises:
            NumericsError: a score is not finite, or a function failed.
            ModelError: a row is longer than a reward model's context.
            EndpointError: an endpoint does not answer, or not with one finite score per response.
            DataError: a prompt does not carry its answer.
        """
        raw, disagreement, steps = dict[str, Tensor](), dict[str, Tensor](), dict[str, StepScores]()
        for source in self._sources:
            if source.steps:
                steps[source.name] = self._steps[source.name](responses)
                raw[source.name] = steps[source.name].means
                if len(source.models) > 1:
                    disagreement[source.name] = steps[source.name].spreads
            elif source.models:
                members = self._members(source.name, responses)
                raw[source.name], spread = combined_scores(members, how=source.combine, coef=source.dissent_coef)
                if len(members) > 1:
                    disagreement[source.name] = spread
            elif source.function:
                raw[source.name] = responses.scored_by(self._functions[source.name])
            elif source.answer:
                raw[source.name] = responses.scored_by(partial(answer_score, source.answer))
            else:
                raw[source.name] = endpoint_scores(source, responses)
        whole = {name: x for name, x in raw.items() if name not in steps}
        return Scores(weighted(raw, self.weights), raw, disagreement, steps,
                      weighted(whole, self.weights) if whole else None)

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


def answer_score(cfg: AnswerRewardConfig, prompt: Prompt, text: str, ended: bool) -> float:
    """What the final answer of a response earns.

    Raises:
        DataError: the prompt does not carry the right answer.
    """
    return cfg.right if verdict(prompt, text, ended, cfg) else cfg.wrong


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
        moments: so far, by source (`name`: of scores, of steps where it scores steps; `name/rolling`: of rolling sums);
            empty at the start.
        scores: of this batch.
        response_mask: True on response tokens; each of them counts in the rolling sums. [B T]
    Returns:
        A new dict; what came in is as it was.
    """
    found, mask = dict(moments), response_mask.cpu()
    for name, raw in scores.raw.items():
        if name in scores.steps:
            values, paid = scores.steps[name].values, scores.steps[name].placed(mask.shape)
        else:
            values, paid = raw, token_rewards(raw, torch.zeros(mask.shape), mask, kl_coef=0.0)
        # With a score on the last token alone the sums are 0, ..., 0, s, whatever the discount.
        for key, x in ((name, values), (f"{name}/rolling", rolling_sums(paid, mask, gamma=1.0)[mask])):
            found[key] = merge_moments(moments.get(key, no_moments()), x)
    return found


def processed(
    scores: Scores, moments: Mapping[str, Tensor], cfg: ScoreConfig, weights: Mapping[str, float],
) -> Tensor:
    """Each source's scores of whole responses on one scale, by its own moments, then weighted and summed. [B]

    Args:
        scores: of this batch.
        moments: from `merged_moments`, this batch included.
        cfg: what is done to the scores of each source.
        weights: of each source.
    """
    whole = {name: rescaled(raw, name, moments, cfg) for name, raw in scores.raw.items() if name not in scores.steps}
    return weighted(whole, weights) if whole else torch.zeros_like(scores.total)


def with_step_rewards(
    rollout: Rollout, scores: Scores, moments: Mapping[str, Tensor], cfg: ScoreConfig, weights: Mapping[str, float],
) -> Rollout:
    """The rollout with `step_rewards` and `step_ends`, where a source scores steps: each step's score by the moments of
    its source, then what the source pays for it, weighted, at the token in which it ends. Scores of steps are never
    centred: what is taken off each step charges for steps, or pays for leaving them out.

    Args:
        rollout: whose responses were scored.
        scores: of this batch.
        moments: from `merged_moments`, this batch included.
        cfg: what is done to the scores of each source.
        weights: of each source.
    """
    if not scores.steps:
        return rollout
    mask = rollout.tokens.response_mask
    rewards = torch.zeros(mask.shape)
    ends = torch.zeros(mask.shape, dtype=torch.bool)
    for name, told in scores.steps.items():
        paid = told.paid(rescaled(told.values, name, moments, cfg.model_copy(update={"center": False})))
        rewards = rewards + weights[name] * paid.placed(mask.shape)
        ends = ends | paid.placed_ends(mask.shape)
    return replace(rollout, step_rewards=rewards.to(mask.device), step_ends=ends.to(mask.device))


def rescaled(raw: Tensor, name: str, moments: Mapping[str, Tensor], cfg: ScoreConfig) -> Tensor:
    """Scores of one source, of responses or of steps, by its moments."""
    spread = moments[f"{name}/rolling"] if cfg.scale == "rolling" else None
    return process_scores(raw, moments[name], spread=spread, center=cfg.center, scale=cfg.scale is not None,
                          clip=cfg.clip, min_std=cfg.min_std)


def weighted(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of each source's scores times its weight. [B]"""
    return torch.stack([weights[name] * x for name, x in scores.items()]).sum(0)
