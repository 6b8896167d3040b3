"""Conversations on the axis: their way turn by turn, the slopes by domain, and texts coloured token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

from keel.report.audit_tables import Table as Words
from keel.report.axis_pictures import Band, Curve, Frame, Picture, Spot, Table, link, picture
from keel.report.axis_texts import Text, known_range, listed, named, talks, texts, token_table, visible
from keel.report.evaluation_charts import known, number_scale
from keel.report.folder import Row, RunFolder, part, rows
from keel.report.lines import Chart, Strip, dot
from keel.report.words import DASH, brief, finite, interval, joined, number, times

__all__ = ["Turns", "turns"]

N_COLORS, MOST_PANELS, MOST_LINES, MOST_NAMED = 7, 24, 40, 7
ASSISTANT, PLAIN = "assistant", "as it was"


@dataclass(frozen=True)
class Turns:
    """What is drawn of a run's conversations; what is not known is none or empty. `ends`: of the colours."""

    says: tuple[str, ...]
    panels: tuple[Picture, ...]
    slopes: Chart | None
    slopes_link: str
    gaps: Words
    prediction: Words
    themes: Words
    texts: tuple[Text, ...]
    ends: tuple[str, str, str]
    tokens_link: str


@dataclass(frozen=True)
class _Path:
    """The assistant's turns of one conversation under one condition."""

    id: str
    group: str
    label: str
    points: tuple[tuple[int, float, float | None], ...]


def turns(run: RunFolder) -> Turns | None:
    """The conversations of a run; none where it has none."""
    told = part(run.axis, "drift")
    paths = _paths(run, told)
    read = talks(run)
    if not (told or paths or read):
        return None
    domains = rows(told, "domains")
    shown, ends = texts(read, told)
    return Turns(tuple(_says(told, paths)), tuple(_panels(told, domains, paths)), *_slopes(domains), _gaps(told),
                 _prediction(told), _themes(told), shown, ends, link(token_table(read)))


def _paths(run: RunFolder, told: Row) -> list[_Path]:
    found = [row for row in run.axis.get("trajectories", []) if isinstance(row, dict)]
    layer = told.get("layer", found[0].get("layer") if found else None)
    paths = []
    for row in found:
        points = [(int(at), y, finite(turn.get("n_tokens"))) for turn in rows(row, "turns")
                  if str(turn.get("role")) == ASSISTANT and (at := finite(turn.get("turn"))) is not None
                  and (y := finite(turn.get("projection"))) is not None]
        if points and row.get("layer", layer) == layer:
            paths.append(_Path(named(row.get("id")), named(row.get("group")), named(row.get("label")),
                               tuple(sorted(points, key=lambda point: point[0]))))
    return paths


def _says(told: Row, paths: Sequence[_Path]) -> list[str]:
    n = len(dict.fromkeys((path.group, path.id) for path in paths))
    at = "" if finite(told.get("layer")) is None else f" at layer {number(told.get('layer'))}"
    said = [f"{times(n, 'conversation')}{at}: mean projection of each of the assistant's turns; up is towards the "
            "Assistant."] if n else []
    span = known_range(told)
    if span:
        said.append(f"Shaded: from {brief(span[0])} to {brief(span[1])}, where nine of ten default responses lie.")
    return [*said, *_falls(told)]


def _falls(told: Row) -> list[str]:
    """For each condition the domains that fall beyond chance."""
    measured = [row for row in rows(told, "domains") if _known(_slope(row))]
    said = []
    for label in dict.fromkeys(named(row.get("label")) for row in measured):
        mine = [row for row in measured if named(row.get("label")) == label]
        names = [named(row.get("name")) for row in mine if (high := finite(row.get("high"))) is not None and high < 0]
        shown = _shown(label, [named(row.get("label")) for row in measured])
        start = f"{shown[:1].upper()}{shown[1:]}: the" if shown else "The"
        said.append(f"{start} projection falls beyond chance in {len(names)} of {times(len(mine), 'domain')}"
                    + (f" ({joined(names)})." if names else "."))
    return said


def _shown(label: str, labels: Sequence[str]) -> str:
    """A condition's name; the one without a name has one where there are others."""
    return label or (PLAIN if any(labels) else "")


