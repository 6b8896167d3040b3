"""What the reward models of `keel experiment rm-bench` are used for: a benchmark, picking the best of n, PPO."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keel.bench.scorers import EnsembleConfig, ScorerConfig
from keel.bench.sources import BenchmarkConfig
from keel.config import Config
from keel.data.files import FileConfig
from keel.data.load import read_demonstrations
from keel.data.records import Demonstration
from keel.data.render import render_demonstrations, template
from keel.experiments.rm_bench_models import ENSEMBLES
from keel.experiments.town import PPOSize, ppo_settings, with_changes
from keel.functional.best_of_n import best_of_n
from keel.functional.credit import standard_scores
from keel.models.load import ModelConfig, load_tokenizer, scalar_model
from keel.recipes.bench_rm import BenchRMConfig
from keel.recipes.ppo import PPOConfig
from keel.rollout.measure import Scorer
from keel.rollout.reward_settings import RewardConfig
from keel.train.inputs import DataConfig

__all__ = ["accuracy_of", "bench_config", "best_of", "gold_after", "mean_gold", "members_of", "policy_config",
           "said_by", "write_questions"]

PRESET = "ppo_max_report"
MICRO_TOKENS, MAX_LENGTH = 8192, 256
SETS = {"pair": "pairs", "list": "lists"}


def members_of(name: str) -> tuple[str, ...]:
    """The reward models behind a name: itself, or the members of an ensemble."""
    return ENSEMBLES.get(name, (name,))


def model_at(home: Path, name: str) -> ModelConfig:
    """A trained reward model."""
    return ModelConfig(path=str(home / name / "model"))


def bench_config(benchmark: Path, home: Path, name: str) -> BenchRMConfig:
    """The benchmark of one reward model, or of an ensemble."""
    scorers = tuple(ScorerConfig(name=member, model=model_at(home, member)) for member in members_of(name))
    asked: dict[str, Any] = {"scorer": scorers[0]} if name not in ENSEMBLES else {
        "ensemble": EnsembleConfig(name=name, members=scorers, combine="mean_z")}
    # RMB's own layout knows RMB's scenarios and no others; rows of the same shape are read as preferences.
    items = BenchmarkConfig(path=str(benchmark / "rmb"), layout="preferences")
    return BenchRMConfig.checked({"out": home / f"bench-{name}", "benchmark": items, **asked})


def policy_config(size: PPOSize, town: Path, home: Path, name: str, seed: int) -> Config:
    """PPO from the SFT policy with one reward model, examined on test prompts. All of a seed draw the same prompts."""
    settings = ppo_settings(size, town, home / f"ppo-{name}", PRESET, seed)
    source: dict[str, Any] = {"reward_model": model_at(home, name)} if name not in ENSEMBLES else {
        "reward_model": None, "rewards": (RewardConfig(
            name=name, models=tuple(model_at(home, member) for member in members_of(name)),
            calibration=FileConfig(path=str(town / "pairs-validation.jsonl"), max_length=MAX_LENGTH)),)}
    asked = DataConfig(path=str(town / "prompts.jsonl"), validation=str(town / "prompts-test.jsonl"),
                       max_length=MAX_LENGTH)
    return PPOConfig.checked(with_changes(settings, source | {"prompts": asked, "n_samples": 0}))


def write_questions(prompts: Path, file: Path, n_prompts: int, n_responses: int) -> None:
    """The first prompts of a file, each as often as it is to be answered, unless the file is there."""
    if not file.exists():
        rows = [json.loads(line) for line in prompts.read_text().splitlines()[:n_prompts]]
        beside = file.with_suffix(".new")
        beside.write_text("".join(json.dumps(row | {"id": f"{row['id']}/{i}"}) + "\n"
                                  for row in rows for i in range(n_responses)))
        beside.rename(file)


def said_by(folder: Path) -> dict[str, str]:
    """What a policy answered, by the id of the prompt; answers that were cut are left out."""
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return {row["id"]: row["response"] for row in rows if row["ended"]}


def accuracy_of(folder: Path) -> dict[str, float]:
    """Share of right pairs and of right lists, all goals together, from a benchmark's result."""
    sets = json.loads((folder / "result.json").read_text())["sets"]
    counts = {SETS[name]: [goal["counts"] for goal in goals.values()] for name, goals in sets.items()}
    return {name: sum(count["right"] for count in found) / sum(count["items"] for count in found)
            for name, found in counts.items()}


def gold_after(folder: Path) -> tuple[float, float]:
    """Mean gold on test prompts before and after PPO."""
    result = json.loads((folder / "result.json").read_text())
    return result["before"]["gold"]["mean"], result["after"]["gold"]["mean"]


def mean_gold(said: Path) -> float:
    """Of a policy's responses."""
    return float(json.loads((said / "result.json").read_text())["gold"]["mean"])


def best_of(home: Path, names: Sequence[str]) -> dict[str, float]:
    """Mean gold of the response that each model picks, over the prompts that the SFT policy of `home` answered.

    An empty response cannot be scored and is not picked from.
    """
    told = read_demonstrations(home / "said/samples.jsonl", on_bad_record="skip")[0]
    models = dict.fromkeys(member for name in names for member in members_of(name))
    scores = {model: scores_of(model_at(home, model), told) for model in models}
    gold = torch.tensor([float(one.prompt.meta["gold"]) for one in told], dtype=torch.float64)
    groups = groups_of([one.id for one in told])
    return {name: picked(together([scores[member] for member in members_of(name)]), gold, groups) for name in names}


def groups_of(ids: Sequence[str]) -> list[Tensor]:
    """Places of the responses to each prompt; `write_questions` gave each its prompt's id and a number."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(ids):
        groups.setdefault(name.rpartition("/")[0], []).append(place)
    return [torch.tensor(places) for places in groups.values()]


def together(scores: Sequence[Tensor]) -> Tensor:
    """One model's scores as they are; of several, the mean of their standard scores."""
    return scores[0] if len(scores) == 1 else standard_scores(torch.stack(list(scores))).mean(0)


def picked(scores: Tensor, gold: Tensor, groups: Sequence[Tensor]) -> float:
    """Mean gold of the response with the highest score in each group; ties share it."""
    best = [best_of_n(scores[group], gold[group], n=len(group)) for group in groups]
    return float(torch.stack(best).mean())


@torch.no_grad()
def scores_of(spec: ModelConfig, told: Sequence[Demonstration]) -> Tensor:
    """A reward model's score of each response."""
    words = template(load_tokenizer(spec.path))
    rows = render_demonstrations(words, told, MAX_LENGTH, "drop")[0]
    assert len(rows) == len(told), "a response of the SFT policy is longer than any that it can write"
    return Scorer(scalar_model(spec), words, words, MICRO_TOKENS).of_rows(rows).double()
