import json

import pytest
import tiny
import tolerances
import torch
from recipes.running import logged, reward

from keel.data.records import Message, Prompt
from keel.data.render import template
from keel.errors import ConfigError
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.persona.settings import AxisConfig
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


def with_axis(tmp_path, *, meta=None, **axis):
    from keel.persona.axis import AssistantAxis

    if not (tmp_path / "m").exists():
        tiny.llama(tmp_path / "m")
    AssistantAxis(torch.linspace(-1, 1, 32).reshape(2, 16), token_norm=torch.full((2,), 4.0), meta=meta or {}).save(
        tmp_path / "axis.safetensors")
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    generate.run(generate.GenerateConfig(
        out=out, model=ModelConfig(path=str(tmp_path / "m")), limit=6,
        axis={"path": tmp_path / "axis.safetensors"} | axis if axis is not None else None,
        sampling=SamplingConfig(max_new_tokens=6, slots=3),
        prompts=DataConfig(path=str(tiny.prompts(tmp_path / "q.jsonl")), max_length=64)))
    return logged(out, "samples.jsonl", None)


def test_projections_of_responses_are_those_of_a_pass_over_the_whole(tmp_path):
    rows = with_axis(tmp_path)
    words = template(load_tokenizer(str(tmp_path / "m")))
    model = causal_lm(ModelConfig(path=str(tmp_path / "m")))
    unit = torch.linspace(-1, 1, 32).reshape(2, 16)[1]
    compared = 0
    for row in rows:
        head = words.prompt_ids(Prompt("q", tuple(Message(**m) for m in row["prompt"])))
        whole = words.response_ids(row["response"], row["ended"])
        if len(whole) != row["n_tokens"] or len(whole) < 2:
            continue  # control tokens that it wrote are not in the text
        compared += 1
        said, seen = whole[:-1], []
        hook = model.model.layers[1].register_forward_hook(lambda *a, seen=seen: seen.append(a[2][0]))
        with torch.no_grad():
            model.model(torch.tensor([head + said]))
        hook.remove()
        wanted = (seen[0][len(head):] @ unit / unit.norm()).mean()
        assert row["projection"] == pytest.approx(float(wanted), rel=tolerances.RELATIVE32)
    assert compared


def test_an_axis_of_another_model_is_noted(tmp_path, capsys):
    with_axis(tmp_path, meta={"model": "other", "model_identity": '{"weights": "other"}'})
    assert "note: the axis was extracted from other with other weights than this model has" in capsys.readouterr().err


def test_a_floor_holds_every_response_and_a_control_acts_along_another_direction(tmp_path):
    plain, held = with_axis(tmp_path), with_axis(tmp_path, lower=9.0)
    assert all(row["projection"] >= 8.99 for row in held if row["projection"] is not None)
    assert [row["response"] for row in plain] != [row["response"] for row in held]
    control = with_axis(tmp_path, lower=9.0, control=1)
    assert [row["response"] for row in control] != [row["response"] for row in held]
    steered = with_axis(tmp_path, steer=-1.0, unit="norm_fraction", layers=(0, 1))
    assert sum(row["projection"] or 0 for row in steered) < sum(row["projection"] or 0 for row in plain)


def test_two_ways_of_bounding_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="exclude each other: a preset has its own bounds"):
        AxisConfig.checked({"path": "a", "cap": "p", "lower": 1.0})
