"""MetaRM's experiment on made-up courses, its parts on tiny models, and the loop in miniature."""

import json
from pathlib import Path

import pytest
import tiny
import tolerances as tol
import torch
from experimenting import SIZE, TOWN, InThisProcess
from recipes.running import FAST, reward

from keel.experiments import meta_loop, meta_rm, stages
from keel.experiments.meta_loop import MetaLoopConfig, Round, stop_because
from keel.experiments.meta_rm import Course, MetaRMTrialConfig, Sight, claims, seen, sight, stages_of
from keel.experiments.trial import judged
from keel.models.load import ModelConfig
from keel.recipes.meta_rm import MetaRMConfig
from keel.recipes.ppo import PPOConfig
from keel.train.inputs import DataConfig


def course(plain=(0.8, 0.75, 0.72, 0.7), meta=(0.8, 0.79, 0.78, 0.77), spread=0.1, gold_meta=0.3) -> Course:
    return Course(tuple(Sight(x, 0.5, 100) for x in plain), tuple(Sight(x, 0.5 + spread, 100) for x in meta),
                  (0.0, 0.1, 0.2, 0.25), gold_meta)


def verdicts(courses: list[Course]) -> list[str]:
    return [judged(claim).verdict for claim in claims(courses)]


def test_verdicts() -> None:
    assert verdicts([course()] * 5) == ["holds"] * 5
    no = "does not hold"
    assert verdicts([course(plain=(0.7, 0.7, 0.7, 0.75))] * 5) == [no, "holds", no, "holds", "holds"]
    assert verdicts([course(meta=(0.9, 0.7, 0.7, 0.7))] * 5) == ["holds", no, no, "holds", "holds"]
    assert verdicts([course(spread=-0.1, gold_meta=0.1)] * 5) == ["holds", "holds", "holds", no, no]
    mixed = [course()] * 4 + [course(meta=(0.9, 0.7, 0.7, 0.7), spread=-0.1, gold_meta=0.1)]
    assert verdicts(mixed) == ["holds", "not settled", "not settled", "not settled", "not settled"]


def test_gold_after_the_second_round_is_compared_with_the_second_round() -> None:
    assert claims([course(gold_meta=0.24)])[4].comparisons["gold on test prompts after round 2, MetaRM minus plain"] \
        == [pytest.approx(0.04, rel=tol.RELATIVE64)]


def test_what_a_model_sees() -> None:
    # First prompt: gold 1 > 0 = 0, so two pairs, of which the scores order one. Second: all equal in gold, no pair.
    # Third: a tie of scores is worth a half.
    scores = [torch.tensor([2.0, 1.0, 3.0]), torch.tensor([5.0, 7.0]), torch.tensor([4.0, 4.0])]
    golds = [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])]
    found = seen(scores, golds)
    assert found.n_pairs == 3 and found.accuracy == pytest.approx((1 + 0 + 0.5) / 3, rel=tol.RELATIVE32)
    # Within: sqrt(2/3), 1 and 0; over all seven scores: mean 26/7, mean square 120/7.
    within = ((2 / 3) ** 0.5 + 1 + 0) / 3
    assert found.spread == pytest.approx(within / (120 / 7 - (26 / 7) ** 2) ** 0.5, rel=tol.RELATIVE32)


def config(tmp: Path, **changes) -> MetaRMTrialConfig:
    return MetaRMTrialConfig(**({"out": tmp / "x", "seeds": 1, "town": TOWN, "ppo": SIZE, "n_asked": 20} | changes))


def test_each_stage_has_the_models_of_its_round(tmp_path) -> None:
    found = {name.split("/")[1]: stage for part in stages_of(config(tmp_path), 3).values()
             for name, stage in part.items()}
    ends = {name: [Path(stage.policy.path).parent.name, Path(stage.reward_model.path).parent.name, stage.seed]
            for name, stage in found.items() if name.startswith("policy")}
    assert ends == {"policy-1": ["sft", "reward_model", 301], "policy-2": ["policy-1", "reward_model", 302],
                    "policy-3": ["policy-2", "reward_model", 303], "policy-2-meta": ["policy-1", "meta-1", 302]}
    assert found["policy-2-meta"].critic == found["policy-2"].critic
    for number, policy in enumerate(["sft", "policy-1", "policy-2", "policy-3"]):
        meta, plain = found[f"meta-{number}"], found["reward_model"]
        assert Path(meta.policy.path).parent.name == policy
        same = ("model", "data", "seed", "steps", "batch", "center_coef", "optimizer", "epochs", "shared_prompt")
        assert [getattr(meta, name) for name in same] == [getattr(plain, name) for name in same]
        assert Path(found[f"said-{policy}"].model.path) == Path(meta.policy.path)


