"""How varied a set of responses is, and how much of each one is copied, from their text alone.

What is said of a set falls, or rises, as the set grows: sets are compared at equal numbers of responses only, and
`diversities` sees to that. N-grams never cross from one response into the next.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from keel.rng import python_stream

__all__ = ["ENTROPY_SIZES", "SIZES", "copied", "distinct_ratio", "distinctness", "diversities", "ngram_entropy",
           "self_bleu"]

SIZES = (1, 2, 3)
ENTROPY_SIZES = (1, 2)
IDENTICAL = 100.0


def distinct_ratio(responses: Sequence[str], n: int) -> float:
    """Distinct-n, definition (a): different n-grams of all responses by all n-grams of all responses.

    Words are lower-cased and split on white space. A response of fewer than n words has no n-gram; 0 where no response
    has one. (Baheti et al. 2024, arXiv:2305.14718, generation tasks.)
    """
    counts = Counter(_ngrams(responses, n, lambda text: text.lower().split()))
    return len(counts) / counts.total() if counts else 0.0


def distinctness(responses: Sequence[str], n: int) -> float:
    """Distinct-n, definition (b): different n-grams of all responses by the number of their words, whatever n is.

    Case is kept, and text is split on single spaces, so that two spaces in a row make an empty word and an empty
    response is one word. 0 where there is no response. (Baheti et al. 2024, arXiv:2305.14718, HHA.)
    """
    def words(text: str) -> list[str]:
        return text.split(" ")

    n_words = sum(len(words(text)) for text in responses)
    return len(Counter(_ngrams(responses, n, words))) / n_words if n_words else 0.0


def ngram_entropy(responses: Sequence[str], n: int) -> float:
    """Entropy of the n-grams of all responses, in nats: -sum of p ln p, p being an n-gram's share of all n-grams.

    keel's own: the paper's code has none. Words as in `distinct_ratio`; 0 where no response has an n-gram.
    """
    counts = Counter(_ngrams(responses, n, lambda text: text.lower().split()))
    total = counts.total()
    return math.fsum(-k / total * math.log(k / total) for k in counts.values()) if counts else 0.0


def self_bleu(responses: Sequence[str]) -> float | None:
    """Mean BLEU of each response against all others, 0 to 100; the higher, the more alike. None for fewer than two.

    Sentence BLEU of sacrebleu: tokenizer 13a, exponential smoothing, orders up to the response's own length. A response
    without words scores 100 where another one has none either, else 0. (Zhu et al. 2018, arXiv:1802.01886.)
    """
    from sacrebleu.metrics.bleu import BLEU

    if len(responses) < 2:
        return None
    bleu = BLEU(effective_order=True)
    n_empty = sum(not text.strip() for text in responses)
    scores = []
    for i, text in enumerate(responses):
        if text.strip():
            scores.append(bleu.sentence_score(text, [*responses[:i], *responses[i + 1:]]).score)
        else:
            scores.append(IDENTICAL if n_empty > 1 else 0.0)
    return math.fsum(scores) / len(scores)


def copied(knowledge: str, response: str, *, fewest: int = 2) -> tuple[float, float]:
    """Coverage and density: how much of a response stands in the knowledge it was given, and in how long pieces.

    From left to right the longest run of words that stands in the knowledge is a fragment; then comes what follows it.
    Coverage is the sum of the fragments' lengths by the words of the response, density the sum of their squares.
    Fragments of fewer than `fewest` words do not count, as in the comparison of Baheti et al. 2024, arXiv:2305.14718;
    with fewest = 1 it is the definition of Grusky et al. 2018, arXiv:1804.11283. Words are lower-cased and split on
    white space. Both are 0 for a response without words.
    """
    source, words = knowledge.lower().split(), response.lower().split()
    lengths, at = [], 0
    while at < len(words):
        longest = max((_run(source[i:], words[at:]) for i in range(len(source))), default=0)
        lengths.append(longest)
        at += max(longest, 1)
    kept = [length for length in lengths if length >= fewest]
    n = max(len(words), 1)
    return sum(kept) / n, sum(length * length for length in kept) / n


def _run(source: Sequence[str], words: Sequence[str]) -> int:
    """Words that both begin with."""
    return next((k for k, (a, b) in enumerate(zip(source, words, strict=False)) if a != b),
                min(len(source), len(words)))


def diversities(corpora: Mapping[str, Sequence[str]], *, seed: int, most_self_bleu: int,
                ) -> dict[str, dict[str, float | int | None]]:
    """All of these for several sets of responses, at equal numbers of responses.

    Args:
        corpora: name -> responses. Sets of one size are taken to answer the same prompts in one order, and what is
            drawn is drawn at the same places. Of a larger set as many are drawn as the smallest one has.
        seed: of what is drawn.
        most_self_bleu: responses that self-BLEU is computed on, whose cost grows with their square.
    """
    n = min(map(len, corpora.values()), default=0)
    found = {}
    for name, whole in corpora.items():
        texts = _drawn(whole, n, seed, "diversity")
        few = _drawn(texts, most_self_bleu, seed, "self-bleu")
        found[name] = {
            "n": n, **{f"distinct_ratio_{k}": distinct_ratio(texts, k) for k in SIZES},
            **{f"distinctness_{k}": distinctness(texts, k) for k in SIZES},
            **{f"entropy_{k}": ngram_entropy(texts, k) for k in ENTROPY_SIZES},
            "self_bleu": self_bleu(few), "self_bleu_n": len(few)}
    return found


def _drawn(texts: Sequence[str], n: int, seed: int, purpose: str) -> Sequence[str]:
    """All, or n of them in their order."""
    if len(texts) <= n:
        return texts
    return [texts[i] for i in sorted(python_stream(seed, purpose, len(texts)).sample(range(len(texts)), n))]


def _ngrams(responses: Sequence[str], n: int, words_of: Callable[[str], list[str]]) -> Iterator[tuple[str, ...]]:
    for text in responses:
        words = words_of(text)
        yield from zip(*(words[i:] for i in range(n)), strict=False)
