"""Solutions in steps: keel's own columns, every refusal, and what check, show and convert make of them."""

import csv
import json

import pytest

from keel.data import (
    Message,
    Prompt,
    read_demonstrations,
    read_labelled,
    read_pairs,
    read_prompts,
    read_rankings,
    template,
)
from keel.data import check as check_command
from keel.data import convert as convert_command
from keel.data import show as show_command
from keel.data.check import DataCheckConfig, kind_of_files
from keel.data.convert import DataConvertConfig
from keel.data.load import read_traces
from keel.data.problems import RowError
from keel.data.show import DataShowConfig, shown
from keel.data.traces import StepTrace, check_trace
from keel.data.write import row_of, write_records
from keel.errors import DataError

ASKED = (Message("user", "why?"),)
TURNS = [{"role": "user", "content": "why?"}]
ROW = {"prompt": "why?", "completions": ["a", "b", "c"], "labels": [True, False, None]}
TRACE = StepTrace(Prompt("rows:1", ASKED), ("a", "b", "c"), (1.0, 0.0, None))


@pytest.mark.parametrize(("row", "labels", "outcome", "meta"), [
    (ROW, (1.0, 0.0, None), None, {}),
    (ROW | {"prompt": TURNS, "labels": [1, 0.25, 0]}, (1.0, 0.25, 0.0), None, {}),
    (ROW | {"outcome": False, "labels": [None] * 3, "domain": "d"}, (None,) * 3, False, {"domain": "d"}),
    (ROW | {"outcome": None, "meta": {"k": 1}}, (1.0, 0.0, None), None, {"k": 1})])
def test_the_stepwise_columns(jsonl, row, labels, outcome, meta):
    path = jsonl(row)
    (trace,), report = read_traces(path)
    assert trace == StepTrace(Prompt("rows:1", ASKED, None, meta), ("a", "b", "c"), labels, outcome)
    assert all(type(label) in (float, type(None)) for label in trace.labels)
    assert report.formats == {"steps": 1} and kind_of_files(path) == "traces"
    assert read_prompts(path)[0] == [trace.prompt]


def test_a_trace_knows_its_first_error_and_its_text():
    assert TRACE.first_error == 1 and TRACE.id == "rows:1" and TRACE.text("; ") == "a; b; c"
    first = [StepTrace(TRACE.prompt, ("a",) * len(labels), labels).first_error
             for labels in ((1.0, 0.5), (1.0, 0.49, None), (0.0, 0.0), (None,), (None, 0.0), (1.0, None))]
    assert first == [-1, 1, 0, None, None, None]
    told = [StepTrace(TRACE.prompt, ("a", "b"), labels).is_wrong for labels in ((None, 0.49), (None, 0.5), (0.0, None))]
    assert told == [True, False, True]


def test_plain_text_and_text_only_files(jsonl, tmp_path):
    assert read_traces(jsonl(ROW), as_text=True)[0][0].prompt == Prompt("rows:1", (), "why?")
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*ROW, "outcome"])
        for outcome in ("true", "False", ""):
            writer.writerow([ROW["prompt"], json.dumps(ROW["completions"]), json.dumps(ROW["labels"]), outcome])
    read = read_traces(tmp_path / "a.csv")[0]
    assert [(t.steps, t.labels) for t in read] == [(TRACE.steps, TRACE.labels)] * 3
    assert [t.outcome for t in read] == [True, False, None]


@pytest.mark.parametrize("row", [
    {"prompt": "why?", "steps": ["a", "b"], "answer": "1"},
    {"prompt": "why?", "completions": ["a"], "is_correct": True},
    {"prompt": "why?", "completion": "a", "label": True}, {"prompt": "why?", "completion": "a"},
    {"prompt": "why?", "chosen": "a", "rejected": "b", "completions": ["a"], "labels": [True]}, {"prompt": "why?"}])
def test_other_layouts_stay_what_they_were(jsonl, row):
    path = jsonl(row)
    assert kind_of_files(path) != "traces"
    with pytest.raises(DataError, match="no columns for a solution in steps"):
        read_traces(path)


@pytest.mark.parametrize("read", [read_demonstrations, read_labelled, read_pairs, read_rankings])
def test_a_solution_with_wrong_steps_is_nothing_to_imitate_or_prefer(jsonl, read):
    with pytest.raises(DataError, match="no columns for a"):
        read(jsonl(ROW))


@pytest.mark.parametrize(("change", "kind", "said"), [
    ({"completions": []}, "no step", "the solution has no step"),
    ({"completions": [], "labels": []}, "no step", "the solution has no step"),
    ({"completions": "a\nb"}, "wrong type", "completions is text, not a list of steps"),
    ({"completions": ["a", TURNS, "b"]}, "wrong type", "one of the steps is a list, not text"),
    ({"completions": ["a", None, "b"]}, "wrong type", "one of the steps is null, not text"),
    ({"labels": True}, "wrong type", "labels is true or false, not a list"),
    ({"labels": [True, False]}, "labels of unequal number", "3 steps and 2 labels"),
    ({"labels": [True, "no", None]}, "bad step label", "the label of a step is text ('no')"),
    ({"labels": [True, 1.5, None]}, "label out of range", "the label of step 2 is 1.5, outside 0 to 1"),
    ({"labels": [-1, 1, None]}, "label out of range", "the label of step 1 is -1.0, outside 0 to 1"),
    ({"labels": [True, 10**400, 1]}, "label out of range", "the label of step 2 is inf, outside 0 to 1"),
    ({"labels": [True, float("nan"), 1]}, "label out of range", "the label of step 2 is nan, outside 0 to 1"),
    ({"labels": [None] * 3}, "nothing judged", "none of the 3 steps has a label, and there is no outcome"),
    ({"completions": ["a", " \n", "c"]}, "empty step", "step 2 is empty, and its label is 0.0"),
    ({"completions": ["a", "b\0", "c"]}, "NUL character", "step 2 holds a NUL character"),
    ({"outcome": 1}, "bad outcome", "outcome is a number (1), not true or false"),
    ({"outcome": "true"}, "bad outcome", "outcome is text ('true'), not true or false"),
    ({"ended": 0}, "bad ended", "ended is a number (0), not true or false"),
    ({"prompt": " "}, "empty turn", "turn 1 (user) is empty")])
