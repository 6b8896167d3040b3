"""What steering and capping do: dose and response, the trade against capability, thresholds and what they clamp."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keel.report.audit_tables import Table as Words
from keel.report.axis_pictures import Band, Curve, Frame, Picture, Spot, Table, picture
from keel.report.evaluation_charts import known, p_value, signed
from keel.report.folder import Row, RunFolder, part, rows
from keel.report.words import DASH, brief, finite, interval, joined, number, percent, share, times

__all__ = ["Calibration", "Doses", "calibration", "doses"]

N_COLORS, MOST_CURVES, MOST_SETTINGS = 7, 7, 200
DOSES = {"strength": "strength; 0 leaves the model as it is", "percentile": "percentile of the bound, on the axis",
         "lower": "lower bound of the projection"}
SHORT = {"lower": "bound"}
ENDS = ("mean", "low", "high")


@dataclass(frozen=True)
class Doses:
    """What is drawn of dose.json; what is not known is none or empty."""

    says: tuple[str, ...]
    pictures: tuple[Picture, ...]
    pareto: Picture | None
    settings: Words
    gaps: Words
    clamped: Words


@dataclass(frozen=True)
class Calibration:
    """What is drawn of calibration.json."""

    says: tuple[str, ...]
    pictures: tuple[Picture, ...]
    presets: Words


@dataclass(frozen=True)
class _Setting:
    """One setting with what was measured of it. `dose`: strength, percentile or bound, by its name; `acts`: on a layer.
    """

    curve: str
    setting: str
    dose: Mapping[str, float]
    metrics: Mapping[str, Row]
    acts: bool

    @property
    def is_base(self) -> bool:
        """Whether it leaves the model as it is."""
        return not self.acts and not self.dose


def doses(run: RunFolder) -> Doses | None:
    """Settings side by side; none where the run has no dose.json."""
    told = part(run.axis, "dose")
    if not told:
        return None
    settings = _settings(told)
    metrics = {name: all(0 <= x <= 1 for one in settings for end in ENDS
                         if (x := one.metrics.get(name, {}).get(end)) is not None)
               for name in dict.fromkeys(name for one in settings for name in one.metrics)}
    drawn = [found for metric, shares in metrics.items() for key in DOSES if (
        found := _response(settings, metric, key, str(told.get("unit") or ""), shares)) is not None]
    head = ("curve", "setting", *map(_worded, metrics))
    lines = tuple((one.curve, one.setting, *(_measure(one.metrics.get(name, {}), shares)
                                             for name, shares in metrics.items())) for one in settings[:MOST_SETTINGS])
    return Doses(tuple(_says(settings, metrics)), tuple(drawn), _pareto(told),
                 Words("All settings", "Means with 95% intervals over prompts.", head, lines), _gaps(run),
                 _clamped(told))


def calibration(run: RunFolder) -> Calibration | None:
    """Thresholds and what they touch; none where the run has no calibration.json."""
    told = part(run.axis, "calibration")
    if not told:
        return None
    meaning = told.get("meaning")
    population = str(told.get("population") or "")
    said = [population[:1].upper() + population[1:], *(map(str, meaning) if isinstance(meaning, list) else ())]
    floors = [row for row in rows(told, "thresholds") if finite(row.get("layer")) is not None]
    found = [_thresholds(floors), *_touched(floors)]
    return Calibration(tuple(text for text in said if text), tuple(one for one in found if one is not None),
                       _presets(told))


def _settings(told: Row) -> list[_Setting]:
    found, curves = [], rows(told, "curves")
    names = [str(row.get("name")) for row in curves]
    for row in curves:
        where = "" if row.get("where") in (None, "all") else f"{row['where']} tokens"
        layers = row.get("layers")
        at = f"layers {layers}" if layers not in (None, "", []) else ""
        several = names.count(str(row.get("name"))) > 1
        name = ", ".join(text for text in (str(row.get("name")), at if several else "", where if several else "")
                         if text)
        for point in rows(row, "points"):
            metrics = {str(key): fit for key, value in part(point, "metrics").items()
                       if isinstance(value, dict) and (fit := _known(value))}
            dose = {key: x for key in DOSES if (x := finite(point.get(key))) is not None}
            found.append(_Setting(name, str(point.get("setting", "")), dose, metrics, bool(at)))
    return found


def _known(row: Row) -> Row:
    """Mean, low and high, the mean alone where there is no interval, and the number of prompts."""
    found = known({key: row.get(key) for key in ("mean", "low", "high")})
    return {**found, "n": row.get("n")} if found else {}


def _measure(row: Row, shares: bool) -> str:
    """A mean with its interval: in per cent where every mean of the measure is a share."""
    return DASH if not row else percent(row) if shares else interval(row)


def _worded(metric: str) -> str:
    return metric.replace("_", " ")


def _says(settings: Sequence[_Setting], metrics: Mapping[str, bool]) -> list[str]:
    base = next((one for one in settings if one.is_base), None)
    base = base or next((one for one in settings if one.dose.get("strength") == 0), None)
    told = [f"{_worded(name)} {_measure(base.metrics[name], shares)}" for name, shares in metrics.items()
            if name in base.metrics] if base else []
    return [f"{times(len(settings), 'setting')}. Left as it is, the model has " + joined(told) + "."] if told else []


def _response(settings: Sequence[_Setting], metric: str, key: str, unit: str, shares: bool) -> Picture | None:
    """One metric over the dose, a line for each way to give it; the model left as it is as a dashed line."""
    mine = [one for one in settings if key in one.dose and metric in one.metrics]
    every = list(dict.fromkeys(one.curve for one in mine))
    names = every[:MOST_CURVES]
    if not mine:
        return None
    curves = [Curve(name, f"run-{i % N_COLORS}", [_spot(one, metric, key, shares) for one in sorted(
        (one for one in mine if one.curve == name), key=lambda one: one.dose[key])]) for i, name in enumerate(names)]
    bases = [one for one in settings if one.is_base and metric in one.metrics]
    levels = list(dict.fromkeys(one.metrics[metric]["mean"] for one in bases))[:MOST_CURVES]
    bands = [Band(level, level, "the model left as it is") for level in levels]
    lines = [(one.curve, one.setting, one.dose[key], *(finite(one.metrics[metric].get(end)) for end in (*ENDS, "n")))
             for one in mine if one.curve in names]
    dashed = f"Dashed: {'the model' if len(bands) == 1 else 'each model'} left as it is. " if bands else ""
    alone = (f"Of {names[0]}. " if len(every) == 1 else "" if len(every) == len(names) else
             f"{len(names)} of {len(every)} curves; the table below has all. ")
    title = f"{_worded(metric).capitalize()} by {SHORT.get(key, key)}"
    frame = Frame(title, f"{alone}{dashed}Whiskers: 95% intervals over prompts.",
                  f"{DOSES[key]}{f' ({_worded(unit)})' if unit and key == 'strength' else ''}", "", share=shares)
    head = ("curve", "setting", key, metric, "low", "high", "n")
    return picture(frame, curves, Table(f"dose_{metric}_{key}", head, lines), bands)


def _spot(one: _Setting, metric: str, key: str, shares: bool) -> Spot:
    row = one.metrics[metric]
    said = f"{one.curve}, {one.setting or f'{key} {number(one.dose[key])}'}: {_measure(row, shares)}"
    return Spot(one.dose[key], row["mean"], row.get("low"), row.get("high"), said)


def _gaps(run: RunFolder) -> Words:
    """Differences to the model as it is, of the measures that were tested."""
    lines = []
    for name, measures in part(run.result, "settings").items():
        for measure, row in measures.items() if isinstance(measures, dict) else ():
            gap = part(row, "difference") if isinstance(row, dict) else {}
            if known(gap) and "p_holm" in gap:
                lines.append((str(name), _worded(str(measure)), signed(gap), p_value(gap.get("p")),
                              p_value(gap.get("p_holm"))))
    words = ("Differences on the same prompts, with 95% intervals over prompts. p by turning the signs of the prompts' "
             "differences; after Holm's correction over all of these tests.")
    return Words("Less the model left as it is", words, ("setting", "measure", "difference", "p", "p after Holm"),
                 tuple(lines[:MOST_SETTINGS]))


def _pareto(told: Row) -> Picture | None:
    """Harm against capability; a line joins the settings that no other one beats in both."""
    points = [(str(row.get("setting")), harm, able) for row in rows(told, "pareto")
              if (harm := _mean(row.get("harm"))) is not None and (able := _mean(row.get("capability"))) is not None]
    if not points:
        return None
    front = sorted((one for one in points if not any(_beats(other, one) for other in points)), key=lambda one: one[1])
    names = [one[0] for one in front]
    beside = {str(row.get("setting")): _known(part(row, "capability")) for row in rows(told, "pareto")}
    spots = {kind: [Spot(harm, able, beside[name].get("low"), beside[name].get("high"),
                         f"{name}: harm {_short(harm)}, capability {_short(able)}", name) for name, harm, able in those]
             for kind, those in (("front", front), ("rest", [one for one in points if one[0] not in names]))}
    curves = [Curve("no other setting beats it in both", "run-0", spots["front"]),
              Curve("another setting beats it", "run-6 start", spots["rest"], joined=False)]
    words = (f"Up and left is better. {times(len(front), 'setting')} of {len(points)} on the front."
             + (" Whiskers: 95% intervals of capability; what lies within them may be chance." if any(
                 "low" in row for row in beside.values()) else ""))
    table = Table("pareto", ("setting", "harm", "capability", "front"),
                  [(*one, "yes" if one[0] in names else "no") for one in points])
    return picture(Frame("Harm against capability", words, "harm", "capability", tall=True), curves, table)


def _mean(value: object) -> float | None:
    return finite(value.get("mean")) if isinstance(value, dict) else finite(value)


def _short(x: float) -> str:
    return share(x) if 0 <= x <= 1 else brief(x)


def _beats(a: tuple[str, float, float], b: tuple[str, float, float]) -> bool:
    return a[1] <= b[1] and a[2] >= b[2] and a[1:] != b[1:]


def _clamped(told: Row) -> Words:
    lines = tuple((str(row.get("setting")), number(row.get("layer")), *(_part(row.get(key)) for key in (
        "prompt", "generated"))) for row in rows(told, "clamped"))
    return Words("Tokens moved by a cap", "Share of the tokens that lay outside the bound and were moved onto it.",
                 ("setting", "layer", "of the prompt", "generated"), lines)


def _part(value: object) -> str:
    x = finite(value)
    return DASH if x is None else share(x)


# --- calibration -----------------------------------------------------------------------------------------------------


def _named(row: Row) -> str:
    """A threshold by its percentile, as the presets are named, and by the axis's own."""
    own = finite(row.get("percentile_on_axis"))
    return f"p{number(row.get('stated'))}" + ("" if own is None else f" (on the axis {number(own)})")


