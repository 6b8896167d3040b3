"""Groups on the page: their course, their portraits, and what is left of both where files are missing or damaged."""

from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, environment, mean, ppo, result, samples, write
from test_report_page import charts_of, data_of, made

from keel.report.folder import read
from keel.report.glossary import GROUPS, METRICS, describe
from keel.report.groups import Grouped, beside, grouped
from keel.report.groups_course import MOST, cast
from keel.report.series import collect

Row = dict[str, Any]
SETTINGS = """[groups]
source = "{source}"
column = "domain"
level = "{level}"
objective = "{objective}"
estimator = "shaping"
kl = "{kl}"
floor = 0.15
"""
ENDS = {"return": (-0.5, 0.5), "score": (0.1, 0.9), "mass": (0.4, 0.6), "kl_coef": (0.02, 0.1), "kl": (0.2, 0.1),
        "length": (18.0, 22.0)}
"""Of the lowest and of the highest group."""
PHASE = {"groups/gap": 1.0, "groups/worst": -0.5, "groups/variance": 0.25, "groups/entropy": 0.3,
         "groups/shaping": 0.06, "groups/shaping_max": 0.4, "groups/coef": 0.1, "groups/swaps": 0,
         "groups/objective": 0.2}
SOMETIMES = {"groups/rand", "groups/information", "groups/factor_max"}


def course(steps: int = 12, names: tuple[str, ...] = ("1", "2"), **changed: Any) -> list[Row]:
    """Metrics of so many phases; `changed`: a name with "__" for "/" and what it is over the share of the run gone."""
    found = []
    for step in range(1, steps + 1):
        row: Row = {"step": step, "phase": "train", "score/mean": 0.5} | PHASE
        for i, name in enumerate(names):
            at = i / (len(names) - 1)
            row |= {f"group/{name}/{end}": low + at * (high - low) for end, (low, high) in ENDS.items()}
        row |= {key.replace("__", "/"): value((step - 1) / (steps - 1)) for key, value in changed.items()}
        found.append(row)
    return found


def portrait(name: str, place: int, **more: Any) -> Row:
    """One group of groups.json; `place`: 0 the lowest."""
    example = {"id": f"p-{name}", "label": "ledger", "membership": 0.875, "score": 0.25, "gold": 0.5,
               "prompt": f"question to {name}", "response": f"answer of {name}"}
    words = {"prompt": [{"word": f"asks{place}", "z": 3.14, "here": 12, "elsewhere": 1}],
             "response": [{"word": f"says{place}", "z": 2.5, "here": 8, "elsewhere": 0}]}
    return {"name": name, "n": 40 + place, "mass": 0.4 + 0.2 * place, "score": mean(0.1 + 0.8 * place, 0.1, 40),
            "gold": mean(0.2 + 0.3 * place, 0.1, 40), "length": mean(18.0 + 4 * place, 3.0, 40), "kl": 0.2,
            "labels": {"ledger": 30 - 20 * place, "list": 10 + 21 * place}, "words": words,
            "examples": [example | {"id": f"{k}"} for k in range(4)]} | more


def portraits(names: tuple[str, ...] = ("1", "2"), **more: Any) -> Row:
    return {"source": "inferred", "level": "prompt", "column": "domain", "n_prompts": 81, "labels": ["ledger", "list"],
            "agreement": {"rand": 0.3, "information": 0.25},
            "groups": [portrait(name, i) for i, name in enumerate(names)]} | more


def group_ppo(folder: Path, *, source: str = "inferred", level: str = "prompt", objective: str = "variance",
              groups: Row | None = None, metrics: list[Row] | None = None, status: str = "finished",
              kl: str = "adaptive") -> Path:
    """A run as `keel group-ppo` leaves it; groups={} leaves groups.json out."""
    told = portraits(source=source, level=level) if groups is None else groups
    return write(folder, metrics=course() if metrics is None else metrics, environment=environment("group_ppo"),
                 config=SETTINGS.format(source=source, level=level, objective=objective, kl=kl),
                 samples=samples(4, last=12),
                 result=result("group_ppo", mean(0.2, 0.05), mean(0.4, 0.05), status=status),
                 **({"groups": told} if told else {}))


