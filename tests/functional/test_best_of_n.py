"""Best of n against all choices of n responses, and its distance from the policy against a sum over cells."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import best_of_n as truth
from tolerances import CELLS, EXACT, FLOAT64, RELATIVE64
from torch.testing import assert_close

from keel.functional.best_of_n import best_of_n, best_of_n_kl


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand() -> None:
    # Three responses score 1, 2, 3 and are worth 10, 30, 20. Of the three pairs one is won by the second (30) and two
    # by the third (20): 70 / 3. Of one the mean is 20, of three the last is taken: 20.
    scores, values = float64([1, 2, 3]), float64([10, 30, 20])
    assert_close(best_of_n(scores, values, n=1), float64(20), **EXACT)
    assert_close(best_of_n(scores, values, n=2), float64(70 / 3), **FLOAT64)
    assert_close(best_of_n(scores, values, n=3), float64(20), **EXACT)


def test_equal_scores_share_the_place() -> None:
    # Two tie at the top, worth 4 and 8: whoever draws both takes either with equal chance; with one of them, that one.
    # Pairs: (low, 4), (low, 8), (4, 8) -> 4, 8, 6.
    assert_close(best_of_n(float64([0, 1, 1]), float64([100, 4, 8]), n=2), float64(6), **FLOAT64)
    assert_close(best_of_n(torch.zeros(3), float64([1, 2, 6]), n=3), float64(3), **FLOAT64)


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-9, 9)), min_size=1, max_size=7), st.data())
def test_every_choice_of_n(rows: list, data: st.DataObject) -> None:
    scores, values = [float(s) for s, _ in rows], [v for _, v in rows]
    n = data.draw(st.integers(1, len(rows)))
    assert_close(best_of_n(float64(scores), float64(values), n=n), float64(truth.best_of_n(scores, values, n)),
                 **FLOAT64)


def test_of_its_own_scores_it_only_grows_and_the_order_does_not_matter() -> None:
    scores = torch.tensor([0.3, -1.0, 2.5, 0.3, 0.9, -0.2])
    curve = [float(best_of_n(scores, scores, n=n)) for n in range(1, 7)]
    assert curve == sorted(curve) and curve[-1] == 2.5
    for n in (1, 3, 6):
        assert_close(best_of_n(scores.flip(0), scores.flip(0), n=n), best_of_n(scores, scores, n=n), **FLOAT64)


def test_large_numbers_stay_exact() -> None:
    """C(4000, 64) has more digits than a float has range for."""
    scores = torch.arange(4000, dtype=torch.float64)
    expected = 64 * 4001 / 65 - 1  # mean largest of 64 from 1 .. 4000, less one
    assert float(best_of_n(scores, scores, n=64)) == pytest.approx(expected, rel=RELATIVE64)


def test_values_carry_no_gradient_and_are_widened() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    found = best_of_n(torch.tensor([0.0, 1.0]), values, n=2)
    assert not found.requires_grad and found.dtype == torch.float64
    # In float32 the one is lost beside 2^24.
    assert float(best_of_n(torch.zeros(2), torch.tensor([2.0**24, 1.0]), n=1)) == (2**24 + 1) / 2


@pytest.mark.parametrize("n", [0, 4])
def test_n_has_to_be_there(n: int) -> None:
    with pytest.raises(ValueError, match=f"n={n} is outside 1 to the 3 responses there are"):
        best_of_n(torch.zeros(3), torch.zeros(3), n=n)


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_distance_from_the_policy(n: int) -> None:
    assert best_of_n_kl(n) == pytest.approx(truth.kl(n, 4000), abs=CELLS)


def test_the_distance_by_hand() -> None:
    # log 4 - 3/4 = 1.386294 - 0.75
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75, rel=RELATIVE64)
    with pytest.raises(ValueError, match="n=0 responses to pick the best of: there is at least one"):
        best_of_n_kl(0)
