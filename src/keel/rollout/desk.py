"""The decode loop as a desk: responses are written there side by side, and come and go while it runs.

Every draft draws with its own random numbers and has its own cache slot, so what it says does not depend on its
neighbours. Slots of running drafts stay together at the front; a slot that becomes free is used again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from keel.functional.sampling import draw, penalise_repetition, top_k_top_p
from keel.models.forward import logit_scale, output_head, trunk_output
from keel.models.load import device_of
from keel.models.residual import Columns, declared
from keel.rollout.cache import SlotCache

__all__ = ["Desk", "Draft", "Draws", "padded"]


@dataclass(frozen=True)
class Draws:
    """How the tokens of one draft are drawn; see `SamplingConfig`."""

    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float = 1.0
    logprob_temperature: float = 1.0


@dataclass(eq=False)
class Draft:
    """One response while it is written.

    Attributes:
        prompt: token ids, at least one.
        draws: how to draw.
        limit: most tokens, the one that ends it included.
        uniforms: a number in [0, 1) for each of them.
        number: which row of per-row settings the draft follows (`Columns.rows`).
        written, logprobs: its tokens so far, and their log-probabilities.
        ended: True once it wrote a token that ends a response.
        dropped: True where it is to leave the desk before its end.
    """

    prompt: list[int]
    draws: Draws
    limit: int
    uniforms: list[float]
    number: int
    written: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False
    dropped: bool = False

    @property
    def finished(self) -> bool:
        return self.ended or self.dropped or len(self.written) == self.limit


class Desk:
    """Drafts being written, by slot.

    Args:
        policy: a causal language model. Calls are made under `torch.no_grad`.
        n_slots: most drafts at the same time.
        capacity: most tokens of a prompt and its response.
        stop_ids: tokens that end a response.
        pad_id: fills prompts to the right.
    """

    def __init__(self, policy: nn.Module, *, n_slots: int, capacity: int, stop_ids: Sequence[int], pad_id: int) -> None:
        self.policy, self.device = policy, device_of(policy)
        self.cache = SlotCache(policy.config.num_hidden_layers, n_slots, capacity, self.device)
        self.stop_ids, self.pad_id = frozenset(stop_ids), pad_id
        self.running: list[Draft] = []
        self._seen: Tensor | None = None

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return self.cache.n_slots - len(self.running)

    def join(self, drafts: Sequence[Draft]) -> None:
        """Read whole prompts, right-padded, into free slots, and write the first token of each."""
        first = len(self.running)
        self._write(self._read(drafts), first)
        self._retire()

    def step(self) -> None:
        """Write one more token of every running draft."""
        self._write(self._feed(), 0)
        self._retire()

    def clear(self) -> None:
        """Take everything off that is finished or dropped."""
        self._retire()

    def _read(self, drafts: Sequence[Draft]) -> Tensor:
        """The hidden state of each prompt's last token."""
        cache, n_running = self.cache, len(self.running)
        lengths = torch.tensor([len(d.prompt) for d in drafts], device=self.device)
        ids = padded([d.prompt for d in drafts], self.pad_id, torch.long).to(self.device)
        slots = torch.arange(n_running, n_running + len(drafts), device=self.device)
        cache.fill = slots
        with declared(self.policy, lambda: _of_prompts(lengths, ids.shape[1], drafts)):
            out = trunk_output(self.policy, {"input_ids": ids, "past_key_values": cache, "use_cache": True})
        cache.fill = None
        self.running.extend(drafts)
        cache.n_active = len(self.running)
        cache.lengths[slots] = lengths
        if self._seen is None and any(d.draws.repetition_penalty > 1 for d in drafts):
            vocabulary = output_head(self.policy)[0].shape[0]
            self._seen = torch.zeros(cache.n_slots, vocabulary, dtype=torch.bool, device=self.device)
        if self._seen is not None:
            self._seen[slots] = False
        return out.last_hidden_state[torch.arange(len(drafts), device=self.device), lengths - 1]

    def _feed(self) -> Tensor:
        """Feed every running draft its last token; the hidden state after it."""
        cache = self.cache
        last = torch.tensor([d.written[-1] for d in self.running], device=self.device)
        at = cache.lengths[: cache.n_active]
        cache.longest = int(at.max())
        with declared(self.policy, lambda: _of_tokens(at.clone(), self.running)):
            out = trunk_output(self.policy, {
                "input_ids": last[:, None], "position_ids": at[:, None].clone(), "attention_mask": cache.visible(),
                "past_key_values": cache, "use_cache": True})
        cache.lengths[: cache.n_active] += 1
        return out.last_hidden_state[:, 0]

    def _write(self, hidden: Tensor, first: int) -> None:
        """Draw one token for the slots from `first` on and keep it with its log-probability."""
        with torch.autocast(self.device.type, enabled=False):
            weight, bias = output_head(self.policy)
            logits = nn.functional.linear(hidden.to(weight.dtype), weight, bias).float() * logit_scale(self.policy)
            drafts = self.running[first:]
            tokens, trained_on = self._picked(logits, drafts, first)
            logprobs = (trained_on.gather(1, tokens[:, None])[:, 0] - trained_on.logsumexp(-1)).tolist()
            if self._seen is not None:
                self._seen[torch.arange(first, len(self.running), device=self.device), tokens] = True
        for draft, token, logprob in zip(drafts, tokens.tolist(), logprobs, strict=True):
            draft.written.append(token)
            draft.logprobs.append(logprob)
            draft.ended = token in self.stop_ids

    def _picked(self, logits: Tensor, drafts: list[Draft], first: int) -> tuple[Tensor, Tensor]:
        """One token for each row, and the logits that its log-probability is taken from."""
        draws = drafts[0].draws
        if all(d.draws is draws for d in drafts):
            seen = None if self._seen is None else self._seen[first : first + len(drafts)]
            return _pick(logits, drafts, seen), logits / draws.logprob_temperature
        alike: dict[Draws, list[int]] = {}
        for place, draft in enumerate(drafts):
            alike.setdefault(draft.draws, []).append(place)
        tokens = torch.empty(len(drafts), dtype=torch.long, device=self.device)
        for found in alike.values():
            places = torch.tensor(found, device=self.device)
            seen = None if self._seen is None else self._seen[first + places]
            tokens[places] = _pick(logits[places], [drafts[i] for i in found], seen)
        scale = torch.tensor([d.draws.logprob_temperature for d in drafts], device=self.device)
        return tokens, logits / scale[:, None]

    def _retire(self) -> None:
        """Take finished drafts out; drafts from the end move into their slots."""
        done = [slot for slot, draft in enumerate(self.running) if draft.finished]
        if not done:
            return
        n_left = len(self.running) - len(done)
        gone = set(done)
        targets = [slot for slot in done if slot < n_left]
        sources = [slot for slot in range(n_left, len(self.running)) if slot not in gone]
        cache = self.cache
        if sources:
            source = torch.tensor(sources, device=self.device)
            target = torch.tensor(targets, device=self.device)
            cache.longest = int(cache.lengths[: cache.n_active].max())
            cache.move(source, target)
            if self._seen is not None:
                self._seen[target] = self._seen[source]
            for a, b in zip(sources, targets, strict=True):
                self.running[b] = self.running[a]
        del self.running[n_left:]
        cache.n_active = n_left


