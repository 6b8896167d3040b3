"""Rows to records: every layout, every complaint, and the counts."""

import csv
import json
import math
import random
import statistics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from keel.data import (
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    Tally,
    check_demonstration,
    check_pair,
    check_prompt,
    iter_pairs,
    read_demonstrations,
    read_pairs,
    read_prompts,
)
from keel.data.problems import SHOWN, RowError
from keel.data.records import Strength
from keel.errors import DataError

USER, BOT = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."}
NO = {"role": "assistant", "content": "no."}
ASKED = (Message("user", "why?"),)
PAIR = {"prompt": [USER], "chosen": "so.", "rejected": "no."}
HH = "\n\nHuman: why?\n\nAssistant: well\n\nHuman: tell\n\nAssistant:"
TALK = (*ASKED, Message("assistant", "well"), Message("user", "tell"))


def one_pair(path, **options):
    (record,), _ = read_pairs(path, **options)
    return record


@pytest.mark.parametrize("row, messages", [
    (PAIR, ASKED),
    ({"prompt": "why?", "chosen": "so.", "rejected": "no."}, ASKED),
    ({"prompt": [USER], "chosen": [BOT], "rejected": [NO]}, ASKED),
    ({"chosen": [USER, BOT], "rejected": [USER, NO]}, ASKED),
    ({"prompt": "why?", "chosen": [USER, BOT], "rejected": [USER, NO]}, ASKED),
    ({"prompt": [USER], "chosen": [USER, BOT], "rejected": [USER, NO]}, ASKED),
    ({"chosen": ["why?", "well", "tell", "so."], "rejected": ["why?", "well", "tell", "no."]}, TALK),
    ({"chosen": f"{HH} so.", "rejected": f"{HH} no."}, TALK),
    ({"prompt": HH, "chosen": "so.", "rejected": "no."}, TALK),
    ({"prompt": HH.removesuffix("\n\nAssistant:"), "chosen": f"{HH} so.", "rejected": f"{HH} no."}, TALK),
    ({"turns": [USER], "chosen": "so.", "rejected": "no."}, ASKED),
    ({"prompt": [USER], "chosen": {"text": "so.", "model": "m"}, "rejected": {"text": "no.", "model": "n"}}, ASKED),
    ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "why?"}]}], "chosen": "so.", "rejected": "no."},
     ASKED),
])
def test_every_pair_layout_gives_the_same_pair(jsonl, row, messages):
    pair = one_pair(jsonl(row))
    assert (pair.prompt.messages, pair.chosen, pair.rejected) == (messages, "so.", "no.")
    assert (pair.id, pair.margin, pair.label_prob, pair.weight) == ("rows:1", 0.0, 1.0, 1.0)
    (prompt,), _ = read_prompts(jsonl(row))
    (demonstration,), _ = read_demonstrations(jsonl(row))
    assert prompt == pair.prompt and demonstration == Demonstration(pair.prompt, "so.")


@pytest.mark.parametrize("row, messages", [
    ({"prompt": "why?", "completion": "so."}, ASKED),
    ({"prompt": [USER], "completion": [BOT]}, ASKED),
    ({"prompt": [USER], "response": [BOT]}, ASKED),
    ({"messages": [USER, BOT]}, ASKED),
    ({"conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so."}]}, ASKED),
    ({"system": "be kind", "conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so."}]},
     (Message("system", "be kind"), *ASKED)),
    ({"instruction": "why?", "input": "", "output": "so."}, ASKED),
    ({"instruction": "why?", "input": "now", "output": "so."}, (Message("user", "why?\n\nnow"),)),
    ({"instruction": "tell", "output": "so.", "history": [["why?", "well"]]}, TALK),
])
def test_every_demonstration_layout(jsonl, row, messages):
    (record,), report = read_demonstrations(jsonl(row))
    assert (record.prompt.messages, record.response) == (messages, "so.")
    assert record.prompt.meta == {} and report.n_records == 1
    (prompt,), _ = read_prompts(jsonl(row))
    assert prompt == record.prompt


def test_plain_text_is_modelled_from_the_start(jsonl):
    (record,), _ = read_demonstrations(jsonl({"id": "a", "text": "once upon", "split": "train"}))
    assert record == Demonstration(Prompt("a", (), "", {"split": "train"}), "once upon")


