"""KTO on single responses that are good or bad by themselves."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import flat_gradient, killed_here, logged, preference_config, same_results

from keel.data.load import read_labelled
from keel.data.records import Labelled, Message, Prompt
from keel.data.render import Row, template
from keel.errors import ConfigError, DataError
from keel.models.load import FrozenModelConfig, ModelConfig, causal_lm, load_tokenizer
from keel.recipes import preference
from keel.train.labelled import LabelledRow, balance_note, labelled_rows, mismatched_rows
from keel.train.step import Learner


def labelled_file(tmp: Path, n: int = 12, keep=lambda i, label: True) -> Path:
    """Both responses of each pair as rows of their own, in TRL's columns; `keep` leaves some of them out."""
    pairs = [json.loads(line) for line in tiny.pairs(tmp / "told_pairs.jsonl", n).read_text().splitlines()]
    rows = [{"id": f"{i}/{side}", "prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
            for i, pair in enumerate(pairs) for side in ("chosen", "rejected") if keep(i, side == "chosen")]
    return tiny.write_rows(tmp / "labelled.jsonl", rows)


def kto(tmp: Path, *, keep=lambda i, label: True, held: float = 0.0, **changes):
    data = preference_config(tmp).data
    data = data.model_copy(update={"path": str(labelled_file(tmp, keep=keep)), "validation_fraction": held})
    return preference_config(tmp, **({"steps": 2, "n_samples": 0, "save_every": 1000, "data": data, "loss": "kto"}
                                     | changes))


def rendered(cfg) -> list[LabelledRow]:
    words = template(load_tokenizer(cfg.policy.path))
    return labelled_rows(words, read_labelled(cfg.data.path)[0], cfg.data.max_length, cfg.data.too_long)[0]


def summed(model, row: Row) -> torch.Tensor:
    """Log-probability of a response from a row of its own, in plain transformers."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return sum(logits[t - 1, row.ids[t]] for t in range(row.n_prompt, len(row.ids)))


def two_models(tmp: Path, cfg) -> tuple[list, object]:
    other = str(tiny.llama(tmp / "other", seed=1))
    models = [causal_lm(ModelConfig(path=path)) for path in (cfg.policy.path, other)]
    return models, cfg.model_copy(update={"reference": FrozenModelConfig(path=other)})


def test_it_learns_which_responses_are_good(tmp_path):
    result = preference.run(kto(tmp_path, held=0.3, steps=16, eval_every=16))
    found, before = result.values["evaluation"], result.values["before"]
    assert found["auc"] > max(0.9, before["auc"]) and found["auc_low"] <= found["auc"] <= found["auc_high"]
    assert found["loss"] < before["loss"] and found["rewards/desirable"] > found["rewards/undesirable"]
    assert result.values["headline"]["after"]["mean"] == found["auc"]
    assert result.values["headline"]["before"]["mean"] == found["length_auc"]
    assert "good against bad responses" in result.values["headline"]["metric"]


def test_a_step_is_what_its_rows_say_one_by_one(tmp_path):
    """Against one row at a time: the baseline over all mismatched responses, the mean over rows, means per class."""
    models, cfg = two_models(tmp_path, kto(tmp_path, keep=lambda i, label: label or i % 2 == 0, steps=1, batch=18,
                                           micro_tokens=40, desirable_weight=0.8, undesirable_weight=1.3, beta=0.2))
    preference.run(cfg)
    (row,), rows = logged(cfg.out), rendered(cfg)
    with torch.no_grad():
        drift = [float(summed(models[0], one.row) - summed(models[1], one.row)) for one in rows]
        others = [float(summed(models[0], one) - summed(models[1], one))
                  for one in mismatched_rows(rows, max_length=64, seed=0)]
    z = max(0.0, sum(others) / 18)
    good = [one.record.label for one in rows]
    assert sum(good) == 12 and len(rows) == 18
    loss = [0.8 / (1 + math.exp(0.2 * (d - z))) if g else 1.3 / (1 + math.exp(0.2 * (z - d)))
            for d, g in zip(drift, good, strict=True)]
    reward = {g: [0.2 * d for d, h in zip(drift, good, strict=True) if g == h] for g in (True, False)}
    length = {g: [one.row.n_tokens - one.row.n_prompt for one in rows if one.record.label == g] for g in (True, False)}
    expected = {"loss": sum(loss) / 18, "kto/baseline": z, "desirable": 12 / 18,
                "rewards/desirable": sum(reward[True]) / 12, "rewards/undesirable": sum(reward[False]) / 6,
                "drift/desirable": 5 * sum(reward[True]) / 12, "length/undesirable": sum(length[False]) / 6}
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=tol.GRADIENT32["rtol"])
    with torch.no_grad():
        told = sum(float(summed(models[0], one.row)) for one in rows if one.record.label) / sum(length[True])
    assert row["logps/desirable"] == pytest.approx(told, rel=tol.GRADIENT32["rtol"])


def test_the_gradient_of_a_step_with_cross_entropy_of_good_responses(tmp_path, monkeypatch):
    """By autograd through plain transformers; the baseline is a constant, bad responses have no cross-entropy."""
    seen, step = [], Learner.step

    def spied(learner, number, ids, **how):
        seen.append(flat_gradient(learner))
        return step(learner, number, ids, **how)

    monkeypatch.setattr(Learner, "step", spied)
    models, cfg = two_models(tmp_path, kto(tmp_path, steps=1, batch=24, micro_tokens=60, nll_coef=0.7))
    preference.run(cfg)
    rows = rendered(cfg)
    with torch.no_grad():
        others = [summed(models[0], one) - summed(models[1], one)
                  for one in mismatched_rows(rows, max_length=64, seed=0)]
        z = torch.stack(others).mean().clamp_min(0)
        held = [summed(models[1], one.row) for one in rows]
    total, n = torch.zeros(()), sum(one.row.n_tokens - one.row.n_prompt for one in rows if one.record.label)
    for one, q in zip(rows, held, strict=True):
        s = summed(models[0], one.row)
        sign = 1 if one.record.label else -1
        total = total + (1 - torch.sigmoid(sign * 0.1 * (s - q - z))) / 24
        total = total - (0.7 * s / n if one.record.label else 0.0)
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in models[0].parameters()])
    torch.testing.assert_close(seen[0], expected, **tol.GRADIENT32)
    assert "nll" in logged(cfg.out)[0]


def test_micro_batches_change_nothing(tmp_path):
    found = []
    for name, micro in {"one": 10_000, "many": 20}.items():
        cfg = kto(tmp_path, out=tmp_path / name, steps=3, micro_tokens=micro, nll_coef=0.3)
        preference.run(cfg)
        found.append([{key: x for key, x in row.items() if key != "phase"} for row in logged(cfg.out)])
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b, **tol.MICRO_BATCHES)


def test_a_step_without_one_of_the_classes_says_nothing_of_it(tmp_path):
    cfg = kto(tmp_path, batch=1, steps=8, nll_coef=0.5)
    preference.run(cfg)
    rows = logged(cfg.out)
    assert {row["desirable"] for row in rows} == {0.0, 1.0}
    for row in rows:
        there, absent = ("desirable", "undesirable")[:: 1 if row["desirable"] else -1]
        assert f"rewards/{there}" in row and f"rewards/{absent}" not in row and math.isfinite(row["loss"])
        assert ("nll" in row) == bool(row["desirable"])


def test_held_out_area_is_the_share_of_good_and_bad_in_order(tmp_path):
    """Of a policy against another reference, by counting; none where all held-out responses are good."""
    models, cfg = two_models(tmp_path, kto(tmp_path, steps=1))
    held = labelled_file(tmp_path)
    rows = [json.loads(line) for line in held.read_text().splitlines()]
    others = [row | {"prompt": tiny.conversations(60)[-1 - i // 2]} for i, row in enumerate(rows)]
    asked = cfg.model_copy(update={"data": cfg.data.model_copy(
        update={"path": str(tiny.write_rows(tmp_path / "others.jsonl", others)), "validation": str(held)})})
    found = preference.run(asked).values["before"]
    with torch.no_grad():
        drift = [(one, float(summed(models[0], one.row) - summed(models[1], one.row))) for one in rendered(cfg)]
    length = [(one, one.row.n_tokens) for one in rendered(cfg)]

    def area(told) -> float:
        good, bad = ([x for one, x in told if one.record.label == label] for label in (True, False))
        return sum((a > b) + 0.5 * (a == b) for a in good for b in bad) / len(good) / len(bad)

    assert found["auc"] == pytest.approx(area(drift), rel=tol.RELATIVE32) and found["n"] == 24
    # A pair's responses have one prompt, so that whole rows compare as responses do only within it.
    responses = [(one, one.row.n_tokens - one.row.n_prompt) for one, _ in length]
    assert found["length_auc"] == pytest.approx(area(responses), rel=tol.RELATIVE32)
    good_only = [line for line in held.read_text().splitlines() if json.loads(line)["label"]]
    held.write_text("\n".join(good_only) + "\n")
    values = preference.run(asked.model_copy(update={"out": tmp_path / "good"})).values
    assert "auc" not in values["before"] and values["headline"] is None and values["before"]["n"] == 12


def test_the_reference_is_asked_once_and_found_again(tmp_path):
    first = kto(tmp_path, reference_cache=tmp_path / "shared")
    found = preference.run(first).values
    # 24 responses, each once to its own prompt and once to another one.
    assert found["reference"]["responses"] == 48 and 24 < found["reference"]["computed"] <= 48
    again = preference.run(first.model_copy(update={"out": tmp_path / "b"})).values
    assert again["reference"] == {"responses": 48, "computed": 0}
    assert logged(first.out) == logged(tmp_path / "b")


def test_others_are_responses_to_another_prompt_cut_where_they_do_not_fit(tmp_path):
    rows = rendered(kto(tmp_path))
    found = mismatched_rows(rows, max_length=12, seed=0)
    own = {tuple(one.row.ids[: one.row.n_prompt]): set() for one in rows}
    for one in rows:
        own[tuple(one.row.ids[: one.row.n_prompt])].add(tuple(one.row.ids[one.row.n_prompt :]))
    assert [row.record_id for row in found] == [one.record_id for one in rows]
    for one, other in zip(rows, found, strict=True):
        assert other.ids[: other.n_prompt] == one.row.ids[: one.row.n_prompt] and other.n_prompt < other.n_tokens
        assert other.n_tokens <= 12
        lent = tuple(other.ids[other.n_prompt :])
        assert any(response[: len(lent)] == lent for asked, said in own.items()
                   if asked != tuple(one.row.ids[: one.row.n_prompt]) for response in said)
    assert found == mismatched_rows(rows, max_length=12, seed=0) != mismatched_rows(rows, max_length=12, seed=1)
    with pytest.raises(DataError, match="all of 2 records have the same prompt"):
        mismatched_rows(rows[:2], max_length=64, seed=0)


@pytest.mark.parametrize("loss", ["dpo", "simpo", "orpo"])
def test_losses_that_compare_refuse_single_responses(tmp_path, loss):
    with pytest.raises(ConfigError, match=f"loss = {loss} compares two responses, and the data hold single ones"):
        preference.run(kto(tmp_path, loss=loss))


@pytest.mark.parametrize(("label", "said"), [(True, "good"), (False, "bad")])
def test_labels_that_are_all_the_same_are_refused(tmp_path, label, said):
    with pytest.raises(DataError, match=f"all of 12 labelled responses to train on are {said}"):
        preference.run(kto(tmp_path, keep=lambda i, told: told == label))


def test_a_held_out_file_of_another_kind_is_refused(tmp_path):
    cfg = kto(tmp_path)
    data = cfg.data.model_copy(update={"validation": preference_config(tmp_path).data.path})
    with pytest.raises(DataError, match="no columns for a labelled response"):
        preference.run(cfg.model_copy(update={"data": data}))


@pytest.mark.parametrize(("label", "said"), [(1, "(1), not true or false"), (None, "no columns for a labelled")])
def test_single_responses_without_a_truth_value_are_told_so(tmp_path, label, said):
    cfg = kto(tmp_path)
    rows = [json.loads(line) | {"label": label} for line in Path(cfg.data.path).read_text().splitlines()]
    tiny.write_rows(Path(cfg.data.path), rows)
    with pytest.raises(DataError) as caught:
        preference.run(cfg)
    assert said in str(caught.value)


def labels(n_good: int, n_bad: int) -> list[LabelledRow]:
    record = Labelled(Prompt("x", (Message("user", "why"),)), "yes", True)
    good = LabelledRow(Row([1, 2], 1, "x"), record)
    return [good] * n_good + [replace(good, record=replace(record, label=False))] * n_bad


@pytest.mark.parametrize(("n_good", "n_bad", "weights", "uneven", "even"), [
    (3, 3, (1.0, 1.0), None, None), (4, 3, (1.0, 1.0), None, None), (3, 4, (4.0, 3.0), None, None),
    (5, 3, (1.0, 1.0), "1.67", "0.6"), (3, 4, (1.0, 1.0), "0.75", "1.333"), (2, 8, (2.0, 1.0), "0.50", "4"),
    (8, 2, (1.0, 2.0), "2.00", "0.5")])
def test_weights_that_do_not_balance_the_classes_are_noted(n_good, n_bad, weights, uneven, even):
    note = balance_note(labels(n_good, n_bad), *weights)
    if uneven is None:
        assert note is None
    else:
        assert f"x {n_good} good" in note and f"x {n_bad} bad" in note and f" = {uneven}; KTO" in note
        assert note.endswith(f"It is 1 with desirable_weight = {even}")


def test_a_run_notes_what_does_not_balance(tmp_path):
    notes = preference.run(kto(tmp_path, keep=lambda i, label: label or i % 2 == 0, steps=1)).values["notes"]
    assert len(notes) == 1 and "= 2.00; KTO" in notes[0]
    assert preference.run(kto(tmp_path, out=tmp_path / "even", steps=1)).values["notes"] == []


def test_everything_held_out_is_an_error_not_a_trace(tmp_path):
    cfg = kto(tmp_path, held=0.999999)
    with pytest.raises(ConfigError, match="no preference records are left to train on"):
        preference.run(cfg)


def test_every_number_is_explained(tmp_path):
    cfg = kto(tmp_path, held=0.3, steps=4, n_samples=2, nll_coef=0.1)
    preference.run(cfg)
    page = (Path(__file__).parents[2] / "docs/methods/preference.md").read_text()
    names = sorted({name for row in logged(cfg.out, phase=None) for name in row} - {"step", "phase"})
    assert [name for name in names if f"`{name}`" not in page] == [] and "auc_low" in names
    assert len(logged(cfg.out, "samples.jsonl", None)) == 4


def test_killed_run_resumes_to_the_same_bytes(tmp_path):
    whole = kto(tmp_path, held=0.3, steps=12, save_every=3, eval_every=5)
    preference.run(whole)
    killed = whole.model_copy(update={"out": tmp_path / "killed"})
    killed_here(killed, [("log", 1), ("log", 5), ("save", 2)], preference.run)
    same_results(whole.out, killed.out)
