"""What a reward model can be paid by that is no better answer: nine probes as a table, intervals and sentences."""

from collections.abc import Callable
from dataclasses import dataclass

from keel.report.folder import Row, RunFolder, part, rows
from keel.report.words import DASH, brief, finite, interval, joined, number, share, times

__all__ = ["Panel", "Probe", "panels", "probe_doubts", "probe_evidence", "probe_title"]

SUSPICIOUS, NOT_RUN = "suspicious", "not run"
CHANCE = 0.5
NAMES = {"kl": "KL, nats", "sqrt_kl": "\u221aKL"}
ROOM = 1.08  # of the widest interval, so that no mark touches the edge


@dataclass(frozen=True)
class Line:
    """One measure; places in per cent of the chart, none where nothing is drawn."""

    name: str
    verdict: str
    text: str
    done: str
    facts: str
    mean: float | None
    low: float | None
    high: float | None
    bounds: tuple[float, ...]


@dataclass(frozen=True)
class Probe:
    """One probe. `zero`: its place in the charts of the lines; `curve`: heads and rows of numbers."""

    number: int
    title: str
    question: str
    verdict: str
    says: str
    lines: tuple[Line, ...]
    zero: float
    heads: tuple[str, ...]
    curve: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Panel:
    """All probes of one run."""

    name: str
    probes: tuple[Probe, ...]


def panels(runs: list[RunFolder]) -> list[Panel]:
    """The probes among these runs."""
    return [Panel(run.name if len(runs) > 1 else "", tuple(_probe(i, row) for i, row in enumerate(found, start=1)))
            for run in runs if (found := rows(run.probes, "probes"))]


def probe_title(run: RunFolder) -> str:
    """Which probes found something, in one sentence; empty for any other run."""
    found = rows(run.probes, "probes")
    if not found:
        return ""
    caught = [str(row.get("title", "")).lower() for row in found if row.get("verdict") == SUSPICIOUS]
    n = sum(row.get("verdict") != NOT_RUN for row in found)
    if not caught:
        return f"Nothing suspicious in {times(n, 'probe')}."
    return f"Suspicious in {len(caught)} of {times(n, 'probe')}: {joined(caught)}."


def probe_evidence(run: RunFolder) -> str:
    """What the numbers stand on, and what was not run."""
    found = rows(run.probes, "probes")
    if not found:
        return ""
    accuracy = part(run.probes, "accuracy")
    said = [f"Accuracy on {times(int(finite(accuracy.get('n')) or 0), 'pair')}: {interval(accuracy)}. Shifts are in "
            f"standard deviations of the gap between chosen and rejected score ({brief(run.probes.get('std'))}); one "
            f"of {brief(run.probes.get('smallest'))} counts."]
    for verdict, words in (("by length", "explained by length"), ("not settled", "not settled"), (NOT_RUN, "not run")):
        names = [str(row.get("title", "")).lower() for row in found if row.get("verdict") == verdict]
        said += [f"{words.capitalize()}: {joined(names)}."] if names else []
    return " ".join(said)


def probe_doubts(run: RunFolder) -> list[tuple[str, str]]:
    """What weakens the probes, and what to do about it."""
    accuracy = part(run.probes, "accuracy")
    low = finite(accuracy.get("low"))
    if low is None or low > CHANCE:
        return []
    return [("The reward model is not shown to be better than chance on these pairs (accuracy "
             f"{interval(accuracy)}): the probes show how noise reacts.",
             "Probe a reward model that has learned something, or give more pairs.")]


def _probe(position: int, row: Row) -> Probe:
    measures = rows(row, "measures")
    drawn = [m for m in measures if finite(part(m, "value").get("low")) is not None]
    ends = [x for m in drawn for key in ("low", "high") if (x := finite(part(m, "value").get(key))) is not None]
    bounds = [x for m in drawn for x in _bounds(m)]
    low, high = ROOM * min([0.0, *ends, *bounds]), ROOM * max([0.0, *ends, *bounds])

    def place(value: object) -> float | None:
        x = finite(value)
        return None if x is None or high == low else round(100 * (x - low) / (high - low), 2)

    lines = tuple(_line(m, place if m in drawn else lambda value: None) for m in measures)
    verdict, needs = str(row.get("verdict", DASH)), str(row.get("needs") or "")
    behind = [f"{line.name} {line.text}" for line in lines if line.verdict == verdict] if verdict != "fine" else []
    more = f"{len(behind) - 3} more" if len(behind) > 3 else ""
    says = "; ".join(text for text in (*behind[:3], more, needs) if text)
    heads, curve = _curve(rows(row, "curve"))
    return Probe(position, str(row.get("title", "")), str(row.get("question", "")), verdict, says, lines,
                 place(0.0) or 0.0, heads, curve)


def _line(measure: Row, place: Callable[[object], float | None]) -> Line:
    value, beyond, sides = part(measure, "value"), part(measure, "beyond_length"), part(measure, "sides")
    facts = [f"must {measure['must']}"] if measure.get("must") else []
    rises = finite(measure.get("rises"))
    facts += [] if rises is None else [f"rose in {share(rises)}"]
    facts += [f"beyond length {interval(beyond)}"] if finite(beyond.get("mean")) is not None else []
    facts += [f"{side} {number(mean, 2)}" for side, mean in sides.items()] if len(sides) > 1 else []
    n, prompts = (finite(value.get(key)) for key in ("n", "n_prompts"))
    counted = "" if n is None else f"n = {n:,.0f}" + (f" of {times(int(prompts), 'prompt')}" if prompts else "")
    mean, low, high = (place(value.get(key)) for key in ("mean", "low", "high"))
    return Line(str(measure.get("name", "")), str(measure.get("verdict", DASH)), interval(value),
                str(measure.get("done", "")), "; ".join(text for text in (*facts, counted) if text), mean, low, high,
                tuple(x for bound in _bounds(measure) if (x := place(bound)) is not None))


def _bounds(measure: Row) -> list[float]:
    given = measure.get("bounds")
    return [x for bound in given if (x := finite(bound)) is not None] if isinstance(given, list) else []


def _curve(points: list[Row]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Numbers behind a probe as a table: the columns are those of its first row, and those that only others have."""
    heads = tuple(dict.fromkeys(str(key) for point in points for key in point))
    cells = tuple(tuple(_cell(point.get(key)) for key in heads) for point in points)
    return tuple(NAMES.get(head, head.replace("_", " ")) for head in heads), cells


def _cell(value: object) -> str:
    return interval(value) if isinstance(value, dict) else number(value)
