"""Group returns, the head that finds groups, the weights that close the gap, on one rank and on simulated ones."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import invariance as truth
from references.ragged import noise, seeds
from tolerances import CREDIT32, EXACT, FLOAT32, FLOAT64, RELATIVE64, SHIFTED32
from torch import Tensor
from torch.testing import assert_close

from keel.functional.invariance import (
    adaptive_kl_coef,
    cvar_shaping,
    dro_weights,
    group_factor,
    group_objective,
    group_stats,
    memberships,
    ratio_variance,
    sorted_order,
    standardised_returns,
    variance_shaping,
)

HEAD = {"variance": "plain", "floor": 0.0, "floor_coef": 0.0, "bound": 1e3, "entropy_coef": 0.0}
GUARDED = {"variance": "weighted", "floor": 0.3, "floor_coef": 7.0, "bound": 2.0, "entropy_coef": 0.2}
SIDES = ("both", "low_only", "worst")
n_groups = st.integers(2, 4)
sizes = st.integers(2, 9)


def float64(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(seed: int, n: int = 7, m: int = 3) -> tuple[Tensor, Tensor]:
    """Soft memberships and returns."""
    return noise(seed, n, m).softmax(1), noise(seed + 1, n)


def known(labels: list[int], m: int) -> Tensor:
    """Memberships of responses whose group is known."""
    return torch.nn.functional.one_hot(torch.tensor(labels), m).double()


class OneRank:
    """What a run on one device hands over."""

    reduce = gather = None


def rows_per_call(result: Tensor) -> bool:
    """Whether a result has one row for each of the seven responses."""
    return result.dim() > 0 and len(result) == 7


CALLS: dict[str, Callable[[Tensor, Tensor, object], Tensor]] = {
    "standardised": lambda p, r, ranks: standardised_returns(r, gather=ranks.gather),
    "winsorised": lambda p, r, ranks: standardised_returns(r, tails=0.2, gather=ranks.gather),
    "mass": lambda p, r, ranks: group_stats(p, r, reduce=ranks.reduce).mass,
    "returns": lambda p, r, ranks: group_stats(p, r, reduce=ranks.reduce).returns,
    "variance": lambda p, r, ranks: group_stats(p, r, reduce=ranks.reduce).variance,
    "objective": lambda p, r, ranks: group_objective(4 * p, r, reduce=ranks.reduce, **HEAD),
    "guarded": lambda p, r, ranks: group_objective(4 * p, r, reduce=ranks.reduce, **GUARDED),
    "both": lambda p, r, ranks: variance_shaping(p, r, side="both", reduce=ranks.reduce),
    "low_only": lambda p, r, ranks: variance_shaping(p, r, side="low_only", reduce=ranks.reduce),
    "worst": lambda p, r, ranks: variance_shaping(p, r, side="worst", reduce=ranks.reduce),
    "ratio": lambda p, r, ranks: ratio_variance(p, r, 0.25 * r, reduce=ranks.reduce),
    "equal": lambda p, r, ranks: group_factor(p, torch.ones(3), reduce=ranks.reduce),
    "dro": lambda p, r, ranks: group_factor(p, p.new_tensor([0.125, 0.25, 0.625]), reduce=ranks.reduce),
    "cvar": lambda p, r, ranks: cvar_shaping(r, share=0.3, gather=ranks.gather),
    "kl": lambda p, r, ranks: adaptive_kl_coef(p, coef=0.05, floor=0.4, renorm=False, reduce=ranks.reduce),
    "kl_renorm": lambda p, r, ranks: adaptive_kl_coef(p, coef=0.05, floor=0.4, renorm=True, reduce=ranks.reduce),
}
"""Every function of a batch of three groups: memberships, returns, ranks -> one number per row, or for the batch."""
LEARN_FROM_P = ("variance", "objective", "guarded")
every_call = pytest.mark.parametrize("name", CALLS)


# --- laws of all of them


@every_call
def test_permuting_responses_permutes_results(name: str) -> None:
    p, returns = draw(1)
    order = torch.tensor([3, 0, 6, 5, 1, 2, 4])
    whole, moved = CALLS[name](p, returns, OneRank), CALLS[name](p[order], returns[order], OneRank)
    assert_close(moved, whole[order] if rows_per_call(whole) else whole, **FLOAT64)


@pytest.mark.parametrize("seed", [2, 12, 22])
@every_call
def test_bfloat16_in_float32_out_and_float64_stays(name: str, seed: int) -> None:
    p, returns = (x.bfloat16() for x in draw(seed))
    narrow, exact = CALLS[name](p, returns, OneRank), CALLS[name](p.double(), returns.double(), OneRank)
    assert (narrow.dtype, exact.dtype) == (torch.float32, torch.float64)
    assert_close(narrow.double(), exact, **FLOAT32)


@every_call
def test_inputs_come_back_untouched_and_only_the_head_learns(name: str) -> None:
    p, returns = (x.requires_grad_() for x in draw(3))
    before = p.detach().clone(), returns.detach().clone()
    result = CALLS[name](p, returns, OneRank)
    assert_close((p.detach(), returns.detach()), before, **EXACT)
    assert result.requires_grad == (name in (*LEARN_FROM_P, "returns", "mass", "ratio"))
    if name in LEARN_FROM_P:
        result.backward()
        assert p.grad is not None and bool(p.grad.any()) and returns.grad is None


@every_call
def test_bfloat16_counts_beyond_256_responses(name: str) -> None:
    p, returns = (x.bfloat16() for x in draw(2, 301))
    narrow, exact = CALLS[name](p, returns, OneRank), CALLS[name](p.double(), returns.double(), OneRank)
    assert_close(narrow.double(), exact, **CREDIT32)


class Ranks:
    """Ranks as threads: each waits for the others' part of a sum or a column."""

    def __init__(self, n: int) -> None:
        self.parts: list[Tensor | None] = [None] * n
        self.barrier = threading.Barrier(n)

    def exchanged(self, rank: int, x: Tensor) -> list[Tensor]:
        assert not x.requires_grad  # a collective has no gradient
        self.parts[rank] = x
        self.barrier.wait()
        parts = list(self.parts)
        self.barrier.wait()
        return parts

    def run(self, work: Callable[[int, "Rank"], Tensor]) -> list[Tensor]:
        def guarded(rank: int) -> Tensor:
            try:
                return work(rank, Rank(self, rank))
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(len(self.parts)) as pool:
            return list(pool.map(guarded, range(len(self.parts))))