def _slope(row: Row) -> Row:
    return {"mean": row.get("slope"), "low": row.get("low"), "high": row.get("high")}


# --- turn by turn ----------------------------------------------------------------------------------------------------


def _panels(told: Row, domains: Sequence[Row], paths: Sequence[_Path]) -> list[Picture]:
    """One for each domain, all on one scale."""
    groups = dict.fromkeys([*(named(row.get("name")) for row in domains), *(path.group for path in paths)])
    labels = list(dict.fromkeys([*(named(row.get("label")) for row in domains), *(path.label for path in paths)]))
    span = known_range(told)
    bands = [Band(*span, f"default range: {brief(span[0])} to {brief(span[1])}")] if span else []
    drawn = []
    for group in list(groups)[:MOST_PANELS]:
        mine = [path for path in paths if path.group == group]
        of = [row for row in domains if named(row.get("name")) == group]
        curves = [curve for curve in (*_single(mine, labels, bool(_positions(of))), *_means(of, labels)) if curve.spots]
        if curves:
            drawn.append((group, curves, _words(mine, of), _rows_of(group, mine, of)))
    heights = [y for _, curves, *_ in drawn for curve in curves for spot in curve.spots
               for y in (spot.y, spot.low, spot.high) if y is not None]
    y = "projection, mean role at 0" if told.get("centred") is True else "projection"
    head = ("group", "label", "id", "turn", "projection", "low", "high", "n")
    found = []
    for group, curves, words, lines in drawn:
        frame = Frame(group or "Conversations", words, "turn", y, whole=True, span_y=tuple(heights))
        found.append(picture(frame, curves, Table(f"turns_{group}", head, lines), bands))
    return found


def _positions(of: Sequence[Row]) -> list[tuple[str, Row]]:
    """Means over conversations by turn, with the condition they belong to."""
    return [(named(row.get("label")), at) for row in of for at in rows(row, "positions")
            if finite(at.get("turn")) is not None and _known(at)]


def _single(paths: Sequence[_Path], labels: Sequence[str], behind: bool) -> list[Curve]:
    """Conversations one by one: named where they are few and no mean stands before them."""
    few = not behind and len(paths) <= MOST_NAMED
    found: list[Curve] = []
    told = set(labels) if behind else set() if any(labels) else {""}  # conditions that are in the legend by other means
    for i, path in enumerate(_fair(paths, labels)):
        color = i if few else labels.index(path.label)
        name = listed(path.id if few else "", _shown(path.label, labels))
        spots = [Spot(turn, y, said=f"{listed(path.id, path.label)}, turn {turn}: {number(y)}")
                 for turn, y, _ in path.points]
        found.append(Curve(name, f"run-{color % N_COLORS}", spots, faint=not few,
                           named=few or path.label not in told))
        told.add(path.label)
    return found


def _known(row: Row) -> Row:
    """Mean, low and high; the mean alone where there is no interval."""
    return known({key: row.get(key) for key in ("mean", "low", "high")})


