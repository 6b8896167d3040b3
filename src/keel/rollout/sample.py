"""keel's decode loop: prompts in, a Rollout out.

Every sample draws from its own random stream and has its own cache slot, so what it says does not depend on its
neighbours. A finished row leaves the batch and its slot takes the next prompt of the queue.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from keel.batches import Rollout, TokenBatch
from keel.config import Config
from keel.errors import ModelError
from keel.functional.sampling import draw, penalise_repetition, top_k_top_p
from keel.models.forward import autocasting, logit_scale, output_head, trunk_output
from keel.models.load import device_of
from keel.models.residual import Columns, declared
from keel.rollout.cache import SlotCache

__all__ = ["SamplingConfig", "check_fit", "sample"]


class SamplingConfig(Config):
    """How responses are drawn."""

    temperature: float = Field(1.0, ge=0, description="divides the logits; 0 takes the most probable token")
    top_p: float | None = Field(None, gt=0, le=1, description="keep the most probable tokens up to this probability")
    top_k: int | None = Field(None, ge=1, description="keep this many most probable tokens")
    repetition_penalty: float = Field(1.0, ge=1, description="divides positive logits of tokens already written")
    max_new_tokens: int = Field(128, ge=1, description="longest response in tokens, end-of-sequence included")
    slots: int = Field(128, ge=1, description="responses written at the same time")
    logprobs: Literal["raw", "tempered", "exact"] = Field("raw", description="trained on: of the model itself, at the "
        "sampling temperature, or raw with nothing allowed that sharpens the draw")

    @model_validator(mode="after")
    def _check(self) -> "SamplingConfig":
        if self.logprobs == "exact":
            for name, off in (("temperature", 1.0), ("top_p", None), ("top_k", None), ("repetition_penalty", 1.0)):
                if getattr(self, name) != off and not (name == "top_p" and self.top_p == 1.0):
                    raise ValueError(f"sampling.logprobs='exact' and sampling.{name}={getattr(self, name)} exclude "
                                     f"each other: exact draws from the model as it is ({name} = {off or 'none'})")
        if self.logprobs == "tempered" and self.temperature == 0:
            raise ValueError("sampling.logprobs='tempered' and sampling.temperature=0 exclude each other: "
                             "log-probabilities at temperature 0 are not finite")
        return self

    @property
    def filtered(self) -> bool:
        """True where tokens are cut or punished before the draw."""
        return self.top_p not in (None, 1.0) or self.top_k is not None or self.repetition_penalty != 1.0

    @property
    def warning(self) -> str | None:
        """What a reader of log-probabilities and KL must know about this mode; none where there is nothing."""
        if self.logprobs == "raw" and (self.filtered or self.temperature != 1.0):
            return ("Sampling is sharper than the distribution whose log-probabilities are trained on (filters, "
                    "temperature or penalty with raw log-probabilities, as published): k1 is biased and can be "
                    "negative, and the policy can be paid for it.")
        if self.logprobs == "tempered" and self.filtered:
            return ("Log-probabilities are at the sampling temperature, but filters or the repetition penalty still "
                    "sharpen the draw: k1 is biased and can be negative.")
        if self.logprobs == "tempered" and self.temperature != 1.0:
            return (f"Ratios, KL and entropy are those of the policy at temperature {self.temperature}: sample the "
                    "trained policy at that temperature too.")
        return None

    @property
    def logprob_temperature(self) -> float:
        return self.temperature if self.logprobs == "tempered" and self.temperature > 0 else 1.0


@dataclass
class _Desk:
    """The rows being written, by slot, and everything written so far, by sample."""

    cache: SlotCache
    sampling: SamplingConfig
    stop_ids: frozenset[int]
    uniforms: Tensor
    owner: list[int] = field(default_factory=list)
    written: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    seen: Tensor | None = None


@torch.no_grad()
def sample(
    policy: nn.Module, prompts: Sequence[list[int]], sampling: SamplingConfig, streams: Sequence[torch.Generator], *,
    stop_ids: Sequence[int], pad_id: int, record_ids: Sequence[str], on_done: Callable[[int], Any] | None = None,
) -> Rollout:
    """One response per prompt.

    Args:
        policy: a causal language model.
        prompts: token ids, each at least one token, in any lengths.
        sampling: how to draw.
        streams: one random stream per prompt; a prompt and its stream fix the response.
        stop_ids: tokens that end a response; the one that ended it is part of it.
        pad_id: fills rows to the right.
        record_ids: names of the prompts.
        on_done: called with the number of responses finished so far.
    Raises:
        ModelError: prompt and response do not fit the model's context, or a prompt is empty.
    """
    capacity = max(len(p) for p in prompts) + sampling.max_new_tokens
    check_fit(policy, prompts, capacity)
    n_slots = min(sampling.slots, len(prompts))
    desk = _Desk(
        SlotCache(policy.config.num_hidden_layers, n_slots, capacity, device_of(policy)), sampling, frozenset(stop_ids),
        torch.stack([torch.rand(sampling.max_new_tokens, generator=g) for g in streams]),
        written=[[] for _ in prompts], logprobs=[[] for _ in prompts], ended=[False] * len(prompts))
    if sampling.repetition_penalty > 1:
        vocabulary = output_head(policy)[0].shape[0]
        desk.seen = torch.zeros(n_slots, vocabulary, dtype=torch.bool, device=device_of(policy))
    queue = list(range(len(prompts)))[::-1]
    refill = max(1, n_slots // 8)
    device = device_of(policy).type
    with autocasting(policy, device):  # around all steps: else each would convert every weight again
        while queue or desk.owner:
            free = n_slots - len(desk.owner)
            if queue and (free >= refill or not desk.owner):
                new = [queue.pop() for _ in range(min(free, len(queue)))]
                hidden = _prefill(policy, desk, [prompts[i] for i in new], new, pad_id)
                first = len(desk.owner) - len(new)
            else:
                hidden, first = _decode(policy, desk), 0
            with torch.autocast(device, enabled=False):
                _write(policy, desk, hidden, first)
            _retire(desk)
            if on_done is not None:
                on_done(len(prompts) - len(queue) - len(desk.owner))
    return _as_rollout(desk, prompts, pad_id, record_ids, device_of(policy))


def _prefill(policy: nn.Module, desk: _Desk, prompts: list[list[int]], new: list[int], pad_id: int) -> Tensor:
    """Run whole prompts, right-padded, into fresh slots; the hidden state of each one's last token."""
    cache, device = desk.cache, device_of(policy)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    ids = _padded(prompts, pad_id, torch.long).to(device)
    slots = torch.arange(len(desk.owner), len(desk.owner) + len(new), device=device)
    cache.fill = slots
    with declared(policy, lambda: _of_prompts(lengths, ids.shape[1], new)):
        out = trunk_output(policy, {"input_ids": ids, "past_key_values": cache, "use_cache": True})
    cache.fill = None
    desk.owner.extend(new)
    cache.n_active = len(desk.owner)
    cache.lengths[slots] = lengths
    if desk.seen is not None:
        desk.seen[slots] = False
    return out.last_hidden_state[torch.arange(len(new), device=device), lengths - 1]


