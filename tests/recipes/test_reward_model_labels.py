"""What `keel reward-model` does with labels that an ensemble doubts, and how it examines what came out."""

import json

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import FAST, logged, reward_config

from keel.config import PRESETS
from keel.errors import ConfigError
from keel.models.load import ModelConfig, scalar_model
from keel.recipes import reward_model
from keel.recipes.reward_model import ExamConfig, RewardModelConfig
from keel.train.denoise import DenoiseConfig
from keel.train.inputs import DataConfig


def judged_pairs(tmp_path, *, doubted: int) -> DataConfig:
    """24 pairs with right labels and strength 1, but for the first few, which are wrong with strength -1."""
    rows = []
    for i, prompt in enumerate(tiny.conversations(24)):
        sides = [tiny.said("yes please ."), tiny.said("no .")]
        wrong = i < doubted
        rows.append({"id": f"p{i}", "prompt": prompt, "chosen": sides[wrong], "rejected": sides[not wrong],
                     "strength_mean": -1.0 if wrong else 1.0 + i / 100, "strength_std": 0.5,
                     "meta": {"domain": "ab"[i % 2]}})
    file = tiny.write_rows(tmp_path / "judged.jsonl", rows)
    return DataConfig(path=str(file), validation_fraction=0.0, max_length=64)


def weights_of(folder) -> torch.Tensor:
    model = scalar_model(ModelConfig(path=str(folder / "model")))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_flipped_pairs_are_learned_the_other_way_round(tmp_path):
    clean = judged_pairs(tmp_path, doubted=0)
    cfg = reward_config(tmp_path, data=clean, out=tmp_path / "clean")
    reward_model.run(cfg)
    (tmp_path / "judged.jsonl").rename(tmp_path / "was.jsonl")
    noisy = judged_pairs(tmp_path, doubted=6)
    flipped = cfg.model_copy(update={"data": noisy, "out": tmp_path / "flipped",
                                     "denoise": DenoiseConfig(flip_below=0.0)})
    result = reward_model.run(flipped)
    assert result.values["denoised"] == {"flip": 6, "soft label": 0, "margin": 0, "drop": 0}
    assert torch.equal(weights_of(tmp_path / "clean"), weights_of(tmp_path / "flipped"))


def test_margins_and_soft_labels_reach_the_loss(tmp_path):
    data = judged_pairs(tmp_path, doubted=6)
    first = {}
    for name, how in (("plain", {}), ("margin", {"margin": 2.0}), ("soft", {"smooth": 0.2, "smooth_where": "all"})):
        cfg = reward_config(tmp_path, data=data, out=tmp_path / name, batch=24, steps=1, denoise=DenoiseConfig(**how))
        reward_model.run(cfg)
        first[name] = logged(tmp_path / name)[0]
    assert first["margin"]["loss"] > first["plain"]["loss"]  # most are asked for a gap of 2
    assert first["margin"]["accuracy"] == first["plain"]["accuracy"]  # without the margin
    assert first["soft"]["grad_norm"] < first["plain"]["grad_norm"]


def test_exams_say_how_right_the_model_is_and_where(tmp_path):
    (tmp_path / "train").mkdir()
    data = judged_pairs(tmp_path / "train", doubted=0)
    seen = judged_pairs(tmp_path, doubted=4)
    cfg = reward_config(tmp_path, data=data, steps=40, exams=(ExamConfig(name="doubted", path=seen.path),))
    exam = reward_model.run(cfg).values["exams"]["doubted"]
    assert exam["accuracy"]["mean"] == pytest.approx(20 / 24, rel=tol.RELATIVE64)
    assert exam["views"]["relabelled"]["mean"] == 1.0 and exam["views"]["without_suspects"]["n"] == 20
    assert exam["subsets"]["domain"]["a"]["n"] == 12 and exam["longer_wins"]["mean"] == 20 / 24
    assert str(tmp_path / "judged.jsonl") in json.loads((tmp_path / "rm/environment.json").read_text())["data"]


def test_a_shared_prompt_changes_nothing_but_the_time(tmp_path):
    for how in ("never", "always"):
        reward_model.run(reward_config(tmp_path, out=tmp_path / how, shared_prompt=how, lm_coef=0.3))
    for a, b in zip(logged(tmp_path / "never"), logged(tmp_path / "always"), strict=True):
        for key in ("loss", "accuracy", "margin", "grad_norm", "lm/loss"):
            assert a[key] == pytest.approx(b[key], **tol.MICRO_BATCHES)


def test_the_released_codes_loss_is_there_for_parity(tmp_path):
    cfg = reward_config(tmp_path, steps=1, optimizer=FAST)
    reward_model.run(cfg.model_copy(update={"loss": "eps_sigmoid"}))
    row = logged(tmp_path / "rm")[0]
    reward_model.run(cfg.model_copy(update={"out": tmp_path / "bt"}))
    plain = logged(tmp_path / "bt")[0]
    assert row["accuracy"] == plain["accuracy"]
    assert 0 < plain["loss"] - row["loss"] < 1e-4  # the gaps of a new head are small, where 1e-5 hardly matters
    with pytest.raises(ConfigError, match="24 pairs have a margin or a soft label"):
        reward_model.run(reward_config(tmp_path, out=tmp_path / "no", data=judged_pairs(tmp_path, doubted=0),
                                       loss="eps_sigmoid", denoise=DenoiseConfig(margin=1.0)))


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("rm_*.toml")))
def test_presets_of_the_report_run(tmp_path, name):
    changes = {"out": tmp_path / name, "model.path": str(tiny.llama(tmp_path / "m")), "steps": "1", "batch": "4",
               "data.path": judged_pairs(tmp_path, doubted=6).path, "data.validation_fraction": "0",
               "data.max_length": "64"}
    cfg = RewardModelConfig.resolve(PRESETS / f"{name}.toml", changes)
    found = reward_model.run(cfg).values["denoised"]
    assert found["flip"] == (2 if "flip" in name else 0)  # a tenth of 24
    assert found["margin"] == (24 if "margin" in name else 0) and found["soft label"] == (6 if "soft" in name else 0)
