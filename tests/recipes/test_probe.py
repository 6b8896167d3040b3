"""Nine probes of a tiny reward model from files to files: what is written, what is said, what is refused."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from recipes.running import logged, reward
from tolerances import FLOAT32, RELATIVE32
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from keel.bench import measures
from keel.bench.measures import PROBES
from keel.data.files import FileConfig
from keel.errors import ConfigError, DataError, NumericsError, RunError
from keel.models.load import ModelConfig
from keel.recipes import probe
from keel.recipes.probe import ProbeConfig, run
from keel.runs import Run, Stopped

OF_DATA = ("length", "format", "empty_calories", "tone", "mismatch", "truncation", "invariance")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(measures, "N_RESAMPLES", 40)


def config(tmp: Path, out: str = "out", **changes) -> ProbeConfig:
    settings = {"out": tmp / out, "model": ModelConfig(path=str(reward(tmp))),
                "data": FileConfig(path=str(tiny.pairs(tmp / "pairs.jsonl", 12)), max_length=64)}
    return ProbeConfig(**(settings | changes))


def said(tmp: Path, n: int = 4, **columns) -> FileConfig:
    """Samples as several runs of `keel generate` leave them: each prompt n times under one id."""
    words = ("yes", "no please", "the cat sat .", "hello yes yes two", "why ?")
    rows = [{"id": f"q{i}", "prompt": prompt, "response": " ".join([words[(i + k) % 5]] * (1 + k)), "ended": k != 1,
             "gold": float(k)} | columns for i, prompt in enumerate(tiny.conversations(6)) for k in range(n)]
    return FileConfig(path=str(tiny.write_rows(tmp / "said.jsonl", rows)), max_length=64)


def folder(tmp: Path, name: str, rows: list[dict]) -> Path:
    (tmp / name).mkdir()
    tiny.write_rows(tmp / name / "metrics.jsonl", rows)
    return tmp / name


def evaluation(step: int, score: float, gold: float) -> dict:
    return {"step": step, "phase": "eval", "score/mean": score, "gold/mean": gold, "gold/low": gold - 0.1,
            "gold/high": gold + 0.1, "kl/mean": 0.01 * step, "length/mean": 20.0, "gold/n": 9, "score/n": 9}


def trained(step: int, level: float) -> dict:
    return {"step": step, "phase": "eval", "score_chosen": level + 1, "score_rejected": level, "margin": 1.0,
            "margin_std": 1.0}


def written(tmp: Path, out: str = "out") -> dict[str, dict]:
    return {one["name"]: one for one in json.loads((tmp / out / "probes.json").read_text())["probes"]}


def test_all_nine(tmp_path, capsys):
    ppo = folder(tmp_path, "ppo", [evaluation(0, 0, 0.2), evaluation(10, 1, 0.6), evaluation(20, 2, 0.3)])
    training = folder(tmp_path, "rm", [trained(10, 0.0), trained(20, 5.0)])
    with (training / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "pha')  # of a process that was killed here
    cfg = config(tmp_path, samples=said(tmp_path), ppo_run=ppo, training_run=training)
    result, found = run(cfg).values, written(tmp_path)
    assert list(found) == list(result["verdicts"]) == list(PROBES)
    assert {name: one["verdict"] for name, one in found.items()} == result["verdicts"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"{n} {one['title'].lower()}" for n, one in enumerate(found.values(), start=1)]
    assert lines[8] == "9 inflation: suspicious: drift of the mean score 5"
    assert found["over_optimisation"]["verdict"] == "suspicious" and found["over_optimisation"]["needs"] == ""
    curve = found["over_optimisation"]["curve"]
    assert [row.get("n", row.get("step")) for row in curve] == [1, 2, 4, 0, 10, 20]
    names = [m["name"] for m in found["over_optimisation"]["measures"]]
    assert names == ["gold after its peak", "gold gained", "Pearson correlation", "Spearman correlation", "gold in PPO"]
    assert [m["name"] for m in found["invariance"]["measures"]] == [
        "batch of one", "three more columns", "other padding", "padded on the left", "in bfloat16", "order turned over"]
    assert all(m["verdict"] == "fine" for m in found["invariance"]["measures"][:4])
    correlations = found["length"]["measures"][-2:]
    assert all(m["value"]["n"] == 24 and "samples of the policy" in m["done"] for m in correlations)


def test_what_is_missing_is_named(tmp_path, capsys):
    run(config(tmp_path))
    found = written(tmp_path)
    assert [name for name, one in found.items() if one["verdict"] == "not run"] == ["over_optimisation", "inflation"]
    assert found["over_optimisation"]["needs"] == \
        "needs --samples, several per prompt with a gold score; needs --ppo_run"
    assert "9 inflation: not run: needs --training_run" in capsys.readouterr().out
    assert all(found[name]["measures"] for name in OF_DATA)
    assert "over both responses of each pair" in found["length"]["measures"][-1]["done"]


@pytest.mark.parametrize("samples, needs", [
    ({"gold": None}, "the samples have no gold score: needs --gold, or a column gold; needs --ppo_run"),
    ({"n": 1}, "most prompts of the samples have one response: needs several; needs --ppo_run")])
def test_samples_that_lack_something(tmp_path, samples, needs):
    run(config(tmp_path, samples=said(tmp_path, **samples)))
    found = written(tmp_path)
    assert found["over_optimisation"]["needs"] == needs and found["over_optimisation"]["verdict"] == "not run"
    assert ("samples of the policy" in found["length"]["measures"][-1]["done"]) == ("n" not in samples)


def test_runs_that_lack_something(tmp_path):
    ppo = folder(tmp_path, "ppo", [{"step": 1, "phase": "eval", "score/mean": 1.0}])
    run(config(tmp_path, ppo_run=ppo, training_run=folder(tmp_path, "rm", [trained(10, 0.0)])))
    found = written(tmp_path)
    assert "the PPO run logged no gold on held-out prompts" in found["over_optimisation"]["needs"]
    assert found["inflation"]["needs"] == "the training run has fewer than two evaluations: lower its eval_every"


def test_shifts_are_those_of_transformers(tmp_path):
    """The examples' scores, and one mean shift, by loading the model without keel."""
    run(config(tmp_path, n_examples=100))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    words, rows = tiny.tokenizer(), logged(tmp_path / "out", "samples.jsonl", None)
    shown = [row for row in rows if row["domain"] == "repeated sentence"]
    assert len(shown) == 48 and [row["id"] for row in shown[::2]] == [row["id"] for row in shown[1::2]]
    with torch.no_grad():
        scores = torch.stack([model(**words(words.apply_chat_template(
            [*row["prompt"], {"role": "assistant", "content": row["response"]}], tokenize=False),
            add_special_tokens=False, return_tensors="pt")).logits[0, 0] for row in shown])
    assert_close(scores, torch.tensor([row["score"] for row in shown]), **FLOAT32)
    whole = json.loads((tmp_path / "out/probes.json").read_text())
    measure = next(m for m in written(tmp_path)["empty_calories"]["measures"] if m["name"] == "repeated sentence")
    rises = scores[1::2] - scores[::2]
    assert measure["value"]["mean"] == pytest.approx(float(rises.mean()) / whole["std"], rel=1e2 * RELATIVE32)
    assert measure["rises"] == pytest.approx(float((rises > 0).float().mean()))
    assert rises.tolist() == sorted(rises.tolist(), reverse=True)
    instead = next(row for row in rows if row["domain"] == "another prompt")["prompt"]
    assert [turn["role"] for turn in instead] == ["user", "and instead"] and instead[0] != instead[1]["content"]


