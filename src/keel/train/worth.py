"""What each response of the data is worth, and what that comes to over all of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from keel.train.offline import BY_ADVANTAGE, BY_REWARD, Variant

__all__ = ["Worth", "filter_quality", "require_positive", "responses_of_rows", "step_credit", "write_worth"]

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

    @property
    def priorities(self) -> Float[Tensor, " N"]:
        """What draws are in proportion to: A+ where there is a value, else R."""
        return self.rewards if self.advantages is None else self.advantages.clamp_min(0)


def responses_of_rows(told: Sequence[Graded], rows: Sequence[Row]) -> list[Graded]:
    """The responses of the rows, row for row."""
    by_id = {one.id: one for one in told}
    return [by_id[row.record_id] for row in rows]


def require_positive(worth: Worth, kept: Sequence[int]) -> None:
    """Go no further where hardly anything weighs anything; after the weights were written, for a look at them.

    Raises:
        NumericsError: so it is.
    """
    n = len(worth.rewards)
    if worth.advantages is None:
        if not kept:
            raise NumericsError(f"all of {n} rewards are 0, so no response is ever drawn", where="selection",
                                remedy="Draw them uniformly, or look at advantages.jsonl in the run folder.")
        return
    n_positive = int((worth.advantages > 0).sum())
    if n_positive < LEAST_POSITIVE * n or not n_positive:
        raise NumericsError(f"only {n_positive} of {n} advantages are positive",
                            where=f"rewards have mean {float(worth.rewards.mean()):.4g}, values "
                                  f"{float((worth.rewards - worth.advantages).mean()):.4g}",
                            remedy="The data are worse than what the reference writes, or the rewards of the two are "
                                   "not the same thing: look at advantages.jsonl in the run folder.")
    if not any(worth.advantages[i] > 0 for i in kept):
        raise NumericsError(f"none of the {n_positive} responses with a positive advantage is kept", where="selection",
                            remedy="The highest rewards are not the highest advantages here: raise "
                                   "selection.top_fraction, or leave selection.keep as it is.")


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
    chosen_ones, advantages = frozenset(kept), worth.advantages
    groups = torch.tensor(prompt_numbers([one.prompt for one in told]))
    lengths = torch.tensor([float(row.n_tokens - row.n_prompt) for row in rows])
    lines = [{"id": one.id, "record": one.record or one.id, "rewards": {name: float(x[i]) for name, x in parts.items()},
              "total": float(worth.rewards[i]), "value": None if worth.values is None else float(worth.values[i]),
              "advantage": None if advantages is None else float(advantages[i]), "kept": i in chosen_ones,
              "n_tokens": int(lengths[i])} for i, one in enumerate(told)]
    with explained_disk_errors(file.parent):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said: dict[str, Any] = {"rewards": {name: _summary(x, groups, seed, name) for name, x in parts.items()},
                            "total": _summary(worth.rewards, groups, seed, "total"), "kept": len(kept) / len(rows)}
    if advantages is not None:
        said |= {"advantage": {f"p{p}": float(advantages.quantile(p / 100)) for p in PERCENTILES} | {
            "mean": float(advantages.mean()), "negative": float((advantages < 0).double().mean()),
            "length_spearman": float(rank_correlation(advantages, lengths.double()))}}
    if known_bad is not None:
        said["filter"] = filter_quality([is_bad(one, known_bad) for one in told], chosen_ones)
    return said


def _summary(x: Tensor, groups: Tensor, seed: int, name: str) -> dict[str, float]:
    """Two responses to one prompt are no independent draws: the interval is over prompts."""
    mean, low, high = bootstrap_interval(x.float(), generator=stream(seed, "bootstrap", "data", name), groups=groups)
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
