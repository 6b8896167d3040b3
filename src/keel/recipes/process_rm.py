"""A process reward model from labelled solutions: which steps are right, or, from outcomes, whether the answer is.

Left out: how steps get labels (`keel process-rm label`), and what the scores are used for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from keel import runs
from keel.bench.first_errors import HALF, Predict, baselines_of, judged, solution_row, steps_headline
from keel.bench.outcomes import outcome_headline, outcomes_judged
from keel.config import Config
from keel.data.collate import budget_batches
from keel.data.load import read_traces
from keel.data.render import Template, template
from keel.data.segment import Separator
from keel.data.step_rows import StepRow, StepTruncation, render_traces
from keel.data.traces import StepTrace
from keel.functional.steps import step_loss
from keel.models.load import ModelConfig, check_context, device_of, load_tokenizer, save_model
from keel.models.process import as_reward_model, process_model
from keel.train import checkpoint
from keel.train.clock import Clock
from keel.train.inputs import load_split, write_seen
from keel.train.order import batch_indices, n_steps
from keel.train.solutions import (
    OUTCOMES,
    SolutionsConfig,
    Supervise,
    hardened,
    step_batch,
    step_logits_of,
    supervised,
    tell,
    up_to_last_label,
)
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally

__all__ = ["ProcessRMConfig", "run"]


class ProcessRMConfig(Config):
    """Everything `keel process-rm` reads."""

    out: Path = Field(description="run folder to make")
    model: ModelConfig = Field(description="trunk: a causal LM, best the policy's SFT model; or a process model")
    data: SolutionsConfig = Field(description="solutions in steps, with labels of the steps or outcomes")
    separator: Separator = Field("\n", min_length=1, description="text between two steps, as the policy writes it")
    supervise: Supervise = Field("steps", description="steps: every labelled step; last_step: only the last of them; "
                                 "outcome: the final answer, at the end; outcome_at_each_step")
    hard_above: float | None = Field(None, ge=0, lt=1, description="labels above this become 1, the others 0 "
                                     "(Math-Shepherd's hard estimation: 0); none: as they are")
    threshold: float = Field(HALF, ge=0, le=1, description="a held-out step whose probability is below is called wrong")
    by: str | None = Field(None, description="column of the data to break held-out results down by; none: off")
    seed: int = Field(0, ge=0, description="fixes order, split and the new head")
    epochs: float = Field(1.0, gt=0, description="passes over the data; reward models overfit within a few")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: from epochs")
    batch: int = Field(32, ge=1, description="solutions per optimiser step")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass; changes memory, not results")
    optimizer: OptimizerConfig = OptimizerConfig(lr=5e-6)
    eval_every: int = Field(100, ge=1, description="optimiser steps between validation passes")
    eval_solutions: int = Field(2000, ge=1, description="held-out solutions used at most")
    save_every: int = Field(100, ge=1, description="optimiser steps between checkpoints")
    n_samples: int = Field(64, ge=0, description="held-out solutions written to solutions.jsonl for the report")

    @model_validator(mode="after")
    def _check(self) -> "ProcessRMConfig":
        if self.hard_above is not None and self.supervise in OUTCOMES:
            raise ValueError(f"hard_above does nothing with supervise = {self.supervise}: an outcome is right or wrong")
        return self


@dataclass(frozen=True)
class Held:
    """Held-out solutions.

    Attributes:
        traces: as they were read.
        rows: which some of them do not have.
        cut: what the length limit did to them; none where there are none.
        training: the solutions that were trained on.
        baselines: made from these.
    """

    traces: list[StepTrace]
    rows: list[StepRow]
    cut: StepTruncation | None
    training: list[StepTrace]
    baselines: Mapping[str, Predict]


def run(cfg: ProcessRMConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave a token classifier in `out/model`; from outcomes also a reward model in `out/reward_model`."""
    files = [Path(p) for p in (cfg.data.path, cfg.data.validation) if p]
    with runs.start("process_rm", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        tokenizer = load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code)
        words = template(tokenizer)
        read = partial(read_traces, on_bad_record=cfg.data.on_bad_record, as_text=cfg.data.as_text)
        train, held_out, n_bad = load_split(cfg.data, cfg.seed, read, log.note)
        write_seen(cfg.out, [trace.prompt for trace in train], [trace.prompt for trace in held_out])
        train, held_out = hardened(train, cfg.hard_above), hardened(held_out, cfg.hard_above)
        told = supervised(train, cfg.supervise)
        rows, cut = render_traces(words, told, separator=cfg.separator, max_length=cfg.data.max_length,
                                  too_long=cfg.data.too_long)
        tell(cut, log.note)
        rows = [up_to_last_label(row) for row in rows]
        held = unseen(words, held_out[: cfg.eval_solutions], train, cfg)
        if held.cut and (held.cut.n_shortened or held.cut.n_dropped):
            log.note(f"held out: {held.cut.summary()}")

        model = process_model(cfg.model, seed=cfg.seed)
        check_context(model, max(row.n_tokens for row in rows + held.rows))
        total = n_steps(len(rows), cfg.batch, cfg.epochs, cfg.steps)
        learner = Learner.of([model], cfg.optimizer, total)
        state: dict[str, Any] = {"modules": {"model": model}, "optimizers": {"optimizer": learner.optimizer}}
        done, extra = checkpoint.restore(log, **state) if resume else (0, {})
        found: dict[str, Any] = extra.get("found", {})
        batches, tally = batch_indices(len(rows), cfg.batch, cfg.seed, "process_rm", first_step=done + 1), Tally()
        clock = Clock()
        progress = log.bar(total, done)
        for step in range(done + 1, total + 1):
            batch = [rows[i] for i in next(batches)]
            n_labels = sum(label is not None for row in batch for label in row.trace.labels)
            for part in budget_batches([row.n_tokens for row in batch], cfg.micro_tokens):
                micro = step_batch([batch[i] for i in part], words.pad_id, labelled=True).to(device_of(model))
                loss, stats = step_loss(micro.logits(model), micro.labels)
                tally.add({"loss": loss} | stats | {"steps/label": micro.labels})
                # Every label of an optimiser step weighs the same, whatever the micro-batches are.
                objective = loss.sum() / n_labels
                require_finite(objective.detach(), "loss", step, micro.tokens.record_ids)
                objective.backward()
            metrics = tally.means() | learner.step(step, [row.row.record_id for row in batch])
            log.log(step, metrics)
            log.time(step, clock.lap({"solutions": len(batch)}))
            if held.rows and (step % cfg.eval_every == 0 or step == total):
                logits = step_logits_of(model, held.rows, words.pad_id, 2 * cfg.micro_tokens)
                found = evaluate(logits, held, cfg)
                log.log(step, found["evaluation"], "eval")
            if step % cfg.save_every == 0 or step == total or log.stop_requested():
                checkpoint.save(log, step, **state, extra={"found": found})
            if log.stop_requested() and step < total:
                log.stop(step)
            progress.advance(f"loss {metrics['loss']:.3f}  right {metrics['steps/accuracy']:.2f}")
        save_all(model, tokenizer, words, cfg)
        write_solutions(step_logits_of(model, held.rows, words.pad_id, 2 * cfg.micro_tokens), held, cfg)
        return log.finish({
            "n_updates": total, "n_train": len(rows), "n_validation": len(held.rows), **found,
            "skipped": {"records": n_bad, "n_unlabelled": len(train) - len(told), "n_rows": cut.n_rows,
                        "n_cut": cut.n_shortened, "n_dropped": cut.n_dropped, "max_length": cut.max_length},
            "truncation": vars(cut), "held_out": vars(held.cut) if held.cut else None, "headline": headline(found)})


