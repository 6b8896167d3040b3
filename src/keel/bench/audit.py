"""What the votes of reward models say about a data set, as plain numbers for a page: no text is drawn here."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import floor, log10, nan
from typing import Any

import torch
from torch import Tensor

from keel.bench.suspects import Oddities, is_divided
from keel.data.duplicates import ANNOTATORS, Ratings, ratings
from keel.data.records import PreferencePair
from keel.functional.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha
from keel.functional.statistics import area_under_curve, correlation
from keel.functional.strength import lowest, quantile_of

__all__ = ["audit"]

SUBSETS = ("domain", "subset", "source", "category", *ANNOTATORS)
"""Names of meta by whose values the pairs are told apart."""
MOST_VALUES = 60  # of such a name: what has more (ids, dates) is no subset
N_BINS, N_FINE, N_LENGTHS, N_EXAMPLES = 40, 20, 4, 3
TAIL = 0.005  # share of the pairs at either end that the histogram puts into its last bins
N_GROUPS = 20  # of duplicates or contradictions that are named
LONGEST = 2000  # characters of a text that an example keeps
SHARES = (0.05, 0.1, 0.2, 0.3)  # of the weakest pairs, as a search for wrong labels


@dataclass(frozen=True)
class _Data:
    """One entry a pair; `gaps` one row a vote.

    Attributes:
        gaps: chosen minus rejected score of every vote. [K N]
        mean, std: of the gaps over the votes.
        agreement: share of the pairs of voters that side with the same response; none for a single vote.
        lengths: tokens of both responses. [N 2]
        divided: where about as many votes are for the label as against it.
        judge: 1 where a judge finds the label right, 0 where wrong, -1 where none was asked.
        wrong: where a simulation knows the label to be wrong; none where it does not say.
    """

    pairs: Sequence[PreferencePair]
    gaps: Tensor
    mean: Tensor
    std: Tensor
    agreement: Tensor | None
    divided: Tensor
    lengths: Tensor
    judge: Tensor
    wrong: Tensor | None


def audit(
    pairs: Sequence[PreferencePair], lengths: Sequence[tuple[int, int]], odd: Oddities, *, n_quantiles: int,
) -> dict[str, Any]:
    """Every number of the page. Only here, after the votes are cast, is `truth` looked at.

    Args:
        pairs: with the votes of all members, equally many for each pair.
        lengths: tokens of chosen and rejected response.
        odd: what `oddities` found in the pairs.
        n_quantiles: groups of the tables.
    """
    data, subsets = _data(pairs, lengths), _subsets(pairs)
    quantile = quantile_of(data.mean, n=n_quantiles)
    groups = [(q, quantile == q) for q in sorted(set(quantile.tolist()))]
    return {
        "n": len(pairs), "n_votes": len(data.gaps), "n_quantiles": n_quantiles,
        "all": _described(data, torch.ones(len(pairs), dtype=torch.bool)),
        "histogram": _histogram(data),
        "quantiles": [{"quantile": q, **_described(data, mask), "shares": _shares(subsets, mask)}
                      for q, mask in groups],
        "spread": _spread(data),
        "voters": _voters(data),
        "subsets": {name: [{"value": value, **_described(data, mask)} for value, mask in masks.items()]
                    for name, masks in subsets.items()},
        "lengths": _by_length(data),
        "truth": _found_wrong(data),
        "annotators": _annotators(data),
        "duplicates": _duplicates(data, odd),
        "examples": [{"quantile": q, "pairs": [_example(data, i) for i in _typical(data.mean, mask)]}
                     for q, mask in groups],
    }


def _data(pairs: Sequence[PreferencePair], lengths: Sequence[tuple[int, int]]) -> _Data:
    scores = [(pair.strength.chosen_scores, pair.strength.rejected_scores) for pair in pairs if pair.strength]
    assert len(scores) == len(pairs), "every pair was voted on"
    chosen, rejected = (torch.tensor([row[side] for row in scores], dtype=torch.float64).T for side in (0, 1))
    found = [pair.strength for pair in pairs if pair.strength]
    gaps = chosen - rejected
    n, ours = len(gaps), (gaps > 0).double().sum(0)
    agree = None if n < 2 else (ours * (ours - 1) + (n - ours) * (n - ours - 1)) / (n * (n - 1))
    told = [pair.prompt.truth.get("wrong_label") for pair in pairs]
    wrong = torch.tensor([bool(x) for x in told]) if all(isinstance(x, bool) for x in told) else None
    judge = torch.tensor([pair.prompt.meta.get("judge_label", -1) for pair in pairs])
    return _Data(pairs, gaps, _of([votes.mean for votes in found]), _of([votes.std for votes in found]), agree,
                 torch.tensor([is_divided(votes) for votes in found]), torch.tensor(lengths), judge, wrong)


def _of(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _described(data: _Data, mask: Tensor) -> dict[str, Any]:
    """One line of a table about the pairs under the mask, at least one."""
    judge = data.judge[mask]
    asked = judge >= 0
    return {
        "n": int(mask.sum()), "mean": _mean(data.mean[mask]), "std": _mean(data.std[mask]),
        "low": float(data.mean[mask].min()), "high": float(data.mean[mask].max()),
        "against": _mean(data.mean[mask] < 0), "votes_for": _mean(data.gaps[:, mask] > 0),
        "agreement": None if data.agreement is None else _mean(data.agreement[mask]),
        "divided": _mean(data.divided[mask]),
        "right": None if data.wrong is None else _mean(~data.wrong[mask]),
        "judge_agrees": _mean(judge[asked] == 1) if bool(asked.any()) else None, "n_judged": int(asked.sum()),
        "chosen_tokens": _mean(data.lengths[mask, 0]), "rejected_tokens": _mean(data.lengths[mask, 1]),
    }


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _shares(subsets: dict[str, dict[str, Tensor]], mask: Tensor) -> dict[str, dict[str, float]]:
    """How the pairs under the mask are made up, by the first name of meta that tells subsets apart."""
    return {name: {value: _mean(own[mask]) for value, own in masks.items()}
            for name, masks in list(subsets.items())[:1]}


def _subsets(pairs: Sequence[PreferencePair]) -> dict[str, dict[str, Tensor]]:
    """By name of meta and by its value, where the pairs of that value are."""
    found = {}
    for name in SUBSETS:
        values = [pair.prompt.meta.get(name) for pair in pairs]
        known = {value: i for i, value in enumerate(sorted({str(value) for value in values if value is not None}))}
        if 1 < len(known) <= MOST_VALUES:
            codes = torch.tensor([-1 if value is None else known[str(value)] for value in values])
            found[name] = {value: codes == code for value, code in known.items()}
    return found


def _histogram(data: _Data) -> dict[str, Any]:
    """Counts over bins of a round width, one edge of which is 0; what lies beyond the ends is in the last bins."""
    low, high = torch.quantile(data.mean, _of([TAIL, 1 - TAIL])).tolist()
    width = _round((max(high, 0.0) - min(low, 0.0)) / N_BINS)
    first, last = floor(min(low, 0.0) / width), floor(max(high, 0.0) / width) + 1
    places = (data.mean / width).floor().long().clamp(first, last - 1) - first
    n = last - first
    counts = torch.bincount(places, minlength=n).tolist()
    wrong = None if data.wrong is None else torch.bincount(places[data.wrong], minlength=n).tolist()
    return {"edges": [(first + i) * width for i in range(n + 1)], "counts": counts, "wrong": wrong,
            "n_below": int((data.mean < first * width).sum()), "n_above": int((data.mean >= last * width).sum())}


def _round(width: float) -> float:
    """The next of 1, 2, 5, 10 ... times a power of ten."""
    if width <= 0:
        return 1.0
    power = 10.0 ** floor(log10(width))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)


def _spread(data: _Data) -> list[dict[str, float]]:
    """Mean strength and mean spread of twenty groups (arXiv:2401.06080, Fig. 3)."""
    group = quantile_of(data.mean, n=N_FINE)
    masks = [group == g for g in range(N_FINE)]
    return [{"mean": _mean(data.mean[mask]), "std": _mean(data.std[mask]), "n": int(mask.sum())}
            for mask in masks if bool(mask.any())]


def _voters(data: _Data) -> dict[str, Any]:
    """How far the votes agree with each other; nothing for a single vote."""
    if data.agreement is None:
        return {}
    n = len(data.gaps)
    ours = (data.gaps > 0).sum(0)
    alike = [float(correlation(one, other)) for one, other in combinations(data.gaps, 2)]
    return {
        "pairwise": _mean(data.agreement), "unanimous": _mean((ours == 0) | (ours == n)),
        "split": [_mean(ours == k) for k in range(n + 1)], "correlation": sum(alike) / len(alike),
        "fleiss": fleiss_kappa(torch.stack([ours, n - ours], dim=1)),
    }


def _by_length(data: _Data) -> dict[str, Any]:
    """By which response is longer, and by the length of both together in quarters."""
    longer = data.lengths[:, 0] - data.lengths[:, 1]
    sides = {"chosen is longer": longer > 0, "equally long": longer == 0, "chosen is shorter": longer < 0}
    quarter = quantile_of(data.lengths.sum(1).double(), n=N_LENGTHS)
    quarters = [quarter == q for q in range(N_LENGTHS)]
    unequal = longer != 0
    likes = {"labels": longer > 0, "voters": (data.mean > 0) == (longer > 0)}
    return {
        "sides": [{"value": name, **_described(data, mask)} for name, mask in sides.items() if bool(mask.any())],
        "quarters": [{"value": f"{int(data.lengths[mask].sum(1).min())} to {int(data.lengths[mask].sum(1).max())}",
                      **_described(data, mask)} for mask in quarters if bool(mask.any())],
        "prefers_longer": {who: _mean(mask[unequal]) for who, mask in likes.items()} if bool(unequal.any()) else {},
    }


def _found_wrong(data: _Data) -> dict[str, Any] | None:
    """How well weak strength finds the labels that a simulation knows to be wrong."""
    if data.wrong is None or not bool(data.wrong.any()) or bool(data.wrong.all()):
        return None
    searches = {f"weakest {share:.0%}": lowest(data.mean, share=share) for share in SHARES}
    searches["mean strength below 0"] = data.mean < 0
    return {"n_wrong": int(data.wrong.sum()), "share_wrong": _mean(data.wrong),
            "area": float(area_under_curve(-data.mean, data.wrong)),
            "searches": [{"value": name, "n": int(mask.sum()),
                          "precision": _mean(data.wrong[mask]) if bool(mask.any()) else None,
                          "recall": _mean(mask[data.wrong])} for name, mask in searches.items()]}


def _duplicates(data: _Data, odd: Oddities) -> dict[str, Any]:
    """Groups of pairs that repeat or contradict each other, the largest first."""

    def named(groups: list[list[int]]) -> list[list[str]]:
        return [[data.pairs[i].id for i in group] for group in sorted(groups, key=lambda group: -len(group))[:N_GROUPS]]

    return {"n_repeats": len(odd.repeats), "n_alike": len(odd.alike), "n_contradictions": len(odd.contradictions),
            "n_in_repeats": sum(map(len, odd.repeats)), "n_in_alike": sum(map(len, odd.alike)),
            "n_in_contradictions": len(sorted({i for group in odd.contradictions for i in group})),
            "n_opposed": len(odd.opposed), "repeats": named(odd.repeats), "alike": named(odd.alike),
            "contradictions": named(odd.contradictions)}


def _typical(mean: Tensor, mask: Tensor) -> list[int]:
    """A few pairs of a group, evenly spread over its strengths."""
    order = mean.argsort(stable=True)
    inside = order[mask[order]].tolist()
    picked = [inside[(2 * k + 1) * len(inside) // (2 * N_EXAMPLES)] for k in range(N_EXAMPLES)]
    return list(dict.fromkeys(picked))


def _example(data: _Data, i: int) -> dict[str, Any]:
    pair = data.pairs[i]
    turns = [{"role": turn.role, "content": _cut(turn.content)} for turn in pair.prompt.messages]
    if pair.prompt.text is not None:
        turns = [{"role": "text", "content": _cut(pair.prompt.text)}]
    return {"id": pair.id, "prompt": turns, "chosen": _cut(pair.chosen), "rejected": _cut(pair.rejected),
            "mean": float(data.mean[i]), "std": float(data.std[i]), "votes_for": int((data.gaps[:, i] > 0).sum()),
            "wrong": None if data.wrong is None else bool(data.wrong[i])}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [{len(text) - LONGEST} more characters]"


def _annotators(data: _Data) -> dict[str, Any]:
    """How far people agree: those who labelled the same comparisons, and the votes of a panel."""
    panel = [(pair.prompt.meta.get("votes_for"), pair.prompt.meta.get("voters")) for pair in data.pairs]
    counts = [(a, b) for a, b in panel if isinstance(a, int) and isinstance(b, int) and 0 <= a <= b and b > 0]
    return {"people": _people(ratings(data.pairs)), "panel": _panel(counts) if counts else None}


def _people(found: Ratings) -> dict[str, Any] | None:
    """Agreement beyond chance on comparisons that several annotators labelled; none where there are none."""
    repeated = [votes for votes in found.votes if sum(vote is not None for vote in votes) > 1]
    if not repeated:
        return None
    table = torch.tensor([[nan if vote is None else float(vote) for vote in votes] for votes in repeated])
    voted = ~table.isnan()
    of_each = voted.sum(1)
    ones = torch.where(voted, table, 0.0).sum(1).long()
    equal = bool((of_each == of_each[0]).all())
    return {
        "n_annotators": len(found.annotators), "n_comparisons": len(repeated),
        "krippendorff": krippendorff_alpha(table),
        "fleiss": fleiss_kappa(torch.stack([ones, of_each - ones], dim=1)) if equal else None,
        "cohen": _two_by_two(found.annotators, table),
    }


def _two_by_two(names: tuple[str, ...], table: Tensor) -> list[dict[str, Any]]:
    """Cohen's kappa of the annotators who share the most comparisons."""
    found: list[dict[str, Any]] = []
    for one, other in combinations(range(len(names)), 2):
        both = ~(table[:, one].isnan() | table[:, other].isnan())
        if bool(both.any()):
            first, second = table[both, one].long(), table[both, other].long()
            found.append({"one": names[one], "other": names[other], "n": int(both.sum()),
                          "agree": _mean(first == second), "kappa": cohen_kappa(first, second)})
    return sorted(found, key=lambda row: -row["n"])[:N_GROUPS]


def _panel(counts: list[tuple[int, int]]) -> dict[str, Any]:
    """Votes of several annotators on each pair, as (for the label, of)."""
    share = _of([a / b for a, b in counts])
    size = counts[0][1]
    equal = size > 1 and all(b == size for _, b in counts)
    return {"n": len(counts), "votes_for": _mean(share), "unanimous": _mean(share == 1),
            "outvoted": _mean(share <= 0.5),
            "fleiss": fleiss_kappa(torch.tensor([[a, b - a] for a, b in counts])) if equal else None}
