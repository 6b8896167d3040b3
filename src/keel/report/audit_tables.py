"""The tables of a data audit: strength by quantile, subset and length, and what the texts alone give away."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keel.report.audit_charts import tenths
from keel.report.folder import Row, RunFolder, part, rows
from keel.report.words import DASH, finite, joined, number, share, times

__all__ = ["Table", "tables"]

COLUMNS = (
    ("n", "pairs"), ("mean", "strength"), ("std", "spread"), ("against", "doubted"), ("divided", "divided"),
    ("agreement", "two voters agree"), ("right", "really right"), ("judge_agrees", "judge agrees"),
    ("chosen_tokens", "tokens chosen"), ("rejected_tokens", "tokens rejected"),
)
"""Key in audit.json and head of the column; a column that no row knows is left out."""
SHARES = ("against", "divided", "agreement", "right", "judge_agrees")
N_GROUPS, N_NAMES = 3, 4


@dataclass(frozen=True)
class Table:
    """Text cells; the first one of a row names it."""

    title: str
    words: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(run: RunFolder) -> list[Table]:
    """Whatever can be told of audit.json."""
    found = [_quantiles(run), _make_up(run), _search(run), *_subsets(run), *_lengths(run), _people(run), _panel(run),
             _duplicates(run), _voters(run)]
    return [table for table in found if table is not None and table.rows]


def _quantiles(run: RunFolder) -> Table:
    groups = rows(run.audit, "quantiles")
    words = (f"The pairs in {tenths(len(groups))}, the weakest first. Doubted: mean strength below 0. Divided: 40% to "
             "60% of the voters are for the label.")
    names = [number((finite(row.get("quantile")) or 0) + 1) for row in groups]
    return _described("By strength", words, "part", names, groups)


def _make_up(run: RunFolder) -> Table | None:
    """What the pairs of each part are about."""
    groups = rows(run.audit, "quantiles")
    name = next(iter(part(groups[0], "shares")), "") if groups else ""
    values = list(part(part(groups[0], "shares"), name)) if name else []
    lines = [(number((finite(row.get("quantile")) or 0) + 1),
              *(_share(part(part(row, "shares"), name).get(value)) for value in values)) for row in groups]
    words = f"Share of each {name.replace('_', ' ')} among the pairs of a part, the weakest first."
    return Table("What is weak and what is strong", words, ("part", *values), tuple(lines)) if values else None


def _search(run: RunFolder) -> Table | None:
    told = part(run.audit, "truth")
    if not told:
        return None
    words = (f"The simulation knows {_times(told, 'n_wrong', 'wrong label')} ({_share(told.get('share_wrong'))}). A "
             f"wrong label is weaker than another one with probability {number(told.get('area'), 3)} (area under the "
             "ROC curve; 0.5 is guessing). Precision: how many of the pairs found are wrong. Recall: how many of the "
             "wrong ones are found.")
    lines = [(str(row.get("value")), number(row.get("n")), _share(row.get("precision")), _share(row.get("recall")))
             for row in rows(told, "searches")]
    return Table("Searching for wrong labels", words, ("pairs", "n", "precision", "recall"), tuple(lines))


def _subsets(run: RunFolder) -> list[Table]:
    found = []
    for name in part(run.audit, "subsets"):
        lines = sorted(rows(part(run.audit, "subsets"), name), key=lambda row: -(finite(row.get("against")) or 0.0))
        shown = name.replace("_", " ")
        names = [str(row.get("value")) for row in lines]
        found.append(_described(f"By {shown}", "The most doubted first.", shown, names, lines))
    return found


def _lengths(run: RunFolder) -> list[Table]:
    told = part(run.audit, "lengths")
    likes = part(told, "prefers_longer")
    words = (f"Where the lengths differ, the labels prefer the longer response in {_share(likes.get('labels'))} of the "
             f"pairs, the voters in {_share(likes.get('voters'))}." if likes else "")
    sides, quarters = rows(told, "sides"), rows(told, "quarters")
    return [_described("By which response is longer", words, "pairs where", [str(row.get("value")) for row in sides],
                       sides),
            _described("By length", "Tokens of both responses together, in quarters of the pairs.", "tokens",
                       [str(row.get("value")) for row in quarters], quarters)]


def _people(run: RunFolder) -> Table | None:
    """Annotators who labelled the same comparisons."""
    told = part(part(run.audit, "annotators"), "people")
    if not told:
        return None
    fleiss = finite(told.get("fleiss"))
    more = "" if fleiss is None else f"; Fleiss' kappa {number(fleiss, 3)}"
    words = (f"{_times(told, 'n_comparisons', 'comparison was', 'comparisons were')} labelled by more than one of "
             f"{number(told.get('n_annotators'))} annotators. Beyond chance they agree at "
             f"{number(told.get('krippendorff'), 3)} (Krippendorff's alpha{more}; 0 is chance, 1 is always). Two at a "
             "time, by Cohen's kappa:")
    lines = [(f"{row.get('one')} and {row.get('other')}", number(row.get("n")), _share(row.get("agree")),
              number(row.get("kappa"), 3)) for row in rows(told, "cohen")]
    return Table("Annotators", words, ("annotators", "comparisons", "agree", "kappa"), tuple(lines))


def _panel(run: RunFolder) -> Table | None:
    """Votes of annotators that stand beside each pair."""
    told = part(part(run.audit, "annotators"), "panel")
    if not told:
        return None
    fleiss = finite(told.get("fleiss"))
    more = "" if fleiss is None else f" Beyond chance they agree at kappa {number(fleiss, 3)} (Fleiss)."
    words = f"The file holds the votes of several annotators on {_times(told, 'n', 'pair')}.{more}"
    lines = (("for the label, on average", _share(told.get("votes_for"))),
             ("all of them for the label", _share(told.get("unanimous"))),
             ("half of them or more against it", _share(told.get("outvoted"))))
    return Table("Panel of annotators", words, ("annotators", "share"), lines)


def _duplicates(run: RunFolder) -> Table | None:
    told = part(run.audit, "duplicates")
    if not told:
        return None
    kinds = (("repeats", "the same texts and label"), ("alike", "nearly the same texts"),
             ("contradictions", "labels that cannot all be right"))
    lines = [(name, number(told.get(f"n_{key}")), number(told.get(f"n_in_{key}")), _named(told.get(key)))
             for key, name in kinds]
    words = "What is repeated counts more than the rest in training."
    if finite(told.get("n_opposed")):
        words += (f" {_times(told, 'n_opposed', 'pair has', 'pairs have')} nearly the same texts as another one and "
                  "the opposite label.")
    return Table("Duplicates and contradictions", words, ("what", "groups", "pairs", "largest groups"), tuple(lines))


def _voters(run: RunFolder) -> Table:
    lines = [(number(row.get("voter")), str(row.get("path") or DASH), number(row.get("n_learned")),
              number(row.get("n_judged")), _share(row.get("accuracy"))) for row in rows(run.result, "members")]
    return Table("Voters", "Accuracy: how often a voter alone agrees with the labels of the pairs that it judged.",
                 ("voter", "model", "pairs learned", "pairs judged", "accuracy"), tuple(lines))


def _described(title: str, words: str, first: str, names: Sequence[str], groups: Sequence[Row]) -> Table:
    """The lines that audit.json describes alike, whatever their groups are."""
    known = [(key, head) for key, head in COLUMNS if any(finite(row.get(key)) is not None for row in groups)]
    lines = [(name, *(_cell(key, row.get(key)) for key, _ in known)) for name, row in zip(names, groups, strict=True)]
    return Table(title, words, (first, *(head for _, head in known)), tuple(lines))


def _cell(key: str, value: Any) -> str:
    if key in SHARES:
        return _share(value)
    return number(value, 1) if key.endswith("_tokens") else number(value) if key == "n" else number(value, 3)


def _share(value: Any) -> str:
    x = finite(value)
    return DASH if x is None else share(x)


def _times(row: Row, key: str, one: str, many: str | None = None) -> str:
    return times(int(finite(row.get(key)) or 0), one, many)


def _named(groups: Any) -> str:
    """The ids of the first groups."""
    shown = []
    for group in groups[:N_GROUPS] if isinstance(groups, list) else []:
        ids = [str(name) for name in group] if isinstance(group, list) else []
        shown.append(joined(ids[:N_NAMES] + ([f"{len(ids) - N_NAMES} more"] if len(ids) > N_NAMES else [])))
    return "; ".join(shown) or DASH
