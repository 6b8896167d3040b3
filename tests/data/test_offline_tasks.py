"""The data of A-LoL's four tasks: rows in the layout of each published set, and the converters that split them."""

import json

import pytest

from keel.data import Message, RowError, read_demonstrations, read_pairs, read_prompts, read_rankings
from keel.data.load import read_responses
from keel.data.sources import comet_split, reddit_split, wow_turns
from keel.data.sources.comet_split import CometConfig
from keel.data.sources.reddit_split import RedditConfig
from keel.data.sources.wow import responses_of_dialogue
from keel.data.sources.wow_turns import WizardConfig
from keel.errors import DataError

ASKED = ["<|prompter|>hi", "<|assistant|>there", "<|prompter|>why", "<|assistant|>"]
PRO = {"prefix": [ASKED, ASKED], "suffix": ["so", "no:"], "reward": [0.5, -1.25], "sft_index": 0,
       "meta": {"path": "../../data/raw_data/hhrlhf/harmless-base/dev.jsonl", "line_num": 7, "task": "dialogue"}}
EOT = "<|endoftext|>"
WOW = {"id": 0, "prompt_or_input_text": f"Knowledge: Cats sleep.{EOT}hi{EOT}there{EOT}why{EOT}",
       "references": f"so{EOT}",
       "meta_data": {"knowledge": "Cats sleep.", "history": f"hi{EOT}there{EOT}why"},
       "reward_components": {"fluency": 0.5, "faithdial": 0.25, "depth": 0.125, "tfidf": 1.0, "final_reward": 1.875}}
FAITHDIAL = {"dialog_idx": 0, "response": "so", "original_response": "no", "history": ["hi", "there", "why"],
             "knowledge": "Cats sleep.", "BEGIN": ["Hallucination"], "VRM": ["Disclosure"]}
COMMENT = {"id": "c1", "parent_id": "t1_p", "subreddit_id": "s", "link_id": "l", "text": "so", "score": 70, "ups": 70,
           "author": "a", "controversiality": 0, "parent_link_id": "l", "parent_text": "why", "parent_score": 3}
ATOMIC = {"head": "PersonX naps ", "relation": "xWant", "tail": "to sleep", "split": "train", "rec_0.5": True,
          "p_valid_model": 0.75}
TURNS = (Message("user", "hi"), Message("assistant", "there"), Message("user", "why"))
GROUNDED = (Message("system", "Knowledge: Cats sleep."), *TURNS)


def one_response(path, **options):
    (found,), report = read_responses(path, **options)
    return found, report


# --- the helpful and harmless assistant ------------------------------------------------------------------------------


def test_pro_rows_are_pairs_without_the_open_tag(jsonl):
    (pair,), report = read_pairs(jsonl(PRO))
    assert (pair.prompt.messages, pair.chosen, pair.rejected) == (TURNS, "so", "no:")
    assert dict(report.formats) == {"PRO": 1}
    assert (pair.prompt.meta["subset"], pair.prompt.meta["line_num"]) == ("harmless-base", 7)


def test_pro_rewards_belong_to_the_responses_in_order(jsonl):
    found, _ = read_responses(jsonl(PRO))
    assert [(one.id, one.response, one.grades) for one in found] == [
        ("rows:1/chosen", "so", {"reward": 0.5}), ("rows:1/rejected", "no:", {"reward": -1.25})]


def test_pro_keeps_the_human_order_where_the_reward_disagrees(jsonl):
    found, _ = read_responses(jsonl(PRO | {"reward": [-2.0, 3.0]}), which="chosen")
    assert [(one.response, one.grades) for one in found] == [("so", {"reward": -2.0})]


def test_pro_rows_of_several_responses_are_ranked_by_reward(jsonl):
    path = jsonl(PRO | {"prefix": [ASKED] * 3, "suffix": ["a", "b", "c"], "reward": [0.5, 2.0, -1.0]})
    (ranking,), _ = read_rankings(path)
    assert ranking.responses == ("b", "a", "c")
    found, _ = read_responses(path)
    assert [(one.id, one.response, one.grades["reward"]) for one in found] == [
        ("rows:1/1", "b", 2.0), ("rows:1/2", "a", 0.5), ("rows:1/3", "c", -1.0)]


