"""What the groups of a run are and what became of them, in sentences; and what to beware of."""

import math
from collections.abc import Sequence

from keel.report.evaluation_charts import known
from keel.report.folder import Row, RunFolder, part, rows
from keel.report.groups_course import Cast, cast, change, recent
from keel.report.series import Collected
from keel.report.words import brief, finite, interval, joined, share, times

__all__ = ["group_evidence", "group_notes", "group_says"]

CHANCE, SAME = 0.1, 0.7
"""Adjusted Rand index up to which groups are not the known labels, and from which on they nearly are."""
FADED = 0.05
"""Mean size of shaping per unit of groups.coef, below which groups act no more."""
SETTLED = 0.8
"""Part of groups.floor above which a group counts as held by it: a quadratic floor settles a little below itself."""
NAMED = 5
"""Labels that a note names."""
CLOSED = 0.1
"""Gap in standard deviations of the returns, below which it is closed."""
SHAPES = ("variance", "low_only", "worst", "vrex", "cvar")
"""Objectives that add to advantages."""
LEVELS = ("variance", "vrex")
"""Objectives that also take from the highest group."""


def group_says(run: RunFolder, series: Collected, who: Cast) -> tuple[str, ...]:
    """The sentences above the portraits."""
    said = [_agreement(run, series, who), _trajectory(run, who), _length(run, who), _order(run, who),
            _gap(series, who), _raw(series, who), _price(series, who), _swaps(run, series, who)]
    return tuple(text for text in said if text)


def group_notes(run: RunFolder, series: Collected) -> list[tuple[str, str, bool]]:
    """What to know of a run's groups, what to do, and whether that is grave."""
    who = cast(run, series)
    if who is None:
        return []
    found = [*_levelled(run, series, who), *_small(run, series, who), *_empty(run, who), *_faded(run, series)]
    if not run.groups and run.status == "finished":
        found.append(("There is no groups.json, so nothing tells what the groups are.",
                      "It is written at the end where there are held-out prompts" + (
                          "." if who.inferred else
                          " and, of known groups, where one of these prompts has the label of a group."), False))
    return found


def group_evidence(run: RunFolder) -> str:
    """How the groups ended on held-out prompts, in one sentence."""
    for key, name in (("gold", "Gold score"), ("score", "Score")):
        means = {str(row.get("name")): known(part(row, key)) for row in rows(run.groups, "groups")}
        ranked = sorted((row["mean"], label) for label, row in means.items() if row)
        if len(ranked) > 1:
            inferred = run.groups.get("source") == "inferred"
            ends = [f"{interval(means[label])} in {f'group {label}' if inferred else f'“{label}”'}"
                    for _, label in (ranked[0], ranked[-1])]
            return f"{name} by group on held-out prompts: from {' to '.join(ends)}."
    return ""


def _agreement(run: RunFolder, series: Collected, who: Cast) -> str:
    told = part(run.groups, "agreement")
    rand, shared = finite(told.get("rand")), finite(told.get("information"))
    of = f"on {times(int(n), 'held-out prompt')}" if (n := finite(run.groups.get("n_prompts"))) else "held out"
    if rand is None:
        rand, shared = (recent(series.get((name, "train"))) for name in ("groups/rand", "groups/information"))
        of = "in the last quarter of the phases"
    if not who.inferred or not math.isfinite(rand):
        return ""
    # Information is a plug-in estimate, so nothing follows from it: labels that are all different make it 0.5.
    more = "" if shared is None or not math.isfinite(shared) else (
        f" Shared information is {brief(shared)}; chance alone raises it above 0, the more so with many labels or few "
        "responses, so trust the Rand index.")
    numbers = f"(adjusted Rand {brief(rand)}, {of}; 0 is chance, 1 the same split)"
    column = f"the known labels in “{run.groups.get('column') or part(run.config, 'groups').get('column')}”"
    if rand <= CHANCE:
        return f"The groups are not {column} {numbers}: what they are, words and examples have to tell.{more}"
    if rand >= SAME:
        return f"The groups are nearly {column} {numbers}.{more}"
    labels = run.groups.get("labels")
    several = len(labels) if isinstance(labels, list) else 0
    most = (f" {len(who.names)} groups cannot be the same split as {several} labels." if several > len(who.names)
            else "")
    return f"The groups have something of {column}, and are not the same {numbers}.{most}{more}"


