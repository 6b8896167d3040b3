"""What `keel experiment groups` concludes: gold by domain of every arm, claims, tables."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

from keel.experiments.courses import Course
from keel.experiments.trial import Claim, markdown, with_interval

__all__ = ["Arms", "Measured", "claims", "measured", "table"]

NO_MATCH = 0.05  # normalised information below which groups and domains have nothing to do with each other
LITTLE = 0.02  # gold points


@dataclass(frozen=True)
class Measured:
    """One policy of one seed on the final test prompts.

    Attributes:
        gold: mean by the name of the set, then by domain.
        length: tokens of a response to the plain set.
        agreement: rand and information of found groups with the domains of held-out prompts, and `at_first`, the
            information in the first phase, when the head has hardly learned; none without found groups.
        groups: name, mass, score, kl and labels of each group on those prompts, lowest first; empty without groups.
        shaping: mean size of what was added to an advantage, over the phases that did; none where nothing was.
    """

    gold: Mapping[str, Mapping[str, float]]
    length: float
    agreement: Mapping[str, float] | None
    groups: Sequence[Mapping[str, Any]]
    shaping: float | None

    def mean(self, name: str = "plain") -> float:
        """Gold over the domains of a set, each weighing the same."""
        return fmean(self.gold[name].values())

    def worst(self, name: str = "plain") -> float:
        """Gold of the lowest domain of a set."""
        return min(self.gold[name].values())

    def variance(self) -> float:
        """Of the domains' gold."""
        return pvariance(self.gold["plain"].values())


Arms = Mapping[str, Sequence[Measured]]
"""By arm, one per seed."""


def measured(home: Path, arm: str, asked: Path) -> Measured:
    """What a policy of the seed in `home` answered to the questions in `asked`, and what its groups were."""
    metas = {row["id"]: row["meta"] for row in map(json.loads, asked.read_text().splitlines())}
    cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    lengths = []
    for row in map(json.loads, (home / f"said_{arm}/samples.jsonl").read_text().splitlines()):
        meta = metas[row["id"]]
        cells[meta["set"]][meta["domain"]].append(row["gold"])
        lengths += [row["n_tokens"]] if meta["set"] == "plain" else []
    gold = {name: {domain: fmean(x) for domain, x in domains.items()} for name, domains in cells.items()}
    file = home / arm / "groups.json"
    told = json.loads(file.read_text()) if file.exists() else {"source": None, "groups": []}
    groups = [{name: group[name] for name in ("name", "mass", "score", "kl", "labels")} for group in told["groups"]]
    log = home / arm / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    shaped = [row["groups/shaping"] for row in rows if row.get("groups/coef") and "groups/shaping" in row]
    agreement = None
    if told["source"] == "inferred":
        # Prompts that happen to be of one domain have no agreement with anything; groups say nothing of it.
        agreement = (told["agreement"] or {"rand": 0.0, "information": 0.0}) | {"at_first": at_first(rows)}
    return Measured(gold, fmean(lengths), agreement, groups, fmean(shaped) if any(shaped) else None)


def at_first(rows: Sequence[Mapping[str, Any]]) -> float:
    """What the groups of a run's first phase say of the domain: a head that has hardly learned says something already,
    for the critic's states know the domain."""
    return next((row["groups/information"] for row in rows if "groups/information" in row), 0.0)