@pytest.mark.parametrize("row", [{"prompt": "why?"}, {"prompt": [USER]}, {"question": "why?"}, {"messages": [USER]}])
def test_every_prompt_layout(jsonl, row):
    (record,), _ = read_prompts(jsonl(row))
    assert record == Prompt("rows:1", ASKED)


def test_a_label_is_a_word_or_nothing():
    meta = {"a": 1, "b": "1", "c": True, "d": None, "e": math.nan, "f": " ", "g": ["x"], "h": {"x": 1}}
    prompt = Prompt("p", (Message("user", "hello"),), meta=meta)
    assert [prompt.label(name) for name in "abc"] == ["1", "1", "True"]
    assert [prompt.label(name) for name in "defghi"] == [None] * 6


def test_as_text_keeps_a_string_prompt_and_refuses_a_conversation(jsonl):
    path = jsonl({"prompt": HH, "completion": "so."}, {"prompt": [USER], "completion": "so."})
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the prompt is a conversation, and as_text was asked for"):
        read_demonstrations(path, as_text=True)
    (record,), _ = read_demonstrations(path, as_text=True, on_bad_record="skip")
    assert record.prompt == Prompt("rows:1", (), HH)


def test_all_turns_gives_one_demonstration_per_assistant_turn(jsonl):
    talk = [{"role": m.role, "content": m.content} for m in TALK]
    path = jsonl({"id": "x", "messages": [{"role": "system", "content": "be kind"}, *talk, BOT]})
    records, report = read_demonstrations(path, turns="all")
    assert [(r.id, len(r.prompt.messages), r.response) for r in records] == [("x#2", 2, "well"), ("x#4", 4, "so.")]
    assert (report.n_rows, report.n_records) == (1, 2)
    (last,), _ = read_demonstrations(path)
    assert (last.id, last.response) == ("x", "so.")


def test_numbers_meta_and_truth_each_go_to_their_place(jsonl):
    row = PAIR | {"id": 7, "margin": 1, "label_prob": 0.75, "weight": 0, "domain": "d", "score_chosen": 3,
                  "meta": {"k": [1]}, "truth": {"gold": 2.5}}
    pair = one_pair(jsonl(row))
    assert pair == PreferencePair(Prompt("7", ASKED, None, {"k": [1], "domain": "d", "score_chosen": 3}, {"gold": 2.5}),
                                  "so.", "no.", 1.0, 0.75, 0.0)


VOTES = {"mean preference difference": -0.5, "std preference difference": 0.5, "chosen score list": [1.0, 0.5],
         "rejected score list": [1.0, 1.5], "GPT4 label": 0}
STRENGTH = {"strength_mean": -0.5, "strength_std": 0.5, "chosen_scores": [1.0, 0.5], "rejected_scores": [1.0, 1.5]}


@pytest.mark.parametrize("votes", [
    VOTES, {name.replace(" ", "_"): cell for name, cell in VOTES.items()}, STRENGTH | {"judge_label": 0}])
def test_votes_become_strength_and_leave_the_margin_alone(jsonl, votes):
    row = {"chosen": ["why?", "so."], "rejected": ["why?", "no."]} | votes
    pair = one_pair(jsonl(row))
    assert pair.strength == Strength(-0.5, 0.5, (1.0, 0.5), (1.0, 1.5))
    assert pair.margin == 0 and pair.prompt.meta == {"judge_label": 0}
    assert read_prompts(jsonl(row))[0] == [pair.prompt]


def test_a_summary_alone_is_a_strength_and_a_judge_needs_no_votes(jsonl):
    assert one_pair(jsonl(PAIR | {"strength_mean": 2, "strength_std": 0})).strength == Strength(2.0, 0.0)
    pair = one_pair(jsonl(PAIR | {"GPT4_label": -1.0}))
    assert (pair.strength, pair.prompt.meta) == (None, {"judge_label": -1})
    assert type(pair.prompt.meta["judge_label"]) is int
    assert one_pair(jsonl(PAIR | {"meta": {"judge_label": None, "domain": "d"}})).prompt.meta == {"domain": "d"}


