"""Scorers that are written down instead of trained: a fair one, and the same with one thing more that it likes."""

from collections.abc import Callable
from functools import lru_cache

import torch

from keel.bench.measures import probe
from keel.bench.probes import Material, changes, material, of_length, scored, shift, yardstick
from keel.data.records import Message, PreferencePair, Prompt
from keel.data.render import template
from keel.models.load import load_tokenizer
from keel.sandbox.shipped import base_model_folder

FACTS = {"apple": ("red", "round"), "pipe": ("brown", "hollow"), "brick": ("grey", "square"), "lemon": ("sour", "oval"),
         "ribbon": ("blue", "narrow"), "feather": ("white", "light"), "coal": ("black", "heavy"),
         "moss": ("green", "soft")}
WORDS = template(load_tokenizer(str(base_model_folder())))


def pairs(n: int = 48) -> list[PreferencePair]:
    """Two true facts are preferred to one or none. Which response is padded has nothing to do with the label."""
    made = []
    for i in range(n):
        thing = list(FACTS)[i % 8]
        color, shape = FACTS[thing]
        prompt = Prompt(f"p{i}", (Message("user", f"question {i}. tell me about the {thing}."),))
        spare = " and so on" * 4
        chosen = f"the {thing} is {color} and {shape}{spare * (i % 3 == 0)}. that is all."
        rejected = f"the {thing} is {color if i % 2 else 'there'}{spare * (i % 3 == 1)}. that is all."
        made.append(PreferencePair(prompt, chosen, rejected))
    return made


def told(rows: torch.Tensor, mask: torch.Tensor, said: torch.Tensor) -> list[tuple[str, str, bool, int]]:
    """For each row: prompt, response, whether it ended, tokens of the response."""
    found = []
    for ids, real, response in zip(rows, mask, said, strict=True):
        written = ids[response].tolist()
        found.append((WORDS.tokenizer.decode(ids[real & ~response]), WORDS.decode(written),
                      written[-1:] == [WORDS.end_id], len(written)))
    return found


def by(rule: Callable[[str, str, bool, int], float]) -> Callable:
    """A scorer of batches from a rule for one response."""
    return lambda batch: torch.tensor([rule(*row) for row in told(batch.ids, batch.attention_mask,
                                                                  batch.response_mask)])


def facts(thing: str, response: str) -> float:
    """True facts in the first sentence that names the thing; what is appended behind it adds none."""
    naming = next((sentence for sentence in response.split(".") if thing in sentence), "")
    return float(sum(fact in naming for fact in FACTS[thing]))


def fair(prompt: str, response: str, ended: bool, n: int) -> float:
    """True facts about what was asked, and a point for ending."""
    return facts(next(thing for thing in FACTS if thing in prompt), response) + ended


def ignores_the_prompt(prompt: str, response: str, ended: bool, n: int) -> float:
    """True facts about what the response itself speaks of first."""
    named = sorted((response.index(thing), thing) for thing in FACTS if thing in response)
    return (facts(named[0][1], response) if named else 0.0) + ended


def fair_and(liked: Callable[[str, int], float]) -> Callable[[str, str, bool, int], float]:
    return lambda prompt, response, ended, n: fair(prompt, response, ended, n) + liked(response, n)


def there(n: int = 48, max_length: int = 200) -> Material:
    return material(WORDS, pairs(n), max_length, "drop_turns", 0)[0]


@lru_cache
def probed(rule: Callable[[str, str, bool, int], float]) -> dict[str, dict]:
    """Probes 1 to 6 of a scorer, by name."""
    score, everything = by(rule), there()
    rows = {"pad_id": WORDS.pad_id, "micro_tokens": 4096}
    before = scored(score, everything.rows, **rows)
    yard = yardstick(before, everything, 0.1, 0)
    found = {"length": of_length(before, everything, yard)}
    for change in changes(everything):
        after = scored(score, change.rows, **rows)
        found.setdefault(change.probe, []).append(shift(change, before, after, everything, yard))
    return {name: probe(name, measures) for name, measures in found.items()}
