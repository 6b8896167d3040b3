"""Pairs that say the same thing twice, or the opposite of each other, and who labelled what how."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from keel.data.records import PreferencePair, Prompt
from keel.rng import python_stream

__all__ = ["ANNOTATORS", "Ratings", "contradictions", "near_duplicates", "ratings", "repeats"]

ANNOTATORS = ("annotator", "annotator_id", "worker", "worker_id", "rater", "rater_id", "labeler", "labeler_id")
"""Columns of meta that may name who labelled a pair; the first one that is there does."""

_HASHES, _ROWS = 64, 4  # 16 bands of 4: two documents with Jaccard similarity 0.8 share a band in 99.98% of draws
_LEEWAY = 0.15  # three standard errors of a similarity of 0.8 estimated from 64 hashes
_REMEMBERED = 8192

_Graph = dict[str, dict[str, list[int]]]
"""Response -> responses that lost against it -> indices of the pairs that say so."""


@dataclass(frozen=True)
class Ratings:
    """Votes on the comparisons that a file holds; a comparison is a prompt and two responses, whatever their order.

    Attributes:
        annotators: everybody who voted, in alphabetical order.
        indices: of the pairs of each comparison.
        votes: by comparison and annotator: 1 where the response that is first in the order of texts was preferred, 0
            where the other one was, none where there is no vote. Of several votes by one person the first counts.
    """

    annotators: tuple[str, ...]
    indices: tuple[tuple[int, ...], ...]
    votes: tuple[tuple[int | None, ...], ...]


def repeats(pairs: Sequence[PreferencePair]) -> list[list[int]]:
    """Groups of indices with the same prompt, chosen and rejected response, to the letter."""
    return _groups((pair.prompt.text, pair.prompt.messages, pair.chosen, pair.rejected) for pair in pairs)


def near_duplicates(
    pairs: Sequence[PreferencePair], *, threshold: float = 0.8, n_words: int = 3, seed: int = 0,
) -> list[list[int]]:
    """Groups of indices in which each pair resembles another one, found by MinHash with banding (Broder 1997).

    Pairs are compared as sets of word sequences of prompt and both responses, whichever is chosen, without regard to
    case and white space. Candidates share a band of four of 64 hashes; each is verified by the exact similarity.

    Args:
        pairs: their order changes the order of the groups only.
        threshold: least Jaccard similarity, in (0, 1]. Below about 0.6 banding misses some groups.
        n_words: words in a sequence.
        seed: of the hash functions.
    Raises:
        ValueError: the threshold is out of range, or a sequence has no word.
    """
    if not 0 < threshold <= 1 or n_words < 1:
        raise ValueError(f"threshold={threshold} is outside (0, 1], or n_words={n_words} below 1")
    words = _Words()
    shingles = lru_cache(_REMEMBERED)(lambda index: _shingles(pairs[index], words, n_words))
    draw = python_stream(seed, "minhash")
    factors, shifts = (np.array([draw.getrandbits(64) | odd for _ in range(_HASHES)], np.uint64) for odd in (1, 0))
    # Universal hashing by multiply and shift (Dietzfelbinger et al. 1996); sums and products wrap around.
    signatures = np.stack([
        ((shingles(index)[:, None] * factors + shifts) >> np.uint64(32)).min(0).astype(np.uint32)
        for index in range(len(pairs))]) if pairs else np.empty((0, _HASHES), np.uint32)
    same = _Union(len(pairs))
    for first in range(0, _HASHES, _ROWS):
        band = np.ascontiguousarray(signatures[:, first:first + _ROWS])
        for bucket in _groups(row.tobytes() for row in band):
            _join(bucket, signatures, same, lambda one, other: _jaccard(shingles(one), shingles(other)) >= threshold,
                  threshold - _LEEWAY)
    return _groups(same.root(index) for index in range(len(pairs)))


def contradictions(pairs: Sequence[PreferencePair]) -> list[list[int]]:
    """Groups of indices whose labels cannot all be right: A over B and B over A; A over B, B over C and C over A.

    Prompts and responses are the same where they differ in case and white space only. Each group holds every pair that
    compares these two or three responses in this direction around.
    """
    found: list[list[int]] = []
    prompts: dict[Hashable, _Graph] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for index, pair in enumerate(pairs):
        prompts[_prompt_key(pair.prompt)][_plain(pair.chosen)][_plain(pair.rejected)].append(index)
    for graph in prompts.values():
        edges = [(winner, loser) for winner, losers in graph.items() for loser in losers]
        for one, other in edges:
            if one < other and one in graph.get(other, ()):
                found.append(sorted(graph[one][other] + graph[other][one]))
            for third in graph.get(other, {}):
                # Each cycle is met once, at its first text; a response against itself in other letters is none.
                if one < min(other, third) and other != third and one in graph.get(third, ()):
                    found.append(sorted(graph[one][other] + graph[other][third] + graph[third][one]))
    return sorted(found)


def ratings(pairs: Sequence[PreferencePair]) -> Ratings:
    """Who labelled which comparison how, of the pairs whose meta names an annotator (see `ANNOTATORS`)."""
    found: dict[Hashable, dict[str, int]] = defaultdict(dict)
    indices: dict[Hashable, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        who = next((pair.prompt.meta[name] for name in ANNOTATORS if pair.prompt.meta.get(name) is not None), None)
        if who is not None:
            sides = _plain(pair.chosen), _plain(pair.rejected)
            comparison = (_prompt_key(pair.prompt), *sorted(sides))
            found[comparison].setdefault(str(who), int(sides[0] < sides[1]))
            indices[comparison].append(index)
    annotators = tuple(sorted({who for votes in found.values() for who in votes}))
    return Ratings(annotators, tuple(map(tuple, indices.values())),
                   tuple(tuple(map(votes.get, annotators)) for votes in found.values()))


class _Words(dict[str, int]):
    """The hash of every word met so far; no word's depends on the others."""

    def __missing__(self, word: str) -> int:
        self[word] = crc32(word.encode())
        return self[word]


