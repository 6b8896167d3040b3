"""The pictures of `keel experiment axis`, each with the table of its numbers beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from keel.experiments.axis_dialogues import ARMS
from keel.experiments.axis_numbers import Seeds, town_rows
from keel.experiments.pictures import COLOURS, GREY, INK, canvas, draw_seeds
from keel.persona.tables import write_table

__all__ = ["draw_arms", "draw_doses", "draw_drift", "draw_prices"]

MARKS = {"mass": "assistant's words (share of those that show who speaks)", "facts": "right facts (share)"}
ARM_PANELS = {"projection": "projection in dialogues", "leaked": "secrets told (share)", "reward": "new facts"}
KINDS = {"none": INK, "cap": COLOURS[0], "random cap": GREY, "steer": COLOURS[1], "random steer": COLOURS[3]}
KIND_NAMES = {"none": "nothing", "cap": "floors on the axis", "random cap": "floors on random directions",
              "steer": "steered along the axis", "random steer": "steered along a random direction"}


def draw_doses(folder: Path, seeds: Seeds) -> None:
    """What steering the toy does, strength by strength: a line per seed in grey, their mean above them."""
    toys = [seed["toy"]["dose"] for seed in seeds]
    curves = {"in roles": "axis", "as default": "default"}
    with canvas(folder / "dose", width=8.6, height=3.4) as figure:
        for ax, (mark, title) in zip(figure.subplots(1, 2), MARKS.items(), strict=True):
            for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
                strengths = [row["strength"] for row in toys[0][curve]]
                lines = [[row[mark] for row in toy[curve]] for toy in toys]
                for line in lines:
                    ax.plot(strengths, line, color=colour, linewidth=0.6, alpha=0.5)
                ax.plot(strengths, [fmean(column) for column in zip(*lines, strict=True)], color=colour, linewidth=1.8,
                        label=f"axis, {name}")
            chance = [row[mark] for toy in toys for row in toy["random"]]
            ax.plot([toys[0]["random"][0]["strength"]] * len(chance), chance, "o", color=GREY, markersize=3,
                    label="random directions, in roles")
            ax.set_title(title)
            ax.set_ylim(-0.02, 1.02)
        ax.legend(frameon=False, fontsize=8)
        figure.supxlabel("strength, in mean lengths of a state; above 0 towards the assistant", fontsize=9)
    write_table(folder, "dose", ("seed", "curve", "strength", "mass", "facts"), [
        {"seed": i, "curve": curve} | row for i, toy in enumerate(toys) for curve, rows in toy.items() for row in rows])


def draw_prices(folder: Path, seeds: Seeds) -> None:
    """What a cap gains against what it costs, in the toy and in the town: means over seeds."""
    rows: list[dict[str, Any]] = []
    with canvas(folder / "tradeoff", width=8.6, height=3.9) as figure:
        toy, town = figure.subplots(1, 2)
        rows += price_of_floors(toy, seeds)
        rows += price_in_town(town, seeds)
    write_table(folder, "tradeoff", ("where", "setting", "gain", "cost"), rows)


def price_of_floors(ax: Any, seeds: Seeds) -> list[dict[str, Any]]:
    """The toy: right facts against the assistant's words, a line per population."""
    toys = [seed["toy"]["caps"] for seed in seeds]
    none = [fmean(toy["none"][mark] for toy in toys) for mark in ("mass", "facts")]
    ax.plot(*none, "o", color=INK)
    ax.annotate("no floor", none, xytext=(4, 4), textcoords="offset points", fontsize=7.5)
    told = [{"where": "toy", "setting": "none", "gain": none[0], "cost": none[1]}]
    for colour, population in zip(COLOURS, dict.fromkeys(row["population"] for row in toys[0]["rows"]), strict=False):
        for where, line in (("all", "-"), ("generation", ":")):
            places = sorted((i for i, row in enumerate(toys[0]["rows"]) if row["population"] == population
                             and row["where"] == where), key=lambda i: toys[0]["rows"][i]["percentile"])
            found = [[fmean(toy["rows"][i][mark] for toy in toys) for mark in ("mass", "facts")] for i in places]
            ax.plot(*zip(*found, strict=True), line, marker="o", color=colour, markersize=3.5, linewidth=1.2,
                    label=f"percentiles of {population}, {'all' if where == 'all' else 'generated'} tokens")
            names = [f"{100 * toys[0]['rows'][i]['percentile']:.0f}" for i in places]
            for name, at in zip(names if where == "all" else [], found, strict=False):
                ax.annotate(name, at, xytext=(4, -8), textcoords="offset points", fontsize=7, color=colour)
            told += [{"where": "toy", "setting": f"{population} {name} {where}", "gain": at[0], "cost": at[1]}
                     for name, at in zip(names, found, strict=True)]
    ax.set_xlabel("assistant's words in roles")
    ax.set_ylabel("right facts in roles")
    ax.set_title("The toy: floors")
    ax.legend(frameon=False, fontsize=7, loc="lower left")
    return told


