"""Conversations that took place, read along the axis: one projection for every token, and their mean for every turn.

Each conversation is read by one pass over its tokens. What is longer than the model's context is read in overlapping
windows, or cut, or left out, and counted. What acts on the model meanwhile (a cap) has acted before the reading.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.config import Config
from keel.data.chat import Template
from keel.data.collate import budget_batches, collate
from keel.data.dialogues import Dialogue
from keel.data.load import read_dialogues
from keel.data.records import Message
from keel.data.render import Row
from keel.data.spans import Conversation, Reasoning, TurnSpan, Window, render_conversation, windows
from keel.errors import DataError
from keel.models.forward import hidden_states
from keel.models.load import device_of
from keel.models.residual import Columns, attach
from keel.persona.axis import AssistantAxis
from keel.persona.settings import AxisConfig, applied

__all__ = ["Reading", "Talks", "TalksConfig", "both_ways", "context", "numbered", "read_along", "talks", "turn_rows"]

TooLong = Literal["windows", "cut", "drop"]


class TalksConfig(Config):
    """Which conversations are read, and how much of them."""

    path: str = Field(description="file or folder: messages, ShareGPT, prompt and response, or published transcripts")
    domain: str = Field("domain", description="column with what a conversation is about; domains have curves of their "
                        "own")
    label: str = Field("variant", description="column with the condition under which it took place")
    strip: tuple[str, ...] = Field((), description="names of tags cut out of all turns: <NAME>...</NAME> and lone "
                                   "<NAME>")
    limit: int | None = Field(None, ge=1, description="read this many conversations; none: all")
    on_bad_record: Literal["stop", "skip"] = Field("stop", description="stop and list bad records, or drop and count")
    max_length: int | None = Field(None, ge=8, description="tokens that the model reads at once; none: its context")
    too_long: TooLong = Field("windows", description="longer ones: overlapping windows, only the beginning, or left "
                              "out")
    reasoning: Reasoning = Field("keep", description="whether <think> blocks count as part of the reply")


@dataclass(frozen=True)
class Talks:
    """Conversations as tokens.

    Attributes:
        dialogues: as they were read.
        rendered: tokens and spans of each.
        skipped: what was left out, by kind.
        handled: what was read otherwise than it stands there, by kind: in windows, cut, with a joined system turn, and
            without tagged parts.
    """

    dialogues: tuple[Dialogue, ...]
    rendered: tuple[Conversation, ...]
    skipped: Mapping[str, int]
    handled: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Reading:
    """One conversation, read along the axis.

    Attributes:
        dialogue, rendered: the conversation and its tokens.
        label: under which condition it is read.
        layers: blocks.
        projections: of every token at each of them, raw; NaN for tokens that were not read. [K T]
    """

    dialogue: Dialogue
    rendered: Conversation
    label: str
    layers: tuple[int, ...]
    projections: Float[Tensor, "K T"]

    def of_turn(self, turn: TurnSpan, layer: int) -> tuple[float | None, int]:
        """Mean projection over the tokens of a turn that were read, and how many they are; none where there is none."""
        found = self.projections[self.layers.index(layer)][torch.tensor(turn.positions, dtype=torch.long)]
        found = found[~found.isnan()]
        return (float(found.double().mean()) if len(found) else None), len(found)


def talks(cfg: TalksConfig, words: Template, width: int) -> Talks:
    """Read and render the conversations of a file.

    Args:
        cfg: which.
        words: template of the model.
        width: tokens that it reads at once.

    Raises:
        DataError: bad rows, turns that cannot be found among the tokens, or no conversation left.
    """
    found, report = read_dialogues(cfg.path, on_bad_record=cfg.on_bad_record, domain=cfg.domain, label=cfg.label,
                                   strip=cfg.strip)
    left_out = Counter({"records": report.n_dropped, "too_long": 0, "not_rendered": 0})
    handled = Counter({"in_windows": 0, "cut": 0, "system_joined": 0, **report.left_out})
    kept, rendered = [], []
    for dialogue in found[: cfg.limit]:
        try:
            one = render_conversation(words, dialogue.messages, record_id=dialogue.id, reasoning=cfg.reasoning)
        except DataError:
            if cfg.on_bad_record == "stop":
                raise
            left_out["not_rendered"] += 1
            continue
        if len(one.ids) > width and cfg.too_long == "drop":
            left_out["too_long"] += 1
            continue
        handled["system_joined"] += one.joined
        handled["in_windows" if cfg.too_long == "windows" else "cut"] += len(one.ids) > width
        kept.append(dialogue)
        rendered.append(one)
    if not kept:
        raise DataError(f"none of {len(found)} conversations fits into {width} tokens and the chat template",
                        where=cfg.path, remedy="Set data.too_long to windows or cut, or raise data.max_length; with "
                                               "data.on_bad_record = stop the template says what it refuses.")
    return Talks(tuple(kept), tuple(rendered), dict(left_out), dict(handled))


def context(model: nn.Module, asked: int | None, longest: int = 1 << 20) -> int:
    """Tokens that a model reads at once: what was asked for, never more than its context.

    Raises:
        DataError: more was asked for than the model's context.
    """
    config: Any = model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or longest
    if asked is not None and asked > limit:
        raise DataError(f"data.max_length={asked} is beyond the model's context of {limit} tokens",
                        remedy=f"Set it to {limit} or less, or leave it out.")
    return asked or limit


@dataclass(frozen=True)
class Read:
    """Readings of all conversations, and what acted meanwhile.

    Attributes:
        plain: with nothing acting.
        acted: the same conversations while something acts; empty where nothing does.
        caps: what caps did at each block, see `keel.persona.handles.Handle.stats`.
    """

    plain: tuple[Reading, ...]
    acted: tuple[Reading, ...]
    caps: Mapping[str, Any]

    @property
    def all(self) -> tuple[Reading, ...]:
        return self.plain + self.acted


def both_ways(
    model: nn.Module, words: Template, found: Talks, *, layers: Sequence[int], acting: AxisConfig, cfg: TalksConfig,
    micro_tokens: int, on_done: Callable[[int], None],
) -> Read:
    """The conversations read along the axis of the settings; once more while it acts, where it is told to.

    Raises:
        ModelError: the axis does not fit the model, or has no such preset.
    """
    axis, at = AssistantAxis.load(acting.path), tuple(layers)
    plain = read_along(model, words, axis, found, layers=at, cfg=cfg, micro_tokens=micro_tokens, on_done=on_done)
    one = tuple(Reading(dialogue, rendered, dialogue.label or "", at, values)
                for dialogue, rendered, values in zip(found.dialogues, found.rendered, plain, strict=True))
    if not acting.acts:
        return Read(one, (), {})
    n = len(one)
    with applied(acting, model) as handles:
        held = read_along(model, words, axis, found, layers=at, cfg=cfg, micro_tokens=micro_tokens,
                          on_done=lambda done: on_done(n + done))
    label = " and ".join(["steered"] * (acting.steer is not None) +
                         ["capped"] * (acting.cap is not None or acting.lower is not None))
    if acting.control is not None:
        label += " at random"
    other = tuple(replace(reading, label=", now ".join(filter(None, [reading.label, label])), projections=values)
                  for reading, values in zip(one, held, strict=True))
    return Read(one, other, {str(layer): told for handle in handles for layer, told in handle.stats().items()})


@torch.no_grad()
def read_along(
    model: nn.Module, words: Template, axis: AssistantAxis, found: Talks, *, layers: Sequence[int], cfg: TalksConfig,
    micro_tokens: int, on_done: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Raw projections of every token of every conversation, [K T] each; NaN for those that are not read.

    Args:
        model: with whatever acts on it attached already.
        words: its template.
        axis: of the model.
        found: conversations.
        layers: blocks, counted from 0.
        cfg: how long ones are read.
        micro_tokens: token positions per pass; changes memory, not results.
        on_done: told how many conversations have been begun.
    """
    width = context(model, cfg.max_length)
    pieces = list(_pieces(found.rendered, width, words.start_id, cfg.too_long))
    out = [torch.full((len(layers), len(one.ids)), math.nan) for one in found.rendered]
    seen: dict[int, Tensor] = {}

    def tap(layer: int, hidden: Tensor, columns: Columns) -> None:
        seen[layer] = axis.project(hidden.detach(), layer).cpu()

    begun: dict[int, None] = {}
    with attach(model, dict.fromkeys(layers, tap)):
        for part in budget_batches([len(ids) for _, _, ids in pieces], micro_tokens):
            hidden_states(model, _batch([pieces[i] for i in part], found.rendered, words).to(device_of(model)))
            for row, (index, window, ids) in enumerate(pieces[i] for i in part):
                shift = len(ids) - window.stop  # negative where a window begins inside the conversation
                read = slice(window.read_from + shift, len(ids))
                out[index][:, window.read_from:window.stop] = torch.stack([seen[layer][row, read] for layer in layers])
                begun[index] = None
            if on_done is not None:
                on_done(len(begun))
    return out


