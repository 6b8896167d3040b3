"""The exam's answers by label: each label's own prompts, whatever type the label has in the file."""

from types import SimpleNamespace

import pytest

from keel.data.records import Message, Prompt
from keel.rollout.evaluate import Exam


def test_prompts_are_sorted_by_the_word_of_their_label_and_those_without_are_left_out():
    labels = [1, "1", True, None, float("nan"), "b", 1]
    rows = [SimpleNamespace(record=Prompt(f"p{i}", (Message("user", "hi"),), meta={"kind": label}))
            for i, label in enumerate(labels)]
    exam = Exam(None, None, rows, None, reference=None, gold=None, micro_tokens=1, seed=0)
    exam.by_label("kind")
    assert exam.members == {"1": [0, 1, 6], "True": [2], "b": [5]}
    exam.by_label("other")
    assert exam.members == {}


@pytest.mark.parametrize("column", ["", "kind"])
def test_without_prompts_there_are_no_labels(column):
    exam = Exam(None, None, [], None, reference=None, gold=None, micro_tokens=1, seed=0)
    exam.by_label(column)
    assert exam.members == {}
