"""Labels of steps, scores of solutions, credit for single steps, first errors and votes."""

import itertools
import math
from dataclasses import astuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import steps as truth
from references.ragged import noise, padded, response_masks, rows_of, seeds
from tolerances import EXACT, FLOAT32, FLOAT64, RELATIVE64
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from keel.functional.advantage import grpo, rloo
from keel.functional.steps import (
    aggregate_steps,
    first_error_scores,
    majority_vote,
    predicted_first_error,
    step_grpo,
    step_loss,
    step_payments,
    step_rloo,
)

NAN = float("nan")
HOWS = ("min", "product", "mean", "last", "sum")
CREDITS = [("sum", None), ("mean", None), ("min", None), ("delta", None), ("clip", 0.6), ("clip", 0.0)]
SIZES = st.lists(st.integers(0, 4), min_size=0, max_size=4)


def float64(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ragged(seed: int, sizes: list[int]) -> tuple[Tensor, Tensor, list[list[float]]]:
    """Values between 0 and 1, the row of each, and the same as lists."""
    values, rows = noise(seed, sum(sizes)).sigmoid(), torch.repeat_interleave(torch.arange(len(sizes)),
                                                                            torch.tensor(sizes, dtype=torch.long))
    return values, rows, [part.tolist() for part in values.split(sizes)] if sizes else []


VALUES, ROWS = float64([0.9, 0.5, 0.7, 0.2, 0.8]), torch.tensor([0, 0, 0, 2, 2])
"""A response of three steps, one without any, one of two steps."""


def test_loss_by_hand() -> None:
    # p = 3/4: right -log 3/4; wrong -log 1/4; labelled 1/4: the mix. p = 1/2 costs log 2 and counts half.
    x = math.log(3)
    loss, stats = step_loss(float64([x, x, x, 0, 0, -x, -x]), float64([1, 0, 0.25, 1, 0, 0.5, 0.4]))
    right, wrong = -math.log(0.75), -math.log(0.25)
    expected = [right, wrong, 0.25 * right + 0.75 * wrong, math.log(2), math.log(2), (right + wrong) / 2,
                0.4 * wrong + 0.6 * right]
    assert_close(loss, float64(expected), **FLOAT64)
    assert_close(stats["steps/accuracy"], float64([1, 0, 0, 0.5, 0.5, 0, 1]), **EXACT)
    assert_close(stats["steps/probability"], float64([0.75, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]), **FLOAT64)


@given(seeds, st.integers(1, 6))
def test_loss_and_gradient_agree_with_the_reference(seed: int, n: int) -> None:
    logits, labels = noise(seed, n, scale=3.0).requires_grad_(), noise(seed + 1, n).sigmoid()
    loss, _ = step_loss(logits, labels)
    expected = [truth.loss(x, y) for x, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    assert_close(loss.detach(), float64(expected), **FLOAT64)
    loss.sum().backward()
    assert_close(logits.grad, logits.detach().sigmoid() - labels, **FLOAT64)


def test_loss_is_two_class_cross_entropy_of_the_difference() -> None:
    both, labels = noise(3, 5, 2), torch.tensor([0, 1, 1, 0, 1])
    loss, _ = step_loss(both[:, 1] - both[:, 0], labels.double())
    assert_close(loss, torch.nn.functional.cross_entropy(both, labels, reduction="none"), **FLOAT64)


def test_loss_is_stable_far_out() -> None:
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    loss, stats = step_loss(logits, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    loss.sum().backward()
    assert_close(loss.detach(), torch.tensor([0.0, 0.0, 1e4, 1e4]), **EXACT)
    assert_close(logits.grad, torch.tensor([0.0, 0.0, 1.0, -1.0]), **EXACT)
    assert_close(stats["steps/accuracy"], torch.tensor([1.0, 1.0, 0.0, 0.0]), **EXACT)


def test_a_narrow_label_is_widened_before_it_is_subtracted_from_one() -> None:
    label = torch.tensor([0.1], dtype=torch.bfloat16)
    assert_close(step_loss(torch.tensor([5.0]), label)[0], step_loss(torch.tensor([5.0]), label.float())[0], **EXACT)


@pytest.mark.parametrize("label", [-0.1, 1.01, NAN])
def test_loss_refuses_a_label_that_is_no_probability(label: float) -> None:
    with pytest.raises(ValueError, match=r"a label of a step is outside \[0, 1\]"):
        step_loss(float64([0, 0]), float64([1, label]))


def test_scores_of_solutions_by_hand() -> None:
    expected = {"min": [0.5, NAN, 0.2], "product": [0.315, NAN, 0.16], "mean": [0.7, NAN, 0.5],
                "last": [0.7, NAN, 0.8], "sum": [2.1, NAN, 1.0]}
    for how, scores in expected.items():
        assert_close(aggregate_steps(VALUES, ROWS, 3, how=how), float64(scores), **FLOAT64, equal_nan=True)


@given(seeds, SIZES, st.sampled_from(HOWS))
def test_scores_of_solutions_agree_with_the_reference(seed: int, sizes: list[int], how: str) -> None:
    values, rows, lists = ragged(seed, sizes)
    scores = aggregate_steps(values.requires_grad_(), rows, len(sizes), how=how)
    assert_close(scores, float64([truth.score(row, how) for row in lists]), **FLOAT64, equal_nan=True)
    assert not scores.requires_grad


@pytest.mark.parametrize("how", HOWS)
def test_one_step_is_its_own_score_and_none_is_nan(how: str) -> None:
    scores = aggregate_steps(float64([0.3, 0.6]), torch.tensor([1, 2]), 4, how=how)
    assert_close(scores, float64([NAN, 0.3, 0.6, NAN]), **EXACT, equal_nan=True)
    nothing = aggregate_steps(float64([]), torch.tensor([], dtype=torch.long), 2, how=how)
    assert_close(nothing, float64([NAN, NAN]), **EXACT, equal_nan=True)


def test_negative_values_and_values_above_one_are_values() -> None:
    values, rows = float64([-3, -2, 5]), torch.tensor([0, 0, 1])
    for how, scores in {"min": [-3, 5], "product": [6, 5], "mean": [-2.5, 5], "last": [-2, 5], "sum": [-5, 5]}.items():
        assert_close(aggregate_steps(values, rows, 2, how=how), float64(scores), **EXACT)


def test_a_long_product_keeps_its_order() -> None:
    """400 coins are 4e-121: in float32 both of these are 0."""
    values, rows = torch.full((801,), 0.5), torch.repeat_interleave(torch.arange(2), torch.tensor([400, 401]))
    scores = aggregate_steps(values, rows, 2, how="product")
    assert scores.dtype == torch.float64
    assert scores[0] == 2 * scores[1] > 0


def test_a_nan_spoils_its_own_solution_only() -> None:
    values = float64([0.9, NAN, 0.4])
    for how in HOWS:
        assert_close(aggregate_steps(values, torch.tensor([0, 0, 1]), 2, how=how), float64([NAN, 0.4]), **EXACT,
                     equal_nan=True)


def test_scores_refuse_another_way() -> None:
    with pytest.raises(ValueError, match="how='median' of joining steps to a score is none of min, product, mean"):
        aggregate_steps(VALUES, ROWS, 3, how="median")


@pytest.mark.parametrize(("rows", "n_rows"), [([0, 2, 1], 3), ([0, 1, 2], 2), ([-1, 0, 1], 2)])
def test_rows_out_of_order_or_range_are_refused(rows: list[int], n_rows: int) -> None:
    with pytest.raises(ValueError, match=f"rows of steps must never fall and lie between 0 and {n_rows - 1}"):
        aggregate_steps(float64([1, 1, 1]), torch.tensor(rows), n_rows, how="min")
    with pytest.raises(ValueError, match="rows of steps must never fall"):
        predicted_first_error(float64([1, 1, 1]), torch.tensor(rows), n_rows)


def test_rows_may_be_a_slice_of_something_wider() -> None:
    table = torch.stack([ROWS, ROWS + 1], 1)
    assert_close(aggregate_steps(VALUES, table[:, 0], 3, how="last"), float64([0.7, NAN, 0.8]), **EXACT, equal_nan=True)


@pytest.mark.parametrize(("credit", "cap", "expected"), [
    ("sum", None, [0.9, 0.5, 0.7, 0.2, 0.8]), ("sum", 2, [0.9, 0.5, 0, 0.2, 0.8]),
    ("mean", None, [0.9 / 3, 0.5 / 3, 0.7 / 3, 0.1, 0.4]), ("mean", 2, [0.45, 0.25, 0, 0.1, 0.4]),
    ("min", None, [0.9, -0.4, 0, 0.2, 0]), ("min", 1, [0.9, 0, 0, 0.2, 0]),
    ("delta", None, [0.4, -0.2, 0.7, -0.6, 0.8]), ("delta", 2, [0.4, 0.5, 0, -0.6, 0.8]),
    ("clip", None, [0, -0.1, 0, -0.4, 0]), ("clip", 1, [0, 0, 0, -0.4, 0]),
])
def test_payments_by_hand(credit: str, cap: int | None, expected: list[float]) -> None:
    paid = step_payments(VALUES, ROWS, credit=credit, cap=cap, bound=0.6 if credit == "clip" else None)
    assert_close(paid, float64(expected), **FLOAT64)


@given(seeds, SIZES, st.sampled_from(CREDITS), st.sampled_from([None, 1, 2, 3]))
def test_payments_agree_with_the_reference(
    seed: int, sizes: list[int], rule: tuple[str, float | None], cap: int | None,
) -> None:
    (credit, bound), (values, rows, lists) = rule, ragged(seed, sizes)
    expected = [paid for row in lists for paid in truth.payments(row, credit, cap, bound)]
    result = step_payments(values.requires_grad_(), rows, credit=credit, cap=cap, bound=bound)
    assert_close(result, float64(expected), **FLOAT64)
    assert not result.requires_grad


@given(seeds, st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from([None, 1, 2]))
def test_totals_of_the_rules(seed: int, sizes: list[int], cap: int | None) -> None:
    values, rows, lists = ragged(seed, sizes)
    paid = {credit: step_payments(values, rows, credit=credit, cap=cap, bound=bound).split(sizes)
            for credit, bound in CREDITS[:5]}
    for i, c in enumerate(row[:cap] for row in lists):
        totals = {credit: float(parts[i].sum()) for credit, parts in paid.items()}
        assert totals == pytest.approx({"sum": sum(c), "mean": sum(c) / len(c), "min": min(c), "delta": c[0],
                                        "clip": sum(min(x - 0.6, 0) for x in c)}, abs=FLOAT64["atol"])
        # What is still paid from step k on is the value of step k, and the minimum is paid as it falls.
        assert_close(paid["delta"][i][: len(c)].flip(0).cumsum(0).flip(0), float64(c), **FLOAT64)
        assert_close(paid["min"][i][: len(c)].cumsum(0), float64(c).cummin(0).values, **FLOAT64)


@given(seeds, st.integers(1, 4), st.integers(1, 6))
def test_useless_right_steps_pay_under_sum_only(seed: int, n: int, more: int) -> None:
    """Steps as right as the last one, appended: what arXiv:2410.15115 saw a policy do under `sum`."""
    values = ragged(seed, [n])[0]
    longer = torch.cat([values, values[-1:].expand(more)])

    def total(c: Tensor, credit: str, bound: float | None) -> float:
        return float(step_payments(c, torch.zeros(len(c), dtype=torch.long), credit=credit, bound=bound).sum())

    more_paid = total(values, "sum", None) + more * float(values[-1])
    assert total(longer, "sum", None) == pytest.approx(more_paid, rel=RELATIVE64)
    for credit, bound in CREDITS[2:]:
        assert total(longer, credit, bound) <= total(values, credit, bound) + FLOAT64["atol"]
    # A mean moves towards the last value and never past it: it rises only where the last step is better than the rest.
    before, after, last = total(values, "mean", None), total(longer, "mean", None), float(values[-1])
    assert min(before, last) - FLOAT64["atol"] <= after <= max(before, last) + FLOAT64["atol"]


def test_a_nan_stays_in_its_own_response() -> None:
    # A response before and one after the one with the NaN are paid as if it were not there.
    values, rows = float64([0.9, 0.4, NAN, 0.5, 0.3, 0.2]), torch.tensor([0, 0, 1, 1, 2, 2])
    for credit, bound in CREDITS:
        paid = step_payments(values, rows, credit=credit, bound=bound)
        alone = step_payments(values[[0, 1, 4, 5]], rows[[0, 1, 4, 5]], credit=credit, bound=bound)
        assert_close(paid[[0, 1, 4, 5]], alone, **EXACT)
        assert paid[2].isnan()


def test_payments_are_wide_and_leave_their_input_alone() -> None:
    narrow = torch.tensor([0.3, 0.7, 0.9], dtype=torch.bfloat16)
    rows, before = torch.tensor([0, 0, 0]), narrow.clone()
    for credit, bound in CREDITS:
        paid = step_payments(narrow, rows, credit=credit, bound=bound)
        exact = step_payments(narrow.double(), rows, credit=credit, bound=bound)
        assert (paid.dtype, exact.dtype) == (torch.float32, torch.float64)
        assert_close(paid.double(), exact, **FLOAT32)
    assert_close(narrow, before, **EXACT)


def test_payments_refuse_what_does_not_go_together() -> None:
    with pytest.raises(ValueError, match="credit='median' for steps is none of sum, mean, min, delta, clip"):
        step_payments(VALUES, ROWS, credit="median")
    for credit, bound in (("clip", None), ("sum", 0.5), ("delta", 0.0)):
        with pytest.raises(ValueError, match="do not go together: clip needs one, no other takes one"):
            step_payments(VALUES, ROWS, credit=credit, bound=bound)
    for cap in (0, -1):
        with pytest.raises(ValueError, match=f"cap={cap} leaves no step that is paid; none pays all of them"):
            step_payments(VALUES, ROWS, credit="sum", cap=cap)
    with pytest.raises(ValueError, match="rows of steps must never fall"):
        step_payments(VALUES, ROWS.flip(0), credit="sum")


def test_first_errors_by_hand() -> None:
    # 0.9 0.4 0.2: the second; none; 0.5 0.5: at the threshold is not below it; a NaN is an error.
    probabilities, rows = float64([0.9, 0.4, 0.2, 0.5, 0.5, NAN]), torch.tensor([0, 0, 0, 2, 2, 3])
    assert predicted_first_error(probabilities, rows, 4).tolist() == [1, -1, -1, 0]
    assert predicted_first_error(probabilities, rows, 4, threshold=0.95).tolist() == [0, -1, 0, 0]
    assert predicted_first_error(float64([]), torch.tensor([], dtype=torch.long), 2).tolist() == [-1, -1]


@given(seeds, SIZES, st.sampled_from([0.3, 0.5, 0.8]))
def test_first_errors_agree_with_the_reference(seed: int, sizes: list[int], threshold: float) -> None:
    probabilities, rows, lists = ragged(seed, sizes)
    found = predicted_first_error(probabilities, rows, len(sizes), threshold=threshold)
    assert found.tolist() == [truth.first_error(row, threshold) for row in lists]


def test_scores_of_first_errors_by_hand() -> None:
    # Wrong solutions: 1 of 3 found in place (another one is found elsewhere, one missed). Right: 3 of 4 left alone.
    predicted, true = torch.tensor([2, 1, -1, -1, -1, -1, 0]), torch.tensor([2, 0, 0, -1, -1, -1, -1])
    scores = first_error_scores(predicted, true)
    # 2 (1/3) (3/4) / (1/3 + 3/4) = (1/2) / (13/12) = 6/13.
    assert astuple(scores) == pytest.approx((1 / 3, 3 / 4, 6 / 13, 3, 4), rel=RELATIVE64)


def test_scores_of_first_errors_at_their_edges() -> None:
    none, found = torch.tensor([-1, -1]), torch.tensor([0, 2])
    assert astuple(first_error_scores(found, found)) == pytest.approx((1, NAN, NAN, 2, 0), nan_ok=True)
    assert astuple(first_error_scores(none, none)) == pytest.approx((NAN, 1, NAN, 0, 2), nan_ok=True)
    assert astuple(first_error_scores(torch.tensor([1, 0]), torch.tensor([0, -1]))) == (0, 0, 0, 1, 1)
    # Always "no error", or always "first step": one accuracy is 0 and so is F1.
    assert first_error_scores(none, torch.tensor([0, -1])).f1 == 0


@pytest.mark.parametrize(("answers", "weights", "expected"), [
    (["3", "4", "4"], None, "4"), (["3", "4", "4", "3"], None, "3"), ([None, None, "7"], None, "7"),
    ([None, None], None, None), ([], None, None), (["3", "4", "4"], [0.9, 0.4, 0.4], "3"),
    (["3", "4"], [0, 0], "3"), ([None, "4"], [NAN, 0.1], "4"), (["a", *"b" * 10], [1.0] + [0.1] * 10, "a"),
    ([*"b" * 10, "a"], [0.1] * 10 + [1.0], "b"),
])
def test_votes_by_hand(answers: list[str | None], weights: list[float] | None, expected: str | None) -> None:
    assert majority_vote(answers, weights) == expected


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.sampled_from([0.0, 0.5, 1.0])), max_size=6))
def test_votes_agree_with_the_reference(votes: list[tuple[str | None, float]]) -> None:
    answers, weights = [answer for answer, _ in votes], [weight for _, weight in votes]
    assert majority_vote(answers, weights) == truth.vote(answers, weights)
    assert majority_vote(answers) == truth.vote(answers, [1.0] * len(answers))


