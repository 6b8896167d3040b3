"""What an axis does to the training passes of a policy, for every recipe: act on the stream, or price where it goes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.data.render import PromptRow
from keel.models.forward import token_kl
from keel.models.load import frozen_copy
from keel.online.anchor import Anchor, AnchorConfig, Start, anchored
from keel.persona.handles import Handle
from keel.persona.settings import AxisConfig, acting
from keel.train.tally import Tally

__all__ = ["NOTHING", "Held", "PolicyAxis", "PolicyAxisConfig", "Teacher", "held", "idle", "policy_axis", "refuse_both",
           "teacher"]


BARE = "the bare model, on which nothing acts"


class PolicyAxisConfig(AxisConfig):
    """An axis under which responses are sampled; the model that is saved is the bare one either way."""

    mode: Literal["in_policy", "rollout_only"] = Field("in_policy", description="in_policy: part of policy and "
        "reference wherever they run; rollout_only: while sampling, the bare policy learns by ratios")


@dataclass(frozen=True)
class Held:
    """What acts on training passes, and what their states cost.

    Attributes:
        handles: steer or cap the policy while `passing`; never what is saved, nor what is examined.
        anchor: prices its states.
    """

    handles: tuple[Handle, ...] = ()
    anchor: Anchor | None = None

    @contextmanager
    def passing(self, model: nn.Module) -> Iterator[None]:
        """Around the training passes of this model whose cost is then asked for."""
        with ExitStack() as stack:
            stack.enter_context(together(self.handles))
            if self.anchor is not None:
                stack.enter_context(self.anchor.gauge.on(model))
            yield

    def cost(self, batch: TokenBatch, weights: Float[Tensor, "B T"], total: Tensor | float, tally: Tally,
             ) -> Tensor | float:
        """What the states of the pass just made add to the objective; 0 without an anchor. See `Anchor.cost`."""
        return 0.0 if self.anchor is None else self.anchor.cost(batch, weights, total, tally)

    def result(self) -> dict[str, Any]:
        """What result.json says."""
        found: dict[str, Any] = {"steered": {"saved": BARE, "acted": acted(self.handles)}} if self.handles else {}
        return found if self.anchor is None else found | {"anchor": self.anchor.result()}


NOTHING = Held()


def held(anchor: AnchorConfig | None, steered: AxisConfig | None, start: Start, prompts: Sequence[PromptRow]) -> Held:
    """What the settings of a run ask for; nothing where both are off.

    Args:
        anchor: see `anchored`.
        steered: acts in every training pass.
        start: the model before it has learned anything.
        prompts: of the run.

    Raises:
        ConfigError, DataError, ModelError: see `anchored` and `keel.persona.settings.acting`.
    """
    return Held(() if steered is None else resting(steered, start.model), anchored(anchor, start, prompts))


def refuse_both(anchor: AnchorConfig | None, steered: AxisConfig | None, distil: AxisConfig | None = None) -> None:
    """Settings that say nothing together, or nothing at all.

    Raises:
        ValueError: there are such.
    """
    for found, complaint in (*idle("steered", steered), *idle("distil", distil)):
        if found:
            raise ValueError(complaint)
    if distil is not None and steered is not None:
        raise ValueError("distil and steered exclude each other: what is learned without the axis is learned under it")
    if anchor is not None and steered is not None:
        raise ValueError("anchor and steered exclude each other: one prices the states that the other moves")


def idle(name: str, cfg: AxisConfig | None) -> Iterator[tuple[bool, str]]:
    """What an axis that acts while a model learns cannot have, or what would do nothing there: whether it is there,
    and what to say."""
    yield cfg is not None and not cfg.acts, (
        f"{name} names an axis and nothing to do with it: give {name}.steer, {name}.cap or {name}.lower")
    yield cfg is not None and cfg.control is not None and (cfg.cap is not None or cfg.lower is not None), (
        f"{name}.control and {name}.cap or {name}.lower exclude each other: bounds are measured on the axis, not on "
        f"its control; let `keel axis calibrate --control` make a file for the control and name that without control, "
        f"or use {name}.steer alone")
    yield cfg is not None and cfg.monitor is not None, (
        f"{name}.monitor shows nothing while a model learns: what watches it is persona")


def resting(cfg: AxisConfig, model: nn.Module) -> tuple[Handle, ...]:
    """What the settings ask for, to act whenever it is entered and not before. Raises: see `acting`."""
    handles = acting(cfg, cfg.read(), model)
    for handle in handles:
        handle.detach()
    return tuple(handles)


@dataclass(frozen=True)
class Teacher:
    """The model of the start under an axis, which the bare model learns to be like without it."""

    model: nn.Module
    handles: tuple[Handle, ...]

    def loss(self, pupil: nn.Module, batch: TokenBatch) -> Float[Tensor, "B T"]:
        """KL(pupil || teacher) of each next-token distribution of the responses, in nats."""
        with together(self.handles):
            return token_kl(pupil, self.model, batch)


def teacher(cfg: AxisConfig | None, start: nn.Module) -> Teacher | None:
    """A frozen copy of the model of the start, to act on as the settings ask; none where they are none."""
    if cfg is None:
        return None
    copied = frozen_copy(start)
    return Teacher(copied, resting(cfg, copied))


@dataclass(frozen=True)
class PolicyAxis:
    """What acts on the policy of an online run; nothing where it is off.

    Attributes:
        policy, reference: act on these models.
        always: as part of the policy, wherever it runs; else only while it samples.
    """

    policy: tuple[Handle, ...] = ()
    reference: tuple[Handle, ...] = ()
    always: bool = False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around the sampling of responses to learn from."""
        with together(self.policy):
            yield

    @contextmanager
    def within(self) -> Iterator[None]:
        """Around everything else that asks policy or reference for numbers, never around saving."""
        with together((*self.policy, *self.reference) if self.always else ()):
            yield

    def result(self) -> dict[str, Any]:
        """What result.json says."""
        mode = "in_policy" if self.always else "rollout_only"
        return {"policy_axis": {"mode": mode, "saved": BARE, "acted": acted(self.policy)}} if self.policy else {}


def policy_axis(cfg: PolicyAxisConfig | None, policy: nn.Module, reference: nn.Module) -> PolicyAxis:
    """What the settings ask for. Raises: see `keel.persona.settings.acting`."""
    if cfg is None:
        return PolicyAxis()
    always = cfg.mode == "in_policy"
    return PolicyAxis(resting(cfg, policy), resting(cfg, reference) if always else (), always)


@contextmanager
def together(handles: Sequence[Handle]) -> Iterator[None]:
    """All of them act inside, in their order."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


def acted(handles: Sequence[Handle]) -> dict[str, Any]:
    """What caps have done at each block, of prompts and of responses apart; nothing is counted of steering."""
    return {str(layer): told for handle in handles for layer, told in handle.stats().items()}
