"""How sure a reward model may be."""

import math

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from references import calibration as truth
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT64, RELATIVE64, TEMPERATURE
from torch.testing import assert_close

from keel.functional.calibration import (
    brier,
    equal_mass_calibration_error,
    expected_calibration_error,
    fit_temperature,
    nll,
    reliability_table,
)

EVERY_ERROR = [expected_calibration_error, equal_mass_calibration_error]


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_calibration_by_hand() -> None:
    # Confidence 0.75 (bin 5 of 10) twice, right once: |0.75 - 0.5|. Confidence 0.9 (bin 8) twice, right twice: 0.1.
    margins = float64([math.log(3), -math.log(3), math.log(9), math.log(9)])
    assert_close(expected_calibration_error(margins), float64(0.5 * 0.25 + 0.5 * 0.1), **FLOAT64)


def test_gaps_cancel_inside_a_bin_only() -> None:
    # Confidences 0.6 (right) and 0.9 (wrong): gaps -0.4 and +0.9. One bin: 0.5 / 2. Ten bins: 1.3 / 2.
    margins = float64([math.log(1.5), -math.log(9)])
    assert_close(expected_calibration_error(margins, n_bins=1), float64(0.25), **FLOAT64)
    assert_close(expected_calibration_error(margins), float64(0.65), **FLOAT64)


def test_a_bin_holds_its_right_edge() -> None:
    # 0.75 (wrong) closes the lower of two bins, where 0.6 (right) is: gaps +0.75 - 0.4 cancel; 0.8 (right) is above.
    margins = float64([-math.log(3), math.log(1.5), math.log(4)])
    assert torch.sigmoid(margins.abs())[0] == 0.75
    assert_close(expected_calibration_error(margins, n_bins=2), float64((0.35 + 0.2) / 3), **FLOAT64)


def test_calibration_at_the_ends() -> None:
    # Certain and right: no gap. A tie states 0.5 and is wrong. Nothing at all: 0.
    assert_close(expected_calibration_error(float64([1e4, 800.0])), float64(0), **EXACT)
    assert_close(expected_calibration_error(float64([0.0])), float64(0.5), **EXACT)
    # A tie and a right answer stated at 11/21 share the first bin: (1/2 - 0 + 11/21 - 1) / 2 = 1/84.
    assert_close(expected_calibration_error(float64([0.0, math.log(1.1)])), float64(1 / 84), **FLOAT64)
    assert_close(expected_calibration_error(float64([-1e4])), float64(1), **EXACT)
    assert_close(expected_calibration_error(torch.empty(0)), float64(0), **EXACT)
    # One margin alone is divided by one.
    assert_close(expected_calibration_error(float64([math.log(3)])), float64(0.25), **FLOAT64)


def test_calibration_carries_no_graph_and_works_in_float64() -> None:
    error = expected_calibration_error(torch.tensor([0.3, -1.0], requires_grad=True))
    assert error.dtype == torch.float64
    assert not error.requires_grad
    exact = expected_calibration_error(torch.tensor([1.5, -0.25]))
    assert_close(exact, float64(truth.expected_calibration_error([1.5, -0.25], 10)), **FLOAT64)


def test_ten_bins_are_the_default() -> None:
    # Confidences 0.52, 0.545, ..., 0.97, two per bin, right and wrong in turn: in other bins other neighbours cancel.
    margins = [(-1) ** i * math.log(p / (1 - p)) for i, p in enumerate(0.97 - 0.025 * i for i in range(19))]
    n9, n10, n11 = (truth.expected_calibration_error(margins, n_bins) for n_bins in (9, 10, 11))
    assert n10 not in (n9, n11)
    assert_close(expected_calibration_error(float64(margins)), float64(n10), **FLOAT64)


@given(seeds, st.integers(1, 30), st.integers(1, 12))
def test_calibration_agrees_with_the_reference(seed: int, n: int, n_bins: int) -> None:
    margins = noise(seed, n, scale=2.0)
    expected = truth.expected_calibration_error(margins.tolist(), n_bins)
    assert_close(expected_calibration_error(margins, n_bins=n_bins), float64(expected), **FLOAT64)


def test_equal_masses_by_hand() -> None:
    # Two bins of two: confidences 0.6 (right) and 0.75 (wrong), then 0.8 and 0.9 (both right); given out of order.
    margins = float64([math.log(4), math.log(1.5), math.log(9), -math.log(3)])
    assert_close(equal_mass_calibration_error(margins, n_bins=2), float64((0.35 + 0.3) / 4), **FLOAT64)


@given(st.lists(st.integers(-4, 4), max_size=30), st.integers(1, 12))
def test_equal_masses_agree_with_the_reference(margins: list[int], n_bins: int) -> None:
    x = float64(margins)
    error = equal_mass_calibration_error(x, n_bins=n_bins)
    assert_close(error, float64(truth.equal_mass_calibration_error(margins, n_bins)), **FLOAT64)
    if n_bins == 10:
        assert_close(equal_mass_calibration_error(x), error, **EXACT)


def test_ten_equal_masses_are_the_default() -> None:
    margins = noise(3, 40)
    n9, n10, n11 = (truth.equal_mass_calibration_error(margins.tolist(), n_bins) for n_bins in (9, 10, 11))
    assert n10 not in (n9, n11)
    assert_close(equal_mass_calibration_error(margins.requires_grad_()), float64(n10), **FLOAT64)


