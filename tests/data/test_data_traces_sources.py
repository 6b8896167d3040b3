"""Published step labels: one row per data set, worked by hand, and the real files."""

from collections import Counter
from pathlib import Path

import pytest

from keel.data.check import kind_of_files
from keel.data.convert import DataConvertConfig, run
from keel.data.load import iter_traces, read_prompts, read_traces
from keel.data.problems import RowError, Tally
from keel.data.rows import Row
from keel.data.traces import check_trace, trace_of
from keel.errors import DataError


def only(path):
    """The one solution of a file and the layout that was recognised."""
    (trace,), report = read_traces(path)
    assert kind_of_files(path) == "traces" and read_prompts(path)[0] == [trace.prompt]
    return trace, next(iter(report.formats))


def refused(path):
    """The kind of the only problem of a file, and the whole complaint."""
    with pytest.raises(DataError) as caught:
        read_traces(path)
    with pytest.raises(DataError, match="no record left"):
        read_traces(path, on_bad_record="skip")
    tally = Tally()
    assert not list(iter_traces(path, tally))
    (problem,) = tally.report.problems
    return problem.kind, str(caught.value)


LABELLED = {"id": "m1", "prompt": "1 + 1?", "completions": ["1 + 1 = 3", "A: 3"], "labels": [False, None],
            "first_error": 0, "answer": "3", "gold_answer": "2", "answer_correct": False, "task": "sums"}


def test_labelled_files_name_the_right_answer(jsonl):
    trace, layout = only(jsonl(LABELLED))
    assert (layout, trace.outcome, trace.labels) == ("step labels", False, (0.0, None))
    assert trace.prompt.meta == {"task": "sums", "answer": "2", "model_answer": "3"}


def test_an_outcome_wins_over_an_answer_that_is_only_a_column(jsonl):
    """With `outcome` the row is keel's own, and `answer` means what it says."""
    trace, layout = only(jsonl(LABELLED | {"outcome": True}))
    assert (layout, trace.outcome, trace.prompt.meta["answer"]) == ("steps", True, "3")


@pytest.mark.parametrize("change", [{"first_error": 1}, {"labels": [True, True]}, {"labels": "x"}])
def test_a_first_error_that_the_labels_deny(jsonl, change):
    kind, text = refused(jsonl(LABELLED | change))
    assert kind == "first error contradicts labels"
    assert f"first_error is {(LABELLED | change)['first_error']}, and the labels are" in text


MISTAKE = {"input": "Sort b a", "steps": ["I sort.", "b < a", "So: b a"], "answer": "b a ", "target": "a b",
           "mistake_index": 1}


def test_big_bench_mistake(jsonl):
    trace, layout = only(jsonl(MISTAKE))
    assert (layout, trace.outcome, trace.steps) == ("BIG-Bench Mistake", False, tuple(MISTAKE["steps"]))
    assert trace.labels == (1.0, 0.0, None) and trace.prompt.messages[0].content == "Sort b a"
    assert trace.prompt.meta == {"answer": "a b", "model_answer": "b a "}
    trace, _ = only(jsonl(MISTAKE | {"mistake_index": None, "target": "b a"}))
    assert trace.labels == (1.0, 1.0, 1.0) and trace.outcome is True
    trace, _ = only(jsonl(MISTAKE | {"answer": None}))
    assert trace.outcome is None and trace.prompt.meta == {"answer": "a b"}


@pytest.mark.parametrize(("answer", "target", "outcome"), [(-12, "-12", True), ("7 ", 7, True), (7, 8, False)])
def test_an_answer_that_is_a_number_has_an_outcome_too(jsonl, answer, target, outcome):
    trace, _ = only(jsonl(MISTAKE | {"answer": answer, "target": target}))
    assert trace.outcome is outcome and trace.prompt.meta == {"answer": target, "model_answer": answer}


def test_an_answer_that_is_neither_text_nor_number_is_refused():
    with pytest.raises(RowError, match=r"`answer` or `target` of a BIG-Bench Mistake row is \['b'\]"):
        trace_of(Row(Path("a.jsonl"), 1, MISTAKE | {"answer": ["b"]}, False), as_text=False)


BENCH = {"id": "gsm8k-12", "generator": "some-model", "problem": "1 + 1?", "steps": ["x", "y", "z"],
         "final_answer_correct": True, "label": -1}


@pytest.mark.parametrize(("label", "labels", "first"), [
    (-1, (1.0, 1.0, 1.0), -1), (0, (0.0, None, None), 0), (2, (1.0, 1.0, 0.0), 2)])
def test_process_bench(jsonl, label, labels, first):
    trace, layout = only(jsonl(BENCH | {"label": label}))
    assert (layout, trace.labels, trace.first_error, trace.outcome) == ("ProcessBench", labels, first, True)
    assert trace.id == "gsm8k-12" and trace.prompt.meta == {"subset": "gsm8k", "generator": "some-model"}
    assert "subset" not in only(jsonl(BENCH | {"id": 12}))[0].prompt.meta


