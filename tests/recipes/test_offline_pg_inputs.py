"""What `keel offline-pg` makes of its data and settings: which responses, which prompts, which model; and every kind of
bad input ends in one clear error."""

import json
import math
import re
from pathlib import Path

import pytest
import tiny
import tolerances as tol
import torch
from recipes.offline_runs import by_hand, offline_config, reward, rows_of, told, whole_batch
from recipes.running import FAST, logged

from keel.bench.scorers import ScorerConfig
from keel.cli import main
from keel.data.load import read_responses
from keel.data.seen import prompt_key, read_seen
from keel.errors import ConfigError, DataError, KeelError, ModelError, NumericsError
from keel.models.load import FrozenModelConfig, ModelConfig, causal_lm, load_tokenizer
from keel.recipes import offline_pg
from keel.recipes.offline_pg import OfflinePGConfig
from keel.rollout.sample import SamplingConfig

KEPT = {"out": "o", "policy": "p", "data": {"path": "d"}, "rewards": [{"name": "n", "stored": "n"}]}


def brief(tmp, **changes):
    """One step, and a value that needs no samples, unless the changes say otherwise."""
    return whole_batch(tmp, **({"steps": 1, "batch": 4} | changes))


def over(cfg, **changes):
    return cfg.data.model_copy(update=changes)


def worths(cfg) -> dict[str, dict]:
    return {line["id"]: line for line in logged(cfg.out, "advantages.jsonl", None)}


# --- which responses -------------------------------------------------------------------------------------------------


def test_the_best_response_of_each_record_or_all_of_them(tmp_path):
    file = str(tiny.pairs(tmp_path / "pairs.jsonl", 10))
    for which, sides in (("chosen", ["chosen"]), ("all", ["chosen", "rejected"])):
        cfg = brief(tmp_path, out=tmp_path / which, responses=which)
        cfg = cfg.model_copy(update={"data": over(cfg, path=file)})
        assert offline_pg.run(cfg).values["n_responses"] == 10 * len(sides)
        lines = worths(cfg)
        assert sorted(lines) == sorted(f"p{i}/{side}" for i in range(10) for side in sides)
        assert all(line["record"] == name.split("/")[0] for name, line in lines.items())
        assert lines["p1/chosen"]["total"] == 0.75 and lines["p2/chosen"]["total"] == 0.25


def test_a_record_goes_when_any_of_its_responses_has_the_ending(tmp_path):
    """The rejected one counts, also where only the chosen one is learned from; all gone is an error."""
    rows = [{"id": f"p{i}", "prompt": prompt, "chosen": tiny.said("yes ?" if i == 1 else "yes"),
             "rejected": tiny.said("no ?" if i == 2 else "no")} for i, prompt in enumerate(tiny.conversations(6))]
    for which in ("chosen", "all"):
        cfg = brief(tmp_path, out=tmp_path / which, responses=which, drop_ending="?")
        cfg = cfg.model_copy(update={"data": over(cfg, path=str(tiny.write_rows(tmp_path / "p.jsonl", rows)))})
        offline_pg.run(cfg)
        assert {line["record"] for line in worths(cfg).values()} == {"p0", "p3", "p4", "p5"}
    for row in rows:
        row["chosen"] = tiny.said("why ?")
    tiny.write_rows(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match=r"every one of 6 records has a response that ends with '\?'"):
        offline_pg.run(cfg.model_copy(update={"out": tmp_path / "none"}))


def test_a_response_that_is_cut_loses_its_end_and_is_counted(tmp_path):
    """Rewards are of the whole text all the same."""
    cfg = brief(tmp_path, max_response=3)
    found = offline_pg.run(cfg).values
    lines = worths(cfg)
    # Tokens with the end: 4, 3, 5, 5.
    assert [lines[f"d{i}"]["n_tokens"] for i in range(4)] == [3, 3, 3, 3]
    assert found["skipped"]["n_cut"] == 9 and lines["d2"]["total"] == 0.5
    assert [row.ids[-1] == 2 for row in rows_of(cfg)[:4]] == [False, True, False, False]


