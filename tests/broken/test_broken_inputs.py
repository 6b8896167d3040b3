"""Broken data files: one clear message, exit code 3, nothing lost."""

import gzip
import json
import shutil

import pytest
import tiny
from broken.kitchen import refused, served

ASKED = [{"role": "user", "content": "why ?"}]


def pair(**changes):
    return json.dumps({"id": "bad", "prompt": ASKED, "chosen": "yes", "rejected": "no"} | changes)


MANY = "".join(f"{pair(id=f'{i * 7919 % 10_007:x}')}\n" for i in range(4000)).encode()


@pytest.mark.parametrize("line, fragments", [
    ('{"prompt": "why ?" "chosen": "yes"}', ["pairs.jsonl:3: not JSON", "at column 20"]),
    ('["why ?", "yes", "no"]', ["pairs.jsonl:3: the row is a list, not an object"]),
    ('{"prompt": "why ?", "chosen": "yes", "rejectd": "no"}',
     ["no columns for a pair", "mean `rejected` by `rejectd`"]),
    (pair(chosen=" no "), ["pairs.jsonl:3 (id bad): chosen and rejected are identical after stripping"]),
    (pair(chosen=""), ["(id bad): chosen is empty", "there is nothing to learn from"]),
    (pair(rejected=" \n"), ["(id bad): rejected is only whitespace"]),
    (pair(prompt="  \t"), ["(id bad): turn 1 (user) is empty"]),
    (pair(prompt=[]), ["(id bad): the prompt has no turn"]),
    (pair(chosen="cat \ud83d"), [r"(id bad): chosen holds half a character ('\ud83d') at 4"]),
    (pair(id="half \ud83d", chosen=""), [r"(id half \ud83d): chosen is empty"]),
    (pair(prompt="why \0 ?"), ["turn 1 (user) holds a NUL character at position 4"]),
    (b'{"prompt": "why ?", \0\0\0', ["pairs.jsonl:3: a NUL byte"]),
    (b'{"prompt": "caf\xe9", "chosen": "yes", "rejected": "no"}',
     ["pairs.jsonl:3: byte 16 (0xe9) is not UTF-8", "iconv"]),
    (pair(id="p0"), ["the id 'p0' was already used at", "pairs.jsonl:1"]),
    (pair(prompt=None, chosen=[*ASKED, *tiny.said("yes")],
          rejected=[{"role": "user", "content": "how ?"}, *tiny.said("no")]),
     ["the prompts of chosen and rejected differ from turn 1 on"]),
    (pair(prompt=[*ASKED, *tiny.said("well")]), ["the last turn of the prompt is the assistant's"]),
    (pair(prompt=[{"role": "robot", "content": "x"}]), ["turn 1 has the role 'robot'"]),
    (pair(margin="much"), ["margin is text ('much'), not a number"]),
    (pair(weight=-1), ["weight is -1.0"]),
    (pair(label_prob=1.5), ["label_prob is 1.5, outside 0 to 1"]),
    (pair(id=[1]), ["id is [1]"]),
    (pair(meta=3), ["meta is a number, not an object"]),
    ("[" * 100_000, ["not JSON that can be read"]),
])
def test_a_bad_line_is_named(kitchen, capsys, line, fragments):
    refused(kitchen, kitchen.reward_model(data=kitchen.spoiled("pairs", line)), capsys, "DataError", *fragments,
            "--on-bad-record skip")