class _Union:
    """Which indices have been found to be the same."""

    def __init__(self, n: int) -> None:
        self.parents = list(range(n))

    def root(self, index: int) -> int:
        while self.parents[index] != index:
            self.parents[index] = index = self.parents[self.parents[index]]
        return index

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self.parents[high] = low


def _join(
    bucket: list[int], signatures: NDArray[np.uint32], same: _Union, alike: Callable[[int, int], bool], least: float,
) -> None:
    """Unite the documents of a bucket that are alike. What is united already is not compared again."""
    waiting = np.array(bucket)
    while len(waiting):
        reached, waiting = [int(waiting[0])], waiting[1:]
        while reached and len(waiting):
            one = reached.pop()
            near = waiting[(signatures[waiting] == signatures[one]).mean(1) >= least].tolist()
            joined = [other for other in near if same.root(one) == same.root(other) or alike(one, other)]
            for other in joined:
                same.join(one, other)
            reached += joined
            waiting = waiting[~np.isin(waiting, joined)]


def _shingles(pair: PreferencePair, words: _Words, n_words: int) -> NDArray[np.uint64]:
    """Hashes of all sequences of words, sorted, each once; 32 bits wide."""
    found = []
    for text in (_asked(pair.prompt), pair.chosen, pair.rejected):
        hashes = np.array([words[word] for word in text.casefold().split()], np.uint64)
        whole = np.zeros(max(len(hashes) - n_words + 1, min(len(hashes), 1)), np.uint64)
        # A text shorter than a sequence is one sequence.
        for place in range(min(n_words, len(hashes))):
            whole = (whole + hashes[place:place + len(whole)]) * np.uint64(0x9E3779B97F4A7C15)
        found.append(whole >> np.uint64(32))
    return np.unique(np.concatenate(found))


def _jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def _groups(keys: Iterable[Hashable]) -> list[list[int]]:
    """Indices with equal keys, groups of two or more, in the order of their first members."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        found[key].append(index)
    return [group for group in found.values() if len(group) > 1]


def _prompt_key(prompt: Prompt) -> Hashable:
    return _plain(prompt.text or ""), tuple((turn.role, _plain(turn.content)) for turn in prompt.messages)


def _asked(prompt: Prompt) -> str:
    return prompt.text if prompt.text is not None else "\n".join(turn.content for turn in prompt.messages)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
