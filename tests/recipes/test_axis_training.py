"""An axis in training: it prices states, acts on passes or watches, in every recipe; off, it leaves no trace."""

import copy
import json

import pytest
import tiny
import tolerances as tol
import torch
from recipes.offline_runs import offline_config
from recipes.running import (
    brief,
    group_ppo_config,
    killed_here,
    logged,
    moved,
    part_of,
    preference_config,
    same_results,
    sft_config,
    watched,
)
from recipes.test_preference_labelled import labelled_file

from keel.data.load import read_demonstrations
from keel.data.render import render_demonstrations, template
from keel.errors import ConfigError
from keel.models.actors import Actors
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.online import update as updates
from keel.online.anchor import Anchor
from keel.online.gauge import Gauge, opened
from keel.online.held import Held
from keel.persona.axis import AssistantAxis
from keel.recipes import group_ppo, offline_pg, ppo, preference, sft
from keel.recipes.ppo import PPOConfig
from keel.recipes.preference import PreferenceConfig
from keel.recipes.sft import SFTConfig
from keel.train.direct import Material
from keel.train.inputs import split
from keel.train.labelled import Singles
from keel.train.step import Learner
from keel.train.tally import Tally


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    tiny.llama(folder / "base")
    drawn = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    AssistantAxis(drawn, token_norm=torch.ones(2), meta={"layer": "1"}).save(folder / "axis.safetensors")
    tiny.write_rows(folder / "probes.jsonl", [{"id": f"b{i}", "prompt": prompt, "probe": ("neutral", "role")[i % 2]}
                                              for i, prompt in enumerate(tiny.conversations(8))])
    return folder


def anchor(home, **changes) -> dict:
    return {"path": home / "axis.safetensors", "coef": 2.0, "percentile": 90, "prompts": "all"} | changes


def persona(home) -> dict:
    return {"path": home / "axis.safetensors", "probes": str(home / "probes.jsonl"), "every": 1}


def steps_of(monkeypatch) -> list[torch.Tensor]:
    """The gradient of each step of a run, as one vector."""
    seen, real = [], Learner.step

    def step(learner, *args, **named):
        seen.append(torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten().clone()
                               for p in learner.parameters]))
        return real(learner, *args, **named)

    monkeypatch.setattr(Learner, "step", step)
    return seen


QUICK = {"steps": 2, "n_samples": 0, "eval_every": 1000, "save_every": 1000}
RECIPES = {"sft": (sft, sft_config), "dpo": (preference, preference_config), "kto": (preference, preference_config),
           "offline-pg": (offline_pg, offline_config)}


def run(name: str, home, out, **changes):
    recipe, config = RECIPES[name]
    more = {"loss": "kto"} if name == "kto" else {"loss": {"variant": "wbc"}} if name == "offline-pg" else {}
    return recipe.run(config(home, out=out, **(QUICK | more | changes)))


# --- every recipe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_anchor_adds_its_price_whatever_the_micro_batches_are(home, tmp_path, monkeypatch, name):
    """The first step's gradient: with the price it is another one, in proportion to the coefficient, and the same for
    small and large micro-batches, whose weights add up to what they are divided by; the parts are logged."""
    found, asked, real = {}, [], Anchor.cost

    def cost(own, batch, weights, total, tally):
        asked.append((float(weights.sum()), float(total)))
        return real(own, batch, weights, total, tally)

    runs = {"plain": {}, "one": {"anchor": anchor(home)}, "small": {"anchor": anchor(home), "micro_tokens": 30}}
    for label, changes in (runs | ({"half": {"anchor": anchor(home, coef=1.0)}} if name == "sft" else {})).items():
        seen, asked[:] = steps_of(monkeypatch), []
        monkeypatch.setattr(Anchor, "cost", cost)
        result = run(name, home, tmp_path / label, steps=1, **changes).values
        monkeypatch.undo()
        found[label] = seen[0]
        assert not asked or sum(weight for weight, _ in asked) == asked[0][1]
        assert len(asked) == {"plain": 0}.get(label, len(asked)) and (label != "small" or len(asked) > 2)
        assert ("anchor" in result) == ("anchor" in changes)
    rise = found["one"] - found["plain"]
    assert rise.abs().max() > tol.CREDIT32["rtol"]
    torch.testing.assert_close(found["small"], found["one"], **tol.GRADIENT32)
    if name == "sft":
        torch.testing.assert_close(found["half"] - found["plain"], rise / 2, **tol.GRADIENT32)
    row = logged(tmp_path / "one")[0]
    assert row["anchor/loss"] > 0 and 0 < row["anchor/below"] <= 1
    assert "anchor/loss" not in logged(tmp_path / "plain")[0]
    assert result["anchor"]["rows"] is None and len(result["anchor"]["floor"]) == 1