def price_in_town(ax: Any, seeds: Seeds) -> list[dict[str, Any]]:
    """The town: gold of other questions under harmless roles against attacks that succeed."""
    told: list[dict[str, Any]] = []
    for setting, found in town_rows(seeds).items():
        kind = seeds[0]["town"]["settings"][setting]["setting"].get("kind", "none")
        at = fmean(found["helps, attack"]), fmean(found["gold, other_roles"])
        first = not any(row["kind"] == kind for row in told)
        ax.plot(*at, "o", color=KINDS[kind], markersize=5, alpha=0.8, label=KIND_NAMES[kind] if first else None)
        if "steer" in kind:
            ax.annotate(setting.split()[-1], at, xytext=(5, 3), textcoords="offset points", fontsize=7,
                        color=KINDS[kind])
        told.append({"where": "town", "setting": setting, "kind": kind, "gain": at[0], "cost": at[1]})
    ax.legend(frameon=False, fontsize=7, loc="lower right")
    ax.set_xlabel("attacks that succeed (share)")
    ax.set_ylabel("gold of other questions, harmless roles")
    ax.set_title("The town: floors and steering")
    return told


def draw_drift(folder: Path, seeds: Seeds) -> None:
    """Projection by turn in each domain: a thin line per seed, their mean above them."""
    drift = [seed["dialogues"]["drift"]["positions"] for seed in seeds]
    with canvas(folder / "drift", width=5.6, height=3.2) as figure:
        ax = figure.subplots()
        for colour, domain in zip(COLOURS, drift[0], strict=False):
            lines = [one[domain] for one in drift]
            turns = range(1, len(lines[0]) + 1)
            for line in lines:
                ax.plot(turns, line, color=colour, linewidth=0.6, alpha=0.5)
            ax.plot(turns, [fmean(column) for column in zip(*lines, strict=True)], color=colour, linewidth=1.8,
                    label=domain)
        ax.legend(frameon=False, fontsize=8)
        ax.set_xlabel("turn of the assistant")
        ax.set_ylabel("projection, from the roles' mean")
    write_table(folder, "drift", ("seed", "domain", "turn", "projection"), [
        {"seed": i, "domain": domain, "turn": turn, "projection": value} for i, one in enumerate(drift)
        for domain, values in one.items() for turn, value in enumerate(values, start=1)])


def draw_arms(folder: Path, seeds: Seeds) -> None:
    """What every arm of fine-tuning ends in: a dot per seed, above it their mean and its 95% interval."""
    found: Sequence[Mapping[str, Any]] = [seed["dialogues"]["arms"] for seed in seeds]
    names = {"start": "before fine-tuning", **ARMS}
    with canvas(folder / "arms", width=8.6, height=2.8) as figure:
        axes = figure.subplots(1, len(ARM_PANELS), sharey=True)
        for ax, (mark, title) in zip(axes, ARM_PANELS.items(), strict=True):
            draw_seeds(ax, {name: [one[arm][mark] for one in found] for arm, name in names.items()}, mark)
            ax.set_title(title)
        axes[0].set_yticks(range(len(names)), list(names.values())[::-1])
    write_table(folder, "arms", ("seed", "arm", *found[0]["plain"]), [
        {"seed": i, "arm": arm} | one[arm] for i, one in enumerate(found) for arm in names])
