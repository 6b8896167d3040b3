"""Bootstrap intervals, explained variance, repetition, wins, the sign test and correlations."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from references import statistics as truth
from references.ragged import noise, response_masks, seeds
from tolerances import BOOTSTRAP_SPREAD, EXACT, FLOAT64, RELATIVE64
from torch.testing import assert_close

from keel.functional.statistics import (
    agreed_points,
    area_under_curve,
    bootstrap_interval,
    correlation,
    explained_variance,
    rank_correlation,
    repeated_share,
    sign_test,
    win_points,
)

NAN = float("nan")


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_bootstrap_agrees_with_scipy(confidence: float) -> None:
    values = noise(11, 400) + 2
    mean, low, high = bootstrap_interval(values, generator=generator(), n_resamples=2000, confidence=confidence)
    theirs = scipy.stats.bootstrap((values.numpy(),), np.mean, n_resamples=2000, confidence_level=confidence,
                                   method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert mean == pytest.approx(float(values.mean()), rel=RELATIVE64)
    assert low < mean < high
    width = theirs.high - theirs.low
    assert abs(low - theirs.low) < BOOTSTRAP_SPREAD * width
    assert abs(high - theirs.high) < BOOTSTRAP_SPREAD * width


def test_bootstrap_ends_are_quantiles_of_resampled_means() -> None:
    values, own = noise(9, 5) + 2, generator(3)
    means = [float(values[torch.randint(5, (5,), generator=own)].mean()) for _ in range(1000)]
    expected = [float(values.mean()), np.quantile(means, 0.025), np.quantile(means, 0.975)]
    assert list(bootstrap_interval(values, generator=generator(3))) == pytest.approx(expected, rel=RELATIVE64)


def test_bootstrap_of_groups_draws_them_whole() -> None:
    values, groups = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), torch.tensor([0, 1, 1, 2, 2, 2])
    draws = generator(3)
    means = []
    for _ in range(1000):
        picked = [i for g in torch.randint(3, (3,), generator=draws).tolist() for i in range(6) if groups[i] == g]
        means.append(float(values[torch.tensor(picked)].double().mean()))
    low, high = np.quantile(means, [0.025, 0.975])
    found = bootstrap_interval(values, generator=generator(3), groups=groups)
    assert found == pytest.approx((4 / 6, low, high), rel=RELATIVE64)


def test_bootstrap_of_equal_values_has_no_width_and_repeats_with_its_seed() -> None:
    assert bootstrap_interval(torch.full((6,), 0.5), generator=generator()) == (0.5, 0.5, 0.5)
    values = noise(1, 50)
    assert bootstrap_interval(values, generator=generator(5)) == bootstrap_interval(values, generator=generator(5))
    assert bootstrap_interval(values, generator=generator(5)) != bootstrap_interval(values, generator=generator(6))


def test_bootstrap_averages_in_float64_and_takes_values_with_a_graph() -> None:
    # 1 + 2^-30 is 1 in float32: the mean of a float64 input must keep it.
    mean, _, _ = bootstrap_interval(float64([1, 1 + 2**-29]), generator=generator(), n_resamples=2)
    assert mean == 1 + 2**-30
    assert bootstrap_interval(torch.ones(2, requires_grad=True), generator=generator(), n_resamples=2)[0] == 1.0
    narrow = noise(4, 101).float()
    mean, low, high = bootstrap_interval(narrow, generator=generator(), n_resamples=3)
    assert (mean, low, high) == bootstrap_interval(narrow.double(), generator=generator(), n_resamples=3)


def test_bootstrap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values: a mean over nothing has no interval"):
        bootstrap_interval(torch.empty(0), generator=generator())


def test_explained_variance_by_hand() -> None:
    mask = torch.tensor([[True, True, True, False]])
    returns = float64([[1, 3, 5, NAN]])
    # Var(R) = 8/3. Errors 1, 0, -1 have variance 2/3: 1 - 1/4. A constant offset costs nothing.
    assert_close(explained_variance(float64([[0, 3, 6, NAN]]), returns, mask), float64(0.75), **FLOAT64)
    assert_close(explained_variance(float64([[10, 13, 16, NAN]]), returns, mask), float64(0.75), **FLOAT64)
    assert_close(explained_variance(returns, returns, mask), float64(1), **FLOAT64)
    assert_close(explained_variance(float64([[2, 2, 2, NAN]]), returns, mask), float64(0), **FLOAT64)
    # Worse than the mean is negative: errors -4, 0, 4 have variance 32/3, 1 - 4.
    assert_close(explained_variance(float64([[5, 3, 1, NAN]]), returns, mask), float64(-3), **FLOAT64)


def test_explained_variance_where_returns_do_not_vary() -> None:
    ones = torch.ones(1, 3)
    assert_close(explained_variance(torch.randn(1, 3), ones, ones > 0), float64(0), **EXACT)
    assert_close(explained_variance(ones, ones, ones < 0), float64(0), **EXACT)
    # A spread of 1.44e-12 is still a spread: returns 0 and 2.4e-6, values half as far apart, 1 - 1/4.
    small = explained_variance(float64([[0, 1.2e-6]]), float64([[0, 2.4e-6]]), torch.ones(1, 2) > 0)
    assert_close(small, float64(0.75), **FLOAT64)
    # 7.2e-13 is not.
    none = explained_variance(float64([[0, 0.85e-6]]), float64([[0, 1.7e-6]]), torch.ones(1, 2) > 0)
    assert_close(none, float64(0), **EXACT)
    # Nor is 1e-12 itself.
    edge = explained_variance(float64([[0, 0]]), float64([[-1e-6, 1e-6]]), torch.ones(1, 2) > 0)
    assert_close(edge, float64(0), **EXACT)
    edge = explained_variance(float64([[-5e-7, 5e-7]]), float64([[-1e-6, 1e-6]]), torch.ones(1, 2) > 0)
    assert_close(edge, float64(0), **EXACT)


def test_explained_variance_carries_no_graph_and_works_in_float64() -> None:
    values, returns = torch.randn(1, 3, requires_grad=True), torch.randn(1, 3, requires_grad=True)
    result = explained_variance(values, returns, values < 99)
    assert result.dtype == torch.float64
    assert not result.requires_grad
    # Offsets of 1e6 leave float32 with a sixteenth of a unit; the difference of values and returns must not see it.
    returns = float64([[1e6, 1e6 + 0.01]])
    assert_close(explained_variance(returns - 0.5, returns, returns > 0), float64(1), **FLOAT64)
    # The same for the sums over float32 returns.
    narrow = 1e4 + torch.linspace(0, 1, 50)[None]
    expected = truth.explained_variance([1e4] * 50, narrow[0].tolist())
    assert_close(explained_variance(torch.full((1, 50), 1e4), narrow, narrow > 0), float64(expected), **FLOAT64)
    half = narrow - narrow.frac() / 2
    expected = truth.explained_variance(half[0].tolist(), narrow[0].tolist())
    assert_close(explained_variance(half, narrow, narrow > 0), float64(expected), **FLOAT64)


@given(response_masks(), seeds)
def test_explained_variance_agrees_with_the_reference(mask: torch.Tensor, seed: int) -> None:
    returns = noise(seed, *mask.shape)
    values = returns + noise(seed + 1, *mask.shape, scale=0.5)
    expected = truth.explained_variance(values[mask].tolist(), returns[mask].tolist())
    result = explained_variance(values.masked_fill(~mask, NAN), returns.masked_fill(~mask, NAN), mask)
    assert_close(result, float64(expected), **FLOAT64)


def test_repeated_share_by_hand() -> None:
    # 2-grams of 1 2 1 2 1: 12, 21, 12, 21: two of four were there before.
    assert repeated_share([1, 2, 1, 2, 1], n=2) == 0.5
    assert repeated_share([1, 2, 3, 4, 5]) == 0.0
    # One token over and over: 4-grams of seven tokens are four, three of them repeats.
    assert repeated_share([9] * 7) == 0.75
    assert repeated_share([9, 9, 9]) == 0.0
    assert repeated_share([9, 9, 9, 9]) == 0.0
    assert repeated_share([]) == 0.0


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(1, 5))
def test_repeated_share_agrees_with_the_reference(ids: list[int], n: int) -> None:
    assert repeated_share(ids, n=n) == pytest.approx(truth.repeated_share(ids, n), rel=RELATIVE64)


def test_points_by_hand() -> None:
    # Differences 2, 0, -2, 0.5, -0.5: without a margin only the second is a tie, at 0.5 the last two are as well.
    ours, theirs = float64([3, 1, 0, 1, 0.5]), float64([1, 1, 2, 0.5, 1])
    assert win_points(ours, theirs).tolist() == [1, 0.5, 0, 1, 0]
    assert win_points(ours, theirs, tie_margin=0.5).tolist() == [1, 0.5, 0, 0.5, 0.5]
    assert win_points(ours, theirs, tie_margin=0.25).tolist() == [1, 0.5, 0, 1, 0]
    with pytest.raises(ValueError, match=r"tie_margin=-0\.1 is negative: a pair would win and lose at once"):
        win_points(ours, theirs, tie_margin=-0.1)


@given(seeds, st.integers(0, 40), st.sampled_from([0.0, 0.4, 3.0]))
def test_points_agree_with_the_reference_and_with_the_other_side(seed: int, n: int, margin: float) -> None:
    ours, theirs = noise(seed, n).round(decimals=1), noise(seed + 1, n).round(decimals=1)
    points = win_points(ours, theirs, tie_margin=margin)
    assert points.tolist() == truth.win_points(ours.tolist(), theirs.tolist(), margin)
    assert_close(points + win_points(theirs, ours, tie_margin=margin), torch.ones(n), **EXACT)


def test_both_orders_by_hand() -> None:
    # Agreed win, agreed loss, a flip each way, an agreed tie, and a tie in one order only, which is a flip too.
    first = float64([0.9, 0.2, 0.8, 0.1, 0.5, 0.5, 0.7])
    second = float64([0.6, 0.4, 0.3, 0.9, 0.5, 0.6, 0.5])
    points, flipped = agreed_points(first, second)
    assert points.tolist() == [1, 0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert flipped.tolist() == [False, False, True, True, False, True, True]


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.3, 0.5, 0.51, 1.0])] * 2), max_size=20))
def test_both_orders_agree_with_the_reference(pairs: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    points, flipped = agreed_points(float64(first), float64(second))
    assert (points.tolist(), flipped.tolist()) == truth.agreed_points(first, second)


def test_sign_test_by_hand() -> None:
    # Five coins: one outcome of 32 has no head, five have one; both tails: 2 (1 + 5) / 32.
    assert sign_test(4, 1) == sign_test(1, 4) == 0.375
    assert sign_test(5, 0) == 2 / 32
    # Even and nearly even are no evidence at all, nor is no decision.
    assert sign_test(3, 3) == sign_test(2, 1) == sign_test(0, 0) == sign_test(1, 0) == 1.0


@given(st.integers(0, 7), st.integers(0, 6))
def test_sign_test_counts_outcomes(n_win: int, n_lose: int) -> None:
    assert sign_test(n_win, n_lose) == pytest.approx(truth.sign_test(n_win, n_lose), rel=RELATIVE64)


@pytest.mark.parametrize(("n_win", "n_lose"), [(120, 80), (5100, 4900), (700, 1)])
def test_sign_test_agrees_with_scipy(n_win: int, n_lose: int) -> None:
    expected = scipy.stats.binomtest(n_win, n_win + n_lose).pvalue
    assert sign_test(n_win, n_lose) == pytest.approx(expected, rel=RELATIVE64)


def test_correlations_by_hand() -> None:
    # Deviations -1, 0, 1 and -2, -2, 4: 6 / sqrt(2 * 24). Ranks 1, 2, 3 and 1.5, 1.5, 3: 1.5 / sqrt(2 * 1.5).
    x, y = float64([4, 5, 6]), float64([0, 0, 6])
    assert_close(correlation(x, y), float64(6 / math.sqrt(48)), **FLOAT64)
    assert_close(rank_correlation(x, y), float64(1.5 / math.sqrt(3)), **FLOAT64)
    # A curve that only rises is one in rank.
    assert_close(rank_correlation(x, x.exp()), float64(1), **FLOAT64)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=20))
def test_correlations_agree_with_the_reference_and_scipy(items: list[tuple[int, int]]) -> None:
    x, y = ([float(item[side]) for item in items] for side in (0, 1))
    assert_close(correlation(float64(x), float64(y)), float64(truth.correlation(x, y)), **FLOAT64)
    ranks = truth.correlation(truth.mean_ranks(x), truth.mean_ranks(y))
    assert_close(rank_correlation(float64(x), float64(y)), float64(ranks), **FLOAT64)
    if len(set(x)) > 1 and len(set(y)) > 1:
        theirs = [scipy.stats.pearsonr(x, y).statistic, scipy.stats.spearmanr(x, y).statistic]
        ours = [float(function(float64(x), float64(y))) for function in (correlation, rank_correlation)]
        assert ours == pytest.approx(theirs, rel=RELATIVE64, abs=RELATIVE64)


@given(seeds)
def test_units_do_not_correlate(seed: int) -> None:
    x, y = noise(seed, 6), noise(seed + 1, 6)
    assert_close(correlation(3 * x + 1, y - 5), correlation(x, y), **FLOAT64)
    assert_close(correlation(-x, y), -correlation(x, y), **FLOAT64)
    assert_close(rank_correlation(x.exp(), y), rank_correlation(x, y), **FLOAT64)


@pytest.mark.parametrize("function", [correlation, rank_correlation])
def test_what_does_not_vary_correlates_with_nothing(function: Callable[..., torch.Tensor]) -> None:
    # The mean of three times 0.1 is not 0.1: a spread of rounding errors would correlate with anything.
    for x, y in (([0.1] * 3, [1, 2, 3]), ([1, 2, 3], [0.1] * 3), ([], []), ([1], [2])):
        found = function(float64(x), float64(y))
        assert_close(found, float64(0), **EXACT)


def test_correlations_are_float64_without_a_graph() -> None:
    x, y = torch.tensor([1.0, 1 + 2**-20, 2.0], requires_grad=True), torch.tensor([0.0, 1.0, 3.0], requires_grad=True)
    assert not correlation(x, y).requires_grad
    exact = correlation(x.double(), y.double())
    assert_close(correlation(x, y), exact, **EXACT)
    assert_close(correlation(y, x), exact, **FLOAT64)
    assert_close(exact, float64(truth.correlation(x.tolist(), y.tolist())), **FLOAT64)


def test_area_by_hand() -> None:
    # Positives 3 and 1 against 2, 1 and 0: 3 wins over all three; 1 ties with 1 and wins over 0.
    scores, positive = float64([3, 2, 1, 1, 0]), torch.tensor([True, False, True, False, False])
    assert_close(area_under_curve(scores, positive), float64((3 + 1.5) / 6), **FLOAT64)
    assert_close(area_under_curve(-scores, positive), float64(1 - 4.5 / 6), **FLOAT64)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=20))
def test_area_agrees_with_the_reference(items: list[tuple[int, bool]]) -> None:
    scores, positive = float64([score for score, _ in items]), torch.tensor([yes for _, yes in items])
    if not 0 < sum(yes for _, yes in items) < len(items):
        reject()
    assert_close(area_under_curve(scores, positive), float64(truth.area_under_curve(items)), **FLOAT64)
    assert_close(area_under_curve(scores.exp(), positive), area_under_curve(scores, positive), **FLOAT64)


@pytest.mark.parametrize(("positive", "n"), [([True, True], 2), ([False, False], 0)])
def test_an_area_needs_both_kinds(positive: list[bool], n: int) -> None:
    with pytest.raises(ValueError, match=f"{n} of 2 items are positive: the area compares positive items with others"):
        area_under_curve(float64([1, 2]), torch.tensor(positive))
