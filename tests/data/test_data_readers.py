"""Rows from files: every layout, every way a file can be broken."""

import csv
import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from keel.data.problems import Problem
from keel.data.readers import read_rows, scan_rows
from keel.errors import DataError

ROWS = [{"prompt": "hi", "n": 1}, {"prompt": "zwei Wörter\u2028 neu", "n": None}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zst(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def values(path):
    return [row.value for row in read_rows(path)]


def problems(path):
    return [found for found in scan_rows(path) if isinstance(found, Problem)]


@pytest.mark.parametrize("name, content", [
    ("a.jsonl", LINES), ("a.ndjson", LINES), ("a.txt", LINES), ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
    ("a.json", json.dumps(ROWS).encode()), ("b.json", json.dumps({"version": 1, "data": ROWS}, indent=2).encode()),
    ("c.json", LINES), ("a.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
    ("bom.jsonl", b"\xef\xbb\xbf" + LINES), ("crlf.jsonl", LINES.replace(b"\n", b"\r\n")),
    ("bom.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()), ("blank.jsonl", b"\n" + LINES + b"\n\n"),
    ("named_wrong.jsonl", gzip.compress(LINES, mtime=0)), ("no_newline.jsonl", LINES.rstrip(b"\n")),
])
def test_every_json_layout_gives_the_same_rows(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert values(tmp_path / name) == ROWS


def test_zstd_is_read_in_one_and_in_several_frames(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "a.jsonl.zst").write_bytes(pack(LINES))
    (tmp_path / "b.jsonl.zst").write_bytes(pack(LINES[:20]) + pack(LINES[20:]))
    assert values(tmp_path / "a.jsonl.zst") == values(tmp_path / "b.jsonl.zst") == ROWS


def test_lines_are_counted_from_one_blank_ones_included(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}\n')
    rows = list(read_rows(tmp_path / "a.jsonl"))
    assert [row.line for row in rows] == [2, 4]
    assert rows[1].where == f"{tmp_path}/a.jsonl:4"


def test_parquet_rows_are_numbered_through(tmp_path):
    table = pa.Table.from_pylist([{"prompt": [{"role": "user", "content": str(i)}]} for i in range(700)])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    rows = list(read_rows(tmp_path / "a.parquet"))
    assert rows[699].value == {"prompt": [{"role": "user", "content": "699"}]}
    assert rows[699].where == f"{tmp_path}/a.parquet:row 700"


def test_csv_cells_may_hold_commas_quotes_and_line_ends(tmp_path):
    cells = [["prompt", "chosen"], ['a, "b"', "line\nline"], ["", "x"]]
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(cells)
    rows = list(read_rows(tmp_path / "a.csv"))
    assert rows[0].value == {"prompt": 'a, "b"', "chosen": "line\nline"}
    assert rows[1].value == {"prompt": None, "chosen": "x"}
    assert [row.line for row in rows] == [2, 4] and rows[0].textual


def test_tsv_and_a_bom_in_front_of_the_header(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbfprompt\tn\r\nhi\t1\r\n")
    assert values(tmp_path / "a.tsv") == [{"prompt": "hi", "n": "1"}]


def test_a_folder_is_its_data_files_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl"):
        (tmp_path / name).write_text(json.dumps({"from": name}))
    (tmp_path / "README.md").write_text("not data")
    assert values(tmp_path) == [{"from": "a.jsonl"}, {"from": "b.jsonl"}]


def test_a_single_conversation_in_a_json_file_is_one_row(tmp_path):
    row = {"messages": [{"role": "user", "content": "hi"}]}
    (tmp_path / "a.json").write_text(json.dumps(row, indent=1))
    assert values(tmp_path / "a.json") == [row]


def test_a_line_of_ten_megabytes(tmp_path):
    row = {"text": "x" * 10_000_000}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + '\n{"text": "y"}\n')
    assert [len(value["text"]) for value in values(tmp_path / "a.jsonl")] == [10_000_000, 1]
    (tmp_path / "a.csv").write_text("text\n" + row["text"] + "\ny\n")
    assert [len(value["text"]) for value in values(tmp_path / "a.csv")] == [10_000_000, 1]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_large_files_are_streamed(tmp_path, suffix):
    path, text, n = tmp_path / f"a{suffix}", "word " * 200, 20_000
    if suffix == ".parquet":
        table = pa.table({"text": [text] * n})
        pq.write_table(table, path, row_group_size=500, compression="none", use_dictionary=False)
    elif suffix == ".csv":
        path.write_text("text\n" + f"{text}\n" * n)
    else:
        lines = (json.dumps({"text": text}) + "\n").encode() * n
        path.write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path)) == n
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * len(text) / 4


@pytest.mark.parametrize("content, kind, what", [
    (b'{"a": 1', "not JSON", "column 8"),
    (b'{"a": 1,}', "not JSON", "not JSON: "),
    (b'["a"]', "not an object", "the row is a list, not an object"),
    (b"3", "not an object", "the row is a number, not an object"),
    (b"null", "not an object", "the row is null, not an object"),
    (b'{"a": "\xe9"}', "not UTF-8", "byte 8 (0xe9) is not UTF-8"),
    (b'{"a": "b\0c"}', "NUL byte", "a NUL byte"),
    (b'{"a": ' + b"1" * 5000 + b"}", "not JSON", "not JSON that can be read"),
    (b"[" * 200_000, "not JSON", "not JSON that can be read"),
])
def test_a_bad_line_is_named_and_the_next_ones_are_still_read(tmp_path, content, kind, what):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 0}\n' + content + b'\n{"a": 2}\n')
    good, bad, after = scan_rows(tmp_path / "a.jsonl")
    assert good.value == {"a": 0} and after.value == {"a": 2} and after.line == 3
    assert bad.kind == kind and what in bad.what and bad.where == f"{tmp_path}/a.jsonl:2" and bad.remedy


def test_the_strict_reader_stops_at_the_first_bad_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 0}\n[]\n')
    rows = read_rows(tmp_path / "a.jsonl")
    assert next(rows).value == {"a": 0}
    with pytest.raises(DataError, match=r"a\.jsonl:2: the row is a list, not an object\n.*must be named \.json"):
        next(rows)


@pytest.mark.parametrize("name, content, what", [
    ("a.jsonl", b"", "no rows in this file"), ("a.jsonl", b"\n \n", "no rows in this file"),
    ("a.json", b"", "no rows in this file"), ("a.json", b"[]", "no rows in this file"),
    ("a.csv", b"prompt,chosen\n", "no rows in this file"), ("a.jsonl.gz", b"", "no rows in this file"),
    ("a.json", b'{"a": ', "not JSON"), ("a.json", b"3", "the document is a number"),
    ("a.json", b'[{"a": 1}, 3]', "the row is a number"),
    ("a.json", json.dumps({"a": ROWS, "b": ROWS}).encode(), "several lists: a, b"),
    ("a.jsonl", '{"a": 1}'.encode("utf-16"), "UTF-16"), ("a.json", '{"a": 1}'.encode("utf-16"), "UTF-16"),
    ("a.jsonl.gz", b'{"a": 1}', "named .gz but does not begin like such a file"),
    ("a.jsonl.zst", b'{"a": 1}', "named .zst but does not begin like such a file"),
    ("a.jsonl.gz", gzip.compress(LINES * 1000, mtime=0)[:-200], "cannot read on after row"),
    ("a.jsonl.zst", zst(LINES * 1000)[:-5], "cannot read on after row"),
    ("a.parquet", b"PAR1 nothing", "cannot read on after row 0"), ("a.parquet", b"", "cannot read on after row 0"),
    ("a.csv", b"a,a\n1,2\n", "empty or repeated names: a, a"),
    ("a.csv", b"a,b\n1,2,3\n", "3 cells under a header of 2"),
    ("a.csv", b"a\n\xff\n", "the row is not UTF-8"), ("a.csv", b"a\nb\0c\n", "NUL byte"),
    ("a.csv", b'a\n"b"c\n', "not CSV"), ("a.csv", b'a\n"b\n', "not CSV"),
])
def test_broken_files_are_problems_not_tracebacks(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    found = problems(tmp_path / name)
    assert len(found) == 1 and what in found[0].what and name in found[0].where and found[0].remedy


def test_a_truncated_gzip_gives_its_first_rows(tmp_path):
    whole = gzip.compress(b"".join(json.dumps({"n": i, "pad": str(i**9)}).encode() + b"\n" for i in range(20_000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:len(whole) // 2])
    *rows, last = scan_rows(tmp_path / "a.jsonl.gz")
    assert len(rows) > 1000 and rows[-1].value["n"] == len(rows) - 1
    assert last.kind == "unreadable file" and last.where.endswith(f":{len(rows) + 1}")


def test_rows_behind_a_bad_csv_row_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n\xff,3\n4\n5,6\n")
    found = list(scan_rows(tmp_path / "a.csv"))
    assert [getattr(x, "kind", None) for x in found] == [None, "not UTF-8", "wrong number of cells", None]
    assert found[3].line == 5


def test_what_is_not_there_or_cannot_be_read_at_all(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file or folder\n.*Paths are relative to"):
        list(read_rows(tmp_path / "nowhere.jsonl"))
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(DataError, match=r"unknown kind of file '\.xlsx'\n.*keel reads \.jsonl"):
        list(read_rows(tmp_path / "a.xlsx"))
    with pytest.raises(DataError, match=r"no data file in this folder; it holds a\.xlsx\n.*keel reads"):
        list(read_rows(tmp_path))
