"""What is learned from a labelled solution: which labels, at which tokens, and what is not run at all."""

import pytest
import tiny
import tolerances as tol
import torch

from keel.data.records import Message, Prompt
from keel.data.render import template
from keel.data.step_rows import StepTruncation, render_traces
from keel.data.traces import StepTrace
from keel.errors import DataError
from keel.functional.steps import step_loss
from keel.models.load import ModelConfig, load_tokenizer
from keel.models.process import process_model
from keel.train.solutions import hardened, step_batch, step_logits_of, supervised, tell, up_to_last_label

ASKED = (Message("user", "why ?"),)


def trace(*labels, outcome=None, name="t"):
    steps = ("the cat sat", " yes please", " no", " one two")[: len(labels)]
    return StepTrace(Prompt(name, ASKED), steps, labels, outcome)


def rows_of(words, *traces, max_length=64):
    return render_traces(words, traces, separator=" .", max_length=max_length)[0]


@pytest.mark.parametrize("how, wanted", [
    ("steps", (0.25, None, 1.0, None)), ("last_step", (None, None, 1.0, None)), ("outcome", (None, None, None, 0.0)),
    ("outcome_at_each_step", (0.0, 0.0, 0.0, 0.0))])
def test_the_labels_that_are_learned_from(how, wanted):
    [found] = supervised([trace(0.25, None, 1.0, None, outcome=False)], how)
    assert found.labels == wanted and found.outcome is False


def test_hard_labels():
    told = trace(0.0, 0.25, None, 1.0, outcome=False)
    assert hardened([told], 0.0)[0].labels == (0.0, 1.0, None, 1.0)
    assert hardened([told, told], 0.25)[1].labels == (0.0, 0.0, None, 1.0)
    assert hardened([told], 0.5)[0].outcome is False and hardened([told], None) == [told]


def test_solutions_without_a_label_are_left_out():
    told = [trace(None, None, outcome=True, name="a"), trace(1.0, None, outcome=None, name="b")]
    assert [one.id for one in supervised(told, "steps")] == ["b"]
    with pytest.raises(DataError, match="none of 1 solutions has a label of a step"):
        supervised(told[:1], "steps")
    with pytest.raises(DataError, match="id b: none of 1 solutions says whether its final answer is right"):
        supervised(told[1:], "outcome")
    (kept,) = supervised(told, "outcome")  # the other one has no outcome: it was cut, perhaps
    assert kept.id == "a" and kept.labels == (None, 1.0)


def test_a_batch_holds_the_steps_row_by_row():
    """<bos><user> why ? <eos><assistant> are columns 0 to 5; the cat sat . is 6 to 9, yes please . 10 to 12."""
    words = template(tiny.tokenizer())
    rows = rows_of(words, trace(1.0, None, 0.5), trace(0.0, name="u"))
    whole = step_batch(rows, words.pad_id, labelled=False)
    assert whole.rows.tolist() == [0, 0, 0, 1] and whole.columns.tolist() == [9, 12, 14, 9]
    assert whole.labels.isnan().tolist() == [False, True, False, False]
    labelled = step_batch(rows, words.pad_id, labelled=True)
    assert labelled.columns.tolist() == [9, 14, 9] and labelled.labels.tolist() == [1.0, 0.5, 0.0]
    assert labelled.rows.tolist() == [0, 0, 1] and labelled.tokens.record_ids == ("t", "u")


def gradients(model, rows, pad_id):
    batch = step_batch(rows, pad_id, labelled=True)
    loss = step_loss(batch.logits(model), batch.labels)[0].sum()
    model.zero_grad()
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_what_follows_the_last_label_teaches_nothing(tmp_path):
    """The same loss and the same gradient from fewer tokens."""
    folder = str(tiny.llama(tmp_path / "base"))
    words, model = template(load_tokenizer(folder)), process_model(ModelConfig(path=folder), seed=1)
    rows = rows_of(words, trace(1.0, 0.0, None, None), trace(None, 1.0, name="u"))
    cut = [up_to_last_label(row) for row in rows]
    assert [row.n_tokens for row in rows] == [18, 13] and [row.n_tokens for row in cut] == [13, 13]
    assert [row.trace.labels for row in cut] == [(1.0, 0.0), (None, 1.0)] and cut[0].ends == (9, 12)
    assert cut[1] == rows[1]
    for a, b in zip(gradients(model, rows, words.pad_id), gradients(model, cut, words.pad_id), strict=True):
        torch.testing.assert_close(a, b, **tol.GRADIENT32)


def test_logits_come_back_in_the_order_of_rows_and_steps(tmp_path):
    folder = str(tiny.llama(tmp_path / "base"))
    words, model = template(load_tokenizer(folder)), process_model(ModelConfig(path=folder), seed=1)
    rows = rows_of(words, trace(1.0, name="a"), trace(1.0, None, 0.0, 1.0, name="b"), trace(1.0, None, name="c"))
    alone = [step_logits_of(model, [row], words.pad_id, 1000)[0] for row in rows]
    assert [len(line) for line in alone] == [1, 4, 2]
    for one, other in zip(step_logits_of(model, rows, words.pad_id, 40), alone, strict=True):
        assert one == pytest.approx(other, rel=tol.GRADIENT32["rtol"], abs=tol.GRADIENT32["atol"])


def test_what_a_reader_is_told():
    notes = []
    tell(StepTruncation(3, 0, 0, 0, 9, 0, 0, 0, 64), notes.append)
    assert notes == []
    tell(StepTruncation(3, 1, 1, 4, 9, 3, 2, 0, 64), notes.append)
    assert notes[0] == ("3 solutions at most 64 tokens long: 1 without their last steps, 1 dropped; 4 steps and 3 of 9 "
                        "labels are in no row")
    assert notes[1].startswith("2 steps hold the separator") and len(notes) == 2
