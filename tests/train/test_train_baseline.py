"""What the frozen reference reaches: of each kind by hand, asked once, found again, and anew when anything changes."""

import json
from dataclasses import replace

import pytest
import tiny
import tolerances as tol
import torch
from recipes.offline_runs import offline_config
from tokenizers.normalizers import Lowercase

from keel.bench.rewards import SequenceRewards
from keel.data.records import Message, Prompt
from keel.data.render import PromptRow, template
from keel.errors import DataError
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.recipes import offline_pg
from keel.train import baseline
from keel.train.baseline import Reference, reference_values
from keel.train.frozen import FrozenNumbers
from keel.train.value import ValueConfig, values_of


def asked(n: int, offset: int = 0) -> list[PromptRow]:
    """Prompts of two to five tokens, all different."""
    return [PromptRow([*[4, 7 + i % 16, 7 + i * 3 % 16, 5, 6][: 2 + i % 4], 7 + i // 16],
                      Prompt(f"v{i}", (Message("user", f"prompt {i}"),))) for i in range(offset, offset + n)]


class Judge:
    """Rewards that are known: of prompt i and sample k, and who was asked for how many."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __call__(self, prompts, n, on_done=None):
        self.asked += [(row.record_id, n) for row in prompts]
        if on_done is not None:
            on_done(len(prompts) * n, len(prompts) * n)
        return torch.tensor([[reward_of(row, k) for k in range(n)] for row in prompts], dtype=torch.float64)


def reward_of(row, k: int) -> float:
    return (sum(row.ids) % 7) / 10 + k / 100


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return causal_lm(ModelConfig(path=str(tiny.llama(tmp_path_factory.mktemp("models") / "base"))))


def reference(model, **changes) -> Reference:
    return replace(Reference(model, {"weights": "a"}, {"rewards": "r"}, Judge(), (0.0, 1.0), 0, 60), **changes)


def settings(**changes) -> ValueConfig:
    return ValueConfig(**({"prompts": 20, "samples": 3, "heads": 2, "epochs": 3, "lr": 1e-2} | changes))


def test_a_constant_is_the_mean_reward_of_all_samples_for_every_prompt(model, tmp_path):
    who, rows, data = reference(model), asked(12), asked(3, 30)
    values, how = reference_values(who, data, rows, settings(kind="constant", prompts=8), tmp_path, 0)
    expected = sum(reward_of(row, k) for row in rows[:8] for k in range(3)) / 24
    assert values.tolist() == pytest.approx([expected] * 3, rel=tol.RELATIVE64)
    assert how["mean"] == pytest.approx(expected, rel=tol.RELATIVE64) and how["samples"] == 24
    assert who.judged.asked == [(f"v{i}", 3) for i in range(8)] and how["kind"] == "constant" and not how["stale"]
    again, _ = reference_values(who, data, rows, settings(kind="constant", prompts=8), tmp_path, 0)
    assert again.tolist() == values.tolist() and len(who.judged.asked) == 8


def test_a_sampled_value_is_the_mean_over_samples_of_the_prompt_itself(model, tmp_path, monkeypatch):
    """A prompt that several responses share is answered once; held-out prompts are not needed."""
    monkeypatch.setattr(baseline, "AT_ONCE", 2)
    who, rows = reference(model), asked(5)
    data, told = [rows[0], rows[1], replace(rows[0], record=replace(rows[0].record, id="v0/rejected")), rows[3]], []
    values, how = reference_values(who, data, [], settings(kind="sampled"), tmp_path, 0, lambda *n: told.append(n))
    expected = [sum(reward_of(row, k) for k in range(3)) / 3 for row in data]
    assert values.tolist() == pytest.approx(expected, rel=tol.RELATIVE64)
    assert who.judged.asked == [("v0", 3), ("v1", 3), ("v3", 3)]
    assert (how["training_prompts"], how["computed"]) == (3, 4)
    assert told == [(6, 9), (9, 9)]
    again, how = reference_values(who, data, rows, settings(kind="sampled"), tmp_path, 0)
    assert again.tolist() == values.tolist() and how["computed"] == 0 and len(who.judged.asked) == 3


@pytest.mark.parametrize("differs", [{"meta": {"worth": 1}}, {"truth": {"gold": 2}}, {"text": "other"},
                                     {"messages": (Message("user", "other"),)}])
def test_prompts_of_equal_tokens_that_a_reward_can_tell_apart_are_answered_apart(model, tmp_path, differs):
    """A function of whole records reads them; the words may have been cut from the tokens."""
    (row,) = asked(1)
    other = replace(row, record=replace(row.record, id="w", **differs))

    def judged(rows, n, on_done=None):
        return torch.tensor([[0.25 if one.record_id == "w" else 0.75] * n for one in rows], dtype=torch.float64)

    for _ in range(2):
        values, _ = reference_values(reference(model, judged=judged), [row, other], [], settings(kind="sampled"),
                                     tmp_path, 0)
        assert values.tolist() == [0.75, 0.25]


@pytest.mark.parametrize("kind", ["constant", "sampled"])
@pytest.mark.parametrize("change", [{"id": "another"}, {"meta": {"worth": 1}}, {"truth": {"gold": 2}},
                                    {"messages": (Message("user", "other"),)}])
def test_a_record_that_changed_is_answered_and_judged_anew(model, tmp_path, kind, change):
    """Its tokens are as they were. The id names the random stream of its samples."""
    rows, data, cfg = asked(20), asked(4, 40), settings(kind=kind)
    reference_values(reference(model), data, rows, cfg, tmp_path, 0)
    assert not reference_values(reference(model), data, rows, cfg, tmp_path, 0)[1]["stale"]
    changed = data if kind == "sampled" else rows
    changed[3] = replace(changed[3], record=replace(changed[3].record, **change))
    who = reference(model)
    how = reference_values(who, data, rows, cfg, tmp_path, 0)[1]
    assert how["stale"] == (kind != "sampled")
    assert [name for name, _ in who.judged.asked] == [row.record_id for row in (
        changed[3:] if kind == "sampled" else changed)]


@pytest.mark.parametrize(("kind", "other"), [("constant", {}), ("learned", {"kind": "constant"}),
                                             ("learned", {"lr": 0.1, "epochs": 1})])
def test_another_head_learns_from_the_same_samples(model, tmp_path, kind, other):
    """They may have been paid for."""
    rows, data = asked(20), asked(4, 40)
    fresh, _ = reference_values(reference(model), data, rows, settings(**other), tmp_path / "fresh", 0)
    reference_values(reference(model), data, rows, settings(kind=kind), tmp_path / "shared", 0)
    who = reference(model)
    values, _ = reference_values(who, data, rows, settings(**other), tmp_path / "shared", 0)
    assert who.judged.asked == [] and values.tolist() == fresh.tolist()


@pytest.mark.parametrize("name", ["fit_value", "save_head", "prompt_states"])
def test_a_kill_after_the_samples_were_judged_does_not_lose_them(model, tmp_path, monkeypatch, name):
    rows, data = asked(20), asked(4, 40)
    whole, _ = reference_values(reference(model), data, rows, settings(), tmp_path / "whole", 0)

    def killed(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(baseline, name, killed)
        reference_values(reference(model), data, rows, settings(), tmp_path / "killed", 0)
    who = reference(model)
    values, how = reference_values(who, data, rows, settings(), tmp_path / "killed", 0)
    assert who.judged.asked == [] and values.tolist() == whole.tolist() and not how["stale"]


@pytest.mark.parametrize("kind", ["learned", "constant"])
def test_a_kill_between_samples_loses_only_those_not_judged(model, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(baseline, "AT_ONCE", 8)
    rows, data, cfg, told = asked(20), asked(4, 40), settings(kind=kind), []
    whole, _ = reference_values(reference(model), data, rows, cfg, tmp_path / "whole", 0)
    with pytest.raises(KeyboardInterrupt):
        reference_values(reference(model, judged=Killed(16)), data, rows, cfg, tmp_path / "killed", 0)
    who = reference(model)
    values, _ = reference_values(who, data, rows, cfg, tmp_path / "killed", 0, lambda *n: told.append(n))
    assert [name for name, _ in who.judged.asked] == ["v16", "v17", "v18", "v19"]
    assert values.tolist() == whole.tolist() and told[0] == (60, 60)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.1), (1000.0, 1000.1)])
def test_perfect_rewards_are_in_range(model, tmp_path, low, high):
    """A reward of 1 and a weight of 0.1: in float32 that is more than 0.1."""
    def judged(rows, n, on_done=None):
        return torch.tensor([[(low, high)[i % 2]] * n for i, _ in enumerate(rows)], dtype=torch.float64)

    values, how = reference_values(reference(model, judged=judged, bounds=(low, high)), asked(2, 40), asked(10),
                                   settings(), tmp_path, 0)
    assert how["n_samples"] == 30 and ((values >= low) & (values <= high)).all()


def test_the_tokenizer_is_part_of_how_samples_are_judged(tmp_path):
    """It decodes them, and its end tokens stop them; the model's weights say nothing of it."""
    cfg = offline_config(tmp_path)
    model, rewards = causal_lm(cfg.policy), SequenceRewards(cfg.rewards, tmp_path)
    words, lower = load_tokenizer(cfg.policy.path), load_tokenizer(cfg.policy.path)
    plain = template(words)
    lower.backend_tokenizer.normalizer = Lowercase()
    found = [json.dumps(offline_pg.reference_of(cfg, model, one, rewards).judging) for one in (
        plain, template(lower), replace(plain, stop_ids=(*plain.stop_ids, 9)), template(words))]
    assert found[0] == found[3] and len({*found}) == 3


class Killed(Judge):
    """Killed as soon as it has been asked about so many prompts."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def __call__(self, prompts, n, on_done=None):
        if len(self.asked) >= self.after:
            raise KeyboardInterrupt
        return super().__call__(prompts, n, on_done)


def test_a_killed_sampling_goes_on_where_it_was(model, tmp_path, monkeypatch):
    monkeypatch.setattr(baseline, "AT_ONCE", 2)
    rows, cfg = asked(6), settings(kind="sampled")
    whole, _ = reference_values(reference(model), rows, [], cfg, tmp_path / "whole", 0)

    with pytest.raises(KeyboardInterrupt):
        reference_values(reference(model, judged=Killed(4)), rows, [], cfg, tmp_path / "killed", 0)
    who = reference(model)
    found, how = reference_values(who, rows, [], cfg, tmp_path / "killed", 0)
    assert found.tolist() == whole.tolist() and how["computed"] == 2
    assert [name for name, _ in who.judged.asked] == ["v4", "v5"]


def test_a_learned_value_is_the_head_on_the_states_of_the_prompt(model, tmp_path):
    """Fitted once to the first prompts; kept; and found again without a single forward pass."""
    who, rows, data = reference(model), asked(24), [*asked(4, 40), asked(1, 40)[0]]
    values, how = reference_values(who, data, rows, settings(), tmp_path, 0)
    assert [name for name, _ in who.judged.asked] == [f"v{i}" for i in range(20)]
    assert how["n_prompts"] == 20 and how["n_samples"] == 60 and how["computed"] == 5 and how["training_prompts"] == 4
    (file,) = tmp_path.glob("*.safetensors")
    head = baseline.load_head(file)
    states = baseline.prompt_states(model, data, pad_id=0, micro_tokens=60)
    torch.testing.assert_close(values, values_of(head, states).double(), **tol.FLOAT32)
    assert values[4] == values[0] and ((values > 0) & (values < 1)).all() and len({*values.tolist()}) == 4

    def deaf(*arguments, **named):
        raise AssertionError("a forward pass")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "forward", deaf)
        patch.setattr(who.judged, "__class__", type("Deaf", (Judge,), {"__call__": deaf}))
        again, found = reference_values(who, data, rows, settings(), tmp_path, 0)
    assert again.tolist() == values.tolist() and found == how | {"computed": 0}


def test_a_kill_between_fit_and_notes_fits_again_to_the_same_head(model, tmp_path):
    rows, data = asked(20), asked(4, 40)
    values, _ = reference_values(reference(model), data, rows, settings(), tmp_path, 0)
    for name in ("*.json", "*.safetensors"):
        (file,) = tmp_path.glob(name)
        before = file.read_bytes()
        file.unlink()
        who = reference(model)
        again, _ = reference_values(who, data, rows, settings(), tmp_path, 0)
        assert again.tolist() == values.tolist() and who.judged.asked == [] and file.read_bytes() == before


@pytest.mark.parametrize("kind", ["learned", "constant", "sampled"])
def test_what_can_change_a_value_makes_the_folder_stale(model, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(baseline, "AT_ONCE", 1)
    cfg, rows, data = settings(kind=kind), asked(20), asked(4, 40)
    assert not reference_values(reference(model), data, rows, cfg, tmp_path, 0)[1]["stale"]
    changed = {
        "weights": (reference(model, identity={"weights": "b"}), rows, cfg, 0),
        "rewards": (reference(model, judging={"rewards": "s"}), rows, cfg, 0),
        "samples": (reference(model), rows, settings(kind=kind, samples=2), 0),
        "seed": (reference(model), rows, cfg, 1)}
    if kind != "sampled":
        changed["asked"] = (reference(model), rows[1:], cfg, 0)
    for name, (who, part, how, seed) in changed.items():
        found = reference_values(who, data, part, how, tmp_path, seed)[1]
        assert found["stale"], name
        assert who.judged.asked, name
        assert not reference_values(who, data, part, how, tmp_path, seed)[1]["stale"]
    # Without a change it is neither stale nor asked again; another response's prompt is new, and nothing else.
    who = reference(model)
    found = reference_values(who, [*data, *asked(1, 60)], rows, cfg, tmp_path, 0)[1]
    assert not found["stale"] and found.get("computed", 1) == 1
    assert [name for name, _ in who.judged.asked] == (["v60"] if kind == "sampled" else [])


def test_too_few_prompts_are_refused_by_name(model, tmp_path):
    with pytest.raises(DataError, match="7 prompts are too few to fit a value head"):
        reference_values(reference(model), asked(2, 40), asked(7), settings(), tmp_path, 0)


def test_notes_are_json_that_a_reader_understands(model, tmp_path):
    reference_values(reference(model), asked(2, 40), asked(20), settings(), tmp_path, 0)
    (file,) = tmp_path.glob("*.json")
    found = json.loads(file.read_text())
    assert {"epochs", "chosen", "mean_mse", "noise_mse", "gain", "beats_mean"} <= found.keys()
    assert len(FrozenNumbers(tmp_path, {}).known()) == 0
