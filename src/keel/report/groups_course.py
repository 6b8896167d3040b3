"""Groups over the phases of a run: who they are, the lowest first, and charts with one line per group."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keel.report.folder import RunFolder, part, rows
from keel.report.glossary import EACH_GROUP, describe, is_of_groups, position
from keel.report.lines import natural
from keel.report.series import Collected, Series, axis_range, line
from keel.report.words import clean

__all__ = ["RECIPE", "Cast", "Change", "cast", "change", "course", "drawn_apart", "recent"]

RECIPE = "group_ppo"
TITLES = {"return": "Return", "score": "Raw score", "mass": "Mass", "kl_coef": "Price of drift", "kl": "Drift",
          "length": "Length", "disagreement": "Disagreement"}
"""Of the charts with a line per group, in their order; by the end of the metric's name."""
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
    runs = [{"name": clean(who.title(name)), "color": i % N_COLORS, "dash": i // N_COLORS} for i, name in
            enumerate(shown)]
    groups = [{"title": title, "charts": charts} for title, charts in (
        ("Group by group", [chart for chart in each if chart["lines"]]), ("All groups together", across)) if charts]
    return {"id": name_on_page, "title": "Groups", "members": list(range(len(shown))), "groups": groups, "versus": [],
            "heat": [], "alarms": [], "runs": [*runs, {"name": "all groups", "color": N_COLORS - 1, "dash": 0}]}


def drawn_apart(name: str, phase: str, runs: Sequence[RunFolder]) -> bool:
    """Whether the curves of these runs of one recipe leave a metric to the section of their groups: all of one run's,
    and of several those of the warm-up, in which nothing is done about groups."""
    return is_of_groups(name) and runs[0].recipe == RECIPE and (len(runs) == 1 or phase == "critic")


def _logged(series: Collected) -> set[tuple[str, str]]:
    """Group and what was logged of it while the policy learned."""
    split = [name.removeprefix("group/").rpartition("/") for name, phase in series
             if describe(name).group == EACH_GROUP and phase == "train"]
    return {(name, end) for name, _, end in split}


def _chart(title: str, metric: str, lines: list[tuple[int, Series]]) -> dict[str, Any]:
    told = describe(metric)
    return {"name": clean(title), "meaning": told.meaning, "unit": told.unit, "lines": [
        {"run": i, "phase": "train", "rule": "", **line(one)} for i, one in lines], **axis_range(
            [one for _, one in lines])}


def _finite(one: Series | None) -> list[float]:
    return [value for value in one.values if math.isfinite(value)] if one else []
