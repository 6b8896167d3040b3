import json
from pathlib import Path

import pytest
import tolerances as tol
import torch

from keel import runs
from keel.batches import Rollout, TokenBatch
from keel.config import Config
from keel.data.records import Message, Prompt
from keel.errors import ConfigError, NumericsError, RunError
from keel.train import alarms, checkpoint
from keel.train.inputs import split, split_prompts
from keel.train.order import batch_indices, n_steps
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally


class Settings(Config):
    """A config with nothing in it."""


def test_every_pass_covers_every_record_once_and_a_later_start_continues_it():
    whole = batch_indices(10, 4, 0, "x")
    seen = [next(whole) for _ in range(5)]
    flat = [i for batch in seen for i in batch]
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10)) and flat[:10] != flat[10:20]
    assert [next(batch_indices(10, 4, 0, "x", first_step=k)) for k in range(1, 6)] == seen
    assert next(batch_indices(10, 4, 1, "x")) != seen[0]
    with pytest.raises(ConfigError, match="records are left to train on"):
        next(batch_indices(0, 4, 0, "x"))


def test_steps_round_the_last_batch_up():
    assert [n_steps(10, 4, 1.0, None), n_steps(10, 4, 2.0, None), n_steps(10, 4, 0.1, None), n_steps(10, 4, 9, 3)] == [
        3,
        5,
        1,
        3,
    ]


def test_split_keeps_a_prompt_on_one_side_whatever_the_order():
    asked = [Prompt(f"p{i}", (Message("user", f"question {i % 20}"),)) for i in range(60)]
    train, held = split_prompts(asked, 0.3, 0)
    assert {p.messages for p in train}.isdisjoint({p.messages for p in held}) and train and held
    again = split_prompts(asked[::-1], 0.3, 0)
    assert {p.id for p in again[1]} == {p.id for p in held}
    assert split([], 0.0, 0) == ([], [])


def test_tally_is_one_mean_over_all_parts_not_a_mean_of_means():
    tally = Tally()
    tally.add({"x": torch.tensor([[1.0, float("nan")]])}, torch.tensor([[True, False]]))
    tally.add({"x": torch.tensor([[4.0, 4.0, 4.0]])}, torch.ones(1, 3, dtype=torch.bool))
    assert tally.means() == {"x": 13 / 4}
    assert tally.means() == {}


def test_step_clips_warms_up_and_clears():
    weight = torch.nn.Linear(3, 1, bias=False)
    learner = Learner.of(
        [weight],
        OptimizerConfig(lr=0.1, warmup_fraction=0.5, schedule="linear", lr_floor=0.0, max_grad_norm=1.0),
        total_steps=4,
    )
    weight.weight.grad = torch.tensor([[3.0, 4.0, 0.0]])
    assert learner.step(1, ["a"]) == {"grad_norm": 5.0, "lr": pytest.approx(0.05)}
    assert weight.weight.grad is None
    rates = []
    for number in (2, 3, 4):
        weight.weight.grad = torch.ones(1, 3)
        rates.append(learner.step(number, ["a"])["lr"])
    assert rates == [pytest.approx(0.1), pytest.approx(0.05), pytest.approx(0.0)]


def test_clipped_gradient_has_the_bound_as_its_norm():
    weight = torch.nn.Linear(2, 1, bias=False)
    learner = Learner.of([weight], OptimizerConfig(max_grad_norm=1.0), 1)
    seen = []
    learner.optimizer.step = lambda: seen.append(weight.weight.grad.clone())  # type: ignore[method-assign]
    weight.weight.grad = torch.tensor([[3.0, 4.0]])
    learner.step(1, [])
    assert seen[0].norm().item() == pytest.approx(1.0, rel=tol.RELATIVE32)


def test_non_finite_gradient_stops_before_the_update_and_names_records():
    weight = torch.nn.Linear(2, 1, bias=False)
    before = weight.weight.detach().clone()
    learner = Learner.of([weight], OptimizerConfig(), 1)
    weight.weight.grad = torch.tensor([[float("inf"), 1.0]])
    with pytest.raises(NumericsError, match=r"step 7 \(records r0, r1.* and 2 more\): grad_norm is not finite"):
        learner.step(7, [f"r{i}" for i in range(10)])
    assert torch.equal(weight.weight, before)
    require_finite(torch.tensor(1.0), "loss", 1, [])


