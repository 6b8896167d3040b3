"""Groups of responses, their returns and what follows from them, one response at a time. An absent group is None."""

import math

Rows = list[list[float]]


def at_share(values: list[float], share: float) -> float:
    """Quantile by straight lines between the ordered values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def standardised(values: list[float], tails: float | None) -> list[float]:
    """Clamp to both tails, subtract the mean, divide by the population's standard deviation."""
    if tails is not None:
        low, high = at_share(values, tails), at_share(values, 1 - tails)
        values = [min(max(value, low), high) for value in values]
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / (deviation + 1e-8) for value in values]


def softmax(logits: list[float]) -> list[float]:
    """Probabilities of one row."""
    total = math.fsum(math.exp(z - max(logits)) for z in logits)
    return [math.exp(z - max(logits)) / total for z in logits]


def masses(p: Rows) -> list[float]:
    """S_g."""
    return [math.fsum(row[g] for row in p) for g in range(len(p[0]))]


def group_returns(p: Rows, returns: list[float]) -> list[float | None]:
    """R_g."""
    return [math.fsum(row[g] * r for row, r in zip(p, returns, strict=True)) / mass if mass else None
            for g, mass in enumerate(masses(p))]


def mean_present(values: list[float | None]) -> float:
    """Mean over the groups there are."""
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there)


def variance(p: Rows, returns: list[float]) -> float:
    """R_var."""
    means = group_returns(p, returns)
    middle = mean_present(means)
    return mean_present([None if mean is None else (mean - middle) ** 2 for mean in means])


def slope(p: Rows, returns: list[float], i: int, g: int) -> float:
    """(2/M) (R_g - Rbar) (R_i - R_g) / S_g, of section 4.1."""
    means = group_returns(p, returns)
    if means[g] is None:
        return 0.0
    n_present = sum(mean is not None for mean in means)
    return 2 / n_present * (means[g] - mean_present(means)) * (returns[i] - means[g]) / masses(p)[g]


def shaping(p: Rows, returns: list[float], side: str) -> list[float]:
    """w_i of section 5.2."""
    means, mass, n = group_returns(p, returns), masses(p), len(p)
    there = [g for g, mean in enumerate(means) if mean is not None]
    middle = mean_present(means)
    weights = []
    for row, r in zip(p, returns, strict=True):
        if side == "worst":
            g = min(there, key=lambda g: means[g])
            weights.append(-(n * row[g] / mass[g]) * (r - means[g]))
        else:
            kept = [g for g in there if side == "both" or means[g] < middle]
            weights.append(2 / len(there) * math.fsum(
                (means[g] - middle) * (n * row[g] / mass[g]) * (r - means[g]) for g in kept))
    return weights


def objective(logits: Rows, returns: list[float], *, weighted: bool, floor: float, floor_coef: float, bound: float,
              entropy_coef: float) -> float:
    """Of the head, section 4."""
    p = [softmax([bound * math.tanh(z / bound) for z in row]) for row in logits]
    n = len(p)
    mean = math.fsum(returns) / n
    spread = variance(p, returns)
    if weighted:
        spread = math.fsum(s / n * (r - mean) ** 2
                           for s, r in zip(masses(p), group_returns(p, returns), strict=True))
    price = math.fsum(max(floor - s / n, 0) ** 2 for s in masses(p))
    doubt = -math.fsum(x * math.log(x) for row in p for x in row) / n
    return spread - floor_coef * price + entropy_coef * doubt


def equal_group_factors(p: Rows) -> list[float]:
    """f_i: each group's members share 1 over the number of groups, times the number of responses."""
    mass = masses(p)
    there = [g for g, s in enumerate(mass) if s]
    return [math.fsum(len(p) * row[g] / mass[g] for g in there) / len(there) for row in p]


def dro(q: list[float], means: list[float | None], step: float) -> list[float]:
    """One exponentiated step; a group without a return keeps its weight until all are normalised."""
    raised = [weight if mean is None else weight * math.exp(-step * mean)
              for weight, mean in zip(q, means, strict=True)]
    return [weight / math.fsum(raised) for weight in raised]


def cvar(values: list[float], chances: list[float], share: float) -> float:
    """Mean of the worst outcomes that together have that chance; the last one counts as far as it is needed."""
    left, total = share, 0.0
    for value, chance in sorted(zip(values, chances, strict=True)):
        total += value * min(chance, left)
        left -= min(chance, left)
    return total / share


def cvar_bound(values: list[float], chances: list[float], share: float, q: float) -> float:
    """What Rockafellar and Uryasev maximise over q."""
    return q - math.fsum(c * max(q - value, 0) for value, c in zip(values, chances, strict=True)) / share


def kl_coefs(p: Rows, coef: float, floor: float, renorm: bool) -> list[float]:
    """Section 6."""
    top = len(p[0]) - 1
    shares = [max(math.fsum(g / top * x for g, x in enumerate(row)), floor) for row in p]
    mean = math.fsum(shares) / len(shares) if renorm else 1.0
    return [coef * share / mean for share in shares]
