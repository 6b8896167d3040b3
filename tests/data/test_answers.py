"""Final answers: found in any text, compared as text, numbers and formulas, and held against GSM8K's own verdicts."""

import sys
import threading
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keel.data.answers import AnswerConfig, final_answer, is_right, right_answer, same_answer, verdict
from keel.data.load import read_demonstrations, read_prompts
from keel.data.readers import read_rows
from keel.data.records import Message, Prompt
from keel.errors import ConfigError, DataError


def asking(answer) -> Prompt:
    return Prompt("q7", (Message("user", "how many?"),), meta={} if answer is None else {"answer": answer})


@pytest.mark.parametrize(("text", "number"), [
    ("She sold 48/2 = <<48/2=24>>24 clips, $1,000.50 in all.", "1000.5"),
    ("That is 72.", "72"), ("so -7", "-7"), ("a loss of -$7", "-7"), ("$-7", "-7"), ("\u22124", "-4"), ("+5", "5"),
    ("16-3", "3"), ("(2)-3", "3"), ("12 in 123", "123"), ("3/4", "0.75"), ("2 / 3", "2/3"), ("4/6", "2/3"),
    ("-1/3", "-1/3"), ("1 1/2 cups", "1.5"), ("-1 1/2", "-1.5"), ("half of 3 1", "1"), ("5/0", "0"), (".5", "0.5"),
    ("0.050", "0.05"), ("-0", "0"), ("00012", "12"), ("1e5", "100000"), ("1.5e-3", "0.0015"), ("1,2,3", "3"),
    ("1,2345", "2345"), ("1,234,567", "1234567"), ("50%", "50"), ("\\$5", "5"), ("1{,}000", "1000"),
    ("\\frac{3}{8}", "0.375"), ("\\frac{-1}{2}", "-0.5"), ("-\\frac{-1}{ -2 }", "-0.5"), ("-\\frac{1}{-2}", "0.5"),
    ("\\dfrac{\u22121}{2}", "-0.5"), ("16-\\frac{1}{2}", "0.5"), ("2\\frac{1}{2}", "2.5"), ("-2\\frac{1}{2}", "-2.5"),
    ("2^10", None), ("10^{3}", None), ("so 4 = 2 ^ {n+1}", None), ("2\u00b2", None), ("2^(3+4)", None),
    ("e^{2x+1}", None), ("2^10 = 1,024", "1024"), ("25 m^2", "25"), ("3 x^{-1.5}", "3"), ("2^{3^{4}}", None),
    ("7 m\u00b2", "7"), ("45^\\circ", "45"), ("30^{\\circ}", "30"), ("A: 26\n", "26"), ("H2O", None), ("no idea", None),
    ("", None),
])
def test_the_last_number_has_one_spelling(text, number):
    assert final_answer(text) == number


def test_a_number_that_nobody_means_is_kept_and_takes_no_time():
    assert final_answer("9" * 5000) == "9" * 5000 and final_answer("-1" + ",000" * 2000) == "-1" + "000" * 2000


@given(st.fractions(max_denominator=10_000), st.sampled_from(["{}", "it is {}.", "<<1+1={}>>", "= {} apples"]))
def test_a_spelled_fraction_comes_back_with_its_value(value, sentence):
    found = final_answer(sentence.format(value))
    assert Fraction(found) == value and final_answer(found) == found
    assert same_answer(found, str(value)) and not same_answer(found, str(value + 1))


@given(st.text(alphabet="0123456789.,/-+^()eE$%\\{}boxed frac#A:= \n²٣", max_size=60), st.sampled_from(
    ["number", "boxed", "marked", "whole"]), st.text(max_size=20))
def test_any_text_at_all_has_an_answer_or_none(text, how, wanted):
    for compare in ("exact", "number"):
        assert same_answer(final_answer(text, how), wanted, compare) in (True, False)
    found = final_answer(text, how)
    assert found is None or found.strip()


@pytest.mark.parametrize(("text", "content"), [
    ("\\boxed{1} so \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"), ("\\boxed{4} and \\boxed{5", "4"),
    ("\\boxed{\\boxed{5}}", "5"), ("{ \\boxed {\\{1, 2\\}}", "\\{1, 2\\}"), ("} \\boxed{ }", None), ("5", None),
])
def test_the_last_box_that_is_closed(text, content):
    assert final_answer(text, "boxed") == content


def test_many_open_boxes_are_read_once():
    assert final_answer("\\boxed{" * 50_000, "boxed") is None


def test_many_open_exponents_are_read_once():
    for text in ("^{", "^{{", "^(", "2^{3{4}"):
        final_answer(text * 5_000)


