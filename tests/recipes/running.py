"""Run recipes on tiny models, kill them, and read what they wrote."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import tiny
import torch

from keel import cli
from keel.batches import Rollout
from keel.data.collate import collate
from keel.data.render import Row
from keel.models.forward import token_logprobs
from keel.models.load import ModelConfig, ScratchConfig, load_tokenizer, save_model, scalar_model
from keel.online import update as updates
from keel.recipes import ppo, sft
from keel.recipes.group_ppo import GroupPPOConfig
from keel.recipes.ppo import PPOConfig
from keel.recipes.preference import PreferenceConfig
from keel.recipes.reward_model import RewardModelConfig
from keel.recipes.sft import SFTConfig
from keel.rollout.sample import SamplingConfig
from keel.runs import Run, saved_config
from keel.train import checkpoint
from keel.train.inputs import DataConfig
from keel.train.step import Learner, OptimizerConfig

FAST = OptimizerConfig(lr=5e-3, schedule="constant", warmup_fraction=0.0)


def logged(folder: Path, name: str = "metrics.jsonl", phase: str | None = "train") -> list[dict]:
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [row for row in rows if phase is None or row.get("phase") == phase]


def sft_config(tmp: Path, **changes) -> SFTConfig:
    settings = {
        "out": tmp / "sft",
        "model": ModelConfig(path=str(_model(tmp))),
        "batch": 6,
        "steps": 4,
        "optimizer": FAST,
        "data": DataConfig(path=str(_file(tmp, "demonstrations")), validation_fraction=0.3, max_length=64),
        "eval_every": 2,
        "save_every": 2,
        "n_samples": 2,
        "sampling": SamplingConfig(max_new_tokens=6),
    }
    return SFTConfig(**(settings | changes))


def reward_config(tmp: Path, **changes) -> RewardModelConfig:
    settings = {
        "out": tmp / "rm",
        "model": ModelConfig(path=str(_model(tmp))),
        "batch": 6,
        "steps": 4,
        "optimizer": FAST,
        "data": DataConfig(path=str(_file(tmp, "pairs")), validation_fraction=0.3, max_length=64),
        "eval_every": 2,
        "save_every": 2,
    }
    return RewardModelConfig(**(settings | changes))


def preference_config(tmp: Path, **changes) -> PreferenceConfig:
    settings = {
        "out": tmp / "preference",
        "policy": ModelConfig(path=str(_model(tmp))),
        "batch": 6,
        "steps": 4,
        "optimizer": FAST,
        "data": DataConfig(path=str(_file(tmp, "pairs")), validation_fraction=0.3, max_length=64),
        "eval_every": 2,
        "save_every": 2,
        "n_samples": 2,
        "sampling": SamplingConfig(max_new_tokens=6),
    }
    return PreferenceConfig(**(settings | changes))


def ppo_config(tmp: Path, **changes) -> PPOConfig:
    settings = {
        "out": tmp / "ppo",
        "policy": ModelConfig(path=str(_model(tmp))),
        "reward_model": ModelConfig(path=str(reward(tmp))),
        "prompts": DataConfig(path=str(_file(tmp, "prompts")), validation_fraction=0.3, max_length=64),
        "steps": 3,
        "rollouts": 8,
        "minibatch": 4,
        "critic": {"pretrain": 1, "pretrain_until": 1.0} | changes.pop("critic", {}),
        "sampling": SamplingConfig(max_new_tokens=8, slots=4),
        "policy_optimizer": FAST,
        "critic_optimizer": FAST,
        "eval_every": 2,
        "save_every": 1,
        "eval_prompts": 5,
        "n_samples": 3,
        "gold": "tiny:count_yes",
    }
    return PPOConfig(**(settings | changes))


def brief(tmp: Path, **changes) -> PPOConfig:
    """One phase that samples and learns, and nothing beside it: a tenth of a second."""
    prompts = DataConfig(path=str(_file(tmp, "prompts")), validation_fraction=0.0, max_length=64)
    settings = {"steps": 1, "critic": {"pretrain": 0}, "prompts": prompts, "save_every": 1000, "n_samples": 0,
                "gold": None}
    return ppo_config(tmp, **(settings | changes))


def group_ppo_config(tmp: Path, **changes) -> GroupPPOConfig:
    """The same with groups that act from the first phase on; the prompts know their domain, even or odd."""
    groups = {"warmup": 0, "ramp_fraction": 0.0, "column": "domain"} | changes.pop("groups", {})
    return GroupPPOConfig.checked(brief(tmp, **changes).model_dump() | {"groups": groups})


def watched(monkeypatch, recipe=ppo) -> SimpleNamespace:
    """What a run computes on its way, in order.

    phases: rollout with credit, scores of the sources, processed scores, moments.
    updates: minibatch, demonstrations, numbers of the steps, what came of it, and whether no gradient was left.
    steps: name of the learner, number of its step, gradients before and after clipping (one vector), learning rate.
    """
    seen = SimpleNamespace(phases=[], updates=[], steps=[])
    monitors, update, step, learners = recipe.monitors, updates.update, Learner.step, {}

    def watch_monitors(rollout, scored, processed, moments):
        seen.phases.append(SimpleNamespace(rollout=rollout, scored=scored, processed=processed, moments=moments))
        return monitors(rollout, scored, processed, moments)

    def watch_update(setup, part, mix, counts, *rest):
        learners.update(setup.learners)
        found = update(setup, part, mix, counts, *rest)
        clean = all(p.grad is None for learner in setup.learners.values() for p in learner.parameters)
        seen.updates.append(SimpleNamespace(part=part, mix=mix, counts=counts, found=found, clean=clean))
        return found

    def watch_step(learner, number, ids, **how):
        raw, taken = flat_gradient(learner), []
        handle = learner.optimizer.register_step_pre_hook(lambda *_: taken.append(flat_gradient(learner)))
        found = step(learner, number, ids, **how)
        handle.remove()
        name = next(name for name, other in learners.items() if other is learner)
        seen.steps.append(SimpleNamespace(name=name, number=number, raw=raw, taken=taken[0], lr=found["lr"]))
        return found

    monkeypatch.setattr(recipe, "monitors", watch_monitors)
    monkeypatch.setattr(updates, "update", watch_update)
    monkeypatch.setattr(Learner, "step", watch_step)
    return seen


def part_of(model, reference, n: int = 3, seed: int = 0) -> Rollout:
    """Ragged rows with a single response token in one, measured by both models, with advantages drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    rows = [Row(torch.randint(3, 23, (3 + i + said,), generator=generator).tolist(), 3 + i, f"r{i}")
            for i, said in enumerate(([1, 5, 8] * n)[:n])]
    tokens = collate(rows, 0)
    draw = torch.randn(3, *tokens.ids.shape, generator=generator).where(tokens.response_mask, 0.0)
    with torch.no_grad():
        now, ref = (token_logprobs(m, tokens)[0] for m in (model, reference))
    values, returns, advantages = draw
    return Rollout(tokens, now, torch.ones(n, dtype=torch.bool), torch.arange(n), ref_logprobs=ref, kl=now - ref,
                   values=values, returns=returns, advantages=advantages, counted=torch.ones(n, dtype=torch.bool))


