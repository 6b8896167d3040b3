"""Credit: what each token of a response is paid, and its advantage, by the estimator that the settings name."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from keel.batches import Rollout
from keel.config import Config
from keel.functional.advantage import (
    cut_scores,
    gae,
    grpo,
    reinforce_plus_plus,
    rloo,
    shaped_advantages,
    token_rewards,
)
from keel.functional.masked import row_sums
from keel.functional.steps import step_grpo, step_rloo

__all__ = ["AdvantageConfig", "KLConfig", "TruncationConfig", "minibatch_advantages", "paid_in_all", "with_credit"]


class KLConfig(Config):
    """The price of drift from the reference."""

    coef: float = Field(0.05, ge=0, description="price per nat of drift from the reference, per token")
    estimator: Literal["k1", "k2", "k3", "full"] = Field("k1", description="of that drift; k1 is the report's, full "
                                                         "sums over the vocabulary (one more forward pass)")
    within: Literal["reward", "loss"] = Field("reward", description="charge it in the rewards, where it has no "
                                              "gradient, or add it to the loss")
    target: float | None = Field(None, gt=0, description="nats per token at which coef is held by adapting it each "
                                 "phase; none: coef is fixed")
    horizon: int = Field(10_000, ge=1, description="responses over which an error of 20% moves coef by 20%")

    @model_validator(mode="after")
    def _check(self) -> "KLConfig":
        if self.within == "loss" and self.coef == 0:
            raise ValueError("kl.within='loss' and kl.coef=0 exclude each other: nothing would be added to the loss")
        if self.target is not None and self.coef == 0:
            raise ValueError("kl.target and kl.coef=0 exclude each other: adapting multiplies, and 0 stays 0")
        return self


class TruncationConfig(Config):
    """What responses that were cut at the length limit are paid."""

    how: Literal["score", "penalty", "constant", "bootstrap", "mask"] = Field("score", description="their score as it "
        "is; less value; value instead; the critic's value of what would follow; or leave them out of the losses")
    value: float | None = Field(None, description="processed score that penalty subtracts or constant pays")

    @model_validator(mode="after")
    def _check(self) -> "TruncationConfig":
        if (self.value is not None) != (self.how in ("penalty", "constant")):
            raise ValueError(f"truncation.how={self.how!r} and truncation.value={self.value} do not go together: "
                             "penalty and constant need a value, the others take none")
        if self.how == "penalty" and (self.value or 0) <= 0:
            raise ValueError(f"truncation.how='penalty' and truncation.value={self.value}: it would pay for being cut")
        return self


class AdvantageConfig(Config):
    """How rewards become advantages."""

    estimator: Literal["gae", "rloo", "grpo", "reinforce++"] = Field("gae", description="with a critic (gae), or "
        "against the other responses to the prompt (rloo, grpo), or against the whole phase (reinforce++)")
    group: int = Field(1, ge=1, description="responses per prompt; rloo and grpo need two or more")
    group_std: bool = Field(True, description="grpo divides by the std of the group; false: arXiv:2503.20783")
    gamma: float = Field(1.0, gt=0, le=1, description="discount per token; gae and reinforce++")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    normalise: Literal["minibatch", "rollout"] | None = Field(None, description="to mean 0 and variance 1 over the "
        "tokens of each minibatch or of the phase; not in PPO-max")
    clip: float | None = Field(None, gt=0, description="bound on |advantage|, after normalising; none: unbounded")

    @property
    def has_critic(self) -> bool:
        """True where a critic takes part."""
        return self.estimator == "gae"

    @model_validator(mode="after")
    def _check(self) -> "AdvantageConfig":
        if self.estimator in ("rloo", "grpo") and self.group < 2:
            raise ValueError(f"advantage.estimator={self.estimator!r} and advantage.group={self.group} exclude each "
                             "other: it compares two or more responses to one prompt")
        if not self.group_std and self.estimator != "grpo":
            raise ValueError(f"advantage.group_std=false and advantage.estimator={self.estimator!r} exclude each "
                             "other: only grpo divides by it")
        return self


def with_credit(rollout: Rollout, scores: Tensor, *, kl_coef: float | Tensor, truncation: TruncationConfig,
                advantage: AdvantageConfig, factor: Tensor | None = None, shaping: Tensor | None = None) -> Rollout:
    """The rollout with `rewards`, `advantages`, `returns` and `counted`.

    Args:
        rollout: measured; rows that answer one prompt stand together, `advantage.group` of them. Where it has
            `step_rewards`, these are paid beside the scores; rloo and grpo compare them with those of other responses.
        scores: processed scores, one per response.
        kl_coef: price per nat charged in the rewards, one or one per response; 0 where the KL is part of the loss.
        truncation: what cut responses are paid.
        advantage: which estimator.
        factor: multiplies the advantages of each response, once they are normalised over the phase; none: nothing.
        shaping: is then added to them, before they are clipped; none: nothing.
    """
    mask, device = rollout.tokens.response_mask, rollout.tokens.ids.device
    ended = rollout.ended.to(device)
    paid = cut_scores(scores.to(device), ended, how=truncation.how, value=truncation.value)
    price = kl_coef.to(device) if isinstance(kl_coef, Tensor) else kl_coef
    rewards = token_rewards(paid, rollout.kl, mask, kl_coef=price)
    counted = ended if truncation.how == "mask" else torch.ones_like(ended)
    groups = rollout.prompt_indices.to(device) // advantage.group
    returns, whole, steps = None, rewards, rollout.step_rewards
    if steps is not None:
        rewards = rewards + torch.where(mask, steps, 0.0)
    if advantage.estimator == "gae":
        after = None if truncation.how != "bootstrap" else torch.where(ended, 0.0, rollout.after_values)
        advantages, returns = gae(rewards, rollout.values, mask, gamma=advantage.gamma, lam=advantage.lam, after=after)
    elif advantage.estimator == "rloo":
        advantages = rloo(whole, mask, groups)
        if steps is not None:
            advantages = advantages + step_rloo(steps, rollout.step_ends, mask, groups)
    elif advantage.estimator == "grpo":
        advantages = grpo(whole, mask, groups, scale=advantage.group_std)
        if steps is not None:
            advantages = advantages + step_grpo(steps, rollout.step_ends, mask, groups, scale=advantage.group_std)
    else:
        advantages = reinforce_plus_plus(rewards, mask & counted[:, None], gamma=advantage.gamma)
    where = mask & counted[:, None]
    advantages = shaped_advantages(advantages, where, normalise=advantage.normalise == "rollout", clip=None)
    if factor is not None:
        advantages = advantages * factor.to(advantages)[:, None]
    if shaping is not None:
        advantages = advantages + shaping.to(advantages)[:, None]
    advantages = shaped_advantages(advantages, where, normalise=False,
                                   clip=None if advantage.normalise == "minibatch" else advantage.clip)
    return replace(rollout, rewards=rewards, advantages=advantages, returns=returns, counted=counted)


def paid_in_all(rollout: Rollout, scores: Tensor, truncation: TruncationConfig) -> Tensor:
    """What each response is paid, drift aside: its score, by the rule for cut responses, and its steps; on the CPU. [B]

    Args:
        rollout: with `step_rewards` where steps are paid.
        scores: processed scores, one per response.
        truncation: what cut responses are paid.
    """
    paid = cut_scores(scores.cpu(), rollout.ended.cpu(), how=truncation.how, value=truncation.value)
    if rollout.step_rewards is None:
        return paid
    return paid + row_sums(rollout.step_rewards, rollout.tokens.response_mask).to(paid)


def minibatch_advantages(part: Rollout, advantage: AdvantageConfig) -> Rollout:
    """A minibatch, its advantages normalised and clipped where that is done minibatch by minibatch."""
    if advantage.normalise != "minibatch":
        return part
    counted = part.tokens.response_mask & part.counted[:, None]
    return replace(part, advantages=shaped_advantages(part.advantages, counted, normalise=True, clip=advantage.clip))
