"""Models side by side on the page: who is better than the baseline, what is drawn, and what damage leaves."""

from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, environment, write
from test_report_bench import JUNK, damaged, paths, ran

from keel.report import build
from keel.report.evaluation import (
    evaluated,
    evaluation_evidence,
    evaluation_notes,
    evaluation_subject,
    evaluation_title,
)
from keel.report.evaluation_charts import number_scale, p_value

Row = dict[str, Any]
MINUS, DASH = "\u2212", "\u2013"


def around(mean: float, half: float = 0.1, n: int = 40) -> Row:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def verdict(win: float, tie: float, lose: float, neither: float, **more: Any) -> Row:
    return {"win": win, "tie": tie, "lose": lose, "neither": neither, "win_rate": around(win + tie / 2, 5), "n": 40,
            "n_unread": 0, "n_decided": 20, "p": 0.04, "p_holm": 0.12, "intervals": {}} | more


def measures(total: float, gap: float | None = None, p: float = 0.5, **more: Any) -> Row:
    judged = {"helpful": verdict(50, 20, 20, 10), "safe": verdict(0, 100, 0, 0)}
    return {
        "n": 40, "rewards": {"total": around(total), "yes": around(total / 2), "brief": around(total / 4)},
        "words": around(12, 1), "tokens": around(15, 1), "not_ended": around(0.0, 0), "empty": around(0.0, 0),
        "diversity": {"n": 40, **{f"distinct_ratio_{k}": 0.1 * k for k in (1, 2, 3)}, "self_bleu_n": 40,
                      **{f"distinctness_{k}": 0.2 * k for k in (1, 2, 3)}, "entropy_1": 2.5, "entropy_2": 3.25,
                      "self_bleu": 41.5},
        "difference": None if gap is None else {"total": around(gap) | {"p": p / 2, "p_holm": p}, "words": around(1)},
        "judge": None if gap is None else judged, "seen": None, "shift": None, "path": "m"} | more


def result(**more: Any) -> Row:
    models = {"sft": measures(0.5), "a-lol": measures(0.8, 0.3, 0.001), "nll": measures(0.51, 0.01, 0.9)}
    for name, row in models.items():
        row["subsets"] = {"base": measures(0.4, None if name == "sft" else 0.2), "online": measures(0.6)}
    return {"recipe": "evaluate", "status": "finished", "baseline": "sft", "n": 40, "models": models,
            "judge": {"name": "gpt-test", "position": {"helpful": {"inconsistent_percent": 12.0,
                                                                   "first_place_percent": 61.0}}}} | more


def changed(name: str, **more: Any) -> Row:
    whole = result()
    whole["models"][name] |= more
    return whole


def panel(told: Row, **more: Any) -> Any:
    (found,) = evaluated([ran(told, **more)])
    return found


def samples() -> list[Row]:
    said = {name: {"response": f"{name} says <b>yes</b>", "ended": name != "nll", "n_tokens": 3,
                   "rewards": {"total": 0.25, "yes": 1.0}, "verdicts": {"helpful": "win"} if name == "a-lol" else {}}
            for name in ("sft", "a-lol", "nll")}
    return [{"step": 0, "id": f"q{i}", "prompt": [{"role": "user", "content": f"question {i}?"}], "domain": "base",
             "models": said} for i in range(20)]


@pytest.mark.parametrize("gaps, title", [
    ([(0.3, 0.001), (0.01, 0.9)], "By total reward, a-lol is better than sft; nll is not told apart from sft."),
    ([(0.3, 0.001), (0.2, 0.01)], "By total reward, a-lol and nll are better than sft."),
    ([(0.3, 0.001), (-0.2, 0.01)], "By total reward, a-lol is better than sft; nll is worse."),
    ([(-0.3, 0.001), (-0.2, 0.01)], "By total reward, a-lol and nll are worse than sft."),
    ([(0.3, 0.05), (0.3, 0.06)], "By total reward, a-lol and nll are not told apart from sft.")])
def test_the_title_calls_a_difference_only_what_is_left_after_holm(gaps, title):
    whole = result()
    for name, (gap, p) in zip(("a-lol", "nll"), gaps, strict=True):
        whole["models"][name]["difference"]["total"] = around(gap) | {"p": p / 2, "p_holm": p}
    assert evaluation_title(ran(whole)) == title


def test_title_evidence_and_subject_name_the_numbers():
    run = ran(result(), config={"prompts": {"path": "data/test.jsonl"}}, environment={"seed": 3})
    assert evaluation_evidence(run) == (
        "Mean total less that of sft on the same 40 prompts, with 95% intervals over prompts: a-lol +0.30 [0.20, 0.40] "
        f"(p = 0.001), nll +0.01 [{MINUS}0.09, 0.11] (p = 0.900); p by turning signs, after Holm's correction over the "
        "models.")
    assert evaluation_subject(run) == (
        "3 models on the same 40 prompts of test.jsonl, with the same random numbers for all; seed 3.")
    alone = result(models={"one": measures(0.5)})
    assert evaluation_title(ran(alone)) == "1 model on the same prompts." and evaluation_evidence(ran(alone)) == ""
    other = ran(result() | {"recipe": "ppo"})
    assert evaluation_title(other) == evaluation_subject(other) == "" and evaluated([other]) == []


