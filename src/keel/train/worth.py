"""What each response of the data is worth, which are learned from, and which of them a step sees."""

import bisect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from keel.data.kinds import OF_PAIR, Which
from keel.data.records import Graded, prompt_numbers
from keel.data.render import Row
from keel.errors import DataError, NumericsError
from keel.functional.statistics import bootstrap_interval, rank_correlation
from keel.rng import stream
from keel.runs import explained_disk_errors
from keel.train.offline import BY_ADVANTAGE, BY_REWARD, OfflineLossConfig, SelectionConfig, Variant
from keel.train.order import batch_indices

__all__ = ["Chosen", "Worth", "chosen", "drawn", "filter_quality", "kept_of", "lower_first", "ranked",
           "require_positive", "responses_of_rows", "step_credit", "wanted", "weighty", "write_worth"]

LEAST_POSITIVE = 0.01
"""Share of positive advantages below which a run is refused: its reward or its value estimate is wrong."""
PERCENTILES = (5, 25, 50, 75, 95)
MANY = 8
"""Responses to one prompt from which on PRO's cross-entropy is worth a note: its weight grows with their square."""


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


@dataclass(frozen=True)
class Chosen:
    """What is learned from, and how it is drawn.

    Attributes:
        units: places of the responses that are drawn together: one response, for pro those to one prompt, best first.
        weights: of the units, which are drawn with replacement in proportion; none: in shuffled passes.
        skipped: what there was nothing to learn from, counted.
        notes: what a reader of the run must know.
    """

    units: list[list[int]]
    weights: list[float] | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> list[int]:
        """Places of all responses that are learned from, in order."""
        return sorted(chain.from_iterable(self.units))


def weighty(told: Sequence[Graded], where: str) -> tuple[list[Graded], int]:
    """Without the responses of pairs of weight 0; and how many such pairs there are.

    Raises:
        DataError: pairs have other weights, soft labels or margins, or all have weight 0.
    """
    said = {one.record: one.prompt.meta[OF_PAIR] for one in told if OF_PAIR in one.prompt.meta}
    left_out = {record for record, own in said.items() if own.get("weight") == 0}
    other = [(record, name, x) for record, own in said.items() if record not in left_out for name, x in own.items()]
    if other:
        record, name, x = other[0]
        raise DataError(f"{len({record for record, _, _ in other})} pairs have a weight, a soft label or a margin that "
                        f"nothing here would heed, the first of them {name} = {x:g}", where=f"{where}, pair {record}",
                        remedy="Responses weigh what their rewards say: remove these columns (a weight of 0 leaves a "
                               "pair out), or train on the pairs with `keel preference`.")
    if told and all(one.record in left_out for one in told):
        raise DataError(f"all of {len(left_out)} pairs have weight 0, so no response is left", where=where,
                        remedy="A weight of 0 leaves a pair out; give some of them 1.")
    return [one for one in told if one.record not in left_out], len(left_out)


def wanted(told: Sequence[Graded], which: Which, drop_ending: str | None, where: str) -> list[Graded]:
    """The best response of each record or all of them, without the records that have a response with an ending.

    Raises:
        DataError: none are left.
    """
    bad = {one.record or one.id for one in told if drop_ending and one.response.endswith(drop_ending)}
    first = {one.record or one.id: one.id for one in reversed(told)}
    found = [one for one in told if (one.record or one.id) not in bad
             and (which == "all" or first[one.record or one.id] == one.id)]
    if told and not found:
        raise DataError(f"every one of {len(first)} records has a response that ends with {drop_ending!r}",
                        where=where, remedy="Leave drop_ending out, or mend the data.")
    return found


def responses_of_rows(told: Sequence[Graded], rows: Sequence[Row]) -> list[Graded]:
    """The responses of the rows, row for row."""
    by_id = {one.id: one for one in told}
    return [by_id[row.record_id] for row in rows]


def lower_first(told: Sequence[Graded]) -> dict[str, float]:
    """How often the best response of a record has a lower reward than another one of it, by the rewards that the file
    holds for them: name -> share of the records. Nothing where no record has rewards of several responses.

    Args:
        told: the responses of a record follow each other, the best first.
    """
    groups: dict[str, list[Graded]] = {}
    for one in told:
        groups.setdefault(one.record or one.id, []).append(one)
    found: dict[str, list[bool]] = {}
    for group in groups.values():
        names = sorted(frozenset.intersection(*(frozenset(one.grades) for one in group))) if len(group) > 1 else []
        for name in names:
            first, *others = (one.grades[name] for one in group)
            found.setdefault(name, []).append(first < max(others))
    return {name: sum(lower) / len(lower) for name, lower in sorted(found.items())}


