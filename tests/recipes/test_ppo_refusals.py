"""Settings of `keel ppo` that exclude each other are refused, and the complaint names both."""

import pytest
from recipes.running import brief

from keel.errors import ConfigError, KeelError
from keel.recipes import ppo

LORA = {"policy": {"path": "p", "lora": {"rank": 2}}, "topology": "shared"}
HELD = {"prompts": {"path": "q", "validation_fraction": 0.1}}
RLOO = {"advantage": {"estimator": "rloo", "group": 2}}
WORDS = [{"name": "words", "function": "tiny:length"}]

REFUSED = [
    # the phase
    ({"minibatch": 3}, "minibatch=3 does not divide rollouts=8"),
    ({"minibatch": 16}, "minibatch=16 does not divide rollouts=8"),
    ({"advantage": {"group": 3}}, "advantage.group=3 does not divide rollouts=8"),
    ({"sampling": {"temperature": 0}}, "sampling.temperature=0 explores nothing: PPO needs samples"),
    ({"reward_model": None}, "neither reward_model nor rewards is given: nothing says what is good"),
    # topology and critic
    ({"topology": "shared"}, "topology='shared' needs policy.lora.rank: its policy and critic are adapters"),
    (LORA | {"critic": {"model": {"path": "c"}}},
     "topology='shared' and critic.model or critic.init exclude each other: the critic is an adapter on the policy"),
    *((LORA | {"critic": {"init": init}}, "topology='shared' and critic.model or critic.init exclude each other")
      for init in ("scratch", "reward_model")),
    ({"critic": {"init": "policy", "model": {"path": "c"}}},
     "critic.init='policy' and critic.model exclude each other: both say where it starts"),
    ({"reward_model": None, "rewards": WORDS},
     "critic.init is reward_model (its default) and no reward is a model of its own: set critic.init to policy"),
    *((RLOO | {"critic": {"pretrain": 0} | critic}, "advantage.estimator='rloo' has no critic, yet critic.pretrain=")
      for critic in ({"pretrain": 2}, {"init": "policy"}, {"model": {"path": "c"}})),
    (RLOO | {"critic": {"pretrain": 0}, "grad_clip": "joint"},
     "advantage.estimator='rloo' has no critic: grad_clip='joint' joins nothing"),
    ({"advantage": {"group_std": False}},
     "advantage.group_std=false and advantage.estimator='gae' exclude each other: only grpo divides by it"),
    ({"on_alarm": "rollback", "kl": {"coef": 0.0}}, "rollback.kl_factor=2.0 multiplies kl.coef=0, which stays 0"),
    (RLOO | {"truncation": {"how": "bootstrap"}},
     "advantage.estimator='rloo' has no critic, truncation.how='bootstrap' needs its values"),
    ({"advantage": {"estimator": "rloo"}},
     "advantage.estimator='rloo' and advantage.group=1 exclude each other: it compares two or more responses to one"),
    ({"advantage": {"estimator": "grpo", "group": 1}}, "advantage.estimator='grpo' and advantage.group=1 exclude each"),
    # drift
    ({"kl": {"coef": 0.0, "target": 0.1}},
     "kl.target and kl.coef=0 exclude each other: adapting multiplies, and 0 stays 0"),
    ({"kl": {"coef": 0.0, "within": "loss"}}, "kl.within='loss' and kl.coef=0 exclude each other"),
    ({"kl": {"target": 0.1, "horizon": 1}},
     "kl.horizon=1 is too short for rollouts=8: one phase could make kl.coef negative"),
    ({"target_kl": 0.1, "loss": {"old_policy": "reference"}},
     "target_kl and loss.old_policy='reference' exclude each other: the distance is to the policy that sampled"),
    # cut responses
    *(({"truncation": {"how": how, "value": value}},
       f"truncation.how={how!r} and truncation.value={value} do not go together: penalty and constant need a value, "
       "the others take none") for how, value in (("penalty", None), ("constant", None), ("score", 1.0), ("mask", 1.0),
                                              ("bootstrap", 1.0))),
    ({"truncation": {"how": "penalty", "value": -1.0}},
     "truncation.how='penalty' and truncation.value=-1.0: it would pay for being cut"),
    # losses
    ({"loss": {"clip": None, "old_kl_coef": 0.5, "old_policy": "reference"}},
     "loss.old_kl_coef=0.5 and loss.old_policy='reference' exclude each other"),
    ({"loss": {"old_kl_coef": 0.5}},
     "loss.old_kl_coef=0.5 and loss.clip=0.2 exclude each other: the penalty stands in the clip's place"),
    *(({"loss": {"entropy": entropy, "entropy_target": target}},
       f"loss.entropy={entropy!r} and loss.entropy_target={target} do not go together: floor and target need one, the "
       "others take none") for entropy, target in (("floor", None), ("target", None), ("bonus", 1.0), (None, 1.0))),
    ({"grad_clip": "joint", "policy_optimizer": {"max_grad_norm": 0.5}},
     "grad_clip='joint' needs policy_optimizer.max_grad_norm and critic_optimizer.max_grad_norm to be equal"),
    # sampling
    ({"sampling": {"logprobs": "exact", "temperature": 0.8}},
     "sampling.logprobs='exact' and sampling.temperature=0.8 exclude each other: exact draws from the model as it is"),
    ({"sampling": {"logprobs": "exact", "top_p": 0.9}}, "sampling.logprobs='exact' and sampling.top_p=0.9 exclude"),
    ({"sampling": {"logprobs": "exact", "top_k": 3}}, "sampling.logprobs='exact' and sampling.top_k=3 exclude"),
    ({"sampling": {"logprobs": "exact", "repetition_penalty": 1.1}},
     "sampling.logprobs='exact' and sampling.repetition_penalty=1.1 exclude each other"),
    ({"sampling": {"logprobs": "tempered", "temperature": 0}},
     "sampling.logprobs='tempered' and sampling.temperature=0 exclude each other"),
    # the best policy
    (HELD | {"best": "score"}, "best='score' needs kl_budget: the highest score alone picks the policy"),
    (HELD | {"best": "score", "kl_budget": 0.1, "rewards": WORDS}, "best='score' and several rewards exclude each"),
    (HELD | {"best": "gold"}, "best='gold' needs gold: no true score is known"),
    ({"best": "gold", "gold": "tiny:count_yes"}, "best needs held-out prompts, and prompts.validation_fraction=0"),
    ({"kl_budget": 0.1}, "kl_budget has no effect without best: set best to score"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Settings that are fine as they are."""
    return brief(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize(("changes", "complaint"), REFUSED)
def test_each_contradiction_is_refused_with_both_names(plain, changes, complaint):
    with pytest.raises(ConfigError) as caught:
        ppo.PPOConfig.checked(plain.model_dump() | changes)
    assert complaint in str(caught.value)


ALLOWED = [
    {"minibatch": 8}, {"advantage": {"group": 4}}, RLOO, LORA, LORA | {"critic": {"init": "policy"}},
    LORA | RLOO | {"critic": {"pretrain": 0}},
    {"reward_model": None, "rewards": WORDS, "critic": {"init": "policy"}},
    {"reward_model": None, "rewards": WORDS, "critic": {"model": {"path": "c"}, "pretrain": 0}},
    {"reward_model": None, "rewards": WORDS, "critic": {"pretrain": 0}} | RLOO,
    {"advantage": {"estimator": "grpo", "group": 2, "group_std": False}, "critic": {"pretrain": 0}},
    {"on_alarm": "rollback", "kl": {"coef": 0.0}, "rollback": {"kl_factor": 1.0}},
    {"kl": {"target": 0.1, "horizon": 2}}, {"kl": {"coef": 0.0}}, {"target_kl": 0.1},
    {"loss": {"old_policy": "reference"}}, {"loss": {"old_kl_coef": 0.5, "clip": None}},
    {"loss": {"entropy": "bonus"}}, {"loss": {"entropy": "floor", "entropy_target": 1.0}},
    {"truncation": {"how": "penalty", "value": 1.0}}, {"truncation": {"how": "bootstrap"}}, {"grad_clip": "joint"},
    {"sampling": {"logprobs": "exact", "top_p": 1.0}}, HELD | {"best": "score", "kl_budget": 0.1},
    HELD | {"best": "gold", "gold": "tiny:count_yes"},
    {"best": "gold", "gold": "tiny:count_yes", "kl_budget": 0.1, "prompts": {
        "path": "q", "validation": "v", "validation_fraction": 0.0}},
]


@pytest.mark.parametrize("changes", ALLOWED)
def test_what_goes_together_is_taken(plain, changes):
    """The other side of each refusal."""
    assert isinstance(ppo.PPOConfig.checked(plain.model_dump() | changes), ppo.PPOConfig)


def test_a_prompt_needs_room_beside_the_response(plain):
    with pytest.raises(KeelError, match=r"prompts.max_length=64 leaves no room beside sampling.max_new_tokens=64"):
        ppo.run(plain.model_copy(update={"sampling": plain.sampling.model_copy(update={"max_new_tokens": 64})}))
