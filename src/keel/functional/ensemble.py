"""Several opinions on one response made into one score."""

from jaxtyping import Float
from torch import Tensor

from keel.functional.masked import wide

__all__ = ["combined_scores"]


def combined_scores(
    scores: Float[Tensor, "K B"], *, how: str, std_coef: float | None = None,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """One score per response from K ensemble members, and how far the members disagree.

        mean            minimum            mean_minus_std   mean - std_coef * std

    Source: Coste et al. 2023, arXiv:2310.02743 (mean and worst-case optimisation; where their uncertainty-weighted form
    subtracts the variance, this one subtracts the standard deviation, which has the unit of the score).

    Args:
        scores: of each member, on comparable scales.
        how: "mean", "minimum" or "mean_minus_std".
        std_coef: standard deviations to subtract, for mean_minus_std.
    Returns:
        The scores, and the standard deviation over members (divisor K).
    Raises:
        ValueError: another way, or std_coef missing or not needed.
    """
    if how not in ("mean", "minimum", "mean_minus_std"):
        raise ValueError(f"how={how!r} is none of 'mean', 'minimum', 'mean_minus_std'")
    if (std_coef is not None) != (how == "mean_minus_std"):
        raise ValueError(f"how={how!r} and std_coef={std_coef} do not go together: mean_minus_std needs one")
    members = wide(scores.detach())
    mean, std = members.mean(0), members.std(0, correction=0)
    combined = {"mean": mean, "minimum": members.min(0).values, "mean_minus_std": mean - (std_coef or 0.0) * std}
    return combined[how], std
