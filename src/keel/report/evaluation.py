"""Models side by side, as `keel evaluate` measured them: what the page says and shows of them."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from keel.report.audit_tables import Table
from keel.report.contest import Bars
from keel.report.evaluation_charts import (
    TOTAL,
    beside_baseline,
    difference_chart,
    diversity_table,
    length_table,
    measured,
    n_prompts,
    names_of,
    p_value,
    part_difference_charts,
    reward_charts,
    signed,
    subset_tables,
    verdict_bars,
)
from keel.report.folder import Row, RunFolder, part
from keel.report.lines import Chart
from keel.report.words import brief, finite, joined, share, times

__all__ = ["Evaluation", "Said", "Shown", "evaluated", "evaluation_evidence", "evaluation_notes", "evaluation_subject",
           "evaluation_title"]

LIKELY = 0.05
"""Below, a p after Holm is called a difference."""
MOST_NAMED = 4
MOST_SHOWN = 6
LONGEST = 1500
"""Characters of a text on the page; the whole one stays in samples.jsonl."""
MANY = 0.2
"""Share from which on unread verdicts are grave."""


SEEN = {"learned_from": "was trained on", "held_out": "may have been chosen by"}
"""What a model's run did with prompts that it used."""


@dataclass(frozen=True)
class Said:
    """One model's answer. `told`: its total and how it ended, in words."""

    name: str
    text: str
    told: str


@dataclass(frozen=True)
class Shown:
    """A prompt with what every model said."""

    id: str
    turns: tuple[tuple[str, str], ...]
    answers: tuple[Said, ...]


@dataclass(frozen=True)
class Evaluation:
    """One run of `keel evaluate`. Charts and tables are none or empty where there is nothing to show.

    `family`: what p is corrected over.
    """

    name: str
    baseline: str
    family: str
    total: Chart | None
    difference: Chart | None
    differences: tuple[Chart, ...]
    parts: tuple[Chart, ...]
    diversity: Table
    lengths: Table
    verdicts: tuple[Bars, ...]
    judge: str
    subsets: tuple[Table, ...]
    shown: tuple[Shown, ...]


def evaluated(runs: list[RunFolder]) -> list[Evaluation]:
    """Of every such run whatever can be read."""
    return [_evaluation(run, run.name if len(runs) > 1 else "") for run in runs if measured(run)]


def evaluation_title(run: RunFolder) -> str:
    """Which models are better than the baseline, more than by chance; empty for any other run."""
    if not measured(run):
        return ""
    base, found = _baseline(run), beside_baseline(run)
    if not found:
        return f"{times(len(measured(run)), 'model')} on the same prompts."
    sides: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
    for name, gap in found.items():
        p = finite(gap.get("p_holm"))
        sides["same" if p is None or p >= LIKELY else "better" if gap["mean"] > 0 else "worse"].append(name)
    told = [f"{_several(sides[side])} better than {base}" if side == "better" else
            f"{_several(sides[side])} worse" + ("" if sides["better"] else f" than {base}")
            for side in ("better", "worse") if sides[side]]
    if sides["same"]:
        told.append(f"{_several(sides['same'])} not told apart from {base}")
    return f"By total reward, {'; '.join(told)}."


def evaluation_evidence(run: RunFolder) -> str:
    """The numbers behind the title."""
    found = beside_baseline(run)
    if not found:
        return ""
    told = [f"{name} {signed(gap)} ({p_value(gap.get('p_holm'), 'p ')})" for name, gap in found.items()]
    more = [] if len(told) <= MOST_NAMED else [f"{len(told) - MOST_NAMED} more below"]
    return (f"Mean total less that of {_baseline(run)} on the same {n_prompts(run.result.get('n'))}, with 95% "
            f"intervals over prompts: {', '.join([*told[:MOST_NAMED], *more])}; p by turning signs, after Holm's "
            f"correction over {_family(run)}.")


def evaluation_subject(run: RunFolder) -> str:
    """What was measured on what."""
    if not measured(run):
        return ""
    file = PurePath(str(part(run.config, "prompts").get("path") or "")).name
    seed = f"; seed {run.environment['seed']}" if "seed" in run.environment else ""
    prompts = f"the same {n_prompts(run.result.get('n'))}" + (f" of {file}" if file else "")
    return f"{times(len(measured(run)), 'model')} on {prompts}, with the same random numbers for all{seed}."


