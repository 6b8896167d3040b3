"""How often a right step scores above a wrong one at the same place of the same task, whatever the threshold.

    python configs/real/process_step_labels_pairs.py TEST.jsonl RUN/solutions.jsonl

Rules that know task and place alone get one half.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import torch

from keel.functional.resampling import cluster_draws, percentile_interval
from keel.rng import stream

N_DRAWS = 1000


def rows(path: Path) -> list[dict]:
    """What a file of JSON lines holds."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(labelled: Path, scored: Path) -> None:
    """Print the share with its 95% bootstrap interval over solutions."""
    tasks = {row["id"]: row["task"] for row in rows(labelled)}
    cells: dict[tuple[str, int], list[tuple[int, float, bool]]] = defaultdict(list)
    told = rows(scored)
    for number, row in enumerate(told):
        for k, step in enumerate(row["steps"]):
            if step["score"] is not None and step["label"] is not None:
                cells[tasks[row["id"]], k].append((number, step["score"], step["label"] >= 0.5))
    draws = cluster_draws(len(told), n_draws=N_DRAWS, generator=stream(0, "bootstrap", "pairs"))
    weights = torch.cat([torch.ones(1, len(told), dtype=torch.float64), draws])
    in_order = n_pairs = torch.zeros(len(weights), dtype=torch.float64)
    for steps in cells.values():
        numbers, right = torch.tensor([one[0] for one in steps]), torch.tensor([one[2] for one in steps])
        scores = torch.tensor([one[1] for one in steps], dtype=torch.float64)
        good, bad = weights[:, numbers[right]], weights[:, numbers[~right]]
        above = ((scores[right][:, None] - scores[~right]).sign() + 1) / 2
        in_order = in_order + ((good @ above) * bad).sum(1)
        n_pairs = n_pairs + good.sum(1) * bad.sum(1)
    share = in_order / n_pairs
    low, high = percentile_interval(share[1:])
    print(f"{float(share[0]):.3f} [{float(low):.3f}, {float(high):.3f}] of {int(n_pairs[0])} pairs")


main(Path(sys.argv[1]), Path(sys.argv[2]))
