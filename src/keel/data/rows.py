"""One row of a file, and which files hold rows."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from keel.errors import DataError

__all__ = ["COMPRESSED", "LINES", "TABLES", "Row", "data_files", "kind_of", "layout", "place", "stem"]

LINES, TABLES = (".jsonl", ".ndjson", ".txt"), (".csv", ".tsv")
COMPRESSED = (".gz", ".zst")
_SUFFIXES = (*LINES, ".json", *TABLES, ".parquet")
_READABLE = f"keel reads {', '.join(_SUFFIXES)}, each plain or with {' or '.join(COMPRESSED)} behind it."


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        file: where it stands.
        line: 1-based line in files made of lines, 1-based row otherwise.
        value: its columns.
        textual: True where the file can hold text only (CSV), so that numbers and lists come spelled out.
    """

    file: Path
    line: int
    value: dict[str, Any]
    textual: bool = False

    @property
    def where(self) -> str:
        return place(self.file, self.line)


def data_files(path: str | Path) -> list[Path]:
    """The file itself, or the readable files of a folder in the order of their names.

    Raises:
        DataError: nothing there, or nothing there that can be read.
    """
    path = Path(path)
    if path.is_dir():
        seen = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        files = [p for p in seen if layout(p) in _SUFFIXES]
        if not files:
            there = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise DataError(f"no data file in this folder; it holds {there}", where=str(path), remedy=_READABLE)
        return files
    if not path.is_file():
        raise DataError("no such file or folder", where=str(path),
                        remedy=f"Paths are relative to {Path.cwd()}.")
    if layout(path) not in _SUFFIXES:
        raise DataError(f"unknown kind of file {path.suffix!r}", where=str(path), remedy=_READABLE)
    return [path]


def place(file: Path, line: int) -> str:
    """`pairs.jsonl:812`, or `pairs.parquet:row 812` where a text editor could not find the line."""
    return f"{file}:{'row ' if layout(file) in ('.json', '.parquet') else ''}{line}"


@lru_cache(maxsize=256)
def layout(file: Path) -> str:
    """The suffix that says how rows are laid out, without the compression."""
    name = file.with_suffix("") if file.suffix.lower() in COMPRESSED else file
    return name.suffix.lower()


@lru_cache(maxsize=256)
def stem(file: Path) -> str:
    """The file's name without compression and layout: `train.clean` of `train.clean.jsonl.gz`."""
    return (file.with_suffix("") if file.suffix.lower() in COMPRESSED else file).stem


def kind_of(value: Any) -> str:
    """A JSON value's type in words."""
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
