"""A judge of steps against labelled solutions: a model as plain transformers reads it, a function, and refusals."""

import json
from pathlib import Path

import pytest
import tiny
import tolerances as tol
import torch

from keel.bench.first_errors import baselines_of, judged
from keel.cli import main
from keel.data.load import read_traces
from keel.errors import DataError, NumericsError
from keel.models.load import ModelConfig, load_tokenizer, save_model
from keel.models.process import process_model
from keel.recipes.process_evaluate import ProcessEvaluateConfig, run
from keel.runs import Run, Stopped, write_json

ROWS = [
    {"id": "a", "prompt": "hello ?", "completions": ["yes please", "no", "the cat sat"], "labels": [True, False, None],
     "outcome": False, "meta": {"task": "cats"}},
    {"id": "b", "prompt": "why ?", "completions": ["the dog ran", "red"], "labels": [True, True], "outcome": True,
     "meta": {"task": "dogs"}},
    {"id": "c", "prompt": "one ?", "completions": ["no no", "two"], "labels": [False, None], "meta": {"task": "dogs"}},
    {"id": "d", "prompt": "two ?", "completions": ["yes"], "labels": [True], "outcome": True},
]


def wary(prompt, text, ended):
    """A step with "no" in it is likely wrong."""
    return [0.25 if "no" in step else 0.75 for step in text.split("\n")]


def flat(prompt, text, ended):
    return [0.5]


def sure(prompt, text, ended):
    return [2.0 for _ in text.split("\n")]


def written(file: Path, rows=ROWS):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def config(tmp: Path, rows=ROWS, function: str | None = "wary", **changes) -> ProcessEvaluateConfig:
    settings = {"out": tmp / "out", "data": written(tmp / "held.jsonl", rows)}
    if function:
        settings["function"] = f"recipes.test_process_evaluate:{function}"
    return ProcessEvaluateConfig.checked({k: v for k, v in (settings | changes).items()})


def lines(file: Path):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A process model that tells the steps apart."""
    home = tmp_path_factory.mktemp("judge")
    made = process_model(ModelConfig(path=str(tiny.llama(home / "trunk"))), seed=1)
    with torch.no_grad():
        made.score.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(2))
    save_model(made, load_tokenizer(str(home / "trunk")), home / "RUN" / "model")
    return home / "RUN" / "model"


def test_a_function_by_hand(tmp_path, capsys):
    found = run(config(tmp_path, by="task")).values
    # a is called wrong at 1 and c at 0, as they are; b and d pass.
    told = found["steps"]
    assert told["first_error"]["f1"]["mean"] == 1.0 and told["accuracy"]["mean"] == 1.0
    assert (told["first_error"]["n_wrong"], told["first_error"]["n_right"], told["threshold"]) == (2, 2, 0.5)
    assert list(told["by_task"]) == ["cats", "dogs"] and told["by"] == "task"
    assert found["headline"]["metric"] == "held-out F1 of first errors (before: no error)"
    assert found["headline"]["after"]["mean"] == 1.0 and found["headline"]["before"]["mean"] == 0.0
    assert found["headline"]["change"]["mean"] == 1.0 and found["headline"]["after"]["n"] == 4
    said = capsys.readouterr().out
    assert "this judge: F1 1.000" in said and "first errors found 100% of 2, right ones passed 100% of 2" in said
    assert "no error: F1 0.000" in said and "steps judged as labelled: 1.000" in said


def test_items_and_solutions(tmp_path):
    run(config(tmp_path, n_samples=2))
    items = lines(tmp_path / "out" / "items.jsonl")
    assert [row["id"] for row in items] == ["a", "b", "c", "d"]
    assert items[0] == {"id": "a", "n_steps": 3, "first_error": 1, "predicted": 1, "probabilities": [0.75, 0.25, 0.75]}
    assert (items[1]["first_error"], items[1]["predicted"]) == (-1, -1)
    shown = lines(tmp_path / "out" / "solutions.jsonl")
    assert [row["id"] for row in shown] == ["a", "b"]
    assert shown[0]["steps"][1] == {"text": "no", "score": 0.25, "label": 0.0} and shown[0]["outcome"] is False


def test_the_baselines_come_from_the_training_file(tmp_path):
    train = written(tmp_path / "train.jsonl", [{**row, "prompt": f"{row['prompt']} cat"} for row in ROWS[:3]])
    told = run(config(tmp_path, train=train)).values["steps"]
    held, training = read_traces(tmp_path / "held.jsonl")[0], read_traces(train)[0]
    probabilities = [wary(None, one.text("\n"), True) for one in held]
    assert told == json.loads(json.dumps(judged(probabilities, held, seed=0, baselines=baselines_of(training))))
    assert set(told["baselines"]) == {"no error", "majority", "length"}


def test_the_threshold_is_chosen_on_another_file(tmp_path):
    other = written(tmp_path / "other.jsonl", [{**row, "prompt": f"{row['prompt']} red"} for row in ROWS])
    assert run(config(tmp_path, threshold=0.8)).values["steps"]["first_error"]["f1"]["mean"] < 1.0
    told = run(config(tmp_path, threshold_from=other, out=tmp_path / "chosen")).values["steps"]
    assert told["threshold"] == 0.5 and told["first_error"]["f1"]["mean"] == 1.0


def by_transformers(folder, row):
    """Probability of "right" where each step ends: at the "." after it, and at the end of the turn."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    words, model = AutoTokenizer.from_pretrained(folder), AutoModelForTokenClassification.from_pretrained(folder).eval()
    text = f"<bos><user>{row['prompt']}<eos><assistant>{'.'.join(row['completions'])}<eos>"
    ids = words(text, add_special_tokens=False).input_ids
    ends = [i for i, token in enumerate(words.convert_ids_to_tokens(ids)) if token == "."] + [len(ids) - 1]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    return [float(logits[end].softmax(0)[1]) for end in ends]