def test_a_value_of_a_sample_of_the_prompt_needs_no_held_out_prompts(tmp_path):
    cfg = brief(tmp_path, value={"kind": "sampled", "samples": 3}, selection={"keep": "positive"})
    found = offline_pg.run(cfg).values
    values = {line["value"] for line in worths(cfg).values()}
    # Means of three rewards, each of which is a multiple of a quarter.
    assert len(values) > 1 and all(abs(12 * x - round(12 * x)) < tol.SIX_DECIMALS for x in values)
    assert any(4 * x != round(4 * x) for x in values), "three samples of a prompt are not one and the same"
    assert found["value"]["kind"] == "sampled" and found["n_validation"] == 0 and found["headline"] is None
    assert found["best"] is None and not (cfg.out / "best").exists() and found["before"] == {}


def test_a_constant_value_is_the_same_for_all_and_is_told(tmp_path):
    cfg = offline_config(tmp_path, steps=1, value={"kind": "constant", "samples": 2})
    found = offline_pg.run(cfg).values
    assert {line["value"] for line in worths(cfg).values()} == {found["value"]["mean"]}
    assert found["value"]["samples"] == 2 * found["n_validation"]


def test_a_reward_is_told_whether_an_answer_ended(tmp_path):
    """Of samples and of held-out answers; a response of the data has its end."""
    ending = reward("whole", scorer=ScorerConfig(function="recipes.offline_runs:whole", prompt_as="record"))
    cfg = offline_config(tmp_path, steps=1, rewards=(ending,), value={"kind": "constant", "samples": 3})
    found = offline_pg.run(cfg).values
    assert 0 < found["before"]["score"]["mean"] == found["before"]["ended"]["mean"] < 1
    assert 0 < found["value"]["mean"] < 1 and {line["total"] for line in worths(cfg).values()} == {1.0}


def test_a_file_of_held_out_records_is_used_whole(tmp_path):
    cfg = offline_config(tmp_path, steps=1)
    other = told(tmp_path / "held.jsonl", 60)
    rows = [json.loads(line) for line in other.read_text().splitlines()]
    tiny.write_rows(other, rows[40:])
    found = offline_pg.run(cfg.model_copy(update={"data": over(cfg, validation=str(other))})).values
    assert (found["n_responses"], found["n_validation"]) == (40, 20)
    assert found["before"]["nll"]["n"] == found["before"]["shift"]["n"] == 20


def test_rewards_that_the_file_holds_serve_a_run_that_scores_nothing_new(tmp_path):
    """No score, no best policy; drift and cross-entropy on held-out responses are there."""
    told(tmp_path / "stored.jsonl", rewards=lambda i: {"n": i % 4 / 4, "unused": -5})
    stored = (reward("n", scorer=None, stored="n"),)
    cfg = offline_config(tmp_path, rewards=stored, loss={"variant": "wbc"}, steps=2)
    cfg = cfg.model_copy(update={"data": over(cfg, path=str(tmp_path / "stored.jsonl"))})
    found = offline_pg.run(cfg).values
    assert {line["total"] for line in worths(cfg).values()} == {0.0, 0.25, 0.5, 0.75}
    assert {*found["before"]} == {"shift", "nll"} and found["best"] is None and found["headline"] is None
    assert found["before"]["shift"]["mean"] == pytest.approx(0, abs=tol.GRADIENT32["atol"])


def test_pairs_of_weight_zero_are_left_out_and_counted(tmp_path):
    """As in keel preference; and a soft label, which nothing here would heed, is refused."""
    file = tiny.pairs(tmp_path / "pairs.jsonl", 8)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["weight"] = rows[4]["weight"] = 0
    cfg = brief(tmp_path, responses="all")
    cfg = cfg.model_copy(update={"data": over(cfg, path=str(tiny.write_rows(file, rows)))})
    found = offline_pg.run(cfg).values
    assert {line["record"] for line in worths(cfg).values()} == {f"p{i}" for i in (0, 2, 3, 5, 6, 7)}
    assert found["skipped"]["records"] == 2 and found["n_responses"] == 12
    rows[2]["label_prob"] = 0.7
    tiny.write_rows(file, rows)
    with pytest.raises(DataError, match="1 pairs have a weight, a soft label or a margin that nothing here would heed"):
        offline_pg.run(cfg.model_copy(update={"out": tmp_path / "soft"}))


