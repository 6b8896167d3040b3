"""What responses are worth, what is told of it, and how well the filter did."""

import json

import pytest
import tolerances as tol
import torch
from scipy.stats import spearmanr
from train.worths import doubles, graded, worth

from keel.data.records import Graded, Prompt
from keel.data.render import Row
from keel.errors import DataError, NumericsError
from keel.train.choice import kept_of
from keel.train.offline import BY_ADVANTAGE, BY_REWARD, SelectionConfig
from keel.train.worth import filter_quality, require_positive, step_credit, write_worth


def test_an_advantage_is_the_reward_less_the_value_and_zero_is_not_positive():
    found = worth([0.8, 0.3, 0.5], [0.3, 0.3, 0.6])
    torch.testing.assert_close(found.advantages, doubles(0.5, 0.0, -0.1), **tol.FLOAT64)
    assert kept_of(found, SelectionConfig(), "a_lol") == [0]
    assert worth([1.0]).advantages is None


def test_fewer_than_one_positive_advantage_in_a_hundred_is_refused():
    values = [0.5] * 300
    for n_positive in (0, 2):
        with pytest.raises(NumericsError, match=f"only {n_positive} of 300 advantages are positive") as caught:
            require_positive(worth([0.9] * n_positive + [0.1] * (300 - n_positive), values), [*range(n_positive)])
    assert "rewards have mean 0.1053, values 0.5" in str(caught.value)
    enough = worth([0.9] * 3 + [0.1] * 297, values)
    require_positive(enough, [0, 1, 2])
    assert kept_of(enough, SelectionConfig(), "a_lol") == [0, 1, 2]
    with pytest.raises(NumericsError, match="only 0 of 1 advantages are positive"):
        require_positive(worth([0.5], [0.5]), [0])
    require_positive(worth([0.5]), [0])


def test_a_selection_in_which_nothing_weighs_anything_is_refused():
    """The highest reward has no advantage; and rewards that are all 0."""
    found, top = worth([0.9, 0.3], [0.95, 0.1]), {"keep": "top", "top_fraction": 0.5}
    for draw in ("priority", "uniform"):
        kept = kept_of(found, SelectionConfig(**top, draw=draw), "a_lol")
        assert kept == ([0] if draw == "uniform" else [])
        with pytest.raises(NumericsError, match="none of the 1 responses with a positive advantage is kept"):
            require_positive(found, kept)
    nothing = worth([0.0, 0.0])
    with pytest.raises(NumericsError, match="all of 2 rewards are 0, so no response is ever drawn"):
        require_positive(nothing, kept_of(nothing, SelectionConfig(), "wbc"))
    require_positive(nothing, kept_of(nothing, SelectionConfig(draw="uniform"), "wbc"))


def test_what_a_response_of_a_step_weighs():
    found = worth([0.9, 0.1, 0.6], [0.5, 0.5, 0.55])
    for variant in BY_ADVANTAGE:
        assert step_credit(found, variant, [0, 2, 1]) == pytest.approx({0: 0.4, 2: 0.05, 1: 0.0}, rel=tol.RELATIVE64)
        # The mean of the step counts a response as often as it was drawn: (0.9 + 0.9 + 0.6 + 0.1) / 4 = 0.625.
        assert step_credit(worth([0.9, 0.1, 0.6]), variant, [0, 0, 2, 1]) == pytest.approx(
            {0: 0.275, 2: 0.0, 1: 0.0}, rel=tol.RELATIVE64)
    for variant in (*BY_REWARD, "pro"):
        assert step_credit(found, variant, [0, 2]) == {0: 0.9, 2: 0.6}
    assert step_credit(found, "nll", [0, 2]) == {0: 1.0, 2: 1.0}


def test_precision_and_recall_of_the_filter_by_hand():
    """Left out: 3 of 5, of which 2 are bad; bad: 4 of 5, of which 2 were left out."""
    assert filter_quality([True, True, False, True, True], frozenset({3, 4})) == {
        "bad": 0.8, "dropped": 0.6, "precision": pytest.approx(2 / 3, rel=tol.RELATIVE64), "recall": 0.5}
    assert filter_quality([False, False], frozenset({0, 1})) == {
        "bad": 0.0, "dropped": 0.0, "precision": None, "recall": None}


