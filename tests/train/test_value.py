"""Fitting V: prompts are divided, not samples; the epoch is chosen on prompts that were not learned from."""

import copy
import math

import pytest
import tolerances as tol
import torch
from scipy.stats import spearmanr

from keel.errors import DataError, ModelError, NumericsError
from keel.models.value_head import EDGE
from keel.train import value
from keel.train.value import ValueConfig, fit_value, values_of

N, WIDTH = 40, 8


def told(k=2, n=N, noise=0.1):
    """Prompts of all lengths whose mean reward can be read off their states, and k samples of each."""
    draw = torch.Generator().manual_seed(1)
    worth = torch.rand(n, generator=draw)
    states = [torch.randn(2 + i % 5, WIDTH, generator=draw) * 0.3 + 3 * (worth[i] - 0.5) for i in range(n)]
    targets = (worth.repeat_interleave(k) + noise * torch.randn(n * k, generator=draw)).clamp(0, 1)
    return states, targets, [i for i in range(n) for _ in range(k)]


def settings(**how):
    return ValueConfig(**{"heads": 2, "epochs": 6, "lr": 1e-2} | how)


def fitted(states, targets, groups, *, low=0.0, high=1.0, seed=0, **how):
    return fit_value(states, targets, groups, settings(**how), low=low, high=high, seed=seed)


def held_out(seed=0):
    """Which prompts choose the epoch: those whose states no step is taken on."""
    states, targets, groups = told()
    seen, stacked = set(), value.padded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(value, "padded", lambda some, device: seen.update(map(id, some)) or stacked(some, device))
        fitted(states, targets, groups, epochs=1, seed=seed)
    return [i for i in range(N) if id(states[i]) not in seen]


@pytest.fixture(scope="module")
def chosen_on():
    return held_out()


def test_a_share_of_the_prompts_chooses_the_epoch(chosen_on):
    assert len(chosen_on) == fitted(*told()).report.n_held_out == 8
    assert held_out(seed=1) != chosen_on
    report = fitted(*told(), held_out_fraction=0.01).report
    assert (report.n_held_out, report.n_prompts, report.n_samples) == (2, 40, 80)
    assert fitted(*told(), held_out_fraction=0.99).report.n_held_out == N - 2


def test_nothing_is_learned_from_held_out_prompts(chosen_on):
    states, targets, groups = told()
    before = fitted(states, targets, groups).report.epochs
    for prompt in chosen_on:
        targets[2 * prompt + 1] = 1 - targets[2 * prompt + 1]
        states[prompt] = states[prompt] + 1.0
    after = fitted(states, targets, groups).report.epochs
    assert [epoch.train_mse for epoch in before] == [epoch.train_mse for epoch in after]
    assert [epoch.held_out_mse for epoch in before] != [epoch.held_out_mse for epoch in after]


def test_the_report_against_loops_over_samples(chosen_on):
    states, targets, groups = told(3)
    made = fitted(states, targets, groups)
    values, report = values_of(made.head, states).double().tolist(), made.report
    errors, flat, reached, got, within, mean = {True: [], False: []}, [], [], [], [], []
    for reward, prompt in zip(targets.tolist(), groups, strict=True):
        errors[prompt in chosen_on].append((values[prompt] - reward) ** 2)
        if prompt not in chosen_on:
            mean.append(reward)
    mean = sum(mean) / len(mean)
    for prompt in chosen_on:
        rewards = targets[3 * prompt : 3 * prompt + 3].tolist()
        middle = sum(rewards) / 3
        within += [(reward - middle) ** 2 for reward in rewards]
        flat += [(reward - mean) ** 2 for reward in rewards]
        reached, got = reached + [values[prompt]] * 3, got + rewards
    expected = {
        "train": sum(errors[False]) / len(errors[False]), "held out": sum(errors[True]) / len(errors[True]),
        "mean": mean, "flat": sum(flat) / len(flat), "noise": sum(within) / (2 * len(chosen_on)),
        "spearman": spearmanr(reached, got).statistic,
        "gain": sum(flat) / len(flat) - sum(errors[True]) / len(errors[True])}
    best = report.best
    found = {"train": best.train_mse, "held out": best.held_out_mse, "mean": report.mean, "flat": report.mean_mse,
             "noise": report.noise_mse, "spearman": best.spearman, "gain": report.gain[0]}
    assert found == pytest.approx(expected, rel=tol.RELATIVE32)
    assert report.gain[1] < report.gain[0] < report.gain[2]
    assert fitted(*told(1)).report.noise_mse is None


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_epoch_kept_is_the_first_with_the_lowest_held_out_error(seed):
    states, targets, groups = told(noise=0.6)
    report = fitted(states, targets, groups, seed=seed, lr=0.03, epochs=12).report
    errors = [epoch.held_out_mse for epoch in report.epochs]
    assert [epoch.number for epoch in report.epochs] == list(range(13))
    assert report.chosen == errors.index(min(errors)) and report.best.held_out_mse == min(errors)
    assert 0 < report.chosen < 12  # or it would say nothing about the choice
    assert min(range(13), key=lambda i: report.epochs[i].train_mse) != report.chosen


