"""The picture of `keel experiment groups`: gold of every arm, domain by domain."""

from pathlib import Path

from keel.experiments.groups_numbers import Arms
from keel.experiments.pictures import canvas, draw_seeds

__all__ = ["draw_domains"]


def draw_domains(file: Path, arms: Arms) -> None:
    """A panel per domain, a row per arm: a grey dot per seed, above it their mean and its 95% interval.

    Args:
        file: without suffix; a .png and a .svg are written.
        arms: by the name that is shown, the first on top.
    """
    rows, first = list(arms)[::-1], next(iter(arms.values()))[0]
    panels = [(name, domain) for name in ("plain", "held_out") for domain in first.gold[name]]
    with canvas(file, width=2.2 + 2.0 * len(panels), height=1.2 + 0.34 * len(rows)) as figure:
        axes = figure.subplots(1, len(panels), sharey=True)
        for ax, (name, domain) in zip(axes, panels, strict=True):
            draw_seeds(ax, {arm: [one.gold[name][domain] for one in found] for arm, found in arms.items()}, domain)
            ax.set_title(domain if name == "plain" else f"{domain}, never trained on")
        axes[0].set_yticks(range(len(rows)), rows)
        figure.supxlabel("gold score on test prompts (points)", fontsize=9)
