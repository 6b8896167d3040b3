"""`keel experiment offline`: equal settings, claims on made-up numbers, the whole command in miniature."""

import inspect
import json
from pathlib import Path

import pytest
import tolerances as tol
import torch

from keel.data.load import read_pairs
from keel.errors import RunError
from keel.experiments import offline, offline_methods, offline_numbers, offline_pictures, offline_work, rows
from keel.experiments.offline_methods import (
    ABLATIONS,
    METHODS,
    NOISES,
    TUNING_SEED,
    Cell,
    OfflineTrialConfig,
    partial_dpo,
    sft_config,
    trial,
)
from keel.experiments.offline_numbers import (
    PLANNED,
    REFERENCE,
    claims,
    cut_alike,
    nested,
    planned,
    read_cell,
    slopes,
    steps_to,
    table,
    worst_drop,
)
from keel.experiments.offline_pictures import draw_components, draw_noise
from keel.experiments.offline_work import first_rows, second_rows, work, work_in
from keel.experiments.offline_world import REWARDS, total
from keel.experiments.rows import row_main
from keel.experiments.trial import judged, seeds_of
from keel.functional.statistics import bootstrap_interval
from keel.recipes.offline_pg import OfflinePGConfig


def config(out: Path, **changes) -> OfflineTrialConfig:
    return OfflineTrialConfig(**({"out": out, "seeds": 1, "n_train": 60, "n_validation": 20, "n_test": 12,
                                  "sft_steps": 4, "steps": 4, "batch": 8} | changes))


# --- what is compared ------------------------------------------------------------------------------------------------


@pytest.fixture
def cell(tmp_path) -> Cell:
    """Where A-LoL has found that half of the advantages are positive, with a mean of 0.6."""
    found = Cell(config(tmp_path / "x"), 3, 0.5)
    (found.home / "a_lol").mkdir(parents=True)
    (found.home / "a_lol/advantages.jsonl").write_text("".join(
        json.dumps({"advantage": x}) + "\n" for x in (0.4, -1.0, 0.8, 0.0)))
    return found


def test_all_methods_take_as_many_steps_over_as_many_responses(cell) -> None:
    made = {name: trial(cell, name, method, 1e-3) for name, method in (METHODS | ABLATIONS).items()}
    assert len(made) == len(METHODS) + len(ABLATIONS)
    optimizers = {one.optimizer.to_toml() for one in made.values()}
    assert len(optimizers) == 1 and made["dpo"].optimizer.max_grad_norm is not None
    assert {one.steps for one in made.values()} == {cell.cfg.steps}
    assert {one.seed for one in made.values()} == {3}
    assert {one.policy for one in made.values()} == {cell.reference}
    for one in made.values():
        assert one.batch * (1 if isinstance(one, OfflinePGConfig) else 2) == cell.cfg.batch
    offline_runs = [one for one in made.values() if isinstance(one, OfflinePGConfig)]
    assert {one.responses for one in offline_runs} == {"all"}
    assert len({one.data.to_toml() for one in [*offline_runs, made["dpo"], made["ipo"], made["kto"]]}) == 1
    assert made["dpo_flipped"].data.path.endswith("train-flipped.jsonl")
    assert made["dpo_flipped"].data.validation == made["dpo"].data.validation
    assert len({one.cache for one in offline_runs}) == 1
    assert len({one.out for one in made.values()}) == len(made)


def test_what_a_lol_found_tells_others_how_many_and_how_much(cell) -> None:
    assert trial(cell, "nll_top", METHODS["nll_top"], 1e-3).selection.top_fraction == 0.5
    factors = {"a_lol_kl": 0.1, "kl_0": 0.0, "kl_005": 0.05, "kl_03": 0.3}
    for name, factor in factors.items():
        made = trial(cell, name, (METHODS | ABLATIONS)[name], 1e-3)
        assert made.loss.kl_coef == pytest.approx(factor * 0.6, rel=tol.RELATIVE64)


