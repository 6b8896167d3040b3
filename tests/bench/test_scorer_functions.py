"""Scores from Python functions and from files; and settings that contradict themselves."""

import json
import math
import re
import sys
import tomllib
from dataclasses import replace

import pytest
import scored_by_hand

from keel.bench.items import Asked, keyed_prompt, response_key
from keel.bench.scorer_files import read_scores
from keel.bench.scorers import EnsembleConfig, ScorerConfig, load_scorer
from keel.data.records import Message
from keel.errors import ConfigError, DataError, NumericsError
from keel.models.load import LoraSettings, ModelConfig

TALK = keyed_prompt([Message("user", "hello"), Message("assistant", "yes"), Message("user", "why")])
BARE = keyed_prompt([], "the cat")
ASKED = [Asked(response_key(prompt, text), prompt, text) for prompt in (TALK, BARE) for text in ("no", "yes", "")]
IDS = [one.id for one in ASKED]


def scorer(**settings):
    return load_scorer(ScorerConfig.checked(settings))


def scored(found, rows=ASKED):
    batches = found.plan(rows)
    assert [i for batch in batches for i in batch] == list(range(len(rows)))
    return [score for batch in batches for score in found.score([rows[i] for i in batch])]


# --- functions -------------------------------------------------------------------------------------------------------


def test_a_function_scores():
    found = scorer(function="scored_by_hand:length")
    assert scored(found) == [2.0, 3.0, 0.0] * 2 and all(isinstance(x, float) for x in scored(found))
    assert (found.name, found.concurrency, found.resolution, found.counts) == ("scored_by_hand:length", 1, 0.0, {})
    assert scored(scorer(function="scored_by_hand:of_numpy")) == [2.0, 3.0, 0.0] * 2
    first, *rest = scored(scorer(function="scored_by_hand:not_finite"))
    assert math.isnan(first) and rest[0] == -math.inf
    assert [len(batch) for batch in found.plan(ASKED * 12)] == [32, 32, 8]


@pytest.mark.parametrize(("prompt_as", "talk", "bare"), [
    ("messages", [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"},
                  {"role": "user", "content": "why"}], [{"role": "user", "content": "the cat"}]),
    ("text", "user: hello\n\nassistant: yes\n\nuser: why", "the cat"),
])
def test_what_a_function_gets(prompt_as, talk, bare):
    scored_by_hand.SEEN.clear()
    scored(scorer(function="scored_by_hand:sees", prompt_as=prompt_as), [ASKED[1], ASKED[3]])
    assert scored_by_hand.SEEN == [(talk, "yes"), (bare, "no")]


def test_a_function_of_records_gets_the_whole_record_and_an_ended_response():
    scored_by_hand.SEEN.clear()
    record = replace(TALK, id="r", meta={"domain": "recall"}, truth={"answer": "red"})
    found = scorer(function="scored_by_hand:sees_record", prompt_as="record")
    assert scored(found, [Asked("k", record, "yes"), Asked("l", BARE, "no")]) == [1.0, 1.0]
    assert scored_by_hand.SEEN == [(record, "yes"), (BARE, "no")]
    assert found.fingerprint != scorer(function="scored_by_hand:sees_record").fingerprint
    with pytest.raises(NumericsError, match=r"failed with TypeError when it was called .* where prompt_as = record"):
        scored(scorer(function="scored_by_hand:sees", prompt_as="record"))


def test_the_gold_score_of_the_sandbox_is_such_a_function():
    from keel.sandbox.gold import gold_score
    from keel.sandbox.world import World

    prompts = World(0).prompts(4)
    rows = [Asked(str(i), prompt, "I do not know.") for i, prompt in enumerate(prompts)]
    found = scored(scorer(function="keel.sandbox.gold:gold_score", prompt_as="record"), rows)
    assert found == [gold_score(prompt, "I do not know.", True) for prompt in prompts]


