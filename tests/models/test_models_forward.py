import pytest
import tiny
import tolerances as tol
import torch

from keel.batches import TokenBatch
from keel.errors import ModelError
from keel.models import forward
from keel.models.forward import hidden_states, position_ids, response_scores, token_logprobs, token_values
from keel.models.load import LoraSettings, ModelConfig, causal_lm, frozen_copy, save_model, scalar_model, share_trunk


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("llama"))


def batch(lengths=((3, 4), (5, 2), (2, 7)), side="right", extra=0, pad=0):
    """Rows of prompt + response tokens, padded on either side, with junk ids under the padding."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(4, 23, (p + r,), generator=generator) for p, r in lengths]
    width = max(len(row) for row in rows) + extra
    ids = torch.full((len(rows), width), pad)
    real, response = torch.zeros(2, len(rows), width, dtype=torch.bool)
    for i, (row, (p, _)) in enumerate(zip(rows, lengths, strict=True)):
        start = width - len(row) if side == "left" else 0
        ids[i, start : start + len(row)] = row
        real[i, start : start + len(row)] = True
        response[i, start + p : start + len(row)] = True
    return TokenBatch(ids, real, response, tuple(f"r{i}" for i in range(len(rows))))


def flat(x, tokens):
    return x[tokens.response_mask]


def full_logprobs(model, tokens, temperature=1.0):
    """Row by row without any padding, through transformers' own logits, in a plain loop."""
    out = []
    for ids, real, response in zip(tokens.ids, tokens.attention_mask, tokens.response_mask, strict=True):
        row, wanted = ids[real], response[real]
        logits = model(input_ids=row[None]).logits[0].double() / temperature
        table = logits.log_softmax(-1)
        out += [table[t - 1, row[t]] for t in range(1, len(row)) if wanted[t]]
    return torch.stack(out)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("extra", [0, 5])
def test_logprobs_equal_the_unpadded_model(tmp_path, make, side, extra):
    model = causal_lm(ModelConfig(path=str(make(tmp_path))))
    tokens = batch(side=side, extra=extra)
    found, entropy = token_logprobs(model, tokens, with_entropy=True)
    torch.testing.assert_close(flat(found, tokens).double(), full_logprobs(model, tokens), **tol.FLOAT32)
    assert not found[~tokens.response_mask].any() and not entropy[~tokens.response_mask].any()


def test_temperature_divides_the_logits(folder):
    model, tokens = causal_lm(ModelConfig(path=str(folder))), batch()
    found, _ = token_logprobs(model, tokens, temperature=0.5)
    torch.testing.assert_close(flat(found, tokens).double(), full_logprobs(model, tokens, 0.5), **tol.FLOAT32)


def test_entropy_is_that_of_the_next_token_distribution(folder):
    model, tokens = causal_lm(ModelConfig(path=str(folder))), batch(((2, 3),))
    table = model(input_ids=tokens.ids).logits[0, 1:4].double().log_softmax(-1)
    found = token_logprobs(model, tokens, with_entropy=True)[1]
    torch.testing.assert_close(flat(found, tokens).double(), -(table.exp() * table).sum(-1), **tol.FLOAT32)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
@pytest.mark.parametrize("elements", [1, 40, 1 << 22])
def test_gradient_equals_that_of_the_full_logits_in_any_chunks(tmp_path, monkeypatch, make, elements):
    monkeypatch.setattr(forward, "CHUNK_ELEMENTS", elements)
    model, tokens = causal_lm(ModelConfig(path=str(make(tmp_path)))), batch()
    weights = torch.linspace(-1, 2, tokens.n_response_tokens)
    (flat(token_logprobs(model, tokens)[0], tokens) * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    (full_logprobs(model, tokens) * weights).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, **tol.GRADIENT32)


def test_head_with_bias_and_untied_weights(folder, tmp_path):
    model = causal_lm(ModelConfig(path=str(tiny.llama(tmp_path, tied=False))))
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 23))
    tokens = batch()
    flat(token_logprobs(model, tokens)[0], tokens).sum().backward()
    found = model.lm_head.bias.grad.clone(), model.lm_head.weight.grad.clone()
    model.zero_grad()
    full_logprobs(model, tokens).sum().backward()
    torch.testing.assert_close(found[0], model.lm_head.bias.grad, **tol.GRADIENT32)
    torch.testing.assert_close(found[1], model.lm_head.weight.grad, **tol.GRADIENT32)


def test_no_tensor_of_batch_length_vocabulary_is_made(folder, monkeypatch):
    """The largest logits ever held are one chunk, in forward and in backward."""
    monkeypatch.setattr(forward, "CHUNK_ELEMENTS", 23 * 2)
    sizes, real = [], forward._logits
    monkeypatch.setattr(forward, "_logits", lambda *a: sizes.append((out := real(*a)).shape) or out)
    model, tokens = causal_lm(ModelConfig(path=str(folder))), batch()
    token_logprobs(model, tokens)[0].sum().backward()
    assert max(rows for rows, _ in sizes) == 2
    assert sum(rows for rows, _ in sizes) == 2 * tokens.n_response_tokens  # response positions only, twice


def test_logit_scale_of_the_architecture_is_used(folder):
    model, tokens = causal_lm(ModelConfig(path=str(folder))), batch()
    plain = token_logprobs(model, tokens, temperature=0.25)[0]
    model.config.logit_scale = 4.0
    torch.testing.assert_close(token_logprobs(model, tokens)[0], plain)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ModelError, match="caps its logits"):
        token_logprobs(model, tokens)


