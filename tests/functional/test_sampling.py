"""Repetition penalty, top-k, top-p and the draw."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import sampling as truth
from references.ragged import noise, seeds
from tolerances import EXACT, FLOAT32, FLOAT64
from torch.testing import assert_close

from keel.functional.sampling import draw, penalise_repetition, top_k_top_p

OFF = float("-inf")


def float64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def kept(logits: torch.Tensor, top_k: int | None, top_p: float | None) -> list[list[int]]:
    """Ids that survive, row by row, in the order returned."""
    values, ids = top_k_top_p(logits, top_k=top_k, top_p=top_p)
    return [row[keep].tolist() for row, keep in zip(ids, values > OFF, strict=True)]


def test_penalty_by_hand() -> None:
    logits = float64([[2, -2, 0, 2, -2]])
    written = torch.tensor([[True, True, True, False, False]])
    # 2 / 1.25 = 1.6 and -2 * 1.25 = -2.5: less likely on both sides of zero. What was not written stays.
    assert_close(penalise_repetition(logits, written, penalty=1.25), float64([[1.6, -2.5, 0, 2, -2]]), **FLOAT64)
    assert_close(penalise_repetition(logits, written, penalty=1.0), logits, **EXACT)


@given(seeds, st.sampled_from([1.0, 1.1, 3.0]))
def test_penalty_agrees_with_the_reference(seed: int, penalty: float) -> None:
    logits, written = noise(seed, 2, 6), noise(seed + 1, 2, 6) > 0
    expected = float64([truth.penalise(row, seen, penalty)
                        for row, seen in zip(logits.tolist(), written.tolist(), strict=True)])
    assert_close(penalise_repetition(logits, written, penalty=penalty), expected, **FLOAT64)


def test_penalty_is_wide() -> None:
    # 3 / 1.1 = 2.7272...; the nearest bfloat16 is 2.734375.
    narrow = penalise_repetition(torch.tensor([[3.0]]).bfloat16(), torch.tensor([[True]]), penalty=1.1)
    assert_close(narrow, torch.tensor([[3 / 1.1]]), **FLOAT32)


def test_penalty_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"penalty=0.9 is below 1; 1 turns it off, 1.1 is the value of MOSS-RLHF"):
        penalise_repetition(torch.zeros(1, 2), torch.zeros(1, 2) > 0, penalty=0.9)


def test_no_filter_sorts_everything() -> None:
    values, ids = top_k_top_p(float64([[1, 3, 2]]), top_k=None, top_p=None)
    assert_close(values, float64([[3, 2, 1]]), **EXACT)
    assert ids.tolist() == [[1, 2, 0]]


def test_top_k_keeps_the_most_probable() -> None:
    values, ids = top_k_top_p(float64([[1, 3, 2], [9, 7, 8]]), top_k=2, top_p=None)
    assert_close(values, float64([[3, 2], [9, 8]]), **EXACT)
    assert ids.tolist() == [[1, 2], [0, 2]]
    # More than there are is all there are; one is greedy.
    assert kept(float64([[1, 3, 2]]), 50, None) == [[1, 2, 0]]
    assert kept(float64([[1, 3, 2]]), 1, 0.5) == [[1]]


def test_top_p_keeps_the_token_that_crosses() -> None:
    logits = float64([[0.1, 0.5, 0.25, 0.15]]).log()
    # 0.5 < 0.6, so 0.25 is added and crosses; then 0.75 >= 0.6 stops.
    assert kept(logits, None, 0.6) == [[1, 2]]
    values, _ = top_k_top_p(logits, top_k=None, top_p=0.6)
    assert_close(values, float64([[math.log(0.5), math.log(0.25), OFF, OFF]]), **FLOAT64)
    # Reached by the first alone: at least one token is kept, however small top_p.
    assert kept(logits, None, 0.4) == [[1]]
    assert kept(logits, None, 1e-9) == [[1]]
    assert kept(logits, None, 0.8) == [[1, 2, 3]]


def test_only_what_the_nucleus_needs_is_sorted() -> None:
    """64 candidates first, then eight times as many, never more than top-k leaves."""
    equal, peaked = torch.zeros(1, 5000, dtype=torch.float64), torch.zeros(1, 5000, dtype=torch.float64)
    peaked[0, 0] = 50.0

    def width(logits: torch.Tensor, top_k: int | None, top_p: float) -> int:
        return top_k_top_p(logits, top_k=top_k, top_p=top_p)[0].shape[1]

    assert width(peaked, None, 0.9) == 64
    assert width(torch.cat([peaked, equal]), None, 0.1) == 512  # 500 tokens, for one row of the two
    assert width(equal, None, 0.5) == 4096
    assert width(equal, None, 0.9) == 5000
    assert width(equal, 600, 0.9) == 600
    assert width(equal[:, :40], None, 0.1) == 40
    # 64 of 128 equal tokens reach one half exactly; nothing more is needed.
    some = equal[:, :128].float()
    assert width(some, None, 0.5) == 64
    assert kept(some, None, 0.5)[0] == top_k_top_p(some, top_k=None, top_p=0.5)[1][0].tolist()


def test_the_last_candidate_decides_whether_to_sort_more() -> None:
    # 63 tokens of weight 2 and 130 of weight 1: the first 64 weigh 127 of 256, short of 127.5.
    logits = float64([[2] * 63 + [1] * 130]).log()
    assert len(kept(logits, None, 127.5 / 256)[0]) == 65
    assert len(kept(logits, None, 126.5 / 256)[0]) == 64


def test_rounding_below_top_p_ends_with_all_candidates() -> None:
    """Float32 shares may add up to a little less than 1: the search stops where there is nothing more to sort."""
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]])
    assert min(float(torch.softmax(logits * i, 1).sum()) for i in range(10)) < 1.0
    for i in range(10):
        assert len(kept(logits * i, None, 1 - 1e-12)[0]) == 5


def test_top_p_reached_exactly_adds_no_further_token() -> None:
    # Four equal tokens: 0.25, 0.5, 0.75, 1 are exact in binary.
    assert [len(row) for row in kept(torch.zeros(1, 4, dtype=torch.float64), None, 0.5)] == [2]
    assert [len(row) for row in kept(torch.zeros(1, 4, dtype=torch.float64), 4, 0.5)] == [2]


def test_top_p_acts_on_what_top_k_left() -> None:
    logits = float64([[0.4, 0.3, 0.2, 0.1]]).log()
    # Of the first two, renormalised: 4/7 = 0.571 reaches 0.55 alone; of all four, 0.4 would not.
    assert kept(logits, 2, 0.55) == [[0]]
    assert kept(logits, None, 0.55) == [[0, 1]]
    assert kept(logits, 3, 0.5) == [[0, 1]]


def test_top_p_of_one_cuts_nothing() -> None:
    """Exact sampling: the float32 cumulative sum reaches 1 long before the tail of a large vocabulary."""
    logits = torch.linspace(0, -30, 5000)[None]
    values, ids = top_k_top_p(logits, top_k=None, top_p=1.0)
    assert bool(torch.isfinite(values).all())
    assert sorted(ids[0].tolist()) == list(range(5000))


@pytest.mark.parametrize("top_k", [None, 700])
@pytest.mark.parametrize("size", [40, 64, 65, 600, 5000])
def test_wide_nuclei_in_large_vocabularies(size: int, top_k: int | None) -> None:
    """The sort grows until the nucleus fits: rows that need 1 token and rows that need nearly all, together."""
    flat, peaked = noise(size, size, scale=0.1), noise(size + 1, size, scale=0.1)
    peaked[size // 2] = 30.0
    logits = torch.stack([peaked, flat])
    assert kept(logits, top_k, 0.95) == [truth.survivors(row, top_k, 0.95) for row in logits.tolist()]


@given(seeds, st.integers(1, 9), st.one_of(st.none(), st.integers(1, 10)),
       st.one_of(st.none(), st.floats(0.01, 0.999)), st.booleans())
def test_filters_agree_with_brute_force(
    seed: int, size: int, top_k: int | None, top_p: float | None, banned: bool,
) -> None:
    logits = noise(seed, 3, size, scale=2.0)
    if banned and size > 1:
        logits[:, 0] = OFF
    expected = [[i for i in truth.survivors(row, top_k, top_p) if row[i] > OFF] for row in logits.tolist()]
    assert kept(logits, top_k, top_p) == expected
    values, ids = top_k_top_p(logits, top_k=top_k, top_p=top_p)
    assert_close(values[values > OFF], logits.gather(1, ids)[values > OFF], **EXACT)


def test_filters_are_wide() -> None:
    # 300 equal tokens: 269 / 300 < 0.899 < 270 / 300. A bfloat16 cumulative sum stands still near 0.5.
    values, _ = top_k_top_p(torch.zeros(1, 300, dtype=torch.bfloat16), top_k=None, top_p=0.899)
    assert values.dtype == torch.float32
    assert int((values > OFF).sum()) == 270


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_below_one_is_refused(top_k: int) -> None:
    with pytest.raises(ValueError, match=r"top_k=.* keeps no token; use 1 or more, or none for no limit"):
        top_k_top_p(torch.zeros(1, 2), top_k=top_k, top_p=None)


@pytest.mark.parametrize("top_p", [0.0, -0.1, 1.1, float("nan")])
def test_top_p_outside_its_range_is_refused(top_p: float) -> None:
    with pytest.raises(ValueError, match=r"top_p=.* is outside \(0, 1\]$"):
        top_k_top_p(torch.zeros(1, 2), top_k=None, top_p=top_p)


def test_draw_by_hand() -> None:
    # Weights 1/4, 1/2, 1/4: [0, 0.25) is 0, [0.25, 0.75) is 1, [0.75, 1) is 2.
    logits = float64([[1, 2, 1]]).log().expand(7, -1)
    uniform = float64([0.0, 0.2499, 0.2501, 0.5, 0.7499, 0.7501, 0.9999])
    assert draw(logits, uniform).tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_draw_at_an_exact_edge_takes_the_next_index() -> None:
    logits = torch.zeros(4, 4, dtype=torch.float64)
    assert draw(logits, float64([0.0, 0.25, 0.5, 0.75])).tolist() == [0, 1, 2, 3]


def test_draw_never_takes_an_impossible_index() -> None:
    logits = float64([[OFF, 0, OFF, 0, OFF]])
    for u, index in ((0.0, 1), (0.49, 1), (0.51, 3), (1 - 2**-53, 3), (1.0, 3)):
        assert draw(logits, float64([u])).tolist() == [index]
    # A float64 uniform next to 1 rounds up to 1 against float32 weights: still the last possible index.
    assert draw(logits.float(), float64([1 - 2**-53])).tolist() == [3]
    assert draw(float64([[0]]), float64([1.0])).tolist() == [0]
    assert draw(float64([[0, OFF]]), float64([1.0])).tolist() == [0]


def test_draw_in_float64_resolves_what_float32_cannot() -> None:
    # A token of probability 1e-9 at the front: u = 5e-10 belongs to it, 2e-9 to the other.
    logits = float64([[math.log(1e-9), 0]]).expand(2, -1)
    assert draw(logits, float64([5e-10, 2e-9])).tolist() == [0, 1]
    # And at the end, where float32 would round the total away.
    logits = float64([[0, math.log(1e-9)]]).expand(2, -1)
    assert draw(logits, float64([1 - 5e-10, 1 - 2e-9])).tolist() == [1, 0]


def test_rounding_of_the_weights_is_shared_by_all_candidates() -> None:
    """41 float32 shares of 1/41 add up to 1 - 6e-8; edges at k/41 of that total, not of 1."""
    logits = torch.zeros(1, 41)
    assert float(torch.softmax(logits, 1).cumsum(1)[0, -1]) < 1.0
    for k in (1, 5, 8):
        assert draw(logits, float64([k / 41 * (1 - 3e-8)])).tolist() == [k - 1]


@given(seeds, st.integers(1, 8))
def test_draw_agrees_with_a_linear_scan(seed: int, size: int) -> None:
    logits = noise(seed, 5, size, scale=2.0)
    uniform = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = [truth.draw(row, u) for row, u in zip(logits.tolist(), uniform.tolist(), strict=True)]
    assert draw(logits, uniform).tolist() == expected


def test_draw_from_bfloat16_logits_uses_float32_weights() -> None:
    # 1000 equal tokens: cumulative sums in bfloat16 cannot tell them apart, float32 can.
    logits = torch.zeros(3, 1000, dtype=torch.bfloat16)
    assert draw(logits, torch.tensor([0.1005, 0.5005, 0.9005])).tolist() == [100, 500, 900]


def test_drawing_and_filtering_leave_their_inputs_alone() -> None:
    logits, uniform, written = noise(1, 2, 5), float64([0.3, 0.9]), torch.ones(2, 5, dtype=torch.bool)
    before = logits.clone(), uniform.clone()
    draw(logits, uniform)
    top_k_top_p(logits, top_k=3, top_p=0.5)
    penalise_repetition(logits, written, penalty=2.0)
    assert_close((logits, uniform), before, **EXACT)
