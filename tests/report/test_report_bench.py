"""Benchmark runs on the page: what is drawn where, what is said and by which rule, and what damage leaves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_rows import bench, column, ensemble, group, judge, micro
from exam_rows import share
from report_runs import HOSTILE, environment, write

from keel.bench.scorers import ScorerConfig
from keel.bench.sources import BenchmarkConfig
from keel.recipes import bench_rm
from keel.report import build
from keel.report.bench import benched, boards, leading
from keel.report.bench_charts import agreement_plot, certainty_plots, members_plot, samples_plot, score_plots, size_plot
from keel.report.bench_parts import columns, guess, headline_guess, places
from keel.report.bench_strips import headline_chart, length_charts, place_charts
from keel.report.bench_tables import WEAKEST, absent_table, calibration_tables, facts, tables
from keel.report.bench_words import bench_doubts, bench_evidence, bench_notes, bench_subject, bench_title
from keel.report.folder import RunFolder, read
from keel.report.lines import natural, point_scale, share_scale

Row = dict[str, Any]


def ran(result: Row, name: str = "run", **more: Any) -> RunFolder:
    """A run as it is read, from memory."""
    empty: Row = {key: {} for key in ("config", "environment", "samples", "audit", "probes")}
    lists: Row = {key: [] for key in ("metrics", "timings", "alarms", "suspects")}
    return RunFolder(path=Path(name), name=name, recipe=str(result.get("recipe")), notes=(), result=result,
                     **(empty | lists | more))


def folder(path: Path, result: Row) -> Path:
    return write(path, result=result, environment=environment(str(result["recipe"])))


def paths(row: Any, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """Where every part lies; of a list, its first two."""
    inner = row.items() if isinstance(row, dict) else enumerate(row[:2]) if isinstance(row, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from paths(value, *above, key)


def damaged(whole: Any, path: tuple[Any, ...], junk: Any) -> Any:
    """The same with junk in one place; what leads there is copied, the rest is shared."""
    row = whole.copy()
    row[path[0]] = damaged(whole[path[0]], path[1:], junk) if len(path) > 1 else junk
    return row


JUNK: tuple[Any, ...] = (-7.5, [3, None, ["y"]], None, {"mean": 0.5, "low": {"b": [1]}, "high": 0.1})


def test_the_title_names_scorer_number_and_how_much_was_asked():
    run = ran(bench())
    assert bench_title(run) == "length reaches 51.6% [49.0, 54.0] on part of RMB."
    # Guessing: 50%, 50%, and lists of 3 (75) and 4 (25): 0.75 / 3 + 0.25 / 4 = 31.25%; mean 43.75%.
    assert bench_evidence(run) == (
        "Mean of harmlessness pairs 50.0% [46.0, 54.0], helpfulness best of n 45.0% [41.0, 49.0] and helpfulness pairs "
        "60.0% [56.0, 64.0]; 95% intervals over prompts; a guess gets 44%. Higher is better; a tie is wrong.")
    assert bench_subject(run) == (
        "RMB: 500 pairs and 100 lists of 250 prompts, 900 different responses, put to the scorer length; seed 0.")
    whole = bench()
    whole["asked"]["coverage"]["partial"] = False
    assert bench_title(ran(whole)).endswith("on RMB.")
    other = ran(bench() | {"recipe": "ppo"})
    assert (bench_title(other), bench_evidence(other), bench_subject(other)) == ("", "", "")
    assert bench_doubts(other) == [] and bench_notes(other) == []


def test_what_a_guess_gets_is_known_by_size_of_list():
    found = {one.name: guess(one) for one in columns(ran(bench()))}
    assert found == {"harmlessness pairs": 0.5, "helpfulness pairs": 0.5, "helpfulness best of n": 0.3125}
    assert headline_guess(ran(bench())) == (0.5 + 0.3125 + 0.5) / 3
    tied = bench(sets={"list": {"Ties": column(0.5, 10, {"4": micro(0.5, 10)})}}, headline=share(0.5, 0.4, 0.6) | {
        "columns": {"Ties best of n": micro(0.5, 10)}})
    assert [guess(one) for one in columns(ran(tied))] == [None] and headline_guess(ran(tied)) is None


def test_the_headline_stands_beside_its_guess_and_its_ceiling():
    chart = headline_chart(ran(bench()))
    assert chart and chart.heads == ("accuracy", "items", "prompts", "a guess", "ceiling")
    assert [(strip.name, *strip.cells) for strip in chart.strips] == [
        ("overall", "51.6% [49.0, 54.0]", "600", "250", "44%", "\u2013"),
        ("harmlessness pairs", "50.0% [46.0, 54.0]", "300", "150", "50%", "99.67%"),
        ("helpfulness best of n", "45.0% [41.0, 49.0]", "100", "50", "31%", "99.00%"),
        ("helpfulness pairs", "60.0% [56.0, 64.0]", "200", "100", "50%", "99.50%")]
    # From 30% to 70%: the lists' guess of 31.25% lies at 1.25 / 40 of the track.
    assert chart.strips[2].dots[0].guess == 3.12 and chart.strips[3].dots[0].mean == 75.0
    assert "a tie is wrong" in chart.words and "tosses a coin" not in chart.words
    judged = headline_chart(ran(bench(scorer=judge(), headline_half=share(0.6, 0.58, 0.62, 600))))
    assert judged and "tosses a coin" in judged.words
    assert [(strip.name, strip.cells[0]) for strip in judged.strips[:2]] == [
        ("overall", "51.6% [49.0, 54.0]"), ("with a half for what is undecided", "60.0% [58.0, 62.0]")]
    assert headline_chart(ran(bench(headline={}))) is None
    shared = bench()
    shared["asked"]["rule"] = "fractional"
    assert "a tie at the top counts 1/k" in headline_chart(ran(shared)).words  # type: ignore[union-attr]


def test_scenarios_follow_their_category_and_both_sets_share_a_row():
    assert [(one.goal, one.category, one.scenario) for one in places(ran(bench()))] == [
        ("harmlessness", "S1", "S1"), ("harmlessness", "S2", "S2"), ("harmlessness", "S10", "S10"),
        ("helpfulness", "Chat", None), ("helpfulness", "Chat", "Casual"), ("helpfulness", "Chat", "Talk")]
    harm, helpful = place_charts(ran(bench()))
    assert [(strip.name, strip.kind) for strip in helpful.strips] == [
        ("all helpfulness", "whole"), ("Chat", ""), ("Casual", "inner"), ("Talk", "inner")]
    assert helpful.heads == ("pairs", "items", "best of n", "items")
    assert helpful.legend == ((0, "pairs"), (1, "best of n"))
    assert [strip.cells for strip in helpful.strips[1:]] == [
        ("60% [50, 70]", "200 of 260", "45% [35, 55]", "100"), ("60% [50, 70]", "200", "50% [40, 60]", "60"),
        ("\u2013", "\u2013", "40% [30, 50]", "20")]
    assert [[dot.few for dot in strip.dots] for strip in helpful.strips] == [
        [False, False], [False, False], [False, False], [False, True]]
    assert harm.strips[1].name == "S1 Violent Crimes" and harm.heads == ("pairs", "items")
    assert helpful.strips[3].dots[0].mean is None


def test_groups_without_goals_or_categories_are_flat():
    flat = bench(groups=[group("all", "", None, "pair", 0.5, 60), group("all", "", "b", "pair", 0.5, 40),
                         group("all", "", "a", "pair", 0.6, 20)], sets={"pair": {"all": column(0.55, 60)}})
    (chart,) = place_charts(ran(flat))
    assert chart.title == "By group"
    assert [(strip.name, strip.kind) for strip in chart.strips] == [("all of it", "whole"), ("a", ""), ("b", "")]
    assert place_charts(ran(bench(groups=[group("all", "", "", "pair", 0.5, 60)]))) == []


def test_ties_of_reward_bench_2_reach_more_than_one(tmp_path):
    """Its score for them is 1 for all right answers and a hundredth for the gap between them."""
    ties, above = share(1.005, 0.99, 1.01, 40), share(1.02, 0.99, 1.03, 40)
    sets = {"list": {"Ties": column(1.0, 40) | {"micro": ties}}}
    run = ran(bench(headline={"metric": "mean accuracy", **ties, "columns": {"Ties": ties}}, sets=sets))
    assert bench_title(run).startswith("length reaches 100.5% [99.0, 101.0] on")
    (whole, own) = headline_chart(run).strips  # type: ignore[union-attr]
    assert whole.cells[0] == own.cells[0] == "100.5% [99.0, 101.0]" and whole.dots[0].high is not None
    assert (boards([run, run])[0].chart.strips[0].cells) == ("100.5% [99.0, 101.0]",)
    page = build([folder(tmp_path / "run", run.result)], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "without a headline number" not in page and "damaged" not in page
    broken = ran(bench(headline={"metric": "mean accuracy", **above, "columns": {}}))
    assert bench_title(broken) == "" and "Not recorded, or damaged: its headline" in bench_notes(broken)[-1]


def test_many_rows_are_folded():
    rows = [group("all", "", f"s{i}", "pair", 0.5, 40) for i in range(90)]
    (chart,) = place_charts(ran(bench(groups=rows)))
    assert not chart.open and [strip.name for strip in chart.strips[1:4]] == ["s0", "s1", "s2"]


def test_length_has_its_rule_beside_it():
    (chart,) = length_charts(ran(bench()))
    assert [(strip.name, strip.cells[0]) for strip in chart.strips] == [
        ("all pairs", "60.0% [56.0, 64.0]"), ("the chosen one is longer", "90.0% [86.0, 94.0]"),
        ("the chosen one is shorter", "20.0% [16.0, 24.0]"), ("mean of these two", "55.0% [51.0, 59.0]"),
        ("rule: always the longer one", "63.0% [59.0, 67.0]")]
    assert "Pairs of equal length: 10." in chart.words and "0.80 [0.76, 0.84], mean over 90 prompts" in chart.words


def test_lists_by_size_are_drawn_beside_a_guess():
    plot = size_plot(ran(bench()))
    assert plot and [text for _, text in plot.ticks_x] == ["3", "4"]
    assert [(mark.x, mark.y, mark.said) for mark in plot.marks] == [
        (25.0, 50.0, "helpfulness, 3 responses: 50.0% [46.0, 54.0] of 75 lists"),
        (75.0, 70.0, "helpfulness, 4 responses: 30.0% [26.0, 34.0] of 25 lists")]
    ((x1, y1, x2, y2),) = plot.guides
    assert (x1, x2, y2) == (25.0, 75.0, 75.0) and y1 == 100 * (1 - 1 / 3)
    assert size_plot(ran(bench(sets={}))) is None


def test_scores_of_both_sides_are_drawn_over_each_other():
    (plot,) = score_plots(ran(bench()))
    assert [box.kind for box in plot.boxes] == ["chosen"] * 4 + ["rejected"] * 4
    assert plot.boxes[0].said == "0 to 1: 1 chosen" and plot.boxes[4].said == "0 to 1: 4 rejected"
    assert plot.legend == ((0, "chosen"), (1, "rejected")) and "of 10 pairs" in plot.words
    whole = bench()["histograms"]["helpfulness"]
    for broken in ({"low": None}, {"low": 9.0}, {"chosen": [1, 2]}, {"rejected": [1, 2, 3, -4]}, {"chosen": []},
                   {"chosen": [0] * 4, "rejected": [0] * 4}):
        assert score_plots(ran(bench(histograms={"helpfulness": whole | broken}))) == []
    constant = score_plots(ran(bench(histograms={"helpfulness": whole | {"low": 1.0, "high": 1.0}})))
    assert len(constant[0].boxes) == 8


def test_certainty_is_shown_by_margin_and_by_what_is_stated():
    margins, stated = certainty_plots(ran(bench()))
    assert margins.title == "Right by margin, helpfulness" and len(margins.marks) == 10
    assert "right in 50% of the closest, in 86% of the furthest" in margins.words
    assert (margins.marks[0].x, margins.marks[0].y, margins.marks[9].y) == (5.0, 50.0, 14.0)
    assert stated.title == "Reliability, helpfulness" and len(stated.marks) == 4
    ((words, table),) = calibration_tables(ran(bench()))
    assert words.endswith("4 pairs without a finite margin are left out.") and len(table.rows) == 4
    assert "log-odds" in calibration_tables(ran(bench(scorer=judge())))[0][0]


def test_an_ensemble_is_drawn_by_members_and_by_agreement():
    members, agreement = members_plot(ensemble()), agreement_plot(ensemble())
    assert members and members.legend == ((0, "pairs"), (1, "best of n")) and len(members.marks) == 6
    assert members.marks[0].said == "1 member, pairs: 55.0% [51.0, 59.0]; 3 ensembles tried, worst 50%, best 60%"
    assert members.marks[2].said == "3 members, pairs: 65.0% [61.0, 69.0]"
    assert agreement and [(mark.x, mark.few) for mark in agreement.marks] == [(66.667, False), (100.0, True)]
    assert members_plot({"by_size": [{"members": 1}, {"members": 2}]}) is None
    assert members_plot({}) is None and agreement_plot({}) is None
    told = {"mean": 0.6, "low": 0.5, "high": 0.7, "n": 9}
    drawn = samples_plot({"by_samples": [{"samples": k, "sets": {"pair": told}} for k in (1, 3, 5)]})
    assert drawn is not None and drawn.title == "Accuracy by number of samples"
    assert "5 samples, pairs: 60" in str(drawn) and "member" not in str(drawn)
    assert samples_plot({"by_samples": [{"samples": 1, "sets": {"pair": told}}]}) is None
    shown = dict(facts(ran(bench(ensemble=ensemble()))))
    assert shown["member 2"] == "two" and shown["member 3, kind"] == "function"


def test_counts_and_other_ways_to_count():
    found = {table.title: table for table in tables(ran(bench()))}
    assert list(found) == ["Other ways to count", "What was counted", "Oddities of the items"]
    ways, counts = ({row[0]: row[1:] for row in found[name].rows} for name in list(found)[:2])
    assert found["What was counted"].head == (
        "", "harmlessness pairs", "helpfulness pairs", "helpfulness best of n", "what it is")
    assert counts["items"][:3] == ("300", "200", "100") and counts["comparisons"][:3] == ("300", "200", "200")
    assert "near ties" not in counts and counts["unwinnable"][:3] == ("1", "1", "1")
    assert ways["single comparisons"][:3] == ("\u2013", "\u2013", "45.0% [41.0, 49.0]")
    assert all(row[-1] for name in list(found)[:2] for row in found[name].rows)
    assert found["Oddities of the items"].rows == (("equal texts", "2"),)


def test_the_weakest_scenarios_are_those_that_are_large_enough():
    rows = [group("all", "", f"s{i}", "pair", 0.2 + 0.05 * i, 200) for i in range(10)]
    rows.append(group("all", "", "tiny", "pair", 0.15, 20))
    sets = {"pair": {"all": column(0.5, 220)}}
    table = tables(ran(bench(groups=rows, sets=sets)))[0]
    assert table.title == "Weakest scenarios" and "large enough" in table.words and len(table.rows) == WEAKEST
    assert table.rows[0] == ("s0", "pairs", "20% [10, 30]", "200", "50%", "yes")
    assert [row[-1] for row in table.rows] == ["yes"] * 4 + ["not shown"] * 2  # the fifth ends at 50% itself
    small = tables(ran(bench(groups=[row | {"small": True} for row in rows], sets=sets)))[0]
    assert small.rows[0][0] == "tiny" and "few are large enough" in small.words


def test_a_judge_has_its_own_counts():
    table = {table.title: table for table in tables(ran(bench(scorer=judge())))}["The judge"]
    shown = {row[0]: row[1] for row in table.rows}
    assert shown["first place %"] == "75" and shown["unparsed"] == "30" and "prompt tokens" not in shown
    assert all(row[2] for row in table.rows)
    doubts = [text for text, _ in bench_doubts(ran(bench(scorer=judge())))]
    assert doubts[1:] == [
        "In 50% of the comparisons the judge changed its verdict with the order of the two answers; the answer shown "
        "first won 75% of the verdicts.", "For 3.0% of the questions no verdict could be read; they count as wrong."]


def test_what_a_judge_did_not_decide_is_told_in_its_words():
    result = bench(scorer=judge())
    result["sets"]["pair"]["helpfulness"]["counts"] |= {"ties": 30, "failed": 20, "undecided": 40}
    run = ran(result)
    table = {table.title: {row[0]: row[1:] for row in table.rows} for table in tables(run)}["What was counted"]
    assert [table[name][1] for name in ("ties", "failed", "undecided")] == ["30", "20", "40"]
    assert "both orders find neither better" in table["ties"][-1] and "no readable verdict" in table["failed"][-1]
    assert "orders disagree" in table["undecided"][-1] and "undecided" not in {
        row[0] for table in tables(ran(bench())) for row in table.rows}
    doubts = dict(bench_doubts(run))
    assert "calls.jsonl" in doubts["2.9% of the comparisons failed, and count as wrong."]
    assert ("protocol", "judge in both orders, 1 sample, cot") in facts(run)


def test_what_is_absent_is_named_and_partial_comes_first():
    table = absent_table(ran(bench()))
    assert table.rows == (("S3 Other", "harmlessness", "best of n and pairs"), ("Talk", "helpfulness", "pairs"))
    first = bench_doubts(ran(bench()))[0]
    assert first[0] == "PARTIAL: 500 of 560 published pairs and 100 of 100 published lists."
    whole = bench()
    whole["asked"]["coverage"]["partial"] = False
    assert not any("PARTIAL" in text for text, _ in bench_doubts(ran(whole)))


def test_doubts_are_raised_by_intervals_and_by_shares():
    found = [text for text, _ in bench_doubts(ran(bench()))]
    assert found[1:] == [
        "Not better than guessing: harmlessness pairs (50.0% [46.0, 54.0] against 50%).",
        "On helpfulness pairs it is no better, as far as these pairs can tell, than always preferring the longer "
        "response: 60.0% [56.0, 64.0] against 63.0% [59.0, 67.0]."]
    better = bench()
    better["sets"]["pair"] = {"helpfulness": column(0.8, 200)}
    assert len(bench_doubts(ran(better))) == 1
    counts = better["sets"]["pair"]["helpfulness"]["counts"]
    counts |= {"ties": 250, "failed": 8, "near_ties": 4}
    found = [text for text, _ in bench_doubts(ran(better))]
    assert found[1:] == ["63% of the comparisons are ties: it hardly tells responses apart.",
                         "2.0% of the comparisons failed, and count as wrong.",
                         "1.0% of the comparisons are decided by rounding."]
    assert bench_notes(ran(better)) == ["8 comparisons failed and count as wrong",
                                        "2 items have the same text on both sides; no scorer of texts gets them right"]


def test_facts_are_what_can_change_a_score():
    run = ran(bench(), timings=[{"step": 0, "asking_s": 3.25, "counting_s": 90.0}])
    assert facts(run) == [
        ("name", "length"), ("kind", "scorer"), ("kind", "function"), ("source", "abc"), ("responses", "900"),
        ("not finite", "0"), ("benchmark", "RMB"), ("digest", "d1"), ("rule", "strict"), ("seed", "0"),
        ("asking", "3.2 s"), ("counting", "1 min 30 s"), ("benchmark.layout", "auto"), ("benchmark.per_scenario", "7")]


def test_runs_on_the_same_items_stand_side_by_side_best_first():
    low = bench(headline=bench()["headline"] | share(0.4, 0.38, 0.42))
    (board,) = boards([ran(low, "low"), ran(bench(), "high")])
    assert [(strip.name, strip.note, strip.cells) for strip in board.chart.strips] == [
        ("high", "length", ("51.6% [49.0, 54.0]",)), ("low", "length", ("40.0% [38.0, 42.0]",))]
    assert [strip.dots[0].color for strip in board.chart.strips] == [1, 0]
    assert board.columns.head == ("", "harmlessness pairs", "helpfulness best of n", "helpfulness pairs")
    assert leading([ran(low, "low"), ran(bench(), "high")]) == (
        "high reaches 51.6% [49.0, 54.0], low 40.0% [38.0, 42.0].")
    assert boards([ran(bench())]) == [] and leading([ran(bench()), ran({"recipe": "ppo"})]) == ""


@pytest.mark.parametrize("key", ["digest", "rule", "benchmark"])
def test_runs_on_other_items_or_by_another_rule_are_never_ranked(key, tmp_path):
    other = bench()
    other["asked"][key] = "other"
    found = boards([ran(bench(), "a"), ran(other, "b"), ran(bench(), "c")])
    assert [[strip.name for strip in board.chart.strips] for board in found] == [["a", "c"], ["b"]]
    page = build([folder(tmp_path / "a", bench()), folder(tmp_path / "b", other)], tmp_path / "r.html").read_text()
    assert "<strong>Not comparable:</strong>" in page and "they cannot be ranked" in page


def test_judges_that_were_asked_in_other_ways_are_never_ranked():
    fixed = judge() | {"protocol": "judge in fixed order, 1 sample, cot"}
    both, once, scored = ran(bench(scorer=judge()), "a"), ran(bench(scorer=fixed), "b"), ran(bench(), "c")
    assert [[strip.name for strip in board.chart.strips] for board in boards([both, once, scored])] == [
        ["a"], ["b"], ["c"]]
    (board,) = boards([both, scored, both])
    assert [strip.note for strip in board.chart.strips] == ["some judge (judge in both orders, 1 sample, cot)",
                                                            "length", board.chart.strips[0].note]
    assert "that were not asked the same" in leading([both, once])


def test_scales_and_order():
    ticks, place = share_scale([0.31, 0.58])
    assert ticks[0] == (0.0, "30%") and ticks[-1] == (100.0, "60%") and place(0.45) == 50.0 and place(None) is None
    ticks, place = point_scale([-0.012, 0.03])
    assert [text for _, text in ticks] == ["\u22122", "\u22121", "0", "+1", "+2", "+3"] and place(0.0) == 40.0
    assert point_scale([])[0] == ((0.0, "0"), (100.0, "+0.2"))
    assert len(point_scale([-1.0, 1.0])[0]) <= 9
    assert sorted(["S10", "S2", "a", "S1x"], key=natural) == ["S1x", "S2", "S10", "a"]


def test_the_page_shows_a_benchmark_and_lets_no_text_in(tmp_path):
    result = bench(scorer=judge() | {"name": HOSTILE}, ensemble=ensemble(), notes=[HOSTILE])
    result["groups"] += [group(HOSTILE, HOSTILE, HOSTILE, "pair", 0.5, 40)]
    result["sets"]["pair"][HOSTILE] = column(0.5, 40)
    result["asked"] |= {"benchmark": HOSTILE, "anomalies": {HOSTILE: 3}, "labels": {"S1": HOSTILE}}
    result["lengths"][HOSTILE] = result["lengths"]["helpfulness"]
    result["headline"]["columns"][HOSTILE] = micro(0.5, 40)
    page = build([folder(tmp_path / "run", result)], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<img" not in page and "<b>bold" not in page and page.count("</script>") == 2
    assert '<a href="#bench-1">Benchmark</a>' in page and "<strong>Partial:</strong> 500 of 560" in page
    assert "metrics.jsonl is missing" not in page and "<h2>Curves</h2>" not in page
    for title in ("Accuracy by size of list", "Accuracy by number of members", "Accuracy by agreement", "The judge",
                  "Scores, helpfulness", "Who was asked what"):
        assert title in page


def test_an_unfinished_or_empty_run_still_gets_a_page(tmp_path):
    for i, result in enumerate(({"recipe": "bench_rm", "status": "failed", "error": "no"},
                                {"recipe": "bench_rm", "status": "finished"}, bench(headline={}, sets={}),
                                bench(headline=None), bench(sets=None), bench(groups=None))):
        page = build([folder(tmp_path / f"{i}", result)], tmp_path / "r.html").read_text(encoding="utf-8")
        assert "<h2>What to know</h2>" in page
    page = build([folder(tmp_path / "b", bench(headline={}))], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Not recorded, or damaged: its headline." in page and "The headline is missing from result.json" in page


def test_no_damage_to_any_part_breaks_the_panels():
    whole = bench(ensemble=ensemble(), scorer=judge())
    alike = {"macro_category", "macro_scenario", "half_tie", "non_strict", "fractional", "combo", "harmlessness"}
    for path in paths(whole):
        for junk in () if len(path) > 3 and alike & set(path) else JUNK[:2] if len(path) > 3 else JUNK:
            run = ran(damaged(whole, path, junk))
            benched([run])
            boards([run, ran(bench(), "b")])
            assert isinstance(bench_title(run) + bench_evidence(run) + bench_subject(run), str)
            bench_doubts(run), bench_notes(run)


def test_the_page_reads_what_a_benchmark_run_writes(tmp_path):
    rows = [{"prompt": f"q{i // 2}", "chosen": "a" * (1 + i % 7), "rejected": "b" * (1 + i % 5), "subset": "xy"[i % 2]}
            for i in range(24)]
    rows += [{"prompt": f"q{i}", "best": "a" * (2 + i), "losers": ["b" * 3, "c" * 5], "subset": "z"} for i in range(6)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bench_rm.run(bench_rm.BenchRMConfig(out=tmp_path / "run", benchmark=BenchmarkConfig(path=str(data)),
                                        scorer=ScorerConfig(function="bench_rows:by_length")))
    run = read(tmp_path / "run")
    (panel,) = benched([run])
    assert panel.warning == "" and panel.absent.rows == () and panel.headline and len(panel.headline.strips) == 3
    assert [strip.name for strip in panel.places[0].strips] == ["all of it", "x", "y", "z"]
    assert panel.lengths and panel.sizes and panel.scores and len(panel.certainty) == 2 and panel.calibration
    assert [table.title for table in panel.tables] == ["Other ways to count", "What was counted"]
    assert not any("damaged" in note for note in bench_notes(run))
    page = build([run.path], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "bench_rows:by_length reaches" in page and "aaaa" not in page
