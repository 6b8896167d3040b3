"""Score processing, per-token rewards and generalised advantage estimation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import advantage as truth
from references.ragged import noise, padded, response_masks, rows_of, seeds
from tolerances import EXACT, FLOAT32, FLOAT64, PRINTED
from torch.testing import assert_close

from keel.functional.advantage import gae, process_scores, token_rewards
from keel.functional.masked import masked_mean, merge_moments, no_moments
from keel.functional.policy import clipped_surrogate, clipped_value_loss, kl_k1

NAN = float("nan")
SWITCHES = [(False, False), (False, True), (True, False), (True, True)]


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_worked_example_of_the_spec() -> None:
    """Section 7.2 of our PPO spec, number by number, inside a row with a prompt before and padding after."""
    mask = torch.tensor([[False, True, True, True, False]])
    logprobs, ref = float64([[NAN, -1, -2, -0.5, NAN]]), float64([[NAN, -1.5, -1, -0.5, NAN]])
    values = float64([[NAN, 0.2, 0.4, 0.5, NAN]])
    kl = kl_k1(logprobs, ref)
    assert_close(kl[mask], float64([0.5, -1, 0]), **FLOAT64)
    rewards = token_rewards(float64([1.0]), kl, mask, kl_coef=0.1)
    assert_close(rewards, float64([[0, -0.05, 0.1, 1.0, 0]]), **FLOAT64)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.5)
    assert_close(advantages, float64([[0, 0.375, 0.45, 0.5, 0]]), **FLOAT64)
    assert_close(returns, float64([[0, 0.575, 0.85, 1.0, 0]]), **FLOAT64)
    # Unchanged policy and critic: ratio 1, V = V_old, so L_pg = -mean A and L_vf = mean A^2 / 2.
    pg, pg_stats = clipped_surrogate(logprobs, logprobs, advantages, mask, clip=0.2)
    vf, vf_stats = clipped_value_loss(values, values, returns, mask, clip=0.2)
    assert_close(masked_mean(pg, mask), float64(-0.441667), **PRINTED)
    assert_close(masked_mean(vf, mask), float64(0.098854), **PRINTED)
    assert_close(pg_stats["policy/ratio"], mask.double(), **EXACT)
    assert not pg_stats["policy/clipped"].any()
    assert not vf_stats["value/clipped"].any()


def test_gae_discounts_both_ways_by_hand() -> None:
    # gamma 0.5, lam 0.5. deltas: 1 + 0.5*2 - 4 = -2 and 3 - 2 = 1; A_2 = 1, A_1 = -2 + 0.25 * 1 = -1.75.
    advantages, returns = gae(
        float64([[1, 3]]), float64([[4, 2]]), torch.ones(1, 2, dtype=torch.bool), gamma=0.5, lam=0.5)
    assert_close(advantages, float64([[-1.75, 1]]), **EXACT)
    assert_close(returns, float64([[2.25, 3]]), **EXACT)


def test_gae_of_a_single_token_and_of_an_empty_row() -> None:
    mask = torch.tensor([[False, True], [False, False]])
    rewards, values = float64([[NAN, 2], [NAN, NAN]]), float64([[NAN, 5], [NAN, NAN]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.9)
    assert_close(advantages, float64([[0, -3], [0, 0]]), **EXACT)
    assert_close(returns, float64([[0, 2], [0, 0]]), **EXACT)


def test_gae_has_no_bootstrap_after_the_last_token() -> None:
    """The value under the padding is a critic's opinion about nothing; a cut response is terminal too."""
    mask = torch.tensor([[True, True, False]])
    rewards, values = float64([[0, 1, 50]]), float64([[0, 0, 99]])
    assert_close(gae(rewards, values, mask, gamma=1.0, lam=1.0)[0], float64([[1, 1, 0]]), **EXACT)


