import pytest
import tiny
import tolerances as tol
import torch
from transformers import AutoModelForSequenceClassification

from keel.batches import TokenBatch
from keel.data.collate import collate, collate_pairs, join, pair_batches
from keel.data.records import PreferencePair, Prompt
from keel.data.render import PairRow
from keel.errors import ModelError
from keel.models.attention import can_join
from keel.models.forward import hidden_states, token_logprobs
from keel.models.load import LoraSettings, ModelConfig, causal_lm, scalar_model
from keel.models.pairs import head_scores, joining, pair_features, pair_scores


def qwen2(folder):
    """Llama's kin with biases on the queries, keys and values."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    words = tiny.tokenizer()
    config = Qwen2Config(vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, bos_token_id=1,
                         eos_token_id=2, pad_token_id=0)
    return tiny._saved(Qwen2ForCausalLM(config), words, folder, 0, 0.3, torch)


MAKES = {"llama": tiny.llama, "gpt2": tiny.gpt2, "qwen2": qwen2, "bert": tiny.bert}
CAUSAL = ["llama", "gpt2", "qwen2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: str(make(tmp_path_factory.mktemp(name))) for name, make in MAKES.items()}


def row(prompt, chosen, rejected, name="p"):
    return PairRow(prompt, chosen, rejected, PreferencePair(Prompt(name, ()), "a", "b"))


def ragged():
    """Prompts of all lengths; responses that begin alike, that are the other's beginning, and of one token."""
    draw = torch.Generator().manual_seed(0)
    sizes = [(9, 4, 7), (1, 8, 2), (6, 1, 5), (20, 2, 3)]
    rows = [row(*(torch.randint(4, 23, (n,), generator=draw).tolist() for n in size), f"p{i}")
            for i, size in enumerate(sizes)]
    return [*rows, row([4, 5, 6], [7, 8, 9, 2], [7, 8, 2], "p4"), row([4, 5], [6, 7, 8], [6, 7], "p5")]


def batches(rows, shared_prompt, micro_tokens=10_000):
    return pair_batches(rows, micro_tokens=micro_tokens, pad_id=0, shared_prompt=shared_prompt)


def scores(model, rows, shared_prompt, micro_tokens=10_000):
    """By record id; each pair must come once."""
    found = {}
    for part in batches(rows, shared_prompt, micro_tokens):
        chosen, rejected = pair_scores(model, part)
        found |= dict(zip(part.tokens.record_ids, torch.stack([chosen, rejected], 1), strict=False))
    assert sorted(found) == sorted(row.record_id for row in rows)
    return torch.stack([found[row.record_id] for row in rows])


def gradients(model, rows, shared_prompt, micro_tokens=10_000):
    model.zero_grad()
    gaps = scores(model, rows, shared_prompt, micro_tokens) @ torch.tensor([1.0, -0.7])
    (gaps * torch.linspace(-1, 2, len(rows))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_joined_batch_by_hand():
    """The last row ends inside what it shares, and the shared part goes on for one token after the prompt."""
    rows = [row([1, 4], [5, 6, 2], [5, 2]), row([1, 7, 8], [2], [9, 2])]
    tokens = collate_pairs(rows, 0).tokens
    found = join(tokens, [0, 1, 0, 1])
    assert found.joined.ids.tolist() == [1, 4, 5, 6, 2, 1, 7, 8, 2, 2, 9, 2]
    assert found.joined.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 3, 3, 4]
    assert found.joined.places.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 0], [0, 1, 2, 9, 0], [5, 6, 7, 10, 11]]
    assert found.joined.sources.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 18, 19]
    assert found.n_positions == 12 and tokens.n_positions == 20
    assert torch.equal(found.ids, tokens.ids) and torch.equal(found.response_mask, tokens.response_mask)


def test_padding_that_looks_like_a_token_is_not_shared():
    tokens = TokenBatch(torch.tensor([[4, 0, 5], [4, 0, 0]]), torch.tensor([[True] * 3, [True, True, False]]),
                        torch.ones(2, 3, dtype=torch.bool), ("a", "b"))
    assert join(tokens, [0, 0]).joined.places.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert join(tokens, [0, 0]).joined.ids.tolist() == [4, 0, 5]