@pytest.mark.parametrize("weight", [-0.1, NAN, math.inf])
def test_a_vote_refuses_its_weight(weight: float) -> None:
    with pytest.raises(ValueError, match="of the answer 'b' cannot vote: it must be finite and 0 or more"):
        majority_vote(["a", "b"], [1.0, weight])


def test_each_vote_has_one_weight() -> None:
    for weights in ([1.0], [1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="zip"):
            majority_vote(["a", "b"], weights)


def paid_batch(seed: int, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, list[list[float]], list[list[bool]]]:
    """Rewards with junk where no step ends, places of the ends, groups; rewards and ends as lists."""
    rewards, ends = noise(seed, *mask.shape), noise(seed + 1, *mask.shape) > 0
    groups = torch.arange(len(mask)) % max(len(mask) // 2, 1)
    lists = rows_of(rewards, mask), [[end > 0 for end in row] for row in rows_of(ends.double(), mask)]
    return rewards.masked_fill(~(ends & mask), NAN), ends, groups, *lists


BY_HAND = (float64([[NAN, 1, NAN, 2, NAN], [NAN, NAN, 4, NAN, NAN], [3, 1, 2, NAN, NAN]]),
           torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 0, 0]]) > 0,
           torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 0], [1, 1, 1, 1, 0]]) > 0, torch.tensor([7, 7, 7]))
