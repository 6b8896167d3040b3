"""Pictures of `keel experiment offline`: totals over noise, and each reward above the reference."""

from pathlib import Path
from statistics import fmean

from keel.experiments.offline_methods import METHODS, NOISES
from keel.experiments.offline_numbers import REFERENCE, SAYS, Measured, column, minus
from keel.experiments.offline_world import REWARDS
from keel.experiments.pictures import COLOURS, GREY, INK, canvas, write_names
from keel.experiments.trial import interval

__all__ = ["draw_components", "draw_noise"]

NAMED = ("a_lol", "dpo", "nll_positive", "nll")
TITLES = {"content": "content words used", "repeats": "no repeated bigrams", "length": "length in window",
          "banned": "no banned word"}


def draw_noise(file: Path, measured: Measured) -> None:
    """Total over the share of bad responses, sampled and greedy: means, and a band from the lowest to the highest seed
    for those that are named; the others are thin grey lines, the reference is dashed."""
    with canvas(file, width=9.6, height=4.2) as figure:
        for ax, key, title in zip(figure.subplots(1, 2), ("total", "greedy"), ("sampled", "greedy"), strict=True):
            for name in METHODS:
                if name not in NAMED:
                    ax.plot(NOISES, means(measured, name, key), color=GREY, linewidth=0.8, alpha=0.7)
            ax.plot(NOISES, means(measured, REFERENCE, key), color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
            ends = [(means(measured, REFERENCE, key)[-1], "reference", INK)]
            for colour, name in zip(COLOURS, NAMED, strict=True):
                columns = [column(measured, name, key, noise) for noise in NOISES]
                ax.fill_between(NOISES, [min(x) for x in columns], [max(x) for x in columns], color=colour, alpha=0.15,
                                linewidth=0)
                ax.plot(NOISES, means(measured, name, key), color=colour, linewidth=1.8)
                ends.append((means(measured, name, key)[-1], SAYS[name].split(",")[0], colour))
            ax.set_title(f"Total of {title} responses (at most 4)")
            ax.set_xticks(NOISES)
            ax.margins(x=0)
            write_names(ax, ends)
        figure.supxlabel("share of bad responses in the data; grey: the other methods", fontsize=9)


def means(measured: Measured, name: str, key: str) -> list[float]:
    """Over the seeds, at each noise level."""
    return [fmean(column(measured, name, key, noise)) for noise in NOISES]


def draw_components(file: Path, measured: Measured) -> None:
    """Each reward of sampled responses above that of the reference, at noise 0.5: mean and 95% interval over seeds."""
    names = list(METHODS)[::-1]
    with canvas(file, width=10.4, height=1.2 + 0.26 * len(names)) as figure:
        axes = figure.subplots(1, len(REWARDS), sharey=True)
        for ax, key in zip(axes, REWARDS, strict=True):
            ax.axvline(0, color=INK, linewidth=1)
            for place, name in enumerate(names):
                found = interval(minus(measured, name, REFERENCE, key), name, key)
                ax.plot([found["low"], found["high"]], [place, place], color=COLOURS[0], linewidth=2)
                ax.plot(found["mean"], place, "o", color=COLOURS[0], markersize=5)
            ax.set_title(TITLES[key])
            ax.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(names)), [SAYS[name] for name in names])
        figure.supxlabel("above the reference, at noise 0.5", fontsize=9)