def panels(*folders: Path) -> list[Grouped]:
    runs = [read(folder) for folder in folders]
    return grouped(runs, [collect(run) for run in runs])


def lines_of(panel: Grouped, chart: str) -> list[str]:
    """Names of the groups whose lines a chart has."""
    (found,) = [c for group in panel.course["groups"] for c in group["charts"] if c["name"] == chart]
    return [panel.course["runs"][line["run"]]["name"] for line in found["lines"]]


def test_each_chart_of_the_course_has_a_line_per_group_under_its_name(tmp_path: Path) -> None:
    (panel,) = panels(group_ppo(tmp_path / "run"))
    shown = {group["title"]: [chart["name"] for chart in group["charts"]] for group in panel.course["groups"]}
    assert shown["Group by group"] == ["Return", "Raw score", "Mass", "Price of drift", "Drift", "Length"]
    assert shown["All groups together"][:3] == ["groups/gap", "groups/worst", "groups/variance"]
    assert lines_of(panel, "Mass") == ["1 (lowest)", "2 (highest)"] and lines_of(panel, "groups/gap") == ["all groups"]
    assert len({run["color"] for run in panel.course["runs"]}) == 3


def test_known_groups_go_by_their_label_and_stand_in_the_order_of_the_portraits(tmp_path: Path) -> None:
    names = ("ledger", "a/b", "list")
    metrics = course(names=names)
    (panel,) = panels(group_ppo(tmp_path / "run", source="known", metrics=metrics,
                                groups=portraits(names, source="known", agreement=None)))
    assert lines_of(panel, "Return") == ["ledger", "a/b", "list"]
    assert "whose likeliest group" not in panel.numbers.words
    assert panel.labels.rows == () and [row[0] for row in panel.numbers.rows] == list(names)
    alone = group_ppo(tmp_path / "alone", source="known", metrics=course(names=("z", "y", "x")), groups={})
    assert lines_of(panels(alone)[0], "Return") == ["z", "y", "x"]  # the lowest return first


def test_groups_one_by_one_are_in_the_curves_only_beside_other_runs_and_folded(tmp_path: Path) -> None:
    one, other = group_ppo(tmp_path / "one"), group_ppo(tmp_path / "other")
    page = data_of(made(tmp_path, one))
    assert not [g for g in page["sections"][0]["groups"] if "roup" in g["title"]]
    both = data_of(made(tmp_path, one, other))["sections"][0]["groups"]
    opened = {group["title"]: group["open"] for group in both}
    assert opened["Groups"] is True and opened["Groups one by one"] is False
    warm = [row | {"phase": "critic", "step": 1} for row in course(1 + 1)[:1]]
    third = group_ppo(tmp_path / "third", metrics=warm + course())
    names = {c["name"] for g in data_of(made(tmp_path, third))["sections"][0]["groups"] for c in g["charts"]}
    assert not any(name.startswith("group") for name in names) and "score/mean" in names


def test_the_portrait_tells_numbers_labels_words_and_examples(tmp_path: Path) -> None:
    (panel,) = panels(group_ppo(tmp_path / "run"))
    assert panel.numbers.head[-1] == "price of drift, per nat"
    assert panel.numbers.rows[0] == ("1 (lowest)", "40", "40%", "0.10 [0.00, 0.20]", "0.20 [0.10, 0.30]",
                                     "18.0 [15.0, 21.0]", "0.2", "0.02")
    assert panel.labels.head == ("label", "1 (lowest)", "2 (highest)", "all")
    assert panel.labels.rows == (("ledger", "30 (75%)", "10 (24%)", "40 (49%)"),
                                 ("list", "10 (25%)", "31 (76%)", "41 (51%)"))
    assert [chart.title for chart in panel.means] == ["Score", "Gold score"]
    first = panel.portraits[0]
    assert (first.prompt_words[0].text, first.prompt_words[0].z) == ("asks0", "3.1")
    assert first.response_words[0].said == "8 times in this group, 0 elsewhere"
    assert first.examples[0].told == "score 0.25, gold 0.5, membership 88%, ledger"
    assert (len(first.examples), len(first.more)) == (3, 1)


