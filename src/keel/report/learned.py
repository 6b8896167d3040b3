"""What an offline run learned from: rewards, advantages and what they left out, how far the value can be trusted."""

from dataclasses import dataclass

from keel.report.folder import Row, RunFolder, column, part, rows
from keel.report.words import DASH, brief, finite, interval, number, share, times

__all__ = ["Learned", "Sheet", "learned"]

RECIPE = "offline_pg"
PERCENTILES = ("p5", "p25", "p50", "p75", "p95")
CLEAR_CORRELATION = 0.3
"""From here on a rank correlation of advantage and length is worth a sentence."""


@dataclass(frozen=True)
class Sheet:
    """A table: a row begins with its name."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Learned:
    """Of one run. `says`: sentences; the sheets are empty where nothing is known."""

    name: str
    says: tuple[str, ...]
    rewards: Sheet
    advantages: Sheet


def learned(runs: list[RunFolder]) -> list[Learned]:
    """The offline runs among these, as far as they tell what they learned from."""
    return [Learned(run.name if len(runs) > 1 else "", tuple(_says(run.result)), _rewards(data), _advantages(data))
            for run in runs if run.recipe == RECIPE and (data := part(run.result, "data"))]


def _says(result: Row) -> list[str]:
    data = part(result, "data")
    said = [_kept(result, part(data, "advantage")), _filter(part(data, "filter")), _length(part(data, "advantage")),
            _value(part(result, "value"))]
    return [text for text in said if text]


def _kept(result: Row, advantage: Row) -> str:
    kept, whole = finite(result.get("n_kept")), finite(result.get("n_responses"))
    if kept is None or not whole:
        return ""
    below = finite(advantage.get("negative"))
    more = "" if below is None else f" {share(below)} of the advantages are negative."
    return f"It learned from {kept:,.0f} of {times(round(whole), 'response')} ({share(kept / whole)}).{more}"


def _filter(quality: Row) -> str:
    bad, precision, recall = (finite(quality.get(name)) for name in ("bad", "precision", "recall"))
    if bad is None:
        return ""
    said = f"{share(bad)} of the responses are known to be bad."
    said += "" if precision is None else f" Of what was left out, {share(precision)} is bad."
    return said + ("" if recall is None else f" Of what is bad, {share(recall)} was left out.")


def _length(advantage: Row) -> str:
    rho = finite(advantage.get("length_spearman"))
    if rho is None or abs(rho) < CLEAR_CORRELATION:
        return ""
    return (f"Advantages {'rise' if rho > 0 else 'fall'} with the length of the response (rank correlation "
            f"{number(rho, 2)}): what is learned is in part a length.")


def _value(value: Row) -> str:
    """How far the estimate is better than one number for all prompts."""
    if value.get("kind") != "learned":
        mean = finite(value.get("mean"))
        return "" if mean is None else f"The value is {brief(mean)} for every prompt: the mean reward of the reference."
    epochs, chosen, flat = rows(value, "epochs"), value.get("chosen"), finite(value.get("mean_mse"))
    best = next((epoch for epoch in epochs if epoch.get("number") == chosen), {})
    error, rho = finite(best.get("held_out_mse")), finite(best.get("spearman"))
    if error is None or flat is None:
        return ""
    said = (f"On {number(value.get('n_held_out'))} held-out prompts the value's squared error is {brief(error)}; that "
            f"of one number for all prompts is {brief(flat)}")
    noise, gain = finite(value.get("noise_mse")), column(value, "gain")
    said += "" if noise is None else f", and {brief(noise)} no value of the prompt could avoid"
    said += "." if len(gain) != 3 else f"; gain {interval(dict(zip(('mean', 'low', 'high'), gain, strict=True)))}."
    return said + ("" if rho is None else f" Rank correlation with the rewards: {number(rho, 2)}.")


def _rewards(data: Row) -> Sheet:
    named = {name: row for name, row in part(data, "rewards").items() if isinstance(row, dict)}
    total = part(data, "total")
    if total and len(named) > 1:
        named["total"] = total
    return Sheet("Rewards of the data", ("reward", "mean", "responses"), tuple(
        (name, interval(row), number(row.get("n"))) for name, row in named.items()))


def _advantages(data: Row) -> Sheet:
    found = part(data, "advantage")
    if not found:
        return Sheet("Advantages", (), ())
    cells = tuple(number(found.get(name), 3) if finite(found.get(name)) is not None else DASH for name in PERCENTILES)
    return Sheet("Advantages", ("share below", "5%", "25%", "median", "75%", "95%", "mean"),
                 (("advantage", *cells, number(found.get("mean"), 3)),))
