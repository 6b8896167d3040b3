"""The shared topology: one frozen trunk; policy and critic are LoRA adapters on it, the reference is the bare trunk."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from keel.models.load import LoraSettings, ModelConfig, causal_lm
from keel.models.lora import draw_adapter, with_adapter

__all__ = ["SharedTrunk"]


class SharedTrunk:
    """Three views of one model, in the memory of one; each works wherever a separate model does.

    Raises:
        ModelError: the model cannot be loaded (see `causal_lm`).
    """

    def __init__(self, spec: ModelConfig, seed: int, *, with_critic: bool = True) -> None:
        base = causal_lm(spec.model_copy(update={"lora": LoraSettings()}), seed=seed)
        model = with_adapter(base, spec.lora, "CAUSAL_LM", "policy", seed)
        self.critic = None
        if with_critic:
            model.add_adapter("critic", model.peft_config["policy"])
            draw_adapter(model, "critic", seed)
            # DEVIATION(ppo-5): the report's critic starts from the reward model; an adapter on the policy's trunk
            # cannot. A critic that begins at zero begins neutral: advantages are then the returns themselves.
            head = nn.Linear(base.config.hidden_size, 1, bias=False).to(next(base.parameters()).device)
            nn.init.zeros_(head.weight)
            self.critic = View(model, "critic", head)
        self.policy = View(model, "policy", None)
        self.reference = View(model, None, None)
        self.policy.eval()
        self.policy.unfreeze()


class View(nn.Module):
    """The shared model with one adapter switched on (or none); trains that adapter and its head only."""

    def __init__(self, model: Any, adapter: str | None, score: nn.Linear | None) -> None:
        super().__init__()
        self.adapter, self.score = adapter, score
        own = {name.replace(".", "|"): p for name, p in model.named_parameters() if f".{adapter}." in name}
        self.learned = nn.ParameterDict(own)
        object.__setattr__(self, "shared", model)  # not a submodule: the trunk belongs to all views
        self.keel_autocast = model.get_base_model().keel_autocast

    @property
    def config(self) -> Any:
        return self.shared.config

    @property
    def base_model(self) -> nn.Module:
        """The trunk; run it inside `active()`."""
        return self.shared.get_base_model().base_model

    def get_output_embeddings(self) -> nn.Module:
        return self.shared.get_base_model().get_output_embeddings()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Switch to this view's adapter while its forward pass runs."""
        if self.adapter is None:
            with self.shared.disable_adapter():
                yield
        else:
            self.shared.set_adapter(self.adapter)
            self.unfreeze()
            yield
        self.unfreeze()

    def unfreeze(self) -> None:
        """Both adapters learn at all times; peft freezes the one that is not switched on."""
        for name, parameter in self.shared.named_parameters():
            if ".policy." in name or ".critic." in name:
                parameter.requires_grad_(True)

    def merged(self) -> nn.Module:
        """A plain causal LM with the adapter folded in, for saving."""
        import copy

        model = copy.deepcopy(self.shared)
        model.set_adapter(self.adapter)
        if "critic" in model.peft_config:
            model.delete_adapter("critic")
        return model.merge_and_unload()


