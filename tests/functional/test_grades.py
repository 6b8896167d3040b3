"""Grades on one scale and back, several attributes as one score, and R2."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from references import grades as truth
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT64
from torch.testing import assert_close

from keel.functional.grades import determination, grade_moments, scalarised_head, standardised, unstandardised

NAN = float("nan")


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_moments_by_hand() -> None:
    # 1, 3: mean 2, std 1; 4 alone: mean 4, std 0.
    mean, std = grade_moments(float64([[1, 4], [3, NAN]]), torch.tensor([[True, True], [True, False]]))
    assert_close(mean, float64([2, 4]), **EXACT)
    assert_close(std, float64([1, 0]), **EXACT)


@given(seeds, st.lists(st.booleans(), min_size=3, max_size=7))
def test_moments_agree_with_the_reference_and_standardise(seed: int, there: list[bool]) -> None:
    x, present = noise(seed, len(there) + 2, 1, scale=3.0), torch.tensor([[flag] for flag in [True, True, *there]])
    grades = torch.where(present, x, NAN)
    mean, std = grade_moments(grades.requires_grad_(), present)
    listed = [value if flag else None for value, flag in zip(x[:, 0].tolist(), present[:, 0].tolist(), strict=True)]
    assert_close(torch.cat([mean, std]), float64(list(truth.moments(listed))), **FLOAT64)
    assert not mean.requires_grad and not std.requires_grad
    z = standardised(grades, mean, std)
    again = grade_moments(z, present)
    assert_close(torch.cat(again), float64([0, 1]), **FLOAT64)
    assert_close(unstandardised(z, mean, std)[present], grades[present], **FLOAT64)


def test_moments_are_float64() -> None:
    mean, std = grade_moments(torch.tensor([[1.0], [2.0]]), torch.tensor([[True], [True]]))
    assert (mean.dtype, std.dtype) == (torch.float64, torch.float64)


@given(seeds, st.booleans())
def test_the_joined_head_is_the_weighted_sum_of_attributes(seed: int, with_bias: bool) -> None:
    weight, hidden, coefs, mean = noise(seed, 3, 4), noise(seed + 1, 4), noise(seed + 2, 3), noise(seed + 3, 3)
    std, bias = noise(seed + 4, 3).exp(), noise(seed + 5, 3) if with_bias else None
    joined, constant = scalarised_head(weight, bias, coefs, mean=mean, std=std)
    predicted = weight @ hidden + (bias if bias is not None else 0.0)
    expected = truth.weighted_sum(predicted.tolist(), coefs.tolist(), mean.tolist(), std.tolist())
    assert joined.shape == (1, 4) and constant.shape == (1,)
    assert_close(joined @ hidden + constant, float64([expected]), **FLOAT64)


def test_the_joined_head_is_computed_in_float64() -> None:
    narrow = [torch.tensor(values, dtype=torch.float32) for values in ([[0.1], [0.2]], [0.3, 0.7])]
    weight, coefs = narrow
    ones = torch.ones(2, dtype=torch.float64)
    joined, constant = scalarised_head(weight, coefs, coefs, mean=ones, std=ones)
    assert (joined.dtype, constant.dtype) == (torch.float64, torch.float64)
    assert_close(joined, (coefs.double() @ weight.double())[None], **EXACT)


def test_determination_by_hand() -> None:
    # Errors 1 and 0 against a guess that is off by 1 and 3: 1 - 1 / 10; a perfect prediction; the guess itself.
    small = determination(float64([0.1, 0]), float64([0.1, 0.2]), guess=0.0)
    assert_close(small, float64(1 - 0.04 / 0.05), **FLOAT64)
    target = float64([2, 4])
    for predicted, expected in (([1, 4], 0.9), ([2, 4], 1.0), ([1, 1], 0.0)):
        assert_close(determination(float64(predicted), target, guess=1.0), float64(expected), **FLOAT64)
    assert_close(determination(float64([3, 5]), float64([1, 1]), guess=1.0), float64(0), **EXACT)


@given(seeds)
def test_determination_agrees_with_the_reference(seed: int) -> None:
    predicted, target = noise(seed, 6).requires_grad_(), noise(seed + 1, 6).requires_grad_()
    found = determination(predicted, target, guess=0.3)
    assert_close(found, float64(truth.determination(predicted.tolist(), target.tolist(), 0.3)), **FLOAT64)
    assert not found.requires_grad
    assert determination(predicted.float(), target.float(), guess=0.3).dtype == torch.float64
