"""Every switch of `keel ppo` acts, and acts alone: what it computes against float64, or by hand, from what went in."""

import copy
import json
import math

import pytest
import tiny
import tolerances as tol
import torch
from cli.serving import Reply, Server
from recipes.running import FAST, brief, logged, moved, part_of, watched

from keel.config import PRESETS, read_toml
from keel.models.actors import Actors, CriticConfig, load_actors
from keel.models.forward import response_scores, token_values
from keel.models.load import LoraSettings, ModelConfig, causal_lm, load_tokenizer, save_model, scalar_model
from keel.online import setup
from keel.online import update as updates
from keel.recipes import ppo
from keel.rollout.credit import TruncationConfig, with_credit
from keel.train.inputs import prompt_room
from keel.train.tally import Tally

NO_KL = {"coef": 0.0}
RAW = {"center": False, "scale": None, "clip": None}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Models and files that the tests of this module share; each run has a folder of its own."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def run(home, tmp_path, monkeypatch):
    """Run one phase with these changes; what it computed on its way, its metrics, its result."""

    def go(**changes):
        seen = watched(monkeypatch)
        seen.out = changes.setdefault("out", tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        seen.cfg = brief(home, **changes)
        seen.result = ppo.run(seen.cfg).values
        seen.rows = logged(seen.out)
        monkeypatch.undo()
        return seen

    return go


def tokens_of(rollout, name: str) -> list[list[float]]:
    """A column of a rollout, its response tokens only."""
    return [x[mask].tolist() for x, mask in zip(getattr(rollout, name), rollout.tokens.response_mask, strict=True)]


# --- losses: the gradient of a minibatch against float64 autograd on full logits -------------------------------------


def reference_gradient(policy, reference, part, cfg):
    """Everything that the policy minimises, written a second time: from full logits, in float64, token by token."""
    p64, q64 = (copy.deepcopy(model).double().requires_grad_() for model in (policy, reference))
    how, kl, terms, entropies, weights = cfg.loss, cfg.kl, [], [], []
    for i, mask in enumerate(part.tokens.response_mask):
        where, ids = mask.nonzero()[:, 0].tolist(), part.tokens.ids[i][part.tokens.attention_mask[i]]
        p, q = p64(ids[None]).logits[0].log_softmax(-1), q64(ids[None]).logits[0].log_softmax(-1).detach()
        for t in where:
            now, ref = p[t - 1, ids[t]], q[t - 1, ids[t]]
            log_ratio = now - (ref if how.old_policy == "reference" else part.logprobs[i, t].double())
            ratio, a = log_ratio.exp(), part.advantages[i, t].double()
            term = -ratio * a
            if how.clip is not None:
                term = -torch.minimum(ratio * a, ratio.clamp(1 - how.clip, 1 + how.clip) * a)
            if how.old_kl_coef is not None:
                term = term + how.old_kl_coef * (ratio - 1 - log_ratio)
            if kl.within == "loss":
                k1 = now - ref
                term = term + kl.coef * {"k1": k1, "k2": k1**2 / 2, "k3": (-k1).exp() - 1 + k1,
                                         "full": (p[t - 1].exp() * (p[t - 1] - q[t - 1])).sum()}[kl.estimator]
            terms.append(term)
            entropies.append(-(p[t - 1].exp() * p[t - 1]).sum())
            share = 1.0 if how.reduction == "token" else 1 / len(where)
            weights.append(share if part.counted[i] else 0.0)
    w = torch.tensor(weights).double() / sum(weights)
    loss, entropy = (w * torch.stack(terms)).sum(), (w * torch.stack(entropies)).sum()
    if how.entropy is not None:
        target = how.entropy_target or 0.0
        loss = loss + how.entropy_coef * {"bonus": -entropy, "floor": (target - entropy).clamp_min(0),
                                          "target": (entropy - target).abs()}[how.entropy]
    loss.backward()
    return torch.cat([p.grad.flatten() for p in p64.parameters()]).float()


@pytest.fixture(scope="module")
def minibatch(home):
    """A policy that has moved on since it sampled, its reference, and six rows, one of them left out of the losses."""
    policy = causal_lm(brief(home).policy)
    reference = moved(copy.deepcopy(policy), by=0.05)
    part = part_of(policy, reference, n=6)
    part.counted[4] = False
    return moved(policy, by=0.03, seed=1), reference, part


def policy_gradient(minibatch, cfg, micro_tokens: int = 2048):
    policy, reference, part = minibatch
    policy.zero_grad()
    updates.policy_gradients(Actors(policy, reference, None), part, [], 2, cfg.kl.coef,
                         cfg.model_copy(update={"micro_tokens": micro_tokens}), Tally())
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


LOSSES = {
    "as it is": {},
    "another clip": {"loss": {"clip": 0.02}},
    "no clip": {"loss": {"clip": None}},
    "the penalty": {"loss": {"clip": None, "old_kl_coef": 2.0}},
    "importance sampling": {"loss": {"old_policy": "reference"}},
    "every answer the same": {"loss": {"reduction": "sequence"}},
    "entropy bonus": {"loss": {"entropy": "bonus", "entropy_coef": 0.5}},
    "entropy floor above": {"loss": {"entropy": "floor", "entropy_coef": 0.5, "entropy_target": 3.0}},
    "entropy target above": {"loss": {"entropy": "target", "entropy_coef": 0.5, "entropy_target": 3.0}},
    "entropy target below": {"loss": {"entropy": "target", "entropy_coef": 0.5, "entropy_target": 0.5}},
    "target and answers": {"loss": {"entropy": "target", "entropy_target": 0.5, "reduction": "sequence"}},
    "k1 in the loss": {"kl": {"coef": 0.7, "estimator": "k1", "within": "loss"}},
    "k2 in the loss": {"kl": {"coef": 0.7, "estimator": "k2", "within": "loss"}},
    "k3 in the loss": {"kl": {"coef": 0.7, "estimator": "k3", "within": "loss"}},
    "full in the loss": {"kl": {"coef": 0.7, "estimator": "full", "within": "loss"}},
    "full and answers": {"kl": {"coef": 0.7, "estimator": "full", "within": "loss"}, "loss": {"reduction": "sequence"}},
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_has_the_gradient_of_the_full_logits_in_any_micro_batches(home, minibatch, name):
    """Entropy floor and target depend on the mean over the whole minibatch, and still do not see the micro-batches."""
    cfg = brief(home, **({"kl": NO_KL} | LOSSES[name]))
    expected = reference_gradient(*minibatch, cfg)
    for micro_tokens in (2048, 25, 1):
        torch.testing.assert_close(policy_gradient(minibatch, cfg, micro_tokens), expected, **tol.GRADIENT32)
    plain = policy_gradient(minibatch, brief(home, kl=NO_KL))
    assert name == "as it is" or not torch.allclose(plain, expected, **tol.GRADIENT32)


def test_an_entropy_floor_below_the_entropy_does_nothing(home, minibatch):
    plain = policy_gradient(minibatch, brief(home, kl=NO_KL))
    floor = brief(home, kl=NO_KL, loss={"entropy": "floor", "entropy_coef": 0.5, "entropy_target": 0.5})
    torch.testing.assert_close(policy_gradient(minibatch, floor), plain, **tol.GRADIENT32)


@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_kl_in_the_loss_restrains_and_charges_no_reward(run, estimator):
    free = run(steps=6, kl=NO_KL)
    held = run(steps=6, kl={"coef": 3.0, "estimator": estimator, "within": "loss"})
    assert held.rows[-1]["kl/reference_k3"] < 0.5 * free.rows[-1]["kl/reference_k3"]
    assert held.rows[-1]["loss/kl"] > 0
    for rewards in tokens_of(held.phases[-1].rollout, "rewards"):
        assert not any(rewards[:-1])


def test_k1_in_the_loss_is_warned_of(run):
    settings = {"coef": 0.1, "estimator": "k1", "within": "loss"}
    notes = run(kl=settings).result["notes"]
    assert any("its gradient has mean zero, so it restrains nothing" in note for note in notes)


@pytest.mark.parametrize("settings", [{}, {"value_clip": None}, {"value_coef": 3.0}, {"value_clip": 0.01},
                                      {"reduction": "sequence"}])
@pytest.mark.parametrize("micro_tokens", [2048, 25])
def test_each_value_loss_has_the_gradient_of_plain_loops(home, minibatch, settings, micro_tokens):
    cfg, (_, _, part) = brief(home, loss=settings, micro_tokens=micro_tokens), minibatch
    critic = scalar_model(cfg.reward_model)
    updates.value_gradients(critic, part, 1, cfg, Tally())
    found, c64, terms, weights = [p.grad for p in critic.parameters()], copy.deepcopy(critic).double(), [], []
    c64.zero_grad()
    for i, mask in enumerate(part.tokens.response_mask):
        where, ids = mask.nonzero()[:, 0].tolist(), part.tokens.ids[i][part.tokens.attention_mask[i]]
        values = c64.score(c64.model(ids[None]).last_hidden_state[0])[:, 0]
        for t in where:
            v, old, target = values[t - 1], part.values[i, t].double(), part.returns[i, t].double()
            near = v if cfg.loss.value_clip is None else v.clamp(old - cfg.loss.value_clip, old + cfg.loss.value_clip)
            terms.append(torch.maximum((v - target) ** 2, (near - target) ** 2) / 2)
            share = 1.0 if cfg.loss.reduction == "token" else 1 / len(where)
            weights.append(share if part.counted[i] else 0.0)
    w = torch.tensor(weights).double() / sum(weights)
    (cfg.loss.value_coef * (w * torch.stack(terms)).sum()).backward()
    for one, other in zip(found, c64.parameters(), strict=True):
        torch.testing.assert_close(one.double(), other.grad, **tol.GRADIENT32)


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [RAW, {**RAW, "center": True}, {**RAW, "scale": "scores"},
                                      {**RAW, "scale": "rolling"}, {**RAW, "clip": 0.05},
                                      {"center": True, "scale": "rolling", "clip": 1.0}])
def test_each_way_of_processing_scores_acts_alone(run, settings):
    """In the second phase, from the raw scores of both: mean and std of all, or the std of R_t = gamma R_{t-1} + r_t
    over all response tokens, which is 0 until the last one and the score there."""
    seen = run(steps=2, score=settings)
    raw = [float(x) for phase in seen.phases for x in phase.scored.total]
    per_token = [x for phase in seen.phases for score, mask in
                 zip(phase.scored.total.tolist(), phase.rollout.tokens.response_mask, strict=True)
                 for x in [0.0] * (int(mask.sum()) - 1) + [score]]

    def std(values):
        mean = sum(values) / len(values)
        return math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))

    expected = raw[8:]
    if settings["center"]:
        expected = [x - sum(raw) / len(raw) for x in expected]
    if settings["scale"] is not None:
        expected = [x / std(raw if settings["scale"] == "scores" else per_token) for x in expected]
    if settings["clip"] is not None:
        assert any(abs(x) > settings["clip"] for x in expected)
        expected = [min(max(x, -settings["clip"]), settings["clip"]) for x in expected]
    assert seen.phases[1].processed.tolist() == pytest.approx(expected, rel=tol.GRADIENT32["rtol"])
    assert seen.rows[1]["score/processed"] == pytest.approx(sum(expected) / 8, rel=tol.GRADIENT32["rtol"],
                                                            abs=tol.RATIO)


