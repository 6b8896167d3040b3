"""`keel experiment strength`: voting finds wrong labels; flips, margins and soft labels win back what they cost.

Source: Wang et al. 2024, arXiv:2401.06080, section 2. In the town the true label of every pair is known: a share of the
labels is turned over, voters judge them, and students learn from what is left; all are examined on right labels.
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
from keel.recipes.reward_model import RewardModelConfig
from keel.recipes.strength import StrengthConfig
from keel.sandbox.shipped import base_model_folder
from keel.train.denoise import DenoiseConfig
from keel.train.inputs import DataConfig, FileConfig
from keel.train.step import OptimizerConfig

__all__ = ["StrengthTrialConfig", "claims", "run"]

STUDENTS: Mapping[str, DenoiseConfig] = {
    "baseline": DenoiseConfig(),
    "flip": DenoiseConfig(flip=0.1),
    "margin": DenoiseConfig(margin=1.0),
    "flip_margin": DenoiseConfig(flip=0.1, margin=1.0),
    "soft_margin": DenoiseConfig(smooth=0.2, margin=1.0),
    "flip_all": DenoiseConfig(flip_below=0.0),
}
"""The report's five (section 2.5), and a flip of every label that the voters reject, which copies their errors."""
NAMES = {"baseline": "baseline", "flip": "flip 10%", "margin": "margin", "flip_margin": "flip 10% + margin",
         "soft_margin": "soft label + margin", "flip_all": "flip every negative"}
AUC, TWICE = 0.65, 2.0  # what finding wrong labels means: area under the curve; share in units of the noise
WEAKEST, NEGATIVE = "weakest 10%", "mean strength below 0"
BATCH = 32


class StrengthTrialConfig(Config):
    """Everything `keel experiment strength` reads."""

    out: Path = Field(Path("runs/experiment-strength"), description="folder to make, or to go on with")
    seeds: int = Field(5, ge=1, le=20, description="seeds; fewer than five settle nothing")
    first_seed: int = Field(0, ge=0, description="the first of them; the others follow")
    jobs: int = Field(2, ge=1, description="runs at a time, each in a process of one thread")
    n_pairs: int = Field(5000, ge=100, description="labelled pairs; each seed draws its own")
    n_test: int = Field(2000, ge=50, description="pairs with right labels on which everyone is examined")
    noise: float = Field(0.25, ge=0, lt=0.5, description="share of labels that are turned over")
    voters: int = Field(10, ge=2, description="reward models that vote")
    lr: float = Field(5e-4, gt=0, description="peak learning rate of voters and students, one pass each")


def run(cfg: StrengthTrialConfig, *, resume: bool = False) -> runs.RunResult:
    """Run every seed, then write table, plot, verdict and result.json."""
    with opened("experiment strength", cfg, resume=resume) as log:
        votes, students = dict[str, Config](), dict[str, Config]()
        for seed in seeds_of(cfg):
            home = cfg.out / f"seed-{seed}"
            home.mkdir(exist_ok=True)
            write_pairs(home / "pairs.jsonl", planted_pairs(cfg.n_pairs, cfg.noise, seed))
            write_pairs(home / "test.jsonl", planted_pairs(cfg.n_test, 0.0, seed, split="test"))
            votes[f"seed-{seed}/strength"] = voting(cfg, home, seed)
            students |= {f"seed-{seed}/{name}": student(cfg, home, name, seed) for name in STUDENTS}
        again = "give the same command again: it goes on where it was"
        side_by_side(cfg.out, f"1/2  {cfg.voters} voters, {cfg.seeds} seeds", votes, again=again, jobs=cfg.jobs)
        side_by_side(cfg.out, f"2/2  Students: {', '.join(STUDENTS)}", students, again=again, jobs=cfg.jobs, tidy=True)
        homes = [cfg.out / f"seed-{seed}" for seed in seeds_of(cfg)]
        found = [_result(home / "strength", "audit.json")["truth"] for home in homes]
        accuracy = {name: [_result(home / name)["exams"]["held_out"]["accuracy"]["mean"] for home in homes]
                    for name in STUDENTS}
        findings = [judged(claim) for claim in claims(found, accuracy, cfg.noise)]
        draw_effects(cfg.out / "plot", {
            NAMES[name]: [100 * (a - b) for a, b in zip(values, accuracy["baseline"], strict=True)]
            for name, values in accuracy.items() if name != "baseline"},
            title="accuracy on right labels, points above the baseline (grey: seeds)")
        return conclude(log, "Strength: voting on labels, and what it is good for", table(found, accuracy), findings,
                        ["plot.svg"], {"seeds": seeds_of(cfg), "found": found, "accuracy": accuracy})


