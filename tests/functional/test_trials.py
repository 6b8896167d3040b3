"""Exact sign-flip tests over seeds, one comparison alone and several together."""

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import trials as truth
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT64
from torch.testing import assert_close

from keel.functional.trials import sign_flip_test


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand() -> None:
    # The eight ways to turn 3, 2, 1 sum to 6, 4, 2, 0, 0, -2, -4, -6: six are at least as far from 0 as 2, two as 6.
    assert_close(sign_flip_test(float64([[3], [-2], [1]])), float64([6 / 8]), **EXACT)
    assert_close(sign_flip_test(float64([[3], [2], [1]])), float64([2 / 8]), **EXACT)
    assert_close(sign_flip_test(float64([[-3], [-2], [-1]])), float64([2 / 8]), **EXACT)


def test_five_seeds_of_one_sign_reach_the_smallest_p() -> None:
    assert_close(sign_flip_test(float64([[0.1], [5], [0.2], [1], [0.3]])), float64([2 / 32]), **EXACT)


def test_equal_differences_tie_with_every_turn_that_gives_the_same_sum() -> None:
    # One of four against: only the six ways with two of each sign are nearer to 0.
    # In floating point 0.1 + 0.1 + 0.1 - 0.1 depends on the order; the ties must count all the same.
    assert_close(sign_flip_test(float64([[0.1], [0.1], [0.1], [-0.1]])), float64([10 / 16]), **EXACT)
    assert_close(sign_flip_test(float64([[-0.1], [0.1], [0.1], [0.1]])), float64([10 / 16]), **EXACT)


def test_differences_that_are_all_zero_speak_for_nothing() -> None:
    assert_close(sign_flip_test(float64([[0, 1], [0, 1], [0, 1]])), float64([1.0, 2 / 8]), **EXACT)
    assert_close(sign_flip_test(torch.zeros(3, 2)), float64([1.0, 1.0]), **EXACT)


def test_the_unit_does_not_matter() -> None:
    x = noise(3, 5, 3) + 0.5
    assert_close(sign_flip_test(1e-12 * x), sign_flip_test(x), **EXACT)
    assert_close(sign_flip_test(-1e12 * x), sign_flip_test(x), **EXACT)


def test_several_comparisons_by_hand() -> None:
    # Two seeds. First comparison (1, 1), second (0.3, -0.1). Turned signs (++, -+, +-, --): first 2, 0, 0, 2; second
    # 0.2, 0.4, 0.4, 0.2. Two of four reach the first; all reach the second.
    assert_close(sign_flip_test(float64([[1, 0.3], [1, -0.1]])), float64([2 / 4, 1.0]), **EXACT)
    # With (3, -1) as the second: 2, 4, 4, 2 reach the 2 of either.
    assert_close(sign_flip_test(float64([[1, 3], [1, -1]])), float64([1.0, 1.0]), **EXACT)
    # A comparison and its mirror image are one comparison.
    assert_close(sign_flip_test(float64([[1, -1], [2, -2], [3, -3]])), float64([2 / 8, 2 / 8]), **EXACT)


def test_a_weaker_comparison_never_has_the_smaller_p() -> None:
    # (1, 1, 0): 2, reached by four of eight. (0.5, 0.1, 0.1): 0.7, alone reached by two of eight.
    x = float64([[0.5, 1], [0.1, 1], [0.1, 0]])
    assert_close(sign_flip_test(x[:, :1]), float64([2 / 8]), **EXACT)
    assert_close(sign_flip_test(x), float64([4 / 8, 4 / 8]), **EXACT)


def test_one_comparison_agrees_with_scipy() -> None:
    x = noise(5, 7) + 0.4
    theirs = scipy.stats.permutation_test((x.numpy(),), lambda sample, axis: sample.mean(axis=axis), vectorized=True,
                                          permutation_type="samples", n_resamples=10_000)
    assert_close(sign_flip_test(x[:, None]), float64([theirs.pvalue]), **FLOAT64)


@given(seeds, st.integers(1, 6), st.integers(1, 5), st.booleans())
def test_agrees_with_the_reference(seed: int, n_seeds: int, n_comparisons: int, whole: bool) -> None:
    x = noise(seed, n_seeds, n_comparisons, scale=2.0) + 0.3
    x = x.round() if whole else x  # whole numbers tie and vanish often
    assert_close(sign_flip_test(x), float64(truth.sign_flip_test(x.tolist())), **FLOAT64)


def test_works_in_float64_without_a_graph_and_leaves_its_input_alone() -> None:
    x = torch.tensor([[1.0], [2.0]], requires_grad=True)
    p = sign_flip_test(x)
    assert p.dtype == torch.float64
    assert not p.requires_grad
    assert_close(x.detach(), torch.tensor([[1.0], [2.0]]), **EXACT)


def test_complaints() -> None:
    with pytest.raises(ValueError, match="0 seeds: all 2\\^S ways to turn signs are tried for 1 to 20 seeds"):
        sign_flip_test(torch.empty(0, 1))
    with pytest.raises(ValueError, match="21 seeds: all"):
        sign_flip_test(torch.ones(21, 1))
    assert sign_flip_test(torch.ones(20, 1)).item() == 2.0**-19
    with pytest.raises(ValueError, match="a difference is not finite: a seed that has no number"):
        sign_flip_test(float64([[1.0], [float("nan")]]))
