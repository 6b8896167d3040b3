"""A benchmark run in sentences: its number, what it was asked, and what weakens it."""

from keel.report.bench_parts import (
    SETS,
    asked,
    columns,
    count,
    goals,
    guess,
    headline_columns,
    headline_guess,
    is_bench,
    rule,
    sound,
)
from keel.report.folder import Row, RunFolder, part
from keel.report.verdict import verdict
from keel.report.words import brief, finite, joined, percent, share, times

__all__ = ["bench_doubts", "bench_evidence", "bench_notes", "bench_subject", "bench_title", "partial"]

MANY_TIES, MANY_FAILED, MANY_NEAR = 0.5, 0.01, 0.01
"""Shares of the comparisons from which ties, failures and near ties are named."""
FLIPS, UNREAD = 20.0, 0.02
"""Per cent of comparisons in which a judge minds the order, and share of its questions without an answer."""


def bench_title(run: RunFolder) -> str:
    """The number in one sentence; empty for any other run."""
    whole = sound(part(run.result, "headline")) if is_bench(run) else {}
    on = f"part of {_benchmark(run)}" if partial(run) else _benchmark(run)
    return f"{_name(run)} reaches {percent(whole)} on {on}." if whole else ""


def bench_evidence(run: RunFolder) -> str:
    """The columns behind the title, and what guessing gets."""
    if not bench_title(run):
        return ""
    told = [f"{name} {percent(sound(row))}" for name, row, _ in headline_columns(run) if sound(row)]
    known = headline_guess(run)
    words = f"Mean of {joined(told)}" if len(told) > 1 else f"{told[0].capitalize()}" if told else "The headline"
    guessing = "" if known is None else f"; a guess gets {share(known)}"
    return f"{words}; 95% intervals over prompts{guessing}. Higher is better; {rule(run)}."


def bench_subject(run: RunFolder) -> str:
    """What was asked of whom."""
    if not is_bench(run):
        return ""
    question, told = asked(run), part(asked(run), "coverage")
    items = [f"{here:,} {name}" for key, name in (("pair", "pairs"), ("list", "lists"))
             if (here := count(part(told, key), "here"))]
    prompts, responses = (count(question, key) for key in ("prompts", "responses"))
    parts = [f"{_benchmark(run)}: {joined(items)}" if items else _benchmark(run)]
    parts += [] if prompts is None else [f"of {times(prompts, 'prompt')}"]
    kind = {"judge": "judge", "ensemble": "ensemble"}.get(str(part(run.result, "scorer").get("kind")), "scorer")
    different = "" if responses is None else f", {times(responses, 'different response')}"
    seed = f"; seed {question['seed']}" if count(question, "seed") is not None else ""
    return f"{' '.join(parts)}{different}, put to the {kind} {_name(run)}{seed}."


def bench_doubts(run: RunFolder) -> list[tuple[str, str]]:
    """What may make the numbers worth nothing, and what to do."""
    if not is_bench(run):
        return []
    found = [(f"PARTIAL: {partial(run)}.", "Not comparable with numbers on the whole benchmark. Compare with runs on "
              "the same items, by keel bench-rm compare.")] if partial(run) else []
    judge = part(run.result, "scorer").get("kind") == "judge"
    if judge:
        found += _judge_doubts(part(part(run.result, "scorer"), "counts"))
    else:
        found += _no_better(run)
    totals = {key: sum(count(part(one.row, "counts"), key) or 0 for one in columns(run))
              for key in ("comparisons", "ties", "failed", "near_ties")}
    n = max(totals["comparisons"], 1)
    if totals["ties"] / n >= MANY_TIES:
        found.append((f"{share(totals['ties'] / n)} of the comparisons are ties: it hardly tells responses apart.",
                      "Ties count as wrong; see half credit for ties under other ways to count."))
    if totals["failed"] / n >= MANY_FAILED:
        found.append((f"{share(totals['failed'] / n)} of the comparisons failed, and count as wrong.",
                      "See what was counted; " + ("what the judge wrote is in calls.jsonl." if judge else
                                                  "the scores that failed are null in scores.jsonl.")))
    if totals["near_ties"] / n >= MANY_NEAR:
        found.append((f"{share(totals['near_ties'] / n)} of the comparisons are decided by rounding.",
                      "Score in float32."))
    return found


