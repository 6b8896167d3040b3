"""Offline policy gradient: by hand, against plain loops, what carries no gradient, lengths, bands and ranges."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import offline as truth
from references.ragged import noise, padded, response_masks, rows_of, seeds
from tolerances import EXACT, FLOAT32, FLOAT64, PRINTED
from torch import Tensor
from torch.testing import assert_close

from keel.functional.offline import a_lol, a_lol_kl, a_lol_seq, pro, reward_gold, weighted_nll

NAN = float("nan")
CLIPS = st.sampled_from([None, 0.1, 0.9, 1.0, 1.5])


def float64(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def leaf(values: list) -> Tensor:
    return float64(values).requires_grad_()


def all_true(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def split(out: Tensor | tuple) -> tuple[Tensor, dict[str, Tensor]]:
    return (out, {}) if isinstance(out, Tensor) else out


def slopes(out: Tensor | tuple, logprobs: Tensor) -> Tensor:
    return torch.autograd.grad(split(out)[0].sum(), logprobs, retain_graph=True)[0]


# How each function is called on (l, q, w, mask), and the same for one response of the reference.
EVERY: dict[str, tuple[Callable, Callable]] = {
    "nll": (lambda p, q, w, m, **how: weighted_nll(p, w, m, **how), lambda p, q, w: truth.nll(p, w)),
    **{f"gold {u}": (lambda p, q, w, m, u=u, **how: reward_gold(p, w, m, floor=u, **how),
                     lambda p, q, w, u=u: truth.gold(p, w, u)) for u in (0.0, 0.3, 1.0)},
    **{f"lol {e}": (partial(a_lol, clip=e), partial(truth.lol, eps=e)) for e in (None, 0.1, 0.9, 1.0, 1.5)},
    **{f"seq {e}": (partial(a_lol_seq, clip=e), partial(truth.lol_seq, eps=e)) for e in (None, 0.1, 0.9, 1.0, 1.5)},
    **{f"{term} {beta}": (partial(a_lol_kl, coef=beta, term=term), partial(reference, coef=beta))
       for term, reference in (("difference", truth.lol_difference), ("quotient", truth.lol_quotient),
                               ("k3", truth.lol_k3)) for beta in (0.0, 0.4)},
}
OF_SUMS = [name for name in EVERY if name.split()[0] in ("nll", "lol", "difference", "quotient")]
on_every = pytest.mark.parametrize("name", EVERY)


def data(mask: Tensor, seed: int, junk: float = NAN) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities below 0 under both models, junk under the mask, and weights of which half are 0."""
    p, q = (torch.where(mask, -noise(seed + k, *mask.shape).abs(), junk) for k in (0, 1))
    return p.requires_grad_(), q, noise(seed + 2, len(mask)).clamp_min(0)


def ranked(s: list, rewards: list, best: list, present: Tensor | None = None, **how: float) -> tuple:
    """PRO with its gradients by s and by S of the best."""
    mean, whole, worth = leaf(s), leaf(best), leaf(rewards)
    loss, stats = pro(mean, whole, worth, all_true(mean) if present is None else present, **how)
    loss.sum().backward()
    assert worth.grad is None  # temperatures are data
    return loss.detach(), stats, mean.grad, whole.grad


def test_the_worked_example_of_the_spec() -> None:
    p, q, mask = leaf([[-1, -2]]), float64([[-1.5, -1.5]]), torch.tensor([[True, True]])
    one, reward, advantage = float64([1]), float64([0.8]), float64([0.8 - 0.3])
    found = {
        "nll": weighted_nll(p, one, mask), "wbc": weighted_nll(p, reward, mask), "gold": reward_gold(p, reward, mask),
        "r_lol": a_lol(p, q, reward, mask)[0], "a_lol": a_lol(p, q, advantage, mask)[0],
        "ref_free": weighted_nll(p, advantage, mask), "seq": a_lol_seq(p, q, advantage, mask)[0],
        "kl": a_lol_kl(p, q, advantage, mask, coef=0.1)[0]}
    # S = -3 = Q, so rho = 1. Gold: 0.8 (e^-1 + 2 e^-2). Sequence: 0.5 (1.648721 + 2 * 0.606531).
    expected = {"nll": 3.0, "wbc": 2.4, "gold": 0.510840, "r_lol": 2.4, "a_lol": 1.5, "ref_free": 1.5,
                "seq": 1.430891, "kl": 1.5}
    assert_close(found, {name: leaf([value]) for name, value in expected.items()}, **PRINTED)
    assert_close(slopes(found["a_lol"], p), float64([[-0.5, -0.5]]), **FLOAT64)
    assert_close(slopes(found["kl"], p), float64([[-0.4, -0.4]]), **FLOAT64)
    assert_close(slopes(found["seq"], p), float64([[-0.5 * 1.648721, -0.5 * 0.606531]]), **PRINTED)
    assert_close(slopes(found["gold"], p), float64([[-0.8 * 0.367879, -0.8 * 0.135335]]), **PRINTED)


