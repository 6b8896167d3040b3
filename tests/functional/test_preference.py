"""Bradley-Terry, the centring term, rankings and grades."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import preference as truth
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT32, FLOAT64
from torch.testing import assert_close

from keel.functional.preference import (
    all_pairs,
    attribute_error,
    bradley_terry,
    centring,
    eps_sigmoid,
    plackett_luce,
)

NAN = float("nan")


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_bradley_terry_by_hand() -> None:
    chosen, rejected = float64([math.log(3), 0, 0]).requires_grad_(), float64([0, math.log(3), 0]).requires_grad_()
    loss, stats = bradley_terry(chosen, rejected)
    # sigmoid(log 3) = 3/4 and sigmoid(-log 3) = 1/4.
    assert_close(loss, float64([math.log(4 / 3), math.log(4), math.log(2)]), **FLOAT64)
    # A tie is wrong.
    assert_close(stats["accuracy"], float64([1, 0, 0]), **EXACT)
    assert_close(stats["margin"], float64([math.log(3), -math.log(3), 0]), **FLOAT64)
    loss.sum().backward()
    assert_close(chosen.grad, float64([-1 / 4, -3 / 4, -1 / 2]), **FLOAT64)
    assert_close(rejected.grad, float64([1 / 4, 3 / 4, 1 / 2]), **FLOAT64)


def test_margin_asks_for_more_and_leaves_the_stats_alone() -> None:
    # d = 2, m = 2 + log 3: x = -log 3, loss log 4; still an accurate pair with a gap of 2.
    loss, stats = bradley_terry(float64([5]), float64([3]), margin=float64([2 + math.log(3)]))
    assert_close(loss, float64([math.log(4)]), **FLOAT64)
    assert_close(stats["accuracy"], float64([1]), **EXACT)
    assert_close(stats["margin"], float64([2]), **EXACT)


def test_any_gap_above_zero_is_accurate() -> None:
    _, stats = bradley_terry(float64([1e-9, -1e-9]), float64([0, 0]))
    assert_close(stats["accuracy"], float64([1, 0]), **EXACT)


def test_soft_label_by_hand() -> None:
    # p = 0.75, x = log 3: 0.75 log(4/3) + 0.25 log 4; the gradient s(x) - p vanishes there.
    chosen = float64([math.log(3)]).requires_grad_()
    loss, _ = bradley_terry(chosen, float64([0]), label_prob=float64([0.75]))
    loss.sum().backward()
    assert_close(loss, float64([0.75 * math.log(4 / 3) + 0.25 * math.log(4)]), **FLOAT64)
    assert_close(chosen.grad, float64([0]), **FLOAT64)


def test_badly_wrong_pairs_keep_their_gradient() -> None:
    """Pitfall 1 of the spec: with an epsilon inside the log the gradient at d = -20 is dead; it must be -1 / B."""
    chosen = torch.full((4,), -20.0, requires_grad=True)
    loss, _ = bradley_terry(chosen, torch.zeros(4))
    loss.mean().backward()
    assert_close(chosen.grad, torch.full((4,), -0.25), **FLOAT32)
    far = float64([-1e4, 25, 1e4]).requires_grad_()
    loss, _ = bradley_terry(far, float64([0, 0, 0]))
    loss.sum().backward()
    assert_close(loss, float64([1e4, math.log1p(math.exp(-25)), 0]), **FLOAT64)
    assert_close(far.grad, float64([-1, -1 / (1 + math.exp(25)), 0]), **FLOAT64)


@given(seeds, st.booleans(), st.booleans(), st.sampled_from([1.0, 20.0]))
def test_bradley_terry_agrees_with_the_reference(seed: int, with_margin: bool, soft: bool, scale: float) -> None:
    chosen, rejected = noise(seed, 5, scale=scale).requires_grad_(), noise(seed + 1, 5, scale=scale).requires_grad_()
    margin = noise(seed + 2, 5) if with_margin else None
    label_prob = noise(seed + 3, 5).sigmoid() if soft else None
    loss, stats = bradley_terry(chosen, rejected, margin=margin, label_prob=label_prob)
    margins = margin.tolist() if margin is not None else [0.0] * 5
    probs = label_prob.tolist() if label_prob is not None else [1.0] * 5
    pairs = [truth.bradley_terry(*pair) for pair in
             zip(chosen.tolist(), rejected.tolist(), margins, probs, strict=True)]
    loss.sum().backward()
    slopes = float64([slope for _, slope in pairs])
    assert {loss.dtype, *(stat.dtype for stat in stats.values())} == {torch.float64}
    assert_close(loss, float64([value for value, _ in pairs]), **FLOAT64)
    assert_close(chosen.grad, slopes, **FLOAT64)
    assert_close(rejected.grad, -slopes, **FLOAT64)


@given(seeds)
def test_swapping_the_sides_and_the_label_changes_nothing(seed: int) -> None:
    chosen, rejected, margin = noise(seed, 5), noise(seed + 1, 5), noise(seed + 2, 5)
    p = noise(seed + 3, 5).sigmoid()
    here, _ = bradley_terry(chosen, rejected, margin=margin, label_prob=p)
    there, _ = bradley_terry(rejected, chosen, margin=-margin, label_prob=1 - p)
    assert_close(here, there, **FLOAT64)
    shifted, _ = bradley_terry(chosen + 3, rejected + 3, margin=margin, label_prob=p)
    assert_close(here, shifted, **FLOAT64)
    plain, _ = bradley_terry(chosen, rejected)
    certain, _ = bradley_terry(chosen, rejected, margin=0 * margin, label_prob=torch.ones_like(p))
    assert_close(plain, certain, **FLOAT64)
    wrong, _ = bradley_terry(chosen, rejected, label_prob=torch.zeros_like(p))
    assert_close(wrong, bradley_terry(rejected, chosen)[0], **FLOAT64)


@pytest.mark.parametrize("which", ["margin", "label_prob"])
def test_margin_and_label_are_targets(which: str) -> None:
    target = float64([0.5]).requires_grad_()
    loss, _ = bradley_terry(float64([1]), float64([0]), **{which: target})
    assert not loss.requires_grad


def test_narrow_margin_and_label_are_widened_before_use() -> None:
    # 1 - 0.00390625 needs eight bits and a half: bfloat16 would round it to 1 and lose the soft label.
    p = torch.tensor([0.00390625 / 2], dtype=torch.bfloat16)
    loss, _ = bradley_terry(torch.tensor([4.0]), torch.tensor([0.0]), label_prob=p)
    expected, _ = truth.bradley_terry(4.0, 0.0, 0.0, 0.00390625 / 2)
    assert_close(loss, torch.tensor([expected]), **FLOAT32)
    narrow = torch.zeros(1, dtype=torch.bfloat16)
    loss, stats = bradley_terry(narrow, narrow, margin=narrow)
    assert {loss.dtype, *(stat.dtype for stat in stats.values())} == {torch.float32}


def test_centring_by_hand() -> None:
    chosen, rejected = float64([1, 2]).requires_grad_(), float64([-1, 3]).requires_grad_()
    loss = centring(chosen, rejected)
    loss.sum().backward()
    # (1 - 1)^2 = 0 and (2 + 3)^2 = 25 with slope 10.
    assert_close(loss, float64([0, 25]), **EXACT)
    assert_close(chosen.grad, float64([0, 10]), **EXACT)
    assert_close(rejected.grad, float64([0, 10]), **EXACT)


@given(seeds)
def test_centring_agrees_with_the_reference(seed: int) -> None:
    chosen, rejected = noise(seed, 4).requires_grad_(), noise(seed + 1, 4)
    loss = centring(chosen, rejected)
    loss.sum().backward()
    pairs = [truth.centring(a, b) for a, b in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    assert_close(loss, float64([value for value, _ in pairs]), **FLOAT64)
    assert_close(chosen.grad, float64([slope for _, slope in pairs]), **FLOAT64)


def test_centring_is_wide() -> None:
    narrow = torch.tensor([1.0], dtype=torch.bfloat16)
    assert centring(narrow, narrow).dtype == torch.float32
    # 1 + 1/256 + 1 is not a bfloat16 number.
    assert_close(centring(torch.tensor([1.0]).bfloat16(), torch.tensor([0.00390625]).bfloat16()),
                 torch.tensor([1.00390625**2]), **FLOAT32)


@given(seeds, st.sampled_from([1.0, 20.0]))
def test_eps_sigmoid_agrees_with_the_reference(seed: int, scale: float) -> None:
    chosen, rejected = noise(seed, 5, scale=scale).requires_grad_(), noise(seed + 1, 5, scale=scale).requires_grad_()
    loss = eps_sigmoid(chosen, rejected)
    loss.sum().backward()
    pairs = [truth.eps_sigmoid(a, b) for a, b in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    slopes = float64([slope for _, slope in pairs])
    assert_close(loss, float64([value for value, _ in pairs]), **FLOAT64)
    assert_close((chosen.grad, rejected.grad), (slopes, -slopes), **FLOAT64)


def test_eps_sigmoid_has_the_three_faults_it_is_kept_for() -> None:
    far = float64([-1e4, -20, 40]).requires_grad_()
    loss = eps_sigmoid(far, torch.zeros_like(far))
    loss.sum().backward()
    # Capped at -log(1e-5), below 0 at the other end, and next to no push on a pair that is wrong by 20.
    assert_close(loss[[0, 2]], float64([-math.log(1e-5), -math.log1p(1e-5)]), **FLOAT64)
    assert far.grad[0] == 0
    assert_close(far.grad[1], float64(-1 / (1 + 1e-5 * math.exp(20)) / (1 + math.exp(-20))), **FLOAT64)


def test_a_pair_widens_either_side_of_eps_sigmoid() -> None:
    one, small = torch.tensor([1.0]).bfloat16(), torch.tensor([1 / 256]).bfloat16()
    expected, _ = truth.eps_sigmoid(1.0, 1 / 256)
    assert_close(eps_sigmoid(one, small), torch.tensor([expected]), **FLOAT32)


def ranking(present: list[int], tied: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([present], dtype=torch.bool), torch.tensor([tied], dtype=torch.bool)


def test_plackett_luce_by_hand() -> None:
    scores = float64([[math.log(3), math.log(2), 0.0, NAN]]).requires_grad_()
    loss = plackett_luce(scores, *ranking([1, 1, 1, 0], [0, 0, 0, 0]))
    loss.sum().backward()
    # Weights 3, 2, 1: the best is picked with 3/6, then the second with 2/3.
    assert_close(loss, float64([math.log(6 / 3) + math.log(3 / 2)]), **FLOAT64)
    # p - 1 where picked: 3/6 - 1; 2/6 + 2/3 - 1; 1/6 + 1/3.
    assert_close(scores.grad, float64([[-1 / 2, 0, 1 / 2, 0]]), **FLOAT64)


def test_a_tie_averages_both_orders_by_hand() -> None:
    scores = float64([[math.log(3), math.log(2), 0.0]])
    # Weights 3, 2, 1 with a tie between the second and the third: (2/3 and 1/3)'s mean of -log after log 2.
    loss = plackett_luce(scores, *ranking([1, 1, 1], [0, 0, 1]))
    assert_close(loss, float64([math.log(2) + (math.log(3 / 2) + math.log(3)) / 2]), **FLOAT64)
    swapped = plackett_luce(scores[:, [0, 2, 1]], *ranking([1, 1, 1], [0, 0, 1]))
    assert_close(swapped, loss, **FLOAT64)


@given(seeds, st.integers(1, 6), st.integers(0, 3), st.data())
def test_rankings_agree_with_the_reference(seed: int, n: int, padding: int, data: st.DataObject) -> None:
    tied = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    scores = noise(seed, 1, n)
    shown = torch.cat([scores, torch.full((1, padding), NAN, dtype=torch.float64)], 1)
    # A tie with nobody is none: the first has nobody before it, and padding is nobody.
    masks = ranking([1] * n + [0] * padding, [int(tie) for tie in tied] + [1] * padding)
    level = truth.levels(tied)
    blocks = [[i for i in range(n) if level[i] == which] for which in range(level[-1] + 1)]
    expected = {plackett_luce: truth.tied_plackett_luce(scores[0].tolist(), blocks),
                all_pairs: truth.all_pairs(scores[0].tolist(), level)}
    for function, (value, slopes) in expected.items():
        leaf = shown.clone().requires_grad_()
        loss = function(leaf, *masks)
        loss.sum().backward()
        assert_close(loss, float64([value]), **FLOAT64)
        assert_close(leaf.grad, float64([slopes + [0.0] * padding]), **FLOAT64)


@given(seeds)
def test_two_responses_are_bradley_terry(seed: int) -> None:
    scores = noise(seed, 4, 2, scale=3.0)
    expected, _ = bradley_terry(scores[:, 0], scores[:, 1])
    no_ties = torch.zeros(4, 2, dtype=torch.bool)
    for function in (plackett_luce, all_pairs):
        assert_close(function(scores, ~no_ties, no_ties), expected, **FLOAT64)
        assert_close(function(scores + 7, ~no_ties, no_ties), expected, **FLOAT64)


def test_all_pairs_by_hand() -> None:
    scores = float64([[math.log(3), 0.0, 0.0, NAN], [1.0, 2.0, NAN, NAN]]).requires_grad_()
    present = torch.tensor([[True, True, True, False], [True, True, False, False]])
    tied = torch.tensor([[False, False, True, False], [False, True, False, False]])
    loss = all_pairs(scores, present, tied)
    loss.sum().backward()
    # Two pairs of weights 3 to 1, the tied pair is out; then a ranking that is one tie.
    assert_close(loss, float64([math.log(4 / 3), 0]), **FLOAT64)
    assert_close(scores.grad, float64([[-1 / 4, 1 / 8, 1 / 8, 0], [0, 0, 0, 0]]), **FLOAT64)


@pytest.mark.parametrize("function", [plackett_luce, all_pairs])
def test_an_empty_ranking_and_a_single_response_cost_nothing(function: Callable[..., torch.Tensor]) -> None:
    scores = torch.tensor([[NAN, NAN], [4.0, NAN]], requires_grad=True)
    present = torch.tensor([[False, False], [True, False]])
    loss = function(scores, present, torch.zeros_like(present))
    loss.sum().backward()
    assert_close((loss, scores.grad), (torch.zeros(2), torch.zeros(2, 2)), **EXACT)


def test_grades_by_hand() -> None:
    predicted = float64([[1, 2, NAN], [5, 0, 0]]).requires_grad_()
    target = float64([[3, NAN, 0], [4, 0, 1]]).requires_grad_()
    loss = attribute_error(predicted, target, torch.tensor([[True, False, False], [True, True, True]]))
    loss.sum().backward()
    # (1 - 3)^2; (5 - 4)^2 + 0 + (0 - 1)^2. Slopes 2 (p - t); what is absent pushes nothing, even where it is NaN.
    assert_close(loss, float64([4, 2]), **EXACT)
    assert_close(predicted.grad, float64([[-4, 0, 0], [2, 0, -2]]), **EXACT)
    assert target.grad is None


@given(seeds)
def test_grades_agree_with_the_reference(seed: int) -> None:
    predicted, target, present = noise(seed, 3, 4).requires_grad_(), noise(seed + 1, 3, 4), noise(seed + 2, 3, 4) > 0
    loss = attribute_error(predicted, target, present)
    loss.sum().backward()
    rows = [truth.attribute_error(*row) for row in
            zip(predicted.tolist(), target.tolist(), present.tolist(), strict=True)]
    assert_close(loss, float64([value for value, _ in rows]), **FLOAT64)
    assert_close(predicted.grad, float64([slopes for _, slopes in rows]), **FLOAT64)
