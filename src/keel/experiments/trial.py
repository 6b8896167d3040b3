"""What every experiment shares: its folder, claims whose rule stands before the seeds are run, verdicts, the report."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from keel import runs
from keel.experiments.stages import begun, is_done
from keel.functional.statistics import bootstrap_interval, sign_test
from keel.rng import stream

__all__ = ["ALPHA", "Claim", "Finding", "conclude", "interval", "judged", "markdown", "opened", "seeds_of",
           "with_interval"]

ALPHA = 0.05
RULE = (
    "A claim is a list of comparisons, each one number per seed that is above zero where the claim is right. A seed "
    "shows the claim if all of its numbers are above zero. The claim holds if so many seeds show it that a fair coin "
    f"would give as many with p <= {ALPHA} (exact one-sided sign test). It does not hold if one of its comparisons is "
    "below zero in so many seeds, by the same test with p multiplied by the number of comparisons. Otherwise it is not "
    "settled. With n seeds no p is below 1/2^n: five settle a claim only if all agree, fewer than five never.")

Verdict = Literal["holds", "does not hold", "not settled"]


@dataclass(frozen=True)
class Claim:
    """Something a paper says, as numbers that are above zero where it is so.

    Attributes:
        says: the claim in one sentence.
        comparisons: what is compared, with its margin, in words -> one number per seed.
    """

    says: str
    comparisons: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Finding:
    """A claim with its verdict: how many seeds show it, p of the test that decides (for it where most seeds show it,
    else against it), and each comparison over the seeds."""

    says: str
    verdict: Verdict
    shown_by: int
    n_seeds: int
    p: float
    comparisons: tuple[dict[str, Any], ...]

    def in_words(self) -> str:
        """The verdict and what it rests on."""
        seeds = f"{self.shown_by} of {self.n_seeds} seeds show it (p = {self.p:.3f})."
        lines = [f"- **{self.verdict}**: {self.says} {seeds}"]
        lines += [f"    - {row['what']}: {shown(row)}; above zero in {row['n_above']}" for row in self.comparisons]
        return "\n".join(lines)


def opened(recipe: str, cfg: Any, *, resume: bool) -> runs.Run:
    """The experiment's folder, new or gone on with: the same command, or `--resume`, continues where it was.

    Raises:
        RunError: the folder holds a finished experiment, or one with other settings.
    """
    resume = resume or (begun(cfg.out) and not is_done(cfg))
    return runs.start(recipe, cfg, cfg.out, seed=cfg.first_seed, resume=resume)


def seeds_of(cfg: Any) -> list[int]:
    """The seeds of a trial."""
    return list(range(cfg.first_seed, cfg.first_seed + cfg.seeds))


def judged(claim: Claim) -> Finding:
    """The verdict by the rule above."""
    seeds = list(zip(*claim.comparisons.values(), strict=True))
    n_shown, n = sum(min(numbers) > 0 for numbers in seeds), len(seeds)
    n_below = max(sum(x < 0 for x in values) for values in claim.comparisons.values())
    against = min(by_chance(n_below, n) * len(claim.comparisons), 1.0)
    p = by_chance(n_shown, n) if 2 * n_shown > n else against
    verdict: Verdict = "not settled" if p > ALPHA else "holds" if 2 * n_shown > n else "does not hold"
    rows = [{"what": what, "n_above": sum(x > 0 for x in values), **interval(values, what), "values": list(values)}
            for what, values in claim.comparisons.items()]
    return Finding(claim.says, verdict, n_shown, n, p, tuple(rows))


def by_chance(n_heads: int, n: int) -> float:
    """How easily a fair coin gives this many heads of n or more; 1 where they are no majority."""
    return sign_test(n_heads, n - n_heads) / 2 if 2 * n_heads > n else 1.0


def interval(values: Sequence[float], *names: str) -> dict[str, float]:
    """Mean over seeds with its 95% bootstrap interval, which is on the narrow side for so few values."""
    numbers = torch.tensor(list(values), dtype=torch.float64)
    mean, low, high = bootstrap_interval(numbers, generator=stream(0, "seeds", *names))
    return {"mean": mean, "low": low, "high": high}


def shown(found: Mapping[str, float], digits: int = 3) -> str:
    """`mean [low, high]`."""
    return f"{found['mean']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def with_interval(values: Sequence[float], *names: str, digits: int = 3) -> str:
    """A cell of the table."""
    return shown(interval(values, *names), digits)


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table; the first row's keys are its heads."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([row[head] for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def conclude(log: runs.Run, title: str, table: str, findings: Sequence[Finding], figures: Iterable[str],
             numbers: Mapping[str, Any]) -> runs.RunResult:
    """Write table.md, report.md and result.json; say the verdicts.

    Args:
        log: the experiment's open folder.
        title: of the report.
        table: in markdown.
        findings: one per claim.
        figures: files in the folder that the report shows.
        numbers: everything measured, by seed, for result.json.
    """
    made = json.loads((log.folder / "environment.json").read_text())
    verdicts = "\n".join(finding.in_words() for finding in findings)
    pictures = "\n\n".join(f"![{title}]({name})" for name in figures)
    (log.folder / "table.md").write_text(table)
    (log.folder / "report.md").write_text(
        f"# {title}\n\n## Verdict\n\n{verdicts}\n\n{RULE}\n\n## Table\n\n{table}\n{pictures}\n\n## Command\n\n"
        f"    {made['command']}\n\nkeel {made['keel']}, torch {made['torch']}, Python {made['python']}, {made['cpu']}, "
        f"{made['cores']} cores.\n\n## Settings\n\n```toml\n{log.config.to_toml()}```\n")
    print(f"\n{table}\n{verdicts}\n\n{RULE}\n")
    return log.finish({
        "title": title, "settings": log.config.model_dump(mode="json"), "environment": made, "rule": RULE,
        "findings": [vars(finding) for finding in findings], "stage_seconds": stage_seconds(log.folder), **numbers})


def stage_seconds(folder: Path) -> float:
    """What all stages that say it took together, each in one thread."""
    files = {file.parent: json.loads(file.read_text()) for file in sorted(folder.glob("*/**/result.json"))}
    # A stage may hold runs of its own, whose time is in its own already.
    found = [result for home, result in files.items() if not any(above in files for above in home.parents)]
    return round(sum(result.get("seconds", 0.0) for result in found), 1)
