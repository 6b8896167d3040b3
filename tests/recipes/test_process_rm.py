"""Process reward models: what they learn, what they leave behind, and how it is measured."""

import json
import random
from pathlib import Path

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import FAST, killed_here, logged, same_results

from keel.data.load import read_traces
from keel.data.render import template
from keel.data.seen import prompt_key, read_seen
from keel.data.step_rows import render_traces
from keel.errors import ConfigError, DataError
from keel.models.load import LoraSettings, ModelConfig, load_tokenizer
from keel.models.process import process_model
from keel.recipes import process_rm
from keel.recipes.process_rm import ProcessRMConfig
from keel.report.command import ReportConfig
from keel.report.command import run as report
from keel.report.glossary import describe
from keel.train.solutions import SolutionsConfig

STEPS = [" the dog", " red cat", " yes sat", " one ran", " no blue"]
"""Equally long, so that length tells nothing."""


def solutions(path, n=40):
    """Steps with a `no` are wrong, and none behind them was judged; half of the answers are right."""
    if not path.exists():
        rows, draw = [], random.Random(0)
        for i, prompt in enumerate(tiny.conversations(n)):
            steps = [draw.choice(STEPS) for _ in range(1 + i % 4)]
            wrong = next((k for k, step in enumerate(steps) if "no" in step), len(steps))
            labels = [True if k < wrong else False if k == wrong else None for k in range(len(steps))]
            rows.append({"id": f"s{i}", "prompt": prompt, "completions": steps, "labels": labels,
                         "outcome": wrong == len(steps), "task": "even" if i % 2 == 0 else "odd"})
        tiny.write_rows(path, rows)
    return path


def config(tmp, **changes) -> ProcessRMConfig:
    base = tmp / "base" if (tmp / "base").exists() else tiny.llama(tmp / "base")
    data = SolutionsConfig(**({"path": str(solutions(tmp / "solutions.jsonl")), "validation_fraction": 0.3,
                               "max_length": 64} | changes.pop("data", {})))
    settings = {"out": tmp / "rm", "model": ModelConfig(path=str(base)), "data": data, "separator": " .", "batch": 8,
                "steps": 3, "optimizer": FAST, "eval_every": 3, "save_every": 2, "by": "task"}
    return ProcessRMConfig(**(settings | changes))


def written(folder):
    return [json.loads(line) for line in (folder / "solutions.jsonl").read_text().splitlines()]


def alone(folder, kind, ids):
    """Logits of one row in plain transformers."""
    import transformers

    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double()


def spelled(folder, row):
    """Tokens of a solution through the tokenizer's own template, and where its steps end: at `.` and the last token."""
    tokenizer = load_tokenizer(str(folder))
    said = " .".join(step["text"] for step in row["steps"])
    ids = tokenizer.apply_chat_template([*row["prompt"], {"role": "assistant", "content": said}],
                                        return_dict=True)["input_ids"]
    first = len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"])
    dots = [i for i, token in enumerate(ids) if i >= first and token == tokenizer.convert_tokens_to_ids(".")]
    return ids, [*dots, len(ids) - 1]


def test_it_finds_the_first_errors_and_beats_the_baselines(tmp_path):
    result = process_rm.run(config(tmp_path, steps=25, eval_every=25, save_every=25)).values
    found, course = result["steps"], logged(tmp_path / "rm")
    assert course[-1]["loss"] < course[0]["loss"] / 2
    assert found["first_error"]["f1"]["mean"] > max(one["f1"]["mean"] or 0 for one in found["baselines"].values())
    assert {"no error", "majority", "length"} <= set(found["baselines"]) and set(found["by_task"]) == {"even", "odd"}
    last = result["evaluation"]
    assert last["first_error/f1"] == found["first_error"]["f1"]["mean"]
    assert last["steps/accuracy"] == found["accuracy"]["mean"] > found["accuracy_majority"]
    over = found["difference"]["over"]
    assert result["headline"]["metric"] == f"held-out F1 of first errors (before: {over})"
    assert result["headline"]["after"]["mean"] == last["first_error/f1"]
    assert result["headline"]["before"]["mean"] == found["baselines"][over]["f1"]["mean"]
    assert result["headline"]["after"]["n"] == found["n"] == len(written(tmp_path / "rm")) == result["n_validation"]


