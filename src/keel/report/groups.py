"""The groups of a run on the page: their course over the phases, and a portrait of each on held-out prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keel.report.audit_tables import Table
from keel.report.evaluation_charts import known, number_scale
from keel.report.folder import Row, RunFolder, part, rows
from keel.report.groups_course import N_COLORS, Cast, cast, course, recent
from keel.report.groups_words import group_says
from keel.report.lines import Chart, Strip, dot
from keel.report.series import Collected
from keel.report.words import DASH, brief, finite, interval, number, share

__all__ = ["Grouped", "beside", "grouped"]

LONGEST = 1500
"""Characters of a text on the page."""
OPEN = 3
"""Examples of a group that are open from the start."""


@dataclass(frozen=True)
class Word:
    """A word that marks a group. `said`: how often it is there and elsewhere."""

    text: str
    z: str
    said: str


@dataclass(frozen=True)
class Example:
    """A prompt with its response. `told`: numbers and label in words."""

    prompt: str
    response: str
    told: str


@dataclass(frozen=True)
class Portrait:
    """One group: words that mark its prompts and its responses, and examples."""

    title: str
    color: int
    prompt_words: tuple[Word, ...]
    response_words: tuple[Word, ...]
    examples: tuple[Example, ...]
    more: tuple[Example, ...]


@dataclass(frozen=True)
class Grouped:
    """The groups of one run. Charts, tables and portraits are empty where groups.json is missing.

    `course`: the charts over the phases, whose place on the page is named `id`; `few`: that not all groups are shown.
    """

    name: str
    id: str
    says: tuple[str, ...]
    course: dict[str, Any]
    few: str
    numbers: Table
    means: tuple[Chart, ...]
    labels: Table
    portraits: tuple[Portrait, ...]
    worded: bool


def grouped(runs: list[RunFolder], collected: list[Collected]) -> list[Grouped]:
    """The runs that have groups, whatever can be read of them."""
    found = [(run, series, cast(run, series)) for run, series in zip(runs, collected, strict=True)]
    return [_grouped(run, series, who, f"groups-{i}", run.name if len(runs) > 1 else "")
            for i, (run, series, who) in enumerate(found, start=1) if who is not None]


def beside(runs: list[RunFolder]) -> Table | None:
    """The lowest and the highest group of several runs; the order is each column's own."""
    told = [run for run in runs if rows(run.groups, "groups")]
    if len(told) < 2:
        return None
    lines = []
    for run in told:
        n = number(len(rows(run.groups, "groups")))
        how = (f"{n} inferred, by {run.groups.get('level')}" if run.groups.get("source") == "inferred" else
               f"{n} known, by {run.groups.get('column')}")
        lines.append((run.name, how, _end(run, "score", last=False), _end(run, "gold", last=False),
                      _end(run, "gold", last=True), brief(part(run.groups, "agreement").get("rand"))))
    head = ("run", "groups", "lowest score", "lowest gold", "highest gold", "adjusted Rand")
    words = ("Means of groups on held-out prompts with their 95% intervals. Groups that were found in one run are not "
             "those of another: compare the lowest of known groups, or the run as a whole.")
    return Table("Groups side by side", words, *_without_blanks(head, lines))


