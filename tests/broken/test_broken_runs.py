"""Broken run folders, full disks and numbers that are not finite: one message, and no finished work is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from broken.kitchen import EXIT, Kitchen, full_disk, one_message, refused, served

from keel.cli import main
from keel.recipes import sft
from keel.train.step import require_finite


@pytest.fixture(scope="session")
def whole(tmp_path_factory, pantry):
    """A finished run of four steps with checkpoints at 2 and 4."""
    kitchen = Kitchen(tmp_path_factory.mktemp("whole"), *pantry)
    assert main(kitchen.sft()) == 0
    return kitchen.out


@pytest.fixture
def half(kitchen, whole):
    """The same run as if it had been killed after step 4 was logged and before its checkpoint was whole."""
    shutil.copytree(whole, kitchen.out)
    shutil.rmtree(kitchen.out / "model")
    (kitchen.out / "result.json").unlink()
    (kitchen.out / "checkpoints/step-0000004.pt").unlink()
    return kitchen.out


def same_end(folder: Path, whole: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def resume(folder: Path) -> list[str]:
    return ["sft", "--resume", str(folder)]


def allowed(folder: Path) -> dict[str, bytes]:
    """What a failed attempt must not change: all but how the attempt itself ended."""
    return {str(p): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and p.name not in ("result.json", ".lock") and p.parent.name != "tensorboard"}


def test_data_that_changed_since_the_run_began_are_not_trained_on(half, capsys):
    import tomllib

    file = Path(tomllib.loads((half / "config.toml").read_text())["data"]["path"])
    was, before = file.read_bytes(), allowed(half)
    file.write_bytes(was.replace(b"yes", b"no ", 1))
    try:
        code = main(resume(half))
    finally:
        file.write_bytes(was)
    said = capsys.readouterr().err
    assert code == EXIT["RunError"] and "has changed since the run began" in said and str(file) in said
    assert allowed(half) == before


def test_resuming_ends_as_if_nothing_had_happened(half, whole, capsys):
    assert main(resume(half)) == 0
    same_end(half, whole)


def test_resuming_what_is_no_run(kitchen, capsys):
    for folder in (kitchen.folder / "nowhere", kitchen.file("empty/x", "x").parent, kitchen.file("file", "x")):
        refused(kitchen, resume(folder), capsys, "RunError",
                f"{folder}: no run in this folder (config.toml is missing)")


def test_resuming_a_run_of_another_recipe(kitchen, half, capsys):
    refused(kitchen, ["reward-model", "--resume", str(half)], capsys, "RunError",
            "this folder holds a 'sft' run, not a 'reward_model' run", f"keel sft --resume {half}")


def test_resuming_a_finished_run_does_nothing(kitchen, whole, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert served(kitchen, resume(whole), capsys) == (0, "")
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name, content, kind, fragments", [
    ("config.toml", "batch = = 3", "RunError", ["config.toml: the settings of this run are damaged: not a TOML file"]),
    ("config.toml", b"\xff\xfe", "RunError", ["the settings of this run are damaged"]),
    ("config.toml", "batch = 1", "ConfigError", ["config.toml: ", "field 'model' is required"]),
    ("environment.json", '{"recipe": ', "RunError", ["the run folder is damaged: environment.json: not JSON"]),
    ("environment.json", "[]", "RunError", ["this folder holds a 'unknown' run"]),
    ("environment.json", None, "RunError", ["environment.json: No such file"]),
    ("result.json", '{"status', "RunError", ["the run folder is damaged: result.json: not JSON"]),
])
def test_resuming_with_a_damaged_description(kitchen, half, capsys, name, content, kind, fragments):
    (half / name).unlink(missing_ok=True)
    if content is not None:
        kitchen.file(f"out/{name}", content)
    refused(kitchen, resume(half), capsys, kind, *fragments)


@pytest.mark.parametrize("keep", [0, 100, 10_000, -1])
def test_resuming_from_a_cut_checkpoint(kitchen, half, whole, capsys, keep):
    """The message names the file; without it the run goes on from the checkpoint before."""
    cut = (whole / "checkpoints/step-0000004.pt").read_bytes()[:keep]
    file = kitchen.file("out/checkpoints/step-0000004.pt", cut)
    refused(kitchen, resume(half), capsys, "RunError", "checkpoint step-0000004.pt is damaged", f"Remove {file}")
    file.unlink()
    assert main(resume(half)) == 0
    same_end(half, whole)


def test_resuming_from_a_checkpoint_with_a_flipped_bit(kitchen, half, capsys):
    file = half / "checkpoints/step-0000002.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused(kitchen, resume(half), capsys, "RunError", "checkpoint step-0000002.pt is damaged")


def test_resuming_with_another_model_in_the_old_place(kitchen, half, capsys):
    import tiny

    other = tiny.llama(kitchen.folder / "three", layers=3)
    settings = half / "config.toml"
    settings.write_text(settings.read_text().replace(str(kitchen.base), str(other)))
    refused(kitchen, resume(half), capsys, "RunError",
            "checkpoint step-0000002.pt holds other parameters than the model")


def test_a_folder_that_holds_a_run(kitchen, half, capsys):
    before = allowed(half)
    refused(kitchen, kitchen.sft(), capsys, "RunError", f"{half}: this folder already holds a run", "--resume")
    assert allowed(half) == before and not (half / "result.json").exists()


def test_a_run_that_failed_before_it_began_can_be_begun_anew(kitchen, capsys):
    """A misspelled path must not cost the folder's name."""
    refused(kitchen, kitchen.sft(data="no.jsonl"), capsys, "DataError", "no such file")
    assert (kitchen.out / "config.toml").exists()
    assert main(kitchen.sft()) == 0
    assert json.loads((kitchen.out / "result.json").read_text())["status"] == "finished"


