"""The first thing a reader sees: what was trained on what, whether it got better and by how much, what went wrong."""

import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from keel.report.folder import Row, RunFolder
from keel.report.glossary import recipe_title
from keel.report.series import Collected
from keel.report.verdict import Divergence, divergence, proxy_rose, verdict
from keel.report.words import brief, duration, finite, interval, joined, share, times

__all__ = ["Concern", "Headline", "between", "headline", "metric_name", "stages"]

NAMES = {"gold": "gold score", "gold/mean": "gold score", "score/mean": "proxy score"}
MODELS = ("policy", "model", "base_model", "reward_model")
DATA = ("data", "pairs", "prompts", "demonstrations", "train", "train_data")


@dataclass(frozen=True)
class Concern:
    """Something a reader should know before believing the curves; `grave` ones come first."""

    text: str
    remedy: str = ""
    grave: bool = False


@dataclass(frozen=True)
class Headline:
    """`title` is one sentence, `evidence` the numbers behind it, `subject` what was trained on what."""

    title: str
    evidence: str
    subject: str
    verdict: str
    concerns: tuple[Concern, ...]


def headline(run: RunFolder, series: Collected) -> Headline:
    """Put one run into plain words."""
    result = run.result.get("headline")
    shown: Row = result if isinstance(result, dict) and isinstance(result.get("after"), dict) else {}
    intervals, fall = verdict(shown) if shown else "none", divergence(series)
    judged = intervals
    if intervals == "worse" and str(shown.get("metric")).startswith("gold") and proxy_rose(series):
        judged = "overoptimised"
    elif fall:
        judged = "past_best" if intervals == "better" else "overoptimised"
    concerns = _overoptimised(fall, judged) + _concerns(run, series, shown)
    concerns.sort(key=lambda concern: not concern.grave)
    title, evidence = _title(run, shown, judged, fall), _evidence(shown, intervals)
    return Headline(title, evidence, _subject(run), judged, tuple(concerns))


def between(rows: list[tuple[str, Row]], metric: str, higher: bool = True) -> str:
    """One sentence over several runs: which ended best, or that the best two cannot be told apart."""
    known = [(label, row) for label, row in rows if finite(row.get("mean")) is not None]
    if len(known) < 2:
        return ""
    ranked = sorted(known, key=lambda item: item[1]["mean"], reverse=higher)
    (best, first), (second, other) = ranked[0], ranked[1]
    name, numbers = metric_name(metric), f"{interval(first)} against {interval(other)}"
    judged = verdict({"before": other, "after": first, "higher_is_better": higher})
    if judged == "better":
        return f"{best} ends with the best {name}: {numbers} of {second}, the next."
    if judged == "unknown":
        return f"{best} ends with the best {name}, {numbers} of {second}; without intervals this may be chance."
    return f"By {name}, {best} and {second} are not distinguishable: {numbers}; the intervals overlap."


def stages(gold: list[Row]) -> str:
    """One sentence over the stages of a demo: what the last one made of the first; empty if they are not known."""
    known = [row for row in gold if finite(row.get("mean")) is not None]
    if len(known) < 2:
        return ""
    first, last = known[0], known[-1]
    path, numbers = f"From {first.get('stage')} to {last.get('stage')}", f"{interval(first)} to {interval(last)}"
    return {
        "better": f"{path}, the gold score rose from {numbers}.",
        "worse": f"{path}, the gold score fell from {numbers}.",
        "unclear": f"{path}, the gold score is not distinguishable: {numbers}; the intervals overlap.",
        "unknown": f"{path}, the gold score went from {numbers}; no intervals were recorded, so this may be chance.",
    }[verdict({"before": first, "after": last})]


def metric_name(metric: Any) -> str:
    """A headline metric as it reads inside a sentence."""
    text = str(metric or "result").removeprefix("eval/")
    return NAMES.get(text, text.removesuffix("/mean").replace("/", " ").replace("_", " "))


def _title(run: RunFolder, shown: Row, judged: str, fall: Divergence | None) -> str:
    what = recipe_title(run.recipe)
    at = f" at step {run.last_step:,}" if run.last_step is not None else ""
    if run.status == "failed":
        return f"{what} failed{at}."
    if run.status == "unfinished":
        return f"{what} has not finished" + (f"; its last logged step is {run.last_step:,}." if at else ".")
    if judged == "overoptimised":
        when = f"after about step {fall.step:,} " if fall else ""
        return f"Over-optimisation: {when}the proxy score rose while the gold score fell."
    if not shown:
        return f"{what} was stopped{at}." if run.status == "stopped" else f"{what} finished without a headline number."
    name = metric_name(shown.get("metric"))
    before, after = (brief(_part(shown, side).get("mean")) for side in ("before", "after"))
    stopped = f" It was stopped{at}." if run.status == "stopped" else ""
    sentences = {
        "better": f"{what} improved the {name}, from {before} to {after}.",
        "worse": f"{what} made the {name} worse: from {before} to {after}.",
        "unclear": f"After {what}, the {name} is not distinguishable from before.",
        "past_best": f"{what} improved the {name}, from {before} to {after}, but went past its best.",
    }
    if judged in sentences:
        return sentences[judged] + stopped
    origin = f", from {before}" if _part(shown, "before") else ""
    return f"{what} ended with {_article(name)} {name} of {after}{origin}.{stopped}"