@pytest.mark.parametrize("name", ["sft", "offline-pg"])
def test_a_recipe_is_watched_and_stays_what_it_is(home, tmp_path, name):
    plain, seen = (run(name, home, tmp_path / label, **changes).values
                   for label, changes in (("plain", {}), ("seen", {"persona": persona(home)})))
    told = [row for row in logged(tmp_path / "seen", phase="eval") if "persona/neutral/z" in row]
    assert [row["step"] for row in told] == [0, 1, 2]
    assert told[0]["persona/neutral/z"] == pytest.approx(0.0, abs=tol.SIX_DECIMALS)
    assert told[2]["persona/neutral/delta"] != 0.0 and "persona/role/z" in told[2]
    assert "persona" not in plain and seen["persona"]["last"]["persona/role/z"] == told[2]["persona/role/z"]
    assert ("advantage" in seen["persona"]) == (name == "offline-pg")
    assert logged(tmp_path / "plain") == logged(tmp_path / "seen")
    same = [(tmp_path / label / "model/model.safetensors").read_bytes() for label in ("plain", "seen")]
    assert same[0] == same[1]


@pytest.mark.parametrize("name", ["sft", "dpo", "kto"])
def test_steering_is_there_in_training_and_gone_in_evaluation_and_in_what_is_saved(home, tmp_path, monkeypatch, name):
    """The first step has the loss and the gradient of a model that is steered all the time; evaluations before it are
    those of the bare model."""
    how = {"path": home / "axis.safetensors", "steer": -2.0, "unit": "unit"}
    bare_gradients = steps_of(monkeypatch)
    plain = run(name, home, tmp_path / "plain", steps=1)
    monkeypatch.undo()
    gradients = steps_of(monkeypatch)
    found = run(name, home, tmp_path / "steered", steps=1, steered=how).values
    monkeypatch.undo()
    before = [logged(tmp_path / label, phase="eval")[0] for label in ("plain", "steered")]
    assert before[0] == before[1] and found["steered"]["saved"].startswith("the bare model")
    assert "steered" not in plain.values
    assert not torch.equal(gradients[0], bare_gradients[0])
    if name != "sft":  # here the first step is compared with what a reference says, which is bare
        return
    real = causal_lm

    def always(*args, **named):
        model = real(*args, **named)
        AssistantAxis.load(how["path"]).steer(model, -2.0, unit="unit")
        return model

    monkeypatch.setattr(sft, "causal_lm", always)
    seen = steps_of(monkeypatch)
    run(name, home, tmp_path / "always")
    torch.testing.assert_close(gradients[0], seen[0], **tol.FLOAT32)


@pytest.mark.parametrize("of", [Material, Singles])
def test_the_baseline_of_kto_is_of_the_steered_policy(home, tmp_path, monkeypatch, of):
    """Of pairs and of labelled responses; in the evaluation before the step it is the bare policy's."""
    how, real, seen = {"path": home / "axis.safetensors", "steer": -2.0, "unit": "unit"}, of.baseline, []
    bare, steered = (causal_lm(ModelConfig(path=str(home / "base"))) for _ in range(2))
    AssistantAxis.load(how["path"]).steer(steered, -2.0, unit="unit")
    ids = torch.tensor([[1, 4, 8, 9, 10]])

    def baseline(own, policy, picked):
        seen.append([torch.equal(policy(ids).logits, model(ids).logits) for model in (bare, steered)])
        return real(own, policy, picked)

    monkeypatch.setattr(of, "baseline", baseline)
    data = preference_config(home).data
    if of is Singles:
        data = data.model_copy(update={"path": str(labelled_file(tmp_path))})
    run("kto", home, tmp_path / "run", steps=1, steered=how, data=data)
    assert seen[:2] == [[True, False], [False, True]]


