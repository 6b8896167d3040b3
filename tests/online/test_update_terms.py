"""What groups add to the update: the critic's states and joint loss, sequence ratios, a price of drift per response."""

import copy
from dataclasses import replace

import pytest
import tolerances as tol
import torch
from recipes.running import group_ppo_config, moved, part_of

from keel.models.actors import Actors
from keel.models.load import causal_lm, scalar_model
from keel.online import update as updates
from keel.online.group_settings import GroupConfig
from keel.online.groups import Asked, Groups, places_of
from keel.rollout.measure import measure
from keel.rollout.respond import Responses
from keel.train.tally import Tally

LEVELS = ["trajectory", "prompt"]
MICRO = [2048, 25, 1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Models and files that the tests of this module share."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def models(home):
    """A policy that has moved on since it sampled, its reference, and a critic."""
    cfg = group_ppo_config(home)
    policy = causal_lm(cfg.policy)
    return Actors(moved(policy, by=0.03, seed=1), moved(copy.deepcopy(policy), by=0.05), scalar_model(cfg.reward_model))


@pytest.fixture(scope="module")
def part(home, models):
    """Nine ragged rows, as the policy of a little earlier wrote them."""
    return part_of(causal_lm(group_ppo_config(home).policy), models.reference, n=9)


def gradient(model) -> torch.Tensor:
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                      for p in model.parameters()])


def measured(models, rollout, micro_tokens: int = 2048):
    return measure(Responses(rollout, (), ()), policy=models.policy, reference=models.reference, critic=models.critic,
                   kl="k1", micro_tokens=micro_tokens, temperature=1.0)


def read(models, rollout, level, micro_tokens: int = 2048):
    """The rollout with values and states, as a phase measures them."""
    return measured(models, replace(rollout, places=places_of(rollout, level)), micro_tokens)


# --- the critic's states ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_state_is_the_final_one_of_the_row_alone_in_its_column(models, part, level):
    """Read from each row without its padding, in float64; values are those that the critic gives without states."""
    found, trunk = read(models, part, level), copy.deepcopy(models.critic).double()
    for i, mask in enumerate(part.tokens.response_mask):
        where = mask.nonzero()[:, 0].tolist()
        column = where[-1] if level == "trajectory" else where[0] - 1
        ids = part.tokens.ids[i][part.tokens.attention_mask[i]]
        with torch.no_grad():
            alone = trunk.model(ids[None]).last_hidden_state[0, column]
        torch.testing.assert_close(found.states[i].double(), alone, **tol.GRADIENT32)
    plain = measured(models, part)
    assert torch.equal(found.values, plain.values) and plain.values.any() and plain.states is None
    assert found.states.dtype == torch.float32 and not found.states.requires_grad


@pytest.mark.parametrize("level", LEVELS)
def test_states_do_not_see_padding_micro_batches_or_the_order_of_rows(models, part, level):
    whole = read(models, part, level)
    for micro_tokens in MICRO[1:]:
        cut = read(models, part, level, micro_tokens)
        torch.testing.assert_close(cut.states, whole.states, **tol.FLOAT32)
        torch.testing.assert_close(cut.values, whole.values, **tol.FLOAT32)
    order = [4, 0, 8, 2, 7, 1, 3, 6, 5]
    torch.testing.assert_close(read(models, part.rows(order), level, 25).states, whole.states[order], **tol.FLOAT32)
    alone = read(models, part.rows([3]), level)
    torch.testing.assert_close(alone.states, whole.states[[3]], **tol.FLOAT32)
    junk = part.tokens.ids.masked_fill(~part.tokens.attention_mask, 9)
    assert torch.equal(read(models, replace(part, tokens=replace(part.tokens, ids=junk)), level).states, whole.states)


def test_at_the_level_of_prompts_another_response_changes_no_membership(models, part):
    """And at that of trajectories it does, of every row."""
    other = part.tokens.ids.where(~part.tokens.response_mask, (part.tokens.ids + 5) % 16 + 3)
    changed = replace(part, tokens=replace(part.tokens, ids=other))
    for level in LEVELS:
        groups = Groups(GroupConfig(level=level), models.critic, (), seed=0)
        with torch.no_grad():
            one, two = (groups.columns(read(models, rollout, level).states, []) for rollout in (part, changed))
        near = (one - two).abs().max(1).values < tol.RATIO
        assert near.all() if level == "prompt" else not near.any()