@pytest.mark.parametrize("label", [3, -2, "1", 1.0, True])
def test_a_first_error_that_is_no_step(jsonl, label):
    kind, text = refused(jsonl(BENCH | {"label": label}))
    assert kind == "first error out of range" and f"the first error is given as {label!r}; there are 3 steps" in text


SHEPHERD = {"task": "GSM8K",
            "input": "Two and two? Step 1: 2 + 2 = 4 ки\nStep 2: 4 + 1 = 5. ки\nStep 3: The answer is: 5 ки",
            "label": "Two and two? Step 1: 2 + 2 = 4 +\nStep 2: 4 + 1 = 5. -\nStep 3: The answer is: 5 -"}


def test_math_shepherd(jsonl):
    """The pluses of the sums are no signs: only what stands in a mark's place is."""
    trace, layout = only(jsonl(SHEPHERD))
    assert (layout, trace.labels, trace.outcome) == ("Math-Shepherd", (1.0, 0.0, 0.0), None)
    assert trace.steps == ("Step 1: 2 + 2 = 4", "Step 2: 4 + 1 = 5.", "Step 3: The answer is: 5")
    assert trace.prompt.messages[0].content == "Two and two?" and trace.prompt.meta == {"task": "GSM8K"}
    asked = "Explain Step 1: of this. "
    trace, _ = only(jsonl({name: asked + text for name, text in SHEPHERD.items() if name != "task"}))
    assert trace.prompt.messages[0].content == asked + "Two and two?" and trace.steps[0] == "Step 1: 2 + 2 = 4"
    trace, _ = only(jsonl(SHEPHERD | {"input": SHEPHERD["input"] + "\nStep 4: so", "label": SHEPHERD["label"]}))
    assert trace.labels == (1.0, 0.0, 0.0, None) and trace.steps[-1] == "Step 4: so"


@pytest.mark.parametrize(("label", "mark"), [
    (SHEPHERD["label"].replace("= 4 +", "= 4 ?"), 1), (SHEPHERD["label"].replace("= 5.", "= 6."), 2),
    (SHEPHERD["label"][:-1], 3)])
def test_a_label_of_math_shepherd_must_repeat_its_input(jsonl, label, mark):
    kind, text = refused(jsonl(SHEPHERD | {"label": label}))
    assert kind == "label does not follow input"
    assert f"differs from the input's before mark {mark}, or has no sign there" in text


def test_a_mark_inside_the_question_of_math_shepherd(jsonl):
    kind, text = refused(jsonl(
        {"input": "Two ки and two? Step 1: 4 ки", "label": "Two + and two? Step 1: 4 +"}))
    assert kind == "no first step" and "there is no 'Step 1:' before the first mark" in text


def rated(*ratings, chosen=None, own=None):
    """A step of PRM800K whose completions are called by their place and rating."""
    return {"completions": [{"text": f"{i}:{rating}", "rating": rating, "flagged": False}
                            for i, rating in enumerate(ratings)],
            "human_completion": own, "chosen_completion": chosen}


def prm800k(*steps, reason="solution", **question):
    return {"labeler": "l", "generation": None, "is_quality_control_question": False,
            "question": {"problem": "1 + 1?", "ground_truth_answer": "2", **question},
            "label": {"steps": list(steps), "total_time": 1, "finish_reason": reason}}


def test_prm800k_follows_what_was_chosen_and_every_other_rating_ends_a_solution(jsonl):
    """Step one: the neutral one was chosen, beside a wrong and an unrated one. Step two: the labeller wrote it."""
    own = {"text": "mine", "rating": None, "source": "human"}
    path = jsonl(prm800k(rated(-1, 0, None, chosen=1), rated(-1, own=own), rated(1, chosen=0)))
    whole, first, second = read_traces(path)[0]
    assert (whole.id, first.id, second.id) == ("rows:1", "rows:1#1", "rows:1#2")
    assert (whole.steps, whole.labels, whole.outcome) == (("1:0", "mine", "0:1"), (1.0, 1.0, 1.0), True)
    assert (first.steps, first.labels, first.outcome) == (("0:-1",), (0.0,), None)
    assert (second.steps, second.labels, second.first_error) == (("1:0", "0:-1"), (None, 0.0), None)
    assert (whole.ended, first.ended, second.ended) == (True, False, False)
    assert whole.prompt.meta == first.prompt.meta == {
        "labeler": "l", "is_quality_control_question": False, "answer": "2", "finish_reason": "solution"}
    assert kind_of_files(path) == "traces" and read_prompts(path)[0] == [whole.prompt]


def test_prm800k_ends_with_the_error_that_was_found(jsonl):
    path = jsonl(prm800k(rated(1, chosen=0), rated(0, -1, -1), reason="found_error", pre_generated_answer="3",
                         pre_generated_steps=["a", "b"]))
    whole, *others = read_traces(path)[0]
    assert (whole.steps, whole.labels, whole.outcome) == (("0:1", "1:-1"), (1.0, 0.0), None) and not whole.ended
    assert [(t.steps, t.labels) for t in others] == [(("0:1", "0:0"), (None, 1.0)), (("0:1", "2:-1"), (None, 0.0))]
    assert whole.prompt.meta["model_answer"] == "3" and "pre_generated_steps" not in whole.prompt.meta


