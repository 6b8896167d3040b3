"""What is asked, in which words, and how a template that takes no system message is found out."""

import pytest
import tiny

from keel.data.chat import template
from keel.data.records import Message
from keel.data.roles import Role, Trait
from keel.errors import DataError
from keel.persona.asking import asked, keeps_system, role_units, short_name, trait_units

ROLES = [Role("poet", None, ("You are a poet.", "Rhyme."), eval_prompt="{question} {answer}"),
         Role("plain default", None, ("", "You are {model_name}."), is_default=True)]
QUESTIONS = ["Why?", "Who?", "When?"]


def test_every_role_is_asked_every_question_under_every_prompt():
    items = [item for unit in role_units(ROLES, QUESTIONS, None, "Tiny") for item in unit]
    assert [item.id for item in items] == [
        f"{kind}/{name}/{label}_p{p}_q{q}" for kind, name, label in (
            ("role", "poet", "pos"), ("default", "plain default", "default")) for p in (0, 1) for q in (0, 1, 2)]
    assert items[-1].system == "You are Tiny." and items[0].eval_prompt == "{question} {answer}"
    assert [item.half for item in items[:3]] == ["even", "odd", "even"]
    assert len(list(role_units(ROLES, QUESTIONS[:2], 1, "Tiny"))) == 4


def test_a_traits_pair_stays_together():
    units = list(trait_units([Trait("calm", None, (("Be calm.", "Rage."),))], QUESTIONS, None, "Tiny"))
    assert [[(item.system, item.key) for item in unit] for unit in units] == [
        [("Be calm.", f"pos_p0_q{q}"), ("Rage.", f"neg_p0_q{q}")] for q in range(3)]
    assert [item.against for item in units[0]] == [False, True] and type(units[0][1].against) is bool


def test_an_instruction_has_a_turn_of_its_own_or_opens_the_question():
    poet, default = (next(role_units([role], QUESTIONS, None, "Tiny"))[0] for role in ROLES)
    assert asked(poet, True).messages == (Message("system", "You are a poet."), Message("user", "Why?"))
    assert asked(poet, False).messages == (Message("user", "You are a poet.\n\nWhy?"),)
    assert asked(default, True).messages == asked(default, False).messages == (Message("user", "Why?"),)
    assert asked(poet, True).meta == {"role": "poet", "kind": "role", "system": "You are a poet.", "question": "Why?"}


REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.TEMPLATE
DROPS = tiny.TEMPLATE.replace("in messages", "in messages if m['role'] != 'system'")
HEADER_ONLY = tiny.TEMPLATE.replace("{{ m['content'] + '<eos>' }}{% endif %}",
                                    "{{ '' if m['role'] == 'system' else m['content'] + '<eos>' }}{% endif %}")


@pytest.mark.parametrize(("written", "keeps"), [
    (tiny.TEMPLATE, True), (REFUSES, False), (DROPS, False), (HEADER_ONLY, False)])
def test_what_a_template_does_with_a_system_message_is_tried(written, keeps):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = written
    assert keeps_system(template(tokenizer)) is keeps


def test_a_tokenizer_without_a_template_is_refused():
    words = template(tiny.tokenizer())
    words.tokenizer.chat_template = None
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        keeps_system(words)


@pytest.mark.parametrize(("path", "name"), [
    ("models/gemma-2-27b-it", "Gemma"), ("Qwen/Qwen3-32B", "Qwen"), ("Meta-Llama-3.3-70B/", "Llama"),
    ("storychat-4M", "storychat"), ("-odd", "-odd"), ("mymodel", "mymodel")])
def test_short_names(path, name):
    assert short_name(path) == name
