"""Filters by sorting everything, and the draw by walking along the line."""

import math


def softmax(logits: list[float]) -> list[float]:
    """Probabilities of a row of logits."""
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def penalise(logits: list[float], written: list[bool], penalty: float) -> list[float]:
    """What is written becomes less likely whichever sign its logit has."""
    return [
        logit if not seen else logit / penalty if logit > 0 else logit * penalty
        for logit, seen in zip(logits, written, strict=True)
    ]


def survivors(logits: list[float], top_k: int | None, top_p: float | None) -> list[int]:
    """Token ids that pass top-k and then top-p, most probable first; the token that crosses top_p is kept."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:top_k]
    if top_p is None:
        return order
    probabilities = softmax([logits[i] for i in order])
    kept, mass = [], 0.0
    for token, probability in zip(order, probabilities, strict=True):
        if mass >= top_p:
            break
        kept.append(token)
        mass += probability
    return kept


def draw(logits: list[float], uniform: float) -> int:
    """The first index whose cumulative probability exceeds the uniform number."""
    probabilities, walked = softmax(logits), 0.0
    for index, probability in enumerate(probabilities):
        walked += probability
        if uniform < walked:
            return index
    return max(index for index, probability in enumerate(probabilities) if probability > 0)
