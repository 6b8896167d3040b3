"""Pairs of a data set that somebody should look at, with the reasons in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keel.data.duplicates import contradictions, near_duplicates, repeats
from keel.data.records import PreferencePair, Strength

__all__ = ["Oddities", "is_divided", "oddities", "suspects"]

DIVIDED = (0.4, 0.6)
"""The voters are divided where their share for the label lies between these."""


@dataclass(frozen=True)
class Oddities:
    """What the texts alone say, as groups of indices.

    Attributes:
        repeats: the same comparison with the same label, to the letter.
        alike: nearly the same texts, whatever the labels.
        contradictions: labels that cannot all be right.
        opposed: index -> an index with nearly the same texts and the opposite label, of pairs in no contradiction.
    """

    repeats: list[list[int]]
    alike: list[list[int]]
    contradictions: list[list[int]]
    opposed: dict[int, int]


def oddities(pairs: Sequence[PreferencePair]) -> Oddities:
    """Repetitions and contradictions among the pairs."""
    alike, against = near_duplicates(pairs), contradictions(pairs)
    outright = frozenset(i for group in against for i in group)
    opposed: dict[int, int] = {}
    for group in alike:
        sides = {i: _same_way(pairs[group[0]], pairs[i]) for i in group if i not in outright}
        for i, side in sides.items():
            other = next((j for j, its in sides.items() if its != side), None)
            if other is not None:
                opposed[i] = other
    return Oddities(repeats(pairs), alike, against, opposed)


def suspects(pairs: Sequence[PreferencePair], odd: Oddities) -> list[PreferencePair]:
    """Pairs that something speaks against, the weakest first; `meta["reasons"]` says what.

    Args:
        pairs: with their votes.
        odd: what `oddities` found in them.
    """
    cannot: dict[int, set[int]] = {}
    for group in odd.contradictions:
        for i in group:
            cannot.setdefault(i, set()).update(j for j in group if j != i)
    found = []
    for i, pair in enumerate(pairs):
        reasons = _doubts(pair) + _people(pair)
        if i in cannot:
            others = _named([pairs[j].id for j in sorted(cannot[i])])
            reasons.append(f"its label cannot be right together with that of {others}")
        if i in odd.opposed:
            reasons.append(f"{pairs[odd.opposed[i]].id} has nearly the same texts and the opposite label")
        if reasons:
            meta = {**pair.prompt.meta, "reasons": reasons}
            found.append((_votes(pair).mean, replace(pair, prompt=replace(pair.prompt, meta=meta))))
    return [pair for _, pair in sorted(found, key=lambda item: item[0])]


def is_divided(votes: Strength) -> bool:
    """Whether about as many voters are for the label as against it."""
    return DIVIDED[0] <= 1 - _n_against(votes) / len(votes.chosen_scores) <= DIVIDED[1]


def _n_against(votes: Strength) -> int:
    return sum(one <= other for one, other in zip(votes.chosen_scores, votes.rejected_scores, strict=True))


def _doubts(pair: PreferencePair) -> list[str]:
    found = _votes(pair)
    counted = f"{_n_against(found)} of {len(found.chosen_scores)} voters are against the label"
    if found.mean >= 0:
        return [f"the voters are divided: {counted} (mean strength {found.mean:.3g})"] if is_divided(found) else []
    return [f"{counted} (mean strength {found.mean:.3g})"]


def _people(pair: PreferencePair) -> list[str]:
    """What people or another judge said about the same pair."""
    meta, found = pair.prompt.meta, []
    agree, asked = meta.get("votes_for"), meta.get("voters")
    if isinstance(agree, int) and isinstance(asked, int) and 0 < asked and 2 * agree <= asked:
        found.append(f"{asked - agree} of {asked} annotators prefer the rejected response")
    if meta.get("judge_label") == 0:
        found.append("the judge prefers the rejected response")
    return found


def _votes(pair: PreferencePair) -> Strength:
    assert pair.strength is not None, f"{pair.id} was not voted on"
    return pair.strength


def _named(ids: list[str]) -> str:
    return ids[0] if len(ids) == 1 else f"{', '.join(ids[:3])}{f' and {len(ids) - 3} more' if len(ids) > 3 else ''}"


def _same_way(one: PreferencePair, other: PreferencePair) -> bool:
    """Whether what is chosen in one resembles what is chosen in the other more than what is rejected there."""
    first, second = ([frozenset(text.casefold().split()) for text in (pair.chosen, pair.rejected)]
                     for pair in (one, other))
    straight = _jaccard(first[0], second[0]) + _jaccard(first[1], second[1])
    return straight >= _jaccard(first[0], second[1]) + _jaccard(first[1], second[0])


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(len(one | other), 1)
