"""What the policy minimises on one minibatch: a surrogate, and the entropy term where one is asked for."""

import math
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from keel.batches import Rollout
from keel.config import Config
from keel.errors import ConfigError
from keel.functional.masked import Stats
from keel.functional.policy import clipped_surrogate, entropy_term, penalised_surrogate

__all__ = ["LossConfig", "policy_loss", "require_reachable"]


class LossConfig(Config):
    """The losses of policy and critic."""

    clip: float | None = Field(0.2, gt=0, lt=1, description="half-width of the trust region on the probability ratio; "
                               "none: unclipped")
    old_kl_coef: float | None = Field(None, ge=0, description="PPO's penalty objective instead of the clip: price per "
                                      "nat of distance from the policy that sampled; needs clip = none")
    old_policy: Literal["behaviour", "reference"] = Field("behaviour", description="ratios are taken against the "
        "policy that sampled, or against the reference (the report's importance sampling)")
    value_clip: float | None = Field(0.2, gt=0, description="half-width around the critic's old value; none: unclipped")
    value_coef: float = Field(1.0, gt=0, description="weight of the critic's loss")
    reduction: Literal["token", "sequence"] = Field("token", description="every token of a minibatch weighs the same, "
                                                    "or every response does")
    entropy: Literal["bonus", "floor", "target"] | None = Field(None, description="reward entropy, or only where it is "
        "below entropy_target, or pull it to entropy_target; not in PPO-max")
    entropy_coef: float = Field(0.01, gt=0, description="weight of the entropy term, where there is one")
    entropy_target: float | None = Field(None, gt=0, description="nats per token, below ln(vocabulary); floor, target")

    @model_validator(mode="after")
    def _check(self) -> "LossConfig":
        if self.old_kl_coef is not None and self.clip is not None:
            raise ValueError(f"loss.old_kl_coef={self.old_kl_coef} and loss.clip={self.clip} exclude each other: the "
                             "penalty stands in the clip's place; set loss.clip to none")
        if self.old_kl_coef is not None and self.old_policy == "reference":
            raise ValueError(f"loss.old_kl_coef={self.old_kl_coef} and loss.old_policy='reference' exclude each other: "
                             "the penalty is on the distance to the policy that sampled; for the reference, see kl")
        if (self.entropy_target is not None) != (self.entropy in ("floor", "target")):
            raise ValueError(f"loss.entropy={self.entropy!r} and loss.entropy_target={self.entropy_target} do not go "
                             "together: floor and target need one, the others take none")
        return self


def require_reachable(cfg: LossConfig, n_vocabulary: int) -> None:
    """An entropy target at or above ln(vocabulary) can never be met: the term would be an endless bonus.

    Raises:
        ConfigError: it is.
    """
    most = math.log(n_vocabulary)
    if cfg.entropy_target is not None and cfg.entropy_target >= most:
        raise ConfigError(f"loss.entropy_target={cfg.entropy_target} cannot be reached: the entropy over "
                          f"{n_vocabulary} tokens is at most {most:.2f} nats",
                          remedy="Give a value below that; policy/entropy of a short run shows what is usual.")


def policy_loss(micro: Rollout, logprobs: Tensor, entropy: Tensor, mean_entropy: Tensor | None, *, fresh: bool,
                cfg: LossConfig) -> tuple[Tensor, Stats]:
    """The loss of each response token, [B T], and its stats.

    Args:
        micro: rows with old and reference log-probabilities and advantages.
        logprobs: nats, under the policy now.
        entropy: nats, of the policy's next-token distributions.
        mean_entropy: over the whole minibatch; needed for the entropy forms floor and target.
        fresh: nothing was learned since these responses were sampled: the old log-probabilities are these very ones.
        cfg: which loss.
    """
    assert micro.advantages is not None and micro.ref_logprobs is not None, "measured before it is learned from"
    where, behaviour = micro.tokens.response_mask, logprobs.detach() if fresh else micro.logprobs
    old = micro.ref_logprobs if cfg.old_policy == "reference" else behaviour
    if cfg.old_kl_coef is None:
        loss, stats = clipped_surrogate(logprobs, old, micro.advantages, where, clip=cfg.clip)
    else:
        loss, stats = penalised_surrogate(logprobs, old, micro.advantages, where, old_kl_coef=cfg.old_kl_coef)
    if cfg.entropy is None:
        return loss, stats
    assert mean_entropy is not None or cfg.entropy == "bonus", "floor and target need the mean of the minibatch"
    mean = entropy.new_zeros(()) if mean_entropy is None else mean_entropy
    term = entropy_term(entropy, mean, mode=cfg.entropy, target=cfg.entropy_target)
    return loss + cfg.entropy_coef * term, stats | {"loss/entropy": term.detach()}
