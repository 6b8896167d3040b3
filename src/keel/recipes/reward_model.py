"""A reward model from preference pairs: Bradley-Terry, with an optional language-model term and centring.

Left out: ensembles, strength, contrastive terms (methods of their own); scores are centred by a loss, not afterwards.
"""

from pathlib import Path

import torch
from pydantic import Field

from keel import runs
from keel.batches import PairBatch, TokenBatch
from keel.config import Config
from keel.data.collate import budget_batches, collate_pairs
from keel.data.load import read_pairs
from keel.data.render import PairRow, render_pairs, template
from keel.errors import ConfigError
from keel.functional.masked import masked_sum
from keel.functional.policy import nll
from keel.functional.preference import bradley_terry, centring
from keel.functional.statistics import bootstrap_interval, expected_calibration_error
from keel.models.forward import response_scores, token_logprobs
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
from keel.rng import stream
from keel.train import checkpoint
from keel.train.clock import Clock
from keel.train.inputs import DataConfig, split
from keel.train.order import batch_indices, n_steps
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally

__all__ = ["RewardModelConfig", "run"]


class RewardModelConfig(Config):
    """Everything `keel reward-model` reads."""

    out: Path = Field(description="run folder to make")
    model: ModelConfig = Field(description="trunk: a causal LM (best the SFT policy) or an encoder")
    data: DataConfig = Field(description="preference pairs")
    seed: int = Field(0, ge=0, description="fixes order, split and the new head")
    epochs: float = Field(1.0, gt=0, description="passes over the data; reward models overfit within a few")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: from epochs")
    batch: int = Field(32, ge=1, description="pairs per optimiser step")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass; changes memory, not results")
    lm_coef: float = Field(0.0, ge=0, description="weight of the cross-entropy of chosen responses; the report: 1")
    center_coef: float = Field(0.0, ge=0, description="weight of (chosen + rejected)^2; 0.01 keeps scores near zero")
    optimizer: OptimizerConfig = OptimizerConfig(lr=5e-6)
    eval_every: int = Field(100, ge=1, description="steps between validation passes")
    eval_pairs: int = Field(2000, ge=1, description="validation pairs used at most")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")