class Rank:
    """One of them."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank = ranks, rank

    def reduce(self, x: Tensor) -> Tensor:
        return torch.stack(self.ranks.exchanged(self.rank, x)).sum(0)

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat(self.ranks.exchanged(self.rank, x))


PARTS = (slice(0, 3), slice(3, 7))
"""Of seven rows, for two ranks."""


@every_call
def test_two_ranks_compute_what_one_does(name: str) -> None:
    p, returns = draw(4)
    whole = CALLS[name](p, returns, OneRank)
    parts = Ranks(2).run(lambda rank, at: CALLS[name](p[PARTS[rank]], returns[PARTS[rank]], at))
    for part, rows in zip(parts, PARTS, strict=True):
        assert_close(part, whole[rows] if rows_per_call(whole) else whole, **FLOAT64)


@pytest.mark.parametrize("name", LEARN_FROM_P)
def test_the_gradients_of_two_ranks_add_up_to_that_of_one(name: str) -> None:
    p, returns = draw(5)
    weights = noise(6, 3, 3)  # of a linear head, the same on both ranks

    def gradient(rows: slice, ranks: object) -> Tensor:
        head = weights.clone().requires_grad_()
        CALLS[name]((p[rows] @ head).softmax(1), returns[rows], ranks).backward()
        return head.grad

    parts = Ranks(2).run(lambda rank, at: gradient(PARTS[rank], at))
    assert_close(parts[0] + parts[1], gradient(slice(None), OneRank), **FLOAT64)


def test_the_surrogate_gradients_of_two_ranks_are_the_parts_of_that_of_one() -> None:
    p, returns = draw(7)

    def gradient(rows: slice, ranks: object) -> Tensor:
        log_ratios = torch.full_like(returns[rows], 0.1, requires_grad=True)
        ratio_variance(p[rows], returns[rows], log_ratios, reduce=ranks.reduce).backward()
        return log_ratios.grad

    assert_close(torch.cat(Ranks(2).run(lambda rank, at: gradient(PARTS[rank], at))),
                 gradient(slice(None), OneRank), **FLOAT64)


# --- returns


@pytest.mark.parametrize("tails", [None, 0.0, 0.02, 0.2, 0.49])
@given(seeds, sizes)
def test_returns_are_standardised_as_the_page_says(tails: float | None, seed: int, n: int) -> None:
    returns = noise(seed, n, scale=3.0)
    assert_close(standardised_returns(returns, tails=tails), float64(truth.standardised(returns.tolist(), tails)),
                 **FLOAT64)


def test_equal_returns_are_all_zero_whatever_their_size() -> None:
    assert standardised_returns(torch.full((7,), 0.1)).tolist() == [0.0] * 7
    assert standardised_returns(torch.full((7,), 100.1)).tolist() == [0.0] * 7


@pytest.mark.parametrize("tails", [-0.01, 0.5, math.nan])
def test_tails_are_less_than_half_on_either_side(tails: float) -> None:
    with pytest.raises(ValueError, match="no share of either side"):
        standardised_returns(torch.zeros(3), tails=tails)


# --- group returns and their variance


def test_known_groups_have_the_means_of_their_members() -> None:
    # Group 0: 1, 3 -> 2; group 1: 4, 4, 10 -> 6; group 2: -8. Mean 0; variance (4 + 36 + 64) / 3.
    stats = group_stats(known([0, 1, 0, 2, 1, 1], 3), float64([1, 4, 3, -8, 4, 10]))
    assert stats.mass.tolist() == [2, 3, 1] and stats.returns.tolist() == [2, 6, -8]
    assert stats.present.tolist() == [True] * 3
    assert stats.variance.item() == pytest.approx(104 / 3, rel=RELATIVE64)


@given(seeds, sizes, n_groups)
def test_soft_groups_follow_the_page(seed: int, n: int, m: int) -> None:
    p, returns = draw(seed, n, m)
    stats = group_stats(p, returns)
    rows, values = p.tolist(), returns.tolist()
    assert_close(stats.mass, float64(truth.masses(rows)), **FLOAT64)
    assert_close(stats.returns, float64(truth.group_returns(rows, values)), **FLOAT64)
    assert_close(stats.variance, float64(truth.variance(rows, values)), **FLOAT64)
    assert stats.variance >= 0


def test_an_absent_group_is_left_out_of_mean_variance_weights_and_factors() -> None:
    labels, returns = [0, 2, 2, 0, 0, 2], noise(8, 6)
    with_hole, without = known(labels, 4), known([label // 2 for label in labels], 2)
    stats, fewer = group_stats(with_hole, returns), group_stats(without, returns)
    assert stats.present.tolist() == [True, False, True, False]
    assert stats.returns[[1, 3]].tolist() == [0.0, 0.0]
    assert_close(stats.returns[[0, 2]], fewer.returns, **EXACT)
    assert_close(stats.variance, fewer.variance, **EXACT)
    for side in SIDES:
        assert_close(variance_shaping(with_hole, returns, side=side), variance_shaping(without, returns, side=side),
                     **FLOAT64)
    q = float64([0.1, 0.5, 0.2, 0.2])  # of the present ones, a third and two thirds
    assert_close(group_factor(with_hole, q), group_factor(without, q[[0, 2]]), **FLOAT64)


def test_the_worst_group_is_one_that_is_there() -> None:
    returns = float64([5, 7, 9, 9])  # an absent group's return of 0 is not the lowest
    assert variance_shaping(known([1, 1, 2, 2], 3), returns, side="worst").tolist() == [2, -2, 0, 0]


def test_the_gradient_leaves_out_what_is_absent() -> None:
    p = known([0, 2, 2, 0, 0, 2], 3).requires_grad_()
    group_stats(p, noise(8, 6)).variance.backward()
    assert bool(p.grad.isfinite().all()) and p.grad[:, 1].tolist() == [0.0] * 6


def test_no_response_at_all_has_no_variance() -> None:
    stats = group_stats(torch.zeros(0, 2), torch.zeros(0))
    assert (stats.variance.item(), stats.returns.tolist(), stats.present.any().item()) == (0.0, [0.0, 0.0], False)


@given(seeds, sizes, n_groups, st.randoms(use_true_random=False))
def test_permuting_groups_permutes_them_and_leaves_variance_and_weights(seed: int, n: int, m: int, chance) -> None:
    p, returns = draw(seed, n, m)
    order = torch.tensor(chance.sample(range(m), m))
    stats, moved = group_stats(p, returns), group_stats(p[:, order], returns)
    assert_close((moved.mass, moved.returns), (stats.mass[order], stats.returns[order]), **FLOAT64)
    assert_close(moved.variance, stats.variance, **FLOAT64)
    for side in SIDES:
        assert_close(variance_shaping(p[:, order], returns, side=side), variance_shaping(p, returns, side=side),
                     **FLOAT64)


@pytest.mark.parametrize("m", [2, 3, 4, 7])
def test_an_undecided_head_has_no_variance_and_no_gradient(m: int) -> None:
    """The saddle of section 4.2: exactly zero, so that a head of zeros would never start."""
    logits = torch.zeros(9, m, requires_grad=True)
    returns = noise(9, 9).float()
    objective = group_objective(logits, returns, **HEAD)
    objective.backward()
    assert objective.item() == 0.0 and not logits.grad.any()
    assert not variance_shaping(logits.softmax(1), returns, side="both").any()


def test_equal_memberships_of_all_responses_have_no_variance() -> None:
    p = float64([[0.1, 0.6, 0.3]] * 8).requires_grad_()
    variance = group_stats(p, noise(10, 8)).variance
    variance.backward()
    assert_close((variance.detach(), p.grad), (float64(0.0), torch.zeros_like(p.detach())), **FLOAT64)


@given(seeds, sizes, st.integers(2, 3))
def test_the_closed_form_is_the_gradient(seed: int, n: int, m: int) -> None:
    p, returns = draw(seed, n, m)
    leaf = p.clone().requires_grad_()
    group_stats(leaf, returns).variance.backward()
    rows, values = p.tolist(), returns.tolist()
    expected = [[truth.slope(rows, values, i, g) for g in range(m)] for i in range(n)]
    assert_close(leaf.grad, float64(expected), **FLOAT64)


# --- the head


@given(seeds, n_groups, st.sampled_from([0.5, 5.0]))
def test_memberships_are_a_softmax_of_bounded_logits(seed: int, m: int, bound: float) -> None:
    logits = noise(seed, 5, m, scale=4.0)
    p = memberships(logits, bound=bound)
    expected = [truth.softmax([bound * math.tanh(z / bound) for z in row]) for row in logits.tolist()]
    assert_close(p, float64(expected), **FLOAT64)
    assert p.min() > math.exp(-2 * bound) / m


def test_a_logit_far_outside_can_still_come_back() -> None:
    logits = float64([[12.0, -12.0]]).requires_grad_()
    memberships(logits, bound=5.0)[0, 0].backward()
    assert logits.grad[0, 0] > 0


def test_one_group_is_refused() -> None:
    one = torch.zeros(4, 1)
    with pytest.raises(ValueError, match="only be told apart by two groups"):
        memberships(one, bound=5.0)
    with pytest.raises(ValueError, match="only be told apart by two groups"):
        group_objective(one, torch.zeros(4), **HEAD)
    with pytest.raises(ValueError, match="neither a lowest nor a highest"):
        adaptive_kl_coef(one, coef=0.1, floor=0.1, renorm=False)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_logits_need_a_bound_that_is_one(bound: float) -> None:
    with pytest.raises(ValueError, match="must be positive and finite"):
        memberships(torch.zeros(2, 2), bound=bound)


@pytest.mark.parametrize(("change", "message"), [
    ({"variance": "worst"}, "neither 'plain' nor 'weighted'"),
    ({"floor": 0.51}, "not every group can have that share"),
    ({"floor": -0.01}, "not every group can have that share"),
])
def test_objectives_that_make_no_sense_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_objective(torch.zeros(2, 2), torch.zeros(2), **HEAD | change)


def test_a_floor_may_be_all_that_there_is() -> None:
    equal = group_objective(torch.zeros(4, 2), torch.zeros(4), **HEAD | {"floor": 0.5, "floor_coef": 10.0})
    assert equal.item() == 0.0


@pytest.mark.parametrize("variance", ["plain", "weighted"])
@given(seeds, sizes, st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.2]))
def test_the_objective_and_its_gradient_follow_the_page(
    variance: str, seed: int, n: int, floor: float, entropy_coef: float,
) -> None:
    logits, returns = noise(seed, n, 3, scale=2.0).requires_grad_(), noise(seed + 1, n)
    options = {"floor": floor, "floor_coef": 7.0, "bound": 2.0, "entropy_coef": entropy_coef}
    expected = truth.objective(logits.tolist(), returns.tolist(), weighted=variance == "weighted", **options)
    assert_close(group_objective(logits, returns, variance=variance, **options), float64(expected), **FLOAT64)
    assert torch.autograd.gradcheck(lambda z: group_objective(z, returns, variance=variance, **options), (logits,))


def test_the_mean_of_bfloat16_returns_far_from_zero_is_that_of_float32() -> None:
    logits, returns = 2 * draw(17, 301)[0], (100 + 4 * noise(18, 301)).bfloat16()
    exact = group_objective(logits, returns.double(), **GUARDED)
    assert_close(group_objective(logits.float(), returns, **GUARDED).double(), exact, **SHIFTED32)


def test_certain_memberships_have_a_finite_entropy_gradient() -> None:
    logits = torch.tensor([[900.0, -900.0], [-900.0, 900.0]], requires_grad=True)
    objective = group_objective(logits, torch.tensor([-1.0, 1.0]), **HEAD | {"entropy_coef": 0.1})
    objective.backward()
    assert objective.item() == 1.0 and bool(logits.grad.isfinite().all())


def ascended(returns: Tensor, start: Tensor, **options: object) -> tuple[Tensor, float]:
    """Free logits after plain ascent; their memberships and the plain variance."""
    logits = start.clone()
    for _ in range(400):
        logits.requires_grad_()
        (slope,) = torch.autograd.grad(group_objective(logits, returns, **HEAD | options), logits)
        logits = logits.detach() + 5 * slope
    p = memberships(logits, bound=HEAD["bound"])
    return p, float(group_stats(p, returns).variance)


def test_ascent_splits_four_returns_into_low_and_high() -> None:
    p, variance = ascended(float64([0, 1, 5, 6]), 0.1 * noise(0, 4, 2))
    low = p[0].argmax()
    assert p.argmax(1).tolist() == [low, low, 1 - low, 1 - low]
    assert p.max(1).values.min() > 0.999
    assert 6.24 < variance < 6.25  # (5.5 - 0.5)^2 / 4, reached at the end of the softmax only


# --- the guards of section 4.3: returns 0, 4, 5, 6, whose total variance is 83 / 16 = 5.1875


OUTLIER, PAIRS = known([0, 1, 1, 1], 2), known([0, 0, 1, 1], 2)
SPREAD = float64([0, 4, 5, 6])


def test_the_plain_variance_prefers_an_outlier_and_exceeds_the_total() -> None:
    alone, pairs = (group_stats(p, SPREAD).variance.item() for p in (OUTLIER, PAIRS))
    assert (alone, pairs) == (6.25, 3.0625)  # (5 - 0)^2 / 4, above 83 / 16; (5.5 - 2)^2 / 4
    assert alone > SPREAD.var(correction=0).item()


def sure(p: Tensor) -> Tensor:
    """Logits that say so."""
    return 40 * (2 * p - 1)


def test_a_mass_floor_takes_the_outlier_back() -> None:
    # An outlier's share of 1/4 lacks 1/4: 100 / 16 = 6.25 is all that it had won.
    options = HEAD | {"floor": 0.5, "floor_coef": 100.0}
    alone, pairs = (group_objective(sure(p), SPREAD, **options).item() for p in (OUTLIER, PAIRS))
    assert (alone, pairs) == (0.0, 3.0625)


def test_ascent_under_a_mass_floor_ends_in_pairs() -> None:
    p, _ = ascended(SPREAD, sure(OUTLIER) / 80, floor=0.5, floor_coef=100.0)
    assert (p.sum(0) - 2).abs().max() < 0.1


def test_the_weighted_variance_stays_below_the_total() -> None:
    # Shares 1/4 and 3/4 of (0 - 3.75)^2 and (5 - 3.75)^2: 4.6875; the pairs: 3.0625.
    options = HEAD | {"variance": "weighted"}
    alone, pairs = (group_objective(sure(p), SPREAD, **options).item() for p in (OUTLIER, PAIRS))
    assert (alone, pairs) == pytest.approx((4.6875, 3.0625), rel=RELATIVE64)
    assert alone < SPREAD.var(correction=0).item()


ONE_FAR_OFF = float64([-6.0] + [-1.0] * 24 + [1.0] * 25)
ALONE, HALVES = known([0] + [1] * 49, 2), known([0] * 25 + [1] * 25, 2)


def preferred(returns: Tensor, **options: object) -> str:
    """The split that scores higher."""
    alone, halves = (group_objective(sure(p), returns, **HEAD | options).item() for p in (ALONE, HALVES))
    return "alone" if alone > halves else "halves"


def test_each_guard_gives_up_one_response_far_off_for_two_halves() -> None:
    assert preferred(ONE_FAR_OFF) == "alone"
    assert preferred(ONE_FAR_OFF, variance="weighted") == "halves"
    assert preferred(ONE_FAR_OFF, floor=0.5, floor_coef=50.0) == "halves"
    assert preferred(standardised_returns(ONE_FAR_OFF)) == "alone"
    assert preferred(standardised_returns(ONE_FAR_OFF, tails=0.02)) == "halves"


def test_the_floor_charges_every_group_below_it() -> None:
    # Shares 1/50 and 49/50, floor 0.3: 7 (0.3 - 0.02)^2.
    free, charged = (group_objective(sure(ALONE), ONE_FAR_OFF, **HEAD | {"floor": 0.3, "floor_coef": coef})
                     for coef in (0.0, 7.0))
    assert (free - charged).item() == pytest.approx(7 * 0.28**2, rel=RELATIVE64)


# --- the order of the groups


@pytest.mark.parametrize(("order", "ema", "slack", "expected"), [
    ([0, 1], [0.5, -0.5], 0.05, [1, 0]),
    ([0, 1], [-0.5, 0.5], 0.05, [0, 1]),
    ([1, 0], [-0.5, 0.5], 0.05, [0, 1]),
    ([0, 1], [0.25, 0.125], 0.125, [0, 1]),      # not more than the slack: no flicker
    ([0, 1], [0.25, 0.125], 0.1, [1, 0]),
    ([0, 1], [0.0, 0.0], 0.0, [0, 1]),
    ([0, 1, 2, 3], [4.0, 3.0, 2.0, 1.0], 0.05, [3, 2, 1, 0]),
    ([2, 0, 3, 1], [0.0, 3.0, 1.0, 2.0], 0.05, [0, 2, 3, 1]),
    ([0, 1, 2], [0.5, 0.25, 0.0], 0.3, [0, 1, 2]),  # only neighbours are compared
])
def test_neighbours_change_places_where_the_average_leaves_no_doubt(
    order: list[int], ema: list[float], slack: float, expected: list[int],
) -> None:
    before = list(order)
    assert sorted_order(order, float64(ema), slack=slack) == expected
    assert order == before


@given(seeds, st.integers(1, 6))
def test_without_slack_the_order_is_that_of_the_averages(seed: int, m: int) -> None:
    ema = noise(seed, m)
    assert sorted_order(list(range(m)), ema, slack=0.0) == ema.argsort().tolist()


@pytest.mark.parametrize("order", [[0, 0], [0], [0, 1, 2], [1, 2]])
def test_an_order_names_every_group_once(order: list[int]) -> None:
    with pytest.raises(ValueError, match="does not name each of 2 groups once"):
        sorted_order(order, torch.zeros(2), slack=0.05)


def test_a_negative_slack_is_refused() -> None:
    with pytest.raises(ValueError, match="would change places in every phase"):
        sorted_order([0, 1], torch.zeros(2), slack=-0.01)


# --- shaping


def test_weights_lift_whom_the_low_group_needs_and_hold_the_high_group_down() -> None:
    # Groups {0, 2} and {5, 9}: means 1 and 7, gaps -3 and 3, N/S = 2; w = (2/2)(-3)(2)(R - 1) and (3)(2)(R - 7).
    p, returns = known([0, 0, 1, 1], 2), float64([0, 2, 5, 9])
    assert variance_shaping(p, returns, side="both").tolist() == [6, -6, -12, 12]
    assert variance_shaping(p, returns, side="low_only").tolist() == [6, -6, 0, 0]
    assert variance_shaping(p, returns, side="worst").tolist() == [2, -2, 0, 0]


@pytest.mark.parametrize("side", SIDES)
@given(seeds, sizes, n_groups)
def test_weights_follow_the_page_and_sum_to_zero(side: str, seed: int, n: int, m: int) -> None:
    p, returns = draw(seed, n, m)
    weights = variance_shaping(p, returns, side=side)
    assert_close(weights, float64(truth.shaping(p.tolist(), returns.tolist(), side)), **FLOAT64)
    assert_close(weights.sum(), float64(0.0), **FLOAT64)


@pytest.mark.parametrize("side", SIDES)
def test_returns_that_are_constant_in_known_groups_leave_nothing_to_weigh(side: str) -> None:
    p = known([0, 1, 2, 0, 1, 2], 3)
    assert not variance_shaping(p, float64([1, 2, 4, 1, 2, 4]), side=side).any()


@pytest.mark.parametrize("side", ["both", "low_only"])
def test_groups_that_earn_the_same_leave_nothing_to_weigh(side: str) -> None:
    p = known([0, 0, 1, 1], 2)
    assert not variance_shaping(p, float64([1, 3, 0, 4]), side=side).any()


def test_another_side_is_refused() -> None:
    with pytest.raises(ValueError, match="none of 'both', 'low_only' and 'worst'"):
        variance_shaping(torch.ones(2, 2) / 2, torch.zeros(2), side="high_only")


COUNTS = torch.tensor([1, 2, 3, 4, 2, 3])
"""How often a batch holds each of six outcomes: exactly as often as the policy of these logits draws them."""


def expected_slope(weights: Tensor) -> Tensor:
    """E[w grad log pi] over the whole batch."""
    logits = COUNTS.double().log().requires_grad_()
    (weights * logits.log_softmax(0).repeat_interleave(COUNTS)).mean().backward()
    return logits.grad


def slope_of(measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient of a number that is a function of the outcomes' probabilities."""
    logits = COUNTS.double().log().requires_grad_()
    measure(logits.softmax(0)).backward()
    return logits.grad


