"""MetaRM: a reward model that keeps telling the current policy's responses apart (arXiv:2401.06080, section 3.2).

Each step looks at weights from which it separates unlabelled responses of the policy better, and learns the labelled
pairs there; the weights themselves never take that step up. Left out: the language-model term of `keel reward-model`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from keel import runs
from keel.batches import PairBatch, SharedPrompt
from keel.bench.exam import examined, longer_wins
from keel.bench.measures import prompt_groups
from keel.bench.pairwise import score_pairs
from keel.config import Config
from keel.data.collate import JOIN_FROM, budget_batches, collate, join, pair_batches
from keel.data.load import read_demonstrations, read_prompts
from keel.data.records import Demonstration
from keel.data.render import PairRow, Row, Template, fit, render_pairs, render_prompts, template
from keel.data.seen import prompt_key
from keel.data.write import write_records
from keel.errors import DataError
from keel.functional.calibration import expected_calibration_error
from keel.functional.masked import weighted_sum
from keel.functional.meta import difference_objective
from keel.functional.preference import bradley_terry, centring
from keel.functional.statistics import bootstrap_interval
from keel.models.forward import response_scores
from keel.models.load import ModelConfig, causal_lm, check_context, device_of, load_tokenizer, save_model, scalar_model
from keel.models.pairs import joining, pair_scores
from keel.rng import stream
from keel.rollout.respond import respond
from keel.rollout.sample import SamplingConfig
from keel.train import ascent, checkpoint
from keel.train.alarms import Alarm
from keel.train.ascent import AscentConfig
from keel.train.clock import Clock
from keel.train.denoise import DenoiseConfig, denoised
from keel.train.inputs import DataConfig, load_pairs, load_split, prompt_room, require_apart
from keel.train.order import batch_indices, n_steps
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally

__all__ = ["MetaRMConfig", "grouped", "in_parts", "run", "scores_of"]

JOINT_COEF = 0.1
Group = list[Row]
"""Responses to one prompt."""


class MetaRMConfig(Config):
    """Everything `keel meta-rm` reads."""

    out: Path = Field(description="run folder to make")
    model: ModelConfig = Field(description="trunk: a causal LM (best the SFT policy) or an encoder")
    data: DataConfig = Field(description="preference pairs")
    denoise: DenoiseConfig = DenoiseConfig()
    policy: ModelConfig | None = Field(None, description="the policy as it is now; answers prompts at the start")
    prompts: DataConfig | None = Field(None, description="prompts that policy answers; no labels are needed")
    sampling: SamplingConfig = SamplingConfig()
    limit: int | None = Field(None, ge=1, description="answer this many prompts; none: all")
    n_responses: int = Field(4, ge=2, description="responses that policy writes to each prompt")
    responses: DataConfig | None = Field(None, description="responses in a file instead of policy and prompts, several "
                                         "to each prompt, e.g. samples of `keel generate`")
    seed: int = Field(0, ge=0, description="fixes responses, order, split and the new head")
    epochs: float = Field(1.0, gt=0, description="passes over the pairs; reward models overfit within a few")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: from epochs")
    batch: int = Field(32, ge=1, description="pairs per optimiser step")
    meta_batch: int = Field(8, ge=1, description="prompts per optimiser step whose responses are told apart")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass; changes memory, not results")
    shared_prompt: SharedPrompt = Field("auto", description="run a prompt once for all responses to it: where it "
                                        "saves time, always, or never; changes speed, not results")
    method: Literal["ascent", "joint"] = Field("ascent", description="ascent: MetaRM; joint: the cheap baseline, "
                                               "minimise loss - joint_coef * J")
    ascent: AscentConfig = AscentConfig()
    joint_coef: float = Field(JOINT_COEF, gt=0, description="weight of J in joint; a larger head alone can win it")
    center_coef: float = Field(0.0, ge=0, description="weight of (chosen + rejected)^2; 0.01 keeps scores near zero")
    optimizer: OptimizerConfig = OptimizerConfig(lr=5e-6)
    eval_every: int = Field(100, ge=1, description="steps between validation passes")
    eval_pairs: int = Field(2000, ge=1, description="validation pairs used at most")
    eval_prompts: int = Field(200, ge=1, description="held-out prompts used at most")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")

    @model_validator(mode="after")
    def _check(self) -> "MetaRMConfig":
        given = (self.policy is not None, self.prompts is not None)
        if any(given) != all(given) or (self.responses is None) != all(given):
            raise ValueError("give either policy and prompts, or responses: MetaRM needs several responses of the "
                             "current policy to each prompt")
        idle = {"ascent": self.ascent != AscentConfig() and self.method == "joint",
                "joint_coef": self.joint_coef != JOINT_COEF and self.method == "ascent",
                **{name: getattr(self, name) != type(self).model_fields[name].default and self.responses is not None
                   for name in ("sampling", "limit", "n_responses")}}
        if any(idle.values()):
            name = next(name for name, is_idle in idle.items() if is_idle)
            raise ValueError(f"{name} acts on nothing with method={self.method!r} and "
                             f"{'responses' if self.responses else 'policy'}: leave it out")
        return self


def run(cfg: MetaRMConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave a model for `AutoModelForSequenceClassification` in `out/model`."""
    named = [place for data in (cfg.data, cfg.prompts, cfg.responses) if data for place in (data.path, data.validation)]
    files = [Path(name) for name in named if name]
    with runs.start("meta_rm", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        told = sampled(cfg, log) if cfg.responses is None else cfg.responses
        tokenizer = load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code)
        words = template(tokenizer)
        train, held_out, n_dropped = load_pairs(cfg.data, cfg.seed, log.note)
        train, changes = denoised(train, cfg.denoise, where=cfg.data.path)
        rows, cut = render_pairs(words, train, cfg.data.max_length, cfg.data.too_long)
        held_rows, _ = render_pairs(words, held_out[: cfg.eval_pairs], cfg.data.max_length, cfg.data.too_long)
        groups, held_groups, n_left_out = load_groups(told, words, cfg, log.note)

        scorer = scalar_model(cfg.model, seed=cfg.seed)
        check_context(scorer, max([row.longest for row in rows + held_rows]
                                  + [row.n_tokens for group in groups + held_groups for row in group]))
        shared = joining(scorer, cfg.shared_prompt)
        apart: SharedPrompt = "never" if cfg.ascent.order == "second" else shared  # joined, no second derivative
        total = n_steps(len(rows), cfg.batch, cfg.epochs, cfg.steps)
        learner = Learner.of([scorer], cfg.optimizer, total)
        lifted = learner.parameters if cfg.method == "joint" else ascent.lifted_parameters(scorer, cfg.ascent)
        state: dict[str, Any] = {"modules": {"scorer": scorer}, "optimizers": {"optimizer": learner.optimizer}}
        done, extra = checkpoint.restore(log, **state) if resume else (0, {})
        found, n_flat = extra.get("evaluation", {}), extra.get("n_flat", 0)
        # The stream of `keel reward-model`: with one seed both learn the same pairs in the same order.
        batches = batch_indices(len(rows), cfg.batch, cfg.seed, "reward_model", first_step=done + 1)
        asked = batch_indices(len(groups), cfg.meta_batch, cfg.seed, "responses", first_step=done + 1)
        clock, progress, tally = Clock(), log.bar(total, done), Tally()
        for step in range(done + 1, total + 1):
            pairs, told_apart = [rows[i] for i in next(batches)], [groups[i] for i in next(asked)]
            parts = [part.to(device_of(scorer)) for part in pair_batches(
                pairs, micro_tokens=cfg.micro_tokens, pad_id=words.pad_id, shared_prompt=shared)]
            shares = [partial(share_of_difference, scorer, part, words.pad_id, apart, len(told_apart))
                      for part in in_parts(told_apart, cfg.micro_tokens)]
            difference, rise = ascent.gradient(shares, lifted)                     # grad J(X_s; theta)
            height = ascent.norm(rise)
            require_finite(height, "meta/grad_norm", step, [group[0].record_id for group in told_apart])
            metrics = {"meta/difference": float(difference), "meta/grad_norm": float(height)}
            if cfg.method == "ascent":
                eta = ascent.step_size(cfg.ascent, lifted, rise)
                metrics |= {"meta/eta": eta, "meta/radius": eta * float(height) / float(ascent.norm(lifted))}
                with ascent.lifted(lifted, rise, eta):                             # theta' = theta + eta * grad J
                    learn(scorer, parts, cfg, tally, step)                         # g = grad L(X_t; theta')
                    checked = step % cfg.ascent.check_every == 0
                    metrics |= {"meta/gain": value_of(shares) - float(difference)} if checked else {}
                if cfg.ascent.order == "second":
                    ascent.add_curvature(shares, lifted, learner.parameters, eta)  # g + eta * Hess J(theta) g
                if metrics["meta/radius"] > 0 and metrics.get("meta/gain", 1.0) <= 0:
                    n_flat += 1
                    log.alarm(no_rise(metrics["meta/gain"]).row(step))
            else:
                learn(scorer, parts, cfg, tally, step)                             # g = grad L(X_t; theta)
                descend(lifted, rise, cfg.joint_coef)                              #     - joint_coef * grad J
            metrics = tally.means() | metrics
            metrics |= learner.step(step, [row.record_id for row in pairs])        # theta - alpha * g
            log.log(step, metrics)
            log.time(step, clock.lap({"pairs": len(pairs)}))
            if step % cfg.eval_every == 0 or step == total:
                found = evaluate(scorer, held_rows, words.pad_id, cfg)
                found |= separation(scorer, held_groups, words.pad_id, cfg)
                log.log(step, found, "eval")
            if step % cfg.save_every == 0 or step == total or log.stop_requested():
                checkpoint.save(log, step, **state, extra={"evaluation": found, "n_flat": n_flat})
            if log.stop_requested() and step < total:
                log.stop(step)
            progress.advance(f"loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.2f}")
        save_model(scorer, tokenizer, cfg.out / "model", pad_id=words.pad_id)
        last = score_pairs(scorer, held_rows, pad_id=words.pad_id, micro_tokens=2 * cfg.micro_tokens,
                           shared_prompt=cfg.shared_prompt)
        return log.finish({
            "steps": total, "n_train": len(rows), "n_validation": len(held_rows), "n_prompts": len(groups),
            "n_held_out_prompts": len(held_groups), "evaluation": found, "n_alarms": n_flat, "denoised": changes,
            "exams": {"held_out": examined(last, held_rows, seed=cfg.seed)} if held_rows else {},
            "skipped": {"records": n_dropped, "n_prompts": n_left_out} | vars(cut), "headline": headline(found)})