def _decode(policy: nn.Module, desk: _Desk) -> Tensor:
    """One more token for every running row: feed its last token, get the hidden state after it."""
    cache = desk.cache
    last = torch.tensor([desk.written[i][-1] for i in desk.owner], device=cache.lengths.device)
    at = cache.lengths[: cache.n_active]
    cache.longest = int(at.max())
    with declared(policy, lambda: _of_tokens(at.clone(), desk.owner)):
        out = trunk_output(policy, {
            "input_ids": last[:, None], "position_ids": at[:, None].clone(), "attention_mask": cache.visible(),
            "past_key_values": cache, "use_cache": True})
    cache.lengths[: cache.n_active] += 1
    return out.last_hidden_state[:, 0]


def _of_prompts(lengths: Tensor, width: int, samples: list[int]) -> Columns:
    """Whole prompts, padded to the right; the last token of each is where its first new token comes from."""
    column = torch.arange(width, device=lengths.device)[None].expand(len(samples), -1)
    rows = torch.tensor(samples, device=lengths.device)
    return Columns(column < lengths[:, None], column == lengths[:, None] - 1, rows, column, named=True)


def _of_tokens(at: Tensor, samples: list[int]) -> Columns:
    """One token of each running row, which it wrote itself."""
    told = torch.ones(len(samples), 1, dtype=torch.bool, device=at.device)
    return Columns(told, told, torch.tensor(samples, device=at.device), at[:, None], named=True)


