"""Measure sampled tokens with every model that has an opinion: reference, critic, reward models."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from keel.batches import Rollout, TokenBatch
from keel.data.collate import budget_batches, collate
from keel.data.render import Row, Template
from keel.errors import ModelError, NumericsError
from keel.functional.policy import kl_k1, kl_k2, kl_k3
from keel.models.forward import response_scores, token_kl, token_logprobs, token_values, values_and_states
from keel.models.load import check_context, device_of
from keel.rollout.respond import Responses

__all__ = ["KL", "Scorer", "measure", "parts_of", "same_vocabulary"]

KL = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
"""Estimators of KL(policy || reference) from the log-probabilities of drawn tokens."""


class Scorer:
    """A reward model that scores responses: the sampled tokens or, where its tokenizer differs, their text."""

    def __init__(self, model: nn.Module, own: Template, policys: Template, micro_tokens: int) -> None:
        self.model, self.own, self.micro_tokens = model, own, micro_tokens
        self.same_tokens = same_tokens(own, policys)

    @torch.no_grad()
    def __call__(self, responses: Responses) -> Tensor:
        """One raw score per response.

        Raises:
            NumericsError: a score is not finite.
            ModelError: a row is longer than the reward model's context.
        """
        rollout = responses.rollout
        if not self.same_tokens:
            return self.of_rows([self._row(i, responses) for i in range(len(responses.texts))])
        self._check_lengths(rollout.tokens.attention_mask.sum(1).tolist(), rollout.tokens.record_ids)
        scores = by_parts(rollout, self.micro_tokens, lambda part: response_scores(self.model, part), flat=True)
        return finite(scores, rollout.tokens.record_ids)

    @torch.no_grad()
    def of_rows(self, rows: Sequence[Row]) -> Tensor:
        """One raw score per row in the reward model's own tokens. Raises as a call does."""
        ids, lengths = [row.record_id for row in rows], [len(row.ids) for row in rows]
        self._check_lengths(lengths, ids)
        scores = torch.zeros(len(rows))
        for part in budget_batches(lengths, self.micro_tokens):
            batch = collate([rows[i] for i in part], self.own.pad_id).to(device_of(self.model))
            scores[torch.tensor(part)] = response_scores(self.model, batch).cpu()
        return finite(scores, ids)

    def _check_lengths(self, lengths: list[int], record_ids: Sequence[str]) -> None:
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        try:
            check_context(self.model, lengths[longest])
        except ModelError as error:
            raise ModelError(f"too long for the reward model: {error.what}", where=f"record {record_ids[longest]}",
                             remedy="Lower prompts.max_length, or take a reward model with a longer context.",
                             ) from error

    def _row(self, i: int, responses: Responses) -> Row:
        prompt = responses.prompts[i]
        head = self.own.prompt_ids(prompt)
        ended = bool(responses.rollout.ended[i])
        return Row(head + self.own.response_ids(responses.texts[i], ended, after=prompt.text), len(head), prompt.id)


def finite(scores: Tensor, record_ids: Sequence[str]) -> Tensor:
    """The scores, on the CPU.

    Raises:
        NumericsError: one of them is not finite.
    """
    bad = [record_ids[i] for i in (~torch.isfinite(scores)).nonzero()[:, 0].tolist()]
    if bad:
        raise NumericsError("the reward model's score is not finite", where=f"records {', '.join(bad[:8])}",
                            remedy="Check the reward model on these records; its weights may be damaged.")
    return scores.cpu()


@torch.no_grad()
def measure(responses: Responses, *, policy: nn.Module, reference: nn.Module, critic: nn.Module | None,
            micro_tokens: int, temperature: float, kl: str, bootstrap: bool = False) -> Rollout:
    """The rollout with `ref_logprobs`, `kl`, `values` and `after_values`; with `states` too where it has `places`.

    Args:
        responses: what the policy wrote, with its log-probabilities.
        policy: only asked where `kl` is "full".
        reference: the frozen policy of the start.
        critic: none: no values.
        micro_tokens: token positions per forward pass.
        temperature: of the log-probabilities, as the sampler's.
        kl: estimator of the drift per token: k1, k2, k3 or full.
        bootstrap: also ask the critic what the state after the last token is worth.
    """
    rollout, measured = responses.rollout, dict[str, Tensor]()
    ref = by_parts(rollout, micro_tokens, lambda part: token_logprobs(reference, part, temperature=temperature)[0])
    if kl == "full":
        drift = by_parts(rollout, micro_tokens, lambda part: token_kl(policy, reference, part, temperature=temperature))
    else:
        drift = KL[kl](rollout.logprobs, ref)
    if critic is not None:
        measured |= seen_by(critic, rollout, micro_tokens)
        if bootstrap:
            measured["after_values"] = by_parts(rollout, micro_tokens, lambda part: response_scores(critic, part),
                                                flat=True)
    return replace(rollout, ref_logprobs=ref, kl=drift, **measured)


def seen_by(critic: nn.Module, rollout: Rollout, micro_tokens: int) -> dict[str, Tensor]:
    """`values`, and from the same forward passes `states` where the rollout has `places`."""
    if rollout.places is None:
        return {"values": by_parts(rollout, micro_tokens, lambda part: token_values(critic, part))}
    values, states = torch.zeros_like(rollout.logprobs), list[tuple[list[int], Tensor]]()
    for part in parts_of(rollout, micro_tokens):
        rows, index = rollout.rows(part), torch.tensor(part, device=values.device)
        found, state = values_and_states(critic, rows.tokens, rows.places)
        values[index, : found.shape[1]] = found
        states.append((part, state))
    order = torch.tensor([i for part, _ in states for i in part], device=values.device)
    return {"values": values, "states": torch.cat([state for _, state in states])[order.argsort()]}


def parts_of(rollout: Rollout, micro_tokens: int) -> list[list[int]]:
    """Row indices in groups of similar length and at most `micro_tokens` positions."""
    return budget_batches(rollout.tokens.attention_mask.sum(1).tolist(), micro_tokens)


def by_parts(rollout: Rollout, micro_tokens: int, function: Callable[[TokenBatch], Tensor], *, flat: bool = False,
             ) -> Tensor:
    """Apply a function of token rows part by part, and put its rows back in order."""
    n, width = rollout.tokens.ids.shape
    out = torch.zeros(n if flat else (n, width), device=rollout.tokens.ids.device)
    for part in parts_of(rollout, micro_tokens):
        index = torch.tensor(part, device=out.device)
        found = function(rollout.rows(part).tokens)
        if flat:
            out[index] = found
        else:
            out[index, : found.shape[1]] = found
    return out


def same_tokens(a: Template, b: Template) -> bool:
    """True where both tokenizers give every conversation the same ids."""
    if a.tokenizer.chat_template != b.tokenizer.chat_template or a.end_id != b.end_id:
        return False
    one, other = (getattr(t.tokenizer, "backend_tokenizer", None) for t in (a, b))
    if one is not None and other is not None:
        return one.to_str() == other.to_str()
    return a.tokenizer.get_vocab() == b.tokenizer.get_vocab()


def same_vocabulary(policys: Template, critics: Template) -> None:
    """The critic reads the policy's tokens, so both must agree on what each id means.

    Raises:
        ModelError: they do not.
    """
    if not same_tokens(critics, policys):
        raise ModelError("the critic's tokenizer or chat template differs from the policy's",
                         remedy="Name a critic that was trained from the policy's family with --critic.model PATH; a "
                                "reward model with another tokenizer can still score.")