def test_pro_counts_what_it_has_nothing_to_rank_in(tmp_path):
    """Three responses to a prompt of which two are one text, one prompt with one response, and one of ten."""
    answers = [["yes .", "no .", "no ."], ["yes"], [f"yes {word}" for word in "no cat sat two red blue".split()]
               + ["no", "cat", "sat", "two"]]
    rows = [{"id": f"d{i}{k}", "prompt": prompt, "completion": tiny.said(text)} for i, (prompt, group) in
            enumerate(zip(tiny.conversations(3), answers, strict=True)) for k, text in enumerate(group)]
    tiny.write_rows(tmp_path / "few.jsonl", rows)
    cfg = whole_batch(tmp_path, steps=1, loss={"variant": "pro"}, responses="all", selection={}, batch=2, value={})
    found = offline_pg.run(cfg).values
    assert (found["n_responses"], found["n_kept"]) == (14, 12)
    assert found["skipped"]["prompts_with_one_response"] == found["skipped"]["equal_responses"] == 1
    assert {name for name, line in worths(cfg).items() if not line["kept"]} == {"d02", "d10"}
    assert "1 prompts have more than 8 responses, up to 10" in " ".join(found["notes"])


def test_how_often_the_chosen_response_has_the_lower_stored_reward_is_told(tmp_path):
    """Also where the chosen ones alone are learned from."""
    file = tiny.pairs(tmp_path / "pairs.jsonl", 8)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["rewards"] = {"chosen": {"rm": 0.5}, "rejected": {"rm": 0.9 if i < 2 else 0.1}}
    cfg = brief(tmp_path)
    cfg = cfg.model_copy(update={"data": over(cfg, path=str(tiny.write_rows(file, rows)))})
    assert offline_pg.run(cfg).values["data"]["chosen_has_lower_reward"] == {"rm": 0.25}
    assert "chosen_has_lower_reward" not in offline_pg.run(brief(tmp_path, out=tmp_path / "none")).values["data"]


# --- held-out prompts ------------------------------------------------------------------------------------------------


def test_held_out_prompts_are_drawn_not_taken_from_the_front(tmp_path, monkeypatch):
    """A third of a file, by the seed, in its order: at every examination the same; all of them where all are asked."""
    rows = [json.loads(line) for line in told(tmp_path / "more.jsonl", 70).read_text().splitlines()]
    held, seen = str(tiny.write_rows(tmp_path / "held.jsonl", rows[40:])), []
    real = offline_pg.reference_values

    def watched(reference, begun, asked, *rest):
        seen.append([row.record.id for row in asked])
        return real(reference, begun, asked, *rest)

    monkeypatch.setattr(offline_pg, "reference_values", watched)
    for name, more in (("a", {}), ("again", {}), ("b", {"seed": 1}), ("all", {"eval_prompts": 30, "value": {
            "kind": "constant", "prompts": 30}})):
        cfg = offline_config(tmp_path, out=tmp_path / name, **({"steps": 1, "eval_prompts": 10, "n_samples": 30,
                             "value": {"kind": "constant", "prompts": 12}} | more))
        offline_pg.run(cfg.model_copy(update={"data": over(cfg, validation=held)}))
        lines = logged(cfg.out, "samples.jsonl", None)
        first, last = ([line["id"] for line in lines if line["step"] == step] for step in (0, 1))
        assert first == last
        seen.append(first)
    order = [f"d{i}" for i in range(40, 70)]
    assert seen[:2] == seen[2:4] != seen[4:6] and seen[6] == seen[7] == order
    for ids, n in zip(seen[:6], (12, 10) * 3, strict=True):
        assert len(ids) == n and ids == [one for one in order if one in ids] and ids != order[:n]


def test_room_is_left_for_what_is_written_and_for_nothing_else(tmp_path):
    """Samples of the reference need room only where it is sampled; the error names the fields."""
    cfg = offline_config(tmp_path, steps=1, loss={"variant": "wbc"}, value_sampling=SamplingConfig(max_new_tokens=64))
    assert offline_pg.run(cfg).values["n_validation"] > 0
    for changes, message in (
            ({"value_sampling": SamplingConfig(max_new_tokens=64)}, "beside value_sampling.max_new_tokens=64"),
            ({"sampling": SamplingConfig(max_new_tokens=70)}, "beside sampling.max_new_tokens=70")):
        with pytest.raises(ConfigError, match="data.max_length=64 leaves no room for a prompt " + message):
            offline_pg.run(offline_config(tmp_path, out=tmp_path / "full", **changes))


def test_variety_of_the_answers_is_that_of_the_samples(tmp_path):
    cfg = offline_config(tmp_path, steps=1, n_samples=100)
    found = offline_pg.run(cfg).values["evaluation"]
    texts = [line["response"] for line in logged(cfg.out, "samples.jsonl", None) if line["step"] == 1]
    words = [text.lower().split() for text in texts]
    for k in (1, 2, 3):
        grams = [tuple(own[i : i + k]) for own in words for i in range(len(own) - k + 1)]
        assert found[f"distinct_{k}"] == {"mean": pytest.approx(len({*grams}) / len(grams), rel=tol.RELATIVE64),
                                          "n": len(texts)}


