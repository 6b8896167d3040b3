"""A pair's prompt run once for both responses, against twice: `python benchmarks/pairs.py [full|quick] [fp32|bf16]`.

One training step of a reward model (32 HH pairs of at most 512 tokens: micro-batches, forward, Bradley-Terry, backward)
in both layouts, interleaved, one thread, CPU seconds of the process; medians over all rounds of all steps. Errors of
gradients are against float32 with the prompt run twice, as norms relative to its norm. Model S
(256 wide, 6 layers, vocabulary 4,096; see prepare.py) reads the tokens of ../shared/models/storychat-4M, a tokenizer
of that size; the sandbox's base model (128 wide, 4 layers) reads its own, which was made for other text and cuts HH
into more pieces. Without ../shared the text is made up and both use the sandbox's tokenizer.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch
from common import BATCH, DATA, MICRO_TOKENS, POSITIONS, ROOT, cpu_seconds
from torch import Tensor, nn

from keel.batches import SharedPrompt
from keel.data.collate import pair_batches
from keel.data.load import read_pairs
from keel.data.render import PairRow, render_pairs, template
from keel.functional.preference import bradley_terry
from keel.models.load import ModelConfig, load_tokenizer, scalar_model
from keel.models.pairs import pair_scores

MODELS = {"S": DATA / "reward", "sandbox base": ROOT / "src" / "keel" / "sandbox" / "base_model"}
LAYOUTS: tuple[SharedPrompt, SharedPrompt] = ("never", "always")
SHARES = (0.0, 0.4, 0.7, 1.0)
EVEN = (0.0, 0.1, 0.2)
LENGTH = 64
"""Shares of positions saved, in pairs cut to responses of one length, without padding: where does joining pay?"""
STEPS, ROUNDS = {"full": 8, "quick": 1}, {"full": 5, "quick": 3}


def main(size: str, fmt: str) -> None:
    torch.set_num_threads(1)
    if not (DATA / "reward").exists():
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / "prepare.py"), size], check=True)
    pairs = read_pairs(DATA / "all.jsonl", on_bad_record="skip")[0]
    for name, folder in MODELS.items():
        model = scalar_model(ModelConfig(path=str(folder), autocast=fmt == "bf16", device="cpu"), seed=0)
        words = template(load_tokenizer(str(folder)))
        rows = render_pairs(words, pairs, POSITIONS, "drop")[0]
        random.Random(0).shuffle(rows)
        print(f"\n{name}, {fmt}: {len(rows)} pairs that fit, prompts are {prompt_share(rows):.0%} of their tokens")
        print("prompts       positions                             seconds a step    faster  gradient's error")
        groups = {"all": rows} | {f"{low:.0%} - {high:.0%}": [row for row in rows if low <= prompt_share([row]) < high]
                                  for low, high in itertools.pairwise(SHARES)}
        groups |= {f"even, {saved:.0%}": evened(rows, saved) for saved in EVEN}
        for label, group in groups.items():
            if len(group) >= BATCH:
                measured(label, model, group, words.pad_id, size)


def measured(label: str, model: Any, rows: Sequence[PairRow], pad_id: int, size: str) -> None:
    """One line of the table."""
    steps = [rows[BATCH * i : BATCH * (i + 1)] for i in range(min(STEPS[size], len(rows) // BATCH))]
    positions, seconds, gaps = ({how: [] for how in LAYOUTS} for _ in range(3))  # type: ignore[var-annotated]
    for step in steps:
        autocast, model.keel_autocast = model.keel_autocast, False
        exact = trained(model, step, pad_id, "never")  # a warm-up, too
        model.keel_autocast = autocast
        for turn in range(ROUNDS[size]):
            for how in LAYOUTS if turn % 2 else reversed(LAYOUTS):
                start = cpu_seconds()
                found = trained(model, step, pad_id, how)
                seconds[how].append(cpu_seconds() - start)
                gaps[how].append(float((found - exact).norm() / exact.norm()))
        for how in LAYOUTS:
            positions[how].append(sum(part.tokens.n_positions for part in batches(step, pad_id, how)))
    twice, once = (sum(positions[how]) for how in LAYOUTS)
    old, new = (statistics.median(seconds[how]) for how in LAYOUTS)
    faster = statistics.median(a / b for a, b in zip(*(seconds[how] for how in LAYOUTS), strict=True))
    tokens = sum(len(row.chosen.ids) + len(row.rejected.ids) for step in steps for row in step)
    print(f"{label:12} {twice:>6} -> {once:>6} (-{1 - once / twice:.0%}, padding -{1 - tokens / twice:.0%})  "
          f"{old:6.3f} -> {new:6.3f}  {faster:.2f}x  {max(gaps['never']):.0e} / {max(gaps['always']):.0e}", flush=True)


def batches(step: Sequence[PairRow], pad_id: int, how: SharedPrompt) -> list[Any]:
    return pair_batches(step, micro_tokens=MICRO_TOKENS, pad_id=pad_id, shared_prompt=how)


def trained(model: nn.Module, step: Sequence[PairRow], pad_id: int, how: SharedPrompt) -> Tensor:
    """One step; its whole gradient."""
    model.zero_grad()
    for part in batches(step, pad_id, how):
        chosen, rejected = pair_scores(model, part)
        (bradley_terry(chosen, rejected)[0].sum() / len(step)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def evened(rows: Sequence[PairRow], saved: float) -> list[PairRow]:
    """Pairs of two responses of L tokens behind a prompt of P, so that P = saved * 2 (P + L)."""
    n_prompt = max(1, round(2 * saved * LENGTH / (1 - 2 * saved)))
    return [PairRow(row.prompt_ids[:n_prompt], row.chosen_ids[:LENGTH], row.rejected_ids[:LENGTH], row.pair)
            for row in rows if len(row.prompt_ids) >= n_prompt
            and min(len(row.chosen_ids), len(row.rejected_ids)) >= LENGTH]


def prompt_share(rows: Sequence[PairRow]) -> float:
    """Tokens of prompts among the tokens of both sides."""
    prompts = sum(2 * len(row.prompt_ids) for row in rows)
    return prompts / (prompts + sum(len(row.chosen_ids) + len(row.rejected_ids) for row in rows))


if __name__ == "__main__":
    words = sys.argv[1:]
    main(words[0] if words else "quick", words[1] if len(words) > 1 else "fp32")
