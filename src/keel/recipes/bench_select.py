"""Best of n with any scorer: of each prompt's responses the one that scores highest, and what picking is worth.

With the true value of each response in the file, the result says what the pick of n is worth, over all ways to choose
n of them, beside what a random and a perfect pick would be.

Left out: sampling the responses; `keel generate` does that.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from keel import runs
from keel.bench.asking import Asking, about, scores_of
from keel.bench.items import Asked, response_key
from keel.bench.measures import interval, prompt_groups
from keel.bench.preferences import Candidates, read_candidates
from keel.bench.scorers import ScorerConfig, load_scorer
from keel.config import Config
from keel.functional.best_of_n import best_of_n, best_of_n_kl
from keel.runs import Stopped, explained_disk_errors

__all__ = ["BenchSelectConfig", "run"]

PICKS = "picks.jsonl"


class BenchSelectConfig(Config):
    """Everything `keel bench-rm select` reads."""

    out: Path = Field(description="run folder to make; holds scores.jsonl, picks.jsonl (with texts) and result.json")
    candidates: Path = Field(description="rows of prompt and responses, with values where their true worth is known")
    scorer: ScorerConfig = Field(description="what picks: the highest score")
    seed: int = Field(0, ge=0, description="fixes every interval")
    workers: int = Field(1, ge=1, description="processes that score; each loads the scorer")
    most_failed: float = Field(0.01, ge=0, le=1, description="share of scores that may fail; never picked")
    reuse: tuple[Path, ...] = Field((), description="run folders whose scores of the same scorer are taken over")


def run(cfg: BenchSelectConfig, *, resume: bool = False) -> runs.RunResult:
    """Write picks.jsonl and, in result.json, what the pick of 1, 2, ... is worth."""
    with runs.start("bench_rm select", cfg, cfg.out, seed=cfg.seed, data=[cfg.candidates], resume=resume) as log:
        found = read_candidates(cfg.candidates)
        asked = {key: Asked(key, one.prompt, text) for one in found for text in one.responses
                 for key in [response_key(one.prompt, text)]}
        progress = log.bar(len(asked), 0)

        def on_done(done: int, total: int) -> None:
            progress.reach(done)
            if log.stop_requested():
                raise Stopped(f"stopped after {done} of {total} scores; they are kept", where=str(cfg.out),
                              remedy=f"Continue with: keel bench-rm select --resume {cfg.out}")

        how = Asking(cfg.out, cfg.reuse, cfg.workers, cfg.most_failed, cfg.seed, on_done)
        scorer, told = scores_of(how, partial(load_scorer, cfg.scorer), [asked[key] for key in sorted(asked)])
        scores = [[told[response_key(one.prompt, text)] for text in one.responses] for one in found]
        write_picks(cfg.out, found, scores)
        curve = worth(found, scores, cfg.seed)
        print("\n".join(_line(row) for row in curve))
        return log.finish({"scorer": about(scorer, told), "n_prompts": len(found),
                           "n_without_pick": sum(not any(map(math.isfinite, own)) for own in scores), "curve": curve},
                          timed=False)


def write_picks(folder: Path, found: Sequence[Candidates], scores: Sequence[Sequence[float]]) -> None:
    """One row per prompt: the places that score highest (several at a tie), their text, the score, the mean value."""
    beside = folder / f".{PICKS}.new"
    with explained_disk_errors(folder), beside.open("w", encoding="utf-8") as file:
        for one, own in zip(found, scores, strict=True):
            best = max(filter(math.isfinite, own), default=math.nan)  # what failed is never the highest
            places = [i for i, score in enumerate(own) if score == best]
            row: dict[str, Any] = {"id": one.id, "picked": places, "score": best if places else None,
                                   "response": one.responses[places[0]] if places else None}
            if one.values and places:
                row["value"] = sum(one.values[i] for i in places) / len(places)
            file.write(json.dumps(row, ensure_ascii=True) + "\n")
    with explained_disk_errors(folder):
        beside.replace(folder / PICKS)


def worth(found: Sequence[Candidates], scores: Sequence[Sequence[float]], seed: int) -> list[dict[str, Any]]:
    """For each n: mean score of the pick and, where values are known, mean value of the pick by score and of the best
    possible one. Ties share; the intervals are over prompts.

    Only responses with a score are picked from, and prompts that have some; n goes up to the fewest that one has.

    Args:
        found: the candidates.
        scores: of each; not finite where it failed.
        seed: of the intervals.
    """
    kept = [(one, [i for i, score in enumerate(own) if math.isfinite(score)], own)
            for one, own in zip(found, scores, strict=True) if any(map(math.isfinite, own))]
    groups = prompt_groups([one.prompt for one, _, _ in kept])
    own_scores = [[own[i] for i in places] for _, places, own in kept]
    pairs = {"score": list(zip(own_scores, own_scores, strict=True))}
    if all(one.values for one in found):
        values = [[one.values[i] for i in places] for one, places, _ in kept]
        pairs |= {"value": list(zip(own_scores, values, strict=True)),
                  "best_value": list(zip(values, values, strict=True))}
    rows = []
    for n in range(1, min(map(len, own_scores), default=0) + 1):
        means = {name: torch.stack([best_of_n(*(torch.tensor(x, dtype=torch.float64) for x in pair), n=n)
                                    for pair in told]) for name, told in pairs.items()}
        rows.append({"n": n, "kl": best_of_n_kl(n),
                     **{name: interval(x, groups, seed, name, str(n)) for name, x in means.items()}})
    return rows


def _line(row: Mapping[str, Any]) -> str:
    told = [f"{name.replace('_', ' ')} {row[name]['mean']:.4f} [{row[name]['low']:.4f}, {row[name]['high']:.4f}]"
            for name in ("score", "value", "best_value") if name in row]
    return f"best of {row['n']}: {', '.join(told)}"
