"""Contrastive terms: each claim's verdict on made-up numbers, and the whole experiment in miniature."""

import math
from types import SimpleNamespace

import pytest
from experimenting import InThisProcess

from keel.experiments import stages
from keel.experiments.contrastive import NAMES, TERMS, ContrastiveTrialConfig, claims, read, run, table
from keel.experiments.trial import judged


def measured(n: int, **better: float) -> dict:
    """Plain training at 0.6 and 1.0 apart; every term that much better."""
    steps = {"inside": 0.0, "outside": 0.0, "apart": 0.0} | better
    level = {"inside": 0.6, "outside": 0.6, "apart": 1.0}
    return {name: {key: [level[key] + (0.0 if name == "plain" else steps[key])] * n for key in level} for name in TERMS}


@pytest.mark.parametrize("better, verdicts", [
    ({"inside": 0.01, "outside": 0.01, "apart": 0.1}, ["holds"] * 8),
    ({"inside": -0.01, "outside": 0.01, "apart": 0.1}, ["does not hold"] * 4 + ["holds"] * 4),
    ({"inside": 0.01, "outside": -0.01, "apart": -0.1}, ["does not hold"] * 8),
    ({}, ["not settled"] * 8)])
def test_a_gain_counts_inside_and_outside(better, verdicts):
    assert [judged(claim).verdict for claim in claims(measured(7, **better))] == verdicts


def test_the_table_names_every_term():
    text = table(measured(2, inside=0.05))
    assert all(name in text for name in NAMES.values()) and "0.650 [0.650, 0.650]" in text


def test_the_whole_experiment_in_miniature(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "subprocess", SimpleNamespace(Popen=InThisProcess))
    result = run(ContrastiveTrialConfig(out=tmp_path / "e", seeds=1, n_pairs=100, n_test=50))
    assert result.values["measured"].keys() == TERMS.keys() and len(result.values["findings"]) == 8
    assert (tmp_path / "e/plot.svg").exists()
    found = read([tmp_path / "e/seed-0/plain"])
    assert found == {key: result.values["measured"]["plain"][key] for key in ("inside", "outside", "apart")}
    assert all(math.isfinite(x) for term in result.values["measured"].values() for x in term["apart"])
    capsys.readouterr()
