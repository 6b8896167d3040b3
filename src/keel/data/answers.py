"""Final answers: what a response says in the end, and whether that is the answer that its prompt asks for."""

import re
import threading
from collections import deque
from fractions import Fraction
from typing import Literal

from pydantic import Field

from keel.config import Config
from keel.data.records import Prompt
from keel.errors import ConfigError, DataError

__all__ = ["AnswerConfig", "Compare", "Extract", "final_answer", "is_right", "right_answer", "same_answer", "verdict"]

Extract = Literal["number", "boxed", "marked", "whole"]
Compare = Literal["exact", "number", "math"]

# No digit may stand in a word (H2O), and a sign behind a word or a bracket subtracts (16-3).
_NUMBER = (r"(?:(?<![\w)\]}])(?P<sign>[-+\u2212]))?(?:[$€£¥]\s?(?P<inner>[-+\u2212])?)?(?<!\w)"
           r"(?:(?P<mixed>[0-9]+)\s(?=[0-9]+/[0-9]))?"
           r"(?P<over>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
           r"(?P<power>[eE][-+]?[0-9]{1,3}(?!\w))?(?:\s?/\s?(?P<under>0*[1-9][0-9]*))?")
_ANY_NUMBER = re.compile(_NUMBER)
# A number by itself: with a name before it, a sign or a unit behind it, but nothing that makes it another quantity.
_ONE_NUMBER = re.compile(rf"(?:[^\W\d_]+\s*[=:]\s*)?{_NUMBER}\s?[%$°]?(?:[.,;:]?\s+[^\W\d_]\D*|[.,;:!?]*)")
_FRACTION = re.compile(r"(?P<whole>(?<=[0-9]))?(?P<sign>[-+\u2212])?\\[dt]?frac"
                       r"\s?\{\s?(?P<over>[-+\u2212]?)\s?([0-9]+)\s?\}\s?\{\s?(?P<under>[-+\u2212]?)\s?([0-9]+)\s?\}")
_EXPONENT = re.compile(r"\^\s?(?:\{(?:[^{}]|\{[^{}]*\})*\}|\([^()]*\)|[-+\u2212]?[0-9]+(?:[./][0-9]+)?)")
_RAISED = re.compile(r"\s?\^|[\u00b9\u00b2\u00b3\u2070-\u207f]")
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_MARKER = re.compile(r"####|\b[Aa]nswer\s*(?:is|:)|(?:^|(?<=\s))A:")
_TEX = (("\\$", "$"), ("\\%", "%"), ("{,}", ","), ("\\!", ""), ("\\,", ""),
        ("^{\\circ}", "°"), ("^\\circ", "°"))
_MINUS = ("-", "\u2212")
_MOST_DIGITS = 300
_LONGEST_FORMULA = 500
_PATIENCE_S = 5


class AnswerConfig(Config):
    """How the final answer of a response is found and held against the right one."""

    column: str = Field("answer", description="column of the prompts that holds the right answer")
    extract: Extract = Field("number", description="final answer: last number, last \\boxed{}, what follows #### or "
                             "'answer is', or the whole text")
    compare: Compare = Field("number", description="equal as text, as numbers, or as formulas (extra keel-rlhf[math])")


def final_answer(text: str, how: Extract = "number") -> str | None:
    """What a response says in the end; none where it says nothing of that kind.

    Args:
        text: any string.
        how: `number`: the last number, spelled in one way, so that equal numbers are equal texts (1,000.0 is 1000; the
            percent sign is left out). An exponent is no number (25 m^2 is 25), and where the last number is raised to a
            power (2^10) nothing says its value, so there is none; `boxed`: the content of the last `\\boxed{}` that is
            closed; `marked`: the first line behind the last "####", "answer is", "answer:" or "A:"; `whole`: all of it.
    """
    if how == "number":
        plain = _plain(text)
        last = deque(_ANY_NUMBER.finditer(plain), maxlen=1)
        return _spelled(last[0]) if last and not _RAISED.match(plain, last[0].end()) else None
    if how == "boxed":
        return _last_boxed(text)
    if how == "marked":
        marks = [*_MARKER.finditer(text)]
        line = text[marks[-1].end() :].lstrip(" \t\r\n:*").partition("\n")[0] if marks else ""
        return line.rstrip(" \t\r*") or None
    return text.strip() or None


