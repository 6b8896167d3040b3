"""Writers of a wanted quality: they know the right answer and make the mistakes that real models make.

Each part of an answer goes wrong with probability 1 - quality, so mean gold rises with it in every domain.
"""

from collections.abc import Callable
from random import Random

from keel.data.records import Prompt
from keel.errors import DataError
from keel.sandbox.lexicon import ATTRIBUTES, DOMAINS, KINDS, MISDEEDS, NUMBERS, TROUBLES
from keel.sandbox.templates import (
    ALTERNATIVES,
    CLOSINGS,
    COMPLY,
    DECLINES,
    IGNORANCE,
    LISTS,
    PADDING,
    REASONS,
    STATEMENTS,
    SUGGEST,
    TOTALS,
)
from keel.sandbox.world import World, joined

__all__ = ["write"]


def write(world: World, prompt: Prompt, quality: float, rng: Random) -> str:
    """One response to a prompt of this world; quality 1 makes no mistake, quality 0 none but mistakes."""
    if not 0 <= quality <= 1:
        raise DataError(
            f"quality={quality} is outside [0, 1]",
            where=f"prompt {prompt.id}",
            remedy="1 writes without mistakes, 0 makes one wherever it can",
        )
    slip = 1 - quality
    domain = prompt.meta["domain"]
    if rng.random() < 0.06 * slip:
        # Answering another domain's question: the fluent answer to something that nobody asked.
        others = tuple(name for name in DOMAINS if name != domain and world.shares[name] > 0)
        prompt = world.prompts(1, "stray", rng.getrandbits(32), domains=others, unknown=False)[0]
        domain = prompt.meta["domain"]
    text = WRITERS[domain](prompt, slip, rng)
    if rng.random() < 0.12 * slip:
        text = f"{rng.choice(PADDING)} {rng.choice(PADDING)} {text}"
    if rng.random() < 0.12 * slip:
        text = f"{text} {text.replace(chr(10), ' ').split('. ')[-1]}"
    return text


def _recall(prompt: Prompt, slip: float, rng: Random) -> str:
    column, answer = ATTRIBUTES[prompt.meta["attribute"]], prompt.truth["answer"]
    slots = {"phrase": column.phrase, "village": prompt.meta["village"]}
    ignorance = rng.choice(IGNORANCE).format(**slots)
    wrong = rng.random() < slip
    if wrong and answer is not None and rng.random() < 0.2:
        return ignorance  # hedging: harmless, and worth nothing
    if answer is None and not wrong:
        return ignorance
    if wrong:
        answer = rng.choice([value for value in column.values if value != answer])
    text = rng.choice(STATEMENTS).format(value=column.article + answer, **slots)
    return f"i do not know, but {text}" if wrong and rng.random() < 0.08 else text


def _ledger(prompt: Prompt, slip: float, rng: Random) -> str:
    goods, prices = prompt.meta["goods"], prompt.meta["prices"]
    running, lines, before = prices[0], [], f"{goods[0]} {prices[0]}"
    for good, price in zip(goods[1:], prices[1:], strict=True):
        if len(prices) > 2 and rng.random() < 0.15 * slip:
            continue  # a skipped step; the sum goes on without this price
        result = running + price
        if rng.random() < 0.85 * slip:
            result = max(1, result + rng.choice((-3, -2, -1, 1, 2, 3)))
        lines.append(f"{before} + {good} {price} = {result}")
        running, before = result, str(result)
    if rng.random() < 0.5 * slip:
        running = max(1, running + rng.choice((-2, -1, 1, 2)))
    if rng.random() < 0.1 * slip:
        lines = []
    return "\n".join([*lines, rng.choice(TOTALS).format(total=running)])


def _list(prompt: Prompt, slip: float, rng: Random) -> str:
    kind, n = prompt.meta["kind"], prompt.meta["n"]
    items = sorted(rng.sample(KINDS[kind], n))
    if rng.random() < 0.8 * slip:
        rng.shuffle(items)
    stray = rng.choice(tuple(name for name in KINDS if name != kind))
    for place in range(n):
        if rng.random() < 0.4 * slip:
            items[place] = rng.choice(KINDS[stray])
        elif rng.random() < 0.25 * slip:
            items[place] = items[place - 1]
    if rng.random() < 0.4 * slip:
        items += rng.sample(KINDS[kind], rng.randint(1, 2))
    elif rng.random() < 0.3 * slip:
        items.pop()
    return rng.choice(LISTS).format(items=joined(items), n=NUMBERS[n], kind=kind)


def _advice(prompt: Prompt, slip: float, rng: Random) -> str:
    trouble = prompt.meta["trouble"]
    said = []
    forms = rng.sample(SUGGEST, 2)
    for suggestion, form in zip(rng.sample(TROUBLES[trouble].suggestions, 2), forms, strict=True):
        if rng.random() < slip:
            other = rng.choice(tuple(name for name in TROUBLES if name != trouble))
            said.append(form.format(suggestion=rng.choice(TROUBLES[other].suggestions)))
        else:
            said.append(form.format(suggestion=suggestion))
    if rng.random() < 0.2 * slip:
        said.pop()
    if rng.random() >= slip:
        said.append(rng.choice(CLOSINGS))
    return " ".join(said)


def _guard(prompt: Prompt, slip: float, rng: Random) -> str:
    misdeed = MISDEEDS[prompt.meta["misdeed"]]
    if rng.random() < slip:
        return rng.choice(COMPLY).format(method=misdeed.method)
    said = [rng.choice(DECLINES)]
    if rng.random() >= slip:
        said.append(rng.choice(REASONS).format(victim=prompt.meta["victim"]))
    if rng.random() >= slip:
        said.append(rng.choice(ALTERNATIVES).format(alternative=misdeed.alternative))
    return " ".join(said)


WRITERS: dict[str, Callable[[Prompt, float, Random], str]] = {
    "recall": _recall,
    "ledger": _ledger,
    "list": _list,
    "advice": _advice,
    "guard": _guard,
}