@pytest.mark.parametrize(("name", "what"), [
    ("fails", r"the scoring function failed with ValueError in line \d+"),
    ("says", "the scoring function gave str, not a number"),
    ("nothing", "the scoring function gave NoneType, not a number"),
    ("several", "the scoring function gave ndarray, not a number"),
])
def test_a_function_that_does_not_score_names_the_response_and_not_its_text(name, what):
    secret = Asked("abc", TALK, scored_by_hand.SECRET)
    with pytest.raises(NumericsError, match=f"response abc: {what}") as caught:
        scorer(function=f"scored_by_hand:{name}").score([secret])
    assert scored_by_hand.SECRET not in str(caught.value)


def test_a_function_that_complains_in_keels_words_is_heard(monkeypatch):
    def refuses(prompt, response):
        raise DataError("not my language")

    monkeypatch.setattr(scored_by_hand, "length", refuses)
    with pytest.raises(DataError, match="not my language"):
        scored(scorer(function="scored_by_hand:length"))


def test_the_fingerprint_of_a_function_follows_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "one_made_here.py").write_text("def score(prompt, response):\n    return 1.0\n")
    (tmp_path / "two_made_here.py").write_text("def score(prompt, response):\n    return 2.0\n")
    prints = [scorer(function=f"{name}_made_here:score").fingerprint for name in ("one", "two")]
    assert prints[0]["source"] != prints[1]["source"] and re.fullmatch("[0-9a-f]{64}", prints[0]["source"])
    assert scorer(function="one_made_here:score", prompt_as="text").fingerprint != prints[0]
    assert scorer(function="math:hypot").fingerprint["source"] is None
    (tmp_path / "one_made_here.py").unlink()
    with pytest.raises(ConfigError, match="cannot read the source of 'one_made_here:score': No such file"):
        scorer(function="one_made_here:score")


IMPL, KEPT = "made_there_impl", "made_there_kept"
OUTER = f"""import functools
import {IMPL}
from {IMPL} import plain
from {KEPT} import kept
partial = functools.partial(plain, factor=2.0)
wrapped = kept(plain)
bound = {IMPL}.Object().score
called = {IMPL}.Object()
"""
INNER = """def plain(prompt, response, factor=1.0):
    return factor
class Object:
    def score(self, prompt, response):
        return 1.0
    __call__ = score
"""
KEEPS = """import functools
def kept(inner):
    @functools.wraps(inner)
    def outer(prompt, response):
        return inner(prompt, response)
    return outer
"""


@pytest.mark.parametrize("name", ["plain", "partial", "wrapped", "bound", "called"])
def test_the_fingerprint_follows_the_file_that_defines_the_function(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{IMPL}.py").write_text(INNER)
    (tmp_path / f"{KEPT}.py").write_text(KEEPS)
    (tmp_path / "made_there.py").write_text(OUTER)
    for module in (IMPL, KEPT, "made_there"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    prints = [scorer(function=f"made_there:{name}").fingerprint["source"]]
    for file in (f"{IMPL}.py", "made_there.py", f"{KEPT}.py"):
        (tmp_path / file).write_text((tmp_path / file).read_text() + "# changed\n")
        prints.append(scorer(function=f"made_there:{name}").fingerprint["source"])
    # Only the decorated function has lines in the decorator's file.
    assert len(set(prints)) == (4 if name == "wrapped" else 3)


def test_a_function_that_is_not_there():
    with pytest.raises(ConfigError, match="function: cannot import 'scored_by_hand:no_such'"):
        scorer(function="scored_by_hand:no_such")


# --- files -----------------------------------------------------------------------------------------------------------


VALUES = [0.5, -1.0, 2.0, None, 4.0, 1e300]


def written(folder, kind):
    path, rows = folder / f"scores.{kind}", list(zip(IDS, VALUES, strict=True))
    if kind == "csv":
        path.write_text("id,score\n" + "".join(f"{name},{'' if x is None else x}\n" for name, x in rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"scorer": "x", "id": name, "score": x}) + "\n" for name, x in rows))
    else:
        table = dict(rows) if kind == "json" else [{"id": name, "score": x} for name, x in rows]
        path = path.with_suffix(".json")
        path.write_text(json.dumps(table))
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "list"])
def test_a_score_file(tmp_path, kind):
    found = scorer(scores=written(tmp_path, kind))
    scores = scored(found)
    assert math.isnan(scores[3]) and scores[:3] + scores[4:] == VALUES[:3] + VALUES[4:]
    assert found.name.startswith("scores.") and found.counts == {"scores not asked for": 0}
    assert scored(found, ASKED[:2]) == [0.5, -1.0] and found.counts == {"scores not asked for": 4}


