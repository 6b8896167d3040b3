import json

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import FAST, brief, killed_here, logged, same_results

from keel.data.collate import collate
from keel.data.load import read_graded
from keel.data.records import Demonstration
from keel.data.render import render_demonstrations, template
from keel.errors import ConfigError, DataError, ModelError
from keel.models.forward import response_scores
from keel.models.load import LoraSettings, ModelConfig, load_tokenizer, scalar_model
from keel.recipes import attribute_rm, ppo
from keel.recipes.attribute_rm import AttributeRMConfig
from keel.train.inputs import DataConfig
from keel.train.step import OptimizerConfig

NAMES, WEIGHTS = ("polite", "long"), {"polite": 2.0, "long": -0.5}
ANSWERS = ["yes please .", "yes", "the cat sat .", "no", "please", "no no why ?"]


def graded(path, n=36):
    """`polite`, 10 for a please and else 0, and `long`, the words; every fifth row lacks the one, another the other."""
    if not path.exists():
        rows = []
        for i, prompt in enumerate(tiny.conversations(n)):
            text = ANSWERS[i % 6]
            rows.append({"id": f"g{i}", "prompt": prompt, "response": tiny.said(text),
                         "polite": None if i % 5 == 4 else 10 * ("please" in text),
                         "long": None if i % 5 == 2 else len(text.split())})
        tiny.write_rows(path, rows)
    return path


def lines_of(path):
    return path.read_text().splitlines()


def config(tmp, **changes) -> AttributeRMConfig:
    base = tmp / "base" if (tmp / "base").exists() else tiny.llama(tmp / "base")
    data = DataConfig(path=str(graded(tmp / "graded.jsonl")), validation_fraction=0.3, max_length=64)
    settings = {"out": tmp / "rm", "model": ModelConfig(path=str(base)), "data": data, "attributes": NAMES,
                "weights": WEIGHTS, "batch": 8, "steps": 4, "optimizer": FAST, "eval_every": 4, "save_every": 2}
    return AttributeRMConfig(**(settings | changes))


def batch_of(tmp, folder):
    words = template(load_tokenizer(str(folder)))
    told = [Demonstration(one.prompt, one.response) for one in read_graded(tmp / "graded.jsonl", NAMES)[0]]
    return collate(render_demonstrations(words, told, 64)[0], words.pad_id)


def by_transformers(tokens, folder):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        return model, model(input_ids=tokens.ids, attention_mask=tokens.attention_mask.long()).logits.double()


def test_it_learns_both_attributes_and_prints_the_baseline(tmp_path):
    result = attribute_rm.run(config(tmp_path, steps=30, eval_every=30, save_every=30))
    found = result.values["evaluation"]
    for name in NAMES:
        assert found[f"r2/{name}"] > 0.5 and found[f"pearson/{name}"] > 0.7 and found[f"spearman/{name}"] > 0.5
    assert found["loss_low"] <= found["loss"] <= found["loss_high"] < found["loss_of_mean"]
    assert result.values["headline"]["before"]["mean"] == found["loss_of_mean"]
    assert logged(tmp_path / "rm")[-1]["loss"] < logged(tmp_path / "rm")[0]["loss"]


def base_model(tmp, kind):
    if kind == "llama":
        return ModelConfig(path=str(tiny.llama(tmp / "llama")))
    if kind == "lora":
        return ModelConfig(path=str(tiny.llama(tmp / "llama")), lora=LoraSettings(rank=2))
    from transformers import BertModel

    folder = tiny.bert(tmp / "bert")
    BertModel.from_pretrained(folder).save_pretrained(folder)
    return ModelConfig(path=str(folder))


@pytest.mark.parametrize("kind", ["llama", "lora", "bert"])
def test_the_model_is_the_weighted_sum_of_the_attributes(tmp_path, kind):
    """In plain transformers, for every response; a causal model leaves out the one constant of all responses."""
    attribute_rm.run(config(tmp_path, model=base_model(tmp_path, kind)))
    tokens = batch_of(tmp_path, tmp_path / "rm/model")
    model, outputs = by_transformers(tokens, tmp_path / "rm/attributes")
    assert [model.config.id2label[i] for i in range(2)] == list(NAMES)
    moments = [model.config.attributes[name] for name in NAMES]
    units = sum(WEIGHTS[name] * (outputs[:, i] * moments[i]["std"] + moments[i]["mean"])
                for i, name in enumerate(NAMES))
    constant = 0.0 if kind == "bert" else sum(WEIGHTS[name] * moments[i]["mean"] for i, name in enumerate(NAMES))
    one, scores = by_transformers(tokens, tmp_path / "rm/model")
    assert one.config.num_labels == 1 and scores.shape == (len(units), 1)
    torch.testing.assert_close(scores[:, 0] + constant, units, **tol.FLOAT32)
    with torch.no_grad():
        ours = response_scores(scalar_model(ModelConfig(path=str(tmp_path / "rm/model"))), tokens)
    torch.testing.assert_close(ours.double(), scores[:, 0], **tol.FLOAT32)


