"""Many ways to run models, held side by side: what each does to harm, refusals and capability, and the trade between.

Every way answered the same prompts. All means of a measure stand on the same draws of prompts, so differences are
paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from keel.bench.intervals import difference_p, intervals
from keel.data.records import Prompt
from keel.functional.resampling import holm, wilson_interval

__all__ = ["TESTED", "Asked", "Way", "clamped_rows", "dose_json", "measured", "table", "trade_off", "trade_table"]

TESTED = ("harm", "refusal", "capability")
"""Measures whose differences get a p value."""
PARTS = {"prompt": "prompt", "generated": "generation"}
ALL = "all"
Row = dict[str, Any]
Clamped = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Asked:
    """One prompt, and what is measured on the responses to it.

    Attributes:
        prompt: its record.
        set: name of the set it is from.
        measure: of its response: `harm`, `harm_plain`, `refusal`, `refusal_unsafe` or `capability`.
    """

    prompt: Prompt
    set: str
    measure: str


@dataclass(frozen=True)
class Way:
    """One way to run a model, and everything that came of it.

    Attributes:
        name: for tables; `model` and what acts on it.
        against: name of the way that differences are taken to; its own for the first one.
        curve, where, layers, dose: see `keel.persona.interventions.Intervention`.
        values: what is measured, one for each prompt; NaN: nothing could be read.
        beside: other numbers of each response by name, such as its projection.
        clamped: what caps moved, by set, block and part: `n_tokens`, `clamped`, `correction`.
    """

    name: str
    against: str
    curve: str
    where: str
    layers: str
    dose: Mapping[str, float]
    values: Float[Tensor, " N"]
    beside: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    clamped: Mapping[str, Clamped] = field(default_factory=dict)


def measured(ways: Sequence[Way], asked: Sequence[Asked], *, seed: int) -> dict[str, Row]:
    """Name of the way -> measure -> mean, interval, n, how many could not be read, and the difference.

    A measure of several sets is there for all their prompts, which weigh the same, and for each set as `harm NAME`.
    """
    found: dict[str, Row] = {way.name: {} for way in ways}
    by_name, tests = {way.name: way for way in ways}, []
    for key, places in _places(asked).items():
        at, prompts = torch.tensor(places), [asked[i].prompt for i in places]
        columns = {way.name: way.values[at] for way in ways}
        gaps = {way.name: columns[way.name] - columns[way.against] for way in ways if way.against != way.name}
        both = {(False, name): x for name, x in columns.items()} | {(True, name): x for name, x in gaps.items()}
        told = intervals(both, prompts, seed=seed, names=["doses", key])
        for name, x in columns.items():
            found[name][key] = told[False, name] | _wider(x, key) | {"n_unread": int(x.isnan().sum())}
            if name in gaps:
                found[name][key]["difference"] = told[True, name] | {"to": by_name[name].against}
        tests += [(found[name][key]["difference"], gap, prompts, name) for name, gap in gaps.items() if key in TESTED
                  and not bool(gap.isnan().all())]
    everything = [one.prompt for one in asked]
    for name in dict.fromkeys(name for way in ways for name in way.beside):
        columns = {way.name: way.beside[name] for way in ways if name in way.beside}
        for way_name, row in intervals(columns, everything, seed=seed, names=["doses", name]).items():
            found[way_name][name] = row
    _corrected(tests, seed)
    return found


def _wider(values: Float[Tensor, " N"], measure: str) -> dict[str, float]:
    """Where all responses are the same, so are all resamples: a rate of 0 or 1 then has Wilson's interval."""
    read = values[~values.isnan()]
    same = len(read) > 1 and float(read.min()) == float(read.max()) and float(read[0]) in (0.0, 1.0)
    if measure.startswith("capability") or not same:
        return {}
    low, high = wilson_interval(float(read.sum()), len(read))
    return {"low": low, "high": high}


def _places(asked: Sequence[Asked]) -> dict[str, list[int]]:
    """Measure -> the prompts it is of; with several sets of a measure also that of each set."""
    found: dict[str, list[int]] = {}
    for measure in dict.fromkeys(one.measure for one in asked):
        own = [i for i, one in enumerate(asked) if one.measure == measure]
        sets = list(dict.fromkeys(asked[i].set for i in own))
        found[measure] = own
        for name in sets if len(sets) > 1 else ():
            found[f"{measure} {name}"] = [i for i in own if asked[i].set == name]
    return found


def _corrected(tests: Sequence[tuple[Row, Tensor, Sequence[Prompt], str]], seed: int) -> None:
    """Put p and, corrected over all of these tests, p_holm into each row."""
    p = []
    for _, gap, prompts, name in tests:
        read = ~gap.isnan()
        kept = [prompt for prompt, keep in zip(prompts, read.tolist(), strict=True) if keep]
        p.append(difference_p(gap[read], kept, seed=seed, names=["doses", name]))
    for (row, *_), own, corrected in zip(tests, p, holm(torch.tensor(p, dtype=torch.float64)).tolist(), strict=True):
        row |= {"p": own, "p_holm": corrected}


