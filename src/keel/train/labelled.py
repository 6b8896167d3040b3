"""Single responses that are good or bad by themselves, for KTO: what must be known of them before a step, the losses of
a step, and how well the implied reward tells good from bad."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.data.collate import budget_batches, collate
from keel.data.records import Demonstration, Labelled, prompt_numbers
from keel.data.render import PairRow, PromptRow, Row, Template, TooLong, Truncation, render_demonstrations
from keel.errors import DataError
from keel.functional import direct
from keel.functional.masked import weighted_sum
from keel.functional.resampling import cluster_draws, percentile_interval
from keel.functional.statistics import area_under_curve
from keel.models.forward import token_logprobs
from keel.models.load import device_of
from keel.rng import stream
from keel.train.direct import Passes, lenders
from keel.train.tally import Tally

__all__ = ["KtoSettings", "LabelledRow", "Singles", "balance_note", "labelled_rows", "mismatched_rows"]

N_DRAWS = 1000
"""Resamples of an interval."""
MOST_UNEVEN = 4 / 3


class Holding(Protocol):
    """What acts on training passes of the policy, and what their states add to the objective."""

    def passing(self, model: nn.Module) -> AbstractContextManager[None]: ...

    def cost(self, batch: TokenBatch, weights: Tensor, total: float, tally: Tally) -> Tensor | float: ...


@dataclass(frozen=True)
class LabelledRow:
    """Tokens of a prompt and its response, and the record they come from."""

    row: Row
    record: Labelled

    @property
    def record_id(self) -> str:
        return self.record.id

    @property
    def longest(self) -> int:
        return self.row.n_tokens

    @property
    def asked(self) -> PromptRow:
        """The prompt alone."""
        return PromptRow(self.row.ids[: self.row.n_prompt], self.record.prompt)


@dataclass(frozen=True)
class KtoSettings:
    """Numbers of the loss, see `direct.kto`; `nll_coef` weighs the cross-entropy of good responses."""

    beta: float
    desirable_weight: float
    undesirable_weight: float
    nll_coef: float


@dataclass(frozen=True)
class Singles:
    """Labelled responses, and what must be known of them before a step.

    Attributes:
        rows: the responses.
        reference: Q of each, [N].
        others: for the baseline, see `mismatched_rows`.
        ref_others: Q of those, [N].
        how: the loss.
        passes: of the policy.
    """

    rows: Sequence[LabelledRow]
    reference: Tensor
    others: Sequence[Row]
    ref_others: Tensor
    how: KtoSettings
    passes: Passes

    def objectives(self, policy: nn.Module, picked: Sequence[int], tally: Tally, holds: Holding,
                   ) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """What a step's micro-batches add to the objective, with the ids of their records; the tally is told.

        Args:
            policy: learns; backward is the caller's.
            picked: places in `rows` of the whole step, over which the means and the baseline are.
            tally: of the step.
            holds: acts on the passes, or prices their states.
        """
        how, rows = self.how, [self.rows[i].row for i in picked]
        with holds.passing(policy):
            baseline = self.baseline(policy, picked)
        n_tokens = sum(row.n_tokens - row.n_prompt for row in rows)
        n_good = sum(row.n_tokens - row.n_prompt for i, row in zip(picked, rows, strict=True)
                     if self.rows[i].record.label)
        for part in budget_batches([row.n_tokens for row in rows], self.passes.micro_tokens):
            batch = collate([rows[i] for i in part], self.passes.pad_id).to(device_of(policy))
            with holds.passing(policy):
                sums = direct.response_logprobs(token_logprobs(policy, batch)[0], batch.response_mask)
            loss, good = self._told([picked[i] for i in part], sums, baseline, tally)
            objective = loss.sum() / len(rows)
            if how.nll_coef and n_good:
                objective = objective + how.nll_coef * weighted_sum(-sums, good.float()) / n_good
            yield batch.record_ids, objective + holds.cost(batch, batch.response_mask.float(), n_tokens, tally)

    @torch.no_grad()
    def baseline(self, policy: nn.Module, picked: Sequence[int]) -> Tensor:
        """KTO's z over all responses of a step."""
        numbers = self._logprobs(policy, [self.others[i] for i in picked])
        return direct.kto_baseline(numbers, self.ref_others[torch.tensor(picked)])

    @torch.no_grad()
    def evaluate(self, policy: nn.Module, seed: int) -> dict[str, float]:
        """What the log says of steps, over all rows; and how often a good response has a larger reward than a bad one,
        beside the rule that good responses are the longer ones. Empty where there are no rows."""
        if not self.rows:
            return {}
        everything, tally = list(range(len(self.rows))), Tally()
        sums = self._logprobs(policy, [row.row for row in self.rows])
        good = self._told(everything, sums, self.baseline(policy, everything), tally)[1]
        prompts = torch.tensor(prompt_numbers([row.record.prompt for row in self.rows]))
        length = torch.tensor([float(row.row.n_tokens - row.row.n_prompt) for row in self.rows])
        areas = {f"{name}{end}": value for name, scores in (("auc", sums - self.reference), ("length_auc", length))
                 for end, value in zip(("", "_low", "_high"), _area(scores, good, prompts, seed), strict=False)}
        return tally.means() | areas | {"n": len(self.rows)}

    def _logprobs(self, policy: nn.Module, rows: Sequence[Row]) -> Tensor:
        """Of each response, on the CPU; without a backward pass twice as many positions fit."""
        numbers = torch.zeros(len(rows))
        for part in budget_batches([row.n_tokens for row in rows], 2 * self.passes.micro_tokens):
            batch = collate([rows[i] for i in part], self.passes.pad_id).to(device_of(policy))
            numbers[torch.tensor(part)] = direct.response_logprobs(
                token_logprobs(policy, batch)[0], batch.response_mask).cpu()
        return numbers

    def _told(self, places: Sequence[int], sums: Tensor, baseline: Tensor, tally: Tally) -> tuple[Tensor, Tensor]:
        """The loss of each response and whether it is a good one; what is logged of them goes to the tally."""
        how, rows, device = self.how, [self.rows[i] for i in places], sums.device
        good = torch.tensor([row.record.label for row in rows], device=device)
        n = torch.tensor([float(row.row.n_tokens - row.row.n_prompt) for row in rows], device=device)
        reference = self.reference[torch.tensor(places)].to(device)
        loss, stats = direct.kto(sums, reference, good, baseline.to(device), beta=how.beta,
                                 desirable_weight=how.desirable_weight, undesirable_weight=how.undesirable_weight)
        mean = direct.per_token(sums, n)
        tally.add({"loss": loss, "kto/baseline": baseline.expand(len(rows)), "desirable": good.float()})
        for name, mask in (("desirable", good), ("undesirable", ~good)):
            if bool(mask.any()):
                tally.add({f"rewards/{name}": stats["rewards"], f"drift/{name}": sums - reference,
                           f"length/{name}": n}, mask.float())
                tally.add({f"logps/{name}": mean}, mask * n)
        if how.nll_coef and bool(good.any()):
            tally.add({"nll": -mean}, good * n)
        return loss, good


