"""Held-out prompts answered with the same random streams every time, and which policy was the best on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keel.data.render import PromptRow, Template
from keel.functional.masked import masked_sum
from keel.models.load import save_model
from keel.rollout.measure import measure
from keel.rollout.respond import respond, scoring_function, summary
from keel.rollout.respond import sample_rows as rows_of
from keel.rollout.reward import RewardSources
from keel.rollout.sample import SamplingConfig
from keel.runs import Run

__all__ = ["Exam", "headline", "keep_best", "without_each"]

Found = dict[str, Any]
"""Summaries by name (mean, low, high, n), and single values under `each/...`."""


class Exam:
    """Held-out prompts with everyone who marks the answers."""

    def __init__(self, log: Run, words: Template, prompts: Sequence[PromptRow], rewards: RewardSources, *,
                 reference: nn.Module, gold: str | None, micro_tokens: int, seed: int) -> None:
        self.members: dict[str, list[int]] = {}
        self.log, self.words, self.prompts, self.rewards = log, words, prompts, rewards
        self.reference, self.micro_tokens, self.seed = reference, micro_tokens, seed
        self.gold = None if gold is None else scoring_function(gold)

    def by_label(self, column: str) -> None:
        """Also say what the answers to the prompts of each label are worth, where prompts carry labels in `column`."""
        labels = [row.record.label(column) for row in self.prompts]
        self.members = {label: [i for i, other in enumerate(labels) if other == label]
                        for label in labels if label is not None}

    def sit(self, policy: nn.Module, sampling: SamplingConfig, step: int, start: Found, n_samples: int) -> Found:
        """Answer, mark, log the means with their intervals, keep samples.

        Args:
            policy: who answers.
            sampling: how.
            step: under which to log.
            start: what the policy of the start found here; empty when this is the start.
            n_samples: answers kept.
        """
        if not self.prompts:
            return {}
        responses = respond(policy, self.words, self.prompts, sampling, seed=self.seed, names=["evaluate"])
        measured = measure(responses, policy=policy, reference=self.reference, critic=None, kl="k3",
                           micro_tokens=self.micro_tokens, temperature=sampling.logprob_temperature)
        mask = measured.tokens.response_mask
        lengths = mask.sum(1).float().cpu()
        scored = self.rewards(responses)
        columns = {"score": scored.total}
        if self.gold is not None:
            columns["gold"] = responses.scored_by(self.gold)
        found: Found = {name: summary(x, self.seed, name) for name, x in (columns | {"length": lengths}).items()}
        found |= {f"group/{label}/{name}": summary(x[rows], self.seed, name, label)
                  for label, rows in sorted(self.members.items()) for name, x in columns.items()}
        found["kl"] = {"mean": float(masked_sum(measured.kl, mask) / mask.sum())}
        for name in [name for name in columns if f"each/{name}" in start]:
            gap = columns[name] - torch.tensor(start[f"each/{name}"])
            found[f"win_rate/{name}"] = summary((gap > 0).float() + 0.5 * (gap == 0).float(), self.seed, "wins", name)
        self.log.log(step, {f"{name}/{key}": x for name, values in found.items() for key, x in values.items()}, "eval")
        rows = rows_of(step, responses, columns, n_samples)
        for told in list(scored.steps.values())[:1]:  # one source colours the page
            rows = [row | {"steps": told.of_row(i)} for i, row in enumerate(rows)]
        self.log.sample(rows)
        return found | {f"each/{name}": x.tolist() for name, x in columns.items()}


def keep_best(best: Found | None, found: Found, step: int, policy: nn.Module, tokenizer: Any, folder: Path, *,
              by: str | None, kl_budget: float | None) -> Found | None:
    """Write the policy to `folder` if none before it did better within its budget of drift; what the best one found.

    Args:
        best: what the best so far found; none: there is none.
        found: what this policy found.
        step: of this policy.
        policy: who sat the exam.
        tokenizer: saved with it.
        folder: where the best one is kept.
        by: the summary whose mean counts, score or gold; none: no policy is kept.
        kl_budget: nats per token on held-out answers; none: any drift.
    """
    if by is None or not found or (kl_budget is not None and found["kl"]["mean"] > kl_budget):
        return best
    if best is not None and found[by]["mean"] <= best[by]["mean"]:
        return best
    save_model(policy, tokenizer, folder)
    return without_each(found) | {"step": step}


def without_each(found: Found) -> Found:
    """The summaries, without the single values that the paired interval needs."""
    return {name: x for name, x in found.items() if not name.startswith("each/")}


def headline(before: Found, after: Found, seed: int) -> Found | None:
    """Gold where it is known, the reward's score elsewhere; the change is paired, prompt by prompt."""
    name = "gold" if "gold" in before else "score"
    if name not in before:
        return None
    change = torch.tensor(after[f"each/{name}"]) - torch.tensor(before[f"each/{name}"])
    return {"metric": name, "before": before[name], "after": after[name], "higher_is_better": True,
            "change": summary(change, seed, "change")}