def test_a_cap_in_training_says_what_it_did(home, tmp_path):
    result = run("sft", home, tmp_path / "run", steered={"path": home / "axis.safetensors", "lower": 3.0}).values
    told = result["steered"]["acted"]["1"]
    assert told["generation"]["clamped"] > 0 and told["prompt"]["n_tokens"] > 0


def test_distillation_learns_without_the_axis_what_the_start_says_under_it(home, tmp_path):
    """The first loss is KL(bare || capped) over the response tokens, by hand; learning brings it down, and the
    validation loss is still that of imitation."""
    how = {"path": home / "axis.safetensors", "lower": 3.0}
    one = sft_config(home, out=tmp_path / "run", **(QUICK | {"steps": 12, "batch": 14, "distil": how}))
    sft.run(one)
    losses = [row["loss"] for row in logged(tmp_path / "run")]
    words, model = template(load_tokenizer(one.model.path)), causal_lm(one.model)
    told = split(read_demonstrations(one.data.path)[0], one.data.validation_fraction, one.seed)[0]
    rows = render_demonstrations(words, told, 64)[0]
    assert len(rows) == 14
    terms = []
    for row in rows:
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            p = model(input_ids=ids).logits[0].double().log_softmax(-1)
            with AssistantAxis.load(how["path"]).floor(model, 3.0):
                q = model(input_ids=ids).logits[0].double().log_softmax(-1)
        terms += [(p[t - 1].exp() * (p[t - 1] - q[t - 1])).sum() for t in range(row.n_prompt, len(row.ids))]
    assert losses[0] == pytest.approx(float(sum(terms) / len(terms)), rel=tol.GRADIENT32["rtol"])
    assert losses[-1] < 0.7 * losses[0]
    assert logged(tmp_path / "run", phase="eval")[0]["loss"] > 1.0


def test_a_run_that_was_killed_goes_on_with_the_same_anchor_and_watch(home, tmp_path):
    changes = {"steps": 3, "save_every": 1, "n_samples": 0, "anchor": anchor(home, prompts="assistant", percentile=40),
               "persona": persona(home)}
    sft.run(sft_config(home, out=tmp_path / "whole", **changes))
    killed_here(sft_config(home, out=tmp_path / "killed", **changes), [("log", 5)], sft.run)
    same_results(tmp_path / "whole", tmp_path / "killed")
    told = json.loads((tmp_path / "whole/environment.json").read_text())["data"]
    assert {str(home / "axis.safetensors"), str(home / "probes.jsonl")} <= told.keys()


# --- PPO: the cap of the policy --------------------------------------------------------------------------------------


def under(home, **changes) -> dict:
    return {"path": home / "axis.safetensors", "lower": 3.0} | changes


def phase(home, tmp_path, monkeypatch, recipe=ppo, config=brief, **changes):
    """One phase; its rollout as measured, and its metrics."""
    seen = watched(monkeypatch, recipe)
    result = recipe.run(config(home, out=tmp_path, **changes)).values
    monkeypatch.undo()
    return seen.phases[0].rollout, logged(tmp_path)[0], result


