"""Rows of work, each in a process of one thread, side by side: loading the libraries takes as long as a small run.

A row is done from front to back by one function of the experiment. What is finished is not done again, what was cut
short resumes.
"""

import importlib
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from keel.errors import KeelError, RunError
from keel.experiments.stages import SHOWN, begun, each_ends, is_done
from keel.progress import bar

__all__ = ["do", "do_rows", "row_main"]

FAILED = 3


def do(config: Any) -> None:
    """A run, unless it is finished; nothing is kept of it that only a later step would need.

    One that was cut short resumes, or begins anew where its recipe cannot resume.
    """
    if not is_done(config):
        run = importlib.import_module(type(config).__module__).run
        if "resume" in inspect.signature(run).parameters:
            run(config, resume=begun(config.out))
        else:
            shutil.rmtree(config.out, ignore_errors=True)
            run(config)
    for name in ("checkpoints", "best"):
        shutil.rmtree(config.out / name, ignore_errors=True)


def do_rows(module: str, out: Path, title: str, rows: Sequence[str], jobs: int) -> None:
    """Do rows side by side.

    Args:
        module: run with the experiment's folder and a row; it does the row.
        out: the experiment's folder, with its config.toml.
        title: what the reader is told.
        rows: in the order in which they are started.
        jobs: rows at a time.

    Raises:
        RunError: a row failed; its log says why.
    """
    print(title, file=sys.stderr, flush=True)
    with bar("rows", len(rows), 0) as progress:
        each_ends(rows, jobs, start=lambda row: started(module, out, row), look=progress.reach,
                  ended=lambda row, worker: require_success(out, row, worker.returncode))


def started(module: str, out: Path, row: str) -> "subprocess.Popen[bytes]":
    """A process that does a row."""
    with log_of(out, row).open("a") as log:
        return subprocess.Popen([sys.executable, "-m", module, str(out), row], stdout=log, stderr=log,
                                env=os.environ | {"OMP_NUM_THREADS": "1"})


def log_of(out: Path, row: str) -> Path:
    """Where a row's process writes."""
    folder = out / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{row.replace(' ', '-')}.log"


def require_success(out: Path, row: str, code: int) -> None:
    """Pass on what went wrong in a row."""
    if code:
        log = log_of(out, row)
        raise RunError(f"the work of {row!r} ended with exit code {code}: {log.read_text().strip()[-SHOWN:]}",
                       where=str(log), remedy="Mend what it says, then give the same command again: it goes on where "
                       "it was.")


def row_main(arguments: Sequence[str], work: Callable[[Path, str], None]) -> int:
    """Do one row of the experiment in a folder; the exit code."""
    folder, row = arguments
    torch.set_num_threads(1)
    try:
        work(Path(folder), row)
    except KeelError as error:
        print(error, file=sys.stderr)
        return FAILED
    return 0
