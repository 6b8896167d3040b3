"""Bradley-Terry for one pair, rankings and grades of one prompt, each with its derivatives."""

import math
from itertools import combinations, pairwise, product


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


def eps_sigmoid(chosen: float, rejected: float) -> tuple[float, float]:
    """-log(s(d) + 1e-5) of section 2.2, and its derivative by d."""
    p = sigmoid(chosen - rejected)
    return -math.log(p + 1e-5), -p * (1 - p) / (p + 1e-5)


def plackett_luce(scores: list[float]) -> tuple[float, list[float]]:
    """Sum over places k < K of logsumexp_{j >= k} r_j - r_k, scores from best to worst; and the derivatives."""
    loss, slopes = 0.0, [0.0] * len(scores)
    for k in range(len(scores) - 1):
        left = scores[k:]
        top = max(left)
        total = math.fsum(math.exp(score - top) for score in left)
        loss += top + math.log(total) - scores[k]
        for j in range(k, len(scores)):
            slopes[j] += math.exp(scores[j] - top) / total - (j == k)
    return loss, slopes


def tied_plackett_luce(scores: list[float], blocks: list[list[int]]) -> tuple[float, list[float]]:
    """The mean over both orders of every tied block, the others in their places; blocks are places of one tie.

    A tie of two has two orders. A longer one counts forwards and backwards, see the page of the method.
    """
    orders = []
    for turned in product((False, True), repeat=len(blocks)):
        order = list(range(len(scores)))
        for block, backwards in zip(blocks, turned, strict=True):
            if backwards:
                order[block[0] : block[-1] + 1] = reversed(block)
        orders.append(order)
    loss, slopes = 0.0, [0.0] * len(scores)
    for order in orders:
        one, by_place = plackett_luce([scores[i] for i in order])
        loss += one / len(orders)
        for i, slope in zip(order, by_place, strict=True):
            slopes[i] += slope / len(orders)
    return loss, slopes


def all_pairs(scores: list[float], level: list[int]) -> tuple[float, list[float]]:
    """Mean over the pairs that are not tied of softplus(-(r_w - r_l)), scores from best to worst; 0 without a pair."""
    decided = [(i, j) for i, j in combinations(range(len(scores)), 2) if level[i] != level[j]]
    loss, slopes = 0.0, [0.0] * len(scores)
    for i, j in decided:
        gap = scores[i] - scores[j]
        loss += softplus(-gap) / len(decided)
        slopes[i] -= sigmoid(-gap) / len(decided)
        slopes[j] += sigmoid(-gap) / len(decided)
    return loss, slopes


def levels(tied: list[bool]) -> list[int]:
    """Which level of the ranking each place is on, when tied[i] says that place i is as good as the one before it."""
    level = [0]
    for _, same in pairwise(tied):
        level.append(level[-1] + (not same))
    return level


def attribute_error(predicted: list[float], target: list[float], present: list[bool]) -> tuple[float, list[float]]:
    """Sum over present attributes of (pred - target)^2, and the derivatives; the caller divides by their count."""
    errors = [p - t if here else 0.0 for p, t, here in zip(predicted, target, present, strict=True)]
    return math.fsum(error**2 for error in errors), [2 * error for error in errors]