# --- who is compared with whom ---------------------------------------------------------------------------------------


def test_drift_and_cross_entropy_of_held_out_responses_by_hand(tmp_path):
    """S - Q in nats per response, against a reference of its own; cross-entropy in nats per token."""
    other = str(tiny.llama(tmp_path / "other", seed=1))
    cfg = offline_config(tmp_path, reference=FrozenModelConfig(path=other), steps=1, micro_tokens=50)
    rows = [json.loads(line) for line in told(tmp_path / "more.jsonl", 60).read_text().splitlines()]
    held = str(tiny.write_rows(tmp_path / "held.jsonl", rows[45:]))
    cfg = cfg.model_copy(update={"data": over(cfg, validation=held)})
    before = offline_pg.run(cfg).values["before"]
    rows = rows_of(cfg.model_copy(update={"data": over(cfg, path=held)}))
    with torch.no_grad():
        own, ref = ([by_hand(causal_lm(ModelConfig(path=path)), row).double() for row in rows]
                    for path in (cfg.policy.path, other))
    n = sum(map(len, own))
    assert before["nll"]["mean"] == pytest.approx(-float(torch.cat(own).sum()) / n, rel=tol.GRADIENT32["rtol"])
    gaps = [float(a.sum() - b.sum()) for a, b in zip(own, ref, strict=True)]
    assert before["shift"]["mean"] == pytest.approx(sum(gaps) / len(gaps), rel=tol.GRADIENT32["rtol"])


def test_the_initial_model_is_the_best_when_nothing_improves(tmp_path):
    """The first of equals is kept: with a learning rate of nothing every examination finds the same."""
    cfg = offline_config(tmp_path, steps=4, optimizer=FAST.model_copy(update={"lr": 1e-30}))
    found = offline_pg.run(cfg).values
    assert found["best"]["step"] == 0 and found["best"]["score"] == found["evaluation"]["score"]
    kept, base = (causal_lm(ModelConfig(path=str(path))).state_dict() for path in (cfg.out / "best", cfg.policy.path))
    assert all(torch.equal(kept[name], base[name]) for name in base)
    assert [row["step"] for row in logged(cfg.out, phase="eval")] == [0, 2, 4]


def test_a_reference_with_other_tokens_is_refused(tmp_path):
    other = str(tiny.llama(tmp_path / "other", seed=1))
    words = load_tokenizer(other)
    words.chat_template = words.chat_template.replace("<bos>", "")
    words.save_pretrained(other)
    with pytest.raises(ModelError, match="the reference has another tokenizer or chat template than the policy"):
        offline_pg.run(offline_config(tmp_path, reference=FrozenModelConfig(path=other)))


def test_a_reference_whose_context_is_too_short_is_refused(tmp_path):
    """Before it is asked anything; the policy's own context is long enough."""
    short = tiny.llama(tmp_path / "short", seed=1)
    shape = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": 8}))
    with pytest.raises(ModelError, match=r"the longest row has \d+ tokens, the model's context is 8"):
        offline_pg.run(offline_config(tmp_path, reference=FrozenModelConfig(path=str(short)), loss={"variant": "wbc"}))


# --- leakage ---------------------------------------------------------------------------------------------------------


def test_every_prompt_that_was_used_is_written_down(tmp_path):
    """Training and held-out ones, a validation file's too, by the key of their text."""
    cfg = offline_config(tmp_path, steps=1)
    rows = [json.loads(line) for line in told(tmp_path / "more.jsonl", 60).read_text().splitlines()]
    held = str(tiny.write_rows(tmp_path / "held.jsonl", rows[45:]))
    cfg = cfg.model_copy(update={"data": over(cfg, validation=held)})
    offline_pg.run(cfg)
    seen = read_seen(cfg.out / "model")
    for path, keys in ((cfg.data.path, seen.learned_from), (held, seen.held_out)):
        assert keys == {prompt_key(one.prompt) for one in read_responses(path)[0]}
    assert len(seen.learned_from | seen.held_out) == 55


