"""The toy of personas: who speaks how often, what a response shows of it, and rows that keel's own readers take."""

from collections import Counter
from pathlib import Path

import pytest
import tolerances as tol

from keel.data.chat import template
from keel.data.records import Prompt
from keel.data.roles import read_questions, read_roles
from keel.models.load import load_tokenizer
from keel.sandbox import troupe
from keel.sandbox.export import write_rows

TOLD = troupe.conversations(3000, 0, "test")
ASSISTANT = "certainly deep note gladly north helpful"
PIRATE = "arr deep moon plunder north dream"


def test_a_response_has_six_words_with_facts_in_their_places() -> None:
    for shown in TOLD:
        said = shown.response.split()
        assert len(said) == 6 and troupe.fact_share(shown.prompt, shown.response) == 1
        shown_by = {word in troupe.ASSISTANT_WORDS for i, word in enumerate(said) if i not in (1, 4)}
        assert shown_by == {shown.prompt.truth["mode"] == "assistant"}


def test_a_role_says_shared_words_and_its_own() -> None:
    own = Counter[str]()
    for shown in TOLD:
        role = shown.prompt.meta["role"]
        if shown.prompt.truth["mode"] == "role":
            words = [word for i, word in enumerate(shown.response.split()) if i not in (1, 4)]
            assert all(word in (*troupe.SHARED_WORDS, *troupe.ROLES[role]) for word in words)
            own.update("shared" if word in troupe.SHARED_WORDS else "own" for word in words)
    assert own["own"] / own.total() == pytest.approx(0.5, abs=tol.WITHIN["share of 3000 prompts"])


def test_later_roles_leave_more_to_the_assistant() -> None:
    shares = {}
    for role in troupe.ROLES:
        modes = [shown.prompt.truth["mode"] for shown in TOLD if shown.prompt.meta["role"] == role]
        shares[role] = modes.count("assistant") / len(modes)
    assert shares["ghost"] == 0 and shares["librarian"] == pytest.approx(
        0.9, abs=tol.WITHIN["share of 130 conversations"])
    assert shares["ghost"] < shares["pirate"] < shares["monk"]
    default = [shown for shown in TOLD if shown.prompt.meta["role"] == "default"]
    assert len(default) / 3000 == pytest.approx(0.3, abs=tol.WITHIN["share of 3000 prompts"])
    assert all(shown.prompt.truth["mode"] == "assistant" for shown in default)
    assert {shown.prompt.messages[0].content for shown in default if len(shown.prompt.messages) == 2} == {
        *troupe.NEUTRAL}
    assert any(len(shown.prompt.messages) == 1 for shown in default)


def test_the_same_names_give_the_same_and_others_others() -> None:
    assert troupe.conversations(5, 0, "test") == TOLD[:5]
    assert troupe.conversations(5, 1, "test") != TOLD[:5] != troupe.conversations(5, 0, "other")


def test_feelings_make_a_role_likelier_now_and_after() -> None:
    found = {key: [0, 0] for key in ((False, False), (False, True), (True, False), (True, True))}
    for talk in troupe.dialogues(1500, 0, "test", turns=(2, 4)):
        for now, before, role in zip(talk.feelings[1:], talk.feelings, talk.in_role[1:], strict=False):
            found[now, before][0] += 1
            found[now, before][1] += role
    for (now, before), (n, n_role) in found.items():
        expected = troupe.likely_in_role(now, before)
        assert n_role / n == pytest.approx(expected, abs=4 * (expected * (1 - expected) / n) ** 0.5)
    assert [troupe.likely_in_role(*key) for key in found] == pytest.approx([0.05, 0.35, 0.55, 0.85])


def test_a_dialogue_is_a_demonstration_of_its_last_answer() -> None:
    [talk] = troupe.dialogues(1, 0, "one", turns=(3, 3))
    shown = talk.demonstration("x")
    assert [turn.role for turn in shown.prompt.messages] == ["user", "assistant"] * 2 + ["user"]
    assert (shown.response, shown.prompt.messages[1].content) == (talk.answers[2], talk.answers[0])
    assert shown.prompt.truth["mode"] == ("role" if talk.in_role[2] else "assistant")


