"""Handles on a tiny Llama: bounds that hold jointly, statistics, and the refusals."""

import math
from dataclasses import replace

import pytest
import tiny
import tolerances
import torch

from keel.errors import ModelError
from keel.models.load import ModelConfig, causal_lm
from keel.persona.axis import AssistantAxis, cap_together
from keel.persona.cap import Cap
from keel.persona.settings import AxisConfig, applied

IDS = torch.tensor([[0, 0, 7, 8], [7, 8, 9, 10]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return causal_lm(ModelConfig(path=str(tiny.llama(tmp_path_factory.mktemp("m") / "m"))))


@pytest.fixture(scope="module")
def axis():
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 16, generator=draw)
    leaning = vectors[1] + 0.5 * torch.randn(16, generator=draw)
    two = Cap((1, 1), (1.0, None), (None, -0.5), None, "", "by hand", torch.stack([vectors[1], leaning]))
    return AssistantAxis(vectors, token_norm=torch.full((2,), 3.0), caps={"two": two})


def states(model, layer):
    seen = []
    hook = model.model.layers[layer].register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.no_grad():
        model(IDS, attention_mask=MASK)
    hook.remove()
    return seen[0][MASK.bool()]


def test_bounds_behind_one_block_hold_jointly_where_one_after_the_other_breaks_the_first(model, axis):
    first, second = (v / v.norm() for v in axis.caps["two"].vectors)
    with axis.cap(model, "two"):
        after = states(model, 1)
    assert float((after @ second).max()) <= -0.5 + tolerances.RELATIVE32 and float((after @ first).min()) < 0.9
    with axis.cap(model, "two", mode="joint") as handle:
        both = states(model, 1)
    assert float((both @ second).max()) <= -0.5 + tolerances.RELATIVE32
    assert float((both @ first).min()) >= 1.0 - tolerances.RELATIVE32
    assert handle.stats()[1]["prompt"]["n_tokens"] == 4 and handle.stats()[1]["generation"]["n_tokens"] == 2
    bare = states(model, 1)
    assert float((both - bare).norm()) <= float((after - bare).norm()) or float((after @ first).min()) < 1.0


def test_several_axes_hold_together(model, axis):
    other = axis.random(3)
    with cap_together(model, [(axis, 1.0, None), (other, None, -0.5)], layers=[0]):
        found = states(model, 0)
    assert float(axis.project(found, 0).min()) >= 1.0 - tolerances.RELATIVE32
    assert float(other.project(found, 0).max()) <= -0.5 + tolerances.RELATIVE32
    with pytest.raises(ModelError, match="bounds that hold jointly are one number for all rows"):
        cap_together(model, [(axis, torch.zeros(2), None), (other, None, 1.0)], layers=[0])


def test_statistics_tell_prompt_and_generation_apart(model, axis):
    before = axis.project(states(model, 1), 1)
    floor = float(before.sort().values[2:4].mean())  # half of the six tokens lie below
    with axis.floor(model, floor) as handle, torch.no_grad():
        model(IDS, attention_mask=MASK)
    told = handle.stats()[1]
    n = {part: told[part]["n_tokens"] for part in told}
    moved = sum(told[part]["clamped"] * n[part] for part in told)
    total = sum(told[part]["clamped"] * n[part] * told[part]["correction"] for part in told)
    assert n == {"prompt": 4, "generation": 2} and moved == pytest.approx(3)
    assert total == pytest.approx(float((floor - before[before < floor]).sum()), rel=tolerances.RELATIVE32)
    assert states(model, 1).equal(states(model, 1)) and handle.stats()[1] == told  # detached: it counts no more


def test_a_monitor_reads_parts_spans_and_tokens(model, axis):
    rows = []
    with axis.monitor(model, layers=[0, 1]) as monitor, torch.no_grad():
        monitor.on_token(rows.append)
        model(IDS, attention_mask=MASK)
    assert rows == monitor.per_token and len(rows) == 12 and monitor.layers == [0, 1]
    wanted = axis.project(states(model, 1), 1).tolist()
    read = [row["projection"] for row in rows if row["layer"] == 1]
    assert read == pytest.approx(wanted, rel=tolerances.RELATIVE32)
    assert [row["position"] for row in rows[:6]] == [0, 1, 0, 1, 2, 3]
    assert monitor.means(layer=1, part="prompt")[1] == pytest.approx(sum(wanted[2:]) / 4, rel=tolerances.RELATIVE32)
    assert math.isnan(monitor.means(layer=1)[0])  # nothing was generated
    (one, two), (none,) = monitor.per_turn([[(0, 1), (1, 2)], [(7, 9)]], layer=1)
    assert [one, two] == pytest.approx(wanted[:2], rel=tolerances.RELATIVE32) and math.isnan(none)
    with pytest.raises(ModelError, match="several blocks are watched"):
        monitor.means()
    monitor.clear()
    assert monitor.per_token == []


def test_what_does_not_fit_is_refused_and_nothing_stays_attached(model, axis):
    narrow, short = AssistantAxis(torch.ones(2, 8)), AssistantAxis(torch.ones(3, 16))
    for made, complaint in ((narrow, "the axis is 8 wide, the model's stream 16"),
                            (short, "the axis has 3 blocks, the model 2")):
        with pytest.raises(ModelError, match=complaint):
            made.steer(model, 1.0, unit="unit")
    for call, complaint in (
            (lambda: axis.steer(model, 1.0, layers=[5]), "the axis has no block 5: it has blocks 0 to 1"),
            (lambda: axis.cap(model, "one"), "the axis has no cap named 'one'"),
            (lambda: axis.cap(model), "a cap without any bound holds nothing"),
            (lambda: AssistantAxis(torch.zeros(2, 16)).monitor(model), "the axis is zero at block 1, so it has no"),
            (lambda: axis.project(torch.ones(16), 0, centred=True), "without the mean of its roles"),
            (lambda: AssistantAxis(axis.vectors).steer(model, 1.0), "without the mean length of a token's state")):
        with pytest.raises(ModelError, match=complaint):
            call()
    with pytest.raises(ModelError, match="a mask of 3 rows as `where` does not fit this pass of 2 rows"), \
            axis.steer(model, 1.0, where=torch.ones(3, 4, dtype=torch.bool)):
        model(IDS, attention_mask=MASK)
    assert not model.model._forward_pre_hooks and not any(b._forward_hooks for b in model.model.layers)


@pytest.mark.parametrize("beside", [{"lower": 0.0}, {"upper": 0.0}, {"layers": [0]}])
def test_a_preset_takes_no_bounds_or_blocks_beside_it(model, axis, beside):
    with pytest.raises(ModelError, match="the preset 'two' has bounds and blocks of its own"):
        axis.cap(model, "two", **beside)


def test_a_random_control_keeps_no_preset_that_acts_along_the_real_axis(axis):
    plain = Cap((1,), (0.5,), (None,), None, "", "by hand")
    control = replace(axis, caps=dict(axis.caps) | {"plain": plain}).random(3)
    assert list(control.caps) == ["plain"] and list(axis.caps) == ["two"]
    assert "keeps no preset with directions of its own" in control.known_caps()
    assert axis.known_caps() == "It has: two."


def test_projections_are_centred_on_the_mean_of_the_roles():
    """By hand: the state reaches 3 along the axis, the roles' mean 2; between them is 1."""
    axis = AssistantAxis(torch.tensor([[2.0, 0.0]]), role_mean=torch.tensor([[2.0, 9.0]]))
    state = torch.tensor([3.0, 5.0])
    assert float(axis.project(state, 0)) == 3.0 and float(axis.project(state, 0, centred=True)) == 1.0


def test_what_a_ceiling_moves_down_is_counted_too(model, axis):
    before = axis.project(states(model, 1), 1)
    with axis.cap(model, upper=float(before.min()) - 1.0) as handle, torch.no_grad():
        model(IDS, attention_mask=MASK)
    told = handle.stats()[1]["prompt"]
    assert told["clamped"] == 1.0 and told["correction"] < 0


def test_settings_act_in_order_and_leave_nothing_behind(model, axis, tmp_path):
    path = tmp_path / "axis.safetensors"
    axis.save(path)
    bare = states(model, 1)
    with applied(AxisConfig(path=path, steer=-0.5, unit="unit", lower=2.0), model) as handles:
        held = axis.project(states(model, 1), 1)  # steered first, then held
    assert len(handles) == 2 and float(held.min()) >= 2.0 - tolerances.RELATIVE32
    with pytest.raises(ModelError, match="the axis has no cap named 'other'"), \
            applied(AxisConfig(path=path, steer=1.0, cap="other"), model):
        pass
    with applied(None, model) as none:
        assert none == [] and states(model, 1).equal(bare)
    assert not AxisConfig(path=path).acts and AxisConfig(path=path, lower=0.0).acts