def test_checkpoint_rewinds_logs_and_refuses_other_weights(tmp_path):
    model = torch.nn.Linear(2, 2)
    with runs.start("x", Settings(), tmp_path / "run", seed=0) as log:
        log.log(1, {"a": 1.0})
        checkpoint.save(log, 1, modules={"m": model}, optimizers={}, extra={"k": [1, 2]})
        log.log(2, {"a": 2.0})
    file = tmp_path / "run/metrics.jsonl"
    file.write_text(file.read_text() + '{"half a li')  # a process killed while it wrote
    with runs.start("x", Settings(), tmp_path / "run", seed=0, resume=True) as log:
        with torch.no_grad():
            model.weight.zero_()
        assert checkpoint.restore(log, modules={"m": model}, optimizers={}) == (1, {"k": [1, 2]})
        assert model.weight.any()
        log.log(2, {"a": 3.0})
        with pytest.raises(RunError, match="holds other parameters than the m"):
            checkpoint.restore(log, modules={"m": torch.nn.Linear(2, 2, bias=False)}, optimizers={})
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["step"], row["a"]) for row in rows] == [(1, 1.0), (2, 3.0)]


def test_what_a_run_began_with_must_be_what_it_goes_on_with():
    begun = {"reference": "a", "rewards": "b", "tokenizer": "c"}
    checkpoint.require_same(begun, dict(begun), Path("run"))
    with pytest.raises(RunError, match="rewards, tokenizer: not what this run began with"):
        checkpoint.require_same(begun, begun | {"rewards": "x", "tokenizer": "y"}, Path("run"))


def test_only_whole_checkpoints_count_and_the_last_two_are_kept(tmp_path):
    with runs.start("x", Settings(), tmp_path / "run", seed=0) as log:
        for step in range(1, 5):
            checkpoint.save(log, step, modules={}, optimizers={}, extra={})
    folder = tmp_path / "run/checkpoints"
    (folder / ".new").write_bytes(b"half")
    assert checkpoint.latest(tmp_path / "run").name == "step-0000004.pt" and len(list(folder.glob("step-*"))) == 2


HEALTHY = {
    "response/cut": 0.1,
    "response/length": 20.0,
    "response/repetition": 0.02,
    "score/mean": 0.0,
    "score/std": 1.0,
    "score/p95": 1.6,
    "kl/reference_k3": 0.02,
    "policy/entropy": 2.0,
    "value/explained_variance": 0.4,
}


@pytest.mark.parametrize(
    ("name", "at", "over"),
    [
        ("truncation", {"response/cut": 0.5}, {"response/cut": 0.501}),
        (
            "length_reward_race",
            {"response/length": 40.0, "score/mean": 0.5},
            {"response/length": 40.1, "score/mean": 0.5},
        ),
        ("kl_jump", {"kl/reference_k3": 0.1}, {"kl/reference_k3": 0.101}),
        ("entropy_drop", {"policy/entropy": 0.6 * 2.0}, {"policy/entropy": 1.199}),
        ("score_long_tail", {"score/p95": 4.6}, {"score/p95": 4.601}),
        ("repetition", {"response/repetition": 0.3}, {"response/repetition": 0.301}),
    ],
)
def test_each_alarm_fires_over_its_threshold_and_stays_silent_at_it(name, at, over):
    assert alarms.raised([HEALTHY] * 12) == [] and alarms.raised([HEALTHY] * 12 + [HEALTHY | at]) == []
    found = alarms.raised([HEALTHY] * 12 + [HEALTHY | over])
    assert [alarm.name for alarm in found] == [name] and found[0].meaning and found[0].remedy
    assert found[0].row(13)["step"] == 13 and found[0].value != found[0].limit
    assert alarms.raised([HEALTHY] * 12 + [HEALTHY | over, HEALTHY]) == []  # only the newest phase counts


def test_a_jump_of_the_drift_needs_a_median_and_a_floor():
    """Five phases before it, and more than 0.01 nats however small the median is."""
    far = HEALTHY | {"kl/reference_k3": 9.0}
    assert alarms.raised([HEALTHY] * 4 + [far]) == []
    assert [alarm.name for alarm in alarms.raised([HEALTHY] * 5 + [far])] == ["kl_jump"]
    near = HEALTHY | {"kl/reference_k3": 1e-4}
    assert alarms.raised([near] * 6 + [HEALTHY | {"kl/reference_k3": 0.01}]) == []
    assert [a.name for a in alarms.raised([near] * 6 + [HEALTHY | {"kl/reference_k3": 0.0101}])] == ["kl_jump"]