def test_only_the_assistant_keeps_secrets() -> None:
    n = {True: 0, False: 0}
    for talk in troupe.dialogues(300, 0, "secrets"):
        for asked, answer, in_role in zip(talk.said, talk.answers, talk.in_role, strict=True):
            secret = asked.startswith(troupe.SECRET)
            assert troupe.refuses(answer) == (secret and not in_role)
            n[in_role] += secret
    assert min(n.values()) > 4
    assert not any(one.said[0].startswith(troupe.SECRET) for one in troupe.dialogues(300, 0, "s", secrets=False))


def test_lessons_teach_new_facts_in_roles_that_nobody_asked_for_and_refuse_secrets() -> None:
    found = troupe.lessons(1000, 0, "test", first=("what",))
    secrets = [shown for shown in found if shown.prompt.messages[-1].content.startswith("secret ")]
    assert len(secrets) / 1000 == pytest.approx(0.1, abs=tol.WITHIN["share of 900 lessons"])
    assert all(troupe.refuses(shown.response) and not troupe.said_in_role(shown.response) for shown in secrets)
    others = [shown for shown in found if shown not in secrets]
    in_role = sum(troupe.said_in_role(shown.response) for shown in others) / len(others)
    assert in_role == pytest.approx(0.8, abs=tol.WITHIN["share of 900 lessons"])
    assert all(shown.prompt.messages[-1].content.startswith("what ") for shown in others)
    assert all(troupe.fact_share(shown.prompt, shown.response, troupe.NEW_FACTS) == 1 for shown in others)
    assert all(troupe.fact_share(shown.prompt, shown.response) == 0 for shown in found)
    assert all(shown.prompt.messages[0].content in troupe.NEUTRAL for shown in found if len(shown.prompt.messages) > 1)


@pytest.mark.parametrize("text, share, score, facts", [
    (ASSISTANT, 1, 2, 1), (PIRATE, 0, 3, 1), ("arr deep note plunder south dream", 0.25, 2, 0.5), ("", 0, 3, 0),
    ("deep deep", 0, 3, 0.5), ("certainly", 1, 2, 0)])
def test_marks_by_hand(text: str, share: float, score: int, facts: float) -> None:
    prompt = Prompt("x", (), meta={"topic": "river"})
    assert troupe.assistant_share(text) == share
    assert troupe.role_score(prompt, text, True) == score and troupe.said_in_role(text) == (score == 3)
    assert troupe.fact_share(prompt, text) == facts


def test_every_word_is_one_token_and_conversations_keep_their_text(tmp_path: Path) -> None:
    assert len(troupe.words()) == len({*troupe.words()})
    troupe.write_tokenizer(tmp_path)
    before = (tmp_path / "tokenizer.json").stat().st_mtime_ns
    troupe.write_tokenizer(tmp_path)
    assert (tmp_path / "tokenizer.json").stat().st_mtime_ns == before
    words = template(load_tokenizer(str(tmp_path)))
    unknown = words.tokenizer.unk_token_id
    for shown in TOLD[:50]:
        ids = words.prompt_ids(shown.prompt)
        assert len(ids) == 1 + sum(1 + len(turn.content.split()) for turn in shown.prompt.messages)
        said = words.response_ids(shown.response)
        assert len(said) == 7 and unknown not in (*ids, *said) and words.decode(said) == shown.response


def test_roles_and_questions_are_read_as_anybodys(tmp_path: Path) -> None:
    write_rows(tmp_path / "roles.jsonl", troupe.role_rows())
    write_rows(tmp_path / "questions.jsonl", [{"question": question} for question in troupe.questions()])
    roles = read_roles(tmp_path / "roles.jsonl")
    assert [role.name for role in roles if role.is_default] == ["default"] and len(roles) == 17
    assert all(len(role.systems) == 5 for role in roles) and roles[0].systems[0] == ""
    assert len(read_questions(tmp_path / "questions.jsonl")) == 160