def test_the_model_in_plain_transformers_gives_the_scores_that_were_written(tmp_path):
    """Read where the separators and the turn end, in rows spelled by the tokenizer's own template."""
    process_rm.run(config(tmp_path, model=ModelConfig(path=str(tiny.llama(tmp_path / "base")),
                                                      lora=LoraSettings(rank=2))))
    for row in written(tmp_path / "rm")[:4]:
        ids, ends = spelled(tmp_path / "base", row)
        right = alone(tmp_path / "rm/model", "TokenClassification", ids).softmax(1)[ends, 1]
        assert [step["score"] for step in row["steps"]] == pytest.approx(right.tolist(), rel=tol.GRADIENT32["rtol"])


def test_the_first_loss_by_hand(tmp_path):
    """The mean over the labelled steps of one optimiser step, of the model as it was drawn."""
    cfg = config(tmp_path, steps=1, data={"validation_fraction": 0.0}, batch=40)
    process_rm.run(cfg)
    process_model_of(cfg, tmp_path / "drawn")
    told = []
    for line in (tmp_path / "solutions.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids, ends = spelled(tmp_path / "base", {"prompt": row["prompt"],
                                                "steps": [{"text": text} for text in row["completions"]]})
        both = alone(tmp_path / "drawn", "TokenClassification", ids).log_softmax(1)
        told += [(float(both[end, int(label)]), label, float(both[end, 1].exp()))
                 for end, label in zip(ends, row["labels"], strict=True) if label is not None]
    [first] = logged(tmp_path / "rm")
    n, close = len(told), tol.GRADIENT32["rtol"]
    assert first["loss"] == pytest.approx(-sum(logprob for logprob, _, _ in told) / n, rel=close)
    assert first["steps/label"] == pytest.approx(sum(label for _, label, _ in told) / n, rel=close)
    assert first["steps/probability"] == pytest.approx(sum(p for _, _, p in told) / n, rel=close)
    assert first["steps/accuracy"] == pytest.approx(sum((p > 1 / 2) == label for _, label, p in told) / n, rel=close)
    assert logged(tmp_path / "rm", phase="eval") == []


def process_model_of(cfg, folder):
    model = process_model(cfg.model, seed=cfg.seed)
    model.save_pretrained(folder)


def test_micro_batches_change_nothing(tmp_path):
    for name, micro_tokens in (("one", 10_000), ("many", 1)):
        process_rm.run(config(tmp_path, out=tmp_path / name, micro_tokens=micro_tokens))
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "many"), strict=True):
        for key in ("loss", "grad_norm", "steps/probability"):
            assert a[key] == pytest.approx(b[key], rel=tol.GRADIENT32["rtol"], abs=tol.GRADIENT32["atol"])


@pytest.mark.parametrize("supervise", ["outcome", "outcome_at_each_step"])
def test_an_outcome_model_is_a_reward_model_at_once(tmp_path, supervise):
    cfg = config(tmp_path, supervise=supervise, steps=12, eval_every=12, save_every=12)
    result = process_rm.run(cfg).values
    ids, _ = spelled(tmp_path / "base", written(tmp_path / "rm")[0])
    step = alone(tmp_path / "rm/model", "TokenClassification", ids)[-1]
    score = alone(tmp_path / "rm/reward_model", "SequenceClassification", ids)
    assert float(score[0]) == pytest.approx(float(step[1] - step[0]), rel=tol.GRADIENT32["rtol"])
    found = result["outcome"]
    assert result["evaluation"]["outcome/auc"] == found["auc"]["mean"] > 0.6
    assert result["evaluation"]["outcome/accuracy"] == found["accuracy"]["mean"]
    assert result["headline"]["metric"] == "held-out area under the curve of outcomes (before: the number of steps)"
    assert result["headline"]["before"]["mean"] == found["baselines"]["number of steps"]["auc"]["mean"]
    # The labels of its held-out steps are known too: what it says of them is measured beside.
    assert result["steps"]["n"] == found["n"] and "first_error" in result["steps"]


