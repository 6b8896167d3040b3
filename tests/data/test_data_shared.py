"""The real data sets and tokenizers: counts as their READMEs state them, and the same tokens everywhere."""

import json

import pytest

from keel.data import (
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    Tally,
    collate,
    iter_demonstrations,
    read_demonstrations,
    read_pairs,
    read_prompts,
    render_demonstrations,
    render_pairs,
    render_prompts,
    template,
)
from keel.data.chat import tokenizer_from
from keel.data.readers import read_rows

MODELS = ["stories260K", "storychat-4M", "tinystories-char-1M"]


@pytest.mark.parametrize("path, n_rows, dropped, layout", [
    ("hh_rlhf/hh_dev.sampled_dev.jsonl.gz", 280, {"identical responses": 3, "empty response": 1}, "HH-RLHF with turns"),
    ("hh_rlhf/hh_test.harmless_base.jsonl.gz", 2312, {"empty response": 4}, "HH-RLHF with turns"),
    ("hh_rlhf", 6081, {"identical responses": 15, "empty response": 11, "empty turn": 2}, "HH-RLHF with turns"),
    ("human_pairs/pairs.jsonl.gz", 2909, {}, "pair"),
    ("alpaca_eval_pairs", 7984, {}, "pair"),
    ("rmb/pairwise.jsonl.gz", 12765, {"identical responses": 14, "empty response": 2, "empty turn": 5}, "RMB"),
    ("rmb/pairwise_from_bon.jsonl.gz", 736, {}, "RMB"),
])
def test_public_pairs(shared, path, n_rows, dropped, layout):
    records, report = read_pairs(shared / "data" / path, on_bad_record="skip")
    assert (report.n_rows, report.dropped) == (n_rows, dropped)
    assert report.formats == {layout: len(records)} and len(records) == n_rows - sum(dropped.values())


@pytest.mark.parametrize("path, n_rows", [
    ("tinystories", 5096), ("sentiment", 12662), ("gsm8k/train.jsonl.gz", 7473), ("gsm8k/test.jsonl.gz", 1319),
    ("gsm8k/model_solutions.jsonl.gz", 5276), ("jailbreak/xstest_completions.jsonl.gz", 2250),
])
def test_public_demonstrations(shared, path, n_rows):
    records, report = read_demonstrations(shared / "data" / path)
    assert len(records) == report.n_rows == n_rows


@pytest.mark.parametrize("path, n_rows", [
    ("ifeval", 541), ("human_pairs/ties.jsonl.gz", 444), ("step_labels", 2776),
    ("jailbreak/xstest_prompts.jsonl.gz", 450),
    ("jailbreak/advbench.jsonl.gz", 520), ("assistant_axis/extraction_questions.jsonl", 240),
])
def test_public_prompts(shared, path, n_rows):
    assert len(read_prompts(shared / "data" / path)[0]) == n_rows


def test_the_exclusion_list_of_hh_reaches_meta(shared):
    pairs, _ = read_pairs(shared / "data/hh_rlhf/hh_test.helpful_base.jsonl.gz", on_bad_record="skip")
    assert 0 < sum(pair.prompt.meta["eval_excluded"] for pair in pairs) <= 76
    assert set(pairs[0].prompt.meta) == {"split", "subset", "index", "source_line", "rewards", "eval_excluded"}


def test_every_assistant_turn_of_a_dialogue(shared):
    path = shared / "data/self_dialogue/dialogues.jsonl.gz"
    n_turns = [sum(m["role"] == "assistant" for m in row.value["messages"]) for row in read_rows(path)]
    tally = Tally()
    n_found = sum(1 for _ in iter_demonstrations(path, tally, turns="all"))
    assert (n_found, tally.report.n_rows, tally.report.n_dropped) == (sum(n_turns), 24133, 0)


@pytest.fixture(scope="module", params=MODELS)
def spelled(shared, request):
    return template(tokenizer_from(str(shared / "models" / request.param)))


def test_real_templates(spelled):
    assert spelled.tokenizer.decode([spelled.end_id]) == spelled.tokenizer.eos_token
    assert spelled.pad_id not in spelled.stop_ids and spelled.trims


def test_training_rollout_and_scoring_are_the_same_tokens(shared, spelled):
    pairs, _ = read_pairs(shared / "data/hh_rlhf/hh_dev.sampled_dev.jsonl.gz", on_bad_record="skip")
    bos, limit = spelled.tokenizer.bos_token_id, 100_000
    pair_rows, counts = render_pairs(spelled, pairs, limit)
    trained, _ = render_demonstrations(spelled, [Demonstration(pair.prompt, pair.chosen) for pair in pairs], limit)
    prompts, _ = render_prompts(spelled, [pair.prompt for pair in pairs], limit)
    assert counts.n_dropped == counts.n_fewer_turns == counts.n_cut == 0
    for pair, scored, row, prompt in zip(pairs, pair_rows, trained, prompts, strict=True):
        assert scored.chosen.ids == row.ids == prompt.ids + spelled.response_ids(pair.chosen)
        assert row.ids.count(bos) == 1 and row.ids[0] == bos and row.ids[-1] == spelled.end_id
        assert spelled.response_ids(pair.chosen).count(spelled.end_id) == 1


def test_rendered_rows_are_what_the_template_writes(spelled):
    """Against the tokenizer's own text of the whole conversation, behind begin-of-sequence."""
    tokenizer = spelled.tokenizer
    turns = [Message("user", "Do you like music?"), Message("assistant", "Yes, I do."), Message("user", "Why?")]
    row = spelled.prompt_ids(Prompt("p", tuple(turns))) + spelled.response_ids(" I sing. ")
    messages = [{"role": m.role, "content": m.content} for m in [*turns, Message("assistant", "I sing.")]]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    whole = tokenizer(text, add_special_tokens=False).input_ids
    whole = whole if whole[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id, *whole]
    assert row == whole[:len(row)] and tokenizer.decode(whole[len(row):]).strip() == ""


def test_decoded_responses_are_the_text(shared, spelled):
    stories, _ = read_demonstrations(shared / "data/tinystories/stories.jsonl.gz")
    for story in stories[:50]:
        ids = spelled.response_ids(story.response, after="")
        assert spelled.decode(ids).strip() == story.response.strip() or spelled.tokenizer.unk_token_id in ids


def test_long_dialogues_lose_their_oldest_turns_and_both_sides_stay_together(shared, spelled):
    pairs, _ = read_pairs(shared / "data/hh_rlhf/hh_dev.sampled_dev.jsonl.gz", on_bad_record="skip")
    rows, counts = render_pairs(spelled, pairs, 512)
    assert counts.n_fewer_turns > 0 and counts.n_cut == 0 and len(rows) == counts.n_rows - counts.n_dropped
    assert all(len(row.prompt_ids) + max(len(row.chosen_ids), len(row.rejected_ids)) <= 512 for row in rows)
    assert all(row.chosen_ids[-1] == row.rejected_ids[-1] == spelled.end_id for row in rows)
    batch = collate([rows[0].chosen, rows[1].chosen], spelled.pad_id)
    assert batch.response_mask[0].sum() == len(rows[0].chosen_ids)


def test_a_converted_public_file_reads_back(shared, tmp_path):
    from keel.data.convert import DataConvertConfig, run

    source, output = shared / "data/human_pairs/pairs.jsonl.gz", tmp_path / "pairs.parquet"
    run(DataConvertConfig(paths=str(source), output=str(output)))
    before, after = read_pairs(source)[0], read_pairs(output)[0]
    assert before == after and isinstance(after[0], PreferencePair) and json.dumps(dict(after[0].prompt.meta))
