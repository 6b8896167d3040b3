"""The course of PPO runs: what their logs say from start to end."""

import json
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

__all__ = ["Course", "read"]

MEASURED = {"score": "score/mean", "gold": "gold/mean", "kl": "kl/mean", "length": "length/mean"}
"""On the same validation prompts with the same random streams each time."""
WATCHED = {"kl": "kl/reference_k3", "length": "response/length", "cut": "response/cut"}
"""In every phase, on the responses that the policy learns from."""


@dataclass(frozen=True)
class Course:
    """One PPO run.

    Attributes:
        updates: optimiser steps of the policy before each evaluation.
        measured: score, gold, kl (nats per token) and length (tokens) at each evaluation.
        phases: kl, length and cut (share of responses) in each phase.
        alarms: how often each collapse alarm was raised.
    """

    updates: tuple[int, ...]
    measured: Mapping[str, tuple[float, ...]]
    phases: Mapping[str, tuple[float, ...]]
    alarms: Mapping[str, int]

    def first(self, name: str) -> float:
        """At the start, before any update."""
        return self.measured[name][0]

    def best(self, name: str) -> float:
        """The highest of all evaluations; a maximum of noisy numbers lies above the true one."""
        return max(self.measured[name])

    def last(self, name: str) -> float:
        """At the end."""
        return self.measured[name][-1]

    def quarter(self, name: str, number: int) -> float:
        """Mean over the first, second, third or last quarter of the phases."""
        n = len(self.phases[name])
        return fmean(self.phases[name][(number - 1) * n // 4 : max(number * n // 4, (number - 1) * n // 4 + 1)])

    def late_change(self, name: str) -> float:
        """By which share the last quarter of the phases differs from the third."""
        return self.quarter(name, 4) / self.quarter(name, 3) - 1


def read(run: Path) -> Course:
    """What a finished `keel ppo` logged."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = tomllib.loads((run / "config.toml").read_text())
    exams, phases = ([row for row in rows if row["phase"] == phase] for phase in ("eval", "train"))
    per_phase = config["passes"] * (config["rollouts"] // config["minibatch"])
    raised = run / "alarms.jsonl"
    names = [json.loads(line)["name"] for line in raised.read_text().splitlines()] if raised.exists() else []
    return Course(
        tuple(per_phase * row["step"] for row in exams),
        {name: tuple(row[key] for row in exams) for name, key in MEASURED.items()},
        {name: tuple(row[key] for row in phases) for name, key in WATCHED.items()},
        dict(sorted(Counter(names).items())))