def test_a_head_that_is_kept_is_not_trained_further():
    states, targets, groups = told(noise=0.6)
    long = fitted(states, targets, groups, lr=0.03, epochs=12, seed=1)
    short = fitted(states, targets, groups, lr=0.03, epochs=long.report.chosen, seed=1)
    assert len(short.report.epochs) < len(long.report.epochs)
    assert torch.equal(values_of(long.head, states), values_of(short.head, states))
    assert not long.head.training


def test_what_can_be_learned_is_learned():
    report = fitted(*told(), epochs=20).report
    assert report.beats_mean and report.gain[1] > 0
    assert report.best.held_out_mse < 0.3 * report.mean_mse and report.best.spearman > 0.8


def test_where_states_say_nothing_the_report_says_so():
    _, targets, groups = told(noise=2.0)
    noise = [torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(i)) for i in range(N)]
    report = fitted(noise, targets, groups, lr=0.1).report
    assert report.chosen == 0 and not report.beats_mean and report.epochs[-1].held_out_mse > report.mean_mse
    assert report.gain[0] == pytest.approx(0.0, abs=tol.RELATIVE32)


@pytest.mark.parametrize("target", [0.0, 0.37, 1.0])
def test_a_constant_reward_is_recovered(target):
    states, _, groups = told()
    made = fitted(states, torch.full((2 * N,), target), groups)
    expected = min(max(target, EDGE), 1 - EDGE)  # a sigmoid reaches neither end
    if target == 0.37:
        torch.testing.assert_close(values_of(made.head, states), torch.full((N,), expected), **tol.FLOAT32)
    else:
        assert (values_of(made.head, states) - target).abs().max() < 2 * EDGE


def test_the_start_is_the_mean_reward_of_the_training_prompts(chosen_on):
    states, targets, groups = told()
    report = fitted(states, targets, groups).report
    kept = [reward for reward, prompt in zip(targets.tolist(), groups, strict=True) if prompt not in chosen_on]
    assert report.mean == pytest.approx(sum(kept) / len(kept), rel=tol.RELATIVE32)
    assert report.epochs[0].held_out_mse == pytest.approx(report.mean_mse, rel=tol.RELATIVE32)


