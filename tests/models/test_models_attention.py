import pytest
import tiny
import tolerances as tol
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from keel.models import attention
from keel.models.load import ModelConfig, causal_lm


class Module(torch.nn.Module):
    is_causal = True
    num_key_value_groups = 2


def tensors(n_queries, n_keys, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, n_queries, 8, generator=generator)
    key, value = torch.randn(2, 3, 2, n_keys, 8, generator=generator)
    return query, key, value.to(dtype)


def test_one_query_a_row_equals_the_librarys_attention_under_any_mask():
    query, key, value = tensors(1, 7)
    seen = torch.ones(3, 1, 1, 7, dtype=torch.bool)
    seen[0, ..., 4:] = seen[1, ..., :2] = False
    for mask in (None, seen, torch.zeros(3, 1, 1, 7).masked_fill(~seen, -1e9)):
        ours = attention._attention(Module(), query, key, value, mask, scaling=0.3)[0]
        theirs = sdpa_attention_forward(Module(), query, key, value, mask, scaling=0.3)[0]
        torch.testing.assert_close(ours, theirs, **tol.FLOAT32)


def test_short_causal_rows_in_bfloat16_are_at_least_as_exact_as_the_librarys():
    query, key, value = tensors(9, 9, torch.bfloat16)
    exact = sdpa_attention_forward(Module(), query, key, value.float(), None)[0]
    ours = attention._attention(Module(), query, key, value, None)[0].float()
    theirs = sdpa_attention_forward(Module(), query.bfloat16(), key.bfloat16(), value, None)[0].float()
    assert (ours - exact).abs().mean() <= (theirs - exact).abs().mean()


def test_it_is_asked_for_and_leaves_no_trace_in_the_config(tmp_path, monkeypatch):
    model = causal_lm(ModelConfig(path=str(tiny.llama(tmp_path)), autocast=True))
    shapes, real = [], attention._by_products
    monkeypatch.setattr(attention, "_by_products", lambda *a: shapes.append(a[0].shape) or real(*a))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.model(input_ids=torch.tensor([[1, 4, 8, 9]]), use_cache=False)
    assert len(shapes) == 2 and attention.NAME not in model.config.to_json_string()


@pytest.mark.parametrize("said", [{"dropout": 0.1}, {"position_bias": torch.zeros(1, 4, 1, 7)}])
def test_what_it_does_not_know_goes_to_the_library(said, monkeypatch):
    monkeypatch.setattr(attention, "_by_products", lambda *a: pytest.fail("not ours to do"))
    attention._attention(Module(), *tensors(1, 7), None, **said)
