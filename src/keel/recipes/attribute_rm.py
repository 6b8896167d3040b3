"""A reward model from grades: one number per attribute by regression, and their weighted sum as the score.

Left out: a gating network that weighs the attributes by prompt; the weights are settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from keel import runs
from keel.config import Config
from keel.data.collate import budget_batches, collate
from keel.data.load import read_graded
from keel.data.records import Demonstration, Graded, prompt_numbers
from keel.data.render import Row, Template, Truncation, render_demonstrations, template
from keel.errors import DataError
from keel.functional.grades import determination, grade_moments, standardised, unstandardised
from keel.functional.preference import attribute_error
from keel.functional.statistics import bootstrap_interval, correlation, rank_correlation
from keel.models.attributes import attribute_model, attribute_outputs, remember_moments, scalarised
from keel.models.load import ModelConfig, check_context, device_of, load_tokenizer, save_model
from keel.rng import stream
from keel.train import checkpoint
from keel.train.clock import Clock
from keel.train.inputs import DataConfig, load_split
from keel.train.order import batch_indices, n_steps
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally

__all__ = ["AttributeRMConfig", "run"]


class AttributeRMConfig(Config):
    """Everything `keel attribute-rm` reads."""

    out: Path = Field(description="run folder to make")
    model: ModelConfig = Field(description="trunk: a causal LM (best the SFT policy) or an encoder")
    data: DataConfig = Field(description="responses with grades")
    attributes: tuple[str, ...] = Field(min_length=1, description="columns that hold grades; a row may lack some")
    weights: dict[str, float] = Field(description="what an attribute counts in the score, per unit of its grade; an "
                                      "attribute that is not named counts 0")
    seed: int = Field(0, ge=0, description="fixes order, split and the new head")
    epochs: float = Field(1.0, gt=0, description="passes over the data; reward models overfit within a few")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: from epochs")
    batch: int = Field(32, ge=1, description="responses per optimiser step")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass; changes memory, not results")
    optimizer: OptimizerConfig = OptimizerConfig(lr=5e-6)
    eval_every: int = Field(100, ge=1, description="steps between validation passes")
    eval_responses: int = Field(2000, ge=1, description="validation responses used at most")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")

    @model_validator(mode="after")
    def _check(self) -> "AttributeRMConfig":
        if len(set(self.attributes)) < len(self.attributes):
            raise ValueError(f"attributes names one twice: {', '.join(self.attributes)}")
        if strange := sorted(self.weights.keys() - set(self.attributes)):
            raise ValueError(f"weights names {', '.join(strange)}, which attributes does not")
        if not any(self.weights.values()):
            raise ValueError("weights gives no attribute a weight: every score would be 0")
        return self


@dataclass(frozen=True)
class Examples:
    """Rendered responses; their grades in their own units, NaN where absent [N A]; a number for the prompt of each."""

    rows: list[Row]
    grades: Tensor
    prompts: Tensor


def run(cfg: AttributeRMConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave a model with a label per attribute in `out/attributes` and a reward model in `out/model`."""
    files = [Path(p) for p in (cfg.data.path, cfg.data.validation) if p]
    with runs.start("attribute_rm", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        tokenizer = load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code)
        words = template(tokenizer)
        read = partial(read_graded, attributes=cfg.attributes, on_bad_record=cfg.data.on_bad_record,
                       as_text=cfg.data.as_text)
        train, held_out, n_bad = load_split(cfg.data, cfg.seed, read, log.note)
        seen, cut = examples(words, train, cfg)
        unseen, _ = examples(words, held_out[: cfg.eval_responses], cfg)
        require_variety(seen.grades, cfg.attributes)
        mean, std = grade_moments(seen.grades, ~seen.grades.isnan())

        model = attribute_model(cfg.model, cfg.attributes, seed=cfg.seed)
        remember_moments(model, mean, std)
        check_context(model, max(row.n_tokens for row in seen.rows + unseen.rows))
        rows, total = seen.rows, n_steps(len(seen.rows), cfg.batch, cfg.epochs, cfg.steps)
        learner = Learner.of([model], cfg.optimizer, total)
        state: dict[str, Any] = {"modules": {"model": model}, "optimizers": {"optimizer": learner.optimizer}}
        done, extra = checkpoint.restore(log, **state) if resume else (0, {})
        found = extra.get("evaluation", {})
        batches, tally = batch_indices(len(rows), cfg.batch, cfg.seed, "attribute_rm", first_step=done + 1), Tally()
        targets = standardised(seen.grades, mean, std).float().to(device_of(model))
        clock = Clock()
        progress = log.bar(total, done)
        for step in range(done + 1, total + 1):
            batch = torch.tensor(next(batches), device=targets.device)
            n_grades = int((~targets[batch].isnan()).sum())
            for part in budget_batches([rows[i].n_tokens for i in batch.tolist()], cfg.micro_tokens):
                picked = batch[part]
                tokens = collate([rows[i] for i in picked.tolist()], words.pad_id).to(device_of(model))
                present = ~targets[picked].isnan()
                error = attribute_error(attribute_outputs(model, tokens), targets[picked], present)
                tally.add({"loss": error / present.sum(1)}, present.sum(1))
                # Every grade of a step weighs the same, whatever the micro-batches are and whatever is absent.
                objective = error.sum() / n_grades
                require_finite(objective.detach(), "loss", step, tokens.record_ids)
                objective.backward()
            metrics = tally.means() | learner.step(step, [rows[i].record_id for i in batch.tolist()])
            log.log(step, metrics)
            log.time(step, clock.lap({"responses": len(batch)}))
            if unseen.rows and (step % cfg.eval_every == 0 or step == total):
                found = evaluate(predictions(model, unseen.rows, words.pad_id, cfg), unseen, mean, std, cfg)
                log.log(step, found, "eval")
            if step % cfg.save_every == 0 or step == total or log.stop_requested():
                checkpoint.save(log, step, **state, extra={"evaluation": found})
            if log.stop_requested() and step < total:
                log.stop(step)
            progress.advance(f"loss {metrics['loss']:.3f}")
        save_model(model, tokenizer, cfg.out / "attributes", pad_id=words.pad_id)
        save_model(scalarised(model, cfg.weights, mean=mean, std=std), tokenizer, cfg.out / "model",
                   pad_id=words.pad_id)
        return log.finish({"steps": total, "n_train": len(rows), "n_validation": len(unseen.rows), "evaluation": found,
                           "skipped": {"records": n_bad} | vars(cut), "headline": headline(found)})


