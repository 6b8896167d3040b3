"""Whole conversations from files: whose turn it is, what they are about, and what is cut out on request."""

import pytest

from keel.data.load import read_dialogues
from keel.data.records import Message
from keel.errors import DataError

USER, BOT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}


def published(*turns, **more):
    """A row as in the published transcripts; `turns` counts nothing that can be relied on."""
    return {"source_path": "persona_drift/coding.json.json", "group": "persona_drift", "scenario": "coding",
            "variant": "capped", "transcript": {"model": "m", "turns": 99, "conversation": list(turns)}} | more


@pytest.mark.parametrize(("row", "layout"), [
    ({"messages": [USER, BOT]}, "messages"),
    ({"conversation": [USER, BOT]}, "conversation"),
    ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}, "conversations"),
    ({"prompt": "hi", "response": "yes"}, "prompt and response"),
    ({"prompt": [USER], "completion": [BOT]}, "prompt and completion"),
    (published(USER, BOT), "transcript"),
])
def test_every_spelling_of_a_conversation(jsonl, row, layout):
    found, report = read_dialogues(jsonl(row))
    assert found[0].messages == (Message("user", "hi"), Message("assistant", "yes"))
    assert dict(report.formats) == {layout: 1}


def test_what_a_published_row_says_of_itself(jsonl):
    (found,), _ = read_dialogues(jsonl(published(USER, BOT)))
    assert (found.id, found.domain, found.label) == ("persona_drift/coding", "coding", "capped")
    assert found.meta["group"] == "persona_drift" and found.meta["model"] == "m" and "transcript" not in found.meta


def test_domain_and_label_are_columns(jsonl):
    rows = [{"id": "a", "messages": [USER, BOT], "topic": "tea", "arm": 3},
            {"id": "b", "conversation": [USER, BOT], "topic": " ", "arm": None}]
    found, _ = read_dialogues(jsonl(*rows), domain="topic", label="arm")
    assert [(one.id, one.domain, one.label) for one in found] == [("a", "tea", "3"), ("b", None, None)]


def test_turns_may_repeat_and_be_empty(jsonl):
    """The order of roles is the file's; nothing alternates by itself."""
    turns = [USER, USER, {"role": "assistant", "content": ""}, USER, BOT, BOT]
    (found,), _ = read_dialogues(jsonl({"messages": turns}))
    assert [turn.role for turn in found.messages] == ["user", "user", "assistant", "user", "assistant", "assistant"]
    assert found.messages[2].content == ""


def test_tagged_parts_are_cut_out_on_request_and_counted(jsonl):
    said = {"role": "user", "content": "hi\n\n<END>\n<STATE>\nso <b>\n</STATE>"}
    inner = {"role": "user", "content": "one <STATE>x</STATE> two <END> three"}
    path = jsonl({"messages": [said, BOT, inner, BOT]})
    (whole,), report = read_dialogues(path)
    assert whole.messages[0].content == said["content"] and not report.left_out
    (found,), report = read_dialogues(path, strip=["STATE", "END"])
    assert found.messages[0].content == "hi" and found.messages[2].content == "one  two  three"
    assert dict(report.left_out) == {"STATE blocks": 2, "END marks": 2}


@pytest.mark.parametrize(("row", "words"), [
    ({"messages": [USER, {"role": "chorus", "content": "so"}, BOT]}, "message 2 of the conversation is by 'chorus'"),
    ({"messages": [USER]}, "the assistant says nothing in this conversation"),
    ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "the assistant says nothing in this conversation"),
    ({"prompt": "hi", "chosen": "yes", "rejected": "no"}, "no columns for a conversation"),
    ({"text": "hi"}, "no columns for a conversation"),
])
def test_rows_that_hold_no_conversation(jsonl, row, words):
    with pytest.raises(DataError, match=words):
        read_dialogues(jsonl(row))
    good, report = read_dialogues(jsonl(row, {"messages": [USER, BOT]}), on_bad_record="skip")
    assert len(good) == 1 and report.n_dropped == 1


def test_ids_name_one_conversation_each(jsonl):
    with pytest.raises(DataError, match="already used"):
        read_dialogues(jsonl(published(USER, BOT), published(USER, BOT)))


def test_the_published_transcripts(shared):
    """Pairs of a case study share their user messages, once the simulated user's own notes are cut out."""
    path = shared / "data" / "assistant_axis" / "transcripts.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    found, report = read_dialogues(path, strip=["INTERNAL_STATE", "END_CONVERSATION"])
    assert len(found) == 16 and dict(report.left_out) == {"INTERNAL_STATE blocks": 23, "END_CONVERSATION marks": 6}
    asked = {one.id: [turn.content for turn in one.messages if turn.role == "user"] for one in found}
    delusion = [asked[f"case_studies/qwen-3-32b/delusion_{arm}"] for arm in ("capped", "unsteered")]
    assert delusion[0] == delusion[1] and len(delusion[0]) == 23
    jailbreak = [asked[f"case_studies/qwen-3-32b/jailbreak_{arm}"] for arm in ("capped", "unsteered")]
    assert sum(one != other for one, other in zip(*jailbreak, strict=True)) == 1