def moved(model, by: float = 0.02, seed: int = 7):
    """The same model a little further on."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=by)
    return model


def flat_gradient(learner: Learner) -> torch.Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()).flatten()
                      for p in learner.parameters])


def short_spoken(tmp: Path, p: float = 0.85) -> Path:
    """A one-layer policy taught to end after each word with probability `p`."""
    folder = tmp / "short"
    if not folder.exists():
        draw, rows = random.Random(0), []
        for i, prompt in enumerate(tiny.conversations(64)):
            n = 1
            while draw.random() > p and n < 12:
                n += 1
            text = " ".join(draw.choice(tiny.WORDS) for _ in range(n))
            rows.append({"id": f"d{i}", "prompt": prompt, "completion": tiny.said(text)})
        told = tiny.write_rows(tmp / "short.jsonl", rows)
        sft.run(SFTConfig(out=tmp / "taught", model=ModelConfig(path=str(tiny.llama(tmp / "untaught", layers=1))),
                          data=DataConfig(path=str(told), max_length=64, validation_fraction=0.0), batch=16, steps=60,
                          optimizer=FAST, n_samples=0, save_every=1000, sampling=SamplingConfig(max_new_tokens=8)))
        (tmp / "taught/model").rename(folder)
    return folder


def reward(tmp: Path) -> Path:
    """A random reward model of the policy's family."""
    folder = tmp / "reward"
    if not folder.exists():
        source = str(_model(tmp))
        save_model(scalar_model(ModelConfig(path=source), seed=5), load_tokenizer(source), folder, pad_id=0)
    return folder