def test_a_model_says_what_plain_transformers_says(tmp_path, model):
    run(config(tmp_path, function=None, model=str(model), separator=".", micro_tokens=12))
    items = lines(tmp_path / "out" / "items.jsonl")
    for row, item in zip(ROWS, items, strict=True):
        assert item["probabilities"] == pytest.approx(by_transformers(model, row), rel=tol.RELATIVE32)
    assert len({round(p, 3) for item in items for p in item["probabilities"]}) == 8


def test_steps_behind_the_limit_are_counted_and_noted(tmp_path, model, capsys):
    # The prompt of a has 6 tokens, its steps end at 9, 11 and 15: a limit of 12 leaves two of them, and one of c.
    found = run(config(tmp_path, function=None, model=str(model), separator=".", max_length=12)).values
    items = {row["id"]: row for row in lines(tmp_path / "out" / "items.jsonl")}
    assert [len(items[name]["probabilities"]) for name in "abcd"] == [2, 2, 2, 1]
    assert found["steps"]["n_unscored"] == 1
    assert "4 solutions at most 12 tokens long: 1 without their last steps" in capsys.readouterr().err
    assert found["judge"] == str(model)


def test_prompts_that_the_model_learned_from_are_noted(tmp_path, model, capsys):
    from keel.data.seen import prompt_key

    held = read_traces(written(tmp_path / "held.jsonl"))[0]
    write_json(model.parent / "prompts_seen.json", {"learned_from": [prompt_key(held[0].prompt)], "held_out": []})
    run(config(tmp_path, function=None, model=str(model), separator=".", train=str(tmp_path / "held.jsonl")))
    said = capsys.readouterr().err
    assert "the model learned from 1 of 4 prompts that are judged here" in said
    assert "the baselines are made from 4 of 4 prompts that are judged here" in said


def test_only_right_solutions_have_an_accuracy_alone(tmp_path):
    found = run(config(tmp_path, ROWS[1:2])).values
    assert found["steps"]["first_error"]["f1"]["mean"] is None
    assert found["headline"]["metric"] == "held-out accuracy on steps (before: the commonest label)"
    assert found["headline"]["before"] == {"mean": 1.0} and found["headline"]["after"]["mean"] == 1.0


def test_equal_runs_are_equal_to_the_bit_and_the_seed_moves_intervals_only(tmp_path):
    rows = [{**row, "id": f"{row['id']}{i}", "prompt": f"{'the ' * i}{row['prompt']}"} for i in range(4)
            for row in ROWS]
    told = [run(config(tmp_path, rows, threshold=0.8, seed=seed, out=tmp_path / str(k))).values["steps"]
            for k, seed in enumerate((0, 0, 1))]
    assert told[0] == told[1] != told[2]
    assert told[0]["accuracy"]["mean"] == told[2]["accuracy"]["mean"]


def test_the_command_and_its_page(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    held = written(tmp_path / "held.jsonl")
    command = ["process-rm", "evaluate", "--out", str(tmp_path / "out"), "--data", held, "--function",
               "recipes.test_process_evaluate:wary"]
    assert main(command) == 0
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Process reward model evaluation ended with" in page and "first error, found" in page


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "what"), [
    ({"function": None}, "give either model or function: one of them judges the steps"),
    ({"model": "m"}, "give either model or function: one of them judges the steps"),
    ({"threshold": 0.4, "threshold_from": "x.jsonl"}, "threshold and threshold_from exclude each other: the second"),
    ({"threshold_from": "DATA"}, "threshold_from is the file in data: chosen there"),
    ({"max_length": 64}, "max_length does nothing with a function, which gets texts"),
    ({"micro_tokens": 64}, "micro_tokens does nothing with a function, which gets texts"),
])
def test_settings_that_contradict_each_other(tmp_path, changes, what):
    changes = {key: str(tmp_path / "held.jsonl") if value == "DATA" else value for key, value in changes.items()}
    with pytest.raises(Exception, match=what):
        config(tmp_path, **({"function": "wary"} | changes))


def test_a_threshold_is_not_chosen_on_the_prompts_that_are_judged(tmp_path):
    other = written(tmp_path / "other.jsonl", [{**row, "id": f"x{row['id']}"} for row in ROWS[:2]])
    with pytest.raises(DataError, match="2 prompts are in data as well, so the threshold would fit"):
        run(config(tmp_path, threshold_from=other))


def test_a_function_gives_one_probability_for_each_step(tmp_path):
    with pytest.raises(NumericsError, match="the function gave 1 scores for a response of 3 finished steps"):
        run(config(tmp_path, function="flat"))
    with pytest.raises(NumericsError, match=r"2\.0 is not the probability of a step"):
        run(config(tmp_path, function="sure", out=tmp_path / "sure"))


def test_a_stopped_run_says_that_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "stop_requested", lambda self: True)
    with pytest.raises(Stopped, match="stopped after 0 of 4 solutions; nothing is kept"):
        run(config(tmp_path))
