"""keel's decode loop: prompts in, a Rollout out.

Every sample draws from its own random stream and has its own cache slot, so what it says does not depend on its
neighbours. A finished row leaves the desk and its slot takes the next prompt of the queue.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from keel.batches import Rollout, TokenBatch
from keel.config import Config
from keel.errors import ModelError
from keel.models.forward import autocasting
from keel.rollout.desk import Desk, Draft, Draws, padded

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
    desk = Desk(policy, n_slots=n_slots, capacity=capacity, stop_ids=stop_ids, pad_id=pad_id)
    draws = Draws(sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty,
                  sampling.logprob_temperature)
    drafts = [Draft(prompt, draws, sampling.max_new_tokens,
                    torch.rand(sampling.max_new_tokens, generator=generator).tolist(), number)
              for number, (prompt, generator) in enumerate(zip(prompts, streams, strict=True))]
    queue = drafts[::-1]
    refill = max(1, n_slots // 8)
    with autocasting(policy, desk.device.type):  # around all steps: else each would convert every weight again
        while queue or desk.running:
            if queue and (desk.free >= refill or not desk.running):
                desk.join([queue.pop() for _ in range(min(desk.free, len(queue)))])
            else:
                desk.step()
            if on_done is not None:
                on_done(len(prompts) - len(queue) - len(desk.running))
    return _as_rollout(drafts, pad_id, record_ids, desk.device)


def _as_rollout(drafts: Sequence[Draft], pad_id: int, record_ids: Sequence[str], device: torch.device) -> Rollout:
    rows = [draft.prompt + draft.written for draft in drafts]
    ids = padded(rows, pad_id, torch.long)
    starts = torch.tensor([len(draft.prompt) for draft in drafts])[:, None]
    ends = torch.tensor([len(row) for row in rows])[:, None]
    column = torch.arange(ids.shape[1])[None, :]
    response = (column >= starts) & (column < ends)
    found = torch.tensor([logprob for draft in drafts for logprob in draft.logprobs])
    logprobs = torch.zeros(ids.shape).masked_scatter(response, found)
    tokens = TokenBatch(ids, column < ends, response, tuple(record_ids)).to(device)
    ended = torch.tensor([draft.ended for draft in drafts])
    return Rollout(tokens, logprobs.to(device), ended, torch.arange(len(drafts)))


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
