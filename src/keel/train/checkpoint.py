"""Atomic checkpoints: written beside, synced, renamed; a run killed at any instant resumes from a whole one."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keel.errors import RunError
from keel.runs import Run, explained_disk_errors

__all__ = ["go_back", "latest", "require_same", "restore", "save"]

KEEP = 2


def save(run: Run, step: int, *, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer],
         extra: Mapping[str, Any], keep: int | None = None) -> None:
    """Write everything that the next step depends on; the newest two checkpoints stay.

    Args:
        run: the open run; the lengths of its logs are part of the checkpoint.
        step: last finished step.
        modules: their trainable parameters and buffers are kept; frozen ones are loaded anew.
        optimizers: full state.
        extra: plain values and tensors (running moments, alarm history).
        keep: step of one more checkpoint that stays, to go back to.
    """
    state = {
        "step": step, "offsets": run.offsets(), "extra": dict(extra),
        "modules": {name: _trainable(module) for name, module in modules.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
    }
    folder = run.folder / "checkpoints"
    with explained_disk_errors(run.folder):
        folder.mkdir(exist_ok=True)
        beside = folder / ".new"
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(folder / _name(step))
        for old in _found(folder)[:-KEEP]:
            if keep is None or old.name != _name(keep):
                old.unlink()


def restore(run: Run, *, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer],
            ) -> tuple[int, dict[str, Any]]:
    """Load the newest checkpoint into the given objects and cut the logs back to it; step 0 when there is none yet.

    Raises:
        RunError: the checkpoint does not fit these models.
    """
    newest = latest(run.folder)
    if newest is None:
        run.rewind({})
        return 0, {}
    state = _loaded(newest, modules, optimizers)
    run.rewind(state["offsets"])
    return state["step"], state["extra"]


def require_same(begun: Mapping[str, str], now: Mapping[str, str], folder: Path) -> None:
    """Go on only with what the first steps were made with.

    Raises:
        RunError: something is another one now.
    """
    changed = [name for name in now if begun[name] != now[name]]
    if changed:
        raise RunError(f"{', '.join(changed)}: not what this run began with", where=str(folder),
                       remedy="Steps with one and the other would be mixed. Put back what it began with, or start a "
                              "new run in another folder.")


def go_back(run: Run, step: int, *, modules: Mapping[str, nn.Module],
            optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Any]:
    """Load the checkpoint of a step into the given objects; the logs go on. Returns what it held in `extra`.

    Raises:
        RunError: the checkpoint does not fit these models.
    """
    extra: dict[str, Any] = _loaded(run.folder / "checkpoints" / _name(step), modules, optimizers)["extra"]
    return extra


def _loaded(file: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]) -> Any:
    state = torch.load(file, weights_only=True)
    for name, module in modules.items():
        stored = state["modules"][name]
        if stored.keys() != _trainable(module).keys():
            raise RunError(f"checkpoint {file.name} holds other parameters than the {name}", where=str(file.parent),
                           remedy="The model files that the run began from have changed; put them back to resume.")
        module.load_state_dict(stored, strict=False)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    return state


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or none."""
    found = _found(folder / "checkpoints")
    return found[-1] if found else None


def _name(step: int) -> str:
    return f"step-{step:07d}.pt"


def _found(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{7}\.pt", p.name))


def _trainable(module: nn.Module) -> dict[str, torch.Tensor]:
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    buffers = {name for name, _ in module.named_buffers()}
    return {name: x for name, x in module.state_dict().items() if name in trained or name in buffers}