def test_position_ids_count_real_tokens():
    mask = torch.tensor([[False, False, True, True], [True, True, True, False]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_scores_and_values_do_not_depend_on_padding(tmp_path, make):
    model = scalar_model(ModelConfig(path=str(make(tmp_path))), seed=1)
    scores = response_scores(model, batch())
    for side in ("left", "right"):
        for extra in (0, 3):
            tokens = batch(side=side, extra=extra)
            torch.testing.assert_close(response_scores(model, tokens), scores, **tol.FLOAT32)
            torch.testing.assert_close(
                flat(token_values(model, tokens), tokens), flat(token_values(model, batch()), batch()), **tol.FLOAT32
            )


def test_pad_equal_to_eos_changes_no_score(folder):
    model = scalar_model(ModelConfig(path=str(folder)), seed=1)
    ended = batch(((3, 4), (2, 2)))
    ended.ids[0, 6] = ended.ids[1, 3] = 2  # both rows end in eos
    alike = TokenBatch(
        torch.where(ended.attention_mask, ended.ids, 2), ended.attention_mask, ended.response_mask, ("a", "b")
    )
    torch.testing.assert_close(response_scores(model, ended), response_scores(model, alike))


def test_value_is_read_just_before_its_token(folder):
    """values[b, t] must not change when token t and all after it do."""
    model, tokens = scalar_model(ModelConfig(path=str(folder)), seed=1), batch(((3, 4),))
    before = token_values(model, tokens)
    tokens.ids[0, 4:] = torch.tensor([9, 9, 9])
    after = token_values(model, tokens)
    torch.testing.assert_close(before[0, 3:5], after[0, 3:5])
    assert (before[0, 5:] != after[0, 5:]).all()


def test_row_scores_ignore_other_rows(folder):
    model = scalar_model(ModelConfig(path=str(folder)), seed=1)
    alone = [response_scores(model, batch(((p, r),)))[0] for p, r in ((3, 4),)]
    torch.testing.assert_close(response_scores(model, batch())[:1], torch.stack(alone), **tol.FLOAT32)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.bert])
def test_saved_reward_model_gives_equal_scores_in_plain_transformers(tmp_path, make):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = make(tmp_path / "in")
    model, tokens = scalar_model(ModelConfig(path=str(source)), seed=1), batch()
    save_model(model, AutoTokenizer.from_pretrained(source), tmp_path / "out", pad_id=0)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert plain.config.num_labels == 1
    with torch.no_grad():
        found = plain.eval()(input_ids=tokens.ids, attention_mask=tokens.attention_mask.long()).logits[:, 0]
    torch.testing.assert_close(found, response_scores(model, tokens).detach(), **tol.FLOAT32)
    again = scalar_model(ModelConfig(path=str(tmp_path / "out")), seed=99)  # the head is loaded, not drawn anew
    torch.testing.assert_close(response_scores(again, tokens), response_scores(model, tokens))


def test_new_head_comes_from_the_seed(folder):
    one, two, other = (scalar_model(ModelConfig(path=str(folder)), seed=s).score.weight for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_encoder_cannot_be_a_critic(tmp_path):
    with pytest.raises(ModelError, match="an encoder cannot be a critic"):
        token_values(scalar_model(ModelConfig(path=str(tiny.bert(tmp_path)))), batch())


def test_lora_trains_adapters_only_and_saves_a_merged_model(folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokens = causal_lm(ModelConfig(path=str(folder), lora=LoraSettings(rank=2))), batch()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora" in name for name in trained)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    save_model(model, AutoTokenizer.from_pretrained(folder), tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(
        full_logprobs(plain, tokens).float(), flat(token_logprobs(model, tokens)[0], tokens), **tol.FLOAT32
    )
    assert (tmp_path / "out/adapter/adapter_config.json").exists()
    base = causal_lm(ModelConfig(path=str(folder)))
    assert not torch.allclose(token_logprobs(base, tokens)[0], token_logprobs(model, tokens)[0])


def test_frozen_copy_stays_when_the_original_learns(folder):
    model, tokens = causal_lm(ModelConfig(path=str(folder))), batch()
    copy = frozen_copy(model)
    before = token_logprobs(copy, tokens)[0]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    assert torch.equal(token_logprobs(copy, tokens)[0], before) and not any(p.requires_grad for p in copy.parameters())


def test_shared_trunk_for_the_lm_term_is_one_set_of_weights(folder):
    scorer = scalar_model(ModelConfig(path=str(folder)), seed=1)
    writer = share_trunk(causal_lm(ModelConfig(path=str(folder))), scorer)
    tokens = batch()
    token_logprobs(writer, tokens)[0].sum().backward()
    assert scorer.model.embed_tokens.weight.grad is not None
    assert writer.lm_head.weight is scorer.model.embed_tokens.weight


def test_autocast_stays_close_and_logprobs_stay_float32(folder):
    tokens = batch()
    exact = token_logprobs(causal_lm(ModelConfig(path=str(folder))), tokens)[0]
    rough = token_logprobs(causal_lm(ModelConfig(path=str(folder), autocast=True)), tokens)[0]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, **tol.BFLOAT16)
    assert not torch.equal(rough, exact)


def test_hidden_states_of_right_padded_rows_need_no_mask(folder):
    model, tokens = causal_lm(ModelConfig(path=str(folder))), batch()
    masked = model.model(input_ids=tokens.ids, attention_mask=tokens.attention_mask.long()).last_hidden_state
    torch.testing.assert_close(
        hidden_states(model, tokens)[tokens.attention_mask], masked[tokens.attention_mask], **tol.FLOAT32
    )
