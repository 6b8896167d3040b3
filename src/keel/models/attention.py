"""Attention: two products and a softmax where they beat torch's fused kernel on a CPU, that kernel everywhere else; and
joined batches, whose rows are put together for it and taken apart again."""

import contextlib
import inspect
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from keel.batches import Joined
from keel.errors import ModelError

__all__ = ["attending", "can_join", "use_quick_attention"]

NAME = "keel"
PRODUCTS_UP_TO = 200
"""Longest row whose attention weights are written out: they take length squared, and beyond it are no faster."""


@dataclass
class _Pass:
    """A forward pass over a joined batch, and the layers that have attended in it."""

    joined: Joined
    n_layers: int = 0


_PASS: ContextVar[_Pass | None] = ContextVar("_PASS", default=None)


def use_quick_attention(model: Any) -> None:
    """Let a model that asks transformers for "sdpa" use this module instead; saved configs do not change."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME


def can_join(model: nn.Module) -> bool:
    """Whether the model can read joined batches: it looks back over the whole row, takes the positions it is told, and
    attends through this module. A window over the last tokens, recurrent layers and distances in place of positions
    (ALiBi) rule it out."""
    bare: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    config = bare.config
    whole_rows = not getattr(config, "sliding_window", None) and all(
        kind == "full_attention" for kind in getattr(config, "layer_types", None) or [])
    return (config._attn_implementation == NAME and whole_rows and not getattr(bare, "_is_stateful", False)
            and "position_ids" in inspect.signature(bare.base_model.forward).parameters
            and getattr(bare.base_model, "_supports_attention_backend", False))


@contextlib.contextmanager
def attending(model: nn.Module, joined: Joined) -> Iterator[None]:
    """The rows of a joined batch see themselves only, while the model's trunk runs on its tokens inside.

    Raises:
        ModelError: some layer did not attend through this module, so what it did with the tokens is unknown.
    """
    current = _Pass(joined)
    token = _PASS.set(current)
    try:
        yield
    finally:
        _PASS.reset(token)
    n_layers: Any = model.config.num_hidden_layers
    if current.n_layers != n_layers:
        raise ModelError(f"{current.n_layers} of {n_layers} layers kept the rows of a joined batch apart",
                         remedy="Set shared_prompt = never: this architecture mixes tokens in ways of its own.")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any,
) -> tuple[Tensor, None]:
    """transformers calls this with whatever an architecture has to say."""
    current = _PASS.get()
    if current is None:
        return _over_rows(module, (query, key, value), attention_mask, more), None
    current.n_layers += 1
    # Rows for the attention alone: each is causal and padded on the right, which needs no mask, and tokens that two
    # rows share get the gradients of both. The attention of a shared beginning is computed twice; nothing else is.
    rows = [_pick(part[0].transpose(0, 1), current.joined.places).transpose(1, 2) for part in (query, key, value)]
    out = _over_rows(module, (rows[0], rows[1], rows[2]), None, more)
    return _pick(out.flatten(0, 1), current.joined.sources)[None], None


def _pick(tokens: Float[Tensor, "N H D"], index: Int[Tensor, "*S"]) -> Float[Tensor, "*S H D"]:
    # An embedding's backward adds whole rows; that of indexing takes several times as long.
    return nn.functional.embedding(index, tokens.flatten(1)).unflatten(-1, tokens.shape[1:])


def _over_rows(
    module: nn.Module, parts: tuple[Tensor, Tensor, Tensor], attention_mask: Tensor | None, more: dict[str, Any],
) -> Tensor:
    """On a CPU, by products: one query a row (decoding), and short causal rows in bfloat16, whose fused backward takes
    three times as long. What is not known here goes to transformers' own function."""
    query, key, value = parts
    n_queries, n_keys = query.shape[2], key.shape[2]
    causal = more.get("is_causal") is not False and getattr(module, "is_causal", True)
    short = attention_mask is None and n_queries == n_keys <= PRODUCTS_UP_TO and value.dtype == torch.bfloat16
    special = more.get("dropout") or any(more.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    ours = query.device.type == "cpu" and not special and (n_queries == 1 or (short and causal))
    if not ours:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)[0]
    scaling = query.shape[3] ** -0.5 if more.get("scaling") is None else more["scaling"]
    # Scores of whole rows in float32: in bfloat16 they err more than the fused kernel does.
    precise = torch.float32 if n_queries > 1 else value.dtype
    with torch.autocast("cpu", enabled=False):
        return _by_products((query * scaling).to(precise), key.to(precise), value, attention_mask)


def _by_products(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
    rows, heads, n_queries, width = query.shape
    n_keys, groups = key.shape[2], heads // key.shape[1]
    if n_queries == 1:  # queries that share a key are as good as several queries of one head
        query = query.reshape(rows, heads // groups, groups, width)
    elif groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3)
    if n_queries > 1:
        scores += torch.full((n_keys, n_keys), float("-inf"), dtype=scores.dtype).triu(1)
    elif attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    elif attention_mask is not None:
        scores = scores + attention_mask
    out = (scores.softmax(-1).to(value.dtype) @ value).reshape(rows, heads, n_queries, value.shape[3])
    return out.transpose(1, 2).contiguous()
