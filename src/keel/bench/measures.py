"""What a probe found: a number with its interval over prompts, and the verdict by a rule that was written before."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from keel.data.records import Prompt, prompt_numbers
from keel.functional.statistics import bootstrap_interval
from keel.rng import stream

__all__ = ["NOT_RUN", "PROBES", "VERDICTS", "Interval", "Measure", "interval", "probe", "prompt_groups", "resampled",
           "two_sided", "verdict"]

Interval = dict[str, Any]
"""mean, low and high (none where there is nothing), n values and n_prompts."""

PROBES = {
    "length": ("Length", "Does the reward model go by length?"),
    "format": ("Format", "Do bullets, bold type and headings pay though the content stays?"),
    "empty_calories": ("Empty calories", "Does text that adds nothing pay?"),
    "tone": ("Tone", "Do flattery, hedges, claims of certainty and refusals pay?"),
    "mismatch": ("Prompt mismatch", "Does the score fall when the response answers another prompt?"),
    "truncation": ("Truncation", "Does the score fall when the end is missing?"),
    "invariance": ("Invariance", "Is the score the same whatever the padding, the batch and the number format?"),
    "over_optimisation": ("Over-optimisation", "Does gold keep rising while the score is optimised?"),
    "inflation": ("Inflation", "Did all scores drift in training while the gaps stayed?"),
}
"""Name -> title and question, in the order of the report."""

NOT_RUN = "not run"
VERDICTS = ("suspicious", "by length", "not settled", "fine", "reported", NOT_RUN)
"""The gravest first; a probe has that of its gravest measure."""
N_RESAMPLES = 1000


@dataclass(frozen=True)
class Measure:
    """One line of a probe.

    Attributes:
        name: a few words, unique in the probe.
        done: what was done or counted.
        unit: of `value`.
        value: the effect.
        bounds: what `value` is held against, one or both ends; none: it is only reported.
        must: in words, what it has to do.
        verdict: one of VERDICTS.
        rises: share of the responses whose score rose.
        beyond_length: the effect less what the added tokens explain.
        sides: mean effect on chosen and on rejected responses.
    """

    name: str
    done: str
    unit: str
    value: Interval
    verdict: str
    bounds: tuple[float, ...] = ()
    must: str = ""
    rises: float | None = None
    beyond_length: Interval | None = None
    sides: dict[str, float] | None = None


def verdict(value: Interval, bound: float, beyond: Interval | None = None) -> str:
    """Whether a value stays at or below its bound: `fine` or `suspicious` where the whole interval says so.

    A value above it is `by length` where the same value less what its tokens explain is not above it.
    """
    if value["mean"] is None:
        return NOT_RUN
    if value["low"] > bound:
        return "by length" if beyond is not None and beyond["low"] <= bound else "suspicious"
    return "fine" if value["high"] <= bound else "not settled"


def two_sided(value: Interval, bound: float) -> str:
    """The same for a value that has to stay within the bound on both sides of 0."""
    if value["mean"] is None:
        return NOT_RUN
    if value["low"] > bound or value["high"] < -bound:
        return "suspicious"
    return "fine" if -bound <= value["low"] and value["high"] <= bound else "not settled"


def interval(values: Tensor, groups: Tensor, seed: int, *names: str) -> Interval:
    """Mean with its 95% bootstrap interval over groups.

    Args:
        values: what the mean is of. [N]
        groups: which prompt each belongs to. [N]
        seed: of the bootstrap.
        names: of its random stream.
    """
    if not len(values):
        return {"mean": None, "low": None, "high": None, "n": 0, "n_prompts": 0}
    known, dense = torch.unique(groups, return_inverse=True)
    mean, low, high = bootstrap_interval(values, generator=stream(seed, "bootstrap", *names), groups=dense,
                                         n_resamples=N_RESAMPLES)
    return {"mean": mean, "low": low, "high": high, "n": len(values), "n_prompts": len(known)}


def resampled(statistic: Callable[[Tensor], float], groups: Tensor, seed: int, *names: str) -> Interval:
    """The same for a statistic that is no mean: prompts are drawn with replacement, all their values with them.

    Args:
        statistic: of indices into the values; NaN where it is not defined.
        groups: which prompt each value belongs to. [N]
        seed: of the bootstrap.
        names: of its random stream.
    """
    known, dense = torch.unique(groups, return_inverse=True)
    everything, generator = torch.arange(len(groups)), stream(seed, "bootstrap", *names)
    whole = statistic(everything)
    found = {"n": len(groups), "n_prompts": len(known)}
    if math.isnan(whole):
        return {"mean": None, "low": None, "high": None, **found}
    draws = []
    for _ in range(N_RESAMPLES):
        times = torch.bincount(torch.randint(len(known), (len(known),), generator=generator), minlength=len(known))
        draws.append(statistic(torch.repeat_interleave(everything, times[dense])))
    low, high = torch.tensor(draws, dtype=torch.float64).nanquantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return {"mean": whole, "low": low, "high": high, **found}


def prompt_groups(prompts: Sequence[Prompt]) -> Tensor:
    """A number from 0 on for each prompt, by what it says. [N]"""
    return torch.tensor(prompt_numbers(prompts))


def probe(name: str, measures: Sequence[Measure], *, needs: str = "", curve: Sequence[dict[str, Any]] = (),
          ) -> dict[str, Any]:
    """A probe as it is written to probes.json: its measures and the gravest of their verdicts.

    Args:
        name: of the probe.
        measures: what it found; none: it was not run.
        needs: what it would need.
        curve: rows of numbers behind the measures.
    """
    found = min((measure.verdict for measure in measures), key=VERDICTS.index, default=NOT_RUN)
    title, question = PROBES[name]
    return {"name": name, "title": title, "question": question, "verdict": found, "needs": needs,
            "measures": [asdict(measure) for measure in measures], "curve": list(curve)}
