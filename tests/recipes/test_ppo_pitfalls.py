"""Sections 14 and 15 of our PPO-max spec, item by item: what goes wrong in PPO stacks, and that it does not here."""

import math
import shutil

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import FAST, brief, logged, moved, part_of, reward_config, short_spoken, watched

from keel.batches import Rollout, TokenBatch
from keel.config import PRESETS, read_toml
from keel.data.collate import collate
from keel.data.render import Row, template
from keel.errors import ConfigError
from keel.functional.advantage import process_scores
from keel.functional.masked import loss_weights, merge_moments, no_moments, whiten
from keel.functional.preference import bradley_terry
from keel.models.actors import Actors
from keel.models.forward import response_scores, token_kl, token_logprobs
from keel.models.load import LoraSettings, ModelConfig, causal_lm, frozen_copy, load_tokenizer, scalar_model
from keel.online import update as updates
from keel.recipes import ppo, reward_model
from keel.rng import stream
from keel.rollout.credit import AdvantageConfig, minibatch_advantages
from keel.rollout.sample import SamplingConfig, sample
from keel.train.inputs import load_demonstrations
from keel.train.objective import LossConfig, policy_loss
from keel.train.tally import Tally

ALWAYS = [{"name": "always", "function": "tiny:always_one"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Models and files that the tests of this module share; each run has a folder of its own."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def run(home, tmp_path, monkeypatch):
    """Run with these changes; what it computed on its way, its metrics, its result."""

    def go(config=brief, **changes):
        seen = watched(monkeypatch)
        seen.out = changes.setdefault("out", tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        seen.cfg = config(home, **changes)
        seen.result = ppo.run(seen.cfg).values
        seen.rows = logged(seen.out)
        monkeypatch.undo()
        return seen

    return go


def with_junk(part: Rollout, junk: float) -> Rollout:
    """The same rollout with junk wherever nothing was written."""
    def dirty(x):
        return x.where(part.tokens.response_mask, torch.full_like(x, junk))

    changed = {name: dirty(getattr(part, name)) for name in
               ("logprobs", "ref_logprobs", "kl", "values", "returns", "advantages")}
    return Rollout(part.tokens, ended=part.ended, prompt_indices=part.prompt_indices, counted=part.counted, **changed)


# --- section 14, the reference code ----------------------------------------------------------------------------------


def test_14_01_a_badly_wrong_pair_keeps_its_whole_gradient():
    chosen, rejected = torch.full((4,), -20.0, requires_grad=True), torch.zeros(4)
    bradley_terry(chosen, rejected)[0].mean().backward()
    torch.testing.assert_close(chosen.grad, torch.full((4,), -1 / 4), **tol.FLOAT32)


@pytest.mark.parametrize(("n", "limit"), [(1, 1.0), (8, 1e4)])
def test_14_02_one_score_or_equal_scores_give_finite_rewards(run, n, limit):
    """One score is divided by 1, equal scores by score.min_std; not by inf and 1e-12."""
    seen = run(rewards=ALWAYS, reward_model=None, critic={"pretrain": 0, "init": "policy"}, rollouts=n, minibatch=n,
               score={"center": False, "scale": "scores", "clip": None})
    assert seen.phases[0].processed.tolist() == pytest.approx([limit] * n, rel=tol.RELATIVE32)
    assert seen.phases[0].rollout.rewards.isfinite().all() and math.isfinite(seen.rows[0]["loss/policy"])


@pytest.mark.parametrize("junk", [1e6, float("nan")])
def test_14_03_whitening_does_not_see_what_lies_under_the_mask(home, junk):
    model = causal_lm(brief(home).policy)
    part = part_of(model, model)
    settings = AdvantageConfig(normalise="minibatch", clip=1.5)
    clean, dirty = (minibatch_advantages(p, settings).advantages for p in (part, with_junk(part, junk)))
    assert torch.equal(clean, dirty) and clean.any()


@pytest.mark.parametrize(("center", "scale", "expected"), [
    (True, False, [-2.0, 2.0]), (False, True, [1 / 8**0.5, 5 / 8**0.5]), (False, False, [1.0, 5.0])])
def test_14_04_each_flag_of_score_processing_acts_alone(center, scale, expected):
    scores = torch.tensor([1.0, 5.0])
    found = process_scores(scores, merge_moments(no_moments(), scores), center=center, scale=scale, clip=None)
    torch.testing.assert_close(found, torch.tensor(expected), **tol.FLOAT32)


@pytest.mark.parametrize("length", [3, 12])
def test_14_05_perplexity_is_exp_of_the_mean_nll_whatever_the_length(home, tmp_path, run, length):
    seen = run(sampling={"max_new_tokens": length})
    rollout = seen.phases[0].rollout
    nll = [-x for row, mask in zip(rollout.logprobs.tolist(), rollout.tokens.response_mask.tolist(), strict=True)
           for x, there in zip(row, mask, strict=True) if there]
    assert seen.rows[0]["policy/perplexity"] == pytest.approx(math.exp(sum(nll) / len(nll)), rel=tol.RELATIVE32)
    flat = str(tiny.llama(tmp_path / "flat", scale=0.0))  # every token as probable as every other
    seen = run(policy=ModelConfig(path=flat), sampling={"max_new_tokens": length})
    assert seen.rows[0]["policy/perplexity"] == pytest.approx(23, rel=tol.RELATIVE32)


def test_14_06_the_lm_mix_adds_its_gradient_to_the_one_step_of_a_minibatch(home, tmp_path, run):
    """The gradient of the mixed run is that of the plain one plus coef times plain transformers' own LM gradient."""
    from transformers import AutoModelForCausalLM

    file = tiny.demonstrations(tmp_path / "mix.jsonl", n=4)
    mix = brief(home).prompts.model_copy(update={"path": str(file)})
    plain, mixed = run(), run(ptx=mix, ptx_batch=4, ptx_coef=0.7)
    steps = [[step for step in seen.steps if step.name == "policy"] for seen in (plain, mixed)]
    assert len(steps[0]) == len(steps[1]) == plain.cfg.updates == 2

    model = AutoModelForCausalLM.from_pretrained(plain.cfg.policy.path)
    rows = load_demonstrations(mix, template(load_tokenizer(plain.cfg.policy.path)))
    nats = [model(torch.tensor([row.ids])).logits[0, row.n_prompt - 1 : -1].log_softmax(-1)
            .gather(1, torch.tensor(row.ids[row.n_prompt :])[:, None]) for row in rows]
    (-torch.cat(nats).mean()).backward()
    lm = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(steps[1][0].raw - steps[0][0].raw, 0.7 * lm, **tol.GRADIENT32)


def test_14_07_each_pass_covers_every_prompt_and_a_rerun_gives_the_same_bytes(run):
    first, second = run(steps=3), run(steps=3)
    for seen in (first, second):
        ids = [name for phase in seen.phases for name in phase.rollout.tokens.record_ids]
        assert sorted(ids) == sorted(f"q{i}" for i in range(24))
    assert (first.out / "metrics.jsonl").read_bytes() == (second.out / "metrics.jsonl").read_bytes()


def test_14_08_prompts_that_do_not_fit_are_counted_not_lost(home, run):
    prompts = brief(home).prompts.model_copy(update={"max_length": 16, "too_long": "drop"})
    seen = run(prompts=prompts, sampling={"max_new_tokens": 8}, steps=3)
    used = {name for phase in seen.phases for name in phase.rollout.tokens.record_ids}
    skipped = seen.result["skipped"]
    assert skipped["n_dropped"] == 6 and len(used) + skipped["n_dropped"] + skipped["records"] == 24
    assert [len(phase.rollout.tokens.record_ids) for phase in seen.phases] == [8, 8, 8]  # phases stay whole


def test_14_09_empty_responses_and_written_pad_or_unk_tokens_are_kept(tmp_path, run):
    """Lengths are explicit: nothing that the policy wrote is taken for padding, and eos alone is a response."""
    flat = ModelConfig(path=str(tiny.llama(tmp_path / "flat", scale=0.0)))
    seen = run(policy=flat, rollouts=96, minibatch=96)
    tokens, ended = seen.phases[0].rollout.tokens, seen.phases[0].rollout.ended
    said = [ids[mask].tolist() for ids, mask in zip(tokens.ids, tokens.response_mask, strict=True)]
    assert [2] in said  # the empty answer
    assert any(0 in row for row in said) and any(3 in row for row in said)  # pad and unk, written by the policy
    for row, end in zip(said, ended.tolist(), strict=True):
        assert (row[-1] == 2 and 2 not in row[:-1]) if end else (len(row) == 8 and 2 not in row)
    assert seen.rows[0]["response/tokens"] == sum(map(len, said)) and math.isfinite(seen.rows[0]["loss/policy"])


def test_14_10_the_pair_loss_and_the_lm_loss_have_names_of_their_own(home, tmp_path):
    for coef in (0.0, 0.5):
        reward_model.run(reward_config(home, out=tmp_path / str(coef), steps=1, lm_coef=coef))
    plain, mixed = (logged(tmp_path / str(coef))[0] for coef in (0.0, 0.5))
    assert mixed["loss"] == pytest.approx(plain["loss"], rel=tol.RELATIVE32) and mixed["lm/loss"] > 0
    assert "lm/loss" not in plain


def test_14_11_log_probabilities_of_a_bfloat16_model_are_taken_in_float32(home):
    spec = brief(home).policy.model_copy(update={"dtype": "bfloat16"})
    model, ids = causal_lm(spec), torch.randint(3, 23, (4, 9), generator=torch.Generator().manual_seed(0))
    real = torch.ones(4, 9, dtype=torch.bool)
    tokens = TokenBatch(ids, real, real & (torch.arange(9) > 2), ("a", "b", "c", "d"))
    with torch.no_grad():
        logits = model(ids).logits[:, 2:-1]
        found, pick = token_logprobs(model, tokens)[0][:, 3:], ids[:, 3:, None]
    exact, narrow = (x.log_softmax(-1).gather(2, pick)[..., 0].double() for x in (logits.double(), logits))
    assert logits.dtype == torch.bfloat16 and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, **tol.FLOAT32)
    assert (narrow - exact).abs().max() > tol.LOG_RATIO  # what bfloat16 all the way would have cost


def test_14_11_policy_old_and_reference_of_a_bfloat16_run_agree_at_the_start(home, run):
    spec = brief(home).policy.model_copy(update={"dtype": "bfloat16"})
    seen = run(policy=spec)
    rollout = seen.phases[0].rollout
    assert rollout.logprobs.dtype == rollout.ref_logprobs.dtype == torch.float32
    gap = (rollout.logprobs - rollout.ref_logprobs).where(rollout.tokens.response_mask, 0.0)
    assert gap.square().mean().sqrt() < 0.015  # the error that rounding logits alone would make


# --- section 14, other PPO stacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_14_12_ratio_is_one_on_the_first_minibatch(home, tmp_path, run, make):
    """In every phase, though the policy moves; with learned absolute positions too. Later minibatches differ."""
    policy = ModelConfig(path=str(make(tmp_path / "policy", seed=3)))
    seen = run(policy=policy, steps=3, critic={"pretrain": 0, "init": "policy"})
    for row, first, later in zip(seen.rows, seen.updates[::2], seen.updates[1::2], strict=True):
        assert first.found["policy/sampler_gap"] < tol.LOG_RATIO and "policy/sampler_gap" not in later.found
        assert row["policy/kl_old"] > 0  # of the second one
    alone = run(policy=policy, steps=3, critic={"pretrain": 0, "init": "policy"}, minibatch=8)
    assert all(abs(row["policy/ratio"] - 1) <= tol.RATIO and row["policy/clipped"] == 0 for row in alone.rows)


def test_14_12_ratio_stays_one_where_nothing_is_learned(run):
    still = FAST.model_copy(update={"lr": 1e-30})
    seen = run(policy_optimizer=still, passes=2, steps=2)
    assert all(abs(row["policy/ratio"] - 1) < tol.LOG_RATIO for row in seen.rows)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_14_13_left_padding_changes_no_log_probability(tmp_path, make):
    model = causal_lm(ModelConfig(path=str(make(tmp_path))))
    rows = [Row([1, 4, 8, 9, 10, 2], 3, "a"), Row([1, 4, 9, 2], 3, "b")]
    right, left = collate(rows, 0), collate(rows, 0, side="left")
    further = TokenBatch(*(torch.nn.functional.pad(x, (5, 0)) for x in
                           (left.ids, left.attention_mask, left.response_mask)), ("a", "b"))
    found = [token_logprobs(model, tokens)[0][tokens.response_mask] for tokens in (right, left, further)]
    torch.testing.assert_close(found[1], found[0], **tol.FLOAT32)
    torch.testing.assert_close(found[2], found[0], **tol.FLOAT32)


def test_14_14_every_array_has_one_entry_per_response_token_and_is_about_that_token(home, run):
    seen = run(steps=2, kl={"coef": 0.1})
    rollout = seen.phases[1].rollout  # by now the policy has left the reference
    mask = rollout.tokens.response_mask
    assert mask.sum(1).tolist() == [sum(row) for row in mask.tolist()] and not mask[:, 0].any()
    for name in ("logprobs", "ref_logprobs", "kl", "values", "rewards", "advantages", "returns"):
        column = getattr(rollout, name)
        assert not column[~mask].any(), f"{name} outside the responses"
        assert (column[mask] != 0).all(), f"{name} is missing on a response token"
    plain = causal_lm(seen.cfg.policy).requires_grad_(False)
    for i, ids in enumerate(rollout.tokens.ids[:4]):
        table = plain(ids[rollout.tokens.attention_mask[i]][None]).logits[0].log_softmax(-1)
        expected = [float(table[t - 1, ids[t]]) for t in mask[i].nonzero()[:, 0].tolist()]
        assert rollout.ref_logprobs[i][mask[i]].tolist() == pytest.approx(expected, rel=tol.RELATIVE32 * 10)


def test_14_15_the_score_lands_on_the_last_response_token_of_short_and_of_full_rows(run):
    seen = run(kl={"coef": 0.0}, rollouts=16, minibatch=16)
    rollout, scores = seen.phases[0].rollout, seen.phases[0].processed
    assert rollout.ended.any() and not rollout.ended.all()
    for row, mask, score in zip(rollout.rewards, rollout.tokens.response_mask, scores, strict=True):
        assert row.nonzero()[:, 0].tolist() == [int(mask.nonzero()[-1])] and row.sum() == score
    widest = rollout.tokens.attention_mask.sum(1).argmax()
    assert rollout.tokens.attention_mask[widest].all()  # a row that fills the batch is among them


def test_14_16_pad_equal_to_eos_changes_nothing(home, tmp_path, run):
    """Masks come from lengths. Policy and reward model with pad = eos give the same bytes as with a pad of its own."""
    cfg = brief(home)
    folders = {}
    for role, path in (("policy", cfg.policy.path), ("reward_model", cfg.reward_model.path)):
        folders[role] = ModelConfig(path=str(shutil.copytree(path, tmp_path / role)))
        words = load_tokenizer(path)
        words.pad_token = words.eos_token
        words.save_pretrained(tmp_path / role)
    assert load_tokenizer(folders["policy"].path).pad_token_id == 2
    apart, same = run(steps=2), run(steps=2, **folders)
    assert any(phase.rollout.ended.any() for phase in same.phases)
    assert (apart.out / "metrics.jsonl").read_bytes() == (same.out / "metrics.jsonl").read_bytes()


def test_14_17_a_cut_response_is_scored_as_it_is_and_only_it_pays_the_penalty(home, run):
    plain = run(kl={"coef": 0.0}, rollouts=16, minibatch=16)
    fined = run(kl={"coef": 0.0}, rollouts=16, minibatch=16, truncation={"how": "penalty", "value": 3.0})
    rollout = plain.phases[0].rollout
    last = torch.stack([ids[mask][-1] for ids, mask in
                        zip(rollout.tokens.ids, rollout.tokens.response_mask, strict=True)])
    assert torch.equal(rollout.ended, last == 2) and not rollout.ended.all()  # no eos was forced into a cut one
    scorer = scalar_model(plain.cfg.reward_model)
    with torch.no_grad():
        own = response_scores(scorer, rollout.tokens)
    torch.testing.assert_close(plain.phases[0].scored.total, own, **tol.FLOAT32)
    loss = (plain.phases[0].rollout.rewards - fined.phases[0].rollout.rewards).sum(1)
    torch.testing.assert_close(loss, 3.0 * (~rollout.ended).float(), **tol.FLOAT32)


@pytest.fixture(scope="module")
def apart(home):
    """A policy and a reference that differ."""
    policy = causal_lm(brief(home).policy)
    return policy, moved(frozen_copy(policy), by=0.1)


@pytest.mark.parametrize(("filters", "agree"), [({}, True), ({"top_p": 0.9}, False)])
def test_14_18_k1_agrees_with_the_full_kl_under_exact_sampling_only(apart, filters, agree):
    """Token by token k1 - full has mean 0 given what was written before, so its standard error is that of
    uncorrelated numbers. The nucleus moves the mean of k1 away by many of them."""
    policy, reference = apart
    n = 600
    rollout = sample(policy, [[1, 4, 8 + i % 9, 2, 5] for i in range(n)], SamplingConfig(max_new_tokens=8, **filters),
                     [stream(0, "k1", i) for i in range(n)], stop_ids=[2], pad_id=0, record_ids=["r"] * n)
    mask = rollout.tokens.response_mask
    with torch.no_grad():
        full = token_kl(policy, reference, rollout.tokens)[mask].double()
        k1 = (rollout.logprobs - token_logprobs(reference, rollout.tokens)[0])[mask].double()
    gap, error = (k1 - full).mean(), (k1 - full).std() / len(k1) ** 0.5
    assert (gap.abs() < tol.STANDARD_ERRORS * error) == agree
    if agree:
        assert k1.mean() > tol.STANDARD_ERRORS * k1.std() / len(k1) ** 0.5


@pytest.mark.parametrize("within", ["reward", "loss"])
@pytest.mark.parametrize("junk", [1.0, float("nan")])
def test_14_19_junk_outside_the_responses_reaches_no_gradient_and_no_log(home, within, junk):
    cfg = brief(home, kl={"coef": 0.3, "estimator": "k2", "within": within},
                loss={"entropy": "target", "entropy_target": 1.0})
    policy, reference = causal_lm(cfg.policy), moved(causal_lm(cfg.policy))
    part, found = part_of(policy, reference), []
    critic = scalar_model(cfg.reward_model)
    for rows in (part, with_junk(part, junk)):
        tally = Tally()
        policy.zero_grad()
        critic.zero_grad()
        drift = updates.policy_gradients(Actors(policy, reference, critic), rows, [], 2, 0.3, cfg, tally)[0]
        gap = updates.policy_gradients(Actors(policy, reference, critic), rows, [], 1, 0.3, cfg, Tally())[1]
        updates.value_gradients(critic, rows, 2, cfg, tally)
        gradients = [p.grad.clone() for model in (policy, critic) for p in model.parameters() if p.grad is not None]
        found.append((tally.means(), gradients, float(drift), float(gap)))
    assert found[0][0] == found[1][0] and found[0][2:] == found[1][2:]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize("settings", [{"clip": 0.2}, {"clip": None}, {"clip": None, "old_kl_coef": 0.5}])
@pytest.mark.parametrize("nats", [-500.0, 500.0])
def test_14_20_no_log_ratio_can_overflow(home, settings, nats):
    model = causal_lm(brief(home).policy)
    part = part_of(model, model)
    logprobs = part.logprobs.clone().requires_grad_()
    far = Rollout(**(vars(part) | {"logprobs": part.logprobs + nats}))
    loss, stats = policy_loss(far, logprobs, logprobs * 0, None, fresh=False, cfg=LossConfig(**settings))
    loss.sum().backward()
    assert loss.isfinite().all() and logprobs.grad.isfinite().all()
    assert all(x.isfinite().all() for x in stats.values()) and float(stats["policy/ratio"].max()) <= math.exp(20.001)


def test_14_21_the_reduction_decides_whether_long_answers_weigh_more(run):
    """On the first minibatch the loss is minus the mean advantage: over tokens, or over answers of the mean of each."""
    by_token, by_answer = (run(minibatch=8, loss={"reduction": how}) for how in ("token", "sequence"))
    rollout = by_token.phases[0].rollout
    rows = [a[m] for a, m in zip(rollout.advantages, rollout.tokens.response_mask, strict=True)]
    assert len({len(row) for row in rows}) > 1
    means = torch.cat(rows).mean(), torch.stack([row.mean() for row in rows]).mean()
    for seen, mean in zip((by_token, by_answer), means, strict=True):
        assert seen.rows[0]["loss/policy"] == pytest.approx(-float(mean), rel=tol.GRADIENT32["rtol"])
    mask, all_count = torch.tensor([[True] * 9, [True] + [False] * 8]), torch.ones(2, dtype=torch.bool)
    assert loss_weights(mask, all_count, reduction="token").sum(1).tolist() == [9, 1]
    assert loss_weights(mask, all_count, reduction="sequence").sum(1).tolist() == pytest.approx([1, 1])


def test_14_22_the_critic_is_separate_or_a_head_on_the_trunk_and_can_learn_first(home, run):
    lora = ModelConfig(path=brief(home).policy.path, lora=LoraSettings(rank=2))
    for changes in ({}, {"topology": "shared", "policy": lora}):
        seen = run(critic={"pretrain": 2, "pretrain_until": 1.0}, **changes)
        assert [step.name for step in seen.steps] == ["critic"] * 4 + ["policy", "critic"] * 2
        assert [step.number for step in seen.steps] == [1, 2, 3, 4, 1, 5, 2, 6]
        for phase in seen.phases:  # the policy has not moved
            torch.testing.assert_close(phase.rollout.logprobs, phase.rollout.ref_logprobs, **tol.GRADIENT32)


def test_14_22_values_are_float32_though_the_critic_is_bfloat16(home, run):
    spec = brief(home).reward_model.model_copy(update={"dtype": "bfloat16"})
    seen = run(critic={"pretrain": 0, "model": spec.model_dump()})
    values = seen.phases[0].rollout.values[seen.phases[0].rollout.tokens.response_mask]
    assert values.dtype == torch.float32 and (values != values.bfloat16().float()).any()


def test_14_23_scores_are_normalised_by_running_moments_and_the_checkpoint_holds_them(run):
    seen = run(steps=3, save_every=1)
    raw = torch.cat([phase.scored.total for phase in seen.phases]).double()
    held = torch.load(seen.out / "checkpoints/step-0000003.pt", weights_only=True)["extra"]["moments"]["reward_model"]
    deviations = ((raw - raw.mean()) ** 2).sum()
    torch.testing.assert_close(held, torch.stack([torch.tensor(24.0).double(), raw.mean(), deviations]), **tol.FLOAT64)
    last = (seen.phases[2].scored.total.double() - raw.mean()) / (deviations / 23).sqrt()
    torch.testing.assert_close(seen.phases[2].processed.double(), last, **tol.FLOAT32)


# --- section 15 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bootstrap", [False, True])
def test_15_unit_the_credit_of_a_run_agrees_with_plain_loops(run, bootstrap):
    """From what the models said to advantages and returns, written a second time in float64, row by row and token by
    token: ragged rows, single tokens and full rows."""
    gamma, lam, eta = 0.98, 0.9, 0.1
    seen = run(steps=2, rollouts=32, minibatch=16, kl={"coef": eta}, advantage={"gamma": gamma, "lam": lam},
               truncation={"how": "bootstrap"} if bootstrap else {})
    raw = [float(x) for phase in seen.phases for x in phase.scored.total]
    rollout, lengths = seen.phases[1].rollout, set()
    for i, mask in enumerate(rollout.tokens.response_mask):
        where, ended = mask.nonzero()[:, 0].tolist(), bool(rollout.ended[i])
        lengths.add(len(where))
        mean = sum(raw) / len(raw)
        std = math.sqrt(sum((x - mean) ** 2 for x in raw) / (len(raw) - 1))
        score = min(max((raw[32 + i] - mean) / std, -10.0), 10.0)
        paid = [-eta * (float(rollout.logprobs[i, t]) - float(rollout.ref_logprobs[i, t])) for t in where]
        paid[-1] += score if ended or not bootstrap else 0.0
        values = [float(rollout.values[i, t]) for t in where]
        values.append(float(rollout.after_values[i]) if bootstrap and not ended else 0.0)
        deltas = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(paid)]
        advantages = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas)))
                      for t in range(len(deltas))]
        returns = [a + v for a, v in zip(advantages, values, strict=False)]
        for name, expected in (("rewards", paid), ("advantages", advantages), ("returns", returns)):
            found = getattr(rollout, name)[i][mask]
            torch.testing.assert_close(found.double(), torch.tensor(expected).double(), **tol.CREDIT32)
    assert min(lengths) == 1 and max(lengths) == 8


