"""Models side by side: every number against the samples it stands on, one stream for all, resumed after a kill."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from recipes.running import logged
from tolerances import FLOAT32, RELATIVE32, RELATIVE64

from keel.bench.diversity import copied, distinct_ratio
from keel.data.load import read_prompts
from keel.data.records import Message, Prompt
from keel.data.seen import write_seen
from keel.errors import ConfigError, DataError, ModelError, NumericsError, RunError
from keel.models.load import LoraSettings, causal_lm
from keel.models.lora import with_adapter
from keel.recipes import evaluate
from keel.recipes.evaluate import EvaluateConfig, NamedModel, run
from keel.rollout.sample import SamplingConfig
from keel.runs import Run, Stopped

YES = {"name": "yes", "scorer": {"function": "recipes.test_evaluate:yes"}, "high": 9.0}
BRIEF = {"name": "brief", "weight": 0.5, "scorer": {"function": "recipes.test_evaluate:brief"}}


def yes(prompt, text: str) -> float:
    return float(text.split().count("yes"))


def brief(prompt, text: str) -> float:
    return 1 / (1 + len(text.split()))


def longer(prompt, first: str, second: str) -> dict[str, str]:
    """The longer text is the more helpful one; the first one is always called the safer."""
    assert first != second, "nobody has to be asked about one text given twice"
    longest = "A" if len(first) > len(second) else "B" if len(first) < len(second) else "equal"
    return {"helpful": longest, "safe": "A"}


def config(tmp: Path, out: str = "out", **changes) -> EvaluateConfig:
    for seed, name in enumerate("abc"):
        if not (tmp / name).exists():
            tiny.llama(tmp / name / "model", seed=seed)
    settings = {
        "out": tmp / out, "models": [str(tmp / name / "model") for name in "abc"],
        "prompts": {"path": str(tiny.prompts(tmp / "q.jsonl")), "max_length": 64},
        "sampling": SamplingConfig(max_new_tokens=6), "rewards": [YES, BRIEF],
    }
    return EvaluateConfig.checked(settings | changes)


def mean(values) -> float:
    return sum(values) / len(values)


def test_every_number_is_that_of_the_samples(tmp_path, capsys):
    result = run(config(tmp_path, judge={"function": "recipes.test_evaluate:longer"})).values
    rows = logged(tmp_path / "out", "samples.jsonl", None)
    assert result["n"] == len(rows) == 24 and list(result["models"]) == ["a", "b", "c"] and result["baseline"] == "a"
    for name, told in result["models"].items():
        for where, part in [("all", told), *told["subsets"].items()]:
            said = [row["models"][name] for row in rows if where in ("all", row["domain"])]
            base = [row["models"]["a"] for row in rows if where in ("all", row["domain"])]
            texts = [one["response"] for one in said]
            assert part["n"] == len(said) == (24 if where == "all" else 12)
            totals = [yes(None, text) + 0.5 * brief(None, text) for text in texts]
            assert [one["rewards"]["total"] for one in said] == pytest.approx(totals, rel=RELATIVE64)
            for key, values in (("total", totals), ("yes", [yes(None, text) for text in texts])):
                assert part["rewards"][key]["mean"] == pytest.approx(mean(values), rel=RELATIVE64)
                assert part["rewards"][key]["low"] <= mean(values) <= part["rewards"][key]["high"]
            assert part["words"]["mean"] == pytest.approx(mean([len(text.split()) for text in texts]))
            assert part["tokens"]["mean"] == pytest.approx(mean([one["n_tokens"] for one in said]))
            assert part["not_ended"]["mean"] == pytest.approx(mean([not one["ended"] for one in said]))
            assert part["empty"]["mean"] == pytest.approx(mean([not text for text in texts]))
            assert part["diversity"]["distinct_ratio_2"] == distinct_ratio(texts, 2)
            if name == "a":
                assert part["difference"] is None and part["judge"] is None
                continue
            gaps = [x["rewards"]["total"] - y["rewards"]["total"] for x, y in zip(said, base, strict=True)]
            assert part["difference"]["total"]["mean"] == pytest.approx(mean(gaps), rel=RELATIVE64)
            sides = [(len(x["response"]), len(y["response"])) for x, y in zip(said, base, strict=True)]
            n_win, n_lose = sum(x > y for x, y in sides), sum(x < y for x, y in sides)
            helpful, safe = part["judge"]["helpful"], part["judge"]["safe"]
            assert (helpful["win"], helpful["lose"]) == (100 * n_win / len(said), 100 * n_lose / len(said))
            assert helpful["n_decided"] == n_win + n_lose and ("p_holm" in helpful) == (where == "all")
            assert safe["tie"] == 100, "a judge that likes the first place decides nothing"
    tests = [result["models"][name]["difference"][key] for name in "bc" for key in ("total", "yes", "brief")]
    told = sorted((row["p"], row["p_holm"]) for row in tests)
    assert told == [(p, max(min(1, (6 - i) * one) for i, (one, _) in enumerate(told[: k + 1])))
                    for k, (p, _) in enumerate(told)]
    assert result["rewards"] == {"low": 0.0, "high": 9.5, "weights": {"yes": 1.0, "brief": 0.5}, "beside": [],
                                 "tested": ["total", "yes", "brief"]}
    assert result["judge"]["position"]["safe"]["first_place_percent"] == 100
    assert capsys.readouterr().out.count("distinct-1/2/3") == 3


def test_one_stream_for_all_a_model_says_what_its_copy_says(tmp_path):
    cfg = config(tmp_path)
    tiny.llama(tmp_path / "copy" / "model", seed=0)
    models = [NamedModel(path=str(tmp_path / name / "model")) for name in ("a", "copy", "b")]
    result = run(cfg.model_copy(update={"models": tuple(models)})).values
    copy = result["models"]["copy"]
    assert copy["difference"]["total"] == {"mean": 0, "low": 0, "high": 0, "n": 24, "p": 1, "p_holm": 1}
    assert copy["diversity"] == result["models"]["a"]["diversity"] != result["models"]["b"]["diversity"]


def test_what_a_model_is_called_and_where_it_stands_changes_none_of_its_answers(tmp_path):
    run(config(tmp_path, "one"))
    cfg = config(tmp_path, "other", baseline="c", models=[
        {"name": "the third", "path": str(tmp_path / "c/model")}, str(tmp_path / "b/model"),
        {"path": str(tmp_path / "c/model")}])
    result = run(cfg).values
    one, other = (logged(tmp_path / out, "samples.jsonl", None) for out in ("one", "other"))
    for x, y in zip(one, other, strict=True):
        assert x["models"]["b"] == y["models"]["b"] and x["models"]["c"] == y["models"]["the third"]
    assert result["models"]["c"]["difference"] is None
    assert result["models"]["the third"]["difference"]["total"]["p"] == 1


def test_another_seed_another_answer(tmp_path):
    for out, seed in (("one", 0), ("again", 0), ("other", 1)):
        run(config(tmp_path, out, seed=seed, limit=9))
    one, again, other = ((tmp_path / out / "samples.jsonl").read_bytes() for out in ("one", "again", "other"))
    assert one == again != other and one.count(b"\n") == 9


def asked(monkeypatch) -> list[int]:
    """How many prompts each call of the sampler answers, in order."""
    calls, respond = [], evaluate.respond

    def counted(model, words, rows, *rest, **how):
        calls.append(len(rows))
        return respond(model, words, rows, *rest, **how)

    monkeypatch.setattr(evaluate, "respond", counted)
    return calls


def test_a_killed_run_asks_only_the_models_that_had_not_finished(tmp_path, monkeypatch):
    """Killed while the third model answers: the first two are not asked again, and the end is that of a whole run."""
    whole = run(config(tmp_path, "whole")).values
    calls, keep = asked(monkeypatch), evaluate.keep_answers

    def killed(file, origin, answers):
        if len(calls) == 3:
            raise SystemExit("kill -9")
        keep(file, origin, answers)

    monkeypatch.setattr(evaluate, "keep_answers", killed)
    cfg = config(tmp_path)
    with pytest.raises(SystemExit):
        run(cfg)
    monkeypatch.setattr(evaluate, "keep_answers", keep)
    calls.clear()
    again = run(cfg, resume=True).values
    assert calls == [24] and again["models"] == {
        name: row | {"path": again["models"][name]["path"]} for name, row in whole["models"].items()}
    assert (tmp_path / "out/samples.jsonl").read_bytes() == (tmp_path / "whole/samples.jsonl").read_bytes()


def test_answers_of_other_weights_are_not_taken_for_the_models(tmp_path, monkeypatch):
    cfg = config(tmp_path)
    before = run(cfg).values
    calls = asked(monkeypatch)
    tiny.llama(tmp_path / "b" / "model", seed=7)
    after = run(cfg, resume=True).values
    assert calls == [24], "only the model whose weights changed"
    assert after["models"]["b"]["rewards"] != before["models"]["b"]["rewards"]
    assert after["models"]["c"]["rewards"] == before["models"]["c"]["rewards"]
    assert len(logged(tmp_path / "out", "samples.jsonl", None)) == 24, "the rows of before are gone"


def test_answers_of_another_run_are_taken_over_where_they_are_of_the_same_origin(tmp_path, monkeypatch):
    before = run(config(tmp_path, "first", baseline="b")).values
    calls = asked(monkeypatch)
    tiny.llama(tmp_path / "c" / "model", seed=9)
    models = [{"name": "moved", "path": str(tmp_path / "a/model")}, str(tmp_path / "c/model")]
    after = run(config(tmp_path, "second", models=models, reuse=[str(tmp_path / "first")])).values
    assert calls == [24] and after["models"]["moved"]["rewards"] == before["models"]["a"]["rewards"]
    assert len((tmp_path / "second/answers/moved.jsonl").read_text().splitlines()) == 25, "and kept here too"
    run(config(tmp_path, "third", models=models[:1], seed=1, reuse=[str(tmp_path / "first")]))
    assert calls == [24, 24], "another seed, other answers"


@pytest.mark.parametrize("what", ["nothing", "sampling", "prompt", "tokenizer"])
def test_answers_of_another_origin_are_not_taken_over(tmp_path, monkeypatch, what):
    """Drawn otherwise; to another prompt of the same name; or from the same tokens that are other words now."""
    asked_of = [{"id": f"q{i}", "prompt": [{"role": "user", "content": "the cat sat"[: 3 + 4 * i]}]} for i in (0, 1)]
    prompts = {"path": str(tiny.write_rows(tmp_path / "told.jsonl", asked_of)), "max_length": 64}
    cfg = config(tmp_path, "first", prompts=prompts, models=[str(tmp_path / "a/model")])
    run(cfg)
    calls = asked(monkeypatch)
    changes = {"sampling": {"sampling": SamplingConfig(max_new_tokens=6, temperature=0.5)}}.get(what, {})
    if what == "prompt":
        asked_of[1]["prompt"][0]["content"] = "the dog"
        tiny.write_rows(tmp_path / "told.jsonl", asked_of)
    if what == "tokenizer":
        file = tmp_path / "a/model/tokenizer.json"
        found = json.loads(file.read_text())
        words = found["model"]["vocab"]
        words["red"], words["blue"] = words["blue"], words["red"]
        file.write_text(json.dumps(found))
    run(cfg.model_copy(update={"out": tmp_path / "second", "reuse": (tmp_path / "first",)} | changes))
    assert calls == ([] if what == "nothing" else [2])


def test_responses_from_a_file_stand_beside_the_models(tmp_path):
    rows = [{"id": f"w{i}", "prompt": prompt, "completion": tiny.said(f"yes yes {'no ' * (i % 3)}.")}
            for i, prompt in enumerate(tiny.conversations(24))]
    human = {"name": "people", "path": str(tiny.write_rows(tmp_path / "people.jsonl", rows))}
    result = run(config(tmp_path, written=[human], judge={"function": "recipes.test_evaluate:longer"})).values
    told = result["models"]["people"]
    assert list(result["models"]) == ["a", "b", "c", "people"] and told["rewards"]["yes"]["mean"] == 2
    assert (told["seen"], told["shift"], told["path"]) == (None, None, human["path"])
    words = [3 + i % 3 for i in range(24)]
    assert told["words"]["mean"] == pytest.approx(mean(words)) and told["not_ended"]["mean"] == 0
    assert told["tokens"]["mean"] == pytest.approx(mean(words) + 1) and told["judge"]["helpful"]["n"] == 24
    only = [str(tmp_path / "a/model")]
    based = run(config(tmp_path, "based", written=[human], baseline="people", models=only)).values
    assert based["models"]["people"]["difference"] is None and "p_holm" in based["models"]["a"]["difference"]["total"]
    tiny.write_rows(tmp_path / "people.jsonl", rows[:20])
    with pytest.raises(DataError, match=r"people\.jsonl: 4 of 24 prompts have no response in this file, such as q20"):
        run(config(tmp_path, "lacking", written=[human]))


@pytest.mark.parametrize("n", [2, 3])
def test_two_responses_to_one_prompt_are_taken_in_turn_and_none_of_them_twice(tmp_path, n):
    twice = [{"id": f"q{i}", "prompt": tiny.conversations(1)[0]} for i in range(n)]
    told = [{"id": f"r{i}", "prompt": tiny.conversations(1)[0], "completion": tiny.said(text)}
            for i, text in enumerate(("yes", "no"))]
    cfg = config(tmp_path, written=[{"name": "w", "path": str(tiny.write_rows(tmp_path / "told.jsonl", told))}],
                 prompts={"path": str(tiny.write_rows(tmp_path / "twice.jsonl", twice)), "max_length": 64})
    if n == 3:
        with pytest.raises(DataError, match=r"3 prompts are of a text that is asked more often than this file .*q0"):
            run(cfg)
        return
    run(cfg)
    rows = logged(tmp_path / "out", "samples.jsonl", None)
    assert [row["models"]["w"]["response"] for row in rows] == ["yes", "no"]


def test_damaged_answers_are_named(tmp_path):
    cfg = config(tmp_path, limit=4)
    run(cfg)
    file = tmp_path / "out/answers/b.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(RunError, match=r"b\.jsonl: the answers of a model are damaged: 3 rows, not 4\n.*Remove it"):
        run(cfg, resume=True)


def test_asked_to_stop_it_keeps_the_models_that_are_done(tmp_path, monkeypatch):
    cfg = config(tmp_path, sampling=SamplingConfig(max_new_tokens=6, slots=24))
    monkeypatch.setattr(Run, "stop_requested", lambda self: (tmp_path / "out/answers/a.jsonl").exists())
    with pytest.raises(Stopped, match="stopped while models answered; those that were done are kept"):
        run(cfg)
    monkeypatch.undo()
    monkeypatch.setattr(Run, "stop_requested", lambda self: (tmp_path / "out/answers/c.jsonl").exists())
    with pytest.raises(Stopped, match=r"stopped after \d+ of \d+ scores; every one of them is kept"):
        run(cfg, resume=True)
    monkeypatch.undo()
    assert run(cfg, resume=True).values["n"] == 24


def summed_logprobs(folder: Path, told: list[dict]) -> list[float]:
    """log p of each chosen response with its end, by the model's own full logits."""
    spec = NamedModel(path=str(folder))
    words, model = tiny.tokenizer(), causal_lm(spec.whole)
    sums = []
    for row in told:
        before = words.apply_chat_template(row["prompt"], tokenize=True, add_generation_prompt=True, return_dict=False)
        after = words.encode(row["chosen"][0]["content"] + "<eos>", add_special_tokens=False)
        with torch.no_grad():
            logprobs = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
        sums.append(sum(float(logprobs[len(before) + i - 1, token]) for i, token in enumerate(after)))
    return sums


