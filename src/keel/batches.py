"""Tensors that travel together. Index t of every per-token tensor is about token t."""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Joined", "PairBatch", "RankingBatch", "Rollout", "SharedPrompt", "TokenBatch"]

SharedPrompt = Literal["auto", "always", "never"]
"""When a pair's prompt is run once for both responses: where that saves time, always, or never."""


@dataclass(frozen=True)
class Joined:
    """The N different tokens of B rows laid end to end: no padding, and a beginning that two rows share only once.

    Attributes:
        ids: token ids.
        position_ids: of each token in its row.
        places: where each token of the rows is among the N; 0 under padding, which nothing reads.
        sources: the cell, counted along the rows of [B, T], where each of the N is found first.
    """

    ids: Int[Tensor, " N"]
    position_ids: Int[Tensor, " N"]
    places: Int[Tensor, "B T"]
    sources: Int[Tensor, " N"]

    def to(self, device: torch.device | str) -> "Joined":
        return Joined(self.ids.to(device), self.position_ids.to(device), self.places.to(device),
                      self.sources.to(device))


@dataclass(frozen=True)
class TokenBatch:
    """Padded rows of tokens.

    Attributes:
        ids: token ids; what lies under a False attention mask is meaningless.
        attention_mask: True where the token is real, on whichever side the padding is.
        response_mask: True where the assistant wrote the token, end-of-sequence included.
        record_ids: one per row, for error messages.
        joined: the same tokens without repetition, where a causal model is to compute each of them once.
    """

    ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    response_mask: Bool[Tensor, "B T"]
    record_ids: tuple[str, ...]
    joined: Joined | None = None

    @property
    def n_response_tokens(self) -> int:
        return int(self.response_mask.sum())

    @property
    def n_positions(self) -> int:
        """Positions that a forward pass computes."""
        return self.ids.numel() if self.joined is None else self.joined.ids.numel()

    def to(self, device: torch.device | str) -> "TokenBatch":
        return replace(self, ids=self.ids.to(device), attention_mask=self.attention_mask.to(device),
                       response_mask=self.response_mask.to(device),
                       joined=None if self.joined is None else self.joined.to(device))


@dataclass(frozen=True)
class PairBatch:
    """Preference pairs. `tokens` holds 2B rows: all chosen responses first, then all rejected ones in the same order.

    Attributes:
        margin: gap asked of the scores, inside the log-sigmoid; 0 where none.
        label_prob: probability that chosen is really the better one.
        weight: share of the pair in the loss; 0 drops it.
    """

    tokens: TokenBatch
    margin: Float[Tensor, " B"]
    label_prob: Float[Tensor, " B"]
    weight: Float[Tensor, " B"]

    @property
    def n_pairs(self) -> int:
        return self.margin.shape[0]

    def to(self, device: torch.device | str) -> "PairBatch":
        return PairBatch(self.tokens.to(device), self.margin.to(device), self.label_prob.to(device),
                         self.weight.to(device))


@dataclass(frozen=True)
class RankingBatch:
    """Rankings of up to N responses. `tokens` holds their responses one after the other, the best of each first.

    Attributes:
        present: True where a ranking has a response at that place.
        tied: True where that response is as good as the one before it.
    """

    tokens: TokenBatch
    present: Bool[Tensor, "B N"]
    tied: Bool[Tensor, "B N"]

    @property
    def first_rows(self) -> list[int]:
        """For each row of tokens, the row of the best response to the same prompt."""
        n = self.present.sum(1)
        return (n.cumsum(0) - n).repeat_interleave(n).tolist()

    @property
    def record_ids(self) -> tuple[str, ...]:
        """One per ranking."""
        return tuple(self.tokens.record_ids[row] for row in sorted(set(self.first_rows)))

    def by_place(self, values: Float[Tensor, " R"]) -> Float[Tensor, "B N"]:
        """One value per row of tokens, put where its response stands; 0 where there is none."""
        return torch.zeros(self.present.shape, dtype=values.dtype, device=values.device).masked_scatter(
            self.present, values)

    def to(self, device: torch.device | str) -> "RankingBatch":
        return RankingBatch(self.tokens.to(device), self.present.to(device), self.tied.to(device))