def test_the_numbers_of_an_evaluation_by_hand(tmp_path):
    """Held-out grades are those of the training file, so that they have its moments; the prompts are others."""
    cfg = config(tmp_path)
    rows = [json.loads(line) for line in lines_of(tmp_path / "graded.jsonl")]
    others = [row | {"prompt": asked} for row, asked in zip(rows, tiny.conversations(80)[-len(rows):], strict=True)]
    data = cfg.data.model_copy(update={"path": str(tiny.write_rows(tmp_path / "others.jsonl", others)),
                                       "validation": cfg.data.path})
    found = attribute_rm.run(cfg.model_copy(update={"data": data})).values["evaluation"]
    model, outputs = by_transformers(batch_of(tmp_path, tmp_path / "rm/model"), tmp_path / "rm/attributes")
    errors, total = [], 0
    for a, name in enumerate(NAMES):
        there = [(row[name], float(outputs[i, a])) for i, row in enumerate(rows) if row[name] is not None]
        mean = sum(grade for grade, _ in there) / len(there)
        variance = sum((grade - mean) ** 2 for grade, _ in there) / len(there)
        kept = model.config.attributes[name]
        assert kept["mean"] == pytest.approx(mean, rel=tol.RELATIVE64)
        assert kept["std"] == pytest.approx(variance**0.5, rel=tol.RELATIVE64)
        mse = sum((grade - mean - z * variance**0.5) ** 2 for grade, z in there) / len(there)
        assert found[f"mse/{name}"] == pytest.approx(mse, rel=tol.GRADIENT32["rtol"])
        assert found[f"r2/{name}"] == pytest.approx(1 - mse / variance, rel=tol.GRADIENT32["rtol"])
        assert found[f"n/{name}"] == len(there)
        errors.append(mse / variance * len(there))
        total += len(there)
    assert found["n"] == total
    assert found["loss"] == pytest.approx(sum(errors) / total, rel=tol.GRADIENT32["rtol"])
    # Of standardised grades, the mean is 0 and the squared error of guessing it 1.
    assert found["loss_of_mean"] == pytest.approx(1, rel=tol.RELATIVE64)


def test_absent_grades_teach_nothing_and_micro_batches_change_nothing(tmp_path):
    for name, changes in (("one", {"micro_tokens": 10_000}), ("many", {"micro_tokens": 1})):
        attribute_rm.run(config(tmp_path, out=tmp_path / name, **changes))
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "many"), strict=True):
        for key in ("loss", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=tol.GRADIENT32["rtol"], abs=tol.GRADIENT32["atol"])


def test_ppo_takes_the_model_at_once(tmp_path):
    attribute_rm.run(config(tmp_path, steps=1))
    scored = ppo.run(brief(tmp_path, reward_model=ModelConfig(path=str(tmp_path / "rm/model"))))
    assert scored.values["status"] == "finished"


def test_training_goes_on_from_the_attributes_of_another_run(tmp_path):
    attribute_rm.run(config(tmp_path, steps=1))
    folder = str(tmp_path / "rm/attributes")
    again = config(tmp_path, out=tmp_path / "again", steps=1, model=ModelConfig(path=folder))
    assert attribute_rm.run(again).values["status"] == "finished"
    three = again.model_copy(update={"attributes": (*NAMES, "third"), "out": tmp_path / "three"})
    rows = [json.loads(line) | {"third": i} for i, line in enumerate(lines_of(tmp_path / "graded.jsonl"))]
    tiny.write_rows(tmp_path / "graded.jsonl", rows)
    with pytest.raises(ModelError, match="this classifier has 2 labels; 3 are wanted here"):
        attribute_rm.run(three)


def test_an_attribute_without_variety_is_refused(tmp_path):
    for grade, what in ((3, "every grade is 3"), (None, "there is no grade")):
        rows = [json.loads(line) | {"long": grade} for line in lines_of(graded(tmp_path / "graded.jsonl"))]
        path = tiny.write_rows(tmp_path / f"same-{grade}.jsonl", [row for row in rows if row["polite"] is not None])
        cfg = config(tmp_path, out=tmp_path / str(grade), data=DataConfig(path=str(path), max_length=64))
        with pytest.raises(DataError, match=f"nothing to learn about the attribute 'long': {what}"):
            attribute_rm.run(cfg)


@pytest.mark.parametrize("changes, what", [
    ({"attributes": ("polite", "polite")}, "attributes names one twice: polite, polite"),
    ({"weights": {"polite": 1.0, "kind": 1.0}}, "weights names kind, which attributes does not"),
    ({"weights": {"polite": 0.0}}, "weights gives no attribute a weight: every score would be 0"),
])
def test_settings_that_contradict_each_other(tmp_path, changes, what):
    with pytest.raises(ConfigError, match=what):
        AttributeRMConfig.checked(config(tmp_path).model_dump() | changes)


def test_weights_and_attributes_from_the_command_line():
    cfg = AttributeRMConfig.resolve(None, {
        "out": "x", "model": "y", "data": "z", "attributes": '["polite", "long"]',
        "weights": "{polite = 2, long = -0.5}"})
    assert (cfg.attributes, cfg.weights) == (NAMES, WEIGHTS)
    assert AttributeRMConfig.resolve(None, {"out": "x", "model": "y", "data": "z", "attributes": "polite",
                                            "weights": "{polite = 1}"}).attributes == ("polite",)


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    how = OptimizerConfig(lr=5e-3)
    attribute_rm.run(config(tmp_path, optimizer=how, steps=7))
    killed_here(config(tmp_path, out=tmp_path / "killed", optimizer=how, steps=7), [("log", 4), ("save", 1)],
                run=attribute_rm.run)
    same_results(tmp_path / "rm", tmp_path / "killed")
    for name in ("config.json", "model.safetensors"):
        one, other = (tmp_path / run / "attributes" / name for run in ("rm", "killed"))
        assert one.read_bytes() == other.read_bytes()
