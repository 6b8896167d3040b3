"""What `keel experiment offline` compares, fixed before any seed was run: methods, ablations, sizes, learning rates.

Every method starts from the same reference and takes the same number of optimiser steps over as many responses each (a
pair counts as two), with one optimiser and one bound on the gradient. Its model is the one after the last step.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from keel.config import Config
from keel.experiments.offline_world import KNOWN_BAD, rewards
from keel.models.load import ModelConfig, ScratchConfig
from keel.recipes.offline_pg import OfflinePGConfig
from keel.recipes.preference import PreferenceConfig
from keel.recipes.sft import SFTConfig
from keel.rollout.sample import SamplingConfig
from keel.train.inputs import DataConfig
from keel.train.offline import OfflineLossConfig, SelectionConfig
from keel.train.step import OptimizerConfig
from keel.train.value import ValueConfig

__all__ = ["ABLATIONS", "GREEDY", "LRS", "METHODS", "NOISES", "QUARTERED", "SAMPLED", "Cell", "Method",
           "OfflineTrialConfig", "partial_dpo", "sft_config", "trial"]

NOISES = (0.0, 0.25, 0.5, 0.75)
MIDDLE = 0.5
"""Noise at which learning rates are chosen, most claims are asked and everything is ablated."""
TUNING_SEED = 1_000_000
"""Of the data on which learning rates are chosen: no trial has this seed."""
LRS = (1e-4, 5e-4, 2.5e-3)
"""Every method has the one of these with the highest validation total on the tuning seed, at every noise and seed."""
SHAPE = ScratchConfig(hidden=64, layers=2, heads=4, intermediate=176, max_positions=64)
MAX_LENGTH, MAX_NEW_TOKENS, MICRO_TOKENS = 48, 26, 8192
SFT_BATCH, SFT_LR = 64, 2e-3
SAMPLED = SamplingConfig(temperature=1.0, max_new_tokens=MAX_NEW_TOKENS)
GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS)


class OfflineTrialConfig(Config):
    """Everything `keel experiment offline` reads."""

    out: Path = Field(Path("runs/experiment-offline"), description="folder to make, or to go on with")
    seeds: int = Field(5, ge=1, le=20, description="seeds; fewer than five settle nothing")
    first_seed: int = Field(0, ge=0, description="the first of them; the others follow")
    jobs: int = Field(2, ge=1, description="processes at a time, each of one thread")
    n_train: int = Field(4000, ge=40, description="training prompts, each with two responses")
    n_validation: int = Field(200, ge=10, description="prompts of value estimate and learning rates")
    n_test: int = Field(500, ge=2, description="prompts on which everything is reported")
    sft_steps: int = Field(1000, ge=1, description="steps of the reference; with the default its validation loss has "
                           "stopped falling")
    steps: int = Field(160, ge=4, multiple_of=4, description="optimiser steps of every method, examined by quarters")
    batch: int = Field(32, ge=2, multiple_of=2, description="responses per optimiser step")
    ablations: bool = Field(True, description="run the ablations, at noise 0.5")
    ablation_seeds: int = Field(5, ge=1, le=20, description="the first so many seeds are ablated, at most all")


@dataclass(frozen=True)
class Method:
    """A way to learn from the data.

    Attributes:
        says: the same in words.
        loss: settings of `keel offline-pg`'s loss; a name: of `keel preference`'s.
        selection: which responses are drawn.
        value: kind of the value estimate.
        kl_share: of the mean positive advantage, as weight of the term of a_lol_kl.
        flipped: learn from the pairs of which a share has the wrong label.
        lr_of: the method whose learning rate it has; none: its own.
    """

    says: str
    loss: Mapping[str, Any] | Literal["dpo", "ipo_sum", "kto"]
    selection: Mapping[str, Any] = field(default_factory=dict)
    value: Literal["learned", "constant", "batch_mean", "sampled"] = "learned"
    kl_share: float | None = None
    flipped: bool = False
    lr_of: str | None = None


A_LOL = Method("A-LoL", {"variant": "a_lol"})
KL = Method("A-LoL KL, beta 0.1 of mean A+", {"variant": "a_lol_kl"}, kl_share=0.1)
METHODS: Mapping[str, Method] = {
    # First: what it finds out of advantages is what NLL on the top and A-LoL KL are told.
    "a_lol": A_LOL,
    "nll": Method("NLL, continued", {"variant": "nll"}),
    "nll_positive": Method("NLL on positive advantages", {"variant": "nll"}, {"keep": "positive"}),
    "nll_top": Method("NLL on the highest rewards, as many", {"variant": "nll"}, {"keep": "top"}),
    "wbc": Method("weighted behaviour cloning", {"variant": "wbc"}),
    "r_gold": Method("R-GOLD", {"variant": "r_gold"}),
    "r_lol": Method("R-LoL", {"variant": "r_lol"}),
    "a_lol_ref_free": Method("A-LoL, reference-free", {"variant": "a_lol_ref_free"}),
    "a_lol_seq": Method("A-LoL sequence", {"variant": "a_lol_seq"}),
    "a_lol_kl": KL,
    "dpo": Method("DPO, beta 0.1", "dpo"),
    "dpo_flipped": Method("DPO, 20% of labels wrong", "dpo", flipped=True, lr_of="dpo"),
    "ipo": Method("IPO, beta 0.1", "ipo_sum"),
    "kto": Method("KTO, beta 0.1", "kto"),
}
AGAIN = replace(A_LOL, lr_of="a_lol")
POSITIVE = {"keep": "positive", "draw": "uniform"}
UNWEIGHTED = {"variant": "a_lol", "weight": "one"}
UNIFORM = {"keep": "all", "draw": "uniform"}
ABLATIONS: Mapping[str, Method] = {
    "clip_02": replace(AGAIN, says="ratio within [0.8, 1.2]", loss={"variant": "a_lol", "clip": 0.2}),
    "clip_none": replace(AGAIN, says="ratio without bounds", loss={"variant": "a_lol", "clip": None}),
    "uniform_positive": replace(AGAIN, says="positive advantages drawn uniformly: weight A", selection=POSITIVE),
    "uniform_all": replace(AGAIN, says="all responses drawn uniformly: weight A+", selection=UNIFORM),
    "draw_only": replace(AGAIN, says="drawn by A, all weights 1: weight A", loss=UNWEIGHTED),
    "neither": replace(AGAIN, says="positive advantages drawn uniformly, all weights 1", selection=POSITIVE,
                       loss=UNWEIGHTED),
    "value_constant": replace(AGAIN, says="V: one number for all prompts", value="constant"),
    "value_batch": replace(AGAIN, says="V: mean of the batch, all drawn uniformly", value="batch_mean",
                           selection=UNIFORM),
    "value_sampled": replace(AGAIN, says="V: samples of the reference on the very prompt", value="sampled"),
    "length_norm": replace(AGAIN, says="sums divided by the number of tokens",
                           loss={"variant": "a_lol", "length_norm": True}),
    "kl_0": replace(KL, says="A-LoL KL, beta 0", kl_share=0.0, lr_of="a_lol_kl"),
    "kl_005": replace(KL, says="A-LoL KL, beta 0.05 of mean A+", kl_share=0.05, lr_of="a_lol_kl"),
    "kl_03": replace(KL, says="A-LoL KL, beta 0.3 of mean A+", kl_share=0.3, lr_of="a_lol_kl"),
}
QUARTERED = ("a_lol", "nll")
"""Run again with a quarter of the prompts, from a reference that saw no more."""


@dataclass(frozen=True)
class Cell:
    """A seed and a noise level: one world, one reference, one cache.

    Attributes:
        cfg: the experiment's.
        seed: of data, initialisation, order and samples.
        noise: chance that a response is bad.
        quarter: learn from a quarter of the training prompts.
    """

    cfg: OfflineTrialConfig
    seed: int
    noise: float
    quarter: bool = False

    @property
    def home(self) -> Path:
        """Its folder; that of a quarter lies in that of the whole."""
        return self.cfg.out / f"seed-{self.seed}" / f"noise-{round(100 * self.noise)}" / (
            "quarter" if self.quarter else "")

    @property
    def world(self) -> Path:
        """Its data."""
        return self.cfg.out / f"seed-{self.seed}" / f"noise-{round(100 * self.noise)}" / "world"

    @property
    def reference(self) -> ModelConfig:
        """What every method starts from."""
        return ModelConfig(path=str(self.home / "sft/model"))

    def data(self, kind: str) -> DataConfig:
        """Training and validation records of a kind: pairs, flipped or responses. Validation labels are right."""
        right = "pairs" if kind == "flipped" else kind
        return DataConfig(path=str(self.world / f"{'quarter' if self.quarter else 'train'}-{kind}.jsonl"),
                          validation=str(self.world / f"validation-{right}.jsonl"), max_length=MAX_LENGTH)

    @cached_property
    def learned_from(self) -> tuple[float, float]:
        """Share of the responses that A-LoL keeps, and the mean of the advantages that are positive."""
        text = (self.home / "a_lol/advantages.jsonl").read_text()
        positive = [one for one in (json.loads(line)["advantage"] for line in text.splitlines()) if one > 0]
        return len(positive) / len(text.splitlines()), fmean(positive)


def constant(lr: float) -> OptimizerConfig:
    """A constant rate, so that a run of fewer steps is the beginning of a longer one."""
    return OptimizerConfig(lr=lr, schedule="constant", warmup_fraction=0.0)


def sft_config(cell: Cell) -> SFTConfig:
    """The reference: imitation of all responses, good and bad."""
    steps = cell.cfg.sft_steps
    return SFTConfig(
        out=cell.home / "sft", model=ModelConfig(path=str(cell.cfg.out / "tokenizer"), init="scratch", scratch=SHAPE),
        data=cell.data("responses"), seed=cell.seed, steps=steps, batch=SFT_BATCH, micro_tokens=MICRO_TOKENS,
        optimizer=OptimizerConfig(lr=SFT_LR), eval_every=max(1, steps // 4), save_every=steps, sampling=SAMPLED,
        n_samples=4)


def trial(cell: Cell, name: str, method: Method, lr: float, suffix: str = "") -> OfflinePGConfig | PreferenceConfig:
    """A method as settings of the recipe that runs it; some look at what `a_lol` of the same cell has found."""
    out = cell.home / f"{name}{suffix}"
    if isinstance(method.loss, str):
        return preference(cell, out, method, lr, cell.cfg.steps)
    selection, loss = dict(method.selection), dict(method.loss)
    if selection.get("keep") == "top":
        selection["top_fraction"] = cell.learned_from[0]
    if method.kl_share is not None:
        loss["kl_coef"] = method.kl_share * cell.learned_from[1]
    n, steps = cell.cfg.n_validation, cell.cfg.steps
    return OfflinePGConfig(
        out=out, policy=cell.reference, data=cell.data("pairs"), responses="all", rewards=rewards(),
        cache=cell.home / "cache", known_bad=KNOWN_BAD, seed=cell.seed, loss=OfflineLossConfig(**loss),
        selection=SelectionConfig(**selection), value=ValueConfig(kind=method.value, prompts=n), value_sampling=SAMPLED,
        sampling=SAMPLED, steps=steps, batch=cell.cfg.batch, micro_tokens=MICRO_TOKENS,
        optimizer=constant(lr), eval_every=steps // 4, eval_prompts=n, save_every=steps,
        n_samples=4)


def preference(cell: Cell, out: Path, method: Method, lr: float, steps: int) -> PreferenceConfig:
    """One of the losses on pairs."""
    assert isinstance(method.loss, str)
    kind = "flipped" if method.flipped else "pairs"
    return PreferenceConfig(
        out=out, policy=cell.reference, reference_cache=cell.home / f"cache/{kind}", data=cell.data(kind),
        seed=cell.seed, loss=method.loss, beta=0.1, steps=steps, batch=cell.cfg.batch // 2, micro_tokens=MICRO_TOKENS,
        optimizer=constant(lr), eval_every=steps, save_every=steps, sampling=SAMPLED, n_samples=4)


def partial_dpo(cell: Cell, lr: float) -> dict[int, PreferenceConfig]:
    """The beginnings of a run of DPO, which answers no prompts on the way: by their steps, three quarters of it."""
    found: Sequence[int] = [k * cell.cfg.steps // 4 for k in (1, 2, 3)]
    return {steps: preference(cell, cell.home / f"dpo-{steps}", METHODS["dpo"], lr, steps) for steps in found}
