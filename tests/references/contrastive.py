"""SimCSE and SwAV row by row, with their gradients by hand; section 5 of the reward modelling spec."""

import math

Rows = list[list[float]]


def dot(a: list[float], b: list[float]) -> float:
    """Inner product."""
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def unit(row: list[float]) -> list[float]:
    """The row at length 1."""
    length = math.sqrt(dot(row, row))
    return [x / length for x in row]


def softmax(scores: list[float]) -> list[float]:
    """Shares of the exponentials."""
    top = max(scores)
    total = math.fsum(math.exp(score - top) for score in scores)
    return [math.exp(score - top) / total for score in scores]


def along(row: list[float], pull: list[float]) -> list[float]:
    """Derivative of dot(row / |row|, pull) by the row: what of the pull is across it, divided by its length."""
    own, length = unit(row), math.sqrt(dot(row, row))
    return [(p - dot(own, pull) * x) / length for p, x in zip(pull, own, strict=True)]


def weighted(rows: Rows, weights: list[float]) -> list[float]:
    """Sum of the rows, each times its weight."""
    return [math.fsum(w * x for w, x in zip(weights, column, strict=True)) for column in zip(*rows, strict=True)]


def differences(features: Rows) -> Rows:
    """[f_c - f_r] and below it [f_r - f_c], for features stacked chosen first."""
    half = len(features) // 2
    gaps = [[c - r for c, r in zip(features[i], features[i + half], strict=True)] for i in range(half)]
    return gaps + [[-x for x in gap] for gap in gaps]


def simcse(
    first: Rows, second: Rows, temperature: float, same: list[list[bool]],
) -> tuple[list[float], Rows, Rows]:
    """Per row CE(cos(h_s_i, h_t_.) / tau, i) over itself and all rows that are not `same`; gradients of the sum."""
    n = len(first)
    losses, pulls = [], []
    for i in range(n):
        seen = [j for j in range(n) if j == i or not same[i][j]]
        p = dict(zip(seen, softmax([dot(unit(first[i]), unit(second[j])) / temperature for j in seen]), strict=True))
        losses.append(-math.log(p[i]))
        pulls.append([(p.get(j, 0.0) - (i == j)) / temperature for j in range(n)])
    by_first = [along(first[i], weighted([unit(row) for row in second], pulls[i])) for i in range(n)]
    by_second = [along(second[j], weighted([unit(row) for row in first], [pulls[i][j] for i in range(n)]))
                 for j in range(n)]
    return losses, by_first, by_second


def prototype_scores(features: Rows, prototypes: Rows) -> Rows:
    """z C^T with z of unit length."""
    return [[dot(unit(row), prototype) for prototype in prototypes] for row in features]


def sinkhorn(scores: Rows, epsilon: float, iterations: int) -> Rows:
    """The loop of section 5.3 on a table Q of K rows and B columns, returned as (B Q)^T."""
    n, k = len(scores), len(scores[0])
    top = max(max(row) for row in scores)
    q = [[math.exp((scores[b][j] - top) / epsilon) for b in range(n)] for j in range(k)]
    total = math.fsum(math.fsum(row) for row in q)
    q = [[x / total for x in row] for row in q]
    for _ in range(iterations):
        q = [[x / (k * math.fsum(row)) for x in row] for row in q]
        columns = [math.fsum(q[j][b] for j in range(k)) for b in range(n)]
        q = [[q[j][b] / (n * columns[b]) for b in range(n)] for j in range(k)]
    return [[n * q[j][b] for j in range(k)] for b in range(n)]


def swav(
    first: Rows, second: Rows, prototypes: Rows, temperature: float, epsilon: float, iterations: int, queued: Rows,
) -> tuple[list[float], Rows, Rows, Rows]:
    """CE(q_s, softmax(P_t / tau)) + CE(q_t, softmax(P_s / tau)) per row, and the gradients of the sum, none through q.

    Prototypes count by their direction. Queued features take part in finding the assignments and are dropped after it.
    """
    raw, prototypes = prototypes, [unit(row) for row in prototypes]
    n, k, d = len(first), len(prototypes), len(first[0])
    losses, by_prototype, by_view = [0.0] * n, [[0.0] * d for _ in range(k)], []
    for learner, teacher in ((first, second), (second, first)):
        q = sinkhorn(prototype_scores(teacher + queued, prototypes), epsilon, iterations)[:n]
        scores, gradients = prototype_scores(learner, prototypes), []
        for i in range(n):
            p = softmax([x / temperature for x in scores[i]])
            losses[i] -= math.fsum(q[i][j] * math.log(p[j]) for j in range(k))
            slopes = [(p[j] * math.fsum(q[i]) - q[i][j]) / temperature for j in range(k)]
            gradients.append(along(learner[i], weighted(prototypes, slopes)))
            for j in range(k):
                by_prototype[j] = [g + slopes[j] * z for g, z in zip(by_prototype[j], unit(learner[i]), strict=True)]
        by_view.append(gradients)
    return losses, by_view[0], by_view[1], [along(*pair) for pair in zip(raw, by_prototype, strict=True)]


def usage_entropy(assignments: Rows) -> float:
    """Entropy in nats of the mean assignment: log K where all prototypes are used alike, 0 where one takes all."""
    shares = [math.fsum(column) / len(assignments) for column in zip(*assignments, strict=True)]
    return -math.fsum(share * math.log(share) for share in shares if share > 0)
