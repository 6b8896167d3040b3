"""Process models: a token classifier that is read where the steps of a solution end, and the reward model it holds."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.errors import ModelError
from keel.models.forward import hidden_states, trunk_output
from keel.models.load import ModelConfig, check_missing, draw_head, explained, model_config, placed
from keel.models.lora import adapted

__all__ = ["LABELS", "as_reward_model", "process_model", "step_logits"]

LABELS = {0: "wrong", 1: "right"}
SAME = 1e-3
"""Share of a state by which rounding may move it; a token that it sees moves it by far more."""


def process_model(spec: ModelConfig, *, seed: int | None = None) -> nn.Module:
    """A causal `AutoModelForTokenClassification` with the labels wrong (0) and right (1).

    A model from elsewhere may have one label, which is read as the logit of right. The bias of the head does not learn:
    a new one is 0, so that `as_reward_model` leaves nothing out.

    Args:
        spec: where it is.
        seed: draws a new head (normal, std 1 / (hidden + 1)) for a language model. None: the head must be there, for a
            score from a random head is noise.

    Raises:
        ModelError: the folder is missing, has another number of labels, has no head though it needs one, or the model
            looks at later tokens, which would let a step be judged by those after it.
    """
    from transformers import AutoModelForTokenClassification

    if spec.init == "scratch":
        raise ModelError("a process model does not come from scratch.* settings", where=spec.path,
                         remedy="Leave init out; `keel sft --model.init scratch` makes a language model to begin from.")
    trained_head = _has_step_head(spec, seed)
    n_labels = model_config(spec).num_labels if trained_head else len(LABELS)
    with explained(spec.path, "process model"):
        model, report = AutoModelForTokenClassification.from_pretrained(
            spec.path, num_labels=n_labels, dtype=getattr(torch, spec.dtype), use_safetensors=True,
            output_loading_info=True, trust_remote_code=spec.trust_remote_code)
    check_missing(model, sorted(report["missing_keys"]), trained_head, spec.path)
    _require_causal(model, spec.path)
    model.keel_drawn = sorted(report["missing_keys"])
    _head(model).float()
    draw_head(model, seed or 0)
    if n_labels == len(LABELS):
        model.config.id2label, model.config.label2id = dict(LABELS), {name: i for i, name in LABELS.items()}
    model = adapted(model, spec.lora, "TOKEN_CLS", seed or 0)
    # DEVIATION(process_rm-2): a bias would be in the step logits and could not be in the reward model's score.
    for name, parameter in _head(model).named_parameters():
        if name.endswith("bias"):
            parameter.requires_grad_(False)
    return placed(model, spec)


def step_logits(
    model: nn.Module, batch: TokenBatch, rows: Int[Tensor, " S"], columns: Int[Tensor, " S"],
) -> Float[Tensor, " S"]:
    """Logit that the step is right which ends at that column of that row, in float32 whatever the trunk computes in.

    With two labels it is the difference of their logits, whose sigmoid is the softmax over the two.

    Args:
        model: from `process_model`.
        batch: rows with solutions, padded on either side.
        rows: for each step, the row it is in.
        columns: and the column of its last token.
    """
    picked = hidden_states(model, batch)[rows, columns]
    with torch.autocast(picked.device.type, enabled=False):
        logits = _head(model)(picked.float())
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == len(LABELS) else logits[:, 0]


def as_reward_model(model: nn.Module) -> nn.Module:
    """A copy as `AutoModelForSequenceClassification` with one label: its score is the step logit at the last token.

    Such a class has no bias. What the bias of a head from elsewhere adds to every score alike is left out.

    Raises:
        ModelError: transformers has no such class for it.
    """
    from transformers import AutoModelForSequenceClassification

    one: Any = copy.deepcopy(model)
    one = one.merge_and_unload() if hasattr(one, "peft_config") else one
    weight = _head(one).weight.detach()
    config = one.config
    config.num_labels, config.id2label, config.label2id = 1, {0: "right"}, {"right": 0}
    with explained(config.name_or_path, "reward model of this architecture"), torch.device("meta"):
        made: Any = AutoModelForSequenceClassification.from_config(config)
    setattr(made, made.base_model_prefix, one.base_model)
    made.score = nn.Linear(weight.shape[1], 1, bias=False, device=weight.device)
    made.score.weight = nn.Parameter(weight[1:] - weight[:1] if len(weight) == len(LABELS) else weight)
    made.keel_autocast = getattr(one, "keel_autocast", False)
    return made.eval()


def _has_step_head(spec: ModelConfig, seed: int | None) -> bool:
    """Whether the folder holds a trained head for steps."""
    config = model_config(spec)
    names = config.architectures or []
    if any("SequenceClassification" in name for name in names):
        raise ModelError("a sequence classifier scores whole responses; it has no head for steps", where=spec.path,
                         remedy="Give the language model that it was trained from, or a process model.")
    if not any("TokenClassification" in name for name in names):
        if seed is None:
            raise ModelError("not a process model: it has no trained head for steps", where=spec.path,
                             remedy="Train one from it with `keel process-rm`; its out/model is a process model.")
        return False
    if config.num_labels > len(LABELS):
        raise ModelError(f"this token classifier has {config.num_labels} labels; a process model has 2, wrong and "
                         "right, or 1", where=spec.path, remedy="Give a process model, or a language model to train.")
    return True


@torch.no_grad()
def _require_causal(model: Any, path: str) -> None:
    """Two rows that differ in their last token only: what a causal model says of the first token is the same."""
    ids = torch.tensor([[3, 3, 3], [3, 3, 4]])
    first, other = trunk_output(model, {"input_ids": ids}).last_hidden_state[:, 0].float()
    if bool((first - other).abs().max() > SAME * first.abs().max()):
        raise ModelError("this model looks at later tokens, so a step would be judged by those after it", where=path,
                         remedy="Use a causal language model; an encoder can be a reward model of whole responses.")
    model.keel_causal = True


def _head(model: Any) -> Any:
    """The linear layer on the trunk; architectures call it `score` or `classifier`."""
    bare = model.get_base_model() if hasattr(model, "peft_config") else model
    return bare.score if hasattr(bare, "score") else bare.classifier
