"""Models in and out: any Hugging Face causal LM, and scalar models (reward, critic) on causal LMs and encoders."""

import contextlib
import copy
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import nn

from keel.config import Config
from keel.errors import ModelError, RunError
from keel.models.attention import use_quick_attention
from keel.models.lora import LoraSettings, adapted
from keel.rng import stream

__all__ = [
    "FrozenModelConfig", "LoraSettings", "ModelConfig", "ScratchConfig", "causal_lm", "check_context",
    "check_missing", "device_of", "draw_head", "draw_weights", "explained", "frozen_copy", "is_encoder",
    "load_tokenizer", "model_config", "placed", "save_model", "scalar_model", "share_trunk", "trunk_of",
    "whole_folder", "zero_head",
]


class ScratchConfig(Config):
    """Shape of a Llama trained from nothing; used when `path` is a folder that holds only a tokenizer."""

    hidden: int = Field(128, ge=8, description="width of the residual stream")
    layers: int = Field(4, ge=1, description="number of decoder layers")
    heads: int = Field(4, ge=1, description="attention heads; divides hidden")
    intermediate: int = Field(352, ge=8, description="width of the feed-forward layer")
    max_positions: int = Field(512, ge=16, description="longest row in tokens")


class FrozenModelConfig(Config):
    """Where a model is that only computes, and how it is held."""

    path: str = Field(description="folder or hub name of a Hugging Face model")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="number format of the weights in memory")
    autocast: bool = Field(False, description="compute matrix products in bfloat16; heads and losses stay float32")
    device: str = Field("auto", description="cpu, cuda, cuda:0, ...; auto: cuda where there is one")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")

    @property
    def whole(self) -> "ModelConfig":
        """The same as settings of a model that could learn, with nothing in them that it would learn by."""
        return ModelConfig(**{name: getattr(self, name) for name in FrozenModelConfig.model_fields})


class ModelConfig(FrozenModelConfig):
    """Where a model is and how it is held."""

    init: Literal["pretrained", "scratch"] = Field("pretrained", description="read weights, or start a new Llama of "
                                                   "the shape in `scratch` with the tokenizer found at path")
    scratch: ScratchConfig = ScratchConfig()
    lora: LoraSettings = LoraSettings()


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    _require_folder(path)
    with explained(path, "tokenizer"):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


def model_config(spec: ModelConfig) -> Any:
    """What the config.json of a model says.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    _require_folder(spec.path)
    with explained(spec.path, "model"):
        return AutoConfig.from_pretrained(spec.path, trust_remote_code=spec.trust_remote_code)


def causal_lm(spec: ModelConfig, *, seed: int = 0) -> nn.Module:
    """A causal language model ready to train, in eval mode: dropout stays off so that PPO's ratio starts at 1.

    Raises:
        ModelError: the folder is missing, holds pickled weights, or is not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    if spec.init == "scratch":
        model = _scratch(spec, seed)
    else:
        _require_folder(spec.path)
        with explained(spec.path, "causal language model"):
            model, report = AutoModelForCausalLM.from_pretrained(
                spec.path, dtype=getattr(torch, spec.dtype), use_safetensors=True, output_loading_info=True,
                trust_remote_code=spec.trust_remote_code)
        if report["missing_keys"]:
            raise ModelError(f"not a complete causal language model; weights are missing: "
                             f"{_few(report['missing_keys'])}", where=spec.path,
                             remedy="A policy is a causal language model; encoders and reward models have no such "
                                    "head.")
    return placed(adapted(model, spec.lora, "CAUSAL_LM", seed), spec)


