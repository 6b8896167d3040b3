"""The models of a run with a reward: the policy that learns, the reference it is held against, its critic."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from keel.config import Config
from keel.models.load import (
    LoraSettings,
    ModelConfig,
    causal_lm,
    draw_weights,
    frozen_copy,
    scalar_model,
    zero_head,
)
from keel.models.shared import SharedTrunk

__all__ = ["Actors", "CriticConfig", "critic_source", "load_actors"]


class CriticConfig(Config):
    """Where the critic starts, and how it is made ready before the policy moves."""

    init: Literal["reward_model", "policy", "scratch"] | None = Field(None, description="where it starts; a head of "
        "zeros on the last two; none: critic.model, else reward_model; topology shared: policy")
    model: ModelConfig | None = Field(None, description="a model of its own to start from")
    pretrain: int = Field(10, ge=0, description="phases at most in which only the critic learns, at the start")
    pretrain_until: float = Field(0.5, le=1, description="explained variance that ends these phases early")
    pretrain_flat: float | None = Field(0.02, ge=0, lt=1, description="end them too when the value loss of the last "
                                        "three phases is less than this share below that of the three before")

    @model_validator(mode="after")
    def _check(self) -> "CriticConfig":
        if self.init is not None and self.model is not None:
            raise ValueError(f"critic.init={self.init!r} and critic.model exclude each other: both say where it starts")
        return self

    def is_ready(self, losses: list[float], explained_variance: float) -> bool:
        """Whether pre-training ends here, after phases with these value losses: it sees, or learns no more."""
        flat = self.pretrain_flat is not None and len(losses) >= 6 and (
            sum(losses[-3:]) > (1 - self.pretrain_flat) * sum(losses[-6:-3]))
        return flat or explained_variance > self.pretrain_until or len(losses) >= self.pretrain


@dataclass(frozen=True)
class Actors:
    """Policy and reference, and the critic where there is one."""

    policy: nn.Module
    reference: nn.Module
    critic: nn.Module | None


def load_actors(policy: ModelConfig, critic: CriticConfig | None, reward_model: ModelConfig | None, *, topology: str,
                seed: int) -> Actors:
    """Load each as a model of its own, or as views of one frozen trunk.

    Args:
        policy: where the policy is; the reference is the same model, frozen.
        critic: where the critic starts; none: there is no critic.
        reward_model: where it starts if `critic` names nothing.
        topology: "separate" or "shared".
        seed: draws adapters, new heads and new weights.
    """
    if topology == "shared":
        trunk = SharedTrunk(policy, seed, with_critic=critic is not None)
        return Actors(trunk.policy, trunk.reference, trunk.critic)
    writer = causal_lm(policy, seed=seed)
    return Actors(writer, frozen_copy(writer), None if critic is None else _critic(policy, critic, reward_model, seed))


def critic_source(policy: ModelConfig, critic: CriticConfig, reward_model: ModelConfig | None) -> ModelConfig:
    """The model that the critic starts from, and whose tokens it must share with the policy."""
    own = critic.model or (reward_model if critic.init in (None, "reward_model") else policy)
    assert own is not None, "settings without any reward model name another start"
    return own


def _critic(policy: ModelConfig, critic: CriticConfig, reward_model: ModelConfig | None, seed: int) -> nn.Module:
    source = critic_source(policy, critic, reward_model)
    if critic.init == "scratch":  # new weights learn whole: there is nothing for an adapter to adapt
        source = source.model_copy(update={"lora": LoraSettings()})
    model = scalar_model(source, seed=seed)
    if critic.init == "scratch":
        draw_weights(model, seed)
    if critic.init in ("policy", "scratch"):
        # A critic that begins at zero begins neutral: advantages are then the returns themselves.
        zero_head(model)
    return model
