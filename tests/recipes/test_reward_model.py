import itertools
import json

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import killed_and_resumed, logged, reward_config, same_results

from keel.bench.scorer_config import ScorerConfig
from keel.bench.sources import BenchmarkConfig
from keel.data.collate import collate_pairs
from keel.data.load import read_pairs
from keel.data.render import render_pairs, template
from keel.errors import ConfigError, DataError, ModelError
from keel.models.forward import response_scores
from keel.models.load import ModelConfig, causal_lm, load_tokenizer, scalar_model, share_trunk
from keel.recipes import bench_rm, reward_model
from keel.recipes.bench_rm import BenchRMConfig
from keel.train.order import batch_indices
from keel.train.step import Learner


def test_it_learns_the_preference_and_prints_the_length_baseline(tmp_path):
    result = reward_model.run(reward_config(tmp_path, steps=30, optimizer=reward_config(tmp_path).optimizer))
    found = result.values["evaluation"]
    assert found["accuracy"] > 0.9  # "yes please" and "the cat sat" against "no": learnable
    assert 0 <= found["longer_wins"] <= 1 and found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    assert result.values["headline"]["before"]["mean"] == found["longer_wins"]


def test_scores_in_plain_transformers_equal_ours(tmp_path):
    from transformers import AutoModelForSequenceClassification

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


def test_without_any_weight_there_is_nothing_to_learn(tmp_path):
    rows = [{"prompt": p, "chosen": tiny.said("yes ."), "rejected": tiny.said("no ."), "weight": 0.0}
            for p in tiny.conversations(3)]
    file = tiny.write_rows(tmp_path / "none.jsonl", rows)
    cfg = reward_config(tmp_path)
    data = cfg.data.model_copy(update={"path": str(file), "validation_fraction": 0.0})
    with pytest.raises(DataError, match="all of 3 training pairs have weight 0"):
        reward_model.run(cfg.model_copy(update={"data": data}))


def test_a_held_out_row_beyond_the_context_is_refused_at_the_door(tmp_path):
    long = [{"prompt": p, "chosen": tiny.said("yes . " * 70), "rejected": tiny.said("no .")}
            for p in tiny.conversations(60)[-2:]]
    file = tiny.write_rows(tmp_path / "long.jsonl", long)
    cfg = reward_config(tmp_path, model=ModelConfig(path=str(tiny.gpt2(tmp_path / "gpt2"))))
    data = cfg.data.model_copy(update={"validation": str(file), "max_length": 400})
    with pytest.raises(ModelError, match="the longest row has"):
        reward_model.run(cfg.model_copy(update={"data": data}))


@pytest.mark.parametrize("names", [["a", "a"], ["held_out"]])
def test_every_exam_has_a_name_of_its_own(tmp_path, names):
    with pytest.raises(ConfigError, match="held_out is the validation part"):
        reward_model.RewardModelConfig.checked({"out": "o", "model": "m", "data": {"path": "d"},
                                                "exams": [{"name": name, "path": "e"} for name in names]})


def test_the_lm_term_is_the_cross_entropy_of_chosen_response_tokens(tmp_path, monkeypatch):
    """The gradient with the term less that without it, against that of the term built by hand, one row at a time."""
    cfg = reward_config(tmp_path, steps=1, batch=6, lm_coef=0.7)
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"validation_fraction": 0.0})})
    seen: list[dict[str, torch.Tensor]] = []

    def spied(learner, number, ids, **how):
        seen.append({str(i): p.grad.clone() for i, p in enumerate(learner.parameters) if p.grad is not None})
        return original(learner, number, ids, **how)

    original = Learner.step
    monkeypatch.setattr(Learner, "step", spied)
    for coef in (0.7, 1e-12):  # so small that nothing is left of it, yet the model has its head
        reward_model.run(cfg.model_copy(update={"lm_coef": coef, "out": tmp_path / f"rm-{coef}"}))
    words = template(load_tokenizer(cfg.model.path))
    rows = {row.record_id: row for row in render_pairs(words, read_pairs(cfg.data.path)[0], 64, "drop_turns")[0]}
    scorer = scalar_model(cfg.model, seed=cfg.seed)
    writer = share_trunk(causal_lm(cfg.model, seed=cfg.seed), scorer)
    picked = [list(rows.values())[i] for i in next(batch_indices(len(rows), 6, cfg.seed, "reward_model"))]
    total, n = torch.zeros(()), 0
    for row in picked:
        logits = writer(input_ids=torch.tensor([row.chosen.ids])).logits[0].log_softmax(-1)
        for t in range(len(row.prompt_ids), len(row.chosen.ids)):
            total, n = total - logits[t - 1, row.chosen.ids[t]], n + 1
    (0.7 * total / n).backward()
    learner = Learner.of([scorer, writer], cfg.optimizer, 1)
    for i, p in enumerate(learner.parameters):
        found = seen[0].get(str(i), torch.zeros(())) - seen[1].get(str(i), torch.zeros(()))
        torch.testing.assert_close(found, torch.zeros_like(p) if p.grad is None else p.grad, **tol.GRADIENT32)


def test_a_slice_of_a_benchmark_is_asked_at_every_validation(tmp_path):
    """The last one's numbers are those that `keel bench-rm` gives the finished model."""
    file = tmp_path / "asked.jsonl"
    rows = [row | {"prompt": "please ?", "subset": str(i % 3)}
            for i, (one, other) in enumerate(itertools.pairwise(tiny.WORDS)) for row in (
                {"id": f"p{i}", "chosen": f"{one} {other}", "rejected": other},
                {"id": f"l{i}", "best": one, "losers": [other, f"{other} {one}"]})]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = BenchmarkConfig(path=str(file))
    found = reward_model.run(reward_config(tmp_path, benchmark=asked)).values["evaluation"]
    rows = logged(tmp_path / "rm", phase="eval")
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[0]["bench/headline"] != rows[1]["bench/headline"]
    model = ScorerConfig(model=ModelConfig(path=str(tmp_path / "rm/model")))
    after = bench_rm.run(BenchRMConfig(out=tmp_path / "bench", benchmark=asked, scorer=model)).values
    assert found["bench/headline"] == after["headline"]["mean"]
    assert found["bench/pairs"] == after["sets"]["pair"]["all"]["micro"]["mean"]
    assert found["bench/lists"] == after["sets"]["list"]["all"]["micro"]["mean"]
    assert found["bench/not_finite"] == 0


def test_killed_run_resumes_to_the_same_bytes(tmp_path):
    whole = reward_config(tmp_path, steps=40, save_every=3, eval_every=7)
    reward_model.run(whole)
    killed_and_resumed("reward-model", whole.model_copy(update={"out": tmp_path / "killed"}), [0.1])
    same_results(tmp_path / "rm", tmp_path / "killed")