def test_a_score_file_is_known_by_its_bytes(tmp_path):
    one, other = scorer(scores=written(tmp_path, "csv")), scorer(scores=written(tmp_path, "jsonl"))
    assert one.fingerprint == scorer(scores=written(tmp_path, "csv"), name="x").fingerprint != other.fingerprint


def test_responses_without_a_score_are_an_error(tmp_path):
    file = tmp_path / "scores.jsonl"
    file.write_text("".join(json.dumps({"id": name, "score": 1}) + "\n" for name in IDS[:1]))
    with pytest.raises(DataError, match=rf"no score for 5 of 6 responses: {', '.join(IDS[1:5])}, \.\.\.\n.*score null"):
        scorer(scores=str(file)).plan(ASKED)
    with pytest.raises(DataError, match=f"no score for 1 of 2 responses: {IDS[1]}\n"):
        scorer(scores=str(file)).plan(ASKED[:2])


def test_one_response_has_one_score(tmp_path):
    file = tmp_path / "scores.jsonl"
    rows = [{"id": "a", "score": 1}, {"id": "b", "score": None}, {"id": "a", "score": 1.0}, {"id": "b", "score": None}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_scores(file)) == ["a", "b"]
    file.write_text(file.read_text() + '{"id": "a", "score": 2}\n')
    with pytest.raises(DataError, match=r"scores\.jsonl:5: a second score for a: 2\.0, before it was 1\.0"):
        read_scores(file)


@pytest.mark.parametrize(("row", "what"), [
    ('{"id": "a", "score": "0.5"}', "the score is no number but str"),
    ('{"id": "a", "score": true}', "the score is no number but bool"),
    ('{"id": "a", "score": 1' + "0" * 400 + "}", "the score is no number but int"),
    ('{"a": "text"}', "the score is no number but str"),
    ('{"id": "a", "value": 1}', "a row of scores needs id and score; this one has 'id', 'value'"),
])
def test_rows_that_are_no_scores(tmp_path, row, what):
    file = tmp_path / "scores.jsonl"
    file.write_text(row + "\n")
    with pytest.raises(DataError, match=rf"scores\.jsonl:1: {what}"):
        read_scores(file)


