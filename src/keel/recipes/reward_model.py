"""A reward model from preference pairs: Bradley-Terry, with what may be done to labels that an ensemble doubts, a
contrastive term, a language-model term and centring.

Left out: the ensemble that measures strength, MetaRM's step, rankings and grades (recipes of their own).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from keel import runs
from keel.batches import PairBatch, SharedPrompt, TokenBatch
from keel.bench.exam import examined, longer_wins
from keel.bench.measures import prompt_groups
from keel.bench.pairwise import score_pairs
from keel.bench.sources import BenchmarkConfig
from keel.bench.training_slice import TrainingSlice
from keel.config import Config
from keel.data.collate import pair_batches
from keel.data.load import read_pairs
from keel.data.render import PairRow, Template, render_pairs, template
from keel.errors import ConfigError
from keel.functional.calibration import expected_calibration_error
from keel.functional.masked import masked_sum, weighted_sum
from keel.functional.policy import nll
from keel.functional.preference import bradley_terry, centring, eps_sigmoid
from keel.functional.statistics import bootstrap_interval
from keel.models.forward import token_logprobs
from keel.models.load import (
    ModelConfig,
    causal_lm,
    check_context,
    device_of,
    is_encoder,
    load_tokenizer,
    save_model,
    scalar_model,
    share_trunk,
)
from keel.models.pairs import head_scores, joining, pair_scores
from keel.models.views import pair_views
from keel.rng import stream
from keel.train import checkpoint
from keel.train.clock import Clock
from keel.train.contrast import ContrastiveConfig, Prototypes, contrastive_loss, same_texts
from keel.train.denoise import DenoiseConfig, denoised
from keel.train.inputs import DataConfig, FileConfig, load_pairs
from keel.train.order import batch_indices, n_steps
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally

__all__ = ["ExamConfig", "RewardModelConfig", "run"]


class ExamConfig(FileConfig):
    """One more file of labelled pairs on which the finished model is examined."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="what its results are called: letters, digits, - and _")


