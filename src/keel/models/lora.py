"""Low-rank adapters through peft, drawn from our own streams."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import nn

from keel.config import Config
from keel.errors import ModelError
from keel.rng import stream

__all__ = ["LoraSettings", "adapted", "draw_adapter", "quiet_peft", "with_adapter"]


class LoraSettings(Config):
    """Low-rank adapters through PEFT."""

    rank: int | None = Field(None, ge=1, description="rank of the adapters; none: train all weights")
    alpha: float = Field(16.0, gt=0, description="adapter scale: updates are multiplied by alpha / rank")
    targets: str = Field("all-linear", description="module names to adapt, separated by commas, or all-linear")


def adapted(model: nn.Module, lora: LoraSettings, task: str, seed: int) -> nn.Module:
    """The model with an adapter where the settings ask for one, else the model."""
    return model if lora.rank is None else with_adapter(model, lora, task, "default", seed)


def draw_adapter(model: nn.Module, name: str, seed: int) -> None:
    """Draw an adapter anew as peft does (uniform, bound 1 / sqrt(inputs)), from our own stream: peft's draws depend
    on everything that the process drew before. Adapters of one shape begin alike, whatever they are called, so that
    the shared topology begins as the separate one."""
    generator = stream(seed, "adapter")
    with torch.no_grad():
        for full_name, weight in model.named_parameters():
            if f".lora_A.{name}." in full_name:
                bound = weight.shape[1] ** -0.5
                weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))


def with_adapter(model: nn.Module, lora: LoraSettings, task: str, name: str, seed: int = 0) -> Any:
    """The model with one LoRA adapter: starts as the model itself, and only the adapter trains."""
    from peft import LoraConfig, get_peft_model

    targets: Any = lora.targets if lora.targets == "all-linear" else lora.targets.split(",")
    # peft trains a head whole. It leaves that of a sequence classifier out of all-linear, but not a token classifier's.
    heads = ["score", "classifier"] if task == "TOKEN_CLS" and lora.targets == "all-linear" else None
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, exclude_modules=heads,
                        lora_dropout=0.0, task_type=task)
    try:
        with quiet_peft():
            found = get_peft_model(model, config, adapter_name=name)
    except ValueError as error:
        raise ModelError(f"cannot adapt the modules {lora.targets!r}: {str(error).strip().splitlines()[0]}",
                         where="lora.targets", remedy="Give names such as q_proj,v_proj as the model spells them, or "
                                                      "all-linear.") from error
    draw_adapter(found, name, seed)
    return found


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """peft still asks for an attribute that transformers 5.23 calls by another name; nothing the user can mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
