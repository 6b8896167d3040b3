"""What can be compared side by side: a model, with or without an adapter, and responses that lie in a file."""

from pathlib import Path, PurePath
from typing import Any

from pydantic import Field
from torch import nn

from keel.config import Config
from keel.errors import ModelError
from keel.models.identity import model_identity
from keel.models.load import FrozenModelConfig, causal_lm
from keel.models.lora import quiet_peft

__all__ = ["NamedModel", "NamedResponses", "loaded_entrant"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+ -]*$"


class NamedModel(FrozenModelConfig):
    """A model to evaluate."""

    name: str | None = Field(None, pattern=NAME, description="what tables call it; none: its folder, or for RUN/model "
                             "that of the run")
    adapter: str | None = Field(None, description="LoRA adapter (PEFT folder) on the model that path names")

    @property
    def shown(self) -> str:
        """What tables call it."""
        parts = [part for part in PurePath(self.adapter or self.path).parts if part not in ("/", ".", "..")]
        told = [part for part in parts if part not in ("model", "adapter")] or parts or ["model"]
        return self.name or "".join(c if c.isascii() and (c.isalnum() or c in "_.+ -") else "-" for c in told[-1])

    @property
    def folders(self) -> list[Path]:
        """Where its weights lie."""
        return [Path(path) for path in (self.path, self.adapter) if path]


class NamedResponses(Config):
    """Responses that somebody else wrote."""

    name: str = Field(pattern=NAME, description="what tables call them")
    path: str = Field(description="file of responses, or of pairs with the chosen one; found by their prompts")


def loaded_entrant(spec: NamedModel) -> tuple[nn.Module, dict[str, Any]]:
    """A model with its adapter in its weights, and what it is.

    Raises:
        ModelError: one of the two cannot be loaded.
    """
    model = causal_lm(spec.whole)
    identity = model_identity(spec.whole, model, spec.adapter)
    if spec.adapter is not None:
        from peft import PeftModel

        try:
            with quiet_peft():
                model = PeftModel.from_pretrained(model, spec.adapter).merge_and_unload().eval()
        except Exception as error:  # peft and safetensors raise whatever they like
            raise ModelError(f"cannot load the adapter on {spec.path}: {str(error).strip().splitlines()[0]}",
                             where=spec.adapter, remedy="Give a PEFT folder with adapter_config.json and adapter_model."
                             "safetensors, made for this model.") from error
    return model, identity
