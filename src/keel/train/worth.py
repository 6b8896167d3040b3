"""What each response of the data is worth, which are learned from, and which of them a step sees."""

import bisect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from keel.data.records import Graded, prompt_numbers
from keel.data.render import Row
from keel.errors import DataError, NumericsError
from keel.functional.statistics import bootstrap_interval, rank_correlation
from keel.rng import stream
from keel.runs import explained_disk_errors
from keel.train.offline import BY_ADVANTAGE, BY_REWARD, SelectionConfig, Variant
from keel.train.order import batch_indices

__all__ = ["Worth", "drawn", "filter_quality", "kept_of", "ranked_units", "require_positive", "step_credit",
           "write_worth"]

LEAST_POSITIVE = 0.01
"""Share of positive advantages below which a run is refused: its reward or its value estimate is wrong."""
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Worth:
    """What each response of the data is worth, float64.

    Attributes:
        rewards: R.
        values: V of its prompt; none where nothing needs it, or where it is the mean of each batch.
    """

    rewards: Float[Tensor, " N"]
    values: Float[Tensor, " N"] | None

    @property
    def advantages(self) -> Float[Tensor, " N"] | None:
        """A = R - V."""
        return None if self.values is None else self.rewards - self.values


def kept_of(worth: Worth, cfg: SelectionConfig, variant: Variant) -> list[int]:
    """The responses that are learned from.

    Raises:
        DataError: a reward is negative, and responses are weighed or drawn by it.
    """
    n, how, n_negative = len(worth.rewards), cfg.keeps(variant), int((worth.rewards < 0).sum())
    by_reward = variant in BY_REWARD or (cfg.draws(variant) == "priority" and not cfg.needs_value(variant))
    if by_reward and n_negative:
        raise DataError(f"{n_negative} responses have a negative reward, down to {float(worth.rewards.min()):.4g}",
                        where=f"variant = {variant}", remedy="A negative weight unlearns without bound, and nothing "
                        "is drawn by it: shift the reward, or use a variant with advantages.")
    if how == "top":
        assert cfg.top_fraction is not None
        best = worth.rewards.argsort(descending=True, stable=True)[: max(1, round(cfg.top_fraction * n))]
        return sorted(best.tolist())
    if how == "positive":
        assert worth.advantages is not None, "what is kept by advantages asks for a value"
        return (worth.advantages > 0).nonzero()[:, 0].tolist()
    return list(range(n))


def require_positive(worth: Worth, cfg: SelectionConfig, variant: Variant) -> None:
    """Go no further where advantages are used and hardly any is positive; after they were written, for a look at them.

    Raises:
        NumericsError: hardly any is.
    """
    if worth.advantages is None or cfg.keeps(variant) == "top":
        return
    n, n_positive = len(worth.rewards), int((worth.advantages > 0).sum())
    if n_positive < LEAST_POSITIVE * n or not n_positive:
        raise NumericsError(f"only {n_positive} of {n} advantages are positive",
                            where=f"rewards have mean {float(worth.rewards.mean()):.4g}, values "
                                  f"{float((worth.rewards - worth.advantages).mean()):.4g}",
                            remedy="The data are worse than what the reference writes, or the rewards of the two are "
                                   "not the same thing: look at advantages.jsonl in the run folder.")


def drawn(weights: Sequence[float] | None, n: int, size: int, seed: int, *, first_step: int) -> Iterator[list[int]]:
    """The records of step `first_step`, then of every later one. A function of seed and step alone.

    Args:
        weights: each draw is made with replacement, in proportion to them; none: shuffled passes over all n.
        n: records.
        size: records per step.
        seed: of the order.
        first_step: from 1 on.
    Raises:
        NumericsError: no weight is positive.
    """
    if weights is None:
        yield from batch_indices(n, size, seed, "offline", first_step=first_step)
        return
    # DEVIATION(offline_pg-4): drawn from a stream of each step; released, by a generator that no seed reaches.
    whole = list(accumulate(weights))
    if not whole or not whole[-1] > 0:
        raise NumericsError("no response has a positive weight to be drawn by", where=f"{n} responses",
                            remedy="Draw them uniformly, or look at the rewards.")
    # u * total may round up to the total itself: then the last record with a positive weight is meant.
    last = max(i for i, weight in enumerate(weights) if weight > 0)
    step = first_step
    while True:
        uniform = torch.rand(size, dtype=torch.float64, generator=stream(seed, "offline", "draw", step))
        yield [min(bisect.bisect_right(whole, u * whole[-1]), last) for u in uniform.tolist()]
        step += 1


