"""The drift monitor: what it reads against passes of transformers itself, what it is scaled on; it only reads."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import tolerances as tol
import torch
from recipes.running import brief, logged, moved, ppo_config
from recipes.running import watched as watched_run

from keel.bench.role_judge import RoleJudgeConfig
from keel.data.render import Row, template
from keel.errors import DataError
from keel.models.load import ModelConfig, causal_lm
from keel.online.anchor import Start
from keel.online.fresh import Fresh, FreshConfig, extracted, fresh
from keel.online.watch import PersonaConfig, Watch, correlate, visited, watch
from keel.persona.axis import AssistantAxis
from keel.recipes import ppo
from keel.rollout.sample import SamplingConfig
from keel.train import alarms

END = 2


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model of two blocks, an axis of its shape that names block 1, and probes of every kind."""
    folder = tmp_path_factory.mktemp("home")
    tiny.llama(folder / "base")
    drawn = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    AssistantAxis(drawn, token_norm=torch.ones(2), meta={"layer": "1"}).save(folder / "axis.safetensors")
    tiny.write_rows(folder / "probes.jsonl", [
        {"id": f"b{i}", "prompt": prompt, "probe": ("neutral", "role", "drift")[i % 3]}
        for i, prompt in enumerate(tiny.conversations(18))])
    return folder


def persona(home, **changes) -> PersonaConfig:
    return PersonaConfig(**({"path": home / "axis.safetensors", "probes": str(home / "probes.jsonl"), "every": 2}
                            | changes))


@pytest.fixture
def start(home, tmp_path):
    """The model of the start, in a run that keeps what it is told."""
    log = SimpleNamespace(folder=tmp_path, notes=[], rows=[], alarms=[], resumed=False)
    log.note, log.alarm = log.notes.append, log.alarms.append
    log.log = lambda step, values, phase: log.rows.append((step, values, phase))
    model = causal_lm(ModelConfig(path=str(home / "base")))
    return Start(model, template(tiny.tokenizer()), SamplingConfig(max_new_tokens=6), 40, 60, 0, log)


def projected(model, row: Row, axis, layer: int) -> torch.Tensor:
    """Mean over a row's content of the projection of a block's output, from a pass of its own; NaN without content."""
    seen = []
    hook = model.model.layers[layer].register_forward_hook(
        lambda _, __, out: seen.append(out if torch.is_tensor(out) else out[0]))
    with torch.no_grad():
        model(input_ids=torch.tensor([row.ids]))
    hook.remove()
    said = [t for t in range(row.n_prompt, len(row.ids)) if row.ids[t] != END]
    return (seen[0][0, said] @ (axis[layer] / axis[layer].norm())).mean()


# --- probes ----------------------------------------------------------------------------------------------------------


def test_everything_is_scaled_on_the_neutral_answers_of_the_start(home, start):
    axis = AssistantAxis.load(home / "axis.safetensors").vectors
    found = watch(persona(home, layers=(1, 0)), start)
    assert {kind: len(rows) for kind, rows in found.probes.items()} == {"neutral": 6, "role": 6, "drift": 6}
    by_hand = torch.stack([torch.stack([projected(start.model, row, axis, layer) for row in found.answers["neutral"]])
                           for layer in (1, 0)])
    torch.testing.assert_close(found.mean, by_hand.mean(1), **tol.FLOAT32)
    torch.testing.assert_close(found.std, by_hand.std(1), **tol.FLOAT32)
    torch.testing.assert_close(found.low, by_hand.quantile(0.05, dim=1), **tol.FLOAT32)
    now = found.probe(start.model)
    assert now["persona/neutral/z"] == pytest.approx(0.0, abs=tol.SIX_DECIMALS)
    assert now["persona/neutral/delta"] == now["persona/role/block_0/delta"] == 0.0
    assert now["persona/neutral/below"] == pytest.approx(1 / 6)


def test_what_changed_in_the_answers_is_told_from_what_changed_in_the_reading(home, start):
    """z is of the answers of the policy as it is; delta is of the start's own answers, read by both."""
    axis, found = AssistantAxis.load(home / "axis.safetensors").vectors, watch(persona(home), start)
    policy = moved(copy.deepcopy(start.model), by=0.05)
    now = found.probe(policy)
    for kind in ("neutral", "role", "drift"):
        delta = [float(projected(policy, row, axis, 1) - projected(start.model, row, axis, 1))
                 for row in found.answers[kind]]
        assert now[f"persona/{kind}/delta"] == pytest.approx(sum(delta) / len(delta), rel=tol.GRADIENT32["rtol"])
        own = [projected(policy, row, axis, 1) for row in found._answered(policy, kind, found.probes[kind])]
        own = torch.stack([x for x in own if not x.isnan()])
        assert now[f"persona/{kind}/z"] == pytest.approx(
            float(((own - found.mean[0]) / found.std[0]).mean()), rel=tol.GRADIENT32["rtol"])
        assert now[f"persona/{kind}/below"] == pytest.approx(float((own < found.low[0]).float().mean()))
        assert now[f"persona/{kind}/projection"] == pytest.approx(float(own.mean()), rel=tol.GRADIENT32["rtol"])


