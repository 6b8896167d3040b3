"""PPO that is paid for steps: the run, its log, its samples, its way back after a kill, and the alarm for farming."""

import pytest
import tolerances as tol
import torch
from recipes.running import brief, group_ppo_config, killed_here, logged, ppo_config, same_results, watched

from keel.errors import ConfigError
from keel.functional.masked import row_sums
from keel.online.settings import warnings_of
from keel.recipes import group_ppo, ppo
from keel.recipes.ppo import PPOConfig
from keel.train.alarms import raised

HERE = "recipes.test_ppo_steps"
# A random policy of the tiny vocabulary says "the" often: steps of any length, and now and then none at all.
STEPS = {"name": "steps", "function": f"{HERE}:words_of_steps", "steps": {"separator": "the", "credit": "mean"}}
WHOLE = {"name": "whole", "function": "tiny:count_yes"}
METRICS = {"steps/count", "steps/repeated", "steps/unfinished", "steps/score", "steps/paid", "score/outcome",
           "score/steps/mean", "score/whole/mean", "moments/steps/mean", "moments/whole/mean"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def words_of_steps(prompt, text, ended):
    parts = text.split("the")
    return [float(len(part.split())) for part in (parts if ended else parts[:-1]) if part.strip()]


def paid_by(*sources, **more):
    return {"reward_model": None, "rewards": sources, "critic": {"pretrain": 0, "init": "policy"}} | more


def test_three_steps_log_what_steps_are_paid_and_show_them(home, tmp_path):
    told = ppo.run(ppo_config(home, out=tmp_path / "run", sampling={"max_new_tokens": 24}, **paid_by(STEPS, WHOLE)))
    rows = logged(tmp_path / "run")
    assert len(rows) == 3 and all(METRICS <= row.keys() for row in rows) and told.values["status"] == "finished"
    assert all(0 < row["steps/count"] < 12 and 0 < row["steps/unfinished"] < 1 for row in rows)
    samples = logged(tmp_path / "run", "samples.jsonl", None)
    seen = [step for row in samples for step in row["steps"]]
    assert all(float(len(text.split())) == value for text, value in seen) and len(seen) > 2


def test_without_step_rewards_nothing_is_said_of_steps(home, tmp_path):
    ppo.run(brief(home, out=tmp_path / "run", n_samples=2, **paid_by(WHOLE)))
    row = logged(tmp_path / "run")[0]
    assert not [name for name in row if name.startswith("steps/")] and "score/outcome" not in row


@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo", "reinforce++"])
def test_every_estimator_is_paid_the_parts_and_no_more(home, tmp_path, monkeypatch, estimator):
    seen = watched(monkeypatch)
    critic = {"critic": {"pretrain": 0, "init": "policy" if estimator == "gae" else None}}
    steps = STEPS | {"steps": {"separator": "the", "credit": "sum"}}
    ppo.run(brief(home, out=tmp_path / "run", sampling={"max_new_tokens": 24}, kl={"coef": 0.1, "within": "loss"},
                  advantage={"estimator": estimator, "group": 4 if estimator in ("rloo", "grpo") else 1},
                  **(paid_by(steps, WHOLE) | critic)))
    phase = seen.phases[0]
    rollout, mask = phase.rollout, phase.rollout.tokens.response_mask
    assert bool(rollout.step_ends.any()) and bool(rollout.step_rewards.any())
    total = phase.processed + row_sums(rollout.step_rewards, mask)
    torch.testing.assert_close(row_sums(rollout.rewards, mask), total, **tol.FLOAT32)
    assert bool(rollout.advantages.any()) and not bool(rollout.advantages[~mask].any())


def test_a_run_that_was_killed_goes_on_to_the_same_bits(home, tmp_path):
    settings = paid_by(STEPS, WHOLE, sampling={"max_new_tokens": 16}, steps=3, save_every=1)
    ppo.run(brief(home, out=tmp_path / "whole", **settings))
    killed_here(brief(home, out=tmp_path / "killed", **settings), [("log", 2)])
    same_results(tmp_path / "whole", tmp_path / "killed")


def test_groups_count_what_a_response_is_paid_for_its_steps(home, tmp_path, monkeypatch):
    seen = watched(monkeypatch, group_ppo)
    found = []
    real = group_ppo.Groups.ask
    monkeypatch.setattr(group_ppo.Groups, "ask", lambda self, rollout, paid, *rest: (
        found.append(paid), real(self, rollout, paid, *rest))[1])
    group_ppo.run(group_ppo_config(home, out=tmp_path / "run", groups={"source": "known"},
                                   sampling={"max_new_tokens": 24}, **paid_by(STEPS, WHOLE)))
    phase = seen.phases[0]
    steps = row_sums(phase.rollout.step_rewards, phase.rollout.tokens.response_mask)
    assert torch.equal(found[0], phase.processed + steps) and bool(steps.any())


def test_grpo_with_rewards_of_steps_alone_must_not_charge_drift_in_the_reward(home):
    summed = STEPS | {"steps": {"separator": "the", "credit": "sum"}}
    settings = brief(home, **paid_by(STEPS, WHOLE)).model_dump() | {
        "advantage": {"estimator": "grpo", "group": 2}, "critic": {"pretrain": 0}, "rewards": [summed]}
    with pytest.raises(ConfigError, match="would blow the charge for drift up to the size of a reward"):
        PPOConfig.checked(settings)
    assert PPOConfig.checked(settings | {"kl": {"within": "loss", "estimator": "k2"}})
    assert PPOConfig.checked(settings | {"rewards": [summed, WHOLE]})
    for steps in ({"credit": "min"}, {"credit": "sum", "cap": 2}):
        with pytest.raises(ConfigError, match="a step paid 0 gains or loses by being there"):
            PPOConfig.checked(settings | {"rewards": [STEPS | {"steps": steps}, WHOLE]})


def test_a_sum_of_steps_without_a_cap_is_warned_of(home):
    def warned(**steps):
        source = STEPS | {"steps": STEPS["steps"] | steps}
        return [text for text in warnings_of(brief(home, **paid_by(source))) if "useless steps" in text]

    assert warned(credit="sum") and not warned(credit="sum", cap=4) and not warned(credit="min")


def row(count, outcome=None):
    quiet = {"response/cut": 0.0, "response/length": 9.0, "response/repetition": 0.0, "score/mean": 0.0,
             "score/std": 1.0, "score/p95": 1.0, "kl/reference_k3": 0.0, "steps/count": count}
    return quiet | ({} if outcome is None else {"score/outcome": outcome})


@pytest.mark.parametrize("history, rings", [
    ([row(2.0)] * 5 + [row(3.1)] * 5, True),
    ([row(2.0)] * 5 + [row(2.9)] * 5, False),
    ([row(2.0)] * 5 + [row(3.1)] * 4, False),
    ([row(2.0, 0.5)] * 5 + [row(3.1, 0.5)] * 5, True),
    ([row(2.0, 0.5)] * 5 + [row(3.1, 0.6)] * 5, False),
    ([row(2.0)] * 5 + [row(2.0)] * 2 + [row(9.0)] * 2 + [row(2.0)], False),
])
def test_more_steps_without_a_better_outcome_set_off_an_alarm(history, rings):
    found = [alarm for alarm in raised(history) if alarm.name == "step_farming"]
    assert bool(found) == rings
    if rings:
        assert found[0].value == 3.1 and found[0].limit == 3.0 and "steps.cap" in found[0].remedy
