import json

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import FAST, killed_here, logged, same_results

from keel.batches import TokenBatch
from keel.data.load import read_rankings
from keel.data.render import render_rankings, template
from keel.models.forward import response_scores
from keel.models.load import ModelConfig, load_tokenizer, scalar_model
from keel.recipes import ranking_rm
from keel.recipes.ranking_rm import RankingRMConfig
from keel.train.inputs import DataConfig
from keel.train.step import OptimizerConfig

ANSWERS = ["yes please .", "yes .", "the cat sat", "no"]


def rankings(path, n=24):
    """Up to four responses per prompt, best to worst as in ANSWERS; every third ranking ends in a tie."""
    if not path.exists():
        tiny.write_rows(path, [
            {"id": f"r{i}", "prompt": prompt, "responses": ANSWERS[i % 2:][::-1],
             "scores": [0 if i % 3 == 0 else -1, *range(4 - i % 2 - 1)]}
            for i, prompt in enumerate(tiny.conversations(n))])
    return path


def config(tmp, **changes) -> RankingRMConfig:
    base = tmp / "base" if (tmp / "base").exists() else tiny.llama(tmp / "base")
    data = DataConfig(path=str(rankings(tmp / "rankings.jsonl")), validation_fraction=0.3, max_length=64)
    settings = {"out": tmp / "rm", "model": ModelConfig(path=str(base)), "data": data, "batch": 6, "steps": 4,
                "optimizer": FAST, "eval_every": 2, "save_every": 2}
    return RankingRMConfig(**(settings | changes))


@pytest.mark.parametrize("loss", ["plackett_luce", "all_pairs"])
def test_it_learns_the_order_and_prints_the_length_baseline(tmp_path, loss):
    result = ranking_rm.run(config(tmp_path, steps=20, loss=loss, eval_every=20, save_every=20))
    found = result.values["evaluation"]
    # Far above chance, which is 0.5, 0 and less than a half.
    assert found["accuracy"] > 0.8 and found["kendall"] > 0.6 and found["top1"] > 0.5
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    assert result.values["headline"]["before"]["mean"] == found["longer_wins"] < found["accuracy"]
    assert logged(tmp_path / "rm")[-1]["loss"] < logged(tmp_path / "rm")[0]["loss"]


def test_the_numbers_of_an_evaluation_by_hand(tmp_path):
    """Scores of the saved model, counted pair by pair."""
    held, (one, other) = tmp_path / "held.jsonl", tiny.conversations(60)[-2:]
    tiny.write_rows(held, [
        {"prompt": one, "responses": ["yes", "no no", "no"], "ranks": [1, 2, 2]},
        {"prompt": one, "responses": ["the cat", "dog"], "ranks": [1, 2]},
        {"prompt": other, "responses": ["red", "blue"], "ranks": [1, 2]}])
    cfg = config(tmp_path)
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"validation": str(held)})})
    found = ranking_rm.run(cfg).values["evaluation"]
    words = template(load_tokenizer(str(tmp_path / "rm/model")))
    model = scalar_model(ModelConfig(path=str(tmp_path / "rm/model")))
    scores = []
    for row in render_rankings(words, read_rankings(held)[0], 64)[0]:
        alone = [torch.tensor([one.ids]) for one in row.rows]
        with torch.no_grad():
            scores.append([float(response_scores(model, TokenBatch(
                ids, torch.ones_like(ids).bool(), torch.ones_like(ids).bool(), ("x",)))) for ids in alone])
    (a, b, c), (d, e), (f, g) = scores
    right = [a > b, a > c, d > e, f > g]
    assert (found["n"], found["n_rankings"]) == (4, 3)
    assert found["accuracy"] == sum(right) / 4
    # Tokens: yes 1 < no no 2, yes 1 = no 1, the cat 2 > dog 1, red 1 = blue 1.
    assert found["longer_wins"] == (0 + 0.5 + 1 + 0.5) / 4
    assert found["top1"] == pytest.approx(((a > max(b, c)) + (d > e) + (f > g)) / 3, rel=tol.RELATIVE64)
    taus = [right[0] + right[1] - 1, 2 * right[2] - 1, 2 * right[3] - 1]
    assert found["kendall"] == pytest.approx(sum(taus) / 3, rel=tol.RELATIVE64, abs=tol.RELATIVE64)


def test_micro_batches_and_shared_prompts_change_nothing(tmp_path):
    for name, changes in (("one", {"micro_tokens": 10_000}), ("many", {"micro_tokens": 1}),
                          ("shared", {"shared_prompt": "always"})):
        ranking_rm.run(config(tmp_path, out=tmp_path / name, **{"shared_prompt": "never"} | changes))
    for name in ("many", "shared"):
        for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / name), strict=True):
            for key in ("loss", "accuracy", "kendall", "top1", "grad_norm"):
                assert a[key] == pytest.approx(b[key], rel=tol.GRADIENT32["rtol"], abs=tol.GRADIENT32["atol"])


def test_pairs_are_rankings_of_two_and_teach_what_bradley_terry_teaches(tmp_path):
    pairs = tiny.pairs(tmp_path / "pairs.jsonl")
    ranked = [{"id": row["id"], "prompt": row["prompt"], "responses": [row["rejected"], row["chosen"]], "ranks": [2, 1]}
              for row in map(json.loads, pairs.read_text().splitlines())]
    for name, path in (("pairs", pairs), ("ranked", tiny.write_rows(tmp_path / "ranked.jsonl", ranked))):
        data = DataConfig(path=str(path), validation_fraction=0.3, max_length=64)
        ranking_rm.run(config(tmp_path, out=tmp_path / name, data=data))
    same_results(tmp_path / "pairs", tmp_path / "ranked")


def test_encoder_trunk(tmp_path):
    spec = ModelConfig(path=str(tiny.bert(tmp_path / "bert")))
    assert ranking_rm.run(config(tmp_path, model=spec, steps=1)).values["status"] == "finished"


def test_no_held_out_rankings_no_headline(tmp_path):
    cfg = config(tmp_path, steps=1)
    data = cfg.data.model_copy(update={"validation_fraction": 0.0})
    result = ranking_rm.run(cfg.model_copy(update={"data": data}))
    assert result.values["headline"] is None and result.values["evaluation"] == {}


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    how = OptimizerConfig(lr=5e-3)
    ranking_rm.run(config(tmp_path, optimizer=how, steps=7))
    killed_here(config(tmp_path, out=tmp_path / "killed", optimizer=how, steps=7), [("log", 4), ("save", 1)],
                run=ranking_rm.run)
    same_results(tmp_path / "rm", tmp_path / "killed")
