"""Solutions on the page: steps coloured by score, errors marked, the worst disagreements first, nothing trusted."""

from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, environment, mean, ppo, result, samples, write
from test_report_page import data_of, made

from keel.report.folder import read
from keel.report.glossary import recipe_title
from keel.report.headline import headline
from keel.report.series import collect
from keel.report.solutions import LONGEST, MOST_SHOWN, MOST_STEPS, OPEN, Panel, panels, steps_evidence
from keel.report.words import DASH

Row = dict[str, Any]
UNKNOWN: Row = {"mean": None, "low": None, "high": None}


def found(f1: Row, wrong: float | None = 0.25, right: float | None = 0.5, n_right: int = 4) -> Row:
    return {"f1": f1, "accuracy_wrong": wrong, "accuracy_right": right, "n_wrong": 8, "n_right": n_right}


STEPS: Row = {
    "n": 14, "n_steps": 60, "n_unknown": 2, "n_unscored": 1, "threshold": 0.5, "accuracy": mean(0.75, 0.05, 40),
    "accuracy_majority": 0.8, "brier": 0.2, "ece": 0.1,
    "by_depth": [{"depth": k, "n": 10 if k < 3 else 9, "mean_probability": 0.75, "share_right": 0.5, "ece": 0.1 * k}
                 for k in (1, 2, 3)],
    "first_error": found(mean(0.4, 0.1)),
    "baselines": {"no error": found(mean(0.0, 0.0)), "length": found(mean(0.3, 0.1))},
    "difference": {"over": "length", "mean": 0.1, "low": -0.05, "high": 0.25},
    "by": "task", "by_task": {
        "sums": {"n": 9, "first_error": found(mean(0.5, 0.2)), "baselines": {"length": found(mean(0.25, 0.1))},
                 "difference": {"over": "length", "mean": 0.25, "low": 0.05, "high": 0.45}},
        "words": {"n": 5, "first_error": found(UNKNOWN, right=None, n_right=0), "baselines": {}, "difference": {}}},
}


def step(score: float | None, label: float | None = None, text: str = "so") -> Row:
    return {"text": text, "score": score, "label": label}


def solution(name: str, *steps: Row, **more: Any) -> Row:
    return {"id": name, "prompt": [{"role": "user", "content": f"question {name}"}], "steps": list(steps),
            "outcome": None, "first_error": None, "predicted": None} | more


def judge(folder: Path, *rows: Row, steps: Row | None = None, recipe: str = "process_rm evaluate") -> Path:
    return write(folder, environment=environment(recipe), solutions=list(rows), config="",
                 result=result(recipe) | ({"steps": steps} if steps else {}))


def panel(folder: Path, *rows: Row, steps: Row | None = None) -> Panel:
    (one,) = panels([read(judge(folder, *rows, steps=steps))])
    return one


def test_shades_run_from_wrong_to_right_and_errors_are_marked(tmp_path: Path) -> None:
    row = solution("a", step(0.0, 1.0), step(0.96, 0.0, "then"), step(0.44, 0.25), step(None), outcome=False,
                   first_error=1, predicted=0, method="beam")
    (one,) = panel(tmp_path / "run", row).shown
    assert [(s.number, s.shade, s.score, s.label, s.text) for s in one.steps] == [
        (1, 0, "0.00", "✓", "so"), (2, 10, "0.96", "✗", "then"), (3, 4, "0.44", "0.25", "so"),
        (4, None, DASH, "", "so")]
    assert [s.marks for s in one.steps] == [(("guess", "called wrong"),), (("label", "first error"),), (), ()]
    assert one.prompt == "question a"
    assert one.told == "beam, the answer is wrong, first error: step 2, judged: step 1"


