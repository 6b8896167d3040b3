"""Token log-probabilities, values and scores. The only shift from logits to labels; logits exist only in chunks."""

import contextlib
import inspect
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from keel.batches import Joined, TokenBatch
from keel.errors import ModelError
from keel.functional.policy import kl_full
from keel.models.attention import attending
from keel.models.load import is_encoder, trunk_of
from keel.models.residual import columns_of, declared

__all__ = ["autocasting", "head_layer", "head_outputs", "hidden_states", "pooled_hidden", "position_ids",
           "response_scores", "scalar_head", "token_kl", "token_logprobs", "token_values", "trunk_output",
           "values_and_states"]

CHUNK_ELEMENTS = 1 << 22
"""Logits held at once: 16 MB in float32."""


def position_ids(attention_mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """0, 1, 2, ... over the real tokens of each row, wherever its padding is."""
    return (attention_mask.long().cumsum(1) - 1).clamp_min(0)


def hidden_states(model: nn.Module, batch: TokenBatch) -> Float[Tensor, "B T D"]:
    """Final hidden states, after the last norm. Right-padded rows of a causal model need no attention mask at all."""
    if is_encoder(model):
        return trunk_output(model, {"input_ids": batch.ids, "attention_mask": batch.attention_mask.long()}
                            ).last_hidden_state
    with declared(model, lambda: columns_of(batch)):
        return _decoder_states(model, batch)


def _decoder_states(model: nn.Module, batch: TokenBatch) -> Float[Tensor, "B T D"]:
    if batch.joined is not None:
        return _joined_states(model, batch.joined)
    trunk = trunk_of(model)
    inputs: dict[str, Any] = {"input_ids": batch.ids}
    if not bool(batch.attention_mask[:, 0].all()):
        inputs["attention_mask"] = batch.attention_mask.long()
        if "position_ids" in inspect.signature(trunk.forward).parameters:
            inputs["position_ids"] = position_ids(batch.attention_mask)
    return trunk_output(model, inputs).last_hidden_state


def _joined_states(model: nn.Module, joined: Joined) -> Float[Tensor, "B T D"]:
    # The mask has no cells: what does not ask `attending` which tokens to look at fails instead of looking at all.
    inputs = {"input_ids": joined.ids[None], "position_ids": joined.position_ids[None],
              "attention_mask": torch.empty(1, 1, 0, 0, dtype=torch.bool, device=joined.ids.device)}
    with attending(model, joined):
        hidden = trunk_output(model, inputs).last_hidden_state[0]
    return nn.functional.embedding(joined.places, hidden)


def trunk_output(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """Run the trunk in the number format the model was loaded for."""
    device, trunk = inputs["input_ids"].device.type, trunk_of(model)
    with autocasting(model, device), model.active() if hasattr(model, "active") else contextlib.nullcontext():
        return trunk(**inputs) if is_encoder(model) else trunk(**{"use_cache": False} | inputs)


def autocasting(model: nn.Module, device: str) -> torch.autocast:
    """bfloat16 products if the model was loaded for them. Around many passes, each weight is converted only once."""
    bare: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    return torch.autocast(device, dtype=torch.bfloat16, enabled=getattr(bare, "keel_autocast", False))


def token_logprobs(
    model: nn.Module, batch: TokenBatch, *, temperature: float = 1.0, with_entropy: bool = False,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
    """log p(ids[b, t] | ids[b, :t]) in nats on response tokens, 0 elsewhere; and the entropy there.

    The head runs on positions before response tokens only, in chunks that backward computes again: no tensor of
    [batch, length, vocabulary] ever exists.

    Args:
        model: a causal language model.
        batch: rows whose response tokens are wanted.
        temperature: divides the logits, > 0.
        with_entropy: also give the entropy of each next-token distribution, in nats; it has a gradient too.
    """
    hidden = hidden_states(model, batch)
    wanted = batch.response_mask[:, 1:]
    weight, bias = output_head(model)
    picked, targets = hidden[:, :-1][wanted], batch.ids[:, 1:][wanted]
    found, spread = _ChunkedLogprobs.apply(picked, weight, bias, targets, 1.0 / temperature * logit_scale(model),
                                           with_entropy)
    logprobs = _scattered(found, wanted)
    return logprobs, _scattered(spread, wanted) if with_entropy else None


def token_kl(
    model: nn.Module, reference: nn.Module, batch: TokenBatch, *, temperature: float = 1.0,
) -> Float[Tensor, "B T"]:
    """KL(model || reference) of each next-token distribution over the whole vocabulary, in nats; 0 off the responses.

    Exact where k1, k2 and k3 estimate. Costs a forward pass of each model; logits exist in chunks only, which backward
    computes again. The reference receives no gradient.

    Args:
        model: the policy.
        reference: a model with the same vocabulary.
        batch: rows whose response tokens are wanted.
        temperature: divides the logits of both, > 0.
    """
    wanted = batch.response_mask[:, 1:]
    with torch.no_grad():
        ref_hidden = hidden_states(reference, batch)[:, :-1][wanted]
    hidden = hidden_states(model, batch)[:, :-1][wanted]
    (weight, bias), (ref_weight, ref_bias) = output_head(model), output_head(reference)
    scale, ref_scale = logit_scale(model) / temperature, logit_scale(reference) / temperature

    def divergence(h: Tensor, ref_h: Tensor) -> Tensor:
        with torch.no_grad():
            ref_logits = _logits(ref_h, ref_weight, ref_bias, ref_scale)
        return kl_full(_logits(h, weight, bias, scale), ref_logits)

    found = [checkpoint(divergence, hidden[part], ref_hidden[part], use_reentrant=False, preserve_rng_state=False)
             for part in _chunks(len(hidden), weight.shape[0])]
    return _scattered(torch.cat(found) if found else hidden.new_zeros(0).float(), wanted)


def token_values(model: nn.Module, batch: TokenBatch) -> Float[Tensor, "B T"]:
    """The critic's value just before each response token, 0 elsewhere. Raises: see `values_and_states`."""
    return values_and_states(model, batch, None)[0]


def values_and_states(
    model: nn.Module, batch: TokenBatch, places: Int[Tensor, " B"] | None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B D"] | None]:
    """`token_values`, and from the same pass the final hidden state of each row in the column that `places` names.

    Raises:
        ModelError: the model looks both ways, so its value would see the future.
    """
    if is_encoder(model):
        raise ModelError("an encoder cannot be a critic: its value of a token would see the tokens after it",
                         remedy="Use a causal model as critic; an encoder can be the reward model.")
    wanted, hidden = batch.response_mask[:, 1:], hidden_states(model, batch)
    values = _scattered(scalar_head(model, hidden[:, :-1][wanted]), wanted)
    if places is None:
        return values, None
    return values, hidden[torch.arange(len(hidden), device=hidden.device), places].float()


def response_scores(model: nn.Module, batch: TokenBatch) -> Float[Tensor, " B"]:
    """One score per row: the head at the last real token (causal models) or the model's own pooling (encoders)."""
    return scalar_head(model, pooled_hidden(model, batch))


def pooled_hidden(model: nn.Module, batch: TokenBatch) -> Float[Tensor, "B D"]:
    """What the one-number head sees of each row: the final state at the last real token, or an encoder's pooling."""
    if is_encoder(model):
        return _encoder_pooled(model, batch)
    positions = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    last = torch.where(batch.attention_mask, positions, -1).max(1).values
    hidden = hidden_states(model, batch)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def _encoder_pooled(model: nn.Module, batch: TokenBatch) -> Float[Tensor, "B D"]:
    # Every family pools in its own way (BERT's pooler, RoBERTa's dense layer, ...); all end in one linear layer.
    seen: list[Tensor] = []
    hook = _last_linear(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    # The head is in float32; on a trunk in bfloat16 it can only be run under autocast. `head_outputs` runs it again.
    mixed = next(trunk_of(model).parameters()).dtype == torch.bfloat16
    how = torch.autocast(batch.ids.device.type, dtype=torch.bfloat16) if mixed else autocasting(
        model, batch.ids.device.type)
    try:
        with how:
            model(input_ids=batch.ids, attention_mask=batch.attention_mask.long())
    finally:
        hook.remove()
    return seen[0]


def _last_linear(encoder: nn.Module) -> nn.Module:
    bare: Any = encoder.get_base_model() if hasattr(encoder, "peft_config") else encoder
    head = bare.classifier
    if hasattr(head, "modules_to_save"):  # peft trains a copy of the head
        head = head.modules_to_save[head.active_adapter]
    return [module for module in head.modules() if isinstance(module, nn.Linear)][-1]


def head_layer(model: nn.Module) -> Any:
    """The linear layer at the end of a scalar model."""
    bare: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    return _last_linear(model) if is_encoder(model) else bare.score


def head_outputs(model: nn.Module, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N A"]:
    """All numbers of the head, in float32 whatever the trunk computes in."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head_layer(model)(hidden.float())


def scalar_head(model: nn.Module, hidden: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """The number of a one-number head."""
    return head_outputs(model, hidden)[:, 0]


def output_head(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight [V, D] and bias [V] of the language-model head."""
    bare: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    head = bare.get_output_embeddings()
    return head.weight, getattr(head, "bias", None)


def logit_scale(model: nn.Module) -> float:
    """What the architecture multiplies its logits by: Cohere's logit_scale, one over Granite's logits_scaling.

    Raises:
        ModelError: the architecture bends its logits (Gemma 2's soft cap), which the chunked head does not know.
    """
    bare: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    if getattr(bare.config, "final_logit_softcapping", None):
        raise ModelError("this architecture caps its logits (final_logit_softcapping), which keel does not support",
                         remedy="Use a model without logit capping (Llama, Qwen, Mistral, GPT-2, ... have none).")
    return getattr(bare.config, "logit_scale", 1.0) / getattr(bare.config, "logits_scaling", 1.0)


def _scattered(values: Float[Tensor, " N"], wanted: Bool[Tensor, "B S"]) -> Float[Tensor, "B T"]:
    """Values back to their rows, one column to the right: column t is about token t."""
    out = torch.zeros(wanted.shape, dtype=values.dtype, device=values.device).masked_scatter(wanted, values)
    return nn.functional.pad(out, (1, 0))


class _ChunkedLogprobs(torch.autograd.Function):
    """Log-probabilities of targets, and entropies, by chunks of rows; backward recomputes each chunk's logits.

    d logprob / d logits = onehot - p and d entropy / d logits = -p (log p + entropy), so only hidden states, targets,
    log-normaliser and entropy need be kept.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float,
                with_entropy: bool) -> tuple[Tensor, Tensor]:
        n = hidden.shape[0]
        logprobs = torch.empty(n, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty(n if with_entropy else 0, dtype=torch.float32, device=hidden.device)
        normaliser = torch.empty(n, dtype=torch.float32, device=hidden.device)
        for part in _chunks(n, weight.shape[0]):
            logits = _logits(hidden[part], weight, bias, scale)
            normaliser[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(-1, targets[part, None])[:, 0] - normaliser[part]
            if with_entropy:
                logits -= normaliser[part, None]
                entropy[part] = -(logits.exp() * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropy)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser, entropy = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) \
            if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for part in _chunks(hidden.shape[0], weight.shape[0]):
            d_logits = _logits(hidden[part], weight, bias, ctx.scale).sub_(normaliser[part, None])
            if g_entropy is not None:
                p = d_logits.exp()
                d_logits.add_(entropy[part, None]).mul_(p).mul_(-g_entropy[part, None])
                if g is not None:
                    d_logits.addcmul_(p, -g[part, None])
            else:
                d_logits.exp_().mul_(-g[part, None])
            if g is not None:
                d_logits.scatter_add_(1, targets[part, None], g[part, None])
            if ctx.scale != 1.0:
                d_logits.mul_(ctx.scale)
            if d_hidden is not None:
                d_hidden[part] = (d_logits.to(weight.dtype) @ weight).to(hidden.dtype)
            if d_weight is not None:
                d_weight.addmm_(d_logits.t(), hidden[part].float())
            if d_bias is not None:
                d_bias += d_logits.sum(0).to(bias.dtype)
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), d_bias, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Float[Tensor, "N V"]:
    # Products in the weight's format, everything after in float32: bfloat16 log-probabilities are off by 0.02 nats.
    with torch.autocast(hidden.device.type, enabled=False):
        logits = nn.functional.linear(hidden.to(weight.dtype), weight, bias).float()
    return logits if scale == 1.0 else logits * scale


def _chunks(n: int, vocabulary: int) -> list[slice]:
    rows = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