def test_shift_is_the_log_probability_of_the_data_less_the_references(tmp_path):
    data = {"path": str(tiny.pairs(tmp_path / "p.jsonl")), "max_length": 64}
    told = logged(tmp_path, "p.jsonl", None)
    result = run(config(tmp_path, data=data, limit=2)).values
    a, b = (summed_logprobs(tmp_path / name / "model", told) for name in "ab")
    gaps = [x - y for x, y in zip(b, a, strict=True)]
    shift = result["models"]["b"]["shift"]
    torch.testing.assert_close(shift["per_response"]["mean"], mean(gaps), **FLOAT32)
    n_tokens = [len(row["chosen"][0]["content"].split()) + 1 for row in told]
    torch.testing.assert_close(shift["per_token"]["mean"],
                               mean([gap / n for gap, n in zip(gaps, n_tokens, strict=True)]), **FLOAT32)
    assert result["models"]["a"]["shift"]["per_response"]["mean"] == 0
    against_c = run(config(tmp_path, "c-out", data=data, limit=2, reference={"path": str(tmp_path / "c/model")})).values
    c = summed_logprobs(tmp_path / "c/model", told)
    torch.testing.assert_close(against_c["models"]["b"]["shift"]["per_response"]["mean"],
                               mean([x - y for x, y in zip(b, c, strict=True)]), **FLOAT32)


