"""Bradley-Terry for one pair, with its derivative by the gap."""

import math


def sigmoid(x: float) -> float:
    """The logistic function, without overflow on either side."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    """log(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def bradley_terry(chosen: float, rejected: float, margin: float, label_prob: float) -> tuple[float, float]:
    """Loss and dl/dd = s(x) - p, where x = d - m; section 2.2 of the reward modelling spec."""
    x = chosen - rejected - margin
    loss = label_prob * softplus(-x) + (1 - label_prob) * softplus(x)
    return loss, sigmoid(x) - label_prob


def centring(chosen: float, rejected: float) -> tuple[float, float]:
    """Squared sum and its derivative by either score."""
    return (chosen + rejected) ** 2, 2 * (chosen + rejected)
