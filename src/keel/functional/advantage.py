"""From one score per response to one advantage per token."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from keel.functional.masked import Moments, wide

__all__ = ["gae", "process_scores", "token_rewards"]


def process_scores(
    scores: Float[Tensor, " B"], moments: Moments, *, center: bool, scale: bool, clip: float | None,
    min_std: float = 1e-4,
) -> Float[Tensor, " B"]:
    """Normalise scores by running moments and clip them; each switch acts alone.

        s = clamp((r - mean * center) / (std if scale else 1), -clip, clip),    std = sqrt(M2 / (n - 1))

    Source: arXiv:2307.04964, section 5.2.3, Eq. 17.
    DEVIATION(ppo-1): std is 1 until two scores were seen and never below `min_std`; the released code divides by inf
    after a single score and by 1e-12 when all scores are equal.

    Args:
        scores: raw scores of the reward model.
        moments: count, mean and M2 of every score so far, these included.
        center: subtract the running mean.
        scale: divide by the running standard deviation.
        clip: bound on |s|; none leaves it unbounded.
        min_std: smallest divisor.
    Raises:
        ValueError: clip or min_std is not positive.
    """
    if clip is not None and clip <= 0:
        raise ValueError(f"clip={clip} must be positive; the released code uses 10, none turns it off")
    if min_std <= 0:
        raise ValueError(f"min_std={min_std} must be positive; 1e-4 is usual")
    n, mean, m2 = moments
    std = (m2 / (n - 1)).sqrt().clamp_min(min_std) if n >= 2 else torch.ones_like(n)
    s = scores.detach().to(torch.float64)
    s = s - mean if center else s
    s = s / std if scale else s
    return (s if clip is None else s.clamp(-clip, clip)).to(wide(scores).dtype)


def token_rewards(
    scores: Float[Tensor, " B"], kl: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], *, kl_coef: float,
) -> Float[Tensor, "B T"]:
    """Pay the score on the last response token and charge `kl_coef` per nat on every response token.

        r_t = -kl_coef * kl_t + s [t = last]

    Source: arXiv:2307.04964, Eq. 19, with the score on the last token only as in the released code.
    """
    position = torch.arange(response_mask.shape[1], device=response_mask.device)
    last = torch.where(response_mask, position, -1).max(dim=1, keepdim=True).values
    paid = torch.where(position == last, wide(scores.detach())[:, None], 0.0)
    return paid - kl_coef * torch.where(response_mask, wide(kl.detach()), 0.0)


def gae(
    rewards: Float[Tensor, "B T"], values: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], *,
    gamma: float, lam: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation over the response of each row; the state after its last token is worth 0.

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lam A_{t+1},    R_t = A_t + V_t

    Source: Schulman et al. 2016, arXiv:1506.02438, Eq. 11-16; arXiv:2307.04964, section 3.2.1.

    Args:
        rewards: per token.
        values: value just before each token.
        response_mask: True on response tokens; they are contiguous in each row.
        gamma: discount, 0 < gamma <= 1.
        lam: bias-variance trade-off, 0 <= lam <= 1.
    Returns:
        Advantages and returns, zero outside the mask.
    Raises:
        ValueError: gamma or lam is out of range.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma={gamma} is outside (0, 1]; 1 is usual for responses")
    if not 0 <= lam <= 1:
        raise ValueError(f"lam={lam} is outside [0, 1]; 0.95 is usual")
    r = wide(rewards.detach())
    v = torch.where(response_mask, wide(values.detach()), 0.0)
    ahead_value = ahead_advantage = r.new_zeros(len(r))
    advantages = torch.empty_like(r)
    for t in reversed(range(r.shape[1])):
        step = r[:, t] + gamma * ahead_value - v[:, t] + gamma * lam * ahead_advantage
        ahead_advantage = torch.where(response_mask[:, t], step, 0.0)
        ahead_value = v[:, t]
        advantages[:, t] = ahead_advantage
    return advantages, advantages + v