@pytest.mark.parametrize("name, content, fragments", [
    ("pairs.jsonl", b"", ["pairs.jsonl: no rows in this file", "written to the end"]),
    ("pairs.jsonl", b"\n \n", ["pairs.jsonl: no rows in this file"]),
    ("pairs.json", b"3", ["pairs.json: the document is a number"]),
    ("pairs.jsonl", pair().encode("utf-16"), ["pairs.jsonl:1: the file is UTF-16"]),
    ("pairs.jsonl.gz", gzip.compress(MANY, mtime=0)[:-40], ["pairs.jsonl.gz:", "cannot read on after row"]),
    ("pairs.jsonl.gz", pair().encode(), ["named .gz but does not begin like such a file"]),
    ("pairs.parquet", b"PAR1 no more", ["cannot read on after row 0"]),
    ("pairs.csv", b"prompt,chosen,rejected\nwhy,yes\n", ["pairs.csv:2: 2 cells under a header of 3"]),
    ("pairs.xlsx", b"PK\3\4", ["unknown kind of file '.xlsx'", "keel reads .jsonl"]),
    ("pairs", pair().encode(), ["unknown kind of file ''"]),
])
def test_a_bad_file_is_named(kitchen, capsys, name, content, fragments):
    refused(kitchen, kitchen.reward_model(data=kitchen.file(name, content)), capsys, "DataError", *fragments)


def test_a_cut_zstandard_file(kitchen, capsys):
    import zstandard

    content = zstandard.compress(MANY)
    data = kitchen.file("pairs.jsonl.zst", content[:-20])
    refused(kitchen, kitchen.reward_model(data=data), capsys, "DataError", "pairs.jsonl.zst:",
            "cannot read on after row")


def test_no_file_and_no_data_in_a_folder(kitchen, capsys):
    missing = kitchen.folder / "no" / "pairs.jsonl"
    refused(kitchen, kitchen.reward_model(data=missing), capsys, "DataError", f"{missing}: no such file or folder",
            "Paths are relative to")
    folder = kitchen.file("notes/readme.md", "hello").parent
    for command in (["data", "check", str(folder)], ["data", "show", str(folder)]):
        refused(kitchen, command, capsys, "DataError", f"{folder}: no data file in this folder; it holds readme.md")


def test_ten_megabytes_in_a_line(kitchen, capsys):
    """A long line is a row like any other; a bad one is not echoed at length."""
    long = "word " * 2_000_000
    good = kitchen.file("long.jsonl", json.dumps({"prompt": "why ?", "chosen": long, "rejected": "no"}) + "\n")
    assert served(kitchen, ["data", "check", str(good)], capsys) == (0, "")
    for name, line in {
        "cut": json.dumps({"prompt": "why ?", "chosen": long})[:-2],
        "number": pair(margin=long), "id": pair(id=[long]), "named": pair(id=long, chosen=""),
        "role": pair(prompt=[{"role": long, "content": "x"}]), "column": json.dumps({long: 1}),
        "columns": json.dumps({f"column {i}": i for i in range(20_000)}),
        "speaker": pair(prompt=f"Human: {long}\n\nHuman: x\n\nAssistant:", chosen=""),
        "key": pair(prompt=[{long: "user"}]),
    }.items():
        said = refused(kitchen, ["data", "check", str(kitchen.file(f"{name}.jsonl", line))], capsys, "DataError",
                       f"{name}.jsonl:1")
        assert len(said) < 1500, name


def test_many_problems_are_one_message(kitchen, capsys):
    data = kitchen.file("pairs.jsonl", "\n".join([pair(id=i, chosen="") for i in range(50)]))
    said = refused(kitchen, kitchen.reward_model(data=data), capsys, "DataError", "50 problems in 50 rows",
                   "and 30 more; in all: 50 empty response",
                   "Mend these rows.")
    assert said.count("chosen is empty") == 20


def test_all_records_dropped(kitchen, capsys):
    data = kitchen.file("pairs.jsonl", pair(chosen=""))
    refused(kitchen, kitchen.reward_model(data=data, **{"data.on_bad_record": "skip"}), capsys, "DataError",
            "no record left: 0 of 1 rows read", "keel data check")


