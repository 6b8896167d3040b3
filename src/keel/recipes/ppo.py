"""PPO-max: policy-gradient RLHF that stays on its feet (Zheng et al. 2023, arXiv:2307.04964, sections 3 and 5).

One loop for PPO-max, its ablations and the estimators without a critic (RLOO, GRPO, REINFORCE++): they differ in their
terms, not in the order of steps. Left out: several processes in one run, and rewards for single steps of a response.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from keel import runs
from keel.batches import Rollout, TokenBatch
from keel.config import Config
from keel.data.render import Template, template
from keel.functional.advantage import adapted_kl_coef
from keel.functional.masked import loss_weights, masked_sum, weighted_sum
from keel.functional.policy import clipped_value_loss, nll
from keel.models.actors import Actors, CriticConfig, critic_source, load_actors
from keel.models.forward import output_head, token_kl, token_logprobs, token_values
from keel.models.load import ModelConfig, device_of, load_tokenizer, save_model
from keel.rollout.credit import AdvantageConfig, KLConfig, TruncationConfig, minibatch_advantages, with_credit
from keel.rollout.evaluate import Exam, headline, keep_best, without_each
from keel.rollout.measure import KL, measure, parts_of, same_vocabulary
from keel.rollout.monitor import monitors
from keel.rollout.respond import respond, scoring_function
from keel.rollout.reward import RewardConfig, RewardSources, ScoreConfig, merged_moments, processed
from keel.rollout.sample import SamplingConfig
from keel.train import alarms, checkpoint
from keel.train.alarms import RollbackConfig
from keel.train.clock import Clock
from keel.train.inputs import DataConfig, FileConfig, load_demonstrations, load_prompts, mixed_in, write_seen
from keel.train.objective import LossConfig, policy_loss, require_reachable
from keel.train.order import batch_indices, minibatch
from keel.train.step import Learner, OptimizerConfig, joint_norm, require_finite
from keel.train.tally import Tally

__all__ = ["PPOConfig", "run"]

Memory = dict[str, Any]  # what a phase must know of those before it, beside the models; part of every checkpoint

class PPOConfig(Config):
    """Everything `keel ppo` reads. Defaults: PPO-max's switches, exact sampling; the preset is the report's."""

    out: Path = Field(description="run folder to make")
    policy: ModelConfig = Field(description="policy to improve, from supervised fine-tuning; also the reference")
    reward_model: ModelConfig | None = Field(None, description="reward model; frozen. Several sources: see rewards")
    rewards: tuple[RewardConfig, ...] = Field((), description="further sources: reward models, ensembles, Python "
                                              "functions, endpoints; processed one by one, then summed by weight")
    topology: Literal["separate", "shared"] = Field("separate", description="models of their own, or one frozen trunk "
                                                    "with a LoRA adapter each for policy and critic (policy.lora.rank)")
    prompts: DataConfig = Field(description="prompts to answer; responses in the file are ignored")
    ptx: FileConfig | None = Field(None, description="demonstrations for the LM-mix loss; none: no such loss")
    gold: str | None = Field(None, description="package.module:function of (prompt, text, ended) -> float, the true "
                             "score where it is known; logged, never trained on")
    seed: int = Field(0, ge=0, description="fixes prompts, samples, minibatches and what is drawn anew")
    steps: int = Field(100, ge=1, description="rollout phases in which the policy learns")
    rollouts: int = Field(128, ge=1, description="responses per phase")
    minibatch: int = Field(32, ge=1, description="responses per optimiser step; divides rollouts")
    passes: int = Field(1, ge=1, description="passes over the responses of a phase")
    target_kl: float | None = Field(None, gt=0, description="nats per token: a phase's updates end when the policy is "
                                    "1.5 times this far from the one that sampled; none: never")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass; changes memory, not results")
    sampling: SamplingConfig = SamplingConfig()
    truncation: TruncationConfig = TruncationConfig()
    score: ScoreConfig = ScoreConfig()
    kl: KLConfig = KLConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    loss: LossConfig = LossConfig()
    critic: CriticConfig = CriticConfig()
    ptx_coef: float = Field(0.1, ge=0, description="weight of the LM-mix loss; acts where ptx is given")
    ptx_batch: int = Field(16, ge=1, description="demonstrations per optimiser step for the LM-mix loss")
    grad_clip: Literal["separate", "joint"] = Field("separate", description="bound the gradient norm of each network, "
                                                    "or of both together as the released code does")
    policy_optimizer: OptimizerConfig = OptimizerConfig(lr=5e-7, eps=1e-6)
    critic_optimizer: OptimizerConfig = OptimizerConfig(lr=1.65e-6)
    on_alarm: Literal["warn", "stop", "rollback"] = Field("warn", description="what a collapse alarm does beside being "
                                                          "logged; rollback: see rollback")
    rollback: RollbackConfig = RollbackConfig()
    best: Literal["score", "gold"] | None = Field(None, description="the held-out mean by which out/best is chosen")
    kl_budget: float | None = Field(None, gt=0, description="nats per token of held-out drift; beyond it none is best")
    eval_every: int = Field(50, ge=1, description="phases between evaluations on held-out prompts")
    eval_prompts: int = Field(200, ge=1, description="held-out prompts used at most")
    n_samples: int = Field(64, ge=0, description="held-out answers kept for the report, before and after")
    save_every: int = Field(10, ge=1, description="phases between checkpoints")

    @model_validator(mode="after")
    def _check(self) -> "PPOConfig":
        for found, complaint in contradictions(self):
            if found:
                raise ValueError(complaint)
        return self

    @property
    def updates(self) -> int:
        """Optimiser steps per phase."""
        return self.passes * (self.rollouts // self.minibatch)

    @property
    def sources(self) -> tuple[RewardConfig, ...]:
        """Every source of reward; `reward_model` is one of weight 1."""
        first = () if self.reward_model is None else (RewardConfig(name="reward_model", models=(self.reward_model,)),)
        return (*first, *self.rewards)


def run(cfg: PPOConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave the policy in `out/model` (and the best one in `out/best`, where `best` says by what)."""
    named = [cfg.prompts.path, cfg.prompts.validation, None if cfg.ptx is None else cfg.ptx.path,
             *(source.calibration.path for source in cfg.sources if source.calibration)]
    files = [Path(name) for name in named if name is not None]
    with runs.start("ppo", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        tokenizer = load_tokenizer(cfg.policy.path, trust_remote_code=cfg.policy.trust_remote_code)
        words = template(tokenizer)
        prompts, held_out, skipped = load_prompts(cfg.prompts, words, max_new_tokens=cfg.sampling.max_new_tokens,
                                                  n_held_out=cfg.eval_prompts, seed=cfg.seed)
        write_seen(cfg.out, [row.record for row in prompts], [row.record for row in held_out])
        mix = load_demonstrations(cfg.ptx, words) if cfg.ptx is not None and cfg.ptx_coef else []
        models, rewards = load_models(cfg, words), RewardSources(cfg.sources, words, cfg.micro_tokens)
        require_reachable(cfg.loss, len(output_head(models.policy)[0]))
        for warning in (*warnings_of(cfg), *rewards.notes):
            log.note(warning)
        learners = {"policy": Learner.of([models.policy], cfg.policy_optimizer, cfg.steps * cfg.updates)}
        if models.critic is not None:
            total = (cfg.critic.pretrain + cfg.steps) * cfg.updates
            learners["critic"] = Learner.of([models.critic], cfg.critic_optimizer, total)
        state: dict[str, Any] = {"modules": {name: getattr(models, name) for name in learners},
                                 "optimizers": {name: learner.optimizer for name, learner in learners.items()}}
        exam = Exam(log, words, held_out, rewards, reference=models.reference, gold=cfg.gold, seed=cfg.seed,
                    micro_tokens=cfg.micro_tokens)
        step, memory = checkpoint.restore(log, **state) if resume else (0, {})
        if not memory:
            memory = beginning(cfg)
            memory["before"] = memory["after"] = exam.sit(models.policy, cfg.sampling, 0, {}, cfg.n_samples)
            memory["best"] = keep_best(None, memory["after"], 0, models.policy, tokenizer, cfg.out / "best",
                                       by=cfg.best, kl_budget=cfg.kl_budget)
            if cfg.on_alarm == "rollback":
                checkpoint.save(log, 0, **state, extra=memory)

        clock, progress = Clock(), log.bar(cfg.critic.pretrain + cfg.steps, step)
        while not (memory["pretrained"] is not None and step == memory["pretrained"] + cfg.steps):
            step += 1
            pretraining = memory["pretrained"] is None
            phase, shown = ("critic", step) if pretraining else ("train", step - memory["pretrained"])
            # Write: sample once, then measure the same tokens with every model that has an opinion.
            picked = next(batch_indices(len(prompts), cfg.rollouts // cfg.advantage.group, cfg.seed, "prompts",
                                        first_step=step))
            asked = [prompts[i] for i in picked for _ in range(cfg.advantage.group)]
            responses = respond(models.policy, words, asked, cfg.sampling, seed=cfg.seed, names=["sample", step])
            clock.phase("sample")
            rollout = measure(responses, policy=models.policy, reference=models.reference, critic=models.critic,
                              micro_tokens=cfg.micro_tokens, temperature=cfg.sampling.logprob_temperature,
                              kl=cfg.kl.estimator, bootstrap=cfg.truncation.how == "bootstrap")
            scored = rewards(responses)
            # Credit: one score per response becomes one advantage per token.
            memory["moments"] = merged_moments(memory["moments"], scored, rollout.tokens.response_mask)
            scores = processed(scored, memory["moments"], cfg.score, rewards.weights)
            rollout = with_credit(rollout, scores, truncation=cfg.truncation, advantage=cfg.advantage,
                                  kl_coef=memory["kl_coef"] if cfg.kl.within == "reward" else 0.0)
            metrics = monitors(rollout, scored, scores, memory["moments"]) | {"kl/coef": memory["kl_coef"]}
            if cfg.gold:
                metrics["gold/mean"] = float(responses.scored_by(scoring_function(cfg.gold)).mean())
            clock.phase("measure")
            # Learn: several passes over one rollout; what a token weighs is fixed before the micro-batches.
            tally, metrics["update/steps"] = Tally(), 0.0
            for k in range(cfg.updates):
                index = minibatch(cfg.rollouts, cfg.minibatch, k, seed=cfg.seed, step=step)
                part = minibatch_advantages(rollout.rows(index), cfg.advantage)
                told = [] if pretraining else mixed_in(
                    mix, cfg.ptx_batch, number=(shown - 1) * cfg.updates + k + 1, seed=cfg.seed, pad_id=words.pad_id,
                    micro_tokens=cfg.micro_tokens, device=device_of(models.policy))
                done = update(models, part, told, learners, numbers(cfg, memory, shown, k), cfg, tally, memory)
                if done is None:
                    break
                metrics |= done | {"update/steps": metrics["update/steps"] + bool(done)}
            metrics |= tally.means()
            clock.phase("update")
            found = [] if pretraining else alarms.watch(memory, metrics)
            log.log(shown, metrics | {"alarms": len(found)}, phase)
            log.time(shown, clock.lap({"samples": cfg.rollouts, "tokens": metrics["response/tokens"]}), phase)
            for alarm in found:
                log.alarm(alarm.row(shown))
            prepare_next(memory, metrics, step, cfg)
            new = [alarm for alarm in found if alarm.name not in memory["from_start"]]  # going back cures no other
            acting = {"warn": [], "stop": found, "rollback": new}[cfg.on_alarm]
            stops = bool(acting) and (cfg.on_alarm == "stop" or memory["rollbacks"] >= cfg.rollback.most)
            if acting and cfg.on_alarm == "rollback":
                memory = go_back(log, memory, state, shown, cfg)
            last = not pretraining and shown == cfg.steps
            if not pretraining and (shown % cfg.eval_every == 0 or last):
                memory["after"] = exam.sit(models.policy, cfg.sampling, shown, memory["before"], cfg.n_samples)
                memory["best"] = keep_best(memory["best"], memory["after"], shown, models.policy, tokenizer,
                                           cfg.out / "best", by=cfg.best, kl_budget=cfg.kl_budget)
            ready = pretraining and memory["pretrained"] is not None
            if step % cfg.save_every == 0 or last or ready or stops or log.stop_requested():
                memory["saved"] = step
                checkpoint.save(log, step, **state, extra=memory, keep=memory["good"])
            if stops:
                alarms.stop_on(acting[0], f"{cfg.out}, step {shown}")
            if log.stop_requested() and not last:
                log.stop(step)
            clock.lap({})
            progress.reach(shown if pretraining else cfg.critic.pretrain + shown,
                           f"score {metrics['score/mean']:.3f}  kl {metrics['kl/reference_k3']:.4f}")
        save_model(models.policy, tokenizer, cfg.out / "model")
        return log.finish({
            "steps": cfg.steps, "skipped": skipped, "headline": headline(memory["before"], memory["after"], cfg.seed),
            **{name: without_each(memory[name]) for name in ("before", "after")}, "best": memory["best"],
            "n_alarms": memory["n_alarms"], "n_rollbacks": memory["rollbacks"], "calibration": rewards.calibration})


def beginning(cfg: PPOConfig) -> Memory:
    """What is known before the first phase."""
    return {"moments": {}, "history": [], "value_losses": [], "pretrained": None if cfg.critic.pretrain else 0,
            "kl_coef": cfg.kl.coef, "lr_factor": 1.0, "n_alarms": 0, "from_start": [], "rollbacks": 0, "saved": 0,
            "good": 0, "best": None}


def numbers(cfg: PPOConfig, memory: Memory, shown: int, k: int) -> dict[str, int]:
    """Which optimiser step this is, of each model that takes one; its schedule jumps what pre-training saved."""
    number, early = (shown - 1) * cfg.updates + k + 1, cfg.critic.pretrain * cfg.updates
    if memory["pretrained"] is None:
        return {"critic": number}
    return {"policy": number} | ({"critic": early + number} if cfg.advantage.has_critic else {})


def update(models: Actors, part: Rollout, mix: list[TokenBatch], learners: dict[str, Learner], counts: dict[str, int],
           cfg: PPOConfig, tally: Tally, memory: Memory) -> dict[str, float] | None:
    """One optimiser step of each model in `counts`; none where the policy has moved too far to take it."""
    ids, done = part.tokens.record_ids, dict[str, float]()
    if not bool(part.counted.any()):
        return done
    if "critic" in counts:
        value_gradients(models.critic, part, counts["critic"], cfg, tally)
    if "policy" in counts:
        kl_old, gap = policy_gradients(models, part, mix, counts["policy"], memory["kl_coef"], cfg, tally)
        if cfg.target_kl is not None and float(kl_old) > 1.5 * cfg.target_kl:
            for learner in learners.values():
                learner.forget()
            return None
        done = {} if gap is None else {"policy/sampler_gap": float(gap)}
    # DEVIATION(ppo-4): gradients are clipped network by network; a wild critic must not shrink the policy's step.
    both = joint_norm(learners.values()) if cfg.grad_clip == "joint" and len(counts) == 2 else None
    for name, n in counts.items():
        step = learners[name].step(n, ids, joint_norm=both, lr_factor=memory["lr_factor"] if name == "policy" else 1)
        done |= {f"grad_norm/{name}": step["grad_norm"], f"lr/{name}": step["lr"]}
    return done


def policy_gradients(models: Actors, part: Rollout, mix: list[TokenBatch], number: int, kl_coef: float,
                     cfg: PPOConfig, tally: Tally) -> tuple[Tensor, Tensor | None]:
    """Gradients of everything that the policy minimises, summed before its one step.

    The first minibatch of a phase is fresh: nothing was learned since it was sampled, so its old log-probabilities
    are this very forward pass's, and its ratio is exactly 1.

    Returns:
        The distance from the old policy in nats per token, and of a fresh minibatch the largest gap to the sampler's
        own log-probabilities.
    """
    # DEVIATION(ppo-3): the released code recomputes every old log-probability; only a fresh minibatch needs that.
    fresh, temperature = (number - 1) % cfg.updates == 0, cfg.sampling.logprob_temperature
    total = weights_of(part, cfg).sum()
    mean_entropy = entropy_of(models.policy, part, cfg) if cfg.loss.entropy in ("floor", "target") else None
    gap, kl_old = torch.zeros((), device=total.device), torch.zeros((), device=total.device)
    for micro in (part.rows(index) for index in parts_of(part, cfg.micro_tokens)):
        weights = weights_of(micro, cfg)
        logprobs, entropy = token_logprobs(models.policy, micro.tokens, temperature=temperature, with_entropy=True)
        loss, stats = policy_loss(micro, logprobs, entropy, mean_entropy, fresh=fresh, cfg=cfg.loss)
        if cfg.kl.within == "loss":
            drift = (token_kl(models.policy, models.reference, micro.tokens, temperature=temperature)
                     if cfg.kl.estimator == "full" else KL[cfg.kl.estimator](logprobs, micro.ref_logprobs))
            loss, stats = loss + kl_coef * drift, stats | {"loss/kl": drift}
        objective = weighted_sum(loss, weights) / total
        require_finite(objective.detach(), "loss/policy", number, micro.tokens.record_ids)
        objective.backward()
        gap = torch.maximum(gap, (logprobs.detach() - micro.logprobs)[micro.tokens.response_mask].abs().max())
        kl_old = kl_old + weighted_sum(stats["policy/kl_old"], weights) / total
        tally.add({"loss/policy": loss, "policy/entropy": entropy} | stats, weights)
    n_mix = sum(batch.n_response_tokens for batch in mix)
    for batch in mix:
        loss = nll(token_logprobs(models.policy, batch)[0], batch.response_mask)
        objective = cfg.ptx_coef * masked_sum(loss, batch.response_mask) / n_mix
        require_finite(objective.detach(), "loss/ptx", number, batch.record_ids)
        objective.backward()
        tally.add({"loss/ptx": loss}, batch.response_mask)
    return kl_old, gap if fresh else None


def value_gradients(critic: nn.Module | None, part: Rollout, number: int, cfg: PPOConfig, tally: Tally) -> None:
    """Gradients of the critic's loss on one minibatch."""
    total = weights_of(part, cfg).sum()
    for micro in (part.rows(index) for index in parts_of(part, cfg.micro_tokens)):
        weights = weights_of(micro, cfg)
        loss, stats = clipped_value_loss(token_values(critic, micro.tokens), micro.values, micro.returns,
                                         micro.tokens.response_mask, clip=cfg.loss.value_clip)
        objective = cfg.loss.value_coef * weighted_sum(loss, weights) / total
        require_finite(objective.detach(), "loss/value", number, micro.tokens.record_ids)
        objective.backward()
        tally.add({"loss/value": loss} | stats, weights)


def weights_of(rows: Rollout, cfg: PPOConfig) -> Tensor:
    """What each token of these rows weighs in the losses."""
    return loss_weights(rows.tokens.response_mask, rows.counted, reduction=cfg.loss.reduction)


@torch.no_grad()
def entropy_of(policy: nn.Module, part: Rollout, cfg: PPOConfig) -> Tensor:
    """Mean entropy over a minibatch, before its micro-batches: on which side of the target the whole of it lies."""
    summed = [weighted_sum(token_logprobs(policy, micro.tokens, temperature=cfg.sampling.logprob_temperature,
                                          with_entropy=True)[1], weights_of(micro, cfg))
              for micro in (part.rows(index) for index in parts_of(part, cfg.micro_tokens))]
    return torch.stack(summed).sum() / weights_of(part, cfg).sum()


def prepare_next(memory: Memory, metrics: dict[str, Any], step: int, cfg: PPOConfig) -> None:
    """End the critic's pre-training once it sees, or learns no more; adapt the price of drift."""
    if memory["pretrained"] is None:
        memory["value_losses"].append(metrics.get("loss/value", float("nan")))  # NaN: no response counted
        if cfg.critic.is_ready(memory["value_losses"], metrics["value/explained_variance"]):
            memory["pretrained"] = step
    elif cfg.kl.target is not None:
        memory["kl_coef"] = adapted_kl_coef(memory["kl_coef"], metrics["kl/charged"], target=cfg.kl.target,
                                            horizon=cfg.kl.horizon, n_responses=cfg.rollouts)


def go_back(log: runs.Run, memory: Memory, state: dict[str, Any], shown: int, cfg: PPOConfig) -> Memory:
    """Models, optimisers and running moments of the last checkpoint that did well; dearer drift, smaller steps."""
    then = checkpoint.go_back(log, memory["good"], **state)
    times, to = memory["rollbacks"] + 1, memory["good"] - memory["pretrained"]
    log.alarm(alarms.rolled_back(to, times, cfg.rollback.most).row(shown))
    return memory | {name: then[name] for name in ("moments", "history", "value_losses")} | {
        "rollbacks": times, "saved": memory["good"], "kl_coef": memory["kl_coef"] * cfg.rollback.kl_factor,
        "lr_factor": memory["lr_factor"] * cfg.rollback.lr_factor}


def load_models(cfg: PPOConfig, words: Template) -> Actors:
    """Policy, reference and critic; the critic must read the policy's tokens."""
    rewarder = next((source.whole for source in cfg.sources if source.whole), None)
    if cfg.advantage.has_critic and cfg.topology == "separate":
        start = critic_source(cfg.policy, cfg.critic, rewarder)
        same_vocabulary(words, template(load_tokenizer(start.path, trust_remote_code=start.trust_remote_code)))
    return load_actors(cfg.policy, cfg.critic if cfg.advantage.has_critic else None, rewarder, topology=cfg.topology,
                       seed=cfg.seed)


def warnings_of(cfg: PPOConfig) -> Iterator[str]:
    """What a reader of this run's numbers must know of its settings."""
    if cfg.sampling.warning is not None:
        yield cfg.sampling.warning
    if cfg.kl.target is not None and cfg.kl.estimator == "k1" and cfg.sampling.warning is not None:
        yield "kl.target with kl.estimator='k1' under such sampling: a biased k1 below 0 only ever lowers kl.coef."
    if cfg.kl.within == "loss" and cfg.kl.estimator == "k1" and cfg.kl.coef:
        yield "kl.within='loss' with kl.estimator='k1': its gradient has mean zero, so it restrains nothing; see k2."
    if cfg.ptx_coef and cfg.ptx is None:
        yield f"ptx_coef={cfg.ptx_coef} has no effect without ptx: this run has no LM-mix loss."
    yield from (source.warning for source in cfg.sources if source.warning is not None)


def contradictions(cfg: PPOConfig) -> Iterator[tuple[bool, str]]:
    """Settings that exclude each other: whether they are there, and what to say."""
    group, kind, start = cfg.advantage.group, cfg.advantage.estimator, cfg.critic
    shared, sees, data = cfg.topology == "shared", cfg.advantage.has_critic, cfg.prompts
    yield bool(cfg.rollouts % cfg.minibatch), f"minibatch={cfg.minibatch} does not divide rollouts={cfg.rollouts}"
    yield bool(cfg.rollouts % group), f"advantage.group={group} does not divide rollouts={cfg.rollouts}"
    yield not cfg.sources, "neither reward_model nor rewards is given: nothing says what is good"
    yield shared and cfg.policy.lora.rank is None, (
        "topology='shared' needs policy.lora.rank: its policy and critic are adapters")
    yield shared and (start.model is not None or start.init not in (None, "policy")), (
        "topology='shared' and critic.model or critic.init exclude each other: the critic is an adapter on the policy")
    yield not shared and sees and start.model is None and start.init in (None, "reward_model") and not any(
        source.whole for source in cfg.sources), (
        "critic.init is reward_model (its default) and no reward is a model of its own: set critic.init to policy")
    yield not sees and bool(start.pretrain or start.model or start.init), (
        f"advantage.estimator={kind!r} has no critic, yet critic.pretrain={start.pretrain}, critic.init={start.init!r} "
        "or critic.model is given: set critic.pretrain to 0 and leave out the others")
    yield not sees and cfg.grad_clip == "joint", (
        f"advantage.estimator={kind!r} has no critic: grad_clip='joint' joins nothing")
    yield cfg.on_alarm == "rollback" and cfg.kl.coef == 0 and cfg.rollback.kl_factor != 1, (
        f"rollback.kl_factor={cfg.rollback.kl_factor} multiplies kl.coef=0, which stays 0: set the factor to 1")
    yield not sees and cfg.truncation.how == "bootstrap", (
        f"advantage.estimator={kind!r} has no critic, truncation.how='bootstrap' needs its values")
    yield cfg.sampling.temperature == 0, "sampling.temperature=0 explores nothing: PPO needs samples"
    yield cfg.kl.target is not None and cfg.rollouts >= 5 * cfg.kl.horizon, (
        f"kl.horizon={cfg.kl.horizon} is too short for rollouts={cfg.rollouts}: one phase could make kl.coef negative")
    yield cfg.target_kl is not None and cfg.loss.old_policy == "reference", (
        "target_kl and loss.old_policy='reference' exclude each other: the distance is to the policy that sampled")
    yield cfg.grad_clip == "joint" and cfg.policy_optimizer.max_grad_norm != cfg.critic_optimizer.max_grad_norm, (
        "grad_clip='joint' needs policy_optimizer.max_grad_norm and critic_optimizer.max_grad_norm to be equal")
    yield cfg.best == "score" and cfg.kl_budget is None, (
        "best='score' needs kl_budget: the highest score alone picks the policy that games it best")
    yield cfg.best is not None and not data.validation and data.validation_fraction == 0, (
        "best needs held-out prompts, and prompts.validation_fraction=0 leaves none: raise it or give a file")
    yield cfg.best == "score" and len(cfg.sources) > 1, (
        "best='score' and several rewards exclude each other: their raw scores have no common scale; use best='gold'")
    yield cfg.best == "gold" and cfg.gold is None, "best='gold' needs gold: no true score is known"
    yield cfg.best is None and cfg.kl_budget is not None, "kl_budget has no effect without best: set best to score"
