"""Solutions with their steps coloured by score, and how a judge of steps does beside what knows no better."""

from collections.abc import Sequence
from dataclasses import dataclass

from keel.report.audit_tables import Table
from keel.report.evaluation_charts import known, number_scale, signed
from keel.report.folder import Row, RunFolder, part, rows
from keel.report.lines import Chart, Strip, dot
from keel.report.plots import Plot, Series, point_plot
from keel.report.words import DASH, brief, finite, interval, number, percent, share, times

__all__ = ["Panel", "Solution", "Step", "panels", "steps_evidence"]

MOST_SHOWN = 40
OPEN = 6
"""Solutions that are open from the start."""
MOST_STEPS = 60
LONGEST = 1500
"""Characters of a step or a prompt on the page."""
MOST_DEPTHS = 20
FEWEST = 10
"""Steps of one depth that are worth a point."""
N_SHADES, N_COLORS = 10, 7
HALF = 0.5
RIGHT, WRONG = "✓", "✗"


@dataclass(frozen=True)
class Step:
    """One step as it is drawn. `shade`: 0 wrong to 10 right, none where there is no score; `marks`: class and words."""

    number: int
    shade: int | None
    score: str
    label: str
    text: str
    marks: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Solution:
    """A prompt with the steps that answer it. `told`: outcome and errors in words; `more`: steps not shown."""

    id: str
    prompt: str
    told: str
    steps: tuple[Step, ...]
    more: int


@dataclass(frozen=True)
class Panel:
    """Of one run. Charts and tables are empty where nothing is known; `kind`: what a score is; `found`: by search."""

    name: str
    says: tuple[str, ...]
    first: Chart | None
    parts: Table
    depths: Plot | None
    search: Plot | None
    found: Table
    kind: str
    shown: tuple[Solution, ...]
    more: tuple[Solution, ...]
    counted: str


@dataclass(frozen=True)
class _Scale:
    """Where a score lies between wrong and right. `reach`: of scores that are no probabilities the largest size."""

    reach: float | None

    def place(self, score: float) -> float:
        return score if self.reach is None else HALF + HALF * score / self.reach


def panels(runs: list[RunFolder]) -> list[Panel]:
    """The runs that judged steps, whatever can be read of them."""
    return [_panel(run, run.name if len(runs) > 1 else "") for run in runs
            if _judged(run) or part(run.result, "outcome") or _table(run) or _solutions(run)]


def steps_evidence(run: RunFolder) -> str:
    """The first errors found, beside the best that knows no better."""
    return _says(run)[0] if run.recipe == "process_rm evaluate" and _says(run) else ""


def _panel(run: RunFolder, name: str) -> Panel:
    told = _solutions(run)
    scores = [x for row in told for step in rows(row, "steps") if (x := finite(step.get("score"))) is not None]
    beyond = [abs(x) for x in scores if not 0 <= x <= 1]
    scale = _Scale(max(map(abs, scores)) if beyond else None)
    order = sorted(range(len(told)), key=lambda i: (-_disagreement(told[i], scale), i))
    labels = any(_truth(step.get("label")) is not None for row in told for step in rows(row, "steps"))
    picked = tuple(_solution(told[i], scale) for i in order[:MOST_SHOWN])
    judged = any(_disagreement(row, scale) >= 0 for row in told)
    kind = ("the probability that it is right" if not beyond else
            f"a reward; colours run from {number(-(scale.reach or 0))} to {number(scale.reach)}")
    kind += f"; {RIGHT} and {WRONG} are labels" if labels else ""
    how = "the worst disagreements first" if judged else "in the order of the file"
    counted = (f"{len(picked)} of {times(len(told), 'solution')}, {how}." if len(picked) < len(told) else
               f"{times(len(told), 'solution')}, {how}.")
    return Panel(name, tuple(_says(run)), _first(run), _parts(run), _depths(run), _curves(run), _search(run), kind,
                 picked[:OPEN], picked[OPEN:], counted)


def _judged(run: RunFolder) -> Row:
    return part(run.result, "steps")


def _solutions(run: RunFolder) -> list[Row]:
    """Rows of solutions.jsonl; of a run with step rewards the last samples of the prompts."""
    if run.solutions:
        return [row for row in run.solutions if rows(row, "steps")]
    found = []
    for _, last in run.samples.values():
        steps = [{"text": one[0], "score": one[1]} for one in last.get("steps") or []
                 if isinstance(one, list) and len(one) == 2] if isinstance(last.get("steps"), list) else []
        if steps:
            found.append({**last, "steps": steps})
    return found


# --- one solution ----------------------------------------------------------------------------------------------------


def _disagreement(row: Row, scale: _Scale) -> float:
    """The largest distance of a score from its label; without labels that of the lowest score from the outcome; -1."""
    found = [(scale.place(score), finite(step.get("label"))) for step in rows(row, "steps")
             if (score := finite(step.get("score"))) is not None]
    gaps = [abs(place - label) for place, label in found if label is not None]
    if gaps:
        return max(gaps)
    outcome = row.get("outcome")
    return abs(min(place for place, _ in found) - outcome) if found and isinstance(outcome, bool) else -1.0