def test_a_run_of_dpo_begins_as_a_shorter_one_does(cell) -> None:
    whole = trial(cell, "dpo", METHODS["dpo"], 1e-3)
    parts = partial_dpo(cell, 1e-3)
    assert [*parts] == [1, 2, 3]
    for steps, one in parts.items():
        changed = {"out", "steps", "eval_every", "save_every"}
        assert one.steps == steps and one.model_dump(exclude=changed) == whole.model_dump(exclude=changed)
    assert (whole.optimizer.schedule, whole.optimizer.warmup_fraction) == ("constant", 0.0)


def test_a_quarter_has_its_own_reference_and_the_same_examinations(cell) -> None:
    part = Cell(cell.cfg, 3, 0.5, quarter=True)
    made = sft_config(part)
    assert made.data.path == str(cell.world / "quarter-responses.jsonl") and made.out == cell.home / "quarter/sft"
    assert made.data.validation == sft_config(cell).data.validation
    assert trial(part, "nll", METHODS["nll"], 1e-3).policy.path == str(made.out / "model")


def test_rows_hold_every_seed_and_noise_once(tmp_path) -> None:
    cfg = config(tmp_path, seeds=3, first_seed=4)
    assert first_rows(cfg) == ["tuning", "reference 4", "reference 5", "reference 6"]
    assert second_rows(cfg)[:3] == ["4 0.5", "5 0.5", "6 0.5"]
    assert sorted(second_rows(cfg)) == sorted(f"{seed} {noise}" for seed in (4, 5, 6) for noise in NOISES)
    assert TUNING_SEED not in seeds_of(config(tmp_path, seeds=20))


# --- what follows ----------------------------------------------------------------------------------------------------


def test_drops_and_steps() -> None:
    totals = {0: 1.0, 10: 3.0, 20: 2.5, 30: 2.75, 40: 2.0}
    assert worst_drop(totals) == 1.0 and worst_drop({0: 1.0, 10: 1.5}) == 0.0
    assert [steps_to(totals, level) for level in (0.5, 2.9, 3.0, 3.1)] == [0, 10, 10, 50]


def test_answers_to_a_prompt_are_cut_to_the_shortest_of_them() -> None:
    assert cut_alike([["a b c", "d e"], ["f g", "h i j k"]]) == [["a b", "d e"], ["f g", "h i"]]


def numbers(worth: float, **more) -> dict:
    flat = dict.fromkeys((*REWARDS, "words", "greedy", "distinct_1", "distinct_2", "distinct_3", "shift",
                          "even_1", "even_2", "even_3"), worth / 4)
    return flat | {"total": worth, "each": [worth - 0.5, worth + 0.5, worth], "drop": 0.0,
                   "curve": {0: 2.0, 4: worth}} | more


def seed(shift: float = 0.0, noise_cost: float = 1.0, **totals: float) -> dict:
    """Totals of 3, less with noise; A-LoL is above by `shift` and loses only 0.2 of what others do."""
    found = {}
    for noise in NOISES:
        cell = {name: numbers(totals.get(name, 3.0) - noise_cost * noise) for name in (*METHODS, REFERENCE)}
        cell["a_lol"] = numbers(3.0 + shift - 0.2 * noise, beats_mean=True, filter={
            "bad": noise, "dropped": noise, "precision": 0.9 if noise else None, "recall": 0.8 if noise else None})
        found[str(noise)] = cell
    return found


def test_slopes_by_hand() -> None:
    [found] = slopes([seed()], "nll")
    assert found == pytest.approx(-1.0, rel=tol.RELATIVE64)
    assert slopes([seed()], "a_lol") == pytest.approx([-0.2], rel=tol.RELATIVE64)


def verdicts(*seeds: dict) -> list[str]:
    return [judged(claim).verdict for claim in claims(seeds)]


def test_verdicts() -> None:
    yes, no, open_ = "holds", "does not hold", "not settled"
    # Everything is equal but A-LoL, which is above; NLL is best at step 4, where A-LoL is above it too: no fewer.
    assert verdicts(*[seed(shift=0.5)] * 5) == [yes, yes, open_, yes, yes, yes, yes, open_, yes]
    below = seed(shift=-2.0)
    for cell in below.values():
        cell["a_lol"] |= {"drop": 0.3, "filter": {"bad": 0.5, "dropped": 0.2, "precision": 0.1, "recall": 0.1}}
    assert verdicts(*[below] * 8) == [no, no, no, no, no, no, no, open_, no]
    assert verdicts(*[seed(shift=0.5, a_lol_seq=3.1)] * 5)[7] == yes
    assert verdicts(*[seed(shift=0.5)] * 4) == [open_] * 9


