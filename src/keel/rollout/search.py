"""Solutions written step by step, and the search for a good one with a judge of steps (step-wise beam search).

The sampler stops at every token that may complete the separator; whether it did is read from the text, and a draft of
which it did not goes on. Sampled tokens are kept as they are. Each token of a step takes the next number of the step's
own random stream, wherever the sampler stopped in between: what is written depends on nothing but the prompt, the path
and the seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from keel.data.render import PromptRow, Template
from keel.data.segment import split
from keel.rng import stream
from keel.rollout.process import StepScored
from keel.rollout.sample import SamplingConfig, sample

__all__ = ["Candidate", "Draft", "Found", "StepWriter", "beam_search", "next_steps", "standing", "stopping_ids"]

PROBE = "a"
"""A text before a token: some tokenizers drop the space in front of the first one."""
UNFINISHED = "\ufffd"
"""What bytes decode to that are no whole character yet."""


@dataclass(frozen=True)
class Draft:
    """A solution as far as it is written.

    Attributes:
        row: the prompt.
        path: which continuation it is at each step; with the record's id it names the random streams.
        ids: tokens of the response, as sampled.
        text: of these tokens.
        ended: True where it ended by itself.
        n_steps: whole steps in it.
    """

    row: PromptRow
    path: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    text: str = ""
    ended: bool = False
    n_steps: int = 0


@dataclass(frozen=True)
class Candidate:
    """A draft with what the process model says of its steps, and one score of them all; NaN where there is none."""

    draft: Draft
    steps: StepScored
    score: float


@dataclass(frozen=True)
class Found:
    """The solution that a search ends with, and the tokens that were sampled to find it."""

    best: Candidate
    n_sampled: int


Judge = Callable[[Sequence[Draft]], list[Candidate]]


@dataclass(frozen=True)
class StepWriter:
    """A policy that writes one step at a time.

    Attributes:
        policy: a causal language model.
        words: its template.
        sampling: how to draw; `max_new_tokens` is the length of a whole solution.
        separator: text that ends a step.
        seed: of every stream.
    """

    policy: nn.Module
    words: Template
    sampling: SamplingConfig
    separator: str
    seed: int

    @cached_property
    def stops(self) -> tuple[int, ...]:
        return tuple(sorted({*self.words.stop_ids, *stopping_ids(self.words, self.separator)}))

    def is_closed(self, draft: Draft) -> bool:
        """True where nothing can follow: it ended, or is as long as a solution may be."""
        return draft.ended or len(draft.ids) >= self.sampling.max_new_tokens

    def longer(self, draft: Draft, more: list[int]) -> Draft:
        """The draft with more tokens."""
        ids = (*draft.ids, *more)
        ended = ids[-1] in self.words.stop_ids
        text = self.words.decode(list(ids))
        return replace(draft, ids=ids, text=text, ended=ended, n_steps=len(split(text, self.separator, ended=ended)))


def stopping_ids(words: Template, separator: str) -> list[int]:
    """Tokens that may complete the separator: they hold its last character, or a part of one."""
    tokenizer = words.tokenizer
    before = tokenizer(PROBE, add_special_tokens=False).input_ids[-1:]
    start = tokenizer.decode(before, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    texts = tokenizer.batch_decode([[*before, i] for i in range(len(tokenizer))], skip_special_tokens=True,
                                   clean_up_tokenization_spaces=False)
    return [i for i, text in enumerate(texts)
            if separator[-1] in (told := text.removeprefix(start)) or UNFINISHED in told]


def next_steps(writer: StepWriter, drafts: Sequence[Draft]) -> list[Draft]:
    """Each draft with one step more: up to a separator, to its own end, or to the length limit.

    Args:
        writer: who writes.
        drafts: none of them closed; the path of each names the stream of the step that is now written.
    """
    written, waiting = list(drafts), list(range(len(drafts)))
    while waiting:
        more = _sampled(writer, [written[i] for i in waiting], [len(drafts[i].ids) for i in waiting])
        for i, ids in zip(waiting, more, strict=True):
            written[i] = writer.longer(written[i], ids)
        waiting = [i for i in waiting
                   if not writer.is_closed(written[i]) and written[i].n_steps == drafts[i].n_steps]
    return written


def _sampled(writer: StepWriter, drafts: Sequence[Draft], n_before: Sequence[int]) -> list[list[int]]:
    """More tokens of each draft, at least one and at most what is left to it.

    Args:
        writer: who writes.
        drafts: to be continued.
        n_before: tokens of each when its step began.
    """
    limit = writer.sampling.max_new_tokens
    left = [limit - len(draft.ids) for draft in drafts]
    rows = [[*draft.row.ids, *draft.ids] for draft in drafts]
    # No longer than the longest prompt with a whole solution, of which the recipe has made sure that it fits.
    room = max(len(draft.row.ids) for draft in drafts) + limit - max(map(len, rows))
    streams = [_stream(writer.seed, draft, len(draft.ids) - n) for draft, n in zip(drafts, n_before, strict=True)]
    rollout = sample(writer.policy, rows, writer.sampling.model_copy(update={"max_new_tokens": min(max(left), room)}),
                     streams, stop_ids=writer.stops, pad_id=writer.words.pad_id,
                     record_ids=[draft.row.record_id for draft in drafts])
    tokens = zip(rollout.tokens.ids.cpu(), rollout.tokens.response_mask.cpu(), left, strict=True)
    return [ids[mask].tolist()[:most] for ids, mask, most in tokens]


def _stream(seed: int, draft: Draft, n_drawn: int) -> torch.Generator:
    """The stream of a step, without the numbers that its tokens so far have taken."""
    found = stream(seed, "steps", draft.row.record_id, *draft.path)
    torch.rand(n_drawn, generator=found)
    return found


@dataclass
class _Beam:
    """The search for one prompt: drafts to go on with, drafts that are closed, tokens sampled."""

    live: list[Draft]
    closed: list[Candidate] = field(default_factory=list)
    open: list[Candidate] = field(default_factory=list)
    n_sampled: int = 0


def beam_search(writer: StepWriter, rows: Sequence[PromptRow], judge: Judge, *, beams: int, expand: int,
                most_steps: int) -> list[Found]:
    """For each prompt the solution that scores best among those that a beam of drafts comes to.

    The first step is drawn `beams * expand` times; then each of the best `beams` drafts is continued `expand` times by
    one step. A solution that ended keeps its place in the beam while it is among the best, and is never forgotten.

    Source: Snell et al. 2024, arXiv:2408.03314, section 5 (beam search against a process model).

    Args:
        writer: who writes.
        rows: the prompts.
        judge: scores drafts by their steps so far.
        beams: drafts kept after each step.
        expand: continuations of each.
        most_steps: after which the search is over.
    """
    searches = [_Beam([Draft(row, (k,)) for k in range(beams * expand)]) for row in rows]
    for _ in range(most_steps):
        live = [draft for beam in searches for draft in beam.live]
        if not live:
            break
        told = iter(zip(live, judge(next_steps(writer, live)), strict=True))
        for beam in searches:
            pairs = [next(told) for _ in beam.live]
            beam.n_sampled += sum(len(one.draft.ids) - len(before.ids) for before, one in pairs)
            _keep(beam, [one for _, one in pairs], writer, beams)
            beam.live = [replace(one.draft, path=(*one.draft.path, k)) for one in beam.open for k in range(expand)]
    return [Found(max([*beam.closed, *beam.open], key=standing), beam.n_sampled) for beam in searches]


def _keep(beam: _Beam, new: Sequence[Candidate], writer: StepWriter, size: int) -> None:
    """Only the best stay; a text that was written twice counts once, and ties go to what was written first."""
    first = {(one.draft.text, one.draft.ended): one for one in reversed([*beam.closed, *new])}
    new = [one for one in new if first[one.draft.text, one.draft.ended] is one]
    beam.closed += [one for one in new if writer.is_closed(one.draft)]
    rivals = [one for one in beam.closed if one.draft.ended] + [one for one in new if not writer.is_closed(one.draft)]
    best = sorted(rivals, key=_value, reverse=True)[:size]
    beam.open = [one for one in best if not one.draft.ended]


def standing(one: Candidate) -> tuple[bool, float]:
    """By which solutions are compared in the end: one that was cut stands behind all that ended by themselves."""
    return one.draft.ended, _value(one)


def _value(one: Candidate) -> float:
    """The score; less than any where there is no step to score."""
    return -math.inf if math.isnan(one.score) else one.score
