"""Offline policy gradient on fixed responses: the whole response is one action, weighted by what it is worth.

S is the log-probability of a response under the policy being trained, Q under the frozen reference, both sums over its
tokens; with `length_norm` means. A weight is a reward R or a clipped advantage A+ = max(R - V, 0), a constant of the
data. One value per response.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from keel.functional.masked import Stats, wide
from keel.functional.policy import kl_k3

__all__ = ["a_lol", "a_lol_kl", "a_lol_seq", "pro", "reward_gold", "weighted_nll"]


def weighted_nll(
    logprobs: Float[Tensor, "B T"], weight: Float[Tensor, " B"], response_mask: Bool[Tensor, "B T"], *,
    length_norm: bool = False,
) -> Float[Tensor, " B"]:
    """-w S: with w = 1 NLL, with w = R weighted behaviour cloning, with w = A+ A-LoL without a reference.

    Source: Baheti et al. 2024, arXiv:2305.14718 (NLL, weighted BC, A-LoL ref-free), and its code.

    Args:
        logprobs: nats, under the policy being trained; they alone receive gradient.
        weight: w, 0 or more; below 0 the loss has no lower bound.
        response_mask: True on the tokens of the response, its end included.
        length_norm: divide S by the number of tokens.
    """
    return -weight.detach() * _of_responses(logprobs, response_mask, length_norm)


def reward_gold(
    logprobs: Float[Tensor, "B T"], weight: Float[Tensor, " B"], response_mask: Bool[Tensor, "B T"], *,
    floor: float = 0.1, length_norm: bool = False,
) -> Float[Tensor, " B"]:
    """R-GOLD: every token weighs what the policy itself gives it now, at least `floor`.

        loss = -R sum_t max(floor, e^l_t) l_t,    the weight without gradient

    Source: Baheti et al. 2024, arXiv:2305.14718 (R-GOLD), after Pang and He 2021, arXiv:2009.07839 (GOLD).

    Args:
        logprobs, weight, response_mask, length_norm: see `weighted_nll`.
        floor: least weight of a token, in [0, 1].
    Raises:
        ValueError: floor is out of range.
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor} is no probability: R-GOLD's usual value is 0.1")
    found = _masked(logprobs, response_mask)
    share = found.detach().exp().clamp(floor, 1.0)
    return -weight.detach() * _of_responses(share * found, response_mask, length_norm)


def a_lol(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], weight: Float[Tensor, " B"],
    response_mask: Bool[Tensor, "B T"], *, clip: float | None = 0.9, length_norm: bool = False,
) -> tuple[Float[Tensor, " B"], Stats]:
    """A-LoL, or with w = R R-LoL: one importance weight per response, without gradient.

        loss = -w rho S,    rho = clamp(e^(S - Q), 1 - clip, 1 + clip)

    Not PPO's clipping: outside the band the gradient does not vanish, the response weighs 1 - clip or 1 + clip.

    Source: Baheti et al. 2024, arXiv:2305.14718 (A-LoL, R-LoL), and its code.

    Args:
        logprobs, weight, response_mask, length_norm: see `weighted_nll`.
        ref_logprobs: nats, under the reference.
        clip: half-width of the band of the ratio, from 1 on without a lower end; none: no band, but the logarithm of
            the ratio is held at 20, as in `clipped_surrogate`, where it would soon overflow.
    Returns:
        The loss; and per response `ratio` (clipped), `ratio/below` and `ratio/above` (1 where it was cut), `shift`
        (S - Q in nats).
    Raises:
        ValueError: clip is not positive.
    """
    sums = _of_responses(logprobs, response_mask, length_norm)
    shift = sums.detach() - _of_responses(ref_logprobs.detach(), response_mask, length_norm)
    ratio, stats = _ratio(shift, clip)
    return -weight.detach() * ratio * sums, stats | {"shift": shift}


def a_lol_seq(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], weight: Float[Tensor, " B"],
    response_mask: Bool[Tensor, "B T"], *, clip: float | None = 0.9, length_norm: bool = False,
) -> tuple[Float[Tensor, " B"], Stats]:
    """A-LoL sequence: one importance weight per token, without gradient. An approximation of `a_lol`.

        loss = -w sum_t rho_t l_t,    rho_t = clamp(e^(l_t - q_t), 1 - clip, 1 + clip)

    Source: Baheti et al. 2024, arXiv:2305.14718 (A-LoL sequence), and its code.

    Args:
        logprobs, ref_logprobs, weight, response_mask, clip, length_norm: see `a_lol`.
    Returns:
        The loss; and per response the means over its tokens of `ratio`, `ratio/below` and `ratio/above`, and `shift`
        (S - Q in nats).
    Raises:
        ValueError: clip is not positive.
    """
    found = _masked(logprobs, response_mask)
    shift = found.detach() - _masked(ref_logprobs.detach(), response_mask)
    ratio, stats = _ratio(shift, clip)
    loss = -weight.detach() * _of_responses(ratio * found, response_mask, length_norm)
    stats = {name: _of_responses(x, response_mask, True) for name, x in stats.items()}
    return loss, stats | {"shift": _of_responses(shift, response_mask, length_norm)}


