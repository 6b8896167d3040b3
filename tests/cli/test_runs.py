"""The run folder: its lock, what it remembers, and how it ends."""

import hashlib
import io
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest
import tiny
import torch
from pydantic import Field
from recipes.running import sft_config, started

from keel import progress, runs
from keel.config import Config, read_toml
from keel.errors import NumericsError, RunError
from keel.recipes import sft


class Settings(Config):
    rate: float = Field(0.5, description="a number")
    limit: int | None = Field(None, description="one that is off")


def opened(folder, **options):
    return runs.start("some_recipe", Settings(), folder, seed=3, **options)


def rows(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_what_a_run_remembers_of_its_birth(tmp_path):
    data = tiny.pairs(tmp_path / "pairs.jsonl", 3)
    many = tmp_path / "many"
    many.mkdir()
    tiny.pairs(many / "b.jsonl", 2)
    tiny.prompts(many / "a.jsonl", 2)
    with opened(tmp_path / "run", data=[data, many, tmp_path / "not there"]) as log:
        log.finish({"score": 1.0})
    found = json.loads((tmp_path / "run/environment.json").read_text())
    assert (found["recipe"], found["seed"], found["torch"]) == ("some_recipe", 3, torch.__version__)
    assert found["python"] == platform.python_version() and found["cores"] == os.cpu_count()
    assert {"keel", "transformers", "tokenizers", "peft", "numpy", "command", "machine", "cpu",
            "threads"} <= found.keys()
    assert found["started"].endswith("Z") and found["command"].split()[0] == "keel"
    files = [data, many / "a.jsonl", many / "b.jsonl"]
    assert found["data"] == {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert read_toml(tmp_path / "run/config.toml") == {"rate": 0.5, "limit": "none"}
    assert Settings.resolve(tmp_path / "run/config.toml") == Settings()


def test_one_process_at_a_time(tmp_path):
    first = opened(tmp_path / "run")
    with pytest.raises(RunError, match="another process is working in this run folder"):
        opened(tmp_path / "run", resume=True)
    with first:
        first.log(1, {"a": 1.0})
    with pytest.raises(RunError, match="this folder already holds a run"):
        opened(tmp_path / "run")
    with opened(tmp_path / "run", resume=True) as again:  # both refusals let go of the lock
        assert again.resumed


def test_numbers_that_are_not_finite_become_null(tmp_path):
    values = {"nan": float("nan"), "inf": torch.tensor(float("inf")), "tensor": torch.tensor(2.5), "count": 3,
              "text": "é"}
    with opened(tmp_path / "run") as log:
        log.log(1, values, "eval")
        log.sample([{"id": "x", "score": torch.tensor(float("-inf")), "response": "half \ud83d"}])
        result = log.finish({"best": float("nan"), "mean": torch.tensor(0.5)})
    expected = {"step": 1, "phase": "eval", "nan": None, "inf": None, "tensor": 2.5, "count": 3, "text": "é"}
    assert rows(tmp_path / "run") == [expected]
    assert rows(tmp_path / "run", "samples.jsonl") == [{"id": "x", "score": None, "response": "half \ud83d"}]
    assert (result.values["best"], result.values["mean"], result.values["status"]) == (None, 0.5, "finished")
    assert "NaN" not in (tmp_path / "run/result.json").read_text()


def test_the_clock_stays_out_of_the_metrics(tmp_path):
    with opened(tmp_path / "run") as log:
        log.log(1, {"a": 1.0})
        log.time(1, {"seconds": 0.123456789})
    assert rows(tmp_path / "run") == [{"step": 1, "phase": "train", "a": 1.0}]
    assert rows(tmp_path / "run", "timings.jsonl") == [{"step": 1, "phase": "train", "seconds": 0.123457}]


def test_tensorboard_holds_the_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    with opened(tmp_path / "run") as log:
        log.log(1, {"loss": 0.5, "n": 3, "bad": float("nan")})
        log.log(2, {"loss": torch.tensor(0.25)}, "eval")
        (file,) = (tmp_path / "run/tensorboard").iterdir()
        events = [Event.FromString(raw) for raw in RawEventFileLoader(str(file)).Load()]  # readable while it runs
    assert events[0].file_version == "brain.Event:2"
    found = [(event.step, value.tag, value.simple_value) for event in events[1:] for value in event.summary.value]
    assert found == [(1, "train/loss", 0.5), (2, "eval/loss", 0.25)]


def test_logs_are_cut_back_to_what_a_checkpoint_remembers(tmp_path):
    folder = tmp_path / "run"
    with opened(folder) as log:
        log.log(1, {"a": 1.0})
        marks = log.offsets()
        before = (folder / "metrics.jsonl").read_bytes()
        log.log(2, {"a": 2.0})
        log.sample([{"id": "x"}])
    with opened(folder, resume=True) as log:
        log.rewind(marks)
        assert (folder / "metrics.jsonl").read_bytes() == before and (folder / "samples.jsonl").read_bytes() == b""
        log.log(2, {"a": 3.0})
        log.rewind({})
    assert (folder / "metrics.jsonl").read_bytes() == b""


def test_a_result_is_never_half_written(tmp_path, monkeypatch):
    """A process killed while it writes leaves the old file, whole."""
    runs.write_json(tmp_path / "result.json", {"status": "old"})

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.write_json(tmp_path / "result.json", {"status": "new"})
    assert json.loads((tmp_path / "result.json").read_text()) == {"status": "old"}


def test_rows_are_there_whole_or_not_at_all(tmp_path):
    """Rows are computed while they are written: where one fails, the old file stays as it was."""
    runs.write_rows(tmp_path / "rows.jsonl", iter([{"a": 1}, {"b": "\u00e9"}]))
    assert (tmp_path / "rows.jsonl").read_text() == '{"a": 1}\n{"b": "\\u00e9"}\n'
    with pytest.raises(ZeroDivisionError):
        runs.write_rows(tmp_path / "rows.jsonl", ({"a": 1 / k} for k in (1, 0)))
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("error, status", [
    (NumericsError("loss is not finite", where="step 3"), "failed"), (ZeroDivisionError(), "failed"),
    (runs.Stopped("stopped"), "stopped")])
def test_how_a_run_ended_is_written_down(tmp_path, error, status):
    with pytest.raises(type(error)), opened(tmp_path / "run") as log:
        log.log(1, {"a": 1.0})
        raise error
    found = json.loads((tmp_path / "run/result.json").read_text())
    assert (found["status"], found["error"]) == (status, str(error) or "ZeroDivisionError")
    assert not runs.is_finished(tmp_path / "run") and found["seconds"] >= 0


def test_a_full_disk_does_not_hide_what_ended_the_run(tmp_path, monkeypatch):
    def full(*_, **__):
        raise RunError("cannot write: No space left on device")

    with pytest.raises(NumericsError, match="loss is not finite"), opened(tmp_path / "run"):
        monkeypatch.setattr(runs, "write_json", full)
        raise NumericsError("loss is not finite")


def test_other_errors_pass_through_the_disk_guard(tmp_path):
    with pytest.raises(RuntimeError, match="shapes do not match"), runs.explained_disk_errors(tmp_path):
        raise RuntimeError("shapes do not match")


def test_a_stop_is_asked_once_and_forced_by_the_second(tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "run") as log:
        assert not log.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert log.stop_requested()
        assert capsys.readouterr().err == "stopping after this step (once more: at once)\n"
        with pytest.raises(runs.Stopped,
                           match=r"stopped by SIGTERM after step 7; nothing is lost\n.*keel some-recipe --resume"):
            log.stop(7)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((tmp_path / "run/result.json").read_text())["error"] == "KeyboardInterrupt"


def test_in_a_thread_signals_are_left_alone(tmp_path):
    def work():
        with opened(tmp_path / "run") as log:
            log.finish({})

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert runs.is_finished(tmp_path / "run")


def test_terminated_twice_a_process_ends_at_once_and_resumes(tmp_path):
    config = sft_config(tmp_path, steps=100_000, save_every=50, eval_every=100_000)
    (tmp_path / "sft.toml").write_text(config.to_toml())
    worker = started(["sft", str(tmp_path / "sft.toml")])
    while not list(config.out.glob("checkpoints/step-*.pt")) and worker.poll() is None:
        time.sleep(0.02)
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGTERM)
    said = worker.communicate(timeout=60)[1].decode()
    assert worker.returncode == 130 and "Traceback" not in said
    assert json.loads((config.out / "result.json").read_text())["status"] in ("failed", "stopped")
    last = len(rows(config.out))
    (config.out / "config.toml").write_text(config.model_copy(update={"steps": last + 1}).to_toml())
    sft.run(config.model_copy(update={"steps": last + 1}), resume=True)
    assert [row["step"] for row in rows(config.out) if row["phase"] == "train"] == list(range(1, last + 2))


def test_adapters_are_drawn_from_the_seed(tmp_path):
    """Not from whatever the process drew before: a resumed run would then differ from a whole one."""
    made = []
    for noise, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(noise)
        config = sft_config(tmp_path, out=tmp_path / f"{noise}-{seed}", seed=seed, steps=2)
        lora = config.model.lora.model_copy(update={"rank": 2})
        sft.run(config.model_copy(update={"model": config.model.model_copy(update={"lora": lora})}))
        made.append((config.out / "model/adapter/adapter_model.safetensors").read_bytes())
    assert made[0] == made[1] != made[2]


def test_the_bar_is_silent_where_nobody_watches(monkeypatch, capsys):
    with progress.bar("work", 3) as shown:
        shown.advance("loss 1")
        shown.advance(n=2)
    assert capsys.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.bar("work", 3, done=1) as shown:
        shown.advance("loss 0.5")
    assert "work" in screen.getvalue() and "2/3" in screen.getvalue() and "loss 0.5" in screen.getvalue()


def test_a_run_in_a_pipe_says_one_line(tmp_path):
    (tmp_path / "sft.toml").write_text(sft_config(tmp_path, steps=2).to_toml())
    done = subprocess.run([sys.executable, "-m", "keel", "sft", str(tmp_path / "sft.toml")], capture_output=True,
                          text=True,
                          check=True)
    assert done.stdout == f"sft: done, see {tmp_path / 'sft'}\n" and done.stderr == ""


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match=r"no run in this folder \(config\.toml is missing\)"):
        runs.saved_config(tmp_path, "sft")
    assert not runs.is_finished(tmp_path)


def test_an_alarm_is_said_when_it_begins_to_ring_and_logged_at_every_step(tmp_path, capsys):
    with opened(tmp_path / "run") as log:
        for step in (3, 4, 5, 8):
            log.alarm({"name": "truncation", "step": step, "meaning": "Cut.", "remedy": "Mend."})
        log.alarm({"name": "kl_jump", "step": 8, "meaning": "Jumped.", "remedy": "Lower."})
    said = capsys.readouterr().err
    assert [line.split(":")[0] for line in said.splitlines()] == [
        "ALARM truncation at step 3", "ALARM truncation at step 8", "ALARM kl_jump at step 8"]
    assert [row["step"] for row in rows(tmp_path / "run", "alarms.jsonl")] == [3, 4, 5, 8, 8]
