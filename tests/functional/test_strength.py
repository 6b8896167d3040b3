"""Preference strength: votes, ranks and the weakest pairs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import strength as truth
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT64
from torch.testing import assert_close

from keel.functional.strength import lowest, quantile_of, ranks, votes


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_votes_by_hand() -> None:
    # Differences of two members: 1 and 3 (mean 2, both 1 away), 0 and -2 (mean -1; 0 is no vote), 5 and 5.
    counted = votes(float64([[2, 1, 5], [4, 0, 6]]), float64([[1, 1, 0], [1, 2, 1]]))
    assert_close(counted.mean, float64([2, -1, 5]), **EXACT)
    assert_close(counted.std, float64([1, 1, 0]), **EXACT)
    assert_close(counted.share_for, float64([1, 0, 1]), **EXACT)
    assert_close(counted.z, float64([2 / 1.000001, -1 / 1.000001, 5 / 0.000001]), **FLOAT64)


def test_one_scale_by_hand() -> None:
    # The first member's differences are 1 and 3 (std 1), the second's 100 and -100 (std 100): now 1, 3 and 1, -1.
    counted = votes(float64([[1, 3], [100, -100]]), float64([[0, 0], [0, 0]]), one_scale=True)
    assert_close(counted.mean, float64([1, 1]), **FLOAT64)
    assert_close(counted.std, float64([0, 2]), **FLOAT64)


@given(seeds, st.integers(1, 5), st.integers(2, 6), st.booleans())
def test_votes_agree_with_the_reference_and_numpy(seed: int, k: int, n: int, one_scale: bool) -> None:
    chosen, rejected = noise(seed, k, n), noise(seed + 1, k, n)
    counted = votes(chosen, rejected, one_scale=one_scale)
    expected = float64(truth.votes(chosen.tolist(), rejected.tolist(), one_scale))
    assert_close(torch.stack([counted.mean, counted.std, counted.share_for], 1), expected[:, :3], **FLOAT64)
    assert_close(counted.z, counted.mean / (counted.std + 1e-6), **FLOAT64)
    if k > 1:  # one member alone has a std of 0 but for rounding, which z magnifies
        assert_close(counted.z, expected[:, 3], **FLOAT64)
    if not one_scale:
        gap = (chosen - rejected).numpy()
        assert_close(counted.mean, torch.from_numpy(gap.mean(0)), **FLOAT64)
        assert_close(counted.std, torch.from_numpy(np.std(gap, axis=0, ddof=0)), **FLOAT64)


@given(seeds, seeds)
def test_permuting_members_changes_nothing_and_swapping_sides_turns_the_vote(seed: int, order_seed: int) -> None:
    chosen, rejected = noise(seed, 4, 5), noise(seed + 1, 4, 5)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(order_seed))
    here, there = votes(chosen, rejected), votes(chosen[order], rejected[order])
    turned = votes(rejected, chosen)
    for name in ("mean", "std", "share_for", "z"):
        assert_close(getattr(here, name), getattr(there, name), **FLOAT64)
    assert_close(turned.mean, -here.mean, **FLOAT64)
    assert_close(turned.std, here.std, **FLOAT64)
    assert_close(turned.share_for, 1 - here.share_for, **FLOAT64)


def test_votes_are_float64_targets() -> None:
    chosen = torch.tensor([[1.0]], requires_grad=True)
    rejected = torch.tensor([[2.0**-30]], requires_grad=True)
    counted = votes(chosen, rejected)
    assert not any(getattr(counted, name).requires_grad for name in ("mean", "std", "share_for", "z"))
    assert {getattr(counted, name).dtype for name in ("mean", "std", "share_for", "z")} == {torch.float64}
    scaled = votes(torch.tensor([[1.0, 2.0]], requires_grad=True), torch.zeros(1, 2), one_scale=True)
    assert not scaled.mean.requires_grad
    # Widened before the subtraction: in float32 the small score is lost.
    assert_close(counted.mean, float64([1 - 2.0**-30]), **EXACT)


def test_a_member_without_a_scale_is_refused() -> None:
    scores = float64([[1, 2, 3], [0.1, 0.1, 0.1]])
    with pytest.raises(ValueError, match="member 1 has the same difference for every pair and so no scale: leave it"):
        votes(scores, torch.zeros_like(scores), one_scale=True)
    assert_close(votes(scores, torch.zeros_like(scores)).share_for, float64([1, 1, 1]), **EXACT)


def test_ranks_and_groups_by_hand() -> None:
    # The two zeros keep the order of the file.
    strength = float64([0.5, -1, 0, 2, 0])
    assert ranks(strength).tolist() == [3, 0, 1, 4, 2]
    # floor(rank * 2 / 5): ranks 0, 1, 2 in the lower half.
    assert quantile_of(strength, n=2).tolist() == [1, 0, 0, 1, 0]
    assert quantile_of(strength).tolist() == [6, 0, 2, 8, 4]
    # floor(0.5 * 5) = 2 pairs.
    assert lowest(strength, share=0.5).tolist() == [False, True, True, False, False]
    assert lowest(strength, share=0.0).tolist() == [False] * 5
    assert lowest(strength, share=1.0).tolist() == [True] * 5


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(1, 12), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_ranks_agree_with_the_reference(strength: list[int], n: int, share: float) -> None:
    x = float64(strength)
    assert ranks(x).tolist() == truth.ranks(strength)
    assert quantile_of(x, n=n).tolist() == truth.quantiles(strength, n)
    assert set(lowest(x, share=share).nonzero().flatten().tolist()) == truth.lowest(strength, share)


def test_many_ties_stay_in_order() -> None:
    """Sorting networks for short rows are stable by accident; a thousand equal numbers are not."""
    assert ranks(torch.zeros(1000)).tolist() == list(range(1000))
    assert quantile_of(torch.zeros(1000)).bincount().tolist() == [100] * 10


def test_a_share_means_the_whole_number_that_it_names() -> None:
    # 0.29 * 100 is a hair below 29 in floating point.
    assert math.floor(0.29 * 100) == 28
    assert int(lowest(noise(0, 100), share=0.29).sum()) == 29
    assert int(lowest(noise(0, 100), share=0.289).sum()) == 28
    assert quantile_of(torch.empty(0)).tolist() == lowest(torch.empty(0), share=0.1).tolist() == []


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"share={share} is outside 0 to 1: 0.1 names the weakest tenth"):
        lowest(float64([1]), share=share)


def test_no_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="n=0 groups: take 1 or more"):
        quantile_of(float64([1]), n=0)
    assert quantile_of(float64([1, 2]), n=1).tolist() == [0, 0]