def chosen(told: Sequence[Graded], worth: Worth, selection: SelectionConfig, loss: OfflineLossConfig) -> Chosen:
    """What is learned from, and how it is drawn.

    Raises:
        DataError: see `kept_of` and `ranked`.
    """
    if loss.variant == "pro":
        return ranked(told, worth.rewards)
    kept = kept_of(worth, selection, loss.variant)
    weights = None if selection.draws(loss.variant) == "uniform" else worth.priorities[torch.tensor(
        kept, dtype=torch.long)].tolist()
    return Chosen([[i] for i in kept], weights, notes=_unlearned(worth, kept, loss))


def _unlearned(worth: Worth, kept: Sequence[int], loss: OfflineLossConfig) -> tuple[str, ...]:
    """A note where the term of A-LoL KL is more than most weights."""
    if loss.kl_coef is None or loss.kl_term != "difference" or (
            loss.variant in BY_ADVANTAGE and worth.values is None):
        return ()
    if loss.weight == "one":
        weights = torch.ones(len(kept), dtype=torch.float64)
    else:
        weights = (worth.priorities if loss.variant in BY_ADVANTAGE else worth.rewards)[torch.tensor(
            kept, dtype=torch.long)]
    mean, below = float(weights[weights > 0].mean()), float((weights < loss.kl_coef).double().mean())
    if not loss.kl_coef > mean:
        return ()
    return (f"loss.kl_coef = {loss.kl_coef:g} is more than {mean:.4g}, the mean of the positive weights: with kl_term "
            f"= difference the {below:.0%} of the responses that weigh less than it are pushed down without bound",)


def kept_of(worth: Worth, cfg: SelectionConfig, variant: Variant) -> list[int]:
    """The responses that are learned from. What is never drawn, as it weighs nothing, is not.

    Raises:
        DataError: a reward is negative, and responses are weighed or drawn by it.
    """
    n, how, n_negative = len(worth.rewards), cfg.keeps(variant), int((worth.rewards < 0).sum())
    by_reward = variant in BY_REWARD or (cfg.draws(variant) == "priority" and not cfg.needs_value(variant))
    if by_reward and n_negative:
        raise DataError(f"{n_negative} responses have a negative reward, down to {float(worth.rewards.min()):.4g}",
                        where=f"variant = {variant}", remedy="A negative weight unlearns without bound, and nothing "
                        "is drawn by it: shift the reward, or use a variant with advantages.")
    kept = list(range(n))
    if how == "top":
        assert cfg.top_fraction is not None
        best = worth.rewards.argsort(descending=True, stable=True)[: max(1, round(cfg.top_fraction * n))]
        kept = sorted(best.tolist())
    if how == "positive" or cfg.draws(variant) == "priority":
        assert how != "positive" or worth.advantages is not None, "what is kept by advantages asks for a value"
        kept = [i for i in kept if worth.priorities[i] > 0]
    return kept


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


def ranked(told: Sequence[Graded], rewards: Tensor) -> Chosen:
    """The responses to each prompt, the best first. Those of the same text are one response, of the highest reward
    among them; prompts with one response have nothing to rank.

    Raises:
        DataError: no prompt has two.
    """
    groups: dict[int, dict[str, int]] = {}
    for i, number in enumerate(prompt_numbers([one.prompt for one in told])):
        texts = groups.setdefault(number, {})
        first = texts.setdefault(told[i].response, i)
        if rewards[i] > rewards[first]:
            texts[told[i].response] = i
    units = [sorted(texts.values(), key=lambda i: (-float(rewards[i]), i)) for texts in groups.values()
             if len(texts) > 1]
    if not units:
        raise DataError(f"none of {len(groups)} prompts has two responses to rank", where="variant = pro",
                        remedy="Give pairs or rankings, or several rows with one prompt.")
    most, n_large = max(map(len, units)), sum(len(unit) > MANY for unit in units)
    notes = (f"{n_large} prompts have more than {MANY} responses, up to {most}: pro weighs the cross-entropy of the "
             f"best of K by (K - 1)^2, here up to {(most - 1) ** 2} times loss.sft_coef",) if n_large else ()
    skipped = {"prompts_with_one_response": len(groups) - len(units),
               "equal_responses": len(told) - sum(map(len, groups.values()))}
    return Chosen(units, None, skipped, notes)


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
