"""Charts and tables of models side by side, from whatever of result.json can be read."""

import math
from collections.abc import Iterable, Sequence

from keel.report.audit_tables import Table
from keel.report.contest import NARROW, Bars, Piece, ShareBar
from keel.report.folder import Row, RunFolder, part
from keel.report.lines import Chart, Place, Strip, Ticks, dot
from keel.report.words import DASH, brief, finite, interval, number, share

__all__ = ["TOTAL", "beside_baseline", "difference_chart", "diversity_table", "known", "length_table", "measured",
           "n_prompts", "names_of", "number_scale", "p_value", "part_difference_charts", "reward_charts", "signed",
           "subset_tables", "verdict_bars"]

TOTAL = "total"
N_COLORS = 7
MOST_STEPS = 6
"""Between the ticks of a track."""
LARGEST = 1e100
"""Beyond, no track can show it."""
NICE = (1.0, 2.0, 2.5, 5.0, 10.0)
OUTCOMES = ("win", "tie", "neither", "lose")
QUESTIONS = {"helpful": "Which is more helpful", "safe": "Which is more safe"}
SIZES = (1, 2, 3)


def measured(run: RunFolder) -> dict[str, Row]:
    """Name -> what was measured of each model; empty for any other run."""
    found = part(run.result, "models") if run.recipe == "evaluate" else {}
    return {name: row for name, row in found.items() if isinstance(row, dict)}


def beside_baseline(run: RunFolder, key: str = TOTAL) -> dict[str, Row]:
    """Name -> difference of a reward to the baseline's, as far as they are known."""
    found = {name: part(part(row, "difference"), key) for name, row in measured(run).items()}
    return {name: gap for name, gap in found.items() if known(gap)}


def known(row: Row) -> Row:
    """Mean, low and high; the mean alone where there was one prompt, which gives no interval; nothing where one of them
    is no number or they contradict each other."""
    found = {key: x for key in ("mean", "low", "high") if (x := finite(row.get(key))) is not None and abs(x) < LARGEST}
    if "mean" in found and row.get("low", 0) is None and row.get("high", 0) is None:
        return found
    return found if len(found) == 3 and found["low"] <= found["high"] else {}


def number_scale(ends: Iterable[float]) -> tuple[Ticks, Place]:
    """Ticks at round numbers, and the function from a number to its place in per cent, as wide as the ends."""
    values = list(ends)
    low, high = min(values), max(values)
    width = high - low or abs(low) or 1.0
    power = 10.0 ** math.floor(math.log10(width / MOST_STEPS))
    step = next(power * nice for nice in NICE if width / (power * nice) <= MOST_STEPS)
    first, last = math.floor(round(low / step, 6)), math.ceil(round(high / step, 6))
    last = max(last, first + 1)

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * (value / step - first) / (last - first), 2)

    return tuple((place(k * step) or 0.0, number(round(k * step, 12))) for k in range(first, last + 1)), place


def reward_charts(run: RunFolder) -> dict[str, Chart]:
    """One chart per reward, the total first."""
    models = measured(run)
    names = dict.fromkeys(key for row in models.values() for key in part(row, "rewards"))
    found = {}
    for key in names:
        rows = [(name, part(part(row, "rewards"), key), i % N_COLORS) for i, (name, row) in enumerate(models.items())]
        if any(known(row) for _, row, _ in rows):
            found[key] = _chart("Total reward" if key == TOTAL else reward_title(run, key), rows, run)
    return found


def _chart(title: str, rows: Sequence[tuple[str, Row, int]], run: RunFolder) -> Chart:
    ticks, place = number_scale(x for _, row, _ in rows for x in known(row).values())
    strips = tuple(Strip(name, "baseline" if name == run.result.get("baseline") else "", "", (dot(known(row), color,
                   place),), (interval(known(row)), number(row.get("n")))) for name, row, color in rows)
    return Chart(title, "", ticks, ("mean", "prompts"), strips)


