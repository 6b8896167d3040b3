"""The groups of a run: who belongs to which, in what order they stand, and what a phase's groups ask of the policy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from keel.batches import Rollout
from keel.data.records import Prompt
from keel.errors import DataError
from keel.functional.invariance import (
    adaptive_kl_coef,
    cvar_shaping,
    dro_weights,
    group_factor,
    group_objective,
    group_stats,
    memberships,
    sorted_order,
    standardised_returns,
    variance_shaping,
)
from keel.functional.masked import row_sums
from keel.models.forward import head_layer
from keel.online.group_settings import GroupConfig
from keel.online.memory import Memory, Phase
from keel.rng import stream

__all__ = ["Asked", "Groups", "known_labels", "places_of", "with_places"]

SIDES = {"variance": "both", "vrex": "both", "low_only": "low_only", "worst": "worst"}


@dataclass(frozen=True)
class Asked:
    """What the groups of a phase ask of its credit.

    Attributes:
        prices: per nat of drift, of each response. [B]
        factor: multiplies its advantages; none: nothing. [B]
        shaping: is added to them; none: nothing. [B]
        memberships: after the head has learned, the lowest group first. [B G]
        returns: standardised. [B]
        objective: of the head after its steps; none where groups are known.
        coef: beta_policy in force, 0 before it acts; none where the objective has none.
        weights: of the groups in group DRO, the lowest group first; none elsewhere.
    """

    prices: Tensor
    factor: Tensor | None
    shaping: Tensor | None
    memberships: Tensor
    returns: Tensor
    objective: float | None
    coef: float | None
    weights: tuple[float, ...] | None


class Groups:
    """Known labels or a head on the critic's states, with the order of the groups.

    Attributes:
        head: linear, float32; none where groups are known.
        optimizer: the head's own.
        labels: names of the known groups, sorted; empty where they are inferred.
    """

    def __init__(self, cfg: GroupConfig, critic: nn.Module | None, labels: tuple[str, ...], *, seed: int) -> None:
        self.cfg, self.labels = cfg, labels
        self.head: nn.Linear | None = None
        if cfg.source == "inferred":
            assert critic is not None, "settings without a critic name known groups"
            self.head = group_head(critic, cfg.n, seed)
            self.optimizer = torch.optim.Adam(self.head.parameters(), lr=cfg.lr)

    @property
    def n(self) -> int:
        """How many groups there are."""
        return len(self.labels) or self.cfg.n

    @property
    def state(self) -> dict[str, Any]:
        """Modules and optimisers for the checkpoint."""
        if self.head is None:
            return {"modules": {}, "optimizers": {}}
        return {"modules": {"groups": self.head}, "optimizers": {"groups": self.optimizer}}

    def beginning(self) -> dict[str, Any]:
        """What is known of the groups before the first phase."""
        return {"ema": [0.0] * self.n, "order": list(range(self.n)), "q": [1 / self.n] * self.n, "swaps": 0}

    def names(self, order: Sequence[int]) -> list[str]:
        """What logs call the groups, the lowest first: their labels, or their place in the order."""
        return [self.labels[g] for g in order] if self.labels else [str(k + 1) for k in range(self.n)]

    def columns(self, states: Tensor | None, prompts: Sequence[Prompt]) -> Tensor:
        """Memberships of each response, in the order of the head's columns or of the labels. [B G]"""
        if self.head is None:
            index = [self.labels.index(str(prompt.label(self.cfg.column))) for prompt in prompts]
            return nn.functional.one_hot(torch.tensor(index), self.n).float()
        assert states is not None, "the critic was asked for its states"
        return memberships(self.head(states), bound=self.cfg.logit_bound)

    def ask(self, rollout: Rollout, scores: Tensor, prompts: Sequence[Prompt], memory: Memory, phase: Phase,
            steps: int) -> Asked:
        """What a phase's groups ask: prices by the head as it was, then the head learns, shaping by the head as it is.

        Args:
            rollout: measured, with `states` where groups are inferred.
            scores: what each response is paid, processed.
            prompts: of each response.
            memory: `kl_coef` is read; `groups` is brought up to date.
            phase: which one; nothing is asked while the critic warms up or the groups do.
            steps: phases of the run.
        """
        cfg, known = self.cfg, memory["groups"]
        with torch.no_grad():
            before = self.columns(rollout.states, prompts).to(scores.device)[:, known["order"]]
        acts = not phase.pretraining and phase.shown > cfg.warmup
        prices = torch.full_like(scores, memory["kl_coef"])
        if acts and cfg.kl == "adaptive":
            prices = adaptive_kl_coef(before, coef=memory["kl_coef"], floor=cfg.kl_floor, renorm=cfg.kl_renorm)
        signal = scores
        if cfg.returns == "kl_penalised":
            signal = scores - prices * row_sums(rollout.kl, rollout.tokens.response_mask).to(scores)
        returns = standardised_returns(signal, tails=cfg.tails)
        objective = self.learn(rollout.states, returns) if self.head is not None else None
        with torch.no_grad():
            now = self.columns(rollout.states, prompts).to(scores.device)
        coef = cfg.coef_at(phase.shown, steps) if acts else 0.0
        factor, shaping = self.steering(now, returns, known, coef) if acts else (None, None)
        weights = tuple(known["q"][k] for k in known["order"]) if cfg.objective == "dro" else None
        asked = Asked(prices, factor, shaping, now[:, known["order"]], returns, objective,
                      coef if cfg.has_coef else None, weights)
        if not phase.pretraining:
            self.reorder(now, returns, known)
        return asked

    def learn(self, states: Tensor | None, returns: Tensor) -> float:
        """Steps of the head on the whole phase; its objective after them."""
        assert self.head is not None and states is not None
        for _ in range(self.cfg.steps):
            self.optimizer.zero_grad(set_to_none=True)
            (-self.objective(states, returns)).backward()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            return float(self.objective(states, returns))

    def objective(self, states: Tensor, returns: Tensor) -> Tensor:
        """What the head maximises."""
        assert self.head is not None
        cfg = self.cfg
        return group_objective(self.head(states), returns.to(states.device), variance=cfg.variance, floor=cfg.floor,
                               floor_coef=cfg.floor_coef, bound=cfg.logit_bound, entropy_coef=cfg.entropy_coef)

    def steering(self, p: Tensor, returns: Tensor, known: dict[str, Any], coef: float,
                 ) -> tuple[Tensor | None, Tensor | None]:
        """Factor and shaping of each response's advantages, by the objective."""
        cfg = self.cfg
        if cfg.objective is None:
            return None, None
        if cfg.objective == "dro":
            stats = group_stats(p, returns)
            q = dro_weights(torch.tensor(known["q"], dtype=torch.float64), stats.returns, stats.present,
                            step=cfg.dro_step)
            known["q"] = q.tolist()
            return group_factor(p, q), None
        if cfg.estimator == "ratio":
            return None, None
        factor = group_factor(p, torch.ones(self.n)) if cfg.objective == "vrex" else None
        weights = cvar_shaping(returns, share=cfg.cvar_share) if cfg.objective == "cvar" else variance_shaping(
            p, returns, side=SIDES[cfg.objective])
        shaping = -coef * weights
        return factor, shaping if cfg.cap is None else shaping.clamp(-cfg.cap, cfg.cap)

    def reorder(self, p: Tensor, returns: Tensor, known: dict[str, Any]) -> None:
        """Bring the moving averages and the order up to date."""
        stats, keep = group_stats(p, returns), self.cfg.ema_decay
        known["ema"] = [keep * old + (1 - keep) * new if there else old for old, new, there in zip(
            known["ema"], stats.returns.tolist(), stats.present.tolist(), strict=True)]
        order = sorted_order(known["order"], torch.tensor(known["ema"]), slack=self.cfg.ema_slack)
        known["swaps"] += order != known["order"]
        known["order"] = order

    def terms(self, rollout: Rollout, asked: Asked, *, prices: bool) -> dict[str, Any]:
        """Fields of the rollout that move critic or policy in the update, beside what credit says.

        Args:
            rollout: measured.
            asked: what the groups ask.
            prices: whether drift is charged there.
        """
        device = rollout.tokens.ids.device
        found: dict[str, Any] = {"kl_coefs": asked.prices.to(device)} if prices else {}
        if self.cfg.critic_coef is not None:  # the paper's joint loss: the head's objective moves the critic too
            states = rollout.states.detach().requires_grad_()
            loss = -self.cfg.critic_coef * self.objective(states, asked.returns)
            found["state_pull"] = torch.autograd.grad(loss, states)[0]
        if self.cfg.estimator == "ratio" and asked.coef:
            found |= {"memberships": asked.memberships.to(device), "group_returns": asked.returns.to(device),
                      "ratio_coef": asked.coef}
        return found


