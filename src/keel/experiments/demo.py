"""`keel demo`: noisy preferences to an aligned policy and a report, in the town whose true reward is known."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from keel.config import PRESETS, Config, read_toml
from keel.errors import RunError
from keel.models.load import ModelConfig
from keel.progress import bar
from keel.recipes import generate, reward_model, sft
from keel.recipes.ppo import PPOConfig
from keel.report import ReportConfig
from keel.report import run as make_report
from keel.rollout.respond import summary
from keel.rollout.sample import SamplingConfig
from keel.runs import write_json
from keel.sandbox import export
from keel.sandbox.shipped import base_model_folder
from keel.train.inputs import DataConfig
from keel.train.step import OptimizerConfig

__all__ = ["DemoConfig", "run"]

GOLD = "keel.sandbox.gold:gold_score"
SAMPLING = SamplingConfig(max_new_tokens=64)


class DemoConfig(Config):
    """Everything `keel demo` reads."""

    out: Path = Field(Path("runs/demo"), description="folder to make")
    seed: int = Field(0, ge=0, description="fixes data, training and samples")
    quality: float = Field(0.7, ge=0, le=1, description="quality of the demonstrations; below 1 leaves room for RL")
    n_demonstrations: int = Field(1500, ge=50, description="demonstrations of middling quality for SFT")
    n_pairs: int = Field(6000, ge=100, description="labelled pairs from noisy annotators for the reward model")
    ppo_steps: int = Field(40, ge=2, description="rollout phases of PPO")
    n_test: int = Field(1000, ge=20, description="test prompts on which every policy is judged")


def run(cfg: DemoConfig) -> Path:
    """Run every stage, judge every policy by the gold score, write the report; returns its path."""
    began, out = time.monotonic(), cfg.out
    if out.exists() and any(out.iterdir()):
        raise RunError("the demo's folder is not empty", where=str(out),
                       remedy="Choose another one with --out, or remove it.")
    town = out / "town"
    export.run(export.SandboxExportConfig(out=town, seed=0, n_demonstrations=cfg.n_demonstrations, n_pairs=cfg.n_pairs,
                                          n_heldout=cfg.n_test, quality=cfg.quality))
    side_by_side(cfg, "1/3  SFT on demonstrations; beside it a reward model on pairs labelled by noisy annotators", {
        "sft": sft_config(cfg, town), "reward_model": reward_config(cfg, town)})
    side_by_side(cfg, "2/3  PPO-max; beside it vanilla PPO from the same start", {
        kind: ppo_config(cfg, town, kind) for kind in ("ppo_max_report", "vanilla_ppo")})
    models = {name: out / name / "model" for name in ("sft", "vanilla_ppo", "ppo_max_report")}
    models = {"base": base_model_folder()} | models
    side_by_side(cfg, "3/3  Judging every policy by the gold score on test prompts", {
        f"judged/{name}": judge_config(cfg, town, name, model) for name, model in models.items()})
    gold = [judged(out / "judged" / name, name) for name in models]
    write_json(out / "demo.json", {"gold": gold, "seconds": round(time.monotonic() - began, 1), "stages": [
        {"name": name, "run": name} for name in ("sft", "reward_model", "ppo_max_report", "vanilla_ppo")]})
    report = out / "report.html"
    make_report(ReportConfig(runs=(out,), out=report))
    print(closing(gold, out, report, time.monotonic() - began))
    return report


def sft_config(cfg: DemoConfig, town: Path) -> sft.SFTConfig:
    """A few passes over the demonstrations."""
    return sft.SFTConfig(
        out=cfg.out / "sft", model=ModelConfig(path=str(base_model_folder())), seed=cfg.seed,
        steps=2 * cfg.n_demonstrations // 32, data=data(town, "demonstrations"), eval_every=25, sampling=SAMPLING,
        optimizer=OptimizerConfig(lr=5e-4))


def reward_config(cfg: DemoConfig, town: Path) -> reward_model.RewardModelConfig:
    """From the base model, as in the report: one pass over the pairs."""
    return reward_model.RewardModelConfig(
        out=cfg.out / "reward_model", model=ModelConfig(path=str(base_model_folder())), seed=cfg.seed,
        steps=cfg.n_pairs // 32, data=data(town, "pairs"), center_coef=0.01, eval_every=50,
        optimizer=OptimizerConfig(lr=5e-4))


def ppo_config(cfg: DemoConfig, town: Path, preset: str) -> PPOConfig:
    """A preset's switches, with exact sampling and learning rates for a model of a million weights."""
    switches = read_toml(PRESETS / f"{preset}.toml")
    rate = OptimizerConfig(lr=3e-4, schedule="constant")
    return PPOConfig.checked(switches | {
        "out": cfg.out / preset, "policy": {"path": str(cfg.out / "sft/model")}, "seed": cfg.seed, "gold": GOLD,
        # The highest price that the report tries: responses are a ninth as long as its own.
        "kl": switches["kl"] | {"coef": 4 * switches["kl"]["coef"]},
        "reward_model": {"path": str(cfg.out / "reward_model/model")}, "steps": cfg.ppo_steps, "sampling": SAMPLING,
        "prompts": data(town, "prompts"), "eval_every": 20,
        "critic": switches["critic"] | {"pretrain": min(switches["critic"]["pretrain"], 3)},
        "ptx": data(town, "demonstrations") if switches["ptx_coef"] else None,
        "policy_optimizer": rate, "critic_optimizer": rate.model_copy(update={"lr": 1e-3})})


