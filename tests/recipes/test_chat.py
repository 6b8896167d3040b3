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


def axis_file(tmp_path, **more):
    import torch

    from keel.persona.axis import AssistantAxis, DefaultStats

    usual = DefaultStats(layer=1, mean=0.0, std=1.0, low=-50.0, high=50.0, n=9)
    made = AssistantAxis(torch.linspace(-1, 1, 32).reshape(2, 16), token_norm=torch.ones(2),
                         meta={"default_stats": usual.words} | more)
    made.save(tmp_path / "axis.safetensors")
    return tmp_path / "axis.safetensors"


def test_the_projection_of_each_answer_is_told_with_its_usual_range_and_the_course(tmp_path, capsys):
    plain = chat.run(config(tmp_path), lines=["hello cat", "why ?"])
    capsys.readouterr()
    axis = {"path": axis_file(tmp_path)}
    assert chat.run(config(tmp_path, axis=axis), lines=["hello cat", "why ?"]) == plain  # looking changes nothing
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("(projection")]
    assert len(told) == 2 and all("within the usual -50.000 to +50.000" in line for line in told)
    assert told[0].endswith("▄)") and {*told[1][-3:-1]} == {"▁", "█"}


def test_a_bound_holds_what_is_told(tmp_path, capsys):
    axis = {"path": axis_file(tmp_path), "lower": 60.0}
    chat.run(config(tmp_path, axis=axis), lines=["hello cat"])
    assert "(projection +60.000, above the usual" in capsys.readouterr().err
    chat.run(config(tmp_path, axis={"path": axis_file(tmp_path, layer="0"), "lower": -60.0}), lines=["hello cat"])
    assert "usual" not in capsys.readouterr().err  # the file says what is usual at another block


def test_in_a_terminal_the_projection_is_shown_as_the_answer_is_written(tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    chat.run(config(tmp_path, axis={"path": axis_file(tmp_path)}), lines=["hello cat"])
    assert capsys.readouterr().err.count("\r\033[Kprojection") >= 2


def test_sparks_span_from_the_lowest_to_the_highest():
    assert chat.sparks([0.0, 7.0, 3.0]) == "▁█▄"
    assert chat.sparks([2.0, 2.0]) == "▄▄"
    assert chat.sparks([1.0, float("nan"), 2.0]) == "▁ █"
    assert chat.sparks([]) == ""
