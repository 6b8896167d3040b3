"""What can be wrong with a row, gathered so that one run names every bad line instead of the first."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from keel.errors import DataError

__all__ = ["SHOWN", "Problem", "ReadReport", "RowError", "Tally"]

SHOWN = 20
"""How many problems an error message spells out before it only counts."""
_HEAD, _TAIL = 300, 80


class RowError(DataError):
    """One row is wrong. The reader that knows file and line turns it into a `Problem`.

    Args:
        kind: two or three words that are the same for all rows with this fault; the key of the counts.
        what: what was wrong, with the offending value.
        remedy: what to do about it.
    """

    def __init__(self, kind: str, what: str, remedy: str) -> None:
        self.kind = kind
        super().__init__(what, remedy=remedy)


@dataclass(frozen=True)
class Problem:
    """One fault of a file.

    Attributes:
        kind: what sort of fault, for counting.
        where: `file:line`, with the record's id where there is one.
        what: what was wrong there.
        remedy: what to do about it.
    """

    kind: str
    where: str
    what: str
    remedy: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "what", _shortened(self.what))
        object.__setattr__(self, "remedy", _shortened(self.remedy))

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n    {self.remedy}"


@dataclass(frozen=True)
class ReadReport:
    """What became of the rows of a file.

    Attributes:
        n_rows: rows seen, bad ones included.
        n_records: records made from them.
        dropped: rows left out, by kind of fault.
        problems: the first faults, in file order; `dropped` counts them all.
        formats: rows by the layout that was recognised.
        left_out: parts of records that were read without them, such as blank steps.
    """

    n_rows: int = 0
    n_records: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    formats: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def n_dropped(self) -> int:
        return sum(self.dropped.values())

    def summary(self) -> str:
        """One line for a log: `812 of 815 rows read; 3 dropped: 2 empty response, 1 duplicate id`."""
        parts = "".join(f"; {what} left out: {count}" for what, count in sorted(self.left_out.items()))
        if not self.n_dropped:
            return f"{self.n_rows} rows read, none dropped{parts}"
        read = self.n_rows - self.n_dropped
        return f"{read} of {self.n_rows} rows read; {self.n_dropped} dropped: {self._kinds()}{parts}"

    def _kinds(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.dropped.items()))

    def error(self, where: str) -> DataError:
        """All problems as one error; lists the first ones and counts the rest."""
        if self.n_dropped == 1:
            only = self.problems[0]
            return DataError(only.what, where=only.where, remedy=f"{only.remedy} {_SKIP}")
        listed = "\n".join(f"  {_indented(problem)}" for problem in self.problems)
        rest = self.n_dropped - len(self.problems)
        more = f"\n  and {rest} more; in all: {self._kinds()}" if rest else ""
        return DataError(f"{self.n_dropped} problems in {self.n_rows} rows\n{listed}{more}", where=where,
                         remedy=f"Mend these rows. {_SKIP}")


class Tally:
    """Counts while a file streams by; `report` says where it stands."""

    def __init__(self, limit: int = SHOWN) -> None:
        self.limit = limit
        self.n_rows = 0
        self.n_records = 0
        self.formats: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._problems: list[Problem] = []

    def add(self, problem: Problem) -> None:
        self._dropped[problem.kind] += 1
        if len(self._problems) < self.limit:
            self._problems.append(problem)

    @property
    def report(self) -> ReadReport:
        return ReadReport(self.n_rows, self.n_records, dict(self._dropped), tuple(self._problems), dict(self.formats),
                          dict(self.left_out))


_SKIP = "on_bad_record = skip (`--on-bad-record skip`, `--data.on_bad_record skip`, ...) drops and counts such rows."


def _shortened(text: str) -> str:
    """A value of ten megabytes is not repeated; what stands before and behind it is."""
    return text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]} ... {text[-_TAIL:]}"


def _indented(problem: Problem) -> str:
    return str(problem).replace("\n", "\n  ")
