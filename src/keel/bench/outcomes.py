"""Scores of whole solutions, held against whether their final answers are right."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from keel.bench.intervals import N_RESAMPLES, intervals
from keel.data.records import prompt_numbers
from keel.data.traces import StepTrace
from keel.functional.resampling import area_draws, cluster_draws, percentile_interval
from keel.functional.statistics import area_under_curve, correlation
from keel.rng import stream

__all__ = ["outcome_headline", "outcomes_judged"]

BLOCK = 100
"""Resamples in memory at a time."""


def outcomes_judged(logits: Float[Tensor, " N"], held: Sequence[StepTrace], training: Sequence[StepTrace], *, seed: int,
                    ) -> dict[str, Any]:
    """Accuracy and area under the curve, beside the commonest outcome and beside the number of steps alone.

    Args:
        logits: that the final answer of each solution is right; above 0 it is called right.
        held: these solutions, all of known outcome.
        training: solutions of known outcome that the baselines are made from.
        seed: of the intervals, which are over prompts.
    """
    right = torch.tensor([bool(trace.outcome) for trace in held])
    taught = torch.tensor([float(bool(trace.outcome)) for trace in training], dtype=torch.float64)
    mostly = float(taught.mean()) >= 1 / 2
    told = torch.tensor([float(len(trace.steps)) for trace in training], dtype=torch.float64)
    n_steps = torch.tensor([float(len(trace.steps)) for trace in held], dtype=torch.float64)
    longer_is_right = bool(correlation(told, taught) >= 0)
    prompts = [trace.prompt for trace in held]
    accuracy = intervals({"model": ((logits > 0) == right).double(), "majority": (right == mostly).double()}, prompts,
                         seed=seed, names=("outcome",))
    numbers = torch.tensor(prompt_numbers(prompts))
    areas = {name: _area(x.double(), right, numbers, seed)
             for name, x in (("model", logits), ("steps", n_steps if longer_is_right else -n_steps))}
    return {"n": len(held), "n_right": int(right.sum()), "accuracy": accuracy["model"], "auc": areas["model"],
            "baselines": {"majority": {"accuracy": accuracy["majority"]}, "number of steps": {"auc": areas["steps"]}}}


def outcome_headline(told: dict[str, Any]) -> dict[str, object]:
    """The area against that of the number of steps, in the shape that the report reads."""
    before, after = told["baselines"]["number of steps"]["auc"], told["auc"]
    return {"metric": "held-out area under the curve of outcomes (before: the number of steps)",
            "higher_is_better": True, "before": before | {"n": told["n"]}, "after": after | {"n": told["n"]}}


def _area(scores: Float[Tensor, " N"], right: Bool[Tensor, " N"], numbers: Int[Tensor, " N"], seed: int,
          ) -> dict[str, float | None]:
    """The area with its interval over prompts; nothing where all answers are right, or none."""
    if right.all() or not right.any():
        return {"mean": None, "low": None, "high": None}
    found: dict[str, float | None] = {"mean": float(area_under_curve(scores, right)), "low": None, "high": None}
    n_prompts = int(numbers.max()) + 1
    if n_prompts > 1:  # one prompt says nothing of others
        generator = stream(seed, "bootstrap", "outcome")
        blocks = [cluster_draws(n_prompts, n_draws=BLOCK, generator=generator) for _ in range(N_RESAMPLES // BLOCK)]
        low, high = percentile_interval(torch.cat([area_draws(draws[:, numbers], scores, right) for draws in blocks]))
        found |= {"low": float(low), "high": float(high)}
    return found
