"""The ablation: one change at a time, and its verdicts, table and pictures on logs that were made up."""

from pathlib import Path

import pytest
from experimenting import SIZE, TOWN, course, write_run

from keel.errors import ConfigError
from keel.experiments import ablate_ppo, town
from keel.experiments.ablate_ppo import NAMES, AblatePPOConfig, claims, kinds_of, p_values, run
from keel.experiments.courses import Course
from keel.experiments.town import PPOSize, ppo_settings, with_changes
from keel.experiments.trial import judged
from keel.recipes.ppo import PPOConfig

SIZES = PPOSize(phases=8, rollouts=4, minibatch=2, eval_every=4, eval_prompts=4, max_new_tokens=8)


def settings(kind: str) -> PPOConfig:
    changes = kinds_of(SIZES)[kind]
    whole = ppo_settings(SIZES, Path("town"), Path("seed-0") / kind, changes["preset"], 0)
    return PPOConfig.checked(with_changes(whole, {name: x for name, x in changes.items() if name != "preset"}))


def differing(kind: str) -> set[str]:
    """Dotted names of the settings in which a kind differs from the complete method."""
    one, other = settings("complete").model_dump(), settings(kind).model_dump()
    found = set()
    for name in one.keys() - {"out"}:
        if isinstance(one[name], dict) and isinstance(other[name], dict):
            found |= {f"{name}.{field}" for field in one[name] if one[name][field] != other[name][field]}
        elif one[name] != other[name]:
            found.add(name)
    return found


@pytest.mark.parametrize("kind, changed", [
    ("complete", set()), ("no_kl", {"kl.coef"}), ("no_score_processing", {"score.center", "score.scale", "score.clip"}),
    ("scaling_only", {"score.center", "score.clip"}), ("no_pretraining", {"critic.pretrain"}),
    ("critic_from_policy", {"critic.init"}), ("no_value_clip", {"loss.value_clip"}),
    ("no_surrogate_clip", {"loss.clip"}), ("no_ptx", {"ptx", "ptx_coef"}),
    ("large_buffer", {"rollouts", "steps", "eval_every", "critic.pretrain"}),
    ("advantages_normalised", {"advantage.normalise", "advantage.clip"}),
    ("vanilla", {"kl.coef", "score.center", "score.scale", "score.clip", "loss.value_clip", "critic.pretrain", "ptx",
                 "ptx_coef"})])
def test_one_thing_is_changed_at_a_time(kind: str, changed: set[str]) -> None:
    assert differing(kind) == changed


def test_every_kind_has_a_name_and_sees_as_much() -> None:
    assert list(kinds_of(SIZES)) == list(NAMES)
    for kind in NAMES:
        config = settings(kind)
        assert config.steps * config.rollouts == SIZES.phases * SIZES.rollouts
        assert config.steps * config.updates == SIZES.phases * SIZES.rollouts // SIZES.minibatch


def test_phases_must_fit_the_large_buffer() -> None:
    said = r"ppo.phases=6 and ppo.eval_every=4 must be multiples of 4: one run's buffer"
    with pytest.raises(ConfigError, match=said):
        AblatePPOConfig.checked({"ppo": {"phases": 6, "eval_every": 4}})


def courses(n_seeds: int = 5, **end: float) -> dict[str, list[Course]]:
    """Equal seeds of every kind, with gold 0.0 at the start and, unless given, 0.2 at the end."""
    drift = {"no_kl": 0.3, "vanilla": 0.8}
    return {kind: [course(gold=(0.0, 0.2, end.get(kind, 0.2)), kl=(0, 0.1, drift.get(kind, 0.1)))] * n_seeds
            for kind in NAMES}


def verdicts(n_seeds: int = 5, **end: float) -> list[str]:
    return [judged(claim).verdict for claim in claims(courses(n_seeds, **end))]