def test_prm800k_does_not_go_on_behind_a_step_that_nobody_chose(jsonl):
    """A later step would follow one that the solution lacks."""
    whole, *others = read_traces(jsonl(prm800k(rated(1, chosen=0), rated(0), rated(-1, 1, chosen=1))))[0]
    assert (whole.outcome, whole.ended) == (None, False)
    assert whole.steps == ("0:1",) and [trace.steps for trace in others] == [("0:1", "0:0")]


def test_prm800k_given_up_at_the_first_step_leaves_only_the_ratings(jsonl):
    (only_one,), _ = read_traces(jsonl(prm800k(rated(0, None), reason="give_up")))
    assert (only_one.id, only_one.steps, only_one.labels) == ("rows:1#1", ("0:0",), (1.0,))
    with pytest.raises(DataError, match="the solution has no step"):
        read_traces(jsonl(prm800k(reason="bad_problem")))


@pytest.mark.parametrize(("step", "said"), [
    ("x", "step 1 has no list of completions with a text each"),
    ({"completions": [{"rating": 1}]}, "step 1 has no list of completions with a text each"),
    (rated(1, own="mine"), "step 1 has no list of completions with a text each"),
    (rated(1, chosen=1), "step 1 chose completion 1 of 1"), (rated(1, chosen="0"), "step 1 chose completion '0' of 1"),
    (rated(1, chosen=-1), "step 1 chose completion -1 of 1")])
def test_steps_of_prm800k_that_cannot_be_read(jsonl, step, said):
    kind, text = refused(jsonl(prm800k(step)))
    assert kind == "bad step of PRM800K" and said in text


def test_a_rating_that_prm800k_does_not_know(jsonl):
    kind, text = refused(jsonl(prm800k(rated(2, chosen=0))))
    assert kind == "bad rating" and "the rating of a completion is 2" in text


JUNK = (None, True, -1, 10**400, float("nan"), "", " ", "ки", [], [None], ["a"], [[]], {}, {"text": 1}, {"a": []})


def spoiled(value):
    """The value with one of its parts, however deep, replaced by each kind of junk."""
    yield from JUNK
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in places:
        for junk in spoiled(part):
            yield {**value, key: junk} if isinstance(value, dict) else [*value[:key], junk, *value[key + 1:]]


@pytest.mark.parametrize("row", [
    LABELLED, MISTAKE, BENCH, SHEPHERD, prm800k(rated(-1, 0, chosen=1), rated(1, own={"text": "mine"})),
    {"prompt": "why?", "completions": ["a"], "labels": [1], "outcome": True, "prm800k_branches": []}],
    ids=["labelled", "mistake", "bench", "shepherd", "prm800k", "steps"])
def test_whatever_a_cell_holds_the_row_is_a_solution_or_a_complaint(row):
    outcomes = Counter()
    for value in spoiled(row):
        if not isinstance(value, dict):
            continue
        for textual in (False, True):
            try:
                for trace in trace_of(Row(Path("a.jsonl"), 1, value, textual), as_text=False)[1]:
                    check_trace(trace)
                    outcomes["read"] += 1
            except RowError as error:
                outcomes["refused"] += bool(error.kind and error.remedy)
    assert min(outcomes["read"], outcomes["refused"]) > len(JUNK)


FILES = {"big_bench_mistake": ({"word_sorting": 266, "tracking_shuffled_objects": 260, "logical_deduction": 294,
                                "multistep_arithmetic": 238, "dyck_languages": 650}, 2186, 1),
         "mr_gsm8k_part": ({"POT": 63, "original": 340, "reversed": 187}, 590, 5)}


@pytest.mark.parametrize("name", FILES)
def test_the_files_with_labelled_steps(shared, name):
    """Counts as in the README of the folder."""
    wrong, n_rows, n_blank = FILES[name]
    traces, report = read_traces(shared / f"data/step_labels/{name}.jsonl.gz")
    assert Counter(t.prompt.meta["task"] for t in traces if t.is_wrong) == wrong
    assert (len(traces), report.n_rows, report.left_out) == (n_rows, n_rows, {"blank steps": n_blank})
    assert all(isinstance(t.prompt.meta["answer"], str) and t.outcome is not None for t in traces)
    assert all(label is None for t in traces if t.is_wrong for label in t.labels[t.first_error + 1:])


def test_a_converted_file_of_labelled_steps_reads_back(shared, tmp_path):
    source, output = shared / "data/step_labels/mr_gsm8k_part.jsonl.gz", tmp_path / "a.jsonl"
    run(DataConvertConfig(paths=str(source), output=str(output)))
    (before, said), (after, report) = read_traces(source), read_traces(output)
    assert before == after and said.left_out and not report.left_out and report.formats == {"steps": 590}
