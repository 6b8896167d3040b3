"""Means over prompts with intervals, many at once, all on the same draws: so differences of two of them are paired.

Responses to prompts of one text are not independent; what is drawn is the prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from keel.data.records import Prompt, prompt_numbers
from keel.functional.resampling import cluster_draws, percentile_interval, ratio_draws, sign_flip_p
from keel.rng import stream

__all__ = ["N_FLIPS", "N_RESAMPLES", "difference_p", "intervals"]

N_RESAMPLES = 1000
N_FLIPS = 9999
BLOCK = 100
"""Resamples in memory at a time: a large file has a hundred thousand prompts."""
K = TypeVar("K")


def intervals(columns: Mapping[K, Float[Tensor, " N"]], prompts: Sequence[Prompt], *, seed: int, names: Sequence[str],
              ) -> dict[K, dict[str, Any]]:
    """Mean of each column, low and high of its 95% bootstrap interval over prompts, and n.

    One prompt says nothing of others: the interval of a mean over fewer than two has no ends.

    Args:
        columns: one number per response, by any key; NaN: the response is no part of this mean.
        prompts: of the responses.
        seed, names: of the draws; equal names draw the same prompts.
    """
    if not columns:
        return {}
    values = torch.stack([column.double() for column in columns.values()], dim=1)
    there = ~values.isnan()
    totals, sizes = (_by_prompt(x, prompts) for x in (torch.where(there, values, 0.0), there.double()))
    generator = stream(seed, "bootstrap", *names)
    drawn = torch.cat([ratio_draws(cluster_draws(len(totals), n_draws=min(BLOCK, N_RESAMPLES - start),
                                                 generator=generator), totals, sizes)
                       for start in range(0, N_RESAMPLES, BLOCK)])
    low, high = percentile_interval(drawn)
    counts, means, n_prompts = there.sum(0).tolist(), totals.sum(0) / sizes.sum(0), (sizes > 0).sum(0).tolist()
    return {key: {"mean": float(means[k]) if counts[k] else None,
                  **{end: float(ends[k]) if n_prompts[k] > 1 else None for end, ends in (("low", low), ("high", high))},
                  "n": counts[k]} for k, key in enumerate(columns)}


def difference_p(differences: Float[Tensor, " N"], prompts: Sequence[Prompt], *, seed: int, names: Sequence[str],
                 ) -> float:
    """Two-sided p of paired differences, by turning the signs of the prompts' sums; see `sign_flip_p`."""
    sums = _by_prompt(differences.double()[:, None], prompts)[:, 0]
    return sign_flip_p(sums, n_flips=N_FLIPS, generator=stream(seed, "sign flips", *names))


def _by_prompt(rows: Float[Tensor, "N K"], prompts: Sequence[Prompt]) -> Float[Tensor, "P K"]:
    numbers = torch.tensor(prompt_numbers(prompts))
    return rows.new_zeros(int(numbers.max()) + 1, rows.shape[1]).index_add(0, numbers, rows)
