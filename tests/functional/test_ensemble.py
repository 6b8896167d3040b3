"""Scores of several reward models made into one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import ensemble as truth
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT32, FLOAT64
from torch.testing import assert_close

from keel.functional.ensemble import combined_scores, standardised


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


WAYS = [("mean", None), ("minimum", None), ("mean_minus_std", 0.5), ("mean_minus_variance", 0.5), ("median", None)]
MEMBERS = float64([[1, 7], [2, 7], [6, 7]])


@pytest.mark.parametrize(("way", "expected"), [
    # Means 9/3 = 3 and 7; squares 4 + 1 + 9 = 14 about 3, divisor K = 3; members that agree have no spread.
    (WAYS[0], [3, 7]),
    (WAYS[1], [1, 7]),
    (WAYS[2], [3 - 0.5 * (14 / 3) ** 0.5, 7]),
    (WAYS[3], [3 - 0.5 * 14 / 3, 7]),
    (WAYS[4], [2, 7]),
])
def test_combining_by_hand(way: tuple[str, float | None], expected: list[float]) -> None:
    how, coef = way
    scores, std = combined_scores(MEMBERS, how=how, coef=coef)
    assert_close(scores, float64(expected), **FLOAT64)
    assert_close(std, float64([(14 / 3) ** 0.5, 0]), **FLOAT64)


@pytest.mark.parametrize("way", WAYS)
def test_one_member_is_its_own_opinion(way: tuple[str, float | None]) -> None:
    scores, std = combined_scores(MEMBERS[:1], how=way[0], coef=way[1])
    assert_close((scores, std), (MEMBERS[0], float64([0, 0])), **EXACT)


@given(seeds, st.integers(1, 5), st.integers(1, 4), st.sampled_from(WAYS))
def test_combining_agrees_with_the_reference(seed: int, members: int, n: int, way: tuple[str, float | None]) -> None:
    how, coef = way
    scores = noise(seed, members, n)
    expected = float64([truth.combined(column, how, coef) for column in scores.T.tolist()])
    assert_close(torch.stack(combined_scores(scores, how=how, coef=coef), 1), expected, **FLOAT64)


@given(seeds)
def test_caution_without_weight_is_the_mean_and_never_pays_more(seed: int) -> None:
    scores = noise(seed, 3, 4)
    mean, _ = combined_scores(scores, how="mean")
    assert_close(combined_scores(scores, how="mean_minus_std", coef=0.0)[0], mean, **EXACT)
    for how, coef in WAYS[1:4]:
        assert bool((combined_scores(scores, how=how, coef=coef)[0] <= mean).all())


def test_combined_scores_are_wide_targets() -> None:
    scores = torch.tensor([[1.0, 2.0], [1.0078125, 2.0]], dtype=torch.bfloat16, requires_grad=True)
    combined, std = combined_scores(scores, how="mean")
    assert combined.dtype == std.dtype == torch.float32
    assert not combined.requires_grad
    assert not std.requires_grad
    # Half of 2 + 1/128: not a bfloat16 number.
    assert_close(combined, torch.tensor([1.00390625, 2.0]), **EXACT)


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    scores, _ = combined_scores(float64([[9], [1], [2], [4]]), how="median")
    assert_close(scores, float64([3]), **EXACT)


@given(seeds, st.sampled_from(WAYS))
def test_the_order_of_the_members_does_not_matter(seed: int, way: tuple[str, float | None]) -> None:
    scores = noise(seed, 4, 3)
    turned = combined_scores(scores.flip(0), how=way[0], coef=way[1])
    assert_close(combined_scores(scores, how=way[0], coef=way[1]), turned, **FLOAT64)


def test_another_way_of_combining_is_refused() -> None:
    with pytest.raises(ValueError, match="how='best' is none of mean, minimum, median, mean_minus_std, mean_minus_var"):
        combined_scores(MEMBERS, how="best")


@pytest.mark.parametrize(("how", "coef"), [("mean", 0.5), ("minimum", 0.5), ("median", 0.5), ("mean_minus_std", None),
                                           ("mean_minus_variance", None)])
def test_only_what_is_subtracted_has_a_coefficient(how: str, coef: float | None) -> None:
    with pytest.raises(ValueError, match=rf"how='{how}' and coef={coef} do not go together: mean_minus_std and mean_m"):
        combined_scores(MEMBERS, how=how, coef=coef)


def test_standardising_by_hand() -> None:
    scores = float64([[1, 3], [10, 30]])
    # Member 0: (1 - 2) / 0.5 and (3 - 2) / 0.5. Member 1: (10 - 20) / 5 and (30 - 20) / 5: the same opinions.
    scaled = standardised(scores, float64([2, 20]), float64([0.5, 5]))
    assert_close(scaled, float64([[-2, 2], [-2, 2]]), **EXACT)


@given(seeds)
def test_standardised_on_its_own_calibration_set_has_mean_0_and_std_1(seed: int) -> None:
    scores = noise(seed, 3, 5)
    mean, std = scores.mean(1), scores.std(1, correction=0)
    scaled = standardised(scores, mean, std)
    assert_close(scaled, float64([truth.standardised(row) for row in scores.tolist()]), **FLOAT64)
    # A member in other units, or with another offset, says the same.
    assert_close(standardised(3 * scores - 7, 3 * mean - 7, 3 * std), scaled, **FLOAT64)


def test_standardised_scores_are_wide_targets() -> None:
    scores = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    mean, std = torch.tensor([1 / 256], dtype=torch.bfloat16), torch.tensor([1.0], requires_grad=True)
    scaled = standardised(scores, mean, std)
    assert not scaled.requires_grad
    # 1 - 1/256 and a third of it are not bfloat16 numbers.
    assert_close(scaled, torch.tensor([[1 - 1 / 256]]), **EXACT)
    thirds = standardised(scores, torch.zeros(1, dtype=torch.bfloat16), torch.tensor([3.0], dtype=torch.bfloat16))
    assert_close(thirds, torch.tensor([[1 / 3]]), **FLOAT32)


@pytest.mark.parametrize("std", [0.0, float("nan"), -1.0])
def test_a_member_without_a_scale_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match=rf"member 1 has std={std} on the calibration set: it scores everything alike"):
        standardised(MEMBERS[:2], float64([0, 0]), float64([1, std]))