def _trajectory(run: RunFolder, who: Cast) -> str:
    level = run.groups.get("level") or part(run.config, "groups").get("level")
    if not who.inferred or level != "trajectory":
        return ""
    ends = [known(part(row, "score")) for row in _ends(run, who)]
    numbers = (f" ({brief(ends[0]['mean'])} in {who.called(who.names[0])}, {brief(ends[-1]['mean'])} in "
               f"{who.called(who.names[-1])})" if len(ends) == 2 and all(ends) else "")
    marked = [part(row, "words").get("prompt") for row in rows(run.groups, "groups")]
    bare = " No word marks the prompts of any group." if marked and not any(marked) else ""
    return (f"Responses were grouped, not prompts. Such groups follow the score{numbers}, as they are found by what "
            f"splits it; that alone makes them no kinds of prompts.{bare}")


def _length(run: RunFolder, who: Cast) -> str:
    """Both differences in units of their own intervals, so that tokens and scores compare."""
    ends = _ends(run, who)
    if len(ends) != 2 or not who.inferred:  # what known groups are needs no guess
        return ""
    tokens, scores = ([known(part(row, key)) for row in ends] for key in ("length", "score"))
    apart, scored = _apart(tokens), _apart(scores)
    if apart is None or scored is None or apart <= max(1.0, scored):
        return ""
    low, high = (who.called(name) for name in (who.names[0], who.names[-1]))
    return (f"Measured by their intervals, {low} and {high} differ more in length ({_pair(tokens)} tokens) than in "
            f"score ({_pair(scores)}): they may be short and long responses, whatever else they are.")


def _order(run: RunFolder, who: Cast) -> str:
    """Where gold and score do not agree on who is left behind."""
    found = {str(row.get("name")): [known(part(row, key)) for key in ("score", "gold")]
             for row in rows(run.groups, "groups")}
    if len(found) < 2 or not all(score and gold for score, gold in found.values()):
        return ""
    by_score, by_gold = (min(found, key=lambda name: found[name][i]["mean"]) for i in (0, 1))
    one, other = found[by_score][1], found[by_gold][1]
    if by_score == by_gold or (_apart([one, other]) or 0.0) <= 1.0:
        return ""
    low, left = who.called(by_score), who.called(by_gold)
    return (f"By score {low} is lowest, by gold {left} is (gold {brief(other['mean'])}, that of {low} "
            f"{brief(one['mean'])}): the order of the groups, and with it who is helped, is the reward model's.")


def _gap(series: Collected, who: Cast) -> str:
    found = change(series.get(("groups/gap", "train")))
    if found is None:
        return ""
    ends = f"{brief(found.first)} to {brief(found.last)} standard deviations, first to last quarter of the phases"
    told = {1: f"grew ({ends})", -1: f"narrowed ({ends})", 0: f"did not clearly change ({ends})"}[found.direction]
    head = " The head that finds the groups learned meanwhile, which alone widens it." if who.inferred and (
        found.direction > 0) else ""
    return f"The gap between the lowest and the highest return {told}.{head}"


def _raw(series: Collected, who: Cast) -> str:
    """Standardised returns sum to about zero, so that raw scores alone say whether everyone gained."""
    told = [f"from {brief(found.first)} to {brief(found.last)} in {who.called(name)}" for name in
            (who.names[0], who.names[-1]) if (found := change(series.get((f"group/{name}/score", "train"))))]
    return f"Meanwhile the raw score went {' and '.join(told)}." if len(told) == 2 else ""


def _price(series: Collected, who: Cast) -> str:
    low, high = (recent(series.get((f"group/{name}/kl_coef", "train"))) for name in (who.names[0], who.names[-1]))
    if not math.isfinite(low + high) or brief(low) == brief(high):
        return ""
    return (f"In the last quarter of the phases a nat of drift cost {brief(low)} in {who.called(who.names[0])} "
            f"and {brief(high)} in {who.called(who.names[-1])}.")


def _swaps(run: RunFolder, series: Collected, who: Cast) -> str:
    one = series.get(("groups/swaps", "train"))
    if one is None or not one.last:
        return ""
    told = f"The order of the groups changed {times(round(one.last), 'time')}"
    if who.inferred:
        return f"{told}; numbers follow the order, so a curve can pass from one group to another."
    same = part(run.config, "groups").get("kl") == "equal"
    return f"{told}." if same else (
        f"{told}. A group's price of drift follows its place: it is highest for the highest.")


