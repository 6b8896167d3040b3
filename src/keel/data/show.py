"""`keel data show`: a few records as they are and, with a tokenizer, as the model sees them."""

from itertools import accumulate, islice

from pydantic import Field

from keel.config import Config
from keel.data.chat import Template, template, tokenizer_from
from keel.data.check import iter_records, kind_of_files
from keel.data.load import Kind
from keel.data.problems import Tally
from keel.data.records import Demonstration, Labelled, PreferencePair, Prompt, Ranking, Record, Strength
from keel.data.traces import StepTrace
from keel.errors import DataError

__all__ = ["DataShowConfig", "run", "shown"]

_OPEN, _CLOSE = "⟦", "⟧"


class DataShowConfig(Config):
    """Everything `keel data show` reads."""

    paths: str | list[str] = Field(description="file, folder of files, or several of them")
    kind: Kind | None = Field(None, description="what to read the rows as; none: the most that the first row can be")
    n: int = Field(3, ge=1, description="records shown")
    skip: int = Field(0, ge=0, description="records left out before the first one shown")
    as_text: bool = Field(False, description="a prompt that is a bare string is text to continue, not a user's turn")
    tokenizer: str | None = Field(None, description="tokenizer folder; shows tokens, the response between ⟦ and ⟧")


def run(cfg: DataShowConfig) -> list[str]:
    """Print the records; also returned, one text each.

    Raises:
        DataError: no record there.
    """
    from rich.console import Console

    kind = cfg.kind or kind_of_files(cfg.paths)
    tally = Tally()
    picked = islice(iter_records(cfg.paths, kind, tally, cfg.as_text), cfg.skip, cfg.skip + cfg.n)
    spelled = template(tokenizer_from(cfg.tokenizer)) if cfg.tokenizer else None
    texts = [shown(record, spelled) for record in picked]
    if not texts:
        first = f"; the first problem: {tally.report.problems[0]}" if tally.report.problems else ""
        raise DataError(f"no record to show: {tally.report.summary()}{first}", where=str(cfg.paths),
                        remedy="`keel data check` lists all problems; a smaller --skip may help.")
    Console(highlight=False, soft_wrap=True).print("\n\n".join(texts), markup=False)
    return texts


def shown(record: Record | StepTrace, spelled: Template | None = None) -> str:
    """A record as text; with a template its tokens too, those that the loss sees between ⟦ and ⟧."""
    prompt = record if isinstance(record, Prompt) else record.prompt
    lines = [f"── {record.id}"]
    lines += [f"{message.role}: {message.content}" for message in prompt.messages]
    lines += [f"text: {prompt.text}"] if prompt.text else []
    lines += _steps(record) if isinstance(record, StepTrace) else [
        f"{name}: {text}" for name, text in _responses(record)]
    if isinstance(record, PreferencePair):
        lines.append(f"margin {record.margin:g}, label_prob {record.label_prob:g}, weight {record.weight:g}")
        lines += [_votes(record.strength)] if record.strength else []
    lines += [f"{name}: {dict(part)}" for name, part in (("meta", prompt.meta), ("truth", prompt.truth)) if part]
    return "\n".join([*lines, *(_tokens(record, prompt, spelled) if spelled else [])])


def _steps(trace: StepTrace) -> list[str]:
    """Each step behind its label, which is a number where it is neither right nor wrong for sure."""
    words = {None: "not judged", 0.0: "wrong", 1.0: "right"}
    labels = [words.get(label, f"{label}") for label in trace.labels]
    lines = [f"step {i}, {label}: {text}" for i, (label, text) in enumerate(zip(labels, trace.steps, strict=True), 1)]
    return lines + ([] if trace.outcome is None else [f"final answer: {'right' if trace.outcome else 'wrong'}"])


def _votes(strength: Strength) -> str:
    gaps = [one - other for one, other in zip(strength.chosen_scores, strength.rejected_scores, strict=True)]
    sides = f"; {sum(gap > 0 for gap in gaps)} of {len(gaps)} members side with the label" if gaps else ""
    return f"strength {strength.mean:g}, std {strength.std:g}{sides}"


def _tokens(record: Record | StepTrace, prompt: Prompt, spelled: Template) -> list[str]:
    asked = spelled.prompt_ids(prompt)
    before = _pieces(asked, spelled)
    if isinstance(record, Prompt):
        return [f"tokens ({len(asked)}): {before}"]
    lines = []
    for name, text in _responses(record):
        ids = spelled.response_ids(text, after=prompt.text)
        lines.append(f"tokens of {name} ({len(asked)} + {len(ids)}): {before}|{_OPEN}{_pieces(ids, spelled)}{_CLOSE}")
        before = "..."
    return lines


def _pieces(ids: list[int], spelled: Template) -> str:
    return "|".join(piece.replace("\n", "\\n") for piece in spelled.tokenizer.convert_ids_to_tokens(ids))


def _responses(record: Record | StepTrace) -> list[tuple[str, str]]:
    if isinstance(record, PreferencePair):
        return [("chosen", record.chosen), ("rejected", record.rejected)]
    if isinstance(record, Ranking):
        ranks = accumulate(int(not tied) for tied in record.tied)
        return [(f"rank {rank}", text) for rank, text in zip(ranks, record.responses, strict=True)]
    if isinstance(record, StepTrace):
        return [("solution", record.text("\n"))]
    if isinstance(record, Labelled):
        return [("good response" if record.label else "bad response", record.response)]
    return [("response", record.response)] if isinstance(record, Demonstration) else []
