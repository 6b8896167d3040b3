"""`keel process-rm search`: what it writes, what it resumes, what it refuses."""

import json
import shutil

import pytest
import tiny
import torch
from recipes.running import logged, reward

from keel import cli
from keel.data.render import template
from keel.errors import ConfigError, DataError
from keel.models.load import ModelConfig, causal_lm, load_tokenizer, save_model
from keel.models.process import process_model
from keel.recipes import process_search
from keel.recipes.process_search import ProcessSearchConfig
from keel.rng import stream
from keel.rollout.sample import SamplingConfig, sample
from keel.runs import Run, Stopped

FILES = ("candidates.jsonl", "answers.jsonl", "solutions.jsonl")


def says_the(prompt, text, ended):
    """A judge for tests: half right where it says `the`, right where it ends too."""
    return (0.5 + 0.5 * ended) * ("the" in text.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A policy, a process model and an outcome model of two layers, and six prompts with answers."""
    tmp = tmp_path_factory.mktemp("made")
    reward(tmp)
    base = str(tmp / "base")
    model = process_model(ModelConfig(path=base), seed=3)
    with torch.no_grad():
        model.score.weight.mul_(30)  # so that steps differ
    save_model(model, load_tokenizer(base), tmp / "steps", pad_id=0)
    tiny.write_rows(tmp / "q.jsonl", [{"id": f"q{i}", "prompt": talk, "answer": "the"} for i, talk in
                                      enumerate(tiny.conversations(6))])
    return tmp


def config(made, out, **changes):
    settings = {
        "out": out, "policy": {"path": str(made / "base")}, "process_model": {"path": str(made / "steps")},
        "prompts": {"path": str(made / "q.jsonl"), "max_length": 64}, "separator": ".", "n": 3, "beams": 2, "expand": 2,
        "most_steps": 3, "sampling": {"max_new_tokens": 8}, "batch": 4, "judge": "recipes.test_process_search:says_the",
    }
    return ProcessSearchConfig.checked(settings | changes)


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """A run with everybody in it."""
    cfg = config(made, tmp_path_factory.mktemp("whole") / "run", outcome_model={"path": str(made / "reward")})
    return cfg, process_search.run(cfg).values


def test_every_method_answers_every_prompt(whole):
    cfg, result = whole
    answers = logged(cfg.out, "answers.jsonl", None)
    methods = ["process", "outcome", "majority", "weighted", "beam"]
    assert [(row["id"], row["method"]) for row in answers] == [(f"q{i}", m) for i in range(6) for m in methods]
    for row in answers:
        assert row["right"] == says_the(None, row["response"], row["ended"])
        values = [value for _, value in row["steps"]]
        assert all(0 < value < 1 for value in values) and row["score"] == (min(values) if values else None)
        assert row["answer"] is None or row["ended"]
        assert bool(row["unfinished"]) <= (not row["ended"])
    assert len({row["score"] for row in answers}) > 6
    shown = logged(cfg.out, "solutions.jsonl", None)
    assert [(row["id"], row["method"], row["outcome"]) for row in shown] == [
        (row["id"], row["method"], row["right"] >= 0.5) for row in answers]
    assert [[step["text"] for step in row["steps"]] for row in shown] == [
        [text for text, _ in row["steps"]] + [row["unfinished"]] * bool(row["unfinished"]) for row in answers]
    assert all(step["label"] is None and (step["score"] is None) == (step["text"] == row["unfinished"])
               for row, one in zip(answers, shown, strict=True) for step in one["steps"][-1:])
    below = [[k for k, (_, value) in enumerate(row["steps"]) if value < 0.5] for row in answers]
    assert [row["predicted"] for row in shown] == [
        (places or [None if row["unfinished"] else -1])[0]
        for row, places in zip(answers, below, strict=True)]
    assert result["n_prompts"] == 6 and result["skipped"]["n_dropped"] == 0


def test_the_table_is_counted_from_the_candidates(whole):
    cfg, result = whole
    found = logged(cfg.out, "candidates.jsonl", None)
    table = {(row["method"], row.get("n")): row for row in result["table"]}
    assert list(table) == [(m, n) for n in (1, 2, 3) for m in (
        "random", "process", "outcome", "majority", "weighted", "oracle")] + [("beam", None)]
    mean = sum(one["right"] for row in found for one in row["solutions"]) / 18
    best = sum(max(one["right"] for one in row["solutions"]) for row in found) / 6
    beam = sum(row["beam"]["right"] for row in found) / 6
    told = {key: row["accuracy"]["mean"] for key, row in table.items()}
    assert (told["random", 3], told["oracle", 3], told["beam", None]) == pytest.approx((mean, best, beam))
    assert table["beam", None]["gain"]["mean"] == pytest.approx(beam - mean)
    n_tokens = sum(one["n_tokens"] for row in found for one in row["solutions"]) / 6
    assert table["process", 3]["tokens"] == result["cost"]["best_of_n"]["tokens"] == pytest.approx(n_tokens)
    assert table["beam", None]["tokens"] == sum(row["n_sampled"] for row in found) / 6
    cut = sum(not row["beam"]["ended"] for row in found)
    assert result["cost"]["beam"] == {"tokens": table["beam", None]["tokens"], "cut_percent": 100 * cut / 6}
    picked = {row["id"]: row for row in logged(cfg.out, "answers.jsonl", None) if row["method"] == "outcome"}
    for row in found:
        best = max(row["solutions"], key=lambda one: one["outcome"])
        assert picked[row["id"]]["response"] == best["text"]


def killed(whole, folder, n_rows, rest=b""):
    """The run as if it had been killed with so many rows written, and some bytes of the next one."""
    shutil.copytree(whole, folder)
    for name in ("result.json", "answers.jsonl", "solutions.jsonl"):
        (folder / name).unlink()
    lines = (whole / "candidates.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "candidates.jsonl").write_bytes(b"".join(lines[:n_rows]) + rest)
    return folder


def test_a_killed_run_goes_on_to_the_same_bits(whole, tmp_path, capsys, monkeypatch):
    """Of five rows and a half the first batch of four is kept; the half row goes, and the one alone in its batch."""
    folder, real, asked = killed(whole[0].out, tmp_path / "run", 5, b'{"id": "q5", "solu'), process_search._searched, []
    monkeypatch.setattr(process_search, "_searched", lambda cfg, tools, rows: asked.append(
        [row.record_id for row in rows]) or real(cfg, tools, rows))
    assert cli.main(["process-rm", "search", "--resume", str(folder)]) == 0
    assert asked == [["q4", "q5"]]
    for name in FILES:
        assert (folder / name).read_bytes() == (whole[0].out / name).read_bytes(), name
    assert "beam 2 x 2: right" in capsys.readouterr().out


def test_a_run_that_was_killed_behind_its_last_batch_only_counts(whole, tmp_path, monkeypatch):
    cfg, result = whole
    again = cfg.model_copy(update={"out": killed(cfg.out, tmp_path / "run", 6)})
    monkeypatch.setattr(process_search, "_tools", lambda *_: pytest.fail("nothing is left to sample"))
    assert process_search.run(again, resume=True).values["table"] == result["table"]


def test_texts_do_not_depend_on_the_batch_and_do_on_the_seed(whole, made, tmp_path, monkeypatch):
    def texts(folder):
        return [([one["text"] for one in row["solutions"]], row["beam"]["text"], row["n_sampled"]) for row in
                logged(folder, "candidates.jsonl", None)]

    monkeypatch.setattr(process_search, "_table", lambda cfg, found: [])
    process_search.run(other := config(made, tmp_path / "alone", batch=1, limit=2))
    assert texts(other.out) == texts(whole[0].out)[:2]
    process_search.run(again := config(made, tmp_path / "seed", seed=1, limit=2))
    assert all(a != b for a, b in zip(texts(again.out), texts(other.out), strict=True))


def test_the_pick_of_one_is_a_plain_sample(made, tmp_path):
    cfg = config(made, tmp_path / "run", n=1, methods=["best_of_n"], aggregate="mean", judge=None,
                 answer={"extract": "whole", "compare": "exact"})
    result = process_search.run(cfg).values
    policy, words = causal_lm(ModelConfig(path=str(made / "base"))), template(load_tokenizer(str(made / "base")))
    rows = logged(cfg.out, "answers.jsonl", None)
    assert {row["method"] for row in rows} == {"process", "majority", "weighted"}
    for i, talk in enumerate(tiny.conversations(6)):
        ids = words.tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        found = sample(policy, [ids], SamplingConfig(max_new_tokens=8), [stream(0, "solutions", f"q{i}", 0)],
                       stop_ids=words.stop_ids, pad_id=0, record_ids=["x"])
        text = words.decode(found.tokens.ids[0][found.tokens.response_mask[0]].tolist())
        assert {row["response"] for row in rows if row["id"] == f"q{i}"} == {text}
        assert {row["right"] for row in rows if row["id"] == f"q{i}"} == {float(text == "the" and bool(found.ended[0]))}
    assert len({row["accuracy"]["mean"] for row in result["table"]}) == 1 and "beam" not in result["cost"]


def test_a_process_model_with_another_tokenizer_reads_the_texts(made, tmp_path, monkeypatch):
    seen, real = {}, process_search.StepScorer.of_texts

    def of_texts(self, prompts, texts, ended):
        found = real(self, prompts, texts, ended)
        seen.update({(text, whole): one.probabilities for text, whole, one in zip(texts, ended, found, strict=True)})
        return found

    monkeypatch.setattr(process_search, "_table", lambda cfg, found: [])
    monkeypatch.setattr("keel.rollout.process.same_tokens", lambda own, words: False)
    monkeypatch.setattr(process_search.StepScorer, "of_texts", of_texts)
    process_search.run(cfg := config(made, tmp_path / "run", limit=1))
    [row] = logged(cfg.out, "candidates.jsonl", None)
    for one in (*row["solutions"], row["beam"]):
        assert one["probabilities"] == seen[one["text"], one["ended"]]


def test_where_nobody_knows_it_answers_and_says_so(made, tmp_path, capsys):
    cfg = config(made, tmp_path / "run", methods=["beam"], judge=None, answer={"column": "key"}, limit=2)
    result = process_search.run(cfg).values
    assert "nobody knows the right answers (no column 'key', no judge)" in result["notes"][0]
    assert result["table"] == [] and {row["right"] for row in logged(cfg.out, "answers.jsonl", None)} == {None}
    assert {row["outcome"] for row in logged(cfg.out, "solutions.jsonl", None)} == {None}


def test_with_beam_alone_there_is_nothing_to_gain_over(made, tmp_path):
    result = process_search.run(config(made, tmp_path / "run", methods=["beam"], limit=2)).values
    [row] = result["table"]
    assert row["method"] == "beam" and "gain" not in row and list(result["cost"]) == ["beam"]


def test_asked_to_stop_it_keeps_whole_batches(made, tmp_path, monkeypatch):
    asked = iter([False, True])
    monkeypatch.setattr(Run, "stop_requested", lambda self: next(asked))
    cfg = config(made, tmp_path / "run", methods=["beam"])
    with pytest.raises(Stopped, match=r"after step 4; nothing is lost\n.*keel process-rm search --resume"):
        process_search.run(cfg)
    assert len(logged(cfg.out, "candidates.jsonl", None)) == 4
    assert json.loads((cfg.out / "result.json").read_text())["status"] == "stopped"


def test_a_run_begun_anew_takes_nothing_from_one_that_failed(made, tmp_path):
    cfg = config(made, tmp_path / "run", methods=["beam"], limit=2)
    cfg.out.mkdir()
    (cfg.out / "candidates.jsonl").write_text('{"id": "of another run"}\n')
    process_search.run(cfg)
    assert [row["id"] for row in logged(cfg.out, "candidates.jsonl", None)] == ["q0", "q1"]


@pytest.mark.parametrize("changes, complaint", [
    ({"methods": []}, "is empty or names one twice; best_of_n, beam, or both"),
    ({"methods": ["beam", "beam"]}, "is empty or names one twice"),
    ({"sampling": {"temperature": 0}}, "writes the same solution every time: n above 1"),
    ({"sampling": {"temperature": 0}, "n": 1, "beams": 1}, "writes the same solution every time: expand above 1"),
    ({"sampling": {"repetition_penalty": 1.1}}, "repetition_penalty and methods with beam exclude each other"),
    ({"outcome_model": {"path": "x"}, "methods": ["beam"]}, "outcome_model does nothing without best_of_n"),
])
def test_settings_that_contradict_each_other(made, tmp_path, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        config(made, tmp_path / "run", **changes)


def test_settings_that_do_not():
    alone = {"out": "x", "policy": "x", "process_model": "x", "prompts": "x", "sampling": {"temperature": 0}}
    assert ProcessSearchConfig.checked(alone | {"methods": ["beam"], "beams": 1, "expand": 1}).n == 16
    assert ProcessSearchConfig.checked(alone | {"methods": ["best_of_n"], "n": 1}).beams == 4


def test_an_answer_that_one_prompt_lacks_is_missed_before_anything_is_sampled(made, tmp_path, monkeypatch):
    rows = [json.loads(line) for line in (made / "q.jsonl").read_text().splitlines()]
    del rows[3]["answer"]
    monkeypatch.setattr(process_search, "_tools", lambda *_: pytest.fail("models were loaded"))
    file = tiny.write_rows(tmp_path / "q.jsonl", rows)
    with pytest.raises(DataError, match="id q3: no right answer"):
        process_search.run(config(made, tmp_path / "run", judge=None, prompts={"path": str(file), "max_length": 64}))
