"""configs/offline: each file loads, says what the paper's table says, and trains on small files of its layout."""

import json
import math
from pathlib import Path

import pytest
import tiny
import tolerances
import torch
from transformers import GPTNeoXConfig, GPTNeoXModel

from keel.batches import TokenBatch
from keel.bench.scorer_templates import with_template
from keel.config import read_toml
from keel.data.chat import template
from keel.data.records import Message, Prompt
from keel.data.sources import comet_split, reddit_split, wow_turns
from keel.data.sources.comet_split import CometConfig
from keel.data.sources.reddit_split import RedditConfig
from keel.data.sources.wow_turns import WizardConfig
from keel.models.classifier import load_classifier
from keel.models.load import ModelConfig, load_tokenizer
from keel.recipes import offline_pg
from keel.recipes.offline_pg import OfflinePGConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "offline"
TASKS = {"hha": 1, "comet": 1, "reddit_pos": 5, "reddit_neg": 5, "wow": 4, "faithdial": 4, "wow_faithdial": 4}
"""Each task with the largest sum of its rewards."""
WORDS = tiny.WORDS
N = 40


def share(prompt, text, ended):
    """A reward in [0, 1] that differs between texts."""
    said = text.split()
    return len(set(said)) / (1 + len(said))


def settings(name):
    return read_toml(CONFIGS / f"{name}.toml")


def text(i, n=3):
    return " ".join(WORDS[(i * 7 + k * (1 + i % 3)) % len(WORDS)] for k in range(n + i % 3))


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def hha(folder):
    def rows(start):
        for i in range(start, start + N):
            turns = [f"<|prompter|>{text(i)} {i}", "<|assistant|>"]
            last = text(i + 1) + (":" if i % 10 == 0 else "")
            yield {"prefix": [turns, turns], "suffix": [text(i, 4), last], "reward": [(i % 7) - 3.0, -(i % 5) - 0.5],
                   "sft_index": 0, "meta": {"path": "raw/harmless-base/train.jsonl", "line_num": i, "task": "dialogue"}}

    return written(folder / "train.json", rows(0)), written(folder / "dev.json", rows(1000))


def comet(folder):
    rows = [{"head": f"PersonX {text(i)}", "relation": "xWant", "tail": text(i, 2), "p_valid_model": (i % 10) / 10,
             "split": "val" if i % 2 else "train"} for i in range(2 * N)]
    (folder / "test.tsv").write_text("head\trelation\ttail\nPersonX sat\txNeed\tthe cat\n")
    comet_split.run(CometConfig(path=str(written(folder / "ATOMIC10X.jsonl", rows)), test=str(folder / "test.tsv"),
                                output=str(folder / "comet")))
    return folder / "comet" / "train.jsonl", folder / "comet" / "validation.jsonl"


def reddit(folder, sign):
    paths = {}
    for name, score in (("positive", 70), ("negative", -9)):
        rows = [{"id": f"{name}{i}", "parent_id": "p", "link_id": "l", "text": text(i), "score": score,
                 "parent_text": f"{text(i, 5)} {i}", "parent_score": 1} for i in range(2 * N)]
        paths[name] = str(written(folder / f"{name}.jsonl", rows))
    reddit_split.run(RedditConfig(**paths, output=str(folder / "reddit"), held_out=12))
    return folder / "reddit" / f"train_{sign}.jsonl", folder / "reddit" / "validation.jsonl"


def wizard(folder, name, part):
    """A file of dialogues of one of the two sets, converted."""
    dialogues = []
    for i in range(N):
        knowledge, history = text(i + 2, 5), [text(i), text(i + 1), f"{text(i + 3)} {part} {i}"]
        spoken = {"speaker": "0_Wizard", "text": text(i, 4), "checked_sentence": {"chosen": knowledge}}
        dialogues.append({"dialog": [{"speaker": "1_Apprentice", "text": said} for said in history] + [spoken]}
                         if name == "wow" else {"utterances": [{
                             "history": history, "knowledge": knowledge, "response": text(i, 4), "VRM": ["Question"]}]})
    source = folder / f"{name}_{part}.json"
    source.write_text(json.dumps(dialogues))
    output = folder / "out" / part / f"{name}_{part}.jsonl"
    wow_turns.run(WizardConfig(path=str(source), output=str(output)))
    return output


