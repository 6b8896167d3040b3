"""What `keel experiment offline` measures and concludes: numbers of each run, claims, planned comparisons, tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from keel.bench.diversity import SIZES, distinct_ratio
from keel.experiments.offline_methods import ABLATIONS, METHODS, MIDDLE, NOISES, QUARTERED, Cell, partial_dpo
from keel.experiments.offline_work import is_ablated
from keel.experiments.offline_world import REWARDS
from keel.experiments.trial import Claim, markdown, with_interval
from keel.functional.resampling import holm, percentile_interval, sign_flip_p
from keel.rng import stream

__all__ = ["PLANNED", "SAYS", "Measured", "claims", "column", "cut_alike", "minus", "nested", "planned", "read_cell",
           "slopes", "steps_to", "table", "worst_drop"]

REFERENCE, QUARTER = "reference", "quarter_"
SAYS: Mapping[str, str] = {
    REFERENCE: "reference", **{name: method.says for name, method in {**METHODS, **ABLATIONS}.items()},
    QUARTER + REFERENCE: "reference, a quarter of the prompts",
    **{QUARTER + name: f"{METHODS[name].says}, a quarter of the prompts" for name in QUARTERED}}
Measured = Sequence[Mapping[str, Mapping[str, Mapping[str, Any]]]]
"""Of each seed, by noise (as text), then by method: its numbers."""
DROP_MARGIN = 0.05
"""Of a total, by which a drop or a spread may be larger and still count as not larger."""
DISTINCT_MARGIN = 0.01
N_DRAWS = 10_000
AT_ONCE = 500
EVEN = ("a_lol", "dpo", "r_gold")
"""Compared in how varied they are: of their answers to a prompt each is cut to the length of the shortest."""
PLANNED = (*(("a_lol", other) for other in ("nll", "nll_positive", "nll_top", "wbc", "r_gold", "r_lol",
                                            "a_lol_ref_free", "dpo", "dpo_flipped", "ipo", "kto")),
           ("a_lol_seq", "a_lol_ref_free"), ("a_lol_kl", "a_lol_ref_free"))
"""Comparisons at noise 0.5 that Holm's correction is over."""


# --- what a run gives ------------------------------------------------------------------------------------------------


def read_cell(cell: Cell) -> dict[str, dict[str, Any]]:
    """The numbers of everything that was run in a cell."""
    base = exam_of(cell.home / "sft")
    found = {REFERENCE: numbers(base, base)} | {
        name: numbers(exam_of(cell.home / name), base) for name in METHODS}
    for name in METHODS:
        if (told := curve(cell.home / name)) is not None:
            found[name] |= {"curve": told, "drop": worst_drop(told)}
    share = json.loads((cell.home / "a_lol/result.json").read_text())
    found["a_lol"] |= {"filter": share["data"]["filter"], "beats_mean": share["value"]["beats_mean"]}
    texts = {name: exam_of(cell.home / name)["sampled"]["texts"] for name in EVEN}
    for name, said in zip(texts, cut_alike(list(texts.values())), strict=True):
        found[name] |= {f"even_{n}": distinct_ratio(said, n) for n in SIZES}
    if cell.noise == MIDDLE:
        told = {0: validation(cell.home / "sft"), **{steps: validation(config.out) for steps, config in partial_dpo(
            cell, 1.0).items()}, cell.cfg.steps: validation(cell.home / "dpo")}
        found["dpo"] |= {"curve": told, "drop": worst_drop(told)}
    if is_ablated(cell):
        found |= {name: numbers(exam_of(cell.home / name), base) for name in ABLATIONS}
        part = Cell(cell.cfg, cell.seed, cell.noise, quarter=True)
        base = exam_of(part.home / "sft")
        found |= {QUARTER + name: numbers(exam_of(part.home / (name if name != REFERENCE else "sft")), base)
                  for name in (REFERENCE, *QUARTERED)}
    return found


def exam_of(run: Path) -> dict[str, Any]:
    """What was found out about a model."""
    found: dict[str, Any] = json.loads((run / "exam.json").read_text())
    return found