def sampled(cfg: MetaRMConfig, log: runs.Run) -> DataConfig:
    """Have the policy answer every prompt several times; the files that hold its answers.

    A file that is there is not written again: a resumed run goes on with the responses it began with.
    """
    assert cfg.policy is not None and cfg.prompts is not None, "the settings name them or responses"
    places = {"path": (cfg.prompts.path, cfg.limit, log.folder / "responses.jsonl")}
    if cfg.prompts.validation:
        places["validation"] = (cfg.prompts.validation, cfg.eval_prompts, log.folder / "responses-validation.jsonl")
        # Refused before hours of answers; the few that may be there are noted when these are read.
        read = partial(read_prompts, on_bad_record=cfg.prompts.on_bad_record, as_text=cfg.prompts.as_text)
        keys = [{*map(prompt_key, read(source)[0][:limit])} for source, limit, _ in places.values()]
        require_apart(keys[0], keys[1], "prompts", cfg.prompts.validation, note=lambda said: None)
    if any(not file.exists() for _, _, file in places.values()):
        policy = causal_lm(cfg.policy)
        words = template(load_tokenizer(cfg.policy.path, trust_remote_code=cfg.policy.trust_remote_code))
        for name, (source, limit, file) in places.items():
            if not file.exists():
                write_records(answers(cfg, policy, words, source, limit, name, log), file)
    return cfg.prompts.model_copy(update={name: str(file) for name, (_, _, file) in places.items()})


