"""`keel experiment meta-rm`: does MetaRM keep telling responses apart as the policy moves?

Source: arXiv:2401.06080, section 3.2. A policy learns for three rounds from a plain reward model. In each round gold,
which no training step reads, orders fresh responses of the policy as it then is; the plain model and a MetaRM that saw
unlabelled responses of that same policy are asked for the order. The annotators have no length bias here: MetaRM brings
no new labels, so it cannot mend what labels get wrong.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from pydantic import Field

from keel import runs
from keel.config import Config
from keel.data.load import read_demonstrations
from keel.data.render import template
from keel.experiments.pictures import draw_effects
from keel.experiments.stages import side_by_side
from keel.experiments.town import (
    GOLD,
    PPOSize,
    TownConfig,
    data,
    ppo_settings,
    reward_config,
    sft_config,
    with_changes,
    write_town,
)
from keel.experiments.trial import Claim, conclude, judged, markdown, opened, seeds_of, with_interval
from keel.functional.statistics import win_points
from keel.models.load import ModelConfig, load_tokenizer, scalar_model
from keel.recipes.generate import GenerateConfig
from keel.recipes.meta_rm import MetaRMConfig, grouped, in_parts, scores_of
from keel.recipes.ppo import PPOConfig
from keel.rollout.sample import SamplingConfig
from keel.train.ascent import AscentConfig
from keel.train.inputs import DataConfig

__all__ = ["MetaRMTrialConfig", "claims", "run"]

ROUNDS = 3
PRESET = "ppo_max_report"
MICRO_TOKENS = 8192
MAX_LENGTH = 256


class MetaRMTrialConfig(Config):
    """Everything `keel experiment meta-rm` reads."""

    out: Path = Field(Path("runs/meta-rm"), description="folder to make, or to go on with")
    seeds: int = Field(5, ge=1, le=20, description="seeds; fewer than five settle nothing")
    first_seed: int = Field(0, ge=0, description="the first of them; the others follow")
    jobs: int = Field(2, ge=1, description="runs at a time, each in a process of one thread")
    town: TownConfig = TownConfig(n_pairs=3000, n_test=200)
    ppo: PPOSize = PPOSize(phases=12, rollouts=64, minibatch=16, kl_factor=1.0, eval_every=12, eval_prompts=100)
    n_asked: int = Field(300, ge=2, description="training prompts whose unlabelled responses MetaRM tells apart")
    n_responses: int = Field(4, ge=2, description="responses to each prompt, for MetaRM and in the examination")
    ascent: AscentConfig = AscentConfig()


@dataclass(frozen=True)
class Sight:
    """How one reward model sees a policy's responses.

    Attributes:
        accuracy: share of pairs of responses to one prompt that it orders as gold does; pairs of equal gold left out.
        spread: standard deviation of scores within a prompt, as a share of that over all responses.
        n_pairs: pairs that the accuracy stands on.
    """

    accuracy: float
    spread: float
    n_pairs: int


@dataclass(frozen=True)
class Course:
    """One seed: what both models see in each round, from 0 (SFT) on, and gold of the policies on test prompts.

    Attributes:
        plain: sights of the plain reward model.
        meta: sights of the MetaRM of the round.
        gold: of the policy of each round; all of them learned from the plain model.
        gold_meta: of the policy of round 2 that learned from the MetaRM of round 1.
    """

    plain: tuple[Sight, ...]
    meta: tuple[Sight, ...]
    gold: tuple[float, ...]
    gold_meta: float


def run(cfg: MetaRMTrialConfig, *, resume: bool = False) -> runs.RunResult:
    """Run every seed, then write table, plot, verdict and result.json."""
    with opened("experiment meta_rm", cfg, resume=resume) as log:
        write_town(cfg.town, cfg.out / "town")
        write_questions(cfg)
        planned = [stages_of(cfg, seed) for seed in seeds_of(cfg)]
        for number, title in enumerate(planned[0], start=1):
            stages = {name: stage for steps in planned for name, stage in steps[title].items()}
            side_by_side(cfg.out, f"{number}/{len(planned[0])}  {title}, {cfg.seeds} seeds", stages, jobs=cfg.jobs,
                         again="give the same command again: it goes on where it was", tidy=True)
        courses = [read(cfg, seed) for seed in seeds_of(cfg)]
        findings = [judged(claim) for claim in claims(courses)]
        draw_effects(cfg.out / "accuracy", {f"round {t}": gains(courses, t) for t in range(ROUNDS + 1)},
                     title="accuracy against gold on the round's own responses: MetaRM minus the plain reward model")
        return conclude(log, "MetaRM against a plain reward model as the policy moves", table(courses), findings,
                        ["accuracy.svg"], {"seeds": seeds_of(cfg), "courses": [as_row(course) for course in courses]})


def stages_of(cfg: MetaRMTrialConfig, seed: int) -> dict[str, dict[str, Config]]:
    """What one seed runs, in the order of what needs what."""
    town, home = cfg.out / "town", cfg.out / f"seed-{seed}"
    begin: dict[str, Config] = {"sft": sft_config(cfg.town, town, home / "sft", seed),
                                "reward_model": reward_config(cfg.town, town, home / "reward_model", seed)}
    policy = {f"policy-{t}": policy_config(cfg, seed, t, "reward_model") for t in range(1, ROUNDS + 1)}
    meta = {f"meta-{t}": meta_config(cfg, seed, t) for t in range(ROUNDS + 1)}
    learned = {"policy-2-meta": policy_config(cfg, seed, 2, "meta-1")}
    said = {f"said-{name}": said_config(cfg, seed, name)
            for name in [policy_name(t) for t in range(ROUNDS + 1)] + list(learned)}
    found: dict[str, dict[str, Config]] = {
        "SFT and plain reward model": begin,
        "PPO, round 1": {"policy-1": policy["policy-1"], "meta-0": meta["meta-0"]},
        "PPO, round 2; MetaRM of rounds 0 and 1": {"policy-2": policy["policy-2"], "meta-1": meta["meta-1"]},
        "PPO, round 3, and with MetaRM": {"policy-3": policy["policy-3"], **learned, "meta-2": meta["meta-2"]},
        "MetaRM of round 3; responses to test prompts": {"meta-3": meta["meta-3"], **said}}
    return {title: {f"seed-{seed}/{name}": stage for name, stage in stages.items()} for title, stages in found.items()}


def policy_name(number: int) -> str:
    """The folder of the policy of a round that learned from the plain model; round 0 is SFT."""
    return "sft" if number == 0 else f"policy-{number}"


def policy_config(cfg: MetaRMTrialConfig, seed: int, number: int, rewarder: str) -> PPOConfig:
    """PPO from the policy of the round before. Each round has streams of its own: it must not ask and draw the same."""
    home = cfg.out / f"seed-{seed}"
    out = home / (policy_name(number) if rewarder == "reward_model" else f"policy-{number}-meta")
    settings = ppo_settings(cfg.ppo, cfg.out / "town", out, PRESET, 100 * seed + number)
    return PPOConfig.checked(with_changes(settings, {
        "policy": {"path": str(home / policy_name(number - 1) / "model")},
        "reward_model": {"path": str(home / rewarder / "model")}}))


def meta_config(cfg: MetaRMTrialConfig, seed: int, number: int) -> MetaRMConfig:
    """The plain reward model's settings, and unlabelled responses of the policy of a round."""
    home, town = cfg.out / f"seed-{seed}", cfg.out / "town"
    plain = reward_config(cfg.town, town, home / f"meta-{number}", seed)
    same = {name: getattr(plain, name) for name in ("out", "model", "data", "seed", "steps", "batch", "center_coef",
                                                    "optimizer", "eval_every")}
    return MetaRMConfig(
        **same, policy=ModelConfig(path=str(home / policy_name(number) / "model")), ascent=cfg.ascent,
        prompts=data(town, "prompts"), limit=cfg.n_asked, n_responses=cfg.n_responses, eval_prompts=50,
        sampling=SamplingConfig(max_new_tokens=cfg.ppo.max_new_tokens))


