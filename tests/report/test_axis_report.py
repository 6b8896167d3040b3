"""Runs of an axis on the page: persona space, turns, texts, doses and thresholds, each with the numbers beside it."""

import csv
import io
import json
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axis_rows import axis_run, calibration, dose, drift, heat, rates, space, trajectories, vector
from report_runs import HOSTILE, mean, ppo
from test_report_page import data_of, made

from keel.report.axis import Panel, axis_evidence, axis_title, panels
from keel.report.axis_dose import calibration as calibrated
from keel.report.axis_dose import doses
from keel.report.axis_pictures import Band, Curve, Frame, Picture, Spot, Table, link, picture
from keel.report.axis_space import components, cube, tone
from keel.report.axis_space import space as spaced
from keel.report.axis_texts import MOST_TEXTS, MOST_TOKENS
from keel.report.axis_turns import MOST_LINES, MOST_NAMED, Turns, turns
from keel.report.folder import RunFolder, read
from keel.report.headline import headline
from keel.report.series import collect

Row = dict[str, Any]
FLAT = Frame("title", "words", "x", "y")


def run(folder: Path, recipe: str = "axis extract", **files: Any) -> RunFolder:
    return read(saved(folder, recipe, **files))


def saved(folder: Path, recipe: str = "axis extract", **files: Any) -> Path:
    texts = files.pop("heat", None)
    made_folder = axis_run(folder, recipe, **files)
    if texts is not None:
        (made_folder / "heat.json").write_text(json.dumps(texts))
    return made_folder


def numbers(address: str) -> list[list[str]]:
    """The rows of a table that a link holds."""
    kind, _, coded = address.partition(",")
    assert kind == "data:text/csv;charset=utf-8;base64"
    return list(csv.reader(io.StringIO(b64decode(coded).decode())))


def drawn(curves: Sequence[Curve], frame: Frame = FLAT, bands: Sequence[Band] = ()) -> Picture:
    return picture(frame, curves, Table("name", ("x",), [(1.0,)]), bands)


def conversations(folder: Path, **files: Any) -> Turns:
    found = turns(run(folder, "axis drift", **files))
    assert found is not None
    return found


# --- pictures --------------------------------------------------------------------------------------------------------


def test_points_lie_where_their_numbers_are() -> None:
    # Across: 0 to 2 with 4% of air on both sides, so 0.08 of 2.16 is left of the first point. Down: 0 to 10.
    one = drawn([Curve("a", "run-0", [Spot(0, 0), Spot(2, 10, 5, 10, "said")])])
    assert [(p.x, p.y, p.low, p.high, p.said, p.kind) for p in one.points] == [
        (3.7, 100.0, None, None, "", "dot run-0"), (96.3, 0.0, 50.0, 0.0, "said", "dot run-0")]
    assert [(line.kind, line.x1, line.y1, line.x2, line.y2) for line in one.lines] == [
        ("curve run-0", 3.7, 100.0, 96.3, 0.0)]
    assert [text for _, text in one.ticks_y] == ["0", "2", "4", "6", "8", "10"]
    assert one.ticks_x[0] == (3.7, "0") and one.ticks_x[-1] == (96.3, "2") and one.legend == ()


def test_whiskers_and_spans_widen_the_scale() -> None:
    one = drawn([Curve("a", "run-0", [Spot(0, 1, 0, 4)])], replace(FLAT, span_y=(-2.0,), span_x=(5.0,)))
    assert (one.ticks_y[0][1], one.ticks_y[-1][1], one.points[0].x) == ("\u22122", "4", 3.7)
    assert drawn([Curve("a", "run-0", [Spot(3, 3)])]).points[0].y == 100.0  # a scale of no width has one after all


def test_shares_have_a_scale_of_their_own_and_whole_numbers_whole_ticks() -> None:
    one = drawn([Curve("a", "run-0", [Spot(1, 0.25), Spot(3, 0.5)])], replace(FLAT, share=True, whole=True))
    assert [text for _, text in one.ticks_y] == ["0", "25%", "50%", "75%", "100%"] and one.points[0].y == 75.0
    assert [text for _, text in one.ticks_x] == ["1", "2", "3"]
    many = drawn([Curve("a", "run-0", [Spot(0, 1), Spot(64, 2)])], replace(FLAT, whole=True))
    assert [text for _, text in many.ticks_x] == ["0", "20", "40", "60"]


def test_faint_curves_are_lines_only_and_loose_ones_points_only() -> None:
    spots = [Spot(0, 0), Spot(1, 1)]
    one = drawn([Curve("a", "run-0", spots, faint=True), Curve("b", "run-1", spots, joined=False),
                 Curve("c", "run-2", spots, named=False)])
    assert [line.kind for line in one.lines] == ["curve faint run-0", "curve run-2"]
    assert [p.kind for p in one.points] == ["dot run-1"] * 2 + ["dot run-2"] * 2
    assert one.legend == (("run-0", "a"), ("run-1", "b"))


