"""One row per loss: how to call it and how to make its inputs. The laws in `test_laws.py` run over every row."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from references.ragged import noise
from torch import Tensor

from keel.functional import advantage, masked, policy, preference

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """A function under the laws.

    Attributes:
        function: called with all inputs by name; returns a result, or a result and its stats.
        inputs: names of its tensors. `response_mask` and `mask` are masks, names in `per_row` are [B], others [B T].
        learns: the inputs that receive gradient; all others are targets.
        per_row: the inputs with one number per row.
        local: whether row i of the result depends on row i of the inputs alone.
    """

    function: Callable[..., object]
    inputs: tuple[str, ...]
    learns: tuple[str, ...] = ()
    per_row: tuple[str, ...] = ()
    local: bool = True

    @property
    def mask_name(self) -> str | None:
        """The input that says which tokens count; none for losses with one value per row."""
        return next((name for name in self.inputs if name.endswith("mask")), None)

    def make(self, seed: int, mask: Tensor) -> Inputs:
        """Float64 inputs under that mask; scores and labels have one number for each of its rows."""
        made: Inputs = {}
        for i, name in enumerate(self.inputs):
            shape = mask.shape[:1] if name in self.per_row else mask.shape
            made[name] = mask.clone() if name == self.mask_name else noise(seed + i, *shape, scale=0.7)
            if name == "label_prob":
                made[name] = made[name].sigmoid()
        return made

    def call(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The result, and everything else it returned, by name."""
        out = self.function(**inputs)
        if isinstance(out, Tensor):
            return out, {}
        result, rest = out  # type: ignore[misc]
        return result, rest if isinstance(rest, dict) else {"second": rest}


PPO = ("logprobs", "old_logprobs", "advantages", "response_mask")
CRITIC = ("values", "old_values", "returns", "response_mask")
PAIR = ("chosen_scores", "rejected_scores")

LOSSES = {
    "clipped_surrogate": Row(partial(policy.clipped_surrogate, clip=0.2), PPO, learns=PPO[:1]),
    "unclipped_surrogate": Row(partial(policy.clipped_surrogate, clip=None), PPO, learns=PPO[:1]),
    "clipped_value_loss": Row(partial(policy.clipped_value_loss, clip=0.2), CRITIC, learns=CRITIC[:1]),
    "value_loss": Row(partial(policy.clipped_value_loss, clip=None), CRITIC, learns=CRITIC[:1]),
    "nll": Row(policy.nll, ("logprobs", "response_mask"), learns=("logprobs",)),
    "bradley_terry": Row(preference.bradley_terry, PAIR, learns=PAIR, per_row=PAIR),
    "bradley_terry_margin": Row(
        preference.bradley_terry, (*PAIR, "margin"), learns=PAIR, per_row=(*PAIR, "margin")),
    "bradley_terry_soft": Row(
        preference.bradley_terry, (*PAIR, "margin", "label_prob"), learns=PAIR,
        per_row=(*PAIR, "margin", "label_prob")),
    "centring": Row(preference.centring, PAIR, learns=PAIR, per_row=PAIR),
}
"""What is minimised. A new loss adds its row here."""

TARGETS = {
    "gae": Row(partial(advantage.gae, gamma=0.9, lam=0.8), ("rewards", "values", "response_mask")),
    "token_rewards": Row(
        partial(advantage.token_rewards, kl_coef=0.1), ("scores", "kl", "response_mask"), per_row=("scores",)),
    "process_scores": Row(
        partial(advantage.process_scores, moments=torch.tensor([9.0, 0.3, 4.0], dtype=torch.float64),
                center=True, scale=True, clip=5.0), ("scores",), per_row=("scores",)),
    "whiten": Row(masked.whiten, ("x", "mask"), local=False),
    "whiten_off_center": Row(partial(masked.whiten, center=False), ("x", "mask"), local=False),
    "kl_k1": Row(policy.kl_k1, ("logprobs", "ref_logprobs")),
    "kl_k2": Row(policy.kl_k2, ("logprobs", "ref_logprobs")),
    "kl_k3": Row(policy.kl_k3, ("logprobs", "ref_logprobs")),
}
"""What losses are fed with: nothing here may carry gradient."""

ALL = LOSSES | TARGETS
