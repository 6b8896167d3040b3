"""Means, intervals, tests and verdicts of several models, against sums written out."""

import itertools
import math

import pytest
import torch
from tolerances import FLOAT64, RELATIVE64

from keel.bench.answers import Answer
from keel.bench.intervals import N_RESAMPLES, difference_p, intervals
from keel.bench.side_by_side import Contestant, sample_rows, side_by_side, subsets_of, table
from keel.data.records import Message, Prompt
from keel.rng import stream


def prompt(number: int, words: str | None = None) -> Prompt:
    return Prompt(f"q{number}", (Message("user", words or f"question {number}"),))


def said(texts: list[str]) -> tuple[Answer, ...]:
    return tuple(Answer(f"q{i}", text, True, len(text.split()) + 1) for i, text in enumerate(texts))


def drawn(values: list[float], numbers: list[int], names: list[str]) -> list[float]:
    """The means of all resamples of prompts, one value after the other; a resample without a value has none."""
    generator = stream(5, "bootstrap", *names)
    n, found = max(numbers) + 1, []
    for _ in range(N_RESAMPLES):
        picks = torch.randint(n, (n,), generator=generator).tolist()
        inside = [x for pick in picks for x, number in zip(values, numbers, strict=True)
                  if number == pick and not math.isnan(x)]
        if inside:
            found.append(math.fsum(inside) / len(inside))
    return sorted(found)


def quantile(ordered: list[float], share: float) -> float:
    """Linear between neighbours."""
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


@pytest.mark.parametrize("values", [[1.0, 4.0, -2.0, 0.5, 3.0], [1.0, math.nan, -2.0, math.nan, 3.0]])
def test_intervals_are_those_of_drawn_prompts_whose_responses_stay_together(values):
    """The first and the fourth response are to one prompt; a value that is not there is in no mean."""
    asked = [prompt(0, "same"), prompt(1), prompt(2), prompt(3, "same"), prompt(4)]
    column = torch.tensor(values, dtype=torch.float64)
    found = intervals({"x": column, "other": torch.zeros(5)}, asked, seed=5, names=["n"])["x"]
    ordered = drawn(values, [0, 1, 2, 0, 3], ["n"])
    there = [x for x in values if not math.isnan(x)]
    assert found["n"] == len(there) and found["mean"] == pytest.approx(math.fsum(there) / len(there), rel=RELATIVE64)
    for key, share in (("low", 0.025), ("high", 0.975)):
        torch.testing.assert_close(found[key], quantile(ordered, share), **FLOAT64)


def test_nothing_has_no_interval():
    absent = {"x": torch.full((3,), torch.nan)}
    assert intervals(absent, [prompt(i) for i in range(3)], seed=0, names=[])["x"] == {
        "mean": None, "low": None, "high": None, "n": 0}
    assert intervals({}, [], seed=0, names=[]) == {}


def test_p_is_the_share_of_ways_to_turn_the_signs_of_the_prompts_sums():
    """Five responses to four prompts: sums 1 + 2, -1, 4, 0.5."""
    gaps, asked = [1.0, -1.0, 4.0, 2.0, 0.5], [prompt(0, "same"), prompt(1), prompt(2), prompt(3, "same"), prompt(4)]
    sums = [3.0, -1.0, 4.0, 0.5]
    ways = [abs(sum(s * x for s, x in zip(signs, sums, strict=True))) for signs in itertools.product([1, -1], repeat=4)]
    expected = sum(way >= abs(sum(sums)) for way in ways) / len(ways)
    assert difference_p(torch.tensor(gaps), asked, seed=0, names=[]) == expected


def contestants() -> tuple[list[Contestant], list[Prompt]]:
    asked = [prompt(i) for i in range(6)]
    gains = {"base": [0.0] * 6, "up": [1.0, 1, 1, 1, 1, 1], "odd": [1.0, -1, 1, -1, 1, -1],
             "most": [1.0, 1, 1, 1, 1, -1]}
    outcomes = ("win", "win", "tie", "lose", "neither", "unread")
    verdicts = tuple({"helpful": one, "safe": "tie"} for one in outcomes)
    return [Contestant(name, said([f"word {name} {i}" for i in range(6)]), {"total": torch.tensor(x).double()},
                       () if name == "base" else verdicts) for name, x in gains.items()], asked


