"""`keel data wizard`: dialogues of Wizard of Wikipedia or FaithDial to one record for each response."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from keel.config import Config
from keel.data.kinds import demonstrations_of
from keel.data.problems import Problem, ReadReport, RowError, Tally
from keel.data.readers import scan_rows
from keel.data.records import Demonstration
from keel.data.rows import Row, stem
from keel.data.sources.wow import responses_of_dialogue
from keel.data.write import write_records
from keel.errors import DataError

__all__ = ["WizardConfig", "run"]


class WizardConfig(Config):
    """Everything `keel data wizard` reads."""

    path: str = Field(description="file of dialogues, such as train.json of Wizard of Wikipedia or of FaithDial")
    output: str = Field(description="file to write: .jsonl, .jsonl.gz, .jsonl.zst or .parquet; must not exist")


def run(cfg: WizardConfig) -> ReadReport:
    """Convert as a stream. What is left out is counted: turns without knowledge or history, and bad dialogues.

    Raises:
        DataError: the output exists, a dialogue is bad, or nothing is left.
    """
    from rich.console import Console

    tally, left_out = Tally(), [0]
    n_written = write_records(_records(cfg.path, tally, left_out), Path(cfg.output))
    Console(highlight=False, soft_wrap=True).print(
        f"{cfg.output}: {n_written} responses of {tally.n_rows} dialogues; {left_out[0]} turns without knowledge or "
        "history left out", markup=False)
    return tally.report


def _records(path: str, tally: Tally, left_out: list[int]) -> Iterator[Demonstration]:
    for row in scan_rows(path):
        tally.n_rows += 1
        if isinstance(row, Problem):
            tally.add(row)
            continue
        try:
            made = list(_of_dialogue(row, left_out))
        except RowError as error:
            tally.add(Problem(error.kind, row.where, error.what, error.remedy or ""))
            continue
        tally.formats["dialogue"] += 1
        tally.n_records += len(made)
        yield from made
    if tally.report.n_dropped:
        raise tally.report.error(path)
    if not tally.report.n_records:
        raise DataError(f"no response with knowledge and history in {tally.n_rows} dialogues", where=path,
                        remedy="Name a file of Wizard of Wikipedia or FaithDial as its authors publish it.")


def _of_dialogue(row: Row, left_out: list[int]) -> Iterator[Demonstration]:
    number = 0
    for value in responses_of_dialogue(row.value):
        if value is None:
            left_out[0] += 1
            continue
        number += 1
        for one in demonstrations_of(replace(row, value=value), as_text=False, turns="last")[1]:
            yield replace(one, prompt=replace(one.prompt, id=f"{stem(row.file)}:{row.line}#{number}"))
