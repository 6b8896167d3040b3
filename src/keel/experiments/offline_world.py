"""A world of forty words in which the reward of every response is known: the data of `keel experiment offline`.

A prompt is a type and three content words. The type says how long a response should be; a good one uses the content
words, repeats no bigram and has no banned word. Responses are those of a noisy expert, or bad ones of four kinds.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

from keel.bench.rewards import SequenceRewardConfig
from keel.bench.scorers import ScorerConfig
from keel.data.records import Demonstration, Message, PreferencePair, Prompt
from keel.data.write import write_records
from keel.rng import python_stream

__all__ = ["BANNED", "CONTENT", "FILLERS", "KINDS", "KNOWN_BAD", "REWARDS", "WINDOWS", "Answered", "answered",
           "banned_free", "content_used", "in_window", "no_repeats", "prompts", "rewards", "total", "write_tokenizer",
           "write_world"]

WINDOWS: Mapping[str, tuple[int, int]] = {"brief": (5, 7), "short": (7, 9), "medium": (9, 11), "long": (12, 14)}
"""Words that a response to each type of prompt should have, from - to."""
CONTENT = ("river", "stone", "bread", "lamp", "horse", "window", "garden", "letter", "music", "winter", "bridge",
           "honey", "silver", "market", "forest", "candle", "island", "pepper", "thunder", "velvet")
FILLERS = ("the", "a", "and", "with", "near", "under", "old", "new", "small", "bright", "quiet", "today")
BANNED = ("damn", "hell", "crap", "bloody")
RESPONSE_WORDS = (*CONTENT, *FILLERS, *BANNED)
PER_PROMPT = 3
FEWEST_WORDS = 3
"""A response shorter than this earns nothing for what it leaves out: an empty one would have two rewards of four."""
PER_WORD = 0.25
"""Lost for each word outside the window."""
USES, IN_WINDOW, REPEATS, SWEARS = 0.75, 0.65, 0.2, 0.4
"""Of the expert: chance that a content word is used, that the length is right, that a bigram is repeated, that a banned
word slips in. They bring its mean total to about 3 of 4."""
OFF_BY = (2, 5)  # words that a wrong length is off by
RANDOM_WORDS, REPEATED_WORDS, TRUNCATED_WORDS = (15, 24), (12, 24), (1, 2)
MOSTLY = 0.7  # of the words of a banned response are replaced
KNOWN_BAD = "bad"
FLIPPED = 0.2
SIDES = ("chosen", "rejected")
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>"]
TEMPLATE = (
    "<bos>{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<eos>' }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


# --- what a response is worth ----------------------------------------------------------------------------------------


def asked_of(prompt: Prompt) -> tuple[str, tuple[str, ...]]:
    """The type and the content words of a prompt."""
    kind, *content = prompt.messages[0].content.split()
    return kind, tuple(content)


def content_used(prompt: Prompt, text: str, ended: bool) -> float:
    """Share of the prompt's content words that the response uses."""
    content, said = asked_of(prompt)[1], text.split()
    return sum(word in said for word in content) / len(content)


def no_repeats(prompt: Prompt, text: str, ended: bool) -> float:
    """Share of bigrams that are there for the first time."""
    words = text.split()
    bigrams = list(pairwise(words))
    return len({*bigrams}) / len(bigrams) if len(words) >= FEWEST_WORDS else 0.0


def in_window(prompt: Prompt, text: str, ended: bool) -> float:
    """One where the type's window holds the number of words; a quarter less for each word that it is off by."""
    (least, most), n = WINDOWS[asked_of(prompt)[0]], len(text.split())
    return max(0.0, 1.0 - PER_WORD * max(least - n, n - most, 0))


def banned_free(prompt: Prompt, text: str, ended: bool) -> float:
    """One where no word is banned."""
    words = text.split()
    return float(len(words) >= FEWEST_WORDS and not any(word in BANNED for word in words))


REWARDS: Mapping[str, Callable[[Prompt, str, bool], float]] = {
    "content": content_used, "repeats": no_repeats, "length": in_window, "banned": banned_free}
"""Each between 0 and 1."""


def total(prompt: Prompt, text: str) -> float:
    """Sum of the four."""
    return sum(reward(prompt, text, True) for reward in REWARDS.values())


def rewards() -> tuple[SequenceRewardConfig, ...]:
    """The same as settings; those of the data are stored in its files."""
    return tuple(SequenceRewardConfig(name=name, stored=name, scorer=ScorerConfig(
        function=f"{function.__module__}:{function.__name__}", prompt_as="record"))
        for name, function in REWARDS.items())


# --- who writes ------------------------------------------------------------------------------------------------------


def expert(prompt: Prompt, draw: Random) -> list[str]:
    """A good response, with the expert's slips."""
    kind, content = asked_of(prompt)
    used = [word for word in content if draw.random() < USES]
    n = draw.randint(*WINDOWS[kind])
    if draw.random() >= IN_WINDOW:
        n = WINDOWS[kind][0] - draw.randint(*OFF_BY) if draw.random() < 1 / 2 else (
            WINDOWS[kind][1] + draw.randint(*OFF_BY))
    n = max(n, len(used), FEWEST_WORDS)
    words = [draw.choice(FILLERS) for _ in range(n)]
    for place, word in zip(sorted(draw.sample(range(n), len(used))), used, strict=True):
        words[place] = word
    if draw.random() < REPEATS:
        words[-2:] = words[:2]
    if draw.random() < SWEARS:
        words[draw.randrange(n)] = draw.choice(BANNED)
    return words


def random_words(prompt: Prompt, draw: Random) -> list[str]:
    """Any words at all, and too many of them."""
    return [draw.choice(RESPONSE_WORDS) for _ in range(draw.randint(*RANDOM_WORDS))]


