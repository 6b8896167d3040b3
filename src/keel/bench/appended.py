"""Files of rows that are only appended to: a kill leaves whole rows behind and, at the end, perhaps half of one."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from keel.errors import RunError
from keel.runs import explained_disk_errors

__all__ = ["SavedRows", "cut_torn_row", "whole_rows"]


def whole_rows(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number from 1, place in the file and bytes of each row; a last one without its end is none."""
    at = 0
    with file.open("rb") as stream:
        for number, row in enumerate(stream, start=1):
            if row.endswith(b"\n"):
                yield number, at, row
            at += len(row)


def cut_torn_row(stream: IO[bytes]) -> None:
    """Take half a last row away, so that the next one begins a line of its own.

    Args:
        stream: open for appending and reading; left at its end.
    """
    stream.seek(0)
    stream.truncate(stream.read().rfind(b"\n") + 1)
    stream.seek(0, 2)


@dataclass
class SavedRows:
    """A file of rows by key, appended to as work is done and read again after a kill. On the disk before `add` returns.

    Attributes:
        file: in the run folder.
        known: what it held at the start, each row with its `key`.

    Raises:
        RunError: a row other than the last is damaged, or the file cannot be written.
    """

    file: Path
    known: dict[str, Any] = field(default_factory=dict)
    _stream: Any = None

    def __enter__(self) -> "SavedRows":
        for number, _, line in whole_rows(self.file) if self.file.exists() else ():
            try:
                row = json.loads(line)
                self.known[row["key"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise RunError("what this run had saved is damaged", where=f"{self.file}:{number}",
                               remedy="Remove that line; its work is then done again.") from error
        with explained_disk_errors(self.file.parent):
            self._stream = self.file.open("ab+")
            cut_torn_row(self._stream)
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        with explained_disk_errors(self.file.parent):
            self._stream.write(b"".join(json.dumps({"key": key, **row}).encode() + b"\n" for key, row in rows.items()))
            self._stream.flush()
            os.fsync(self._stream.fileno())
