"""Grades on several attributes: to one scale and back, and from several attributes to one score."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["determination", "grade_moments", "scalarised_head", "standardised", "unstandardised"]


def grade_moments(
    grades: Float[Tensor, "N A"], present: Bool[Tensor, "N A"],
) -> tuple[Float[Tensor, " A"], Float[Tensor, " A"]]:
    """Mean and standard deviation (divisor: number of grades) of each attribute, over the grades that are there.

    Source: Wang et al. 2024 (HelpSteer 2), arXiv:2406.08673, reward models by regression on attributes; there all
        attributes share one scale, here each is standardised so that they weigh the same in the error.

    Args:
        grades: in their own units; invisible where absent, even NaN.
        present: True where there is a grade; at least one per attribute.
    """
    x, n = torch.where(present, grades.detach(), 0.0).double(), present.sum(0)
    mean = x.sum(0) / n
    return mean, (torch.where(present, x - mean, 0.0).square().sum(0) / n).sqrt()


def standardised(
    grades: Float[Tensor, "N A"], mean: Float[Tensor, " A"], std: Float[Tensor, " A"],
) -> Float[Tensor, "N A"]:
    """Grades in standard deviations from the mean. Source: Wang et al. 2024, arXiv:2406.08673 (see `grade_moments`)."""
    return (grades - mean) / std


def unstandardised(
    z: Float[Tensor, "N A"], mean: Float[Tensor, " A"], std: Float[Tensor, " A"],
) -> Float[Tensor, "N A"]:
    """Grades in their own units again. Source: Wang et al. 2024, arXiv:2406.08673 (see `grade_moments`)."""
    return z * std + mean


def scalarised_head(
    weight: Float[Tensor, "A D"], bias: Float[Tensor, " A"] | None, coefs: Float[Tensor, " A"], *,
    mean: Float[Tensor, " A"], std: Float[Tensor, " A"],
) -> tuple[Float[Tensor, "1 D"], Float[Tensor, " 1"]]:
    """The linear head whose output is the weighted sum of the attributes in their own units.

        sum_a c_a (std_a (W_a h + b_a) + mean_a) = (c std) W h + sum_a c_a (std_a b_a + mean_a)

    Source: Wang et al. 2024 (HelpSteer 2), arXiv:2406.08673, one reward as a weighted sum of the attributes.

    Args:
        weight: of the head that predicts standardised attributes.
        bias: of that head; none: it has none.
        coefs: what each attribute counts in the sum, per unit of its own.
        mean: of each attribute, in float64.
        std: of each attribute, in float64.
    Returns:
        Weight and bias, in float64.
    """
    scale, constant = coefs * std, coefs.double() @ mean
    if bias is not None:
        constant = constant + scale @ bias.double()
    return (scale @ weight.double())[None], constant[None]


def determination(
    predicted: Float[Tensor, " N"], target: Float[Tensor, " N"], *, guess: float,
) -> Float[Tensor, ""]:
    """R2: 1 - sum (y - p)^2 / sum (y - guess)^2; 1 is perfect, 0 no better than the guess, or a perfect guess.

    Source: Campbell and Thompson 2008, "Predicting Excess Stock Returns Out of Sample", Eq. 1: the guess is the mean of
        what was seen before, not that of the targets themselves.

    Args:
        predicted: for each target.
        target: what was to be predicted.
        guess: what predicts without looking: the mean of the training data.
    """
    y = target.detach().double()
    left, all_of_it = (y - predicted.detach()).square().sum(), (y - guess).square().sum()
    return torch.where(all_of_it > 0, 1 - left / all_of_it, 0.0)