"""Steps worth 1, 2; 4; 3, 1, 2. The first row's prompt token is marked as an end and must not count."""


def test_leave_one_out_by_depth_by_hand() -> None:
    # To come, by steps behind: 3, 2, 0; 4, 0; 6, 3, 2, 0. Means of the others of 3, 4, 6: 5, 9/2, 7/2; after one step
    # of 2, 0, 3: 3/2, 5/2, 1; after two of 0, 0, 2: 1, 1, 0; after three all are 0.
    expected = float64([[0, -2, 0.5, 0.5, -1], [0, -0.5, -0.5, -2.5, 0], [2.5, 2, 2, 0, 0]])
    rewards, ends, mask, groups = BY_HAND
    assert_close(step_rloo(rewards.requires_grad_(), ends, mask, groups), expected, **FLOAT64)


def test_process_supervised_grpo_by_hand() -> None:
    # Steps 1, 2, 4, 3, 1, 2: mean 13/6, squares 169/36 + ... add up to 35 - 169/6 = 41/6, variance 41/30.
    rewards, ends, mask, groups = BY_HAND
    gaps = float64([[0, -8 / 6, -1 / 6, -1 / 6, 0], [0, 11 / 6, 11 / 6, 0, 0], [-3 / 6, -8 / 6, -1 / 6, 0, 0]])
    assert_close(step_grpo(rewards, ends, mask, groups, scale=False), gaps, **FLOAT64)
    assert_close(step_grpo(rewards, ends, mask, groups), gaps / ((41 / 30) ** 0.5 + 1e-4), **FLOAT64)


