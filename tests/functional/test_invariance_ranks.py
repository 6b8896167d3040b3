"""The functions of group invariance on two real processes, each with its part of a batch."""

from pathlib import Path

import pytest
import torch
from references.ragged import noise
from tolerances import FLOAT64
from torch import Tensor, distributed
from torch.testing import assert_close

from functional.test_invariance import CALLS, GUARDED, HEAD, PARTS, OneRank, draw, rows_per_call
from keel.functional.invariance import group_objective

SEED = 21
OBJECTIVES = {"plain": HEAD, "guarded": GUARDED}


class Process:
    """Sums and columns over all processes of the default group."""

    @staticmethod
    def reduce(x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def gather(x: Tensor) -> Tensor:
        """all_gather wants parts of one size: short ones are filled up and cut again."""
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(distributed.get_world_size())]
        distributed.all_gather(sizes, torch.tensor([len(x)]))
        longest = int(max(sizes))
        parts = [x.new_zeros(longest) for _ in sizes]
        distributed.all_gather(parts, torch.cat([x, x.new_zeros(longest - len(x))]))
        return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])


def head_gradient(rows: slice, options: dict, ranks: type) -> Tensor:
    """Of the weights of a linear head, from some of the responses."""
    p, returns = draw(SEED)
    head = noise(SEED + 2, 3, 3).requires_grad_()
    group_objective(p[rows] @ head, returns[rows], reduce=ranks.reduce, **options).backward()
    return head.grad


def work(rank: int, folder: str) -> None:
    """One process: everything it computes from its rows."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(PARTS))
    p, returns = (x[PARTS[rank]] for x in draw(SEED))
    results = {name: call(p, returns, Process) for name, call in CALLS.items()}
    results |= {f"gradient of {name}": head_gradient(PARTS[rank], options, Process)
                for name, options in OBJECTIVES.items()}
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=len(PARTS))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(PARTS))]
    p, returns = draw(SEED)
    for name, call in CALLS.items():
        whole = call(p, returns, OneRank)
        for part, rows in zip(parts, PARTS, strict=True):
            assert_close(part[name], whole[rows] if rows_per_call(whole) else whole, **FLOAT64)
    for name, options in OBJECTIVES.items():
        total = parts[0][f"gradient of {name}"] + parts[1][f"gradient of {name}"]
        assert_close(total, head_gradient(slice(None), options, OneRank), **FLOAT64)