def test_numbers_by_hand():
    """Two blocks, three responses of which one says nothing: z = ((1 - 2) / 2 + (5 - 2) / 2) / 2 = 0.5."""
    watched = Watch(None, SimpleNamespace(layers=[4, 7]), None, {}, torch.tensor([2.0, 0.0]), torch.tensor([2.0, 1.0]),
                    torch.tensor([1.5, -9.0]), {}, {})
    nan = float("nan")
    means = torch.tensor([[1.0, nan, 5.0], [2.0, nan, 4.0]])
    found = watched.numbers("persona/", means, means - torch.tensor([[3.0, 1.0, 1.0], [2.0, 2.0, 2.0]]))
    assert found == {
        "persona/projection": 3.0, "persona/z": 0.5, "persona/below": 0.5, "persona/delta": 1.0,
        "persona/block_7/projection": 3.0, "persona/block_7/z": 3.0, "persona/block_7/below": 0.0,
        "persona/block_7/delta": 1.0}
    assert watched.numbers("persona/", torch.full((2, 2), nan), None) == {}


def test_a_resumed_run_reads_what_the_start_showed(home, start):
    first = watch(persona(home), start)
    with torch.no_grad():
        for p in start.model.parameters():
            p.mul_(1.5)
    start.log.resumed = True
    again = watch(persona(home), start)
    assert json.dumps(again.row()) == json.dumps(first.row())
    assert again.probe(start.model) == first.probe(start.model)
    start.log.resumed = False  # one that failed before its first step is begun anew
    assert not torch.equal(watch(persona(home), start).mean, first.mean)


def test_visits_are_logged_when_they_are_due_and_ring(home, start):
    watched = watch(persona(home, every=2), start)
    policy = copy.deepcopy(start.model)
    for step in range(4):
        visited(watched, policy, step, last=step == 3)
    visited(None, policy, 0, last=True)
    assert [row[0] for row in start.log.rows] == [0, 2, 3] and start.log.rows[0][2] == "eval"
    assert start.log.alarms == [] and watched.result()["persona"]["last"] == start.log.rows[-1][1]
    watched.mean = watched.mean + 2 * watched.std
    visited(watched, policy, 4, last=False)
    assert [row["name"] for row in start.log.alarms] == ["persona_drift"] and start.log.alarms[0]["step"] == 4


@pytest.mark.parametrize(("rows", "complaint"), [
    ([{"probe": "neutral"}, {"probe": "odd"}, {}], "2 probes do not say in 'probe' whether they are neutral, role"),
    ([{"probe": "role"}, {"probe": "drift"}], "no probe is neutral"),
    ([{"probe": "neutral"}], "neutral answers of the start leave no spread to scale on")])
def test_probes_that_cannot_be_used_are_refused(home, start, tmp_path, rows, complaint):
    file = tiny.write_rows(tmp_path / "odd.jsonl", [
        {"id": f"b{i}", "prompt": prompt, **row} for i, (prompt, row) in
        enumerate(zip(tiny.conversations(len(rows)), rows, strict=True))])
    with pytest.raises(DataError, match=complaint):
        watch(persona(home, probes=str(file)), start)


# --- what the data are worth -----------------------------------------------------------------------------------------


def test_advantages_that_fall_towards_the_assistant_are_noted_before_training(home, start):
    watched = watch(persona(home), start)
    rows = [Row([1, 4, 7 + i % 5, 5, 9 + i % 7, 11 + i % 3, END], 4, f"r{i}") for i in range(20)]
    axis = AssistantAxis.load(home / "axis.safetensors").vectors
    p = torch.stack([projected(start.model, row, axis, 1) for row in rows])
    correlate(None, rows, p)
    correlate(watched, rows, p)
    assert watched.advantage["mean"] == pytest.approx(1.0) and not start.log.notes
    noise = torch.randn(20, generator=torch.Generator().manual_seed(0))
    correlate(watched, rows, noise)
    assert watched.advantage["low"] < 0 < watched.advantage["high"] and not start.log.notes
    mixed = -p + 0.3 * noise
    correlate(watched, rows, mixed)
    expected = torch.corrcoef(torch.stack([p, mixed]))[0, 1]
    found = watched.result()["persona"]["advantage"]
    assert found["mean"] == pytest.approx(float(expected), rel=tol.RELATIVE32) and found["n"] == 20
    assert found["low"] < found["mean"] < found["high"] < 0
    assert "the more Assistant-like a response, the lower its advantage" in start.log.notes[0]
    assert watched.correlated([Row([1, 4, 7, END], 3, "silent")], [1.0]) == {}


