"""Run recipes on tiny models, kill them, and read what they wrote."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import tiny

from keel.models.load import ModelConfig, ScratchConfig, load_tokenizer, save_model, scalar_model
from keel.recipes.ppo import PPOConfig
from keel.recipes.reward_model import RewardModelConfig
from keel.recipes.sft import SFTConfig
from keel.rollout.sample import SamplingConfig
from keel.train.inputs import DataConfig
from keel.train.step import OptimizerConfig

FAST = OptimizerConfig(lr=5e-3, schedule="constant", warmup_fraction=0.0)


def logged(folder: Path, name: str = "metrics.jsonl", phase: str | None = "train") -> list[dict]:
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [row for row in rows if phase is None or row.get("phase") == phase]


def sft_config(tmp: Path, **changes) -> SFTConfig:
    settings = {
        "out": tmp / "sft",
        "model": ModelConfig(path=str(_model(tmp))),
        "batch": 6,
        "steps": 4,
        "optimizer": FAST,
        "data": DataConfig(path=str(_file(tmp, "demonstrations")), validation_fraction=0.3, max_length=64),
        "eval_every": 2,
        "save_every": 2,
        "n_samples": 2,
        "sampling": SamplingConfig(max_new_tokens=6),
    }
    return SFTConfig(**(settings | changes))


def reward_config(tmp: Path, **changes) -> RewardModelConfig:
    settings = {
        "out": tmp / "rm",
        "model": ModelConfig(path=str(_model(tmp))),
        "batch": 6,
        "steps": 4,
        "optimizer": FAST,
        "data": DataConfig(path=str(_file(tmp, "pairs")), validation_fraction=0.3, max_length=64),
        "eval_every": 2,
        "save_every": 2,
    }
    return RewardModelConfig(**(settings | changes))


def ppo_config(tmp: Path, **changes) -> PPOConfig:
    settings = {
        "out": tmp / "ppo",
        "policy": ModelConfig(path=str(_model(tmp))),
        "reward_model": ModelConfig(path=str(reward(tmp))),
        "prompts": DataConfig(path=str(_file(tmp, "prompts")), validation_fraction=0.3, max_length=64),
        "steps": 3,
        "rollouts": 8,
        "minibatch": 4,
        "critic": {"pretrain": 1, "pretrain_until": 1.0} | changes.pop("critic", {}),
        "sampling": SamplingConfig(max_new_tokens=8, slots=4),
        "policy_optimizer": FAST,
        "critic_optimizer": FAST,
        "eval_every": 2,
        "save_every": 1,
        "eval_prompts": 5,
        "n_samples": 3,
        "gold": "tiny:count_yes",
    }
    return PPOConfig(**(settings | changes))


def reward(tmp: Path) -> Path:
    """A random reward model of the policy's family."""
    folder = tmp / "reward"
    if not folder.exists():
        source = str(_model(tmp))
        save_model(scalar_model(ModelConfig(path=source), seed=5), load_tokenizer(source), folder, pad_id=0)
    return folder


def scratch(tmp: Path) -> ModelConfig:
    shape = ScratchConfig(hidden=16, layers=1, heads=2, intermediate=24, max_positions=64)
    return ModelConfig(path=str(_model(tmp)), init="scratch", scratch=shape)


def killed_and_resumed(command: str, config, moments: list[float]) -> None:
    """Run in a process of its own; SIGKILL it `moment` seconds after its first log line, resume, and so on."""
    file = config.out.with_suffix(".toml")
    file.write_text(config.to_toml())
    begin = [command, str(file)]
    for moment in moments:
        worker = started(begin)
        _wait_for_a_checkpoint(config.out, worker)
        time.sleep(moment)
        worker.kill()
        worker.communicate()
        begin = [command, "--resume", str(config.out)]
    worker = started(begin)
    said = worker.communicate(timeout=120)[1].decode()
    assert worker.returncode == 0, said


def started(arguments: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "keel", *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def same_results(one: Path, other: Path) -> None:
    """Metrics, samples and final weights are equal byte for byte."""
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        if (one / name).exists() or (other / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def _wait_for_a_checkpoint(run: Path, worker: subprocess.Popen) -> None:
    """Until there is a newer one than when we began to wait, or the run has ended."""
    before, limit = _checkpoints(run), time.monotonic() + 60
    while _checkpoints(run) == before and worker.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)


def _checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step-*.pt"))


def _model(tmp: Path) -> Path:
    return tmp / "base" if (tmp / "base").exists() else tiny.llama(tmp / "base")


def _file(tmp: Path, kind: str) -> Path:
    path = tmp / f"{kind}.jsonl"
    return path if path.exists() else getattr(tiny, kind)(path)
