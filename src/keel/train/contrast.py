"""The contrastive term of a reward model: its settings, and its loss over two dropout views of a step's pairs."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from keel.batches import PairBatch
from keel.config import Config
from keel.functional.contrastive import as_differences, prototype_usage, simcse, swav
from keel.functional.masked import Stats
from keel.models.views import NoiseSource
from keel.rng import stream

__all__ = ["ContrastiveConfig", "Prototypes", "contrastive_loss", "same_texts"]

COEFS = {("simcse", "pairs"): 1.0, ("simcse", "differences"): 1.0, ("swav", "pairs"): 0.1, ("swav", "differences"): 0.5}
PROTOTYPES = {"pairs": 50, "differences": 20}
TEMPERATURES = {"simcse": 0.05, "swav": 0.1}


class ContrastiveConfig(Config):
    """A contrastive term on the features that the head reads, over two dropout views of the same pairs."""

    kind: Literal["simcse", "swav"] = Field("simcse", description="SimCSE (InfoNCE) or SwAV (swapped assignments)")
    on: Literal["pairs", "differences"] = Field("pairs", description="rows: the features of both responses, or chosen "
                                                "minus rejected and its negative")
    coef: float | None = Field(None, gt=0, description="weight of the term; none: the report's, 1 for simcse, for swav "
                               "0.1 on pairs and 0.5 on differences")
    dropout: float = Field(0.05, gt=0, lt=1, description="share of activations dropped to make two views; which ones "
                           "depends on micro_tokens and shared_prompt too")
    dropout_in: NoiseSource = Field("model", description="where the architecture has dropout, or on "
                                                     "the features alone")
    temperature: float | None = Field(None, gt=0, description="of the softmax; none: 0.05 for simcse, 0.1 for swav")
    prototypes: int | None = Field(None, ge=2, description="of swav; none: the report's, 50 on pairs, 20 on "
                                   "differences")
    queue: int = Field(0, ge=0, description="rows of earlier steps that share in swav's assignment")
    freeze_prototypes: int = Field(0, ge=0, description="first steps in which swav's prototypes do not learn")

    @model_validator(mode="after")
    def _check(self) -> "ContrastiveConfig":
        for name, off in (("prototypes", None), ("queue", 0), ("freeze_prototypes", 0)):
            if self.kind == "simcse" and getattr(self, name) != off:
                raise ValueError(f"{name} acts on nothing with kind='simcse': only swav has prototypes")
        return self

    @property
    def weight(self) -> float:
        return self.coef or COEFS[self.kind, self.on]

    @property
    def tau(self) -> float:
        return self.temperature or TEMPERATURES[self.kind]


class Prototypes(nn.Module):
    """SwAV's prototypes, used at unit length, and the features of the last steps."""

    def __init__(self, cfg: ContrastiveConfig, width: int, seed: int, device: torch.device) -> None:
        super().__init__()
        n = cfg.prototypes or PROTOTYPES[cfg.on]
        drawn = torch.empty(n, width).normal_(generator=stream(seed, "prototypes")) / width**0.5
        self.weight = nn.Parameter(drawn.to(device))
        self.queue: Tensor
        self.filled: Tensor
        self.register_buffer("queue", torch.zeros(cfg.queue, width, device=device))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def queued(self) -> Tensor | None:
        """Features of earlier steps; none before the queue is full."""
        return self.queue if 0 < len(self.queue) <= int(self.filled) else None

    def remember(self, features: Tensor) -> None:
        """Take the newest features in, and let the oldest go."""
        if len(self.queue):
            both = torch.cat([features.detach().float(), self.queue])
            self.queue.copy_(both[:len(self.queue)])
            self.filled += len(features)


def contrastive_loss(
    views: tuple[Tensor, Tensor], cfg: ContrastiveConfig, prototypes: Prototypes | None, same: Tensor,
) -> tuple[Tensor, Stats]:
    """One value per row of the two views, and what is logged of them: per row whether the views find each other, and
    with swav the entropy in nats of how the rows share the prototypes, each going to the nearest.

    Args:
        views: features of all pairs of a step, chosen first, twice. [2B D] each
        cfg: which term.
        prototypes: of swav.
        same: True where two rows are one text (see `same_texts`). [2B 2B]
    """
    first, second = (as_differences(view) if cfg.on == "differences" else view for view in views)
    if prototypes is None:
        return simcse(first, second, temperature=cfg.tau, same=same)
    queued = prototypes.queued()
    loss, stats = swav(first, second, prototypes.weight, temperature=cfg.tau, queued=queued)
    prototypes.remember(first)
    with torch.no_grad():
        nearest = (normalize(first.float(), dim=1) @ normalize(prototypes.weight, dim=1).t()).argmax(1)
        usage = prototype_usage(one_hot(nearest, len(prototypes.weight)).float())
    return loss, stats | {"contrastive/usage": usage}


def same_texts(parts: Sequence[PairBatch], on: str) -> Tensor:
    """True where two rows of a step hold the same tokens: such rows are no negatives of each other. [2B 2B]"""
    texts: tuple[list[object], list[object]] = ([], [])
    for part in parts:
        for row, (ids, real) in enumerate(zip(part.tokens.ids, part.tokens.attention_mask, strict=True)):
            texts[row // part.n_pairs].append(tuple(ids[real].tolist()))
    keys = [*texts[0], *texts[1]]
    if on == "differences":
        keys = [*zip(*texts, strict=True), *zip(*texts[::-1], strict=True)]
    numbers = {key: i for i, key in enumerate(keys)}
    which = torch.tensor([numbers[key] for key in keys], device=parts[0].margin.device)
    return which[:, None] == which[None, :]