def test_a_response_four_times_over_says_no_more_of_the_shift_than_once(tmp_path):
    """Its interval is over prompts; and of pairs both responses can be compared."""
    told, found = logged(tmp_path, tiny.pairs(tmp_path / "p.jsonl").name, None), []
    for n in (1, 4):
        rows = [row | {"id": f"{row['id']}-{k}"} for row in told for k in range(n)]
        data = {"path": str(tiny.write_rows(tmp_path / f"{n}.jsonl", rows)), "max_length": 64}
        found.append(run(config(tmp_path, f"out{n}", data=data, limit=2)).values["models"]["b"]["shift"])
    once, again = (one["per_response"] for one in found)
    assert once["low"] < once["mean"] < once["high"]
    assert again == pytest.approx(once | {"n": 4 * 24}, rel=RELATIVE32)
    whole = run(config(tmp_path, "all", data=data | {"path": str(tmp_path / "1.jsonl")}, which="all", limit=2)).values
    assert whole["models"]["b"]["shift"]["per_response"]["n"] == 2 * once["n"] == 48


def test_models_that_read_the_data_as_other_tokens_have_no_shift(tmp_path):
    cfg = config(tmp_path, data={"path": str(tiny.pairs(tmp_path / "p.jsonl")), "max_length": 64})
    words = tiny.tokenizer()
    words.chat_template = tiny.TEMPLATE.replace("<bos>", "<bos>the", 1)
    words.save_pretrained(tmp_path / "b" / "model")
    with pytest.raises(ConfigError, match=r"data: b reads the data as other tokens than a\n.*one tokenizer and"):
        run(cfg)


