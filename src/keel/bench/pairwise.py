"""Score labelled pairs with a reward model."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keel.batches import SharedPrompt
from keel.data.collate import budget_batches, pair_batches
from keel.data.render import PairRow
from keel.errors import NumericsError
from keel.models.load import device_of
from keel.models.pairs import joining, pair_scores

__all__ = ["score_pairs"]


@torch.no_grad()
def score_pairs(
    model: nn.Module, rows: Sequence[PairRow], *, pad_id: int, micro_tokens: int, shared_prompt: SharedPrompt = "auto",
    on_done: Callable[[int], None] | None = None,
) -> Float[Tensor, "2 N"]:
    """Scores of the chosen (first) and the rejected responses, float32 on the CPU, in the order of the rows.

    Args:
        model: a scalar model in eval mode.
        rows: rendered pairs.
        pad_id: what stands in the padding.
        micro_tokens: token positions per forward pass; changes memory, not results.
        shared_prompt: when a pair's prompt is run once for both responses; changes speed, not results.
        on_done: called with how many pairs are scored so far.
    Raises:
        NumericsError: a score is not finite.
    """
    scores, done, shared = torch.zeros(2, len(rows)), 0, joining(model, shared_prompt)
    for part in budget_batches([row.n_tokens for row in rows], micro_tokens):
        batch, = pair_batches([rows[i] for i in part], micro_tokens=micro_tokens, pad_id=pad_id, shared_prompt=shared)
        scores[:, torch.tensor(part)] = torch.stack(pair_scores(model, batch.to(device_of(model)))).cpu()
        done += len(part)
        if on_done is not None:
            on_done(done)
    bad = [rows[i].record_id for i in (~torch.isfinite(scores)).any(0).nonzero()[:, 0].tolist()]
    if bad:
        raise NumericsError(f"the score of {len(bad)} pairs is not finite", where=f"records {', '.join(bad[:8])}",
                            remedy="Look at these records with `keel data show`, and at the reward model's training.")
    return scores
