"""The run folder: what was asked, on what machine, what was measured, what came out.

    config.toml        resolved settings: `--resume` needs nothing else
    environment.json   versions, machine, command, seed, digests of the data
    metrics.jsonl      one object a step; equal byte for byte for equal seeds on one device
    timings.jsonl      the clock, kept apart for that reason
    samples.jsonl      texts with their scores
    alarms.jsonl       collapse alarms with meaning and remedy
    result.json        what came out; written last
    checkpoints/ model/ tensorboard/
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import shlex
import signal
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from keel.config import Config, read_toml
from keel.errors import ConfigError, KeelError, RunError
from keel.progress import Bar, bar

__all__ = ["Run", "RunResult", "Stopped", "is_finished", "saved_config", "start", "write_json", "write_rows"]

LOGS = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "timings.jsonl")


class Stopped(KeelError):
    """The user or the machine asked the run to stop; everything up to here is in a checkpoint."""

    exit_code = 130


@dataclass(frozen=True)
class RunResult:
    """What a recipe returns: where it wrote, and the content of result.json."""

    folder: Path
    values: Mapping[str, Any]


@dataclass
class Run:
    """An open run folder. Use as a context manager: it holds the folder's lock and writes how the run ended."""

    folder: Path
    recipe: str
    config: Config
    resumed: bool
    _lock: IO[str]
    _files: dict[str, IO[bytes]] = field(default_factory=dict)
    _board: Any = None
    _signal: int | None = None
    _clock: float = field(default_factory=time.monotonic)
    _handlers: dict[int, Any] = field(default_factory=dict)
    _ringing: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _open: ExitStack = field(default_factory=ExitStack)

    def log(self, step: int, values: Mapping[str, Any], phase: str = "train") -> None:
        """Append one step's numbers to metrics.jsonl and to TensorBoard."""
        row = {"step": step, "phase": phase, **{name: _plain(value) for name, value in values.items()}}
        self._append("metrics.jsonl", row)
        if self._board is not None:
            with explained_disk_errors(self.folder):
                self._board.add({f"{phase}/{k}": v for k, v in row.items() if isinstance(v, float)}, step)

    def time(self, step: int, seconds: Mapping[str, float], phase: str = "train") -> None:
        """Append durations in seconds; they never go into metrics.jsonl."""
        self._append("timings.jsonl", {"step": step, "phase": phase,
                                       **{name: round(value, 6) for name, value in seconds.items()}})

    def sample(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append texts to samples.jsonl."""
        for row in rows:
            self._append("samples.jsonl", {name: _plain(value) for name, value in row.items()})

    def alarm(self, row: Mapping[str, Any]) -> None:
        """Append a raised alarm, and say it on the console, unless it has been ringing since the step before."""
        self._append("alarms.jsonl", row)
        if row["name"] == "rollback" or self._ringing.get(row["name"]) != row["step"] - 1:
            print(f"ALARM {row['name']} at step {row['step']}: {row['meaning']} {row['remedy']}", file=sys.stderr)
        self._ringing[row["name"]] = row["step"]

    def note(self, text: str) -> None:
        """Something the reader of the results must know: said on the console, and kept in result.json."""
        self.notes.append(text)
        print(f"note: {text}", file=sys.stderr)

    def offsets(self) -> dict[str, int]:
        """How long each log is now; a checkpoint keeps this, and resuming cuts what a killed process wrote after it."""
        for file in self._files.values():
            file.flush()
        return {name: (self.folder / name).stat().st_size for name in LOGS if (self.folder / name).exists()}

    def rewind(self, offsets: Mapping[str, int]) -> None:
        """Cut every log back to the lengths a checkpoint remembers."""
        for name in LOGS:
            if (self.folder / name).exists():
                os.truncate(self.folder / name, offsets.get(name, 0))

    def stop_requested(self) -> bool:
        """True after SIGTERM or Ctrl-C: the loop then writes a checkpoint and calls `stop`."""
        return self._signal is not None

    def stop(self, step: int) -> None:
        """End a run that was asked to stop.

        Raises:
            Stopped: always; with how to resume.
        """
        name = signal.Signals(self._signal or signal.SIGTERM).name
        raise Stopped(f"stopped by {name} after step {step}; nothing is lost", where=str(self.folder),
                      remedy=f"Continue with: keel {self.recipe.replace('_', '-')} --resume {self.folder}")

    def bar(self, total: int, done: int) -> Bar:
        """A progress bar that lives as long as the run is open."""
        return self._open.enter_context(bar(self.recipe.replace("_", "-"), total, done))

    def finish(self, values: Mapping[str, Any], *, timed: bool = True) -> RunResult:
        """Write result.json and return it; `timed=False` where equal questions are to give equal bytes."""
        self._write_result("finished", values, timed=timed)
        return RunResult(self.folder, json.loads((self.folder / "result.json").read_text()))

    def __enter__(self) -> "Run":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._handlers[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not the main thread: whoever owns it handles signals
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._open.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for file in (*self._files.values(), *([self._board] if self._board is not None else [])):
            with suppress(OSError):  # every row was flushed when it was written, and a failure raised then
                file.close()
        if error is not None:
            status = "stopped" if isinstance(error, Stopped) else "failed"
            with suppress(RunError):  # a full disk must not hide what ended the run
                self._write_result(status, {"error": str(error) or kind.__name__ if kind else ""})
        self._lock.close()

    def _on_signal(self, number: int, frame: object) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        print("stopping after this step (once more: at once)", file=sys.stderr)

    def _write_result(self, status: str, values: Mapping[str, Any], *, timed: bool = True) -> None:
        clock = {"seconds": round(time.monotonic() - self._clock, 3)} if timed else {}
        write_json(self.folder / "result.json", {
            "recipe": self.recipe, "status": status, **clock, "error": None,
            "notes": self.notes, **{name: _plain(value) for name, value in values.items()}})

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if name not in self._files:
            self._files[name] = (self.folder / name).open("ab")
        with explained_disk_errors(self.folder):
            self._files[name].write(json.dumps(row, ensure_ascii=True).encode() + b"\n")
            self._files[name].flush()


def start(recipe: str, config: Config, folder: Path, *, seed: int, data: Iterable[Path] = (),
          resume: bool = False) -> Run:
    """Open a run folder: a new one, or with `resume` an existing one of the same recipe.

    Raises:
        RunError: the folder holds another run, another process is using it, it cannot be written, or with `resume`
            its last checkpoint is damaged. A run that failed before it logged anything may be begun anew.
    """
    with explained_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise RunError("another process is working in this run folder", where=str(folder),
                       remedy="Wait for it, or choose another folder with --out.") from error
    try:
        if resume:
            _require_whole_checkpoint(folder)
            _require_same_data(folder, data)
        else:
            _require_unused(folder)
            _replace(folder / "config.toml", config.to_toml())
            write_json(folder / "environment.json", environment(recipe, seed, data))
        with explained_disk_errors(folder):
            return Run(folder, recipe, config, resume, lock, _board=_Board(folder / "tensorboard"))
    except BaseException:
        lock.close()
        raise


def _require_unused(folder: Path) -> None:
    worked = any((folder / name).exists() and (folder / name).stat().st_size for name in LOGS)
    if (folder / "config.toml").exists() and (worked or (folder / "checkpoints").exists() or is_finished(folder)):
        raise RunError("this folder already holds a run", where=str(folder),
                       remedy="Continue it with --resume, or choose another folder with --out.")
    with explained_disk_errors(folder):
        (folder / "result.json").unlink(missing_ok=True)


def _require_whole_checkpoint(folder: Path) -> None:
    """Checkpoints are renamed into place when whole; what damages one later is a copy that was cut or a bad disk."""
    for newest in sorted((folder / "checkpoints").glob("step-*.pt"))[-1:]:
        try:
            with zipfile.ZipFile(newest) as parts:
                damaged = parts.testzip()
        except (zipfile.BadZipFile, OSError) as error:
            damaged = str(error)
        if damaged:
            raise RunError(f"checkpoint {newest.name} is damaged ({damaged})", where=str(folder),
                           remedy=f"Remove {newest}; the run then continues from the checkpoint before it, or, where "
                                  "there is none, from the start.")


def _require_same_data(folder: Path, data: Iterable[Path]) -> None:
    """A run goes on with the very files it began with."""
    began_with = _read_json(folder / "environment.json").get("data")
    for name, digest in _digests(data).items():
        if isinstance(began_with, dict) and began_with.get(name) != digest:
            known = "has changed since the run began" if name in began_with else "was not there when the run began"
            raise RunError(f"{name} {known}", where=str(folder),
                           remedy="Put back the file as it was to resume, or start a new run with another --out.")


def saved_config(folder: Path, recipe: str) -> dict[str, Any]:
    """The settings of an existing run, for `--resume`.

    Raises:
        RunError: there is no run in that folder, or it belongs to another recipe.
    """
    if not (folder / "config.toml").exists():
        raise RunError("no run in this folder (config.toml is missing)", where=str(folder),
                       remedy="Give the folder that the run's --out named.")
    made_by = _read_json(folder / "environment.json").get("recipe", "unknown")
    if made_by != recipe:
        raise RunError(f"this folder holds a {made_by!r} run, not a {recipe!r} run", where=str(folder),
                       remedy=f"Resume it with: keel {made_by.replace('_', '-')} --resume {folder}")
    try:
        return read_toml(folder / "config.toml")
    except ConfigError as error:
        raise RunError(f"the settings of this run are damaged: {error.what}", where=str(folder / "config.toml"),
                       remedy="Mend the file, or put back a copy of it; the checkpoints are intact.") from error


def is_finished(folder: Path) -> bool:
    """True where a run ended by itself: there is nothing to resume.

    Raises:
        RunError: result.json is damaged.
    """
    file = folder / "result.json"
    return file.exists() and _read_json(file).get("status") == "finished"


def environment(recipe: str, seed: int, data: Iterable[Path]) -> dict[str, Any]:
    """Versions, machine, command and digests: what a reader needs to repeat the run."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "peft", "numpy")}
    return {
        "recipe": recipe, "keel": metadata.version("keel-rlhf"), "command": shlex.join(["keel", *sys.argv[1:]]),
        "python": platform.python_version(), **versions, "machine": platform.platform(), "cpu": _cpu_name(),
        "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS", "default"), "seed": seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data": _digests(data),
    }