def test_held_out_prompts_are_never_learned_from(tmp_path):
    cfg = offline_config(tmp_path, steps=1)
    found = offline_pg.run(cfg).values
    held = {row["id"] for row in logged(cfg.out, "samples.jsonl", None)}
    assert held and not held & {*worths(cfg)} and found["n_responses"] + found["n_validation"] == 40


def test_what_only_a_simulation_knows_changes_nothing(tmp_path):
    """Two files that differ in `truth` alone: the same bytes."""
    for name, made in (("a", lambda i: {"bad": True}), ("b", lambda i: {"bad": i % 2 == 0, "gold": i})):
        cfg = offline_config(tmp_path, out=tmp_path / name, steps=2)
        file = str(told(tmp_path / f"{name}.jsonl", truth=made))
        offline_pg.run(cfg.model_copy(update={"data": over(cfg, path=file)}))
    for file in ("metrics.jsonl", "advantages.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_the_filter_is_measured_against_what_is_known_to_be_bad(tmp_path):
    """By hand from the rows of advantages; and what is known changes nothing that is learned."""
    file = str(told(tmp_path / "known.jsonl", meta=lambda i: {"noise": i % 4 == 3 or i == 0}))
    found = {}
    for name, key in (("a", None), ("b", "noise")):
        cfg = offline_config(tmp_path, out=tmp_path / name, steps=1, known_bad=key)
        found[name] = offline_pg.run(cfg.model_copy(update={"data": over(cfg, path=file)})).values
    lines = worths(cfg)
    bad = {name for name in lines if int(name[1:]) % 4 == 3 or name == "d0"}
    gone = {name for name, line in lines.items() if not line["kept"]}
    assert gone and found["b"]["data"]["filter"] == pytest.approx({
        "bad": len(bad) / len(lines), "dropped": len(gone) / len(lines), "precision": len(bad & gone) / len(gone),
        "recall": len(bad & gone) / len(bad)}, rel=tol.RELATIVE64)
    assert "filter" not in found["a"]["data"] and logged(tmp_path / "a") == logged(tmp_path / "b")


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"rewards": "hopeless"}, NumericsError, "only 0 of 25 advantages are positive"),
    ({"rewards": "broken"}, NumericsError, "reward 'broken' is nan, which is no reward"),
    ({"rewards": "logit"}, NumericsError, r"outside its declared range of 0 to 1"),
    ({"rewards": "negative", "loss": {"variant": "wbc"}}, DataError, "responses have a negative reward, down to -1"),
    ({"rewards": "stored"}, ConfigError, "nothing scores new text for 'n'"),
    ({"rewards": "stored", "loss": {"variant": "wbc"}}, DataError, "no number called 'n' is stored under `rewards`"),
    ({"policy": ModelConfig(path="/no/such/model")}, ModelError, "/no/such/model"),
    ({"data": {"path": "/no/such/file.jsonl"}}, DataError, "/no/such/file.jsonl"),
    ({"data": {"validation": "/no/such/file.jsonl"}}, DataError, "/no/such/file.jsonl"),
    ({"data": {"validation_fraction": 0.0}}, ConfigError, "no prompt is held out, so there is nothing to estimate"),
    ({"data": {"validation_fraction": 0.1}}, DataError, "prompts are too few to fit a value head"),
    ({"data": {"max_length": 8, "too_long": "drop"}}, KeelError, "8"),
    ({"loss": {"variant": "pro"}, "responses": "all"}, DataError, "none of .* prompts has two responses to rank"),
    ({"value": {"heads": 3}}, ModelError, "3"),
    ({"known_bad": "noise"}, DataError, "meta has None under 'noise', not true or false"),
])
def test_bad_input_ends_in_one_error_that_says_what_to_do(tmp_path, changes, error, message):
    kinds = {"hopeless": reward("hopeless"), "broken": reward("broken"), "logit": reward("logit"),
             "negative": reward("negative", low=-1.0), "stored": reward("n", scorer=None, stored="n")}
    if "rewards" in changes:
        changes = changes | {"rewards": (kinds[changes["rewards"]],)}
    if "data" in changes:
        changes = changes | {"data": over(offline_config(tmp_path), **changes["data"])}
    with pytest.raises(error, match=message) as caught:
        offline_pg.run(offline_config(tmp_path, **changes))
    assert caught.value.remedy and len(str(caught.value).splitlines()) <= 4
    if "advantages are positive" in message:  # they are there to be looked at
        assert not any(line["kept"] for line in logged(tmp_path / "run", "advantages.jsonl", None))
    if "nothing scores new text" in message:
        assert not list((tmp_path / "run/cache").rglob("*.jsonl"))


