"""Solutions in steps: from rows to records, every refusal, and back to a file."""

import json

import pytest

from keel.data import Message, Prompt
from keel.data.load import read_traces
from keel.data.traces import StepTrace

ASKED = (Message("user", "why?"),)
ROW = {"prompt": "why?", "completions": ["a", "b", "c"], "labels": [True, False, None]}


@pytest.mark.parametrize(("row", "labels", "outcome", "meta"), [
    (ROW, (1.0, 0.0, None), None, {}),
    (ROW | {"prompt": [{"role": "user", "content": "why?"}], "labels": [1, 0.25, 0]}, (1.0, 0.25, 0.0), None, {}),
    (ROW | {"outcome": False, "labels": [None] * 3, "domain": "d"}, (None,) * 3, False, {"domain": "d"}),
    (ROW | {"outcome": None, "meta": {"k": 1}}, (1.0, 0.0, None), None, {"k": 1})])
def test_the_stepwise_columns(jsonl, row, labels, outcome, meta):
    (trace,), report = read_traces(jsonl(row))
    assert trace == StepTrace(Prompt("rows:1", ASKED, None, meta), ("a", "b", "c"), labels, outcome)
    assert report.formats == {"steps": 1} and json.dumps(labels)
