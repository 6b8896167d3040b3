"""Offline policy gradient: every variant against plain loops, what changes nothing, what each switch does."""

import pytest
import tiny
import tolerances as tol
import torch
from recipes.offline_runs import by_hand, offline_config, rows_of, whole_batch
from recipes.running import FAST, flat_gradient, logged
from references import offline as slow
from safetensors.torch import load_file

from keel.data.collate import collate
from keel.models.load import FrozenModelConfig, ModelConfig, causal_lm
from keel.models.lora import LoraSettings
from keel.recipes import offline_pg
from keel.train.choice import drawn
from keel.train.offline import offline_loss
from keel.train.step import Learner

VARIANTS = {
    "nll": {}, "wbc": {}, "r_gold": {"gold_floor": 0.05}, "r_lol": {"clip": 0.5}, "a_lol": {"clip": 0.9},
    "a_lol_ref_free": {}, "a_lol_seq": {"clip": 0.3}, "a_lol_kl": {"kl_coef": 0.1},
    "r_lol_kl": {"kl_coef": 0.2, "kl_term": "quotient"}, "pro": {}}
KL = {"difference": slow.lol_difference, "quotient": slow.lol_quotient, "k3": slow.lol_k3}


def other(tmp) -> FrozenModelConfig:
    """A reference that is not the policy, so that ratios are far from 1."""
    folder = tmp / "other"
    return FrozenModelConfig(path=str(folder if folder.exists() else tiny.llama(folder, seed=1)))


def priced(loss, own: list[float], ref: list[float], worth: float) -> slow.Priced:
    """The loss of a response and its slope at each token, by the plain loops."""
    if loss.variant == "nll":
        return slow.nll(own, 1.0)
    if loss.variant in ("wbc", "a_lol_ref_free"):
        return slow.nll(own, worth)
    if loss.variant == "r_gold":
        return slow.gold(own, worth, loss.gold_floor)
    if loss.variant in ("r_lol", "a_lol"):
        return slow.lol(own, ref, worth, loss.clip)
    if loss.variant == "a_lol_seq":
        return slow.lol_seq(own, ref, worth, loss.clip)
    return KL[loss.kl_term](own, ref, worth, loss.kl_coef)


def watched(monkeypatch) -> list[tuple[list[torch.Tensor], torch.Tensor]]:
    """Weights before each step of the policy, and the gradient that it takes."""
    seen, step = [], Learner.step

    def spied(learner, number, ids, **how):
        if len(ids) > 1 and not ids[0].startswith("validation"):
            seen.append(([p.detach().clone() for p in learner.parameters], flat_gradient(learner)))
        return step(learner, number, ids, **how)

    monkeypatch.setattr(Learner, "step", spied)
    return seen


def at(cfg, weights):
    """The policy as it was with these weights."""
    model = causal_lm(cfg.policy)
    with torch.no_grad():
        for p, w in zip(model.parameters(), weights, strict=True):
            p.copy_(w)
    return model


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "pro"])
def test_three_steps_have_the_loss_and_the_gradient_of_the_plain_loops(tmp_path, monkeypatch, variant):
    """With a reference of its own; 12 responses worth 0.75, 0.25, 0.5 and 0, whose mean is 0.375."""
    seen = watched(monkeypatch)
    cfg = whole_batch(tmp_path, loss={"variant": variant} | VARIANTS[variant], reference=other(tmp_path),
                      micro_tokens=60)
    offline_pg.run(cfg)
    rows, ref = rows_of(cfg), causal_lm(ModelConfig(path=cfg.reference.path))
    with torch.no_grad():
        said = [by_hand(ref, row).double().tolist() for row in rows]
    worths = [(0.75, 0.25, 0.5, 0.0)[i % 4] for i in range(12)]
    if variant.startswith("a_lol"):
        worths = [max(0.0, r - 0.375) for r in worths]
    assert len(seen) == 3
    for metrics, (weights, gradient) in zip(logged(cfg.out), seen, strict=True):
        model, total, objective = at(cfg, weights), 0.0, torch.zeros(())
        for row, q, worth in zip(rows, said, worths, strict=True):
            own = by_hand(model, row)
            loss, slopes = priced(cfg.loss, own.detach().double().tolist(), q, worth)
            total, objective = total + loss / 12, objective + (torch.tensor(slopes) * own).sum() / 12
        assert metrics["loss"] == pytest.approx(total, rel=tol.GRADIENT32["rtol"])
        objective.backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(gradient, expected, **tol.GRADIENT32)
    assert gradient.abs().max() > tol.GRADIENT32["atol"] * 100


