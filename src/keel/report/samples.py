"""Responses before and after, joined by prompt, for the sample browser. All text is data here, never markup."""

from typing import Any

from keel.report.folder import Row, RunFolder, part
from keel.report.words import finite

__all__ = ["browser"]

MAX_PROMPTS = 500
MAX_CHARACTERS = 6000  # of one response; the whole text stays in samples.jsonl


def browser(runs: list[RunFolder]) -> dict[str, Any] | None:
    """Columns (a run at its first or last step) and prompts, each with its response in every column that has one."""
    columns: list[Row] = []
    prompts: dict[tuple[str, str], Row] = {}
    for run in runs:
        for label, rows in _columns(run):
            if rows:
                steps = [row["step"] for row in rows.values()]
                columns.append({"run": run.name, "label": label, "step": max(steps)})
                for key, row in rows.items():
                    turns = _turns(row.get("prompt"))
                    entry = prompts.setdefault((key, repr(turns)), _prompt(key, row, turns))
                    entry["at"][len(columns) - 1] = _response(row)
    if not prompts:
        return None
    kept = _chosen(list(prompts.values()), columns)
    return {"columns": columns, "prompts": kept, "n": len(prompts)}


def _columns(run: RunFolder) -> list[tuple[str, dict[str, Row]]]:
    """Each column's label and, by record id, its rows."""
    if run.recipe == "win_rate":  # the policy stands on the right: what it gains is what it wins
        return [(side, {key: _of_side(both[1], side) for key, both in run.samples.items()
                        if isinstance(both[1].get(side), dict)}) for side in ("opponent", "policy")]
    if run.recipe == "probe":  # each example holds a response as it was and as it became
        return [(label, {key: both[end] for key, both in run.samples.items()})
                for end, label in ((0, "as it was"), (1, "changed"))]
    if run.recipe == "evaluate":  # a column a model; `total` is what it is ranked by
        names = dict.fromkeys(name for both in run.samples.values() for name in part(both[1], "models"))
        return [(name, {key: _of_model(both[1], name) for key, both in run.samples.items()
                        if part(part(both[1], "models"), name)}) for name in names]
    if run.recipe == "generate":  # nothing was trained: there is no before and after
        return [("response", {key: both[1] for key, both in run.samples.items()})]
    return [(label, {key: both[end] for key, both in run.samples.items() if _belongs(both, end)})
            for end, label in ((0, "before"), (1, "after"))]


def _of_side(row: Row, side: str) -> Row:
    """What one side of a comparison said, with the verdicts beside the policy's answer."""
    verdicts = row.get("verdicts")
    named = verdicts if side == "policy" and isinstance(verdicts, dict) else {}
    said = ", ".join(f"{verdict} by {str(name).replace('_', ' ')}" for name, verdict in named.items())
    return {**row, **row[side], "verdict": said}


def _of_model(row: Row, name: str) -> Row:
    """What one of several models said, with its total and its verdicts."""
    own = part(part(row, "models"), name)
    said = ", ".join(f"{question}: {verdict}" for question, verdict in part(own, "verdicts").items())
    return {**row, **own, "score": part(own, "rewards").get("total"), "verdict": said}


def _belongs(both: list[Row], end: int) -> bool:
    """A record seen once stands on one side only: before at step 0, after at any other."""
    first, last = both
    return first["step"] != last["step"] or (end == 0) == (first["step"] == 0)


def _turns(prompt: Any) -> list[list[str]]:
    """A prompt as [role, text] pairs, whatever shape it came in."""
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    pairs = [(t.get("role"), t.get("content")) if isinstance(t, dict) else ("", t) for t in turns]
    return [[str(role or ""), _cut("" if text is None else str(text))] for role, text in pairs]


def _prompt(key: str, row: Row, turns: list[list[str]]) -> Row:
    domain = row.get("domain")
    return {"id": key, "domain": None if domain is None else str(domain), "turns": turns, "at": {}}


def _response(row: Row) -> Row:
    numbers = {key: finite(row.get(key)) for key in ("score", "gold", "kl", "n_tokens")}
    known = {key: value for key, value in numbers.items() if value is not None}
    text = "" if row.get("response") is None else str(row["response"])
    verdict = {"verdict": str(row["verdict"])} if row.get("verdict") else {}
    return {"text": _cut(text), "ended": row.get("ended") is not False, **known, **verdict}


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return text[:MAX_CHARACTERS] + f" … [{len(text) - MAX_CHARACTERS:,} more characters in samples.jsonl]"


def _chosen(prompts: list[Row], columns: list[Row]) -> list[Row]:
    """All prompts, or of too many: the biggest gains and losses, and an even pick of the rest, in their order."""
    if len(prompts) <= MAX_PROMPTS:
        return prompts
    order = sorted(range(len(prompts)), key=lambda i: _gain(prompts[i], len(columns)))
    extremes = set(order[: MAX_PROMPTS // 5] + order[-MAX_PROMPTS // 5 :])
    rest = [i for i in range(len(prompts)) if i not in extremes]
    n = MAX_PROMPTS - len(extremes)
    even = {rest[i * len(rest) // n] for i in range(n)}
    return [prompt for i, prompt in enumerate(prompts) if i in extremes | even]


def _gain(prompt: Row, n_columns: int) -> float:
    """Gold gained between the first two columns, or score where gold is unknown; 0 where one side is missing."""
    before, after = prompt["at"].get(0, {}), prompt["at"].get(min(1, n_columns - 1), {})
    key = "gold" if "gold" in before and "gold" in after else "score"
    return after[key] - before[key] if key in before and key in after else 0.0