@pytest.mark.parametrize(("recipe", "config"), [(ppo, brief), (group_ppo, group_ppo_config)])
def test_a_cap_that_is_part_of_the_policy_begins_with_ratio_one(home, tmp_path, monkeypatch, recipe, config):
    """What the sampler wrote down under the cap, a training pass under the cap says too, and so does the reference; a
    pass without it says something else."""
    rollout, row, result = phase(home, tmp_path / "run", monkeypatch, recipe, config, policy_axis=under(home))
    mask = rollout.tokens.response_mask
    assert row["policy/sampler_gap"] < tol.LOG_RATIO
    assert (rollout.ref_logprobs - rollout.logprobs)[mask].abs().max() < tol.LOG_RATIO
    assert (bare(home, rollout) - rollout.logprobs)[mask].abs().max() > 100 * tol.LOG_RATIO
    assert result["policy_axis"]["mode"] == "in_policy" and "bare" in result["policy_axis"]["saved"]
    assert result["policy_axis"]["acted"]["1"]["generation"]["clamped"] > 0


def bare(home, rollout) -> torch.Tensor:
    from keel.models.forward import token_logprobs

    with torch.no_grad():
        return token_logprobs(causal_lm(ModelConfig(path=str(home / "base"))), rollout.tokens)[0]


def test_rollouts_under_a_cap_alone_have_explicit_ratios(home, tmp_path, monkeypatch):
    """Before any update the ratio of a token is exp of what the bare policy says less what the capped one wrote down,
    and drift is charged to the policy that learns."""
    ratios = []
    real = updates.policy_loss

    def policy_loss(micro, logprobs, *rest, **named):
        ratios.append((micro, logprobs.detach(), named["fresh"]))
        return real(micro, logprobs, *rest, **named)

    monkeypatch.setattr(updates, "policy_loss", policy_loss)
    settings = {"policy_axis": under(home, mode="rollout_only"), "minibatch": 8, "loss": {"clip": None}}
    seen = watched(monkeypatch)
    result = ppo.run(brief(home, out=tmp_path / "run", **settings)).values
    rollout, row = seen.phases[0].rollout, logged(tmp_path / "run")[0]
    micro, logprobs, fresh = ratios[0]
    mask = rollout.tokens.response_mask
    gap = (bare(home, rollout) - rollout.logprobs)[mask]
    assert not fresh and "policy/sampler_gap" not in row and gap.abs().max() > 100 * tol.LOG_RATIO
    assert row["policy/ratio"] == pytest.approx(float(gap.exp().mean()), rel=tol.LOG_RATIO)
    told = (logprobs - micro.logprobs)[micro.tokens.response_mask]
    assert (told.sort().values - gap.sort().values).abs().max() < tol.LOG_RATIO
    for name in ("kl/charged", "kl/reference_k1", "kl/reference_k3"):
        assert row[name] == pytest.approx(0.0, abs=tol.LOG_RATIO)
    assert result["policy_axis"]["mode"] == "rollout_only"


def test_the_saved_model_is_the_bare_one(home, tmp_path, monkeypatch):
    """With a learning rate of nearly nothing it is the model of the start, and it speaks without the cap."""
    slow = {"lr": 1e-30, "schedule": "constant", "warmup_fraction": 0.0}
    phase(home, tmp_path / "run", monkeypatch, policy_axis=under(home), policy_optimizer=slow, critic_optimizer=slow)
    saved, begun = (causal_lm(ModelConfig(path=str(path))) for path in (tmp_path / "run/model", home / "base"))
    ids = torch.tensor([[1, 4, 8, 9, 10]])
    assert torch.equal(saved(ids).logits, begun(ids).logits)


