"""Taps on the residual stream: which list holds the blocks, which column is what, adapters, checkpointing, narrow and
quantised weights, the passes of keel itself, and a model that comes back as it was."""

import gc
from weakref import ref

import pytest
import torch
from accelerate import dispatch_model
from persona import architectures
from persona.architectures import END, PAD, blocks_of, built, columns, edited, greedy, padded, rows, stepping, written
from tolerances import EXACT, FLOAT32, GRADIENT32, INTERFACE32, LOG_RATIO
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, LlamaForSequenceClassification, OPTConfig, OPTForCausalLM

from keel.data.collate import collate, join
from keel.data.render import Row
from keel.errors import ModelError
from keel.models.attention import use_quick_attention
from keel.models.forward import hidden_states, token_logprobs
from keel.models.lora import LoraSettings, adapted
from keel.models.residual import Attachment, Columns, attach, columns_of, declared, decoder_blocks, n_blocks
from keel.rng import stream
from keel.rollout.sample import SamplingConfig, sample

VECTOR = torch.linspace(-2.0, 2.0, architectures.WIDTH)
PROMPTS = rows()

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def model():
    return built("llama")


def adding(vector=VECTOR, where="all"):
    """A tap that steers."""
    def tap(layer: int, hidden: torch.Tensor, known: Columns) -> torch.Tensor:
        chosen = {"all": known.real, "generation": known.generated, "prompt": known.real & ~known.generated}[where]
        return torch.where(chosen[..., None], hidden + vector.to(hidden.dtype), hidden)
    return tap


def logits(model, ids=None, mask=None):
    ids = torch.tensor(PROMPTS[1:2]) if ids is None else ids
    with torch.no_grad():
        return model(ids, attention_mask=mask).logits


