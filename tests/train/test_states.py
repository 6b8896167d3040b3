"""States of prompts are those of plain transformers on the prompt alone; values do not depend on batches."""

import pytest
import tiny
import tolerances as tol
import torch

from keel.data.render import Row
from keel.errors import DataError, ModelError, NumericsError
from keel.models.load import ModelConfig, causal_lm, scalar_model
from keel.models.value_head import ValueHead, padded
from keel.train.frozen import FrozenNumbers, row_digest
from keel.train.states import prompt_rows, prompt_states, state_batches, value_numbers


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: str(make(tmp_path_factory.mktemp(name))) for name, make in
            {"llama": tiny.llama, "gpt2": tiny.gpt2, "bert": tiny.bert}.items()}


@pytest.fixture(scope="module")
def model(folders):
    return causal_lm(ModelConfig(path=folders["llama"])).eval()


def rows(n=9, response=2):
    draw = torch.Generator().manual_seed(3)
    return [Row(torch.randint(4, 23, (1 + i + response,), generator=draw).tolist(), 1 + i, f"r{i}") for i in range(n)]


def head(**how):
    return ValueHead(**{"width": 16, "heads": 4, "low": -1.0, "high": 3.0} | how)


def values(model, made, several, *, pad_id=0, micro_tokens=50):
    """Of every row's prompt; those of one prompt come once, at the first of them."""
    found = {}
    for part, numbers in value_numbers(model, made, several, pad_id=pad_id, micro_tokens=micro_tokens)(lambda _: False):
        found |= {tuple(several[i].ids[: several[i].n_prompt]): one for i, (one,) in zip(part, numbers, strict=True)}
    return torch.tensor([found[tuple(row.ids[: row.n_prompt])] for row in several])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("micro_tokens", [1, 20, 1000])
def test_states_are_those_of_the_prompt_alone(folders, kind, micro_tokens):
    from transformers import AutoModel

    found = prompt_states(causal_lm(ModelConfig(path=folders[kind])).eval(), rows(), pad_id=0,
                          micro_tokens=micro_tokens)
    plain = AutoModel.from_pretrained(folders[kind]).eval()
    for row, mine in zip(rows(), found, strict=True):
        with torch.no_grad():
            truth = plain(input_ids=torch.tensor([row.ids[: row.n_prompt]])).last_hidden_state[0]
        assert mine.dtype == torch.float32 and not mine.requires_grad
        torch.testing.assert_close(mine, truth, **tol.FLOAT32)


def test_the_response_and_the_padding_token_are_not_looked_at(model):
    found = values(model, head(), rows(), micro_tokens=30)
    other = [Row([*row.ids[: row.n_prompt], 5], row.n_prompt, row.record_id) for row in rows()]
    assert torch.equal(values(model, head(), other, pad_id=7, micro_tokens=30), found)


@pytest.mark.parametrize("micro_tokens", [1, 20, 1000])
def test_values_do_not_depend_on_how_prompts_are_batched_or_ordered(model, micro_tokens):
    made = head(dropout=0.5).train()
    expected = torch.cat([made.of([one]) for one in prompt_states(model, rows(), pad_id=0, micro_tokens=50)])
    assert len(set(expected.tolist())) == len(rows())
    for order in (list(range(9)), [4, 0, 8, 2, 1, 7, 3, 6, 5]):
        found = values(model, made, [rows()[i] for i in order], pad_id=0, micro_tokens=micro_tokens)
        torch.testing.assert_close(found, expected[order], **tol.FLOAT32)
    assert made.training


def test_a_prompt_of_several_rows_is_computed_once(model):
    several = [*rows(3), *(Row([*row.ids, 9], row.n_prompt, "again") for row in rows(3)), *rows(4)]
    parts = [part for part, _ in state_batches(model, several, pad_id=0, micro_tokens=5)]
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 9]
    found = values(model, head(), several, pad_id=0, micro_tokens=5)
    assert torch.equal(found[:3], found[3:6]) and torch.equal(found[:3], found[6:9])
    held = prompt_states(model, several, pad_id=0, micro_tokens=5)
    assert held[0] is held[3] and held[2] is held[8] and [len(one) for one in held] == [1, 2, 3, 1, 2, 3, 1, 2, 3, 4]