@pytest.mark.parametrize(("text", "content"), [
    ("2 + 3\n#### 5", "5"), ("The answer is: **5**\nbye 7", "5"), ("Answer:\n\n 12 apples \nok", "12 apples"),
    ("the answer is 4. No, the answer is 6", "6"), ("Q: x\nA: 26", "26"), ("VISA: 3", None), ("####", None),
    ("so 5", None),
])
def test_what_follows_the_last_marker(text, content):
    assert final_answer(text, "marked") == content


def test_the_whole_text_without_blanks_around_it():
    assert final_answer("  grey \n", "whole") == "grey" and final_answer(" \n", "whole") is None


@pytest.mark.parametrize(("said", "wanted", "right"), [
    ("1,000", "1000", True), ("1000", "1000.0", True), ("$5", "5", True), ("5", "$5.00", True), ("$5$", "5", True),
    ("5 apples.", "5", True), ("72", "72 clips", True), ("5. Thank you", "5", True), ("x = 5", "5", True),
    ("**50%**", "50", True), ("3/4", "0.75", True), ("12", "123", False), ("5, not 6", "5", False),
    ("5 or 6", "6", False), ("5 x 6", "5", False), ("2", "2x", False), ("-7", "7", False), (" B ", "B", True),
    ("b", "B", False), (None, "5", False), ("", "5", False), ("1/3", "0.333", False),
])
def test_numbers_are_compared_whatever_their_spelling(said, wanted, right):
    assert same_answer(said, wanted) is right


def test_exact_is_the_same_text():
    assert same_answer(" grey", "grey ", "exact") and not same_answer("5.0", "5", "exact")


@pytest.mark.parametrize(("said", "wanted", "right"), [
    ("\\frac{1}{2}", "0.5", True), ("(x+1)^2", "x^2+2x+1", True), ("{1,2}", "\\{2,1\\}", True),
    ("2\\sqrt{2}", "$\\sqrt{8}$", True), ("5", "6", False), ("5 or 6", "6", False), ("5$ $6", "6", False),
    ("x+1", "x", False), ("", "5", False), ("1" + "+1" * 300, "301", False),
])
def test_formulas_are_compared_by_their_value(said, wanted, right):
    pytest.importorskip("math_verify")
    assert same_answer(said, wanted, "math") is right


def test_a_formula_that_would_take_for_ever_is_wrong(monkeypatch):
    errors = pytest.importorskip("math_verify.errors")

    def out_of_time(*_: object, **__: object) -> None:
        raise errors.TimeoutException("Operation timed out!")

    monkeypatch.setattr("math_verify.parse", out_of_time)
    assert same_answer("9^{9^9}", "5", "math") is False


def test_formulas_are_compared_outside_the_main_thread_too():
    pytest.importorskip("math_verify")
    found = []
    worker = threading.Thread(target=lambda: found.append(same_answer("\\frac{2}{4}x", "x/2", "math")))
    worker.start()
    worker.join()
    assert found == [True]


def test_without_the_library_formulas_are_refused_with_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"needs the library math-verify[^!]*keel-rlhf\[math\]"):
        same_answer("x", "y", "math")
    assert same_answer("5.0", "5", "math")  # numbers need none


def test_a_verdict_is_one_or_nought_and_a_cut_response_is_never_right():
    assert is_right(asking("1,000"), "2 * 500 = 1000", True) == 1.0
    assert is_right(asking(1000), "2 * 500 = 1000", True) == 1.0
    assert is_right(asking("1000"), "2 * 500 = 1000", False) == 0.0
    assert is_right(asking("1000"), "it is 100", True) == 0.0
    grey = Prompt("q", (Message("user", "?"),), meta={"colour": "grey"})
    assert verdict(grey, "grey", True, AnswerConfig(column="colour", extract="whole", compare="exact")) == 1.0


@pytest.mark.parametrize("absent", [None, "", " ", float("nan"), ["5"]])
def test_a_prompt_without_an_answer_is_named(absent):
    with pytest.raises(DataError, match=r"id q7: no right answer: the column 'answer'"):
        right_answer(asking(absent))


def test_every_gold_solution_of_gsm8k_is_right(shared):
    shown, _ = read_demonstrations(shared / "data/gsm8k/train.jsonl.gz")
    assert len(shown) == 7473 and all(is_right(one.prompt, one.response, True) == 1.0 for one in shown)
    assert all(same_answer(final_answer(one.response, "marked"), one.prompt.meta["answer"]) for one in shown[::7])


def test_verdicts_on_gsm8k_are_those_of_its_authors(shared):
    asked = {one.id: one for one in read_prompts(shared / "data/gsm8k/test.jsonl.gz")[0]}
    rows = [row.value for row in read_rows(shared / "data/gsm8k/model_solutions.jsonl.gz")]
    said = [is_right(asked[row["question_id"]], "\n".join(row["completions"]), True) == 1.0 for row in rows]
    assert len(rows) == 5276 and said == [row["is_correct"] for row in rows]
