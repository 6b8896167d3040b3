"""What a direct preference loss must know of pairs: both sides under policy and reference, their lengths and labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from keel.batches import SharedPrompt
from keel.data.records import Prompt, prompt_numbers
from keel.data.render import PairRow, Row
from keel.errors import ConfigError, DataError
from keel.functional import direct
from keel.functional.masked import Stats
from keel.rng import shuffled
from keel.train.frozen import FrozenNumbers, pair_logprobs_of, pair_numbers, row_digest, row_numbers
from keel.train.tally import Tally

__all__ = ["NO_REFERENCE", "SOFT", "Loss", "Material", "PairLoss", "Passes", "Sides", "lenders", "logprobs_of",
           "mismatched", "reference_says", "require_known_labels"]


Loss = Literal["dpo", "dpo_length_norm", "dpo_no_reference", "dpo_robust", "ipo_mean", "ipo_sum", "hinge", "simpo",
               "cpo", "orpo", "kto"]
NO_REFERENCE = ("dpo_no_reference", "simpo", "cpo", "orpo")
PER_TOKEN = ("dpo_length_norm", "ipo_mean", "simpo", "orpo")
SOFT = ("dpo", "dpo_length_norm", "dpo_no_reference", "cpo", "simpo")
"""Losses that are Bradley-Terry on rewards, which label smoothing makes conservative."""
LABELLED = SOFT[:4]
"""Those that know the soft labels and margins of single pairs too; SimPO has a margin of its own."""


@dataclass(frozen=True)
class Passes:
    """How forward passes are cut, which changes memory and speed, not results: `micro_tokens` positions in one that has
    a backward pass, twice as many in one that has none."""

    pad_id: int
    micro_tokens: int
    shared_prompt: SharedPrompt


@dataclass(frozen=True)
class Sides:
    """Of each pair: log-probabilities of both sides in nats under policy and reference, tokens, and the label."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    n_chosen: Tensor
    n_rejected: Tensor
    label_prob: Tensor
    margin: Tensor

    def per_token(self) -> "Sides":
        """The same with means over tokens."""
        return replace(self, **{name: direct.per_token(getattr(self, name), getattr(self, f"n_{side}"))
                                for side in ("chosen", "rejected") for name in (side, f"ref_{side}")})

    def kto(self, baseline: Tensor, *, beta: float, desirable_weight: float, undesirable_weight: float,
            ) -> tuple[Tensor, Stats]:
        """The mean of KTO's loss of both responses of a pair, of which it knows that one is good and the other bad; and
        the stats of a pair."""
        good, bad = torch.ones_like(self.chosen, dtype=torch.bool), torch.zeros_like(self.chosen, dtype=torch.bool)
        loss, _ = direct.kto(
            torch.cat([self.chosen, self.rejected]), torch.cat([self.ref_chosen, self.ref_rejected]),
            torch.cat([good, bad]), baseline.to(self.chosen.device), beta=beta, desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight)
        stats = direct.dpo(self.chosen, self.rejected, self.ref_chosen, self.ref_rejected, beta=beta)[1]
        return loss.unflatten(0, (2, -1)).mean(0), stats

    def tell(self, tally: Tally, weight: Tensor, *, drift: bool, nll: bool) -> None:
        """Put into the tally what is logged of any pair; numbers per token are means over tokens.

        Args:
            tally: of a step, or of the held-out pairs.
            weight: of each pair.
            drift: whether there is a reference to drift from.
            nll: whether the cross-entropy of chosen responses is in the objective.
        """
        for name, sums, ref, n in (("chosen", self.chosen, self.ref_chosen, self.n_chosen),
                                   ("rejected", self.rejected, self.ref_rejected, self.n_rejected)):
            tally.add({f"logps/{name}": direct.per_token(sums, n)}, weight * n)
            tally.add({f"length/{name}": n} | ({f"drift/{name}": sums - ref} if drift else {}), weight)
        if nll:
            tally.add({"nll": -direct.per_token(self.chosen, self.n_chosen)}, weight * self.n_chosen)


@dataclass(frozen=True)
class PairLoss:
    """What a pair costs, with the numbers of its loss; those that the loss does not know are not looked at."""

    loss: Loss
    beta: float
    gamma: float
    label_smoothing: float
    desirable_weight: float
    undesirable_weight: float

    def __call__(self, sides: Sides, baseline: Tensor | None) -> tuple[Tensor, Stats]:
        """The loss of each pair, and its stats; `baseline` is KTO's."""
        beta, e = self.beta, self.label_smoothing
        s = sides.per_token() if self.loss in PER_TOKEN else sides
        four = (s.chosen, s.rejected, s.ref_chosen, s.ref_rejected)
        if self.loss == "simpo":
            found = direct.simpo(s.chosen, s.rejected, beta=beta, gamma=self.gamma, label_smoothing=e)
        elif self.loss == "orpo":
            found = direct.orpo(s.chosen, s.rejected, beta=beta)
        elif self.loss in ("ipo_mean", "ipo_sum"):
            found = direct.ipo(*four, beta=beta)
        elif self.loss == "hinge":
            found = direct.hinge(*four, beta=beta)
        elif self.loss == "dpo_robust":
            found = direct.dpo_robust(*four, beta=beta, label_smoothing=e)
        elif self.loss == "kto":
            assert baseline is not None, "measured before the step is cut into micro-batches"
            found = s.kto(baseline, beta=beta, desirable_weight=self.desirable_weight,
                          undesirable_weight=self.undesirable_weight)
        else:
            found = direct.dpo(*four, beta=beta, label_smoothing=e, label_prob=s.label_prob, margin=s.margin)
        return found


