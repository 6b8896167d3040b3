"""Strength: planted labels, each claim's verdict on made-up numbers, and the whole experiment in miniature."""

import json
from types import SimpleNamespace

import pytest
from experimenting import InThisProcess

from keel.data.load import read_pairs
from keel.experiments import stages
from keel.experiments.planted import planted_pairs, write_pairs
from keel.experiments.strength import NAMES, STUDENTS, StrengthTrialConfig, claims, run, table
from keel.experiments.trial import judged
from keel.sandbox.gold import score

ACCURACY = {"baseline": 0.65, "flip": 0.67, "margin": 0.66, "flip_margin": 0.68, "soft_margin": 0.68, "flip_all": 0.64}


def audited(area: float = 0.77, weakest: float = 0.6) -> dict:
    return {"area": area, "searches": [{"value": "weakest 10%", "precision": weakest, "recall": 0.25},
                                       {"value": "mean strength below 0", "precision": 0.45, "recall": 0.6}]}


def verdicts(found: list[dict], accuracy: dict[str, float]) -> list[str]:
    by_seed = {name: [value] * len(found) for name, value in accuracy.items()}
    return [judged(claim).verdict for claim in claims(found, by_seed, noise=0.25)]


def test_exactly_the_planted_share_is_wrong_and_gold_says_so():
    found = planted_pairs(40, 0.25, seed=3)
    wrong = [pair for pair in found if pair.prompt.truth["wrong_label"]]
    assert len(found) == 40 and len(wrong) == 10
    for pair in found:
        gap = score(pair.prompt, pair.chosen).total - score(pair.prompt, pair.rejected).total
        assert gap == pytest.approx(pair.prompt.truth["gold_gap"]) and gap != 0
        assert (gap < 0) == pair.prompt.truth["wrong_label"]
    assert planted_pairs(40, 0.25, seed=3) == found != planted_pairs(40, 0.25, seed=4)
    assert not any(pair.prompt.truth["wrong_label"] for pair in planted_pairs(20, 0.0, seed=3, split="test"))


def test_files_are_written_once(tmp_path):
    write_pairs(tmp_path / "p.jsonl", planted_pairs(6, 0.0, seed=0))
    before = (tmp_path / "p.jsonl").read_bytes()
    write_pairs(tmp_path / "p.jsonl", planted_pairs(6, 0.5, seed=1))
    assert (tmp_path / "p.jsonl").read_bytes() == before
    assert read_pairs(tmp_path / "p.jsonl")[0] == planted_pairs(6, 0.0, seed=0)


def test_the_report_confirmed_and_refuted():
    assert verdicts([audited()] * 5, ACCURACY) == ["holds"] * 6
    upside_down = {name: 1 - value for name, value in ACCURACY.items()}
    assert verdicts([audited(0.5, 0.3)] * 7, upside_down) == ["does not hold"] * 6


@pytest.mark.parametrize("found", [audited(area=0.64), audited(weakest=0.49)])
def test_finding_wrong_labels_means_both(found):
    assert verdicts([found] * 7, ACCURACY)[0] == "does not hold"


def test_the_table_names_every_student():
    text = table([audited()] * 2, {name: [value] * 2 for name, value in ACCURACY.items()})
    assert all(name in text for name in NAMES.values()) and NAMES.keys() == STUDENTS.keys()
    assert "0.770 [0.770, 0.770]" in text and "0.600 [0.600, 0.600]" in text and "0.020 [0.020, 0.020]" in text


def test_the_whole_experiment_in_miniature(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "subprocess", SimpleNamespace(Popen=InThisProcess))
    cfg = StrengthTrialConfig(out=tmp_path / "e", seeds=1, n_pairs=100, n_test=50, voters=2)
    result = run(cfg)
    assert set(result.values["accuracy"]) == set(STUDENTS) and len(result.values["findings"]) == 6
    assert (tmp_path / "e/plot.svg").exists() and "Verdict" in (tmp_path / "e/report.md").read_text()
    flipped = json.loads((tmp_path / "e/seed-0/flip/result.json").read_text())["denoised"]["flip"]
    assert flipped == 10 and result.values["found"][0]["n_wrong"] == 25
    capsys.readouterr()