def written(tmp_path, found, kept, told=None, known_bad=None):
    told = told or [graded(i) for i in range(len(found.rewards))]
    rows = [Row([1] * (3 + i), 2, one.id) for i, one in enumerate(told)]
    said = write_worth(tmp_path / "advantages.jsonl", told, rows, {"nice": found.rewards}, found, kept,
                       known_bad=known_bad, seed=0)
    return said, [json.loads(line) for line in (tmp_path / "advantages.jsonl").read_text().splitlines()]


def test_every_response_has_a_row_and_the_percentiles_are_of_all_of_them(tmp_path):
    rewards, values = [0.1, 0.9, 0.4, 0.6, 0.5], [0.5, 0.5, 0.5, 0.55, 0.25]
    said, lines = written(tmp_path, worth(rewards, [0.5, 0.5, 0.4, 0.55, 0.25]), [1, 3, 4])
    assert said["advantage"]["negative"] == pytest.approx(0.2, rel=tol.RELATIVE64), "0 is not negative"
    said, lines = written(tmp_path, worth(rewards, values), [1, 3, 4])
    gains = [-0.4, 0.4, -0.1, 0.05, 0.25]
    assert [line["advantage"] for line in lines] == pytest.approx(gains, rel=tol.RELATIVE64)
    assert [line["kept"] for line in lines] == [False, True, False, True, True]
    assert [line["n_tokens"] for line in lines] == [1, 2, 3, 4, 5] and lines[1]["rewards"] == {"nice": 0.9}
    assert lines[2] | {"id": "r2", "record": "r2", "total": 0.4, "value": 0.5} == lines[2]
    # Of five in order every quarter is one of them; 5% lies a fifth of the way from the first to the second.
    assert said["advantage"] == pytest.approx({
        "p5": -0.34, "p25": -0.1, "p50": 0.05, "p75": 0.25, "p95": 0.37, "mean": 0.04, "negative": 0.4,
        "length_spearman": spearmanr(gains, [1, 2, 3, 4, 5]).statistic}, rel=tol.RELATIVE32)
    assert said["kept"] == 0.6 and said["total"]["n"] == 5 and "filter" not in said
    assert said["rewards"]["nice"]["mean"] == pytest.approx(0.5, rel=tol.RELATIVE32)
    said, lines = written(tmp_path, worth(rewards), [0, 1, 2, 3, 4])
    assert "advantage" not in said and lines[0]["value"] is lines[0]["advantage"] is None


def test_the_interval_of_a_mean_is_over_prompts_not_over_responses(tmp_path):
    """Ten equal responses to each of four prompts know no more than four responses."""
    once = written(tmp_path, worth([0.1, 0.9, 0.4, 0.6]), [0], [graded(i, f"p{i}") for i in range(4)])[0]["total"]
    told = [graded(10 * i + k, f"p{i}") for i in range(4) for k in range(10)]
    again = written(tmp_path, worth([x for x in (0.1, 0.9, 0.4, 0.6) for _ in range(10)]), [0], told)[0]["total"]
    alone = [graded(k, f"p{k}") for k in range(40)]
    wrong = written(tmp_path, worth([x for x in (0.1, 0.9, 0.4, 0.6) for _ in range(10)]), [0], alone)[0]["total"]
    assert again == pytest.approx(once | {"n": 40}, rel=tol.RELATIVE32)
    assert wrong["high"] - wrong["low"] < (again["high"] - again["low"]) / 2


def test_who_is_bad_is_read_from_meta(tmp_path):
    """Of a response, or of the two of a pair."""
    found = worth([0.1, 0.9, 0.4, 0.6], [0.5] * 4)
    told = [graded(0, noise=True), graded(1, noise=False), graded(2, noise=False), graded(3, noise=True)]
    assert written(tmp_path, found, [1, 3], told, "noise")[0]["filter"] == {
        "bad": 0.5, "dropped": 0.5, "precision": 0.5, "recall": 0.5}
    both = {"noise": {"chosen": False, "rejected": True}}
    pair = [Graded(Prompt(f"p/{side}", (), "a", both), "yes", {}, "p") for side in ("chosen", "rejected")]
    assert written(tmp_path, worth([0.9, 0.1], [0.5] * 2), [0], pair, "noise")[0]["filter"]["precision"] == 1
    for wrong in ("yes", None, 1):
        with pytest.raises(DataError, match=f"meta has {wrong!r} under 'noise', not true or false"):
            written(tmp_path, worth([0.9], [0.5]), [0], [graded(0, noise=wrong)], "noise")