def test_p_after_holm_goes_over_the_models():
    """Of 64 ways to turn six signs 2 are as far as all alike, 14 as far as all but one. Holm: 3 x 2/64, 2 x 14/64."""
    who, asked = contestants()
    found = side_by_side(who, asked, [None] * 6, baseline="base", seed=0, most_self_bleu=5)
    told = {name: found[name]["difference"]["total"] for name in ("up", "odd", "most")}
    assert {name: row["p"] for name, row in told.items()} == {"up": 2 / 64, "odd": 1.0, "most": 14 / 64}
    assert {name: row["p_holm"] for name, row in told.items()} == {"up": 6 / 64, "odd": 1.0, "most": 28 / 64}
    assert found["base"]["difference"] is None and "subsets" not in found["up"]


def test_verdicts_on_prompts_of_one_text_are_one_and_holm_goes_over_models_and_questions():
    """Six wins on three prompts, each asked twice: 2 of 8 ways to turn three signs, not 2 of 64 to turn six."""
    asked = [prompt(i, f"question {i % 3}") for i in range(6)]
    base = Contestant("base", said(["a"] * 6), {})
    wins = tuple({"helpful": "win", "safe": "neither"} for _ in range(6))
    who = [base, *(Contestant(name, said(["b"] * 6), {}, wins) for name in ("one", "other"))]
    found = side_by_side(who, asked, ["x"] * 6, baseline="base", seed=0, most_self_bleu=5)
    assert [found[name]["judge"]["helpful"]["p"] for name in ("one", "other")] == [2 / 8, 2 / 8]
    assert found["one"]["judge"]["helpful"]["p_holm"] == 4 * 2 / 8 and found["one"]["judge"]["safe"]["p"] == 1
    assert "p" not in found["one"]["subsets"]["x"]["judge"]["helpful"]


def test_holm_goes_over_models_and_rewards():
    who, asked = contestants()
    who = [Contestant(one.name, one.answers, one.rewards | {"alone": -one.rewards["total"]}, one.verdicts) for one in
           who]
    found = side_by_side(who, asked, [None] * 6, baseline="base", seed=0, most_self_bleu=5, tested=["total", "alone"])
    told = {name: found[name]["difference"] for name in ("up", "most")}
    assert told["up"]["total"]["p_holm"] == 6 * 2 / 64 and told["up"]["alone"]["p_holm"] == 6 * 2 / 64
    assert told["most"]["alone"] == {"p": 14 / 64, "p_holm": 4 * 14 / 64} | {
        key: told["most"]["alone"][key] for key in ("mean", "low", "high", "n")}


def test_what_could_not_be_read_is_in_no_share_and_a_neither_is_no_tie():
    who, asked = contestants()
    told = side_by_side(who, asked, [None] * 6, baseline="base", seed=0, most_self_bleu=5)["up"]["judge"]
    helpful = told["helpful"]
    assert {kind: helpful[kind] for kind in ("win", "tie", "lose", "neither")} == {
        "win": 40, "tie": 20, "lose": 20, "neither": 20}
    assert (helpful["n"], helpful["n_unread"], helpful["n_decided"]) == (5, 1, 3)
    # 2 wins and 1 loss: of 8 ways to turn three signs 6 are 1 or more from 0 in sum, and the others 3: p = 1.
    assert helpful["p"] == 1.0
    assert helpful["win_rate"]["mean"] == pytest.approx((2 + 0.5 + 0.5) / 5 * 100)
    assert told["safe"]["tie"] == 100 and told["safe"]["p"] == 1
    assert helpful["intervals"]["win"]["low"] <= 40 <= helpful["intervals"]["win"]["high"]