def means_under(chances: Tensor, p: Tensor, returns: Tensor) -> Tensor:
    """R_g(theta) = E[p_g R] / E[p_g]."""
    return (chances[:, None] * p * returns[:, None]).sum(0) / (chances[:, None] * p).sum(0)


@pytest.mark.parametrize("side", SIDES)
@given(seeds, n_groups)
def test_on_an_enumerable_policy_the_weights_give_the_penalty_its_exact_gradient(
    side: str, seed: int, m: int,
) -> None:
    p, returns = draw(seed, len(COUNTS), m)

    def penalty(chances: Tensor) -> Tensor:
        means = means_under(chances, p, returns)
        if side == "worst":
            return -means.min()
        if side == "low_only":  # the mean over groups that the low ones are measured by stands still
            return (means.mean().detach() - means).relu().square().mean()
        return (means - means.mean()).square().mean()

    batch = p.repeat_interleave(COUNTS, 0), returns.repeat_interleave(COUNTS)
    assert_close(expected_slope(variance_shaping(*batch, side=side)), slope_of(penalty), **FLOAT64)


@given(seeds, n_groups)
def test_the_surrogate_has_the_same_value_and_gradient_at_ratio_one(seed: int, m: int) -> None:
    p, returns = draw(seed, len(COUNTS), m)
    batch = p.repeat_interleave(COUNTS, 0), returns.repeat_interleave(COUNTS)
    logits = COUNTS.double().log().requires_grad_()
    ratios = (logits.log_softmax(0) - logits.detach().log_softmax(0)).repeat_interleave(COUNTS)
    surrogate = ratio_variance(*batch, ratios)
    surrogate.backward()
    assert_close(surrogate.detach(), group_stats(*batch).variance, **FLOAT64)
    assert_close(logits.grad, expected_slope(variance_shaping(*batch, side="both")), **FLOAT64)


