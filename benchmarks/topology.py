"""The two topologies of `keel ppo`, same model, prompts and steps: `python benchmarks/topology.py [full | quick]`.

Each row is a process of its own with one thread, runs interleaved three times: responses per CPU-second (best of three)
and the largest resident memory. `separate, adapters` has the same trainable weights as `shared` and must give the same
numbers. Memory of so small a model is that of its activations, so one more run each, of short responses, measures it
with a random Llama of 105 million weights.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import DATA, MAX_PROMPT, MICRO_TOKENS, RESPONSE, ROLLOUTS, SIZES, WARM_UP, Laps, report

from keel import runs
from keel.models.load import ModelConfig, ScratchConfig, causal_lm, load_tokenizer, save_model, scalar_model
from keel.recipes import ppo

RANK = 16
ADAPTERS = {"policy.lora.rank": RANK, "critic.init": "policy"}
ROWS: dict[str, dict[str, Any]] = {
    "separate, all weights": {},
    "separate, adapters": ADAPTERS,
    "shared": {"policy.lora.rank": RANK, "topology": "shared"},
}
WIDE = {"rollouts": 8, "minibatch": 4, "sampling.max_new_tokens": 16, "steps": 2, "micro_tokens": 256}
COMPARED = ("score/mean", "kl/reference_k3", "policy/perplexity", "value/mean", "loss/policy", "loss/value")


def widen() -> None:
    """A policy and a reward model of 105 million random weights, with the tokenizer of the others."""
    words = load_tokenizer(str(DATA / "policy"))
    shape = ScratchConfig(hidden=1024, layers=8, heads=16, intermediate=2816)
    if not (DATA / "wide-reward").exists():
        spec = ModelConfig(path=str(DATA / "policy"), init="scratch", scratch=shape)
        save_model(causal_lm(spec), words, DATA / "wide-policy")
        wide = scalar_model(ModelConfig(path=str(DATA / "wide-policy")), seed=0)
        save_model(wide, words, DATA / "wide-reward", pad_id=words.pad_token_id)


def worker(row: str, size: str) -> None:
    """One run; its line for the table."""
    wide = size == "wide"
    prefix, phases = ("wide-", 1) if wide else ("", 2 * SIZES[size].phases)
    torch.set_num_threads(1)
    laps, plain = Laps(), runs.Run.time

    def time(self: runs.Run, step: int, seconds: Any, phase: str = "train") -> None:
        plain(self, step, seconds, phase)
        laps.mark()

    runs.Run.time = time  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        cfg = ppo.PPOConfig.resolve(None, {
            "out": f"{folder}/run", "policy": str(DATA / f"{prefix}policy"),
            "reward_model": str(DATA / f"{prefix}reward"),
            "prompts": str(DATA / "prompts.jsonl"), "prompts.validation_fraction": 0.0,
            "prompts.max_length": MAX_PROMPT + RESPONSE, "steps": WARM_UP + phases,
            "rollouts": ROLLOUTS, "minibatch": ROLLOUTS // 2, "sampling.max_new_tokens": RESPONSE,
            "critic.pretrain": 0, "policy_optimizer.lr": 1e-4, "critic_optimizer.lr": 1e-4, "eval_every": 10**6,
            "save_every": 10**6, "n_samples": 0, "micro_tokens": MICRO_TOKENS, **(WIDE if wide else {}), **ROWS[row]})
        ppo.run(cfg)
        rows = [json.loads(line) for line in (Path(folder) / "run/metrics.jsonl").read_text().splitlines()]
        report(row, laps.seconds, ROLLOUTS * laps.n,
               first={name: rows[0][name] for name in COMPARED}, last={name: rows[-1][name] for name in COMPARED})


def main(size: str) -> None:
    here = Path(__file__).parent
    subprocess.run([sys.executable, str(here / "prepare.py"), size], check=True, stdout=subprocess.DEVNULL)
    widen()
    found: dict[str, list[dict[str, Any]]] = {row: [] for row in ROWS}
    for _ in range(3):
        for row in ROWS:
            found[row].append(measured(row, size))
    for row, runs_of in found.items():
        rate = max(run["items"] / run["seconds_cpu"] for run in runs_of)
        print(f"{row:24} {rate:6.2f} responses/CPU-s   peak {min(run['peak_mb'] for run in runs_of):5} MB   "
              f"peak with 105M weights {measured(row, 'wide')['peak_mb']:5} MB", flush=True)
    for when in ("first", "last"):
        one, other = found["separate, adapters"][0][when], found["shared"][0][when]
        gaps = {name: abs(one[name] - other[name]) for name in COMPARED}
        print(f"largest difference between separate (adapters) and shared, {when} phase: "
              + ", ".join(f"{name} {gap:.2g}" for name, gap in gaps.items()))


def measured(row: str, size: str) -> dict[str, Any]:
    """One run in a process of its own."""
    said = subprocess.run([sys.executable, __file__, size, row], check=True, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}).stdout
    line: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return line


if __name__ == "__main__":
    words = sys.argv[1:] or ["quick"]
    worker(words[1], words[0]) if len(words) > 1 else main(words[0])
