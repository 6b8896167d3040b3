"""Numbers of a frozen model on disk: exact, cut short and gone on with, and of one model only. The rest of it stands in
tests/recipes/test_preference.py, whose recipe uses it too."""

import json

import numpy as np
import pytest
import tiny
import tolerances as tol
import torch
from recipes.offline_runs import by_hand, rows_of, whole_batch

from keel.data.render import Row
from keel.errors import NumericsError, RunError
from keel.models.load import ModelConfig, ScratchConfig, causal_lm
from keel.train.frozen import FrozenNumbers, reference_identity, row_digest, row_numbers


def given(numbers):
    """A `compute` that gives each row its number, two rows at a time, and tells which it was asked for."""
    taken = []

    def compute(skip):
        for start in range(0, len(numbers), 2):
            part = list(range(start, min(start + 2, len(numbers))))
            if not skip(part):
                taken.append(part)
                yield part, [numbers[i] for i in part]
    return compute, taken


def names_of(n):
    return [f"{i:032x}" for i in range(n)]


def test_every_float32_comes_back_from_the_disk(tmp_path):
    draw = torch.Generator().manual_seed(0)
    numbers = (torch.randn(50, 3, generator=draw) * torch.logspace(-30, 30, 50)[:, None]).tolist()
    cache = FrozenNumbers(tmp_path, {"m": 1})
    first, n = cache.fill(names_of(50), given(numbers)[0], names_of(50))
    again, none = cache.fill(names_of(50), given(numbers)[0], names_of(50))
    assert (n, none) == (50, 0)
    for a, b, told in zip(first, again, numbers, strict=True):
        assert a.tobytes() == b.tobytes() == np.array(told, dtype=np.float32).tobytes()


def test_every_float64_comes_back_from_the_disk_where_it_is_asked_for(tmp_path):
    draw = torch.Generator().manual_seed(0)
    scale = torch.logspace(-300, 300, 50, dtype=torch.float64)
    numbers = (torch.randn(50, 3, generator=draw).double() / 3 * scale[:, None]).tolist()
    cache = FrozenNumbers(tmp_path, {"m": 1}, np.float64)
    for _ in range(2):
        found, _ = cache.fill(names_of(50), given(numbers)[0], names_of(50))
        assert [x.tolist() for x in found] == numbers and {x.dtype for x in found} == {np.dtype(np.float64)}


def test_rows_of_any_length_and_none_at_all(tmp_path):
    numbers = [[-1.0], [-2.0, -3.0], [], [-4.0] * 5]
    cache = FrozenNumbers(tmp_path, {})
    for _ in range(2):
        assert [x.tolist() for x in cache.fill(names_of(4), given(numbers)[0], names_of(4))[0]] == numbers


def test_a_row_that_stands_twice_is_computed_once_and_counted_as_two(tmp_path):
    names, told = ["a", "b", "a", "c"], []
    compute, taken = given([[1.0], [2.0], [1.0], [3.0]])
    found, n = FrozenNumbers(tmp_path, {}).fill(names, compute, names, lambda *x: told.append(x))
    assert [x.tolist() for x in found] == [[1.0], [2.0], [1.0], [3.0]] and n == 4 and taken == [[0, 1], [2, 3]]
    assert told == [(3, 4), (4, 4)]
    assert len((FrozenNumbers(tmp_path, {}).file).read_text().splitlines()) == 3


@pytest.mark.parametrize("cut", [1, 10, 47, 60, 100])
def test_a_file_that_a_kill_cut_anywhere_is_gone_on_with(tmp_path, cut):
    numbers = [[float(-i), 0.5] for i in range(6)]
    whole = FrozenNumbers(tmp_path / "whole", {})
    whole.fill(names_of(6), given(numbers)[0], names_of(6))
    torn = FrozenNumbers(tmp_path / "torn", {})
    torn.folder.mkdir()
    torn.file.write_bytes(whole.file.read_bytes()[:-cut])
    compute, taken = given(numbers)
    found, n = torn.fill(names_of(6), compute, names_of(6))
    assert [x.tolist() for x in found] == numbers and torn.file.read_bytes() == whole.file.read_bytes()
    assert 0 < n < 6 and taken[-1] == [4, 5] and len(taken) == (n + 1) // 2


