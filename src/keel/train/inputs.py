"""From a data file to rendered rows, split into training and validation."""

from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Protocol, TypeVar

import torch
from pydantic import Field

from keel.batches import TokenBatch
from keel.data.collate import budget_batches, collate
from keel.data.files import FileConfig
from keel.data.load import read_demonstrations, read_pairs, read_prompts
from keel.data.problems import ReadReport
from keel.data.records import PreferencePair, Prompt
from keel.data.render import PromptRow, Row, Template, render_demonstrations, render_prompts
from keel.data.seen import prompt_key, write_seen
from keel.errors import ConfigError, DataError
from keel.rng import digest
from keel.train.order import batch_indices

__all__ = ["DataConfig", "FileConfig", "load_demonstrations", "load_pairs", "load_prompts",
           "load_split", "mixed_in", "prompt_room", "require_apart", "split", "split_prompts", "write_seen"]


class HasPrompt(Protocol):
    """A record with a prompt."""

    @property
    def prompt(self) -> Prompt: ...


MOST_SHARED = 0.1
"""Share of the validation prompts that may be training prompts, as in some published splits."""

R = TypeVar("R", bound=HasPrompt)


class DataConfig(FileConfig):
    """The same, with a part held out."""

    validation: str | None = Field(None, description="file of held-out records, at most a tenth of them in "
                                   "path; none: split off validation_fraction")
    validation_fraction: float = Field(0.05, ge=0, lt=1, description="share of prompts held out from path")


def prompt_room(data: FileConfig, max_new_tokens: int) -> int:
    """Tokens left for a prompt.

    Raises:
        ConfigError: none are.
    """
    if data.max_length <= max_new_tokens:
        raise ConfigError(f"prompts.max_length={data.max_length} leaves no room beside "
                          f"sampling.max_new_tokens={max_new_tokens}", remedy="Raise the first or lower the second.")
    return data.max_length - max_new_tokens


def require_apart(train: Set[str], held_out: Set[str], what: str, file: str, note: Callable[[str], None]) -> None:
    """What is held out must not be learned from; a few that are, as in some published splits, are noted.

    Args:
        train, held_out: keys, equal where two records are the same thing.
        what: they are keys of, for messages.
        file: of what is held out.
        note: is told what a reader must know.

    Raises:
        DataError: more than MOST_SHARED of what is held out is in the training data.
    """
    n = len(train & held_out)
    said = f"{n} of {len(held_out)} validation {what} are in the training data"
    if n > MOST_SHARED * len(held_out):
        raise DataError(f"{said}, so they hold nothing out", where=file,
                        remedy="Remove them from one of the two files; or leave the validation file out, which splits "
                               "off a share of the prompts.")
    if n:
        note(f"{said}: what is measured on them is no held-out measurement")


def load_prompts(data: DataConfig, words: Template, *, max_new_tokens: int, n_held_out: int, seed: int,
                 note: Callable[[str], None]) -> tuple[list[PromptRow], list[PromptRow], dict[str, int]]:
    """Training prompts, at most `n_held_out` held-out prompts, and what was dropped or cut."""
    room = prompt_room(data, max_new_tokens)
    train, report = read_prompts(data.path, on_bad_record=data.on_bad_record, as_text=data.as_text)
    if data.validation:
        held_out = read_prompts(data.validation, on_bad_record=data.on_bad_record, as_text=data.as_text)[0]
        require_apart({*map(prompt_key, train)}, {*map(prompt_key, held_out)}, "prompts", data.validation, note)
    else:
        train, held_out = split_prompts(train, data.validation_fraction, seed)
    rows, cut = render_prompts(words, train, room, data.too_long)
    held_rows, _ = render_prompts(words, held_out[:n_held_out], room, data.too_long)
    return rows, held_rows, {"records": report.n_dropped} | vars(cut)


def load_pairs(data: DataConfig, seed: int, note: Callable[[str], None],
               ) -> tuple[list[PreferencePair], list[PreferencePair], int]:
    """Training pairs, held-out pairs, and how many records were dropped, those of weight 0 among them.

    Raises:
        DataError: every training pair has weight 0; or see `require_apart`.
    """
    train, held_out, n_dropped = load_split(
        data, seed, partial(read_pairs, on_bad_record=data.on_bad_record, as_text=data.as_text), note)
    weighty = [pair for pair in train if pair.weight > 0]
    if train and not weighty:
        raise DataError(f"all of {len(train)} training pairs have weight 0", where=data.path,
                        remedy="A weight of 0 leaves a pair out; give some of them more.")
    return weighty, held_out, n_dropped + len(train) - len(weighty)


def load_split(data: DataConfig, seed: int, read: Callable[[str], tuple[list[R], ReadReport]],
               note: Callable[[str], None]) -> tuple[list[R], list[R], int]:
    """The same for records of any kind with a prompt: `read` gives those of a file.

    Raises:
        DataError: see `require_apart`.
    """
    train, report = read(data.path)
    if data.validation:
        held_out = read(data.validation)[0]
        keys = [{prompt_key(one.prompt) for one in part} for part in (train, held_out)]
        require_apart(keys[0], keys[1], "prompts", data.validation, note)
        return train, held_out, report.n_dropped
    return *split(train, data.validation_fraction, seed), report.n_dropped


def load_demonstrations(data: FileConfig, words: Template) -> list[Row]:
    """Every demonstration of a file, rendered."""
    told = read_demonstrations(data.path, on_bad_record=data.on_bad_record, as_text=data.as_text)[0]
    return render_demonstrations(words, told, data.max_length, data.too_long)[0]


def mixed_in(rows: list[Row], size: int, *, number: int, seed: int, micro_tokens: int, pad_id: int,
             device: torch.device) -> list[TokenBatch]:
    """The demonstrations of one optimiser step, in micro-batches; none where there are no rows."""
    if not rows:
        return []
    picked = [rows[i] for i in next(batch_indices(len(rows), size, seed, "ptx", first_step=number))]
    parts = budget_batches([len(row.ids) for row in picked], micro_tokens)
    return [collate([picked[i] for i in part], pad_id).to(device) for part in parts]


def split(records: Sequence[R], fraction: float, seed: int) -> tuple[list[R], list[R]]:
    """Training and held-out records. All records of one prompt fall on one side, whatever their order in the file."""
    sides: tuple[list[R], list[R]] = ([], [])
    for record in records:
        sides[_held_out(record.prompt, fraction, seed)].append(record)
    return sides


def split_prompts(prompts: Sequence[Prompt], fraction: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """The same for prompts themselves; a prompt is on the side on which `split` puts its records."""
    sides: tuple[list[Prompt], list[Prompt]] = ([], [])
    for prompt in prompts:
        sides[_held_out(prompt, fraction, seed)].append(prompt)
    return sides


def _held_out(prompt: Prompt, fraction: float, seed: int) -> bool:
    text = prompt.text or "\x1e".join(f"{m.role}:{m.content}" for m in prompt.messages) or prompt.id
    return digest(seed, "split", text) % 1_000_000 < fraction * 1_000_000
