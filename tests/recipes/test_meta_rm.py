"""MetaRM end to end: the step against float64, what it equals when there is nothing to climb, responses, resuming."""

import itertools
import json
import signal
from pathlib import Path

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import FAST, killed_here, logged, reward_config, same_results
from references import meta_step
from torch.func import functional_call

from keel.data.load import read_demonstrations
from keel.errors import ConfigError, DataError
from keel.models.load import LoraSettings, ModelConfig, load_tokenizer
from keel.recipes import meta_rm, reward_model
from keel.recipes.meta_rm import MetaRMConfig
from keel.rollout.sample import SamplingConfig
from keel.runs import Run, Stopped
from keel.train.ascent import AscentConfig
from keel.train.inputs import DataConfig
from keel.train.step import Learner

SAID = ["yes please .", "no .", "the cat sat .", "hello two red blue why"]
STEP = AscentConfig(rho=0.01, check_every=1)


def responses(path: Path, said: list[str] = SAID, n: int = 12) -> Path:
    rows = [{"id": f"s{i}-{j}", "prompt": prompt, "response": text, "ended": j != 3}
            for i, prompt in enumerate(tiny.conversations(n)) for j, text in enumerate(said)]
    return tiny.write_rows(path, rows)


def config(tmp: Path, **changes) -> MetaRMConfig:
    plain = reward_config(tmp)
    told = tmp / "responses.jsonl"
    if not told.exists():
        responses(told)
    settings = {name: getattr(plain, name) for name in ("model", "batch", "steps", "optimizer", "data", "eval_every",
                                                        "save_every")}
    settings |= {"out": tmp / "meta", "responses": DataConfig(path=str(told), validation_fraction=0.3, max_length=64),
                 "meta_batch": 3, "ascent": STEP}
    return MetaRMConfig(**(settings | changes))


def sampling_config(tmp: Path, **changes) -> MetaRMConfig:
    asked = tiny.prompts(tmp / "prompts.jsonl", n=10)
    model = reward_config(tmp).model
    return config(tmp, responses=None, policy=model, sampling=SamplingConfig(max_new_tokens=6), **({
        "prompts": DataConfig(path=str(asked), validation_fraction=0.3, max_length=64)} | changes))


def weights(folder: Path) -> bytes:
    return (folder / "model/model.safetensors").read_bytes()


def test_a_step_of_zero_is_keel_reward_model_byte_for_byte(tmp_path) -> None:
    reward_model.run(reward_config(tmp_path, center_coef=0.01))
    meta_rm.run(config(tmp_path, ascent=AscentConfig(rho=None, eta=0.0), center_coef=0.01))
    assert weights(tmp_path / "rm") == weights(tmp_path / "meta")
    meta_rm.run(config(tmp_path, out=tmp_path / "other", center_coef=0.01))
    assert weights(tmp_path / "rm") != weights(tmp_path / "other")
    rows = [row["loss"] for row in logged(tmp_path / "meta")]
    assert rows == [row["loss"] for row in logged(tmp_path / "rm")]


def test_equal_responses_give_the_plain_step(tmp_path) -> None:
    alike = responses(tmp_path / "alike.jsonl", ["yes please ."] * 3)
    told = DataConfig(path=str(alike), validation_fraction=0.3, max_length=64)
    meta_rm.run(config(tmp_path, responses=told, meta_batch=5))
    reward_model.run(reward_config(tmp_path))
    assert weights(tmp_path / "rm") == weights(tmp_path / "meta")
    for row in logged(tmp_path / "meta"):
        assert row["meta/difference"] == pytest.approx(2 / 6, rel=tol.RELATIVE32)  # (k - 1) / 2k
        assert row["meta/grad_norm"] == row["meta/radius"] == 0
    assert not (tmp_path / "meta/alarms.jsonl").exists()


