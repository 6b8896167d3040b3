"""`keel sandbox pretrain`: the town's base model from nothing: talk, tokenizer, a small Llama, and its card.

Left out: length-bucketed batches; the micro-batches of each step are sorted by length already.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from keel.config import Config
from keel.data.load import read_prompts
from keel.data.render import render_prompts, template
from keel.data.write import write_records
from keel.models.load import ModelConfig, ScratchConfig, causal_lm, load_tokenizer
from keel.recipes import sft
from keel.rollout.respond import respond, scoring_function, summary
from keel.rollout.sample import SamplingConfig
from keel.runs import environment
from keel.sandbox.corpus import talk
from keel.sandbox.export import SandboxExportConfig
from keel.sandbox.export import run as export
from keel.sandbox.tokenizer import train_tokenizer
from keel.sandbox.world import World
from keel.train.inputs import DataConfig
from keel.train.step import OptimizerConfig

__all__ = ["PretrainConfig", "run"]


class PretrainConfig(Config):
    """Everything `keel sandbox pretrain` reads; the defaults made the model that ships with keel."""

    out: Path = Field(description="folder to make; the model goes to `base_model` in it")
    seed: int = Field(0, ge=0, description="fixes weights and order; the town itself is that of seed 0")
    n_talk: int = Field(72_000, ge=100, description="conversations of the town's talk to learn from")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: one pass over the talk")
    batch: int = Field(16, ge=1, description="conversations per optimiser step; small ones learn more per token")
    lr: float = Field(2e-3, gt=0, description="peak learning rate")
    shape: ScratchConfig = ScratchConfig()
    n_judged: int = Field(500, ge=20, description="test prompts on which the card's gold scores stand")


def run(cfg: PretrainConfig) -> Path:
    """Train the base model; returns its folder."""
    began = time.process_time()
    cfg.out.mkdir(parents=True)
    world = World(0)
    said = talk(world, cfg.n_talk)
    write_records(said, cfg.out / "talk.jsonl")
    write_records(talk(world, 1000, "validation", split="validation"), cfg.out / "talk-validation.jsonl")
    train_tokenizer(said).save_pretrained(cfg.out / "tokenizer")
    result = sft.run(sft.SFTConfig(
        out=cfg.out / "run", seed=cfg.seed, batch=cfg.batch, steps=cfg.steps, eval_every=500, save_every=500,
        model=ModelConfig(path=str(cfg.out / "tokenizer"), init="scratch", scratch=cfg.shape),
        data=DataConfig(path=str(cfg.out / "talk.jsonl"), validation=str(cfg.out / "talk-validation.jsonl"),
                        max_length=256),
        eval_rows=1000, sampling=SamplingConfig(max_new_tokens=64),
        optimizer=OptimizerConfig(lr=cfg.lr, betas=(0.9, 0.98), weight_decay=0.01, schedule="cosine", lr_floor=0.05,
                                  warmup_fraction=0.02)))
    folder = cfg.out / "base_model"
    shutil.copytree(result.folder / "model", folder)
    seconds = time.process_time() - began
    (folder / "README.md").write_text(card(cfg, dict(result.values), judged(cfg, folder), seconds))
    return folder


def judged(cfg: PretrainConfig, folder: Path) -> dict[str, dict[str, float]]:
    """Gold score of plain samples on test prompts, over all and by domain."""
    town = cfg.out / "town"
    export(SandboxExportConfig(out=town, n_heldout=cfg.n_judged, n_prompts=20, n_demonstrations=20, n_pairs=20))
    words = template(load_tokenizer(str(folder)))
    rows, _ = render_prompts(words, read_prompts(town / "prompts-test.jsonl")[0], 192, "drop")
    said = respond(causal_lm(ModelConfig(path=str(folder))), words, rows, SamplingConfig(max_new_tokens=64),
                   seed=cfg.seed, names=["card"])
    gold = said.scored_by(scoring_function("keel.sandbox.gold:gold_score"))
    domains = [prompt.meta["domain"] for prompt in said.prompts]
    found = {"all": summary(gold, cfg.seed, "all")}
    for name in sorted(set(domains)):
        picked = torch.tensor([domain == name for domain in domains])
        found[name] = summary(gold[picked], cfg.seed, name)
    return found


def card(cfg: PretrainConfig, result: dict[str, Any], gold: dict[str, dict[str, float]], seconds: float) -> str:
    """The model card: how it was made and what it reaches, in the numbers of this run."""
    import jinja2

    page = jinja2.Template((Path(__file__).parent / "base_model_card.md.j2").read_text(), keep_trailing_newline=True)
    return page.render(cfg=cfg, result=result, gold=gold, seconds=seconds,
                       here=environment("sandbox pretrain", cfg.seed, []))