def voting(cfg: StrengthTrialConfig, home: Path, seed: int) -> StrengthConfig:
    """The vote on every label."""
    return StrengthConfig(
        out=home / "strength", model=ModelConfig(path=str(base_model_folder())), voters=cfg.voters, seed=seed,
        data=FileConfig(path=str(home / "pairs.jsonl"), max_length=256), batch=BATCH, keep_models=False,
        optimizer=OptimizerConfig(lr=cfg.lr))


def student(cfg: StrengthTrialConfig, home: Path, name: str, seed: int) -> RewardModelConfig:
    """A reward model from pairs that were changed by their strength."""
    steps = -(-cfg.n_pairs // BATCH)
    return RewardModelConfig(
        out=home / name, model=ModelConfig(path=str(base_model_folder())), seed=seed, denoise=STUDENTS[name],
        data=DataConfig(path=str(home / "strength" / "strength.jsonl"), validation=str(home / "test.jsonl"),
                        max_length=256),
        steps=steps, batch=BATCH, optimizer=OptimizerConfig(lr=cfg.lr), eval_every=steps, eval_pairs=cfg.n_test)


def claims(found: Sequence[Mapping[str, Any]], accuracy: Mapping[str, Sequence[float]], noise: float) -> list[Claim]:
    """What the report says, each as numbers that are above zero where it is so. Fixed before the seeds were run."""
    def gain(name: str, over: str = "baseline") -> dict[str, list[float]]:
        return {f"accuracy, {NAMES[name]} minus {NAMES[over]}": [
            a - b for a, b in zip(accuracy[name], accuracy[over], strict=True)]}

    return [
        Claim("The mean strength finds wrong labels (section 2.2).", {
            f"area under the curve less {AUC}": [row["area"] - AUC for row in found],
            f"share of wrong labels in the weakest tenth less {TWICE:g} times the noise": [
                search(row, WEAKEST)["precision"] - TWICE * noise for row in found]}),
        *(Claim(f"{says} (section 2.5).", gain(name)) for name, says in (
            ("flip", "Flipping the weakest tenth beats plain training"),
            ("margin", "The adaptive margin beats plain training"),
            ("flip_margin", "Flip and margin together beat plain training"),
            ("soft_margin", "Soft labels and margin together beat plain training"))),
        Claim("Flipping every label that the voters reject is worse than flipping the weakest tenth (our own study of "
              "linear models).", gain("flip", over="flip_all"))]


def table(found: Sequence[Mapping[str, Any]], accuracy: Mapping[str, Sequence[float]]) -> str:
    """What the votes find, then one row per student; means with 95% bootstrap intervals over seeds."""
    votes = markdown([{
        "wrong labels looked for in": where,
        "share of wrong labels there": with_interval([search(row, where)["precision"] for row in found]),
        "share of all wrong labels": with_interval([search(row, where)["recall"] for row in found])}
        for where in (WEAKEST, NEGATIVE)])
    area = f"\nArea under the curve of mean strength: {with_interval([row['area'] for row in found])}\n\n"
    rows = [{"student": NAMES[name], "accuracy on right labels": with_interval(values),
             "minus baseline": with_interval([a - b for a, b in zip(values, accuracy["baseline"], strict=True)])}
            for name, values in accuracy.items()]
    return votes + area + markdown(rows)


def search(found: Mapping[str, Any], where: str) -> Mapping[str, float]:
    """What looking for wrong labels in one place of the audit found."""
    rows: list[Mapping[str, Any]] = found["searches"]
    return next(row for row in rows if row["value"] == where)


def _result(folder: Path, name: str = "result.json") -> Any:
    return json.loads((folder / name).read_text())