@given(response_masks(), seeds, st.sampled_from([0.3, 0.99, 1.0]), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_gae_agrees_with_the_explicit_sum(mask: torch.Tensor, seed: int, gamma: float, lam: float) -> None:
    rewards, values = noise(seed, *mask.shape), noise(seed + 1, *mask.shape)
    pairs = list(zip(rows_of(rewards, mask), rows_of(values, mask), strict=True))
    expected = [truth.gae(r, v, gamma, lam) for r, v in pairs]
    advantages, returns = gae(
        rewards.masked_fill(~mask, NAN), values.masked_fill(~mask, NAN), mask, gamma=gamma, lam=lam)
    assert advantages.dtype == returns.dtype == torch.float64
    assert_close(advantages, padded(expected, mask), **FLOAT64)
    total = [[a + v for a, v in zip(row, values_row, strict=True)] for row, (_, values_row) in
             zip(expected, pairs, strict=True)]
    assert_close(returns, padded(total, mask), **FLOAT64)


@given(response_masks(), seeds)
def test_gae_at_lambda_one_pays_the_discounted_returns(mask: torch.Tensor, seed: int) -> None:
    rewards, values = noise(seed, *mask.shape), noise(seed + 1, *mask.shape)
    _, returns = gae(rewards, values, mask, gamma=0.9, lam=1.0)
    expected = [truth.discounted_returns(row, 0.9) for row in rows_of(rewards, mask)]
    assert_close(returns, padded(expected, mask), **FLOAT64)


def test_gae_detaches_rewards_and_values() -> None:
    rewards, values = torch.randn(1, 2, requires_grad=True), torch.randn(1, 2, requires_grad=True)
    advantages, returns = gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), gamma=1.0, lam=1.0)
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_credit_of_a_bfloat16_critic_is_float32() -> None:
    rewards, values = torch.randn(1, 2, dtype=torch.bfloat16), torch.randn(1, 2, dtype=torch.bfloat16)
    advantages, returns = gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), gamma=1.0, lam=1.0)
    assert advantages.dtype == returns.dtype == torch.float32


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.01, NAN])
def test_gae_refuses_gamma(gamma: float) -> None:
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"gamma=.* is outside \(0, 1\]; 1 is usual for responses"):
        gae(one, one, one == 0, gamma=gamma, lam=1.0)


@pytest.mark.parametrize("lam", [-0.1, 1.01, NAN])
def test_gae_refuses_lam(lam: float) -> None:
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"lam=.* is outside \[0, 1\]; 0.95 is usual"):
        gae(one, one, one == 0, gamma=1.0, lam=lam)


def test_token_rewards_pay_the_last_token_of_full_short_single_and_empty_rows() -> None:
    mask = torch.tensor([[True, True, True], [False, True, False], [True, True, False], [False, False, False]])
    kl = float64([[1, 2, 3], [NAN, 4, NAN], [5, 6, NAN], [NAN, NAN, NAN]])
    # -0.5 per nat, and the scores 10, 20, 30 added to, not written over, the charge of the last token.
    expected = float64([[-0.5, -1, 8.5], [0, 18, 0], [-2.5, 27, 0], [0, 0, 0]])
    assert_close(token_rewards(float64([10, 20, 30, 40]), kl, mask, kl_coef=0.5), expected, **EXACT)


@given(response_masks(), seeds)
def test_token_rewards_agree_with_the_reference(mask: torch.Tensor, seed: int) -> None:
    scores, kl = noise(seed, len(mask)), noise(seed + 1, *mask.shape)
    expected = [truth.token_rewards(score, row, 0.07)
                for score, row in zip(scores.tolist(), rows_of(kl, mask), strict=True)]
    result = token_rewards(scores, kl.masked_fill(~mask, NAN), mask, kl_coef=0.07)
    assert result.dtype == torch.float64
    assert_close(result, padded(expected, mask), **FLOAT64)


