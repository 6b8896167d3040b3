"""Tiny random models of seven architectures, and what an intervention does to them, worked out without keel's hooks."""

from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn

PAD, END, VOCABULARY, WIDTH, LAYERS = 0, 2, 41, 16, 3
NAMES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "mistral")
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": LAYERS,
         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": PAD,
         "bos_token_id": 1, "eos_token_id": END}
# Windows shorter than the rows: what slides out of them must not confuse positions.
OWN = {"llama": {}, "qwen2": {}, "qwen3": {"head_dim": 8}, "mistral": {"sliding_window": 6},
       "gemma2": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
       "gemma3": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2}}
KINDS = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral", "gemma2": "Gemma2"}


def built(name: str, attention: str = "sdpa", *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Random weights, large enough that what a block writes matters to what is said."""
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=64,
                                         bos_token_id=1, eos_token_id=END, pad_token_id=PAD)
        model = transformers.GPT2LMHeadModel._from_config(config, attn_implementation=attention)
    elif name == "gemma3":
        config = transformers.Gemma3TextConfig(**SHAPE | OWN[name])
        model = transformers.Gemma3ForCausalLM._from_config(config, attn_implementation=attention)
    else:
        config = getattr(transformers, f"{KINDS[name]}Config")(**SHAPE | OWN[name])
        model = getattr(transformers, f"{KINDS[name]}ForCausalLM")._from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3, generator=generator)
    # No row ends by itself: all are as long as asked for, so that all can be compared.
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model.to(dtype).eval()


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """By name, which keel must not need."""
    bare = model.get_base_model() if hasattr(model, "peft_config") else model
    return bare.transformer.h if hasattr(bare, "transformer") else bare.model.layers


def rows(lengths=(3, 7, 5)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def padded(some: list[list[int]], side: str = "left") -> tuple[Tensor, Tensor]:
    """Ids and attention mask."""
    width = max(map(len, some))
    fill = [(width - len(row)) * [0] for row in some]
    ids, mask = ([(gap + own if side == "left" else own + gap) for gap, own in zip(fill, each, strict=True)]
                 for each in (some, [[1] * len(row) for row in some]))
    return torch.tensor(ids), torch.tensor(mask)


def edited(model: nn.Module, layer: int, change: Callable[[Tensor], Tensor], columns: slice):
    """A plain hook that changes some columns of what a block writes; keel has no part in it."""
    def hook(_: nn.Module, __: object, output: object) -> object:
        hidden = (output if isinstance(output, Tensor) else output[0]).clone()
        hidden[:, columns] = change(hidden[:, columns])
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    return blocks_of(model)[layer].register_forward_hook(hook)


def columns(where: str, n_prompt: int) -> slice:
    """The first new token comes from the last prompt token, so generation begins there."""
    return {"all": slice(None), "prompt": slice(0, n_prompt - 1), "generation": slice(n_prompt - 1, None)}[where]


@torch.no_grad()
def greedy(model: nn.Module, prompt: list[int], n_new: int, layer: int, change: Callable[[Tensor], Tensor], where: str,
           ) -> tuple[list[int], Tensor]:
    """One row by itself, no padding, no cache: the whole row again for every token. Ids, and the logits of each."""
    ids, logits = list(prompt), []
    hook = edited(model, layer, change, columns(where, len(prompt)))
    try:
        for _ in range(n_new):
            logits.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].float())
            ids.append(int(logits[-1].argmax()))
    finally:
        hook.remove()
    return ids[len(prompt):], torch.stack(logits)


@torch.no_grad()
def written(model: nn.Module, layer: int, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """What a block writes in one plain pass, hooks that are there included."""
    seen: list[Tensor] = []
    hook = blocks_of(model)[layer].register_forward_hook(
        lambda _, __, out: seen.append(out if isinstance(out, Tensor) else out[0]))
    try:
        model(ids, attention_mask=mask, use_cache=False)
    finally:
        hook.remove()
    return seen[0]


def stepping(vector: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda hidden: hidden + vector


def lifting(unit: Tensor, floor: float) -> Callable[[Tensor], Tensor]:
    """The published rule, with the negated axis and an upper bound."""
    return lambda hidden: hidden - torch.relu(hidden @ -unit + floor)[..., None] * -unit