def difference_chart(run: RunFolder, key: str = TOTAL) -> Chart | None:
    """Of a reward to the baseline's; an open point may be chance."""
    found = beside_baseline(run, key)
    if not found:
        return None
    ticks, place = number_scale([0.0, *(x for gap in found.values() for x in known(gap).values())])
    colors = {name: i % N_COLORS for i, name in enumerate(measured(run))}
    strips = tuple(Strip(name, "", "", (dot(known(gap), colors[name], place, 0.0, few=_chance(gap)),),
                         (signed(gap), p_value(gap.get("p")), p_value(gap.get("p_holm")))) for name, gap in
                   found.items())
    title = "Total" if key == TOTAL else reward_title(run, key)
    return Chart(f"{title} less that of {run.result.get('baseline')}", "", ticks, ("difference", "p", "p after Holm"),
                 strips)


def reward_title(run: RunFolder, key: str) -> str:
    """A reward's name, and that it is no part of the total."""
    return f"{key} (no part of the total)" if key in names_of(run, "beside") else key


def names_of(run: RunFolder, key: str) -> list[str]:
    """Rewards that are listed under a name: `beside`, `tested`."""
    found = part(run.result, "rewards").get(key)
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def part_difference_charts(run: RunFolder) -> tuple[Chart, ...]:
    """One for every other reward whose difference was tested."""
    charts = (difference_chart(run, key) for key in names_of(run, "tested") if key != TOTAL)
    return tuple(chart for chart in charts if chart is not None)


def _chance(gap: Row) -> bool:
    p = finite(gap.get("p_holm"))
    return p is None or p >= 0.05


def diversity_table(run: RunFolder) -> Table:
    """At equal numbers of responses."""
    heads = ("", "responses", "distinct-1/2/3 (a)", "distinct-1/2/3 (b)", "entropy, words/pairs", "self-BLEU")
    lines = []
    for name, row in measured(run).items():
        told = part(row, "diversity")
        if told:
            lines.append((name, number(told.get("n")), _joined(told, "distinct_ratio", SIZES, 3),
                          _joined(told, "distinctness", SIZES, 3), _joined(told, "entropy", SIZES[:2], 2),
                          number(told.get("self_bleu"), 1)))
    words = ("Distinct-n: (a) different n-grams by all n-grams, lower case; (b) by all words, as written. Entropy of "
             "the n-grams in nats. Self-BLEU from 0 to 100: the higher, the more alike. All fall or rise with the "
             "number of responses, which is the same for all models here; tables of other sizes are not comparable.")
    return Table("Diversity", words, heads, tuple(lines))


def length_table(run: RunFolder) -> Table:
    """How long answers are, whether they end, how far the model moved, and what it had seen."""
    models = measured(run)
    moved = any(part(row, "shift") for row in models.values())
    told = any(part(row, "seen") for row in models.values())
    given = any(known(part(row, "coverage")) for row in models.values())
    heads = ["", "words", "tokens", "cut", "empty", *(["S \u2212 Q, nats"] if moved else []),
             *(["coverage, density"] if given else []), *(["prompts trained on, held out"] if told else [])]
    lines = []
    for name, row in models.items():
        cells = [name, *(interval(known(part(row, key))) for key in ("words", "tokens")),
                 *(_share(part(row, key).get("mean")) for key in ("not_ended", "empty"))]
        cells += [interval(known(part(part(row, "shift"), "per_response")))] if moved else []
        cells += [" / ".join(interval(known(part(row, key))) for key in ("coverage", "density"))] if given else []
        cells += [_used(part(row, "seen"))] if told else []
        lines.append(tuple(cells))
    words = "Means per response with 95% intervals over prompts."
    words += (" S \u2212 Q: log-probability of the responses of the data under the model less that under the reference."
              if moved else "")
    words += (" Coverage and density: how much of an answer stands in the knowledge it was given, in pieces of two "
              "words or more." if given else "")
    return Table("Length and ends", words, tuple(heads), tuple(lines))


def _used(seen: Row) -> str:
    return " / ".join(number(seen.get(key)) for key in ("learned_from", "held_out")) if seen else "not known"


