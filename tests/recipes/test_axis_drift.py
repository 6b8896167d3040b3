"""`keel axis drift`: curves, slopes, prediction and themes of a few conversations, and where they are written."""

import csv
import json
from dataclasses import replace

import pytest
import tiny
import torch

from keel.errors import ModelError
from keel.persona.axis import AssistantAxis
from keel.recipes import axis_drift
from keel.runs import Run, Stopped


def talk(i):
    """Three turns; what the assistant says is what it was asked for."""
    said = [tiny.WORDS[(i * 5 + turn * 3) % 12] for turn in range(3)]
    turns = [{"role": "user", "content": f"please {tiny.WORDS[i % 11]} {word}"} for word in said]
    replies = [{"role": "assistant", "content": f"{word} {word}"} for word in said]
    both = [turn for pair in zip(turns, replies, strict=True) for turn in pair]
    return {"id": f"c{i}", "domain": "tea" if i % 2 else "talk", "messages": both}


@pytest.fixture
def asked(tmp_path):
    tiny.llama(tmp_path / "m")
    AssistantAxis(torch.linspace(-1, 2, 32).reshape(2, 16), role_mean=torch.ones(2, 16)).save(
        tmp_path / "axis.safetensors")
    AssistantAxis(torch.ones(2, 16)).save(tmp_path / "bare.safetensors")
    tiny.write_rows(tmp_path / "talks.jsonl", [talk(i) for i in range(12)])

    def settings(out, *, axis="axis.safetensors", acts=None, foretell=None, **more):
        small = {"folds": 3, "n_shuffles": 1, "n_themes": 3, "alphas": [0.1, 10.0]} | (foretell or {})
        return axis_drift.AxisDriftConfig.checked(
            {"out": tmp_path / out, "axis": {"path": str(tmp_path / axis)} | (acts or {}), "fewest": 3,
             "model": str(tmp_path / "m"), "data": str(tmp_path / "talks.jsonl"), "n_draws": 100,
             "foretell": small} | more)

    return settings


def columns(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_everything_that_is_written(asked, capsys):
    cfg = asked("out")
    result = axis_drift.run(cfg)
    drift = json.loads((cfg.out / "drift.json").read_text())
    assert [(row["name"], row["n"]) for row in drift["domains"]] == [("talk", 6), ("tea", 6)]
    assert all(row["low"] <= row["slope"] <= row["high"] and len(row["positions"]) == 3 for row in drift["domains"])
    assert drift["centred"] and drift["layer"] == 1
    assert {*drift["prediction"]} == {"projection", "change"}
    assert [*drift["prediction"]["projection"]] == ["out of fold", "shuffled messages", "domain alone",
                                                    "response before", "training rows"]
    assert sum(theme["n"] for theme in drift["themes"]) == 36 and all(theme["examples"] for theme in drift["themes"])
    assert drift["differences"] == []
    assert len((cfg.out / "trajectories.jsonl").read_text().splitlines()) == 12
    shown = columns(cfg.out / "tables" / "slopes.csv")
    assert [float(row["slope"]) for row in shown] == [row["slope"] for row in drift["domains"]]
    positions = columns(cfg.out / "tables" / "positions.csv")
    assert [(row["name"], row["turn"], row["n"]) for row in positions] == [
        (name, str(turn), "6") for name in ("talk", "tea") for turn in (1, 2, 3)]
    scores = columns(cfg.out / "tables" / "prediction.csv")
    assert len(scores) == 10 and len(columns(cfg.out / "tables" / "themes.csv")) == len(drift["themes"])
    assert result.values["prediction"] == drift["prediction"] and result.values["notes"] == []
    assert "tea: slope" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_numbers(asked):
    first, second = asked("one"), asked("two")
    axis_drift.run(first)
    axis_drift.run(second)
    assert (first.out / "drift.json").read_bytes() == (second.out / "drift.json").read_bytes()
    other = asked("three", seed=1)
    axis_drift.run(other)
    assert (first.out / "drift.json").read_bytes() != (other.out / "drift.json").read_bytes()


def test_what_acts_is_a_condition_of_its_own(asked):
    cfg = asked("out", acts={"lower": 0.5}, centred=False, foretell={"embed": "words", "n_words": 16})
    axis_drift.run(cfg)
    drift = json.loads((cfg.out / "drift.json").read_text())
    assert [(row["name"], row["label"]) for row in drift["domains"]] == [
        ("talk", ""), ("tea", ""), ("talk", "capped"), ("tea", "capped")]
    gaps = drift["differences"]
    assert [(row["first"], row["second"], row["n"]) for row in gaps] == [("", "capped", 6), ("", "capped", 6)]
    means = {(row["name"], row["label"]): sum(at["mean"] for at in row["positions"]) / 3 for row in drift["domains"]}
    for row in gaps:  # every conversation has three turns: the mean difference is the difference of the means
        assert row["mean"] == pytest.approx(means[row["domain"], "capped"] - means[row["domain"], ""])
    # What acts has no part in the prediction, which is of the conversations as they are.
    assert drift["prediction"]["projection"]["out of fold"]["n"] == 36


def test_too_few_conversations_are_said_to_be_too_few(asked, capsys):
    cfg = asked("out", fewest=7, data={"path": str(asked("x").data.path), "limit": 2})
    notes = axis_drift.run(cfg).values["notes"]
    assert any("no turn is reached by fewest=7 conversations" in note for note in notes)
    assert any("what the user's messages foretell is unknown" in note for note in notes)
    assert "talk: no slope from 1 conversations" in capsys.readouterr().out


def test_prediction_can_be_left_out(asked):
    cfg = asked("out").model_copy(update={"foretell": None})
    axis_drift.run(cfg)
    drift = json.loads((cfg.out / "drift.json").read_text())
    assert drift["prediction"] == {} and drift["themes"] == []


def test_an_axis_without_the_mean_of_its_roles_is_not_centred_on(asked):
    with pytest.raises(ModelError, match="without the mean of its roles"):
        axis_drift.run(asked("out", axis="bare.safetensors"))
    axis_drift.run(asked("raw", axis="bare.safetensors", centred=False))


def test_asked_to_stop_it_keeps_nothing(asked, monkeypatch):
    monkeypatch.setattr(Run, "stop_requested", lambda self: True)
    with pytest.raises(Stopped, match=r"stopped after \d+ conversations were read for drift; none is kept"):
        axis_drift.run(asked("out"))


def test_an_axis_of_another_model_is_noted(asked):
    cfg = asked("out", foretell={"embed": "words"})
    axis = AssistantAxis.load(cfg.axis.path)
    told = {"model": "other", "template_hash": "x", "model_identity": "{}"}
    replace(axis, meta={**axis.meta, **told}).save(cfg.axis.path)
    (note,) = axis_drift.run(cfg).values["notes"]
    assert note.startswith("the axis was extracted from other with other weights and another chat template than this")
