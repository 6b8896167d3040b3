"""The must-pass properties of an axis on a real network, one test each, written from their statement and not from the
code. (Cached and uncached decoding, padding, and rows of one batch: tests/persona/test_interface.py.)"""

import math
import random

import pytest
import torch
from persona.architectures import LAYERS, WIDTH, built, edited, greedy, padded, rows, stepping, written
from tolerances import CAP32, CAP_BFLOAT16, CAP_TWICE, EXACT, FLOAT32, INTERFACE32, PLANTED, PLANTED_COSINE, STREAMED

from keel.data.chat import template
from keel.errors import ModelError
from keel.models.load import ModelConfig, causal_lm
from keel.models.residual import attach
from keel.persona.axis import AssistantAxis
from keel.persona.extract import Heard, RoleSums, read_again
from keel.persona.space import gathered

AXIS = AssistantAxis(torch.randn(LAYERS, WIDTH, generator=torch.Generator().manual_seed(1)),
                     token_norm=torch.tensor([2.0, 4.0, 8.0]))
IDS = torch.tensor(rows((9,)))
LAYER = 1


@pytest.fixture(scope="module")
def model():
    return built("llama")


@pytest.fixture(scope="module")
def bare(model):
    return written(model, LAYER, IDS)[0]


def logits(model, ids=IDS, mask=None):
    with torch.no_grad():
        return model(ids, attention_mask=mask).logits


def along(states, layer=LAYER):
    """Projection written out."""
    vector = AXIS.vectors[layer].double()
    return states.double() @ vector / vector.norm()


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_label(name, kind, means):
    n = len(means)
    sums = RoleSums(name, kind)
    sums.add(["3/even" if i % 2 else "3/odd" for i in range(n)],
             Heard(means, torch.ones(n, dtype=torch.long), means.norm(dim=-1)))
    return sums


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_estimator_recovers_what_was_planted(seed):
    """h = b_role + s u default + noise: cosine at least 1 / sqrt(1 + H (sigma^2 (1/n + 1/m) + tau^2 / R) / s^2), less
    three hundredths of it, which is three times what chance makes of it at this width and step."""
    width, n_roles, each, n_default, sigma, tau, s = 512, 12, 25, 150, 1.0, 0.4, 6.0
    generator = torch.Generator().manual_seed(seed)
    u = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    noise = sigma * torch.randn(n_default, 1, width, generator=generator)
    parts = [one_label("default", "default", s * u + noise)]
    for role in range(n_roles):
        offset = tau * torch.randn(width, generator=generator)
        noise = sigma * torch.randn(each, 1, width, generator=generator)
        parts.append(one_label(f"role{role}", "role", offset + noise))
    axis = gathered(parts, min_count=1).axis[0]
    variance = sigma**2 * (1 / (n_roles * each) + 1 / n_default) + tau**2 / n_roles
    bound = 1 / math.sqrt(1 + width * variance / s**2)
    assert float(axis @ u / axis.norm()) >= (1 - PLANTED_COSINE) * bound
    assert bound < 0.95, "the bound says something"