def _pick(logits: Tensor, drafts: Sequence[Draft], seen: Tensor | None) -> Tensor:
    """One token for each draft; all of them draw in the same way."""
    draws = drafts[0].draws
    if seen is not None and draws.repetition_penalty > 1:
        logits = penalise_repetition(logits, seen, penalty=draws.repetition_penalty)
    if draws.temperature == 0:
        return logits.argmax(-1)
    logits = logits / draws.temperature
    uniform = torch.tensor([d.uniforms[len(d.written)] for d in drafts], dtype=torch.float32, device=logits.device)
    if draws.top_k is None and draws.top_p in (None, 1.0):
        return draw(logits, uniform)
    kept, ids = top_k_top_p(logits, top_k=draws.top_k, top_p=draws.top_p)
    return ids.gather(1, draw(kept, uniform)[:, None])[:, 0]


def _of_prompts(lengths: Tensor, width: int, drafts: Sequence[Draft]) -> Columns:
    """Whole prompts, padded to the right; the last token of each is where its first new token comes from."""
    column = torch.arange(width, device=lengths.device)[None].expand(len(drafts), -1)
    rows = torch.tensor([d.number for d in drafts], device=lengths.device)
    return Columns(column < lengths[:, None], column == lengths[:, None] - 1, rows, column, named=True)


def _of_tokens(at: Tensor, drafts: Sequence[Draft]) -> Columns:
    """One token of each running draft, which it wrote itself."""
    told = torch.ones(len(drafts), 1, dtype=torch.bool, device=at.device)
    rows = torch.tensor([d.number for d in drafts], device=at.device)
    return Columns(told, told, rows, at[:, None], named=True)


def padded(rows: Sequence[list[int]], pad_id: int, dtype: torch.dtype) -> Tensor:
    """Rows of tokens as one tensor, filled up to the right."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], batch_first=True,
                                     padding_value=pad_id)