@dataclass(frozen=True)
class Material:
    """Pairs, and what must be known of them before a step.

    Attributes:
        rows: the pairs.
        reference: Q of both sides, [2 N]; zeros where the loss looks at no reference.
        others: for KTO's baseline, see `mismatched`; else empty.
        ref_others: Q of those, [2 N].
        passes: of the policy.
    """

    rows: Sequence[PairRow]
    reference: Tensor
    others: Sequence[PairRow]
    ref_others: Tensor
    passes: Passes

    @cached_property
    def places(self) -> dict[str, int]:
        """Where the pair of a record is."""
        return {row.record_id: i for i, row in enumerate(self.rows)}

    def sides(self, picked: Sequence[int], logprobs: Sequence[Tensor]) -> Sides:
        """What the loss must know of some pairs, on the device of their log-probabilities."""
        chosen, rejected = logprobs
        rows, device = [self.rows[i] for i in picked], chosen.device
        ref_chosen, ref_rejected = self.reference[:, torch.tensor(picked)].to(device)
        columns = [[float(len(row.chosen_ids)), float(len(row.rejected_ids)), row.pair.label_prob, row.pair.margin]
                   for row in rows]
        n_chosen, n_rejected, label_prob, margin = torch.tensor(columns, device=device).T
        return Sides(chosen, rejected, ref_chosen, ref_rejected, n_chosen, n_rejected, label_prob, margin)


    @torch.no_grad()
    def baseline(self, policy: nn.Module, picked: Sequence[int]) -> Tensor | None:
        """KTO's z over all pairs of a step, whatever its micro-batches are; none for the other losses."""
        if not self.others:
            return None
        numbers = logprobs_of(policy, [self.others[i] for i in picked], self.passes)
        return direct.kto_baseline(numbers.flatten(), self.ref_others[:, torch.tensor(picked)].flatten())


def logprobs_of(policy: nn.Module, rows: Sequence[PairRow], passes: Passes) -> Tensor:
    """Of both sides of pairs, on the CPU and without a gradient. [2 N]"""
    numbers = torch.zeros(2, len(rows))
    for part, found in pair_logprobs_of(policy, rows, pad_id=passes.pad_id, micro_tokens=2 * passes.micro_tokens,
                                        shared_prompt=passes.shared_prompt):
        numbers[:, torch.tensor(part)] = found
    return numbers


def reference_says(cache: FrozenNumbers, model: nn.Module, rows: Sequence[PairRow] | Sequence[Row], passes: Passes,
                   ) -> tuple[Tensor, int]:
    """Log-probabilities under the reference, from its cache as far as they are there, and how many were not: of both
    sides of pairs [2 N], of single rows [1 N].

    Args:
        cache: of the reference, see `FrozenNumbers`.
        model: the reference.
        rows: all of one kind.
        passes: of the reference.
    """
    pairs = [row for row in rows if isinstance(row, PairRow)]
    singles = [row for row in rows if isinstance(row, Row)]
    pad_id, micro_tokens = passes.pad_id, 2 * passes.micro_tokens
    compute = row_numbers(model, singles, pad_id=pad_id, micro_tokens=micro_tokens) if singles else pair_numbers(
        model, pairs, pad_id=pad_id, micro_tokens=micro_tokens, shared_prompt=passes.shared_prompt)
    said, n_computed = cache.fill([row_digest(row) for row in rows], compute, [row.record_id for row in rows])
    if singles:  # the cache holds a number for every token
        said = [found.sum(keepdims=True) for found in said]
    return torch.tensor(np.array(said).reshape(len(rows), -1)).T, n_computed


def require_known_labels(loss: Loss, rows: Sequence[PairRow]) -> None:
    """Soft labels and margins mean something to the losses that are Bradley-Terry on rewards.

    Raises:
        ConfigError: a pair has one, and the loss would pass over it.
    """
    odd = [row.record_id for row in rows if row.pair.margin != 0 or row.pair.label_prob != 1]
    if odd and loss not in LABELLED:
        raise ConfigError(f"loss = {loss} knows no margins and soft labels, and {len(odd)} pairs have one (first: "
                          f"{odd[0]})", remedy=f"Use {', '.join(LABELLED)}, or leave the columns out.")


def lenders(prompts: Sequence[Prompt], seed: int) -> list[int]:
    """For each record the place of another one, about another prompt, whose responses KTO's baseline takes.

    DEVIATION(preference-2): who lends the responses is drawn once over the data, not inside each batch, so that what
    the reference says of them is computed once too, and a small batch has a baseline as well.

    Raises:
        DataError: there is no other prompt.
    """
    numbers = prompt_numbers(prompts)
    if prompts and max(numbers) == 0:
        raise DataError(f"all of {len(prompts)} records have the same prompt", where="loss = kto",
                        remedy="KTO's baseline is taken over responses to other prompts; use another loss, or more "
                               "prompts on both sides of the validation split.")
    order = shuffled(len(prompts), seed, "mismatched")
    found = dict[int, int]()
    for place, i in enumerate(order):
        after = (order[(place + k) % len(order)] for k in range(1, len(order)))
        found[i] = next(j for j in after if numbers[j] != numbers[i])
    return [found[i] for i in range(len(prompts))]


def mismatched(rows: Sequence[PairRow], *, max_length: int, seed: int) -> list[PairRow]:
    """Each pair's prompt with both responses of its lender, cut at their end where they do not fit; see `lenders`."""
    found = []
    for row, j in zip(rows, lenders([row.pair.prompt for row in rows], seed), strict=True):
        room = max_length - len(row.prompt_ids)
        found.append(replace(row, chosen_ids=rows[j].chosen_ids[:room], rejected_ids=rows[j].rejected_ids[:room]))
    return found
