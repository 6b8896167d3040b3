"""Rows with settings of their own: each as the axis itself would act on it, and nothing of one in another."""

from dataclasses import replace

import pytest
import tiny
import tolerances as tol
import torch

from keel.errors import ModelError
from keel.models.load import ModelConfig, causal_lm
from keel.models.residual import Columns, declared
from keel.persona.axis import AssistantAxis
from keel.persona.cap import Cap
from keel.persona.rows import Bounds, RowControl, RowSettings, Steering
from keel.rng import stream
from keel.rollout.sample import SamplingConfig, sample

PROMPTS = [[1, 4, 8 + i % 9] + [9] * (i % 4) for i in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return causal_lm(ModelConfig(path=str(tiny.llama(tmp_path_factory.mktemp("m"), layers=3))))


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def axis():
    own = Cap((1, 1, 2), (0.4, 0.1, None), (None, None, -0.2), None, "tests", "tests", drawn(3, 16, seed=1))
    caps = {"plain": Cap((0, 2), (0.3, 0.2), (None, 0.6), 0.25, "tests", "tests"), "own": own}
    return AssistantAxis(drawn(3, 16, seed=0), token_norm=torch.tensor([1.0, 2.0, 3.0]), caps=caps)


def said(model, prompts=PROMPTS):
    streams = [stream(0, "s", i) for i in range(len(prompts))]
    return sample(model, prompts, SamplingConfig(max_new_tokens=10), streams, stop_ids=[2], pad_id=0,
                  record_ids=[str(i) for i in range(len(prompts))])


def controlled(model, axis, settings):
    """The same samples under per-row settings."""
    with RowControl(axis, model, n_rows=len(PROMPTS)) as control:
        for row, one in settings.items():
            control.set(row, one)
        return said(model)


@pytest.mark.parametrize("where", ["all", "prompt", "generation"])
def test_a_row_is_steered_as_the_axis_steers(model, axis, where):
    strengths = torch.tensor([0.5, 0.0, -1.0, 0.0, 0.2, 0.0])
    settings = {i: RowSettings(Steering(float(s), layers=(0, 2)), where=where) for i, s in enumerate(strengths) if s}
    found = controlled(model, axis, settings)
    with axis.steer(model, strengths, layers=[0, 2], where=where):
        expected = said(model)
    torch.testing.assert_close(found.logprobs, expected.logprobs, **tol.GRADIENT32)
    assert torch.equal(found.tokens.ids, expected.tokens.ids)
    assert not torch.equal(expected.logprobs, said(model).logprobs)


@pytest.mark.parametrize("name", ["plain", "own"])
def test_a_row_is_capped_as_the_axis_caps(model, axis, name):
    found = controlled(model, axis, {i: RowSettings(cap=name) for i in range(len(PROMPTS))})
    with axis.cap(model, name) as handle:
        expected = said(model)
    assert any(part["clamped"] for layer in handle.stats().values() for part in layer.values())
    torch.testing.assert_close(found.logprobs, expected.logprobs, **tol.GRADIENT32)
    assert not torch.equal(expected.logprobs, said(model).logprobs)


def test_bounds_of_a_request_are_those_of_the_axis_and_act_behind_the_steering(model, axis):
    both = RowSettings(Steering(-2.0, "unit"), Bounds(lower=0.5, upper=0.7), where="generation")
    found = controlled(model, axis, {i: both for i in range(len(PROMPTS))})
    with (axis.steer(model, -2.0, unit="unit", where="generation"),
          axis.cap(model, lower=0.5, upper=0.7, where="generation")):
        expected = said(model)
    torch.testing.assert_close(found.logprobs, expected.logprobs, **tol.GRADIENT32)


MIXED = {
    0: RowSettings(Steering(1.0, "raw")), 1: RowSettings(cap="plain"), 2: RowSettings(cap="own", where="generation"),
    3: RowSettings(), 4: RowSettings(Steering(-0.7), Bounds(upper=0.1, layers=(0, 1)), where="prompt"),
}


@torch.no_grad()
def logits(model):
    """One pass over six rows of one length; shapes are the same whatever acts."""
    batch = torch.tensor([[1, 4, 8 + i, 9, 10] for i in range(6)])
    with declared(model, lambda: columns_of(batch)):
        return model(input_ids=batch).logits


def columns_of(batch):
    column = torch.arange(batch.shape[1])[None].expand_as(batch)
    return Columns(torch.ones_like(batch, dtype=torch.bool), column == batch.shape[1] - 1, torch.arange(len(batch)),
                   column, named=True)


def test_in_a_mixed_batch_every_row_is_to_the_bit_as_if_it_had_been_set_alone(model, axis):
    control, alone = RowControl(axis, model, n_rows=6), []
    with control:
        for row in range(6):
            if row in MIXED:
                control.set(row, MIXED[row])
            alone.append(logits(model)[row])
            control.forget(row)
        for row, one in MIXED.items():
            control.set(row, one)
        mixed = logits(model)
    assert torch.equal(mixed, torch.stack(alone))
    same = (mixed == logits(model)).flatten(1).all(1).tolist()
    assert same == [False, False, False, True, False, True]  # nothing acts on 3, and nobody set 5


def test_in_a_mixed_batch_every_row_says_what_it_says_alone(model, axis):
    mixed = controlled(model, axis, MIXED)
    for row, one in MIXED.items():
        alone = controlled(model, axis, {row: one})
        real = mixed.tokens.attention_mask[row]
        assert mixed.tokens.ids[row][real].tolist() == alone.tokens.ids[row][alone.tokens.attention_mask[row]].tolist()


def test_a_forgotten_row_leaves_nothing_for_the_next_one(model, axis):
    """Rows 4 and 5 keep every block and every direction busy, so that a number that is left over would act."""
    plain = logits(model)
    with RowControl(axis, model, n_rows=6) as control:
        for row, one in MIXED.items():
            control.set(row, one)
        for row in range(4):
            control.forget(row)
            control.set(row, RowSettings(monitor=True))
        for row, name in ((4, "plain"), (5, "own")):
            control.set(row, RowSettings(Steering(1.0, layers=(0, 1, 2)), name))
        found = logits(model)
    assert torch.equal(found[:4], plain[:4])
    assert not torch.equal(found[4], plain[4]) and not torch.equal(found[5], plain[5])
    assert torch.equal(logits(model), plain)  # and nothing of it stays behind


def test_what_is_read_is_what_the_monitor_of_the_axis_reads(model, axis):
    settings = {0: RowSettings(cap="plain", monitor=True), 2: RowSettings(monitor=True), 3: RowSettings(cap="own")}
    control = RowControl(axis, model, n_rows=len(PROMPTS), watch=2)
    batch = torch.tensor([PROMPTS[1]] * 4)
    with control, torch.no_grad(), declared(model, lambda: columns_of(batch)):
        for row, one in settings.items():
            control.set(row, one)
        model(input_ids=batch)
        read = control.read()
        assert control.read() == []  # each pass is told once
    with torch.no_grad(), axis.cap(model, "plain") as handle, axis.monitor(model, layers=[2]) as monitor:
        model(input_ids=batch[:1])
    with torch.no_grad(), axis.monitor(model, layers=[2]) as plain:
        model(input_ids=batch[:1])
    assert {reading.row for reading in read} == {0, 2}
    for row, told in ((0, monitor), (2, plain)):
        own = [reading for reading in read if reading.row == row]
        assert [reading.position for reading in own] == [r["position"] for r in told.per_token]
        torch.testing.assert_close(torch.tensor([reading.projection for reading in own]),
                                   torch.tensor([r["projection"] for r in told.per_token]), **tol.FLOAT32)
    assert any(r.bounded for r in read if r.row == 0) and not any(r.bounded for r in read if r.row == 2)
    assert handle.stats()[2]["prompt"]["n_tokens"] == batch.shape[1] - 1


@pytest.mark.parametrize(("settings", "complaint"), [
    (RowSettings(cap="nothing"), "no preset 'nothing' for this row: the axis does not have it\n.*plain, own"),
    (RowSettings(cap=Bounds()), "bounds of a row without any number"),
    (RowSettings(Steering(1.0, layers=(3,))), "a row cannot be acted on behind block 3: there are blocks 0 to 2"),
])
def test_settings_that_cannot_be_had_are_refused_and_change_nothing(model, axis, settings, complaint):
    control = RowControl(axis, model, n_rows=2)
    for refuse in (lambda: control.check(settings), lambda: control.set(0, settings)):
        with pytest.raises(ModelError, match=complaint):
            refuse()


def test_a_block_at_which_the_axis_is_zero_is_refused_only_where_it_is_used(model, axis):
    vectors = axis.vectors.clone()
    vectors[1] = 0.0
    control = RowControl(replace(axis, vectors=vectors), model, n_rows=2, watch=1)
    control.check(RowSettings(Steering(1.0, "unit", layers=(0,)), Bounds(lower=0.0, layers=(2,))))
    for settings in (RowSettings(Steering(1.0, "unit", layers=(1,))), RowSettings(cap=Bounds(0.0, layers=(1,))),
                     RowSettings(monitor=True)):
        with pytest.raises(ModelError, match="the axis is zero at block 1"):
            control.check(settings)


def test_padding_is_not_acted_on(model, axis):
    """Rows padded to the left: what is steered on one side of the table reaches real tokens alone."""
    batch, control = torch.tensor([[1, 4, 8, 9, 10]]), RowControl(axis, model, n_rows=1)
    known = replace(columns_of(batch), real=torch.tensor([[False, False, True, True, True]]))
    seen = []
    with control, torch.no_grad(), declared(model, lambda: known):
        hook = model.model.layers[1].register_forward_hook(lambda *a: seen.append(a[2].clone()))
        model(input_ids=batch)
        control.set(0, RowSettings(Steering(1.0, "unit")))
        model(input_ids=batch)
        hook.remove()
    assert (seen[0] == seen[1]).all(-1)[0].tolist() == [True, True, False, False, False]


def test_an_axis_that_does_not_fit_is_refused(model, axis):
    with pytest.raises(ModelError, match="rows cannot be controlled: the axis has 2 blocks and the model 3"):
        RowControl(replace(axis, vectors=axis.vectors[:2], token_norm=None, caps={}), model, n_rows=1)
    short = RowControl(replace(axis, token_norm=None), model, n_rows=1)
    with pytest.raises(ModelError, match="mean length of a state, which the axis does not tell"):
        short.check(RowSettings(Steering(1.0)))
    short.check(RowSettings(Steering(1.0, "unit")))