@pytest.mark.parametrize("name", CAUSAL)
def test_scores_equal_those_of_single_rows_in_plain_transformers(folders, name):
    model = scalar_model(ModelConfig(path=folders[name]), seed=0)
    plain = AutoModelForSequenceClassification.from_pretrained(folders[name], num_labels=1).eval()
    plain.score.weight.data.copy_(model.score.weight)
    plain.config.pad_token_id = 0
    expected = torch.stack([torch.cat([plain(input_ids=torch.tensor([side.ids])).logits[0]
                                       for side in (pair.chosen, pair.rejected)]) for pair in ragged()])
    for shared_prompt in ("never", "always"):
        for micro_tokens in (10_000, 30):
            found = scores(model, ragged(), shared_prompt, micro_tokens)
            torch.testing.assert_close(found, expected, **tol.FLOAT32)


@pytest.mark.parametrize(("name", "rank"), [("llama", None), ("gpt2", None), ("qwen2", None), ("llama", 2)])
def test_gradients_do_not_depend_on_the_layout(folders, name, rank):
    model = scalar_model(ModelConfig(path=folders[name], lora=LoraSettings(rank=rank)), seed=0)
    if rank:  # at the start the second matrices are 0, and so are the gradients of the first
        for parameter_name, p in model.named_parameters():
            if "lora_B" in parameter_name:
                p.data.fill_(0.05)
    expected = gradients(model, ragged(), "never")
    assert len(expected) > 10 and all(bool(g.any()) for g in expected.values())
    for micro_tokens in (10_000, 60):
        found = gradients(model, ragged(), "always", micro_tokens)
        assert found.keys() == expected.keys()
        for parameter_name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[parameter_name], **tol.GRADIENT32)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_layouts_agree_under_bfloat16(folders, name):
    model = scalar_model(ModelConfig(path=folders[name], autocast=True), seed=0)
    with torch.no_grad():
        found = [scores(model, ragged(), shared_prompt) for shared_prompt in ("never", "always")]
    torch.testing.assert_close(*found, **tol.BFLOAT16)


def test_responses_see_neither_each_other_nor_other_pairs(folders):
    model, rows = scalar_model(ModelConfig(path=folders["llama"]), seed=0), ragged()[:4]
    before = scores(model, rows, "always")
    changed = row(rows[1].prompt_ids, [x + 1 if x < 22 else 4 for x in rows[1].chosen_ids], rows[1].rejected_ids, "p1")
    after = scores(model, [rows[0], changed, *rows[2:]], "always")
    same = torch.ones(4, 2, dtype=torch.bool)
    same[1, 0] = False
    torch.testing.assert_close(after[same], before[same], **tol.FLOAT32)
    assert not torch.isclose(after[1, 0], before[1, 0], **tol.FLOAT32)


def test_what_lies_under_the_padding_is_not_read(folders):
    model = scalar_model(ModelConfig(path=folders["llama"]), seed=0)
    tokens = collate_pairs(ragged(), 0).tokens
    junk = TokenBatch(tokens.ids.masked_fill(~tokens.attention_mask, 9), tokens.attention_mask, tokens.response_mask,
                      tokens.record_ids)
    leaders = 2 * list(range(6))
    assert torch.equal(join(junk, leaders).joined.ids, join(tokens, leaders).joined.ids)
    states = [hidden_states(model, join(one, leaders))[tokens.attention_mask] for one in (tokens, junk)]
    assert torch.equal(*states)
    torch.testing.assert_close(states[0], hidden_states(model, tokens)[tokens.attention_mask], **tol.FLOAT32)


def test_a_language_models_logprobs_do_not_depend_on_the_layout(folders):
    model, tokens = causal_lm(ModelConfig(path=folders["llama"])), collate_pairs(ragged(), 0).tokens
    torch.testing.assert_close(token_logprobs(model, join(tokens, 2 * list(range(6))))[0],
                               token_logprobs(model, tokens)[0], **tol.FLOAT32)


def test_more_than_two_rows_share_a_beginning(folders):
    """Several responses to one prompt, as in a ranking."""
    model = scalar_model(ModelConfig(path=folders["gpt2"]), seed=0)
    rows = [pair.rejected for pair in [row([4, 5, 6, 7], [9], response) for response in ([8, 2], [9, 9, 2], [10])]]
    tokens = collate(rows, 0)
    found = join(tokens, [0, 0, 0])
    assert found.n_positions == 4 + 2 + 3 + 1
    real = tokens.attention_mask
    torch.testing.assert_close(hidden_states(model, found)[real], hidden_states(model, tokens)[real], **tol.FLOAT32)