def test_sources_are_weighted_ensembles_disagree_and_a_server_is_asked(home, tmp_path, run):
    """Two reward models as an ensemble, a function and a server: raw, processed, weighted and summed."""
    cfg = brief(home)
    save_model(scalar_model(cfg.policy, seed=9), load_tokenizer(cfg.policy.path), tmp_path / "other", pad_id=0)
    pair = [cfg.reward_model, ModelConfig(path=str(tmp_path / "other"))]
    with Server(lambda asked: Reply({"scores": [float(len(item["response"])) for item in asked["items"]]})) as server:
        seen = run(reward_model=None, score={"center": False, "scale": "scores", "clip": None}, kl=NO_KL, rewards=[
            {"name": "both", "models": [m.model_dump() for m in pair], "combine": "minimum", "weight": 2.0},
            {"name": "length", "function": "tiny:length", "weight": -0.5},
            {"name": "served", "endpoint": {"url": server.url}, "batch": 3}])
        assert [len(body["items"]) for _, _, body in server.asked] == [3, 3, 2]
    phase, row = seen.phases[0], seen.rows[0]
    with torch.no_grad():
        members = torch.stack([response_scores(scalar_model(m), phase.rollout.tokens) for m in pair])
    raw, weights = phase.scored.raw, {"both": 2.0, "length": -0.5, "served": 1.0}
    torch.testing.assert_close(raw["both"], members.min(0).values, **tol.FLOAT32)
    assert row["score/both/disagreement"] == pytest.approx(float(members.std(0, correction=0).mean()),
                                                           rel=tol.GRADIENT32["rtol"])
    assert list(raw) == ["both", "length", "served"]
    processed = sum(weights[name] * x.double() / x.double().std() for name, x in raw.items())
    torch.testing.assert_close(phase.processed.double(), processed, **tol.GRADIENT32)
    torch.testing.assert_close(phase.rollout.rewards.sum(1).double(), processed, **tol.GRADIENT32)
    for name, x in raw.items():
        assert row[f"score/{name}/mean"] == pytest.approx(float(x.mean()), rel=tol.GRADIENT32["rtol"])
        assert row[f"moments/{name}/std"] == pytest.approx(float(x.double().std()), rel=tol.GRADIENT32["rtol"])
    total = float(sum(weights[name] * x for name, x in raw.items()).mean())
    assert row["score/mean"] == pytest.approx(total, rel=tol.GRADIENT32["rtol"])


