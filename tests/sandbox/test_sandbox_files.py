"""The tokenizer is an ordinary Hugging Face one, the export is read back whole, and the shipped model fits the town."""

import json
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

import pytest

from keel.data.load import read_traces
from keel.data.records import Message, Prompt
from keel.errors import ModelError, RunError
from keel.sandbox import World, score, talk
from keel.sandbox.export import SandboxExportConfig, run
from keel.sandbox.ledger_steps import solutions
from keel.sandbox.shipped import base_model_folder
from keel.sandbox.tokenizer import SPECIAL_TOKENS, train_tokenizer

WORLD = World()
CONVERSATION = [
    {"role": "system", "content": "you are the poet."},
    {"role": "user", "content": "add up bread 7 and milk 15."},
    {"role": "assistant", "content": "bread 7 + milk 15 = 22\nthe total is 22."},
]
RENDERED = (
    "<|bos|><|system|>you are the poet.<|eos|><|user|>add up bread 7 and milk 15.<|eos|>"
    "<|assistant|>bread 7 + milk 15 = 22\nthe total is 22.<|eos|>"
)


@pytest.fixture(scope="module")
def spoken():
    return talk(WORLD, 3000, "tokenizer")


@pytest.fixture(scope="module")
def tokenizer(spoken, tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(spoken).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_any_text_comes_back(tokenizer, spoken):
    assert len(tokenizer) == 1024
    for text in [one.response for one in spoken[:200]] + ["Ünïcode 🙂\ttabs  and 2026!", " lead", "", "\n\n"]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not any(i in tokenizer.all_special_ids for i in ids)


def test_digits_stay_single(tokenizer):
    assert [piece.lstrip("Ġ") for piece in tokenizer.tokenize("bread 123")[-3:]] == ["1", "2", "3"]


def test_the_template_is_stored_and_writes_one_bos(tokenizer):
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == RENDERED
    asked = tokenizer.apply_chat_template(CONVERSATION[:2], tokenize=False, add_generation_prompt=True)
    assert asked == RENDERED[: RENDERED.index("bread 7 +")]
    ids = tokenizer.apply_chat_template(CONVERSATION, return_dict=True)["input_ids"]
    assert ids == tokenizer(RENDERED)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(6))


def test_the_mask_covers_the_answer_and_its_end(tokenizer):
    shown = tokenizer.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
    written = [i for i, keep in zip(shown["input_ids"], shown["assistant_masks"], strict=True) if keep]
    assert tokenizer.decode(written) == CONVERSATION[2]["content"] + "<|eos|>"


def test_responses_are_short(tokenizer, spoken):
    lengths = [len(tokenizer(one.response)["input_ids"]) + 1 for one in spoken]
    assert sum(lengths) / len(lengths) <= 30


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "town"
    cfg = SandboxExportConfig(out=out, n_prompts=60, n_demonstrations=50, n_pairs=40, n_heldout=20, n_talk=30,
                              n_solutions=25)
    return out, run(cfg)