BY_TOKEN = frozenset({"logprobs", "ref_logprobs", "kl", "values", "rewards", "advantages", "returns", "step_rewards",
                      "step_ends", "own_logprobs"})
"""Fields of a rollout whose columns are tokens."""


@dataclass(frozen=True)
class Rollout:
    """Responses sampled for prompts, right-padded, with what each model says about them.

    Attributes:
        tokens: prompt + response per row.
        logprobs: nats, of each response token under the policy that sampled it, in the log-prob convention of the run.
        ended: True where the response ended by itself (end-of-sequence written), False where it was cut.
        prompt_indices: which prompt of the sampled list each row answers.
        ref_logprobs: nats, under the reference; None until measured, as are the next four.
        kl: drift of the policy from the reference at each response token in nats, by the estimator of the run.
        values: the critic's value before each response token; None where there is no critic.
        after_values: the critic's value of the state after the last token, where responses that were cut need it.
        step_rewards: what is paid for single steps of the responses, where they end; None: nothing is.
        step_ends: True at the tokens in which steps end.
        rewards: per token, after shaping; None until credit is assigned, as are the next three.
        advantages, returns: per token; there are no returns without a critic.
        counted: False for responses that the losses leave out.
        kl_coefs: price per nat of drift, where each response has its own.
        places: the column of each row in which `states` are read.
        states: the critic's final hidden state there.
        state_pull: gradient of what the critic's states are moved by, beside its own loss; None: nothing.
        memberships: probability of each response to belong to each group.
        group_returns: the returns whose group means are held together.
        ratio_coef: weight of their variance in the policy's loss, through sequence ratios; 0 where it acts otherwise.
        ratio_pull: gradient of that in each response's log-ratio.
        own_logprobs: as `logprobs`, under the policy that learns, where another one sampled.
    """

    tokens: TokenBatch
    logprobs: Float[Tensor, "B T"]
    ended: Bool[Tensor, " B"]
    prompt_indices: Int[Tensor, " B"]
    ref_logprobs: Float[Tensor, "B T"] | None = None
    kl: Float[Tensor, "B T"] | None = None
    values: Float[Tensor, "B T"] | None = None
    after_values: Float[Tensor, " B"] | None = None
    step_rewards: Float[Tensor, "B T"] | None = None
    step_ends: Bool[Tensor, "B T"] | None = None
    rewards: Float[Tensor, "B T"] | None = None
    advantages: Float[Tensor, "B T"] | None = None
    returns: Float[Tensor, "B T"] | None = None
    counted: Bool[Tensor, " B"] | None = None
    kl_coefs: Float[Tensor, " B"] | None = None
    places: Int[Tensor, " B"] | None = None
    states: Float[Tensor, "B D"] | None = None
    state_pull: Float[Tensor, "B D"] | None = None
    memberships: Float[Tensor, "B G"] | None = None
    group_returns: Float[Tensor, " B"] | None = None
    ratio_coef: float = 0.0
    ratio_pull: Float[Tensor, " B"] | None = None
    own_logprobs: Float[Tensor, "B T"] | None = None

    def rows(self, index: list[int]) -> "Rollout":
        """Those rows, in that order, without the columns that none of them needs."""
        picked = torch.as_tensor(index, device=self.tokens.ids.device)
        width = int(self.tokens.attention_mask[picked].sum(1).max())
        changed: dict[str, object] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                part = value[picked.to(value.device)]
                changed[field.name] = part[:, :width] if field.name in BY_TOKEN else part
        tokens = TokenBatch(
            self.tokens.ids[picked, :width], self.tokens.attention_mask[picked, :width],
            self.tokens.response_mask[picked, :width], tuple(self.tokens.record_ids[i] for i in index))
        return replace(self, tokens=tokens, **changed)  # type: ignore[arg-type]
