"""`keel demo`: noisy preferences to an aligned policy and a report, in the town whose true reward is known."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from keel.config import Config
from keel.errors import RunError
from keel.models.load import ModelConfig
from keel.progress import bar
from keel.recipes import generate, reward_model, sft
from keel.recipes.ppo import PPOConfig
from keel.report import ReportConfig
from keel.report import run as make_report
from keel.rollout.sample import SamplingConfig
from keel.runs import write_json
from keel.sandbox import export
from keel.sandbox.shipped import base_model_folder
from keel.train.inputs import DataConfig
from keel.train.step import OptimizerConfig

__all__ = ["DemoConfig", "run"]

GOLD = "keel.sandbox.gold:gold_score"
SAMPLING = SamplingConfig(max_new_tokens=64)
PPO_MAX_LR = 1e-4


class DemoConfig(Config):
    """Everything `keel demo` reads."""

    out: Path = Field(Path("runs/demo"), description="folder to make")
    seed: int = Field(0, ge=0, description="fixes data, training and samples")
    n_demonstrations: int = Field(1500, ge=50, description="demonstrations of middling quality for SFT")
    n_pairs: int = Field(4000, ge=100, description="labelled pairs from noisy annotators for the reward model")
    ppo_steps: int = Field(40, ge=2, description="rollout phases of PPO")
    n_test: int = Field(500, ge=20, description="test prompts on which every policy is judged")


@dataclass(frozen=True)
class Stage:
    """A policy on the way, and the folder of the model that answers."""

    name: str
    model: Path


def run(cfg: DemoConfig) -> Path:
    """Run every stage, judge every policy by the gold score, write the report; returns its path."""
    began, out = time.monotonic(), cfg.out
    if out.exists() and any(out.iterdir()):
        raise RunError("the demo's folder is not empty", where=str(out),
                       remedy="Choose another one with --out, or remove it.")
    town = out / "town"
    export.run(export.SandboxExportConfig(out=town, n_demonstrations=cfg.n_demonstrations, n_pairs=cfg.n_pairs,
                                          n_heldout=cfg.n_test, quality=0.7))
    say("1/4  SFT: the base model learns to answer from demonstrations of middling quality")
    sft.run(sft_config(cfg, town))
    say("2/4  Reward model: Bradley-Terry on pairs labelled by noisy annotators")
    reward_model.run(reward_config(cfg, town))
    say("3/4  PPO-max, and vanilla PPO from the same start beside it")
    run_both(cfg, {"ppo_max": ppo_config(cfg, town, "ppo_max"), "vanilla_ppo": ppo_config(cfg, town, "vanilla_ppo")})
    say("4/4  Judging every policy by the gold score on test prompts")
    stages = [Stage("base", base_model_folder()), Stage("sft", out / "sft/model"), Stage("vanilla_ppo", out / "vanilla_ppo/model"),
              Stage("ppo_max", out / "ppo_max/model")]
    gold = [judge(cfg, town, stage) for stage in stages]
    write_json(out / "demo.json", {"gold": gold, "seconds": round(time.monotonic() - began, 1), "stages": [
        {"name": name, "run": name} for name in ("sft", "reward_model", "ppo_max", "vanilla_ppo")]})
    report = out / "report.html"
    make_report(ReportConfig(runs=(out,), out=report))
    print(closing(gold, out, report, time.monotonic() - began))
    return report


def sft_config(cfg: DemoConfig, town: Path) -> sft.SFTConfig:
    """A few passes over the demonstrations."""
    return sft.SFTConfig(
        out=cfg.out / "sft", model=ModelConfig(path=str(base_model_folder())), seed=cfg.seed, epochs=2, batch=32,
        data=data(town, "demonstrations"), optimizer=OptimizerConfig(lr=5e-4), sampling=SAMPLING, eval_every=25)


def reward_config(cfg: DemoConfig, town: Path) -> reward_model.RewardModelConfig:
    """From the SFT model, one pass over the pairs."""
    return reward_model.RewardModelConfig(
        out=cfg.out / "reward_model", model=ModelConfig(path=str(cfg.out / "sft/model")), seed=cfg.seed, epochs=2,
        batch=32, data=data(town, "pairs"), optimizer=OptimizerConfig(lr=5e-4), center_coef=0.01, eval_every=50)


def ppo_config(cfg: DemoConfig, town: Path, kind: str) -> PPOConfig:
    """PPO-max or its control: the presets' switches, with learning rates for a model of a million weights."""
    base = PPOConfig(
        out=cfg.out / kind, policy=ModelConfig(path=str(cfg.out / "sft/model")), seed=cfg.seed,
        reward_model=ModelConfig(path=str(cfg.out / "reward_model/model")), prompts=data(town, "prompts"), gold=GOLD,
        steps=cfg.ppo_steps, sampling=SAMPLING, critic_pretrain=3, eval_every=20,
        policy_optimizer=OptimizerConfig(lr=PPO_MAX_LR, schedule="constant"),
        critic_optimizer=OptimizerConfig(lr=3 * PPO_MAX_LR, schedule="constant"),
        ptx=data(town, "demonstrations"))
    if kind == "ppo_max":
        return base
    return base.model_copy(update={
        "score_center": False, "score_scale": False, "score_clip": None, "kl_coef": 0.0, "value_clip": None,
        "critic_pretrain": 0, "ptx": None})


