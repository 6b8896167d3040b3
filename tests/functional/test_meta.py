"""MetaRM's difference objective, and the step it is used in."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import meta as truth
from references.preference import bradley_terry as reference_pair
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT64
from torch.func import functional_call, grad
from torch.testing import assert_close

from keel.functional.meta import difference_objective
from keel.functional.preference import bradley_terry


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_difference_objective_by_hand() -> None:
    scores = float64([[math.log(3), 0, 0]]).requires_grad_()
    objective = difference_objective(scores)
    objective.sum().backward()
    # sigmoid(log 3) = 3/4 twice and sigmoid(0) = 1/2 once, times 2/9; slopes 3/16 twice, and none at the tie.
    assert_close(objective, float64([2 / 9 * 2]), **FLOAT64)
    assert_close(scores.grad, 2 / 9 * float64([[6 / 16, -3 / 16, -3 / 16]]), **FLOAT64)


@given(seeds, st.integers(2, 6), st.sampled_from([0.0, 0.3, 10.0]))
def test_difference_objective_agrees_with_the_reference(seed: int, k: int, scale: float) -> None:
    scores = noise(seed, 3, k, scale=scale).requires_grad_()
    objective = difference_objective(scores)
    objective.sum().backward()
    expected = [truth.difference_objective(row) for row in scores.tolist()]
    assert_close(objective, float64([value for value, _ in expected]), **FLOAT64)
    assert_close(scores.grad, float64([slopes for _, slopes in expected]), **FLOAT64)


@given(seeds, st.integers(2, 6))
def test_the_objective_is_bounded_and_knows_no_order_and_no_offset(seed: int, k: int) -> None:
    scores = noise(seed, 2, k)
    objective = difference_objective(scores)
    assert bool((objective > (k - 1) / (2 * k)).all())
    assert bool((objective < (k - 1) / k).all())
    assert_close(difference_objective(scores.flip(1)), objective, **FLOAT64)
    assert_close(difference_objective(scores + 5), objective, **FLOAT64)
    assert bool((difference_objective(2 * scores) > objective).all())


@pytest.mark.parametrize("k", [2, 3, 8])
def test_equal_responses_give_the_lowest_value_and_push_nothing(k: int) -> None:
    scores = torch.full((2, k), 0.7, dtype=torch.float64, requires_grad=True)
    objective = difference_objective(scores)
    objective.sum().backward()
    assert_close(objective, torch.full_like(objective, (k - 1) / (2 * k)), **FLOAT64)
    assert_close(scores.grad, torch.zeros_like(scores), **EXACT)


@pytest.mark.parametrize("k", [0, 1])
def test_one_response_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"{k} responses per prompt in scores: a difference needs two or more, sample"):
        difference_objective(torch.zeros(2, k))


class Judge(torch.nn.Module):
    """Two weights and a squashed score: curved, so that the gradient depends on where it is taken."""

    def __init__(self, theta: list[float]) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(float64(theta))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.theta)


@given(seeds, st.sampled_from([0.0, 0.5]))
def test_a_first_order_step_in_place_equals_loops_and_the_functional_form(seed: int, eta: float) -> None:
    """Algorithm 1 with the objective and the loss of this room: 2 prompts of 3 responses, 4 pairs, alpha 0.1."""
    model = Judge(noise(seed, 2).tolist())
    theta, start = model.theta, model.theta.detach().clone()
    meta, chosen, rejected = noise(seed + 1, 2, 3, 2), noise(seed + 2, 4, 2), noise(seed + 3, 4, 2)
    # In place: climb, take the gradient there, restore by copying, step.
    difference_objective(model(meta)).mean().backward()
    with torch.no_grad():
        theta += eta * theta.grad
    theta.grad = None
    bradley_terry(model(chosen), model(rejected))[0].mean().backward()
    with torch.no_grad():
        theta.copy_(start)
    assert_close(theta.detach(), start, **EXACT)
    torch.optim.SGD([theta], lr=0.1).step()

    def call(parameters: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, {"theta": parameters}, x)

    climbed = start + eta * grad(lambda p: difference_objective(call(p, meta)).mean())(start)
    slope = grad(lambda p: bradley_terry(call(p, chosen), call(p, rejected))[0].mean())(climbed)
    assert_close(theta.detach(), start - 0.1 * slope, **FLOAT64)
    expected = truth.step(
        start.tolist(), lambda p: objective_slope(p, meta.tolist()),
        lambda p: pair_slope(p, chosen.tolist(), rejected.tolist()), eta, 0.1)
    assert_close(theta.detach(), float64(expected), **FLOAT64)


def score(theta: list[float], x: list[float]) -> tuple[float, list[float]]:
    """tanh(theta . x), and its derivative by theta."""
    value = math.tanh(sum(p * a for p, a in zip(theta, x, strict=True)))
    return value, [(1 - value**2) * a for a in x]


def objective_slope(theta: list[float], prompts: list[list[list[float]]]) -> list[float]:
    """Derivative of the mean difference objective by theta."""
    slope = [0.0, 0.0]
    for responses in prompts:
        scored = [score(theta, x) for x in responses]
        _, by_score = truth.difference_objective([value for value, _ in scored])
        for weight, (_, direction) in zip(by_score, scored, strict=True):
            slope = [s + weight * d / len(prompts) for s, d in zip(slope, direction, strict=True)]
    return slope


def pair_slope(theta: list[float], chosen: list[list[float]], rejected: list[list[float]]) -> list[float]:
    """Derivative of the mean Bradley-Terry loss by theta."""
    slope = [0.0, 0.0]
    for better, worse in zip(chosen, rejected, strict=True):
        (high, up), (low, down) = score(theta, better), score(theta, worse)
        _, by_gap = reference_pair(high, low, 0.0, 1.0)
        slope = [s + by_gap * (u - d) / len(chosen) for s, u, d in zip(slope, up, down, strict=True)]
    return slope
