"""A judge of steps against labels: worked by hand, its intervals against drawing by hand, and what has to be beaten."""

import json
import math

import pytest
import tolerances as tol
import torch

from keel.bench import first_errors
from keel.bench.first_errors import baselines_of, best_threshold, judged, solution_row
from keel.bench.intervals import N_RESAMPLES
from keel.data.records import Message, Prompt
from keel.data.traces import StepTrace
from keel.errors import DataError, NumericsError
from keel.functional.resampling import cluster_draws
from keel.functional.steps import first_error_scores
from keel.rng import stream


def trace(labels, name="t", *, words=None, outcome=None, steps=None, **meta):
    prompt = Prompt(name, (Message("user", words or name),), None, meta)
    return StepTrace(prompt, tuple(steps or ["so"] * len(labels)), tuple(labels), outcome)


HELD = [trace([1.0, 1.0], "a"), trace([1.0, 0.0, None], "b"), trace([0.0], "c"), trace([0.75, 0.25, 1.0], "d"),
        trace([1.0], "e")]
"""First errors: none, 1, 0, 1, none."""
TOLD = [[0.9, 0.6], [0.8, 0.3, 0.2], [0.7], [0.4, 0.1, 0.9], [0.2]]
"""Called wrong first at one half: none, 1, none, 0, 0."""


def test_first_errors_by_hand():
    found = judged(TOLD, HELD, seed=0)
    # Of three wrong solutions one is found (b), of two right ones one passes (a): F1 = 2 / 6 / (5 / 6) = 2 / 5.
    first = found["first_error"]
    assert first["f1"]["mean"] == pytest.approx(2 / 5, rel=tol.RELATIVE64)
    assert (first["accuracy_wrong"], first["accuracy_right"]) == (1 / 3, 1 / 2)
    assert (first["n_wrong"], first["n_right"]) == (3, 2)
    assert 0.0 <= first["f1"]["low"] < 2 / 5 < first["f1"]["high"] <= 1.0
    # At a threshold of 0.25: none, 2, none, 1, 0; at 0.35: none, 1, none, 1, 0.
    assert judged(TOLD, HELD, seed=0, threshold=0.25)["first_error"]["accuracy_wrong"] == 1 / 3
    assert judged(TOLD, HELD, seed=0, threshold=0.35)["first_error"]["accuracy_wrong"] == 2 / 3


def test_steps_by_hand():
    found = judged(TOLD, HELD, seed=0)
    # Labelled steps and labels at one half: 0.9 y, 0.6 y | 0.8 y, 0.3 n | 0.7 n | 0.4 y, 0.1 n, 0.9 y | 0.2 y.
    assert found["accuracy"]["mean"] == pytest.approx(6 / 9, rel=tol.RELATIVE64) and found["accuracy"]["n"] == 9
    # At 0.35 the fourth step from the end, 0.4, is called right, as it is.
    assert judged(TOLD, HELD, seed=0, threshold=0.35)["accuracy"]["mean"] == pytest.approx(7 / 9, rel=tol.RELATIVE64)
    assert found["accuracy_majority"] == pytest.approx(6 / 9, rel=tol.RELATIVE64)
    squares = [0.1, 0.4, 0.2, 0.3, 0.7, 0.6, 0.1, 0.1, 0.8]
    assert found["brier"] == pytest.approx(sum(x * x for x in squares) / 9, rel=tol.RELATIVE64)
    mostly_wrong = judged([[0.1], [0.2], [0.9]], [trace([0], "x"), trace([0], "y"), trace([1], "z")], seed=0)
    assert mostly_wrong["accuracy_majority"] == pytest.approx(2 / 3, rel=tol.RELATIVE64)
    assert (found["n"], found["n_steps"], found["n_unknown"], found["n_unscored"]) == (5, 10, 0, 0)
    first, second, third = found["by_depth"]
    assert [row["depth"] for row in found["by_depth"]] == [1, 2, 3]
    assert (first["n"], second["n"], third["n"]) == (5, 3, 1)
    assert first["mean_probability"] == pytest.approx((0.9 + 0.8 + 0.7 + 0.4 + 0.2) / 5, rel=tol.RELATIVE64)
    assert (first["share_right"], second["share_right"], third["share_right"]) == (4 / 5, 1 / 3, 1.0)
    # One step at depth 3, right at 0.9: 0.1 between what is said and what is so.
    assert third["ece"] == pytest.approx(0.1, rel=tol.RELATIVE64)


def test_probabilities_of_nought_and_one_stay_finite():
    found = judged([[1.0, 0.0]], [trace([1.0, 1.0])], seed=0)
    assert found["brier"] == pytest.approx(0.5, rel=tol.RELATIVE32) and math.isfinite(found["ece"])


