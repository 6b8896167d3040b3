"""The town as a laboratory: files, SFT and reward model from the shipped base model, and kinds of PPO from there."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from keel.config import PRESETS, Config, read_toml
from keel.experiments.courses import Course, read
from keel.experiments.stages import side_by_side
from keel.experiments.trial import seeds_of
from keel.models.load import ModelConfig
from keel.recipes.group_ppo import GroupPPOConfig
from keel.recipes.ppo import PPOConfig
from keel.recipes.reward_model import RewardModelConfig
from keel.recipes.sft import SFTConfig
from keel.rollout.sample import SamplingConfig
from keel.sandbox import export
from keel.sandbox.shipped import base_model_folder
from keel.train.inputs import DataConfig
from keel.train.step import OptimizerConfig

__all__ = ["GOLD", "PPOSize", "TownConfig", "data", "ppo_settings", "reward_config", "run_kinds", "sft_config",
           "with_changes", "write_town"]

GOLD = "keel.sandbox.gold:gold_score"
BATCH = 32


class TownConfig(Config):
    """The files that everything starts from."""

    quality: float = Field(0.7, ge=0, le=1, description="quality of the demonstrations; below 1 leaves room for RL")
    n_demonstrations: int = Field(1500, ge=50, description="demonstrations of middling quality for SFT, read twice")
    n_pairs: int = Field(6000, ge=100, description="labelled pairs from noisy annotators for the reward model")
    n_prompts: int = Field(4000, ge=1, description="questions that PPO asks")
    n_test: int = Field(1000, ge=20, description="prompts in each validation and test file")
    length_bias: float = Field(0.0, description="annotators' log-odds of a preference per extra token")
    holdout_domain: str | None = Field(None, description="domain that train and validation files leave out; the test "
                                       "files keep it")


class PPOSize(Config):
    """How much PPO: a model of a million weights, responses of at most a few dozen tokens."""

    phases: int = Field(40, ge=2, description="rollout phases in which the policy learns")
    rollouts: int = Field(128, ge=1, description="responses per phase")
    minibatch: int = Field(32, ge=1, description="responses per optimiser step")
    max_new_tokens: int = Field(64, ge=1, description="longest response in tokens")
    lr: float = Field(3e-4, gt=0, description="learning rate of the policy")
    critic_lr: float = Field(1e-3, gt=0, description="learning rate of the critic")
    kl_factor: float = Field(4.0, ge=0, description="multiplies the preset's price of drift: responses are a ninth as "
                             "long as the report's")
    eval_every: int = Field(20, ge=1, description="phases between evaluations on validation prompts")
    eval_prompts: int = Field(200, ge=1, description="validation prompts answered in each evaluation")


def write_town(cfg: TownConfig, folder: Path) -> None:
    """Export the town of seed 0, which the base model knows, unless it is there already.

    Validation files leave the held-out domain out too: PPO is examined on what it may learn.
    """
    if folder.exists():
        return
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    export.run(export.SandboxExportConfig(
        out=beside, seed=0, n_prompts=cfg.n_prompts, n_demonstrations=cfg.n_demonstrations, n_pairs=cfg.n_pairs,
        n_heldout=cfg.n_test, quality=cfg.quality, length_bias=cfg.length_bias,
        holdout_domain=cfg.holdout_domain))
    for file in sorted(beside.glob("*-validation.jsonl")):
        without(file, cfg.holdout_domain)
    beside.rename(folder)


def without(file: Path, domain: str | None) -> None:
    """Leave the lines of a domain out: the export holds it out of training files alone."""
    kept = [line for line in file.read_text().splitlines(keepends=True) if json.loads(line)["meta"]["domain"] != domain]
    file.write_text("".join(kept))


def data(town: Path, kind: str) -> DataConfig:
    """A file of the town with its validation file."""
    held_out = str(town / f"{kind}-validation.jsonl")
    return DataConfig(path=str(town / f"{kind}.jsonl"), validation=held_out, max_length=256)


def sft_config(cfg: TownConfig, town: Path, out: Path, seed: int) -> SFTConfig:
    """Two passes over the demonstrations."""
    return SFTConfig(
        out=out, model=ModelConfig(path=str(base_model_folder())), seed=seed, batch=BATCH,
        steps=2 * cfg.n_demonstrations // BATCH, data=data(town, "demonstrations"), eval_every=25,
        sampling=SamplingConfig(max_new_tokens=64), optimizer=OptimizerConfig(lr=5e-4))


def reward_config(cfg: TownConfig, town: Path, out: Path, seed: int) -> RewardModelConfig:
    """From the base model, as in the report: one pass over the pairs."""
    return RewardModelConfig(
        out=out, model=ModelConfig(path=str(base_model_folder())), seed=seed, steps=cfg.n_pairs // BATCH, batch=BATCH,
        data=data(town, "pairs"), center_coef=0.01, eval_every=50, optimizer=OptimizerConfig(lr=5e-4))


def ppo_settings(cfg: PPOSize, town: Path, out: Path, preset: str, seed: int) -> dict[str, Any]:
    """A preset's switches with exact sampling, sized for the town; SFT and reward model lie beside `out`."""
    switches = read_toml(PRESETS / f"{preset}.toml")
    return with_changes(switches, {
        "out": out, "policy": {"path": str(out.parent / "sft/model")}, "seed": seed, "gold": GOLD,
        "reward_model": {"path": str(out.parent / "reward_model/model")}, "prompts": data(town, "prompts"),
        "steps": cfg.phases, "rollouts": cfg.rollouts, "minibatch": cfg.minibatch,
        "sampling": SamplingConfig(max_new_tokens=cfg.max_new_tokens),
        "kl": {"coef": cfg.kl_factor * switches["kl"]["coef"]},
        "critic": {"pretrain": min(switches["critic"]["pretrain"], 3)},
        "ptx": data(town, "demonstrations") if switches["ptx_coef"] else None, "ptx_batch": max(1, cfg.minibatch // 2),
        "policy_optimizer": OptimizerConfig(lr=cfg.lr, schedule="constant"),
        "critic_optimizer": OptimizerConfig(lr=cfg.critic_lr, schedule="constant"),
        "eval_every": cfg.eval_every, "eval_prompts": cfg.eval_prompts})


def with_changes(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some of them replaced; a table that is given replaces only the fields that it names."""
    return {**settings, **{name: settings[name] | value if isinstance(value, dict) and isinstance(
        settings.get(name), dict) else value for name, value in changes.items()}}


def run_kinds(cfg: Any, kinds: Mapping[str, Mapping[str, Any]], *, n_parts: int = 2) -> dict[str, list[Course]]:
    """SFT and reward model of every seed, then from both every kind of PPO; the courses of each kind, seed by seed.

    Args:
        cfg: an experiment's settings: out, seeds, first_seed, jobs, town, ppo.
        kinds: by the name of its folder, the `preset` it starts from and the settings that differ; with `groups` it is
            group PPO.
        n_parts: of the experiment, as its titles count them; these are the first two.
    """
    again = "give the same command again: it goes on where it was"
    town, starts, trials = cfg.out / "town", dict[str, Config](), dict[str, Config]()
    for seed in seeds_of(cfg):
        home = cfg.out / f"seed-{seed}"
        starts |= {f"seed-{seed}/sft": sft_config(cfg.town, town, home / "sft", seed),
                   f"seed-{seed}/reward_model": reward_config(cfg.town, town, home / "reward_model", seed)}
        for kind, changes in kinds.items():
            settings = ppo_settings(cfg.ppo, town, home / kind, changes["preset"], seed)
            rest = {name: value for name, value in changes.items() if name != "preset"}
            recipe = GroupPPOConfig if "groups" in changes else PPOConfig
            trials[f"seed-{seed}/{kind}"] = recipe.checked(with_changes(settings, rest))
    write_town(cfg.town, town)
    side_by_side(cfg.out, f"1/{n_parts}  SFT and reward model, {cfg.seeds} seeds", starts, again=again, jobs=cfg.jobs,
                 tidy=True)
    side_by_side(cfg.out, f"2/{n_parts}  PPO: {', '.join(kinds)}", trials, again=again, jobs=cfg.jobs,
                 tidy=True)
    return {kind: [read(cfg.out / f"seed-{seed}" / kind) for seed in seeds_of(cfg)] for kind in kinds}