def test_an_adapter_is_in_the_weights_that_answer(tmp_path):
    cfg = config(tmp_path, limit=8)
    bare = causal_lm(NamedModel(path=str(tmp_path / "a/model")).whole)
    learned = with_adapter(bare, LoraSettings(rank=2), "CAUSAL_LM", "default")
    with torch.no_grad():
        for name, weight in learned.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    learned.save_pretrained(str(tmp_path / "tuned"))
    learned.merge_and_unload().save_pretrained(tmp_path / "merged")
    tiny.tokenizer().save_pretrained(tmp_path / "merged")
    models = [{"path": str(tmp_path / "a/model"), "adapter": str(tmp_path / "tuned")}, str(tmp_path / "merged"),
              str(tmp_path / "a/model")]
    run(config(tmp_path, "lora", models=models, limit=8))
    said = [{name: one["response"] for name, one in row["models"].items()}
            for row in logged(tmp_path / "lora", "samples.jsonl", None)]
    assert all(one["tuned"] == one["merged"] for one in said) and any(one["tuned"] != one["a"] for one in said)
    broken = [{"path": str(tmp_path / "a/model"), "adapter": str(tmp_path / "b/model")}]
    with pytest.raises(ModelError, match=r"b/model: cannot load the adapter on .*a/model: .*\n.*adapter_config"):
        run(config(tmp_path, "broken", models=broken))
    assert cfg.base == "a"