def test_efficiency_asks_for_fewer_steps_and_for_less_data() -> None:
    quick = seed(shift=0.5)
    quick["0.5"]["nll"]["curve"], quick["0.5"]["a_lol"]["curve"] = {0: 2.0, 4: 2.1, 8: 2.2}, {0: 2.0, 4: 2.3, 8: 2.4}
    assert verdicts(*[quick] * 5)[2] == "holds"
    for worth, verdict in ((3.0, "holds"), (1.0, "does not hold")):
        quick["0.5"]["quarter_a_lol"] = numbers(worth)
        assert verdicts(*[quick] * 8)[2] == verdict


def test_nested_resampling_keeps_the_mean_and_knows_what_varies(monkeypatch) -> None:
    monkeypatch.setattr(offline_numbers, "N_DRAWS", 2000)
    same = nested(torch.full((3, 4), 0.25, dtype=torch.float64))
    assert same.shape == (2000,) and bool((same == 0.25).all())
    by_seed = nested(torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64))
    assert {*by_seed.tolist()} == {0.0, 0.5, 1.0}  # no, one or two of two seeds
    by_prompt = nested(torch.tensor([[0.0, 1.0]] * 2, dtype=torch.float64))
    assert {*by_prompt.tolist()} == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_planned_comparisons_tables_and_pictures(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(offline_numbers, "N_DRAWS", 500)
    monkeypatch.setitem(inspect.unwrap(bootstrap_interval).__kwdefaults__, "n_resamples", 500)
    found = [seed(shift=0.5), seed(shift=0.4)]
    rows = planned(found)
    assert [(row["one"], row["other"]) for row in rows] == list(PLANNED)
    first = rows[0]
    assert first["seeds"] == pytest.approx([0.9, 0.8]) and first["mean"] == pytest.approx(0.85)
    assert 0.8 - 1e-9 <= first["low"] <= first["high"] <= 0.9 + 1e-9
    assert all(row["p"] <= row["p_holm"] <= 1 for row in rows) and first["p_holm"] > first["p"]
    text = table(found, rows, {"dpo": 5e-4})
    assert "| DPO, beta 0.1 | 0.0005 |" in text and "Ablations" not in text
    assert "| A-LoL minus NLL, continued | 0.850 [0.800, 0.900]" in text
    assert "| 0.0 | 0.000 [0.000, 0.000] | 0.000 [0.000, 0.000] | - | - | 2 of 2 seeds |" in text
    draw_noise(tmp_path / "noise", found)
    draw_components(tmp_path / "components", found)
    assert all((tmp_path / f"{name}.svg").read_text().count("<path") > 20 for name in ("noise", "components"))


# --- the whole -------------------------------------------------------------------------------------------------------


FEW = {name: METHODS[name] for name in ("a_lol", "nll", "r_gold", "dpo")}


class InThisProcess:
    """Stands for a process: does the row before anybody asks."""

    def __init__(self, _: str, out: Path, row: str) -> None:
        self.returncode = row_main([str(out), row], work_in)

    def poll(self) -> int:
        return self.returncode

    def terminate(self) -> None:
        """It has ended already."""

    wait = poll


@pytest.fixture
def few(monkeypatch) -> None:
    for module in (offline, offline_methods, offline_work, offline_numbers, offline_pictures):
        for name, value in (("METHODS", FEW), ("ABLATIONS", {"clip_none": ABLATIONS["clip_none"]}), ("LRS", (1e-3,)),
                            ("NOISES", (0.25, 0.5)), ("N_DRAWS", 500),
                            ("PLANNED", (("a_lol", "nll"), ("a_lol", "dpo")))):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(rows, "started", InThisProcess)
    # A third of the time is spent on them otherwise.
    monkeypatch.setitem(inspect.unwrap(bootstrap_interval).__kwdefaults__, "n_resamples", 20)


def test_the_whole_experiment_in_miniature(tmp_path, few, monkeypatch, capsys) -> None:
    cfg = config(tmp_path / "x")

    def filled(cell: Cell) -> dict:
        """One noise level is run; the methods that are not run at all have the numbers of NLL."""
        found = read_cell(Cell(cell.cfg, cell.seed, 0.5))
        return found | {name: found["nll"] for name in METHODS if name not in found}

    monkeypatch.setattr(offline, "read_cell", filled)
    monkeypatch.setattr(offline_work, "NOISES", (0.5,))
    result = offline.run(cfg)
    [found] = result.values["measured"]
    assert {*found["0.5"]} - {*METHODS} == {REFERENCE, "clip_none", "quarter_reference", "quarter_a_lol", "quarter_nll"}
    home = cfg.out / "seed-0/noise-50"
    asked = [pair.prompt for pair in read_pairs(str(home / "world/test-pairs.jsonl"))[0]]
    for name in ("a_lol", "dpo"):
        told = json.loads((home / name / "exam.json").read_text())
        for part, key in (("sampled", "total"), ("greedy", "greedy")):
            worth = [total(prompt, text) for prompt, text in zip(asked, told[part]["texts"], strict=True)]
            assert found["0.5"][name][key] == pytest.approx(sum(worth) / len(worth), rel=tol.RELATIVE64)
        assert len(told["data"]) == 2 * len(asked) and found["0.5"][name]["shift"] != 0.0
        assert {*found["0.5"][name]["curve"]} == {*"01234"}
    assert found["0.5"][REFERENCE]["shift"] == 0.0
    report = (cfg.out / "report.md").read_text()
    assert "Ablations at noise 0.5, 1 seeds" in report and all((cfg.out / f"{name}.svg").exists() for name in (
        "noise", "components", "effects"))
    capsys.readouterr()


def test_a_row_goes_on_where_it_was(tmp_path, few, monkeypatch) -> None:
    cfg = config(tmp_path / "x", ablations=False)
    offline.write_tokenizer(cfg.out / "tokenizer")
    monkeypatch.setattr(offline_work, "METHODS", {"a_lol": FEW["a_lol"], "dpo": FEW["dpo"]})
    work(cfg, "tuning")
    home = cfg.out / f"seed-{TUNING_SEED}/noise-50"
    before = {file: file.read_bytes() for name in ("sft", "a_lol", "dpo-0.001") for file in (
        home / name / "metrics.jsonl", home / name / "model/model.safetensors")}
    stamps = {file: file.stat().st_mtime_ns for file in before}
    exam = (home / "dpo-0.001/exam.json").read_bytes()
    # As after a kill: the last run had not ended, and nothing had been examined or chosen.
    for name in ("dpo-0.001/result.json", "dpo-0.001/exam.json"):
        (home / name).unlink()
    (cfg.out / "learning_rates.json").unlink()
    work(cfg, "tuning")
    again = {file for file, stamp in stamps.items() if file.stat().st_mtime_ns != stamp}
    assert again == {file for file in before if "dpo-0.001" in str(file)}
    assert {file: file.read_bytes() for file in before} == before
    assert (home / "dpo-0.001/exam.json").read_bytes() == exam
    assert json.loads((cfg.out / "learning_rates.json").read_text())["chosen"] == {"a_lol": 1e-3, "dpo": 1e-3}
    assert not (home / "dpo-0.001/checkpoints").exists() and not (home / "a_lol/best").exists()


def test_a_failed_row_is_reported_with_its_log(tmp_path, few, monkeypatch, capsys) -> None:
    cfg = config(tmp_path / "x")

    class Failed(InThisProcess):
        def __init__(self, _: str, out: Path, row: str) -> None:
            rows.log_of(out, row).write_text("DataError: no such file")
            self.returncode = row_main([str(out), "0 0.5"], work_in)

    monkeypatch.setattr(rows, "started", Failed)

    def broken(cfg: OfflineTrialConfig, row: str) -> None:
        raise RunError("something is wrong with it", where=row)

    monkeypatch.setattr(offline_work, "work", broken)
    with pytest.raises(RunError, match=r"the work of 'tuning' ended with exit code 3: DataError: no such file") as told:
        offline.run(cfg)
    assert "rows/tuning.log" in str(told.value) and "same command again" in str(told.value)
    assert "something is wrong with it" in capsys.readouterr().err
