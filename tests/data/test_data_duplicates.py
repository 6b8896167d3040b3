"""Pairs that occur twice, nearly twice or the other way round, and who labelled what."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keel.data.duplicates import Ratings, contradictions, near_duplicates, ratings, repeats
from keel.data.records import Message, PreferencePair, Prompt

STORY = "the cat sat on the mat and looked at the dog who was asleep in the sun until the rain came down on them both"
OTHER = "we add seven and five which makes twelve then take away two and find ten so that the answer is ten in the end"


def pair(chosen, rejected, prompt="why?", **meta):
    return PreferencePair(Prompt("x", (Message("user", prompt),), None, meta), chosen, rejected)


def test_repeats_are_to_the_letter():
    found = [pair("a", "b"), pair("a", "B"), pair("a", "b", note=1), pair("b", "a"), pair("a", "B"),
             pair("a", "b", "x")]
    assert repeats(found) == [[0, 2], [1, 4]]


def test_plain_text_and_messages_are_different_prompts():
    plain = PreferencePair(Prompt("y", (), "why?"), "a", "b")
    assert repeats([pair("a", "b"), plain, plain]) == [[1, 2]]
    assert contradictions([pair("a", "b"), PreferencePair(Prompt("y", (), "why?"), "b", "a")]) == []


def test_near_duplicates_overlook_case_space_order_and_a_word_in_twenty():
    found = [pair(STORY, OTHER), pair("yes", "no"), pair(OTHER.upper(), STORY.replace(" ", "\n ")),
             pair(STORY + " again", OTHER), pair("no", "yes , maybe")]
    assert near_duplicates(found) == [[0, 2, 3]]
    assert near_duplicates(found, threshold=1.0) == [[0, 2]]
    assert near_duplicates([]) == [] == near_duplicates(found[1:2])


def test_a_chain_of_small_changes_is_one_group():
    """Each pair resembles the next; the ends share no word."""
    words = [f"word{i}" for i in range(60)]
    chain = [pair(" ".join(words[start:start + 30]), "no", "so") for start in range(0, 31, 2)]
    assert near_duplicates(chain) == [list(range(len(chain)))]
    assert near_duplicates([chain[0], chain[-1]]) == []


def exact(one, other, n_words):
    """Jaccard similarity by the definition, with the words themselves."""
    sets = []
    for record in (one, other):
        texts = [record.prompt.messages[0].content, record.chosen, record.rejected]
        split = [tuple(text.lower().split()) for text in texts]
        sets.append({words[i:i + n_words] for words in split for i in range(max(len(words) - n_words + 1, 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


TEXT = st.lists(st.sampled_from("abc"), min_size=1, max_size=6).map(" ".join)


@given(found=st.lists(st.builds(pair, TEXT, TEXT, TEXT), max_size=8), n_words=st.integers(1, 4),
       threshold=st.sampled_from([0.5, 0.8, 1.0]), data=st.data())
def test_groups_hold_neighbours_all_copies_and_do_not_depend_on_order(found, n_words, threshold, data):
    groups = near_duplicates(found, threshold=threshold, n_words=n_words)
    together = {index: set(group) for group in groups for index in group}
    for index, others in together.items():
        assert any(exact(found[index], found[other], n_words) >= threshold for other in others - {index})
    for one, other in permutations(range(len(found)), 2):
        if exact(found[one], found[other], n_words) == 1:
            assert other in together[one]
    order = data.draw(st.permutations(range(len(found))))
    again = near_duplicates([found[index] for index in order], threshold=threshold, n_words=n_words)
    assert {frozenset(order[index] for index in group) for group in again} == set(map(frozenset, groups))


def test_thresholds_and_sequences_out_of_range():
    for options in ({"threshold": 0.0}, {"threshold": 1.1}, {"n_words": 0}):
        with pytest.raises(ValueError, match=r"is outside \(0, 1\], or n_words="):
            near_duplicates([], **options)


def test_opposite_labels_and_circles_are_contradictions():
    found = [pair("a", "b"), pair("B ", " A"), pair("a", "b"), pair("b", "a", "what?"),
             pair("x", "y", "c"), pair("y", "z", "c"), pair("z", "x", "c"), pair("x", "z", "d"), pair("y", "x", "c "),
             pair("Z", "z", "c")]
    assert contradictions(found) == [[0, 1, 2], [4, 5, 6], [4, 8]]


@given(order=st.permutations("abcde"), n=st.integers(0, 10))
def test_labels_that_follow_one_order_never_contradict(order, n):
    found = [pair(one, other) for i, one in enumerate(order) for other in order[i + 1:]][:n]
    assert contradictions(found + found) == []
    turned = found + [pair(record.rejected, record.chosen) for record in found]
    assert {tuple(group) for group in contradictions(turned) if len(group) == 2} == {(i, i + n) for i in range(n)}


def test_votes_by_comparison_and_annotator():
    found = [pair("a", "b", annotator="ann"), pair("b", "A", annotator="bob"), pair("c", "d", worker_id=7),
             pair("b", "a", annotator="ann"), pair("d", "c", annotator=None, rater="ann"), pair("e", "f")]
    assert ratings(found) == Ratings(("7", "ann", "bob"), ((0, 1, 3), (2, 4)), ((None, 1, 0), (1, 0, None)))
    assert ratings([pair("e", "f")]) == Ratings((), (), ())
