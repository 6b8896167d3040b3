"""A reward model from rankings: several responses to one prompt, from best to worst, ties allowed.

Left out: what `keel reward-model` has for pairs alone (strength, contrastive and language-model terms, centring).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from keel import runs
from keel.batches import RankingBatch, SharedPrompt
from keel.config import Config
from keel.data.collate import ranking_batches
from keel.data.load import read_rankings
from keel.data.records import prompt_numbers
from keel.data.render import RankingRow, render_rankings, template
from keel.functional.preference import all_pairs, plackett_luce
from keel.functional.rankings import Order, order_of
from keel.functional.statistics import bootstrap_interval
from keel.models.forward import response_scores
from keel.models.load import ModelConfig, check_context, device_of, load_tokenizer, save_model, scalar_model
from keel.models.pairs import joining
from keel.rng import stream
from keel.train import checkpoint
from keel.train.clock import Clock
from keel.train.inputs import DataConfig, load_split
from keel.train.order import batch_indices, n_steps
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally

__all__ = ["RankingRMConfig", "run"]

LOSSES = {"plackett_luce": plackett_luce, "all_pairs": all_pairs}


class RankingRMConfig(Config):
    """Everything `keel ranking-rm` reads."""

    out: Path = Field(description="run folder to make")
    model: ModelConfig = Field(description="trunk: a causal LM (best the SFT policy) or an encoder")
    data: DataConfig = Field(description="rankings; pairs are rankings of two")
    seed: int = Field(0, ge=0, description="fixes order, split and the new head")
    epochs: float = Field(1.0, gt=0, description="passes over the data; reward models overfit within a few")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: from epochs")
    batch: int = Field(16, ge=1, description="rankings per optimiser step")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass, at least one ranking; changes "
                              "memory, not results")
    shared_prompt: SharedPrompt = Field("auto", description="run a prompt once for all its responses: where it "
                                        "saves time, always, or never; changes speed, not results")
    loss: Literal["plackett_luce", "all_pairs"] = Field(
        "plackett_luce", description="plackett_luce: pick the best of those left, again and again; all_pairs: mean "
        "Bradley-Terry loss over the pairs of a ranking")
    optimizer: OptimizerConfig = OptimizerConfig(lr=5e-6)
    eval_every: int = Field(100, ge=1, description="steps between validation passes")
    eval_rankings: int = Field(1000, ge=1, description="validation rankings used at most")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")


def run(cfg: RankingRMConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave a model for `AutoModelForSequenceClassification` in `out/model`."""
    files = [Path(p) for p in (cfg.data.path, cfg.data.validation) if p]
    with runs.start("ranking_rm", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        tokenizer = load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code)
        words = template(tokenizer)
        read = partial(read_rankings, on_bad_record=cfg.data.on_bad_record, as_text=cfg.data.as_text)
        train, held_out, n_bad = load_split(cfg.data, cfg.seed, read, log.note)
        rows, cut = render_rankings(words, train, cfg.data.max_length, cfg.data.too_long)
        held_rows, _ = render_rankings(words, held_out[: cfg.eval_rankings], cfg.data.max_length, cfg.data.too_long)

        scorer = scalar_model(cfg.model, seed=cfg.seed)
        check_context(scorer, max(row.longest for row in rows + held_rows))
        shared = joining(scorer, cfg.shared_prompt)
        total = n_steps(len(rows), cfg.batch, cfg.epochs, cfg.steps)
        learner = Learner.of([scorer], cfg.optimizer, total)
        state: dict[str, Any] = {"modules": {"scorer": scorer}, "optimizers": {"optimizer": learner.optimizer}}
        done, extra = checkpoint.restore(log, **state) if resume else (0, {})
        found = extra.get("evaluation", {})
        batches, tally = batch_indices(len(rows), cfg.batch, cfg.seed, "ranking_rm", first_step=done + 1), Tally()
        clock = Clock()
        progress = log.bar(total, done)
        for step in range(done + 1, total + 1):
            batch = [rows[i] for i in next(batches)]
            for part in ranking_batches(batch, micro_tokens=cfg.micro_tokens, pad_id=words.pad_id,
                                        shared_prompt=shared):
                loss, order = judged(scorer, part.to(device_of(scorer)), cfg)
                tally.add({"loss": loss, "kendall": order.tau, "top1": order.top})
                tally.add({"accuracy": order.right / order.pairs.clamp_min(1)}, order.pairs)
                # Every ranking of a step weighs the same, whatever the micro-batches are.
                objective = loss.sum() / len(batch)
                require_finite(objective.detach(), "loss", step, part.record_ids)
                objective.backward()
            metrics = tally.means() | learner.step(step, [row.record_id for row in batch])
            log.log(step, metrics)
            log.time(step, clock.lap({"rankings": len(batch)}))
            if held_rows and (step % cfg.eval_every == 0 or step == total):
                found = evaluate(scorer, held_rows, words.pad_id, shared, cfg)
                log.log(step, found, "eval")
            if step % cfg.save_every == 0 or step == total or log.stop_requested():
                checkpoint.save(log, step, **state, extra={"evaluation": found})
            if log.stop_requested() and step < total:
                log.stop(step)
            progress.advance(f"loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.2f}")
        save_model(scorer, tokenizer, cfg.out / "model", pad_id=words.pad_id)
        return log.finish({
            "steps": total, "n_train": len(rows), "n_validation": len(held_rows), "evaluation": found,
            "skipped": {"records": n_bad} | vars(cut), "headline": headline(found)})


