"""Runs in processes of one thread each, side by side; a finished one is not run again, one cut short resumes."""

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keel.config import Config, read_toml
from keel.errors import RunError
from keel.progress import bar
from keel.recipes import COMMANDS
from keel.runs import is_finished

__all__ = ["each_ends", "side_by_side"]

SHOWN = 300  # last characters of a failed stage's log
Worker = subprocess.Popen[bytes]


def side_by_side(folder: Path, title: str, stages: Mapping[str, Any], *, again: str, jobs: int = 2,
                 tidy: bool = False) -> None:
    """Run every stage as a user would, `keel COMMAND file.toml`: models this small gain nothing from a second thread.

    Args:
        folder: the stages' files and logs go to `stages` in it.
        title: what the reader is told.
        stages: the settings of each stage, by its name; each has an `out`.
        again: what to do once a failed stage is mended.
        jobs: stages at a time.
        tidy: remove the checkpoints of a stage that has finished.
    Raises:
        RunError: a stage failed (its log says why), or its folder holds a run with other settings.
    """
    print(title, file=sys.stderr, flush=True)

    def ended(name: str, worker: Worker) -> None:
        require_success(folder, name, worker, again)
        drop_checkpoints(stages[name].out, tidy)

    with bar("", sum(getattr(config, "steps", None) or 0 for config in stages.values())) as progress:
        each_ends([name for name, config in stages.items() if not is_done(config)], jobs,
                  start=lambda name: started(folder, name, stages[name]), ended=ended,
                  look=lambda _: progress.reach(sum(trained(config.out) for config in stages.values())))


def each_ends(names: Sequence[str], jobs: int, *, start: Callable[[str], Worker],
              ended: Callable[[str, Worker], None], look: Callable[[int], None]) -> None:
    """A process for each name, side by side, until all have ended; what ends this one ends them too.

    Args:
        names: in the order in which they are started.
        jobs: processes at a time.
        start: the process of a name.
        ended: told of each that has ended; what it raises ends the others.
        look: told again and again how many have ended.
    """
    waiting, running = list(names), dict[str, Worker]()
    # A signal interrupts this process, so that `finally` ends the others; each keeps what it has done.
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                running[name] = start(name)
            time.sleep(0.2)
            for name in [name for name, worker in running.items() if worker.poll() is not None]:
                ended(name, running.pop(name))
            look(len(names) - len(waiting) - len(running))
    finally:
        for worker in running.values():
            worker.terminate()
        for worker in running.values():
            worker.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def is_done(config: Any) -> bool:
    """True where this very run has already ended by itself.

    Raises:
        RunError: the folder holds a run with other settings.
    """
    if not begun(config.out):
        return False
    ran, asked = read_toml(config.out / "config.toml"), tomllib.loads(config.to_toml())
    other = sorted(name for name in ran.keys() | asked.keys() if ran.get(name) != asked.get(name))
    if other:
        raise RunError(f"this folder holds a run with other settings of {', '.join(other)}", where=str(config.out),
                       remedy="Choose another folder with --out, or give the settings that it was begun with.")
    return is_finished(config.out)


def begun(run: Path) -> bool:
    """True where there is something to resume: environment.json is the last file written before the first step."""
    return (run / "environment.json").exists()


def started(folder: Path, name: str, config: Config) -> Worker:
    """One stage, from the start or from its last checkpoint."""
    out = config.out  # type: ignore[attr-defined]
    command = next(command for command, (module, kind, _) in COMMANDS.items()
                   if (module, kind) == (type(config).__module__, type(config).__name__))
    file = file_of(folder, name)
    file.parent.mkdir(exist_ok=True)
    file.write_text(config.to_toml())
    rest = ["--resume", str(out)] if begun(out) else [str(file)]
    with file.with_suffix(".log").open("a") as log:
        return subprocess.Popen([sys.executable, "-m", "keel", command, *rest], stdout=log, stderr=log,
                                env=os.environ | {"OMP_NUM_THREADS": "1"})


def file_of(folder: Path, name: str) -> Path:
    """Where the settings of a stage lie; its log lies beside them."""
    return folder / "stages" / f"{name.replace('/', '-')}.toml"


def require_success(folder: Path, name: str, worker: Worker, again: str) -> None:
    """Pass on what went wrong in a stage."""
    if worker.returncode:
        log = file_of(folder, name).with_suffix(".log")
        said = log.read_text().strip()[-SHOWN:]
        raise RunError(f"{name} ended with exit code {worker.returncode}: {said}", where=str(log),
                       remedy=f"Mend what it says, then {again}.")


def drop_checkpoints(run: Path, tidy: bool) -> None:
    """A finished run needs none; hundreds of them fill a disk."""
    if tidy:
        shutil.rmtree(run / "checkpoints", ignore_errors=True)


def trained(run: Path) -> int:
    """How many training steps a run has logged."""
    file = run / "metrics.jsonl"
    return file.read_text().count('"phase": "train"') if file.exists() else 0
