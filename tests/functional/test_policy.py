"""PPO's losses and the estimators of drift."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import policy as truth
from references.ragged import noise, padded, response_masks, rows_of, seeds
from tolerances import EXACT, FLOAT32, FLOAT64, RELATIVE64, SMALL_DIFFERENCE32, STANDARD_ERRORS
from torch.testing import assert_close

from keel.functional.policy import (
    clipped_surrogate,
    clipped_value_loss,
    entropy_term,
    kl_full,
    kl_k1,
    kl_k2,
    kl_k3,
    nll,
    penalised_surrogate,
)
from keel.functional.sampling import draw, top_k_top_p

NAN = float("nan")
CLIPS = st.sampled_from([None, 0.1, 0.2, 0.5])


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def all_true(x: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def test_surrogate_in_all_its_regions_by_hand() -> None:
    # clip 0.2; ratios 1.5, 1.5, 0.5, 0.5, 1.1, 1.1 with advantages +2, -2, +2, -2, +2, -2.
    ratio, advantages = float64([[1.5, 1.5, 0.5, 0.5, 1.1, 1.1]]), float64([[2, -2, 2, -2, 2, -2]])
    logprobs = ratio.log().requires_grad_()
    loss, stats = clipped_surrogate(logprobs, torch.zeros_like(ratio), advantages, all_true(ratio), clip=0.2)
    # min(3, 2.4) = 2.4; min(-3, -2.4) = -3; min(1, 1.6) = 1; min(-1, -1.6) = -1.6; then 2.2 and -2.2 unclipped.
    assert_close(loss, float64([[-2.4, 3, -1, 1.6, -2.2, 2.2]]), **FLOAT64)
    assert_close(stats["policy/clipped"], float64([[1, 0, 0, 1, 0, 0]]), **EXACT)
    assert_close(stats["policy/ratio"], ratio, **FLOAT64)
    # Slope -ratio * A where nothing is clipped, none where the clip is active.
    loss.sum().backward()
    assert_close(logprobs.grad, float64([[0, 3, -1, 0, -2.2, 2.2]]), **FLOAT64)


def test_surrogate_without_a_clip() -> None:
    logprobs = float64([[math.log(3)]]).requires_grad_()
    loss, stats = clipped_surrogate(logprobs, float64([[0]]), float64([[2]]), torch.tensor([[True]]), clip=None)
    loss.sum().backward()
    assert_close(loss, float64([[-6]]), **FLOAT64)
    assert_close(logprobs.grad, float64([[-6]]), **FLOAT64)
    assert_close(stats["policy/clipped"], float64([[0]]), **EXACT)


def test_on_policy_the_gradient_is_plain_policy_gradient() -> None:
    """Ratio 1 is a tie of both branches: the slope must be -A, not half of it."""
    logprobs, advantages = noise(1, 2, 3).requires_grad_(), noise(2, 2, 3)
    loss, _ = clipped_surrogate(logprobs, logprobs, advantages, all_true(advantages), clip=0.2)
    loss.sum().backward()
    assert_close(loss, -advantages, **FLOAT64)
    assert_close(logprobs.grad, -advantages, **FLOAT64)


def test_surrogate_hides_what_the_mask_hides() -> None:
    mask = torch.tensor([[True, False]])
    old, advantages = float64([[0, 1]]), float64([[1, 5]])
    loss, stats = clipped_surrogate(float64([[math.log(1.1), 4]]), old, advantages, mask, clip=0.2)
    assert_close(loss, float64([[-1.1, 0]]), **FLOAT64)
    assert_close(stats["policy/ratio"], float64([[1.1, 0]]), **FLOAT64)
    assert_close(stats["policy/kl_old"], float64([[1.1 - 1 - math.log(1.1), 0]]), **FLOAT64)


@given(response_masks(), seeds, CLIPS)
def test_surrogate_agrees_with_the_reference(mask: torch.Tensor, seed: int, clip: float | None) -> None:
    old, advantages = noise(seed, *mask.shape) - 2, noise(seed + 1, *mask.shape)
    new = (old + noise(seed + 2, *mask.shape, scale=0.4)).masked_fill(~mask, NAN).requires_grad_()
    loss, stats = clipped_surrogate(new, old, advantages, mask, clip=clip)
    pairs = [[truth.clipped_surrogate(*token, clip) for token in zip(*row, strict=True)] for row in
             zip(rows_of(new.detach(), mask), rows_of(old, mask), rows_of(advantages, mask), strict=True)]
    loss.sum().backward()
    assert loss.dtype == torch.float64
    assert {stat.dtype for stat in stats.values()} == {torch.float64}
    assert_close(loss, padded([[value for value, _ in row] for row in pairs], mask), **FLOAT64)
    assert_close(new.grad, padded([[slope for _, slope in row] for row in pairs], mask), **FLOAT64)
    drift = [[truth.k3(before, now) for now, before in zip(*row, strict=True)] for row in
             zip(rows_of(new.detach(), mask), rows_of(old, mask), strict=True)]
    assert_close(stats["policy/kl_old"], padded(drift, mask), **FLOAT64)


def test_kl_old_is_unbiased_for_tokens_of_the_old_policy() -> None:
    """The rollout was written by the old policy, so the mean under it must be KL(old || new), not something else."""
    old, new = torch.softmax(noise(3, 5), 0), torch.softmax(noise(4, 5), 0)
    _, stats = clipped_surrogate(new.log()[None], old.log()[None], torch.ones(1, 5), torch.ones(1, 5) > 0, clip=0.2)
    mean = truth.expectation(old.tolist(), stats["policy/kl_old"][0].tolist())
    assert mean == pytest.approx(truth.full_kl(old.tolist(), new.tolist()), rel=RELATIVE64)


def test_log_ratio_is_held_at_twenty_with_no_gradient_beyond() -> None:
    """Pitfall 20 of the spec: one wild token must not overflow the batch."""
    logprobs = float64([[21, -21, 19, -19]]).requires_grad_()
    advantages = float64([[-1, 1, -1, 1]])
    loss, stats = clipped_surrogate(logprobs, float64([[0, 0, 0, 0]]), advantages, all_true(advantages), clip=0.2)
    loss.sum().backward()
    held = float64([[math.exp(20), math.exp(-20), math.exp(19), math.exp(-19)]])
    assert_close(stats["policy/ratio"], held, **FLOAT64)
    assert_close(loss, -held * advantages, **FLOAT64)
    assert_close(logprobs.grad, float64([[0, 0, math.exp(19), -math.exp(-19)]]), **FLOAT64)


@pytest.mark.parametrize("clip", [0.0, 1.0, -0.2, NAN])
def test_policy_clip_must_lie_inside_zero_and_one(clip: float) -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"clip=.* is outside \(0, 1\); PPO's usual value is 0.2"):
        clipped_surrogate(x, x, x, x == 0, clip=clip)


def test_penalty_by_hand() -> None:
    # Ratios 1.5, 0.5, 1 with advantages 2, -2, 3 and a price of 0.4 per nat.
    ratio, advantages = float64([[1.5, 0.5, 1]]), float64([[2, -2, 3]])
    logprobs = ratio.log().requires_grad_()
    loss, stats = penalised_surrogate(
        logprobs, torch.zeros_like(ratio), advantages, all_true(ratio), old_kl_coef=0.4)
    kl = float64([[0.5 - math.log(1.5), -0.5 + math.log(2), 0]])
    assert_close(loss, float64([[-3, 1, -3]]) + 0.4 * kl, **FLOAT64)
    assert_close(stats, {"policy/kl_old": kl, "policy/ratio": ratio}, **FLOAT64)
    # Slope -r A + 0.4 (r - 1).
    loss.sum().backward()
    assert_close(logprobs.grad, float64([[-3 + 0.2, 1 - 0.2, -3]]), **FLOAT64)


def test_penalty_without_a_price_is_the_unclipped_surrogate() -> None:
    new, old, advantages = noise(1, 2, 3), noise(2, 2, 3), noise(3, 2, 3)
    free, free_stats = penalised_surrogate(new, old, advantages, all_true(new), old_kl_coef=0.0)
    plain, plain_stats = clipped_surrogate(new, old, advantages, all_true(new), clip=None)
    assert_close(free, plain, **EXACT)
    assert_close(free_stats, {name: plain_stats[name] for name in free_stats}, **EXACT)


@given(response_masks(), seeds, st.sampled_from([0.0, 0.05, 1.0]))
def test_penalty_agrees_with_the_reference(mask: torch.Tensor, seed: int, coef: float) -> None:
    old, advantages = noise(seed, *mask.shape) - 2, noise(seed + 1, *mask.shape)
    new = (old + noise(seed + 2, *mask.shape, scale=0.4)).masked_fill(~mask, NAN).requires_grad_()
    loss, stats = penalised_surrogate(new, old, advantages, mask, old_kl_coef=coef)
    pairs = [[truth.penalised_surrogate(*token, coef) for token in zip(*row, strict=True)] for row in
             zip(rows_of(new.detach(), mask), rows_of(old, mask), rows_of(advantages, mask), strict=True)]
    loss.sum().backward()
    assert {loss.dtype, *(stat.dtype for stat in stats.values())} == {torch.float64}
    assert_close(loss, padded([[value for value, _ in row] for row in pairs], mask), **FLOAT64)
    assert_close(new.grad, padded([[slope for _, slope in row] for row in pairs], mask), **FLOAT64)


def test_penalty_is_held_at_a_log_ratio_of_twenty() -> None:
    logprobs = float64([[21, -21]]).requires_grad_()
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    loss, _ = penalised_surrogate(logprobs, zeros, zeros, zeros == 0, old_kl_coef=1.0)
    loss.sum().backward()
    assert_close(loss, float64([[math.exp(20) - 21, math.exp(-20) + 19]]), **FLOAT64)
    assert_close(logprobs.grad, zeros, **EXACT)


def test_penalty_of_a_tiny_drift_is_precise() -> None:
    # d^2 / 2 for a log-ratio d; exp(d) - 1 in float32 would lose it all.
    drift = torch.tensor([[1e-5]])
    loss, _ = penalised_surrogate(drift, 0 * drift, 0 * drift, drift > 0, old_kl_coef=1.0)
    assert_close(loss / 5e-11, torch.tensor([[1.0]]), **SMALL_DIFFERENCE32)


@given(seeds)
def test_expected_penalty_is_the_kl_from_the_old_policy_and_so_is_its_gradient(seed: int) -> None:
    """Tokens come from the old policy; its probabilities weigh the enumeration. KL(old || new) by the logits of new has
    the gradient p_new - p_old."""
    logits, old = noise(seed, 6).requires_grad_(), noise(seed + 1, 6).softmax(0)
    loss, _ = penalised_surrogate(logits.log_softmax(0)[None], old.log()[None], torch.zeros(1, 6, dtype=torch.float64),
                                  torch.ones(1, 6) > 0, old_kl_coef=1.0)
    mean = (old * loss[0]).sum()
    mean.backward()
    new = logits.detach().softmax(0)
    assert float(mean.detach()) == pytest.approx(truth.full_kl(old.tolist(), new.tolist()), rel=RELATIVE64)
    assert_close(logits.grad, float64(truth.backward_kl_gradient(new.tolist(), old.tolist())), **FLOAT64)


def test_penalty_must_not_be_negative() -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"old_kl_coef=-0.1 is negative: it would pay for leaving the old policy"):
        penalised_surrogate(x, x, x, x == 0, old_kl_coef=-0.1)


ENTROPY_MODES = [("bonus", None), ("floor", 1.0), ("target", 1.0)]


@pytest.mark.parametrize(("mode", "target", "low", "high", "equal"), [
    # Entropies 0.25 and 1.25: mean 0.75, below the target of 1. 0.5 and 2.5: mean 1.5, above it. 0 and 2: at it.
    ("bonus", None, [-0.25, -1.25], [-0.5, -2.5], [-0.0, -2.0]),
    ("floor", 1.0, [0.75, -0.25], [0.0, 0.0], [0.0, 0.0]),
    ("target", 1.0, [0.75, -0.25], [-0.5, 1.5], [0.0, 0.0]),
])
def test_entropy_term_by_hand(mode: str, target: float | None, low: list, high: list, equal: list) -> None:
    for values, expected in (([0.25, 1.25], low), ([0.5, 2.5], high), ([0.0, 2.0], equal)):
        entropy = float64([values])
        assert_close(entropy_term(entropy, entropy.mean(), mode=mode, target=target), float64([expected]), **EXACT)


@given(seeds, st.sampled_from(ENTROPY_MODES), st.integers(1, 5))
def test_mean_of_the_entropy_term_is_the_loss_of_the_minibatch(
    seed: int, how: tuple[str, float | None], n: int,
) -> None:
    """Value and gradient, also when the minibatch is cut in two."""
    mode, target = how
    entropy = (noise(seed, 1, n).abs() + 0.5).requires_grad_()
    mean = entropy.mean()
    halves = entropy[:, : n // 2], entropy[:, n // 2 :]
    loss = sum(entropy_term(half, mean, mode=mode, target=target).sum() for half in halves) / n
    loss.backward()
    value, slope = truth.entropy_loss(float(mean.detach()), mode, target)
    assert_close(loss.detach(), float64(value), **FLOAT64)
    assert_close(entropy.grad, torch.full_like(entropy, slope / n).detach(), **FLOAT64)


@pytest.mark.parametrize(("mode", "target"), ENTROPY_MODES)
def test_entropy_term_is_wide(mode: str, target: float | None) -> None:
    entropy = torch.tensor([[0.1015625]], dtype=torch.bfloat16)
    # 1 - 0.1015625 = 0.8984375 is not a bfloat16 number.
    term = entropy_term(entropy, entropy.mean(), mode=mode, target=target)
    assert_close(term, torch.tensor([[-0.1015625 if target is None else 0.8984375]]), **EXACT)


def test_another_entropy_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode='max' is none of 'bonus', 'floor', 'target'"):
        entropy_term(torch.zeros(1, 1), torch.tensor(0.0), mode="max")


@pytest.mark.parametrize(("mode", "target"), [("bonus", 1.0), ("floor", None), ("target", None)])
def test_entropy_target_belongs_to_floor_and_target(mode: str, target: float | None) -> None:
    with pytest.raises(ValueError, match=rf"mode='{mode}' and target={target} do not go together: floor and target"):
        entropy_term(torch.zeros(1, 1), torch.tensor(0.0), mode=mode, target=target)


def test_value_loss_in_all_its_regions_by_hand() -> None:
    # clip 0.5 around an old value of 0.
    values = float64([[0.3, 2, -2, 2, -2]]).requires_grad_()
    returns = float64([[1, 3, -3, 0, 0]])
    loss, stats = clipped_value_loss(values, torch.zeros(1, 5, dtype=torch.float64), returns, values < 9, clip=0.5)
    # 0.7^2/2 inside; max(1, 2.5^2)/2 held at +-0.5 with no slope; max(4, 0.25)/2 with slope V - R = +-2.
    assert_close(loss, float64([[0.245, 3.125, 3.125, 2, 2]]), **FLOAT64)
    assert_close(stats["value/clipped"], float64([[0, 1, 1, 0, 0]]), **EXACT)
    loss.sum().backward()
    assert_close(values.grad, float64([[-0.7, 0, 0, 2, -2]]), **FLOAT64)


def test_value_loss_without_a_clip_is_half_the_squared_error() -> None:
    values = float64([[3]]).requires_grad_()
    loss, stats = clipped_value_loss(values, float64([[-9]]), float64([[1]]), torch.tensor([[True]]), clip=None)
    loss.sum().backward()
    assert_close(loss, float64([[2]]), **EXACT)
    assert_close(values.grad, float64([[2]]), **EXACT)
    assert_close(stats["value/clipped"], float64([[0]]), **EXACT)


@given(response_masks(), seeds, CLIPS)
def test_value_loss_agrees_with_the_reference(mask: torch.Tensor, seed: int, clip: float | None) -> None:
    old, returns = noise(seed, *mask.shape), noise(seed + 1, *mask.shape)
    values = (old + noise(seed + 2, *mask.shape, scale=0.4)).masked_fill(~mask, NAN).requires_grad_()
    loss, stats = clipped_value_loss(
        values, old.masked_fill(~mask, NAN), returns.masked_fill(~mask, NAN), mask, clip=clip)
    pairs = [[truth.clipped_value_loss(*token, clip) for token in zip(*row, strict=True)] for row in
             zip(rows_of(values.detach(), mask), rows_of(old, mask), rows_of(returns, mask), strict=True)]
    loss.sum().backward()
    assert loss.dtype == stats["value/clipped"].dtype == torch.float64
    assert_close(loss, padded([[value for value, _ in row] for row in pairs], mask), **FLOAT64)
    assert_close(values.grad, padded([[slope for _, slope in row] for row in pairs], mask), **FLOAT64)


def test_value_loss_under_the_mask_is_zero() -> None:
    loss, stats = clipped_value_loss(
        float64([[1, 9]]), float64([[1, 0]]), float64([[3, 20]]), torch.tensor([[True, False]]), clip=0.2)
    assert_close(loss, float64([[2, 0]]), **EXACT)
    assert_close(stats["value/clipped"], float64([[0, 0]]), **EXACT)


@pytest.mark.parametrize("clip", [0.0, -0.2])
def test_value_clip_must_be_positive(clip: float) -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"clip=.* must be positive; 0.2 is usual, none turns it off"):
        clipped_value_loss(x, x, x, x == 0, clip=clip)


def test_estimators_by_hand() -> None:
    # log p - log q = log 2 and -log 2, that is r = q / p = 1/2 and 2.
    p, q = float64([-1, -1]), float64([-1 - math.log(2), -1 + math.log(2)])
    assert_close(kl_k1(p, q), float64([math.log(2), -math.log(2)]), **FLOAT64)
    assert_close(kl_k2(p, q), float64([math.log(2) ** 2 / 2, math.log(2) ** 2 / 2]), **FLOAT64)
    assert_close(kl_k3(p, q), float64([0.5 - 1 + math.log(2), 2 - 1 - math.log(2)]), **FLOAT64)


@given(seeds)
def test_estimators_agree_with_the_reference_token_by_token(seed: int) -> None:
    p, q = noise(seed, 6), noise(seed + 1, 6)
    for ours, theirs in ((kl_k1, truth.k1), (kl_k2, truth.k2), (kl_k3, truth.k3)):
        expected = float64([theirs(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)])
        assert_close(ours(p, q), expected, **FLOAT64)


@given(seeds)
def test_k1_and_k3_are_unbiased_and_k2_is_not(seed: int) -> None:
    """Expectations over a vocabulary of six by enumeration, tokens drawn from p."""
    p, q = torch.softmax(noise(seed, 6), 0), torch.softmax(noise(seed + 1, 6), 0)
    exact = truth.full_kl(p.tolist(), q.tolist())
    means = [truth.expectation(p.tolist(), kl(p.log(), q.log()).tolist()) for kl in (kl_k1, kl_k2, kl_k3)]
    assert means[0] == pytest.approx(exact, rel=RELATIVE64)
    assert means[2] == pytest.approx(exact, rel=RELATIVE64)
    assert means[1] != pytest.approx(exact, rel=RELATIVE64)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k2, kl_k3])
def test_estimators_are_wide_and_only_the_first_policy_learns(estimator) -> None:
    p = torch.full((2,), -1.0, dtype=torch.bfloat16, requires_grad=True)
    result = estimator(p, p.detach() - 1)
    assert result.dtype == torch.float32
    assert result.requires_grad
    assert not estimator(p.detach(), p).requires_grad
    assert estimator(float64([1]), float64([1])).dtype == torch.float64


def test_slopes_of_the_estimators_by_hand() -> None:
    """By log p, with log p - log q = log 2: 1 for k1, the log-ratio for k2, 1 - q / p for k3."""
    for estimator, slope in ((kl_k1, 1.0), (kl_k2, math.log(2)), (kl_k3, 1 - 0.5)):
        p = float64([-1]).requires_grad_()
        estimator(p, float64([-1 - math.log(2)])).backward()
        assert_close(p.grad, float64([slope]), **FLOAT64)


@given(seeds)
def test_what_the_estimators_minimise_as_losses(seed: int) -> None:
    """The mean gradient over tokens of p, by enumeration, the weights held: none for k1, that of KL(p || q) for k2,
    that of KL(q || p) for k3."""
    q = noise(seed + 1, 6).softmax(0)
    p = noise(seed, 6).softmax(0)

    def mean_gradient(estimator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        logits = noise(seed, 6).requires_grad_()
        (p * estimator(logits.log_softmax(0), q.log())).sum().backward()
        return logits.grad

    forward = truth.kl_gradient(p.tolist(), q.tolist())
    assert_close(mean_gradient(kl_k1), torch.zeros(6, dtype=torch.float64), **FLOAT64)
    assert_close(mean_gradient(kl_k2), float64(forward), **FLOAT64)
    assert_close(mean_gradient(kl_k3), float64(truth.backward_kl_gradient(p.tolist(), q.tolist())), **FLOAT64)
    logits = noise(seed, 6).requires_grad_()
    kl_full(logits[None], q.log()[None]).sum().backward()
    assert_close(logits.grad, float64(forward), **FLOAT64)


def test_full_kl_by_hand() -> None:
    # p = (3/4, 1/4) and q = (1/2, 1/2), each with logits shifted by a constant: 3/4 log(3/2) + 1/4 log(1/2).
    logits = (float64([[3, 1]]).log() + 5).requires_grad_()
    kl = kl_full(logits, float64([[-2, -2]]))
    exact = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert_close(kl, float64([exact]), **FLOAT64)
    kl.sum().backward()
    # p_i (log(p_i / q_i) - KL).
    assert_close(logits.grad, float64([[0.75 * (math.log(1.5) - exact), 0.25 * (math.log(0.5) - exact)]]), **FLOAT64)


@given(seeds, st.integers(1, 5), st.integers(2, 7))
def test_full_kl_agrees_with_the_reference(seed: int, n: int, vocabulary: int) -> None:
    p, q = noise(seed, n, vocabulary), noise(seed + 1, n, vocabulary)
    pairs = list(zip(p.softmax(-1).tolist(), q.softmax(-1).tolist(), strict=True))
    assert_close(kl_full(p, q), float64([truth.full_kl(a, b) for a, b in pairs]), **FLOAT64)
    assert torch.autograd.gradcheck(lambda x: kl_full(x, q), p.requires_grad_())


def test_full_kl_is_wide_and_the_reference_gets_no_gradient() -> None:
    p, q = (torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    result = kl_full(p, q)
    assert result.dtype == torch.float32
    result.sum().backward()
    assert p.grad is not None
    assert q.grad is None


def test_k3_stays_finite_and_precise() -> None:
    # Held at a log-ratio of 20 on either side: e^20 - 1 - 20 and e^-20 - 1 + 20.
    held = kl_k3(float64([-1e4, 1e4]), float64([0, 0]))
    assert_close(held, float64([math.exp(20) - 21, math.exp(-20) + 19]), **FLOAT64)
    # A tiny drift d costs d^2 / 2; exp(-d) - 1 in float32 would lose it all.
    tiny = kl_k3(float64([1e-6]), float64([0]))
    assert_close(tiny / 5e-13, float64([1]), **FLOAT32)


def test_exact_sampling_gives_the_full_kl_and_nucleus_sampling_does_not() -> None:
    """Pitfall 18 of the spec: filters make the mean of k1 a biased estimate that the policy can farm."""
    n, vocabulary = 20_000, 12
    policy, reference = noise(5, vocabulary, scale=1.5), noise(6, vocabulary, scale=1.5)
    log_p, log_q = policy.log_softmax(0), reference.log_softmax(0)
    exact = truth.full_kl(log_p.exp().tolist(), log_q.exp().tolist())
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    def mean_k1(top_p: float) -> tuple[float, float]:
        logits, ids = top_k_top_p(policy[None], top_k=None, top_p=top_p)
        tokens = ids[0, draw(logits.expand(n, -1), uniform)]
        k1 = kl_k1(log_p[tokens], log_q[tokens])
        return float(k1.mean()), float(k1.std() / n**0.5)

    mean, error = mean_k1(1.0)
    assert mean > 0
    assert abs(mean - exact) < STANDARD_ERRORS * error
    mean, error = mean_k1(0.9)
    assert abs(mean - exact) > STANDARD_ERRORS * error


def test_nll_by_hand() -> None:
    logprobs = float64([[-0.5, NAN, -2]]).requires_grad_()
    loss = nll(logprobs, torch.tensor([[True, False, True]]))
    loss.sum().backward()
    assert_close(loss, float64([[0.5, 0, 2]]), **EXACT)
    assert_close(logprobs.grad, float64([[-1, 0, -1]]), **EXACT)
    assert nll(torch.zeros(1, 1, dtype=torch.bfloat16), torch.tensor([[True]])).dtype == torch.float32