# --- a price of drift per response in the loss -----------------------------------------------------------------------


@pytest.mark.parametrize("micro_tokens", MICRO)
@pytest.mark.parametrize("estimator", ["k2", "full"])
def test_prices_per_response_enter_the_loss_as_in_a_plain_loop(home, models, part, estimator, micro_tokens):
    cfg = group_ppo_config(home, kl={"coef": 5.0, "estimator": estimator, "within": "loss"}, micro_tokens=micro_tokens,
                           loss={"clip": None})
    prices = torch.linspace(0.0, 2.0, len(part.ended))
    models.policy.zero_grad()
    updates.policy_gradients(models, replace(part, kl_coefs=prices), [], 2, cfg.kl.coef, cfg, Tally())
    p64, q64, terms = copy.deepcopy(models.policy).double(), copy.deepcopy(models.reference).double(), []
    p64.zero_grad()
    for i, mask in enumerate(part.tokens.response_mask):
        ids = part.tokens.ids[i][part.tokens.attention_mask[i]]
        p, q = p64(ids[None]).logits[0].log_softmax(-1), q64(ids[None]).logits[0].log_softmax(-1).detach()
        for t in mask.nonzero()[:, 0].tolist():
            now, ref = p[t - 1, ids[t]], q[t - 1, ids[t]]
            drift = (now - ref) ** 2 / 2 if estimator == "k2" else (p[t - 1].exp() * (p[t - 1] - q[t - 1])).sum()
            ratio = (now - part.logprobs[i, t].double()).exp()
            terms.append(-ratio * part.advantages[i, t].double() + float(prices[i]) * drift)
    (sum(terms) / len(terms)).backward()
    torch.testing.assert_close(gradient(models.policy).double(), gradient(p64), **tol.GRADIENT32)


# --- the joint loss of critic and head -------------------------------------------------------------------------------