def unseen(words: Template, traces: list[StepTrace], training: list[StepTrace], cfg: ProcessRMConfig) -> Held:
    """Held-out solutions, judged as far as the length limit lets them be read."""
    if not traces:
        return Held([], [], None, training, {})
    rows, cut = render_traces(words, traces, separator=cfg.separator, max_length=cfg.data.max_length)
    return Held(traces, rows, cut, training, baselines_of(training, by=cfg.by, seed=cfg.seed))


def evaluate(logits: Sequence[Sequence[float]], held: Held, cfg: ProcessRMConfig) -> dict[str, Any]:
    """`steps`: see `judged`; `outcome`: see `outcomes_judged`; `evaluation`: the numbers of both for the course."""
    found: dict[str, Any] = {"evaluation": {}}
    pairs = [(x, label) for row, line in zip(held.rows, logits, strict=True)
             for x, label in zip(line, row.trace.labels, strict=True) if label is not None]
    if pairs:
        values, labels = torch.tensor(pairs, dtype=torch.float64).T
        loss, stats = step_loss(values, labels)
        told = judged(probabilities(logits, held), held.traces, seed=cfg.seed, threshold=cfg.threshold,
                      baselines=held.baselines, by=cfg.by)
        first = told["first_error"]
        found["steps"] = told
        found["evaluation"] |= {"loss": float(loss.mean()), "steps/accuracy": float(stats["steps/accuracy"].mean()),
                            "steps/probability": float(values.sigmoid().mean()), "steps/label": float(labels.mean()),
                            "first_error/f1": first["f1"]["mean"],
                            "first_error/accuracy_wrong": first["accuracy_wrong"],
                            "first_error/accuracy_right": first["accuracy_right"]}
    ends = [(row.trace, line[-1]) for row, line in zip(held.rows, logits, strict=True) if row.trace.outcome is not None]
    if ends and cfg.supervise in OUTCOMES:
        score = torch.tensor([x for _, x in ends], dtype=torch.float64)
        told = outcomes_judged(score, [trace for trace, _ in ends], held.training, seed=cfg.seed)
        found["outcome"] = told
        found["evaluation"] |= {"outcome/accuracy": told["accuracy"]["mean"], "outcome/auc": told["auc"]["mean"]}
    found["evaluation"] = {name: value for name, value in found["evaluation"].items() if value is not None}
    return found


def probabilities(logits: Sequence[Sequence[float]], held: Held) -> list[list[float]]:
    """Of the steps of every held-out solution; fewer than it has where not all of them fit, none where none does."""
    known = {row.trace.id: torch.tensor(line, dtype=torch.float64).sigmoid().tolist()
             for row, line in zip(held.rows, logits, strict=True)}
    return [known.get(trace.id, []) for trace in held.traces]


def save_all(model: nn.Module, tokenizer: Any, words: Template, cfg: ProcessRMConfig) -> None:
    """The process model, and the reward model that it is at the end of a solution."""
    save_model(model, tokenizer, cfg.out / "model")
    if cfg.supervise in OUTCOMES:
        save_model(as_reward_model(model), tokenizer, cfg.out / "reward_model", pad_id=words.pad_id)


def write_solutions(logits: Sequence[Sequence[float]], held: Held, cfg: ProcessRMConfig) -> None:
    """Some held-out solutions with the score of each step."""
    told = zip(held.traces, probabilities(logits, held), strict=True)
    runs.write_rows(cfg.out / "solutions.jsonl",
                    [solution_row(*one, cfg.threshold) for one in islice(told, cfg.n_samples)])


def headline(found: dict[str, Any]) -> dict[str, object] | None:
    """What was learned against the best that knows no better."""
    if "outcome" in found:
        return outcome_headline(found["outcome"])
    return steps_headline(found["steps"]) if "steps" in found else None