def test_the_surrogate_follows_the_policy_away_from_ratio_one() -> None:
    p, returns = draw(11, len(COUNTS))
    moved = (COUNTS.double().log() + noise(12, len(COUNTS))).log_softmax(0)
    ratios = (moved - COUNTS.double().log().log_softmax(0)).repeat_interleave(COUNTS)
    surrogate = ratio_variance(p.repeat_interleave(COUNTS, 0), returns.repeat_interleave(COUNTS), ratios)
    means = means_under(moved.exp(), p, returns)
    assert_close(surrogate, (means - means.mean()).square().mean(), **FLOAT64)


@pytest.mark.parametrize(("ratios", "held"), [([1e4, 0.0, 1.0], [20.0, 0.0, 1.0]),
                                               ([-1e4, -18.0, -19.0], [-20.0, -18.0, -19.0])])
def test_ratios_beyond_twenty_nats_count_as_twenty_and_learn_nothing(ratios: list, held: list) -> None:
    p, returns = (x.requires_grad_() for x in draw(13, 3))
    log_ratios = float64(ratios).requires_grad_()
    surrogate = ratio_variance(p, returns, log_ratios)
    surrogate.backward()
    assert_close(surrogate, group_stats(p * float64(held).exp()[:, None], returns).variance, **FLOAT64)
    assert log_ratios.grad[0] == 0.0 and bool(log_ratios.grad[1:].any())
    assert p.grad is None and returns.grad is None