def test_pro_rows_without_rewards_keep_the_order_of_the_file(jsonl):
    two = {name: cell for name, cell in PRO.items() if name not in ("reward", "meta")}
    (pair,), _ = read_pairs(jsonl(two | {"prefix": ASKED}))
    assert (pair.prompt.messages, pair.chosen, "rewards" in pair.prompt.meta) == (TURNS, "so", False)
    assert [one.grades for one in read_responses(jsonl(two))[0]] == [{}, {}]
    (ranking,), _ = read_rankings(jsonl(two | {"suffix": ["b", "a", "c"]}))
    assert ranking.responses == ("b", "a", "c")


@pytest.mark.parametrize("fault, message", [
    ({"reward": [1.0]}, "suffix has 2 responses and reward 1"),
    ({"reward": 1.0}, "suffix has 2 responses and reward a number"),
    ({"prefix": [ASKED, ASKED[2:]]}, "the conversations of `prefix` differ from each other"),
    ({"prefix": [["hi", "<|assistant|>"]] * 2}, "turn 1 of `prefix` begins with no speaker's tag"),
    ({"prefix": [["<|prompter|>hi", 3]] * 2}, "turn 2 of `prefix` begins with no speaker's tag"),
    ({"prefix": []}, "the prompt has no turn"),
    ({"suffix": ["so", ""]}, "rejected is empty"),
    ({"suffix": ["so", None]}, "chosen is text and rejected is null"),
])
def test_bad_pro_rows_say_what_is_wrong(jsonl, fault, message):
    with pytest.raises(DataError, match=message):
        read_pairs(jsonl(PRO | fault))


def test_the_normalised_files_give_the_rewards_they_hold(shared):
    path = shared / "data/hh_rlhf/hh_dev.sampled_dev.jsonl.gz"
    found, _ = read_responses(path, on_bad_record="skip")
    by_id = {one.id: one for one in found}
    first = "hh_dev/helpful-online/00874"
    assert by_id[f"{first}/chosen"].grades == {"reward": -0.011320973746478558}
    assert by_id[f"{first}/rejected"].grades == {"reward": -0.11739146709442139}
    assert all(set(one.grades) == {"reward"} for one in found)


def test_the_normalised_files_and_pros_own_layout_read_alike(shared, tmp_path):
    own = shared / "data/hh_rlhf/hh_dev.sampled_dev.jsonl.gz"
    want, _ = read_responses(own, on_bad_record="skip")
    tag = {"user": "<|prompter|>", "assistant": "<|assistant|>"}
    path = tmp_path / "pro.json"
    rows = []
    for pair in read_pairs(own, on_bad_record="skip")[0]:
        turns = [tag[turn.role] + turn.content for turn in pair.prompt.messages] + ["<|assistant|>"]
        kept = pair.prompt.meta["rewards"]
        rows.append({"id": pair.id, "prefix": [turns, turns], "suffix": [pair.chosen, pair.rejected],
                     "reward": [kept["chosen"], kept["rejected"]]})
    path.write_text("\n".join(map(json.dumps, rows)))
    by_id = {one.id: one for one in want}
    found, _ = read_responses(path)
    assert len(found) == 2 * len(rows)
    for one in found:
        other = by_id[one.id]
        assert (one.prompt.messages, one.response, one.grades) == (other.prompt.messages, other.response, other.grades)


@pytest.mark.parametrize("good, fault, kind", [
    (PRO, {"prefix": [["hi"]] * 2}, "untagged turn"),
    (WOW, {"references": []}, "not one reference"),
])
def test_bad_rows_are_counted_by_what_is_wrong(jsonl, good, fault, kind):
    _, report = read_responses(jsonl(good, good | fault), on_bad_record="skip")
    assert report.dropped == {kind: 1}


# --- files of the generation tasks -----------------------------------------------------------------------------------


def test_a_knowledge_grounded_row_becomes_turns_and_rewards(jsonl):
    one, report = one_response(jsonl(WOW))
    assert (one.prompt.messages, one.response) == (GROUNDED, "so")
    assert one.grades == WOW["reward_components"] and dict(report.formats) == {"generation task": 1}
    assert (one.id, one.prompt.meta["source_id"], one.prompt.meta["knowledge"]) == ("rows:1", 0, "Cats sleep.")


def test_numbers_as_ids_may_repeat_and_texts_may_not(jsonl):
    assert [one.id for one in read_responses(jsonl(WOW, WOW))[0]] == ["rows:1", "rows:2"]
    with pytest.raises(DataError, match="the id 'c' was already used"):
        read_responses(jsonl(WOW | {"id": "c"}, WOW | {"id": "c"}))


