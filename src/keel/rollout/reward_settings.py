"""Settings of rewards: where they come from, what a source pays for, and how scores are brought to one scale."""

from typing import Literal

from pydantic import Field, model_validator

from keel.config import Config
from keel.data.answers import AnswerConfig
from keel.data.files import FileConfig
from keel.data.segment import Separator
from keel.endpoint import EndpointConfig
from keel.models.load import ModelConfig

__all__ = ["AnswerRewardConfig", "RewardConfig", "ScoreConfig", "StepConfig"]

Credit = Literal["sum", "mean", "min", "delta", "clip"]


class StepConfig(Config):
    """How a source that scores single steps of a response pays for them."""

    separator: Separator = Field("\n", min_length=1, description="text that parts steps, each with the step it ends")
    credit: Credit = Field("mean", description="what scores of steps pay: sum as they are, mean over their number, min "
                           "as the lowest falls, delta less the next, clip below bound")
    cap: int | None = Field(None, ge=1, description="steps of a response that are paid, the first ones; none: all")
    bound: float | None = Field(None, description="processed score from which on clip charges nothing; clip")
    repeats: bool = Field(False, description="pay a step that repeats an earlier one of its response like any other; "
                          "else at most 0")

    @model_validator(mode="after")
    def _check(self) -> "StepConfig":
        if (self.bound is not None) != (self.credit == "clip"):
            raise ValueError(f"steps.credit={self.credit!r} and steps.bound={self.bound} do not go together: clip "
                             "needs one, the others take none")
        return self


class AnswerRewardConfig(AnswerConfig):
    """A reward that is looked up: is the final answer the known one? A response that was cut has none."""

    right: float = Field(1.0, description="score of a right answer")
    wrong: float = Field(0.0, description="score of a wrong one, or none")

    @model_validator(mode="after")
    def _check(self) -> "AnswerConfig":
        if self.right <= self.wrong:
            raise ValueError(f"answer.right={self.right:g} is not above answer.wrong={self.wrong:g}: it would teach "
                             "wrong answers")
        return self


class RewardConfig(Config):
    """One source of reward: exactly one of models, function, endpoint and answer."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="what its metrics are called: letters, digits, - and _")
    weight: float = Field(1.0, description="what its processed scores are multiplied by in the sum; not 0")
    models: tuple[ModelConfig, ...] = Field((), description="a reward model, or several: an ensemble; frozen")
    adapters: tuple[str, ...] = Field((), description="LoRA reward models (folders `adapter`), an ensemble that shares "
                                      "one trunk in memory: the only model of models")
    combine: Literal["mean", "minimum", "median", "mean_minus_std", "mean_minus_variance"] = Field(
        "mean", description="one score from the scores of an ensemble; all but mean and median distrust dissent")
    dissent_coef: float | None = Field(None, gt=0, description="how much of the std (variance) of the members "
                                       "mean_minus_std (mean_minus_variance) subtracts")
    calibration: FileConfig | None = Field(None, description="pairs or demonstrations on whose responses each member's "
                                           "mean and std are measured; its scores are then in these units; none: raw")
    function: str | None = Field(None, description="package.module:function of (prompt, text, ended) -> float; with "
                                 "steps a list of numbers, one per step")
    endpoint: EndpointConfig | None = Field(None, description="server that takes responses and returns their scores")
    answer: AnswerRewardConfig | None = Field(None, description="hold the final answer against that which prompts "
                                              "carry")
    steps: StepConfig | None = Field(None, description="the source scores steps: its models are process models, its "
                                     "function gives a list; none: it scores whole responses")
    batch: int = Field(32, ge=1, description="responses per request to the endpoint")

    @model_validator(mode="after")
    def _check(self) -> "RewardConfig":
        given = [name for name, value in (("models", self.models), ("function", self.function),
                                          ("endpoint", self.endpoint), ("answer", self.answer)) if value]
        if not given:
            raise ValueError(f"reward {self.name!r} has no source: give models, function, endpoint or answer")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other in reward {self.name!r}: make two rewards")
        if self.weight == 0:
            raise ValueError(f"weight=0 makes reward {self.name!r} act on nothing: leave it out of rewards")
        if self.adapters and len(self.models) != 1:
            raise ValueError(f"adapters need one model, the trunk they were trained on; reward {self.name!r} has "
                             f"{len(self.models)}")
        if self.combine != "mean" and self.n_members < 2:
            raise ValueError(f"combine={self.combine!r} needs two or more models or adapters, reward {self.name!r} has "
                             f"{self.n_members}")
        if self.calibration is not None and self.n_members < 2:
            raise ValueError(f"calibration needs two or more models or adapters to bring to one scale, reward "
                             f"{self.name!r} has {self.n_members}")
        unfit = [name for name in ("endpoint", "answer", "adapters", "calibration") if getattr(self, name)]
        if self.steps is not None and unfit:
            raise ValueError(f"steps and {unfit[0]} exclude each other in reward {self.name!r}: whole models or a "
                             "function score single steps")
        if self.combine.startswith("mean_minus") != (self.dissent_coef is not None):
            raise ValueError(f"combine={self.combine!r} and dissent_coef={self.dissent_coef} do not go together in "
                             f"reward {self.name!r}: mean_minus_std and mean_minus_variance need one, the others none")
        return self

    @property
    def n_members(self) -> int:
        """How many reward models it has."""
        return len(self.adapters or self.models)

    @property
    def whole(self) -> ModelConfig | None:
        """A reward model that a critic can start from; a trunk with adapters is none."""
        return None if self.adapters or self.steps or not self.models else self.models[0]

    @property
    def warning(self) -> str | None:
        """What a reader of its scores must know."""
        if self.n_members < 2 or self.calibration is not None or self.steps is not None:  # probabilities have a scale
            return None
        counts = "in the disagreement that is logged" if self.combine == "mean" else "as dissent"
        return (f"reward {self.name!r} has combine={self.combine!r} without calibration: training leaves offset and "
                f"scale of each member open, and what they differ by counts {counts}.")


class ScoreConfig(Config):
    """How the scores of each source are brought to one scale before they are weighted and summed."""

    center: bool = Field(True, description="subtract the running mean of all scores so far")
    scale: Literal["scores", "rolling"] | None = Field(
        "scores", description="divide by the running std of all scores so far, or of their rolling sums per token")
    clip: float | None = Field(10.0, gt=0, description="bound on |processed score| of a source; none: unbounded")
    min_std: float = Field(1e-4, gt=0, description="smallest divisor of scale, in units of the score")
