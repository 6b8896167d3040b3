"""Bradley-Terry and the centring term."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import preference as truth
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT32, FLOAT64
from torch.testing import assert_close

from keel.functional.preference import bradley_terry, centring


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
