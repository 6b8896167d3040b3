"""What the reference says of the responses of the data, and how far the policy has moved from it on held-out ones."""

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from keel.data.collate import budget_batches, collate
from keel.data.render import Row
from keel.functional.direct import response_logprobs
from keel.functional.statistics import bootstrap_interval
from keel.models.forward import token_logprobs
from keel.models.load import device_of
from keel.rng import stream
from keel.runs import Run
from keel.train.baseline import Reference
from keel.train.frozen import FrozenNumbers, OnDone, row_digest, row_numbers

__all__ = ["drift", "reference_logprobs"]


def reference_logprobs(log: Run, reference: Reference, parts: Sequence[Sequence[Row]], folder: Path, on_done: OnDone,
                       ) -> list[list[np.ndarray]]:
    """What the reference says of each token of some responses, part by part, from its folder or computed.

    Raises:
        NumericsError: a number is not finite.
    """
    rows, cache = [*chain(*parts)], FrozenNumbers(folder, reference.identity)
    began_empty = cache.is_empty()
    found, n = cache.fill([row_digest(row) for row in rows], row_numbers(
        reference.model, rows, pad_id=reference.pad_id, micro_tokens=reference.micro_tokens),
        [row.record_id for row in rows], on_done)
    if n and not began_empty:
        log.note(f"{folder} lacked what this reference says of {n} of {len(rows)} responses; it is computed now. "
                 "The folder was filled by another model, from other data, or by a run that was killed")
    ends = [0, *accumulate(map(len, parts))]
    return [found[start:end] for start, end in pairwise(ends)]


@torch.no_grad()
def drift(policy: nn.Module, rows: Sequence[Row], said: Sequence[np.ndarray], groups: Sequence[int], *, pad_id: int,
          micro_tokens: int, seed: int) -> dict[str, Any]:
    """S - Q on held-out responses, in nats, its interval over prompts; and the cross-entropy per token.

    Args:
        policy: in eval mode.
        rows: the responses.
        said: log-probability of each of their tokens under the reference.
        groups: number of the prompt of each.
        pad_id: what stands in the padding.
        micro_tokens: token positions per forward pass.
        seed: of the interval.
    """
    if not rows:
        return {}
    sums, n = torch.zeros(len(rows)), torch.tensor([float(row.n_tokens - row.n_prompt) for row in rows])
    for part in budget_batches([row.n_tokens for row in rows], micro_tokens):
        batch = collate([rows[i] for i in part], pad_id).to(device_of(policy))
        sums[torch.tensor(part)] = response_logprobs(token_logprobs(policy, batch)[0], batch.response_mask).cpu()
    shift = sums - torch.tensor([float(x.sum()) for x in said])
    mean, low, high = bootstrap_interval(shift, generator=stream(seed, "bootstrap", "shift"),
                                         groups=torch.tensor(groups))
    return {"shift": {"mean": mean, "low": low, "high": high, "n": len(rows)},
            "nll": {"mean": float(-sums.sum() / n.sum()), "n": len(rows)}}
