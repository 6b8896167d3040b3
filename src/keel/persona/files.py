"""keel's own file of an axis: safetensors, float32, with every fact about it as metadata.

    axis [L D]                  positive projection: Assistant-like
    default_mean, role_mean     [L D], what the axis is the difference of; may be absent
    token_norm [L]              mean length of a token's state; may be absent
    roles/NAME, traits/NAME     [L D]
    caps/NAME                   [K D], directions of a preset that caps along something else than the axis

Metadata are words: `keel_axis` (version of the format), `caps` (JSON: bounds of every preset), and what the maker of
the file had to say.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from keel.errors import DataError
from keel.persona.cap import Cap
from keel.runs import explained_disk_errors

__all__ = ["HOOK_POINT", "SIGN", "AxisFile", "check_axis", "read_axis", "write_axis"]

VERSION = "1"
SIGN = "positive projection: Assistant-like"
HOOK_POINT = "output of the decoder block, after the MLP and before the final norm; blocks count from 0"
ORIENTATION = ("percentile_on_axis counts along the axis, towards the Assistant; the p of a name counts the other way, "
               "as published: p0.25 is percentile_on_axis 0.75")
RESERVED = ("keel_axis", "caps")


@dataclass(frozen=True, eq=False)
class AxisFile:
    """What such a file holds. Everything float32.

    Attributes:
        vectors: the axis of every block [L D], not normalised.
        default_mean, role_mean: means of the states it is the difference of [L D].
        roles, traits: one vector each [L D].
        token_norm: mean length of a token's state, by block [L].
        meta: words; model, hook point, counts, judge, ...
        caps: presets by name.
    """

    vectors: Tensor
    default_mean: Tensor | None = None
    role_mean: Tensor | None = None
    roles: Mapping[str, Tensor] = field(default_factory=dict)
    traits: Mapping[str, Tensor] = field(default_factory=dict)
    token_norm: Tensor | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    caps: Mapping[str, Cap] = field(default_factory=dict)


def read_axis(path: Path) -> AxisFile:
    """The content of a file that `write_axis` wrote.

    Raises:
        DataError: no such file, not such a file, or one that contradicts itself.
    """
    try:
        with safe_open(path, framework="pt") as file:
            words = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read an axis: {error}", where=str(path), remedy="Give the axis.safetensors of a run "
                        "of `keel axis extract`, or one made by `keel axis convert`.") from error
    if words.get("keel_axis") != VERSION or "axis" not in tensors:
        raise DataError("this safetensors file holds no axis", where=str(path), remedy="An axis has a tensor `axis` "
                        f"and keel_axis = {VERSION} in its metadata; `keel axis convert` makes such a file.")
    found = AxisFile(
        tensors["axis"], tensors.get("default_mean"), tensors.get("role_mean"), _named(tensors, "roles/"),
        _named(tensors, "traits/"), tensors.get("token_norm"),
        {name: text for name, text in words.items() if name not in RESERVED},
        _caps_of(words.get("caps", "{}"), _named(tensors, "caps/"), path))
    check_axis(found, str(path))
    return found


def write_axis(path: Path, content: AxisFile) -> None:
    """Write it beside and rename: no reader ever sees half a file.

    Raises:
        DataError: it contradicts itself.
        RunError: it cannot be written.
    """
    check_axis(content, str(path))
    whole = {"axis": content.vectors, "default_mean": content.default_mean, "role_mean": content.role_mean,
             "token_norm": content.token_norm} | {f"roles/{name}": one for name, one in content.roles.items()} | {
             f"traits/{name}": one for name, one in content.traits.items()} | {
             f"caps/{name}": cap.vectors for name, cap in content.caps.items()}
    tensors = {name: one.detach().float().cpu().contiguous() for name, one in whole.items() if one is not None}
    words = dict(content.meta) | {"keel_axis": VERSION, "caps": json.dumps(
        {name: _cap_row(cap) for name, cap in content.caps.items()})}
    with explained_disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(save({name: one.clone() for name, one in tensors.items()}, words))
        beside.replace(path)


def check_axis(content: AxisFile, where: str) -> None:
    """Shapes that belong together, numbers that are finite, presets that fit the axis.

    Raises:
        DataError: they do not.
    """
    shape = tuple(content.vectors.shape)
    if len(shape) != 2 or not all(shape):
        raise DataError(f"an axis is [blocks hidden], this one has the shape {shape}", where=where,
                        remedy="Stack one vector per decoder block.")
    named = {"the axis": content.vectors, "default_mean": content.default_mean, "role_mean": content.role_mean}
    named |= {f"the role {name!r}": one for name, one in content.roles.items()}
    named |= {f"the trait {name!r}": one for name, one in content.traits.items()}
    for name, one in named.items():
        if one is not None and (tuple(one.shape) != shape or not bool(torch.isfinite(one).all())):
            raise DataError(f"{name} has the shape {tuple(one.shape)}, or numbers that are not finite", where=where,
                            remedy=f"It belongs to an axis of the shape {shape}; take both from one extraction.")
    norm = content.token_norm
    if norm is not None and (tuple(norm.shape) != shape[:1] or not bool((torch.isfinite(norm) & (norm > 0)).all())):
        raise DataError(f"token_norm has the shape {tuple(norm.shape)} for {shape[0]} blocks, or a length that is not "
                        "above 0", where=where, remedy="It is the mean length of a token's state, one per block.")
    for name, cap in content.caps.items():
        _check_cap(name, cap, shape, where)
    if strange := [name for name in content.meta if name in RESERVED]:
        raise DataError(f"the metadata may not be called {strange[0]!r}: the format uses that name", where=where,
                        remedy="Choose another name.")


def _check_cap(name: str, cap: Cap, shape: tuple[int, ...], where: str) -> None:
    if max(cap.layers) >= shape[0]:
        raise DataError(f"the preset {name!r} caps block {max(cap.layers)} of a model with {shape[0]} blocks",
                        where=where, remedy="The preset belongs to another model.")
    if cap.vectors is not None and cap.vectors.shape[1] != shape[1]:
        raise DataError(f"the preset {name!r} has vectors of {cap.vectors.shape[1]} numbers for states of {shape[1]}",
                        where=where, remedy="The preset belongs to another model.")


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def _cap_row(cap: Cap) -> dict[str, Any]:
    bound = {(True, False): "lower", (False, True): "upper"}.get(
        (any(x is not None for x in cap.lower), any(x is not None for x in cap.upper)), "lower and upper")
    return {"layers": cap.layers, "bound": bound, "lower": cap.lower, "upper": cap.upper, "names": cap.names,
            "percentile_on_axis": cap.percentile, "orientation": ORIENTATION, "population": cap.population,
            "source": cap.source}


def _caps_of(text: str, vectors: Mapping[str, Tensor], path: Path) -> dict[str, Cap]:
    try:
        rows = json.loads(text)
        return {name: Cap(tuple(row["layers"]), tuple(row["lower"]), tuple(row["upper"]), row["percentile_on_axis"],
                          row["population"], row["source"], vectors.get(name), tuple(row["names"]))
                for name, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the presets in this axis file cannot be read: {error}", where=str(path),
                        remedy="`caps` in the metadata is JSON; make the file again.") from error