def test_clipping_the_product_is_not_the_product_of_clips() -> None:
    # Token ratios 3 and 1/3 in the band [0.5, 1.5]: the product is 1; the tokens weigh 1.5 and 0.5.
    p, q, mask = leaf([[-1, -2]]), float64([[-1 - math.log(3), -2 + math.log(3)]]), torch.tensor([[True, True]])
    whole, stats = a_lol(p, q, float64([2]), mask, clip=0.5)
    assert_close(whole.detach(), float64([6]), **FLOAT64)
    assert_close(stats, {"ratio": float64([1]), "ratio/below": float64([0]), "ratio/above": float64([0]),
                         "shift": float64([0])}, **FLOAT64)
    tokens, stats = a_lol_seq(p, q, float64([2]), mask, clip=0.5)
    # 2 (1.5 * 1 + 0.5 * 2) = 5.
    assert_close(tokens.detach(), float64([5]), **FLOAT64)
    assert_close(stats, {"ratio": float64([1]), "ratio/below": float64([0.5]), "ratio/above": float64([0.5]),
                         "shift": float64([0])}, **FLOAT64)
    assert_close(slopes(tokens, p), float64([[-3, -1]]), **FLOAT64)


@pytest.mark.parametrize("function", [a_lol, a_lol_seq])
def test_the_gradient_does_not_vanish_outside_the_band(function: Callable) -> None:
    """PPO's clipping would give 0 for one of the two; here it is minus weight times the end of the band."""
    p, q = leaf([[-1], [-4]]), float64([[-4], [-1]])
    loss, _ = function(p, q, float64([2, 2]), all_true(p))
    assert_close(slopes(loss, p), float64([[-2 * 1.9], [-2 * 0.1]]), **FLOAT64)


def test_a_ratio_that_moved_with_the_policy_would_have_no_gradient_here() -> None:
    """d/dS of -w rho S with a moving ratio is -w rho (1 + S), at S = -1 nothing; the ratio is a constant."""
    p = leaf([[-1]])
    q = p.detach().clone()
    for loss in (a_lol(p, q, float64([2]), all_true(p)), a_lol_seq(p, q, float64([2]), all_true(p))):
        assert_close(slopes(loss, p), float64([[-2]]), **EXACT)
    # The same for GOLD: d/dl of -e^l l is -e^l (1 + l).
    assert_close(slopes(reward_gold(p, float64([2]), all_true(p)), p), float64([[-2 * math.exp(-1)]]), **FLOAT64)


def test_the_same_gain_per_token_saturates_longer_responses() -> None:
    """log rho = T d: at T = 128 half a hundredth of a nat leaves the band [0.1, 1.9], at T = 8 it takes 0.08."""
    def cut(gains: list[float], n: int) -> Tensor:
        p = -torch.ones(len(gains), n, dtype=torch.float64)
        stats = a_lol(p, p - float64(gains)[:, None], torch.ones(len(gains)), all_true(p))[1]
        return stats["ratio/above"] + stats["ratio/below"]

    assert cut([0.0051, 0.0050], 128).tolist() == [1, 0]
    assert cut([0.081, 0.080], 8).tolist() == [1, 0]
    cuts = [int(cut([-0.3, -0.04, -0.01, 0.001, 0.011, 0.1], n).sum()) for n in (4, 16, 64, 256, 1024)]
    assert cuts == [0, 2, 4, 5, 6]


@pytest.mark.parametrize("name", ["nll", "gold 0.3", "seq 0.9", "difference 0.4", "k3 0.4"])
def test_twice_the_tokens_twice_the_loss_and_the_same_mean(name: str) -> None:
    ours = EVERY[name][0]
    p, q, w = data(torch.ones(3, 4, dtype=torch.bool), 7)
    once, twice = (p, q), (torch.cat([p, p], 1), torch.cat([q, q], 1))
    for length_norm, factor in ((False, 2), (True, 1)):
        short, long = (split(ours(a, b, w + 0.1, all_true(a), length_norm=length_norm))[0] for a, b in (once, twice))
        assert_close(long, factor * short, **FLOAT64)


