"""Rewards of whole responses: every source in its range, summed with weights, scored once, kept and found again."""

import json
import math
import random
import sys

import pytest
import rewards_by_hand
import tiny
import tolerances as tol
import torch

from keel.bench.rewards import SequenceRewardConfig, SequenceRewards
from keel.data.records import Graded, Message, Prompt
from keel.errors import ConfigError, DataError, NumericsError
from keel.models.load import ModelConfig, load_tokenizer, scalar_model


def prompt(name, text="why", **meta):
    return Prompt(name, (Message("user", text),), None, meta)


def graded(name, response, text="why", grades=(), **meta):
    return Graded(prompt(name, text, **meta), response, dict(grades))


TOLD = [graded("a", "an apple", grades={"hh": -1.0}), graded("b", "no", "what", grades={"hh": 2.0}),
        graded("c", "a pear or two", grades={"hh": 0.0})]


def function(name, /, **more):
    return {"name": name, "scorer": {"function": f"rewards_by_hand:{name}"}} | more


def rewards(folder, *specs):
    return SequenceRewards([SequenceRewardConfig.checked(spec) for spec in specs], folder)


@pytest.fixture(autouse=True)
def fresh():
    rewards_by_hand.CALLS.clear()
    rewards_by_hand.BROKEN.clear()


