"""`keel axis convert`: an axis from the authors' files to keel's own, or back.

Left out: the responses, activations and scores that their pipeline keeps between its steps.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from keel.config import Config
from keel.errors import DataError, RunError
from keel.persona.cap import preset_lines
from keel.persona.files import AxisFile, read_axis, write_axis
from keel.persona.published import read_published, write_published

__all__ = ["AxisConvertConfig", "run"]

OWN = ".safetensors"
GEMMA_BLOCKS = 46


class AxisConvertConfig(Config):
    """Everything `keel axis convert` reads."""

    source: Path = Field(description="axis.safetensors, to write the authors' files; or their folder or axis .pt file")
    out: Path = Field(description="must not exist; .safetensors: keel's own file; else a folder in the authors' layout")
    model: str | None = Field(None, description="model that the axis belongs to, kept as metadata; none: not said")
    layer: int | None = Field(None, ge=0, description="block where projections are shown, kept as metadata; none: the "
                              "middle one")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="of the authors' tensors; float32 keeps "
                                                  "every digit")


def run(cfg: AxisConvertConfig) -> AxisFile:
    """Convert, and say what there is now.

    Raises:
        DataError: the source is no axis, or both are files of the same kind.
        RunError: the output exists or cannot be written.
    """
    if cfg.out.exists():
        raise RunError("the output of a conversion exists already", where=str(cfg.out), remedy="Remove it, or choose "
                       "another --out.")
    if (cfg.source.suffix == OWN) == (cfg.out.suffix == OWN):
        raise DataError("nothing to convert: source and out are both " + (
            "keel's own files" if cfg.out.suffix == OWN else "in the authors' layout"), where=str(cfg.out),
            remedy=f"One of them ends in {OWN}, which is keel's own; the other one is a folder.")
    notes: list[str] = []
    content = read_axis(cfg.source) if cfg.source.suffix == OWN else read_published(cfg.source, notes.append)
    if cfg.layer is not None and cfg.layer >= len(content.vectors):
        raise DataError(f"layer={cfg.layer} is no block of an axis with {len(content.vectors)}", where=str(cfg.source),
                        remedy=f"Blocks are 0 to {len(content.vectors) - 1}.")
    told = {"model": cfg.model, "layer": None if cfg.layer is None else str(cfg.layer)}
    meta = dict(content.meta) | {name: said for name, said in told.items() if said is not None}
    content = replace(content, meta=meta)
    if cfg.out.suffix == OWN:
        if len(content.vectors) == GEMMA_BLOCKS and "layer" not in meta:
            notes.append("an axis of 46 blocks, as of Gemma 2 27B: the authors read that one at block 22, and the "
                         "middle one is 23; --layer 22 reads as they do")
        write_axis(cfg.out, content)
    else:
        write_published(cfg.out, content, notes.append, dtype=getattr(torch, cfg.dtype))
    _say(cfg, content, notes)
    return content


def _say(cfg: AxisConvertConfig, content: AxisFile, notes: list[str]) -> None:
    """What the new file holds; of presets, what their percentile means in both directions."""
    n, width = content.vectors.shape
    means = [name for name in ("default_mean", "role_mean") if getattr(content, name) is not None]
    print(f"{cfg.out}: axis of {n} blocks, {width} numbers each; positive is Assistant-like")
    print(f"  {', '.join(means) or 'no means'}; {len(content.roles)} roles, {len(content.traits)} traits, "
          f"{len(content.caps)} capping presets")
    for line in preset_lines(content.caps):
        print(f"  {line}")
    for note in notes:
        print(f"note: {note}")