def test_without_gold_no_column_and_no_chart_of_it(tmp_path: Path) -> None:
    told = portraits()
    for row in told["groups"]:
        row["gold"] = None
        row["examples"][0] |= {"gold": None, "label": None, "membership": 1.0}
    (panel,) = panels(group_ppo(tmp_path / "run", groups=told))
    assert "gold" not in panel.numbers.head and [chart.title for chart in panel.means] == ["Score"]
    assert panel.portraits[0].examples[0].told == "score 0.25"


def test_an_empty_group_and_a_group_of_one_response_have_a_row(tmp_path: Path) -> None:
    single = {"mean": 0.9, "low": None, "high": None, "n": 1}
    told = portraits(groups=[portrait("1", 0, n=0, score=None, gold=None, length=None, kl=None, labels={}, words={},
                                      examples=[]), portrait("2", 1, n=1, score=single, gold=single, length=single)])
    page = made(tmp_path, group_ppo(tmp_path / "run", groups=told))
    assert "To the lowest group belongs no held-out response before all other groups." in page
    assert "No held-out response." in page and "No word is clearly more frequent here" in page
    (panel,) = panels(tmp_path / "run")
    assert panel.numbers.rows[0][1:5] == ("0", "40%", "\u2013", "\u2013") and panel.numbers.rows[1][3] == "0.9"


def test_text_of_groups_is_never_markup(tmp_path: Path) -> None:
    names = (f"<script>alert(1)</script>{HOSTILE}", "plain")
    told = portraits(names, source="known", column=HOSTILE, labels=[HOSTILE], level=HOSTILE)
    for row in told["groups"]:
        row |= {"labels": {HOSTILE: 3}, "words": {"prompt": [{"word": HOSTILE, "z": HOSTILE, "here": HOSTILE}]},
                "examples": [{"prompt": HOSTILE, "response": f"<script>alert(2)</script>{HOSTILE}", "label": HOSTILE}]}
    folder = group_ppo(tmp_path / "run", source="known", groups=told, metrics=course(names=names))
    inferred = group_ppo(tmp_path / "inferred", groups=told | {"source": "inferred"})
    for page in (made(tmp_path, folder), made(tmp_path, folder, inferred)):
        assert "<script>alert" not in page and "<img" not in page and "<b>bold" not in page
        assert page.count("</script>") == 2 and "&lt;script&gt;alert(2)" in page


def test_a_run_without_groups_json_still_has_its_course(tmp_path: Path) -> None:
    folder = group_ppo(tmp_path / "run", groups={}, status="stopped")
    page = made(tmp_path, folder)
    (panel,) = panels(folder)
    assert panel.numbers.rows == () and panel.portraits == () and lines_of(panel, "Return") == [
        "1 (lowest)", "2 (highest)"]
    assert "Over the phases" in page and "In numbers" not in page and "What marks them" not in page
    assert "There is no groups.json" not in page  # it is written at the end
    assert "There is no groups.json" in made(tmp_path, group_ppo(tmp_path / "whole", groups={}))


@pytest.mark.parametrize("broken", [
    {"groups": 3}, {"groups": [1, None, {}]}, {"agreement": 3, "labels": 4, "level": 5, "column": None},
    {"groups": [{"name": "1", "score": "x", "labels": {"a": 0, "b": "x"}, "words": 3, "examples": [1], "n": "y"}]},
    {"groups": [{"name": "1", "score": {"mean": 1}, "length": {"mean": 2, "low": 3, "high": 1}, "labels": [1],
                 "words": {"prompt": 3}, "examples": 3, "mass": None},
                {"name": "2", "score": {"mean": 1, "low": 1, "high": 1}, "length": {}, "examples": [{}]}]},
    {"n_prompts": 1e400, "agreement": {"rand": None}}, {"source": 7},
])
def test_what_is_damaged_in_groups_json_is_left_out(tmp_path: Path, broken: Row) -> None:
    page = made(tmp_path, group_ppo(tmp_path / "run", groups=portraits() | broken, level="trajectory"),
                group_ppo(tmp_path / "other"))
    assert "Groups of run" in page and "nan" not in page.split("<body>")[1].split("<script")[0].lower().split()
    group_ppo(tmp_path / "torn")
    (tmp_path / "torn" / "groups.json").write_text('{"groups": [')
    assert "groups.json is damaged and was left out" in made(tmp_path, tmp_path / "torn")


