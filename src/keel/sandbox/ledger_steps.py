"""Ledger answers line by line: exact labels of their steps, and solutions to train process models on."""

from dataclasses import replace

from keel.data.records import Prompt
from keel.data.segment import split
from keel.data.traces import StepTrace
from keel.rng import python_stream
from keel.sandbox.gold import additions_needed, additions_written, score, totals_written
from keel.sandbox.world import World
from keel.sandbox.writers import write

__all__ = ["SEPARATOR", "answer_of", "solutions", "step_scores", "true_steps", "with_answer"]

SEPARATOR = "\n"


def answer_of(prompt: Prompt) -> str:
    """The exact total of a ledger question."""
    return str(additions_needed(prompt)[-1][-1])


def with_answer(prompt: Prompt) -> Prompt:
    """The question with its total in `meta["answer"]`, where a verifiable reward looks for it."""
    return replace(prompt, meta={**prompt.meta, "answer": answer_of(prompt)})


def step_scores(prompt: Prompt, text: str, ended: bool) -> list[float]:
    """Of each line, 1 if it does what is needed at its place, else 0.

    The k-th addition of the answer is held against the k-th that is needed, and the first line that states a total
    against the right one; a line with several of these needs all of them. So nothing is paid twice: neither a right
    line that is repeated, nor the right total after another one.

    Args:
        prompt: a ledger question.
        text: any string; upper case reads as lower case.
        ended: whether the writer ended by itself; if not, a last line that was cut is no step.
    """
    needed = additions_needed(prompt)
    n_additions = n_totals = 0
    found = []
    for line in split(text, SEPARATOR, ended=ended):
        additions, totals = additions_written(line.lower()), totals_written(line.lower())
        right = additions == needed[n_additions : n_additions + len(additions)] and (
            not totals or (n_totals == 0 and set(totals) == {needed[-1][-1]}))
        found.append(float(right and bool(additions or totals)))
        n_additions, n_totals = n_additions + len(additions), n_totals + len(totals)
    return found


def true_steps(prompt: Prompt, text: str, ended: bool) -> list[float]:
    """Of each line, 1 if what it says is true, needed or not, else 0: a judge without memory.

    An addition is true if it adds up, a total if it is the right one. A line that says neither is 0. It pays a line as
    often as it is written, which is how rewards of steps are farmed.

    Args:
        prompt: a ledger question.
        text: any string; upper case reads as lower case.
        ended: whether the writer ended by itself; if not, a last line that was cut is no step.
    """
    total = additions_needed(prompt)[-1][-1]
    found = []
    for line in split(text, SEPARATOR, ended=ended):
        additions, totals = additions_written(line.lower()), totals_written(line.lower())
        true = all(a + b == c for a, b, c in additions) and all(stated == total for stated in totals)
        found.append(float(true and bool(additions or totals)))
    return found


def solutions(world: World, n: int, *names: str | int, quality: tuple[float, float] = (0.0, 1.0), part: str = "train",
              dialect: bool | None = None) -> list[StepTrace]:
    """Answers to ledger questions by writers whose quality is uniform in a range, every line labelled exactly.

    Args:
        world: whose questions are answered.
        n: how many.
        names: the stream; equal names draw equal solutions.
        quality: of the writers, from lowest to highest.
        part: train, validation or test.
        dialect: the held-out wordings; left out: as the world says.
    """
    found = []
    for number, prompt in enumerate(world.prompts(n, "solutions", *names, split=part, dialect=dialect,
                                                  domains=("ledger",))):
        rng = python_stream(world.seed, "solutions", *names, part, number)
        text = write(world, prompt, rng.uniform(*quality), rng)
        found.append(StepTrace(with_answer(prompt), tuple(split(text, SEPARATOR)),
                               tuple(step_scores(prompt, text, True)),
                               outcome=score(prompt, text).parts.get("total", 0.0) > 0))
    return found
