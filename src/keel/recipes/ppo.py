"""PPO-max: policy-gradient RLHF that stays on its feet (Zheng et al. 2023, arXiv:2307.04964, sections 3 and 5).

Left out here: adaptive KL coefficients, entropy terms, and the other switches that PPO-max does not use.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from keel import runs
from keel.batches import Rollout, TokenBatch
from keel.config import Config
from keel.data.collate import budget_batches, collate
from keel.data.load import read_demonstrations, read_prompts
from keel.data.render import PromptRow, Row, Template, render_demonstrations, render_prompts, template
from keel.errors import NumericsError
from keel.functional.advantage import gae, process_scores, token_rewards
from keel.functional.masked import masked_sum, merge_moments, no_moments, whiten
from keel.functional.policy import clipped_surrogate, clipped_value_loss, kl_k1, kl_k2, kl_k3, nll
from keel.models.forward import token_logprobs, token_values
from keel.models.load import ModelConfig, causal_lm, device_of, frozen_copy, load_tokenizer, save_model, scalar_model
from keel.models.shared import SharedTrunk
from keel.rng import shuffled
from keel.rollout.measure import Scorer, measure, parts_of, same_vocabulary
from keel.rollout.monitor import monitors
from keel.rollout.respond import respond, sample_rows, scoring_function, summary
from keel.rollout.sample import SamplingConfig
from keel.train import alarms, checkpoint
from keel.train.clock import Clock
from keel.train.inputs import DataConfig, prompt_room, split_prompts
from keel.train.order import batch_indices
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally

__all__ = ["PPOConfig", "run"]

KL = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


class PPOConfig(Config):
    """Everything `keel ppo` reads. Defaults: PPO-max's switches, exact sampling; the preset is the report's."""

    out: Path = Field(description="run folder to make")
    policy: ModelConfig = Field(description="policy to improve, from supervised fine-tuning; also the reference")
    reward_model: ModelConfig = Field(description="reward model; frozen")
    critic: ModelConfig | None = Field(None, description="where the critic starts; none: from the reward model "
                                        "(topology shared: an adapter with a new head)")
    topology: Literal["separate", "shared"] = Field("separate", description="four models, or one frozen trunk with a "
                                                    "LoRA adapter each for policy and critic (needs policy.lora.rank)")
    prompts: DataConfig = Field(description="prompts to answer; responses in the file are ignored")
    ptx: DataConfig | None = Field(None, description="demonstrations for the LM-mix loss; none: no such loss")
    gold: str | None = Field(None, description="package.module:function of (prompt, text, ended) -> float, the true "
                             "score where it is known; logged, never trained on")
    seed: int = Field(0, ge=0, description="fixes prompts, samples, minibatches and the critic's new head")
    steps: int = Field(100, ge=1, description="rollout phases in which the policy learns")
    rollouts: int = Field(128, ge=1, description="responses per phase")
    minibatch: int = Field(32, ge=1, description="responses per optimiser step; divides rollouts")
    passes: int = Field(1, ge=1, description="passes over the responses of a phase")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass; changes memory, not results")
    sampling: SamplingConfig = SamplingConfig()
    score_center: bool = Field(True, description="subtract the running mean of all scores so far")
    score_scale: bool = Field(True, description="divide by the running standard deviation of all scores so far")
    score_clip: float | None = Field(10.0, gt=0, description="bound on |processed score|; none: unbounded")
    score_min_std: float = Field(1e-4, gt=0, description="smallest divisor of score_scale")
    kl_coef: float = Field(0.05, ge=0, description="reward given up per nat of drift from the reference, per token")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="estimator of that drift; k1 is the report's")
    gamma: float = Field(1.0, gt=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    whiten_advantages: bool = Field(False, description="normalise advantages over each minibatch; not in PPO-max")
    clip: float | None = Field(0.2, gt=0, lt=1, description="half-width of the trust region on the probability ratio")
    value_clip: float | None = Field(0.2, gt=0, description="half-width around the critic's old value; none: unclipped")
    value_coef: float = Field(1.0, gt=0, description="weight of the critic's loss")
    ptx_coef: float = Field(0.1, ge=0, description="weight of the LM-mix loss; acts where ptx is given")
    ptx_batch: int = Field(16, ge=1, description="demonstrations per optimiser step for the LM-mix loss")
    critic_pretrain: int = Field(10, ge=0, description="phases at most in which only the critic learns, at the start")
    critic_pretrain_until: float = Field(0.5, le=1, description="explained variance that ends these phases early")
    policy_optimizer: OptimizerConfig = OptimizerConfig(lr=5e-7, eps=1e-6)
    critic_optimizer: OptimizerConfig = OptimizerConfig(lr=1.65e-6)
    on_alarm: Literal["warn", "stop"] = Field("warn", description="what a collapse alarm does beside being logged")
    eval_every: int = Field(50, ge=1, description="phases between evaluations on held-out prompts")
    eval_prompts: int = Field(200, ge=1, description="held-out prompts used at most")
    n_samples: int = Field(64, ge=0, description="held-out answers kept for the report, before and after")
    save_every: int = Field(10, ge=1, description="phases between checkpoints")

    @model_validator(mode="after")
    def _check(self) -> "PPOConfig":
        if self.rollouts % self.minibatch:
            raise ValueError(f"minibatch={self.minibatch} does not divide rollouts={self.rollouts}")
        if self.topology == "shared" and self.policy.lora.rank is None:
            raise ValueError("topology='shared' needs policy.lora.rank: its policy and critic are adapters")
        if self.topology == "shared" and self.critic is not None:
            raise ValueError("topology='shared' and critic exclude each other: the critic is an adapter on the policy")
        return self

    @property
    def updates(self) -> int:
        """Optimiser steps per phase."""
        return self.passes * (self.rollouts // self.minibatch)


def run(cfg: PPOConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave the policy in `out/model`."""
    files = [Path(d.path) for d in (cfg.prompts, cfg.ptx) if d is not None]
    with runs.start("ppo", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        tokenizer = load_tokenizer(cfg.policy.path, trust_remote_code=cfg.policy.trust_remote_code)
        words = template(tokenizer)
        prompts, held_out, skipped = load_prompts(cfg, words)
        mix = load_mix(cfg, words)
        policy, reference, critic = load_models(cfg, words)
        scorer = load_scorer(cfg, words)
        if not cfg.sampling.exact:
            log.note("Sampling is sharper than the distribution whose log-probabilities are trained on (filters, "
                     "temperature or penalty with raw log-probabilities): k1 is biased and can be negative.")
        if cfg.ptx_coef and cfg.ptx is None:
            log.note(f"ptx_coef={cfg.ptx_coef} has no effect without ptx: this run has no LM-mix loss.")
        total = cfg.critic_pretrain + cfg.steps
        # DEVIATION(ppo-4): gradients are clipped network by network; a wild critic must not shrink the policy's step.
        learners = {"policy": Learner.of([policy], cfg.policy_optimizer, cfg.steps * cfg.updates),
                    "critic": Learner.of([critic], cfg.critic_optimizer, total * cfg.updates)}
        state: dict[str, Any] = {"modules": {"policy": policy, "critic": critic},
                                 "optimizers": {name: learner.optimizer for name, learner in learners.items()}}
        step, memory = checkpoint.restore(log, **state) if resume else (0, {})
        if not memory:
            memory = {"moments": no_moments(), "history": [], "n_alarms": 0}
            memory["before"] = memory["after"] = evaluate(log, 0, policy, words, held_out, scorer, cfg)

        clock = Clock()
        progress = log.bar(total, step)
        while step < total:
            step += 1
            pretraining = step <= cfg.critic_pretrain
            phase, shown = ("critic", step) if pretraining else ("train", step - cfg.critic_pretrain)
            # Write: sample once, then measure the same tokens with every model that has an opinion.
            picked = next(batch_indices(len(prompts), cfg.rollouts, cfg.seed, "prompts", first_step=step))
            responses = respond(policy, words, [prompts[i] for i in picked], cfg.sampling, seed=cfg.seed,
                                names=["sample", step])
            clock.phase("sample")
            rollout = measure(responses, reference=reference, critic=critic, scorer=scorer,
                              micro_tokens=cfg.micro_tokens, temperature=cfg.sampling.logprob_temperature)
            # Credit: one score per response becomes one advantage per token.
            memory["moments"] = merge_moments(memory["moments"], rollout.scores)
            scores = process_scores(rollout.scores, memory["moments"], center=cfg.score_center,
                                    scale=cfg.score_scale, clip=cfg.score_clip, min_std=cfg.score_min_std)
            mask, kl = rollout.tokens.response_mask, KL[cfg.kl_estimator](rollout.logprobs, rollout.ref_logprobs)
            rewards = token_rewards(scores.to(kl.device), kl, mask, kl_coef=cfg.kl_coef)
            advantages, returns = gae(rewards, rollout.values, mask, gamma=cfg.gamma, lam=cfg.lam)
            rollout = replace(rollout, advantages=advantages, returns=returns)
            metrics = monitors(responses, rollout, rewards, memory["moments"])
            if cfg.gold:
                metrics["gold/mean"] = float(responses.scored_by(scoring_function(cfg.gold)).mean())
            clock.phase("measure")
            # Learn: several passes over one rollout; every response token of a step weighs the same.
            tally = Tally()
            for k in range(cfg.updates):
                part = rollout.rows(minibatch(cfg, step, k))
                number = (step - 1) * cfg.updates + k + 1
                metrics |= learn_values(critic, part, learners["critic"], number, cfg, tally)
                if not pretraining:
                    number -= cfg.critic_pretrain * cfg.updates
                    metrics |= learn_policy(policy, part, mix_parts(mix, cfg, words, number, device_of(policy)),
                                            learners["policy"],
                                            number, cfg, tally, fresh=k == 0)
            metrics |= tally.means()
            clock.phase("update")

            memory["history"].append({name: metrics[name] for name in alarms.WATCHED if name in metrics})
            log.log(shown, metrics, phase)
            log.time(shown, clock.lap({"samples": cfg.rollouts, "tokens": metrics["response/tokens"]}), phase)
            found = [] if pretraining else alarms.raised(memory["history"][cfg.critic_pretrain:])
            for alarm in found:
                log.alarm(alarm.row(shown))
            memory["n_alarms"] += len(found)
            if pretraining and metrics["value/explained_variance"] > cfg.critic_pretrain_until:
                memory["history"] += memory["history"][-1:] * (cfg.critic_pretrain - step)
                step = cfg.critic_pretrain
            if not pretraining and (shown % cfg.eval_every == 0 or step == total):
                memory["after"] = evaluate(log, shown, policy, words, held_out, scorer, cfg)
            ends = bool(found) and cfg.on_alarm == "stop"
            if step % cfg.save_every == 0 or step == total or log.stop_requested() or ends:
                checkpoint.save(log, step, **state, extra=memory)
            if ends:
                stop_on(found[0], cfg, shown)
            if log.stop_requested() and step < total:
                log.stop(step)
            clock.lap({})
            progress.advance(f"score {metrics['score/mean']:.3f}  kl {metrics['kl/reference_k3']:.4f}")
        save_model(policy, tokenizer, cfg.out / "model")
        before, after = memory["before"], memory["after"]
        return log.finish({
            "steps": cfg.steps, "n_alarms": memory["n_alarms"], "skipped": skipped,
            "headline": headline(before, after, cfg.seed), "before": without_each(before),
            "after": without_each(after)})


def learn_policy(policy: nn.Module, part: Rollout, mix: list[TokenBatch], learner: Learner, number: int,
                 cfg: PPOConfig, tally: Tally, *, fresh: bool) -> dict[str, float]:
    """One optimiser step of the policy: clipped surrogate plus LM-mix loss, summed before the one backward pass.

    `fresh`: nothing was learned since these responses were sampled, so the old log-probabilities are this very
    forward pass's and the ratio is exactly 1; the gap to the sampler's own numbers is logged.
    """
    mask = part.tokens.response_mask
    advantages = whiten(part.advantages, mask) if cfg.whiten_advantages else part.advantages
    part = replace(part, advantages=advantages)
    # DEVIATION(ppo-3): the released code recomputes every old log-probability; only a fresh minibatch needs that.
    n_tokens, gap = part.tokens.n_response_tokens, torch.zeros(())
    for micro in (part.rows(index) for index in parts_of(part, cfg.micro_tokens)):
        where = micro.tokens.response_mask
        logprobs, entropy = token_logprobs(policy, micro.tokens, temperature=cfg.sampling.logprob_temperature,
                                           with_entropy=True)
        gap = torch.maximum(gap, (logprobs.detach() - micro.logprobs).abs().max().cpu()) if fresh else gap
        old = logprobs.detach() if fresh else micro.logprobs
        loss, stats = clipped_surrogate(logprobs, old, micro.advantages, where, clip=cfg.clip)
        objective = masked_sum(loss, where) / n_tokens
        require_finite(objective.detach(), "loss/policy", number, micro.tokens.record_ids)
        objective.backward()
        tally.add({"loss/policy": loss, "policy/entropy": entropy} | stats, where)
    n_mix = sum(batch.n_response_tokens for batch in mix)
    for batch in mix:
        loss = nll(token_logprobs(policy, batch)[0], batch.response_mask)
        objective = cfg.ptx_coef * masked_sum(loss, batch.response_mask) / n_mix
        require_finite(objective.detach(), "loss/ptx", number, batch.record_ids)
        objective.backward()
        tally.add({"loss/ptx": loss}, batch.response_mask)
    done = learner.step(number, part.tokens.record_ids)
    return {"grad_norm/policy": done["grad_norm"], "lr/policy": done["lr"]} | (
        {"policy/sampler_gap": float(gap)} if fresh else {})


def learn_values(critic: nn.Module, part: Rollout, learner: Learner, number: int, cfg: PPOConfig, tally: Tally,
                 ) -> dict[str, float]:
    """One optimiser step of the critic."""
    n_tokens = part.tokens.n_response_tokens
    for micro in (part.rows(index) for index in parts_of(part, cfg.micro_tokens)):
        where = micro.tokens.response_mask
        loss, stats = clipped_value_loss(token_values(critic, micro.tokens), micro.values, micro.returns, where,
                                         clip=cfg.value_clip)
        objective = cfg.value_coef * masked_sum(loss, where) / n_tokens
        require_finite(objective.detach(), "loss/value", number, micro.tokens.record_ids)
        objective.backward()
        tally.add({"loss/value": loss} | stats, where)
    done = learner.step(number, part.tokens.record_ids)
    return {"grad_norm/critic": done["grad_norm"], "lr/critic": done["lr"]}


def minibatch(cfg: PPOConfig, step: int, k: int) -> list[int]:
    """Rows of the k-th optimiser step of a phase; each pass has its own shuffle."""
    per_pass = cfg.rollouts // cfg.minibatch
    order = shuffled(cfg.rollouts, cfg.seed, "minibatches", step, k // per_pass)
    start = (k % per_pass) * cfg.minibatch
    return order[start : start + cfg.minibatch]


def load_prompts(cfg: PPOConfig, words: Template) -> tuple[list[PromptRow], list[PromptRow], dict[str, int]]:
    """Training prompts, held-out prompts, and what was dropped or cut."""
    data = cfg.prompts
    room = prompt_room(data, cfg.sampling.max_new_tokens)
    how: dict[str, Any] = {"on_bad_record": data.on_bad_record, "as_text": data.as_text}
    train, report = read_prompts(data.path, **how)
    if data.validation:
        held_out = read_prompts(data.validation, **how)[0]
    else:
        train, held_out = split_prompts(train, data.validation_fraction, cfg.seed)
    rows, cut = render_prompts(words, train, room, data.too_long)
    held_rows, _ = render_prompts(words, held_out[: cfg.eval_prompts], room, data.too_long)
    return rows, held_rows, {"records": report.n_dropped} | vars(cut)


def load_mix(cfg: PPOConfig, words: Template) -> list[Row]:
    """Demonstrations for the LM-mix loss."""
    if cfg.ptx is None or cfg.ptx_coef == 0:
        return []
    told = read_demonstrations(cfg.ptx.path, on_bad_record=cfg.ptx.on_bad_record, as_text=cfg.ptx.as_text)[0]
    return render_demonstrations(words, told, cfg.ptx.max_length, cfg.ptx.too_long)[0]


def mix_parts(mix: list[Row], cfg: PPOConfig, words: Template, number: int, device: torch.device) -> list[TokenBatch]:
    """The demonstrations of one optimiser step, in micro-batches."""
    if not mix:
        return []
    rows = [mix[i] for i in next(batch_indices(len(mix), cfg.ptx_batch, cfg.seed, "ptx", first_step=number))]
    parts = budget_batches([len(row.ids) for row in rows], cfg.micro_tokens)
    return [collate([rows[i] for i in part], words.pad_id).to(device) for part in parts]


def load_scorer(cfg: PPOConfig, words: Template) -> Scorer:
    """The frozen reward model."""
    rewarder = scalar_model(cfg.reward_model).requires_grad_(False)
    spec = cfg.reward_model
    own = template(load_tokenizer(spec.path, trust_remote_code=spec.trust_remote_code))
    return Scorer(rewarder, own, words, cfg.micro_tokens)


def load_models(cfg: PPOConfig, words: Template) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Policy, reference, critic."""
    if cfg.topology == "shared":
        trunk = SharedTrunk(cfg.policy, cfg.seed)
        return trunk.policy, trunk.reference, trunk.critic
    policy = causal_lm(cfg.policy, seed=cfg.seed)
    start = cfg.critic or cfg.reward_model
    same_vocabulary(words, template(load_tokenizer(start.path, trust_remote_code=start.trust_remote_code)))
    return policy, frozen_copy(policy), scalar_model(start, seed=cfg.seed)


def evaluate(log: runs.Run, shown: int, policy: nn.Module, words: Template, held_out: list[PromptRow], scorer: Scorer,
             cfg: PPOConfig) -> dict[str, Any]:
    """Answer held-out prompts, with the same random streams every time; log means with intervals, keep samples."""
    if not held_out:
        return {}
    responses = respond(policy, words, held_out, cfg.sampling, seed=cfg.seed, names=["evaluate"])
    columns = {"score": scorer(responses)}
    if cfg.gold:
        columns["gold"] = responses.scored_by(scoring_function(cfg.gold))
    lengths = responses.rollout.tokens.response_mask.sum(1).float()
    found = {name: summary(x, cfg.seed, name) for name, x in (columns | {"length": lengths}).items()}
    log.log(shown, {f"{name}/{key}": x for name, values in found.items() for key, x in values.items()}, "eval")
    log.sample(sample_rows(shown, responses, columns, cfg.n_samples))
    return found | {f"each/{name}": x.tolist() for name, x in columns.items()}


def stop_on(alarm: alarms.Alarm, cfg: PPOConfig, shown: int) -> None:
    """End the run because of an alarm.

    Raises:
        NumericsError: always.
    """
    raise NumericsError(f"alarm {alarm.name}: {alarm.meaning}", where=f"{cfg.out}, step {shown}",
                        remedy=f"{alarm.remedy} The checkpoint of this step is kept; --resume goes on from it.")


def without_each(found: dict[str, Any]) -> dict[str, Any]:
    """The summaries, without the single values that the paired interval needs."""
    return {name: x for name, x in found.items() if not name.startswith("each/")}


def headline(before: dict[str, Any], after: dict[str, Any], seed: int) -> dict[str, Any] | None:
    """Gold where it is known, the reward model's score elsewhere; the change is paired, prompt by prompt."""
    name = "gold" if "gold" in before else "score"
    if name not in before:
        return None
    change = torch.tensor(after[f"each/{name}"]) - torch.tensor(before[f"each/{name}"])
    return {"metric": name, "before": before[name], "after": after[name], "higher_is_better": True,
            "change": summary(change, seed, "change")}