def doubles(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


# --- the sum ---------------------------------------------------------------------------------------------------------


def test_several_rewards_are_told_apart_and_summed_with_their_weights(tmp_path):
    found = rewards(tmp_path, function("counted"), function("vowels", weight=-0.5, high=10.0),
                    {"name": "hh", "stored": "hh", "squash": "sigmoid", "weight": 2.0})
    told = found.of_data(TOLD)
    # Lengths 8, 2, 13; vowels a-a-e, o, a-e-a-o-o; sigmoid of -1, 2, 0.
    squashed = [1 / (1 + math.e), 1 / (1 + math.exp(-2)), 0.5]
    assert list(told.parts) == ["counted", "vowels", "hh"]
    torch.testing.assert_close(told.parts["counted"], doubles(0.08, 0.02, 0.13), **tol.EXACT)
    torch.testing.assert_close(told.parts["vowels"], doubles(3, 1, 5), **tol.EXACT)
    torch.testing.assert_close(told.parts["hh"], doubles(*squashed), **tol.FLOAT64)
    expected = [0.08 - 1.5 + 2 * squashed[0], 0.02 - 0.5 + 2 * squashed[1], 0.13 - 2.5 + 2 * squashed[2]]
    torch.testing.assert_close(told.total, doubles(*expected), **tol.FLOAT64)
    # 0..1, then -0.5 times 0..10, then 2 times 0..1: the range of a negative weight is turned round.
    assert (found.low, found.high) == (-5.0, 3.0)


def test_the_order_of_responses_and_of_rewards_does_not_matter(tmp_path):
    specs = [function("counted"), function("vowels", weight=-0.5, high=10.0)]
    one = rewards(tmp_path / "one", *specs).of_data(TOLD)
    other = rewards(tmp_path / "other", *specs[::-1]).of_data(TOLD[::-1])
    torch.testing.assert_close(other.total.flip(0), one.total, **tol.EXACT)
    for name, part in one.parts.items():
        torch.testing.assert_close(other.parts[name].flip(0), part, **tol.EXACT)


def test_new_text_is_scored_and_not_kept_and_may_be_empty(tmp_path):
    found = rewards(tmp_path / "kept", function("counted"), function("vowels", high=10.0))
    told = found([one.prompt for one in TOLD], ["", "e", "e"])
    torch.testing.assert_close(told.total, doubles(0, 1.01, 1.01), **tol.EXACT)
    assert not (tmp_path / "kept").exists()
    assert sorted(rewards_by_hand.CALLS) == ["", "e", "e"]  # b and c have different prompts
    found([TOLD[0].prompt], ["e"])
    assert len(rewards_by_hand.CALLS) == 4
    assert found([], []).total.shape == (0,)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_the_same_text_to_the_same_prompt_is_scored_once_and_never_again(tmp_path):
    twice = [*TOLD, graded("d", "an apple"), graded("e", "an apple", "what")]
    steps = []
    first = rewards(tmp_path, function("counted")).of_data(twice, lambda done, total: steps.append((done, total)))
    assert sorted(rewards_by_hand.CALLS) == ["a pear or two", "an apple", "an apple", "no"]
    assert (steps[0], steps[-1]) == ((0, 4), (4, 4))
    assert first.total[0] == first.total[3]
    rewards_by_hand.CALLS.clear()
    again = rewards(tmp_path, function("counted")).of_data(twice)
    assert rewards_by_hand.CALLS == []
    torch.testing.assert_close(again.total, first.total, **tol.EXACT)


def test_progress_counts_all_rewards_that_are_scored(tmp_path):
    steps = []
    stored = {"name": "hh", "stored": "hh", "low": -5, "high": 5}
    found = rewards(tmp_path, function("counted"), stored, function("vowels", high=9))
    found.of_data(TOLD, lambda done, total: steps.append((done, total)))
    assert steps == [(0, 6), (3, 6), (3, 6), (6, 6)]


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    """One of a hundred responses kills the scorer in the middle; whole batches before it are not asked about again."""
    told = [graded(f"r{i}", "x" * i) for i in range(100)]
    whole = rewards(tmp_path / "whole", function("counted")).of_data(told)
    order = list(rewards_by_hand.CALLS)
    rewards_by_hand.CALLS.clear()
    rewards_by_hand.BROKEN.add(order[50])
    with pytest.raises(NumericsError, match="the scoring function failed with RuntimeError"):
        rewards(tmp_path / "killed", function("counted")).of_data(told)
    done = len((tmp_path / "killed" / "scores.jsonl").read_text().splitlines())
    assert 0 < done < 50
    with (tmp_path / "killed" / "scores.jsonl").open("a") as file:
        file.write('{"scorer": "torn')
    rewards_by_hand.BROKEN.clear()
    rewards_by_hand.CALLS.clear()
    resumed = rewards(tmp_path / "killed", function("counted")).of_data(told)
    assert rewards_by_hand.CALLS == order[done:]
    torch.testing.assert_close(resumed.total, whole.total, **tol.EXACT)


def test_a_model_with_other_weights_scores_again(tmp_path):
    trunk = tiny.llama(tmp_path / "trunk")
    spec = {"name": "rm", "scorer": {"model": str(tmp_path / "rm")}, "squash": "sigmoid"}
    totals, names = [], []
    for seed in (1, 2):
        scalar_model(ModelConfig(path=str(trunk)), seed=seed).save_pretrained(tmp_path / "rm")
        load_tokenizer(str(trunk)).save_pretrained(tmp_path / "rm")
        found = rewards(tmp_path / "scores", spec)
        totals.append(found.of_data(TOLD).total)
        names.append(json.dumps(found.identity))
        rows = (tmp_path / "scores" / "scores.jsonl").read_text().splitlines()
        assert len(rows) == 3 * seed
    assert names[0] != names[1]
    assert not torch.equal(*totals)
    new = rewards(tmp_path / "scores", spec)([one.prompt for one in TOLD], [one.response for one in TOLD])
    torch.testing.assert_close(new.total, totals[1], **tol.FLOAT32)


def test_a_reward_that_changed_under_its_name_is_noted(tmp_path, monkeypatch):
    """Its scores are computed anew; whoever thought that they were there must know."""
    module, notes = tmp_path / "scoring_of_x.py", []
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"name": "own", "scorer": {"function": "scoring_of_x:score"}}
    for body in ("0.5", "0.5", "0.25", "0.5"):
        module.write_text(f"def score(prompt, text):\n    return {body}\n")
        sys.modules.pop("scoring_of_x", None)
        found = rewards(tmp_path / "kept", own, function("counted"))
        found.of_data(TOLD)
        found.of_data(TOLD)
        notes.append(found.notes)
    sys.modules.pop("scoring_of_x", None)
    assert [len(said) for said in notes] == [0, 0, 1, 0]
    assert "holds scores of other scorers and none of reward 'own' as it is now; all 3 are computed" in notes[2][0]


def test_a_reward_is_not_noted_as_changed_where_the_folder_was_filled_by_this_run(tmp_path):
    """A run of two rewards that was killed in the first; the second has no scores yet."""
    told, specs = [graded(f"r{i}", "x" * i) for i in range(100)], [function("counted"), function("vowels", high=9)]
    rewards_by_hand.BROKEN.add(told[50].response)
    with pytest.raises(NumericsError, match="the scoring function failed"):
        rewards(tmp_path, *specs).of_data(told)
    assert (tmp_path / "scores.jsonl").stat().st_size
    rewards_by_hand.BROKEN.clear()
    found = rewards(tmp_path, *specs)
    found.of_data(told)
    assert found.notes == []


