"""What must not change a score at all: padding, the rows beside, the number format."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from keel.batches import TokenBatch
from keel.bench.measures import Interval, Measure
from keel.bench.probes import STD, Score
from keel.data.collate import budget_batches, collate
from keel.data.render import Row
from keel.functional.statistics import rank_correlation

__all__ = ["LIMIT", "RANKS", "of_precision", "of_shape", "some"]

LIMIT = 0.01
"""Largest difference of two scores of one response, in units of the spread of the gaps."""
RANKS = 0.99
"""Lowest rank correlation of the scores in two number formats."""
N_ROWS = 64
N_COLUMNS = 3


def some(rows: Sequence[Row]) -> list[int]:
    """Which rows are scored again alone and padded: at most 64, evenly from all."""
    n = min(N_ROWS, len(rows))
    return [k * len(rows) // n for k in range(n)]


@torch.no_grad()
def of_shape(score: Score, rows: Sequence[Row], before: Tensor, *, pad_id: int, end_id: int, micro_tokens: int,
             std: float, left: bool) -> list[Measure]:
    """Each row alone, with three more columns of padding, with another token as padding, and padded on the left.

    Args:
        score: the reward model.
        rows: some of the responses.
        before: their scores among all the others.
        pad_id: what stands in the padding.
        end_id: a token that ends turns; as padding it deceives whoever finds the last token by its id.
        micro_tokens: token positions per forward pass.
        std: spread of the gaps.
        left: also pad on the left; an encoder counts positions from the first column and cannot.
    """
    alone = torch.cat([score(collate([row], pad_id)) for row in rows])
    ways: list[tuple[str, str, Tensor]] = [("batch of one", "each response was scored alone", alone)]
    wider: list[tuple[str, str, int, Literal["right", "left"]]] = [
        ("three more columns", "three columns of padding were added on the right", pad_id, "right"),
        ("other padding", "the padding was filled with the token that ends a turn", end_id, "right")]
    if left:
        wider.append(("padded on the left", "the padding stood on the left, three columns more than needed", pad_id,
                      "left"))
    for name, done, filler, side in wider:
        scores = torch.zeros(len(rows))
        for part in budget_batches([row.n_tokens + N_COLUMNS for row in rows], micro_tokens):
            scores[torch.tensor(part)] = score(_padded([rows[i] for i in part], filler, side)).float().cpu()
        ways.append((name, done, scores))
    return [_measure(name, done, (scores.float().cpu() - before).abs().max().item() / std, len(rows))
            for name, done, scores in ways]


def _padded(rows: list[Row], filler: int, side: Literal["right", "left"]) -> TokenBatch:
    """Three columns wider than the longest row: a longer row is padded with them, and taken away again."""
    longest = max(row.n_tokens for row in rows)
    batch = collate([*rows, Row([filler] * (longest + N_COLUMNS), 0, "")], filler, side)
    n = len(rows)
    return TokenBatch(batch.ids[:n], batch.attention_mask[:n], batch.response_mask[:n], batch.record_ids[:n])


def _measure(name: str, done: str, found: float, n: int) -> Measure:
    return Measure(name, f"{done}; largest difference of a score", STD, _plain(found, n),
                   "suspicious" if found > LIMIT else "fine", (LIMIT,), f"stay below {LIMIT:g}")


def of_precision(before: Tensor, other: Tensor, name: str) -> list[Measure]:
    """The scores of all responses in two number formats.

    Args:
        before: scores of chosen, then of rejected responses, in the format of the run. [2 N]
        other: the same in the other format. [2 N]
        name: of the other format.
    """
    ranks = float(rank_correlation(before, other))
    one, two = (x.chunk(2)[0] > x.chunk(2)[1] for x in (before, other))
    turned = float((one != two).double().mean())
    return [Measure(f"in {name}", f"all responses were scored in {name}; rank correlation of the scores",
                    "correlation", _plain(ranks, len(before)), "fine" if ranks >= RANKS else "suspicious", (RANKS,),
                    f"be at least {RANKS:g}"),
            Measure("order turned over", f"share of pairs whose other response wins in {name}", "share",
                    _plain(turned, len(one)), "reported")]


def _plain(value: float, n: int) -> Interval:
    """A number that is counted, not estimated: it has no interval."""
    return {"mean": value, "low": None, "high": None, "n": n, "n_prompts": None}