def validation(run: Path) -> float:
    """Mean total on the validation prompts."""
    return fmean(exam_of(run)["validation"]["total"])


def numbers(exam: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Means over the test prompts; `each` is the total of every one of them. S - Q is per response of the test data."""
    said = exam["sampled"]
    return {"each": said["total"], "total": fmean(said["total"]), "greedy": fmean(exam["greedy"]["total"]),
            **{name: fmean(said[name]) for name in (*REWARDS, "words")},
            **{f"greedy_{name}": fmean(exam["greedy"][name]) for name in (*REWARDS, "words")},
            **{f"distinct_{n}": distinct_ratio(said["texts"], n) for n in SIZES},
            "shift": fmean(exam["data"]) - fmean(base["data"])}


def curve(run: Path) -> dict[int, float] | None:
    """Mean total on the validation prompts by step, for runs that looked."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["score/mean"] for row in rows if row["phase"] == "eval" and "score/mean" in row}
    return found or None


def worst_drop(totals: Mapping[int, float]) -> float:
    """How far the total has been below the best one before it, at most."""
    values = [totals[step] for step in sorted(totals)]
    return max(best - value for best, value in zip(accumulate(values, max), values, strict=True))


def steps_to(totals: Mapping[int, float], level: float) -> int:
    """The first step examined that reaches a level; where none does, as if the next one would."""
    steps = sorted(totals)
    return next((step for step in steps if totals[step] >= level), 2 * steps[-1] - steps[-2])


def cut_alike(answers: Sequence[Sequence[str]]) -> list[list[str]]:
    """The answers of several models, each cut to as many words as the shortest answer to its prompt has."""
    words = [[text.split() for text in said] for said in answers]
    shortest = [min(map(len, several)) for several in zip(*words, strict=True)]
    return [[" ".join(text[:n]) for text, n in zip(said, shortest, strict=True)] for said in words]


# --- what follows ----------------------------------------------------------------------------------------------------


def column(measured: Measured, name: str, key: str = "total", noise: float = MIDDLE) -> list[Any]:
    """One number of a method, seed by seed."""
    return [seed[str(noise)][name][key] for seed in measured]


def minus(measured: Measured, one: str, other: str, key: str = "total", noise: float = MIDDLE) -> list[float]:
    """A method less another one, seed by seed."""
    return [a - b for a, b in zip(column(measured, one, key, noise), column(measured, other, key, noise), strict=True)]


def slopes(measured: Measured, name: str) -> list[float]:
    """Of the total over noise, by least squares."""
    middle = fmean(NOISES)
    return [sum((noise - middle) * seed[str(noise)][name]["total"] for noise in NOISES) / sum(
        (noise - middle) ** 2 for noise in NOISES) for seed in measured]


def claims(measured: Measured) -> list[Claim]:
    """What the paper says, each as numbers that are above zero where it is so; totals are of sampled responses at noise
    0.5 unless it says otherwise. Fixed before the seeds were run."""
    def more(values: Sequence[float], others: Sequence[float], margin: float = 0.0) -> list[float]:
        return [a - b + margin for a, b in zip(values, others, strict=True)]

    def spread(name: str) -> list[float]:
        totals = column(measured, name)
        return [abs(one - fmean(totals)) for one in totals]

    found = [Claim("A-LoL is resilient to noise: above NLL, wBC and R-GOLD at half noise, and falling less with it.", {
        **{f"total, A-LoL minus {SAYS[other]}": minus(measured, "a_lol", other) for other in ("nll", "wbc", "r_gold")},
        **{f"slope over noise, A-LoL minus {SAYS[other]}": more(slopes(measured, "a_lol"), slopes(measured, other))
           for other in ("nll", "wbc", "r_gold")}})]
    found.append(Claim("Noise is found by the value estimate: advantages below zero mark bad responses.", {
        f"precision of the filter minus share of bad responses, noise {noise}": [
            # A filter that leaves nothing out finds nothing.
            (told["precision"] or 0.0) - told["bad"] for told in column(measured, "a_lol", "filter", noise)]
        for noise in NOISES[1:]}))
    best = [max(totals.values()) for totals in column(measured, "nll", "curve")]
    nll, a_lol = ([steps_to(totals, level) for totals, level in zip(column(measured, name, "curve"), best, strict=True)]
                  for name in ("nll", "a_lol"))
    efficient = {"steps to NLL's best validation total, NLL minus A-LoL": more(nll, a_lol)}
    ablated = [seed for seed in measured if QUARTER + "a_lol" in seed[str(MIDDLE)]]
    if len(ablated) == len(measured):
        efficient["total, A-LoL with a quarter of the prompts minus NLL with all"] = minus(
            measured, QUARTER + "a_lol", "nll")
    found.append(Claim("A-LoL is sample-efficient: what NLL reaches, it reaches with fewer steps or examples.",
                       efficient))
    found.append(Claim("A-LoL is stable: drops and spread no larger than DPO's, no seed below the reference.", {
        f"worst drop after the peak on validation, DPO minus A-LoL + {DROP_MARGIN}": more(
            column(measured, "dpo", "drop"), column(measured, "a_lol", "drop"), DROP_MARGIN),
        f"distance from the mean over seeds, DPO minus A-LoL + {DROP_MARGIN}": more(
            spread("dpo"), spread("a_lol"), DROP_MARGIN),
        "total, A-LoL minus reference": minus(measured, "a_lol", REFERENCE)}))
    found.append(Claim("A-LoL raises every component over the reference.", {
        f"{name}, A-LoL minus reference": minus(measured, "a_lol", REFERENCE, name) for name in REWARDS}))
    found.append(Claim("A-LoL is no less varied than DPO and R-GOLD, over as many words.", {
        f"distinct-{n}, A-LoL minus {SAYS[other]} + {DISTINCT_MARGIN}": more(
            column(measured, "a_lol", f"even_{n}"), column(measured, other, f"even_{n}"), DISTINCT_MARGIN)
        for other in EVEN[1:] for n in SIZES[1:]}))
    found += [Claim(f"The ratio matters: {SAYS[name]} beats the reference-free form.", {
        f"total, {SAYS[name]} minus reference-free": minus(measured, name, "a_lol_ref_free")})
        for name in ("a_lol", "a_lol_seq")]
    found.append(Claim("Weighting adds to filtering: A-LoL beats NLL on the same responses.", {
        "total, A-LoL minus NLL on positive advantages": minus(measured, "a_lol", "nll_positive")}))
    return found


def nested(differences: Tensor, *names: str) -> Tensor:
    """Means of differences [seeds, prompts] resampled over seeds, then within each over prompts. [R]"""
    n_seeds, n_prompts = differences.shape
    generator, found = stream(0, "nested", *names), []
    for _ in range(N_DRAWS // AT_ONCE):
        seeds = torch.randint(n_seeds, (AT_ONCE, n_seeds), generator=generator)
        prompts = torch.randint(n_prompts, (AT_ONCE, n_seeds, n_prompts), generator=generator)
        found.append(differences[seeds[:, :, None], prompts].mean((1, 2)))
    return torch.cat(found)


def planned(measured: Measured) -> list[dict[str, Any]]:
    """The planned comparisons: differences of totals with intervals over seeds and prompts; p of turning the signs of
    the seeds' means, which with five seeds is never below 1/16, adjusted by Holm."""
    rows: list[dict[str, Any]] = []
    for one, other in PLANNED:
        each = [torch.tensor(column(measured, name, "each"), dtype=torch.float64) for name in (one, other)]
        draws = nested(each[0] - each[1], one, other)
        low, high = percentile_interval(draws)
        rows.append({"one": one, "other": other, "mean": float((each[0] - each[1]).mean()), "low": float(low),
                     "high": float(high), "seeds": minus(measured, one, other)})
        rows[-1]["p"] = sign_flip_p(torch.tensor(rows[-1]["seeds"], dtype=torch.float64), n_flips=N_DRAWS,
                                    generator=stream(0, "flips", one, other))
    adjusted = holm(torch.tensor([row["p"] for row in rows], dtype=torch.float64)).tolist()
    return [row | {"p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


# --- tables ----------------------------------------------------------------------------------------------------------


def table(measured: Measured, compared: Sequence[Mapping[str, Any]], chosen: Mapping[str, float]) -> str:
    """Everything measured, in markdown. Intervals are over seeds unless it says otherwise."""
    return "\n\n".join(parts(measured, compared, chosen)) + "\n"


def parts(measured: Measured, compared: Sequence[Mapping[str, Any]], chosen: Mapping[str, float]) -> Iterator[str]:
    """One table after the other, each under its title."""
    yield "### Total by noise, sampled responses (at most 4)\n\n" + markdown([
        {"": SAYS[name], **{f"noise {noise}": of(measured, name, "total", noise) for noise in NOISES}}
        for name in (REFERENCE, *METHODS)])
    yield "### Total by noise, greedy responses\n\n" + markdown([
        {"": SAYS[name], **{f"noise {noise}": of(measured, name, "greedy", noise) for noise in NOISES}}
        for name in (REFERENCE, *METHODS)])
    for noise in NOISES:
        yield f"### Noise {noise}, sampled responses\n\n" + markdown([detail(measured, name, noise) for name in (
            REFERENCE, *METHODS)])
    yield "### The filter (advantages below zero, of A-LoL)\n\n" + markdown([filter_row(measured, noise)
                                                                            for noise in NOISES])
    yield ("### Planned comparisons at noise 0.5: totals, intervals over seeds and prompts\n\np turns the signs of "
           f"the seeds' means: with {len(measured)} seeds it is {2 / 2 ** len(measured):.4f} at least, before Holm's "
           f"correction over {len(PLANNED)} comparisons.\n\n"
           + markdown([{"": f"{SAYS[row['one']]} minus {SAYS[row['other']]}",
                        "difference": f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
                        "p": f"{row['p']:.4f}", "p, Holm": f"{row['p_holm']:.4f}"} for row in compared]))
    ablated = [seed for seed in measured if next(iter(ABLATIONS)) in seed[str(MIDDLE)]]
    if ablated:
        names = [*ABLATIONS, *(QUARTER + name for name in (REFERENCE, *QUARTERED))]
        yield f"### Ablations at noise 0.5, {len(ablated)} seeds\n\n" + markdown([
            detail(ablated, name, MIDDLE) | {"total, minus A-LoL": with_interval(minus(ablated, name, "a_lol"), name)}
            for name in ("a_lol", *names)])
    yield "### Learning rates, chosen on other data\n\n" + markdown([
        {"": SAYS[name], "learning rate": f"{lr:g}"} for name, lr in chosen.items()])


def of(measured: Measured, name: str, key: str, noise: float) -> str:
    """A cell of a table."""
    return with_interval(column(measured, name, key, noise), name, key)


def detail(measured: Measured, name: str, noise: float) -> dict[str, str]:
    """Everything about one method at one noise level."""
    keys = ("total", "greedy", *REWARDS, "words", "distinct_1", "distinct_2", "distinct_3", "shift")
    heads = {"shift": "S - Q (nats)", "greedy": "total, greedy"}
    return {"": SAYS[name], **{heads.get(key, key.replace("_", "-")): of(measured, name, key, noise) for key in keys}}


def filter_row(measured: Measured, noise: float) -> dict[str, str]:
    """How well the filter does."""
    told = column(measured, "a_lol", "filter", noise)
    heads = {"bad": "bad responses", "dropped": "left out", "precision": "precision", "recall": "recall"}
    return {"noise": str(noise), **{head: "-" if any(one[key] is None for one in told) else with_interval(
        [one[key] for one in told], key) for key, head in heads.items()},
        "V better than one number": f"{sum(column(measured, 'a_lol', 'beats_mean', noise))} of {len(told)} seeds"}
