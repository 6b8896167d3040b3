"""Single responses with a label: from rows to records and back to a file."""

import json
from dataclasses import replace

import pytest

from keel.data import Message, Prompt, check_demonstration, read_demonstrations
from keel.data import check as check_command
from keel.data import convert as convert_command
from keel.data import show as show_command
from keel.data.check import DataCheckConfig, kind_of_files
from keel.data.convert import DataConvertConfig
from keel.data.load import read_labelled
from keel.data.problems import RowError
from keel.data.records import Demonstration, Labelled, check
from keel.data.show import DataShowConfig
from keel.data.write import write_records
from keel.errors import DataError

ASKED = (Message("user", "why?"),)
ROW = {"prompt": "why?", "completion": "b", "label": True}
TURN = {"prompt": [{"role": "user", "content": "why?"}], "completion": [{"role": "assistant", "content": "b"}],
        "label": False}
WHOLE = {"messages": [*TURN["prompt"], *TURN["completion"]], "label": False, "meta": {"k": 1}}


@pytest.mark.parametrize(("row", "label", "meta"), [
    (ROW, True, {}), (TURN, False, {}), (WHOLE, False, {"k": 1}),
    ({"prompt": "why?", "response": "b", "label": True, "domain": "d"}, True, {"domain": "d"})])
def test_every_layout_of_one_response_can_have_a_label(jsonl, row, label, meta):
    path = jsonl(row)
    assert read_labelled(path)[0] == [Labelled(Prompt("rows:1", ASKED, None, meta), "b", label)]
    assert kind_of_files(path) == "labelled"


@pytest.mark.parametrize(("text", "label"), [("true", True), ("True", True), (" FALSE", False)])
def test_a_text_only_file_spells_the_label(tmp_path, text, label):
    file = tmp_path / "rows.csv"
    file.write_text(f"prompt,completion,label\nwhy?,b,{text}\n")
    (record,), _ = read_labelled(file)
    assert record.label is label and record.response == "b"


@pytest.mark.parametrize(("label", "said"), [(1, "(1"), (0, "(0"), ("true", "('true'"), ("good", "('good'"),
                                             ([True], "([True]"), (0.5, "(0.5")])
def test_a_label_is_true_or_false_and_nothing_else(jsonl, label, said):
    path = jsonl(ROW | {"label": label})
    with pytest.raises(DataError, match="label is ") as caught:
        read_labelled(path)
    assert f"{said}), not true or false" in str(caught.value)
    assert kind_of_files(path) == "demonstrations"
    kept, report = read_labelled(jsonl(ROW, ROW | {"label": label}), on_bad_record="skip")
    assert len(kept) == 1 and [problem.kind for problem in report.problems] == ["bad label"]


@pytest.mark.parametrize("row", [{"prompt": "why?", "completion": "b"}, {"prompt": "why?", "label": True},
                                 {"prompt": "why?", "chosen": "a", "rejected": "b", "label": True},
                                 ROW | {"label": None}])
def test_what_has_no_label_or_not_one_response_is_refused(jsonl, row):
    with pytest.raises(DataError, match="no columns for a labelled response"):
        read_labelled(jsonl(row))
    assert kind_of_files(jsonl(row)) != "labelled"


def test_the_same_checks_as_for_a_demonstration():
    good = Labelled(Prompt("x", ASKED), "b", True)
    check(good)
    for bad in (replace(good, response=" "), replace(good, prompt=Prompt("x", ()))):
        with pytest.raises(RowError) as caught:
            check(bad)
        with pytest.raises(RowError) as expected:
            check_demonstration(Demonstration(bad.prompt, bad.response))
        assert str(caught.value) == str(expected.value)


def test_bare_strings_can_be_text_to_continue(jsonl):
    assert read_labelled(jsonl(ROW), as_text=True)[0][0].prompt.text == "why?"


def test_check_show_and_convert_know_labelled_responses(jsonl, tmp_path):
    path = jsonl(WHOLE, WHOLE | {"label": True}, WHOLE | {"label": True, "messages": [
        *TURN["prompt"], {"role": "assistant", "content": "abc"}]})
    report = check_command.run(DataCheckConfig(paths=str(path)))
    assert (report.kind, report.quantiles[-1], report.n_repeated, report.n_same_prompt) == ("labelled", 7, 1, 2)
    texts = show_command.run(DataShowConfig(paths=str(path), n=2))
    assert [text.splitlines()[2] for text in texts] == ["bad response: b", "good response: b"]
    for suffix in (".jsonl", ".parquet"):
        output = tmp_path / f"out{suffix}"
        convert_command.run(DataConvertConfig(paths=str(path), output=str(output)))
        assert read_labelled(output)[0] == read_labelled(path)[0]
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert first["label"] is False and first["completion"] == TURN["completion"]


def test_text_without_a_prompt_keeps_its_label(tmp_path):
    record = Labelled(Prompt("x", (), ""), "once upon", False)
    write_records([record], tmp_path / "text.jsonl")
    assert read_labelled(tmp_path / "text.jsonl")[0] == [record]


def test_as_demonstrations_the_label_stays_in_meta(jsonl):
    assert read_demonstrations(jsonl(TURN))[0][0].prompt.meta == {"label": False}
