"""`keel axis calibrate`: thresholds against numpy on transformers' own states, the shares they touch, every refusal."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from pydantic import ValidationError
from tolerances import FLOAT32
from transformers import AutoModelForCausalLM

from keel import cli
from keel.data.render import Row, template
from keel.errors import ConfigError, DataError, ModelError
from keel.functional.spaces import quantile_with_error
from keel.models.identity import model_identity
from keel.models.load import ModelConfig, causal_lm
from keel.persona.axis import AssistantAxis
from keel.persona.cap import Cap
from keel.persona.thresholds import Projected, floors, presets, windows_of
from keel.recipes.axis_calibrate import AxisCalibrateConfig, run, with_content

N = 40


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """A model of four blocks, an axis, what the model said, and its projections as transformers computes them."""
    folder = tmp_path_factory.mktemp("calibrate")
    model, said = tiny.llama(folder / "model", layers=4), tiny.demonstrations(folder / "said.jsonl", n=N)
    axis = AssistantAxis(torch.randn(4, 16, generator=torch.Generator().manual_seed(1)),
                         caps={"kept": Cap((0,), (0.0,), (None,))}, meta={"model": "elsewhere/model"})
    axis.save(folder / "axis.safetensors")
    return SimpleNamespace(folder=folder, model=model, said=said, axis=axis, **vars(by_transformers(model, said, axis)))


def by_transformers(model, said, axis) -> SimpleNamespace:
    """Row by row, without padding, without keel's hooks: prompt tokens, the last of them, response tokens, means."""
    network, words = AutoModelForCausalLM.from_pretrained(model).eval(), template(tiny.tokenizer())
    prompts, lasts, responses, means = [], [], [], []
    for line in said.read_text().splitlines():
        row = json.loads(line)
        text = words.tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        head = words.tokenizer(text, add_special_tokens=False).input_ids
        body = words.tokenizer(row["completion"][0]["content"], add_special_tokens=False).input_ids
        with torch.no_grad():
            states = network(torch.tensor([head + body]), output_hidden_states=True).hidden_states
        # The last entry has been through the final norm, so block 3 is not looked at.
        unit = axis.vectors / axis.vectors.norm(dim=-1, keepdim=True)
        found = torch.stack([states[layer + 1][0] @ unit[layer] for layer in range(3)], -1).numpy()
        n = len(head)
        prompts.append(found[: n - 1])
        lasts.append(found[n - 1 : n])
        responses.append(found[n:])
        means.append(found[n:].mean(0))
    return SimpleNamespace(prompts=np.concatenate(prompts), lasts=np.concatenate(lasts),
                           responses=np.concatenate(responses), means=np.stack(means))


def config(town, name: str, **changes) -> AxisCalibrateConfig:
    settings = {"out": town.folder / name, "axis": town.folder / "axis.safetensors", "model": str(town.model),
                "responses": str(town.said), "layers": ("0:3",), "micro_tokens": 64, "check": 4}
    return AxisCalibrateConfig(**(settings | changes))


def told(run_folder) -> dict:
    return json.loads((run_folder / "calibration.json").read_text())


@pytest.mark.parametrize(("fit", "where", "suffix"), [
    ("response", "all", ""), ("token", "all", "-token"), ("token", "generation", "-token-generation"),
    ("response", "generation", "-generation")])
def test_floors_are_the_percentiles_of_the_stated_population_along_the_negated_axis(town, fit, where, suffix):
    run(config(town, f"run-{fit}-{where}", fit=fit, where=where, percentiles=(0.25, 0.6)))
    tokens = [town.lasts, town.responses] if where == "generation" else [town.prompts, town.lasts, town.responses]
    population = town.means if fit == "response" else np.concatenate(tokens)
    axis = AssistantAxis.load(town.folder / f"run-{fit}-{where}/axis.safetensors")
    for p in (0.25, 0.6):
        cap = axis.caps[f"layers_0:3-p{p:g}{suffix}"]
        # As the authors do it: numpy's percentile of the projections on MINUS the axis, whose bound is an upper one.
        theirs = np.percentile(-population, 100 * p, axis=0)
        np.testing.assert_allclose(cap.lower, -theirs, **FLOAT32)
        assert cap.layers == (0, 1, 2) and cap.upper == (None,) * 3 and cap.percentile == 1 - p
        assert f"of {N} responses" in cap.population
    assert axis.caps["kept"].lower == (0.0,), "presets that were there stay"


