"""Which prompts a run used: written into its folder, found from its model."""

import json

import pytest

from keel.data.records import Message, Prompt
from keel.data.seen import Seen, prompt_key, read_seen, said_key, write_seen
from keel.errors import RunError


def prompt(words: str, name: str = "x") -> Prompt:
    return Prompt(name, (Message("user", words),))


def test_a_key_is_that_of_the_words_not_of_the_record():
    assert prompt_key(prompt("why?", "a")) == prompt_key(prompt("why?", "b")) != prompt_key(prompt("how?", "a"))
    assert prompt_key(Prompt("x", (), "why?")) == said_key((), "why?") != prompt_key(prompt("why?"))
    assert said_key((), "why?", "so") != said_key((), "why?") and len(said_key((), "")) == 16


def test_both_lists_are_found_from_the_models_folder_and_the_two_above(tmp_path):
    one, two, three = (prompt(words) for words in ("one", "two", "three"))
    (tmp_path / "run").mkdir()
    write_seen(tmp_path / "run", [one, two, one], iter([three]))
    expected = Seen(frozenset(map(prompt_key, (one, two))), frozenset({prompt_key(three)}))
    for place in ("run", "run/model", "run/model/adapter"):
        assert read_seen(tmp_path / place) == expected
    assert read_seen(tmp_path / "run/a/b/c") is None and read_seen(tmp_path / "other") is None


@pytest.mark.parametrize("text, why", [
    ('{"learned_from": 3, "held_out": []}', "no list of keys"), ('{"learned_from": [], "held_out": [1]}', "no list of"),
    ('{"learned_from": []}', "held_out"), ('{"keys": ["ab"]}', "learned_from"), ("[]", "list indices"),
    ("{", "Expecting")])
def test_a_damaged_list_is_named(tmp_path, text, why):
    (tmp_path / "prompts_seen.json").write_text(text)
    with pytest.raises(RunError, match=f"prompts_seen.json: the list of prompts that a run used is damaged: .*{why}"):
        read_seen(tmp_path)


def test_the_list_is_two_sorted_lists_of_keys(tmp_path):
    asked = [prompt(f"question {i}") for i in range(9)]
    write_seen(tmp_path, asked[:6], asked[6:])
    told = json.loads((tmp_path / "prompts_seen.json").read_text())
    assert told == {"learned_from": sorted(map(prompt_key, asked[:6])), "held_out": sorted(map(prompt_key, asked[6:]))}