def judged(scorer: nn.Module, part: RankingBatch, cfg: RankingRMConfig) -> tuple[Tensor, Order]:
    """The loss of each ranking, and how the scores order its responses."""
    scores = part.by_place(response_scores(scorer, part.tokens))
    return LOSSES[cfg.loss](scores, part.present, part.tied), order_of(scores, part.present, part.tied)


@torch.no_grad()
def evaluate(scorer: nn.Module, rows: Sequence[RankingRow], pad_id: int, shared: SharedPrompt, cfg: RankingRMConfig,
             ) -> dict[str, float]:
    """Held-out pairs put in order, with intervals over prompts, beside the baseline 'the longer answer wins'."""
    prompts = dict(zip((row.record_id for row in rows), prompt_numbers(row.ranking.prompt for row in rows),
                       strict=True))
    columns: dict[str, list[Tensor]] = {
        name: [] for name in ("prompt", "loss", "pairs", "right", "longer", "kendall", "top1")}
    for part in ranking_batches(rows, micro_tokens=2 * cfg.micro_tokens, pad_id=pad_id, shared_prompt=shared):
        loss, order = judged(scorer, part.to(device_of(scorer)), cfg)
        by_length = order_of(part.by_place(part.tokens.response_mask.sum(1).float()), part.present, part.tied)
        # Equally long responses are a guess, worth a half.
        longer = (by_length.right - by_length.wrong + by_length.pairs) / 2
        for name, values in (("prompt", torch.tensor([prompts[name] for name in part.record_ids])), ("loss", loss),
                             ("pairs", order.pairs), ("right", order.right), ("longer", longer),
                             ("kendall", order.tau), ("top1", order.top)):
            columns[name].append(values.double().cpu())
    found = {name: torch.cat(parts) for name, parts in columns.items()}
    n, prompt = found["pairs"].long(), found["prompt"].long()
    numbers = {"loss": float(found["loss"].mean()), "n": int(n.sum()), "n_rankings": len(rows)}
    for name, values, groups in (
            ("accuracy", (found["right"] / n).repeat_interleave(n), prompt.repeat_interleave(n)),
            ("longer_wins", (found["longer"] / n).repeat_interleave(n), prompt.repeat_interleave(n)),
            ("kendall", found["kendall"], prompt), ("top1", found["top1"], prompt)):
        ends = bootstrap_interval(values, generator=stream(cfg.seed, "bootstrap"), groups=groups)
        numbers |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    return numbers


def headline(found: dict[str, float]) -> dict[str, object] | None:
    """The share of pairs put in order against its baseline, in the shape that the report reads."""
    if not found:
        return None
    before, after = ({"mean": found[name], "low": found[f"{name}_low"], "high": found[f"{name}_high"], "n": found["n"]}
                     for name in ("longer_wins", "accuracy"))
    return {"metric": "held-out accuracy (before: the longer answer wins)", "higher_is_better": True,
            "before": before, "after": after}