def test_an_error_found_has_one_mark_and_no_error_none(tmp_path: Path) -> None:
    hit, clean = panel(tmp_path / "run", solution("a", step(0.2, 0.0), first_error=0, predicted=0),
                       solution("b", step(0.9, 1.0), first_error=-1, predicted=-1, outcome=True)).shown
    assert hit.steps[0].marks == (("both", "first error, found"),)
    assert clean.steps[0].marks == () and clean.told == "the answer is right, first error: none, judged: none"


def test_the_worst_disagreements_come_first(tmp_path: Path) -> None:
    # Distances from the labels 0.1, 0.9 and 0.5; from the outcome |0.3 - 1| = 0.7; and nothing to disagree with.
    rows = [solution("small", step(0.9, 1.0)), solution("large", step(0.8, 1.0), step(0.9, 0.0)),
            solution("middle", step(0.5, 1.0), step(0.1)), solution("outcome", step(0.6), step(0.3), outcome=True),
            solution("nothing", step(0.01))]
    one = panel(tmp_path / "run", *rows)
    assert [s.id for s in one.shown] == ["large", "outcome", "middle", "small", "nothing"]
    assert one.counted == "5 solutions, the worst disagreements first."
    alone = panel(tmp_path / "alone", solution("x", step(0.2)), solution("y", step(0.1)))
    assert [s.id for s in alone.shown] == ["x", "y"] and alone.counted == "2 solutions, in the order of the file."
    assert "labels" in one.kind and "labels" not in alone.kind


def test_a_page_holds_forty_solutions_and_says_of_how_many(tmp_path: Path) -> None:
    rows = [solution(str(i), step(i / 100, 0.0)) for i in range(50)]
    one = panel(tmp_path / "run", *rows)
    assert (len(one.shown), len(one.more)) == (OPEN, MOST_SHOWN - OPEN) and one.shown[0].id == "49"
    assert one.counted == "40 of 50 solutions, the worst disagreements first."


def test_long_texts_and_many_steps_are_cut_and_say_so(tmp_path: Path) -> None:
    (one,) = panel(tmp_path / "run", solution("a", *[step(0.5, text="x" * 1510)] * (MOST_STEPS + 2))).shown
    assert len(one.steps) == MOST_STEPS and one.more == 2
    assert one.steps[0].text == "x" * LONGEST + " … [10 more characters]"


def test_rewards_that_are_no_probabilities_are_coloured_around_zero(tmp_path: Path) -> None:
    # The largest size is 2: -2 is shade 0, 0 the middle, and 1 three quarters of the way.
    one = panel(tmp_path / "run", solution("a", step(-2.0), step(0.0), step(1.0)))
    assert [s.shade for s in one.shown[0].steps] == [0, 5, 8]
    assert one.kind == "a reward; colours run from \u22122 to 2"
    above = panel(tmp_path / "above", solution("a", step(4.0), step(0.0)))
    assert [s.shade for s in above.shown[0].steps] == [10, 5]


def test_the_last_samples_of_a_run_with_step_rewards_are_solutions(tmp_path: Path) -> None:
    rows = [{**row, "steps": [["first", 0.25 if row["step"] else 0.75], ["second", None]]} for row in samples(3)]
    folder = ppo(tmp_path / "run", samples=[*rows[:3], *rows[3:], {**rows[0], "id": "odd", "steps": "none"}])
    (one,) = panels([read(folder)])
    assert [s.id for s in one.shown] == ["prompt-000", "prompt-001", "prompt-002"]
    assert [(s.score, s.text) for s in one.shown[0].steps] == [("0.25", "first"), (DASH, "second")]
    assert one.shown[0].prompt == "system: you are a plain villager.\nuser: which river runs by village 0?"
    assert panels([read(ppo(tmp_path / "plain"))]) == []


