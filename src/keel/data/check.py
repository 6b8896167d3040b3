"""`keel data check`: everything that is wrong with data files, and what is in them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from keel.config import Config
from keel.data.chat import Template, template, tokenizer_from
from keel.data.kinds import kind_of_row
from keel.data.load import (
    Kind,
    OnBadRecord,
    Paths,
    as_paths,
    iter_demonstrations,
    iter_labelled,
    iter_pairs,
    iter_prompts,
    iter_rankings,
    iter_traces,
)
from keel.data.problems import SHOWN, Problem, ReadReport, RowError, Tally
from keel.data.readers import scan_rows
from keel.data.records import Demonstration, Labelled, PreferencePair, Prompt, Ranking, Record
from keel.data.traces import StepTrace

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["CheckReport", "DataCheckConfig", "iter_records", "kind_of_files", "run"]

_GROUPS = ("domain", "subset", "source", "dataset", "category", "topic", "task", "split")
_GROUPS_SHOWN = 12
_QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


class DataCheckConfig(Config):
    """Everything `keel data check` reads."""

    paths: str | list[str] = Field(description="file, folder of files, or several of them")
    kind: Literal["auto", "prompts", "demonstrations", "labelled", "pairs", "rankings", "traces"] = Field(
        "auto", description="what the rows must be; auto: the most that the first row can be read as")
    limit: int = Field(SHOWN, ge=1, description="problems that are spelled out; the rest is counted")
    on_bad_record: OnBadRecord = Field("stop", description="stop: problems end in exit code 3; skip: only report them")
    as_text: bool = Field(False, description="a prompt that is a bare string is text to continue, not a user's turn")
    tokenizer: str | None = Field(None, description="tokenizer folder; lengths are then in tokens, not characters")
    max_length: int | None = Field(None, ge=1, description="count rows longer than this (tokens, or characters)")


@dataclass
class StepCounts:
    """What is said of the steps of solutions.

    Attributes:
        n_solutions: solutions read.
        n_steps: their steps.
        n_unlabelled: steps that nobody judged.
        n_wrong: solutions with a step whose label is below 0.5.
        n_outcomes: solutions whose final answer is known to be right or wrong.
        n_right_answers: those whose final answer is right.
    """

    n_solutions: int = 0
    n_steps: int = 0
    n_unlabelled: int = 0
    n_wrong: int = 0
    n_outcomes: int = 0
    n_right_answers: int = 0

    def add(self, trace: StepTrace) -> None:
        """Count one more."""
        self.n_solutions += 1
        self.n_steps += len(trace.steps)
        self.n_unlabelled += trace.labels.count(None)
        self.n_wrong += trace.is_wrong
        self.n_outcomes += trace.outcome is not None
        self.n_right_answers += trace.outcome is True


@dataclass(frozen=True)
class CheckReport:
    """What the files hold.

    Attributes:
        kind: what the rows were read as.
        reading: rows, records and problems.
        groups: records by domain, subset, source and the like, for each of these columns that is there.
        unit: `tokens` or `characters`.
        quantiles: length of prompt and longest response at the shares 0, 0.5, 0.9, 0.99 and 1.
        n_too_long: records beyond `max_length`.
        n_repeated: records whose prompt and responses all occurred before.
        n_same_prompt: records whose prompt occurred before.
        steps: of solutions in steps, what is said of their steps.
    """

    kind: Kind
    reading: ReadReport
    groups: dict[str, dict[str, int]]
    unit: str
    quantiles: tuple[int, ...]
    n_too_long: int
    n_repeated: int
    n_same_prompt: int
    steps: StepCounts | None = None


def run(cfg: DataCheckConfig) -> CheckReport:
    """Read everything, print a summary, and complain.

    Raises:
        DataError: there are problems, and `on_bad_record` is `stop`.
    """
    from rich.console import Console

    kind: Kind = kind_of_files(cfg.paths) if cfg.kind == "auto" else cfg.kind
    report = _inspect(cfg, kind, template(tokenizer_from(cfg.tokenizer)) if cfg.tokenizer else None)
    where = ", ".join(map(str, as_paths(cfg.paths)))
    _show(report, where, cfg.max_length, Console(highlight=False, soft_wrap=True))
    if report.reading.n_dropped and cfg.on_bad_record == "stop":
        raise report.reading.error(where)
    return report


def kind_of_files(paths: Paths) -> Kind:
    """What the first row that can be understood is at most: traces, rankings, pairs, labelled responses,
    demonstrations or prompts."""
    for path in as_paths(paths):
        for row in scan_rows(path):
            try:
                if not isinstance(row, Problem):
                    return kind_of_row(row)
            except RowError:
                continue
    return "prompts"


def iter_records(paths: Paths, kind: Kind, tally: Tally, as_text: bool = False) -> Iterator[Record | StepTrace]:
    """The records of a kind, as a stream."""
    read = {"prompts": iter_prompts, "demonstrations": iter_demonstrations, "labelled": iter_labelled,
            "pairs": iter_pairs, "rankings": iter_rankings, "traces": iter_traces}[kind]
    yield from read(paths, tally, as_text=as_text)  # type: ignore[operator]


def _inspect(cfg: DataCheckConfig, kind: Kind, spelled: Template | None) -> CheckReport:
    tally = Tally(cfg.limit)
    groups: dict[str, Counter[str]] = {}
    lengths: list[int] = []
    prompts_seen: set[bytes] = set()
    seen: set[bytes] = set()
    steps = StepCounts() if kind == "traces" else None
    for record in iter_records(cfg.paths, kind, tally, cfg.as_text):
        prompt = record if isinstance(record, Prompt) else record.prompt
        for name in _GROUPS:
            if isinstance(prompt.meta.get(name), str):
                groups.setdefault(name, Counter())[prompt.meta[name]] += 1
        if steps is not None and isinstance(record, StepTrace):
            steps.add(record)
        lengths.append(_length(prompt, _texts(record), spelled))
        prompts_seen.add(_digest(prompt.text, *prompt.messages))
        seen.add(_digest(prompt.text, *prompt.messages, *_texts(record)))
    return CheckReport(
        kind, tally.report, {name: dict(counts.most_common()) for name, counts in groups.items()},
        "tokens" if spelled else "characters", _quantiles(lengths),
        sum(length > cfg.max_length for length in lengths) if cfg.max_length else 0,
        tally.n_records - len(seen), tally.n_records - len(prompts_seen), steps)


def _texts(record: Record | StepTrace) -> tuple[str, ...]:
    if isinstance(record, PreferencePair):
        return record.chosen, record.rejected
    if isinstance(record, Ranking):
        return record.responses
    if isinstance(record, StepTrace):
        return (record.text("\n"),)
    return (record.response,) if isinstance(record, Demonstration | Labelled) else ()


def _length(prompt: Prompt, responses: tuple[str, ...], spelled: Template | None) -> int:
    if spelled is None:
        asked = len(prompt.text or "") + sum(len(message.content) for message in prompt.messages)
        return asked + max(map(len, responses), default=0)
    tokens = [len(spelled.response_ids(text, after=prompt.text)) for text in responses]
    return len(spelled.prompt_ids(prompt)) + max(tokens, default=0)


def _digest(*things: object) -> bytes:
    return blake2b(repr(things).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _quantiles(lengths: list[int]) -> tuple[int, ...]:
    ordered = sorted(lengths)
    return tuple(ordered[round(share * (len(ordered) - 1))] for share in _QUANTILES) if ordered else ()


def _show(report: CheckReport, where: str, max_length: int | None, console: "Console") -> None:
    reading = report.reading
    lines = [where, f"  {reading.summary()}", f"  kind: {report.kind} ({_counts(reading.formats)})"]
    lines += [f"  {name}: {_counts(counts)}" for name, counts in report.groups.items()]
    if report.quantiles:
        found = zip(_QUANTILES, report.quantiles, strict=True)
        lines.append(f"  length in {report.unit}: {', '.join(f'{_share(share)} {value}' for share, value in found)}")
    lines += [] if report.steps is None else [f"  steps: {_said(report.steps)}"]
    if max_length:
        lines.append(f"  longer than {max_length}: {report.n_too_long}")
    lines.append(f"  repeated: {report.n_repeated} records, {report.n_same_prompt} prompts")
    lines += [f"  {problem}".replace("\n", "\n  ") for problem in reading.problems]
    if reading.n_dropped > len(reading.problems):
        lines.append(f"  and {reading.n_dropped - len(reading.problems)} more problems")
    # Not markup: text of the data may look like it.
    console.print("\n".join(lines), markup=False)


def _said(steps: StepCounts) -> str:
    wrong = f"{steps.n_wrong} of {steps.n_solutions} solutions with a wrong one"
    return (f"{steps.n_steps}, of which {steps.n_unlabelled} not judged; {wrong}; {steps.n_right_answers} of "
            f"{steps.n_outcomes} known answers right")


def _counts(counts: dict[str, int] | object) -> str:
    items = list(counts.items()) if isinstance(counts, dict) else []
    more = f", and {len(items) - _GROUPS_SHOWN} more" if len(items) > _GROUPS_SHOWN else ""
    return ", ".join(f"{name} {count}" for name, count in items[:_GROUPS_SHOWN]) + more


def _share(share: float) -> str:
    return {0.0: "shortest", 0.5: "median", 1.0: "longest"}.get(share, f"{share:.0%}")
