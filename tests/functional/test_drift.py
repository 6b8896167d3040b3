"""Means and slopes over turns, and ridge regression that is scored on rows it has not seen."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import directions as truth
from references.ragged import noise, seeds
from sklearn.linear_model import Ridge
from tolerances import EXACT, FLOAT32, FLOAT64, RELATIVE64
from torch.testing import assert_close

from keel.functional.directions import slope
from keel.functional.drift import r_squared, ridge, ridge_out_of_fold, slope_draws, turn_means
from keel.functional.resampling import cluster_draws

NAN = math.nan


def float64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_turn_means_by_hand() -> None:
    # Three conversations; the last one ends after a turn, so that one of two is left at turn 2.
    values = float64([[1, 2, 3], [3, 4, NAN], [5, NAN, NAN]])
    present = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    assert_close(turn_means(values, present, fewest=2), float64([3, 3, NAN]), equal_nan=True, **FLOAT64)
    assert_close(turn_means(values, present, fewest=1), float64([3, 3, 3]), **FLOAT64)
    assert bool(turn_means(values, present).isnan().all())  # ten are needed
    assert not turn_means(values.requires_grad_(), present).requires_grad


def test_ten_conversations_make_a_turn_count() -> None:
    values, turns = torch.arange(3.0).expand(10, 3), torch.arange(3.0)
    present = torch.ones(10, 3, dtype=torch.bool)
    present[0, 1:] = False
    once = torch.ones(1, 10, dtype=torch.float64)
    assert_close(turn_means(values, present), float64([0, NAN, NAN]), equal_nan=True, **EXACT)
    assert bool(slope_draws(once, turns, values, present).isnan())  # nine reach the later turns
    present[0] = True
    assert_close(slope_draws(once, turns, values, present), float64([1]), **FLOAT64)


def test_slopes_of_draws_by_hand() -> None:
    values, turns = float64([[0, 2, 4], [0, 0, 0]]), float64([1, 2, 3])
    present = torch.ones(2, 3, dtype=torch.bool)
    # Each once: 1 a turn; the first twice: 2; the second twice: 0; the first three times in four: 1.5.
    draws = float64([[1, 1], [2, 0], [0, 2], [3, 1]])
    assert_close(slope_draws(draws, turns, values, present, fewest=2), float64([1, 2, 0, 1.5]), **FLOAT64)


@given(seeds, st.integers(1, 3))
def test_slopes_of_draws_agree_with_the_reference(seed: int, fewest: int) -> None:
    values, present = noise(seed, 5, 4), noise(seed + 1, 5, 4) > -0.5
    draws = cluster_draws(5, n_draws=4, generator=torch.Generator().manual_seed(seed))
    turns = float64([1, 2, 3, 5])
    expected = []
    for draw in draws.tolist():
        means = truth.turn_means(values.tolist(), present.tolist(), [int(n) for n in draw], fewest)
        expected.append(truth.slope(turns.tolist(), means))
    found = slope_draws(draws, turns, values.masked_fill(~present, NAN), present, fewest=fewest)
    assert_close(found, float64(expected), equal_nan=True, **FLOAT64)
    # With every conversation once, that is the slope of the means.
    whole = slope_draws(torch.ones(1, 5, dtype=torch.float64), turns, values, present, fewest=fewest)[0]
    assert_close(whole, slope(turns, turn_means(values, present, fewest=fewest)), equal_nan=True, **EXACT)


def test_ridge_by_hand() -> None:
    # x = -1, 1 and y = 1, 5: slope sum xy / (sum xx + alpha) = 4 / (2 + 2) = 1 and intercept 3.
    weights, intercept = ridge(float64([[-1], [1]]), float64([1, 5]), alpha=2)
    assert_close((weights, intercept), (float64([1]), float64(3)), **FLOAT64)
    # Fewer rows than columns: w = x^T (x x^T + alpha)^-1 y, with x = (-1, 0, 1), (1, 0, -1) and alpha 0.1 that is 4.1.
    weights, _ = ridge(float64([[-1, 0, 1], [1, 0, -1]]), float64([-1, 1]), alpha=0.1)
    assert_close(weights, float64([2 / 4.1, 0, -2 / 4.1]), **FLOAT64)
    # All x higher by 10: the same slope.
    weights, intercept = ridge(float64([[9], [11]]), float64([1, 5]), alpha=2)
    assert_close((weights, intercept), (float64([1]), float64(-7)), **FLOAT64)


@given(seeds, st.integers(1, 8), st.integers(1, 8), st.sampled_from([0.1, 3.0]))
def test_ridge_agrees_with_scikit_learn(seed: int, n: int, d: int, alpha: float) -> None:
    x, y = noise(seed, n, d), noise(seed + 1, n)
    weights, intercept = ridge(x, y, alpha=alpha)
    known = Ridge(alpha=alpha).fit(x.numpy(), y.numpy())
    assert_close(weights, torch.from_numpy(known.coef_), **FLOAT64)
    assert float(intercept) == pytest.approx(float(known.intercept_), rel=RELATIVE64, abs=RELATIVE64)


def test_out_of_fold_by_hand() -> None:
    # One feature that is always 0: each fold is predicted by the mean of the others, whatever alpha.
    folds = torch.tensor([4, 4, 7, 9])
    found = ridge_out_of_fold(torch.zeros(4, 1), float64([1, 3, 5, 9]), folds, alphas=(1.0,))
    assert_close(found, float64([7, 7, 13 / 3, 3]), **FLOAT64)


def test_alpha_is_chosen_without_the_fold_that_is_predicted() -> None:
    """Folds 0 and 1 follow y = x, fold 2 does not: only where fold 2 is out does the small alpha win."""
    x = float64([[-1], [1], [-1], [1], [-1], [1]])
    y = float64([-1, 1, -1, 1, 30, -30])
    folds = torch.tensor([0, 0, 1, 1, 2, 2])
    found = ridge_out_of_fold(x, y, folds, alphas=(1e-9, 1e9))
    assert_close(found[4:], float64([-1, 1]), **FLOAT32)
    assert float(found[:4].abs().max()) < 0.01


def test_alpha_is_chosen_with_the_intercept() -> None:
    """y = 1000 - 500 x: without the 1000, weights of 0 would seem better than the right ones."""
    x = torch.tensor([[1.0], [2.0], [1.0], [3.0], [2.0], [3.0]])
    y = 1000 - 500 * x[:, 0]
    found = ridge_out_of_fold(x, y, torch.tensor([0, 0, 1, 1, 2, 2]), alphas=(1e-9, 1e9))
    assert_close(found, y.double(), **FLOAT32)


@given(seeds)
def test_predictions_of_a_fold_do_not_see_its_targets(seed: int) -> None:
    x, y, folds = noise(seed, 9, 2), noise(seed + 1, 9), torch.tensor([0, 1, 2] * 3)
    found = ridge_out_of_fold(x, y, folds, alphas=(0.1, 10.0))
    spoiled = torch.where(folds == 1, 100.0, y)
    again = ridge_out_of_fold(x, spoiled, folds, alphas=(0.1, 10.0))
    assert_close(again[folds == 1], found[folds == 1], **EXACT)
    assert not torch.equal(again[folds == 0], found[folds == 0])


def test_shares_of_variance_by_hand() -> None:
    y = float64([1, 2, 3])  # squared distance from the mean: 2
    assert r_squared(y, y) == 1
    assert r_squared(y, float64([2, 2, 2])) == 0
    assert r_squared(y, float64([3, 2, 1])) == pytest.approx(-3, rel=RELATIVE64)
    assert r_squared(y, float64([1, 2, 4])) == pytest.approx(0.5, rel=RELATIVE64)
    # In float32 a mean of 10 000 such numbers would be off.
    many = torch.tensor([1.0, 4001.0, 2.0]).repeat(3333)
    exact = float(1 - 1 / many.double().var(correction=0))
    assert r_squared(many, many + 1) == pytest.approx(exact, rel=RELATIVE64)


def test_regressions_that_mean_nothing_are_refused() -> None:
    for alpha, n in ((0.0, 3), (1.0, 0)):
        with pytest.raises(ValueError, match=rf"alpha={alpha} with {n} rows: ridge regression needs alpha above 0"):
            ridge(noise(0, n, 2), noise(1, n), alpha=alpha)
    with pytest.raises(ValueError, match="2 folds: one is predicted and two more are needed to choose alpha"):
        ridge_out_of_fold(noise(0, 4, 1), noise(1, 4), torch.tensor([0, 0, 1, 1]), alphas=(1.0,))
    with pytest.raises(ValueError, match="the targets are all the same: there is no variance to predict"):
        r_squared(torch.ones(3), torch.zeros(3))