def test_samples_that_were_cut_have_no_end(tmp_path, monkeypatch):
    scored, rows = probe.scored, []
    monkeypatch.setattr(probe, "scored", lambda score, every, **how: rows.append(every) or scored(score, every, **how))
    run(config(tmp_path, samples=said(tmp_path)))
    assert [row.ids[-1] == 2 for row in rows[0][-24:]] == [k != 1 for _ in range(6) for k in range(4)]


def test_gold_by_a_function_takes_the_place_of_the_column(tmp_path):
    run(config(tmp_path, samples=said(tmp_path), gold="tiny:count_yes"))
    first = written(tmp_path)["over_optimisation"]["curve"][0]
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    gold = [tiny.count_yes(None, row["response"], row["ended"]) for row in rows]
    assert first["gold"]["mean"] == pytest.approx(sum(gold) / 24, rel=RELATIVE32)


def test_the_same_seed_finds_the_same_and_another_seed_other_partners(tmp_path):
    for out, seed in (("one", 0), ("again", 0), ("other", 1)):
        run(config(tmp_path, out, seed=seed, limit=8))
    one, again, other = ((tmp_path / out / "probes.json").read_bytes() for out in ("one", "again", "other"))
    assert one == again != other
    assert (tmp_path / "one/samples.jsonl").read_bytes() == (tmp_path / "again/samples.jsonl").read_bytes()
    assert written(tmp_path, "one")["format"]["measures"][0]["value"]["n"] == 16


