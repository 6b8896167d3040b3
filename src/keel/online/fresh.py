"""A fresh axis: extracted again from the model as it is now, with the same few roles and questions as at the start.

A projection on the axis of the start means less and less as the model's own axis turns away from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from keel.bench.role_judge import Rated, RoleJudge, RoleJudgeConfig
from keel.config import Config
from keel.data.render import PromptRow
from keel.data.roles import read_questions, read_roles
from keel.errors import DataError
from keel.functional.directions import cosine
from keel.models.residual import attach, n_blocks
from keel.online.anchor import Start
from keel.persona.asking import Item, asked, keeps_system, role_units
from keel.persona.axis import AssistantAxis
from keel.persona.extract import Listener, RoleSums
from keel.persona.space import gathered
from keel.rollout.respond import respond

__all__ = ["VALID", "Fresh", "FreshConfig", "extracted", "fresh"]

VALID = 0.9
"""Cosine of the fresh and the first axis below which the frozen reading is no longer valid."""
FILE = "fresh_axis.safetensors"
AT_ONCE = 64


class FreshConfig(Config):
    """With what the axis is extracted again, at the start and at the end."""

    roles: Path = Field(description="roles with system prompts, the default among them, as for `keel axis extract`")
    questions: Path = Field(description="questions that all roles are asked; rows with a column question")
    judge: RoleJudgeConfig | None = Field(None, description="who scores responses 0 to 3; none: all responses count")
    n_roles: int = Field(12, ge=1, description="first roles of the file beside the default")
    n_prompts: int = Field(1, ge=1, description="first system prompts of each role")
    n_questions: int = Field(8, ge=1, description="first questions of the file")
    min_count: int = Field(3, ge=1, description="responses that play a role fully which its vector needs")
    every: int | None = Field(None, ge=1, description="visits to the probes between two; none: at the end alone")


@dataclass(frozen=True)
class Fresh:
    """What is asked, and the axis that came of it at the start.

    Attributes:
        cfg: settings.
        start: the run's.
        first: the axis of the model of the start, extracted in this way.
        file: the axis that the run reads along.
    """

    cfg: FreshConfig
    start: Start
    first: Float[Tensor, "L D"]
    file: Float[Tensor, "L D"]

    def compared(self, model: nn.Module, layer: int) -> dict[str, float]:
        """Cosine of the model's own axis now with that of the start, and with the file's. Nothing where the model does
        not play the roles any more."""
        try:
            now = extracted(self.cfg, self.start, model)
        except DataError as error:
            self.start.log.note(f"no fresh axis could be extracted: {error.what}")
            return {}
        found = float(cosine(now[layer], self.first[layer]))
        if found < VALID:
            self.start.log.note(f"cosine {found:.2f} of the fresh axis with that of the start, below {VALID}: "
                                "projections on the old axis are no longer valid readings")
        return {"persona/fresh": found, "persona/fresh_file": float(cosine(now[layer], self.file[layer]))}


def fresh(cfg: FreshConfig | None, start: Start, path: Path) -> Fresh | None:
    """The axis of the model of the start, extracted or as it was when the run began; none where it is off.

    Raises:
        DataError: the files cannot be read, or the model does not play the roles.
    """
    if cfg is None:
        return None
    kept = start.log.folder / FILE
    if not start.known(FILE):
        AssistantAxis(extracted(cfg, start, start.model)).save(kept)
    return Fresh(cfg, start, AssistantAxis.load(kept).vectors, AssistantAxis.load(path).vectors)


def extracted(cfg: FreshConfig, start: Start, model: nn.Module) -> Float[Tensor, "L D"]:
    """The axis of a model, at every block, from responses sampled now. Raises: see `fresh`."""
    roles = read_roles(cfg.roles)
    played = [role for role in roles if not role.is_default][: cfg.n_roles]
    questions = read_questions(cfg.questions)[: cfg.n_questions]
    units = role_units([*played, *(role for role in roles if role.is_default)], questions, cfg.n_prompts, "the model")
    items = [item for unit in units for item in unit]
    judge = None if cfg.judge is None else RoleJudge(cfg.judge, start.seed)
    sums = dict[tuple[str, str], RoleSums]()
    for at in range(0, len(items), AT_ONCE):
        _add(sums, items[at : at + AT_ONCE], start, model, judge)
    return gathered(list(sums.values()), min_count=cfg.min_count).axis


def _add(sums: dict[tuple[str, str], RoleSums], items: Sequence[Item], start: Start, model: nn.Module,
         judge: RoleJudge | None) -> None:
    """Ask, listen, judge, and add to the sums of each role."""
    own_turn = keeps_system(start.words)
    prompts = [asked(item, own_turn) for item in items]
    rows = [PromptRow(start.words.prompt_ids(prompt), prompt) for prompt in prompts]
    listener = Listener(len(items), n_blocks(model))
    with attach(model, listener.taps):
        said = respond(model, start.words, rows, start.sampling, seed=start.seed, names=["fresh"])
    heard, ended = listener.heard(), said.rollout.ended.tolist()
    labels = ["all"] * len(items)
    roles = [i for i, item in enumerate(items) if item.kind == "role"]
    if judge is not None:
        scores = judge.scores([Rated(prompts[i], said.texts[i], ended[i], items[i].question, items[i].eval_prompt)
                               for i in roles])
        for i, score in zip(roles, scores, strict=True):
            labels[i] = "unscored" if score is None else str(score)
    for key in dict.fromkeys((item.role, item.kind) for item in items):
        mine = [i for i, item in enumerate(items) if (item.role, item.kind) == key]
        sums.setdefault(key, RoleSums(*key)).add([f"{labels[i]}/{items[i].half}" for i in mine], heard.picked(mine))
