"""A data audit: what the voters of `keel strength` say about the labels, as charts, tables and sentences."""

from dataclasses import dataclass
from typing import Any

from keel.report.audit_charts import charts
from keel.report.audit_tables import Table, tables
from keel.report.folder import Row, RunFolder, part, rows
from keel.report.plots import Plot
from keel.report.words import DASH, brief, finite, number, share, times

__all__ = ["Audit", "Card", "audit_evidence", "audit_title", "audits", "doubts"]

OPEN = 10  # suspects shown at once; the others unfold
SHOWN = 40  # suspects on the page; all of them are in suspects.jsonl
LONGEST = 2000  # characters of a text on the page
WEAK, STRONG = 0.55, 0.95  # accuracy of the voters: below, they learned nothing; above, they may remember labels
LIKES_LENGTH = 0.1
"""How much more often than the labels the voters may side with the longer response before the page says so."""


@dataclass(frozen=True)
class Card:
    """One pair: what was asked, both responses, and what is to be said about it."""

    name: str
    facts: str
    reasons: tuple[str, ...]
    prompt: tuple[tuple[str, str], ...]
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Audit:
    """One run. `examples`: heading and cards of each quantile, weakest first."""

    name: str
    plots: tuple[Plot, ...]
    tables: tuple[Table, ...]
    suspects: tuple[Card, ...]
    more_suspects: tuple[Card, ...]
    suspects_words: str
    examples: tuple[tuple[str, tuple[Card, ...]], ...]


def audits(runs: list[RunFolder]) -> list[Audit]:
    """The audits among these runs, as far as they can be drawn."""
    return [_audit(run, run.name if len(runs) > 1 else "") for run in runs if _numbers(run)]


def audit_title(run: RunFolder) -> str:
    """The share of labels that the voters side against, in one sentence; empty for any other run."""
    against = finite(_numbers(run).get("against"))
    return "" if against is None else f"The voters side against {share(against)} of the labels."


def audit_evidence(run: RunFolder) -> str:
    """The numbers behind the title."""
    whole = _numbers(run)
    if not whole:
        return ""
    n, k, shown = whole["n"], run.audit.get("n_votes"), run.result.get("headline")
    after = shown.get("after") if isinstance(shown, dict) else None
    low, high = (finite(after.get(end)) if isinstance(after, dict) else None for end in ("low", "high"))
    spread = "" if low is None or high is None else f" (95% interval over prompts: {share(low)} to {share(high)})"
    against = round(n * whole["against"])
    found = [f"{against:,} of {times(n, 'pair')}{spread}; {times(int(finite(k) or 0), 'vote')} each"]
    right = _accuracies(run)
    if right:
        found.append(f"single voters agree with {share(min(right))} to {share(max(right))} of the labels")
    found.append(f"about {share(whole['divided'])} of the pairs divide the voters")
    return "; ".join(found) + "."


def doubts(run: RunFolder) -> list[tuple[str, str]]:
    """What weakens the audit, and what to do about it."""
    whole, right = _numbers(run), _accuracies(run)
    if not whole or not right:
        return []
    found, mean = [], sum(right) / len(right)
    folds = run.config.get("folds")
    if mean < WEAK:
        found.append((f"The voters agree with {share(mean)} of the labels, little more than a coin would: their votes "
                      "say next to nothing.", "Raise the learning rate, give more pairs or a stronger trunk."))
    if mean > STRONG and not folds:
        found.append((f"The voters agree with {share(mean)} of the labels that they learned from: they may remember "
                      "wrong labels instead of doubting them.",
                      "Lower epochs or the learning rate, or set folds so that nobody judges what it has seen."))
    likes = part(part(run.audit, "lengths"), "prefers_longer")
    labels, voters = finite(likes.get("labels")), finite(likes.get("voters"))
    if labels is not None and voters is not None and voters - labels > LIKES_LENGTH:
        found.append((f"The voters side with the longer response in {share(voters)} of the pairs, the labels in "
                      f"{share(labels)}: some of their doubts are about length.",
                      "Look at the suspects whose chosen response is short before cleaning."))
    n = finite(part(run.audit, "duplicates").get("n_in_contradictions"))
    if n:
        found.append((f"{times(int(n), 'pair')} contradict each other: their labels cannot all be right.",
                      "They stand in suspects.jsonl with the pairs that they contradict."))
    return found


