"""Rows of tables: CSV and Parquet, as a stream."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keel.data.problems import Problem
from keel.data.rows import Row, place

__all__ = ["scan_csv", "scan_parquet"]

_PARQUET_ROWS = 256
_WIDEST_CELL = 1 << 30
_NOT_UTF8 = "Save the file as UTF-8, e.g. `iconv -f latin1 -t utf-8 OLD > NEW`."


def scan_csv(file: Path, lines: Iterator[bytes], delimiter: str) -> Iterator[Row | Problem]:
    """Rows under a header line; an empty cell is a missing value."""
    # The default limit of 128 KiB per cell is shorter than a long conversation.
    csv.field_size_limit(_WIDEST_CELL)
    reader = csv.reader(_decoded(lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Problem("not CSV", place(file, number), f"not CSV: {error}",
                          "A cell with commas, quotes or line ends stands in double quotes, its own quotes doubled.")
            continue
        if cells is None:
            return
        if not cells:
            continue
        fault = _cell_fault(cells, header)
        if fault is not None:
            yield Problem(fault[0], place(file, number), fault[1], fault[2])
            if header is None:
                return
        elif header is None:
            header = [name.strip() for name in cells]
        else:
            value = {name: cell if cell else None for name, cell in zip(header, cells, strict=True)}
            yield Row(file, number, value, textual=True)


def _decoded(lines: Iterator[bytes]) -> Iterator[str]:
    """Text lines; bytes that are not UTF-8 become lone surrogates, so that one bad row does not hide the next."""
    for number, raw in enumerate(lines):
        text = raw.removeprefix(b"\xef\xbb\xbf") if number == 0 else raw
        yield text.decode("utf-8", errors="surrogateescape")


def _cell_fault(cells: list[str], header: list[str] | None) -> tuple[str, str, str] | None:
    joined = "".join(cells)
    if any("\udc80" <= char <= "\udcff" for char in joined):
        return "not UTF-8", "the row is not UTF-8", _NOT_UTF8
    if "\0" in joined:
        return "NUL byte", "a NUL byte", "The file was cut or overwritten here; write it again."
    if header is None:
        names = [name.strip() for name in cells]
        if len(set(names)) < len(names) or "" in names:
            return ("bad header", f"the header has empty or repeated names: {', '.join(names)}",
                    "The first line must name every column once.")
        return None
    if len(cells) != len(header):
        return ("wrong number of cells", f"{len(cells)} cells under a header of {len(header)}",
                "Put cells that hold the delimiter in double quotes.")
    return None


def scan_parquet(file: Path) -> Iterator[Row | Problem]:
    """Rows of a Parquet file, a few hundred in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(file, number, _plain(value))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        yield Problem("unreadable file", place(file, number + 1), f"cannot read on after row {number}: {reason}",
                      "Copy or download the file again; a Parquet file must be complete.")


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return {str(name): cell for name, cell in value.items()}