def test_what_is_said_of_the_judge(tmp_path: Path) -> None:
    assert panel(tmp_path / "run", steps=STEPS).says == (
        "F1 of the first error is 0.40 [0.30, 0.50]: the first error is found in 25% of 8 wrong solutions, and 50% of "
        "4 right ones pass without a complaint. Less the best baseline (length): +0.10 [\u22120.05, 0.25]. The "
        "interval includes zero.",
        "Of 40 labelled steps 75% [70, 80] are judged as labelled; the more common label for all would be so for "
        "80%.",
        "2 solutions of 14 with steps that nobody judged before an error have no known first error and are left out of "
        "F1. 1 step had no room and has no score.")
    touching = STEPS | {"difference": STEPS["difference"] | {"low": 0.0}}
    assert "includes zero" in panel(tmp_path / "touching", steps=touching).says[0]
    clear = STEPS | {"difference": STEPS["difference"] | {"low": 0.02}, "n_unknown": 1, "n_unscored": 0}
    said = panel(tmp_path / "clear", steps=clear).says
    assert "includes zero" not in said[0] and said[2].startswith("1 solution of 14 with") and said[2].endswith("of F1.")


def test_judge_and_baselines_share_a_track_and_parts_are_a_table(tmp_path: Path) -> None:
    one = panel(tmp_path / "run", steps=STEPS)
    assert one.first is not None
    assert [(s.name, s.note, s.dots[0].color, s.dots[0].mean) for s in one.first.strips] == [
        ("this judge", "", 0, 40.0), ("no error", "baseline", 1, 0.0), ("length", "baseline", 1, 30.0)]
    assert one.first.strips[0].cells == ("0.40 [0.30, 0.50]", "25%", "50%")
    assert one.parts.title == "By task" and one.parts.rows == (
        ("sums", "9", "25%", "50%", "0.50 [0.30, 0.70]", "0.25 (length)", "+0.25 [0.05, 0.45]"),
        ("words", "5", "25%", DASH, DASH, DASH, DASH))


def test_depths_of_few_steps_are_no_points(tmp_path: Path) -> None:
    one = panel(tmp_path / "run", steps=STEPS)
    assert one.depths is not None
    # Depths 1 and 2 (the third has 9 steps): two lines of two points, at 75% and at 50% of the height.
    assert [(mark.color, mark.y) for mark in one.depths.marks] == [(0, 25.0), (0, 25.0), (1, 50.0), (1, 50.0)]
    assert one.depths.words.endswith("Calibration error of a depth: 0.1 to 0.2.")
    few = STEPS | {"by_depth": STEPS["by_depth"][1:]}
    assert panel(tmp_path / "few", steps=few).depths is None


@pytest.mark.parametrize("broken", [
    {"first_error": 3}, {"first_error": {"f1": "high"}}, {"baselines": [1], "difference": None}, {"accuracy": [0.5]},
    {"by_depth": [{"depth": "one", "n": 20, "mean_probability": 7, "share_right": "x"}] * 2}, {"by_task": {"a": 1}},
    {"n_unknown": "many"}, {"first_error": None, "accuracy": None, "by_depth": None, "by_task": None}])
def test_parts_that_are_absent_or_damaged_are_left_out(tmp_path: Path, broken: Row) -> None:
    folder = judge(tmp_path / "run", solution("a", step(0.5, 1.0)), steps=STEPS | broken)
    assert '<li class="shade-5">' in made(tmp_path, folder)


@pytest.mark.parametrize("row", [{}, {"id": "a", "steps": 4}, {"steps": [1, None]}, {"id": 3, "steps": [{}]}, {
    "id": "a", "prompt": [3], "steps": [{"text": 4, "score": "high", "label": "no"}], "outcome": "yes",
    "first_error": "two", "predicted": -7}])
def test_damaged_solutions_do_not_stop_the_page(tmp_path: Path, row: Row) -> None:
    page = made(tmp_path, judge(tmp_path / "run", row, solution("good", step(0.5, 1.0))))
    assert "question good" in page