def _audit(run: RunFolder, name: str) -> Audit:
    cards = tuple(_suspect(row) for row in run.suspects[:SHOWN])
    total = int(finite(run.result.get("n_suspects")) or len(cards))
    words = (f"The {len(cards)} weakest of {total:,}; suspects.jsonl holds them all." if total > len(cards) else
             "All of them; suspects.jsonl holds them too.")
    examples = [(_heading(row, run), tuple(_example(pair, run) for pair in rows(row, "pairs")))
                for row in rows(run.audit, "examples")]
    return Audit(name, tuple(charts(run)), tuple(tables(run)), cards[:OPEN], cards[OPEN:], words if cards else "",
                 tuple(examples))


def _heading(row: Row, run: RunFolder) -> str:
    quantile, n = (int(finite(x) or 0) for x in (row.get("quantile"), run.audit.get("n_quantiles")))
    place = {0: "The weakest", n - 1: "The strongest"}.get(quantile, f"{quantile + 1} of {n}")
    told = next((one for one in rows(run.audit, "quantiles") if one.get("quantile") == row.get("quantile")), {})
    return f"{place}: strength {brief(told.get('low'))} to {brief(told.get('high'))}"


def _example(pair: Row, run: RunFolder) -> Card:
    n = int(finite(run.audit.get("n_votes")) or 0)
    facts = f"strength {_with_spread(pair)}; {number(pair.get('votes_for'))} of {n} voters for the label"
    wrong = pair.get("wrong")
    return _card(pair, facts + (f"; the label is {_right(wrong)}" if isinstance(wrong, bool) else ""), ())


def _right(wrong: bool) -> str:
    """What a simulation knows of a label."""
    return "really wrong" if wrong else "really right"


def _suspect(row: Row) -> Card:
    given = part(row, "meta").get("reasons")
    reasons = tuple(str(reason) for reason in given) if isinstance(given, list) else ()
    votes = {"mean": row.get("strength_mean"), "std": row.get("strength_std")}
    wrong = part(row, "truth").get("wrong_label")
    truth = f"; the label is {_right(wrong)}" if isinstance(wrong, bool) else ""
    return _card(row, f"strength {_with_spread(votes)}{truth}", reasons)


def _with_spread(votes: Row) -> str:
    return f"{brief(votes.get('mean'))} ± {brief(votes.get('std'))}"


def _card(row: Row, facts: str, reasons: tuple[str, ...]) -> Card:
    prompt = row.get("prompt")
    turns = tuple((str(turn.get("role", "")), _short(turn.get("content"))) for turn in rows(row, "prompt"))
    if isinstance(prompt, str):
        turns = (("text", _short(prompt)),)
    return Card(str(row.get("id", DASH)), facts, reasons, turns, _said(row.get("chosen")), _said(row.get("rejected")))


def _said(value: Any) -> str:
    """A response, which keel's files hold as a list of one turn."""
    if isinstance(value, list):
        return "\n".join(_short(turn.get("content")) for turn in value if isinstance(turn, dict))
    return _short(value)


def _short(text: Any) -> str:
    whole = str(text or "")
    more = len(whole) - LONGEST
    return whole if more <= 0 else f"{whole[:LONGEST]} [{times(more, 'more character')} in the file]"


def _numbers(run: RunFolder) -> Row:
    """The row about all pairs, if the numbers that every part of the page needs are in it."""
    whole = part(run.audit, "all") if run.recipe == "strength" else {}
    needed = ("n", "mean", "std", "against", "divided")
    return whole if all(finite(whole.get(key)) is not None for key in needed) else {}


def _accuracies(run: RunFolder) -> list[float]:
    """How often each voter agrees with the labels."""
    return [x for row in rows(run.result, "members") if (x := finite(row.get("accuracy"))) is not None]
