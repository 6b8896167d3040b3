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


def expectation(p: list[float], values: list[float]) -> float:
    """Mean of a per-token value when tokens come from p, by enumeration."""
    return math.fsum(a * value for a, value in zip(p, values, strict=True))
