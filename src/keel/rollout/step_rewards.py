"""Rewards of single steps: who scores them, where they end, and what is paid for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from keel.data.records import Prompt
from keel.data.render import Template, template
from keel.data.segment import Steps
from keel.errors import ConfigError, KeelError, NumericsError
from keel.functional.ensemble import combined_scores
from keel.functional.steps import aggregate_steps, step_payments
from keel.models.load import load_tokenizer
from keel.models.process import process_model
from keel.named import named_function
from keel.rollout.process import StepScorer, response_steps
from keel.rollout.respond import Responses
from keel.rollout.reward_settings import RewardConfig, StepConfig

__all__ = ["StepScores", "StepSource", "step_numbers"]

_StepFunction = Callable[[Prompt, str, bool], Sequence[float]]


@dataclass(frozen=True)
class StepScores:
    """What a source says of the S steps of B responses, response by response in their order; on the CPU.

    Attributes:
        values: score of each step. [S]
        rows: number of its response. [S]
        columns: the column of the batch in which it ends. [S]
        texts: of each step.
        repeated: True where its text is that of an earlier step of the response. [S]
        unfinished: for each response, whether it has a last step that was cut, which has no score.
        how: what the source pays for.
        spread: standard deviation over the members of an ensemble, of each step; 0 where there is one. [S]
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    texts: tuple[str, ...]
    repeated: Tensor
    unfinished: tuple[bool, ...]
    how: StepConfig
    spread: Tensor

    @property
    def means(self) -> Tensor:
        """Mean score of the steps of each response; 0 where there is none. [B]"""
        return self._mean(self.values)

    @property
    def spreads(self) -> Tensor:
        """Mean disagreement over the steps of each response; 0 where there is none. [B]"""
        return self._mean(self.spread)

    def _mean(self, x: Tensor) -> Tensor:
        means = aggregate_steps(x, self.rows, len(self.unfinished), how="mean")
        return torch.where(means.isfinite(), means, 0.0).float()

    def of_row(self, i: int) -> list[tuple[str, float]]:
        """Text and score of each step of a response."""
        return [(self.texts[s], float(self.values[s])) for s in (self.rows == i).nonzero()[:, 0].tolist()]

    def paid(self, values: Tensor) -> "StepScores":
        """The steps that are paid, with what they earn by these scores.

        Args:
            values: processed score of each step. [S]
        """
        earned = step_payments(values, self.rows, credit=self.how.credit, cap=self.how.cap, bound=self.how.bound)
        if not self.how.repeats:
            earned = torch.where(self.repeated, earned.clamp_max(0.0), earned)
        return replace(self, values=earned)

    def placed(self, shape: torch.Size) -> Tensor:
        """Values in the cells where steps end, added where several end in one. [B T]"""
        return torch.zeros(shape).index_put((self.rows, self.columns), self.values.float(), accumulate=True)

    def placed_ends(self, shape: torch.Size) -> Tensor:
        """True in the cells where a step ends. [B T]"""
        ends = torch.zeros(shape, dtype=torch.bool)
        ends[self.rows, self.columns] = True
        return ends


class StepSource:
    """A source of rewards for steps: process models, or a function that gives a number for each step.

    Raises:
        ConfigError: a model of it would have to be trained, or the function cannot be imported.
        ModelError: a process model cannot be loaded.
    """

    def __init__(self, source: RewardConfig, words: Template, micro_tokens: int) -> None:
        assert source.steps is not None
        self.name, self.how, self.words, self._combine = source.name, source.steps, words, (
            source.combine, source.dissent_coef)
        self._function = None if source.function is None else named_function(source.function)
        self._scorers = []
        for spec in source.models:
            if spec.lora.rank is not None:
                raise ConfigError(f"lora.rank={spec.lora.rank} of a process model that only scores", where=spec.path,
                                  remedy="Leave lora.rank out: nothing would train the adapter.")
            own = template(load_tokenizer(spec.path, trust_remote_code=spec.trust_remote_code))
            model = process_model(spec).requires_grad_(False)
            self._scorers.append(StepScorer(model, own, source.steps.separator, micro_tokens, policys=words))

    def __call__(self, responses: Responses) -> StepScores:
        """Scores of every finished step.

        Raises:
            NumericsError: a score is not finite, or the function failed or gave another number of scores.
            ModelError: a row is longer than a process model's context.
        """
        steps = response_steps(responses, self.words, self.how.separator)
        if self._function is not None:
            values = torch.tensor([x for told in self._asked(responses, steps) for x in told], dtype=torch.float32)
            spread = torch.zeros_like(values)
        else:
            members = torch.tensor([[x for told in scorer(responses, steps) for x in told]
                                    for scorer in self._scorers])
            how, coef = self._combine
            values, spread = combined_scores(members, how=how, coef=coef) if members.numel() else (
                torch.zeros(0), torch.zeros(0))
        starts = responses.rollout.tokens.response_mask.cpu().int().argmax(1).tolist()
        places = [(i, starts[i] + end) for i, one in enumerate(steps) for end in one.ends]
        rows, columns = torch.tensor(places, dtype=torch.long).view(-1, 2).unbind(1)
        return StepScores(values, rows, columns, tuple(text for one in steps for text in one.texts),
                          torch.tensor([again for one in steps for again in repeats(one.texts)], dtype=torch.bool),
                          tuple(bool(one.unfinished) for one in steps), self.how, spread)

    def _asked(self, responses: Responses, steps: Sequence[Steps]) -> list[list[float]]:
        ended = responses.rollout.ended.tolist()
        return [step_numbers(self._function, prompt, text, whole, len(own.ends)) for prompt, text, whole, own in zip(
            responses.prompts, responses.texts, ended, steps, strict=True)]


def step_numbers(function: Any, prompt: Prompt, text: str, ended: bool, n: int) -> list[float]:
    """What the function says of the n steps of a response.

    Raises:
        NumericsError: it failed, gave another number of scores, or one that is not finite.
    """
    where, remedy = f"record {prompt.id}", "It must give a list with one finite number for each finished step."
    try:
        found = [float(x) for x in function(prompt, text, ended)]
    except KeelError:
        raise
    except Exception as error:
        raise NumericsError(f"the function that scores steps failed: {type(error).__name__}: {error}", where=where,
                            remedy=remedy) from error
    if len(found) != n:
        raise NumericsError(f"the function gave {len(found)} scores for a response of {n} finished steps", where=where,
                            remedy=remedy)
    if not all(abs(x) < float("inf") for x in found):
        raise NumericsError("the function gave a step a score that is not finite", where=where, remedy=remedy)
    return found


def repeats(texts: Sequence[str]) -> list[bool]:
    """For each step, whether an earlier one says the same, but for whitespace around it."""
    said, found = set[str](), list[bool]()
    for text in texts:
        found.append(text.strip() in said)
        said.add(text.strip())
    return found