def repetitive(prompt: Prompt, draw: Random) -> list[str]:
    """One word over and over."""
    return [draw.choice((*asked_of(prompt)[1], *FILLERS))] * draw.randint(*REPEATED_WORDS)


def truncated(prompt: Prompt, draw: Random) -> list[str]:
    """The first one or two words of the expert."""
    return expert(prompt, draw)[: draw.randint(*TRUNCATED_WORDS)]


def swearing(prompt: Prompt, draw: Random) -> list[str]:
    """The expert's, with most words replaced by banned ones."""
    return [draw.choice(BANNED) if draw.random() < MOSTLY else word for word in expert(prompt, draw)]


KINDS: Mapping[str, Callable[[Prompt, Random], list[str]]] = {
    "random": random_words, "repetitive": repetitive, "truncated": truncated, "banned": swearing}
"""Of bad responses, equally often."""


# --- records ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """A prompt with two responses, the better one first.

    Attributes:
        prompt: type and content words.
        texts: two different responses; of equal totals either may be the first.
        bad: which of them are bad.
    """

    prompt: Prompt
    texts: tuple[str, str]
    bad: tuple[bool, bool]

    def pair(self, *, flipped: bool = False) -> PreferencePair:
        """As preference data, with the rewards of both and what is known of them, which is for measuring only."""
        sides = (1, 0) if flipped else (0, 1)
        worth = [{name: reward(self.prompt, self.texts[i], True) for name, reward in REWARDS.items()} for i in sides]
        meta = {KNOWN_BAD: dict(zip(SIDES, (self.bad[i] for i in sides), strict=True)),
                "rewards": dict(zip(SIDES, worth, strict=True))}
        prompt = Prompt(self.prompt.id, self.prompt.messages, self.prompt.text, meta)
        return PreferencePair(prompt, self.texts[sides[0]], self.texts[sides[1]])

    def demonstrations(self) -> list[Demonstration]:
        """Both responses, for imitation."""
        return [Demonstration(Prompt(f"{self.prompt.id}-{i}", self.prompt.messages), text)
                for i, text in enumerate(self.texts)]


def prompts(n: int, seed: int) -> list[Prompt]:
    """Different prompts."""
    draw, found = python_stream(seed, "offline world", "prompts"), dict[str, None]()
    while len(found) < n:
        found[" ".join((draw.choice(tuple(WINDOWS)), *draw.sample(CONTENT, PER_PROMPT)))] = None
    return [Prompt(f"p{i}", (Message("user", text),)) for i, text in enumerate(found)]


def answered(prompt: Prompt, noise: float, seed: int) -> Answered:
    """Two responses, each bad with chance `noise`, independently of the other.

    The good and the bad response that could stand in each place, and the number that decides between them, are the same
    at all noise levels of a seed: more noise makes more of the same responses bad.
    """
    drawn = [candidates(prompt, side, seed) for side in range(2)]
    found = [(text[u < noise], u < noise) for u, text in drawn]
    again = 2
    while found[0][0] == found[1][0]:  # such a pair has no better response
        found[1] = (candidates(prompt, again, seed)[1][found[1][1]], found[1][1])
        again += 1
    worth = [total(prompt, text) for text, _ in found]
    coin = python_stream(seed, "offline world", "tie", prompt.id).randrange(2)
    first = coin if worth[0] == worth[1] else int(worth[1] > worth[0])
    (better, bad), (worse, worse_bad) = found[first], found[1 - first]
    return Answered(prompt, (better, worse), (bad, worse_bad))


def candidates(prompt: Prompt, side: int, seed: int) -> tuple[float, tuple[str, str]]:
    """A number between 0 and 1, a good response and a bad one."""
    draw = python_stream(seed, "offline world", "response", prompt.id, side)
    bad = KINDS[draw.choice(tuple(KINDS))]
    return draw.random(), (" ".join(expert(prompt, draw)), " ".join(bad(prompt, draw)))


# --- files -----------------------------------------------------------------------------------------------------------


def write_world(folder: Path, sizes: Mapping[str, int], noise: float, seed: int) -> None:
    """Pairs, the same with labels turned over, and single responses of each split; what is there stays.

    Args:
        folder: to make.
        sizes: prompts of each split; `quarter` is a part of `train`.
        noise: chance that a response is bad.
        seed: of everything.
    """
    if folder.exists():
        return
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    everything = prompts(sum(sizes.values()), seed)
    for split, n in sizes.items():
        part, everything = everything[:n], everything[n:]
        told = [answered(prompt, noise, seed) for prompt in part]
        write_split(beside, split, told, seed)
        if split == "train":
            write_split(beside, "quarter", told[: max(1, n // 4)], seed)
    beside.rename(folder)


def write_split(folder: Path, split: str, told: Sequence[Answered], seed: int) -> None:
    """Three files."""
    turned = {*python_stream(seed, "offline world", "flipped", split).sample(range(len(told)),
                                                                          round(FLIPPED * len(told)))}
    write_records([one.pair() for one in told], folder / f"{split}-pairs.jsonl")
    write_records([one.pair(flipped=i in turned) for i, one in enumerate(told)], folder / f"{split}-flipped.jsonl")
    write_records([row for one in told for row in one.demonstrations()], folder / f"{split}-responses.jsonl")


def write_tokenizer(folder: Path) -> None:
    """One token per word, with a chat template; what is there stays."""
    if (folder / "tokenizer.json").exists():
        return
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = (*WINDOWS, *RESPONSE_WORDS)
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *words))}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
                                   unk_token="<unk>", additional_special_tokens=["<user>", "<assistant>"])
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)