def test_a_policy_that_is_its_reference_has_ratio_one_and_no_drift() -> None:
    p, _, w = data(torch.ones(3, 4, dtype=torch.bool), 11)
    q, mask, plain = p.detach().clone(), all_true(p), weighted_nll(p, w, all_true(p))
    for loss, stats in (a_lol(p, q, w, mask), a_lol_seq(p, q, w, mask), a_lol(p, q, w, mask, clip=None)):
        assert_close(loss, plain, **FLOAT64)
        assert_close(slopes(loss, p), slopes(plain, p), **FLOAT64)
        assert_close(stats["ratio"], torch.ones(3, dtype=torch.float64), **FLOAT64)
    value, stats = a_lol_kl(p, q, w, mask, coef=0.1)
    assert_close(value, plain, **FLOAT64)
    assert not stats["kl"].any() and not stats["shift"].any()
    assert_close(slopes(value, p) - slopes(plain, p), torch.full_like(p, 0.1), **FLOAT64)
    # k3 is at its least: nothing pulls.
    assert_close(slopes(a_lol_kl(p, q, w, mask, coef=0.1, term="k3"), p), slopes(plain, p), **FLOAT64)


def test_from_one_on_the_band_has_no_lower_end_and_just_below_it_has() -> None:
    p, q = float64([[-12], [-12], [-1]]), float64([[-2], [-2], [-11]])
    for clip, low, high in ((1.0, math.exp(-10), 2.0), (1.5, math.exp(-10), 2.5), (0.99, 0.01, 1.99),
                            (None, math.exp(-10), math.exp(10))):
        for function in (a_lol, a_lol_seq):
            stats = function(p, q, float64([1, 0, 1]), all_true(p), clip=clip)[1]
            assert_close(stats["ratio"], float64([low, low, high]), **FLOAT64)
            assert stats["ratio/below"].tolist() == [clip == 0.99, clip == 0.99, 0]
            assert stats["ratio/above"].tolist() == [0, 0, clip is not None]


def test_the_ends_of_the_band_are_inside_it() -> None:
    p = float64([[math.log1p(0.5)], [math.log1p(-0.5)]])
    stats = a_lol(p, torch.zeros_like(p), float64([1, 1]), all_true(p), clip=0.5)[1]
    assert not stats["ratio/above"].any() and not stats["ratio/below"].any()


def test_a_ratio_without_a_band_is_held_before_it_overflows() -> None:
    p, q = torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[-1001.0]])
    for function in (a_lol, a_lol_seq):
        loss, stats = function(p, q, torch.ones(1), all_true(p), clip=None)
        assert_close(stats, {"ratio": torch.tensor([math.exp(20)]), "ratio/below": torch.zeros(1),
                             "ratio/above": torch.ones(1), "shift": torch.tensor([1000.0])}, **FLOAT32)
        assert_close(slopes(loss, p), torch.tensor([[-math.exp(20)]]), **FLOAT32)
        # e^12 is more than float16 holds, and the arithmetic is not done there.
        found, _ = function(p.half(), torch.tensor([[-13.0]]).half(), torch.ones(1).half(), all_true(p), clip=None)
        assert_close(found.detach(), torch.tensor([math.exp(12)]), **FLOAT32)


def test_how_often_the_band_cuts_does_not_depend_on_the_weights() -> None:
    """Drifts of 10, 0 and 3000 nats of which only the second one weighs anything: two of three are cut."""
    p, q = torch.tensor([[-1.0], [-1.0], [-1.0]]), torch.tensor([[-11.0], [-1.0], [-3001.0]])
    for function in (a_lol, a_lol_seq):
        loss, stats = function(p, q, torch.tensor([0.0, 2.0, 0.0]), all_true(p))
        assert stats["ratio/above"].tolist() == [1, 0, 1]
        assert_close(stats["ratio"], torch.tensor([1.9, 1.0, 1.9]), **FLOAT32)
        assert loss.tolist() == [0, 2, 0]