def _without_blanks(
    head: tuple[str, ...], lines: Sequence[tuple[str, ...]],
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The columns in which some row has something."""
    kept = [i for i in range(len(head)) if not lines or any(line[i] != DASH for line in lines)]
    return tuple(head[i] for i in kept), tuple(tuple(line[i] for i in kept) for line in lines)


def _end(run: RunFolder, key: str, *, last: bool) -> str:
    found = [(row["mean"], str(group.get("name")), row) for group in rows(run.groups, "groups")
             if (row := known(part(group, key)))]
    if not found:
        return DASH
    _, name, row = sorted(found, key=lambda one: one[:2])[-1 if last else 0]
    return f"{interval(row)} ({name})"


def _grouped(run: RunFolder, series: Collected, who: Cast, at: str, name: str) -> Grouped:
    named = {str(row.get("name")): row for row in rows(run.groups, "groups")}
    shown, half = who.drawn, len(who.drawn) // 2
    few = "" if shown == who.names else (
        f"Of {len(who.names)} groups, charts and portraits show the {half} lowest and the {half} highest.")
    charts = tuple(_means(title, key, named, who) for title, key in (("Score", "score"), ("Gold score", "gold"))
                   if any(known(part(row, key)) for row in named.values()))
    portraits = tuple(_portrait(named[one], who, i) for i, one in enumerate(shown) if one in named)
    return Grouped(name, at, group_says(run, series, who), course(who, series, f"{at}-course"), few,
                   _numbers(named, who, series), charts, _labels(run, named, who), portraits,
                   any(one.prompt_words or one.response_words for one in portraits))


def _numbers(named: dict[str, Row], who: Cast, series: Collected) -> Table:
    head = ("group", "responses", "mass", "score", "gold", "length, tokens", "drift, nats per token",
            "price of drift, per nat")
    lines = []
    for name in (name for name in who.names if name in named):
        row = named[name]
        price = row.get("kl_coef", recent(series.get((f"group/{name}/kl_coef", "train"))))
        lines.append((who.title(name), number(row.get("n")), _share(row.get("mass")),
                      *(interval(known(part(row, key))) for key in ("score", "gold", "length")), brief(row.get("kl")),
                      brief(price)))
    of = "whose likeliest group it is; mass counts every response by its memberships" if who.inferred else "of it"
    words = f"Means with 95% intervals over the held-out responses {of}. Price: in the last quarter of the phases."
    return Table("In numbers", words, *_without_blanks(head, lines))


def _means(title: str, key: str, named: dict[str, Row], who: Cast) -> Chart:
    """One kind of means of all groups on one track."""
    found = {name: known(part(named[name], key)) for name in who.names if name in named}
    ticks, place = number_scale(x for row in found.values() for x in row.values())
    strips = tuple(Strip(who.title(name), "", "", (dot(row, who.names.index(name) % N_COLORS, place),),
                         (interval(row), number(part(named[name], key).get("n"))))
                   for name, row in found.items() if row)
    return Chart(title, "", ticks, ("mean", "responses"), strips)


def _labels(run: RunFolder, named: dict[str, Row], who: Cast) -> Table:
    """Which known labels are in an inferred group, beside their share of all."""
    counts = {name: {str(label): n for label, n in part(named[name], "labels").items() if (finite(n) or 0) > 0}
              for name in who.names if name in named}
    labels = sorted({label for found in counts.values() for label in found})
    if not who.inferred or not labels:
        return Table("", "", (), ())
    sums = {name: sum(found.values()) for name, found in counts.items()}
    total = sum(sums.values())
    lines = []
    for label in labels:
        cells = [f"{number(n)} ({share(n / sums[name])})" if (n := found.get(label, 0)) else "0"
                 for name, found in counts.items()]
        here = sum(found.get(label, 0) for found in counts.values())
        lines.append((label, *cells, f"{number(here)} ({share(here / total)})"))
    words = ("Held-out responses by the known label of their prompt, and in brackets the part of the group that they "
             "are. A group is about a label where that part is far from the one of all.")
    return Table("Known labels", words, ("label", *(who.title(name) for name in counts), "all"), tuple(lines))


def _portrait(row: Row, who: Cast, color: int) -> Portrait:
    examples = [_example(one) for one in rows(row, "examples")]
    prompt, response = ([_word(one) for one in rows(part(row, "words"), side)] for side in ("prompt", "response"))
    return Portrait(who.title(str(row.get("name"))), color % N_COLORS, tuple(prompt), tuple(response),
                    tuple(examples[:OPEN]), tuple(examples[OPEN:]))


def _word(row: Row) -> Word:
    return Word(str(row.get("word")), number(row.get("z"), 1),
                f"{number(row.get('here'))} times in this group, {number(row.get('elsewhere'))} elsewhere")


def _example(row: Row) -> Example:
    told = [f"{key} {brief(row.get(key))}" for key in ("score", "gold") if finite(row.get(key)) is not None]
    membership = finite(row.get("membership"))
    told += [f"membership {share(membership)}"] if membership is not None and share(membership) != "100%" else []
    told += [str(row["label"])] if row.get("label") is not None else []
    return Example(_cut(row.get("prompt")), _cut(row.get("response")), ", ".join(told))


def _share(value: object) -> str:
    x = finite(value)
    return DASH if x is None else share(x)


def _cut(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + f" … [{len(text) - LONGEST:,} more characters]"
