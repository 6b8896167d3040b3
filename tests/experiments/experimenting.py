"""Experiments small enough for a test: stages run in this process, and courses of PPO that never happened."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keel.cli import main
from keel.experiments.collapse import CollapseConfig
from keel.experiments.courses import Course
from keel.experiments.town import PPOSize, TownConfig

TOWN = TownConfig(n_demonstrations=50, n_pairs=100, n_test=20, n_prompts=100, length_bias=0.2)
SIZE = PPOSize(phases=2, rollouts=4, minibatch=2, eval_every=1, eval_prompts=4, max_new_tokens=8)


def collapse_config(out: Path, **changes: Any) -> CollapseConfig:
    return CollapseConfig(**({"out": out, "seeds": 1, "town": TOWN, "ppo": SIZE} | changes))


class InThisProcess:
    """Stands for a process: runs the command line to its end before anybody asks."""

    def __init__(self, words: list[str], **_: Any) -> None:
        self.returncode = main(words[3:])

    def poll(self) -> int:
        return self.returncode

    def terminate(self) -> None:
        """It has ended already."""

    wait = poll


def course(*, gold: Sequence[float], score: Sequence[float] = (0, 1, 2), kl: Sequence[float] = (0, 0.1, 0.1),
           length: Sequence[float] = (20, 20, 20), phases: dict[str, Sequence[float]] | None = None) -> Course:
    """A run of four phases, evaluated three times."""
    flat = {"kl": (0.1,) * 4, "length": (20.0,) * 4, "cut": (0.0,) * 4}
    numbers = {"score": score, "gold": gold, "kl": kl, "length": length}
    return Course((0, 8, 16), {name: tuple(map(float, x)) for name, x in numbers.items()},
                  {name: tuple(x) for name, x in (flat | (phases or {})).items()}, {})


def write_run(folder: Path, gold: Sequence[float], **config: Any) -> None:
    """The logs of a PPO run as far as an experiment reads them."""
    folder.mkdir(parents=True)
    settings = {"passes": 1, "rollouts": 64, "minibatch": 16} | config
    (folder / "config.toml").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    exams = [{"step": 4 * i, "phase": "eval", "score/mean": float(i), "gold/mean": x, "kl/mean": 0.01 * i,
              "length/mean": 20.0} for i, x in enumerate(gold)]
    phases = [{"step": i, "phase": "train", "kl/reference_k3": 0.01 * i, "response/length": 20.0, "response/cut": 0.25}
              for i in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exams + phases))
    (folder / "alarms.jsonl").write_text('{"name": "kl_jump"}\n{"name": "truncation"}\n{"name": "kl_jump"}\n')
    (folder / "result.json").write_text('{"status": "finished", "seconds": 1.5}')
