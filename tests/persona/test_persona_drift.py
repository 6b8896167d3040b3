"""Courses of conversations: means by turn, slopes, changes and differences, worked out by hand."""

import math

import pytest
import tolerances
import torch

from keel.data.dialogues import Dialogue
from keel.data.records import Message
from keel.data.spans import Conversation, TurnSpan
from keel.errors import ModelError
from keel.persona.axis import AssistantAxis, DefaultStats
from keel.persona.drift import Course, course, differences, domain_rows, estimate
from keel.persona.readings import Reading
from keel.persona.written import default_range, role_means

SETTINGS = {"fewest": 2, "seed": 0, "n_draws": 200}


def straight(name, *turns, domain="tea", label="", asked=("hi",)):
    return Course(name, domain, label, asked, turns, tuple("hi" for _ in turns))


def reading(*said, label=""):
    """One token a turn: `said` has role, text and the projection of that token at block 0."""
    spans = tuple(TurnSpan(i, role, i, i + bool(text), ((i, i + 1),) if text else ())
                  for i, (role, text, _) in enumerate(said))
    talk = Dialogue("r", tuple(Message(role, text) for role, text, _ in said), "tea")
    return Reading(talk, Conversation([0] * len(said), spans), label, (0,), torch.tensor([[x for *_, x in said]]))


AXIS = AssistantAxis(torch.tensor([[2.0, 0.0]]), role_mean=torch.tensor([[0.5, 9.0]]))


def test_the_course_of_a_reading():
    """The user's last message before each response; none where the assistant speaks twice; 0.5 is the roles' mean."""
    one = reading(("system", "s", 9.0), ("user", "a", 9.0), ("user", "b", 9.0), ("assistant", "x", 1.0),
                  ("assistant", "y", 2.0), ("user", "c", 9.0), ("assistant", "", 9.0), ("user", "d", 9.0),
                  ("assistant", "z", 4.0))
    found = course(one, AXIS, 0, centred=True)
    assert found.turns == (0.5, 1.5, None, 3.5) and found.before == ("b", None, "c", "d")
    assert found.asked == ("a", "b", "c", "d") and (found.domain, found.id) == ("tea", "r")
    assert course(one, AXIS, 0, centred=False).turns == (1.0, 2.0, None, 4.0)
    with pytest.raises(ModelError, match="without the mean of its roles"):
        course(one, AssistantAxis(torch.ones(1, 2)), 0, centred=True)


def test_a_domain_by_hand():
    """Turn means 2, 3 and 5: slope 3/2. Turn 4 is reached by one conversation and does not count."""
    some = [straight("a", 1.0, 2.0, 4.0, 99.0), straight("b", 3.0, None, 6.0), straight("c", 2.0, 4.0)]
    (found,) = domain_rows(some, **SETTINGS)
    assert [(at["turn"], at["mean"], at["n"]) for at in found["positions"]] == [(1, 2.0, 3), (2, 3.0, 2), (3, 5.0, 2)]
    assert found["slope"] == pytest.approx(1.5, rel=tolerances.RELATIVE64) and found["n"] == 3
    # From the first turn with content to the last: 98, 3 and 2.
    assert found["change"]["mean"] == pytest.approx(103 / 3, rel=tolerances.RELATIVE64)
    assert found["low"] is None and found["change"]["low"] is None  # three conversations have no interval


def test_intervals_resample_conversations():
    """All conversations the same: no spread. Two kinds: both ends lie between their slopes."""
    (same,) = domain_rows([straight(str(i), 3.0, 2.0, 1.0) for i in range(8)], **SETTINGS)
    assert (same["low"], same["slope"], same["high"]) == pytest.approx((-1.0, -1.0, -1.0), rel=tolerances.RELATIVE64)
    assert same["positions"][0]["low"] == same["positions"][0]["high"] == 3.0
    kinds = [straight(str(i), *((0.0, 1.0) if i % 2 else (0.0, -1.0))) for i in range(20)]
    (mixed,) = domain_rows(kinds, **SETTINGS)
    assert -1 < mixed["low"] < mixed["slope"] < mixed["high"] < 1
    assert domain_rows(kinds, **SETTINGS | {"seed": 1})[0]["low"] != mixed["low"]