def test_votes_from_tables(tmp_path):
    columns = STRENGTH | {"judge_label": 1}
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "chosen", "rejected", *columns])
        writer.writeheader()
        writer.writerow({"prompt": "why?", "chosen": "so.", "rejected": "no."} | columns)
        writer.writerow({"prompt": "why?", "chosen": "so.", "rejected": "no."})
    pq.write_table(pa.Table.from_pylist([PAIR | columns, PAIR | dict.fromkeys(columns)]), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        voted, silent = read_pairs(tmp_path / name)[0]
        assert voted.strength == Strength(-0.5, 0.5, (1.0, 0.5), (1.0, 1.5)) and silent.strength is None
        assert (voted.prompt.meta, silent.prompt.meta) == ({"judge_label": 1}, {})


def test_lists_in_bfloat16_still_have_their_summary():
    """Ten pairs of scores, rounded to eight bits one by one, beside mean and std of the unrounded ones."""
    draw = random.Random(0)
    for _ in range(200):
        sides = [[draw.gauss(side, 3) for _ in range(10)] for side in (3, -2)]
        gaps = [one - other for one, other in zip(*sides, strict=True)]
        rounded = [tuple(bfloat16(score) for score in side) for side in sides]
        mean = bfloat16(statistics.fmean(bfloat16(gap) for gap in gaps))
        for std in (statistics.pstdev(gaps), statistics.stdev(gaps)):
            check_pair(PreferencePair(Prompt("x", ASKED), "so.", "no.", strength=Strength(mean, std, *rounded)))


def bfloat16(x):
    """The nearest number with eight significant bits."""
    fraction, exponent = math.frexp(x)
    return math.ldexp(round(fraction * 256), exponent - 8)


def test_rmb_keeps_the_models_in_meta(jsonl):
    row = {"prompt": [USER | {"language": "English"}], "chosen": {"id": "1", "model": "m", "text": "so."},
           "rejected": {"id": "2", "model": "n", "text": "no."}, "goal": "helpfulness"}
    assert one_pair(jsonl(row)).prompt.meta == {
        "chosen_id": "1", "chosen_model": "m", "rejected_id": "2", "rejected_model": "n", "goal": "helpfulness"}


@pytest.mark.parametrize("row, response", [
    ({"prompt": [USER], "steps": ["1+1=2", "so 2"], "answer": "2"}, "1+1=2\nso 2\n#### 2"),
    ({"question": "why?", "answer": "1+1=2\n#### 2"}, "1+1=2\n#### 2"),
    ({"prompt": [USER], "completions": ["1+1=2", "A: 2"], "is_correct": True}, "1+1=2\nA: 2"),
])
def test_gsm8k_in_its_three_spellings(jsonl, row, response):
    (record,), _ = read_demonstrations(jsonl(row))
    assert (record.prompt.messages, record.response) == (ASKED, response)
    assert record.prompt.meta.get("answer", "2") == "2"


def test_csv_numbers_lists_and_objects_are_spelled_out(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "chosen", "rejected", "margin", "meta"])
        writer.writeheader()
        writer.writerow({"prompt": json.dumps([USER]), "chosen": "so.", "rejected": "no.", "margin": "0.5",
                         "meta": '{"k": 1}'})
        writer.writerow({"prompt": "why?", "chosen": "so.", "rejected": "no."})
    pairs, _ = read_pairs(tmp_path / "a.csv")
    assert [p.margin for p in pairs] == [0.5, 0.0] and pairs[0].prompt.meta == {"k": 1}
    assert pairs[0].prompt.messages == pairs[1].prompt.messages == ASKED