def test_shares_below_each_floor_are_told_for_prompts_and_responses_apart(town):
    run(config(town, "shares", percentiles=(0.25,)))
    rows = told(town.folder / "shares")["thresholds"]
    with (town.folder / "shares/tables/thresholds.csv").open() as file:
        assert [float(row["floor"]) for row in csv.DictReader(file)] == [row["floor"] for row in rows]
    for layer, row in enumerate(rows):
        prompts = np.concatenate([town.prompts, town.lasts])[:, layer]
        assert row["population"] == pytest.approx(0.75) and row["percentile_on_axis"] == 0.75
        assert row["prompt"] == pytest.approx((prompts < row["floor"]).mean())
        assert row["response"] == pytest.approx((town.responses[:, layer] < row["floor"]).mean())
        assert row["error"] > 0
    result = json.loads((town.folder / "shares/result.json").read_text())
    assert result["n_responses"] == N and result["n_prompt_tokens"] == len(town.prompts) + N
    assert result["n_response_tokens"] == len(town.responses)


def test_a_preset_is_tried_out_and_the_first_block_is_clamped_as_foretold(town):
    run(config(town, "tried", percentiles=(0.25, 0.75), check=N))
    clamped = {(row["preset"], row["layer"], row["where"]): row for row in told(town.folder / "tried")["clamped"]}
    assert len(clamped) == 2 * 3 * 2
    for p in (0.25, 0.75):
        floor = next(row["floor"] for row in told(town.folder / "tried")["thresholds"]
                     if row["layer"] == 0 and row["stated"] == p)
        prompt = clamped[f"layers_0:3-p{p:g}", 0, "prompt"]
        assert prompt["n_tokens"] == len(town.prompts)
        assert prompt["clamped"] == pytest.approx((town.prompts[:, 0] < floor).mean())
        # From the last prompt token on; the token that ends each response is fed here too.
        generation = clamped[f"layers_0:3-p{p:g}", 0, "generation"]
        assert generation["n_tokens"] == len(town.responses) + 2 * N and generation["correction"] > 0
    assert clamped["layers_0:3-p0.25", 0, "prompt"]["clamped"] > clamped["layers_0:3-p0.75", 0, "prompt"]["clamped"]
    run(config(town, "untried", percentiles=(0.25,), check=0))
    assert told(town.folder / "untried")["clamped"] == []


def test_only_tokens_of_the_generation_are_touched_by_a_preset_made_for_them(town):
    run(config(town, "late", percentiles=(0.25,), where="generation", fit="token"))
    parts = {row["where"]: row for row in told(town.folder / "late")["clamped"] if row["layer"] == 0}
    assert parts["prompt"]["n_tokens"] == 0 and parts["generation"]["n_tokens"] > 0


def test_a_control_is_calibrated_like_the_axis(town):
    run(config(town, "control", percentiles=(0.25,), control=7, check=0))
    made = AssistantAxis.load(town.folder / "control/axis.safetensors")
    torch.testing.assert_close(made.vectors.norm(dim=-1), town.axis.vectors.norm(dim=-1), **FLOAT32)
    found = by_transformers(town.model, town.said, made)
    np.testing.assert_allclose(made.caps["layers_0:3-p0.25"].lower, np.percentile(found.means, 75, axis=0), **FLOAT32)


