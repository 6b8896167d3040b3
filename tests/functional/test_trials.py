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
    # Means over the eight ways to turn 3, 2, 1 (times 3): 6, 4, 2, 0, 0, -2, -4, -6. Three reach 2.
    assert_close(sign_flip_test(float64([[3], [-2], [1]])), float64([3 / 8]), **EXACT)
    assert_close(sign_flip_test(float64([[3], [2], [1]])), float64([1 / 8]), **EXACT)
    assert_close(sign_flip_test(float64([[-3], [-2], [-1]])), float64([1.0]), **EXACT)


def test_five_seeds_of_one_sign_reach_the_smallest_p() -> None:
    assert_close(sign_flip_test(float64([[0.1], [5], [0.2], [1], [0.3]])), float64([1 / 32]), **EXACT)


def test_equal_differences_tie_with_every_turn_that_gives_the_same_sum() -> None:
    # One of four against: the observed sum 2 is reached by the row without turns and by the four with one: 5 of 16.
    # In floating point 0.1 + 0.1 + 0.1 - 0.1 depends on the order; the ties must count all the same.
    assert_close(sign_flip_test(float64([[0.1], [0.1], [0.1], [-0.1]])), float64([5 / 16]), **EXACT)
    assert_close(sign_flip_test(float64([[-0.1], [0.1], [0.1], [0.1]])), float64([5 / 16]), **EXACT)


def test_differences_that_are_all_zero_speak_for_nothing() -> None:
    assert_close(sign_flip_test(float64([[0, 1], [0, 1], [0, 1]])), float64([1.0, 1 / 8]), **EXACT)


def test_the_unit_of_a_comparison_does_not_matter() -> None:
    x = noise(3, 5, 3) + 0.5
    assert_close(sign_flip_test(x * float64([1, 1e-6, 1e9])), sign_flip_test(x), **EXACT)


def test_several_comparisons_by_hand() -> None:
    # Two seeds. First comparison (1, 1): u = 1. Second (3, -1): u = 1 / sqrt(5). Turned signs (++, -+, +-, --):
    # first 1, 0, 0, -1; second 1, -2, 2, -1 over sqrt(5). The first is reached by ++ alone: 1/4. The second, against
    # itself only, by ++ and +-: 2/4.
    assert_close(sign_flip_test(float64([[1, 3], [1, -1]])), float64([1 / 4, 2 / 4]), **EXACT)
    # A comparison and its mirror image: the first against both is reached by ++ and --, so it is no better than chance.
    assert_close(sign_flip_test(float64([[1, -1], [1, -1]])), float64([2 / 4, 1.0]), **EXACT)


def test_a_weaker_comparison_never_has_the_smaller_p() -> None:
    # Alone the weaker one would have p = 1/4; beside the stronger, whose p is 2/4, it has that as well.
    x = float64([[-5, 3, 1], [-5, 1, 1]])
    strong, weak = sign_flip_test(x)[2], sign_flip_test(x)[1]
    assert strong == 0.5
    assert weak == 0.5
    assert sign_flip_test(x[:, 1:2]).item() == 0.25


def test_one_comparison_agrees_with_scipy() -> None:
    x = noise(5, 7) + 0.4
    theirs = scipy.stats.permutation_test((x.numpy(),), lambda sample, axis: sample.mean(axis=axis), vectorized=True,
                                          permutation_type="samples", alternative="greater", n_resamples=10_000)
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
    assert sign_flip_test(torch.ones(20, 1)).item() == 2.0**-20
    with pytest.raises(ValueError, match="a difference is not finite: a seed that has no number"):
        sign_flip_test(float64([[1.0], [float("nan")]]))
