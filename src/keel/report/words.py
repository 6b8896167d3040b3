"""Numbers as a reader wants them: as many digits as the interval supports, durations in words, lists with 'and'."""

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["DASH", "MINUS", "brief", "clean", "duration", "finite", "interval", "joined", "number", "percent",
           "share", "shares", "times"]


DASH, MINUS = "\u2013", "\u2212"  # for what is not known; and a minus as wide as a plus


def finite(value: Any) -> float | None:
    """The value as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def number(value: Any, decimals: int | None = None) -> str:
    """Four significant digits, or the decimals asked for; a dash where there is no finite number."""
    if (x := finite(value)) is None:
        return DASH
    if decimals is not None:
        return f"{x:.{decimals}f}".replace("-", MINUS)
    if x and not 1e-3 <= abs(x) < 1e6:
        mantissa, _, exponent = f"{x:.2e}".partition("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    if x.is_integer() or abs(x) >= 1e4:
        return f"{round(x):,}".replace("-", MINUS)
    return f"{x:.4g}".replace("-", MINUS)


def brief(value: Any) -> str:
    """Three significant digits, for prose."""
    x = finite(value)
    return number(x if x is None or abs(x) >= 1e3 else float(f"{x:.3g}"))


def interval(value: dict[str, Any] | None) -> str:
    """`0.523 [0.471, 0.575]`, with two digits of the interval's width; only the mean where there is no interval."""
    if not value:
        return DASH
    low, high = finite(value.get("low")), finite(value.get("high"))
    if low is None or high is None:
        return number(value.get("mean"))
    width = high - low
    decimals = min(6, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else None
    return f"{number(value.get('mean'), decimals)} [{number(low, decimals)}, {number(high, decimals)}]"


def share(value: float) -> str:
    """A share of one in per cent; small shares keep a digit."""
    return f"{100 * value:.1f}%" if value < 0.1 else f"{100 * value:.0f}%"


def shares(values: Sequence[float]) -> list[str]:
    """Shares of one whole, all with the digits that the smallest of them needs."""
    digits = int(any(0 < value < 0.1 for value in values))
    return [f"{100 * value:.{digits}f}%" for value in values]


def percent(value: dict[str, Any]) -> str:
    """A share of one with its interval: `57.2% [52.9, 61.7]`; a dash where there is no mean."""
    shares = {key: 100 * x for key in ("mean", "low", "high") if (x := finite(value.get(key))) is not None}
    if "mean" not in shares:
        return DASH
    if len(shares) < 3:
        return f"{brief(shares['mean'])}%"
    mean, *rest = interval(shares).split(" ", 1)
    return " ".join([f"{mean}%", *rest])


def duration(seconds: Any) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`; a dash where unknown."""
    if (x := finite(seconds)) is None or x < 0:
        return DASH
    if x < 60:
        return f"{x:.1f} s" if x < 10 else f"{x:.0f} s"
    whole = round(x)
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if whole < 3600 else f"{minutes // 60} h {minutes % 60} min"


def times(count: int, one: str, many: str | None = None) -> str:
    """`1 record`, `2,400 records`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def joined(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def clean(text: str) -> str:
    """Text that any HTML parser reads as it stands: no lone surrogates, no control characters but line breaks."""
    return "".join(
        c if c in "\n\t" or ("\x20" <= c and not "\x7f" <= c <= "\x9f" and not "\ud800" <= c <= "\udfff") else "\ufffd"
        for c in text
    )