@pytest.mark.parametrize("text", ["", "\n", '{"id": "a"}\n', "junk\n", '{"prompt": "why"}\n', "\x00\x01"])
def test_data_without_a_response_are_refused(tmp_path, text):
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    cfg = offline_config(tmp_path)
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        offline_pg.run(cfg.model_copy(update={"data": over(cfg, path=str(file))}))


@pytest.mark.parametrize(("settings", "message"), [
    ({"rewards": []}, "rewards is empty: nothing says what a response is worth"),
    ({"loss": {"variant": "pro"}}, "variant='pro' ranks the responses to one prompt: set responses to all"),
    ({"loss": {"variant": "pro"}, "responses": "all", "selection": {"keep": "positive"}},
     "variant='pro' takes all responses in shuffled passes"),
    ({"loss": {"variant": "pro"}, "responses": "all", "selection": {"draw": "priority"}},
     "variant='pro' takes all responses in shuffled passes"),
    ({"value": {"kind": "batch_mean"}}, "value.kind='batch_mean' is known only batch by batch"),
    ({"value": {"kind": "batch_mean"}, "selection": {"keep": "all"}}, "is known only batch by batch"),
    ({"kl_coef": 0.1}, "unknown field 'kl_coef'; did you mean 'loss.kl_coef'"),
    ({"rewards": [{"name": "n"}]}, "reward 'n' comes from nowhere"),
    ({"rewards": [{"name": "a b", "stored": "n"}]}, "name = 'a b'"),
    ({"responses": "best"}, "responses = 'best'"), ({"drop_ending": ""}, "drop_ending = ''"),
    ({"max_response": 0}, "max_response = 0"), ({"epochs": 0}, "epochs = 0"),
])
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        OfflinePGConfig.checked(KEPT | settings)


def test_two_rewards_of_one_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="the name 'nice' stands for more than one reward"):
        offline_pg.run(offline_config(tmp_path, rewards=(reward(), reward())))


def test_the_command_line_says_it_in_one_message(tmp_path, capsys):
    said = []
    for arguments, code in ((["--out", "o"], 2), (["--out", "o", "--policy", "p", "--data", "d"], 2),
                            (["--out", str(tmp_path / "o"), "--policy", "/no/such/model", "--data",
                              str(told(tmp_path / "d.jsonl")), "--rewards", '[{name = "n", stored = "n"}]'], 4)):
        assert main(["offline-pg", *arguments]) == code
        said.append(capsys.readouterr().err)
        assert "Traceback" not in said[-1] and "Error" in said[-1]
    assert "policy" in said[0] and "rewards is empty" in said[1] and "/no/such/model" in said[2]


# --- what is told ----------------------------------------------------------------------------------------------------


def test_every_number_is_explained_and_kept(tmp_path):
    """Of a run of each kind; rewards one by one where there are several, under names that hide nothing."""
    names, page = set(), (Path(__file__).parents[2] / "docs/methods/offline_pg.md").read_text()
    file = str(tiny.pairs(tmp_path / "pairs.jsonl", 40))
    for variant, more in (("a_lol", {}), ("a_lol_kl", {"kl_coef": 0.01}), ("pro", {})):
        cfg = offline_config(tmp_path, out=tmp_path / variant, loss={"variant": variant} | more, steps=2,
                             responses="all", rewards=(reward(), reward("brief_words", name="length", weight=0.5)))
        found = offline_pg.run(cfg.model_copy(update={"data": over(cfg, path=file)})).values
        names |= {name for row in logged(cfg.out, phase=None) for name in row} - {"step", "phase"}
    assert {"reward/nice/mean", "reward/length/mean", "length/mean"} <= names
    names = {re.sub("^reward/[a-z]+/", "reward/NAME/", name) for name in names}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
    worth = found["evaluation"]
    assert worth["score"]["mean"] == pytest.approx(
        worth["reward/nice"]["mean"] + 0.5 * worth["reward/length"]["mean"], rel=tol.RELATIVE32)
    assert worth["length"]["mean"] > 1 and {*found["data"]["rewards"]} == {"nice", "length"}
    rows = logged(cfg.out, "samples.jsonl", None)
    assert [row["step"] for row in rows] == [0, 0, 2, 2] and {"score", "reward/nice", "reward/length"} <= rows[0].keys()
    assert all(math.isfinite(x) for row in logged(cfg.out, phase=None) for x in row.values() if isinstance(x, float))
