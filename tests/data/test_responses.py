"""Single responses with the rewards that a file holds for them: of every layout, in order, and what cannot be."""

import json
import math

import pytest
import tiny

from keel.data.kinds import OF_PAIR
from keel.data.load import read_responses
from keel.data.records import Demonstration, Message, Prompt
from keel.data.render import render_demonstrations, template
from keel.errors import DataError

PAIR = {"id": "p", "prompt": "why", "chosen": "good", "rejected": "bad"}
RANKING = {"id": "k", "prompt": "why", "responses": ["a", "b", "c"], "ranks": [2, 3, 1]}


def read(path, *rows, **how):
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_responses(file, **how)[0]


def told(found):
    return [(one.id, one.record, one.response, dict(one.grades)) for one in found]


def test_a_demonstration_is_one_response_under_the_id_of_its_record(tmp_path):
    rows = [{"id": "d", "prompt": "why", "completion": "so", "rewards": {"nice": 0.5, "long": -1}},
            {"id": "e", "prompt": "why", "completion": "so", "rewards": 2}, {"prompt": "why", "completion": "so"}]
    assert told(read(tmp_path, *rows)) == [
        ("d", "", "so", {"nice": 0.5, "long": -1.0}), ("e", "", "so", {"reward": 2.0}), ("rows:3", "", "so", {})]
    assert read(tmp_path, rows[0])[0].prompt.messages == (Message("user", "why"),)


def test_a_pair_is_its_chosen_and_its_rejected_response(tmp_path):
    both = [("p/chosen", "p", "good", {"n": 2.0}), ("p/rejected", "p", "bad", {"n": 1.0})]
    assert told(read(tmp_path, PAIR | {"rewards": {"chosen": {"n": 2}, "rejected": {"n": 1}}})) == both
    assert told(read(tmp_path, PAIR | {"rewards": [{"n": 2}, {"n": 1}]})) == both
    assert told(read(tmp_path, PAIR | {"rewards": [2, 1]}, which="chosen")) == [
        ("p/chosen", "p", "good", {"reward": 2.0})]
    assert [dict(one.grades) for one in read(tmp_path, PAIR)] == [{}, {}]


def test_a_ranking_is_its_responses_the_best_first_with_their_own_rewards(tmp_path):
    found = read(tmp_path, RANKING | {"rewards": [0.2, 0.1, 0.9]})
    assert told(found) == [("k/1", "k", "c", {"reward": 0.9}), ("k/2", "k", "a", {"reward": 0.2}),
                           ("k/3", "k", "b", {"reward": 0.1})]
    assert told(read(tmp_path, RANKING, which="chosen")) == [("k/1", "k", "c", {})]
    by_score = {"id": "k", "prompt": "why", "responses": ["a", "b"], "scores": [0.1, 0.9], "rewards": [1, 2]}
    assert told(read(tmp_path, by_score)) == [("k/1", "k", "b", {"reward": 2.0}), ("k/2", "k", "a", {"reward": 1.0})]


def test_rewards_beside_other_columns_and_in_meta_are_the_same(tmp_path):
    row = {"id": "d", "prompt": "why", "completion": "so"}
    for found in (read(tmp_path, row | {"rewards": {"n": 1}}), read(tmp_path, row | {"meta": {"rewards": {"n": 1}}})):
        assert dict(found[0].grades) == {"n": 1.0}


def test_what_a_pair_says_of_itself_goes_with_its_responses_where_it_is_not_usual(tmp_path):
    """A weight, a soft label, a margin; of one response such a column is what any column is."""
    for own in ({"weight": 0.0}, {"label_prob": 0.7, "margin": -1.5}):
        assert [one.prompt.meta for one in read(tmp_path, PAIR | own)] == [{OF_PAIR: own}] * 2
    assert [dict(one.prompt.meta) for one in read(tmp_path, PAIR | {"weight": 1, "label_prob": 1.0, "margin": 0},
                                                  which="chosen")] == [{}]
    assert read(tmp_path, {"id": "d", "prompt": "why", "completion": "so", "weight": 0})[0].prompt.meta == {"weight": 0}


@pytest.mark.parametrize(("row", "message"), [
    (PAIR | {"weight": "high"}, "not a number"),
    ({"id": "q", "prompt": "why"}, "a response"),
    (PAIR | {"rewards": 0.5}, "2 responses and rewards that are"),
    (PAIR | {"rewards": [1, 2, 3]}, "2 responses and rewards that are"),
    (PAIR | {"rewards": {"good": 1, "bad": 2}}, "2 responses and rewards that are"),
    (RANKING | {"rewards": [1, 2]}, "3 responses and rewards that are"),
    (PAIR | {"rewards": ["1", "2"]}, "not a number"),
    ({"id": "d", "prompt": "why", "completion": "so", "rewards": {"n": None}}, "not a number"),
    ({"id": "d", "prompt": "why", "completion": "so", "rewards": {"n": True}}, "not a number"),
    ({"id": "d", "prompt": "why", "completion": "so", "rewards": "high"}, "not a number"),
    ({"id": "d", "prompt": "why", "completion": "so", "rewards": [1]}, "not a number"),
    ({"id": "d", "prompt": "why", "completion": ""}, "empty"),
])
def test_what_cannot_be_read_is_an_error_with_its_place(tmp_path, row, message):
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, row)
    assert "rows.jsonl:1" in str(caught.value)


def test_a_bad_row_may_be_skipped_and_nothing_left_is_an_error(tmp_path):
    bad = PAIR | {"rewards": 1, "id": "b"}
    assert [one.id for one in read(tmp_path, PAIR, bad, on_bad_record="skip")] == ["p/chosen", "p/rejected"]
    with pytest.raises(DataError, match="no record left"):
        read(tmp_path, bad, on_bad_record="skip")
    with pytest.raises(DataError, match="was already used at"):
        read(tmp_path, PAIR, PAIR)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" + "0" * 400])
def test_a_reward_that_is_not_finite_is_read_as_it_stands(tmp_path, number):
    """Never turned into another number: who sums rewards refuses it, with the ids of the responses."""
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"id": "d", "prompt": "why", "completion": "so", "rewards": {{"n": {number}}}}}\n')
    assert not math.isfinite(read_responses(file)[0][0].grades["n"])


def test_a_response_is_cut_before_the_row_is_made_to_fit_and_loses_its_end():
    words = template(tiny.tokenizer())
    prompt = Prompt("a", (Message("user", "why why why why"),))
    rows = [Demonstration(prompt, "yes please no"), Demonstration(prompt, "yes please")]
    (whole, short), cut = render_demonstrations(words, rows, 64)
    assert whole.ids[-1] == short.ids[-1] == 2 and cut.n_cut == 0
    (first, second), cut = render_demonstrations(words, rows, 64, max_response=3)
    assert first.ids == whole.ids[:-1] and 2 not in first.ids[first.n_prompt :] and second.ids == short.ids
    assert (cut.n_cut, cut.n_dropped, cut.n_rows) == (1, 0, 2)
    # The prompt then loses its first tokens, behind the one that begins every row, as far as the cut response needs it.
    room = whole.n_prompt + 2
    (left, _), cut = render_demonstrations(words, rows, room, "truncate_left", max_response=3)
    assert left.ids == [whole.ids[0], *whole.ids[2:-1]] and cut.n_cut == 2
