"""What responses are worth, which are kept, how often each is drawn, and how well the filter did."""

import itertools
import json
import math
from collections import Counter

import pytest
import tolerances as tol
import torch
from scipy.stats import chisquare, spearmanr

from keel.data.records import Graded, Message, Prompt
from keel.data.render import Row
from keel.errors import DataError, NumericsError
from keel.train.offline import BY_ADVANTAGE, BY_REWARD, SelectionConfig
from keel.train.worth import (
    Worth,
    drawn,
    filter_quality,
    kept_of,
    ranked_units,
    require_positive,
    step_credit,
    write_worth,
)


def doubles(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def worth(rewards, values=None) -> Worth:
    return Worth(doubles(*rewards), None if values is None else doubles(*values))


def graded(i: int, text: str = "why", **meta) -> Graded:
    return Graded(Prompt(f"r{i}", (Message("user", text),), meta=meta), "yes", {})


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_an_advantage_is_the_reward_less_the_value_and_zero_is_not_positive():
    found = worth([0.8, 0.3, 0.5], [0.3, 0.3, 0.6])
    torch.testing.assert_close(found.advantages, doubles(0.5, 0.0, -0.1), **tol.FLOAT64)
    assert kept_of(found, SelectionConfig(), "a_lol") == [0]
    assert worth([1.0]).advantages is None


def test_each_way_to_keep_is_there_for_every_variant():
    found = worth([0.9, 0.1, 0.6, 0.6], [0.5, 0.5, 0.5, 0.7])
    for variant in (*BY_ADVANTAGE, *BY_REWARD, "nll"):
        assert kept_of(found, SelectionConfig(keep="all"), variant) == [0, 1, 2, 3]
        assert kept_of(found, SelectionConfig(keep="positive"), variant) == [0, 2]
        # The first of equals; never none.
        assert kept_of(found, SelectionConfig(keep="top", top_fraction=0.5), variant) == [0, 2]
        assert kept_of(found, SelectionConfig(keep="top", top_fraction=0.01), variant) == [0]
        usual = [0, 2] if variant in BY_ADVANTAGE else [0, 1, 2, 3]
        assert kept_of(found, SelectionConfig(), variant) == usual


def test_fewer_than_one_positive_advantage_in_a_hundred_is_refused():
    values = [0.5] * 300
    for n_positive in (0, 2):
        with pytest.raises(NumericsError, match=f"only {n_positive} of 300 advantages are positive") as caught:
            require_positive(worth([0.9] * n_positive + [0.1] * (300 - n_positive), values), SelectionConfig(), "a_lol")
    assert "rewards have mean 0.1053, values 0.5" in str(caught.value)
    enough = worth([0.9] * 3 + [0.1] * 297, values)
    require_positive(enough, SelectionConfig(), "a_lol")
    assert kept_of(enough, SelectionConfig(), "a_lol") == [0, 1, 2]
    none = worth([0.5], [0.5])
    with pytest.raises(NumericsError, match="only 0 of 1 advantages are positive"):
        require_positive(none, SelectionConfig(keep="all"), "a_lol")
    require_positive(none, SelectionConfig(keep="top", top_fraction=0.5), "a_lol")
    require_positive(worth([0.5]), SelectionConfig(), "wbc")


def test_negative_rewards_weigh_nothing_and_draw_nothing():
    bad = worth([0.5, -0.25, 0.1])
    for variant in BY_REWARD:
        with pytest.raises(DataError, match=r"1 responses have a negative reward, down to -0\.25"):
            kept_of(bad, SelectionConfig(keep="all", draw="uniform"), variant)
    with pytest.raises(DataError, match=r"1 responses have a negative reward, down to -0\.25"):
        kept_of(bad, SelectionConfig(draw="priority"), "nll")
    assert kept_of(bad, SelectionConfig(), "nll") == [0, 1, 2]
    assert kept_of(worth([0.5, -0.25, 0.1], [0.0] * 3), SelectionConfig(), "a_lol") == [0, 2]


# --- what a step sees ------------------------------------------------------------------------------------------------


def test_draws_follow_their_weights():
    """40 000 draws against p; and of 40 seeds hardly any is improbable by itself."""
    weights = [0.0, 1.0, 0.0, 3.0, 0.5, 0.0, 5.5, 0.0]
    there = [i for i, w in enumerate(weights) if w]

    def p_value(seed: int, steps: int) -> float:
        batches = itertools.islice(drawn(weights, 8, 100, seed, first_step=1), steps)
        counts = Counter(itertools.chain.from_iterable(batches))
        assert sorted(counts) == there
        return chisquare([counts[i] for i in there], [100 * steps * weights[i] / 10 for i in there]).pvalue

    assert p_value(0, 400) > 0.01
    found = sorted(p_value(seed, 20) for seed in range(1, 41))
    assert found[0] > 1e-4 and 0.2 < found[20] < 0.8


def test_draws_are_a_function_of_seed_and_step_and_not_of_the_scale():
    weights = [0.5, 0.0, 1.5, 2.0]

    def taken(seed, first, n, by=1.0):
        return list(itertools.islice(drawn([by * w for w in weights], 4, 8, seed, first_step=first), n))

    whole = taken(3, 1, 10)
    assert taken(3, 1, 10) == whole and taken(3, 7, 4) == whole[6:] and taken(3, 1, 10, by=4.0) == whole
    assert taken(4, 1, 10) != whole and len({tuple(step) for step in whole}) == 10
    shuffled = list(itertools.islice(drawn(None, 4, 2, 3, first_step=1), 4))
    assert sorted(shuffled[0] + shuffled[1]) == sorted(shuffled[2] + shuffled[3]) == [0, 1, 2, 3]
    assert list(itertools.islice(drawn(None, 4, 2, 3, first_step=3), 2)) == shuffled[2:]


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_what_has_a_weight(monkeypatch, u):
    """0 must not draw a first one without weight, nor the largest number below 1 a last one."""
    monkeypatch.setattr(torch, "rand", lambda size, **how: torch.full((size,), u, dtype=torch.float64))
    weights = [0.0, 0.1, 0.0, 0.2, 0.3, 0.0]
    assert next(drawn(weights, 6, 2, 0, first_step=1)) == ([1, 1] if u == 0 else [4, 4])


@pytest.mark.parametrize("weights", [[0.0, 0.0], [], [math.nan, 1.0]])
def test_without_a_positive_weight_there_is_nothing_to_draw(weights):
    with pytest.raises(NumericsError, match="no response has a positive weight to be drawn by"):
        next(drawn(weights, len(weights), 4, 0, first_step=1))


def test_one_positive_weight_is_drawn_every_time():
    assert next(drawn([0.0, 1e-300, 0.0], 3, 5, 0, first_step=1)) == [1] * 5


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


def test_pro_takes_the_responses_to_one_prompt_the_best_first():
    told = [graded(0, "a"), graded(1, "b"), graded(2, "a"), graded(3, "c"), graded(4, "c"), graded(5, "a")]
    assert ranked_units(told, doubles(0.1, 0.9, 0.7, 0.3, 0.3, 0.4)) == [[2, 5, 0], [3, 4]]
    with pytest.raises(DataError, match="none of 2 prompts has two responses to rank"):
        ranked_units(told[:2], doubles(0.1, 0.9))


# --- what is told of it ----------------------------------------------------------------------------------------------


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