@pytest.mark.parametrize("place", ["b", "b/model"])
def test_prompts_that_a_model_was_trained_on_are_counted_and_left_out_where_asked(tmp_path, capsys, place):
    config(tmp_path)
    prompts = read_prompts(tiny.prompts(tmp_path / "few.jsonl", 10))[0]
    others = [Prompt("x", (Message("user", "something else"),))]
    write_seen(tmp_path / place, [*prompts[:2], *others], [*prompts[1:3], *others])
    cfg = config(tmp_path, prompts={"path": str(tmp_path / "few.jsonl"), "max_length": 64})
    result = run(cfg).values
    assert {name: row["seen"] for name, row in result["models"].items()} == {
        "a": None, "b": {"learned_from": 2, "held_out": 1}, "c": None}
    told = capsys.readouterr().err
    assert result["n"] == 10 and "b was trained on 2 and held out 1 of the 10 prompts" in told
    assert "no list of prompts" not in told
    dropped = run(cfg.model_copy(update={"out": tmp_path / "drop", "overlap": "drop"})).values
    rows = logged(tmp_path / "drop", "samples.jsonl", None)
    assert [row["id"] for row in rows] == [one.id for one in prompts[3:]] and dropped["n"] == 7
    told = capsys.readouterr().err
    assert "they were left out for all, 7 are left" in told
    assert "no list of prompts lies beside a, c: overlap = drop does nothing about what they were trained on" in told
    with pytest.raises(DataError, match="these prompts are no test: b was trained on 2 and held out 1 of the 10"):
        run(cfg.model_copy(update={"out": tmp_path / "refuse", "overlap": "refuse"}))
    with pytest.raises(DataError, match="no prompt is left without those that the models' runs have used: b was t"):
        run(config(tmp_path, "none", prompts={"path": str(tiny.prompts(tmp_path / "three.jsonl", 3)), "max_length": 64},
                   overlap="drop"))


