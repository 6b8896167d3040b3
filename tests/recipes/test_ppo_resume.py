"""What a PPO run remembers: alarms and the way back, the best policy, resuming after kill -9, both topologies alike."""

import json
import re

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import FAST, brief, killed_here, logged, same_results, short_spoken

from keel.errors import NumericsError
from keel.models.load import LoraSettings, ModelConfig, causal_lm
from keel.online import close
from keel.recipes import ppo
from keel.train import alarms

CUT = {"max_new_tokens": 2}  # most responses of a random policy are then cut: an alarm in every phase


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Models and files that the tests of this module share; each run has a folder of its own."""
    return tmp_path_factory.mktemp("home")


def racing(home, out, **changes):
    """A policy paid by the word, which soon talks twice as long as at the start, and then sets off alarms."""
    held = brief(home).prompts.model_copy(update={"validation_fraction": 0.3})
    quick = FAST.model_copy(update={"lr": 2e-2})
    settings = {"out": out, "policy": ModelConfig(path=str(short_spoken(home))), "reward_model": None, "prompts": held,
                "rewards": [{"name": "length", "function": "tiny:length"}], "steps": 9, "rollouts": 32, "minibatch": 16,
                "critic": {"pretrain": 1, "init": "policy"}, "sampling": {"max_new_tokens": 12}, "kl": {"coef": 0.01},
                "policy_optimizer": quick, "critic_optimizer": quick, "save_every": 1, "on_alarm": "rollback",
                "rollback": {"most": 9}, "eval_every": 100}
    return brief(home, **(settings | changes))


def alarm_rows(folder):
    return logged(folder, "alarms.jsonl", None)


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# --- alarms ----------------------------------------------------------------------------------------------------------


def test_a_warning_lets_the_run_go_on(home, tmp_path):
    result = ppo.run(brief(home, out=tmp_path / "run", steps=3, sampling=CUT)).values
    rows = logged(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3] and result["status"] == "finished"
    assert result["n_alarms"] == len(alarm_rows(tmp_path / "run")) == sum(row["alarms"] for row in rows) >= 3
    assert result["n_rollbacks"] == 0


def test_a_stop_keeps_its_checkpoint_and_resuming_goes_on(home, tmp_path):
    cfg = brief(home, out=tmp_path / "run", steps=3, sampling=CUT, on_alarm="stop")
    for step in (1, 2, 3):
        with pytest.raises(NumericsError, match=f"step {step}: alarm truncation"):
            ppo.run(cfg, resume=step > 1)
    assert [row["step"] for row in logged(tmp_path / "run")] == [1, 2, 3]
    assert ppo.run(cfg, resume=True).values["status"] == "finished"


def test_going_back_restores_every_bit_and_goes_on_more_carefully(home, tmp_path, monkeypatch):
    """Parameters, optimisers and moments are those of the checkpoint that the alarm names; drift is dearer, steps are
    smaller; samples are new; the checkpoint is never one of a phase with an alarm."""
    cfg, real, returns = racing(home, tmp_path / "run"), close.go_back, []

    def watched(log, memory, state, shown, settings):
        found = real(log, memory, state, shown, settings)
        held = torch.load(tmp_path / f"run/checkpoints/step-{memory['good']:07d}.pt", weights_only=True)
        for name, module in state["modules"].items():
            now = module.state_dict()
            assert all(torch.equal(now[key], x) for key, x in held["modules"][name].items()) and held["modules"][name]
            optimizer = state["optimizers"][name].state_dict()
            assert optimizer["state"].keys() == held["optimizers"][name]["state"].keys()
            for key, entry in held["optimizers"][name]["state"].items():
                assert all(torch.equal(optimizer["state"][key][part], x) for part, x in entry.items())
        assert all(torch.equal(found["moments"][key], x) for key, x in held["extra"]["moments"].items())
        assert found["history"] == held["extra"]["history"] and found["kl_coef"] == 2 * memory["kl_coef"]
        returns.append((shown, memory["good"] - memory["pretrained"]))
        return found

    monkeypatch.setattr(close, "go_back", watched)
    result = ppo.run(cfg).values
    rows, said = logged(tmp_path / "run"), alarm_rows(tmp_path / "run")
    assert returns and result["n_rollbacks"] == len(returns)
    went_back = [row for row in said if row["name"] == "rollback"]
    alarmed = {row["step"] for row in said if row["name"] != "rollback"}
    assert [(row["step"], int(re.search(r"of phase (\d+)", row["meaning"])[1])) for row in went_back] == returns
    assert {shown for shown, _ in returns} == alarmed
    # A phase is written by the policy before it: the checkpoint of shown - 1 is the one that rang, never the good one.
    assert all(to < shown - 1 for shown, to in returns)
    assert [row["value"] for row in went_back] == list(range(1, len(returns) + 1))
    for row in rows:
        times = sum(shown < row["step"] for shown, _ in returns)
        assert row["kl/coef"] == pytest.approx(0.01 * 2**times) and row["lr/policy"] == pytest.approx(2e-2 / 2**times)
        assert row["lr/critic"] == pytest.approx(2e-2)
    assert [row["step"] for row in rows] == list(range(1, 10))  # logs are not rewritten
    shown, to = returns[0]
    again = next(row for row in rows if row["step"] == shown + 1)
    before = next((row for row in rows if row["step"] == to + 1), None)
    assert before is None or again["score/mean"] != before["score/mean"]  # the same policy, other samples


def test_after_so_many_returns_the_next_alarm_stops_the_run_at_the_good_policy(home, tmp_path, monkeypatch):
    """Every second phase rings; what it goes back to is the start each time, and so is what the stopped run holds."""
    def every_second(history):
        return [] if len(history) == 1 else [alarms.Alarm("repetition", 1.0, 0.5, "Said again.", "Mend.")]

    monkeypatch.setattr(alarms, "raised", every_second)
    cfg = brief(home, out=tmp_path / "run", steps=9, critic={"pretrain": 0}, on_alarm="rollback", save_every=1,
                rollback={"most": 3})
    with pytest.raises(NumericsError, match="step 8: alarm repetition"):
        ppo.run(cfg)
    went_back = [row for row in alarm_rows(tmp_path / "run") if row["name"] == "rollback"]
    assert [row["step"] for row in went_back] == [2, 4, 6, 8]
    start, end = (torch.load(tmp_path / f"run/checkpoints/step-000000{n}.pt", weights_only=True)["modules"]["policy"]
                  for n in (6, 8))
    base = causal_lm(cfg.policy).state_dict()
    assert all(torch.equal(end[name], x) and torch.equal(base[name], x) for name, x in start.items())


def test_a_checkpoint_that_rang_is_not_gone_back_to_though_a_quiet_phase_follows(home, tmp_path, monkeypatch):
    """Saved in phases 2 and 4; phase 3 rings, so the policy saved in 2 is bad; phase 4 is quiet after the return, and
    vouches for the start, not for 2; phase 5 rings."""
    phases = []

    def third_and_fifth(history):
        phases.append(len(history))
        return [alarms.Alarm("repetition", 1.0, 0.5, "Said again.", "Mend.")] if len(phases) in (3, 5) else []

    monkeypatch.setattr(alarms, "raised", third_and_fifth)
    ppo.run(brief(home, out=tmp_path / "run", steps=6, save_every=2, on_alarm="rollback"))
    went_back = [row for row in alarm_rows(tmp_path / "run") if row["name"] == "rollback"]
    assert [row["step"] for row in went_back] == [3, 5] and phases == [1, 2, 3, 1, 2, 1]
    assert all("of phase 0." in row["meaning"] for row in went_back)


def test_a_critic_made_ready_is_not_lost_by_going_back(home, tmp_path, monkeypatch):
    """The end of pre-training is a checkpoint, wherever save_every falls: phase 0 is the policy after it."""
    def second(history):
        return [alarms.Alarm("repetition", 1.0, 0.5, "Said again.", "Mend.")] if len(history) == 2 else []

    monkeypatch.setattr(alarms, "raised", second)
    cfg = brief(home, out=tmp_path / "run", steps=2, critic={"pretrain": 3}, on_alarm="rollback")
    ppo.run(cfg)
    [row] = [row for row in alarm_rows(tmp_path / "run") if row["name"] == "rollback"]
    assert row["step"] == 2 and "of phase 0." in row["meaning"]
    ready, end = (torch.load(tmp_path / f"run/checkpoints/step-000000{n}.pt", weights_only=True) for n in (3, 5))
    for name in ("policy", "critic"):
        assert all(torch.equal(end["modules"][name][key], x) for key, x in ready["modules"][name].items())
    assert ready["optimizers"]["critic"]["state"] and not ready["optimizers"]["policy"]["state"]


def test_going_back_cannot_cure_what_rings_from_the_start(home, tmp_path):
    """Answers cut since before the first update: said every phase, but nothing to go back from."""
    result = ppo.run(brief(home, out=tmp_path / "run", steps=3, sampling=CUT, on_alarm="rollback")).values
    names = [row["name"] for row in alarm_rows(tmp_path / "run")]
    assert result["n_rollbacks"] == 0 and names.count("truncation") == 3


def test_what_was_silent_once_no_longer_comes_from_the_start(monkeypatch):
    """Cut answers ring in phases 1 and 2, are gone in 3, and are a collapse in 4."""
    said = iter([["truncation"], ["truncation", "kl_jump"], [], ["truncation"]])
    monkeypatch.setattr(alarms, "raised", lambda _: [alarms.Alarm(name, 1.0, 0.5, "x", "y") for name in next(said)])
    memory = {"history": [], "n_alarms": 0, "from_start": [], "saved": 7, "good": 0}
    seen = []
    for _ in range(4):
        alarms.watch(memory, {})
        seen.append((list(memory["from_start"]), memory["good"]))
        memory["saved"] += 1
    assert seen == [(["truncation"], 7), (["truncation"], 7), ([], 9), ([], 9)] and memory["n_alarms"] == 4


# --- the best policy -------------------------------------------------------------------------------------------------


def eval_rows(folder):
    return logged(folder, phase="eval")


@pytest.mark.parametrize("by", ["gold", "score"])
def test_the_best_policy_is_that_of_the_named_step_and_within_its_budget(home, tmp_path, by):
    """Its weights are those of a run that ended there; it has the highest mean among those within the budget."""
    changes = {"on_alarm": "warn", "eval_every": 1, "steps": 6, "gold": "tiny:count_yes", "best": by}
    free = ppo.run(racing(home, tmp_path / "free", **changes, kl_budget=1e6)).values
    drift = {row["step"]: row["kl/mean"] for row in eval_rows(tmp_path / "free")}
    budget = sorted(drift.values())[-2]  # the furthest of all is over it
    result = ppo.run(racing(home, tmp_path / "held", **changes, kl_budget=budget)).values
    for found, most, name in ((free, 1e6, "free"), (result, budget, "held")):
        rows = [row for row in eval_rows(tmp_path / name) if row["kl/mean"] <= most]
        best = max(rows, key=lambda row: (row[f"{by}/mean"], -row["step"]))
        assert found["best"]["step"] == best["step"] and found["best"][by]["mean"] == best[f"{by}/mean"]
        assert found["best"]["kl"]["mean"] <= most
    step = result["best"]["step"]
    assert by == "gold" or step > 0
    if step:
        ppo.run(racing(home, tmp_path / "short", **changes | {"steps": step, "best": None}))
        assert weights(tmp_path / "held/best") == weights(tmp_path / "short/model")


def test_no_policy_over_the_budget_is_ever_the_best(home, tmp_path):
    cfg = racing(home, tmp_path / "run", on_alarm="warn", eval_every=1, steps=3, best="score", kl_budget=1e-9)
    result = ppo.run(cfg).values
    assert result["best"]["step"] == 0 and result["after"]["score"]["mean"] > result["before"]["score"]["mean"]
    assert weights(tmp_path / "run/best") == weights(short_spoken(home))


# --- resuming --------------------------------------------------------------------------------------------------------


def same_runs(one, other) -> None:
    """Everything that a run leaves, but for its clock."""
    same_results(one, other)
    for name in ("alarms.jsonl", "best/model.safetensors"):
        assert (one / name).exists() == (other / name).exists()
        assert not (one / name).exists() or (one / name).read_bytes() == (other / name).read_bytes(), name
    left, right = (json.loads((folder / "result.json").read_text()) | {"seconds": None} for folder in (one, other))
    assert left == right


def test_kill_9_keeps_moments_prices_and_a_pretraining_that_ends_early(home, tmp_path):
    """Moments of two sources and of their rolling sums, an adaptive KL price, and the value losses by which
    pre-training ends after six phases of twelve; killed inside it, after it, and inside a checkpoint."""
    changes = {"steps": 4, "save_every": 2, "score": {"scale": "rolling"},
               "kl": {"coef": 0.1, "target": 1e-3, "horizon": 40},
               "critic": {"pretrain": 12, "pretrain_until": 1.0, "pretrain_flat": 0.999},
               "rewards": [{"name": "length", "function": "tiny:length", "weight": 0.3}]}
    ppo.run(brief(home, out=tmp_path / "whole", **changes))
    assert len(logged(tmp_path / "whole", phase="critic")) == 6
    assert len({row["kl/coef"] for row in logged(tmp_path / "whole")}) > 1
    killed_here(brief(home, out=tmp_path / "killed", **changes), [("log", 4), ("log", 5), ("save", 1)])
    same_runs(tmp_path / "whole", tmp_path / "killed")


def test_kill_9_keeps_the_way_back_and_the_best(home, tmp_path):
    """Killed when an alarm has been seen but not yet acted upon, and again in the phase after the return."""
    changes = {"save_every": 2, "eval_every": 2, "best": "score", "kl_budget": 2.0}
    result = ppo.run(racing(home, tmp_path / "whole", **changes)).values
    assert result["n_rollbacks"] > 0 and result["best"]["step"] > 0
    first = next(row["step"] for row in alarm_rows(tmp_path / "whole") if row["name"] == "rollback")
    rows = logged(tmp_path / "whole", phase=None)
    n = next(i for i, row in enumerate(rows, 1) if (row["phase"], row["step"]) == ("train", first))
    killed_here(racing(home, tmp_path / "killed", **changes), [("log", n), ("save", 1), ("log", 3)])
    same_runs(tmp_path / "whole", tmp_path / "killed")


def test_kill_9_keeps_a_stop_by_target_kl_and_groups(home, tmp_path):
    changes = {"steps": 5, "save_every": 2, "passes": 3, "target_kl": 2e-3,
               "advantage": {"estimator": "rloo", "group": 2}}
    ppo.run(brief(home, out=tmp_path / "whole", **changes))
    steps = [row["update/steps"] for row in logged(tmp_path / "whole")]
    assert 1 <= min(steps) < 6
    killed_here(brief(home, out=tmp_path / "killed", **changes), [("log", 3), ("log", 1)])
    same_runs(tmp_path / "whole", tmp_path / "killed")


# --- topologies ------------------------------------------------------------------------------------------------------


def test_adapters_on_one_trunk_give_the_numbers_of_adapters_on_models_of_their_own(home, tmp_path):
    """With critic.init = policy, over a phase of pre-training and four of learning, to float32 rounding."""
    for topology in ("separate", "shared"):
        policy = ModelConfig(path=brief(home).policy.path, lora=LoraSettings(rank=4))
        critic = {"pretrain": 1, "pretrain_until": 1.0} | ({"init": "policy"} if topology == "separate" else {})
        ppo.run(brief(home, out=tmp_path / topology, topology=topology, policy=policy, critic=critic, steps=4,
                      ptx={"path": str(tiny.demonstrations(home / "mix.jsonl"))}))
    pair = [logged(tmp_path / topology, phase=None) for topology in ("separate", "shared")]
    assert len(pair[0]) == 5 and pair[0][-1]["kl/reference_k3"] > 0 and pair[0][-1]["value/mean"] != 0
    for one, other in zip(*pair, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"phase", "score/histogram", "policy/sampler_gap"}:
            assert other[name] == pytest.approx(one[name], **tol.TOPOLOGIES), (name, one["step"])
    assert max(row["policy/sampler_gap"] for rows in pair for row in rows[1:]) < tol.LOG_RATIO
