"""What the groups of a phase look like in numbers; names, units and formulas are on the method's page."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from keel.batches import Rollout
from keel.data.records import Prompt
from keel.functional.clusters import adjusted_rand, normalised_information
from keel.functional.invariance import group_stats
from keel.functional.masked import row_sums
from keel.online.groups import Asked
from keel.rollout.reward import Scores

__all__ = ["agreement", "group_metrics"]


def group_metrics(asked: Asked, rollout: Rollout, scored: Scores, names: Sequence[str]) -> dict[str, float]:
    """Mass, return, score, length, drift and its price by group; how far the groups are apart; what is done about it.

    Args:
        asked: what the groups asked of the credit.
        rollout: measured.
        scored: raw scores.
        names: of the groups, the lowest first.
    """
    p, mask = asked.memberships, rollout.tokens.response_mask
    stats = group_stats(p, asked.returns)
    lengths = mask.sum(1).float().to(p.device)
    nats = row_sums(rollout.kl, mask).to(p.device)
    rows = {"score": scored.total, "length": lengths, "kl_coef": asked.prices}
    if scored.disagreement:  # where drift is cheap, the rewards are least to be trusted
        rows["disagreement"] = torch.stack(list(scored.disagreement.values())).mean(0)
    means = {name: group_stats(p, x.to(p)).returns for name, x in rows.items()}
    means["kl"] = (p.T @ nats) / torch.where(stats.present, p.T @ lengths, 1.0)
    found = {f"group/{group}/{name}": float(x[g]) for g, group in enumerate(names) if stats.present[g]
             for name, x in ({"mass": stats.mass / len(p), "return": stats.returns} | means).items()}
    found |= {f"group/{group}/mass": 0.0 for g, group in enumerate(names) if not stats.present[g]}
    there = stats.returns[stats.present]
    found |= {
        "groups/variance": float(stats.variance), "groups/gap": float(there.max() - there.min()),
        "groups/worst": float(there.min()), "groups/entropy": float(torch.special.entr(p).sum(1).mean())}
    return found | acting(asked, names)


def acting(asked: Asked, names: Sequence[str]) -> dict[str, float]:
    """What is done about the groups, as far as something is."""
    found = {} if asked.objective is None else {"groups/objective": asked.objective}
    if asked.coef is not None:
        found["groups/coef"] = asked.coef
    if asked.shaping is not None:
        found |= {"groups/shaping": float(asked.shaping.abs().mean()),
                  "groups/shaping_max": float(asked.shaping.abs().max())}
    if asked.factor is not None:
        found["groups/factor_max"] = float(asked.factor.max())
    if asked.weights is not None:
        found |= {f"group/{name}/weight": weight for name, weight in zip(names, asked.weights, strict=True)}
    return found


def agreement(p: Tensor, prompts: Sequence[Prompt], column: str) -> dict[str, float]:
    """How the likeliest groups agree with the labels that prompts carry; empty where not all of them do."""
    labels = [label for prompt in prompts if (label := prompt.label(column)) is not None]
    if len(labels) < len(prompts) or len(set(labels)) < 2:
        return {}
    numbers: Mapping[str, int] = {label: i for i, label in enumerate(sorted(set(labels)))}
    known, found = torch.tensor([numbers[label] for label in labels]), p.argmax(1).cpu()
    return {"groups/rand": adjusted_rand(found, known), "groups/information": normalised_information(found, known)}
