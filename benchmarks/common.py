"""What both sides of the comparison share: the model's shape, the clock, and the arithmetic of useful work.

Runs in keel's environment and in TRL's, so nothing here imports keel, transformers or trl.
"""

import json
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("KEEL_SHARED", ROOT / ".." / "shared"))
HOME = ROOT / ".bench"
DATA = HOME / "inputs"

HIDDEN, LAYERS, HEADS, INTERMEDIATE, VOCABULARY, POSITIONS = 256, 6, 4, 688, 4096, 512
TRUNK = LAYERS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INTERMEDIATE)
"""Weights that every token is multiplied by: attention and feed-forward, without embeddings and head."""
HEAD = HIDDEN * VOCABULARY

BATCH, MAX_LENGTH = 32, 256
TRL_ROWS, MICRO_TOKENS = 8, 2048
"""What fits in one forward pass, tried out for each side: TRL's trainers take 8 rows (32 at once cost a third more, for
padding; DPO's 4 pairs are 8 rows, and 8 pairs cost a quarter more), keel at most 2,048 positions (4,096 cost a tenth
more)."""
ROLLOUTS, MINIBATCH, PASSES, RESPONSE, MAX_PROMPT = 32, 16, 2, 64, 64
DECODE_BATCH = 64
WARM_UP = 1
LEARNING_RATE = 1e-5
BETA = 0.1


@dataclass(frozen=True)
class Size:
    """How many steps are timed."""

    steps: int
    phases: int
    decodes: int


SIZES = {"full": Size(steps=4, phases=2, decodes=3), "quick": Size(steps=2, phases=1, decodes=1)}


class Laps:
    """CPU seconds of this process at each finished step; the first step is the warm-up."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def mark(self) -> None:
        self.marks.append(cpu_seconds())

    @property
    def seconds(self) -> float:
        return self.marks[-1] - self.marks[WARM_UP - 1]

    @property
    def n(self) -> int:
        return len(self.marks) - WARM_UP


def cpu_seconds() -> float:
    """User and system time of this process, all its threads and its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_mb() -> float:
    """Largest resident set so far. VmHWM begins at exec; ru_maxrss would inherit the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(name: str, seconds: float, items: float, **more: Any) -> None:
    """The one line that a worker prints for the table."""
    print(json.dumps({"name": name, "seconds_cpu": round(seconds, 4), "items": items, "peak_mb": round(peak_mb()),
                      **more}), flush=True)


def read_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def timed_rows(name: str, size: Size) -> list[dict[str, Any]]:
    """The rows of the timed steps; those of the warm-up come before them."""
    return read_rows(name)[WARM_UP * BATCH : (WARM_UP + size.steps) * BATCH]


def dpo_counts(size: Size) -> tuple[int, int]:
    """Tokens of both rows of the timed pairs, prompts twice, and those of their responses."""
    rows = timed_rows("dpo_ids.jsonl", size)
    told = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    return told + 2 * sum(len(row["prompt_ids"]) for row in rows), told


def training_flops(tokens: float, head_tokens: float) -> float:
    """Forward and backward: six per weight and token. Attention scores are not counted, nor is anything padded."""
    return 6 * TRUNK * tokens + 6 * HEAD * head_tokens


def ppo_flops(tokens: float, responses: float) -> float:
    """One phase: sample (trunk and head), reference (trunk and head), critic and reward model (trunk), then `PASSES`
    updates of policy (trunk and head) and critic (trunk)."""
    sampled = 2 * TRUNK * tokens + 2 * HEAD * responses
    measured = 3 * 2 * TRUNK * tokens + 2 * HEAD * responses
    return sampled + measured + PASSES * (training_flops(tokens, responses) + training_flops(tokens, 0))


def decode_flops(tokens: float, responses: float) -> float:
    return 2 * TRUNK * tokens + 2 * HEAD * responses