def write_worth(file: Path, told: Sequence[Graded], rows: Sequence[Row], parts: Mapping[str, Float[Tensor, " N"]],
                worth: Worth, kept: Sequence[int], *, known_bad: str | None, seed: int) -> dict[str, Any]:
    """One row per response; and what they come to, for result.json.

    Args:
        file: to write.
        told: the responses.
        rows: their tokens.
        parts: each reward by its name.
        worth: their total, and V.
        kept: places of those that are learned from.
        known_bad: key of meta that is true for bad responses; none: nobody knows.
        seed: of the intervals.
    """
    chosen, advantages = frozenset(kept), worth.advantages
    lengths = torch.tensor([float(row.n_tokens - row.n_prompt) for row in rows])
    lines = [{"id": one.id, "record": one.record or one.id, "rewards": {name: float(x[i]) for name, x in parts.items()},
              "total": float(worth.rewards[i]), "value": None if worth.values is None else float(worth.values[i]),
              "advantage": None if advantages is None else float(advantages[i]), "kept": i in chosen,
              "n_tokens": int(lengths[i])} for i, one in enumerate(told)]
    with explained_disk_errors(file.parent):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said: dict[str, Any] = {"rewards": {name: _summary(x, seed, name) for name, x in parts.items()},
                            "total": _summary(worth.rewards, seed, "total"), "kept": len(kept) / len(rows)}
    if advantages is not None:
        said |= {"advantage": {f"p{p}": float(advantages.quantile(p / 100)) for p in PERCENTILES} | {
            "mean": float(advantages.mean()), "negative": float((advantages < 0).double().mean()),
            "length_spearman": float(rank_correlation(advantages, lengths.double()))}}
    if known_bad is not None:
        said["filter"] = filter_quality([is_bad(one, known_bad) for one in told], chosen)
    return said


def _summary(x: Tensor, seed: int, name: str) -> dict[str, float]:
    mean, low, high = bootstrap_interval(x.float(), generator=stream(seed, "bootstrap", "data", name))
    return {"mean": mean, "low": low, "high": high, "n": x.numel()}


def filter_quality(bad: Sequence[bool], kept: frozenset[int]) -> dict[str, Any]:
    """How well what is left out agrees with what is known to be bad: shares of one, none where there is nothing."""
    dropped = [i for i in range(len(bad)) if i not in kept]
    n_bad, both = sum(bad), sum(bad[i] for i in dropped)
    return {"bad": n_bad / len(bad), "dropped": len(dropped) / len(bad),
            "precision": both / len(dropped) if dropped else None, "recall": both / n_bad if n_bad else None}


def is_bad(one: Graded, key: str) -> bool:
    """What meta says of a response; of a pair it may say {"chosen": ..., "rejected": ...}."""
    said = one.prompt.meta.get(key)
    if isinstance(said, Mapping):
        said = said.get(one.id.rpartition("/")[2])
    if not isinstance(said, bool):
        raise DataError(f"meta has {said!r} under {key!r}, not true or false", where=f"response {one.id}",
                        remedy="Say of every response whether it is bad, or leave known_bad out.")
    return said


def ranked_units(told: Sequence[Graded], rewards: Tensor) -> list[list[int]]:
    """The responses to each prompt, the best first; prompts with one response have nothing to rank.

    Raises:
        DataError: no prompt has two.
    """
    groups: dict[int, list[int]] = {}
    for i, number in enumerate(prompt_numbers([one.prompt for one in told])):
        groups.setdefault(number, []).append(i)
    found = [sorted(group, key=lambda i: -float(rewards[i])) for group in groups.values() if len(group) > 1]
    if not found:
        raise DataError(f"none of {len(groups)} prompts has two responses to rank", where="variant = pro",
                        remedy="Give pairs or rankings, or several rows with one prompt.")
    return found


def step_credit(worth: Worth, variant: Variant, picked: Sequence[int]) -> dict[int, float]:
    """What each response of a step weighs: its reward, its advantage, or one; the place of it -> the weight.

    Without values the advantage is what a response gains over the mean reward of the step.
    """
    rewards = worth.rewards[torch.tensor(picked)]
    if variant in BY_ADVANTAGE:
        # DEVIATION(offline_pg-5): cut at 0 for every variant; released, not for the one without a reference.
        values = rewards.mean() if worth.values is None else worth.values[torch.tensor(picked)]
        weights = (rewards - values).clamp_min(0)
    else:
        weights = rewards if variant in BY_REWARD or variant == "pro" else torch.ones_like(rewards)
    return dict(zip(picked, weights.tolist(), strict=True))
