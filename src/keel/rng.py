"""The only place where a seed becomes randomness: every stream is named, and its name fixes what it draws.

Adding a stream never disturbs another one, and a run resumed at step 400 draws what step 400 drew.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["digest", "python_stream", "seeded", "shuffled", "stream"]


def digest(seed: int, *names: str | int) -> int:
    """A 63-bit number that depends on the seed and on every name, the same on every machine and in every process."""
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(seed: int, *names: str | int) -> "torch.Generator":
    """A CPU torch generator for one purpose, e.g. `stream(cfg.seed, "sample", step, record_id)`."""
    import torch

    return torch.Generator().manual_seed(digest(seed, *names))


@contextlib.contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Let what draws from torch's own generators, which nobody can hand a stream to (dropout), draw from this one.

    Afterwards they are where they were before.
    """
    import torch

    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):
        torch.set_rng_state(stream(seed, *names).get_state())
        for device in devices:
            generator = torch.Generator(f"cuda:{device}").manual_seed(digest(seed, *names))
            torch.cuda.set_rng_state(generator.get_state(), device)
        yield


def python_stream(seed: int, *names: str | int) -> random.Random:
    """The same for code that draws without torch."""
    return random.Random(digest(seed, *names))


def shuffled(n: int, seed: int, *names: str | int) -> list[int]:
    """The numbers 0 .. n-1 in an order fixed by seed and names."""
    order = list(range(n))
    python_stream(seed, *names).shuffle(order)
    return order
