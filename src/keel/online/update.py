"""The update: every pass over a phase's responses, and the one optimiser step of each model per minibatch."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from keel.batches import Rollout, TokenBatch
from keel.functional.invariance import ratio_variance
from keel.functional.masked import loss_weights, masked_sum, row_sums, weighted_sum
from keel.functional.policy import clipped_value_loss, nll
from keel.models.actors import Actors
from keel.models.forward import token_kl, token_logprobs, values_and_states
from keel.online.held import NOTHING, Held
from keel.online.memory import Memory, Phase
from keel.online.settings import OnlineConfig
from keel.online.setup import Setup
from keel.rollout.credit import minibatch_advantages
from keel.rollout.measure import KL, parts_of
from keel.train.inputs import mixed_in
from keel.train.objective import policy_loss
from keel.train.order import minibatch
from keel.train.step import joint_norm, require_finite
from keel.train.tally import Tally

__all__ = ["learned", "policy_gradients", "update", "value_gradients"]


def learned(setup: Setup, rollout: Rollout, memory: Memory, phase: Phase) -> dict[str, Any]:
    """Learn from a phase: several passes over its responses, each in minibatches. What it measured on the way."""
    cfg, tally, metrics = setup.cfg, Tally(), {"update/steps": 0.0}
    for k in range(cfg.updates):
        index = minibatch(cfg.rollouts, cfg.minibatch, k, seed=cfg.seed, step=phase.step)
        part = minibatch_advantages(rollout.rows(index), cfg.advantage)
        told = [] if phase.pretraining else mixed_in(
            setup.mix, cfg.ptx_batch, number=(phase.shown - 1) * cfg.updates + k + 1, seed=cfg.seed,
            pad_id=setup.words.pad_id, micro_tokens=cfg.micro_tokens, device=part.tokens.ids.device)
        counts = phase.numbers(cfg, k)
        with setup.axis.within():
            done = update(setup, part, told, counts, tally, memory)
        if done is None:
            break
        metrics |= done | {"update/steps": metrics["update/steps"] + bool(done)}
    return metrics | tally.means()


def update(setup: Setup, part: Rollout, mix: list[TokenBatch], counts: dict[str, int], tally: Tally, memory: Memory,
           ) -> dict[str, float] | None:
    """One optimiser step of each model in `counts`; none where the policy has moved too far to take it."""
    cfg, models, learners = setup.cfg, setup.models, setup.learners
    ids, done = part.tokens.record_ids, dict[str, float]()
    if not bool(part.counted.any()):
        return done
    if "critic" in counts:
        value_gradients(models.critic, part, counts["critic"], cfg, tally)
    if "policy" in counts:
        part = with_ratio_pull(models.policy, part, counts["policy"], cfg)
        kl_old, gap = policy_gradients(models, part, mix, counts["policy"], memory["kl_coef"], cfg, tally,
                                       setup.holds)
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
                     cfg: OnlineConfig, tally: Tally, holds: Held = NOTHING) -> tuple[Tensor, Tensor | None]:
    """Gradients of everything that the policy minimises, summed before its one step.

    The first minibatch of a phase is fresh: nothing was learned since it was sampled, so its old log-probabilities
    are this very forward pass's, and its ratio is exactly 1. Where another policy sampled, none is.

    Returns:
        The distance from the old policy in nats per token, and of a fresh minibatch the largest gap to the sampler's
        own log-probabilities.
    """
    # DEVIATION(ppo-3): the released code recomputes every old log-probability; only a fresh minibatch needs that.
    fresh, temperature = is_fresh(number, cfg), cfg.sampling.logprob_temperature
    total = weights_of(part, cfg).sum()
    mean_entropy = entropy_of(models.policy, part, cfg) if cfg.loss.entropy in ("floor", "target") else None
    gap, kl_old = torch.zeros((), device=total.device), torch.zeros((), device=total.device)
    for micro in (part.rows(index) for index in parts_of(part, cfg.micro_tokens)):
        weights = weights_of(micro, cfg)
        with holds.passing(models.policy):
            logprobs, entropy = token_logprobs(models.policy, micro.tokens, temperature=temperature, with_entropy=True)
        loss, stats = policy_loss(micro, logprobs, entropy, mean_entropy, fresh=fresh, cfg=cfg.loss)
        if cfg.kl.within == "loss":
            drift = (token_kl(models.policy, models.reference, micro.tokens, temperature=temperature)
                     if cfg.kl.estimator == "full" else KL[cfg.kl.estimator](logprobs, micro.ref_logprobs))
            price = kl_coef if micro.kl_coefs is None else micro.kl_coefs[:, None]
            loss, stats = loss + price * drift, stats | {"loss/kl": drift}
        objective = weighted_sum(loss, weights) / total + holds.cost(micro.tokens, weights, total, tally)
        if micro.ratio_pull is not None:
            pulled = micro.ratio_pull * row_sums(logprobs, micro.tokens.response_mask)
            objective = objective + pulled.sum() * len(part.ended) / total
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


def is_fresh(number: int, cfg: OnlineConfig) -> bool:
    """Whether nothing was learned since this step's responses were sampled, by the policy that learns."""
    return (number - 1) % cfg.updates == 0 and not cfg.samples_otherwise