@on_every
def test_a_response_that_weighs_nothing_is_nothing_however_far_it_drifted(name: str) -> None:
    """A ratio of e^3000 times an advantage of 0, in float32, with infinities under the mask."""
    mask = torch.tensor([[True, True, False], [False, False, False]])
    p = torch.tensor([[-1.0, -2.0, -math.inf], [math.inf, NAN, -math.inf]], requires_grad=True)
    q = torch.tensor([[-1e3, -2e3, math.inf], [-math.inf, NAN, math.inf]])
    loss, stats = split(EVERY[name][0](p, q, torch.tensor([0.0, 5.0]), mask))
    slope = slopes(loss, p)
    assert all(bool(torch.isfinite(x).all()) for x in (loss, slope, *stats.values()))
    assert loss[1] == 0 and not slope[~mask].any()
    if not name.endswith("0.4"):  # a term with a coefficient does not ask for the weight
        assert loss[0] == 0 and not slope.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@on_every
def test_narrow_log_probabilities_are_summed_and_exponentiated_in_float32(name: str, dtype: torch.dtype) -> None:
    """In bfloat16 a sum near -114 has a step of 0.5: ratios of 1.58 would come out as 1.65."""
    p, q = ((-1.78 + noise(k, 2, 64, scale=0.05)).to(dtype) for k in (0, 1))
    w, mask = torch.tensor([0.7, 1.3], dtype=dtype), all_true(p)
    (loss, stats), (exact, exact_stats) = (
        split(EVERY[name][0](*numbers, mask)) for numbers in ((p, q, w), (p.double(), q.double(), w.double())))
    for narrow, wide in zip((loss, *stats.values()), (exact, *exact_stats.values()), strict=True):
        assert narrow.dtype == torch.float32
        assert_close(narrow.double(), wide, **FLOAT32)


def test_gold_holds_a_probability_between_its_floor_and_one() -> None:
    # e^-1 = 0.37 is above the floor, e^-3 = 0.05 below; rounding may leave a log-probability above 0.
    p = leaf([[-1, -3, 1e3]])
    loss = reward_gold(p, float64([2]), all_true(p))
    assert_close(slopes(loss, p), float64([[-2 * math.exp(-1), -0.2, -2]]), **FLOAT64)
    for floor, least in ((0.0, math.exp(-3)), (1.0, 1.0)):
        assert_close(slopes(reward_gold(p, float64([1]), all_true(p), floor=floor), p)[0, 1], float64(-least),
                     **FLOAT64)


def test_the_difference_pushes_down_what_is_worth_less_than_its_coefficient() -> None:
    """Weights 0.05, 0.1 and 0.4 at a coefficient of 0.1 become -0.05, 0 and 0.3 on every token, whatever the drift."""
    p, q, _ = data(torch.ones(3, 2, dtype=torch.bool), 3)
    slope = slopes(a_lol_kl(p, q, float64([0.05, 0.1, 0.4]), all_true(p), coef=0.1), p)
    assert_close(slope, float64([[0.05] * 2, [0.0] * 2, [-0.3] * 2]), **FLOAT64)
    after = (p - slope).detach().sum(1) - p.detach().sum(1)
    assert after[0] < 0 < after[2]


def test_the_quotient_adds_to_every_weight_and_is_nothing_for_a_certain_reference() -> None:
    # Q = -4 and coef 0.2: S / Q = 3/4, and every token weighs 0.2 / 4 more.
    p, q = leaf([[-1, -2], [-1, -2]]), float64([[-1, -3], [0, 0]])
    loss, stats = a_lol_kl(p, q, float64([0.5, 0.5]), all_true(p), coef=0.2, term="quotient")
    assert_close(loss.detach(), float64([1.5 + 0.2 * 0.75, 1.5]), **FLOAT64)
    assert_close(stats, {"kl": float64([0.75, 0]), "shift": float64([1, -3])}, **FLOAT64)
    assert_close(slopes(loss, p), float64([[-0.55] * 2, [-0.5] * 2]), **FLOAT64)


def test_k3_pulls_back_from_both_sides() -> None:
    # l - q = log 2: e^-log 2 - 1 + log 2, slope 1 - 1/2; l - q = -log 2: slope 1 - 2.
    p, q = leaf([[-1, -1]]), float64([[-1 - math.log(2), -1 + math.log(2)]])
    loss, stats = a_lol_kl(p, q, float64([0]), all_true(p), coef=1.0, term="k3")
    assert_close(stats["kl"], float64([0.5 - 1 + math.log(2) + 2 - 1 - math.log(2)]), **FLOAT64)
    assert_close(slopes(loss, p), float64([[0.5, -1]]), **FLOAT64)


