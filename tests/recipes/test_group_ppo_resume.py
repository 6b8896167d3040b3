"""What a group-PPO run remembers over kill -9 and the way back: the head, its optimiser, averages, order, weights."""

import json

import pytest
import torch
from recipes.running import group_ppo_config, killed_here, logged, same_results

from keel.cli import main
from keel.online import close
from keel.recipes import group_ppo
from keel.train import alarms


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Models and files that the tests of this module share; each run has a folder of its own."""
    return tmp_path_factory.mktemp("home")


HELD = {"steps": 5, "save_every": 2, "critic": {"pretrain": 2, "pretrain_until": 1.0}}
SWAPPING = {"warmup": 1, "lr": 0.3, "ema_decay": 0.0, "ema_slack": 0.0}
"""Every phase's returns order the groups anew, and the head changes its mind."""

RUNS = {
    "inferred": {"groups": SWAPPING | {"n": 3}},
    "the critic's body too": {"groups": SWAPPING | {"critic_coef": 0.5, "level": "prompt", "kl_renorm": True}},
    "dro": {"groups": SWAPPING | {"objective": "dro", "dro_step": 2.0, "source": "known"}},
    "ratio": {"groups": SWAPPING | {"estimator": "ratio"}, "kl": {"coef": 0.1, "target": 1e-3, "horizon": 40}},
    "no critic": {"groups": SWAPPING | {"source": "known", "objective": "vrex"}, "critic": {"pretrain": 0},
                  "advantage": {"estimator": "rloo", "group": 2}},
}


def settings(home, out, name, **changes):
    held = group_ppo_config(home).prompts.model_copy(update={"validation_fraction": 0.3})
    return group_ppo_config(home, out=out, **(HELD | {"prompts": held} | RUNS[name] | changes))


def checkpointed(folder) -> dict:
    newest = max((folder / "checkpoints").glob("step-*.pt"))
    return torch.load(newest, weights_only=True)


def same_state(one, other) -> None:
    """The last checkpoints hold the same, tensor by tensor."""
    assert one.keys() == other.keys() if isinstance(one, dict) else type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        for name in one.keys() - {"offsets"}:
            same_state(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            same_state(left, right)
    else:
        assert one == other


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_again_and_again_is_the_run_that_was_not(home, tmp_path, name):
    """Killed while the critic warms up, after the first phase that acts, and inside a checkpoint; byte for byte."""
    group_ppo.run(settings(home, tmp_path / "whole", name))
    rows = logged(tmp_path / "whole")
    assert rows[-1]["groups/swaps"] > rows[1]["groups/swaps"] or name == "ratio"  # order, too, changes on the way
    moments = [("log", 2), ("log", 3), ("save", 1), ("log", 2)] if name != "no critic" else [("log", 2), ("save", 1)]
    killed_here(settings(home, tmp_path / "killed", name), moments, run=group_ppo.run)
    same_results(tmp_path / "whole", tmp_path / "killed")
    assert (tmp_path / "whole/groups.json").read_bytes() == (tmp_path / "killed/groups.json").read_bytes()
    one, other = (checkpointed(tmp_path / folder) for folder in ("whole", "killed"))
    assert ("groups" in one["modules"]) == ("groups" in one["optimizers"]) == (name not in ("dro", "no critic"))
    same_state(one, other)
    left, right = (json.loads((tmp_path / folder / "result.json").read_text()) | {"seconds": None}
                   for folder in ("whole", "killed"))
    assert left == right and left["groups"]


@pytest.mark.parametrize("part", ["ema", "order", "q", "swaps", "head", "adam"])
def test_each_part_of_what_is_remembered_is_needed(home, tmp_path, part):
    """A resumed run that finds one part of a checkpoint changed is another run: nothing of it is made up anew."""
    name = "dro" if part == "q" else "inferred"
    groups = RUNS[name]["groups"] | {"ema_decay": 0.9}
    changes = {"save_every": 1, "critic": {"pretrain": 0}, "steps": 4, "groups": groups}
    group_ppo.run(settings(home, tmp_path / "whole", name, **changes))
    cfg = settings(home, tmp_path / "other", name, **changes)
    group_ppo.run(cfg)
    file, *newer = (tmp_path / f"other/checkpoints/step-000000{n}.pt" for n in (3, 4))
    newer[0].unlink()
    state = torch.load(file, weights_only=True)
    groups = state["extra"]["groups"]
    if part == "head":
        state["modules"]["groups"]["weight"] += 1.0
    elif part == "adam":
        state["optimizers"]["groups"]["state"][0]["exp_avg"] += 1.0
    elif part == "swaps":
        groups["swaps"] += 5
    elif part == "order":
        groups["order"] = groups["order"][::-1]
    else:
        groups[part] = [x + 3.0 * i for i, x in enumerate(groups[part])]
    torch.save(state, file)
    (tmp_path / "other/result.json").unlink()
    group_ppo.run(cfg, resume=True)
    assert logged(tmp_path / "whole")[:3] == logged(tmp_path / "other")[:3]
    whole, other = ((tmp_path / f"{folder}/groups.json").read_text() for folder in ("whole", "other"))
    assert logged(tmp_path / "whole")[3] != logged(tmp_path / "other")[3] or whole != other


def test_resume_needs_nothing_but_the_folder(home, tmp_path):
    cfg = settings(home, tmp_path / "run", "inferred", save_every=1)
    group_ppo.run(cfg)
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    newest = max((tmp_path / "run/checkpoints").glob("step-*.pt"))
    newest.unlink()
    (tmp_path / "run/result.json").unlink()
    assert main(["group-ppo", "--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_going_back_goes_back_with_the_groups(home, tmp_path, monkeypatch):
    """Head, its optimiser, averages, order, weights and swaps are those of the good checkpoint."""
    seen = []

    def third(history):
        return [alarms.Alarm("repetition", 1.0, 0.5, "Said again.", "Mend.")] if len(history) == 3 else []

    real = close.go_back

    def watched(log, memory, state, shown, cfg):
        was = memory["groups"] | {}
        found = real(log, memory, state, shown, cfg)
        held = torch.load(tmp_path / f"run/checkpoints/step-{memory['good']:07d}.pt", weights_only=True)
        assert found["groups"] == held["extra"]["groups"] != was
        assert torch.equal(state["modules"]["groups"].weight.detach(), held["modules"]["groups"]["weight"])
        now = state["optimizers"]["groups"].state_dict()["state"]
        same_state(now, held["optimizers"]["groups"]["state"])
        seen.append(shown)
        return found

    monkeypatch.setattr(alarms, "raised", third)
    monkeypatch.setattr(close, "go_back", watched)
    group_ppo.run(settings(home, tmp_path / "run", "inferred", save_every=1, on_alarm="rollback",
                           critic={"pretrain": 1}))
    assert seen[0] == 3 and len(logged(tmp_path / "run")) == 5
