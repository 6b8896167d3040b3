"""What a rollout phase looks like in numbers, before anything is learned from it."""

from collections.abc import Mapping
from typing import Any

import torch

from keel.batches import Rollout
from keel.functional.masked import Moments, masked_mean, row_sums
from keel.functional.policy import kl_k1, kl_k3
from keel.functional.statistics import explained_variance, repeated_share
from keel.rollout.reward import Scores

__all__ = ["monitors"]


def monitors(rollout: Rollout, scored: Scores, processed: torch.Tensor, moments: Mapping[str, Moments],
             ) -> dict[str, Any]:
    """The monitors of section 12 of our PPO-max spec; names, units and formulas are on the method's page."""
    mask, scores = rollout.tokens.response_mask, scored.total
    own = rollout.logprobs if rollout.own_logprobs is None else rollout.own_logprobs
    counted = mask & rollout.counted[:, None]
    lengths = mask.sum(1)
    ids = [row[m].tolist() for row, m in zip(rollout.tokens.ids.cpu(), mask.cpu(), strict=True)]
    counts, edges = torch.histogram(scores.double(), bins=24)
    advantage = masked_mean(rollout.advantages, counted)
    numbers = {
        "score/mean": scores.mean(), "score/std": scores.std(correction=0), "score/p95": scores.quantile(0.95),
        "score/processed": processed.mean(), "score/processed_std": processed.std(correction=0),
        "reward/mean": torch.where(mask, rollout.rewards, 0.0).sum(1).mean(),
        "kl/charged": masked_mean(rollout.kl, mask),
        "kl/reference_k1": masked_mean(kl_k1(own, rollout.ref_logprobs), mask),
        "kl/reference_k3": masked_mean(kl_k3(own, rollout.ref_logprobs), mask),
        "policy/perplexity": masked_mean(-rollout.logprobs, mask).exp(),
        "response/length": lengths.float().mean(), "response/cut": (~rollout.ended).float().mean(),
        "response/tokens": lengths.sum().float(), "advantage/mean": advantage,
        "advantage/std": masked_mean((rollout.advantages - advantage).square(), counted).sqrt(),
    }
    if rollout.values is not None and rollout.returns is not None:
        numbers |= {"value/explained_variance": explained_variance(rollout.values, rollout.returns, counted),
                    "value/mean": masked_mean(rollout.values, counted),
                    "return/mean": masked_mean(rollout.returns, counted)}
    if scored.steps:
        numbers |= _of_steps(rollout, scored)
    repetition = sum(repeated_share(row) for row in ids) / len(ids)
    return {name: float(x) for name, x in (numbers | _by_source(scored, moments)).items()} | {
        "response/repetition": repetition,
        "score/histogram": {"edges": [round(x, 5) for x in edges.tolist()], "counts": counts.int().tolist()}}


def _of_steps(rollout: Rollout, scored: Scores) -> dict[str, torch.Tensor]:
    """Numbers of the sources that score steps, all taken together; and what responses earn beside their steps."""
    told, n = list(scored.steps.values()), len(scored.total)
    found = {
        "steps/count": sum(torch.bincount(one.rows, minlength=n).float() for one in told) / len(told),
        "steps/repeated": torch.cat([one.repeated.float() for one in told]),
        "steps/unfinished": torch.tensor([float(cut) for one in told for cut in one.unfinished]),
        "steps/score": torch.cat([one.values for one in told]),
        "steps/paid": row_sums(rollout.step_rewards, rollout.tokens.response_mask)}
    if scored.outcome is not None:
        found["score/outcome"] = scored.outcome
    return {name: x.float().mean() if x.numel() else torch.tensor(0.0) for name, x in found.items()}


def _by_source(scored: Scores, moments: Mapping[str, Moments]) -> dict[str, torch.Tensor]:
    """Running moments of each source; and, where there are several or an ensemble, what each one said."""
    found: dict[str, torch.Tensor] = {}
    for name, raw in scored.raw.items():
        n, mean, m2 = moments[name].unbind()
        prefix = "moments/" if len(scored.raw) == 1 else f"moments/{name}/"
        found |= {f"{prefix}mean": mean, f"{prefix}std": (m2 / (n - 1).clamp_min(1)).sqrt()}
        if len(scored.raw) > 1:
            found[f"score/{name}/mean"] = raw.mean()
    return found | {f"score/{name}/disagreement": x.mean() for name, x in scored.disagreement.items()}