def hooks(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# --- where the blocks are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", architectures.NAMES)
def test_blocks_are_found_by_structure(name):
    model = built(name, "eager")
    assert decoder_blocks(model) is blocks_of(model) and n_blocks(model) == architectures.LAYERS
    assert decoder_blocks(model.base_model) is blocks_of(model)


def test_blocks_whose_mlp_is_spread_over_them_are_found():
    config = OPTConfig(vocab_size=41, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
                       max_position_embeddings=64, word_embed_proj_dim=16)
    model = OPTForCausalLM(config)
    assert decoder_blocks(model) is model.model.decoder.layers


class Expert(nn.Module):
    """Two parts with inner parts each, as whole blocks have."""

    def __init__(self):
        super().__init__()
        self.up, self.down = (nn.Sequential(nn.Linear(4, 4)) for _ in range(2))

    def forward(self, hidden):
        return self.down(self.up(hidden))


class Block(nn.Module):
    """Gives a tuple, and holds a list of experts as long as the list of blocks."""

    def __init__(self, n_experts: int):
        super().__init__()
        self.mixer = nn.Sequential(nn.Linear(4, 4))
        self.experts = nn.ModuleList(Expert() for _ in range(n_experts))

    def forward(self, hidden):
        return hidden + self.mixer(hidden) + sum(expert(hidden) for expert in self.experts), "weights"


class Odd(nn.Module):
    """A decoder of nobody's: its names are its own, its blocks give tuples."""

    def __init__(self, n: int, beside: int | None = None, told: int | None = None, reentrant: bool | None = None):
        super().__init__()
        self.reentrant = reentrant
        self.stem = nn.Embedding(9, 4)
        self.rungs = nn.ModuleList(Block(n) for _ in range(n))
        if beside is not None:
            self.other = nn.ModuleList(Block(1) for _ in range(beside))
        if told is not None:
            self.config = type("Told", (), {"num_hidden_layers": told})()

    def forward(self, input_ids):
        hidden = self.stem(input_ids)
        for rung in self.rungs:
            hidden, _ = rung(hidden) if self.reentrant is None else checkpoint(rung, hidden,
                                                                               use_reentrant=self.reentrant)
        return hidden


def test_blocks_of_a_strange_decoder_that_give_tuples():
    """Experts inside blocks are no blocks, and a second tower of another length is not meant."""
    odd = Odd(3, beside=2, told=3)
    assert decoder_blocks(odd) is odd.rungs
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        bare = odd(ids)
        with attach(odd, {2: adding(torch.ones(4))}):
            torch.testing.assert_close(odd(ids), bare + 1, **FLOAT32)
        torch.testing.assert_close(odd(ids), bare, **EXACT)
    assert n_blocks(Odd(3, beside=2)) == 3, "without a config the longest list"


@pytest.mark.parametrize(("strange", "n"), [
    (nn.Sequential(nn.Linear(2, 2)), 0), (Odd(2, beside=2, told=2), 2), (Odd(2, beside=2), 2), (Odd(2, told=5), 0)])
def test_a_model_whose_blocks_are_not_certain_is_refused(strange, n):
    with pytest.raises(ModelError, match=f"{n} lists of modules could be the decoder blocks of"):
        decoder_blocks(strange)


def test_blocks_are_found_under_adapters_heads_and_shared_trunks(model):
    adaptive = adapted(built("llama"), LoraSettings(rank=2), "CAUSAL_LM", 0)
    assert decoder_blocks(adaptive) is adaptive.get_base_model().model.layers
    scorer = LlamaForSequenceClassification(model.config)
    assert decoder_blocks(scorer) is scorer.model.layers


# --- taps come and go ------------------------------------------------------------------------------------------------


def test_a_block_that_is_not_there_is_refused_and_nothing_stays(model):
    for layer in (3, -4):
        with pytest.raises(ModelError, match=f"there is no block {layer}: the model has blocks 0 to 2"):
            attach(model, {0: adding(), layer: adding()})
    assert hooks(model) == 0
    numbers = []

    def numbered(layer, hidden, known):
        numbers.append(layer)
        return adding()(layer, hidden, known)

    with attach(model, {-1: numbered}):
        changed = written(model, 2, torch.tensor(PROMPTS[:1]))
    assert numbers == [2]
    torch.testing.assert_close(changed, written(model, 2, torch.tensor(PROMPTS[:1])) + VECTOR, **FLOAT32)


def test_without_taps_or_with_taps_that_only_look_nothing_changes(model):
    bare, seen = logits(model), []
    with attach(model, {}):
        torch.testing.assert_close(logits(model), bare, **EXACT)
    with attach(model, {1: lambda layer, hidden, known: seen.append(layer)}):
        torch.testing.assert_close(logits(model), bare, **EXACT)
    assert seen == [1] and hooks(model) == 0


def test_contexts_nest_and_the_last_one_out_restores(model):
    bare, one = logits(model), Attachment(model, {1: adding()})
    with one:
        acting = logits(model)
        with one:
            torch.testing.assert_close(logits(model), acting, **EXACT)
        torch.testing.assert_close(logits(model), acting, **EXACT)
    torch.testing.assert_close(logits(model), bare, **EXACT)
    assert not torch.equal(acting, bare)
    one.attach().attach()
    torch.testing.assert_close(logits(model), acting, **EXACT)
    one.detach()
    one.detach()
    torch.testing.assert_close(logits(model), bare, **EXACT)
    with one:
        torch.testing.assert_close(logits(model), acting, **EXACT)
    assert hooks(model) == 0


def test_the_model_comes_back_when_something_fails_inside(model):
    bare = logits(model)

    def broken(layer, hidden, known):
        raise RuntimeError("in the middle of a pass")

    with pytest.raises(RuntimeError, match="in the middle of a pass"), attach(model, {0: adding()}):
        with attach(model, {1: broken}):
            model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=2)
    assert hooks(model) == 0
    torch.testing.assert_close(logits(model), bare, **EXACT)


def test_taps_act_in_the_order_in_which_they_were_attached(model):
    def doubling(layer, hidden, known):
        return 2 * hidden

    ids = torch.tensor(PROMPTS[:1])
    bare = written(model, 1, ids)
    with attach(model, {1: adding()}), attach(model, {1: doubling}):
        torch.testing.assert_close(written(model, 1, ids), 2 * (bare + VECTOR), **FLOAT32)
    with attach(model, {1: doubling}), attach(model, {1: adding()}):
        torch.testing.assert_close(written(model, 1, ids), 2 * bare + VECTOR, **FLOAT32)