# --- a fresh axis ----------------------------------------------------------------------------------------------------


@pytest.fixture
def roles(home):
    file = tiny.write_rows(home / "roles.jsonl", [
        {"name": name, "is_default": name == "plain", "description": None, "system_prompts": [system, "why"]}
        for name, system in (("cat", "red cat"), ("dog", "blue dog"), ("plain", ""))])
    tiny.write_rows(home / "questions.jsonl", [{"question": text} for text in ("hello", "yes no", "why cat")])
    return FreshConfig(roles=file, questions=home / "questions.jsonl", n_questions=3, min_count=2)


def cats(prompt, text: str, ended: bool) -> int:
    """A judge: dogs never play their role."""
    return 3 if prompt.meta["role"] == "cat" else 1


def dogs(prompt, text: str, ended: bool) -> int:
    return 3 if prompt.meta["role"] == "dog" else 1


def test_a_fresh_axis_is_made_of_the_roles_that_are_played_and_turns_with_the_model(home, start, roles):
    found = fresh(roles, start, home / "axis.safetensors")
    assert found.first.shape == (2, 16) and torch.equal(extracted(roles, start, start.model), found.first)
    cat, dog = (extracted(roles.model_copy(update={"judge": RoleJudgeConfig(
        function=f"online.test_persona_monitor:{name}")}), start, start.model) for name in ("cats", "dogs"))
    assert not torch.allclose(cat, dog)
    torch.testing.assert_close((cat + dog) / 2, found.first, **tol.FLOAT32)
    same = found.compared(start.model, 1)
    assert same["persona/fresh"] == pytest.approx(1.0) and not start.log.notes
    assert same["persona/fresh_file"] == pytest.approx(float(torch.cosine_similarity(
        found.first[1], AssistantAxis.load(home / "axis.safetensors").vectors[1], dim=0)), abs=tol.SIX_DECIMALS)
    turned = found.compared(moved(copy.deepcopy(start.model), by=0.5), 1)
    assert turned["persona/fresh"] < 0.9 and "no longer valid readings" in start.log.notes[0]


def test_a_model_that_plays_no_role_any_more_gives_no_fresh_axis(home, start, roles):
    found = fresh(roles, start, home / "axis.safetensors")
    strict = FreshConfig(**(roles.model_dump() | {"min_count": 99}))
    later = type(found)(strict, start, found.first, found.file)
    assert later.compared(start.model, 1) == {} and "no fresh axis could be extracted" in start.log.notes[0]


def test_a_fresh_axis_comes_at_the_end_and_when_it_is_asked_for(home, start, roles, monkeypatch):
    watched = watch(persona(home, every=2, n_probes=3, fresh=roles.model_copy(update={"n_questions": 2})), start)
    monkeypatch.setattr(Watch, "probe", lambda own, model: {})
    monkeypatch.setattr(Fresh, "compared", lambda own, model, layer: {"persona/fresh": float(layer)})
    for every, expected in ((None, [5]), (2, [4, 5])):
        watched.fresh = replace(watched.fresh, cfg=watched.fresh.cfg.model_copy(update={"every": every}))
        told = {step: watched.visit(start.model, step, last=step == 5) for step in range(6)}
        assert [step for step, found in told.items() if found == {"persona/fresh": 1.0}] == expected


# --- in PPO ----------------------------------------------------------------------------------------------------------


