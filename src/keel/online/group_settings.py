"""Settings of group-invariant learning: which groups there are, what closes the gap, what drift costs in each."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from keel.config import Config

__all__ = ["GroupConfig"]

LONGEST_RATIO = 64
"""Tokens beyond which the product of probability ratios of a response says nothing any more."""


class GroupConfig(Config):
    """How responses are told apart, and what follows for the policy."""

    source: Literal["inferred", "known"] = Field("inferred", description="groups found by a head on the critic, or "
                                                 "labels that the prompts carry")
    column: str = Field("group", min_length=1, description="where prompts carry a label: the groups if source = known; "
                        "else, where it is there, what inferred groups are held against")
    n: int = Field(2, ge=2, description="groups to infer; known: as many as there are labels")
    level: Literal["trajectory", "prompt"] = Field("trajectory", description="inferred: the critic's state that the "
        "head sees, at the last response token, or at the last prompt token (prompts by difficulty)")
    returns: Literal["score", "kl_penalised"] = Field("score", description="what a response counts in the "
        "mean of its group: its processed score, or that less what its drift costs")
    tails: float | None = Field(None, ge=0, lt=0.5, description="share of returns on either side that is pulled in to "
                                "its quantile; none: nothing is")
    objective: Literal["variance", "low_only", "worst", "vrex", "dro", "cvar"] | None = Field(
        "variance", description="what the policy's loss does about unequal groups; none: nothing")
    coef: float = Field(0.1, gt=0, description="beta_policy, on standardised returns; every objective but dro")
    cap: float | None = Field(1.0, gt=0, description="bound on what is added to an advantage; none: unbounded")
    estimator: Literal["shaping", "ratio"] = Field("shaping", description="of the variance's gradient: in the "
        f"advantages, or by sequence ratios (variance; responses of at most {LONGEST_RATIO} tokens)")
    warmup: int = Field(20, ge=0, description="phases in which groups are found and the policy learns as in keel ppo")
    ramp_fraction: float = Field(0.1, ge=0, le=1, description="share of the phases, after the warm-up, in which coef "
                                 "rises from 0; factors of vrex and dro act at once")
    dro_step: float = Field(0.1, gt=0, description="group DRO's step on its weights, per standardised unit; dro")
    cvar_share: float = Field(0.2, gt=0, lt=1, description="share of the worst returns that cvar raises the mean of")
    kl: Literal["adaptive", "equal"] = Field("adaptive", description="the price of drift by membership in the highest "
                                             "group, or the same for all")
    kl_floor: float = Field(0.1, ge=0, le=1, description="kappa, the least share of kl.coef that anyone pays; adaptive")
    kl_renorm: bool = Field(False, description="adaptive: a mean price of kl.coef; else kl.coef is the highest")
    variance: Literal["plain", "weighted"] = Field("plain", description="inferred: the head maximises the "
                                                   "variance of group returns, or the same weighted by mass")
    floor: float = Field(0.15, ge=0, description="inferred: share of the responses below which a group costs")
    # DEVIATION(group_ppo-2): at 10 the variance of a few extreme responses outweighs the floor; at 100 the floor holds.
    floor_coef: float = Field(100.0, ge=0, description="inferred: that costs this times its missing share squared")
    entropy_coef: float = Field(0.0, ge=0, description="inferred: the head's reward per nat of doubt")
    logit_bound: float = Field(5.0, gt=0, description="inferred: largest logit of the head; beyond 5 it hardly changes")
    steps: int = Field(4, ge=1, description="inferred: Adam steps of the head per phase, on all its responses")
    lr: float = Field(1e-3, gt=0, description="inferred: learning rate of the head")
    critic_coef: float | None = Field(None, gt=0, description="beta_critic, weight of the head's objective in the "
                                      "critic's loss; none: the head does not move the critic")
    ema_decay: float = Field(0.9, ge=0, lt=1, description="of the moving average of group returns that orders them")
    ema_slack: float = Field(0.05, ge=0, description="standardised units by which the averages of two "
                             "neighbours must differ before they change places")

    @model_validator(mode="after")
    def _check(self) -> "GroupConfig":
        for found, complaint in contradictions(self):
            if found:
                raise ValueError(complaint)
        return self

    @property
    def has_coef(self) -> bool:
        """Whether `coef` weighs anything."""
        return self.objective not in (None, "dro")

    def coef_at(self, shown: int, steps: int) -> float:
        """coef in the shown-th of so many phases: 0 while warming up, then a ramp, then all of it."""
        since, ramp = shown - self.warmup, self.ramp_fraction * steps
        return 0.0 if since <= 0 else self.coef * min(1.0, since / ramp) if ramp else self.coef


def contradictions(cfg: GroupConfig) -> Iterator[tuple[bool, str]]:
    """Settings that exclude each other: whether they are there, and what to say."""
    yield cfg.estimator == "ratio" and cfg.objective != "variance", (
        f"groups.estimator='ratio' and groups.objective={cfg.objective!r} exclude each other: only the variance of "
        "group returns has that form")
    yield cfg.objective is None and cfg.kl == "equal", (
        "groups.objective is none and groups.kl='equal': the groups would change nothing; use `keel ppo`")
    yield cfg.source == "known" and cfg.critic_coef is not None, (
        "groups.critic_coef needs groups.source='inferred': known groups have no head to learn with")
    yield cfg.source == "inferred" and cfg.floor > 1 / cfg.n, (
        f"groups.floor={cfg.floor} and groups.n={cfg.n} exclude each other: not every group can have that share; "
        f"the floor can be at most {1 / cfg.n:.3f}")
    yield cfg.objective == "cvar" and cfg.tails is not None and cfg.tails >= cfg.cvar_share, (
        f"groups.tails={cfg.tails} pulls in all that groups.cvar_share={cfg.cvar_share} looks at: nothing would be "
        "below the quantile; lower tails")