def test_a_band_without_width_is_a_dashed_line() -> None:
    spots = [Curve("a", "run-0", [Spot(0, 0), Spot(10, 10)])]
    one = drawn(spots, bands=[Band(2, 4, "range"), Band(5, 5, "level"), Band(5, 5, "layer", upright=True)])
    assert one.boxes == ((0.0, 60.0, 100.0, 20.0, "range"),)
    assert [(line.x1, line.y1, line.x2, line.y2) for line in one.lines[:2]] == [(0, 50, 100, 50), (50, 0, 50, 100)]
    assert {line.kind for line in one.lines[:2]} == {"guide"}


def test_names_go_right_then_left_and_never_on_one_another() -> None:
    names = [Spot(5, 5, label="first"), Spot(5, 5, label="second"), Spot(5, 5, label="third"), Spot(0, 0), Spot(10, 9)]
    one = drawn([Curve("a", "run-0", names, joined=False)])
    assert [(label.text, label.side, label.shift) for label in one.labels] == [
        ("first", "start", 7.0), ("second", "end", -7.0)]
    edge = drawn([Curve("a", "run-0", [Spot(0, 0, label="x" * 60), Spot(1, 1)])])
    assert edge.labels == ()
    # A point lies where the name would stand: the first name stands there all the same, the second goes left.
    crowd = [Spot(k / 30, 0.5, label="a" if k == 0 else "") for k in range(30)]
    assert [label.side for label in drawn([Curve("a", "run-0", crowd)]).labels] == ["start"]
    apart = [Spot(0, 1, label="a"), Spot(0.5, 0.5, label="b"), Spot(0.53, 0.5), Spot(1, 0)]
    assert [label.side for label in drawn([Curve("a", "run-0", apart)]).labels] == ["start", "end"]


def test_a_file_holds_unrounded_numbers_and_no_formulas() -> None:
    rows = [("=1+1", 1 / 3), ("@a", None), ("-x", 2.0), ('say "a, b"\nc', -1e-7), ("\ud800", float("nan")), ("+1", 3)]
    table = numbers(link(Table("t", ("name", "x"), rows)))
    assert table == [["name", "x"], ["'=1+1", repr(1 / 3)], ["'@a", ""], ["'-x", "2"], ['say "a, b"\nc', "-1e-07"],
                     ["\ufffd", ""], ["'+1", "3"]]


# --- persona space ---------------------------------------------------------------------------------------------------


def test_colours_run_from_far_to_the_assistant() -> None:
    assert [tone(x, 2.0) for x in (-9, -2, -1, 0, 0.4, 2, 9)] == [0, 0, 2, 5, 6, 10, 10]
    assert tone(3.0, 2.0, middle=3.0) == 5


def test_the_space_says_where_the_default_lies(tmp_path: Path) -> None:
    vectors = [vector("a", "fully", -1.0, 1, 5), vector("b", "somewhat", 3.0, 2, 5), vector("c", "fully", 2.0, 3, 5)]
    told = space(vectors=vectors, default={"n": 4, "projection": 2.5, "coordinates": [1, 2, 3], "cosines": [1, 0, 0]},
                 counts={"a": {"0": 1, "3": 2}, "b": {"2": 4, "unscored": 1}})
    one = spaced(run(tmp_path / "run", space=told), 0)
    assert one is not None
    assert one.says == (
        "On the axis the default lies at 2.5 from the mean role; of 3 role vectors 1 lies as far to the Assistant's "
        "end. The roles run from a (\u22121) to b (somewhat in role) (3).",
        "Of 8 responses under a role 25% play it fully (score 3) and 50% somewhat (score 2); 12% could not be scored.")
    rare = spaced(run(tmp_path / "rare", space=space(counts={"a": {"2": 1, "3": 499}})), 0)
    assert rare is not None and "99.8% play it fully (score 3) and 0.2% somewhat (score 2)." in rare.says[1]
    assert [words for _, words in one.kinds] == ["fully in role", "somewhat in role", "default"]
    assert one.table is not None and [s.name for s in one.table.strips] == ["b", "default", "c", "a"]
    assert one.table.strips[1].cells == ("2.5", "1.00", "0.00", "0.00", "4") and one.table.strips[0].dots[0].few
    assert one.reach == "3"  # 95% of three roles is the last of them
    assert numbers(one.file)[0] == ["name", "kind", "n", "projection", "pc1", "pc2", "pc3", "cosine_pc1", "cosine_pc2",
                                    "cosine_pc3"]
    assert [row[0] for row in numbers(one.file)[1:]] == ["a", "b", "c", "default"]
    assert numbers(one.file)[-1][3:] == ["2.5", "1", "2", "3", "1", "0", "0"]


@pytest.mark.parametrize(("at", "words"), [(9.0, "none lies"), (0.0, "2 lie"), (2.0, "1 lies")])
def test_how_many_roles_lie_beyond_the_default(tmp_path: Path, at: float, words: str) -> None:
    told = space(vectors=[vector(name, "fully", x, 1, 5) for name, x in (("a", -1.0), ("b", 2.0), ("c", 1.0))],
                 default={"n": 4, "projection": at})
    one = spaced(run(tmp_path / "run", space=told), 0)
    assert one is not None and f"of 3 role vectors {words} as far" in one.says[0]


def test_an_axis_that_changes_with_the_questions_is_called_so(tmp_path: Path) -> None:
    told = space(split_half=[0.99, 0.99, 0.99, 0.99, 0.85])
    one, good = (spaced(run(tmp_path / name, space=rows), 0) for name, rows in (("a", told), ("b", space())))
    assert one is not None and good is not None
    assert "cosine of 0.85, below 0.9" in one.says[-1] and "below" not in good.says[-1]


