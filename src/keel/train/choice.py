"""Which responses of the data are learned from, and which of them a step sees."""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

import torch
from torch import Tensor

from keel.data.kinds import OF_PAIR, Which
from keel.data.records import Graded, prompt_numbers
from keel.errors import DataError, NumericsError
from keel.rng import stream
from keel.train.offline import BY_ADVANTAGE, BY_REWARD, OfflineLossConfig, SelectionConfig, Variant
from keel.train.order import batch_indices
from keel.train.worth import Worth

__all__ = ["Chosen", "chosen", "drawn", "kept_of", "lower_first", "ranked", "wanted", "weighty"]

MANY = 8
"""Responses to one prompt from which on PRO's cross-entropy is worth a note: its weight grows with their square."""


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
