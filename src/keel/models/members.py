"""LoRA ensembles: many reward models in the memory of one. A member is an adapter and a head on a trunk all share."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from keel.errors import ModelError
from keel.models.load import ModelConfig, draw_head, scalar_model, whole_folder
from keel.models.lora import LoraSettings, quiet_peft, with_adapter

__all__ = ["Member", "fresh_member", "load_members", "save_adapter", "shared_trunk"]

HEADS = ("score", "classifier")
"""What transformers calls the head of a scalar model, and peft keeps beside an adapter of the task SEQ_CLS."""


class Member(nn.Module):
    """One adapter and its head on the shared trunk, frozen; scores wherever a scalar model does."""

    def __init__(self, shared: Any, adapter: str) -> None:
        super().__init__()
        self.adapter = adapter
        own = {name.replace(".", "|"): p for name, p in shared.named_parameters() if f".{adapter}." in name}
        self.own = nn.ParameterDict(own)
        object.__setattr__(self, "shared", shared)  # not a submodule: the trunk belongs to all members
        self.keel_autocast = shared.get_base_model().keel_autocast

    @property
    def config(self) -> Any:
        return self.shared.config

    @property
    def base_model(self) -> nn.Module:
        """The trunk; run it inside `active()`."""
        return self.shared.get_base_model().base_model

    @property
    def score(self) -> nn.Module:
        """The head on a causal trunk; an encoder has none of this name."""
        return self.shared.get_base_model().score.modules_to_save[self.adapter]

    @property
    def classifier(self) -> nn.Module:
        """The head on an encoder."""
        return self.shared.get_base_model().classifier.modules_to_save[self.adapter]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Switch to this member's adapter while its forward pass runs."""
        self.shared.set_adapter(self.adapter, inference_mode=True)
        yield

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """What an encoder is asked for: pooled and through the head."""
        with self.active():
            return self.shared(input_ids=input_ids, attention_mask=attention_mask)


def shared_trunk(spec: ModelConfig) -> nn.Module:
    """The scalar model on which members are trained or loaded, one after the other or all at once.

    Args:
        spec: where it is; its `lora` belongs to the members, not to the trunk.

    Raises:
        ModelError: it cannot be loaded (see `scalar_model`), or its folder lacks more than a head.
    """
    trunk = scalar_model(spec.model_copy(update={"lora": LoraSettings()}), seed=0)
    lacking = [name for name in trunk.keel_drawn if name.split(".")[0] not in HEADS]
    if lacking:
        raise ModelError(f"the trunk's folder lacks {', '.join(lacking)}, which no adapter holds", where=spec.path,
                         remedy="Members on such a trunk would not share it: train them without lora.rank.")
    return trunk.requires_grad_(False)


@contextlib.contextmanager
def fresh_member(trunk: nn.Module, lora: LoraSettings, seed: int) -> Iterator[Any]:
    """A new member on the trunk, ready to train, bit for bit as `scalar_model` draws one; taken off at the end.

    Inside, only its adapter and head learn; `save_adapter` keeps them. Afterwards the trunk is as it was, but for the
    head drawn on it where its folder holds none, which no member uses.

    Args:
        trunk: from `shared_trunk`.
        lora: shape of the adapter; its rank is given.
        seed: of this member.
    """
    [name] = [name for name in HEADS if hasattr(trunk, name)]
    head = getattr(trunk, name)
    draw_head(trunk, seed)
    member = with_adapter(trunk, lora, "SEQ_CLS", "default", seed).eval()
    try:
        yield member
    finally:
        member.unload()
        setattr(trunk, name, head)  # peft leaves the trained one


def save_adapter(member: Any, folder: Path) -> None:
    """What `load_members` reads of a fresh member: its adapter and head, without the trunk.

    Raises:
        RunError: it cannot be written; nothing half-written stays.
    """
    with whole_folder(folder) as beside:
        member.save_pretrained(str(beside))


def load_members(spec: ModelConfig, adapters: Sequence[str]) -> list[Member]:
    """Reward models that differ in adapter and head only, in the memory of one trunk.

    Args:
        spec: the trunk: what the adapters were trained on.
        adapters: folders that `save_model` wrote beside a reward model trained with LoRA (`out/model/adapter`).

    Raises:
        ModelError: the trunk cannot be loaded, or an adapter is missing, damaged, of another trunk or without a head.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    shared: Any = shared_trunk(spec)
    for i, folder in enumerate(adapters):
        config, weights = _read(folder, spec.path)
        with _fitting(folder, spec.path):
            if i == 0:
                shared = get_peft_model(shared, config, adapter_name="member0")
            else:
                shared.add_adapter(f"member{i}", config)
            _require_same_shapes(shared, f"member{i}", weights)
            set_peft_model_state_dict(shared, weights, adapter_name=f"member{i}")
    shared.requires_grad_(False).eval()
    return [Member(shared, f"member{i}") for i in range(len(adapters))]


def _read(folder: str, trunk: str) -> tuple[Any, dict[str, Tensor]]:
    """Settings and weights of an adapter."""
    from peft import PeftConfig

    try:
        weights = load_file(Path(folder) / "adapter_model.safetensors")
        config = PeftConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ModelError(f"cannot read a LoRA adapter: {type(error).__name__}: {error}", where=folder,
                         remedy="Give the folder `adapter` in the model folder of a reward model trained with "
                                "--model.lora.rank; it holds adapter_config.json and adapter_model.safetensors.",
                         ) from error
    if config.peft_type != "LORA" or config.task_type != "SEQ_CLS":
        raise ModelError(f"not the adapter of a reward model: {config.peft_type.value} for {config.task_type}, not "
                         "LORA for SEQ_CLS", where=folder, remedy="It has no head for scores; train one with `keel "
                                                                  "reward-model --model.lora.rank`.")
    before = config.base_model_name_or_path or trunk
    # A path that has gone says nothing: folders are moved. Hub names stay.
    known = Path(before).exists() or not Path(trunk).exists()
    if known and Path(before).resolve() != Path(trunk).resolve():
        raise ModelError(f"this adapter was trained on another trunk, {before}", where=folder,
                         remedy="Name that one as the model. If it is a copy of the same weights, correct "
                                "base_model_name_or_path in adapter_config.json.")
    config.base_model_name_or_path = None  # checked; peft would warn of one that has moved
    return config, weights


@contextlib.contextmanager
def _fitting(folder: str, trunk: str) -> Iterator[None]:
    """What goes wrong inside is an adapter that does not fit."""
    try:
        with quiet_peft():
            yield
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"the adapter does not fit the trunk {trunk}: {error}", where=folder,
                         remedy="Name the model that it was trained on.") from error


def _require_same_shapes(shared: Any, adapter: str, weights: dict[str, Tensor]) -> None:
    """Every weight that the adapter needs, its head included, and no other: peft alone would draw what is missing."""
    from peft import get_peft_model_state_dict

    needed = get_peft_model_state_dict(shared, adapter_name=adapter, save_embedding_layers=False)
    wrong = sorted(name for name in needed.keys() | weights.keys()
                   if name not in needed or name not in weights or needed[name].shape != weights[name].shape)
    if wrong:
        raise ValueError(f"{len(wrong)} weights are missing, unknown or of another shape; the first is {wrong[0]}")
