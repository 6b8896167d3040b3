import pytest
import tiny
import tolerances as tol
import torch

from keel.data.collate import pair_batches
from keel.data.records import PreferencePair, Prompt
from keel.data.render import PairRow
from keel.errors import ConfigError, ModelError
from keel.models.load import ModelConfig, scalar_model
from keel.models.pairs import head_scores, pair_features
from keel.models.views import dropping_out, pair_views
from keel.rng import seeded, stream

MAKES = {"llama": tiny.llama, "gpt2": tiny.gpt2, "bert": tiny.bert}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {name: scalar_model(ModelConfig(path=str(make(tmp_path_factory.mktemp(name)))), seed=0)
            for name, make in MAKES.items()}


def batch(shared_prompt="never"):
    pair = PreferencePair(Prompt("p", ()), "a", "b")
    draw = torch.Generator().manual_seed(0)
    sizes = [(9, 4, 7), (3, 8, 2), (6, 1, 5)]
    rows = [PairRow(*(torch.randint(4, 23, (n,), generator=draw).tolist() for n in size), pair) for size in sizes]
    (found,) = pair_batches(rows, micro_tokens=1000, pad_id=0, shared_prompt=shared_prompt)
    return found


def views(model, names=("step", 1), p=0.2, where="model", recompute=False, pairs=None):
    return pair_views(model, pairs or batch(), p=p, where=where, seed=3, names=names, recompute=recompute)


@pytest.mark.parametrize("shared_prompt", ["never", "always"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("where", ["model", "features"])
def test_views_differ_from_each_other_and_come_again_under_the_same_names(models, name, shared_prompt, where):
    pairs = batch(shared_prompt)
    first, second = views(models[name], where=where, pairs=pairs)
    assert not torch.isclose(first, second).all(1).any()  # no row without noise
    again = views(models[name], where=where, pairs=pairs)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    others = views(models[name], ("step", 2), where=where, pairs=pairs)
    assert not any(torch.equal(one, other) for one in (first, second) for other in others)


def test_dropout_reaches_attention_that_is_otherwise_done_by_our_products(models):
    """Llama has no other dropout, and in bfloat16 its short rows take the quick path, which knows none."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, second = views(models["llama"])
    assert not torch.equal(first, second)


def test_every_rate_is_p_inside_and_as_before_outside(models):
    model = models["gpt2"]
    drops = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    drops[0].p, before = 0.7, torch.get_rng_state()
    model.train(), model.transformer.h[0].eval()
    modes = [m.training for m in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), dropping_out(model, 0.25):
        assert all(m.p == 0.25 and m.training for m in drops)
        raise RuntimeError("inside")
    views(model)
    assert drops[0].p == 0.7 and modes == [m.training for m in model.modules()]
    assert torch.equal(before, torch.get_rng_state())
    drops[0].p = 0.1
    model.eval()


def test_llamas_rate_is_an_attribute_of_its_attention(models):
    layer = models["llama"].model.layers[0].self_attn
    with dropping_out(models["llama"], 0.25):
        assert layer.attention_dropout == 0.25 and layer.training
    assert layer.attention_dropout == 0.0 and not layer.training


@pytest.mark.parametrize("shared_prompt", ["never", "always"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("where", ["model", "features"])
def test_recomputed_passes_have_the_same_noise_and_the_same_gradients(models, name, shared_prompt, where):
    """Through a product of the views, so that each gradient depends on the other view's noise."""
    model, pairs, found = models[name], batch(shared_prompt), []
    for recompute in (False, True):
        model.zero_grad()
        first, second = views(model, where=where, recompute=recompute, pairs=pairs)
        (head_scores(model, first) * head_scores(model, second)).sum().backward()
        found.append([first, second, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(kept, again) for kept, again in zip(*found, strict=True))
    assert not any(module.training for module in model.modules())


def test_recomputing_keeps_features_and_no_activations(models):
    def n_saved(recompute):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            views(models["gpt2"], recompute=recompute)
        return sum(sizes)

    assert n_saved(True) < n_saved(False) / 100


def test_masks_on_features_drop_a_share_p_and_keep_the_mean():
    class Ones(torch.nn.Module):
        """Gives ones as features."""

        def forward(self, x):
            return x

    clean = torch.ones(400, 500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keel.models.views.pair_features", lambda model, pairs: clean)
        first, second = views(Ones(), p=0.2, where="features")
    assert torch.equal(first[first != 0].unique(), torch.tensor([1.25]))
    error = (0.2 * 0.8 / clean.numel()) ** 0.5
    assert abs(float((first == 0).float().mean()) - 0.2) < tol.STANDARD_ERRORS * error
    both = float(((first == 0) & (second == 0)).float().mean())  # independent: p squared
    assert abs(both - 0.04) < tol.STANDARD_ERRORS * (0.04 * 0.96 / clean.numel()) ** 0.5


def test_features_under_a_mask_are_those_of_the_quiet_model(models):
    clean, (first, _) = pair_features(models["gpt2"], batch()), views(models["gpt2"], where="features")
    kept = first != 0
    torch.testing.assert_close(first[kept], clean[kept] / 0.8, **tol.FLOAT32)
    assert 0 < kept.sum() < kept.numel()


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1])
def test_noise_that_is_none_or_all_is_refused(models, p):
    with pytest.raises(ConfigError, match="without noise the two views are one and the same"):
        views(models["llama"], p=p)


def test_an_architecture_without_dropout_is_refused():
    model = torch.nn.Linear(2, 2)
    model.config, model.layerdrop = type("Config", (), {"model_type": "plain"})(), 0.1
    with pytest.raises(ModelError, match=r"(?s)a plain model has no dropout anywhere.*on the features instead"):
        views(model)


def test_seeded_draws_from_its_stream_and_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    with seeded(1, "a", 2):
        drawn = torch.rand(3)
        with seeded(1, "b"):
            torch.rand(1)
        more = torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
    generator = stream(1, "a", 2)
    assert torch.equal(drawn, torch.rand(3, generator=generator))
    assert torch.equal(more, torch.rand(3, generator=generator))
