"""Charts over numbers on both axes, each with a link to the very numbers drawn; they need no script."""

import csv
import io
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10

from keel.report.words import clean, finite, number

__all__ = ["Band", "Curve", "Frame", "Label", "Line", "Picture", "Point", "Spot", "Table", "link", "picture"]

Tick = tuple[float, str]
Cell = str | float | None
N_TICKS, MOST_WHOLE = 5, 12
WIDTH, TALL, LOW = 300.0, 270.0, 190.0
"""Pixels that a chart has at the least, to find room for names in it."""
LETTER, LETTERS, OFF, DOT = 6.2, 13.0, 7.0, 3.0
"""Width of a letter, height of a line of names, their distance from their points, half a point."""
SHARES = ((0.0, "0"), (0.25, "25%"), (0.5, "50%"), (0.75, "75%"), (1.0, "100%"))
MOST_OBSTACLES = 60
"""Points that names keep clear of; among more than these there would be no room for a name."""
UNSAFE, LONGEST = re.compile(r"[^A-Za-z0-9_]+"), 60
"""In the name of a file."""
FORMULA = re.compile(r"[=+\-@\t\r]")


@dataclass(frozen=True)
class Spot:
    """A point as it is meant. `label`: a name that is written beside it where there is room."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    said: str = ""
    label: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Curve:
    """Points of one colour (`kind`: its class). `faint`: one of many; `named`: in the legend."""

    name: str
    kind: str
    spots: Sequence[Spot]
    joined: bool = True
    faint: bool = False
    named: bool = True


@dataclass(frozen=True)
class Band:
    """What lies between two heights, or where both are equal a dashed line; along x where `upright`."""

    low: float
    high: float
    said: str
    upright: bool = False


@dataclass(frozen=True)
class Frame:
    """Words and scales of a picture. `x`, `y`: what runs along; the spans are what has to fit in at least."""

    title: str
    words: str
    x: str
    y: str
    whole: bool = False
    share: bool = False
    tall: bool = False
    span_x: tuple[float, ...] = ()
    span_y: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """The numbers of a picture, as its file holds them."""

    name: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Line:
    """Ends in per cent from the top left corner."""

    kind: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Point:
    """A point as it is drawn; `low` and `high` end its whisker."""

    kind: str
    x: float
    y: float
    low: float | None
    high: float | None
    said: str


@dataclass(frozen=True)
class Label:
    """A name in the picture; `side` is its anchor, `shift` how many pixels it stands off."""

    x: float
    y: float
    text: str
    side: str
    shift: float


@dataclass(frozen=True)
class Picture:
    """One chart as it is drawn, with a link to its numbers. `boxes`: x, y, width, height and what they say."""

    frame: Frame
    file: str
    link: str
    ticks_x: tuple[Tick, ...]
    ticks_y: tuple[Tick, ...]
    boxes: tuple[tuple[float, float, float, float, str], ...]
    lines: tuple[Line, ...]
    points: tuple[Point, ...]
    labels: tuple[Label, ...]
    legend: tuple[tuple[str, str], ...]


def link(table: Table) -> str:
    """The table as a file inside the page. A text that a spreadsheet would run as a formula begins with a quote."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(cell) for cell in table.head])
    writer.writerows([_cell(cell) for cell in row] for row in table.rows)
    return "data:text/csv;charset=utf-8;base64," + b64encode(out.getvalue().encode()).decode()


