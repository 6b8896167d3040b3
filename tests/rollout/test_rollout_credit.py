"""Credit beside the formulas: where its parts live."""

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
