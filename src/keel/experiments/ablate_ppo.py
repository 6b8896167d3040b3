"""`keel experiment ablate-ppo`: which part of PPO-max carries its stability? The complete method, then one change each.

Source: Zheng et al. 2023, arXiv:2307.04964, section 5 and Figs. 5 to 8, 13 to 19: the KL price is the lever; the other
parts mostly delay collapse. Vanilla PPO, which has none of them, is run beside. The world is that of `keel experiment
collapse`: annotators who like long answers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from keel import runs
from keel.config import Config
from keel.experiments.courses import Course
from keel.experiments.pictures import draw_courses, draw_effects
from keel.experiments.town import PPOSize, TownConfig, run_kinds
from keel.experiments.trial import Claim, conclude, judged, markdown, opened, seeds_of, with_interval
from keel.functional.trials import sign_flip_test

__all__ = ["AblatePPOConfig", "claims", "kinds_of", "run"]

NAMES = {
    "complete": "complete",
    "no_kl": "no KL price",
    "no_score_processing": "no score normalisation, no clip",
    "scaling_only": "score scaling only (released scripts)",
    "no_pretraining": "no critic pre-training",
    "critic_from_policy": "critic from the policy",
    "no_value_clip": "no value clip",
    "no_surrogate_clip": "no surrogate clip",
    "no_ptx": "no LM-mix loss",
    "large_buffer": "buffer four times as large",
    "advantages_normalised": "advantages normalised and clipped",
    "vanilla": "vanilla PPO",
}
BUFFER = 4
NOT_BELOW = 0.05  # gold points


class AblatePPOConfig(Config):
    """Everything `keel experiment ablate-ppo` reads."""

    out: Path = Field(Path("runs/ablate-ppo"), description="folder to make, or to go on with")
    seeds: int = Field(5, ge=1, le=20, description="seeds; fewer than five settle nothing")
    first_seed: int = Field(0, ge=0, description="the first of them; the others follow")
    jobs: int = Field(2, ge=1, description="runs at a time, each in a process of one thread")
    town: TownConfig = TownConfig(n_demonstrations=1000, n_pairs=4000, n_test=300, length_bias=0.2)
    ppo: PPOSize = PPOSize(phases=32, rollouts=48, minibatch=12, eval_every=8, eval_prompts=200)

    @model_validator(mode="after")
    def _check(self) -> "AblatePPOConfig":
        if self.ppo.phases % BUFFER or self.ppo.eval_every % BUFFER:
            raise ValueError(f"ppo.phases={self.ppo.phases} and ppo.eval_every={self.ppo.eval_every} must be multiples "
                             f"of {BUFFER}: one run's buffer is {BUFFER} times as large, its phases as much fewer")
        return self


def kinds_of(size: PPOSize) -> dict[str, dict[str, Any]]:
    """What each run changes in the preset, by its name. While the policy learns, all see as many responses and take
    as many optimiser steps; what the critic sees before that differs."""
    changes: dict[str, dict[str, Any]] = {
        "complete": {},
        "no_kl": {"kl": {"coef": 0.0}},
        "no_score_processing": {"score": {"center": False, "scale": "none", "clip": "none"}},
        "scaling_only": {"score": {"center": False, "scale": "scores", "clip": "none"}},
        "no_pretraining": {"critic": {"pretrain": 0}},
        "critic_from_policy": {"critic": {"init": "policy"}},
        "no_value_clip": {"loss": {"value_clip": "none"}},
        "no_surrogate_clip": {"loss": {"clip": "none"}},
        "no_ptx": {"ptx": None, "ptx_coef": 0.0},
        "large_buffer": {"rollouts": BUFFER * size.rollouts, "steps": size.phases // BUFFER,
                         "eval_every": size.eval_every // BUFFER, "critic": {"pretrain": 1}},
        "advantages_normalised": {"advantage": {"normalise": "minibatch", "clip": 0.5}},
    }
    return {kind: {"preset": "ppo_max_report", **change} for kind, change in changes.items()} | {
        "vanilla": {"preset": "vanilla_ppo"}}


def run(cfg: AblatePPOConfig, *, resume: bool = False) -> runs.RunResult:
    """Run every seed, then write table, plots, verdict and result.json."""
    with opened("experiment ablate_ppo", cfg, resume=resume) as log:
        courses = run_kinds(cfg, kinds_of(cfg.ppo))
        findings = [judged(claim) for claim in claims(courses)]
        named = {NAMES[kind]: found for kind, found in courses.items()}
        shown = [NAMES[kind] for kind in ("complete", "no_kl", "vanilla")]
        draw_courses(cfg.out / "plot", named, named=shown, others=f"each of the {len(named) - 3} other changes",
                     limit=cfg.ppo.max_new_tokens)
        draw_effects(cfg.out / "effects", {NAMES[kind]: gold for kind, gold in changes_in_gold(courses).items()},
                     title="change in the gold score at the end (points), against complete PPO-max of the same seed")
        return conclude(log, "Ablation of PPO-max", table(courses), findings, ["effects.svg", "plot.svg"], {
            "seeds": seeds_of(cfg), "courses": {kind: [vars(c) for c in found] for kind, found in courses.items()},
            "p": p_values(changes_in_gold(courses))})


def changes_in_gold(courses: Mapping[str, Sequence[Course]]) -> dict[str, list[float]]:
    """Gold at the end, each change minus the complete method of the same seed."""
    return {kind: [c.last("gold") - whole.last("gold") for c, whole in zip(found, courses["complete"], strict=True)]
            for kind, found in courses.items() if kind not in ("complete", "vanilla")}


def p_values(changes: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of each change, p that it moves gold this much by chance alone; corrected for the number of changes."""
    tests = sign_flip_test(torch.tensor(list(changes.values()), dtype=torch.float64).T)
    return dict(zip(changes, tests.tolist(), strict=True))