def test_outcomes_stand_beside_the_number_of_steps(tmp_path: Path) -> None:
    told = {"n": 40, "auc": mean(0.7, 0.1), "baselines": {"number of steps": {"auc": mean(0.6, 0.1)}}}
    run = read(write(tmp_path / "run", result=result("process_rm") | {"outcome": told}))
    assert panels([run])[0].says == (
        "Of 40 solutions with a known outcome, right ones score above wrong ones with an area under the curve of 0.70 "
        "[0.60, 0.80]; the number of steps alone reaches 0.60 [0.50, 0.70]. A coin reaches 0.5.",)
    assert panels([read(write(tmp_path / "other", result=result("ppo") | {"outcome": "none"}))]) == []


def test_ways_to_answer_are_a_table_and_a_line_each(tmp_path: Path) -> None:
    ways = [{"method": method, "n": n, "accuracy": mean(x, 0.1), "gain": mean(x - 0.25, 0.05), "tokens": 40.0 * n}
            for method, n, x in (("random", 1, 0.25), ("process", 1, 0.25), ("process", 4, 0.5))]
    ways += [{"method": "beam", "beams": 4, "expand": 2, "accuracy": mean(0.75, 0.1), "tokens": 99.6},
             {"method": "bad"}]
    (one,) = panels([read(write(tmp_path / "run", result=result("process_rm search") | {"table": ways}))])
    assert one.found.rows[0] == ("random", "1", "25% [15, 35]", "0 [\u22125, 5]", "40")
    assert one.found.rows[2:] == (("process", "4", "50% [40, 60]", "+25 [20, 30]", "160"),
                                  ("beam", "4 by 2", "75% [65, 85]", DASH, "100"))
    assert one.search is not None and one.search.legend == ((0, "random"), (1, "process"))
    # Two places, 1 and 4; random is known at the first only, process rises from 25% to 50%.
    assert [(mark.color, mark.x, mark.y) for mark in one.search.marks] == [
        (0, 25.0, 75.0), (1, 25.0, 75.0), (1, 75.0, 50.0)]
    assert "Ways to answer" in made(tmp_path, tmp_path / "run")


def test_hostile_solutions_stay_text(tmp_path: Path) -> None:
    row = solution(HOSTILE, step(0.1, 0.0, HOSTILE), step(0.1, text=" "), prompt=HOSTILE, method=HOSTILE, first_error=0)
    by_task = {HOSTILE: STEPS["by_task"]["sums"]}
    steps = STEPS | {"by": HOSTILE, "by_task": by_task, "baselines": {HOSTILE: found(mean(0.1, 0.1))},
                     "difference": STEPS["difference"] | {"over": HOSTILE}}
    page = made(tmp_path, judge(tmp_path / "run", row, steps=steps))
    assert "<img" not in page and "<b>bold" not in page and page.count("</script>") == 2
    assert "(nothing)" in page and " style=" not in page
    assert data_of(page)["samples"] is None


def test_the_section_is_in_the_bar_and_only_where_steps_were_judged(tmp_path: Path) -> None:
    one = judge(tmp_path / "one", solution("a", step(0.5, 1.0)))
    assert '<a href="#steps-1">Steps</a>' in made(tmp_path, one)
    page = made(tmp_path, one, judge(tmp_path / "two", steps=STEPS))
    assert '<a href="#steps-2">Steps of two</a>' in page and 'id="steps-2"' in page
    assert "#steps-" not in made(tmp_path, ppo(tmp_path / "plain"))


def test_the_evidence_of_an_evaluation_is_the_first_sentence(tmp_path: Path) -> None:
    run = read(judge(tmp_path / "run", steps=STEPS))
    assert steps_evidence(run).startswith("F1 of the first error is 0.40")
    assert headline(run, collect(run)).evidence == steps_evidence(run)
    assert steps_evidence(read(judge(tmp_path / "trained", steps=STEPS, recipe="process_rm"))) == ""
    assert steps_evidence(read(judge(tmp_path / "bare"))) == ""
    assert recipe_title("process_rm evaluate") == "Process reward model evaluation"
