"""The first thing a reader sees: what was trained on what, whether it got better and by how much, what went wrong."""

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from keel.report.audit import audit_evidence, audit_title
from keel.report.axis import axis_evidence, axis_title
from keel.report.bench_words import bench_evidence, bench_subject, bench_title
from keel.report.comparison import comparison_evidence, comparison_subject, comparison_title
from keel.report.concerns import Concern, concerns
from keel.report.contest import contest_evidence, contest_title
from keel.report.evaluation import evaluation_evidence, evaluation_subject, evaluation_title
from keel.report.folder import Row, RunFolder
from keel.report.glossary import recipe_title
from keel.report.groups_words import group_evidence
from keel.report.probes import probe_evidence, probe_title
from keel.report.series import Collected
from keel.report.solutions import steps_evidence
from keel.report.verdict import Divergence, divergence, proxy_rose, verdict
from keel.report.words import brief, duration, finite, interval, joined, times

__all__ = ["Headline", "baseline", "between", "headline", "metric_name", "stages"]

BRACKETS = re.compile(r"\s*\(([^()]*)\)$")
NAMES = {"score": "proxy score", "gold": "gold score", "gold/mean": "gold score", "score/mean": "proxy score"}
MODELS = ("policy", "model", "base_model", "reward_model")
DATA = ("data", "pairs", "prompts", "demonstrations", "train", "train_data")


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
    claimed: Row = result if isinstance(result, dict) else {}
    shown = claimed if finite(_part(claimed, "after").get("mean")) is not None else {}
    intervals, fall = verdict(shown) if shown else "none", divergence(series)
    judged = intervals
    if intervals == "worse" and str(shown.get("metric")).startswith("gold") and proxy_rose(series):
        judged = "overoptimised"
    elif fall:
        judged = "past_best" if intervals == "better" else "overoptimised"
    told = (contest_evidence, audit_evidence, probe_evidence, bench_evidence, comparison_evidence, evaluation_evidence,
            steps_evidence, axis_evidence)
    evidence = next((words for one in told if (words := one(run))), "") or _evidence(shown, intervals)
    evidence = " ".join(text for text in (evidence, group_evidence(run)) if text)
    title = _title(run, shown, judged, fall)
    return Headline(title, evidence, _subject(run), judged, tuple(concerns(run, series, shown, judged)))


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
    """A headline metric as it reads inside a sentence, without what it says in brackets."""
    text = BRACKETS.sub("", str(metric or "result")).removeprefix("eval/")
    if " " in text:  # words already, where a slash belongs to a path
        return text
    return NAMES.get(text, text.removesuffix("/mean").replace("/", " ").replace("_", " "))


def baseline(metric: Any) -> str:
    """What `before` holds where it is not the model before training: "accuracy (before: the longer answer wins)"."""
    found = BRACKETS.search(str(metric or ""))
    return found[1].removeprefix("before:").strip() if found and found[1].startswith("before:") else ""


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
    titles = (probe_title, bench_title, comparison_title, evaluation_title, axis_title)
    if own := next((words for one in titles if (words := one(run))), ""):
        return own
    if not shown:
        return f"{what} was stopped{at}." if run.status == "stopped" else f"{what} finished without a headline number."
    outcome = contest_title(run, judged) or audit_title(run) or _outcome(what, shown, judged)
    return outcome + (f" It was stopped{at}." if run.status == "stopped" else "")


def _outcome(what: str, shown: Row, judged: str) -> str:
    """The headline number as a sentence: against a baseline, against before, or alone."""
    name = metric_name(shown.get("metric"))
    before, after = (brief(_part(shown, side).get("mean")) for side in ("before", "after"))
    ended = f"{what} ended with {_article(name)} {name} of {after}"
    if rule := baseline(shown.get("metric")):
        against = {"better": "better than", "worse": "worse than", "unclear": "not distinguishable from"}
        return f"{ended}, {against.get(judged, 'against')} “{rule}” at {before}."
    origin = f", from {before}" if finite(_part(shown, "before").get("mean")) is not None else ""
    sentences = {
        "better": f"{what} improved the {name}, from {before} to {after}.",
        "worse": f"{what} made the {name} worse: from {before} to {after}.",
        "unclear": f"After {what}, the {name} is not distinguishable from before.",
        "past_best": f"{what} improved the {name}, from {before} to {after}, but went past its best.",
    }
    return sentences.get(judged, f"{ended}{origin}.")


def _evidence(shown: Row, judged: str) -> str:
    if not shown:
        return ""
    name, before, after = metric_name(shown.get("metric")), _part(shown, "before"), _part(shown, "after")
    name = name[:1].upper() + name[1:]  # `capitalize` would write F1 small
    n = f", n = {after['n']:,}" if isinstance(after.get("n"), int) else ""
    earlier = f"for “{rule}”" if (rule := baseline(shown.get("metric"))) else "before"
    known = finite(before.get("mean")) is not None
    numbers = f"{interval(before)} {earlier}, {interval(after)} after training" if known else interval(after)
    change = f"; change {interval(shown['change'])}" if isinstance(shown.get("change"), dict) else ""
    overlap = {
        "unclear": "The change may be nothing: its interval includes zero." if change else "The intervals overlap.",
        "unknown": "Without an interval before and after, this alone does not say whether it got better."
        if known
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
    if own := bench_subject(run) or comparison_subject(run) or evaluation_subject(run):
        return own
    model = next((name for key in MODELS if (name := _named(run.config.get(key)))), "")
    model += f" against {other}" if (other := _named(run.config.get("opponent"))) else ""
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