def _digests(data: Iterable[Path]) -> dict[str, str]:
    return {str(file): _sha256(file) for path in data for file in _files_of(path)}


def _files_of(path: Path) -> list[Path]:
    """A file, or all files of a folder and of those in it; hidden ones, such as a checkout's history, are no data."""
    below = path.rglob("*") if path.is_dir() else [path]
    return sorted(p for p in below if p.is_file() and not any(part.startswith(".") for part in
                                                              p.relative_to(path).parts))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise RunError(f"the run folder is damaged: {path.name}: {reason}", where=str(path.parent),
                       remedy="Put back a copy of the file; the checkpoints are intact.") from error


def write_json(path: Path, values: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write beside and rename, so that no reader ever sees half a file."""
    _replace(path, json.dumps(values, indent=1) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """The same for JSON Lines."""
    _replace(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def explained_disk_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's write errors into one that says what to do.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's zip writer wraps the system's error
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise RunError(f"cannot write: {cause.strerror}", where=str(cause.filename or folder), remedy=(
            "Free some space; then --resume continues from the last checkpoint, which is intact." if full else
            "Choose a folder that can be written with --out.")) from error


def _replace(path: Path, text: str) -> None:
    with explained_disk_errors(path.parent):
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)


def _plain(value: Any) -> Any:
    """Numbers as JSON: tensors become floats, and a number that is not finite becomes null, however deep it stands."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Board:
    """Scalars for TensorBoard. Its own writer works in a thread, whose errors would come late and as a traceback."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{platform.node()}.{os.getpid()}"
        self._event: Any = Event
        self._summary: Any = Summary
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
