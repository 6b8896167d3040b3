"""`keel experiment groups`: does group-invariant PPO find the hard domains, and does the worst of them gain?

Source: Zheng et al. 2023, arXiv:2310.11971: found groups instead of known ones, returns held together, drift priced by
group. The town's domains are known, are of different difficulty, and unequally frequent; gold scores, which no training
step reads, tell what the answers in each of them are worth. One domain is never trained on.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from keel import runs
from keel.config import Config
from keel.data.files import FileConfig
from keel.data.records import Prompt
from keel.data.write import write_records
from keel.experiments.groups_numbers import claims, measured, table
from keel.experiments.groups_pictures import draw_domains
from keel.experiments.pictures import draw_courses
from keel.experiments.stages import side_by_side
from keel.experiments.town import GOLD, PPOSize, TownConfig, run_kinds
from keel.experiments.trial import conclude, judged, opened, seeds_of
from keel.models.load import ModelConfig
from keel.recipes.generate import GenerateConfig
from keel.rollout.sample import SamplingConfig
from keel.sandbox.world import SHARES, World

__all__ = ["NAMES", "GroupsTrialConfig", "kinds_of", "questions", "run"]

NAMES = {
    "ppo_max": "PPO-max",
    "inferred": "groups of responses",
    "inferred_prompt": "groups of prompts",
    "low_only": "groups of responses, low side only",
    "known": "known domains",
    "group_dro": "known domains, group DRO",
    "no_variance": "adaptive price of drift alone",
    "no_adaptive_kl": "variance penalty alone",
    "cvar": "CVaR, no groups",
}
DRAWN = ("ppo_max", "inferred", "inferred_prompt", "known")
PRESET = "ppo_max_report"
MAX_LENGTH = 256


class GroupsTrialConfig(Config):
    """Everything `keel experiment groups` reads."""

    out: Path = Field(Path("runs/experiment-groups"), description="folder to make, or to go on with")
    seeds: int = Field(5, ge=1, le=20, description="seeds; fewer than five settle nothing")
    first_seed: int = Field(0, ge=0, description="the first of them; the others follow")
    jobs: int = Field(2, ge=1, description="runs at a time, each in a process of one thread")
    town: TownConfig = TownConfig(holdout_domain="advice")
    ppo: PPOSize = PPOSize(phases=40, rollouts=64, minibatch=16, eval_every=10, eval_prompts=200)
    coef: float = Field(0.1, gt=0, description="groups.coef, weight of the variance penalty and of CVaR")
    warmup: int = Field(5, ge=0, description="groups.warmup, phases in which groups are found and nothing is done")
    dro_step: float = Field(0.1, gt=0, description="groups.dro_step of group DRO")
    n_asked: int = Field(150, ge=1, description="test prompts of each domain in the final measurement, in each wording")

    @model_validator(mode="after")
    def _check(self) -> "GroupsTrialConfig":
        if self.town.holdout_domain not in SHARES:
            raise ValueError(f"town.holdout_domain={self.town.holdout_domain!r}: this experiment holds out one of "
                             f"{', '.join(SHARES)}")
        if self.warmup >= self.ppo.phases:
            raise ValueError(f"warmup={self.warmup} leaves none of ppo.phases={self.ppo.phases} for the groups to act")
        return self

    @property
    def domains(self) -> tuple[str, ...]:
        """What is trained on."""
        return tuple(name for name in SHARES if name != self.town.holdout_domain)


def kinds_of(cfg: GroupsTrialConfig) -> dict[str, dict[str, Any]]:
    """What each run changes in the preset, by its name. `kl_renorm` keeps the mean price of drift that of PPO-max; what
    a run does not use of the table has no effect on it."""
    ours = {"column": "domain", "n": 2, "level": "trajectory", "objective": "variance", "coef": cfg.coef,
            "dro_step": cfg.dro_step, "kl": "adaptive", "kl_renorm": True, "warmup": cfg.warmup}
    changes: dict[str, dict[str, Any]] = {
        "inferred": {},
        "inferred_prompt": {"level": "prompt"},
        "low_only": {"objective": "low_only"},
        "known": {"source": "known"},
        "group_dro": {"source": "known", "objective": "dro", "kl": "equal"},
        "no_variance": {"objective": None},
        "no_adaptive_kl": {"kl": "equal"},
        "cvar": {"objective": "cvar", "kl": "equal"},  # its groups are logged and change nothing
    }
    return {"ppo_max": {"preset": PRESET}} | {
        kind: {"preset": PRESET, "groups": ours | change} for kind, change in changes.items()}


def run(cfg: GroupsTrialConfig, *, resume: bool = False) -> runs.RunResult:
    """Run every seed, then write table, plots, verdict and result.json."""
    with opened("experiment groups", cfg, resume=resume) as log:
        kinds = kinds_of(cfg)
        courses = run_kinds(cfg, kinds, n_parts=3)
        asked = cfg.out / "questions.jsonl"
        if not asked.exists():
            write_records(questions(cfg), asked)
        side_by_side(cfg.out, "3/3  Answers of every policy to the test prompts", answer_stages(cfg, asked, kinds),
                     again="give the same command again: it goes on where it was", jobs=cfg.jobs, tidy=True)
        arms = {arm: [measured(cfg.out / f"seed-{seed}", arm, asked) for seed in seeds_of(cfg)]
                for arm in ("sft", *kinds)}
        findings = [judged(claim) for claim in claims(arms)]
        names = {"sft": "SFT policy"} | NAMES
        named = {NAMES[kind]: found for kind, found in courses.items()}
        draw_domains(cfg.out / "domains", {names[arm]: found for arm, found in arms.items()})
        draw_courses(cfg.out / "plot", named, named=[NAMES[kind] for kind in DRAWN],
                     others=f"the {len(named) - len(DRAWN)} other arms", limit=cfg.ppo.max_new_tokens)
        figures = ["domains.svg", "plot.svg"]
        return conclude(log, "Group-invariant PPO", table(arms, courses, names), findings, figures, {
            "seeds": seeds_of(cfg), "measured": {arm: [vars(one) for one in found] for arm, found in arms.items()},
            "courses": {kind: [vars(c) for c in found] for kind, found in courses.items()}})


def questions(cfg: GroupsTrialConfig) -> list[Prompt]:
    """Test prompts, as many of each domain: in plain wording, in the held-out wordings, and of the held-out domain."""
    held_out = str(cfg.town.holdout_domain)
    sets: Mapping[str, tuple[tuple[str, ...], bool]] = {
        "plain": (cfg.domains, False), "dialect": (cfg.domains, True), "held_out": ((held_out,), False)}
    return [replace(prompt, id=f"{name}/{prompt.id}", meta={**prompt.meta, "set": name})
            for name, (domains, dialect) in sets.items() for domain in domains
            for prompt in World(0).prompts(cfg.n_asked, "groups", split="test", dialect=dialect, domains=(domain,))]


def answer_stages(cfg: GroupsTrialConfig, asked: Path, kinds: Mapping[str, Any]) -> dict[str, GenerateConfig]:
    """Responses of the SFT policy and of every arm, with their gold scores; all of a seed draw from equal streams."""
    return {f"seed-{seed}/said_{arm}": GenerateConfig(
                out=cfg.out / f"seed-{seed}/said_{arm}", gold=GOLD, seed=seed,
                model=ModelConfig(path=str(cfg.out / f"seed-{seed}" / arm / "model")),
                sampling=SamplingConfig(max_new_tokens=cfg.ppo.max_new_tokens),
                prompts=FileConfig(path=str(asked), max_length=MAX_LENGTH))
            for seed in seeds_of(cfg) for arm in ("sft", *kinds)}