# --- other ways to look after the weak


def test_the_factor_makes_a_small_group_count_as_much_as_a_large_one() -> None:
    p, losses = known([0, 0, 0, 1], 2), float64([1, 2, 3, 10])
    factor = group_factor(p, torch.ones(2))
    assert_close(factor, float64([2 / 3, 2 / 3, 2 / 3, 2]), **FLOAT64)  # (1/2)(4/3) and (1/2)(4/1)
    assert (factor * losses).mean().item() == pytest.approx((2 + 10) / 2, rel=RELATIVE64)


@given(seeds, sizes, n_groups)
def test_factors_of_soft_groups_follow_the_page_and_have_mean_one(seed: int, n: int, m: int) -> None:
    p, _ = draw(seed, n, m)
    factor = group_factor(p, torch.ones(m))
    assert_close(factor, float64(truth.equal_group_factors(p.tolist())), **FLOAT64)
    assert_close(factor.mean(), float64(1.0), **FLOAT64)


@pytest.mark.parametrize("step", [0.0, 0.01, 1.5])
@given(seeds, n_groups)
def test_group_weights_take_the_step_of_the_paper(step: float, seed: int, m: int) -> None:
    q, means = noise(seed, m).softmax(0), noise(seed + 1, m)
    present = torch.arange(m) != 1
    expected = truth.dro(q.tolist(), [x if i != 1 else None for i, x in enumerate(means.tolist())], step)
    new = dro_weights(q, torch.where(present, means, math.nan), present, step=step)
    assert_close(new, float64(expected), **FLOAT64)
    assert_close(new.sum(), float64(1.0), **FLOAT64)