# --- which column is what --------------------------------------------------------------------------------------------


def known_columns(model, run, mask=None) -> list[Columns]:
    seen: list[Columns] = []
    with attach(model, {1: lambda layer, hidden, known: seen.append(known)}, mask=mask):
        run()
    return seen


@pytest.mark.parametrize("cached", [True, False])
def test_columns_of_a_generation_by_hand(model, cached):
    """Two prompts, of 2 and 4 tokens, and two new tokens; the second of them is never fed."""
    ids, mask = padded([[5, 6], [7, 8, 9, 10]])
    prompt, step = known_columns(model, lambda: model.generate(
        ids, attention_mask=mask, max_new_tokens=2, do_sample=False, use_cache=cached))
    assert prompt.real.tolist() == [[False, False, True, True], [True] * 4]
    assert prompt.generated.tolist() == [[False] * 3 + [True]] * 2, "from the last prompt token on"
    assert [row for row, real in zip(prompt.positions.tolist(), prompt.real.tolist(), strict=True)][1] == [0, 1, 2, 3]
    assert prompt.positions[0, 2:].tolist() == [0, 1] and prompt.rows.tolist() == [0, 1]
    new = slice(-1, None)
    assert step.generated[:, new].tolist() == step.real[:, new].tolist() == [[True], [True]]
    assert step.positions[:, new].tolist() == [[2], [4]]
    assert step.real.shape[1] == (1 if cached else 5)
    if not cached:
        assert step.generated[:, :4].tolist() == prompt.generated.tolist()


def test_what_follows_the_end_of_a_row_is_not_real(model):
    """The first row ends at once; what `generate()` fills it with is padding."""
    ending = built("llama")
    first = greedy(ending, PROMPTS[0], 1, 1, lambda hidden: hidden, "all")[0][0]
    ending.generation_config.eos_token_id, ending.generation_config.pad_token_id = first, PAD
    ids, mask = padded(PROMPTS)
    seen: list[Columns] = []
    with attach(ending, {0: lambda layer, hidden, known: seen.append(known)}):
        out = ending.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    new = out[:, ids.shape[1]:]
    assert new[0].tolist() == [first, PAD, PAD, PAD]
    for step, known in enumerate(seen[1:]):
        for i in range(len(PROMPTS)):
            assert bool(known.real[i, 0]) == (first not in new[i, : step + 1].tolist()), (i, step)


def test_a_prompt_may_end_with_the_token_that_ends_rows():
    ending = built("llama")
    ending.generation_config.eos_token_id = PROMPTS[0][-1]
    known = known_columns(ending, lambda: logits(ending, torch.tensor(PROMPTS[:1])))[0]
    assert bool(known.real.all()) and known.generated[0].tolist() == [False, False, True]


def test_a_second_turn_behind_a_kept_cache_is_a_prompt_again_by_its_mask(model):
    """Nothing else tells what the user wrote from drafted tokens; without a mask it is a generation going on."""
    def turn(cache, *some):
        for fed in some:
            model(torch.tensor([fed]), past_key_values=cache, use_cache=True)

    for mask, second in ((torch.ones(1, 7), [False, False, True]), (None, [True] * 3)):
        cache, seen = DynamicCache(), list[Columns]()
        tap = {1: lambda layer, hidden, known, seen=seen: seen.append(known)}
        with torch.no_grad():
            one = attach(model, tap)
            turn(cache, PROMPTS[0], [9])
            if mask is not None:
                one.detach()
                one = attach(model, tap, mask=mask)
            turn(cache, [10, 11, 12], [13])
            one.detach()
        assert [known.generated[0].tolist() for known in seen] == [[False, False, True], [True], second, [True]]
        assert [known.positions[0].tolist() for known in seen] == [[0, 1, 2], [3], [4, 5, 6], [7]]


def test_a_prompt_in_pieces_behind_a_cache_is_one_prompt(model):
    def pieces():
        cache = DynamicCache()
        for fed in ([5, 6], [7, 8], [9], [10, 11]):
            model(torch.tensor([fed]), past_key_values=cache)

    seen = known_columns(model, pieces)
    assert [known.generated[0].tolist() for known in seen] == [[False, True], [False, True], [True], [True, True]]
    assert {known.first for known in seen} == {0}


