"""Annotators: people who mostly prefer the better response, in a way that is known exactly."""

import math
from dataclasses import dataclass, replace
from random import Random

from keel.data.records import PreferencePair, Prompt
from keel.errors import ConfigError, DataError
from keel.rng import python_stream
from keel.sandbox.gold import n_tokens, score
from keel.sandbox.world import World
from keel.sandbox.writers import write

__all__ = ["Annotator", "pairs", "panel"]

MAX_DRAWS = 100


@dataclass(frozen=True)
class Annotator:
    """One person's law of preference: sigmoid(sharpness * gold gap + length_bias * token gap), then careless flips.

    Attributes:
        name: who it is; written into the meta of every pair.
        sharpness: log-odds per point of gold score; 0 chooses blindly, infinity never errs.
        length_bias: log-odds per extra token; above 0 likes long answers.
        careless: share of choices turned over whatever they were, in [0, 0.5].
    """

    name: str = "annotator-0"
    sharpness: float = 4.0
    length_bias: float = 0.0
    careless: float = 0.02

    def __post_init__(self) -> None:
        if self.sharpness < 0 or not 0 <= self.careless <= 0.5:
            raise ConfigError(
                f"sharpness={self.sharpness} or careless={self.careless} is out of range",
                where=f"annotator {self.name}",
                remedy="choose sharpness of 0 or more and careless in [0, 0.5]",
            )

    def probability(self, gold_gap: float, token_gap: int) -> float:
        """P(the first is preferred), where both gaps are first minus second."""
        log_odds = (self.sharpness * gold_gap if gold_gap else 0.0) + self.length_bias * token_gap
        careful = 1 / (1 + math.exp(-log_odds)) if log_odds >= 0 else 1 - 1 / (1 + math.exp(log_odds))
        return self.careless + (1 - 2 * self.careless) * careful

    def prefers_first(self, gold_gap: float, token_gap: int, rng: Random) -> bool:
        return rng.random() < self.probability(gold_gap, token_gap)


def panel(
    n: int, *, sharpness: float = 4.0, length_bias: float = 0.0, careless: float = 0.02, seed: int = 0
) -> tuple[Annotator, ...]:
    """n annotators around one law: each has 0.5 to 1.5 times its sharpness and its share of carelessness."""
    found = []
    for number in range(n):
        rng = python_stream(seed, "panel", number)
        found.append(
            Annotator(
                f"annotator-{number}",
                sharpness * rng.uniform(0.5, 1.5),
                length_bias,
                min(0.5, careless * rng.uniform(0.5, 1.5)),
            )
        )
    return tuple(found)


def pairs(
    world: World,
    n: int,
    *names: str | int,
    annotators: tuple[Annotator, ...] = (Annotator(),),
    quality: tuple[float, float] = (0.0, 1.0),
    off_topic: float = 0.0,
    split: str = "train",
    dialect: bool | None = None,
) -> list[PreferencePair]:
    """Two different responses per prompt, of independent qualities, labelled by one annotator each.

    Meta holds what a real data set would: the domain, who labelled it, and how many of the panel agree (`votes_for`
    of `voters`). In a share `off_topic` of the pairs one response is a good answer to another question: without such
    pairs a reward model need not look at the prompt. The gold gap (chosen minus rejected) and whether the label is
    wrong are in `truth` alone.
    """
    if not annotators or not 0 <= quality[0] <= quality[1] <= 1:
        raise DataError(
            f"{len(annotators)} annotators and qualities {quality} cannot make pairs",
            where="pairs",
            remedy="give at least one annotator, and a range of qualities within [0, 1]",
        )
    found = []
    for number, prompt in enumerate(world.prompts(n, "pairs", *names, split=split, dialect=dialect)):
        rng = python_stream(world.seed, "pairs", *names, split, number)
        first, second = _two_responses(world, prompt, quality, rng)
        if rng.random() < off_topic:
            stray = _off_topic(world, number, rng, *names)
            first, second = rng.sample([first, second if stray.strip() == first.strip() else stray], 2)
        gap = score(prompt, first).total - score(prompt, second).total
        longer = n_tokens(first) - n_tokens(second)
        choices = [annotator.prefers_first(gap, longer, rng) for annotator in annotators]
        labeller = rng.randrange(len(annotators))
        if not choices[labeller]:
            first, second, gap = second, first, -gap
        meta = {
            **prompt.meta,
            "annotator": annotators[labeller].name,
            "votes_for": sum(choice == choices[labeller] for choice in choices),
            "voters": len(annotators),
        }
        truth = {**prompt.truth, "gold_gap": gap, "wrong_label": gap < 0}
        found.append(PreferencePair(replace(prompt, meta=meta, truth=truth), first, second))
    return found


def _off_topic(world: World, number: int, rng: Random, *names: str | int) -> str:
    """A good answer to a question of any domain that is asked, each as likely."""
    domain = rng.choice([name for name, share in world.shares.items() if share > 0 and name != world.holdout_domain])
    other = world.prompts(1, "off topic", *names, number, domains=(domain,), unknown=False)[0]
    return write(world, other, 1.0, rng)


def _two_responses(world: World, prompt: Prompt, quality: tuple[float, float], rng: Random) -> list[str]:
    first = write(world, prompt, rng.uniform(*quality), rng)
    for _ in range(MAX_DRAWS):
        second = write(world, prompt, rng.uniform(*quality), rng)
        if second.strip() != first.strip():
            return [first, second]
    raise AssertionError(f"{MAX_DRAWS} draws wrote the same response to {prompt.id}")
