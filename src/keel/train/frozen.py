"""What a frozen model says of the data: computed once, before anything is learned, and kept on disk.

    FOLDER/KEY.jsonl     one row a record: {"row": digest of its tokens, "numbers": [...]}

KEY stands for the model's weights and number formats, the digest for the tokens of prompt and responses. So a number is
found again only where everything that it depends on is as it was: model, tokenizer, template, data, limits.
"""

import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from keel.batches import SharedPrompt
from keel.data.collate import budget_batches, collate, pair_batches
from keel.data.render import PairRow, Row
from keel.errors import NumericsError, RunError
from keel.models.forward import token_logprobs
from keel.models.identity import model_identity
from keel.models.load import ModelConfig, device_of
from keel.models.pairs import joining, pair_logprobs
from keel.progress import Bar, bar
from keel.runs import Run, explained_disk_errors

__all__ = ["FrozenNumbers", "Numbers", "OnDone", "pair_logprobs_of", "pair_numbers", "reference_identity", "row_digest",
           "row_numbers", "shown"]

Numbers = Sequence[float]
"""What the model says of one record: as many as it has things to say."""
Computed = Iterator[tuple[list[int], Sequence[Numbers]]]
Skip = Callable[[list[int]], bool]
OnDone = Callable[[int, int], None]
"""Called with how many are there, and how many there will be."""


def reference_identity(spec: ModelConfig, model: nn.Module, seed: int) -> dict[str, Any]:
    """Whatever can change a number that the reference gives: see `model_identity`; of a model that is made here, the
    shape and the seed too. An adapter that has not learned anything changes nothing."""
    drawn = {"scratch": spec.scratch.model_dump(), "seed": seed} if spec.init == "scratch" else {}
    return model_identity(spec, model) | drawn


def row_digest(row: PairRow | Row) -> str:
    """32 hex digits that stand for the tokens of a row, and for where its responses begin."""
    tokens = ([row.prompt_ids, row.chosen_ids, row.rejected_ids] if isinstance(row, PairRow)
              else [row.ids[: row.n_prompt], row.ids[row.n_prompt :]])
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:32]


@torch.no_grad()
def pair_logprobs_of(
    model: nn.Module, rows: Sequence[PairRow], *, pad_id: int, micro_tokens: int, shared_prompt: SharedPrompt,
    skip: Skip | None = None,
) -> Iterator[tuple[list[int], Float[Tensor, "2 N"]]]:
    """Log-probabilities of both sides of every pair, batch by batch, on the CPU: places in `rows`, and their numbers.

    Which pairs make up a batch depends on `rows` alone, so that a killed run goes on with the very same sums.

    Args:
        model: a causal language model in eval mode.
        rows: rendered pairs.
        pad_id: what stands in the padding.
        micro_tokens: token positions per forward pass; changes memory, not results.
        shared_prompt: when a pair's prompt is run once for both responses; changes speed, not results.
        skip: whether a batch is not wanted.
    """
    shared = joining(model, shared_prompt)
    for part in budget_batches([row.n_tokens for row in rows], micro_tokens):
        if skip is not None and skip(part):
            continue
        batch, = pair_batches([rows[i] for i in part], micro_tokens=micro_tokens, pad_id=pad_id, shared_prompt=shared)
        yield part, torch.stack(pair_logprobs(model, batch.to(device_of(model)))).cpu()


def pair_numbers(
    model: nn.Module, rows: Sequence[PairRow], *, pad_id: int, micro_tokens: int, shared_prompt: SharedPrompt,
) -> Callable[[Skip], Computed]:
    """Of each pair the log-probabilities of both sides, for `FrozenNumbers.fill`; arguments as `pair_logprobs_of`."""
    def compute(skip: Skip) -> Computed:
        for part, found in pair_logprobs_of(model, rows, pad_id=pad_id, micro_tokens=micro_tokens,
                                            shared_prompt=shared_prompt, skip=skip):
            yield part, found.T.tolist()
    return compute


def row_numbers(model: nn.Module, rows: Sequence[Row], *, pad_id: int, micro_tokens: int) -> Callable[[Skip], Computed]:
    """Of each row the log-probability of every token of its response, for `FrozenNumbers.fill`."""
    @torch.no_grad()
    def compute(skip: Skip) -> Computed:
        for part in budget_batches([row.n_tokens for row in rows], micro_tokens):
            if not skip(part):
                batch = collate([rows[i] for i in part], pad_id).to(device_of(model))
                found = token_logprobs(model, batch)[0].cpu()
                yield part, [found[k, rows[i].n_prompt : rows[i].n_tokens].tolist() for k, i in enumerate(part)]
    return compute


