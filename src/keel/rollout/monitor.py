"""What a rollout phase looks like in numbers, before anything is learned from it."""

from typing import Any

import torch

from keel.batches import Rollout
from keel.functional.masked import Moments, masked_mean
from keel.functional.policy import kl_k1, kl_k3
from keel.functional.statistics import explained_variance, repeated_share
from keel.rollout.respond import Responses

__all__ = ["monitors"]


def monitors(responses: Responses, rollout: Rollout, rewards: torch.Tensor, moments: Moments) -> dict[str, Any]:
    """The monitors of section 12 of our PPO-max spec; names, units and formulas are on the method's page."""
    mask, scores = rollout.tokens.response_mask, rollout.scores
    lengths = mask.sum(1)
    ids = [row[m].tolist() for row, m in zip(rollout.tokens.ids.cpu(), mask.cpu(), strict=True)]
    counts, edges = torch.histogram(scores.double(), bins=24)
    n, mean, m2 = moments.unbind()
    advantage = masked_mean(rollout.advantages, mask)
    numbers = {
        "score/mean": scores.mean(), "score/std": scores.std(correction=0), "score/p95": scores.quantile(0.95),
        "reward/mean": masked_mean(rewards, mask) * lengths.float().mean(),
        "kl/reference_k1": masked_mean(kl_k1(rollout.logprobs, rollout.ref_logprobs), mask),
        "kl/reference_k3": masked_mean(kl_k3(rollout.logprobs, rollout.ref_logprobs), mask),
        "policy/perplexity": masked_mean(-rollout.logprobs, mask).exp(),
        "response/length": lengths.float().mean(), "response/cut": (~rollout.ended).float().mean(),
        "response/tokens": lengths.sum().float(),
        "value/explained_variance": explained_variance(rollout.values, rollout.returns, mask),
        "value/mean": masked_mean(rollout.values, mask), "return/mean": masked_mean(rollout.returns, mask),
        "advantage/mean": advantage,
        "advantage/std": masked_mean((rollout.advantages - advantage).square(), mask).sqrt(),
        "moments/mean": mean, "moments/std": (m2 / (n - 1).clamp_min(1)).sqrt(),
    }
    repetition = sum(repeated_share(row) for row in ids) / len(ids)
    return {name: float(x) for name, x in numbers.items()} | {
        "response/repetition": repetition,
        "score/histogram": {"edges": [round(x, 5) for x in edges.tolist()], "counts": counts.int().tolist()}}