def test_charts_have_a_row_per_model_and_open_points_where_it_may_be_chance():
    found = panel(result())
    assert [(strip.name, strip.note, *strip.cells) for strip in found.total.strips] == [
        ("sft", "baseline", "0.50 [0.40, 0.60]", "40"), ("a-lol", "", "0.80 [0.70, 0.90]", "40"),
        ("nll", "", "0.51 [0.41, 0.61]", "40")]
    assert [(strip.name, strip.dots[0].few, strip.cells[2]) for strip in found.difference.strips] == [
        ("a-lol", False, "0.001"), ("nll", True, "0.900")]
    assert [chart.title for chart in found.parts] == ["yes", "brief"]
    zero = found.difference.strips[0].dots[0].guess
    assert dict(map(reversed, found.difference.ticks))["0"] == zero
    assert [strip.dots[0].color for strip in found.difference.strips] == [1, 2], "as in the other charts"


def test_every_reward_that_was_tested_has_a_chart_and_one_beside_the_total_says_so():
    whole = result(rewards={"beside": ["brief"], "tested": ["total", "brief"]})
    for name, gap in (("a-lol", -0.2), ("nll", 0.1)):
        whole["models"][name]["difference"]["brief"] = around(gap) | {"p": 0.01, "p_holm": 0.04}
    (chart,) = panel(whole).differences
    assert chart.title == "brief (no part of the total) less that of sft"
    assert [strip.cells[2] for strip in chart.strips] == ["0.040", "0.040"]
    assert [one.title for one in panel(whole).parts] == ["yes", "brief (no part of the total)"]
    assert evaluation_evidence(ran(whole)).endswith("after Holm's correction over the models and 2 rewards.")
    assert panel(result()).differences == ()


def test_tables_of_diversity_and_length():
    found = panel(result())
    assert found.diversity.rows[1] == ("a-lol", "40", "0.100 / 0.200 / 0.300", "0.200 / 0.400 / 0.600", "2.50 / 3.25",
                                       "41.5")
    assert found.lengths.head == ("", "words", "tokens", "cut", "empty")
    moved = panel(changed("nll", shift={"per_response": around(1.5)}, seen={"learned_from": 3, "held_out": 0},
                          coverage=around(0.5), density=around(1.5)))
    assert moved.lengths.head[-3:] == (f"S {MINUS} Q, nats", "coverage, density", "prompts trained on, held out")
    assert [row[-3:] for row in moved.lengths.rows] == [
        (DASH, f"{DASH} / {DASH}", "not known"), (DASH, f"{DASH} / {DASH}", "not known"),
        ("1.50 [1.40, 1.60]", "0.50 [0.40, 0.60] / 1.50 [1.40, 1.60]", "3 / 0")]
    assert "Coverage and density" in moved.lengths.words and "Coverage" not in found.lengths.words


def test_verdicts_are_bars_that_fill_the_whole():
    helpful, safe = panel(result()).verdicts
    assert helpful.title == "Which is more helpful: each model against sft"
    assert [row.label for row in helpful.rows] == ["a-lol (40)", "nll (40)"]
    assert [(piece.outcome, piece.at, piece.width, piece.text) for piece in helpful.rows[0].pieces] == [
        ("win", 0, 50, "50"), ("tie", 50, 20, "20"), ("neither", 70, 10, "10"), ("lose", 80, 20, "20")]
    assert helpful.rows[0].text == "60 [55, 65], p = 0.120" and safe.rows[0].said.startswith("a-lol: win 0%, tie 100%")
    unjudged = changed("nll", judge=None)
    unjudged["models"]["a-lol"]["judge"] = None
    assert panel(unjudged).verdicts == ()


def test_subsets_get_a_table_each_without_columns_that_nobody_fills():
    base, online = panel(result()).subsets
    assert base.title == "base: 40 prompts" and "less the baseline's" in base.head and base.rows[0][2] == DASH
    assert base.rows[1][2] == "+0.20 [0.10, 0.30]" and base.rows[1][-1] == "0 / 100 / 0 / 0%"
    assert online.head == ("", "total", "words", "distinct-1/2/3 (a)")


def test_what_weakens_the_numbers_is_said():
    assert evaluation_notes(ran(result())) == [
        ("Asked which is more helpful, the judge changed its mind with the order of the two on 12% of the pairs; the "
         "first place got 61% of its choices.", "These are ties.", False)]
    whole = changed("nll", seen={"learned_from": 3, "held_out": 2}, not_ended=around(0.6), empty=around(0.05), judge={
        "helpful": verdict(50, 50, 0, 0, n_unread=4), "safe": verdict(50, 50, 0, 0, n_unread=9)})
    told = [(text, grave) for text, _, grave in evaluation_notes(ran(whole))[:-1]]
    assert told == [
        ("nll was trained on 3 and may have been chosen by 2 of these prompts.", True),
        ("60% of the answers of nll were cut at the length limit.", True),
        ("5.0% of the answers of nll are empty.", False),
        ("4 verdicts on nll (helpful) could not be read; they count for no side.", False),
        ("9 verdicts on nll (safe) could not be read; they count for no side.", True)]
    dropped = evaluation_notes(ran(whole, config={"overlap": "drop"}))
    assert not any("was trained on" in text for text, _, _ in dropped)


