"""Kill a PPO run ten times with SIGKILL, resume it each time, and compare it with the run that nobody disturbed.

    python benchmarks/kill_resume.py [--seed 0] [--kills 10]

The policy is ../shared/models/stories260K where it exists, else a tiny random Llama. Final weights, metrics.jsonl and
samples.jsonl must be equal bit for bit; exit status 1 if they are not.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, SHARED
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from keel.models.load import ModelConfig, load_tokenizer, save_model, scalar_model

COMPARED = ("metrics.jsonl", "samples.jsonl", "model/model.safetensors")
STEPS = 32
WORDS = "once upon a time there was little girl who saw big dog and they ran".split()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0, help="fixes the moments")
    parser.add_argument("--kills", type=int, default=10)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        settings = prepared(tmp)
        whole, broken = tmp / "whole", tmp / "broken"
        start_up, work = undisturbed(settings, whole)
        print(f"undisturbed: {start_up:.1f} s until the first line of its log, then {work:.1f} s for {STEPS} phases of "
              f"PPO on {settings['policy.path'].name}", flush=True)
        kills = disturbed(settings, broken, asked, work / STEPS)
        print(f"killed {kills} times, then finished")
        verdict = [compared(whole / name, broken / name) for name in COMPARED]
    print("equal bit for bit" if all(verdict) else "DIFFERENT")
    return 0 if all(verdict) else 1


def undisturbed(settings: dict[str, Any], out: Path) -> tuple[float, float]:
    """Seconds until the run logs something, and from there to its end."""
    start, process = time.monotonic(), started(begin(settings, out))
    while not (out / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    logged = time.monotonic()
    said = process.communicate()[1].decode()
    if process.returncode:
        raise SystemExit(f"the run failed ({process.returncode}): {said}")
    return logged - start, time.monotonic() - logged


def disturbed(settings: dict[str, Any], out: Path, asked: argparse.Namespace, phase: float) -> int:
    """The same run, killed at random moments: a third of them in the start-up of a process, the others after its
    first new line of the log and up to two phases on. Counted in lines, so that a busy machine changes nothing."""
    draw, words = random.Random(asked.seed), begin(settings, out)
    for kill in range(1, asked.kills + 1):
        start_up, wait = draw.random() < 1 / 3, draw.uniform(0, 2 * phase)
        process, began = started(words), time.monotonic()
        before = written(out)
        while not start_up and process.poll() is None and written(out) == before:
            time.sleep(0.005)
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        else:
            raise SystemExit(f"the run ended ({process.returncode}) before kill {kill}: "
                             f"{process.communicate()[1].decode()}")
        print(f"  kill {kill:2d}: SIGKILL after {time.monotonic() - began:5.2f} s; {state(out)}", flush=True)
        # A run that never wrote its settings has nothing to resume: it begins again.
        words = ["ppo", "--resume", str(out)] if (out / "environment.json").exists() else begin(settings, out)
    finished(words)
    return asked.kills


def written(out: Path) -> int:
    """Bytes of the log."""
    file = out / "metrics.jsonl"
    return file.stat().st_size if file.exists() else 0


def state(out: Path) -> str:
    """What the dead process left."""
    metrics = out / "metrics.jsonl"
    lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    saved = sorted(path.stem for path in (out / "checkpoints").glob("step-*.pt"))
    half = " and half a checkpoint" if (out / "checkpoints" / ".new").exists() else ""
    return f"{lines} log lines, {saved[-1] if saved else 'no checkpoint'}{half}"


def compared(one: Path, other: Path) -> bool:
    equal = one.read_bytes() == other.read_bytes()
    digest = hashlib.sha256(other.read_bytes()).hexdigest()[:16]
    print(f"  {one.relative_to(one.parents[1] if one.parent.name == 'model' else one.parent)}: "
          f"{'equal' if equal else 'DIFFERENT'} ({other.stat().st_size} bytes, sha256 {digest}...)")
    return equal


def begin(settings: dict[str, Any], out: Path) -> list[str]:
    return ["ppo", *(word for name, value in settings.items() for word in (f"--{name}", str(value))), "--out", str(out)]


def started(words: list[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "keel", *words], env=environment, cwd=ROOT,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(words: list[str]) -> None:
    process = started(words)
    said = process.communicate()[1].decode()
    if process.returncode:
        raise SystemExit(f"the run failed ({process.returncode}): {said}")


def prepared(tmp: Path) -> dict[str, Any]:
    """Models, prompts, settings."""
    policy = SHARED / "models" / "stories260K"
    if not policy.exists():
        source = ROOT / "src" / "keel" / "sandbox" / "base_model"
        tokenizer = AutoTokenizer.from_pretrained(source)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=256, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        policy = tmp / "policy"
        LlamaForCausalLM(config).save_pretrained(policy)
        tokenizer.save_pretrained(policy)
    reward = tmp / "reward"
    save_model(scalar_model(ModelConfig(path=str(policy)), seed=5), load_tokenizer(str(policy)), reward, pad_id=0)
    draw = random.Random(1)
    rows = [{"id": f"p{i}", "prompt": " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 8)))}
            for i in range(64)]
    (tmp / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "policy.path": policy, "reward_model.path": reward, "prompts.path": tmp / "prompts.jsonl",
        "prompts.as_text": "true", "prompts.max_length": 96, "steps": STEPS - 2, "critic.pretrain": 2,
        "critic.pretrain_until": 1.0, "rollouts": 16, "minibatch": 8, "passes": 2, "sampling.max_new_tokens": 32,
        "sampling.top_p": 0.95, "policy_optimizer.lr": 1e-4, "critic_optimizer.lr": 1e-3, "eval_every": 4,
        "eval_prompts": 8, "n_samples": 4, "save_every": 1}


if __name__ == "__main__":
    sys.exit(main())
