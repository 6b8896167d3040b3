"""Settings: defaults, file, command line, in this order; and every field explained."""

import importlib
import re

import pytest
from pydantic import Field

from keel.cli import PRESETS, main
from keel.config import Config, describe, nearest, read_toml
from keel.errors import ConfigError
from keel.models.load import ModelConfig
from keel.recipes import COMMANDS
from keel.recipes.ppo import PPOConfig
from keel.recipes.reward_model import RewardModelConfig
from keel.recipes.sft import SFTConfig

READY = {name: entry for name, entry in COMMANDS.items() if name != "sandbox pretrain"}


class Inner(Config):
    size: int = Field(1, ge=1, description="how large")
    share: float | None = Field(0.5, gt=0, lt=1, description="which part")


class Outer(Config):
    name: str = Field(description="what it is called")
    inner: Inner = Inner(size=7)
    other: Inner | None = Field(None, description="a second one")
    tags: tuple[str, ...] = Field((), description="words")
    pair: tuple[float, float] = Field((0.1, 0.2), description="two numbers")
    path: str = Field("x", description="where")


def config_of(command: str) -> type[Config]:
    module, name, _ = COMMANDS[command]
    return getattr(importlib.import_module(module), name)


def test_defaults_then_file_then_command_line(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('name = "file"\ntags = ["a"]\n[inner]\nsize = 2\nshare = 0.2\n')
    assert Outer.resolve(None, {"name": "x"}).inner == Inner(size=7)
    assert Outer.resolve(file).inner == Inner(size=2, share=0.2)
    found = Outer.resolve(file, {"inner.size": "3", "name": "line", "pair": "[0.3, 0.4]"})
    assert (found.inner, found.name, found.tags, found.pair) == (Inner(size=3, share=0.2), "line", ("a",), (0.3, 0.4))


def test_one_field_of_a_table_leaves_the_others_at_the_recipes_default(tmp_path):
    """Naming the schedule must not move the learning rate from the recipe's 5e-7 to the optimiser's own 1e-5."""
    given = {"out": "x", "policy": "p", "reward_model": "r", "prompts": "q"}
    assert PPOConfig.resolve(None, given | {"policy_optimizer.schedule": "constant"}).policy_optimizer.lr == 5e-7
    assert PPOConfig.resolve(None, given | {"policy_optimizer.schedule": "constant"}).policy_optimizer.eps == 1e-6
    (tmp_path / "a.toml").write_text("[optimizer]\nschedule = 'linear'\n[sampling]\ntop_p = 0.5\n")
    found = SFTConfig.resolve(tmp_path / "a.toml", {"out": "x", "model": "m", "data": "d"})
    assert (found.optimizer.lr, found.optimizer.schedule) == (2e-5, "linear")
    assert (found.sampling.max_new_tokens, found.sampling.top_p) == (64, 0.5)


def test_a_default_two_tables_deep_is_kept():
    class Deep(Config):
        outer: Outer = Outer(name="n", inner=Inner(size=9, share=0.9), tags=("t",))

    found = Deep.resolve(None, {"outer.inner.share": "0.1"}).outer
    assert (found.name, found.tags, found.inner) == ("n", ("t",), Inner(size=9, share=0.1))


def test_none_switches_off():
    assert Outer.resolve(None, {"name": "x", "inner.share": "none"}).inner.share is None
    assert Outer.resolve(None, {"name": "x", "other": "none"}).other is None
    assert Outer.resolve(None, {"name": "x", "other.size": "2"}).other == Inner(size=2)
    with pytest.raises(ConfigError, match=r"inner\.size = None: input should be a valid integer"):
        Outer.resolve(None, {"name": "x", "inner.size": "none"})


def test_a_path_may_stand_for_its_table(tmp_path):
    (tmp_path / "a.toml").write_text('out = "x"\nmodel = "m"\ndata = "d"\n')
    found = RewardModelConfig.resolve(tmp_path / "a.toml")
    assert (found.model, found.data.path) == (ModelConfig(path="m"), "d")
    assert RewardModelConfig.resolve(tmp_path / "a.toml", {"model": "n"}).model.path == "n"
    given = {"out": "x", "policy": "p", "reward_model": "r", "prompts": "q", "critic.model": "c"}
    found = PPOConfig.resolve(None, given)
    assert found.critic.model == ModelConfig(path="c")


@pytest.mark.parametrize("value, tags", [("one", ("one",)), (["a", "b"], ("a", "b")), ('["a", "b"]', ("a", "b")),
                                         ("[not toml", ("[not toml",))])
def test_lists(value, tags):
    assert Outer.resolve(None, {"name": "x", "tags": value}).tags == tags


@pytest.mark.parametrize("name, guess", [
    ("siez", "size"), ("inner.siz", "inner.size"), ("share", "inner.share"), ("qqqqqq", None)])
def test_the_nearest_name(name, guess):
    known = ["name", "size", "inner.size", "inner.share"]
    assert nearest(name, known) == (f"; did you mean {guess!r}?" if guess else "")


def test_complaints_are_short_and_name_the_file(tmp_path):
    (tmp_path / "a.toml").write_text(f'name = 3\npath = ["{"x" * 9999}"]\n')
    with pytest.raises(ConfigError, match=r"a\.toml: name = 3: input should be a valid string; path = \['xx") as caught:
        Outer.resolve(tmp_path / "a.toml")
    assert len(str(caught.value)) < 600 and "`--help` lists every field" in str(caught.value)


def test_settings_are_frozen_and_finite():
    with pytest.raises(ValueError, match="frozen"):
        Inner().size = 2
    with pytest.raises(ConfigError, match="share = nan"):
        Inner.checked({"share": float("nan")})


def test_a_missing_file_has_a_remedy(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the config file: No such file") as caught:
        read_toml(tmp_path / "no.toml")
    assert "preset" in str(caught.value)


@pytest.mark.parametrize("command", READY)
def test_help_explains_every_field(command, capsys):
    """Name, kind, limits, default and meaning of each; the default is the one that the recipe would take."""
    assert main([*command.split(), "--help"]) == 0
    text, config = capsys.readouterr().out, config_of(command)
    fields = list(describe(config))
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  --")
            and not line.startswith(("  --print", "  --resume"))] == [f"--{field.name}" for field in fields]
    for field in fields:
        limits = f", {field.limits}" if field.limits else ""
        line = f"  --{field.name}  ({field.kind}{limits}; default {field.default})"
        assert f"{line}\n        {field.description}\n" in text
        assert field.description and len(field.description) <= 130 and not field.description.endswith("."), field.name
    assert ("--resume RUN" in text) == (
        command in {"sft", "reward-model", "ranking-rm", "attribute-rm", "strength", "meta-rm", "meta-rm loop", "ppo",
                    "group-ppo", "preference", "offline-pg", "generate", "evaluate", "bench-rm", "bench-rm select",
                    "process-rm", "process-rm label", "process-rm search", "axis extract", "axis evaluate"}
        or command.startswith("experiment "))


def test_help_shows_the_recipes_defaults_not_the_tables_own():
    shown = {field.name: field.default for field in describe(PPOConfig)}
    assert shown["policy_optimizer.lr"] == "5e-07" and shown["critic_optimizer.lr"] == "1.65e-06"
    assert shown["policy.path"] == "required" and shown["critic.model.path"] == "none"
    assert {field.name: field.limits for field in describe(PPOConfig)}["loss.clip"] == "> 0, < 1"
    assert {field.name: field.kind for field in describe(PPOConfig)}["loss.clip"] == "float | none"
    shown = {field.name: field for field in describe(Outer)}
    assert shown["inner.size"].default == "7" and shown["tags"].several and not shown["pair"].several


@pytest.mark.parametrize("command", READY)
def test_printed_settings_read_back_the_same(command, capsys, tmp_path):
    config = config_of(command)
    required = {"out": "o", "policy": "p", "model": "m", "reward_model": "r", "prompts": "q", "data": "d", "paths": "f",
                "output": "g.jsonl", "runs": "run", "opponent": "w", "pairs": "d", "path": "i.jsonl", "test": "t.tsv",
                "positive": "p.csv", "negative": "n.csv", "attributes": '["a"]', "weights": "{a = 1.0}",
                "benchmark": "b", "scorer.function": "a:b", "candidates": "c", "x": '["a"]', "y": '["b"]',
                "process_model": "pm"}
    given = {name: value for name, value in required.items() if name.split(".")[0] in config.model_fields}
    own = {"evaluate": {"models": '["m"]'}, "offline-pg": {"rewards": '[{name = "r", stored = "s"}]'},
           "axis convert": {"source": "s"}, "axis calibrate": {"axis": "a.safetensors", "responses": "r"},
           "axis extract": {"roles": "r.jsonl", "questions": "q.jsonl"}, "axis project": {"axis": "a.safetensors"},
           "axis drift": {"axis": "a.safetensors"},
           "axis evaluate": {"models": '["m"]', "sets":
                             '[{name = "s", kind = "plain", prompts = "p.jsonl", judge = {rule = "complies"}}]'}}
    given |= own.get(command, {})
    arguments = [word for name, value in given.items() for word in (f"--{name}", value)]
    assert main([*command.split(), *arguments, "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "a.toml").write_text(printed)
    assert config.resolve(tmp_path / "a.toml") == config.resolve(None, given)
    assert main([*command.split(), str(tmp_path / "a.toml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


def test_a_preset_of_another_command_is_refused_by_name(capsys):
    assert main(["strength", "rm_flip", "--out", "o", "--model", "m", "--data", "d"]) == 2
    said = capsys.readouterr().err
    assert "'rm_flip' is no preset of `keel strength`" in said and "Its presets: strength_report" in said
    assert main(["ppo", "rm_flip"]) == 2
    assert "Its presets: grpo, moss_script_en" in capsys.readouterr().err


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.toml")))
def test_presets_are_complete_but_for_paths(preset, capsys):
    command = {"rm": "reward-model", "strength": "strength", "group": "group-ppo", **dict.fromkeys(
        ("cpo", "dpo", "ipo", "kto", "orpo", "simpo"), "preference")}.get(preset.split("_")[0], "ppo")
    online = ["--policy", "p", "--reward_model", "r", "--prompts", "q"]
    field = "kl.coef" if command in ("ppo", "group-ppo") else "data.max_length"
    given = {"ppo": online, "group-ppo": online,
             "preference": ["--policy", "p", "--data", "d"]}
    paths = ["--out", "o", *given.get(command, ["--model", "m", "--data.path", "d"])]
    assert main([command, preset, *paths, "--print-config"]) == 0
    printed = capsys.readouterr().out
    for name, value in read_toml(PRESETS / f"{preset}.toml").items():
        if not isinstance(value, dict):
            assert re.search(rf"^{name} = ", printed, re.M)
    assert main([command, preset, *paths, f"--{field}", "77", "--print-config"]) == 0
    assert f"{field.split('.')[1]} = 77" in capsys.readouterr().out
    assert main([command, "--help"]) == 0
    assert preset in capsys.readouterr().out.split("presets: ")[1]
