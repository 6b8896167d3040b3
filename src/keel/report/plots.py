"""Small charts that need no script: places in per cent, so that the page can be as wide as it likes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from keel.report.words import number, share

__all__ = ["Bar", "Box", "Mark", "Plot", "Series", "Share", "bar_plot", "point_plot", "share_plot"]

Tick = tuple[float, str]
N_TICKS = 5


@dataclass(frozen=True)
class Box:
    """A bar as it is drawn; place and size in per cent of the plot, from its top left corner."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    said: str


@dataclass(frozen=True)
class Mark:
    """A point as it is drawn; `low` and `high` end its whisker, `before` is the point that a line joins it to.

    `few`: it stands on so little that it is drawn open.
    """

    color: int
    x: float
    y: float
    low: float
    high: float
    before: tuple[float, float] | None
    said: str
    few: bool = False


@dataclass(frozen=True)
class Plot:
    """One chart with its words. `legend`: number of a colour and what it stands for; `guides`: ends of dashed lines."""

    title: str
    words: str
    axis: str
    ticks_x: tuple[Tick, ...]
    ticks_y: tuple[Tick, ...]
    boxes: tuple[Box, ...] = ()
    marks: tuple[Mark, ...] = ()
    legend: tuple[tuple[int, str], ...] = ()
    guides: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(frozen=True)
class Bar:
    """A bar as it is meant: from `left` to `right`, of this height; `kind` is its class of colour."""

    kind: str
    left: float
    right: float
    height: float
    said: str


@dataclass(frozen=True)
class Series:
    """Heights of the points of one colour from left to right, none where there is none, and half their whiskers."""

    name: str
    values: Sequence[float | None]
    half: Sequence[float] = ()


@dataclass(frozen=True)
class Share:
    """A point of a chart of shares: `x` in per cent of its width, the others shares of one."""

    x: float
    mean: float
    low: float | None
    high: float | None
    said: str
    few: bool = False


def bar_plot(title: str, words: str, axis: str, bars: Sequence[Bar], ticks: Sequence[tuple[float, str]] = ()) -> Plot:
    """Bars from the ground up; a later one is drawn over an earlier one.

    Args:
        title, words: above the chart.
        axis: what runs along it.
        bars: at least one.
        ticks: places and names along the axis; none: round numbers.
    """
    left, right = min(bar.left for bar in bars), max(bar.right for bar in bars)
    heights = _ticks(0.0, max(bar.height for bar in bars))
    along = ticks or [(x, number(x)) for x in _ticks(left, right) if left <= x <= right]
    boxes = [Box(bar.kind, _place(bar.left, left, right), 100 - _place(bar.height, 0.0, heights[-1]),
                 _place(bar.right, left, right) - _place(bar.left, left, right), _place(bar.height, 0.0, heights[-1]),
                 bar.said) for bar in bars if bar.height > 0]
    return Plot(title, words, axis, tuple((_place(x, left, right), text) for x, text in along),
                tuple((100 - _place(y, 0.0, heights[-1]), number(y)) for y in heights), tuple(boxes))


def point_plot(
    title: str, words: str, axis: str, names: Sequence[str], series: Sequence[Series], *, shares: bool = False,
) -> Plot:
    """Points over evenly spaced places.

    Args:
        title, words: above the chart.
        axis: what runs along it.
        names: of the places; where there are many, some are written.
        series: at least one, with a value for every place.
        shares: the heights are shares of one: the axis is 0% to 100%.
    """
    ends = [y + sign * (one.half[i] if one.half else 0.0) for one in series for i, y in enumerate(one.values)
            if y is not None for sign in (-1, 1)]
    heights = [0.0, 0.25, 0.5, 0.75, 1.0] if shares else _ticks(min([0.0, *ends]), max([0.0, *ends]))
    low, high = heights[0], heights[-1]
    places = [100 * (i + 0.5) / len(names) for i in range(len(names))]
    marks = []
    for color, one in enumerate(series):
        before = None
        for i, y in enumerate(one.values):
            if y is None:
                before = None
                continue
            half = one.half[i] if one.half else 0.0
            top, bottom = (100 - _place(y + sign * half, low, high) for sign in (1, -1))
            here = (round(places[i], 3), 100 - _place(y, low, high))
            text = share(y) if shares else number(y)
            marks.append(Mark(color, *here, top, bottom, before, f"{names[i]}: {one.name} {text}"))
            before = here
    every = ceil(len(names) / 10)
    return Plot(title, words, axis, tuple((places[i], name) for i, name in enumerate(names) if i % every == 0),
                tuple((100 - _place(y, low, high), share(y) if shares and y else number(y)) for y in heights), (),
                tuple(marks), tuple((color, one.name) for color, one in enumerate(series)) if len(series) > 1 else ())


def share_plot(
    title: str, words: str, axis: str, ticks: Sequence[Tick], series: Sequence[tuple[str, Sequence[Share]]], *,
    guides: Sequence[tuple[float, float, float, float]] = (),
) -> Plot:
    """Shares from 0% to 100% over places of one's own, with their intervals.

    Args:
        title, words: above the chart.
        axis: what runs along it.
        ticks: places in per cent of the width, and their names.
        series: name and points of each colour, from left to right; no line goes to a point that stands on few.
        guides: dashed lines to read the points by: x and y of both ends, in per cent from the top left corner.
    """
    marks = []
    for color, (_, points) in enumerate(series):
        before = None
        for one in points:
            here = (one.x, _down(one.mean))
            low, high = (here[1] if end is None else _down(end) for end in (one.low, one.high))
            marks.append(Mark(color, *here, low, high, None if one.few else before, one.said, one.few))
            before = None if one.few else here
    heights = tuple((_down(y), share(y) if y else "0") for y in (0.0, 0.25, 0.5, 0.75, 1.0))
    legend = tuple((color, name) for color, (name, _) in enumerate(series)) if len(series) > 1 else ()
    return Plot(title, words, axis, tuple(ticks), heights, (), tuple(marks), legend, tuple(guides))


def _down(y: float) -> float:
    """A share of one, in per cent from the top."""
    return round(100 * (1 - y), 3)


def _place(x: float, low: float, high: float) -> float:
    return round(100 * (x - low) / ((high - low) or 1.0), 3)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    span = (high - low) or 1.0
    power = 10.0 ** floor(log10(span / N_TICKS))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= span / N_TICKS)
    return [float(f"{i * step:.10g}") for i in range(floor(low / step + 1e-9), ceil(high / step - 1e-9) + 1)]