def evaluation_notes(run: RunFolder) -> list[tuple[str, str, bool]]:
    """What weakens it, what to do, and whether that is grave."""
    found = []
    for name, row in measured(run).items():
        seen, n = {key: finite(part(row, "seen").get(key)) or 0 for key in SEEN}, finite(row.get("n"))
        if any(seen.values()) and run.config.get("overlap") != "drop":
            said = " and ".join(f"{SEEN[key]} {k:,.0f}" for key, k in seen.items() if k)
            found.append((f"{name} {said} of these prompts.", "What it is worth on new ones, other "
                          "prompts tell; overlap = drop leaves these out.", True))
        cut, empty = (finite(part(row, key).get("mean")) for key in ("not_ended", "empty"))
        if cut:
            found.append((f"{share(cut)} of the answers of {name} were cut at the length limit.", "", cut >= 0.5))
        if empty:
            found.append((f"{share(empty)} of the answers of {name} are empty.", "", empty >= 0.5))
        for question, told in part(row, "judge").items():
            unread = finite(told.get("n_unread")) if isinstance(told, dict) else None
            if unread and n:
                text = f"{unread:,.0f} verdicts on {name} ({question}) could not be read; they count for no side."
                found.append((text, "calls.jsonl holds what the judge wrote.", unread >= MANY * n))
    for question, told in part(part(run.result, "judge"), "position").items():
        turned = finite(told.get("inconsistent_percent")) if isinstance(told, dict) else None
        if turned:
            first = finite(told.get("first_place_percent"))
            place = "" if first is None else f"; the first place got {first:.0f}% of its choices"
            found.append((f"Asked which is more {question}, the judge changed its mind with the order of the two on "
                          f"{turned:.0f}% of the pairs{place}.", "These are ties.", turned >= 50))
    return found


def _evaluation(run: RunFolder, name: str) -> Evaluation:
    charts = reward_charts(run)
    judge = part(run.result, "judge").get("name")
    return Evaluation(
        name, _baseline(run), _family(run), charts.pop(TOTAL, None), difference_chart(run), part_difference_charts(run),
        tuple(charts.values()),
        diversity_table(run), length_table(run), verdict_bars(run), str(judge) if isinstance(judge, str) else "",
        subset_tables(run), _shown(run))


def _baseline(run: RunFolder) -> str:
    name = run.result.get("baseline")
    return name if isinstance(name, str) else "the baseline"


def _family(run: RunFolder) -> str:
    """What the p values are corrected over."""
    n = len(names_of(run, "tested"))
    return f"the models and {n} rewards" if n > 1 else "the models"


def _several(names: list[str]) -> str:
    shown = names if len(names) <= MOST_NAMED else [*names[:MOST_NAMED], times(len(names) - MOST_NAMED, "more model")]
    return f"{joined(shown)} {'is' if len(names) == 1 else 'are'}"


def _shown(run: RunFolder) -> tuple[Shown, ...]:
    """Prompts that stand evenly in the file, with every model's answer."""
    rows = [both[1] for both in run.samples.values() if part(both[1], "models")]
    n = min(MOST_SHOWN, len(rows))
    return tuple(_prompt(row) for row in (rows[i * len(rows) // n] for i in range(n)))


def _prompt(row: Row) -> Shown:
    prompt = row.get("prompt")
    turns = prompt if isinstance(prompt, list) else [{"role": "", "content": prompt}]
    told = tuple((str(one.get("role") or ""), _cut(one.get("content"))) for one in turns if isinstance(one, dict))
    return Shown(str(row.get("id")), told, tuple(_said(name, one) for name, one in part(row, "models").items()
                                                 if isinstance(one, dict)))


def _said(name: str, row: Row) -> Said:
    total = part(row, "rewards").get(TOTAL)
    told = [f"total {brief(total)}"] if finite(total) is not None else []
    told += [] if row.get("ended") is not False else ["cut"]
    told += [f"{question}: {verdict}" for question, verdict in part(row, "verdicts").items()]
    return Said(name, _cut(row.get("response")), ", ".join(told))


def _cut(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + f" … [{len(text) - LONGEST:,} more characters]"
