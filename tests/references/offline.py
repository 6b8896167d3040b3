"""Section 2 of the offline policy-gradient spec and PRO of section 5, one response or prompt at a time.

Every loss comes with its derivative by each log-probability. Ratios, probabilities and temperatures are numbers that
were looked up: they are held fixed in the derivative.
"""

import math
from collections.abc import Callable

Priced = tuple[float, list[float]]


def total(values: list[float]) -> float:
    """S or Q, the sum over the tokens of one response."""
    found = 0.0
    for value in values:
        found += value
    return found


def held_in_band(log_ratio: float, eps: float | None) -> float:
    """clip(exp(log_ratio), 1 - eps, 1 + eps), decided on the logarithm so that nothing overflows; None: no band."""
    if eps is None:
        return math.exp(log_ratio)
    if log_ratio > math.log(1 + eps):
        return 1 + eps
    if eps < 1 and log_ratio < math.log(1 - eps):
        return 1 - eps
    return math.exp(log_ratio)


def outside(log_ratio: float, eps: float | None) -> tuple[bool, bool]:
    """Whether the ratio is below the band, and whether it is above."""
    if eps is None:
        return False, False
    ratio = math.exp(log_ratio)
    return ratio < 1 - eps, ratio > 1 + eps


def weighted(own: list[float], weights: list[float]) -> Priced:
    """-sum_t w_t l_t with the weights held fixed, and its derivatives -w_t."""
    loss = 0.0
    for value, weight in zip(own, weights, strict=True):
        loss -= weight * value
    return loss, [-weight for weight in weights]


def nll(own: list[float], weight: float) -> Priced:
    """-w S: NLL at w = 1, wBC at w = R, A-LoL without a reference at w = A+."""
    return weighted(own, [weight] * len(own))


def gold(own: list[float], reward: float, floor: float) -> Priced:
    """-R sum_t max(u, pi_t) l_t."""
    return weighted(own, [reward * max(floor, math.exp(value)) for value in own])


def lol(own: list[float], ref: list[float], weight: float, eps: float | None) -> Priced:
    """-w rho S with one ratio for the response: R-LoL at w = R, A-LoL at w = A+."""
    rho = held_in_band(total(own) - total(ref), eps)
    return weighted(own, [weight * rho] * len(own))


def lol_seq(own: list[float], ref: list[float], weight: float, eps: float | None) -> Priced:
    """-w sum_t rho_t l_t with one ratio for each token."""
    return weighted(own, [weight * held_in_band(a - b, eps) for a, b in zip(own, ref, strict=True)])


def lol_difference(own: list[float], ref: list[float], weight: float, coef: float) -> Priced:
    """-w S + coef (S - Q)."""
    loss, slopes = nll(own, weight)
    return loss + coef * (total(own) - total(ref)), [slope + coef for slope in slopes]


def lol_quotient(own: list[float], ref: list[float], weight: float, coef: float) -> Priced:
    """-w S + coef S / Q, the reading of section 11 with a quotient of logarithms."""
    if not own:
        return 0.0, []
    loss, slopes = nll(own, weight)
    return loss + coef * total(own) / total(ref), [slope + coef / total(ref) for slope in slopes]


def lol_k3(own: list[float], ref: list[float], weight: float, coef: float) -> Priced:
    """-w S + coef sum_t (e^(q - l) - (q - l) - 1); d/dl of a term is 1 - e^(q - l)."""
    loss, slopes = nll(own, weight)
    for t, (a, b) in enumerate(zip(own, ref, strict=True)):
        loss += coef * (math.expm1(b - a) - (b - a))
        slopes[t] -= coef * math.expm1(b - a)
    return loss, slopes


def of_means(
    reference: Callable[..., Priced], own: list[float], ref: list[float], weight: float, by_sum: bool,
) -> Priced:
    """A loss of the mean log-probability: one token with the mean where it reads S and Q, else its sum divided."""
    n = max(len(own), 1)
    if by_sum and own:
        loss, (slope,) = reference([total(own) / n], [total(ref) / n], weight)
        return loss, [slope / n] * n
    loss, by_token = reference(own, ref, weight)
    return loss / n, [slope / n for slope in by_token]


def pro(s: list[float], rewards: list[float]) -> Priced:
    """The ranking term of one prompt, candidates best first: a sum over places k but the last; and d/ds.

        log( exp(s_k T_k*) + sum_{j > k} exp(s_j T_kj) ) - s_k T_k*,   T_kj = r_k - r_j,   T_k* = max_j T_kj
    """
    loss, slopes = 0.0, [0.0] * len(s)
    for k in range(len(s) - 1):
        apart = {j: rewards[k] - rewards[j] for j in range(k + 1, len(s))}
        scale = {k: max(apart.values()), **apart}
        whole = math.fsum(math.exp(s[j] * scale[j]) for j in scale)
        loss += math.log(whole) - s[k] * scale[k]
        for j, temperature in scale.items():
            slopes[j] += temperature * math.exp(s[j] * temperature) / whole
        slopes[k] -= scale[k]
    return loss, slopes
