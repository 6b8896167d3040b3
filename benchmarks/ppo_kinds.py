"""What a phase of group-invariant PPO, or of PPO with rewards of steps, costs beside one of plain PPO:
`python benchmarks/ppo_kinds.py`.

The sandbox's base model as policy, critic and reward model, prompts of the town; one process of one thread. The kinds
start again and again in turn, each turn in another order; CPU seconds per phase are taken after a warm-up phase. Ratios
are taken within a turn, for other work on the machine changes a CPU second by more than the method does: their median,
and all from the lowest to the highest. Learning rates are next to nothing, so that every kind answers the same prompts
with the same words. Groups act from the first phase: prices by group, shaped advantages, agreement with the town's
domains. Steps are parted by ".", for the town's answers of other domains than ledger have no lines: a process model
reads them, or a function counts their letters, instead of the reward model, or beside it. Not counted: the portrait of
the groups at the end of a run, which is one more examination.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from keel.data.segment import split
from keel.models.load import ModelConfig, load_tokenizer, save_model, scalar_model
from keel.models.process import process_model
from keel.recipes import group_ppo, ppo
from keel.sandbox import export
from keel.sandbox.shipped import base_model_folder
from keel.train import clock

ROLLOUTS, MINIBATCH, PASSES, RESPONSE = 64, 16, 1, 48
PHASES, TURNS = 3, 9
OFF = 10**6
PARTS = ("sample_s", "measure_s", "update_s")
GROUPS = {"column": "domain", "warmup": 0, "ramp_fraction": 0.0}
STEPS = {"separator": ".", "credit": "min"}
KINDS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "group-ppo": {"groups": GROUPS},
    "group-ppo, joint loss": {"groups": GROUPS | {"critic_coef": 1.0}},
    "function on steps, beside": {"rewards": [{"name": "steps", "function": "ppo_kinds:letters", "steps": STEPS}]},
    "process model, instead": {"reward_model": None, "critic": {"pretrain": 0, "init": "policy"},
                               "rewards": [{"name": "steps", "models": ["HOME/process"], "steps": STEPS}]},
    "process model, beside": {"rewards": [{"name": "steps", "models": ["HOME/process"], "steps": STEPS}]},
}


def letters(prompt: Any, text: str, ended: bool) -> list[float]:
    """A score for each step that costs nothing."""
    return [float(len(step)) for step in split(text, ".", ended=ended)]


def settings(home: Path, out: Path) -> dict[str, Any]:
    """What both recipes are given."""
    still = {"lr": 1e-12, "schedule": "constant"}
    return {"out": out, "policy": {"path": str(base_model_folder())}, "reward_model": {"path": str(home / "reward")},
            "prompts": {"path": str(home / "town/prompts.jsonl"), "validation_fraction": 0.0, "max_length": 128},
            "steps": 1 + PHASES, "rollouts": ROLLOUTS, "minibatch": MINIBATCH, "passes": PASSES,
            "sampling": {"max_new_tokens": RESPONSE}, "critic": {"pretrain": 0}, "policy_optimizer": still,
            "critic_optimizer": still, "eval_every": OFF, "save_every": OFF, "n_samples": 0}


def phases(kind: str, home: Path, out: Path) -> list[dict[str, Any]]:
    """Timings of one run, less the warm-up; and how many tokens were written."""
    changes = json.loads(json.dumps(KINDS[kind]).replace("HOME", str(home)))
    if "groups" in changes:
        group_ppo.run(group_ppo.GroupPPOConfig(**settings(home, out) | changes))
    else:
        ppo.run(ppo.PPOConfig(**settings(home, out) | changes))
    times, said = ([json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
                   for name in ("timings", "metrics"))
    written = [row["response/tokens"] for row in said if row["phase"] == "train"]
    return [{part: row[part] for part in PARTS} | {"tokens": n} for row, n in zip(times, written, strict=True)][1:]


def main() -> None:
    torch.set_num_threads(1)
    clock.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        export.run(export.SandboxExportConfig(out=home / "town", n_pairs=10, n_prompts=ROLLOUTS * (1 + PHASES),
                                              n_heldout=20, n_demonstrations=10))
        words = load_tokenizer(str(base_model_folder()))
        save_model(scalar_model(ModelConfig(path=str(base_model_folder())), seed=0), words, home / "reward",
                   pad_id=words.pad_token_id)
        save_model(process_model(ModelConfig(path=str(base_model_folder())), seed=0), words, home / "process",
                   pad_id=words.pad_token_id)
        turns: list[dict[str, list[dict[str, Any]]]] = []
        for turn in range(TURNS):
            order = [*KINDS][turn % len(KINDS) :] + [*KINDS][: turn % len(KINDS)]
            turns.append({kind: phases(kind, home, home / f"{turn}-{kind}") for kind in order})
    tokens = {kind: [row["tokens"] for turn in turns for row in turn[kind]] for kind in KINDS}
    assert len({tuple(n) for n in tokens.values()}) == 1, f"the kinds wrote different answers: {tokens}"
    print(f"{ROLLOUTS} responses of {median(tokens['ppo']) / ROLLOUTS:.0f} tokens a phase, {PHASES} phases of each in "
          f"each of {TURNS} turns")
    for kind in KINDS:
        parts = "   ".join(f"{part[:-2]} {median(row[part] for turn in turns for row in turn[kind]):.2f}"
                           for part in PARTS)
        ratios = sorted(seconds(turn[kind]) / seconds(turn["ppo"]) for turn in turns)
        print(f"{kind:24} {median(seconds(turn[kind]) for turn in turns):.2f} CPU-s a phase ({parts})   "
              f"{median(ratios):.3f} x ppo ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def seconds(rows: list[dict[str, Any]]) -> float:
    """Of a phase, mean over these."""
    return sum(row[part] for row in rows for part in PARTS) / len(rows)


if __name__ == "__main__":
    main()