def scalar_model(spec: ModelConfig, *, seed: int | None = None, n_labels: int = 1) -> nn.Module:
    """A model with one number out, as `AutoModelForSequenceClassification` with one label.

    Args:
        spec: where it is.
        seed: draws a new head (normal, std 1 / (hidden + 1)) for a causal LM or an encoder that has none yet.
            None: the head must be there, for a score from a random head is noise.
        n_labels: numbers out, where more than one is wanted: grades on several attributes.

    Raises:
        ModelError: the folder is missing, has another number of labels, has no head though it needs one, or
            transformers has no such class for it.
    """
    from transformers import AutoModelForSequenceClassification

    if spec.init == "scratch":
        raise ModelError("a reward model or critic is not made from scratch.* settings", where=spec.path,
                         remedy="Leave init out; `keel sft --model.init scratch` makes a language model to begin from.")
    config = model_config(spec)
    with explained(spec.path, "scalar model"):
        trained_head = any("SequenceClassification" in name for name in config.architectures or [])
        if trained_head and config.num_labels != n_labels:
            wanted = "a reward model has 1" if n_labels == 1 else f"{n_labels} are wanted here"
            raise ModelError(f"this classifier has {config.num_labels} labels; {wanted}", where=spec.path,
                             remedy="Give a model with as many, or a base model without a classification head.")
        if not trained_head and seed is None:
            raise ModelError("not a reward model: it has no trained head for scores", where=spec.path,
                             remedy="Train one from it with `keel reward-model`; its out/model is a reward model.")
        with _quiet():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                spec.path, num_labels=n_labels, dtype=getattr(torch, spec.dtype), use_safetensors=True,
                output_loading_info=True, trust_remote_code=spec.trust_remote_code)
    check_missing(model, sorted(report["missing_keys"]), trained_head, spec.path)
    model.keel_drawn = sorted(report["missing_keys"])
    if (head := _head_of(model)) is not None:
        head.float()
    draw_head(model, seed or 0)
    return placed(adapted(model, spec.lora, "SEQ_CLS", seed or 0), spec)