def test_the_responses_of_an_extract_run_are_a_population(town, capsys):
    folder = town.folder / "extract"
    folder.mkdir()
    rows = [{"role": name, "kind": kind, "prompt_index": 0, "question_index": i, "system": system, "question": "why ?",
             "response": text, "score": 3, "ended": True}
            for name, kind, system in (("default", "default", ""), ("bard", "role", "the cat sat ."))
            for i, text in enumerate(["yes please .", "no .", "red blue", "", "hello two"])]
    tiny.write_rows(folder / "responses.jsonl", rows)
    run(config(town, "of-roles", responses=str(folder), percentiles=(0.5,)))
    result = json.loads((town.folder / "of-roles/result.json").read_text())
    assert result["composition"] == {"default": 5, "role": 5} and result["n_responses"] == 8
    assert result["skipped"]["without_content"] == 2
    assert "of 8 responses (5 default, 5 role)" in capsys.readouterr().out
    run(config(town, "of-default", responses=str(folder), percentiles=(0.5,), which="default"))
    result = json.loads((town.folder / "of-default/result.json").read_text())
    assert result["composition"] == {"default": 5} and result["n_responses"] == 4
    run(config(town, "of-file", responses=str(folder / "responses.jsonl"), percentiles=(0.5,), which="default"))
    found = [json.loads((town.folder / name / "calibration.json").read_text()) for name in ("of-file", "of-default")]
    assert found[0]["thresholds"] == found[1]["thresholds"]


def test_the_text_says_both_directions_and_what_the_population_is_not(town, capsys):
    arguments = ["axis", "calibrate", "--out", str(town.folder / "said-run"), "--axis",
                 str(town.folder / "axis.safetensors"), "--model", str(town.model), "--responses", str(town.said),
                 "--percentiles", "[0.1, 0.5]", "--layers", '["1:3"]']
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "percentile 10 of the role-playing direction, which is percentile 90 of the axis itself" in out
    assert "leaves 10% of the population as it is and lifts 90%" in out
    assert "below the floors of p0.1, block by block: 90.0% to 90.0% of the population" in out
    assert f"p0.1 rests on {N} responses, of which fewer than 10 lie beyond it" in err
    assert "the floors of p0.1 lift 90% of the population, but " in err
    assert "the population is not what a cap acts on" in err
    assert f"the axis was extracted from elsewhere/model, and calibrated on {town.model}" not in err
    assert cli.main(["axis", "calibrate", "--help"]) == 0
    assert "0.25 is the axis's own 0.75; 25% stay, 75% are lifted" in capsys.readouterr().out


def test_long_responses_and_another_model_are_noted(town, capsys):
    other = tiny.llama(town.folder / "other", layers=4, seed=3)
    run(config(town, "cut", model=str(other), percentiles=(0.5,),
               responses={"path": str(town.said), "max_length": 10, "too_long": "drop"}))
    said = capsys.readouterr().err
    assert "responses were too long and left out, 0 rows were cut at 10 tokens" in said
    assert f"the axis was extracted from elsewhere/model, and calibrated on {other}" in said


def test_a_limit_draws_by_the_seed(town):
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(config(town, f"drawn-{name}", percentiles=(0.5,), limit=10, seed=seed, check=0))
        found.append(told(town.folder / f"drawn-{name}")["thresholds"])
    assert found[0] == found[1] and found[0] != found[2]


def test_thresholds_by_hand():
    """Five responses with means 1 to 5; p0.25 is the axis's percentile 75: 4. Tokens: 0, 1; 2; 10 and 20."""
    projected = Projected((7,), torch.arange(1.0, 6.0)[:, None], torch.tensor([[0.0], [1.0]]),
                          torch.full((5, 1), 2.0), torch.tensor([[10.0], [3.0]]))
    (one,) = floors(projected, [0.25], "response", "all")
    assert (one.layer, one.floor, one.population, one.prompt, one.response) == (7, 4.0, pytest.approx(0.6), 1.0, 0.5)
    # Of the tokens 2, 2, 2, 2, 2, 3, 10 the one at 0.75 * 6 = 4.5 is between 2 and 3.
    (two,) = floors(projected, [0.25], "token", "generation")
    assert two.floor == pytest.approx(2.5) and two.population == pytest.approx(5 / 7)
    assert floors(projected, [0.5], "token", "all")[0].floor == 2.0
    # Seven tokens of five responses: the error counts five observations.
    _, alone = quantile_with_error(projected.population("token", "generation")[:, 0], 0.75)
    assert two.error == pytest.approx(float(alone) * (7 / 5) ** 0.5)
    made = presets([one], [(7, 8)], fit="response", where="all", population="x", source="y")
    assert list(made) == ["layers_7:8-p0.25"] and made["layers_7:8-p0.25"].lower == (4.0,)