class RewardModelConfig(Config):
    """Everything `keel reward-model` reads."""

    out: Path = Field(description="run folder to make")
    model: ModelConfig = Field(description="trunk: a causal LM (best the SFT policy) or an encoder")
    data: DataConfig = Field(description="preference pairs")
    denoise: DenoiseConfig = DenoiseConfig()
    exams: tuple[ExamConfig, ...] = Field((), description="files of pairs on which the finished model is examined too")
    seed: int = Field(0, ge=0, description="fixes order, split, the new head and dropout")
    epochs: float = Field(1.0, gt=0, description="passes over the data; reward models overfit within a few")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: from epochs")
    batch: int = Field(32, ge=1, description="pairs per optimiser step")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass; changes memory, not results")
    shared_prompt: SharedPrompt = Field("auto", description="run a pair's prompt once for both responses: where it "
                                        "saves time, always, or never; changes speed, not results")
    loss: Literal["bradley_terry", "eps_sigmoid"] = Field(
        "bradley_terry", description="eps_sigmoid: -log(sigmoid + 1e-5) as in the report's code, for parity runs only")
    contrastive: ContrastiveConfig | None = Field(None, description="contrastive term; none: off")
    lm_coef: float = Field(0.0, ge=0, description="weight of the cross-entropy of chosen responses; the report: 1")
    center_coef: float = Field(0.0, ge=0, description="weight of (chosen + rejected)^2; 0.01 keeps scores near zero")
    optimizer: OptimizerConfig = OptimizerConfig(lr=5e-6)
    eval_every: int = Field(100, ge=1, description="steps between validation passes")
    eval_pairs: int = Field(2000, ge=1, description="validation pairs used at most")
    benchmark: BenchmarkConfig | None = Field(None, description="benchmark that is asked at every validation, best a "
                                              "slice of it: per_scenario; none: off")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")

    @model_validator(mode="after")
    def _check(self) -> "RewardModelConfig":
        names = ["held_out", *(exam.name for exam in self.exams)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several exams are called {', '.join(map(repr, twice))}; held_out is the validation part")
        return self


def run(cfg: RewardModelConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave a model for `AutoModelForSequenceClassification` in `out/model`."""
    asked = cfg.benchmark.path if cfg.benchmark is not None else None
    files = [Path(p) for p in (cfg.data.path, cfg.data.validation, *(exam.path for exam in cfg.exams), asked) if p]
    with runs.start("reward_model", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        tokenizer = load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code)
        words = template(tokenizer)
        train, held_out, n_bad = load_pairs(cfg.data, cfg.seed, log.note)
        train, changes = denoised(train, cfg.denoise, where=cfg.data.path)
        rows, cut = render_pairs(words, train, cfg.data.max_length, cfg.data.too_long)
        held_rows, _ = render_pairs(words, held_out[: cfg.eval_pairs], cfg.data.max_length, cfg.data.too_long)
        exams = {exam.name: exam_rows(exam, words) for exam in cfg.exams}
        require_plain_labels(cfg, rows)

        scorer = scalar_model(cfg.model, seed=cfg.seed)
        check_context(scorer, max(row.longest for part in (rows, held_rows, *exams.values()) for row in part))
        shared = joining(scorer, cfg.shared_prompt)
        bench = None if cfg.benchmark is None else TrainingSlice(
            cfg.benchmark, scorer, words, max_length=cfg.data.max_length, micro_tokens=2 * cfg.micro_tokens)
        modules: dict[str, nn.Module] = {"scorer": scorer}
        if cfg.lm_coef:
            if is_encoder(scorer):
                raise ConfigError("lm_coef > 0 needs a causal trunk, and this model is an encoder",
                                  remedy="Set lm_coef = 0, or train on a causal language model.")
            modules["writer"] = share_trunk(causal_lm(cfg.model, seed=cfg.seed), scorer)
        if cfg.contrastive is not None and cfg.contrastive.kind == "swav":
            width = scorer.config.hidden_size
            modules["prototypes"] = Prototypes(cfg.contrastive, width, cfg.seed, device_of(scorer))
        total = n_steps(len(rows), cfg.batch, cfg.epochs, cfg.steps)
        learner = Learner.of(modules.values(), cfg.optimizer, total)
        state: dict[str, Any] = {"modules": modules, "optimizers": {"optimizer": learner.optimizer}}
        done, extra = checkpoint.restore(log, **state) if resume else (0, {})
        found = extra.get("evaluation", {})
        batches, tally = batch_indices(len(rows), cfg.batch, cfg.seed, "reward_model", first_step=done + 1), Tally()
        clock = Clock()
        progress = log.bar(total, done)
        for step in range(done + 1, total + 1):
            batch = [rows[i] for i in next(batches)]
            parts = [part.to(device_of(scorer)) for part in pair_batches(
                batch, micro_tokens=cfg.micro_tokens, pad_id=words.pad_id, shared_prompt=shared)]
            weight = max(sum(float(part.weight.sum()) for part in parts), 1e-9)
            # Prefer: every pair of a step weighs by its own weight, whatever the micro-batches are.
            if cfg.contrastive is not None:
                learn(contrasted(cfg, modules, parts, weight, step, tally), step, parts)
            for part in parts if cfg.contrastive is None else ():
                learn(preferred(cfg, [part], pair_scores(scorer, part), tally) / weight, step, [part])
            # Remember how to write.
            n_tokens = sum(chosen_rows(part).n_response_tokens for part in parts)
            for part in parts if cfg.lm_coef else ():
                told = chosen_rows(part)
                lm = nll(token_logprobs(modules["writer"], told)[0], told.response_mask)
                tally.add({"lm/loss": lm}, told.response_mask)
                learn(cfg.lm_coef * masked_sum(lm, told.response_mask) / n_tokens, step, [part])
            if cfg.contrastive is not None and step <= cfg.contrastive.freeze_prototypes:
                modules["prototypes"].zero_grad(set_to_none=True)
            metrics = tally.means() | learner.step(step, [row.record_id for row in batch])
            log.log(step, metrics)
            log.time(step, clock.lap({"pairs": len(batch)}))
            if (held_rows or bench) and (step % cfg.eval_every == 0 or step == total):
                found = evaluate(scorer, held_rows, words.pad_id, cfg) if held_rows else {}
                found |= bench.measures() if bench is not None else {}
                log.log(step, found, "eval")
            if step % cfg.save_every == 0 or step == total or log.stop_requested():
                checkpoint.save(log, step, **state, extra={"evaluation": found})
            if log.stop_requested() and step < total:
                log.stop(step)
            progress.advance(f"loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.2f}")
        save_model(scorer, tokenizer, cfg.out / "model", pad_id=words.pad_id)
        examinations = {name: examined(scores_of(scorer, part, words.pad_id, cfg), part, seed=cfg.seed)
                        for name, part in ({"held_out": held_rows} | exams).items() if part}
        return log.finish({
            "steps": total, "n_train": len(rows), "n_validation": len(held_rows), "evaluation": found,
            "exams": examinations, "denoised": changes, "skipped": {"records": n_bad} | vars(cut),
            "headline": headline(found)})


def exam_rows(exam: ExamConfig, words: Template) -> list[PairRow]:
    """The pairs of an exam, as the model reads them."""
    pairs = read_pairs(exam.path, on_bad_record=exam.on_bad_record, as_text=exam.as_text)[0]
    return render_pairs(words, pairs, exam.max_length, exam.too_long)[0]


def require_plain_labels(cfg: RewardModelConfig, rows: Sequence[PairRow]) -> None:
    """The released code's loss knows neither margins nor soft labels.

    Raises:
        ConfigError: a pair has one.
    """
    odd = [row.record_id for row in rows if row.pair.margin != 0 or row.pair.label_prob != 1]
    if cfg.loss == "eps_sigmoid" and odd:
        raise ConfigError(f"loss = eps_sigmoid, and {len(odd)} pairs have a margin or a soft label (first: {odd[0]})",
                          remedy="Use loss = bradley_terry; the other one is for parity with plain runs only.")


def preferred(cfg: RewardModelConfig, parts: Sequence[PairBatch], scores: Sequence[Tensor], tally: Tally) -> Tensor:
    """Weighted sum of the loss over pairs, from the scores of both sides; what is logged goes to the tally."""
    chosen, rejected = scores
    margin, label_prob, weight = (torch.cat([getattr(part, name) for part in parts])
                                  for name in ("margin", "label_prob", "weight"))
    loss, stats = bradley_terry(chosen, rejected, margin=margin, label_prob=label_prob)
    if cfg.loss == "eps_sigmoid":
        loss = eps_sigmoid(chosen, rejected)
    center = centring(chosen, rejected)
    tally.add({"loss": loss, "center": center, **stats}, weight)
    return weighted_sum(loss + cfg.center_coef * center, weight)


def contrasted(cfg: RewardModelConfig, modules: dict[str, nn.Module], parts: Sequence[PairBatch], weight: float,
               step: int, tally: Tally) -> Tensor:
    """The step's loss on two dropout views: the mean of both preference losses, and the contrastive term over all rows
    of the step. Where they come in several micro-batches, backward runs each of them again instead of keeping it."""
    how, scorer = cfg.contrastive, modules["scorer"]
    assert how is not None, "called with a contrastive term only"
    seen = [pair_views(scorer, part, p=how.dropout, where=how.dropout_in, seed=cfg.seed, names=(step, i),
                       recompute=len(parts) > 1) for i, part in enumerate(parts)]
    views = [torch.cat([half[side] for side in (0, 1) for half in halves]) for halves in (
        [both[view].chunk(2) for both in seen] for view in (0, 1))]
    preference = torch.stack([preferred(cfg, parts, head_scores(scorer, view).chunk(2), tally) for view in views])
    prototypes = modules.get("prototypes")
    assert prototypes is None or isinstance(prototypes, Prototypes)
    loss, stats = contrastive_loss((views[0], views[1]), how, prototypes, same_texts(parts, how.on))
    tally.add({"contrastive/loss": loss, **stats})
    return preference.mean() / weight + how.weight * loss.mean()


def learn(objective: Tensor, step: int, parts: Sequence[PairBatch]) -> None:
    """Add the objective's gradient, if it is a number."""
    require_finite(objective.detach(), "loss", step, [name for part in parts for name in part.tokens.record_ids])
    objective.backward()


def chosen_rows(pairs: PairBatch) -> TokenBatch:
    """The chosen half of a batch of pairs."""
    n, tokens = pairs.n_pairs, pairs.tokens
    return TokenBatch(tokens.ids[:n], tokens.attention_mask[:n], tokens.response_mask[:n], tokens.record_ids[:n])


def scores_of(scorer: nn.Module, rows: Sequence[PairRow], pad_id: int, cfg: RewardModelConfig) -> Tensor:
    """Scores of both sides; without a backward pass twice as many positions fit. [2 N]"""
    return score_pairs(scorer, rows, pad_id=pad_id, micro_tokens=2 * cfg.micro_tokens, shared_prompt=cfg.shared_prompt)


def evaluate(scorer: nn.Module, rows: list[PairRow], pad_id: int, cfg: RewardModelConfig) -> dict[str, float]:
    """Held-out accuracy with its interval, beside the baseline 'the longer answer wins'."""
    scores = scores_of(scorer, rows, pad_id, cfg)
    gap = scores[0] - scores[1]
    loss, stats = bradley_terry(gap, torch.zeros_like(gap))
    longer = torch.tensor([longer_wins(row) for row in rows])
    groups = prompt_groups([row.pair.prompt for row in rows])
    mean, low, high = bootstrap_interval(stats["accuracy"], generator=stream(cfg.seed, "bootstrap"), groups=groups)
    wins, wins_low, wins_high = bootstrap_interval(longer, generator=stream(cfg.seed, "bootstrap"), groups=groups)
    return {"loss": float(loss.mean()), "accuracy": mean, "accuracy_low": low, "accuracy_high": high,
            "longer_wins": wins, "longer_wins_low": wins_low, "longer_wins_high": wins_high,
            "ece": float(expected_calibration_error(gap)), "margin": float(gap.mean()),
            "margin_std": float(gap.std(correction=0)), "undecided": float((gap.abs() < 0.1).float().mean()),
            "score_chosen": float(scores[0].mean()), "score_rejected": float(scores[1].mean()),
            "score_chosen_std": float(scores[0].std(correction=0)),
            "score_rejected_std": float(scores[1].std(correction=0)), "n": gap.numel()}


def headline(found: dict[str, float]) -> dict[str, object] | None:
    """The accuracy against its baseline, in the shape that the report reads."""
    if "accuracy" not in found:
        return None
    return {"metric": "held-out accuracy (before: the longer answer wins)", "higher_is_better": True,
            "before": {"mean": found["longer_wins"], "low": found["longer_wins_low"],
                       "high": found["longer_wins_high"], "n": found["n"]},
            "after": {"mean": found["accuracy"], "low": found["accuracy_low"], "high": found["accuracy_high"],
                      "n": found["n"]}}
