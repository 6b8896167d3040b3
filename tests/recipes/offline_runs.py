"""Small runs of `keel offline-pg`: their data, their reward, their settings, and how to kill them anywhere."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import tiny
import torch
from recipes.running import FAST, _fork

from keel.bench.rewards import SequenceRewardConfig
from keel.bench.scorers import ScorerConfig
from keel.data.load import read_responses
from keel.data.records import Demonstration
from keel.data.render import Row, render_demonstrations, template
from keel.models.load import ModelConfig, load_tokenizer
from keel.recipes import offline_pg
from keel.recipes.offline_pg import OfflinePGConfig
from keel.rollout.sample import SamplingConfig
from keel.train.inputs import DataConfig
from keel.train.offline import OfflineLossConfig, SelectionConfig
from keel.train.value import ValueConfig

NICE = ("yes", "please", "cat", ".")
ANSWERS = ("yes please .", "no .", "the cat sat .", "hello two red blue")


def nice(prompt, text: str, ended: bool = True) -> float:
    """A reward between 0 and 1: a quarter for each of the first four nice words. 0.75, 0.25, 0.5 and 0 for ANSWERS."""
    return min(4, sum(word in NICE for word in text.split())) / 4


def brief_words(prompt, text: str) -> float:
    """Another one: 1 for a response of up to three words, else 0."""
    return float(len(text.split()) <= 3)


def hopeless(prompt, text: str) -> float:
    """Nothing for what the data say, something for anything else."""
    return float(text not in ANSWERS)


def whole(prompt, text: str, ended: bool) -> float:
    """1 for what ended by itself."""
    return float(ended)


def broken(prompt, text: str) -> float:
    return math.nan


def logit(prompt, text: str) -> float:
    return 2.5


def negative(prompt, text: str) -> float:
    return -1.0


def reward(function: str = "nice", **more: Any) -> SequenceRewardConfig:
    return SequenceRewardConfig(**({"name": function, "scorer": ScorerConfig(
        function=f"recipes.offline_runs:{function}")} | more))


def told(path: Path, n: int = 40, **more: Any) -> Path:
    """Demonstrations of four kinds, one row after the other; `more` are columns made from a row's number."""
    return tiny.write_rows(path, [
        {"id": f"d{i}", "prompt": prompt, "completion": tiny.said(ANSWERS[i % 4])}
        | {name: made(i) for name, made in more.items()} for i, prompt in enumerate(tiny.conversations(n))])


def offline_config(tmp: Path, **changes: Any) -> OfflinePGConfig:
    """Four steps with a learned value; a loss, a selection or a value may be given as a dict."""
    base, file = tmp / "base", tmp / "told.jsonl"
    settings = {
        "out": tmp / "run",
        "policy": ModelConfig(path=str(base if base.exists() else tiny.llama(base))),
        "data": DataConfig(path=str(file if file.exists() else told(file)), validation_fraction=0.3, max_length=64),
        "rewards": (reward(),),
        "steps": 4, "batch": 6, "optimizer": FAST, "eval_every": 2, "save_every": 2, "n_samples": 2,
        "value": {}, "sampling": SamplingConfig(max_new_tokens=6), "value_sampling": SamplingConfig(max_new_tokens=6),
    } | changes
    settings["value"] = ValueConfig(**({"samples": 2, "epochs": 2, "heads": 2, "lr": 1e-2} | settings["value"]))
    for name, kind in (("loss", OfflineLossConfig), ("selection", SelectionConfig)):
        settings[name] = kind(**settings.get(name, {}))
    return OfflinePGConfig(**settings)


def whole_batch(tmp: Path, **changes: Any) -> OfflinePGConfig:
    """Every step sees every response once, in some order, and nothing is held out."""
    file = tmp / "few.jsonl"
    data = DataConfig(path=str(file if file.exists() else told(file, 12)), validation_fraction=0.0, max_length=64)
    every = {"selection": {"keep": "all", "draw": "uniform"}, "value": {"kind": "batch_mean"}}
    return offline_config(tmp, **({"data": data, "batch": 12, "steps": 3, "n_samples": 0, "save_every": 1000} | every
                                  | changes))


def rows_of(cfg: OfflinePGConfig) -> list[Row]:
    """The tokens of every response of the data file."""
    found = read_responses(cfg.data.path, which=cfg.responses)[0]
    return render_demonstrations(template(load_tokenizer(cfg.policy.path)), [
        Demonstration(one.prompt, one.response) for one in found], cfg.data.max_length, cfg.data.too_long,
        max_response=cfg.max_response)[0]


def by_hand(model, row: Row) -> torch.Tensor:
    """Log-probability of each token of the response, from a row of its own in plain transformers."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return torch.stack([logits[t - 1, row.ids[t]] for t in range(row.n_prompt, len(row.ids))])


def killed_at(config: OfflinePGConfig, owner: Any, name: str, n: int = 1, *, resume: bool = False) -> None:
    """Begin the run in a child of this process, which SIGKILL ends right after `owner.name` was called n times."""
    child = _fork()
    if child == 0:
        try:
            real, calls = getattr(owner, name), []

            def deadly(*arguments: Any, **named: Any) -> Any:
                found = real(*arguments, **named)
                calls.append(1)
                if len(calls) == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            setattr(owner, name, deadly)
            offline_pg.run(config, resume=resume)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"it was not killed at {name} {n}"
