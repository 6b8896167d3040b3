"""PPO's terms for one token at a time, with their derivatives by hand; and drift by enumerating a vocabulary."""

import math


def clipped_surrogate(logprob: float, old: float, advantage: float, clip: float | None) -> tuple[float, float]:
    """Loss and its derivative by `logprob`.

    d ratio / d logprob = ratio, so the unclipped branch has slope -ratio A and the clipped one is flat.
    """
    ratio = math.exp(logprob - old)
    if clip is None:
        return -ratio * advantage, -ratio * advantage
    bounded = min(max(ratio, 1 - clip), 1 + clip)
    stopped = (advantage > 0 and ratio > 1 + clip) or (advantage < 0 and ratio < 1 - clip)
    return (-bounded * advantage, 0.0) if stopped else (-ratio * advantage, -ratio * advantage)


def penalised_surrogate(logprob: float, old: float, advantage: float, coef: float) -> tuple[float, float]:
    """-r A + coef (r - 1 - log r) and its derivative by `logprob`, in which r has slope r and log r slope 1."""
    ratio = math.exp(logprob - old)
    return -ratio * advantage + coef * (ratio - 1 - math.log(ratio)), -ratio * advantage + coef * (ratio - 1)


def entropy_loss(mean: float, mode: str, target: float | None) -> tuple[float, float]:
    """The loss of a minibatch with that mean entropy, and its derivative by the mean: section 7 of the spec."""
    if mode == "bonus":
        return -mean, -1.0
    if mode == "floor":
        return max(target - mean, 0.0), -1.0 if mean < target else 0.0
    return abs(mean - target), -1.0 if mean < target else 1.0


def clipped_value_loss(value: float, old: float, target: float, clip: float | None) -> tuple[float, float]:
    """Loss and its derivative by `value`: the plain branch has slope V - R, a value held at the bound has none."""
    plain = 0.5 * (value - target) ** 2
    if clip is None or abs(value - old) <= clip:
        return plain, value - target
    held = old + math.copysign(clip, value - old)
    bounded = 0.5 * (held - target) ** 2
    return (bounded, 0.0) if bounded > plain else (plain, value - target)


def k1(logprob: float, ref: float) -> float:
    """-log r, where r = q / p and the token came from p."""
    return -math.log(math.exp(ref - logprob))


def k2(logprob: float, ref: float) -> float:
    """(log r)^2 / 2."""
    return 0.5 * math.log(math.exp(ref - logprob)) ** 2


def k3(logprob: float, ref: float) -> float:
    """(r - 1) - log r."""
    r = math.exp(ref - logprob)
    return r - 1 - math.log(r)


def full_kl(p: list[float], q: list[float]) -> float:
    """KL(p || q) over the whole vocabulary, in nats."""
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def kl_gradient(p: list[float], q: list[float]) -> list[float]:
    """d KL(p || q) / d logits of p: p_i (log(p_i / q_i) - KL(p || q)), for d p_j / d logit_i = p_j ([i = j] - p_i)."""
    kl = full_kl(p, q)
    return [a * (math.log(a / b) - kl) for a, b in zip(p, q, strict=True)]


def backward_kl_gradient(p: list[float], q: list[float]) -> list[float]:
    """d KL(q || p) / d logits of p: p_i - q_i, that of the cross-entropy of p on tokens of q."""
    return [a - b for a, b in zip(p, q, strict=True)]


def expectation(p: list[float], values: list[float]) -> float:
    """Mean of a per-token value when tokens come from p, by enumeration."""
    return math.fsum(a * value for a, value in zip(p, values, strict=True))
