"""The presets of keel group-ppo: PPO-max as its report describes it, with groups, in our form and in the paper's."""

import pytest
import tiny
from recipes.running import brief, logged

from keel.config import PRESETS, read_toml
from keel.recipes import group_ppo
from keel.train.inputs import prompt_room

PRESETS_OF_GROUPS = sorted(path.stem for path in PRESETS.glob("*.toml") if "groups" in read_toml(path))
NEEDED = {"out": "o", "policy": "p", "reward_model": "r", "prompts": "q"}


def resolved(preset: str, **more: str) -> group_ppo.GroupPPOConfig:
    return group_ppo.GroupPPOConfig.resolve(PRESETS / f"{preset}.toml", NEEDED | more)


def test_there_are_two():
    assert PRESETS_OF_GROUPS == ["group_ppo", "group_ppo_paper"]


@pytest.mark.parametrize("preset", PRESETS_OF_GROUPS)
def test_but_for_its_groups_a_preset_is_ppo_max(preset):
    settings, ppo_max = (read_toml(PRESETS / f"{name}.toml") for name in (preset, "ppo_max_report"))
    assert {name: value for name, value in settings.items() if name != "groups"} == ppo_max
    cfg = resolved(preset)
    assert prompt_room(cfg.prompts, cfg.sampling.max_new_tokens) == 2048 - 512


def test_ours_has_the_defaults_of_the_groups():
    assert resolved("group_ppo").groups == group_ppo.GroupConfig()


def test_the_papers_form_has_no_floors_and_one_loss():
    groups = resolved("group_ppo_paper").groups
    assert groups == group_ppo.GroupConfig(kl_floor=0.0, floor_coef=0.0, critic_coef=1.0)
    assert (groups.n, groups.level, groups.objective, groups.variance, groups.kl, groups.kl_renorm) == (
        2, "trajectory", "variance", "plain", "adaptive", False)


@pytest.mark.parametrize("preset", PRESETS_OF_GROUPS)
def test_a_preset_runs(tmp_path, preset):
    """A phase in which its groups act, with its number of responses; lengths are cut to what the tiny model holds."""
    cfg = brief(tmp_path)
    group_ppo.run(resolved(
        preset, out=str(tmp_path / "run"), policy=cfg.policy.path, reward_model=cfg.reward_model.path,
        **{"prompts.path": str(tiny.prompts(tmp_path / "prompts.jsonl", 40)), "prompts.max_length": "64",
           "sampling.max_new_tokens": "8", "steps": "1", "n_samples": "2", "eval_prompts": "2",
           "critic.pretrain": "1", "groups.warmup": "0", "groups.ramp_fraction": "0"}))
    [row] = logged(tmp_path / "run")
    assert row["groups/coef"] == resolved(preset).groups.coef
    assert (tmp_path / "run/groups.json").exists()
