"""`keel data check`, `show`, `convert`, and the writer under the last."""

import json
import subprocess
import sys
from dataclasses import replace
from statistics import fmean, pstdev

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keel.data import Demonstration, Message, PreferencePair, Prompt, read_demonstrations, read_pairs, read_prompts
from keel.data import check as check_command
from keel.data import convert as convert_command
from keel.data import show as show_command
from keel.data.check import DataCheckConfig
from keel.data.convert import DataConvertConfig
from keel.data.records import Strength
from keel.data.show import DataShowConfig
from keel.data.write import write_records
from keel.errors import DataError

PAIR = {"prompt": "hi there", "chosen": "yes", "rejected": "no", "subset": "easy"}
SUFFIXES = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]


def check(path, **options):
    return check_command.run(DataCheckConfig(paths=str(path), **options))


def test_check_says_what_is_there(jsonl, capsys):
    path = jsonl(PAIR, PAIR, PAIR | {"chosen": "yes yes [bold]", "subset": "hard"}, PAIR | {"prompt": "why"})
    report = check(path, max_length=11)
    assert (report.kind, report.unit, report.reading.n_records) == ("pairs", "characters", 4)
    assert report.groups == {"subset": {"easy": 3, "hard": 1}}
    assert (report.quantiles, report.n_too_long) == ((6, 11, 22, 22, 22), 1)
    assert (report.n_repeated, report.n_same_prompt) == (1, 2)
    printed = capsys.readouterr().out
    assert "4 rows read, none dropped" in printed and "kind: pairs (pair 4)" in printed
    assert "subset: easy 3, hard 1" in printed and "longer than 11: 1" in printed
    assert "length in characters: shortest 6, median 11, 90% 22, 99% 22, longest 22" in printed


def test_check_lists_problems_to_its_limit_and_ends_in_an_error(jsonl, capsys):
    path = jsonl(PAIR, *[PAIR | {"id": f"x{i}", "chosen": ""} for i in range(3)])
    with pytest.raises(DataError, match=r"3 problems in 4 rows") as caught:
        check(path, limit=2)
    assert caught.value.exit_code == 3
    printed = capsys.readouterr().out
    assert f"{path}:2 (id x0): chosen is empty\n      Remove the record" in printed and "and 1 more problems" in printed
    assert "(id x2)" not in printed
    assert check(path, on_bad_record="skip").reading.dropped == {"empty response": 3}


@pytest.mark.parametrize("row, kind", [
    (PAIR, "pairs"), ({"text": "a"}, "demonstrations"), ({"prompt": "a", "completion": "b"}, "demonstrations"),
    ({"prompt": "a"}, "prompts")])
def test_check_finds_the_kind_by_the_first_row_it_understands(jsonl, row, kind):
    path = jsonl("not json", {"nothing": 1}, row)
    assert check(path, on_bad_record="skip").kind == kind
    assert check_command.kind_of_files(jsonl("not json")) == "prompts"


def test_check_measures_in_tokens(jsonl, words, tmp_path, capsys):
    words.save_pretrained(tmp_path / "tokenizer")
    report = check(jsonl(PAIR), tokenizer=str(tmp_path / "tokenizer"), max_length=7)
    assert (report.unit, set(report.quantiles), report.n_too_long) == ("tokens", {8}, 1)
    assert "length in tokens" in capsys.readouterr().out


def test_show_makes_the_mask_visible(jsonl, words, tmp_path, capsys):
    words.save_pretrained(tmp_path / "tokenizer")
    path = jsonl(PAIR, PAIR | {"chosen": "so", "margin": 0.5, "truth": {"gold": 1}})
    (text,) = show_command.run(DataShowConfig(paths=str(path), n=1, skip=1, tokenizer=str(tmp_path / "tokenizer")))
    assert text.splitlines() == [
        "── rows:2", "user: hi there", "chosen: so", "rejected: no", "margin 0.5, label_prob 1, weight 1",
        "meta: {'subset': 'easy'}", "truth: {'gold': 1}",
        "tokens of chosen (6 + 2): <bos>|<user>|hi|there|<eos>|<assistant>|⟦so|<eos>⟧",
        "tokens of rejected (6 + 2): ...|⟦no|<eos>⟧"]
    assert text in capsys.readouterr().out


def test_show_of_prompts_and_plain_text(jsonl, words, tmp_path):
    words.save_pretrained(tmp_path / "tokenizer")
    options = {"tokenizer": str(tmp_path / "tokenizer"), "n": 1}
    (prompt,) = show_command.run(DataShowConfig(paths=str(jsonl({"prompt": "hi"})), **options))
    assert prompt.endswith("tokens (5): <bos>|<user>|hi|<eos>|<assistant>")
    (text,) = show_command.run(DataShowConfig(paths=str(jsonl({"text": "hi so"})), **options))
    assert text.splitlines()[1:] == ["response: hi so", "tokens of response (1 + 3): <bos>|⟦hi|so|<eos>⟧"]
    (text,) = show_command.run(DataShowConfig(paths=str(jsonl({"prompt": "hi"})), as_text=True, n=1))
    assert text == "── rows:1\ntext: hi"