def test_pro_of_two_by_hand() -> None:
    # T = 1: log(e^-1 + e^-2) + 1 = log(1 + e^-1); the better one has the share 1 / (1 + e^-1). SFT: 0.05 * 1^2 * 4.
    loss, stats, slope, by_best = ranked([[-1, -2]], [[3, 2]], [-4])
    rank, share = math.log1p(math.exp(-1)), 1 / (1 + math.exp(-1))
    assert_close(loss, float64([rank + 0.2]), **FLOAT64)
    assert_close(stats, {"rank": float64([rank]), "sft": float64([4])}, **FLOAT64)
    assert_close(slope, float64([[share - 1, 1 - share]]), **FLOAT64)
    assert_close(by_best, float64([-0.05]), **FLOAT64)


def test_pro_of_four_by_hand() -> None:
    # All s = 0: log 4 + log 3 + log 2. Gaps 3, 5, 6 (T* 6), then 2, 3 (T* 3), then 1; the shares are equal.
    loss, stats, slope, by_best = ranked([[0, 0, 0, 0]], [[6, 3, 1, 0]], [-2])
    assert_close(stats["rank"], float64([math.log(24)]), **FLOAT64)
    assert_close(loss, float64([math.log(24) + 0.05 * 9 * 2]), **FLOAT64)
    assert_close(slope, float64([[6 / 4 - 6, 3 / 4 + 3 / 3 - 3, 5 / 4 + 2 / 3 + 1 / 2 - 1, 6 / 4 + 3 / 3 + 1 / 2]]),
                 **FLOAT64)
    assert_close(by_best, float64([-0.45]), **FLOAT64)


def test_pro_of_a_tie_ranks_nothing_and_costs_log_two() -> None:
    loss, _, slope, _ = ranked([[-1, -2]], [[2, 2]], [-4], sft_coef=0.0)
    assert_close(loss, float64([math.log(2)]), **FLOAT64)
    assert not slope.any()


@pytest.mark.parametrize(("call", "message"), [
    (lambda p, w, m: reward_gold(p, w, m, floor=-0.1), "floor=-0.1 is no probability"),
    (lambda p, w, m: reward_gold(p, w, m, floor=1.1), "is no probability: R-GOLD's usual value"),
    (lambda p, w, m: a_lol(p, p, w, m, clip=0.0), "clip=0.0 leaves no band around a ratio of 1; none switches"),
    (lambda p, w, m: a_lol_seq(p, p, w, m, clip=-1.0), "leaves no band around a ratio of 1; none switches clipping"),
    (lambda p, w, m: a_lol_kl(p, p, w, m, coef=-0.1), "coef=-0.1 would pay the policy for leaving the reference"),
    (lambda p, w, m: a_lol_kl(p, p, w, m, coef=0.1, term="kl"), "term='kl' is not one of difference, quotient, k3"),
    (lambda p, w, m: pro(p, w, p, m, sft_coef=-0.1), "sft_coef=-0.1 would unlearn the best response"),
])
def test_what_means_nothing_is_refused(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3), torch.ones(2), torch.ones(2, 3, dtype=torch.bool))


@on_every
@pytest.mark.parametrize("mean", [False, True])
@given(response_masks(), seeds)
def test_losses_and_gradients_agree_with_the_reference(name: str, mean: bool, mask: Tensor, seed: int) -> None:
    ours, reference = EVERY[name]
    p, q, w = data(mask, seed)
    loss, _ = split(ours(p, q, w, mask, length_norm=mean))
    rows = zip(rows_of(p, mask), rows_of(q, mask), w.tolist(), strict=True)
    expected = [truth.of_means(reference, *row, by_sum=name in OF_SUMS) if mean else reference(*row) for row in rows]
    assert_close(loss.detach(), float64([value for value, _ in expected]), **FLOAT64)
    assert_close(slopes(loss, p), padded([by_token for _, by_token in expected], mask), **FLOAT64)


