"""Running sums, reliability of an axis, shares of variance, errors of quantiles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import directions as truth
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT32, FLOAT64, PLANTED_COSINE, RELATIVE32, RELATIVE64, STREAMED
from torch.testing import assert_close

from keel.functional.directions import cosine, mean_difference, principal_components
from keel.functional.spaces import (
    Sums,
    components_needed,
    coordinates_of,
    explained_share,
    mean_of,
    merge_sums,
    no_sums,
    quantile_with_error,
    split_half_cosine,
    sum_rows,
    whole_cosine,
)


def float64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def parts(sums: Sums) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return sums.count, sums.total, sums.squares


def test_sums_by_hand() -> None:
    # Two vectors of two layers of width 2.
    sums = sum_rows(float64([[[1, 2], [0, 3]], [[3, 0], [0, 5]]]))
    assert_close(parts(sums), (float64(2), float64([[4, 2], [0, 8]]), float64([14, 34])), **EXACT)
    assert_close(mean_of(sums), torch.tensor([[2.0, 1], [0, 4]]), **EXACT)


@given(seeds, st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_merged_parts_are_the_whole(seed: int, sizes: list[int]) -> None:
    rows = noise(seed, sum(sizes) + 2, 3, 4).float()
    merged, start = no_sums(3, 4), 0
    for size in [*sizes, 2]:
        merged = merge_sums(merged, sum_rows(rows[start : start + size]))
        start += size
    assert_close(parts(merged), parts(sum_rows(rows)), **FLOAT64)
    assert_close(mean_of(merged), rows.mean(0), **STREAMED)
    noise_found = [truth.noise_of(float(merged.count), *part) for part in zip(
        merged.total.tolist(), merged.squares.tolist(), strict=True)]
    assert_close(float64(noise_found), rows.double().var(0).mean(-1), **FLOAT64)
    assert {x.dtype for x in parts(merged)} == {torch.float64}
    assert mean_of(merged).dtype == torch.float32


def test_too_few_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="no vectors were added: a mean over nothing points nowhere"):
        mean_of(no_sums(1, 2))


def test_halves_by_hand() -> None:
    # First half: default (2, 0), roles (0, 0) and (0, 2): axis (2, -1). Second: (0, 3) less (1, 1): (-1, 2).
    default = float64([[[2, 0]], [[0, 3]]])
    roles = float64([[[[0, 0]], [[0, 2]]], [[[1, 0]], [[1, 2]]]])
    assert_close(split_half_cosine(default, roles), float64([-4 / 5]), **FLOAT64)


def test_the_bound_by_hand() -> None:
    # 4 (9 (1/3 + 1/6) + 1/2) / 25 = 20 / 25.
    bound = truth.axis_cosine_bound(width=4, n_role=3, n_default=6, n_roles=2, noise=3.0, spread=1.0, step=5.0)
    assert bound == pytest.approx(1 / math.sqrt(1.8), rel=RELATIVE64)


@pytest.mark.parametrize(("seed", "step"), [(0, 3.0), (1, 4.0), (2, 12.0)])
def test_the_axis_finds_a_planted_direction_as_well_as_it_can(seed: int, step: float) -> None:
    """h = b_role + s u default + noise; default responses have no role of their own."""
    width, n_roles, each, sigma, tau = 256, 20, 30, 1.0, 0.3
    u = noise(seed, width)
    u = u / u.norm()
    offsets = tau * noise(seed + 10, n_roles, 1, width)
    roles = offsets + sigma * noise(seed + 20, n_roles, each, width)
    default = step * u + sigma * noise(seed + 30, 200, width)
    sums = [sum_rows(role[:, None]) for role in roles]
    axis = mean_difference(mean_of(sum_rows(default[:, None])), torch.stack([mean_of(part) for part in sums]))
    expected = truth.axis_cosine_bound(width=width, n_role=n_roles * each, n_default=200, n_roles=n_roles,
                                       noise=sigma, spread=tau, step=step)
    found = float(cosine(axis[0].double(), u))
    assert found >= (1 - PLANTED_COSINE) * expected
    assert found <= (1 + PLANTED_COSINE) * expected


def test_other_rows_take_their_place_among_the_components() -> None:
    rows = noise(0, 5, 4)
    found = principal_components(rows)
    assert_close(coordinates_of(found, rows), found.coordinates, **FLOAT64)
    assert_close(coordinates_of(found, found.mean[None] + 2 * found.directions[1]), float64([[0, 2, 0, 0]]), **FLOAT64)
    far = principal_components(1e4 + rows)
    told = coordinates_of(far, (1e4 + rows).float())
    assert_close(told.double(), coordinates_of(far, (1e4 + rows).float().double()), **FLOAT32)
    narrow = coordinates_of(principal_components(rows.float()), rows.float())
    assert narrow.dtype == torch.float32
    assert_close(narrow.double().abs(), found.coordinates.abs(), **FLOAT32)


@given(seeds, st.sampled_from(["mean", "none"]))
def test_in_a_space_of_unit_rows_other_rows_are_scaled_too(seed: int, centre: str) -> None:
    rows = 1 + noise(seed, 5, 4)
    found = principal_components(rows, centre=centre, scale="unit_rows")
    assert_close(coordinates_of(found, rows), found.coordinates, **FLOAT64)
    # How far a row is from the mean does not count.
    assert_close(coordinates_of(found, found.mean + 7 * (rows - found.mean)), found.coordinates, **FLOAT64)
    narrow = principal_components(rows.float(), centre=centre, scale="unit_rows")
    assert narrow.centre is not None and narrow.centre.dtype == torch.float32
    assert_close(coordinates_of(narrow, rows.float()), narrow.coordinates, **FLOAT32)


def test_components_needed_by_hand() -> None:
    share = float64([0.5, 0.25, 0.125, 0.125])
    assert [components_needed(share, s) for s in (0.1, 0.5, 0.51, 0.75, 0.8, 0.99)] == [1, 1, 2, 2, 3, 4]
    # Rounding leaves the sum of all shares below a share close to 1.
    assert components_needed(float64([0.4, 0.3]), 0.9) == 2
    for bad in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"share={bad} is outside \(0, 1\): a share of the variance"):
            components_needed(share, bad)


@given(seeds)
def test_explained_shares(seed: int) -> None:
    rows = 3 + noise(seed, 6, 4)
    found = principal_components(rows)
    for k in range(1, 5):
        assert explained_share(rows, found.directions[:k]) == pytest.approx(
            float(found.variance_share[:k].sum()), rel=RELATIVE64)
    narrow = explained_share(rows.float(), found.directions[:1].float())
    assert narrow == pytest.approx(float(found.variance_share[0]), rel=RELATIVE32)
    # Along a coordinate: its variance over all of it.
    variance = rows.var(0)
    assert explained_share(rows, float64([[0, 0, 1, 0]])) == pytest.approx(
        float(variance[2] / variance.sum()), rel=RELATIVE64)
    with pytest.raises(ValueError, match="all rows are the same: there is no variance to have a share of"):
        explained_share(rows[:1], found.directions)


@given(seeds, st.integers(2, 40), st.sampled_from([0.01, 0.25, 0.5, 0.9]))
def test_quantiles_agree_with_numpy_and_the_reference(seed: int, n: int, q: float) -> None:
    values = 2 + noise(seed, n)
    at, error = quantile_with_error(values, q)
    assert float(at) == pytest.approx(float(np.percentile(values.numpy(), 100 * q)), rel=RELATIVE64)
    assert float(error) == pytest.approx(truth.quantile_error(values.tolist(), q), rel=RELATIVE64)
    assert not at.requires_grad and not quantile_with_error(values.requires_grad_(), q)[1].requires_grad
    values = values.detach()
    # In other units of measurement.
    moved, wider = quantile_with_error(10 * values - 5, q)
    assert_close((moved, wider), (10 * at - 5, 10 * error), **FLOAT64)


def test_the_error_of_a_median_of_normal_numbers() -> None:
    """sqrt(pi / 2n) by theory; the kernels flatten the peak a little, so the error is a little larger."""
    _, error = quantile_with_error(noise(3, 4000), 0.5)
    theory = math.sqrt(math.pi / 2 / 4000)
    assert 0.95 * theory < float(error) < 1.15 * theory


def test_quantiles_where_most_values_are_equal() -> None:
    # The quarters agree: the width comes from the standard deviation instead.
    values = float64([0, 5, 5, 5, 5, 5, 5, 9])
    at, error = quantile_with_error(values, 0.5)
    assert float(at) == 5
    assert float(error) == pytest.approx(truth.quantile_error(values.tolist(), 0.5), rel=RELATIVE64)
    assert_close(quantile_with_error(torch.full((3,), 2.0), 0.5), (float64(2), float64(0)), **EXACT)


def test_quantiles_that_mean_nothing_are_refused() -> None:
    for bad in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"q={bad} is outside \(0, 1\): a quantile is between the lowest and the"):
            quantile_with_error(noise(0, 5), bad)
    for values in ([1.0], [1.0, math.nan], [1.0, math.inf, 2.0]):
        with pytest.raises(ValueError, match=f"{len(values)} values: a quantile with an error needs two or more, all"):
            quantile_with_error(float64(values), 0.5)


def test_the_whole_is_more_reliable_than_its_halves() -> None:
    """r = 1/3: the whole has 2/3 / (4/3) = 1/2 and agrees with the truth by its root. No agreement: 0, not NaN."""
    r = float64([1.0, 1 / 3, 0.0, -0.4])
    assert_close(whole_cosine(r), float64([1.0, 0.5**0.5, 0.0, 0.0]), **FLOAT64)
