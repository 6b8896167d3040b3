"""The page in a real browser, opened from disk with the network forbidden."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axis_rows import calibration, dose, drift, heat, space, trajectories
from bench_rows import bench, comparison
from exam_rows import exam
from report_runs import HOSTILE, demo, ppo, reward_model, samples, strength, win_rate, write
from test_axis_report import saved
from test_report_probes import probing

from keel.report import build

CHROMIUM = Path(os.environ.get("KEEL_CHROMIUM", "/usr/bin/chromium"))
ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed; KEEL_CHROMIUM names another")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield browser
        browser.close()


class Opened:
    """A page, with everything it said to the console and everything it asked the network for."""

    def __init__(self, chromium: Any, file: Path, width: int = 1280, theme: str = "light") -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=theme)
        self.page = context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        drawn = ".plot svg .dot, .plot svg .curve, .contest rect, .frame rect, .probe .dot, .frame .dot"
        self.page.wait_for_selector(drawn, state="attached")

    def quiet(self) -> None:
        """Nothing complained, and the one request was for the page itself."""
        assert self.said == []
        assert all(url.startswith(("file://", "data:")) for url in self.asked) and len(self.asked) <= 2

    def overflow(self) -> int:
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_opens_from_disk_draws_every_chart_and_asks_for_nothing(chromium: Any, tmp_path: Path) -> None:
    opened = Opened(chromium, build([ppo(tmp_path / "run", collapse=True)], tmp_path / "r.html"))
    page = opened.page
    assert page.locator("h1").inner_text().startswith("Over-optimisation")
    assert page.locator("figure.chart").count() == page.locator("figure.chart .plot > svg").count() >= 35
    assert page.locator("figure.chart line.alarm").count() > 60 and page.locator("rect.heat").count() > 100
    opened.quiet()


def test_hovering_tells_the_value_and_the_alarm(chromium: Any, tmp_path: Path) -> None:
    opened = Opened(chromium, build([ppo(tmp_path / "run", collapse=True)], tmp_path / "r.html"))
    figure = opened.page.locator("figure.chart", has=opened.page.get_by_role("heading", name="score/mean")).first
    figure.locator(".widen").click()
    figure.scroll_into_view_if_needed()
    mark, plot = figure.locator("line.alarm").first.bounding_box(), figure.locator("svg").bounding_box()
    opened.page.mouse.move(mark["x"] + 1, plot["y"] + 60)
    tip = opened.page.locator("#tip").inner_text()
    assert "step 28" in tip and "length reward race, steps 28\u201335" in tip and plot["width"] > 1000
    figure.locator("svg").focus()
    opened.page.keyboard.press("ArrowRight")
    assert "step 29" in opened.page.locator("#tip").inner_text()
    opened.quiet()


def test_sample_browser_sorts_filters_searches_and_pages(chromium: Any, tmp_path: Path) -> None:
    opened = Opened(chromium, build([ppo(tmp_path / "run")], tmp_path / "r.html"))
    page, first = opened.page, opened.page.locator("#browser .card header code").first
    assert page.locator("#browser .card").count() == 8 and first.inner_text() == "prompt-000"
    page.get_by_role("button", name="Next").click()
    assert first.inner_text() == "prompt-008" and "page 2 of 3" in page.locator(".pager").inner_text()
    page.get_by_label("Order").select_option("biggest gain first")
    gains = [float(t.split()[0].replace("\u2212", "-")) for t in page.locator(".card header .up").all_inner_texts()]
    assert gains == sorted(gains, reverse=True) and len(gains) == 8
    page.get_by_label("Domain", exact=True).select_option("guard")
    assert set(page.locator(".card header span:nth-child(2)").all_inner_texts()) == {"guard"}
    page.get_by_label("Domain", exact=True).select_option("all")
    page.get_by_label("Search").fill("VILLAGE 17?")
    assert first.inner_text() == "prompt-017" and page.locator(".card").count() == 1
    page.get_by_label("Right").select_option("before")
    assert page.locator(".card .sides section").count() == 1
    opened.quiet()


def test_hostile_responses_are_shown_as_they_were_written(chromium: Any, tmp_path: Path) -> None:
    opened = Opened(chromium, build([ppo(tmp_path / "run", samples=samples(text=HOSTILE))], tmp_path / "r.html"))
    shown = opened.page.locator(".response").first.inner_text()
    assert "</script><img src=x onerror=alert(1)> <!-- <b>bold</b> &" in shown
    assert "\u27e8U+0000\u27e9\u27e8U+0007\u27e9\u27e8U+001B\u27e9" in shown and "\u27e8U+202E\u27e9" in shown
    assert opened.page.locator("img").count() == 0
    opened.quiet()


@pytest.mark.parametrize("steps", [1, 5, 5000])
def test_few_and_many_points(chromium: Any, tmp_path: Path, steps: int) -> None:
    opened = Opened(chromium, build([ppo(tmp_path / "run", steps=steps, samples=[])], tmp_path / "r.html"))
    said = opened.page.locator(".legend").all_inner_texts()
    assert ("thinned to 400" in " ".join(said)) == (steps == 5000)
    opened.quiet()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_fits_a_phone_in_both_themes(chromium: Any, tmp_path: Path, theme: str) -> None:
    named = ppo(tmp_path / "a-run-with-quite-a-long-name-without-any-space", samples=samples(text="x" * 400))
    runs = [demo(tmp_path / "demo"), named]
    opened = Opened(chromium, build(runs, tmp_path / "r.html"), width=390, theme=theme)
    opened.page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert opened.overflow() == 0
    assert opened.page.locator(".response").first.evaluate("(node) => node.scrollWidth <= node.clientWidth")
    paper = "getComputedStyle(document.body).backgroundColor"
    before = opened.page.evaluate(paper)
    opened.page.locator("#theme").click()
    assert opened.page.evaluate(paper) != before
    opened.quiet()


def test_runs_can_be_hidden_and_the_command_copied(chromium: Any, tmp_path: Path) -> None:
    opened = Opened(chromium, build([ppo(tmp_path / "a"), ppo(tmp_path / "b", collapse=True)], tmp_path / "r.html"))
    page = opened.page
    drawn = page.locator("path.curve.run-1").count()
    page.locator(".legend button", has_text="b").click()
    assert drawn > 30 and page.locator("path.curve.run-1").count() == 0
    page.locator("button[data-copy]").first.click()
    page.get_by_text("Copied").wait_for()
    opened.quiet()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_bars_of_a_comparison_fill_their_line(chromium: Any, tmp_path: Path, width: int) -> None:
    two = [win_rate(tmp_path / "a"), win_rate(tmp_path / "b")]
    opened = Opened(chromium, build(two, tmp_path / "r.html"), width=width)
    line = opened.page.locator(".contest .interval").first
    whole, parts = line.locator("svg").bounding_box(), [r.bounding_box() for r in line.locator("rect").all()]
    assert whole["width"] > 300 and abs(sum(p["width"] for p in parts) - whole["width"]) < 4
    assert opened.overflow() == 0
    assert "win by gold, lose by reward model" in opened.page.locator(".card .facts").all_inner_texts()[1]
    opened.quiet()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_data_audit_is_drawn_and_unfolds(chromium: Any, tmp_path: Path, width: int) -> None:
    opened = Opened(chromium, build([strength(tmp_path / "run", "x" * 300)], tmp_path / "r.html"), width=width)
    page = opened.page
    areas = [area.bounding_box() for area in page.locator(".frame .area").all()]
    assert len(areas) == 5 and all(area["height"] == 190 and area["width"] > 250 for area in areas)
    bars = [bar.bounding_box() for bar in page.locator(".frame").first.locator("rect.win, rect.lose").all()]
    assert len(bars) == 4 and abs(sum(bar["width"] for bar in bars) - areas[0]["width"]) < 5
    # The tallest of 60, 60, 140 and 40 pairs stands on the ground, as the others do.
    assert max(bar["height"] for bar in bars) == bars[2]["height"] < 190
    assert len({round(bar["y"] + bar["height"]) for bar in bars}) == 1
    shown = page.locator(".pair:visible").count()
    page.locator("summary", has_text="4 more").click()
    assert page.locator(".pair:visible").count() == shown + 4 == 14
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert opened.overflow() == 0
    opened.quiet()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_probes_fit_and_their_marks_lie_on_their_lines(chromium: Any, tmp_path: Path, width: int) -> None:
    opened = Opened(chromium, build([probing(tmp_path / "run", HOSTILE)], tmp_path / "r.html"), width=width)
    opened.page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    line = opened.page.locator(".probe").first
    whole, mark = (line.locator(name).bounding_box() for name in ("svg", ".dot"))
    assert whole["width"] > 150 and whole["x"] < mark["x"] < whole["x"] + whole["width"]
    assert opened.overflow() == 0
    opened.quiet()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_lines_of_an_exam_share_their_scale(chromium: Any, tmp_path: Path, width: int) -> None:
    folder = reward_model(tmp_path / "run")
    write(folder, result={"recipe": "reward_model", "status": "finished", "exams": {"test": exam()}})
    opened = Opened(chromium, build([folder], tmp_path / "r.html"), width=width)
    chance = [line.bounding_box()["x"] for line in opened.page.locator(".exams .lines .chance").all()]
    assert len(chance) == 13 and max(chance) - min(chance) < 1
    dots = opened.page.locator(".exams .lines .dot").all()
    model, longer = (dot.bounding_box()["x"] for dot in dots[:2])
    assert len(dots) == 12 and chance[0] < longer < model  # 50%, 60%, 70%; one view is empty
    assert opened.page.locator(".exams .still circle").count() == 14 and opened.overflow() == 0
    opened.quiet()


@pytest.mark.parametrize("width", [1280, 390])
def test_rows_of_a_benchmark_share_their_track(chromium: Any, tmp_path: Path, width: int) -> None:
    runs = [write(tmp_path / row["recipe"], result=row) for row in (bench(), comparison())]
    opened = Opened(chromium, build(runs, tmp_path / "r.html"), width=width)
    opened.page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    table = opened.page.locator("#bench-1 .strips").first
    overall, half, lists, other = (mark.bounding_box()["x"] for mark in table.locator(".chance").all())
    assert abs(half - other) < 1 and lists < overall < half  # 31%, 44% and 50%
    rows = opened.page.locator("#bench-1 .strips").nth(2).locator("tbody tr")
    assert rows.count() == 4 and rows.nth(2).locator(".dot").count() == 2 and rows.nth(3).locator(".dot").count() == 1
    zero = [mark.bounding_box()["x"] for mark in opened.page.locator("#compared-1 .group .chance").all()]
    assert len(zero) == 5 and abs(zero[0] - zero[1]) < 1
    assert opened.overflow() == 0
    opened.quiet()


# --- an axis ---------------------------------------------------------------------------------------------------------


def axis_page(chromium: Any, folder: Path, width: int = 1280, theme: str = "light") -> Opened:
    return Opened(chromium, build([folder], folder.parent / "r.html"), width, theme)


def places(page: Any) -> list[tuple[str, str]]:
    """Where the points of the space are, the default's last of all that were drawn."""
    return page.locator(".cube circle").evaluate_all("(all) => all.map((one) => [one.getAttribute('cx'), "
                                                     "one.getAttribute('cy')]).sort()")