@pytest.mark.parametrize("where", ["prompt", "generation"])
def test_assisted_decoding_says_what_the_prompts_mask_says(model, where):
    """Drafted from the prompt itself, checked several at once, and cut back where they were wrong."""
    prompt, new = [5, 6, 7, 5, 6], 8
    ids, mask = torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.long)
    options = {"attention_mask": mask, "max_new_tokens": new, "do_sample": False, "prompt_lookup_num_tokens": 3}
    wide = []
    with attach(model, {1: adding(where=where)}, mask=mask), \
            attach(model, {0: lambda layer, hidden, known: wide.append(known.real.shape[1] > 1)}, mask=mask):
        found = model.generate(ids, **options)
    assert any(wide)
    assert found[0, len(prompt):].tolist() == greedy(model, prompt, new, 1, stepping(VECTOR), where)[0]
    with attach(model, {1: adding(where=where)}), pytest.raises(ModelError, match="the cache was cut back"):
        model.generate(ids, **options)


def test_an_end_that_was_drafted_and_cut_off_ends_nothing():
    ending = built("llama")
    ending.generation_config.eos_token_id = END

    def passes():
        cache = DynamicCache()
        for fed, back in (([5, 6], 0), ([7, END, 8], 2), ([9, 10], 0), ([END, 3], 0), ([4], 0)):
            ending(torch.tensor([fed]), past_key_values=cache)
            cache.crop(-back) if back else None

    seen = known_columns(ending, passes, mask=torch.ones(1, 2))
    assert [known.real[0].tolist() for known in seen] == [
        [True, True], [True, False, False], [True, True], [False, False], [False]]


def test_a_whole_pass_behind_a_cached_generation_is_a_prompt(model):
    """Over its output, which is one column wider than what was fed; and the same again says the same."""
    ids = torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=2, do_sample=False)
        seen = known_columns(model, lambda: [model.generate(ids, max_new_tokens=2, do_sample=False), model(out),
                                             model(out)])[2:]
    assert [known.generated[0].tolist() for known in seen] == [[False] * 4 + [True]] * 2
    assert all(known.fresh is None for known in seen) and [known.first for known in seen] == [1, 2]


def test_repeated_columns_are_said_to_be_and_rows_are_numbered_on(model):
    ids, mask = padded(PROMPTS)
    seen = known_columns(model, lambda: [model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False,
                                                        use_cache=False) for _ in range(2)])
    for prompt, *rest in (seen[:3], seen[3:]):
        assert prompt.fresh is None and [known.told.sum(1).tolist() for known in rest] == [[1] * 3] * 2
        assert all(known.told[:, -1].all() and known.real[:, -2].all() for known in rest)
    assert [known.first for known in seen] == [0] * 3 + [3] * 3


@pytest.mark.parametrize("bare", [True, False])
def test_what_was_found_of_a_model_does_not_keep_it(bare):
    model = built("llama")
    asked = model.model if bare else model
    assert n_blocks(asked) == n_blocks(asked) == architectures.LAYERS
    kept = ref(asked)
    del model, asked
    gc.collect()
    assert kept() is None


def test_a_second_generation_begins_anew(model):
    ids, mask = padded(PROMPTS)
    with attach(model, {1: adding(where="generation")}):
        first, second = (model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False) for _ in range(2))
        longer = model.generate(torch.cat([ids, first[:, -3:]], 1), max_new_tokens=2, do_sample=False,
                                attention_mask=torch.cat([mask, torch.ones_like(first[:, -3:])], 1))
    assert torch.equal(first, second)
    whole = [row + new for row, new in zip(PROMPTS, first[:, -3:].tolist(), strict=True)]
    assert longer[:, -2:].tolist() == [greedy(model, row, 2, 1, stepping(VECTOR), "generation")[0] for row in whole]