def data(town: Path, kind: str) -> DataConfig:
    """A file of the town with its validation file."""
    return DataConfig(path=str(town / f"{kind}.jsonl"), validation=str(town / f"{kind}-validation.jsonl"), max_length=256)


def run_both(cfg: DemoConfig, configs: dict[str, PPOConfig]) -> None:
    """Two runs side by side, one thread each: on two cores that is faster than one after the other with two threads.

    Raises:
        RunError: one of them failed; its log says why.
    """
    workers = {}
    for name, config in configs.items():
        file, log = cfg.out / f"{name}.toml", (cfg.out / f"{name}.log").open("w")
        file.write_text(config.to_toml())
        workers[name] = subprocess.Popen([sys.executable, "-m", "keel", "ppo", str(file)], stdout=log, stderr=log,
                                         env=os.environ | {"OMP_NUM_THREADS": "1"})
    total = sum(config.steps for config in configs.values())
    try:
        with bar("ppo x 2", total) as progress:
            told = 0
            while any(worker.poll() is None for worker in workers.values()):
                time.sleep(0.5)
                rows = sum(trained(config.out) for config in configs.values())
                progress.advance(n=rows - told)
                told = rows
    finally:
        for worker in workers.values():
            worker.terminate()
            worker.wait()
    for name, worker in workers.items():
        if worker.returncode:
            last = (cfg.out / f"{name}.log").read_text().strip().splitlines()[-3:]
            raise RunError(f"{name} ended with exit code {worker.returncode}: {' / '.join(last)}", where=str(cfg.out),
                           remedy=f"Read {cfg.out / f'{name}.log'}; resume with: keel ppo --resume {cfg.out / name}")


def trained(folder: Path) -> int:
    """How many PPO phases a run has logged."""
    file = folder / "metrics.jsonl"
    return sum('"phase": "train"' in line for line in file.read_text().splitlines()) if file.exists() else 0


def judge(cfg: DemoConfig, town: Path, stage: Stage) -> dict[str, Any]:
    """Gold score of a policy on the test prompts, over all and by domain, with 95% intervals."""
    result = generate.run(generate.GenerateConfig(
        out=cfg.out / "judged" / stage.name, model=ModelConfig(path=str(stage.model)), sampling=SAMPLING, gold=GOLD,
        seed=cfg.seed, prompts=DataConfig(path=str(town / "prompts-test.jsonl"), max_length=256)))
    rows = [json.loads(line) for line in (result.folder / "samples.jsonl").read_text().splitlines()]
    domains: dict[str, list[float]] = {}
    for row in rows:
        domains.setdefault(row["domain"], []).append(row["gold"])
    means = {name: {"mean": sum(golds) / len(golds), "n": len(golds)} for name, golds in sorted(domains.items())}
    return {"stage": stage.name, **result.values["gold"], "domains": means}


def closing(gold: list[dict[str, Any]], out: Path, report: Path, seconds: float) -> str:
    """The last screen."""
    lines = ["", f"Gold score on {gold[0]['n']} test prompts (true reward; 95% interval):"]
    lines += [f"  {row['stage']:<12} {row['mean']:+.3f}  [{row['low']:+.3f}, {row['high']:+.3f}]" for row in gold]
    return "\n".join([
        *lines, "", f"Report: {report}   ({seconds:.0f} s in all)", "Next:",
        f"  keel chat --model {out / 'ppo_max/model'}            talk to the result",
        f"  keel data show {out / 'town/pairs.jsonl'}     look at the preferences",
        "  keel ppo --help                               every switch of PPO-max",
        "  keel reward-model --data.path YOUR.jsonl ...  the same on your own data"])


def say(text: str) -> None:
    """One line on the console for each stage."""
    print(text, file=sys.stderr, flush=True)
