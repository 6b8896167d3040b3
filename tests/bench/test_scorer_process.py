"""A process model as a scorer: the steps read as plain transformers reads them, and made into one score."""

import json
import math
from dataclasses import replace

import pytest
import tiny
import tolerances as tol
import torch

from keel.bench.items import Asked, keyed_prompt, response_key
from keel.bench.rewards import SequenceRewardConfig, SequenceRewards
from keel.bench.scorers import ScorerConfig, load_scorer
from keel.data.records import Graded, Message, Prompt
from keel.errors import NumericsError
from keel.models.load import ModelConfig, load_tokenizer, save_model
from keel.models.process import process_model
from keel.recipes.bench_select import BenchSelectConfig, run

ENDS = {"yes . no . red": [1, 3, 5], "yes please .": [2], "the cat sat . why ?": [3, 6], "no": [1]}
"""Responses and the tokens in which their steps end where "." parts them; the turn's end is a token too."""
AGGREGATES = {"min": min, "product": math.prod, "mean": lambda p: sum(p) / len(p), "last": lambda p: p[-1]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A process model whose answers differ from step to step."""
    home = tmp_path_factory.mktemp("process")
    model = process_model(ModelConfig(path=str(tiny.llama(home / "trunk"))), seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        model.score.weight.normal_(0.0, 0.5, generator=generator)
    save_model(model, load_tokenizer(str(home / "trunk")), home / "model")
    return home


def asked(response, words="hello ?", ended=True):
    prompt = keyed_prompt([Message("user", words)])
    return Asked(response_key(prompt, response), prompt, response, ended)


def scorer(home, **settings):
    return load_scorer(ScorerConfig.checked({"process": str(home / "model"), "separator": "."} | settings))


def scored(found, rows):
    """Scores in the order of the rows, through the batches that the scorer plans."""
    batches = found.plan(rows)
    scores = {i: x for batch in batches for i, x in zip(batch, found.score([rows[i] for i in batch]), strict=True)}
    return [scores[i] for i in range(len(rows))]


def by_transformers(home, response, places, ended=True):
    """Probability of "right" at the places, by a user of transformers: one row, no padding."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    words = AutoTokenizer.from_pretrained(home / "model")
    model = AutoModelForTokenClassification.from_pretrained(home / "model").eval()
    head = words("<bos><user>hello ?<eos><assistant>", add_special_tokens=False).input_ids
    said = words(response + ("<eos>" if ended else ""), add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([head + said])).logits[0].double()
    return [float(logits[len(head) + place].softmax(0)[1]) for place in places]


@pytest.mark.parametrize("how", AGGREGATES)
def test_scores_are_those_of_plain_transformers(home, how):
    rows = [asked(text) for text in ENDS]
    expected = [AGGREGATES[how](by_transformers(home, text, places)) for text, places in ENDS.items()]
    assert scored(scorer(home, aggregate=how), rows) == pytest.approx(expected, rel=tol.RELATIVE32)
    # Whatever the batches are: one row at a time here.
    assert scored(scorer(home, aggregate=how, micro_tokens=1), rows) == pytest.approx(expected, rel=tol.RELATIVE32)


def test_without_the_setting_the_worst_step_counts(home):
    probabilities = by_transformers(home, "yes . no . red", [1, 3, 5])
    assert len({round(p, 3) for p in probabilities}) == 3
    assert scored(scorer(home), [asked("yes . no . red")]) == pytest.approx([min(probabilities)], rel=tol.RELATIVE32)


def test_a_last_step_that_was_cut_does_not_count(home):
    text = "yes . no . red"
    expected = by_transformers(home, text, [3], ended=False)
    assert scored(scorer(home, aggregate="last"), [asked(text, ended=False)]) == pytest.approx(
        expected, rel=tol.RELATIVE32)


def test_a_response_without_a_step_has_no_score(home):
    rows = [asked(""), replace(asked("no", ended=False), id="cut"), asked("no")]
    assert [math.isnan(x) for x in scored(scorer(home), rows)] == [True, True, False]
    assert [math.isnan(x) for x in scored(scorer(home), rows[:1])] == [True]


def test_steps_behind_the_length_limit_do_not_count(home):
    # The prompt has 6 tokens, so 10 are left for the response: yes . no . red . blue . one ., without two <eos>.
    text = "yes . no . red . blue . one . two"
    found = scorer(home, aggregate="last", max_length=16, too_long="truncate_response")
    assert scored(found, [asked(text)]) == pytest.approx(by_transformers(home, text, [9]), rel=tol.RELATIVE32)
    assert found.counts == {"rows: response cut": 1}
    # With a prompt of 7 the limit stands before the fifth step's own separator: the fourth is the last.
    longer = asked("yes . no . red . blue .", words="hello ? why", ended=False)
    assert scored(found, [asked(text, words="hello ? why")]) == pytest.approx(
        scored(scorer(home, aggregate="last"), [longer]), rel=tol.RELATIVE32)


def test_what_can_change_a_score_is_in_the_fingerprint(home):
    seen = [json.dumps(scorer(home, **how).fingerprint, sort_keys=True) for how in (
        {}, {"separator": "?"}, {"aggregate": "mean"}, {"max_length": 64}, {})]
    assert len(set(seen)) == 4 and seen[0] == seen[-1]
    assert "process model" in seen[0]
    assert scorer(home).name == home.name


@pytest.mark.parametrize(("settings", "what"), [
    ({"model": "m", "separator": "."}, "separator does nothing with model; it belongs to process"),
    ({"function": "a:b", "aggregate": "last"}, "aggregate does nothing with function; it belongs to process"),
    ({"process": "m", "ending": "turn"}, "ending does nothing with process; it belongs to model or policy"),
    ({"process": "m", "model": "m"}, "model and process exclude each other: a scorer has one source"),
    ({"process": ModelConfig(path="m", init="scratch")}, "lora.rank or init = scratch for m, which only scores"),
])
def test_settings_that_contradict_each_other(settings, what):
    with pytest.raises(ValueError, match=what):
        ScorerConfig(**settings)


def test_the_best_of_n_by_the_worst_step(home, tmp_path):
    file = tmp_path / "candidates.jsonl"
    file.write_text(json.dumps({"id": "a", "prompt": "hello ?", "responses": list(ENDS)}) + "\n")
    settings = ScorerConfig.checked({"process": str(home / "model"), "separator": "."})
    run(BenchSelectConfig(out=tmp_path / "out", candidates=file, scorer=settings))
    expected = [min(by_transformers(home, text, places)) for text, places in ENDS.items()]
    row = json.loads((tmp_path / "out" / "picks.jsonl").read_text())
    assert row["picked"] == [expected.index(max(expected))]
    assert row["score"] == pytest.approx(max(expected), rel=tol.RELATIVE32)


def test_a_reward_of_a_response_without_a_step_names_the_separator(home, tmp_path):
    scorer_of = {"process": str(home / "model"), "separator": "."}
    rewards = SequenceRewards([SequenceRewardConfig.checked({"name": "steps", "scorer": scorer_of})], tmp_path)
    with pytest.raises(NumericsError, match=r"step has no score of a process model: look at scorer\.separator"):
        rewards.of_data([Graded(Prompt("a", (Message("user", "why"),)), "", {})])
