"""Whitening and running moments, on the values themselves: no masks, no merging."""

import math

import numpy as np


def whiten(rows: list[list[float]], *, center: bool) -> list[list[float]]:
    """Ragged rows to zero mean (with `center`) and unit biased variance, epsilon 1e-6 inside the root."""
    values = [value for row in rows for value in row]
    if not values:
        return rows
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    root = math.sqrt(variance + 1e-6)
    return [[(value - mean if center else value) / root for value in row] for row in rows]


def loss_weights(rows: list[list[float]], counted: list[bool], reduction: str) -> list[list[float]]:
    """1 for every token that counts, or 1 over the length of its response."""
    return [[0.0 if not counts else 1.0 if reduction == "token" else 1.0 / len(row) for _ in row]
            for row, counts in zip(rows, counted, strict=True)]


def moments(batches: list[list[float]]) -> tuple[float, float, float]:
    """Count, mean and summed squared deviations of all batches laid end to end."""
    everything = np.concatenate([np.asarray(batch, dtype=np.float64) for batch in batches])
    mean = everything.mean() if len(everything) else 0.0
    return float(len(everything)), float(mean), float(((everything - mean) ** 2).sum())
