"""What a step of MetaRM costs beside a step of plain reward-model training: `python benchmarks/meta_rm.py`.

The sandbox's base model, pairs of the town, responses that the base model wrote; one process of one thread. Both
trainings start again and again in turn; of each, CPU seconds per step are taken after a warm-up step, and the ratio is
that of the medians.
"""

import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from keel import runs
from keel.models.load import ModelConfig
from keel.recipes import meta_rm, reward_model
from keel.sandbox import export
from keel.sandbox.shipped import base_model_folder
from keel.train.inputs import DataConfig
from keel.train.step import OptimizerConfig

N_PAIRS, N_PROMPTS, N_RESPONSES = 32, 8, 4
STEPS, TURNS = 6, 5
OFF = 10**6
KINDS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "MetaRM, first order": {"check_every": OFF},
    "MetaRM, head only": {"check_every": OFF, "params": "head"},
    "MetaRM, J checked every 10 steps": {"check_every": 10},
    "MetaRM, second order": {"check_every": OFF, "order": "second"},
}


def settings(town: Path, out: Path) -> dict[str, Any]:
    """What both recipes are given."""
    return {"out": out, "model": ModelConfig(path=str(base_model_folder())), "batch": N_PAIRS, "steps": STEPS,
            "data": DataConfig(path=str(town / "pairs.jsonl"), validation_fraction=0.0, max_length=256),
            "optimizer": OptimizerConfig(lr=5e-4), "eval_every": OFF, "save_every": OFF}


def main() -> None:
    torch.set_num_threads(1)
    marks: list[float] = []
    plain_time = runs.Run.time

    def time_(self: runs.Run, step: int, seconds: Any, phase: str = "train") -> None:
        plain_time(self, step, seconds, phase)
        marks.append(time.process_time())

    runs.Run.time = time_  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        home, town = Path(folder), Path(folder) / "town"
        export.run(export.SandboxExportConfig(out=town, n_pairs=STEPS * N_PAIRS, n_prompts=STEPS * N_PROMPTS,
                                              n_heldout=20, n_demonstrations=50))
        asked = DataConfig(path=str(town / "prompts.jsonl"), validation_fraction=0.0, max_length=256)
        meta_rm.run(meta_rm.MetaRMConfig(**settings(town, home / "first"), prompts=asked, n_responses=N_RESPONSES,
                                         policy=ModelConfig(path=str(base_model_folder())), meta_batch=N_PROMPTS))
        told = asked.model_copy(update={"path": str(home / "first/responses.jsonl")})
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(TURNS):
            for kind, ascent in KINDS.items():
                marks.clear()
                given = settings(town, home / f"{turn}-{kind}")
                if ascent is None:
                    reward_model.run(reward_model.RewardModelConfig(**given))
                else:
                    meta_rm.run(meta_rm.MetaRMConfig(**given, responses=told, ascent=ascent, meta_batch=N_PROMPTS))
                seconds[kind] += [after - before for before, after in pairwise(marks)]
        plain = median(seconds["plain"])
        print(f"n = {N_PAIRS} pairs, m = {N_PROMPTS} prompts, k = {N_RESPONSES} responses, "
              f"{len(seconds['plain'])} steps of each")
        for kind, found in seconds.items():
            print(f"{kind:36} {median(found):.3f} CPU-s a step   {median(found) / plain:.2f} x plain")


if __name__ == "__main__":
    main()