# --- the price of drift ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
def test_each_estimator_is_charged_in_the_rewards(run, estimator):
    """In the second phase, when the policy has left the reference; `full` against float64 logits."""
    seen = run(steps=2, kl={"coef": 0.3, "estimator": estimator})
    rollout, charged = seen.phases[1].rollout, []
    policy, reference = (causal_lm(seen.cfg.policy).double().requires_grad_(False) for _ in range(2))
    if estimator == "full":  # the policy of the second phase: the one whose log-probabilities the rollout has
        once = run(steps=1, kl={"coef": 0.3, "estimator": estimator})
        policy = causal_lm(ModelConfig(path=str(once.out / "model"))).double().requires_grad_(False)
    for i, mask in enumerate(rollout.tokens.response_mask):
        where, ids = mask.nonzero()[:, 0].tolist(), rollout.tokens.ids[i][rollout.tokens.attention_mask[i]]
        p, q = (model(ids[None]).logits[0].log_softmax(-1) for model in (policy, reference))
        for t in where:
            k1 = float(rollout.logprobs[i, t]) - float(rollout.ref_logprobs[i, t])
            nats = {"k1": k1, "k2": k1**2 / 2, "k3": math.exp(-k1) - 1 + k1,
                    "full": float((p[t - 1].exp() * (p[t - 1] - q[t - 1])).sum())}[estimator]
            charged.append(nats)
            paid = float(seen.phases[1].processed[i]) if t == where[-1] else 0.0
            assert float(rollout.rewards[i, t]) == pytest.approx(paid - 0.3 * nats, rel=tol.GRADIENT32["rtol"],
                                                                 abs=tol.GRADIENT32["atol"])
    assert seen.rows[1]["kl/charged"] == pytest.approx(sum(charged) / len(charged), rel=tol.GRADIENT32["rtol"],
                                                       abs=tol.GRADIENT32["atol"])
    assert seen.rows[1]["kl/coef"] == 0.3


