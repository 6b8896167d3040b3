"""Which responses are kept, how often each is drawn, and what pairs say of themselves."""

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from train.worths import doubles, graded, pair, worth

from keel.data.records import Graded, Prompt
from keel.errors import DataError, NumericsError
from keel.train.choice import chosen, drawn, kept_of, lower_first, ranked, weighty
from keel.train.offline import BY_ADVANTAGE, BY_REWARD, OfflineLossConfig, SelectionConfig

# --- what is kept ----------------------------------------------------------------------------------------------------


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