def scratch(tmp: Path) -> ModelConfig:
    shape = ScratchConfig(hidden=16, layers=1, heads=2, intermediate=24, max_positions=64)
    return ModelConfig(path=str(_model(tmp)), init="scratch", scratch=shape)


def killed_and_resumed(command: str, config, moments: list[float]) -> None:
    """Run in a process of its own; SIGKILL it `moment` seconds after its first log line, resume, and so on."""
    file = config.out.with_suffix(".toml")
    file.write_text(config.to_toml())
    begin = [command, str(file)]
    for moment in moments:
        worker = started(begin)
        _wait_for_a_checkpoint(config.out, worker)
        time.sleep(moment)
        worker.kill()
        worker.communicate()
        begin = [command, "--resume", str(config.out)]
    worker = started(begin)
    said = worker.communicate(timeout=120)[1].decode()
    assert worker.returncode == 0, said


def killed_here(config, moments: list[tuple[str, int]], run=ppo.run, saved: str | None = None) -> None:
    """Run in a child of this process; SIGKILL strikes it right after the n-th row of metrics since it began ("log"),
    or inside the n-th checkpoint, when it is written but not yet in its place ("save"). Resume, and so on.

    With `saved`, the name of the recipe, it resumes with what its config.toml says, as the command does."""
    resume = False
    for where, n in moments:
        child = _fork()
        if child == 0:
            try:
                _die(where, n)
                run(_read_back(config, saved) if resume and saved else config, resume=resume)
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"it was not killed at {where} {n}"
        resume = True
    run(_read_back(config, saved) if saved else config, resume=True)


def _read_back(config, recipe: str):
    return type(config).checked(saved_config(config.out, recipe) | {"out": str(config.out)})


def forked(arguments: list[str], said: Path) -> int:
    """`keel` with these arguments in a child of this process, which imports nothing anew; what it says on stderr goes
    to `said`. Its process id."""
    child = _fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            code = cli.main(arguments)
        finally:
            os._exit(code)
    return child


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        return os.fork()


def _die(where: str, n: int) -> None:
    """From now on, in this process."""
    owner, name = (Run, "log") if where == "log" else (checkpoint.os, "fsync")
    real, calls = getattr(owner, name), []

    def deadly(*arguments, **named):
        found = real(*arguments, **named)
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, deadly)


def started(arguments: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "keel", *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def same_results(one: Path, other: Path) -> None:
    """Metrics, samples and final weights are equal byte for byte."""
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        if (one / name).exists() or (other / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def _wait_for_a_checkpoint(run: Path, worker: subprocess.Popen) -> None:
    """Until there is a newer one than when we began to wait, or the run has ended."""
    before, limit = _checkpoints(run), time.monotonic() + 60
    while _checkpoints(run) == before and worker.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)


def _checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step-*.pt"))


def _model(tmp: Path) -> Path:
    return tmp / "base" if (tmp / "base").exists() else tiny.llama(tmp / "base")


def _file(tmp: Path, kind: str) -> Path:
    path = tmp / f"{kind}.jsonl"
    return path if path.exists() else getattr(tiny, kind)(path)
