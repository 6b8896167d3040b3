"""A model with one number per attribute, and the reward model that is their weighted sum."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.functional.grades import scalarised_head
from keel.models.forward import head_layer, head_outputs, pooled_hidden
from keel.models.load import ModelConfig, scalar_model

__all__ = ["attribute_model", "attribute_outputs", "remember_moments", "scalarised"]


def attribute_model(spec: ModelConfig, names: Sequence[str], *, seed: int) -> nn.Module:
    """A model with a label per attribute, named in its config.

    Args:
        spec: the trunk, or such a model trained before, whose labels are then taken to have these names.
        names: of the attributes, in the order of the labels.
        seed: draws the head where there is none yet.
    Raises:
        ModelError: see `scalar_model`.
    """
    model = scalar_model(spec, seed=seed, n_labels=len(names))
    config = _config(model)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    config.problem_type = "regression"
    return model


def attribute_outputs(model: nn.Module, batch: TokenBatch) -> Float[Tensor, "B A"]:
    """The head at the last real token (causal models) or the model's own pooling (encoders)."""
    return head_outputs(model, pooled_hidden(model, batch))


def remember_moments(model: nn.Module, mean: Float[Tensor, " A"], std: Float[Tensor, " A"]) -> None:
    """Write into the config, as `attributes`, what a label must be multiplied by and what is then added to it."""
    config = _config(model)
    config.attributes = {name: {"mean": float(mean[i]), "std": float(std[i])} for i, name in config.id2label.items()}


def scalarised(
    model: nn.Module, weights: Mapping[str, float], *, mean: Float[Tensor, " A"], std: Float[Tensor, " A"],
) -> nn.Module:
    """A copy with one label: the weighted sum of the attributes in their own units.

    A causal model's head has no bias: its score is the sum less the constant that is the same for every response.

    Args:
        model: from `attribute_model`, trained to predict standardised grades.
        weights: of the attributes in the sum; one that is absent counts 0.
        mean: of each attribute.
        std: of each attribute.
    """
    one: Any = copy.deepcopy(model)
    one = one.merge_and_unload() if hasattr(one, "peft_config") else one
    head = head_layer(one)
    coefs = torch.tensor([weights.get(name, 0.0) for name in one.config.id2label.values()], dtype=torch.float64)
    with torch.no_grad():
        weight, bias = scalarised_head(head.weight.cpu(), None if head.bias is None else head.bias.cpu(), coefs,
                                       mean=mean, std=std)
        device = head.weight.device
        head.weight = nn.Parameter(weight.to(device, torch.float32))
        head.bias = None if head.bias is None else nn.Parameter(bias.to(device, torch.float32))
    head.out_features = one.num_labels = one.config.num_labels = 1
    return one


def _config(model: Any) -> Any:
    return (model.get_base_model() if hasattr(model, "peft_config") else model).config