def test_a_subset_is_measured_as_if_it_were_alone():
    who, asked = contestants()
    names = ["x", "y", None, "x", "y", None]
    whole = side_by_side(who, asked, names, baseline="base", seed=0, most_self_bleu=5)
    places = [0, 3]
    part = [Contestant(one.name, tuple(one.answers[i] for i in places), {"total": one.rewards["total"][places]},
                       tuple(one.verdicts[i] for i in places) if one.verdicts else ()) for one in who]
    alone = side_by_side(part, [asked[i] for i in places], [None] * 2, baseline="base", seed=0, most_self_bleu=5)
    for name, row in whole.items():
        inside = row["subsets"]["x"]
        assert list(row["subsets"]) == ["x", "y"] and inside["n"] == 2
        assert inside["diversity"] == alone[name]["diversity"]
        assert inside["rewards"]["total"]["mean"] == alone[name]["rewards"]["total"]["mean"]
        assert inside["difference"] is None or "p" not in inside["difference"]["total"]
        if name != "base":
            assert inside["judge"]["helpful"]["win"] == alone[name]["judge"]["helpful"]["win"] == 50


def test_the_order_of_the_models_changes_nothing():
    who, asked = contestants()
    one, other = (side_by_side(given, asked, ["x"] * 6, baseline="base", seed=0, most_self_bleu=5)
                  for given in (who, who[::-1]))
    assert one == other


def test_the_console_and_the_samples_show_every_model():
    who, asked = contestants()
    lines = table(side_by_side(who, asked, [None] * 6, baseline="base", seed=0, most_self_bleu=5)).splitlines()
    assert [line.split()[0] for line in lines] == ["base", "up", "odd", "most"] and "difference" not in lines[0]
    assert "difference +1.000 [+1.000, +1.000], p after Holm 0.094" in lines[1]
    assert "helpful: win 40%, tie 20%, lose 20%, neither 20%" in lines[1]
    rows = sample_rows(who, asked, ["x"] * 6)
    assert len(rows) == 6 and rows[2]["models"]["odd"]["rewards"] == {"total": 1.0} and rows[2]["domain"] == "x"
    assert rows[0]["models"]["base"]["verdicts"] == {} and rows[0]["models"]["up"]["verdicts"]["helpful"] == "win"


def test_one_prompt_gives_a_mean_and_no_interval():
    """However many responses there are to it."""
    column = {"x": torch.tensor([0.5, 1.0]), "half": torch.tensor([0.5, torch.nan])}
    one = intervals(column, [prompt(0, "same"), prompt(1, "same")], seed=0, names=[])
    assert one["x"] == {"mean": 0.75, "low": None, "high": None, "n": 2}
    two = intervals(column, [prompt(0), prompt(1)], seed=0, names=[])
    assert two["x"]["low"] == 0.5 and two["x"]["high"] == 1.0
    assert two["half"] == {"mean": 0.5, "low": None, "high": None, "n": 1}
    who = [Contestant(name, said(["a"]), {"total": torch.tensor([x]).double()}) for name, x in (("a", 0), ("b", 1))]
    lines = table(side_by_side(who, [prompt(0)], [None], baseline="a", seed=0, most_self_bleu=5)).splitlines()
    assert "total 1.000  difference +1.000, p after Holm 1" in lines[1]


def test_identical_answers_that_went_before_a_judge_are_counted():
    asked = [prompt(i) for i in range(4)]
    base = Contestant("base", said(["a", "b", "c", "d"]), {})
    tie = {"helpful": "tie", "safe": "tie"}
    other = Contestant("other", said(["a", "x", "c", "d"]), {}, (tie, tie, None, tie))
    found = side_by_side([base, other], asked, ["x", "y", "x", "y"], baseline="base", seed=0, most_self_bleu=5)["other"]
    told = [row["judge"]["safe"] for row in (found, found["subsets"]["x"], found["subsets"]["y"])]
    assert [(row["n_identical"], row["n"]) for row in told] == [(2, 3), (1, 1), (1, 2)]


def test_subsets_are_told_apart_by_subset_before_domain():
    both = [Prompt(f"q{i}", (Message("user", "why"),), meta={"domain": "d", "subset": i}) for i in range(2)]
    assert subsets_of(both, None) == ["0", "1"] and subsets_of(both, "domain") == ["d", "d"]