def test_the_table_by_hand() -> None:
    # 0.75 (wrong) closes the first of two bins, where 0.6 (right) is; nothing is above.
    rows = reliability_table(float64([-math.log(3), math.log(1.5)]), n_bins=2)
    assert rows[0] == {"low": 0.5, "high": 0.75, "count": 2, "confidence": pytest.approx(0.675, rel=RELATIVE64),
                       "accuracy": 0.5}
    assert rows[1] == {"low": 0.75, "high": 1.0, "count": 0, "confidence": None, "accuracy": None}


@given(seeds, st.integers(0, 30), st.integers(1, 12))
def test_the_table_agrees_with_the_reference_and_adds_up_to_the_error(seed: int, n: int, n_bins: int) -> None:
    margins = noise(seed, n, scale=2.0)
    rows = reliability_table(margins, n_bins=n_bins)
    found = [(row["count"], row["confidence"], row["accuracy"]) for row in rows]
    for row, expected in zip(found, truth.reliability(margins.tolist(), n_bins), strict=True):
        assert row == (pytest.approx(expected, rel=RELATIVE64) if expected[0] else expected)
    gaps = [count * abs(confidence - accuracy) for count, confidence, accuracy in found if count]
    assert float(expected_calibration_error(margins, n_bins=n_bins)) == pytest.approx(
        math.fsum(gaps) / max(n, 1), rel=RELATIVE64, abs=RELATIVE64)


def test_the_table_has_ten_bins_from_a_half_to_one() -> None:
    rows = reliability_table(torch.tensor([0.1, 9.0], requires_grad=True))
    assert [row["count"] for row in rows] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert [row["low"] for row in rows[1:]] == [row["high"] for row in rows[:-1]]


def test_a_fair_coin_and_a_sure_thing() -> None:
    # A coin: log 2 and 1/4. Certain and right: nothing. Certain and wrong by 1000 nats: 1000 and 1.
    for margins, lost, squared in (([0.0], math.log(2), 0.25), ([1e4], 0.0, 0.0), ([-1000.0], 1000.0, 1.0)):
        assert_close((nll(float64(margins)), brier(float64(margins))), (float64(lost), float64(squared)), **FLOAT64)
    # s(log 3) = 3/4: -log(3/4) and 1/16, and their mean with the coin.
    margins = float64([math.log(3), 0])
    assert_close(nll(margins), float64((math.log(4 / 3) + math.log(2)) / 2), **FLOAT64)
    assert_close(brier(margins), float64((1 / 16 + 1 / 4) / 2), **FLOAT64)


@given(seeds, st.integers(1, 9))
def test_proper_scores_agree_with_the_reference(seed: int, n: int) -> None:
    margins = noise(seed, n, scale=3.0).float().requires_grad_()
    for score, reference in ((nll, truth.nll), (brier, truth.brier)):
        found = score(margins)
        assert not found.requires_grad
        assert_close(found, float64(reference(margins.tolist())), **FLOAT64)


def test_a_temperature_by_hand() -> None:
    # Three of four pairs are right, all by 5: the best probability is 3/4 = s(log 3), so T = 5 / log 3.
    assert fit_temperature(float64([5, 5, 5, -5])) == pytest.approx(5 / math.log(3), rel=RELATIVE64)


@given(seeds, st.integers(4, 12))
def test_a_temperature_agrees_with_the_reference_and_never_hurts(seed: int, n: int) -> None:
    margins = noise(seed, n, scale=2.0) + 0.3
    fitted = fit_temperature(margins)
    expected = truth.temperature(margins.tolist())
    assert fitted == pytest.approx(expected, rel=TEMPERATURE)
    assert nll(margins / fitted) <= nll(margins)
    if not 0.01 < fitted < 100:
        reject()
    # Margins in other units have that temperature in those units, and what was divided by it needs none.
    assert fit_temperature(4 * margins) == pytest.approx(4 * fitted, rel=RELATIVE64)
    assert fit_temperature(margins / fitted) == pytest.approx(1.0, rel=RELATIVE64)


@pytest.mark.parametrize(("margins", "bound"), [
    ([1.0, 2.0], 1e-3), ([30.0, 700.0], 1e-3), ([0.0, 0.0], 1e-3), ([-1.0, 0.5], 1e3), ([-1.0], 1e3),
])
def test_a_temperature_stays_between_its_bounds(margins: list[float], bound: float) -> None:
    assert fit_temperature(float64(margins)) == pytest.approx(bound, rel=RELATIVE64)


def test_a_temperature_is_fitted_in_float64_and_without_a_graph() -> None:
    margins = torch.tensor([5.0, 5.0, 5.0, -5.0], requires_grad=True)
    assert fit_temperature(margins) == pytest.approx(5 / math.log(3), rel=RELATIVE64)


def test_a_temperature_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no margins: a temperature is fitted on held-out pairs, give some"):
        fit_temperature(torch.empty(0))


@pytest.mark.parametrize("error", EVERY_ERROR)
@given(seeds)
def test_an_error_is_a_share_and_knows_no_order(error: object, seed: int) -> None:
    margins = noise(seed, 20, scale=2.0)
    found = error(margins)
    assert 0 <= found <= 1
    assert_close(error(margins.flip(0)), found, **FLOAT64)
    assert_close(error(float64([1e4] * 7)), float64(0), **EXACT)