def check_context(model: nn.Module, longest: int) -> None:
    """Rows must fit the positions that the model was made for.

    Raises:
        ModelError: they do not.
    """
    limit = getattr(_bare(model).config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ModelError(f"the longest row has {longest} tokens, the model's context is {limit}",
                         remedy=f"Set data.max_length to {limit} or less.")


def share_trunk(writer: nn.Module, owner: nn.Module) -> nn.Module:
    """Let a language model run on another model's trunk, so that one set of weights learns from both heads."""
    bare, trunk = _bare(writer), trunk_of(owner)
    setattr(bare, bare.base_model_prefix, trunk)
    if bare.config.tie_word_embeddings:
        bare.get_output_embeddings().weight = trunk.get_input_embeddings().weight
    return writer


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that never learns: the reference of a run. (For a LoRA policy it holds the adapter as it is now.)"""
    return copy.deepcopy(model).requires_grad_(False).eval()


def save_model(model: nn.Module, tokenizer: Any, folder: Path, *, pad_id: int | None = None) -> None:
    """Write a folder that plain transformers loads: weights as safetensors, config, tokenizer.

    Args:
        model: LoRA models are merged on a copy; the adapter is written beside, in `adapter/`.
        tokenizer: saved with the model.
        folder: made if missing; written under another name first, so that it is whole or not there.
        pad_id: for scalar models: the id by which transformers finds the last real token. It must never end a row.

    Raises:
        RunError: it cannot be written; nothing half-written stays.
    """
    with whole_folder(folder) as beside:
        _write(model, tokenizer, beside, pad_id)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Another name to write under; at the end it takes the folder's place, which so is whole or not there.

    Raises:
        RunError: it cannot be written; nothing half-written stays.
    """
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed here
    try:
        yield beside
        _swap(beside, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunError(f"cannot write the model: {_first_line(error)}", where=str(folder),
                       remedy="Free some space; then --resume continues from the last checkpoint, which is intact.",
                       ) from error


def _write(model: nn.Module, tokenizer: Any, beside: Path, pad_id: int | None) -> None:
    merged = model.merged() if hasattr(model, "merged") else model
    if hasattr(model, "peft_config"):
        model.save_pretrained(str(beside / "adapter"))
        merged = copy.deepcopy(model).merge_and_unload()
    if pad_id is not None:
        merged.config.pad_token_id = pad_id
        merged.config.keel_rows = "turn"  # what the head was trained on ends with the turn: see `Template.closing`
    with _quiet():
        merged.save_pretrained(str(beside), safe_serialization=True)
        tokenizer.save_pretrained(str(beside))


def trunk_of(model: nn.Module) -> nn.Module:
    """The transformer without its head, adapters included."""
    return _bare(model).base_model


def is_encoder(model: nn.Module) -> bool:
    """True for models that look both ways (BERT and its kin)."""
    bare = _bare(model)
    if getattr(bare, "keel_causal", False):  # it was tried
        return False
    return "bert" in bare.config.model_type or not (getattr(bare.config, "is_decoder", False) or hasattr(bare, "score")
                                                    or hasattr(bare, "lm_head"))


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes."""
    return next(trunk_of(model).parameters()).device


def _head_of(model: nn.Module) -> Any:
    """None where the architecture calls it otherwise (an encoder-decoder's `classification_head`)."""
    bare = _bare(model)
    return bare.score if hasattr(bare, "score") else getattr(bare, "classifier", None)


def _bare(model: nn.Module) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def placed(model: nn.Module, spec: ModelConfig) -> nn.Module:
    """On its device, in eval mode.

    Raises:
        ModelError: that device cannot be used.
    """
    device = spec.device if spec.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    _bare(model).keel_autocast = spec.autocast
    try:
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"cannot use the device {device!r}: {_first_line(error)}", where=spec.path,
                         remedy="Give cpu, cuda, cuda:0, ..., or auto; with too little memory, dtype = bfloat16.",
                         ) from error
    if not is_encoder(model):
        use_quick_attention(_bare(model))
    return model


def _scratch(spec: ModelConfig, seed: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer, shape = load_tokenizer(spec.path), spec.scratch
    if shape.hidden % shape.heads:
        raise ModelError(f"scratch.hidden={shape.hidden} is not a multiple of scratch.heads={shape.heads}",
                         remedy="Change one of the two.")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        max_position_embeddings=shape.max_positions, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model = LlamaForCausalLM(config)
    draw_weights(model, seed)
    return model


def draw_weights(model: nn.Module, seed: int) -> None:
    """New weights of the usual kind: matrices normal with std 0.02, biases 0, gains of norms 1."""
    generator = stream(seed, "initialise")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator))
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def zero_head(model: nn.Module) -> None:
    """Let a scalar model give 0 for everything, until it learns."""
    with torch.no_grad():
        for parameter in _head_of(model).parameters():
            parameter.zero_()


def draw_head(model: nn.Module, seed: int) -> None:
    """Draw from our own stream what a scalar model's folder did not hold (`keel_drawn`): the head, or nothing."""
    generator, named = stream(seed, "head"), dict(model.named_parameters())
    with torch.no_grad():
        for name in model.keel_drawn:
            weight = named[name]
            if weight.ndim > 1:
                weight.copy_(torch.empty(weight.shape).normal_(0.0, 1 / (weight.shape[1] + 1), generator=generator))
            else:
                weight.zero_()


def check_missing(model: nn.Module, missing: list[str], trained_head: bool, path: str) -> None:
    """Only a head may be drawn anew. Anything else that the folder does not hold is an error."""
    trunk = [name for name in missing if name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name]
    if trunk:
        raise ModelError(f"weights are missing: {_few(trunk)}", where=path,
                         remedy="The folder is not a complete model, or its config.json belongs to another one.")
    if trained_head and missing:
        raise ModelError(f"weights are missing: {_few(missing)}", where=path,
                         remedy="The folder is not a complete reward model; save it again.")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")


def _require_folder(path: str) -> None:
    looks_local = path.startswith((".", "/", "~")) or Path(path).exists() or path.count("/") != 1
    if looks_local and not (Path(path) / "config.json").exists() and not (Path(path) / "tokenizer.json").exists():
        raise ModelError("no model in this folder" if Path(path).is_dir() else "no such model folder", where=path,
                         remedy="Give a folder with config.json, *.safetensors and tokenizer.json, or a hub name.")


@contextlib.contextmanager
def explained(path: str, role: str) -> Iterator[None]:
    """Whatever goes wrong within is said as a ModelError."""
    try:
        with _quiet():
            yield
    except ModelError:
        raise
    except Exception as error:  # the tokenizers and safetensors libraries raise bare Exceptions
        raise ModelError(f"cannot load a {role}: {_first_line(error)}", where=path,
                         remedy="keel reads safetensors only (pickled .bin/.pt weights can run code); check that the "
                                "folder is complete and of the right kind.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports loading by progress bars and tables; keel reports what matters itself."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _swap(beside: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