def test_group_weights_move_to_whom_earns_least_and_never_vanish() -> None:
    both = torch.tensor([True, True])
    q = dro_weights(torch.tensor([0.5, 0.5], requires_grad=True), torch.tensor([-1e4, 1e4], requires_grad=True), both,
                    step=1.0)
    assert_close(q, torch.tensor([1.0, 1e-30]), **EXACT)
    assert not q.requires_grad
    back = dro_weights(q, torch.tensor([100.0, -100.0]), both, step=1.0)
    assert back.argmax() == 1
    assert_close(group_factor(known([1, 1], 2).float(), q), torch.ones(2), **FLOAT32)


def test_group_weights_of_bfloat16_are_computed_in_float32() -> None:
    q, means, present = torch.tensor([0.2, 0.3, 0.5]).bfloat16(), noise(15, 3).bfloat16(), torch.ones(3).bool()
    new = dro_weights(q, means, present, step=0.3)
    assert new.dtype == torch.float32
    assert_close(new.double(), dro_weights(q.double(), means.double(), present, step=0.3), **FLOAT32)


def test_factors_from_bfloat16_weights_are_those_of_the_same_numbers() -> None:
    p, q = draw(16)[0], torch.tensor([0.013, 0.37, 0.61]).bfloat16()
    assert_close(group_factor(p, q), group_factor(p, q.double()), **FLOAT64)


