"""What an axis does to the training passes of a policy, for every recipe: act on the stream, or price where it goes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.data.render import PromptRow
from keel.online.anchor import Anchor, AnchorConfig, Start, anchored
from keel.persona.handles import Handle
from keel.persona.settings import AxisConfig, acting
from keel.train.tally import Tally

__all__ = ["Held", "held", "refuse_both", "resting", "together"]


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


def refuse_both(anchor: AnchorConfig | None, steered: AxisConfig | None) -> None:
    """Settings that say nothing together, or nothing at all.

    Raises:
        ValueError: there are such.
    """
    if anchor is not None and steered is not None:
        raise ValueError("anchor and steered exclude each other: one prices the states that the other moves")
    if steered is not None and not steered.acts:
        raise ValueError("steered names an axis and nothing to do with it: give steered.steer, .cap or .lower")


def resting(cfg: AxisConfig, model: nn.Module) -> tuple[Handle, ...]:
    """What the settings ask for, to act whenever it is entered and not before. Raises: see `acting`."""
    handles = acting(cfg, cfg.read(), model)
    for handle in handles:
        handle.detach()
    return tuple(handles)


@contextmanager
def together(handles: Sequence[Handle]) -> Iterator[None]:
    """All of them act inside, in their order."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield
