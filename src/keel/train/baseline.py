"""What the frozen reference reaches on each prompt of the data, before anything is learned: found once, kept on disk.

    FOLDER/samples/KEY.jsonl    rewards of the reference's responses to each prompt that it answered
    FOLDER/KEY.jsonl            V of each prompt by a head, see `FrozenNumbers`
    FOLDER/KEY.json             how it was found
    FOLDER/KEY.safetensors      the head, where one was fitted

KEY stands for the reference, the rewards, the settings, the prompts that were answered and the seed; of the samples, it
does not stand for what is made of them, so that another head learns from the same ones.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from keel.data.render import PromptRow, Row
from keel.models.load import device_of
from keel.models.value_head import ValueHead, load_head, save_head
from keel.runs import write_json
from keel.train.frozen import FrozenNumbers, OnDone, row_digest
from keel.train.states import prompt_states, value_numbers
from keel.train.value import ValueConfig, fit_value

__all__ = ["Reference", "reference_values", "tell_of_values"]

AT_ONCE = 128
"""Prompts whose samples are drawn and judged between two writes to the disk."""


class Judged(Protocol):
    """Rewards of so many of the reference's responses to each of some prompts, [N K]."""

    def __call__(self, asked: Sequence[PromptRow], n: int, on_done: OnDone | None = None) -> Float[Tensor, "N K"]: ...


@dataclass(frozen=True)
class Reference:
    """The frozen reference, and what its responses are worth.

    Attributes:
        model: in eval mode.
        identity: whatever can change a number that it gives, see `reference_identity`.
        judging: whatever else can change a reward of its responses: the rewards, how they are drawn, the tokenizer.
        judged: what its responses are worth.
        bounds: of the reward.
        pad_id: what stands in the padding.
        micro_tokens: token positions per forward pass.
    """

    model: nn.Module
    identity: Mapping[str, Any]
    judging: Mapping[str, Any]
    judged: Judged
    bounds: tuple[float, float]
    pad_id: int
    micro_tokens: int


def reference_values(reference: Reference, prompts: Sequence[PromptRow], asked: Sequence[PromptRow], cfg: ValueConfig,
                     folder: Path, seed: int, on_done: OnDone | None = None,
                     ) -> tuple[Float[Tensor, " N"], dict[str, Any]]:
    """V of every prompt, float64, and how it was found.

    Args:
        reference: who is measured.
        prompts: of the data, repeated where several responses have one.
        asked: held-out prompts that the reference answers, for `learned` and `constant`; at most cfg.prompts are taken.
        cfg: how.
        folder: where all of it is kept.
        seed: of the fit.
        on_done: told of samples drawn, then of values computed.

    Raises:
        DataError: too few prompts are held out.
        NumericsError: a value is not finite.
    """
    asked = [] if cfg.kind == "sampled" else asked[: cfg.prompts]
    # Two prompts of the same tokens are different where a reward may tell them apart; V by a head cannot.
    names = _names(prompts) if cfg.kind == "sampled" else [_digest(row) for row in prompts]
    origin = {"reference": reference.identity, "judging": reference.judging, "seed": seed, "asked": _names(asked)}
    samples = FrozenNumbers(folder / "samples", origin | {"samples": cfg.samples}, np.float64)
    kept = FrozenNumbers(folder, origin | {"value": cfg.model_dump(mode="json")})
    how: dict[str, Any] = {"kind": cfg.kind, "training_prompts": len({*names}), "stale": _is_stale(kept, samples, cfg)}
    if cfg.kind == "sampled":
        found, n_computed = _sampled(reference, prompts, samples, cfg.samples, on_done)
        return found.mean(1), how | {"computed": n_computed}
    if cfg.kind == "constant":
        told = _remembered(_notes(kept), lambda: {
            "mean": float(_sampled(reference, asked, samples, cfg.samples, on_done)[0].mean()),
            "samples": len(asked) * cfg.samples})
        return torch.full((len(prompts),), told["mean"], dtype=torch.float64), how | told
    head, report = _fitted(reference, asked, cfg, kept, seed,
                           lambda: _sampled(reference, asked, samples, cfg.samples, on_done)[0])
    compute = value_numbers(reference.model, head, prompts, pad_id=reference.pad_id,
                            micro_tokens=reference.micro_tokens)
    numbers, n_computed = kept.fill(names, compute, [row.record_id for row in prompts], on_done)
    return torch.tensor(np.array(numbers)[:, 0], dtype=torch.float64), how | report | {"computed": n_computed}