def _evidence(shown: Row, judged: str) -> str:
    if not shown:
        return ""
    name, before, after = metric_name(shown.get("metric")).capitalize(), _part(shown, "before"), _part(shown, "after")
    n = f", n = {after['n']:,}" if isinstance(after.get("n"), int) else ""
    numbers = f"{interval(before)} before, {interval(after)} after" if before else interval(after)
    change = f"; change {interval(shown['change'])}" if isinstance(shown.get("change"), dict) else ""
    overlap = {
        "unclear": "The change may be nothing: its interval includes zero." if change else "The intervals overlap.",
        "unknown": "Without an interval before and after, this alone does not say whether it got better."
        if before
        else "Nothing was measured before training, so this alone does not say whether it got better.",
    }.get(judged, "The interval of the change excludes zero." if change else "The intervals do not overlap.")
    better = "Higher is better." if shown.get("higher_is_better", True) else "Lower is better."
    with_n = f"mean and 95% interval{n}" if "[" in numbers else f"mean{n}"
    return f"{name}: {numbers}{change} ({with_n}). {overlap} {better}"


def _part(shown: Row, side: str) -> Row:
    value = shown.get(side)
    return value if isinstance(value, dict) else {}


def _article(word: str) -> str:
    return "an" if word[:1] in "aeiou" else "a"


def _subject(run: RunFolder) -> str:
    """What was trained on what, for how long: only what the run itself recorded."""
    model = next((name for key in MODELS if (name := _named(run.config.get(key)))), "")
    digests = run.environment.get("data")
    files = [PurePath(str(p)).name for p in digests] if isinstance(digests, dict) else []
    files = files or [PurePath(name).name for key in DATA if (name := _named(run.config.get(key)))]
    shown = files if len(files) <= 3 else [*files[:3], times(len(files) - 3, "more file")]
    steps = finite(run.result.get("steps")) or run.last_step
    parts = [f"{recipe_title(run.recipe)} of {model}" if model else recipe_title(run.recipe)]
    parts += [f"on {joined(shown)}"] if shown else []
    details = [times(int(steps), "step")] if steps else []
    details += [duration(run.result["seconds"])] if finite(run.result.get("seconds")) is not None else []
    details += [f"seed {run.environment['seed']}"] if "seed" in run.environment else []
    return " ".join(parts) + ("; " + ", ".join(details) if details else "") + "."


def _named(value: Any) -> str:
    if isinstance(value, dict):
        return next((_named(value[k]) for k in ("path", "name", "model", "folder") if _named(value.get(k))), "")
    return value if isinstance(value, str) and value != "none" else ""


def _concerns(run: RunFolder, series: Collected, shown: Row) -> list[Concern]:
    found = _ending(run) + _alarms(run)
    if run.recipe == "reward_model":
        found += _against_trivial_rules(shown, series)
    skipped = run.result.get("skipped")
    for key, count in skipped.items() if isinstance(skipped, dict) else ():
        if (finite(count) or 0) > 0:
            what = {
                "records": ("record was skipped", "records were skipped"),
                "truncated": ("record was truncated", "records were truncated"),
            }
            one, many = what.get(key, (f"skipped: {key}", f"skipped: {key}"))
            found.append(Concern(f"{times(int(count), one, many)}."))
    cut = series.get(("response/cut", "eval")) or series.get(("response/cut", "train"))
    if cut and cut.last is not None and cut.last > 0:
        text = f"{share(cut.last)} of the last responses were cut at the length limit."
        found.append(Concern(text, grave=cut.last >= 0.5))
    found += _not_finite(series)
    found += [Concern(f"{note}.") for note in run.notes]
    return found


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
        return [Concern(text, "Use the best checkpoint, not the last; raise kl_coef or stop earlier.", grave=True)]
    if judged == "overoptimised":
        text = "Over-optimisation: the proxy score rose, yet the gold score fell below where it began."
        return [Concern(text, "Do not use this policy; raise kl_coef or stop earlier.", grave=True)]
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
    after = _part(shown, "after") if "accuracy" in str(shown.get("metric")) else {}
    low = finite(after.get("low"))
    if low is None and accuracy and accuracy.low:
        low = accuracy.low[-1]
    if low is None:
        return []
    found = [Concern("Its accuracy is not distinguishable from guessing (0.5).", grave=True)] if low <= 0.5 else []
    if longer and longer.last is not None and low <= longer.last:
        reached = brief(longer.last)
        text = f"Not distinguishable from always preferring the longer response, which reaches {reached}."
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
