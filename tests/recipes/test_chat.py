import pytest
import tiny

from keel.errors import ConfigError
from keel.models.load import ModelConfig
from keel.recipes import chat
from keel.rollout.sample import SamplingConfig


def config(tmp_path, **changes):
    settings = {
        "model": ModelConfig(path=str(tiny.llama(tmp_path / "m"))),
        "sampling": SamplingConfig(max_new_tokens=5),
        "max_length": 60,
    }
    return chat.ChatConfig(**(settings | changes))


def test_turns_alternate_and_the_same_seed_says_the_same(tmp_path, capsys):
    said = chat.run(config(tmp_path, system="please"), lines=["hello cat", "", "why ?"])
    assert [m.role for m in said] == ["system", "user", "assistant", "user", "assistant"]
    assert capsys.readouterr().out.splitlines() == [m.content for m in said if m.role == "assistant"]
    assert chat.run(config(tmp_path, system="please"), lines=["hello cat", "why ?"])[2] == said[2]


def test_long_conversation_drops_old_turns_out_loud_and_a_too_long_message_is_refused(tmp_path, capsys):
    chat.run(config(tmp_path, max_length=24), lines=["cat " * 6, "dog " * 6, "red " * 6])
    assert "oldest turns no longer fit" in capsys.readouterr().err
    said = chat.run(config(tmp_path, max_length=24), lines=["cat " * 40, "dog"])
    assert "this message was not taken" in capsys.readouterr().err and said[0].content == "dog"


def test_no_room_for_a_message_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="max_length=8 leaves no room beside"):
        chat.run(config(tmp_path, max_length=8, sampling=SamplingConfig(max_new_tokens=8)), lines=[])
