"""Learning-rate factors against their definition, step by step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import schedule as truth
from tolerances import RELATIVE64

from keel.train.schedule import factor

KINDS = ("constant", "linear", "cosine", "inverse_sqrt")


@given(st.sampled_from(KINDS), st.integers(0, 6), st.integers(1, 20), st.sampled_from([0.0, 0.1, 1.0]))
def test_factor_agrees_with_the_reference(kind: str, warmup: int, total: int, floor: float) -> None:
    for step in range(1, total + 5):
        expected = truth.factor(step, kind=kind, warmup=warmup, total=total, floor=floor)
        assert factor(step, kind=kind, warmup=warmup, total=total, floor=floor) == pytest.approx(
            expected, rel=RELATIVE64)


def test_factor_by_hand() -> None:
    def at(step: int, kind: str) -> float:
        return factor(step, kind=kind, warmup=4, total=12, floor=0.3)

    # Warm-up: 1/4 is held at the floor of 0.3, then 2/4, 3/4, 4/4, whatever follows.
    for kind in KINDS:
        assert [at(step, kind) for step in (1, 2, 3, 4)] == [0.3, 0.5, 0.75, 1.0]
    # Half way from 4 to 12 is 8: (1 + 0.3) / 2 for both falling kinds; sqrt(4 / 16) = 1/2 has no floor before 16.
    assert at(8, "linear") == pytest.approx(0.65, rel=RELATIVE64)
    assert at(8, "cosine") == pytest.approx(0.65, rel=RELATIVE64)
    for kind in ("linear", "cosine"):
        assert [at(12, kind), at(99, kind)] == pytest.approx([0.3, 0.3], rel=RELATIVE64)
    assert at(16, "inverse_sqrt") == 0.5
    assert at(99, "constant") == 1.0
