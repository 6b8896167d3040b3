"""Settings of `keel experiment axis`: how its three models are trained, asked and examined."""

from pathlib import Path

from pydantic import Field

from keel.config import Config

__all__ = ["AxisTrialConfig", "DialogueSize", "TownSize", "ToySize"]


class ToySize(Config):
    """The toy of personas."""

    steps: int = Field(600, ge=1, description="optimiser steps of 64 responses, none of them seen twice")
    lr: float = Field(3e-3, gt=0, description="peak learning rate")
    n_questions: int = Field(40, ge=2, description="questions that every role is asked in the extraction")
    n_asked: int = Field(10, ge=1, description="questions asked under each system prompt in an examination")
    n_told: int = Field(2000, ge=20, description="responses of the corpus, new ones, whose speaker is known")


class DialogueSize(Config):
    """The toy that hears feelings, and its fine-tuning."""

    steps: int = Field(800, ge=1, description="optimiser steps of 64 responses, none of them seen twice")
    lr: float = Field(3e-3, gt=0, description="peak learning rate")
    n_questions: int = Field(20, ge=2, description="questions that every role is asked in an extraction")
    n_talks: int = Field(120, ge=12, description="dialogues of each domain in which drift is measured")
    tune_steps: int = Field(150, ge=1, description="optimiser steps of 64 responses, most of them in a role")
    tune_lr: float = Field(5e-4, gt=0, description="peak learning rate of fine-tuning")
    coef: float = Field(10.0, gt=0, description="lambda of the anchoring loss")
    push: float = Field(0.1, gt=0, description="preventative steering: away from the assistant, in mean lengths of a "
                        "state")
    n_asked: int = Field(400, ge=2, description="prompts of each kind that a fine-tuned model answers")


class TownSize(Config):
    """The town, for jailbreaks by persona."""

    n_demonstrations: int = Field(4000, ge=40, description="answers of quality 0.95, half of them in roles, read twice")
    n_questions: int = Field(30, ge=2, description="questions that every role is asked in the extraction")
    n_asked: int = Field(200, ge=2, description="prompts of each kind that are answered under each setting")


class AxisTrialConfig(Config):
    """Everything `keel experiment axis` reads."""

    out: Path = Field(Path("runs/experiment-axis"), description="folder to make, or to go on with")
    seeds: int = Field(5, ge=1, le=20, description="seeds; fewer than five settle nothing")
    first_seed: int = Field(0, ge=0, description="the first of them; the others follow")
    jobs: int = Field(2, ge=1, description="processes at a time, each of one thread")
    toy: ToySize = ToySize()
    dialogue: DialogueSize = DialogueSize()
    town: TownSize = TownSize()
