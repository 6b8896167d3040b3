"""Credit for one response, given as plain lists without padding."""

import math
import statistics


def deltas(rewards: list[float], values: list[float], gamma: float, end: float = 0.0) -> list[float]:
    """Temporal-difference errors; the state after the last token is worth `end`, nothing if the response ended."""
    after = [*values, end]
    return [rewards[t] + gamma * after[t + 1] - values[t] for t in range(len(rewards))]


def gae(rewards: list[float], values: list[float], gamma: float, lam: float, end: float = 0.0) -> list[float]:
    """A_t = sum over l of (gamma lam)^l delta_{t+l}: Eq. 16 of arXiv:1506.02438 as printed, every term of it."""
    errors = deltas(rewards, values, gamma, end)
    return [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(errors))) for t in range(len(errors))]


def discounted_returns(rewards: list[float], gamma: float) -> list[float]:
    """sum over l of gamma^l r_{t+l}; what GAE's returns become at lam = 1."""
    return [sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]


def rolling_sums(rewards: list[float], gamma: float) -> list[float]:
    """R_t = sum over i <= t of gamma^(t - i) r_i: Algorithm 1 of arXiv:2005.12729 (R <- gamma R + r), unrolled."""
    return [sum(gamma ** (t - i) * rewards[i] for i in range(t + 1)) for t in range(len(rewards))]


def cut_score(score: float, ended: bool, how: str, value: float | None) -> float:
    """What one response is paid, by the list in section 5, item 4 of the spec."""
    if not ended and how == "penalty":
        return score - value
    if not ended and how == "constant":
        return value
    return 0.0 if not ended and how == "bootstrap" else score


def rloo(rewards: list[list[float]], groups: list[int]) -> list[float]:
    """R_i - 1/(k-1) sum over j != i of R_j, response by response: arXiv:2402.14740."""
    totals = [math.fsum(row) for row in rewards]
    others = [[totals[j] for j in range(len(totals)) if j != i and groups[j] == groups[i]] for i in range(len(totals))]
    return [total - math.fsum(rest) / len(rest) for total, rest in zip(totals, others, strict=True)]


def grpo(rewards: list[list[float]], groups: list[int], *, scale: bool) -> list[float]:
    """(R_i - mean(R)) / std(R) among the responses to one prompt, 1e-4 beside the std: arXiv:2402.03300, 4.1.2."""
    totals = [math.fsum(row) for row in rewards]
    peers = [[totals[j] for j in range(len(totals)) if groups[j] == groups[i]] for i in range(len(totals))]
    return [(total - statistics.fmean(group)) / (statistics.stdev(group) + 1e-4 if scale else 1.0)
            for total, group in zip(totals, peers, strict=True)]


def kl_coef(coef: float, kl: float, target: float, horizon: int, n_responses: int) -> float:
    """beta (1 + K_beta e), e = clip((KL - target) / target, -0.2, 0.2): arXiv:1909.08593, section 2.2."""
    e = (kl - target) / target
    e = 0.2 if e > 0.2 else -0.2 if e < -0.2 else e
    return coef * (1 + n_responses / horizon * e)


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