def test_every_question_several_times(tmp_path) -> None:
    cfg = config(tmp_path, n_responses=3)
    tiny.prompts(tmp_path / "p.jsonl", 2)
    (cfg.out / "town").mkdir(parents=True)
    (tmp_path / "p.jsonl").rename(cfg.out / "town/prompts-test.jsonl")
    meta_rm.write_questions(cfg)
    rows = [json.loads(line) for line in (cfg.out / "questions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["q0/0", "q0/1", "q0/2", "q1/0", "q1/1", "q1/2"]
    assert rows[0]["prompt"] == rows[2]["prompt"] != rows[3]["prompt"]


def test_a_model_looks_at_samples(tmp_path) -> None:
    said = ["yes please .", "no .", "", "hello two"]
    tiny.write_rows(tmp_path / "samples.jsonl", [
        {"id": f"q{i}/{j}", "prompt": prompt, "response": text, "ended": j < 3, "gold": float(j)}
        for i, prompt in enumerate(tiny.conversations(5)) for j, text in enumerate(said)])
    found = sight(reward(tmp_path), tmp_path)
    assert found.n_pairs == 15 and 0 <= found.accuracy <= 1 and found.spread > 0  # the empty one is left out


def test_from_stages_to_verdict(tmp_path, monkeypatch, capsys) -> None:
    asked = {}
    monkeypatch.setattr(meta_rm, "side_by_side", lambda folder, title, stages, **_: asked.update(stages))
    monkeypatch.setattr(meta_rm, "read", lambda cfg, seed: course(gold_meta=0.3 + 0.01 * seed))
    cfg = config(tmp_path, seeds=5)
    result = meta_rm.run(cfg)
    assert len(asked) == 5 * (2 + 3 + 4 + 1 + 5)
    assert [row["verdict"] for row in result.values["findings"]] == ["holds"] * 5
    rows = (cfg.out / "table.md").read_text().splitlines()
    assert rows[5].startswith("| 3 | 0.700 [") and "| 0.320 [" in rows[4]
    assert result.values["courses"][0]["plain"][3]["accuracy"] == 0.7
    assert (cfg.out / "accuracy.svg").stat().st_size > 0
    assert "**holds**: MetaRM keeps what it had" in capsys.readouterr().out


@pytest.mark.parametrize("change, reason", [
    ({}, None), ({"gold": None}, None), ({"gold": 0.09}, "gold fell from 0.100 to 0.090"),
    ({"gold": None, "gold_before": None, "perplexity": 6.5}, "the score grew from 1.000 to 2.000 while the answers"),
    ({"perplexity": 6.5, "score": 0.9}, None), ({"perplexity": 5.9}, None)])
def test_when_the_loop_ends(change: dict, reason: str | None) -> None:
    now = {"number": 1, "score_before": 1.0, "score": 2.0, "gold_before": 0.1, "gold": 0.2, "perplexity": 4.0,
           "perplexity_first": 3.0}
    found = stop_because([Round(**(now | change))], most_perplexity=2.0)
    assert found is None if reason is None else found.startswith(reason)


def loop_config(tmp: Path, **changes) -> MetaLoopConfig:
    reward(tmp)  # makes the policy too
    fast = f"[{{}}]\nlr = {FAST.lr}\nschedule = \"constant\"\n"
    (tmp / "meta.toml").write_text("steps = 2\nbatch = 4\nmeta_batch = 2\nlimit = 6\n[sampling]\nmax_new_tokens = 6\n"
                                   + fast.format("optimizer"))
    (tmp / "ppo.toml").write_text(
        "steps = 2\nrollouts = 4\nminibatch = 4\neval_every = 2\nn_samples = 4\n[critic]\npretrain = 0\n"
        "[sampling]\nmax_new_tokens = 6\n" + fast.format("policy_optimizer"))
    given = {"path": str(tiny.pairs(tmp / "pairs.jsonl")), "max_length": 64, "validation_fraction": 0.3}
    return MetaLoopConfig(**({
        "out": tmp / "loop", "policy": ModelConfig(path=str(tmp / "base")), "rounds": 2, "gold": "tiny:count_yes",
        "pairs": DataConfig(**given), "meta_rm": str(tmp / "meta.toml"), "ppo": str(tmp / "ppo.toml"),
        "prompts": DataConfig(**(given | {"path": str(tiny.prompts(tmp / "prompts.jsonl"))}))} | changes))


def in_this_process(folder: Path, name: str, stage: MetaRMConfig | PPOConfig) -> InThisProcess:
    file = folder / f"{name}.toml"
    file.write_text(stage.to_toml())
    return InThisProcess(["python", "-m", "keel", "meta-rm" if isinstance(stage, MetaRMConfig) else "ppo", str(file)])


def test_the_loop_in_miniature(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stages, "started", in_this_process)
    monkeypatch.setattr(meta_loop, "stop_because", lambda found, most_perplexity: None)
    result = meta_loop.run(loop_config(tmp_path))
    first, second = result.values["rounds"]
    asked = json.loads((tmp_path / "loop/meta-2/responses.jsonl").read_text().splitlines()[0])
    assert "completion" in asked and result.values["best_round"] == 2
    assert first["perplexity_first"] == second["perplexity_first"] > 1
    assert first["score"] != second["score_before"]  # each round has a MetaRM of its own
    for name, policy in (("meta-2", "loop/ppo-1/model"), ("ppo-2", "loop/ppo-1/model"), ("ppo-1", "base")):
        assert policy in (tmp_path / f"loop/{name}/config.toml").read_text()
    assert (tmp_path / "loop/table.md").read_text().count("\n| ") == 3


def test_the_loop_stops_and_names_the_policy_before(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stages, "started", in_this_process)
    monkeypatch.setattr(meta_loop, "stop_because", lambda found, most_perplexity: "enough")
    result = meta_loop.run(loop_config(tmp_path, rounds=3))
    assert len(result.values["rounds"]) == 1 and result.values["stopped"] == "enough"
    assert result.values["best_policy"] == str(tmp_path / "base") and result.values["notes"] == [
        "stopped after round 1: enough"]


def test_settings_from_a_preset() -> None:
    assert meta_loop.settings("ppo_max_report")["kl"]["coef"] > 0
    assert meta_loop.settings(None) == {}
