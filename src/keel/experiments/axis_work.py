"""The rows of work of `keel experiment axis`: for each seed the toy, the dialogues and the town."""

import sys
from pathlib import Path

from keel.experiments.axis_dialogues import dialogues
from keel.experiments.axis_settings import AxisTrialConfig
from keel.experiments.axis_town import town
from keel.experiments.axis_toy import toy
from keel.experiments.rows import row_main
from keel.experiments.trial import seeds_of

__all__ = ["PARTS", "rows", "work"]

PARTS = {"town": town, "dialogues": dialogues, "toy": toy}
"""The longest first."""


def rows(cfg: AxisTrialConfig) -> list[str]:
    """What there is to do."""
    return [f"{part} {seed}" for part in PARTS for seed in seeds_of(cfg)]


def work(folder: Path, row: str) -> None:
    """Do a row of the experiment in this folder."""
    part, seed = row.split()
    PARTS[part](AxisTrialConfig.resolve(folder / "config.toml").model_copy(update={"out": folder}), int(seed))


if __name__ == "__main__":
    sys.exit(row_main(sys.argv[1:], work))
