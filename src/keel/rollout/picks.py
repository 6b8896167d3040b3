"""Of several solutions to one prompt, which one to answer with; and what each way of choosing is worth.

A solution that was cut has no final answer: it does not vote, and by a process model it is chosen only where none
ended by itself, since the steps that it lacks cannot lower its score.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from keel.data.answers import AnswerConfig, Compare, final_answer, right_answer, same_answer, verdict
from keel.data.records import Prompt
from keel.errors import NumericsError
from keel.functional.best_of_n import best_of_n
from keel.functional.steps import aggregate_steps, majority_vote
from keel.rng import stream
from keel.rollout.respond import ScoringFunction, one_score, summary

__all__ = ["VOTES", "Marker", "Solution", "curve", "pick", "scores_of_steps", "steps_up_to", "worths"]

VOTES = ("majority", "weighted")
"""Ways to choose that have no closed form: they are counted over subsets."""


@dataclass(frozen=True)
class Solution:
    """A response with what everybody says of it.

    Attributes:
        text: of the response.
        ended: True where it ended by itself.
        n_tokens: sampled for it.
        steps: its whole steps.
        probabilities: of each step being right, by the process model.
        unfinished: text of a last step that was cut.
        score: of the steps together; none where there is no step.
        outcome: score by the outcome model; none where there is none.
        answer: final answer; none where it has none.
        right: 1 where it is right, 0 where it is wrong; none where nobody knows.
    """

    text: str
    ended: bool
    n_tokens: int
    steps: Sequence[str]
    probabilities: Sequence[float]
    unfinished: str = ""
    score: float | None = None
    outcome: float | None = None
    answer: str | None = None
    right: float | None = None

    @property
    def standing(self) -> tuple[bool, float]:
        """By which a process model chooses."""
        return self.ended, -math.inf if self.score is None else self.score


class Marker:
    """Who knows whether a solution is right: a judge, the answers in the prompts' file, or nobody."""

    def __init__(self, how: AnswerConfig, judge: ScoringFunction | None, prompts: Sequence[Prompt]) -> None:
        """Settle who it is.

        Raises:
            DataError: some prompts have a right answer and one has none.
            ConfigError: the library that compares answers is not installed.
        """
        self.how, self.judge = how, judge
        self.knows = judge is not None or any(prompt.label(how.column) is not None for prompt in prompts)
        if judge is None and self.knows:
            for prompt in prompts:
                right_answer(prompt, how.column)
        same_answer("1", "2", how.compare)  # a library that is missing is missed here, not hours later

    def answer(self, text: str, ended: bool) -> str | None:
        """The final answer; none where the solution was cut."""
        return final_answer(text, self.how.extract) if ended else None

    def right(self, prompt: Prompt, text: str, ended: bool) -> float | None:
        """From 0 to 1; none where nobody knows.

        Raises:
            NumericsError: the judge failed, or gave another number.
        """
        if not self.knows:
            return None
        if self.judge is None:
            return verdict(prompt, text, ended, self.how)
        found = one_score(self.judge, prompt, text, ended)
        if not 0 <= found <= 1:
            raise NumericsError(f"the judge of solutions gave {found}", where=f"record {prompt.id}",
                                remedy="It must give 1 for a right solution, 0 for a wrong one, or a number between.")
        return found


def scores_of_steps(probabilities: Sequence[Sequence[float]], how: str) -> list[float]:
    """One score per solution from those of its steps; NaN where it has none."""
    values = torch.tensor([x for own in probabilities for x in own], dtype=torch.float64)
    rows = torch.tensor([i for i, own in enumerate(probabilities) for _ in own], dtype=torch.long)
    return aggregate_steps(values, rows, len(probabilities), how=how).tolist()


def pick(solutions: Sequence[Solution], method: str, compare: Compare) -> Solution:
    """The solution to answer with; the first of equal ones.

    Args:
        solutions: to one prompt.
        method: `process` or `outcome`: the highest score; `majority`, `weighted`: of those with the answer that wins
            the vote the one with the highest score; where nobody votes, the first.
        compare: when two answers are one.
    """
    if method not in VOTES:
        return max(solutions, key=_outcome if method == "outcome" else lambda one: one.standing)
    ballots = _ballots(solutions, compare)
    winner = _elected(solutions, ballots, method)
    if winner is None:
        return solutions[0]
    return max((one for one, vote in zip(solutions, ballots, strict=True) if vote == winner),
               key=lambda one: one.standing)


