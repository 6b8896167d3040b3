"""Where the base model lies that ships inside the package: an ordinary Hugging Face folder."""

from pathlib import Path

from keel.errors import ModelError

__all__ = ["base_model_folder"]

FOLDER = Path(__file__).parent / "base_model"


def base_model_folder() -> Path:
    """The folder of the pre-trained town model, for any option that takes a model path."""
    if not (FOLDER / "model.safetensors").is_file():
        raise ModelError(
            "the base model of the sandbox is missing from this installation",
            where=str(FOLDER),
            remedy="install keel-rlhf again, or train it with `keel sandbox pretrain`",
        )
    return FOLDER