def test_group_weights_take_no_negative_step() -> None:
    with pytest.raises(ValueError, match="groups that earn most would gain"):
        dro_weights(torch.ones(2) / 2, torch.zeros(2), torch.tensor([True, True]), step=-0.1)


def test_the_factor_weighs_the_mean_of_each_group() -> None:
    """Sagawa's objective is sum_g q_g mean_g, whatever the size of a group."""
    p, losses = known([0, 0, 0, 1], 2), float64([1, 2, 3, 10])
    factor = group_factor(p, float64([0.3, 0.7]))
    assert_close(factor, float64([0.4, 0.4, 0.4, 2.8]), **FLOAT64)  # 0.3 (4/3) and 0.7 (4/1)
    assert (factor * losses).mean().item() == pytest.approx(0.3 * 2 + 0.7 * 10, rel=RELATIVE64)
    soft = group_factor(float64([[1, 0], [0, 1], [0.5, 0.5]]), float64([0.3, 0.7]))
    assert_close(soft, float64([0.6, 1.4, 1.0]), **FLOAT64)  # masses of 1.5: 3 / 1.5 = 2


def test_factors_of_responses_carry_no_graph() -> None:
    q = torch.ones(2).bfloat16().requires_grad_()
    assert not group_factor(torch.ones(3, 2), q).requires_grad


