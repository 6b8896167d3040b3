"""Which of several solutions to answer with, and what each way of choosing is worth."""

import itertools
import random
import statistics

import pytest
import tolerances as tol

from keel.data.answers import AnswerConfig
from keel.data.records import Prompt
from keel.errors import ConfigError, DataError, NumericsError
from keel.rollout.picks import Marker, Solution, curve, pick, scores_of_steps, steps_up_to, worths


def solution(answer, score, right, outcome=None, ended=True, n_tokens=10):
    return Solution(f"so {answer}", ended, n_tokens, ["a"], [0.5], "", score, outcome, answer, right)


FOUR = [solution("5", 0.9, 0.0, 0.1), solution("7", 0.5, 1.0, 0.3), solution("7", 0.3, 1.0, 0.2),
        solution(None, 0.99, 0.0, 0.4, ended=False)]
"""The process model is sure of a wrong answer; the fourth was cut before it came to one."""


def test_by_hand_each_way_picks_another_one():
    chosen = {method: pick(FOUR, method, "number") for method in ("process", "outcome", "majority", "weighted")}
    assert chosen["process"] is FOUR[0]  # 0.99 was cut
    assert chosen["outcome"] is FOUR[3]
    assert chosen["majority"] is FOUR[1]  # two say 7; of these the better one
    assert chosen["weighted"] is FOUR[0]  # 0.9 against 0.5 + 0.3


def test_a_cut_solution_is_picked_where_none_ended_and_one_without_a_step_is_the_last():
    cut = [solution(None, 0.1, 0.0, ended=False), solution(None, None, 0.0, ended=False)]
    assert pick(cut[::-1], "process", "number") is cut[0]
    assert pick([solution("5", None, 0.0), *cut], "process", "number").answer == "5"
    assert pick(cut[::-1], "majority", "number") is cut[1]  # nobody votes: the first


def test_of_a_tie_the_first():
    tied = [solution("5", 0.2, 0.0), solution("7", 0.2, 1.0)]
    for method in ("process", "majority", "weighted"):
        assert pick(tied, method, "number") is tied[0] and pick(tied[::-1], method, "number") is tied[1]


def test_answers_that_are_equal_vote_together_whatever_their_spelling():
    spelled = [solution("8", 0.9, 0.0), solution("7.0 apples", 0.1, 1.0), solution("7", 0.2, 1.0)]
    assert pick(spelled, "majority", "number") is spelled[2]
    assert pick(spelled, "majority", "exact") is spelled[0]


def accuracies(found, n_subsets=10**6, seed=0):
    told = worths(found, seed=seed, compare="number", n_subsets=n_subsets)
    return {key: float(values.mean()) for key, values in told.items()}


def test_by_hand_what_picks_of_one_two_and_four_are_worth():
    """Of the six pairs (0 1)(0 2)(0 3) go to the wrong 0 by score; (1 2)(1 3)(2 3) to a right one. By outcome 3 wins
    its pairs and is wrong, 1 wins (0 1)(1 2), 2 wins (0 2). All pairs but (0 3) hold a right one. In a vote of two the
    first of a tie wins: (0 1)(0 2) are wrong, and so is (0 3), where 0 votes alone."""
    found = accuracies({"q": FOUR}, n_subsets=6)
    methods = ("random", "process", "outcome", "majority", "weighted", "oracle")
    assert {method: found[method, 1] for method in methods} == dict.fromkeys(methods, 0.5)
    second = dict.fromkeys(methods, 3 / 6) | {"oracle": 5 / 6}
    assert {method: found[method, 2] for method in methods} == pytest.approx(second, rel=tol.RELATIVE64)
    assert {method: found[method, 4] for method in methods} == dict.fromkeys(methods, 0.0) | {
        "random": 0.5, "majority": 1.0, "oracle": 1.0}


def test_where_nobody_votes_a_random_one_is_taken():
    """A judge may find something in a solution that was cut."""
    cut = [solution(None, 0.5, right, ended=False) for right in (1.0, 0.0, 0.0, 0.0)]
    found = accuracies({"q": cut})
    assert found["majority", 4] == found["weighted", 2] == 0.25


def test_one_of_each_is_never_drawn():
    found = accuracies({"q": FOUR}, n_subsets=1)
    assert found["majority", 1] == found["weighted", 1] == 0.5 and found["majority", 4] == 1.0


def drawn(n_prompts, n, seed=0):
    """Solutions at random, ties and cuts among them."""
    draw = random.Random(seed)
    return {f"q{i}": [solution(answer, draw.choice([None, 0.1, 0.5, 0.5, 0.9]), float(answer == "7"),
                               draw.choice([0.0, 1.0, 2.0]), ended=answer is not None, n_tokens=draw.randint(1, 9))
                      for _ in range(n) for answer in [draw.choice(["7", "5", "3", None])]] for i in range(n_prompts)}