def test_15_invariance_to_padding_and_micro_batches(home):
    """The gradient of a minibatch is the same in any micro-batches, with more padding, and in another order of rows."""
    cfg = brief(home, kl={"coef": 0.2, "estimator": "k2", "within": "loss"})
    policy, reference = causal_lm(cfg.policy), moved(causal_lm(cfg.policy))
    part = part_of(policy, reference, n=6)
    wider = Rollout(**{name: torch.nn.functional.pad(x, (0, 4)) if isinstance(x, torch.Tensor) and x.ndim == 2 else x
                       for name, x in vars(part).items() if name != "tokens"}, tokens=TokenBatch(
        *(torch.nn.functional.pad(x, (0, 4)) for x in (part.tokens.ids, part.tokens.attention_mask,
                                                       part.tokens.response_mask)), part.tokens.record_ids))
    found = []
    for rows, micro in ((part, 2048), (part, 1), (part, 25), (wider, 2048), (part.rows([3, 1, 5, 0, 2, 4]), 2048)):
        policy.zero_grad()
        settings = cfg.model_copy(update={"micro_tokens": micro})
        updates.policy_gradients(Actors(policy, reference, None), rows, [], 2, 0.2, settings, Tally())
        found.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], **tol.GRADIENT32)


def test_15_invariance_to_ranks_as_far_as_they_exist():
    """keel runs in one process. What several would need is there and tested: `whiten` hands its sums over and takes
    those of all ranks, and the moments of two halves, merged one after the other, are those of the whole."""
    x, mask = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.ones(6, 5, dtype=torch.bool)
    mask[4, 2:] = False
    halves, mean = [(x[:2], mask[:2]), (x[2:], mask[2:])], x[mask].mean()
    whole, handed = [torch.stack([x[mask].sum(), mask.sum()]), (x - mean)[mask].square().sum()], []

    def on_its_rank(part, where):
        mine = []

        def reduce(own):
            mine.append(own)
            return whole[len(mine) - 1]

        handed.append(mine)
        return whiten(part, where, reduce=reduce)

    found = torch.cat([on_its_rank(*half) for half in halves])
    torch.testing.assert_close(found, whiten(x, mask), **tol.FLOAT32)
    for one, other, together in zip(*handed, whole, strict=True):
        torch.testing.assert_close(one + other, together, **tol.FLOAT32)
    merged = merge_moments(merge_moments(no_moments(), x[:2].flatten()), x[2:].flatten())
    torch.testing.assert_close(merged, merge_moments(no_moments(), x.flatten()), **tol.FLOAT64)


