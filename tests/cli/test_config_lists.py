"""Settings that hold a list of tables."""

import pytest
from pydantic import Field

from keel.config import Config, describe
from keel.endpoint import EndpointConfig
from keel.errors import ConfigError
from keel.models.load import ModelConfig
from keel.rollout.reward_settings import RewardConfig


class Climber(Config):
    kl_coef: float = Field(0.1, description="how far it may stray")
    rewards: tuple[RewardConfig, ...] = Field((), description="what it climbs")
    judges: list[EndpointConfig] = Field([], description="who looks on")


SHORT = RewardConfig(name="short", function="m:f", weight=0.5)
PAIR = RewardConfig(name="pair", models=(ModelConfig(path="a"), ModelConfig(path="b", dtype="bfloat16")))
REMOTE = RewardConfig(name="remote", endpoint=EndpointConfig(url="https://host/score"))

FILE = """
[[rewards]]
name = "short"
function = "m:f"
weight = 0.5

[[rewards]]
name = "pair"
models = ["a", {path = "b", dtype = "bfloat16"}]

[[rewards]]
name = "remote"
endpoint = "https://host/score"
dissent_coef = "none"
"""


def test_a_file_holds_a_table_per_entry(tmp_path):
    (tmp_path / "a.toml").write_text(FILE)
    assert Climber.resolve(tmp_path / "a.toml").rewards == (SHORT, PAIR, REMOTE)


def test_the_command_line_takes_the_list_as_toml(tmp_path):
    (tmp_path / "a.toml").write_text(FILE)
    text = '[{name = "short", function = "m:f", weight = 0.5}, {name = "remote", endpoint = "https://host/score"}]'
    assert Climber.resolve(None, {"rewards": text}).rewards == (SHORT, REMOTE)
    assert Climber.resolve(tmp_path / "a.toml", {"rewards": text}).rewards == (SHORT, REMOTE)
    assert Climber.resolve(None, {"rewards": '{name = "short", function = "m:f", weight = 0.5}'}).rewards == (SHORT,)
    assert Climber.resolve(tmp_path / "a.toml", {"rewards": "[]"}).rewards == ()
    assert Climber.resolve(None, {"judges": "https://a/"}).judges == [EndpointConfig(url="https://a/")]


@pytest.mark.parametrize("rewards", [(), (SHORT,), (SHORT, PAIR, REMOTE)])
def test_printed_settings_read_back_the_same(rewards, tmp_path):
    config = Climber(rewards=rewards)
    (tmp_path / "a.toml").write_text(config.to_toml())
    assert Climber.resolve(tmp_path / "a.toml") == config
    assert Climber.resolve(tmp_path / "a.toml").to_toml() == config.to_toml()


def test_help_shows_the_list_and_the_fields_of_its_tables():
    """None at the top is `several`: a bare word on the command line is a preset or a file, not a reward."""
    shown = {field.name: field for field in describe(Climber)}
    assert (shown["rewards"].kind, shown["rewards"].default) == ("list of tables", "()")
    assert shown["judges"].kind == "list of tables"
    assert [name for name, field in shown.items() if field.several] == ["rewards[].adapters"]
    assert shown["rewards[].name"].default == "required" and shown["rewards[].weight"].default == "1.0"
    assert shown["rewards[].models"].kind == "list of tables" and shown["rewards[].endpoint.timeout_s"].limits == "> 0"
    assert not [name for name in shown if name.startswith("rewards[].models[]")]


def test_a_complaint_names_the_entry():
    wrong = '[{name = "a", function = "m:f"}, {name = "b b", wieght = 1, models = "x"}]'
    with pytest.raises(ConfigError) as caught:
        Climber.resolve(None, {"rewards": wrong})
    for fragment in ("rewards.1.name = 'b b': string should match", "rewards.1.models = 'x'",
                     "unknown field 'rewards.1.wieght'; did you mean 'rewards[].weight'?"):
        assert fragment in str(caught.value)
    with pytest.raises(ConfigError, match=r"field 'rewards\.0\.name' is required"):
        Climber.resolve(None, {"rewards": '[{function = "m:f"}]'})
    assert not Climber.has_room_for({"rewards": [{"weight": "x"}]}) and Climber.has_room_for({"rewards": [{}]})
    assert not Climber.has_room_for({"kl": 1}) and Climber.has_room_for({"kl_coef": 0.5})
    with pytest.raises(ConfigError, match=r"rewards\.0 = 'm:f': input should be a valid dictionary"):
        Climber.resolve(None, {"rewards": "m:f"})


@pytest.mark.parametrize("text", ["[{name = }]", '[{name = "a"}', '{"name": "a"}'])
def test_what_is_not_toml_is_shown_how_it_is_written(text):
    with pytest.raises(ConfigError, match="rewards is not a list of tables: ") as caught:
        Climber.resolve(None, {"rewards": text})
    assert text in str(caught.value) and "[[rewards]]" in str(caught.value)


@pytest.mark.parametrize("name", ["rewards.weight", "rewards.0.weight", "rewards[0].weight", "rewards[].weight"])
def test_one_field_of_one_entry_cannot_be_set_alone(name):
    with pytest.raises(ConfigError, match=r"is a field of the tables in a list\n.*--rewards '\[\{weight = "):
        Climber.resolve(None, {name: "1"})
    with pytest.raises(ConfigError, match=r"unknown field 'reward'; did you mean 'rewards'\?"):
        Climber.resolve(None, {"reward": "1"})
