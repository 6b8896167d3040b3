import itertools
import json
import os
import signal
import time

import pytest
import tolerances as tol
import torch
from recipes.running import FAST, forked, killed_and_resumed, killed_here, logged, ppo_config, same_results

from keel.cli import main
from keel.data.load import read_prompts
from keel.data.seen import prompt_key, read_seen
from keel.errors import ModelError, NumericsError
from keel.models.load import LoraSettings, ModelConfig
from keel.recipes import ppo
from keel.rollout.sample import SamplingConfig
from keel.train.order import minibatch


def test_three_steps_write_every_monitor_and_a_model(tmp_path):
    from transformers import AutoModelForCausalLM

    result = ppo.run(ppo_config(tmp_path))
    rows = logged(tmp_path / "ppo")
    wanted = {
        "score/mean",
        "score/std",
        "score/p95",
        "score/histogram",
        "gold/mean",
        "reward/mean",
        "kl/reference_k1",
        "kl/reference_k3",
        "policy/kl_old",
        "policy/clipped",
        "policy/ratio",
        "policy/entropy",
        "policy/perplexity",
        "response/length",
        "response/cut",
        "response/repetition",
        "value/explained_variance",
        "value/clipped",
        "value/mean",
        "return/mean",
        "advantage/mean",
        "advantage/std",
        "loss/policy",
        "loss/value",
        "grad_norm/policy",
        "grad_norm/critic",
        "lr/policy",
        "lr/critic",
        "moments/mean",
        "moments/std",
    }
    assert [row["step"] for row in rows] == [1, 2, 3] and all(wanted <= row.keys() for row in rows)
    assert len(logged(tmp_path / "ppo", phase="critic")) == 1
    assert result.values["headline"]["metric"] == "gold" and result.values["after"]["score"]["n"] == 5
    AutoModelForCausalLM.from_pretrained(tmp_path / "ppo/model")
    seen = read_seen(tmp_path / "ppo/model")
    every = {prompt_key(prompt) for prompt in read_prompts(ppo_config(tmp_path).prompts.path)[0]}
    assert seen.learned_from and len(seen.held_out) == 5 and not seen.learned_from & seen.held_out
    assert seen.learned_from | seen.held_out <= every


def test_later_minibatches_are_held_against_the_policy_that_sampled(tmp_path):
    """Only the fresh minibatch may take its own log-probabilities as old ones; later passes have moved away."""
    ppo.run(ppo_config(tmp_path, steps=1, critic={"pretrain": 0}, passes=4))
    row = logged(tmp_path / "ppo")[0]
    assert row["policy/kl_old"] > tol.RATIO and abs(row["policy/ratio"] - 1) > tol.RATIO


def test_micro_batches_change_nothing(tmp_path):
    for micro, name in ((10_000, "one"), (30, "many")):
        ppo.run(ppo_config(tmp_path, out=tmp_path / name, micro_tokens=micro, steps=2))
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "many"), strict=True):
        for key in (
            "loss/policy",
            "loss/value",
            "grad_norm/policy",
            "grad_norm/critic",
            "policy/entropy",
            "score/mean",
        ):
            assert a[key] == pytest.approx(b[key], **tol.MICRO_BATCHES), key


def test_critic_pretraining_leaves_the_policy_alone(tmp_path):
    ppo.run(ppo_config(tmp_path, critic={"pretrain": 2}, steps=1))
    critic_rows = logged(tmp_path / "ppo", phase="critic")
    assert [row["step"] for row in critic_rows] == [1, 2]
    assert all("loss/policy" not in row and row["kl/reference_k3"] < 1e-6 for row in critic_rows)
    assert logged(tmp_path / "ppo")[0]["kl/reference_k3"] < 1e-6  # nothing moved before the first policy step
    seen = [row["moments/std"] for row in critic_rows + logged(tmp_path / "ppo")]
    assert len(set(seen)) == 3  # running moments go on through both phases


def test_it_learns_what_the_reward_model_likes(tmp_path):
    result = ppo.run(ppo_config(tmp_path, steps=15, rollouts=32, minibatch=16, kl={"coef": 0.0}))
    assert result.values["after"]["score"]["mean"] > result.values["before"]["score"]["mean"]


def test_critic_with_another_tokenizer_is_refused_and_another_critic_helps(tmp_path):
    cfg = ppo_config(tmp_path, steps=1)
    file = tmp_path / "reward/chat_template.jinja"
    file.write_text("{# another #}" + file.read_text())
    with pytest.raises(ModelError, match="tokenizer or chat template differs"):
        ppo.run(cfg)
    ppo.run(ppo_config(tmp_path, out=tmp_path / "text", steps=1, critic={"model": str(tmp_path / "base")}))