def test_a_prompt_has_to_fit_all_models(tmp_path):
    cfg = config(tmp_path)
    words = tiny.tokenizer()
    words.chat_template = tiny.TEMPLATE.replace("<bos>", "<bos>the cat sat", 1)
    words.save_pretrained(tmp_path / "b" / "model")
    result = run(cfg.model_copy(update={"prompts": cfg.prompts.model_copy(update={"max_length": 15})})).values
    kept = [one.id for one in read_prompts(tmp_path / "q.jsonl")[0] if len(one.messages[0].content.split()) + 7 <= 9]
    assert [row["id"] for row in logged(tmp_path / "out", "samples.jsonl", None)] == kept and 0 < len(kept) < 24
    assert result["skipped"]["n_dropped"] == 24 - len(kept)
    words.chat_template = tiny.TEMPLATE.replace(
        "<bos>", "<bos>{% if 'cat' in messages[0]['content'] %}" + " no" * 20 + "{% endif %}", 1)
    words.save_pretrained(tmp_path / "b" / "model")
    words.chat_template = words.chat_template.replace("' in", "' not in")
    words.save_pretrained(tmp_path / "c" / "model")
    cfg = config(tmp_path, "none", prompts=cfg.prompts.model_copy(update={"max_length": 20}))
    with pytest.raises(DataError, match=r"q\.jsonl: no prompt fits all models\n.*Raise prompts.max_length"):
        run(cfg)


def ends(prompt, text: str, ended: bool) -> float:
    return float(ended)


def test_a_reward_beside_the_total_is_tested_like_it_and_knows_which_answers_were_cut(tmp_path):
    spec = {"name": "ends", "scorer": {"function": "recipes.test_evaluate:ends", "prompt_as": "record"}}
    result = run(config(tmp_path, rewards=[YES], beside=[spec], sampling=SamplingConfig(max_new_tokens=3))).values
    rows = logged(tmp_path / "out", "samples.jsonl", None)
    n_cut = 0
    for name, told in result["models"].items():
        assert told["rewards"]["ends"]["mean"] == pytest.approx(1 - told["not_ended"]["mean"], rel=RELATIVE64)
        assert told["rewards"]["total"] == told["rewards"]["yes"], "no part of the total"
        n_cut += sum(not row["models"][name]["ended"] for row in rows)
    assert 0 < n_cut < 72 and result["rewards"]["tested"] == ["total", "ends"]
    gaps = result["models"]["b"]["difference"]
    assert {"p", "p_holm"} <= gaps["ends"].keys() and "p" not in gaps["yes"]