def _fair(paths: Sequence[_Path], labels: Sequence[str]) -> list[_Path]:
    """The first of every condition, as many of each."""
    each = max(1, MOST_LINES // max(1, len(labels)))
    return [path for label in labels for path in [p for p in paths if p.label == label][:each]]


def _means(of: Sequence[Row], labels: Sequence[str]) -> list[Curve]:
    found = []
    for label in labels:
        spots = []
        for mine, at in _positions(of):
            if mine == label:
                row = _known(at)
                n = times(int(finite(at.get("n")) or 0), "conversation")
                said = listed(label, f"turn {number(at['turn'])}: {interval(row)}", n)
                spots.append(Spot(float(at["turn"]), row["mean"], row.get("low"), row.get("high"), said))
        found.append(Curve(_shown(label, labels) or "mean", f"run-{labels.index(label) % N_COLORS}", spots))
    return found


def _words(paths: Sequence[_Path], of: Sequence[Row]) -> str:
    """How many conversations, and the slope of each condition."""
    n = len(dict.fromkeys(path.id for path in paths))
    shown = len(_fair(paths, list(dict.fromkeys(path.label for path in paths))))
    said = [f"{times(n, 'conversation')}{'' if shown == len(paths) else f', {shown} lines of {len(paths)} shown'}."
            ] if n else []
    labels = [named(row.get("label")) for row in of]
    slopes = [f"{_shown(named(row.get('label')), labels)} {interval(_known(_slope(row)))}".strip() for row in of
              if _known(_slope(row))]
    return " ".join([*said, *([f"Slope a turn: {', '.join(slopes)}."] if slopes else [])])


def _rows_of(group: str, paths: Sequence[_Path], of: Sequence[Row]) -> list[tuple[str | float | None, ...]]:
    """The means first, whose id is empty, then the conversations that are drawn."""
    means = [(group, label, "", float(at["turn"]), *(finite(at.get(key)) for key in ("mean", "low", "high", "n")))
             for label, at in _positions(of)]
    labels = list(dict.fromkeys(path.label for path in paths))
    single = [(group, path.label, path.id, float(turn), y, None, None, n) for path in _fair(paths, labels)
              for turn, y, n in path.points]
    return [*means, *single]


# --- over all turns --------------------------------------------------------------------------------------------------


def _slopes(domains: Sequence[Row]) -> tuple[Chart | None, str]:
    measured = [row for row in domains if _known(_slope(row))]
    if not measured:
        return None, ""
    ticks, place = number_scale([0.0, *(x for row in measured for x in _known(_slope(row)).values())])
    labels = list(dict.fromkeys(named(row.get("label")) for row in measured))
    strips = []
    for row in measured:
        slope = _known(_slope(row))
        chance = not ("low" in slope and (slope["high"] < 0 or slope["low"] > 0))
        color = labels.index(named(row.get("label"))) % N_COLORS
        strips.append(Strip(named(row.get("name")), _shown(named(row.get("label")), labels), "",
                            (dot(slope, color, place, 0.0, few=chance),), (interval(slope), number(row.get("n")))))
    table = Table("slopes", ("group", "label", "slope", "low", "high", "n"),
                  [(named(row.get("name")), named(row.get("label")),
                    *(finite(row.get(key)) for key in ("slope", "low", "high", "n"))) for row in measured])
    return Chart("Slope by domain", "", ticks, ("slope a turn", "conversations"), tuple(strips)), link(table)


def _gaps(told: Row) -> Words:
    """Two conditions of the same user messages."""
    lines = tuple((named(row.get("domain")) or "all", named(row.get("first")) or PLAIN, named(row.get("second")),
                   interval(_known(row)), number(row.get("n"))) for row in rows(told, "differences") if _known(row))
    words = "Mean over the turns of the second condition less the first; 95% intervals over conversations."
    heads = ("domain", "first", "second", "difference", "conversations")
    return Words("The same messages under two conditions", words, heads, lines)


def _prediction(told: Row) -> Words:
    """R2 of what the user's messages say about the next projection and about its change."""
    sides = [part(part(told, "prediction"), key) for key in ("projection", "change")]
    names = dict.fromkeys(name for side in sides for name in side)
    lines = [(str(name), *(_score(side.get(name)) for side in sides)) for name in names]
    lines = [line for line in lines if any(cell != DASH for cell in line[1:])]
    words = ("R² of a ridge regression on the user's message: 1 is perfect, 0 no better than the mean. Believe the "
             "score out of fold, held against the controls; a score on its own training data is always too high.")
    return Words("What the user's messages foretell", words, ("score", "next projection", "its change"), tuple(lines))


def _score(value: object) -> str:
    if isinstance(value, dict):
        return interval(_known(value)) if _known(value) else DASH
    return number(value, 2)


def _themes(told: Row) -> Words:
    found = rows(told, "themes") or rows(part(told, "prediction"), "themes")
    lines = []
    for row in found:
        examples = row.get("examples")
        shown = [visible(str(text)) for text in examples[:3]] if isinstance(examples, list) else []
        mean = row.get("projection", row.get("mean"))
        numbers = mean if isinstance(mean, dict) else {**row, "mean": mean}
        lines.append((named(row.get("name")), number(row.get("n")), interval(_known(numbers)), "\n".join(shown)))
    words = "Clusters of the user's messages, with the mean projection of the turn after them."
    return Words("Themes of the user's messages", words, ("theme", "messages", "next projection", "examples"),
                 tuple(lines))