def data(town: Path, kind: str) -> DataConfig:
    """A file of the town with its validation file."""
    held_out = str(town / f"{kind}-validation.jsonl")
    return DataConfig(path=str(town / f"{kind}.jsonl"), validation=held_out, max_length=256)


def judge_config(cfg: DemoConfig, town: Path, name: str, model: Path) -> generate.GenerateConfig:
    """Answers to the test prompts, with the same random streams for every policy."""
    return generate.GenerateConfig(
        out=cfg.out / "judged" / name, model=ModelConfig(path=str(model)), sampling=SAMPLING, gold=GOLD, seed=cfg.seed,
        prompts=DataConfig(path=str(town / "prompts-test.jsonl"), max_length=256))


def side_by_side(cfg: DemoConfig, title: str, configs: dict[str, Any]) -> None:
    """Runs in processes of one thread each, two at a time: models this small gain nothing from a second thread.

    Raises:
        RunError: one of them failed; its log says why.
    """
    print(title, file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `finally` ends the stages as well
    waiting, running = list(configs), dict[str, subprocess.Popen[bytes]]()
    with bar("", sum(expected(config) for config in configs.values())) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < 2:
                    name = waiting.pop(0)
                    running[name] = started(cfg, name, configs[name])
                time.sleep(0.2)
                for name in [name for name, worker in running.items() if worker.poll() is not None]:
                    finished(cfg, name, running.pop(name))
                progress.reach(sum(trained(config.out) for config in configs.values()))
        finally:
            for worker in running.values():
                worker.terminate()
                worker.wait()


def started(cfg: DemoConfig, name: str, config: Config) -> subprocess.Popen[bytes]:
    """One stage as a user would run it: `keel COMMAND file.toml`."""
    command = {PPOConfig: "ppo", sft.SFTConfig: "sft", reward_model.RewardModelConfig: "reward-model",
               generate.GenerateConfig: "generate"}[type(config)]  # type: ignore[index]
    folder = cfg.out / "stages"
    file = folder / f"{name.replace('/', '-')}.toml"
    folder.mkdir(exist_ok=True)
    file.write_text(config.to_toml())
    with file.with_suffix(".log").open("w") as log:
        return subprocess.Popen([sys.executable, "-m", "keel", command, str(file)], stdout=log, stderr=log,
                                env=os.environ | {"OMP_NUM_THREADS": "1"})


def finished(cfg: DemoConfig, name: str, worker: subprocess.Popen[bytes]) -> None:
    """Pass on what went wrong in a stage."""
    if worker.returncode:
        log = cfg.out / "stages" / f"{name.replace('/', '-')}.log"
        said = log.read_text().strip()[-300:]
        raise RunError(f"{name} ended with exit code {worker.returncode}: {said}", where=str(log),
                       remedy="Mend what it says, then run the demo again in another folder.")


def expected(config: Any) -> int:
    """Log lines that a stage will write while it trains."""
    if isinstance(config, PPOConfig):
        return config.steps
    if isinstance(config, generate.GenerateConfig):
        return 0
    return getattr(config, "steps", None) or 0


def trained(folder: Path) -> int:
    """How many training steps a run has logged."""
    file = folder / "metrics.jsonl"
    return file.read_text().count('"phase": "train"') if file.exists() else 0


def judged(folder: Path, name: str) -> dict[str, Any]:
    """Gold score of a policy on the test prompts, over all and by domain, with 95% intervals."""
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    domains: dict[str, list[float]] = {}
    for row in rows:
        domains.setdefault(row["domain"], []).append(row["gold"])
    by_domain = {domain: summary(torch.tensor(golds), 0, domain) for domain, golds in sorted(domains.items())}
    return {"stage": name, **summary(torch.tensor([row["gold"] for row in rows]), 0, "gold"), "domains": by_domain}


def closing(gold: list[dict[str, Any]], out: Path, report: Path, seconds: float) -> str:
    """The last screen."""
    lines = ["", f"Gold score on {gold[0]['n']} test prompts (true reward; 95% interval):"]
    lines += [f"  {row['stage']:<12} {row['mean']:+.3f}  [{row['low']:+.3f}, {row['high']:+.3f}]" for row in gold]
    return "\n".join([
        *lines, "", f"Report: {report}   ({seconds:.0f} s in all)", "Next:",
        f"  keel chat --model {out / 'ppo_max_report/model'}            talk to the result",
        f"  keel data show {out / 'town/pairs.jsonl'}     look at the preferences",
        "  keel ppo --help                               every switch of PPO-max",
        "  keel reward-model --data.path YOUR.jsonl ...  the same on your own data"])