def curve(found: Mapping[str, Sequence[Solution]], *, seed: int, compare: Compare, n_subsets: int,
          ) -> list[dict[str, Any]]:
    """Of each way of choosing and each n: how many picks are right, over prompts, and the gain over a random solution.

    Args: see `worths`; the seed is that of the intervals too.
    """
    tokens = torch.tensor([[one.n_tokens for one in own] for own in found.values()]).double().mean()
    told = worths(found, seed=seed, compare=compare, n_subsets=n_subsets)
    return [{"method": method, "n": n, "accuracy": summary(values, seed, method, n),
             "gain": summary(values - told["random", 1], seed, "gain", method, n), "tokens": n * float(tokens)}
            for (method, n), values in told.items()]


def worths(found: Mapping[str, Sequence[Solution]], *, seed: int, compare: Compare, n_subsets: int,
           ) -> dict[tuple[str, int], Tensor]:
    """For each way of choosing and each n = 1, 2, 4, ... the rightness of the pick of n, prompt by prompt.

    Expected over every choice of n among a prompt's solutions: in closed form where a score picks, over drawn choices
    where votes do, unless all can be gone through.

    Args:
        found: solutions by the id of their prompt, each marked, as many of each.
        seed: of the choices.
        compare: when two answers are one.
        n_subsets: choices drawn of each prompt and n.
    """
    methods = ["random", "process", *(["outcome"] if _has_outcome(found) else []), *VOTES, "oracle"]
    counts = steps_up_to(min(map(len, found.values())))
    told = {(method, n): list[float]() for n in counts for method in methods}
    for name, own in found.items():
        ballots = _ballots(own, compare)
        for n in counts:
            chosen = list(_subsets(len(own), n, seed, name, n_subsets))
            for method in methods:
                told[method, n].append(_voted(own, ballots, method, chosen) if method in VOTES
                                       else _scored(own, method, n))
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in told.items()}


def steps_up_to(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return sorted({2**k for k in range(most.bit_length())} | {most})


def _scored(solutions: Sequence[Solution], method: str, n: int) -> float:
    """Expected rightness of the pick of n by a score, by one who knows, or by chance."""
    rights = torch.tensor(_rights(solutions), dtype=torch.float64)
    match method:
        case "random":
            return float(rights.mean())
        case "process":
            by = _ranks([one.standing for one in solutions])
        case "outcome":
            by = _ranks([_outcome(one) for one in solutions])
        case _:
            by = rights
    return float(best_of_n(by, rights, n=n))


def _voted(solutions: Sequence[Solution], ballots: Sequence[str | None], method: str,
           subsets: Sequence[Sequence[int]]) -> float:
    """Rightness of the answer that wins the vote, over the choices; where nobody votes, of a random solution."""
    rights, total = _rights(solutions), 0.0
    for own in subsets:
        winner = _elected([solutions[i] for i in own], [ballots[i] for i in own], method)
        kept = [rights[i] for i in own if winner is None or ballots[i] == winner]
        total += sum(kept) / len(kept)
    return total / len(subsets)


def _elected(solutions: Sequence[Solution], ballots: Sequence[str | None], method: str) -> str | None:
    return majority_vote(ballots, [one.score or 0.0 for one in solutions] if method == "weighted" else None)


def _ballots(solutions: Sequence[Solution], compare: Compare) -> list[str | None]:
    """Final answers, equal ones in the words of the first."""
    known, found = list[str](), list[str | None]()
    for one in solutions:
        vote = one.answer
        equal = next((other for other in known if same_answer(vote, other, compare)), None)
        if vote is not None and equal is None:
            known.append(vote)
        found.append(vote if equal is None else equal)
    return found


def _subsets(n_all: int, n: int, seed: int, name: str, n_subsets: int) -> Iterator[Sequence[int]]:
    if math.comb(n_all, n) <= max(n_subsets, n_all):
        yield from combinations(range(n_all), n)
        return
    generator = stream(seed, "subsets", name, n)
    for _ in range(n_subsets):
        yield torch.randperm(n_all, generator=generator)[:n].tolist()


def _ranks(values: Sequence[Any]) -> Tensor:
    """Numbers in the order of the values, equal where these are."""
    order = {value: float(i) for i, value in enumerate(sorted(dict.fromkeys(values)))}
    return torch.tensor([order[value] for value in values], dtype=torch.float64)


def _rights(solutions: Sequence[Solution]) -> list[float]:
    return [one.right or 0.0 for one in solutions]


def _outcome(one: Solution) -> float:
    return -math.inf if one.outcome is None else one.outcome


def _has_outcome(found: Mapping[str, Sequence[Solution]]) -> bool:
    return all(one.outcome is not None for own in found.values() for one in own)