def test_the_identity_holds_all_that_can_change_a_reward(tmp_path):
    base = {"name": "x", "scorer": {"function": "rewards_by_hand:counted"}}
    changed = [base, base | {"weight": 2.0}, base | {"low": -1.0}, base | {"high": 2.0}, base | {"squash": "sigmoid"},
               base | {"stored": "hh"}, base | {"name": "y"}, base | {"scorer": {"function": "rewards_by_hand:vowels"}}]
    names = [json.dumps(rewards(tmp_path, spec).identity) for spec in changed]
    assert len(dict.fromkeys(names)) == len(changed)
    assert json.dumps(rewards(tmp_path, base).identity) == names[0]


def test_a_function_of_records_sees_meta_and_is_not_confused_by_equal_words(tmp_path):
    """Two records say the same and are worth different: their scores must not share a row of the cache."""
    told = [graded("a", "yes", worth=0.25), graded("b", "yes", worth=0.75), graded("c", "yes", "what", worth=0.5)]
    spec = function("of_record", scorer={"function": "rewards_by_hand:of_record", "prompt_as": "record"})
    for _ in range(2):
        assert rewards(tmp_path, spec).of_data(told).total.tolist() == [0.5, 1.0, 0.75]
    assert rewards(tmp_path, spec)([one.prompt for one in told], ["no"] * 3).total.tolist() == [0.5, 1.0, 0.75]
    told[0].prompt.meta["worth"] = 0.0
    assert rewards(tmp_path, spec).of_data(told).total.tolist() == [0.25, 1.0, 0.75]


