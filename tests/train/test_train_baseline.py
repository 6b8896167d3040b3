"""What the frozen reference reaches: of each kind by hand, asked once, found again, and anew when anything changes."""

import json
from dataclasses import replace

import pytest
import tiny
import tolerances as tol
import torch

from keel.data.records import Message, Prompt
from keel.data.render import PromptRow
from keel.errors import DataError
from keel.models.load import ModelConfig, causal_lm
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
    data, told = [rows[0], rows[1], replace(rows[0], record=rows[2].record), rows[3]], []
    values, how = reference_values(who, data, [], settings(kind="sampled"), tmp_path, 0, lambda *n: told.append(n))
    expected = [sum(reward_of(row, k) for k in range(3)) / 3 for row in data]
    assert values.tolist() == pytest.approx(expected, rel=tol.RELATIVE32)
    assert who.judged.asked == [("v0", 3), ("v1", 3), ("v3", 3)] and how["prompts"] == 3 and how["computed"] == 4
    assert told == [(3, 4), (4, 4)]
    again, how = reference_values(who, data, rows, settings(kind="sampled"), tmp_path, 0)
    assert again.tolist() == values.tolist() and how["computed"] == 0 and len(who.judged.asked) == 3


def test_a_killed_sampling_goes_on_where_it_was(model, tmp_path, monkeypatch):
    monkeypatch.setattr(baseline, "AT_ONCE", 2)
    rows, cfg = asked(6), settings(kind="sampled")
    whole, _ = reference_values(reference(model), rows, [], cfg, tmp_path / "whole", 0)

    class Killed(Judge):
        def __call__(self, prompts, n, on_done=None):
            if len(self.asked) >= 4:
                raise KeyboardInterrupt
            return super().__call__(prompts, n, on_done)

    with pytest.raises(KeyboardInterrupt):
        reference_values(reference(model, judged=Killed()), rows, [], cfg, tmp_path / "killed", 0)
    who = reference(model)
    found, how = reference_values(who, rows, [], cfg, tmp_path / "killed", 0)
    assert found.tolist() == whole.tolist() and how["computed"] == 2
    assert [name for name, _ in who.judged.asked] == ["v4", "v5"]


def test_a_learned_value_is_the_head_on_the_states_of_the_prompt(model, tmp_path):
    """Fitted once to the first prompts; kept; and found again without a single forward pass."""
    who, rows, data = reference(model), asked(24), [*asked(4, 40), asked(1, 40)[0]]
    values, how = reference_values(who, data, rows, settings(), tmp_path, 0)
    assert [name for name, _ in who.judged.asked] == [f"v{i}" for i in range(20)]
    assert how["n_prompts"] == 20 and how["n_samples"] == 60 and how["computed"] == 5 and how["prompts"] == 4
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
        assert again.tolist() == values.tolist() and len(who.judged.asked) == 20 and file.read_bytes() == before


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
        assert found["stale"] == (kind != "constant"), name
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
