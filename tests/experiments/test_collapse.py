"""Collapse: each claim's verdict on made-up courses, and the whole experiment in miniature."""

import json
from pathlib import Path

import pytest
from experimenting import InThisProcess, collapse_config, course

from keel.errors import RunError
from keel.experiments import stages
from keel.experiments.collapse import KINDS, claims, run, table
from keel.experiments.courses import Course
from keel.experiments.pictures import draw_courses
from keel.experiments.town import ppo_settings
from keel.experiments.trial import judged
from keel.recipes.ppo import PPOConfig

HEALTHY = course(gold=(0.0, 0.2, 0.2), score=(0, 0.5, 0.5))
COLLAPSED = course(gold=(0.0, 0.1, -0.5), score=(0, 1, 2), kl=(0, 0.2, 0.8), length=(20, 40, 63),
                   phases={"kl": (0.1, 0.2, 0.4, 0.8), "length": (20.0, 30.0, 50.0, 63.0), "cut": (0.0, 0.1, 0.5, 0.9)})


def verdicts(vanilla: list[Course], ours: list[Course]) -> list[str]:
    return [judged(claim).verdict for claim in claims({"vanilla": vanilla, "ppo_max": ours}, limit=64)]


def test_the_report_confirmed() -> None:
    assert verdicts([COLLAPSED] * 5, [HEALTHY] * 5) == ["holds"] * 6


def test_the_report_refuted() -> None:
    # Seven seeds: claims of two comparisons cannot be refuted by five.
    returning = course(gold=(0.0, 0.2, 0.2), score=(0, 0.5, 0.5), phases={"kl": (0.1, 0.2, 0.1, 0.1)})
    assert verdicts([returning] * 7, [COLLAPSED] * 7) == ["does not hold"] * 6
    assert verdicts([returning] * 5, [COLLAPSED] * 5) == ["not settled", *["does not hold"] * 4, "not settled"]


def test_seeds_that_disagree_settle_nothing() -> None:
    mixed = [COLLAPSED, COLLAPSED, COLLAPSED, COLLAPSED, HEALTHY]
    assert verdicts(mixed, [HEALTHY] * 4 + [COLLAPSED]) == ["not settled"] * 6


def test_what_counts_as_a_fall() -> None:
    runs = [course(gold=(0.0, 0.1, -0.01)), course(gold=(0.0, 0.5, 0.25)), course(gold=(0.0, 0.5, 0.35))]
    over_optimises, *_ = claims({"vanilla": runs, "ppo_max": [HEALTHY] * 3}, limit=64)
    below = next(values for what, values in over_optimises.comparisons.items() if what.startswith("gold"))
    # Below the start by 0.01; above it but 0.25 below the best; 0.15 below the best, which is not far.
    assert [x > 0 for x in below] == [True, True, False]


def test_a_small_loss_is_not_below_the_start() -> None:
    assert verdicts([COLLAPSED] * 5, [course(gold=(0.1, 0.1, 0.06))] * 5)[3] == "holds"
    assert verdicts([COLLAPSED] * 5, [course(gold=(0.1, 0.1, 0.04))] * 5)[3] == "does not hold"


@pytest.mark.parametrize("late", [{"kl": (0.1, 0.1, 0.1, 0.13)}, {"kl": (0.1, 0.1, 0.1, 0.07)},
                                  {"length": (20.0, 20.0, 20.0, 22.5)}])
def test_flat_means_neither_up_nor_down(late: dict) -> None:
    moving = course(gold=(0.0, 0.2, 0.2), phases=late)
    assert verdicts([COLLAPSED] * 7, [moving] * 7)[5] == "does not hold"


def test_the_table_has_a_row_for_each_kind() -> None:
    lines = table({"vanilla PPO": [COLLAPSED] * 2, "PPO-max": [HEALTHY] * 2}).splitlines()
    assert lines[2].startswith("| vanilla PPO | 0.000 [0.000, 0.000] | 2.000")
    assert "| 63.0 [63.0, 63.0] | 0.90 [0.90, 0.90] |" in lines[2]
    assert lines[3].startswith("| PPO-max |")


def test_the_switches_are_those_of_the_presets(tmp_path: Path) -> None:
    cfg = collapse_config(tmp_path)
    vanilla, ours = (PPOConfig.checked(ppo_settings(cfg.ppo, tmp_path / "town", tmp_path / "seed-0/ppo",
                                                    kind["preset"], 0)) for kind in KINDS.values())
    assert (vanilla.kl.coef, vanilla.score.scale, vanilla.loss.value_clip) == (0, None, None)
    assert (ours.kl.coef, ours.score.center, ours.score.clip, ours.loss.value_clip) == (0.2, True, 10.0, 0.2)
    assert vanilla.ptx is None and ours.ptx is not None
    same = ("steps", "rollouts", "minibatch", "sampling", "policy_optimizer", "critic_optimizer", "seed", "policy")
    assert [getattr(vanilla, name) for name in same] == [getattr(ours, name) for name in same]
    assert not ours.sampling.filtered and ours.sampling.temperature == 1


def test_the_same_numbers_draw_the_same_picture(tmp_path: Path) -> None:
    kinds = {"vanilla PPO": [COLLAPSED, HEALTHY], "PPO-max": [HEALTHY] * 2, "another": [HEALTHY] * 2}
    for name in ("one", "two"):
        draw_courses(tmp_path / name, kinds, named=["vanilla PPO", "PPO-max"], others="others", limit=64)
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert "<dc:date>" not in (tmp_path / "one.svg").read_text()


def test_from_the_town_to_the_verdict_interrupted_in_the_middle(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(stages.subprocess, "Popen", InThisProcess)
    cfg = collapse_config(tmp_path / "collapse")
    begin = stages.started

    def interrupted(folder: Path, name: str, config: object) -> object:
        if name == "seed-0/ppo_max":
            raise KeyboardInterrupt
        return begin(folder, name, config)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(stages, "started", interrupted)
        run(cfg)
    assert json.loads((cfg.out / "result.json").read_text())["status"] == "failed"
    done = {path: path.stat().st_mtime_ns for path in sorted(cfg.out.glob("seed-0/*/result.json"))}
    assert len(done) == 3

    result = run(cfg)
    assert result.values["status"] == "finished"
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert [row["verdict"] for row in result.values["findings"]] == ["not settled"] * 6  # one seed
    found = result.values["courses"]["ppo_max"][0]
    assert found["updates"] == [0, 2, 4]
    assert len(found["measured"]["gold"]) == 3
    for name in ("table.md", "report.md", "plot.png", "plot.svg"):
        assert (cfg.out / name).stat().st_size > 0
    assert "**not settled**: PPO-max ends with more gold" in capsys.readouterr().out
    with pytest.raises(RunError, match="this folder already holds a run"):
        run(cfg)
