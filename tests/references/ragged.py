"""Random padded batches for hypothesis, and the way between padded tensors and plain ragged lists."""

import torch
from hypothesis import strategies as st
from torch import Tensor


@st.composite
def response_masks(draw: st.DrawFn) -> Tensor:
    """One contiguous response per row: empty, a single token, a full row, or anything between."""
    width = draw(st.integers(1, 7))
    mask = torch.zeros(draw(st.integers(1, 4)), width, dtype=torch.bool)
    for row in mask:
        start = draw(st.integers(0, width - 1))
        row[start : start + draw(st.integers(0, width - start))] = True
    return mask


seeds = st.integers(0, 2**31)


def noise(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal float64 numbers fixed by a seed."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of(x: Tensor, mask: Tensor) -> list[list[float]]:
    """What the mask shows, row by row."""
    return [row[keep].tolist() for row, keep in zip(x, mask, strict=True)]


def padded(rows: list[list[float]], mask: Tensor) -> Tensor:
    """Those rows back under the mask, zero elsewhere."""
    out = torch.zeros(mask.shape, dtype=torch.float64)
    out[mask] = torch.tensor([value for row in rows for value in row], dtype=torch.float64)
    return out