def test_the_space_turns_by_mouse_keys_and_buttons(chromium: Any, tmp_path: Path) -> None:
    one = axis_page(chromium, saved(tmp_path / "run", space=space()))
    page, start = one.page, places(one.page)
    assert len(start) == 31
    page.locator(".cube svg").scroll_into_view_if_needed()
    area = page.locator(".cube svg").bounding_box()
    middle = (area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 120, middle[1] + 40)
    page.mouse.up()
    page.wait_for_timeout(60)
    dragged = places(page)
    assert dragged != start
    page.get_by_role("button", name="Turn back").click()
    page.wait_for_timeout(60)
    assert places(page) == start
    page.locator(".cube svg").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(60)
    keyed = places(page)
    page.get_by_role("button", name="Turn left").click()
    page.wait_for_timeout(60)
    assert keyed != start and places(page) == start
    one.quiet()


def test_pointing_tells_and_searching_marks(chromium: Any, tmp_path: Path) -> None:
    one = axis_page(chromium, saved(tmp_path / "run", space=space()))
    one.page.locator(".cube svg").scroll_into_view_if_needed()
    default = one.page.locator(".cube circle.default").bounding_box()
    one.page.mouse.move(default["x"] + default["width"] / 2, default["y"] + default["height"] / 2)
    tip = one.page.locator("#tip").inner_text()
    assert tip.startswith("default") and "4.6" in tip and "component 3" in tip
    one.page.get_by_label("Find a role").fill("GHO")
    one.page.wait_for_timeout(60)
    assert one.page.locator(".cube circle.found").count() == 2  # fully and somewhat in role
    assert set(one.page.locator(".cube .name").all_text_contents()) == {"default", "ghost"}
    one.quiet()


