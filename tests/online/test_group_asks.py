"""What the groups of a phase ask of the policy: plain loops in float64 against `Groups`, phase after phase."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tolerances as tol
import torch
from torch import nn

from keel.batches import Rollout, TokenBatch
from keel.data.records import Prompt
from keel.errors import DataError
from keel.online.group_settings import GroupConfig
from keel.online.groups import Groups, known_labels, places_of, with_places
from keel.online.memory import Phase

WIDTH, N = 6, 12
NOW = {"warmup": 0, "ramp_fraction": 0.0, "lr": 0.05}
"""Groups act from the first phase on, and the head moves far enough to tell before from after."""


class Critic(nn.Module):
    """The end of a scalar model: all that the groups look at."""

    config = SimpleNamespace(model_type="llama", is_decoder=True)

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(WIDTH, 1)


def phase_of(seed: int = 0, n: int = N, labels="abc") -> SimpleNamespace:
    """Responses of 1 to 5 tokens with their drift, the critic's states, processed scores, and labelled prompts."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(n, 9, dtype=torch.bool)
    for i in range(n):
        mask[i, 1 + i % 3 : 2 + i % 3 + (i * 7 + seed) % 5] = True
    ids = torch.ones(n, 9, dtype=torch.long)
    real = mask | (torch.arange(9) < mask.long().argmax(1)[:, None])
    tokens = TokenBatch(ids, real, mask, tuple(f"r{i}" for i in range(n)))
    rollout = Rollout(tokens, torch.zeros(n, 9), torch.ones(n, dtype=torch.bool), torch.arange(n),
                      kl=torch.randn(n, 9, generator=g).where(mask, math.nan),
                      states=torch.randn(n, WIDTH, generator=g))
    said = [labels[(i + i // 4 + seed) % len(labels)] for i in range(n)]
    prompts = [Prompt(f"q{i}", (), text="x", meta={"group": label}) for i, label in enumerate(said)]
    return SimpleNamespace(rollout=rollout, scores=torch.randn(n, generator=g) * 2 + 1, prompts=prompts)


def groups_of(labels="abc", seed: int = 0, **changes) -> Groups:
    cfg = GroupConfig(**(NOW | changes))
    return Groups(cfg, Critic(), tuple(sorted(labels)) if cfg.source == "known" else (), seed=seed)


def labelled(*labels) -> list[Prompt]:
    return [Prompt(f"q{i}", (), text="x", meta={"group": label}) for i, label in enumerate(labels)]


def memory_of(groups: Groups, **known) -> dict:
    return {"kl_coef": 0.3, "groups": groups.beginning() | known}


TRAINING = Phase(step=3, shown=3, pretraining=False)


# --- the reference: one number at a time, in float64 -----------------------------------------------------------------


class Slow:
    """The same groups, written from sections 3 to 7 of the spec."""

    def __init__(self, groups: Groups) -> None:
        self.cfg, self.labels = groups.cfg, sorted(groups.labels)
        if groups.head is not None:
            self.parameters = [p.detach().double().clone() for p in (groups.head.weight, groups.head.bias)]
            self.moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in self.parameters]
            self.t = 0

    def p(self, seen, parameters=None):
        """Rows of probabilities, in the order of the head's columns."""
        if self.labels:
            return [[torch.tensor(float(prompt.meta["group"] == label)).double() for label in self.labels]
                    for prompt in seen.prompts]
        (weight, bias), bound, rows = parameters or self.parameters, self.cfg.logit_bound, []
        for state in seen.rollout.states.double():
            z = [bound * torch.tanh(((w * state).sum() + b) / bound) for w, b in zip(weight, bias, strict=True)]
            total = sum(x.exp() for x in z)
            rows.append([x.exp() / total for x in z])
        return rows

    def stats(self, p, returns):
        """Mass of each group, return of each that is there, their mean and variance."""
        mass = [sum(row[g] for row in p) for g in range(len(p[0]))]
        means = {g: sum(row[g] * r for row, r in zip(p, returns, strict=True)) / s for g, s in enumerate(mass) if s > 0}
        mean = sum(means.values()) / len(means)
        return mass, means, mean, sum((x - mean) ** 2 for x in means.values()) / len(means)

    def objective(self, p, returns):
        cfg, n = self.cfg, len(p)
        mass, means, _, variance = self.stats(p, returns)
        if cfg.variance == "weighted":
            variance = sum(mass[g] / n * (means[g] - sum(returns) / n) ** 2 for g in means)
        missing = sum(max(cfg.floor - s / n, s * 0) ** 2 for s in mass)
        doubt = -sum(x * x.log() for row in p for x in row) / n
        return variance - cfg.floor_coef * missing + cfg.entropy_coef * doubt

    def learn(self, seen, returns):
        """Adam, as in its paper."""
        for _ in range(self.cfg.steps):
            self.t += 1
            parameters = [p.clone().requires_grad_() for p in self.parameters]
            gradients = torch.autograd.grad(-self.objective(self.p(seen, parameters), returns), parameters)
            for p, (m, v), g in zip(self.parameters, self.moments, gradients, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p.sub_(self.cfg.lr * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8))

    def prices(self, p, order, coef):
        steps = {g: place / (len(order) - 1) for place, g in enumerate(order)}
        shares = [max(sum(float(x) * steps[g] for g, x in enumerate(row)), self.cfg.kl_floor) for row in p]
        if self.cfg.kl_renorm:
            shares = [x / (sum(shares) / len(shares)) for x in shares]
        return [coef * x for x in shares]

    def shaping(self, p, returns, coef):
        cfg, n = self.cfg, len(p)
        if cfg.objective == "cvar":
            worst = sorted(returns)[math.ceil(cfg.cvar_share * n) - 1]
            below = [max(worst - r, 0.0) / cfg.cvar_share for r in returns]
            weights = [x - sum(below) / n for x in below]
        else:
            mass, means, mean, _ = self.stats(p, returns)
            lowest = min(means, key=lambda g: means[g])
            pull = {g: 2 / len(means) * (x - mean) for g, x in means.items()}
            if cfg.objective == "low_only":
                pull = {g: x for g, x in pull.items() if means[g] < mean}
            if cfg.objective == "worst":
                pull = {lowest: -1.0}
            weights = [float(sum(c * n * row[g] / mass[g] * (r - means[g]) for g, c in pull.items()))
                       for row, r in zip(p, returns, strict=True)]
        bound = math.inf if cfg.cap is None else cfg.cap
        return [min(max(-coef * w, -bound), bound) for w in weights]

    def ask(self, seen, known, kl_coef, acts, coef):
        """What is asked; `known` is brought up to date."""
        cfg, n = self.cfg, len(seen.scores)
        p = self.p(seen)
        prices = self.prices(p, known["order"], kl_coef) if acts and cfg.kl == "adaptive" else [kl_coef] * n
        signal = seen.scores.double().tolist()
        if cfg.returns == "kl_penalised":
            signal = [s - price * float(kl[mask].double().sum()) for s, price, kl, mask in zip(
                signal, prices, seen.rollout.kl, seen.rollout.tokens.response_mask, strict=True)]
        if cfg.tails is not None:
            low, high = np.quantile(signal, [cfg.tails, 1 - cfg.tails])
            signal = [min(max(x, low), high) for x in signal]
        returns = [(x - np.mean(signal)) / (np.std(signal) + 1e-8) for x in signal]
        if not self.labels:
            self.learn(seen, returns)
        p = self.p(seen)
        mass, means, _, _ = self.stats(p, returns)
        coef = None if cfg.objective in (None, "dro") else coef
        found = SimpleNamespace(prices=prices, returns=returns, factor=None, shaping=None, objective=None, coef=coef,
                                memberships=[[float(row[g]) for g in known["order"]] for row in p])
        if not self.labels:
            found.objective = float(self.objective(p, returns))
        if acts and cfg.objective == "dro":
            raw = [q * math.exp(-cfg.dro_step * float(means.get(g, 0.0))) for g, q in enumerate(known["q"])]
            known["q"] = [q / sum(raw) for q in raw]
            there = sum(known["q"][g] for g in means)
            found.factor = [sum(n * known["q"][g] / there * float(row[g] / mass[g]) for g in means) for row in p]
        elif acts and cfg.objective is not None:
            if cfg.objective == "vrex":
                found.factor = [sum(n * float(row[g] / mass[g]) for g in means) / len(means) for row in p]
            found.shaping = self.shaping(p, returns, coef)
        found.weights = [known["q"][g] for g in known["order"]] if cfg.objective == "dro" else None
        return found, {g: float(x) for g, x in means.items()}


def same(found, expected) -> None:
    if expected is None:
        assert found is None
    else:
        torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), **tol.GRADIENT32)