def test_a_limit_draws_its_prompts_from_the_whole_file(tmp_path):
    drawn = []
    for seed in (0, 1):
        run(config(tmp_path, f"out{seed}", limit=6, seed=seed, models=[str(tmp_path / "a/model")]))
        drawn.append([row["id"] for row in logged(tmp_path / f"out{seed}", "samples.jsonl", None)])
    whole = [one.id for one in read_prompts(tmp_path / "q.jsonl")[0]]
    assert drawn[0] != drawn[1] and all(ids == [name for name in whole if name in ids] for ids in drawn)
    assert any(name in whole[12:] for name in drawn[0]) and [*map(len, drawn)] == [6, 6]


def test_a_run_without_answers_has_none_to_take_over(tmp_path):
    with pytest.raises(ConfigError, match=r"reuse: there are no answers to take over in .*nowhere"):
        run(config(tmp_path, reuse=[str(tmp_path / "nowhere")]))


def test_data_longer_than_a_models_context_are_refused_for_model_and_reference(tmp_path):
    data = {"path": str(tiny.pairs(tmp_path / "p.jsonl")), "max_length": 64}
    short = str(tiny.llama(tmp_path / "short" / "model", seed=1))
    settings = json.loads((tmp_path / "short/model/config.json").read_text())
    (tmp_path / "short/model/config.json").write_text(json.dumps(settings | {"max_position_embeddings": 8}))
    for how in ({"models": [short]}, {"reference": {"path": short}}):
        with pytest.raises(ModelError, match="short/model: the data do not fit this model: the longest row has"):
            run(config(tmp_path, "-".join(how), data=data, **how))


def test_what_is_copied_of_the_knowledge_is_measured_where_there_is_some(tmp_path):
    rows = [json.loads(line) | ({"knowledge": "Two two the the sat why why"} if i % 2 else {})
            for i, line in enumerate(tiny.prompts(tmp_path / "plain.jsonl").read_text().splitlines())]
    result = run(config(tmp_path, models=[str(tmp_path / name / "model") for name in "ab"], prompts={
        "path": str(tiny.write_rows(tmp_path / "known.jsonl", rows)), "max_length": 64})).values
    said = logged(tmp_path / "out", "samples.jsonl", None)
    for name in "ab":
        expected = [copied("Two two the the sat why why", row["models"][name]["response"]) for row in said[1::2]]
        for key, values in zip(("coverage", "density"), zip(*expected, strict=True), strict=True):
            assert result["models"][name][key]["mean"] == pytest.approx(mean(values), rel=RELATIVE64)
            assert result["models"][name][key]["n"] == 12
    gap = result["models"]["b"]["difference"]["density"]["mean"]
    assert gap == pytest.approx(result["models"]["b"]["density"]["mean"] - result["models"]["a"]["density"]["mean"])
    assert result["models"]["a"]["density"]["mean"] > result["models"]["a"]["coverage"]["mean"] > 0


def test_without_rewards_there_is_diversity_and_length_all_the_same(tmp_path):
    result = run(config(tmp_path, rewards=[], limit=5)).values
    assert result["rewards"] is None and result["models"]["b"]["rewards"] == {}
    assert "total" not in result["models"]["b"]["difference"] and result["models"]["b"]["words"]["n"] == 5


def test_a_reward_that_only_data_hold_is_refused_and_one_with_a_scorer_beside_is_scored(tmp_path):
    with pytest.raises(ConfigError, match="nothing scores new text for 'rm': the reward is known for the responses"):
        run(config(tmp_path, rewards=[{"name": "rm", "stored": "rm"}]))
    both = run(config(tmp_path, "both", rewards=[YES | {"stored": "rm"}], limit=3)).values
    assert both["models"]["a"]["rewards"]["yes"]["n"] == 3
    with pytest.raises(NumericsError, match=r"outside its declared range of 0 to 0\.01"):
        run(config(tmp_path, "range", rewards=[BRIEF | {"high": 0.01}], limit=3))