def run(cfg: RewardModelConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave a model for `AutoModelForSequenceClassification` in `out/model`."""
    files = [Path(p) for p in (cfg.data.path, cfg.data.validation) if p]
    with runs.start("reward_model", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        tokenizer = load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code)
        words = template(tokenizer)
        how: dict = {"on_bad_record": cfg.data.on_bad_record, "as_text": cfg.data.as_text}
        train, report = read_pairs(cfg.data.path, **how)
        if cfg.data.validation:
            held_out = read_pairs(cfg.data.validation, **how)[0]
        else:
            train, held_out = split(train, cfg.data.validation_fraction, cfg.seed)
        rows, cut = render_pairs(words, train, cfg.data.max_length, cfg.data.too_long)
        held_rows, _ = render_pairs(words, held_out[: cfg.eval_pairs], cfg.data.max_length, cfg.data.too_long)

        scorer = scalar_model(cfg.model, seed=cfg.seed)
        check_context(scorer, max(row.longest for row in rows))
        writer = None
        if cfg.lm_coef:
            if is_encoder(scorer):
                raise ConfigError("lm_coef > 0 needs a causal trunk, and this model is an encoder",
                                  remedy="Set lm_coef = 0, or train on a causal language model.")
            writer = share_trunk(causal_lm(cfg.model, seed=cfg.seed), scorer)
        total = n_steps(len(rows), cfg.batch, cfg.epochs, cfg.steps)
        learner = Learner.of([scorer] if writer is None else [scorer, writer], cfg.optimizer, total)
        modules = {"scorer": scorer} | ({} if writer is None else {"writer": writer})
        state = {"modules": modules, "optimizers": {"optimizer": learner.optimizer}}
        done, extra = checkpoint.restore(log, **state) if resume else (0, {})
        found = extra.get("evaluation", {})
        batches, tally = batch_indices(len(rows), cfg.batch, cfg.seed, "reward_model", first_step=done + 1), Tally()
        clock = Clock()
        progress = log.bar(total, done)
        for step in range(done + 1, total + 1):
            batch = [rows[i] for i in next(batches)]
            parts = [collate_pairs([batch[i] for i in part], words.pad_id).to(device_of(scorer))
                     for part in budget_batches([row.n_tokens for row in batch], cfg.micro_tokens)]
            weight = sum(float(part.weight.sum()) for part in parts)
            n_tokens = sum(chosen_rows(part).n_response_tokens for part in parts)
            for part in parts:
                chosen, rejected = response_scores(scorer, part.tokens).chunk(2)
                loss, stats = bradley_terry(chosen, rejected, margin=part.margin, label_prob=part.label_prob)
                center = centring(chosen, rejected)
                objective = (part.weight * (loss + cfg.center_coef * center)).sum() / max(weight, 1e-9)
                tally.add({"loss": loss, "center": center, **stats})
                if writer is not None:
                    told = chosen_rows(part)
                    lm = nll(token_logprobs(writer, told)[0], told.response_mask)
                    objective = objective + cfg.lm_coef * masked_sum(lm, told.response_mask) / n_tokens
                    tally.add({"lm/loss": lm}, told.response_mask)
                require_finite(objective.detach(), "loss", step, part.tokens.record_ids)
                objective.backward()
            metrics = tally.means() | learner.step(step, [row.record_id for row in batch])
            log.log(step, metrics)
            log.time(step, clock.lap({"pairs": len(batch)}))
            if held_rows and (step % cfg.eval_every == 0 or step == total):
                found = evaluate(scorer, held_rows, words.pad_id, cfg)
                log.log(step, found, "eval")
            if step % cfg.save_every == 0 or step == total or log.stop_requested():
                checkpoint.save(log, step, **state, extra={"evaluation": found})
            if log.stop_requested() and step < total:
                log.stop(step)
            progress.advance(f"loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.2f}")
        save_model(scorer, tokenizer, cfg.out / "model", pad_id=words.pad_id)
        return log.finish({
            "steps": total, "n_train": len(rows), "n_validation": len(held_rows), "evaluation": found,
            "skipped": {"records": report.n_dropped} | vars(cut), "headline": headline(found)})


def chosen_rows(pairs: PairBatch) -> TokenBatch:
    """The chosen half of a batch of pairs."""
    n, tokens = pairs.n_pairs, pairs.tokens
    return TokenBatch(tokens.ids[:n], tokens.attention_mask[:n], tokens.response_mask[:n], tokens.record_ids[:n])


@torch.no_grad()
def evaluate(scorer: torch.nn.Module, rows: list[PairRow], pad_id: int, cfg: RewardModelConfig) -> dict[str, float]:
    """Held-out accuracy with its interval, beside the baseline 'the longer answer wins'."""
    gaps, sums, longer = [], [], []
    for part in budget_batches([row.n_tokens for row in rows], 2 * cfg.micro_tokens):
        batch = collate_pairs([rows[i] for i in part], pad_id).to(device_of(scorer))
        chosen, rejected = response_scores(scorer, batch.tokens).chunk(2)
        gaps.append((chosen - rejected).cpu())
        sums.append(torch.stack([chosen, rejected]).cpu())
        longer += [longer_wins(rows[i]) for i in part]
    gap, scores = torch.cat(gaps), torch.cat(sums, dim=1)
    loss, stats = bradley_terry(gap, torch.zeros_like(gap))
    mean, low, high = bootstrap_interval(stats["accuracy"], generator=stream(cfg.seed, "bootstrap"))
    wins, wins_low, wins_high = bootstrap_interval(torch.tensor(longer), generator=stream(cfg.seed, "bootstrap"))
    return {"loss": float(loss.mean()), "accuracy": mean, "accuracy_low": low, "accuracy_high": high,
            "longer_wins": wins, "longer_wins_low": wins_low, "longer_wins_high": wins_high,
            "ece": float(expected_calibration_error(gap)), "margin": float(gap.mean()),
            "margin_std": float(gap.std(correction=0)), "undecided": float((gap.abs() < 0.1).float().mean()),
            "score_chosen": float(scores[0].mean()), "score_rejected": float(scores[1].mean()), "n": gap.numel()}


def longer_wins(row: PairRow) -> float:
    """1 where the chosen response has more tokens, 0 where it has fewer; a tie is a guess, worth a half."""
    gap = len(row.chosen_ids) - len(row.rejected_ids)
    return 0.5 if gap == 0 else float(gap > 0)


def headline(found: dict[str, float]) -> dict[str, object] | None:
    """The accuracy against its baseline, in the shape that the report reads."""
    if not found:
        return None
    return {"metric": "held-out accuracy (before: the longer answer wins)", "higher_is_better": True,
            "before": {"mean": found["longer_wins"], "low": found["longer_wins_low"],
                       "high": found["longer_wins_high"], "n": found["n"]},
            "after": {"mean": found["accuracy"], "low": found["accuracy_low"], "high": found["accuracy_high"],
                      "n": found["n"]}}
