"""Stages: run once, gone on with after an interruption, refused with other settings, reported with their log."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from experimenting import InThisProcess, collapse_config

from keel.errors import RunError
from keel.experiments import stages
from keel.experiments.stages import each_ends, side_by_side
from keel.experiments.town import data, sft_config, with_changes, write_town
from keel.recipes.sft import SFTConfig
from keel.runs import is_finished

AGAIN = "do it again"


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "town"
    write_town(collapse_config(folder).town, folder)
    return folder


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stages run in this process; what they were started with."""
    given: list[list[str]] = []

    def start(words: list[str], **_: object) -> InThisProcess:
        given.append(words[3:])
        return InThisProcess(words)

    monkeypatch.setattr(stages, "subprocess", SimpleNamespace(Popen=start))  # others ask the system by it too
    return given


def stage(town: Path, out: Path, seed: int = 0) -> SFTConfig:
    return sft_config(collapse_config(out).town, town, out, seed)


def test_a_finished_stage_is_not_run_again(town: Path, tmp_path: Path, commands: list[list[str]]) -> None:
    one, other = stage(town, tmp_path / "a/sft"), stage(town, tmp_path / "b/sft", seed=1)
    side_by_side(tmp_path, "both", {"a/sft": one}, again=AGAIN)
    side_by_side(tmp_path, "both", {"a/sft": one, "b/sft": other}, again=AGAIN, tidy=True)
    assert commands == [["sft", str(tmp_path / "stages" / f"{name}-sft.toml")] for name in "ab"]
    assert is_finished(other.out)
    assert (one.out / "checkpoints").exists()
    assert not (other.out / "checkpoints").exists()


def test_an_interrupted_stage_is_resumed(town: Path, tmp_path: Path, commands: list[list[str]]) -> None:
    config = stage(town, tmp_path / "sft")
    side_by_side(tmp_path, "all of it", {"sft": config}, again=AGAIN)
    metrics = (config.out / "metrics.jsonl").read_text()
    (config.out / "result.json").unlink()  # as if it had been killed after its last checkpoint
    side_by_side(tmp_path, "the rest", {"sft": config}, again=AGAIN)
    assert commands[1] == ["sft", "--resume", str(config.out)]
    assert (config.out / "metrics.jsonl").read_text() == metrics
    assert is_finished(config.out)


def test_a_folder_with_other_settings_is_refused(town: Path, tmp_path: Path, commands: list[list[str]]) -> None:
    config = stage(town, tmp_path / "sft")
    side_by_side(tmp_path, "one seed", {"sft": config}, again=AGAIN)
    changed = config.model_copy(update={"seed": 7, "batch": 5})
    with pytest.raises(RunError, match=r"sft: this folder holds a run with other settings of batch, seed\n"):
        side_by_side(tmp_path, "another", {"sft": changed}, again=AGAIN)
    assert len(commands) == 1


def test_a_failed_stage_is_reported_with_its_log(tmp_path: Path) -> None:
    config = stage(tmp_path / "nowhere", tmp_path / "sft")
    with pytest.raises(RunError) as raised:
        side_by_side(tmp_path, "this fails", {"seed-0/sft": config}, again=AGAIN)
    said = str(raised.value)
    assert said.startswith(f"{tmp_path}/stages/seed-0-sft.log: seed-0/sft ended with exit code 3: ")
    assert "demonstrations.jsonl" in said
    assert said.endswith("Mend what it says, then do it again.")


def test_signals_are_handled_as_before_afterwards(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    side_by_side(tmp_path, "nothing", {}, again=AGAIN)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_signal_ends_the_stages_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers: list[subprocess.Popen] = []

    def sleeper(*_: object) -> subprocess.Popen:
        workers.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return workers[-1]

    monkeypatch.setattr(stages, "started", sleeper)
    monkeypatch.setattr(stages.time, "sleep", lambda _: signal.raise_signal(signal.SIGTERM))
    three = {name: stage(tmp_path, tmp_path / name) for name in "abc"}
    with pytest.raises(KeyboardInterrupt):
        side_by_side(tmp_path, "interrupted", three, again=AGAIN)
    assert [worker.returncode for worker in workers] == [-signal.SIGTERM, -signal.SIGTERM]


def test_jobs_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = set[str](), []

    class Worker:
        returncode = 0

        def __init__(self, _: Path, name: str, __: object) -> None:
            self.name, self.asked = name, 0
            running.add(name)
            most.append(len(running))

        def poll(self) -> int | None:
            self.asked += 1
            if self.asked < 2:
                return None
            running.discard(self.name)
            return 0

    monkeypatch.setattr(stages, "started", Worker)
    monkeypatch.setattr(stages.time, "sleep", lambda _: None)
    many = {name: stage(tmp_path, tmp_path / name) for name in "abcdefg"}
    side_by_side(tmp_path, "seven", many, again=AGAIN, jobs=3)
    assert max(most) == 3
    assert len(most) == 7


def test_one_that_fails_ends_the_others() -> None:
    workers: dict[str, subprocess.Popen] = {}

    def start(name: str) -> subprocess.Popen:
        does = "pass" if name == "brief" else "import time; time.sleep(60)"
        workers[name] = subprocess.Popen([sys.executable, "-S", "-c", does])
        return workers[name]

    def ended(name: str, worker: subprocess.Popen) -> None:
        raise RunError(f"{name} ended with {worker.returncode}", where="here")

    with pytest.raises(RunError, match="brief ended with 0"):
        each_ends(["long", "brief", "never"], 2, start=start, ended=ended, look=lambda n: None)
    assert list(workers) == ["long", "brief"] and workers["long"].returncode == -signal.SIGTERM


def test_the_looker_is_told_how_many_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages.time, "sleep", lambda _: None)
    seen, done = [], []
    each_ends("abc", 1, start=lambda name: subprocess.Popen([sys.executable, "-S", "-c", "pass"]), look=seen.append,
              ended=lambda name, worker: done.append(name))
    assert done == ["a", "b", "c"] and seen == sorted(seen) and {*seen} - {0} == {1, 2, 3}


def test_a_town_that_was_cut_short_is_written_anew(tmp_path: Path) -> None:
    cfg = collapse_config(tmp_path).town
    (tmp_path / ".town.new").mkdir()
    (tmp_path / ".town.new/half.jsonl").write_text("{")
    write_town(cfg, tmp_path / "town")
    assert not (tmp_path / "town/half.jsonl").exists()
    pairs = Path(data(tmp_path / "town", "pairs").path)
    assert len(pairs.read_text().splitlines()) == 100
    pairs.write_text("mine")
    write_town(cfg, tmp_path / "town")
    assert pairs.read_text() == "mine"


def test_changes_reach_into_tables() -> None:
    settings = {"kl": {"coef": 0.2, "estimator": "k1"}, "steps": 3}
    assert with_changes(settings, {"kl": {"coef": 0.0}, "steps": 4, "best": None}) == {
        "kl": {"coef": 0.0, "estimator": "k1"}, "steps": 4, "best": None}
    assert settings["kl"]["coef"] == 0.2
