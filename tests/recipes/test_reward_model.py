import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import killed_and_resumed, logged, reward_config, same_results

from keel.errors import ConfigError
from keel.models.load import ModelConfig
from keel.recipes import reward_model


def test_it_learns_the_preference_and_prints_the_length_baseline(tmp_path):
    result = reward_model.run(reward_config(tmp_path, steps=30, optimizer=reward_config(tmp_path).optimizer))
    found = result.values["evaluation"]
    assert found["accuracy"] > 0.9  # "yes please" and "the cat sat" against "no": learnable
    assert 0 <= found["longer_wins"] <= 1 and found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    assert result.values["headline"]["before"]["mean"] == found["longer_wins"]


def test_scores_in_plain_transformers_equal_ours(tmp_path):
    from transformers import AutoModelForSequenceClassification

    from keel.data.collate import collate_pairs
    from keel.data.load import read_pairs
    from keel.data.render import render_pairs, template
    from keel.models.forward import response_scores
    from keel.models.load import load_tokenizer, scalar_model

    reward_model.run(reward_config(tmp_path))
    folder = str(tmp_path / "rm/model")
    words = template(load_tokenizer(folder))
    tokens = collate_pairs(
        render_pairs(words, read_pairs(tmp_path / "pairs.jsonl")[0], 64, "drop")[0], words.pad_id
    ).tokens
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        theirs = plain(input_ids=tokens.ids, attention_mask=tokens.attention_mask.long()).logits[:, 0]
        ours = response_scores(scalar_model(ModelConfig(path=folder)), tokens)
    torch.testing.assert_close(theirs, ours, **tol.FLOAT32)


def test_micro_batches_change_nothing(tmp_path):
    for micro, name in ((10_000, "one"), (40, "many")):
        reward_model.run(
            reward_config(tmp_path, out=tmp_path / name, micro_tokens=micro, lm_coef=0.5, center_coef=0.01)
        )
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "many"), strict=True):
        for key in ("loss", "lm/loss", "accuracy", "margin"):
            assert a[key] == pytest.approx(b[key], rel=tol.GRADIENT32["rtol"], abs=tol.GRADIENT32["atol"])


def test_lm_term_trains_the_same_trunk(tmp_path):
    reward_model.run(reward_config(tmp_path, steps=20, lm_coef=1.0))
    losses = [row["lm/loss"] for row in logged(tmp_path / "rm")]
    assert losses[-1] < losses[0]


def test_centring_keeps_scores_near_zero(tmp_path):
    sizes = []
    for coef, name in ((0.0, "free"), (1.0, "centred")):
        found = reward_model.run(reward_config(tmp_path, out=tmp_path / name, steps=20, center_coef=coef)).values[
            "evaluation"
        ]
        sizes.append(abs(found["score_chosen"] + found["score_rejected"]))
    assert sizes[1] < sizes[0]


def test_encoder_trunk(tmp_path):
    spec = ModelConfig(path=str(tiny.bert(tmp_path / "bert")))
    assert reward_model.run(reward_config(tmp_path, model=spec)).values["status"] == "finished"
    with pytest.raises(ConfigError, match="lm_coef > 0 needs a causal trunk"):
        reward_model.run(reward_config(tmp_path, model=spec, lm_coef=1.0, out=tmp_path / "rm2"))


def test_weight_zero_drops_a_pair(tmp_path):
    rows = [
        {"prompt": p, "chosen": tiny.said("yes ."), "rejected": tiny.said("no ."), "weight": w}
        for p, w in zip(tiny.conversations(12), [0.0, 1.0] * 6, strict=True)
    ]
    cfg = reward_config(tmp_path, batch=12, steps=1)
    tiny.write_rows(tmp_path / "weighted.jsonl", rows)
    tiny.write_rows(tmp_path / "kept.jsonl", [row for row in rows if row["weight"]])
    data = {
        name: cfg.data.model_copy(update={"path": str(tmp_path / f"{name}.jsonl"), "validation_fraction": 0.0})
        for name in ("weighted", "kept")
    }
    reward_model.run(cfg.model_copy(update={"data": data["weighted"], "out": tmp_path / "a"}))
    reward_model.run(cfg.model_copy(update={"data": data["kept"], "out": tmp_path / "b", "batch": 6}))
    a, b = logged(tmp_path / "a")[0], logged(tmp_path / "b")[0]
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=tol.GRADIENT32["rtol"])


def test_killed_run_resumes_to_the_same_bytes(tmp_path):
    whole = reward_config(tmp_path, steps=40, save_every=3, eval_every=7)
    reward_model.run(whole)
    killed_and_resumed("reward-model", whole.model_copy(update={"out": tmp_path / "killed"}), [0.1])
    same_results(tmp_path / "rm", tmp_path / "killed")
