"""V of a prompt: torch's own attention layer as the truth, and what padding, dropout and batches must not change."""

import json
import math

import pytest
import tolerances as tol
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from keel.errors import ModelError
from keel.models.value_head import EDGE, ROUNDING, ValueHead, load_head, outside, padded, save_head

RANGE = {"low": -1.0, "high": 3.0}


def states(*lengths, width=16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(n, width, generator=draw) for n in lengths]


def head(**how):
    return ValueHead(**{"width": 16, "heads": 4, **RANGE} | how)


def test_two_states_by_hand():
    """Scores 0 and ln 3 give weights 1/4 and 3/4, hence 3/4 ln 3; times 2 and 2/3 that is ln 3, whose sigmoid is 3/4 of
    the way from -1 to 3."""
    made = ValueHead(1, heads=1, **RANGE).double().eval()
    with torch.no_grad():
        for layer, weight in ((made.asked, 1.0), (made.keys, 1.0), (made.read, 2.0), (made.joined, 2 / 3),
                              (made.value, 1.0)):
            layer.weight.fill_(weight)
        made.query.fill_(1.0)
        made.value.bias.zero_()
    x = torch.tensor([[[0.0], [math.log(3)]]], dtype=torch.float64)
    found = made(x, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(found, torch.tensor([2.0]).double(), **tol.FLOAT64)


def torch_layer(made):
    """torch's multi-head attention with the same weights, and a bias on the keys, which must not matter."""
    layer = nn.MultiheadAttention(made.width, made.heads, batch_first=True).double()
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.cat([made.asked.weight, made.keys.weight, made.read.weight]))
        layer.in_proj_bias.copy_(torch.cat([made.asked.bias, torch.linspace(-1, 1, made.width), made.read.bias]))
        layer.out_proj.weight.copy_(made.joined.weight)
        layer.out_proj.bias.copy_(made.joined.bias)
    return layer


@pytest.mark.parametrize("heads", [1, 4, 16])
def test_it_is_torchs_attention_with_one_query(heads):
    made = head(heads=heads).double().eval()
    with torch.no_grad():
        for layer in (made.asked, made.read, made.joined):
            layer.bias.normal_(generator=torch.Generator().manual_seed(1))
    x, mask = padded([one.double() for one in states(3, 1, 7)], torch.device("cpu"))
    found, _ = torch_layer(made)(made.query.expand(3, 1, -1), x, x, key_padding_mask=~mask)
    expected = -1.0 + 4.0 * torch.sigmoid(made.value(found[:, 0])[:, 0])
    torch.testing.assert_close(made(x, mask), expected, **tol.FLOAT64)


def test_its_weights_are_drawn_as_torch_draws_those_of_an_attention_layer():
    made, bound = head(width=64, heads=8), math.sqrt(6 / (4 * 64))  # Xavier's over the three matrices as one
    for layer in (made.asked, made.keys, made.read):
        assert 0.95 * bound < layer.weight.abs().max() <= bound
    assert not any(layer.bias.any() for layer in (made.asked, made.read, made.joined))
    assert 0.5 < made.query.std() < 1.5


def test_padding_on_either_side_and_what_lies_there_change_nothing():
    made = head().double().eval()
    alone = torch.cat([made(one[None].double(), torch.ones(1, len(one), dtype=torch.bool)) for one in states(3, 1, 7)])
    for side, more in ((0, 0), (0, 4), (1, 0), (1, 4)):
        x = torch.full((3, 7 + more, 16), torch.nan).double()
        mask = torch.zeros(3, 7 + more, dtype=torch.bool)
        for i, one in enumerate(states(3, 1, 7)):
            here = slice(0, len(one)) if side else slice(7 + more - len(one), None)
            x[i, here], mask[i, here] = one.double(), True
        x.requires_grad_()
        found = made(x, mask)
        torch.testing.assert_close(found, alone, **tol.FLOAT64)
        found.sum().backward()
        assert torch.isfinite(x.grad).all() and not x.grad[~mask].any() and x.grad[mask].any(1).all()


def test_dropout_acts_only_while_it_learns_and_never_on_a_value_that_is_asked_for():
    made, (x, mask) = head(dropout=0.5), padded(states(3, 5), torch.device("cpu"))
    settled = made.eval()(x, mask)
    made.train()
    assert not torch.equal(made(x, mask), settled)
    assert torch.equal(made.of(states(3, 5)), settled)
    assert made.training and not made.of(states(3)).requires_grad
    made.eval()
    assert torch.equal(made.of(states(3, 5)), settled) and not made.training


