"""`keel demo`: noisy preferences to an aligned policy and a report, in the town whose true reward is known."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from keel.config import Config
from keel.errors import RunError
from keel.experiments.stages import side_by_side
from keel.experiments.town import (
    GOLD,
    PPOSize,
    TownConfig,
    ppo_settings,
    reward_config,
    sft_config,
    write_town,
)
from keel.models.load import ModelConfig
from keel.recipes import generate
from keel.recipes.ppo import PPOConfig
from keel.report import ReportConfig
from keel.report import run as make_report
from keel.rollout.respond import summary
from keel.rollout.sample import SamplingConfig
from keel.runs import write_json
from keel.sandbox.shipped import base_model_folder
from keel.train.inputs import DataConfig

__all__ = ["DemoConfig", "run"]

AGAIN = "run the demo again in another folder"


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
    town, files = out / "town", TownConfig(quality=cfg.quality, n_demonstrations=cfg.n_demonstrations,
                                           n_pairs=cfg.n_pairs, n_test=cfg.n_test)
    out.mkdir(parents=True, exist_ok=True)
    write_town(files, town)
    side_by_side(out, "1/3  SFT on demonstrations; beside it a reward model on pairs labelled by noisy annotators", {
        "sft": sft_config(files, town, out / "sft", cfg.seed),
        "reward_model": reward_config(files, town, out / "reward_model", cfg.seed)}, again=AGAIN)
    size = PPOSize(phases=cfg.ppo_steps)
    side_by_side(out, "2/3  PPO-max; beside it vanilla PPO from the same start", {
        kind: PPOConfig.checked(ppo_settings(size, town, out / kind, kind, cfg.seed))
        for kind in ("ppo_max_report", "vanilla_ppo")}, again=AGAIN)
    models = {name: out / name / "model" for name in ("sft", "vanilla_ppo", "ppo_max_report")}
    models = {"base": base_model_folder()} | models
    side_by_side(out, "3/3  Judging every policy by the gold score on test prompts", {
        f"judged/{name}": judge_config(cfg, town, name, model) for name, model in models.items()},
        again=AGAIN)
    gold = [judged(out / "judged" / name, name) for name in models]
    write_json(out / "demo.json", {"gold": gold, "seconds": round(time.monotonic() - began, 1), "stages": [
        {"name": name, "run": name} for name in ("sft", "reward_model", "ppo_max_report", "vanilla_ppo")]})
    report = out / "report.html"
    make_report(ReportConfig(runs=(out,), out=report))
    print(closing(gold, out, report, time.monotonic() - began))
    return report


def judge_config(cfg: DemoConfig, town: Path, name: str, model: Path) -> generate.GenerateConfig:
    """Answers to the test prompts, with the same random streams for every policy."""
    return generate.GenerateConfig(
        out=cfg.out / "judged" / name, model=ModelConfig(path=str(model)), gold=GOLD, seed=cfg.seed,
        sampling=SamplingConfig(max_new_tokens=64),
        prompts=DataConfig(path=str(town / "prompts-test.jsonl"), max_length=256))


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
