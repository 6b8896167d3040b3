import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import FAST, _fork, flat_gradient, killed_here, logged, preference_config, same_results

from keel.data.collate import pair_batches
from keel.data.load import read_pairs
from keel.data.render import render_pairs, template
from keel.data.seen import prompt_key, read_seen
from keel.errors import ConfigError, DataError, ModelError, NumericsError, RunError
from keel.models.load import FrozenModelConfig, ModelConfig, causal_lm, load_tokenizer
from keel.models.lora import LoraSettings
from keel.models.pairs import pair_logprobs
from keel.recipes import preference
from keel.recipes.preference import PreferenceConfig
from keel.train.direct import mismatched
from keel.train.frozen import FrozenNumbers, pair_numbers, row_digest
from keel.train.step import Learner

LOSSES = ("dpo", "dpo_length_norm", "dpo_no_reference", "dpo_robust", "ipo_mean", "ipo_sum", "hinge", "simpo", "cpo",
          "orpo", "kto")


def needs(loss: str) -> dict:
    return {"loss": loss} | ({"label_smoothing": 0.1} if loss == "dpo_robust" else {})


def brief(tmp, **changes):
    """Two steps that learn, nothing beside them."""
    data = preference_config(tmp).data.model_copy(update={"validation_fraction": 0.0})
    return preference_config(tmp, **({"steps": 2, "n_samples": 0, "save_every": 1000, "data": data} | changes))


def rendered(cfg, file=None):
    words = template(load_tokenizer(cfg.policy.path))
    return render_pairs(words, read_pairs(file or cfg.data.path)[0], cfg.data.max_length, cfg.data.too_long)[0]


def by_hand(model, row) -> tuple[list[float], list[float]]:
    """Log-probabilities of the response tokens of both sides, each from a row of its own in plain transformers."""
    found = []
    for side in (row.chosen, row.rejected):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([side.ids])).logits[0].double().log_softmax(-1)
        found.append([float(logits[t - 1, side.ids[t]]) for t in range(side.n_prompt, len(side.ids))])
    return found[0], found[1]


@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_the_preference(tmp_path, loss):
    result = preference.run(preference_config(tmp_path, steps=16, n_samples=0, eval_every=16, **needs(loss)))
    found, before = result.values["evaluation"], result.values["before"]
    assert found["accuracy"] > 0.8 and found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    assert found["loss"] < before["loss"] and found["margin"] > before["margin"]
    assert result.values["headline"]["after"]["mean"] == found["accuracy"]
    assert result.values["headline"]["before"]["mean"] == found["longer_wins"]


@pytest.mark.parametrize(("loss", "expected", "rank"), [
    ("dpo", math.log(2), None), ("dpo", math.log(2), 2), ("dpo_length_norm", math.log(2), 2),
    ("dpo_robust", math.log(2), None), ("ipo_mean", 25.0, None), ("ipo_sum", 25.0, 2), ("hinge", 1.0, None),
    ("kto", 0.5, None), ("kto", 0.5, 2)])