def test_informativeness_is_summed_like_any_other_reward(tmp_path):
    rows = [{"prompt": "q", "completion": text} for text in ("red green", "red blue")]
    (tmp_path / "fitted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"name": "tf", "informative": str(tmp_path / "fitted.jsonl"), "weight": 3.0}
    found = rewards(tmp_path / "scores", spec, function("counted"))
    told = found.of_data([graded("a", "red"), graded("b", "grey")])
    torch.testing.assert_close(told.total, doubles(3 * 0.1 + 0.03, 0.04), **tol.FLOAT64)
    assert found.counts["tf"] == {"responses fitted on": 2, "rows not read": 0, "terms": 3}
    before = json.dumps(found.identity)
    (tmp_path / "fitted.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert json.dumps(rewards(tmp_path / "scores", spec, function("counted")).identity) != before


# --- stored numbers --------------------------------------------------------------------------------------------------


def test_stored_numbers_are_squashed_once_and_beside_them_a_scorer_reads_new_text_alone(tmp_path):
    found = rewards(tmp_path, function("counted", stored="hh", squash="sigmoid"))
    torch.testing.assert_close(found.of_data(TOLD).total, doubles(-1, 2, 0).sigmoid(), **tol.EXACT)
    assert rewards_by_hand.CALLS == []
    new = found([TOLD[0].prompt], ["xyz"])
    torch.testing.assert_close(new.total, doubles(0.03).sigmoid(), **tol.EXACT)
    assert found.notes == []


def test_a_sigmoid_of_what_may_be_one_already_is_noted(tmp_path):
    found = rewards(tmp_path, {"name": "p", "stored": "p", "squash": "sigmoid"})
    told = [graded("a", "x", grades={"p": 0.25}), graded("b", "y", grades={"p": 1.0})]
    found.of_data(told)
    found.of_data(told)
    assert len(found.notes) == 1
    assert "reward 'p': all 2 numbers of the data lie between 0 and 1 before squash" in found.notes[0]
    found.notes.clear()
    found.of_data(told[:1])
    assert found.notes == [], "one number says nothing of where the others lie"


def test_a_missing_stored_number_is_said_with_the_record(tmp_path):
    told = [*TOLD, graded("d", "x", grades={"other": 1.0}), graded("e", "x")]
    with pytest.raises(DataError, match="no number called 'hh' is stored under `rewards` for reward 'r'; the first of "
                                        "them has other") as caught:
        rewards(tmp_path, {"name": "r", "stored": "hh", "squash": "sigmoid"}).of_data(told)
    assert caught.value.where == "2 of 5 responses: d, e"


def test_new_text_needs_more_than_stored_numbers(tmp_path):
    (tmp_path / "scores.jsonl").write_text('{"id": "a", "score": 1}\n')
    stored, file = {"name": "r", "stored": "hh"}, {"name": "f", "scorer": {"scores": str(tmp_path / "scores.jsonl")}}
    for spec in (stored, file):
        found = rewards(tmp_path, function("counted"), spec)
        with pytest.raises(ConfigError, match=f"nothing scores new text for '{spec['name']}'"):
            found.require_new_text()
        with pytest.raises(ConfigError, match="nothing scores new text"):
            found([TOLD[0].prompt], ["x"])
    rewards(tmp_path, function("counted", stored="hh")).require_new_text()


# --- ranges ----------------------------------------------------------------------------------------------------------


def test_logits_passed_by_mistake_are_refused_in_the_first_batch_and_the_way_out_is_said(tmp_path):
    told = [graded(f"r{i}", "x" * i) for i in range(100)]
    with pytest.raises(NumericsError, match=r"reward 'logit' is -2.5, outside its declared range of 0 to 1") as caught:
        rewards(tmp_path, function("logit")).of_data(told)
    assert "set squash = sigmoid" in str(caught.value)
    assert caught.value.where.startswith("32 of 32 responses: r")
    assert not (tmp_path / "scores.jsonl").exists()
    with pytest.raises(NumericsError, match="outside its declared range"):
        rewards(tmp_path, function("logit"))([one.prompt for one in told], ["x"] * 100)
    with pytest.raises(NumericsError, match="outside its declared range"):
        rewards(tmp_path, {"name": "hh", "stored": "hh"}).of_data(TOLD)
    assert rewards(tmp_path, function("logit", squash="sigmoid")).of_data(told).total.shape == (100,)


def test_kept_scores_are_looked_at_again_under_another_range(tmp_path):
    rewards(tmp_path, function("vowels", high=5.0)).of_data(TOLD)
    with pytest.raises(NumericsError, match=r"reward 'vowels' is 5, outside its declared range of 0 to 4") as caught:
        rewards(tmp_path, function("vowels", high=4.0)).of_data(TOLD)
    assert caught.value.where == "1 of 3 responses: c"
    assert "Set low and high to the smallest" in str(caught.value)
    with pytest.raises(NumericsError, match="outside its declared range") as caught:
        rewards(tmp_path, function("vowels", high=0.5, squash="sigmoid")).of_data(TOLD)
    assert "A sigmoid lies between 0 and 1" in str(caught.value)


def test_rounding_at_the_end_of_the_range_is_no_error(tmp_path):
    found = rewards(tmp_path, function("a_little_above"))
    assert found([TOLD[0].prompt], ["x" * 9]).total[0] > 1
    with pytest.raises(NumericsError, match="outside its declared range"):
        found([TOLD[0].prompt], ["x" * 11])


def test_what_is_not_finite_is_refused_with_its_record(tmp_path):
    told = [*TOLD, graded("d", "bad")]
    with pytest.raises(NumericsError, match=r"reward 'nowhere' is nan, which is no reward") as caught:
        rewards(tmp_path, function("nowhere")).of_data(told)
    assert caught.value.where == "1 of 4 responses: d"
    assert str(caught.value).endswith("finite number for any text, an empty one too: mend rewards_by_hand:nowhere.")
    for number in (math.inf, -math.inf, math.nan):
        with pytest.raises(NumericsError, match=r"which is no reward\n.*any text: mend the numbers in the data\."):
            rewards(tmp_path, {"name": "r", "stored": "r", "squash": "sigmoid"}).of_data(
                [graded("a", "x", grades={"r": number})])


def test_a_row_without_room_for_its_response_is_no_reward_and_the_limit_is_named(tmp_path):
    trunk = tiny.llama(tmp_path / "rm")
    scalar_model(ModelConfig(path=str(trunk)), seed=1).save_pretrained(tmp_path / "rm")
    spec = {"name": "rm", "squash": "sigmoid", "scorer": {"model": str(tmp_path / "rm"), "max_length": 16}}
    long = [graded("long", "the cat sat " * 20)]
    kept = rewards(tmp_path, spec)
    assert kept.of_data(long).total.shape == (1,)
    assert kept.counts == {"rm": {"rows: response cut": 1}}
    spec["scorer"]["too_long"] = "truncate_left"
    with pytest.raises(NumericsError, match=r"which is no reward \(rows of this batch: no room\)") as caught:
        rewards(tmp_path, spec).of_data(long)
    assert "scorer.max_length" in str(caught.value)


def test_a_reward_of_two_sources_that_is_not_finite_is_to_be_mended_in_either(tmp_path):
    spec = function("nowhere", stored="r")
    spec["scorer"] = {"endpoint": "http://127.0.0.1:9/"}
    with pytest.raises(NumericsError, match=r"any text: mend its source\."):
        rewards(tmp_path, spec).of_data([graded("a", "x", grades={"r": math.nan})])


@pytest.mark.parametrize("name", ["counted", "says"])
def test_a_function_that_fails_names_the_record(tmp_path, name):
    """By its id, not by the key of the cache."""
    rewards_by_hand.BROKEN.add("no")
    for told in (rewards(tmp_path, function(name)).of_data,
                 lambda told: rewards(tmp_path, function(name))([one.prompt for one in told], ["no"] * len(told))):
        with pytest.raises(NumericsError, match="the scoring function") as caught:
            told([graded("the record", "no")])
        assert caught.value.where == "response the record"


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "what"), [
    ({}, "reward 'r' comes from nowhere"),
    ({"scorer": {"function": "a:b"}, "informative": "f"}, "scorer and informative are two rewards, and 'r' is one"),
    ({"stored": "hh", "weight": 0}, "with weight=0 adds nothing to the total"),
    ({"stored": "hh", "low": 1}, "low=1 is not below high=1 in reward 'r'"),
    ({"stored": "hh", "low": 3, "high": 2}, "low=3 is not below high=2"),
    ({"informative": "f", "squash": "sigmoid"},
     "informative gives 'r' a value between 0 and 1 already: leave squash='sigmoid' out"),
    ({"scorer": {"model": "m", "probability": True}, "squash": "sigmoid"},
     "scorer.probability gives 'r' a value between 0 and 1 already"),
    ({"stored": "hh", "name": "two words"}, "name"),
    ({"stored": ""}, "stored"),
])
def test_settings_that_contradict_themselves(settings, what):
    with pytest.raises(ConfigError, match=what):
        SequenceRewardConfig.checked({"name": "r"} | settings)