def _fitted(reference: Reference, asked: Sequence[PromptRow], cfg: ValueConfig, kept: FrozenNumbers, seed: int,
            rewards: Callable[[], Float[Tensor, "N K"]]) -> tuple[ValueHead, dict[str, Any]]:
    """The head, fitted or found, and how its fit went."""
    # DEVIATION(offline_pg-2): released, padding takes part in the attention, dropout is never switched off, one sample
    # stands for a prompt, and the epoch with the lowest error on the very samples that were learned from is taken.
    file = kept.file.with_suffix(".safetensors")
    if not (file.exists() and _notes(kept).exists()):
        targets = rewards().flatten()
        states = prompt_states(reference.model, asked, pad_id=reference.pad_id, micro_tokens=reference.micro_tokens)
        owners = [i for i in range(len(asked)) for _ in range(cfg.samples)]
        low, high = reference.bounds
        fitted = fit_value(states, targets, owners, cfg, low=low, high=high, seed=seed)
        save_head(fitted.head, file)
        write_json(_notes(kept), asdict(fitted.report) | {"beats_mean": fitted.report.beats_mean})
    return load_head(file).to(device_of(reference.model)), json.loads(_notes(kept).read_text())


def _sampled(reference: Reference, rows: Sequence[PromptRow], samples: FrozenNumbers, n: int, on_done: OnDone | None,
             ) -> tuple[Float[Tensor, "N K"], int]:
    """Rewards of n of the reference's responses to each prompt, found or drawn, and for how many rows they are drawn.

    Rows of one prompt share their samples.
    """
    names = _names(rows)
    places = sorted({name: i for i, name in reversed(list(enumerate(names)))}.values())

    def compute(skip: Callable[[list[int]], bool]) -> Iterator[tuple[list[int], list[list[float]]]]:
        for start in range(0, len(places), AT_ONCE):
            part = [i for i in places[start : start + AT_ONCE] if not skip([i])]
            tell = on_done and partial(_tell, on_done, start * n, len(places) * n)
            if part:
                yield part, reference.judged([rows[i] for i in part], n, tell).tolist()
    found, n_drawn = samples.fill(names, compute, [row.record_id for row in rows])
    return torch.from_numpy(np.stack(found)), n_drawn


def _tell(on_done: OnDone, before: int, total: int, done: int, _: int) -> None:
    on_done(before + done, total)


def _is_stale(kept: FrozenNumbers, samples: FrozenNumbers, cfg: ValueConfig) -> bool:
    """Whether the folder holds values, and none of those that are asked for. Samples of ours are no values yet."""
    ours = {samples.file} if cfg.kind == "sampled" else {kept.file, _notes(kept)}
    there = {*kept.folder.glob("*.json*"), *samples.folder.glob("*.jsonl")}
    return not ours & there and bool(there - {samples.file})


def _names(rows: Sequence[PromptRow]) -> list[str]:
    """A name for each prompt: of all that its samples and their rewards depend on.

    Rows that differ in nothing but the record's id are one prompt, such as those of the responses of a pair. It has the
    id of the first of them, which names the random stream of its samples.
    """
    said = [json.dumps([row.ids, row.record.text, [[turn.role, turn.content] for turn in row.record.messages],
                        row.record.meta, row.record.truth], sort_keys=True, default=repr) for row in rows]
    first = {text: row.record_id for text, row in reversed(list(zip(said, rows, strict=True)))}
    return [hashlib.sha256(json.dumps([text, first[text]]).encode()).hexdigest()[:32] for text in said]


def _digest(row: PromptRow) -> str:
    return row_digest(Row(row.ids, len(row.ids), row.record_id))


def _notes(kept: FrozenNumbers) -> Path:
    return kept.file.with_suffix(".json")


def _remembered(file: Path, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file says; if there is none, it is found and written."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, find())
    return json.loads(file.read_text())


def tell_of_values(note: Callable[[str], None], found: Mapping[str, Any]) -> None:
    """What a reader of the advantages must know of the values in them."""
    if found["stale"]:
        note("the folder of values was filled with another reference, other rewards, prompts or settings; they are "
             "estimated anew")
    if found.get("beats_mean") is False:
        note("on held-out prompts the value estimate is no better than one number for all prompts; advantages are "
             "rewards less that number")
