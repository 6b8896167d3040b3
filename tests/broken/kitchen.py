"""Inputs to spoil, and the one way to serve them: through the command line, with every file watched."""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import tiny

from keel.cli import main

EXIT = {"ConfigError": 2, "DataError": 3, "ModelError": 4, "NumericsError": 5, "RunError": 6, "EndpointError": 7}
KINDS = "|".join([*EXIT, "UnexpectedError"])
TESTS = Path(__file__).parents[1]


class Kitchen:
    """A folder of good files in which each test spoils one.

    Attributes:
        folder: everything is in here.
        base: a tiny Llama with its tokenizer, shared by all tests and never written to.
        reward: a reward model of its family, shared likewise.
    """

    def __init__(self, folder: Path, base: Path, reward: Path) -> None:
        self.folder, self.base, self.reward = folder, base, reward
        self.out = folder / "out"

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def good(self, kind: str) -> Path:
        return getattr(tiny, kind)(self.folder / f"{kind}.jsonl", 12)

    def spoiled(self, kind: str, line: bytes | str) -> Path:
        """A good file whose third line is another."""
        lines = self.good(kind).read_bytes().splitlines(keepends=True)
        lines[2] = (line.encode() if isinstance(line, str) else line) + b"\n"
        return self.file(f"{kind}.jsonl", b"".join(lines))

    def model(self, source: Path | None = None, name: str = "model") -> Path:
        """A copy of a model folder, to be spoiled."""
        return Path(shutil.copytree(source or self.base, self.folder / name, dirs_exist_ok=True))

    def sft(self, *more: object, **options: object) -> list[str]:
        data = options.pop("data", None) or self.good("demonstrations")
        return words("sft", {"out": self.out, "model": self.base, "data": data, "steps": 4, "batch": 4, "save-every": 2,
                             "eval-every": 2, "n-samples": 1, "sampling.max_new_tokens": 4, "data.max_length": 48,
                             "data.validation_fraction": 0.2} | options) + [str(word) for word in more]

    def reward_model(self, **options: object) -> list[str]:
        data = options.pop("data", None) or self.good("pairs")
        return words("reward-model", {"out": self.out, "model": self.base, "data": data, "steps": 1, "batch": 4,
                                      "data.max_length": 48} | options)

    def ppo(self, **options: object) -> list[str]:
        prompts = options.pop("prompts", None) or self.good("prompts")
        return words("ppo", {"out": self.out, "policy": self.base, "reward_model": self.reward, "prompts": prompts,
                             "steps": 1, "rollouts": 4, "minibatch": 4, "critic.pretrain": 0, "sampling.slots": 4,
                             "sampling.max_new_tokens": 4, "prompts.max_length": 48, "n_samples": 1,
                             "ptx_coef": 0} | options)

    def generate(self, **options: object) -> list[str]:
        prompts = options.pop("prompts", None) or self.good("prompts")
        return words("generate", {"out": self.out, "model": self.base, "prompts": prompts, "limit": 2,
                                  "sampling.max_new_tokens": 4, "prompts.max_length": 48} | options)

    def everything(self) -> dict[Path, bytes]:
        """Content of every file that is there now, by path."""
        roots = (self.folder, self.base, self.reward)
        return {path: path.read_bytes() for root in roots for path in root.rglob("*")
                if path.is_file() and not path.is_symlink()}


def words(command: str, options: Mapping[str, object]) -> list[str]:
    """Options with the value None are left out."""
    given = ((name, value) for name, value in options.items() if value is not None)
    return [command, *(str(word) for name, value in given for word in (f"--{name}", value))]


def served(kitchen: Kitchen, arguments: list[str], capsys) -> tuple[int, str]:
    """Run a command in this process: exit code and stderr. Files that were there before are as they were."""
    before = kitchen.everything()
    capsys.readouterr()  # what making the files said
    code = main(arguments)
    said = capsys.readouterr().err
    kept(kitchen, before)
    return code, said


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the system then answers as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def served_apart(kitchen: Kitchen, arguments: list[str]) -> tuple[int, str]:
    """The same in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", "keel", *arguments], env=environment, capture_output=True, text=True,
                          timeout=120, check=False, cwd=kitchen.folder)
    return done.returncode, done.stderr


def kept(kitchen: Kitchen, before: Mapping[Path, bytes]) -> None:
    after = kitchen.everything()
    assert {path for path in before if after.get(path) != before[path]} == set()


def one_message(said: str, kind: str, *fragments: str) -> None:
    """Kind, where and what on the first line, then indented lines only, the remedy last; and nothing else."""
    lines = said.splitlines()
    assert re.match(rf"({KINDS}): \S", lines[0]) and lines[0].startswith(f"{kind}: "), said
    assert "Traceback" not in said and len(re.findall(rf"^({KINDS}): ", said, re.M)) == 1, said
    assert len(lines) > 1 and all(line.startswith("  ") for line in lines[1:]), said
    assert len(said) < 8000, len(said)
    for fragment in fragments:
        assert fragment in said, said


def refused(kitchen: Kitchen, arguments: list[str], capsys, kind: str, *fragments: str) -> str:
    """The command ends with one message of that kind and its exit code, and leaves nothing that looks finished."""
    code, said = served(kitchen, arguments, capsys)
    one_message(said, kind, *fragments)
    assert code == EXIT[kind]
    assert not (kitchen.out / "model").exists()
    if (kitchen.out / "result.json").exists():
        assert '"status": "finished"' not in (kitchen.out / "result.json").read_text()
    return said
