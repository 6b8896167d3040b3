"""The command line as a whole: commands, options in all their spellings, and what it costs to start."""

import subprocess
import sys
import tomllib

import pytest
import tiny

import keel
from keel.cli import main
from keel.recipes import COMMANDS

HEAVY = ("print(sorted({'torch', 'transformers', 'pyarrow', 'plotly', 'tensorboard', 'numpy', 'peft'} "
         "& set(sys.modules)))")


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(arguments, capsys):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(f"  keel {name} " in text and line in text for name, (_, _, line) in COMMANDS.items())
    assert "keel demo" in text.splitlines()[-1]


def test_version(capsys):
    for word in ("--version", "-V"):
        assert main([word]) == 0
        assert capsys.readouterr().out == f"keel {keel.__version__}\n"


def test_help_is_found_anywhere(capsys):
    assert main(["sft", "--seed", "1", "-h"]) == 0
    assert capsys.readouterr().out.startswith("keel sft [config.toml | preset]")


def test_arguments_of_the_process_are_the_default(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["keel", "--version"])
    assert main() == 0


def test_importing_and_asking_for_help_is_light():
    assert fresh(f"import sys, keel; {HEAVY}") == "[]\n"
    told = fresh(f"import sys; from keel.cli import main; main(['--help']); {HEAVY}")
    assert told.splitlines()[-1] == "[]"
    told = fresh(f"import sys; from keel.cli import main; main(['stf']); main(['--version']); {HEAVY}")
    assert told.splitlines()[-1] == "[]"


def test_checking_data_needs_no_torch(tmp_path):
    path = tiny.pairs(tmp_path / "pairs.jsonl", 3)
    told = fresh(f"import sys; from keel.cli import main; main(['data', 'check', {str(path)!r}]); {HEAVY}")
    assert "kind: pairs (pair 3)" in told and told.splitlines()[-1] == "[]"


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "keel", "stf"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("ConfigError: unknown command 'stf'") and done.stdout == ""


def test_spellings_of_an_option(capsys):
    """`--n-samples 3`, `--n_samples 3` and `--n-samples=3` are one; a negative number is a value; the last counts."""
    printed = []
    start = ["sft", "--out", "o", "--model", "m", "--data", "d", "--print-config"]
    for more in (["--n-samples", "3"], ["--n_samples", "3"], ["--n-samples=3"], ["--n-samples", "9", "--n-samples=3"]):
        assert main([*start, *more]) == 0
        printed.append(capsys.readouterr().out)
    assert len(set(printed)) == 1 and "n_samples = 3\n" in printed[0]
    assert main([*start, "--seed", "-1"]) == 2
    assert "seed = '-1': input should be greater than or equal to 0" in capsys.readouterr().err
    assert main([*start, "--data.path=a=b"]) == 0
    assert 'path = "a=b"' in capsys.readouterr().out


def test_files_without_an_option(tmp_path, capsys):
    """`keel data check A B`, as every remedy writes it."""
    one, other = tiny.pairs(tmp_path / "one.jsonl", 3), tiny.prompts(tmp_path / "other.jsonl", 3)
    assert main(["data", "check", str(one)]) == 0
    assert "3 rows read, none dropped" in capsys.readouterr().out
    assert main(["data", "check", str(one), str(other), "--kind", "prompts", "--on-bad-record", "skip"]) == 0
    assert "6 rows read, none dropped" in capsys.readouterr().out
    assert main(["data", "show", str(one), "--n=1"]) == 0
    assert "── p0" in capsys.readouterr().out
    assert main(["data", "convert", str(one), "--output", str(tmp_path / "made.parquet")]) == 0
    assert (tmp_path / "made.parquet").exists()


def test_a_config_file_beside_files(tmp_path, capsys):
    file = tmp_path / "check.toml"
    file.write_text('kind = "prompts"\n')
    assert main(["data", "check", str(file), str(tiny.pairs(tmp_path / "one.jsonl", 3))]) == 0
    assert "kind: prompts" in capsys.readouterr().out


def test_chat_answers_line_by_line(tmp_path, capsys, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("hello cat\n\nwhy ?\n"))
    model = tiny.llama(tmp_path / "base")
    assert main(["chat", "--model", str(model), "--sampling.max_new_tokens", "4", "--max-length", "64"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_option_of_several_values_may_be_given_several_times(capsys):
    start = ["bench-rm", "--out", "o", "--benchmark", "b", "--scorer.function", "a:b", "--print-config"]
    name = "--benchmark.exclude"
    for more, names in (([name, "S1", name, "Hate"], ["S1", "Hate"]), ([name, '["S1", "Hate"]'], ["S1", "Hate"]),
                        ([name, "S1"], ["S1"])):
        assert main([*start, *more]) == 0
        assert tomllib.loads(capsys.readouterr().out)["benchmark"]["exclude"] == names


EVALUATE = ["evaluate", "--out", "o", "--prompts", "q.jsonl", "--print-config"]


@pytest.mark.parametrize("more", [
    ["--models", "A", "--models", "{path = 'B'}"], ["--models", '["A"]', "--models", "B"], ["--models", '["A", "B"]']])
def test_tables_of_a_list_may_be_given_several_times(more, capsys):
    assert main([*EVALUATE, *more]) == 0
    assert [one["path"] for one in tomllib.loads(capsys.readouterr().out)["models"]] == ["A", "B"]


@pytest.mark.parametrize("first, form", [
    ("A", """'["A", "{}"]'"""), ("{path = 'A'}", """'[{path = 'A'}, "{}"]'"""), ('["A"]', """'["A", "{}"]'""")])
def test_a_second_value_after_an_option_of_several_is_shown_how_it_is_written(tmp_path, first, form, capsys):
    """A folder too: models are folders, and no folder is a config file."""
    for word in ("B", str(tmp_path)):
        assert main([*EVALUATE, "--models", first, word]) == 2
        told = capsys.readouterr().err
        assert f"{word!r} belongs to no option and is no config file or preset" in told
        shown = form.replace("{}", word)
        assert f"Several values are one list: --models {shown}; or give --models again." in told


def test_a_preset_may_stand_after_an_option_of_several_values(capsys, tmp_path):
    start = ["reward-model", "--out", "o", "--model", "m", "--data", "d", "--benchmark.path", "b",
             "--benchmark.exclude", "S1"]
    (tmp_path / "plain").write_text("seed = 3")
    for word, line in (("rm_margin", 'margin = 1.0'), (str(tmp_path / "plain"), "seed = 3")):
        assert main([*start, word, "--print-config"]) == 0
        assert line in capsys.readouterr().out


@pytest.mark.parametrize("command, name", [("offline-pg", "rm_baseline"), ("preference", "rm_baseline"),
                                           ("ranking-rm", "rm_baseline")])
def test_help_lists_no_preset_whose_values_the_command_refuses(command, name, capsys):
    assert main([command, "--help"]) == 0
    assert name not in capsys.readouterr().out
    assert main([command, name]) == 2
    assert f"'{name}' is no preset of `keel {command}`" in capsys.readouterr().err
    assert main(["reward-model", "--help"]) == 0
    assert name in capsys.readouterr().out
