"""What an extraction leaves in its run folder: the axis, the vectors, space.json, and a table beside every picture."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from keel.persona.axis import AssistantAxis, DefaultStats
from keel.persona.files import HOOK_POINT, SIGN
from keel.persona.space import SHOWN, Found, Space
from keel.runs import explained_disk_errors, write_json

__all__ = ["axis_of", "summary_of", "write_outcome"]

AXIS, SPACE, VECTORS, TABLES = "axis.safetensors", "space.json", "role_vectors.safetensors", "tables"


def axis_of(found: Found, space: Space, about: Mapping[str, Any]) -> AssistantAxis:
    """The axis with its vectors and everything that is known about how it was made."""
    stats = _default_stats(found, space)
    words = {name: text if isinstance(text, str) else json.dumps(text) for name, text in about.items()}
    return AssistantAxis(
        found.axis, found.default, found.role_mean,
        {one.name: one.mean for one in found.chosen("fully", "all")},
        {name: vector for name, (vector, _) in found.traits.items()}, found.token_norm,
        words | {"layer": str(space.layer), "sign": SIGN, "hook_point": HOOK_POINT, "dtype": "float32",
                 "centring": "raw; projections from the role mean subtract its own projection",
                 "tokens": "content of responses: no role header, no end of turn",
                 "counts": json.dumps(found.counts)} | ({"default_stats": stats.words} if stats else {}))


def write_outcome(folder: Path, found: Found, space: Space, axis: AssistantAxis) -> None:
    """Write axis.safetensors, role_vectors.safetensors, space.json and the tables.

    Raises:
        RunError: something cannot be written.
    """
    axis.save(folder / AXIS)
    with explained_disk_errors(folder):
        beside = folder / f".{VECTORS}.new"
        beside.write_bytes(save({f"{one.kind}/{one.name}": one.mean.contiguous() for one in found.vectors},
                                {f"{one.kind}/{one.name}": str(one.n) for one in found.vectors}))
        beside.replace(folder / VECTORS)
        (folder / TABLES).mkdir(exist_ok=True)
        for name, rows in _tables(space.table).items():
            _write_table(folder / TABLES / f"{name}.csv", rows)
    write_json(folder / SPACE, space.table)


def summary_of(found: Found, space: Space) -> dict[str, Any]:
    """The numbers of result.json."""
    table, layer = space.table, space.layer
    halves = table["split_half"]
    return {
        "layer": layer, "reliability": halves[layer], "reliability_lowest": min(halves, key=lambda x: (x is None, x)),
        "whole_cosine": table["whole_cosine"][layer], "cosine_pc1": table["cosine_pc1"][layer],
        "pc1_share": table["variance"][0] if table["variance"] else None, "components_for": table["components_for"],
        "default_explained": table["default_explained"],
        "axis_norm": table["axis_norm"][layer], "token_norm": table["token_norm"][layer],
        "default_range": table["default_range"], "n_fully": len(found.chosen("fully")),
        "n_somewhat": len(found.chosen("somewhat")), "n_all": len(found.chosen("all")), "n_traits": len(found.traits),
        "too_few": found.few}


def _default_stats(found: Found, space: Space) -> DefaultStats | None:
    between = space.table["default_range"]
    if between is None:
        return None
    along = torch.nn.functional.normalize(found.axis[space.layer].double(), dim=0)
    values = found.kept.double() @ along
    return DefaultStats(space.layer, float(values.mean()), float(values.std(correction=0)), between["low"],
                        between["high"], len(values))


def _tables(space: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    layers = [dict(zip(("layer", *names), (i, *row), strict=True)) for names in [
        ("cosine_pc1", "axis_norm", "split_half", "whole_cosine", "token_norm")]
        for i, row in enumerate(zip(*(space[name] for name in names), strict=True))]
    cumulative, variance = 0.0, []
    for number, share in enumerate(space["variance"], start=1):
        cumulative += share
        variance.append({"component": number, "share": share, "cumulative": cumulative})
    roles = [_flat(one) for one in [*space["vectors"], {"name": "default", "kind": "default", **space["default"]}]]
    counts = [{"role": role, "score": score, "responses": n} for role, own in space["counts"].items()
              for score, n in own.items()]
    return {"layers": layers, "variance": variance, "roles": roles, "counts": counts, "traits": space["traits"]}


def _flat(vector: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: vector[name] for name in ("name", "kind", "n", "projection")}
    for name, short in (("coordinates", "pc"), ("cosines", "cosine")):
        row |= {f"{short}{i + 1}": vector[name][i] if i < len(vector[name]) else "" for i in range(SHOWN)}
    return row


def _write_table(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns: Iterable[str] = rows[0] if rows else ()
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
