"""Rows of JSON Lines, as a stream, and of whole JSON documents."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from keel.data.problems import Problem
from keel.data.rows import Row, kind_of, place

__all__ = ["parse_json", "scan_document", "scan_lines"]

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_ONE_OBJECT = "Each line must be one object with named columns; a file that is one JSON list must be named .json."
_RECODE = "Save the file as UTF-8, e.g. `iconv -f latin1 -t utf-8 OLD > NEW`."


def scan_lines(file: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[Row | Problem]:
    for number, raw in lines:
        if number == 1 and raw.startswith(_UTF16):
            yield Problem("not UTF-8", place(file, 1), "the file is UTF-16", _RECODE)
            return
        stripped = (raw.removeprefix(_BOM) if number == 1 else raw).strip()
        if not stripped:
            continue
        found = parse_json(stripped, place(file, number))
        if not isinstance(found, Problem):
            found = _as_row(file, number, found, _ONE_OBJECT)
        yield found


def parse_json(raw: bytes, where: str) -> Any:
    """A JSON value, or the Problem that says why it is none."""
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Problem("not UTF-8", where, f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8", _RECODE)
    except json.JSONDecodeError as error:
        if b"\0" in raw:
            return Problem("NUL byte", where, "a NUL byte", "The file was cut or overwritten here; write it again.")
        at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return Problem("not JSON", where, f"not JSON: {error.msg.removesuffix(' at')} at {at}",
                       "Mend it there: quotes around names and text, no comma before a closing bracket.")
    except (ValueError, RecursionError) as error:
        return Problem("not JSON", where, f"not JSON that can be read: {error}",
                       "Shorten the number, or nest less deeply.")


def scan_document(file: Path, stream: BinaryIO) -> Iterator[Row | Problem]:
    """A whole JSON document: a list of objects, an object that holds one list of them, or JSON Lines in disguise."""
    raw = stream.read().removeprefix(_BOM)
    if raw.startswith(_UTF16):
        yield Problem("not UTF-8", place(file, 1), "the file is UTF-16", _RECODE)
        return
    if not raw.strip():
        return
    value = parse_json(raw, str(file))
    if isinstance(value, Problem):
        # Many files called .json hold one object per line; its first line is then a whole object.
        first = raw.lstrip().split(b"\n", 1)[0]
        if isinstance(parse_json(first, ""), dict):
            yield from scan_lines(file, enumerate(raw.split(b"\n"), start=1))
        else:
            yield value
        return
    rows = _rows_of(value)
    if isinstance(rows, str):
        yield Problem("no list of rows", str(file), rows,
                      "The file must be a list of objects, or an object that holds one list of them.")
        return
    for number, row in enumerate(rows, start=1):
        yield _as_row(file, number, row, "Each entry of the list must be an object with named columns.")


def _rows_of(value: Any) -> list[Any] | str:
    """The rows of a document, or what is wrong with it."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return f"the document is {kind_of(value)}"
    lists = {name: part for name, part in value.items() if isinstance(part, list) and _holds_rows(part)}
    if len(lists) > 1:
        return f"the document holds several lists: {', '.join(lists)}"
    return next(iter(lists.values())) if lists else [value]


def _holds_rows(part: list[Any]) -> bool:
    """Objects, but not the turns of a conversation."""
    return bool(part) and all(isinstance(x, dict) and not {"role", "from"} & x.keys() for x in part)


def _as_row(file: Path, number: int, value: Any, remedy: str) -> Row | Problem:
    if isinstance(value, dict):
        return Row(file, number, value)
    return Problem("not an object", place(file, number), f"the row is {kind_of(value)}, not an object", remedy)
