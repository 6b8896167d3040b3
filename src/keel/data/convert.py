"""`keel data convert`: any file that keel reads, to keel's JSON Lines or Parquet."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from keel.config import Config
from keel.data.check import iter_records, kind_of_files
from keel.data.load import Kind, OnBadRecord, as_paths
from keel.data.problems import ReadReport, Tally
from keel.data.records import Record
from keel.data.traces import StepTrace
from keel.data.write import Layout, write_records
from keel.errors import DataError

__all__ = ["DataConvertConfig", "run"]


class DataConvertConfig(Config):
    """Everything `keel data convert` reads."""

    paths: str | list[str] = Field(description="file, folder of files, or several of them")
    output: str = Field(description="file to write: .jsonl, .jsonl.gz, .jsonl.zst or .parquet; must not exist")
    kind: Kind | None = Field(None, description="what to write; none: the most that the first row can be read as")
    layout: Layout = Field("keel", description="columns: keel's own, or (pairs) as in hh-rlhf-strength-cleaned")
    as_text: bool = Field(False, description="a prompt that is a bare string is text to continue, not a user's turn")
    on_bad_record: OnBadRecord = Field("stop", description="stop: write nothing if a row is bad; skip: leave it out")


def run(cfg: DataConvertConfig) -> ReadReport:
    """Convert as a stream; the output appears only when it is whole.

    Raises:
        DataError: bad rows, no record left, or the output exists.
    """
    from rich.console import Console

    tally = Tally()
    kind = cfg.kind or kind_of_files(cfg.paths)
    n_written = write_records(_accepted(cfg, kind, tally), Path(cfg.output), layout=cfg.layout)
    Console(highlight=False, soft_wrap=True).print(
        f"{cfg.output}: {n_written} {kind}; {tally.report.summary()}", markup=False)
    return tally.report


def _accepted(cfg: DataConvertConfig, kind: Kind, tally: Tally) -> Iterator[Record | StepTrace]:
    """The records; at their end the complaint about the bad ones, before the output gets its name."""
    yield from iter_records(cfg.paths, kind, tally, cfg.as_text)
    where = ", ".join(map(str, as_paths(cfg.paths)))
    report = tally.report
    if report.n_dropped and cfg.on_bad_record == "stop":
        raise report.error(where)
    if not report.n_records:
        raise DataError(f"no record left: {report.summary()}", where=where,
                        remedy="Run `keel data check` on it to see every problem.")