def value_gradients(critic: nn.Module | None, part: Rollout, number: int, cfg: OnlineConfig, tally: Tally) -> None:
    """Gradients of the critic's loss on one minibatch."""
    total = weights_of(part, cfg).sum()
    for micro in (part.rows(index) for index in parts_of(part, cfg.micro_tokens)):
        weights = weights_of(micro, cfg)
        values, states = values_and_states(critic, micro.tokens, None if micro.state_pull is None else micro.places)
        loss, stats = clipped_value_loss(values, micro.values, micro.returns, micro.tokens.response_mask,
                                         clip=cfg.loss.value_clip)
        objective = cfg.loss.value_coef * weighted_sum(loss, weights) / total
        if states is not None:  # a minibatch's share of an objective of the whole phase
            objective = objective + (micro.state_pull * states).sum() * cfg.rollouts / len(part.ended)
        require_finite(objective.detach(), "loss/value", number, micro.tokens.record_ids)
        objective.backward()
        tally.add({"loss/value": loss} | stats, weights)


def weights_of(rows: Rollout, cfg: OnlineConfig) -> Tensor:
    """What each token of these rows weighs in the losses."""
    return loss_weights(rows.tokens.response_mask, rows.counted, reduction=cfg.loss.reduction)


@torch.no_grad()
def entropy_of(policy: nn.Module, part: Rollout, cfg: OnlineConfig) -> Tensor:
    """Mean entropy over a minibatch, before its micro-batches: on which side of the target the whole of it lies."""
    summed = [weighted_sum(token_logprobs(policy, micro.tokens, temperature=cfg.sampling.logprob_temperature,
                                          with_entropy=True)[1], weights_of(micro, cfg))
              for micro in (part.rows(index) for index in parts_of(part, cfg.micro_tokens))]
    return torch.stack(summed).sum() / weights_of(part, cfg).sum()


@torch.no_grad()
def with_ratio_pull(policy: nn.Module, part: Rollout, number: int, cfg: OnlineConfig) -> Rollout:
    """A minibatch with the gradient of its variance of group returns in each response's log-ratio, where that is how
    the variance acts. One more forward pass, but for the first minibatch, whose ratios are all 1."""
    if not part.ratio_coef:
        return part
    log_ratios = torch.zeros_like(part.group_returns)
    if not is_fresh(number, cfg):
        for index in parts_of(part, cfg.micro_tokens):
            micro = part.rows(index)
            logprobs = token_logprobs(policy, micro.tokens, temperature=cfg.sampling.logprob_temperature)[0]
            log_ratios[torch.tensor(index)] = row_sums(logprobs - micro.logprobs, micro.tokens.response_mask)
    with torch.enable_grad():
        log_ratios.requires_grad_()
        variance = part.ratio_coef * ratio_variance(part.memberships, part.group_returns, log_ratios)
        return replace(part, ratio_pull=torch.autograd.grad(variance, log_ratios)[0])