def test_what_is_attached_again_has_forgotten_what_it_saw(model):
    """Uncached, one more token than before is the same generation going on; behind a new attaching it is a prompt."""
    seen: list[Columns] = []
    one, prompt = Attachment(model, {0: lambda layer, hidden, known: seen.append(known)}), PROMPTS[0]
    with one:
        logits(model, torch.tensor([prompt]))
        logits(model, torch.tensor([[*prompt, 9]]))
    with one:
        logits(model, torch.tensor([[*prompt, 9, 9]]))
    assert [known.generated[0].tolist() for known in seen] == [
        [False, False, True], [False, False, True, True], [False, False, False, False, True]]


def test_rows_that_do_not_go_on_from_those_before_are_prompts(model):
    """One token more, but another row; the same row, but two tokens more; and a cache that was filled elsewhere."""
    first = PROMPTS[0]

    def passes():
        for row in (first, [*PROMPTS[1][:3], 9], first, [*first, 9, 9]):
            logits(model, torch.tensor([row]))

    assert [known.generated[0].tolist() for known in known_columns(model, passes)] == [
        [False, False, True], [False, False, False, True], [False, False, True], [False] * 4 + [True]]
    with torch.no_grad():
        out = model(torch.tensor([first, first]), use_cache=True)

        def decoding():
            logits(model, torch.tensor([PROMPTS[1]]))
            model(torch.tensor([[9], [10]]), past_key_values=out.past_key_values)

        assert known_columns(model, decoding)[1].generated.tolist() == [[True], [True]]


@pytest.mark.parametrize("where", ["prompt", "generation"])
def test_a_prompt_that_was_fed_before_is_known_by_its_mask(model, where):
    """Prefilled by hand, continued token by token, as people write their own loops; and once without a cache."""
    prompt, new = PROMPTS[1], [11, 12, 13]
    hook = edited(model, 1, stepping(VECTOR), columns(where, len(prompt)))
    expected = logits(model, torch.tensor([prompt + new]))[0, len(prompt) - 1 :]
    hook.remove()
    found = []
    with attach(model, {1: adding(where=where)}), torch.no_grad():
        out = model(torch.tensor([prompt]), use_cache=True)
        found.append(out.logits[0, -1])
        for token in new:
            out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
            found.append(out.logits[0, -1])
    torch.testing.assert_close(torch.stack(found), expected, **INTERFACE32)
    with attach(model, {1: adding(where=where)}, mask=torch.ones(1, len(prompt))):
        torch.testing.assert_close(logits(model, torch.tensor([prompt + new]))[0, len(prompt) - 1 :], expected,
                                   **INTERFACE32)


def test_a_mask_of_other_rows_is_refused(model):
    with attach(model, {1: adding()}, mask=torch.ones(2, 3)):
        with pytest.raises(ModelError, match="a mask of 2 rows does not fit a batch of 3 rows"):
            logits(model, padded(PROMPTS)[0])
    ids, mask = padded(PROMPTS)
    known = known_columns(model, lambda: logits(model, ids), mask=mask)[0]
    assert known.real.tolist() == mask.bool().tolist(), "also where the model itself was not given it"
    known = known_columns(model, lambda: logits(model, ids))[0]
    with pytest.raises(ModelError, match="settings for 2 rows do not fit a batch of 3 rows"):
        known.row_of(2)
    assert known.row_of(3).tolist() == [0, 1, 2] and known.row_of(1).tolist() == [0, 0, 0]


def test_a_block_by_itself_is_refused(model):
    with attach(model, {1: adding()}), pytest.raises(ModelError, match="a decoder block ran outside a forward pass"):
        blocks_of(model)[1](torch.zeros(1, 2, architectures.WIDTH), position_embeddings=(torch.zeros(1, 2, 8),) * 2)


# --- adapters, narrow and quantised weights, checkpointing -----------------------------------------------------------


