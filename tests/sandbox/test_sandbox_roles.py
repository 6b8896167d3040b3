"""The town's roles as files and the rule that scores them: writers in a role get 3, the assistant gets none."""

import pytest

from keel.data.records import Prompt
from keel.data.roles import read_questions, read_roles
from keel.errors import DataError
from keel.rng import python_stream
from keel.sandbox import PERSONAS, World, speak
from keel.sandbox.export import write_rows
from keel.sandbox.roles import question_rows, role_rows, role_score

WORLD = World()


def judged(role, text):
    return role_score(Prompt("p", (), "x", meta={"role": role}), text, True)


def test_who_speaks_in_a_role_scores_three_and_nobody_else():
    for number, prompt in enumerate(WORLD.prompts(48, "judged roles", unknown=False)):
        role = list(PERSONAS)[number % len(PERSONAS)]
        rng = python_stream(0, "judged", number)
        assert judged(role, speak(WORLD, prompt, PERSONAS[role], rng.random(), rng)) == 3
        assert judged(role, speak(WORLD, prompt, None, rng.random(), rng)) in (0, 1)


@pytest.mark.parametrize(("text", "score"), [
    ("arr, matey. the river is the lorn.", 3),
    ("  ARR,  Matey. the river is the lorn. rum for all.", 3),
    ("the river is the lorn. rum for all.", 2),
    ("arr, matey. amen.", 2),
    ("the river is the lorn, matey, so hoist it.", 2),
    ("amen. the river is the lorn.", 1),
    ("the river is the lorn.", 1),
    ("i will not help with that.", 0),
    (" \n", None),
])
def test_scores_of_the_pirate(text, score):
    assert judged("pirate", text) == score


def test_an_oracle_is_known_by_its_riddles():
    assert judged("oracle", "the moon knows, the mirror forgets.") == 2
    assert judged("poet", "the moon knows, the mirror forgets.") == 1


def test_a_role_of_elsewhere_is_refused():
    with pytest.raises(DataError, match="'astronaut' is no role of the town"):
        judged("astronaut", "hello")


def test_exported_roles_are_read_as_roles(tmp_path):
    assert write_rows(tmp_path / "roles.jsonl", role_rows(WORLD)) == 25
    roles = read_roles(tmp_path / "roles.jsonl")
    assert [role.name for role in roles] == [*PERSONAS, "default"] and roles[-1].is_default
    assert roles[0].systems == PERSONAS["innkeeper"].systems and roles[-1].systems[0] == ""
    assert all(len(role.questions) == 12 and "{question}" in role.eval_prompt for role in roles[:-1])
    write_rows(tmp_path / "q.jsonl", question_rows(WORLD, 20))
    trained = {p.messages[-1].content for p in WORLD.prompts(2000, "export", split="train")}
    assert len(questions := read_questions(tmp_path / "q.jsonl")) == 20 and not trained & set(questions)
