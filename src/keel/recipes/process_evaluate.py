"""A process model, or any other judge of steps, held against labelled solutions: does it find the first error?

Left out: judges that are asked for a verdict in words; a function may ask one and give probabilities.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator

from keel import runs
from keel.bench.first_errors import HALF, baselines_of, best_threshold, judged, solution_row, steps_headline
from keel.config import Config
from keel.data.load import read_traces
from keel.data.render import template
from keel.data.seen import prompt_key, read_seen
from keel.data.segment import Separator
from keel.data.step_rows import render_traces
from keel.data.traces import StepTrace
from keel.errors import DataError
from keel.models.load import FrozenModelConfig, check_context, load_tokenizer
from keel.models.process import process_model
from keel.named import named_function
from keel.rollout.step_rewards import step_numbers
from keel.runs import Stopped, write_rows
from keel.train.solutions import step_logits_of

__all__ = ["ProcessEvaluateConfig", "run"]

AT_ONCE = 64
"""Solutions between two looks at whether to stop."""
T = TypeVar("T")
Judge = Callable[[Sequence[StepTrace]], list[list[float]]]


class ProcessEvaluateConfig(Config):
    """Everything `keel process-rm evaluate` reads."""

    out: Path = Field(description="run folder to make; what was stopped is begun anew")
    data: str = Field(description="solutions with labelled steps: file or folder")
    model: FrozenModelConfig | None = Field(None, description="process model")
    function: str | None = Field(None, description="judge in its place: package.module:function of (prompt, text, "
                                 "ended) -> probability of each step, as a list")
    separator: Separator = Field("\n", min_length=1, description="text between two steps, as the model was trained "
                                 "with")
    threshold: float = Field(HALF, ge=0, le=1, description="a step whose probability is below is called wrong")
    threshold_from: str | None = Field(None, description="other labelled solutions; the threshold is the one with the "
                                       "highest F1 there; none: threshold")
    train: str | None = Field(None, description="labelled solutions for the baselines, best those that the model "
                              "learned from; none: one baseline only")
    by: str | None = Field(None, description="column of data to break the first errors down by; none: off")
    max_length: int = Field(512, ge=8, description="longest row in tokens; steps beyond have no score, and are counted")
    on_bad_record: Literal["stop", "skip"] = Field("stop", description="stop and list bad records, or drop and count")
    as_text: bool = Field(False, description="a plain prompt is text to continue, without a chat template")
    n_samples: int = Field(1000, ge=0, description="solutions written to solutions.jsonl, with texts, for the report")
    seed: int = Field(0, ge=0, description="fixes every interval")
    micro_tokens: int = Field(8192, ge=1, description="token positions per forward pass; changes memory, not results")

    @model_validator(mode="after")
    def _check(self) -> "ProcessEvaluateConfig":
        if (self.model is None) == (self.function is None):
            raise ValueError("give either model or function: one of them judges the steps")
        if self.threshold_from is not None and self.threshold != HALF:
            raise ValueError("threshold and threshold_from exclude each other: the second chooses the first")
        if self.threshold_from == self.data:
            raise ValueError("threshold_from is the file in data: chosen there, the threshold would fit what it is "
                             "judged by")
        for name in ("max_length", "micro_tokens"):
            if self.function is not None and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} does nothing with a function, which gets texts")
        return self


def run(cfg: ProcessEvaluateConfig) -> runs.RunResult:
    """Write items.jsonl, solutions.jsonl and, in result.json, what `judged` says under `steps`."""
    files = [Path(file) for file in (cfg.data, cfg.threshold_from, cfg.train) if file is not None]
    with runs.start("process_rm evaluate", cfg, cfg.out, seed=cfg.seed, data=files) as log:
        # Read everything first: what is missing is said before anything is computed.
        read = partial(read_traces, on_bad_record=cfg.on_bad_record, as_text=cfg.as_text)
        held, report = read(cfg.data)
        chosen_by = None if cfg.threshold_from is None else read(cfg.threshold_from)[0]
        training = None if cfg.train is None else read(cfg.train)[0]
        if chosen_by is not None:
            require_other_prompts(held, chosen_by, cfg.threshold_from or "")
        note_seen(cfg, held, training, log.note)
        judge = function_judge(cfg.function, cfg.separator, log) if cfg.function is not None else model_judge(cfg, log)

        probabilities = judge(held)
        threshold = cfg.threshold if chosen_by is None else best_threshold(judge(chosen_by), chosen_by)
        told = judged(probabilities, held, seed=cfg.seed, threshold=threshold, by=cfg.by,
                      baselines=baselines_of(training, by=cfg.by, seed=cfg.seed))
        rows = [solution_row(trace, line, threshold) for trace, line in zip(held, probabilities, strict=True)]
        write_rows(cfg.out / "solutions.jsonl", rows[: cfg.n_samples])
        write_rows(cfg.out / "items.jsonl", [item(trace, line, row["predicted"]) for trace, line, row in zip(
            held, probabilities, rows, strict=True)])
        print(said(told))
        return log.finish({"judge": cfg.function or (cfg.model and cfg.model.path), "steps": told,
                           "skipped": {"records": report.n_dropped}, "headline": steps_headline(told)})


def require_other_prompts(held: Sequence[StepTrace], chosen_by: Sequence[StepTrace], file: str) -> None:
    """Solutions to one question are alike, so none may be on both sides.

    Raises:
        DataError: a prompt is.
    """
    shared = {prompt_key(trace.prompt) for trace in held} & {prompt_key(trace.prompt) for trace in chosen_by}
    if shared:
        raise DataError(f"{len(shared)} prompts are in data as well, so the threshold would fit what it is judged by",
                        where=file, remedy="Split by prompt: no question may be in both files.")


def note_seen(cfg: ProcessEvaluateConfig, held: Sequence[StepTrace], training: Sequence[StepTrace] | None,
              note: Callable[[str], None]) -> None:
    """Say where what is held against the judge is known to it, or to the baselines."""
    asked = {prompt_key(trace.prompt) for trace in held}
    seen = None if cfg.model is None else read_seen(Path(cfg.model.path))
    for what, keys in (("the model learned from", seen.learned_from if seen is not None else frozenset()),
                       ("the baselines are made from", {prompt_key(trace.prompt) for trace in training or ()})):
        if n := len(asked & keys):
            note(f"{what} {n} of {len(asked)} prompts that are judged here")


def model_judge(cfg: ProcessEvaluateConfig, log: runs.Run) -> Judge:
    """Probabilities of a process model, read where steps end.

    Raises:
        ModelError: it cannot be loaded, or is no process model.
    """
    assert cfg.model is not None
    words = template(load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code))
    model = process_model(cfg.model.whole).requires_grad_(False)

    def judge(traces: Sequence[StepTrace]) -> list[list[float]]:
        rows, cut = render_traces(words, traces, separator=cfg.separator, max_length=cfg.max_length)
        if cut.n_shortened or cut.n_dropped:
            log.note(cut.summary())
        check_context(model, max(row.n_tokens for row in rows))
        known: dict[str, list[float]] = {}
        for part in _parts(rows, log):
            logits = step_logits_of(model, part, words.pad_id, cfg.micro_tokens)
            known |= {row.trace.id: torch.tensor(line, dtype=torch.float64).sigmoid().tolist()
                      for row, line in zip(part, logits, strict=True)}
        return [known.get(trace.id, []) for trace in traces]

    return judge


def function_judge(name: str, separator: str, log: runs.Run) -> Judge:
    """What a Python function says of the steps.

    Raises:
        ConfigError: it cannot be imported.
    """
    function = named_function(name, "function")
    return lambda traces: [step_numbers(function, trace.prompt, trace.text(separator), trace.ended, len(trace.steps))
                           for part in _parts(traces, log) for trace in part]


def _parts(rows: Sequence[T], log: runs.Run) -> Iterator[Sequence[T]]:
    """Some at a time, with a bar.

    Raises:
        Stopped: the run was asked to stop.
    """
    progress = log.bar(len(rows), 0)
    for start in range(0, len(rows), AT_ONCE):
        if log.stop_requested():
            raise Stopped(f"stopped after {start} of {len(rows)} solutions; nothing is kept", where=str(log.folder),
                          remedy="Run it again with another --out.")
        yield rows[start : start + AT_ONCE]
        progress.reach(min(start + AT_ONCE, len(rows)))


def item(trace: StepTrace, probabilities: Sequence[float], predicted: int | None) -> dict[str, Any]:
    """A solution without its texts."""
    return {"id": trace.id, "n_steps": len(trace.steps), "first_error": trace.first_error, "predicted": predicted,
            "probabilities": list(probabilities)}


def said(told: dict[str, Any]) -> str:
    """What the console shows."""
    lines = []
    for name, row in {"this judge": told["first_error"], **told["baselines"]}.items():
        lines.append(f"{name}: F1 {_interval(row['f1'])}, first errors found {_share(row['accuracy_wrong'])} of "
                     f"{row['n_wrong']}, right ones passed {_share(row['accuracy_right'])} of {row['n_right']}")
    lines.append(f"steps judged as labelled: {_interval(told['accuracy'])}; threshold {told['threshold']:.3g}")
    return "\n".join(lines)


def _interval(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return "unknown"
    return f"{row['mean']:.3f}" + ("" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]")


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.0f}%"