def _solution(row: Row, scale: _Scale) -> Solution:
    steps = rows(row, "steps")
    first, predicted = (_place(row.get(key)) for key in ("first_error", "predicted"))
    drawn = tuple(_step(k, step, scale, _marks(k, first, predicted)) for k, step in enumerate(steps[:MOST_STEPS]))
    return Solution(str(row.get("id")), _cut(_text(row.get("prompt"))), _told(row, first, predicted), drawn,
                    len(steps) - len(drawn))


def _place(value: object) -> int | None:
    """Index of a step, -1 for none of them; none where that is not known."""
    x = finite(value)
    return None if x is None or x < -1 else int(x)


def _marks(k: int, first: int | None, predicted: int | None) -> tuple[tuple[str, str], ...]:
    if k == first == predicted:
        return (("both", "first error, found"),)
    told = {"label": ("first error", first), "guess": ("called wrong", predicted)}
    return tuple((kind, words) for kind, (words, place) in told.items() if k == place)


def _step(k: int, row: Row, scale: _Scale, marks: tuple[tuple[str, str], ...]) -> Step:
    score, label = finite(row.get("score")), _truth(row.get("label"))
    shade = None if score is None else min(N_SHADES, max(0, round(N_SHADES * scale.place(score))))
    named = "" if label is None else RIGHT if label == 1 else WRONG if label == 0 else number(label, 2)
    return Step(k + 1, shade, number(score, 2), named, _cut(_text(row.get("text"))), marks)


def _truth(value: object) -> float | None:
    return float(value) if isinstance(value, bool) else finite(value)


def _told(row: Row, first: int | None, predicted: int | None) -> str:
    outcome = row.get("outcome")
    told = [str(row["method"])] if row.get("method") else []
    told += [f"the answer is {'right' if outcome else 'wrong'}"] if isinstance(outcome, bool) else []
    told += [f"first error: {_named(first)}"] if first is not None else []
    told += [f"judged: {_named(predicted)}"] if predicted is not None and first is not None else []
    return ", ".join(told)


def _named(place: int) -> str:
    return "none" if place < 0 else f"step {place + 1}"


def _text(value: object) -> str:
    """A text, or the turns of a conversation; one turn stands for itself."""
    if not isinstance(value, list):
        return "" if value is None else str(value)
    turns = [(str(turn.get("role") or ""), str(turn.get("content") or "")) for turn in value if isinstance(turn, dict)]
    return turns[0][1] if len(turns) == 1 else "\n".join(f"{role}: {text}" for role, text in turns)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + f" … [{len(text) - LONGEST:,} more characters]"


# --- all of them -----------------------------------------------------------------------------------------------------


def _says(run: RunFolder) -> list[str]:
    told = _judged(run)
    said = [_found(told), _accuracy(told), _unknown(told), _outcomes(part(run.result, "outcome"))]
    return [text for text in said if text]


def _found(told: Row) -> str:
    found = part(told, "first_error")
    f1 = known(part(found, "f1"))
    if not f1:
        return ""
    wrong, right = (finite(found.get(key)) for key in ("accuracy_wrong", "accuracy_right"))
    parts = "" if wrong is None or right is None else (
        f": the first error is found in {share(wrong)} of {times(_count(found, 'n_wrong'), 'wrong solution')}, and "
        f"{share(right)} of {times(_count(found, 'n_right'), 'right one')} pass without a complaint")
    gap = part(told, "difference")
    against = "" if not known(gap) else (
        f" Less the best baseline ({gap.get('over')}): {signed(gap)}."
        + (" The interval includes zero." if (known(gap).get("low", 0) <= 0 <= known(gap).get("high", 0)) else ""))
    return f"F1 of the first error is {interval(f1)}{parts}.{against}"


def _accuracy(told: Row) -> str:
    accuracy, commonest = part(told, "accuracy"), finite(told.get("accuracy_majority"))
    if not known(accuracy):
        return ""
    beside = "" if commonest is None else f"; the more common label for all would be so for {share(commonest)}"
    return f"Of {times(_count(accuracy, 'n'), 'labelled step')} {percent(accuracy)} are judged as labelled{beside}."


def _unknown(told: Row) -> str:
    unknown, unscored = _count(told, "n_unknown"), _count(told, "n_unscored")
    said = (f"{times(unknown, 'solution')} of {_count(told, 'n'):,} with steps that nobody judged before an error "
            f"{'has' if unknown == 1 else 'have'} no known first error and {'is' if unknown == 1 else 'are'} left out "
            f"of F1." if unknown else "")
    cut = (f"{times(unscored, 'step')} had no room and {'has' if unscored == 1 else 'have'} no score." if unscored
           else "")
    return " ".join(text for text in (said, cut) if text)


def _outcomes(told: Row) -> str:
    area, steps = known(part(told, "auc")), known(part(part(part(told, "baselines"), "number of steps"), "auc"))
    if not area:
        return ""
    beside = f"; the number of steps alone reaches {interval(steps)}" if steps else ""
    return (f"Of {times(_count(told, 'n'), 'solution')} with a known outcome, right ones score above wrong ones with "
            f"an area under the curve of {interval(area)}{beside}. A coin reaches 0.5.")