def test_rewards_have_names_of_their_own(tmp_path):
    with pytest.raises(ConfigError, match="no reward is given, so responses are worth nothing"):
        rewards(tmp_path)
    with pytest.raises(ConfigError, match="the name 'r' stands for more than one reward"):
        rewards(tmp_path, {"name": "r", "stored": "a"}, {"name": "r", "stored": "b"})


def test_a_reward_says_whether_it_scores_new_text():
    said = [SequenceRewardConfig.checked({"name": "r"} | more).scores_new_text for more in (
        {"stored": "a"}, {"scorer": {"scores": "f"}}, {"scorer": {"function": "a:b"}}, {"informative": "f"})]
    assert said == [False, False, True, True]


def test_duplicates_and_permutations_of_a_large_set_agree(tmp_path):
    draws = random.Random(0)
    told = [graded(f"r{i}", "x" * draws.randrange(9), text=f"q{draws.randrange(5)}") for i in range(300)]
    whole = rewards(tmp_path / "a", function("counted")).of_data(told).total
    n = len(rewards_by_hand.CALLS)
    assert n == len({(one.prompt.messages, one.response) for one in told}) < 300
    order = draws.sample(range(300), 300)
    turned = rewards(tmp_path / "b", function("counted")).of_data([told[i] for i in order]).total
    torch.testing.assert_close(turned, whole[order], **tol.EXACT)


def test_a_text_that_was_cut_is_told_from_one_that_ended(tmp_path):
    spec = SequenceRewardConfig(name="end", scorer={"function": f"{__name__}:has_ended", "prompt_as": "record"})
    prompts = [Prompt("q", (Message("user", "why"),))] * 2
    assert SequenceRewards([spec], tmp_path)(prompts, ["yes", "yes"], [True, False]).total.tolist() == [1.0, 0.0]
    assert SequenceRewards([spec], tmp_path)(prompts, ["yes", "yes"]).total.tolist() == [1.0, 1.0]


def test_answers_that_were_cut_are_scored_as_such_and_kept_apart_from_whole_ones(tmp_path):
    told, spec = [graded("a", "red"), graded("b", "red"), graded("c", "blue")], of_record_end()
    assert rewards(tmp_path, spec).of_data(told, ended=[True, False, True]).total.tolist() == [1, 0, 1]
    assert rewards(tmp_path, spec).of_data(told, ended=[False, True, True]).total.tolist() == [0, 1, 1]
    assert rewards(tmp_path, spec).of_data(told).total.tolist() == [1, 1, 1]


def of_record_end():
    return {"name": "end", "scorer": {"function": f"{__name__}:has_ended", "prompt_as": "record"}}


def has_ended(prompt, text, ended):
    return float(ended)
