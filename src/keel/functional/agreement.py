"""How far annotators agree beyond chance; None where only one answer was ever given, which chance alone explains."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["cohen_kappa", "fleiss_kappa", "krippendorff_alpha"]


def cohen_kappa(first: Int[Tensor, " N"], second: Int[Tensor, " N"]) -> float | None:
    """Agreement of two annotators on the same items: (p_o - p_e) / (1 - p_e).

    1: they always agree; 0: as often as if each answered at random with its own frequencies. None without two answers.
    Source: Cohen 1960, "A Coefficient of Agreement for Nominal Scales", Eq. 1.
    """
    answers, numbers = torch.unique(torch.stack([first, second]), return_inverse=True)
    if len(answers) < 2:
        return None
    shares = [torch.bincount(row, minlength=len(answers)).double() / len(row) for row in numbers]
    by_chance = float(shares[0] @ shares[1])
    return (float((first == second).double().mean()) - by_chance) / (1 - by_chance)


def fleiss_kappa(counts: Int[Tensor, "N C"]) -> float | None:
    """Agreement of equally many annotators per item, not always the same ones: (P - P_e) / (1 - P_e).

    P is the share of pairs of annotators of one item that agree, P_e the same for annotators drawn at random.
    Source: Fleiss 1971, "Measuring Nominal Scale Agreement Among Many Raters", Eq. 1-7.

    Args:
        counts: how many annotators put the item into each category.
    Raises:
        ValueError: items have unequal numbers of annotators, or fewer than two.
    """
    n = int(counts[:1].sum())
    if n < 2 or bool((counts.sum(1) != n).any()):
        raise ValueError("items need two or more annotators each, and equally many: otherwise use krippendorff_alpha")
    x = counts.double()
    by_chance = float((x.sum(0) / x.sum()).square().sum())
    if by_chance == 1:
        return None
    agreed = float((x.square().sum(1) - n).mean()) / (n * (n - 1))
    return (agreed - by_chance) / (1 - by_chance)


def krippendorff_alpha(ratings: Float[Tensor, "N A"]) -> float | None:
    """Agreement of any number of annotators, each of whom may have skipped items: 1 - D_o / D_e, nominal.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", sections B and C.

    Args:
        ratings: a number that names the category, NaN where annotator A did not rate item N. Items with fewer than two
            ratings compare nothing and are left out.
    """
    rated = ~ratings.isnan()
    rated &= rated.sum(1, keepdim=True) > 1
    categories, numbers = torch.unique(ratings[rated], return_inverse=True)
    if len(categories) < 2:
        return None
    counts = torch.zeros(len(ratings), len(categories), dtype=torch.float64, device=ratings.device)
    counts.index_put_((rated.nonzero()[:, 0], numbers), counts.new_ones(()), accumulate=True)
    of_item, of_category, n = counts.sum(1), counts.sum(0), counts.sum()
    unlike = (of_item.square() - counts.square().sum(1)) / (of_item - 1)  # no item is left with one rating
    by_chance = (n.square() - of_category.square().sum()) / (n - 1)
    return float(1 - unlike.sum() / by_chance)