def test_components_in_words() -> None:
    held = {"0.7": 1, "0.8": 3, "0.9": None, "0.95": 12}
    assert components({"components_for": held}) == "1 component holds 70% of the variance, 3 hold 80% and 12 hold 95%."
    assert components({"components_for": {"0.9": 2}}) == "2 components hold 90% of the variance." and not components({})


def test_variance_is_drawn_alone_and_added_up(tmp_path: Path) -> None:
    one = spaced(run(tmp_path / "run", space=space(variance=[0.5, 0.25, 0.125])), 0)
    assert one is not None and one.variance is not None
    assert [p.y for p in one.variance.points] == [50.0, 75.0, 87.5, 50.0, 25.0, 12.5]
    assert numbers(one.variance.link)[1:] == [["1", "0.5", "0.5"], ["2", "0.25", "0.75"], ["3", "0.125", "0.875"]]


def test_cosines_pile_up_and_name_their_ends(tmp_path: Path) -> None:
    vectors = [vector(f"r{k}", "fully", 0.1 * k, k, 5) | {"cosines": [x, 0.0, 0.0]}
               for k, x in enumerate((-0.9, 0.2, 0.2, 0.9))]
    told = space(vectors=vectors, default={"projection": 1.0, "coordinates": [1, 1, 1], "cosines": [0.5, 0, 0]})
    one = spaced(run(tmp_path / "run", space=told), 0)
    assert one is not None
    first = one.cosines[0]
    assert (first.low, first.high) == ("r0 \u22120.90, r1 0.20", "r3 0.90, r2 0.20")
    # Two of one place stand on each other; the default has a dashed line of its own.
    roles = [p for p in first.picture.points if p.said.startswith("r")]
    assert [round(p.x, 1) for p in roles] == [8.3, 59.3, 59.3, 91.7] and len({p.y for p in roles}) == 2
    assert [label.text for label in first.picture.labels] == ["default"]
    (guide,) = first.picture.lines
    default = first.picture.points[-1]
    assert (guide.kind, guide.x1, guide.y1, guide.x2, guide.y2) == ("guide", default.x, 0, default.x, 100)
    assert numbers(first.picture.link)[-1] == ["default", "default", "0.5"]


def test_many_names_are_listed_by_their_ends_and_few_points_are_named(tmp_path: Path) -> None:
    one = spaced(run(tmp_path / "run", space=space(275)), 0)
    assert one is not None and one.traits is not None
    assert [len(ends.low.split(", ")) for ends in (*one.cosines, one.traits)] == [6] * 4
    assert all(len(flat.labels) <= 16 and flat.labels[0].text == "default" for flat in one.flats)
    assert all(len(flat.points) == 275 + 137 + 1 for flat in one.flats)
    assert one.table is not None and len(one.table.strips) == 413


def test_planes_show_kind_and_colour(tmp_path: Path) -> None:
    told = space(vectors=[vector("a", "fully", -1.0, 1, 5), vector("b", "somewhat", 1.0, 2, 5)],
                 default={"projection": 1.0, "coordinates": [9, 9, 9], "cosines": []})
    one = spaced(run(tmp_path / "run", space=told), 0)
    assert one is not None
    assert {p.kind for p in one.flats[0].points} == {"dot tone-0 whole", "dot tone-10 start", "dot tone-10 default"}
    assert [flat.frame.title for flat in one.flats] == ["Components 1 and 2", "Components 1 and 3",
                                                        "Components 2 and 3"]


def test_layers_keep_their_gaps_and_mark_the_layer(tmp_path: Path) -> None:
    told = space(cosine_pc1=[0.5, None, 1.0], layer=1, axis_norm=[2.0, 4.0, 3.0], split_half="none")
    one = spaced(run(tmp_path / "run", space=told), 0)
    assert one is not None
    assert [p.frame.title for p in one.layers] == ["Axis and first component", "Length of the axis"]
    assert [(p.x, p.y) for p in one.layers[0].points] == [(3.7, 50.0), (96.3, 0.0)]
    assert (one.layers[0].lines[0].kind, one.layers[0].lines[0].x1) == ("guide", 50.0)
    assert numbers(one.layers[0].link) == [["layer", "cosine_pc1"], ["0", "0.5"], ["1", ""], ["2", "1"]]


