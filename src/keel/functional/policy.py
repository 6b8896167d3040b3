"""PPO's losses and the estimators of drift, one value per token."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from keel.functional.masked import Stats, wide

__all__ = ["clipped_surrogate", "clipped_value_loss", "entropy_term", "kl_full", "kl_k1", "kl_k2", "kl_k3", "nll",
           "penalised_surrogate"]


def clipped_surrogate(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"], *, clip: float | None,
) -> tuple[Float[Tensor, "B T"], Stats]:
    """PPO's clipped surrogate, negated so that lower is better; one value per token, zero outside the mask.

        loss_t = -min(r_t A_t, clamp(r_t, 1 - clip, 1 + clip) A_t),    r_t = exp(logprobs_t - old_logprobs_t)

    Source: Schulman et al. 2017, arXiv:1707.06347, Eq. 7; arXiv:2307.04964, Eq. 15.
    DEVIATION(ppo-2): |log ratio| is held at 20, where its gradient is zero, so that no token can overflow.

    Args:
        logprobs: nats, under the policy being trained; the only input that receives gradient.
        old_logprobs: nats, under the policy that wrote the tokens, in the same log-prob convention.
        advantages: whitened by the caller or not; this function does not rescale them.
        response_mask: True where the policy wrote the token.
        clip: half-width of the trust region on the ratio, 0 < clip < 1; none: the unclipped objective.
    Returns:
        The loss per token; and, per token and detached, `policy/clipped` (1 where the clip stops the gradient),
        `policy/kl_old` (nats, k3 of KL(old || new)) and `policy/ratio`.
    Raises:
        ValueError: clip is out of range.
    """
    if clip is not None and not 0 < clip < 1:
        raise ValueError(f"clip={clip} is outside (0, 1); PPO's usual value is 0.2")
    log_ratio = _log_ratio(logprobs, old_logprobs, response_mask)
    ratio, adv = log_ratio.exp(), torch.where(response_mask, wide(advantages.detach()), 0.0)
    unclipped = ratio * adv
    clipped = unclipped if clip is None else ratio.clamp(1 - clip, 1 + clip) * adv
    stats = {"policy/clipped": (clipped < unclipped).to(ratio.dtype)} | _ratio_stats(log_ratio, response_mask)
    return -torch.minimum(unclipped, clipped), stats


def penalised_surrogate(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"], *, old_kl_coef: float,
) -> tuple[Float[Tensor, "B T"], Stats]:
    """PPO's penalty objective, negated: no clip, a price on the distance to the policy that sampled.

        loss_t = -r_t A_t + old_kl_coef (r_t - 1 - log r_t),    r_t = exp(logprobs_t - old_logprobs_t)

    Over tokens drawn from the old policy the bracket has the mean KL(old || new), and its gradient the mean of that
    KL's gradient. |log ratio| is held at 20 as in `clipped_surrogate`.

    Source: Schulman et al. 2017, arXiv:1707.06347, Eq. 8; arXiv:2307.04964, Eq. 14.

    Args:
        logprobs: nats, under the policy being trained; the only input that receives gradient.
        old_logprobs: nats, under the policy that wrote the tokens.
        advantages: as they are.
        response_mask: True where the policy wrote the token.
        old_kl_coef: price per nat, >= 0.
    Returns:
        The loss per token, zero outside the mask; `policy/kl_old` and `policy/ratio` as in `clipped_surrogate`.
    Raises:
        ValueError: old_kl_coef is negative.
    """
    if old_kl_coef < 0:
        raise ValueError(f"old_kl_coef={old_kl_coef} is negative: it would pay for leaving the old policy")
    log_ratio = _log_ratio(logprobs, old_logprobs, response_mask)
    adv = torch.where(response_mask, wide(advantages.detach()), 0.0)
    penalty = old_kl_coef * (torch.expm1(log_ratio) - log_ratio)
    return penalty - log_ratio.exp() * adv, _ratio_stats(log_ratio, response_mask)


def _log_ratio(logprobs: Tensor, old_logprobs: Tensor, response_mask: Tensor) -> Tensor:
    # Outside the mask both inputs are undefined; a zero log-ratio keeps exp() and its gradient finite there.
    return torch.where(response_mask, wide(logprobs) - wide(old_logprobs.detach()), 0.0).clamp(-20.0, 20.0)


def _ratio_stats(log_ratio: Tensor, response_mask: Tensor) -> Stats:
    log_ratio = log_ratio.detach()
    # The tokens were drawn from the old policy, so k3 estimates KL(old || new): ratio - 1 - log ratio.
    return {"policy/kl_old": kl_k3(torch.zeros_like(log_ratio), log_ratio),
            "policy/ratio": torch.where(response_mask, log_ratio.exp(), 0.0)}


def clipped_value_loss(
    values: Float[Tensor, "B T"], old_values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"], *, clip: float | None,
) -> tuple[Float[Tensor, "B T"], Stats]:
    """Half the squared error of the critic, pessimistic about moves further than `clip` from its old values.

        loss_t = max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2) / 2

    Source: arXiv:2307.04964, section 5 (value function loss clipping); none: plain squared error.

    Args:
        values: critic being trained; the only input that receives gradient.
        old_values: critic at rollout time.
        returns: targets, from `gae`.
        response_mask: True on response tokens.
        clip: half-width around the old value, > 0; none: unclipped.
    Returns:
        The loss per token, zero outside the mask; and `value/clipped` (1 where the clipped branch is the larger).
    Raises:
        ValueError: clip is not positive.
    """
    if clip is not None and clip <= 0:
        raise ValueError(f"clip={clip} must be positive; 0.2 is usual, none turns it off")
    v = torch.where(response_mask, wide(values), 0.0)
    old = torch.where(response_mask, wide(old_values.detach()), 0.0)
    target = torch.where(response_mask, wide(returns.detach()), 0.0)
    plain = (v - target).square()
    bounded = plain if clip is None else (torch.clamp(v, old - clip, old + clip) - target).square()
    return 0.5 * torch.maximum(plain, bounded), {"value/clipped": (bounded > plain).to(v.dtype)}


def entropy_term(
    entropy: Float[Tensor, "B T"], mean_entropy: Float[Tensor, ""], *, mode: str, target: float | None = None,
) -> Float[Tensor, "B T"]:
    """One value per token whose mean over the minibatch is the entropy loss, lower is better.

        bonus   -H            floor   relu(target - H)            target   |H - target|,        H: mean token entropy

    Source: arXiv:2307.04964, section 5 (entropy bonus, clipped or not); the forms: section 7 of our spec.

    Args:
        entropy: nats, of each next-token distribution; receives gradient.
        mean_entropy: H over the whole minibatch, of which `entropy` may be a part; no gradient.
        mode: "bonus", "floor" or "target".
        target: nats, for floor and target.
    Raises:
        ValueError: another mode, or a target missing or not needed.
    """
    if mode not in ("bonus", "floor", "target"):
        raise ValueError(f"mode={mode!r} is none of 'bonus', 'floor', 'target'")
    if (target is None) != (mode == "bonus"):
        raise ValueError(f"mode={mode!r} and target={target} do not go together: floor and target need one")
    if target is None:
        return -wide(entropy)
    side = torch.sign(mean_entropy.detach() - target)
    return (side.clamp_max(0.0) if mode == "floor" else side) * (wide(entropy) - target)


def kl_k1(logprobs: Float[Tensor, "*S"], ref_logprobs: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """log p - log q of a token drawn from p, in nats: unbiased for KL(p || q), can be negative for a single token.

    As a loss, its gradient has mean zero: use k2 or the full KL there. The reference receives no gradient.
    Source: Schulman 2020, "Approximating KL divergence", k1; arXiv:2307.04964, Eq. 19.
    """
    return wide(logprobs) - wide(ref_logprobs.detach())


def kl_k2(logprobs: Float[Tensor, "*S"], ref_logprobs: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Half the squared log-ratio, in nats: never negative, biased; its gradient is that of KL(p || q) on average.

    Source: Schulman 2020, k2.
    """
    return 0.5 * kl_k1(logprobs, ref_logprobs).square()


def kl_k3(logprobs: Float[Tensor, "*S"], ref_logprobs: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """exp(-k1) - 1 + k1, in nats: never negative and unbiased. Source: Schulman 2020, k3; arXiv:2402.03300, Eq. 4.

    As a loss, its gradient is on average that of KL(q || p), the other direction. The log-ratio is held at +-20, where
    exp() would begin to dominate every mean.
    """
    k1 = kl_k1(logprobs, ref_logprobs).clamp(-20.0, 20.0)
    return torch.expm1(-k1) + k1


def kl_full(logits: Float[Tensor, "N V"], ref_logits: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """KL(p || q) of two next-token distributions over the whole vocabulary, in nats; the reference gets no gradient.

    Source: Kullback and Leibler 1951, section 2; arXiv:2307.04964, Eq. 3 (the KL that k1 estimates).
    """
    logp, logq = wide(logits).log_softmax(-1), wide(ref_logits.detach()).log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


def nll(logprobs: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Cross-entropy of each response token in nats, zero outside the mask.

    Source: arXiv:2307.04964, Eq. 2 (LM term).
    """
    return torch.where(response_mask, -wide(logprobs), 0.0)
