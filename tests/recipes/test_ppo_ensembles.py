"""`keel ppo` against an ensemble: LoRA reward models on one trunk, brought to one scale, and their disagreement."""

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import brief, killed_here, logged, same_results, watched

from keel.errors import RunError
from keel.models.forward import response_scores
from keel.models.load import ModelConfig, load_tokenizer, save_model, scalar_model
from keel.models.lora import LoraSettings
from keel.recipes import ppo
from keel.report.glossary import describe


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The policy, two LoRA reward models on it (the second on another scale), and pairs to calibrate them on."""
    home = tmp_path_factory.mktemp("home")
    source = brief(home).policy.path
    for seed in (1, 2):
        model = scalar_model(ModelConfig(path=source, lora=LoraSettings(rank=2)), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5 * seed)
        save_model(model, load_tokenizer(source), home / f"rm{seed}", pad_id=0)
    tiny.pairs(home / "pairs.jsonl")
    return home


def ensemble(home, out, **changes):
    reward = {"name": "both", "models": [brief(home).policy.path], "combine": "minimum",
              "adapters": [str(home / f"rm{seed}/adapter") for seed in (1, 2)],
              "calibration": str(home / "pairs.jsonl")}
    settings = {"out": out, "reward_model": None, "steps": 2, "critic": {"pretrain": 0, "init": "policy"},
                "save_every": 1, "rewards": [reward | changes.pop("reward", {})]}
    return brief(home, **(settings | changes))


def test_the_policy_is_paid_by_the_least_of_the_calibrated_members(home, tmp_path, monkeypatch):
    """Raw scores of the merged models, in units of the means and stds that the result names."""
    seen, cfg = watched(monkeypatch), ensemble(home, tmp_path / "run")
    result, rows = ppo.run(cfg).values, logged(tmp_path / "run")
    scale = result["calibration"]["both"]
    assert len(scale["mean"]) == len(scale["std"]) == 2
    assert not any("calibration" in note for note in result["notes"])
    for phase, row in zip(seen.phases, rows, strict=True):
        with torch.no_grad():
            raw = torch.stack([response_scores(scalar_model(ModelConfig(path=str(home / f"rm{seed}"))),
                                               phase.rollout.tokens) for seed in (1, 2)])
        members = (raw - torch.tensor(scale["mean"])[:, None]) / torch.tensor(scale["std"])[:, None]
        torch.testing.assert_close(phase.scored.raw["both"], members.min(0).values, **tol.GRADIENT32)
        spread = float((members[0] - members[1]).abs().mean()) / 2
        assert row["score/both/disagreement"] == pytest.approx(spread, rel=tol.GRADIENT32["rtol"])
    assert "lie apart" in describe("score/both/disagreement").meaning


def test_a_killed_run_goes_on_in_the_same_units(home, tmp_path):
    ppo.run(ensemble(home, tmp_path / "straight"))
    killed_here(ensemble(home, tmp_path / "killed"), [("log", 2)])
    same_results(tmp_path / "straight", tmp_path / "killed")
    assert len(logged(tmp_path / "killed")) == 2


def test_other_responses_to_calibrate_on_are_refused_on_the_way(home, tmp_path):
    file = tiny.pairs(tmp_path / "pairs.jsonl")
    cfg = ensemble(home, tmp_path / "run", reward={"calibration": str(file)})
    ppo.run(cfg)
    tiny.pairs(file, 20)
    with pytest.raises(RunError, match=r"pairs\.jsonl"):
        ppo.run(cfg, resume=True)


def test_members_on_scales_of_their_own_are_noted(home, tmp_path):
    result = ppo.run(ensemble(home, tmp_path / "run", steps=1, reward={"calibration": None})).values
    assert any("reward 'both' has combine='minimum' without calibration" in note for note in result["notes"])
    assert result["calibration"] == {}
