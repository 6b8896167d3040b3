"""`keel axis project`: what it writes of conversations, with and without something acting."""

import csv
import json
from dataclasses import replace

import pytest
import tiny
import torch

from keel.errors import ModelError
from keel.persona.axis import AssistantAxis, DefaultStats
from keel.recipes import axis_project
from keel.runs import Run, Stopped

TALKS = [
    {"id": "a", "domain": "tea", "variant": "plain", "messages": [
        {"role": "user", "content": "the cat sat"}, {"role": "assistant", "content": "yes the dog ran ."},
        {"role": "user", "content": "why ?"}, {"role": "assistant", "content": "red blue"}]},
    {"id": "b", "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "no"}]},
]


@pytest.fixture
def asked(tmp_path):
    """Settings, with the files they name."""
    tiny.llama(tmp_path / "m")
    vectors = torch.linspace(-1, 2, 32).reshape(2, 16)
    AssistantAxis(vectors, role_mean=torch.ones(2, 16), meta={
        "default_stats": DefaultStats(1, 0.0, 1.0, -2.0, 2.0, 9).words}).save(tmp_path / "axis.safetensors")
    tiny.write_rows(tmp_path / "talks.jsonl", TALKS)

    def settings(out, **more):
        return axis_project.AxisProjectConfig.checked(
            {"out": tmp_path / out, "axis": {"path": str(tmp_path / "axis.safetensors")} | more.pop("axis", {}),
             "model": str(tmp_path / "m"), "data": str(tmp_path / "talks.jsonl")} | more)

    return settings


def table(folder, name):
    with (folder / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_trajectories_tokens_and_tables_say_the_same(asked):
    cfg = asked("out", layers=[0], texts=1)
    result = axis_project.run(cfg)
    lines = [json.loads(text) for text in (cfg.out / "trajectories.jsonl").read_text().splitlines()]
    assert [(one["id"], one["group"], one["label"], one["layer"]) for one in lines] == [
        ("a", "tea", "plain", 1), ("b", "", "", 1)]
    turns = lines[0]["turns"]
    assert [(turn["turn"], turn["role"], turn["n_tokens"]) for turn in turns] == [
        (1, "user", 3), (1, "assistant", 5), (2, "user", 2), (2, "assistant", 2)]
    heat = json.loads((cfg.out / "heat.json").read_text())
    assert [(row["id"], row["turn"], row["role"]) for row in heat] == [
        ("a", 1, "user"), ("a", 1, "assistant"), ("a", 2, "user"), ("a", 2, "assistant")]
    assert [token["text"] for token in heat[1]["tokens"]] == ["yes", "the", "dog", "ran", "."]
    means = [sum(token["projection"] for token in row["tokens"]) / len(row["tokens"]) for row in heat]
    assert means == pytest.approx([turn["projection"] for turn in turns])
    cells = table(cfg.out, "turns")
    assert [cell["layer"] for cell in cells] == ["1"] * 4 + ["0"] * 4 + ["1"] * 2 + ["0"] * 2
    assert [float(cell["raw"]) for cell in cells[:4]] == [turn["raw"] for turn in turns]
    assert [row["text"] for row in table(cfg.out, "tokens")][:3] == ["the", "cat", "sat"]
    drift = json.loads((cfg.out / "drift.json").read_text())
    assert drift == {"layer": 1, "centred": False, "default_range": {"low": -2.0, "high": 2.0}, "domains": [],
                     "prediction": {}}
    said = {(row["role"], row["label"]): row for row in result.values["projection"]}
    assert said["assistant", "plain"]["mean"] == pytest.approx((turns[1]["raw"] + turns[3]["raw"]) / 2)
    assert result.values["n"] == 2 and result.values["handled"]["in_windows"] == 0 and result.values["caps"] == {}


def test_centred_moves_everything_by_the_mean_of_the_roles(asked):
    plain, centred = asked("plain"), asked("centred", centred=True)
    axis_project.run(plain)
    axis_project.run(centred)
    centre = AssistantAxis.load(plain.axis.path).centre(1)
    one, other = (json.loads((cfg.out / "trajectories.jsonl").read_text().splitlines()[0])["turns"]
                  for cfg in (plain, centred))
    assert [turn["projection"] - centre for turn in one] == pytest.approx([turn["projection"] for turn in other])
    first, second = (json.loads((cfg.out / "heat.json").read_text())[0]["tokens"][0]["projection"]
                     for cfg in (plain, centred))
    assert first - centre == pytest.approx(second)
    assert json.loads((centred.out / "drift.json").read_text())["default_range"]["high"] == pytest.approx(2 - centre)


def test_a_cap_is_shown_beside(asked):
    cfg = asked("out", axis={"lower": 1.0}, texts=1)
    result = axis_project.run(cfg)
    lines = [json.loads(text) for text in (cfg.out / "trajectories.jsonl").read_text().splitlines()]
    assert [one["label"] for one in lines] == ["plain", "", "plain, now capped", "capped"]
    assert all(turn["projection"] > 0.999 for turn in lines[2]["turns"])
    assert any(turn["projection"] < 1 for turn in lines[0]["turns"])
    assert result.values["caps"]["1"]["generation"]["n_tokens"] > 0
    assert {row["label"] for row in json.loads((cfg.out / "heat.json").read_text())} == {"plain", "plain, now capped"}


def test_the_block_that_is_drawn_is_the_monitors(asked):
    cfg = asked("out", axis={"monitor": 0})
    assert axis_project.run(cfg).values["layer"] == 0
    assert json.loads((cfg.out / "drift.json").read_text())["default_range"] is None  # known of block 1 alone
    with pytest.raises(ModelError, match="the axis has no block 5"):
        axis_project.run(asked("other", layers=[5]))


def test_asked_to_stop_it_keeps_nothing(asked, monkeypatch):
    monkeypatch.setattr(Run, "stop_requested", lambda self: True)
    cfg = asked("out")
    with pytest.raises(Stopped, match=r"stopped after \d+ conversations were read along the axis; none is kept"):
        axis_project.run(cfg)
    assert not (cfg.out / "trajectories.jsonl").exists()


def test_an_axis_of_another_model_is_noted(asked):
    cfg = asked("out")
    axis = AssistantAxis.load(cfg.axis.path)
    told = {"model": "other", "template_hash": "x", "model_identity": "{}"}
    replace(axis, meta={**axis.meta, **told}).save(cfg.axis.path)
    (note,) = axis_project.run(cfg).values["notes"]
    assert note.startswith("the axis was extracted from other with other weights and another chat template than this")
