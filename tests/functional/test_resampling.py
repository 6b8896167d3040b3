"""Bootstrap over clusters, sign flips, Holm, Wilson, ranks, letters, and correlations of few rows."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import resampling as truth
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT64, RELATIVE64, STANDARD_ERRORS
from torch.testing import assert_close

from keel.functional.resampling import (
    area_draws,
    association,
    association_draws,
    cluster_draws,
    descending_ranks,
    group_letters,
    harmonic_draws,
    holm,
    kendall_tau_b,
    leave_one_out,
    percentile_interval,
    ratio_draws,
    sign_flip_p,
    top_one_regret,
    two_sided_p,
    wilson_interval,
)
from keel.functional.statistics import area_under_curve, bootstrap_interval

NAN, INF = math.nan, math.inf
grid = st.integers(-2, 2).map(float)
"""Numbers of which two are often equal."""


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- draws of clusters


def test_draws_count_what_the_generator_picks() -> None:
    draws, own = cluster_draws(5, n_draws=3, generator=generator(7)), generator(7)
    picks = [torch.randint(5, (5,), generator=own).tolist() for _ in range(3)]
    assert_close(draws, float64([[pick.count(k) for k in range(5)] for pick in picks]), **EXACT)


@given(seeds, st.integers(1, 6))
def test_every_draw_is_as_large_as_the_whole(seed: int, n: int) -> None:
    draws = cluster_draws(n, n_draws=4, generator=generator(seed))
    assert draws.shape == (4, n) and draws.dtype == torch.float64
    assert draws.sum(1).tolist() == [n] * 4
    # More draws continue the same stream: the first ones stay as they were.
    assert_close(cluster_draws(n, n_draws=6, generator=generator(seed))[:4], draws, **EXACT)


def test_every_cluster_is_drawn_alike() -> None:
    draws = cluster_draws(4, n_draws=4000, generator=generator())
    error = (4 * (1 / 4) * (3 / 4) / 4000) ** 0.5
    assert bool(((draws.mean(0) - 1).abs() < STANDARD_ERRORS * error).all())


def test_nothing_cannot_be_resampled() -> None:
    with pytest.raises(ValueError, match="n_clusters=0: there is nothing to resample"):
        cluster_draws(0, n_draws=1, generator=generator())


def test_ratios_by_hand() -> None:
    # Clusters with 2 of 3, 1 of 1 and 0 of 2 right; a second column that only the last cluster has items in.
    totals, sizes = float64([[2, 0], [1, 0], [0, 1]]), float64([[3, 0], [1, 0], [2, 2]])
    draws = float64([[1, 1, 1], [2, 1, 0], [0, 0, 3]])
    expected = float64([[3 / 6, 1 / 2], [5 / 7, NAN], [0, 1 / 2]])
    assert_close(ratio_draws(draws, totals, sizes), expected, equal_nan=True, **FLOAT64)
    # A total without a size is nothing that was drawn either.
    assert ratio_draws(float64([[1]]), float64([[1]]), float64([[0]])).isnan().all()


@given(seeds, st.integers(1, 5), st.integers(1, 3))
def test_ratios_agree_with_the_reference(seed: int, n: int, columns: int) -> None:
    sizes = noise(seed, n, columns).abs().round()
    totals = noise(seed + 1, n, columns) * sizes
    draws = cluster_draws(n, n_draws=4, generator=generator(seed))
    expected = [[truth.ratio(row, t, s) for t, s in zip(totals.T.tolist(), sizes.T.tolist(), strict=True)]
                for row in draws.tolist()]
    assert_close(ratio_draws(draws, totals, sizes), float64(expected), equal_nan=True, **FLOAT64)


def test_harmonic_means_by_hand() -> None:
    # Three clusters: 1 of 2 and 2 of 2; 1 of 1 and nothing; nothing and 0 of 2.
    totals, sizes = float64([[1, 2], [1, 0], [0, 0]]), float64([[2, 2], [1, 0], [0, 2]])
    # Means 1/2, 1; 2/3, 1/2; 1 and nothing; nothing and 0; 1, 0. Twice the product by the sum: 2/3, 4/7, -, -, 0.
    draws = float64([[1, 0, 0], [1, 1, 1], [0, 2, 0], [0, 0, 1], [0, 1, 1]])
    assert_close(harmonic_draws(draws, totals, sizes), float64([2 / 3, 4 / 7, NAN, NAN, 0]), equal_nan=True, **FLOAT64)
    # Both means are 0.
    assert harmonic_draws(float64([[1]]), float64([[0, 0]]), float64([[3, 1]])).tolist() == [0.0]


def test_areas_by_hand() -> None:
    """Positive 3 and 1, other 1, 0 and 2: of six pairs 3 > 1, 0, 2 and 1 > 0 are in order, 1 = 1 counts half."""
    scores, positive = float64([3, 1, 0, 1, 2]), torch.tensor([True, False, False, True, False])
    assert_close(area_draws(torch.ones(1, 5).double(), scores, positive), float64([4.5 / 6]), **FLOAT64)
    # 3 twice and 1 once against 1 once and 2 twice: in order 2 + 4, half 1, of 9. Nothing positive; nothing else.
    draws = float64([[2, 1, 0, 1, 2], [0, 1, 1, 0, 1], [2, 0, 0, 1, 0]])
    assert_close(area_draws(draws, scores, positive), float64([6.5 / 9, NAN, NAN]), equal_nan=True, **FLOAT64)


@given(seeds, st.lists(grid, min_size=3, max_size=8))
def test_areas_count_an_item_as_often_as_it_is_drawn(seed: int, values: list[float]) -> None:
    """As the area over the items one after the other, and on one resample of each item once as the plain area."""
    scores, positive = float64(values), torch.arange(len(values)) % 2 == 0
    draws = cluster_draws(len(values), n_draws=4, generator=generator(seed))
    for counts, found in zip(draws.long(), area_draws(draws, scores, positive).tolist(), strict=True):
        told = positive.repeat_interleave(counts)
        if bool(told.all()) or not bool(told.any()):
            assert math.isnan(found)
        else:
            area = float(area_under_curve(scores.repeat_interleave(counts), told))
            assert found == pytest.approx(area, rel=RELATIVE64)


def test_draws_and_ratios_give_the_bootstrap_of_groups() -> None:
    values, groups = noise(3, 9), torch.tensor([0, 0, 1, 2, 2, 2, 3, 1, 0])
    sums, counts = torch.zeros(4, 1).double(), torch.zeros(4, 1).double()
    sums[:, 0].index_add_(0, groups, values)
    counts[:, 0].index_add_(0, groups, torch.ones(9).double())
    drawn = ratio_draws(cluster_draws(4, n_draws=1000, generator=generator(2)), sums, counts)
    low, high = percentile_interval(drawn)
    theirs = bootstrap_interval(values, generator=generator(2), groups=groups)
    assert (float(low), float(high)) == pytest.approx(theirs[1:], rel=RELATIVE64)


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_intervals_leave_out_what_is_missing(confidence: float) -> None:
    draws = noise(4, 21, 3)
    draws[5, 0] = draws[9, 0] = NAN
    draws[:, 2] = NAN
    low, high = percentile_interval(draws, confidence=confidence)
    tail = (1 - confidence) / 2
    assert_close(low, float64([truth.quantile(c, tail) for c in draws.T.tolist()]), equal_nan=True, **FLOAT64)
    assert_close(high, float64([truth.quantile(c, 1 - tail) for c in draws.T.tolist()]), equal_nan=True, **FLOAT64)
    assert low.isnan().tolist() == [False, False, True]


def test_intervals_of_any_shape() -> None:
    draws = noise(5, 40, 2, 3)
    low, high = percentile_interval(draws)
    assert low.shape == high.shape == (2, 3)
    one_low, one_high = percentile_interval(draws[:, 1, 2].float())
    assert one_low.dtype == torch.float64 and one_low.shape == ()
    expected = np.quantile(draws[:, 1, 2].float().double().numpy(), [0.025, 0.975])
    assert [float(one_low), float(one_high)] == pytest.approx(expected, rel=RELATIVE64)


# --- tests


@pytest.mark.parametrize(("differences", "p"), [
    ([1, 2, 3, -1], 0.5), ([1, 2, 3, 4], 0.4), ([2] * 99, 0.02), ([3], 1),
    ([-1, -2, -3, 4], 0.5), ([0, 0, 1, 1], 1), ([0, 1, 1, 1], 0.5),
    ([-1, 1], 1), ([NAN, 1, 2, 3, -1], 0.5), ([1, 1, 1, 1, -1, 0, 0, 0], 1), ([0, 0, 0], 1),
])
def test_p_of_a_bootstrap_by_hand(differences: list[float], p: float) -> None:
    assert two_sided_p(float64(differences)) == p
    assert two_sided_p(-float64(differences)) == p


def test_p_of_nothing_is_nothing() -> None:
    assert math.isnan(two_sided_p(float64([NAN])))


@given(st.lists(grid, min_size=1, max_size=9))
def test_p_of_a_bootstrap_agrees_with_the_reference(differences: list[float]) -> None:
    assert two_sided_p(float64(differences)) == pytest.approx(truth.two_sided_p(differences), rel=RELATIVE64)


def test_p_of_a_bootstrap_is_below_a_where_the_interval_excludes_zero() -> None:
    draws = noise(6, 999) + 2
    for confidence in (0.9, 0.95, 0.99):
        low, _ = percentile_interval(draws, confidence=confidence)
        assert (two_sided_p(draws) < 1 - confidence) == (float(low) > 0)
    assert 0.01 < two_sided_p(draws) < 0.1


def flips(differences: list[float], *, seed: int = 0, n_flips: int = 100) -> float:
    return sign_flip_p(float64(differences), n_flips=n_flips, generator=generator(seed))


def test_sign_flips_by_hand() -> None:
    # The eight ways to turn 3, 2, 1 sum to 6, 4, 2, 0, 0, -2, -4, -6; zeros have no sign.
    assert flips([3, 2, 1]) == flips([0, -3, 0, -2, -1]) == 2 / 8
    assert flips([3, -2, 1]) == 6 / 8
    assert flips([0.1, 0.1, 0.1, -0.1]) == flips([-0.1, 0.1, 0.1, 0.1]) == 10 / 16  # whatever the order of the sum
    assert flips([0, 0]) == flips([]) == 1
    # Turning 1e-12 changes nothing beside 0.3, whatever the largest one's sign: eight ways reach the sum, not four.
    assert flips([-0.3, -0.2, -1e-12, 1e-6]) == flips([0.3, 0.2, 1e-12, -1e-6]) == 8 / 16
    assert flips([5]) == 1


@given(st.lists(st.sampled_from([-0.3, -0.1, 0.0, 0.1, 0.2, 0.7]), min_size=1, max_size=7), st.floats(0.01, 100))
def test_sign_flips_agree_with_the_reference(differences: list[float], unit: float) -> None:
    p = flips(differences)
    assert p == truth.sign_flip_p(differences)
    assert p == flips([-unit * d for d in differences]) == flips(sorted(differences))


@pytest.mark.parametrize("unit", [1e-12, -1e-12, 1e12])
def test_sign_flips_have_no_unit_and_a_last_digit(unit: float) -> None:
    # What is a billionth of a billionth of the largest difference does not decide whether two sums tie.
    for differences, p in (([0.1, 0.1, 0.1, -0.1], 10 / 16), ([0.1, 0.1, 1e-18, 0.1, -0.1], 10 / 16),
                           ([-0.1, -0.1, -1e-18, -0.1], 2 / 8), ([0.1, 0.2, 0.7], 2 / 8)):
        assert flips([unit * d for d in differences]) == p


def test_sixteen_are_tried_in_every_way_and_seventeen_at_random() -> None:
    assert flips([1.0] * 16, n_flips=1) == 2 / 2**16
    assert flips([1.0] * 16 + [0.0] * 5, n_flips=1) == 2 / 2**16
    # At random nothing is as far: the one seen is counted all the same.
    assert flips([1.0] * 17, n_flips=99) == 1 / 100
    # All ways are as far from 0 as nothing.
    assert flips([1.0] * 9 + [-1.0] * 9, n_flips=99) == 1


def test_random_flips_are_those_of_the_generator() -> None:
    x, own = noise(8, 20), generator(3)
    ways = [1 - 2 * torch.randint(2, (20,), generator=own).double() for _ in range(200)]
    far = sum(abs(float(way @ x)) >= abs(float(x.sum())) for way in ways)
    assert 0 < far < 200
    assert flips(x.tolist(), seed=3, n_flips=200) == (1 + far) / 201


def test_random_flips_agree_with_scipy() -> None:
    x = noise(9, 30) + 0.3
    theirs = scipy.stats.permutation_test((x.numpy(),), lambda sample, axis: sample.sum(axis=axis), vectorized=True,
                                          permutation_type="samples", n_resamples=4000, rng=np.random.default_rng(1))
    error = (theirs.pvalue * (1 - theirs.pvalue) / 4000 * 2) ** 0.5
    assert abs(flips(x.tolist(), n_flips=4000) - theirs.pvalue) < STANDARD_ERRORS * error


def test_ties_at_random_count_whatever_the_order_of_the_sum() -> None:
    # Of 0.1 turned 17 times, +-1 comes in the two ways that leave one over; only sums as far as 0.1 count, and all do.
    x = [0.1] * 9 + [-0.1] * 8
    assert flips(x, n_flips=50) == 1


@pytest.mark.parametrize("broken", [NAN, INF])
def test_what_is_no_number_has_no_sign(broken: float) -> None:
    with pytest.raises(ValueError, match="a difference is NaN or infinite: a cluster without a number has no sign"):
        flips([1.0, broken])


def test_sign_flips_are_wide_and_take_a_graph() -> None:
    # 1 + 2^-30 is 1 in float32, where the sum would tie with one way more: 1 + 1 - (1 + 2^-30) is not 1.
    assert flips([1.0, 1.0, -1.0 - 2**-20]) == truth.sign_flip_p([1.0, 1.0, -1.0 - 2**-20]) == 1
    assert sign_flip_p(torch.ones(3, requires_grad=True), n_flips=1, generator=generator()) == 0.25


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.5.
    assert_close(holm(float64([0.5, 0.02, 0.01, 0.03])), float64([0.5, 0.06, 0.04, 0.06]), **FLOAT64)
    assert_close(holm(float64([0.9, 0.6])), float64([1, 1]), **EXACT)
    assert_close(holm(float64([0.2])), float64([0.2]), **EXACT)
    assert holm(float64([])).tolist() == []
    # A second test of 0.015 is not better than the first: 2 x 0.01 = 0.02 stands.
    assert_close(holm(float64([0.015, 0.01])), float64([0.02, 0.02]), **FLOAT64)


@given(st.lists(st.sampled_from([0.0, 0.01, 0.02, 0.03, 0.3, 1.0]), min_size=1, max_size=6))
def test_holm_agrees_with_the_reference(p: list[float]) -> None:
    found = holm(float64(p))
    assert_close(found, float64(truth.holm(p)), **FLOAT64)
    assert_close(holm(float64(p[::-1])).flip(0), found, **EXACT)
    assert bool((found >= float64(p)).all()) and found.dtype == torch.float64
    assert holm(torch.tensor(p)).dtype == torch.float64


@pytest.mark.parametrize("broken", [NAN, -0.1, 1.1])
def test_what_is_no_p_is_refused(broken: float) -> None:
    with pytest.raises(ValueError, match=r"a p value is not within \[0, 1\]"):
        holm(float64([0.5, broken]))


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize(("n_right", "n"), [(0, 5), (5, 5), (1, 30), (17, 30), (1, 1), (8456, 10067)])
def test_wilson_agrees_with_scipy(n_right: int, n: int, confidence: float) -> None:
    theirs = scipy.stats.binomtest(n_right, n).proportion_ci(confidence, method="wilson")
    found = wilson_interval(n_right, n, confidence=confidence)
    assert found == pytest.approx((theirs.low, theirs.high), rel=RELATIVE64)
    assert 0 <= found[0] <= n_right / n <= found[1] <= 1
    other = wilson_interval(n - n_right, n, confidence=confidence)
    assert (1 - other[1], 1 - other[0]) == pytest.approx(found, rel=RELATIVE64, abs=RELATIVE64)


def test_wilson_is_95_percent_and_takes_halves() -> None:
    assert wilson_interval(3, 9) == wilson_interval(3, 9, confidence=0.95)
    assert wilson_interval(3, 9)[0] < wilson_interval(3.5, 9)[0] < wilson_interval(4, 9)[0]
    assert wilson_interval(0, 7)[0] == 0 and wilson_interval(7, 7)[1] == 1
    assert wilson_interval(0, 3)[0] == 0 and wilson_interval(3, 3)[1] == 1
    assert wilson_interval(0.5, 7)[0] > 0 and wilson_interval(6.5, 7)[1] < 1


@pytest.mark.parametrize(("n_right", "n"), [(-1, 3), (4, 3), (0, 0), (NAN, 3)])
def test_wilson_of_no_share_is_refused(n_right: float, n: float) -> None:
    with pytest.raises(ValueError, match=f"{n_right} right of {n}: a share needs 0 to n right, and n above 0"):
        wilson_interval(n_right, n)


# --- ranks and letters


def test_ranks_by_hand() -> None:
    values = float64([[0.1, 0.5, 0.3, 0.5], [NAN, 1, -INF, 2]])
    assert_close(descending_ranks(values), float64([[4, 1, 3, 1], [3, 2, 3, 1]]), **EXACT)


@given(st.lists(st.one_of(grid, st.just(NAN)), min_size=1, max_size=6))
def test_ranks_agree_with_the_reference(values: list[float]) -> None:
    ranks = descending_ranks(float64([values, values[::-1]]))
    assert_close(ranks[0], float64(truth.descending_ranks(values)), **EXACT)
    assert_close(ranks[1].flip(0), ranks[0], **EXACT)
    assert ranks.dtype == torch.float64


def symmetric(n: int, differ: list[tuple[int, int]]) -> torch.Tensor:
    same = torch.ones(n, n, dtype=torch.bool)
    for i, j in differ:
        same[i, j] = same[j, i] = False
    return same


@pytest.mark.parametrize(("n", "differ", "letters"), [
    (1, [], ["a"]),
    (3, [], ["a", "a", "a"]),
    (3, [(0, 1), (0, 2), (1, 2)], ["a", "b", "c"]),
    # The first and the last differ; the middle one belongs to both.
    (3, [(0, 2)], ["a", "ab", "b"]),
    (4, [(0, 2), (0, 3), (1, 3)], ["a", "ab", "bc", "c"]),
    # Neighbours differ, others do not.
    (4, [(0, 1), (2, 3)], ["ab", "cd", "ac", "bd"]),
    (0, [], []),
])
def test_letters_by_hand(n: int, differ: list[tuple[int, int]], letters: list[str]) -> None:
    assert group_letters(symmetric(n, differ)) == letters


@given(seeds, st.integers(1, 6), st.floats(-1, 1))
def test_letters_are_the_largest_groups(seed: int, n: int, level: float) -> None:
    upper = (noise(seed, n, n) > level).triu(1)
    same = upper | upper.T | torch.eye(n, dtype=torch.bool)
    letters = group_letters(same)
    for i in range(n):
        for j in range(n):
            assert any(letter in letters[j] for letter in letters[i]) == bool(same[i, j])
    used = sorted(dict.fromkeys("".join(letters)))
    groups = [tuple(i for i in range(n) if letter in letters[i]) for letter in used]
    assert groups == truth.largest_groups(same.tolist())


def test_there_are_more_groups_than_letters() -> None:
    letters = group_letters(torch.eye(53, dtype=torch.bool))
    assert letters[:2] == ["a", "b"] and letters[25:28] == ["z", "a1", "b1"] and letters[51:] == ["z1", "a2"]


def test_sameness_is_mutual() -> None:
    for same in (torch.tensor([[True, False], [True, True]]), torch.tensor([[True, True], [True, False]])):
        with pytest.raises(ValueError, match="same must be symmetric and True on its diagonal"):
            group_letters(same)


# --- correlations of few rows


@given(st.lists(st.tuples(grid, grid), min_size=2, max_size=9))
def test_kendall_agrees_with_the_reference_and_scipy(rows: list[tuple[float, float]]) -> None:
    x, y = (list(side) for side in zip(*rows, strict=True))
    found = kendall_tau_b(float64(x), float64(y))
    assert_close(found, float64(truth.kendall_tau_b(x, y)), **FLOAT64)
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert float(found) == pytest.approx(scipy.stats.kendalltau(x, y).statistic, rel=RELATIVE64, abs=RELATIVE64)
    assert_close(kendall_tau_b(float64(y), float64(x)), found, **FLOAT64)
    assert_close(kendall_tau_b(float64(x), -float64(y)), -found, **FLOAT64)
    assert_close(kendall_tau_b(float64(x).exp(), float64(y) ** 3), found, **FLOAT64)  # only the order counts


def test_kendall_by_hand() -> None:
    # Of the three pairs two agree, one does not.
    assert_close(kendall_tau_b(float64([1, 2, 3]), float64([1, 3, 2])), float64(1 / 3), **FLOAT64)
    # One pair tied in x, the other two agree: 2 / sqrt(2 x 3).
    assert_close(kendall_tau_b(float64([1, 1, 2]), float64([1, 2, 3])), float64(2 / 6**0.5), **FLOAT64)
    assert_close(kendall_tau_b(float64([1, 1]), float64([1, 2])), float64(0), **EXACT)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    found = kendall_tau_b(x, torch.tensor([1.0, 2.0]))
    assert found.dtype == torch.float64 and not found.requires_grad and float(found) == 1


@pytest.mark.parametrize(("how", "theirs"), [
    ("spearman", scipy.stats.spearmanr), ("kendall", scipy.stats.kendalltau), ("pearson", scipy.stats.pearsonr)])
def test_associations_go_by_their_names(how: str, theirs) -> None:
    x, y = noise(1, 9), noise(2, 9)
    assert float(association(x, y, how=how)) == pytest.approx(theirs(x.numpy(), y.numpy()).statistic, rel=RELATIVE64)
    lowest, highest = leave_one_out(x, y, how=how)
    left = [theirs(np.delete(x.numpy(), i), np.delete(y.numpy(), i)).statistic for i in range(9)]
    assert (lowest, highest) == pytest.approx((min(left), max(left)), rel=RELATIVE64)
    draws = cluster_draws(9, n_draws=5, generator=generator(4))
    for counts, found in zip(draws, association_draws(x, y, draws, how=how), strict=True):
        rows = [i for i in range(9) for _ in range(int(counts[i]))]
        assert float(found) == pytest.approx(theirs(x.numpy()[rows], y.numpy()[rows]).statistic, rel=RELATIVE64)


def test_an_unknown_association_is_refused() -> None:
    with pytest.raises(ValueError, match="how='cosine' is none of spearman, kendall, pearson"):
        association(float64([1, 2]), float64([1, 2]), how="cosine")


def test_a_resample_of_one_value_has_no_association() -> None:
    x, y = float64([1, 2, 2]), float64([5, 5, 6])
    draws = float64([[3, 0, 0], [0, 2, 1], [2, 1, 0], [1, 0, 2]])
    found = association_draws(x, y, draws, how="spearman")
    # Only one row; x is 2 alone; y is 5 alone; both vary.
    assert_close(found, float64([NAN, NAN, NAN, 1]), equal_nan=True, **FLOAT64)
    assert association_draws(x.float(), y.float(), draws, how="kendall").dtype == torch.float64


def test_one_row_that_makes_it_all() -> None:
    # Without the last row x and y run against each other.
    x, y = float64([1, 2, 3, 10]), float64([3, 2, 1, 10])
    assert leave_one_out(x, y, how="spearman") == pytest.approx((-1, 0.5), rel=RELATIVE64)
    assert leave_one_out(x[1:], y[1:], how="spearman") == pytest.approx((-1, 1), rel=RELATIVE64)
    with pytest.raises(ValueError, match="2 rows: with one left out, two have to remain"):
        leave_one_out(x[:2], y[:2], how="spearman")


def test_regret_by_hand() -> None:
    x, y = float64([0.7, 0.9, 0.9, 0.1]), float64([1, 3, 4, 6])
    assert top_one_regret(x, y) == 6 - 3.5
    assert top_one_regret(y, y) == 0
    assert top_one_regret(torch.ones(4), y) == 6 - 3.5
    # 2^24 + 1 is no float32 number.
    assert top_one_regret(float64([1, 0]), float64([2.0**24, 2.0**24 + 1])) == 1
    assert top_one_regret(torch.tensor([1, 1, 0.0]), torch.tensor([1, 2**-24, 1.0])) == 0.5 - 2**-25