def test_show_of_nothing(jsonl):
    with pytest.raises(DataError, match=r"no record to show: 0 of 1 rows read.*the first problem: .*rows\.jsonl:1"):
        show_command.run(DataShowConfig(paths=str(jsonl({"a": 1}))))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_converting_then_reading_gives_the_same_records(jsonl, tmp_path, suffix):
    meta = {"a": [1, None], "é\u2028": {"b": 2.5}}
    path = jsonl(PAIR | {"id": "x", "margin": 0.1, "meta": meta, "truth": {"c": "d"}},
                 {"id": "y", "chosen": ["a", "b"], "rejected": ["a", "c"]}, PAIR | {"chosen": ""})
    output = tmp_path / "out" / f"pairs{suffix}"
    report = convert_command.run(DataConvertConfig(paths=str(path), output=str(output), on_bad_record="skip"))
    assert report.dropped == {"empty response": 1}
    assert read_pairs(output)[0] == read_pairs(path, on_bad_record="skip")[0]
    assert [p.name for p in output.parent.iterdir()] == [output.name]


def test_the_same_records_give_the_same_bytes(jsonl, tmp_path):
    path = jsonl(PAIR)
    for name in ("a", "b"):
        convert_command.run(DataConvertConfig(paths=str(path), output=str(tmp_path / f"{name}.jsonl.gz")))
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_convert_can_change_the_kind(jsonl, tmp_path):
    path = jsonl(PAIR)
    for kind, columns in (("prompts", ["id", "prompt", "meta"]),
                          ("demonstrations", ["id", "prompt", "completion", "meta"])):
        output = tmp_path / f"{kind}.jsonl"
        convert_command.run(DataConvertConfig(paths=str(path), output=str(output), kind=kind))
        assert list(json.loads(output.read_text())) == columns


def test_convert_writes_nothing_when_it_stops(jsonl, tmp_path):
    output = tmp_path / "out" / "a.jsonl"
    with pytest.raises(DataError, match="chosen is empty"):
        convert_command.run(DataConvertConfig(paths=str(jsonl(PAIR, PAIR | {"chosen": ""})), output=str(output)))
    with pytest.raises(DataError, match=r"no record left: 0 of 1 rows read(.|\n)*keel data check"):
        convert_command.run(DataConvertConfig(paths=str(jsonl("x")), output=str(output), on_bad_record="skip"))
    with pytest.raises(DataError, match=r"no record to write\n.*columns from a record"):
        write_records([], output.with_suffix(".parquet"))
    assert list(output.parent.iterdir()) == []


def test_convert_never_overwrites_and_knows_its_suffixes(jsonl, tmp_path):
    path = jsonl(PAIR)
    with pytest.raises(DataError, match=r"rows\.jsonl: the file exists\n.*Choose another name"):
        convert_command.run(DataConvertConfig(paths=str(path), output=str(path)))
    for name, shown in (("a.csv", r"\.csv"), ("a", "files without a suffix"), ("a.parquet.gz", r"\.parquet\.gz")):
        with pytest.raises(DataError, match=rf"keel does not write {shown}\n.*Name it \.jsonl"):
            convert_command.run(DataConvertConfig(paths=str(path), output=str(tmp_path / name)))


def test_a_folder_that_cannot_be_written(jsonl, tmp_path):
    with pytest.raises(DataError, match=r"cannot write: .*\n.*free space"):
        convert_command.run(DataConvertConfig(paths=str(jsonl(PAIR)), output=str(tmp_path / "rows.jsonl" / "a.jsonl")))


def test_parquet_takes_one_kind_of_row(tmp_path):
    mixed = [Prompt("a", (Message("user", "x"),)), Prompt("b", (), "plain")]
    with pytest.raises(DataError, match=r"id b: the record has other columns than the first one\n.*Write \.jsonl"):
        write_records(mixed, tmp_path / "a.parquet")
    assert write_records(mixed, tmp_path / "a.jsonl") == 2
    write_records(mixed[:1], tmp_path / "b.parquet")
    assert pq.read_schema(tmp_path / "b.parquet").names == ["id", "prompt", "meta", "truth"]


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
WORD = st.text(CHARACTERS, min_size=1, max_size=12).filter(str.strip)
CELL = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | WORD
META = st.dictionaries(WORD, CELL, max_size=3)


@st.composite
def prompts(draw, name="x"):
    turns = draw(st.lists(WORD, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1))
    system = (Message("system", draw(WORD)),) if draw(st.booleans()) else ()
    messages = tuple(Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns))
    return Prompt(name, system + messages, None, draw(META), draw(META))