def _pieces(rendered: Sequence[Conversation], width: int, start_id: int | None, too_long: TooLong,
            ) -> Iterator[tuple[int, Window, list[int]]]:
    """Number of the conversation, the window, and its tokens; each window begins as rows do."""
    for index, one in enumerate(rendered):
        start = [] if start_id is None or one.ids[:1] != [start_id] else [start_id]
        whole = [Window(0, min(len(one.ids), width), 0)]
        fits = len(one.ids) <= width or too_long == "cut"
        for window in whole if fits else windows(len(one.ids), width - len(start)):
            yield index, window, (start if window.start else []) + one.ids[window.start:window.stop]


def _batch(pieces: Sequence[tuple[int, Window, list[int]]], rendered: Sequence[Conversation], words: Template,
           ) -> TokenBatch:
    """Right-padded; the assistant's turns are what counts as generated."""
    batch = collate([Row(ids, 0, rendered[index].record_id) for index, _, ids in pieces], words.pad_id)
    said = torch.zeros_like(batch.attention_mask)
    for row, (index, window, ids) in enumerate(pieces):
        own = torch.zeros(len(rendered[index].ids), dtype=torch.bool)
        for turn in rendered[index].turns:
            if turn.role == "assistant":
                own[turn.start:turn.end] = True
        said[row, len(ids) - (window.stop - window.start):len(ids)] = own[window.start:window.stop]
    return replace(batch, response_mask=said)


def numbered(messages: Sequence[Message]) -> list[int]:
    """For each message, which of the assistant's turns it is, or which comes next; from 1 on."""
    found, n = [], 1
    for turn in messages:
        found.append(n)
        n += turn.role == "assistant"
    return found


def turn_rows(reading: Reading, axis: AssistantAxis, layer: int) -> list[dict[str, Any]]:
    """One row for each message: whose it is, its mean projection as it is and from the mean of the roles."""
    centre = 0.0 if axis.role_mean is None else axis.centre(layer)
    rows = []
    for turn, number in zip(reading.rendered.turns, numbered(reading.dialogue.messages), strict=True):
        raw, n_tokens = reading.of_turn(turn, layer)
        centred = None if raw is None or axis.role_mean is None else raw - centre
        rows.append({"turn": number, "message": turn.index, "role": turn.role, "raw": raw, "centred": centred,
                     "n_tokens": n_tokens})
    return rows
