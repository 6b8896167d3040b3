"""Masked sums, whitening and running moments."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import masked as truth
from references.ragged import noise, padded, response_masks, rows_of, seeds
from tolerances import EXACT, FLOAT32, FLOAT64
from torch.testing import assert_close

from keel.functional.masked import (
    loss_weights,
    masked_mean,
    masked_sum,
    merge_moments,
    no_moments,
    row_sums,
    weighted_sum,
    whiten,
    wide,
)

NAN = float("nan")


def test_row_sums_by_hand_and_blind_to_what_is_masked() -> None:
    x, mask = torch.tensor([[1.0, NAN, 4.0], [2.0, 3.0, NAN]]), torch.tensor([[1, 0, 1], [0, 1, 0]]).bool()
    assert row_sums(x, mask).tolist() == [5.0, 3.0]
    assert row_sums(x.bfloat16(), mask).dtype == torch.float32


def test_wide_keeps_float64_and_widens_the_rest() -> None:
    assert wide(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    for narrow in (torch.bfloat16, torch.float16, torch.float32):
        assert wide(torch.ones(1, dtype=narrow)).dtype == torch.float32


def test_sum_and_mean_by_hand() -> None:
    x = torch.tensor([[1.0, NAN, 4.0], [NAN, -2.0, 6.0]])
    mask = torch.tensor([[True, False, True], [False, True, True]])
    # 1 + 4 - 2 + 6 = 9 over four tokens.
    assert_close(masked_sum(x, mask), torch.tensor(9.0), **EXACT)
    assert_close(masked_mean(x, mask), torch.tensor(2.25), **EXACT)


def test_mean_of_nothing_is_zero() -> None:
    assert_close(masked_mean(torch.tensor([NAN]), torch.tensor([False])), torch.tensor(0.0), **EXACT)
    # One token alone: the divisor is 1, not 2.
    assert_close(masked_mean(torch.tensor([3.0, NAN]), torch.tensor([True, False])), torch.tensor(3.0), **EXACT)


def test_sum_of_bfloat16_is_taken_in_float32() -> None:
    # 1000 ones: a bfloat16 sum stops at 256, where adding 1 rounds back down.
    ones = torch.ones(1000, dtype=torch.bfloat16)
    assert_close(masked_sum(ones, ones > 0), torch.tensor(1000.0), **EXACT)


def test_gradient_of_a_mean_is_shared_over_the_mask_only() -> None:
    x = torch.tensor([1.0, NAN, 3.0, 4.0], requires_grad=True)
    masked_mean(x, torch.tensor([True, False, True, True])).backward()
    third = 1 / 3
    assert_close(x.grad, torch.tensor([third, 0.0, third, third]), **FLOAT32)


def test_weighted_sum_by_hand() -> None:
    x = torch.tensor([[1.0, NAN, 4.0], [NAN, -2.0, 6.0]], requires_grad=True)
    weights = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.25, 2.0]], requires_grad=True)
    total = weighted_sum(x, weights)
    # 1 + 2 - 0.5 + 12.
    assert_close(total, torch.tensor(14.5), **EXACT)
    total.backward()
    assert_close(x.grad, weights.detach(), **EXACT)
    assert weights.grad is None


def test_weighted_sum_of_bfloat16_is_taken_in_float32() -> None:
    ones = torch.ones(1000, dtype=torch.bfloat16)
    assert_close(weighted_sum(ones, ones), torch.tensor(1000.0), **EXACT)
    assert weighted_sum(ones.double(), ones).dtype == torch.float64


LENGTHS = torch.tensor([[False, True, True, False], [True, True, True, True], [False, True, False, False],
                        [False, False, False, False], [True, True, False, False]])
COUNTED = torch.tensor([True, True, True, True, False])


@pytest.mark.parametrize(("reduction", "weights"), [
    ("token", [1.0, 1.0, 1.0]),
    ("sequence", [0.5, 0.25, 1.0]),  # one over the lengths 2, 4 and 1
])
def test_loss_weights_by_hand(reduction: str, weights: list[float]) -> None:
    short, full, single = weights
    expected = torch.tensor([[0, short, short, 0], [full] * 4, [0, single, 0, 0], [0.0] * 4, [0.0] * 4])
    assert_close(loss_weights(LENGTHS, COUNTED, reduction=reduction), expected, **EXACT)


def test_reductions_by_hand() -> None:
    """Token: (1 + 3 + 4 * 2) / 7. Sequence: the means 2, 2 and 10 of three responses weigh the same."""
    x = torch.tensor([[NAN, 1, 3, NAN], [2, 2, 2, 2], [NAN, 10, NAN, NAN], [NAN] * 4, [50, 70, NAN, NAN]])
    token, sequence = (loss_weights(LENGTHS, COUNTED, reduction=name) for name in ("token", "sequence"))
    assert_close(weighted_sum(x, token) / token.sum(), torch.tensor(22 / 7), **FLOAT32)
    assert_close(weighted_sum(x, sequence) / sequence.sum(), torch.tensor(14 / 3), **FLOAT32)


@given(response_masks(), seeds, st.sampled_from(["token", "sequence"]))
def test_loss_weights_agree_with_the_reference(mask: torch.Tensor, seed: int, reduction: str) -> None:
    counted = noise(seed, len(mask)) > 0
    expected = padded(truth.loss_weights(rows_of(mask.double(), mask), counted.tolist(), reduction), mask)
    assert_close(loss_weights(mask, counted, reduction=reduction), expected.float(), **FLOAT32)


@given(response_masks(), seeds)
def test_token_weights_make_a_masked_sum(mask: torch.Tensor, seed: int) -> None:
    x = noise(seed, *mask.shape).masked_fill(~mask, NAN)
    weights = loss_weights(mask, torch.ones(len(mask), dtype=torch.bool), reduction="token")
    assert_close(weighted_sum(x, weights), masked_sum(x, mask), **FLOAT64)


def test_another_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="reduction='mean' is neither 'token' nor 'sequence'"):
        loss_weights(LENGTHS, COUNTED, reduction="mean")


def test_whiten_by_hand() -> None:
    x = torch.tensor([[1.0, 5.0, NAN], [3.0, NAN, NAN]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    # mean 3, deviations -2, 2, 0, biased variance (4 + 4 + 0) / 3.
    root = (8 / 3 + 1e-6) ** 0.5
    assert_close(whiten(x, mask), torch.tensor([[-2 / root, 2 / root, 0], [0, 0, 0]], dtype=torch.float64), **FLOAT64)
    expected = torch.tensor([[1 / root, 5 / root, 0], [3 / root, 0, 0]], dtype=torch.float64)
    assert_close(whiten(x, mask, center=False), expected, **FLOAT64)


def test_whiten_equal_values_gives_zeros_and_an_empty_mask_too() -> None:
    x = torch.full((2, 2), 7.0)
    assert_close(whiten(x, torch.ones(2, 2, dtype=torch.bool)), torch.zeros(2, 2), **EXACT)
    assert_close(whiten(x, torch.zeros(2, 2, dtype=torch.bool)), torch.zeros(2, 2), **EXACT)
    one = torch.tensor([[True, False], [False, False]])
    assert_close(whiten(x, one), torch.zeros(2, 2), **EXACT)
    # A single value has no variance: only epsilon is left under the root, 7 / sqrt(1e-6) = 7000.
    assert_close(whiten(x, one, center=False), torch.tensor([[7000.0, 0.0], [0.0, 0.0]]), **FLOAT32)


def test_whiten_is_a_target() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    assert not whiten(x, torch.ones(2, 3, dtype=torch.bool)).requires_grad


@given(response_masks(), seeds, st.booleans())
def test_whiten_agrees_with_the_reference(mask: torch.Tensor, seed: int, center: bool) -> None:
    x = noise(seed, *mask.shape, scale=3.0) + 1.0
    expected = padded(truth.whiten(rows_of(x, mask), center=center), mask)
    result = whiten(x.masked_fill(~mask, NAN), mask, center=center)
    assert result.dtype == torch.float64
    assert_close(result, expected, **FLOAT64)


@given(seeds, st.booleans())
def test_whitening_on_two_ranks_equals_whitening_the_joined_batch(seed: int, center: bool) -> None:
    x, mask = noise(seed, 4, 5), noise(seed + 1, 4, 5) > 0
    there, there_mask = x[:1], mask[:1]
    joined = whiten(x, mask, center=center)
    # What the other rank would hand over, in the order whiten asks: (sum, count), then squares about the joint mean.
    mean = masked_mean(x, mask)
    sums = iter([
        torch.stack([masked_sum(there, there_mask), there_mask.sum().double()]),
        masked_sum((there - mean).square(), there_mask),
    ])
    here = whiten(x[1:], mask[1:], center=center, reduce=lambda own: own + next(sums))
    assert_close(here, joined[1:], **FLOAT64)


def test_moments_of_nothing() -> None:
    assert_close(no_moments(), torch.zeros(3, dtype=torch.float64), **EXACT)


def test_merge_by_hand() -> None:
    # 2, 4: mean 3, squares 1 + 1 = 2. With 9: mean 5, squares 9 + 1 + 16 = 26.
    first = merge_moments(no_moments(), torch.tensor([2.0, 4.0]))
    assert_close(first, torch.tensor([2.0, 3.0, 2.0], dtype=torch.float64), **EXACT)
    both = merge_moments(first, torch.tensor([9.0]))
    assert_close(both, torch.tensor([3.0, 5.0, 26.0], dtype=torch.float64), **FLOAT64)
    assert_close(first, torch.tensor([2.0, 3.0, 2.0], dtype=torch.float64), **EXACT)


def test_merging_nothing_returns_a_copy() -> None:
    seen = torch.tensor([2.0, 3.0, 2.0], dtype=torch.float64)
    merged = merge_moments(seen, torch.empty(0))
    assert_close(merged, seen, **EXACT)
    merged[0] = 99.0
    assert seen[0] == 2.0


def test_moments_carry_no_graph_and_are_float64_for_narrow_scores() -> None:
    merged = merge_moments(no_moments(), torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16, requires_grad=True))
    assert merged.dtype == torch.float64
    # Neither the mean nor the squared deviations are bfloat16 numbers.
    assert_close(merged, torch.tensor([2.0, 1.00390625, 2 * 0.00390625**2], dtype=torch.float64), **EXACT)
    assert not merged.requires_grad


def test_moments_survive_a_large_offset() -> None:
    # Welford's reason to exist: sum of squares minus square of sums loses everything at 1e9.
    merged = no_moments()
    for value in (1e9 + 4, 1e9 + 7, 1e9 + 13, 1e9 + 16):
        merged = merge_moments(merged, torch.tensor([value], dtype=torch.float64))
    # Deviations from 1e9 + 10: 36 + 9 + 9 + 36.
    assert_close(merged[2], torch.tensor(90.0, dtype=torch.float64), **FLOAT32)


@given(seeds, st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_moments_agree_with_all_values_at_once(seed: int, sizes: list[int]) -> None:
    batches = [noise(seed + i, size, scale=2.0) + 5.0 for i, size in enumerate(sizes)]
    merged = no_moments()
    for batch in batches:
        merged = merge_moments(merged, batch)
    expected = torch.tensor(truth.moments([batch.tolist() for batch in batches]), dtype=torch.float64)
    assert_close(merged, expected, **FLOAT64)