def claims(arms: Arms) -> list[Claim]:
    """What the paper says, each as numbers that are above zero where it is so. Fixed before the seeds were run."""
    worse = partial(above, arms, Measured.worst)
    return [
        Claim("Groups of prompts tell the domains apart.", {
            f"normalised information about the domain, less {NO_MATCH}": informed(arms["inferred_prompt"])}),
        Claim("Groups of responses tell the domains apart.", {
            f"normalised information about the domain, less {NO_MATCH}": informed(arms["inferred"])}),
        # This one and that of the low side were added while the first of forty-five runs was under way: see the page.
        Claim("Training adds to it: groups of prompts say more of the domain at the end than in the first phase.", {
            "normalised information about the domain, end minus first phase": [
                agreement_of(one)["information"] - agreement_of(one)["at_first"] for one in arms["inferred_prompt"]]}),
        Claim("The worst domain gains with groups of responses.", {
            "gold of the worst domain, groups of responses minus PPO-max": worse("inferred", "ppo_max")}),
        Claim("The worst domain gains with groups of responses, low side only.", {
            "gold of the worst domain, low side only minus PPO-max": worse("low_only", "ppo_max")}),
        Claim("The worst domain gains with groups of prompts.", {
            "gold of the worst domain, groups of prompts minus PPO-max": worse("inferred_prompt", "ppo_max")}),
        Claim("The worst domain gains with known domains.", {
            "gold of the worst domain, known domains minus PPO-max": worse("known", "ppo_max")}),
        Claim("The worst domain gains with group DRO.", {
            "gold of the worst domain, group DRO minus PPO-max": worse("group_dro", "ppo_max")}),
        Claim("It costs little on average.", {
            f"mean gold, groups of responses minus PPO-max plus {LITTLE}": [
                x + LITTLE for x in above(arms, Measured.mean, "inferred", "ppo_max")]}),
        Claim("The domains come closer to each other.", {
            "variance of gold over domains, PPO-max minus groups of responses": above(
                arms, Measured.variance, "ppo_max", "inferred")}),
        Claim("It transfers to other wordings.", {
            "mean gold in the dialect, groups of responses minus PPO-max": above(
                arms, lambda one: one.mean("dialect"), "inferred", "ppo_max")}),
        Claim("It transfers to a domain that was not trained on.", {
            "gold of the held-out domain, groups of responses minus PPO-max": above(
                arms, lambda one: one.mean("held_out"), "inferred", "ppo_max")}),
        Claim("The variance penalty carries its part.", {
            "gold of the worst domain, groups of responses minus adaptive price of drift alone": worse(
                "inferred", "no_variance")}),
        Claim("The adaptive price of drift carries its part.", {
            "gold of the worst domain, groups of responses minus variance penalty alone": worse(
                "inferred", "no_adaptive_kl")})]


def above(arms: Arms, number: Any, one: str, other: str) -> list[float]:
    """A number of one arm minus that of another, seed by seed."""
    return [number(a) - number(b) for a, b in zip(arms[one], arms[other], strict=True)]


def informed(found: Sequence[Measured]) -> list[float]:
    """Normalised information of an arm's groups about the domains, above what counts as none."""
    return [agreement_of(one)["information"] - NO_MATCH for one in found]


def agreement_of(one: Measured) -> Mapping[str, float]:
    """Of an arm that finds its groups."""
    assert one.agreement is not None, "asked of arms that find their groups"
    return one.agreement


def table(arms: Arms, courses: Mapping[str, Sequence[Course]], names: Mapping[str, str]) -> str:
    """One row per arm: gold over domains; by domain; drift, length and agreement. With 95% bootstrap intervals."""
    return "\n".join((overall(arms, names), by_domain(arms, names), beside(arms, courses, names)))


def overall(arms: Arms, names: Mapping[str, str]) -> str:
    """Gold over the domains."""
    return markdown([{"gold": names[arm],
                      "mean": with_interval([one.mean() for one in found]),
                      "worst domain": with_interval([one.worst() for one in found]),
                      "variance over domains": with_interval([one.variance() for one in found]),
                      "dialect, mean": with_interval([one.mean("dialect") for one in found]),
                      "dialect, worst": with_interval([one.worst("dialect") for one in found]),
                      "held-out domain": with_interval([one.mean("held_out") for one in found])}
                     for arm, found in arms.items()])


def by_domain(arms: Arms, names: Mapping[str, str]) -> str:
    """Gold of each domain in plain wording."""
    return markdown([{"gold": names[arm]} | {
        domain: with_interval([one.gold[name][domain] for one in found])
        for name in ("plain", "held_out") for domain in found[0].gold[name]} for arm, found in arms.items()])


def beside(arms: Arms, courses: Mapping[str, Sequence[Course]], names: Mapping[str, str]) -> str:
    """Drift, length, and how the found groups agree with the domains; empty where there is nothing to say."""
    return markdown([{"": names[arm],
                      "KL, end": with_interval([c.last("kl") for c in courses[arm]]) if arm in courses else "",
                      "length": with_interval([one.length for one in found], digits=1),
                      "information about the domain": agreed(found, "information"),
                      "in the first phase": agreed(found, "at_first"),
                      "adjusted Rand index": agreed(found, "rand"),
                      "added to an advantage": shaped_by(found)} for arm, found in arms.items()])


def agreed(found: Sequence[Measured], name: str) -> str:
    """A cell, empty where no groups are found."""
    return "" if found[0].agreement is None else with_interval([agreement_of(one)[name] for one in found])


def shaped_by(found: Sequence[Measured]) -> str:
    """A cell, empty where nothing was added to advantages."""
    sizes = [one.shaping for one in found if one.shaping is not None]
    return with_interval(sizes) if sizes else ""