def same_answer(given: str | None, wanted: str, compare: Compare = "number") -> bool:
    """Whether an answer is the wanted one.

    Args:
        given: as `final_answer` finds it; none is never right.
        wanted: the right answer.
        compare: `exact`: the same text, outer blanks aside; `number`: the same number, whatever its spelling and its
            unit, and as `exact` where the wanted answer is no single number; `math`: the same formula, set or number.

    Raises:
        ConfigError: `math`, and the library for it is not installed.
    """
    if given is None:
        return False
    if given.strip() == wanted.strip():
        return True
    if compare == "exact":
        return False
    number = _as_number(wanted)
    if number is not None and _as_number(given) == number:
        return True
    return compare == "math" and _same_formula(given, wanted)


def right_answer(prompt: Prompt, column: str = "answer") -> str:
    """The right answer that the prompt's record holds.

    Raises:
        DataError: it holds none.
    """
    found = prompt.label(column)
    if found is None:
        raise DataError(f"no right answer: the column {column!r} is absent or empty", where=f"id {prompt.id}",
                        remedy="Name the column that holds the answer, or leave such prompts out.")
    return found


def verdict(prompt: Prompt, text: str, ended: bool, how: AnswerConfig) -> float:
    """1 where the final answer is right, else 0. A response that was cut has no final answer.

    Raises:
        DataError: the prompt's record holds no right answer.
        ConfigError: see `same_answer`.
    """
    wanted = right_answer(prompt, how.column)
    return float(ended and same_answer(final_answer(text, how.extract), wanted, how.compare))


def is_right(prompt: Prompt, text: str, ended: bool) -> float:
    """The same with the usual settings: the last number, against the column `answer`."""
    return verdict(prompt, text, ended, AnswerConfig())


def _plain(text: str) -> str:
    """Without the TeX that people put around numbers."""
    for tex, sign in _TEX:
        text = text.replace(tex, sign)
    return _EXPONENT.sub("^", _FRACTION.sub(_in_line, text))


def _in_line(found: re.Match[str]) -> str:
    """A fraction as n/m, its sign in front, and behind a whole number as people write it: 2 1/2."""
    sign = found["sign"] or ""
    if (found["over"] in _MINUS) != (found["under"] in _MINUS):
        sign = "+" if sign in _MINUS else "-"
    return f"{' ' if found['whole'] is not None and not sign else ''}{sign}{found[4]}/{found[6]}"


def _as_number(text: str) -> str | None:
    found = _ONE_NUMBER.fullmatch(_plain(text).strip(" \t\r\n*`"))
    return _spelled(found) if found else None


def _spelled(found: re.Match[str]) -> str:
    """One spelling for all that have this value: a whole number, a decimal where it ends, else a fraction."""
    digits = (found["over"] + (found["power"] or "")).replace(",", "")
    sign = "-" if (found["sign"] or found["inner"] or "+") != "+" else ""
    if len(found[0]) > _MOST_DIGITS:  # nobody's answer, and arithmetic on it would be slow
        return sign + digits
    value = Fraction(digits) / int(found["under"] or 1) + int(found["mixed"] or 0)
    if sign:
        value = -value
    places, rest = 0, value.denominator
    for prime in (2, 5):
        times = 0
        while rest % prime == 0:
            rest, times = rest // prime, times + 1
        places = max(places, times)
    if rest != 1:
        return str(value)
    scaled = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    point = len(scaled) - places
    return ("-" if value < 0 else "") + scaled[:point] + ("." + scaled[point:] if places else "")


def _last_boxed(text: str) -> str | None:
    opened: list[int | None] = []
    last: tuple[int, int] | None = None
    for found in _BRACES.finditer(text):
        if found[0] == "}":
            start = opened.pop() if opened else None
            if start is not None and (last is None or start > last[0]):
                last = (start, found.start())
        elif found[0].endswith("{") and found[0] != "\\{":
            opened.append(found.end() if found[0].startswith("\\") else None)
    return text[slice(*last)].strip() or None if last else None


def _same_formula(given: str, wanted: str) -> bool:
    try:
        from math_verify import parse, verify
        from math_verify.errors import TimeoutException
    except ImportError as error:
        raise ConfigError("compare = 'math' needs the library math-verify, which is not installed",
                          remedy="Install keel-rlhf[math], or compare as numbers.") from error
    if max(len(given), len(wanted)) > _LONGEST_FORMULA:
        return False
    # Its clock is an alarm signal, which only the main thread can set.
    patience = _PATIENCE_S if threading.current_thread() is threading.main_thread() else None
    try:
        one, other = (parse(f"${text.replace('$', '')}$", parsing_timeout=patience) for text in (wanted, given))
        return bool(verify(one, other, timeout_seconds=patience))
    except TimeoutException:
        return False