def test_an_error_behind_a_step_that_nobody_judged_is_not_known():
    held = [trace([1, None, 0], "a"), trace([1], "b"), trace([0], "c")]
    found = judged([[0.9, 0.9, 0.1], [0.9], [0.1]], held, seed=0)
    assert found["n_unknown"] == 1 and found["accuracy"]["n"] == 4
    assert (found["first_error"]["n_wrong"], found["first_error"]["n_right"]) == (1, 1)


def test_what_was_not_read_counts_against_the_judge():
    held = [trace([1, 1], "a"), trace([1, 1], "b"), trace([1, 0], "c"), trace([0, None], "d")]
    # The error of c lies behind the cut and is missed; a right solution passes only if it was read to its end.
    found = judged([[0.9, 0.9], [], [0.9], [0.1]], held, seed=0)
    assert (found["first_error"]["accuracy_wrong"], found["first_error"]["accuracy_right"]) == (1 / 2, 1 / 2)
    assert (found["n_unscored"], found["n_part"]) == (4, 3) and found["accuracy"]["n"] == 4
    less = judged([[0.9, 0.9], [0.9], [0.9], [0.1]], held, seed=0)
    assert less["first_error"]["accuracy_right"] == 1 / 2 and less["n_part"] == 3
    assert judged([[0.9]], held[:1], seed=0)["first_error"]["accuracy_right"] == 0.0
    # No threshold lets b pass, so the one that finds the error of d counts: below 0.1 and 0.9 nothing else is tried.
    assert best_threshold([[0.9, 0.9], [0.1], [0.9], [0.1]], held) == 0.5
    nothing = judged([[], [], [], []], held, seed=0)
    assert nothing["accuracy"]["mean"] is None and nothing["brier"] is None and nothing["by_depth"] == []
    assert nothing["first_error"]["f1"]["mean"] == 0.0


def test_one_kind_of_solutions_has_no_f1():
    for held in ([trace([1], "a"), trace([1], "b")], [trace([0], "a"), trace([0], "b")]):
        found = judged([[0.9], [0.1]], held, seed=0)
        assert found["first_error"]["f1"] == {"mean": None, "low": None, "high": None}
        assert found["difference"] == {"over": "no error", "mean": None, "low": None, "high": None}
    assert found["first_error"]["accuracy_right"] is None
    json.dumps(found, allow_nan=False)


def test_intervals_draw_prompts_whole():
    # Two solutions to the prompt "q"; with the same stream, resampled row by row with the function itself.
    held = [trace([1, 0], "a", words="q"), trace([1, 1], "b", words="q"), *HELD[1:]]
    told = [[0.9, 0.2], [0.8, 0.7], *TOLD[1:]]
    found = judged(told, held, seed=3)["first_error"]["f1"]
    numbers, true = [0, 0, 1, 2, 3, 4], torch.tensor([1, -1, 1, 0, 1, -1])
    predicted = torch.tensor([1, -1, 1, -1, 0, 0])
    generator, drawn = stream(3, "bootstrap", "first errors"), []
    for _ in range(N_RESAMPLES):
        counts = cluster_draws(5, n_draws=1, generator=generator)[0].long()[torch.tensor(numbers)]
        drawn.append(first_error_scores(predicted.repeat_interleave(counts), true.repeat_interleave(counts)).f1)
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    ends = torch.tensor(drawn, dtype=torch.float64).nanquantile(tails).tolist()
    assert (found["low"], found["high"]) == pytest.approx(tuple(ends), rel=tol.RELATIVE64)
    alone = judged([[0.9, 0.2], [0.8, 0.7]], held[:2], seed=3)["first_error"]["f1"]
    assert alone == {"mean": 1.0, "low": None, "high": None}


def test_intervals_follow_the_seed():
    held = [trace(labels, str(i)) for i, labels in enumerate([[1, 0], [0], [1, 1], [1]] * 6)]
    told = [[0.9, i / 24][: len(one.steps)] for i, one in enumerate(held)]
    ends = [[judged(told, held, seed=seed)[key] for key in ("accuracy", "first_error")] for seed in (0, 0, 1)]
    assert ends[0] == ends[1] != ends[2]


# --- baselines -------------------------------------------------------------------------------------------------------


