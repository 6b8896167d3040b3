"""Projections of a model's states on directions: of the pass just made, of given responses, of responses while they
are sampled."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.data.collate import Tokens, budget_batches, collate
from keel.data.render import PromptRow, Row, Template
from keel.functional.directions import project
from keel.models.forward import hidden_states
from keel.models.load import device_of
from keel.models.residual import Columns, attach
from keel.persona.axis import AssistantAxis
from keel.rollout.respond import Responses

__all__ = ["Gauge", "SampledMeans", "answer_rows", "content", "opened", "readings", "response_means"]


def opened(path: Path, model: nn.Module, layers: Sequence[int], control: int | None = None,
           ) -> dict[int, Float[Tensor, " D"]]:
    """Unit directions by block: of an axis file, or random ones in their place.

    Args:
        path: the axis file.
        model: that it must fit.
        layers: blocks; none: the file's own.
        control: draws random directions, the control of an axis; none: the axis itself.

    Raises:
        ModelError: there is no such file, or it is of a model of another shape.
    """
    axis = AssistantAxis.load(path)
    if control is not None:
        axis = axis.random(control)
    chosen = list(layers) or [axis.middle]
    axis.monitor(model, layers=chosen).detach()  # says what does not fit
    return {layer % axis.n_layers: axis.unit(layer) for layer in chosen}


@dataclass(frozen=True)
class Gauge:
    """Reads projections on unit directions, one at each of some blocks.

    Attributes:
        units: by block, float32.
        seen: what the last pass showed, by block; `of` takes it away.
    """

    units: Mapping[int, Float[Tensor, " D"]]
    seen: dict[int, Tensor] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        """Blocks, in the order of every stack of projections."""
        return list(self.units)

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Passes of this model inside are read, with their gradients."""
        with attach(model, dict.fromkeys(self.units, self._look)):
            yield

    def _look(self, layer: int, hidden: Tensor, _: Columns) -> None:
        self.seen[layer] = project(hidden, self.units[layer].to(hidden.device))

    def of(self, batch: TokenBatch) -> Float[Tensor, "S B T"]:
        """Projections of the pass just made over this batch."""
        found = torch.stack([self.seen.pop(layer) for layer in self.units])
        return found if batch.joined is None else found[:, 0, batch.joined.places]


def content(batch: TokenBatch, stop_ids: Sequence[int]) -> Bool[Tensor, "B T"]:
    """Response tokens without those that end a turn: what the assistant said."""
    ends = torch.isin(batch.ids, torch.tensor(list(stop_ids), device=batch.ids.device))
    return batch.response_mask & ~ends


@torch.no_grad()
def readings(model: nn.Module, gauge: Gauge, rows: Sequence[Tokens], words: Template, micro_tokens: int,
             ) -> list[Float[Tensor, "S N"]]:
    """Projections of the content tokens of each row, on the CPU."""
    found = [torch.zeros(len(gauge.units), 0)] * len(rows)
    for part in budget_batches([len(row.ids) for row in rows], micro_tokens):
        batch = collate([rows[i] for i in part], words.pad_id).to(device_of(model))
        with gauge.on(model):
            hidden_states(model, batch)
        projections, said = gauge.of(batch).cpu(), content(batch, words.stop_ids).cpu()
        for k, i in enumerate(part):
            found[i] = projections[:, k, said[k]]
    return found


def response_means(found: Sequence[Float[Tensor, "S N"]]) -> Float[Tensor, "S B"]:
    """The mean of each response over its tokens; NaN for one that says nothing."""
    return torch.stack([one.mean(1) for one in found], 1)


def answer_rows(responses: Responses, asked: Sequence[PromptRow]) -> list[Row]:
    """Sampled responses as rows of tokens."""
    tokens = responses.rollout.tokens
    return [Row(ids[real].tolist(), row.n_prompt, row.record_id) for ids, real, row in zip(
        tokens.ids.cpu(), tokens.attention_mask.cpu(), asked, strict=True)]


class SampledMeans:
    """Means of projections over the tokens of responses while keel's sampler writes them.

    The sampler feeds every token of a response but its last one, which ends the turn or is where a response was cut.
    """

    def __init__(self, gauge: Gauge, n_responses: int) -> None:
        self.gauge = gauge
        self.sums = {layer: torch.zeros(n_responses) for layer in gauge.units}
        self.counts = {layer: torch.zeros(n_responses) for layer in gauge.units}
        self.begun = {layer: torch.zeros(n_responses, dtype=torch.bool) for layer in gauge.units}

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Responses that this model samples inside are read."""
        with attach(model, dict.fromkeys(self.gauge.units, self._look)):
            yield

    def _look(self, layer: int, hidden: Tensor, columns: Columns) -> None:
        rows, device = columns.rows, hidden.device
        for held in (self.sums, self.counts, self.begun):
            held[layer] = held[layer].to(device)
        if hidden.shape[1] == 1:  # one token of each response, or of prompts that are no longer than that
            heard = self.begun[layer][rows]
            found = project(hidden, self.gauge.units[layer].to(device))[:, 0].float()
            self.sums[layer].index_add_(0, rows, torch.where(heard, found, 0.0))
            self.counts[layer].index_add_(0, rows, heard.float())
        self.begun[layer][rows] = True

    def means(self) -> Float[Tensor, "S B"]:
        """Of each response, on the CPU; NaN for one that says nothing."""
        return torch.stack([(self.sums[layer] / self.counts[layer]).cpu() for layer in self.gauge.units])
