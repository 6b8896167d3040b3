"""Texts to vectors with a model that was made for it: the mean of its last hidden states."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from keel.functional.directions import token_means
from keel.models.load import explained, load_tokenizer

__all__ = ["encoded_texts"]

SHORTEST_CONTEXT = 512
"""Of encoders that do not say how long their rows may be."""


@torch.no_grad()
def encoded_texts(path: str, texts: Sequence[str], *, batch: int = 16) -> Float[Tensor, "N D"]:
    """One vector for each text, float32 on the CPU; what is beyond the encoder's context is cut.

    Args:
        path: folder or hub name of any Hugging Face model with hidden states.
        texts: at least one.
        batch: texts per pass.

    Raises:
        ModelError: no model or no tokenizer there.
    """
    from transformers import AutoModel

    tokenizer = load_tokenizer(path)
    with explained(path, "encoder"):
        model: Any = AutoModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True).eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # under the attention mask nobody sees it
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    longest = getattr(model.config, "max_position_embeddings", SHORTEST_CONTEXT)
    found = []
    for start in range(0, len(texts), batch):
        told = tokenizer(list(texts[start:start + batch]), padding=True, padding_side="right", truncation=True,
                         max_length=longest, return_tensors="pt").to(device)
        hidden = model(input_ids=told.input_ids, attention_mask=told.attention_mask).last_hidden_state
        found.append(token_means(hidden, told.attention_mask.bool()).cpu())
    return torch.cat(found)