def test_token_rewards_carry_no_graph_and_are_computed_in_float32() -> None:
    scores, kl = torch.randn(2, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    assert not token_rewards(scores, kl, torch.ones(2, 3, dtype=torch.bool), kl_coef=0.1).requires_grad
    # 0.1 of 1.25 is 0.125; in bfloat16 it would be 0.12500 only by luck, 0.1 of 1.1016 would be 0.1104.
    narrow = torch.tensor([[1.1015625]], dtype=torch.bfloat16)
    paid = token_rewards(torch.zeros(1, dtype=torch.bfloat16), narrow, torch.tensor([[True]]), kl_coef=0.1)
    assert_close(paid, torch.tensor([[-0.11015625]]), **FLOAT32)


@pytest.mark.parametrize(("center", "scale"), SWITCHES)
def test_each_switch_acts_alone(center: bool, scale: bool) -> None:
    # Pitfall 4 of the spec. Seen 1, 5, 6: mean 4, squares 9 + 1 + 4 = 14, variance 14 / 2 = 7.
    scores = float64([1, 5, 6])
    moments = merge_moments(no_moments(), scores)
    expected = {(False, False): [1, 5, 6], (True, False): [-3, 1, 2],
                (False, True): [1 / 7**0.5, 5 / 7**0.5, 6 / 7**0.5],
                (True, True): [-3 / 7**0.5, 1 / 7**0.5, 2 / 7**0.5]}[center, scale]
    result = process_scores(scores, moments, center=center, scale=scale, clip=None)
    assert_close(result, float64(expected), **FLOAT64)


def test_clip_bounds_both_sides_after_scaling() -> None:
    moments = float64([3, 0, 8])  # variance 4, std 2
    result = process_scores(float64([-5, 1, 5]), moments, center=False, scale=True, clip=1.5)
    assert_close(result, float64([-1.5, 0.5, 1.5]), **EXACT)


def test_first_score_and_constant_scores_stay_finite() -> None:
    """Pitfall 2 of the spec: after one score the released code divides by inf, after equal ones by 1e-12."""
    one = merge_moments(no_moments(), float64([3.0]))
    assert_close(process_scores(float64([3.0]), one, center=False, scale=True, clip=None), float64([3.0]), **EXACT)
    none_seen = process_scores(float64([3.0]), no_moments(), center=True, scale=True, clip=None)
    assert_close(none_seen, float64([3.0]), **EXACT)
    equal = merge_moments(no_moments(), float64([3.0, 3.0]))
    floored = process_scores(float64([3.0, 3.5]), equal, center=True, scale=True, clip=None)
    assert_close(floored, float64([0.0, 0.5 / 1e-4]), **FLOAT64)
    wider = process_scores(float64([3.5]), equal, center=True, scale=True, clip=None, min_std=0.25)
    assert_close(wider, float64([2.0]), **FLOAT64)


def test_two_scores_are_enough_for_a_spread() -> None:
    # 1 and 3: variance 2 / 1, std sqrt(2).
    two = merge_moments(no_moments(), float64([1, 3]))
    result = process_scores(float64([1, 3]), two, center=True, scale=True, clip=None)
    assert_close(result, float64([-(0.5**0.5), 0.5**0.5]), **FLOAT64)


@given(seeds, st.integers(1, 5), st.sampled_from(SWITCHES), st.sampled_from([None, 0.5]))
def test_processing_agrees_with_the_reference(
    seed: int, n: int, switches: tuple[bool, bool], clip: float | None,
) -> None:
    center, scale = switches
    earlier, scores = noise(seed, 3) + 2, noise(seed + 1, n) + 2
    moments = merge_moments(merge_moments(no_moments(), earlier), scores)
    expected = truth.process_scores(earlier.tolist() + scores.tolist(), scores.tolist(),
                                    center=center, scale=scale, clip=clip, min_std=1e-4)
    result = process_scores(scores, moments, center=center, scale=scale, clip=clip)
    assert_close(result, float64(expected), **FLOAT64)


def test_processed_scores_have_the_width_of_the_scores_and_no_graph() -> None:
    moments = float64([3, 1e9, 8])
    narrow = torch.tensor([1.0], dtype=torch.bfloat16, requires_grad=True)
    result = process_scores(narrow, moments, center=True, scale=True, clip=1.0)
    assert result.dtype == torch.float32
    assert not result.requires_grad
    # The subtraction itself is done in float64: 1e9 + 1 - 1e9 is 0 in float32.
    exact = process_scores(float64([1e9 + 1]), moments, center=True, scale=False, clip=None)
    assert_close(exact, float64([1.0]), **EXACT)
    assert process_scores(float64([1.0]), moments, center=True, scale=True, clip=1.0).dtype == torch.float64


@pytest.mark.parametrize("clip", [0.0, -1.0])
def test_score_clip_must_be_positive(clip: float) -> None:
    with pytest.raises(ValueError, match=r"clip=.* must be positive; the released code uses 10, none turns it off"):
        process_scores(torch.zeros(1), no_moments(), center=True, scale=True, clip=clip)


@pytest.mark.parametrize("min_std", [0.0, -1.0])
def test_min_std_must_be_positive(min_std: float) -> None:
    with pytest.raises(ValueError, match=r"min_std=.* must be positive; 1e-4 is usual"):
        process_scores(torch.zeros(1), no_moments(), center=True, scale=True, clip=None, min_std=min_std)