def test_ppo_reads_policy_and_reference_on_the_same_tokens_and_changes_nothing(home, tmp_path, monkeypatch):
    """Watched or not, metrics, samples and weights are the same; what is read is what a pass over the responses shows,
    without the last token of each, which the sampler never feeds."""
    settings = {"steps": 2, "critic": {"pretrain": 0}, "micro_tokens": 60, "save_every": 1000, "eval_prompts": 2}
    plain = ppo_config(home, out=tmp_path / "plain", **settings)
    ppo.run(plain)
    seen, real = [], ppo.monitors

    def watch_monitors(rollout, *rest):
        seen.append(rollout)
        return real(rollout, *rest)

    def watch_seen(own):
        both.append((own.sampled, own.held))
        return told_by(own)

    both, told_by = [], Watch.seen
    monkeypatch.setattr(ppo, "monitors", watch_monitors)
    monkeypatch.setattr(Watch, "seen", watch_seen)
    watched = ppo_config(home, out=tmp_path / "watched", persona=persona(home).model_dump(), **settings)
    result = ppo.run(watched).values["persona"]
    for one, other in zip(logged(tmp_path / "plain"), logged(tmp_path / "watched"), strict=True):
        assert one == {name: x for name, x in other.items() if not name.startswith("persona/")}
    for name in ("samples.jsonl", "model/model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "watched" / name).read_bytes()
    torch.testing.assert_close(*both[0], equal_nan=True, **tol.FLOAT32)  # response by response, whatever the parts
    told, axis = logged(tmp_path / "watched"), AssistantAxis.load(home / "axis.safetensors").vectors
    base, tokens = causal_lm(watched.policy), seen[0].tokens
    rows = [Row(ids[real_].tolist()[:-1], int(mask.nonzero()[0]), "") for ids, real_, mask in zip(
        tokens.ids, tokens.attention_mask, tokens.response_mask, strict=True)]
    p = torch.stack([projected(base, row, axis, 1) for row in rows if len(row.ids) > row.n_prompt])
    assert told[0]["persona/projection"] == pytest.approx(float(p.mean()), rel=tol.GRADIENT32["rtol"])
    assert told[0]["persona/delta"] == pytest.approx(0.0, abs=tol.SIX_DECIMALS)
    assert abs(told[1]["persona/delta"]) > tol.GRADIENT32["rtol"]
    assert "persona/role/z" not in told[0] and result["last"]["persona/role/z"] == told[1]["persona/role/z"]


@pytest.mark.parametrize("mode", ["in_policy", "rollout_only"])
def test_beside_a_cap_the_bare_model_is_read(home, tmp_path, monkeypatch, mode):
    """Nothing is learned, so nothing has moved: probes stand where they stood, and the responses that the cap wrote are
    read as the bare start reads them, whichever blocks are capped."""
    slow = {"lr": 1e-30, "schedule": "constant", "warmup_fraction": 0.0}
    capped = {"path": home / "axis.safetensors", "lower": 3.0, "layers": (0, 1), "mode": mode}
    seen = watched_run(monkeypatch)
    result = ppo.run(brief(home, out=tmp_path / "run", policy_axis=capped, persona=persona(home).model_dump(),
                           policy_optimizer=slow, critic_optimizer=slow, micro_tokens=60)).values
    model, axis = causal_lm(ModelConfig(path=str(home / "base"))), AssistantAxis.load(home / "axis.safetensors").vectors
    begun, row = json.loads((tmp_path / "run/persona.json").read_text()), logged(tmp_path / "run")[0]
    neutral = torch.stack([projected(model, Row(**kept), axis, 1) for kept in begun["answers"]["neutral"]])
    assert begun["mean"][0] == pytest.approx(float(neutral.mean()), rel=tol.GRADIENT32["rtol"])
    tokens = seen.phases[0].rollout.tokens
    rows = [Row(ids[real].tolist()[:-1], int(mask.nonzero()[0]), "") for ids, real, mask in zip(
        tokens.ids, tokens.attention_mask, tokens.response_mask, strict=True)]
    said = torch.stack([projected(model, one, axis, 1) for one in rows if len(one.ids) > one.n_prompt])
    assert row["persona/projection"] == pytest.approx(float(said.mean()), rel=tol.GRADIENT32["rtol"])
    for name in ("delta", "neutral/z", "neutral/delta", "role/delta"):
        assert row[f"persona/{name}"] == pytest.approx(0.0, abs=tol.SIX_DECIMALS)
    assert result["persona"]["last"]["persona/neutral/z"] == row["persona/neutral/z"]


# --- the alarm -------------------------------------------------------------------------------------------------------


def rows_with(*z: float, name: str = "persona/z") -> list[dict[str, float]]:
    quiet = {"response/cut": 0.0, "response/length": 5.0, "response/repetition": 0.0, "score/mean": 0.0,
             "score/std": 1.0, "score/p95": 1.0, "kl/reference_k3": 0.0}
    return [quiet | {name: x} for x in z]


def test_the_alarm_rings_a_standard_deviation_below_the_start():
    assert alarms.raised(rows_with(0.3, -0.9)) == [] == alarms.raised(rows_with(-1.5, -2.4))
    for z, limit in (((0.3, -1.1), -1.0), ((-1.5, -2.6), -2.5)):
        found = alarms.raised(rows_with(*z))
        assert [(one.name, one.value, one.limit) for one in found] == [("persona_drift", z[1], limit)]
        assert "moved away from the Assistant" in found[0].meaning
    assert len(alarms.raised(rows_with(-1.1, name="persona/neutral/z"))) == 1
    both = [row | {"persona/neutral/z": -3.0} for row in rows_with(-3.0, -5.0)]
    assert len(alarms.raised(both)) == 1
