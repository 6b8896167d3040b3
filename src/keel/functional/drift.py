"""How a projection moves over the turns of conversations, and how much of it the user's messages foretell."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from keel.functional.directions import slope
from keel.functional.resampling import ratio_draws

__all__ = ["r_squared", "ridge", "ridge_out_of_fold", "slope_draws", "turn_means"]


def turn_means(
    values: Float[Tensor, "C P"], present: Bool[Tensor, "C P"], *, fewest: int = 10,
) -> Float[Tensor, " P"]:
    """Mean over the conversations that reach each turn; NaN where fewer than `fewest` do.

    Source: arXiv:2601.10387, section 9 of our spec (mean per turn position, positions below ten dropped).
    """
    return _turn_draws(torch.ones(1, len(values), dtype=torch.float64), values, present, fewest=fewest)[0]


def _turn_draws(
    draws: Float[Tensor, "R C"], values: Float[Tensor, "C P"], present: Bool[Tensor, "C P"], *, fewest: int,
) -> Float[Tensor, "R P"]:
    """`turn_means` under every resample of conversations; which turns count is decided on all of them."""
    totals = torch.where(present, values.detach().double(), 0.0)
    means = ratio_draws(draws, totals, present.double())
    return torch.where(present.sum(0) >= fewest, means, torch.nan)


def slope_draws(
    draws: Float[Tensor, "R C"], turns: Float[Tensor, " P"], values: Float[Tensor, "C P"],
    present: Bool[Tensor, "C P"], *, fewest: int = 10,
) -> Float[Tensor, " R"]:
    """Slope of the turn means on the turn under every resample of whole conversations.

    Source: arXiv:2601.10387, section 9 of our spec; conversations drawn whole: as `cluster_draws`.

    Args:
        draws: how often each conversation is in each resample, as from `cluster_draws`.
        turns: number of each turn.
        values: mean projection of each turn of each conversation.
        present: whether the conversation reaches the turn.
        fewest: conversations that a turn needs to count.
    """
    return slope(turns, _turn_draws(draws, values, present, fewest=fewest))


def ridge(
    features: Float[Tensor, "N D"], targets: Float[Tensor, " N"], *, alpha: float,
) -> tuple[Float[Tensor, " D"], Float[Tensor, ""]]:
    """Weights and intercept that minimise |y - X w - b|^2 + alpha |w|^2; the intercept is not shrunk.

    Source: Hoerl and Kennard 1970, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", Eq. 2.1.
    Raises:
        ValueError: alpha is not above 0, or there are no rows.
    """
    if alpha <= 0 or len(features) == 0:
        raise ValueError(f"alpha={alpha} with {len(features)} rows: ridge regression needs alpha above 0, and rows")
    x, y = features.detach().double(), targets.detach().double()
    x_mean, y_mean = x.mean(0), y.mean()
    x, y = x - x_mean, y - y_mean
    n, d = x.shape
    # Whichever of the two systems is smaller; both give the same weights.
    if d <= n:
        weights = torch.linalg.solve(x.T @ x + alpha * torch.eye(d, dtype=x.dtype), x.T @ y)
    else:
        weights = x.T @ torch.linalg.solve(x @ x.T + alpha * torch.eye(n, dtype=x.dtype), y)
    return weights, y_mean - x_mean @ weights


def ridge_out_of_fold(
    features: Float[Tensor, "N D"], targets: Float[Tensor, " N"], folds: Int[Tensor, " N"], *,
    alphas: tuple[float, ...],
) -> Float[Tensor, " N"]:
    """What ridge regression says of each row when it has seen no row of its fold.

    alpha is the one that predicts the other folds best, each of those left out in turn: the fold itself has no say.
    Source: arXiv:2601.10387, section 9 of our spec (the authors score on their training rows; here no row is its own
        witness); Stone 1974, "Cross-Validatory Choice and Assessment of Statistical Predictions" (nested choice).

    Args:
        features: of each user message.
        targets: projection of the next response, or its change.
        folds: rows of one conversation share a fold.
        alphas: to choose from.
    Raises:
        ValueError: fewer than three folds, of which one is left out and one of the others chooses alpha.
    """
    names = folds.unique().tolist()
    if len(names) < 3:
        raise ValueError(f"{len(names)} folds: one is predicted and two more are needed to choose alpha")
    found = torch.zeros(len(targets), dtype=torch.float64)
    for fold in names:
        out = folds == fold
        rest = [name for name in names if name != fold]
        x, y = features[~out], targets[~out]
        errors = [_left_out_error(x, y, folds[~out], rest, alpha) for alpha in alphas]
        weights, intercept = ridge(x, y, alpha=alphas[errors.index(min(errors))])
        found[out] = features[out].double() @ weights + intercept
    return found


def _left_out_error(x: Tensor, y: Tensor, folds: Tensor, names: list[int], alpha: float) -> float:
    """Sum of squared errors where each fold is predicted from the others."""
    error = 0.0
    for name in names:
        out = folds == name
        weights, intercept = ridge(x[~out], y[~out], alpha=alpha)
        error += float((y[out].double() - x[out].double() @ weights - intercept).square().sum())
    return error


def r_squared(targets: Float[Tensor, " N"], predictions: Float[Tensor, " N"]) -> float:
    """1 - squared error / squared distance from the mean; below 0 for predictions that are worse than the mean.

    Source: Wright 1921, "Correlation and Causation" (share of the variance determined).
    Raises:
        ValueError: the targets are all the same.
    """
    y = targets.detach().double()
    about = (y - y.mean()).square().sum()
    if float(about) == 0:
        raise ValueError("the targets are all the same: there is no variance to predict")
    return float(1 - (y - predictions.double()).square().sum() / about)