@pytest.mark.parametrize("how", [{"dtype": "bfloat16"}, {"autocast": True}])
def test_a_model_in_bfloat16_is_held_against_float32(tmp_path, how):
    run(config(tmp_path, model=ModelConfig(path=str(reward(tmp_path)), **how)))
    found = written(tmp_path)["invariance"]["measures"][-2]
    assert found["name"] == "in float32" and found["value"]["mean"] < 1.0


def test_an_encoder_is_not_padded_on_the_left(tmp_path):
    run(config(tmp_path, model=ModelConfig(path=str(tiny.bert(tmp_path / "bert")))))
    found = written(tmp_path)["invariance"]["measures"]
    assert [m["name"] for m in found[:4]] == ["batch of one", "three more columns", "other padding", "in bfloat16"]
    assert {m["verdict"] for m in found[:3]} == {"fine"} and found[3]["value"]["mean"] < 1.0


def test_a_reward_model_near_chance_is_said_to_be(tmp_path, monkeypatch, capsys):
    run(config(tmp_path))
    assert "not shown to be better than chance" in capsys.readouterr().err
    monkeypatch.setattr(probe, "CHANCE", -1.0)
    run(config(tmp_path, "sure"))
    assert "better than chance" not in capsys.readouterr().err


def test_where_chosen_is_always_longer_nothing_is_said_about_the_shorter(tmp_path, capsys):
    rows = [{"prompt": p, "chosen": tiny.said("yes please yes please ."), "rejected": tiny.said("no .")}
            for p in tiny.conversations(6)]
    data = FileConfig(path=str(tiny.write_rows(tmp_path / "longer.jsonl", rows)), max_length=64)
    assert probe.run(config(tmp_path, data=data)).values["status"] == "finished"
    shorter = [one for one in written(tmp_path)["length"]["measures"] if one["value"]["mean"] is None]
    assert shorter and "None" not in capsys.readouterr().out


def test_gold_needs_samples(tmp_path):
    with pytest.raises(ConfigError, match="gold without samples scores nothing: name a file of samples"):
        ProbeConfig.checked(config(tmp_path).model_dump() | {"gold": "tiny:count_yes"})


def test_bad_inputs_end_before_anything_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "scalar_model", None)
    with pytest.raises(RunError, match=r"nowhere: no metrics.jsonl in this folder, so no run to probe\n.*--out named"):
        run(config(tmp_path, "a", ppo_run=tmp_path / "nowhere"))
    long = said(tmp_path, response="yes " * 9).model_copy(update={"max_length": 8, "too_long": "truncate_response"})
    with pytest.raises(DataError, match=r"said.jsonl: none of 24 samples fits whole into 8 tokens\n.*Raise samples"):
        run(config(tmp_path, "b", samples=long))
    with pytest.raises(NumericsError, match="the scoring function failed"):
        run(config(tmp_path, "c", samples=said(tmp_path), gold="recipes.test_probe:config"))
    with pytest.raises(DataError, match="none of 12 rows fits into 8 tokens"):
        run(config(tmp_path, "d", data=FileConfig(path=str(tmp_path / "pairs.jsonl"), max_length=8)))


def test_asked_to_stop_it_keeps_nothing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "stop_requested", lambda self: True)
    with pytest.raises(Stopped, match=r"stopped after \d+ of \d+ scores; nothing is kept\n.*another --out"):
        run(config(tmp_path))
    assert json.loads((tmp_path / "out/result.json").read_text())["status"] == "stopped"
    assert not (tmp_path / "out/probes.json").exists()
