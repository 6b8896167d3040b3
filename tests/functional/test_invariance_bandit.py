"""The whole method on a bandit of two kinds of prompts, one easy and frequent, one hard and rare."""

import pytest
import torch
from torch import Tensor

from keel.functional.invariance import group_objective, memberships, standardised_returns, variance_shaping

PAYS = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
"""Which of eight actions pay 1 on an easy and on a hard prompt; one prompt in five is hard."""
HEAD = {"variance": "plain", "floor": 0.0, "floor_coef": 0.0, "entropy_coef": 0.0}
BOUND = {"prompt": 3.0, "trajectory": 1.0}
"""Of the logits. Groups of trajectories follow the return itself: sure of them, nothing is left to weigh inside one."""
SEEDS = range(2)
STEPS, BATCH, LR, HEAD_STEPS, NOISE = 100, 64, 0.5, 5, 0.3


def ascended(head: Tensor, cells: Tensor, returns: Tensor, bound: float) -> Tensor:
    """The table of group logits after a phase's steps."""
    for _ in range(HEAD_STEPS):
        leaf = head.clone().requires_grad_()
        group_objective(leaf[cells], returns, bound=bound, **HEAD).backward()
        head = head + leaf.grad
    return head


def success(groups: str | None, beta: float, seed: int) -> Tensor:
    """Chance of an action that pays, on an easy and on a hard prompt, after training."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(2, 8, dtype=torch.float64)
    head = 0.1 * torch.randn(16 if groups == "trajectory" else 2, 2, generator=generator, dtype=torch.float64)
    for _ in range(STEPS):
        policy = logits.softmax(1)
        kind = (torch.rand(BATCH, generator=generator) < 0.2).long()
        action = torch.multinomial(policy[kind], 1, generator=generator)[:, 0]
        paid = PAYS[kind, action] + NOISE * torch.randn(BATCH, generator=generator, dtype=torch.float64)
        returns = standardised_returns(paid)
        of_kind = torch.nn.functional.one_hot(kind, 2).double()
        baseline = (paid @ of_kind) / of_kind.sum(0).clamp_min(1)
        advantages = paid - baseline[kind]
        if groups is not None:
            cells = kind if groups != "trajectory" else 8 * kind + action
            if groups != "known":
                head = ascended(head, cells, returns, BOUND[groups])
            p = of_kind if groups == "known" else memberships(head, bound=BOUND[groups])[cells]
            advantages = advantages - beta * variance_shaping(p, returns, side="both")
        slope = torch.nn.functional.one_hot(action, 8) - policy[kind]
        logits = logits + LR * (of_kind * advantages[:, None]).T @ slope / BATCH
    return torch.where(PAYS, logits.softmax(1), 0.0).sum(1)


def mean_success(groups: str | None, beta: float = 0.0) -> tuple[float, float]:
    """Over seeds: easy, hard."""
    easy, hard = torch.stack([success(groups, beta, seed) for seed in SEEDS]).mean(0).tolist()
    return easy, hard


@pytest.fixture(scope="module")
def plain() -> tuple[float, float]:
    """Without a penalty."""
    return mean_success(None)


@pytest.mark.slow
@pytest.mark.parametrize("groups", ["known", "prompt", "trajectory"])
def test_the_penalty_lifts_the_hard_prompts_and_leaves_the_easy_ones(plain: tuple[float, float], groups: str) -> None:
    easy_before, hard_before = plain
    easy, hard = mean_success(groups, 0.3)
    assert hard >= hard_before + 0.10
    assert easy >= easy_before - 0.03