def watched(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """Weights and gradients at each optimiser step, and the weights after it."""
    seen, step = [], Learner.step

    def watch(learner, number, ids, **how):
        row = {"before": [p.detach().clone() for p in learner.parameters],
               "grad": [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learner.parameters]}
        found = step(learner, number, ids, **how)
        seen.append(row | {"after": [p.detach().clone() for p in learner.parameters]})
        return found

    monkeypatch.setattr(Learner, "step", watch)
    return seen


def test_the_optimiser_starts_from_the_very_weights_it_left(tmp_path, monkeypatch) -> None:
    seen = watched(monkeypatch)
    meta_rm.run(config(tmp_path, ascent=AscentConfig(rho=0.5)))
    for one, other in itertools.pairwise(seen):
        assert all(torch.equal(a, b) for a, b in zip(one["after"], other["before"], strict=True))


def float64_step(cfg: MetaRMConfig, first: dict, kind, who: str, eta: float) -> dict[str, torch.Tensor]:
    """The reference on plain transformers in float64, one row at a time and without padding."""
    from transformers import AutoModelForSequenceClassification

    words = load_tokenizer(cfg.model.path)
    made = AutoModelForSequenceClassification.from_pretrained(cfg.model.path, num_labels=1, attn_implementation="eager")
    model = made.double().eval()
    theta = {name: p.detach().double() for (name, _), p in zip(model.named_parameters(), first["before"], strict=True)}

    def score(p: dict, prompt: list[dict], text: str, ended: bool = True) -> torch.Tensor:
        ids = words.apply_chat_template([*prompt, *tiny.said(text)], return_dict=False)
        model.config.pad_token_id = 0
        shown = torch.tensor([ids if ended else ids[:-1]])
        return functional_call(model, p, (), {"input_ids": shown}).logits[0, 0]

    rows = [json.loads(line) for line in Path(cfg.data.path).read_text().splitlines()]
    groups: dict[str, list[dict]] = {}
    for line in Path(cfg.responses.path).read_text().splitlines():
        row = json.loads(line)
        groups.setdefault(json.dumps(row["prompt"]), []).append(row)
    names = [name for name in theta if who == "all" or name == "score.weight"]
    return kind(theta, lambda p: [[score(p, row["prompt"], row[side][0]["content"]) for side in ("chosen", "rejected")]
                                  for row in rows],
                lambda p: [[score(p, row["prompt"], row["response"], row["ended"]) for row in group]
                           for group in groups.values()], eta, names)


@pytest.mark.parametrize("order, who", [("first", "all"), ("first", "head"), ("second", "all"), ("second", "head")])
def test_one_step_equals_the_float64_reference(tmp_path, monkeypatch, order: str, who: str) -> None:
    seen = watched(monkeypatch)
    model = ModelConfig(path=str(tiny.gpt2(tmp_path / "gpt2")))
    pairs = DataConfig(path=str(tiny.pairs(tmp_path / "few.jsonl", 4)), validation_fraction=0.0, max_length=64)
    told = DataConfig(path=str(responses(tmp_path / "told.jsonl", n=3)), validation_fraction=0.0, max_length=64)
    cfg = config(tmp_path, model=model, data=pairs, responses=told, batch=4, meta_batch=3, steps=1,
                 ascent=AscentConfig(rho=0.01, order=order, params=who))
    meta_rm.run(cfg)
    eta = logged(tmp_path / "meta")[0]["meta/eta"]
    expected = float64_step(cfg, seen[0], getattr(meta_step, f"{order}_order"), who, eta)
    for found, truth in zip(seen[0]["grad"], expected.values(), strict=True):
        torch.testing.assert_close(found.double(), truth, **tol.META_STEP)


def test_joint_training_pulls_the_difference_up(tmp_path, monkeypatch) -> None:
    seen = watched(monkeypatch)
    made = {}
    for coef in (1e-9, 0.5):
        meta_rm.run(config(tmp_path, out=tmp_path / str(coef), method="joint", joint_coef=coef, steps=1,
                           ascent=AscentConfig()))
        made[coef] = seen[-1]["grad"]
    meta_rm.run(config(tmp_path, out=tmp_path / "up", steps=1))
    reward_model.run(reward_config(tmp_path, steps=1))
    plain = seen[-1]["grad"]
    for a, b in zip(made[1e-9], plain, strict=True):
        torch.testing.assert_close(a, b, **tol.GRADIENT32)
    pull = torch.cat([(b - a).flatten() for a, b in zip(made[0.5], plain, strict=True)])
    height = logged(tmp_path / "up")[0]["meta/grad_norm"]
    assert float(pull.norm()) == pytest.approx(0.5 * height, rel=tol.GRADIENT32["rtol"])


def test_micro_batches_change_nothing(tmp_path) -> None:
    for micro, name in ((10_000, "one"), (40, "many")):
        meta_rm.run(config(tmp_path, out=tmp_path / name, micro_tokens=micro,
                           ascent=AscentConfig(rho=0.01, order="second", check_every=1)))
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "many"), strict=True):
        for key in ("loss", "meta/difference", "meta/eta", "meta/gain", "grad_norm"):
            assert a[key] == pytest.approx(b[key], **tol.MICRO_BATCHES)


