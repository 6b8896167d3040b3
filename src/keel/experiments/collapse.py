"""`keel experiment collapse`: PPO without constraints over-optimises its reward model, PPO-max does not.

Source: Zheng et al. 2023, arXiv:2307.04964, Figs. 4 and 9. The town's annotators like long answers, so the reward model
has a hack to find; gold scores, which no training step reads, tell what the answers are worth.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from keel import runs
from keel.config import Config
from keel.experiments.courses import Course
from keel.experiments.pictures import draw_courses
from keel.experiments.town import PPOSize, TownConfig, run_kinds
from keel.experiments.trial import Claim, conclude, judged, markdown, opened, seeds_of, with_interval

__all__ = ["CollapseConfig", "claims", "run"]

KINDS = {"vanilla": {"preset": "vanilla_ppo"}, "ppo_max": {"preset": "ppo_max_report"}}
NAMES = {"vanilla": "vanilla PPO", "ppo_max": "PPO-max"}
FAR_BELOW, NOT_BELOW = 0.2, 0.05  # gold points
AT_LIMIT = 0.9  # share of the length limit
FLAT = {"kl": 0.25, "length": 0.1}  # largest share by which the last quarter may differ from the third


class CollapseConfig(Config):
    """Everything `keel experiment collapse` reads."""

    out: Path = Field(Path("runs/collapse"), description="folder to make, or to go on with")
    seeds: int = Field(5, ge=1, le=20, description="seeds; fewer than five settle nothing")
    first_seed: int = Field(0, ge=0, description="the first of them; the others follow")
    jobs: int = Field(2, ge=1, description="runs at a time, each in a process of one thread")
    town: TownConfig = TownConfig(length_bias=0.2)
    ppo: PPOSize = PPOSize(phases=40, rollouts=64, minibatch=16, eval_every=5, eval_prompts=300)


def run(cfg: CollapseConfig, *, resume: bool = False) -> runs.RunResult:
    """Run every seed, then write table, plot, verdict and result.json."""
    with opened("experiment collapse", cfg, resume=resume) as log:
        courses = run_kinds(cfg, KINDS)
        findings = [judged(claim) for claim in claims(courses, limit=cfg.ppo.max_new_tokens)]
        named = {NAMES[kind]: found for kind, found in courses.items()}
        draw_courses(cfg.out / "plot", named, named=list(named), limit=cfg.ppo.max_new_tokens)
        return conclude(log, "Collapse: vanilla PPO against PPO-max", table(named), findings, ["plot.svg"], {
            "seeds": seeds_of(cfg), "courses": {kind: [vars(c) for c in found] for kind, found in courses.items()}})


def claims(courses: Mapping[str, Sequence[Course]], *, limit: int) -> list[Claim]:
    """What the report says, each as numbers that are above zero where it is so. Fixed before the seeds were run."""
    vanilla, ours = courses["vanilla"], courses["ppo_max"]
    return [
        Claim("Vanilla PPO over-optimises: its score rises while gold falls (Fig. 4).", {
            "score, end minus start": [c.last("score") - c.first("score") for c in vanilla],
            f"gold: fall below the start, or below the best less {FAR_BELOW}": [
                max(c.first("gold"), c.best("gold") - FAR_BELOW) - c.last("gold") for c in vanilla]}),
        # These two were one claim when the seeds were run: see the page.
        Claim("Its responses run to the length limit (Fig. 4).", {
            f"length at the end less {AT_LIMIT:.0%} of the limit, in tokens": [
                c.last("length") - AT_LIMIT * limit for c in vanilla]}),
        Claim("Its drift keeps growing (Fig. 4).", {
            "KL, last quarter minus second quarter": [c.quarter("kl", 4) - c.quarter("kl", 2) for c in vanilla]}),
        Claim("PPO-max keeps its gold: at the end it is not below its start.", {
            f"gold, end minus start plus {NOT_BELOW}": [
                c.last("gold") - c.first("gold") + NOT_BELOW for c in ours]}),
        Claim("PPO-max ends with more gold than vanilla PPO.", {
            "gold at the end, PPO-max minus vanilla": [
                ours.last("gold") - theirs.last("gold") for ours, theirs in zip(ours, vanilla, strict=True)]}),
        Claim("PPO-max is flat in its second half (Fig. 9).", {
            f"{name}: {most:.0%} less the change from the third to the last quarter": [
                most - abs(c.late_change(name)) for c in ours] for name, most in FLAT.items()})]


def table(courses: Mapping[str, Sequence[Course]]) -> str:
    """One row per kind of PPO; means with 95% bootstrap intervals over seeds."""
    return markdown([{"": kind, "score, start": with_interval([c.first("score") for c in found]),
                      "score, end": with_interval([c.last("score") for c in found]),
                      "gold, start": with_interval([c.first("gold") for c in found]),
                      "gold, best": with_interval([c.best("gold") for c in found]),
                      "gold, end": with_interval([c.last("gold") for c in found]),
                      "KL, end": with_interval([c.last("kl") for c in found]),
                      "length, start": with_interval([c.first("length") for c in found], digits=1),
                      "length, end": with_interval([c.last("length") for c in found], digits=1),
                      "cut, last quarter": with_interval([c.quarter("cut", 4) for c in found], digits=2),
                      "alarms (phase x kind)": with_interval([float(sum(c.alarms.values())) for c in found], digits=1)}
                     for kind, found in courses.items()])