@dataclass(frozen=True)
class FrozenNumbers:
    """The numbers of one frozen model in a folder, which may hold those of others.

    Attributes:
        folder: made if missing.
        identity: of the model, see `reference_identity`.
        dtype: that the numbers are kept in; they come back as they were.
    """

    folder: Path
    identity: Mapping[str, Any]
    dtype: type[np.float32] | type[np.float64] = np.float32

    @property
    def file(self) -> Path:
        """Where the numbers of this model are."""
        text = json.dumps(self.identity, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"

    def is_empty(self) -> bool:
        """Whether the folder holds no numbers of any model."""
        return not any(self.folder.glob("*.jsonl"))

    def known(self) -> dict[str, np.ndarray]:
        """Row digest -> its numbers. What a kill cut short is not there.

        Raises:
            RunError: a row other than the last one is damaged.
        """
        found = {}
        lines = self.file.read_bytes().split(b"\n")[:-1] if self.file.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                found[str(row["row"])] = np.array(row["numbers"], dtype=self.dtype)
                if found[row["row"]].ndim != 1:
                    raise ValueError("numbers is no list of numbers")
            except (ValueError, KeyError, TypeError) as error:
                raise RunError("a row of what a frozen model said of the data is damaged",
                               where=f"{self.file}:{number}",
                               remedy="Remove that line; its record is then computed again.") from error
        return found

    def fill(self, names: Sequence[str], compute: Callable[[Skip], Computed], record_ids: Sequence[str],
             on_done: OnDone | None = None) -> tuple[list[np.ndarray], int]:
        """The numbers of every row, and how many of the rows had to be computed.

        Of several processes that ask for the same model one computes, and the others wait for it.

        Args:
            names: digest of each row.
            compute: gives the numbers batch by batch, but for the batches that it is told to skip.
            record_ids: of the rows, for errors.
            on_done: told after every batch.
        Raises:
            NumericsError: a number is not finite.
        """
        with self._held():
            known = self.known()
            owners = Counter(names)
            missing = sum(n for name, n in owners.items() if name not in known)
            done = len(names) - missing
            _cut_torn_row(self.file)

            def is_known(part: list[int]) -> bool:
                return all(names[i] in known for i in part)

            for part, numbers in compute(is_known):
                fresh = {names[i]: np.array(found, dtype=self.dtype) for i, found in zip(part, numbers, strict=True)
                         if names[i] not in known}
                _require_finite([record_ids[i] for i in part if not np.isfinite(fresh.get(names[i], 0)).all()])
                self._append(fresh)
                known.update(fresh)
                done += sum(owners[name] for name in fresh)
                if on_done is not None:
                    on_done(done, len(names))
        return [known[name] for name in names], missing

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Nobody else fills this file meanwhile; who is killed lets go of it."""
        with explained_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self.file.with_suffix(".lock").open("a")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _append(self, fresh: Mapping[str, Iterable[float]]) -> None:
        digits = 9 if self.dtype is np.float32 else 17  # so many give every number back
        rows = [f'{{"row": "{name}", "numbers": [{", ".join(f"{x:.{digits}g}" for x in found)}]}}\n'
                for name, found in fresh.items()]
        with explained_disk_errors(self.folder), self.file.open("ab") as stream:
            stream.write("".join(rows).encode())


def _cut_torn_row(file: Path) -> None:
    """Take a half-written last row away, so that the next row begins a line of its own."""
    if file.exists():
        whole = file.read_bytes()
        with file.open("rb+") as stream:
            stream.truncate(whole.rfind(b"\n") + 1)


def _require_finite(bad: Sequence[str]) -> None:
    if bad:
        raise NumericsError(f"the frozen model gives {len(bad)} records numbers that are not finite",
                            where=f"records {', '.join(bad[:8])}",
                            remedy="Look at these records with `keel data show`, and at the model.")


@contextmanager
def shown(log: Run, label: str) -> Iterator[OnDone]:
    """A bar of its own for work before the first step; whoever asks the run to stop is heard there too."""
    with ExitStack() as opened:
        bars: dict[int, Bar] = {}

        def on_done(done: int, total: int) -> None:
            if total not in bars:
                opened.close()
                bars[total] = opened.enter_context(bar(label, total))
            bars[total].reach(done)
            if log.stop_requested():
                log.stop(0)

        yield on_done
