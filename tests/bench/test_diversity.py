"""Diversity: both published definitions of distinct-n, entropy and self-BLEU, by hand and against published figures."""

import gzip
import json
import math
from pathlib import Path

import pytest
from tolerances import RELATIVE64

from keel.bench.diversity import copied, distinct_ratio, distinctness, diversities, ngram_entropy, self_bleu

HH = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf"
TWO = ["The cat sat", "the  cat", ""]
"""Definition (a): the cat sat | the cat; definition (b): The cat sat | the "" cat | ""."""


def test_the_two_definitions_of_distinct_n_differ_in_case_in_spaces_and_in_what_they_divide_by():
    # (a) words the, cat, sat of 5; pairs the-cat, cat-sat of 3; one triple of one.
    assert [distinct_ratio(TWO, n) for n in (1, 2, 3)] == [pytest.approx(x) for x in (3 / 5, 2 / 3, 1 / 1)]
    # (b) The, cat, sat, the, "" of 3 + 3 + 1 words; pairs The-cat, cat-sat, the-"", ""-cat; two triples.
    assert [distinctness(TWO, n) for n in (1, 2, 3)] == [pytest.approx(x) for x in (5 / 7, 4 / 7, 2 / 7)]


def test_n_grams_do_not_cross_from_one_response_into_the_next():
    assert distinct_ratio(["a b", "c d"], 2) == 1.0 and distinct_ratio(["a", "b"], 2) == 0.0


@pytest.mark.parametrize("empty", [[], [""], ["", " "]])
def test_nothing_said_has_no_diversity(empty):
    assert [distinct_ratio(empty, n) for n in (1, 2, 3)] == [0, 0, 0] and ngram_entropy(empty, 1) == 0
    assert distinctness(empty, 3) == 0
    assert distinctness([""], 1) == 1  # one empty word of one


def test_entropy_is_that_of_the_n_grams_of_the_whole_corpus():
    # a a b c: 1/2, 1/4, 1/4
    assert ngram_entropy(["a A", "b c"], 1) == pytest.approx(1.5 * math.log(2), rel=RELATIVE64)
    assert ngram_entropy(["a b c d"], 2) == pytest.approx(math.log(3), rel=RELATIVE64)
    assert ngram_entropy(["x x x"], 1) == 0


def test_self_bleu_is_100_for_one_text_said_twice_and_0_without_a_common_word():
    same = "the cat sat on the mat"
    assert self_bleu([same, same]) == pytest.approx(100, rel=RELATIVE64)
    assert self_bleu(["one two three four", "five six seven eight"]) == 0
    assert self_bleu(["only"]) is None and self_bleu([]) is None


def test_self_bleu_of_a_worked_example():
    # Against "a b c x": 3 of 4 words, 2 of 3 pairs, 1 of 2 triples; none of 1 quadruple, which smoothing makes half.
    expected = 100 * math.exp((math.log(3 / 4) + math.log(2 / 3) + math.log(1 / 2) + math.log(1 / 2)) / 4)
    assert self_bleu(["a b c d", "a b c x"]) == pytest.approx(expected, rel=RELATIVE64)


def test_empty_responses_are_alike_among_themselves_and_like_nothing_else():
    assert self_bleu(["", " "]) == 100
    assert self_bleu(["", "a b"]) == 0
    assert self_bleu(["", "", "a b c d"]) == pytest.approx(200 / 3)


@pytest.mark.parametrize("response, fewest, expected", [
    # "the cat sat" and "on a mat" of 3 words each, "red" stands nowhere: 6 of 7 words, 9 + 9 by 7.
    ("The cat sat red on a mat", 2, (6 / 7, 18 / 7)),
    # "mat" alone is a fragment of one word.
    ("mat red the cat", 2, (2 / 4, 4 / 4)), ("mat red the cat", 1, (3 / 4, 5 / 4)),
    # The longest run counts, wherever it stands: "a mat", not the first "a".
    ("a mat", 2, (1.0, 2.0)), ("red blue", 1, (0.0, 0.0)), ("", 1, (0.0, 0.0)),
    ("the cat sat the cat sat", 2, (1.0, 3.0))])
