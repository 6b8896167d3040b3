"""Rows of tokens to padded tensors; the only place that pads and that knows the padding side."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Literal, Protocol

from keel.data.render import PairRow, RankingRow

if TYPE_CHECKING:
    from keel.batches import PairBatch, RankingBatch, SharedPrompt, TokenBatch

__all__ = ["Tokens", "budget_batches", "collate", "collate_pairs", "collate_rankings", "join", "pair_batches",
           "ranking_batches"]

JOIN_FROM = 0.1
"""Least share of padding and repetition among the positions of a batch from which joining it saves time. With 11% a
step is 1.05 to 1.09 times faster, with 2% or less 0.96 to 0.98 times; benchmarks/pairs.py, docs/benchmarks.md."""


class Tokens(Protocol):
    """What can be padded: `Row`, and `PromptRow`, which is all prompt."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def n_prompt(self) -> int: ...
    @property
    def record_id(self) -> str: ...


def collate(rows: Sequence[Tokens], pad_id: int, side: Literal["right", "left"] = "right") -> "TokenBatch":
    """Pad rows to the longest of them.

    Args:
        rows: at least one.
        pad_id: what stands where the attention mask is False.
        side: where the padding goes: `right` for training and scoring, `left` for sampling.
    """
    import torch

    from keel.batches import TokenBatch

    lengths = torch.tensor([len(row.ids) for row in rows])[:, None]
    n_prompt = torch.tensor([row.n_prompt for row in rows])[:, None]
    width = int(lengths.max())
    # The index of a token in its own row; padding lies outside 0 .. length - 1.
    index = torch.arange(width)[None, :] - (0 if side == "right" else width - lengths)
    attention_mask = (index >= 0) & (index < lengths)
    ids = torch.full((len(rows), width), pad_id)
    ids[attention_mask] = torch.tensor(list(chain.from_iterable(row.ids for row in rows)))
    return TokenBatch(ids, attention_mask, attention_mask & (index >= n_prompt), tuple(row.record_id for row in rows))


def collate_pairs(rows: Sequence[PairRow], pad_id: int) -> "PairBatch":
    """Pad pairs on the right: all chosen rows first, then all rejected ones in the same order."""
    import torch

    from keel.batches import PairBatch

    tokens = collate([row.chosen for row in rows] + [row.rejected for row in rows], pad_id)
    margin, label_prob, weight = (torch.tensor([getattr(row.pair, name) for row in rows], dtype=torch.float32)
                                  for name in ("margin", "label_prob", "weight"))
    return PairBatch(tokens, margin, label_prob, weight)


def collate_rankings(rows: Sequence[RankingRow], pad_id: int) -> "RankingBatch":
    """Pad rankings on the right: all responses of the first, the best first, then those of the second, and so on."""
    import torch

    from keel.batches import RankingBatch

    n = torch.tensor([len(row.response_ids) for row in rows])[:, None]
    present = torch.arange(int(n.max()))[None, :] < n
    tied = torch.zeros_like(present)
    tied[present] = torch.tensor(list(chain.from_iterable(row.ranking.tied for row in rows)))
    return RankingBatch(collate([one for row in rows for one in row.rows], pad_id), present, tied)


def join(tokens: "TokenBatch", leaders: Sequence[int]) -> "TokenBatch":
    """The batch with its tokens also laid end to end, so that a causal model computes what two rows share only once.

    Sharing goes as far as the two rows are equal from their start, which may be further than the prompt.

    Args:
        tokens: right-padded.
        leaders: for each row, the row whose beginning it takes; its own number where it takes none. A leader takes
            none itself.
    """
    import torch

    from keel.batches import Joined

    leader = torch.tensor(leaders)
    both_real = tokens.attention_mask & tokens.attention_mask[leader]
    shared = ((tokens.ids == tokens.ids[leader]) & both_real).long().cumprod(1).bool()
    shared &= (leader != torch.arange(len(leaders)))[:, None]
    own = tokens.attention_mask & ~shared
    sources = own.flatten().nonzero()[:, 0]
    numbers = torch.zeros(own.shape, dtype=torch.long).masked_scatter(own, torch.arange(len(sources)))
    places = torch.where(shared, numbers[leader], numbers)
    return replace(tokens, joined=Joined(tokens.ids.flatten()[sources], sources % own.shape[1], places, sources))


def pair_batches(
    rows: Sequence[PairRow], *, micro_tokens: int, pad_id: int, shared_prompt: "SharedPrompt" = "never",
) -> list["PairBatch"]:
    """One optimizer step in micro-batches of pairs; which they are does not depend on `shared_prompt`.

    Args:
        rows: at least one.
        micro_tokens: see `budget_batches`.
        pad_id: see `collate`.
        shared_prompt: `auto` joins the batches where that saves time; `always`, `never`. Ask
            `keel.models.pairs.joining` what the model can do.
    """
    batches = [collate_pairs([rows[i] for i in part], pad_id)
               for part in budget_batches([row.n_tokens for row in rows], micro_tokens)]
    return [replace(batch, tokens=_shared(batch.tokens, 2 * list(range(batch.n_pairs)), shared_prompt))
            for batch in batches]


def ranking_batches(
    rows: Sequence[RankingRow], *, micro_tokens: int, pad_id: int, shared_prompt: "SharedPrompt" = "never",
) -> list["RankingBatch"]:
    """The same for rankings; all responses of a ranking are in one micro-batch."""
    parts = budget_batches([row.longest for row in rows], micro_tokens, n_rows=[len(row.response_ids) for row in rows])
    batches = [collate_rankings([rows[i] for i in part], pad_id) for part in parts]
    return [replace(batch, tokens=_shared(batch.tokens, batch.first_rows, shared_prompt)) for batch in batches]


def _shared(tokens: "TokenBatch", leaders: Sequence[int], shared_prompt: "SharedPrompt") -> "TokenBatch":
    """The batch, joined where that is asked for, or where it saves time."""
    if shared_prompt == "never":
        return tokens
    joined = join(tokens, leaders)
    least = 0.0 if shared_prompt == "always" else JOIN_FROM
    return joined if joined.n_positions <= (1 - least) * tokens.n_positions else tokens


def budget_batches(lengths: Sequence[int], max_tokens: int, *, n_rows: Sequence[int] | None = None) -> list[list[int]]:
    """Split one optimizer step into micro-batches of similar length, each at most `max_tokens` with its padding.

    Longest first, so that a step that does not fit fails at once. What is longer than the budget stands alone.

    Args:
        lengths: `row.n_tokens` of every row.
        max_tokens: rows x longest row of a micro-batch.
        n_rows: for each length, how many rows of it stay together; none: one.
    Returns:
        Indices into `lengths`, every one exactly once.
    """
    together = n_rows or [1] * len(lengths)
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    width = held = 0
    for index in order:
        if not batches or (held + together[index]) * width > max_tokens:
            batches.append([])
            width, held = max(1, lengths[index]), 0
        batches[-1].append(index)
        held += together[index]
    return batches