def said_config(cfg: MetaRMTrialConfig, seed: int, policy: str) -> GenerateConfig:
    """Several responses to each test prompt, with their gold score."""
    home = cfg.out / f"seed-{seed}"
    return GenerateConfig(
        out=home / f"said-{policy}", model=ModelConfig(path=str(home / policy / "model")), gold=GOLD, seed=seed,
        sampling=SamplingConfig(max_new_tokens=cfg.ppo.max_new_tokens),
        prompts=DataConfig(path=str(cfg.out / "questions.jsonl"), max_length=MAX_LENGTH))


def write_questions(cfg: MetaRMTrialConfig) -> None:
    """Every test prompt as often as it is to be answered."""
    file = cfg.out / "questions.jsonl"
    if not file.exists():
        rows = [json.loads(line) for line in (cfg.out / "town/prompts-test.jsonl").read_text().splitlines()]
        beside = file.with_suffix(".new")
        beside.write_text("".join(json.dumps(row | {"id": f"{row['id']}/{i}"}) + "\n"
                                  for row in rows for i in range(cfg.n_responses)))
        beside.rename(file)


def read(cfg: MetaRMTrialConfig, seed: int) -> Course:
    """Have both models look at the responses of every round."""
    home = cfg.out / f"seed-{seed}"
    said = [home / f"said-{policy_name(t)}" for t in range(ROUNDS + 1)]
    return Course(
        tuple(sight(home / "reward_model/model", folder) for folder in said),
        tuple(sight(home / f"meta-{t}/model", folder) for t, folder in enumerate(said)),
        tuple(gold_of(folder) for folder in said), gold_of(home / "said-policy-2-meta"))


