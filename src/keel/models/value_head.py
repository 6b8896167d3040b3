"""What a frozen policy's responses to a prompt are worth on average, read off its last hidden states over the prompt.

One learned query attends to the states; a linear layer and a sigmoid turn what it finds into a number in the range of
the reward. After Baheti et al. 2024, arXiv:2305.14718, section 3.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from keel.errors import ModelError, NumericsError
from keel.rng import seeded
from keel.runs import explained_disk_errors

__all__ = ["ValueHead", "finite_values", "load_head", "outside", "padded", "save_head"]

EDGE = 1e-4
"""Closest that `begin_at` comes to either end of the range, as a share of it: a sigmoid reaches neither."""
ROUNDING = 1e-6
"""Share of its range by which a reward may miss it: sums in float32 end a little beside 1."""


class ValueHead(nn.Module):
    """V(x) from the last hidden states of the prompt x, in float32 whatever the model computes in.

    Args:
        width: of the hidden states.
        heads: of the attention; must divide the width.
        dropout: on the states and before the last layer, while it learns.
        low: least value.
        high: greatest value.
        seed: draws the weights.

    Raises:
        ModelError: heads do not divide the width, or the range is empty.
    """

    def __init__(self, width: int, *, low: float, high: float, heads: int = 8, dropout: float = 0.1,
                 seed: int = 0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            able = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)
            raise ModelError(f"{heads} heads do not divide hidden states of width {width}", where="value.heads",
                             remedy=f"Of this model the value head may have {able} heads.")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ModelError(f"the value head has no range: it ends at {high} and begins at {low}",
                             remedy="Give the least and the greatest value that the reward can take.")
        self.width, self.heads, self.dropout, self.low, self.high = width, heads, dropout, low, high
        with seeded(seed, "value head"):
            self.query = nn.Parameter(torch.randn(width))
            self.asked = nn.Linear(width, width)
            # A bias of the keys would add the same to every position, which the softmax takes away again.
            self.keys = nn.Linear(width, width, bias=False)
            self.read = nn.Linear(width, width)
            self.joined = nn.Linear(width, width)
            self.value = nn.Linear(width, 1)
            for layer in (self.asked, self.keys, self.read):  # as torch draws the three of one attention layer
                nn.init.uniform_(layer.weight, -math.sqrt(1.5 / width), math.sqrt(1.5 / width))
            for layer in (self.asked, self.read, self.joined):
                nn.init.zeros_(layer.bias)

    def forward(self, states: Float[Tensor, "B P H"], mask: Bool[Tensor, "B P"]) -> Float[Tensor, " B"]:
        """One value per prompt.

        Args:
            states: last hidden states; what lies under a False mask may be anything.
            mask: True on the tokens of the prompt, at least one in every row, wherever the padding is.
        """
        with torch.autocast(states.device.type, enabled=False):
            states = torch.where(mask[..., None], states.to(self.query.dtype), 0.0)
            found = self.joined(self._attended(self._dropped(states), mask))
            return self.low + (self.high - self.low) * self.value(self._dropped(found))[:, 0].sigmoid()

    def _attended(self, states: Float[Tensor, "B P H"], mask: Bool[Tensor, "B P"]) -> Float[Tensor, "B H"]:
        # There is one query for all prompts, so it goes through the keys' weights once, instead of every state; and
        # the states are averaged before they go through `read`, not after. The same sums, by far fewer products.
        per_head = (self.heads, self.width // self.heads, self.width)
        asked = self.asked(self.query).view(per_head[:2]) / math.sqrt(per_head[1])
        scores = states @ torch.einsum("nd,ndh->hn", asked, self.keys.weight.view(per_head))
        scores = scores.masked_fill(~mask[..., None], -torch.inf)
        averaged = torch.einsum("bpn,bph->bnh", scores.softmax(1), states)
        return torch.einsum("bnh,ndh->bnd", averaged, self.read.weight.view(per_head)).flatten(1) + self.read.bias

    def _dropped(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.dropout, self.training)

    @torch.no_grad()
    def begin_at(self, value: float) -> None:
        """Let every prompt have this value until something is learned; as near as EDGE to the ends of the range."""
        share = min(max((value - self.low) / (self.high - self.low), EDGE), 1 - EDGE)
        nn.init.zeros_(self.value.weight)
        nn.init.constant_(self.value.bias, math.log(share / (1 - share)))

    @torch.no_grad()
    def of(self, states: Sequence[Float[Tensor, "P H"]]) -> Float[Tensor, " N"]:
        """Values of prompts as one batch, without dropout even while the head learns."""
        learning = self.training
        self.eval()
        try:
            return self(*padded(states, self.query.device))
        finally:
            self.train(learning)


def outside(rewards: Float[Tensor, " N"], low: float, high: float) -> Bool[Tensor, " N"]:
    """Which rewards are no number, or miss their range by more than rounding explains."""
    # In float32 an end of the range such as 0.1 is another number, which may lie beyond it.
    wide, slack = rewards.double(), ROUNDING * (high - low)
    return ~((wide >= low - slack) & (wide <= high + slack))


def padded(states: Sequence[Float[Tensor, "P H"]], device: torch.device,
           ) -> tuple[Float[Tensor, "B P H"], Bool[Tensor, "B P"]]:
    """States of several prompts as one tensor, zeros on the left of the shorter ones, and where the states are."""
    real = [torch.ones(len(one), dtype=torch.bool, device=device) for one in states]
    return (pad_sequence([one.to(device) for one in states], batch_first=True, padding_side="left"),
            pad_sequence(real, batch_first=True, padding_side="left"))


def finite_values(head: ValueHead, states: Sequence[Float[Tensor, "P H"]], record_ids: Sequence[str],
                  ) -> Float[Tensor, " N"]:
    """V of some prompts, on the CPU.

    Raises:
        ModelError: the head is for another width.
        NumericsError: a value is not finite.
    """
    if states[0].shape[1] != head.width:
        raise ModelError(f"the value head reads states of width {head.width}, and the model's have "
                         f"{states[0].shape[1]}", remedy="Fit a head on this very model.")
    values = head.of(states).cpu()
    bad = [name for name, fine in zip(record_ids, torch.isfinite(values).tolist(), strict=True) if not fine]
    if bad:
        raise NumericsError(f"the value estimate of {len(bad)} prompts is not finite",
                            where=f"records {', '.join(bad[:8])}", remedy="Look at the model's hidden states: weights "
                            "that are not finite, or a number format with too small a range (float16).")
    return values


def save_head(head: ValueHead, file: Path) -> None:
    """Weights and shape in one safetensors file, which is whole or not there.

    Raises:
        RunError: it cannot be written.
    """
    shape = {name: getattr(head, name) for name in ("width", "heads", "dropout", "low", "high")}
    weights = {name: x.detach().cpu().contiguous() for name, x in head.state_dict().items()}
    beside = file.with_name(f".{file.name}.new")
    with explained_disk_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as stream:
            stream.write(save(weights, {"value_head": json.dumps(shape)}))
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)


def load_head(file: Path, *, width: int | None = None) -> ValueHead:
    """A head that `save_head` wrote, in eval mode.

    Args:
        file: where it is.
        width: of the model that it is for; none: any.

    Raises:
        ModelError: there is none, it is damaged, or it is for another width.
    """
    try:
        with safe_open(file, "pt") as stored:
            shape: dict[str, Any] = json.loads(stored.metadata()["value_head"])
            weights = {name: stored.get_tensor(name) for name in stored.keys()}
        head = ValueHead(**shape)
        head.load_state_dict(weights)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"cannot read a value head: {type(error).__name__}: {str(error).splitlines()[0]}",
                         where=str(file), remedy="Remove the file; the head is then fitted again.") from error
    if width is not None and head.width != width:
        raise ModelError(f"this value head was fitted on states of width {head.width}; the model's have {width}",
                         where=str(file), remedy="Remove the file, and the head is fitted again on this model.")
    return head.eval()