@given(response_masks().filter(lambda mask: len(mask) > 1), seeds, st.booleans())
def test_step_advantages_agree_with_the_reference(mask: Tensor, seed: int, scale: bool) -> None:
    rewards, ends, groups, listed, end_lists = paid_batch(seed, mask)
    numbers = groups.tolist()
    assert_close(step_rloo(rewards, ends, mask, groups), padded(truth.step_rloo(listed, end_lists, numbers), mask),
                 **FLOAT64)
    assert_close(step_grpo(rewards, ends, mask, groups, scale=scale),
                 padded(truth.step_grpo(listed, end_lists, numbers, scale=scale), mask), **FLOAT64)


@given(seeds, st.booleans())
def test_one_step_at_the_end_is_the_outcome_method(seed: int, scale: bool) -> None:
    lengths = noise(seed, 6, 1).abs().mul(3).long().clamp(0, 4) + 1
    mask, groups = torch.arange(5) < lengths, torch.tensor([0, 1, 0, 1, 1, 1])
    ends = torch.arange(5) == lengths - 1
    rewards = torch.where(ends, noise(seed + 1, 6, 1).float(), 0.0)
    assert_close(step_rloo(rewards, ends, mask, groups), rloo(rewards, mask, groups), **EXACT)
    assert_close(step_grpo(rewards, ends, mask, groups, scale=scale), grpo(rewards, mask, groups, scale=scale), **EXACT)


