"""The pictures of `keel experiment process`: exact answers by steps needed, and the course of training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from keel.experiments.courses import Course
from keel.experiments.pictures import canvas, draw_lines, draw_seeds, write_names
from keel.experiments.process_numbers import NEEDED, Arms, additions

__all__ = ["draw_lessons", "draw_steps_needed"]

PANELS = {"gold": "Exact answers (share)", "length": "Response length (tokens)",
          "kl": "Drift from the SFT policy (KL, nats per token)"}


def draw_steps_needed(file: Path, arms: Arms) -> None:
    """A panel per number of additions, a row per arm: a dot per seed, above it their mean and its 95% interval.

    Args:
        file: without suffix; a .png and a .svg are written.
        arms: by the name that is shown, the first on top.
    """
    with canvas(file, width=2.6 + 1.9 * len(NEEDED), height=1.2 + 0.34 * len(arms)) as figure:
        axes = figure.subplots(1, len(NEEDED), sharey=True)
        for ax, n in zip(axes, NEEDED, strict=True):
            draw_seeds(ax, {arm: [one.exact(needed=(n,)) for one in found] for arm, found in arms.items()}, str(n))
            ax.set_title(additions(n))
        axes[0].set_yticks(range(len(arms)), list(arms)[::-1])
        figure.supxlabel("share of exact answers to test prompts", fontsize=9)


def draw_lessons(file: Path, kinds: Mapping[str, Sequence[Course]], *, named: Sequence[str]) -> None:
    """Exact answers, length and KL over training: the mean over seeds, and a band from the lowest to the highest seed.

    Args:
        file: without suffix; a .png and a .svg are written.
        kinds: what is drawn, by name; their gold is the share of exact answers.
        named: which of them get a colour, a band and a name, at most four; the others are thin grey lines.
    """
    with canvas(file, width=8.6, height=6.6) as figure:
        for ax, (name, title) in zip(figure.subplots(len(PANELS), 1, sharex=True), PANELS.items(), strict=True):
            ends = draw_lines(ax, kinds, name, named)
            ax.set_title(title)
            write_names(ax, ends)
        figure.supxlabel("optimiser steps of the policy; grey: the other arms", fontsize=9)
