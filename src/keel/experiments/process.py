"""`keel experiment process`: do rewards for single steps beat a reward for the final answer alone?

Uesato et al. 2022, arXiv:2211.14275, and Lightman et al. 2023, arXiv:2305.20050, compare the two; Gao et al. 2024,
arXiv:2410.15115, show how summed step rewards are farmed. The town's ledger questions need one to four additions. Every
line of an answer has an exact label, and so has the final answer.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from keel import runs
from keel.config import Config
from keel.data.files import FileConfig
from keel.data.records import Prompt
from keel.data.write import write_records
from keel.experiments.courses import read
from keel.experiments.process_numbers import NEEDED, claims, measured, table
from keel.experiments.process_pictures import draw_lessons, draw_steps_needed
from keel.experiments.stages import side_by_side
from keel.experiments.town import (
    BATCH,
    GOLD,
    PPOSize,
    TownConfig,
    data,
    ppo_settings,
    sft_config,
    with_changes,
    write_town,
)
from keel.experiments.trial import conclude, judged, opened, seeds_of
from keel.models.load import ModelConfig
from keel.recipes.generate import GenerateConfig
from keel.recipes.ppo import PPOConfig
from keel.recipes.process_rm import ProcessRMConfig
from keel.rollout.sample import SamplingConfig
from keel.sandbox.export import solution_row, write_rows
from keel.sandbox.gold import additions_needed
from keel.sandbox.ledger_steps import solutions, with_answer
from keel.sandbox.shipped import base_model_folder
from keel.sandbox.world import World
from keel.train.step import OptimizerConfig

__all__ = ["NAMES", "ProcessTrialConfig", "kinds_of", "questions", "run"]

NAMES = {
    "outcome": "outcome",
    "steps": "steps",
    "both": "outcome and steps",
    "prm": "outcome and process model",
    "orm": "outcome model",
    "sum": "true steps, summed",
    "min": "true steps, lowest",
    "grpo_outcome": "GRPO, outcome",
    "grpo_both": "GRPO, outcome and steps",
}
READERS = {"process_model": "steps", "outcome_model": "outcome"}
"""Folders of the two models that read solutions, and what each learns from."""
DRAWN = ("outcome", "steps", "both", "sum")
EXACT = "keel.data.answers:is_right"
MAX_LENGTH = 256
AGAIN = "give the same command again: it goes on where it was"


class ProcessTrialConfig(Config):
    """Everything `keel experiment process` reads."""

    out: Path = Field(Path("runs/experiment-process"), description="folder to make, or to go on with")
    seeds: int = Field(5, ge=1, le=20, description="seeds; fewer than five settle nothing")
    first_seed: int = Field(0, ge=0, description="the first of them; the others follow")
    jobs: int = Field(2, ge=1, description="runs at a time, each in a process of one thread")
    town: TownConfig = TownConfig(n_pairs=100)
    ppo: PPOSize = PPOSize(phases=40, rollouts=64, minibatch=16, eval_every=10, eval_prompts=200)
    group: int = Field(4, ge=2, description="responses per prompt of the arms without a critic")
    n_solutions: int = Field(4000, ge=100, description="solutions with exact labels for process and outcome model, "
                             "read twice")
    n_asked: int = Field(100, ge=1, description="test prompts of each number of additions, in each wording")


def kinds_of(cfg: ProcessTrialConfig, home: Path) -> dict[str, dict[str, Any]]:
    """What each run of a seed changes in its preset, by its name. The critic of every arm starts from the policy."""
    outcome = {"name": "outcome", "answer": {}}
    judge = {"name": "steps", "function": "keel.sandbox.ledger_steps:step_scores", "steps": {"credit": "mean"}}
    learned = {"name": "steps", "models": ({"path": str(home / "process_model/model")},), "steps": {"credit": "mean"}}
    whole = {"name": "answers", "models": ({"path": str(home / "outcome_model/reward_model")},)}
    # What is farmed: a judge who asks of each line only whether it is true, and pays it as often as it comes.
    true = {"name": "steps", "function": "keel.sandbox.ledger_steps:true_steps"}
    paid = {credit: true | {"steps": {"credit": credit, "repeats": True}} for credit in ("sum", "min")}
    critic = {"preset": "ppo_max_report", "critic": {"init": "policy"}}
    alone = {"preset": "grpo", "advantage": {"group": cfg.group}}
    return {
        "outcome": critic | {"rewards": (outcome,)},
        "steps": critic | {"rewards": (judge,)},
        "both": critic | {"rewards": (outcome, judge)},
        "prm": critic | {"rewards": (outcome, learned)},
        "orm": critic | {"rewards": (whole,)},
        "sum": critic | {"rewards": (paid["sum"],)},
        "min": critic | {"rewards": (paid["min"],)},
        "grpo_outcome": alone | {"rewards": (outcome,)},
        "grpo_both": alone | {"rewards": (outcome, judge | {"steps": {"credit": "sum"}})},
    }


def run(cfg: ProcessTrialConfig, *, resume: bool = False) -> runs.RunResult:
    """Run every seed, then write table, plots, verdict and result.json."""
    with opened("experiment process", cfg, resume=resume) as log:
        write_files(cfg)
        side_by_side(cfg.out, f"1/3  SFT, process model and outcome model, {cfg.seeds} seeds", start_stages(cfg),
                     again=AGAIN, jobs=cfg.jobs, tidy=True)
        side_by_side(cfg.out, f"2/3  PPO: {', '.join(NAMES)}", ppo_stages(cfg), again=AGAIN, jobs=cfg.jobs, tidy=True)
        side_by_side(cfg.out, "3/3  Answers of every policy to the test prompts", answer_stages(cfg), again=AGAIN,
                     jobs=cfg.jobs, tidy=True)
        asked = {prompt.id: prompt for prompt in questions(cfg)}
        homes = [cfg.out / f"seed-{seed}" for seed in seeds_of(cfg)]
        arms = {arm: [measured(home, arm, asked) for home in homes] for arm in ("sft", *NAMES)}
        courses = {arm: [read(home / arm) for home in homes] for arm in NAMES}
        findings = [judged(claim) for claim in claims(arms)]
        names = {"sft": "SFT policy"} | NAMES
        draw_steps_needed(cfg.out / "steps_needed", {names[arm]: found for arm, found in arms.items()})
        draw_lessons(cfg.out / "plot", {NAMES[arm]: found for arm, found in courses.items()},
                     named=[NAMES[arm] for arm in DRAWN])
        return conclude(log, "Rewards for steps", table(arms, courses, names), findings,
                        ["steps_needed.svg", "plot.svg"], {
            "seeds": seeds_of(cfg), "measured": {arm: [vars(one) for one in found] for arm, found in arms.items()},
            "courses": {arm: [vars(c) for c in found] for arm, found in courses.items()},
            "readers": {name: [json.loads((home / name / "result.json").read_text()) for home in homes]
                        for name in READERS}})


def write_files(cfg: ProcessTrialConfig) -> None:
    """The town; its ledger questions with their answers; labelled solutions; test questions. What is there stays."""
    town, world = cfg.out / "town", World(0)
    write_town(cfg.town, town)
    for suffix, part, n_prompts, n_solutions in (("", "train", cfg.town.n_prompts, cfg.n_solutions),
                                                 ("-validation", "validation", cfg.town.n_test, cfg.town.n_test)):
        asked, solved = town / f"ledger{suffix}.jsonl", town / f"solutions{suffix}.jsonl"
        if not asked.exists():
            write_records(map(with_answer, world.prompts(n_prompts, "process", split=part, domains=("ledger",))), asked)
        if not solved.exists():
            write_rows(solved, map(solution_row, solutions(world, n_solutions, "process", part=part)))
    if not (cfg.out / "questions.jsonl").exists():
        write_records(questions(cfg), cfg.out / "questions.jsonl")


def questions(cfg: ProcessTrialConfig) -> list[Prompt]:
    """Test prompts, as many of each number of additions, in plain wording and in the held-out wordings."""
    found = []
    for name, dialect in (("plain", False), ("dialect", True)):
        drawn = [with_answer(prompt) for prompt in World(0).prompts(
            20 * cfg.n_asked + 100, "process", split="test", dialect=dialect, domains=("ledger",))]
        for n in NEEDED:
            fitting = [prompt for prompt in drawn if len(additions_needed(prompt)) == n]
            found += [replace(prompt, id=f"{name}/{prompt.id}", meta={**prompt.meta, "set": name})
                      for prompt in fitting[: cfg.n_asked]]
    return found


def start_stages(cfg: ProcessTrialConfig) -> dict[str, Config]:
    """Of every seed: the policy to improve, and from the base model two readers of solutions."""
    town, stages, steps = cfg.out / "town", dict[str, Config](), 2 * cfg.n_solutions // BATCH
    for seed in seeds_of(cfg):
        home = cfg.out / f"seed-{seed}"
        stages[f"seed-{seed}/sft"] = sft_config(cfg.town, town, home / "sft", seed)
        for name, supervise in READERS.items():
            stages[f"seed-{seed}/{name}"] = ProcessRMConfig.checked({
                "out": home / name, "model": {"path": str(base_model_folder())}, "seed": seed, "batch": BATCH,
                "steps": steps, "supervise": supervise, "eval_every": steps, "optimizer": OptimizerConfig(lr=5e-4),
                "data": data(town, "solutions").model_dump(include={"path", "validation", "max_length"})})
    return stages


def ppo_stages(cfg: ProcessTrialConfig) -> dict[str, Config]:
    """Every arm of every seed, on ledger questions alone."""
    town, stages = cfg.out / "town", dict[str, Config]()
    for seed in seeds_of(cfg):
        home = cfg.out / f"seed-{seed}"
        for kind in NAMES:
            changes = kinds_of(cfg, home)[kind]
            settings = ppo_settings(cfg.ppo, town, home / kind, changes["preset"], seed)
            rest = {name: value for name, value in changes.items() if name != "preset"}
            stages[f"seed-{seed}/{kind}"] = PPOConfig.checked(with_changes(settings, rest | {
                "reward_model": None, "prompts": data(town, "ledger"), "gold": EXACT}))
    return stages


def answer_stages(cfg: ProcessTrialConfig) -> dict[str, GenerateConfig]:
    """Responses of the SFT policy and of every arm, with their gold scores; all of a seed draw from equal streams."""
    return {f"seed-{seed}/said_{arm}": GenerateConfig(
                out=cfg.out / f"seed-{seed}/said_{arm}", gold=GOLD, seed=seed,
                model=ModelConfig(path=str(cfg.out / f"seed-{seed}" / arm / "model")),
                sampling=SamplingConfig(max_new_tokens=cfg.ppo.max_new_tokens),
                prompts=FileConfig(path=str(cfg.out / "questions.jsonl"), max_length=MAX_LENGTH))
            for seed in seeds_of(cfg) for arm in ("sft", *NAMES)}