def a_lol_kl(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], weight: Float[Tensor, " B"],
    response_mask: Bool[Tensor, "B T"], *, coef: float, term: str = "difference", length_norm: bool = False,
) -> tuple[Float[Tensor, " B"], Stats]:
    """A-LoL KL, or with w = R R-LoL KL: no importance weight, and a term that shall hold the policy back.

        loss = -w S + coef * term

        difference: S - Q, the released code. On data its gradient is that of S: it takes coef off every weight, and
                    pushes a response with w < coef down without bound.
        quotient:   S / Q, the paper's equation as a ratio of logarithms. Both are negative, so that it adds
                    coef / |Q| to every weight.
        k3:         sum_t e^(q_t - l_t) - 1 - (q_t - l_t), at its least where the policy gives the data what the
                    reference gives them; see `kl_k3`, which holds a token's log-ratio within 20.

    Source: Baheti et al. 2024, arXiv:2305.14718 (A-LoL KL) and its code (difference); Schulman 2020, "Approximating KL
    divergence" (k3).

    Args:
        logprobs, ref_logprobs, weight, response_mask, length_norm: see `a_lol`.
        coef: weight of the term, 0 or more.
        term: one of the three.
    Returns:
        The loss; and per response `kl` (the term) and `shift` (S - Q in nats).
    Raises:
        ValueError: coef is negative or the term has another name.
    """
    if coef < 0:
        raise ValueError(f"coef={coef} would pay the policy for leaving the reference; give 0 or more")
    found, ref = _masked(logprobs, response_mask), _masked(ref_logprobs.detach(), response_mask)
    sums, ref_sums = (_of_responses(x, response_mask, length_norm) for x in (found, ref))
    if term == "difference":
        kl = sums - ref_sums
    elif term == "quotient":
        # Certain under the reference: there is no ratio, and nothing to learn.
        sure = ref_sums == 0
        kl = torch.where(sure, 0.0, sums / torch.where(sure, 1.0, ref_sums))
    elif term == "k3":
        kl = _of_responses(kl_k3(found, ref), response_mask, length_norm)
    else:
        raise ValueError(f"term={term!r} is not one of difference, quotient, k3")
    return -weight.detach() * sums + coef * kl, {"kl": kl.detach(), "shift": sums.detach() - ref_sums}


def pro(
    mean_logprobs: Float[Tensor, "B N"], best_logprobs: Float[Tensor, " B"], rewards: Float[Tensor, "B N"],
    present: Bool[Tensor, "B N"], *, sft_coef: float = 0.05,
) -> tuple[Float[Tensor, " B"], Stats]:
    """Preference ranking optimisation over the responses to one prompt, the best first. One value per prompt.

        loss = sum_{k < K} [ log( e^(s_k T_k) + sum_{j > k} e^(s_j T_kj) ) - s_k T_k ] - sft_coef (K - 1)^2 S_1

    with T_kj = r_k - r_j, T_k = max_{j > k} T_kj and s the mean, S the summed log-probability of a response.

    DEVIATION(offline_pg-1): no 1e-10 inside the logarithm; logsumexp needs none.

    Source: Song et al. 2024, arXiv:2306.17492 (PRO), and its code.

    Args:
        mean_logprobs: s, nats per token under the policy being trained; they and best_logprobs receive gradient.
        best_logprobs: S of the best response, nats.
        rewards: r, constants.
        present: True where a prompt has a response at that place; on the left.
        sft_coef: weight of the cross-entropy of the best response, 0 or more.
    Returns:
        The loss; and per prompt `rank` (its first part) and `sft` (-S_1).
    Raises:
        ValueError: sft_coef is negative.
    """
    if sft_coef < 0:
        raise ValueError(f"sft_coef={sft_coef} would unlearn the best response; give 0 or more")
    s = torch.where(present, wide(mean_logprobs), 0.0)
    r = wide(rewards.detach())  # has no gradient: what is absent is in no gap that counts
    gaps = r[:, :, None] - r[:, None, :]
    later = present[:, None, :] & _above_diagonal(present)
    own = s * torch.where(later, gaps, -math.inf).amax(2).where(later.any(2), 0.0)
    # A place without a later one is left with log e^0 - 0: nothing, and no gradient.
    others = torch.where(later, s[:, None, :] * torch.where(later, gaps, 0.0), -math.inf)
    whole = torch.logsumexp(torch.cat([own[:, :, None], others], 2), 2)
    rank = (whole - own).sum(1)
    sft = torch.where(present[:, 0], -wide(best_logprobs), 0.0)
    # The coefficient times the counts alone would be rounded to float32.
    return rank + sft_coef * ((present.sum(1) - 1) ** 2 * sft), {"rank": rank.detach(), "sft": sft.detach()}


def _above_diagonal(present: Tensor) -> Tensor:
    n = present.shape[1]
    return torch.ones(n, n, dtype=torch.bool, device=present.device).triu(1)


def _masked(logprobs: Tensor, response_mask: Tensor) -> Tensor:
    return torch.where(response_mask, wide(logprobs), 0.0)


def _of_responses(x: Tensor, response_mask: Tensor, length_norm: bool) -> Tensor:
    """Sum over the tokens of each response, or their mean; 0 for a response without any."""
    sums = _masked(x, response_mask).sum(1)
    return sums / response_mask.sum(1).clamp_min(1) if length_norm else sums


def _ratio(shift: Tensor, clip: float | None) -> tuple[Tensor, Stats]:
    """The clipped ratio, bounded before exp() so that nothing overflows, and 0 times it is 0."""
    if clip is not None and clip <= 0:
        raise ValueError(f"clip={clip} leaves no band around a ratio of 1; none switches clipping off")
    low = -math.inf if clip is None or clip >= 1 else math.log1p(-clip)
    high = 20.0 if clip is None else math.log1p(clip)
    ratio = shift.clamp(low, high).exp()
    return ratio, {"ratio": ratio, "ratio/below": (shift < low).to(ratio.dtype),
                   "ratio/above": (shift > high).to(ratio.dtype)}