@pytest.mark.parametrize("row, options, fragment, kind", [
    ({"prompt": ASKED, "completion": "yes"}, {"data.as_text": True}, "the prompt is a conversation, and as_text was",
     "1 not plain text"),
    ({"prompt": "Human: hi\n\nAssistant: yes", "completion": "Assistant: no"}, {}, "the last turn of the prompt",
     "1 prompt ends with the assistant"),
    ({"messages": ASKED}, {}, "the conversation ends with the user's turn", "1 no response"),
    ({"chosen": "\n\nHuman: hi\n\nAssistant: no", "rejected": "oh\n\nHuman: hi\n\nAssistant: yes"}, {},
     "rejected has text before the first speaker: 'oh'", "1 bad transcript"),
])
def test_rows_that_are_something_else(kitchen, capsys, row, options, fragment, kind):
    """Stopping, the message says what; skipping, it counts by kind."""
    options["data"] = tiny.write_rows(kitchen.folder / "d.jsonl", [row])
    refused(kitchen, kitchen.sft(**options), capsys, "DataError", "d.jsonl:1: ", fragment)
    shutil.rmtree(kitchen.out)
    refused(kitchen, kitchen.sft(**{"data.on_bad_record": "skip"} | options), capsys, "DataError",
            f"no record left: 0 of 1 rows read; 1 dropped: {kind}", fragment)


@pytest.mark.parametrize("policy, fragment", [
    ("error", "tokens of prompt and 4 of response do not fit into 8"),
    ("drop", "none of"), ("drop_turns", "none of"), ("truncate_response", "none of"),
])
def test_rows_that_are_too_long(kitchen, capsys, policy, fragment):
    data = tiny.write_rows(kitchen.folder / "d.jsonl", [
        {"id": f"d{i}", "prompt": "cat " * 20, "completion": "yes please ."} for i in range(8)])
    options = {"data": data, "data.max_length": 8, "data.too_long": policy, "data.validation_fraction": 0}
    refused(kitchen, kitchen.sft(**options), capsys, "DataError", fragment, "Raise the limit")


@pytest.mark.parametrize("policy", ["truncate_left", "truncate_response", "drop"])
def test_a_row_that_is_too_long_is_counted(kitchen, capsys, policy):
    rows = [{"id": f"d{i}", "prompt": "cat sat",
             "completion": "yes please . " * 20 if i == 3 else "no no"} for i in range(8)]
    data = tiny.write_rows(kitchen.folder / "d.jsonl", rows)
    options = {"data": data, "data.max_length": 66, "data.too_long": policy, "data.validation_fraction": 0}
    assert served(kitchen, kitchen.sft(**options), capsys) == (0, "")
    result = json.loads((kitchen.out / "result.json").read_text())
    assert result["skipped"]["n_dropped" if policy == "drop" else "n_cut"] == 1


def test_half_characters_beside_the_text_are_shown_and_not_fatal(kitchen, capsys):
    data = kitchen.file("p.jsonl", pair(id="x \ud83d", meta={"k \ud83d": "\ud83d"}, domain="\ud83d"))
    assert served(kitchen, ["data", "check", str(data)], capsys) == (0, "")
    assert served(kitchen, ["data", "show", str(data)], capsys) == (0, "")


def test_a_file_whose_name_is_not_utf8(kitchen, capsys):
    name = str(kitchen.folder / "caf\udce9.jsonl")
    for command in (["data", "check", name], kitchen.sft(data=name), kitchen.sft(f"--data={name}")):
        refused(kitchen, command, capsys, "ConfigError", r"caf\udce9.jsonl' is not UTF-8", "Rename the file")


def test_convert_leaves_no_half_file(kitchen, capsys):
    data = kitchen.spoiled("pairs", "{")
    for suffix in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet"):
        output = kitchen.folder / f"made/o.{suffix}"
        refused(kitchen, ["data", "convert", str(data), "--output", str(output)], capsys, "DataError",
                "pairs.jsonl:3: not JSON")
        assert list(output.parent.iterdir()) == []
    held = kitchen.file("held.jsonl", "finished")
    refused(kitchen, ["data", "convert", str(kitchen.good("pairs")), "--output", str(held)], capsys, "DataError",
            f"{held}: the file exists")