@pytest.mark.parametrize("target", [1e-6, 1e-2, 1e3])
def test_a_kl_target_moves_the_coefficient_as_by_hand(run, target):
    seen = run(steps=4, kl={"coef": 0.1, "target": target, "horizon": 40}, critic={"pretrain": 1})
    coef, moves = 0.1, []
    for row in seen.rows:
        assert row["kl/coef"] == pytest.approx(coef, rel=tol.RELATIVE32)
        error = min(max(row["kl/charged"] / target - 1, -0.2), 0.2)
        moves.append(error)
        coef *= 1 + error * 8 / 40
    assert any(moves) and logged(seen.out, phase="critic")[0]["kl/coef"] == 0.1


def test_a_kl_target_follows_the_estimator_that_is_charged(run):
    """The drift of the second phase does not know the target yet; a target close to it moves coef by less than 20%."""
    settings = {"coef": 0.1, "estimator": "k2", "horizon": 40}
    charged = run(steps=2, kl=settings).rows[1]["kl/charged"]
    rows = run(steps=3, kl=settings | {"target": charged / 1.1}).rows
    assert rows[1]["kl/charged"] == charged != pytest.approx(rows[1]["kl/reference_k3"], **tol.MICRO_BATCHES)
    assert rows[2]["kl/coef"] == pytest.approx(rows[1]["kl/coef"] * (1 + 0.1 * 8 / 40), rel=tol.RELATIVE32)


# --- advantages ------------------------------------------------------------------------------------------------------


def spread(rows) -> tuple[float, float]:
    flat = torch.tensor([x for row in rows for x in row]).double()
    return float(flat.mean()), float(flat.var(correction=0))


def test_advantages_are_normalised_over_minibatch_or_rollout_and_clipped(run):
    plain = run()
    whole, parts = run(advantage={"normalise": "rollout"}), run(advantage={"normalise": "minibatch"})
    clipped = run(advantage={"clip": 0.1})
    mean, variance = spread(tokens_of(plain.phases[0].rollout, "advantages"))
    a = torch.tensor([x for row in tokens_of(plain.phases[0].rollout, "advantages") for x in row])
    normal = torch.tensor([x for row in tokens_of(whole.phases[0].rollout, "advantages") for x in row])
    torch.testing.assert_close(normal, (a - mean) / (variance + 1e-6) ** 0.5, **tol.CREDIT32)
    for update in parts.updates:
        found = spread(tokens_of(update.part, "advantages"))
        assert found == (pytest.approx(0.0, abs=tol.RATIO), pytest.approx(1.0, rel=tol.GRADIENT32["rtol"]))
    assert spread(tokens_of(whole.updates[0].part, "advantages"))[0] != pytest.approx(0.0, abs=tol.RATIO)
    assert tokens_of(parts.phases[0].rollout, "advantages") == tokens_of(plain.phases[0].rollout, "advantages")
    both = run(advantage={"normalise": "minibatch", "clip": 0.5})
    assert torch.equal(both.updates[0].part.advantages, parts.updates[0].part.advantages.clamp(-0.5, 0.5))
    bounded = torch.tensor([x for row in tokens_of(clipped.phases[0].rollout, "advantages") for x in row])
    assert torch.equal(bounded, a.clamp(-0.1, 0.1)) and (bounded.abs() == torch.tensor(0.1)).any()
    for seen in (whole, parts, clipped):  # what the critic learns stays as it is
        assert tokens_of(seen.phases[0].rollout, "returns") == tokens_of(plain.phases[0].rollout, "returns")