def gold_of(said: Path) -> float:
    """Mean gold score of a policy's responses."""
    return float(json.loads((said / "result.json").read_text())["gold"]["mean"])


@torch.no_grad()
def sight(model: Path, said: Path) -> Sight:
    """Score a policy's responses and hold the order against gold."""
    words, scorer = template(load_tokenizer(str(model))), scalar_model(ModelConfig(path=str(model)))
    told = read_demonstrations(said / "samples.jsonl", on_bad_record="skip")[0]  # some responses are empty
    gold = {record.id: float(record.prompt.meta["gold"]) for record in told}
    groups = grouped(told, DataConfig(path=str(said), max_length=MAX_LENGTH), words, strict=False)[0]
    parts = in_parts(groups, MICRO_TOKENS)
    scores = [x.double() for part in parts for x in scores_of(scorer, part, words.pad_id, "never")]
    golds = [torch.tensor([gold[row.record_id] for row in group]) for part in parts for group in part]
    return seen(scores, golds)


def seen(scores: Sequence[torch.Tensor], golds: Sequence[torch.Tensor]) -> Sight:
    """Accuracy and spread of the scores of each prompt's responses, where gold says which is better."""
    points = [win_points(x[better], x[worse]) for x, gold in zip(scores, golds, strict=True)
              for better, worse in [(gold[:, None] > gold[None, :]).nonzero(as_tuple=True)]]
    right = torch.cat(points)
    within = fmean(float(x.std(correction=0)) for x in scores)
    return Sight(float(right.mean()), within / max(float(torch.cat(list(scores)).std(correction=0)), 1e-12), len(right))


def gains(courses: Sequence[Course], number: int) -> list[float]:
    """Accuracy in a round, MetaRM minus plain, of each seed."""
    return [course.meta[number].accuracy - course.plain[number].accuracy for course in courses]


def claims(courses: Sequence[Course]) -> list[Claim]:
    """What the report says, each as numbers that are above zero where it is so. Fixed before the seeds were run."""
    later = range(1, ROUNDS + 1)
    return [
        Claim("As the policy moves, the plain reward model tells its responses apart less well.", {
            f"accuracy of the plain model, round 0 minus round {ROUNDS}": [
                c.plain[0].accuracy - c.plain[ROUNDS].accuracy for c in courses]}),
        Claim("MetaRM tells the moved policy's responses apart better than the plain reward model.", {
            f"accuracy, MetaRM minus plain, mean of rounds 1 to {ROUNDS}": [
                fmean(c.meta[t].accuracy - c.plain[t].accuracy for t in later) for c in courses]}),
        Claim("MetaRM keeps what it had: from SFT to the last round it loses less accuracy.", {
            f"change of accuracy from round 0 to {ROUNDS}, MetaRM minus plain": [
                b - a for a, b in zip(gains(courses, 0), gains(courses, ROUNDS), strict=True)]}),
        Claim("MetaRM's scores of one prompt's responses lie further apart.", {
            f"relative spread within prompts, MetaRM minus plain, mean of rounds 1 to {ROUNDS}": [
                fmean(c.meta[t].spread - c.plain[t].spread for t in later) for c in courses]}),
        Claim("A policy that learns from MetaRM in the second round ends with more gold.", {
            "gold on test prompts after round 2, MetaRM minus plain": [c.gold_meta - c.gold[2] for c in courses]})]


def as_row(course: Course) -> dict[str, Any]:
    """For result.json."""
    sights: Mapping[str, Sequence[Sight]] = {"plain": course.plain, "meta": course.meta}
    return {"gold": course.gold, "gold_meta": course.gold_meta} | {
        name: [vars(one) for one in found] for name, found in sights.items()}


def table(courses: Sequence[Course]) -> str:
    """One row per round; means with 95% bootstrap intervals over seeds."""
    return markdown([{
        "round": str(t), "accuracy, plain": with_interval([c.plain[t].accuracy for c in courses]),
        "accuracy, MetaRM": with_interval([c.meta[t].accuracy for c in courses]),
        "difference": with_interval(gains(courses, t)),
        "spread within prompts, plain": with_interval([c.plain[t].spread for c in courses]),
        "spread, MetaRM": with_interval([c.meta[t].spread for c in courses]),
        "gold of the policy": with_interval([c.gold[t] for c in courses]),
        "gold, learned from MetaRM": with_interval([c.gold_meta for c in courses]) if t == 2 else ""}
        for t in range(ROUNDS + 1)])