def test_a_prompt_with_one_step_or_none_has_no_advantage() -> None:
    mask, groups = torch.ones(4, 3, dtype=torch.bool), torch.tensor([0, 0, 1, 1])
    ends = torch.tensor([[False, True, False], [False] * 3, [False] * 3, [False] * 3])
    assert_close(step_grpo(torch.full((4, 3), 5.0), ends, mask, groups), torch.zeros(4, 3), **EXACT)
    # Leave-one-out compares responses, not steps: the one that was paid is better than the one that was not.
    expected = float64([[5, 5, 0], [-5, -5, -5], [0] * 3, [0] * 3]).float()
    assert_close(step_rloo(torch.full((4, 3), 5.0), ends, mask, groups), expected, **EXACT)


def test_advantages_refuse_a_single_response() -> None:
    x, groups = torch.ones(3, 2), torch.tensor([4, 9, 4])
    with pytest.raises(ValueError, match="steps of a single response have no group: sample two or more responses"):
        step_grpo(x, x > 0, x > 0, groups)
    with pytest.raises(ValueError, match="step_rloo found a prompt with a single response"):
        step_rloo(x, x > 0, x > 0, groups)


class Asked(TorchDispatchMode):
    """Counts how often a value is fetched, for which an accelerator has to be waited for."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_deeper_responses_fetch_no_more_values() -> None:
    counts = []
    for depth in (1, 9):
        mask = torch.ones(4, 9, dtype=torch.bool)
        with Asked() as asked:
            step_rloo(torch.ones(4, 9), mask & (torch.arange(9) < depth), mask, torch.tensor([0, 0, 1, 1]))
        counts.append(asked.n)
    assert counts[0] == counts[1] > 0


def test_leave_one_out_by_depth_has_the_gradient_of_the_expected_sum() -> None:
    """Every pair of responses of a small tree, each weighted by its probability, against the derivative itself."""
    # Token 0 goes on, 1 ends a step, 2 ends a step and the response; three tokens at most, so steps vary from 0 to 3.
    leaves = [w for n in (1, 2, 3) for w in itertools.product(range(3), repeat=n)
              if 2 not in w[:-1] and (w[-1] == 2 or n == 3)]
    before = sorted({w[:n] for w in leaves for n in range(len(w))})
    policy, worth = noise(1, len(before), 3).requires_grad_(), noise(2, len(before), 3)
    place = torch.tensor([[before.index(w[:t]) if t < len(w) else 0 for t in range(3)] for w in leaves])
    token = torch.tensor([[*w, 0, 0][:3] for w in leaves])
    mask = torch.arange(3) < torch.tensor([[len(w)] for w in leaves])
    logprobs, rewards, ends = policy.log_softmax(1)[place, token], worth[place, token], (token > 0) & mask
    chance = torch.where(mask, logprobs, 0.0).sum(1).exp()
    exact = torch.autograd.grad((chance * torch.where(ends, rewards, 0.0).sum(1)).sum(), policy, retain_graph=True)

    n = len(leaves)
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    rows, groups = pairs.flatten(), torch.repeat_interleave(torch.arange(n * n), 2)
    advantages = step_rloo(rewards[rows], ends[rows], mask[rows], groups)
    surrogate = torch.where(mask[rows], advantages * logprobs[rows], 0.0).sum(1).view(-1, 2).mean(1)
    assert float(chance.detach().sum()) == pytest.approx(1.0, rel=RELATIVE64)
    assert_close(torch.autograd.grad((chance.detach()[pairs].prod(1) * surrogate).sum(), policy), exact, **FLOAT64)
