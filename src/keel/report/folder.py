"""A run folder as it lies on disk: whatever files are there, and a plain note for each that is missing or damaged."""

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from keel.errors import RunError
from keel.report.words import finite

__all__ = ["WITHOUT_STEPS", "Demo", "RunFolder", "column", "find", "part", "read", "rows"]

Row = dict[str, Any]
FILES = ("config.toml", "environment.json", "metrics.jsonl", "timings.jsonl", "samples.jsonl", "alarms.jsonl")
MAX_SUSPECTS = 100  # read of suspects.jsonl; the weakest pairs come first
MAX_SOLUTIONS = 5000  # read of solutions.jsonl
MAX_PATHS = 20000  # read of trajectories.jsonl
AXIS = ("space", "drift", "dose", "calibration")
"""What is measured on an axis, each in a file of its own."""
WITHOUT_STEPS = ("bench_compare", "bench_correlate", "bench_rm", "bench_rm select", "evaluate", "generate", "probe",
                 "process_rm evaluate", "process_rm label", "process_rm search", "win_rate",
                 "axis calibrate", "axis drift", "axis evaluate", "axis project")
"""Recipes that train nothing and log no metrics."""
SECRET = r"token|api[-_]?key|secret|password|(?:hf|access|auth|bearer)[-_]token"
SECRET_OPTION = re.compile(rf"(--(?:[\w.-]*[._-])?(?:api[-_]?key|secret|password)|--(?:{SECRET}))(=|\s+)\S+", re.I)
SECRET_KEY = re.compile(rf"(?:.*[._-])?(?:api[-_]?key|secret|password)|{SECRET}", re.I)


@dataclass(frozen=True)
class RunFolder:
    """One run; a missing file is empty here and named in `notes`. `samples`: record id -> [first row, last row]."""

    path: Path
    name: str
    recipe: str
    config: Row
    environment: Row
    metrics: list[Row]
    timings: list[Row]
    alarms: list[Row]
    samples: dict[str, list[Row]]
    result: Row
    notes: tuple[str, ...]
    audit: Row
    suspects: list[Row]
    probes: Row
    groups: Row = field(default_factory=dict)
    solutions: list[Row] = field(default_factory=list)
    axis: Row = field(default_factory=dict)

    @property
    def status(self) -> str:
        """finished, stopped, failed, or unfinished where the run wrote no result."""
        return str(self.result.get("status") or "unfinished")

    @property
    def last_step(self) -> int | None:
        """The last step the run logged; none where it logged none."""
        return max((row["step"] for row in self.metrics if row.get("phase") != "critic"), default=None)


@dataclass(frozen=True)
class Demo:
    """A `keel demo` folder: the gold score of each stage, and the folders of the runs that made them."""

    path: Path
    gold: list[Row]
    runs: list[RunFolder]


def find(paths: list[Path]) -> tuple[list[RunFolder], list[Demo]]:
    """Read every folder named; a demo stands for its stages. The same folder twice is read once.

    Raises:
        RunError: nothing was named, or a folder is missing, is no folder, or holds no run.
    """
    if not paths:
        raise RunError("no run folder was named", where="report", remedy="Name one or more: keel report runs/ppo-1")
    demos, runs = [], []
    for path in dict.fromkeys(p.expanduser().resolve() for p in paths):
        if not path.is_dir():
            what = "this is a file, not a run folder" if path.exists() else "there is no such run folder"
            raise RunError(what, where=str(path), remedy="Name the folder that holds metrics.jsonl.")
        if (path / "demo.json").is_file():
            demos.append(_demo(path))
            runs.extend(demos[-1].runs)
        else:
            runs.append(read(path))
    return _distinct(runs), demos


def read(path: Path, name: str | None = None) -> RunFolder:
    """Read one run folder.

    Raises:
        RunError: the folder holds no file that a run writes.
    """
    if not any((path / file).is_file() for file in (*FILES, "result.json")):
        raise RunError(
            "this folder holds no run (no metrics.jsonl, config.toml, environment.json or result.json)",
            where=str(path),
            remedy="Name the folder of one run, not the folder above it; a run that never started has no report.",
        )
    missing = [file for file in FILES[:3] if not (path / file).is_file()]
    notes: list[str] = []
    result, environment = _object(path / "result.json", notes), _object(path / "environment.json", notes)
    recipe = str(result.get("recipe") or environment.get("recipe") or "unknown")
    notes[:0] = [f"{file} is missing" for file in missing if recipe not in WITHOUT_STEPS or file != "metrics.jsonl"]
    return RunFolder(
        path=path,
        name=name or path.name,
        recipe=recipe,
        config=_hidden(_config(path / "config.toml", notes)),
        environment=_hidden(environment),
        metrics=_stepped(path / "metrics.jsonl", notes),
        timings=_stepped(path / "timings.jsonl", notes),
        alarms=_stepped(path / "alarms.jsonl", notes),
        samples=_ends(_stepped(path / "samples.jsonl", notes)),
        result=result,
        audit=_object(path / "audit.json", notes),
        suspects=_listed(path / "suspects.jsonl", MAX_SUSPECTS),
        probes=_object(path / "probes.json", notes),
        groups=_object(path / "groups.json", notes),
        solutions=_listed(path / "solutions.jsonl", MAX_SOLUTIONS),
        axis=_axis(path, notes),
        notes=tuple(notes),
    )