def answers(cfg: MetaRMConfig, policy: nn.Module, words: Template, source: str, limit: int | None, name: str,
            log: runs.Run) -> list[Demonstration]:
    """The policy's responses to the prompts of one file, without those that say nothing."""
    assert cfg.prompts is not None, "checked by the caller"
    records, _ = read_prompts(source, on_bad_record=cfg.prompts.on_bad_record, as_text=cfg.prompts.as_text)
    room = prompt_room(cfg.prompts, cfg.sampling.max_new_tokens)
    rows, _ = render_prompts(words, records[:limit], room, cfg.prompts.too_long)
    asked = [row for row in rows for _ in range(cfg.n_responses)]

    def on_done(n: int) -> None:
        if log.stop_requested():
            raise runs.Stopped(f"stopped after {n} of {len(asked)} responses of the policy; none is kept",
                               where=str(cfg.out), remedy=f"Begin again with: keel meta-rm --resume {cfg.out}")

    said = respond(policy, words, asked, cfg.sampling, seed=cfg.seed, names=["responses", name], on_done=on_done)
    found = []
    for i, (prompt, text, ended) in enumerate(zip(said.prompts, said.texts, said.rollout.ended.tolist(), strict=True)):
        if text.strip():
            meta = {**prompt.meta, "ended": ended}
            found.append(Demonstration(replace(prompt, id=f"{prompt.id}/{i % cfg.n_responses}", meta=meta), text))
    return found