def claims(courses: Mapping[str, Sequence[Course]]) -> list[Claim]:
    """What the report says, each as numbers that are above zero where it is so. Fixed before the seeds were run."""
    without, others = courses["no_kl"], [kind for kind in courses if kind not in ("no_kl", "vanilla")]
    return [
        Claim("The KL price is the lever: of all PPO-max runs the one without it ends with the least gold.", {
            f"gold at the end, {NAMES[kind]} minus no KL price": [
                c.last("gold") - bare.last("gold") for c, bare in zip(courses[kind], without, strict=True)]
            for kind in others}),
        Claim("While the KL price stays, no other change makes PPO-max fall below its start.", {
            f"gold, end minus start plus {NOT_BELOW}, {NAMES[kind]}": [
                c.last("gold") - c.first("gold") + NOT_BELOW for c in courses[kind]]
            for kind in others if kind != "complete"}),
        Claim("Without the KL price the other parts delay collapse: more gold and less drift than vanilla PPO.", {
            "gold at the end, no KL price minus vanilla": [
                bare.last("gold") - c.last("gold") for bare, c in zip(without, courses["vanilla"], strict=True)],
            "KL at the end, vanilla minus no KL price": [
                c.last("kl") - bare.last("kl") for bare, c in zip(without, courses["vanilla"], strict=True)]})]


def table(courses: Mapping[str, Sequence[Course]]) -> str:
    """One row per kind of run; means with 95% bootstrap intervals over seeds; p two-sided, for all changes at once."""
    changes = changes_in_gold(courses)
    p, least = p_values(changes), 2 / 2 ** len(courses["complete"])
    return markdown([{"": NAMES[kind], "gold, end": with_interval([c.last("gold") for c in found]),
                      "against complete": with_interval(changes[kind]) if kind in changes else "",
                      f"p (least possible {least:.3f})": f"{p[kind]:.3f}" if kind in p else "",
                      "gold, best": with_interval([c.best("gold") for c in found]),
                      "score, end": with_interval([c.last("score") for c in found]),
                      "KL, end": with_interval([c.last("kl") for c in found]),
                      "length, end": with_interval([c.last("length") for c in found], digits=1),
                      "cut, last quarter": with_interval([c.quarter("cut", 4) for c in found], digits=2),
                      "alarms (phase x kind)": with_interval([float(sum(c.alarms.values())) for c in found], digits=1)}
                     for kind, found in courses.items()])
