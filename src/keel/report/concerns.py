"""What went wrong, in plain words: alarms, over-optimisation, records left out, responses cut, values not finite."""

import math
from dataclasses import dataclass
from typing import Any

from keel.report.audit import doubts
from keel.report.bench_words import bench_doubts, bench_notes
from keel.report.comparison import comparison_notes
from keel.report.contest import JUDGES, judges, opponents
from keel.report.evaluation import evaluation_notes
from keel.report.exams import exam_doubts, exam_notes
from keel.report.folder import Row, RunFolder
from keel.report.groups_words import group_notes
from keel.report.probes import probe_doubts
from keel.report.series import Collected
from keel.report.verdict import Divergence, divergence
from keel.report.words import brief, finite, joined, share, times

__all__ = ["Concern", "concerns"]


@dataclass(frozen=True)
class Concern:
    """Something a reader should know before believing the curves; `grave` ones come first."""

    text: str
    remedy: str = ""
    grave: bool = False


def concerns(run: RunFolder, series: Collected, shown: Row, judged: str) -> list[Concern]:
    """Everything that went wrong or limits what the numbers mean; grave things first."""
    found = _overoptimised(divergence(series), judged) + _ending(run) + _alarms(run) + _proxy_only(shown, series)
    if run.recipe == "reward_model":
        found += _against_trivial_rules(shown, series)
    grave = (*doubts(run), *probe_doubts(run), *exam_doubts(run), *bench_doubts(run))
    found += [Concern(text, remedy, grave=True) for text, remedy in grave]
    found += [Concern(*told) for told in (*comparison_notes(run), *evaluation_notes(run), *group_notes(run, series))]
    found += _contest(run) + _left_out(run.result.get("skipped"))
    cut = series.get(("response/cut", "eval")) or series.get(("response/cut", "train"))
    if cut and cut.last is not None and cut.last > 0:
        text = f"{share(cut.last)} of the last responses were cut at the length limit."
        found.append(Concern(text, grave=cut.last >= 0.5))
    found += _not_finite(series)
    found += [Concern(_sentence(note)) for note in (*run.notes, *_noted(run), *exam_notes(run), *bench_notes(run))]
    return sorted(found, key=lambda concern: not concern.grave)


def _noted(run: RunFolder) -> list[str]:
    """What the run itself told its readers; how much of a benchmark it is stands among the doubts already."""
    given = run.result.get("notes")
    return [note for note in given if isinstance(note, str) and note.strip() and not note.startswith("partial:")
            ] if isinstance(given, list) else []


def _sentence(note: str) -> str:
    """With a capital and a full stop; the names of files and settings stay as they are."""
    text = note.strip()
    first = text.split()[0]
    begun = text if "." in first or "=" in first or "_" in first else text[:1].upper() + text[1:]
    return begun if begun.endswith((".", "!", "?")) else f"{begun}."


def _left_out(skipped: Any) -> list[Concern]:
    """Records that never reached the model whole: counted by the readers and by the one place that truncates."""
    if not isinstance(skipped, dict):
        return []
    limit = finite(skipped.get("max_length"))
    room = f" to fit {limit:,.0f} tokens" if limit else ""
    said = {
        "records": "skipped as faulty",
        "truncated": "truncated",
        "n_dropped": "left out" + (f": longer than {limit:,.0f} tokens" if limit else ""),
        "n_fewer_turns": f"stripped of the oldest turns{room}",
        "n_cut": f"cut{room}",
    }
    found = []
    for key, value in skipped.items():
        if (count := finite(value) or 0) > 0 and key not in ("n_rows", "max_length"):
            out_of = f" of {skipped['n_rows']:,}" if isinstance(skipped.get("n_rows"), int) and key[:2] == "n_" else ""
            what = said.get(key, f"left out ({key})")
            found.append(Concern(f"{count:,.0f}{out_of} {'record was' if count == 1 else 'records were'} {what}."))
    return found


def _proxy_only(shown: Row, series: Collected) -> list[Concern]:
    if shown.get("metric") not in ("score", "score/mean") or any(name == "gold/mean" for name, _ in series):
        return []
    text = "Only the proxy was measured. Training pushes the reward model's score up by design; that alone is no proof."
    return [Concern(text, "Read the samples, or judge them by something that was not trained on.")]