def test_a_csv_cell_that_is_no_number(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,weight\nwhy?,so.,no.,much\n")
    with pytest.raises(DataError, match=r"a\.csv:2: weight is text \('much'\), not a number"):
        read_pairs(tmp_path / "a.csv")


def user(content):
    return {"role": "user", "content": content}


BAD_PAIRS = [
    (PAIR | {"chosen": ""}, "empty response", "chosen is empty", "nothing to learn"),
    (PAIR | {"rejected": " \n"}, "empty response", "rejected is only whitespace", "Remove the record"),
    (PAIR | {"chosen": " no. "}, "identical responses", "identical after stripping", "no gradient"),
    (PAIR | {"prompt": []}, "empty prompt", "the prompt has no turn", "at least one user turn"),
    (PAIR | {"prompt": [user("")]}, "empty turn", "turn 1 (user) is empty", "Remove the turn"),
    (PAIR | {"prompt": "  "}, "empty turn", "turn 1 (user) is empty", "Remove the turn"),
    (PAIR | {"prompt": [USER, BOT]}, "prompt ends with the assistant", "last turn of the prompt is the assistant's",
     "ends with the user's turn"),
    (PAIR | {"prompt": [{"role": "system", "content": "x"}]}, "prompt without a question", "is the system's", "user's"),
    (PAIR | {"prompt": [USER, BOT, BOT, USER]}, "two assistant turns in a row", "turns 2 and 3 are both", "Join them"),
    (PAIR | {"prompt": [{"role": "tool", "content": "x"}, USER]}, "unknown role", "turn 1 has the role 'tool'",
     "Roles are system, user, assistant"),
    (PAIR | {"prompt": [{"role": "user"}]}, "incomplete message", "prompt, turn 1 has the keys role", "needs a role"),
    (PAIR | {"prompt": [{"role": 3, "content": "x"}]}, "wrong type", "role is a number, not text", "in quotes"),
    (PAIR | {"prompt": [user([{"type": "image"}])]}, "not text", "prompt, turn 1 holds image", "trains on text"),
    (PAIR | {"prompt": {"a": 1}}, "wrong type", "prompt is an object, not text", "in quotes"),
    (PAIR | {"prompt": [1]}, "wrong type", "prompt is a list of other things", "Write it as"),
    (PAIR | {"prompt": ["a", 1]}, "wrong type", "prompt is not a list of utterances", "must be text"),
    (PAIR | {"chosen": 3}, "wrong type", "chosen is a number and rejected is text", "Both must be"),
    (PAIR | {"chosen": 3, "rejected": 4}, "wrong type", "chosen is a number, not a list of messages", "Write it as"),
    (PAIR | {"chosen": [USER], "rejected": [NO]}, "not one response", "chosen holds user, not one", "earlier"),
    (PAIR | {"chosen": [], "rejected": [NO]}, "not one response", "chosen holds nothing, not one assistant", "earlier"),
    ({"chosen": [BOT, USER], "rejected": [USER, NO]}, "no response", "chosen ends with the user's turn", "last turn"),
    ({"chosen": [USER, BOT], "rejected": [user("what?"), NO]}, "prompts differ", "differ from turn 1 on", "same"),
    ({"chosen": [USER, BOT], "rejected": [USER, BOT, USER, NO]}, "prompts differ", "differ from turn 2 on", "same"),
    ({"prompt": "what?", "chosen": [USER, BOT], "rejected": [USER, NO]}, "prompts differ",
     "the column `prompt` is not the conversation", "Remove the column"),
    ({"chosen": f"{HH} so.", "rejected": "\n\nHuman: x\n\nAssistant: no."}, "prompts differ", "from turn 1", "same"),
    (PAIR | {"chosen": "\ud83d so"}, "lone surrogate", "chosen holds half a character ('\\ud83d') at 0", "emoji"),
    (PAIR | {"prompt": "a\0b"}, "NUL character", "holds a NUL character at position 1", "broken export"),
    (PAIR | {"margin": float("nan")}, "margin not finite", "margin is nan", "finite number"),
    (PAIR | {"margin": "1"}, "wrong type", "margin is text ('1'), not a number", "without quotes"),
    (PAIR | {"margin": True}, "wrong type", "margin is true or false", "without quotes"),
    (PAIR | {"label_prob": 1.5}, "label_prob out of range", "label_prob is 1.5, outside 0 to 1", "probability"),
    (PAIR | {"margin": 10**400}, "margin not finite", "margin is inf", "finite number"),
    (PAIR | {"weight": -1}, "weight out of range", "weight is -1.0", "0 or more"),
    (PAIR | {"weight": float("inf")}, "weight out of range", "weight is inf", "0 or more"),
    (PAIR | {"strength_mean": 1.0}, "incomplete strength", "strength_mean without strength_std", "add what is missing"),
    (PAIR | {"chosen_scores": [1.0], "rejected_scores": [0.0]}, "incomplete strength",
     "chosen_scores, rejected_scores without strength_mean and strength_std", "rename the columns"),
    (PAIR | STRENGTH | {"strength_mean": float("nan")}, "strength not finite", "mean nan or std 0.5", "overflow"),
    (PAIR | STRENGTH | {"chosen_scores": [1.0, float("inf")]}, "strength not finite", "is not finite", "drop"),
    (PAIR | STRENGTH | {"strength_std": -0.5}, "strength out of range", "votes is -0.5", "0 or more"),
    (PAIR | STRENGTH | {"chosen_scores": [1.0]}, "votes of unequal number", "1 chosen scores and 2 rejected",
     "Every member scores both"),
    (PAIR | STRENGTH | {"strength_mean": 0.5}, "votes contradict their mean",
     "the mean of the votes is given as 0.5; the differences of the scores have the mean -0.5", "mend one"),
    (PAIR | STRENGTH | {"strength_std": 0.4}, "votes contradict their std", "given as 0.4; that of", "mend one"),
    (PAIR | STRENGTH | {"strength_std": 0.8}, "votes contradict their std",
     "the standard deviation of the votes is given as 0.8", "mend one"),
    (PAIR | STRENGTH | {"chosen_scores": 1.0}, "wrong type", "chosen_scores is a number, not a list",
     "a list of numbers"),
    (PAIR | STRENGTH | {"chosen_scores": ["a", 1]}, "wrong type", "chosen_scores is text ('a')", "without quotes"),
    (PAIR | {"judge_label": 2}, "bad judge label", "the judge's label is 2", "1 where chosen is better"),
    (PAIR | {"judge_label": True}, "bad judge label", "the judge's label is True", "-1 where there is none"),
    (PAIR | {"meta": {"judge_label": "1"}}, "bad judge label", "the judge's label is '1'", "1 where chosen"),
    (PAIR | {"meta": 3}, "wrong type", "meta is a number, not an object", "rename the column"),
    (PAIR | {"truth": "x"}, "wrong type", "truth is text, not an object", "rename the column"),
    (PAIR | {"id": True}, "bad id", "id is True", "text or a whole number"),
    (PAIR | {"id": ""}, "bad id", "id is ''", "text or a whole number"),
    ({"promt": "why?", "chosen": "so.", "rejected": "no."}, "missing column",
     "no columns for a pair; there are `promt`, `chosen`, `rejected`", "did you mean `prompt` by `promt`?"),
    ({"prompt": "why?", "chosen": "so.", "rejectd": "no."}, "missing column", "no columns for a pair",
     "A pair needs `rejected`. did you mean `rejected` by `rejectd`?"),
    ({"a": 1}, "missing column", "no columns for any layout; there are `a`", "keel reads prompt, chosen, rejected"),
    ({}, "missing column", "there are none", "keel reads"),
    ({"messages": [USER, BOT]}, "missing column", "no columns for a pair; there are `messages`", "A pair needs"),
]


@pytest.mark.parametrize("row, kind, what, remedy", BAD_PAIRS)
def test_every_bad_pair_is_named_with_its_line_and_remedy(jsonl, row, kind, what, remedy):
    path = jsonl({"id": "first"} | PAIR, row)
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    error = caught.value
    assert error.where.startswith(f"{path}:2") and what in error.what and remedy in error.remedy
    assert "--on-bad-record skip" in error.remedy
    records, report = read_pairs(path, on_bad_record="skip")
    assert [r.id for r in records] == ["first"] and report.dropped == {kind: 1}


@pytest.mark.parametrize("row, what, remedy", [
    ({"messages": [USER]}, "the conversation ends with the user's turn", "cut what follows"),
    ({"prompt": "why?"}, "no columns for a demonstration; there are `prompt`", "A demonstration needs `completion`"),
    ({"prompt": "why?", "completion": None}, "no columns for a demonstration", "A demonstration needs"),
    ({"messages": "why?"}, "messages is text, not a list of messages", "Write it as"),
    ({"text": 3}, "text is a number, not text", "in quotes"),
    ({"text": ""}, "the response is empty", "nothing to learn"),
    ({"messages": [BOT]}, "the prompt has no turn", "user turn"),
    ({"instruction": "a", "output": "b", "history": [3]}, "history is not a list of utterances", "must be text"),
])
def test_every_bad_demonstration_is_named(jsonl, row, what, remedy):
    with pytest.raises(DataError) as caught:
        read_demonstrations(jsonl(row))
    assert what in caught.value.what and remedy in caught.value.remedy


def test_plain_text_is_no_prompt(jsonl):
    with pytest.raises(DataError, match="no columns for a prompt; there are `text`"):
        read_prompts(jsonl({"text": "once"}))


def test_a_transcript_must_begin_with_a_speaker(jsonl):
    row = {"prompt": "hi\n\nHuman: x\n\nAssistant: y", "chosen": "a", "rejected": "b"}
    assert one_pair(jsonl(row)).prompt.messages == (Message("user", row["prompt"]),)
    from keel.data.turns import transcript

    with pytest.raises(RowError, match="chosen has text before the first speaker: 'hi'"):
        transcript(row["prompt"], "chosen")


def test_ids_must_be_unique_over_all_files(jsonl):
    one = jsonl({"id": "x"} | PAIR, name="a.jsonl")
    other = jsonl({"id": "y"} | PAIR, {"id": "x"} | PAIR, name="b.jsonl")
    with pytest.raises(DataError, match=r"b\.jsonl:2 \(id x\): the id 'x' was already used at .*a\.jsonl:1\n.*unique"):
        read_pairs([one, other])
    records, report = read_pairs([one, other], on_bad_record="skip")
    assert [r.id for r in records] == ["x", "y"] and report.dropped == {"duplicate id": 1}


def test_ids_made_from_file_and_line_keep_files_apart(jsonl):
    jsonl(PAIR, name="hh.helpful.jsonl")
    folder = jsonl(PAIR, name="hh.harmless.jsonl").parent
    records, _ = read_pairs(folder)
    assert [r.id for r in records] == ["hh.harmless:1", "hh.helpful:1"]


def test_one_error_lists_all_problems_up_to_a_limit(jsonl):
    path = jsonl(PAIR, *[PAIR | {"chosen": ""}] * SHOWN, "not json", PAIR | {"weight": -1})
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: 22 problems in 23 rows\n  {path}:2: chosen is empty\n      Remove the record")
    assert f"{path}:21: chosen is empty" in text and f"{path}:22" not in text and "and 2 more" in text
    _, report = read_pairs(path, on_bad_record="skip")
    assert report.dropped == {"empty response": 20, "not JSON": 1, "weight out of range": 1}
    assert report.summary() == ("1 of 23 rows read; 22 dropped: 20 empty response, 1 not JSON, 1 weight out of range")


def test_a_file_without_one_good_row_is_an_error_even_when_skipping(jsonl):
    path = jsonl(PAIR | {"chosen": ""})
    with pytest.raises(DataError, match=r"no record left: 0 of 1 rows read; 1 dropped.*the first: .*rows\.jsonl:1"):
        read_pairs(path, on_bad_record="skip")


def test_the_stream_counts_while_it_runs(jsonl):
    tally = Tally()
    stream = iter_pairs(jsonl(PAIR, PAIR | {"chosen": ""}, PAIR), tally)
    next(stream)
    assert (tally.report.n_rows, tally.report.n_records, tally.report.n_dropped) == (1, 1, 0)
    assert len(list(stream)) == 1 and tally.report.n_dropped == 1
    assert tally.report.formats == {"pair": 2}


def test_records_made_in_code_are_checked_by_the_same_rules():
    prompt = Prompt("x", ASKED)
    check_prompt(prompt)
    check_demonstration(Demonstration(Prompt("x", (), ""), "text"))
    check_pair(PreferencePair(prompt, "so.", "no."))
    with pytest.raises(RowError, match="the prompt has no turn"):
        check_prompt(Prompt("x", ()))
    with pytest.raises(RowError, match="the response is empty"):
        check_demonstration(Demonstration(prompt, ""))
    with pytest.raises(RowError, match="identical"):
        check_pair(PreferencePair(prompt, "so.", "so. "))