@pytest.mark.parametrize("name", list(MAKES))
def test_scores_are_the_head_on_the_features(folders, name):
    model, (part,) = scalar_model(ModelConfig(path=folders[name]), seed=0), batches(ragged(), "auto")
    features = pair_features(model, part)
    assert features.shape == (12, 16)
    assert torch.equal(head_scores(model, features), torch.cat(pair_scores(model, part)))


@pytest.mark.parametrize("rank", [None, 2])
def test_an_encoders_scores_are_its_own_and_its_batches_may_be_joined(folders, rank):
    """What is joined is read as rows by a model that looks both ways."""
    model = scalar_model(ModelConfig(path=folders["bert"], lora=LoraSettings(rank=rank)), seed=0)
    (part,) = batches(ragged(), "always")
    logits = model(input_ids=part.tokens.ids, attention_mask=part.tokens.attention_mask.long()).logits[:, 0]
    torch.testing.assert_close(torch.cat(pair_scores(model, part)), logits, **tol.FLOAT32)
    head = [name for name, p in model.named_parameters() if "classifier" in name and p.requires_grad]
    sum(pair_scores(model, part)).sum().backward()
    assert head and all(dict(model.named_parameters())[name].grad.any() for name in head)


def test_micro_batches_do_not_depend_on_the_layout_and_auto_joins_what_saves():
    rows = [row(list(range(4, 20)), [5, 2], [6, 2], "long prompt"), row([4], [5, 2], [6, 2], "short prompt")]
    never, auto, always = (batches(rows, how, micro_tokens=36) for how in ("never", "auto", "always"))
    for one, other in zip(never, always, strict=True):
        assert torch.equal(one.tokens.ids, other.tokens.ids) and one.tokens.record_ids == other.tokens.record_ids
    assert [part.tokens.n_positions for part in never] == [36, 6]
    assert [part.tokens.n_positions for part in always] == [20, 5]
    assert all(part.tokens.joined is None for part in never)
    assert [part.tokens.n_positions for part in auto] == [20, 5]


def test_auto_leaves_a_batch_that_shares_too_little():
    """One token of forty."""
    rows = [row([4], list(range(4, 23)), [*range(5, 23), 4])]
    (auto,), (always,) = batches(rows, "auto"), batches(rows, "always")
    assert auto.tokens.joined is None and always.tokens.n_positions == 39


def test_what_a_model_can_do_is_asked_before(folders):
    model, encoder = (scalar_model(ModelConfig(path=folders[name]), seed=0) for name in ("llama", "bert"))
    assert [joining(model, how) for how in ("auto", "always", "never")] == ["auto", "always", "never"]
    assert [joining(encoder, how) for how in ("auto", "never")] == ["never", "never"]
    with pytest.raises(ModelError, match="a bert model cannot run a prompt once for both responses"):
        joining(encoder, "always")


def test_windows_recurrence_and_attention_of_another_make_rule_joining_out(folders):
    model = scalar_model(ModelConfig(path=folders["qwen2"]), seed=0)
    assert can_join(model)
    for owner, name, value in [
            (model.config, "sliding_window", 4), (model.config, "_attn_implementation", "eager"),
            (model, "_is_stateful", True), (model.config, "layer_types", ["full_attention", "linear_attention"]),
            (model.model, "_supports_attention_backend", False), (model.model, "forward", lambda input_ids: None)]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, value)
            assert not can_join(model), name
    assert can_join(model)


def test_a_layer_that_does_not_keep_rows_apart_is_noticed(folders):
    model, (part,) = scalar_model(ModelConfig(path=folders["llama"]), seed=0), batches(ragged(), "always")
    model.config.num_hidden_layers = 3
    with pytest.raises(ModelError, match="2 of 3 layers kept the rows of a joined batch apart"):
        pair_scores(model, part)
    model.config.num_hidden_layers = 2
    model.config._attn_implementation = "sdpa"  # transformers' own function, which looks at the mask
    with pytest.raises(RuntimeError, match="size"):
        pair_scores(model, part)


def test_passes_of_other_batches_are_as_before_after_a_joined_one_and_after_its_error(folders):
    model = scalar_model(ModelConfig(path=folders["llama"]), seed=0)
    before = scores(model, ragged(), "never")
    with pytest.raises(IndexError):
        rows = batches(ragged(), "always")[0].tokens
        rows.joined.ids[0] = 10**6
        hidden_states(model, rows)
    assert torch.equal(scores(model, ragged(), "never"), before)