def _contest(run: RunFolder) -> list[Concern]:
    """What weakens a verdict: judges at odds, a judge that minds the order, only the proxy asked, answers cut."""
    counted, found = judges(run), []
    wins, losses = ([JUDGES.get(name, name) for name, row in counted.items() if sign * (_edge(row, sign) or 0) > 0]
                    for sign in (1, -1))
    if wins and losses:
        text = f"The judges contradict each other: {joined(wins)} for {opponents(run)[0]}, {joined(losses)} against it."
        found.append(Concern(text, "Where the reward model wins and the others lose, it is being gamed.", grave=True))
    if list(counted) == ["reward_model"]:
        text = "Only the reward model judged. A policy that was trained on its score wins here by design."
        found.append(Concern(text, "Add gold or judge, something that was not trained on."))
    order = counted.get("judge", {})
    flips, first = finite(order.get("inconsistent_percent")), finite(order.get("first_place_percent"))
    if flips:
        place = "" if first is None else f"; the first place won {first:.0f}% of its verdicts"
        text = f"The judge changed its verdict with the order of the two answers on {flips:.0f}% of the prompts{place}."
        found.append(Concern(text, "These prompts count as ties, which pulls the win rate towards 50.", flips >= 50))
    for side, name in zip(("policy", "opponent"), opponents(run), strict=True) if counted else ():
        row = run.result.get(side)
        if (cut := finite(row.get("cut_percent")) if isinstance(row, dict) else None) and cut > 0:
            text = f"{share(cut / 100)} of the answers of {side if name == 'itself' else name} were cut."
            found.append(Concern(text, grave=cut >= 50))
    return found


def _edge(row: Row, sign: int) -> float | None:
    """How far the nearer end of the interval lies from an even match, on the side of `sign`."""
    end = finite(row["win_rate"].get("low" if sign > 0 else "high"))
    return None if end is None else end - 50


def _ending(run: RunFolder) -> list[Concern]:
    if run.status == "failed":
        return [Concern(f"It failed: {run.result.get('error') or 'no reason was recorded'}", grave=True)]
    if run.status == "stopped":
        return [Concern(f"It was stopped before its end. {run.result.get('error') or ''}".strip())]
    if run.status == "unfinished":
        remedy = "It is still running, or it was killed; then --resume continues it."
        return [Concern("There is no result.json: every number here is provisional.", remedy, grave=True)]
    return []


def _overoptimised(found: Divergence | None, judged: str) -> list[Concern]:
    if found:
        text = (
            f"Over-optimisation: after about step {found.step:,} the proxy score rose from {brief(found.proxy_then)} "
            f"to {brief(found.proxy_end)} while the gold score fell from {brief(found.gold_best)} "
            f"to {brief(found.gold_end)}."
        )
        return [Concern(text, "Raise kl.coef or stop earlier; the end of this run is not its best.", grave=True)]
    if judged == "overoptimised":
        text = "Over-optimisation: the proxy score rose, yet the gold score fell below where it began."
        return [Concern(text, "Do not use this policy; raise kl.coef or stop earlier.", grave=True)]
    return []


def _alarms(run: RunFolder) -> list[Concern]:
    by_name: dict[str, list[Row]] = {}
    for row in run.alarms:
        by_name.setdefault(str(row.get("name", "alarm")), []).append(row)
    concerns = []
    for name, rows in by_name.items():
        steps = sorted(row["step"] for row in rows)
        when = f"at step {steps[0]:,}"
        if len(rows) > 1:
            when = f"{times(len(rows), 'time')} between steps {steps[0]:,} and {steps[-1]:,}"
        meaning = str(rows[0].get("meaning") or "").strip()
        text = f"Alarm “{name.replace('_', ' ')}” {when}" + (f": {meaning}" if meaning else ".")
        concerns.append(Concern(text, str(rows[0].get("remedy") or ""), grave=True))
    if not run.alarms and (finite(run.result.get("n_alarms")) or 0) > 0:
        text = f"{times(int(run.result['n_alarms']), 'alarm')} raised, but alarms.jsonl is missing."
        concerns.append(Concern(text, grave=True))
    return concerns


def _against_trivial_rules(shown: Row, series: Collected) -> list[Concern]:
    """An accuracy means nothing beside a coin, or beside a rule that only counts tokens."""
    accuracy, longer = series.get(("accuracy", "eval")), series.get(("longer_wins", "eval"))
    after = shown["after"] if "accuracy" in str(shown.get("metric")) else {}
    low, high = finite(after.get("low")), finite(after.get("high"))
    if low is None and accuracy and accuracy.low and accuracy.high:
        low, high = finite(accuracy.low[-1]), finite(accuracy.high[-1])
    if low is None or high is None:
        return []
    found = []
    if low <= 0.5:
        word = "is worse than" if high < 0.5 else "is not distinguishable from"
        found.append(Concern(f"Its accuracy {word} guessing (0.5).", grave=True))
    if longer and longer.last is not None and low <= longer.last:
        word = "Worse than" if high < longer.last else "Not distinguishable from"
        text = f"{word} always preferring the longer response, which reaches {brief(longer.last)}."
        found.append(Concern(text, "Look at pairs where the shorter response is the better one.", grave=True))
    return found


def _not_finite(series: Collected) -> list[Concern]:
    bad = {}
    for (name, phase), one in series.items():
        steps = [s for s, v in zip(one.steps, one.values, strict=True) if math.isnan(v)]
        if steps:
            bad[name if phase == "train" else f"{name} ({phase})"] = (len(steps), steps[0])
    if not bad:
        return []
    shown = [f"{name} ({n}, first at step {step:,})" for name, (n, step) in list(bad.items())[:4]]
    more = [times(len(bad) - 4, "more metric")] if len(bad) > 4 else []
    return [Concern(f"Values that are not finite: {joined([*shown, *more])}. The charts leave a gap there.")]