@pytest.mark.parametrize("share", [0.05, 0.25, 0.3, 0.5, 0.77, 0.98])
@given(seeds)
def test_on_an_enumerable_policy_the_weights_give_cvar_its_exact_gradient(share: float, seed: int) -> None:
    returns = noise(seed, len(COUNTS))
    values = returns.tolist()
    weights = cvar_shaping(returns.repeat_interleave(COUNTS), share=share)
    assert_close(weights.sum(), float64(0.0), **FLOAT64)
    chances = (COUNTS / COUNTS.sum()).tolist()
    best = max(values, key=lambda q: truth.cvar_bound(values, chances, share, q))
    assert truth.cvar_bound(values, chances, share, best) == pytest.approx(
        truth.cvar(values, chances, share), rel=RELATIVE64)
    gradient = slope_of(lambda now: best - (now * (best - returns).relu()).sum() / share)
    assert_close(-expected_slope(weights), gradient, **FLOAT64)


def test_a_step_against_the_weights_raises_the_mean_of_the_worst() -> None:
    returns, share, step = noise(14, len(COUNTS)), 0.3, 1e-3
    logits = COUNTS.double().log()
    moved = logits - step * expected_slope(cvar_shaping(returns.repeat_interleave(COUNTS), share=share))
    before, after = (truth.cvar(returns.tolist(), x.softmax(0).tolist(), share) for x in (logits, moved))
    assert after > before


def test_the_worst_half_of_four_returns_is_lifted() -> None:
    # The worst half are 3 and 1: q = 3, shortfalls 2 (3 - 1) = 4 and 0; mean 1.
    assert cvar_shaping(float64([9, 3, 1, 5]), share=0.5).tolist() == [-1, -1, 3, -1]


def test_the_whole_of_the_returns_is_their_mean() -> None:
    assert cvar_shaping(float64([9, 3, 1, 7]), share=1.0).tolist() == [-4, 2, 4, -2]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_a_share_of_the_returns_is_above_zero_and_at_most_one(share: float) -> None:
    with pytest.raises(ValueError, match="CVaR is the mean of the worst"):
        cvar_shaping(torch.zeros(3), share=share)


# --- the price of drift


def test_the_highest_group_pays_all_and_the_lowest_least() -> None:
    p = float64([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0, 0.5], [0.9, 0.1, 0]])
    coefs = adaptive_kl_coef(p, coef=0.2, floor=0.1, renorm=False)
    assert_close(coefs, float64([0.02, 0.1, 0.2, 0.1, 0.02]), **FLOAT64)


@pytest.mark.parametrize("renorm", [True, False])
@pytest.mark.parametrize("floor", [0.0, 0.1, 0.6, 1.0])
@given(seeds, sizes, n_groups)
def test_prices_follow_the_page(floor: float, renorm: bool, seed: int, n: int, m: int) -> None:
    p, _ = draw(seed, n, m)
    coefs = adaptive_kl_coef(p, coef=0.05, floor=floor, renorm=renorm)
    assert_close(coefs, float64(truth.kl_coefs(p.tolist(), 0.05, floor, renorm)), **FLOAT64)
    if renorm:
        assert_close(coefs.mean(), float64(0.05), **FLOAT64)
    else:
        assert coefs.min() >= 0.05 * floor and coefs.max() <= 0.05


def test_where_nobody_owes_anything_a_mean_price_is_paid_by_all() -> None:
    low = known([0, 0, 0], 2)
    assert adaptive_kl_coef(low, coef=0.5, floor=0.0, renorm=False).tolist() == [0.0] * 3
    assert adaptive_kl_coef(low, coef=0.5, floor=0.0, renorm=True).tolist() == [0.5] * 3


@pytest.mark.parametrize("floor", [-0.01, 1.01, math.nan])
def test_the_least_share_of_the_price_is_a_share(floor: float) -> None:
    with pytest.raises(ValueError, match="no share of the coefficient"):
        adaptive_kl_coef(torch.ones(2, 2) / 2, coef=0.1, floor=floor, renorm=False)