GROUPS = {"rloo": {"estimator": "rloo", "group": 4}, "grpo": {"estimator": "grpo", "group": 4},
          "reinforce++": {"estimator": "reinforce++", "gamma": 0.9}}


@pytest.mark.parametrize("topology", ["separate", "shared"])
@pytest.mark.parametrize("name", GROUPS)
def test_estimators_without_a_critic_train_and_groups_stay_together(home, run, name, topology):
    lora = LoraSettings(rank=2) if topology == "shared" else LoraSettings()
    policy = ModelConfig(path=brief(home).policy.path, lora=lora)
    seen = run(steps=2, kl={"coef": 0.1}, advantage=GROUPS[name], topology=topology, policy=policy, score=RAW)
    assert {step.name for step in seen.steps} == {"policy"} and seen.steps[0].raw.any()
    assert not {"value/mean", "loss/value", "lr/critic"} & seen.rows[0].keys()
    rollout = seen.phases[1].rollout
    totals = [sum(row) for row in tokens_of(rollout, "rewards")]
    ids, found = rollout.tokens.record_ids, tokens_of(rollout, "advantages")
    if name == "reinforce++":
        to_come = [[sum(0.9 ** (k - t) * r for k, r in enumerate(row) if k >= t) for t in range(len(row))]
                   for row in tokens_of(rollout, "rewards")]
        mean, variance = spread(to_come)
        expected = [[(x - mean) / (variance + 1e-6) ** 0.5 for x in row] for row in to_come]
    else:
        assert ids == (ids[0],) * 4 + (ids[4],) * 4 and ids[0] != ids[4]
        assert len(set(map(tuple, tokens_of(rollout, "logprobs")[:4]))) > 1  # answers of their own to one prompt
        expected = []
        for i, row in enumerate(found):
            group = totals[i // 4 * 4 : i // 4 * 4 + 4]
            others = [x for j, x in enumerate(group) if j != i % 4]
            mean = sum(group) / 4
            std = math.sqrt(sum((x - mean) ** 2 for x in group) / 3)
            one = totals[i] - sum(others) / 3 if name == "rloo" else (totals[i] - mean) / (std + 1e-4)
            expected.append([one] * len(row))
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=tol.CREDIT32["rtol"], abs=tol.CREDIT32["atol"])


# --- cut responses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "pay"), [
    ({"how": "score"}, lambda s: s), ({"how": "penalty", "value": 2.0}, lambda s: s - 2.0),
    ({"how": "constant", "value": -1.5}, lambda s: -1.5), ({"how": "bootstrap"}, lambda s: 0.0),
    ({"how": "mask"}, lambda s: s)])
def test_each_way_of_paying_a_cut_response(run, settings, pay):
    """By hand, in rewards; of `bootstrap` also the returns, at lambda = 1: what the critic expects after the cut."""
    seen = run(rollouts=16, minibatch=16, truncation=settings, kl=NO_KL, advantage={"lam": 1.0, "gamma": 0.9})
    rollout, cut = seen.phases[0].rollout, 0
    after = torch.zeros(16)
    if settings["how"] == "bootstrap":
        with torch.no_grad():
            after = response_scores(scalar_model(seen.cfg.reward_model), rollout.tokens)
    for i, (rewards, returns) in enumerate(zip(*(tokens_of(rollout, x) for x in ("rewards", "returns")), strict=True)):
        score, ended = float(seen.phases[0].processed[i]), bool(rollout.ended[i])
        paid = score if ended else pay(score)
        assert rewards[-1] == pytest.approx(paid, rel=tol.RELATIVE32, abs=tol.RATIO) and not any(rewards[:-1])
        later = 0.0 if ended else 0.9 * float(after[i])
        assert returns[-1] == pytest.approx(paid + later, rel=tol.GRADIENT32["rtol"], abs=tol.GRADIENT32["atol"])
        cut += not ended
    assert 0 < cut < 16
    assert rollout.counted.tolist() == (rollout.ended.tolist() if settings["how"] == "mask" else [True] * 16)