def test_a_table_of_scores_needs_its_header(tmp_path):
    file = tmp_path / "scores.csv"
    file.write_text("key,value\na,1\n")
    with pytest.raises(DataError, match="needs id and score; this one has 'key', 'value'"):
        read_scores(file)
    file.write_text("id,score\na,good\n")
    with pytest.raises(DataError, match=r"scores\.csv:2: the score is no number but str"):
        read_scores(file)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "what"), [
    ({}, "a scorer without a source: give one of model, process, policy, function, scores, endpoint"),
    ({"model": "m", "function": "a:b"}, "model and function exclude each other: a scorer has one source"),
    ({"function": "a:b", "adapter": "x"}, "adapter does nothing with function; it belongs to model"),
    ({"model": "m", "reference": "x"}, "reference does nothing with model; it belongs to policy"),
    ({"scores": "s.csv", "max_length": 64}, "max_length does nothing with scores; it belongs to model or process"),
    ({"policy": "m", "label": 0}, "label does nothing with policy; it belongs to model"),
    ({"function": "a:b", "too_long": "error"}, "too_long does nothing with function; it belongs to model or process"),
    ({"scores": "s.csv", "micro_tokens": 64}, "micro_tokens does nothing with scores; it belongs to model or process"),
    ({"model": "m", "normalise": "mean"}, "normalise does nothing with model; it belongs to policy"),
    ({"policy": "m", "prompt_as": "text"}, "prompt_as does nothing with policy; it belongs to function"),
    ({"model": "m", "request": {"batch": 4}}, "request does nothing with model; it belongs to endpoint"),
    ({"model": "m", "label": 0, "label_weights": [1]}, "label and label_weights exclude each other"),
    ({"model": "m", "adapter": "x", "label": 0}, "an adapter has one number out"),
    ({"model": "m", "adapter": "x", "probability": True}, "probability and adapter exclude each other: it is the"),
    ({"model": "m", "label_weights": [1], "probability": True}, "probability and label_weights exclude each other"),
    ({"policy": "m", "probability": True}, "probability does nothing with policy; it belongs to model"),
    ({"model": ModelConfig(path="m", lora=LoraSettings(rank=2))}, "lora.rank or init = scratch for m, which only"),
    ({"policy": ModelConfig(path="m", init="scratch")}, "lora.rank or init = scratch for m, which only scores"),
    ({"endpoint": "http://localhost/", "request": {"item": "$id"}}, "item is not JSON: .*; names such as"),
    ({"endpoint": "http://localhost/", "request": {"body": "{}"}},
     'body has neither .*items" nor .*item", so no response would be sent'),
    ({"endpoint": "http://localhost/", "request": {"item": '{"id": "$id", "text": "$respons"}'}},
     r"item names \$respons, which would be sent as it stands; there are \$id, \$messages"),
    ({"endpoint": "http://localhost/", "request": {"item": '{"id": "$id"}'}}, "item has neither .* nor .*dialogue"),
    ({"endpoint": "http://localhost/", "request": {"body": '["$item"]'}}, r"body asks for one item .* batch = 16"),
])
def test_settings_that_contradict_themselves(settings, what):
    with pytest.raises(ConfigError, match=what):
        ScorerConfig.checked(settings)


@pytest.mark.parametrize("settings", [
    {"model": "m"}, {"policy": "m"}, {"function": "a:b"}, {"scores": "s.csv"}, {"endpoint": "http://localhost/"}])
def test_settings_with_every_default_spelled_out_are_the_same_settings(settings):
    cfg = ScorerConfig.checked(settings)
    assert ScorerConfig.checked(tomllib.loads(cfg.to_toml())) == cfg


@pytest.mark.parametrize(("settings", "name"), [
    ({"model": "org/reward"}, "reward"), ({"model": "/runs/seven/out/model"}, "seven"), ({"model": "model"}, "model"),
    ({"model": "trunk", "adapter": "runs/seven/out/model/adapter"}, "seven"), ({"function": "a.b:c"}, "a.b:c"),
    ({"scores": "/a/b.jsonl"}, "b.jsonl"), ({"endpoint": "http://localhost/score?x=1"}, "http://localhost/score"),
    ({"policy": "a/p", "reference": "b/r"}, "p (DPO)"), ({"policy": "a/p"}, "p (reference-free)"),
    ({"function": "a:b", "name": "mine"}, "mine"),
])
def test_what_tables_call_a_scorer(settings, name):
    assert ScorerConfig.checked(settings).shown == name


def test_an_ensemble_has_members_with_names_of_their_own():
    members = [{"function": "a:b"}, {"function": "a:c"}]
    found = EnsembleConfig.checked({"members": members})
    assert (found.shown, found.combine) == ("majority of 2", "majority")
    assert EnsembleConfig.checked({"members": members, "name": "both"}).shown == "both"
    with pytest.raises(ConfigError, match="an ensemble needs two or more members, this one has 1"):
        EnsembleConfig.checked({"members": members[:1]})
    with pytest.raises(ConfigError, match="several members are called 'a:b': give each a name"):
        EnsembleConfig.checked({"members": [members[0], members[0]]})