@st.composite
def pairs(draw):
    chosen, rejected = draw(st.tuples(WORD, WORD).filter(lambda sides: sides[0].strip() != sides[1].strip()))
    number = st.floats(-10, 10)
    return PreferencePair(draw(prompts()), chosen, rejected, draw(number), draw(st.floats(0, 1)), abs(draw(number)),
                          draw(st.none() | strengths()))


@st.composite
def strengths(draw):
    scores = draw(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), max_size=4))
    if not scores:
        return Strength(draw(st.floats(-10, 10)), draw(st.floats(0, 10)))
    gaps = [one - other for one, other in scores]
    return Strength(fmean(gaps), pstdev(gaps), *zip(*scores, strict=True))


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pair=pairs())
def test_what_is_written_is_read(tmp_path, suffix, pair):
    for records, read in (([pair], read_pairs), ([pair.prompt], read_prompts),
                          ([Demonstration(pair.prompt, pair.chosen)], read_demonstrations)):
        path = tmp_path / f"a{suffix}"
        write_records(records, path)
        assert read(path)[0] == records
        path.unlink()


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pair=pairs(), judge=st.none() | st.sampled_from([-1, 0, 1]))
def test_what_is_written_in_the_published_layout_is_read(tmp_path, suffix, pair, judge):
    if judge is not None:
        pair = replace(pair, prompt=replace(pair.prompt, meta={**pair.prompt.meta, "judge_label": judge}))
    path = tmp_path / f"a{suffix}"
    write_records([pair], path, layout="published")
    assert read_pairs(path)[0] == [pair]
    path.unlink()


def test_the_published_layout_has_its_columns(jsonl, tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    votes = {"strength_mean": 1.5, "strength_std": 0.5, "chosen_scores": [3, 1], "rejected_scores": [1, 0]}
    path = jsonl({"id": "x", "prompt": talk, "chosen": "d", "rejected": "e", "judge_label": 1} | votes,
                 {"id": "y", "prompt": talk[2:] * 2, "chosen": "d", "rejected": "e", "weight": 2.0})
    output = tmp_path / "out.jsonl"
    convert_command.run(DataConvertConfig(paths=str(path), output=str(output), layout="published"))
    with_votes, without = (json.loads(line) for line in output.read_text().splitlines())
    assert with_votes == {
        "id": "x", "chosen": ["a", "b", "c", "d"], "rejected": ["a", "b", "c", "e"], "mean preference difference": 1.5,
        "std preference difference": 0.5, "chosen score list": [3.0, 1.0], "rejected score list": [1.0, 0.0],
        "GPT4 label": 1}
    assert without == {"id": "y", "weight": 2.0, **{
        name: [*talk[2:] * 2, {"role": "assistant", "content": text}] for name, text in
        (("chosen", "d"), ("rejected", "e"))}}
    plain = PreferencePair(Prompt("z", (), "once"), " upon", " more")
    write_records([plain], tmp_path / "plain.jsonl", layout="published")
    assert read_pairs(tmp_path / "plain.jsonl", as_text=True)[0] == [plain]
    with pytest.raises(DataError, match=r"id p: only preference pairs have the published layout\n.*layout = keel"):
        write_records([Prompt("p", (), "x")], tmp_path / "b.jsonl", layout="published")


def test_show_tells_how_the_members_voted(jsonl):
    votes = {"strength_mean": -0.5, "strength_std": 1.5}
    path = jsonl(PAIR | votes, PAIR | votes | {"chosen_scores": [2, 0], "rejected_scores": [1, 2]})
    summary, whole = show_command.run(DataShowConfig(paths=str(path), n=2))
    assert "strength -0.5, std 1.5" in summary.splitlines()
    assert "strength -0.5, std 1.5; 1 of 2 members side with the label" in whole.splitlines()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=WORD, response=WORD)
def test_plain_text_is_written_and_read(tmp_path, text, response):
    records = [Demonstration(Prompt("x", (), text), response)]
    write_records(records, tmp_path / "a.jsonl")
    assert read_demonstrations(tmp_path / "a.jsonl", as_text=True)[0] == records
    (tmp_path / "a.jsonl").unlink()


def test_half_a_character_in_meta_survives_as_an_escape(tmp_path):
    records = [Prompt("x", (Message("user", "a"),), None, {"k": "\ud83d"})]
    write_records(records, tmp_path / "a.jsonl")
    assert read_prompts(tmp_path / "a.jsonl")[0] == records


def test_importing_the_room_takes_no_heavy_library():
    code = ("import sys, keel.data, keel.data.check, keel.data.show, keel.data.convert; "
            "print([name for name in ('torch', 'transformers', 'pyarrow', 'rich.console') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
