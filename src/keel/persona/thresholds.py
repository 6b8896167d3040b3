"""Thresholds for caps: where a stated population projects, block by block, and what a floor there would touch.

A population is either the means of whole responses, as published, or single tokens. What a cap acts on is always single
tokens, so both are measured: how much of the population lies below a floor, and how many tokens do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from keel.data.collate import budget_batches, collate
from keel.data.render import Row
from keel.errors import ConfigError
from keel.functional.directions import project, token_means
from keel.functional.spaces import quantile_with_error
from keel.models.forward import hidden_states
from keel.models.load import device_of
from keel.models.residual import Columns, attach
from keel.persona.axis import AssistantAxis
from keel.persona.cap import Cap, axis_percentile, preset_name

__all__ = ["Fit", "Floor", "Projected", "Where", "floors", "in_force", "presets", "project_rows", "windows_of"]

Fit = Literal["response", "token"]
Where = Literal["all", "generation"]


@dataclass(frozen=True)
class Projected:
    """Projections of rows on the axis, one column per block, float32 on the CPU.

    Attributes:
        layers: the blocks.
        means: mean over the response's tokens, one line per row.
        prompt: every token before the responses but the last.
        last: the last token before each response, which gives its first token.
        response: every token of the responses, without those that end them.
    """

    layers: tuple[int, ...]
    means: Float[Tensor, "R L"]
    prompt: Float[Tensor, "P L"]
    last: Float[Tensor, "R L"]
    response: Float[Tensor, "N L"]

    def population(self, fit: Fit, where: Where) -> Float[Tensor, "M L"]:
        """What a percentile is taken of."""
        if fit == "response":
            return self.means
        return torch.cat([self.last, self.response] if where == "generation" else
                         [self.prompt, self.last, self.response])


@dataclass(frozen=True)
class Floor:
    """A threshold at one block.

    Attributes:
        layer: the block.
        stated: percentile as in the names of presets, on the role-playing direction.
        floor: least projection on the axis that it leaves.
        error: its standard error.
        population, prompt, response: share below the floor of the population, of all prompt tokens, of response tokens.
    """

    layer: int
    stated: float
    floor: float
    error: float
    population: float
    prompt: float
    response: float


@torch.no_grad()
def project_rows(model: nn.Module, axis: AssistantAxis, rows: Sequence[Row], contents: Sequence[tuple[int, int]],
                 layers: Sequence[int], *, micro_tokens: int, pad_id: int) -> Projected:
    """Run the model over whole conversations as it is, and keep one number for each token and block.

    Args:
        model: of the axis.
        axis: to project on.
        rows: prompts with responses.
        contents: first token of each response's text and the one behind its last.
        layers: blocks to look at.
        micro_tokens: token positions per pass; changes memory, not results.
        pad_id: fills rows.
    """
    units = {layer: axis.unit(layer) for layer in layers}
    seen: dict[int, Tensor] = {}

    def look(layer: int, hidden: Tensor, columns: Columns) -> None:
        seen[layer] = project(hidden, units[layer].to(hidden.device)).cpu()

    parts: list[tuple[list[int], list[Tensor]]] = []
    with attach(model, dict.fromkeys(layers, look)):
        for batch in budget_batches([row.n_tokens for row in rows], micro_tokens):
            tokens = collate([rows[i] for i in batch], pad_id)
            hidden_states(model, tokens.to(device_of(model)))
            found = torch.stack([seen[layer] for layer in layers], -1)  # [B T L]
            bounds = torch.tensor([contents[i] for i in batch])
            parts.append((batch, _parted(found, tokens.attention_mask, bounds)))
    order = torch.tensor([i for batch, _ in parts for i in batch]).argsort()
    means, prompt, last, response = (torch.cat([some[k] for _, some in parts]) for k in range(4))
    return Projected(tuple(layers), means[order], prompt, last[order], response)


def _parted(found: Float[Tensor, "B T L"], real: Bool[Tensor, "B T"], bounds: Tensor) -> list[Tensor]:
    column = torch.arange(found.shape[1])
    inside = (column >= bounds[:, :1]) & (column < bounds[:, 1:])
    last = column == bounds[:, :1] - 1
    before = (column < bounds[:, :1] - 1) & real
    return [token_means(found, inside), found[before], found[last], found[inside]]


def floors(projected: Projected, stated: Sequence[float], fit: Fit, where: Where) -> list[Floor]:
    """A threshold for each block and percentile."""
    population = projected.population(fit, where)
    prompt = torch.cat([projected.prompt, projected.last])
    # Tokens of one response are alike. Taken as one observation per response, the error is an upper bound.
    alike = (len(population) / len(projected.means)) ** 0.5
    found = []
    for k, layer in enumerate(projected.layers):
        for one in stated:
            at, error = quantile_with_error(population[:, k], axis_percentile(one))
            shares = [float((x[:, k] < at).float().mean()) for x in (population, prompt, projected.response)]
            found.append(Floor(layer, one, float(at), float(error) * alike, *shares))
    return found


def windows_of(n_layers: int, named: Sequence[str] | None, widths: Sequence[int] | None, every: int | None,
               ) -> list[tuple[int, int]]:
    """Slices of adjacent blocks: those that are named, or all of some widths at regular places.

    Args:
        n_layers: blocks of the model.
        named: slices such as "46:54", the end not included.
        widths: none: an eighth of the blocks.
        every: blocks between the beginnings; none: half a width.

    Raises:
        ConfigError: a slice is none, or does not fit the model.
    """
    if named is not None:
        return [_slice(text, n_layers) for text in named]
    found = []
    for width in widths if widths is not None else [max(1, n_layers // 8)]:
        if width > n_layers:
            raise ConfigError(f"widths has {width}, but the model has {n_layers} blocks",
                              remedy="Give narrower windows.")
        found += [(start, start + width) for start in range(0, n_layers - width + 1, every or max(1, width // 2))]
    return found


def _slice(text: str, n_layers: int) -> tuple[int, int]:
    start, _, stop = text.partition(":")
    if not (start.isdigit() and stop.isdigit() and int(start) < int(stop) <= n_layers):
        raise ConfigError(f"layers has {text!r}, which is no slice of {n_layers} blocks",
                          remedy="Write START:STOP, the stop not included: 46:54 are the blocks 46 to 53.")
    return int(start), int(stop)


def presets(found: Sequence[Floor], windows: Sequence[tuple[int, int]], *, fit: Fit, where: Where, population: str,
            source: str) -> dict[str, Cap]:
    """A cap for each window and percentile."""
    by_place = {(one.layer, one.stated): one.floor for one in found}
    caps = {}
    for start, stop in windows:
        for stated in dict.fromkeys(one.stated for one in found):
            layers = tuple(range(start, stop))
            caps[preset_name(start, stop, stated, fit, where)] = Cap(
                layers, tuple(by_place[layer, stated] for layer in layers), (None,) * len(layers),
                axis_percentile(stated), population, source)
    return caps


@torch.no_grad()
def in_force(model: nn.Module, axis: AssistantAxis, preset: str, rows: Sequence[Row], where: Where, *,
             micro_tokens: int, pad_id: int) -> Mapping[int, Mapping[str, Mapping[str, float]]]:
    """What a preset does while it acts on these rows: see `Handle.stats`. Later blocks see what earlier ones did."""
    with axis.cap(model, preset, where=where) as handle:
        for batch in budget_batches([row.n_tokens for row in rows], micro_tokens):
            hidden_states(model, collate([rows[i] for i in batch], pad_id).to(device_of(model)))
        return handle.stats()
