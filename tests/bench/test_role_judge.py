"""Scores of roles: replies are read strictly, failures are counted, and each kind of judge sees what it should."""

import pytest
import tiny
from cli.serving import Reply, Server

from keel.bench import role_judge
from keel.bench.judges import Said
from keel.bench.role_judge import Rated, RoleJudge, RoleJudgeConfig, read_score
from keel.data.records import Message, Prompt
from keel.errors import EndpointError, NumericsError

EVAL = "Q {question} A {answer}"


def rated(text="hello", role="poet", eval_prompt=EVAL, highest=3):
    prompt = Prompt(f"role/{role}/pos_p0_q0", (Message("user", "why ?"),), meta={"role": role})
    return Rated(prompt, text, True, "why ?", eval_prompt, highest)


@pytest.mark.parametrize(("reply", "score"), [
    ("3", 3), ("0", 0), (" 2\n", 2), ("Score: 3.", 3), ("I would say 1, not 3", 1), ("**2**", 2), ("3)", 3),
    ("-1", None), ("label-1", None), ("\u22121", None), ("3.5", None), ("3,5", None), ("4", None), ("12", None),
    ("", None), ("three", None), ("2-3", None), ("3/4", None), ("2 or 3", 2), ("3rd", None), ("v2", None),
    ("+1", None), ("1e1", None), ("-1 no, 3", None),
])
def test_a_reply_is_read_strictly(reply, score):
    assert read_score(reply) == score


def test_traits_are_scored_up_to_a_hundred():
    assert [read_score(reply, 100) for reply in ("100", "73", "101", "REFUSAL", "-5", "1000")] == [
        100, 73, None, None, None, None]


def of_role(prompt, text, ended):
    assert prompt.meta["role"] == "poet" and ended
    return {"hello": 3, "": None}.get(text, 7)


def breaks(prompt, text, ended):
    raise ZeroDivisionError("oh")


def test_a_function_scores_roles_and_leaves_traits(monkeypatch):
    judge = RoleJudge(RoleJudgeConfig(function="test_role_judge:of_role"), 0)
    assert judge.scores([rated(), rated(""), rated(highest=100)]) == [3, None, None]
    assert judge.name == "function test_role_judge:of_role" and not judge.scores_traits
    with pytest.raises(NumericsError, match="the function that scores roles gave 7"):
        judge.scores([rated("other")])
    with pytest.raises(NumericsError, match="the function that scores roles failed: ZeroDivisionError: oh"):
        RoleJudge(RoleJudgeConfig(function="test_role_judge:breaks"), 0).scores([rated()])


class Fake:
    """A judge of text: replies what the last word of the talk says, two talks at a time."""

    name, concurrency = "fake", 2

    def __init__(self):
        self.seen = []

    def plan(self, asks):
        return [list(range(i, min(i + 2, len(asks)))) for i in range(0, len(asks), 2)][::-1]

    def reply(self, asks):
        talks = [ask.talk()[0].content for ask in asks]
        self.seen += talks
        return [Said("", failed="lost") if talk.endswith("lost") else Said(talk.split()[-1]) for talk in talks]


def asking(monkeypatch, **settings):
    fake, found = Fake(), []
    monkeypatch.setattr(role_judge, "judge_of", lambda cfg, seed: found.append(cfg) or fake)
    return RoleJudge(RoleJudgeConfig(model="m", **settings), 5), fake, found


def test_a_judge_of_text_sees_the_roles_own_prompt(monkeypatch):
    judge, fake, configs = asking(monkeypatch)
    wanted = [rated("it is 2"), rated("none", eval_prompt=None), rated("says 90", highest=100), rated("9"), rated("3")]
    assert judge.scores(wanted) == [2, None, 90, None, 3]
    assert sorted(fake.seen) == sorted(["Q why ? A it is 2", "Q why ? A says 90", "Q why ? A 9", "Q why ? A 3"])
    assert judge.scores_traits and judge.name == "model fake"
    assert (configs[0].temperature, configs[0].max_new_tokens, configs[0].retry_unparsed) == (0.0, 10, False)
    assert judge.scores([]) == []


def test_a_few_failed_calls_are_unscored_and_many_stop_the_run(monkeypatch):
    judge, _, _ = asking(monkeypatch)
    assert judge.scores([rated("lost"), rated("3")]) == [None, 3]
    assert (judge.n_asked, judge.n_failed) == (2, 1)
    with pytest.raises(EndpointError, match="6 of 7 calls to the judge of roles failed; the last one: lost"):
        judge.scores([rated("lost")] * 5)


def test_a_local_model_and_an_endpoint_are_asked(tmp_path):
    """A random model says what it likes; an endpoint's reply is what is read."""
    local = RoleJudge(RoleJudgeConfig(model=str(tiny.llama(tmp_path / "m")), max_new_tokens=2), 0)
    assert local.scores([rated(), rated("the cat")]) == [None, None] and local.n_failed == 0
    said = {"choices": [{"message": {"content": "3"}, "finish_reason": "stop"}]}
    with Server(Reply(said)) as server:
        judge = RoleJudge(RoleJudgeConfig(endpoint={"url": server.url, "model": "far"}), 0)
        assert judge.scores([rated("hello there")]) == [3] and judge.name == "model far"
        assert server.asked[0][2]["messages"] == [{"role": "user", "content": "Q why ? A hello there"}]
        assert (server.asked[0][2]["temperature"], server.asked[0][2]["max_tokens"]) == (0.0, 10)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="who scores roles is exactly one of function, model and endpoint"):
        RoleJudgeConfig()
    with pytest.raises(ValueError, match="temperature acts on a judge that writes text; a function is only called"):
        RoleJudgeConfig(function="a:b", temperature=1.0)
