"""Many ways to run a model side by side: rates, paired differences, the trade, and the JSON behind the pictures."""

import math
from statistics import NormalDist

import pytest
import torch
from tolerances import RELATIVE64

from keel.bench.doses import Asked, Way, clamped_rows, dose_json, measured, table, trade_off, trade_table
from keel.data.records import Message, Prompt

NAN = math.nan


def asked(*parts: tuple[str, str, int]) -> list[Asked]:
    found = []
    for name, measure, n in parts:
        found += [Asked(Prompt(f"{name}{i}", (Message("user", f"{name} {i}"),)), name, measure) for i in range(n)]
    return found


def way(name: str, values: list[float], *, against: str = "none", beside=None, **more) -> Way:
    settings = {"curve": name.split(maxsplit=1)[0], "where": "all", "layers": "2", "dose": {}} | more
    beside = {key: torch.tensor(x, dtype=torch.float64) for key, x in (beside or {}).items()}
    return Way(name, against, values=torch.tensor(values, dtype=torch.float64), beside=beside, **settings)


ASKED = asked(("attacks", "harm", 4), ("town", "capability", 2))
WAYS = [way("none", [1, 1, 1, 0, 2.0, 4.0], layers="", beside={"tokens": [1, 2, 3, 4, 5, 6]}),
        way("axis +0.5", [0, 0, 1, 0, 2.0, 2.5], dose={"strength": 0.5}, beside={"tokens": [1, 1, 1, 1, 1, 1]}),
        way("axis +1", [0, NAN, 0, NAN, 1.0, 0.5], dose={"strength": 1.0})]


def test_means_and_paired_differences_by_hand() -> None:
    found = measured(WAYS, ASKED, seed=0)
    none, half, one = (found[way.name] for way in WAYS)
    assert (none["harm"]["mean"], none["harm"]["n"], none["harm"]["n_unread"]) == (0.75, 4, 0)
    assert "difference" not in none["harm"] and none["tokens"]["mean"] == 3.5
    # -1, -1, 0 and 0; 0 and -1.5.
    assert (half["harm"]["mean"], half["harm"]["difference"]["mean"]) == (0.25, -0.5)
    assert half["capability"]["difference"]["mean"] == -0.75 and half["capability"]["difference"]["to"] == "none"
    assert half["harm"]["low"] <= 0.25 <= half["harm"]["high"]
    # What could not be read is in no mean, and its prompt in no difference: -1 and -1.
    assert (one["harm"]["mean"], one["harm"]["n"], one["harm"]["n_unread"]) == (0, 2, 2)
    assert (one["harm"]["difference"]["mean"], one["harm"]["difference"]["n"]) == (-1, 2)
    # All ways to turn the signs of two differences: 4 of which 2 are as far; Holm over the four tests.
    assert half["harm"]["difference"]["p"] == one["harm"]["difference"]["p"] == pytest.approx(0.5, rel=RELATIVE64)
    assert half["harm"]["difference"]["p_holm"] == 1 and "p" not in one["harm"]


def test_differences_are_paired() -> None:
    """Each way is worth one less on every prompt: the difference is exactly that, whatever is drawn."""
    there = asked(("town", "capability", 20))
    values = torch.randn(20, generator=torch.Generator().manual_seed(0)).tolist()
    row = measured([way("none", values), way("axis", [x - 1 for x in values])], there, seed=0)["axis"]["capability"]
    assert row["difference"]["low"] == pytest.approx(-1, rel=RELATIVE64) == row["difference"]["high"]
    assert row["high"] - row["low"] > 0.5 and row["difference"]["p"] < 0.01


def test_a_measure_of_several_sets_is_there_for_all_and_for_each() -> None:
    there = asked(("a", "harm", 3), ("b", "harm", 1), ("c", "harm_plain", 2))
    found = measured([way("none", [1, 1, 1, 0, 0, 1])], there, seed=0)["none"]
    assert {key: row["mean"] for key, row in found.items()} == {
        "harm": 0.75, "harm a": 1, "harm b": 0, "harm_plain": 0.5}
    assert found["harm b"]["low"] is None


def test_a_rate_that_never_varies_has_an_interval_all_the_same() -> None:
    """Ten times 0: Wilson's upper end is z^2 / (n + z^2) with z = 1.96."""
    there = asked(("a", "harm", 10), ("b", "refusal", 10), ("c", "capability", 10))
    found = measured([way("none", [0] * 10 + [1] * 10 + [0] * 10)], there, seed=0)["none"]
    z2 = NormalDist().inv_cdf(0.975) ** 2
    assert (found["harm"]["low"], found["harm"]["high"]) == (0, pytest.approx(z2 / (10 + z2), rel=RELATIVE64))
    assert (found["refusal"]["low"], found["refusal"]["high"]) == (pytest.approx(10 / (10 + z2), rel=RELATIVE64), 1)
    assert (found["capability"]["low"], found["capability"]["high"]) == (0, 0)


