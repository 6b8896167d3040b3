"""Agreement of labellings against scikit-learn, and words that tell two piles apart by hand."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tolerances import FLOAT64, RELATIVE64
from torch import Tensor
from torch.testing import assert_close

from keel.functional.clusters import adjusted_rand, normalised_information, word_contrast

labels = st.lists(st.tuples(st.integers(-1, 3), st.integers(5, 8)), min_size=1, max_size=12)
both = pytest.mark.parametrize("measure", [adjusted_rand, normalised_information])


def column(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_rand_of_six_things_by_hand() -> None:
    # Cells 2, 1 and 1, 2: two pairs together; A = B = 6, C(6, 2) = 15, E = 36 / 15; (2 - 2.4) / (6 - 2.4) = -1/9.
    assert adjusted_rand(column([0, 0, 0, 1, 1, 1]), column([4, 4, 2, 4, 2, 2])) == pytest.approx(
        -1 / 9, rel=RELATIVE64)


def test_information_of_four_things_by_hand() -> None:
    # H_a = log 2; b splits 3 to 1; cells 2, 0, 1, 1: H_ab = 1.5 log 2.
    h_b = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = (math.log(2) + h_b - 1.5 * math.log(2)) / ((math.log(2) + h_b) / 2)
    assert normalised_information(column([0, 0, 1, 1]), column([0, 0, 0, 1])) == pytest.approx(expected, rel=RELATIVE64)


@both
def test_names_do_not_matter(measure) -> None:
    assert measure(column([0, 0, 1, 2, 2]), column([9, 9, 4, -7, -7])) == pytest.approx(1.0, rel=RELATIVE64)


@both
def test_everything_alone_in_both_is_the_same_partition(measure) -> None:
    assert measure(column([0, 1, 2]), column([5, 3, 4])) == pytest.approx(1.0, rel=RELATIVE64)


@both
@pytest.mark.parametrize("values", [[], [3], [3, 3, 3]])
def test_labellings_that_tell_nothing_apart_agree_on_nothing(measure, values: list[int]) -> None:
    assert measure(column(values), column(values)) == 0.0


@both
def test_one_constant_labelling_tells_nothing_of_the_other(measure) -> None:
    assert_close(measure(column([0, 0, 0, 0]), column([0, 1, 0, 1])), 0.0, **FLOAT64)


# --- words


def test_two_words_by_hand() -> None:
    # Pooled 4 and 6 of 10, a_0 = 5: priors 2 and 3. Here 3 + 2 and 1 + 3 of 9; elsewhere 1 + 2 and 5 + 3 of 11.
    z = (math.log(5 / 4) - math.log(3 / 8)) / math.sqrt(1 / 5 + 1 / 3)
    y = (math.log(4 / 5) - math.log(8 / 3)) / math.sqrt(1 / 4 + 1 / 8)
    found = word_contrast({"harm": 3, "help": 1}, {"harm": 1, "help": 5}, prior_total=5.0)
    assert [word for word, _ in found] == ["harm", "help"]
    assert [score for _, score in found] == pytest.approx([z, y], rel=RELATIVE64)


def test_a_prior_of_one_hundred_words_unless_told() -> None:
    here, elsewhere = {"a": 3, "b": 1}, {"a": 1, "b": 5}
    assert word_contrast(here, elsewhere) == word_contrast(here, elsewhere, prior_total=100.0)
    assert word_contrast(here, elsewhere)[0][1] < word_contrast(here, elsewhere, prior_total=5.0)[0][1]


def test_exchanging_the_piles_changes_the_sign() -> None:
    here, elsewhere = {"a": 3, "b": 1, "c": 4}, {"a": 1, "c": 5, "d": 2}
    found, turned = dict(word_contrast(here, elsewhere)), dict(word_contrast(elsewhere, here))
    assert found == pytest.approx({word: -z for word, z in turned.items()}, rel=RELATIVE64)
    assert set(found) == {"a", "b", "c", "d"}


def test_words_stand_from_here_to_elsewhere_and_equals_by_name() -> None:
    found = word_contrast({"q": 2, "b": 2, "x": 9}, {"x": 9, "d": 2, "a": 2})
    assert [word for word, _ in found] == ["b", "q", "x", "a", "d"]
    assert [z > 0 for _, z in found] == [True, True, False, False, False]


def test_an_empty_pile_contrasts_with_the_prior_alone() -> None:
    # Elsewhere every word has its prior: the same odds as here, so nothing is telling.
    for total in (0.5, 100.0):
        found = word_contrast({"a": 3, "b": 1}, {}, prior_total=total)
        assert [z for _, z in found] == pytest.approx([0.0, 0.0], abs=FLOAT64["atol"])


def test_words_that_nobody_used_are_left_out_and_a_single_word_tells_nothing() -> None:
    assert word_contrast({"a": 3, "b": 0}, {"c": 0}) == [("a", 0.0)]
    assert word_contrast({}, {}) == []


@pytest.mark.parametrize("total", [0.0, -1.0, math.nan])
def test_the_prior_counts_for_something(total: float) -> None:
    with pytest.raises(ValueError, match="an unseen word has no odds"):
        word_contrast({"a": 1}, {}, prior_total=total)


# --- against another implementation


@given(labels)
def test_rand_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import adjusted_rand_score  # takes seconds

    first, second = map(list, zip(*pairs, strict=True))
    assume(len({*first}) > 1 or len({*second}) > 1)
    found = adjusted_rand(column(first), column(second))
    assert_close(found, float(adjusted_rand_score(first, second)), **FLOAT64)


@given(labels)
def test_information_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import normalized_mutual_info_score

    first, second = map(list, zip(*pairs, strict=True))
    assume(len({*first}) > 1 or len({*second}) > 1)
    found = normalised_information(column(first), column(second))
    assert_close(found, float(normalized_mutual_info_score(first, second)), **FLOAT64)
