"""Whole runs of `keel group-ppo`: where it is PPO bit for bit, and what its groups do to credit, logs and results."""

import json
import math
from types import SimpleNamespace

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import group_ppo_config, logged, watched

from keel.errors import DataError
from keel.functional.clusters import adjusted_rand, normalised_information
from keel.models.load import LoraSettings, ModelConfig, load_tokenizer, save_model, scalar_model
from keel.recipes import group_ppo, ppo
from keel.recipes.ppo import PPOConfig
from keel.rollout.credit import AdvantageConfig, with_credit


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Models and files that the tests of this module share; each run has a folder of its own."""
    return tmp_path_factory.mktemp("home")


def held_out(home) -> dict:
    return group_ppo_config(home).prompts.model_dump() | {"validation_fraction": 0.3}


def labelled(home, name: str, labels: list, start: int = 0) -> str:
    """A file of prompts with these labels, one each; None: without."""
    rows = [{"id": f"{name}{i}", "prompt": prompt} | ({} if label is None else {"kind": label})
            for i, (prompt, label) in enumerate(zip(tiny.conversations(start + len(labels))[start:], labels,
                                                    strict=True))]
    return str(tiny.write_rows(home / f"{name}.jsonl", rows))


def looked_at(cfg) -> SimpleNamespace:
    """A run, what it computed on its way, and what its groups asked of each phase."""
    with pytest.MonkeyPatch.context() as patch:
        seen, metrics = watched(patch, group_ppo), group_ppo.group_metrics
        seen.asked = []

        def watch(asked, rollout, scored, names):
            seen.asked.append(SimpleNamespace(**vars(asked), rollout=rollout, scored=scored, names=list(names)))
            return metrics(asked, rollout, scored, names)

        patch.setattr(group_ppo, "group_metrics", watch)
        seen.cfg, seen.result = cfg, group_ppo.run(cfg).values
        seen.rows, seen.out = logged(cfg.out), cfg.out
        return seen


def checkpointed(folder, step: int) -> dict:
    return torch.load(folder / f"checkpoints/step-{step:07d}.pt", weights_only=True)


def close_to(x: float):
    return pytest.approx(x, rel=tol.GRADIENT32["rtol"], abs=tol.GRADIENT32["atol"])


# --- where it is PPO -------------------------------------------------------------------------------------------------

WITHIN = {"reward": {"coef": 0.1, "target": 1e-2, "horizon": 40}, "loss": {"coef": 0.1, "estimator": "k2",
                                                                         "within": "loss"}}


def same_settings(home, within: str, **changes) -> dict:
    return {"steps": 3, "save_every": 1, "kl": WITHIN[within], "critic": {"pretrain": 1, "pretrain_until": 1.0},
            "prompts": held_out(home), "n_samples": 3, "passes": 2, "advantage": {"clip": 0.8}} | changes


@pytest.fixture(scope="module")
def plain(home):
    """Runs of `keel ppo`, one for each place of the price of drift."""
    def run(within):
        out = home / f"plain_{within}"
        if not out.exists():
            settings = group_ppo_config(home, out=out, **same_settings(home, within)).model_dump()
            settings.pop("groups")
            ppo.run(PPOConfig.checked(settings))
        return out

    return run


SAME = {
    "one price for all": ("reward", {"objective": None, "kl_floor": 1.0}),
    "one price for all, renormed, in the loss": ("loss", {"objective": None, "kl_floor": 1.0, "kl_renorm": True}),
    "known, one price for all": ("reward", {"objective": None, "kl_floor": 1.0, "source": "known"}),
}


@pytest.mark.parametrize("name", SAME)
def test_without_an_objective_and_with_one_price_for_all_it_is_ppo_bit_for_bit(home, tmp_path, plain, name):
    """Metrics, samples, weights of policy and critic, though the head learns beside them."""
    within, groups = SAME[name]
    one, other = plain(within), tmp_path / "run"
    group_ppo.run(group_ppo_config(home, out=other, groups=groups, **same_settings(home, within)))
    for name_of in ("samples.jsonl", "model/model.safetensors", "alarms.jsonl"):
        assert (one / name_of).read_bytes() == (other / name_of).read_bytes()
    pairs = list(zip(logged(one, phase=None), logged(other, phase=None), strict=True))
    assert len(pairs) == 7 and all(common.items() <= found.items() for common, found in pairs)
    left, right = (checkpointed(folder, 4)["modules"] for folder in (one, other))
    for model in ("policy", "critic"):
        assert all(torch.equal(x, right[model][key]) for key, x in left[model].items())


@pytest.mark.parametrize(("within", "groups"), [
    ("reward", {"objective": "variance"}), ("loss", {"objective": "vrex", "n": 3, "returns": "kl_penalised"}),
    ("reward", {"objective": "dro", "source": "known"})], ids=str)
def test_while_groups_warm_up_it_is_ppo_bit_for_bit_and_then_it_is_not(home, tmp_path, plain, within, groups):
    one, other = plain(within), tmp_path / "run"
    group_ppo.run(group_ppo_config(home, out=other, groups=groups | {"warmup": 2}, **same_settings(home, within)))
    before, after = logged(one, phase=None), logged(other, phase=None)
    acting = next(i for i, row in enumerate(before) if (row["phase"], row["step"]) == ("train", 3))
    assert all(common.items() <= found.items() for common, found in list(zip(before, after, strict=True))[:acting])
    assert before[acting]["advantage/mean"] != after[acting]["advantage/mean"]
    left, right = (checkpointed(folder, 3)["modules"] for folder in (one, other))
    for model in ("policy", "critic"):
        assert all(torch.equal(x, right[model][key]) for key, x in left[model].items())
    assert (one / "model/model.safetensors").read_bytes() != (other / "model/model.safetensors").read_bytes()


def test_with_critic_coef_the_critic_is_another_one(home, tmp_path, plain):
    """From its first update on: it learns for the head, too."""
    settings = same_settings(home, "reward") | {"steps": 1}
    groups = {"objective": None, "kl_floor": 1.0, "critic_coef": 0.5}
    group_ppo.run(group_ppo_config(home, out=tmp_path / "run", groups=groups, **settings))
    [other] = logged(tmp_path / "run", phase="critic")
    [one] = logged(plain("reward"), phase="critic")
    assert one["score/mean"] == other["score/mean"] and one["grad_norm/critic"] != other["grad_norm/critic"]


# --- one run, read closely -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def acting(home):
    """Two phases with inferred groups, an ensemble that scores, advantages normalised over the phase and clipped."""
    cfg = group_ppo_config(home)
    save_model(scalar_model(cfg.policy, seed=9), load_tokenizer(cfg.policy.path), home / "second", pad_id=0)
    pair = [cfg.reward_model.model_dump(), ModelConfig(path=str(home / "second")).model_dump()]
    groups = {"lr": 0.2, "coef": 0.5, "cap": 0.4, "kl_floor": 0.3, "ema_slack": 0.0}
    return looked_at(group_ppo_config(
        home, out=home / "acting", groups=groups, steps=2, save_every=1, rollouts=16, minibatch=8,
        advantage={"normalise": "rollout", "clip": 0.6}, kl={"coef": 0.2}, prompts=held_out(home), n_samples=5,
        gold="tiny:count_yes", reward_model=None, rewards=[{"name": "pair", "models": pair}]))


def head_of(checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(checkpoint["modules"]["groups"][name].double() for name in ("weight", "bias"))


def p_of(head, states) -> torch.Tensor:
    z = 5 * torch.tanh((states.double() @ head[0].T + head[1]) / 5)
    return z.exp() / z.exp().sum(1, keepdim=True)


def test_the_second_phase_is_priced_by_the_head_of_the_first_and_shaped_by_its_own(acting):
    first, second = checkpointed(acting.out, 1), checkpointed(acting.out, 2)
    asked, order = acting.asked[1], first["extra"]["groups"]["order"]
    old, new = (p_of(head_of(one), asked.rollout.states)[:, order] for one in (first, second))
    torch.testing.assert_close(asked.prices.double(), 0.2 * old[:, 1].clamp_min(0.3), **tol.GRADIENT32)
    torch.testing.assert_close(asked.memberships.double(), new, **tol.GRADIENT32)
    assert not torch.allclose(old, new, **tol.GRADIENT32)
    mass, returns = new.sum(0), asked.returns.double()
    means = (new * returns[:, None]).sum(0) / mass
    weights = ((means - means.mean()) * 16 * new / mass * (returns[:, None] - means)).sum(1)  # 2/M = 1
    torch.testing.assert_close(asked.shaping.double(), (-0.5 * weights).clamp(-0.4, 0.4), **tol.GRADIENT32)


def test_token_rewards_are_priced_response_by_response_with_the_score_on_the_last_token(acting):
    for asked, phase in zip(acting.asked, acting.phases, strict=True):
        rollout = asked.rollout
        lengths = set(rollout.tokens.response_mask.sum(1).tolist())
        assert len(lengths) > 1 and len(set(asked.prices.tolist())) > 2
        for i, mask in enumerate(rollout.tokens.response_mask):
            where = mask.nonzero()[:, 0].tolist()
            expected = [-float(asked.prices[i]) * float(rollout.kl[i, t]) for t in where]
            expected[-1] += float(phase.processed[i])
            assert rollout.rewards[i][mask].tolist() == close_to(expected)
            assert not rollout.rewards[i][~mask].any()


def test_advantages_are_those_of_ppo_at_these_prices_normalised_then_shaped_then_clipped(acting):
    for asked, phase in zip(acting.asked, acting.phases, strict=True):
        rollout, mask = asked.rollout, asked.rollout.tokens.response_mask
        raw = with_credit(rollout, phase.processed, kl_coef=asked.prices, truncation=acting.cfg.truncation,
                          advantage=AdvantageConfig())
        a = raw.advantages[mask].double()
        normal = (raw.advantages.double() - a.mean()) / (a.var(correction=0) + 1e-6).sqrt()
        shaped = normal + asked.shaping.double()[:, None]
        assert (shaped[mask].abs() > 0.6).any() and not (shaped[mask].abs() > 0.6).all()
        torch.testing.assert_close(rollout.advantages[mask].double(), shaped[mask].clamp(-0.6, 0.6), **tol.CREDIT32)
        assert not rollout.advantages[~mask].any()
        torch.testing.assert_close(rollout.returns, raw.returns, **tol.CREDIT32)  # what the critic learns
    assert all(update.part.kl_coefs is None for update in acting.updates)  # charged in the rewards, and only there


def test_the_metrics_of_groups_are_those_of_plain_loops(acting):
    for asked, row in zip(acting.asked, acting.rows, strict=True):
        p, mask = asked.memberships.double(), asked.rollout.tokens.response_mask
        lengths = [int(m.sum()) for m in mask]
        nats = [float(kl[m].double().sum()) for kl, m in zip(asked.rollout.kl, mask, strict=True)]
        columns = {"return": asked.returns.tolist(), "score": asked.scored.total.tolist(), "length": lengths,
                   "kl_coef": asked.prices.tolist(), "disagreement": asked.scored.disagreement["pair"].tolist()}
        means = []
        for g, name in enumerate(asked.names):
            mass = float(p[:, g].sum())
            assert row[f"group/{name}/mass"] == close_to(mass / 16)
            for column, values in columns.items():
                found = sum(float(q) * x for q, x in zip(p[:, g], values, strict=True)) / mass
                assert row[f"group/{name}/{column}"] == close_to(found), column
            drift = sum(float(q) * x for q, x in zip(p[:, g], nats, strict=True))
            tokens = sum(float(q) * x for q, x in zip(p[:, g], lengths, strict=True))
            assert row[f"group/{name}/kl"] == close_to(drift / tokens)
            means.append(row[f"group/{name}/return"])
        assert asked.names == ["1", "2"] and row["groups/gap"] == close_to(max(means) - min(means))
        assert row["groups/worst"] == min(means) and row["groups/variance"] == close_to((means[0] - means[1]) ** 2 / 4)
        assert row["groups/entropy"] == close_to(-sum(float(q) * math.log(q) for one in p.tolist() for q in one) / 16)
        assert row["groups/shaping"] == close_to(sum(abs(x) for x in asked.shaping.tolist()) / 16)
        assert row["groups/shaping_max"] == close_to(max(abs(x) for x in asked.shaping.tolist())) and row[
            "groups/coef"] == 0.5
        missing = [max(acting.cfg.groups.floor - float(p[:, g].mean()), 0.0) for g in range(2)]
        objective = row["groups/variance"] - acting.cfg.groups.floor_coef * sum(x**2 for x in missing)
        assert row["groups/objective"] == close_to(objective) and row["kl/coef"] == 0.2
    assert [row["groups/swaps"] for row in acting.rows] == [
        0, checkpointed(acting.out, 1)["extra"]["groups"]["swaps"]]


def test_inferred_groups_are_held_against_the_labels_that_prompts_carry(home, acting):
    domains = {row["id"]: row["domain"] for row in map(json.loads, (home / "prompts.jsonl").read_text().splitlines())}
    for asked, row in zip(acting.asked, acting.rows, strict=True):
        known = torch.tensor([int(domains[name] == "odd") for name in asked.rollout.tokens.record_ids])
        found = torch.tensor([int(q[1] > q[0]) for q in asked.memberships])
        assert row["groups/rand"] == close_to(adjusted_rand(found, known))
        assert row["groups/information"] == close_to(normalised_information(found, known))


def test_exams_tell_labels_apart(acting):
    rows, samples = logged(acting.out, phase="eval"), logged(acting.out, "samples.jsonl", None)
    assert {row["step"] for row in rows} == {0, 2} and len(samples) == 10
    for row in rows:
        for label in ("even", "odd"):
            of_it = [one for one in samples if one["step"] == row["step"] and one["domain"] == label]
            assert 0 < row[f"group/{label}/score/n"] == len(of_it) < 5
            for name in ("score", "gold"):
                found = sum(one[name] for one in of_it) / len(of_it)
                assert row[f"group/{label}/{name}/mean"] == close_to(found)


def test_the_result_says_what_the_groups_are_and_what_to_beware_of(acting):
    told = json.loads((acting.out / "groups.json").read_text())
    assert [one["name"] for one in acting.result["groups"]] == ["1", "2"] and acting.result["recipe"] == "group_ppo"
    assert acting.result["groups"] == [{key: one[key] for key in ("name", "mass", "score", "gold", "length")}
                                       for one in told["groups"]]
    assert acting.result["agreement"] == told["agreement"]
    notes = " ".join(acting.result["notes"])
    assert "rollouts=16: means of groups are unsteady below 64 responses" in notes
    assert "such groups largely follow the score itself" in notes


def test_prices_go_into_the_loss_where_the_drift_does(home, tmp_path):
    seen = looked_at(group_ppo_config(home, out=tmp_path / "run", steps=2, minibatch=8,
                                      kl={"coef": 0.2, "estimator": "k2", "within": "loss"},
                                      groups={"level": "prompt", "objective": "worst"}))
    for asked, phase, update in zip(seen.asked, seen.phases, seen.updates, strict=True):
        assert torch.equal(phase.rollout.kl_coefs, asked.prices) and len(set(asked.prices.tolist())) > 1
        rows = [list(asked.rollout.tokens.record_ids).index(name) for name in update.part.tokens.record_ids]
        assert torch.equal(update.part.kl_coefs, asked.prices[rows])
        mask = asked.rollout.tokens.response_mask
        assert [r[m][:-1].any().item() for r, m in zip(phase.rollout.rewards, mask, strict=True)] == [False] * 8
    assert not any("largely follow the score" in note for note in seen.result["notes"])


def test_ratios_take_the_place_of_shaping(home, tmp_path):
    """Memberships and returns travel to the update; advantages are those of plain PPO at these prices."""
    groups = {"estimator": "ratio", "coef": 0.5, "warmup": 1}
    seen = looked_at(group_ppo_config(home, out=tmp_path / "run", steps=2, groups=groups))
    assert [asked.shaping for asked in seen.asked] == [None, None]
    assert [update.part.ratio_coef for update in seen.updates] == [0.0] * 2 + [0.5] * 2
    asked = seen.asked[1]
    raw = with_credit(asked.rollout, seen.phases[1].processed, kl_coef=asked.prices, truncation=seen.cfg.truncation,
                      advantage=AdvantageConfig())
    assert torch.equal(raw.advantages, asked.rollout.advantages)
    rows = [list(asked.rollout.tokens.record_ids).index(name) for name in seen.updates[3].part.tokens.record_ids]
    assert torch.equal(seen.updates[3].part.memberships, asked.memberships[rows])
    assert torch.equal(seen.updates[3].part.group_returns, asked.returns[rows])


# --- known groups ----------------------------------------------------------------------------------------------------

KNOWN = {"source": "known", "column": "kind"}


def known(home, out, train, **changes):
    prompts = {"path": train, "validation_fraction": 0.0, "max_length": 64} | changes.pop("prompts", {})
    groups = KNOWN | changes.pop("groups", {})
    return group_ppo_config(home, out=out, prompts=prompts, groups=groups, **changes)


def test_known_groups_are_those_of_the_training_prompts_and_may_be_absent_in_a_phase(home, tmp_path):
    """24 prompts over three phases, of which one is alone in its group; the held-out ones know two further labels."""
    train = labelled(home, "train", ["rare"] + ["a", "b"] * 11 + ["a"])
    test = labelled(home, "test", ["a", "b", "unseen", None, "a", "rare"], start=24)
    seen = looked_at(known(home, tmp_path / "run", train, prompts={"validation": test}, steps=3, eval_prompts=6,
                           n_samples=6, groups={"objective": "dro"}))
    there = [row["group/rare/mass"] > 0 for row in seen.rows]
    assert sorted(there) == [False, False, True]
    for row, present, asked in zip(seen.rows, there, seen.asked, strict=True):
        assert row["group/rare/mass"] == close_to(present / 8) and ("group/rare/score" in row) == present
        assert sorted(asked.names) == ["a", "b", "rare"] and "groups/objective" not in row and "groups/rand" not in row
        means = [row[f"group/{name}/return"] for name in asked.names if f"group/{name}/return" in row]
        assert row["groups/gap"] == close_to(max(means) - min(means)) and row["groups/worst"] == min(means)
        one_hot = [row for row in asked.memberships.tolist() if sorted(row) != [0.0, 0.0, 1.0]]
        assert not one_hot and asked.shaping is None and "groups/shaping_max" not in row and "groups/coef" not in row
        assert sum(row[f"group/{name}/weight"] for name in asked.names) == close_to(1.0)
        assert row["groups/factor_max"] == close_to(float(asked.factor.max()))
    notes = " ".join(seen.result["notes"])
    assert "3 known groups: 'a', 'b', 'rare'" in notes and "2 of 6 held-out prompts are of no trained group" in notes
    told = json.loads((seen.out / "groups.json").read_text())
    assert told["n_prompts"] == 4 and told["labels"] == ["a", "b", "rare"] and told["level"] is None
    assert {one["name"]: one["n"] for one in told["groups"]} == {"a": 2, "b": 1, "rare": 1}
    assert told["agreement"] is None and not checkpointed(seen.out, 3)["modules"].keys() & {"groups"}
    exam = {row["id"]: row["response"] for row in logged(seen.out, "samples.jsonl", None) if row["step"] == 3}
    answers = {one["id"]: one["response"] for group in told["groups"] for one in group["examples"]}
    assert len(answers) == 4 and answers.items() <= exam.items()  # the answers of the exam, not others


def test_known_groups_need_no_critic(home, tmp_path):
    """RLOO: factor and shaping on top of its advantages, by hand."""
    train = labelled(home, "alike", ["a", "b", "b"] * 4)
    seen = looked_at(known(home, tmp_path / "run", train, advantage={"estimator": "rloo", "group": 2}, rollouts=16,
                           score={"scale": None, "clip": None}, truncation={"how": "constant", "value": -3.0},
                           groups={"objective": "vrex"}))
    [asked], [phase] = seen.asked, seen.phases
    notes = " ".join(seen.result["notes"])
    assert "score.scale and advantage.normalise are none: groups.coef acts on" in notes
    assert "2 known groups: 'a', 'b'" in notes and "no held-out prompts: no groups.json" in notes
    # A group's return counts what its responses are paid: a cut one the constant.
    paid = torch.where(asked.rollout.ended, phase.processed.double(), -3.0)
    assert 0 < asked.rollout.ended.sum() < 16
    torch.testing.assert_close(asked.returns.double(), (paid - paid.mean()) / paid.std(correction=0), **tol.GRADIENT32)
    raw = with_credit(asked.rollout, phase.processed, kl_coef=asked.prices, truncation=seen.cfg.truncation,
                      advantage=seen.cfg.advantage)
    mask = asked.rollout.tokens.response_mask
    shaped = raw.advantages * asked.factor[:, None] + asked.shaping[:, None]
    torch.testing.assert_close(asked.rollout.advantages, shaped.where(mask, 0.0), **tol.CREDIT32)
    assert asked.rollout.values is None and "loss/value" not in seen.rows[0]
    assert asked.shaping.any() and len(set(asked.factor.tolist())) == 2


@pytest.mark.parametrize(("labels", "column", "complaint"), [
    (["a", "b", None, "a", "b", "a", None, "b"], "kind", "2 of 8 prompts have no label 'kind'"),
    (["a", "b"] * 4, "topic", "8 of 8 prompts have no label 'topic'"),
    (["a"] * 8, "kind", "all 8 prompts have the label kind = 'a', so there is one group")])
def test_prompts_that_do_not_say_their_group_are_refused(home, tmp_path, labels, column, complaint):
    train = labelled(tmp_path, "some", labels)
    with pytest.raises(DataError, match=complaint):
        group_ppo.run(known(home, tmp_path / "run", train, groups={"column": column}))


# --- one trunk, no held-out prompts ----------------------------------------------------------------------------------


def test_groups_are_inferred_from_a_critic_that_is_an_adapter_on_the_shared_trunk(home, tmp_path):
    policy = ModelConfig(path=group_ppo_config(home).policy.path, lora=LoraSettings(rank=2))
    seen = looked_at(group_ppo_config(home, out=tmp_path / "run", topology="shared", policy=policy, steps=2,
                                      critic={"pretrain": 1, "pretrain_until": 1.0}, groups={"critic_coef": 0.3}))
    assert [row["groups/coef"] for row in seen.rows] == [0.1, 0.1] and seen.asked[2].shaping.any()
    assert logged(seen.out, phase="critic")[0]["groups/coef"] == 0.0
    assert not (seen.out / "groups.json").exists() and "groups" not in seen.result


def test_an_inferred_run_whose_prompts_carry_no_labels_has_no_agreement(home, tmp_path):
    seen = looked_at(group_ppo_config(home, out=tmp_path / "run", groups={"column": "nowhere"}))
    assert not {"groups/rand", "groups/information"} & seen.rows[0].keys() and "groups/objective" in seen.rows[0]
