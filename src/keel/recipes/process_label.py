"""Labels of steps without people: complete each solution from every step on, and count what comes out right.

Left out: hard labels, which `keel process-rm` makes of these (`labels = "hard"`); answers of completions that are texts
to be read by a model.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from keel import runs
from keel.bench.appended import SavedRows
from keel.bench.first_errors import HALF, judged, solution_row
from keel.bench.measures import interval, prompt_groups
from keel.config import Config
from keel.data.answers import AnswerConfig, final_answer, right_answer, verdict
from keel.data.check import kind_of_files
from keel.data.load import read_demonstrations, read_prompts, read_traces
from keel.data.records import Prompt
from keel.data.render import Template, render_prompts, template
from keel.data.segment import Separator
from keel.data.traces import StepTrace
from keel.data.write import row_of
from keel.errors import DataError, RunError
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.progress import Bar, bar
from keel.rollout.prefixes import (
    Completed,
    Solution,
    Written,
    complete,
    given_solution,
    labelled,
    prefixes,
    require_room,
    rightness,
    solution_of,
    write_solutions,
)
from keel.rollout.respond import ScoringFunction, scoring_function
from keel.rollout.sample import SamplingConfig
from keel.runs import Stopped
from keel.train.inputs import FileConfig, prompt_room

__all__ = ["ProcessLabelConfig", "run"]

TRACES, SHOWN, WRITTEN, ROLLED_OUT = "traces.jsonl", "solutions.jsonl", "written.jsonl", "rollouts.jsonl"
N_SHOWN = 64


class ProcessLabelConfig(Config):
    """Everything `keel process-rm label` reads."""

    out: Path = Field(description="run folder to make; the labelled solutions go to traces.jsonl")
    policy: ModelConfig = Field(description="completes solutions, and writes those to prompts")
    prompts: FileConfig | None = Field(None, description="prompts with right answers; policy writes the solutions")
    per_prompt: int = Field(4, ge=1, description="solutions that policy writes to each of the prompts")
    solutions: FileConfig | None = Field(None, description="solutions to label instead, in steps or as demonstrations, "
                                         "with right answers")
    limit: int | None = Field(None, ge=1, description="take this many records of the file; none: all")
    separator: Separator = Field("\n", min_length=1, description="text that parts the steps of a solution")
    rollouts: int = Field(8, ge=1, description="completions behind each step")
    sampling: SamplingConfig = SamplingConfig()
    answer: AnswerConfig = AnswerConfig()
    judge: str | None = Field(None, description="package.module:function of (prompt, text, ended) -> 0 to 1, in place "
                              "of answer")
    batch: int = Field(16, ge=1, description="places completed together, then saved; a kill loses one such batch")
    seed: int = Field(0, ge=0, description="fixes every solution and every completion")

    @model_validator(mode="after")
    def _check(self) -> "ProcessLabelConfig":
        if (self.prompts is None) == (self.solutions is None):
            raise ValueError("give either prompts, to which policy writes solutions, or solutions to label")
        if self.judge is not None and self.answer != AnswerConfig():
            raise ValueError("judge and answer exclude each other: both say when a response is right")
        if self.solutions is not None and self.per_prompt != type(self).model_fields["per_prompt"].default:
            raise ValueError("per_prompt acts on nothing with solutions: it counts what policy writes to prompts")
        return self


def run(cfg: ProcessLabelConfig, *, resume: bool = False) -> runs.RunResult:
    """Write traces.jsonl, which `keel process-rm` reads, and counts in result.json."""
    file = cfg.prompts or cfg.solutions
    assert file is not None  # the settings are checked
    with runs.start("process_rm label", cfg, cfg.out, seed=cfg.seed, data=[Path(file.path)], resume=resume) as log:
        _require_fresh(cfg.out, resume)
        log.rewind({})
        words = template(load_tokenizer(cfg.policy.path, trust_remote_code=cfg.policy.trust_remote_code))
        policy = causal_lm(cfg.policy)
        judge = scoring_function(cfg.judge) if cfg.judge else _by_answer(cfg.answer)
        # Write: what is to be labelled. Answers are looked up before anything is sampled for hours.
        found, counts = (_written if cfg.prompts else _given)(cfg, policy, words, log)
        own = [rightness(judge, one.prompt, one.text, one.written.ended) for one in found]
        # Complete: from each step on, in batches that are the same however often the run was stopped.
        todo = prefixes(found)
        require_room(policy, todo, cfg.sampling)
        completed: dict[str, Completed] = {}
        progress = log.bar(len(todo) * cfg.rollouts, 0)
        with SavedRows(cfg.out / ROLLED_OUT) as rows:
            known = {key: Completed(key, tuple(row["values"]), row["n_tokens"], row["n_cut"])
                     for key, row in rows.known.items()}
            for step, start in enumerate(range(0, len(todo), cfg.batch), start=1):
                batch = todo[start : start + cfg.batch]
                if any(prefix.key not in known for prefix in batch):
                    told = complete(policy, words, batch, cfg.rollouts, cfg.sampling, seed=cfg.seed, judge=judge,
                                    on_done=_watch(log, cfg.out, progress, start * cfg.rollouts))
                    fresh = {one.key: one for one in told if one.key not in known}
                    rows.add({key: {"values": one.values, "n_tokens": one.n_tokens, "n_cut": one.n_cut}
                              for key, one in fresh.items()})
                    known |= fresh
                told = [known[prefix.key] for prefix in batch]
                completed |= {one.key: one for one in told}
                progress.reach((start + len(batch)) * cfg.rollouts)
                log.log(step, _numbers(told), phase="label")
        # Label: the share of completions that come out right.
        names = _names([one.prompt.id for one in found])
        traces = [labelled(*each, completed) for each in zip(found, names, own, strict=True)]
        runs.write_rows(cfg.out / TRACES, [row_of(trace) for trace in traces])
        runs.write_rows(cfg.out / SHOWN, [_shown(*each) for each in zip(found[:N_SHOWN], traces, strict=False)])
        labels = [[label for label in trace.labels if label is not None] for trace in traces]
        return log.finish(counts | _result(cfg, found, own, list(completed.values()), labels)
                          | _agreement(cfg, found, labels), timed=False)


def _require_fresh(folder: Path, resume: bool) -> None:
    """What another run saved here must not pass for the work of this one."""
    if not resume and any((folder / name).exists() for name in (WRITTEN, ROLLED_OUT)):
        raise RunError("this folder holds completions of a run that was stopped", where=str(folder),
                       remedy=f"Continue it with `keel process-rm label --resume {folder}`, or choose another --out.")


def _by_answer(how: AnswerConfig) -> ScoringFunction:
    return lambda prompt, text, ended: verdict(prompt, text, ended, how)


def _require_answers(cfg: ProcessLabelConfig, asked: Sequence[Prompt]) -> None:
    if cfg.judge is None:
        for prompt in asked:
            right_answer(prompt, cfg.answer.column)


def _written(cfg: ProcessLabelConfig, policy: nn.Module, words: Template, log: runs.Run,
             ) -> tuple[list[Solution], dict[str, Any]]:
    """Solutions that the policy writes, and what became of the prompts."""
    assert cfg.prompts is not None
    asked, report = read_prompts(cfg.prompts.path, on_bad_record=cfg.prompts.on_bad_record, as_text=cfg.prompts.as_text)
    asked = asked[: cfg.limit]
    _require_answers(cfg, asked)
    room = prompt_room(cfg.prompts, cfg.sampling.max_new_tokens)
    rows, cut = render_prompts(words, asked, room, cfg.prompts.too_long)
    each = [(row, number) for row in rows for number in range(1, cfg.per_prompt + 1)]
    keys = [f"{row.record.id}/{number}" for row, number in each]
    size = cfg.batch * cfg.rollouts
    with bar("solutions", len(each)) as progress, SavedRows(cfg.out / WRITTEN) as saved:
        known = {key: Written(tuple(row["ids"]), row["ended"]) for key, row in saved.known.items()}
        for start in range(0, len(each), size):
            own = keys[start : start + size]
            if any(key not in known for key in own):
                said = write_solutions(policy, words, each[start : start + size], cfg.sampling, seed=cfg.seed,
                                       on_done=_watch(log, cfg.out, progress, start))
                fresh = {key: one for key, one in zip(own, said, strict=True) if key not in known}
                saved.add({key: {"ids": one.ids, "ended": one.ended} for key, one in fresh.items()})
                known |= fresh
            progress.reach(start + len(own))
    found = [solution_of(words, row, known[key], cfg.separator) for (row, _), key in zip(each, keys, strict=True)]
    return _with_steps(cfg, found, {"records": report.n_dropped} | vars(cut))


def _given(cfg: ProcessLabelConfig, policy: nn.Module, words: Template, log: runs.Run,
           ) -> tuple[list[Solution], dict[str, Any]]:
    """Solutions of a file, and what became of them."""
    assert cfg.solutions is not None
    file = cfg.solutions
    told: list[tuple[Prompt, str, StepTrace | None]]
    if kind_of_files(file.path) == "traces":
        traces, report = read_traces(file.path, on_bad_record=file.on_bad_record, as_text=file.as_text)
        told = [(trace.prompt, trace.text(cfg.separator), trace) for trace in traces]
    else:
        shown, report = read_demonstrations(file.path, on_bad_record=file.on_bad_record, as_text=file.as_text,
                                            unique_ids=False)
        told = [(one.prompt, one.response, None) for one in shown]
    told = told[: cfg.limit]
    _require_answers(cfg, [prompt for prompt, _, _ in told])
    fitting = []
    for prompt, text, trace in told:
        one = given_solution(words, prompt, text, cfg.separator, file.max_length, file.too_long)
        if one is not None:
            fitting.append(replace(one, known=trace))
    return _with_steps(cfg, fitting, {"records": report.n_dropped, "n_dropped": len(told) - len(fitting)})


def _with_steps(cfg: ProcessLabelConfig, found: Sequence[Solution], skipped: dict[str, Any],
                ) -> tuple[list[Solution], dict[str, Any]]:
    """Solutions with a step to label, and the counts of a reader who wonders where the others went."""
    # A tokenizer of bytes can write NUL, which no data file may hold.
    kept = [one for one in found if one.steps.texts and "\0" not in one.text]
    if not kept:
        raise DataError(f"none of {len(found)} solutions has a step that ends", where=str(cfg.out),
                        remedy="Raise sampling.max_new_tokens or max_length, or name the separator that parts steps.")
    silent = [one for one in kept if cfg.judge is None and (
        not one.written.ended or final_answer(one.text, cfg.answer.extract) is None)]
    return kept, {"skipped": skipped, "n_solutions": len(kept), "n_steps": sum(len(one.steps.texts) for one in kept),
                  "n_without_step": len(found) - len(kept), "n_cut": sum(not one.written.ended for one in kept),
                  "n_without_answer": len(silent)}


def _watch(log: runs.Run, out: Path, progress: Bar, done: int) -> Callable[[int], None]:
    """Moves the bar on, and ends a run that was asked to stop; what is in files by then is kept."""
    def on_done(n: int) -> None:
        progress.reach(done + n)
        if log.stop_requested():
            raise Stopped("stopped between two batches of completions; the whole ones are kept", where=str(out),
                          remedy=f"Continue with: keel process-rm label --resume {out}")
    return on_done


def _names(ids: Sequence[str]) -> list[str]:
    """The ids, numbered from 1 on where one occurs several times."""
    if len(dict.fromkeys(ids)) == len(ids):
        return list(ids)
    seen: Counter[str] = Counter()
    found = []
    for name in ids:
        seen[name] += 1
        found.append(f"{name}/{seen[name]}")
    return found


def _numbers(told: Sequence[Completed]) -> dict[str, float]:
    n = sum(len(one.values) for one in told)
    return {"rollouts/n": n, "rollouts/right": sum(sum(one.values) for one in told) / n,
            "rollouts/tokens": sum(one.n_tokens for one in told) / n,
            "rollouts/cut": sum(one.n_cut for one in told) / n}


def _result(cfg: ProcessLabelConfig, found: Sequence[Solution], own: Sequence[float], told: Sequence[Completed],
            labels: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What was done, how often the solutions are right, and what labels they got, place by place."""
    by_step = []
    for k in range(max(map(len, labels))):
        here = [given[k] for given in labels if k < len(given)]
        by_step.append({"step": k + 1, "n": len(here), "mean": sum(here) / len(here),
                        "never_right": sum(label == 0 for label in here) / len(here)})
    # What the policy did not finish is wrong. What was cut here, to fit, may have been right.
    read = [(one, value) for one, value in zip(found, own, strict=True) if cfg.prompts or one.written.ended]
    return {"n_prefixes": len(told), "n_rollouts": sum(len(one.values) for one in told),
            "n_tokens": sum(one.n_tokens for one in told), "n_rollouts_cut": sum(one.n_cut for one in told),
            "right": interval(torch.tensor([value for _, value in read]),
                              prompt_groups([one.prompt for one, _ in read]), cfg.seed, "right"),
            "by_step": by_step}


def _agreement(cfg: ProcessLabelConfig, found: Sequence[Solution], labels: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How far the labels agree with those that the file had, where it had any."""
    labelled_there = [(given, one.known, one.known.steps[: len(given)] == one.steps.texts)
                      for one, given in zip(found, labels, strict=True)
                      if one.known is not None and any(label is not None for label in one.known.labels)]
    given, known = [list(one) for one, _, same in labelled_there if same], [t for _, t, same in labelled_there if same]
    if not labelled_there:
        return {}
    # A step passes if any completion came out right, or if at least half of them did.
    told = {name: judged(given, known, seed=cfg.seed, threshold=least)
            for name, least in (("any_right", 0.5 / cfg.rollouts), ("half_right", HALF))} if known else {}
    return {"agreement": {"n": len(known), "n_other_steps": len(labelled_there) - len(known), **told}}


def _shown(one: Solution, trace: StepTrace) -> dict[str, Any]:
    """A row for the report: the share of right completions as score, beside the label that the file had."""
    scores = [label for label in trace.labels if label is not None]
    had = one.known.labels[: len(scores)] if one.known is not None else ()
    return solution_row(replace(trace, labels=had if len(had) == len(scores) else (None,) * len(scores)), scores)
