"""Probabilities that steps are right, held against labelled steps: accuracy, calibration, and the first error found.

    F1 = 2 a b / (a + b)    a: share of the wrong solutions whose first wrong step is found, b: share of the right
                            solutions in which no step is called wrong

Source: Zheng et al. 2024, arXiv:2412.06559, section 3 (ProcessBench).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, log1p
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from keel.bench.intervals import intervals
from keel.data.records import prompt_numbers
from keel.data.traces import NO_ERROR, StepTrace
from keel.errors import DataError, NumericsError
from keel.functional.calibration import brier, expected_calibration_error
from keel.functional.resampling import cluster_draws, harmonic_draws, percentile_interval
from keel.functional.steps import first_error_scores, predicted_first_error
from keel.rng import stream

__all__ = ["HALF", "StepsRead", "baselines_of", "best_threshold", "judged", "solution_row", "steps_headline"]

HALF = 0.5
NOT_READ = -2
N_RESAMPLES = 1000
BLOCK = 100
"""Resamples in memory at a time."""
MOST_THRESHOLDS = 200
"""Tried of those that lie between the probabilities at hand."""
SMALLEST = 1e-12
"""A probability is kept this far from 0 and 1 where its logit is taken."""
MOST_TAUGHT = 4000
"""Solutions that the regression on lengths is fitted on, at most."""
Probabilities = Sequence[Sequence[float]]
Predict = Callable[[Sequence[StepTrace]], Int[Tensor, " N"]]


@dataclass(frozen=True)
class StepsRead:
    """Probabilities of the steps of solutions, one behind the other.

    Attributes:
        values: that the step is right.
        rows: number of its solution, never falling.
        whole: which solutions have a probability for each of their steps.
    """

    values: Float[Tensor, " S"]
    rows: Int[Tensor, " S"]
    whole: Bool[Tensor, " N"]

    @staticmethod
    def of(probabilities: "Probabilities", traces: Sequence[StepTrace]) -> "StepsRead":
        rows = [i for i, row in enumerate(probabilities) for _ in row]
        whole = [len(row) == len(trace.steps) for row, trace in zip(probabilities, traces, strict=True)]
        return StepsRead(torch.tensor([p for row in probabilities for p in row], dtype=torch.float64),
                         torch.tensor(rows, dtype=torch.long), torch.tensor(whole, dtype=torch.bool))

    def first_errors(self, threshold: float) -> Int[Tensor, " N"]:
        """Place of the first step called wrong, -1 where none is; NOT_READ where none was found and steps are left."""
        found = predicted_first_error(self.values, self.rows, len(self.whole), threshold=threshold)
        return torch.where(self.whole | (found != NO_ERROR), found, NOT_READ)

    def best_threshold(self, true: Int[Tensor, " N"]) -> float:
        """See `best_threshold`."""
        values = self.values.unique()
        if len(values) > MOST_THRESHOLDS:
            values = values.quantile(torch.linspace(0, 1, MOST_THRESHOLDS, dtype=torch.float64)).unique()
        # Below all of them no error is found, and above all of them no right solution passes: F1 is 0 there.
        tried = [HALF, *((values[1:] + values[:-1]) / 2).tolist()]
        f1 = [first_error_scores(self.first_errors(threshold), true).f1 for threshold in tried]
        return min(zip(tried, f1, strict=True), key=lambda one: (-one[1], abs(one[0] - HALF), one[0]))[0]


def judged(
    probabilities: Probabilities, traces: Sequence[StepTrace], *, seed: int, threshold: float = HALF,
    baselines: Mapping[str, Predict] | None = None, by: str | None = None,
) -> dict[str, Any]:
    """Everything that is said about a judge of steps, as JSON; what cannot be said is None or absent.

    Args:
        probabilities: that each step is right, per solution; fewer than it has steps where the end was cut off. A right
            solution passes only if all of it was read.
        traces: the whole solutions, also where their end was cut off: an error there is one that is missed.
        seed: of the intervals, which are over prompts.
        threshold: a step whose probability is below is called wrong.
        baselines: from `baselines_of`; none: only the one that finds no error.
        by: column of the prompts' meta to break the first errors down by.
    Raises:
        DataError: no solution has a label.
        NumericsError: a probability is no probability, or a solution has more of them than steps.
    """
    _check(probabilities, traces)
    known = [i for i, trace in enumerate(traces) if trace.first_error is not None]
    held = [traces[i] for i in known]
    found = {"model": StepsRead.of([probabilities[i] for i in known], held).first_errors(threshold)}
    found |= {name: predict(held) for name, predict in (baselines or baselines_of(None)).items()}
    n_scored, n_steps = sum(map(len, probabilities)), sum(len(trace.steps) for trace in traces)
    n_part = sum(len(row) < len(trace.steps) for row, trace in zip(probabilities, traces, strict=True))
    return {
        "n": len(traces), "n_steps": n_steps, "n_unknown": len(traces) - len(known), "n_part": n_part,
        "n_unscored": n_steps - n_scored, "threshold": threshold,
        **_steps(probabilities, traces, threshold, seed), **_first_errors(found, held, seed),
        **({} if by is None else {"by": by, "by_task": _by_task(found, held, by, seed)}),
    }


def best_threshold(probabilities: Probabilities, traces: Sequence[StepTrace]) -> float:
    """The threshold with the highest F1 on these solutions; of equally good ones that nearest to one half.

    Raises:
        DataError: they have no right or no wrong solution.
        NumericsError: see `judged`.
    """
    _check(probabilities, traces)
    known = [i for i, trace in enumerate(traces) if trace.first_error is not None]
    held = [traces[i] for i in known]
    true = _true(held)
    if not bool((true == NO_ERROR).any()) or not bool((true != NO_ERROR).any()):
        raise DataError("a threshold is chosen on right and on wrong solutions, and one kind is missing",
                        where=f"{len(traces)} solutions", remedy="Name a file with both, or set threshold.")
    return StepsRead.of([probabilities[i] for i in known], held).best_threshold(true)


def _true(known: Sequence[StepTrace]) -> Int[Tensor, " N"]:
    return torch.tensor([trace.first_error for trace in known], dtype=torch.long)


def solution_row(trace: StepTrace, probabilities: Sequence[float], threshold: float = HALF, *,
                 method: str | None = None) -> dict[str, Any]:
    """A row of solutions.jsonl, which the report draws."""
    scores = [*probabilities, *[None] * (len(trace.steps) - len(probabilities))]
    predicted = int(StepsRead.of([probabilities], [trace]).first_errors(threshold)[0])
    talk = [{"role": turn.role, "content": turn.content} for turn in trace.prompt.messages]
    return {
        "id": trace.id, "prompt": talk if trace.prompt.text is None else trace.prompt.text,
        "steps": [{"text": text, "score": score, "label": label}
                  for text, score, label in zip(trace.steps, scores, trace.labels, strict=True)],
        "outcome": trace.outcome, "first_error": trace.first_error,
        "predicted": None if predicted == NOT_READ else predicted,
        **({} if method is None else {"method": method}),
    }


def steps_headline(told: dict[str, Any]) -> dict[str, object] | None:
    """What `judged` found in the shape that the report reads: F1 against the best baseline's; where all solutions are
    right, or all wrong, accuracy on steps."""
    found, gap, n = told["first_error"]["f1"], told["difference"], told["n"] - told["n_unknown"]
    if found["mean"] is not None:
        return {"metric": f"held-out F1 of first errors (before: {gap['over']})", "higher_is_better": True,
                "before": told["baselines"][gap["over"]]["f1"] | {"n": n}, "after": found | {"n": n},
                "change": {key: gap[key] for key in ("mean", "low", "high")}}
    return None if told["accuracy"]["mean"] is None else {
        "metric": "held-out accuracy on steps (before: the commonest label)", "higher_is_better": True,
        "before": {"mean": told["accuracy_majority"]}, "after": told["accuracy"]}


def _check(probabilities: Probabilities, traces: Sequence[StepTrace]) -> None:
    if not any(label is not None for trace in traces for label in trace.labels):
        raise DataError("no step of these solutions is labelled, so there is nothing to hold a judge against",
                        where=f"{len(traces)} solutions", remedy="Name a file whose `labels` are not all null.")
    for trace, row in zip(traces, probabilities, strict=True):
        if len(row) > len(trace.steps):
            raise NumericsError(f"{len(row)} probabilities for the {len(trace.steps)} steps of a solution",
                                where=f"solution {trace.id}", remedy="Give one per step, in order.")
        if strange := [p for p in row if not 0 <= p <= 1]:
            raise NumericsError(f"{strange[0]} is not the probability of a step", where=f"solution {trace.id}",
                                remedy="Give numbers within [0, 1]: how likely it is that the step is right.")


# --- single steps ----------------------------------------------------------------------------------------------------


def _steps(probabilities: Probabilities, traces: Sequence[StepTrace], threshold: float, seed: int) -> dict[str, Any]:
    """Accuracy and calibration over the steps that have both a label and a probability."""
    told = [(trace, k, p, label) for trace, row in zip(traces, probabilities, strict=True)
            for k, (p, label) in enumerate(zip(row, trace.labels, strict=False)) if label is not None]
    if not told:
        nothing = {"mean": None, "low": None, "high": None, "n": 0}
        return {"accuracy": nothing, "accuracy_majority": None, "brier": None, "ece": None, "by_depth": []}
    p = torch.tensor([one[2] for one in told], dtype=torch.float64)
    right = torch.tensor([one[3] >= HALF for one in told])
    agree = ((p >= threshold) == right).double()
    prompts = [one[0].prompt for one in told]
    commonest = max(right.double().mean().item(), 1 - right.double().mean().item())
    margins = torch.where(right, p.logit(SMALLEST), -p.logit(SMALLEST))
    depths = torch.tensor([one[1] for one in told])
    return {
        "accuracy": intervals({"steps": agree}, prompts, seed=seed, names=("steps",))["steps"],
        "accuracy_majority": commonest, "brier": float(brier(margins)),
        "ece": float(expected_calibration_error(margins)),
        "by_depth": [_depth(k, p[depths == k], right[depths == k], margins[depths == k])
                     for k in depths.unique().tolist()],
    }


def _depth(k: int, p: Float[Tensor, " S"], right: Tensor, margins: Float[Tensor, " S"]) -> dict[str, Any]:
    return {"depth": k + 1, "n": len(p), "mean_probability": float(p.mean()),
            "share_right": float(right.double().mean()), "ece": float(expected_calibration_error(margins))}


# --- first errors ----------------------------------------------------------------------------------------------------


def _first_errors(found: Mapping[str, Int[Tensor, " N"]], held: Sequence[StepTrace], seed: int) -> dict[str, Any]:
    """F1 of the judge and of each baseline, and by how much it is above the best of them."""
    true = _true(held)
    draws = _f1_draws(found, true, held, seed)
    told = {name: _scores(predicted, true, draws[name]) for name, predicted in found.items()}
    model = told.pop("model")
    best = max(told, key=lambda name: told[name]["f1"]["mean"] or 0.0)
    gap = draws["model"] - draws[best]
    difference = {"over": best, "mean": None, "low": None, "high": None}
    if model["f1"]["mean"] is not None:
        difference |= {"mean": model["f1"]["mean"] - told[best]["f1"]["mean"]} | _ends(gap)
    return {"first_error": model, "baselines": told, "difference": difference}


def _scores(predicted: Int[Tensor, " N"], true: Int[Tensor, " N"], draws: Float[Tensor, " R"]) -> dict[str, Any]:
    scores = first_error_scores(predicted, true)
    return {"f1": {"mean": _known(scores.f1), **_ends(draws)}, "accuracy_wrong": _known(scores.accuracy_wrong),
            "accuracy_right": _known(scores.accuracy_right), "n_wrong": scores.n_wrong, "n_right": scores.n_right}


def _f1_draws(found: Mapping[str, Int[Tensor, " N"]], true: Int[Tensor, " N"], held: Sequence[StepTrace],
              seed: int) -> dict[str, Float[Tensor, " R"]]:
    """F1 of each on the same resamples of the prompts; NaN where a draw has only right or only wrong solutions."""
    numbers = torch.tensor(prompt_numbers([trace.prompt for trace in held]), dtype=torch.long)
    if len(numbers.unique()) < 2:  # one prompt says nothing of others
        return {name: torch.full((1,), torch.nan, dtype=torch.float64) for name in found}
    wrong = true != NO_ERROR
    kinds = torch.stack([wrong, ~wrong], 1).double()
    found_by = {name: (predicted == true)[:, None] * kinds for name, predicted in found.items()}
    n, generator = int(numbers.max()) + 1, stream(seed, "bootstrap", "first errors")
    sizes, totals = _by_prompt(kinds, numbers, n), {name: _by_prompt(x, numbers, n) for name, x in found_by.items()}
    drawn: dict[str, list[Tensor]] = {name: [] for name in found}
    for start in range(0, N_RESAMPLES, BLOCK):
        draws = cluster_draws(n, n_draws=min(BLOCK, N_RESAMPLES - start), generator=generator)
        for name, total in totals.items():
            drawn[name].append(harmonic_draws(draws, total, sizes))
    return {name: torch.cat(parts) for name, parts in drawn.items()}


def _by_prompt(rows: Float[Tensor, "N 2"], numbers: Int[Tensor, " N"], n: int) -> Float[Tensor, "P 2"]:
    return rows.new_zeros(n, 2).index_add(0, numbers, rows)


def _ends(draws: Float[Tensor, " R"]) -> dict[str, float | None]:
    low, high = percentile_interval(draws)
    return {"low": _known(float(low)), "high": _known(float(high))}


def _known(value: float) -> float | None:
    return None if isnan(value) else float(value)


def _by_task(found: Mapping[str, Int[Tensor, " N"]], held: Sequence[StepTrace], by: str, seed: int) -> dict[str, Any]:
    labels = [trace.prompt.label(by) for trace in held]
    told = {}
    for name in sorted({label for label in labels if label is not None}):
        places = torch.tensor([i for i, label in enumerate(labels) if label == name])
        inside = [held[i] for i in places.tolist()]
        told[name] = {"n": len(inside), **_first_errors({key: row[places] for key, row in found.items()}, inside, seed)}
    return told


# --- what a judge has to beat ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Length:
    """Steps judged by their place and their length alone."""

    model: Any
    threshold: float

    def __call__(self, traces: Sequence[StepTrace]) -> Int[Tensor, " N"]:
        return _shaped(self.model, traces).first_errors(self.threshold)


def baselines_of(training: Sequence[StepTrace] | None, *, by: str | None = None, seed: int = 0) -> dict[str, Predict]:
    """Rules that read no word, by name; each says where it sees the first errors of solutions.

    Args:
        training: solutions that they are made from; none: only the rule that finds no error.
        by: column of the prompts' meta by which there is a majority of each part.
        seed: of the sample of 4,000 solutions that the rule of lengths is fitted on where there are more.
    """
    found: dict[str, Predict] = {"no error": lambda held: torch.full((len(held),), NO_ERROR)}
    known = [trace for trace in training or () if trace.first_error is not None]
    if not known:
        return found
    found["majority"] = _majority(known, None)
    if by is not None:
        found[f"majority of each {by}"] = _majority(known, by)
    order = torch.randperm(len(known), generator=stream(seed, "baselines")).tolist()
    taught = [known[i] for i in sorted(order[:MOST_TAUGHT])]
    if len({trace.first_error == NO_ERROR for trace in taught}) > 1:
        found["length"] = _length(taught)
    return found


def _majority(known: Sequence[StepTrace], by: str | None) -> Predict:
    """The most common first error, the earliest of equally common ones; with `by`, of the solutions of that label."""
    overall = _commonest(known)
    labels = sorted({_label(trace, by) for trace in known})
    places = {label: _commonest([trace for trace in known if _label(trace, by) == label]) for label in labels}
    return lambda held: torch.tensor([places.get(_label(trace, by), overall) for trace in held], dtype=torch.long)


def _label(trace: StepTrace, by: str | None) -> str:
    return "" if by is None else trace.prompt.label(by) or ""


def _commonest(traces: Sequence[StepTrace]) -> int:
    counts = Counter(place for trace in traces if (place := trace.first_error) is not None)
    return min(counts, key=lambda place: (-counts[place], place))


def _length(known: Sequence[StepTrace]) -> Predict:
    """A logistic regression of the labels on place and length, with the threshold of the highest F1 on `known`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    told = [(shape, label >= HALF) for trace in known
            for shape, label in zip(_shapes(trace), trace.labels, strict=True) if label is not None]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit([shape for shape, _ in told], [right for _, right in told])
    return _Length(model, _shaped(model, known).best_threshold(_true(known)))


def _shaped(model: Any, traces: Sequence[StepTrace]) -> StepsRead:
    """What a model of shapes says of all steps."""
    if not traces:
        return StepsRead.of([], [])
    said = torch.from_numpy(model.predict_proba([shape for trace in traces for shape in _shapes(trace)])[:, 1])
    rows = [i for i, trace in enumerate(traces) for _ in trace.steps]
    return StepsRead(said.double(), torch.tensor(rows), torch.ones(len(traces), dtype=torch.bool))


def _shapes(trace: StepTrace) -> list[list[float]]:
    """Of each step: its number, that of all steps, the part of the way, whether it is the last, log of its length."""
    n = len(trace.steps)
    return [[k + 1, n, (k + 1) / n, float(k + 1 == n), log1p(len(step))] for k, step in enumerate(trace.steps)]
