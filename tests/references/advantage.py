"""Credit for one response, given as plain lists without padding."""

import statistics


def deltas(rewards: list[float], values: list[float], gamma: float) -> list[float]:
    """Temporal-difference errors; the state after the last token is worth nothing."""
    after = [*values, 0.0]
    return [rewards[t] + gamma * after[t + 1] - values[t] for t in range(len(rewards))]


def gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum over l of (gamma lam)^l delta_{t+l}: Eq. 16 of arXiv:1506.02438 as printed, every term of it."""
    errors = deltas(rewards, values, gamma)
    return [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(errors))) for t in range(len(errors))]


def discounted_returns(rewards: list[float], gamma: float) -> list[float]:
    """sum over l of gamma^l r_{t+l}; what GAE's returns become at lam = 1."""
    return [sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]


def process_scores(
    seen: list[float], scores: list[float], *, center: bool, scale: bool, clip: float | None, min_std: float,
) -> list[float]:
    """Scores against everything seen, themselves included; the sample standard deviation divides by n - 1."""
    mean = statistics.fmean(seen)
    std = max(statistics.stdev(seen), min_std) if len(seen) > 1 else 1.0
    processed = [(score - (mean if center else 0.0)) / (std if scale else 1.0) for score in scores]
    return processed if clip is None else [max(-clip, min(clip, score)) for score in processed]


def token_rewards(score: float, kl: list[float], kl_coef: float) -> list[float]:
    """The price of drift on each token, and the score added to the last one."""
    paid = [-kl_coef * nats for nats in kl]
    if paid:
        paid[-1] += score
    return paid
