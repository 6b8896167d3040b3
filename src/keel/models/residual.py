"""The residual stream of any decoder: where its blocks are, and taps that read or change what a block writes.

A tap is a function of a block's number, its output and what is known of the columns of this forward pass. Taps work
with and without a key-value cache, under any padding, in training and in sampling: who runs a pass may declare what its
columns are (keel's own sampler and training passes do), and else they are found from mask, cache and tokens.
"""

import contextlib
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.errors import ModelError

__all__ = ["Attachment", "Columns", "Tap", "attach", "columns_of", "declared", "decoder_blocks", "n_blocks"]


@dataclass(frozen=True)
class Columns:
    """What is known of the columns of one forward pass.

    Attributes:
        real: True where the token is real; False under padding and behind the end of a row.
        generated: True from the last prompt token on: that is where the first new token comes from.
        rows: which row of per-row settings each row (or each token) follows.
        positions: place of each token among the real tokens of its row, from 0.
        offset: column of the first one, counted from the start of the rows; none where rows have no common columns.
        named: True where whoever runs the pass gave `rows` a meaning; else they are simply numbered.
        again: True where a pass is computed once more for its gradients, so that statistics must not count it.
        fresh: False where a pass without cache repeats a token: it is changed again, but not counted; none: nowhere.
        first: how many rows the prompts before had; 0 where rows are named.
    """

    real: Bool[Tensor, "B T"]
    generated: Bool[Tensor, "B T"]
    rows: Int[Tensor, "*B"]
    positions: Int[Tensor, "B T"]
    offset: int | None = None
    named: bool = False
    again: bool = False
    fresh: Bool[Tensor, "B T"] | None = None
    first: int = 0

    @property
    def told(self) -> Bool[Tensor, "B T"]:
        """Real tokens that this pass is the first to see."""
        return self.real if self.fresh is None else self.real & self.fresh

    def to(self, device: torch.device) -> "Columns":
        if self.real.device == device:
            return self
        return replace(self, real=self.real.to(device), generated=self.generated.to(device),
                       rows=self.rows.to(device), positions=self.positions.to(device),
                       fresh=None if self.fresh is None else self.fresh.to(device))

    def row_of(self, n: int) -> Int[Tensor, "*B"]:
        """Which of `n` settings each row follows; rows that beams or several samples made follow their prompt's.

        Raises:
            ModelError: the batch is no multiple of `n`.
        """
        if self.named or n == 1:
            return self.rows if self.named else torch.zeros_like(self.rows)
        n_rows = self.real.shape[0]
        if n_rows % n:
            raise ModelError(f"settings for {n} rows do not fit a batch of {n_rows} rows",
                             remedy="Give one number for all rows, or one for each prompt of the batch.")
        return self.rows // (n_rows // n)


Tap = Callable[[int, Tensor, Columns], Tensor | None]
"""Block number, its output [B T D], its columns -> what to put in its place, or none where it only looked."""