def rows(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_export_writes_what_it_says(town):
    out, written = town
    assert written == {path.name: len(rows(path)) for path in sorted(out.iterdir())}
    assert written["prompts.jsonl"] == 60 and written["pairs.jsonl"] == 40 and written["pairs-test.jsonl"] == 20
    assert {"prompts-dialect.jsonl", "demonstrations-validation.jsonl", "jailbreaks.jsonl"} <= written.keys()
    assert written["talk.jsonl"] == 30
    assert written["steps.jsonl"] == 25 and written["steps-test.jsonl"] == written["steps-dialect.jsonl"] == 20
    for name in (name for name in written if name != "roles.jsonl"):  # roles go by their names
        ids = [row["id"] for row in rows(out / name)]
        assert len(ids) == len(dict.fromkeys(ids))


def test_exported_rows_are_conversational_and_can_be_scored(town):
    out, _ = town
    for row in rows(out / "pairs.jsonl"):
        assert [message["role"] for message in row["chosen"] + row["rejected"]] == ["assistant", "assistant"]
        prompt = Prompt(row["id"], tuple(Message(**m) for m in row["prompt"]), meta=row["meta"], truth=row["truth"])
        gap = score(prompt, row["chosen"][0]["content"]).total - score(prompt, row["rejected"][0]["content"]).total
        assert gap == pytest.approx(row["truth"]["gold_gap"])
    for row in rows(out / "demonstrations.jsonl"):
        assert [message["role"] for message in row["completion"]] == ["assistant"]
    assert all(row["prompt"][0]["role"] == "system" for row in rows(out / "jailbreaks.jsonl"))


def test_exported_solutions_are_read_back_with_their_labels(town):
    out, _ = town
    traces, report = read_traces(out / "steps.jsonl")
    assert report.n_dropped == 0
    assert traces == solutions(WORLD, 25, "export")
    assert {None} != {trace.first_error for trace in traces}


def test_no_solutions_where_none_are_wanted_or_the_ledger_is_held_out(tmp_path):
    few = {"n_prompts": 1, "n_demonstrations": 1, "n_pairs": 1, "n_heldout": 1}
    assert not [name for name in run(SandboxExportConfig(out=tmp_path / "a", n_solutions=0, **few)) if "steps" in name]
    held = run(SandboxExportConfig(out=tmp_path / "b", n_solutions=5, holdout_domain="ledger", **few))
    assert sorted(name for name in held if "steps" in name) == [
        "steps-dialect.jsonl", "steps-test.jsonl", "steps-validation.jsonl"]


def test_truth_stands_in_its_own_column(town):
    out, written = town
    hidden = {"answer", "gold_gap", "wrong_label"}
    for name in (name for name in written if not name.startswith("role")):  # these have no answer at all
        # The sum of a ledger question is no secret: its prices are in the question.
        told = {"answer"} if name.startswith("steps") else set()
        for row in rows(out / name):
            assert hidden & (row.keys() | row["meta"].keys()) == told
            assert row["truth"].keys() <= hidden


def test_no_question_of_a_held_out_file_is_trained_on(town):
    out, _ = town
    asked = {name: {row["prompt"][-1]["content"] for row in rows(out / f"{name}.jsonl")} for name in (
        "prompts", "demonstrations", "pairs", "talk", "prompts-test", "pairs-validation", "prompts-dialect")}
    trained = asked["prompts"] | asked["demonstrations"] | asked["pairs"] | asked["talk"]
    for name in ("prompts-test", "pairs-validation", "prompts-dialect"):
        assert not trained & asked[name]


def test_a_full_folder_is_refused(town):
    out, _ = town
    with pytest.raises(RunError, match=r"town: the folder to export to is not empty\n.*--out"):
        run(SandboxExportConfig(out=out))


def test_every_option_changes_the_files():
    named = SandboxExportConfig.model_fields
    source = Path(str(files("keel.sandbox") / "export.py")).read_text(encoding="utf-8")
    assert all(f"cfg.{name}" in source for name in named)
    assert {field.name for field in fields(World)} - {"shares", "dialect"} <= set(named)


def test_the_base_model_is_a_small_ordinary_folder(tokenizer):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = base_model_folder()
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    assert (folder / "README.md").is_file() and (folder / "generation_config.json").is_file()
    model, own = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert 500_000 <= sum(weight.numel() for weight in model.parameters()) <= 3_000_000
    assert model.config.model_type == "llama" and model.config.vocab_size == len(own) == 1024
    assert own.chat_template == tokenizer.chat_template
    assert model.config.eos_token_id == own.eos_token_id and model.config.pad_token_id == own.pad_token_id
    # It knows the town: far below ln(1024) = 6.93 nats per token on talk that it has not seen.
    losses = []
    for shown in talk(WORLD, 60, "validation", persona_share=0):
        asked = [{"role": m.role, "content": m.content} for m in shown.prompt.messages]
        text = [*asked, {"role": "assistant", "content": shown.response}]
        row = own.apply_chat_template(text, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt")
        labels = torch.where(row["assistant_masks"] == 1, row["input_ids"], -100)
        with torch.no_grad():
            losses.append(float(model(input_ids=row["input_ids"], labels=labels).loss))
    assert sum(losses) / len(losses) < 1.0


def test_a_missing_base_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("keel.sandbox.shipped.FOLDER", tmp_path)
    with pytest.raises(ModelError, match=r"base model of the sandbox is missing.*\n.*keel sandbox pretrain"):
        base_model_folder()