def asked_of(groups, rollout, coef: float = 0.3) -> tuple[Asked, torch.Tensor]:
    """Standardised returns of any kind, and what the groups say of these responses now."""
    returns = torch.randn(len(rollout.ended), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        p = groups.columns(rollout.states, [])
    return Asked(torch.ones_like(returns), None, None, p, returns, 0.0, coef, None), returns


def slow_objective(states, groups, returns):
    """Variance of group returns less what small groups cost, in float64."""
    cfg, (weight, bias) = groups.cfg, (groups.head.weight.detach().double(), groups.head.bias.detach().double())
    z = cfg.logit_bound * torch.tanh((states @ weight.T + bias) / cfg.logit_bound)
    p = z.exp() / z.exp().sum(1, keepdim=True)
    means = [(p[:, g] * returns.double()).sum() / p[:, g].sum() for g in range(cfg.n)]
    variance = sum((x - sum(means) / cfg.n) ** 2 for x in means) / cfg.n
    missing = [(cfg.floor - p[:, g].mean()).clamp_min(0) ** 2 for g in range(cfg.n)]
    assert any(x > 0 for x in missing)
    return variance - cfg.floor_coef * sum(missing)


@pytest.mark.parametrize("micro_tokens", MICRO)
@pytest.mark.parametrize("level", LEVELS)
def test_with_critic_coef_the_critics_gradient_is_that_of_the_joint_loss(home, models, part, level, micro_tokens):
    """L_value - critic_coef times the head's objective, through the critic's body, in float64; over any micro-batches;
    and the minibatches of a phase share it."""
    cfg = group_ppo_config(home, rollouts=9, minibatch=9, micro_tokens=micro_tokens,
                           groups={"critic_coef": 0.7, "floor": 0.5, "n": 2, "level": level})
    groups = Groups(cfg.groups, models.critic, (), seed=0)
    rollout = replace(part, **{name: getattr(read(models, part, level), name) for name in ("places", "states")})
    asked, returns = asked_of(groups, rollout)
    rollout = replace(rollout, **groups.terms(rollout, asked, prices=False))
    assert groups.head.weight.grad is None and not rollout.state_pull.requires_grad
    models.critic.zero_grad()
    updates.value_gradients(models.critic, rollout, 1, cfg, Tally())
    found, c64, terms, states = gradient(models.critic), copy.deepcopy(models.critic).double(), [], []
    c64.zero_grad()
    for i, mask in enumerate(part.tokens.response_mask):
        where, ids = mask.nonzero()[:, 0].tolist(), part.tokens.ids[i][part.tokens.attention_mask[i]]
        hidden = c64.model(ids[None]).last_hidden_state[0]
        states.append(hidden[where[-1] if level == "trajectory" else where[0] - 1])
        for t in where:
            v, old, target = c64.score(hidden[t - 1])[0], part.values[i, t].double(), part.returns[i, t].double()
            near = v.clamp(old - cfg.loss.value_clip, old + cfg.loss.value_clip)
            terms.append(torch.maximum((v - target) ** 2, (near - target) ** 2) / 2)
    value_loss = sum(terms) / len(terms)
    (cfg.loss.value_coef * value_loss - 0.7 * slow_objective(torch.stack(states), groups, returns)).backward()
    torch.testing.assert_close(found.double(), gradient(c64), **tol.GRADIENT32)
    shares = []
    for rows in ([0, 1, 2, 3, 4, 5], [6, 7, 8]):
        for pulled in (True, False):
            models.critic.zero_grad()
            one = rollout.rows(rows)
            updates.value_gradients(models.critic, one if pulled else replace(one, state_pull=None), 1, cfg, Tally())
            shares.append(gradient(models.critic) * len(rows) / 9 * (1 if pulled else -1))
    models.critic.zero_grad()
    updates.value_gradients(models.critic, replace(rollout, state_pull=None), 1, cfg, Tally())
    joint = found - gradient(models.critic)
    assert joint.abs().max() > tol.CREDIT32["rtol"]
    torch.testing.assert_close(sum(shares), joint, **tol.GRADIENT32)


def test_without_critic_coef_nothing_is_added_to_the_critics_loss(home, models, part):
    groups = Groups(group_ppo_config(home).groups, models.critic, (), seed=0)
    rollout = read(models, part, "trajectory")
    asked = asked_of(groups, rollout)[0]
    assert groups.terms(rollout, asked, prices=False) == {}
    assert groups.terms(rollout, asked, prices=True) == {"kl_coefs": asked.prices}
    grads = []
    for one in (rollout, replace(rollout, places=None, states=None)):
        models.critic.zero_grad()
        updates.value_gradients(models.critic, one, 1, group_ppo_config(home), Tally())
        grads.append(gradient(models.critic))
    assert torch.equal(*grads) and grads[0].any()


# --- sequence ratios -------------------------------------------------------------------------------------------------


def slow_ratio_gradient(policy, part, coef, clip):
    """The clipped surrogate and the variance of group returns under sequence ratios, in float64."""
    p64, losses, ratios = copy.deepcopy(policy).double(), [], []
    p64.zero_grad()
    for i, mask in enumerate(part.tokens.response_mask):
        ids, log_ratio = part.tokens.ids[i][part.tokens.attention_mask[i]], 0.0
        table = p64(ids[None]).logits[0].log_softmax(-1)
        for t in mask.nonzero()[:, 0].tolist():
            step = table[t - 1, ids[t]] - part.logprobs[i, t].double()
            a, log_ratio = part.advantages[i, t].double(), log_ratio + step
            losses.append(-torch.minimum(step.exp() * a, step.exp().clamp(1 - clip, 1 + clip) * a))
        ratios.append(log_ratio.exp())
    rho, p, returns = torch.stack(ratios), part.memberships.double(), part.group_returns.double()
    means = [(p[:, g] * rho * returns).sum() / (p[:, g] * rho).sum() for g in range(p.shape[1])]
    variance = sum((x - sum(means) / len(means)) ** 2 for x in means) / len(means)
    # Tokens weigh the same in the surrogate; the variance is of responses: as many of them as tokens have them.
    (sum(losses) / len(losses) + coef * variance * len(ratios) / len(losses)).backward()
    return gradient(p64)


@pytest.fixture(scope="module")
def with_groups(part):
    """Soft groups and returns of any kind, held together by ratios."""
    g = torch.Generator().manual_seed(5)
    p = torch.randn(9, 3, generator=g).softmax(1)
    return replace(part, memberships=p, group_returns=torch.randn(9, generator=g), ratio_coef=40.0)


RATIO = {"groups": {"estimator": "ratio"}, "rollouts": 18, "minibatch": 9}


def ratio_gradient(home, models, part, number, micro_tokens=2048, **changes):
    cfg = group_ppo_config(home, kl={"coef": 0.1}, micro_tokens=micro_tokens, **(RATIO | changes))
    models.policy.zero_grad()
    part = updates.with_ratio_pull(models.policy, part, number, cfg)
    updates.policy_gradients(models, part, [], number, 0.0, cfg, Tally())
    return gradient(models.policy)


@pytest.mark.parametrize("micro_tokens", MICRO)
def test_ratios_have_the_gradient_of_the_variance_under_them(home, models, with_groups, micro_tokens):
    """A policy that has moved on since it sampled, second minibatch of the phase."""
    found = ratio_gradient(home, models, with_groups, 2, micro_tokens)
    torch.testing.assert_close(found.double(), slow_ratio_gradient(models.policy, with_groups, 40.0, 0.2),
                               **tol.GRADIENT32)
    plain = ratio_gradient(home, models, replace(with_groups, ratio_coef=0.0), 2)
    assert not torch.allclose(plain, found, **tol.GRADIENT32)


def test_where_another_policy_sampled_no_ratio_is_taken_to_be_one(home, models, with_groups):
    """First minibatch of the phase, whose responses were written under a cap."""
    capped = {"policy_axis": {"path": "axis.safetensors", "lower": 1.0, "mode": "rollout_only"}}
    found = ratio_gradient(home, models, with_groups, 1, **capped)
    torch.testing.assert_close(found.double(), slow_ratio_gradient(models.policy, with_groups, 40.0, 0.2),
                               **tol.GRADIENT32)


@pytest.mark.parametrize("micro_tokens", MICRO)
def test_on_a_fresh_minibatch_ratios_are_shaping_without_a_cap(home, models, with_groups, micro_tokens):
    """First minibatch of the phase: rho = 1, so A - coef w by hand has the same gradient."""
    p, returns = with_groups.memberships.double(), with_groups.group_returns.double()
    mass = p.sum(0)
    means = (p * returns[:, None]).sum(0) / mass
    weights = (2 / 3 * (means - means.mean()) * 9 * p / mass * (returns[:, None] - means)).sum(1)
    shaped = with_groups.advantages - 40.0 * weights.float()[:, None]
    by_hand = replace(with_groups, ratio_coef=0.0, advantages=shaped.where(with_groups.tokens.response_mask, 0.0))
    found = ratio_gradient(home, models, with_groups, 1, micro_tokens)
    torch.testing.assert_close(found, ratio_gradient(home, models, by_hand, 1), **tol.GRADIENT32)


def test_ratios_are_asked_for_only_where_they_act(home, models, part):
    for estimator, coef, expected in (("shaping", 0.3, False), ("ratio", 0.0, False), ("ratio", 0.3, True)):
        cfg = group_ppo_config(home, **(RATIO | {"groups": {"estimator": estimator}})).groups
        groups = Groups(cfg, models.critic, (), seed=0)
        rollout = read(models, part, "trajectory")
        asked, returns = asked_of(groups, rollout, coef)
        found = groups.terms(rollout, asked, prices=False)
        assert bool(found) == expected
        if found:
            assert found.keys() == {"memberships", "group_returns", "ratio_coef"} and found["ratio_coef"] == 0.3
            assert torch.equal(found["memberships"], asked.memberships) and torch.equal(found["group_returns"], returns)
            assert updates.with_ratio_pull(models.policy, rollout, 1, group_ppo_config(home)) is rollout