def steps(model, run):
    """Gradients of a step with taps on two blocks, and for each call of a tap whether it was told `again`."""
    seen: list[bool] = []

    def tap(layer, hidden, known):
        seen.append(known.again)
        return adding(VECTOR[: hidden.shape[-1]], where="generation")(layer, hidden, known)

    with attach(model.train(), {0: tap, 1: tap}):
        run(model).backward()
    return [p.grad for p in model.parameters() if p.grad is not None], seen


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_checkpointed_gradients_are_those_of_the_whole_pass(reentrant):
    """As transformers does it, inside a block or around it as its versions differ; and around it, where taps run again
    in the backward pass."""
    ids, mask = padded(PROMPTS, "right")
    plain, own = built("llama"), built("llama")
    # Newer versions of transformers have another name for it.
    (getattr(own, "activation_checkpointing_enable", None) or own.gradient_checkpointing_enable)(
        {"use_reentrant": reentrant})
    own.enable_input_require_grads()

    def loss(model):
        return model(ids, attention_mask=mask, labels=ids, use_cache=False).loss

    (expected, once), (found, seen) = steps(plain, loss), steps(own, loss)
    same_gradients(found, expected)
    assert once == [False, False] and seen.count(False) == 2

    whole, parts = Odd(2), Odd(2, reentrant=reentrant)
    parts.load_state_dict(whole.state_dict())
    (expected, once), (found, seen) = (steps(one, lambda model: model(ids % 9).square().sum())
                                       for one in (whole, parts))
    same_gradients(found, expected)
    assert once == [False, False] and seen == [False, False, True, True], "computed again, and said so"


def same_gradients(found, expected) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **GRADIENT32)


def test_two_batches_between_backward_passes_cannot_be_told_apart_under_checkpointing():
    """Their columns differ, and which of them a block is computed again for is not known. Equal ones do no harm, and
    passes without gradients neither."""
    odd, ids = Odd(2, reentrant=False).train(), torch.tensor([[1, 2, 3]])
    place = torch.arange(3)[None]
    for second, graded, certain in ((2, True, True), (1, False, True), (1, True, False)):
        losses = []
        with attach(odd, {1: adding(torch.ones(4), where="generation")}):
            for last, wanted in ((2, True), (second, graded)):
                known = Columns(place >= 0, place >= last, torch.arange(1), place)
                with declared(odd, lambda known=known: known), torch.set_grad_enabled(wanted):
                    losses.append(odd(ids).square().sum())
            if certain:
                sum(losses).backward()
            else:
                with pytest.raises(ModelError, match="it cannot be told for which batch"):
                    sum(losses).backward()


def test_an_adapter_is_tapped_where_its_base_is():
    model = adapted(built("llama"), LoraSettings(rank=2), "CAUSAL_LM", 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(0))
    with attach(model, {1: adding()}):
        found = logits(model)
    hook = edited(model, 1, stepping(VECTOR), slice(None))
    torch.testing.assert_close(found, logits(model), **EXACT)
    hook.remove()
    assert not torch.equal(found, logits(model))


