"""Anchoring: a one-sided price on states that fall below where the model of the start spoke as the Assistant.

Thresholds and spread are measured on the model as it is at the start, also for the random directions of the control, so
that axis and control begin with the same share of tokens below. Prompts on which that model itself is below, because
they ask for a role, are left alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.config import Config
from keel.data.load import read_prompts
from keel.data.render import PromptRow, Template, render_prompts
from keel.errors import ConfigError, DataError
from keel.functional.directions import anchor_loss
from keel.functional.masked import weighted_sum
from keel.online.gauge import Gauge, answer_rows, content, opened, readings, response_means
from keel.rng import shuffled
from keel.rollout.respond import respond
from keel.rollout.sample import SamplingConfig
from keel.runs import Run, write_json
from keel.train.tally import Tally

__all__ = ["Anchor", "AnchorConfig", "Start", "anchored"]

FILE = "anchor.json"


class AnchorConfig(Config):
    """The price of states that leave the Assistant, measured on the model as it is at the start."""

    path: Path = Field(description="axis.safetensors of the model that learns")
    layers: tuple[int, ...] = Field((), description="blocks at which it acts; none: the axis's own")
    coef: float = Field(0.1, gt=0, description="lambda: weight of the squared shortfall, in spreads s")
    percentile: float = Field(5.0, gt=0, lt=100, description="tau: this percentile of the projections of tokens that "
                              "the start answers to defaults; 5: one token in 20 is below")
    defaults: str | None = Field(None, description="file of prompts that the default Assistant answers; none: prompts "
                                 "of the run that have no system turn")
    n_defaults: int = Field(64, ge=2, description="of them answered at most, drawn by the seed")
    prompts: Literal["assistant", "all"] = Field("assistant", description="anchored: prompts to which the start's own "
                                                 "answer stays above tau, or all")
    control: int | None = Field(None, ge=0, description="seed of random directions in place of the axis, with "
                                "thresholds of their own; none: the axis")


@dataclass(frozen=True)
class Start:
    """What the start of a run lends to those who measure its model.

    Attributes:
        model: before it has learned anything.
        words: its tokenizer and chat template.
        sampling: how it answers.
        room: tokens that a prompt may have.
        micro_tokens: token positions per forward pass.
        seed: of the run.
        log: of the run.
    """

    model: nn.Module
    words: Template
    sampling: SamplingConfig
    room: int
    micro_tokens: int
    seed: int
    log: Run

    def known(self, name: str) -> bool:
        """Whether a run that goes on has this file from when it began."""
        return self.log.resumed and (self.log.folder / name).exists()

    def means(self, gauge: Gauge, asked: Sequence[PromptRow], *names: str) -> list[Float[Tensor, "S N"]]:
        """Projections of the tokens of its own answers."""
        said = respond(self.model, self.words, asked, self.sampling, seed=self.seed, names=names)
        return readings(self.model, gauge, answer_rows(said, asked), self.words, self.micro_tokens)

    def read(self, path: str, n: int, *names: str) -> list[PromptRow]:
        """At most n prompts of a file that fit, drawn by the seed."""
        found = read_prompts(path)[0]
        some = [found[i] for i in sorted(shuffled(len(found), self.seed, *names)[:n])]
        return render_prompts(self.words, some, max(self.room, 1), "drop")[0]


@dataclass(frozen=True)
class Anchor:
    """Directions with the thresholds below which states cost.

    Attributes:
        gauge: reads the projections; on while a pass is made that `cost` is asked about.
        floor, spread: tau and s, one for each block of the gauge.
        coef: lambda.
        rows: ids of the records that are anchored; none: all.
        stop_ids: tokens that end a turn, which cost nothing.
    """

    gauge: Gauge
    floor: tuple[float, ...]
    spread: tuple[float, ...]
    coef: float
    rows: frozenset[str] | None
    stop_ids: tuple[int, ...]

    def cost(self, batch: TokenBatch, weights: Float[Tensor, "B T"], total: Tensor | float, tally: Tally) -> Tensor:
        """The share of this batch in the objective, with its gradient.

            lambda sum_t w_t sum_l relu(tau_l - <h_t^l, v_l>)^2 / s_l^2 / sum_t w_t

        The sum over t in the denominator is that of the whole optimiser step, so micro-batches change nothing.

        Args:
            batch: over which a pass was just made under the gauge.
            weights: of each token, as in the loss beside it.
            total: their sum over the whole step.
            tally: is told the parts.
        """
        projections, where = self.gauge.of(batch), content(batch, self.stop_ids)
        if self.rows is not None:
            where = where & torch.tensor([name in self.rows for name in batch.record_ids], device=where.device)[:, None]
        price, below = torch.zeros_like(weights), torch.zeros_like(where)
        for p, floor, spread in zip(projections, self.floor, self.spread, strict=True):
            loss, stats = anchor_loss(p, where, floor=floor, spread=spread)
            price, below = price + loss, below | (stats["anchor/below"] > 0)
        height = self.heights(projections.detach())
        tally.add({"anchor/loss": price}, weights)
        tally.add({"anchor/below": below.float(), "anchor/height": height}, weights * where)
        return self.coef * weighted_sum(price, weights) / total

    def heights(self, projections: Tensor) -> Tensor:
        """How far above tau, in standard deviations, mean over the blocks, which come first."""
        to = [1] * (projections.ndim - 1)
        floor, spread = (torch.tensor(x, device=projections.device).view(-1, *to) for x in (self.floor, self.spread))
        return ((projections - floor) / spread).mean(0)

    def row(self) -> dict[str, Any]:
        """What the run folder keeps of it."""
        return {"layers": self.gauge.layers, "floor": list(self.floor), "spread": list(self.spread),
                "rows": None if self.rows is None else sorted(self.rows)}

    def result(self) -> dict[str, Any]:
        """What result.json says."""
        return self.row() | {"rows": None if self.rows is None else len(self.rows)}


def anchored(cfg: AnchorConfig | None, start: Start, prompts: Sequence[PromptRow]) -> Anchor | None:
    """Measure where the model of the start stands, or read what it was when the run began; none where it is off.

    Args:
        cfg: settings.
        start: model and so on.
        prompts: of the run; their ids are those of the rows that it will learn from.

    Raises:
        ConfigError: no prompt is anchored, or none tells what the default is.
        DataError: the answers are too short or too much alike to measure anything on.
        ModelError: the axis file is missing or does not fit the model.
    """
    if cfg is None:
        return None
    gauge = Gauge(opened(cfg.path, start.model, cfg.layers, cfg.control))
    file = start.log.folder / FILE
    if start.known(FILE):
        held = json.loads(file.read_text(encoding="utf-8"))
        rows = None if held["rows"] is None else frozenset(held["rows"])
        return Anchor(gauge, tuple(held["floor"]), tuple(held["spread"]), cfg.coef, rows, start.words.stop_ids)
    prompts = [row for row in prompts if len(row.ids) <= start.room]  # longer ones leave no room for an answer
    floor, spread = thresholds(cfg, start, gauge, prompts)
    found = Anchor(gauge, floor, spread, cfg.coef, None, start.words.stop_ids)
    if cfg.prompts == "assistant":
        found = Anchor(gauge, floor, spread, cfg.coef, above(found, start, prompts), start.words.stop_ids)
    write_json(file, found.row())
    return found


def thresholds(cfg: AnchorConfig, start: Start, gauge: Gauge, prompts: Sequence[PromptRow],
               ) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """tau and s of each block, over the tokens of the start's answers to default prompts.

    Raises: see `anchored`.
    """
    if cfg.defaults is not None:
        asked = start.read(cfg.defaults, cfg.n_defaults, "defaults")
    else:
        plain = [row for row in prompts if not any(turn.role == "system" for turn in row.record.messages)]
        asked = [plain[i] for i in sorted(shuffled(len(plain), start.seed, "defaults")[: cfg.n_defaults])]
    if not asked:
        raise ConfigError("no prompt of the run is short enough and without a system turn: the default is unknown",
                          where="anchor.defaults", remedy="Name a file of prompts that it answers as itself.")
    tokens = torch.cat(start.means(gauge, asked, "defaults"), 1)
    spread = tokens.std(1) if tokens.shape[1] > 1 else torch.zeros(len(tokens))
    if not bool((spread > 0).all()):
        raise DataError(f"{tokens.shape[1]} tokens of {len(asked)} default answers leave no threshold to measure",
                        where="anchor.defaults", remedy="Give more prompts, or look why the model hardly answers them.")
    floor = tokens.quantile(cfg.percentile / 100, dim=1)
    return tuple(floor.tolist()), tuple(spread.tolist())


def above(anchor: Anchor, start: Start, prompts: Sequence[PromptRow]) -> frozenset[str]:
    """Ids of the prompts to which the start's own answer stays above tau, on average over its tokens and the blocks.

    Raises:
        ConfigError: there are none.
    """
    first = dict[tuple[int, ...], PromptRow]()
    for row in prompts:
        first.setdefault(tuple(row.ids), row)
    asked = list(first.values())
    heights = anchor.heights(response_means(start.means(anchor.gauge, asked, "own answers")))
    good = {tuple(row.ids) for row, height in zip(asked, heights.tolist(), strict=True) if height >= 0}
    if not good:
        raise ConfigError(f"the start's own answers fall below tau on all {len(asked)} prompts: nothing is anchored",
                          where="anchor", remedy="Lower anchor.percentile, or set anchor.prompts to all.")
    start.log.note(f"anchored are {len(good)} of {len(asked)} different prompts: those on which the model of the start "
                   "stays above the threshold")
    return frozenset(row.record_id for row in prompts if tuple(row.ids) in good)
