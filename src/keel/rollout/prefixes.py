"""What a step is worth, told by what follows it: solutions cut behind each step and completed again.

Tokens are kept as they were written. A completion goes on from the very tokens of the solution, so nothing is tokenised
twice and the end of a step means the same here as in every other place.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

from torch import nn

from keel.data.records import Prompt
from keel.data.render import PromptRow, Template, TooLong, fit
from keel.data.segment import Steps, steps_in_text, steps_of
from keel.data.traces import StepTrace
from keel.errors import NumericsError
from keel.rng import stream
from keel.rollout.respond import ScoringFunction, one_score
from keel.rollout.sample import SamplingConfig, check_fit, sample

__all__ = ["Completed", "Prefix", "Solution", "Written", "complete", "given_solution", "labelled", "prefixes",
           "require_room", "rightness", "solution_of", "write_solutions"]

_RIGHT = 0.5


@dataclass(frozen=True)
class Prefix:
    """A solution up to the end of one of its steps.

    Attributes:
        prompt: the record that asks for it.
        prompt_ids: tokens of the prompt.
        ids: tokens of the solution so far.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]

    @cached_property
    def key(self) -> str:
        """32 hex digits, the same wherever the same tokens stand below a record of that name."""
        told = json.dumps([self.prompt.id, self.prompt_ids, self.ids])
        return blake2b(told.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Written:
    """A response as the policy wrote it: its tokens, the one that ended it included."""

    ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class Solution:
    """A solution whose steps are to be labelled.

    Attributes:
        prompt: the record that asks for it.
        prompt_ids: tokens of the prompt.
        written: tokens of the response.
        text: what they say.
        steps: where the response is cut.
        known: the record it was read from, with the labels that it had there.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    written: Written
    text: str
    steps: Steps
    known: StepTrace | None = None

    @property
    def prefixes(self) -> list[Prefix]:
        """Behind each step that something can follow: not behind the last one of a response that ended by itself."""
        ends = self.steps.ends[:-1] if self.written.ended else self.steps.ends
        return [Prefix(self.prompt, self.prompt_ids, self.written.ids[: end + 1]) for end in ends]


@dataclass(frozen=True)
class Completed:
    """What became of a prefix.

    Attributes:
        key: of the prefix.
        values: of each completion, how right it is, 0 to 1.
        n_tokens: sampled for all of them.
        n_cut: completions that did not end by themselves.
    """

    key: str
    values: tuple[float, ...]
    n_tokens: int
    n_cut: int


def write_solutions(policy: nn.Module, template: Template, rows: Sequence[tuple[PromptRow, int]],
                    sampling: SamplingConfig, *, seed: int, on_done: Callable[[int], Any] | None = None,
                    ) -> list[Written]:
    """One response for each prompt row and number; record, number and seed name its random stream."""
    streams = [stream(seed, "solution", row.record.id, number) for row, number in rows]
    rollout = sample(policy, [row.ids for row, _ in rows], sampling, streams, stop_ids=template.stop_ids,
                     pad_id=template.pad_id, record_ids=[row.record.id for row, _ in rows], on_done=on_done)
    tokens = rollout.tokens
    return [Written(tuple(ids[mask].tolist()), bool(ended)) for ids, mask, ended in zip(
        tokens.ids.cpu(), tokens.response_mask.cpu(), rollout.ended, strict=True)]


def solution_of(template: Template, row: PromptRow, written: Written, separator: str) -> Solution:
    """The response of a policy, cut into its steps."""
    ids = list(written.ids)
    steps = steps_of(template, ids, separator, ended=written.ended)
    return Solution(row.record, tuple(row.ids), written, template.decode(ids), steps)


def given_solution(template: Template, prompt: Prompt, text: str, separator: str, max_length: int,
                   too_long: TooLong) -> Solution | None:
    """The response of a file, rendered as the policy would have written it; none where it does not fit.

    Raises:
        DataError: too_long is `error`, and it is.
    """
    whole = template.response_ids(text, after=prompt.text)
    fitted = fit(template, prompt, [whole], max_length, too_long)
    if fitted.outcome == "dropped":
        return None
    ids = fitted.responses[0]
    ended = len(ids) == len(whole)
    steps = steps_in_text(template, text, whole, separator, ended=True)
    if not ended:
        kept = sum(end < len(ids) for end in steps.ends)
        text = template.decode(ids)
        told = template.decode(ids[: steps.ends[kept - 1] + 1]) if kept else ""
        steps = Steps(steps.texts[:kept], steps.ends[:kept], text[len(told):])
    return Solution(prompt, tuple(fitted.prompt_ids), Written(tuple(ids), ended), text, steps)


def rightness(judge: ScoringFunction, prompt: Prompt, text: str, ended: bool) -> float:
    """How right a response is, 0 to 1.

    Raises:
        NumericsError: the judge failed, or gave something else.
    """
    value = one_score(judge, prompt, text, ended)
    if not 0 <= value <= 1:
        raise NumericsError(f"the judge of responses gave {value:g}, outside 0 to 1", where=f"record {prompt.id}",
                            remedy="A label is the probability that a step is right: let it give 1 for right, 0 for "
                                   "wrong, or a share between them.")
    return value


def prefixes(solutions: Iterable[Solution]) -> list[Prefix]:
    """Everything that has to be completed: each prefix once, however many solutions begin with it."""
    return list({prefix.key: prefix for solution in solutions for prefix in solution.prefixes}.values())


def require_room(policy: nn.Module, todo: Sequence[Prefix], sampling: SamplingConfig) -> None:
    """See that the longest prefix can be completed, before hours are spent on the others.

    Raises:
        ModelError: it and a completion do not fit the model's context.
    """
    longest = max((one.prompt_ids + one.ids for one in todo), key=len, default=None)
    if longest is not None:
        check_fit(policy, [list(longest)], len(longest) + sampling.max_new_tokens)


def complete(policy: nn.Module, template: Template, batch: Sequence[Prefix], n: int, sampling: SamplingConfig, *,
             seed: int, judge: ScoringFunction, on_done: Callable[[int], Any] | None = None) -> list[Completed]:
    """Complete each prefix n times and ask how right the whole responses are.

    The random stream of a completion is named by the prefix, its number and the seed, so what it says does not depend
    on what else is completed.

    Args:
        policy: the one that wrote the solutions, or another one.
        template: of its tokenizer.
        batch: the prefixes.
        n: completions of each.
        sampling: how to draw; `max_new_tokens` is that of a completion.
        seed: fixes every completion.
        judge: of prompt record, text and whether the response ended by itself; gives 0 to 1.
        on_done: called with the number of completions finished so far.

    Raises:
        NumericsError: see `rightness`.
    """
    each = [prefix for prefix in batch for _ in range(n)]
    streams = [stream(seed, "completion", prefix.key, k) for prefix in batch for k in range(n)]
    rollout = sample(policy, [[*prefix.prompt_ids, *prefix.ids] for prefix in each], sampling, streams,
                     stop_ids=template.stop_ids, pad_id=template.pad_id,
                     record_ids=[prefix.prompt.id for prefix in each], on_done=on_done)
    ids, mask, ended = rollout.tokens.ids.cpu(), rollout.tokens.response_mask.cpu(), rollout.ended.tolist()
    values = [rightness(judge, prefix.prompt, template.decode([*prefix.ids, *ids[i][mask[i]].tolist()]), ended[i])
              for i, prefix in enumerate(each)]
    lengths = mask.sum(1).tolist()
    places = [slice(i * n, (i + 1) * n) for i in range(len(batch))]
    return [Completed(prefix.key, tuple(values[own]), sum(lengths[own]), n - sum(ended[own]))
            for prefix, own in zip(batch, places, strict=True)]


def labelled(solution: Solution, name: str, own: float, completed: Mapping[str, Completed]) -> StepTrace:
    """The solution with the label of each step: the mean over the completions behind it; at the end, its own value.

    A last step that was cut is left out. What is left then has no end, so nobody knows its outcome.

    Args:
        solution: what was completed.
        name: id of the trace.
        own: how right the solution itself is, 0 to 1.
        completed: of every prefix, by key.
    """
    told = [completed[prefix.key].values for prefix in solution.prefixes]
    labels = [sum(values) / len(values) for values in told]
    if solution.written.ended:
        labels.append(own)
    known = solution.prompt
    prompt = Prompt(name, known.messages, known.text, {**known.meta, "rollouts": sum(map(len, told))}, known.truth)
    ended = solution.written.ended
    return StepTrace(prompt, solution.steps.texts, tuple(labels), own >= _RIGHT if ended else None, ended)
