import pytest
import tiny
import tolerances as tol
import torch

from keel.batches import TokenBatch
from keel.errors import ModelError
from keel.models import forward
from keel.models.forward import (
    hidden_states,
    position_ids,
    response_scores,
    token_kl,
    token_logprobs,
    token_values,
)
from keel.models.load import LoraSettings, ModelConfig, causal_lm, frozen_copy, save_model, scalar_model, share_trunk
from keel.models.shared import SharedTrunk


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


def next_token_tables(model, tokens, temperature=1.0):
    """The token and its table of log-probabilities, [V], for every response token: row by row without any padding,
    through transformers' own logits, in a plain loop."""
    for ids, real, response in zip(tokens.ids, tokens.attention_mask, tokens.response_mask, strict=True):
        row, wanted = ids[real], response[real]
        logits = model(input_ids=row[None]).logits[0].double() / temperature
        for t in range(1, len(row)):
            if wanted[t]:
                yield row[t], logits[t - 1].log_softmax(-1)


def full_logprobs(model, tokens, temperature=1.0):
    return torch.stack([table[token] for token, table in next_token_tables(model, tokens, temperature)])


def full_entropy(model, tokens, temperature=1.0):
    return torch.stack([-(table.exp() * table).sum() for _, table in next_token_tables(model, tokens, temperature)])


def full_kl(model, reference, tokens, temperature=1.0):
    pairs = zip(next_token_tables(model, tokens, temperature), next_token_tables(reference, tokens, temperature),
                strict=True)
    return torch.stack([(p.exp() * (p - q.detach())).sum() for (_, p), (_, q) in pairs])


def gradients(model, loss):
    """By every parameter, zero where the loss does not depend on it."""
    model.zero_grad()
    loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


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


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
@pytest.mark.parametrize("elements", [1, 40, 1 << 22])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_has_the_gradient_of_the_full_logits_in_any_chunks(tmp_path, monkeypatch, make, elements, temperature):
    """Alone, together with log-probabilities, and not at all where only log-probabilities are in the loss."""
    monkeypatch.setattr(forward, "CHUNK_ELEMENTS", elements)
    model, tokens = causal_lm(ModelConfig(path=str(make(tmp_path)))), batch()
    weights = torch.linspace(-1, 2, tokens.n_response_tokens)
    for share, other in ((1.0, 0.0), (0.3, 1.0), (0.0, 1.0)):
        logprobs, entropy = token_logprobs(model, tokens, temperature=temperature, with_entropy=True)
        parts = [(share, flat(entropy, tokens) * weights), (other, flat(logprobs, tokens) * weights.flip(0))]
        found = gradients(model, sum(part * x.sum() for part, x in parts if part))
        whole = (share * full_entropy(model, tokens, temperature) * weights
                 + other * full_logprobs(model, tokens, temperature) * weights.flip(0))
        torch.testing.assert_close(found, gradients(model, whole.sum()), **tol.GRADIENT32)


def test_entropy_gradient_of_a_head_with_bias(folder, tmp_path):
    model = causal_lm(ModelConfig(path=str(tiny.llama(tmp_path, tied=False))))
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 23))
    tokens = batch()
    found = gradients(model, token_logprobs(model, tokens, with_entropy=True)[1].sum())
    assert found["lm_head.bias"].any()
    torch.testing.assert_close(found, gradients(model, full_entropy(model, tokens).sum()), **tol.GRADIENT32)


def another(folder, tmp_path, make=tiny.llama, **changes):
    """A reference with weights of its own."""
    return causal_lm(ModelConfig(path=str(make(tmp_path / "reference", seed=5, **changes))))


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_kl_equals_the_unpadded_models(tmp_path, make, side, temperature):
    model, tokens = causal_lm(ModelConfig(path=str(make(tmp_path / "model")))), batch(side=side, extra=3)
    reference = another(None, tmp_path, make)
    kl = token_kl(model, reference, tokens, temperature=temperature)
    assert kl.dtype == torch.float32 and kl.shape == tokens.ids.shape and not kl[~tokens.response_mask].any()
    exact = full_kl(model, reference, tokens, temperature)
    assert exact.min() > 0
    torch.testing.assert_close(flat(kl, tokens).double(), exact, **tol.FLOAT32)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
