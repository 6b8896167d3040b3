"""The axis on seven architectures under eager and fused attention, against plain hooks on single rows without padding
or cache. What is tested is what users of `generate()` rely on; the arithmetic itself is in tests/functional."""

import pytest
import torch
from persona import architectures
from persona.architectures import built, columns, edited, greedy, lifting, padded, rows, stepping, written
from tolerances import EXACT, GRADIENT32, INTERFACE32
from transformers import DynamicCache

from keel.persona.axis import AssistantAxis

LAYER, SIZE, NEW = 1, 3.0, 2
PROMPTS = rows()
AXIS = AssistantAxis(torch.randn(3, architectures.WIDTH, generator=torch.Generator().manual_seed(0)),
                     token_norm=torch.tensor([1.0, 2.0, 3.0]))
UNIT = AXIS.unit(LAYER)
# transformers has no fused attention for Gemma 2: it caps attention's logits.
MODELS = [(name, attention) for name in architectures.NAMES for attention in ("eager", "sdpa")
          if (name, attention) != ("gemma2", "sdpa")]
LOW = -1e4
"""Below every projection: in the plain hook, what minus infinity is in ours."""


@pytest.fixture(scope="module", params=MODELS, ids=["-".join(one) for one in MODELS])
def model(request):
    return built(*request.param)


@pytest.fixture(scope="module", params=architectures.NAMES)
def eager(request):
    """For what has nothing to do with attention."""
    return built(request.param, "eager")


def middle(model) -> float:
    """A floor in the middle of this model's projections: some tokens are lifted, some are not."""
    found = torch.cat([written(model, LAYER, torch.tensor([row]))[0] for row in PROMPTS])
    # Not at a token's own projection: a gradient has two values there.
    return float((found @ UNIT).median()) + 0.01


def generated(model, prompts=PROMPTS, **settings):
    ids, mask = padded(prompts)
    return model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, output_logits=True,
                          return_dict_in_generate=True, **settings)


def same_as_single_rows(found, expected) -> None:
    width = max(map(len, PROMPTS))
    for i, (ids, logits) in enumerate(expected):
        assert found.sequences[i, width:].tolist() == ids, i
        torch.testing.assert_close(torch.stack([step[i].float() for step in found.logits]), logits, **INTERFACE32)


@pytest.mark.parametrize("where", ["all", "prompt", "generation"])
def test_rows_of_a_padded_batch_follow_their_own_settings_as_if_alone(model, where):
    """Steered, left alone and steered away in one batch, with a cache and without one; and capped."""
    floor = middle(model)
    strengths, floors = torch.tensor([SIZE, 0.0, -SIZE]), torch.tensor([floor, -torch.inf, floor + 1])
    steered = [greedy(model, row, NEW, LAYER, stepping(size * UNIT), where)
               for row, size in zip(PROMPTS, strengths.tolist(), strict=True)]
    capped = [greedy(model, row, NEW, LAYER, lifting(UNIT, max(one, LOW)), where)
              for row, one in zip(PROMPTS, floors.tolist(), strict=True)]
    for cached in (True, False):
        with AXIS.steer(model, strengths, unit="unit", layers=[LAYER], where=where):
            same_as_single_rows(generated(model, use_cache=cached), steered)
    with AXIS.cap(model, lower=floors, layers=[LAYER], where=where) as handle:
        same_as_single_rows(generated(model), capped)
    # Every real token once: prompts without their last ones; these, and each new token but the last.
    told, n_prompt = handle.stats()[LAYER], sum(map(len, PROMPTS)) - len(PROMPTS)
    assert told["prompt"]["n_tokens"] == (0 if where == "generation" else n_prompt)
    assert told["generation"]["n_tokens"] == (0 if where == "prompt" else len(PROMPTS) * NEW)


def test_a_row_without_a_setting_keeps_its_bits_beside_others(eager):
    floor = middle(eager)
    bare = generated(eager).logits
    with AXIS.steer(eager, torch.tensor([SIZE, 0.0, -SIZE]), unit="unit", layers=[LAYER]):
        steered = generated(eager).logits
    with AXIS.cap(eager, lower=torch.tensor([floor, -torch.inf, floor]), layers=[LAYER]):
        capped = generated(eager).logits
    for found in (steered, capped):
        assert all(torch.equal(one[1], other[1]) for one, other in zip(found, bare, strict=True))
        assert not torch.equal(found[0][0], bare[0][0])


def test_beams_and_several_samples_follow_their_prompts_setting(model):
    """Two prompts of unequal length, steered each its way, against each by itself."""
    ids, mask = padded(PROMPTS[:2])
    fused = model.config._attn_implementation == "sdpa"
    how = {"do_sample": True, "top_k": 1} if fused else {"do_sample": False, "num_beams": 3}
    options = {"max_new_tokens": NEW + 1, "num_return_sequences": 2} | how
    with AXIS.steer(model, torch.tensor([SIZE, -SIZE]), unit="unit", layers=[LAYER], mask=mask):
        found = model.generate(ids, attention_mask=mask, **options)[:, -NEW - 1 :]
    alone = []
    for row, size in zip(PROMPTS, (SIZE, -SIZE), strict=False):
        with AXIS.steer(model, size, unit="unit", layers=[LAYER]):
            alone.append(model.generate(torch.tensor([row]), **options)[:, -NEW - 1 :])
    assert found.tolist() == torch.cat(alone).tolist()