@pytest.mark.parametrize("micro_tokens", [30, 2048])
def test_pro_ranks_the_responses_to_each_prompt_and_imitates_the_best(tmp_path, monkeypatch, micro_tokens):
    """Three prompts with three, two and one response: the last has nothing to rank. A micro-batch each, or one."""
    answers = [["no .", "yes please .", "the cat sat ."], ["hello two red blue", "no no"], ["yes ."]]
    prompts = tiny.conversations(3)
    file = tiny.write_rows(tmp_path / "few.jsonl", [
        {"id": f"d{i}{k}", "prompt": prompts[i], "completion": tiny.said(text)}
        for i, group in enumerate(answers) for k, text in enumerate(group)])
    seen = watched(monkeypatch)
    cfg = whole_batch(tmp_path, loss={"variant": "pro", "sft_coef": 0.2}, responses="all", selection={}, batch=2,
                      value={}, micro_tokens=micro_tokens)
    offline_pg.run(cfg)
    assert str(file) == cfg.data.path
    by_id = {row.record_id: row for row in rows_of(cfg)}
    # By their worth: 0.75, 0.5, 0.25; and 0, 0, in the order of the file.
    groups = [(["d01", "d02", "d00"], [0.75, 0.5, 0.25]), (["d10", "d11"], [0.0, 0.0])]
    for metrics, (weights, gradient) in zip(logged(cfg.out), seen, strict=True):
        model, total, rank, objective = at(cfg, weights), 0.0, 0.0, torch.zeros(())
        for names, worths in groups:
            own = [by_hand(model, by_id[name]) for name in names]
            loss, slopes = slow.pro([float(x.detach().double().mean()) for x in own], worths)
            sft = 0.2 * (len(names) - 1) ** 2
            total, rank = total + (loss - sft * float(own[0].detach().sum())) / 2, rank + loss / 2
            objective = objective + (sum(slope * x.mean() for slope, x in zip(slopes, own, strict=True))
                                     - sft * own[0].sum()) / 2
        assert metrics["loss"] == pytest.approx(total, rel=tol.GRADIENT32["rtol"])
        assert metrics["rank"] == pytest.approx(rank, rel=tol.GRADIENT32["rtol"])
        objective.backward()
        torch.testing.assert_close(gradient, torch.cat([p.grad.flatten() for p in model.parameters()]),
                                   **tol.GRADIENT32)


@pytest.mark.parametrize("variant", ["a_lol_seq", "pro"])
def test_micro_batches_change_nothing(tmp_path, variant):
    """The value estimate, the examinations and the reference's numbers included."""
    found = []
    for name, micro in (("some", 40), ("all", 10_000)):
        kind = {"responses": "all"} if variant == "pro" else {}
        if variant == "pro":
            kind["data"] = offline_config(tmp_path).data.model_copy(update={"path": str(
                tiny.pairs(tmp_path / "pairs.jsonl", 40))})
        cfg = offline_config(tmp_path, out=tmp_path / name, steps=3, micro_tokens=micro, loss={"variant": variant},
                             reference=other(tmp_path), value={"epochs": 1, "lr": 1e-4}, **kind)
        offline_pg.run(cfg)
        found.append([{key: x for key, x in row.items() if key != "phase"} for row in logged(cfg.out, phase=None)])
    for rows in found[1:]:
        for a, b in zip(found[0], rows, strict=True):
            assert a == pytest.approx(b, **tol.MICRO_BATCHES)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_policy_that_is_its_reference_has_ratio_one_and_three_variants_are_one(tmp_path, rank):
    """Also with an adapter; in the first step alone."""
    rows = []
    for variant in ("a_lol", "a_lol_seq", "a_lol_ref_free"):
        cfg = offline_config(tmp_path, out=tmp_path / variant, loss={"variant": variant}, steps=2, n_samples=0)
        offline_pg.run(cfg.model_copy(update={"policy": cfg.policy.model_copy(update={
            "lora": LoraSettings(rank=rank)})}))
        rows.append(logged(cfg.out))
    for row in (rows[0][0], rows[1][0]):
        assert row["ratio"] == pytest.approx(1, abs=tol.RATIO)
        assert row["shift"] == pytest.approx(0, abs=tol.GRADIENT32["atol"])
        assert row["ratio/below"] == row["ratio/above"] == 0
    for name in ("loss", "grad_norm", "credit"):
        assert rows[0][0][name] == pytest.approx(rows[1][0][name], rel=tol.GRADIENT32["rtol"])
        assert rows[0][0][name] == pytest.approx(rows[2][0][name], rel=tol.GRADIENT32["rtol"])
    assert abs(rows[0][1]["shift"]) > tol.GRADIENT32["atol"] * 10 and "ratio" not in rows[2][0]


def test_a_value_of_nothing_makes_a_lol_into_r_lol(tmp_path, monkeypatch):
    """V = 0: the same draws, the same losses, the same weights in the end, bit for bit."""
    real = offline_pg.reference_values

    def nothing(*arguments, **named):
        values, how = real(*arguments, **named)
        return torch.zeros_like(values), how

    monkeypatch.setattr(offline_pg, "reference_values", nothing)
    for variant in ("a_lol", "r_lol"):
        offline_pg.run(offline_config(tmp_path, out=tmp_path / variant, steps=3, n_samples=0, loss={
            "variant": variant}, selection={"keep": "all"}, value={"kind": "constant"}))
    assert logged(tmp_path / "a_lol", phase=None) == logged(tmp_path / "r_lol", phase=None)


