"""Labels of steps, scores of solutions, credit for single steps, first errors and votes."""

import torch
from tolerances import FLOAT64
from torch.testing import assert_close

from keel.functional.steps import aggregate_steps, step_payments

NAN = float("nan")


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


VALUES, ROWS = float64([0.9, 0.5, 0.7, 0.2, 0.8]), torch.tensor([0, 0, 0, 2, 2])


def test_payments_by_hand() -> None:
    expected = {"sum": [0.9, 0.5, 0.7, 0.2, 0.8], "mean": [0.3, 0.5 / 3, 0.7 / 3, 0.1, 0.4],
                "min": [0.9, -0.4, 0, 0.2, 0], "delta": [0.4, -0.2, 0.7, -0.6, 0.8]}
    for credit, paid in expected.items():
        assert_close(step_payments(VALUES, ROWS, credit=credit), float64(paid), **FLOAT64)
    assert_close(step_payments(VALUES, ROWS, credit="clip", bound=0.6), float64([0, -0.1, 0, -0.4, 0]), **FLOAT64)


def test_scores_of_solutions_by_hand() -> None:
    expected = {"min": [0.5, NAN, 0.2], "product": [0.315, NAN, 0.16], "mean": [0.7, NAN, 0.5],
                "last": [0.7, NAN, 0.8], "sum": [2.1, NAN, 1.0]}
    for how, scores in expected.items():
        assert_close(aggregate_steps(VALUES, ROWS, 3, how=how), float64(scores), **FLOAT64, equal_nan=True)
