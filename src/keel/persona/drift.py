"""How the projection moves over the turns of conversations: by domain, by condition, and between two conditions.

Source: Lu et al. 2026, arXiv:2601.10387, section on persona drift. Intervals resample whole conversations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from keel.functional.drift import slope_draws, turn_means
from keel.functional.resampling import cluster_draws, percentile_interval, ratio_draws
from keel.functional.statistics import bootstrap_interval
from keel.persona.axis import AssistantAxis
from keel.persona.readings import Reading
from keel.rng import stream

__all__ = ["FEWEST_RESAMPLED", "Course", "course", "differences", "domain_rows", "estimate"]

FEWEST_RESAMPLED = 5
"""Conversations from which on their resamples are taken for an interval: two have only three different ones."""


@dataclass(frozen=True)
class Course:
    """What the assistant's turns of one conversation project, in order.

    Attributes:
        id, domain, label: of the conversation; empty where its file does not say.
        asked: the user's messages, all of them.
        turns: projection of the assistant's turns from the first on; none where one has no content.
        before: for each of these turns, the user's last message before it; none where the user said nothing since the
            assistant's last turn.
    """

    id: str
    domain: str
    label: str
    asked: tuple[str, ...]
    turns: tuple[float | None, ...]
    before: tuple[str | None, ...]


def course(reading: Reading, axis: AssistantAxis, layer: int, *, centred: bool) -> Course:
    """The assistant's turns of a reading, at one block.

    Raises:
        ModelError: centred, and the axis comes without the mean of its roles.
    """
    centre = axis.centre(layer) if centred else 0.0
    turns: list[float | None] = []
    before: list[str | None] = []
    last = None
    for span, message in zip(reading.rendered.turns, reading.dialogue.messages, strict=True):
        if span.role == "user" and message.content.strip():
            last = message.content
        elif span.role == "assistant":
            found = reading.of_turn(span, layer)[0]
            turns.append(None if found is None else found - centre)
            before.append(last)
            last = None
    asked = tuple(one.content for one in reading.dialogue.messages if one.role == "user")
    return Course(reading.dialogue.id, reading.dialogue.domain or "", reading.label, asked, tuple(turns), tuple(before))


def domain_rows(courses: Sequence[Course], *, fewest: int, seed: int, n_draws: int) -> list[dict[str, Any]]:
    """For each domain and condition: mean by turn, slope and change, with 95 % intervals over conversations.

    Args:
        courses: of all conversations.
        fewest: conversations that a turn needs to count.
        seed: of the resamples.
        n_draws: how many.
    """
    groups: dict[tuple[str, str], list[Course]] = {}
    for one in courses:
        groups.setdefault((one.domain, one.label), []).append(one)
    return [_domain(name, label, some, fewest=fewest, seed=seed, n_draws=n_draws)
            for (name, label), some in groups.items()]


def _domain(name: str, label: str, courses: Sequence[Course], *, fewest: int, seed: int, n_draws: int,
            ) -> dict[str, Any]:
    values, present = _table(courses)
    n_turns = values.shape[1]
    turns = torch.arange(1, n_turns + 1, dtype=torch.float64)
    whole = torch.ones(1, len(courses), dtype=torch.float64)
    draws = cluster_draws(len(courses), n_draws=n_draws, generator=stream(seed, "drift", name, label))
    means = turn_means(values, present, fewest=fewest)
    spread = ratio_draws(draws, torch.where(present, values, 0.0).double(), present.double())
    slopes = slope_draws(draws, turns, values, present, fewest=fewest)
    slope = estimate(slope_draws(whole, turns, values, present, fewest=fewest)[0], slopes, len(courses))
    there = [[x for x in one.turns if x is not None] for one in courses]
    changes = [found[-1] - found[0] for found in there if len(found) > 1]
    positions = [{"turn": turn, "n": int(present[:, turn - 1].sum()),
                  **estimate(means[turn - 1], spread[:, turn - 1], int(present[:, turn - 1].sum()))}
                 for turn in range(1, n_turns + 1) if not math.isnan(means[turn - 1])]
    return {"name": name, "label": label, "n": len(courses), "slope": slope["mean"], "low": slope["low"],
            "high": slope["high"], "change": _mean(changes, seed, "change", name, label), "positions": positions}


def _table(courses: Sequence[Course]) -> tuple[Float[Tensor, "C P"], Bool[Tensor, "C P"]]:
    """Projection by conversation and turn, and whether there is one."""
    values = torch.full((len(courses), max(len(one.turns) for one in courses)), math.nan, dtype=torch.float64)
    for row, one in enumerate(courses):
        values[row, : len(one.turns)] = torch.tensor([math.nan if x is None else x for x in one.turns],
                                                     dtype=torch.float64)
    return values, ~values.isnan()


def estimate(value: Tensor, draws: Float[Tensor, " R"], n: int) -> dict[str, float | None]:
    """A number with its interval; none for what is not known, and no interval from fewer than five conversations."""
    known = not math.isnan(value) and n >= FEWEST_RESAMPLED and not bool(draws.isnan().all())
    low, high = percentile_interval(draws) if known else (value, value)
    return {"mean": None if math.isnan(value) else float(value), "low": float(low) if known else None,
            "high": float(high) if known else None}


def _mean(values: Sequence[float], seed: int, *names: str) -> dict[str, Any]:
    """Mean with its interval over conversations, and how many they are."""
    if not values:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean, low, high = bootstrap_interval(torch.tensor(values, dtype=torch.float64),
                                         generator=stream(seed, "drift", *names))
    several = len(values) >= FEWEST_RESAMPLED
    return {"mean": mean, "low": low if several else None, "high": high if several else None, "n": len(values)}


def differences(plain: Sequence[Course], acted: Sequence[Course], *, seed: int) -> list[dict[str, Any]]:
    """What a second condition adds to the projection where the user said the same in both, by domain.

    Two conversations of a file are compared turn by turn if all their user messages are equal, as in a replay; the
    condition that the file names first is the one that the others are held against. What was read while something
    acted is held against the same conversation without it. The mean over common turns counts once.

    Args:
        plain: courses of all conversations.
        acted: the same ones in the same order while something acts; empty where nothing does.
        seed: of the resamples.
    """
    same: dict[tuple[str, tuple[str, ...]], dict[str, Course]] = {}
    for one in plain:
        same.setdefault((one.domain, one.asked), {}).setdefault(one.label, one)
    order = list(dict.fromkeys(one.label for one in plain))
    pairs = []
    for by_label in same.values():
        first, *others = sorted(by_label.values(), key=lambda one: order.index(one.label))
        pairs += [(first, other) for other in others]
    found: dict[tuple[str, str, str], list[float]] = {}
    for first, other in [*pairs, *(zip(plain, acted, strict=True) if acted else ())]:
        gaps = [b - a for a, b in zip(first.turns, other.turns, strict=False) if a is not None and b is not None]
        if gaps:
            found.setdefault((first.domain, first.label, other.label), []).append(sum(gaps) / len(gaps))
    return [{"domain": domain, "first": one, "second": other, **_mean(gaps, seed, "pairs", domain, one, other)}
            for (domain, one, other), gaps in found.items()]
