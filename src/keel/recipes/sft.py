"""Supervised fine-tuning: the policy that everything else starts from. Also trains a small model from nothing.

Left out: packing several demonstrations into one row (token-budget micro-batches leave little padding).
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from keel import runs
from keel.batches import TokenBatch
from keel.config import Config
from keel.data.collate import budget_batches, collate
from keel.data.load import read_demonstrations
from keel.data.render import PromptRow, Row, render_demonstrations, render_prompts, template
from keel.data.seen import said_key
from keel.functional.masked import masked_sum
from keel.functional.policy import nll
from keel.models.forward import token_logprobs
from keel.models.load import ModelConfig, causal_lm, check_context, device_of, load_tokenizer, save_model
from keel.online.anchor import AnchorConfig, Start
from keel.online.held import held, refuse_both, teacher
from keel.online.watch import PersonaConfig, files_of, result_of, visited, watch
from keel.persona.settings import AxisConfig
from keel.rollout.respond import respond, sample_rows
from keel.rollout.sample import SamplingConfig
from keel.train import checkpoint
from keel.train.clock import Clock
from keel.train.inputs import DataConfig, require_apart, split, write_seen
from keel.train.order import batch_indices, n_steps
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally

__all__ = ["SFTConfig", "run"]


class SFTConfig(Config):
    """Everything `keel sft` reads."""

    out: Path = Field(description="run folder to make")
    model: ModelConfig = Field(description="model to train")
    data: DataConfig = Field(description="demonstrations")
    turns: Literal["last", "all"] = Field("last", description="train on the last assistant turn, or on all")
    seed: int = Field(0, ge=0, description="fixes order, samples and initialisation")
    epochs: float = Field(1.0, gt=0, description="passes over the data")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: from epochs")
    batch: int = Field(32, ge=1, description="demonstrations per optimiser step")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass; changes memory, not results")
    optimizer: OptimizerConfig = OptimizerConfig(lr=2e-5)
    eval_every: int = Field(100, ge=1, description="steps between validation passes")
    eval_rows: int = Field(512, ge=1, description="validation demonstrations used at most")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=64)
    n_samples: int = Field(16, ge=0, description="validation prompts answered before and after, for the report")
    anchor: AnchorConfig | None = Field(None, description="price of states that leave the Assistant; none: no price")
    steered: AxisConfig | None = Field(None, description="acts in every training pass, and in nothing else; none: off")
    distil: AxisConfig | None = Field(None, description="learn to be like the start under this axis on the responses, "
                                      "not to imitate them; none: imitate")
    persona: PersonaConfig | None = Field(None, description="watches how Assistant-like the model is; none: nobody")

    @model_validator(mode="after")
    def _check(self) -> "SFTConfig":
        refuse_both(self.anchor, self.steered, self.distil)
        return self


def run(cfg: SFTConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave the model in `out/model`."""
    files = [Path(p) for p in (cfg.data.path, cfg.data.validation) if p]
    files += files_of(cfg.anchor, cfg.persona, cfg.steered, cfg.distil)
    with runs.start("sft", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        tokenizer = load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code)
        words = template(tokenizer)
        how: dict = {"turns": cfg.turns, "on_bad_record": cfg.data.on_bad_record, "as_text": cfg.data.as_text}
        train, report = read_demonstrations(cfg.data.path, **how)
        n_bad = sum(shown.prompt.meta.get("label") is False for shown in train)
        if n_bad:
            log.note(f"{n_bad} of {len(train)} demonstrations have label = false and are imitated like the others; "
                     "`keel preference --loss kto` tells good from bad")
        if cfg.data.validation:
            held_out = read_demonstrations(cfg.data.validation, **how)[0]
            keys = [{said_key(one.prompt.messages, one.prompt.text, one.response) for one in part}
                    for part in (train, held_out)]
            require_apart(keys[0], keys[1], "demonstrations", cfg.data.validation, log.note)
        else:
            train, held_out = split(train, cfg.data.validation_fraction, cfg.seed)
        write_seen(cfg.out, [shown.prompt for shown in train], [shown.prompt for shown in held_out])
        rows, cut = render_demonstrations(words, train, cfg.data.max_length, cfg.data.too_long)
        held_rows, _ = render_demonstrations(words, held_out[: cfg.eval_rows], cfg.data.max_length, cfg.data.too_long)
        room = cfg.data.max_length - cfg.sampling.max_new_tokens
        asked = [d.prompt for d in held_out[: cfg.n_samples] if len(words.prompt_ids(d.prompt)) <= room]
        prompts, _ = render_prompts(words, asked, max(room, 1), "drop")

        model = causal_lm(cfg.model, seed=cfg.seed)
        check_context(model, max(len(row.ids) for row in rows))
        told = {shown.id: shown.prompt for shown in train}
        begun = [PromptRow(row.ids[: row.n_prompt], told[row.record_id]) for row in rows]
        start = Start(model, words, cfg.sampling, room, cfg.micro_tokens, cfg.seed, log)
        holds, watched = held(cfg.anchor, cfg.steered, start, begun), watch(cfg.persona, start)
        taught = teacher(cfg.distil, model)
        total = n_steps(len(rows), cfg.batch, cfg.epochs, cfg.steps)
        learner = Learner.of([model], cfg.optimizer, total)
        state = {"modules": {"model": model}, "optimizers": {"optimizer": learner.optimizer}}
        done, extra = checkpoint.restore(log, **state) if resume else (0, {})
        first_loss, last_loss = extra.get("losses", (None, None))
        if done == 0:
            first_loss = last_loss = evaluate(model, held_rows, words.pad_id, cfg.micro_tokens)
            log.log(0, eval_metrics(first_loss), "eval")
            visited(watched, model, 0, last=False)
            show(log, 0, model, words, prompts, cfg)

        batches, tally = batch_indices(len(rows), cfg.batch, cfg.seed, "sft", first_step=done + 1), Tally()
        clock = Clock()
        progress = log.bar(total, done)
        for step in range(done + 1, total + 1):
            batch = [rows[i] for i in next(batches)]
            parts = [collate([batch[i] for i in part], words.pad_id).to(device_of(model))
                     for part in budget_batches([len(row.ids) for row in batch], cfg.micro_tokens)]
            n_tokens = sum(part.n_response_tokens for part in parts)  # micro-batches share it
            for part in parts:
                with holds.passing(model):
                    loss = nll(token_logprobs(model, part)[0], part.response_mask) if taught is None else (
                        taught.loss(model, part))
                tally.add({"loss": loss}, part.response_mask)
                objective = masked_sum(loss, part.response_mask) / n_tokens
                objective = objective + holds.cost(part, part.response_mask.float(), n_tokens, tally)
                require_finite(objective.detach(), "loss", step, part.record_ids)
                objective.backward()
            ids = [row.record_id for row in batch]
            metrics = tally.means() | learner.step(step, ids) | {"tokens": n_tokens}
            log.log(step, metrics)
            log.time(step, clock.lap({"tokens": sum(len(row.ids) for row in batch)}))
            if held_rows and (step % cfg.eval_every == 0 or step == total):
                last_loss = evaluate(model, held_rows, words.pad_id, cfg.micro_tokens)
                log.log(step, eval_metrics(last_loss), "eval")
            visited(watched, model, step, last=step == total)
            if step % cfg.save_every == 0 or step == total or log.stop_requested():
                checkpoint.save(log, step, **state, extra={"losses": (first_loss, last_loss)})
            if log.stop_requested() and step < total:
                log.stop(step)
            progress.advance(f"loss {metrics['loss']:.3f}")
        show(log, total, model, words, prompts, cfg)
        save_model(model, tokenizer, cfg.out / "model")
        return log.finish({
            "steps": total, "n_train": len(rows), "n_validation": len(held_rows),
            "skipped": {"records": report.n_dropped} | vars(cut),
            "headline": {"metric": "validation loss (nats per token)", "higher_is_better": False,
                      "before": {"mean": first_loss}, "after": {"mean": last_loss}} if held_rows else None}
            | holds.result() | result_of(watched))


@torch.no_grad()
def evaluate(model: torch.nn.Module, rows: list[Row], pad_id: int, micro_tokens: int) -> float | None:
    """Mean cross-entropy per response token over all rows, in nats; None without rows."""
    tally = Tally()
    for part in budget_batches([len(row.ids) for row in rows], 2 * micro_tokens):
        batch: TokenBatch = collate([rows[i] for i in part], pad_id).to(device_of(model))
        tally.add({"loss": nll(token_logprobs(model, batch)[0], batch.response_mask)}, batch.response_mask)
    return tally.means()["loss"] if rows else None


def eval_metrics(loss: float | None) -> dict[str, float]:
    """Validation loss and its perplexity."""
    return {} if loss is None else {"loss": loss, "perplexity": float(torch.tensor(loss).exp())}


def show(log: runs.Run, step: int, model: torch.nn.Module, words: object, prompts: list, cfg: SFTConfig) -> None:
    """Answers to a few held-out prompts, with the same random streams every time."""
    if prompts:
        said = respond(model, words, prompts, cfg.sampling, seed=cfg.seed, names=["show"])
        log.sample(sample_rows(step, said, {}, cfg.n_samples))
