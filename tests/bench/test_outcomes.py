"""Outcomes of solutions, counted by hand."""

import pytest
import torch

from keel.bench import outcomes
from keel.bench.outcomes import outcomes_judged
from keel.data.records import Prompt
from keel.data.traces import StepTrace


def solutions(*told):
    """Of (number of steps, outcome)."""
    return [StepTrace(Prompt(f"t{i}", (), f"q{i}"), ("a",) * n, (None,) * n, right)
            for i, (n, right) in enumerate(told)]


HELD = solutions((1, True), (2, True), (3, False), (4, True))


def test_four_solutions_by_hand():
    """Called right: 1, 1, 1, 0, of which two are. Of three pairs of right and wrong, two are in order."""
    training = solutions((1, True), (5, False), (1, True))
    found = outcomes_judged(torch.tensor([2.0, 1.5, 1.0, -1.0]), HELD, training, seed=0)
    assert (found["n"], found["n_right"]) == (4, 3)
    assert found["accuracy"]["mean"] == 2 / 4 and found["auc"]["mean"] == pytest.approx(2 / 3)
    assert found["accuracy"]["low"] <= 2 / 4 <= found["accuracy"]["high"]
    assert found["auc"]["low"] <= 2 / 3 <= found["auc"]["high"]
    # In training short solutions are right: -1 and -2 are above -3, -4 is not.
    assert found["baselines"]["majority"]["accuracy"]["mean"] == 3 / 4
    assert found["baselines"]["number of steps"]["auc"]["mean"] == pytest.approx(2 / 3)


def test_the_baselines_are_those_of_the_training_solutions():
    """Most training solutions are wrong, and the long ones right."""
    found = outcomes_judged(torch.zeros(4), HELD, solutions((9, True), (1, False), (2, False)), seed=0)
    assert found["baselines"]["majority"]["accuracy"]["mean"] == 1 / 4
    assert found["baselines"]["number of steps"]["auc"]["mean"] == pytest.approx(1 / 3)
    assert found["auc"]["mean"] == 1 / 2 and found["accuracy"]["mean"] == 1 / 4


def test_solutions_that_are_all_right_have_no_area():
    held = solutions((1, True), (2, True))
    found = outcomes_judged(torch.tensor([1.0, -1.0]), held, held, seed=0)
    assert found["auc"] == {"mean": None, "low": None, "high": None} and found["accuracy"]["mean"] == 1 / 2


def test_one_prompt_says_nothing_of_others():
    same = [StepTrace(HELD[0].prompt, one.steps, one.labels, one.outcome) for one in HELD]
    found = outcomes_judged(torch.tensor([2.0, 1.0, 0.0, -1.0]), same, same, seed=0)
    assert found["auc"]["mean"] is not None and found["auc"]["low"] is None and found["accuracy"]["low"] is None


def test_draws_block_by_block_are_those_drawn_at_once(monkeypatch):
    found = []
    for size in (100, 1000):
        monkeypatch.setattr(outcomes, "BLOCK", size)
        found.append(outcomes_judged(torch.tensor([2.0, 0.5, 1.0, -1.0]), HELD, HELD, seed=0)["auc"])
    assert found[0] == found[1] and found[0]["low"] < found[0]["high"]
