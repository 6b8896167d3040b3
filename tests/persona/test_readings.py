"""Conversations read along the axis, against single passes written out here."""

import math
from dataclasses import replace

import pytest
import tiny
import tolerances
import torch
from transformers import AutoModelForCausalLM

from keel.data.records import Message
from keel.data.render import template
from keel.errors import DataError
from keel.models.load import FrozenModelConfig, causal_lm, load_tokenizer
from keel.persona.axis import AssistantAxis
from keel.persona.cap import Cap
from keel.persona.readings import Reading, TalksConfig, both_ways, context, numbered, read_along, talks, turn_rows
from keel.persona.settings import AxisConfig

TALKS = [
    {"id": "a", "domain": "x", "messages": [
        {"role": "system", "content": "please"}, {"role": "user", "content": "the cat sat"},
        {"role": "assistant", "content": "yes the dog ran ."}, {"role": "user", "content": "why ?"},
        {"role": "assistant", "content": ""}, {"role": "user", "content": "no"},
        {"role": "assistant", "content": "red blue"}]},
    {"id": "b", "domain": "y", "messages": [
        {"role": "user", "content": "one two"}, {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "no no ."}]},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Model, template, axis file and conversations."""
    folder = tmp_path_factory.mktemp("readings")
    tiny.llama(folder / "m", layers=3)
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(3, 16, generator=generator)
    cap = Cap((1,), (0.5,), (None,), None, "tests", "tests", None)
    AssistantAxis(vectors, role_mean=torch.randn(3, 16, generator=generator), caps={"firm": cap}).save(
        folder / "axis.safetensors")
    tiny.write_rows(folder / "talks.jsonl", TALKS)
    model = causal_lm(FrozenModelConfig(path=str(folder / "m")).whole)
    return folder, model, template(load_tokenizer(str(folder / "m")))


def read(made, *, layers=(1,), micro_tokens=64, **settings):
    folder, model, words = made
    cfg = TalksConfig(path=str(folder / "talks.jsonl"), **settings)
    found = talks(cfg, words, context(model, cfg.max_length))
    axis = AssistantAxis.load(folder / "axis.safetensors")
    return found, axis, read_along(model, words, axis, found, layers=layers, cfg=cfg, micro_tokens=micro_tokens)


def alone(made, ids, layer):
    """Projections from one pass over one row, in float64; block l is entry l + 1 of the hidden states."""
    folder = made[0]
    model = AutoModelForCausalLM.from_pretrained(folder / "m", dtype=torch.float32).eval()
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0].double()
    vector = AssistantAxis.load(folder / "axis.safetensors").vectors[layer].double()
    return (states @ vector / vector.norm()).float()


@pytest.mark.parametrize("micro_tokens", [1, 1000], ids=["alone", "padded"])
def test_every_token_of_every_conversation(made, micro_tokens):
    found, _, values = read(made, layers=(0, 1), micro_tokens=micro_tokens)
    for one, projections in zip(found.rendered, values, strict=True):
        for row, layer in enumerate((0, 1)):
            torch.testing.assert_close(projections[row], alone(made, one.ids, layer), **tolerances.FLOAT32)
    assert found.skipped == {"records": 0, "too_long": 0, "not_rendered": 0}
    assert found.handled == {"in_windows": 0, "cut": 0, "system_joined": 0}


def test_the_mean_of_a_turn_is_over_its_content_alone(made):
    found, axis, values = read(made)
    reading = Reading(found.dialogues[0], found.rendered[0], "", (1,), values[0])
    expected = alone(made, found.rendered[0].ids, 1)
    # <bos> <system> please <eos> <user> the cat sat <eos> <assistant> yes the dog ran . <eos> ...
    rows = turn_rows(reading, axis, 1)
    assert [row["role"] for row in rows] == [turn["role"] for turn in TALKS[0]["messages"]]
    assert [row["turn"] for row in rows] == [1, 1, 1, 2, 2, 3, 3] and [row["message"] for row in rows] == [*range(7)]
    assert rows[2]["n_tokens"] == 5
    assert rows[2]["raw"] == pytest.approx(float(expected[10:15].mean()), rel=tolerances.RELATIVE32)
    assert rows[2]["centred"] == pytest.approx(rows[2]["raw"] - axis.centre(1), rel=tolerances.RELATIVE32)
    assert rows[4]["raw"] is None and rows[4]["centred"] is None and rows[4]["n_tokens"] == 0


def test_turns_are_numbered_by_the_assistants():
    said = [Message(role, "x") for role in ("system", "user", "user", "assistant", "assistant", "user")]
    assert numbered(said) == [1, 1, 1, 1, 2, 3]


def test_windows_are_read_as_rows_of_their_own(made):
    """Width 8, of which the begin-of-sequence token takes one: windows of 7 tokens, 3 further each time."""
    found, _, values = read(made, max_length=8)
    ids = found.rendered[0].ids
    assert found.handled["in_windows"] == 2 and not bool(values[0].isnan().any())
    torch.testing.assert_close(values[0][0, :7], alone(made, ids[:7], 1), **tolerances.FLOAT32)
    second = alone(made, [ids[0], *ids[3:10]], 1)
    torch.testing.assert_close(values[0][0, 7:10], second[5:], **tolerances.FLOAT32)


def test_a_conversation_that_is_cut_is_read_up_to_there(made):
    found, axis, values = read(made, max_length=13, too_long="cut")
    assert found.handled["cut"] == 1  # the other one has 13 tokens
    assert values[0][0].isnan().tolist() == [place >= 13 for place in range(len(found.rendered[0].ids))]
    assert not bool(values[1].isnan().any())
    rows = turn_rows(Reading(found.dialogues[0], found.rendered[0], "", (1,), values[0]), axis, 1)
    assert [row["n_tokens"] for row in rows] == [1, 3, 3, 0, 0, 0, 0] and rows[6]["raw"] is None


def test_a_conversation_that_is_too_long_is_left_out(made):
    found, _, values = read(made, max_length=13, too_long="drop")
    assert [one.id for one in found.dialogues] == ["b"] and found.skipped["too_long"] == 1 and len(values) == 1
    with pytest.raises(DataError, match="none of 2 conversations fits into 8 tokens"):
        read(made, max_length=8, too_long="drop")


def test_a_conversation_that_the_template_refuses_stops_or_is_counted(made):
    words = replace(made[2], tokenizer=load_tokenizer(str(made[0] / "m")))
    words.tokenizer.chat_template = tiny.TEMPLATE.replace(
        "<bos>", "<bos>{% if messages[0].role != messages[1].role %}{{ raise_exception('never twice') }}{% endif %}")
    cfg = TalksConfig(path=str(made[0] / "talks.jsonl"))
    with pytest.raises(DataError, match="never twice"):
        talks(cfg, words, 128)
    found = talks(cfg.model_copy(update={"on_bad_record": "skip"}), words, 128)
    assert [one.id for one in found.dialogues] == ["b"] and found.skipped["not_rendered"] == 1


def test_more_than_the_model_can_read_is_refused(made):
    with pytest.raises(DataError, match="max_length=129 is beyond the model's context of 128 tokens"):
        context(made[1], 129)
    assert context(made[1], None) == 128 and context(made[1], 9) == 9


def acting(made, **axis):
    folder, model, words = made
    cfg = TalksConfig(path=str(folder / "talks.jsonl"))
    found = talks(cfg, words, 128)
    counted = []
    settings = AxisConfig(path=folder / "axis.safetensors", **axis)
    return both_ways(model, words, found, layers=[1], acting=settings, cfg=cfg, micro_tokens=1000,
                     on_done=counted.append), counted


def test_a_cap_is_seen_by_the_reading_behind_it(made):
    plain, counted = acting(made)
    assert plain.acted == () and plain.caps == {} and plain.all == plain.plain and counted == [2]
    capped, counted = acting(made, cap="firm")
    assert counted == [2, 4] and [one.label for one in capped.acted] == ["capped", "capped"]
    for before, after, same in zip(capped.plain, capped.acted, plain.plain, strict=True):
        torch.testing.assert_close(before.projections, same.projections, **tolerances.EXACT)
        torch.testing.assert_close(after.projections, before.projections.clamp_min(0.5), **tolerances.FLOAT32)
    told = capped.caps["1"]
    low = torch.cat([one.projections[0] < 0.5 for one in capped.plain])
    seen = sum(told[part]["n_tokens"] for part in ("prompt", "generation"))
    assert seen == len(low)
    clamped = sum(told[part]["n_tokens"] * told[part]["clamped"] for part in ("prompt", "generation"))
    assert clamped == pytest.approx(int(low.sum()), rel=tolerances.RELATIVE32)


def test_the_assistants_turns_are_what_counts_as_generated(made):
    """`generation` begins at the token before each of its turns; what the others say is left alone."""
    capped, _ = acting(made, lower=0.5, where="generation")
    before, after = capped.plain[1].projections[0], capped.acted[1].projections[0]
    # <bos> <user> one two <eos> <user> hello <eos> <assistant> no no . <eos>
    expected = torch.tensor([place in (8, 9, 10, 11) for place in range(13)])
    torch.testing.assert_close(after, torch.where(expected, before.clamp_min(0.5), before), **tolerances.FLOAT32)
    assert bool((before[expected] < 0.5).any()) and bool((before[~expected] < 0.5).any())


def test_labels_say_what_acted(made):
    both, _ = acting(made, steer=1.0, unit="unit", lower=0.0, control=3)
    assert both.acted[0].label == "steered and capped at random"
    assert not math.isnan(both.acted[0].of_turn(both.acted[0].rendered.turns[1], 1)[0])
