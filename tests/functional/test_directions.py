"""Directions: reading, changing and finding them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import directions as truth
from references.ragged import noise, seeds
from tolerances import (
    CAP32,
    CAP_BFLOAT16,
    CAP_TWICE,
    DYKSTRA,
    EXACT,
    FLOAT32,
    FLOAT64,
    RELATIVE32,
    SIX_FIGURES,
    STANDARD_ERRORS,
)
from torch.testing import assert_close

from keel.functional.directions import (
    ablate,
    add,
    anchor_loss,
    bound,
    bound_jointly,
    cosine,
    mean_difference,
    principal_components,
    project,
    random_directions,
    slope,
    token_means,
    unit,
)

NAN, INF = math.nan, math.inf


def float64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def bits(x: torch.Tensor) -> torch.Tensor:
    """Signs of zeros and NaNs included."""
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def units_of(seed: int, k: int, width: int) -> torch.Tensor:
    return unit(noise(seed, k, width))


# --- reading


def test_a_unit_and_a_projection_by_hand() -> None:
    u = unit(float64([3, 0, 4]))
    assert_close(u, float64([0.6, 0, 0.8]), **FLOAT64)
    # 0.6 * 1 + 0.8 * 2 = 2.2 and 0.6 * 5 + 0.8 * (-5) = -1.
    assert_close(project(float64([[1, 7, 2], [5, 0, -5]]), u), float64([2.2, -1]), **FLOAT64)


def test_a_unit_is_float32_even_of_a_narrow_direction() -> None:
    narrow = torch.tensor([3.0, 0, 4]).bfloat16()
    assert unit(narrow).dtype == torch.float32
    assert_close(unit(narrow), torch.tensor([0.6, 0, 0.8]), **FLOAT32)
    assert_close(unit(torch.tensor([1e30, 0, 1e30])), torch.tensor([0.5**0.5, 0, 0.5**0.5]), **FLOAT32)


@pytest.mark.parametrize("direction", [[0.0, 0.0], [NAN, 1.0], [INF, 1.0]])
def test_a_direction_without_a_length_is_refused(direction: list[float]) -> None:
    with pytest.raises(ValueError, match="a direction without a length: it is zero or not finite, and points nowhere"):
        unit(float64([[1.0, 1.0], direction]))


@given(seeds)
def test_products_of_bfloat16_states_are_taken_in_float32(seed: int) -> None:
    hidden, u = noise(seed, 2, 3, 64).bfloat16(), units_of(seed + 1, 1, 64)[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p = project(hidden, u)
    assert p.dtype == torch.float32
    assert_close(p.double(), (hidden.double() @ u.double()), **FLOAT32)


def test_cosines_by_hand() -> None:
    # 45 degrees; the same line backwards; nothing.
    a, b = float64([[1, 0], [2, 0], [0, 0]]), float64([[1, 1], [-3, 0], [1, 0]])
    assert_close(cosine(a, b), float64([0.5**0.5, -1, 0]), **FLOAT64)
    assert_close(cosine(a, float64([0, 1])), float64([0, 0, 0]), **EXACT)
    assert float(cosine(*[torch.full((3,), 0.1, dtype=torch.float64)] * 2)) <= 1
    assert not cosine(a.clone().requires_grad_(), b.clone().requires_grad_()).requires_grad


@given(seeds, st.floats(0.1, 9))
def test_a_cosine_does_not_know_lengths(seed: int, size: float) -> None:
    a, b = noise(seed, 4, 5), noise(seed + 1, 4, 5)
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    expected = [truth.dot(x, y) / truth.length(x) / truth.length(y) for x, y in pairs]
    assert_close(cosine(a, size * b), float64(expected), **FLOAT64)


# --- changing


def test_adding_by_hand() -> None:
    hidden = float64([[[1, 2], [3, 4]]])
    assert_close(add(hidden, float64([1, -1]), 2), float64([[[3, 0], [5, 2]]]), **EXACT)
    assert_close(add(hidden, float64([1, -1]), float64([[0, 0.5]])), float64([[[1, 2], [3.5, 3.5]]]), **EXACT)
    assert_close(add(hidden, float64([1, -1]), float64([[3]])), float64([[[4, -1], [6, 1]]]), **EXACT)
    assert_close(add(hidden, float64([1, -1]), 0.1), float64([[[1.1, 1.9], [3.1, 3.9]]]), **FLOAT64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_with_coefficient_zero_keep_their_bits(dtype: torch.dtype) -> None:
    hidden = torch.tensor([[-0.0, NAN, 3.1], [-0.0, 1.0, 2.0]], dtype=dtype)
    mixed = add(hidden, torch.tensor([0.0, NAN, 1.0]), torch.tensor([0.0, 1.0]))
    assert mixed.dtype == dtype
    assert_close(bits(mixed[0]), bits(hidden[0]), **EXACT)
    assert float(mixed[1, 2]) == 3
    assert_close(bits(add(hidden, torch.ones(3), 0.0)), bits(hidden), **EXACT)


@given(seeds, st.floats(-3, 3))
def test_adding_shifts_the_projection_by_c_times_the_length_and_is_linear(seed: int, c: float) -> None:
    hidden, v = noise(seed, 2, 3, 6).float(), noise(seed + 1, 6).float()
    shift = project(add(hidden, v, c), unit(v)) - project(hidden, unit(v))
    scale = max(float(hidden.norm(dim=-1).max()), abs(c) * float(v.norm()))
    assert float((shift - c * float(v.norm())).abs().max()) <= RELATIVE32 * scale
    assert_close(add(add(hidden, v, c), v, 0.5), add(hidden, v, c + 0.5), **FLOAT32)


def test_bounds_by_hand() -> None:
    # Along (0.6, 0.8): projections 5, 0 and -2.2. At least 1 and at most 4: moves of -1, 1 and 3.2.
    hidden, u = float64([[3, 4], [4, -3], [-1, -2]]), float64([0.6, 0.8])
    capped, moved = bound(hidden, u, lower=1, upper=4)
    assert_close(moved, float64([-1, 1, 3.2]), **FLOAT64)
    assert_close(capped, float64([[2.4, 3.2], [4.6, -2.2], [0.92, 0.56]]), **FLOAT64)
    # One bound for each state, some of them none.
    capped, moved = bound(hidden, u, lower=float64([9, -INF, -3]), upper=float64([INF, -1, INF]))
    assert_close(moved, float64([4, -1, 0]), **FLOAT64)
    untouched, moved = bound(hidden, u)
    assert_close((untouched, moved), (hidden, float64([0, 0, 0])), **EXACT)
    # A table whose bounds cross: what is below goes to the lower one, the rest to the upper one.
    assert_close(bound(hidden, u, lower=float64([6, 1, 1]), upper=0)[1], float64([1, 1, 3.2]), **FLOAT64)


@given(seeds, st.floats(-1, 1), st.floats(0, 1))
def test_bounds_agree_with_the_reference(seed: int, lower: float, width: float) -> None:
    hidden, u = noise(seed, 3, 4, 5), units_of(seed + 1, 1, 5)[0]
    capped, _ = bound(hidden, u, lower=lower, upper=lower + width)
    expected = [[truth.bound(h, u.tolist(), lower, lower + width) for h in row] for row in hidden.tolist()]
    assert_close(capped, float64(expected), **FLOAT64)


@given(seeds, st.floats(-1, 1), st.sampled_from([torch.bfloat16, torch.float32]))
def test_a_bound_holds_up_to_rounding_and_spares_the_rest(seed: int, floor: float, dtype: torch.dtype) -> None:
    hidden, u = (3 * noise(seed, 4, 5, 32)).to(dtype), units_of(seed + 1, 1, 32)[0].float()
    before = project(hidden, u)
    capped, moved = bound(hidden, u, lower=floor)
    after, within = project(capped, u), before >= floor
    assert capped.dtype == dtype and moved.dtype == torch.float32
    assert_close(bits(capped[within]), bits(hidden[within]), **EXACT)
    assert_close(moved != 0, ~within, **EXACT)
    length = hidden.float().norm(dim=-1)
    slack = CAP_BFLOAT16 * length if dtype == torch.bfloat16 else CAP32 * length
    assert bool((after >= floor - slack).all()) and bool((after[~within] <= floor + slack[~within]).all())
    assert_close(moved, (floor - before).clamp_min(0), **EXACT)


def test_states_in_range_keep_the_sign_of_zero_and_nan_stays() -> None:
    hidden = torch.tensor([[-0.0, 1.0], [NAN, 1.0]])
    capped, moved = bound(hidden, torch.tensor([0.0, 1.0]), lower=0.5, upper=2.0)
    assert_close(bits(capped), bits(hidden), **EXACT)
    assert_close(moved, torch.zeros(2), **EXACT)


@given(seeds, st.floats(-2, 2), st.sampled_from([torch.bfloat16, torch.float32]))
def test_a_cap_on_the_negated_axis_is_a_floor_on_the_axis(seed: int, floor: float, dtype: torch.dtype) -> None:
    hidden, v = noise(seed, 3, 4, 16).to(dtype), noise(seed + 1, 16).float()
    up, moved = bound(hidden, unit(v), lower=floor)
    down, back = bound(hidden, unit(-v), upper=-floor)
    assert_close(bits(up), bits(down), **EXACT)
    assert_close(moved, -back, **EXACT)


@given(seeds, st.floats(-1, 1), st.floats(0, 1))
def test_capping_twice_is_capping_once(seed: int, lower: float, width: float) -> None:
    hidden, u = noise(seed, 3, 4, 16).float(), units_of(seed + 1, 1, 16)[0].float()
    once, _ = bound(hidden, u, lower=lower, upper=lower + width)
    assert_close(bound(once, u, lower=lower, upper=lower + width)[0], once, **CAP_TWICE)


def test_capping_then_adding_is_not_adding_then_capping() -> None:
    hidden, u = float64([[-1, 2]]), float64([1, 0])
    first = add(bound(hidden, u, lower=0)[0], u, -0.5)
    second, _ = bound(add(hidden, u, -0.5), u, lower=0)
    assert_close((first, second), (float64([[-0.5, 2]]), float64([[0, 2]])), **EXACT)


def test_the_gradient_of_a_capped_state_has_nothing_along_the_direction() -> None:
    hidden, u = float64([[3, 4], [-1, 2]]).requires_grad_(), float64([0.6, 0.8])
    capped, _ = bound(hidden, u, lower=2)
    capped.backward(float64([[1, 0], [1, 0]]))
    # In range: as it came. Clamped: (1, 0) less 0.6 of (0.6, 0.8).
    assert_close(hidden.grad, float64([[1, 0], [0.64, -0.48]]), **FLOAT64)


def test_bounds_that_cross_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lower=2 is above upper=1.5: no projection is within both bounds"):
        bound(float64([[1, 1]]), float64([1, 0]), lower=2, upper=1.5)


# --- several bounds at once


def test_two_bounds_by_hand() -> None:
    # u = (1, 0) and w = (0.6, 0.8), h = (-1, 0), both projections at least 0. u first: (0, 0), which satisfies w too
    # (0). w first: -0.6 -> (-0.64, 0.48); then u: (0, 0.48). The nearest point is the first.
    hidden, units = float64([[-1, 0]]), float64([[1, 0], [0.6, 0.8]])
    nearest, moved = bound_jointly(hidden, units, lower=float64([0, 0]), upper=float64([INF, INF]))
    assert_close(nearest, float64([[0, 0]]), **FLOAT64)
    assert_close(moved, float64([[1, 0.6]]), **FLOAT64)
    turned = bound(bound(hidden, units[1], lower=0)[0], units[0], lower=0)[0]
    assert_close(turned, float64([[0, 0.48]]), **FLOAT64)
    # h = (-1, -1) with w at most -1.4 as well: w first breaks what u did.
    broken = bound(bound(float64([[-1, -1]]), units[0], lower=0)[0], units[1], upper=-1.4)[0]
    assert float(project(broken, units[0])) < 0
    both, _ = bound_jointly(float64([[-1, -1]]), units, lower=float64([0, -INF]), upper=float64([INF, -1.4]))
    assert_close(both, float64([[0, -1.75]]), **FLOAT64)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 100, 200])
def test_joint_bounds_agree_with_alternating_projections(seed: int, k: int) -> None:
    hidden, units = noise(seed, 2, 4), units_of(seed + 1, k, 4)
    middle, half = 0.5 * noise(seed + 2, k), 0.3 * noise(seed + 3, k).abs()
    lower, upper = middle - half, middle + half
    upper[0] = INF
    nearest, moved = bound_jointly(hidden, units, lower=lower, upper=upper)
    expected = [truth.bound_jointly(h, units.tolist(), lower.tolist(), upper.tolist()) for h in hidden.tolist()]
    assert_close(nearest, float64(expected), **DYKSTRA)
    assert_close(moved, (nearest - hidden) @ units.T, **FLOAT64)
    # Whatever the order of the directions, and a second time.
    back = bound_jointly(hidden, units.flip(0), lower=lower.flip(0), upper=upper.flip(0))[0]
    assert_close(back, nearest, **FLOAT64)
    assert_close(bound_jointly(nearest, units, lower=lower, upper=upper)[0], nearest, **FLOAT64)


@given(seeds)
def test_one_joint_bound_is_a_bound(seed: int) -> None:
    hidden, u = noise(seed, 3, 4, 6).float(), units_of(seed + 1, 1, 6)[0].float()
    table = noise(seed + 2, 3, 1).float()
    jointly, moved = bound_jointly(hidden, u[None], lower=table[..., None], upper=torch.full((1,), INF))
    alone, step = bound(hidden, u, lower=table)
    assert_close((jointly, moved[..., 0]), (alone, step), **FLOAT32)
    within = step == 0
    assert_close(bits(jointly[within]), bits(hidden[within]), **EXACT)


def test_states_within_all_bounds_keep_their_bits_and_nan_stays() -> None:
    hidden = torch.tensor([[-0.0, 1.0, 0.3], [NAN, 1.0, 0.0]]).bfloat16()
    units = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    same, moved = bound_jointly(hidden, units, lower=torch.tensor([0.0, -1]), upper=torch.tensor([1.0, 1]))
    assert same.dtype == torch.bfloat16
    assert_close(bits(same), bits(hidden), **EXACT)
    assert_close(moved, torch.zeros(2, 2), **EXACT)


def test_joint_bounds_on_narrow_states_are_computed_in_float32() -> None:
    hidden, units = noise(1, 6, 32).bfloat16(), units_of(2, 2, 32).float()
    bounds = {"lower": torch.tensor([3.0, 2.0]), "upper": torch.full((2,), INF)}
    narrow, moved = bound_jointly(hidden, units, **bounds)
    wide, exact = bound_jointly(hidden.float(), units, **bounds)
    assert (narrow.dtype, moved.dtype) == (torch.bfloat16, torch.float32)
    assert_close((narrow, moved), (wide.bfloat16(), exact), **EXACT)


def test_four_directions_at_once_are_bounded() -> None:
    nearest, _ = bound_jointly(noise(1, 6), torch.eye(6, dtype=torch.float64)[:4], lower=float64([1] * 4),
                               upper=float64([2] * 4))
    assert_close(nearest, torch.cat([noise(1, 6)[:4].clamp(1, 2), noise(1, 6)[4:]]), **FLOAT64)


def test_large_states_are_bounded_like_small_ones() -> None:
    units = units_of(2, 3, 8)
    small, _ = bound_jointly(noise(1, 20, 8), units, lower=torch.zeros(3), upper=float64([0.1] * 3))
    bounds = {"lower": torch.zeros(3), "upper": float64([1e9] * 3)}
    large, _ = bound_jointly(1e10 * noise(1, 20, 8), units, **bounds)
    assert_close(large / 1e10, small, **FLOAT64)


def test_parallel_directions_share_a_bound_or_are_refused() -> None:
    hidden, units = float64([[-3, 1]]), float64([[1, 0], [-1, 0]])
    # At least -1 and, backwards, at least -2 (at most 2): one of them is broken, one moves it.
    nearest, _ = bound_jointly(hidden, units, lower=float64([-1, -2]), upper=float64([INF, INF]))
    assert_close(nearest, float64([[-1, 1]]), **FLOAT64)
    twice, _ = bound_jointly(hidden, units.abs(), lower=float64([-1, -2]), upper=float64([INF, INF]))
    assert_close(twice, nearest, **FLOAT64)
    with pytest.raises(ValueError, match="no state satisfies all bounds: directions that are parallel have bounds"):
        bound_jointly(hidden, units, lower=float64([1, 0]), upper=float64([INF, INF]))
    with pytest.raises(ValueError, match="5 directions on one layer: at most 4 can be bounded jointly"):
        bound_jointly(noise(0, 6), units_of(1, 5, 6), lower=torch.zeros(5), upper=torch.ones(5))


def test_gradients_pass_through_a_joint_bound() -> None:
    hidden = float64([[-1, 2, 5], [3, 3, 3]]).requires_grad_()
    units = float64([[1, 0, 0], [0.6, 0.8, 0]])
    capped, _ = bound_jointly(hidden, units, lower=float64([0, -INF]), upper=float64([INF, 1]))
    capped.sum().backward()
    # First row: u at 0 and w at 1, only the third coordinate is free. Second row: w at 1; (1, 1) less its part along w.
    assert_close(hidden.grad, float64([[0, 0, 1], [1 - 1.4 * 0.6, 1 - 1.4 * 0.8, 1]]), **FLOAT64)


# --- setting


def test_ablation_by_hand() -> None:
    hidden, u = float64([[1, 2], [0, 5]]), float64([0.6, 0.8])
    # Projections 2.2 and 4.
    assert_close(ablate(hidden, u), float64([[-0.32, 0.24], [-2.4, 1.8]]), **FLOAT64)
    assert_close(project(ablate(hidden, u, target=3), u), float64([3, 3]), **FLOAT64)
    assert_close(project(ablate(hidden, u, target=float64([1, -1])), u), float64([1, -1]), **FLOAT64)


@given(seeds, st.floats(-2, 2))
def test_ablation_leaves_what_is_across(seed: int, target: float) -> None:
    hidden, u = noise(seed, 3, 5), units_of(seed + 1, 1, 5)[0]
    set_to = ablate(hidden, u, target=target)
    assert_close(project(set_to, u), torch.full((3,), target, dtype=torch.float64), **FLOAT64)
    across = hidden - project(hidden, u)[:, None] * u
    assert_close(set_to - project(set_to, u)[:, None] * u, across, **FLOAT64)
    assert ablate(hidden.bfloat16(), u.float(), target=target).dtype == torch.bfloat16


def test_random_directions_are_as_long_and_come_from_the_generator() -> None:
    like = torch.stack([3 * noise(0, 500), 0.1 * noise(1, 500)]).float()
    drawn = random_directions(like, torch.Generator().manual_seed(5))
    assert drawn.dtype == torch.float32
    assert_close(drawn.norm(dim=-1), like.norm(dim=-1), **FLOAT32)
    assert_close(random_directions(like, torch.Generator().manual_seed(5)), drawn, **EXACT)
    other = random_directions(like, torch.Generator().manual_seed(6))
    # Cosines of random directions in 500 dimensions have a standard deviation of 0.045.
    assert bool((cosine(drawn, other).abs() < STANDARD_ERRORS * 500**-0.5).all())
    assert bool((cosine(drawn, like).abs() < STANDARD_ERRORS * 500**-0.5).all())
    assert not random_directions(like.requires_grad_(), torch.Generator()).requires_grad
    assert float(cosine(drawn[0], drawn[1]).abs()) < STANDARD_ERRORS * 500**-0.5


# --- the anchor


def test_the_anchor_by_hand() -> None:
    # Floor 1, spread 2: 0.5 short -> (1/4)^2; above; 3 short -> (3/2)^2; masked.
    projections = float64([[0.5, 1.5, -2, NAN]]).requires_grad_()
    loss, stats = anchor_loss(projections, torch.tensor([[True, True, True, False]]), floor=1, spread=2)
    assert_close(loss, float64([[0.0625, 0, 2.25, 0]]), **EXACT)
    assert_close(stats["anchor/below"], float64([[1, 0, 1, 0]]), **EXACT)
    loss.sum().backward()
    # -2 short / spread^2.
    assert_close(projections.grad, float64([[-0.25, 0, -1.5, 0]]), **EXACT)


@pytest.mark.parametrize("spread", [0.0, -1.0])
def test_an_anchor_needs_a_spread(spread: float) -> None:
    with pytest.raises(ValueError, match=rf"spread={spread} is not above 0: a shortfall is measured in standard"):
        anchor_loss(noise(0, 1, 2), torch.ones(1, 2, dtype=torch.bool), floor=0, spread=spread)


# --- finding


@given(seeds, st.sampled_from([NAN, INF, 7.0]))
def test_token_means_agree_with_the_reference(seed: int, junk: float) -> None:
    hidden, mask = noise(seed, 3, 4, 2), noise(seed + 1, 3, 4) > 0
    mask[0] = False
    found = token_means(hidden.masked_fill(~mask[..., None], junk), mask)
    assert_close(found, float64(truth.token_means(hidden.tolist(), mask.tolist())), **FLOAT64)
    assert not found[0].any()


def test_narrow_states_are_summed_in_float32() -> None:
    # 1 and 1000 times 2^-9: in bfloat16 nothing would ever be added to 1.
    hidden = torch.full((1, 1001, 1), 2.0**-9)
    hidden[0, 0] = 1
    mean = token_means(hidden.bfloat16(), torch.ones(1, 1001, dtype=torch.bool))
    assert mean.dtype == torch.float32
    assert_close(mean, torch.tensor([[(1 + 1000 * 2.0**-9) / 1001]]), **FLOAT32)


def test_the_axis_by_hand() -> None:
    # Two default vectors, three roles, one layer of width 2.
    default, roles = float64([[[4, 0]], [[6, 2]]]), float64([[[1, 1]], [[2, 1]], [[3, 4]]])
    assert_close(mean_difference(default, roles), float64([[3, -1]]), **FLOAT64)
    assert_close(mean_difference(default.mean(0), roles), float64([[3, -1]]), **FLOAT64)
    assert_close(mean_difference(default[0], roles[0]), float64([[3, -1]]), **EXACT)
    assert mean_difference(default.bfloat16(), roles.bfloat16()).dtype == torch.float32


def test_components_of_a_cross_by_hand() -> None:
    # Four points about (10, 20): +-3 along x, +-1 along y. Variance 18 and 2.
    rows = float64([[13, 20], [7, 20], [10, 21], [10, 19]])
    found = principal_components(rows, towards=float64([-1, 1]))
    assert_close(found.mean, float64([10, 20]), **FLOAT64)
    assert_close(found.directions, float64([[-1, 0], [0, 1]]), **FLOAT64)
    assert_close(found.variance_share, float64([0.9, 0.1]), **FLOAT64)
    assert_close(found.coordinates, float64([[-3, 0], [3, 0], [0, 1], [0, -1]]), **FLOAT64)
    # Without a way to point to, the coordinate furthest from 0 is positive. Rows of one length weigh alike.
    assert_close(principal_components(rows).directions, float64([[1, 0], [0, 1]]), **FLOAT64)
    assert_close(principal_components(rows, scale="unit_rows").variance_share, float64([0.5, 0.5]), **FLOAT64)


@given(seeds, st.integers(2, 5), st.sampled_from(["mean", "none"]), st.sampled_from(["none", "unit_rows"]))
def test_components_agree_with_the_reference(seed: int, n: int, centre: str, scale: str) -> None:
    rows, towards = 2 + noise(seed, n, 4), noise(seed + 1, 4)
    found = principal_components(rows, centre=centre, scale=scale, towards=towards)
    shares, directions = truth.principal_components(rows.tolist(), centre == "mean", scale == "unit_rows")
    assert_close(found.variance_share, float64(shares), **FLOAT64)
    assert bool((found.directions @ towards >= 0).all())
    for k, share in enumerate(shares):
        if share > 1e-4:  # where nothing is left to explain, any direction will do
            assert_close(found.directions[k].outer(found.directions[k]), float64(directions[k]).outer(
                float64(directions[k])), **FLOAT64)
    products = found.directions @ found.directions.T
    assert_close(products, torch.eye(len(products), dtype=torch.float64), **FLOAT64)
    # The rows come back from their coordinates.
    x = found.coordinates @ found.directions
    if scale == "none":
        assert_close(x + found.mean, rows, **FLOAT64)
    variance = found.coordinates.square().sum(0)
    assert_close(variance / variance.sum(), found.variance_share, **FLOAT64)


def test_components_take_and_give_float32() -> None:
    found = principal_components(noise(0, 4, 3).float())
    parts = (found.mean, found.directions, found.variance_share, found.coordinates)
    assert {part.dtype for part in parts} == {torch.float32}
    # Computed in float64: what is left of the mean is its rounding alone.
    far = principal_components(1e4 + noise(0, 4, 3).float())
    exact = principal_components((1e4 + noise(0, 4, 3).float()).double())
    assert_close(far.coordinates.double().abs(), exact.coordinates.abs(), **FLOAT32)


def test_small_rows_have_the_components_of_large_ones() -> None:
    rows = noise(0, 5, 3)
    assert_close(principal_components(1e-6 * rows).directions, principal_components(rows).directions, **FLOAT64)


def test_rows_without_components_are_refused() -> None:
    with pytest.raises(ValueError, match="1 rows: components show how rows differ, and need two of them"):
        principal_components(noise(0, 1, 3))
    with pytest.raises(ValueError, match="the rows do not vary: all are the same, and have no components"):
        principal_components(torch.ones(3, 2))
    for centre, scale in (("median", "none"), ("mean", "unit_variance")):
        with pytest.raises(ValueError, match=rf"centre='{centre}', scale='{scale}': centre is mean or none, scale is"):
            principal_components(noise(0, 3, 3), centre=centre, scale=scale)


def test_slopes_by_hand() -> None:
    # 1, 3, 5 over 0, 1, 2: two a turn. 4, 0 over turns 0 and 2: -2 a turn. A single turn has none.
    values = float64([[1, 3, 5], [4, NAN, 0], [NAN, 7, NAN], [NAN, NAN, NAN]])
    assert_close(slope(float64([0, 1, 2]), values), float64([2, -2, NAN, NAN]), equal_nan=True, **FLOAT64)
    assert math.isnan(float(slope(float64([3, 3]), float64([1, 2]))))
    # Whole numbers of turns in float32, values near 1e6 that float32 would round: summed in float64.
    turns = torch.arange(4.0)
    assert_close(slope(turns, 1e6 + 0.001 * turns.double()), float64(0.001), **SIX_FIGURES)
    assert not slope(turns, turns.clone().requires_grad_()).requires_grad


@given(seeds, st.integers(2, 6))
def test_slopes_agree_with_the_reference(seed: int, n: int) -> None:
    turns, values = noise(seed, n) + 5, noise(seed + 1, 3, n)
    values[values < -0.8] = NAN
    expected = [truth.slope(turns.tolist(), row) for row in values.tolist()]
    assert_close(slope(turns, values), float64(expected), equal_nan=True, **FLOAT64)
    assert_close(slope(turns, 3 - 2 * values), -2 * slope(turns, values), equal_nan=True, **FLOAT64)
