"""The two-phase step of MetaRM: gradients of one objective, taken at weights that a step up another one leads to.

Structurally the step of sharpness-aware minimisation, with the perturbation taken from another objective.
Source: arXiv:2401.06080, Algorithm 1 (MetaRM, also arXiv:2405.00438).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from keel.config import Config
from keel.errors import ConfigError
from keel.models.load import trunk_of

__all__ = ["AscentConfig", "add_curvature", "gradient", "lifted", "lifted_parameters", "norm", "step_size"]

Share = Callable[[], Tensor]
"""A micro-batch's share of an objective, with its graph; the objective is the sum of its shares."""


class AscentConfig(Config):
    """The step up: theta' = theta + eta * grad J."""

    rho: float | None = Field(1e-3, gt=0, description="length of the step up as a share of the norm of the weights "
                              "that take it; none: eta")
    eta: float | None = Field(None, ge=0, description="the step's factor itself; 0 is plain training. None: from rho")
    params: Literal["all", "head"] = Field("all", description="weights that take the step: all that learn, or the "
                                           "score's head alone")
    order: Literal["first", "second"] = Field("first", description="first: the gradient at the upper point, as "
        "printed; second: also through the step, at three times the memory (small models)")
    check_every: int = Field(10, ge=1, description="steps between checks that the step up raises J")

    @model_validator(mode="after")
    def _check(self) -> "AscentConfig":
        if (self.rho is None) == (self.eta is None):
            raise ValueError(f"ascent.rho={self.rho} and ascent.eta={self.eta}: give one, and set the other to none")
        return self


def lifted_parameters(model: nn.Module, cfg: AscentConfig) -> list[nn.Parameter]:
    """The weights that take the step up.

    Raises:
        ConfigError: their number format would swallow it.
    """
    trunk = {id(p) for p in trunk_of(model).parameters()}
    found = [p for p in model.parameters() if p.requires_grad and (cfg.params == "all" or id(p) not in trunk)]
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in found):
        raise ConfigError("weights of 16 bits swallow a step of a thousandth of their size",
                          where="model.dtype and ascent.params",
                          remedy="Set model.dtype = float32 (with model.autocast = true products stay fast), "
                                 "model.lora.rank, or ascent.params = head.")
    return found


def gradient(shares: Sequence[Share], parameters: Sequence[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
    """An objective and its gradient, share by share; no `.grad` is read or written."""
    value, total = torch.zeros(()), [torch.zeros_like(p) for p in parameters]
    for share in shares:
        objective = share()
        for held, found in zip(total, torch.autograd.grad(objective, parameters, allow_unused=True), strict=True):
            if found is not None:
                held.add_(found)
        value = value + objective.detach().cpu()
    return value, total


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all of them as one vector."""
    return nn.utils.get_total_norm([x.detach() for x in tensors])


def step_size(cfg: AscentConfig, parameters: Sequence[nn.Parameter], rise: Sequence[Tensor]) -> float:
    """eta as given, or so that |eta * grad J| is `rho` times the norm of the weights that move."""
    if cfg.eta is not None:
        return cfg.eta
    assert cfg.rho is not None, "the settings give one of the two"
    return cfg.rho * float(norm(parameters)) / (float(norm(rise)) + 1e-12)


@contextmanager
def lifted(parameters: Sequence[nn.Parameter], rise: Sequence[Tensor], eta: float) -> Iterator[None]:
    """Inside the block the weights are theta + eta * rise; after it they are what they were, bit for bit.

    They are put back from a copy: taking the step back by subtraction would leave its rounding behind.
    """
    before = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p, direction in zip(parameters, rise, strict=True):
                p.add_(direction, alpha=eta)
        yield
    finally:
        with torch.no_grad():
            for p, held in zip(parameters, before, strict=True):
                p.copy_(held)


def add_curvature(shares: Sequence[Share], lifted: Sequence[nn.Parameter], learned: Sequence[nn.Parameter],
                  eta: float) -> None:
    """Turn first-order gradients into the gradient through the step up: g becomes (I + eta * Hess J) g.

    eta counts as a constant also where it comes from `rho`.

    Args:
        shares: of J, computed at theta, not at theta'.
        lifted: the weights that took the step.
        learned: all weights that the optimiser moves; their `.grad` holds g.
        eta: of the step.
    """
    pulls = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in lifted]
    for share in shares:
        with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
            rise = torch.autograd.grad(share(), lifted, create_graph=True, allow_unused=True)
            along = torch.stack([(a * b).sum() for a, b in zip(rise, pulls, strict=True) if a is not None]).sum()
            bends = torch.autograd.grad(along, learned, allow_unused=True)
        for p, bend in zip(learned, bends, strict=True):
            if bend is not None:
                p.grad = eta * bend if p.grad is None else p.grad.add_(bend, alpha=eta)
