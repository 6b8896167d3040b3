"""Process supervision over plain lists, one solution or one response at a time."""

import math
import statistics


def loss(logit: float, label: float) -> float:
    """-y log p - (1 - y) log(1 - p) with p = e^x / (1 + e^x): binary cross-entropy as printed."""
    right, wrong = math.exp(logit) / (1 + math.exp(logit)), 1 / (1 + math.exp(logit))
    return -label * math.log(right) - (1 - label) * math.log(wrong)


def score(values: list[float], how: str) -> float:
    """One number for the steps of a solution: arXiv:2305.20050 and the spec of reward modeling, section 9.3."""
    if not values:
        return math.nan
    return {"min": min(values), "product": math.prod(values), "mean": math.fsum(values) / len(values),
            "last": values[-1], "sum": math.fsum(values)}[how]


def payments(values: list[float], credit: str, cap: int | None, bound: float | None) -> list[float]:
    """What each step is paid; those beyond the cap nothing. clip and delta: arXiv:2410.15115."""
    c = values if cap is None else values[:cap]
    ahead = [*c[1:], 0.0]
    lowest = [0.0, *(min(c[: k + 1]) for k in range(len(c)))]
    paid = {"sum": lambda k: c[k], "mean": lambda k: c[k] / len(c), "min": lambda k: lowest[k + 1] - lowest[k],
            "delta": lambda k: c[k] - ahead[k], "clip": lambda k: c[k] - bound if c[k] < bound else 0.0}[credit]
    return [paid(k) for k in range(len(c))] + [0.0] * (len(values) - len(c))


def still_paid(rewards: list[float], ends: list[bool], k: int) -> float:
    """Sum of the rewards of the k-th step, from 0 on, and of all later ones."""
    return math.fsum([r for r, end in zip(rewards, ends, strict=True) if end][k:])


def step_rloo(rewards: list[list[float]], ends: list[list[bool]], groups: list[int]) -> list[list[float]]:
    """G_i,k minus its mean over the other responses to the prompt, where k steps end before the token."""
    out = []
    for i, row in enumerate(rewards):
        others = [j for j in range(len(rewards)) if j != i and groups[j] == groups[i]]
        advantages = []
        for t in range(len(row)):
            k = sum(ends[i][:t])
            baseline = math.fsum(still_paid(rewards[j], ends[j], k) for j in others) / len(others)
            advantages.append(still_paid(row, ends[i], k) - baseline)
        out.append(advantages)
    return out


def step_grpo(
    rewards: list[list[float]], ends: list[list[bool]], groups: list[int], *, scale: bool,
) -> list[list[float]]:
    """(r - mean(R)) / std(R) of each step, then the sum over the steps with end >= t: arXiv:2402.03300, 4.1.3."""
    out = []
    for i, row in enumerate(rewards):
        group = [r for j in range(len(rewards)) if groups[j] == groups[i]
                 for r, end in zip(rewards[j], ends[j], strict=True) if end]
        std = statistics.stdev(group) if len(group) > 1 else 0.0
        parts = [(r - statistics.fmean(group)) / (std + 1e-4 if scale else 1.0) if end else 0.0
                 for r, end in zip(row, ends[i], strict=True)]
        out.append([math.fsum(parts[t:]) for t in range(len(row))])
    return out


def first_error(probabilities: list[float], threshold: float) -> int:
    """Place of the first probability below the threshold, -1 where all reach it."""
    return next((k for k, p in enumerate(probabilities) if p < threshold), -1)


def vote(answers: list[str | None], weights: list[float]) -> str | None:
    """The answer with the greatest sum of weights; of equal sums the one met first."""
    best, most = None, -1.0
    for answer in answers:
        total = math.fsum(w for a, w in zip(answers, weights, strict=True) if a == answer)
        if answer is not None and total > most:
            best, most = answer, total
    return best