def test_refusals(jsonl, change, kind, said):
    good, bad = ROW | {"prompt": "how?"}, ROW | change
    kept, report = read_traces(jsonl(good, bad), on_bad_record="skip")
    assert len(kept) == 1 and [problem.kind for problem in report.problems] == [kind]
    with pytest.raises(DataError) as caught:
        read_traces(jsonl(bad))
    assert said in str(caught.value)


def test_the_checks_hold_for_records_made_elsewhere():
    check_trace(TRACE)
    with pytest.raises(RowError, match="3 steps and 0 labels"):
        check_trace(StepTrace(TRACE.prompt, TRACE.steps, (), True))
    with pytest.raises(RowError, match="step 1 is empty, and its label is None"):
        check_trace(StepTrace(TRACE.prompt, ("",), (None,), True))


def test_blank_steps_that_nobody_called_wrong_are_left_out_and_counted(jsonl):
    """Of five steps, two are blank: one called right, one not judged; the error moves from the third place to the
    second."""
    row = {"prompt": "why?", "completions": ["a", " ", "b", "\n", "c"], "labels": [1, 0.5, 0, None, None]}
    (trace, other), report = read_traces(jsonl(row, ROW))
    assert (trace.steps, trace.labels, trace.first_error) == (("a", "b", "c"), (1.0, 0.0, None), 1)
    assert other.steps == TRACE.steps and report.left_out == {"blank steps": 2}
    assert report.summary() == "2 rows read, none dropped; blank steps left out: 2"
    _, report = read_traces(jsonl(row, ROW | {"labels": []}), on_bad_record="skip")
    assert report.summary() == ("1 of 2 rows read; 1 dropped: 1 labels of unequal number; blank steps left out: 2")


def test_check_show_and_convert_know_solutions(jsonl, tmp_path, capsys):
    rows = [ROW | {"id": "x", "task": "t", "outcome": True},
            {"id": "y", "prompt": TURNS, "completions": ["d"], "labels": [0.75], "outcome": False, "truth": {"k": 1}},
            {"id": "z", "prompt": "how?", "completions": ["d", "e"], "labels": [None, 1], "outcome": False},
            {"id": "w", "prompt": "where?", "completions": ["d", "e"], "labels": [None, 1]}]
    path = jsonl(*rows)
    report = check_command.run(DataCheckConfig(paths=str(path)))
    assert (report.kind, report.quantiles[-1], report.n_repeated, report.n_same_prompt) == ("traces", 9, 0, 1)
    assert vars(report.steps) == {"n_solutions": 4, "n_steps": 8, "n_unlabelled": 3, "n_wrong": 1, "n_outcomes": 3,
                                  "n_right_answers": 1}
    assert "  steps: 8, of which 3 not judged; 1 of 4 solutions with a wrong one; 1 of 3 known answers right" in (
        capsys.readouterr().out.splitlines())
    texts = show_command.run(DataShowConfig(paths=str(path), n=2))
    assert texts[0].splitlines()[2:] == ["step 1, right: a", "step 2, wrong: b", "step 3, not judged: c",
                                         "final answer: right", "meta: {'task': 't'}"]
    assert texts[1].splitlines()[2:4] == ["step 1, 0.75: d", "final answer: wrong"]
    for suffix in (".jsonl", ".parquet"):
        output = tmp_path / f"out{suffix}"
        convert_command.run(DataConvertConfig(paths=str(path), output=str(output)))
        assert read_traces(output)[0] == read_traces(path)[0]
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert '"labels": [true, false, null]' in lines[0] and '"labels": [null, true]' in lines[2]
    written = [json.loads(line) for line in lines]
    assert written[0] == {"id": "x", "prompt": TURNS, "completions": ["a", "b", "c"], "labels": [True, False, None],
                          "outcome": True, "meta": {"task": "t"}}
    assert written[1]["labels"] == [0.75] and written[2]["labels"] == [None, True] and written[3]["outcome"] is None


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_solution_that_goes_on_goes_on_when_it_is_read_again(tmp_path, suffix):
    cut = StepTrace(Prompt("cut", ASKED), ("a", "b"), (1.0, 0.0), None, ended=False)
    whole = StepTrace(Prompt("whole", ASKED), ("a",), (1.0,), True)
    records = [cut, whole] if suffix == ".jsonl" else [cut]  # the rows of a table have the same columns
    write_records(records, tmp_path / f"out{suffix}")
    assert read_traces(tmp_path / f"out{suffix}")[0] == records
    assert "ended" not in row_of(whole) and row_of(cut)["ended"] is False


def test_tokens_of_a_solution_are_those_of_its_steps_in_lines(letters):
    assert "|⟦a|Ċ|b|Ċ|c|<eos>⟧" in shown(TRACE, template(letters))