def test_batches_that_are_skipped_leave_the_others_as_they_are(model):
    everything = list(state_batches(model, rows(), pad_id=0, micro_tokens=12))
    assert len(everything) > 3
    some = list(state_batches(model, rows(), pad_id=0, micro_tokens=12, skip=lambda part: 3 in part))
    expected = [batch for batch in everything if 3 not in batch[0]]
    assert [part for part, _ in some] == [part for part, _ in expected] and len(some) == len(everything) - 1
    for (_, mine), (_, theirs) in zip(some, expected, strict=True):
        assert all(map(torch.equal, mine, theirs))


def test_gradient_reaches_the_head_alone(model):
    made = head()
    made(*padded(prompt_states(model, rows(), pad_id=0, micro_tokens=50), torch.device("cpu"))).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in made.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_in_bfloat16_gives_states_in_float32(folders):
    lower = causal_lm(ModelConfig(path=folders["llama"], dtype="bfloat16")).eval()
    assert {one.dtype for one in prompt_states(lower, rows(), pad_id=0, micro_tokens=50)} == {torch.float32}


def test_only_causal_language_models_have_states_of_prompts(folders):
    encoder = scalar_model(ModelConfig(path=folders["bert"]))
    with pytest.raises(ModelError, match="a bert model gives no value estimate"):
        prompt_states(encoder, rows(), pad_id=0, micro_tokens=50)
    from transformers import T5Config, T5ForConditionalGeneration

    both = T5ForConditionalGeneration(T5Config(vocab_size=23, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2))
    with pytest.raises(ModelError, match="a t5 model gives no value estimate"):
        prompt_states(both, rows(), pad_id=0, micro_tokens=50)


def test_a_prompt_without_tokens_is_refused_by_its_record(model):
    with pytest.raises(DataError, match="records empty: 1 prompts have no tokens, so there is nothing to estimate"):
        values(model, head(), [*rows(2), Row([5, 6], 0, "empty")], micro_tokens=50)


def test_a_head_for_another_model_is_refused(model):
    with pytest.raises(ModelError, match="the value head reads states of width 8, and the model's have 16"):
        values(model, head(width=8), rows(), pad_id=0, micro_tokens=50)


def test_a_value_that_is_not_finite_names_its_record(folders):
    broken = causal_lm(ModelConfig(path=folders["llama"], lora={})).eval()
    with torch.no_grad():
        broken.get_input_embeddings().weight[rows()[4].ids[0]] = torch.nan
    hit = ", ".join(row.record_id for row in reversed(rows()) if rows()[4].ids[0] in row.ids[: row.n_prompt])
    with pytest.raises(NumericsError, match=f"records {hit}: the value estimate of .* prompts is not finite"):
        values(broken, head(), rows(), pad_id=0, micro_tokens=1000)


def test_values_go_through_the_cache_of_frozen_numbers(model, tmp_path):
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, 23, (1 + i,), generator=draw).tolist() for i in range(6)]
    rows = [Row([*prompt, 9 + j], len(prompt), f"r{i}/{j}") for j in range(2) for i, prompt in enumerate(prompts)]
    made = head(dropout=0.5).train()
    names, ids = [row_digest(row) for row in prompt_rows(rows)], [row.record_id for row in rows]
    cache, computed = FrozenNumbers(tmp_path / "cache", {"head": 1}), []

    def compute(skip):
        for part, numbers in value_numbers(model, made, rows, pad_id=0, micro_tokens=8)(skip):
            computed.extend(part)
            yield part, numbers

    found, _ = cache.fill(names, compute, ids)
    assert sorted(computed) == list(range(6))
    expected = values(model, made, rows, pad_id=0, micro_tokens=8)
    assert torch.equal(torch.tensor([float(one[0]) for one in found]), expected) and len(set(expected.tolist())) == 6
    again, missing = cache.fill(names, compute, ids)
    assert missing == 0 and len(computed) == 6 and again == found