def test_a_planted_direction_comes_through_the_whole_path(tmp_path):
    """The default and two roles say the same; a hook adds s w to the default's response tokens behind block 1."""
    import tiny

    model = causal_lm(ModelConfig(path=str(tiny.llama(tmp_path / "m", layers=LAYERS))))
    words = template(tiny.tokenizer())
    prompt = words.tokenizer("<bos><user>why ?<eos><assistant>", add_special_tokens=False).input_ids
    said = [(prompt, text, True) for text in ("the cat sat .", "no no", "hello two red", "yes")]
    w = 2.5 * torch.nn.functional.normalize(drawn(16, seed=3), dim=0)
    plain = read_again(model, words, said, micro_tokens=64).means
    roles = [one_label(name, "role", plain) for name in ("bard", "judge")]

    def plant(layer, hidden, columns):
        beyond = torch.arange(hidden.shape[1]) >= len(prompt)
        return hidden + torch.where(beyond[:, None], w, torch.zeros_like(w))

    with attach(model, {1: plant}):
        default = one_label("default", "default", read_again(model, words, said, micro_tokens=64).means)
    axis = gathered([default, *roles], min_count=1).axis
    torch.testing.assert_close(axis[0], torch.zeros(16), **EXACT)
    torch.testing.assert_close(axis[1], w, **PLANTED)
    assert float(axis[2].norm()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_cap_holds_and_leaves_what_is_in_range_bit_for_bit(dtype):
    model = built("llama", dtype=dtype)
    before = written(model, LAYER, IDS)[0]
    floor = float(along(before).median()) + 0.1
    with AXIS.floor(model, floor, layers=[LAYER]) as handle:
        after = written(model, LAYER, IDS)[0]
    inside = along(before) >= floor
    assert 0 < int(inside.sum()) < len(inside)
    torch.testing.assert_close(after[inside], before[inside], **EXACT)
    miss, size = floor - along(after), after.double().norm(dim=-1)
    if dtype == torch.float32:
        assert float(miss.max()) <= CAP32 * abs(floor)
    else:
        assert bool((miss <= CAP_BFLOAT16 * size).all())
    told = handle.stats()[LAYER]
    n = {part: told[part]["n_tokens"] * told[part]["clamped"] for part in told}
    assert n["prompt"] + n["generation"] == pytest.approx(int((~inside).sum()))


def test_a_cap_that_nothing_violates_changes_no_bit(model, bare):
    low = float(along(bare).min()) - 0.01
    expected = logits(model)
    with AXIS.floor(model, low, layers=[LAYER]) as handle:
        torch.testing.assert_close(logits(model), expected, **EXACT)
    assert handle.stats()[LAYER]["prompt"]["clamped"] == 0


def test_a_cap_on_the_negated_axis_is_a_floor_and_twice_is_once(model, bare):
    floor = float(along(bare).median()) + 0.1
    negated = AssistantAxis(-AXIS.vectors)
    with AXIS.floor(model, floor, layers=[LAYER]):
        expected = written(model, LAYER, IDS)[0]
    with negated.cap(model, upper=-floor, layers=[LAYER]):
        torch.testing.assert_close(written(model, LAYER, IDS)[0], expected, **EXACT)
    with AXIS.floor(model, floor, layers=[LAYER]), AXIS.floor(model, floor, layers=[LAYER]):
        torch.testing.assert_close(written(model, LAYER, IDS)[0], expected, **CAP_TWICE)


def test_the_order_of_a_cap_and_a_step_matters(model, bare):
    floor = float(along(bare).median())
    with AXIS.floor(model, floor, layers=[LAYER]), AXIS.steer(model, -1.0, unit="unit", layers=[LAYER]):
        stepped_last = written(model, LAYER, IDS)[0]
    with AXIS.steer(model, -1.0, unit="unit", layers=[LAYER]), AXIS.floor(model, floor, layers=[LAYER]):
        capped_last = written(model, LAYER, IDS)[0]
    assert float(along(capped_last).min()) >= floor - CAP32 * abs(floor)
    assert float(along(stepped_last).min()) < floor - 0.9


@pytest.mark.parametrize(("unit", "length"), [("raw", float(AXIS.vectors[LAYER].norm())), ("unit", 1.0),
                                              ("norm_fraction", 4.0)])
def test_steering_moves_the_projection_by_c_times_the_length_and_is_linear(model, bare, unit, length):
    """Read where the hook acts, at every token; and a step by c there and back is none."""
    for c in (0.5, -1.0, 3.0):
        with AXIS.steer(model, c, unit=unit, layers=[LAYER]):
            moved = along(written(model, LAYER, IDS)[0]) - along(bare)
        torch.testing.assert_close(moved, torch.full_like(moved, c * length), **FLOAT32)
    with AXIS.steer(model, 1.25, unit=unit, layers=[LAYER]), AXIS.steer(model, 0.75, unit=unit, layers=[LAYER]):
        both = written(model, LAYER, IDS)[0]
    with AXIS.steer(model, 2.0, unit=unit, layers=[LAYER]):
        torch.testing.assert_close(both, written(model, LAYER, IDS)[0], **FLOAT32)


def test_rows_at_zero_beside_steered_ones_are_unsteered(model):
    """Exact in the same batch; alone, where shapes differ, up to rounding."""
    ids, mask = padded(rows())
    expected = logits(model, ids, mask)
    with AXIS.steer(model, torch.tensor([2.0, 0.0, -2.0]), layers=[0, LAYER]):
        found = logits(model, ids, mask)
    torch.testing.assert_close(found[1], expected[1], **EXACT)
    assert not torch.equal(found[0, -1], expected[0, -1]) and not torch.equal(found[2, -1], expected[2, -1])
    alone = logits(model, torch.tensor(rows()[1:2]))[0]
    torch.testing.assert_close(found[1, -len(alone):], alone, **INTERFACE32)


def test_padding_on_either_side_and_none_are_the_same_steered_and_not(model):
    own = rows()
    for strength in (0.0, 1.5):
        with AXIS.steer(model, strength, layers=[LAYER]):
            single = [logits(model, torch.tensor([row]))[0] for row in own]
            for side in ("left", "right"):
                ids, mask = padded(own, side)
                with torch.no_grad():
                    found = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits
                for i, alone in enumerate(single):
                    torch.testing.assert_close(found[i][mask[i].bool()], alone, **INTERFACE32)


def test_streamed_means_are_stored_means_and_shards_add_up():
    """1,000 responses in ten batches, in one pass and in three parts that are merged."""
    means, tokens = 10 + drawn(1000, LAYERS, WIDTH, seed=4), torch.randint(1, 9, (1000,), generator=torch.Generator()
                                                                           .manual_seed(0))
    order = list(range(1000))
    random.Random(0).shuffle(order)

    def summed(picked):
        sums = RoleSums("bard", "role")
        for start in range(0, len(picked), 100):
            part = picked[start : start + 100]
            sums.add(["3/even"] * len(part), Heard(means[part], tokens[part], means[part].norm(dim=-1)))
        return sums

    whole, parts = summed(order), [summed(order[a:b]) for a, b in ((0, 300), (300, 310), (310, 1000))]
    merged = parts[2].merged(parts[0]).merged(parts[1])
    for sums in (whole, merged):
        bucket = sums.bucket(("3",))
        assert int(bucket.count) == 1000
        torch.testing.assert_close((bucket.total / bucket.count).float(), means.mean(0), **STREAMED)


def test_leaving_restores_the_model_also_after_a_failure(model):
    expected = logits(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), AXIS.steer(model, 1.0), AXIS.floor(model, 3.0), AXIS.monitor(model) as seen:
        seen.on_token(interrupted)
        model.generate(IDS, max_new_tokens=3)
    torch.testing.assert_close(logits(model), expected, **EXACT)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def interrupted(row) -> None:
    if row["generated"]:
        raise KeyboardInterrupt


def test_greedy_words_change_with_the_step_and_come_back(model):
    """The logits behind an addition, against a plain hook; away and towards are two things."""
    hook = edited(model, LAYER, stepping(3 * AXIS.unit(LAYER)), slice(None))
    expected = logits(model)
    hook.remove()
    with AXIS.steer(model, 3.0, unit="unit", layers=[LAYER]):
        torch.testing.assert_close(logits(model), expected, **INTERFACE32)
        found = model.generate(IDS, max_new_tokens=3, do_sample=False)[0, -3:].tolist()
    assert found == greedy(model, IDS[0].tolist(), 3, LAYER, stepping(3 * AXIS.unit(LAYER)), "all")[0]
    with AXIS.steer(model, -3.0, unit="unit", layers=[LAYER]):
        assert not torch.equal(logits(model), expected)


def test_ablation_sets_the_projection_and_keeps_what_is_across(model, bare):
    """Written out: h - <h, u> u + t u."""
    u = AXIS.vectors[LAYER] / AXIS.vectors[LAYER].norm()
    for target in (0.0, -1.5):
        with AXIS.ablate(model, target=target, layers=[LAYER]):
            found = written(model, LAYER, IDS)[0]
        torch.testing.assert_close(found, bare - (bare @ u)[:, None] * u + target * u, **INTERFACE32)


def test_a_wrapper_without_settings_of_its_own_is_steered_inside(model):
    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model

        def forward(self, ids):
            return self.module(ids)

    with AXIS.steer(model, 1.0, layers=[LAYER]):
        expected = logits(model)
    with torch.no_grad(), AXIS.steer(Wrapper(), 1.0, layers=[LAYER]):
        torch.testing.assert_close(logits(model), expected, **EXACT)


@pytest.mark.parametrize("where", ["prompt", "generation"])
def test_a_mask_of_columns_and_a_prompt_fed_in_pieces(model, where):
    """Columns may be named one by one; a prompt in pieces is known as such by the mask of the prompts."""
    ids, mask = padded(rows())
    change, n_new = stepping(3 * AXIS.unit(LAYER)), 3
    expected = [greedy(model, row, n_new, LAYER, change, where)[0] for row in rows()]
    with AXIS.steer(model, 3.0, unit="unit", layers=[LAYER], where=where, mask=mask):
        for options in ({"prefill_chunk_size": 3}, {"cache_implementation": "static", "disable_compile": True}):
            found = model.generate(ids, attention_mask=mask, max_new_tokens=n_new, do_sample=False, **options)
            assert found[:, ids.shape[1]:].tolist() == expected, options
    last = torch.zeros(mask.shape[0], mask.shape[1] + n_new, dtype=torch.bool)
    last[:, : mask.shape[1] - 1] = True
    with AXIS.steer(model, 3.0, unit="unit", layers=[LAYER], where=last if where == "prompt" else ~last):
        found = model.generate(ids, attention_mask=mask, max_new_tokens=n_new, do_sample=False)
    assert found[:, ids.shape[1]:].tolist() == expected


def test_bounds_by_block_count_from_either_end(model):
    """Below block 0 nothing moved, so both floors are seen where they stand; a block that is not there is refused."""
    with AXIS.cap(model, lower={0: 1.0, -1: 2.0}) as handle:
        found = [along(written(model, layer, IDS)[0], layer) for layer in range(LAYERS)]
    assert float(found[0].min()) >= 1 - CAP32 and float(found[2].min()) >= 2 - CAP32 * 2
    assert sorted(handle.stats()) == [0, 2]
    with pytest.raises(ModelError, match="no block 3"):
        AXIS.cap(model, lower={3: 1.0}, layers=[0])
