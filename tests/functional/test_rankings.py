"""Scores against rankings: pairs put right, the best one found."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from references import preference as levels_of
from references import rankings as truth
from tolerances import EXACT, FLOAT64
from torch import Tensor
from torch.testing import assert_close

from keel.functional.rankings import Order, order_of

NAN = float("nan")


def counts(found: Order) -> list[list[float]]:
    return torch.stack([found.right, found.wrong, found.pairs, found.top], 1).tolist()


def flags(*rows: str) -> Tensor:
    return torch.tensor([[char == "x" for char in row] for row in rows])


def test_order_by_hand() -> None:
    scores = torch.tensor([
        [3.0, 1.0, 2.0],  # 3 > 1 and 3 > 2 right, 1 < 2 wrong; the best is found
        [1.0, 3.0, 2.0],  # the first two tie: 1 < 2 wrong, 3 > 2 right; one of the best two is highest
        [2.0, 2.0, NAN],  # equal scores: neither right nor wrong, and the best one does not stand out
        [-9.0, -8.0, NAN],  # below zero too, absence is not a score
    ])
    present, tied = flags("xxx", "xxx", "xx.", "xx."), flags("...", ".x.", "..x", "...")
    found = order_of(scores, present, tied)
    assert counts(found) == [[2, 1, 3, 1], [1, 1, 2, 1], [0, 0, 1, 0], [0, 1, 1, 0]]
    assert_close(found.tau, torch.tensor([1 / 3, 0, 0, -1], dtype=torch.float64), **FLOAT64)


def test_nothing_to_order_is_zero() -> None:
    found = order_of(torch.zeros(1, 2), flags("xx"), flags(".x"))
    assert counts(found)[0][:3] == [0, 0, 0] and float(found.tau) == 0


def test_the_best_must_beat_all_others_alone() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    found = order_of(scores, flags("xxx", "xxx"), flags(".x.", ".x."))
    # Two of the best rank share the highest score; then one of them shares it with a worse one.
    assert_close(found.top, torch.tensor([1.0, 0.0], dtype=torch.float64), **EXACT)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=6),
       st.integers(0, 2), st.sampled_from([NAN, float("inf"), -1e30]))
def test_order_agrees_with_the_reference_and_ignores_padding(
    row: list[tuple[int, bool]], n_padding: int, junk: float,
) -> None:
    scores, tied = [float(score) for score, _ in row], [False, *(flag for _, flag in row[1:])]
    right, wrong, pairs, top = truth.order_of(scores, levels_of.levels(tied))
    padded = torch.tensor([scores + [junk] * n_padding, [junk] * (len(row) + n_padding)])
    present = torch.tensor([[True] * len(row) + [False] * n_padding, [False] * (len(row) + n_padding)])
    found = order_of(padded, present, torch.tensor([tied + [False] * n_padding] * 2))
    assert counts(found) == [[right, wrong, pairs, top], [0, 0, 0, 0]]
    assert found.right.dtype == torch.float64


def test_counts_carry_no_graph() -> None:
    scores = torch.tensor([[1.0, 0.0]], requires_grad=True)
    found = order_of(scores, flags("xx"), flags(".."))
    assert not any(x.requires_grad for x in (found.right, found.wrong, found.top, found.tau))
