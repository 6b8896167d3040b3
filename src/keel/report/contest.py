"""Policy against policy: who won by which judge, as sentences and as win / tie / lose bars."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from keel.report.folder import Row, RunFolder
from keel.report.words import brief, finite, interval, number

__all__ = ["Bars", "Piece", "ShareBar", "bars", "contest_evidence", "contest_title", "judges", "opponents"]

JUDGES = {"gold": "the gold score", "judge": "the judge", "reward_model": "the reward model"}
OUTCOMES = ("win", "tie", "lose")
NARROW = 7.0  # per cent of the bar; a number does not fit into less


@dataclass(frozen=True)
class Piece:
    """One coloured part of a bar; `at` and `width` in per cent, `text` empty where it would not fit."""

    outcome: str
    at: float
    width: float
    text: str


@dataclass(frozen=True)
class ShareBar:
    """One line of the chart: all prompts, or those of one domain."""

    label: str
    pieces: tuple[Piece, ...]
    text: str
    said: str


@dataclass(frozen=True)
class Bars:
    """All lines of one run and judge, and the names behind win and lose."""

    title: str
    policy: str
    opponent: str
    rows: tuple[ShareBar, ...]


def judges(run: RunFolder) -> dict[str, Row]:
    """What each judge counted, as far as it can be drawn; empty for any other recipe."""
    found = run.result.get("judges") if run.recipe == "win_rate" else None
    return {str(name): row for name, row in found.items() if _whole(row)} if isinstance(found, dict) else {}


def opponents(run: RunFolder) -> tuple[str, str]:
    """The two sides by the shortest names that tell them apart."""
    paths = [_path(run.config.get(side)) or side for side in ("policy", "opponent")]
    if paths[0] == paths[1]:
        return _short(paths[0]), "itself"
    short = [_short(path) for path in paths]
    ours, theirs = short if short[0] != short[1] else paths
    return ours, theirs


def bars(runs: list[RunFolder]) -> list[Bars]:
    """One chart per run and judge."""
    charts = []
    for run in runs:
        policy, opponent = opponents(run)
        for name, row in judges(run).items():
            domains = row.get("domains")
            parts = [("all prompts", row), *(domains.items() if isinstance(domains, dict) else [])]
            title = f"{policy} against {opponent}, by {JUDGES.get(name, name)}"
            rows = tuple(_bar(str(label), part) for label, part in parts if _whole(part))
            charts.append(Bars(f"{run.name}: {title}" if len(runs) > 1 else title, policy, opponent, rows))
    return charts


def contest_title(run: RunFolder, verdict: str) -> str:
    """Who won, in one sentence; empty where the run holds no verdict."""
    for name, row in judges(run).items():
        policy, opponent = opponents(run)
        rate = f"by {JUDGES.get(name, name)}: win rate {_in_percent(row['win_rate'])}"
        if verdict == "unclear":
            return f"{policy} is not distinguishable from {opponent} {rate}."
        return f"{policy} {'beats' if verdict == 'better' else 'loses to'} {opponent} {rate}."
    return ""


def contest_evidence(run: RunFolder) -> str:
    """The numbers behind the title."""
    for row in judges(run).values():
        shares = f"{brief(row['win'])}% wins, {brief(row['tie'])}% ties and {brief(row['lose'])}% losses"
        decided, p = finite(row.get("n_decided")), finite(row.get("p"))
        test = ""
        if decided is not None and p is not None:
            stated = "p < 0.001" if p < 0.001 else f"p = {number(p, 3)}"
            test = f" Sign test on the {decided:,.0f} decided prompts: {stated}."
        lengths = [_mean(run, side) for side in ("policy", "opponent")]
        length = f" Mean length {lengths[0]} against {lengths[1]} characters." if all(lengths) else ""
        return (f"{shares} on {_count(row)} prompts; a tie counts a half, so an even match has a win rate of 50%; "
                f"in brackets its 95% interval over prompts.{test}{length}")
    return ""


def _whole(row: Any) -> bool:
    """Three shares and a win rate are there, and they are numbers."""
    if not isinstance(row, dict) or not isinstance(row.get("win_rate"), dict):
        return False
    return all(finite(row.get(key)) is not None for key in OUTCOMES) and finite(row["win_rate"].get("mean")) is not None


def _bar(label: str, row: Row) -> ShareBar:
    pieces, at = [], 0.0
    for outcome in OUTCOMES:
        width = row[outcome]
        pieces.append(Piece(outcome, round(at, 3), round(width, 3), f"{width:.0f}" if width >= NARROW else ""))
        at += width
    said = ", ".join(f"{outcome} {brief(row[outcome])}%" for outcome in OUTCOMES)
    return ShareBar(f"{label} ({_count(row)})", tuple(pieces), interval(row["win_rate"]), f"{label}: {said}")


def _in_percent(rate: Row) -> str:
    """`67.2% [61.5, 72.5]`."""
    mean, *rest = interval(rate).split(" ", 1)
    return " ".join([f"{mean}%", *rest])


def _count(row: Row) -> str:
    return number(row.get("n"))


def _mean(run: RunFolder, side: str) -> str:
    found = run.result.get(side)
    row = found.get("characters") if isinstance(found, dict) else None
    return brief(row.get("mean")) if isinstance(row, dict) and finite(row.get("mean")) is not None else ""


def _path(value: Any) -> str:
    return str(value.get("path") or "") if isinstance(value, dict) else str(value or "")


def _short(path: str) -> str:
    """`ppo` for runs/ppo/model: the folder that keel's recipes write a model to says nothing."""
    parts = [part for part in PurePath(path).parts if part != "/"]
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1] if parts else path
