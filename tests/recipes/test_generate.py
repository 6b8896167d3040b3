import tiny
from recipes.running import logged, reward

from keel.models.load import ModelConfig
from keel.recipes import generate
from keel.rollout.sample import SamplingConfig
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
