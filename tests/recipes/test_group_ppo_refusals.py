"""Settings of `keel group-ppo` that exclude each other are refused, and the complaint names both."""

import pytest
from recipes.running import group_ppo_config

from keel.errors import ConfigError
from keel.recipes.group_ppo import GroupPPOConfig

RLOO = {"advantage": {"estimator": "rloo", "group": 2}}
LONG = {"sampling": {"max_new_tokens": 65}}

REFUSED = [
    # the table of groups
    *(({"groups": {"estimator": "ratio", "objective": objective}},
       f"groups.estimator='ratio' and groups.objective={objective!r} exclude each other: only the variance of group "
       "returns has that form") for objective in ("low_only", "worst", "vrex", "dro", "cvar", None)),
    ({"groups": {"objective": None, "kl": "equal"}},
     "groups.objective is none and groups.kl='equal': the groups would change nothing; use `keel ppo`"),
    ({"groups": {"source": "known", "critic_coef": 1.0}},
     "groups.critic_coef needs groups.source='inferred': known groups have no head to learn with"),
    ({"groups": {"floor": 0.51}}, "groups.floor=0.51 and groups.n=2 exclude each other: not every group can have that"),
    ({"groups": {"floor": 0.34, "n": 3}}, "groups.floor=0.34 and groups.n=3 exclude each other"),
    ({"groups": {"objective": "cvar", "tails": 0.2}},
     "groups.tails=0.2 pulls in all that groups.cvar_share=0.2 looks at: nothing would be below the quantile"),
    # with the rest
    *((RLOO | {"advantage": RLOO["advantage"] | {"estimator": kind}, "critic": {"pretrain": 0}},
       f"groups.source='inferred' and advantage.estimator={kind!r} exclude each other: the head reads a critic; name "
       "known groups, or take gae") for kind in ("rloo", "grpo", "reinforce++")),
    ({"advantage": {"normalise": "minibatch"}},
     "advantage.normalise='minibatch' would rescale what groups.objective adds to the advantages of each minibatch; "
     "use 'rollout', which comes before it, or none"),
    ({"groups": {"warmup": 2}, "steps": 2}, "groups.warmup=2 and steps=2: the run would end before the groups act"),
    (LONG | {"groups": {"estimator": "ratio"}}, "groups.estimator='ratio' and sampling.max_new_tokens=65: ratios of "
     "whole responses explode beyond 64 tokens; use 'shaping'"),
    ({"groups": {"estimator": "ratio"}, "loss": {"reduction": "sequence"}},
     "groups.estimator='ratio' moves every token of a response alike, and loss.reduction='sequence' weighs those of "
     "long responses less: use 'token'"),
    ({"kl": {"coef": 0.0}}, "groups.kl='adaptive' and kl.coef=0: there is no price of drift to share out; set "
     "groups.kl to equal"),
    ({"kl": {"coef": 0.0}, "groups": {"kl": "equal", "returns": "kl_penalised"}},
     "groups.returns='kl_penalised' and kl.coef=0: drift has no price to take off; use 'score'"),
    *(({"truncation": {"how": how}}, f"truncation.how={how!r} says not what a cut response is worth, and the means of "
       "groups count every response: use score, penalty or constant") for how in ("mask", "bootstrap")),
    # what plain PPO refuses
    ({"minibatch": 3}, "minibatch=3 does not divide rollouts=8"),
]

OUT_OF_RANGE = [{"n": 1}, {"tails": 0.5}, {"coef": 0.0}, {"cap": 0.0}, {"warmup": -1}, {"ramp_fraction": 1.1},
                {"dro_step": 0.0}, {"cvar_share": 1.0}, {"cvar_share": 0.0}, {"kl_floor": 1.1}, {"kl_floor": -0.1},
                {"floor": -0.1}, {"floor_coef": -1.0}, {"logit_bound": 0.0}, {"steps": 0}, {"lr": 0.0},
                {"critic_coef": 0.0}, {"ema_decay": 1.0}, {"ema_slack": -0.1}, {"column": ""}, {"source": "guessed"},
                {"level": "token"}, {"objective": "mean"}, {"kl": "free"}, {"variance": "robust"}, {"returns": "gold"}]

ALLOWED = [
    {}, {"groups": {"estimator": "ratio"}}, {"groups": {"objective": None}}, {"groups": {"kl": "equal"}},
    {"groups": {"kl": "equal"}, "kl": {"coef": 0.0}}, {"groups": {"critic_coef": 1.0}},
    {"groups": {"floor": 0.5}}, {"groups": {"floor": 0.33, "n": 3}}, {"groups": {"floor": 0.9, "source": "known"}},
    RLOO | {"critic": {"pretrain": 0}, "groups": {"source": "known"}}, {"groups": {"warmup": 1}, "steps": 2},
    {"groups": {"objective": None}, "advantage": {"normalise": "minibatch"}}, {"advantage": {"normalise": "rollout"}},
    *({"truncation": {"how": how, "value": 1.0}} for how in ("penalty", "constant")), {"groups": {"kl_renorm": True}},
    LONG, {"groups": {"estimator": "ratio"}, "sampling": {"max_new_tokens": 64}},
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Settings that are fine as they are."""
    return group_ppo_config(tmp_path_factory.mktemp("home")).model_dump()


def given(plain, changes) -> dict:
    return plain | changes | {"groups": plain["groups"] | changes.get("groups", {})}


@pytest.mark.parametrize(("changes", "complaint"), REFUSED)
def test_each_contradiction_of_groups_is_refused_with_both_names(plain, changes, complaint):
    with pytest.raises(ConfigError) as caught:
        GroupPPOConfig.checked(given(plain, changes))
    assert complaint in str(caught.value)


@pytest.mark.parametrize("groups", OUT_OF_RANGE, ids=str)
def test_what_is_out_of_range_is_refused_by_its_name(plain, groups):
    with pytest.raises(ConfigError, match=rf"groups\.{next(iter(groups))}"):
        GroupPPOConfig.checked(given(plain, {"groups": groups}))


@pytest.mark.parametrize("changes", ALLOWED, ids=str)
def test_groups_that_go_together_with_the_rest_are_taken(plain, changes):
    """The other side of each refusal."""
    assert isinstance(GroupPPOConfig.checked(given(plain, changes)), GroupPPOConfig)


def test_groups_by_default_warm_up_for_twenty_phases_and_act_in_the_papers_form_but_for_its_guards():
    cfg = GroupPPOConfig.checked({"out": "o", "policy": "p", "reward_model": "r", "prompts": "q"})
    groups = cfg.groups
    assert (groups.source, groups.n, groups.level, groups.objective) == ("inferred", 2, "trajectory", "variance")
    assert (groups.coef, groups.warmup, groups.kl, groups.kl_floor, groups.floor) == (0.1, 20, "adaptive", 0.1, 0.15)
    assert groups.critic_coef is None and groups.warmup < cfg.steps == 100
