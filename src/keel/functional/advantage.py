"""From one score per response to one advantage per token."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from keel.functional.masked import Moments, whiten, wide

__all__ = ["adapted_kl_coef", "cut_scores", "gae", "group_sum", "grpo", "process_scores", "reinforce_plus_plus",
           "rloo", "rolling_sums", "shaped_advantages", "token_rewards"]


def process_scores(
    scores: Float[Tensor, " B"], moments: Moments, *, center: bool, scale: bool, clip: float | None,
    min_std: float = 1e-4, spread: Moments | None = None,
) -> Float[Tensor, " B"]:
    """Normalise scores by running moments and clip them; each switch acts alone.

        s = clamp((r - mean * center) / (std if scale else 1), -clip, clip),    std = sqrt(M2 / (n - 1))

    Source: arXiv:2307.04964, Eq. 17.
    DEVIATION(ppo-1): std is 1 until two scores were seen and never below `min_std`; the released code divides by inf
    after a single score and by 1e-12 when all scores are equal.

    Args:
        scores: raw scores of the reward model.
        moments: count, mean and M2 of every score so far, these included.
        center: subtract the running mean.
        scale: divide by the running standard deviation.
        clip: bound on |s|; none leaves it unbounded.
        min_std: smallest divisor.
        spread: moments whose standard deviation divides, where they are not those of the scores (see `rolling_sums`).
    Raises:
        ValueError: clip or min_std is not positive.
    """
    if clip is not None and clip <= 0:
        raise ValueError(f"clip={clip} must be positive; the released code uses 10, none turns it off")
    if min_std <= 0:
        raise ValueError(f"min_std={min_std} must be positive; 1e-4 is usual")
    mean = moments[1]
    n, _, m2 = moments if spread is None else spread
    std = (m2 / (n - 1)).sqrt().clamp_min(min_std) if n >= 2 else torch.ones_like(n)
    s = scores.detach().to(torch.float64)
    s = s - mean if center else s
    s = s / std if scale else s
    return (s if clip is None else s.clamp(-clip, clip)).to(wide(scores).dtype)


def rolling_sums(
    rewards: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], *, gamma: float,
) -> Float[Tensor, "B T"]:
    """R_t = gamma R_{t-1} + r_t along each response, zero outside it: what "reward scaling" divides by the std of.

    Source: Engstrom et al. 2020, arXiv:2005.12729, Algorithm 1; arXiv:2307.04964, section 5 (reward scaling). The
    released code takes the std of raw scores instead.
    """
    r = wide(rewards.detach())
    sums, total = torch.empty_like(r), r.new_zeros(len(r))
    for t in range(r.shape[1]):
        total = torch.where(response_mask[:, t], gamma * total + r[:, t], 0.0)
        sums[:, t] = total
    return sums


def cut_scores(
    scores: Float[Tensor, " B"], ended: Bool[Tensor, " B"], *, how: str, value: float | None = None,
) -> Float[Tensor, " B"]:
    """Scores of responses that were cut at the length limit; those that ended by themselves keep theirs.

        score, mask   as it is            penalty   s - value            constant   value            bootstrap   0

    `bootstrap`: the score is not yet earned; the critic's value of the state after the last token stands in its place
    (see `gae`). Source: section 5, item 4 of our spec of arXiv:2307.04964; the released code knows `score` only.

    Raises:
        ValueError: another way, or a value missing or not needed.
    """
    if how not in ("score", "mask", "penalty", "constant", "bootstrap"):
        raise ValueError(f"how={how!r} is none of 'score', 'mask', 'penalty', 'constant', 'bootstrap'")
    if (value is not None) != (how in ("penalty", "constant")):
        raise ValueError(f"how={how!r} and value={value} do not go together: penalty and constant need one")
    s = wide(scores.detach())
    instead = {"penalty": s - (value or 0.0), "constant": torch.full_like(s, value or 0.0),
               "bootstrap": torch.zeros_like(s)}
    return torch.where(ended, s, instead.get(how, s))


def token_rewards(
    scores: Float[Tensor, " B"], kl: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], *,
    kl_coef: float | Float[Tensor, " B"],
) -> Float[Tensor, "B T"]:
    """Pay the score on the last response token and charge `kl_coef` per nat on every response token.

        r_t = -kl_coef * kl_t + s [t = last]

    Source: arXiv:2307.04964, Eq. 19, with the score on the last token only as in the released code; a price for each
    response: docs/methods/group_ppo.md, Eq. 7.
    """
    position = torch.arange(response_mask.shape[1], device=response_mask.device)
    last = torch.where(response_mask, position, -1).max(dim=1, keepdim=True).values
    paid = torch.where(position == last, wide(scores.detach())[:, None], 0.0)
    price = wide(kl_coef.detach())[:, None] if isinstance(kl_coef, Tensor) else kl_coef
    return paid - price * torch.where(response_mask, wide(kl.detach()), 0.0)


def gae(
    rewards: Float[Tensor, "B T"], values: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], *,
    gamma: float, lam: float, after: Float[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation over the response of each row.

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lam A_{t+1},    R_t = A_t + V_t

    Source: Schulman et al. 2016, arXiv:1506.02438, Eq. 11-16; arXiv:2307.04964, section 3.2.1.

    Args:
        rewards: per token.
        values: value just before each token.
        response_mask: True on response tokens; they are contiguous in each row.
        gamma: discount, 0 < gamma <= 1.
        lam: bias-variance trade-off, 0 <= lam <= 1.
        after: value of the state after the last token of responses that were cut, 0 for the others; none: 0 for all.
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
    ahead_advantage = r.new_zeros(len(r))
    ahead_value = ahead_advantage if after is None else wide(after.detach())
    advantages = torch.empty_like(r)
    for t in reversed(range(r.shape[1])):
        here = response_mask[:, t]
        step = r[:, t] + gamma * ahead_value - v[:, t] + gamma * lam * ahead_advantage
        ahead_advantage = torch.where(here, step, 0.0)
        ahead_value = torch.where(here, v[:, t], ahead_value)
        advantages[:, t] = ahead_advantage
    return advantages, advantages + v


def rloo(
    rewards: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], groups: Int[Tensor, " B"],
) -> Float[Tensor, "B T"]:
    """REINFORCE leave-one-out: a response's reward minus the mean of the other responses to its prompt, on each token.

        A_i = R_i - mean of R_j over j != i in the group,    R_i: sum of its token rewards, KL charge included

    Source: Ahmadian et al. 2024, arXiv:2402.14740, the RLOO estimator; Kool, van Hoof, Welling 2019.

    Args:
        rewards: per token.
        response_mask: True on response tokens.
        groups: rows with the same number answer the same prompt.
    Returns:
        Advantages, zero outside the mask.
    Raises:
        ValueError: a prompt has one response only.
    """
    total, mean, n = _by_group(rewards, response_mask, groups)
    advantage = (total - mean) * n / (n - 1)
    return torch.where(response_mask, advantage[:, None], 0.0)


def grpo(
    rewards: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], groups: Int[Tensor, " B"], *,
    scale: bool = True,
) -> Float[Tensor, "B T"]:
    """Group-relative advantages: rewards normalised among the responses to one prompt, on each token.

        A_i = (R_i - mean of the group) / (std of the group + 1e-4)

    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.2. The paper does not say which std; this is the sample's
    (divisor n - 1), as in the trainers that users compare with. Its KL is part of the loss, not of the rewards.

    Args:
        rewards: per token.
        response_mask: True on response tokens.
        groups: rows with the same number answer the same prompt.
        scale: divide by the std; without it hard and easy prompts weigh by their spread (arXiv:2503.20783).
    Returns:
        Advantages, zero outside the mask.
    Raises:
        ValueError: a prompt has one response only.
    """
    total, mean, n = _by_group(rewards, response_mask, groups)
    gap = total - mean
    variance = group_sum(gap.square(), groups) / (n - 1)
    advantage = gap / (variance.sqrt() + 1e-4) if scale else gap
    return torch.where(response_mask, advantage[:, None], 0.0)


def reinforce_plus_plus(
    rewards: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], *, gamma: float,
) -> Float[Tensor, "B T"]:
    """REINFORCE++: the rewards still to come, normalised over every response token of the rollout.

        A_t = (G_t - mean) / std,    G_t = sum over i >= t of gamma^(i - t) r_i

    Source: Hu et al. 2025, arXiv:2501.03262: score at the end, KL charge on each token, normalisation over the batch
    (its versions number their equations differently).

    Args:
        rewards: per token, KL charge included.
        response_mask: True on response tokens.
        gamma: discount per token, 0 < gamma <= 1; the paper's is 1.
    Returns:
        Advantages, zero outside the mask.
    Raises:
        ValueError: gamma is out of range.
    """
    to_come, _ = gae(rewards, torch.zeros_like(rewards), response_mask, gamma=gamma, lam=1.0)
    return whiten(to_come, response_mask)


def shaped_advantages(
    advantages: Float[Tensor, "B T"], counted: Bool[Tensor, "B T"], *, normalise: bool, clip: float | None,
) -> Float[Tensor, "B T"]:
    """Advantages normalised over the counted tokens (`whiten`), then held within +-clip; each switch acts alone.

    Source: arXiv:2307.04964, section 5 (advantage normalisation and clipping).

    Args:
        advantages: detached here.
        counted: True where a token is part of the loss; advantages elsewhere become 0.
        normalise: to mean 0 and variance 1.
        clip: bound on |A|; none: unbounded.
    Raises:
        ValueError: clip is not positive.
    """
    if clip is not None and clip <= 0:
        raise ValueError(f"clip={clip} of the advantages must be positive; none turns it off")
    a = whiten(advantages, counted) if normalise else torch.where(counted, wide(advantages.detach()), 0.0)
    return a if clip is None else a.clamp(-clip, clip)


def _by_group(rewards: Tensor, response_mask: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: the sum of its rewards, the mean of these sums over its group, and the size of its group."""
    total = torch.where(response_mask, wide(rewards.detach()), 0.0).sum(1)
    n = group_sum(torch.ones_like(total), groups)
    if bool((n < 2).any()):
        raise ValueError("a prompt with a single response has no baseline: sample two or more responses per prompt")
    return total, group_sum(total, groups) / n, n


def group_sum(x: Float[Tensor, " B"], groups: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Of each row: the sum of x over its group. Source: as `rloo` and `grpo`, whose baselines are such sums."""
    # Not index_add_: on a GPU its order of summation, and so the last bit, changes from call to call.
    return torch.where(groups[:, None] == groups, x, 0.0).sum(1)


def adapted_kl_coef(coef: float, kl: float, *, target: float, horizon: int, n_responses: int) -> float:
    """The KL coefficient for the next phase: up where the drift is over its target, down where it is under.

        coef (1 + clip(kl / target - 1, -0.2, 0.2) n_responses / horizon)

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2, with K_beta = n_responses / horizon.

    Args:
        coef: now.
        kl: drift of this phase, in the unit of `target`.
        target: drift wanted, > 0.
        horizon: responses over which an error of 20% changes the coefficient by 20%.
        n_responses: responses of this phase.
    Raises:
        ValueError: target or horizon is not positive, or one phase could make the coefficient negative.
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"target={target} and horizon={horizon} must both be positive")
    if n_responses >= 5 * horizon:
        raise ValueError(f"horizon={horizon} is too short for {n_responses} responses per phase: five horizons or more "
                         "could turn the coefficient negative")
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * n_responses / horizon)