def _count(row: Row, key: str) -> int:
    return int(finite(row.get(key)) or 0)


def _first(run: RunFolder) -> Chart | None:
    """F1 of the judge and of the baselines on one track."""
    told = _judged(run)
    named = {"this judge": part(told, "first_error"), **_baselines(told)}
    found = {name: row for name, row in named.items() if known(part(row, "f1"))}
    if not found:
        return None
    ticks, place = number_scale([0.0, 1.0])
    strips = tuple(Strip(name, "" if i == 0 else "baseline", "", (dot(known(part(row, "f1")), i and 1, place),),
                         (interval(known(part(row, "f1"))), _share(row.get("accuracy_wrong")),
                          _share(row.get("accuracy_right"))))
                   for i, (name, row) in enumerate(found.items()))
    return Chart("First errors found", "", ticks, ("F1", "errors found", "right ones passed"), strips)


def _baselines(told: Row) -> dict[str, Row]:
    return {str(name): row for name, row in part(told, "baselines").items() if isinstance(row, dict)}


def _parts(run: RunFolder) -> Table:
    told = _judged(run)
    lines = []
    for name, row in part(told, "by_task").items():
        if isinstance(row, dict):
            best = part(row, "difference").get("over")
            found = part(row, "first_error")
            lines.append((str(name), number(row.get("n")), _share(found.get("accuracy_wrong")),
                          _share(found.get("accuracy_right")), interval(known(part(found, "f1"))), _best(row, best),
                          signed(part(row, "difference"))))
    by = str(told.get("by") or "task")
    words = "Best baseline: the one with the highest F1 there, chosen after the fact, which favours the baselines."
    heads = (by, "solutions", "errors found", "right ones passed", "F1", "best baseline", "difference")
    return Table(f"By {by}", words, heads, tuple(lines))


def _best(row: Row, name: object) -> str:
    f1 = known(part(part(part(row, "baselines"), str(name)), "f1"))
    return f"{number(f1['mean'], 2)} ({name})" if f1 else DASH


def _depths(run: RunFolder) -> Plot | None:
    """Stated and true share of right steps by the number of the step."""
    told = [row for row in rows(_judged(run), "by_depth") if _count(row, "n") >= FEWEST][:MOST_DEPTHS]
    if len(told) < 2:
        return None
    series = [Series(name, [finite(row.get(key)) for row in told])
              for name, key in (("mean probability", "mean_probability"), ("share that is right", "share_right"))]
    worst = [x for row in told if (x := finite(row.get("ece"))) is not None]
    words = ("A judge that knows what it does not know has both lines in one place."
             + (f" Calibration error of a depth: {brief(min(worst))} to {brief(max(worst))}." if worst else ""))
    return point_plot("Calibration by depth", words, "number of the step",
                      [number(row.get("depth")) for row in told], _bounded(series), shares=True)


def _bounded(series: Sequence[Series]) -> list[Series]:
    """What is no share of one is not drawn."""
    return [Series(one.name, [y if y is not None and 0 <= y <= 1 else None for y in one.values]) for one in series]


def _share(value: object) -> str:
    x = finite(value)
    return DASH if x is None else share(x)


# --- what a search with it finds -------------------------------------------------------------------------------------


def _table(run: RunFolder) -> list[Row]:
    """Ways to answer with their accuracy."""
    return [row for row in rows(run.result, "table") if row.get("method") and known(part(row, "accuracy"))]


def _search(run: RunFolder) -> Table:
    lines = [(str(row["method"]), _size(row), percent(known(part(row, "accuracy"))), _gain(row),
              number(row.get("tokens"), 0)) for row in _table(run)]
    words = ("Share of prompts answered right, with its 95% interval over prompts; gain over one random solution, "
             "paired by prompt; tokens sampled per prompt, so that ways of equal cost can be compared.")
    return Table("Ways to answer", words, ("way", "solutions", "right", "gain, points", "tokens"), tuple(lines))


def _size(row: Row) -> str:
    beams = [number(row.get(key)) for key in ("beams", "expand")]
    return number(row.get("n")) if finite(row.get("n")) is not None else " by ".join(beams)


def _gain(row: Row) -> str:
    return signed({key: 100 * x for key, x in known(part(row, "gain")).items()})


def _curves(run: RunFolder) -> Plot | None:
    """Accuracy over the number of solutions picked from, a line for each way to pick."""
    told = [row for row in _table(run) if finite(row.get("n")) is not None]
    counts = sorted({row["n"] for row in told})
    if len(counts) < 2:
        return None
    values = {(str(row["method"]), row["n"]): row["accuracy"]["mean"] for row in told}
    named = dict.fromkeys(method for method, _ in values)
    series = [Series(name, [values.get((name, n)) for n in counts]) for name in list(named)[:N_COLORS]]
    words = "Solutions picked right, by how many there were to pick from. Oracle: any of them is right."
    return point_plot("What picking is worth", words, "solutions", [number(n) for n in counts], _bounded(series),
                      shares=True)