def test_repetition_is_measured_against_the_start_where_that_was_high():
    talker = HEALTHY | {"response/repetition": 0.4}
    assert alarms.raised([talker] * 3 + [HEALTHY | {"response/repetition": 0.8}]) == []
    assert [a.name for a in alarms.raised([talker] * 3 + [HEALTHY | {"response/repetition": 0.81}])] == ["repetition"]


def test_a_phase_without_an_update_has_no_entropy_and_sets_off_no_alarm_of_it():
    still = {name: x for name, x in HEALTHY.items() if name != "policy/entropy"}
    assert alarms.raised([still]) == alarms.raised([still, HEALTHY]) == alarms.raised([HEALTHY, still]) == []
    low = HEALTHY | {"policy/entropy": 1.0}
    assert [alarm.name for alarm in alarms.raised([still, HEALTHY, low])] == ["entropy_drop"]


def test_length_alone_or_score_alone_is_no_race():
    assert alarms.raised([HEALTHY, HEALTHY | {"response/length": 41.0}]) == []
    assert alarms.raised([HEALTHY, HEALTHY | {"score/mean": 1.0}]) == []


def test_blind_critic_needs_time_and_five_rollouts_in_a_row():
    blind = HEALTHY | {"value/explained_variance": -0.001}
    assert alarms.raised([blind] * 9) == []
    assert [a.name for a in alarms.raised([blind] * 10)] == ["value_blind"]
    assert alarms.raised([HEALTHY] * 6 + [blind] * 4) == []
    assert [a.name for a in alarms.raised([HEALTHY] * 5 + [blind] * 5)] == ["value_blind"]
    assert alarms.raised([blind] * 8 + [HEALTHY | {"value/explained_variance": 0.0}, blind]) == []


TALK, TASTE = "score/talk/disagreement", "score/taste/disagreement"


def test_members_that_drift_apart_are_held_against_their_first_five_phases():
    """Median of 0.1, 0.4, 0.2, 0.3, 0.2 is 0.2; what came after these does not move it. Every ensemble for itself."""
    begin = [HEALTHY | {TALK: x, TASTE: 1.0} for x in (0.1, 0.4, 0.2, 0.3, 0.2)]
    apart = HEALTHY | {TALK: 0.401, TASTE: 2.0}
    assert alarms.raised([*begin[:4], apart]) == [] and alarms.raised([*begin, apart | {TALK: 0.4}]) == []
    [found] = alarms.raised([*begin, apart])
    assert (found.name, found.value, found.limit) == ("disagreement", 0.401, 0.4) and f"({TALK})" in found.meaning
    assert found.remedy and len(alarms.raised([*begin, *[apart] * 6])) == 1
    assert [alarm.value for alarm in alarms.raised([*begin, apart | {TASTE: 2.01}])] == [0.401, 2.01]


def test_members_that_were_one_may_differ_by_rounding():
    begin = [HEALTHY | {TALK: 0.0}] * 5
    assert alarms.raised([*begin, HEALTHY | {TALK: 2e-6}]) == []
    assert [alarm.name for alarm in alarms.raised([*begin, HEALTHY | {TALK: 2.1e-6}])] == ["disagreement"]


def test_the_disagreement_of_every_ensemble_is_remembered():
    memory = {"history": [], "n_alarms": 0, "from_start": [], "saved": 0, "good": 0}
    metrics = HEALTHY | {TALK: 0.1, "score/histogram": {"counts": [1]}, "score/talk/mean": 3.0}
    for step in range(6):
        found = alarms.watch(memory, metrics | {TALK: 0.1 + (step == 5)})
    assert [alarm.name for alarm in found] == ["disagreement"] and memory["n_alarms"] == 1
    assert memory["history"][0] == HEALTHY | {TALK: 0.1}


def test_without_a_critic_none_is_blind():
    bare = {name: x for name, x in HEALTHY.items() if name != "value/explained_variance"}
    assert alarms.raised([bare] * 12) == []


def test_rollout_rows_keep_order_and_drop_empty_columns():
    real = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    tokens = TokenBatch(torch.arange(12).view(3, 4), real, real, ("a", "b", "c"))
    rollout = Rollout(tokens, torch.arange(12.0).view(3, 4), torch.tensor([True, False, True]), torch.arange(3))
    part = rollout.rows([2, 0])
    assert part.tokens.ids.tolist() == [[8, 9, 10], [0, 1, 2]] and part.tokens.record_ids == ("c", "a")
    assert part.logprobs.shape == (2, 3) and part.ended.tolist() == [True, True]
