"""Offline policy gradient: learn from fixed responses and a reward for each, without sampling (A-LoL and relatives).

The whole response is one action. What the reference would reach on a prompt is estimated once, from its own answers to
held-out prompts; what responses gain over that is their weight. One loop for all variants: they differ in the loss of a
response and in which responses are drawn. Left out: several processes in one run, a reference that is replaced on the
way, and decoding with several beams, which the released scripts for dialogue use to select checkpoints.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from keel import runs
from keel.bench.diversity import SIZES, distinct_ratio
from keel.bench.rewards import SequenceRewardConfig, SequenceRewards
from keel.config import Config
from keel.data.collate import budget_batches, collate
from keel.data.load import Which, read_responses
from keel.data.records import Demonstration, Graded, prompt_numbers
from keel.data.render import PromptRow, Row, Template, Truncation, render_demonstrations, render_prompts, template
from keel.errors import ConfigError, ModelError
from keel.functional.direct import response_logprobs
from keel.models.forward import token_logprobs
from keel.models.identity import tokenizer_identity
from keel.models.load import (
    FrozenModelConfig,
    ModelConfig,
    causal_lm,
    check_context,
    device_of,
    load_tokenizer,
    save_model,
)
from keel.online.anchor import AnchorConfig, Start
from keel.online.held import Held, held
from keel.online.watch import PersonaConfig, correlate, files_of, result_of, visited, watch
from keel.rng import shuffled
from keel.rollout.evaluate import Found, headline, keep_best, without_each
from keel.rollout.measure import same_tokens
from keel.rollout.respond import respond, sample_rows, summary
from keel.rollout.sample import SamplingConfig
from keel.train import checkpoint
from keel.train.baseline import Reference, reference_values, tell_of_values
from keel.train.choice import chosen, drawn, lower_first, wanted, weighty
from keel.train.clock import Clock
from keel.train.drift import drift, reference_logprobs
from keel.train.frozen import OnDone, reference_identity, shown
from keel.train.inputs import DataConfig, load_split, write_seen
from keel.train.offline import OfflineLossConfig, SelectionConfig, aligned, offline_loss, ranked_loss
from keel.train.order import n_steps
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally
from keel.train.value import ValueConfig
from keel.train.worth import Worth, require_positive, responses_of_rows, step_credit, write_worth

__all__ = ["OfflinePGConfig", "run"]


class OfflinePGConfig(Config):
    """Everything `keel offline-pg` reads. Loss and draws are by default those of A-LoL as it is released, but for the
    deviations of the method page; optimiser, schedule and the samples that V is fitted to are not."""

    out: Path = Field(description="run folder to make")
    policy: ModelConfig = Field(description="policy to improve, from supervised fine-tuning on the data")
    reference: FrozenModelConfig | None = Field(None, description="model that is taken to have written the data; none: "
                                                "the policy as it is at the start")
    data: DataConfig = Field(description="responses: demonstrations, pairs or rankings, with rewards or without")
    responses: Which = Field("chosen", description="the best response of each record, or all of them")
    drop_ending: str | None = Field(None, min_length=1, description="leave out records of which a response ends with "
                                    "this; HHA: ':'")
    max_response: int | None = Field(None, ge=1, description="tokens of a response that are kept, its end is lost "
                                     "where it is longer; none: as data.too_long says")
    rewards: tuple[SequenceRewardConfig, ...] = Field((), description="what a response is worth: summed by weight")
    cache: Path | None = Field(None, description="folder for rewards, values and what the reference says of the data, "
                               "to be shared by runs; none: in the run folder")
    known_bad: str | None = Field(None, description="key of meta that is true for bad responses: the filter is "
                                  "measured against it, never trained on")
    seed: int = Field(0, ge=0, description="fixes draws, split, samples and what is drawn anew")
    loss: OfflineLossConfig = OfflineLossConfig()
    selection: SelectionConfig = SelectionConfig()
    value: ValueConfig = ValueConfig()
    value_sampling: SamplingConfig = SamplingConfig(max_new_tokens=64)
    epochs: float = Field(1.0, gt=0, description="passes over the responses that are kept")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: from epochs")
    batch: int = Field(16, ge=1, description="responses per optimiser step; pro: prompts")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass; changes memory, not results")
    optimizer: OptimizerConfig = OptimizerConfig(lr=2e-5)
    eval_every: int = Field(100, ge=1, description="steps between examinations on held-out prompts")
    eval_prompts: int = Field(200, ge=1, description="held-out prompts answered at most, drawn by the seed; the value "
                              "has its own")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")
    sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_new_tokens=64)
    n_samples: int = Field(16, ge=0, description="held-out answers kept for the report, before and after")
    anchor: AnchorConfig | None = Field(None, description="price of states that leave the Assistant; none: no price")
    persona: PersonaConfig | None = Field(None, description="watches how Assistant-like the policy is; none: nobody")

    @model_validator(mode="after")
    def _check(self) -> "OfflinePGConfig":
        if not self.rewards:
            raise ValueError("rewards is empty: nothing says what a response is worth")
        if self.loss.variant == "pro" and self.responses != "all":
            raise ValueError("variant='pro' ranks the responses to one prompt: set responses to all")
        if self.loss.variant == "pro" and (self.keeps != "all" or self.draws != "uniform"):
            raise ValueError("variant='pro' takes all responses in shuffled passes: leave selection as it is")
        if self.needs_value and self.value.kind == "batch_mean" and (self.keeps, self.draws) != ("all", "uniform"):
            raise ValueError("value.kind='batch_mean' is known only batch by batch: set selection.keep to all and "
                             "selection.draw to uniform")
        return self

    @property
    def keeps(self) -> str:
        """Which responses are learned from."""
        return self.selection.keeps(self.loss.variant)

    @property
    def draws(self) -> str:
        """How they are drawn."""
        return self.selection.draws(self.loss.variant)

    @property
    def needs_value(self) -> bool:
        """Whether anything asks for an estimate of what the reference reaches."""
        return self.selection.needs_value(self.loss.variant)

    @property
    def samples_reference(self) -> bool:
        """Whether the reference answers prompts, which are then scored."""
        return self.needs_value and self.value.kind != "batch_mean"

    @property
    def cached_in(self) -> Path:
        """Where what is computed before learning is kept."""
        return self.cache or self.out / "cache"


def run(cfg: OfflinePGConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave the policy in `out/model`, the best of the examinations in `out/best`."""
    files = [Path(p) for p in (cfg.data.path, cfg.data.validation) if p] + files_of(cfg.anchor, cfg.persona)
    with runs.start("offline_pg", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        tokenizer = load_tokenizer(cfg.policy.path, trust_remote_code=cfg.policy.trust_remote_code)
        words = template(tokenizer)
        told, held_told, n_bad = load_split(cfg.data, cfg.seed, lambda path: read_responses(
            path, which="all", on_bad_record=cfg.data.on_bad_record, as_text=cfg.data.as_text), log.note)
        (told, n_weightless), (held_told, _) = weighty(told, cfg.data.path), weighty(held_told, "held-out records")
        disorder = lower_first(told)
        told, held_told = (wanted(part, cfg.responses, cfg.drop_ending, cfg.data.path) for part in (told, held_told))
        (rows, cut), (held_rows, _) = rendered(cfg, words, told), rendered(cfg, words, held_told)
        asked = asked_prompts(cfg, words, held_told)
        write_seen(cfg.out, [one.prompt for one in told], [one.prompt for one in held_told])

        # What every response is worth, what the reference reaches on its prompt, and so what is learned from.
        rewards = SequenceRewards(cfg.rewards, cfg.cached_in / "rewards")
        if cfg.samples_reference:
            rewards.require_new_text()
        told, held_told = responses_of_rows(told, rows), responses_of_rows(held_told, held_rows)
        groups = prompt_numbers([one.prompt for one in held_told])
        with shown(log, "rewards of the data") as on_done:
            known = rewards.of_data(told, on_done)
        for text in rewards.notes:
            log.note(text)
        # DEVIATION(offline_pg-6): without dropout, released with 0.05 in the adapter: the ratio begins at 1.
        policy = causal_lm(cfg.policy, seed=cfg.seed)
        reference = reference_of(cfg, policy, words, rewards)
        longest = max(len(row.ids) for part in (rows, held_rows, asked) for row in part)
        check_context(policy, longest)
        check_context(reference.model, longest)
        origin = origins(cfg, policy, words, reference, rewards)
        values, estimate = None, dict[str, Any]()
        begun = [PromptRow(row.ids[: row.n_prompt], one.prompt) for row, one in zip(rows, told, strict=True)]
        if cfg.samples_reference:
            with shown(log, "value of the reference") as on_done:
                values, estimate = reference_values(reference, begun, some(asked, cfg.value.prompts, cfg.seed),
                                                    cfg.value, cfg.cached_in / "values", cfg.seed, on_done)
            tell_of_values(log.note, estimate)
        worth = Worth(known.total, values)
        choice = chosen(told, worth, cfg.selection, cfg.loss)
        units, kept = choice.units, choice.kept
        share = write_worth(cfg.out / "advantages.jsonl", told, rows, known.parts, worth, kept,
                            known_bad=cfg.known_bad, seed=cfg.seed)
        require_positive(worth, kept)
        for text in choice.notes:
            log.note(text)
        compared = kept if cfg.loss.has_reference else []
        with shown(log, "what the reference says") as on_done:
            said, unseen = reference_logprobs(log, reference, [[rows[i] for i in compared], held_rows],
                                            cfg.cached_in / "reference", on_done)
        lessons = Lessons(rows, worth, dict(zip(compared, said, strict=True)), words.pad_id)
        del reference  # where it is not the policy itself, it is in memory for nothing from here on

        start = Start(policy, words, cfg.sampling, cfg.data.max_length - cfg.sampling.max_new_tokens, cfg.micro_tokens,
                      cfg.seed, log)
        holds, watched = held(cfg.anchor, None, start, begun), watch(cfg.persona, start)
        correlate(watched, rows, worth.rewards if worth.advantages is None else worth.advantages)
        total = n_steps(len(units), cfg.batch, cfg.epochs, cfg.steps)
        learner = Learner.of([policy], cfg.optimizer, total)
        state: dict[str, Any] = {"modules": {"policy": policy}, "optimizers": {"optimizer": learner.optimizer}}
        done, extra = checkpoint.restore(log, **state) if resume else (0, {})
        checkpoint.require_same(extra.get("origin", origin), origin, cfg.out)
        before, found, best = (extra.get(name) for name in ("before", "found", "best"))
        progress = log.bar(total, done)

        def examined(step: int) -> tuple[Found, Found | None]:
            progress.reach(step, "answers held-out prompts")
            told_now = sit(cfg, log, policy, words, rewards, asked, step)
            told_now |= drift(policy, held_rows, unseen, groups, pad_id=words.pad_id, micro_tokens=2 * cfg.micro_tokens,
                              seed=cfg.seed)
            log.log(step, {f"{name}/{key}": x for name, values in told_now.items() if not name.startswith("each/")
                           for key, x in values.items()}, "eval")
            return told_now, keep_best(best, told_now, step, policy, tokenizer, cfg.out / "best",
                                       by="score" if "score" in told_now else None, kl_budget=None)

        if done == 0:
            before, best = examined(0)
            found = before
            visited(watched, policy, 0, last=False)
        batches = drawn(choice.weights, len(units), cfg.batch, cfg.seed, first_step=done + 1)
        tally, clock = Tally(), Clock()
        for step in range(done + 1, total + 1):
            picked = [units[u] for u in next(batches)]
            for ids, objective in objectives(cfg, policy, lessons, picked, tally, holds):
                require_finite(objective.detach(), "loss", step, ids)
                objective.backward()
            metrics = tally.means() | learner.step(step, [rows[i].record_id for unit in picked for i in unit])
            log.log(step, metrics)
            log.time(step, clock.lap({"responses": sum(map(len, picked))}))
            if step % cfg.eval_every == 0 or step == total:
                found, best = examined(step)
            visited(watched, policy, step, last=step == total)
            if step % cfg.save_every == 0 or step == total or log.stop_requested():
                checkpoint.save(log, step, **state, extra={"before": before, "found": found, "best": best,
                                                              "origin": origin})
            if log.stop_requested() and step < total:
                log.stop(step)
            progress.reach(step, f"loss {metrics['loss']:.3f}")
        save_model(policy, tokenizer, cfg.out / "model")
        return log.finish({
            "steps": total, "n_responses": len(rows), "n_kept": len(kept), "n_validation": len(asked),
            "data": share | ({"chosen_has_lower_reward": disorder} if disorder else {}),
            "value": estimate, "before": without_each(before), "evaluation": without_each(found), "best": best,
            "skipped": {"records": n_bad + n_weightless} | choice.skipped | vars(cut), "scored": rewards.counts,
            "headline": headline(before, found, cfg.seed)} | holds.result() | result_of(watched))


@dataclass(frozen=True)
class Lessons:
    """What steps learn from.

    Attributes:
        rows: the responses.
        worth: of each.
        said: log-probability of each token under the reference, by place in `rows`, where the loss looks at it.
        pad_id: what stands in the padding.
    """

    rows: Sequence[Row]
    worth: Worth
    said: Mapping[int, np.ndarray]
    pad_id: int


def objectives(cfg: OfflinePGConfig, policy: nn.Module, lessons: Lessons, picked: Sequence[Sequence[int]], tally: Tally,
               holds: Held) -> Iterator[tuple[list[str], Tensor]]:
    """What the micro-batches of a step add to the objective, with the ids of their records.

    Args:
        cfg: which loss.
        policy: learns; backward is the caller's.
        lessons: what it learns from.
        picked: the step's responses, those that are ranked together as one.
        tally: of the step.
        holds: prices states.
    """
    rows = lessons.rows
    owed = step_credit(lessons.worth, cfg.loss.variant, [i for unit in picked for i in unit])
    n_tokens = sum(rows[i].n_tokens - rows[i].n_prompt for unit in picked for i in unit)
    for part in budget_batches([len(unit) * max(rows[i].n_tokens for i in unit) for unit in picked], cfg.micro_tokens):
        index = [i for k in part for i in picked[k]]
        batch = collate([rows[i] for i in index], lessons.pad_id).to(device_of(policy))
        with holds.passing(policy):
            logprobs = token_logprobs(policy, batch)[0]
        worths = torch.tensor([owed[i] for i in index], dtype=torch.float32, device=logprobs.device)
        sums, n = response_logprobs(logprobs, batch.response_mask), batch.response_mask.sum(1).float()
        if cfg.loss.variant == "pro":
            loss, stats = ranked_loss(cfg.loss, sums, n, worths, [len(picked[k]) for k in part])
        else:
            own = aligned([lessons.said[i] for i in index], [rows[i] for i in index], batch) if (
                cfg.loss.has_reference) else None
            loss, stats = offline_loss(cfg.loss, logprobs, own, worths, batch.response_mask)
        tally.add({"loss": loss, **stats})
        tally.add({"credit": worths, "logprob": sums, "length": n})
        # DEVIATION(offline_pg-3): a mean over the step; released, the means of its micro-batches are added up.
        objective = loss.sum() / len(picked)
        yield list(batch.record_ids), objective + holds.cost(batch, batch.response_mask.float(), n_tokens, tally)


def rendered(cfg: OfflinePGConfig, words: Template, told: Sequence[Graded]) -> tuple[list[Row], Truncation]:
    """Rows of the responses that fit."""
    return render_demonstrations(words, [Demonstration(one.prompt, one.response) for one in told], cfg.data.max_length,
                                 cfg.data.too_long, max_response=cfg.max_response)


def asked_prompts(cfg: OfflinePGConfig, words: Template, told: Sequence[Graded]) -> list[PromptRow]:
    """Different held-out prompts that leave room for an answer: the reference's samples and the examinations.

    Raises:
        ConfigError: a value is to be estimated, and no prompt is held out; or an answer leaves no room for a prompt.
    """
    numbers = prompt_numbers([one.prompt for one in told])
    first = {number: one.prompt for number, one in reversed(list(zip(numbers, told, strict=True)))}
    if not first:
        if cfg.needs_value and cfg.value.kind in ("learned", "constant"):
            raise ConfigError("no prompt is held out, so there is nothing to estimate the reference's value on",
                              where="data", remedy="Give data.validation or raise data.validation_fraction.")
        return []
    writers = {"sampling": cfg.sampling} | ({"value_sampling": cfg.value_sampling} if cfg.samples_reference else {})
    most, name = max((own.max_new_tokens, name) for name, own in writers.items())
    if cfg.data.max_length <= most:
        raise ConfigError(f"data.max_length={cfg.data.max_length} leaves no room for a prompt beside "
                          f"{name}.max_new_tokens={most}", remedy="Raise the first or lower the second.")
    return render_prompts(words, [first[number] for number in sorted(first)], cfg.data.max_length - most,
                          cfg.data.too_long)[0]


def some(asked: Sequence[PromptRow], n: int, seed: int) -> list[PromptRow]:
    """At most n of them, drawn by the seed: a file may be in any order, of topics for one. In the order of the file."""
    return [asked[i] for i in sorted(shuffled(len(asked), seed, "held-out prompts")[:n])]


def reference_of(cfg: OfflinePGConfig, policy: nn.Module, words: Template, rewards: SequenceRewards) -> Reference:
    """What is taken to have written the data, with the rewards of what it writes. The policy itself unless another one
    is named: it has learned nothing yet.

    Raises:
        ModelError: the reference reads other tokens than the policy.
    """
    spec, model = cfg.policy, policy
    if cfg.reference is not None:
        spec = cfg.reference.whole
        if not same_tokens(words, template(load_tokenizer(spec.path, trust_remote_code=spec.trust_remote_code))):
            raise ModelError("the reference has another tokenizer or chat template than the policy", where="reference",
                             remedy="Name a reference of the policy's family.")
        model = causal_lm(spec, seed=cfg.seed)

    def judged(asked: Sequence[PromptRow], n: int, on_done: OnDone | None = None) -> Tensor:
        found = []
        for i in range(n):  # a stream of its own for each sample of each prompt
            said = respond(model, words, asked, cfg.value_sampling, seed=cfg.seed, names=["value", i],
                           on_done=on_done and (lambda k, i=i: on_done(i * len(asked) + k, n * len(asked))))
            found.append(rewards(said.prompts, said.texts, said.rollout.ended.tolist()).total)
        return torch.stack(found, 1)

    return Reference(model, reference_identity(spec, model, cfg.seed), {
        "rewards": rewards.identity, "sampling": cfg.value_sampling.model_dump(mode="json"),
        "stop_ids": list(words.stop_ids), **tokenizer_identity(words.tokenizer)}, judged, (rewards.low, rewards.high),
        words.pad_id, 2 * cfg.micro_tokens)


def origins(cfg: OfflinePGConfig, policy: nn.Module, words: Template, reference: Reference, rewards: SequenceRewards,
            ) -> dict[str, str]:
    """Whatever else than settings and data the steps of a run depend on, as JSON."""
    own = reference.identity if cfg.reference is None else reference_identity(cfg.policy, policy, cfg.seed)
    found = {"policy": own, "reference": reference.identity, "rewards": rewards.identity,
             "tokenizer": {"stop_ids": list(words.stop_ids), **tokenizer_identity(words.tokenizer)}}
    return {name: json.dumps(identity, sort_keys=True) for name, identity in found.items()}


def sit(cfg: OfflinePGConfig, log: runs.Run, policy: nn.Module, words: Template, rewards: SequenceRewards,
        asked: Sequence[PromptRow], step: int) -> Found:
    """Held-out prompts answered with the same random streams every time: each reward, their total, length."""
    asked = some(asked, cfg.eval_prompts, cfg.seed)
    if not asked or not all(spec.scores_new_text for spec in cfg.rewards):
        return {}
    # DEVIATION(offline_pg-8): no beams; the released scripts search with two but for HHA.
    said = respond(policy, words, asked, cfg.sampling, seed=cfg.seed, names=["evaluate"])
    worth = rewards(said.prompts, said.texts, said.rollout.ended.tolist())
    columns = {"score": worth.total.float()} | ({f"reward/{name}": x.float() for name, x in
                                                 worth.parts.items()} if len(worth.parts) > 1 else {})
    log.sample(sample_rows(step, said, columns, cfg.n_samples))
    numbers = columns | {"length": said.rollout.tokens.response_mask.sum(1).float().cpu(),
                         "ended": said.rollout.ended.float().cpu()}
    varied = {f"distinct_{k}": {"mean": distinct_ratio(said.texts, k), "n": len(said.texts)} for k in SIZES}
    return {name: summary(x, cfg.seed, name) for name, x in numbers.items()} | varied | {
        "each/score": columns["score"].tolist()}