def test_shared_topology_learns_with_the_trunk_frozen_and_starts_like_separate(tmp_path):
    lora = ModelConfig(path=str(tmp_path / "base"), lora=LoraSettings(rank=2))
    changes = {"policy": lora, "critic": {"pretrain": 0}, "steps": 6}
    separate = ppo_config(tmp_path, out=tmp_path / "separate", **changes)
    ppo.run(separate)
    ppo.run(ppo_config(tmp_path, out=tmp_path / "shared", topology="shared", **changes))
    one, other = (logged(tmp_path / name) for name in ("separate", "shared"))
    for key in ("score/mean", "response/length", "policy/perplexity", "gold/mean"):
        assert one[0][key] == pytest.approx(other[0][key], rel=tol.GRADIENT32["rtol"])  # the same samples and scores
    assert other[0]["value/mean"] == 0 and other[-1]["value/mean"] != 0
    assert other[-1]["kl/reference_k3"] > 0
    from keel.models.shared import SharedTrunk
    from keel.train.step import Learner

    trunk = SharedTrunk(lora, 0)
    policy, critic = (len(Learner.of([view], FAST, 1).parameters) for view in (trunk.policy, trunk.critic))
    assert critic == policy + 1 and not list(trunk.reference.parameters())
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "shared/model").state_dict()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    assert merged.keys() == base.keys() and any(not torch.equal(merged[name], base[name]) for name in base)


def test_killed_run_resumes_to_the_same_bytes(tmp_path):
    """Through the command line, in a process of its own, at whatever moment."""
    whole = ppo_config(tmp_path, out=tmp_path / "whole", steps=8, save_every=2, critic={"pretrain": 3})
    ppo.run(whole)
    killed_and_resumed("ppo", whole.model_copy(update={"out": tmp_path / "killed"}), [0.3])
    same_results(tmp_path / "whole", tmp_path / "killed")


def test_killed_run_on_a_shared_trunk_resumes_to_the_same_bytes(tmp_path):
    policy = ModelConfig(path=ppo_config(tmp_path).policy.path, lora=LoraSettings(rank=2))
    whole = ppo_config(tmp_path, out=tmp_path / "whole", topology="shared", policy=policy, steps=4, save_every=2,
                       critic={"pretrain": 2})
    ppo.run(whole)
    killed_here(whole.model_copy(update={"out": tmp_path / "killed"}), [("log", 4), ("log", 3)])
    same_results(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(tmp_path, number):
    cfg = ppo_config(tmp_path, steps=400, save_every=1000)
    (tmp_path / "ppo.toml").write_text(cfg.to_toml())
    worker = forked(["ppo", str(tmp_path / "ppo.toml")], tmp_path / "said")
    while not (tmp_path / "ppo/metrics.jsonl").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(worker, number)
    code, said = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), (tmp_path / "said").read_text()
    assert code == 130 and "nothing is lost" in said and f"keel ppo --resume {cfg.out}" in said
    assert json.loads((cfg.out / "result.json").read_text())["status"] == "stopped"
    assert list((cfg.out / "checkpoints").glob("step-*.pt"))


def test_second_process_on_a_run_folder_is_refused(tmp_path, capsys):
    cfg = ppo_config(tmp_path, steps=400)
    (tmp_path / "ppo.toml").write_text(cfg.to_toml())
    worker = forked(["ppo", str(tmp_path / "ppo.toml")], tmp_path / "said")
    while not (tmp_path / "ppo/metrics.jsonl").exists():
        time.sleep(0.05)
    code = main(["ppo", "--resume", str(cfg.out)])
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    assert code == 6 and "another process is working in this run folder" in capsys.readouterr().err


def test_broken_reward_model_stops_the_run_with_record_ids(tmp_path):
    from safetensors.torch import load_file, save_file

    cfg = ppo_config(tmp_path)
    weights = load_file(tmp_path / "reward/model.safetensors")
    save_file(
        {name: x * float("nan") if "score" in name else x for name, x in weights.items()},
        tmp_path / "reward/model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(NumericsError, match=r"score is not finite[\s\S]*") as caught:
        ppo.run(cfg)
    assert "records q" in str(caught.value)


def test_alarm_can_stop_the_run(tmp_path):
    with pytest.raises(NumericsError, match="alarm truncation"):
        ppo.run(ppo_config(tmp_path, on_alarm="stop", sampling=SamplingConfig(max_new_tokens=1)))
    assert logged(tmp_path / "ppo", "alarms.jsonl", None)[0]["name"] == "truncation"


def test_minibatches_cover_each_pass_once(tmp_path):
    cfg = ppo_config(tmp_path, rollouts=8, minibatch=2, passes=2)
    parts = [minibatch(cfg.rollouts, cfg.minibatch, k, seed=0, step=1) for k in range(cfg.updates)]
    for one_pass in (parts[:4], parts[4:]):
        assert sorted(itertools.chain(*one_pass)) == list(range(8))
    assert parts[:4] != parts[4:]
