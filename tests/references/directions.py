"""Directions by loops over plain lists; spec of the Assistant Axis, sections 3 to 5, 7 to 9 and 13."""

import math

import numpy as np

Row = list[float]
Rows = list[Row]


def dot(a: Row, b: Row) -> float:
    """Inner product."""
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def length(a: Row) -> float:
    """Euclidean."""
    return math.sqrt(dot(a, a))


def bound(h: Row, u: Row, lower: float, upper: float) -> Row:
    """h - u min(<h, u> - lower, 0), then h - u max(<h, u> - upper, 0), as the paper prints its cap."""
    h = [x - y * min(dot(h, u) - lower, 0.0) for x, y in zip(h, u, strict=True)]
    return [x - y * max(dot(h, u) - upper, 0.0) for x, y in zip(h, u, strict=True)]


def bound_jointly(h: Row, units: Rows, lower: Row, upper: Row, rounds: int = 1000) -> Row:
    """Dykstra's algorithm: each slab in turn, what it moved last time being undone first."""
    x, corrections = list(h), [[0.0] * len(h) for _ in units]
    for _ in range(rounds):
        for k, u in enumerate(units):
            back = [a + b for a, b in zip(x, corrections[k], strict=True)]
            x = bound(back, u, lower[k], upper[k])
            corrections[k] = [a - b for a, b in zip(back, x, strict=True)]
    return x


def token_means(hidden: list[Rows], mask: list[list[bool]]) -> Rows:
    """Sum over the tokens that count, by their number; zeros where none does."""
    means = []
    for tokens, kept in zip(hidden, mask, strict=True):
        seen = [token for token, keep in zip(tokens, kept, strict=True) if keep]
        means.append([math.fsum(column) / max(len(seen), 1) for column in zip(*seen, strict=True)]
                     if seen else [0.0] * len(tokens[0]))
    return means


def principal_components(rows: Rows, centre: bool, unit_rows: bool) -> tuple[list[float], Rows]:
    """Shares of the variance and, row by row, the directions: eigenvectors of the table of products of columns."""
    x = np.array(rows)
    x = x - x.mean(0) if centre else x
    if unit_rows:
        x = np.array([row / max(math.sqrt((row * row).sum()), 1e-300) for row in x])
        x = x - x.mean(0) if centre else x
    values, vectors = np.linalg.eigh(x.T @ x)
    order = np.argsort(-values)[:min(len(rows), len(rows[0]))]
    return (values[order] / values.sum()).tolist(), vectors.T[order].tolist()


def noise_of(count: float, total: Row, squares: float) -> float:
    """Unbiased variance of a coordinate about the mean, averaged over coordinates, from sums."""
    return (squares - dot(total, total) / count) / ((count - 1) * len(total))


def axis_cosine_bound(*, width: int, n_role: int, n_default: int, n_roles: int, noise: float, spread: float,
                      step: float) -> float:
    """Cosine to expect of the estimated axis and the planted one; spec, section 16 A.

    Args:
        width: coordinates of a state.
        n_role, n_default: responses in roles, all roles together, and by default.
        n_roles: how many roles.
        noise, spread: standard deviation of a coordinate over responses, and of a role's own offset over roles.
        step: length of the planted difference.
    """
    variance = noise**2 * (1 / n_role + 1 / n_default) + spread**2 / n_roles
    return float((1 + width * variance / step**2) ** -0.5)


def slope(turns: Row, values: Row) -> float:
    """(n sum xy - sum x sum y) / (n sum xx - (sum x)^2) over the values that are numbers."""
    pairs = [(x, y) for x, y in zip(turns, values, strict=True) if not math.isnan(y)]
    n, sx, sy = len(pairs), math.fsum(x for x, _ in pairs), math.fsum(y for _, y in pairs)
    below = n * math.fsum(x * x for x, _ in pairs) - sx * sx
    return (n * math.fsum(x * y for x, y in pairs) - sx * sy) / below if len({x for x, _ in pairs}) > 1 else math.nan


def turn_means(values: Rows, present: list[list[bool]], times: list[int], fewest: int) -> Row:
    """Mean of each turn over conversations that reach it, each as often as it was drawn."""
    means = []
    for turn in range(len(values[0])):
        reach = [c for c in range(len(values)) if present[c][turn]]
        n = sum(times[c] for c in reach)
        total = math.fsum(times[c] * values[c][turn] for c in reach)
        means.append(total / n if n and len(reach) >= fewest else math.nan)
    return means


def quantile_error(values: Row, q: float) -> float:
    """sqrt(q (1 - q) / n) / density, the density a mean of normal bells of Silverman's width."""
    n = len(values)
    at = float(np.percentile(values, 100 * q))
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
    ordered = sorted(values)
    quarters = ordered[round(0.75 * (n - 1))] - ordered[round(0.25 * (n - 1))]
    width = 0.9 * (min(deviation, quarters / 1.34) if quarters else deviation) * n ** -0.2
    density = math.fsum(math.exp(-0.5 * ((x - at) / width) ** 2) for x in values) / (n * width * math.sqrt(2 * math.pi))
    return math.sqrt(q * (1 - q) / n) / density
