"""SimCSE and SwAV terms on features."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import contrastive as truth
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT32, FLOAT64
from torch.testing import assert_close

from keel.functional.contrastive import as_differences, prototype_usage, simcse, sinkhorn, swav

FOUND = "contrastive/found"


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_differences_by_hand() -> None:
    # Chosen (3, 1), (0, 0) and (1, 0), rejected (1, 1), (2, 5) and (0, 0).
    rows = float64([[3, 1], [0, 0], [1, 0], [1, 1], [2, 5], [0, 0]])
    assert_close(as_differences(rows), float64([[2, 0], [-2, -5], [1, 0], [-2, 0], [2, 5], [-1, 0]]), **EXACT)
    assert_close(as_differences(rows), float64(truth.differences(rows.tolist())), **EXACT)


def test_simcse_by_hand() -> None:
    first = float64([[2, 0], [0, 1]]).requires_grad_()
    second = float64([[3, 0], [5, 0]]).requires_grad_()
    # Cosines: row 0 sees 1 and 1, row 1 sees 0 and 0; both lose log 2.
    loss, stats = simcse(first, second, temperature=0.5)
    assert_close(loss, float64([math.log(2)] * 2), **FLOAT64)
    assert_close(stats[FOUND], float64([1, 0]), **EXACT)
    loss[1].backward()
    # The rows weigh 1/2 and 1/2: second view's rows are pulled by (1/2 - 0) and (1/2 - 1) over 0.5, across themselves
    # towards (0, 1), by their lengths 3 and 5. The first view sees two equal directions: nothing.
    assert_close(first.grad, torch.zeros_like(first), **FLOAT64)
    assert_close(second.grad, float64([[0, 1 / 3], [0, -1 / 5]]), **FLOAT64)


def test_a_row_finds_its_own_view_among_the_second_views() -> None:
    # Row (1, 1) is nearest to its own (10, 1), though (10, 1) is nearer to row (1, 0).
    _, stats = simcse(float64([[1, 0], [1, 1]]), float64([[1, 0], [10, 1]]))
    assert_close(stats[FOUND], float64([1, 1]), **EXACT)


def test_the_usual_temperature_of_simcse_is_a_twentieth() -> None:
    rows = float64([[1, 0], [0, 1]])
    # Own cosine 1, the other 0: log(1 + e^-20).
    assert_close(simcse(rows, rows)[0], float64([math.log1p(math.exp(-20))] * 2), **FLOAT64)


@given(seeds, st.integers(1, 6), st.sampled_from([0.05, 1.0]), st.booleans())
def test_simcse_agrees_with_the_reference(seed: int, rows: int, temperature: float, repeated: bool) -> None:
    first, second = noise(seed, rows, 3).requires_grad_(), noise(seed + 1, rows, 3).requires_grad_()
    same = noise(seed + 2, rows, rows) > 0 if repeated else None
    loss, _ = simcse(first, second, temperature=temperature, same=same)
    loss.sum().backward()
    seen = same.tolist() if repeated else [[False] * rows] * rows
    losses, by_first, by_second = truth.simcse(first.tolist(), second.tolist(), temperature, seen)
    assert_close(loss, float64(losses), **FLOAT64)
    assert_close(first.grad, float64(by_first), **FLOAT64)
    assert_close(second.grad, float64(by_second), **FLOAT64)


@given(seeds)
def test_one_row_loses_nothing_and_lengths_do_not_matter(seed: int) -> None:
    first, second = noise(seed, 4, 3), noise(seed + 1, 4, 3)
    assert_close(simcse(first[:1], second[:1])[0], float64([0]), **EXACT)
    lengths = noise(seed + 2, 4, 1).exp()
    assert_close(simcse(first * lengths, second * lengths.flip(0)), simcse(first, second), **FLOAT64)
    prototypes = noise(seed + 3, 5, 3)
    scaled = swav(first * lengths, second * lengths.flip(0), 7 * prototypes, queued=9 * first)
    assert_close(scaled, swav(first, second, prototypes, queued=first), **FLOAT64)


def test_rows_of_one_text_are_no_negatives_of_each_other() -> None:
    first, second = noise(1, 3, 4), noise(2, 3, 4)
    one_text = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    loss, stats = simcse(first, second, same=one_text)
    # Each of the twins sees itself and the third row; the third sees all.
    for i in (0, 1):
        assert_close(loss[i], simcse(first[[i, 2]], second[[i, 2]])[0][0], **FLOAT64)
    assert_close(loss[2], simcse(first, second)[0][2], **FLOAT64)
    everything = torch.ones(3, 3, dtype=torch.bool)
    alone, stats = simcse(first, second, same=everything)
    assert_close((alone, stats[FOUND]), (float64([0, 0, 0]), float64([1, 1, 1])), **EXACT)


def test_assignments_by_hand() -> None:
    # e^0 and e^log(3): [[1, 1], [1, 3]]. Prototypes (columns) to one: [[1/2, 1/4], [1/2, 3/4]]; rows to one:
    # [[2/3, 1/3], [2/5, 3/5]].
    scores = float64([[0, 0], [0, math.log(3)]])
    assert_close(sinkhorn(scores, epsilon=1.0, iterations=1), float64([[2 / 3, 1 / 3], [2 / 5, 3 / 5]]), **FLOAT64)
    # Twice the scores at twice the smoothness are the same.
    smoother = sinkhorn(2 * scores, epsilon=2.0, iterations=2)
    assert_close(smoother, sinkhorn(scores, epsilon=1.0, iterations=2), **FLOAT64)


@given(seeds, st.integers(1, 5), st.integers(1, 5), st.sampled_from([(0.05, 3), (0.5, 1)]))
def test_assignments_agree_with_the_reference(seed: int, rows: int, k: int, setting: tuple[float, int]) -> None:
    scores = noise(seed, rows, k, scale=0.3)
    q = sinkhorn(scores, epsilon=setting[0], iterations=setting[1])
    assert_close(q, float64(truth.sinkhorn(scores.tolist(), *setting)), **FLOAT64)
    assert_close(q.sum(1), torch.ones(rows, dtype=torch.float64), **FLOAT64)
    assert_close(sinkhorn(scores + 3, epsilon=setting[0], iterations=setting[1]), q, **FLOAT64)
    if setting == (0.05, 3):
        assert_close(sinkhorn(scores), q, **EXACT)


def test_many_rounds_use_every_prototype_alike() -> None:
    q = sinkhorn(noise(4, 12, 3, scale=0.3), epsilon=0.5, iterations=200)
    assert_close(q.sum(0), torch.full((3,), 4.0, dtype=torch.float64), **FLOAT64)
    assert_close(prototype_usage(q), float64(math.log(3)), **FLOAT64)


def test_hard_scores_still_give_every_row_a_prototype() -> None:
    """In plain numbers exp(-400 / 0.05) is a row of zeros, which no division can bring back to a sum of one."""
    q = sinkhorn(torch.tensor([[400.0, 0.0], [0.0, -400.0], [-400.0, 3.0]]))
    assert_close(q.sum(1), torch.ones(3), **FLOAT32)


def test_swav_by_hand() -> None:
    # One row alone has to use both prototypes alike: q = (1/2, 1/2). At temperature 1 the scores (1, 0) predict s(1)
    # and s(-1): the loss is -(log s(1) + log s(-1)) / 2 = log(1 + e) - 1/2, and the same again for the other view.
    first, second = float64([[4, 0]]), float64([[0, 3]])
    loss, stats = swav(first, second, torch.eye(2, dtype=torch.float64), temperature=1.0)
    assert_close(loss, float64([2 * math.log1p(math.e) - 1]), **FLOAT64)
    assert_close(stats[FOUND], float64([0]), **EXACT)
    assert_close(swav(first, first, torch.eye(2, dtype=torch.float64))[1][FOUND], float64([1]), **EXACT)


@given(seeds, st.integers(1, 4), st.integers(2, 4), st.integers(0, 3), st.booleans())
def test_swav_agrees_with_the_reference(seed: int, rows: int, k: int, queued: int, usual: bool) -> None:
    first, second = noise(seed, rows, 3).requires_grad_(), noise(seed + 1, rows, 3).requires_grad_()
    prototypes = noise(seed + 2, k, 3).requires_grad_()
    queue = noise(seed + 3, queued, 3).requires_grad_() if queued else None
    setting = (0.1, 0.05, 3) if usual else (0.4, 0.3, 2)
    names = {} if usual else {"temperature": 0.4, "epsilon": 0.3, "iterations": 2}
    loss, _ = swav(first, second, prototypes, queued=queue, **names)
    loss.sum().backward()
    losses, by_first, by_second, by_prototype = truth.swav(
        first.tolist(), second.tolist(), prototypes.tolist(), *setting, queue.tolist() if queued else [])
    assert_close(loss, float64(losses), **FLOAT64)
    assert_close(first.grad, float64(by_first), **FLOAT64)
    assert_close(second.grad, float64(by_second), **FLOAT64)
    assert_close(prototypes.grad, float64(by_prototype), **FLOAT64)
    assert queue is None or queue.grad is None


def test_swapping_the_views_changes_neither_loss() -> None:
    first, second, prototypes = noise(1, 4, 3), noise(2, 4, 3), noise(3, 5, 3)
    assert_close(swav(first, second, prototypes), swav(second, first, prototypes), **FLOAT64)


def test_narrow_features_are_widened_before_their_length_is_taken() -> None:
    first, second = noise(5, 3, 8).bfloat16(), noise(6, 3, 8).bfloat16()
    prototypes, queue = noise(7, 4, 8).bfloat16(), noise(8, 2, 8).bfloat16()
    loss, _ = swav(first, second, prototypes, queued=queue)
    exact, _ = swav(first.double(), second.double(), prototypes.double(), queued=queue.double())
    assert loss.dtype == torch.float32
    assert_close(loss.double(), exact, **FLOAT32)


def test_usage_by_hand() -> None:
    # Shares 1/2 and 1/2: log 2; all in one place: 0.
    assert_close(prototype_usage(float64([[1, 0], [0, 1]]).requires_grad_()), float64(math.log(2)), **FLOAT64)
    assert_close(prototype_usage(float64([[0, 1], [0, 1]])), float64(0), **EXACT)
    assert not prototype_usage(float64([[1, 0], [0, 1]]).requires_grad_()).requires_grad


@given(seeds)
def test_usage_agrees_with_the_reference(seed: int) -> None:
    assignments = noise(seed, 4, 3).softmax(1)
    assert_close(prototype_usage(assignments), float64(truth.usage_entropy(assignments.tolist())), **FLOAT64)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_of_zero_is_refused(temperature: float) -> None:
    rows = noise(0, 2, 3)
    with pytest.raises(ValueError, match=rf"temperature={temperature} is not above 0; SimCSE's usual value is 0.05"):
        simcse(rows, rows, temperature=temperature)
    with pytest.raises(ValueError, match=rf"temperature={temperature} is not above 0; SwAV's usual value is 0.1"):
        swav(rows, rows, rows, temperature=temperature)


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.0, 3), (-1.0, 3), (0.05, 0)])
def test_an_assignment_needs_smoothness_and_a_round(epsilon: float, iterations: int) -> None:
    with pytest.raises(ValueError, match=rf"epsilon={epsilon}, iterations={iterations}: both must be above 0; usual"):
        sinkhorn(noise(0, 2, 3), epsilon=epsilon, iterations=iterations)
