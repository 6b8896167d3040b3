"""Solutions in steps: the record with the labels of the steps, its checks, and the row it is read from."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from keel.data.formats import missing
from keel.data.kinds import parts_of, prompt_in, truth_of
from keel.data.problems import RowError
from keel.data.records import Prompt, check_prompt, check_response
from keel.data.rows import Row, kind_of
from keel.data.sources import prm800k

__all__ = ["BLANK", "NO_ERROR", "StepTrace", "check_trace", "trace_of"]

BLANK = "blank steps"
"""What a report calls steps of whitespace that were left out."""
NO_ERROR = -1
_RIGHT = 0.5
_HUGE = 1e300


@dataclass(frozen=True)
class StepTrace:
    """A solution, step by step, with what somebody said of its steps or of its end.

    Attributes:
        steps: their texts, without separators.
        labels: for each step the probability in [0, 1] that it is right; none where nobody judged it.
        outcome: whether the final answer is right; none where it is not known.
        ended: whether the solution ends with its last step; False where it was cut behind it, or labelled no further.
    """

    prompt: Prompt
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]
    outcome: bool | None = None
    ended: bool = True

    @property
    def id(self) -> str:
        return self.prompt.id

    @property
    def first_error(self) -> int | None:
        """Index of the first step whose label is below 0.5, -1 where every step is right; none where it is not known: a
        step before it was not judged."""
        for k, label in enumerate(self.labels):
            if label is None:
                return None
            if label < _RIGHT:
                return k
        return NO_ERROR

    @property
    def is_wrong(self) -> bool:
        """Whether a step is known to be wrong, be it the first one or not."""
        return any(label is not None and label < _RIGHT for label in self.labels)

    def text(self, separator: str) -> str:
        """The solution as one response; where it goes on, the separator stands behind its last step too."""
        return separator.join(self.steps) + ("" if self.ended else separator)


def check_trace(trace: StepTrace) -> None:
    """A solution that has something to teach, step by step or by its end.

    Raises:
        RowError: as `check_prompt`; no step, an empty one, labels that do not fit the steps or are no probabilities,
            or neither a label nor an outcome.
    """
    check_prompt(trace.prompt)
    if not trace.steps:
        raise RowError("no step", "the solution has no step", "Remove the record; there is nothing to judge.")
    if len(trace.labels) != len(trace.steps):
        raise RowError("labels of unequal number", f"{len(trace.steps)} steps and {len(trace.labels)} labels",
                       "Give one label for each step, null where nobody judged it.")
    for number, (text, label) in enumerate(zip(trace.steps, trace.labels, strict=True), start=1):
        if not text.strip():
            raise RowError("empty step", f"step {number} is empty, and its label is {label}",
                           "An empty step cannot be wrong; move its label to the step that is, or remove the record.")
        check_response(text, f"step {number}")
        if label is not None and not 0 <= label <= 1:
            raise RowError("label out of range", f"the label of step {number} is {label}, outside 0 to 1",
                           "It is the probability that the step is right; null where nobody judged it.")
    if not _judged(trace):
        raise RowError("nothing judged", f"none of the {len(trace.steps)} steps has a label, and there is no outcome",
                       "Remove the record, or say in the column `outcome` whether the final answer is right.")


def trace_of(
    row: Row, *, as_text: bool, left_out: Counter[str] | None = None,
) -> tuple[str, list[StepTrace]]:
    """The layout's name and the row's solutions: one, or several where its labellers compared endings of a solution.

    A step of whitespace has no token that its label could sit on. It is left out and counted, unless its label says
    that it is wrong: leaving that one out would move the error to another step.

    Args:
        row: as it was read.
        as_text: a prompt that is a bare string is text to continue, not a user's turn.
        left_out: where to count the steps that were left out.

    Raises:
        RowError: the row is wrong or is no solution in steps.
    """
    found, value = parts_of(row)
    if "completions" not in found.used:
        raise missing(value, "a solution in steps", ("prompt", "completions", "labels"))
    prompt = prompt_in(row, found, value, as_text)
    whole = _trace(prompt, value, _truth(row, value, "outcome", "where the final answer is right"))
    if _truth(row, value, "ended", "where the solution ends with its last step") is False:
        whole = replace(whole, ended=False)
    further = value.get(prm800k.BRANCHES, ()) if found.layout == prm800k.NAME else ()
    branches = [replace(_trace(replace(prompt, id=f"{prompt.id}#{number}"), branch, None), ended=False)
                for number, branch in enumerate(further, start=1)]
    # Of several endings, those that somebody judged; a row with nothing judged is refused.
    traces = [trace for trace in (whole, *branches) if _judged(trace)] or [whole]
    kept = [_without_blanks(trace) for trace in traces]
    for trace in kept:
        check_trace(trace)
    n_blank = sum(len(trace.steps) - len(rest.steps) for trace, rest in zip(traces, kept, strict=True))
    if left_out is not None and n_blank:
        left_out[BLANK] += n_blank
    return found.layout, kept


def _judged(trace: StepTrace) -> bool:
    return trace.outcome is not None or any(label is not None for label in trace.labels)


def _trace(prompt: Prompt, value: Mapping[str, Any], outcome: bool | None) -> StepTrace:
    return StepTrace(prompt, _steps(value["completions"]), _labels(value["labels"]), outcome)


def _steps(cell: Any) -> tuple[str, ...]:
    if not isinstance(cell, list):
        raise RowError("wrong type", f"completions is {kind_of(cell)}, not a list of steps",
                       "Write a list with the text of each step.")
    strange = [step for step in cell if not isinstance(step, str)]
    if strange:
        raise RowError("wrong type", f"one of the steps is {kind_of(strange[0])}, not text",
                       "Write a list with the text of each step; messages are for the prompt.")
    return tuple(cell)


def _labels(cell: Any) -> tuple[float | None, ...]:
    if not isinstance(cell, list):
        raise RowError("wrong type", f"labels is {kind_of(cell)}, not a list",
                       "Write one label for each step: true, false, a number from 0 to 1, or null.")
    return tuple(map(_label, cell))


def _label(given: Any) -> float | None:
    if given is not None and not isinstance(given, bool | int | float):
        raise RowError("bad step label", f"the label of a step is {kind_of(given)} ({given!r})",
                       "A step's label is true, false, a number from 0 to 1, or null, without quotes.")
    if given is None:
        return None
    # No float can hold a whole number of hundreds of digits; as infinity it is out of range.
    return math.inf if abs(given) > _HUGE else float(given)


def _truth(row: Row, value: Mapping[str, Any], name: str, when: str) -> bool | None:
    if value.get(name) is None:
        return None
    found = truth_of(row, value[name])
    if found is None:
        raise RowError(f"bad {name}", f"{name} is {kind_of(value[name])} ({value[name]!r}), not true or false",
                       f"Write true {when}, false where not, or leave it out.")
    return found


def _without_blanks(trace: StepTrace) -> StepTrace:
    """Without the steps of whitespace that nobody called wrong."""
    if len(trace.steps) != len(trace.labels):
        return trace
    pairs: Sequence[tuple[str, float | None]] = [
        (text, label) for text, label in zip(trace.steps, trace.labels, strict=True)
        if text.strip() or (label is not None and label < _RIGHT)]
    return replace(trace, steps=tuple(text for text, _ in pairs), labels=tuple(label for _, label in pairs))
