import json

import pytest
import tiny
import tolerances as tol
from recipes.running import killed_and_resumed, logged, same_results, scratch, sft_config

from keel.data.load import read_demonstrations
from keel.data.seen import prompt_key, read_seen
from keel.errors import DataError, ModelError, RunError
from keel.recipes import sft
from keel.train.inputs import DataConfig


def test_three_steps_lower_the_held_out_loss_and_leave_a_model(tmp_path):
    from transformers import AutoModelForCausalLM

    result = sft.run(sft_config(tmp_path, steps=12))
    head = result.values["headline"]
    assert head["after"]["mean"] < head["before"]["mean"]
    assert result.values["status"] == "finished" and result.values["n_train"] + result.values["n_validation"] == 24
    AutoModelForCausalLM.from_pretrained(tmp_path / "sft/model")
    assert {row["step"] for row in logged(tmp_path / "sft", "samples.jsonl", None)} == {0, 12}


def test_micro_batches_change_memory_and_nothing_else(tmp_path):
    """The fact that makes it right: every response token of a step weighs the same, however the step is cut."""
    for micro, name in ((10_000, "one"), (16, "many")):
        sft.run(sft_config(tmp_path, out=tmp_path / name, micro_tokens=micro, steps=3))
    one, many = (logged(tmp_path / name) for name in ("one", "many"))
    for a, b in zip(one, many, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=tol.RELATIVE32)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=tol.GRADIENT32["rtol"])


def test_only_response_tokens_are_learned(tmp_path):
    """A prompt token that never occurs in a response gets no gradient as a target: loss counts response tokens only."""
    sft.run(sft_config(tmp_path, steps=1, batch=24))
    rows = logged(tmp_path / "sft")
    assert rows[0]["tokens"] < 24 * 6


def test_same_seed_same_bytes_and_other_seed_other_order(tmp_path):
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        sft.run(sft_config(tmp_path, out=tmp_path / name, seed=seed))
    same_results(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a/metrics.jsonl").read_bytes() != (tmp_path / "c/metrics.jsonl").read_bytes()


def test_responses_labelled_as_bad_are_not_imitated_in_silence(tmp_path):
    rows = [{"prompt": f"{word} cat", "completion": "yes please", "label": i % 3 > 0} for i, word in enumerate(
        ("red", "blue", "the", "one", "two", "why"))]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(tmp_path / "labelled.jsonl"), validation_fraction=0)
    told = sft.run(sft_config(tmp_path, data=data, steps=1))
    assert [note for note in told.values["notes"] if note.startswith("2 of 6 demonstrations have label = false")]


def test_scratch_model_is_drawn_from_the_seed(tmp_path):
    weights = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        cfg = sft_config(tmp_path, out=tmp_path / name, seed=seed, model=scratch(tmp_path), steps=1)
        sft.run(cfg)
        weights.append((tmp_path / name / "model/model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_killed_run_resumes_to_the_same_bytes(tmp_path):
    whole = sft_config(tmp_path, steps=40, save_every=3, eval_every=7)
    sft.run(whole)
    killed_and_resumed("sft", whole.model_copy(update={"out": tmp_path / "killed"}), [0.02, 0.1])
    same_results(tmp_path / "sft", tmp_path / "killed")


def test_run_folder_is_not_overwritten(tmp_path):
    sft.run(sft_config(tmp_path, steps=1))
    with pytest.raises(RunError, match="this folder already holds a run"):
        sft.run(sft_config(tmp_path, steps=1))


def test_scratch_shape_is_checked(tmp_path):
    shape = scratch(tmp_path)
    bad = shape.model_copy(update={"scratch": shape.scratch.model_copy(update={"heads": 3})})
    with pytest.raises(ModelError, match=r"not a multiple of scratch\.heads"):
        sft.run(sft_config(tmp_path, model=bad))


def test_no_records_left_is_an_error(tmp_path):
    cfg = sft_config(tmp_path)
    with pytest.raises(DataError, match="rows fits into 8 tokens"):
        sft.run(cfg.model_copy(update={"data": cfg.data.model_copy(update={"max_length": 8, "too_long": "drop"})}))


def test_rows_beyond_the_models_context_are_refused(tmp_path):
    cfg = sft_config(tmp_path, model=scratch(tmp_path))
    long = [{"prompt": [{"role": "user", "content": "cat " * 100}], "completion": tiny.said("yes .")}]
    path = tiny.write_rows(tmp_path / "long.jsonl", long)
    data = cfg.data.model_copy(update={"path": str(path), "validation_fraction": 0.0, "max_length": 256})
    with pytest.raises(ModelError, match=r"the longest row has .* the model's context is 64"):
        sft.run(cfg.model_copy(update={"data": data}))


def test_the_prompts_of_both_sides_are_written_down(tmp_path):
    cfg = sft_config(tmp_path, steps=1)
    sft.run(cfg)
    seen = read_seen(tmp_path / "sft/model")
    every = {prompt_key(shown.prompt) for shown in read_demonstrations(cfg.data.path)[0]}
    assert seen.learned_from | seen.held_out == every and seen.held_out and not seen.learned_from & seen.held_out