def test_without_outcomes_there_is_no_reward_model(tmp_path):
    process_rm.run(config(tmp_path, steps=1))
    assert not (tmp_path / "rm/reward_model").exists()


def edited(tmp, change):
    rows = [json.loads(line) for line in solutions(tmp / "solutions.jsonl").read_text().splitlines()]
    return str(tiny.write_rows(tmp / "edited.jsonl", [row | change(row) for row in rows]))


def test_files_that_lack_what_is_to_be_learned(tmp_path):
    for supervise, change, what in (
            ("outcome", {"outcome": None}, "solutions says whether its final answer is right"),
            ("steps", {"labels": None}, "solutions has a label of a step")):
        path = edited(tmp_path, lambda row, c=change: {
            name: value if name != "labels" else [None] * len(row["labels"]) for name, value in c.items()})
        with pytest.raises(DataError, match=what):
            process_rm.run(config(tmp_path, out=tmp_path / supervise, supervise=supervise, data={"path": path}))


def test_a_run_on_outcomes_alone(tmp_path):
    """Nobody judged a step: there is nothing to say about steps."""
    path = edited(tmp_path, lambda row: {"labels": [None] * len(row["labels"])})
    result = process_rm.run(config(tmp_path, supervise="outcome", data={"path": path})).values
    assert "steps" not in result and result["outcome"]["n"] == result["n_validation"]
    assert all(step["label"] is None for row in written(tmp_path / "rm") for step in row["steps"])


def test_what_the_limit_takes_is_counted_and_counts_as_missed(tmp_path):
    """Held-out errors behind the limit stay errors, so no limit makes a model look better."""
    whole = process_rm.run(config(tmp_path, out=tmp_path / "whole", steps=1)).values
    cfg = config(tmp_path, steps=1, data={"max_length": 14})
    result = process_rm.run(cfg).values
    words = template(load_tokenizer(cfg.model.path))
    train = [one for one in read_traces(cfg.data.path)[0] if one.id not in {row["id"] for row in written(cfg.out)}]
    cut = render_traces(words, train, separator=" .", max_length=14)[1]
    assert result["truncation"] == vars(cut)
    # What the report calls records; steps and labels are none.
    assert result["skipped"] == {"records": 0, "n_unlabelled": 0, "n_rows": cut.n_rows, "n_cut": cut.n_shortened,
                                 "n_dropped": cut.n_dropped, "max_length": cut.max_length}
    held = [one for one in read_traces(cfg.data.path)[0] if one.id not in {one.id for one in train}]
    cut_held = render_traces(words, held, separator=" .", max_length=14)[1]
    assert result["held_out"] == vars(cut_held) and cut_held.n_outcomes_lost > 0 and cut_held.n_rows == len(held)
    assert cut.n_labels_lost > 0 and result["notes"] == [cut.summary(), f"held out: {cut_held.summary()}"]
    for key in ("n_wrong", "n_right"):
        assert result["steps"]["first_error"][key] == whole["steps"]["first_error"][key]
    assert result["steps"]["n_unscored"] > whole["steps"]["n_unscored"] == 0
    assert any(step["score"] is None for row in written(cfg.out) for step in row["steps"])