def examples(words: Template, graded: Sequence[Graded], cfg: AttributeRMConfig) -> tuple[Examples, Truncation]:
    """What fits into the length limit, and what did not."""
    told = [Demonstration(one.prompt, one.response) for one in graded]
    rows, cut = render_demonstrations(words, told, cfg.data.max_length, cfg.data.too_long)
    records = {one.id: one for one in graded}
    kept = [records[row.record_id] for row in rows]
    grades = torch.tensor([[one.grades.get(name, float("nan")) for name in cfg.attributes] for one in kept],
                          dtype=torch.float64).view(len(kept), len(cfg.attributes))
    return Examples(rows, grades, torch.tensor(prompt_numbers(one.prompt for one in kept))), cut


def require_variety(grades: Tensor, names: Sequence[str]) -> None:
    """An attribute that is always the same has no unit to measure errors in.

    Raises:
        DataError: an attribute has fewer than two different grades.
    """
    for name, column in zip(names, grades.T, strict=True):
        there = column[~column.isnan()].unique()
        if len(there) < 2:
            shown = f"every grade is {float(there[0]):g}" if len(there) else "there is no grade"
            raise DataError(f"nothing to learn about the attribute {name!r}: {shown}", where="attributes",
                            remedy="Check the column's name and its grades, or leave the attribute out.")


@torch.no_grad()
def predictions(model: nn.Module, rows: Sequence[Row], pad_id: int, cfg: AttributeRMConfig) -> Tensor:
    """Standardised predictions in the order of the rows, float64 on the CPU. [N A]"""
    found = torch.zeros(len(rows), len(cfg.attributes), dtype=torch.float64)
    for part in budget_batches([row.n_tokens for row in rows], 2 * cfg.micro_tokens):
        tokens = collate([rows[i] for i in part], pad_id).to(device_of(model))
        found[torch.tensor(part)] = attribute_outputs(model, tokens).double().cpu()
    return found


def evaluate(outputs: Tensor, unseen: Examples, mean: Tensor, std: Tensor, cfg: AttributeRMConfig) -> dict[str, float]:
    """Errors with intervals over prompts, beside predicting the training mean; and numbers for each attribute."""
    targets, present = standardised(unseen.grades, mean, std), ~unseen.grades.isnan()
    n = present.sum(1)
    numbers: dict[str, float] = {"n": int(n.sum())}
    for name, predicted in (("loss", outputs), ("loss_of_mean", torch.zeros_like(outputs))):
        error = attribute_error(predicted, targets, present) / n
        ends = bootstrap_interval(error.repeat_interleave(n), generator=stream(cfg.seed, "bootstrap"),
                                  groups=unseen.prompts.repeat_interleave(n))
        numbers |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    guessed = unstandardised(outputs, mean, std)
    for a, name in enumerate(cfg.attributes):
        there = present[:, a]
        predicted, true = guessed[there, a], unseen.grades[there, a]
        numbers[f"n/{name}"] = len(true)
        if len(true):
            error = attribute_error(predicted[:, None], true[:, None], torch.ones_like(true[:, None], dtype=torch.bool))
            numbers |= {f"mse/{name}": float(error.mean()),
                        f"r2/{name}": float(determination(predicted, true, guess=float(mean[a]))),
                        f"pearson/{name}": float(correlation(predicted, true)),
                        f"spearman/{name}": float(rank_correlation(predicted, true))}
    return numbers


def headline(found: dict[str, float]) -> dict[str, object] | None:
    """The error against its baseline, in the shape that the report reads."""
    if not found:
        return None
    before, after = ({"mean": found[name], "low": found[f"{name}_low"], "high": found[f"{name}_high"], "n": found["n"]}
                     for name in ("loss_of_mean", "loss"))
    return {"metric": "held-out squared error (before: predicting the mean)", "higher_is_better": False,
            "before": before, "after": after}
