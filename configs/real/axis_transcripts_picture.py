"""The way of each published conversation along the axis, turn by turn.

    python configs/real/axis_transcripts_picture.py RUN PICTURE

RUN is a folder of `keel axis drift` on the published transcripts with a cap; PICTURE gets .png and .svg. No text of a
transcript is drawn.
"""

import csv
import json
import sys
from pathlib import Path

from keel.experiments.pictures import COLOURS, GREY, canvas

NAMES = {"unsteered": "as published", "capped": "published under the authors' cap",
         "unsteered, now capped": "the first again, read under our cap"}


def main(run: Path, picture: Path) -> None:
    """One panel for each domain; a line for each conversation and condition; the default range behind them."""
    with (run / "tables" / "turns.csv").open(newline="", encoding="utf-8") as file:
        cells = [row for row in csv.DictReader(file) if row["role"] == "assistant" and row["raw"]]
    told = json.loads((run / "drift.json").read_text())["default_range"]
    groups = list(dict.fromkeys(row["group"] for row in cells))
    with canvas(picture, width=10, height=5.2) as figure:
        axes = figure.subplots(2, 4, sharey=True)
        for ax, group in zip(axes.flat, groups, strict=False):
            ax.axhspan(told["low"], told["high"], color=GREY, alpha=0.25, linewidth=0)
            for colour, label in zip(COLOURS, NAMES, strict=False):
                mine = [row for row in cells if (row["group"], row["label"]) == (group, label)]
                for name in dict.fromkeys(row["id"] for row in mine):
                    own = [row for row in mine if row["id"] == name]
                    ax.plot([int(row["turn"]) for row in own], [float(row["raw"]) for row in own], color=colour,
                            linewidth=1.3)
            ax.set_title(group)
        legend = axes.flat[-1]
        legend.axis("off")
        for place, (colour, name) in enumerate(zip(COLOURS, NAMES.values(), strict=False)):
            legend.text(0, 0.8 - 0.14 * place, name, color=colour, fontweight="bold", fontsize=8.5,
                        transform=legend.transAxes)
        legend.text(0, 0.8 - 0.14 * len(NAMES), "shaded: nine of ten default responses", fontsize=8.5,
                    transform=legend.transAxes)
        figure.supxlabel("turn of the assistant", fontsize=9)
        figure.supylabel("mean projection, raw; up is towards the Assistant", fontsize=9)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
