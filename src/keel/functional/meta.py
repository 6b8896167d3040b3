"""MetaRM's measure of how well a reward model tells responses to one prompt apart."""

import torch
from jaxtyping import Float
from torch import Tensor

from keel.functional.masked import wide

__all__ = ["difference_objective"]


def difference_objective(scores: Float[Tensor, "B N"]) -> Float[Tensor, " B"]:
    """How far a prompt's N scores lie apart: higher is better separated, from (N-1)/(2N) up to (N-1)/N.

        J = (2 / N^2) * sum_{i<j} sigmoid(|s_i - s_j|)

    At a tie |.| has the derivative 0, so equal responses push nothing.
    Source: arXiv:2401.06080, section 3.2; Dou et al. 2024 (MetaRM), arXiv:2405.00438, the difference loss.

    Args:
        scores: of the N responses to each of B prompts.
    Raises:
        ValueError: fewer than two responses.
    """
    n = scores.shape[1]
    if n < 2:
        raise ValueError(f"{n} responses per prompt in scores: a difference needs two or more, sample more of them")
    x = wide(scores)
    first, second = torch.triu_indices(n, n, offset=1, device=x.device)
    return 2 / n**2 * (x[:, first] - x[:, second]).abs().sigmoid().sum(1)