def test_a_reddit_row_of_the_generation_tasks_is_one_turn(jsonl):
    one, _ = one_response(jsonl({"id": "c1", "prompt_or_input_text": f"why{EOT}", "references": [f"so{EOT}"],
                                 "meta_data": {"score": 70, "parent_score": 3}}))
    assert (one.id, one.prompt.messages, one.response, one.grades) == ("c1", (Message("user", "why"),), "so", {})
    assert one.prompt.meta["score"] == 70


def test_a_comet_row_of_the_generation_tasks_stays_text(jsonl):
    text = "<head> PersonX naps </head> <relation> xWant </relation> [GEN] "
    row = {"id": 3, "prompt_or_input_text": text, "references": "to sleep", "meta_data": {"original_dict": ATOMIC},
           "reward_components": {"p_valid_model": 0.75, "final_reward": 0.75}}
    one, _ = one_response(jsonl(row), as_text=True)
    assert (one.prompt.text, one.response, one.grades["p_valid_model"]) == (text, "to sleep", 0.75)


@pytest.mark.parametrize("text, turns", [
    (f"Knowledge: a{EOT}", [("user", "Knowledge: a")]),
    (f"a{EOT}b", [("assistant", "a"), ("user", "b")]),
    (f"Knowledge: a{EOT}b{EOT}c{EOT}", [("system", "Knowledge: a"), ("assistant", "b"), ("user", "c")]),
])
def test_the_last_turn_before_a_response_is_the_users(jsonl, text, turns):
    (prompt,), _ = read_prompts(jsonl(WOW | {"prompt_or_input_text": text}))
    assert [(turn.role, turn.content) for turn in prompt.messages] == turns


@pytest.mark.parametrize("fault, message", [
    ({"references": ["a", "b"]}, "references is a list of 2, not one text"),
    ({"references": {"a": 1}}, "references is an object, not one text"),
    ({"references": EOT}, "the response is empty"),
    ({"prompt_or_input_text": 3}, "prompt is a number, not text"),
    ({"prompt_or_input_text": f"a{EOT}{EOT}b{EOT}"}, r"turn 2 \(assistant\) is empty"),
    ({"reward_components": {"fluency": "good"}}, "fluency is text"),
    ({"meta_data": [1]}, "meta is a list, not an object"),
])
def test_bad_rows_of_the_generation_tasks_say_what_is_wrong(jsonl, fault, message):
    with pytest.raises(DataError, match=message):
        read_responses(jsonl(WOW | fault))


# --- Wizard of Wikipedia and FaithDial -------------------------------------------------------------------------------


def test_a_row_of_faithdial_reads_as_the_same_row_of_the_generation_tasks(jsonl):
    one, report = one_response(jsonl(FAITHDIAL))
    other, _ = one_response(jsonl(WOW, name="other.jsonl"))
    assert (one.prompt.messages, one.response) == (other.prompt.messages, other.response)
    assert one.prompt.meta["knowledge"] == other.prompt.meta["knowledge"] and dict(report.formats) == {"FaithDial": 1}


def test_a_row_of_faithdial_without_text_as_knowledge_is_refused(jsonl):
    with pytest.raises(DataError, match="knowledge is a list, not one text"):
        read_responses(jsonl(FAITHDIAL | {"knowledge": ["a", "b"]}))
    with pytest.raises(DataError, match="the last turn of the prompt is the system's"):
        read_responses(jsonl(FAITHDIAL | {"history": []}))


def wizard(text, sentence):
    return {"speaker": "0_Wizard", "text": text, "checked_sentence": sentence, "retrieved_topics": []}


def apprentice(text):
    return {"speaker": "1_Apprentice", "text": text}


DIALOGUE = {"chosen_topic": "Cat", "persona": "i like cats", "dialog": [
    wizard("hi", {"chosen_Cat_0": "Cats are small."}), apprentice("there"),
    wizard("yes", {"no_passages_used": "no_passages_used"}), apprentice("why"), wizard("no", {}), apprentice("so"),
    wizard("why ", {"chosen_Cat_1": "Cats sleep."})]}


