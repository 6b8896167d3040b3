"""Laws that every loss and every target obeys, on random ragged batches."""

import pytest
import torch
from conformance.losses import ALL, LOSSES, PROBABILITIES, Inputs, Row
from hypothesis import given
from hypothesis import strategies as st
from references.ragged import response_masks, seeds
from tolerances import EXACT, FLOAT32, FLOAT64
from torch import Tensor
from torch.testing import assert_close

local_losses = {name: row for name, row in LOSSES.items() if row.local}
every_local_loss = pytest.mark.parametrize("row", local_losses.values(), ids=local_losses)
every_function = pytest.mark.parametrize("row", ALL.values(), ids=ALL)
masked_functions = {name: row for name, row in ALL.items() if row.mask_name}
every_masked_function = pytest.mark.parametrize("row", masked_functions.values(), ids=masked_functions)
numeric_functions = {name: row for name, row in ALL.items() if row.has_numbers}
local_functions = {name: row for name, row in ALL.items() if row.local}
junk = st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e30, -7.0])


def outcome(row: Row, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor], Inputs]:
    """Result, stats, and the gradient of the summed result by every input that learns."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items() if name in row.learns}
    result, stats = row.call(inputs | leaves)
    if leaves:
        result.sum().backward()
    return result.detach(), stats, {name: leaf.grad for name, leaf in leaves.items()}


def spoiled(row: Row, inputs: Inputs, value: float) -> Inputs:
    """The inputs with that value wherever the mask is False."""
    mask = inputs[row.mask_name]
    return {name: x if name in (*row.beside, row.mask_name) else x.masked_fill(~mask, value)
            for name, x in inputs.items()}


@every_masked_function
@given(response_masks(), seeds, junk)
def test_junk_under_the_mask_is_invisible(row: Row, mask: Tensor, seed: int, value: float) -> None:
    inputs = row.make(seed, mask)
    assert_close(outcome(row, spoiled(row, inputs, value)), outcome(row, inputs), **EXACT)


@every_masked_function
@given(response_masks(), seeds, junk)
def test_results_stats_and_gradients_are_exactly_zero_under_the_mask(
    row: Row, mask: Tensor, seed: int, value: float,
) -> None:
    inputs = row.make(seed, mask)
    result, stats, gradients = outcome(row, spoiled(row, inputs, value))
    for name, x in {"result": result, **stats, **gradients}.items():
        assert bool(torch.isfinite(x).all()), name
        by_row = name in row.beside or (row.reduced and name not in gradients)
        assert by_row or not x[~inputs[row.mask_name]].any(), name


@every_masked_function
@given(response_masks(), seeds, st.booleans())
def test_three_more_columns_of_padding_change_nothing(row: Row, mask: Tensor, seed: int, left: bool) -> None:
    def widened(x: Tensor, fill: float) -> Tensor:
        columns = x.new_full((len(x), 3), fill)
        return torch.cat([columns, x] if left and row.mask_name != "present" else [x, columns], 1)

    inputs = row.make(seed, mask)
    wider = {name: x if name in row.beside else widened(x, x.dtype != torch.bool and float("nan"))
             for name, x in inputs.items()}
    result, stats, gradients = outcome(row, inputs)
    expected = (result if row.reduced else widened(result, 0.0),
                {name: x if row.reduced else widened(x, 0.0) for name, x in stats.items()},
                {name: x if name in row.beside else widened(x, 0.0) for name, x in gradients.items()})
    assert_close(outcome(row, wider), expected, **FLOAT64)


@every_function
@given(response_masks(), seeds)
def test_stats_carry_no_graph_and_only_what_learns_gets_gradient(row: Row, mask: Tensor, seed: int) -> None:
    inputs = row.make(seed, mask)
    leaves = {name: x.requires_grad_() if x.is_floating_point() else x for name, x in inputs.items()}
    result, stats = row.call(leaves)
    assert result.requires_grad == bool(row.learns)
    assert not any(x.requires_grad for x in stats.values())
    if row.learns:
        result.sum().backward()
    assert {name for name, x in leaves.items() if x.grad is not None} == set(row.learns)


@every_function
@given(response_masks(), seeds, seeds)
def test_permuting_rows_permutes_results(row: Row, mask: Tensor, seed: int, order_seed: int) -> None:
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(order_seed))
    inputs = row.make(seed, mask)
    result, stats, gradients = outcome(row, inputs)
    expected = (result[order], {name: x[order] for name, x in stats.items()}, row.rows(gradients, order))
    assert_close(outcome(row, row.rows(inputs, order)), expected, **FLOAT64)


@every_local_loss
@given(response_masks(), seeds, st.integers(1, 3))
def test_micro_batching_leaves_the_gradient_equal(row: Row, mask: Tensor, seed: int, size: int) -> None:
    """Sums over micro-batches, divided by the count of the whole step: how recipes reduce."""
    inputs = row.make(seed, mask)
    count = int(mask.sum()) if row.mask_name else len(mask)
    whole = {name: gradient / max(count, 1) for name, gradient in outcome(row, inputs)[2].items()}
    leaves = {name: inputs[name].clone().requires_grad_() for name in row.learns}
    for start in range(0, len(mask), size):
        part = row.rows(inputs | leaves, slice(start, start + size))
        (row.call(part)[0].sum() / max(count, 1)).backward()
    assert_close({name: leaf.grad for name, leaf in leaves.items()}, whole, **FLOAT64)


@pytest.mark.parametrize("row", local_functions.values(), ids=local_functions)
@given(response_masks(), seeds)
def test_a_row_does_not_depend_on_the_other_rows(row: Row, mask: Tensor, seed: int) -> None:
    inputs = row.make(seed, mask)
    assert_close(row.call(row.rows(inputs, slice(1)))[0], row.call(inputs)[0][:1], **FLOAT64)


@every_function
@given(response_masks(), seeds)
def test_inputs_come_back_untouched(row: Row, mask: Tensor, seed: int) -> None:
    inputs = row.make(seed, mask)
    before = {name: x.clone() for name, x in inputs.items()}
    outcome(row, inputs)
    assert_close(inputs, before, **EXACT)


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e4, 1e6])
@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=24, max_size=24))
def test_extremes_stay_finite(row: Row, dtype: torch.dtype, size: float, signs: list[int]) -> None:
    """Gaps of 1e4 nats and values of +-1e6, in every combination of signs across the inputs."""
    mask = torch.ones(2, 3, dtype=torch.bool)
    inputs = row.make(0, mask)
    extreme = torch.tensor(signs, dtype=dtype).view(4, 6) * size
    for i, (name, x) in enumerate(inputs.items()):
        if x.is_floating_point() and name not in PROBABILITIES:
            inputs[name] = extreme[i, : x.numel()].view(x.shape)
    result, stats, gradients = outcome(row, inputs)
    for name, x in {"result": result, **stats, **gradients}.items():
        assert bool(torch.isfinite(x).all()), name


@pytest.mark.parametrize("row", numeric_functions.values(), ids=numeric_functions)
@given(response_masks(), seeds)
def test_bfloat16_in_float32_out_and_float64_stays(row: Row, mask: Tensor, seed: int) -> None:
    inputs = row.make(seed, mask)
    narrow = {name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs.items()}
    same_numbers = {name: x.double() if x.is_floating_point() else x for name, x in narrow.items()}
    for given_inputs, dtype in ((narrow, torch.float32), (same_numbers, torch.float64)):
        result, stats = row.call(given_inputs)
        assert {x.dtype for x in (result, *stats.values())} == {dtype}
    # Widened first and then computed, the result is as good as float32, far better than bfloat16 arithmetic.
    (result, stats), (exact, exact_stats) = row.call(narrow), row.call(same_numbers)
    assert_close((result.double(), {k: x.double() for k, x in stats.items()}), (exact, exact_stats), **FLOAT32)


@every_function
def test_same_inputs_same_bits(row: Row) -> None:
    inputs = row.make(3, torch.tensor([[True, True, False], [False, True, True]]))
    assert_close(outcome(row, inputs), outcome(row, inputs), **EXACT)


def test_every_loss_and_target_of_the_room_has_a_row() -> None:
    """A new function with a mask, or a loss, must not escape the laws by being left out of the table."""
    from keel.functional import (
        advantage,
        contrastive,
        direct,
        directions,
        ensemble,
        masked,
        meta,
        offline,
        policy,
        preference,
        steps,
    )

    exempt = {"FirstError", "Moments", "Stats", "adapted_kl_coef", "aggregate_steps", "as_differences",
              "first_error_scores", "group_sum", "kto_baseline", "log1mexp", "majority_vote", "masked_mean",
              "masked_sum", "merge_moments", "no_moments", "predicted_first_error", "prototype_usage", "row_sums",
              "standardised", "step_payments", "weighted_sum", "wide"}
    rooms = (advantage, contrastive, direct, ensemble, masked, meta, offline, policy, preference, steps)
    # Of the directions, whose other functions take states and have no mask, the one loss.
    public = {name for room in rooms for name in room.__all__} - exempt | {directions.anchor_loss.__name__}
    called = {getattr(row.function, "func", row.function).__name__ for row in ALL.values()}
    assert called == public
