"""What the scores of labelled pairs say."""

import math

import pytest
import tiny
import tolerances as tol
import torch

from keel.bench.exam import examined
from keel.bench.pairwise import score_pairs
from keel.data.collate import collate
from keel.data.load import read_pairs
from keel.data.records import Message, PreferencePair, Prompt, Strength
from keel.data.render import PairRow, render_pairs, template
from keel.errors import NumericsError
from keel.models.forward import response_scores
from keel.models.load import ModelConfig, load_tokenizer, scalar_model
from keel.rng import digest


def row(i: int, *, prompt: str = "", n: tuple[int, int] = (2, 2), mean: float | None = None, **meta) -> PairRow:
    record = Prompt(f"p{i}", (Message("user", prompt or f"q{i}"),), meta=meta)
    votes = None if mean is None else Strength(mean, 1.0)
    return PairRow([1, 2], [5] * n[0], [6] * n[1], PreferencePair(record, "a", "b", strength=votes))


def gaps(*values: float) -> torch.Tensor:
    return torch.stack([torch.tensor(values), torch.zeros(len(values))])


def told(found: dict) -> tuple:
    return found["mean"], found["n"]


def test_accuracy_counts_ties_as_wrong_and_resamples_prompts():
    rows = [row(0, prompt="same"), row(1, prompt="same"), row(2), row(3)]
    found = examined(gaps(1.0, 2.0, 0.0, -1.0), rows, seed=0)
    assert told(found["accuracy"]) == (0.5, 4) and found["n_prompts"] == 3
    # Prompts are drawn whole: the two right answers of one prompt come and go together.
    one_prompt = examined(gaps(1.0, -1.0), [row(0, prompt="x"), row(1, prompt="x")], seed=0)["accuracy"]
    assert (one_prompt["low"], one_prompt["high"]) == (0.5, 0.5)


def test_views_of_the_labels():
    rows = [row(0, mean=2.0, judge_label=1), row(1, mean=-1.0, judge_label=0), row(2, mean=-2.0, judge_label=1),
            row(3, mean=0.0, judge_label=-1)]
    views = examined(gaps(1.0, 1.0, -1.0, -1.0), rows, seed=0)["views"]
    assert {name: told(view) for name, view in views.items()} == {
        "original": (0.5, 4), "without_suspects": (0.5, 2),  # pairs 0 and 3: right, wrong
        "relabelled": (0.5, 4),  # right, wrong (turned), right (turned), wrong
        "judge": (pytest.approx(1 / 3), 3), "intersection": (0.5, 2)}
    alone = examined(gaps(1.0, 0.0, 1.0), [row(i) for i in range(3)], seed=0)
    assert alone["views"] == {"original": alone["accuracy"]}
    nobody = examined(gaps(1.0), [row(0, mean=-1.0)], seed=0)["views"]["without_suspects"]
    assert nobody == {"mean": None, "low": None, "high": None, "n": 0}


def test_subsets_are_named_by_meta_and_ids_are_none():
    rows = [row(i, domain="ab"[i % 2], source="one", category=str(i)) for i in range(80)]
    subsets = examined(gaps(*([1.0, -1.0] * 40)), rows, seed=0)["subsets"]
    assert {name: {v: told(x) for v, x in part.items()} for name, part in subsets.items()} == {
        "domain": {"a": (1.0, 40), "b": (0.0, 40)}}


def test_lengths_and_the_longer_answer():
    sizes = [(1, 2), (2, 1), (3, 3), (9, 1), (1, 20), (30, 1), (4, 5), (50, 2)]
    found = examined(gaps(*([1.0] * 4 + [-1.0] * 4)), [row(i, n=n) for i, n in enumerate(sizes)], seed=0)
    assert told(found["longer_wins"]) == (pytest.approx(4.5 / 8), 8)
    quarters = found["lengths"]["quarters"]
    assert [(q["shortest"], q["longest"], q["mean"], q["n"]) for q in quarters] == [
        (3, 3, 1.0, 2), (6, 9, 0.5, 2), (10, 21, 0.5, 2), (31, 52, 0.0, 2)]
    assert told(found["lengths"]["chosen_longer"]) == (0.5, 4)
    assert told(found["lengths"]["chosen_shorter"]) == (pytest.approx(1 / 3), 3)


def test_accuracy_by_tenth_of_strength():
    means = [float(i) for i in range(20)]
    found = examined(gaps(*([-1.0] * 10 + [1.0] * 10)), [row(i, mean=m) for i, m in enumerate(means)], seed=0)
    assert [(q["strength"], q["mean"], q["n"]) for q in found["quantiles"]] == [
        (2 * q + 0.5, float(q >= 5), 2) for q in range(10)]
    assert examined(gaps(1.0, 1.0), [row(0, mean=1.0), row(1)], seed=0)["quantiles"] == []


def test_the_temperature_that_is_judged_never_saw_what_it_is_judged_by():
    rows = [row(i) for i in range(40)]
    scores = gaps(*[8.0 if i % 4 else -8.0 for i in range(40)])  # right in 3 of 4, and far too sure
    found = examined(scores, rows, seed=0)["calibration"]
    assert found["temperature"] == pytest.approx(8 / math.log(3), rel=tol.RELATIVE32)  # sigmoid(8 / T) = 3/4
    assert found["as_it_is"]["ece"] == pytest.approx(1 / (1 + math.exp(-8)) - 0.75, rel=tol.RELATIVE32)
    assert found["after_temperature"]["nll"] < found["as_it_is"]["nll"]
    # Two prompts in different halves: each is judged by the temperature of the other, 1/1000 if right, 1000 if wrong.
    seed = next(seed for seed in range(20) if digest(seed, "half", 0) % 2 != digest(seed, "half", 1) % 2)
    crossed = examined(gaps(1.0, -1.0), rows[:2], seed=seed)["calibration"]["after_temperature"]
    assert crossed["nll"] == pytest.approx((math.log1p(math.exp(-0.001)) + 1000) / 2, rel=tol.RELATIVE32)
    assert sum(r["count"] for r in found["as_it_is"]["reliability"]) == 40


def test_the_histogram_of_differences_counts_in_halves_of_their_spread():
    found = examined(gaps(-1.0, 1.0, 1.0, -1.0), [row(i) for i in range(4)], seed=0)["gap"]
    assert (found["mean"], found["std"]) == (0.0, 1.0)
    assert [i for i, n in enumerate(found["histogram"]) if n] == [6, 10] and sum(found["histogram"]) == 4


def test_scores_do_not_depend_on_the_batches(tmp_path):
    folder = str(tiny.llama(tmp_path / "m"))
    model, words = scalar_model(ModelConfig(path=folder), seed=3), template(load_tokenizer(folder))
    rows, _ = render_pairs(words, read_pairs(tiny.pairs(tmp_path / "pairs.jsonl"))[0], 64)
    done: list[int] = []
    scores = score_pairs(model, rows, pad_id=words.pad_id, micro_tokens=60, on_done=done.append)
    assert done[-1] == len(rows) and done == sorted(done) and len(done) > 1
    together = score_pairs(model, rows, pad_id=words.pad_id, micro_tokens=100_000)
    torch.testing.assert_close(scores, together, **tol.FLOAT32)
    alone = [response_scores(model, collate([side], words.pad_id)).item() for r in rows[:3]
             for side in (r.chosen, r.rejected)]
    torch.testing.assert_close(scores[:, :3].t().flatten(), torch.tensor(alone), **tol.FLOAT32)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match=r"the score of \d+ pairs is not finite"):
        score_pairs(model, rows, pad_id=words.pad_id, micro_tokens=60)