def same_asked(asked, expected) -> None:
    for name in ("prices", "factor", "shaping", "memberships", "returns"):
        same(getattr(asked, name), getattr(expected, name))
    assert asked.coef == expected.coef
    assert asked.weights == (None if expected.weights is None else pytest.approx(
        expected.weights, rel=tol.GRADIENT32["rtol"]))
    assert asked.objective == (None if expected.objective is None else pytest.approx(
        expected.objective, rel=tol.GRADIENT32["rtol"], abs=tol.GRADIENT32["atol"]))


TURNED = {"order": [1, 0], "ema": [0.4, -0.4]}
"""The head's first column is the highest group."""
TURNED3 = {"order": [2, 0, 1], "ema": [0.1, 0.4, -0.4], "q": [0.2, 0.7, 0.1]}

CASES = {
    "as it is": ({}, {}), "turned": ({}, TURNED), "three groups": ({"n": 3}, TURNED3),
    "low_only": ({"objective": "low_only", "n": 3}, TURNED3), "worst": ({"objective": "worst", "n": 3}, TURNED3),
    "vrex": ({"objective": "vrex", "n": 3}, TURNED3), "dro": ({"objective": "dro", "n": 3}, TURNED3),
    "cvar": ({"objective": "cvar"}, TURNED), "cvar of a third": ({"objective": "cvar", "cvar_share": 0.3}, {}),
    "nothing but prices": ({"objective": None}, TURNED), "nothing but shaping": ({"kl": "equal"}, TURNED),
    "a cap": ({"cap": 0.02}, TURNED), "no cap": ({"cap": None, "coef": 9.0}, TURNED), "coef": ({"coef": 0.7}, {}),
    "a floor of prices": ({"kl_floor": 0.5}, TURNED), "no floor of prices": ({"kl_floor": 0.0, "n": 3}, TURNED3),
    "prices renormed": ({"kl_renorm": True, "kl_floor": 0.3}, TURNED),
    "weighted": ({"variance": "weighted"}, {}), "doubt is paid": ({"entropy_coef": 0.4}, {}),
    "a dear floor": ({"floor": 0.49, "floor_coef": 70.0}, {}),
    "a cheap floor": ({"floor": 0.49, "floor_coef": 0.1}, {}),
    "tight logits": ({"logit_bound": 0.7}, {}), "one step": ({"steps": 1}, {}), "slow": ({"lr": 1e-3}, {}),
    "drift in the returns": ({"returns": "kl_penalised"}, TURNED),
    "drift in the returns, one price": ({"returns": "kl_penalised", "kl": "equal"}, TURNED),
    "tails": ({"tails": 0.1}, {}), "tails and drift": ({"tails": 0.2, "returns": "kl_penalised"}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_inferred_groups_ask_what_plain_loops_do_in_two_phases_and_the_head_is_where_adam_by_hand_puts_it(name):
    changes, known = CASES[name]
    groups = groups_of(source="inferred", **changes)
    memory, slow = memory_of(groups, **known), Slow(groups)
    theirs = copy.deepcopy(memory["groups"])
    for seed in (0, 1):
        seen = phase_of(seed)
        theirs["order"] = list(memory["groups"]["order"])
        expected, means = slow.ask(seen, theirs, 0.3, True, groups.cfg.coef)
        before = copy.deepcopy(memory["groups"])
        same_asked(groups.ask(seen.rollout, seen.scores, seen.prompts, memory, TRAINING, 10), expected)
        same(groups.head.weight.detach(), slow.parameters[0].tolist())
        same(groups.head.bias.detach(), slow.parameters[1].tolist())
        ema = [0.9 * old + 0.1 * means[g] for g, old in enumerate(before["ema"])]
        assert memory["groups"]["ema"] == pytest.approx(ema, rel=tol.GRADIENT32["rtol"], abs=tol.GRADIENT32["atol"])
        assert memory["groups"]["q"] == pytest.approx(theirs["q"], rel=tol.GRADIENT32["rtol"])


KNOWN = {
    "as it is": ({}, {}), "turned": ({}, TURNED3), "low_only": ({"objective": "low_only"}, TURNED3),
    "worst": ({"objective": "worst"}, TURNED3), "vrex": ({"objective": "vrex"}, TURNED3),
    "dro": ({"objective": "dro", "dro_step": 0.5}, TURNED3), "cvar": ({"objective": "cvar"}, TURNED3),
    "nothing but prices": ({"objective": None}, TURNED3), "nothing but shaping": ({"kl": "equal"}, TURNED3),
    "prices renormed": ({"kl_renorm": True, "kl_floor": 0.3}, TURNED3),
    "drift in the returns": ({"returns": "kl_penalised", "tails": 0.1}, TURNED3)}


@pytest.mark.parametrize("present", ["abc", "ca"])
@pytest.mark.parametrize("name", KNOWN)
def test_known_groups_ask_what_plain_loops_do_also_where_one_is_absent(name, present):
    """An absent group pulls nobody, keeps its moving average, and takes no step of DRO."""
    changes, known = KNOWN[name]
    groups = groups_of(source="known", **changes)
    memory, slow = memory_of(groups, **known), Slow(groups)
    assert groups.labels == ("a", "b", "c") and groups.n == 3 and groups.head is None
    for seed in (0, 1):
        seen, before = phase_of(seed, labels=present), copy.deepcopy(memory["groups"])
        theirs = copy.deepcopy(before)
        expected, means = slow.ask(seen, theirs, 0.3, True, groups.cfg.coef)
        assert len(means) == len(present)
        same_asked(groups.ask(seen.rollout, seen.scores, seen.prompts, memory, TRAINING, 10), expected)
        ema = [0.9 * old + 0.1 * means[g] if g in means else old for g, old in enumerate(before["ema"])]
        assert memory["groups"]["ema"] == pytest.approx(ema, rel=tol.GRADIENT32["rtol"], abs=tol.GRADIENT32["atol"])
        assert memory["groups"]["q"] == pytest.approx(theirs["q"], rel=tol.GRADIENT32["rtol"])


# --- before and after ------------------------------------------------------------------------------------------------


def test_prices_are_those_of_the_head_before_its_steps_and_shaping_of_the_head_after_them():
    groups, seen = groups_of(source="inferred", lr=1.0), phase_of()
    slow = Slow(groups)
    first = slow.p(seen)
    asked = groups.ask(seen.rollout, seen.scores, seen.prompts, memory_of(groups), TRAINING, 10)
    slow.parameters = [p.detach().double() for p in groups.head.parameters()]
    last, returns = slow.p(seen), asked.returns.double().tolist()
    same(asked.prices, slow.prices(first, [0, 1], 0.3))
    same(asked.shaping, slow.shaping(last, returns, 0.1))
    for found, other in ((asked.prices, slow.prices(last, [0, 1], 0.3)),
                         (asked.shaping, slow.shaping(first, returns, 0.1))):
        assert not torch.allclose(found.double(), torch.tensor(other).double(), **tol.GRADIENT32)


def test_nothing_asked_has_a_gradient_and_the_critics_states_and_scores_stay_as_they_are():
    groups, seen = groups_of(source="inferred"), phase_of()
    seen.rollout.states.requires_grad_()
    scores, states = seen.scores.clone(), seen.rollout.states.detach().clone()
    asked = groups.ask(seen.rollout, seen.scores, seen.prompts, memory_of(groups), TRAINING, 10)
    assert not any(x.requires_grad for x in (asked.prices, asked.shaping, asked.memberships, asked.returns))
    assert all(p.grad is None for p in groups.head.parameters())
    assert torch.equal(scores, seen.scores) and torch.equal(states, seen.rollout.states)


@pytest.mark.parametrize("source", ["inferred", "known"])
def test_while_groups_warm_up_the_head_learns_the_order_moves_and_nothing_is_asked(source):
    groups, seen = groups_of(source=source, warmup=3, objective="dro"), phase_of()
    memory, slow = memory_of(groups), Slow(groups)
    expected, _ = slow.ask(seen, copy.deepcopy(memory["groups"]), 0.3, False, 0.0)
    asked = groups.ask(seen.rollout, seen.scores, seen.prompts, memory, TRAINING, 10)
    same_asked(asked, expected)
    assert asked.prices.tolist() == [torch.tensor(0.3).item()] * N and asked.factor is None and asked.coef is None
    assert memory["groups"]["q"] == groups.beginning()["q"] and any(memory["groups"]["ema"])


def test_while_the_critic_warms_up_the_head_learns_and_nothing_else_happens():
    groups, seen = groups_of(source="inferred"), phase_of()
    memory, start = memory_of(groups), copy.deepcopy(groups.head.state_dict())
    asked = groups.ask(seen.rollout, seen.scores, seen.prompts, memory, Phase(9, 9, pretraining=True), 10)
    assert asked.factor is None and asked.shaping is None and asked.coef == 0.0
    assert asked.prices.tolist() == [torch.tensor(0.3).item()] * N
    assert memory["groups"] == groups.beginning() and not torch.equal(groups.head.weight, start["weight"])


@pytest.mark.parametrize(("settings", "coefs"), [
    ({"warmup": 2, "ramp_fraction": 0.4}, [0, 0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5]),
    ({"warmup": 0, "ramp_fraction": 0.2}, [0.25] + [0.5] * 9), ({"warmup": 0, "ramp_fraction": 0.0}, [0.5] * 10),
    ({"warmup": 9, "ramp_fraction": 0.1}, [0] * 9 + [0.5])])
def test_coef_rises_from_zero_after_the_warm_up(settings, coefs):
    groups = groups_of(source="inferred", coef=0.5, **settings)
    assert [groups.cfg.coef_at(shown, 10) for shown in range(1, 11)] == pytest.approx(coefs, rel=tol.RELATIVE64)
    seen = phase_of()
    for shown, coef in enumerate(coefs, 1):
        asked = groups.ask(seen.rollout, seen.scores, seen.prompts, memory_of(groups), Phase(shown, shown, False), 10)
        assert asked.coef == pytest.approx(coef, rel=tol.RELATIVE64) and (asked.shaping is None) == (coef == 0)
        if coef:
            expected = Slow(groups).shaping(Slow(groups).p(seen), asked.returns.double().tolist(), coef)
            same(asked.shaping, expected)


# --- the order -------------------------------------------------------------------------------------------------------


def phase_with(returns: dict[str, float]) -> SimpleNamespace:
    """Two responses of each label, whose mean score is this."""
    labels = [label for label in returns for _ in range(2)]
    seen = phase_of(0, len(labels))
    seen.prompts = [Prompt(f"q{i}", (), text="x", meta={"group": label}) for i, label in enumerate(labels)]
    seen.scores = torch.tensor([returns[label] + sign for label in returns for sign in (0.1, -0.1)])
    return seen


def test_the_order_follows_the_moving_averages_and_changes_only_beyond_the_slack():
    """By hand: two groups apart by two standard deviations (but for the 0.1), turned about after each phase."""
    groups = groups_of("ab", source="known", ema_decay=0.5, ema_slack=0.3)
    memory, spread = memory_of(groups), 1 / math.sqrt(1.01)
    ema, order, swaps = [0.0, 0.0], [0, 1], 0
    for a, b in [(1, 3), (3, 1), (3, 1), (1, 3), (1, 3), (3, 1)]:
        seen = phase_with({"a": a, "b": b})
        asked = groups.ask(seen.rollout, seen.scores, seen.prompts, memory, TRAINING, 10)
        assert asked.memberships[0].tolist() == [float(order[0] == 0), float(order[0] == 1)]  # as it was before
        assert groups.names(order) == [["a", "b"][g] for g in order]
        low = order[0]
        assert asked.prices.tolist() == pytest.approx([0.03 if g == low else 0.3 for g in (0, 0, 1, 1)],
                                                      rel=tol.RELATIVE32)
        ema = [0.5 * old + 0.5 * spread * math.copysign(1, x - 2) for old, x in zip(ema, (a, b), strict=True)]
        if ema[order[0]] - ema[order[1]] > 0.3:
            order, swaps = order[::-1], swaps + 1
        assert memory["groups"]["ema"] == pytest.approx(ema, rel=tol.RELATIVE32, abs=tol.RATIO)
        assert (memory["groups"]["order"], memory["groups"]["swaps"]) == (order, swaps)
    assert swaps == 3


def test_a_difference_within_the_slack_changes_no_order():
    groups = groups_of("ab", source="known", ema_decay=0.0, ema_slack=2.5)
    memory, seen = memory_of(groups), phase_with({"a": 9.0, "b": 1.0})
    groups.ask(seen.rollout, seen.scores, seen.prompts, memory, TRAINING, 10)
    ema = memory["groups"]["ema"]
    assert ema[0] - ema[1] > 1 and memory["groups"]["order"] == [0, 1] and memory["groups"]["swaps"] == 0


def test_inferred_groups_are_called_by_their_place_and_known_ones_by_their_label():
    assert groups_of(source="inferred", n=3).names([2, 0, 1]) == ["1", "2", "3"]
    assert groups_of(source="known").names([2, 0, 1]) == ["c", "a", "b"]


# --- labels, the head, places ----------------------------------------------------------------------------------------


def test_prompts_without_a_label_are_named_and_how_many_there_are():
    """NaN, which a table has where a cell is empty, is no label; nor is a list."""
    with pytest.raises(DataError, match="3 of 4 prompts have no label 'group'") as caught:
        known_labels(labelled(None, "a", math.nan, ["b"]), "group", most=9, where="f.jsonl")
    assert all(x in str(caught.value) for x in ("f.jsonl (records q0, q2, q3)", "groups.column"))
    with pytest.raises(DataError, match="3 of 3 prompts have no label 'topic'"):
        known_labels(labelled("a", "b", "c"), "topic", most=9, where="f.jsonl")


def test_one_label_for_all_is_refused():
    with pytest.raises(DataError, match="all 3 prompts have the label group = '7', so there is one group") as caught:
        known_labels(labelled(7, 7, "7"), "group", most=9, where="f.jsonl")
    assert "f.jsonl" in str(caught.value)


def test_a_column_of_names_is_no_column_of_groups():
    prompts = labelled(*range(5))
    assert known_labels(prompts, "group", most=5, where="f.jsonl") == ("0", "1", "2", "3", "4")
    with pytest.raises(DataError, match="has 5 labels, and a phase can tell at most 4 groups apart") as caught:
        known_labels(prompts, "group", most=4, where="f.jsonl")
    assert "two per group" in str(caught.value)


def test_labels_may_be_numbers_or_falsehoods_and_are_sorted_as_text():
    prompts = labelled(0, 10, False, "b", 9)
    labels = known_labels(prompts, "group", most=9, where="f.jsonl")
    assert labels == ("0", "10", "9", "False", "b")
    groups = Groups(GroupConfig(source="known"), None, labels, seed=0)
    assert groups.columns(None, prompts).tolist() == [[float(i == j) for j in range(5)] for i in (0, 1, 3, 4, 2)]


def test_the_head_is_drawn_from_the_seed_in_float32_with_variance_one_by_width():
    """The memberships of no two responses are the same from the start: a head of zeros would stay one."""
    wide = Critic()
    wide.score = nn.Linear(4000, 1)
    heads = [Groups(GroupConfig(n=2), critic, (), seed=seed).head for critic, seed in (
        (wide, 0), (wide, 0), (wide, 1), (Critic().to(torch.bfloat16), 0))]
    assert torch.equal(heads[0].weight, heads[1].weight) and not torch.equal(heads[0].weight, heads[2].weight)
    assert all(head.weight.dtype == torch.float32 and not head.bias.any() for head in heads)
    error = tol.STANDARD_ERRORS * math.sqrt(2 / 8000)
    assert float(heads[0].weight.detach().square().mean() * 4000) == pytest.approx(1.0, abs=error)
    rows = groups_of(source="inferred").columns(phase_of().rollout.states, [])
    assert len({tuple(row) for row in rows.tolist()}) == N


def test_checkpoints_keep_the_head_and_its_optimiser_and_known_groups_have_neither():
    groups = groups_of(source="inferred", lr=0.02)
    assert groups.state == {"modules": {"groups": groups.head}, "optimizers": {"groups": groups.optimizer}}
    assert groups.optimizer.param_groups[0]["lr"] == 0.02
    assert groups_of(source="known").state == {"modules": {}, "optimizers": {}}
    assert groups_of(source="inferred", n=4).beginning() == {
        "ema": [0.0] * 4, "order": [0, 1, 2, 3], "q": [0.25] * 4, "swaps": 0}


def test_the_head_reads_the_last_response_token_or_the_last_one_of_the_prompt():
    mask = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0]]).bool()
    tokens = TokenBatch(torch.zeros(4, 6, dtype=torch.long), torch.ones(4, 6, dtype=torch.bool), mask, tuple("abcd"))
    rollout = Rollout(tokens, torch.zeros(4, 6), torch.ones(4, dtype=torch.bool), torch.arange(4))
    assert places_of(rollout, "trajectory").tolist() == [3, 3, 5, 1]
    assert places_of(rollout, "prompt").tolist() == [0, 2, 1, 0]
    assert with_places(rollout, groups_of(source="inferred")).places.tolist() == [3, 3, 5, 1]
    assert with_places(rollout, groups_of(source="inferred", level="prompt")).places.tolist() == [0, 2, 1, 0]
    assert with_places(rollout, groups_of(source="known")) is rollout
