"""A model of `keel experiment axis` as one that is asked: what it says, and where its responses project."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keel.data.chat import Template, template
from keel.data.records import Demonstration, Prompt
from keel.data.render import PromptRow, render_demonstrations, render_prompts
from keel.functional.statistics import area_under_curve
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.online.gauge import Gauge, answer_rows, readings, response_means
from keel.persona.axis import AssistantAxis
from keel.persona.extract import read_again
from keel.rollout.respond import Responses, respond
from keel.rollout.sample import SamplingConfig

__all__ = ["MICRO_TOKENS", "Answers", "Speaker", "area", "speaker"]

MICRO_TOKENS = 8192


@dataclass(frozen=True)
class Answers:
    """What was said to some prompts, in their order."""

    asked: list[PromptRow]
    said: Responses

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self.said.prompts

    @property
    def texts(self) -> tuple[str, ...]:
        return self.said.texts


@dataclass(frozen=True)
class Speaker:
    """A model with its template.

    Attributes:
        model: it answers, under whatever is attached to it.
        words: its tokenizer and chat template.
        sampling: how it answers.
        max_length: of prompt and response, in tokens.
        seed: with the prompts' ids and the names given, of what it says.
    """

    model: nn.Module
    words: Template
    sampling: SamplingConfig
    max_length: int
    seed: int

    def says(self, prompts: Sequence[Prompt], *names: str) -> Answers:
        """One response to each; the same names and prompts draw from the same streams, whatever acts on the model."""
        asked, _ = render_prompts(self.words, prompts, self.max_length - self.sampling.max_new_tokens, "error")
        return Answers(asked, respond(self.model, self.words, asked, self.sampling, seed=self.seed,
                                      names=["experiment axis", *names]))

    def projections(self, axis: AssistantAxis, answers: Answers, layer: int) -> Float[Tensor, " N"]:
        """Mean projection of each response over its content tokens; NaN for one that says nothing."""
        rows = answer_rows(answers.said, answers.asked)
        found = readings(self.model, Gauge({layer: axis.unit(layer)}), rows, self.words, MICRO_TOKENS)
        return response_means(found)[0]

    def states(self, told: Sequence[Demonstration]) -> Float[Tensor, "N L D"]:
        """Mean state of each given response over its content tokens, at every block."""
        rows, _ = render_demonstrations(self.words, told, self.max_length, "error")
        said = [(row.ids[: row.n_prompt], one.response, True) for row, one in zip(rows, told, strict=True)]
        return read_again(self.model, self.words, said, micro_tokens=MICRO_TOKENS).means


def speaker(folder: Path, sampling: SamplingConfig, *, max_length: int, seed: int) -> Speaker:
    """The model of a folder."""
    spec = ModelConfig(path=str(folder))
    return Speaker(causal_lm(spec), template(load_tokenizer(spec.path)), sampling, max_length, seed)


def area(high: Tensor, low: Tensor) -> float:
    """How often a number of the first is above one of the second; ties count half. 0.5 where there is none of one."""
    if not (len(high) and len(low)):
        return 0.5
    positive = torch.arange(len(high) + len(low)) < len(high)
    return float(area_under_curve(torch.cat([high, low]).float(), positive))