def test_a_link_downloads_the_numbers_of_its_picture(chromium: Any, tmp_path: Path) -> None:
    one = axis_page(chromium, saved(tmp_path / "run", space=space(variance=[0.5, 0.25])))
    with one.page.expect_download() as waiting:
        one.page.get_by_role("link", name="variance.csv").click()
    assert waiting.value.suggested_filename == "variance.csv"
    waiting.value.save_as(tmp_path / "got.csv")
    with (tmp_path / "got.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["component", "share", "cumulative"], ["1", "0.5", "0.5"],
                                          ["2", "0.25", "0.75"]]
    assert one.said == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_fits_a_phone(chromium: Any, tmp_path: Path, theme: str) -> None:
    paths = [row | {"id": "a-conversation/with-a-name/that-does-not-end" * 2} for row in trajectories(1)]
    folder = saved(tmp_path / "run", space=space(60), drift=drift(domains=[]), trajectories=paths, heat=heat(HOSTILE),
                   dose=dose(), calibration=calibration())
    one = axis_page(chromium, folder, 390, theme)
    one.page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert one.overflow() == 0
    cube = one.page.locator(".cube svg").bounding_box()
    assert 300 < cube["width"] < 390 and one.page.locator(".frame .area").count() == 25
    one.quiet()


def test_tokens_are_coloured_and_tell_their_numbers(chromium: Any, tmp_path: Path) -> None:
    one = axis_page(chromium, saved(tmp_path / "run", "axis drift", drift=drift(), trajectories=trajectories(2),
                                 heat=heat()))
    spans = one.page.locator(".tokens span")
    colours = spans.evaluate_all("(all) => all.map((one) => getComputedStyle(one).backgroundColor)")
    assert len(dict.fromkeys(colours)) > 3 and "rgba(0, 0, 0, 0)" not in colours
    assert spans.first.get_attribute("title") and one.page.locator(".tokens .below").count() > 0
    one.page.locator("summary", has_text="Numbers of this text").first.click()
    told = one.page.locator(".numbers").first.inner_text()
    assert "glad" in told and spans.first.get_attribute("title") in told
    one.quiet()