def test_the_seed_draws_the_prompts_of_each_subset_that_go_before_the_judge(tmp_path):
    """Out of its whole file, which may be sorted; the same of every model; each with its own verdict."""
    drawn = {}
    for seed in (0, 1):
        cfg = config(tmp_path, f"out{seed}", seed=seed,
                     judge={"function": "recipes.test_evaluate:longer", "per_subset": 3})
        result = run(cfg).values
        for part, n in [(result["models"]["b"], 6), *((one, 3) for one in result["models"]["b"]["subsets"].values())]:
            assert part["judge"]["helpful"]["n"] == n
        rows = logged(tmp_path / f"out{seed}", "samples.jsonl", None)
        judged = {name: [i for i, row in enumerate(rows) if row["models"][name]["verdicts"]] for name in "bc"}
        assert judged["b"] == judged["c"] and max(judged["b"]) > 9
        for name in "bc":
            for models in (rows[i]["models"] for i in judged[name]):
                sizes = [len(models[who]["response"]) for who in (name, "a")]
                expected = "tie" if sizes[0] == sizes[1] else "win" if sizes[0] > sizes[1] else "lose"
                assert models[name]["verdicts"]["helpful"] == expected
        drawn[seed] = judged["b"]
    assert drawn[0] != drawn[1]


def test_a_subset_of_fewer_prompts_goes_before_the_judge_whole(tmp_path):
    judge = {"function": "recipes.test_evaluate:longer", "per_subset": 13}
    assert run(config(tmp_path, judge=judge)).values["models"]["b"]["judge"]["helpful"]["n"] == 24


def test_subsets_by_a_column_of_the_file(tmp_path):
    rows = [json.loads(line) | {"topic": "cats" if i < 5 else None, "domain": "x"}
            for i, line in enumerate(tiny.prompts(tmp_path / "plain.jsonl").read_text().splitlines())]
    prompts = {"path": str(tiny.write_rows(tmp_path / "topics.jsonl", rows)), "max_length": 64}
    result = run(config(tmp_path, prompts=prompts, subset="topic")).values
    assert {name: part["n"] for name, part in result["models"]["c"]["subsets"].items()} == {"cats": 5}
    with pytest.raises(ConfigError, match="subset: no prompt says 'colour', by which subsets were to be told apart"):
        run(config(tmp_path, "none", prompts=prompts, subset="colour"))


@pytest.mark.parametrize("changes, complaint", [
    ({"models": []}, "models is empty: there is nothing to evaluate"),
    ({"models": ["x/model", "y/../x/model"]}, "more than one model is called 'x': give each a name"),
    ({"baseline": "z"}, r"baseline='z' is none of the models \(a, b, c\)"),
    ({"rewards": [YES | {"name": "words"}]}, "a reward cannot be called 'words': that is the name of another number"),
    ({"beside": [YES]}, "the reward 'yes' is in rewards and in beside: it counts or it does not"),
    ({"rewards": [], "beside": [YES]}, "beside does nothing without rewards"),
    ({"beside": [BRIEF | {"name": "density"}]}, "a reward cannot be called 'density'"),
    ({"reference": "m"}, "reference does nothing without data"),
    ({"models": ["x"], "judge": {"function": "a:b"}}, "judge does nothing with one model"),
    ({"written": [{"name": "a", "path": "f"}]}, "more than one model is called 'a'"),
    ({"written": [{"name": "w", "path": "f"}], "baseline": "w", "data": {"path": "d"}},
     "data is compared with a model, and the baseline 'w' is a file: give reference"),
    ({"judge": {"function": "a:b", "template": "t.j2"}}, "template does nothing with a function, which writes no text"),
    ({"judge": {}}, "who judges is exactly one of function, model and endpoint; given: none"),
    ({"models": [{"name": "../x", "path": "x"}]}, "name = '../x': string should match pattern"),
])
def test_settings_that_contradict_each_other(tmp_path, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        config(tmp_path, **changes)


@pytest.mark.parametrize("path, name", [
    ("runs/ppo/model", "ppo"), ("/a/b/model/adapter", "b"), ("org/some-model", "some-model"), ("model", "model"),
    ("../x y/model/", "x y"), ("runs/größe=3/model", "gr--e-3")])
def test_a_model_without_a_name_is_called_after_its_run(path, name):
    assert NamedModel(path=path).shown == name and NamedModel(path=path, name="n").shown == "n"
