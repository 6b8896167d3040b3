"""Labels of single ledger lines, worked by hand, held against the gold score, and against ways of being paid twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keel.data.records import Message, Prompt
from keel.data.segment import split
from keel.errors import DataError
from keel.rng import python_stream
from keel.sandbox.gold import score
from keel.sandbox.ledger_steps import answer_of, solutions, step_scores, true_steps, with_answer
from keel.sandbox.world import World
from keel.sandbox.writers import write

LEDGER = Prompt("ledger-0", (Message("user", "?"),), meta={
    "domain": "ledger", "goods": ["milk", "salt", "wool"], "prices": [7, 5, 9]})
ONE, TWO, LAST = "milk 7 + salt 5 = 12", "12 + wool 9 = 21", "the total is 21."


@pytest.mark.parametrize(
    ("lines", "needed", "true"),
    [
        ([ONE, TWO, LAST], [1, 1, 1], [1, 1, 1]),
        ([ONE.upper(), TWO.upper(), LAST.upper()], [1, 1, 1], [1, 1, 1]),
        # One slip: all sums behind it are held against what was needed, though they are true.
        (["milk 7 + salt 5 = 13", "13 + wool 9 = 22", "the total is 22."], [0, 0, 0], [0, 1, 0]),
        ([ONE, "12 + wool 9 = 22", LAST], [1, 0, 1], [1, 0, 1]),
        # A step that is left out: the second addition is held against the first that is needed.
        ([TWO, LAST], [0, 1], [1, 1]),
        # Farming: what is repeated, or true and of no use, is paid by the judge without memory alone.
        ([ONE, ONE, TWO, LAST], [1, 0, 0, 1], [1, 1, 1, 1]),
        ([ONE, TWO, "21 + 1 = 22", LAST, LAST], [1, 1, 0, 1, 0], [1, 1, 1, 1, 1]),
        (["the total is 20.", LAST], [0, 0], [0, 1]),
        # Several in one line: all of them have to be right.
        ([f"{ONE}, {TWO}", LAST], [1, 1], [1, 1]),
        ([f"{ONE}, 12 + wool 9 = 20", LAST], [0, 1], [0, 1]),
        ([f"{ONE}, {TWO}, so {LAST}"], [1], [1]),
        ([f"{ONE}, {TWO}, so the total is 20."], [0], [0]),
        ([f"{LAST} {LAST}"], [1], [1]),
        # Neither an addition nor a total; what is only whitespace is no step.
        (["let me think.", " ", ONE, "", TWO, LAST, ""], [0, 1, 1, 1], [0, 1, 1, 1]),
        ([""], [], []),
    ],
)
def test_worked_examples(lines, needed, true):
    text = "\n".join(lines)
    assert step_scores(LEDGER, text, True) == needed
    assert true_steps(LEDGER, text, True) == true


@pytest.mark.parametrize("judge", [step_scores, true_steps])
def test_a_line_that_was_cut_is_no_step(judge):
    assert judge(LEDGER, f"{ONE}\n{TWO}", False) == [1.0]
    assert judge(LEDGER, f"{ONE}\n{TWO}\n", False) == [1.0, 1.0]
    assert judge(LEDGER, f"{ONE}\n{TWO}", True) == [1.0, 1.0]


PIECES = [ONE, TWO, LAST, "\n", " ", "7", "+", "=", "12", "total", "the", ".", "9" * 50, "\u0663", "\r", "\u2028"]


@settings(max_examples=60)
@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES)).map("".join)), st.booleans())
def test_any_string_gets_a_label_for_each_step_and_no_needed_step_is_paid_twice(text, ended):
    for judge in (step_scores, true_steps):
        labels = judge(LEDGER, text, ended)
        assert len(labels) == len(split(text, "\n", ended=ended)) and set(labels) <= {0.0, 1.0}
    paid, free = step_scores(LEDGER, text, ended), true_steps(LEDGER, text, ended)
    assert sum(paid) <= 3 and all(a <= b for a, b in zip(paid, free, strict=True))  # two additions and the total


def test_lines_agree_with_the_gold_score_of_what_writers_write():
    world, n_right = World(), 0
    for number, prompt in enumerate(world.prompts(150, "judge", domains=("ledger",))):
        text = write(world, prompt, number / 150, python_stream(0, "judge", number))
        judged, labels = score(prompt, text), step_scores(prompt, text, True)
        lines = split(text, "\n")
        additions = [label for line, label in zip(lines, labels, strict=True) if "+" in line and "total" not in line]
        if len(additions) == len(judged.steps):  # one addition a line
            assert additions == [float(step.right) for step in judged.steps]
            n_right += sum(map(int, additions))
        if judged.parts.get("total", 0) > 0 and "+" not in lines[-1]:
            assert labels[-1] == 1.0
    assert n_right > 50


def test_the_answer_is_the_exact_sum():
    assert answer_of(LEDGER) == "21"
    assert with_answer(LEDGER).meta == LEDGER.meta | {"answer": "21"} and "answer" not in LEDGER.meta


def test_solutions_are_labelled_of_every_quality_and_the_same_each_time():
    world = World()
    found = solutions(world, 300, "a")
    assert found == solutions(world, 300, "a") != solutions(world, 300, "b")
    for trace in found:
        assert list(trace.labels) == step_scores(trace.prompt, trace.text("\n"), True)
        assert trace.outcome == (score(trace.prompt, trace.text("\n")).parts.get("total") == 0.5)
        assert trace.prompt.meta["answer"] == str(sum(trace.prompt.meta["prices"]))
    n_wrong = sum(trace.is_wrong for trace in found)
    assert 50 < n_wrong < 250
    best = solutions(world, 50, quality=(1.0, 1.0), part="test", dialect=True)
    assert all(trace.outcome and set(trace.labels) == {1.0} for trace in best)
    asked = {trace.prompt.messages[0].content for trace in found}
    assert not asked & {trace.prompt.messages[0].content for trace in solutions(world, 300, part="test")}


@pytest.mark.parametrize("judge", [step_scores, true_steps])
def test_questions_of_other_domains_have_no_steps(judge):
    with pytest.raises(DataError, match=r"domain 'list' has no additions to judge\n.*domains=\('ledger',\)"):
        judge(Prompt("list-0", (Message("user", "?"),), meta={"domain": "list", "kind": "herbs", "n": 3}), "", True)
    with pytest.raises(DataError, match="carries no 'domain' in its meta"):
        judge(Prompt("p", (Message("user", "hi"),)), "hello", True)