def test_the_trade_is_a_share_of_what_there_was() -> None:
    found = measured(WAYS, ASKED, seed=0)
    none, half, _ = rows = trade_off(WAYS, found)
    assert half["harm_relative"] == pytest.approx(-2 / 3, rel=RELATIVE64)
    assert half["capability_relative"] == pytest.approx(-0.25, rel=RELATIVE64)
    assert "harm_relative" not in none and "refusal" not in half
    assert half["harm_difference_low"] == found["axis +0.5"]["harm"]["difference"]["low"]
    lines = trade_table(rows).splitlines()
    assert lines[0].startswith("none       harm 0.750 [") and "(" not in lines[0]
    gap = found["axis +0.5"]["capability"]["difference"]
    assert f"capability 2.250 [2.000, 2.500] (-25.0%, -0.750 [{gap['low']:+.3f}, {gap['high']:+.3f}])" in lines[1]
    # Of an ability below 0 no share can be taken.
    below = [way("none", [0, -1.0]), way("axis", [0, -2.0])]
    there = asked(("a", "harm", 1), ("b", "capability", 1))
    row = trade_off(below, measured(below, there, seed=0))[1]
    assert row["capability_difference"] == -1 and {"capability_relative", "harm_relative"}.isdisjoint(row)
    assert "capability -2.000 (-1.000)" in trade_table([row])


def test_ways_without_any_verdict_have_no_point() -> None:
    ways = [way("none", [NAN, NAN]), way("axis", [NAN, 1.0])]
    found = measured(ways, asked(("a", "harm", 1), ("b", "capability", 1)), seed=0)
    assert found["none"]["harm"]["mean"] is None and "p" not in found["axis"]["harm"]["difference"]
    assert dose_json(ways, found, "raw") == {
        "unit": "raw", "clamped": [], "pareto": [], "curves": [
            {"name": "none", "layers": "2", "where": "all", "points": [{"setting": "none", "metrics": {}}]},
            {"name": "axis", "layers": "2", "where": "all", "points": [{"setting": "axis", "metrics": {
                "capability": {"mean": 1.0, "low": None, "high": None, "n": 1}}}]}]}
    assert [row["setting"] for row in trade_off(ways, found)] == ["none", "axis"]


def test_what_pictures_are_drawn_from() -> None:
    moved = {"2": {"prompt": {"n_tokens": 10.0, "clamped": 0.5, "correction": 1.0},
                   "generation": {"n_tokens": 0.0, "clamped": 0.0, "correction": 0.0}}}
    more = {"2": {"prompt": {"n_tokens": 30.0, "clamped": 0.1, "correction": 3.0},
                  "generation": {"n_tokens": 4.0, "clamped": 0.25, "correction": -2.0}}}
    capped = way("axis p0.25", [0] * 6, dose={"percentile": 75.0}, layers="1, 2", clamped={"a": moved, "b": more})
    ways = [*WAYS, capped]
    told = dose_json(ways, measured(ways, ASKED, seed=0), "norm_fraction")
    assert [(curve["name"], curve["layers"], [point["setting"] for point in curve["points"]]) for curve in
            told["curves"]] == [("none", "", ["none"]), ("axis", "2", ["axis +0.5", "axis +1"]),
                                ("axis", "1, 2", ["axis p0.25"])]
    assert told["curves"][1]["points"][0]["strength"] == 0.5 and told["curves"][2]["points"][0]["percentile"] == 75
    assert [row["setting"] for row in told["pareto"]] == [way.name for way in ways]
    # 5 of 10 moved by 1 and 3 of 30 by 3: 8 of 40, by 14 / 8 on average.
    assert told["clamped"] == [{
        "setting": "axis p0.25", "set": "all", "layer": 2, "prompt": 0.2, "prompt_tokens": 40,
        "prompt_correction": 1.75, "generated": 0.25, "generated_tokens": 4, "generated_correction": -2}]
    rows = clamped_rows(ways)
    assert [row["set"] for row in rows] == ["a", "b", "all"]
    assert (rows[0]["generated"], rows[0]["generated_correction"], rows[1]["prompt"]) == (None, None, 0.1)


def test_every_number_is_in_the_table() -> None:
    found = measured(WAYS, ASKED, seed=0)
    rows = table(found)
    assert [(row["setting"], row["measure"]) for row in rows] == [
        (name, key) for name, measures in found.items() for key in measures]
    (half,) = [row for row in rows if (row["setting"], row["measure"]) == ("axis +0.5", "harm")]
    assert (half["mean"], half["difference"], half["against"]) == (0.25, -0.5, "none")