def labelled_rows(words: Template, records: Sequence[Labelled], max_length: int, too_long: TooLong,
                  ) -> tuple[list[LabelledRow], Truncation]:
    """Records as rows of tokens, each made to fit by itself; arguments as those of `render_demonstrations`."""
    named = {record.id: record for record in records}
    rows, cut = render_demonstrations(words, [Demonstration(record.prompt, record.response) for record in records],
                                      max_length, too_long)
    return [LabelledRow(row, named[row.record_id]) for row in rows], cut


def mismatched_rows(rows: Sequence[LabelledRow], *, max_length: int, seed: int) -> list[Row]:
    """Each prompt with a response to another one, cut at its end where it does not fit; see `lenders`."""
    found = []
    for row, j in zip(rows, lenders([row.record.prompt for row in rows], seed), strict=True):
        asked, lent = row.row.ids[: row.row.n_prompt], rows[j].row
        found.append(Row((asked + lent.ids[lent.n_prompt :])[:max_length], len(asked), row.record_id))
    return found


def balance_note(rows: Sequence[LabelledRow] | Sequence[PairRow], desirable_weight: float, undesirable_weight: float,
                 ) -> str | None:
    """What to say where good and bad responses do not weigh what KTO's authors advise (arXiv:2402.01306, section 4.2):
    w_d n_d / (w_u n_u) from 1 to 4/3. Pairs have as many of both.

    Raises:
        DataError: all responses are good, or all are bad.
    """
    labels = [row.record.label for row in rows if isinstance(row, LabelledRow)]
    n_good, n_bad = (sum(labels), len(labels) - sum(labels)) if labels else (len(rows), len(rows))
    if labels and not (n_good and n_bad):
        raise DataError(f"all of {len(labels)} labelled responses to train on are {'good' if n_good else 'bad'}",
                        where="loss = kto", remedy="KTO needs both; with good ones only, use `keel sft`.")
    uneven = desirable_weight * n_good / (undesirable_weight * n_bad) if rows else 1.0
    if 1 <= uneven <= MOST_UNEVEN:
        return None
    return (f"desirable_weight x {n_good} good responses / (undesirable_weight x {n_bad} bad ones) = {uneven:.2f}; "
            f"KTO's authors keep it between 1 and 4/3. It is 1 with desirable_weight = {desirable_weight / uneven:.4g}")


def _area(scores: Tensor, good: Tensor, prompts: Tensor, seed: int) -> tuple[float, ...]:
    """Area under the curve with its 95% interval, prompts drawn whole; nothing where all are good or all are bad."""
    def area(times: Tensor) -> float:
        told = good.repeat_interleave(times)
        both = 0 < int(told.sum()) < len(told)
        return float(area_under_curve(scores.repeat_interleave(times), told)) if both else math.nan

    found = area(torch.ones_like(prompts))
    if math.isnan(found):
        return ()
    draws = cluster_draws(int(prompts.max()) + 1, n_draws=N_DRAWS, generator=stream(seed, "bootstrap"))
    low, high = percentile_interval(torch.tensor([area(draw[prompts].long()) for draw in draws]))
    return found, float(low), float(high)