@pytest.mark.parametrize(("estimator", "normalise"), [("gae", None), ("gae", "rollout"), ("reinforce++", None)])
def test_masked_responses_are_left_out_of_both_losses_and_of_the_statistics(home, run, estimator, normalise):
    """The gradients are those of the minibatch without them, and the advantages normalised over the others are those
    of a phase without them."""
    advantage = {"estimator": estimator, "normalise": normalise}
    seen = run(rollouts=16, minibatch=16, truncation={"how": "mask"}, advantage=advantage)
    rollout, scores = seen.phases[0].rollout, seen.phases[0].processed
    ended = rollout.ended.nonzero()[:, 0].tolist()
    assert 0 < len(ended) < 16
    alone = with_credit(rollout.rows(ended), scores[ended], kl_coef=seen.cfg.kl.coef, advantage=seen.cfg.advantage,
                        truncation=TruncationConfig())
    for i, (a, mask) in enumerate(zip(rollout.advantages, rollout.tokens.response_mask, strict=True)):
        expected = tokens_of(alone, "advantages")[ended.index(i)] if i in ended else [0.0] * int(mask.sum())
        torch.testing.assert_close(a[mask], torch.tensor(expected), **tol.CREDIT32)
    mean, variance = spread([row for i, row in enumerate(tokens_of(rollout, "advantages")) if i in ended])
    assert seen.rows[0]["advantage/mean"] == pytest.approx(mean, abs=tol.RATIO)
    assert seen.rows[0]["advantage/std"] == pytest.approx(math.sqrt(variance), rel=tol.GRADIENT32["rtol"])
    assert seen.rows[0]["loss/policy"] == pytest.approx(-mean, abs=tol.RATIO)
    policy, critic = causal_lm(seen.cfg.policy), scalar_model(seen.cfg.reward_model)
    found = []
    for part in (rollout, rollout.rows(ended)):
        updates.policy_gradients(Actors(policy, policy, None), part, [], 2, 0.0, seen.cfg, Tally())
        if estimator == "gae":
            updates.value_gradients(critic, part, 2, seen.cfg, Tally())
        found.append([p.grad.clone() for m in (policy, critic) for p in m.parameters() if p.grad is not None])
        policy.zero_grad()
        critic.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **tol.GRADIENT32)


@pytest.mark.parametrize("estimator", ["gae", "reinforce++"])
def test_where_every_response_is_masked_nothing_is_learned_and_nothing_is_nan(home, run, monkeypatch, estimator):
    """Neither in pre-training, which ends by count, nor later; the alarm rings."""
    real = setup.respond

    def cut(*arguments, **named):
        found = real(*arguments, **named)
        found.rollout.ended.fill_(False)
        return found

    monkeypatch.setattr(setup, "respond", cut)
    pretrain = 2 if estimator == "gae" else 0
    seen = run(steps=2, truncation={"how": "mask"}, critic={"pretrain": pretrain, "pretrain_until": 1.0},
               advantage={"estimator": estimator, "normalise": "minibatch"})
    assert not seen.steps and len(logged(seen.out, phase="critic")) == pretrain
    for row in logged(seen.out, phase=None):
        assert row["update/steps"] == 0 and None not in row.values() and "loss/policy" not in row
    assert [row["name"] for row in logged(seen.out, "alarms.jsonl", None)] == ["truncation"] * 2
    before, after = (causal_lm(ModelConfig(path=str(p))).state_dict() for p in (seen.cfg.policy.path,
                                                                                  seen.out / "model"))
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "warning"), [
    ({}, None), ({"logprobs": "exact"}, None), ({"logprobs": "tempered"}, None),
    ({"temperature": 0.8}, "Sampling is sharper than the distribution whose log-probabilities are trained on"),
    ({"top_p": 0.9}, "k1 is biased and can be negative, and the policy can be paid for it"),
    ({"temperature": 0.6, "logprobs": "tempered"}, "Ratios, KL and entropy are those of the policy at temperature 0.6"),
    ({"top_k": 5, "logprobs": "tempered"}, "filters or the repetition penalty still sharpen the draw")])
def test_each_way_of_sampling_says_what_its_numbers_mean(run, settings, warning):
    """In result.json; and in each the first minibatch is on-policy, whatever its log-probabilities are of."""
    seen = run(sampling={"max_new_tokens": 8} | settings, minibatch=8)
    notes = [note for note in json.loads((seen.out / "result.json").read_text())["notes"] if "ptx" not in note]
    assert len(notes) == (warning is not None) and (warning is None or warning in notes[0])
    assert seen.rows[0]["policy/sampler_gap"] < tol.LOG_RATIO
    rollout, model = seen.phases[0].rollout, causal_lm(seen.cfg.policy).requires_grad_(False)
    torch.testing.assert_close(rollout.ref_logprobs, rollout.logprobs, **tol.GRADIENT32)  # still the same policy
    temperature = 0.6 if settings.get("temperature") == 0.6 else 1.0
    ids, mask = rollout.tokens.ids[0][rollout.tokens.attention_mask[0]], rollout.tokens.response_mask[0]
    where = mask.nonzero()[:, 0].tolist()
    table = (model(ids[None]).logits[0] / temperature).log_softmax(-1)
    assert rollout.logprobs[0][mask].tolist() == pytest.approx([float(table[t - 1, ids[t]]) for t in where],
                                                               rel=tol.GRADIENT32["rtol"])


# --- critic ----------------------------------------------------------------------------------------------------------


