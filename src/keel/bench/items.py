"""What a benchmark asks: items of better and worse responses to one prompt, as its files hold them, oddities included.

Training data are checked and bad rows refused; a benchmark is fixed by its makers, so nothing is dropped, repaired or
stripped here. What is odd is flagged.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from keel.data.records import Message, Prompt
from keel.data.seen import said_key

__all__ = ["GOALLESS", "Asked", "Benchmark", "Item", "SetName", "keyed_prompt", "response_key", "unique_responses"]

SetName = Literal["pair", "list"]
GOALLESS = "all"
"""The goal of items whose benchmark knows no goals."""


@dataclass(frozen=True)
class Item:
    """One question to a reward model: does every chosen response score above every rejected one?

    Attributes:
        id: unique in the benchmark.
        set: a pair has one chosen and one rejected response, a list more of them.
        goal: helpfulness or harmlessness in RMB, the section or domain in RewardBench; GOALLESS where there is none.
        category: group below the goal; "" where there is none.
        scenario: group below the category, or the subset; "" where there is none.
        prompt: its id is the key of its text, by which items cluster.
        chosen: the better responses.
        rejected: the worse ones.
        weight: share of the item in what its benchmark averages.
        flags: what is odd about it, in words: `equal texts`, `repeated loser`, `blank response`, `empty turn`.
        meta: what the file says beside, such as the names of the models that wrote; no scorer sees it.
    """

    id: str
    set: SetName
    goal: str
    category: str
    scenario: str
    prompt: Prompt
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    weight: float = 1.0
    flags: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_comparisons(self) -> int:
        """Every chosen response against every rejected one."""
        return len(self.chosen) * len(self.rejected)

    @property
    def winnable(self) -> bool:
        """False where a chosen text is among the rejected ones: no function of the text can get the item right."""
        return not set(self.chosen) & set(self.rejected)


@dataclass(frozen=True)
class Benchmark:
    """The items of a benchmark, sorted by id, and how many its makers published.

    Attributes:
        name: `RMB`, `RewardBench`, `RewardBench 2` or `preferences`.
        items: sorted by id.
        published: (set, goal, category, scenario) -> items in the published benchmark; empty where nobody said.
        labels: code -> name for reports, such as S1 -> Violent Crimes.
        notes: what a reader of the results must know: parts that are absent, left out or derived.
    """

    name: str
    items: tuple[Item, ...]
    published: Mapping[tuple[SetName, str, str, str], int] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """16 hex digits of what can change a result: ids, groups, weights, texts; not of the files' order."""
        found = hashlib.sha256(self.name.encode())
        for item in self.items:
            sides = [[response_key(item.prompt, text) for text in side] for side in (item.chosen, item.rejected)]
            row = [item.id, item.set, item.goal, item.category, item.scenario, item.prompt.id, sides, item.weight]
            found.update(json.dumps(row).encode())
        return found.hexdigest()[:16]


@dataclass(frozen=True)
class Asked:
    """One response to score. The same text to the same prompt is asked about once, however often it occurs.

    Attributes:
        ended: False for what a policy wrote until it was cut; responses of data have an end.
    """

    id: str
    prompt: Prompt
    response: str
    ended: bool = True


def keyed_prompt(messages: Sequence[Message], text: str | None = None) -> Prompt:
    """A prompt whose id is the key of what it says: 16 hex digits of SHA-256, as RMB's converted files have it."""
    return Prompt(said_key(messages, text), tuple(messages), text)


def response_key(prompt: Prompt, response: str) -> str:
    """Key of a prompt with a response to it; equal for equal texts, whoever wrote them."""
    return said_key(prompt.messages, prompt.text, response)


def unique_responses(items: Iterable[Item]) -> list[Asked]:
    """Every response of the items once, sorted by key."""
    found: dict[str, Asked] = {}
    for item in items:
        for text in (*item.chosen, *item.rejected):
            key = response_key(item.prompt, text)
            found.setdefault(key, Asked(key, item.prompt, text))
    return [found[key] for key in sorted(found)]