def test_the_curve_is_the_mean_pick_of_every_choice():
    """All choices of n gone through, in every order: a score that is equal then falls to each of its owners alike."""
    found = drawn(3, 5)
    told = accuracies(found)
    for n, method in itertools.product((1, 2, 4, 5), ("process", "outcome")):
        known = statistics.fmean(pick(choice, method, "number").right for own in found.values()
                                 for choice in itertools.permutations(own, n))
        assert told[method, n] == pytest.approx(known, rel=tol.RELATIVE64)
    for n in (1, 2, 4, 5):
        votes = statistics.fmean(
            pick(choice, "majority", "number").right if any(one.answer for one in choice)
            else statistics.fmean(one.right for one in choice)
            for own in found.values() for choice in itertools.combinations(own, n))
        best = statistics.fmean(max(one.right for one in choice) for own in found.values()
                                for choice in itertools.combinations(own, n))
        assert told["majority", n] == pytest.approx(votes, rel=tol.RELATIVE64)
        assert told["oracle", n] == pytest.approx(best, rel=tol.RELATIVE64)


def test_drawn_choices_come_close_and_depend_on_the_seed_and_the_prompt_alone():
    """10 of the 70 choices of 4, 20 prompts: a mean over 200 draws of 0 to 1."""
    found = drawn(20, 8)
    exact, told = accuracies(found), accuracies(found, n_subsets=10)
    assert told == accuracies(found, n_subsets=10)
    other = accuracies(found, n_subsets=10, seed=1)
    assert {key for key in told if told[key] != other[key]} == {("majority", 2), ("weighted", 2), ("majority", 4),
                                                               ("weighted", 4)}
    for key, value in told.items():
        assert value == exact[key] or abs(value - exact[key]) < tol.STANDARD_ERRORS * (0.25 / 200) ** 0.5
    alike = worths(dict.fromkeys(("q0", "q1"), FOUR * 2), seed=0, compare="number", n_subsets=10)
    assert alike["majority", 4][0] != alike["majority", 4][1]  # choices of their own
    some = {name: found[name] for name in ("q7", "q3")}
    whole = worths(found, seed=0, compare="number", n_subsets=10)
    for key, values in worths(some, seed=0, compare="number", n_subsets=10).items():
        assert values.tolist() == [whole[key][7], whole[key][3]]


def test_the_curve_has_intervals_costs_and_the_gain_over_one_random_solution():
    found = drawn(8, 2)
    rows = {(row["method"], row["n"]): row for row in curve(found, seed=0, compare="number", n_subsets=50)}
    told, tokens = accuracies(found), statistics.fmean(one.n_tokens for own in found.values() for one in own)
    assert rows["random", 2]["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 8}
    assert rows.keys() == told.keys()
    for (method, n), row in rows.items():
        assert row["accuracy"]["mean"] == told[method, n] and row["accuracy"]["n"] == 8
        assert row["gain"]["mean"] == pytest.approx(told[method, n] - told["random", 1], rel=tol.RELATIVE64)
        assert row["tokens"] == pytest.approx(n * tokens, rel=tol.RELATIVE64)


def test_without_an_outcome_model_nobody_picks_by_it():
    told = accuracies({"q": [solution("5", 0.2, 0.0), solution("7", 0.1, 1.0)]})
    assert {method for method, _ in told} == {"random", "process", "majority", "weighted", "oracle"}


def test_counts_double_up_to_all():
    assert steps_up_to(1) == [1] and steps_up_to(8) == [1, 2, 4, 8] and steps_up_to(12) == [1, 2, 4, 8, 12]


def test_scores_of_solutions_by_hand():
    told = scores_of_steps([[0.5, 0.25], [], [0.5]], "product")
    assert told[0] == 0.125 and told[1] != told[1] and told[2] == 0.5


# --- who knows -------------------------------------------------------------------------------------------------------

KNOWN, UNKNOWN = Prompt("a", (), "2 + 5", meta={"answer": "7"}), Prompt("b", (), "2 + 5")


def test_the_column_of_answers_knows_and_a_cut_solution_has_no_answer():
    marker = Marker(AnswerConfig(), None, [KNOWN])
    assert marker.knows and marker.answer("it is 7", True) == "7" and marker.answer("it is 7", False) is None
    assert [marker.right(KNOWN, "it is 7", ended) for ended in (True, False)] == [1.0, 0.0]


def test_nobody_knows():
    marker = Marker(AnswerConfig(), None, [UNKNOWN])
    assert not marker.knows and marker.right(UNKNOWN, "it is 7", True) is None
    assert marker.answer("it is 7", True) == "7"


def test_a_judge_knows_whatever_the_column_says():
    marker = Marker(AnswerConfig(), lambda prompt, text, ended: 0.25, [KNOWN])
    assert marker.knows and marker.right(KNOWN, "it is 7", True) == 0.25


def test_refusals():
    with pytest.raises(DataError, match="no right answer: the column 'answer' is absent or empty"):
        Marker(AnswerConfig(), None, [KNOWN, UNKNOWN])
    with pytest.raises(NumericsError, match=r"record a: the judge of solutions gave 1\.5"):
        Marker(AnswerConfig(), lambda prompt, text, ended: 1.5, [KNOWN]).right(KNOWN, "7", True)


def test_a_missing_library_is_missed_before_anything_is_sampled(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    with pytest.raises(ConfigError, match="needs the library math-verify"):
        Marker(AnswerConfig(compare="math"), None, [KNOWN])