def files(task, folder):
    if task in ("hha", "comet"):
        return {"hha": hha, "comet": comet}[task](folder)
    if task.startswith("reddit"):
        return reddit(folder, "positive" if task.endswith("pos") else "negative")
    made = [[wizard(folder, name, part) for name in task.split("_")] for part in ("train", "validation")]
    return tuple(part[0] if len(part) == 1 else part[0].parent for part in made)


def shrunk(task, folder):
    """The settings of a task for a tiny model, small files, and a function in place of each classifier."""
    found = settings(task)
    train, validation = map(str, files(task, folder))
    found |= {"out": str(folder / "run"), "steps": 2, "batch": 4, "eval_every": 2, "save_every": 2, "eval_prompts": 6}
    found["policy"] = found["policy"] | {"path": str(tiny.llama(folder / "model")), "dtype": "float32"}
    found["policy"].get("lora", {}).update({"rank": 2} if "lora" in found["policy"] else {})
    found["data"] |= {"path": train, "validation": validation, "max_length": 64}
    found["max_response"] = 8
    found["value"] = found["value"] | ({} if found["value"].get("kind") else {
        "prompts": 12, "epochs": 2, "heads": 2})
    for name in ("sampling", "value_sampling"):
        if name in found:
            found[name] |= {"max_new_tokens": 5}
    for reward in found["rewards"]:
        if "scorer" in reward:
            reward["scorer"] = {"function": f"{__name__}:share", "prompt_as": "record"}
        if "informative" in reward:
            reward["informative"] = train
    return found


@pytest.mark.parametrize("task", TASKS)
def test_the_settings_of_a_task_load_with_the_range_of_its_rewards(task):
    cfg = OfflinePGConfig.model_validate(settings(task))
    assert sum(spec.weight * spec.high for spec in cfg.rewards) == TASKS[task]
    assert all(spec.low == 0 for spec in cfg.rewards)
    assert (cfg.loss.variant, cfg.seed, cfg.batch) == ("a_lol", 901, 16)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("variant", ["nll", "wbc", "r_gold", "r_lol", "a_lol_ref_free", "a_lol_seq"])
def test_the_settings_of_a_task_take_every_variant_without_a_penalty(task, variant):
    found = settings(task)
    cfg = OfflinePGConfig.model_validate(found | {"loss": found["loss"] | {"variant": variant}})
    assert cfg.loss.variant == variant and cfg.needs_value == variant.startswith("a_lol")


def test_there_is_a_test_of_every_file_of_settings():
    assert {path.stem for path in CONFIGS.glob("*.toml")} == set(TASKS)


def test_the_assistant_is_trained_as_the_papers_table_says():
    cfg = OfflinePGConfig.model_validate(settings("hha"))
    assert (cfg.policy.lora.rank, cfg.policy.lora.alpha) == (64, 16)
    assert (cfg.optimizer.lr, cfg.optimizer.schedule, cfg.optimizer.max_grad_norm) == (2e-4, "constant", 0.3)
    assert (cfg.data.max_length, cfg.max_response, cfg.loss.clip, cfg.drop_ending) == (640 + 128, 128, 0.9, ":")
    assert (cfg.value.prompts, cfg.value.epochs, cfg.value.lr) == (280, 10, 1e-5)
    assert (cfg.rewards[0].stored, cfg.rewards[0].squash) == ("reward", "sigmoid")


@pytest.mark.parametrize("task", [task for task in TASKS if task != "hha"])
def test_the_other_tasks_are_trained_as_the_papers_table_says(task):
    cfg = OfflinePGConfig.model_validate(settings(task))
    chosen = cfg.optimizer
    assert (chosen.lr, chosen.schedule, chosen.weight_decay, chosen.eps) == (2e-5, "linear", 0.01, 1e-8)
    assert (chosen.lr_floor, chosen.warmup_fraction, chosen.max_grad_norm) == (0, 0, 1.0)
    assert cfg.sampling.repetition_penalty == 2.5
    assert (cfg.max_response, cfg.epochs) == ((30, 1) if task == "comet" else (128, 3))
    assert cfg.data.max_length == 512 + cfg.max_response