@pytest.mark.parametrize("elements", [1, 40, 1 << 22])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient_of_token_kl_equals_that_of_the_full_logits(tmp_path, monkeypatch, make, elements, temperature):
    monkeypatch.setattr(forward, "CHUNK_ELEMENTS", elements)
    model, reference = causal_lm(ModelConfig(path=str(make(tmp_path / "model")))), another(None, tmp_path, make)
    tokens = batch()
    weights = torch.linspace(-1, 2, tokens.n_response_tokens)
    kl = token_kl(model, reference, tokens, temperature=temperature)
    found = gradients(model, (flat(kl, tokens) * weights).sum())
    assert all(p.requires_grad and p.grad is None for p in reference.parameters())
    exact = gradients(model, (full_kl(model, reference, tokens, temperature) * weights).sum())
    torch.testing.assert_close(found, exact, **tol.GRADIENT32)


def test_token_kl_knows_biases_untied_heads_and_logit_scales(folder, tmp_path):
    model = causal_lm(ModelConfig(path=str(tiny.llama(tmp_path / "model", tied=False))))
    reference = another(folder, tmp_path)
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 23))
    reference.lm_head.bias = torch.nn.Parameter(torch.linspace(2, -1, 23))
    tokens = batch()
    found = gradients(model, token_kl(model, reference, tokens).sum())
    torch.testing.assert_close(found, gradients(model, full_kl(model, reference, tokens).sum()), **tol.GRADIENT32)
    cooled = token_kl(model, reference, tokens, temperature=0.25)
    model.config.logit_scale = reference.config.logit_scale = 4.0
    torch.testing.assert_close(token_kl(model, reference, tokens), cooled)
    reference.config.logit_scale = 1.0  # each model has its own
    assert not torch.allclose(token_kl(model, reference, tokens), cooled)


def test_token_kl_of_a_model_with_its_copy_is_zero_and_flat(folder):
    model, tokens = causal_lm(ModelConfig(path=str(folder))), batch()
    kl = token_kl(model, frozen_copy(model), tokens)
    torch.testing.assert_close(kl, torch.zeros_like(kl), **tol.FLOAT32)
    found = gradients(model, kl.sum())
    torch.testing.assert_close(found, {name: torch.zeros_like(g) for name, g in found.items()}, **tol.GRADIENT32)


def test_token_kl_of_adapters_on_a_shared_trunk(folder):
    """The reference is the policy's own trunk with its adapter off: zero at first, then the drift of the adapter."""
    shared = SharedTrunk(ModelConfig(path=str(folder), lora=LoraSettings(rank=2)), seed=0, with_critic=False)
    plain, tokens = causal_lm(ModelConfig(path=str(folder))), batch()
    torch.testing.assert_close(token_kl(shared.policy, shared.reference, tokens), torch.zeros(3, 9), **tol.FLOAT32)
    with torch.no_grad():
        for name, p in shared.policy.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    kl = token_kl(shared.policy, shared.reference, tokens)
    exact = full_kl(shared.policy.merged(), plain, tokens)
    torch.testing.assert_close(flat(kl, tokens).double(), exact, **tol.GRADIENT32)
    kl.sum().backward()
    assert all(p.grad is not None for p in shared.policy.parameters())


def test_token_kl_holds_one_chunk_of_logits_and_no_response_costs_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(forward, "CHUNK_ELEMENTS", 23 * 2)
    made, states, kept, tokens = [], [], [], batch()
    logits, hidden = forward._logits, forward.hidden_states
    monkeypatch.setattr(forward, "_logits", lambda *a: made.append(logits(*a)) or made[-1])
    monkeypatch.setattr(forward, "hidden_states", lambda *a: states.append(hidden(*a)) or states[-1])
    model, reference = causal_lm(ModelConfig(path=str(folder))), another(folder, tmp_path)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        kl = token_kl(model, reference, tokens)
    kl.sum().backward()
    assert max(len(part) for part in made) == 2
    assert sum(len(part) for part in made) == 4 * tokens.n_response_tokens  # two models, forward and backward
    # The reference leaves nothing behind that a backward pass could need.
    assert [x.requires_grad for x in states] == [False, True]
    assert [part.requires_grad for part in made] == [False, True] * (len(made) // 2)
    assert not [shape for shape in kept if shape in ((2, 23), (1, 23))]  # nothing of a chunk waits for backward
    silent = TokenBatch(tokens.ids, tokens.attention_mask, torch.zeros_like(tokens.response_mask), tokens.record_ids)
    assert not token_kl(model, reference, silent).any()


def test_token_kl_stays_float32_under_autocast(folder, tmp_path):
    tokens, reference = batch(), another(folder, tmp_path)
    exact = token_kl(causal_lm(ModelConfig(path=str(folder))), reference, tokens)
    rough = token_kl(causal_lm(ModelConfig(path=str(folder), autocast=True)), reference, tokens)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, **tol.BFLOAT16)


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
