"""Where the time of one PPO phase and of one reward-model step goes: `python benchmarks/profile_step.py [fp32|bf16]`.

The recipes run as they are on the benchmark's inputs (made first if missing). Stages are measured without the
profiler, in CPU seconds of the step after the warm-up; operators in a second run under torch's profiler, whose own
cost inflates small operators.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import DATA, MICRO_TOKENS, ROOT, WARM_UP, Laps
from time_keel import run_ppo, run_rm
from torch.profiler import ProfilerActivity, profile

from keel import runs
from keel.recipes import ppo, reward_model
from keel.rollout import measure
from keel.rollout import sample as rollout
from keel.train.step import Learner

TOP = 14


class Stages:
    """CPU seconds by name, of the calls that are wrapped; a call inside another one is taken out of it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside: list[float] = []

    def wrap(self, owner: Any, attribute: str, name: str) -> Callable[[], None]:
        plain = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            self._inside.append(0.0)
            try:
                return plain(*args, **kwargs)
            finally:
                whole = time.process_time() - start
                self.seconds[name] += whole - self._inside.pop()
                if self._inside:
                    self._inside[-1] += whole

        setattr(owner, attribute, timed)
        return lambda: setattr(owner, attribute, plain)


WRAPPED: dict[str, list[tuple[Any, str, str]]] = {
    "ppo": [
        (ppo, "respond", "sample: everything else (draws, bookkeeping, text)"),
        (rollout, "_prefill", "sample: prompts"), (rollout, "_decode", "sample: one token for all rows"),
        (rollout, "_write", "sample: head and draw"),
        (ppo, "measure", "measure: everything else"), (measure, "token_logprobs", "measure: reference"),
        (measure, "token_values", "measure: critic"), (measure, "response_scores", "measure: reward model"),
        (ppo, "policy_gradients", "update: policy, everything else"),
        (ppo, "value_gradients", "update: critic, everything else"),
        (ppo, "token_logprobs", "update: policy forward"), (ppo, "token_values", "update: critic forward"),
        (torch.Tensor, "backward", "update: backward"), (Learner, "step", "update: optimiser")],
    "reward-model": [
        (reward_model, "response_scores", "forward"), (torch.Tensor, "backward", "backward"),
        (Learner, "step", "optimiser"), (reward_model, "collate_pairs", "collate"), (runs.Run, "log", "write metrics")],
}


def main() -> None:
    fmt = sys.argv[1] if len(sys.argv) > 1 else "fp32"
    torch.set_num_threads(1)
    if not (DATA / "policy").exists():
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / "prepare.py"), "quick"], check=True)
    for name, job in (("ppo", run_ppo), ("reward-model", run_rm)):
        stages, total = staged(name, job, fmt)
        print(f"\n{name}, {fmt}: one step, {total:.2f} CPU seconds")
        rows = [*sorted(stages.items()), ("(between the stages)", total - sum(stages.values()))]
        for stage, seconds in rows:
            print(f"  {stage:<52} {seconds:7.3f} s  {seconds / total:6.1%}")
        for operator, calls, seconds, share in operators(job, fmt):
            print(f"    {operator:<50} {seconds:7.3f} s  {share:6.1%}  {calls:6d} calls")


def staged(name: str, job: Callable[..., None], fmt: str) -> tuple[dict[str, float], float]:
    """Stage times of the one step after the warm-up, and that step's whole time."""
    stages, laps = Stages(), Laps()

    def lap(*args: Any) -> None:
        laps.mark()
        if len(laps.marks) == WARM_UP:
            stages.seconds.clear()

    undo = [stages.wrap(*wrapped) for wrapped in WRAPPED[name]]
    try:
        run(job, fmt, lap)
    finally:
        for restore in reversed(undo):
            restore()
    return dict(stages.seconds), laps.seconds


def operators(job: Callable[..., None], fmt: str) -> list[tuple[str, int, float, float]]:
    """The operators with most time of their own in the step after the warm-up."""
    watch, n = profile(activities=[ProfilerActivity.CPU]), [0]

    def lap(*args: Any) -> None:
        n[0] += 1
        if n[0] == WARM_UP:
            watch.start()
        elif n[0] == WARM_UP + 1:
            watch.stop()

    run(job, fmt, lap)
    found = watch.key_averages()
    total = sum(row.self_cpu_time_total for row in found)
    top = sorted(found, key=lambda row: -row.self_cpu_time_total)[:TOP]
    return [(row.key, row.count, row.self_cpu_time_total / 1e6, row.self_cpu_time_total / total) for row in top]


def run(job: Callable[..., None], fmt: str, on_step: Callable[..., None]) -> None:
    """One warm-up step and one step, with `on_step` called at the end of each."""
    plain = runs.Run.time
    size = SimpleNamespace(steps=1, phases=1)
    with tempfile.TemporaryDirectory() as folder:
        runs.Run.time = on_step  # type: ignore[method-assign]
        try:
            job(size, fmt, Path(folder) / "run", quiet=True, micro_tokens=MICRO_TOKENS)
        finally:
            runs.Run.time = plain  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