def load_groups(data: DataConfig, words: Template, cfg: MetaRMConfig, note: Callable[[str], None],
                ) -> tuple[list[Group], list[Group], int]:
    """Training and held-out responses by prompt, and how many prompts were left out: with one response, or too long.

    Raises:
        DataError: a prompt of a file that was given has one response, or no prompt has more; or see `load_split`.
    """
    train, held_out, _ = load_split(data, cfg.seed, partial(
        read_demonstrations, on_bad_record=data.on_bad_record, as_text=data.as_text, unique_ids=False), note)
    strict = cfg.responses is not None and data.on_bad_record == "stop"
    (groups, n_left_out), (held_groups, _) = (grouped(part, data, words, strict=strict) for part in (train, held_out))
    if not groups:
        raise DataError("no prompt has two responses, so nothing can be told apart", where=data.path,
                        remedy="MetaRM needs several responses of the current policy to each prompt: name each prompt "
                               "several times in the file that `keel generate` answers, or let policy and prompts do "
                               "it.")
    return groups, held_groups[: cfg.eval_prompts], n_left_out


def grouped(told: Sequence[Demonstration], data: DataConfig, words: Template, *, strict: bool,
            ) -> tuple[list[Group], int]:
    """Rows of each prompt with two responses or more, and how many prompts have no such rows.

    Raises:
        DataError: a prompt has a single response, and `strict` says that none may.
    """
    by_prompt: dict[object, list[Demonstration]] = {}
    for record in told:
        by_prompt.setdefault(record.prompt.text or record.prompt.messages, []).append(record)
    groups = []
    for records in by_prompt.values():
        prompt = records[0].prompt
        if strict and len(records) < 2:
            raise DataError("a prompt has a single response, which cannot be told apart from others",
                            where=f"{data.path} (id {prompt.id})",
                            remedy="Give each prompt two or more, or leave out such prompts with on_bad_record = skip.")
        # What was cut at the length limit has no end, and the scorer must not be shown one.
        responses = [words.response_ids(record.response, bool(record.prompt.meta.get("ended", True)), after=prompt.text)
                     for record in records]
        fitted = fit(words, prompt, responses, data.max_length, data.too_long)
        if len(records) > 1 and fitted.outcome != "dropped":
            groups.append([Row(fitted.prompt_ids + ids, len(fitted.prompt_ids), record.id)
                           for record, ids in zip(records, fitted.responses, strict=True)])
    return groups, len(by_prompt) - len(groups)


def in_parts(groups: Sequence[Group], micro_tokens: int) -> list[list[Group]]:
    """Micro-batches in which the responses to one prompt stay together."""
    sizes = [len(group) * max(row.n_tokens for row in group) for group in groups]
    return [[groups[i] for i in part] for part in budget_batches(sizes, micro_tokens)]


def scores_of(scorer: nn.Module, groups: Sequence[Group], pad_id: int, shared: SharedPrompt) -> list[Tensor]:
    """Scores of the responses to each prompt. Equal responses are scored once: rounding must not tell them apart."""
    rows, places, leaders = list[Row](), dict[tuple[int, ...], int](), list[int]()
    for group in groups:
        first = len(rows)
        for row in group:
            if places.setdefault(tuple(row.ids), len(rows)) == len(rows):
                rows.append(row)
                leaders.append(first)
    batch = collate(rows, pad_id)
    joined = batch if shared == "never" else join(batch, leaders)
    if shared == "always" or joined.n_positions <= (1 - JOIN_FROM) * batch.n_positions:
        batch = joined
    scores = response_scores(scorer, batch.to(device_of(scorer)))
    return [scores[torch.tensor([places[tuple(row.ids)] for row in group], device=scores.device)] for group in groups]


