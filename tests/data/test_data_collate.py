"""Padding and token budgets, as laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keel.data import Message, PairRow, PreferencePair, Prompt, Row, budget_batches, collate, collate_pairs

PAD = 99


@st.composite
def rows(draw):
    made = []
    for i in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(st.integers(0, 50), min_size=1, max_size=9))
        made.append(Row(ids, draw(st.integers(0, len(ids))), str(i)))
    return made


@given(rows=rows(), side=st.sampled_from(["right", "left"]))
def test_padding_keeps_every_token_in_order(rows, side):
    batch = collate(rows, PAD, side=side)
    width = max(len(row.ids) for row in rows)
    for i, row in enumerate(rows):
        n_pad = width - len(row.ids)
        expected = [PAD] * n_pad + row.ids if side == "left" else row.ids + [PAD] * n_pad
        assert batch.ids[i].tolist() == expected
        assert batch.ids[i][batch.attention_mask[i]].tolist() == row.ids
        assert batch.ids[i][batch.response_mask[i]].tolist() == row.ids[row.n_prompt:]
    assert not (batch.response_mask & ~batch.attention_mask).any()
    assert batch.record_ids == tuple(row.record_id for row in rows)
    assert (batch.ids.dtype, batch.attention_mask.dtype) == (torch.int64, torch.bool)


@given(rows=rows())
def test_both_sides_hold_the_same_tokens(rows):
    right, left = collate(rows, PAD), collate(rows, PAD, side="left")
    assert right.ids[right.attention_mask].tolist() == left.ids[left.attention_mask].tolist()
    assert right.ids[right.response_mask].tolist() == left.ids[left.response_mask].tolist()


@pytest.mark.parametrize("side, ids, response", [
    ("right", [[1, 2, 3], [4, 99, 99]], [[0, 0, 1], [1, 0, 0]]),
    ("left", [[1, 2, 3], [99, 99, 4]], [[0, 0, 1], [0, 0, 1]]),
])
def test_a_batch_by_hand(side, ids, response):
    batch = collate([Row([1, 2, 3], 2, "a"), Row([4], 0, "b")], PAD, side=side)
    assert batch.ids.tolist() == ids and batch.response_mask.int().tolist() == response


def test_chosen_rows_come_first():
    records = [PreferencePair(Prompt(name, (Message("user", "?"),)), "x", "y", *numbers)
               for name, numbers in (("a", (0.5, 1.0, 2.0)), ("b", (0.0, 0.5, 1.0)))]
    pairs = [PairRow([1, 2], [3], [4, 5], records[0]), PairRow([6], [7, 8], [9], records[1])]
    assert [pair.n_tokens for pair in pairs] == [8, 6] and pairs[0].rejected.n_tokens == 4
    batch = collate_pairs(pairs, PAD)
    assert batch.tokens.ids.tolist() == [[1, 2, 3, PAD], [6, 7, 8, PAD], [1, 2, 4, 5], [6, 9, PAD, PAD]]
    assert batch.tokens.response_mask.int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]]
    assert batch.tokens.record_ids == ("a", "b", "a", "b") and batch.n_pairs == 2
    assert (batch.margin.tolist(), batch.label_prob.tolist(), batch.weight.tolist()) == ([0.5, 0], [1, 0.5], [2, 1])


@given(lengths=st.lists(st.integers(1, 40), max_size=40), budget=st.integers(1, 120))
def test_budget_batches_hold_every_row_once_within_the_budget(lengths, budget):
    batches = budget_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    # Full: the next row would not have fitted in. Longest first, so its length is at most this batch's longest.
    for batch in batches[:-1]:
        assert (len(batch) + 1) * max(lengths[i] for i in batch) > budget
    assert batches == budget_batches(lengths, budget)


def test_budget_batches_by_hand():
    assert budget_batches([3, 9, 1, 4, 4], 9) == [[1], [3, 4], [0, 2]]
    assert budget_batches([5, 5], 4) == [[0], [1]]
