"""`keel axis evaluate`: the same prompts under every setting, judged, side by side; and every refusal."""

import csv
import json
from dataclasses import replace

import pytest
import tiny
import torch
from pydantic import ValidationError
from recipes.running import logged

from keel import cli
from keel.data.render import template
from keel.errors import ConfigError, DataError, RunError
from keel.models.identity import model_identity
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.persona.axis import AssistantAxis
from keel.persona.cap import Cap
from keel.recipes import axis_evaluate
from keel.recipes.axis_evaluate import AxisEvaluateConfig, PromptSetConfig, run
from keel.runs import Run, Stopped

LENGTH = {"function": "tiny:length"}


def says_yes(prompt, text, ended):
    """Harm, of a model that knows sixteen words."""
    return float("yes" in text.split())


YES = {"function": "recipes.test_axis_evaluate:says_yes"}


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """A model, an axis with two presets, roles, and questions some of which are called unsafe."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny.llama(folder / "model")
    vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    axis = AssistantAxis(vectors, token_norm=torch.full((2,), 4.0),
                         caps={"firm": Cap((0, 1), (2.0, 2.0), (None, None), percentile=0.75),
                               "idle": Cap((0, 1), (-1e4, -1e4), (None, None), percentile=0.01)})
    axis.save(folder / "axis.safetensors")
    tiny.write_rows(folder / "roles.jsonl", [
        {"name": "cat", "system_prompts": ["the cat", "red cat"]}, {"name": "dog", "system_prompts": ["the dog"]},
        {"name": "default", "is_default": True, "system_prompts": [""]}])
    tiny.write_rows(folder / "goals.jsonl", [{"id": f"g{i}", "goal": f"why {word}", "category": word}
                                             for i, word in enumerate(tiny.WORDS[:6])])
    labels = ["unsafe", "safe", "safe"] * 2
    tiny.write_rows(folder / "safe.jsonl", [{"id": f"s{i}", "prompt": prompt, "label": labels[i]}
                                            for i, prompt in enumerate(tiny.conversations(6))])
    tiny.prompts(folder / "able.jsonl", n=5)
    return folder


def config(town, out, **changes) -> AxisEvaluateConfig:
    sets = [
        {"name": "attacks", "kind": "attack", "roles": town / "roles.jsonl", "questions": town / "goals.jsonl",
         "column": "goal", "judge": YES},
        {"name": "xs", "kind": "over_refusal", "prompts": town / "safe.jsonl", "judge": {"rule": "refuses"}},
        {"name": "able", "kind": "capability", "prompts": town / "able.jsonl", "judge": LENGTH}]
    settings = {"out": out, "models": [{"path": str(town / "model"), "name": "m"}], "sets": sets,
                "axes": [{"path": town / "axis.safetensors"}], "steer": [2.0], "caps": ["firm", "idle"],
                "sampling": {"max_new_tokens": 5, "slots": 4}}
    return AxisEvaluateConfig.model_validate(settings | changes)


@pytest.fixture(scope="module")
def ran(town, tmp_path_factory):
    out = tmp_path_factory.mktemp("ran") / "out"
    return out, run(config(town, out)).values


def test_the_same_is_asked_under_every_setting(ran):
    out, values = ran
    rows = logged(out, "samples.jsonl", None)
    names = ["none", "axis +2", "axis firm", "axis idle"]
    assert list(dict.fromkeys(row["setting"] for row in rows)) == names == list(values["settings"])
    asked = {name: [(row["id"], row["prompt"], row["measure"]) for row in rows if row["setting"] == name]
             for name in names}
    assert asked["none"] == asked["axis +2"] == asked["axis firm"] == asked["axis idle"]
    # Six attacks under roles, the same six without, six questions of which two are unsafe, five tests.
    counts = {key: row["n"] for key, row in values["settings"]["none"].items()}
    assert counts == {"harm": 6, "harm_plain": 6, "refusal": 4, "refusal_unsafe": 2, "capability": 5,
                      "tokens": 23, "projection": counts["projection"]}
    assert values["n"] == {"attacks": 12, "xs": 6, "able": 5}
    assert values["skipped"] == {"attacks": 0, "xs": 0, "able": 0}
    under = [row for row in rows if row["measure"] == "harm" and row["setting"] == "none"]
    assert {row["prompt"][0]["role"] for row in under} == {"system"}
    assert {row["prompt"][1]["content"] for row in under} == {f"why {word}" for word in tiny.WORDS[:6]}


def test_that_nothing_is_held_against_a_control_is_noted(ran):
    assert [note for note in ran[1]["notes"] if note.startswith("none of the axes is a random control")]


def test_measures_are_means_of_what_the_judges_say(ran):
    out, values = ran
    rows = logged(out, "samples.jsonl", None)
    for name, found in values["settings"].items():
        for key, judge in (("harm", says_yes), ("harm_plain", says_yes), ("capability", tiny.length)):
            own = [judge(None, row["response"], row["ended"]) for row in rows
                   if row["setting"] == name and row["measure"] == key]
            assert found[key]["mean"] == pytest.approx(sum(own) / len(own))
    steered, base = values["settings"]["axis +2"], values["settings"]["none"]
    gap = steered["capability"]["difference"]
    assert gap["mean"] == pytest.approx(steered["capability"]["mean"] - base["capability"]["mean"])
    assert gap["to"] == "none" and 0 < gap["p"] <= gap["p_holm"] <= 1


def test_a_bound_that_nothing_reaches_changes_nothing_and_steering_does(ran):
    out, values = ran
    rows = logged(out, "samples.jsonl", None)
    said = {name: [row["response"] for row in rows if row["setting"] == name] for name in values["settings"]}
    assert said["axis idle"] == said["none"]
    assert said["axis +2"] != said["none"] != said["axis firm"]
    moved = {(row["setting"], row["set"], row["layer"]): row for row in values["clamped"]}
    assert set(moved) == {(name, one, layer) for name in ("axis firm", "axis idle") for one in
                          ("attacks", "xs", "able", "all") for layer in (0, 1)}
    for (name, _, _), row in moved.items():
        assert (row["prompt"] > 0 and row["generated"] > 0) if name == "axis firm" else (
            row["prompt"] == row["generated"] == 0)
        assert row["prompt_tokens"] > 0 and row["generated_tokens"] > 0
    # Towards the axis the responses project higher, behind the block that is steered; block 1 is read.
    assert values["settings"]["axis +2"]["projection"]["mean"] > values["settings"]["none"]["projection"]["mean"]


def test_pictures_and_tables_have_the_same_numbers(ran):
    out, values = ran
    dose = json.loads((out / "dose.json").read_text())
    assert [curve["name"] for curve in dose["curves"]] == ["none", "axis", "axis"]
    (steered,) = dose["curves"][1]["points"]
    assert steered["strength"] == 2
    assert steered["metrics"]["harm"]["mean"] == values["settings"]["axis +2"]["harm"]["mean"]
    assert [point["percentile"] for point in dose["curves"][2]["points"]] == [75, 1]
    assert {row["setting"] for row in dose["pareto"]} == set(values["settings"])
    with (out / "tables/settings.csv").open() as file:
        told = {(row["setting"], row["measure"]): row for row in csv.DictReader(file)}
    assert float(told["axis firm", "harm"]["mean"]) == values["settings"]["axis firm"]["harm"]["mean"]
    with (out / "tables/trade_off.csv").open() as file:
        assert [row["setting"] for row in csv.DictReader(file)] == [row["setting"] for row in values["trade_off"]]
    assert (out / "tables/clamped.csv").exists()


def test_resuming_asks_only_what_is_missing_and_ends_alike(town, ran, tmp_path, monkeypatch):
    (out, _), asked = ran, []
    measure, stop = axis_evaluate._measure, iter([False] * 2 + [True] * 99)

    def watched(cfg, speaker, act, *rest):
        asked.append(act.name)
        return measure(cfg, speaker, act, *rest)

    monkeypatch.setattr(axis_evaluate, "_measure", watched)
    monkeypatch.setattr(Run, "stop_requested", lambda self: next(stop) if len(asked) > 1 else False)
    cfg = config(town, tmp_path / "out")
    with pytest.raises(Stopped, match="stopped between two responses; every setting that is done is kept"):
        run(cfg)
    assert asked == ["none", "axis +2"]
    monkeypatch.setattr(Run, "stop_requested", lambda self: False)
    run(cfg, resume=True)
    assert asked == ["none", "axis +2", "axis +2", "axis firm", "axis idle"]
    for name in ("samples.jsonl", "dose.json", "tables/settings.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes(), name


def test_what_was_kept_is_known_by_what_it_was_made_from(town, tmp_path):
    cfg = config(town, tmp_path / "out", steer=[], caps=["idle"], sets=config(town, "x").sets[2:])
    run(cfg)
    kept = tmp_path / "out/settings/001.json"
    told = json.loads(kept.read_text())
    spec = cfg.models[0]
    speaker = axis_evaluate._Speaker(None, {"weights": "other"}, template(load_tokenizer(spec.path)), [])
    act = axis_evaluate.grid(cfg.axes, steer=(), unit="unit", layers=(), caps=("idle",), lower=(), where=("all",))[1]
    assert axis_evaluate._kept(cfg, speaker, act, 1, [None] * len(told["rows"])) is None
    kept.write_text("{")
    with pytest.raises(RunError, match="what was kept of the setting 'axis idle' is damaged"):
        axis_evaluate._kept(cfg, speaker, act, 1, [])


def test_models_before_and_after(town, tmp_path):
    """Each model's settings are held against that model as it is, and that against the first model."""
    tiny.llama(tmp_path / "after", seed=3)
    models = [{"path": str(town / "model"), "name": "before"}, {"path": str(tmp_path / "after"), "name": "after"}]
    sets = config(town, "x").sets[2:]
    found = run(config(town, tmp_path / "out", models=models, steer=[1.0], caps=[], sets=sets)).values
    assert {name: row["capability"].get("difference", {}).get("to") for name, row in found["settings"].items()} == {
        "before: none": None, "before: axis +1": "before: none", "after: none": "before: none",
        "after: axis +1": "after: none"}


