"""Labels by completions: a policy whose chances are known, the books that survive a kill, and every refusal."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from pydantic import ValidationError
from recipes.running import logged
from tolerances import STANDARD_ERRORS

from keel import cli
from keel.batches import Rollout, TokenBatch
from keel.bench.appended import SavedRows
from keel.data.load import read_traces
from keel.data.records import Message, Prompt
from keel.data.render import PromptRow, template
from keel.data.segment import Steps
from keel.errors import DataError, ModelError, NumericsError, RunError
from keel.models.load import ModelConfig
from keel.recipes import process_label
from keel.recipes.process_label import ProcessLabelConfig
from keel.rollout import prefixes
from keel.rollout.prefixes import Completed, Solution, Written, complete, given_solution, labelled
from keel.rollout.sample import SamplingConfig
from keel.runs import Run, Stopped
from keel.train.inputs import FileConfig

WORDS = template(tiny.tokenizer())
END = WORDS.end_id
CHANCE = 0.75


def asked(name: str = "q") -> Prompt:
    return Prompt(name, (Message("user", "why ?"),), meta={"answer": "yes"})


def given(text: str, *, prompt: Prompt | None = None, room: int = 64, too_long: str = "drop_turns") -> Solution | None:
    return given_solution(WORDS, prompt or asked(), text, ".", room, too_long)


def says_yes(prompt, text: str, ended: bool) -> float:
    """Right is what ends with yes; nothing that said no can be mended."""
    said = text.replace(".", " ").split()
    return float(ended and said[-1:] == ["yes"] and "no" not in said)


def chances(policy, prompts, sampling, streams, **told) -> Rollout:
    """A sampler that writes `yes` with a known chance, else `two`, and ends."""
    said = [WORDS.response_ids("yes" if torch.rand(1, generator=g) < CHANCE else "two") for g in streams]
    rows = [torch.tensor([*prompt, *ids]) for prompt, ids in zip(prompts, said, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    column = torch.arange(ids.shape[1])
    real = column < torch.tensor([len(row) for row in rows])[:, None]
    response = real & (column >= torch.tensor([len(prompt) for prompt in prompts])[:, None])
    tokens = TokenBatch(ids, real, response, tuple(told["record_ids"]))
    return Rollout(tokens, torch.zeros(ids.shape), torch.ones(len(rows), dtype=torch.bool), torch.arange(len(rows)))


# --- one solution, by hand -------------------------------------------------------------------------------------------


def test_prefixes_are_the_solutions_own_tokens_up_to_the_end_of_each_step():
    one = given("the cat. dog sat. yes")
    assert one.steps.texts == ("the cat", " dog sat", " yes") and one.written.ids[-1] == END
    assert [WORDS.decode(list(prefix.ids)) for prefix in one.prefixes] == ["the cat .", "the cat . dog sat ."]
    assert [len(prefix.ids) for prefix in one.prefixes] == [3, 6] and one.prefixes[0].prompt_ids == one.prompt_ids
    assert len(given("yes").prefixes) == 0


def test_labels_are_shares_and_the_last_one_is_the_solutions_own():
    one = given("the cat. dog sat. yes")
    told = {prefix.key: Completed(prefix.key, values, 8, 0)
            for prefix, values in zip(one.prefixes, [(1.0, 0.0, 1.0, 1.0), (0.0, 0.5, 0.0, 0.5)], strict=True)}
    trace = labelled(one, "q/2", 1.0, told)
    assert trace.labels == (0.75, 0.25, 1.0) and trace.outcome is True and trace.id == "q/2"
    assert trace.prompt.meta == {"answer": "yes", "rollouts": 8} and trace.steps == one.steps.texts
    assert labelled(one, "q", 0.4, told).outcome is False


def test_a_solution_that_was_cut_has_a_label_for_each_whole_step_and_no_outcome():
    ids = WORDS.response_ids("the cat. dog sat. yes", ended=False)
    one = prefixes.solution_of(WORDS, PromptRow([1, 4], asked()), Written(tuple(ids), False), ".")
    assert one.steps == Steps(("the cat ", " dog sat "), (2, 5), " yes") and len(one.prefixes) == 2
    told = {prefix.key: Completed(prefix.key, (1.0,), 2, 0) for prefix in one.prefixes}
    trace = labelled(one, "q", 0.0, told)
    assert trace.labels == (1.0, 1.0) and trace.outcome is None and len(trace.steps) == 2 and not trace.ended


def test_a_response_that_the_limit_cuts_keeps_its_whole_steps():
    whole = given("the cat. dog sat. yes")
    room = len(whole.prompt_ids) + 4
    cut = given("the cat. dog sat. yes", room=room, too_long="truncate_response")
    assert cut.steps.texts == ("the cat",) and not cut.written.ended and len(cut.prefixes) == 1
    assert (cut.text, cut.steps.unfinished) == ("the cat . dog", " dog")
    assert given("the cat. dog sat. yes", room=room, too_long="drop") is None
    assert given("the cat. dog sat. yes", room=room - 2, too_long="truncate_response").steps.texts == ()  # ends beyond


def test_a_place_is_known_by_its_record_and_its_tokens():
    one, other = given("the cat. yes"), given("the cat. no", prompt=asked("r"))
    assert one.prefixes[0].ids == other.prefixes[0].ids and one.prefixes[0].key != other.prefixes[0].key
    both = [one, given("the cat. dog. yes"), other]
    assert [len(prefix.ids) for prefix in prefixes.prefixes(both)] == [3, 5, 3]


# --- a policy whose chances are known --------------------------------------------------------------------------------


def test_the_label_is_the_chance_to_come_out_right_and_nought_where_nothing_mends(monkeypatch):
    monkeypatch.setattr(prefixes, "sample", chances)
    n = 300
    todo = prefixes.prefixes([given("the cat. dog sat. yes"), given("the cat. no. dog. yes")])
    told = complete(None, WORDS, todo, n, SamplingConfig(), seed=1, judge=says_yes)
    label = {WORDS.decode(list(prefix.ids)): sum(one.values) / n for prefix, one in zip(todo, told, strict=True)}
    spread = STANDARD_ERRORS * math.sqrt(CHANCE * (1 - CHANCE) / n)
    assert abs(label["the cat ."] - CHANCE) < spread and abs(label["the cat . dog sat ."] - CHANCE) < spread
    assert label["the cat . no ."] == label["the cat . no . dog ."] == 0.0
    assert label["the cat ."] != label["the cat . dog sat ."]  # each place has draws of its own
    assert all(one.n_tokens == 2 * n and one.n_cut == 0 for one in told)
    alone = [complete(None, WORDS, [prefix], n, SamplingConfig(), seed=1, judge=says_yes)[0] for prefix in todo[::-1]]
    assert alone[::-1] == told
    assert complete(None, WORDS, todo, n, SamplingConfig(), seed=2, judge=says_yes) != told


def test_a_judge_that_gives_no_share_is_refused(monkeypatch):
    monkeypatch.setattr(prefixes, "sample", chances)
    with pytest.raises(NumericsError, match=r"record q: the judge of responses gave 4, outside 0 to 1"):
        complete(None, WORDS, given("the cat. yes").prefixes, 2, SamplingConfig(), seed=0, judge=tiny.length)


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("base") / "base")


def config(base: Path, out: Path, **changes) -> ProcessLabelConfig:
    if "solutions" not in changes:
        rows = [{"id": f"q{i}", "prompt": prompt, "answer": "yes"} for i, prompt in enumerate(tiny.conversations(4))]
        file = tiny.write_rows(base.parent / "asked.jsonl", rows)
        changes = {"prompts": FileConfig(path=str(file), max_length=64), "per_prompt": 3,
                   "separator": "the"} | changes
    return ProcessLabelConfig(**{
        "out": out, "policy": ModelConfig(path=str(base)), "rollouts": 3, "separator": ".", "batch": 2,
        "judge": "tiny:x", "sampling": SamplingConfig(max_new_tokens=16), **changes})


@pytest.fixture
def judged_by_yes(monkeypatch):
    monkeypatch.setattr(process_label, "scoring_function", lambda name: lambda p, text, ended: float("yes" in text))


def solved(folder: Path, rows: list[dict]) -> FileConfig:
    asked = [{"role": "user", "content": "why ?"}]
    return FileConfig(path=str(tiny.write_rows(folder / "solved.jsonl", [{"prompt": asked, **row} for row in rows])),
                      max_length=64)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_label, "scoring_function", lambda name: lambda p, text, ended: float("yes" in text))
        return process_label.run(config(base, tmp_path_factory.mktemp("whole") / "out"))


def test_solutions_are_written_labelled_and_counted(whole):
    traces, _ = read_traces(whole.folder / "traces.jsonl")
    values = whole.values
    assert len(traces) == values["n_solutions"] and values["n_solutions"] + values["n_without_step"] == 12
    assert sum(len(trace.steps) for trace in traces) == values["n_steps"]
    assert any(trace.id == "q1/2" for trace in traces) and len({trace.prompt.messages for trace in traces}) > 1
    assert values["n_rollouts"] == 3 * values["n_prefixes"] == sum(row["rollouts/n"] for row in logged(
        whole.folder, "metrics.jsonl", None))
    thirds = {k / 3 for k in range(4)}
    assert {label for trace in traces for label in trace.labels} <= thirds
    assert any(label in (1 / 3, 2 / 3) for trace in traces for label in trace.labels)
    assert values["by_step"][0]["n"] == len(traces) and 0 <= values["right"]["mean"] <= 1
    assert values["n_cut"] == sum(trace.outcome is None for trace in traces)
    assert "agreement" not in values  # nobody else labelled these steps
    shown = [json.loads(line) for line in (whole.folder / "solutions.jsonl").read_text().splitlines()]
    assert shown[0]["steps"][0] == {"text": traces[0].steps[0], "score": traces[0].labels[0], "label": None}


@pytest.mark.parametrize(("file", "share"), [("rollouts.jsonl", 0.37), ("rollouts.jsonl", 1.0), ("written.jsonl", 0.6)])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(whole, tmp_path, file, share, judged_by_yes):
    killed = tmp_path / "killed"
    shutil.copytree(whole.folder, killed)
    for name in ("result.json", "traces.jsonl", "solutions.jsonl"):
        (killed / name).unlink()
    (killed / ".traces.jsonl.new").write_text('{"half a')
    saved = (killed / file).read_bytes()
    (killed / file).write_bytes(saved[: int(share * len(saved))])  # in the middle of a row, and of a batch
    if file == "written.jsonl":
        (killed / "rollouts.jsonl").unlink()
    assert cli.main(["process-rm", "label", "--resume", str(killed)]) == 0
    for name in ("traces.jsonl", "solutions.jsonl", "metrics.jsonl", "result.json", "rollouts.jsonl", "written.jsonl"):
        assert (killed / name).read_bytes() == (whole.folder / name).read_bytes(), name


def test_labels_do_not_depend_on_the_batch_and_do_on_the_seed(whole, base, tmp_path, judged_by_yes):
    process_label.run(config(base, tmp_path / "wide", batch=64))
    traces = (whole.folder / "traces.jsonl").read_bytes()
    assert (tmp_path / "wide/traces.jsonl").read_bytes() == traces
    other = process_label.run(config(base, tmp_path / "other", seed=1, judge=None,
                                     answer={"extract": "whole", "compare": "exact"}))
    written = [[json.loads(line)["ids"] for line in (folder / "written.jsonl").read_text().splitlines()]
               for folder in (whole.folder, other.folder)]
    assert written[0] != written[1] and written[0][0] != written[0][1]  # the seed and the number fix a solution
    assert other.values["n_without_answer"] == other.values["n_cut"] > 0  # the whole of it is there, unless it was cut


def test_asked_to_stop_it_keeps_what_is_whole(base, tmp_path, monkeypatch, judged_by_yes):
    monkeypatch.setattr(Run, "stop_requested", lambda self: (self.folder / "rollouts.jsonl").exists())
    with pytest.raises(Stopped, match=r"stopped between two batches of completions"):
        process_label.run(config(base, tmp_path / "out"))
    assert len((tmp_path / "out/written.jsonl").read_text().splitlines()) == 12
    assert (tmp_path / "out/rollouts.jsonl").read_text() == "" and not (tmp_path / "out/traces.jsonl").exists()
    with pytest.raises(RunError, match=r"this folder holds completions of a run that was stopped"):
        process_label.run(config(base, tmp_path / "out"))


def test_equal_beginnings_are_completed_once_and_labels_of_the_file_are_held_against_ours(base, tmp_path, monkeypatch):
    monkeypatch.setattr(prefixes, "sample", chances)
    monkeypatch.setattr(process_label, "scoring_function", lambda name: says_yes)
    rows = [{"id": "a", "completions": ["the cat", "dog sat", "yes"], "labels": [1, 1, 1]},
            {"id": "b", "completions": ["the cat", "no", "dog", "yes"], "labels": [1, 0, 0, 0]}]
    result = process_label.run(config(base, tmp_path / "out", rollouts=40, solutions=solved(tmp_path, rows)))
    traces, _ = read_traces(result.folder / "traces.jsonl")
    assert [trace.id for trace in traces] == ["a", "b"] and [trace.outcome for trace in traces] == [True, False]
    assert traces[0].labels[2] == 1.0 and traces[1].labels[1:] == (0.0, 0.0, 0.0)
    assert 0 < traces[0].labels[0] < 1 and result.values["n_prefixes"] == 5
    agreed = result.values["agreement"]["any_right"]
    assert agreed["first_error"]["f1"]["mean"] == 1.0 and agreed["accuracy"]["mean"] == 1.0 and agreed["n_steps"] == 7
    shown = json.loads((result.folder / "solutions.jsonl").read_text().splitlines()[1])
    assert [step["label"] for step in shown["steps"]] == [1.0, 0.0, 0.0, 0.0] and shown["first_error"] == 1


def test_one_beginning_of_one_record_is_completed_once(base, tmp_path, monkeypatch):
    monkeypatch.setattr(prefixes, "sample", chances)
    shown = [{"id": "q", "answer": "yes", "completion": tiny.said(text)}
             for text in ("the cat. yes", "the cat. no", "the cat. dog. yes")]
    result = process_label.run(config(
        base, tmp_path / "out", solutions=solved(tmp_path, shown), judge=None,
        answer={"extract": "whole", "compare": "exact"}))
    traces, _ = read_traces(result.folder / "traces.jsonl")
    assert [trace.id for trace in traces] == ["q/1", "q/2", "q/3"] and result.values["n_prefixes"] == 2
    assert len({trace.labels[0] for trace in traces}) == 1 and result.values["n_without_answer"] == 0


def test_what_the_limit_cut_is_neither_right_nor_wrong(base, tmp_path, monkeypatch):
    monkeypatch.setattr(prefixes, "sample", chances)
    monkeypatch.setattr(process_label, "scoring_function", lambda name: says_yes)
    rows = [{"id": "a", "completion": tiny.said("the cat. yes")},
            {"id": "b", "completion": tiny.said("the cat. dog. no")},
            {"id": "c", "completion": tiny.said("the cat. dog. dog. dog. dog. dog. yes")}]
    room = len(given("the cat. dog. no").prompt_ids) + len(given("the cat. dog. no").written.ids)
    file = solved(tmp_path, rows).model_copy(update={"max_length": room, "too_long": "truncate_response"})
    values = process_label.run(config(base, tmp_path / "out", solutions=file)).values
    assert (values["n_solutions"], values["n_cut"]) == (3, 1)
    assert (values["right"]["mean"], values["right"]["n"]) == (0.5, 2)


def test_solutions_whose_steps_are_others_than_the_files_are_counted(base, tmp_path, monkeypatch):
    monkeypatch.setattr(prefixes, "sample", chances)
    monkeypatch.setattr(process_label, "scoring_function", lambda name: says_yes)
    same, other = ({"id": name, "completions": steps, "labels": [1, 1]} for name, steps in (
        ("a", ["the cat", "yes"]), ("b", ["the cat. dog", "yes"])))
    both = process_label.run(config(base, tmp_path / "one", solutions=solved(tmp_path, [same, other])))
    agreed = both.values["agreement"]
    assert (agreed["n"], agreed["n_other_steps"], agreed["any_right"]["n"]) == (1, 1, 1)
    alone = process_label.run(config(base, tmp_path / "two", solutions=solved(tmp_path, [other]))).values["agreement"]
    assert alone == {"n": 0, "n_other_steps": 1}


def test_a_line_break_may_be_spelled_out(base, tmp_path):
    assert config(base, tmp_path, separator="\\n").separator == "\n"


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"prompts": None}, "give either prompts, to which policy writes solutions, or solutions"),
    ({"solutions": FileConfig(path="x"), "prompts": FileConfig(path="y")}, "give either prompts, to which policy"),
    ({"answer": {"column": "total"}}, "judge and answer exclude each other: both say when"),
    ({"solutions": FileConfig(path="x"), "per_prompt": 2}, "per_prompt acts on nothing with solutions"),
    ({"separator": ""}, "separator"),
])
def test_settings_that_contradict_each_other(base, tmp_path, changes, message):
    with pytest.raises(ValidationError, match=message):
        config(base, tmp_path, **changes)


def test_a_missing_answer_is_found_before_anything_is_sampled(base, tmp_path, monkeypatch):
    monkeypatch.setattr(prefixes, "sample", lambda *_, **__: pytest.fail("it sampled"))
    with pytest.raises(DataError, match=r"id q0: no right answer: the column 'total' is absent"):
        process_label.run(config(base, tmp_path / "out", judge=None, answer={"column": "total"}))


def test_a_prefix_that_leaves_no_room_is_found_before_any_is_completed(base, tmp_path, monkeypatch):
    monkeypatch.setattr(prefixes, "sample", lambda *_, **__: pytest.fail("it sampled"))
    monkeypatch.setattr(process_label, "scoring_function", lambda name: says_yes)
    limit = json.loads((base / "config.json").read_text())["max_position_embeddings"]
    rows = [{"completion": tiny.said("the cat. yes")}, {"completion": tiny.said("the cat. dog sat. yes")}]
    longest = given("the cat. dog sat. yes").prefixes[-1]
    room = limit - len(longest.prompt_ids) - len(longest.ids)
    told = (pytest.fail.Exception, "it sampled"), (ModelError, rf"is {limit + 1} tokens, the model's context is")
    for n, (kind, message) in zip((room, room + 1), told, strict=True):
        with pytest.raises(kind, match=message):
            process_label.run(config(base, tmp_path / f"out{n}", solutions=solved(tmp_path, rows),
                                     sampling=SamplingConfig(max_new_tokens=n)))


def test_what_no_file_may_hold_is_left_out_and_counted(whole, base, tmp_path, monkeypatch, judged_by_yes):
    of = process_label.solution_of
    monkeypatch.setattr(process_label, "solution_of", lambda words, row, written, separator: replace(
        of(words, row, written, separator), text="yes\0" if row.record.id == "q2" else "yes"))
    left = process_label.run(config(base, tmp_path / "out", rollouts=1))
    n_q2 = sum(trace.id.startswith("q2/") for trace in read_traces(whole.folder / "traces.jsonl")[0])
    assert n_q2 and left.values["n_without_step"] == whole.values["n_without_step"] + n_q2


def test_solutions_without_a_step_are_refused_together(base, tmp_path, judged_by_yes):
    with pytest.raises(DataError, match=r"none of 4 solutions has a step that ends"):
        process_label.run(config(base, tmp_path / "out", separator="|", per_prompt=1,
                                 sampling=SamplingConfig(max_new_tokens=1)))


def test_a_damaged_row_is_named(tmp_path):
    file = tmp_path / "saved.jsonl"
    with SavedRows(file) as rows:
        rows.add({"a": {"n": 1}, "b": {"n": 2}})
    file.write_bytes(file.read_bytes() + b'{"key": "c", "n"')
    with SavedRows(file) as rows:
        assert {key: row["n"] for key, row in rows.known.items()} == {"a": 1, "b": 2}
        rows.add({"c": {"n": 3}})
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()] == ["a", "b", "c"]
    file.write_bytes(b'{"n": 1}\n')
    with pytest.raises(RunError, match=r"saved.jsonl:1: what this run had saved is damaged"), SavedRows(file):
        pass
