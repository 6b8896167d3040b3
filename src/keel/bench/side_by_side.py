"""Several models that answered the same prompts, in numbers: rewards, differences, diversity, length, verdicts.

Every mean stands on the same draws of prompts, for all prompts together and for each subset.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from keel.bench.answers import Answer
from keel.bench.diversity import SIZES, copied, diversities
from keel.bench.intervals import difference_p, intervals
from keel.bench.response_judge import OUTCOMES, QUESTIONS, Outcome
from keel.data.records import Prompt
from keel.errors import ConfigError
from keel.functional.resampling import holm

__all__ = ["COPIED", "LENGTHS", "TOTAL", "Contestant", "sample_rows", "side_by_side", "subsets_of", "table"]

SUBSETS = ("subset", "domain")
TOTAL = "total"
LENGTHS = ("words", "tokens", "not_ended", "empty")
COPIED = ("coverage", "density")
POINTS = {"win": 1.0, "tie": 0.5, "lose": 0.0, "neither": 0.5}
SIGNS = {"win": 1.0, "lose": -1.0}
Row = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """A model and everything that is known of its answers.

    Attributes:
        name: for tables.
        answers: one a prompt, in the prompts' order.
        rewards: total first, then each part, by name; empty where nothing was scored.
        verdicts: of each prompt, its outcome against the baseline by question; none where nobody judged. Empty for the
            baseline, and where there is no judge.
    """

    name: str
    answers: tuple[Answer, ...]
    rewards: Mapping[str, Float[Tensor, " N"]]
    verdicts: tuple[Mapping[str, Outcome] | None, ...] = ()

    def columns(self, prompts: Sequence[Prompt]) -> dict[str, Float[Tensor, " N"]]:
        """One number per answer: rewards, lengths and, where a prompt has knowledge, what was copied of it, by name."""
        told = {"words": [len(one.text.split()) for one in self.answers],
                "tokens": [one.n_tokens for one in self.answers],
                "not_ended": [not one.ended for one in self.answers],
                "empty": [not one.text.strip() for one in self.answers]}
        if any(map(_knowledge, prompts)):
            pairs = [copied(known, one.text) if (known := _knowledge(prompt)) else (torch.nan, torch.nan)
                     for prompt, one in zip(prompts, self.answers, strict=True)]
            told |= dict(zip(COPIED, map(list, zip(*pairs, strict=True)), strict=True))
        return dict(self.rewards) | {name: torch.tensor(x, dtype=torch.float64) for name, x in told.items()}


def _knowledge(prompt: Prompt) -> str:
    """What the answer was to build on; empty where nobody said."""
    found = prompt.meta.get("knowledge")
    return found if isinstance(found, str) else ""


def side_by_side(contestants: Sequence[Contestant], prompts: Sequence[Prompt], subsets: Sequence[str | None], *,
                 baseline: str, seed: int, most_self_bleu: int, tested: Sequence[str] = (TOTAL,)) -> dict[str, Row]:
    """Name -> what is known of the model over all prompts, and under `subsets` the same for each of them.

    Args:
        contestants: the models, whose names differ.
        prompts: what they answered.
        subsets: of each prompt; none where it has none.
        baseline: the model that differences are taken to.
        seed: of all draws.
        most_self_bleu: see `diversities`.
        tested: rewards whose differences get a p value.
    """
    found = _block(contestants, prompts, range(len(prompts)), (baseline, seed, most_self_bleu), "all")
    base = next(one for one in contestants if one.name == baseline)
    others = [one for one in contestants if one.name != baseline]
    _corrected([(found[one.name]["difference"][key], one.rewards[key] - base.rewards[key], one.name)
                for one in others for key in tested if key in one.rewards], prompts, seed)
    _corrected([(found[one.name]["judge"][question], _signs(one, question), one.name)
                for one in others if one.verdicts for question in QUESTIONS], prompts, seed)
    for name in sorted({subset for subset in subsets if subset is not None}):
        places = [i for i, subset in enumerate(subsets) if subset == name]
        inside = _block(contestants, prompts, places, (baseline, seed, most_self_bleu), f"subset {name}")
        for one in contestants:
            found[one.name].setdefault("subsets", {})[name] = inside[one.name]
    return found


def _block(contestants: Sequence[Contestant], prompts: Sequence[Prompt], places: Sequence[int],
           how: tuple[str, int, int], name: str) -> dict[str, Row]:
    """Everything over the prompts at some places. All means of a block stand on one set of draws."""
    (baseline, seed, most), at = how, torch.tensor(list(places))
    own = {one.name: {key: x[at] for key, x in one.columns(prompts).items()} for one in contestants}
    gaps = {who: {key: x - own[baseline][key] for key, x in columns.items()} for who, columns in own.items()
            if who != baseline}
    outcomes = {(one.name, question): [None if (said := one.verdicts[i]) is None else said[question] for i in places]
                for one in contestants if one.verdicts for question in QUESTIONS}
    columns = ({("mean", who, key): x for who, told in own.items() for key, x in told.items()}
               | {("gap", who, key): x for who, told in gaps.items() for key, x in told.items()}
               | {(*names, kind): x for names, told in outcomes.items() for kind, x in _shares(told).items()})
    base = next(one for one in contestants if one.name == baseline).answers
    identical = {one.name: sum(one.verdicts[i] is not None and one.answers[i].text == base[i].text for i in places)
                 for one in contestants if one.verdicts}
    found = intervals(columns, [prompts[i] for i in places], seed=seed, names=[name])
    varied = diversities({one.name: [one.answers[i].text for i in places] for one in contestants}, seed=seed,
                         most_self_bleu=most)
    return {one.name: {
        "n": len(places), "rewards": {key: found["mean", one.name, key] for key in one.rewards},
        **{key: found["mean", one.name, key] for key in own[one.name] if key not in one.rewards},
        "diversity": varied[one.name],
        "difference": {key: found["gap", one.name, key] for key in gaps[one.name]} if one.name in gaps else None,
        "judge": {question: _verdict(outcomes[one.name, question], {kind: found[one.name, question, kind] for kind in
                  (*OUTCOMES, "win_rate")}) | {"n_identical": identical[one.name]}
                  for question in QUESTIONS} if one.verdicts else None,
    } for one in contestants}


def _corrected(rows: Sequence[tuple[Row, Float[Tensor, " N"], str]], prompts: Sequence[Prompt], seed: int) -> None:
    """Put p and, corrected over all of these tests, p_holm into each row.

    Args:
        rows: where they go, the differences that are tested, and the name of their random signs.
    """
    p = [difference_p(gaps, prompts, seed=seed, names=[name]) for _, gaps, name in rows]
    for (row, _, _), own, corrected in zip(rows, p, holm(torch.tensor(p, dtype=torch.float64)).tolist(), strict=True):
        row |= {"p": own, "p_holm": corrected}


def _signs(one: Contestant, question: str) -> Float[Tensor, " N"]:
    """1 where the judge prefers the model, -1 where it prefers the baseline; 0 where it decides nothing."""
    return torch.tensor([0.0 if said is None else SIGNS.get(said[question], 0.0) for said in one.verdicts],
                        dtype=torch.float64)


def _shares(outcomes: Sequence[Outcome | None]) -> dict[str, Float[Tensor, " N"]]:
    """100 where a verdict is of a kind, and the points of the win rate; NaN where there is none that could be read."""
    told = {kind: [100.0 * (one == kind) if one in OUTCOMES else torch.nan for one in outcomes] for kind in OUTCOMES}
    told["win_rate"] = [100 * POINTS.get(str(one), torch.nan) for one in outcomes]
    return {kind: torch.tensor(x, dtype=torch.float64) for kind, x in told.items()}


def _verdict(outcomes: Sequence[Outcome | None], told: Mapping[str, Row]) -> Row:
    """Verdicts that were asked for and could not be read count for no side, and are in no share."""
    n_win, n_lose = (sum(one == kind for one in outcomes) for kind in ("win", "lose"))
    return {**{kind: told[kind]["mean"] for kind in OUTCOMES}, "win_rate": told["win_rate"],
            "intervals": {kind: told[kind] for kind in OUTCOMES}, "n": told["win_rate"]["n"],
            "n_unread": sum(one == "unread" for one in outcomes), "n_decided": n_win + n_lose}


def subsets_of(prompts: Sequence[Prompt], column: str | None) -> list[str | None]:
    """Of each prompt the part of the test it belongs to; none where its file does not say.

    Args:
        prompts: with what their file says beside.
        column: where it says so; none: `subset`, or else `domain`.

    Raises:
        ConfigError: a column was named and no prompt has it.
    """
    named = (column,) if column is not None else SUBSETS
    known = next((name for name in named if any(prompt.meta.get(name) is not None for prompt in prompts)), None)
    if known is None and column is not None:
        raise ConfigError(f"no prompt says {column!r}, by which subsets were to be told apart", where="subset",
                          remedy="Name a column of the prompts' file, or leave subset out.")
    found = [prompt.meta.get(known) if known is not None else None for prompt in prompts]
    return [None if value is None else str(value) for value in found]


def sample_rows(contestants: Sequence[Contestant], prompts: Sequence[Prompt], subsets: Sequence[str | None],
                ) -> list[Row]:
    """Rows of samples.jsonl: what is asked, and what each model says, with its rewards and verdicts."""
    rows = []
    for i, (prompt, subset) in enumerate(zip(prompts, subsets, strict=True)):
        shown = [{"role": m.role, "content": m.content} for m in prompt.messages] or prompt.text
        said = {one.name: {"response": one.answers[i].text, "ended": one.answers[i].ended,
                           "n_tokens": one.answers[i].n_tokens,
                           "rewards": {key: float(x[i]) for key, x in one.rewards.items()},
                           "verdicts": dict(one.verdicts[i] or {}) if one.verdicts else {}} for one in contestants}
        rows.append({"step": 0, "id": prompt.id, "prompt": shown, "domain": subset, "models": said})
    return rows


def table(found: Mapping[str, Row]) -> str:
    """For the console: a line a model."""
    width = max(map(len, found))
    lines = []
    for name, row in found.items():
        total, gap, varied = row["rewards"].get(TOTAL), (row["difference"] or {}).get(TOTAL), row["diversity"]
        cells = [f"{name:<{width}}"]
        cells += [f"total {_shown(total)}"] if total else []
        cells += [f"difference {_shown(gap, '+')}, p after Holm {gap['p_holm']:.2g}"] if gap else []
        cells += [f"words {row['words']['mean']:.1f}",
                  "distinct-1/2/3 " + "/".join(f"{varied[f'distinct_ratio_{k}']:.3f}" for k in SIZES)]
        cells += [f"{question}: " + ", ".join(f"{kind} {told[kind]:.0f}%" for kind in OUTCOMES)
                  for question, told in (row["judge"] or {}).items() if told["n"]]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _shown(row: Mapping[str, Any], sign: str = "") -> str:
    mean, *ends = (format(row[name], f"{sign}.3f") for name in ("mean", "low", "high") if row[name] is not None)
    return f"{mean} [{', '.join(ends)}]" if ends else mean
