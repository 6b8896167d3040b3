"""Labelled solutions as rows: where each step ends, and what becomes of labels that do not fit."""

from dataclasses import replace

import pytest
import tiny
from data.test_segment import byte_template
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from keel.data.records import Message, Prompt
from keel.data.render import template
from keel.data.segment import steps_of
from keel.data.step_rows import StepTruncation, render_traces
from keel.data.traces import StepTrace
from keel.errors import DataError

WORDS = byte_template()
MERGED = byte_template([("Ċ", "b"), (".", "Ċ"), (".Ċ", "Ċ")])
"""Ċ is a line break: tokens "\\nb", ".\\n" and ".\\n\\n"."""


def trace(*steps, labels=None, outcome=None, name="t", prompt="q"):
    told = labels if labels is not None else [1.0] * len(steps)
    return StepTrace(Prompt(name, (), prompt), tuple(steps), tuple(told), outcome)


def rendered(*traces, max_length=100, separator="\n", words=WORDS, **how):
    return render_traces(words, traces, separator=separator, max_length=max_length, **how)


def test_a_step_ends_with_its_separator_and_the_last_one_with_the_turn():
    """The row is <eos> q | a b \\n c \\n d e f <eos>; <eos> begins the rows of a tokenizer that has nothing else."""
    [row], _ = rendered(trace("ab", "c", "def", labels=[1, None, 0.25]))
    assert row.row.n_prompt == 2 and row.n_tokens == 11
    assert row.ends == (4, 6, 10)
    assert row.row.ids[4] == row.row.ids[6] == WORDS.response_ids("\n", ended=False)[0]
    assert row.row.ids[10] == WORDS.end_id
    assert (row.trace.labels, row.row.record_id) == ((1, None, 0.25), "t")


def test_a_solution_that_goes_on_is_read_at_the_separator_behind_its_last_step():
    """As a policy's is, at a step that is not its last: nothing there tells that labels stop."""
    open_ended = replace(trace("ab", "c", labels=[1, 0]), ended=False)
    [row], cut = rendered(open_ended)
    [whole], _ = rendered(trace("ab", "c", "def", labels=[1, 0, 1]))
    assert row.ends == whole.ends[:2] == (4, 6) and row.row.ids == whole.row.ids[:7]
    assert not row.trace.ended and cut.n_divided == 0 and open_ended.text("\n") == "ab\nc\n"
    [shortened], _ = rendered(trace("ab", "c", "def", labels=[1, 0, 1]), max_length=7)
    assert shortened == replace(row, trace=replace(row.trace, labels=(1, 0)), row=shortened.row)
    assert shortened.row.ids == row.row.ids


def test_a_separator_shares_its_token_with_what_stands_beside_it():
    """Tokens a | \\nb | c | <eos>; a | .\\n\\n | c | <eos>; and a | .\\n | \\nb | <eos>."""
    [row], _ = rendered(trace("a", "bc"), words=MERGED)
    assert row.ends == (3, 5) and len(row.row.ids) == 6
    for last, ends in (("c", (3, 5)), ("b", (4, 5))):
        [row], _ = rendered(trace("a.", last), words=MERGED, separator="\n\n")
        assert row.ends == ends and len(row.row.ids) == 6


@pytest.mark.parametrize("max_length, steps, ends, n_tokens", [
    (11, 3, (4, 6, 10), 11), (10, 2, (4, 6), 7), (7, 2, (4, 6), 7), (6, 1, (4,), 5), (5, 1, (4,), 5)])
def test_whole_steps_go_from_the_end_until_the_others_fit(max_length, steps, ends, n_tokens):
    whole = trace("ab", "c", "def", labels=[1, 0, 1], outcome=True)
    [row], cut = rendered(whole, max_length=max_length)
    assert (row.ends, row.n_tokens, row.trace.steps) == (ends, n_tokens, whole.steps[:steps])
    assert row.trace.labels == whole.labels[:steps] and row.row.ids == rendered(whole)[0][0].row.ids[:n_tokens]
    assert row.trace.outcome is (True if steps == 3 else None)
    assert cut == StepTruncation(1, int(steps < 3), 0, 3 - steps, 3, 3 - steps, 0, int(steps < 3),
                                 max_length)


def test_a_shortened_row_keeps_the_token_that_its_separator_shares():
    """a | \\nb | c..., and of the second step only what that token holds."""
    [row], _ = rendered(trace("a", "bcccc"), words=MERGED, max_length=5)
    assert row.row.ids == MERGED.prompt_ids(Prompt("", (), "q")) + MERGED.response_ids("a\nb", ended=False, after="q")
    assert row.ends == (3,)


def test_what_is_lost_is_counted():
    """Of four solutions one fits, one loses a step of two, one has no step that fits, one none with a label."""
    traces = [trace("ab", "c", name="fits", labels=[1, 0]),
              trace("ab", "cccccc", name="shortened", labels=[0.5, 1]),
              trace("abcdefghi", "c", name="long", labels=[1, None]),
              trace("ab", "cccccc", name="unlabelled", labels=[None, 1])]
    rows, cut = rendered(*traces, max_length=7)
    assert [row.row.record_id for row in rows] == ["fits", "shortened"]
    assert cut == StepTruncation(4, 1, 2, 5, 6, 3, 0, 0, 7)
    assert cut.summary() == ("4 solutions at most 7 tokens long: 1 without their last steps, 2 dropped; 5 steps and 3 "
                             "of 6 labels are in no row")