@pytest.mark.parametrize("task", TASKS)
def test_each_task_trains_on_small_files_of_its_layout(task, tmp_path):
    result = offline_pg.run(OfflinePGConfig.model_validate(shrunk(task, tmp_path)))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row.get("phase") == "train" and "loss" in row]
    assert len(losses) == 2 and all(map(math.isfinite, losses)) and (tmp_path / "run" / "model").is_dir()
    assert result.values["n_validation"] > 0
    told = [json.loads(line) for line in (tmp_path / "run" / "advantages.jsonl").read_text().splitlines()]
    # A tenth of the pairs has an answer that was cut off.
    assert len(told) == {"hha": N - N // 10, "wow_faithdial": 2 * N}.get(task, len(told))
    assert len(told) >= N // 2


def test_stored_logits_become_rewards_by_one_sigmoid(tmp_path):
    offline_pg.run(OfflinePGConfig.model_validate(shrunk("hha", tmp_path)))
    lines = (tmp_path / "run" / "advantages.jsonl").read_text().splitlines()
    told = {row["id"]: row for row in map(json.loads, lines)}
    # The third row of the file, whose raw score is -1.
    assert told["train:3/chosen"]["total"] == pytest.approx(1 / (1 + math.e), rel=tolerances.RELATIVE64)
    assert told["train:3/chosen"]["rewards"] == {"reward": told["train:3/chosen"]["total"]}


# --- how the classifiers read a conversation -------------------------------------------------------------------------

ASKED = (Message("system", "Knowledge: the cat"), Message("user", "hello"), Message("assistant", "why"),
         Message("user", "please"))


def spelled(name, tokenizer, turns, response):
    words = template(with_template(tokenizer, str(CONFIGS / name)))
    ids = words.prompt_ids(Prompt("x", turns)) + words.closed_ids(response)
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.fixture
def encoder(tmp_path):
    found = tiny.tokenizer()
    found.add_special_tokens({"cls_token": "<bos>", "sep_token": "<eos>"})
    return found


def test_fluency_and_safety_read_the_response_alone(encoder):
    assert spelled("response.jinja", encoder, ASKED, "yes .") == ["<bos>", "yes", ".", "<eos>"]


def test_faithfulness_reads_the_knowledge_and_the_response(encoder):
    assert spelled("knowledge_response.jinja", encoder, ASKED, "yes .") == [
        "<bos>", "the", "cat", "<eos>", "<eos>", "yes", ".", "<eos>"]


def test_dialogrpt_reads_the_turns_with_an_end_between_them(tmp_path):
    assert spelled("dialogue.jinja", tiny.tokenizer(), ASKED, "yes .") == [
        "hello", "<eos>", "why", "<eos>", "please", "<eos>", "yes", "."]


def from_the_page(name):
    """The Python function of that name in docs/offline_tasks.md."""
    page = (ROOT / "docs" / "offline_tasks.md").read_text(encoding="utf-8")
    (block,) = [part.partition("```")[0] for part in page.split("```python\n")[1:] if f"def {name}(" in part]
    found = {}
    exec(block, found)
    return found[name]


def test_the_converted_assistant_reward_model_scores_as_the_original_class(tmp_path):
    words = tiny.tokenizer()
    config = GPTNeoXConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                           intermediate_size=24, max_position_embeddings=64)
    torch.manual_seed(3)
    model, head = GPTNeoXModel(config).eval(), torch.nn.Linear(16, 1)
    source = tmp_path / "source"
    words.save_pretrained(source)
    stored = {f"gpt_neox.{name}": weight for name, weight in model.state_dict().items()}
    stored |= {f"out_proj.{name}": weight for name, weight in head.state_dict().items()}
    stored["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 4, 4)
    torch.save(stored, source / "pytorch_model.bin")
    (source / "config.json").write_text(json.dumps(config.to_dict() | {
        "model_type": "gpt_neox_reward_model", "architectures": ["GPTNeoXRewardModel"], "pooling": "last"}))

    from_the_page("converted")(str(source), str(tmp_path / "target"))
    ids = torch.tensor([[4, 7, 9, 2, 5, 11, 2]])
    whole = torch.ones_like(ids, dtype=torch.bool)
    batch = TokenBatch(ids, whole, whole, ("x",))
    with torch.no_grad():
        found = load_classifier(ModelConfig(path=str(tmp_path / "target"))).scores(batch)
        wanted = head(model(ids).last_hidden_state[:, -1]).double()[:, 0]
    torch.testing.assert_close(found, wanted, **tolerances.FLOAT32)
    spelled_out = load_tokenizer(str(tmp_path / "target")).apply_chat_template(
        [{"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}], tokenize=False)
    assert spelled_out == "<|prompter|>why<eos><|assistant|>yes<eos>"