def share_of_difference(scorer: nn.Module, part: Sequence[Group], pad_id: int, shared: SharedPrompt,
                        n_prompts: int) -> Tensor:
    """What a micro-batch adds to J, its mean over the prompts of the step."""
    # DEVIATION(meta_rm-1): the paper leaves open how prompts are reduced, and k; a mean keeps eta free of their number.
    scores = scores_of(scorer, part, pad_id, shared)
    return torch.cat([difference_objective(x[None]) for x in scores]).sum() / n_prompts


@torch.no_grad()
def value_of(shares: Sequence[ascent.Share]) -> float:
    """The objective as the weights are now."""
    return float(sum(float(share()) for share in shares))


def learn(scorer: nn.Module, parts: Sequence[PairBatch], cfg: MetaRMConfig, tally: Tally, step: int) -> None:
    """Gradients of the loss on labelled pairs, at the weights as they are now."""
    weight = max(sum(float(part.weight.sum()) for part in parts), 1e-9)
    for part in parts:
        chosen, rejected = pair_scores(scorer, part)
        loss, stats = bradley_terry(chosen, rejected, margin=part.margin, label_prob=part.label_prob)
        center = centring(chosen, rejected)
        objective = weighted_sum(loss + cfg.center_coef * center, part.weight) / weight
        require_finite(objective.detach(), "loss", step, part.tokens.record_ids)
        objective.backward()
        tally.add({"loss": loss, "center": center, **stats}, part.weight)


def descend(parameters: Sequence[nn.Parameter], rise: Sequence[Tensor], coef: float) -> None:
    """Joint training: the gradient of loss - coef * J."""
    for p, direction in zip(parameters, rise, strict=True):
        p.grad = -coef * direction if p.grad is None else p.grad.sub_(direction, alpha=coef)


def no_rise(gain: float) -> Alarm:
    """The step up did not lead up."""
    return Alarm("meta_step", gain, 0.0, "The step up did not separate the responses better.",
                 "Lower ascent.rho or ascent.eta: the step is too long, or so short that rounding swallows it.")


def evaluate(scorer: nn.Module, rows: Sequence[PairRow], pad_id: int, cfg: MetaRMConfig) -> dict[str, float]:
    """Held-out accuracy with its interval, beside the baseline 'the longer answer wins'."""
    if not rows:
        return {}
    chosen, rejected = score_pairs(scorer, rows, pad_id=pad_id, micro_tokens=2 * cfg.micro_tokens,
                                   shared_prompt=cfg.shared_prompt)
    loss, stats = bradley_terry(chosen, rejected)
    longer, groups = torch.tensor([longer_wins(row) for row in rows]), prompt_groups([row.pair.prompt for row in rows])
    found = {"loss": float(loss.mean()), "margin": float((chosen - rejected).mean()),
             "ece": float(expected_calibration_error(chosen - rejected)), "n": len(rows)}
    for name, wins in {"accuracy": stats["accuracy"], "longer_wins": longer}.items():
        mean, low, high = bootstrap_interval(wins, generator=stream(cfg.seed, "bootstrap"), groups=groups)
        found |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return found


@torch.no_grad()
def separation(scorer: nn.Module, groups: Sequence[Group], pad_id: int, cfg: MetaRMConfig) -> dict[str, float]:
    """On held-out prompts: J, and the spread of scores within a prompt."""
    scores = [x for part in in_parts(groups, 2 * cfg.micro_tokens) for x in scores_of(scorer, part, pad_id, "never")]
    if not scores:
        return {}
    return {"meta/difference": float(torch.cat([difference_objective(x[None]) for x in scores]).mean()),
            "meta/spread": float(torch.stack([x.std(correction=0) for x in scores]).mean())}


def headline(found: dict[str, float]) -> dict[str, object] | None:
    """The accuracy against its baseline, in the shape that the report reads."""
    if "accuracy" not in found:
        return None
    sides = {side: {"mean": found[name], "low": found[f"{name}_low"], "high": found[f"{name}_high"], "n": found["n"]}
             for side, name in (("before", "longer_wins"), ("after", "accuracy"))}
    return {"metric": "held-out accuracy (before: the longer answer wins)", "higher_is_better": True, **sides}