def test_a_solution_of_which_only_the_outcome_is_known():
    known = trace("ab", "c", labels=[None, None], outcome=False)
    [row], _ = rendered(known)
    assert row.trace == known
    rows, cut = rendered(known, trace("a", name="b"), max_length=6)
    assert [row.row.record_id for row in rows] == ["b"] and cut.n_outcomes_lost == 1
    assert cut.summary().endswith("2 steps and 0 of 1 labels are in no row, nor are 1 known outcomes")


def test_steps_that_hold_the_separator_are_kept_and_counted():
    """At use "a\\nb" would be two steps; here it is one, and its label sits at its end."""
    [row], cut = rendered(trace("a\nb", "c\n\n", "d"))
    assert row.ends == (5, 9, 11) and cut.n_divided == 2
    assert rendered(trace("a b", "c"), separator=" ;")[1].n_divided == 0


def test_a_separator_that_arises_where_steps_meet_divides_them():
    """a \n | \n \n | b is cut behind the second line break: "a" and "\nb", of which neither is a step here."""
    assert rendered(trace("a\n", "b"), separator="\n\n")[1].n_divided == 2
    assert rendered(trace("c", "a\n", "b", "d"), separator="\n\n")[1].n_divided == 2
    assert rendered(trace("a", "\nb"), separator="\n\n")[1].n_divided == 0
    assert rendered(trace("a", "b\n"), separator="\n\n")[1].n_divided == 0


def test_solutions_that_are_dropped_or_refused():
    told = (trace("ab", "c"), trace("abcdef", "g", name="long"))
    rows, cut = rendered(*told, max_length=8, too_long="drop")
    assert [row.row.record_id for row in rows] == ["t"]
    assert (cut.n_shortened, cut.n_dropped, cut.n_labels_lost) == (0, 1, 2)
    with pytest.raises(DataError, match="id long: 11 tokens of prompt and solution do not fit into 8"):
        rendered(*told, max_length=8, too_long="error")
    with pytest.raises(DataError, match="none of 2 solutions has a labelled step within 4 tokens"):
        rendered(*told, max_length=4)
    with pytest.raises(ValueError, match="separator='' cannot part the steps of a solution"):
        rendered(*told, separator="")


@given(st.lists(st.tuples(st.text("ab. é\U0001f600", min_size=1), st.sampled_from([None, 0.0, 0.5, 1.0])), min_size=1,
                max_size=5), st.integers(3, 40), st.sampled_from(["\n", "\n\n", " ;"]), st.booleans())
def test_labels_in_are_labels_out_and_labels_lost(told, max_length, separator, merged):
    words = MERGED if merged else WORDS
    whole = trace(*(step for step, _ in told), labels=[label for _, label in told])
    traces = [trace("a", "b"), replace(whole, prompt=replace(whole.prompt, id="other"))]
    rows, cut = rendered(*traces, max_length=max(max_length, 7), separator=separator, words=words)
    kept = [label for row in rows for label in row.trace.labels if label is not None]
    assert cut.n_labels == sum(label is not None for one in traces for label in one.labels)
    assert len(kept) + cut.n_labels_lost == cut.n_labels
    assert sum(len(row.trace.steps) for row in rows) + cut.n_steps_dropped == 2 + len(told)
    assert len(rows) + cut.n_dropped == 2
    for row in rows:
        assert len(row.ends) == len(row.trace.steps) == len(row.trace.labels)
        assert row.n_tokens <= max(max_length, 7) and row.ends[-1] == row.n_tokens - 1
        assert list(row.ends) == sorted(row.ends) and row.ends[0] >= row.row.n_prompt


@given(st.lists(st.text("ab.;é\U0001f600", min_size=1), min_size=1, max_size=5), st.sampled_from(["\n", "\n\n", " ;"]),
       st.booleans())
def test_a_policy_that_writes_the_row_is_read_at_the_same_tokens(steps, separator, merged):
    """What `steps_of` finds in the response tokens, as if they had been sampled."""
    words = MERGED if merged else WORDS
    [row], _ = rendered(trace(*steps), words=words, separator=separator, max_length=1000)
    found = steps_of(words, row.row.ids[row.row.n_prompt:], separator, ended=True)
    assert found.texts == tuple(steps) and tuple(row.row.n_prompt + end for end in found.ends) == row.ends


def spaced_template():
    """A tokenizer of letters that writes a space before every text, so that a text is spelled otherwise alone."""
    letters = ["<pad>", "<eos>", *"abcdef\u2581\n"]
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="never")
    core.add_special_tokens(["<pad>", "<eos>"])
    return template(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>"))


def test_steps_behind_a_plain_text_that_changes_their_tokens():
    """<eos> (space) a | b \\n c <eos>: alone, the solution would begin with a space."""
    words = spaced_template()
    [row], _ = rendered(trace("b", "c", prompt="a"), words=words)
    assert words.tokenizer.convert_ids_to_tokens(row.row.ids) == ["<eos>", "\u2581", "a", "b", "\n", "c", "<eos>"]
    assert row.row.n_prompt == 3 and row.ends == (4, 6)


def test_steps_in_a_conversation(tmp_path):
    """The template of the tests: <bos><user> ... <eos><assistant> the cat sat . the dog <eos>."""
    words = template(tiny.tokenizer())
    asked = Prompt("t", (Message("user", "why ?"),))
    [row], _ = render_traces(words, [StepTrace(asked, ("the cat sat", " the dog"), (1.0, 0.0))], separator=" .",
                             max_length=64)
    spelled = words.tokenizer.convert_ids_to_tokens(row.row.ids)
    assert spelled == ["<bos>", "<user>", "why", "?", "<eos>", "<assistant>", "the", "cat", "sat", ".", "the", "dog",
                       "<eos>"]
    assert row.ends == (9, 12) and row.row.n_prompt == 6
