"""What an offline run learned from, in plain words, from what its result says; and what is not there is not told."""

from pathlib import Path

import pytest
from report_runs import HOSTILE, environment, mean, ppo, result, write

from keel.report.folder import read
from keel.report.glossary import GROUPS, describe
from keel.report.learned import Learned, learned
from keel.report.page import build

DATA = {"rewards": {"nice": mean(0.393, 0.03, 280), "brief": mean(0.5, 0.06, 280)}, "total": mean(0.643, 0.05, 280),
        "kept": 0.77, "filter": {"bad": 0.25, "dropped": 0.23, "precision": 0.75, "recall": 0.5},
        "advantage": {"p5": -0.44, "p25": 0.043, "p50": 0.21, "p75": 0.785, "p95": 0.83, "mean": 0.213,
                      "negative": 0.232, "length_spearman": -0.715}}
VALUE = {"kind": "learned", "n_held_out": 5, "chosen": 1, "mean_mse": 0.109, "noise_mse": 0.104,
         "gain": [0.005, -0.004, 0.014], "mean": 0.41,
         "epochs": [{"number": 0, "held_out_mse": 0.109, "spearman": 0.0},
                    {"number": 1, "held_out_mse": 0.1045, "spearman": 0.44}]}


def offline(folder: Path, **changes: object) -> Path:
    told = {"n_kept": 215, "n_responses": 280, "data": DATA, "value": VALUE} | changes
    return write(folder, environment=environment("offline_pg"), config="", metrics=[{"step": 1, "loss": 1.0}],
                 result=result("offline_pg", **told))


def panel(folder: Path, **changes: object) -> Learned:
    (found,) = learned([read(offline(folder, **changes))])
    return found


def test_shares_quality_of_the_filter_length_and_calibration_are_sentences(tmp_path: Path) -> None:
    assert panel(tmp_path / "run").says == (
        "It learned from 215 of 280 responses (77%). 23% of the advantages are negative.",
        "25% of the responses are known to be bad. Of what was left out, 75% is bad. Of what is bad, 50% was left out.",
        "Advantages fall with the length of the response (rank correlation \u22120.71): what is learned is in part a "
        "length.",
        "On 5 held-out prompts the value's squared error is 0.104; that of one number for all prompts is 0.109, and "
        "0.104 no value of the prompt could avoid; gain 0.005 [\u22120.004, 0.014]. Rank correlation with the rewards: "
        "0.44.")


def test_rewards_one_by_one_with_their_total_and_percentiles_of_the_advantages(tmp_path: Path) -> None:
    found = panel(tmp_path / "run")
    assert [row[0] for row in found.rewards.rows] == ["nice", "brief", "total"]
    assert found.rewards.rows[0] == ("nice", "0.393 [0.363, 0.423]", "280")
    assert found.advantages.rows == (("advantage", "\u22120.440", "0.043", "0.210", "0.785", "0.830", "0.213"),)
    alone = panel(tmp_path / "alone", data={"rewards": {"nice": mean(0.4)}, "total": mean(0.4)})
    assert [row[0] for row in alone.rewards.rows] == ["nice"] and alone.advantages.rows == ()


def test_a_constant_value_and_a_weak_correlation_with_length(tmp_path: Path) -> None:
    weak = DATA | {"advantage": DATA["advantage"] | {"length_spearman": 0.29}}
    said = panel(tmp_path / "run", value={"kind": "constant", "mean": 0.42}, data=weak).says
    assert said[-1] == "The value is 0.42 for every prompt: the mean reward of the reference."
    assert not any("length" in text for text in said)
    rising = DATA | {"advantage": DATA["advantage"] | {"length_spearman": 0.3}}
    assert any("Advantages rise with" in text for text in panel(tmp_path / "up", data=rising).says)


@pytest.mark.parametrize("broken", [
    {"n_kept": None, "n_responses": 0, "value": None},
    {"n_kept": "x", "value": {"kind": "learned", "epochs": 3, "gain": "no"}},
    {"data": {"rewards": [1], "advantage": 3, "filter": {"bad": "x"}, "total": None}, "value": [], "n_kept": {}},
    {"data": {"rewards": {"a": 1, "b": None}, "filter": {"bad": 0.5, "precision": None, "recall": None}}},
])
def test_what_is_damaged_or_missing_is_left_out(tmp_path: Path, broken: dict) -> None:
    found = panel(tmp_path / "run", **broken)
    assert all(text.endswith(".") and "None" not in text for text in found.says)
    assert "What it learned from" in build_page(tmp_path)


def build_page(tmp_path: Path) -> str:
    return build([tmp_path / "run"], tmp_path / "page.html").read_text()


def test_only_offline_runs_have_the_section_and_several_are_named(tmp_path: Path) -> None:
    runs = [read(path) for path in (offline(tmp_path / "a"), ppo(tmp_path / "ppo"), offline(tmp_path / "b"))]
    assert [one.name for one in learned(runs)] == ["a", "b"]
    assert learned([read(offline(tmp_path / "c", data=None))]) == []
    assert learned([runs[1]]) == []


def test_names_from_the_run_are_text_on_the_page(tmp_path: Path) -> None:
    offline(tmp_path / "run", data={"rewards": {HOSTILE: mean(0.5), "other": mean(0.1)}, "total": mean(0.6)})
    page = build_page(tmp_path)
    assert "<img" not in page and "&lt;img src=x" in page


def test_every_metric_of_an_offline_run_has_words_and_a_heading() -> None:
    page = (Path(__file__).parents[2] / "docs/methods/offline_pg.md").read_text()
    names = ["loss", "credit", "ratio", "ratio/below", "ratio/above", "shift", "kl", "rank", "sft", "logprob", "length",
             "grad_norm", "lr", "score/mean", "score/n", "length/mean", "length/n", "ended/mean", "ended/n",
             "shift/mean", "shift/n", "nll/mean", "nll/n"]
    for name in (*names, "reward/nice/mean", "reward/nice/n"):
        assert describe(name).meaning and describe(name).group in GROUPS, name
        assert f"`{name.replace('nice', 'NAME')}`" in page
    assert describe("reward/nice/mean").meaning == "The reward nice on held-out prompts."
    assert describe("reward/mean").meaning.startswith("Score after scaling")