def _write(policy: nn.Module, desk: _Desk, hidden: Tensor, first: int) -> None:
    """Draw one token for the slots from `first` on and keep it with its log-probability."""
    weight, bias = output_head(policy)
    logits = nn.functional.linear(hidden.to(weight.dtype), weight, bias).float() * logit_scale(policy)
    owners = desk.owner[first:]
    tokens = _pick(logits, desk, owners, first)
    trained_on = logits / desk.sampling.logprob_temperature
    logprobs = (trained_on.gather(1, tokens[:, None])[:, 0] - trained_on.logsumexp(-1)).tolist()
    if desk.seen is not None:
        desk.seen[torch.arange(first, len(desk.owner), device=logits.device), tokens] = True
    for i, token, logprob in zip(owners, tokens.tolist(), logprobs, strict=True):
        desk.written[i].append(token)
        desk.logprobs[i].append(logprob)
        desk.ended[i] = token in desk.stop_ids


def _pick(logits: Tensor, desk: _Desk, owners: list[int], first: int) -> Tensor:
    sampling = desk.sampling
    if desk.seen is not None:
        seen = desk.seen[first : len(desk.owner)]
        logits = penalise_repetition(logits, seen, penalty=sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    step = torch.tensor([len(desk.written[i]) for i in owners])
    uniform = desk.uniforms[torch.tensor(owners), step].to(logits.device)
    if sampling.top_k is None and sampling.top_p in (None, 1.0):
        return draw(logits, uniform)
    kept, ids = top_k_top_p(logits, top_k=sampling.top_k, top_p=sampling.top_p)
    return ids.gather(1, draw(kept, uniform)[:, None])[:, 0]


def _retire(desk: _Desk) -> None:
    """Take finished rows out; rows from the end move into their slots."""
    limit = desk.sampling.max_new_tokens
    done = [slot for slot, i in enumerate(desk.owner) if desk.ended[i] or len(desk.written[i]) == limit]
    if not done:
        return
    n_left = len(desk.owner) - len(done)
    gone = set(done)
    targets = [slot for slot in done if slot < n_left]
    sources = [slot for slot in range(n_left, len(desk.owner)) if slot not in gone]
    cache = desk.cache
    if sources:
        device = cache.lengths.device
        source, target = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
        cache.longest = int(cache.lengths[: cache.n_active].max())
        cache.move(source, target)
        if desk.seen is not None:
            desk.seen[target] = desk.seen[source]
        for a, b in zip(sources, targets, strict=True):
            desk.owner[b] = desk.owner[a]
    del desk.owner[n_left:]
    cache.n_active = n_left


def _as_rollout(desk: _Desk, prompts: Sequence[list[int]], pad_id: int, record_ids: Sequence[str],
                device: torch.device) -> Rollout:
    rows = [prompt + response for prompt, response in zip(prompts, desk.written, strict=True)]
    ids = _padded(rows, pad_id, torch.long)
    starts = torch.tensor([len(p) for p in prompts])[:, None]
    ends = torch.tensor([len(row) for row in rows])[:, None]
    column = torch.arange(ids.shape[1])[None, :]
    response = (column >= starts) & (column < ends)
    logprobs = torch.zeros(ids.shape).masked_scatter(response, torch.tensor([x for row in desk.logprobs for x in row]))
    tokens = TokenBatch(ids, column < ends, response, tuple(record_ids)).to(device)
    return Rollout(tokens, logprobs.to(device), torch.tensor(desk.ended), torch.arange(len(prompts)))


def _padded(rows: Sequence[list[int]], pad_id: int, dtype: torch.dtype) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], batch_first=True,
                                     padding_value=pad_id)


def check_fit(policy: Any, prompts: Sequence[list[int]], capacity: int) -> None:
    """Refuse prompts that leave the model no room.

    Args:
        policy: a causal language model.
        prompts: token ids.
        capacity: tokens of the longest prompt and of a response.

    Raises:
        ModelError: the model's context is shorter, or a prompt is empty.
    """
    limit = getattr(policy.config, "max_position_embeddings", None)
    if limit is not None and capacity > limit:
        raise ModelError(f"longest prompt plus max_new_tokens is {capacity} tokens, the model's context is {limit}",
                         remedy="Lower sampling.max_new_tokens or prompts.max_length.")
    window = getattr(policy.config, "sliding_window", None)
    if window is not None and getattr(policy.config, "use_sliding_window", True) and capacity > window:
        raise ModelError(f"rows of {capacity} tokens exceed this model's sliding attention window of {window}",
                         remedy="Lower max_new_tokens or the prompt length limit to stay inside the window.")
    if not all(prompts):
        raise ModelError("a prompt has no tokens", remedy="Give every prompt at least one token, such as bos.")
