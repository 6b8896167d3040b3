"""Filters on next-token logits, and the draw itself."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from keel.functional.masked import wide

__all__ = ["draw", "penalise_repetition", "top_k_top_p"]


def penalise_repetition(
    logits: Float[Tensor, "B V"], written: Bool[Tensor, "B V"], *, penalty: float,
) -> Float[Tensor, "B V"]:
    """Divide positive and multiply negative logits of tokens already written by `penalty`; the prompt does not count.

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1, in the sign-aware form of MOSS-RLHF.
    Raises:
        ValueError: penalty is below 1.
    """
    if penalty < 1:
        raise ValueError(f"penalty={penalty} is below 1; 1 turns it off, 1.1 is the value of MOSS-RLHF")
    logits = wide(logits)
    punished = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(written, punished, logits)


def top_k_top_p(
    logits: Float[Tensor, "B V"], *, top_k: int | None, top_p: float | None,
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
    """The candidates that survive both filters, most probable first: their logits (-inf where cut) and token ids.

    Nucleus: the smallest set of most probable tokens whose probability reaches top_p, the token that crosses it
    included. Source: Holtzman et al. 2020, arXiv:1904.09751, Eq. 2-3. Only as many candidates are sorted as the
    nucleus needs.
    Raises:
        ValueError: top_k or top_p is out of range.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} keeps no token; use 1 or more, or none for no limit")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} is outside (0, 1]")
    logits, vocabulary = wide(logits), logits.shape[-1]
    width = min(top_k or vocabulary, vocabulary)
    if top_p is None or top_p == 1:  # a rounded cumulative sum reaches 1 too early: 1 must cut nothing
        values, ids = logits.topk(width)
        return values, ids
    # Top-p acts on what top-k left: probabilities are shares of the `width` most probable tokens.
    total = (logits if top_k is None else logits.topk(width).values).logsumexp(-1, keepdim=True)
    n = min(width, 64)
    while True:
        values, ids = logits.topk(n)
        probs = torch.exp(values - total)
        before = probs.cumsum(-1) - probs
        if n == width or bool((before[:, -1] + probs[:, -1] >= top_p).all()):
            return values.masked_fill(before >= top_p, float("-inf")), ids
        n = min(width, n * 8)


def draw(logits: Float[Tensor, "B K"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """One index per row by inverting the distribution function at a uniform number in [0, 1).

    Source: inverse transform sampling (Devroye 1986, chapter II.2). An index of probability zero is never drawn.
    """
    weights = torch.softmax(wide(logits), dim=-1)
    cumulative = weights.cumsum(-1)
    # Scaled to the rounded total, so that a uniform number near 1 cannot fall behind the last candidate.
    target = uniform[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    # uniform * total may round up to the total itself: then the last index with positive weight is meant.
    last = torch.where(weights > 0, torch.arange(weights.shape[-1], device=weights.device), 0).amax(-1)
    return torch.minimum(index, last)
