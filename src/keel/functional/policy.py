"""PPO's losses and the estimators of drift, one value per token."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from keel.functional.masked import Stats, wide

__all__ = ["clipped_surrogate", "clipped_value_loss", "kl_k1", "kl_k2", "kl_k3", "nll"]


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
    # Outside the mask both inputs are undefined; a zero log-ratio keeps exp() and its gradient finite there.
    log_ratio = torch.where(response_mask, wide(logprobs) - wide(old_logprobs.detach()), 0.0).clamp(-20.0, 20.0)
    ratio, adv = log_ratio.exp(), torch.where(response_mask, wide(advantages.detach()), 0.0)
    unclipped = ratio * adv
    clipped = unclipped if clip is None else ratio.clamp(1 - clip, 1 + clip) * adv
    stats = {
        "policy/clipped": (clipped < unclipped).to(ratio.dtype),
        # The tokens were drawn from the old policy, so k3 estimates KL(old || new): ratio - 1 - log ratio.
        "policy/kl_old": kl_k3(torch.zeros_like(log_ratio), log_ratio),
        "policy/ratio": torch.where(response_mask, ratio.detach(), 0.0),
    }
    return -torch.minimum(unclipped, clipped), stats


def clipped_value_loss(
    values: Float[Tensor, "B T"], old_values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"], *, clip: float | None,
) -> tuple[Float[Tensor, "B T"], Stats]:
    """Half the squared error of the critic, pessimistic about moves further than `clip` from its old values.

        loss_t = max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2) / 2

    Source: arXiv:2307.04964, section 5.2.3 (value function clipping); none: plain squared error.

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


def kl_k1(logprobs: Float[Tensor, "*S"], ref_logprobs: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """log p - log q of a token drawn from p, in nats: unbiased for KL(p || q), can be negative for a single token.

    Source: Schulman 2020, "Approximating KL divergence", k1; arXiv:2307.04964, Eq. 19.
    """
    return wide(logprobs.detach()) - wide(ref_logprobs.detach())


def kl_k2(logprobs: Float[Tensor, "*S"], ref_logprobs: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Half the squared log-ratio, in nats: never negative, biased. Source: Schulman 2020, k2."""
    return 0.5 * kl_k1(logprobs, ref_logprobs).square()


def kl_k3(logprobs: Float[Tensor, "*S"], ref_logprobs: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """exp(-k1) - 1 + k1, in nats: never negative and unbiased. Source: Schulman 2020, k3.

    The log-ratio is held at +-20, where exp() would begin to dominate every mean.
    """
    k1 = kl_k1(logprobs, ref_logprobs).clamp(-20.0, 20.0)
    return torch.expm1(-k1) + k1


def nll(logprobs: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Cross-entropy of each response token in nats, zero outside the mask.

    Source: arXiv:2307.04964, Eq. 2 (LM term).
    """
    return torch.where(response_mask, -wide(logprobs), 0.0)