def test_of_many_groups_the_lowest_and_the_highest_are_shown_and_the_page_says_so(tmp_path: Path) -> None:
    names = tuple(f"label {i:02d}" for i in range(40))
    folder = group_ppo(tmp_path / "run", source="known", metrics=course(names=names),
                       groups=portraits(names, source="known"))
    (panel,) = panels(folder)
    assert len(panel.portraits) == len(lines_of(panel, "Return")) == MOST and len(panel.numbers.rows) == 40
    assert lines_of(panel, "Return") == [*names[:6], *names[-6:]]
    assert panel.few == "Of 40 groups, charts and portraits show the 6 lowest and the 6 highest."


def test_a_run_of_ppo_beside_one_with_groups_has_none(tmp_path: Path) -> None:
    with_groups, plain = group_ppo(tmp_path / "grouped"), ppo(tmp_path / "plain")
    page = made(tmp_path, with_groups, plain)
    assert [panel.name for panel in panels(with_groups, plain)] == ["grouped"]
    assert "Groups of grouped" in page and "Groups of plain" not in page and "Groups side by side" not in page
    stray = write(tmp_path / "stray", metrics=course(), environment=environment("ppo"), groups=portraits())
    assert cast(read(stray), collect(read(stray))) is None  # another recipe's metric of that name is a curve
    assert "group/1/return" in charts_of(made(tmp_path, stray))


def test_several_runs_with_groups_are_compared_by_their_ends(tmp_path: Path) -> None:
    one = group_ppo(tmp_path / "one")
    other = group_ppo(tmp_path / "other", source="known", groups=portraits(
        ("list", "ledger"), source="known", agreement=None))
    table = beside([read(one), read(other)])
    assert table is not None
    assert table.rows[0] == ("one", "2 inferred, by prompt", "0.10 [0.00, 0.20] (1)", "0.20 [0.10, 0.30] (1)",
                             "0.50 [0.40, 0.60] (2)", "0.3")
    assert table.rows[1][1:3] == ("2 known, by domain", "0.10 [0.00, 0.20] (list)")
    assert table.rows[1][-1] == "\u2013" and beside([read(one)]) is None
    known = beside([read(other), read(other)])
    assert known is not None and known.head[-1] == "highest gold"  # no column that nobody fills
    assert "Groups side by side" in made(tmp_path, one, other)


def test_every_metric_of_groups_has_words_and_a_heading() -> None:
    page = (Path(__file__).parents[2] / "docs/methods/group_ppo.md").read_text()
    for name in [name for name in METRICS if name.startswith("groups/")]:
        assert f"`{name}`" in page and describe(name).group == "Groups", name
    for end in (*ENDS, "disagreement", "weight"):
        assert f"`group/<g>/{end}`" in page
        told = describe(f"group/any label/with slash/{end}")
        assert told.meaning.endswith(".") and told.unit and told.group in GROUPS, end
    assert describe("group/1/new").group == "Groups one by one" and describe("groups/new").group == "Groups"
    for what in ("score", "gold"):
        told = describe(f"group/any label/with slash/{what}/mean")
        assert "held-out" in told.meaning and told.unit and told.group == "Groups one by one"
        assert "held-out" in describe(f"group/label/{what}/n").meaning
    assert {*PHASE} | SOMETIMES == {name for name in METRICS if name.startswith("groups/")}


def test_words_of_the_groups_promise_nothing_where_nothing_is_logged() -> None:
    shaping, coef = METRICS["groups/shaping"], METRICS["groups/coef"]
    assert shaping.unit == "advantage" and "where" in shaping.meaning and "act no more" not in shaping.meaning
    assert "0 in the warm-up" not in coef.meaning  # it is not logged there
    assert "trust the Rand index" in METRICS["groups/information"].meaning


def exam(step: int, **labels: float) -> Row:
    """One look at held-out prompts: score by label, gold half of it."""
    row: Row = {"step": step, "phase": "eval", "score/mean": 0.4}
    for label, x in labels.items():
        for what, value in (("score", x), ("gold", x / 2)):
            row |= {f"group/{label}/{what}/{key}": y for key, y in (
                ("mean", value), ("low", value - 0.1), ("high", value + 0.1), ("n", 20 + len(label)))}
    return row


