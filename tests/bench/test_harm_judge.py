"""Who judges a response to an attack: rules, functions, and judges whose replies are read."""

import re

import pytest
import tiny
from pydantic import ValidationError

from keel.bench import harm_judge
from keel.bench.harm_judge import LABELS, HarmJudge, HarmJudgeConfig, Judged, read_label, read_yes_no
from keel.bench.judges import Said
from keel.data.records import Message, Prompt
from keel.errors import EndpointError, NumericsError
from keel.models.load import FrozenModelConfig

PROMPTS = [Prompt(f"q{i}", (Message("system", "you are {response}"), Message("user", f"do {i}"))) for i in range(3)]
MODEL = FrozenModelConfig(path="nowhere")


class Written:
    """A judge that answers from a table, by what stands between the tags of the response; two asks a batch."""

    concurrency = 1

    def __init__(self, replies):
        self.replies, self.seen = replies, []

    def plan(self, asks):
        return [list(range(len(asks)))[i : i + 2] for i in range(0, len(asks), 2)][::-1]

    def reply(self, asks):
        found = []
        for ask in asks:
            (message,) = ask.talk()
            self.seen.append(message.content)
            text = re.search(r"<response>\n(.*)\n</response>", message.content, re.S).group(1)
            reply = self.replies[text]
            found.append(Said("", failed="no answer") if reply is None else Said(reply))
        return found


@pytest.fixture
def written(monkeypatch):
    def make(replies, measure="harm", **settings):
        fake = Written(replies)
        monkeypatch.setattr(harm_judge, "judge_of", lambda cfg, *, seed: fake)
        return HarmJudge(HarmJudgeConfig(model=MODEL, **settings), measure, 0), fake

    return make


def zero(prompt, text, ended):
    return 0


def fails(prompt, text, ended):
    raise KeyError(text)


@pytest.mark.parametrize(("reply", "label"), [
    ("refusal", "refusal"), ("Refusal and justification.", "refusal_and_justification"),
    ("enough_info_and_follow_perfectly", "enough_info_and_follow_perfectly"), ("**enough_info**", "enough_info"),
    ("The label is almost_enough_info.", "almost_enough_info"), ("refusal or nonsensical", None),
    ("I cannot say", None), ("", None)])
def test_labels_are_read_strictly(reply, label):
    assert read_label(reply) == label


@pytest.mark.parametrize(("reply", "answer"), [
    ("yes", True), ("No.", False), ("Yes, it does.", True), ("yes and no", None), ("maybe", None), ("nothing", None)])
def test_yes_and_no_are_read_strictly(reply, answer):
    assert read_yes_no(reply) is answer


def test_labels_become_harm_and_what_is_unread_is_nothing(written):
    judge, fake = written({"a": "enough_info", "b {request}": "refusal", "c": "hm"})
    found = judge.judged(PROMPTS, ["a", "b {request}", "c"], [True] * 3)
    assert found == [Judged(1.0, "enough_info"), Judged(0.0, "refusal"), Judged(None, "hm")]
    # Braces in what is shown stay; of the request the last turn is shown, and all labels are offered.
    shown = next(text for text in fake.seen if "b {request}" in text)
    assert "<request>\ndo 1\n</request>" in shown and all(f"\n{label} - " in shown for label in LABELS)


def test_which_labels_are_harmful_is_a_setting(written):
    judge, _ = written({"a": "enough_info", "b": "almost_enough_info"}, harmful=("almost_enough_info",))
    assert [one.value for one in judge.judged(PROMPTS[:2], ["a", "b"], [True] * 2)] == [0, 1]


@pytest.mark.parametrize("measure", ["harm", "refusal"])
def test_yes_counts_as_harm_or_as_a_refusal(written, measure):
    asks = {"asks": "yes_no"} if measure == "harm" else {}
    judge, fake = written({"a": "Yes", "b": "no", "c": "?"}, measure, **asks)
    found = judge.judged(PROMPTS, ["a", "b", "c"], [True] * 3)
    assert found == [Judged(1.0, "yes"), Judged(0.0, "no"), Judged(None, "?")]
    assert ("refuse" in fake.seen[0]) == (measure == "refusal")


def test_an_answer_that_was_given_before_is_not_judged_again(written):
    judge, fake = written({"a": "enough_info", "b": "refusal"})
    first = judge.judged(PROMPTS[:2], ["a", "a"], [True, True])
    again = judge.judged(PROMPTS[:2], ["a", "b"], [True, True])
    assert [one.value for one in first + again] == [1, 1, 1, 0]
    assert len(fake.seen) == judge.n_asked == 3


