"""Rankings and grades: from rows to records, to tokens, to a padded batch, and back to a file."""

import csv
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keel.batches import RankingBatch
from keel.data import (
    Graded,
    Message,
    Prompt,
    Ranking,
    RankingRow,
    check_graded,
    check_ranking,
    read_demonstrations,
    read_graded,
    read_pairs,
    read_prompts,
    read_rankings,
    render_rankings,
    template,
)
from keel.data import check as check_command
from keel.data import convert as convert_command
from keel.data import show as show_command
from keel.data.check import DataCheckConfig
from keel.data.collate import collate_rankings, ranking_batches
from keel.data.convert import DataConvertConfig
from keel.data.problems import RowError
from keel.data.show import DataShowConfig
from keel.data.write import write_records
from keel.errors import DataError

ASKED = (Message("user", "why?"),)
ROW = {"prompt": "why?", "responses": ["b", "a", "c"], "ranks": [2, 1, 2]}
SAID = [{"role": "assistant", "content": "b"}]


@pytest.mark.parametrize("row", [
    ROW, {"prompt": [{"role": "user", "content": "why?"}], "responses": [SAID, SAID[0] | {"content": "a"}, "c"],
          "ranks": [7, -1.5, 7]},
    {"prompt": "why?", "responses": ["b", "a", "c"], "scores": [0, 10, 0]}])
def test_ranks_and_scores_put_the_best_first_and_ties_keep_their_order(jsonl, row):
    (ranking,), report = read_rankings(jsonl(row))
    assert ranking == Ranking(Prompt("rows:1", ASKED), ("a", "b", "c"), (False, False, True))
    assert report.formats == {"ranking": 1}
    assert read_prompts(jsonl(row))[0] == [ranking.prompt]


def test_ranks_win_over_scores_which_stay_in_meta(jsonl):
    (ranking,), _ = read_rankings(jsonl(ROW | {"scores": [9, 0, 0], "domain": "d"}))
    assert ranking.responses == ("a", "b", "c") and ranking.prompt.meta == {"scores": [9, 0, 0], "domain": "d"}


def test_a_pair_is_a_ranking_of_two_and_a_ranking_is_no_pair(jsonl):
    path = jsonl({"prompt": "why?", "chosen": "a", "rejected": "b", "margin": 2, "strength_mean": 1, "strength_std": 1})
    assert read_rankings(path)[0] == [Ranking(Prompt("rows:1", ASKED), ("a", "b"), (False, False))]
    two = jsonl({"prompt": "why?", "responses": ["a", "b"], "ranks": [2, 1]})
    for read, what in ((read_pairs, "a pair"), (read_demonstrations, "a demonstration")):
        with pytest.raises(DataError, match=f"no columns for {what}; there are `prompt`, `responses`, `ranks`"):
            read(two)
    with pytest.raises(DataError, match=r"no columns for a ranking; there are `prompt`\n.*needs `responses`, `ranks`"):
        read_rankings(jsonl({"prompt": "why?"}))


def test_rankings_of_plain_text_and_of_tables(jsonl, tmp_path):
    (ranking,), _ = read_rankings(jsonl(ROW), as_text=True)
    assert ranking.prompt == Prompt("rows:1", (), "why?")
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROW))
        writer.writeheader()
        writer.writerow({name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in ROW.items()})
    assert read_rankings(tmp_path / "a.csv")[0][0].responses == ("a", "b", "c")


@pytest.mark.parametrize("row, kind, what", [
    (ROW | {"ranks": [1, 2]}, "ranks of unequal number", "3 responses and 2 ranks"),
    ({"prompt": "why?", "responses": ["a", "b"], "scores": [1]}, "ranks of unequal number", "2 responses and 1 scores"),
    (ROW | {"ranks": [1, 1, 1]}, "nothing ranked", "the 3 responses have no two different ranks"),
    (ROW | {"responses": ["a"], "ranks": [1]}, "nothing ranked", "the 1 responses have no two different ranks"),
    (ROW | {"responses": [], "ranks": []}, "nothing ranked", "the 0 responses have no two different ranks"),
    (ROW | {"responses": ["a", " a", "b"], "ranks": [1, 2, 3]}, "repeated response", "places 1 and 2 of the ranking"),
    (ROW | {"responses": ["a", "", "b"]}, "empty response", "response 1 of the ranking is empty"),
    (ROW | {"responses": "a"}, "wrong type", "responses is text, not a list"),
    (ROW | {"responses": ["a", 3, "b"]}, "wrong type", "responses, entry 2 is a number, not a list of messages"),
    (ROW | {"ranks": 1}, "wrong type", "ranks is a number, not a list of numbers"),
    (ROW | {"ranks": [1, 2, "x"]}, "wrong type", "ranks is text ('x'), not a number"),
    (ROW | {"ranks": [1, 2, float("nan")]}, "rank not finite", "one of the ranks is not finite"),
    (ROW | {"prompt": ""}, "empty turn", "turn 1 (user) is empty"),
])
def test_every_bad_ranking_is_named(jsonl, row, kind, what):
    with pytest.raises(DataError) as caught:
        read_rankings(jsonl(row))
    assert what in caught.value.what and caught.value.remedy
    _, report = read_rankings(jsonl({"id": "ok"} | ROW, row), on_bad_record="skip")
    assert report.dropped == {kind: 1}


