"""Transforms of pairs by their strength."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keel.data.records import Message, PreferencePair, Prompt, Strength
from keel.errors import ConfigError, DataError
from keel.train.denoise import DenoiseConfig, denoised, flipped


def pair(mean: float | None, i: int = 0, **more) -> PreferencePair:
    votes = None if mean is None else Strength(mean, 0.5, (mean, mean + 1), (0.0, 1.0))
    return PreferencePair(Prompt(f"p{i}", (Message("user", "?"),), meta={"domain": "d"}), "good", "bad",
                          strength=votes, **more)


def pairs(*means: float) -> list[PreferencePair]:
    return [pair(mean, i) for i, mean in enumerate(means)]


def test_without_changes_the_pairs_are_themselves():
    given_pairs = [*pairs(1.0, -1.0), pair(None, 9)]
    found, counts = denoised(given_pairs, DenoiseConfig())
    assert found == given_pairs and set(counts.values()) == {0}


def test_a_flip_swaps_sides_scores_and_signs_and_is_recorded():
    found, counts = denoised([pair(-2.0, margin=0.5, label_prob=0.9), *pairs(*range(1, 10))], DenoiseConfig(flip=0.1))
    flipped = found[0]
    assert (flipped.chosen, flipped.rejected, flipped.margin, flipped.label_prob) == ("bad", "good", -0.5, 0.9)
    assert flipped.strength == Strength(2.0, 0.5, (0.0, 1.0), (-2.0, -1.0))
    assert flipped.prompt.meta == {"domain": "d", "denoised": ["flip"]}
    assert counts == {"flip": 1, "soft label": 0, "margin": 0, "drop": 0} and "denoised" not in found[1].prompt.meta


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 1))
def test_flipping_twice_is_the_identity(mean, margin, p):
    before = pair(mean, margin=margin, label_prob=p)
    assert flipped(flipped(before)) == before != flipped(before)
    assert flipped(flipped(pair(None))) == pair(None)


@pytest.mark.parametrize("judge, turned", [(1, 0), (0, 1), (-1, -1)])
def test_a_judge_who_saw_the_sides_the_other_way_round(judge, turned):
    one = pair(1.0)
    record = replace(one.prompt, meta={"judge_label": judge})
    assert flipped(replace(one, prompt=record)).prompt.meta == {"judge_label": turned}


def test_a_share_never_flips_what_the_ensemble_agrees_with():
    found, counts = denoised(pairs(-1.0, 0.0, 0.5, 1.0), DenoiseConfig(flip=0.5))
    assert counts["flip"] == 1 and [p.chosen for p in found] == ["bad", "good", "good", "good"]


@pytest.mark.parametrize("where, more, expected", [
    ("negative", {}, [0.8, 1.0, 1.0, 1.0]), ("all", {}, [0.8] * 4),
    ("range", {"smooth_range": (0.25, 0.75)}, [1.0, 0.8, 0.8, 1.0])])
def test_soft_labels_go_where_they_are_told(where, more, expected):
    found, counts = denoised(pairs(-1.0, 0.2, 0.5, 1.0), DenoiseConfig(smooth=0.2, smooth_where=where, **more))
    assert [p.label_prob for p in found] == pytest.approx(expected)
    assert counts["soft label"] == sum(p < 1 for p in expected)


def test_a_doubted_label_that_the_file_doubts_too():
    # 0.9 right and kept with 0.8, or 0.1 wrong and turned with 0.2.
    found, _ = denoised([pair(-1.0, label_prob=0.9)], DenoiseConfig(smooth=0.2))
    assert found[0].label_prob == pytest.approx(0.9 * 0.8 + 0.1 * 0.2)
    found, _ = denoised([pair(0.0, label_prob=0.9), pair(800.0, 1, label_prob=0.9)], DenoiseConfig(soften=1.0))
    assert [p.label_prob for p in found] == pytest.approx([0.5, 0.9])


def test_a_flipped_pair_is_not_softened_and_its_margin_follows():
    cfg = DenoiseConfig(flip=0.25, smooth=0.2, margin=2.0)
    found, _ = denoised(pairs(-3.0, -1.0, 0.5, 1.0), cfg)
    assert [p.label_prob for p in found] == [1.0, 0.8, 1.0, 1.0]
    assert [p.margin for p in found] == [6.0, -2.0, 1.0, 2.0]
    assert [p.prompt.meta["denoised"] for p in found] == [
        ["flip", "margin"], ["soft label", "margin"], ["margin"], ["margin"]]


def test_margins_are_clipped_and_labels_softened_by_strength():
    found, _ = denoised(pairs(-3.0, 1.0), DenoiseConfig(margin=1.0, margin_clip=2.0))
    assert [p.margin for p in found] == [-2.0, 1.0]
    found, _ = denoised(pairs(-800.0, -1.0, 2.0, 800.0), DenoiseConfig(soften=2.0))
    assert [p.label_prob for p in found] == pytest.approx([0.0, 1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(-1)), 1.0])


def test_drops_by_share_and_by_threshold_count_before_any_change():
    found, counts = denoised(pairs(3.0, -2.0, 1.0, -4.0, 2.0), DenoiseConfig(flip_below=-3.0, drop=(0.2, 0.6)))
    assert [p.id for p in found] == ["p0", "p3", "p4"] and counts["drop"] == 2 and counts["flip"] == 1
    # What is dropped was not flipped as far as anybody can see.
    assert denoised(pairs(-1.0, 1.0), DenoiseConfig(flip_below=0.0, drop_below=0.0))[1] == {
        "flip": 0, "soft label": 0, "margin": 0, "drop": 1}
    found, _ = denoised(pairs(3.0, -2.0, 1.0), DenoiseConfig(drop_below=1.5))
    assert [p.id for p in found] == ["p0"]


def test_pairs_without_strength_are_named():
    with pytest.raises(DataError, match=r"f\.jsonl: 1 of 2 pairs have no strength \(first: p7\)"):
        denoised([pair(1.0), pair(None, 7)], DenoiseConfig(margin=1.0), where="f.jsonl")
    assert denoised([pair(None)], DenoiseConfig(smooth=0.1, smooth_where="all"))[0][0].label_prob == 0.9
    with pytest.raises(DataError, match=r"denoise\.drop leaves none of 2 pairs"):
        denoised(pairs(1.0, 2.0), DenoiseConfig(drop=(0.0, 1.0)))


@pytest.mark.parametrize("settings, says", [
    ({"flip": 0.1, "flip_below": -1.0},
     "flip and flip_below exclude each other: both say what happens to the same pairs"),
    ({"smooth": 0.1, "soften": 1.0}, "smooth and soften exclude each other"),
    ({"drop": [0.0, 0.2], "drop_below": 0.0}, "drop and drop_below exclude each other"),
    ({"smooth": 0.1, "smooth_where": "range"}, "range needs one, the others none"),
    ({"smooth": 0.1, "smooth_range": [0.0, 0.5]}, "range needs one, the others none"),
    ({"smooth_where": "range", "smooth_range": [0.0, 0.5]}, "smooth_range acts on nothing without smooth"),
    ({"smooth_where": "all"}, "smooth_where='all' acts on nothing without smooth"),
    ({"margin_clip": 1.0}, "margin_clip acts on nothing without margin"),
    ({"drop": [0.5, 0.2]}, "drop runs from 0.5 to 0.2: it holds no pair"),
])
def test_contradictions_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        DenoiseConfig.checked(settings)
