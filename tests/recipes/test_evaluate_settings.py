"""Settings of keel evaluate reach what they are about: each changes the result, or the error."""

import json

import pytest
import tiny
from recipes.test_evaluate import config

from keel.errors import DataError
from keel.recipes.evaluate import run


def two(tmp_path) -> list[str]:
    return [str(tmp_path / name / "model") for name in "ab"]


@pytest.mark.parametrize("which, n", [("chosen", 6), ("all", 12)])
def test_the_shift_is_over_the_responses_that_were_asked_for(tmp_path, which, n):
    data = {"path": str(tiny.pairs(tmp_path / "p.jsonl", 6)), "max_length": 64}
    found = run(config(tmp_path, models=two(tmp_path), limit=2, data=data, which=which)).values["models"]["b"]
    assert found["shift"]["per_response"]["n"] == n


def test_a_bad_record_of_the_prompts_stops_the_run_or_is_counted(tmp_path):
    rows = [json.loads(line) for line in tiny.prompts(tmp_path / "plain.jsonl", 4).read_text().splitlines()]
    prompts = {"path": str(tiny.write_rows(tmp_path / "bad.jsonl", [*rows, {"id": "bad", "prompt": 3}])),
               "max_length": 64}
    with pytest.raises(DataError, match=r"bad\.jsonl:5"):
        run(config(tmp_path, models=two(tmp_path), prompts=prompts))
    kept = run(config(tmp_path, "kept", models=two(tmp_path), prompts=prompts | {"on_bad_record": "skip"})).values
    assert kept["n"] == 4 and kept["skipped"]["records"] == 1


@pytest.mark.parametrize("of", ["data", "written"])
def test_a_bad_record_of_data_or_written_stops_the_run_or_is_left_out(tmp_path, of):
    rows = [{"id": f"r{i}", "prompt": prompt, "completion": tiny.said("yes .")}
            for i, prompt in enumerate(tiny.conversations(24))]
    path = str(tiny.write_rows(tmp_path / "bad.jsonl", [*rows, {"id": "bad", "prompt": 3, "completion": 4}]))
    more = {"data": {"path": path, "max_length": 64}} if of == "data" else {"written": [{"name": "w", "path": path}]}
    with pytest.raises(DataError, match=r"bad\.jsonl:25"):
        run(config(tmp_path, models=two(tmp_path), **more))
    lax = {"on_bad_record": "skip"}
    more |= ({"data": more["data"] | lax} if of == "data" else
             {"prompts": {"path": str(tmp_path / "q.jsonl"), "max_length": 64} | lax})
    told = run(config(tmp_path, "kept", models=two(tmp_path), **more)).values["models"]
    assert (told["b"]["shift"]["per_response"]["n"] if of == "data" else told["w"]["words"]["n"]) == 24


@pytest.mark.parametrize("how, n", [("truncate_left", 24), ("drop", 6)])
def test_prompts_and_data_that_are_too_long_are_cut_or_dropped_as_asked(tmp_path, how, n):
    """Words of a prompt are 2 to 5; six of 24 have two."""
    prompts = {"path": str(tiny.prompts(tmp_path / "q.jsonl")), "max_length": 12, "too_long": how}
    told = run(config(tmp_path, models=two(tmp_path), prompts=prompts)).values
    assert told["n"] == n


@pytest.mark.parametrize("how", ["truncate_response", "drop"])
def test_data_that_are_too_long_are_cut_or_dropped_as_asked(tmp_path, how):
    rows = [{"id": f"r{i}", "prompt": prompt, "completion": tiny.said("yes " * (2 if i < 8 else 40))}
            for i, prompt in enumerate(tiny.conversations(12))]
    data = {"path": str(tiny.write_rows(tmp_path / "d.jsonl", rows)), "max_length": 24, "too_long": how}
    told = run(config(tmp_path, models=two(tmp_path), limit=2, data=data)).values["models"]["b"]
    assert told["shift"]["per_response"]["n"] == (8 if how == "drop" else 12)


def test_self_bleu_stands_on_as_many_responses_as_were_asked_for(tmp_path):
    told = run(config(tmp_path, models=two(tmp_path), self_bleu_responses=5)).values["models"]["b"]["diversity"]
    assert (told["self_bleu_n"], told["n"]) == (5, 24)