def test_rankings_made_in_code_are_checked_by_the_same_rules():
    prompt = Prompt("x", ASKED)
    check_ranking(Ranking(prompt, ("a", "b"), (False, False)))
    with pytest.raises(RowError, match="1 flags of ties for 2 responses") as caught:
        check_ranking(Ranking(prompt, ("a", "b"), (False,)))
    assert caught.value.kind == "ties of unequal number"
    with pytest.raises(RowError, match="the 3 responses have no two different ranks"):
        check_ranking(Ranking(prompt, ("a", "b", "c"), (True, False, False)))


def test_check_show_and_convert_know_rankings(jsonl, tmp_path):
    path = jsonl(ROW | {"meta": {"k": 1}})
    report = check_command.run(DataCheckConfig(paths=str(path)))
    assert (report.kind, report.quantiles[-1]) == ("rankings", 5)
    (text,) = show_command.run(DataShowConfig(paths=str(path)))
    assert text.splitlines() == ["── rows:1", "user: why?", "rank 1: a", "rank 2: b", "rank 2: c", "meta: {'k': 1}"]
    for suffix in (".jsonl", ".parquet"):
        output = tmp_path / f"out{suffix}"
        convert_command.run(DataConvertConfig(paths=str(path), output=str(output)))
        assert read_rankings(output)[0] == read_rankings(path)[0]


WORD = st.text("abcdé\n ", min_size=1, max_size=6).filter(str.strip)


@st.composite
def rankings(draw, name="x"):
    responses = draw(st.lists(WORD, min_size=2, max_size=5, unique_by=str.strip))
    tied = draw(st.lists(st.booleans(), min_size=len(responses) - 1, max_size=len(responses) - 1).filter(
        lambda flags: not all(flags)))
    return Ranking(Prompt(name, (Message("user", draw(WORD)),)), tuple(responses), (False, *tied))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranking=rankings())
def test_what_is_written_is_read(tmp_path, ranking):
    path = tmp_path / "a.jsonl"
    write_records([ranking], path)
    assert read_rankings(path)[0] == [ranking]
    path.unlink()


def test_rendering_keeps_all_responses_on_one_prompt(words):
    ranking = Ranking(Prompt("x", (Message("user", "hi there"),)), ("yes", "no no", "so"), (False, False, True))
    (row,), counts = render_rankings(template(words), [ranking], 64)
    assert (len(row.prompt_ids), [len(ids) for ids in row.response_ids]) == (6, [2, 3, 2])
    assert (row.longest, row.record_id, counts.n_dropped) == (9, "x", 0)
    assert [one.ids for one in row.rows] == [row.prompt_ids + ids for ids in row.response_ids]
    assert {one.n_prompt for one in row.rows} == {6}
    with pytest.raises(DataError, match="none of 1 rows fits into 8 tokens"):
        render_rankings(template(words), [ranking], 8)
    same_start = Ranking(ranking.prompt, ("yes no", "so", "yes so"), (False,) * 3)
    kept, counts = render_rankings(template(words), [ranking, same_start], 7, "truncate_response")
    assert (len(kept), counts.n_cut, counts.n_dropped) == (1, 1, 1)


def rows():
    def made(name, prompt, responses, tied):
        record = Ranking(Prompt(name, ASKED), tuple(map(str, range(len(responses)))), tied)
        return RankingRow(prompt, tuple(responses), record)

    return [made("a", [1, 2], [[3], [4, 5]], (False, False)),
            made("b", [6], [[7, 8], [9], [7]], (False, True, False))]


