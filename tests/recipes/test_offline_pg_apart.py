"""`keel offline-pg` where a validation file holds training prompts, where padding is a token of the text, and where
prompts lose their beginning."""

import json

import pytest
import tiny
import torch
from recipes.offline_runs import offline_config, reward, told, whole_batch
from recipes.running import logged

from keel.errors import ConfigError, DataError
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.recipes import offline_pg
from keel.recipes.offline_pg import OfflinePGConfig


def with_data(cfg: OfflinePGConfig, **changes) -> OfflinePGConfig:
    return cfg.model_copy(update={"data": cfg.data.model_copy(update=changes)})


def validated(tmp_path, first: int, last: int) -> OfflinePGConfig:
    """40 training prompts, and of 80 those from `first` to `last` for validation."""
    rows = [json.loads(line) for line in told(tmp_path / "more.jsonl", 80).read_text().splitlines()][first:last]
    cfg = offline_config(tmp_path, steps=1, loss={"variant": "wbc"})
    # Another name is no other prompt.
    renamed = [row | {"id": f"v{i}"} for i, row in enumerate(rows)]
    return with_data(cfg, validation=str(tiny.write_rows(tmp_path / "held.jsonl", renamed)))


@pytest.mark.parametrize(("first", "last", "n", "whole"), [(0, 40, 40, 40), (37, 66, 3, 29)])
def test_validation_prompts_that_are_training_prompts_are_refused(tmp_path, first, last, n, whole):
    with pytest.raises(DataError, match=f"{n} of {whole} validation prompts are in the training data, so they hold "
                                        "nothing out") as caught:
        offline_pg.run(validated(tmp_path, first, last))
    assert caught.value.where.endswith("held.jsonl")


def test_the_training_file_is_no_validation_file(tmp_path):
    cfg = offline_config(tmp_path)
    with pytest.raises(DataError, match="40 of 40 validation prompts are in the training data"):
        offline_pg.run(with_data(cfg, validation=cfg.data.path))


@pytest.mark.parametrize(("first", "said"), [(37, "3 of 30 validation prompts are in the training data: what is"),
                                             (40, "")])
def test_few_training_prompts_among_the_validation_prompts_are_noted(tmp_path, first, said):
    """Up to a tenth of them; and none where there are none."""
    notes = " ".join(offline_pg.run(validated(tmp_path, first, 67)).values.get("notes", []))
    assert said in notes and (not said) == ("validation prompts are in" not in notes)


def test_prompts_that_are_equal_within_one_file_are_no_leak(tmp_path):
    """Several responses to a prompt, and a part that is split off."""
    rows = [json.loads(line) for line in told(tmp_path / "told.jsonl").read_text().splitlines()]
    again = [row | {"id": f"{row['id']}b", "completion": tiny.said("yes")} for row in rows]
    tiny.write_rows(tmp_path / "told.jsonl", rows + again)
    found = offline_pg.run(offline_config(tmp_path, steps=1, loss={"variant": "wbc"})).values
    assert found["n_validation"] > 0 and "validation prompts" not in " ".join(found.get("notes", []))


def test_a_padding_token_that_is_the_end_of_sequence_changes_nothing(tmp_path):
    """What stands in the padding is never looked at, and the end of a response still counts."""
    weights, lengths = [], []
    for name in ("own", "end"):
        base = tiny.llama(tmp_path / name)
        if name == "end":
            words = load_tokenizer(str(base))
            words.pad_token = words.eos_token
            words.save_pretrained(base)
            assert load_tokenizer(str(base)).pad_token_id == load_tokenizer(str(base)).eos_token_id
        cfg = whole_batch(tmp_path, out=tmp_path / f"run-{name}", policy=ModelConfig(path=str(base)),
                          loss={"variant": "a_lol_seq"}, micro_tokens=4096)
        offline_pg.run(cfg)
        weights.append(causal_lm(ModelConfig(path=str(cfg.out / "model"))).state_dict())
        lengths.append([line["n_tokens"] for line in logged(cfg.out, "advantages.jsonl", None)])
    assert lengths[0] == lengths[1] == [4, 3, 5, 5] * 3
    assert all(torch.equal(x, weights[1][key]) for key, x in weights[0].items())


def test_cut_from_the_left_a_prompt_loses_its_system_turn_first_and_is_counted(tmp_path):
    """Without the oldest turns instead the system turn stays."""
    system = {"role": "system", "content": "hello two"}
    talk = [{"role": role, "content": "red blue cat"} for role in ("user", "assistant", "user")]
    rows = [{"id": f"d{i}", "prompt": [system, *(talk if i < 5 else talk[:1])], "completion": tiny.said("yes .")}
            for i in range(12)]
    words, seen, n = None, {}, {}
    for how in ("truncate_left", "drop_turns"):
        cfg = whole_batch(tmp_path, out=tmp_path / how, rewards=(reward(),), steps=1)
        cfg = with_data(cfg, path=str(tiny.write_rows(tmp_path / "talk.jsonl", rows)), too_long=how, max_length=20)
        words = load_tokenizer(cfg.policy.path)
        n[how], rendered = offline_pg.run(cfg).values["skipped"], offline_pg.rendered
        found = rendered(cfg, offline_pg.template(words), offline_pg.read_responses(cfg.data.path, which="all")[0])[0]
        seen[how] = ["system" in words.decode(row.ids[: row.n_prompt]) for row in found]
    assert seen["truncate_left"] == [False] * 5 + [True] * 7 and seen["drop_turns"] == [True] * 12
    assert (n["truncate_left"]["n_cut"], n["drop_turns"]["n_cut"]) == (5, 0)
    assert (n["truncate_left"]["n_fewer_turns"], n["drop_turns"]["n_fewer_turns"]) == (0, 5)


def test_what_is_wrong_in_a_table_is_said_without_the_table():
    with pytest.raises(ConfigError) as caught:
        OfflinePGConfig.checked({"out": "o", "policy": "p", "data": "d", "rewards": [{"name": "n", "stored": "n"}],
                                 "loss": {"variant": "a_lol_kl", "clip": 0.9, "gold_floor": 0.1}})
    assert caught.value.what == ("loss: variant='a_lol_kl' needs loss.kl_coef; keep it well below the usual weight of "
                                 "a response")