def test_the_step_up_is_logged_and_checked(tmp_path) -> None:
    meta_rm.run(config(tmp_path, ascent=AscentConfig(rho=0.01, check_every=2)))
    rows = logged(tmp_path / "meta")
    assert ["meta/gain" in row for row in rows] == [False, True, False, True]
    assert all(row["meta/gain"] > 0 for row in rows if "meta/gain" in row)
    assert all(row["meta/radius"] == pytest.approx(0.01, rel=tol.GRADIENT32["rtol"]) for row in rows)
    found = meta_rm.run(config(tmp_path, out=tmp_path / "flat", ascent=AscentConfig(rho=1e-15, check_every=2)))
    alarms = logged(tmp_path / "flat", "alarms.jsonl", phase=None)
    assert [(row["step"], row["name"]) for row in alarms] == [(2, "meta_step"), (4, "meta_step")]
    assert found.values["n_alarms"] == 2


def test_it_learns_the_preference_and_measures_the_separation(tmp_path) -> None:
    result = meta_rm.run(config(tmp_path, steps=30))
    found = result.values["evaluation"]
    losses = [row["loss"] for row in logged(tmp_path / "meta")]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    assert 0.375 < found["meta/difference"] < 0.75 and found["meta/spread"] > 0  # k = 4
    assert result.values["headline"]["before"]["mean"] == found["longer_wins"]
    assert result.values["n_prompts"] + result.values["n_held_out_prompts"] == 12
    assert (tmp_path / "meta/model/model.safetensors").exists()


def test_encoders_and_adapters(tmp_path) -> None:
    bert = ModelConfig(path=str(tiny.bert(tmp_path / "bert")))
    meta_rm.run(config(tmp_path, model=bert, steps=2, ascent=AscentConfig(rho=0.01, order="second")))
    adapted = config(tmp_path).model.model_copy(update={"lora": LoraSettings(rank=2), "autocast": True})
    meta_rm.run(config(tmp_path, out=tmp_path / "lora", model=adapted, steps=2))
    assert [row["meta/eta"] > 0 for row in logged(tmp_path / "lora")] == [True, True]


def test_the_policy_answers_at_the_start(tmp_path) -> None:
    meta_rm.run(sampling_config(tmp_path, limit=6, n_responses=3))
    told = read_demonstrations(tmp_path / "meta/responses.jsonl")[0]
    assert [record.id for record in told if record.id.startswith("q1/")] == ["q1/0", "q1/1", "q1/2"]
    assert len({record.prompt.messages for record in told}) == 6
    assert len({record.response for record in told}) > 6  # each response has a stream of its own
    assert {record.prompt.meta["ended"] for record in told} == {True, False}
    again = config(tmp_path, out=tmp_path / "read", responses=sampling_config(tmp_path).prompts.model_copy(
        update={"path": str(tmp_path / "meta/responses.jsonl")}))
    meta_rm.run(again)
    assert weights(tmp_path / "read") == weights(tmp_path / "meta")
    meta_rm.run(sampling_config(tmp_path, out=tmp_path / "seed", seed=1, limit=6, n_responses=3))
    assert (tmp_path / "seed/responses.jsonl").read_bytes() != (tmp_path / "meta/responses.jsonl").read_bytes()


def test_held_out_prompts_of_their_own(tmp_path) -> None:
    cfg = sampling_config(tmp_path)
    held = tiny.write_rows(tmp_path / "held.jsonl", [
        {"id": f"h{i}", "prompt": asked} for i, asked in enumerate(tiny.conversations(14)[10:])])
    asked = cfg.prompts.model_copy(update={"validation": str(held)})
    found = meta_rm.run(cfg.model_copy(update={"prompts": asked, "eval_prompts": 3})).values
    assert found["n_prompts"] == 10 and found["n_held_out_prompts"] == 3
    assert len({r.prompt.messages for r in read_demonstrations(cfg.out / "responses-validation.jsonl")[0]}) == 3