def test_a_batch_by_hand():
    batch = collate_rankings(rows(), 0)
    assert batch.tokens.ids.tolist() == [[1, 2, 3, 0], [1, 2, 4, 5], [6, 7, 8, 0], [6, 9, 0, 0], [6, 7, 0, 0]]
    assert batch.tokens.record_ids == ("a", "a", "b", "b", "b")
    assert batch.present.int().tolist() == [[1, 1, 0], [1, 1, 1]] and batch.tied.int().tolist() == [[0] * 3, [0, 1, 0]]
    assert batch.first_rows == [0, 0, 2, 2, 2]
    assert batch.by_place(torch.arange(1.0, 6.0)).tolist() == [[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]


@given(found=st.lists(st.sampled_from(rows()), min_size=1, max_size=9), budget=st.integers(1, 40))
def test_a_ranking_is_never_cut_in_two(found, budget):
    parts = ranking_batches(found, micro_tokens=budget, pad_id=0)
    assert sum(len(part.present) for part in parts) == len(found)
    for part in parts:
        assert part.tokens.ids.numel() <= budget or len(part.present) == 1
        assert len(part.first_rows) == len(part.tokens.ids) == int(part.present.sum())


def test_a_prompt_may_be_computed_once():
    whole, shared, auto = (ranking_batches(rows(), micro_tokens=100, pad_id=0, shared_prompt=how)[0].tokens
                           for how in ("never", "always", "auto"))
    # 1 2 3 | 4 5 | 6 7 8 | 9 | nothing, for 6 7 begins the best response; the padding is gone too.
    assert whole.joined is None and shared.joined.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert shared.joined.places.tolist() == [[0, 1, 2, 0], [0, 1, 3, 4], [5, 6, 7, 0], [5, 8, 0, 0], [5, 6, 0, 0]]
    assert auto.joined is not None
    assert isinstance(ranking_batches(rows(), micro_tokens=1, pad_id=0)[0].to("cpu"), RankingBatch)


GRADED = {"prompt": "why?", "response": "so.", "helpfulness": 3, "verbosity": None}
BOTH = ("helpfulness", "verbosity")


def test_grades_are_columns_or_live_in_meta(jsonl, tmp_path):
    path = jsonl(GRADED | {"domain": "d"}, {"prompt": "why?", "completion": "so.", "meta": {"verbosity": 0.5}})
    one, other = read_graded(path, BOTH)[0]
    assert one == Graded(Prompt("rows:1", ASKED, None, {"helpfulness": 3, "domain": "d"}), "so.", {"helpfulness": 3.0})
    assert (one.id, other.grades) == ("rows:1", {"verbosity": 0.5})
    convert_command.run(DataConvertConfig(paths=str(path), output=str(tmp_path / "out.parquet")))
    assert [record.grades for record in read_graded(tmp_path / "out.parquet", BOTH)[0]] == [one.grades, other.grades]


def test_grades_from_csv_are_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response,helpfulness,verbosity\nwhy?,so.,3,\n")
    assert read_graded(tmp_path / "a.csv", BOTH)[0][0].grades == {"helpfulness": 3.0}


@pytest.mark.parametrize("row, kind, what", [
    ({"prompt": "why?", "response": "so."}, "no grade", "the response has a grade on no attribute"),
    (GRADED | {"helpfulness": float("inf")}, "grade not finite", "the grade helpfulness is inf"),
    (GRADED | {"helpfulness": "good"}, "wrong type", "helpfulness is text ('good'), not a number"),
    (GRADED | {"response": " "}, "empty response", "the response is only whitespace"),
    ({"prompt": "why?", "helpfulness": 3}, "missing column",
     "no columns for a graded response; there are `prompt`, `helpfulness`"),
    ({"prompt": "why?", "chosen": "a", "rejected": "b", "helpfulness": 3}, "missing column",
     "no columns for a graded response"),
])
def test_every_bad_grade_is_named(jsonl, row, kind, what):
    with pytest.raises(DataError) as caught:
        read_graded(jsonl(row), BOTH)
    assert what in caught.value.what and caught.value.remedy
    assert read_graded(jsonl(GRADED, row), BOTH, on_bad_record="skip")[1].dropped == {kind: 1}


def test_graded_records_made_in_code_are_checked():
    check_graded(Graded(Prompt("x", ASKED), "so.", {"a": 1.0}))
    with pytest.raises(RowError, match="the grade a is nan"):
        check_graded(Graded(Prompt("x", ASKED), "so.", {"a": float("nan")}))
