"""Tables beside pictures: the same numbers as CSV, for whoever wants to draw them otherwise."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keel.runs import explained_disk_errors

__all__ = ["write_table"]


def write_table(folder: Path, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `folder/tables/NAME.csv`; what a row does not have is an empty cell.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with explained_disk_errors(folder):
        (folder / "tables").mkdir(exist_ok=True)
        (folder / "tables" / f"{name}.csv").write_text(text.getvalue(), encoding="utf-8")
