"""The files of the paper's authors, both ways: torch pickles of plain tensors, read without running any code in them.

Their capping files hold the NEGATED axis with an upper bound. Here every direction points to the Assistant, so such an
entry becomes a lower bound on the axis: cap(-v, -tau) is floor(v, tau). Negation is exact, so nothing is lost by it.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keel.errors import DataError
from keel.functional.directions import cosine, mean_difference
from keel.persona.cap import Cap, axis_percentile, stated_percentile
from keel.persona.files import HOOK_POINT, SIGN, AxisFile, check_axis
from keel.runs import explained_disk_errors

__all__ = ["read_published", "write_published"]

Note = Callable[[str], None]

AXIS, DEFAULT, CAPS = ("assistant_axis.pt", "axis.pt"), "default_vector.pt", "capping_config.pt"
ROLES, TRAITS = ("role_vectors", "vectors"), "trait_vectors"
AGREES = 0.95
"""Least cosine between the axis and default minus roles; rounding to bfloat16 alone leaves more than 0.99."""


def read_published(source: Path, note: Note) -> AxisFile:
    """An axis with whatever lies beside it.

    Args:
        source: a folder with assistant_axis.pt or axis.pt and, where they exist, default_vector.pt, role_vectors/ or
            vectors/, trait_vectors/ and capping_config.pt; or the file of an axis alone.
        note: is told what was left out and what looks wrong.

    Raises:
        DataError: there is no axis, a file is no plain tensors, or they contradict each other.
    """
    folder, file = (source, _first(source, AXIS)) if source.is_dir() else (None, source)
    if file is None:
        raise DataError("no axis in this folder", where=str(source),
                        remedy=f"It needs {' or '.join(AXIS)}; a capping file alone does not say what the axis is.")
    vectors, said = _axis_of(file)
    meta = said | {"sign": SIGN, "hook_point": HOOK_POINT, "source": str(source.name),
                   "published_dtype": str(vectors.dtype).removeprefix("torch.")}
    found = AxisFile(vectors.float(), meta=meta)
    if folder is not None:
        found = _with_means(found, folder, note)
        found = replace(found, traits={name: one for name, one, _ in _vectors_in(folder / TRAITS)})
    check_axis(found, str(source))
    _check_agreement(found, source, note)
    if folder is not None and (folder / CAPS).exists():
        found = replace(found, caps=_caps_of(folder / CAPS, found, note))
        check_axis(found, str(folder / CAPS))
    return found


def write_published(folder: Path, content: AxisFile, note: Note, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """The authors' layout, in a new folder.

    Args:
        folder: made; must not exist.
        content: what to write. Means of tokens' lengths and metadata have no place there.
        note: is told what rounding changed and what has no place.
        dtype: of the tensors; the authors use bfloat16.

    Raises:
        DataError: a name that cannot be a file's, or content that contradicts itself.
        RunError: it cannot be written.
    """
    check_axis(content, str(folder))
    named: dict[str, Tensor | None] = {AXIS[0]: content.vectors, DEFAULT: content.default_mean}
    named |= {f"{ROLES[0]}/{_safe(name)}.pt": one for name, one in content.roles.items()}
    named |= {f"{TRAITS}/{_safe(name)}.pt": one for name, one in content.traits.items()}
    caps, vectors = _published_caps(content)
    _tell_rounding([one for one in (*named.values(), *vectors) if one is not None], dtype, note)
    with explained_disk_errors(folder.parent):
        folder.mkdir(parents=True)
        for name, one in named.items():
            if one is not None:
                (folder / name).parent.mkdir(exist_ok=True)
                torch.save(one.to(dtype).clone(), folder / name)
        if caps["experiments"]:
            rounded = {name: row | {"vector": row["vector"].to(dtype).clone()} for name, row in caps["vectors"].items()}
            torch.save(caps | {"vectors": rounded}, folder / CAPS)
    if content.token_norm is not None:
        note("token_norm has no place in the authors' files: with them no strength can be a fraction of it")


# --- reading ---------------------------------------------------------------------------------------------------------


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file made to do harm can fail in any way
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"not a file of plain tensors: {first[:200]}", where=str(path),
                        remedy="keel never runs code of a pickle. Ask for the tensors themselves, saved by torch.save, "
                               "or for safetensors.") from error


def _tensor(value: Any, path: Path) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        held = f"a {type(value).__name__}" if not isinstance(value, Tensor) else f"numbers of type {value.dtype}"
        raise DataError(f"a tensor of fractions was expected, this file holds {held}", where=str(path),
                        remedy="An axis is a tensor [blocks hidden], or a dict with one under `axis` or `vector`.")
    return value.detach()


def _axis_of(path: Path) -> tuple[Tensor, dict[str, str]]:
    held = _load(path)
    if not isinstance(held, Mapping):
        return _tensor(held, path), {}
    said = held.get("metadata") or {}
    words = {f"published_{name}": str(value) for name, value in said.items()} if isinstance(said, Mapping) else {}
    return _tensor(held.get("axis"), path), words


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _vectors_in(folder: Path | None) -> Iterator[tuple[str, Tensor, str | None]]:
    """Name, vector and, where the file says it, the type of mean (`mean`: over everything, as for the default)."""
    for path in sorted(folder.glob("*.pt")) if folder is not None else []:
        held = _load(path)
        if isinstance(held, Mapping):
            yield str(held.get("role") or path.stem), _tensor(held.get("vector"), path).float(), held.get("type")
        else:
            yield path.stem, _tensor(held, path).float(), None


def _with_means(found: AxisFile, folder: Path, note: Note) -> AxisFile:
    """Role vectors and the two means; what the files do not say of the means follows from the axis."""
    read = list(_vectors_in(_first(folder, ROLES)))
    # Which file is the default's is said by its type, or by its whole name: `default_prone` may be a role.
    defaults = [one for name, one, kind in read if kind == "mean" or (kind is None and name == "default")]
    roles = {name: one for name, one, kind in read if kind != "mean" and not (kind is None and name == "default")}
    if (folder / DEFAULT).exists():
        if defaults:
            note(f"{DEFAULT} is taken as the default; the {len(defaults)} default vectors among the roles are not")
        defaults = [_tensor(_load(folder / DEFAULT), folder / DEFAULT).float()]
    default = torch.stack(defaults).mean(0) if defaults and len({one.shape for one in defaults}) == 1 else None
    found = replace(found, roles=roles, default_mean=default)
    check_axis(found, str(folder))
    if roles:
        return replace(found, role_mean=torch.stack(list(roles.values())).mean(0))
    return found if default is None else replace(found, role_mean=default - found.vectors)


def _check_agreement(found: AxisFile, source: Path, note: Note) -> None:
    """The axis should be what its own files say, and point the way it says."""
    if found.default_mean is None or found.role_mean is None:
        return
    agreement = cosine(found.vectors, mean_difference(found.default_mean, found.role_mean))
    worst = int(agreement.argmin())
    if float(agreement.median()) < 0:
        raise DataError("this axis points away from the Assistant: it is roles minus default", where=str(source),
                        remedy="An axis is default minus roles. Negate the tensor, save it, and convert again.")
    if float(agreement[worst]) < AGREES:
        note(f"at block {worst} the axis has a cosine of {float(agreement[worst]):.3f} with default minus mean of the "
             "roles: the files may come from different extractions")


# --- capping files ---------------------------------------------------------------------------------------------------


def _caps_of(path: Path, found: AxisFile, note: Note) -> dict[str, Cap]:
    held = _load(path)
    whole = held if isinstance(held, Mapping) else {}
    vectors, experiments = whole.get("vectors"), whole.get("experiments")
    if not isinstance(vectors, Mapping) or not isinstance(experiments, list):
        raise DataError("not a capping file: it has no `vectors` and `experiments`", where=str(path),
                        remedy="It is a dict of a dict of vectors with their layers and a list of experiments.")
    caps: dict[str, Cap] = {}
    left_out: Counter[str] = Counter()
    used: set[str] = set()
    for number, experiment in enumerate(experiments):
        name, entries = _experiment(experiment, number, path)
        kept = [entry for entry in entries if "cap" in entry]
        left_out[name] += len(entries) - len(kept)
        used |= {str(entry.get("vector")) for entry in entries}
        if name in caps:
            raise DataError(f"two experiments are called {name!r}", where=str(path), remedy="Give each its own id.")
        if kept:
            caps[name] = _cap_of(name, kept, vectors, found, path)
    if n := sum(left_out.values()):
        named = ", ".join(f"{name} ({count})" for name, count in left_out.items() if count)
        note(f"interventions that add a vector (`coeff`) in place of a cap were left out, {n} of them: {named}")
    if unused := len([name for name in vectors if str(name) not in used]):
        note(f"vectors of {path.name} that no experiment uses were left out: {unused} of {len(vectors)}")
    return caps


def _experiment(experiment: Any, number: int, path: Path) -> tuple[str, list[Mapping[str, Any]]]:
    entries = experiment.get("interventions") if isinstance(experiment, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise DataError(f"experiment {number} of the capping file has no list of interventions", where=str(path),
                        remedy='An experiment is {"id": ..., "interventions": [{"vector": ..., "cap": ...}]}.')
    return str(experiment.get("id", number)), entries


def _cap_of(name: str, entries: list[Mapping[str, Any]], vectors: Mapping[Any, Any], found: AxisFile,
            path: Path) -> Cap:
    layers, lower, upper, directions = list[int](), list[float | None](), list[float | None](), list[Tensor]()
    for entry in entries:
        layer, vector = _vector_of(entry.get("vector"), vectors, found, path)
        bound = _number(entry["cap"], name, path)
        against = float(cosine(vector, found.vectors[layer])) < 0
        # Their upper bound on a vector that points away from the Assistant is a lower bound towards it.
        layers.append(layer)
        lower.append(-bound if against else None)
        upper.append(None if against else bound)
        directions.append(-vector if against else vector)
    along_axis = all(torch.equal(one, found.vectors[layer]) for one, layer in zip(directions, layers, strict=True))
    return Cap(tuple(layers), tuple(lower), tuple(upper), _percentile(stated_percentile(name), lower),
               "not said in the file", f"{path.name}: {name}", None if along_axis else torch.stack(directions),
               tuple(str(entry.get("vector")) for entry in entries))


def _percentile(stated: float | None, lower: list[float | None]) -> float | None:
    """On the axis: converted where the entries were turned round; none where only some of them were."""
    turned = {bound is not None for bound in lower}
    if stated is None or len(turned) > 1:
        return None
    return axis_percentile(stated) if turned == {True} else stated


def _vector_of(name: Any, vectors: Mapping[Any, Any], found: AxisFile, path: Path) -> tuple[int, Tensor]:
    row = vectors.get(name)
    layer = row.get("layer") if isinstance(row, Mapping) else None
    if not isinstance(row, Mapping) or not isinstance(layer, int) or not 0 <= layer < len(found.vectors):
        raise DataError(f"the vector {name!r} is missing from the capping file, or its layer {layer!r} is no block of "
                        f"a model with {len(found.vectors)}", where=str(path),
                        remedy="Take axis and capping file of the same model.")
    vector = _tensor(row.get("vector"), path).float()
    if vector.shape != found.vectors[layer].shape or not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
        raise DataError(f"the vector {name!r} has the shape {tuple(vector.shape)}, or is zero, or not finite",
                        where=str(path), remedy=f"A state has {found.vectors.shape[1]} numbers in this axis.")
    return layer, vector


def _number(value: Any, name: str, path: Path) -> float:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise DataError(f"{name}: a threshold is {value!r}, not a finite number", where=str(path),
                        remedy="`cap` is the bound on the projection onto the vector divided by its length.")
    return float(number)


# --- writing ---------------------------------------------------------------------------------------------------------


def _published_caps(content: AxisFile) -> tuple[dict[str, Any], list[Tensor]]:
    """Every lower bound as an upper bound on the negated vector; and all vectors."""
    vectors: dict[str, dict[str, Any]] = {}
    experiments = []
    for name, cap in content.caps.items():
        entries = []
        for k, layer in enumerate(cap.layers):
            towards = content.vectors[layer] if cap.vectors is None else cap.vectors[k]
            for bound, sign in ((cap.lower[k], -1.0), (cap.upper[k], 1.0)):
                if bound is not None:
                    called = _vector_name(cap, k, name, sign)
                    called = _placed(vectors, called, {"vector": sign * towards, "layer": layer})
                    entries.append({"vector": called, "cap": sign * bound})
        experiments.append({"id": name, "interventions": entries})
    return {"vectors": vectors, "experiments": experiments}, [row["vector"] for row in vectors.values()]


def _vector_name(cap: Cap, k: int, preset: str, sign: float) -> str:
    """As it was called; else, for the negated axis, as the authors call it."""
    if cap.names:
        return cap.names[k]
    if cap.vectors is None:
        return f"layer_{cap.layers[k]}/" + ("contrast_role_pos3_default1" if sign < 0 else "assistant_axis")
    return f"layer_{cap.layers[k]}/{preset}" + ("" if sign < 0 else "_towards")


def _placed(vectors: dict[str, dict[str, Any]], name: str, row: dict[str, Any]) -> str:
    """The name under which the vector is kept: the wanted one, numbered where another vector has it."""
    wanted, number = name, 1
    while name in vectors and not (vectors[name]["layer"] == row["layer"]
                                   and torch.equal(vectors[name]["vector"], row["vector"])):
        number += 1
        name = f"{wanted}_{number}"
    vectors[name] = row
    return name


def _tell_rounding(tensors: list[Tensor], dtype: torch.dtype, note: Note) -> None:
    changed = sum(int((one.to(dtype).float() != one.float()).sum()) for one in tensors)
    total = sum(one.numel() for one in tensors)
    if changed:
        note(f"{changed} of {total} numbers were rounded to {str(dtype).removeprefix('torch.')}; write float32 to keep "
             "them whole")


def _safe(name: str) -> str:
    if not re.fullmatch(r"[\w][\w .+-]*", name):
        raise DataError(f"{name!r} cannot be the name of a file", remedy="Rename the role or trait: letters, digits, "
                        "space, dot, plus, minus, underscore.")
    return name
