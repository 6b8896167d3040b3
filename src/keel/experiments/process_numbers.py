"""What `keel experiment process` concludes: exact answers by steps needed of every arm, claims, tables."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from keel.data.answers import is_right
from keel.data.records import Prompt
from keel.experiments.courses import Course
from keel.experiments.trial import Claim, markdown, with_interval
from keel.sandbox.gold import additions_needed
from keel.sandbox.ledger_steps import step_scores

__all__ = ["NEEDED", "Arms", "Measured", "claims", "marks", "measured", "table"]

NEEDED = (1, 2, 3, 4)
EASY, HARD = (1, 2), (3, 4)
FARMED = 0.1  # lines beyond what is needed, per answer

Cells = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True)
class Measured:
    """One policy of one seed on the final test prompts.

    Attributes:
        cells: means of `marks` by set of prompts (plain, dialect), then by the number of additions needed.
    """

    cells: Cells

    def mean(self, mark: str, name: str = "plain", needed: Sequence[int] = NEEDED) -> float:
        """Over questions that need so many additions, each number weighing the same."""
        return fmean(self.cells[name][n][mark] for n in needed)

    def exact(self, name: str = "plain", needed: Sequence[int] = NEEDED) -> float:
        """Share of exact answers."""
        return self.mean("exact", name, needed)

    def sound(self) -> float:
        """Share of the exact answers in plain wording of which every step that is needed is right; 0 without any."""
        exact = self.exact()
        return self.mean("sound") / exact if exact else 0.0


Arms = Mapping[str, Sequence[Measured]]
"""By arm, one per seed."""


def marks(prompt: Prompt, text: str, ended: bool) -> dict[str, float]:
    """What one answer is worth.

    `exact`: 1 for the right final answer, by the rule that the verifiable reward follows. `steps`: right steps as a
    share of those needed, the total included. `sound`: 1 for the right answer with all of them. `lines`: how many it
    has. `extra`: lines beyond those needed.
    """
    right, needed = step_scores(prompt, text, ended), len(additions_needed(prompt)) + 1
    exact = is_right(prompt, text, ended)
    return {"exact": exact, "steps": sum(right) / needed, "sound": exact * (sum(right) == needed),
            "lines": float(len(right)), "extra": float(max(0, len(right) - needed))}


def measured(home: Path, arm: str, asked: Mapping[str, Prompt]) -> Measured:
    """What a policy of the seed in `home` answered to the questions in `asked`, by their id."""
    found: dict[str, dict[int, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in map(json.loads, (home / f"said_{arm}/samples.jsonl").read_text().splitlines()):
        prompt = asked[row["id"]]
        found[prompt.meta["set"]][len(additions_needed(prompt))].append(
            marks(prompt, row["response"], row["ended"]) | {"gold": row["gold"], "length": float(row["n_tokens"])})
    return Measured({name: {n: {mark: fmean(row[mark] for row in rows) for mark in rows[0]}
                            for n, rows in sorted(cells.items())} for name, cells in found.items()})


def claims(arms: Arms) -> list[Claim]:
    """What is said of process supervision, each as numbers above zero where it is so. Fixed before the seeds."""

    def exact(one: str, other: str, name: str = "plain", needed: Sequence[int] = NEEDED) -> list[float]:
        return above(arms, lambda found: found.exact(name, needed), one, other)

    def extra(one: str, other: str) -> list[float]:
        return above(arms, lambda found: found.mean("extra"), one, other)

    gains = [hard - easy for hard, easy in zip(exact("both", "outcome", needed=HARD),
                                               exact("both", "outcome", needed=EASY), strict=True)]
    return [
        Claim("The final answer alone teaches: a verifiable reward raises exact answers.", {
            "exact, outcome minus SFT policy": exact("outcome", "sft")}),
        Claim("Step rewards beside the outcome beat the outcome alone.", {
            "exact, outcome and steps minus outcome": exact("both", "outcome")}),
        Claim("They do where many steps are needed.", {
            "exact of three and four additions, outcome and steps minus outcome": exact(
                "both", "outcome", needed=HARD)}),
        Claim("The gain grows with the steps needed.", {
            "gain of three and four additions minus gain of one and two": gains}),
        Claim("It transfers to other wordings.", {
            "exact in the dialect, outcome and steps minus outcome": exact("both", "outcome", name="dialect")}),
        Claim("Step rewards alone beat the outcome alone.", {
            "exact, steps minus outcome": exact("steps", "outcome")}),
        Claim("Right answers come with right steps.", {
            "sound share of exact answers, outcome and steps minus outcome": above(
                arms, Measured.sound, "both", "outcome")}),
        Claim("A learned process model beside the outcome beats the outcome alone.", {
            "exact, outcome and process model minus outcome": exact("prm", "outcome")}),
        Claim("A known answer is worth more than a learned outcome model.", {
            "exact, outcome minus outcome model": exact("outcome", "orm")}),
        Claim("Summed rewards for true steps are farmed.", {
            f"lines beyond those needed, summed minus SFT policy less {FARMED}": [
                x - FARMED for x in extra("sum", "sft")]}),
        Claim("Paying the lowest step is not farmed.", {
            f"{FARMED} less lines beyond those needed, lowest minus SFT policy": [
                FARMED - x for x in extra("min", "sft")]}),
        Claim("Farming costs exact answers.", {
            "exact, lowest minus summed": exact("min", "sum")}),
        Claim("Step rewards help without a critic too.", {
            "exact, GRPO with outcome and steps minus GRPO with outcome": exact("grpo_both", "grpo_outcome")})]


def above(arms: Arms, number: Callable[[Measured], float], one: str, other: str) -> list[float]:
    """A number of one arm minus that of another, seed by seed."""
    return [number(a) - number(b) for a, b in zip(arms[one], arms[other], strict=True)]


def table(arms: Arms, courses: Mapping[str, Sequence[Course]], names: Mapping[str, str]) -> str:
    """One row per arm: exact answers by steps needed; then what the answers look like. With 95% bootstrap intervals."""
    return "\n".join((by_steps(arms, names), beside(arms, courses, names)))


def by_steps(arms: Arms, names: Mapping[str, str]) -> str:
    """Exact answers."""
    return markdown([{"exact answers": names[arm], "all": with_interval([one.exact() for one in found])} | {
        additions(n): with_interval([one.exact(needed=(n,)) for one in found]) for n in NEEDED} | {
        "dialect": with_interval([one.exact("dialect") for one in found])} for arm, found in arms.items()])


def additions(n: int) -> str:
    """`1 addition`, `2 additions`."""
    return f"{n} addition" + ("s" if n > 1 else "")


def beside(arms: Arms, courses: Mapping[str, Sequence[Course]], names: Mapping[str, str]) -> str:
    """Right steps, sound answers, lines, length, gold and drift."""
    return markdown([{"": names[arm],
                      "right steps": with_interval([one.mean("steps") for one in found]),
                      "sound among exact": with_interval([one.sound() for one in found]),
                      "lines": with_interval([one.mean("lines") for one in found], digits=2),
                      "beyond those needed": with_interval([one.mean("extra") for one in found], digits=2),
                      "tokens": with_interval([one.mean("length") for one in found], digits=1),
                      "gold": with_interval([one.mean("gold") for one in found]),
                      "KL, end": with_interval([c.last("kl") for c in courses[arm]]) if arm in courses else ""}
                     for arm, found in arms.items()])