def test_what_the_script_turns(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", space=space())
    told = cube(folder, 3)
    assert told is not None and told["at"] == "space-3" and len(told["names"]) == len(told["places"]) == 31
    assert told["names"][-1] == "default" and told["dress"][-1] == "default" and told["tones"][-1] == 10
    assert told["dress"].count("start") == 10 and told["places"][-1] == [5.1, 0.4, -0.2]
    flat = run(tmp_path / "flat", space=space(vectors=[vector("a", "fully", 1.0, 1, 1) | {"coordinates": [1, 2]}]))
    assert cube(flat, 0) is None


@pytest.mark.parametrize("broken", [
    {"vectors": None, "default": None}, {"vectors": [{"name": "a"}], "default": 3}, {"counts": {"a": 1}, "layer": "x"},
    {"vectors": [{"projection": 1.0}]}, {"variance": ["a"], "components_for": [1], "traits": [{"cosine": "x"}]},
    {"cosine_pc1": {}, "axis_norm": None, "split_half": 1, "layer": 99},
    {"vectors": [{"projection": 1.0, "coordinates": [1, None, 2], "cosines": [2, 2]}]}])
def test_a_damaged_space_is_drawn_as_far_as_it_goes(tmp_path: Path, broken: Row) -> None:
    page = made(tmp_path, saved(tmp_path / "run", space=space() | broken))
    assert 'id="axis-1"' in page


# --- conversations ---------------------------------------------------------------------------------------------------


def talk(name: str, *heights: float | None, group: str = "g", label: str = "", role: str = "assistant",
         layer: int = 4) -> Row:
    told = [{"turn": k + 1, "role": role, "projection": y, "n_tokens": 7} for k, y in enumerate(heights)]
    return {"id": name, "group": group, "label": label, "layer": layer, "turns": told}


def test_each_domain_has_a_panel_and_all_share_a_scale(tmp_path: Path) -> None:
    paths = [talk("a", 1.0, 3.0), talk("b", -2.0, 8.0, group="h"), talk("c", 5.0, role="user")]
    one = conversations(tmp_path / "run", trajectories=paths)
    assert [panel.frame.title for panel in one.panels] == ["g", "h"]
    assert one.panels[0].ticks_y == one.panels[1].ticks_y and one.panels[0].ticks_y[0][1] == "\u22122"
    # 1 and 3 on a scale from -2 to 8 in steps of 2: 70% and 50% from the top.
    assert [p.y for p in one.panels[0].points] == [70.0, 50.0]
    assert one.says == ("2 conversations: mean projection of each of the assistant's turns; up is towards the "
                        "Assistant.",)
    assert one.panels[0].frame.words == "1 conversation." and one.panels[0].file == "turns_g.csv"


def test_turns_without_a_number_and_other_layers_are_left_out(tmp_path: Path) -> None:
    paths = [talk("a", 1.0, None, 2.0), talk("a", 9.0, 9.0, layer=5)]
    one = conversations(tmp_path / "run", trajectories=paths, drift={"layer": 4})
    assert len(one.panels) == 1 and len(one.panels[0].points) == 2
    assert one.says[0].startswith("1 conversation at layer 4:")


def test_the_default_range_is_shaded_and_said(tmp_path: Path) -> None:
    told = {"default_range": {"low": 2.0, "high": 4.0}, "centred": True}
    one = conversations(tmp_path / "run", trajectories=[talk("a", 0.0, 5.0)], drift=told)
    ((x, y, width, height, said),) = one.panels[0].boxes
    assert (x, y, width, height) == (0.0, 20.0, 100.0, 40.0) and said == "default range: 2 to 4"
    assert one.says[1] == "Shaded: from 2 to 4, where nine of ten default responses lie."
    assert one.panels[0].frame.y == "projection, mean role at 0"


def test_few_conversations_are_named_and_many_stand_behind_their_mean(tmp_path: Path) -> None:
    few = conversations(tmp_path / "few", trajectories=[talk("a", 1.0, 2.0), talk("a", 2.0, 1.0, label="capped")])
    assert few.panels[0].legend == (("run-0", "a, as it was"), ("run-1", "a, capped"))
    assert len(few.panels[0].points) == 4
    paths = [talk(str(k), 1.0, 2.0, label=label) for label in ("", "capped") for k in range(60)]
    many = conversations(tmp_path / "many", trajectories=paths)
    assert many.panels[0].legend == (("run-0", "as it was"), ("run-1", "capped")) and many.panels[0].points == ()
    assert len(many.panels[0].lines) == MOST_LINES and MOST_NAMED < len(paths)
    assert many.panels[0].frame.words == f"60 conversations, {MOST_LINES} lines of 120 shown."
    domains = [{"name": "g", "label": "capped", "slope": 0.5, "low": 0.25, "high": 0.75, "n": 60,
                "positions": [{"turn": 1, **mean(1.5, 0.5, 60)}, {"turn": 2, **mean(2.0, 0.5, 60)}]}]
    told = conversations(tmp_path / "told", trajectories=paths, drift={"domains": domains})
    assert [(p.kind, p.said) for p in told.panels[0].points] == [
        ("dot run-0", "capped, turn 1: 1.5 [1.0, 2.0], 60 conversations"),
        ("dot run-0", "capped, turn 2: 2.0 [1.5, 2.5], 60 conversations")]
    assert "Slope a turn: capped 0.50 [0.25, 0.75]." in told.panels[0].frame.words


def test_the_file_of_a_panel_holds_means_and_lines(tmp_path: Path) -> None:
    domains = [{"name": "g", "positions": [{"turn": 1, "mean": 1.5, "low": None, "high": None, "n": 2}]}]
    one = conversations(tmp_path / "run", trajectories=[talk("a", 1.25)], drift={"domains": domains})
    assert numbers(one.panels[0].link) == [
        ["group", "label", "id", "turn", "projection", "low", "high", "n"],
        ["g", "", "", "1", "1.5", "", "", "2"], ["g", "", "a", "1", "1.25", "", "", "7"]]
    assert one.panels[0].points[-1].low is None


def test_slopes_beyond_chance_are_told_by_condition(tmp_path: Path) -> None:
    one = conversations(tmp_path / "run", trajectories=trajectories(), drift=drift())
    assert one.says[2:] == (
        "As it was: the projection falls beyond chance in 3 of 4 domains (writing, therapy and philosophy about AI).",
        "Capped: middle: the projection falls beyond chance in 3 of 4 domains (writing, therapy and philosophy about "
        "AI).")
    assert one.slopes is not None and [strip.dots[0].few for strip in one.slopes.strips] == [True, True] + [False] * 6
    assert one.slopes.strips[4].cells == ("\u22120.110 [\u22120.130, \u22120.090]", "12")
    assert numbers(one.slopes_link)[0] == ["group", "label", "slope", "low", "high", "n"]
    assert numbers(one.slopes_link)[5][:2] == ["therapy", "as it was"]
    calm = drift(labels=("",), domains=[{"name": "a", "slope": 0.1, "low": 0.05, "high": 0.15, "n": 3},
                                        {"name": "b", "slope": -0.1, "low": -0.3, "high": 0.0, "n": 3}])
    quiet = conversations(tmp_path / "calm", drift=calm)
    assert quiet.says[-1] == "The projection falls beyond chance in 0 of 2 domains."
    assert quiet.slopes is not None and [strip.dots[0].few for strip in quiet.slopes.strips] == [False, True]


def test_predictions_differences_and_themes_are_tables(tmp_path: Path) -> None:
    gaps = [{"domain": "therapy", "first": "", "second": "capped", **mean(1.5, 0.5, 9)}]
    one = conversations(tmp_path / "run", drift=drift(differences=gaps))
    assert one.prediction.rows[0] == ("out of fold", "0.41 [0.33, 0.49]", "0.05")
    assert one.prediction.rows[2] == ("domain label alone", "0.30", "0.05")
    assert one.gaps.rows == (("therapy", "as it was", "capped", "1.5 [1.0, 2.0]", "9"),)
    assert one.themes.rows[0] == ("asks for a feeling", "40", "0.80 [0.60, 1.00]",
                                  "how does it feel to be you?\ntell me what you fear")
    nested = drift(themes=[{"name": "x", "n": 2, "projection": mean(1.0, 0.5), "examples": "none"}])
    assert conversations(tmp_path / "nested", drift=nested).themes.rows == (("x", "2", "1.0 [0.5, 1.5]", ""),)


@pytest.mark.parametrize("broken", [
    {"domains": 3, "prediction": [], "themes": [{}], "default_range": {"low": 2, "high": 1}, "differences": [{}]},
    {"domains": [{"name": None, "slope": "x", "positions": [{"turn": 1}, {"mean": 2.0}]}], "layer": "four"},
    {"prediction": {"projection": {"a": None}, "change": 1}, "themes": [{"name": 3, "examples": [1, None]}]}])
def test_damaged_conversations_are_drawn_as_far_as_they_go(tmp_path: Path, broken: Row) -> None:
    paths: list[Any] = [{}, {"turns": 3}, {"turns": [{"turn": "a"}, {"role": "assistant", "turn": 1}]}, talk("a", 1.0)]
    folder = saved(tmp_path / "run", "axis drift", trajectories=paths, drift=drift() | broken, heat=[{}, 3, {
        "tokens": [{"text": None, "projection": 1.0}, {"projection": "x"}]}])
    assert 'id="axis-1"' in made(tmp_path, folder)


# --- texts -----------------------------------------------------------------------------------------------------------


def tokens(*pairs: tuple[str, float], turn: int = 1, name: str = "talk", label: str = "") -> Row:
    return {"id": name, "turn": turn, "role": "assistant", "label": label,
            "tokens": [{"text": text, "projection": x} for text, x in pairs]}


def test_texts_are_coloured_around_the_middle_of_the_default_range(tmp_path: Path) -> None:
    # The middle is 3; the furthest of the sizes 4, 0 and 1 ends the colours.
    row = tokens(("no", -1.0), (" yes", 3.0), ("\n", 4.0))
    one = conversations(tmp_path / "run", heat=[row], drift={"default_range": {"low": 2.0, "high": 4.0}})
    (said,) = one.texts[0].turns
    assert [(t.text, t.tone, t.projection, t.below) for t in said.tokens] == [
        ("no", 0, "\u22121", True), (" yes", 5, "3", False), ("\u21b5\n", 6, "4", False)]
    assert (said.role, said.mean, one.ends) == ("turn 1, assistant", "2", ("\u22121", "3", "7"))
    centred = conversations(tmp_path / "centred", heat=[row], drift={"centred": True})
    assert centred.ends == ("\u22124", "0", "4") and not any(t.below for t in centred.texts[0].turns[0].tokens)
    bare = conversations(tmp_path / "bare", heat=[tokens(("a", 1.0), ("b", 3.0))])
    assert bare.ends == ("1", "2", "3")
    assert numbers(one.tokens_link)[1:] == [["talk", "turn 1, assistant", "0", "no", "-1"],
                                            ["talk", "turn 1, assistant", "1", " yes", "3"],
                                            ["talk", "turn 1, assistant", "2", "\n", "4"]]


def test_turns_of_a_conversation_stay_together_and_conditions_side_by_side(tmp_path: Path) -> None:
    rows = [tokens(("x", 1.0), name="a"), tokens(("x", 1.0), name="b"), tokens(("y", 2.0), name="a", turn=2),
            tokens(("x", 1.0), name="a", label="capped")]
    one = conversations(tmp_path / "run", heat=rows)
    assert [(text.title, len(text.turns)) for text in one.texts] == [("a", 2), ("a, capped", 1), ("b", 1)]


def test_long_texts_and_many_are_cut_and_say_so(tmp_path: Path) -> None:
    long = [tokens(*[("x", 1.0)] * (MOST_TOKENS - 1)), tokens(("y", 1.0), ("z", 1.0), turn=2),
            tokens(("q", 1.0), turn=3)]
    one = conversations(tmp_path / "run", heat=[*long, *(tokens(("x", 1.0), name=str(k)) for k in range(9))])
    assert len(one.texts) == MOST_TEXTS and one.texts[0].more == 2
    assert [len(said.tokens) for said in one.texts[0].turns] == [MOST_TOKENS - 1, 1]


def test_hidden_characters_of_a_text_are_seen(tmp_path: Path) -> None:
    one = conversations(tmp_path / "run", heat=[tokens(("\u202eabc\x07", 1.0))])
    assert one.texts[0].turns[0].tokens[0].text == "\u27e8U+202E\u27e9abc\u27e8U+0007\u27e9"


# --- doses and thresholds --------------------------------------------------------------------------------------------


def test_a_metric_is_drawn_over_each_dose_with_the_model_as_it_is(tmp_path: Path) -> None:
    one = doses(run(tmp_path / "run", "axis evaluate", dose=dose()))
    assert one is not None
    assert [(p.frame.title, p.file) for p in one.pictures[:3]] == [
        ("Harm by strength", "dose_harm_strength.csv"), ("Harm by percentile", "dose_harm_percentile.csv"),
        ("Refusal by strength", "dose_refusal_strength.csv")]
    assert one.pictures[0].legend == (("run-0", "axis"), ("run-1", "random"))
    assert (one.pictures[0].lines[0].kind, one.pictures[0].lines[0].y1) == ("guide", 35.0)  # 65% as it is
    assert numbers(one.pictures[1].link)[1][:4] == ["floor", "layers_3:5-p1", "1", repr(0.65 - 1 / 150)]
    assert one.says == ("17 settings. Left as it is, the model has harm 65% [60, 70], refusal 5.0% [3.0, 7.0] and "
                        "capability 80.0% [76.0, 84.0].",)
    assert one.settings.rows[0] == ("none", "none", "65% [60, 70]", "5.0% [3.0, 7.0]", "80.0% [76.0, 84.0]")
    assert one.clamped.rows[0] == ("layers_3:5-p75", "3", "40%", "35%")


def test_points_are_sorted_by_dose_and_curves_of_one_name_told_apart(tmp_path: Path) -> None:
    points = [{"setting": f"s{x}", "strength": x, "metrics": {"score": {"mean": 3.0 + x, "low": None, "high": None}}}
              for x in (1.0, 0.0)]
    curves = [{"name": "axis", "layers": "2", "where": "all", "points": points},
              {"name": "axis", "layers": "3", "where": "generation", "points": points}]
    one = doses(run(tmp_path / "run", "axis evaluate", dose={"curves": curves, "unit": "norm"}))
    assert one is not None
    assert [name for _, name in one.pictures[0].legend] == ["axis, layers 2", "axis, layers 3, generation tokens"]
    assert one.pictures[0].points[0].x < one.pictures[0].points[1].x and "(norm)" in one.pictures[0].frame.x
    assert not one.pictures[0].frame.share and one.settings.rows[0][2] == "4"
    assert one.says == ("4 settings. Left as it is, the model has score 3.",) and one.pareto is None


def test_the_front_is_what_no_other_setting_beats(tmp_path: Path) -> None:
    # b is beaten by a in both, d by c in capability alone; a and c remain, from less harm to more.
    rows = [{"setting": name, "harm": x, "capability": y} for name, x, y in (
        ("c", 0.5, 0.9), ("b", 0.3, 0.7), ("a", 0.2, 0.8), ("d", 0.5, mean(0.85)))]
    rows[0]["capability"] = mean(0.9, 0.05)
    one = doses(run(tmp_path / "run", "axis evaluate", dose={"pareto": [*rows, {"setting": "e", "harm": None}]}))
    assert one is not None and one.pareto is not None
    assert [p.said for p in one.pareto.points[:2]] == ["a: harm 20%, capability 80%", "c: harm 50%, capability 90%"]
    assert len(one.pareto.lines) == 1 and "2 settings of 4 on the front. Whiskers: 95%" in one.pareto.frame.words
    assert [p.low is None for p in one.pareto.points] == [True, False, True, True]
    assert [row[0] for row in numbers(one.pareto.link)[1:] if row[3] == "yes"] == ["c", "a"]
    assert {label.text for label in one.pareto.labels} == set("abcd")


def test_differences_that_were_tested_are_told(tmp_path: Path) -> None:
    gap = mean(-0.25, 0.125) | {"to": "none", "p": 0.0004, "p_holm": 0.02}
    told = {"none": {"harm": mean(0.5)}, "axis +1": {
        "harm": mean(0.25) | {"difference": gap}, "harm_plain": mean(0.1) | {"difference": mean(0.1, 0.1)},
        "refusal": 3}, "odd": 4}
    folder = saved(tmp_path / "run", "axis evaluate", dose=dose())
    (folder / "result.json").write_text(json.dumps({"recipe": "axis evaluate", "status": "finished", "settings": told}))
    one = doses(read(folder))
    assert one is not None
    assert one.gaps.rows == (("axis +1", "harm", "\u22120.25 [\u22120.38, \u22120.12]", "< 0.001", "0.020"),)


def test_a_measure_is_in_per_cent_only_where_all_of_it_is_a_share(tmp_path: Path) -> None:
    points = [{"setting": f"s{k}", "strength": k, "metrics": {"gold_score": mean(x, 0.125)}}
              for k, x in enumerate((0.5, 0.0625))]
    one = doses(run(tmp_path / "run", "axis evaluate", dose={"curves": [{"name": "axis", "points": points}]}))
    assert one is not None and one.settings.head[2] == "gold score"
    assert [row[2] for row in one.settings.rows] == ["0.50 [0.38, 0.62]", "0.06 [\u22120.06, 0.19]"]
    assert one.pictures[0].frame.title == "Gold score by strength" and not one.pictures[0].frame.share


def test_bounds_are_a_dose_and_many_curves_are_counted(tmp_path: Path) -> None:
    curves = [{"name": "axis", "layers": str(k), "where": "all", "points": [
        {"setting": f"above {x}", "lower": x, "metrics": {"harm": mean(0.5, 0.1)}} for x in (0.0, 1.0)]}
        for k in range(9)]
    curves.append({"name": "cap", "layers": "3", "points": [{"setting": "a cap", "metrics": {"harm": mean(0.5)}}]})
    bases = [{"name": name, "points": [{"setting": name, "metrics": {"harm": mean(x, 0.1)}}]}
             for name, x in (("one none", 0.75), ("two none", 0.25))]
    one = doses(run(tmp_path / "run", "axis evaluate", dose={"curves": [*curves, *bases]}))
    assert one is not None
    (harm,) = one.pictures
    assert (harm.frame.title, harm.frame.x) == ("Harm by bound", "lower bound of the projection")
    assert harm.frame.words == ("7 of 9 curves; the table below has all. Dashed: each model left as it is. Whiskers: "
                                "95% intervals over prompts.")
    assert [line.y1 for line in harm.lines if line.kind == "guide"] == [25.0, 75.0]
    assert len(harm.legend) == 7 and len(one.settings.rows) == 21 and len(numbers(harm.link)) == 15


@pytest.mark.parametrize("broken", [
    {"curves": [{"name": "a"}, {"points": [{"metrics": 3}, {"strength": 1, "metrics": {"harm": {"mean": "x"}}}]}]},
    {"pareto": [{"setting": 1}], "curves": None}, {"clamped": [{}], "curves": [{"name": "a", "points": [
        {"strength": 1, "metrics": {"harm": 0.5}}]}]}])
def test_damaged_doses_are_drawn_as_far_as_they_go(tmp_path: Path, broken: Row) -> None:
    assert 'id="axis-1"' in made(tmp_path, saved(tmp_path / "run", "axis evaluate", dose=broken))


def test_floors_are_drawn_with_their_errors_and_what_they_touch(tmp_path: Path) -> None:
    one = calibrated(run(tmp_path / "run", "axis calibrate", calibration=calibration()))
    assert one is not None
    assert one.says == ("Population: means over response tokens of 2400 responses",
                        "p0.25 is the 25th percentile of the role-playing direction, the 75th of the axis")
    floors, responses, prompts = one.pictures
    assert [name for _, name in floors.legend] == ["p0.25 (on the axis 0.75)", "p0.5 (on the axis 0.5)",
                                                   "p0.75 (on the axis 0.25)"]
    assert numbers(floors.link)[1] == ["p0.25 (on the axis 0.75)", "3", "3", "0.05"]
    low, high = floors.points[0].low, floors.points[0].high
    span = float(floors.ticks_y[-1][1]) - float(floors.ticks_y[0][1])
    # Two standard errors of 0.05 to either side.
    assert low is not None and high is not None and high < floors.points[0].y < low
    assert round((low - high) * span / 100, 2) == 0.2
    assert (responses.frame.title, prompts.frame.title) == ("Response tokens below the floor",
                                                            "Prompt tokens below the floor")
    assert numbers(prompts.link)[1] == ["p0.25 (on the axis 0.75)", "3", "0.775"]
    assert one.presets.rows == (("layers_3:5-p0.25", "3 to 4", "30% to 40%", "30% to 40%"),
                                ("layers_5:7-p0.25", "5 to 6", "50% to 60%", "50% to 60%"))


@pytest.mark.parametrize("broken", [
    {"thresholds": [{"layer": 1}, {"floor": 2}], "presets": {"a": 3, "b": [2]}}, {"meaning": "one", "clamped": [{}]},
    {"thresholds": None, "presets": [], "population": None}])
def test_a_damaged_calibration_is_drawn_as_far_as_it_goes(tmp_path: Path, broken: Row) -> None:
    page = made(tmp_path, saved(tmp_path / "run", "axis calibrate", calibration=calibration() | broken))
    assert 'id="axis-1"' in page


# --- the page --------------------------------------------------------------------------------------------------------


def test_titles_say_what_was_found(tmp_path: Path) -> None:
    told = run(tmp_path / "space", space=space())
    assert axis_title(told) == "The Assistant axis of layer 4: two halves of the questions agree at a cosine of 0.94."
    assert axis_evidence(told) == ("Its cosine with the first component of the roles is 0.9. 3 components hold 70% of "
                                   "the variance, 5 hold 80%, 8 hold 90% and 10 hold 95%.")
    assert headline(told, collect(told)).title == axis_title(told)
    assert headline(told, collect(told)).evidence == axis_evidence(told)
    fallen = run(tmp_path / "drift", "axis drift", drift=drift())
    assert axis_title(fallen) == "The assistant's projections fall over the turns in 3 of 4 domains."
    assert axis_title(run(tmp_path / "dose", "axis evaluate", dose=dose())) == "17 settings of the axis side by side."
    floors = run(tmp_path / "cal", "axis calibrate", calibration=calibration())
    assert axis_title(floors) == "Thresholds for 2 presets of the axis."
    lines = run(tmp_path / "project", "axis project", trajectories=trajectories(1, labels=("",)))
    assert axis_title(lines) == "4 conversations on the Assistant axis."
    twice = [talk("a", 1.0), talk("a", 2.0, label="capped"), talk("a", 1.0, group="h")]
    both = run(tmp_path / "twice", "axis project", trajectories=twice)
    assert axis_title(both) == "2 conversations on the Assistant axis."
    assert axis_title(read(ppo(tmp_path / "ppo"))) == axis_evidence(read(ppo(tmp_path / "ppo"))) == ""
    assert panels([read(tmp_path / "ppo")]) == []


def test_everything_of_a_run_has_its_picture_and_its_file(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", space=space(), drift=drift(), trajectories=trajectories(), heat=heat(),
                   dose=dose(), calibration=calibration())
    (folder / "tables").mkdir()
    for name in ("variance.csv", "layers.csv", "other.txt"):
        (folder / "tables" / name).touch()
    (one,) = panels([read(folder)])
    assert isinstance(one, Panel) and one.name == "" and one.tables == ("tables/layers.csv", "tables/variance.csv")
    page = made(tmp_path, folder)
    assert page.count('<figure class="still">') == 3 + 3 + 2 + 3 + 4 + 7 + 3
    assert page.count('class="csv"') == page.count('<figure class="still">') + 3  # space, slopes, tokens
    assert "in the folder of the run: tables/layers.csv, tables/variance.csv." in page
    assert '<a href="#axis-1">Axis</a>' in page and data_of(page)["spaces"][0]["at"] == "space-0"
    beside = made(tmp_path, folder, saved(tmp_path / "other", dose=dose()))
    assert '<a href="#axis-2">Axis of other</a>' in beside
    assert "#axis-" not in made(tmp_path, ppo(tmp_path / "ppo"))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    vectors = [vector(HOSTILE, HOSTILE, -1.0, 1, 5), vector(HOSTILE, "fully", 1.0, 2, 5)]
    told = space(vectors=vectors, traits=[{"name": HOSTILE, "cosine": 0.5}])
    paths = [talk(HOSTILE, 1.0, 2.0, group=HOSTILE, label=HOSTILE)]
    away = drift(labels=(HOSTILE,), differences=[{"domain": HOSTILE, "first": HOSTILE, "second": HOSTILE, **mean(1.0)}],
                 themes=[{"name": HOSTILE, "n": 1, "projection": 1.0, "examples": [HOSTILE]}],
                 prediction={"projection": {HOSTILE: 0.5}})
    given = {"curves": [{"name": HOSTILE, "layers": HOSTILE, "where": HOSTILE, "points": [
        {"setting": HOSTILE, "strength": 1.0, "metrics": {HOSTILE: mean(0.5, 0.1), **rates(0.5, 0.5, 0.5)}}]}],
        "pareto": [{"setting": HOSTILE, "harm": 0.5, "capability": 0.5}], "unit": HOSTILE,
        "clamped": [{"setting": HOSTILE, "layer": 1}]}
    floors = calibration() | {"population": HOSTILE, "meaning": [HOSTILE], "presets": {HOSTILE: [1]}}
    page = made(tmp_path, saved(tmp_path / "run", space=told, trajectories=paths, drift=away, heat=heat(HOSTILE),
                                dose=given, calibration=floors))
    assert "<img" not in page and "<b>bold" not in page and page.count("</script>") == 2 and " style=" not in page
    assert data_of(page)["spaces"][0]["names"][0].startswith("</script><img")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", "axis drift", drift=drift())
    (folder / "heat.json").write_text("{}")
    (folder / "dose.json").write_text("[")
    notes = read(folder).notes
    assert "heat.json is damaged and was left out" in notes and "dose.json is damaged and was left out" in notes
    assert "metrics.jsonl is missing" not in notes
    assert not conversations(tmp_path / "bare", drift={"layer": 2}).panels