def test_the_majority_is_that_of_the_training_solutions():
    # First errors 1, 1, none, 0 among the training solutions; one that is not known does not vote.
    training = [trace([1, 0], "m"), trace([1, 0], "n"), trace([1, 1], "o"), trace([0], "p"), trace([None, 0], "q")]
    found = judged(TOLD, HELD, seed=0, baselines=baselines_of(training))["baselines"]
    assert found["majority"]["accuracy_wrong"] == 2 / 3 and found["majority"]["accuracy_right"] == 0.0
    assert found["no error"]["accuracy_wrong"] == 0.0 and found["no error"]["accuracy_right"] == 1.0
    # Of equally common ones the earliest: none before 1.
    even = judged(TOLD, HELD, seed=0, baselines=baselines_of(training[1:3]))["baselines"]["majority"]
    assert (even["accuracy_wrong"], even["accuracy_right"]) == (0.0, 1.0)


def test_the_majority_of_each_part_knows_the_part():
    training = [trace([1, 0], "m", task="sums"), trace([1, 1], "n", task="words"), trace([1, 1], "o", task="words")]
    held = [trace([1, 0], "a", task="sums"), trace([1, 1], "b", task="words"), trace([1, 1], "c", task="other"),
            trace([1, 0], "d")]
    found = judged([[0.9, 0.9]] * 4, held, seed=0, baselines=baselines_of(training, by="task"), by="task")
    # sums: step 1; words: none; what training does not know, and what has no task: the majority of all, none.
    of_each = found["baselines"]["majority of each task"]
    assert (of_each["accuracy_wrong"], of_each["accuracy_right"]) == (1 / 2, 1.0)
    assert found["difference"]["over"] == "majority of each task"
    assert found["difference"]["mean"] == pytest.approx(0.0 - 2 / 3, rel=tol.RELATIVE64)


def test_the_difference_is_paired():
    """The judge says what a baseline says: every draw gives both the same, however wide their own intervals are."""
    training = [trace([1, 0], "m", task="sums"), trace([1, 1], "n", task="words"), trace([1, 1], "o", task="words")]
    held = [trace(labels, str(i), task=task) for i, (labels, task) in enumerate(
        [([1, 0], "sums"), ([0, None], "sums"), ([1, 1], "words"), ([1, 0], "words"), ([1, 1], "words")] * 2)]
    told = [[0.9, 0.1 if one.prompt.meta["task"] == "sums" else 0.9] for one in held]
    found = judged(told, held, seed=0, baselines=baselines_of(training, by="task"), by="task")
    assert found["first_error"] == found["baselines"]["majority of each task"]
    assert found["first_error"]["f1"]["low"] < found["first_error"]["f1"]["high"]
    assert found["difference"] == {"over": "majority of each task", "mean": 0.0, "low": 0.0, "high": 0.0}


def test_length_alone_finds_errors_that_lie_where_it_says():
    # Long steps are wrong, and nothing else is: a rule that sees only length gets them all.
    training = [trace([1, 1, 0], f"w{i}", steps=["so", "so", "x" * (40 + i)]) for i in range(6)]
    training += [trace([1, 1], f"r{i}", steps=["so", "if"]) for i in range(6)]
    held = [trace([1, 0], "a", steps=["so", "y" * 44]), trace([1, 1, 0], "b", steps=["so", "if", "z" * 50]),
            trace([1, 1], "c")]
    told = [[0.9] * len(one.steps) for one in held]
    found = judged(told, held, seed=0, baselines=baselines_of(training))["baselines"]["length"]
    assert (found["accuracy_wrong"], found["accuracy_right"]) == (1.0, 1.0)
    only_right = judged(TOLD, HELD, seed=0, baselines=baselines_of(training[6:]))["baselines"]
    assert "length" not in only_right and set(only_right) == {"no error", "majority"}


def test_lengths_are_learned_from_a_sample(monkeypatch):
    """Where there are more solutions than that; the seed chooses them, and the majority is still that of all."""
    training = [trace([1, 0] if i % 3 else [1, 1], f"t{i}", steps=["so", "x" * (i + 1)]) for i in range(30)]
    seen = []
    monkeypatch.setattr(first_errors, "_length", lambda taught: seen.append([one.id for one in taught]))
    monkeypatch.setattr(first_errors, "MOST_TAUGHT", 10)
    for seed in (0, 0, 1):
        found = baselines_of(training, seed=seed)
    assert len(seen[0]) == 10 and seen[0] == seen[1] != seen[2]
    assert found["majority"](training[:2]).tolist() == [1, 1]
    monkeypatch.setattr(first_errors, "MOST_TAUGHT", 30)
    baselines_of(training)
    assert seen[3] == [one.id for one in training]