class Int8(nn.Module):
    """A linear layer whose weights are bytes: it has no parameter at all."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (layer.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, hidden):
        return nn.functional.linear(hidden, self.weight.to(hidden.dtype) * self.scale.to(hidden.dtype))


def test_quantised_blocks_are_tapped_in_the_format_of_their_states():
    model = built("llama")
    for block in blocks_of(model):
        for parent in (block.self_attn, block.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Int8(child))
    assert decoder_blocks(model) is blocks_of(model)
    with attach(model, {1: adding()}):
        found = logits(model)
    hook = edited(model, 1, stepping(VECTOR), slice(None))
    torch.testing.assert_close(found, logits(model), **EXACT)
    hook.remove()


# --- keel's own passes -----------------------------------------------------------------------------------------------


def sampled(model, n_new=3, slots=2, **attached):
    """Three prompts through two slots, so that one waits and moves."""
    settings = SamplingConfig(max_new_tokens=n_new, temperature=0.0, slots=slots)
    return sample(model, PROMPTS, settings, [stream(0, "tap", i) for i in range(len(PROMPTS))], stop_ids=(999,),
                  pad_id=PAD, record_ids=[str(i) for i in range(len(PROMPTS))])


@pytest.mark.parametrize("where", ["all", "prompt", "generation"])
def test_the_sampler_says_what_its_columns_are_and_a_later_pass_agrees(model, where):
    """Every row has a vector of its own, found by its number; then one training pass over what was written."""
    table = torch.stack([VECTOR, 0 * VECTOR, -VECTOR])

    def tap(layer, hidden, known):
        rows_of = known.rows if known.rows.ndim == 2 else known.rows[:, None].expand(known.real.shape)
        chosen = {"all": known.real, "generation": known.generated, "prompt": known.real & ~known.generated}[where]
        return torch.where(chosen[..., None], hidden + table[rows_of], hidden)

    with attach(model, {1: tap}), torch.no_grad():
        rollout = sampled(model)
        again = token_logprobs(model, rollout.tokens)[0]
    for i, prompt in enumerate(PROMPTS):
        expected = greedy(model, prompt, 3, 1, stepping(table[i]), where)[0]
        assert rollout.tokens.ids[i][rollout.tokens.response_mask[i]].tolist() == expected, i
    assert float((again - rollout.logprobs).abs().max()) < LOG_RATIO
    bare = token_logprobs(model, rollout.tokens)[0].detach()
    assert float((bare - rollout.logprobs).abs().max()) > LOG_RATIO


def test_joined_rows_are_tapped_like_rows_by_themselves(model):
    """Two responses to one prompt: its tokens are computed once for both."""
    some = [Row(PROMPTS[1] + [4, 5], 7, "a"), Row(PROMPTS[1] + [6], 7, "b"), Row(PROMPTS[2] + [7, 8, 9], 5, "c")]
    batch = collate(some, PAD)
    joined = join(batch, [0, 0, 2])
    own = built("llama")
    use_quick_attention(own)
    for where in ("all", "generation"):
        with attach(own, {1: adding(where=where)}), torch.no_grad():
            found, expected = (hidden_states(own, each)[batch.attention_mask] for each in (joined, batch))
        torch.testing.assert_close(found, expected, **INTERFACE32)
    known = known_columns(own, lambda: hidden_states(own, joined))[0]
    rows_of = known.rows[0][joined.joined.places]
    prompt = 7
    assert rows_of[1][:prompt].tolist() == [0] * prompt, "computed once, with the first of the two"
    assert rows_of[1, prompt] == 1 and set(rows_of[2][batch.attention_mask[2]].tolist()) == {2}
    assert known.generated[0][joined.joined.places][batch.attention_mask].tolist() == (
        columns_of(batch).generated[batch.attention_mask].tolist())


def test_whoever_runs_a_pass_may_say_what_its_columns_are(model):
    ids = torch.tensor(PROMPTS[:1])
    real = torch.tensor([[True, False, True]])
    told = Columns(real, torch.zeros_like(real), torch.tensor([5]), torch.tensor([[0, 0, 1]]), named=True)
    seen = known_columns(model, lambda: None)
    with attach(model, {1: lambda layer, hidden, known: seen.append(known)}):
        with declared(model, lambda: told):
            logits(model, ids)
        logits(model, ids)
    assert seen[0].rows.tolist() == [5] and seen[0].real.tolist() == real.tolist()
    assert seen[1].rows.tolist() == [0] and seen[1].real.all()


@pytest.mark.parametrize("other", ["cpu", pytest.param("cuda:0", marks=[pytest.mark.gpu, NEEDS_CUDA])])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_in_parts_is_tapped_where_each_part_is(name, other):
    """Some blocks on the processor and the rest on another device, moved between by accelerate, against the whole."""
    model, ids = built(name), torch.tensor(PROMPTS[1:2])
    with attach(model, {0: adding(), 2: adding(where="generation")}):
        expected, whole = model.generate(ids, max_new_tokens=3, do_sample=False), logits(model, ids)
    names = {module: name for name, module in model.named_modules()}
    blocks = {names[block]: "cpu" if i == 1 else other for i, block in enumerate(blocks_of(model))}
    rest = {name: other for module, name in names.items() if name and not list(module.children())
            and not name.startswith(tuple(blocks))}
    parts = dispatch_model(model, device_map=rest | blocks, main_device=other, force_hooks=True)
    assert all(hasattr(block, "_hf_hook") for block in blocks_of(parts))
    with attach(parts, {0: adding(), 2: adding(where="generation")}):
        assert parts.generate(ids, max_new_tokens=3, do_sample=False).tolist() == expected.tolist()
        torch.testing.assert_close(logits(parts, ids).cpu(), whole, **INTERFACE32)