def group_head(critic: nn.Module, n: int, seed: int) -> nn.Linear:
    """A head with weights of variance 1 / width: memberships that are the same for all would be a saddle."""
    width = head_layer(critic).in_features
    head = nn.Linear(width, n)
    with torch.no_grad():
        head.weight.copy_(torch.randn(n, width, generator=stream(seed, "group head")) / width**0.5)
        head.bias.zero_()
    return head.to(next(critic.parameters()).device)


def known_labels(prompts: Sequence[Prompt], column: str, *, most: int, where: str) -> tuple[str, ...]:
    """The known groups of these prompts, sorted.

    Args:
        prompts: all that are learned from.
        column: of their meta.
        most: groups that a phase can tell apart.
        where: the prompts come from.
    Raises:
        DataError: a prompt has none, all have the same, or nearly every prompt has one of its own.
    """
    without = [prompt.id for prompt in prompts if prompt.label(column) is None]
    if without:
        raise DataError(f"{len(without)} of {len(prompts)} prompts have no label {column!r}",
                        where=f"{where} (records {', '.join(without[:5])})",
                        remedy="Name the column that holds it with groups.column, label these prompts or leave them "
                               "out; or leave groups.source = inferred.")
    labels = tuple(sorted({str(prompt.label(column)) for prompt in prompts}))
    if len(labels) < 2:
        raise DataError(f"all {len(prompts)} prompts have the label {column} = {labels[0]!r}, so there is one group",
                        where=where, remedy="Take prompts of two or more groups, or another column.")
    if len(labels) > most:
        raise DataError(f"{column!r} has {len(labels)} labels, and a phase can tell at most {most} groups apart",
                        where=where, remedy="Take a column of fewer labels, or more rollouts: two per group at least.")
    return labels


def places_of(rollout: Rollout, level: str) -> Tensor:
    """The column of each row in which the head reads the critic: the last response token, or the last of the prompt."""
    mask = rollout.tokens.response_mask
    positions = torch.arange(mask.shape[1], device=mask.device)
    if level == "prompt":
        return torch.where(mask, positions, mask.shape[1]).min(1).values - 1
    return torch.where(mask, positions, -1).max(1).values


def with_places(rollout: Rollout, groups: Groups) -> Rollout:
    """The rollout with the columns in which the critic is read, where a head reads it."""
    return rollout if groups.head is None else replace(rollout, places=places_of(rollout, groups.cfg.level))
