"""What a process model says of each step of a response: the probability that the step is right."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from keel.data.collate import budget_batches, collate
from keel.data.records import Prompt
from keel.data.render import Row, Template
from keel.data.segment import Steps, steps_in_text, steps_of
from keel.errors import NumericsError
from keel.models.load import check_context, device_of
from keel.models.process import step_logits
from keel.rollout.measure import same_tokens
from keel.rollout.respond import Responses

__all__ = ["StepScored", "StepScorer", "response_steps"]


@dataclass(frozen=True)
class StepScored:
    """The steps of one response with their scores.

    Attributes:
        texts: of each step, without its separator.
        probabilities: that each step is right.
        unfinished: text of a last step that was cut, which has no score; empty where there is none.
    """

    texts: tuple[str, ...]
    probabilities: list[float]
    unfinished: str


class StepScorer:
    """A process model that reads responses: the sampled tokens or, where its tokenizer differs, their text."""

    def __init__(self, model: nn.Module, own: Template, separator: str, micro_tokens: int, *,
                 policys: Template | None = None) -> None:
        self.model, self.own, self.separator, self.micro_tokens = model, own, separator, micro_tokens
        self.same_tokens = policys is not None and same_tokens(own, policys)

    def __call__(self, responses: Responses, steps: Sequence[Steps]) -> list[list[float]]:
        """Probabilities of the steps of each response.

        Args:
            responses: of the policy whose template is `policys`.
            steps: of each response, in its tokens.
        Raises:
            NumericsError: a score is not finite.
            ModelError: a row is longer than the process model's context.
        """
        if not self.same_tokens:
            told = self.of_texts(responses.prompts, responses.texts, responses.rollout.ended.tolist())
            return [one.probabilities for one in told]
        tokens = responses.rollout.tokens
        rows = [Row(ids[real].tolist(), int(real.sum() - own.sum()), name) for ids, real, own, name in zip(
            tokens.ids.cpu(), tokens.attention_mask.cpu(), tokens.response_mask.cpu(), tokens.record_ids, strict=True)]
        return self.of_rows(rows, [one.ends for one in steps])

    def of_texts(self, prompts: Sequence[Prompt], texts: Sequence[str], ended: Sequence[bool]) -> list[StepScored]:
        """Steps and their probabilities in texts that answer the prompts. Raises as a call does."""
        rows, steps = [], []
        for prompt, text, whole in zip(prompts, texts, ended, strict=True):
            head, said = self.own.prompt_ids(prompt), self.own.response_ids(text, whole, after=prompt.text)
            rows.append(Row(head + said, len(head), prompt.id))
            steps.append(steps_in_text(self.own, text, said, self.separator, ended=whole))
        found = self.of_rows(rows, [one.ends for one in steps])
        return [StepScored(one.texts, values, one.unfinished) for one, values in zip(steps, found, strict=True)]

    @torch.no_grad()
    def of_rows(self, rows: Sequence[Row], ends: Sequence[Sequence[int]]) -> list[list[float]]:
        """Probabilities of the steps that end at those tokens of the response of each row. Raises as a call does."""
        found: list[list[float]] = [[] for _ in rows]
        asked = [i for i, own in enumerate(ends) if own]
        if asked:
            check_context(self.model, max(rows[i].n_tokens for i in asked))
        for part in budget_batches([rows[i].n_tokens for i in asked], self.micro_tokens):
            picked = [asked[k] for k in part]
            batch = collate([rows[i] for i in picked], self.own.pad_id).to(device_of(self.model))
            places = [(row, rows[i].n_prompt + end) for row, i in enumerate(picked) for end in ends[i]]
            at, columns = torch.tensor(places, device=batch.ids.device).unbind(1)
            values = step_logits(self.model, batch, at, columns).float().sigmoid().tolist()
            for (row, _), value in zip(places, values, strict=True):
                found[picked[row]].append(value)
        bad = [rows[i].record_id for i in asked if any(map(math.isnan, found[i]))]
        if bad:
            raise NumericsError("the process model's score of a step is not a number",
                                where=f"records {', '.join(bad[:8])}",
                                remedy="Check the process model on these records; its weights may be damaged.")
        return found


def response_steps(responses: Responses, words: Template, separator: str) -> list[Steps]:
    """The steps of each response, in the tokens that the policy wrote."""
    tokens = responses.rollout.tokens
    return [steps_of(words, ids[own].tolist(), separator, ended=ended) for ids, own, ended in zip(
        tokens.ids.cpu(), tokens.response_mask.cpu(), responses.rollout.ended.tolist(), strict=True)]
