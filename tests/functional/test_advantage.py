"""Score processing, per-token rewards and generalised advantage estimation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import advantage as truth
from references import masked as masked_truth
from references.ragged import noise, padded, response_masks, rows_of, seeds
from tolerances import EXACT, FLOAT32, FLOAT64, PRINTED, RELATIVE64
from torch.testing import assert_close

from keel.functional.advantage import (
    adapted_kl_coef,
    cut_scores,
    gae,
    grpo,
    process_scores,
    reinforce_plus_plus,
    rloo,
    rolling_sums,
    shaped_advantages,
    token_rewards,
)
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
    """The value under the padding is a critic's opinion about nothing; unless asked, a cut response is terminal too."""
    mask = torch.tensor([[True, True, False]])
    rewards, values = float64([[0, 1, 50]]), float64([[0, 0, 99]])
    assert_close(gae(rewards, values, mask, gamma=1.0, lam=1.0)[0], float64([[1, 1, 0]]), **EXACT)


def test_gae_bootstraps_where_asked_by_hand() -> None:
    # gamma 0.5, lam 0.5. Row 1 was cut before a state worth 8: deltas 1 + 0.5*2 - 4 = -2 and 3 + 0.5*8 - 2 = 5;
    # A_2 = 5, A_1 = -2 + 0.25*5 = -0.75. Row 2 is the same and ended. Row 3 is cut and followed by padding.
    mask = torch.tensor([[True, True, False], [True, True, False], [False, True, True]])
    rewards, values = float64([[1, 3, NAN], [1, 3, NAN], [NAN, 1, 3]]), float64([[4, 2, NAN], [4, 2, NAN], [NAN, 4, 2]])
    after = float64([8, 0, 8]).requires_grad_()
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5, after=after)
    assert_close(advantages, float64([[-0.75, 5, 0], [-1.75, 1, 0], [0, -0.75, 5]]), **EXACT)
    assert_close(returns, float64([[3.25, 7, 0], [2.25, 3, 0], [0, 3.25, 7]]), **EXACT)
    assert not advantages.requires_grad


