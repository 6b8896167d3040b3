"""What responses are worth, which are kept, how often each is drawn, and how well the filter did."""

import itertools
import json
import math
from collections import Counter

import pytest
import tolerances as tol
import torch
from scipy.stats import chisquare, spearmanr

from keel.data.kinds import OF_PAIR
from keel.data.records import Graded, Message, Prompt
from keel.data.render import Row
from keel.errors import DataError, NumericsError
from keel.train.offline import BY_ADVANTAGE, BY_REWARD, OfflineLossConfig, SelectionConfig
from keel.train.worth import (
    Worth,
    chosen,
    drawn,
    filter_quality,
    kept_of,
    lower_first,
    ranked,
    require_positive,
    step_credit,
    weighty,
    write_worth,
)


def doubles(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def worth(rewards, values=None) -> Worth:
    return Worth(doubles(*rewards), None if values is None else doubles(*values))


def graded(i: int, text: str = "why", says: str = "yes", **meta) -> Graded:
    return Graded(Prompt(f"r{i}", (Message("user", text),), meta=meta), says, {})


def pair(name: str, own: dict | None = None, **grades) -> list[Graded]:
    """Both responses of a pair; `grades` hold two numbers a name."""
    meta = {OF_PAIR: own} if own else {}
    return [Graded(Prompt(f"{name}/{side}", (), name, meta), side, {key: x[i] for key, x in grades.items()}, name)
            for i, side in enumerate(("chosen", "rejected"))]


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_an_advantage_is_the_reward_less_the_value_and_zero_is_not_positive():
    found = worth([0.8, 0.3, 0.5], [0.3, 0.3, 0.6])
    torch.testing.assert_close(found.advantages, doubles(0.5, 0.0, -0.1), **tol.FLOAT64)
    assert kept_of(found, SelectionConfig(), "a_lol") == [0]
    assert worth([1.0]).advantages is None


def test_each_way_to_keep_is_there_for_every_variant():
    found = worth([0.9, 0.1, 0.6, 0.6], [0.5, 0.5, 0.5, 0.7])
    for variant in (*BY_ADVANTAGE, *BY_REWARD, "nll"):
        assert kept_of(found, SelectionConfig(keep="all", draw="uniform"), variant) == [0, 1, 2, 3]
        assert kept_of(found, SelectionConfig(keep="positive"), variant) == [0, 2]
        # The first of equals; never none.
        assert kept_of(found, SelectionConfig(keep="top", top_fraction=0.5), variant) == [0, 2]
        assert kept_of(found, SelectionConfig(keep="top", top_fraction=0.01), variant) == [0]
        usual = [0, 2] if variant in BY_ADVANTAGE else [0, 1, 2, 3]
        assert kept_of(worth([0.9, 0.1, 0.6, 0.6], found.values.tolist() if variant in BY_ADVANTAGE else None),
                       SelectionConfig(), variant) == usual


def test_what_is_never_drawn_is_not_kept():
    """By priority a response without a positive weight never comes; drawn uniformly it does."""
    gains, plain = worth([0.9, 0.1, 0.6, 0.8], [0.5, 0.5, 0.6, 0.7]), worth([0.9, 0.0, 0.6, 0.0])
    for draw, found, variant, expected in (
            ("priority", gains, "a_lol", [0, 3]), ("uniform", gains, "a_lol", [0, 1, 2, 3]),
            ("priority", plain, "wbc", [0, 2]), ("uniform", plain, "wbc", [0, 1, 2, 3]),
            ("priority", plain, "nll", [0, 2])):
        selection = SelectionConfig(keep="all", draw=draw)
        assert kept_of(found, selection, variant) == expected
        choice = chosen([graded(i) for i in range(4)], found, selection, OfflineLossConfig(variant=variant))
        assert choice.kept == expected and choice.units == [[i] for i in expected]
        assert choice.weights == (None if draw == "uniform" else [found.priorities[i] for i in expected])
    top = SelectionConfig(keep="top", top_fraction=0.75, draw="priority")
    assert kept_of(gains, top, "a_lol") == [0, 3]


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


def test_a_total_that_cannot_be_divided_draws_the_last_one_with_a_weight():
    """Half of the smallest number above 0 rounds up to it, so that the draw lies at the end of the sum."""
    assert next(drawn([0.0, 5e-324, 0.0], 3, 20, 0, first_step=1)) == [1] * 20


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


def test_pro_takes_the_responses_to_one_prompt_the_best_first_and_counts_the_rest():
    told = [graded(i, prompt, str(i)) for i, prompt in enumerate("abaccad")]
    choice = ranked(told, doubles(0.1, 0.9, 0.7, 0.3, 0.3, 0.4, 0.5))
    assert choice.units == [[2, 5, 0], [3, 4]] and choice.kept == [0, 2, 3, 4, 5] and choice.weights is None
    assert choice.skipped == {"prompts_with_one_response": 2, "equal_responses": 0} and choice.notes == ()
    with pytest.raises(DataError, match="none of 2 prompts has two responses to rank"):
        ranked(told[:2], doubles(0.1, 0.9))
    loss = OfflineLossConfig(variant="pro")
    assert chosen(told, worth([0.1, 0.9, 0.7, 0.3, 0.3, 0.4, 0.5]), SelectionConfig(), loss) == choice


def test_pro_takes_equal_responses_to_one_prompt_for_one_with_the_highest_of_their_rewards():
    """A text against itself teaches nothing; the same text to another prompt is another response."""
    told = [graded(0, "a", "yes"), graded(1, "a", "no"), graded(2, "a", "yes"), graded(3, "b", "yes"),
            graded(4, "b", "yes"), graded(5, "a", "no")]
    choice = ranked(told, doubles(0.1, 0.5, 0.7, 0.3, 0.4, 0.5))
    assert choice.units == [[2, 1]]
    assert choice.skipped == {"prompts_with_one_response": 1, "equal_responses": 3}


def test_many_responses_to_a_prompt_are_worth_a_note():
    few, many = ([graded(i, "a", str(i)) for i in range(n)] for n in (8, 11))
    assert ranked(few, doubles(*range(8))).notes == ()
    note, = ranked([*many, graded(11, "b", "x"), graded(12, "b", "y")], doubles(*range(13))).notes
    assert "1 prompts have more than 8 responses, up to 11" in note and "up to 100 times loss.sft_coef" in note


def test_a_difference_that_outweighs_most_advantages_is_worth_a_note():
    """Positive weights 0.1 and 0.3, mean 0.2; one of two that are kept is below 0.21."""
    told, found = [graded(i) for i in range(3)], worth([0.6, 0.8, 0.1], [0.5] * 3)

    def notes(found=found, draw="priority", **loss):
        return chosen(told, found, SelectionConfig(keep="all", draw=draw), OfflineLossConfig(**loss)).notes

    note, = notes(variant="a_lol_kl", kl_coef=0.21)
    assert "loss.kl_coef = 0.21 is more than 0.2, the mean of the positive weights" in note
    assert "difference the 50% of the responses that weigh less than it are pushed down without bound" in note
    assert "the 67% of the responses" in notes(draw="uniform", variant="a_lol_kl", kl_coef=0.21)[0]
    assert notes(variant="a_lol_kl", kl_coef=0.19) == notes(variant="a_lol_kl", kl_coef=9.0, kl_term="k3") == ()
    assert notes(variant="a_lol_kl", kl_coef=0.9, weight="one") == notes(variant="a_lol") == ()
    assert "more than 1, the mean" in notes(variant="a_lol_kl", kl_coef=1.1, weight="one")[0]
    # Rewards of 0.6, 0.8 and 0.1 have the mean 0.5; the mean of a batch is not known before.
    assert "more than 0.5, the mean" in notes(worth([0.6, 0.8, 0.1]), variant="r_lol_kl", kl_coef=0.51)[0]
    assert notes(worth([0.6, 0.8, 0.1]), variant="r_lol_kl", kl_coef=0.49) == ()
    assert notes(worth([0.6, 0.8, 0.1]), "uniform", variant="a_lol_kl", kl_coef=9.0) == ()


# --- what pairs say of themselves ------------------------------------------------------------------------------------


def test_pairs_of_weight_zero_are_left_out_and_counted():
    told = [*pair("a"), *pair("b", {"weight": 0.0}), graded(0), *pair("c", {"weight": 0.0, "label_prob": 0.5})]
    assert weighty(told, "pairs.jsonl") == ([*told[:2], told[4]], 2)
    assert weighty(told[:2], "pairs.jsonl") == (told[:2], 0) and weighty([], "pairs.jsonl") == ([], 0)
    with pytest.raises(DataError, match="all of 1 pairs have weight 0, so no response is left"):
        weighty(told[2:4], "pairs.jsonl")


@pytest.mark.parametrize("own", [{"weight": 0.5}, {"label_prob": 0.8}, {"margin": -1.0}])
def test_a_weight_a_soft_label_or_a_margin_that_nothing_heeds_is_refused(own):
    (name, x), = own.items()
    with pytest.raises(DataError, match="1 pairs have a weight, a soft label or a margin that nothing here") as caught:
        weighty([*pair("a"), *pair("b", own), *pair("c", {"weight": 0.0})], "pairs.jsonl")
    assert f"{name} = {x:g}" in str(caught.value) and "pairs.jsonl, pair b" in str(caught.value)


def test_how_often_the_best_response_has_the_lower_stored_reward():
    """By name, over records that hold it for all their responses; equal is not lower."""
    told = [*pair("a", n=(0.2, 0.9), m=(1.0, 0.0)), *pair("b", n=(0.9, 0.2)), *pair("c", n=(0.5, 0.5)),
            *pair("d", n=(0.1, 0.2)), *pair("e"), graded(0)]
    assert lower_first(told) == {"m": 0.0, "n": 0.5}
    assert lower_first([*pair("e"), graded(0)]) == {}
    three = [Graded(Prompt(f"k/{i}", (), "k"), str(i), {"n": x}, "k") for i, x in enumerate((0.5, 0.1, 0.6))]
    assert lower_first(three) == {"n": 1.0}


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
