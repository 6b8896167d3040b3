"""Roles, traits and questions: keel's lines and the authors' folders give the same records; faults name their file."""

import json

import pytest

from keel.data.roles import Role, filled, read_questions, read_roles, read_traits
from keel.errors import DataError

EVAL = "is this {question} answered by {answer}?"
POET = {"name": "poet", "description": "Rhymes.", "system_prompts": ["You are a poet.", "Rhyme."],
        "questions": ["Why?"], "eval_prompt": EVAL}


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lines_and_the_authors_folder_give_the_same_roles(tmp_path):
    told = read_roles(lines(tmp_path / "r.jsonl", {**POET, "description": None}, {
        "name": "default", "is_default": True, "system_prompts": ["", "You are {model_name}."]}))
    folder = tmp_path / "instructions"
    folder.mkdir()
    (folder / "poet.json").write_text(json.dumps({
        "instruction": [{"pos": text} for text in POET["system_prompts"]], "questions": ["Why?"], "eval_prompt": EVAL}))
    (folder / "default.json").write_text(json.dumps({"instruction": [{"pos": ""}, {"pos": "You are {model_name}."}]}))
    assert sorted(read_roles(folder), key=lambda role: role.is_default) == told
    assert told[0] == Role("poet", None, ("You are a poet.", "Rhyme."), ("Why?",), EVAL)
    assert told[1] == Role("default", None, ("", "You are {model_name}."), is_default=True)


def test_only_the_name_default_itself_is_the_default(tmp_path):
    folder = tmp_path / "instructions"
    folder.mkdir()
    for name in ("default_rebel", "default", "undefaulted"):
        (folder / f"{name}.json").write_text(json.dumps({"instruction": [{"pos": name}]}))
    assert {role.name: role.is_default for role in read_roles(folder)} == {
        "default": True, "default_rebel": False, "undefaulted": False}


def test_traits_come_in_pairs(tmp_path):
    pairs = [{"pos": "Be calm.", "neg": "Be wild."}, {"pos": "Relax.", "neg": "Rage."}]
    trait, = read_traits(lines(tmp_path / "t.jsonl", {"name": "calm", "pairs": pairs, "eval_prompt": EVAL}))
    assert trait.pairs == (("Be calm.", "Be wild."), ("Relax.", "Rage.")) and trait.eval_prompt == EVAL


def test_the_judge_sees_braces_as_they_are():
    assert filled(EVAL, "{answer} {x}", "{question}") == "is this {answer} {x} answered by {question}?"


def test_published_files(shared):
    folder = shared / "data" / "assistant_axis"
    if not folder.is_dir():
        pytest.skip("no assistant_axis in the shared data")
    roles, traits = read_roles(folder / "roles.jsonl.gz"), read_traits(folder / "traits.jsonl.gz")
    assert len(roles) == 276 and [role.name for role in roles if role.is_default] == ["default"]
    assert {len(role.systems) for role in roles} == {5} and roles[-1].systems[0] == ""
    assert len(traits) == 240 and {len(trait.pairs) for trait in traits} == {5}
    questions = read_questions(folder / "extraction_questions.jsonl")
    assert len(questions) == 240 and questions[7] == questions[227]


@pytest.mark.parametrize(("row", "message"), [
    ({"name": "a/b", "system_prompts": ["x"]}, "cannot name a role or a trait"),
    ({"name": "a"}, "'a' has no system prompt"),
    ({"name": "a", "system_prompts": ["x"], "is_default": "yes"}, "neither true nor false"),
    ({"name": "a", "system_prompts": ["x"], "description": 3}, "'description' holds int where text belongs"),
    ({"name": "a", "system_prompts": "x"}, "'system_prompts' is no list of texts"),
    ({"name": "a", "instruction": [{"neg": "x"}]}, "an instruction lacks its text 'pos'"),
    ({"name": "a", "system_prompts": ["x"], "eval_prompt": "is it {answer}?"}, r"lacks {question} or {answer}"),
])
def test_a_row_that_is_no_role_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=rf"r.jsonl:1: .*{message}"):
        read_roles(lines(tmp_path / "r.jsonl", row))


def test_faults_of_files_and_of_other_kinds(tmp_path):
    with pytest.raises(DataError, match=r"r.jsonl:2: a second entry is named 'poet'"):
        read_roles(lines(tmp_path / "r.jsonl", POET, POET))
    with pytest.raises(DataError, match="the trait 'calm' has no pairs of system prompts"):
        read_traits(lines(tmp_path / "t.jsonl", {"name": "calm", "pairs": []}))
    with pytest.raises(DataError, match=r"q.jsonl:2: the row has no text in the column 'question'"):
        read_questions(lines(tmp_path / "q.jsonl", {"question": "Why?"}, {"question": " "}))
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a.json").write_text("[1]")
    with pytest.raises(DataError, match=r"a.json: the file holds no object of a role or trait"):
        read_roles(folder)
    (folder / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a.json: not JSON"):
        read_roles(folder)
