"""The page of a data audit as a file: its sentences, charts and tables, and that it trusts nothing."""

import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, described, ppo, strength, suspect, write

from keel.report import build
from keel.report.audit import OPEN, SHOWN, audits
from keel.report.folder import read
from keel.report.plots import Bar, Series, bar_plot, point_plot


def made(out: Path, *runs: Path) -> str:
    return build(list(runs), out / "report.html").read_text(encoding="utf-8")


def plain(page: str) -> str:
    """Words without tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_the_title_and_the_numbers_behind_it(tmp_path: Path) -> None:
    page = made(tmp_path, strength(tmp_path / "run"))
    assert "<h1>The voters side against 40% of the labels.</h1>" in page
    assert ("120 of 300 pairs (95% interval over prompts: 36% to 44%); 10 votes each; single voters agree with 70% to "
            "79% of the labels; about 25% of the pairs divide the voters.") in page
    assert '<a href="#audit-1">Audit</a>' in page and "nothing else was recorded as going wrong" in page


def test_every_part_says_what_it_means(tmp_path: Path) -> None:
    words = plain(made(tmp_path, strength(tmp_path / "run")))
    for said in (
        "Below 0 they side against the label: 40% of the pairs. Shaded: labels that the simulation knows to be wrong. "
        "3 pairs further out are in the last bars.",
        "Of the weakest labels 10% are right, of the strongest 90%. Where the curve rises, strength tells right from",
        "The voters differ least in group 3 (spread 0.15, mean strength 0.1), more in the weakest (0.4) and in the "
        "strongest (0.5).",
        "Two voters agree on 70% of the pairs, all of them on 30%; their differences of scores correlate at 0.50. "
        "Beyond chance they agree at kappa 0.31",
        "The simulation knows 75 wrong labels (25%). A wrong label is weaker than another one with probability 0.912",
        "the labels prefer the longer response in 50% of the pairs, the voters in 55%.",
        "40 comparisons were labelled by more than one of 2 annotators. Beyond chance they agree at 0.610",
        "holds the votes of several annotators on 300 pairs. Beyond chance they agree at kappa 0.420 (Fleiss).",
        "1 pair has nearly the same texts as another one and the opposite label.",
        "Share of each domain among the pairs of a part, the weakest first.",
    ):
        assert said in words, said


def test_tables_hold_the_numbers(tmp_path: Path) -> None:
    shown = {table.title: table for table in audits([read(strength(tmp_path / "run"))])[0].tables}
    first = dict(zip(shown["By strength"].head, shown["By strength"].rows[0], strict=True))
    cells = (first["part"], first["pairs"], first["strength"], first["really right"])
    assert cells == ("1", "60", "\u22121.200", "10%")
    assert "judge agrees" not in first  # nobody asked one
    assert [row[0] for row in shown["By domain"].rows] == ["guard", "list"]  # the most doubted first
    assert shown["Searching for wrong labels"].rows == (("weakest 10%", "30", "80%", "32%"),)
    assert shown["Annotators"].rows == (("ann and bob", "40", "80%", "0.590"),)
    alike = shown["Duplicates and contradictions"].rows[1]
    assert alike == ("nearly the same texts", "2", "5", "a, b, c, d and 1 more")
    assert shown["What is weak and what is strong"].rows[0] == ("1", "25%", "75%")
    assert len(shown["Voters"].rows) == 10 and shown["Voters"].rows[9][-1] == "79%"


def test_suspects_come_with_reasons_and_examples_by_strength(tmp_path: Path) -> None:
    found = audits([read(strength(tmp_path / "run", n_suspects=90))])[0]
    assert len(found.suspects) == OPEN and len(found.more_suspects) == SHOWN - OPEN
    assert found.suspects_words == f"The {SHOWN} weakest of 90; suspects.jsonl holds them all."
    first = found.suspects[0]
    assert (first.name, first.facts) == ("place 0", "strength \u22122 \u00b1 0.25; the label is really wrong")
    assert first.reasons[0].startswith("9 of 10 voters") and first.chosen == "the arle. "
    assert first.prompt == (("user", "which river runs by place 0? "),)
    assert [heading for heading, _ in found.examples] == [
        "The weakest: strength \u22121.3 to \u22121.1", "2 of 5: strength \u22120.4 to \u22120.2",
        "3 of 5: strength 0 to 0.2", "4 of 5: strength 0.3 to 0.5", "The strongest: strength 0.8 to 1"]
    facts = found.examples[1][1][0].facts
    assert facts == "strength \u22120.3 \u00b1 0.25; 3 of 10 voters for the label; the label is really wrong"
    few = audits([read(strength(tmp_path / "few", n_suspects=3))])[0]
    assert few.suspects_words == "All of them; suspects.jsonl holds them too." and few.more_suspects == ()


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder = strength(tmp_path / "run", HOSTILE)
    odd = suspect("odd", 1.0) | {"prompt": HOSTILE, "chosen": HOSTILE, "meta": {"reasons": HOSTILE}}
    with (folder / "suspects.jsonl").open("a") as file:
        file.write('[1]\n{"id": 3')
    write(folder / "second", suspects=[odd])
    page = made(tmp_path, folder)
    assert "<img" not in page and "<b>bold" not in page and page.count("</script>") == 2
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", page)


@pytest.mark.parametrize("broken", [
    {"all": 3}, {"histogram": {"edges": [1], "counts": [1, 2]}}, {"histogram": {"edges": ["a", 1], "counts": [1]}},
    {"quantiles": "none"}, {"quantiles": [{}]}, {"spread": [{"mean": 1.0}]}, {"voters": {"split": [1, None, 2]}},
    {"subsets": {"x": 3}}, {"lengths": []}, {"truth": 1}, {"annotators": {"people": 2, "panel": []}},
    {"duplicates": {"alike": [3, ["a"]]}}, {"examples": [{"quantile": "x", "pairs": [{}]}]}, {"n_votes": None},
])
def test_odd_numbers_do_not_break_the_page(tmp_path: Path, broken: dict[str, Any]) -> None:
    page = made(tmp_path, strength(tmp_path / "run", audit=broken))
    assert "Preference strength" in page and ("Data audit" in page) == ("all" not in broken)


def test_a_damaged_or_missing_audit_is_left_out(tmp_path: Path) -> None:
    folder = strength(tmp_path / "run")
    (folder / "audit.json").write_text("{[")
    assert "audit.json is damaged and was left out" in made(tmp_path, folder)
    (folder / "audit.json").unlink()
    page = made(tmp_path, folder)
    assert "share of labels that the voters side against of 0.4" in page and 'id="audit-1"' not in page


@pytest.mark.parametrize(("accuracy", "folds", "audit", "said"), [
    (0.52, 0, {}, "little more than a coin would"),
    (0.98, 0, {}, "they may remember wrong labels instead of doubting them"),
    (0.98, 2, {}, ""),
    (0.7, 0, {"lengths": {"prefers_longer": {"labels": 0.5, "voters": 0.7}}}, "some of their doubts are about length"),
    (0.7, 0, {"duplicates": {"n_in_contradictions": 4}}, "4 pairs contradict each other: their labels cannot all be"),
])
def test_what_weakens_an_audit_is_said(tmp_path: Path, accuracy: float, folds: int, audit: dict[str, Any],
                                       said: str) -> None:
    folder = strength(tmp_path / "run", audit=audit, members=[{"voter": 0, "accuracy": accuracy}])
    (folder / "config.toml").write_text(f"folds = {folds}\n")
    page = made(tmp_path, folder)
    assert said in page
    assert ("nothing else was recorded as going wrong" in page) == (not said)


def test_a_judge_is_named_where_there_is_no_truth(tmp_path: Path) -> None:
    lines = [described(m, quantile=i, judge_agrees=x, shares={}) for i, (m, x) in enumerate(((-1.0, 0.9), (1.0, 0.4)))]
    page = plain(made(tmp_path, strength(tmp_path / "run", audit={"quantiles": lines, "truth": None})))
    assert "Of the weakest labels 90% are right by the judge, of the strongest 40%. Strength does not tell" in page
    assert "Searching for wrong labels" not in page


def test_audits_stand_beside_other_runs(tmp_path: Path) -> None:
    page = made(tmp_path, strength(tmp_path / "a"), ppo(tmp_path / "ppo"), strength(tmp_path / "b"))
    assert "Data audit of a" in page and "Data audit of b" in page and page.count('class="audit"') == 2


def test_bars_and_points_lie_where_their_numbers_say() -> None:
    bars = [Bar("win", 0, 2, 5, "five"), Bar("lose", -2, 0, 10, "ten"), Bar("tie", 0, 1, 0, "")]
    drawn = bar_plot("t", "w", "x", bars)
    assert [(b.kind, b.x, b.y, b.width, b.height) for b in drawn.boxes] == [
        ("win", 50, 50, 50, 50), ("lose", 0, 0, 50, 100)]
    assert drawn.ticks_x == ((0, "\u22122"), (25, "\u22121"), (50, "0"), (75, "1"), (100, "2"))
    assert drawn.ticks_y[0] == (100, "0") and drawn.ticks_y[-1] == (0, "10")
    drawn = point_plot("t", "w", "x", ["a", "b"], [Series("one", [0.0, 4.0], [1.0, 1.0]), Series("two", [None, -2.0])])
    first, second, third = drawn.marks
    assert [y for y, text in drawn.ticks_y if text in ("\u22122", "0", "6")] == [100, 75, 0]
    assert (first.x, first.y, first.low, first.high, first.before) == (25, 75, 62.5, 87.5, None)
    assert (second.x, second.y, second.before) == (75, 25, (25, 75)) and third.before is None
    assert third.low == third.high == third.y and drawn.legend == ((0, "one"), (1, "two"))
    shares = point_plot("t", "w", "x", ["a"], [Series("one", [0.25])], shares=True)
    assert shares.marks[0].y == 75 and shares.ticks_y[-1] == (0, "100%") and shares.legend == ()