def test_what_is_copied_are_the_longest_runs_that_stand_in_the_knowledge(response, fewest, expected):
    assert copied("a b the cat  sat on a mat", response, fewest=fewest) == pytest.approx(expected, rel=RELATIVE64)


def test_nothing_is_copied_of_no_knowledge_and_one_word_is_no_fragment_unless_asked():
    assert copied("", "a b") == (0, 0) and copied("cat", "cat") == (0, 0) and copied("cat", "Cat", fewest=1) == (1, 1)


def test_sets_of_different_size_are_compared_at_equal_numbers():
    many = [f"w{i} x{i} y{i}" for i in range(50)]
    found = diversities({"few": many[:10], "many": many + many}, seed=0, most_self_bleu=5)
    assert [row["n"] for row in found.values()] == [10, 10] and [row["self_bleu_n"] for row in found.values()] == [5, 5]
    assert found["few"]["distinct_ratio_1"] == 1.0
    assert found["many"] == diversities({"few": many[:10], "many": many + many}, seed=0, most_self_bleu=5)["many"]
    other = diversities({"few": many[:10], "many": [*many[:20], *["same thing"] * 30]}, seed=1, most_self_bleu=5)
    assert 0 < other["many"]["distinct_ratio_1"] < 1


def test_models_that_said_the_same_have_the_same_diversity_for_the_same_draw():
    texts = [f"a{i % 7} b{i % 3}" for i in range(40)]
    found = diversities({"one": texts, "other": list(texts)}, seed=3, most_self_bleu=10)
    assert found["one"] == found["other"]


def test_the_order_of_responses_changes_no_corpus_number():
    texts = ["a b c", "b c d", "a a", ""]
    one, other = (diversities({"x": given}, seed=0, most_self_bleu=9)["x"] for given in (texts, texts[::-1]))
    assert one == pytest.approx(other, rel=RELATIVE64)


@pytest.mark.skipif(not HH.is_dir(), reason="the HH-RLHF test files are not on this machine")
def test_the_published_row_of_human_chosen_test_responses():
    """Distinct-1/2/3 by definition (a) and mean words, as published for A-LoL's test responses."""
    published = {"harmless_base": (30.0, .135, .525, .829), "helpful_base": (37.9, .157, .575, .866),
                 "helpful_online": (83.1, .176, .656, .910)}
    pooled = []
    for name, row in published.items():
        texts = [record["chosen"] for record in _evaluated(name)]
        pooled += texts
        assert _row(texts) == row, name
    assert len(pooled) == 5573 and _row(pooled) == (43.6, .111, .511, .827)


@pytest.mark.skipif(not HH.is_dir(), reason="the HH-RLHF test files are not on this machine")
def test_the_published_rewards_of_test_responses():
    """Mean sigmoid of the stored score times 100, chosen and rejected, and the words of the rejected ones."""
    published = {"harmless_base": (54.8, 50.0, 36.8), "helpful_base": (40.3, 34.3, 30.5),
                 "helpful_online": (61.6, 59.4, 87.8)}
    pooled = []
    for name, row in published.items():
        pooled += _evaluated(name)
        assert _worth(_evaluated(name)) == row, name
    assert _worth(pooled) == (50.2, 45.4, 44.1)


def _evaluated(name: str) -> list[dict]:
    with gzip.open(HH / f"hh_test.{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [record for record in records if not record["eval_excluded"]]


def _worth(records: list[dict]) -> tuple[float, ...]:
    means = [100 * sum(1 / (1 + math.exp(-record["rewards"][side])) for record in records) / len(records)
             for side in ("chosen", "rejected")]
    words = sum(len(record["rejected"].split()) for record in records) / len(records)
    return tuple(round(x, 1) for x in (*means, words))


def _row(texts: list[str]) -> tuple[float, ...]:
    words = sum(len(text.split()) for text in texts) / len(texts)
    return (round(words, 1), *(round(distinct_ratio(texts, n), 3) for n in (1, 2, 3)))