def part(row: Row, key: str) -> Row:
    """The object under a key; an empty one where there is none."""
    found = row.get(key)
    return found if isinstance(found, dict) else {}


def rows(row: Row, key: str) -> list[Row]:
    """The objects in the list under a key."""
    found = row.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def column(row: Row, key: str) -> list[float]:
    """The list of numbers under a key; an empty one where something else is in it."""
    found = row.get(key)
    values = [finite(x) for x in found] if isinstance(found, list) else []
    return [x for x in values if x is not None] if None not in values else []


def _demo(path: Path) -> Demo:
    notes: list[str] = []
    listed = _object(path / "demo.json", notes)
    stages, gold = listed.get("stages"), listed.get("gold")
    if notes or not isinstance(stages, list) or not all(isinstance(s, dict) and "run" in s for s in stages):
        raise RunError(
            "demo.json is damaged: it must hold `stages`, a list of {name, run}",
            where=str(path / "demo.json"),
            remedy="Name the runs themselves instead (they lie in this folder), or run `keel demo` again.",
        )
    runs = []
    for stage in stages:
        folder = (path / str(stage["run"])).resolve()
        if not folder.is_relative_to(path):
            raise RunError(
                f"stage {stage.get('name')!r} points outside the demo folder, to {stage['run']!r}",
                where=str(path / "demo.json"),
                remedy="Name that run folder on the command line if you trust it.",
            )
        if folder.is_dir():
            runs.append(read(folder, str(stage.get("name") or folder.name)))
    return Demo(path, [row for row in gold or [] if isinstance(row, dict)] if isinstance(gold, list) else [], runs)


def _distinct(runs: list[RunFolder]) -> list[RunFolder]:
    """Give runs that share a name the name of the folder above as well, and a number if that is not enough."""
    names = [run.name for run in runs]
    longer = [f"{r.path.parent.name}/{r.name}" if names.count(r.name) > 1 else r.name for r in runs]
    unique = [f"{n} ({longer[:i].count(n) + 1})" if longer.count(n) > 1 else n for i, n in enumerate(longer)]
    return [replace(run, name=name) for run, name in zip(runs, unique, strict=True)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _object(path: Path, notes: list[str]) -> Row:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name} is damaged and was left out")
        return {}
    return value


def _axis(path: Path, notes: list[str]) -> Row:
    """What the files about an axis hold, by their names; what is absent is empty."""
    found: Row = {name: _object(path / f"{name}.json", notes) for name in AXIS}
    found["heat"] = _array(path / "heat.json", notes)
    return {**found, "trajectories": _listed(path / "trajectories.jsonl", MAX_PATHS)}


def _array(path: Path, notes: list[str]) -> list[Row]:
    """The objects in a JSON list."""
    try:
        value = json.loads(_text(path)) if path.is_file() else []
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list):
        notes.append(f"{path.name} is damaged and was left out")
        return []
    return [row for row in value if isinstance(row, dict)]


def _config(path: Path, notes: list[str]) -> Row:
    try:
        return tomllib.loads(_text(path)) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, RecursionError):
        notes.append(f"{path.name} is damaged and was left out")
        return {}


def _stepped(path: Path, notes: list[str]) -> list[Row]:
    """The rows of a JSON Lines file that carry a step; the rest are counted, never guessed at."""
    rows, damaged = [], []
    for number, row in _lines(path):
        step = row.get("step") if isinstance(row, dict) else None
        if isinstance(step, int) and not isinstance(step, bool) and abs(step) < 2**53:
            rows.append(row)
        else:
            damaged.append(number)
    if damaged:
        n, first = len(damaged), damaged[0]
        lines = "1 line was" if n == 1 else f"{n} lines were"
        notes.append(f"{path.name}: {lines} unreadable and left out (first: line {first}); a killed run can leave one")
    return rows


def _listed(path: Path, most: int) -> list[Row]:
    """The first objects of a JSON Lines file; what is none is left out."""
    return [row for _, row in islice(_lines(path), most) if isinstance(row, dict)]


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError):
                    yield number, None


def _ends(rows: list[Row]) -> dict[str, list[Row]]:
    """The first and the last row of each record id, in the order in which ids first appear."""
    ends: dict[str, list[Row]] = {}
    for row in rows:
        known = ends.setdefault(str(row.get("id")), [row, row])
        if row["step"] < known[0]["step"]:
            known[0] = row
        if row["step"] >= known[1]["step"]:
            known[1] = row
    return ends


def _hidden(value: Any, key: str = "") -> Any:
    """The same value with every secret replaced: keys that are named like one, and such options in a command."""
    if isinstance(value, dict):
        return {k: _hidden(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_hidden(v, key) for v in value]
    if isinstance(value, str):
        return "(hidden)" if value and SECRET_KEY.fullmatch(key) else SECRET_OPTION.sub(r"\1\2(hidden)", value)
    return value
