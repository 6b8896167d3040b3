"""Records to files: keel's own JSON Lines (the field names of TRL's conversational formats) and Parquet."""

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, Literal

from keel.data.records import (
    PAIR_NUMBERS,
    Demonstration,
    Labelled,
    Message,
    PreferencePair,
    Prompt,
    Ranking,
    Record,
    Strength,
)
from keel.data.rows import COMPRESSED
from keel.data.rows import layout as layout_of
from keel.data.sources.strength import published_row
from keel.data.traces import StepTrace
from keel.errors import DataError

__all__ = ["Layout", "row_of", "write_records"]

Layout = Literal["keel", "published"]
_PARQUET_ROWS = 1024
_NULLABLE = {"labels": (list, float), "outcome": (bool, str), "ended": (bool, str)}
# Line separators that some line splitters obey and JSON does not escape by itself.
_SEPARATORS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


def row_of(record: Record | StepTrace) -> dict[str, Any]:
    """The columns of a record; reading them gives the record again (bare strings with `as_text`)."""
    prompt = _prompt(record)
    row: dict[str, Any] = {"id": prompt.id}
    plain = prompt.text is not None
    if isinstance(record, Demonstration | Labelled) and prompt.text == "":
        row["text"] = record.response
    else:
        row["prompt"] = prompt.text if plain else [_turn(message) for message in prompt.messages]
        row |= {name: text if plain else [_turn(Message("assistant", text))] for name, text in _responses(record)}
    if isinstance(record, Labelled):
        row["label"] = record.label
    if isinstance(record, PreferencePair):
        row |= {name: getattr(record, name) for name in PAIR_NUMBERS}
        row |= _votes(record.strength)
    if isinstance(record, Ranking):
        row |= {"responses": list(record.responses), "ranks": list(accumulate(int(not tied) for tied in record.tied))}
    if isinstance(record, StepTrace):
        row |= {"completions": list(record.steps), "labels": _labels(record), "outcome": record.outcome}
        row |= {} if record.ended else {"ended": False}
    return row | {name: dict(part) for name, part in (("meta", prompt.meta), ("truth", prompt.truth)) if part}


def write_records(records: Iterable[Record | StepTrace], path: str | Path, *, layout: Layout = "keel") -> int:
    """Write all records beside the file, then rename, so that no half file is ever seen under its name.

    Args:
        records: in the order in which they are to stand.
        path: a new file.
        layout: columns of the rows: `keel`, see `row_of`; `published`: pairs as in hh-rlhf-strength-cleaned.
    Returns:
        How many were written.
    Raises:
        DataError: the file exists, its suffix is none that keel writes, or a record does not fit.
    """
    path = Path(path)
    write = {".jsonl": _write_lines, ".parquet": _write_parquet}.get(layout_of(path))
    if write is None or (path.suffix in COMPRESSED and write is _write_parquet):
        raise DataError(f"keel does not write {''.join(path.suffixes) or 'files without a suffix'}", where=str(path),
                        remedy="Name it .jsonl, .jsonl.gz, .jsonl.zst or .parquet.")
    if path.exists():
        raise DataError("the file exists", where=str(path), remedy="Choose another name, or remove the file first.")
    rows = map(row_of if layout == "keel" else _published, records)
    with _beside(path) as unfinished:
        return write(rows, unfinished, path)


def _published(record: Record | StepTrace) -> dict[str, Any]:
    if isinstance(record, PreferencePair):
        return published_row(record)
    raise DataError("only preference pairs have the published layout", where=f"id {_prompt(record).id}",
                    remedy="Choose layout = keel, which holds every kind of record.")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name next to the file, renamed to it on success and removed otherwise."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write: {error.strerror or error}", where=str(path),
                        remedy="Check the folder, its permissions and the free space; nothing stays behind.") from error


