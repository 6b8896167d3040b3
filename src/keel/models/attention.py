"""Attention on CPUs: two products and a softmax where they beat torch's fused kernel, that kernel everywhere else."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["use_quick_attention"]

NAME = "keel_cpu"
PRODUCTS_UP_TO = 200
"""Longest row whose attention weights are written out: they take length squared, and beyond it are no faster."""


def use_quick_attention(model: Any) -> None:
    """Let a model on a CPU that asks transformers for "sdpa" use this module instead; saved configs do not change."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any,
) -> tuple[Tensor, None]:
    """One query a row (decoding), and short causal rows in bfloat16, whose fused backward takes three times as long.

    transformers calls this with whatever an architecture has to say; what is not known here goes to its own function.
    """
    n_queries, n_keys = query.shape[2], key.shape[2]
    causal = more.get("is_causal") is not False and getattr(module, "is_causal", True)
    short = attention_mask is None and n_queries == n_keys <= PRODUCTS_UP_TO and value.dtype == torch.bfloat16
    special = more.get("dropout") or any(more.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    if special or not (n_queries == 1 or (short and causal)):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    scaling = query.shape[3] ** -0.5 if more.get("scaling") is None else more["scaling"]
    # Scores of whole rows in float32: in bfloat16 they err more than the fused kernel does.
    precise = torch.float32 if n_queries > 1 else value.dtype
    with torch.autocast("cpu", enabled=False):
        return _by_products((query * scaling).to(precise), key.to(precise), value, attention_mask), None


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
