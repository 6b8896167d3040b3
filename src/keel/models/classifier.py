"""Reward models of any make: sequence classifiers with one label or more, and language models with a value head."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.errors import ModelError
from keel.models.forward import autocasting, head_outputs, pooled_hidden
from keel.models.load import ModelConfig, model_config, scalar_model
from keel.models.members import load_members

__all__ = ["Classifier", "context_of", "load_classifier"]

VALUE_HEADS = ("v_head.summary", "v_head", "value_head.summary", "value_head", "reward_head", "score")
"""What libraries call the layer that they put on a language model (TRL, trlx, ...); one linear layer, or two around a
ReLU (`v_head.0`, `v_head.2`)."""


@dataclass(frozen=True)
class Classifier:
    """A model with one or more numbers out, and how the score is made of them.

    Attributes:
        model: frozen, in eval mode.
        weights: of each label's logit in the score.
        labels: their names.
        two_texts: the model is told which tokens are the response, by token types 0 and 1.
        probability: the score is the share of the label of largest weight in the softmax over all labels.
    """

    model: nn.Module
    weights: tuple[float, ...]
    labels: tuple[str, ...]
    two_texts: bool = False
    probability: bool = False

    def scores(self, batch: TokenBatch) -> Float[Tensor, " B"]:
        """One score per row, in float64. Labels of weight 0 are not looked at, so they may be NaN."""
        with _typed(self.model, batch) if self.two_texts else contextlib.nullcontext():
            logits = _logits(self.model, batch).double()
        if self.probability:
            return logits.softmax(1)[:, self.weights.index(max(self.weights))]
        return sum((weight * logits[:, i] for i, weight in enumerate(self.weights) if weight),
                   torch.zeros(len(logits), dtype=torch.float64, device=logits.device))


def load_classifier(
    spec: ModelConfig, *, adapter: str | None = None, label: str | int | None = None,
    label_weights: tuple[float, ...] = (), probability: bool = False,
) -> Classifier:
    """A reward model that only scores.

    Args:
        spec: a sequence classifier, a keel reward model, a language model with a value head, or the trunk of `adapter`.
        adapter: folder of a LoRA reward model.
        label: name or number of the label whose logit is the score.
        label_weights: weight of each label.
        probability: the score is the probability of the label, among several that exclude each other.

    Raises:
        ModelError: it cannot be loaded, has no trained head, has labels of which none is said to be the score, or none
            that exclude each other where a probability is asked for.
    """
    if adapter is not None:
        return Classifier(load_members(spec, [adapter])[0], (1.0,), ("score",))
    config = model_config(spec)
    head = None if _is_classifier(config) else _value_head(spec.path)
    n_labels = config.num_labels if head is None else _linears(head)[-1].out_features
    model = scalar_model(spec, n_labels=n_labels, seed=None if head is None else 0)
    if head is not None:
        model.score = head.to(next(model.parameters()).device)
    labels = tuple(str(model.config.id2label.get(i, i)) for i in range(n_labels)) if head is None else tuple(
        map(str, range(n_labels)))
    problem = getattr(config, "problem_type", None)
    weights = _weights(labels, label, label_weights, spec.path, problem)
    if probability:
        _require_alternatives(labels, problem, spec.path)
    return Classifier(model.requires_grad_(False), weights, labels, probability=probability)


def context_of(model: Any) -> int | None:
    """Longest row in tokens that the model was made for; none where it does not say.

    RoBERTa and its kin begin to count positions behind that of the padding.
    """
    bare: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    limit = getattr(bare.config, "max_position_embeddings", None) or getattr(bare.config, "n_positions", None)
    embeddings = getattr(bare.base_model, "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return limit if limit is None or padding is None else limit - padding - 1


def _is_classifier(config: Any) -> bool:
    return any("SequenceClassification" in name for name in config.architectures or [])


def _logits(model: nn.Module, batch: TokenBatch) -> Float[Tensor, "B A"]:
    """Logits of all labels in float32, read at the last real token or as the model pools."""
    if hasattr(model, "score") or hasattr(model, "classifier"):
        return head_outputs(model, pooled_hidden(model, batch))
    with autocasting(model, batch.ids.device.type):
        return model(input_ids=batch.ids, attention_mask=batch.attention_mask.long()).logits.float()


@contextlib.contextmanager
def _typed(model: nn.Module, batch: TokenBatch) -> Iterator[None]:
    """Passes of the model are given token types: 1 on the response, 0 elsewhere."""
    types = {"token_type_ids": batch.response_mask.long()}
    hook = model.register_forward_pre_hook(lambda _, inputs, named: (inputs, named | types), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _weights(labels: tuple[str, ...], label: str | int | None, given: tuple[float, ...], path: str,
             problem: str | None) -> tuple[float, ...]:
    """How much each label's logit counts in the score."""
    named = ", ".join(f"{i} ({name})" for i, name in enumerate(labels))
    if given:
        if len(given) != len(labels):
            raise ModelError(f"{len(given)} label_weights for {len(labels)} labels: {named}", where=path,
                             remedy="Give one weight per label, in this order.")
        return given
    if label is not None:
        return tuple(float(i == _number(label, labels, named, path)) for i in range(len(labels)))
    if len(labels) == 1:
        return (1.0,)
    if len(labels) == 2 and problem not in ("regression", "multi_label_classification"):
        return (-1.0, 1.0)
    raise ModelError(f"{len(labels)} labels, and which of them is the score is not said: {named}", where=path,
                     remedy="Name one with label, or give label_weights.")


def _require_alternatives(labels: tuple[str, ...], problem: str | None, path: str) -> None:
    if len(labels) < 2:
        raise ModelError("probability of a label, and the model has only one: the softmax over it is always 1",
                         where=path, remedy="Leave probability out; squash = sigmoid makes a probability of one logit.")
    if problem in ("regression", "multi_label_classification"):
        raise ModelError(f"probability of a label, and the labels of this model do not exclude each other ({problem})",
                         where=path, remedy="Leave probability out and name the label; squash = sigmoid makes a "
                                            "probability of its logit.")


def _number(label: str | int, labels: tuple[str, ...], named: str, path: str) -> int:
    if label in labels:
        return labels.index(str(label))
    if str(label).isdecimal() and int(label) < len(labels):
        return int(label)
    raise ModelError(f"no label {label!r}; there are {named}", where=path, remedy="Name one of these.")


def _value_head(path: str) -> nn.Module | None:
    """The layer that the folder holds beside a language model; none where there is none."""
    stored = {name: file for file in sorted(Path(path).glob("*.safetensors")) for name in _names(file)}
    for head in VALUE_HEADS:
        if f"{head}.weight" in stored:
            return _linear(stored, head)
        if f"{head}.0.weight" in stored and f"{head}.2.weight" in stored:
            return nn.Sequential(_linear(stored, f"{head}.0"), nn.ReLU(), _linear(stored, f"{head}.2"))
    return None


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as stored:
        return list(stored.keys())


def _linear(stored: dict[str, Path], name: str) -> nn.Linear:
    weight = _tensor(stored, f"{name}.weight")
    bias = _tensor(stored, f"{name}.bias") if f"{name}.bias" in stored else None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _tensor(stored: dict[str, Path], name: str) -> Tensor:
    with safe_open(stored[name], "pt") as file:
        return file.get_tensor(name)


def _linears(head: nn.Module) -> list[nn.Linear]:
    return [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
