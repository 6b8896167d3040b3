"""Credit beside the formulas: where its parts live."""

import pytest
import tolerances as tol
import torch

from keel.batches import Rollout, TokenBatch
from keel.rollout.credit import AdvantageConfig, TruncationConfig, with_credit


def test_numbers_per_response_follow_the_rollout_to_its_device():
    """Scores, prices, factors and shaping come from the CPU; the rollout is wherever the policy is."""
    mask = torch.ones(3, 4, dtype=torch.bool, device="meta")
    nats, each = torch.zeros(3, 4, device="meta"), torch.ones(3)
    rollout = Rollout(TokenBatch(nats.long(), mask, mask, ("a", "b", "c")), nats, each.bool(), torch.arange(3),
                      ref_logprobs=nats, kl=nats, values=nats)
    found = with_credit(rollout, each, kl_coef=each, factor=each, shaping=each, truncation=TruncationConfig(),
                        advantage=AdvantageConfig(normalise="rollout", clip=1.0))
    assert found.rewards.device.type == found.advantages.device.type == "meta"


@pytest.mark.parametrize("scale", [True, False])
def test_steps_are_divided_by_the_spread_of_the_group_only_where_the_settings_say_so(scale):
    """Two responses of a group, paid 3 and 1 in their first token; no score tells them apart."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    ends = torch.tensor([[True, False], [True, False]])
    rollout = Rollout(TokenBatch(torch.zeros(2, 2).long(), mask, mask, ("a", "b")), torch.zeros(2, 2),
                      torch.tensor([True, True]), torch.arange(2), kl=torch.zeros(2, 2), step_ends=ends,
                      step_rewards=torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
    found = with_credit(rollout, torch.ones(2), kl_coef=0.0, truncation=TruncationConfig(),
                        advantage=AdvantageConfig(estimator="grpo", group=2, group_std=scale))
    # The mean is 2 and the standard deviation (divisor 1) the root of 2.
    gap = 1 / (2**0.5 + 1e-4) if scale else 1.0
    torch.testing.assert_close(found.advantages, torch.tensor([[gap, 0.0], [-gap, 0.0]]), **tol.FLOAT32)
