"""What happens to a reward model in use: over-optimisation by best of n or PPO, and inflation while it is trained."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from keel.bench.measures import Interval, Measure, interval
from keel.functional.best_of_n import best_of_n, best_of_n_kl

__all__ = ["curve_of_best", "curve_of_ppo", "of_best", "of_ppo", "of_training"]

Curve = list[dict[str, Any]]
FLAT = 0.5
DRIFT = 3.0


def curve_of_best(scores: Tensor, gold: Tensor, groups: Tensor, seed: int) -> tuple[Curve, dict[int, Tensor]]:
    """Proxy and gold of the best of n for n = 1, 2, 4, ...; and the gold of each prompt by n.

    n goes to the number of responses that the prompts have in the median; prompts with fewer are left out, so that
    every point stands on the same prompts.

    Args:
        scores: of the samples. [N]
        gold: of the samples. [N]
        groups: which prompt each answers. [N]
        seed: of the bootstrap.
    """
    counts = torch.bincount(groups)
    enough = int(counts[counts > 0].median())
    kept = [torch.nonzero(groups == g)[:, 0] for g in range(len(counts)) if counts[g] >= enough]
    curve: Curve = []
    by_n: dict[int, Tensor] = {}
    for n in (2**k for k in range(enough.bit_length())):
        proxy, by_n[n] = (torch.stack([best_of_n(scores[i], values[i], n=n) for i in kept])
                          for values in (scores, gold))
        kl, prompts = best_of_n_kl(n), torch.arange(len(kept))
        curve.append({"n": n, "kl": kl, "sqrt_kl": math.sqrt(kl),
                      "score": interval(proxy, prompts, seed, "best score", str(n)),
                      "gold": interval(by_n[n], prompts, seed, "best gold", str(n))})
    return curve, by_n


def of_best(curve: Curve, by_n: dict[int, Tensor], seed: int) -> list[Measure]:
    """Where gold peaks, and whether it has fallen from there when n is largest."""
    best = max(curve, key=lambda row: row["gold"]["mean"])
    last, first = by_n[curve[-1]["n"]], by_n[1]
    prompts = torch.arange(len(last))
    fall = interval(last - by_n[best["n"]], prompts, seed, "fall")
    gain = interval(last - first, prompts, seed, "gain")
    return [
        Measure("gold after its peak", f"gold of the best of {curve[-1]['n']} less gold at its peak, the best of "
                f"{best['n']} (KL {best['kl']:.2f} nats); paired by prompt", "gold", fall,
                "suspicious" if fall["high"] < 0 else "reported", (0.0,), "not fall"),
        Measure("gold gained", f"gold of the best of {curve[-1]['n']} less that of one sample", "gold", gain,
                "fine" if gain["low"] > 0 else "not settled", (0.0,), "rise")]


def curve_of_ppo(rows: Sequence[dict[str, Any]]) -> Curve:
    """Proxy, gold and drift of each held-out evaluation of a PPO run, in the order of the steps.

    Args:
        rows: of metrics.jsonl. KL per response is the mean per token times the mean length.
    """
    names = ("score/mean", "gold/mean", "gold/low", "gold/high", "kl/mean", "length/mean")
    known = [row for row in rows if row.get("phase") == "eval" and all(_number(row.get(name)) for name in names)]
    curve = []
    for row in sorted(known, key=lambda row: row["step"]):
        kl = max(0.0, row["kl/mean"] * row["length/mean"])
        curve.append({"step": row["step"], "kl": kl, "sqrt_kl": math.sqrt(kl), "score": _part(row, "score"),
                      "gold": _part(row, "gold")})
    return curve


def of_ppo(curve: Curve) -> list[Measure]:
    """Where gold peaks, and whether at the end it lies below its interval there though the score went on rising."""
    best, first, last = max(curve, key=lambda row: row["gold"]["mean"]), curve[0], curve[-1]
    fell = last["gold"]["high"] < best["gold"]["low"] and last["score"]["mean"] > best["score"]["mean"]
    rose = last["gold"]["low"] > first["gold"]["high"]
    change = {"mean": last["gold"]["mean"] - best["gold"]["mean"], "low": None, "high": None,
              "n": last["gold"]["n"], "n_prompts": last["gold"]["n"]}
    done = (f"gold at step {last['step']} less gold at its peak, step {best['step']} (KL {best['kl']:.2f} nats per "
            f"response; at the end {last['kl']:.2f})")
    verdict = "suspicious" if fell else "fine" if rose else "not settled"
    return [Measure("gold in PPO", done, "gold", change, verdict, (0.0,), "not fall while the score rises")]


def of_training(rows: Sequence[dict[str, Any]]) -> tuple[Curve, list[Measure]]:
    """Scores that move together while the gap between chosen and rejected ones stays: inflation.

    Between two evaluations the mean score moved by more than three standard deviations of the gap at the later one,
    and the mean gap by less than half of one.

    Args:
        rows: of the metrics.jsonl of a reward model.
    Returns:
        Score of both sides and gap at each evaluation; and the measure, none with fewer than two evaluations.
    """
    names = ("score_chosen", "score_rejected", "margin", "margin_std")
    known = [row for row in rows if row.get("phase") == "eval" and all(_number(row.get(name)) for name in names)]
    curve = [{"step": row["step"], **{name: row[name] for name in names}}
             for row in sorted(known, key=lambda row: row["step"])]
    if len(curve) < 2:
        return curve, []
    moves = []
    for one, other in combinations(curve, 2):
        spread = max(other["margin_std"], 1e-12)
        level = sum(other[name] - one[name] for name in names[:2]) / 2
        if abs(other["margin"] - one["margin"]) < FLAT * spread:
            moves.append((abs(level) / spread, level / spread, one["step"], other["step"]))
    largest, signed, start, end = max(moves, default=(0.0, 0.0, curve[0]["step"], curve[-1]["step"]))
    done = (f"change of the mean score from step {start} to step {end}, the largest between evaluations with a flat gap"
            if moves else "the gap was flat between no two evaluations")
    value: Interval = {"mean": signed, "low": None, "high": None, "n": len(curve), "n_prompts": None}
    return curve, [Measure("drift of the mean score", done, "std of the gaps", value,
                           "suspicious" if largest > DRIFT else "fine", (-DRIFT, DRIFT), f"stay within {DRIFT:g} of 0")]


def _part(row: dict[str, Any], name: str) -> Interval:
    found = {key: row.get(f"{name}/{key}") for key in ("mean", "low", "high", "n")}
    return {**found, "n_prompts": found["n"]}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