def test_lengths_are_judged_solution_by_solution():
    """All steps at once give what each solution gives alone; none gives none."""
    training = [trace([1, 1, 0], f"w{i}", steps=["so", "so", "x" * (40 + i)]) for i in range(6)]
    training += [trace([1, 1], f"r{i}", steps=["so", "if"]) for i in range(6)]
    rule = baselines_of(training)["length"]
    assert rule([training[0], training[9], training[1]]).tolist() == [2, -1, 2] and rule([]).tolist() == []


def test_parts_one_by_one():
    held = [trace([1, 0], "a", task="sums"), trace([1, 1], "b", task="sums"), trace([1, 1], "c", task="words"),
            trace([0], "d")]
    found = judged([[0.9, 0.1], [0.9, 0.9], [0.1, 0.9], [0.1]], held, seed=0, by="task")
    assert list(found["by_task"]) == ["sums", "words"] and found["by"] == "task"
    assert found["by_task"]["sums"]["n"] == 2 and found["by_task"]["sums"]["first_error"]["f1"]["mean"] == 1.0
    assert found["by_task"]["words"]["first_error"]["accuracy_right"] == 0.0
    assert "by_task" not in judged(TOLD, HELD, seed=0)


# --- threshold -------------------------------------------------------------------------------------------------------


def test_the_best_threshold_by_hand():
    # At 0.35 the errors of b (0.3) and of d (0.1, behind a step of 0.4) are found, that of c (0.7) is not; a passes, e
    # (0.2) does not: F1 = 2 / 3 / (7 / 6) = 4 / 7. No threshold finds more without stopping a; 0.35 is tried as
    # 0.3 and 0.4 are neighbours.
    assert best_threshold(TOLD, HELD) == pytest.approx(0.35, rel=tol.RELATIVE64)


def test_of_equal_thresholds_the_one_nearest_to_one_half():
    held = [trace([1], "a"), trace([0], "b")]
    assert best_threshold([[0.9], [0.1]], held) == 0.5
    # What stands behind a first error changes nothing: 0.2, 0.5 and 0.75 are perfect alike.
    later = [trace([1], "a"), trace([0, None], "b"), trace([0, None], "c")]
    assert best_threshold([[0.9], [0.1, 0.3], [0.1, 0.6]], later) == 0.5
    # Every threshold between 0.6 and 0.9 is perfect; the only one tried there is the middle.
    assert best_threshold([[0.9], [0.6]], held) == pytest.approx(0.75, rel=tol.RELATIVE64)


def test_a_threshold_needs_both_kinds():
    for labels in ([1], [0]):
        with pytest.raises(DataError, match="right and on wrong solutions, and one kind is missing"):
            best_threshold([[0.5]], [trace(labels)])


def test_many_probabilities_are_thinned_out():
    held = [trace([1], f"r{i}") for i in range(300)] + [trace([0], f"w{i}") for i in range(300)]
    told = [[0.6 + i / 1000] for i in range(300)] + [[0.1 + i / 1000] for i in range(300)]
    assert 0.39 < best_threshold(told, held) < 0.61


# --- rows and refusals -----------------------------------------------------------------------------------------------


def test_a_row_for_the_report():
    one = trace([1, 0.25, None], "a", outcome=False, steps=["x", "y", "z"])
    assert solution_row(one, [0.9, 0.3], 0.25, method="beam") == {
        "id": "a", "prompt": [{"role": "user", "content": "a"}], "outcome": False, "first_error": 1, "predicted": None,
        "method": "beam", "steps": [{"text": "x", "score": 0.9, "label": 1}, {"text": "y", "score": 0.3, "label": 0.25},
                                    {"text": "z", "score": None, "label": None}]}
    plain = StepTrace(Prompt("b", (), "count"), ("one",), (1.0,))
    assert solution_row(plain, [])["prompt"] == "count" and solution_row(plain, [])["predicted"] is None
    part = trace([1, 0], "c")
    assert [solution_row(part, told)["predicted"] for told in ([0.9], [0.1], [0.9, 0.9])] == [None, 0, -1]
    assert solution_row(plain, [0.4])["predicted"] == 0 and "method" not in solution_row(plain, [0.4])


def test_solutions_without_labels_hold_nothing():
    with pytest.raises(DataError, match="no step of these solutions is labelled"):
        judged([[0.5]], [trace([None], outcome=True)], seed=0)


@pytest.mark.parametrize(("told", "what"), [
    ([0.5, 0.5], "2 probabilities for the 1 steps of a solution"), ([1.5], "1.5 is not the probability of a step"),
    ([-0.1], "-0.1 is not the probability of a step"), ([math.nan], "nan is not the probability of a step")])
def test_what_is_no_probability_is_refused(told, what):
    with pytest.raises(NumericsError, match=what):
        judged([told], [trace([1])], seed=0)
