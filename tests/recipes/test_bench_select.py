"""Best of n by any scorer: what is picked, what a tie is worth, and the mean over all choices of n."""

import json
from itertools import combinations
from pathlib import Path

import pytest
from tolerances import RELATIVE64

from keel.bench.scorer_config import ScorerConfig
from keel.cli import main
from keel.recipes.bench_select import BenchSelectConfig, run

ROWS = [
    {"id": "a", "prompt": "the cat ?", "responses": ["no", "yes yes", "the dog"], "values": [0.0, 1.0, 5.0]},
    {"id": "b", "prompt": "why ?", "responses": ["hello", "one", "two"], "values": [2.0, -1.0, 1.0]},
]


def config(tmp: Path, rows: list[dict] = ROWS, function: str = "by_length", **changes) -> BenchSelectConfig:
    file = tmp / "candidates.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"out": tmp / "out", "candidates": file, "scorer": ScorerConfig(function=f"recipes.opinions:{function}")}
    return BenchSelectConfig(**(settings | changes))


def picks(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "picks.jsonl").read_text().splitlines()]


def test_the_longest_is_picked_and_ties_share(tmp_path, capsys):
    run(config(tmp_path))
    first, second = picks(tmp_path / "out")
    assert first == {"id": "a", "picked": [1, 2], "score": 7.0, "response": "yes yes", "value": 3.0}
    assert second == {"id": "b", "picked": [0], "score": 5.0, "response": "hello", "value": 2.0}
    assert "best of 3: score 6.0000" in capsys.readouterr().out


def test_the_curve_is_the_mean_over_all_choices(tmp_path):
    curve = run(config(tmp_path)).values["curve"]
    for row in curve:
        means = {"score": [], "value": [], "best_value": []}
        for one in ROWS:
            lengths, values = [float(len(text)) for text in one["responses"]], one["values"]
            chosen = list(combinations(range(3), row["n"]))
            best = [[i for i in some if lengths[i] == max(lengths[j] for j in some)] for some in chosen]
            means["score"].append(sum(lengths[some[0]] for some in best) / len(chosen))
            means["value"].append(sum(sum(values[i] for i in some) / len(some) for some in best) / len(chosen))
            means["best_value"].append(sum(max(values[i] for i in some) for some in chosen) / len(chosen))
        for name, numbers in means.items():
            assert row[name]["mean"] == pytest.approx(sum(numbers) / 2, rel=RELATIVE64)
    assert [row["n"] for row in curve] == [1, 2, 3]
    assert curve[0]["kl"] == 0


def test_a_run_that_was_cut_short_is_resumed_by_its_command(tmp_path, capsys):
    run(config(tmp_path))
    (tmp_path / "out/result.json").unlink()
    assert main(["bench-rm", "select", "--resume", str(tmp_path / "out")]) == 0
    assert "bench-rm select: done" in capsys.readouterr().out and (tmp_path / "out/result.json").exists()


def test_what_has_no_score_is_not_picked(tmp_path):
    found = run(config(tmp_path, function="not_a_number", most_failed=1.0)).values
    assert [row["picked"] for row in picks(tmp_path / "out")] == [[], []]
    assert found["scorer"]["counts"]["not_finite"] == 6
    assert found["curve"] == [] and found["n_without_pick"] == 2


def test_what_failed_is_left_out_of_every_number_alike(tmp_path):
    """`longer than three` fails; of b nothing is left, of a two responses."""
    rows = [ROWS[0] | {"responses": ["no", "yes yes", "one"]}, ROWS[1] | {"responses": ["hello", "please", "the cat"]}]
    found = run(config(tmp_path, rows, function="only_short", most_failed=1.0)).values
    first, second = found["curve"]
    assert found["n_without_pick"] == 1
    assert (first["score"]["mean"], first["value"]["mean"], first["best_value"]["mean"]) == (2.5, 2.5, 2.5)
    assert (second["score"]["mean"], second["value"]["mean"], second["best_value"]["mean"]) == (3.0, 5.0, 5.0)
    assert {row[name]["n_prompts"] for row in found["curve"] for name in ("score", "value", "best_value")} == {1}
    assert [row["picked"] for row in picks(tmp_path / "out")] == [[2], []]


def test_without_values_there_is_only_the_score(tmp_path):
    rows = [{name: cell for name, cell in row.items() if name != "values"} for row in ROWS]
    [row, *_] = run(config(tmp_path, rows)).values["curve"]
    assert set(row) == {"n", "kl", "score"}
    assert "value" not in picks(tmp_path / "out")[0]


def test_from_the_command_line_twice(tmp_path):
    cfg = config(tmp_path)
    words = ["bench-rm", "select", "--candidates", str(cfg.candidates), "--scorer.function", "recipes.opinions:by_hash"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    assert main([*words, "--out", str(tmp_path / "two"), "--reuse", str(tmp_path / "one")]) == 0
    assert (tmp_path / "one/result.json").read_bytes() == (tmp_path / "two/result.json").read_bytes()