def test_another_model_has_another_file(tmp_path):
    one, other = FrozenNumbers(tmp_path, {"a": 1, "b": 2}), FrozenNumbers(tmp_path, {"a": 1, "b": 3})
    assert one.is_empty() and one.file != other.file and one.file == FrozenNumbers(tmp_path, {"b": 2, "a": 1}).file
    one.fill(names_of(2), given([[1.0], [2.0]])[0], names_of(2))
    assert not other.is_empty() and other.known() == {}


@pytest.mark.parametrize("line", ["{}", "[]", '{"row": "a", "numbers": 3}', '{"row": "a", "numbers": [[1]]}', "junk",
                                  '{"row": "a", "numbers": ["x"]}'])
def test_a_damaged_row_is_named_with_its_place(tmp_path, line):
    cache = FrozenNumbers(tmp_path, {})
    cache.file.write_text(f'{{"row": "b", "numbers": [1.0]}}\n{line}\n')
    with pytest.raises(RunError, match="a row of what a frozen model said of the data is damaged") as caught:
        cache.known()
    assert f"{cache.file}:2" in str(caught.value)


def test_numbers_that_are_not_finite_are_refused_with_their_records_and_not_kept(tmp_path):
    cache = FrozenNumbers(tmp_path, {})
    with pytest.raises(NumericsError, match="gives 1 records numbers that are not finite") as caught:
        cache.fill(["a", "b"], given([[1.0, 2.0], [1.0, float("nan")]])[0], ["ra", "rb"])
    assert "records rb" in str(caught.value) and cache.known() == {}


def test_the_digest_of_a_row_is_of_its_tokens_and_of_where_the_response_begins():
    base = row_digest(Row([1, 2, 3, 4], 2, "a"))
    assert base == row_digest(Row([1, 2, 3, 4], 2, "another name")) and len(base) == 32
    assert len({base, row_digest(Row([1, 2, 3, 4], 3, "a")), row_digest(Row([1, 2, 3, 5], 2, "a")),
                row_digest(Row([1, 2, 3], 2, "a")), row_digest(Row([12, 3, 4], 1, "a"))}) == 5


def test_numbers_of_a_row_are_its_log_probabilities_whatever_the_batch(tmp_path):
    cfg = whole_batch(tmp_path)
    model, rows = causal_lm(cfg.policy), rows_of(cfg)
    with torch.no_grad():
        expected = [by_hand(model, row) for row in rows]
    for micro in (1, 40, 10_000):
        parts = list(row_numbers(model, rows, pad_id=0, micro_tokens=micro)(lambda part: False))
        found = {i: numbers for part, numbers_of in parts for i, numbers in zip(part, numbers_of, strict=True)}
        for i, row in enumerate(rows):
            torch.testing.assert_close(torch.tensor(found[i]), expected[i], **tol.FLOAT32)
            assert len(found[i]) == row.n_tokens - row.n_prompt
    assert list(row_numbers(model, rows, pad_id=0, micro_tokens=40)(lambda part: True)) == []


def test_a_model_made_here_is_known_by_its_shape_and_seed_and_one_on_disk_by_its_weights(tmp_path):
    one, other = (ModelConfig(path=str(tiny.llama(tmp_path / str(i), seed=i))) for i in (0, 1))
    moved = ModelConfig(path=str(tiny.llama(tmp_path / "moved", seed=0)))
    ids = [json.dumps(reference_identity(spec, causal_lm(spec), seed), sort_keys=True)
           for spec, seed in ((one, 0), (one, 1), (moved, 0), (other, 0))]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    small, wide = (ModelConfig(path=one.path, init="scratch", scratch=ScratchConfig(
        hidden=n, layers=1, heads=2, intermediate=24, max_positions=64)) for n in (16, 32))
    drawn = [reference_identity(spec, causal_lm(spec, seed=seed), seed) for spec, seed in
             ((small, 0), (small, 1), (wide, 0), (small, 0))]
    assert drawn[0] == drawn[3] and drawn[0] != drawn[1] and drawn[0] != drawn[2]
