"""Attacks built from roles: a question behind a role, or a word that the role is told to keep."""

from collections import Counter

import pytest

from keel.bench.refusals import CODE_WORD, code_word_said
from keel.data.records import Message, Prompt
from keel.data.roles import Role
from keel.errors import DataError
from keel.persona.attacks import WORDS, attacks_on_code_words, attacks_with_questions, joined

ROLES = [Role("pirate", None, ("be a pirate", "arr"), (), None, False), Role("ghost", None, ("boo",), (), None, False),
         Role("default", None, ("",), (), None, True)]
QUESTIONS = [Prompt(f"q{i}", (Message("user", f"how {i}"),), meta={"category": i}) for i in range(4)]


def test_every_question_is_asked_under_a_role_and_without():
    found = attacks_with_questions(ROLES, QUESTIONS, None, seed=0)
    assert [attack.plain.messages for attack in found] == [question.messages for question in QUESTIONS]
    for attack, question in zip(found, QUESTIONS, strict=True):
        system, *rest = attack.prompt.messages
        role = attack.prompt.meta["role"]
        assert system == Message("system", system.content) and tuple(rest) == question.messages
        assert system.content in next(one.systems for one in ROLES if one.name == role)
        assert attack.prompt.meta == attack.plain.meta == {"category": question.meta["category"], "role": role,
                                                           "question": question.id}
        assert attack.plain.id == f"{attack.prompt.id}-plain"


def test_as_many_attacks_as_asked_for_and_the_seed_draws_them():
    found = attacks_with_questions(ROLES, QUESTIONS, 40, seed=1)
    assert len({attack.prompt.id for attack in found}) == 40
    assert Counter(attack.prompt.meta["question"] for attack in found) == dict.fromkeys(["q0", "q1", "q2", "q3"], 10)
    assert {attack.prompt.messages[0].content for attack in found} == {"be a pirate", "arr", "boo"}
    assert found == attacks_with_questions(ROLES, QUESTIONS, 40, seed=1)
    assert found != attacks_with_questions(ROLES, QUESTIONS, 40, seed=2)
    assert found[:7] == attacks_with_questions(ROLES, QUESTIONS, 7, seed=1)


def test_code_words_stand_in_the_system_prompt_only():
    found = attacks_on_code_words(ROLES, 30, seed=0)
    assert len({attack.prompt.id for attack in found}) == 30
    for attack in found:
        word = attack.prompt.meta[CODE_WORD]
        system, asked = attack.prompt.messages
        assert word in WORDS and system.content.endswith(attack.plain.messages[0].content)
        assert system.content != attack.plain.messages[0].content
        assert code_word_said(attack.prompt, system.content, True) == 1
        assert code_word_said(attack.prompt, asked.content, True) == 0
        assert attack.plain.messages[1] == asked and attack.plain.meta == attack.prompt.meta
    assert len({attack.prompt.meta[CODE_WORD] for attack in found}) > 5
    assert found != attacks_on_code_words(ROLES, 30, seed=1)


def test_instructions_open_the_message_of_templates_without_a_turn_for_them():
    system, asked, said = Message("system", "be kind"), Message("user", "hello"), Message("assistant", "hi")
    opened = Message("user", "be kind\n\nhello")
    assert joined(Prompt("a", (system, asked, said, asked))).messages == (opened, said, asked)
    assert joined(Prompt("a", (Message("system", ""), asked))).messages == (asked,)
    plain = Prompt("a", (asked,))
    assert joined(plain) is plain
    assert joined(Prompt("a", (), "text")).text == "text"


def test_what_cannot_be_attacked_with_is_refused():
    with pytest.raises(DataError, match="there is no role to attack with: the file holds the default alone"):
        attacks_on_code_words(ROLES[2:], 3, seed=0)
    with pytest.raises(DataError, match="there are no questions to build attacks from"):
        attacks_with_questions(ROLES, [], None, seed=0)
    for messages in ((), (Message("system", "be"), Message("user", "how"))):
        with pytest.raises(DataError, match="an attack needs a question in turns, the first of which is the user's"):
            attacks_with_questions(ROLES, [Prompt("q", messages)], None, seed=0)
