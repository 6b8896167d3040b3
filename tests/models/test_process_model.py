"""Process models: the same numbers in plain transformers, alone and as the reward model that each one holds."""

import json

import pytest
import tiny
import tolerances as tol
import torch

from keel.data.collate import collate
from keel.data.render import Row
from keel.errors import ModelError
from keel.models.forward import response_scores
from keel.models.load import LoraSettings, ModelConfig, ScratchConfig, load_tokenizer, save_model, scalar_model
from keel.models.process import as_reward_model, process_model, step_logits

ROWS = [Row([1, 4, 7 + i, 8, 2, 5, *range(9, 9 + i), 2], 6, f"r{i}") for i in range(1, 5)]
PLACES = [(0, 6), (1, 7), (2, 6), (3, 7), (3, 10)]


def plain(folder, kind):
    """A model of plain transformers."""
    import transformers

    return getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder).eval()


def alone(model, row):
    """Logits of one row by itself, so that no padding can matter."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([row.ids]), attention_mask=torch.ones(1, len(row.ids))).logits[0].double()


def ours(model, side="right"):
    """Logits of the steps that end at PLACES."""
    batch = collate(ROWS, 0, side)
    width = batch.ids.shape[1]
    columns = [c if side == "right" else c + width - ROWS[r].n_tokens for r, c in PLACES]
    with torch.no_grad():
        return step_logits(model, batch, torch.tensor([r for r, _ in PLACES]), torch.tensor(columns)).double()


def taught(model):
    """A few steps of descent, so that head, trunk and adapters are not what they began as."""
    batch = collate(ROWS, 0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        step_logits(model, batch, torch.arange(4), torch.tensor([6, 7, 8, 9])).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def base_of(tmp, kind):
    return str((tiny.gpt2 if kind == "gpt2" else tiny.llama)(tmp / kind))


@pytest.mark.parametrize("kind, rank", [("llama", None), ("llama", 2), ("gpt2", None)])
def test_plain_transformers_gives_the_same_numbers(tmp_path, kind, rank):
    spec = ModelConfig(path=base_of(tmp_path, kind), lora=LoraSettings(rank=rank))
    fresh = ours(process_model(spec, seed=1))
    model = taught(process_model(spec, seed=1))
    now = ours(model)
    assert not torch.allclose(now, fresh, **tol.GRADIENT32)
    save_model(model, load_tokenizer(spec.path), tmp_path / "process")
    save_model(as_reward_model(model), load_tokenizer(spec.path), tmp_path / "reward", pad_id=0)

    both = plain(tmp_path / "process", "TokenClassification")
    assert both.config.id2label == {0: "wrong", 1: "right"}
    logits = torch.stack([alone(both, ROWS[row])[column] for row, column in PLACES])
    torch.testing.assert_close(now, logits[:, 1] - logits[:, 0], **tol.GRADIENT32)
    torch.testing.assert_close(now.sigmoid(), logits.softmax(1)[:, 1], **tol.GRADIENT32)

    one = plain(tmp_path / "reward", "SequenceClassification")
    assert (one.config.num_labels, one.config.keel_rows) == (1, "turn")
    ends = torch.stack([alone(both, row)[-1] for row in ROWS])
    scores = torch.stack([alone(one, row)[0] for row in ROWS])
    torch.testing.assert_close(scores, ends[:, 1] - ends[:, 0], **tol.GRADIENT32)
    with torch.no_grad():
        read = response_scores(scalar_model(ModelConfig(path=str(tmp_path / "reward"))), collate(ROWS, 0)).double()
    torch.testing.assert_close(read, scores, **tol.GRADIENT32)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_padding_on_either_side_changes_nothing(tmp_path, kind):
    model = process_model(ModelConfig(path=base_of(tmp_path, kind)), seed=1)
    torch.testing.assert_close(ours(model), ours(model, "left"), **tol.GRADIENT32)


def test_a_step_is_not_judged_by_what_comes_after_it(tmp_path):
    model = process_model(ModelConfig(path=base_of(tmp_path, "llama")), seed=1)
    row, (a, b) = ROWS[3], (torch.tensor([0]), torch.tensor([7]))
    with torch.no_grad():
        whole, cut = (step_logits(model, collate([Row(ids, 6, "r")], 0), a, b) for ids in (row.ids, row.ids[:8]))
    torch.testing.assert_close(whole, cut, **tol.FLOAT32)


def test_the_head_is_drawn_from_the_seed_and_has_no_bias_to_learn(tmp_path):
    spec = ModelConfig(path=base_of(tmp_path, "llama"))
    one, same, other = (process_model(spec, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.score.weight, same.score.weight) and not torch.equal(one.score.weight, other.score.weight)
    assert one.score.weight.shape == (2, 16) and one.score.weight.dtype == torch.float32
    assert 0 < float(one.score.weight.detach().std()) < 2 / 17
    assert one.score.bias.tolist() == [0.0, 0.0] and not one.score.bias.requires_grad
    assert one.score.weight.requires_grad


def test_with_adapters_only_they_and_the_head_learn(tmp_path):
    model = process_model(ModelConfig(path=base_of(tmp_path, "llama"), lora=LoraSettings(rank=2)), seed=1)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("q_proj" in name for name in learned) and all("lora_" in name or "score" in name for name in learned)
    assert [name for name in learned if "score" in name] == ["base_model.model.score.modules_to_save.default.weight"]


def test_the_head_stays_in_float32_on_a_trunk_in_bfloat16(tmp_path):
    spec = ModelConfig(path=base_of(tmp_path, "llama"))
    half = process_model(ModelConfig(path=spec.path, dtype="bfloat16"), seed=1)
    assert half.score.weight.dtype == torch.float32 and half.model.norm.weight.dtype == torch.bfloat16
    batch, (rows, columns) = collate(ROWS, 0), torch.tensor(PLACES).unbind(1)
    with torch.no_grad():
        assert step_logits(half, batch, rows, columns).dtype == torch.float32
        torch.testing.assert_close(ours(half), ours(process_model(spec, seed=1)), **tol.BFLOAT16)


def foreign(tmp, n_labels):
    """A token classifier that somebody else trained, with a bias."""
    from transformers import LlamaConfig, LlamaForTokenClassification

    model = LlamaForTokenClassification(LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_labels=n_labels, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    model.save_pretrained(tmp / f"foreign{n_labels}")
    tiny.tokenizer().save_pretrained(tmp / f"foreign{n_labels}")
    return tmp / f"foreign{n_labels}"


@pytest.mark.parametrize("n_labels", [1, 2])
def test_a_process_model_from_elsewhere(tmp_path, n_labels):
    """One label is a logit. As a reward model it loses its bias, the same for every response."""
    folder = foreign(tmp_path, n_labels)
    model = process_model(ModelConfig(path=str(folder)))
    logits = torch.stack([alone(plain(folder, "TokenClassification"), ROWS[row])[column] for row, column in PLACES])
    wanted = logits[:, 0] if n_labels == 1 else logits[:, 1] - logits[:, 0]
    torch.testing.assert_close(ours(model), wanted, **tol.GRADIENT32)
    bias = model.score.bias.double()
    with torch.no_grad():
        scores = response_scores(as_reward_model(model), collate(ROWS, 0)).double()
    last = torch.stack([alone(plain(folder, "TokenClassification"), row)[-1] for row in ROWS])
    ends = last[:, 0] - bias[0] if n_labels == 1 else last[:, 1] - last[:, 0] - bias[1] + bias[0]
    torch.testing.assert_close(scores, ends.detach(), **tol.GRADIENT32)


def test_training_goes_on_from_a_process_model(tmp_path):
    """Its head is kept, whatever the seed."""
    folder = foreign(tmp_path, 2)
    torch.testing.assert_close(ours(process_model(ModelConfig(path=str(folder)), seed=8)),
                               ours(process_model(ModelConfig(path=str(folder)))), **tol.EXACT)


def refused(spec, what, seed=1):
    with pytest.raises(ModelError, match=what):
        process_model(spec, seed=seed)


def test_what_is_no_process_model(tmp_path):
    base = ModelConfig(path=base_of(tmp_path, "llama"))
    refused(base, "not a process model: it has no trained head for steps", seed=None)
    refused(ModelConfig(path=str(foreign(tmp_path, 3))), "this token classifier has 3 labels; a process model has 2")
    refused(ModelConfig(path=base.path, init="scratch", scratch=ScratchConfig(hidden=16)),
            r"a process model does not come from scratch\.\* settings")
    save_model(scalar_model(base, seed=0), load_tokenizer(base.path), tmp_path / "scores", pad_id=0)
    refused(ModelConfig(path=str(tmp_path / "scores")), "a sequence classifier scores whole responses; it has no head")
    refused(ModelConfig(path=str(tmp_path / "nowhere")), "no such model folder")


def test_an_encoder_sees_what_comes_after_a_step(tmp_path):
    from transformers import BertForTokenClassification, BertModel

    folder = tiny.bert(tmp_path / "bert")
    BertForTokenClassification.from_pretrained(folder).save_pretrained(folder)
    refused(ModelConfig(path=str(folder)), "this model looks at later tokens, so a step would be judged by those after")
    BertModel.from_pretrained(folder).save_pretrained(folder)
    refused(ModelConfig(path=str(folder)), "this model looks at later tokens")


def test_a_folder_without_all_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = foreign(tmp_path, 2)
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "LlamaForTokenClassification" in json.loads((folder / "config.json").read_text())["architectures"]
    refused(ModelConfig(path=str(folder)), "weights are missing: score.weight")