def test_hard_labels_are_those_of_every_solution(tmp_path):
    """A label of 0.3 is right above 0.25: held out as in training, so no solution has a first error."""
    path = edited(tmp_path, lambda row: {"labels": [None if label is None else 0.3 for label in row["labels"]]})
    soft = process_rm.run(config(tmp_path, out=tmp_path / "soft", steps=1, data={"path": path})).values
    hard = process_rm.run(config(tmp_path, steps=1, hard_above=0.25, data={"path": path})).values
    assert soft["steps"]["first_error"]["n_right"] == hard["steps"]["first_error"]["n_wrong"] == 0
    # A wrong first step is the first error whatever follows; a solution is right only where every step was judged.
    assert 0 < hard["steps"]["first_error"]["n_right"] <= soft["steps"]["first_error"]["n_wrong"]
    assert soft["steps"]["baselines"]["majority"]["accuracy_wrong"] == 1.0
    assert hard["steps"]["baselines"]["majority"]["accuracy_right"] == 1.0
    assert hard["evaluation"]["steps/label"] == logged(tmp_path / "rm")[0]["steps/label"] == 1.0
    assert {step["label"] for row in written(tmp_path / "rm") for step in row["steps"]} <= {1.0, None}


def test_hard_labels_have_no_effect_on_outcomes(tmp_path):
    for supervise in ("outcome", "outcome_at_each_step"):
        with pytest.raises(ValueError, match=f"hard_above does nothing with supervise = {supervise}: an outcome"):
            config(tmp_path, supervise=supervise, hard_above=0.5)


def test_a_separator_as_typed_on_a_command_line(tmp_path):
    assert config(tmp_path, separator="\\n").separator == "\n"


def test_the_prompts_that_were_seen_are_listed(tmp_path):
    cfg = config(tmp_path, steps=1)
    process_rm.run(cfg)
    seen, held = read_seen(cfg.out / "model"), {row["id"] for row in written(cfg.out)}
    told = {one.id: prompt_key(one.prompt) for one in read_traces(cfg.data.path)[0]}
    assert seen.held_out == {key for name, key in told.items() if name in held}
    assert seen.learned_from == {key for name, key in told.items() if name not in held}


def test_only_wrong_solutions_leave_the_steps_to_be_counted(tmp_path):
    """Without right solutions there is no F1; the headline is the accuracy on steps."""
    rows = [json.loads(line) for line in solutions(tmp_path / "solutions.jsonl").read_text().splitlines()]
    path = tiny.write_rows(tmp_path / "wrong.jsonl", [row for row in rows if not row["outcome"]])
    result = process_rm.run(config(tmp_path, steps=1, data={"path": str(path)})).values
    assert result["headline"]["metric"] == "held-out accuracy on steps (before: the commonest label)"
    assert "first_error/f1" not in result["evaluation"] and "first_error/accuracy_wrong" in result["evaluation"]


def test_a_run_with_nothing_held_out(tmp_path):
    result = process_rm.run(config(tmp_path, steps=1, data={"validation_fraction": 0.0})).values
    assert result["headline"] is None and "steps" not in result and written(tmp_path / "rm") == []
    with pytest.raises(ConfigError, match="no process_rm records are left to train on"):
        process_rm.run(config(tmp_path, out=tmp_path / "none", data={"validation_fraction": 0.999999}))


def test_every_number_is_explained_and_the_report_shows_the_run(tmp_path):
    cfg = config(tmp_path, supervise="outcome")
    process_rm.run(cfg)
    page = (Path(__file__).parents[2] / "docs/methods/process_rm.md").read_text()
    names = sorted({name for row in logged(cfg.out, phase=None) for name in row} - {"step", "phase"})
    assert [name for name in names if f"`{name}`" not in page] == [] and "outcome/auc" in names
    assert [name for name in names if not describe(name).meaning] == []
    report(ReportConfig(runs=(str(cfg.out),), out=tmp_path / "page.html"))
    assert "area under the curve of outcomes" in (tmp_path / "page.html").read_text()


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    whole = config(tmp_path, steps=6, save_every=2, eval_every=3)
    process_rm.run(whole)
    killed = whole.model_copy(update={"out": tmp_path / "killed"})
    killed_here(killed, [("log", 1), ("log", 5), ("save", 2)], process_rm.run)
    same_results(whole.out, killed.out)
    for name in ("solutions.jsonl", "model/config.json"):
        assert (whole.out / name).read_bytes() == (killed.out / name).read_bytes()
    one, other = (json.loads((out / "result.json").read_text()) for out in (whole.out, killed.out))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}
