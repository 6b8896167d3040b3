"""Settings that PPO and its relatives share: one loop of writing, scoring, crediting and learning."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from keel.config import Config
from keel.models.actors import CriticConfig
from keel.models.load import ModelConfig
from keel.online.anchor import AnchorConfig
from keel.online.held import PolicyAxisConfig, idle
from keel.online.watch import PersonaConfig, files_of
from keel.rollout.credit import AdvantageConfig, KLConfig, TruncationConfig
from keel.rollout.reward_settings import RewardConfig, ScoreConfig
from keel.rollout.sample import SamplingConfig
from keel.train.alarms import RollbackConfig
from keel.train.inputs import DataConfig, FileConfig
from keel.train.objective import LossConfig
from keel.train.step import OptimizerConfig

__all__ = ["OnlineConfig", "warnings_of"]


class OnlineConfig(Config):
    """Everything that a loop with a policy, a reference, a critic and rewards reads. Defaults: PPO-max's switches,
    exact sampling; the preset is the report's."""

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
    anchor: AnchorConfig | None = Field(None, description="price of states that leave the Assistant; none: no price")
    policy_axis: PolicyAxisConfig | None = Field(None, description="axis that acts while responses are sampled; none: "
                                                 "none does")
    persona: PersonaConfig | None = Field(None, description="watches how Assistant-like the policy is; none: nobody")

    @model_validator(mode="after")
    def _check(self) -> "OnlineConfig":
        for found, complaint in contradictions(self):
            if found:
                raise ValueError(complaint)
        return self

    @property
    def files(self) -> list[Path]:
        """Every data file that a run reads."""
        named = [self.prompts.path, self.prompts.validation, None if self.ptx is None else self.ptx.path,
                 *(source.calibration.path for source in self.sources if source.calibration)]
        return [Path(name) for name in named if name is not None] + files_of(self.anchor, self.persona,
                                                                               self.policy_axis)

    @property
    def samples_otherwise(self) -> bool:
        """Whether another policy than the one that learns writes the responses, so that no ratio begins at 1."""
        return self.policy_axis is not None and self.policy_axis.mode == "rollout_only"

    @property
    def updates(self) -> int:
        """Optimiser steps per phase."""
        return self.passes * (self.rollouts // self.minibatch)

    @property
    def sources(self) -> tuple[RewardConfig, ...]:
        """Every source of reward; `reward_model` is one of weight 1."""
        first = () if self.reward_model is None else (RewardConfig(name="reward_model", models=(self.reward_model,)),)
        return (*first, *self.rewards)


def warnings_of(cfg: OnlineConfig) -> Iterator[str]:
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
    for source in cfg.sources:
        if source.steps is not None and source.steps.credit == "sum" and source.steps.cap is None:
            yield (f"reward {source.name!r} pays the sum of its steps without steps.cap: right but useless steps are "
                   "paid too, and the policy may write many; min, mean and delta (not with grpo) do not grow with "
                   "their number.")


def contradictions(cfg: OnlineConfig) -> Iterator[tuple[bool, str]]:
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
    yield kind == "grpo" and any(source.steps and (source.steps.credit != "sum" or source.steps.cap)
                                 for source in cfg.sources), (
        "advantage.estimator='grpo' compares the reward of a step with all in its group, so that a step "
        "paid 0 gains or loses by being there: it goes with steps.credit='sum' and no cap; rloo with every credit")
    yield kind == "grpo" and cfg.kl.within == "reward" and bool(cfg.kl.coef) and all(
        source.steps for source in cfg.sources), (
        "advantage.estimator='grpo' with rewards of steps alone would blow the charge for drift up to the size of a "
        "reward, for it divides each by its std: set kl.within to loss")
    yield cfg.sampling.temperature == 0, "sampling.temperature=0 explores nothing: PPO needs samples"
    yield cfg.kl.target is not None and cfg.rollouts >= 5 * cfg.kl.horizon, (
        f"kl.horizon={cfg.kl.horizon} is too short for rollouts={cfg.rollouts}: one phase could make kl.coef negative")
    yield cfg.target_kl is not None and cfg.loss.old_policy == "reference", (
        "target_kl and loss.old_policy='reference' exclude each other: the distance is to the policy that sampled")
    yield cfg.grad_clip == "joint" and cfg.policy_optimizer.max_grad_norm != cfg.critic_optimizer.max_grad_norm, (
        "grad_clip='joint' needs policy_optimizer.max_grad_norm and critic_optimizer.max_grad_norm to be equal")
    yield from of_axis(cfg)
    yield cfg.best == "score" and cfg.kl_budget is None, (
        "best='score' needs kl_budget: the highest score alone picks the policy that games it best")
    yield cfg.best is not None and not data.validation and data.validation_fraction == 0, (
        "best needs held-out prompts, and prompts.validation_fraction=0 leaves none: raise it or give a file")
    yield cfg.best == "score" and len(cfg.sources) > 1, (
        "best='score' and several rewards exclude each other: their raw scores have no common scale; use best='gold'")
    yield cfg.best == "gold" and cfg.gold is None, "best='gold' needs gold: no true score is known"
    yield cfg.best is None and cfg.kl_budget is not None, "kl_budget has no effect without best: set best to score"


def of_axis(cfg: OnlineConfig) -> Iterator[tuple[bool, str]]:
    """Settings of an axis that exclude others: whether they are there, and what to say."""
    own = cfg.policy_axis
    yield own is not None and cfg.topology == "shared", (
        "policy_axis and topology='shared' exclude each other: policy, critic and reference are one stream there")
    yield from idle("policy_axis", own)
    yield own is not None and own.mode == "in_policy" and cfg.anchor is not None, (
        "anchor and policy_axis.mode='in_policy' exclude each other: one prices the states that the other moves")
    yield cfg.samples_otherwise and cfg.loss.old_policy == "reference", (
        "loss.old_policy='reference' and policy_axis.mode='rollout_only' exclude each other: that mode needs ratios "
        "against the policy that sampled")
    yield cfg.samples_otherwise and cfg.target_kl is not None, (
        "target_kl and policy_axis.mode='rollout_only' exclude each other: the policy that sampled is another one from "
        "the start")