def picture(frame: Frame, curves: Sequence[Curve], table: Table, bands: Sequence[Band] = ()) -> Picture:
    """Lay the curves out on scales that hold them all.

    Args:
        frame: words and scales.
        curves: later ones are drawn over earlier ones; at least one point in all.
        table: the numbers drawn.
        bands: ranges and lines behind the curves.
    """
    spots = [spot for curve in curves for spot in curve.spots]
    xs = [*(spot.x for spot in spots), *frame.span_x, *(e for b in bands if b.upright for e in (b.low, b.high))]
    ys = [*(e for spot in spots for e in (spot.y, spot.low, spot.high) if e is not None), *frame.span_y,
          *(e for b in bands if not b.upright for e in (b.low, b.high))]
    (left, right), ticks_x = _scale(xs, frame.whole, close=True)
    (low, high), ticks_y = ((0.0, 1.0), list(SHARES)) if frame.share else _scale(ys, close=frame.tall)

    def across(x: float) -> float:
        return round(100 * (x - left) / (right - left), 2)

    def down(y: float) -> float:
        return round(100 * (high - y) / (high - low), 2)

    boxes, lines = [], []
    for band in bands:
        x1, x2 = (across(band.low), across(band.high)) if band.upright else (0.0, 100.0)
        y1, y2 = (0.0, 100.0) if band.upright else (down(band.high), down(band.low))
        if band.low == band.high:
            lines.append(Line("guide", x1, y1, x2, y2))
        else:
            boxes.append((x1, y1, round(x2 - x1, 2), round(y2 - y1, 2), band.said))
    points = []
    for curve in curves:
        drawn = [Point(f"dot {spot.kind or curve.kind}", across(spot.x), down(spot.y),
                       None if spot.low is None else down(spot.low), None if spot.high is None else down(spot.high),
                       spot.said) for spot in curve.spots]
        pairs = pairwise(drawn) if curve.joined else ()
        lines += [Line(f"curve {'faint ' if curve.faint else ''}{curve.kind}", a.x, a.y, b.x, b.y) for a, b in pairs]
        points += [] if curve.faint else drawn
    names = [(across(spot.x), down(spot.y), spot.label) for spot in spots if spot.label]
    dots = [(point.x, point.y) for point in points] if len(points) <= MOST_OBSTACLES else []
    legend = tuple((curve.kind, curve.name) for curve in curves if curve.named and curve.spots)
    return Picture(frame, _file(table.name), link(table), tuple((across(x), text) for x, text in ticks_x),
                   tuple((down(y), text) for y, text in ticks_y), tuple(boxes), tuple(lines), tuple(points),
                   tuple(_labels(names, dots, TALL if frame.tall else LOW)), legend if len(legend) > 1 else ())


def _file(name: str) -> str:
    """A name that any file system takes."""
    return UNSAFE.sub("-", name)[:LONGEST].strip("-_") + ".csv"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return "'" + clean(cell) if FORMULA.match(cell) else clean(cell)
    x = finite(cell)
    return "" if x is None else repr(int(x) if x.is_integer() and abs(x) < 1e15 else x)


def _scale(values: Sequence[float], whole: bool = False, close: bool = False) -> tuple[tuple[float, float], list[Tick]]:
    """Both ends and the ticks: round numbers; where `close` the ends have only a little air around the values."""
    low, high = min(values), max(values)
    span = (high - low) or abs(low) or 1.0
    step = _step(span, whole)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    last = max(last, first + 1)
    marks = [float(f"{k * step:.10g}") for k in range(first, last + 1)]
    if close:
        air = 0.04 * span
        ends = (low - air, high + air)
        marks = [x for x in marks if ends[0] <= x <= ends[1]]
        return ends, [(x, number(x)) for x in marks]
    return (marks[0], marks[-1]), [(x, number(x)) for x in marks]


def _step(span: float, whole: bool) -> float:
    if whole and span <= MOST_WHOLE:
        return 1.0
    power = 10.0 ** floor(log10(span / N_TICKS))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= span / N_TICKS)


def _labels(
    names: Sequence[tuple[float, float, str]], dots: Sequence[tuple[float, float]], height: float,
) -> list[Label]:
    """Names right or left of their points, but not on others of either; the first name may lie on points."""
    points = [(WIDTH * x / 100 - DOT, height * y / 100 - DOT, WIDTH * x / 100 + DOT, height * y / 100 + DOT)
             for x, y in dots]
    taken: list[tuple[float, float, float, float]] = []
    found: list[Label] = []
    for x, y, text in names:
        at, down, wide = WIDTH * x / 100, height * y / 100, LETTER * len(text)
        for side, left in (("start", at + OFF), ("end", at - OFF - wide)):
            box = (left, down - LETTERS / 2, left + wide, down + LETTERS / 2)
            avoided = [*taken, *points] if found else []
            if box[0] >= -OFF and box[2] <= WIDTH + OFF and not any(_touch(box, other) for other in avoided):
                taken.append(box)
                found.append(Label(x, y, text, side, OFF if side == "start" else -OFF))
                break
    return found


def _touch(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
