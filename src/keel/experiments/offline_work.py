"""The runs of `keel experiment offline`, as rows of work (`keel.experiments.rows`)."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from keel.bench.rewards import SequenceRewards
from keel.data.load import read_demonstrations, read_prompts
from keel.data.render import Template, render_demonstrations, render_prompts, template
from keel.experiments.offline_methods import (
    ABLATIONS,
    GREEDY,
    LRS,
    MAX_LENGTH,
    METHODS,
    MICRO_TOKENS,
    MIDDLE,
    NOISES,
    QUARTERED,
    SAMPLED,
    TUNING_SEED,
    Cell,
    OfflineTrialConfig,
    partial_dpo,
    sft_config,
    trial,
)
from keel.experiments.offline_world import rewards, write_world
from keel.experiments.rows import do, row_main
from keel.experiments.trial import seeds_of
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.recipes.preference import PreferenceConfig
from keel.rollout.respond import respond
from keel.runs import write_json
from keel.train.frozen import row_numbers

__all__ = ["MODULE", "first_rows", "second_rows", "work", "work_in"]

MODULE = "keel.experiments.offline_work"
TUNING = "tuning"


# --- what there is to do ---------------------------------------------------------------------------------------------


def first_rows(cfg: OfflineTrialConfig) -> list[str]:
    """References, and the choice of learning rates."""
    return [TUNING, *(f"reference {seed}" for seed in seeds_of(cfg))]


def second_rows(cfg: OfflineTrialConfig) -> list[str]:
    """Everything else, the longest rows first."""
    noises = sorted(NOISES, key=lambda noise: noise != MIDDLE)
    return [f"{seed} {noise}" for noise in noises for seed in seeds_of(cfg)]


def work(cfg: OfflineTrialConfig, row: str) -> None:
    """Do a row."""
    words = row.split()
    if row == TUNING:
        tune(Cell(cfg, TUNING_SEED, MIDDLE))
    elif words[0] == "reference":
        for noise in NOISES:
            reference(Cell(cfg, int(words[1]), noise))
    else:
        compare(Cell(cfg, int(words[0]), float(words[1])))


def is_ablated(cell: Cell) -> bool:
    """Whether the ablations are run here."""
    cfg = cell.cfg
    return cfg.ablations and cell.noise == MIDDLE and cell.seed in seeds_of(cfg)[: cfg.ablation_seeds]


def reference(cell: Cell) -> None:
    """The world, and a model that imitates its responses."""
    cfg = cell.cfg
    write_world(cell.world, {"train": cfg.n_train, "validation": cfg.n_validation, "test": cfg.n_test}, cell.noise,
                cell.seed)
    do(sft_config(cell))


def tune(cell: Cell) -> None:
    """Every method with every learning rate; the best of each by its validation total goes to learning_rates.json."""
    reference(cell)
    found: dict[str, dict[str, float]] = {}
    for name, method in METHODS.items():
        if method.lr_of is None:
            totals = found[name] = {}
            # A-LoL's first run says what others are told of advantages, and lies where they look for it.
            for lr in LRS:
                suffix = "" if name == "a_lol" and lr == LRS[0] else f"-{lr:g}"
                config = trial(cell, name, method, lr, suffix)
                do(config)
                totals[f"{lr:g}"] = fmean_of(examine(cell, config.out, ["validation"]), "validation")
    write_json(cell.cfg.out / "learning_rates.json", {"totals": found, "chosen": {
        name: float(max(totals, key=totals.__getitem__)) for name, totals in found.items()}})


def compare(cell: Cell) -> None:
    """All methods, and where it is asked for the ablations; each is examined on the test prompts."""
    rates = json.loads((cell.cfg.out / "learning_rates.json").read_text())["chosen"]
    examine(cell, cell.home / "sft", ["validation", "greedy", "sampled", "data"])
    for name, method in METHODS.items():
        attempt(cell, name, trial(cell, name, method, rates[method.lr_of or name]))
    if cell.noise == MIDDLE:
        for config in partial_dpo(cell, rates["dpo"]).values():
            do(config)
            examine(cell, config.out, ["validation"])
    if is_ablated(cell):
        for name, method in ABLATIONS.items():
            attempt(cell, name, trial(cell, name, method, rates[method.lr_of or name]))
        part = Cell(cell.cfg, cell.seed, cell.noise, quarter=True)
        do(sft_config(part))
        examine(part, part.home / "sft", ["greedy", "sampled", "data"])
        for name in QUARTERED:
            attempt(part, name, trial(part, name, METHODS[name], rates[name]))


def attempt(cell: Cell, name: str, config: Any) -> None:
    """A run and its examination."""
    do(config)
    validation = ["validation"] if isinstance(config, PreferenceConfig) else []
    examine(cell, config.out, [*validation, "greedy", "sampled", "data"])


# --- the examination -------------------------------------------------------------------------------------------------


def examine(cell: Cell, out: Path, parts: Sequence[str]) -> dict[str, Any]:
    """What a model says, what it is worth, and its log-probability of the test data; kept in exam.json.

    Args:
        cell: whose data and seed.
        out: a finished run.
        parts: `validation` (sampled), `greedy` and `sampled` (test prompts), `data` (test responses).
    """
    file = out / "exam.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if not found.keys() >= {*parts}:
        spec = ModelConfig(path=str(out / "model"))
        words, model = template(load_tokenizer(spec.path)), causal_lm(spec)
        found |= {part: logprobs(cell, model, words) if part == "data" else answers(cell, model, words, part)
                  for part in parts if part not in found}
        write_json(file, found)
    return found


def answers(cell: Cell, model: torch.nn.Module, words: Template, part: str) -> dict[str, list[Any]]:
    """Answers to the prompts of a split, on the same random streams for every model, with their rewards."""
    split, names = ("validation", ["evaluate"]) if part == "validation" else ("test", ["test"])
    asked, _ = read_prompts(str(cell.world / f"{split}-pairs.jsonl"))
    rows, _ = render_prompts(words, asked, MAX_LENGTH - SAMPLED.max_new_tokens, "error")
    said = respond(model, words, rows, GREEDY if part == "greedy" else SAMPLED, seed=cell.seed, names=names)
    worth = SequenceRewards(rewards(), cell.home / "cache/rewards")(said.prompts, said.texts)
    return {"total": worth.total.tolist(), **{name: x.tolist() for name, x in worth.parts.items()},
            "words": [len(text.split()) for text in said.texts], "ended": said.rollout.ended.tolist(),
            "texts": list(said.texts)}


def logprobs(cell: Cell, model: torch.nn.Module, words: Template) -> list[float]:
    """Of each response of the test data, in nats."""
    told, _ = read_demonstrations(str(cell.world / "test-responses.jsonl"))
    rows, _ = render_demonstrations(words, told, MAX_LENGTH, "error")
    found = [0.0] * len(rows)
    compute = row_numbers(model, rows, pad_id=words.pad_id, micro_tokens=2 * MICRO_TOKENS)
    for part, numbers in compute(lambda _: False):
        for i, each in zip(part, numbers, strict=True):
            found[i] = float(sum(each))
    return found


def fmean_of(exam: dict[str, Any], part: str) -> float:
    """Mean total."""
    return float(torch.tensor(exam[part]["total"], dtype=torch.float64).mean())


# --- processes -------------------------------------------------------------------------------------------------------


def work_in(folder: Path, row: str) -> None:
    """Do one row of the experiment in this folder."""
    work(OfflineTrialConfig.resolve(folder / "config.toml"), row)


if __name__ == "__main__":
    sys.exit(row_main(sys.argv[1:], work_in))