@pytest.mark.parametrize("ends, ticks", [
    ([0.0, 0.6], ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]), ([-3.0, 21.0], [f"{MINUS}5", "0", "5", "10", "15",
                                                                                "20", "25"]),
    ([0.5, 0.5], ["0.5", "0.6"]), ([0.0, 0.0], ["0", "0.2"]), ([100.0, 100.4], None), ([-1e99, 1e99], None),
    ([1e-9, 2e-9], None)])
def test_tracks_have_round_ticks_and_hold_every_end(ends, ticks):
    found, place = number_scale(ends)
    assert 2 <= len(found) <= 8 and all(0 <= place(end) <= 100 for end in ends)
    assert (found[0][0], found[-1][0]) == (0, 100)
    assert ticks is None or [text for _, text in found] == ticks


@pytest.mark.parametrize("value, text", [(0.25, "0.250"), (0.0001, "< 0.001"), (None, DASH), (7, DASH), ("x", DASH)])
def test_p_values(value, text):
    assert p_value(value) == text


def written(folder: Path, told: Row, rows: list[Row]) -> Path:
    return write(folder, result=told, environment=environment("evaluate"), samples=rows)


def test_the_page_shows_one_prompt_with_every_models_answer_and_lets_no_text_be_markup(tmp_path: Path):
    rows = samples()
    rows[0]["models"]["sft"]["response"] = HOSTILE.replace("\ud800", "")
    rows[0]["prompt"][0]["content"] = "<script>alert(2)</script>"
    rows[0]["models"]["nll"]["response"] = "  "
    text = build([written(tmp_path / "run", result(), rows)], tmp_path / "r.html").read_text()
    assert "By total reward, a-lol is better than sft" in text and 'id="evaluated-1"' in text
    assert "metrics.jsonl is missing" not in text
    assert "<img src=x" not in text and "<script>alert" not in text and "a-lol says &lt;b&gt;yes" in text
    assert "(nothing)" in text and "total 0.25, cut" in text and "helpful: win" in text
    shown = panel(result(), samples={row["id"]: [row, row] for row in rows}).shown
    assert [one.id for one in shown] == ["q0", "q3", "q6", "q10", "q13", "q16"] and len(shown[0].answers) == 3
    assert shown[1].turns == (("user", "question 3?"),)


def test_two_evaluations_side_by_side_keep_their_names(tmp_path: Path):
    folders = [written(tmp_path / name, result(), samples()) for name in ("first", "second")]
    text = build(folders, tmp_path / "r.html").read_text()
    assert "Models of first" in text and "Models of second" in text


def test_a_damaged_evaluation_still_gets_a_page(tmp_path: Path):
    rows = samples()[:2]
    rows[0]["models"] = {"sft": 3, "nll": {"response": None, "rewards": 7, "verdicts": [1]}}
    left = {"sft": 3, "a-lol": {}, "nll": {"rewards": {"total": "x"}, "judge": {"helpful": 3}}}
    told = result(models=left, baseline=7)
    text = build([written(tmp_path / "run", told, rows)], tmp_path / "r.html").read_text()
    assert "2 models on the same prompts." in text
    whole = result()
    for path in paths(whole):
        for junk in JUNK:
            run = ran(damaged(whole, path, junk))
            evaluated([run]), evaluation_title(run), evaluation_evidence(run), evaluation_subject(run)
            evaluation_notes(run)


def test_one_prompt_is_called_one_and_its_numbers_have_no_interval():
    alone = {"low": None, "high": None, "n": 1}
    whole = result(n=1, models={"sft": measures(0.5), "a-lol": measures(0.8, 0.3)})
    for row in whole["models"].values():
        row["rewards"]["total"] |= alone
        row["words"] |= alone
        row["subsets"] = {"base": {"n": 1, "words": row["words"]}}
    whole["models"]["a-lol"]["difference"]["total"] |= alone
    found = panel(whole)
    assert [strip.cells[0] for strip in found.total.strips] == ["0.5", "0.8"]
    assert [strip.cells[0] for strip in found.difference.strips] == ["+0.3"]
    assert found.subsets[0].title == "base: 1 prompt" and found.subsets[0].rows[0] == ("sft", "12")
    assert "on the same 1 prompt, with" in evaluation_evidence(ran(whole))
    assert "2 models on the same 1 prompt, with" in evaluation_subject(ran(whole))


def test_identical_answers_stand_beside_the_number_of_verdicts():
    judge = {"helpful": verdict(50, 20, 20, 10, n_identical=5), "safe": verdict(0, 100, 0, 0, n_identical=0)}
    helpful, safe = panel(changed("nll", judge=judge)).verdicts
    assert [row.label for row in helpful.rows] == ["a-lol (40)", "nll (40, 5 identical)"]
    assert safe.rows[1].label == "nll (40)"