def first_values(seen):
    """What the critic said in the first phase, before it learned."""
    rollout = seen.phases[0].rollout
    return rollout.values, rollout.tokens


def test_the_critic_starts_from_the_reward_model_or_a_model_of_its_own(home, tmp_path, run):
    cfg = brief(home)
    save_model(scalar_model(cfg.policy, seed=9), load_tokenizer(cfg.policy.path), tmp_path / "own", pad_id=0)
    own = ModelConfig(path=str(tmp_path / "own"))
    for critic, source in (({}, cfg.reward_model), ({"init": "reward_model"}, cfg.reward_model),
                           ({"model": own.model_dump()}, own)):
        values, tokens = first_values(run(critic={"pretrain": 0} | critic))
        with torch.no_grad():
            expected = token_values(scalar_model(source), tokens)
        assert expected.any()
        torch.testing.assert_close(values, expected, **tol.FLOAT32)


def test_the_critic_starts_from_the_policy_or_from_new_weights_with_a_head_of_zeros(home, run):
    cfg = brief(home)
    for init in ("policy", "scratch"):
        seen = run(critic={"pretrain": 0, "init": init}, minibatch=8)
        assert not first_values(seen)[0].any() and seen.rows[0]["value/mean"] == 0
        assert [step.raw.any().item() for step in seen.steps if step.name == "critic"] == [True]
    policy, drawn, again, other = (
        load_actors(cfg.policy, CriticConfig(init=init), cfg.reward_model, topology="separate", seed=seed).critic
        for init, seed in (("policy", 0), ("scratch", 0), ("scratch", 0), ("scratch", 1)))
    trunk = causal_lm(cfg.policy).model.state_dict()
    states = [model.model.state_dict() for model in (policy, drawn, again, other)]
    name = "layers.0.mlp.up_proj.weight"
    assert all(torch.equal(states[0][key], trunk[key]) for key in trunk)
    assert torch.equal(states[1][name], states[2][name]) and not torch.equal(states[1][name], trunk[name])
    assert not torch.equal(states[1][name], states[3][name])


@pytest.mark.parametrize(("losses", "variance", "ready"), [
    ([1.0], 0.5, False), ([1.0], 0.501, True),
    ([1.0] * 5, 0.0, False), ([1.0] * 6, 0.0, True),  # flat needs six phases
    ([1.0] * 3 + [0.97] * 3, 0.0, False), ([1.0] * 3 + [0.99] * 3, 0.0, True), ([1.0] * 3 + [2.0] * 3, 0.0, True),
    ([float(x) for x in range(20, 11, -1)], 0.0, False), ([float(x) for x in range(20, 10, -1)], 0.0, True)])
def test_pretraining_ends_when_the_critic_sees_or_learns_no_more_or_by_count(losses, variance, ready):
    assert CriticConfig(pretrain=10).is_ready(losses, variance) == ready


@pytest.mark.parametrize(("critic", "n"), [
    ({"pretrain": 4, "pretrain_until": -1e9}, 1),
    ({"pretrain": 9, "pretrain_until": 1.0, "pretrain_flat": 0.999}, 6),
    ({"pretrain": 3, "pretrain_until": 1.0, "pretrain_flat": None}, 3)])
def test_pretraining_ends_and_no_prompt_is_skipped(run, critic, n):
    """By explained variance, by a flat loss, by count. Prompts go on where it ended; the critic's schedule jumps."""
    seen = run(critic=critic, steps=2)
    assert len(logged(seen.out, phase="critic")) == n and len(seen.rows) == 2
    ids = [name for phase in seen.phases for name in phase.rollout.tokens.record_ids]
    assert all(sorted(ids[i : i + 24]) == sorted(f"q{i}" for i in range(24)) for i in range(0, len(ids) - 23, 24))
    assert len(set(ids[: min(24, len(ids))])) == min(24, len(ids))
    numbers = [step.number for step in seen.steps if step.name == "critic"]
    assert numbers == [*range(1, 2 * n + 1), *range(2 * critic["pretrain"] + 1, 2 * critic["pretrain"] + 5)]


# --- the step --------------------------------------------------------------------------------------------------------


def bounded(gradient, norm: float, bound: float):
    return gradient * min(1.0, bound / norm)


@pytest.mark.parametrize("scope", ["separate", "joint"])
def test_gradients_are_clipped_each_by_its_norm_or_as_one_long_vector(run, scope):
    tight = FAST.model_copy(update={"max_grad_norm": 0.01})
    seen = run(policy_optimizer=tight, critic_optimizer=tight, grad_clip=scope, critic={"pretrain": 1})
    assert [step.name for step in seen.steps] == ["critic"] * 2 + ["policy", "critic"] * 2
    for policy, critic in (seen.steps[2:4], seen.steps[4:6]):
        both = float(torch.cat([policy.raw, critic.raw]).norm())
        for step in (policy, critic):
            norm = both if scope == "joint" else float(step.raw.norm())
            torch.testing.assert_close(step.taken, bounded(step.raw, norm, 0.01), **tol.GRADIENT32)
            assert step.taken.norm() < step.raw.norm()
    for step in seen.steps[:2]:
        torch.testing.assert_close(step.taken, bounded(step.raw, float(step.raw.norm()), 0.01), **tol.GRADIENT32)
    assert seen.rows[0]["grad_norm/critic"] == pytest.approx(float(seen.steps[5].raw.norm()), rel=tol.RELATIVE32)


