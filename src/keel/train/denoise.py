"""What becomes of training pairs whose label an ensemble doubts: flipped, softened, given a margin, left out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import exp
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from keel.config import Config
from keel.data.records import PreferencePair
from keel.errors import DataError
from keel.functional.strength import lowest

__all__ = ["DenoiseConfig", "denoised", "flipped"]

Share = Annotated[float, Field(ge=0, le=1)]


class DenoiseConfig(Config):
    """Changes to training pairs, made in the order flip, soft label, margin, drop. Shares count from the weakest pair,
    by the strength that the file gives, before any change."""

    flip: float | None = Field(None, gt=0, le=0.5, description="share whose sides are swapped, among pairs of mean "
                               "strength below 0; the report: 0.1")
    flip_below: float | None = Field(None, le=0, description="swap the sides of pairs of lower mean strength instead")
    smooth: float | None = Field(None, gt=0, lt=0.5, description="probability that a selected label is wrong; "
                                 "the report's curves fit 0.2")
    smooth_where: Literal["negative", "all", "range"] = Field(
        "negative", description="labels that smooth selects: mean strength below 0 (after flips), all, or smooth_range")
    smooth_range: tuple[Share, Share] | None = Field(None, description="shares [from, to) that smooth selects")
    soften: float | None = Field(None, gt=0, description="temperature T, in score units: every label is right with "
                                 "probability sigmoid(mean strength / T)")
    margin: float | None = Field(None, gt=0, description="gap asked of the scores, in mean strengths; 1 in the report. "
                                 "None: the margin that the file gives")
    margin_clip: float | None = Field(None, gt=0, description="bound on |margin|, in score units; none: unbounded")
    drop: tuple[Share, Share] | None = Field(None, description="shares [from, to) that are left out")
    drop_below: float | None = Field(None, description="leave out pairs of lower mean strength (before any change)")

    @model_validator(mode="after")
    def _check(self) -> "DenoiseConfig":
        for one, other in (("flip", "flip_below"), ("smooth", "soften"), ("drop", "drop_below")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} exclude each other: both say what happens to the same pairs")
        if (self.smooth_where == "range") != (self.smooth_range is not None):
            raise ValueError(f"smooth_where={self.smooth_where!r} and smooth_range={self.smooth_range} do not go "
                             "together: range needs one, the others none")
        for needs, needed in (("smooth_range", "smooth"), ("margin_clip", "margin")):
            if getattr(self, needs) is not None and getattr(self, needed) is None:
                raise ValueError(f"{needs} acts on nothing without {needed}")
        if self.smooth is None and self.smooth_where != "negative":
            raise ValueError(f"smooth_where={self.smooth_where!r} acts on nothing without smooth")
        for name in ("smooth_range", "drop"):
            if (ends := getattr(self, name)) is not None and ends[0] >= ends[1]:
                raise ValueError(f"{name} runs from {ends[0]} to {ends[1]}: it holds no pair")
        return self

    @property
    def needs_strength(self) -> bool:
        """Whether any change looks at the strength; smoothing every label does not."""
        asked = (self.flip, self.flip_below, self.soften, self.margin, self.drop, self.drop_below)
        return any(x is not None for x in asked) or (self.smooth is not None and self.smooth_where != "all")


def denoised(pairs: Sequence[PreferencePair], cfg: DenoiseConfig, *, where: str | None = None,
             ) -> tuple[list[PreferencePair], dict[str, int]]:
    """Changed copies of the pairs, each with the list of its changes in `meta["denoised"]`; and how many of each.

    A flip swaps the responses and turns the sign of margin and strength: the pair is then as if it had been labelled
    the other way round.

    Args:
        pairs: left as they are.
        cfg: the changes.
        where: the file that the pairs come from, for errors.

    Raises:
        DataError: a change needs the strength of a pair that has none, or no pair is left.
    """
    if cfg.needs_strength:
        _require_strength(pairs, where)
    strength = torch.tensor([0.0 if pair.strength is None else pair.strength.mean for pair in pairs],
                            dtype=torch.float64)
    flip = (strength < cfg.flip_below if cfg.flip_below is not None
            else lowest(strength, share=cfg.flip or 0.0) & (strength < 0))
    smooth = _within(strength, cfg.smooth_range)
    drop = strength < cfg.drop_below if cfg.drop_below is not None else _within(strength, cfg.drop)
    found, counts = [], Counter({name: 0 for name in ("flip", "soft label", "margin", "drop")})
    for i, pair in enumerate(pairs):
        changed, names = _changed(pair, cfg, flip=bool(flip[i]), in_range=bool(smooth[i]))
        counts.update(["drop"] if drop[i] else names)
        if not drop[i]:
            meta = {**changed.prompt.meta, "denoised": names} if names else changed.prompt.meta
            found.append(replace(changed, prompt=replace(changed.prompt, meta=meta)))
    if not found:
        raise DataError(f"denoise.drop leaves none of {len(pairs)} pairs to train on", where=where,
                        remedy="Leave out fewer pairs.")
    return found, dict(counts)


def _within(strength: torch.Tensor, ends: tuple[float, float] | None) -> torch.Tensor:
    """True for the pairs of those shares, from the weakest."""
    if ends is None:
        return torch.zeros(len(strength), dtype=torch.bool)
    return lowest(strength, share=ends[1]) & ~lowest(strength, share=ends[0])


def _changed(pair: PreferencePair, cfg: DenoiseConfig, *, flip: bool, in_range: bool,
             ) -> tuple[PreferencePair, list[str]]:
    names = []
    if flip:
        pair = flipped(pair)
        names.append("flip")
    mean = 0.0 if pair.strength is None else pair.strength.mean
    if cfg.soften is not None:
        pair = replace(pair, label_prob=_doubted(pair.label_prob, 1 - _sigmoid(mean / cfg.soften)))
        names.append("soft label")
    elif cfg.smooth is not None and {"all": True, "negative": mean < 0, "range": in_range}[cfg.smooth_where]:
        pair = replace(pair, label_prob=_doubted(pair.label_prob, cfg.smooth))
        names.append("soft label")
    if cfg.margin is not None:
        bound = cfg.margin_clip or float("inf")
        pair = replace(pair, margin=max(-bound, min(bound, cfg.margin * mean)))
        names.append("margin")
    return pair, names


def flipped(pair: PreferencePair) -> PreferencePair:
    """The pair as if it had been labelled the other way round; twice is the pair itself."""
    votes = pair.strength
    turned = None if votes is None else replace(
        votes, mean=-votes.mean, chosen_scores=votes.rejected_scores, rejected_scores=votes.chosen_scores)
    judge = pair.prompt.meta.get("judge_label")
    meta = pair.prompt.meta if judge not in (0, 1) else {**pair.prompt.meta, "judge_label": 1 - judge}
    return replace(pair, prompt=replace(pair.prompt, meta=meta), chosen=pair.rejected, rejected=pair.chosen,
                   margin=-pair.margin, strength=turned)


def _doubted(label_prob: float, wrong: float) -> float:
    """Probability that the label is right, where beside the file's own doubt it is wrong with this probability."""
    return label_prob * (1 - wrong) + (1 - label_prob) * wrong


def _sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x)) if x >= 0 else 1 - 1 / (1 + exp(x))


def _require_strength(pairs: Sequence[PreferencePair], where: str | None) -> None:
    without = [pair.id for pair in pairs if pair.strength is None]
    if without:
        raise DataError(f"{len(without)} of {len(pairs)} pairs have no strength (first: {without[0]})", where=where,
                        remedy="`keel strength` measures it and writes a file that has it; or leave out denoise.*.")