# Weak on both sides: of a bare trunk the owner is the key itself, which a value must not keep alive.
_BLOCKS: WeakKeyDictionary[nn.Module, tuple[ReferenceType[Any], ReferenceType[Any]]] = WeakKeyDictionary()
_DECLARED: WeakKeyDictionary[nn.Module, list[Callable[[], Columns]]] = WeakKeyDictionary()
_TAPPED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_REMEMBERED = 8


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The blocks of a decoder in their order, found by structure, through adapters and wrappers.

    Raises:
        ModelError: there is no list of blocks, or more than one that could be meant.
    """
    return _owner_and_blocks(model)[1]


def n_blocks(model: nn.Module) -> int:
    """How many blocks the decoder has. Raises: see `decoder_blocks`."""
    return len(decoder_blocks(model))


def _owner_and_blocks(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    owner, blocks = (one() for one in _BLOCKS[model]) if model in _BLOCKS else (None, None)
    if owner is None or blocks is None:
        owner, blocks = _search(model)
        _BLOCKS[model] = ref(owner), ref(blocks)
    return owner, blocks


def _search(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    # A view of a shared trunk does not own it as a submodule.
    inside: Any = model if any(isinstance(m, nn.ModuleList) for m in model.modules()) else getattr(
        model, "base_model", model)
    found = list(_outermost_lists(inside))
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    told = getattr(config, "num_hidden_layers", None)
    fitting = [(owner, blocks) for owner, blocks in found if len(blocks) == told]
    if not fitting and told is None and found:
        longest = max(len(blocks) for _, blocks in found)
        fitting = [(owner, blocks) for owner, blocks in found if len(blocks) == longest]
    if len(fitting) != 1:
        raise ModelError(f"{len(fitting)} lists of modules could be the decoder blocks of {type(model).__name__}",
                         remedy="Pass the decoder itself: a module with one list of num_hidden_layers blocks.")
    return fitting[0]


def _outermost_lists(owner: nn.Module) -> Iterator[tuple[nn.Module, nn.ModuleList]]:
    """Lists of whole blocks (modules with several matrices each), not looking inside such a list again."""
    for child in owner.children():
        if isinstance(child, nn.ModuleList) and len(child) and all(_is_block(block) for block in child):
            yield owner, child
        else:
            yield from _outermost_lists(child)


def _is_block(module: nn.Module) -> bool:
    # Quantised layers hold buffers in place of parameters, so it is the parts that count: attention, or what stands for
    # it, has inner parts; beside it is at least a norm. (The MLP of some, such as OPT, is spread over the block.)
    parts = list(module.children())
    return len(parts) >= 2 and any(any(True for _ in part.children()) for part in parts)


class Attachment:
    """Taps on a model: a context manager, or `attach()` and `detach()`. Taps act in the order of attaching.

    Args:
        model: a decoder, with or without a head, adapters or wrappers.
        taps: by block number; a negative number counts from the last block.
        mask: attention mask of the prompts, [B, T]; columns behind it count as generated. Without it, everything that
            is fed in one pass at the start is prompt, and what is fed behind it, once single tokens have been, is
            generated. Assisted decoding, which drafts several tokens at once, needs it; so does a second turn of the
            user behind a kept cache: attach anew for it, with the mask of the whole conversation so far.

    Raises:
        ModelError: the model has no such block. Nothing is attached then.
    """

    def __init__(self, model: nn.Module, taps: Mapping[int, Tap], *, mask: Tensor | None = None) -> None:
        self._owner, blocks = _owner_and_blocks(model)
        n = len(blocks)
        for layer in taps:
            if not -n <= layer < n:
                raise ModelError(f"there is no block {layer}: the model has blocks 0 to {n - 1}",
                                 remedy="An axis fits only the model it was extracted from; check both.")
        self._taps = [(layer % n, blocks[layer % n], tap) for layer, tap in taps.items()]
        self._finder = _Finder(self._owner, mask, _end_ids(model))
        self._columns: Columns | None = None
        self._seen: deque[Columns] = deque(maxlen=_REMEMBERED)
        self._hooks: list[Any] = []
        self._depth = 0

    def attach(self) -> Self:
        """Start to act; what acts already goes on."""
        if not self._hooks:
            self._finder.forget()
            _TAPPED[self._owner] = _TAPPED.get(self._owner, 0) + 1
            self._hooks = [self._owner.register_forward_pre_hook(self._begin, with_kwargs=True)]
            self._hooks += [block.register_forward_hook(self._hook(layer, tap)) for layer, block, tap in self._taps]
        return self

    def detach(self) -> None:
        """Leave the model as it was."""
        if self._hooks:
            _TAPPED[self._owner] -= 1
            if not _TAPPED[self._owner]:
                del _TAPPED[self._owner]
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._columns, self._depth = [], None, 0
        self._seen.clear()

    def __enter__(self) -> Self:
        self.attach()
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth <= 0:
            self.detach()

    def _begin(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        told = _DECLARED.get(owner)
        self._columns = self._finder.numbered(told[-1]()) if told else self._finder(args, kwargs)
        if torch.is_grad_enabled() and owner.training:
            self._seen.append(self._columns)

    def _hook(self, layer: int, tap: Tap) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            hidden = output if isinstance(output, Tensor) else output[0]
            changed = tap(layer, hidden, self._columns_of(hidden))
            if changed is None:
                return None
            return changed if isinstance(output, Tensor) else type(output)((changed, *output[1:]))

        return hook

    def _columns_of(self, hidden: Tensor) -> Columns:
        if torch._C._current_graph_task_id() != -1:  # inside backward: a checkpoint computes its block again
            return self._recomputed(hidden.shape[:2]).to(hidden.device)
        if self._columns is None:
            raise ModelError("a decoder block ran outside a forward pass of its decoder",
                             remedy="Run the whole decoder: a tap must know which columns it sees.")
        return self._columns.to(hidden.device)

    def _recomputed(self, shape: torch.Size) -> Columns:
        fitting = [columns for columns in self._seen if columns.real.shape == shape]
        if not fitting or not all(_alike(fitting[-1], other) for other in fitting):
            raise ModelError("gradient checkpointing runs a block again, and it cannot be told for which batch",
                             remedy="Call backward before the next forward pass, or turn gradient checkpointing off.")
        return replace(fitting[-1], again=True)


def attach(model: nn.Module, taps: Mapping[int, Tap], *, mask: Tensor | None = None) -> Attachment:
    """Taps on a model, acting at once. Arguments and errors: see `Attachment`."""
    return Attachment(model, taps, mask=mask).attach()


@contextlib.contextmanager
def declared(model: nn.Module, columns: Callable[[], Columns]) -> Iterator[None]:
    """Passes of this model inside have these columns; asked for only where something is attached."""
    if not _TAPPED:
        yield
        return
    owner = _owner_and_blocks(model)[0]
    stack = _DECLARED.setdefault(owner, [])
    stack.append(columns)
    try:
        yield
    finally:
        stack.pop()


def columns_of(batch: TokenBatch) -> Columns:
    """Columns of rows whose responses are known: a row generates from the token before its response to the end."""
    real, response = batch.attention_mask, batch.response_mask
    generated = response | nn.functional.pad(response[:, 1:], (0, 1))
    rows = torch.arange(len(real), device=real.device)
    if batch.joined is None:
        return Columns(real, generated, rows, (real.long().cumsum(1) - 1).clamp_min(0), offset=0)
    joined = batch.joined
    flat = torch.zeros(len(joined.ids), dtype=torch.bool, device=real.device)
    flat[joined.places[generated & real]] = True
    return Columns(torch.ones_like(flat)[None], flat[None], (joined.sources // real.shape[1])[None],
                   joined.position_ids[None], named=True)


def _alike(one: Columns, other: Columns) -> bool:
    return torch.equal(one.real, other.real) and torch.equal(one.generated, other.generated) and torch.equal(
        one.rows, other.rows)


def _end_ids(model: nn.Module) -> tuple[int, ...]:
    """Tokens behind which a row of `generate()` is only filled up."""
    bare: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    settings = getattr(bare, "generation_config", None) or getattr(bare, "config", None)
    ends = getattr(settings, "eos_token_id", None)
    return () if ends is None else tuple(ends) if isinstance(ends, list | tuple) else (int(ends),)


class _Finder:
    """Finds the columns of passes that nobody declared: prompts first, in one pass, then what is generated."""

    def __init__(self, owner: nn.Module, mask: Tensor | None, end_ids: tuple[int, ...]) -> None:
        self.signature = inspect.signature(owner.forward)
        self.mask, self.end_ids = None if mask is None else mask.bool(), end_ids
        self.first, self.n_rows = 0, 0  # rows of the prompts before this one, and its own
        self.forget()

    def forget(self) -> None:
        """What comes next is a prompt."""
        self.ids: Tensor | None = None
        self.last: Tensor | None = None  # column of each row's last prompt token
        self.width = 0
        self.cache: ReferenceType[Any] | None = None  # what the last pass was given
        self.grown = False  # whether anything has been generated since the prompt
        self.ended: Tensor | None = None  # column of the token that ended each row

    def numbered(self, columns: Columns) -> Columns:
        """Columns that somebody else told, with their rows numbered on."""
        if columns.named:
            return columns
        self._begin(len(columns.real))
        return replace(columns, first=self.first)

    def _begin(self, n_rows: int) -> None:
        self.first, self.n_rows = self.first + self.n_rows, n_rows

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Columns:
        given = self.signature.bind_partial(*args, **kwargs).arguments
        given = given | given.get("kwargs", {})
        ids = given.get("input_ids")
        fed = given["inputs_embeds"] if ids is None else ids
        cache = given.get("past_key_values")
        offset = int(cache.get_seq_length()) if cache is not None else 0
        n_rows, width = fed.shape[:2]
        real = self._real(given.get("attention_mask"), n_rows, offset, width, fed.device)
        now = real[:, offset:]
        column = torch.arange(offset, offset + width, device=fed.device)[None]
        fresh = None
        if self._goes_on(ids, width, cache, offset):
            fresh, self.grown = (column >= self.width).expand(n_rows, -1), True
        elif self._is_prompt(width, cache, offset):
            self.last = torch.where(now, column, -1).max(1).values
            self.ids, self.ended, self.grown = ids if cache is None else None, None, False
            if offset != self.width or offset == 0:  # else one in several pieces
                self._begin(n_rows)
        else:
            self.grown = True
        self.width, self.n_rows, self.cache = offset + width, n_rows, None if cache is None else ref(cache)
        last = self._last(n_rows, fed.device)
        now = now & (column < self._ends(ids, column, column > last[:, None])[:, None])
        positions = (real.long().cumsum(1) - 1).clamp_min(0)[:, offset:]
        return Columns(now, (column >= last[:, None]) & now, torch.arange(n_rows, device=fed.device), positions, offset,
                       fresh=fresh, first=self.first)

    def _goes_on(self, ids: Tensor | None, width: int, cache: Any, offset: int) -> bool:
        """True where a pass without cache repeats the rows so far, which had none either, with one more token each."""
        if ids is None or self.ids is None or cache is not None or offset or self.cache is not None:
            return False
        known = self.ids.to(ids.device)
        return width == self.width + 1 and len(ids) == len(known) and torch.equal(ids[:, : known.shape[1]], known)

    def _is_prompt(self, width: int, cache: Any, offset: int) -> bool:
        """True at the start, and of several tokens behind a cache that nothing has been generated in."""
        if offset == 0:
            return True
        if self.mask is not None:
            return False
        if self.cache is not None and self.cache() is cache and offset < self.width:
            raise ModelError("the cache was cut back, so it cannot be told what is prompt and what was drafted",
                             remedy="Give mask=, the attention mask of the prompts, as with assisted decoding.")
        return width > 1 and not (self.grown and offset == self.width)

    def _last(self, n_rows: int, device: torch.device) -> Tensor:
        if self.mask is not None:
            mask = self._expanded(n_rows).to(device)
            return torch.where(mask, torch.arange(mask.shape[1], device=device), -1).max(1).values
        last = self.last
        if last is None or len(last) != n_rows:  # a cache that was filled before anything was attached
            return torch.full((n_rows,), -1, device=device)
        return last.to(device)

    def _expanded(self, n_rows: int) -> Tensor:
        assert self.mask is not None, "only asked where a mask was given"
        if n_rows % len(self.mask):
            raise ModelError(f"a mask of {len(self.mask)} rows does not fit a batch of {n_rows} rows",
                             remedy="Give the attention mask of the prompts of this batch.")
        return self.mask.repeat_interleave(n_rows // len(self.mask), 0)

    def _real(self, mask: Any, n_rows: int, offset: int, width: int, device: torch.device) -> Tensor:
        real = torch.ones(n_rows, offset + width, dtype=torch.bool, device=device)
        if isinstance(mask, dict):  # one for each kind of layer
            mask = mask.get("full_attention", next(iter(mask.values())))
        if isinstance(mask, Tensor) and mask.dim() == 4:  # as attention reads it: what the last column may look at
            seen = mask[:, 0, -1, : offset + width]
            mask = seen if seen.dtype == torch.bool else seen == 0
        if isinstance(mask, Tensor) and mask.dim() == 2:
            known = mask.bool()[:, : offset + width].to(device)
            real[:, : known.shape[1]] = known
        if self.mask is not None:
            known = self._expanded(n_rows)[:, : offset + width].to(device)
            real[:, : known.shape[1]] &= known
        return real

    def _ends(self, ids: Tensor | None, column: Tensor, behind: Tensor) -> Tensor:
        """Column of the token that ended each row: `generate()` fills such rows up until the others have ended too."""
        never = torch.full((len(behind),), torch.iinfo(torch.long).max, device=behind.device)
        if ids is None or not self.end_ids:
            return never
        found = torch.isin(ids, torch.tensor(self.end_ids, device=ids.device)) & behind
        ends = torch.where(found, column, never[:, None]).amin(1)
        if self.ended is not None and len(self.ended) == len(ends):
            known = self.ended.to(ends.device)  # what was drafted and cut off again has ended nothing
            ends = torch.minimum(ends, torch.where(known < column[0, 0], known, never))
        self.ended = ends
        return ends
