"""Which charts the page has: runs of one recipe share them, monitors are grouped, alarms ride on all of them."""

import math
from typing import Any

from keel.report.folder import Row, RunFolder
from keel.report.glossary import EACH_GROUP, WARM_UP, describe, position, recipe_title
from keel.report.groups_course import drawn_apart
from keel.report.series import Collected, axis_range, histograms, line
from keel.report.words import clean, finite

__all__ = ["addresses", "sections"]

BESIDE = {"longer_wins": "accuracy"}  # a baseline is read against its metric, on the same chart
MAX_PAIRS = 120  # points of a run on the charts of proxy against gold; each is then a mean over a stretch
MAX_MARKS = 60  # alarm lines per run; repeats of one name that follow each other closely share a line


def sections(folders: list[RunFolder], collected: list[Collected]) -> list[dict[str, Any]]:
    """One section per recipe, in the order in which recipes first appear."""
    by_recipe: dict[str, list[int]] = {}
    for i, folder in enumerate(folders):
        by_recipe.setdefault(folder.recipe, []).append(i)
    return [_section(f"section-{n}", members, folders, collected) for n, members in enumerate(by_recipe.values())]


def addresses(collected: list[Collected]) -> list[tuple[str, str]]:
    """Every (metric, phase) of these runs in the order of the page; critic warm-up last."""
    found = {address for series in collected for address in series}
    return sorted(found, key=lambda a: (a[1] == "critic", position(a[0]), a[0], a[1] != "train", a[1]))


def _section(
    name_on_page: str, members: list[int], folders: list[RunFolder], collected: list[Collected]
) -> dict[str, Any]:
    inside = [(i, collected[i]) for i in members]
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, phase in addresses([series for _, series in inside]):
        if drawn_apart(name, phase, [folders[i] for i in members]):
            continue
        warm_up = phase == "critic"
        group = WARM_UP if warm_up else describe(name).group
        shown = groups.setdefault(group, [])
        target = BESIDE.get(name, name)
        if (name in BESIDE and any(target in _names(s) for _, s in inside)) or any(c["name"] == name for c in shown):
            continue
        shown.append(_chart(name, inside, warm_up))
    return {
        "id": name_on_page,
        "title": clean(recipe_title(folders[members[0]].recipe)),
        "members": members,
        "groups": [{"title": clean(title), "charts": shown, "open": title != EACH_GROUP}
                   for title, shown in groups.items() if shown],
        "versus": _versus(inside),
        "heat": [
            {"run": i, "name": clean(name), "columns": columns}
            for i in members
            for name, columns in histograms(folders[i]).items()
        ],
        "alarms": [mark for i in members for mark in _marks(i, folders[i].alarms)],
    }


def _names(series: Collected) -> set[str]:
    """The metric names of a run, whatever their phase."""
    return {name for name, _ in series}


def _chart(name: str, inside: list[tuple[int, Collected]], warm_up: bool) -> dict[str, Any]:
    wanted = {name, *(beside for beside, target in BESIDE.items() if target == name)}
    found = [
        (i, address, series[address])
        for i, series in inside
        for address in sorted(series, key=lambda a: (a[0] != name, a[1] != "train", a[1]))
        if address[0] in wanted and (address[1] == "critic") == warm_up
    ]
    metric = describe(name)
    lines = [
        {"run": i, "phase": clean(phase), "rule": key.replace("_", " ") if key != name else "", **line(one)}
        for i, (key, phase), one in found
    ]
    return {
        "name": clean(name),
        "meaning": metric.meaning,
        "unit": metric.unit,
        "lines": lines,
        **axis_range([one for _, _, one in found]),
    }


def _versus(inside: list[tuple[int, Collected]]) -> list[dict[str, Any]]:
    """Proxy and gold of each run where both are known at the same steps, with the drift they were bought at."""
    pairs = []
    for i, series in inside:
        phases = [p for p in ("eval", "train") if {("score/mean", p), ("gold/mean", p)} <= series.keys()]
        if not phases:
            continue
        # Held-out prompts where they were scored often enough to show a path, else the training ones.
        phase = next((p for p in phases if len(series["gold/mean", p].steps) >= 6), phases[-1])
        gold = dict(zip(*_points(series, "gold/mean", phase), strict=True))
        proxy = dict(zip(*_points(series, "score/mean", phase), strict=True))
        drift = dict(zip(*_points(series, "kl/reference_k1", "train"), strict=True))
        known = [step for step in gold.keys() & proxy.keys() if math.isfinite(gold[step] + proxy[step])]
        stretches = _stretches(sorted(known))
        if stretches:
            columns = {
                name: [_mean(values, s) for s in stretches]
                for name, values in (("proxy", proxy), ("gold", gold), ("kl", drift))
            }
            middles = [stretch[len(stretch) // 2] for stretch in stretches]
            pairs.append({"run": i, "steps": middles, "each": max(map(len, stretches)), **columns})
    return pairs


def _points(series: Collected, name: str, phase: str) -> tuple[list[int], list[float]]:
    one = series.get((name, phase))
    return (one.steps, one.values) if one else ([], [])


def _stretches(steps: list[int]) -> list[list[int]]:
    n = min(len(steps), MAX_PAIRS)
    return [steps[i * len(steps) // n : (i + 1) * len(steps) // n] for i in range(n)]


def _mean(by_step: dict[int, float], steps: list[int]) -> float | None:
    known = [value for step in steps if (value := finite(by_step.get(step))) is not None]
    return sum(known) / len(known) if known else None


def _marks(run: int, alarms: list[Row]) -> list[dict[str, Any]]:
    """Alarms as vertical lines: an alarm that keeps ringing is one mark, from its first step to its last."""
    if not alarms:
        return []
    span = max(row["step"] for row in alarms) - min(row["step"] for row in alarms)
    close = max(1, span // MAX_MARKS)
    marks: list[dict[str, Any]] = []
    open_marks: dict[str, dict[str, Any]] = {}
    for row in sorted(alarms, key=lambda row: row["step"]):
        name, step = str(row.get("name", "alarm")), row["step"]
        mark = open_marks.get(name)
        if mark and step - mark["last"] <= close:
            mark["last"], mark["n"] = step, mark["n"] + 1
            continue
        text = {key: clean(str(row.get(key) or "")) for key in ("meaning", "remedy")}
        numbers = {key: finite(row.get(key)) for key in ("value", "limit")}
        open_marks[name] = {"run": run, "step": step, "last": step, "n": 1, "name": clean(name), **text, **numbers}
        marks.append(open_marks[name])
    return marks[:MAX_MARKS]
