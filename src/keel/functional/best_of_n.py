"""Best of n: what the response that scores highest among n is worth, and how far picking it drifts from the policy."""

import math
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["best_of_n", "best_of_n_kl"]


def best_of_n(scores: Float[Tensor, " N"], values: Float[Tensor, " N"], *, n: int) -> Float[Tensor, ""]:
    """Mean value of the response with the highest score among n of the N, over every choice of n at once.

        sum over score levels s:  [C(c_s, n) - C(c_{s-}, n)] / C(N, n)  *  mean of the values at level s

    where c_s responses score at most s and c_{s-} score less: the chance that the best of n lies at that level. Equal
    scores share it. With `values = scores` this is the mean best score.
    Source: Nakano et al. 2021, arXiv:2112.09332, appendix I (estimator); Gao et al. 2022, arXiv:2210.10760, section 2.

    Args:
        scores: by which the best one is picked.
        values: what each response is worth.
        n: responses to pick from; 1 <= n <= N.
    Raises:
        ValueError: n is out of range.
    """
    if not 1 <= n <= len(scores):
        raise ValueError(f"n={n} is outside 1 to the {len(scores)} responses there are")
    _, level, sizes = torch.unique(scores, return_inverse=True, return_counts=True)
    # Whole numbers of any size: the differences and the division are exact.
    ways = [math.comb(at_most, n) for at_most in accumulate(sizes, initial=0)]
    chances = [(up_to - below) / ways[-1] for below, up_to in pairwise(ways)]
    sums = torch.bincount(level, weights=values.detach().to(torch.float64))
    return (torch.tensor(chances, dtype=torch.float64) * sums / sizes).sum()


def best_of_n_kl(n: int) -> float:
    """KL divergence in nats of best-of-n picking from the policy it picks from: log n - (n - 1) / n.

    Exact where no two responses tie; an upper bound in general.
    Source: Gao et al. 2022, arXiv:2210.10760, section 2; Beirami et al. 2024, arXiv:2401.01879, Theorem 3.1 (bound).
    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n={n} responses to pick the best of: there is at least one")
    return math.log(n) - (n - 1) / n