def trade_off(ways: Sequence[Way], found: Mapping[str, Row]) -> list[Row]:
    """What harm goes down by, and what it costs: a row for each way, changes also as shares of what there was.

    A share of something that is not above 0 would mean nothing, and is left out.
    """
    rows = []
    for way in ways:
        row: Row = {"setting": way.name}
        for key in TESTED:
            own, base = found[way.name].get(key), found[way.against].get(key)
            if own is None or own["mean"] is None:
                continue
            gap = own.get("difference") or {}
            row |= {key: own["mean"], f"{key}_low": own["low"], f"{key}_high": own["high"], f"{key}_n": own["n"],
                    f"{key}_difference": gap.get("mean"), f"{key}_difference_low": gap.get("low"),
                    f"{key}_difference_high": gap.get("high"), f"{key}_p_holm": gap.get("p_holm")}
            if gap.get("mean") is not None and base is not None and (base["mean"] or 0) > 0:
                row[f"{key}_relative"] = gap["mean"] / base["mean"]
        rows.append(row)
    return rows


def clamped_rows(ways: Sequence[Way]) -> list[Row]:
    """A row for each way, set and block, and one for all sets: which share of prompt and of generated tokens a cap
    moved, and by how much on average."""
    rows = []
    for way in ways:
        sets = {**way.clamped, ALL: _together(list(way.clamped.values()))} if way.clamped else {}
        for name, layers in sets.items():
            for layer, parts in layers.items():
                row: Row = {"setting": way.name, "set": name, "layer": int(layer)}
                for key, part in PARTS.items():
                    told = parts[part]
                    row |= {key: told["clamped"] if told["n_tokens"] else None, f"{key}_tokens": told["n_tokens"],
                            f"{key}_correction": told["correction"] if told["clamped"] else None}
                rows.append(row)
    return rows


def _together(several: Sequence[Clamped]) -> Clamped:
    """Tokens of several sets as if they were of one."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for layer in dict.fromkeys(layer for one in several for layer in one):
        found[layer] = {}
        for part in PARTS.values():
            told = [one[layer][part] for one in several if layer in one]
            n = sum(one["n_tokens"] for one in told)
            moved = sum(one["n_tokens"] * one["clamped"] for one in told)
            total = sum(one["n_tokens"] * one["clamped"] * one["correction"] for one in told)
            found[layer][part] = {"n_tokens": n, "clamped": moved / n if n else 0.0,
                                  "correction": total / moved if moved else 0.0}
    return found


def dose_json(ways: Sequence[Way], found: Mapping[str, Row], unit: str) -> Row:
    """What pictures are drawn from: curves over the dose, harm against capability, and what caps moved."""
    curves: dict[tuple[str, str, str], Row] = {}
    for way in ways:
        metrics = {key: {name: row[name] for name in ("mean", "low", "high", "n")} for key, row in
                   found[way.name].items() if row["mean"] is not None}
        curve = curves.setdefault((way.curve, way.layers, way.where), {
            "name": way.curve, "layers": way.layers, "where": way.where, "points": []})
        curve["points"].append({"setting": way.name, **way.dose, "metrics": metrics})
    both = [way.name for way in ways if all((found[way.name].get(key) or {"mean": None})["mean"] is not None
                                            for key in ("harm", "capability"))]
    return {"unit": unit, "curves": list(curves.values()),
            "clamped": [row for row in clamped_rows(ways) if row["set"] == ALL],
            "pareto": [{"setting": name, "harm": found[name]["harm"], "capability": found[name]["capability"]}
                       for name in both]}


def table(found: Mapping[str, Row]) -> list[Row]:
    """One row for each way and measure, for a CSV file."""
    rows = []
    for name, measures in found.items():
        for key, row in measures.items():
            gap = row.get("difference") or {}
            rows.append({"setting": name, "measure": key, **{k: row[k] for k in ("mean", "low", "high", "n")},
                         "n_unread": row.get("n_unread"), "against": gap.get("to"), "difference": gap.get("mean"),
                         "difference_low": gap.get("low"), "difference_high": gap.get("high"), "p": gap.get("p"),
                         "p_holm": gap.get("p_holm")})
    return rows


def trade_table(rows: Sequence[Row]) -> str:
    """For the console: a line a way, each measure with its interval and its change."""
    width = max(len(row["setting"]) for row in rows)
    lines = []
    for row in rows:
        cells = [f"{row['setting']:<{width}}"]
        for key in TESTED:
            if key in row:
                ends = "" if row[f"{key}_low"] is None else f" [{row[f'{key}_low']:.3f}, {row[f'{key}_high']:.3f}]"
                cells.append(f"{key} {row[key]:.3f}{ends}{_change(row, key)}")
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _change(row: Row, key: str) -> str:
    """` (-12.0%, -0.060 [-0.100, 0.020])`: the share first, where there is one; the interval is the difference's."""
    gap, low, high = (row.get(f"{key}_difference{end}") for end in ("", "_low", "_high"))
    if gap is None:
        return ""
    share = row.get(f"{key}_relative")
    ends = "" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]"
    return f" ({'' if share is None else f'{100 * share:+.1f}%, '}{gap:+.3f}{ends})"