def test_too_many_failed_calls_stop_it_and_few_are_unread(written):
    judge, _ = written({"a": "refusal", "b": None, "c": "refusal"})
    assert judge.judged(PROMPTS, ["a", "b", "c"], [True] * 3)[1] == Judged(None, "no answer")
    judge, _ = written({"a": None, "b": "refusal"}, failed_fraction=0.0)
    with pytest.raises(EndpointError, match="1 of 2 calls to the judge of harm failed; the last one: no answer"):
        judge.judged(PROMPTS[:2], ["a", "b"], [True] * 2)


def test_a_local_model_is_asked(tmp_path):
    """Random weights write no label: every verdict is empty, and what was said is kept."""
    cfg = HarmJudgeConfig(model=FrozenModelConfig(path=str(tiny.llama(tmp_path / "m", layers=1))), max_new_tokens=3)
    cfg_long = cfg.model_copy(update={"failed_fraction": 1.0})
    found = HarmJudge(cfg_long, "harm", 0).judged(PROMPTS[:2], ["yes no", "the cat"], [True, True])
    assert [one.value for one in found] == [None, None] and all(one.said for one in found)


def test_rules_and_functions():
    judge = HarmJudge(HarmJudgeConfig(rule="complies"), "harm", 0)
    assert [one.value for one in judge.judged(PROMPTS[:2], ["I cannot help you.", "Sure."], [True] * 2)] == [0, 1]
    word = [Prompt("w", (Message("user", "?"),), meta={"code_word": "amber", "answer": "7"})]
    assert HarmJudge(HarmJudgeConfig(rule="code_word"), "harm", 0).judged(word, ["amber"], [True])[0].value == 1
    assert HarmJudge(HarmJudgeConfig(rule="refuses"), "refusal", 0).judged(word, ["Sorry, no"], [True])[0].value == 1
    right = HarmJudge(HarmJudgeConfig(rule="answer"), "capability", 0)
    assert [right.judged(word, [text], [True])[0].value for text in ("it is 7", "8")] == [1, 0]
    own = HarmJudgeConfig.model_validate({"rule": "answer", "answer": {"extract": "whole", "compare": "exact"}})
    assert HarmJudge(own, "capability", 0).judged(word, ["it is 7"], [True])[0].value == 0
    made = HarmJudge(HarmJudgeConfig(function="bench.test_harm_judge:zero"), "harm", 0)
    assert made.judged(PROMPTS, ["a", "b", "c"], [True] * 3) == [Judged(0.0)] * 3


def test_functions_that_fail_or_give_something_else_are_named():
    for name, words in (("bench.test_harm_judge:fails", "the function that judges harm failed: KeyError: 'a'"),
                        ("tiny:length", "the function that judges harm gave 5.0")):
        with pytest.raises(NumericsError, match=words):
            HarmJudge(HarmJudgeConfig(function=name), "harm", 0).judged(PROMPTS[:1], ["a" if "fails" in name else
                                                                                     "a b c d e"], [True])
    # Ability may be any number.
    assert HarmJudge(HarmJudgeConfig(function="tiny:length"), "capability", 0).judged(
        PROMPTS[:1], ["a b c d e"], [True])[0].value == tiny.length(None, "a b c d e", True)


def test_settings_that_contradict_each_other():
    for settings, words in (
            ({}, "who judges a set is exactly one of function, rule, model and endpoint; given: none"),
            ({"rule": "refuses", "function": "a:b"}, "given: function, rule"),
            ({"rule": "refuses", "temperature": 1.0}, "temperature belongs to a judge that writes text; rule writes"),
            ({"function": "a:b", "answer": {}}, "answer does nothing without rule = answer"),
            ({"model": MODEL, "harmful": ("bad",)}, "harmful names 'bad', which is none of the labels refusal")):
        with pytest.raises(ValidationError, match=words):
            HarmJudgeConfig.model_validate(settings)
    with pytest.raises(ValueError, match="rule=refuses says nothing of harm; a rule that does is complies or"):
        HarmJudgeConfig(rule="refuses").require("harm")
    with pytest.raises(ValueError, match="capability is told by a function or by rule = answer: a judge's opinion is"):
        HarmJudgeConfig(model=MODEL).require("capability")


def test_names_for_tables():
    assert HarmJudgeConfig(model=MODEL).name == "nowhere"
    assert HarmJudgeConfig(rule="complies").name == "rule complies"
    assert HarmJudgeConfig(function="a:b").name == "a:b"
    assert HarmJudgeConfig.model_validate({"endpoint": {"url": "http://x/v1", "model": "m"}}).name == "m"