def test_what_was_cut_has_no_end(tmp_path) -> None:
    words = meta_rm.template(load_tokenizer(config(tmp_path).model.path))
    groups, held_out, n_left_out = meta_rm.load_groups(config(tmp_path).responses, words, config(tmp_path), print)
    assert len(groups) + len(held_out) == 12 and n_left_out == 0
    for group in groups + held_out:
        assert [row.ids[-1] == words.end_id for row in group] == [True, True, True, False]
        assert len({tuple(row.ids[:row.n_prompt]) for row in group}) == 1


def test_prompts_with_one_response(tmp_path) -> None:
    lines = responses(tmp_path / "mixed.jsonl").read_text().splitlines()
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines[3:]))  # one response to the first prompt
    (tmp_path / "single.jsonl").write_text("\n".join(lines[::4]))
    told = DataConfig(path=str(tmp_path / "mixed.jsonl"), validation_fraction=0.0, max_length=64)
    with pytest.raises(DataError, match="a prompt has a single response, which cannot"):
        meta_rm.run(config(tmp_path, responses=told))
    found = meta_rm.run(config(tmp_path, out=tmp_path / "skip", responses=told.model_copy(
        update={"on_bad_record": "skip"})))
    assert found.values["n_prompts"] == 11 and found.values["skipped"]["n_prompts"] == 1
    alone = told.model_copy(update={"path": str(tmp_path / "single.jsonl"), "on_bad_record": "skip"})
    with pytest.raises(DataError, match="no prompt has two responses, so nothing"):
        meta_rm.run(config(tmp_path, out=tmp_path / "none", responses=alone))


@pytest.mark.parametrize("given", [{}, {"policy": "models/mine"}, {"prompts": {"path": "a"}},
                                   {"policy": "m", "prompts": {"path": "a"}, "responses": {"path": "b"}}])
def test_responses_come_from_one_place(given: dict) -> None:
    with pytest.raises(ConfigError, match="give either policy and prompts, or responses"):
        MetaRMConfig.checked({"out": "runs/x", "model": "m", "data": {"path": "d"}} | given)


@pytest.mark.parametrize("given, idle", [
    ({"method": "joint", "ascent": {"check_every": 3}}, "ascent"), ({"joint_coef": 0.5}, "joint_coef"),
    ({"n_responses": 3}, "n_responses"), ({"limit": 3}, "limit"), ({"sampling": {"max_new_tokens": 3}}, "sampling")])
def test_what_acts_on_nothing_is_refused(given: dict, idle: str) -> None:
    with pytest.raises(ConfigError, match=f"{idle} acts on nothing with method="):
        MetaRMConfig.checked({"out": "runs/x", "model": "m", "data": {"path": "d"}, "responses": {"path": "b"}} | given)


def test_stopped_while_the_policy_answers(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Run, "stop_requested", lambda run: True)
    with pytest.raises(Stopped, match="responses of the policy; none is kept"):
        meta_rm.run(sampling_config(tmp_path))
    monkeypatch.undo()
    meta_rm.run(sampling_config(tmp_path), resume=True)
    meta_rm.run(sampling_config(tmp_path, out=tmp_path / "whole"))
    same_results(tmp_path / "meta", tmp_path / "whole")


def test_stopped_and_resumed_with_the_same_responses(tmp_path, monkeypatch) -> None:
    cfg = sampling_config(tmp_path, steps=6)
    step = Learner.step
    monkeypatch.setattr(Learner, "step", lambda learner, number, ids: (
        signal.raise_signal(signal.SIGTERM) if number == 3 else None, step(learner, number, ids))[1])
    with pytest.raises(Stopped):
        meta_rm.run(cfg)
    monkeypatch.undo()
    monkeypatch.setattr(meta_rm, "answers", None)  # nobody is asked again
    meta_rm.run(cfg, resume=True)
    monkeypatch.undo()
    meta_rm.run(cfg.model_copy(update={"out": tmp_path / "whole"}))
    same_results(tmp_path / "meta", tmp_path / "whole")


def test_killed_run_resumes_to_the_same_bytes(tmp_path) -> None:
    whole = config(tmp_path, steps=12, save_every=3, eval_every=5, optimizer=FAST)
    meta_rm.run(whole)
    killed_here(whole.model_copy(update={"out": tmp_path / "killed"}), [("log", 5), ("save", 2)], meta_rm.run)
    same_results(tmp_path / "meta", tmp_path / "killed")
