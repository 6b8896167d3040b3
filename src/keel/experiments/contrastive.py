"""`keel experiment contrastive`: do contrastive terms sharpen a reward model, in and out of distribution?

Source: Wang et al. 2024, arXiv:2401.06080, section 3.1. The same pairs of the town with a share of wrong labels, five
ways to learn from them; examined on right labels, in the wordings of training and in others that nobody trained on.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from keel import runs
from keel.config import Config
from keel.experiments.pictures import draw_effects
from keel.experiments.planted import planted_pairs, write_pairs
from keel.experiments.stages import side_by_side
from keel.experiments.trial import Claim, conclude, judged, markdown, opened, seeds_of, with_interval
from keel.models.load import ModelConfig
from keel.recipes.reward_model import ExamConfig, RewardModelConfig
from keel.sandbox.shipped import base_model_folder
from keel.train.contrast import ContrastiveConfig
from keel.train.inputs import DataConfig
from keel.train.step import OptimizerConfig

__all__ = ["ContrastiveTrialConfig", "claims", "run"]

TERMS: Mapping[str, ContrastiveConfig | None] = {
    "plain": None,
    "simcse_pairs": ContrastiveConfig(kind="simcse", on="pairs"),
    "simcse_differences": ContrastiveConfig(kind="simcse", on="differences"),
    "swav_pairs": ContrastiveConfig(kind="swav", on="pairs"),
    "swav_differences": ContrastiveConfig(kind="swav", on="differences"),
}
"""The report's four, with its weights, prototypes and dropout, and plain training."""
NAMES = {"plain": "plain", "simcse_pairs": "SimCSE on pairs", "simcse_differences": "SimCSE on differences",
         "swav_pairs": "SwAV on pairs", "swav_differences": "SwAV on differences"}
BATCH = 16  # of the report's contrastive runs
Measured = Mapping[str, Mapping[str, Sequence[float]]]
"""By term, then `inside`, `outside` (accuracy) and `apart` (mean over std of chosen minus rejected), one per seed."""


class ContrastiveTrialConfig(Config):
    """Everything `keel experiment contrastive` reads."""

    out: Path = Field(Path("runs/experiment-contrastive"), description="folder to make, or to go on with")
    seeds: int = Field(5, ge=1, le=20, description="seeds; fewer than five settle nothing")
    first_seed: int = Field(0, ge=0, description="the first of them; the others follow")
    jobs: int = Field(2, ge=1, description="runs at a time, each in a process of one thread")
    n_pairs: int = Field(1600, ge=100, description="labelled pairs; each seed draws its own")
    n_test: int = Field(1000, ge=50, description="pairs with right labels in each of the two exams")
    noise: float = Field(0.25, ge=0, lt=0.5, description="share of labels that are turned over")
    lr: float = Field(5e-4, gt=0, description="peak learning rate, one pass")


def run(cfg: ContrastiveTrialConfig, *, resume: bool = False) -> runs.RunResult:
    """Run every seed, then write table, plot, verdict and result.json."""
    with opened("experiment contrastive", cfg, resume=resume) as log:
        trials = dict[str, Config]()
        for seed in seeds_of(cfg):
            home = cfg.out / f"seed-{seed}"
            home.mkdir(exist_ok=True)
            write_pairs(home / "pairs.jsonl", planted_pairs(cfg.n_pairs, cfg.noise, seed))
            write_pairs(home / "test.jsonl", planted_pairs(cfg.n_test, 0.0, seed, split="test"))
            write_pairs(home / "dialect.jsonl", planted_pairs(cfg.n_test, 0.0, seed, split="test", dialect=True))
            trials |= {f"seed-{seed}/{name}": trial(cfg, home, name, seed) for name in TERMS}
        side_by_side(cfg.out, f"{', '.join(TERMS)}: {cfg.seeds} seeds", trials, jobs=cfg.jobs, tidy=True,
                     again="give the same command again: it goes on where it was")
        measured = {name: read([cfg.out / f"seed-{seed}" / name for seed in seeds_of(cfg)]) for name in TERMS}
        findings = [judged(claim) for claim in claims(measured)]
        draw_effects(cfg.out / "plot", {
            f"{NAMES[name]}, {where}": [100 * x for x in minus(measured, name, key)]
            for name in TERMS if name != "plain" for key, where in (("inside", "wordings of training"),
                                                                  ("outside", "other wordings"))},
            title="accuracy on right labels, points above plain training (grey: seeds)")
        return conclude(log, "Contrastive terms against plain training", table(measured), findings, ["plot.svg"], {
            "seeds": seeds_of(cfg), "measured": measured})


def trial(cfg: ContrastiveTrialConfig, home: Path, name: str, seed: int) -> RewardModelConfig:
    """One way to learn from the pairs of a seed."""
    steps = -(-cfg.n_pairs // BATCH)
    return RewardModelConfig(
        out=home / name, model=ModelConfig(path=str(base_model_folder())), seed=seed, contrastive=TERMS[name],
        data=DataConfig(path=str(home / "pairs.jsonl"), validation=str(home / "test.jsonl"), max_length=256),
        exams=(ExamConfig(name="dialect", path=str(home / "dialect.jsonl"), max_length=256),), steps=steps,
        batch=BATCH, optimizer=OptimizerConfig(lr=cfg.lr), eval_every=steps, eval_pairs=cfg.n_test)


def read(folders: Sequence[Path]) -> dict[str, list[float]]:
    """What the exams of finished runs say."""
    exams = [json.loads((folder / "result.json").read_text())["exams"] for folder in folders]
    return {"inside": [exam["held_out"]["accuracy"]["mean"] for exam in exams],
            "outside": [exam["dialect"]["accuracy"]["mean"] for exam in exams],
            "apart": [exam["held_out"]["gap"]["mean"] / exam["held_out"]["gap"]["std"] for exam in exams]}


def minus(measured: Measured, name: str, key: str) -> list[float]:
    """A term's numbers minus those of plain training, seed by seed."""
    return [a - b for a, b in zip(measured[name][key], measured["plain"][key], strict=True)]


def claims(measured: Measured) -> list[Claim]:
    """What the report says, each as numbers that are above zero where it is so. Fixed before the seeds were run."""
    terms = [name for name in measured if name != "plain"]
    return [
        *(Claim(f"{NAMES[name]} raises the accuracy, in and out of distribution (section 3.1).", {
            "accuracy in the wordings of training, minus plain": minus(measured, name, "inside"),
            "accuracy in other wordings, minus plain": minus(measured, name, "outside")}) for name in terms),
        *(Claim(f"{NAMES[name]} sets chosen and rejected further apart (section 3.1).", {
            "mean over spread of chosen minus rejected, minus plain": minus(measured, name, "apart")})
          for name in terms)]


def table(measured: Measured) -> str:
    """One row per term; means with 95% bootstrap intervals over seeds."""
    rows: list[dict[str, Any]] = [{
        "": NAMES[name], "accuracy, wordings of training": with_interval(found["inside"]),
        "accuracy, other wordings": with_interval(found["outside"]),
        "mean / spread of chosen minus rejected": with_interval(found["apart"])} for name, found in measured.items()]
    return markdown(rows)
