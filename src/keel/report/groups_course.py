"""Groups over the phases of a run: who they are, the lowest first, and charts with one line per group."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keel.report.folder import RunFolder, part, rows
from keel.report.glossary import EACH_GROUP, describe, is_of_groups, position
from keel.report.lines import natural
from keel.report.series import Collected, Series, axis_range, line
from keel.report.words import clean, times

__all__ = ["RECIPE", "Cast", "Change", "cast", "change", "course", "drawn_apart", "recent"]

RECIPE = "group_ppo"
TITLES = {"return": "Return", "score": "Raw score", "mass": "Mass", "kl_coef": "Price of drift", "kl": "Drift",
          "length": "Length", "disagreement": "Disagreement", "weight": "Weight"}
"""Of the charts with a line per group, in their order; by the end of the metric's name."""
ANSWERS = {"score": "Score", "gold": "Gold score"}
"""Of the charts with a line per label of held-out prompts."""
N_COLORS = 7
MOST = 12
"""Lines of a chart; of more groups, as many of the lowest and of the highest."""
CLEAR = 2.0
"""Standard errors beyond which a change is called one."""


@dataclass(frozen=True)
class Cast:
    """The groups of a run. `names`: as they are logged, the lowest first."""

    names: tuple[str, ...]
    inferred: bool

    def title(self, name: str) -> str:
        """As legends and tables call a group: its label, or its place in the order."""
        ends = {self.names[0]: f"{name} (lowest)", self.names[-1]: f"{name} (highest)"} if self.inferred else {}
        return ends.get(name, name)

    def called(self, name: str) -> str:
        """As sentences call it."""
        ends = {self.names[0]: "the lowest group", self.names[-1]: "the highest group"}
        return ends.get(name, f"group {name}") if self.inferred else f"“{name}”"

    @property
    def drawn(self) -> tuple[str, ...]:
        """Those that charts and portraits show."""
        return self.names if len(self.names) <= MOST else self.names[: MOST // 2] + self.names[-MOST // 2 :]


@dataclass(frozen=True)
class Change:
    """Means over the first and the last quarter of the phases, and the standard error of their difference."""

    first: float
    last: float
    error: float

    @property
    def direction(self) -> int:
        """1: it rose, -1: it fell, 0: neither beyond doubt."""
        gained = self.last - self.first
        return 0 if abs(gained) <= CLEAR * self.error else 1 if gained > 0 else -1


def cast(run: RunFolder, series: Collected) -> Cast | None:
    """Who the groups are, by groups.json or by what was logged; none where a run has no groups."""
    if run.recipe != RECIPE:
        return None
    logged = {name for name, _ in _logged(series)}
    placed = [str(row["name"]) for row in rows(run.groups, "groups") if "name" in row]
    source = run.groups.get("source") or part(run.config, "groups").get("source")
    inferred = source == "inferred" if source else all(name.isdecimal() for name in logged | set(placed))
    rest = sorted(logged - set(placed), key=natural)
    if not inferred:
        rest.sort(key=lambda name: recent(series.get((f"group/{name}/return", "train")), math.inf))
    names = tuple(dict.fromkeys([*placed, *rest]))
    return Cast(names, inferred) if names else None


def recent(one: Series | None, otherwise: float = math.nan) -> float:
    """Mean over the last quarter of the phases; of fewer than four, the last value."""
    values = _finite(one)
    last = values[-max(1, len(values) // 4) :]
    return sum(last) / len(last) if last else otherwise


def change(one: Series | None) -> Change | None:
    """From the first quarter of the phases to the last; none where a quarter is less than two phases."""
    values = _finite(one)
    n = len(values) // 4
    if n < 2:
        return None
    means, errors = [], []
    for quarter in (values[:n], values[-n:]):
        means.append(sum(quarter) / n)
        errors.append(sum((x - means[-1]) ** 2 for x in quarter) / (n - 1) / n)
    return Change(means[0], means[1], math.sqrt(sum(errors)))


def course(who: Cast, series: Collected, name_on_page: str) -> dict[str, Any]:
    """The charts of a run's groups as the page draws them; in their legend stand groups, not runs."""
    shown = who.drawn
    found = {end for _, end in _logged(series)}
    order = [end for end in TITLES if end in found] + sorted(found - set(TITLES))
    each = [_chart(TITLES.get(end, end), f"group/{shown[0]}/{end}",
                   [(i, series[address]) for i, name in enumerate(shown)
                    if (address := (f"group/{name}/{end}", "train")) in series]) for end in order]
    across = [_chart(name, name, [(len(shown), series[name, phase])]) for name, phase in sorted(
        series, key=lambda address: position(address[0])) if name.startswith("groups/") and phase == "train"]
    answers, others = _held_out(who, series)
    # Of inferred groups a label is none, and may be named like one: it goes in quotation marks.
    runs = [_entry(i, title) for i, title in enumerate([*(who.title(name) for name in shown), *(
        f"“{label}”" if who.inferred else label for label in others)])]
    runs.insert(len(shown), {"name": "all groups", "color": N_COLORS - 1, "dash": 0})
    groups = [{"title": title, "charts": charts} for title, charts in (
        ("Held-out answers by label", answers), ("Group by group", [chart for chart in each if chart["lines"]]),
        ("All groups together", across)) if charts]
    return {"id": name_on_page, "title": "Groups", "members": [i for i in range(len(runs)) if i != len(shown)],
            "groups": groups, "versus": [], "heat": [], "alarms": [], "runs": runs}


def _entry(i: int, title: str) -> dict[str, Any]:
    return {"name": clean(title), "color": i % N_COLORS, "dash": i // N_COLORS}


def _held_out(who: Cast, series: Collected) -> tuple[list[dict[str, Any]], list[str]]:
    """Charts of the answers to held-out prompts by their known label; the labels that are none of the groups shown."""
    labels = _labels(series)
    groups = () if who.inferred else who.names
    others = [label for label in labels if label not in groups]
    drawn = others if len(others) <= MOST else others[: MOST // 2] + others[-MOST // 2 :]
    cut = "" if drawn == others else f" Of {len(others)} labels, the {MOST // 2} lowest and the {MOST // 2} highest."
    places = {name: i for i, name in enumerate(who.drawn) if name in groups}
    places |= {label: i for i, label in enumerate(drawn, start=len(who.drawn) + 1)}  # after that of all together
    charts = []
    for key, title in ANSWERS.items():
        lines = [(places[label], one) for label in labels if label in places and (
            one := series.get((f"group/{label}/{key}/mean", "eval")))]
        sizes = [round(one.last) for label in labels if label in places and (
            one := series.get((f"group/{label}/{key}/n", "eval"))) and one.last is not None]
        if lines:
            charts.append(_chart(title, f"group/{labels[0]}/{key}/mean", lines, "held out", cut + _over(sizes)))
    return charts, drawn


def _labels(series: Collected) -> list[str]:
    """The labels of held-out prompts, the lowest score first."""
    found = {name.removeprefix("group/").removesuffix("/score/mean"): recent(one, math.inf)
             for (name, phase), one in series.items()
             if phase == "eval" and name.startswith("group/") and name.endswith("/score/mean")}
    return sorted(sorted(found, key=natural), key=lambda label: found[label])


def _over(sizes: Sequence[int]) -> str:
    if not sizes:
        return ""
    least, most = min(sizes), max(sizes)
    return f" Each mean is over {times(most, 'answer') if least == most else f'{least:,} to {most:,} answers'}."


def drawn_apart(name: str, phase: str, runs: Sequence[RunFolder]) -> bool:
    """Whether the curves of these runs of one recipe leave a metric to the section of their groups: all of one run's,
    and of several those of the warm-up, in which nothing is done about groups."""
    return is_of_groups(name) and runs[0].recipe == RECIPE and (len(runs) == 1 or phase == "critic")


def _logged(series: Collected) -> set[tuple[str, str]]:
    """Group and what was logged of it while the policy learned."""
    split = [name.removeprefix("group/").rpartition("/") for name, phase in series
             if describe(name).group == EACH_GROUP and phase == "train"]
    return {(name, end) for name, _, end in split}


def _chart(
    title: str, metric: str, lines: list[tuple[int, Series]], phase: str = "train", more: str = "",
) -> dict[str, Any]:
    told = describe(metric)
    return {"name": clean(title), "meaning": told.meaning + more, "unit": told.unit, "lines": [
        {"run": i, "phase": phase, "rule": "", **line(one)} for i, one in lines], **axis_range(
            [one for _, one in lines])}


def _finite(one: Series | None) -> list[float]:
    return [value for value in one.values if math.isfinite(value)] if one else []