def _thresholds(floors: Sequence[Row]) -> Picture | None:
    """Floors by layer, with twice their standard errors."""
    curves, lines = [], []
    for i, name in enumerate(list(dict.fromkeys(map(_named, floors)))[:MOST_CURVES]):
        spots = []
        for row in floors:
            x, floor, error = (finite(row.get(key)) for key in ("layer", "floor", "error"))
            if _named(row) == name and x is not None and floor is not None:
                low, high = (None if error is None else floor + side * 2 * error for side in (-1, 1))
                spots.append(Spot(x, floor, low, high, f"{name}, layer {number(x)}: {number(floor)}"))
                lines.append((name, x, floor, error))
        curves.append(Curve(name, f"run-{i}", spots))
    if not lines:
        return None
    frame = Frame("Floors by layer", "A token below the floor is lifted onto it. Whiskers: two standard errors of the "
                  "quantile.", "layer", "projection on the axis", whole=True)
    return picture(frame, curves, Table("floors", ("percentile", "layer", "floor", "error"), lines))


def _touched(floors: Sequence[Row]) -> list[Picture]:
    """Shares below the floors, of prompts and of responses apart."""
    found = []
    for key, words in (("response", "Response tokens below the floor"), ("prompt", "Prompt tokens below the floor")):
        names = list(dict.fromkeys(map(_named, floors)))[:MOST_CURVES]
        lines = [(_named(row), float(row["layer"]), y) for row in floors
                 if (y := finite(row.get(key))) is not None and 0 <= y <= 1 and _named(row) in names]
        curves = [Curve(name, f"run-{i}", [Spot(x, y, said=f"{name}, layer {number(x)}: {share(y)}")
                                           for mine, x, y in lines if mine == name]) for i, name in enumerate(names)]
        if lines:
            frame = Frame(words, "In the uncapped model: what each floor alone would lift.", "layer", "", whole=True,
                          share=True)
            found.append(picture(frame, curves, Table(f"below_{key}", ("percentile", "layer", "share"), lines)))
    return found


def _presets(told: Row) -> Words:
    """Windows of layers, and what was moved with the preset in force."""
    moved: dict[tuple[str, str], list[float]] = {}
    for row in rows(told, "clamped"):
        if (x := finite(row.get("clamped"))) is not None:
            moved.setdefault((str(row.get("preset")), str(row.get("where"))), []).append(x)
    lines = []
    for name, layers in part(told, "presets").items():
        known_layers = [x for x in layers if finite(x) is not None] if isinstance(layers, list) else []
        ends = list(dict.fromkeys((min(known_layers), max(known_layers)))) if known_layers else []
        span = " to ".join(map(number, ends)) or DASH
        shares = [moved.get((str(name), where), []) for where in ("prompt", "generation")]
        lines.append((str(name), span, *(_between(xs) for xs in shares)))
    return Words("Presets in force", "Share of the tokens that the preset moved where it was tried out, from the "
                 "least to the most over its layers.", ("preset", "layers", "of prompts", "of responses"),
                 tuple(lines[:MOST_SETTINGS]))


def _between(shares: Sequence[float]) -> str:
    if not shares:
        return DASH
    low, high = share(min(shares)), share(max(shares))
    return low if low == high else f"{low} to {high}"
