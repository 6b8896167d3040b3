"""Responses of files: keel's own rows and the authors' folders, and what is wrong with others."""

import json

import pytest
import tiny

from keel.data.records import Message
from keel.data.roles import Role
from keel.errors import DataError
from keel.persona.asking import Item, asked
from keel.persona.stored import row_of, stored_units

POET = Item("poet", "role", 1, 4, "Rhyme.", "Why?", eval_prompt="{question} {answer}")
ROLES = {"poet": Role("poet", None, ("Rhyme.",), eval_prompt="{question} {answer}")}


def read(path, own_turn=True):
    return list(stored_units(path, ROLES, own_turn))


@pytest.mark.parametrize(("score", "judged"), [(3, True), (None, True), (None, False)])
def test_own_rows_come_back(tmp_path, score, judged):
    path = tiny.write_rows(tmp_path / "r.jsonl", [row_of(POET, "Because.", False, score, judged)])
    (one,), = read(path)
    assert (one.item, one.text, one.ended, one.score, one.judged) == (POET, "Because.", False, score, judged)
    assert one.prompt == asked(POET, True)
    assert read(path, own_turn=False)[0][0].prompt.messages == (Message("user", "Rhyme.\n\nWhy?"),)


def trait(against, q=0):
    return row_of(Item("calm", "trait", 0, q, "Be.", "Why?", against), "Om.", True, None, False)


def test_pairs_of_traits_stay_together(tmp_path):
    units = read(tiny.write_rows(tmp_path / "r.jsonl", [trait(False), trait(True), row_of(POET, "x", True, 1, True)]))
    assert [[one.item.against for one in unit] for unit in units] == [[False, True], [False]]
    assert not read(tiny.write_rows(tmp_path / "r.jsonl", [row_of(POET, "x", True, 1, True) | {"against": True}]))[
        0][0].item.against
    poet = row_of(POET, "x", True, 1, True)
    for rows in ([trait(True)], [trait(False), trait(True, q=1)], [trait(False), trait(False)], [trait(False), poet],
                 [poet, trait(False)]):
        with pytest.raises(DataError, match=f"r.jsonl:{len(rows)}: a response of a trait has no counterpart here"):
            read(tiny.write_rows(tmp_path / "r.jsonl", rows))


def test_traits_are_scored_up_to_100(tmp_path):
    path = tiny.write_rows(tmp_path / "r.jsonl", [trait(False) | {"score": 100}, trait(True) | {"score": 0}])
    assert [one.score for one in read(path)[0]] == [100, 0]


def authors(folder, name, label, turns):
    (folder / "responses").mkdir(exist_ok=True)
    return tiny.write_rows(folder / "responses" / f"{name}.jsonl", [
        {"system_prompt": "Rhyme.", "prompt_index": 0, "question_index": q, "question": "Why?", "label": label,
         "conversation": turns} for q in (0, 1)]).parent


def test_the_authors_folder_is_read_with_its_scores(tmp_path):
    turns = [{"role": "user", "content": "Rhyme.\n\nWhy?"}, {"role": "assistant", "content": "Sky."}]
    authors(tmp_path, "default", "default", turns)
    folder = authors(tmp_path, "default_poet", "pos", turns)
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "default_poet.json").write_text(json.dumps({"pos_p0_q1": 2}))
    found = [one for unit in read(folder) for one in unit]
    assert [(one.item.role, one.item.kind, one.score, one.judged) for one in found] == [
        ("default", "default", None, False), ("default", "default", None, False),
        ("default_poet", "role", None, True), ("default_poet", "role", 2, True)]
    assert found[0].prompt.messages == (Message("user", "Rhyme.\n\nWhy?"),) and found[0].text == "Sky."
    (tmp_path / "scores" / "default_poet.json").write_text(json.dumps({"pos_p0_q1": 57}))
    with pytest.raises(DataError, match=r"default_poet.jsonl:2: the score 57 is no whole number from 0 to 3"):
        read(folder)
    (tmp_path / "scores" / "default_poet.json").write_text("{")
    with pytest.raises(DataError, match=r"default_poet.json: these scores cannot be read"):
        read(folder)


@pytest.mark.parametrize(("change", "message"), [
    ({"kind": "hero"}, "the kind 'hero' is none of role, default and trait"),
    ({"response": None}, "the response has no text in the column 'response'"),
    ({"question_index": -1}, "the column 'question_index' holds -1, no number from 0 on"),
    ({"score": 2.5}, "the score 2.5 is no whole number from 0 to 3"),
    ({"score": 57}, "the score 57 is no whole number from 0 to 3"),
    ({"kind": "default", "score": 4}, "the score 4 is no whole number from 0 to 3"),
    ({"kind": "trait", "score": 101}, "the score 101 is no whole number from 0 to 100"),
    ({"kind": "trait", "score": -1}, "the score -1 is no whole number from 0 to 100"),
    ({"conversation": [{"role": "user"}]}, "the conversation is no list of turns that ends with a response"),
])
def test_a_row_that_is_no_response_is_named(tmp_path, change, message):
    path = tiny.write_rows(tmp_path / "r.jsonl", [row_of(POET, "Because.", True, 3, True) | change])
    with pytest.raises(DataError, match=f"r.jsonl:1: {message}"):
        read(path)