def test_every_grounded_response_of_a_dialogue_becomes_a_record(tmp_path, capsys):
    (tmp_path / "train.json").write_text(json.dumps([DIALOGUE, DIALOGUE]))
    report = wow_turns.run(WizardConfig(path=str(tmp_path / "train.json"), output=str(tmp_path / "wow_train.jsonl")))
    assert (report.n_rows, report.n_records) == (2, 2)
    assert "2 responses of 2 dialogues; 6 turns without knowledge or history left out" in capsys.readouterr().out
    first, second = read_responses(tmp_path / "wow_train.jsonl")[0]
    assert [one.id for one in (first, second)] == ["train:1#1", "train:2#1"]
    assert first.response == "why" and first.prompt.meta == {"knowledge": "Cats sleep.", "topic": "Cat"}
    # Turns that are not learned from stay in the history of later ones.
    assert [(turn.role, turn.content) for turn in first.prompt.messages] == [
        ("system", "Knowledge: Cats sleep."), ("assistant", "hi"), ("user", "there"), ("assistant", "yes"),
        ("user", "why"), ("assistant", "no"), ("user", "so")]


def test_dialogues_of_faithdial_give_the_rows_of_its_loader(tmp_path):
    turns = [{name: FAITHDIAL[name] for name in ("history", "knowledge", "response", "VRM")} | {"speaker": "Wizard"},
             {"history": [], "knowledge": "a", "response": "b", "speaker": "Wizard"}]
    (tmp_path / "valid.json").write_text(json.dumps([{"dialog_idx": 4, "utterances": turns}]))
    wow_turns.run(WizardConfig(path=str(tmp_path / "valid.json"), output=str(tmp_path / "faithdial.jsonl")))
    one, _ = one_response(tmp_path / "faithdial.jsonl")
    assert (one.prompt.messages, one.response, one.prompt.meta["VRM"]) == (GROUNDED, "so", ["Disclosure"])


@pytest.mark.parametrize("dialogue, kind, message", [
    ({"turns": []}, "no dialogue", "there is no list of turns; there are turns"),
    ({"dialog": "hi"}, "no dialogue", "there is no list of turns; there are dialog"),
    ({"dialog": [{"speaker": "0_Wizard"}]}, "incomplete turn", "a turn has the keys speaker"),
])
def test_what_is_no_dialogue_is_refused(dialogue, kind, message, tmp_path):
    with pytest.raises(RowError, match=message) as caught:
        list(responses_of_dialogue(dialogue))
    assert caught.value.kind == kind
    (tmp_path / "bad.json").write_text(json.dumps([dialogue]))
    with pytest.raises(DataError, match=message):
        wow_turns.run(WizardConfig(path=str(tmp_path / "bad.json"), output=str(tmp_path / "out.jsonl")))
    assert not (tmp_path / "out.jsonl").exists()


