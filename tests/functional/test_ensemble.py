"""Scores of several reward models made into one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import ensemble as truth
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT64
from torch.testing import assert_close

from keel.functional.ensemble import combined_scores


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


WAYS = [("mean", None), ("minimum", None), ("mean_minus_std", 0.5)]
MEMBERS = float64([[1, 7], [2, 7], [6, 7]])


@pytest.mark.parametrize(("way", "expected"), [
    # Means 9/3 = 3 and 7; squares 4 + 1 + 9 = 14 about 3, divisor K = 3; members that agree have no spread.
    (WAYS[0], [3, 7]),
    (WAYS[1], [1, 7]),
    (WAYS[2], [3 - 0.5 * (14 / 3) ** 0.5, 7]),
])
def test_combining_by_hand(way: tuple[str, float | None], expected: list[float]) -> None:
    how, std_coef = way
    scores, std = combined_scores(MEMBERS, how=how, std_coef=std_coef)
    assert_close(scores, float64(expected), **FLOAT64)
    assert_close(std, float64([(14 / 3) ** 0.5, 0]), **FLOAT64)


@pytest.mark.parametrize("way", WAYS)
def test_one_member_is_its_own_opinion(way: tuple[str, float | None]) -> None:
    scores, std = combined_scores(MEMBERS[:1], how=way[0], std_coef=way[1])
    assert_close((scores, std), (MEMBERS[0], float64([0, 0])), **EXACT)


@given(seeds, st.integers(1, 5), st.integers(1, 4), st.sampled_from(WAYS))
def test_combining_agrees_with_the_reference(seed: int, members: int, n: int, way: tuple[str, float | None]) -> None:
    how, std_coef = way
    scores = noise(seed, members, n)
    expected = float64([truth.combined(column, how, std_coef) for column in scores.T.tolist()])
    assert_close(torch.stack(combined_scores(scores, how=how, std_coef=std_coef), 1), expected, **FLOAT64)


@given(seeds)
def test_caution_without_weight_is_the_mean_and_never_pays_more(seed: int) -> None:
    scores = noise(seed, 3, 4)
    mean, _ = combined_scores(scores, how="mean")
    assert_close(combined_scores(scores, how="mean_minus_std", std_coef=0.0)[0], mean, **EXACT)
    for how, std_coef in WAYS[1:]:
        assert bool((combined_scores(scores, how=how, std_coef=std_coef)[0] <= mean).all())


def test_combined_scores_are_wide_targets() -> None:
    scores = torch.tensor([[1.0, 2.0], [1.0078125, 2.0]], dtype=torch.bfloat16, requires_grad=True)
    combined, std = combined_scores(scores, how="mean")
    assert combined.dtype == std.dtype == torch.float32
    assert not combined.requires_grad
    assert not std.requires_grad
    # Half of 2 + 1/128: not a bfloat16 number.
    assert_close(combined, torch.tensor([1.00390625, 2.0]), **EXACT)


def test_another_way_of_combining_is_refused() -> None:
    with pytest.raises(ValueError, match="how='median' is none of 'mean', 'minimum', 'mean_minus_std'"):
        combined_scores(MEMBERS, how="median")


@pytest.mark.parametrize(("how", "std_coef"), [("mean", 0.5), ("minimum", 0.5), ("mean_minus_std", None)])
def test_std_coef_belongs_to_mean_minus_std(how: str, std_coef: float | None) -> None:
    with pytest.raises(ValueError, match=rf"how='{how}' and std_coef={std_coef} do not go together: mean_minus_std"):
        combined_scores(MEMBERS, how=how, std_coef=std_coef)
