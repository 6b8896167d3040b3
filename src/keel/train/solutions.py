"""What is learned from a labelled solution, and its steps as tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.data.collate import budget_batches, collate
from keel.data.step_rows import StepRow, StepTruncation, TooLongSolution
from keel.data.traces import StepTrace
from keel.errors import DataError
from keel.models.load import device_of
from keel.models.process import step_logits
from keel.train.inputs import DataConfig

__all__ = [
    "OUTCOMES", "SolutionsConfig", "StepBatch", "Supervise", "hardened", "step_batch", "step_logits_of", "supervised",
    "tell", "up_to_last_label",
]

Supervise = Literal["steps", "last_step", "outcome", "outcome_at_each_step"]
OUTCOMES = ("outcome", "outcome_at_each_step")
"""What is learned from the final answer."""


class SolutionsConfig(DataConfig):
    """Where labelled solutions come from, and what happens to those that do not fit."""

    too_long: TooLongSolution = Field(  # type: ignore[assignment]
        "drop_steps", description="longer rows: drop_steps takes whole steps off the end; all that is lost is counted")


@dataclass(frozen=True)
class StepBatch:
    """Rows of tokens and the steps in them, row by row.

    Attributes:
        rows: row of each step.
        columns: column of the token in which it ends.
        labels: probability that it is right; NaN where nobody judged it.
    """

    tokens: TokenBatch
    rows: Int[Tensor, " S"]
    columns: Int[Tensor, " S"]
    labels: Float[Tensor, " S"]

    def to(self, device: torch.device) -> "StepBatch":
        return StepBatch(self.tokens.to(device), self.rows.to(device), self.columns.to(device), self.labels.to(device))

    def logits(self, model: nn.Module) -> Float[Tensor, " S"]:
        """That each step is right."""
        return step_logits(model, self.tokens, self.rows, self.columns)


def hardened(traces: Sequence[StepTrace], above: float | None) -> list[StepTrace]:
    """The solutions with labels of 1 where they are above this, and of 0 elsewhere; none: with those that they have."""
    if above is None:
        return list(traces)
    return [replace(trace, labels=tuple(None if label is None else float(label > above) for label in trace.labels))
            for trace in traces]


def supervised(traces: Sequence[StepTrace], how: Supervise) -> list[StepTrace]:
    """The solutions with the labels that are learned from; without those that have none.

    Args:
        traces: as they were read.
        how: `steps`: every labelled step; `last_step`: only the last of these; `outcome`: whether the final answer is
            right, as the label of the last step; `outcome_at_each_step`: the same as the label of every step.
    Raises:
        DataError: nothing is left.
    """
    told = [trace for trace in traces if trace.outcome is not None] if how in OUTCOMES else list(traces)
    if traces and not told:
        raise DataError(f"none of {len(traces)} solutions says whether its final answer is right",
                        where=f"id {traces[0].id}", remedy="supervise = outcome needs the column `outcome` (true or "
                        "false); with labels of steps, use supervise = steps.")
    found = [replace(trace, labels=_labels(trace, how)) for trace in told]
    kept = [trace for trace in found if any(label is not None for label in trace.labels)]
    if traces and not kept:
        raise DataError(f"none of {len(traces)} solutions has a label of a step", where="supervise = " + how,
                        remedy="Label steps first (`keel process-rm label`), or learn with supervise = outcome.")
    return kept


def _labels(trace: StepTrace, how: Supervise) -> tuple[float | None, ...]:
    n, labels = len(trace.steps), trace.labels
    if how in OUTCOMES:
        told = float(bool(trace.outcome))
        return (*([told] if how == "outcome_at_each_step" else [None]) * (n - 1), told)
    last = max((k for k, label in enumerate(labels) if label is not None), default=-1)
    return labels if how == "steps" else tuple(label if k == last else None for k, label in enumerate(labels))


def up_to_last_label(one: StepRow) -> StepRow:
    """The row without what follows its last labelled step: a causal model says the same before it, and learns the same.
    """
    n = 1 + max(k for k, label in enumerate(one.trace.labels) if label is not None)
    trace = replace(one.trace, steps=one.trace.steps[:n], labels=one.trace.labels[:n],
                    ended=one.trace.ended and n == len(one.trace.steps))
    return StepRow(replace(one.row, ids=one.row.ids[: one.ends[n - 1] + 1]), one.ends[:n], trace)


def tell(cut: StepTruncation, note: Callable[[str], None]) -> None:
    """What the reader of a run must know of its rows."""
    if cut.n_shortened or cut.n_dropped:
        note(cut.summary())
    if cut.n_divided:
        note(f"{cut.n_divided} steps hold the separator, or make one with what stands beside them: a policy that "
             "writes the same text is judged at other places")


def step_batch(rows: Sequence[StepRow], pad_id: int, *, labelled: bool) -> StepBatch:
    """Rows padded on the right, with all steps or those that have a label."""
    told = [(number, end, float("nan") if label is None else label) for number, row in enumerate(rows)
            for end, label in zip(row.ends, row.trace.labels, strict=True) if not labelled or label is not None]
    at, columns, labels = zip(*told, strict=True)
    return StepBatch(collate([row.row for row in rows], pad_id), torch.tensor(at), torch.tensor(columns),
                     torch.tensor(labels, dtype=torch.float32))


@torch.no_grad()
def step_logits_of(model: nn.Module, rows: Sequence[StepRow], pad_id: int, micro_tokens: int) -> list[list[float]]:
    """For each row the logits of its steps."""
    found: list[list[float]] = [[] for _ in rows]
    for part in budget_batches([row.n_tokens for row in rows], micro_tokens):
        batch = step_batch([rows[i] for i in part], pad_id, labelled=False)
        for row, logit in zip(batch.rows.tolist(), batch.to(device_of(model)).logits(model).tolist(), strict=True):
            found[part[row]].append(logit)
    return found
