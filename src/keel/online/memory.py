"""What a phase must know of those before it, beside the models; and which phase it is."""

from dataclasses import dataclass
from typing import Any

from keel import runs
from keel.functional.advantage import adapted_kl_coef
from keel.online.settings import OnlineConfig
from keel.train import alarms, checkpoint

__all__ = ["Memory", "Phase", "beginning", "go_back", "prepare_next"]

Memory = dict[str, Any]
"""Plain values and tensors; part of every checkpoint."""


@dataclass(frozen=True)
class Phase:
    """A phase: critic pre-training, or one in which the policy learns.

    Attributes:
        step: counted from 1 over both kinds.
        shown: counted from 1 within its kind; what logs say.
        pretraining: whether only the critic learns.
    """

    step: int
    shown: int
    pretraining: bool

    @classmethod
    def after(cls, step: int, memory: Memory) -> "Phase":
        """The phase that follows `step` finished ones."""
        pretraining = memory["pretrained"] is None
        return cls(step + 1, step + 1 if pretraining else step + 1 - memory["pretrained"], pretraining)

    @property
    def name(self) -> str:
        """What logs call it."""
        return "critic" if self.pretraining else "train"

    def is_last(self, cfg: OnlineConfig) -> bool:
        """Whether the run ends with it."""
        return not self.pretraining and self.shown == cfg.steps

    def numbers(self, cfg: OnlineConfig, k: int) -> dict[str, int]:
        """Which optimiser step the k-th update is, of each model that takes one; its schedule jumps what pre-training
        saved."""
        number, early = (self.shown - 1) * cfg.updates + k + 1, cfg.critic.pretrain * cfg.updates
        if self.pretraining:
            return {"critic": number}
        return {"policy": number} | ({"critic": early + number} if cfg.advantage.has_critic else {})


def beginning(cfg: OnlineConfig) -> Memory:
    """What is known before the first phase."""
    return {"moments": {}, "history": [], "value_losses": [], "pretrained": None if cfg.critic.pretrain else 0,
            "kl_coef": cfg.kl.coef, "lr_factor": 1.0, "n_alarms": 0, "from_start": [], "rollbacks": 0, "saved": 0,
            "good": 0, "best": None}


def prepare_next(memory: Memory, metrics: dict[str, Any], step: int, cfg: OnlineConfig) -> None:
    """End the critic's pre-training once it sees, or learns no more; adapt the price of drift."""
    if memory["pretrained"] is None:
        memory["value_losses"].append(metrics.get("loss/value", float("nan")))  # NaN: no response counted
        if cfg.critic.is_ready(memory["value_losses"], metrics["value/explained_variance"]):
            memory["pretrained"] = step
    elif cfg.kl.target is not None:
        memory["kl_coef"] = adapted_kl_coef(memory["kl_coef"], metrics["kl/charged"], target=cfg.kl.target,
                                            horizon=cfg.kl.horizon, n_responses=cfg.rollouts)


def go_back(log: runs.Run, memory: Memory, state: dict[str, Any], shown: int, cfg: OnlineConfig) -> Memory:
    """Models, optimisers and running moments of the last checkpoint that did well; dearer drift, smaller steps."""
    then = checkpoint.go_back(log, memory["good"], **state)
    times, to = memory["rollbacks"] + 1, memory["good"] - memory["pretrained"]
    log.alarm(alarms.rolled_back(to, times, cfg.rollback.most).row(shown))
    return memory | {name: then[name] for name in RESTORED if name in then} | {
        "rollbacks": times, "saved": memory["good"], "kl_coef": memory["kl_coef"] * cfg.rollback.kl_factor,
        "lr_factor": memory["lr_factor"] * cfg.rollback.lr_factor}


RESTORED = ("moments", "history", "value_losses", "groups")
"""What going back forgets of the phases since."""
