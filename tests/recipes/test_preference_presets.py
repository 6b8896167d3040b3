"""The presets of keel preference: named after their loss, complete, and able to learn."""

from pathlib import Path

import pytest
import tiny
from recipes.running import logged
from recipes.test_preference_labelled import labelled_file

from keel import cli
from keel.config import PRESETS, read_toml
from keel.recipes import preference
from keel.recipes.preference import PreferenceConfig

NAMES = ("cpo", "dpo", "ipo", "kto", "orpo", "simpo")
NEEDED = {"out": "o", "policy": "p", "data": "d"}


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_needs_nothing_but_model_and_data(name):
    cfg = PreferenceConfig.resolve(PRESETS / f"{name}.toml", NEEDED)
    assert cfg.loss.split("_")[0] == name and cfg.beta == cfg.reward_per_nat


def test_what_the_papers_say():
    """beta, learning rate, batch; and what only one of them has."""
    told = {name: PreferenceConfig.resolve(PRESETS / f"{name}.toml", NEEDED) for name in NAMES}
    assert {name: (cfg.beta, cfg.optimizer.lr, cfg.batch) for name, cfg in told.items()} == {
        "cpo": (0.1, 1e-4, 128), "dpo": (0.1, 1e-6, 64), "ipo": (0.1, 1e-6, 64), "kto": (0.1, 5e-6, 32),
        "orpo": (0.1, 5e-6, 32), "simpo": (2.0, 6e-7, 128)}
    assert told["simpo"].gamma == 1.0 and told["orpo"].epochs == 5 and told["orpo"].nll_weight == 1
    assert told["cpo"].policy.lora.rank == 16 and told["cpo"].nll_weight == 1
    assert (told["kto"].desirable_weight, told["kto"].undesirable_weight) == (1, 1)


def test_help_lists_them(capsys):
    cli.main(["preference", "--help"])
    listed = capsys.readouterr().out.split("presets: ")[1].split("\n")[0].split(", ")
    assert set(NAMES) <= set(listed)


def test_every_preset_is_loaded_by_some_test():
    own = {path.stem for path in PRESETS.glob("*.toml")
           if "beta" in read_toml(path) and read_toml(path).keys() <= set(PreferenceConfig.model_fields)}
    assert own == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_runs(tmp_path, name):
    """Two steps of it on the tiny model, with its batch; lengths are cut to what the model holds."""
    data = labelled_file(tmp_path) if name == "kto" else tiny.pairs(tmp_path / "pairs.jsonl", 24)
    cfg = PreferenceConfig.resolve(PRESETS / f"{name}.toml", {
        "out": str(tmp_path / "run"), "policy": str(tiny.llama(tmp_path / "m")), "data": str(data),
        "data.max_length": "64", "data.validation_fraction": "0", "steps": "2", "n_samples": "0"})
    preference.run(cfg)
    rows = logged(tmp_path / "run")
    assert len(rows) == 2 and rows[1]["lr"] <= cfg.optimizer.lr and Path(tmp_path / "run/model").exists()