def test_dropout_is_on_the_states():
    made, seen = head(dropout=0.5).train(), []
    made._attended = lambda x, mask: seen.append(x) or x[:, 0]
    made(torch.ones(1, 50, 16), torch.ones(1, 50, dtype=torch.bool))
    assert set(seen[0].flatten().tolist()) == {0.0, 2.0}


def test_dropout_is_before_the_last_layer():
    made = head(dropout=0.5).train()
    with torch.no_grad():
        made.joined.weight.zero_()  # what the states say is lost
        made.joined.bias.fill_(1.0)
    assert len({float(made(torch.ones(1, 4, 16), torch.ones(1, 4, dtype=torch.bool)).detach()) for _ in range(8)}) > 4


def test_weights_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    first, again, other = head(seed=1), head(seed=1), head(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for name, x in first.state_dict().items():
        assert torch.equal(x, again.state_dict()[name])
        if not (name.endswith("bias") and name != "value.bias"):
            assert not torch.equal(x, other.state_dict()[name])


def test_values_stay_in_the_range_whatever_the_states_are():
    made = head()
    with torch.no_grad():
        made.value.weight.mul_(1e4)
    found = torch.cat([made.of([1e4 * one]) for one in states(*range(1, 30))])
    assert found.min() == -1.0 and found.max() == 3.0


def test_a_bfloat16_state_is_read_in_float32():
    made = head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made.of([one.bfloat16() for one in states(3, 5)])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, made.of([one.bfloat16().float() for one in states(3, 5)]), **tol.EXACT)


@pytest.mark.parametrize("value", [-1.0, -0.5, 1.7, 3.0, 9.0])
def test_it_begins_where_it_is_told(value):
    made = head()
    made.begin_at(value)
    expected = min(max(value, -1.0 + 4.0 * EDGE), 3.0 - 4.0 * EDGE)
    torch.testing.assert_close(made.of(states(3, 5)), torch.full((2,), expected), **tol.FLOAT32)


def test_a_shape_that_cannot_be_is_refused():
    with pytest.raises(ModelError, match=r"5 heads do not divide hidden states of width 16\n.* 1, 2, 4, 8, 16 heads"):
        head(heads=5)
    for low, high in ((1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.inf)):
        with pytest.raises(ModelError, match=f"no range: it ends at {high} and begins at {low}"):
            head(low=low, high=high)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.1), (-7.0, 93.0), (1000.0, 1000.1)])
def test_a_reward_may_miss_its_range_by_rounding_and_no_more(low, high):
    step = ROUNDING * (high - low)
    fine = [low, high, (low + high) / 2, low - 0.9 * step, high + 0.9 * step]
    missed = [low - 1.1 * step, high + 1.1 * step, math.nan, math.inf, -math.inf]
    assert outside(torch.tensor(fine + missed, dtype=torch.float64), low, high).tolist() == [False] * 5 + [True] * 5
    assert outside(torch.tensor([0.1, 0.2]), 0.0, 0.1).tolist() == [False, True]


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_head_is_the_same_head(tmp_path):
    made = head(dropout=0.3, seed=5).train()
    save_head(made, tmp_path / "new folder" / "head.safetensors")
    found = load_head(tmp_path / "new folder" / "head.safetensors", width=16)
    assert not found.training and [p.name for p in (tmp_path / "new folder").iterdir()] == ["head.safetensors"]
    for name in ("width", "heads", "dropout", "low", "high"):
        assert getattr(found, name) == getattr(made, name)
    assert torch.equal(found.of(states(3, 5)), made.of(states(3, 5)))


def test_a_file_that_is_not_this_models_head_is_refused(tmp_path):
    file = tmp_path / "head.safetensors"
    with pytest.raises(ModelError, match="cannot read a value head: FileNotFoundError"):
        load_head(file)
    save_head(head(), file)
    with pytest.raises(ModelError, match="this value head was fitted on states of width 16; the model's have 32"):
        load_head(file, width=32)
    weights = load_file(file)
    with safe_open(file, "pt") as stored:
        shape = json.loads(stored.metadata()["value_head"])
    for kept, told in ((dict(list(weights.items())[1:]), shape), (weights, shape | {"width": 32}),
                       (weights, shape | {"depth": 2}), (weights, shape | {"heads": 3}), (weights, [1]),
                       (weights, {"width": "x"})):
        save_file(kept, file, {"value_head": json.dumps(told)})
        with pytest.raises(ModelError, match=r"cannot read a value head|3 heads do not divide"):
            load_head(file)
    save_file(weights, file)
    with pytest.raises(ModelError, match="cannot read a value head: TypeError"):
        load_head(file)
    file.write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot read a value head: SafetensorError"):
        load_head(file)