@pytest.mark.parametrize("mean", [False, True])
@given(response_masks(), seeds, CLIPS)
def test_stats_of_the_ratios_agree_with_the_reference(mean: bool, mask: Tensor, seed: int, clip: float | None) -> None:
    """What weighs nothing counts like the rest; a response without tokens has no ratios, its mean over them is 0."""
    p, q, w = data(mask, seed)
    rows = list(zip(rows_of(p, mask), rows_of(q, mask), strict=True))
    shift = [(truth.total(own) - truth.total(ref)) / (max(len(own), 1) if mean else 1) for own, ref in rows]
    whole = [[d] for d in shift]
    tokens = [[a - b for a, b in zip(own, ref, strict=True)] for own, ref in rows]
    for function, log_ratios in ((a_lol, whole), (a_lol_seq, tokens)):
        expected = {
            "ratio": [[truth.held_in_band(d, clip) for d in row] for row in log_ratios],
            "ratio/below": [[float(truth.outside(d, clip)[0]) for d in row] for row in log_ratios],
            "ratio/above": [[float(truth.outside(d, clip)[1]) for d in row] for row in log_ratios]}
        means = {name: float64([math.fsum(row) / max(len(row), 1) for row in x]) for name, x in expected.items()}
        assert_close(function(p, q, w, mask, clip=clip, length_norm=mean)[1], means | {"shift": float64(shift)},
                     **FLOAT64)


@given(response_masks(), seeds, st.sampled_from(["difference", "quotient", "k3"]), st.booleans())
def test_stats_of_the_kl_terms_agree_with_the_reference(mask: Tensor, seed: int, term: str, mean: bool) -> None:
    """The term is what a weight of 0 and a coefficient of 1 leave of the loss."""
    p, q, w = data(mask, seed)
    reference = {"difference": truth.lol_difference, "quotient": truth.lol_quotient, "k3": truth.lol_k3}[term]
    stats = a_lol_kl(p, q, w, mask, coef=0.7, term=term, length_norm=mean)[1]
    rows = list(zip(rows_of(p, mask), rows_of(q, mask), strict=True))
    n = [max(len(own), 1) if mean else 1 for own, _ in rows]
    kl = [reference(own, ref, 0.0, 1.0)[0] / (1 if term == "quotient" else k)
          for (own, ref), k in zip(rows, n, strict=True)]
    shift = [(truth.total(own) - truth.total(ref)) / k for (own, ref), k in zip(rows, n, strict=True)]
    assert_close(stats, {"kl": float64(kl), "shift": float64(shift)}, **FLOAT64)


@given(seeds)
def test_an_endless_band_is_none_and_a_term_that_counts_nothing_is_none(seed: int) -> None:
    p, q, w = data(torch.ones(3, 4, dtype=torch.bool), seed)
    mask = all_true(p)
    for function in (a_lol, a_lol_seq):
        assert_close(function(p, q, w, mask, clip=1e8), function(p, q, w, mask, clip=None), **FLOAT64)
    for term in ("difference", "quotient", "k3"):
        assert_close(a_lol_kl(p, q, w, mask, coef=0.0, term=term)[0], weighted_nll(p, w, mask), **FLOAT64)


@given(response_masks(), seeds)
def test_pro_of_ragged_rankings_agrees_with_the_reference(mask: Tensor, seed: int) -> None:
    """Absent candidates hold junk; one candidate has nothing to be ranked against, and is not learnt either."""
    present = mask.sort(1, descending=True).values
    s = torch.where(present, -noise(seed, *mask.shape).abs(), NAN)
    rewards = torch.where(present, noise(seed + 1, *mask.shape, scale=2.0).sort(1, descending=True).values, NAN)
    best = torch.where(present[:, 0], noise(seed + 2, len(mask), scale=9.0), NAN)
    loss, stats, slope, by_best = ranked(s.tolist(), rewards.tolist(), best.tolist(), present)
    expected = [truth.pro(*row) for row in zip(rows_of(s, present), rows_of(rewards, present), strict=True)]
    count = [0.05 * max(int(k) - 1, 0) ** 2 for k in present.sum(1)]
    sft = [-b if k else 0.0 for b, k in zip(best.tolist(), present[:, 0].tolist(), strict=True)]
    assert_close(stats, {"rank": float64([value for value, _ in expected]), "sft": float64(sft)}, **FLOAT64)
    assert_close(loss, stats["rank"] + float64(count) * float64(sft), **FLOAT64)
    assert_close(slope, padded([by_place for _, by_place in expected], present), **FLOAT64)
    assert_close(by_best, -float64(count), **FLOAT64)
