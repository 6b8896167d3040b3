"""Reward models of other makes: their scores are those of plain transformers on the same row, unpadded and alone."""

import json

import pytest
import tiny
import tolerances as tol
import torch
from safetensors.torch import load_file, save_file

from keel.data.collate import collate
from keel.data.render import Row
from keel.errors import ModelError
from keel.models.classifier import context_of, load_classifier
from keel.models.load import ModelConfig, scalar_model

ROWS = [Row([1, 4, 7 + i, 8, 2, 5, *range(9, 9 + i), 2], 6, f"r{i}") for i in range(5)]


def classifier(folder, kind="Llama", n_labels=1, seed=0, **settings):
    """A random sequence classifier of transformers with its folder."""
    import transformers

    shape = {
        "Llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        "Bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                 "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
    }.get(kind, {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "max_position_embeddings": 66})
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=23, num_labels=n_labels, **shape, **({"bos_token_id": 1, "eos_token_id": 2} | settings))
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    return saved(model, folder, seed)


def saved(model, folder, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def logits_alone(folder):
    """Logits of plain transformers, one row at a time, so that no padding can matter."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([row.ids])).logits for row in ROWS]).double()


def ours(folder, rows=ROWS, side="right", **how):
    with torch.no_grad():
        return load_classifier(ModelConfig(path=str(folder)), **how).scores(collate(rows, 0, side))


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Bert", "Roberta"])
def test_one_logit_is_the_score(tmp_path, kind):
    folder = classifier(tmp_path, kind, pad_token_id=0 if kind != "Llama" else None)
    scores = ours(folder)
    assert scores.dtype == torch.float64 and len(set(scores.tolist())) == len(ROWS)
    torch.testing.assert_close(scores, logits_alone(folder)[:, 0], **tol.FLOAT32)
    torch.testing.assert_close(ours(folder, ROWS[3:0:-1]), scores[1:4].flip(0), **tol.FLOAT32)


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_padding_may_be_on_either_side_of_a_causal_model(tmp_path, kind):
    folder = classifier(tmp_path, kind, pad_token_id=None)
    torch.testing.assert_close(ours(folder, side="left"), ours(folder), **tol.FLOAT32)


def test_heads_of_other_names_are_asked_as_they_are(tmp_path):
    folder = classifier(tmp_path, "Bart", pad_token_id=0, decoder_start_token_id=2, forced_eos_token_id=2)
    rows = [Row([*row.ids[:4], 7, *row.ids[5:]], 6, row.record_id) for row in ROWS]  # one end of sequence in each
    with torch.no_grad():
        model = load_classifier(ModelConfig(path=str(folder))).model
        alone = torch.cat([model(input_ids=torch.tensor([row.ids])).logits[:, 0] for row in rows]).double()
    torch.testing.assert_close(ours(folder, rows), alone, **tol.FLOAT32)


def test_two_labels_are_their_difference(tmp_path):
    folder = classifier(tmp_path, n_labels=2)
    logits = logits_alone(folder)
    torch.testing.assert_close(ours(folder), logits[:, 1] - logits[:, 0], **tol.FLOAT32)
    torch.testing.assert_close(ours(folder, label=0), logits[:, 0], **tol.FLOAT32)
    torch.testing.assert_close(ours(folder, label_weights=(1.0, -1.0)), logits[:, 0] - logits[:, 1], **tol.FLOAT32)


def test_of_several_labels_one_or_a_weighted_sum(tmp_path):
    names = {0: "helpful", 1: "harmless", 2: "honest"}
    folder = classifier(tmp_path, n_labels=3, id2label=names, label2id={v: k for k, v in names.items()})
    logits = logits_alone(folder)
    for label in (1, "1", "harmless"):
        torch.testing.assert_close(ours(folder, label=label), logits[:, 1], **tol.FLOAT32)
    expected = 0.5 * logits[:, 0] - 2.0 * logits[:, 2]
    torch.testing.assert_close(ours(folder, label_weights=(0.5, 0.0, -2.0)), expected, **tol.FLOAT32)


def test_the_probability_of_a_label_is_its_share_among_all(tmp_path):
    folder = classifier(tmp_path / "three", n_labels=3)
    shares = logits_alone(folder).softmax(1)
    for label in range(3):
        torch.testing.assert_close(ours(folder, label=label, probability=True), shares[:, label], **tol.FLOAT32)
    two = classifier(tmp_path / "two", n_labels=2)
    shares = logits_alone(two).softmax(1)
    torch.testing.assert_close(ours(two, probability=True), shares[:, 1], **tol.FLOAT32)
    torch.testing.assert_close(ours(two, probability=True, label=0), shares[:, 0], **tol.FLOAT32)
    with pytest.raises(ModelError, match="3 labels, and which of them is the score is not said"):
        ours(folder, probability=True)


def test_a_probability_needs_labels_that_exclude_each_other(tmp_path):
    spec = ModelConfig(path=str(classifier(tmp_path / "one")))
    with pytest.raises(ModelError, match="probability of a label, and the model has only one") as caught:
        load_classifier(spec, probability=True)
    assert "squash = sigmoid" in str(caught.value)
    for problem in ("regression", "multi_label_classification"):
        spec = ModelConfig(path=str(classifier(tmp_path / problem, n_labels=2, problem_type=problem)))
        with pytest.raises(ModelError, match="the labels of this model do not exclude each other .*" + problem):
            load_classifier(spec, label=1, probability=True)


def test_which_label_is_the_score_must_be_said(tmp_path):
    names = {0: "helpful", 1: "harmless", 2: "honest"}
    spec = ModelConfig(path=str(classifier(tmp_path / "three", n_labels=3, id2label=names,
                                           label2id={v: k for k, v in names.items()})))
    named = r"0 \(helpful\), 1 \(harmless\), 2 \(honest\)"
    with pytest.raises(ModelError, match=f"3 labels, and which of them is the score is not said: {named}"):
        load_classifier(spec)
    with pytest.raises(ModelError, match=f"no label 'kind'; there are {named}"):
        load_classifier(spec, label="kind")
    with pytest.raises(ModelError, match="no label 3"):
        load_classifier(spec, label=3)
    with pytest.raises(ModelError, match=f"2 label_weights for 3 labels: {named}"):
        load_classifier(spec, label_weights=(1.0, 2.0))
    with pytest.raises(ModelError, match="2 labels, and which of them is the score"):
        load_classifier(ModelConfig(path=str(classifier(tmp_path / "two", n_labels=2, problem_type="regression"))))


def test_a_label_that_does_not_count_may_be_nan(tmp_path):
    folder = classifier(tmp_path, n_labels=3)
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"][2] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert torch.isfinite(ours(folder, label=1)).all() and torch.isnan(ours(folder, label=2)).all()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("head", ["v_head.summary", "v_head", "value_head", "score"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_value_head_on_a_language_model(tmp_path, kind, head, bias):
    folder = getattr(tiny, kind)(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights[f"{head}.weight"] = torch.linspace(-1.0, 1.0, 16)[None]
    if bias:
        weights[f"{head}.bias"] = torch.tensor([0.25])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    last = hidden_alone(folder)
    expected = last @ torch.linspace(-1.0, 1.0, 16).double() + 0.25 * bias
    torch.testing.assert_close(ours(folder), expected, **tol.FLOAT32)


def test_a_value_head_of_two_layers(tmp_path):
    folder = tiny.llama(tmp_path)
    weights = load_file(folder / "model.safetensors")
    drawn = torch.Generator().manual_seed(0)
    layers = [torch.randn(32, 16, generator=drawn), torch.randn(32, generator=drawn),
              torch.randn(1, 32, generator=drawn), torch.randn(1, generator=drawn)]
    for name, value in zip(("0.weight", "0.bias", "2.weight", "2.bias"), layers, strict=True):
        weights[f"v_head.{name}"] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    inner = hidden_alone(folder) @ layers[0].double().T + layers[1].double()
    expected = inner.clamp_min(0.0) @ layers[2][0].double() + layers[3].double()
    torch.testing.assert_close(ours(folder), expected, **tol.FLOAT32)


def hidden_alone(folder):
    """Last hidden state of the last token of each row, by plain transformers."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = [model(input_ids=torch.tensor([row.ids])).last_hidden_state[0, -1] for row in ROWS]
    return torch.stack(states).double()


def test_a_language_model_without_a_head_is_refused(tmp_path):
    with pytest.raises(ModelError, match="not a reward model: it has no trained head"):
        load_classifier(ModelConfig(path=str(tiny.llama(tmp_path))))


def test_an_encoder_in_bfloat16(tmp_path):
    spec = ModelConfig(path=str(classifier(tmp_path, "Roberta", pad_token_id=0)), dtype="bfloat16")
    with torch.no_grad():
        found = load_classifier(spec).scores(collate(ROWS, 0))
    torch.testing.assert_close(found, logits_alone(tmp_path)[:, 0], **tol.BFLOAT16)


def test_how_long_a_row_may_be(tmp_path):
    def context(folder):
        return context_of(scalar_model(ModelConfig(path=str(folder))))

    assert context(classifier(tmp_path / "gpt2", "GPT2", pad_token_id=None)) == 64
    assert context(classifier(tmp_path / "bert", "Bert", pad_token_id=0)) == 66
    # RoBERTa's first position is the one behind that of its padding.
    roberta = classifier(tmp_path / "roberta", "Roberta", pad_token_id=1)
    assert context(roberta) == 64
    row = Row([3] * 64, 1, "longest")
    assert torch.isfinite(ours(roberta, [row])).all()
    config = json.loads((tmp_path / "gpt2" / "config.json").read_text())
    assert "max_position_embeddings" not in config
