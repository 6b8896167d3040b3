"""The head's floor: without it a few extreme responses are a group of their own; with keel's default they are not."""

import pytest
import torch

from keel.functional.invariance import group_objective, group_stats, memberships, standardised_returns
from keel.online.group_settings import GroupConfig
from keel.rng import stream

N = 128


def smaller_share(seed: int, *, floor_coef: float) -> float:
    """Share of the smaller of two groups that a head finds which sees the returns themselves, normally distributed."""
    cfg = GroupConfig()
    returns = standardised_returns(torch.randn(N, generator=stream(seed, "returns"), dtype=torch.float64))
    seen = torch.stack([returns, torch.ones_like(returns)], 1)
    weight = (0.3 * torch.randn(2, 2, generator=stream(seed, "weight"), dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.02)
    for _ in range(1000):
        optimizer.zero_grad()
        (-group_objective(seen @ weight.T, returns, variance="plain", floor=cfg.floor, floor_coef=floor_coef,
                          bound=cfg.logit_bound, entropy_coef=0.0)).backward()
        optimizer.step()
    with torch.no_grad():
        return float(group_stats(memberships(seen @ weight.T, bound=cfg.logit_bound), returns).mass.min()) / N


@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_floor_holds_and_a_tenth_of_its_price_does_not(seed):
    cfg = GroupConfig()
    assert smaller_share(seed, floor_coef=cfg.floor_coef) > 0.8 * cfg.floor
    assert smaller_share(seed, floor_coef=cfg.floor_coef / 10) < 0.3 * cfg.floor