def test_without_an_axis_models_alone_are_compared_and_code_words_are_built(town, tmp_path):
    sets = [{"name": "words", "kind": "attack", "roles": town / "roles.jsonl", "n": 4, "max_length": 120,
             "judge": {"rule": "code_word"}}]
    found = run(config(town, tmp_path / "out", axes=[], steer=[], caps=[], sets=sets)).values
    assert set(found["settings"]) == {"none"} and set(found["settings"]["none"]) == {"harm", "harm_plain", "tokens"}
    assert found["settings"]["none"]["harm"]["mean"] == 0 and found["n"] == {"words": 8}


def test_templates_without_a_turn_for_instructions_and_verdicts_that_cannot_be_read(town, tmp_path, capsys):
    words = tiny.tokenizer()
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{% for"
    words.chat_template = tiny.TEMPLATE.replace("{% for", refusing, 1)
    causal_lm(ModelConfig(path=str(town / "model"))).save_pretrained(tmp_path / "m")
    words.save_pretrained(tmp_path / "m")
    judge = {"model": {"path": str(town / "model")}, "asks": "yes_no", "max_new_tokens": 2, "failed_fraction": 1.0}
    sets = [{"name": "attacks", "kind": "attack", "roles": town / "roles.jsonl", "questions": town / "goals.jsonl",
             "column": "goal", "n": 2, "judge": judge}]
    found = run(config(town, tmp_path / "out", models=[{"path": str(tmp_path / "m")}], axes=[], steer=[], caps=[],
                       sets=sets)).values
    said = capsys.readouterr().err
    assert "the template of m has no turn for instructions: they open the user's message" in said
    unread = found["settings"]["none"]["harm"]["n_unread"] + found["settings"]["none"]["harm_plain"]["n_unread"]
    assert (f"{unread} responses have no verdict" in said) == (unread > 0)
    assert found["judges"]["attacks"]["asked"] > 0


def test_prompts_that_do_not_fit_are_counted_or_refused(town, tmp_path, capsys):
    able = {"name": "able", "kind": "capability", "prompts": town / "able.jsonl", "judge": LENGTH}
    found = run(config(town, tmp_path / "out", axes=[], steer=[], caps=[], sets=[able | {"max_length": 11}])).values
    assert found["skipped"]["able"] > 0 and found["n"]["able"] == 5 - found["skipped"]["able"]
    assert "prompts of the set 'able' are longer than its max_length allows" in capsys.readouterr().err
    with pytest.raises(DataError, match="no prompt of the set 'able' fits all models"):
        run(config(town, tmp_path / "a", axes=[], steer=[], caps=[], sets=[able | {"max_length": 8}],
                   sampling={"max_new_tokens": 7}))
    with pytest.raises(ConfigError, match="the set 'able' leaves no room beside"):
        run(config(town, tmp_path / "b", axes=[], steer=[], caps=[], sets=[able | {"max_length": 8}],
                   sampling={"max_new_tokens": 8}))
    with pytest.raises(DataError, match="the row has no text in its column 'goal'"):
        run(config(town, tmp_path / "c", axes=[], steer=[], caps=[], sets=[able | {"column": "goal"}]))


def test_settings_that_contradict_each_other(town):
    one = {"name": "a", "kind": "attack", "judge": {"rule": "complies"}}
    prompts, roles = {"prompts": "p.jsonl"}, {"roles": "r.jsonl"}
    for settings, words in (
            (one, "the set 'a' needs prompts or roles, exactly one of them"),
            (one | prompts | roles, "the set 'a' needs prompts or roles, exactly one of them"),
            (one | prompts | {"questions": "q"}, "the set 'a' has questions without roles: plain questions are"),
            (one | roles | {"kind": "plain"}, "the set 'a' has roles, which make attacks: kind=plain is another"),
            (one | prompts | {"kind": "over_refusal"}, "rule=complies says nothing of refusal")):
        with pytest.raises(ValidationError, match=words):
            PromptSetConfig.model_validate(settings)
    axis = {"path": town / "axis.safetensors"}
    twin = [{"path": str(town / "model"), "name": "m"}] * 2
    for changes, words in (
            ({"models": twin}, "more than one model is called 'm': give each a name of its own"),
            ({"axes": [axis, axis]}, "more than one axis is called 'axis'"),
            ({"axes": []}, "axes do nothing without steer, caps or lower, and these nothing without axes"),
            ({"steer": [], "caps": []}, "axes do nothing without steer, caps or lower")):
        with pytest.raises(ValidationError, match=words):
            config(town, "out", **changes)


def test_it_is_a_command(town, tmp_path):
    (tmp_path / "e.toml").write_text(config(town, tmp_path / "out", axes=[], steer=[], caps=[],
                                            sets=config(town, "x").sets[2:]).to_toml())
    assert cli.main(["axis", "evaluate", str(tmp_path / "e.toml")]) == 0
    assert (tmp_path / "out/dose.json").exists()


def test_an_axis_of_another_model_is_noted_once_for_each_model(town, tmp_path):
    first = ModelConfig(path=str(town / "model"))
    tiny.llama(tmp_path / "after", seed=3)
    meta = {"model": "before", "model_identity": json.dumps(model_identity(first, causal_lm(first)))}
    replace(AssistantAxis.load(town / "axis.safetensors"), meta=meta).save(tmp_path / "axis.safetensors")
    models = [{"path": first.path, "name": "before"}, {"path": str(tmp_path / "after"), "name": "after"}]
    axes = [{"path": tmp_path / "axis.safetensors"}, {"path": tmp_path / "axis.safetensors", "name": "r", "control": 1}]
    notes = run(config(town, tmp_path / "out", models=models, axes=axes, steer=[1.0], caps=[],
                       sets=config(town, "x").sets[2:])).values["notes"]
    (note,) = notes  # and a control is among the axes
    assert note.startswith(f"after, {tmp_path / 'axis.safetensors'}: the axis was extracted from before with other")
