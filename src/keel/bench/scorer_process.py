"""The score of a whole response from a process model: what it says of the steps, made into one number."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.functional.steps import aggregate_steps
from keel.models.process import step_logits

__all__ = ["solution_scores"]


def solution_scores(
    model: nn.Module, batch: TokenBatch, ends: Sequence[Sequence[int]], *, how: str,
) -> Float[Tensor, " B"]:
    """Min, product, mean or last of the probabilities that the steps of each row are right; NaN where it has none.

    Args:
        model: a process model.
        batch: rows whose responses may have been cut at their end; a step that ends behind the cut is not there.
        ends: for each row the tokens of its response in which the steps end.
        how: see `aggregate_steps`.
    """
    starts, lengths = batch.response_mask.int().argmax(1).tolist(), batch.response_mask.sum(1).tolist()
    places = [(row, starts[row] + end) for row, own in enumerate(ends) for end in own if end < lengths[row]]
    rows, columns = torch.tensor(places, dtype=torch.long, device=batch.ids.device).view(-1, 2).unbind(1)
    # Not every device has numbers of double precision.
    values = step_logits(model, batch, rows, columns).cpu().double().sigmoid()
    return aggregate_steps(values, rows.cpu(), len(ends), how=how)
