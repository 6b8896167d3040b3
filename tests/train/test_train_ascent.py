"""The two-phase step on a small network in float64, against torch.func, and on its own."""

import math

import pytest
import tiny
import tolerances as tol
import torch
from references import meta_step
from torch import nn
from torch.func import functional_call

from keel.errors import ConfigError
from keel.functional.meta import difference_objective
from keel.functional.preference import bradley_terry
from keel.models.load import LoraSettings, ModelConfig, scalar_model
from keel.train.ascent import AscentConfig, add_curvature, gradient, lifted, lifted_parameters, norm, step_size
from keel.train.step import Learner, OptimizerConfig

ETA = 0.7


def network() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    made = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return made


def draws(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PAIRS, RESPONSES = draws(6, 2), draws(3, 4, seed=2)


def shares(model: nn.Module, parts=((0,), (1, 2))):
    return [lambda part=part: difference_objective(model(RESPONSES[list(part)])[..., 0]).sum() / 3 for part in parts]


def descend(model: nn.Module) -> None:
    scores = model(PAIRS)[..., 0]
    (bradley_terry(scores[:, 0], scores[:, 1])[0].sum() / len(PAIRS)).backward()


def reference(kind, model: nn.Module, who: list[str]) -> dict[str, torch.Tensor]:
    theta = {name: p.detach().clone() for name, p in model.named_parameters()}
    one = lambda p, x: functional_call(model, p, (x,))[0]  # noqa: E731
    return kind(theta, lambda p: [[one(p, x) for x in pair] for pair in PAIRS],
                lambda p: [[one(p, x) for x in group] for group in RESPONSES], ETA, who)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("who", [["0.weight", "0.bias", "2.weight", "2.bias"], ["2.weight", "2.bias"]])
def test_the_step_in_place_equals_the_functional_one(order: str, who: list[str]) -> None:
    model = network()
    named = dict(model.named_parameters())
    chosen = [named[name] for name in who]
    value, rise = gradient(shares(model), chosen)
    theta = {name: p.detach().clone() for name, p in named.items()}
    expected = meta_step.difference(model(RESPONSES)[..., 0].detach())
    assert float(value) == pytest.approx(float(expected), rel=tol.RELATIVE64)
    with lifted(chosen, rise, ETA):
        descend(model)
    if order == "second":
        add_curvature(shares(model), chosen, list(model.parameters()), ETA)
    expected = reference(getattr(meta_step, f"{order}_order"), model, who)
    for name, p in named.items():
        torch.testing.assert_close(p.grad, expected[name], **tol.FLOAT64)
        assert torch.equal(p, theta[name])


def test_micro_batches_change_nothing() -> None:
    found = []
    for parts in (((0, 1, 2),), ((0,), (1, 2)), ((2,), (1,), (0,))):
        model = network()
        learned = list(model.parameters())
        value, rise = gradient(shares(model, parts), learned)
        with lifted(learned, rise, ETA):
            descend(model)
        add_curvature(shares(model, parts), learned, learned, ETA)
        found.append([value, *(p.grad for p in learned)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, **tol.FLOAT64)


def test_a_step_of_zero_is_the_plain_step_bit_for_bit() -> None:
    plain, ours = network(), network()
    learners = [Learner.of([model], OptimizerConfig(lr=0.1), 3) for model in (plain, ours)]
    for number in (1, 2, 3):
        descend(plain)
        rise = gradient(shares(ours), learners[1].parameters)[1]
        with lifted(learners[1].parameters, rise, 0.0):
            descend(ours)
        for learner in learners:
            learner.step(number, ["a"])
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_come_back_bit_for_bit_where_subtraction_would_not() -> None:
    model = network().float()
    before = [p.detach().clone() for p in model.parameters()]
    rise = [torch.ones_like(p) for p in before]
    with pytest.raises(KeyboardInterrupt), lifted(list(model.parameters()), rise, 1e4):
        assert all(torch.equal(p, b + 1e4) for p, b in zip(model.parameters(), before, strict=True))
        raise KeyboardInterrupt  # whatever happens on the way
    assert all(torch.equal(p, held) for p, held in zip(model.parameters(), before, strict=True))
    assert not all(torch.equal(p + 1e4 - 1e4, p) for p in before)


def test_equal_responses_lead_nowhere() -> None:
    model = network()
    alike = lambda: difference_objective(model(RESPONSES[:, :1])[..., 0].expand(-1, 4)).mean()  # noqa: E731
    value, rise = gradient([alike], list(model.parameters()))
    assert float(value) == pytest.approx(3 / 8, rel=tol.RELATIVE64)  # (k - 1) / 2k
    assert not any(bool(g.any()) for g in rise)
    assert step_size(AscentConfig(rho=0.01), list(model.parameters()), rise) * float(norm(rise)) == 0


def test_the_gradients_of_the_model_are_left_alone() -> None:
    model = network()
    descend(model)
    before = [p.grad.clone() for p in model.parameters()]
    gradient(shares(model), list(model.parameters()))
    assert all(torch.equal(p.grad, held) for p, held in zip(model.parameters(), before, strict=True))


def test_step_sizes() -> None:
    ones, twos = [torch.ones(3), torch.ones(1)], [torch.full((4,), 3.0)]  # norms 2 and 6
    assert step_size(AscentConfig(rho=0.03), ones, twos) == pytest.approx(0.01, rel=tol.RELATIVE32)
    assert step_size(AscentConfig(rho=None, eta=0.5), ones, twos) == 0.5
    assert float(norm(ones)) == pytest.approx(math.sqrt(4), rel=tol.RELATIVE32)
    for wrong in ({"rho": None}, {"eta": 0.1}):
        with pytest.raises(ConfigError, match="give one, and set the other to none"):
            AscentConfig.checked(wrong)


def names(model: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    by_id = {id(p): name for name, p in model.named_parameters()}
    return [by_id[id(p)] for p in parameters]


def test_which_weights_take_the_step(tmp_path) -> None:
    llama, bert = str(tiny.llama(tmp_path / "llama")), str(tiny.bert(tmp_path / "bert"))
    head = AscentConfig(params="head")
    whole = scalar_model(ModelConfig(path=llama), seed=0)
    assert names(whole, lifted_parameters(whole, AscentConfig())) == [name for name, _ in whole.named_parameters()]
    assert names(whole, lifted_parameters(whole, head)) == ["score.weight"]
    encoder = scalar_model(ModelConfig(path=bert))
    assert names(encoder, lifted_parameters(encoder, head)) == ["classifier.weight", "classifier.bias"]
    adapted = scalar_model(ModelConfig(path=llama, lora=LoraSettings(rank=2)), seed=0)
    learned = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert names(adapted, lifted_parameters(adapted, AscentConfig())) == learned
    (only,) = names(adapted, lifted_parameters(adapted, head))
    assert "score" in only and only in learned


def test_weights_of_16_bits_are_refused(tmp_path) -> None:
    llama = str(tiny.llama(tmp_path / "llama"))
    model = scalar_model(ModelConfig(path=llama, dtype="bfloat16"), seed=0)
    with pytest.raises(ConfigError, match="weights of 16 bits swallow a step"):
        lifted_parameters(model, AscentConfig())
    assert len(lifted_parameters(model, AscentConfig(params="head"))) == 1  # heads are held in float32
    adapted = scalar_model(ModelConfig(path=llama, dtype="bfloat16", lora=LoraSettings(rank=2)), seed=0)
    assert lifted_parameters(adapted, AscentConfig())
