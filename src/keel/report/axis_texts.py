"""Texts coloured token by token by their projections, with the numbers beside them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from keel.report.axis_pictures import Table
from keel.report.axis_space import tone
from keel.report.folder import Row, RunFolder, part, rows
from keel.report.words import brief, finite, number

__all__ = ["Said", "Text", "Token", "known_range", "listed", "named", "talks", "texts", "token_table", "visible"]

MOST_TEXTS, MOST_TOKENS = 6, 1200
WITHIN, MIDDLE = 0.95, 0.5
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""Control characters and direction overrides."""
Turn = tuple[str, list[tuple[str, float]], int]
"""Number and role, tokens with their projections, and how many tokens there are."""
Talk = tuple[str, list[Turn]]


@dataclass(frozen=True)
class Token:
    """`tone`: 0 far from the Assistant to 10 at its end; `below`: under the default range."""

    text: str
    tone: int
    projection: str
    below: bool


@dataclass(frozen=True)
class Said:
    """One turn of a text, token by token."""

    role: str
    mean: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Text:
    """One conversation under one condition. `more`: tokens that are not shown."""

    title: str
    turns: tuple[Said, ...]
    more: int


def talks(run: RunFolder) -> list[Talk]:
    """The turns of each conversation under each condition; conditions of one conversation follow each other."""
    found: dict[str, dict[str, list[Turn]]] = {}
    for row in run.axis.get("heat", []):
        tokens = [(named(one.get("text")), x) for one in rows(row, "tokens")
                  if (x := finite(one.get("projection"))) is not None]
        if tokens:
            talk = found.setdefault(named(row.get("id")), {}).setdefault(named(row.get("label")), [])
            name = listed(f"turn {number(row.get('turn'))}", named(row.get("role")))
            talk.append((name, tokens, len(tokens)))
    return [(listed(name, label), _cut(talk)) for name, by_label in found.items()
            for label, talk in by_label.items()][:MOST_TEXTS]


def _cut(talk: Sequence[Turn]) -> list[Turn]:
    """The first tokens of a conversation; what is left of a turn may be none."""
    left, kept = MOST_TOKENS, []
    for title, tokens, n in talk:
        kept.append((title, tokens[:left], n))
        left = max(0, left - n)
    return kept


def texts(talks: Sequence[Talk], told: Row) -> tuple[tuple[Text, ...], tuple[str, str, str]]:
    """The texts in colours, and the numbers at both ends and in the middle of the colours."""
    values = [x for _, talk in talks for _, tokens, _ in talk for _, x in tokens]
    if not values:
        return (), ("", "", "")
    span = known_range(told)
    middle = (0.0 if told.get("centred") is True else MIDDLE * sum(span) if span else sum(values) / len(values))
    sizes = sorted(abs(x - middle) for x in values)
    reach = sizes[round(WITHIN * (len(sizes) - 1))] or 1.0
    found = []
    for title, talk in talks:
        said = tuple(Said(name, brief(sum(x for _, x in tokens) / len(tokens)), tuple(
            Token(visible(text), tone(x, reach, middle), number(x), span is not None and x < span[0])
            for text, x in tokens)) for name, tokens, _ in talk if tokens)
        found.append(Text(title, said, sum(n - len(tokens) for _, tokens, n in talk)))
    return tuple(found), (brief(middle - reach), brief(middle), brief(middle + reach))


def visible(text: str) -> str:
    """Control characters and direction overrides made visible; a line break is seen as well as made."""
    return HIDDEN.sub(lambda found: f"\u27e8U+{ord(found[0]):04X}\u27e9", text).replace("\n", "\u21b5\n")


def token_table(talks: Sequence[Talk]) -> Table:
    return Table("tokens", ("text", "turn", "position", "token", "projection"),
                 [(title, name, float(k), text, x) for title, talk in talks for name, tokens, _ in talk
                  for k, (text, x) in enumerate(tokens)])


def known_range(told: Row) -> tuple[float, float] | None:
    """Both ends of the default range, as far as it is known."""
    low, high = (finite(part(told, "default_range").get(key)) for key in ("low", "high"))
    return None if low is None or high is None or low > high else (low, high)


def named(value: object) -> str:
    return "" if value is None else str(value)


def listed(*texts: str) -> str:
    return ", ".join(text for text in texts if text)