def test_verdicts_that_hold() -> None:
    assert verdicts(no_kl=-0.5, vanilla=-0.9) == ["holds"] * 3
    assert verdicts(no_kl=0.1, vanilla=0.0) == ["holds"] * 3  # by little, but in every seed
    assert verdicts(no_kl=-0.5, vanilla=-0.9, no_ptx=-0.04)[1] == "holds"  # not below the start by more than 0.05


def test_verdicts_that_do_not_hold() -> None:
    # Ten comparisons are held against ten times p: it takes more than five seeds to refute them.
    assert verdicts(10, no_kl=0.3, no_ptx=-0.1, vanilla=0.4) == ["does not hold"] * 3
    assert verdicts(10, no_kl=-0.5, no_ptx=-0.6, vanilla=-0.9) == ["does not hold", "does not hold", "holds"]
    assert verdicts(5, no_kl=0.3, no_ptx=-0.1, vanilla=0.4) == ["not settled"] * 3
    mild = courses(10, no_kl=-0.5, vanilla=-0.9)
    mild["vanilla"] = [course(gold=(0.0, 0.2, -0.9), kl=(0, 0.1, 0.2))] * 10  # less gold, but nearer to its start
    assert judged(claims(mild)[2]).verdict == "does not hold"


def test_seeds_that_disagree_settle_nothing() -> None:
    mixed = courses(no_kl=-0.5, vanilla=-0.9)
    mixed["no_ptx"][4:] = [course(gold=(0.0, 0.2, -0.6))]
    mixed["vanilla"][:1] = [course(gold=(0.0, 0.2, -0.4))]
    assert [judged(claim).verdict for claim in claims(mixed)] == ["not settled"] * 3


def test_p_is_corrected_for_all_changes_at_once() -> None:
    # Five seeds of one sign: 2/32, however many other changes there are. One seed of five against: 12/32.
    found = p_values({"a": [-0.5, -0.6, -0.7, -0.5, -0.4], "b": [0.1, 0.1, 0.1, 0.1, -0.1], "c": [0.0] * 5})
    assert found == {"a": 2 / 32, "b": 12 / 32, "c": 1.0}


def test_from_logs_to_verdict(tmp_path: Path, monkeypatch, capsys) -> None:
    ends = {"no_kl": -0.4, "no_ptx": 0.1, "vanilla": -0.8}
    asked = {}

    def pretend(folder: Path, title: str, stages: dict, *, again: str, jobs: int, tidy: bool) -> None:
        asked.update(stages)
        for config in stages.values():
            gold = [0.0, 0.25, ends.get(config.out.name, 0.2) + 0.01 * config.seed]
            write_run(config.out, gold, rollouts=getattr(config, "rollouts", 64))

    monkeypatch.setattr(town, "side_by_side", pretend)
    cfg = AblatePPOConfig(out=tmp_path / "ablate", seeds=5, town=TOWN, ppo=SIZE.model_copy(update={
        "phases": 8, "eval_every": 4}))
    result = run(cfg)
    assert len(asked) == 5 * (2 + len(NAMES))
    assert [row["verdict"] for row in result.values["findings"]] == ["holds", "holds", "not settled"]  # equal drift
    assert result.values["p"]["no_kl"] == 2 / 32
    rows = (cfg.out / "table.md").read_text().splitlines()
    assert rows[2].startswith("| complete | 0.220 [")
    assert rows[2].split(" | ")[2:4] == ["", ""]
    assert rows[3].startswith("| no KL price | -0.380 [")
    assert rows[3].split(" | ")[2] == "-0.600 [-0.600, -0.600]"
    for name in ("plot.png", "plot.svg", "effects.png", "effects.svg", "report.md"):
        assert (cfg.out / name).stat().st_size > 0
    assert "![Ablation of PPO-max](effects.svg)" in (cfg.out / "report.md").read_text()
    assert ablate_ppo.NAMES["large_buffer"] in (cfg.out / "report.md").read_text()
    assert "**holds**: The KL price is the lever" in capsys.readouterr().out