def test_domains_and_conditions_apart():
    some = [straight("a", 1.0, 2.0), straight("b", 1.0, 3.0, label="capped"), straight("c", 5.0, domain="talk")]
    found = domain_rows(some, **SETTINGS | {"fewest": 1})
    assert [(row["name"], row["label"], row["slope"]) for row in found] == [
        ("tea", "", pytest.approx(1.0)), ("tea", "capped", pytest.approx(2.0)), ("talk", "", None)]
    assert found[2]["change"] == {"mean": None, "low": None, "high": None, "n": 0}


def test_a_number_that_is_not_known():
    nothing = {"mean": None, "low": None, "high": None}
    assert estimate(torch.tensor(math.nan), torch.ones(9), 9) == nothing
    assert estimate(torch.tensor(1.0), torch.full((9,), math.nan), 9) == nothing | {"mean": 1.0}
    assert estimate(torch.tensor(1.0), torch.ones(9), 4) == nothing | {"mean": 1.0}


def test_two_conditions_of_the_same_messages():
    """Turn by turn: (1 + 3) / 2, and 4; what was asked something else is held against nothing."""
    some = [straight("a", 1.0, 2.0, 7.0), straight("b", 2.0, 5.0, label="capped"),
            straight("c", 0.0, None, asked=("so",)), straight("d", 4.0, 8.0, asked=("so",), label="capped"),
            straight("e", 50.0, asked=("why",), label="capped"), straight("f", 60.0, domain="talk", label="capped")]
    (found,) = differences(some, [], seed=0)
    assert found == {"domain": "tea", "first": "", "second": "capped", "mean": 3.0, "low": None, "high": None, "n": 2}


def test_role_means_weigh_turns_and_resample_conversations():
    some = [reading(("user", "a", 1.0), ("assistant", "x", 2.0), ("assistant", "y", 6.0)),
            reading(("user", "a", 3.0), ("assistant", "", 99.0), ("assistant", "y", 1.0))]
    found = {row["role"]: row for row in role_means(some, AXIS, centred=False, seed=0)}
    assert found["user"]["mean"] == 2.0 and found["assistant"]["mean"] == 3.0 and found["assistant"]["n"] == 3
    assert found["user"]["low"] is None
    many = {row["role"]: row for row in role_means(some * 4, AXIS, centred=True, seed=0)}
    assert many["assistant"]["mean"] == 2.5
    # A resample holds k of the first kind (8 and 2 turns) and 8 - k of the second: means lie between 0.5 and 3.5.
    assert 0.5 < many["assistant"]["low"] < 2.5 < many["assistant"]["high"] < 3.5


def test_the_default_range_is_that_of_its_block():
    told = AssistantAxis(AXIS.vectors, role_mean=AXIS.role_mean,
                         meta={"default_stats": DefaultStats(0, 1.0, 1.0, -1.0, 3.0, 9).words})
    assert default_range(told, 0, centred=False) == {"low": -1.0, "high": 3.0}
    assert default_range(told, 0, centred=True) == {"low": -1.5, "high": 2.5}
    assert default_range(told, 1, centred=False) is None and default_range(AXIS, 0, centred=False) is None


def test_a_conversation_and_the_same_while_something_acts():
    """Each is held against itself: two conversations with the same messages are not mixed up."""
    plain = [straight("a", 1.0, 2.0), straight("b", 5.0, 5.0)]
    acted = [straight("a", 2.0, 3.0, label="capped"), straight("b", 8.0, 8.0, label="capped")]
    (found,) = differences(plain, acted, seed=0)
    assert (found["first"], found["second"], found["mean"], found["n"]) == ("", "capped", 2.0, 2)
    named = [straight("a", 1.0, label="x"), straight("b", 4.0, label="y")]
    held = [straight("a", 2.0, label="x, now capped"), straight("b", 7.0, label="y, now capped")]
    assert [(row["first"], row["second"], row["mean"]) for row in differences(named, held, seed=0)] == [
        ("x", "y", 3.0), ("x", "x, now capped", 1.0), ("y", "y, now capped", 3.0)]