def _levelled(run: RunFolder, series: Collected, who: Cast) -> list[tuple[str, str, bool]]:
    """Levelling down: the highest group loses raw score, the lowest gains none."""
    groups = part(run.config, "groups")
    changes = {name: found for name in who.names if (found := change(series.get((f"group/{name}/score", "train"))))}
    if len(changes) < 2 or groups.get("objective") == "none":
        return []
    names = [name for name in who.names if name in changes]
    if not who.inferred:  # labels stay with their group: the highest is who was highest before
        names.sort(key=lambda name: changes[name].first)
    low, high = names[0], names[-1]
    if changes[high].direction >= 0 or changes[low].direction > 0:
        return []
    text = (f"Levelling down: from the first to the last quarter of the phases the raw score of {who.called(high)} "
            f"fell from {brief(changes[high].first)} to {brief(changes[high].last)}, and that of {who.called(low)} did "
            f"not rise ({brief(changes[low].first)} to {brief(changes[low].last)}).")
    if who.inferred:
        text += " Inferred groups go by rank, so the head's regrouping can look the same."
    kinder = " or take groups.objective = low_only or dro" if groups.get("objective") in LEVELS else ""
    return [(text, f"Lower groups.coef{kinder}.", True)]


def _small(run: RunFolder, series: Collected, who: Cast) -> list[tuple[str, str, bool]]:
    floor = finite(part(run.config, "groups").get("floor"))
    if not who.inferred or floor is None:
        return []
    masses = {name: recent(series.get((f"group/{name}/mass", "train"))) for name in who.names}
    told = joined([f"{who.called(name)} held {share(mass)}" for name, mass in masses.items() if mass < SETTLED * floor])
    if not told:
        return []
    return [(f"{told[0].upper()}{told[1:]} of the responses in the last quarter of the phases, below groups.floor = "
             f"{share(floor)}.", "A few odd responses can make such a group: read its examples. Raise "
             "groups.floor_coef, set groups.tails or take groups.variance = weighted.", False)]


def _empty(run: RunFolder, who: Cast) -> list[tuple[str, str, bool]]:
    names = [who.called(str(row.get("name"))) for row in rows(run.groups, "groups") if row.get("n") == 0]
    if who.inferred:
        return [(f"To {name} belongs no held-out response before all other groups.", "Its portrait is empty.", False)
                for name in names]
    if not names:
        return []
    others = [f"one of {len(names) - NAMED} others"] if len(names) > NAMED + 1 else []
    *first, last = [*names[: NAMED if others else None], *others]
    told = f"{', '.join(first)} or {last}" if first else last
    return [(f"No held-out prompt has the label {told}.", "Raise eval_prompts to see how it is answered.", False)]


def _faded(run: RunFolder, series: Collected) -> list[tuple[str, str, bool]]:
    groups = part(run.config, "groups")
    coef, shaping = (recent(series.get((f"groups/{name}", "train"))) for name in ("coef", "shaping"))
    if groups.get("objective") not in SHAPES or groups.get("estimator") != "shaping" or not coef > 0:
        return []
    if not shaping < FADED * coef:
        return []
    text = ("The groups act no more: in the last quarter of the phases in which something is added to advantages, that "
            f"was {brief(shaping)} on average, at groups.coef = {brief(coef)}.")
    if (gap := recent(series.get(("groups/gap", "train")))) < CLOSED:
        return [(f"{text} Their returns are {brief(gap)} standard deviations apart, so there is nothing to even out.",
                 "", False)]
    return [(f"{text} Returns inside each group are nearly the same, as when the head foresees every score.",
             "Then it has found scores, not groups: take fewer groups.steps, a lower groups.logit_bound or "
             "groups.level = prompt.", False)]


def _ends(run: RunFolder, who: Cast) -> list[Row]:
    """What groups.json says of the lowest and the highest group."""
    named = {str(row.get("name")): row for row in rows(run.groups, "groups")}
    return [named[name] for name in (who.names[0], who.names[-1]) if name in named]


def _apart(ends: Sequence[Row]) -> float | None:
    """The difference of two means in units of its own interval; none where an interval is unknown or has no width."""
    if not all(len(row) == 3 for row in ends):
        return None
    half = math.hypot(*((row["high"] - row["low"]) / 2 for row in ends))
    return abs(ends[0]["mean"] - ends[1]["mean"]) / half if half else None


def _pair(ends: Sequence[Row]) -> str:
    return f"{brief(ends[0]['mean'])} against {brief(ends[1]['mean'])}"
