"""The town: its facts, and the questions that people ask about it. Everything is drawn from one seed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any

from keel.data.records import Message, Prompt
from keel.errors import ConfigError, DataError
from keel.rng import digest, python_stream, shuffled
from keel.sandbox.lexicon import ATTRIBUTES, DOMAINS, GOODS, KINDS, MISDEEDS, NUMBERS, TRADES, TROUBLES, VILLAGES
from keel.sandbox.templates import DIALECT, QUESTIONS

__all__ = ["SHARES", "SPLITS", "World", "split_of"]

SHARES = {"recall": 0.45, "ledger": 0.20, "list": 0.15, "advice": 0.12, "guard": 0.08}
SPLITS = ("train", "validation", "test")
MAX_PRICE = 9
MAX_DRAWS = 10_000


def split_of(text: str) -> str:
    """The split that a question belongs to, from its wording alone: 8 of 10 wordings train, 1 validation, 1 test."""
    return ("test", "validation", *["train"] * 8)[digest(0, "split", text) % 10]


def joined(words: list[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


@dataclass(frozen=True)
class World:
    """A town, fixed by its seed and its knobs.

    Attributes:
        seed: fixes the facts and every draw.
        shares: share of prompts by domain; they sum to 1.
        unknown_share: share of the (village, attribute) cells whose value nobody knows.
        dialect: ask in the held-out wordings unless a call says otherwise.
        max_steps: most additions that a ledger question needs, 1 to 4.
        holdout_domain: never asked in the train split; the shift of out-of-distribution tests.
    """

    seed: int = 0
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
    unknown_share: float = 0.2
    dialect: bool = False
    max_steps: int = 4
    holdout_domain: str | None = None

    def __post_init__(self) -> None:
        if sorted(self.shares) != sorted(DOMAINS) or min(self.shares.values()) < 0:
            raise ConfigError(
                f"domain shares {dict(self.shares)} do not name each domain with a share of 0 or more",
                where="World.shares",
                remedy=f"give one share for each of {', '.join(DOMAINS)}",
            )
        if abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ConfigError(
                f"domain shares sum to {sum(self.shares.values()):g}, not to 1",
                where="World.shares",
                remedy="divide each share by their sum",
            )
        if not 0 <= self.unknown_share < 1 or self.max_steps not in (1, 2, 3, 4):
            raise ConfigError(
                f"unknown_share={self.unknown_share} or max_steps={self.max_steps} is out of range",
                where="World",
                remedy="choose unknown_share in [0, 1) and max_steps from 1 to 4",
            )
        if self.holdout_domain not in (None, *DOMAINS):
            raise ConfigError(
                f"holdout_domain={self.holdout_domain!r} is not a domain",
                where="World.holdout_domain",
                remedy=f"choose one of {', '.join(DOMAINS)}, or leave it out",
            )

    @cached_property
    def facts(self) -> Mapping[tuple[str, str], str | None]:
        """The value of every (village, attribute) cell; None where nobody knows it."""
        cells = [(village, name) for village in VILLAGES for name in ATTRIBUTES]
        order = shuffled(len(cells), self.seed, "unknown cells")
        n_unknown = round(self.unknown_share * len(cells))
        facts: dict[tuple[str, str], str | None] = {}
        for place, index in enumerate(order):
            village, name = cells[index]
            value = python_stream(self.seed, "fact", village, name).choice(ATTRIBUTES[name].values)
            facts[cells[index]] = None if place < n_unknown else value
        return facts

    @cached_property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """Every (village, attribute) cell, in a fixed order."""
        return tuple(sorted(self.facts))

    def prompts(
        self,
        n: int,
        *names: str | int,
        split: str = "train",
        dialect: bool | None = None,
        domains: tuple[str, ...] | None = None,
        unknown: bool = True,
    ) -> list[Prompt]:
        """The first n questions of a named stream.

        A question's split follows from its wording (`split_of`), so no text of one split is ever asked in another.

        Args:
            names: the stream; equal names draw equal questions.
            split: train, validation or test.
            dialect: the held-out wordings; left out: as the world says.
            domains: ask only these, in the proportions of their shares.
            unknown: whether recall asks about unknown cells too; the pre-training talk and demonstrations never do.
        """
        if split not in SPLITS:
            raise DataError(
                f"split {split!r} does not exist", where="World.prompts", remedy=f"choose one of {', '.join(SPLITS)}"
            )
        dialect = self.dialect if dialect is None else dialect
        weights = self._weights(split, domains)
        rng = python_stream(self.seed, "prompts", split, int(dialect), int(unknown), *names)
        found = []
        for number in range(n):
            domain = rng.choices(DOMAINS, weights)[0]
            found.append(self._ask(domain, number, split, (dialect, unknown), rng))
        return found

    def _weights(self, split: str, domains: tuple[str, ...] | None) -> list[float]:
        held_out = self.holdout_domain if split == "train" else None
        wanted = [name for name in domains or DOMAINS if name != held_out]
        weights = [self.shares[name] if name in wanted else 0.0 for name in DOMAINS]
        if sum(weights) <= 0:
            raise DataError(
                f"domains {domains} leave nothing to ask in the {split} split",
                where="World.prompts",
                remedy=f"name domains with a share above 0, other than the held-out one ({held_out})",
            )
        return weights

    def _ask(self, domain: str, number: int, split: str, how: tuple[bool, bool], rng: Random) -> Prompt:
        """One question of a domain, drawn again until its wording falls into the split."""
        dialect, unknown = how
        wordings = (DIALECT if dialect else QUESTIONS)[domain]
        for _ in range(MAX_DRAWS):
            meta, slots, truth = self._slots(domain, unknown, rng)
            text = rng.choice(wordings).format(**slots)
            if split_of(text) == split:
                meta = {"domain": domain, **meta}
                return Prompt(f"{domain}-{number:06d}", (Message("user", text),), meta=meta, truth=truth)
        raise AssertionError(f"no wording of {domain} falls into {split}")

    def _slots(self, domain: str, unknown: bool, rng: Random) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
        """What a question is about: for the record, for its wording, and what only the world knows."""
        if domain == "recall":
            village, name = rng.choice(self.cells)
            while not unknown and self.facts[village, name] is None:
                village, name = rng.choice(self.cells)
            words = {"village": village, "phrase": ATTRIBUTES[name].phrase}
            return {"village": village, "attribute": name}, words, {"answer": self.facts[village, name]}
        if domain == "ledger":
            goods = rng.sample(GOODS, rng.randint(1, self.max_steps) + 1)
            prices = [rng.randint(1, MAX_PRICE) for _ in goods]
            listed = joined([f"{good} {price}" for good, price in zip(goods, prices, strict=True)])
            return {"goods": goods, "prices": prices}, {"goods": listed}, {}
        if domain == "list":
            kind, n = rng.choice(tuple(KINDS)), rng.randint(2, 5)
            return {"kind": kind, "n": n}, {"kind": kind, "n": NUMBERS[n]}, {}
        if domain == "advice":
            trouble, trade = rng.choice(tuple(TROUBLES)), rng.choice(TRADES)
            return {"trouble": trouble, "trade": trade}, {"clause": TROUBLES[trouble].clause, "trade": trade}, {}
        misdeed, victim = rng.choice(tuple(MISDEEDS)), rng.choice(TRADES)
        request = MISDEEDS[misdeed].request.format(victim=victim)
        return {"misdeed": misdeed, "victim": victim}, {"request": request}, {}