def test_the_anchor_in_an_update_has_the_weights_of_the_loss(home):
    """A response that is left out of the losses costs nothing; responses weigh the same where the loss says so."""
    policy = causal_lm(ModelConfig(path=str(home / "base")))
    part = part_of(policy, moved(copy.deepcopy(policy), by=0.05), n=6)
    part.counted[4] = False
    gauge = Gauge(opened(home / "axis.safetensors", policy, ()))
    priced = Held(anchor=Anchor(gauge, (3.0,), (1.0,), 0.5, None, (2,)))
    for reduction in ("token", "sequence"):
        cfg, found = brief(home, loss={"reduction": reduction}), []
        for holds in (Held(), priced):
            policy.zero_grad()
            updates.policy_gradients(Actors(policy, policy, None), part, [], 2, 0.0, cfg, Tally(), holds)
            found.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
        policy.zero_grad()
        terms, weights = [], []
        for i, mask in enumerate(part.tokens.response_mask):
            seen = []
            hook = policy.model.layers[1].register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
            policy(part.tokens.ids[i][part.tokens.attention_mask[i]][None])
            hook.remove()
            hidden = seen[0] if torch.is_tensor(seen[0]) else seen[0][0]
            where = mask.nonzero()[:, 0].tolist()
            weight = 0.0 if i == 4 else 1.0 if reduction == "token" else 1 / len(where)
            for t in where:
                said = int(part.tokens.ids[i, t]) != 2
                terms.append(said * weight * (3.0 - hidden[0, t] @ gauge.units[1]).relu() ** 2)
                weights.append(weight)
        (0.5 * sum(terms) / sum(weights)).backward()
        by_hand = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                             for p in policy.parameters()])
        torch.testing.assert_close(found[1] - found[0], by_hand, **tol.GRADIENT32)


def test_an_anchored_phase_of_ppo_logs_its_parts(home, tmp_path, monkeypatch):
    _, row, result = phase(home, tmp_path / "run", monkeypatch, anchor=anchor(home))
    assert row["anchor/loss"] > 0 and result["anchor"]["layers"] == [1]
    assert json.loads((tmp_path / "run/anchor.json").read_text())["floor"] == result["anchor"]["floor"]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"policy_axis": {"path": "a"}}, "policy_axis names an axis and nothing to do with it"),
    ({"policy_axis": {"path": "a", "lower": 1.0}, "topology": "shared", "policy": {"path": "b", "lora": {"rank": 2}},
      "critic": {"init": "policy"}}, "policy_axis and topology='shared' exclude each other"),
    ({"policy_axis": {"path": "a", "lower": 1.0}, "anchor": {"path": "a"}},
     "anchor and policy_axis.mode='in_policy' exclude each other"),
    ({"policy_axis": {"path": "a", "lower": 1.0, "mode": "rollout_only"}, "loss": {"old_policy": "reference"}},
     "that mode needs ratios"),
    ({"policy_axis": {"path": "a", "lower": 1.0, "mode": "rollout_only"}, "target_kl": 0.1},
     "target_kl and policy_axis.mode='rollout_only' exclude each other"),
    ({"policy_axis": {"path": "a", "lower": 1.0, "control": 0}},
     "policy_axis.control and policy_axis.cap or policy_axis.lower exclude each other")])
def test_settings_that_exclude_each_other_are_refused(home, changes, complaint):
    settings = {"out": "o", "policy": "b", "reward_model": "r", "prompts": "p"} | changes
    with pytest.raises(ConfigError, match=complaint):
        PPOConfig.checked(settings)


@pytest.mark.parametrize("config", [SFTConfig, PreferenceConfig])
def test_anchor_and_steering_together_are_refused(config):
    base = {"out": "o", "model" if config is SFTConfig else "policy": "b", "data": "d"}
    with pytest.raises(ConfigError, match="anchor and steered exclude each other"):
        config.checked(base | {"anchor": "a", "steered": {"path": "a", "steer": 1.0}})
    assert config.checked(base | {"anchor": "a"}).anchor.coef == 0.1


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"distil": "a"}, "distil names an axis and nothing to do with it"),
    ({"steered": {"path": "a", "steer": 1.0, "monitor": 2}}, "steered.monitor shows nothing while a model learns"),
    ({"distil": {"path": "a", "lower": 1.0}, "steered": {"path": "a", "steer": 1.0}},
     "distil and steered exclude each other"),
    ({"distil": {"path": "a", "cap": "p", "control": 0}}, "distil.control and distil.cap or distil.lower exclude"),
    ({"steered": {"path": "a", "lower": 1.0, "control": 0}}, "bounds are measured on the axis, not on its control")])
def test_distillation_from_nothing_or_under_steering_is_refused(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        SFTConfig.checked({"out": "o", "model": "b", "data": "d"} | changes)
