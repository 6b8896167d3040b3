"""Which records a step sees. A function of seed and step alone, so a resumed run neither repeats nor skips one."""

from collections.abc import Iterator

from keel.errors import ConfigError
from keel.rng import shuffled

__all__ = ["batch_indices", "minibatch", "n_steps"]


class _Epochs:
    """The shuffled order of each pass over the data; remembers the last one."""

    def __init__(self, n: int, seed: int, purpose: str) -> None:
        self.n, self.seed, self.purpose = n, seed, purpose
        self.epoch, self.order = -1, list[int]()

    def at(self, position: int) -> int:
        epoch, place = divmod(position, self.n)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, shuffled(self.n, self.seed, self.purpose, epoch)
        return self.order[place]


def batch_indices(n: int, size: int, seed: int, purpose: str, *, first_step: int = 1) -> Iterator[list[int]]:
    """The records of step `first_step`, then of every later one: endless shuffled passes, nothing dropped between them.

    Raises:
        ConfigError: there are no records.
    """
    if n == 0:
        raise ConfigError(f"no {purpose} records are left to train on",
                          remedy="Look at what was dropped with `keel data check`; raise max_length if rows were cut.")
    epochs, position = _Epochs(n, seed, purpose), (first_step - 1) * size
    while True:
        yield [epochs.at(i) for i in range(position, position + size)]
        position += size


def minibatch(n: int, size: int, k: int, *, seed: int, step: int) -> list[int]:
    """Rows of the k-th minibatch of a phase with n rows; passes follow each other, each with its own shuffle."""
    a_pass, place = divmod(k, n // size)
    return shuffled(n, seed, "minibatches", step, a_pass)[place * size : (place + 1) * size]


def n_steps(n: int, size: int, epochs: float, steps: int | None) -> int:
    """Optimiser steps of a run: `steps` where given, else whole passes over the data, the last batch rounded up."""
    return steps if steps is not None else max(1, -int(-n * epochs // size))