def test_full_training_and_an_adapter_learn_what_is_worth_more(tmp_path):
    """The nice words become more likely; the adapter is folded into the model that is saved."""
    from transformers import AutoModelForCausalLM

    for name, rank, lr in (("full", None, 5e-3), ("lora", 4, 2e-2)):
        cfg = offline_config(tmp_path, out=tmp_path / name, steps=24, eval_every=8, batch=12,
                             optimizer=FAST.model_copy(update={"lr": lr}))
        spec = cfg.policy.model_copy(update={"lora": LoraSettings(rank=rank)})
        found = offline_pg.run(cfg.model_copy(update={"policy": spec})).values
        assert found["evaluation"]["score"]["mean"] > found["before"]["score"]["mean"]
        assert found["headline"]["change"]["low"] > 0 and found["headline"]["metric"] == "score"
        assert found["evaluation"]["score"] == found["headline"]["after"]
        means = {row["step"]: row["score/mean"] for row in logged(cfg.out, phase="eval")}
        assert [*means] == [0, 8, 16, 24] and found["best"]["step"] == max(means, key=means.get) > 0
        assert found["best"]["score"]["mean"] == max(means.values())
        assert (cfg.out / "model/adapter").exists() == (rank is not None)
        AutoModelForCausalLM.from_pretrained(cfg.out / "model")
        AutoModelForCausalLM.from_pretrained(cfg.out / "best")


def test_the_seed_draws_the_adapter(tmp_path):
    """Its half that does not start at zero, as it is saved after a learning rate of nothing."""
    drawn_at = []
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        cfg = whole_batch(tmp_path, out=tmp_path / name, seed=seed, steps=1, loss={"variant": "wbc"},
                          optimizer=FAST.model_copy(update={"lr": 1e-30}))
        policy = cfg.policy.model_copy(update={"lora": LoraSettings(rank=2)})
        offline_pg.run(cfg.model_copy(update={"policy": policy}))
        saved = load_file(cfg.out / "model/adapter/adapter_model.safetensors")
        drawn_at.append(torch.cat([x.flatten() for key, x in sorted(saved.items()) if "lora_A" in key]))
    assert torch.equal(drawn_at[0], drawn_at[1]) and not (drawn_at[0] == drawn_at[2]).any()


# --- which responses, how often, how much ----------------------------------------------------------------------------


def test_filter_priority_and_weight_are_switched_one_by_one(tmp_path, monkeypatch):
    """What a response pulls, over many draws: nothing, 1, A, or A squared. V is one number, so A is known."""
    seen = {}

    def watch_rows(rows, pad_id):
        seen["kinds"] = [int(row.record_id[1:]) % 4 for row in rows]
        return collate(rows, pad_id)

    def watch_loss(cfg, logprobs, ref, credit, mask):
        loss, stats = offline_loss(cfg, logprobs, ref, credit, mask)
        sums = logprobs.detach().where(mask, 0.0).sum(1)
        for kind, x in zip(seen["kinds"], (-loss.detach() / sums).tolist(), strict=True):
            seen["pulled"][kind] += x
        return loss, stats

    def watch_draws(weights, *rest, **named):
        seen["weights"] = weights
        return drawn(weights, *rest, **named)

    monkeypatch.setattr(offline_pg, "drawn", watch_draws)
    monkeypatch.setattr(offline_pg, "collate", watch_rows)
    monkeypatch.setattr(offline_pg, "offline_loss", watch_loss)
    for keep in ("all", "positive"):
        for draw in ("uniform", "priority"):
            for weight in ("one", "credit"):
                seen["pulled"] = dict.fromkeys(range(4), 0.0)
                cfg = offline_config(
                    tmp_path, out=tmp_path / f"{keep}-{draw}-{weight}", cache=tmp_path / "cache", steps=40, batch=32,
                    eval_every=40, save_every=40, n_samples=0, loss={"variant": "a_lol_ref_free", "weight": weight},
                    selection={"keep": keep, "draw": draw}, value={"kind": "constant"},
                    optimizer=FAST.model_copy(update={"lr": 1e-9}))
                offline_pg.run(cfg)
                lines = logged(cfg.out, "advantages.jsonl", None)
                gains = {int(line["id"][1:]) % 4: max(0.0, line["advantage"]) for line in lines}
                assert sorted(x > 0 for x in gains.values()) == [False, True, True, True]
                assert all(line["kept"] == ((keep == "all" and draw == "uniform") or line["advantage"] > 0)
                           for line in lines)
                assert seen["weights"] == (None if draw == "uniform" else [
                    max(0.0, line["advantage"]) for line in lines if line["kept"]])
                power = (draw == "priority") + (weight == "credit")
                expected = {kind: gain**power if power else float(gain > 0 or keep == "all")
                            for kind, gain in gains.items()}
                n = {kind: sum(int(line["id"][1:]) % 4 == kind for line in lines) for kind in gains}
                each = {kind: seen["pulled"][kind] / n[kind] for kind in gains}
                for kind in gains:
                    assert each[kind] / sum(each.values()) == pytest.approx(
                        expected[kind] / sum(expected.values()), abs=tol.WITHIN["share of 1000 cells"])
