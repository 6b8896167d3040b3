"""Agreement beyond chance, against the worked examples of the papers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import agreement as truth
from tolerances import RELATIVE64, THREE_DECIMALS

from keel.functional.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha

NAN = float("nan")

COHEN = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]
"""Cohen 1960, Table 2: how often one psychologist gave the answer of the row and the other that of the column."""

FLEISS = [
    [0, 0, 0, 6, 0], [0, 3, 0, 0, 3], [0, 1, 4, 0, 1], [0, 0, 0, 0, 6], [0, 3, 0, 3, 0], [2, 0, 4, 0, 0],
    [0, 0, 4, 0, 2], [2, 0, 3, 1, 0], [2, 0, 0, 4, 0], [0, 0, 0, 0, 6], [1, 0, 0, 5, 0], [1, 1, 0, 4, 0],
    [0, 3, 3, 0, 0], [1, 0, 0, 5, 0], [0, 2, 0, 3, 1], [0, 0, 5, 0, 1], [3, 0, 0, 1, 2], [5, 1, 0, 0, 0],
    [0, 2, 0, 4, 0], [1, 0, 2, 0, 3], [0, 0, 0, 0, 6], [0, 1, 0, 5, 0], [0, 2, 0, 1, 3], [2, 0, 0, 4, 0],
    [1, 0, 0, 4, 1], [0, 5, 0, 1, 0], [4, 0, 0, 0, 2], [0, 2, 0, 4, 0], [1, 0, 5, 0, 0], [0, 0, 0, 0, 6],
]
"""Fleiss 1971, Table 1: six psychiatrists, thirty patients; depression, personality disorder, schizophrenia, neurosis,
other."""

KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]
"""Krippendorff 2011, section C: four observers, twelve units, some not observed."""


def near(expected: float | None) -> object:
    return expected if expected is None else pytest.approx(expected, rel=RELATIVE64, abs=RELATIVE64)


def ratings(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_cohens_own_example() -> None:
    pairs = [(a, b) for a, row in enumerate(COHEN) for b, times in enumerate(row) for _ in range(times)]
    first, second = torch.tensor(pairs).T
    # Observed 140 / 200, by chance (120 * 100 + 60 * 60 + 20 * 40) / 200^2 = 0.41.
    kappa = cohen_kappa(first, second)
    assert kappa == pytest.approx((0.70 - 0.41) / (1 - 0.41), rel=RELATIVE64)
    assert kappa == pytest.approx(0.492, abs=THREE_DECIMALS)


def test_fleiss_own_example() -> None:
    assert fleiss_kappa(torch.tensor(FLEISS)) == pytest.approx(0.430, abs=THREE_DECIMALS)


def test_krippendorffs_own_example() -> None:
    assert krippendorff_alpha(ratings(KRIPPENDORFF).T) == pytest.approx(0.743, abs=THREE_DECIMALS)


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 2)), min_size=1, max_size=12))
def test_cohen_agrees_with_the_reference(pairs: list[tuple[int, int]]) -> None:
    first, second = torch.tensor(pairs).T
    expected = truth.cohen_kappa(first.tolist(), second.tolist())
    assert cohen_kappa(first, second) == near(expected)
    assert cohen_kappa(second, first) == cohen_kappa(first, second)
    renamed = {-1: 7, 0: 3, 1: 0, 2: 5}
    other = cohen_kappa(*(torch.tensor([renamed[answer] for answer in side.tolist()]) for side in (first, second)))
    assert other == near(expected)


@given(st.integers(2, 4), st.data())
def test_fleiss_agrees_with_the_reference(n: int, data: st.DataObject) -> None:
    answers = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=1, max_size=8))
    counts = [[item.count(c) for c in range(4)] for item in answers]
    expected = truth.fleiss_kappa(counts)
    assert fleiss_kappa(torch.tensor(counts)) == near(expected)


@given(st.integers(1, 4), st.data())
def test_krippendorff_agrees_with_the_reference(n: int, data: st.DataObject) -> None:
    answer = st.sampled_from([NAN, 0.0, 1.0, 2.5])
    rows = data.draw(st.lists(st.lists(answer, min_size=n, max_size=n), min_size=1, max_size=8))
    expected = truth.krippendorff_alpha(rows)
    alpha = krippendorff_alpha(ratings(rows))
    assert alpha == near(expected)
    # The order of the annotators, one who rated nothing, and an item that one alone rated say nothing.
    assert krippendorff_alpha(ratings(rows).flip(1)) == alpha
    assert krippendorff_alpha(ratings([[*row, NAN] for row in rows])) == alpha
    assert krippendorff_alpha(ratings([*rows, [9.0, *[NAN] * (n - 1)]])) == alpha


def test_two_complete_annotators_are_treated_alike_but_for_the_size_of_the_sample() -> None:
    # Items 00, 11, 01. Cohen: 2/3 observed, by chance 2/3 * 1/3 + 1/3 * 2/3 = 4/9: 2/5. Fleiss: chance 1/2: 1/3.
    # Krippendorff: 1/3 unlike, by chance 3 * 3 / (6 * 5) twice = 3/5: 4/9.
    assert cohen_kappa(torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1])) == pytest.approx(2 / 5, rel=RELATIVE64)
    assert fleiss_kappa(torch.tensor([[2, 0], [0, 2], [1, 1]])) == pytest.approx(1 / 3, rel=RELATIVE64)
    assert krippendorff_alpha(ratings([[0, 0], [1, 1], [0, 1]])) == pytest.approx(4 / 9, rel=RELATIVE64)


def test_full_agreement_is_one() -> None:
    same = torch.tensor([0, 3, 3])
    assert cohen_kappa(same, same) == fleiss_kappa(torch.tensor([[3, 0], [0, 3]])) == 1
    assert krippendorff_alpha(ratings([[0, 0, 0], [1, NAN, 1]])) == 1


def test_one_answer_alone_says_nothing() -> None:
    same = torch.tensor([4, 4])
    assert cohen_kappa(same, same) is None
    assert cohen_kappa(same[:0], same[:0]) is None
    assert fleiss_kappa(torch.tensor([[0, 3], [0, 3]])) is None
    assert krippendorff_alpha(ratings([[2, 2], [2, NAN], [NAN, NAN]])) is None
    # Two answers, but never two to one item.
    assert krippendorff_alpha(ratings([[1, NAN], [2, NAN]])) is None


@pytest.mark.parametrize("counts", [[[2, 0], [1, 2]], [[1, 0], [0, 1]], [[3, 1], [1, 1]]])
def test_unequal_or_single_annotators_are_refused(counts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="two or more annotators each, and equally many: otherwise use krip"):
        fleiss_kappa(torch.tensor(counts))