def verdict_bars(run: RunFolder) -> tuple[Bars, ...]:
    """One chart per question, a bar per model."""
    found, base = [], str(run.result.get("baseline") or "the baseline")
    for question, title in QUESTIONS.items():
        told = [(name, part(part(row, "judge"), question)) for name, row in measured(run).items()]
        rows = tuple(_bar(name, row) for name, row in told
                     if all(finite(row.get(kind)) is not None for kind in OUTCOMES) and known(part(row, "win_rate")))
        if rows:
            found.append(Bars(f"{title}: each model against {base}", "the model", base, rows))
    return tuple(found)


def _bar(name: str, row: Row) -> ShareBar:
    pieces, at = [], 0.0
    for kind in OUTCOMES:
        pieces.append(Piece(kind, round(at, 3), round(row[kind], 3), f"{row[kind]:.0f}" if row[kind] >= NARROW else ""))
        at += row[kind]
    said = ", ".join(f"{kind} {brief(row[kind])}%" for kind in OUTCOMES)
    p = "" if finite(row.get("p_holm")) is None else f", {p_value(row['p_holm'], 'p ')}"
    same = finite(row.get("n_identical"))
    n = number(row.get("n")) + (f", {number(same)} identical" if same else "")
    return ShareBar(f"{name} ({n})", tuple(pieces), interval(known(part(row, "win_rate"))) + p,
                    f"{name}: {said}")


def subset_tables(run: RunFolder) -> tuple[Table, ...]:
    """One table per subset; a model a row."""
    models = measured(run)
    names = dict.fromkeys(name for row in models.values() for name in part(row, "subsets"))
    found = []
    for subset in names:
        inside = {name: part(part(row, "subsets"), subset) for name, row in models.items()}
        heads, lines = _subset_heads(list(inside.values())), []
        for name, row in inside.items():
            lines.append((name, *(cell for head, cell in _subset_cells(row).items() if head in heads)))
        n = next((row["n"] for row in inside.values() if finite(row.get("n")) is not None), None)
        found.append(Table(f"{subset}: {n_prompts(n)}", "", ("", *heads), tuple(lines)))
    return tuple(found)


def _subset_heads(rows: Sequence[Row]) -> list[str]:
    """What some model has."""
    told = [_subset_cells(row) for row in rows]
    return [head for head in _subset_cells({}) if any(cells[head] != DASH for cells in told)]


def _subset_cells(row: Row) -> dict[str, str]:
    return {"total": interval(known(part(part(row, "rewards"), TOTAL))),
            "less the baseline's": signed(part(part(row, "difference"), TOTAL)),
            "words": interval(known(part(row, "words"))),
            "distinct-1/2/3 (a)": _joined(part(row, "diversity"), "distinct_ratio", SIZES, 3),
            **{f"{question}: win, tie, neither, lose": _shares(part(part(row, "judge"), question))
               for question in QUESTIONS}}


def _joined(row: Row, key: str, sizes: Sequence[int], decimals: int) -> str:
    """`0.202 / 0.455 / 0.669`."""
    cells = [number(row.get(f"{key}_{n}"), decimals) for n in sizes]
    return DASH if all(cell == DASH for cell in cells) else " / ".join(cells)


def _shares(row: Row) -> str:
    values = [finite(row.get(kind)) for kind in OUTCOMES]
    return " / ".join(f"{x:.0f}" for x in values if x is not None) + "%" if None not in values else DASH


def n_prompts(value: object) -> str:
    """`1 prompt`, `40 prompts`."""
    return f"{number(value)} prompt{'' if finite(value) == 1 else 's'}"


def signed(gap: Row) -> str:
    """`+0.12 [0.05, 0.19]`."""
    row = known(gap)
    return f"{'+' if row['mean'] > 0 else ''}{interval(row)}" if row else DASH


def p_value(value: object, before: str = "") -> str:
    """`0.03`, or `p = 0.03` after the letter."""
    x = finite(value)
    if x is None or not 0 <= x <= 1:
        return before + DASH
    return f"{before}< 0.001" if x < 0.001 else f"{before}{'= ' if before else ''}{number(x, 3)}"


def _share(value: object) -> str:
    x = finite(value)
    return DASH if x is None else share(x)
