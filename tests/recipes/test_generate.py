import json

import pytest
import tiny
from recipes.running import logged, reward

from keel.models.load import ModelConfig
from keel.recipes import generate
from keel.rollout.sample import SamplingConfig
from keel.runs import Run, Stopped
from keel.train.inputs import DataConfig


def test_samples_with_scores_and_intervals(tmp_path):
    made = reward(tmp_path)
    cfg = generate.GenerateConfig(
        out=tmp_path / "out",
        model=ModelConfig(path=str(tmp_path / "base")),
        limit=7,
        gold="tiny:count_yes",
        reward_model=ModelConfig(path=str(made)),
        sampling=SamplingConfig(max_new_tokens=6),
        prompts=DataConfig(path=str(tiny.prompts(tmp_path / "q.jsonl")), max_length=64),
    )
    result = generate.run(cfg)
    rows = logged(tmp_path / "out", "samples.jsonl", None)
    assert len(rows) == 7 and all({"id", "prompt", "response", "score", "gold", "ended"} <= row.keys() for row in rows)
    assert rows[0]["gold"] == tiny.count_yes(None, rows[0]["response"], rows[0]["ended"])
    assert result.values["gold"]["low"] <= result.values["gold"]["mean"] <= result.values["gold"]["high"]
    generate.run(cfg.model_copy(update={"out": tmp_path / "again"}))
    assert (tmp_path / "out/samples.jsonl").read_bytes() == (tmp_path / "again/samples.jsonl").read_bytes()


def test_asked_to_stop_it_keeps_nothing_and_says_so(tmp_path, monkeypatch):
    made = reward(tmp_path)
    monkeypatch.setattr(Run, "stop_requested", lambda self: True)
    with pytest.raises(Stopped, match=r"stopped after \d+ of 12 responses; none is kept"):
        generate.run(generate.GenerateConfig(
            out=tmp_path / "out", model=ModelConfig(path=str(made.parent / "base")), limit=12,
            sampling=SamplingConfig(max_new_tokens=6, slots=2),
            prompts=DataConfig(path=str(tiny.prompts(tmp_path / "q.jsonl")), max_length=64)))
    assert json.loads((tmp_path / "out/result.json").read_text())["status"] == "stopped"
