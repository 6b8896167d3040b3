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
from jaxtyping import Float, Int
from torch import Tensor

from keel.bench.intervals import intervals
from keel.data.records import prompt_numbers
from keel.data.traces import StepTrace
from keel.errors import DataError, NumericsError
from keel.functional.calibration import brier, expected_calibration_error
from keel.functional.resampling import cluster_draws, harmonic_draws, percentile_interval
from keel.functional.steps import first_error_scores, predicted_first_error
from keel.rng import stream

__all__ = ["HALF", "NO_ERROR", "best_threshold", "first_error_of", "judged", "solution_row"]

HALF = 0.5
NO_ERROR = -1
NOT_READ = -2
N_RESAMPLES = 1000
BLOCK = 100
"""Resamples in memory at a time."""
MOST_THRESHOLDS = 200
"""Tried of those that lie between the probabilities at hand."""
SMALLEST = 1e-12
"""A probability is kept this far from 0 and 1 where its logit is taken."""
Probabilities = Sequence[Sequence[float]]


def first_error_of(trace: StepTrace) -> int | None:
    """Index of the first wrong step, -1 where every step is right; None where a step before it was not judged."""
    for k, label in enumerate(trace.labels):
        if label is None:
            return None
        if label < HALF:
            return k
    return NO_ERROR


def judged(
    probabilities: Probabilities, traces: Sequence[StepTrace], *, seed: int, threshold: float = HALF,
    training: Sequence[StepTrace] | None = None, by: str | None = None,
) -> dict[str, Any]:
    """Everything that is said about a judge of steps, as JSON; what cannot be said is None or absent.

    Args:
        probabilities: that each step is right, per solution; fewer than it has steps where the end was cut off. Where
            there are none at all, a right solution counts as missed too.
        traces: the whole solutions, also where their end was cut off: an error there is one that is missed.
        seed: of the intervals, which are over prompts.
        threshold: a step whose probability is below is called wrong.
        training: solutions that the baselines are made from; none: only the baseline that finds no error.
        by: column of the prompts' meta to break the first errors down by.
    Raises:
        DataError: no solution has a label.
        NumericsError: a probability is no probability, or a solution has more of them than steps.
    """
    _check(probabilities, traces)
    known = [i for i, trace in enumerate(traces) if first_error_of(trace) is not None]
    held = [traces[i] for i in known]
    found = {"model": _predicted([probabilities[i] for i in known], threshold)}
    found |= {name: predict(held) for name, predict in _baselines(training, by).items()}
    n_scored = sum(map(len, probabilities))
    return {
        "n": len(traces), "n_steps": sum(len(trace.steps) for trace in traces), "n_unknown": len(traces) - len(known),
        "n_unscored": sum(len(trace.steps) for trace in traces) - n_scored, "threshold": threshold,
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
    known = [i for i, trace in enumerate(traces) if first_error_of(trace) is not None]
    true = torch.tensor([first_error_of(traces[i]) for i in known], dtype=torch.long)
    if not bool((true == NO_ERROR).any()) or not bool((true != NO_ERROR).any()):
        raise DataError("a threshold is chosen on right and on wrong solutions, and one kind is missing",
                        where=f"{len(traces)} solutions", remedy="Name a file with both, or set threshold.")
    chosen = [probabilities[i] for i in known]
    values = torch.tensor([p for row in chosen for p in row], dtype=torch.float64).unique()
    if len(values) > MOST_THRESHOLDS:
        values = values.quantile(torch.linspace(0, 1, MOST_THRESHOLDS, dtype=torch.float64)).unique()
    # Below all of them no error is found, and above all of them no right solution passes: F1 is 0 there.
    tried = [HALF, *((values[1:] + values[:-1]) / 2).tolist()]
    f1 = [first_error_scores(_predicted(chosen, threshold), true).f1 for threshold in tried]
    return min(zip(tried, f1, strict=True), key=lambda one: (-one[1], abs(one[0] - HALF), one[0]))[0]


def solution_row(trace: StepTrace, probabilities: Sequence[float], threshold: float = HALF, *,
                 method: str | None = None) -> dict[str, Any]:
    """A row of solutions.jsonl, which the report draws."""
    scores = [*probabilities, *[None] * (len(trace.steps) - len(probabilities))]
    known = first_error_of(trace)
    talk = [{"role": turn.role, "content": turn.content} for turn in trace.prompt.messages]
    return {
        "id": trace.id, "prompt": talk if trace.prompt.text is None else trace.prompt.text,
        "steps": [{"text": text, "score": score, "label": label}
                  for text, score, label in zip(trace.steps, scores, trace.labels, strict=True)],
        "outcome": trace.outcome, "first_error": known,
        "predicted": int(_predicted([probabilities], threshold)[0]) if len(probabilities) else None,
        **({} if method is None else {"method": method}),
    }


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


def _predicted(probabilities: Probabilities, threshold: float) -> Int[Tensor, " N"]:
    """Place of the first step called wrong; what was not read at all is neither right nor wrong anywhere."""
    rows = [i for i, row in enumerate(probabilities) for _ in row]
    found = predicted_first_error(
        torch.tensor([p for row in probabilities for p in row], dtype=torch.float64),
        torch.tensor(rows, dtype=torch.long), len(probabilities), threshold=threshold)
    return torch.where(torch.tensor([len(row) > 0 for row in probabilities], dtype=torch.bool), found, NOT_READ)


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
    true = torch.tensor([first_error_of(trace) for trace in held], dtype=torch.long)
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


Predict = Callable[[Sequence[StepTrace]], Int[Tensor, " N"]]


@dataclass(frozen=True)
class _Length:
    """Steps judged by their place and their length alone."""

    model: Any
    threshold: float

    def __call__(self, traces: Sequence[StepTrace]) -> Int[Tensor, " N"]:
        return _predicted(self.probabilities(traces), self.threshold)

    def probabilities(self, traces: Sequence[StepTrace]) -> list[list[float]]:
        """That each step is right."""
        return [self.model.predict_proba(_shapes(trace))[:, 1].tolist() for trace in traces]


def _baselines(training: Sequence[StepTrace] | None, by: str | None) -> dict[str, Predict]:
    found: dict[str, Predict] = {"no error": lambda held: torch.full((len(held),), NO_ERROR)}
    known = [trace for trace in training or () if first_error_of(trace) is not None]
    if not known:
        return found
    found["majority"] = _majority(known, None)
    if by is not None:
        found[f"majority of each {by}"] = _majority(known, by)
    if len({first_error_of(trace) == NO_ERROR for trace in known}) > 1:
        found["length"] = _length(known)
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
    counts = Counter(place for trace in traces if (place := first_error_of(trace)) is not None)
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
    fitted = _Length(model, HALF)
    return _Length(model, best_threshold(fitted.probabilities(known), known))


def _shapes(trace: StepTrace) -> list[list[float]]:
    """Of each step: its number, that of all steps, the part of the way, whether it is the last, log of its length."""
    n = len(trace.steps)
    return [[k + 1, n, (k + 1) / n, float(k + 1 == n), log1p(len(step))] for k, step in enumerate(trace.steps)]