def test_a_folder_that_cannot_be_made(kitchen, capsys):
    held = kitchen.file("held", "x")
    refused(kitchen, kitchen.sft(out=held), capsys, "RunError", f"{held}: cannot write: File exists",
            "written with --out")
    refused(kitchen, kitchen.sft(out=held / "run"), capsys, "RunError", "cannot write: Not a directory")
    refused(kitchen, kitchen.sft(out="/proc/keel"), capsys, "RunError", "/proc/keel: cannot write: No such file")


def test_a_folder_without_permission(kitchen, capsys, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    refused(kitchen, kitchen.sft(), capsys, "RunError", f"{kitchen.out}: cannot write: Permission denied", "--out")


def test_a_full_disk_while_logging(kitchen, capsys):
    kitchen.out.mkdir()
    (kitchen.out / "metrics.jsonl").symlink_to("/dev/full")
    code, said = served(kitchen, kitchen.sft(), capsys)
    one_message(said, "RunError", "cannot write: No space left on device", "Free some space; then --resume")
    assert code == EXIT["RunError"]
    assert json.loads((kitchen.out / "result.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("limit", [200, 5000, 40_000])
def test_a_full_disk_while_writing_settings_and_checkpoints(kitchen, capsys, limit):
    """200 bytes: not even the settings; more: the checkpoint of step 2."""
    arguments = kitchen.sft()
    with full_disk(limit):
        code, said = served(kitchen, arguments, capsys)
    one_message(said, "RunError", "cannot write: File too large", "Free some space")
    assert code == EXIT["RunError"] and not (kitchen.out / "model").exists()
    assert not list(kitchen.out.glob("checkpoints/step-*"))


def test_a_full_disk_while_saving_the_model_then_space_again(kitchen, half, whole, capsys):
    """Everything was learned; the model did not fit. With space it is saved, bit for bit."""
    shutil.copy(whole / "checkpoints/step-0000004.pt", half / "checkpoints/step-0000004.pt")
    before = (half / "checkpoints/step-0000004.pt").read_bytes()
    with full_disk(6000):
        code, said = served(kitchen, resume(half), capsys)
    one_message(said, "RunError", "cannot write the model: ", "Free some space")
    assert code == EXIT["RunError"] and not (half / "model").exists()
    assert (half / "checkpoints/step-0000004.pt").read_bytes() == before
    assert main(resume(half)) == 0
    same_end(half, whole)
    assert not [path for path in half.iterdir() if path.name.endswith(".new")]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_a_full_disk_while_converting(kitchen, capsys, suffix):
    output = kitchen.folder / f"made/pairs.{suffix}"
    arguments = ["data", "convert", str(kitchen.good("pairs")), "--output", str(output)]
    with full_disk(200):
        code, said = served(kitchen, arguments, capsys)
    one_message(said, "DataError", "cannot write: ", "nothing stays behind")
    assert code == EXIT["DataError"] and list(output.parent.iterdir()) == []


def test_a_loss_that_is_not_finite(kitchen, capsys):
    """Weights thrown out of float32 by the first step: the run ends with step, metric and records."""
    options = {"optimizer.lr": 1e30, "optimizer.schedule": "constant", "optimizer.warmup_fraction": 0, "save-every": 1}
    said = refused(kitchen, kitchen.sft(**options), capsys, "NumericsError", "step 2 (records d", " is not finite",
                   "The last checkpoint is intact", "keel data show")
    rows = (kitchen.folder / "demonstrations.jsonl").read_text().splitlines()
    ids = {json.loads(row)["id"] for row in rows}
    assert set(said.split("(records ")[1].split(")")[0].split(", ")) <= ids
    assert len((kitchen.out / "metrics.jsonl").read_text().splitlines()) >= 1
    assert json.loads((kitchen.out / "result.json").read_text())["error"].startswith("step 2")
    assert [path.name for path in (kitchen.out / "checkpoints").iterdir()] == ["step-0000001.pt"]


def test_after_a_bad_number_the_run_resumes_from_its_checkpoint(kitchen, whole, capsys, monkeypatch):
    def spoiled(value, name, step, record_ids):
        require_finite(value * float("nan") if step == 3 else value, name, step, record_ids)

    with monkeypatch.context() as patch:
        patch.setattr(sft, "require_finite", spoiled)
        refused(kitchen, kitchen.sft(), capsys, "NumericsError", "step 3 (records d", "loss is not finite")
    assert main(resume(kitchen.out)) == 0
    same_end(kitchen.out, whole)


def test_the_policys_loss_names_its_records_too(kitchen, capsys):
    options = {"steps": 3, "policy_optimizer.lr": 1e30, "policy_optimizer.warmup_fraction": 0, "rollouts": 8}
    refused(kitchen, kitchen.ppo(**options), capsys, "NumericsError", "records q")


def test_an_interrupt_is_no_traceback(kitchen, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "evaluate", interrupted)
    code, said = served(kitchen, kitchen.sft(), capsys)
    assert (code, said) == (130, "interrupted; a run continues with --resume from its last checkpoint\n")
    assert json.loads((kitchen.out / "result.json").read_text())["error"] == "KeyboardInterrupt"


def test_a_reader_that_went_away_is_no_error(kitchen):
    """`keel ... | head` says nothing about its pipe."""
    for arguments in (["--help"], ["data", "show", str(kitchen.good("pairs")), "--n", "12"]):
        with subprocess.Popen([sys.executable, "-m", "keel", *arguments], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as pipe:
            pipe.stdout.close()
            assert pipe.stderr.read() == b""


def test_a_demo_never_writes_into_a_folder_that_holds_something(kitchen, capsys):
    held = kitchen.file("demo/notes.txt", "mine").parent
    refused(kitchen, ["demo", "--out", str(held)], capsys, "RunError", f"{held}: the demo's folder is not empty",
            "--out")


def test_a_full_disk_under_standard_output(kitchen):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "keel", "--help"], stdout=full, stderr=subprocess.PIPE, text=True,
                              check=False)
    one_message(done.stderr, "RunError", "No space left on device")
    assert done.returncode == EXIT["RunError"]