def test_the_seed_fixes_the_fit_and_every_draw_of_it():
    states, targets, groups = told()
    state = torch.get_rng_state()
    first, again, other = (fitted(states, targets, groups, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.report == again.report and first.report != other.report
    assert torch.equal(values_of(first.head, states), values_of(again.head, states))
    assert not torch.equal(first.head.query, other.head.query)


def test_dropout_and_order_change_from_epoch_to_epoch(monkeypatch):
    orders, masks = [], []
    shuffled, dropped = value.shuffled, value.ValueHead._dropped

    def noted(self, x):
        found = dropped(self, x)
        if self.training and x.ndim == 3:
            masks.append((found == 0).sum().item())
        return found

    monkeypatch.setattr(value, "shuffled", lambda n, *names: orders.append(shuffled(n, *names)) or orders[-1])
    monkeypatch.setattr(value.ValueHead, "_dropped", noted)
    fitted(*told(), epochs=3, batch=100, dropout=0.5)
    assert len(orders) == 4 and len({tuple(order) for order in orders[1:]}) == 3
    assert len(masks) == 3 and len(set(masks)) == 3


def test_every_sample_weighs_the_same_and_only_their_sum_moves_the_head():
    states, targets, groups = told(2, noise=0.3)
    middle = targets.view(N, 2).mean(1).repeat_interleave(2)
    spread, flat = (fitted(states, t, groups, held_out_fraction=0.1) for t in (targets, middle))
    torch.testing.assert_close(*(torch.tensor([e.train_mse - x.report.epochs[0].train_mse for e in x.report.epochs])
                                 for x in (spread, flat)), **tol.CREDIT32)
    # A prompt with three samples of one reward counts three times: the other prompts' values move less.
    once = [0.9 if i == 0 else 0.1 for i in range(N)]
    thrice, owners = [0.9, 0.9, *once], [0, 0, *range(N)]
    one, three = (fitted(states, torch.tensor(t), g, epochs=1, batch=N, held_out_fraction=0.1).report.mean
                  for t, g in ((once, list(range(N))), (thrice, owners)))
    assert three > one


def test_a_step_follows_the_mean_over_samples():
    """Against loops: prompts with one, two and three samples in one batch."""
    states, targets, _ = told(1, noise=0.0)
    groups = [i for i in range(N) for _ in range(1 + i % 3)]
    targets = targets[torch.tensor(groups)]
    side = value._side(states, targets, groups, list(range(N)))
    head = value.ValueHead(WIDTH, low=0.0, high=4.0, heads=2, seed=3).eval()
    for part in ([3, 7, 5], [0], list(range(N))[::-1]):
        loss = value._error(head, side, part)
        values = {i: head.of([states[i]]).double() for i in part}
        expected = [((float(values[g]) - float(t)) / 4) ** 2 for t, g in zip(targets, groups, strict=True) if g in part]
        assert float(loss.detach()) == pytest.approx(sum(expected) / len(expected), rel=tol.RELATIVE32)


def test_the_unit_of_the_reward_does_not_matter():
    states, targets, groups = told()
    small, large = fitted(states, targets, groups), fitted(states, 100 * targets - 7, groups, low=-7.0, high=93.0)
    assert small.report.chosen == large.report.chosen
    torch.testing.assert_close(100 * values_of(small.head, states) - 7, values_of(large.head, states),
                               rtol=tol.CREDIT32["rtol"], atol=100 * tol.CREDIT32["rtol"])


def test_values_are_without_dropout_and_the_same_in_any_batch(monkeypatch):
    states, targets, groups = told()
    made = copy.deepcopy(fitted(states, targets, groups, dropout=0.5).head).train()
    whole = values_of(made, states)
    assert made.training and torch.equal(values_of(made, states), whole) and len(set(whole.tolist())) == N
    order = list(range(N))[::-1]
    torch.testing.assert_close(values_of(made, [states[i] for i in order]), whole[order], **tol.FLOAT32)
    monkeypatch.setattr(value, "POSITIONS", 1)
    torch.testing.assert_close(values_of(made, states), whole, **tol.FLOAT32)


def test_settings_reach_the_head():
    made = fitted(*told(), heads=4, dropout=0.3).head
    assert (made.heads, made.dropout, made.width, made.low, made.high) == (4, 0.3, WIDTH, 0.0, 1.0)
    with pytest.raises(ModelError, match="3 heads do not divide hidden states of width 8"):
        fitted(*told(), heads=3)


def test_too_few_prompts_are_refused():
    with pytest.raises(DataError, match="7 prompts are too few to fit a value head and to choose its epoch on others"):
        fitted(*told(n=7))
    assert fitted(*told(n=8)).report.n_held_out == 2


@pytest.mark.parametrize("bad", [1.5, -0.01, math.nan, math.inf])
def test_rewards_outside_their_range_are_refused(bad):
    states, targets, groups = told()
    targets[5] = bad
    said = rf"1 of 80 rewards of the reference's samples are outside \[0.0, 1.0\], the first of them {bad:.7g}\n"
    with pytest.raises(DataError, match=said):
        fitted(states, targets, groups)


@pytest.mark.parametrize(("low", "high", "dtype"), [
    (0.0, 0.1, torch.float32), (0.0, 0.1, torch.float64), (1000.0, 1000.1, torch.float64), (-0.3, 0.7, torch.float32)])
def test_a_perfect_reward_is_in_range_in_any_number_format(low, high, dtype):
    """In float32 an end such as 0.1 is a number beyond it; a sum of weighted parts ends a little beside it."""
    states, targets, groups = told()
    ends = (low + (high - low) * targets.double().round()).to(dtype)
    slightly = ends.double() + 9e-7 * (high - low) * (2 * targets.double().round() - 1)
    exact, beside = (fitted(states, t, groups, low=low, high=high).report for t in (ends, slightly))
    assert low <= exact.mean <= high and exact.mean == pytest.approx(beside.mean, rel=tol.RELATIVE32)
    for end, sign in ((low, -1), (high, 1)):
        ends[7] = end + 1e-3 * sign * (high - low)
        with pytest.raises(DataError, match="1 of 80 rewards of the reference's samples are outside"):
            fitted(states, ends, groups, low=low, high=high)
        ends[7] = end


def test_a_reward_beside_the_end_by_rounding_is_taken_for_the_end():
    states, targets, groups = told()
    edge = targets.round()
    beside = edge.double() * (1 + 9e-7)
    one, other = (fitted(states, t, groups).report for t in (edge, beside))
    assert one == other


def test_states_that_are_not_finite_stop_the_fit():
    states, targets, groups = told()
    states[3][0, 0] = torch.nan
    with pytest.raises(NumericsError, match="the value estimate of 1 prompts is not finite"):
        fitted(states, targets, groups)