def test_windows():
    assert windows_of(80, ["56:72", "0:1"], None, None) == [(56, 72), (0, 1)]
    assert windows_of(6, None, [4], 1) == [(0, 4), (1, 5), (2, 6)]
    assert windows_of(6, None, [4, 2], None) == [(0, 4), (2, 6), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]
    assert windows_of(16, None, None, None) == [(start, start + 2) for start in range(15)]
    assert len(windows_of(64, None, [8], 2)) == 29
    for bad in ("8", "3:3", "-1:2", "60:65", "a:b", "2:1"):
        with pytest.raises(ConfigError, match="which is no slice of 64 blocks"):
            windows_of(64, [bad], None, None)
    with pytest.raises(ConfigError, match="widths has 5, but the model has 4 blocks"):
        windows_of(4, None, [5], None)


def test_content_begins_behind_the_lead_and_ends_before_the_token_that_ends_the_turn():
    words = template(tiny.tokenizer())
    ids = words.response_ids("yes no")
    rows = [Row([1, 4, *ids], 2, "a"), Row([1, *ids[:-1]], 1, "cut"), Row([1, words.end_id], 1, "silent")]
    kept, contents = with_content(words, rows)
    assert [row.record_id for row in kept] == ["a", "cut"] and contents == [(2, 4), (1, 3)]
    with pytest.raises(DataError, match="1 of 1 responses have any text: no percentile can be taken"):
        with_content(words, rows[:1])


@pytest.mark.parametrize(("change", "complaint"), [
    ({"percentiles": (0.5, 25)}, "percentiles has 25; give shares between 0 and 1"),
    ({"percentiles": ()}, "at least 1 item"),
    ({"widths": (2,)}, "layers names the windows, so widths and every do nothing"),
    ({"layers": None, "widths": (0,)}, r"widths=\(0,\) has no window of a block or more"),
])
def test_settings_that_contradict_themselves_are_refused(town, change, complaint):
    with pytest.raises(ValidationError, match=complaint):
        config(town, "never", **change)


def test_a_choice_of_kinds_needs_an_extract_run(town):
    with pytest.raises(DataError, match="which='role' picks from an extract run, and this is a file of responses"):
        run(config(town, "refused", which="role"))


def test_an_axis_of_another_shape_is_refused_before_anything_is_read(town):
    AssistantAxis(torch.ones(4, 8)).save(town.folder / "narrow.safetensors")
    with pytest.raises(ModelError, match="the axis is 8 wide, the model's stream 16"):
        run(config(town, "narrow", axis=town.folder / "narrow.safetensors"))


def test_an_axis_of_other_weights_is_noted_and_one_of_a_moved_model_is_not(town, capsys):
    spec = ModelConfig(path=str(town.model))
    own, other = ({"model": "elsewhere/other", "model_identity": json.dumps(told)} for told in (
        model_identity(spec, causal_lm(spec)), {"weights": "other"}))
    for name, meta in (("own", own), ("other", other)):
        replace(town.axis, meta=meta).save(town.folder / f"{name}.safetensors")
        run(config(town, f"of-{name}", axis=town.folder / f"{name}.safetensors", percentiles=(0.5,), check=0))
        assert ("was extracted from elsewhere/other" in capsys.readouterr().err) == (name == "other")
    notes = json.loads((town.folder / "of-other/result.json").read_text())["notes"]
    assert sum("with other weights than this model has" in note for note in notes) == 1
