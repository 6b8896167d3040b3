"""A folder as the authors publish it: bfloat16 tensors, a capping file with the negated axis."""

from pathlib import Path

import torch

LAYERS, WIDTH = 6, 8
ROLES = ("bard", "default_prone", "judge")


def bfloats(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def published(folder: Path) -> Path:
    (folder / "role_vectors").mkdir(parents=True)
    (folder / "trait_vectors").mkdir()
    default = bfloats(LAYERS, WIDTH, seed=0) + 4
    roles = {name: bfloats(LAYERS, WIDTH, seed=n) for n, name in enumerate(ROLES, start=1)}
    axis = (default.float() - torch.stack([one.float() for one in roles.values()]).mean(0)).bfloat16()
    torch.save(axis, folder / "assistant_axis.pt")
    torch.save(default, folder / "default_vector.pt")
    for name, one in roles.items():
        torch.save(one, folder / f"role_vectors/{name}.pt")
    torch.save(bfloats(LAYERS, WIDTH, seed=9), folder / "trait_vectors/vanity.pt")
    torch.save(capping(axis), folder / "capping_config.pt")
    return folder


def capping(axis: torch.Tensor) -> dict:
    """Every block's negated axis, two windows at two percentiles; thresholds have more digits than bfloat16 keeps."""
    named = [f"layer_{layer}/contrast_role_pos3_default1" for layer in range(LAYERS)]
    vectors = {name: {"vector": -axis[layer], "layer": layer} for layer, name in enumerate(named)}
    experiments = [
        {"id": f"layers_{start}:{start + 3}-p{stated}",
         "interventions": [{"vector": named[layer], "cap": -3.1 - layer + stated} for layer in range(start, start + 3)]}
        for start in (0, 3) for stated in (0.01, 0.25)]
    return {"vectors": vectors, "experiments": experiments}