def test_a_policy_that_is_its_reference_has_the_loss_of_no_preference(tmp_path, loss, expected, rank):
    """Also with an adapter, whose reference is the trunk alone."""
    cfg = brief(tmp_path, steps=1, **needs(loss))
    preference.run(cfg.model_copy(update={"policy": cfg.policy.model_copy(update={"lora": LoraSettings(rank=rank)})}))
    (row,) = logged(cfg.out)
    assert row["loss"] == pytest.approx(expected, rel=tol.GRADIENT32["rtol"])
    for name in ("margin", "rewards/chosen", "rewards/rejected", "drift/chosen", "drift/rejected"):
        assert row[name] == pytest.approx(0, abs=tol.GRADIENT32["atol"])


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_what_is_logged_is_what_the_rows_say_one_by_one(tmp_path, pad):
    """End-of-sequence counts, padding never, also where they are one token; sums are sums, means are over tokens."""
    cfg = brief(tmp_path, steps=1, batch=24, loss="dpo_no_reference", beta=0.2)
    words = load_tokenizer(cfg.policy.path)
    words.pad_token = pad
    words.save_pretrained(cfg.policy.path)
    preference.run(cfg)
    (row,), model = logged(cfg.out), causal_lm(cfg.policy)
    sides = [by_hand(model, one) for one in rendered(cfg)]
    good, bad = ([sum(pair[k]) for pair in sides] for k in (0, 1))
    tokens = [sum(len(pair[k]) for pair in sides) for k in (0, 1)]
    assert all(one.chosen_ids[-1] == one.rejected_ids[-1] == 2 for one in rendered(cfg))
    expected = {
        "loss": sum(math.log1p(math.exp(-0.2 * (a - b))) for a, b in zip(good, bad, strict=True)) / 24,
        "accuracy": sum(a > b for a, b in zip(good, bad, strict=True)) / 24,
        "rewards/chosen": 0.2 * sum(good) / 24, "rewards/rejected": 0.2 * sum(bad) / 24,
        "margin": 0.2 * (sum(good) - sum(bad)) / 24, "logps/chosen": sum(good) / tokens[0],
        "logps/rejected": sum(bad) / tokens[1], "length/chosen": tokens[0] / 24, "length/rejected": tokens[1] / 24}
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=tol.GRADIENT32["rtol"])
    assert not {"drift/chosen", "nll", "kto/baseline"} & row.keys() and not (cfg.out / "reference").exists()


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_micro_batches_and_shared_prompts_change_nothing(tmp_path, loss):
    """KTO's baseline included, which is over the whole step; and the gradient norm under accumulation."""
    cuts = {"one": (10_000, "never"), "many": (30, "never"), "joined": (10_000, "always"), "some": (70, "always")}
    found = []
    for name, (micro, shared) in cuts.items():
        cfg = brief(tmp_path, out=tmp_path / name, steps=3, micro_tokens=micro, shared_prompt=shared, loss=loss,
                    nll_coef=0.3)
        preference.run(cfg)
        found.append([{key: x for key, x in row.items() if key != "phase"} for row in logged(cfg.out)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a == pytest.approx(b, **tol.MICRO_BATCHES)
    assert ("kto/baseline" in found[0][0]) == (loss == "kto") and "nll" in found[0][0]
    assert loss != "kto" or found[0][2]["kto/baseline"] > 0


def test_the_nll_term_is_the_mean_over_chosen_tokens_of_the_step(tmp_path, monkeypatch):
    seen, step = [], Learner.step

    def spied(learner, number, ids, **how):
        seen.append(flat_gradient(learner))
        return step(learner, number, ids, **how)

    monkeypatch.setattr(Learner, "step", spied)
    for coef in (0.0, 0.7):
        preference.run(brief(tmp_path, out=tmp_path / str(coef), steps=1, batch=24, nll_coef=coef, micro_tokens=60))
    cfg = brief(tmp_path)
    model = causal_lm(cfg.policy)
    total, n = torch.zeros(()), 0
    for row in rendered(cfg):
        logits = model(input_ids=torch.tensor([row.chosen.ids])).logits[0].log_softmax(-1)
        for t in range(len(row.prompt_ids), len(row.chosen.ids)):
            total, n = total - logits[t - 1, row.chosen.ids[t]], n + 1
    (0.7 * total / n).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(seen[1] - seen[0], expected, **tol.GRADIENT32)
    assert logged(tmp_path / "0.7")[0]["nll"] == pytest.approx(float(total.detach() / n), rel=tol.RELATIVE32)


def test_log_probabilities_of_a_pair_do_not_depend_on_its_layout(tmp_path):
    cfg = brief(tmp_path)
    model, rows = causal_lm(cfg.policy), rendered(cfg)[:6]
    expected = torch.tensor([[sum(side) for side in by_hand(model, row)] for row in rows])
    for shared in ("never", "always"):
        for micro in (10_000, 50):
            found = {}
            for part in pair_batches(rows, micro_tokens=micro, pad_id=0, shared_prompt=shared):
                with torch.no_grad():
                    both = torch.stack(pair_logprobs(model, part), 1)
                found |= dict(zip(part.tokens.record_ids, both, strict=False))
            torch.testing.assert_close(torch.stack([found[row.record_id] for row in rows]), expected, **tol.FLOAT32)


def test_autocast_keeps_losses_in_float32(tmp_path):
    cfg = brief(tmp_path, steps=3)
    preference.run(cfg.model_copy(update={"policy": cfg.policy.model_copy(update={"autocast": True})}))
    assert all(math.isfinite(row["loss"]) for row in logged(cfg.out))
    assert logged(cfg.out)[0]["loss"] == pytest.approx(math.log(2), rel=tol.GRADIENT32["rtol"])


# --- the reference ---------------------------------------------------------------------------------------------------


def test_the_reference_is_asked_once_and_found_again(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    first = brief(tmp_path, out=tmp_path / "a", reference_cache=shared)
    assert preference.run(first).values["reference"] == {"pairs": 24, "computed": 24}
    again = preference.run(first.model_copy(update={"out": tmp_path / "b"})).values
    assert again["reference"] == {"pairs": 24, "computed": 0} and again["notes"] == []
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    (file,) = shared.glob("*.jsonl")
    model = causal_lm(first.policy)
    numbers = {row["row"]: row for row in map(json.loads, file.read_text().splitlines())}
    for row in rendered(first):
        found = numbers[row_digest(row)]
        both = [sum(side) for side in by_hand(model, row)]
        assert found["numbers"] == pytest.approx(both, rel=tol.RELATIVE32)


def test_a_cache_of_another_reference_or_other_tokens_is_stale(tmp_path):
    shared = tmp_path / "shared"
    cfg = brief(tmp_path, reference_cache=shared, steps=1)
    preference.run(cfg)

    def computed(name, **changes) -> int:
        found = preference.run(cfg.model_copy(update={"out": tmp_path / name} | changes)).values
        assert any("lacked what this reference says of" in note for note in found["notes"])
        return found["reference"]["computed"]

    other = ModelConfig(path=str(tiny.llama(tmp_path / "other", seed=1)))
    assert computed("weights", policy=other) == 24
    assert computed("reference", reference=FrozenModelConfig(path=other.path, autocast=True)) == 24  # number format
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    rows[3]["chosen"] = tiny.said("hello .")
    data = cfg.data.model_copy(update={"path": str(tiny.write_rows(tmp_path / "changed.jsonl", rows))})
    assert computed("data", data=data) == 1
    short = cfg.data.model_copy(update={"max_length": 10, "too_long": "truncate_left"})
    n_cut = sum(row.longest > 10 for row in rendered(cfg))
    assert 0 < computed("length", data=short) == n_cut
    words = load_tokenizer(cfg.policy.path)
    words.chat_template = words.chat_template.replace("<bos>", "<bos><system>")
    words.save_pretrained(cfg.policy.path)
    assert computed("template") == 24


def test_a_reference_of_its_own(tmp_path):
    other = str(tiny.llama(tmp_path / "other", seed=1))
    cfg = brief(tmp_path, steps=1, batch=24, reference=FrozenModelConfig(path=other))
    preference.run(cfg)
    drift = [sum(sum(by_hand(causal_lm(ModelConfig(path=path)), row)[0]) for row in rendered(cfg)) / 24
             for path in (cfg.policy.path, other)]
    assert logged(cfg.out)[0]["drift/chosen"] == pytest.approx(drift[0] - drift[1], rel=tol.GRADIENT32["rtol"])
    words = load_tokenizer(other)
    words.chat_template = words.chat_template.replace("<bos>", "")
    words.save_pretrained(other)
    with pytest.raises(ModelError, match="the reference's tokenizer or chat template differs from the policy's"):
        preference.run(cfg.model_copy(update={"out": tmp_path / "refused"}))


def test_a_cache_that_a_kill_cut_short_is_gone_on_with(tmp_path):
    shared = tmp_path / "shared"
    cfg = brief(tmp_path, reference_cache=shared, micro_tokens=20)
    preference.run(cfg)
    (file,) = shared.glob("*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    kept = whole[: len(whole) // 2].count(b"\n")
    found = preference.run(cfg.model_copy(update={"out": tmp_path / "again"})).values
    assert found["reference"]["computed"] == 24 - kept and file.read_bytes() == whole
    assert logged(cfg.out) == logged(tmp_path / "again")
    file.write_bytes(b"{}\n" + whole)
    with pytest.raises(RunError, match="a row of what a frozen model said of the data is damaged"):
        preference.run(cfg.model_copy(update={"out": tmp_path / "damaged"}))


def test_who_finds_the_cache_being_filled_waits_and_computes_nothing(tmp_path):
    """A child fills it slowly; the numbers that this process then has are the child's."""
    cfg = brief(tmp_path)
    rows, model, cache = rendered(cfg), causal_lm(cfg.policy), FrozenNumbers(tmp_path / "shared", {})
    how = {"pad_id": 0, "micro_tokens": 100, "shared_prompt": "never"}
    child = _fork()
    if child == 0:
        with cache._held():
            cache._append({row_digest(row): (-1.0, -2.0) for row in rows[:20]})
            time.sleep(0.5)
            cache._append({row_digest(row): (-1.0, -2.0) for row in rows[20:]})
        os._exit(0)
    while cache.is_empty():
        time.sleep(0.01)
    numbers, n_computed = cache.fill([row_digest(row) for row in rows], pair_numbers(model, rows, **how),
                                     [row.record_id for row in rows])
    os.waitpid(child, 0)
    assert n_computed == 0 and [row.tolist() for row in numbers] == [[-1.0, -2.0]] * 24


def test_a_reference_that_is_not_finite_is_refused(tmp_path):
    cfg = brief(tmp_path)
    model = causal_lm(cfg.policy)
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = float("nan")
    cache = FrozenNumbers(tmp_path / "shared", {})
    with pytest.raises(NumericsError, match="records numbers that are not finite"):
        rows = rendered(cfg)
        cache.fill([row_digest(row) for row in rows],
                   pair_numbers(model, rows, pad_id=0, micro_tokens=100, shared_prompt="never"),
                   [row.record_id for row in rows])
    assert cache.known() == {}


# --- KTO -------------------------------------------------------------------------------------------------------------


def test_mismatched_rows_take_the_responses_of_another_prompt(tmp_path):
    rows = rendered(brief(tmp_path))
    rows = [*rows, *(replace(row, pair=replace(row.pair, prompt=replace(row.pair.prompt, id=f"{row.record_id}b")))
                     for row in rows[:5])]
    found = mismatched(rows, max_length=12, seed=0)
    assert [row.prompt_ids for row in found] == [row.prompt_ids for row in rows]
    assert all(len(row.prompt_ids) + len(ids) <= 12 and ids for row in found
               for ids in (row.chosen_ids, row.rejected_ids))
    assert found == mismatched(rows, max_length=12, seed=0) != mismatched(rows, max_length=12, seed=1)
    one = [replace(row, prompt_ids=[4, k], pair=replace(row.pair, prompt=rows[k % 2].pair.prompt))
           for k, row in enumerate(rows[:4])]
    marked = [replace(row, chosen_ids=[10 + k % 2], rejected_ids=[10 + k % 2]) for k, row in enumerate(one)]
    for k, row in enumerate(mismatched(marked, max_length=64, seed=0)):
        assert row.chosen_ids == [10 + (k + 1) % 2] == row.rejected_ids
    with pytest.raises(DataError, match="all of 3 records have the same prompt"):
        mismatched(rows[:1] * 3, max_length=64, seed=0)


def test_kto_of_a_step_is_over_all_its_responses(tmp_path):
    """Against one row at a time: the baseline over all mismatched responses, then the mean of 2 B losses."""
    other = str(tiny.llama(tmp_path / "other", seed=1))
    cfg = brief(tmp_path, loss="kto", steps=1, batch=24, micro_tokens=40, reference=FrozenModelConfig(path=other),
                undesirable_weight=1.3)
    notes = preference.run(cfg).values["notes"]
    assert len(notes) == 1 and "24 good responses" in notes[0] and "= 0.77; KTO" in notes[0]
    (row,), rows = logged(cfg.out), rendered(cfg)
    models = [causal_lm(ModelConfig(path=path)) for path in (cfg.policy.path, other)]

    def drift(pairs) -> list[list[float]]:
        sums = [[[sum(side) for side in by_hand(model, one)] for one in pairs] for model in models]
        return [[s - q for s, q in zip(a, b, strict=True)] for a, b in zip(*sums, strict=True)]

    z = max(0.0, sum(map(sum, drift(mismatched(rows, max_length=64, seed=0)))) / 48)
    loss = sum(1 / (1 + math.exp(0.1 * (good - z))) + 1.3 / (1 + math.exp(0.1 * (z - bad)))
               for good, bad in drift(rows)) / 48
    assert row["kto/baseline"] == pytest.approx(z, rel=tol.GRADIENT32["rtol"])
    assert row["loss"] == pytest.approx(loss, rel=tol.GRADIENT32["rtol"])


# --- data, settings, resuming ----------------------------------------------------------------------------------------


def test_labels_weights_and_margins_of_pairs(tmp_path):
    """A pair of weight 0 is not there; soft labels and margins count where the loss knows them."""
    rows = [json.loads(line) for line in tiny.pairs(tmp_path / "plain.jsonl", 12).read_text().splitlines()]
    told = [row | {"weight": float(i % 2), "label_prob": 0.8, "margin": 0.5} for i, row in enumerate(rows)]
    kept = [row for row in told if row["weight"]]
    losses = []
    for name, part in (("told", told), ("kept", kept)):
        cfg = brief(tmp_path, out=tmp_path / name, batch=6, steps=1, beta=0.3)
        data = cfg.data.model_copy(update={"path": str(tiny.write_rows(tmp_path / f"{name}.jsonl", part))})
        preference.run(cfg.model_copy(update={"data": data}))
        losses.append(logged(cfg.out)[0]["loss"])
    # At pi = ref: x = -0.5.
    expected = 0.8 * math.log1p(math.exp(0.5)) + 0.2 * math.log1p(math.exp(-0.5))
    assert losses == pytest.approx([expected] * 2, rel=tol.GRADIENT32["rtol"])
    with pytest.raises(ConfigError, match="loss = hinge knows no margins and soft labels, and 6 pairs have one"):
        preference.run(cfg.model_copy(update={"data": data, "loss": "hinge", "out": tmp_path / "refused"}))


@pytest.mark.parametrize("too_long", ["drop_turns", "truncate_left", "truncate_response"])
def test_no_side_is_cut_to_nothing(tmp_path, too_long):
    cfg = brief(tmp_path, loss="simpo")
    data = cfg.data.model_copy(update={"max_length": 10, "too_long": too_long})
    found = preference.run(cfg.model_copy(update={"data": data})).values
    assert found["skipped"]["n_cut"] + found["skipped"]["n_dropped"] > 0
    rows = rendered(cfg.model_copy(update={"data": data}))
    assert all(row.chosen_ids and row.rejected_ids and row.longest <= 10 for row in rows)
    assert all(math.isfinite(row["loss"]) for row in logged(cfg.out))


@pytest.mark.parametrize(("settings", "message"), [
    ({"label_smoothing": 0.1, "loss": "ipo_mean"}, "label_smoothing=0.1 and loss='ipo_mean' do not go together"),
    ({"loss": "dpo_robust"}, "loss='dpo_robust' needs label_smoothing"),
    ({"gamma": 0.5}, "gamma=0.5 and loss='dpo' do not go together"),
    ({"desirable_weight": 1.2}, "desirable_weight=1.2, undesirable_weight=1.0 and loss='dpo' do not go together"),
    ({"loss": "orpo", "reference": "m"}, "reference or reference_cache and loss='orpo' do not go together"),
    ({"loss": "cpo", "reference_cache": "r"}, "reference or reference_cache and loss='cpo' do not go together"),
])
def test_settings_that_exclude_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        PreferenceConfig.checked({"out": "o", "policy": "m", "data": {"path": "d"}} | settings)


def test_what_is_usual_for_a_loss():
    def usual(**settings):
        cfg = PreferenceConfig.checked({"out": "o", "policy": "m", "data": {"path": "d"}} | settings)
        return cfg.reward_per_nat, cfg.target_gap, cfg.nll_weight

    assert usual() == (0.1, 0.5, 0.0) and usual(loss="cpo") == (0.1, 0.5, 1.0) and usual(loss="orpo")[2] == 1
    assert usual(loss="simpo") == (2.0, 0.5, 0.0) and usual(loss="dpo_length_norm")[0] == 5
    assert usual(loss="simpo", beta=2.5, gamma=0.0, nll_coef=0.1) == (2.5, 0.0, 0.1)


def test_samples_before_and_after_and_every_number_is_explained(tmp_path):
    cfg = preference_config(tmp_path, loss="kto", nll_coef=0.1)
    result = preference.run(cfg)
    rows = logged(cfg.out, "samples.jsonl", None)
    assert [row["step"] for row in rows] == [0, 0, 4, 4] and rows[0]["id"] == rows[2]["id"]
    assert [row["step"] for row in logged(cfg.out, phase="eval")] == [0, 2, 4]
    assert result.values["n_train"] + result.values["n_validation"] == 24
    page = (Path(__file__).parents[2] / "docs/methods/preference.md").read_text()
    names = sorted({name for row in logged(cfg.out, phase=None) for name in row} - {"step", "phase"})
    assert [name for name in names if f"`{name}`" not in page] == []
    assert preference.run(brief(tmp_path, out=tmp_path / "none held out")).values["headline"] is None


def test_an_adapter_learns_and_is_folded_into_the_model(tmp_path):
    from transformers import AutoModelForCausalLM

    cfg = brief(tmp_path, steps=8)
    spec = cfg.policy.model_copy(update={"lora": LoraSettings(rank=4)})
    preference.run(cfg.model_copy(update={"policy": spec, "optimizer": FAST.model_copy(update={"lr": 0.02})}))
    rows = logged(cfg.out)
    assert rows[-1]["loss"] < rows[0]["loss"] and (cfg.out / "model/adapter").exists()
    AutoModelForCausalLM.from_pretrained(cfg.out / "model")


def test_killed_run_resumes_to_the_same_bytes(tmp_path):
    whole = preference_config(tmp_path, steps=24, save_every=3, eval_every=7, loss="kto")
    preference.run(whole)
    killed = whole.model_copy(update={"out": tmp_path / "killed"})
    killed_here(killed, [("log", 1), ("log", 6), ("save", 2)], preference.run)
    same_results(whole.out, killed.out)


def test_the_prompts_of_both_sides_are_written_down(tmp_path):
    cfg = preference_config(tmp_path, steps=1, n_samples=0)
    preference.run(cfg)
    seen = read_seen(cfg.out / "model")
    every = {prompt_key(pair.prompt) for pair in read_pairs(cfg.data.path)[0]}
    assert seen.learned_from | seen.held_out == every and seen.held_out and not seen.learned_from & seen.held_out