def test_15_on_policy_step(run):
    """Ratio 1, clip shares 0, policy loss = -mean A, value loss = half of mean A squared."""
    seen = run(minibatch=8)
    row, rollout = seen.rows[0], seen.phases[0].rollout
    a = rollout.advantages[rollout.tokens.response_mask].double()
    assert abs(row["policy/ratio"] - 1) <= tol.RATIO
    assert row["policy/clipped"] == row["value/clipped"] == row["policy/kl_old"] == 0
    assert row["loss/policy"] == pytest.approx(-float(a.mean()), rel=tol.GRADIENT32["rtol"])
    assert row["loss/value"] == pytest.approx(float(a.square().mean()) / 2, rel=tol.GRADIENT32["rtol"])


LIMIT = 32


def toy(home, tmp_path, preset: str, seed: int, limit: int = LIMIT, lr: float = 3e-2, **kl):
    """Mean length, share cut and k1 per phase, of a policy that ends after each word with probability 0.85, paid by
    the word: the switches of a preset, with sizes and learning rate for a policy this small, and exact sampling."""
    given = read_toml(PRESETS / f"{preset}.toml")
    given |= {"out": tmp_path / f"{preset}-{seed}-{kl}", "policy": str(short_spoken(home)), "seed": seed,
              "rewards": [{"name": "length", "function": "tiny:length"}], "steps": 16, "rollouts": 48,
              "prompts": {"path": str(tiny.prompts(home / "many.jsonl", 64)), "max_length": 100,
                          "validation_fraction": 0.0}, "save_every": 1000, "n_samples": 0, "minibatch": 16,
              "sampling": {"max_new_tokens": limit, "slots": 48}, "critic": given["critic"] | {"init": "policy"},
              "kl": given["kl"] | kl}
    given["policy_optimizer"]["lr"], given["critic_optimizer"]["lr"] = lr, 3.3 * lr
    cfg = ppo.PPOConfig.checked(given)
    ppo.run(cfg)
    return [{name: row[name] for name in ("response/length", "response/cut", "kl/reference_k1")}
            for row in logged(cfg.out)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_15_learning_vanilla_ppo_falls_for_the_length_hack_and_ppo_max_does_not(home, tmp_path, seed):
    """Sizes, limit and policy were chosen on seeds 100 to 103. What holds PPO-max here is the KL charge together with
    the running std, which grows with the lengths seen: the price of one more word stays, and what it earns shrinks. So
    it holds only where the limit is far enough away: at 24 words and half the learning steps one of the four seeds was
    cut in half of its answers, and at 12 words kl.coef = 0.05 is too little for all of them (next test)."""
    free, held = (toy(home, tmp_path, preset, seed) for preset in ("vanilla_ppo", "ppo_max_report"))
    assert free[-1]["response/cut"] > 0.9 and free[-1]["response/length"] > 0.9 * LIMIT
    assert held[-1]["response/cut"] < 0.1 and max(row["response/length"] for row in held) < 0.9 * LIMIT


def test_15_learning_a_dearer_drift_ends_nearer_to_the_reference(home, tmp_path):
    """eta 0.05, 0.1, 0.2 in order, at a limit of 12 words; the mean drift of the last five phases. Chosen on seeds 100
    to 103, where all four were in order; at a limit of 32 three of four were: PPO-max is then still on its way back
    from its longest answers."""
    drift = [sum(row["kl/reference_k1"] for row in toy(home, tmp_path, "ppo_max_report", 0, limit=12, lr=1e-2,
                                                       coef=eta)[-5:]) / 5 for eta in (0.05, 0.1, 0.2)]
    assert drift[0] > drift[1] > drift[2] > 0


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"score": {"clip": 0.0}}, "score.clip"), ({"score": {"clip": -1.0}}, "score.clip"),
    ({"advantage": {"clip": 0.0}}, "advantage.clip"),
    ({"loss": {"clip": 0.0}}, "loss.clip"), ({"loss": {"clip": 1.0}}, "loss.clip"),
    ({"loss": {"value_clip": 0.0}}, "loss.value_clip"),
    ({"advantage": {"lam": -0.1}}, "advantage.lam"), ({"advantage": {"lam": 1.1}}, "advantage.lam"),
    ({"advantage": {"gamma": 0.0}}, "advantage.gamma"), ({"advantage": {"gamma": 1.1}}, "advantage.gamma"),
    ({"minibatch": 16}, "minibatch=16 does not divide rollouts=8"),
    ({"sampling": {"top_p": 0.9, "logprobs": "exact"}}, "sampling.logprobs='exact' and sampling.top_p=0.9"),
    ({"sampling": {"top_k": 5, "logprobs": "exact"}}, "sampling.logprobs='exact' and sampling.top_k=5"),
])
def test_15_config_validation_rejects(home, changes, complaint):
    with pytest.raises(ConfigError) as caught:
        ppo.PPOConfig.checked(brief(home).model_dump() | changes)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(("target", "reachable"), [(math.log(23) + 0.01, False), (math.log(23) - 0.01, True)])
def test_15_config_validation_rejects_an_entropy_target_of_ln_vocabulary(run, target, reachable):
    if reachable:
        run(loss={"entropy": "target", "entropy_target": target})
        return
    with pytest.raises(ConfigError, match=r"cannot be reached: the entropy over 23 tokens is at most 3\.14"):
        run(loss={"entropy": "target", "entropy_target": target})