def test_a_monitor_reads_the_same_of_left_padded_right_padded_and_single_rows(model):
    """Behind a cap: what it reads has to be what the cap leaves."""
    floor = middle(model)
    expected = {}
    for i, row in enumerate(PROMPTS):
        hook = edited(model, LAYER, lifting(UNIT, floor), columns("all", len(row)))
        for layer in (LAYER, LAYER + 1):
            found = written(model, layer, torch.tensor([row]))[0] @ AXIS.unit(layer)
            expected |= {(i, layer, position): value for position, value in enumerate(found.tolist())}
        hook.remove()
    for side in ("left", "right"):
        ids, mask = padded(PROMPTS, side)
        with AXIS.floor(model, floor, layers=[LAYER]), AXIS.monitor(model, layers=[LAYER, LAYER + 1]) as monitor:
            with torch.no_grad():  # GPT-2 counts padding as positions unless it is told otherwise
                model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0))
        read = {(row["row"], row["layer"], row["position"]): row["projection"] for row in monitor.per_token}
        assert read.keys() == expected.keys() and len(monitor.per_token) == len(expected), side
        keys = sorted(expected)
        torch.testing.assert_close(torch.tensor([read[key] for key in keys]),
                                   torch.tensor([expected[key] for key in keys]), **INTERFACE32)
        begins = {(row["row"], row["position"]) for row in monitor.per_token if row["generated"]}
        assert begins == {(i, len(row) - 1) for i, row in enumerate(PROMPTS)}, "from the last prompt token on"


def test_callbacks_and_turns_follow_a_generation(eager):
    heard = []
    with AXIS.monitor(eager, layers=[LAYER]) as monitor:
        monitor.on_token(heard.append)
        found = generated(eager)
    whole = [row + new for row, new in zip(PROMPTS, found.sequences[:, max(map(len, PROMPTS)):].tolist(), strict=True)]
    assert heard == monitor.per_token and len(heard) == sum(len(row) - 1 for row in whole), "the last one is never fed"
    turns = monitor.per_turn([[(0, len(row)), (len(row), len(row) + NEW)] for row in PROMPTS])
    for i, (row, own) in enumerate(zip(PROMPTS, turns, strict=True)):
        alone = written(eager, LAYER, torch.tensor([whole[i]]))[0] @ UNIT
        expected = torch.stack([alone[: len(row)].mean(), alone[len(row) : -1].mean()])
        torch.testing.assert_close(torch.tensor(own), expected, **INTERFACE32)


def test_without_a_cache_every_token_is_counted_and_read_once_and_rows_are_numbered_on(eager):
    heard, n_tokens = [], sum(map(len, PROMPTS)) + len(PROMPTS) * (NEW - 1)
    with AXIS.floor(eager, middle(eager), layers=[LAYER]) as handle, AXIS.monitor(eager, layers=[LAYER]) as monitor:
        generated(eager)
        cached = monitor.per_token
        told = handle.stats()[LAYER]
        monitor.clear()
        monitor.on_token(heard.append)
        generated(eager, use_cache=False)
        generated(eager)
    assert len(cached) == n_tokens and heard == monitor.per_token and len(heard) == 2 * n_tokens
    keys = [[(row["row"], row["position"], row["generated"]) for row in some] for some in (
        cached, heard[:n_tokens], heard[n_tokens:])]
    assert keys[1] == keys[0] and keys[2] == [(row + len(PROMPTS), *rest) for row, *rest in keys[0]]
    for part, n in told.items():
        assert handle.stats()[LAYER][part]["n_tokens"] == 3 * n["n_tokens"]
    torch.testing.assert_close(torch.tensor([row["projection"] for row in heard[:n_tokens]]),
                               torch.tensor([row["projection"] for row in cached]), **INTERFACE32)


def test_of_a_drafted_place_the_token_that_stayed_is_read():
    llama, cache = built("llama", "eager"), DynamicCache()
    with torch.no_grad(), AXIS.monitor(llama, layers=[LAYER], mask=torch.ones(1, 2)) as monitor:
        for fed, back in (([5, 6], 0), ([7, 8], 1), ([9], 0)):
            llama(torch.tensor([fed]), past_key_values=cache)
            cache.crop(-back) if back else None
    found = written(llama, LAYER, torch.tensor([[5, 6, 7, 9]]))[0] @ UNIT
    torch.testing.assert_close(torch.tensor(monitor.traces(part="all")[0]), found, **INTERFACE32)


def test_gradients_pass_through_as_through_a_plain_hook(eager):
    floor = middle(eager)
    ids, strength = torch.tensor(PROMPTS[1:2]), torch.tensor([SIZE], requires_grad=True)

    def gradients(loss):
        weights = [eager.get_input_embeddings().weight, next(architectures.blocks_of(eager)[0].parameters())]
        return torch.autograd.grad(loss, [*weights, strength], allow_unused=True)

    with AXIS.steer(eager, strength, unit="unit", layers=[LAYER]):
        found = gradients(eager(ids, labels=ids).loss)
    hook = edited(eager, LAYER, lambda hidden: hidden + strength * UNIT, slice(None))
    expected = gradients(eager(ids, labels=ids).loss)
    hook.remove()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **GRADIENT32)
    with AXIS.floor(eager, floor, layers=[LAYER]):
        found = gradients(eager(ids, labels=ids).loss)[:2]
    hook = edited(eager, LAYER, lifting(UNIT, floor), slice(None))
    expected = gradients(eager(ids, labels=ids).loss)[:2]
    hook.remove()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **GRADIENT32)


def test_what_was_there_comes_back_bit_for_bit(eager):
    floor = middle(eager)
    ids, mask = padded(PROMPTS)
    with torch.no_grad():
        before = eager(ids, attention_mask=mask).logits
        with AXIS.steer(eager, SIZE, layers=[0, 2]), AXIS.floor(eager, floor), AXIS.monitor(eager):
            assert not torch.equal(eager(ids, attention_mask=mask).logits, before)
        after = eager(ids, attention_mask=mask).logits
    torch.testing.assert_close(after, before, **EXACT)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in eager.modules())