def test_target_kl_ends_the_updates_of_a_phase(run):
    """The minibatch that is too far away takes no step and leaves no gradient; the next phase begins anew."""
    free = run(passes=3, steps=2)
    assert [row["update/steps"] for row in free.rows] == [6, 6]
    distances = [update.found for update in free.updates]
    assert None not in distances
    tight = run(passes=3, steps=2, target_kl=1e-12)
    assert [row["update/steps"] for row in tight.rows] == [1, 1]
    assert [update.found is None for update in tight.updates] == [False, True] * 2
    assert all(update.clean for update in tight.updates)
    assert [(step.name, step.number) for step in tight.steps] == [("policy", 1), ("critic", 1), ("policy", 7),
                                                                  ("critic", 7)]
    loose = run(passes=3, steps=2, target_kl=1e9)
    assert (loose.out / "metrics.jsonl").read_bytes() == (free.out / "metrics.jsonl").read_bytes()


def test_target_kl_stops_at_one_and_a_half_times_the_distance(run):
    """On both sides of the distance of the second minibatch of a free run."""
    free = run()
    alone = run(target_kl=1e-12)
    second = free.rows[0]["policy/kl_old"] * sum(map(len, tokens_of(free.phases[0].rollout, "kl")))
    second /= sum(map(len, tokens_of(free.updates[1].part, "kl")))  # the first minibatch's is zero
    assert alone.rows[0]["update/steps"] == 1
    for factor, steps in ((0.99, 1), (1.01, 2)):
        assert run(target_kl=factor * second / 1.5).rows[0]["update/steps"] == steps


def test_ratios_against_the_reference_are_those_of_the_whole_drift(run):
    seen = run(steps=2, minibatch=8, loss={"old_policy": "reference"})
    rollout = seen.phases[1].rollout
    ratios = [math.exp(a - b) for one, other in zip(*(tokens_of(rollout, x) for x in ("logprobs", "ref_logprobs")),
                                                    strict=True) for a, b in zip(one, other, strict=True)]
    assert seen.rows[1]["policy/ratio"] == pytest.approx(sum(ratios) / len(ratios), rel=tol.GRADIENT32["rtol"])
    assert abs(seen.rows[1]["policy/ratio"] - 1) > tol.LOG_RATIO and abs(seen.rows[0]["policy/ratio"] - 1) <= tol.RATIO


# --- presets ---------------------------------------------------------------------------------------------------------


PRESETS_OF_PPO = sorted(path.stem for path in PRESETS.glob("*.toml")
                        if "rollouts" in read_toml(path) and "groups" not in read_toml(path))


@pytest.mark.parametrize("preset", PRESETS_OF_PPO)
def test_every_preset_needs_nothing_but_models_and_prompts(preset):
    """The command of the README; there is room for a prompt beside the response."""
    needed = {"out": "o", "policy": "p", "reward_model": "r", "prompts": "q"}
    cfg = ppo.PPOConfig.resolve(PRESETS / f"{preset}.toml", needed)
    assert prompt_room(cfg.prompts, cfg.sampling.max_new_tokens) == 2048 - 512


@pytest.mark.parametrize("preset", PRESETS_OF_PPO)
def test_every_preset_runs(home, tmp_path, preset):
    """A phase of it, with its number of responses; only lengths are cut to what the tiny model can hold."""
    cfg = brief(home)
    given = {"out": str(tmp_path / "run"), "policy": cfg.policy.path, "reward_model": cfg.reward_model.path,
             "prompts.path": str(tiny.prompts(tmp_path / "prompts.jsonl", 40)), "prompts.max_length": "64",
             "sampling.max_new_tokens": "8", "steps": "1", "n_samples": "2", "eval_prompts": "2"}
    chosen = ppo.PPOConfig.resolve(PRESETS / f"{preset}.toml", given)
    if chosen.critic.pretrain:
        chosen = ppo.PPOConfig.resolve(PRESETS / f"{preset}.toml", given | {"critic.pretrain": "1"})
    ppo.run(chosen)
    [row] = logged(tmp_path / "run")
    assert row["update/steps"] == chosen.updates and None not in row.values()
    assert (tmp_path / "run/model/model.safetensors").exists()
    assert ("loss/value" in row) == chosen.advantage.has_critic