def held_out(panel: Grouped) -> dict[str, Row]:
    """The charts of held-out answers by their title."""
    return {c["name"]: c for g in panel.course["groups"] if g["title"] == "Held-out answers by label"
            for c in g["charts"]}


def named(panel: Grouped, chart: Row) -> list[str]:
    return [panel.course["runs"][one["run"]]["name"] for one in chart["lines"]]


def test_held_out_answers_of_each_label_have_their_curves_with_intervals(tmp_path: Path) -> None:
    exams = [exam(0, ledger=0.1, aim=0.5), exam(12, ledger=0.3, aim=0.7)]
    folder = group_ppo(tmp_path / "run", metrics=exams[:1] + course() + exams[1:])
    (panel,) = panels(folder)
    charts = held_out(panel)
    assert list(charts) == ["Score", "Gold score"] and named(panel, charts["Score"]) == ["“ledger”", "“aim”"]
    ledger = charts["Gold score"]["lines"][0]
    assert (ledger["x"], ledger["y"], ledger["low"]) == ([0, 12], [0.05, 0.15], [-0.05, 0.05])
    assert charts["Score"]["meaning"].endswith("Each mean is over 23 to 26 answers.")
    legend = [panel.course["runs"][i]["name"] for i in panel.course["members"]]
    assert legend == ["1 (lowest)", "2 (highest)", "“ledger”", "“aim”"]
    colors = [panel.course["runs"][i]["color"] for i in panel.course["members"]]
    assert len(set(colors)) == 4
    assert not {one["phase"] for one in charts["Score"]["lines"]} & {"train", "eval"}  # no faint line beside these
    page = made(tmp_path, folder)
    assert "Held-out answers by label" in page and "group/ledger/score/mean" not in charts_of(page)
    assert held_out(panels(group_ppo(tmp_path / "without"))[0]) == {}


def test_curves_of_held_out_labels_have_the_color_of_their_known_group(tmp_path: Path) -> None:
    exams = [exam(step, list=0.1, ledger=0.5, unseen=0.3) for step in (0, 12)]
    folder = group_ppo(tmp_path / "run", source="known", metrics=exams + course(names=("list", "ledger", "third")),
                       groups=portraits(("list", "ledger", "third"), source="known"))
    (panel,) = panels(folder)
    score = held_out(panel)["Score"]
    assert named(panel, score) == ["list", "unseen", "ledger"]  # the lowest score first
    assert [one["run"] for one in score["lines"]] == [0, 4, 1]  # groups have their own entry
    assert [panel.course["runs"][i]["name"] for i in panel.course["members"]] == ["list", "ledger", "third", "unseen"]


def test_of_many_held_out_labels_the_lowest_and_the_highest_are_drawn_and_the_chart_says_so(tmp_path: Path) -> None:
    many = {f"label{i:02d}": i / 40 for i in range(40)}
    (panel,) = panels(group_ppo(tmp_path / "run", metrics=[exam(1, **many), *course()]))
    score = held_out(panel)["Score"]
    drawn = [*range(6), *range(34, 40)]
    assert named(panel, score) == [f"“label{i:02d}”" for i in drawn] and len(drawn) == MOST
    assert score["meaning"].endswith("Of 40 labels, the 6 lowest and the 6 highest. Each mean is over 27 answers.")
    names = tuple(many)
    (panel,) = panels(group_ppo(tmp_path / "known", source="known", metrics=[exam(1, **many), *course(names=names)],
                                groups=portraits(names, source="known")))
    assert named(panel, held_out(panel)["Score"]) == [*names[:6], *names[-6:]]


def test_weights_of_group_dro_have_a_chart_with_a_line_per_group(tmp_path: Path) -> None:
    metrics = course(group__1__weight=lambda t: 0.5 + t / 4, group__2__weight=lambda t: 0.5 - t / 4,
                     groups__factor_max=lambda t: 1 + t)
    (panel,) = panels(group_ppo(tmp_path / "run", objective="dro", metrics=metrics))
    assert lines_of(panel, "Weight") == ["1 (lowest)", "2 (highest)"]
    assert lines_of(panel, "groups/factor_max") == ["all groups"]
