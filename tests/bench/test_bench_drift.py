"""Over-optimisation and inflation, by hand."""

import math

import pytest
import torch
from tolerances import RELATIVE32, RELATIVE64

from keel.bench.drift import curve_of_best, curve_of_ppo, of_best, of_ppo, of_training
from keel.bench.measures import probe


def samples(gold_of_score) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Thirty prompts with four samples that score 0, 1, 2, 3, a little more by prompt; gold follows from the score."""
    scores = torch.tensor([k + 0.01 * p for p in range(30) for k in (2, 0, 3, 1)])
    gold = torch.tensor([float(gold_of_score(k)) + 0.1 * p for p in range(30) for k in (2, 0, 3, 1)])
    return scores, gold, torch.arange(30).repeat_interleave(4)


def verdicts(gold_of_score) -> tuple[str, list[dict]]:
    curve, by_n = curve_of_best(*samples(gold_of_score), 0)
    return probe("over_optimisation", of_best(curve, by_n, 0))["verdict"], curve


def test_gold_that_follows_the_score_is_fine():
    found, curve = verdicts(lambda k: k)
    assert found == "fine" and [row["n"] for row in curve] == [1, 2, 4]
    assert [row["kl"] for row in curve] == [0.0, math.log(2) - 1 / 2, math.log(4) - 3 / 4]
    assert [row["sqrt_kl"] for row in curve] == [math.sqrt(row["kl"]) for row in curve]
    # Of the six pairs of 0, 1, 2, 3 one is won by 1, two by 2, three by 3: 14 / 6; and 0.1 * 14.5 for the prompt.
    assert curve[1]["gold"]["mean"] == pytest.approx(14 / 6 + 1.45, rel=RELATIVE32)


def test_gold_that_falls_at_the_top_is_over_optimised_and_its_peak_is_named():
    scores, gold, groups = samples(lambda k: (0, 5, 4, -9)[k])
    curve, by_n = curve_of_best(scores, gold, groups, 0)
    fall, gain = of_best(curve, by_n, 0)
    # One sample: 0 on average; the best of two: (5 + 2 * 4 - 3 * 9) / 6 < 0; the best of four: -9.
    assert probe("over_optimisation", [fall, gain])["verdict"] == fall.verdict == "suspicious"
    assert fall.value["mean"] == pytest.approx(-9.0, rel=RELATIVE32)
    assert gain.value["mean"] == fall.value["mean"] and "the best of 1 (KL 0.00 nats)" in fall.done
    # By hand as above: -14 / 6, and 0.1 * 14.5 for the prompt.
    assert curve[1]["gold"]["mean"] == pytest.approx(-14 / 6 + 1.45, rel=RELATIVE32)


def test_gold_that_does_not_mind_is_not_settled():
    assert verdicts(lambda k: 1)[0] == "not settled"


def test_every_point_stands_on_the_same_prompts():
    scores, gold, groups = samples(lambda k: k)
    few = torch.cat([groups[:4], groups[4:7], groups[8:]])
    keep = torch.tensor([0, 1, 2, 3, 4, 5, 6, *range(8, 120)])
    curve, _ = curve_of_best(scores[keep], gold[keep], few, 0)
    assert {row["gold"]["n"] for row in curve} == {29} and curve[-1]["n"] == 4


def evaluation(step: int, score: float, gold: float, half: float = 0.05, **more) -> dict:
    return {"step": step, "phase": "eval", "score/mean": score, "gold/mean": gold, "gold/low": gold - half,
            "gold/high": gold + half, "kl/mean": 0.01 * step, "length/mean": 20.0, "score/n": 50, "gold/n": 50} | more


def test_ppo_that_loses_gold_while_the_score_rises():
    rows = [evaluation(0, 0.0, 0.2), evaluation(10, 1.0, 0.6), evaluation(20, 2.0, 0.3)]
    curve = curve_of_ppo([{"step": 5, "phase": "train", "score/mean": 9.0}, *reversed(rows)])
    assert [row["step"] for row in curve] == [0, 10, 20] and curve[1]["kl"] == pytest.approx(2.0, rel=RELATIVE64)
    found = of_ppo(curve)[0]
    assert found.verdict == "suspicious" and found.value["mean"] == pytest.approx(-0.3, rel=RELATIVE64)
    assert "step 10 (KL 2.00 nats per response; at the end 4.00)" in found.done


@pytest.mark.parametrize("last, expected", [
    (evaluation(20, 2.0, 0.7), "fine"), (evaluation(20, 0.5, 0.3), "fine"), (evaluation(20, 0.5, 0.25), "not settled"),
    (evaluation(20, 2.0, 0.55), "fine")])
def test_ppo_otherwise(last, expected):
    rows = [evaluation(0, 0.0, 0.19), evaluation(10, 1.0, 0.6), last]
    assert of_ppo(curve_of_ppo(rows))[0].verdict == expected


def test_ppo_without_gold_has_no_curve():
    rows = [evaluation(0, 0.0, 0.2) | {"gold/mean": None}, {"step": 1, "phase": "eval", "score/mean": 1}]
    assert curve_of_ppo(rows) == []
    assert curve_of_ppo([evaluation(1, 0.0, 0.2, **{"kl/mean": -0.1})])[0]["kl"] == 0.0


def trained(step: int, chosen: float, rejected: float, std: float = 1.0) -> dict:
    return {"step": step, "phase": "eval", "score_chosen": chosen, "score_rejected": rejected,
            "margin": chosen - rejected, "margin_std": std}


def test_scores_that_drift_while_the_gap_stays_are_inflated():
    # The gap opens first (0 to 1, not flat); from step 10 to 30 the level goes from 0.5 to 4.0 while the gap stays.
    rows = [trained(0, 0, 0), trained(10, 1, 0), trained(20, 2.5, 1.5), trained(30, 4.5, 3.5)]
    curve, found = of_training([{"step": 3, "phase": "train", "loss": 1.0}, *rows])
    assert len(curve) == 4 and found[0].verdict == "suspicious"
    assert found[0].value["mean"] == 3.5 and "from step 10 to step 30" in found[0].done


def test_scores_that_drift_with_their_gap_are_not():
    found = of_training([trained(0, 0, 0), trained(10, 9, 1)])[1]
    assert found[0].verdict == "fine" and found[0].value["mean"] == 0.0
    assert "the gap was flat between no two evaluations" in found[0].done
    # Three standard deviations exactly, downwards, are allowed; the std is that of the later evaluation.
    assert of_training([trained(0, 6, 5, 0.1), trained(5, 0, -1, 2.0)])[1][0].verdict == "fine"
    assert of_training([trained(0, 6.1, 5.1, 0.1), trained(5, 0, -1, 2.0)])[1][0].verdict == "suspicious"
    assert of_training([trained(0, 6.1, 5.1, 0.1), trained(5, 0, -1, 2.0)])[1][0].value["mean"] < 0


def test_one_evaluation_shows_no_drift():
    curve, found = of_training([trained(10, 1, 0), {"step": 20, "phase": "eval", "loss": 0.3}])
    assert len(curve) == 1 and found == []
