"""A contrastive term in `keel reward-model`: two views, one step, the same bits after a kill."""

import pytest
import tiny
import tolerances as tol
from recipes.running import killed_and_resumed, logged, reward_config, same_results

from keel.errors import ConfigError, ModelError
from keel.models import views
from keel.models.load import ModelConfig
from keel.recipes import reward_model
from keel.recipes.reward_model import RewardModelConfig
from keel.train.contrast import ContrastiveConfig

TERMS = [(kind, on) for kind in ("simcse", "swav") for on in ("pairs", "differences")]


@pytest.mark.parametrize("kind, on", TERMS)
def test_every_term_trains_and_says_what_it_does(tmp_path, kind, on):
    cfg = reward_config(tmp_path, steps=12, contrastive=ContrastiveConfig(kind=kind, on=on, coef=0.1))
    assert reward_model.run(cfg).values["status"] == "finished"
    rows = logged(tmp_path / "rm")
    assert all(0 <= row["contrastive/found"] <= 1 and row["contrastive/loss"] >= 0 for row in rows)
    assert ("contrastive/usage" in rows[0]) == (kind == "swav")
    assert rows[-1]["contrastive/loss"] < rows[0]["contrastive/loss"]


def test_the_term_is_added_to_the_mean_of_both_views(tmp_path):
    """With noise on the features alone the views share one pass: two of them with micro-batches are as one without."""
    for name, micro in (("one", 10_000), ("many", 40)):
        reward_model.run(reward_config(tmp_path, out=tmp_path / name, micro_tokens=micro, steps=1, contrastive=(
            ContrastiveConfig(dropout=0.001, dropout_in="features"))))
    plain = reward_config(tmp_path, out=tmp_path / "plain", steps=1)
    reward_model.run(plain)
    one, many, without = (logged(tmp_path / name)[0] for name in ("one", "many", "plain"))
    assert one["accuracy"] == many["accuracy"] == without["accuracy"]
    assert one["grad_norm"] > without["grad_norm"]  # the term has a gradient of its own
    assert one["loss"] == pytest.approx(without["loss"], rel=tol.GRADIENT32["rtol"])


def test_seeds_change_the_views_and_nothing_else_does(tmp_path):
    def losses(name: str, seed: int) -> list[float]:
        cfg = reward_config(tmp_path, out=tmp_path / name, steps=2, seed=seed, contrastive=ContrastiveConfig())
        reward_model.run(cfg)
        return [row["contrastive/loss"] for row in logged(tmp_path / name)]

    assert losses("a", 0) == losses("b", 0) != losses("c", 1)


def test_frozen_prototypes_wait(tmp_path):
    def prototypes(name: str, freeze: int) -> list[float]:
        how = ContrastiveConfig(kind="swav", prototypes=3, freeze_prototypes=freeze)
        reward_model.run(reward_config(tmp_path, out=tmp_path / name, steps=2, contrastive=how))
        return [row["contrastive/loss"] for row in logged(tmp_path / name)]

    free, frozen = prototypes("free", 0), prototypes("frozen", 1)
    assert free[0] == frozen[0] and free[1] != frozen[1]


def test_an_encoder_has_dropout_of_its_own(tmp_path):
    spec = ModelConfig(path=str(tiny.bert(tmp_path / "bert")))
    cfg = reward_config(tmp_path, model=spec, contrastive=ContrastiveConfig(dropout=0.3), steps=1)
    assert reward_model.run(cfg).values["status"] == "finished"


def test_without_noise_there_are_no_two_views(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"contrastive\.dropout = .*greater than 0"):
        RewardModelConfig.resolve(None, {"out": tmp_path / "rm", "model.path": "m", "data.path": "d",
                                         "contrastive.dropout": "0"})
    bare = str(tiny.llama(tmp_path / "bare"))
    cfg = reward_config(tmp_path, model=ModelConfig(path=bare), contrastive=ContrastiveConfig())
    monkeypatch.setattr(views, "_rates", lambda module: [])
    with pytest.raises(ModelError, match="no dropout anywhere, so both views would be the same"):
        reward_model.run(cfg)


def test_killed_run_resumes_to_the_same_bytes(tmp_path):
    how = ContrastiveConfig(kind="swav", prototypes=4, queue=20, freeze_prototypes=2)
    whole = reward_config(tmp_path, steps=24, save_every=3, contrastive=how, micro_tokens=60)
    reward_model.run(whole)
    killed_and_resumed("reward-model", whole.model_copy(update={"out": tmp_path / "killed"}), [0.1])
    same_results(tmp_path / "rm", tmp_path / "killed")
