"""Two noisy views of the same responses, for contrastive terms: dropout in the model, or on the features it gives."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from keel.batches import PairBatch
from keel.errors import ConfigError, ModelError
from keel.models.pairs import pair_features
from keel.rng import seeded, stream

__all__ = ["NoiseSource", "dropping_out", "pair_views"]

NoiseSource = Literal["model", "features"]


def pair_views(
    model: nn.Module, batch: PairBatch, *, p: float, where: NoiseSource, seed: int, names: tuple[str | int, ...],
    recompute: bool = False,
) -> tuple[Float[Tensor, "2*B D"], Float[Tensor, "2*B D"]]:
    """`pair_features` twice, under different noise; the same arguments give the same views to the bit.

    Args:
        model: a scalar model; stays in the mode and with the dropout that it has.
        batch: where it is joined, the noise inside a shared prompt is shared by both responses, in each view anew.
        p: chance of each dropped number, 0 < p < 1.
        where: `model`: every dropout of the architecture, in two passes; `features`: one pass, two masks on its result.
        seed, names: of the noise. Name the step and the micro-batch, so that no two draw alike.
        recompute: keep only the features, and let backward run each pass again with the noise that it had. For losses
            over the features of a whole step, whose activations would otherwise all be held at once.

    Raises:
        ConfigError: p is out of range.
        ModelError: the architecture has no dropout.
    """
    if not 0 < p < 1:
        raise ConfigError(f"dropout p={p} is outside (0, 1); without noise the two views are one and the same",
                          remedy="The report's value is 0.05.")

    def features() -> Tensor:
        return pair_features(model, batch)

    def noisy_pass(view: int) -> Tensor:
        with dropping_out(model, p), seeded(seed, "view", view, *names):
            return features()

    if where == "features":
        clean = _kept_small(features) if recompute else features()
        return _masked(clean, p, seed, (0, *names)), _masked(clean, p, seed, (1, *names))
    if recompute:
        return _kept_small(noisy_pass, 0), _kept_small(noisy_pass, 1)
    return noisy_pass(0), noisy_pass(1)


@contextlib.contextmanager
def dropping_out(model: nn.Module, p: float) -> Iterator[None]:
    """Every dropout of the architecture is on, with this chance, inside; afterwards the model is as it was.

    That is what each layer has a rate for: residuals, embeddings and attention in GPT-2 and BERT, attention weights
    alone in Llama and its kin.

    Raises:
        ModelError: the architecture has none.
    """
    rates = [(module, name) for module in model.modules() for name in _rates(module)]
    if not rates:
        raise ModelError(f"a {model.config.model_type} model has no dropout anywhere, so both views would be the same",
                         remedy="Put the noise on the features instead.")
    before = [getattr(module, name) for module, name in rates]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        for module, name in rates:
            setattr(module, name, p)
        yield
    finally:
        for (module, name), rate in zip(rates, before, strict=True):
            setattr(module, name, rate)
        for module, mode in modes:
            module.training = mode


def _rates(module: nn.Module) -> list[str]:
    """Attributes that hold a dropout rate: p of torch's own modules, elsewhere numbers called attention_dropout and the
    like; not those that drop whole layers."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return ["p"]
    return [name for name, value in vars(module).items()
            if "drop" in name and "layer" not in name and isinstance(value, int | float)]


def _kept_small(run_trunk: Callable[..., Tensor], *arguments: int) -> Tensor:
    # The pass sets its own randomness, so there is none to be preserved around it.
    return checkpoint(run_trunk, *arguments, use_reentrant=False, preserve_rng_state=False)


def _masked(features: Tensor, p: float, seed: int, names: tuple[str | int, ...]) -> Tensor:
    kept = torch.rand(features.shape, generator=stream(seed, "view", *names)) >= p
    return torch.where(kept.to(features.device), features / (1 - p), 0.0)
