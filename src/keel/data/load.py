"""Files to records: read, recognised, checked. The one door through which training data enter."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from keel.data.dialogues import Dialogue, dialogue_of
from keel.data.kinds import (
    Kind,
    Turns,
    Which,
    demonstrations_of,
    graded_of,
    labelled_of,
    pair_of,
    prompt_of,
    ranking_of,
    responses_of,
)
from keel.data.problems import Problem, ReadReport, RowError, Tally
from keel.data.readers import scan_rows
from keel.data.records import Demonstration, Graded, Labelled, PreferencePair, Prompt, Ranking, Record
from keel.data.rows import Row
from keel.data.traces import StepTrace, trace_of
from keel.errors import DataError

__all__ = [
    "Kind", "OnBadRecord", "Paths", "Turns", "Which", "as_paths", "iter_demonstrations", "iter_labelled", "iter_pairs",
    "iter_prompts", "iter_rankings", "iter_traces", "read_demonstrations", "read_dialogues", "read_graded",
    "read_labelled", "read_pairs", "read_prompts", "read_rankings", "read_responses", "read_traces",
]

OnBadRecord = Literal["stop", "skip"]
Paths = str | Path | Sequence[str | Path]
_LONGEST_ID = 80
_R = TypeVar("_R", Prompt, Demonstration, PreferencePair, Ranking, Graded, Labelled, StepTrace,
              Dialogue)


def read_prompts(
    paths: Paths, *, on_bad_record: OnBadRecord = "stop", as_text: bool = False,
) -> tuple[list[Prompt], ReadReport]:
    """Prompts; of pairs and demonstrations the responses are left behind.

    Args:
        paths: a file, a folder of files, or several of them.
        on_bad_record: `stop`: one error that lists all bad rows; `skip`: leave them out and count them.
        as_text: a prompt that is a bare string is text to continue, not a user's turn.

    Raises:
        DataError: bad rows, or no row left.
    """
    return _gather(iter_prompts(paths, tally := Tally(), as_text=as_text), paths, tally, on_bad_record)


def read_demonstrations(
    paths: Paths, *, on_bad_record: OnBadRecord = "stop", as_text: bool = False, turns: Turns = "last",
    unique_ids: bool = True,
) -> tuple[list[Demonstration], ReadReport]:
    """Demonstrations; of pairs the chosen response.

    Args:
        paths: a file, a folder of files, or several of them.
        on_bad_record: `stop`: one error that lists all bad rows; `skip`: leave them out and count them.
        as_text: a prompt that is a bare string is text to continue, not a user's turn.
        turns: `last`: imitate the last assistant turn; `all`: one demonstration for every assistant turn.
        unique_ids: False where several responses to one prompt may share its id, as samples of a policy do.

    Raises:
        DataError: bad rows, or no row left.
    """
    found = iter_demonstrations(paths, tally := Tally(), as_text=as_text, turns=turns, unique_ids=unique_ids)
    return _gather(found, paths, tally, on_bad_record)


def read_pairs(
    paths: Paths, *, on_bad_record: OnBadRecord = "stop", as_text: bool = False,
) -> tuple[list[PreferencePair], ReadReport]:
    """Preference pairs.

    Args:
        paths: a file, a folder of files, or several of them.
        on_bad_record: `stop`: one error that lists all bad rows; `skip`: leave them out and count them.
        as_text: a prompt that is a bare string is text to continue, not a user's turn.

    Raises:
        DataError: bad rows, or no row left.
    """
    return _gather(iter_pairs(paths, tally := Tally(), as_text=as_text), paths, tally, on_bad_record)


def read_rankings(
    paths: Paths, *, on_bad_record: OnBadRecord = "stop", as_text: bool = False,
) -> tuple[list[Ranking], ReadReport]:
    """Rankings; pairs are rankings of two, without what else their file says of them.

    Args:
        paths: a file, a folder of files, or several of them.
        on_bad_record: `stop`: one error that lists all bad rows; `skip`: leave them out and count them.
        as_text: a prompt that is a bare string is text to continue, not a user's turn.

    Raises:
        DataError: bad rows, or no row left.
    """
    return _gather(iter_rankings(paths, tally := Tally(), as_text=as_text), paths, tally, on_bad_record)


def read_graded(
    paths: Paths, attributes: Sequence[str], *, on_bad_record: OnBadRecord = "stop", as_text: bool = False,
) -> tuple[list[Graded], ReadReport]:
    """Responses with their grades on the named attributes, as far as these are there.

    Args:
        paths: a file, a folder of files, or several of them.
        attributes: columns that hold grades; in files that keel wrote, keys of meta.
        on_bad_record: `stop`: one error that lists all bad rows; `skip`: leave them out and count them.
        as_text: a prompt that is a bare string is text to continue, not a user's turn.

    Raises:
        DataError: bad rows, or no row left.
    """
    found = _records(paths, tally := Tally(), lambda row: graded_of(row, as_text=as_text, attributes=attributes))
    return _gather(found, paths, tally, on_bad_record)


def read_labelled(
    paths: Paths, *, on_bad_record: OnBadRecord = "stop", as_text: bool = False,
) -> tuple[list[Labelled], ReadReport]:
    """Single responses, each called good or bad by the column `label`.

    Args:
        paths: a file, a folder of files, or several of them.
        on_bad_record: `stop`: one error that lists all bad rows; `skip`: leave them out and count them.
        as_text: a prompt that is a bare string is text to continue, not a user's turn.

    Raises:
        DataError: bad rows, or no row left.
    """
    return _gather(iter_labelled(paths, tally := Tally(), as_text=as_text), paths, tally, on_bad_record)


def read_responses(
    paths: Paths, *, which: Which = "all", on_bad_record: OnBadRecord = "stop", as_text: bool = False,
) -> tuple[list[Graded], ReadReport]:
    """Single responses with the rewards that the files hold for them; of pairs and rankings every one, or the best.

    The id of a response is that of its record, followed by /chosen or /rejected, or by its place from 1 on, where the
    record has several.

    Args:
        paths: a file, a folder of files, or several of them.
        which: `chosen`: the best response of each record; `all`: every one, the best first.
        on_bad_record: `stop`: one error that lists all bad rows; `skip`: leave them out and count them.
        as_text: a prompt that is a bare string is text to continue, not a user's turn.

    Raises:
        DataError: bad rows, or no row left.
    """
    found = _records(paths, tally := Tally(), lambda row: responses_of(row, as_text=as_text, which=which))
    return _gather(found, paths, tally, on_bad_record)


def read_traces(
    paths: Paths, *, on_bad_record: OnBadRecord = "stop", as_text: bool = False,
) -> tuple[list[StepTrace], ReadReport]:
    """Solutions in steps, with what somebody said of the steps or of the final answer.

    Args:
        paths: a file, a folder of files, or several of them.
        on_bad_record: `stop`: one error that lists all bad rows; `skip`: leave them out and count them.
        as_text: a prompt that is a bare string is text to continue, not a user's turn.

    Raises:
        DataError: bad rows, or no row left.
    """
    return _gather(iter_traces(paths, tally := Tally(), as_text=as_text), paths, tally, on_bad_record)


def read_dialogues(
    paths: Paths, *, on_bad_record: OnBadRecord = "stop", domain: str = "domain", label: str = "variant",
    strip: Sequence[str] = (),
) -> tuple[list[Dialogue], ReadReport]:
    """Whole conversations.

    Args:
        paths: a file, a folder of files, or several of them.
        on_bad_record: `stop`: one error that lists all bad rows; `skip`: leave them out and count them.
        domain: column with what a conversation is about.
        label: column with the condition under which it took place.
        strip: names of tags that are cut out of all turns, with what stands between <NAME> and </NAME>.

    Raises:
        DataError: bad rows, or no row left.
    """
    tally = Tally()
    found = _records(paths, tally, lambda row: dialogue_of(row, domain=domain, label=label, strip=strip,
                                                           left_out=tally.left_out))
    return _gather(found, paths, tally, on_bad_record)


def iter_prompts(paths: Paths, tally: Tally, *, as_text: bool = False) -> Iterator[Prompt]:
    """Prompts as a stream; bad rows go to the tally, and the caller decides what to do about them."""
    return _records(paths, tally, lambda row: prompt_of(row, as_text=as_text))


def iter_demonstrations(
    paths: Paths, tally: Tally, *, as_text: bool = False, turns: Turns = "last", unique_ids: bool = True,
) -> Iterator[Demonstration]:
    """Demonstrations as a stream; bad rows go to the tally, and the caller decides what to do about them."""
    return _records(paths, tally, lambda row: demonstrations_of(row, as_text=as_text, turns=turns), unique_ids)


def iter_labelled(paths: Paths, tally: Tally, *, as_text: bool = False) -> Iterator[Labelled]:
    """Labelled responses as a stream; bad rows go to the tally, and the caller decides what to do about them."""
    return _records(paths, tally, lambda row: labelled_of(row, as_text=as_text))


def iter_pairs(paths: Paths, tally: Tally, *, as_text: bool = False) -> Iterator[PreferencePair]:
    """Pairs as a stream; bad rows go to the tally, and the caller decides what to do about them."""
    return _records(paths, tally, lambda row: pair_of(row, as_text=as_text))


def iter_rankings(paths: Paths, tally: Tally, *, as_text: bool = False) -> Iterator[Ranking]:
    """Rankings as a stream; bad rows go to the tally, and the caller decides what to do about them."""
    return _records(paths, tally, lambda row: ranking_of(row, as_text=as_text))


def iter_traces(paths: Paths, tally: Tally, *, as_text: bool = False) -> Iterator[StepTrace]:
    """Solutions in steps as a stream; bad rows go to the tally, and the caller decides what to do about them."""
    return _records(paths, tally, lambda row: trace_of(row, as_text=as_text, left_out=tally.left_out))


def as_paths(paths: Paths) -> list[Path]:
    """One path or several, as a list."""
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def _records(paths: Paths, tally: Tally, made_of: Callable[[Row], tuple[str, Sequence[_R]]],
             unique_ids: bool = True) -> Iterator[_R]:
    """The records of every good row; ids must be unique over all files, unless the caller expects otherwise."""
    first_seen: dict[str, str] = {}
    for path in as_paths(paths):
        for row in scan_rows(path):
            tally.n_rows += 1
            if isinstance(row, Problem):
                tally.add(row)
                continue
            try:
                layout, made = made_of(row)
                if unique_ids:
                    _check_unique(made, row.where, first_seen)
            except RowError as error:
                tally.add(Problem(error.kind, _where(row), error.what, error.remedy or ""))
                continue
            tally.formats[layout] += 1
            tally.n_records += len(made)
            yield from made


def _check_unique(made: Sequence[Record | Graded | StepTrace | Dialogue], where: str,
                  first_seen: dict[str, str]) -> None:
    for record in made:
        before = first_seen.setdefault(record.id, where)
        if before != where:
            raise RowError("duplicate id", f"the id {record.id!r} was already used at {before}",
                           "Ids name records in logs and random streams; make them unique, or drop the column.")


def _where(row: Row) -> str:
    name = row.value.get("id")
    return f"{row.where} (id {str(name)[:_LONGEST_ID]})" if isinstance(name, str | int) else row.where


def _gather(
    found: Iterator[_R], paths: Paths, tally: Tally, on_bad_record: OnBadRecord,
) -> tuple[list[_R], ReadReport]:
    records = list(found)
    report = tally.report
    where = ", ".join(str(path) for path in as_paths(paths))
    if report.n_dropped and on_bad_record == "stop":
        raise report.error(where)
    if not records:
        first = f"; the first: {report.problems[0]}" if report.problems else ""
        raise DataError(f"no record left: {report.summary()}{first}", where=where,
                        remedy="Run `keel data check` on it to see every problem.")
    return records, report
