"""Files of rows, as a stream: JSON Lines, JSON, Parquet, CSV, plain or compressed, one file or a folder of them.

A row that cannot be read becomes a `Problem` with file and line; the stream goes on behind it where that is possible.
"""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from keel.data.json_rows import scan_document, scan_lines
from keel.data.problems import Problem
from keel.data.rows import COMPRESSED, TABLES, Row, data_files, layout, place
from keel.data.tables import scan_csv, scan_parquet
from keel.errors import DataError

__all__ = ["Row", "data_files", "read_rows", "scan_rows"]

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a file or a folder, streaming.

    Raises:
        DataError: at the first row that cannot be read. `scan_rows` goes on instead.
    """
    for found in scan_rows(path):
        if isinstance(found, Problem):
            raise DataError(found.what, where=found.where, remedy=found.remedy)
        yield found


def scan_rows(path: str | Path) -> Iterator[Row | Problem]:
    """Rows and, between them, what could not be read.

    Raises:
        DataError: no such file, or a kind of file that keel does not read.
    """
    for file in data_files(path):
        empty = True
        for found in _scan_file(file):
            empty = False
            yield found
        if empty:
            yield Problem("empty file", str(file), "no rows in this file",
                          "Check that it was written to the end, or leave it out.")


def _scan_file(file: Path) -> Iterator[Row | Problem]:
    kind = layout(file)
    if kind == ".parquet":
        yield from scan_parquet(file)
        return
    line = 0
    try:
        with _opened(file) as stream:
            lines = enumerate(stream, start=1)
            if kind in TABLES:
                scanner = scan_csv(file, (text for _, text in lines), "\t" if kind == ".tsv" else ",")
            else:
                scanner = scan_document(file, stream) if kind == ".json" else scan_lines(file, lines)
            for found in scanner:
                line = found.line if isinstance(found, Row) else line + 1
                yield found
    except (OSError, EOFError, zlib.error) as error:
        # Nothing behind a broken compressed block can be trusted, so this ends the file.
        yield Problem("unreadable file", place(file, line + 1), f"cannot read on after row {line}: {_reason(error)}",
                      "Copy or download the file again; a compressed file must be complete.")


def _opened(file: Path) -> BinaryIO:
    """A byte stream, decompressed according to what the file holds, whatever it is called."""
    with file.open("rb") as stream:
        head = stream.read(4)
    if head.startswith(_GZIP):
        return gzip.open(file, "rb")  # type: ignore[return-value]
    if head.startswith(_ZSTD):
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(file), compression="zstd"))
    if file.suffix.lower() in COMPRESSED and head:
        raise OSError(f"named {file.suffix} but does not begin like such a file")
    return file.open("rb")


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return re.sub(r"\s+", " ", text)