def test_a_cut_response_with_an_exact_critic_is_credited_as_if_it_had_gone_on() -> None:
    """The reason for the bootstrap: the first two tokens of a response of four, cut there, get the same returns."""
    rewards, values = float64([[0.5, -1, 2, 4]]), float64([[3.5, 3, 5, 4]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    _, whole = gae(rewards, values, mask, gamma=0.5, lam=1.0)
    _, cut = gae(rewards[:, :2], values[:, :2], mask[:, :2], gamma=0.5, lam=1.0, after=whole[:, 2])
    assert_close(cut, whole[:, :2], **EXACT)


def test_the_value_after_a_bfloat16_critic_is_widened_first() -> None:
    # 0.9 of 1.0078125 is 0.90703125, which bfloat16 would round.
    one = torch.zeros(1, 1, dtype=torch.bfloat16)
    advantages, _ = gae(one, one, one == 0, gamma=0.9, lam=1.0, after=torch.tensor([1.0078125], dtype=torch.bfloat16))
    assert_close(advantages, torch.tensor([[0.90703125]]), **FLOAT32)


@given(response_masks(), seeds, st.sampled_from([0.3, 0.99, 1.0]), st.sampled_from([0.0, 0.5, 0.95, 1.0]),
       st.booleans())
def test_gae_agrees_with_the_explicit_sum(
    mask: torch.Tensor, seed: int, gamma: float, lam: float, bootstrapped: bool,
) -> None:
    rewards, values, after = noise(seed, *mask.shape), noise(seed + 1, *mask.shape), noise(seed + 2, len(mask))
    pairs = list(zip(rows_of(rewards, mask), rows_of(values, mask), strict=True))
    ends = after.tolist() if bootstrapped else [0.0] * len(mask)
    expected = [truth.gae(r, v, gamma, lam, end) for (r, v), end in zip(pairs, ends, strict=True)]
    advantages, returns = gae(
        rewards.masked_fill(~mask, NAN), values.masked_fill(~mask, NAN), mask, gamma=gamma, lam=lam,
        after=after if bootstrapped else None)
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


def test_scores_can_be_centred_by_their_own_moments_and_divided_by_another_spread() -> None:
    # Mean 3 of the scores; the other moments: variance 12 / (4 - 1) = 4, whatever their mean of 99.
    moments, spread = float64([2, 3, 50]), float64([4, 99, 12])
    result = process_scores(float64([1, 9]), moments, center=True, scale=True, clip=None, spread=spread)
    assert_close(result, float64([-1, 3]), **EXACT)
    one = process_scores(float64([1, 9]), moments, center=False, scale=True, clip=None, spread=float64([1, 99, 0]))
    assert_close(one, float64([1, 9]), **EXACT)


def test_rolling_sums_by_hand() -> None:
    # gamma 0.5: 4, 2 + 2 = 4, 2 + 1 = 3; a row starts afresh after its prompt and stops at its end.
    mask = torch.tensor([[False, True, True, True, False], [True, False, False, False, False]])
    rewards = float64([[NAN, 4, 2, 1, NAN], [7, NAN, NAN, NAN, NAN]]).requires_grad_()
    sums = rolling_sums(rewards, mask, gamma=0.5)
    assert_close(sums, float64([[0, 4, 4, 3, 0], [7, 0, 0, 0, 0]]), **EXACT)
    assert not sums.requires_grad


@given(response_masks(), seeds, st.sampled_from([0.3, 0.99, 1.0]))
def test_rolling_sums_agree_with_the_reference(mask: torch.Tensor, seed: int, gamma: float) -> None:
    rewards = noise(seed, *mask.shape)
    expected = [truth.rolling_sums(row, gamma) for row in rows_of(rewards, mask)]
    assert_close(rolling_sums(rewards.masked_fill(~mask, NAN), mask, gamma=gamma), padded(expected, mask), **FLOAT64)


CUTS = [("score", None), ("mask", None), ("penalty", 2.0), ("constant", -5.0), ("bootstrap", None)]


@pytest.mark.parametrize(("cut", "expected"), list(zip(CUTS, (3, 3, 3 - 2, -5, 0), strict=True)))
def test_scores_of_cut_responses_by_hand(cut: tuple[str, float | None], expected: float) -> None:
    scores = float64([4, 3]).requires_grad_()
    paid = cut_scores(scores, torch.tensor([True, False]), how=cut[0], value=cut[1])
    assert_close(paid, float64([4, expected]), **EXACT)
    assert not paid.requires_grad


@given(seeds, st.integers(1, 5), st.sampled_from(CUTS))
def test_scores_of_cut_responses_agree_with_the_reference(seed: int, n: int, cut: tuple[str, float | None]) -> None:
    how, value = cut
    scores, ended = noise(seed, n), noise(seed + 1, n) > 0
    pairs = zip(scores.tolist(), ended.tolist(), strict=True)
    expected = [truth.cut_score(score, end, how, value) for score, end in pairs]
    assert_close(cut_scores(scores, ended, how=how, value=value), float64(expected), **FLOAT64)


def test_a_value_of_zero_is_a_value() -> None:
    scores, ended = float64([4, 3]), torch.tensor([True, False])
    assert_close(cut_scores(scores, ended, how="penalty", value=0.0), scores, **EXACT)
    assert_close(cut_scores(scores, ended, how="constant", value=0.0), float64([4, 0]), **EXACT)


def test_a_score_that_is_replaced_may_be_nan() -> None:
    scores, ended = float64([NAN, 1]), torch.tensor([False, True])
    assert_close(cut_scores(scores, ended, how="constant", value=-5.0), float64([-5, 1]), **EXACT)
    assert_close(cut_scores(scores, ended, how="bootstrap"), float64([0, 1]), **EXACT)


@pytest.mark.parametrize(("how", "value"), CUTS)
def test_paid_scores_are_wide(how: str, value: float | None) -> None:
    scores = torch.tensor([1.0078125, 1.0078125], dtype=torch.bfloat16)
    paid = cut_scores(scores, torch.tensor([True, False]), how=how, value=value)
    assert paid.dtype == torch.float32
    if how == "penalty":
        assert_close(paid, torch.tensor([1.0078125, -0.9921875]), **EXACT)


def test_another_way_with_cut_responses_is_refused() -> None:
    with pytest.raises(ValueError, match="how='drop' is none of 'score', 'mask', 'penalty', 'constant', 'bootstrap'"):
        cut_scores(torch.zeros(1), torch.tensor([True]), how="drop")


@pytest.mark.parametrize(("how", "value"), [("score", 1.0), ("mask", 1.0), ("bootstrap", 1.0), ("penalty", None),
                                            ("constant", None)])
def test_value_belongs_to_penalty_and_constant(how: str, value: float | None) -> None:
    with pytest.raises(ValueError, match=rf"value={value} do not go together: penalty and constant need one"):
        cut_scores(torch.zeros(1), torch.tensor([True]), how=how, value=value)


# Two prompts: rows 0, 2 and 3 answer one, rows 1 and 4 the other. Sums over the response: 1, 4, 2, 6, 8.
GROUPED_MASK = torch.tensor([[True, True, False], [False, True, False], [True, True, True], [False, False, True],
                             [True, True, False]])
GROUPED_REWARDS = [[3, -2, NAN], [NAN, 4, NAN], [0, 1, 1], [NAN, NAN, 6], [-1, 9, NAN]]
GROUPS = torch.tensor([7, 2, 7, 7, 2])


def on_each_token(*advantages: float) -> torch.Tensor:
    return torch.where(GROUPED_MASK, float64(list(advantages))[:, None], 0.0)


def test_rloo_by_hand() -> None:
    rewards = float64(GROUPED_REWARDS).requires_grad_()
    advantages = rloo(rewards, GROUPED_MASK, GROUPS)
    # 1 - (2 + 6)/2, 2 - (1 + 6)/2, 6 - (1 + 2)/2; and 4 - 8, 8 - 4.
    assert_close(advantages, on_each_token(-3, -4, -1.5, 4.5, 4), **FLOAT64)
    assert not advantages.requires_grad


def test_grpo_by_hand() -> None:
    rewards = float64(GROUPED_REWARDS).requires_grad_()
    # Means 3 and 6. Variances (4 + 1 + 9) / 2 = 7 and (4 + 4) / 1 = 8.
    seven, eight = 7**0.5 + 1e-4, 8**0.5 + 1e-4
    scaled = grpo(rewards, GROUPED_MASK, GROUPS)
    assert_close(scaled, on_each_token(-2 / seven, -2 / eight, -1 / seven, 3 / seven, 2 / eight), **FLOAT64)
    assert_close(grpo(rewards, GROUPED_MASK, GROUPS, scale=False), on_each_token(-2, -2, -1, 3, 2), **FLOAT64)
    assert not scaled.requires_grad


def test_equal_rewards_have_no_advantage() -> None:
    rewards, mask = torch.full((2, 2), 0.5), torch.ones(2, 2, dtype=torch.bool)
    for estimator in (rloo, grpo):
        assert_close(estimator(rewards, mask, torch.tensor([0, 0])), torch.zeros(2, 2), **EXACT)


@given(seeds, st.lists(st.integers(2, 4), min_size=1, max_size=3), st.booleans())
def test_group_estimators_agree_with_the_reference(seed: int, sizes: list[int], scale: bool) -> None:
    order = noise(seed, sum(sizes)).argsort()
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[order]
    rewards = noise(seed + 1, len(groups), 5)
    mask = torch.arange(5) < noise(seed + 2, len(groups), 1).abs() * 3
    rows = rows_of(rewards, mask)
    rewards = rewards.masked_fill(~mask, NAN)
    numbers = groups.tolist()
    for result, expected in ((rloo(rewards, mask, groups), truth.rloo(rows, numbers)),
                             (grpo(rewards, mask, groups, scale=scale), truth.grpo(rows, numbers, scale=scale))):
        assert result.dtype == torch.float64
        assert_close(result, torch.where(mask, float64(expected)[:, None], 0.0), **FLOAT64)


def test_rloo_baseline_leaves_the_policy_gradient_unbiased() -> None:
    """Two responses drawn from p over three tokens, all nine pairs: the mean of A grad log p is the gradient of the
    mean reward, p_i (r_i - mean)."""
    p, r = [0.5, 0.3, 0.2], [1.0, -2.0, 4.0]
    mean_reward = sum(a * b for a, b in zip(p, r, strict=True))
    gradient = torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            advantages = rloo(float64([[r[i]], [r[j]]]), torch.ones(2, 1, dtype=torch.bool), torch.tensor([0, 0]))
            for token, advantage in ((i, advantages[0, 0]), (j, advantages[1, 0])):
                score = torch.eye(3, dtype=torch.float64)[token] - float64(p)
                gradient += p[i] * p[j] * advantage * score / 2
    assert_close(gradient, float64([a * (b - mean_reward) for a, b in zip(p, r, strict=True)]), **FLOAT64)


@pytest.mark.parametrize("estimator", [rloo, grpo])
def test_a_prompt_with_one_response_has_no_baseline(estimator) -> None:
    rewards = torch.zeros(3, 1)
    with pytest.raises(ValueError, match="a prompt with a single response has no baseline: sample two or more"):
        estimator(rewards, rewards == 0, torch.tensor([0, 0, 1]))


def test_reinforce_plus_plus_by_hand() -> None:
    # gamma 0.5: to come 4 + 0.5*2 = 5 and 2; and 5. Mean 4, biased variance (1 + 4 + 1) / 3 = 2.
    rewards, mask = float64([[4, 2, NAN], [NAN, 5, NAN]]), torch.tensor([[True, True, False], [False, True, False]])
    root = (2 + 1e-6) ** 0.5
    expected = float64([[1 / root, -2 / root, 0], [0, 1 / root, 0]])
    assert_close(reinforce_plus_plus(rewards.requires_grad_(), mask, gamma=0.5), expected, **FLOAT64)
    assert not reinforce_plus_plus(rewards, mask, gamma=0.5).requires_grad


@given(response_masks(), seeds, st.sampled_from([0.3, 1.0]))
def test_reinforce_plus_plus_agrees_with_the_reference(mask: torch.Tensor, seed: int, gamma: float) -> None:
    rewards = noise(seed, *mask.shape)
    to_come = [truth.discounted_returns(row, gamma) for row in rows_of(rewards, mask)]
    expected = padded(masked_truth.whiten(to_come, center=True), mask)
    assert_close(reinforce_plus_plus(rewards.masked_fill(~mask, NAN), mask, gamma=gamma), expected, **FLOAT64)


SHAPED_MASK = torch.tensor([[True, True, False], [False, True, False]])
SHAPED = [[1, 5, NAN], [NAN, 3, NAN]]
ROOT = (8 / 3 + 1e-6) ** 0.5


@pytest.mark.parametrize(("normalise", "clip", "expected"), [
    # Mean 3, deviations -2, 2, 0, biased variance 8/3: scaled to -1.22, 1.22, 0 before the clip acts.
    (False, None, [[1, 5, 0], [0, 3, 0]]),
    (False, 2.0, [[1, 2, 0], [0, 2, 0]]),
    (True, None, [[-2 / ROOT, 2 / ROOT, 0], [0, 0, 0]]),
    (True, 0.5, [[-0.5, 0.5, 0], [0, 0, 0]]),
])
def test_each_switch_shapes_advantages_alone(normalise: bool, clip: float | None, expected: list) -> None:
    advantages = float64(SHAPED).requires_grad_()
    shaped = shaped_advantages(advantages, SHAPED_MASK, normalise=normalise, clip=clip)
    assert_close(shaped, float64(expected), **FLOAT64)
    assert not shaped.requires_grad


@pytest.mark.parametrize("normalise", [False, True])
def test_shaped_advantages_are_wide(normalise: bool) -> None:
    advantages = torch.ones(2, 3, dtype=torch.bfloat16)
    assert shaped_advantages(advantages, SHAPED_MASK, normalise=normalise, clip=1.0).dtype == torch.float32


@pytest.mark.parametrize("clip", [0.0, -1.0])
def test_advantage_clip_must_be_positive(clip: float) -> None:
    with pytest.raises(ValueError, match=r"clip=.* of the advantages must be positive; none turns it off"):
        shaped_advantages(torch.zeros(1, 1), torch.ones(1, 1) > 0, normalise=False, clip=clip)


@pytest.mark.parametrize(("kl", "expected"), [
    # Target 4, 50 of 100 responses: half of the error of -10%, of +10%, of no error, and of errors held at 20%.
    (3.6, 2 * 0.95), (4.4, 2 * 1.05), (4.0, 2.0), (40.0, 2 * 1.1), (0.0, 2 * 0.9), (-4.0, 2 * 0.9),
])
def test_adapted_kl_coef_by_hand(kl: float, expected: float) -> None:
    found = adapted_kl_coef(2.0, kl, target=4.0, horizon=100, n_responses=50)
    assert found == pytest.approx(expected, rel=RELATIVE64)


@given(st.floats(0.01, 2), st.floats(-1, 10), st.floats(0.1, 5), st.integers(20, 1000), st.integers(1, 99))
def test_adapted_kl_coef_agrees_with_the_reference(
    coef: float, kl: float, target: float, horizon: int, n_responses: int,
) -> None:
    found = adapted_kl_coef(coef, kl, target=target, horizon=horizon, n_responses=n_responses)
    assert found == pytest.approx(truth.kl_coef(coef, kl, target, horizon, n_responses), rel=RELATIVE64)
    assert found > 0


@pytest.mark.parametrize(("target", "horizon"), [(0.0, 10), (-1.0, 10), (1.0, 0), (1.0, -10)])
def test_target_and_horizon_must_be_positive(target: float, horizon: int) -> None:
    with pytest.raises(ValueError, match=r"target=.* and horizon=.* must both be positive"):
        adapted_kl_coef(0.1, 1.0, target=target, horizon=horizon, n_responses=1)


def test_a_short_horizon_cannot_turn_the_coefficient_negative() -> None:
    with pytest.raises(ValueError, match=r"horizon=10 is too short for 50 responses per phase: five horizons or more"):
        adapted_kl_coef(0.1, 0.0, target=1.0, horizon=10, n_responses=50)
    assert adapted_kl_coef(0.1, 0.0, target=1.0, horizon=10, n_responses=49) > 0
    # The shortest: the whole error of -20% at once.
    assert adapted_kl_coef(1.0, 0.0, target=1.0, horizon=1, n_responses=1) == pytest.approx(0.8, rel=RELATIVE64)