def _write_lines(rows: Iterable[dict[str, Any]], file: Path, path: Path) -> int:
    n_written = 0
    with ExitStack() as stack:
        stream = _compressed(file, path.suffix.lower(), stack)
        for row in rows:
            stream.write(_json(row).translate(_SEPARATORS).encode() + b"\n")
            n_written += 1
    return n_written


def _compressed(file: Path, suffix: str, stack: ExitStack) -> Any:
    if suffix == ".zst":
        import pyarrow as pa

        return stack.enter_context(pa.output_stream(str(file), compression="zstd"))
    stream = stack.enter_context(file.open("wb"))
    if suffix != ".gz":
        return stream
    # Without name and time, so that the same records give the same bytes.
    return stack.enter_context(gzip.GzipFile(filename="", fileobj=stream, mode="wb", mtime=0))


def _write_parquet(rows: Iterable[dict[str, Any]], file: Path, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = map(_tabular, rows)
    first = next(stream, None)
    if first is None:
        raise DataError("no record to write", where=str(path), remedy="A Parquet file takes its columns from a record.")
    schema, n_written = _schema(first), 0
    whole = chain([first], stream)
    with pq.ParquetWriter(file, schema) as writer:
        while batch := list(islice(whole, _PARQUET_ROWS)):
            strange = next((row for row in batch if _shape(row) != _shape(first)), None)
            if strange is not None:
                raise DataError("the record has other columns than the first one", where=f"id {strange['id']}",
                                remedy="Write .jsonl, which takes any mixture, or convert the kinds one by one.")
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            n_written += len(batch)
    return n_written


def _schema(row: dict[str, Any]) -> Any:
    """Columns of the row's kind. meta and truth are JSON text, since every row may have other keys."""
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    plain = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_(), dict: turn}
    types = {name: pa.list_(plain[inside]) if outside is list else plain[outside]
             for name, (outside, inside) in _shape(row).items()}
    return pa.schema(list((types | {"meta": pa.string(), "truth": pa.string()}).items()))


def _tabular(row: dict[str, Any]) -> dict[str, Any]:
    """A column of a table has one type: meta and truth are text, labels of steps are numbers."""
    labels = [None if label is None else float(label) for label in row.get("labels", ())]
    texts = {name: _json(row[name]) for name in ("meta", "truth") if name in row}
    return row | texts | ({"labels": labels} if labels else {})


def _shape(row: dict[str, Any]) -> dict[str, tuple[type, type]]:
    """Columns with the type of their cell and, where that is a list, of what it holds."""
    return {name: _NULLABLE.get(name) or (type(cell), type(cell[0]) if isinstance(cell, list) and cell else str)
            for name, cell in row.items() if name not in ("meta", "truth")}


def _json(value: Any) -> str:
    # What JSON has no word for (dates and decimals of Parquet files) is written as text.
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Only meta and truth can hold half a character; escaped, it survives.
        return json.dumps(value, default=str)
    return text


def _turn(message: Message) -> dict[str, str]:
    return {field.name: getattr(message, field.name) for field in fields(message)}


def _votes(strength: Strength | None) -> dict[str, Any]:
    if strength is None:
        return {}
    lists = {name: list(getattr(strength, name)) for name in ("chosen_scores", "rejected_scores")}
    return {"strength_mean": strength.mean, "strength_std": strength.std, **(lists if strength.chosen_scores else {})}


def _labels(trace: StepTrace) -> list[bool | float | None]:
    """Right and wrong as true and false, unless one of the steps is something between."""
    soft = any(label not in (None, 0, 1) for label in trace.labels)
    return [label if soft or label is None else bool(label) for label in trace.labels]


def _prompt(record: Record | StepTrace) -> Prompt:
    return record if isinstance(record, Prompt) else record.prompt


def _responses(record: Record | StepTrace) -> list[tuple[str, str]]:
    if isinstance(record, PreferencePair):
        return [("chosen", record.chosen), ("rejected", record.rejected)]
    return [("completion", record.response)] if isinstance(record, Demonstration | Labelled) else []
