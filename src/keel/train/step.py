"""One optimiser step: schedule, finite guard, clipping, update."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from keel.config import Config
from keel.errors import NumericsError
from keel.train.schedule import Schedule, factor

Share = Annotated[float, Field(ge=0, lt=1)]

__all__ = ["Learner", "OptimizerConfig", "joint_norm", "require_finite"]


class OptimizerConfig(Config):
    """AdamW and its schedule."""

    lr: float = Field(1e-5, gt=0, description="peak learning rate")
    betas: tuple[Share, Share] = Field((0.9, 0.95), description="AdamW's decay rates of first and second moment")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay, per unit of learning rate")
    schedule: Schedule = Field("cosine", description="shape of the learning rate after warm-up")
    warmup_fraction: float = Field(0.03, ge=0, lt=1, description="share of the steps spent warming up")
    lr_floor: float = Field(0.1, ge=0, le=1, description="share of the peak at which linear and cosine end; "
                           "at least this much during warm-up")
    max_grad_norm: float | None = Field(1.0, gt=0, description="bound on the global gradient norm; none: unbounded")


@dataclass(frozen=True)
class Learner:
    """A model's trainable parameters with their optimiser and schedule."""

    parameters: tuple[nn.Parameter, ...]
    optimizer: torch.optim.AdamW
    config: OptimizerConfig
    total_steps: int

    @classmethod
    def of(cls, modules: Iterable[nn.Module], config: OptimizerConfig, total_steps: int) -> "Learner":
        seen = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        parameters = tuple(seen.values())
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, eps=config.eps,
                                      weight_decay=config.weight_decay, fused=True)
        return cls(parameters, optimizer, config, total_steps)

    def grad_norm(self) -> Tensor:
        """Global norm of the gradients as they are now."""
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def forget(self) -> None:
        """Clear the gradients without an update."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, number: int, record_ids: Sequence[str], *, joint_norm: Tensor | None = None,
             lr_factor: float = 1.0) -> dict[str, float]:
        """Clip, update, clear the gradients; `number` counts optimiser steps from 1.

        Args:
            number: of this step, for the schedule.
            record_ids: of the batch, for the error.
            joint_norm: norm by which to clip, where several learners are clipped together; none: their own.
            lr_factor: multiplies the scheduled learning rate.
        Returns:
            `grad_norm` before clipping and `lr`.
        Raises:
            NumericsError: a gradient is not finite; nothing was updated.
        """
        warmup = round(self.config.warmup_fraction * self.total_steps)
        lr = lr_factor * self.config.lr * factor(number, kind=self.config.schedule, warmup=warmup,
                                                 total=self.total_steps, floor=self.config.lr_floor)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        bound = self.config.max_grad_norm or float("inf")
        norm = self.grad_norm()
        require_finite(norm, "grad_norm", number, record_ids)
        nn.utils.clip_grads_with_norm_(self.parameters, bound, norm if joint_norm is None else joint_norm)
        self.optimizer.step()
        self.forget()
        return {"grad_norm": float(norm), "lr": lr}


def joint_norm(learners: Iterable[Learner]) -> Tensor:
    """Global norm of the gradients of several learners together."""
    return torch.linalg.vector_norm(torch.stack([learner.grad_norm() for learner in learners]))


def require_finite(value: Tensor, name: str, step: int, record_ids: Sequence[str]) -> None:
    """Stop the run on a number that is not finite.

    Raises:
        NumericsError: with step, metric and the ids of the records in the batch.
    """
    if bool(torch.isfinite(value).all()):
        return
    shown = ", ".join(record_ids[:8]) + (f" and {len(record_ids) - 8} more" if len(record_ids) > 8 else "")
    raise NumericsError(f"{name} is not finite", where=f"step {step} (records {shown})",
                        remedy="The last checkpoint is intact. Lower the learning rate, or look at these records with "
                               "`keel data show`.")