def bench_notes(run: RunFolder) -> list[str]:
    """What a reader should know, without doubting the numbers for it; and what the run should have recorded."""
    if run.recipe != "bench_rm" or not run.result:
        return []
    failed = sum(count(part(one.row, "counts"), "failed") or 0 for one in columns(run))
    odd = sum(count(part(one.row, "counts"), "unwinnable") or 0 for one in columns(run))
    found = [f"{times(failed, 'comparison')} failed and {_counts(failed)} as wrong"] if failed else []
    found += [f"{times(odd, 'item has', 'items have')} the same text on both sides; no scorer of texts gets them right"
              ] if odd else []
    missing = [words for words, known in (
        ("its headline", sound(part(run.result, "headline"))), ("what was asked", asked(run)),
        ("the accuracies of sets and goals", columns(run)), ("accuracies of scenarios", run.result.get("groups")),
        ) if not known and run.status == "finished"]
    return found + ([f"Not recorded, or damaged: {joined(missing)}"] if missing else [])


def partial(run: RunFolder) -> str:
    """How much of what was published is here; empty where all of it is, or nobody said how much there is."""
    told = part(asked(run), "coverage")
    if told.get("partial") is not True:
        return ""
    each = [(count(part(told, key), "here"), count(part(told, key), "published"), name)
            for key, name in (("pair", "pairs"), ("list", "lists"))]
    known = [f"{here:,} of {published:,} published {name}" for here, published, name in each
             if here is not None and published is not None]
    return joined(known) or "a part of the benchmark"


def _no_better(run: RunFolder) -> list[tuple[str, str]]:
    """Columns that do not beat a guess, and goals that do not beat the longer answer."""
    weak = [f"{one.name} ({percent(sound(part(one.row, 'micro')))} against {share(odds)})" for one in columns(run)
            if (odds := guess(one)) is not None and _at_most(part(one.row, "micro"), odds)]
    found = [(f"Not better than guessing: {joined(weak)}.", "The interval holds what a guess gets, or lies below it.")
             ] if weak else []
    micro = {one.goal: part(one.row, "micro") for one in columns(run) if one.set == "pair"}
    for goal, told in goals(run, "lengths").items():
        found += _against_longer(goal, sound(micro.get(goal, {})), sound(part(told, "longer_wins")))
    return found


def _against_longer(goal: str, accuracy: Row, longer: Row) -> list[tuple[str, str]]:
    judged = verdict({"before": longer, "after": accuracy})
    if judged not in ("worse", "unclear"):
        return []
    how = "worse than" if judged == "worse" else "no better, as far as these pairs can tell, than"
    name = SETS["pair"] if goal == "all" else f"{goal} {SETS['pair']}"
    return [(f"On {name} it is {how} always preferring the longer response: {percent(accuracy)} against "
             f"{percent(longer)}.", "See accuracy by length.")]


def _judge_doubts(told: Row) -> list[tuple[str, str]]:
    flips, first = finite(told.get("inconsistent_percent")), finite(told.get("first_place_percent"))
    asked_n, found = count(told, "asked") or 0, list[tuple[str, str]]()
    if flips is not None and flips >= FLIPS:
        place = "" if first is None else f"; the answer shown first won {brief(first)}% of the verdicts"
        found.append((f"In {brief(flips)}% of the comparisons the judge changed its verdict with the order of the two "
                      f"answers{place}.", "These count as wrong: a judge that tosses a coin gets 25% of the pairs, not "
                      "50%. Other ways to count give them a half."))
    for key, what in (("unparsed", "no verdict could be read"), ("failed", "no reply came")):
        n = count(told, key) or 0
        if asked_n and n / asked_n >= UNREAD:
            found.append((f"For {share(n / asked_n)} of the questions {what}; they count as wrong.",
                          "See calls.jsonl in the run folder."))
    return found


def _at_most(row: Row, odds: float) -> bool:
    low = sound(row).get("low")
    return low is not None and low <= odds


def _counts(n: int) -> str:
    return "counts" if n == 1 else "count"


def _name(run: RunFolder) -> str:
    return str(part(run.result, "scorer").get("name") or run.name)


def _benchmark(run: RunFolder) -> str:
    return str(asked(run).get("benchmark") or "the benchmark")
