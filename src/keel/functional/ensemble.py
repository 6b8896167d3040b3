"""Several opinions on one response made into one score."""

from jaxtyping import Float
from torch import Tensor

from keel.functional.masked import wide

__all__ = ["combined_scores", "standardised"]


def combined_scores(
    scores: Float[Tensor, "K B"], *, how: str, coef: float | None = None,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """One score per response from K ensemble members, and how far the members disagree.

        mean      minimum      median      mean_minus_std = mean - coef std      mean_minus_variance = mean - coef std^2

    Source: Coste et al. 2023, arXiv:2310.02743, section 3 (mean, worst-case and uncertainty-weighted optimisation; the
    last is mean_minus_variance, and mean_minus_std subtracts what has the unit of the score instead).

    Args:
        scores: of each member, on comparable scales: see `standardised`.
        how: one of the names above. The median of an even number of members is the mean of the middle two.
        coef: how many standard deviations, or variances, are subtracted; only for the last two.
    Returns:
        The scores, and the standard deviation over members (divisor K).
    Raises:
        ValueError: another way, or coef missing or not needed.
    """
    members = wide(scores.detach())
    mean, std = members.mean(0), members.std(0, correction=0)
    plain = {"mean": mean, "minimum": members.min(0).values, "median": members.quantile(0.5, dim=0)}
    penalties = {"mean_minus_std": std, "mean_minus_variance": std.square()}
    if how not in plain | penalties:
        raise ValueError(f"how={how!r} is none of {', '.join(plain | penalties)}")
    if (coef is not None) != (how in penalties):
        raise ValueError(f"how={how!r} and coef={coef} do not go together: {' and '.join(penalties)} need one, the "
                         f"others none")
    return plain[how] if coef is None else mean - coef * penalties[how], std


def standardised(
    scores: Float[Tensor, "K B"], mean: Float[Tensor, " K"], std: Float[Tensor, " K"],
) -> Float[Tensor, "K B"]:
    """Each member's scores in its own standard deviations from its own mean, both measured on a calibration set.

    Pairs fix scores only up to a constant, and each member has a scale of its own: on raw scores `minimum` would mostly
    pick the member with the lowest offset.
    Source: Gao et al. 2022, arXiv:2210.10760, section 2 (scores normalised to mean 0 and std 1), here per member.
    Raises:
        ValueError: a member's std is not above 0.
    """
    for member, spread in enumerate(std):
        if not spread > 0:
            raise ValueError(f"member {member} has std={spread} on the calibration set: it scores everything alike and "
                             f"has no scale; leave it out of the ensemble")
    return ((wide(scores) - mean[:, None]) / std[:, None]).detach()
