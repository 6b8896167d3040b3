"""Labelled solutions to rows of tokens, and the token in which each step ends."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from keel.data.chat import Template
from keel.data.render import Row
from keel.data.segment import cut_text, places_in_text
from keel.data.traces import StepTrace
from keel.errors import DataError

__all__ = ["StepRow", "StepTruncation", "TooLongSolution", "render_traces"]

TooLongSolution = Literal["drop_steps", "drop", "error"]


@dataclass(frozen=True)
class StepRow:
    """Tokens of a prompt and of a solution.

    Attributes:
        row: tokens, the last of which ends the turn unless steps were dropped.
        ends: index in `row.ids` of the token in which each step ends.
        trace: the solution as far as the row holds it; one that lost steps has no outcome, for its end is not there.
    """

    row: Row
    ends: tuple[int, ...]
    trace: StepTrace

    @property
    def n_tokens(self) -> int:
        return self.row.n_tokens


@dataclass(frozen=True)
class StepTruncation:
    """What the length limit did to the solutions.

    Attributes:
        n_rows: solutions seen.
        n_shortened: solutions that lost steps and were kept.
        n_dropped: solutions left out: no step fits, or none of those that fit has a label.
        n_steps_dropped: steps that are in no row.
        n_labels: labels of all solutions seen.
        n_labels_lost: of which so many are in no row.
        n_divided: steps in rows that a policy's text would not have: they hold the separator, or make one with what
            stands beside them.
        n_outcomes_lost: solutions of known outcome that are in no row, or without their end.
        max_length: the limit, in tokens.
    """

    n_rows: int
    n_shortened: int
    n_dropped: int
    n_steps_dropped: int
    n_labels: int
    n_labels_lost: int
    n_divided: int
    n_outcomes_lost: int
    max_length: int

    def summary(self) -> str:
        """One line for a log."""
        return (f"{self.n_rows} solutions at most {self.max_length} tokens long: {self.n_shortened} without their last "
                f"steps, {self.n_dropped} dropped; {self.n_steps_dropped} steps and {self.n_labels_lost} of "
                f"{self.n_labels} labels are in no row"
                + (f", nor are {self.n_outcomes_lost} known outcomes" if self.n_outcomes_lost else ""))


def render_traces(
    template: Template, traces: Sequence[StepTrace], *, separator: str, max_length: int,
    too_long: TooLongSolution = "drop_steps",
) -> tuple[list[StepRow], StepTruncation]:
    """Rows as the policy would write them: the steps with the separator between them, then the end of the turn.

    A step ends in the token that completes its separator, the last one in the token that ends the turn; where the
    solution does not end with it, a separator stands behind it too, and the turn stays open.

    Args:
        template: of the tokenizer.
        traces: solutions.
        separator: text between two steps.
        max_length: tokens of prompt and solution together.
        too_long: `drop_steps`: the last steps go, whole, until the others fit; `drop`: the solution goes; `error`.

    Raises:
        DataError: no solution fits, or one does not and too_long is `error`.
        ValueError: the separator is empty.
    """
    if not separator:
        raise ValueError("separator='' cannot part the steps of a solution; give the text between two steps")
    rows = []
    n_shortened = 0
    for trace in traces:
        whole = _whole_row(template, trace, separator)
        kept = _fitted(whole, max_length, too_long)
        if kept is not None:
            rows.append(kept)
            n_shortened += len(kept.ends) < len(whole.ends)
    if traces and not rows:
        raise DataError(f"none of {len(traces)} solutions has a labelled step within {max_length} tokens",
                        remedy="Raise the limit, or shorten the prompts.")
    kept_traces = [row.trace for row in rows]
    n_steps, n_kept = (sum(len(trace.steps) for trace in told) for told in (traces, kept_traces))
    n_labels, n_kept_labels = (sum(map(_n_labels, told)) for told in (traces, kept_traces))
    n_outcomes, n_kept_outcomes = (sum(trace.outcome is not None for trace in told) for told in (traces, kept_traces))
    return rows, StepTruncation(len(traces), n_shortened, len(traces) - len(rows), n_steps - n_kept, n_labels,
                                n_labels - n_kept_labels, sum(_n_divided(trace, separator) for trace in kept_traces),
                                n_outcomes - n_kept_outcomes, max_length)


def _whole_row(template: Template, trace: StepTrace, separator: str) -> StepRow:
    text, prompt = trace.text(separator), trace.prompt
    prompt_ids = template.prompt_ids(prompt)
    ids = template.response_ids(text, trace.ended, after=prompt.text)
    behind = list(accumulate(len(step) + len(separator) for step in trace.steps))
    # DEVIATION(process_rm-1): the last label of a whole solution sits on the token that ends the turn, not on one more
    # separator, which a policy does not write there.
    places = places_in_text(template, text, ids, behind[:-1] if trace.ended else behind)
    ends = [len(prompt_ids) + place for place in (*places, *([len(ids) - 1] if trace.ended else []))]
    return StepRow(Row(prompt_ids + ids, len(prompt_ids), trace.id), tuple(ends), trace)


def _fitted(whole: StepRow, max_length: int, too_long: TooLongSolution) -> StepRow | None:
    """The row, or as many of its steps as fit; None where nothing is left of it that could be learned from.

    A shortened row is the beginning of the whole one, token for token: where the separator shares a token with the next
    step, that token stays.
    """
    if whole.n_tokens <= max_length:
        return whole
    if too_long == "error":
        raise DataError(f"{whole.n_tokens} tokens of prompt and solution do not fit into {max_length}",
                        where=f"id {whole.row.record_id}", remedy="Raise the limit, or choose drop_steps or drop.")
    n = sum(end < max_length for end in whole.ends)
    trace = replace(whole.trace, steps=whole.trace.steps[:n], labels=whole.trace.labels[:n], outcome=None, ended=False)
    if too_long == "drop" or not _n_labels(trace):
        return None
    row = replace(whole.row, ids=whole.row.ids[: whole.ends[n - 1] + 1])
    return StepRow(row, whole.ends[:n], trace)


def _n_divided(trace: StepTrace, separator: str) -> int:
    """Steps that are none where the separator alone says what a step is."""
    text = trace.text(separator)
    found, rest = cut_text(text, separator)
    places = accumulate(len(step) + len(separator) for step in trace.steps)
    return len(set(zip(trace.steps, places, strict=True)) - {*found, (rest, len(text) + len(separator))})


def _n_labels(trace: StepTrace) -> int:
    return sum(label is not None for label in trace.labels)