def test_dialogues_of_which_nothing_is_left_are_an_error(tmp_path):
    (tmp_path / "empty.json").write_text(json.dumps([{"dialog": [apprentice("hi")]}]))
    with pytest.raises(DataError, match="no response with knowledge and history in 1 dialogues"):
        wow_turns.run(WizardConfig(path=str(tmp_path / "empty.json"), output=str(tmp_path / "out.jsonl")))
    (tmp_path / "broken.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="not JSON"):
        wow_turns.run(WizardConfig(path=str(tmp_path / "broken.jsonl"), output=str(tmp_path / "out.jsonl")))


# --- Reddit ----------------------------------------------------------------------------------------------------------


def test_a_scored_comment_answers_its_parent(jsonl):
    one, report = one_response(jsonl(COMMENT))
    assert (one.id, one.prompt.messages, one.response) == ("c1", (Message("user", "why"),), "so")
    assert (one.grades, one.prompt.meta["score"]) == ({}, 70) and dict(report.formats) == {"Reddit comments": 1}


@pytest.mark.parametrize("name", ["text", "parent_text"])
def test_a_deleted_comment_is_a_counted_problem(jsonl, name):
    found, report = read_responses(jsonl(COMMENT, COMMENT | {"id": "c2", name: None}), on_bad_record="skip")
    assert len(found) == 1 and report.dropped == {"deleted comment": 1}
    with pytest.raises(DataError, match=f"{name} is empty"):
        read_responses(jsonl(COMMENT | {name: None}))


def csv_of(path, rows):
    names = list(COMMENT)
    lines = [",".join(names)] + [",".join(json.dumps(str(row[name])) if row[name] != "" else "" for name in names)
                                 for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def comments(tmp_path):
    def made(sign, n):
        return [COMMENT | {"id": f"{sign}{i}", "text": f"reply {sign} {i}", "parent_text": f"parent {sign} {i}",
                           "score": i + 1 if sign == "pos" else -i - 1} for i in range(n)]

    up, down = made("pos", 40), made("neg", 40)
    up[3]["text"] = "word " * 101
    up[4]["parent_text"] = "see  https://a.b/c?d=e (http://x.y/z)"
    up[5]["text"] = ""
    return csv_of(tmp_path / "up.csv", up), csv_of(tmp_path / "down.csv", down)


def split_reddit(comments, output, **options):
    cfg = RedditConfig(positive=comments[0], negative=comments[1], output=str(output), held_out=5, **options)
    written = reddit_split.run(cfg)
    return written, {name: read_demonstrations(output / f"{name}.jsonl")[0] for name in written}


def test_reddit_is_split_by_sign_with_shared_held_out_files(comments, tmp_path, capsys):
    written, parts = split_reddit(comments, tmp_path / "out")
    assert written == {"test": 10, "validation": 10, "train_positive": 28, "train_negative": 30}
    assert "left out: 1 of the files deleted or unreadable, 1 too long, 0 to a parent held out" in (
        capsys.readouterr().out)
    ids = [one.id for records in parts.values() for one in records]
    assert len(set(ids)) == len(ids) == 78
    assert [one.prompt.meta["sign"] for one in parts["test"]] == ["positive"] * 5 + ["negative"] * 5
    assert {one.prompt.meta["sign"] for one in parts["train_negative"]} == {"negative"}


def test_addresses_and_spaces_of_comments_are_cleaned(comments, tmp_path):
    _, parts = split_reddit(comments, tmp_path / "out")
    (found,) = [one for records in parts.values() for one in records if one.id == "pos4"]
    assert found.prompt.messages[0].content == "see <URL> (<URL>)"


def test_the_seed_decides_which_comments_are_drawn(comments, tmp_path):
    first, again, other = (split_reddit(comments, tmp_path / name, sampled=20, seed=seed)[1]
                           for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first == again and first["test"] != other["test"]
    assert sum(map(len, first.values())) <= 40


def test_a_parent_of_the_test_is_in_no_training_file(tmp_path):
    rows = [COMMENT | {"id": f"i{i}", "text": f"reply {i}", "parent_text": f"parent {i % 4}"} for i in range(24)]
    down = [row | {"id": f"n{row['id']}"} for row in rows]
    paths = csv_of(tmp_path / "up.csv", rows), csv_of(tmp_path / "down.csv", down)
    written = reddit_split.run(RedditConfig(positive=paths[0], negative=paths[1], output=str(tmp_path), held_out=1))
    asked = {name: {one.prompt.messages[0].content for one in read_demonstrations(tmp_path / f"{name}.jsonl")[0]}
             for name, n in written.items() if n}
    assert not asked["test"] & asked["train_positive"] and not asked["test"] & asked["train_negative"]
    assert not asked.get("validation", set()) & asked["train_positive"]


def test_long_comments_are_left_out_by_their_tokens(comments, tmp_path, words):
    words.save_pretrained(tmp_path / "words")
    # "parent pos 7" and "reply pos 7" are three tokens each, and each takes one more for its end.
    with pytest.raises(DataError, match="0 comments are left, of which held_out = 5"):
        split_reddit(comments, tmp_path / "short", tokenizer=str(tmp_path / "words"), longest_tokens=7)
    written, _ = split_reddit(comments, tmp_path / "long", tokenizer=str(tmp_path / "words"), longest_tokens=8)
    assert written["train_negative"] == 30


def test_a_file_without_comments_is_refused(tmp_path, jsonl, comments):
    path = str(jsonl({"a": 1}))
    with pytest.raises(DataError, match="no usable comment: 0 of 1 rows read"):
        reddit_split.run(RedditConfig(positive=path, negative=comments[1], output=str(tmp_path / "out")))


# --- COMET -----------------------------------------------------------------------------------------------------------


def test_a_row_of_atomic_is_spelled_as_comet_reads_it(jsonl):
    one, report = one_response(jsonl(ATOMIC), as_text=True)
    assert one.prompt.text == "<head> PersonX naps </head> <relation> xWant </relation> [GEN] "
    assert (one.response, one.grades) == ("to sleep", {"p_valid_model": 0.75}) and dict(report.formats) == {"ATOMIC": 1}
    assert (one.prompt.meta["head"], one.prompt.meta["relation"]) == ("PersonX naps ", "xWant")


def test_a_row_of_atomic_2020_has_no_reward(jsonl):
    row = {name: ATOMIC[name] for name in ("head", "relation", "tail")}
    assert one_response(jsonl(row), as_text=True)[0].grades == {}
    with pytest.raises(DataError, match="head is a number, not text"):
        read_responses(jsonl(row | {"head": 3}), as_text=True)
    with pytest.raises(DataError, match="p_valid_model is text"):
        read_responses(jsonl(row | {"p_valid_model": "likely"}), as_text=True)


def atomic(tmp_path, tests, *more):
    rows = [ATOMIC | {"tail": f"tail {i}", "split": part} for part, n in (("train", 6), ("val", 5), ("test", 2))
            for i in range(n)]
    (tmp_path / "ATOMIC10X.jsonl").write_text("\n".join(map(json.dumps, [*rows, *more])))
    (tmp_path / "test.tsv").write_text(tests)
    return {"path": str(tmp_path / "ATOMIC10X.jsonl"), "test": str(tmp_path / "test.tsv")}


TESTS = ("head\trelation\ttail\tp_valid_model\nPersonX eats\txNeed\tbread\t0.25\nPersonX eats\txNeed\ta plate\t0.5\n"
         "PersonX eats\tObjectUse\ta fork\t0.9\nPersonX runs\txAttr\tfast\t\nPersonX runs\txAttr\tslow\t\n")


def test_comet_is_split_by_its_own_column(tmp_path, capsys):
    output = tmp_path / "out"
    written = comet_split.run(CometConfig(**atomic(tmp_path, TESTS), output=str(output), validation=3))
    assert written == {"train": 6, "test": 2, "validation": 3}
    assert "unused: 2 of the test part of ATOMIC-10x" in capsys.readouterr().out
    train, _ = read_responses(output / "train.jsonl", as_text=True)
    assert [one.response for one in train] == [f"tail {i}" for i in range(6)]
    assert train[0].grades == {"p_valid_model": 0.75} and train[0].prompt.text.endswith(" [GEN] ")


def test_the_test_of_comet_has_the_best_tail_of_each_head_and_relation(tmp_path):
    output = tmp_path / "out"
    comet_split.run(CometConfig(**atomic(tmp_path, TESTS), output=str(output)))
    found, _ = read_responses(output / "test.jsonl", as_text=True)
    assert [(one.prompt.meta["head"], one.response) for one in found] == [
        ("PersonX eats", "a plate"), ("PersonX runs", "fast")]


def test_the_seed_decides_which_inferences_validate(tmp_path):
    paths = atomic(tmp_path, TESTS, *(ATOMIC | {"tail": f"more {i}", "split": "val"} for i in range(20)))
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        comet_split.run(CometConfig(**paths, output=str(tmp_path / name), validation=4, seed=seed))
        drawn.append([one.response for one in read_demonstrations(tmp_path / name / "validation.jsonl")[0]])
    assert drawn[0] == drawn[1] != drawn[2]


def test_comet_without_rows_to_learn_from_is_refused(tmp_path):
    paths = atomic(tmp_path, TESTS)
    with pytest.raises(DataError, match="no rows to learn from: the column `split` has"):
        comet_split.run(CometConfig(path=paths["test"], test=paths["test"], output=str(tmp_path / "out")))
    paths = atomic(tmp_path, "head\trelation\ttail\nPersonX eats\tObjectUse\ta fork\n")
    with pytest.raises(DataError, match="no row of the seven relations of ATOMIC-10x"):
        comet_split.run(CometConfig(**paths, output=str(tmp_path / "out")))


def test_bad_rows_of_atomic_stop_the_split_or_are_left_out(tmp_path):
    paths = atomic(tmp_path, TESTS, {"head": "a", "relation": "xWant", "split": "train"})
    with pytest.raises(DataError, match="no columns for any layout"):
        comet_split.run(CometConfig(**paths, output=str(tmp_path / "out")))
    written = comet_split.run(CometConfig(**paths, output=str(tmp_path / "out"), on_bad_record="skip"))
    assert written["train"] == 6
