"""What offline policy gradient makes of a response: its loss, and the settings that say which responses are drawn."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from keel.batches import TokenBatch
from keel.config import Config
from keel.data.render import Row
from keel.functional import offline
from keel.functional.masked import Stats

__all__ = ["BY_ADVANTAGE", "BY_REWARD", "OfflineLossConfig", "SelectionConfig", "Variant", "aligned", "offline_loss",
           "ranked_loss"]

Variant = Literal["nll", "wbc", "r_gold", "r_lol", "a_lol", "a_lol_ref_free", "a_lol_seq", "a_lol_kl", "r_lol_kl",
                  "pro"]
BY_REWARD = ("wbc", "r_gold", "r_lol", "r_lol_kl")
BY_ADVANTAGE = ("a_lol", "a_lol_ref_free", "a_lol_seq", "a_lol_kl")
OWNERS = {"clip": ("a_lol", "a_lol_seq", "r_lol"), "gold_floor": ("r_gold",), "kl_coef": ("a_lol_kl", "r_lol_kl"),
          "kl_term": ("a_lol_kl", "r_lol_kl"), "sft_coef": ("pro",), "weight": (*BY_REWARD, *BY_ADVANTAGE)}
"""Which variants each setting belongs to; with another one it would do nothing."""


class OfflineLossConfig(Config):
    """What a response costs."""

    variant: Variant = Field("a_lol", description="which member of the family; see the method page for each loss")
    clip: float | None = Field(0.9, gt=0, description="a_lol, a_lol_seq, r_lol: half-width of the band of the ratio; "
                               "none: no band")
    gold_floor: float = Field(0.1, ge=0, le=1, description="r_gold: least weight of a token")
    kl_coef: float | None = Field(None, ge=0, description="a_lol_kl, r_lol_kl: weight of the term; well below the "
                                  "usual weight of a response")
    kl_term: Literal["difference", "quotient", "k3"] = Field("difference", description="a_lol_kl, r_lol_kl: S - Q as "
        "released, S / Q as a reading of the paper, or the estimate k3, which holds the policy back")
    weight: Literal["credit", "one"] = Field("credit", description="weigh each response by its advantage or reward, "
                                             "or all alike")
    length_norm: bool = Field(False, description="divide S and Q by the number of tokens")
    sft_coef: float = Field(0.05, ge=0, description="pro: weight of the cross-entropy of the best response")

    @model_validator(mode="after")
    def _check(self) -> "OfflineLossConfig":
        for name, owners in OWNERS.items():
            # Against the default, not what was set: the settings of a run that is resumed spell out every field.
            if getattr(self, name) != type(self).model_fields[name].default and self.variant not in owners:
                raise ValueError(f"loss.{name} does nothing with variant={self.variant!r}; it belongs to "
                                 f"{', '.join(owners)}")
        if self.variant in OWNERS["kl_coef"] and self.kl_coef is None:
            raise ValueError(f"variant={self.variant!r} needs loss.kl_coef; keep it well below the usual weight of a "
                             "response")
        if self.variant == "pro" and self.length_norm:
            raise ValueError("loss.length_norm does nothing with variant='pro': it ranks by means over tokens anyway")
        return self

    @property
    def has_reference(self) -> bool:
        """Whether the loss looks at a reference."""
        return self.variant in ("r_lol", "a_lol", "a_lol_seq", "a_lol_kl", "r_lol_kl")


class SelectionConfig(Config):
    """Which responses are learned from, and how often."""

    keep: Literal["usual", "all", "positive", "top"] = Field("usual", description="all responses, those of positive "
        "advantage, or of the highest reward; usual: positive for a_lol and its forms, else all")
    top_fraction: float | None = Field(None, gt=0, le=1, description="keep = top: share of the responses")
    draw: Literal["usual", "priority", "uniform"] = Field("usual", description="in proportion to A+ where there "
        "is a value, else to R, with replacement; or in shuffled passes; usual: nll and pro uniform")

    @model_validator(mode="after")
    def _check(self) -> "SelectionConfig":
        if (self.keep == "top") != (self.top_fraction is not None):
            raise ValueError(f"selection.keep={self.keep!r} and selection.top_fraction={self.top_fraction} do not go "
                             "together: top needs it, the others take none")
        return self

    def keeps(self, variant: Variant) -> str:
        """Which responses, for a variant."""
        return self.keep if self.keep != "usual" else "positive" if variant in BY_ADVANTAGE else "all"

    def draws(self, variant: Variant) -> str:
        """How they are drawn, for a variant."""
        return self.draw if self.draw != "usual" else "uniform" if variant in ("nll", "pro") else "priority"

    def needs_value(self, variant: Variant) -> bool:
        """Whether an estimate of what the reference reaches is needed."""
        return variant in BY_ADVANTAGE or self.keeps(variant) == "positive"


def aligned(numbers: Sequence[np.ndarray], rows: Sequence[Row], batch: TokenBatch) -> Float[Tensor, "B T"]:
    """Numbers of response tokens, put where these tokens are; 0 elsewhere."""
    found = torch.zeros(batch.ids.shape)
    for k, (row, own) in enumerate(zip(rows, numbers, strict=True)):
        found[k, row.n_prompt : row.n_tokens] = torch.from_numpy(own)
    return found.to(batch.ids.device)


def offline_loss(cfg: OfflineLossConfig, logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"] | None,
                 credit: Float[Tensor, " B"], response_mask: Tensor) -> tuple[Float[Tensor, " B"], Stats]:
    """The loss of each response, and its stats; of every variant but pro.

    Args:
        cfg: which loss.
        logprobs: nats, under the policy.
        ref_logprobs: the same under the reference, where the loss looks at one.
        credit: what each response is worth, see `step_credit`.
        response_mask: tokens of the responses.
    """
    weight = torch.ones_like(credit) if cfg.weight == "one" else credit
    if cfg.variant == "r_gold":
        return offline.reward_gold(logprobs, weight, response_mask, floor=cfg.gold_floor,
                                   length_norm=cfg.length_norm), {}
    if not cfg.has_reference:
        return offline.weighted_nll(logprobs, weight, response_mask, length_norm=cfg.length_norm), {}
    assert ref_logprobs is not None, "computed before anything was learned"
    if cfg.variant in ("a_lol_kl", "r_lol_kl"):
        assert cfg.kl_coef is not None
        return offline.a_lol_kl(logprobs, ref_logprobs, weight, response_mask, coef=cfg.kl_coef, term=cfg.kl_term,
                                length_norm=cfg.length_norm)
    loss = offline.a_lol_seq if cfg.variant == "a_lol_seq" else offline.a_lol
    return loss(logprobs, ref_logprobs, weight, response_mask, clip=cfg.clip, length_norm=cfg.length_norm)


def ranked_loss(cfg: OfflineLossConfig, sums: Float[Tensor, " B"], n_tokens: Float[Tensor, " B"],
                rewards: Float[Tensor, " B"], sizes: Sequence[int]) -> tuple[Float[Tensor, " G"], Stats]:
    """PRO's loss of each prompt, whose responses follow each other, the best first.

    Args:
        cfg: weight of its second part.
        sums: S of each response.
        n_tokens: of each response.
        rewards: of each response.
        sizes: responses to each prompt.
    """
    # DEVIATION(offline_pg-7): s and S are over exactly the response's tokens; released, the first is left out and one
    # behind the end is counted.
    present = torch.zeros(len(sizes), max(sizes), dtype=torch.bool, device=sums.device)
    for k, size in enumerate(sizes):
        present[k, :size] = True
    means, worth = (torch.zeros(present.shape, dtype=x.dtype, device=x.device).masked_scatter(present, x)
                    for x in (sums / n_tokens.clamp_min(1), rewards))
    first = torch.tensor([0, *accumulate(sizes)][:-1], device=sums.device)
    return offline.pro(means, sums[first], worth, present, sft_coef=cfg.sft_coef)
