"""Pictures of an experiment: courses over training with a band over seeds, and effects with one dot per seed.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; lines are named where they end.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from keel.experiments.courses import Course
from keel.experiments.trial import interval

__all__ = ["draw_courses", "draw_effects", "draw_lines", "draw_seeds"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
GREY, INK = "#9aa0a6", "#333333"
PANELS = {"score": "Reward-model score (what PPO sees)", "gold": "Gold score (the true reward)",
          "kl": "Drift from the SFT policy (KL, nats per token)", "length": "Response length (tokens)"}
NEAREST = 0.07  # of a panel's height, between the names of two lines
STYLE = {"font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.spines.top": False,
         "axes.spines.right": False, "axes.edgecolor": GREY, "axes.labelcolor": INK, "text.color": INK,
         "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": "#e6e6e6", "axes.axisbelow": True,
         "svg.hashsalt": "keel", "figure.dpi": 160}
Kinds = Mapping[str, Sequence[Course]]
"""Courses of each kind of run, one per seed."""


def draw_courses(file: Path, kinds: Kinds, *, named: Sequence[str], others: str = "", limit: int) -> None:
    """Score, gold, KL and length over training: the mean over seeds, and a band from the lowest to the highest seed.

    Args:
        file: without suffix; a .png and a .svg are written.
        kinds: what is drawn, by name.
        named: which of them get a colour, a band and a name; the others are thin grey lines.
        others: what the grey lines are called.
        limit: tokens at which responses are cut; drawn where it is in sight.
    """
    with canvas(file, width=8.6, height=6.0) as figure:
        axes = figure.subplots(2, 2, sharex=True)
        for (name, title), ax in zip(PANELS.items(), axes.flat, strict=True):
            ends = draw_lines(ax, kinds, name, named)
            ax.set_title(title)
            if name == "length" and ax.get_ylim()[1] > 0.8 * limit:
                ax.axhline(limit, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
                ax.text(0, limit, " limit", va="bottom", fontsize=8)
            write_names(ax, ends)
        figure.supxlabel("optimiser steps of the policy" + (f"; grey: {others}" if others else ""), fontsize=9)


def draw_lines(ax: Any, kinds: Kinds, name: str, named: Sequence[str]) -> list[tuple[float, str, str]]:
    """One number over training, as `draw_courses` says; where the named lines end, their names and colours."""
    for kind in (kind for kind in kinds if kind not in named):
        ax.plot(*mean_line(kinds[kind], name), color=GREY, linewidth=0.8, alpha=0.7)
    ends = []
    for colour, kind in zip(COLOURS, named, strict=False):
        updates, mean = mean_line(kinds[kind], name)
        columns = list(zip(*(course.measured[name] for course in kinds[kind]), strict=True))
        ax.fill_between(updates, [min(c) for c in columns], [max(c) for c in columns], color=colour,
                        alpha=0.15, linewidth=0)
        ax.plot(updates, mean, color=colour, linewidth=1.8)
        ends.append((mean[-1], kind, colour))
    ax.margins(x=0)
    return ends


def mean_line(courses: Sequence[Course], name: str) -> tuple[tuple[int, ...], list[float]]:
    """Optimiser steps, and the mean over seeds at each."""
    return courses[0].updates, [fmean(c) for c in zip(*(course.measured[name] for course in courses), strict=True)]


def write_names(ax: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Each line's name to the right of its end, moved up where it would cover the one below."""
    low, high = ax.get_ylim()
    taken = float("-inf")
    for value, kind, colour in sorted(ends):
        place = max((value - low) / (high - low), taken + NEAREST)
        taken = place
        ax.text(1.02, place, kind, color=colour, transform=ax.transAxes, va="center", fontsize=8.5, fontweight="bold")


def draw_seeds(ax: Any, rows: Mapping[str, Sequence[float]], *names: str) -> None:
    """A row per name, the first on top: a grey dot per seed, above it their mean and its 95% interval.

    Args:
        ax: where.
        rows: one number per seed, by name.
        names: of the stream of the intervals, behind the row's own.
    """
    for place, (row, values) in enumerate(reversed(list(rows.items()))):
        found = interval(values, row, *names)
        ax.plot(values, [place - 0.25] * len(values), "o", color=GREY, markersize=3, alpha=0.8, markeredgewidth=0)
        ax.plot([found["low"], found["high"]], [place, place], color=COLOURS[0], linewidth=2)
        ax.plot(found["mean"], place, "o", color=COLOURS[0], markersize=5)
    ax.grid(axis="y", visible=False)


def draw_effects(file: Path, effects: Mapping[str, Sequence[float]], *, title: str) -> None:
    """One row per change: a grey dot per seed, above it their mean and its 95% interval; the largest loss on top."""
    rows = sorted(effects, key=lambda name: fmean(effects[name]), reverse=True)
    with canvas(file, width=8.6, height=1.1 + 0.32 * len(rows)) as figure:
        ax = figure.subplots()
        ax.axvline(0, color=INK, linewidth=1)
        for place, name in enumerate(rows):
            found = interval(effects[name], name)
            ax.plot(effects[name], [place - 0.25] * len(effects[name]), "o", color=GREY, markersize=4, alpha=0.8,
                    markeredgewidth=0)
            ax.plot([found["low"], found["high"]], [place, place], color=COLOURS[0], linewidth=2.2)
            ax.plot(found["mean"], place, "o", color=COLOURS[0], markersize=6)
        ax.set_yticks(range(len(rows)), rows)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(title)


@contextmanager
def canvas(file: Path, *, width: float, height: float) -> Iterator[Any]:
    """A figure in our style, saved as .png and .svg when the block ends: the same numbers give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(file.with_suffix(".png"))
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
