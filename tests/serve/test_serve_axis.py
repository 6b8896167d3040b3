"""The axis per request: what it does, what is told of it, and that no request feels another's."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import tolerances as tol
import torch
from served import TALK, USER, serving, settings

from keel.data.chat import template, tokenizer_from
from keel.data.records import Message
from keel.data.spans import render_conversation
from keel.models.load import ModelConfig, causal_lm
from keel.persona.axis import AssistantAxis
from keel.serve.engine import Event
from keel.serve.trace import Range, Trace


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("axis")


@pytest.fixture(scope="module")
def served(folder):
    with serving(settings(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def own(served):
    """The same model and axis without any server."""
    path = served.cfg.model.path
    return (causal_lm(ModelConfig(path=path, device="cpu")), template(tokenizer_from(path)),
            AssistantAxis.load(served.cfg.axis.path))


def text(answer):
    return answer.choices[0].message.content


SETTINGS = [None, {"cap": "floor"}, {"cap": "beside"}, {"steer": 1.5}, {"steer": {"strength": -3, "unit": "unit",
            "layers": [0, 1]}, "where": "generation"}, {"cap": {"lower": 1.0, "layers": [0]}, "monitor": True},
            {"monitor": True}, {"steer": 0.8, "cap": "floor", "where": "prompt"}]


def test_requests_with_all_kinds_of_settings_at_once_are_answered_as_if_alone(served):
    wanted = [(axis, seed) for seed in (1, 2) for axis in SETTINGS]
    alone = [text(served.chat(axis=axis, seed=seed, max_tokens=14)) for axis, seed in wanted]
    assert len(set(alone[:len(SETTINGS)])) >= 5  # the settings matter, so a mix-up would show
    with ThreadPoolExecutor(4) as clients:
        together = list(clients.map(lambda one: text(served.chat(axis=one[0], seed=one[1], max_tokens=14)), wanted))
    assert together == alone and served.idle()


def test_what_is_told_is_what_the_monitor_of_the_axis_reads(served, own):
    model, words, axis = own
    answer = served.chat(TALK, axis={"monitor": True, "cap": "floor"}, max_tokens=6).choices[0]
    told = answer.model_extra["axis"]
    messages = [Message(turn["role"], turn["content"]) for turn in TALK]
    known = render_conversation(words, messages)
    opened = words.tokenizer("<assistant>", add_special_tokens=False).input_ids
    written = words.tokenizer(answer.message.content, add_special_tokens=False).input_ids
    n_read = len(told["tokens"])
    row = torch.tensor([known.ids + opened + written])[:, :len(known.ids) + 1 + n_read]
    with torch.no_grad(), axis.cap(model, "floor"), axis.monitor(model, layers=[1]) as monitor:
        model(input_ids=row)
    values = [reading["projection"] for reading in monitor.per_token]
    spans = monitor.per_turn([[(turn.start, turn.end) for turn in known.turns]])[0]
    assert [turn["role"] for turn in told["turns"]] == ["system", "user", "assistant", "user"]
    torch.testing.assert_close(torch.tensor([turn["projection"] for turn in told["turns"]]), torch.tensor(spans),
                               **tol.FLOAT32)
    assert n_read == 5  # the last token that a limit allows is never fed
    torch.testing.assert_close(torch.tensor([token["projection"] for token in told["tokens"]]),
                               torch.tensor(values[-n_read:]), **tol.GRADIENT32)
    assert told["message"]["projection"] == pytest.approx(sum(values[-n_read:]) / n_read, rel=tol.RELATIVE32)
    assert told["layer"] == 1 and min(token["projection"] for token in told["tokens"]) > 0.39


def test_a_stream_tells_turns_first_then_tokens_then_the_message(served):
    whole = served.chat(TALK, axis={"monitor": True}).choices[0].model_extra["axis"]
    chunks = [chunk.choices[0].model_extra.get("axis") for chunk in served.chat(TALK, axis={"monitor": True},
                                                                                stream=True)]
    assert chunks[0]["turns"] == whole["turns"] and chunks[0]["layer"] == 1
    assert [token for chunk in chunks[1:] for token in chunk.get("tokens", [])] == whole["tokens"]
    assert [token["index"] for token in whole["tokens"]] == list(range(len(whole["tokens"])))
    assert chunks[-1]["message"] == whole["message"]


def test_who_does_not_ask_is_told_nothing(served):
    assert "axis" not in served.chat(axis={"cap": "floor"}).choices[0].model_extra


def test_defaults_of_the_operator_act_on_all_and_a_request_may_turn_them_off(folder, served):
    capped, plain = text(served.chat(axis={"cap": "floor"})), text(served.chat())
    assert capped != plain
    with serving(settings(folder, axis={"cap": "floor", "where": "all"})) as other:
        assert text(other.chat()) == capped == text(other.chat(axis={"monitor": True}))
        assert text(other.chat(axis={"cap": None})) == plain
        assert text(other.chat(axis={"cap": None, "steer": 1.5})) == text(served.chat(axis={"steer": 1.5}))
        assert other.http.get("/v1/axis").json()["defaults"] == {"cap": "floor", "steer": None, "where": "all"}


def test_an_operator_may_keep_the_axis_to_himself(folder, served):
    with serving(settings(folder, axis={"lower": 1.0, "steer": 0.2}, more={"allow_axis": False})) as other:
        said = text(other.chat(axis={"monitor": True}))
        assert said == text(other.chat()) != text(served.chat())
        assert said == text(served.chat(axis={"cap": {"lower": 1.0}, "steer": 0.2}))
        refused = other.post({"model": "tiny", "messages": USER, "axis": {"cap": None}})
        assert refused.status_code == 403 and "does not let requests change" in refused.text


def test_the_page_learns_what_there_is(served):
    told = served.http.get("/v1/axis").json()
    assert told["default_range"] == {"low": -0.2, "high": 0.6} and told["layer"] == 1 and told["allow"] is True
    assert [preset["name"] for preset in told["presets"]] == ["beside", "floor"] or [
        preset["name"] for preset in told["presets"]] == ["floor", "beside"]


def fed(trace, *values):
    return [trace.heard(Event(0, readings=((i, value, False),))) for i, value in enumerate(values)]


def test_the_rolling_mean_is_flagged_when_it_leaves_the_range_and_not_before_it_stands_on_enough():
    """Window 10: seven tokens say nothing; the mean of 8 at -1 is below; ten at +5 later it is above."""
    trace = Trace(1, 10, Range(-0.5, 0.5))
    said = fed(trace, *[-1.0] * 8, *[5.0] * 10)
    assert [one["outside"] for one in said[:8]] == [None] * 7 + ["below"]
    # after two more: (8 * -1 + 2 * 5) / 10 = 0.2, inside; then the oldest leave: (7 * -1 + 3 * 5) / 10 = 0.8
    assert said[9]["rolling"] == pytest.approx(0.2) and said[9]["outside"] is None
    assert said[10]["rolling"] == pytest.approx(0.8) and said[10]["outside"] == "above"
    end = trace.heard(Event(0, end="stop"))["message"]
    assert end == {"projection": pytest.approx(42 / 18), "n_tokens": 18, "outside": "above"}


def test_without_a_calibrated_range_or_any_token_nothing_is_flagged():
    assert all(one["outside"] is None for one in fed(Trace(1, 2, None), 1.0, 2.0, 3.0))
    assert Trace(1, 2, None).heard(Event(0, end="length"))["message"] == {
        "projection": None, "n_tokens": 0, "outside": None}
    turns = Trace(1, 2, None, (("user", (1, 2)), ("assistant", ()))).heard(Event(0, prompt=(9.0, 1.0, 2.0)))["turns"]
    assert [turn["projection"] for turn in turns] == [1.5, None]
