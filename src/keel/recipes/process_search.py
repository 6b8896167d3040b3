"""Answer prompts with a process model's help, and say what the help is worth: best of n, and beam search over steps.

All on the same prompts: the pick of n solutions by the process model, by an outcome model, by vote, by chance and by
one who knows, for n = 1, 2, 4, ...; and a beam of drafts that the process model judges after each step. Tokens sampled
are counted, for a search that costs more should also be worth more.

Left out: training on what is found. `answers.jsonl` holds prompts with responses.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from keel import runs
from keel.bench.first_errors import solution_row
from keel.config import Config
from keel.data.answers import AnswerConfig
from keel.data.files import FileConfig
from keel.data.load import read_prompts
from keel.data.records import Prompt
from keel.data.render import PromptRow, Row, Template, render_prompts, template
from keel.data.segment import Separator, steps_of
from keel.data.traces import StepTrace
from keel.models.load import FrozenModelConfig, causal_lm, load_tokenizer, scalar_model
from keel.models.process import process_model
from keel.named import named_function
from keel.rng import stream
from keel.rollout.measure import Scorer
from keel.rollout.picks import VOTES, Marker, Solution, curve, pick, scores_of_steps
from keel.rollout.process import StepScored, StepScorer
from keel.rollout.respond import Responses, summary
from keel.rollout.sample import SamplingConfig, sample
from keel.rollout.search import Candidate, Draft, StepWriter, beam_search
from keel.runs import explained_disk_errors
from keel.train.clock import Clock
from keel.train.inputs import prompt_room

__all__ = ["ProcessSearchConfig", "run"]

CANDIDATES, ANSWERS, SOLUTIONS = "candidates.jsonl", "answers.jsonl", "solutions.jsonl"


class ProcessSearchConfig(Config):
    """Everything `keel process-rm search` reads."""

    out: Path = Field(description="run folder to make; answers go to answers.jsonl")
    policy: FrozenModelConfig = Field(description="model that writes the solutions")
    process_model: FrozenModelConfig = Field(description="process model that judges their steps")
    outcome_model: FrozenModelConfig | None = Field(None, description="reward model that also picks of n; none: does "
                                                    "not")
    prompts: FileConfig = Field(description="prompts to answer; responses in the file are ignored")
    limit: int | None = Field(None, ge=1, description="answer this many prompts; none: all")
    methods: tuple[Literal["best_of_n", "beam"], ...] = Field(("best_of_n", "beam"), description="ways to answer")
    separator: Separator = Field("\n", min_length=1, description="text that ends a step")
    aggregate: Literal["min", "product", "mean", "last"] = Field("min", description="score of a solution from those of "
                                                                 "its steps")
    n: int = Field(16, ge=1, description="solutions that best_of_n picks from")
    beams: int = Field(4, ge=1, description="drafts that beam keeps after each step")
    expand: int = Field(4, ge=1, description="continuations by one step of each draft that beam keeps")
    most_steps: int = Field(32, ge=1, description="steps after which beam takes the best it has")
    answer: AnswerConfig = AnswerConfig()
    judge: str | None = Field(None, description="package.module:function of (prompt, text, ended) -> 0 to 1, instead "
                              "of the column of answers")
    subsets: int = Field(64, ge=1, description="choices of n drawn per prompt to say what a vote of n is worth")
    sampling: SamplingConfig = SamplingConfig()
    seed: int = Field(0, ge=0, description="fixes every solution and every interval")
    batch: int = Field(16, ge=1, description="prompts answered at the same time, then written down")
    micro_tokens: int = Field(8192, ge=1, description="token positions per forward pass of the models that judge")

    @model_validator(mode="after")
    def _check(self) -> "ProcessSearchConfig":
        if not self.methods or len(self.methods) > len(dict.fromkeys(self.methods)):
            raise ValueError(f"methods={list(self.methods)} is empty or names one twice; best_of_n, beam, or both")
        several = [name for name, n in (("n", self.n), ("beams", self.beams), ("expand", self.expand))
                   if n > 1 and ("best_of_n" if name == "n" else "beam") in self.methods]
        if self.sampling.temperature == 0 and several:
            raise ValueError(f"sampling.temperature=0 writes the same solution every time: {several[0]} above 1 would "
                             "choose among copies")
        if self.sampling.repetition_penalty > 1 and "beam" in self.methods:
            raise ValueError("sampling.repetition_penalty and methods with beam exclude each other: a step would not "
                             "know the tokens of those before it")
        if self.outcome_model is not None and "best_of_n" not in self.methods:
            raise ValueError("outcome_model does nothing without best_of_n in methods: it reads whole solutions only")
        return self


@dataclass(frozen=True)
class _Tools:
    """Everybody who writes or judges."""

    writer: StepWriter
    process: StepScorer
    outcome: Scorer | None
    marker: Marker


def run(cfg: ProcessSearchConfig, *, resume: bool = False) -> runs.RunResult:
    """Write answers.jsonl and, in result.json, what each way of answering is worth and costs."""
    files = [Path(cfg.prompts.path)]
    with runs.start("process_rm search", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        words = _template(cfg.policy)
        records, report = read_prompts(cfg.prompts.path, on_bad_record=cfg.prompts.on_bad_record,
                                       as_text=cfg.prompts.as_text)
        room = prompt_room(cfg.prompts, cfg.sampling.max_new_tokens)
        rows, cut = render_prompts(words, records[: cfg.limit], room, cfg.prompts.too_long)
        judge = named_function(cfg.judge, "judge") if cfg.judge else None
        marker = Marker(cfg.answer, judge, [row.record for row in rows])
        if not marker.knows:
            log.note(f"nobody knows the right answers (no column {cfg.answer.column!r}, no judge): the run answers and "
                     "cannot say how well")

        # Search: batch by batch, each written down when it is whole.
        found = _kept(cfg, len(rows)) if log.resumed else _none_kept(cfg)
        tools = _tools(cfg, words, marker) if len(found) < len(rows) else None
        progress, clock = log.bar(len(rows), len(found)), Clock()
        while tools is not None and len(found) < len(rows):
            if log.stop_requested():
                log.stop(len(found))
            made = _searched(cfg, tools, rows[len(found) : len(found) + cfg.batch])
            _append(cfg.out / CANDIDATES, made)
            found += made
            log.time(len(found), clock.lap({"prompts": len(made)}))
            progress.reach(len(found))

        # Count.
        answers = [(row.record, answer) for row, one in zip(rows, found, strict=True)
                   for answer in _answers(cfg, row.record, one)]
        runs.write_rows(cfg.out / ANSWERS, [answer for _, answer in answers])
        runs.write_rows(cfg.out / SOLUTIONS, [_shown(*each) for each in answers])
        table = _table(cfg, found) if marker.knows else []
        print("\n".join(map(_line, table)))
        return log.finish({"table": table, "n_prompts": len(rows), "cost": _cost(cfg, found),
                           "skipped": {"records": report.n_dropped} | vars(cut)})


def _template(spec: FrozenModelConfig) -> Template:
    return template(load_tokenizer(spec.path, trust_remote_code=spec.trust_remote_code))


def _tools(cfg: ProcessSearchConfig, words: Template, marker: Marker) -> _Tools:
    writer = StepWriter(causal_lm(cfg.policy.whole), words, cfg.sampling, cfg.separator, cfg.seed)
    process = StepScorer(process_model(cfg.process_model.whole), _template(cfg.process_model), cfg.separator,
                         cfg.micro_tokens, policys=words)
    outcome = None if cfg.outcome_model is None else Scorer(
        scalar_model(cfg.outcome_model.whole), _template(cfg.outcome_model), words, cfg.micro_tokens)
    return _Tools(writer, process, outcome, marker)


# --- search ----------------------------------------------------------------------------------------------------------


def _searched(cfg: ProcessSearchConfig, tools: _Tools, rows: Sequence[PromptRow]) -> list[dict[str, Any]]:
    """Rows of candidates.jsonl: for each prompt all n solutions, and the one that the beam came to."""
    found: list[dict[str, Any]] = [{"id": row.record_id} for row in rows]
    if "best_of_n" in cfg.methods:
        for row, own in zip(found, _best_of_n(cfg, tools, rows), strict=True):
            row |= {"solutions": [asdict(one) for one in own]}
    if "beam" in cfg.methods:
        for row, (one, n_sampled) in zip(found, _beam(cfg, tools, rows), strict=True):
            row |= {"beam": asdict(one), "n_sampled": n_sampled}
    return found


def _best_of_n(cfg: ProcessSearchConfig, tools: _Tools, rows: Sequence[PromptRow]) -> list[list[Solution]]:
    responses = _solutions(cfg, tools.writer, rows)
    ended, tokens = responses.rollout.ended.tolist(), responses.rollout.tokens
    said = [ids[mask].tolist() for ids, mask in zip(tokens.ids.cpu(), tokens.response_mask.cpu(), strict=True)]
    told = _judged(tools, [Draft(row, (), tuple(ids), text, whole) for row, ids, text, whole in zip(
        [row for row in rows for _ in range(cfg.n)], said, responses.texts, ended, strict=True)])
    scores = scores_of_steps([one.probabilities for one in told], cfg.aggregate)
    outcomes = [None] * len(told) if tools.outcome is None else tools.outcome(responses).tolist()
    made = [_solution(tools.marker, prompt, (text, whole, len(ids)), steps, (score, outcome))
            for prompt, text, whole, ids, steps, score, outcome in zip(
                responses.prompts, responses.texts, ended, said, told, scores, outcomes, strict=True)]
    return [made[i : i + cfg.n] for i in range(0, len(made), cfg.n)]


def _solutions(cfg: ProcessSearchConfig, writer: StepWriter, rows: Sequence[PromptRow]) -> Responses:
    """n whole solutions to each prompt, each from its own stream."""
    asked = [(row, k) for row in rows for k in range(cfg.n)]
    rollout = sample(writer.policy, [row.ids for row, _ in asked], cfg.sampling,
                     [stream(cfg.seed, "solutions", row.record_id, k) for row, k in asked],
                     stop_ids=writer.words.stop_ids, pad_id=writer.words.pad_id,
                     record_ids=[row.record_id for row, _ in asked])
    tokens = zip(rollout.tokens.ids.cpu(), rollout.tokens.response_mask.cpu(), strict=True)
    texts = tuple(writer.words.decode(ids[mask].tolist()) for ids, mask in tokens)
    return Responses(rollout, tuple(row.record for row, _ in asked), texts)


def _judged(tools: _Tools, drafts: Sequence[Draft]) -> list[StepScored]:
    """What the process model says of the steps: of sampled tokens or, where its tokenizer differs, of their text."""
    writer, process = tools.writer, tools.process
    if not process.same_tokens:
        return process.of_texts([one.row.record for one in drafts], [one.text for one in drafts],
                                [one.ended for one in drafts])
    steps = [steps_of(writer.words, one.ids, writer.separator, ended=one.ended) for one in drafts]
    rows = [Row([*one.row.ids, *one.ids], one.row.n_prompt, one.row.record_id) for one in drafts]
    values = process.of_rows(rows, [one.ends for one in steps])
    return [StepScored(one.texts, told, one.unfinished) for one, told in zip(steps, values, strict=True)]


def _beam(cfg: ProcessSearchConfig, tools: _Tools, rows: Sequence[PromptRow]) -> list[tuple[Solution, int]]:
    """The solution that the search for each prompt ends with, and the tokens it took."""

    def judge(drafts: Sequence[Draft]) -> list[Candidate]:
        told = _judged(tools, drafts)
        scores = scores_of_steps([one.probabilities for one in told], cfg.aggregate)
        return [Candidate(one, steps, score) for one, steps, score in zip(drafts, told, scores, strict=True)]

    searched = beam_search(tools.writer, rows, judge, beams=cfg.beams, expand=cfg.expand, most_steps=cfg.most_steps)
    return [(_solution(tools.marker, row.record, (draft.text, draft.ended, len(draft.ids)), one.best.steps,
                       (one.best.score, None)), one.n_sampled)
            for row, one in zip(rows, searched, strict=True) for draft in [one.best.draft]]


def _solution(marker: Marker, prompt: Prompt, written: tuple[str, bool, int], steps: StepScored,
              scores: tuple[float, float | None]) -> Solution:
    text, ended, n_tokens = written
    score, outcome = scores
    return Solution(text, ended, n_tokens, list(steps.texts), steps.probabilities, steps.unfinished,
                    None if math.isnan(score) else score, outcome, marker.answer(text, ended),
                    marker.right(prompt, text, ended))


# --- files -----------------------------------------------------------------------------------------------------------


def _none_kept(cfg: ProcessSearchConfig) -> list[dict[str, Any]]:
    """Nothing: a run that begins anew in a folder leaves nothing there of one that failed."""
    (cfg.out / CANDIDATES).unlink(missing_ok=True)
    return []


def _kept(cfg: ProcessSearchConfig, n_rows: int) -> list[dict[str, Any]]:
    """What a killed run has written, as far as its batches are whole: a half one would be computed in other company,
    and rounding would differ."""
    file = cfg.out / CANDIDATES
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    n_whole = sum(line.endswith(b"\n") for line in lines)
    n_kept = n_whole if n_whole == n_rows else n_whole - n_whole % cfg.batch
    if lines:
        os.truncate(file, sum(map(len, lines[:n_kept])))
    return [json.loads(line) for line in lines[:n_kept]]


def _append(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with explained_disk_errors(file.parent), file.open("ab") as opened:
        opened.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        opened.flush()
        os.fsync(opened.fileno())


# --- count -----------------------------------------------------------------------------------------------------------


def _answers(cfg: ProcessSearchConfig, prompt: Prompt, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of answers.jsonl: the answer to one prompt by each method."""
    chosen = dict[str, Solution]()
    if "solutions" in found:
        own = [Solution(**one) for one in found["solutions"]]
        methods = ["process", *(["outcome"] if cfg.outcome_model is not None else []), *VOTES]
        chosen |= {method: pick(own, method, cfg.answer.compare) for method in methods}
    if "beam" in found:
        chosen["beam"] = Solution(**found["beam"])
    asked = [{"role": m.role, "content": m.content} for m in prompt.messages] or prompt.text
    return [{"id": prompt.id, "prompt": asked, "method": method, "response": one.text, "ended": one.ended,
             "steps": [[text, value] for text, value in zip(one.steps, one.probabilities, strict=True)],
             "unfinished": one.unfinished, "score": one.score, "answer": one.answer, "right": one.right}
            for method, one in chosen.items()]


def _shown(prompt: Prompt, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of solutions.jsonl, which the report colours. A step that was cut has no score."""
    steps = [text for text, _ in row["steps"]] + ([row["unfinished"]] if row["unfinished"] else [])
    right = None if row["right"] is None else row["right"] >= 0.5
    trace = StepTrace(prompt, tuple(steps), (None,) * len(steps), right)
    return solution_row(trace, [value for _, value in row["steps"]], method=row["method"])


def _table(cfg: ProcessSearchConfig, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each way of answering is worth and costs."""
    rows, alone = list[dict[str, Any]](), None
    if "best_of_n" in cfg.methods:
        solved = {row["id"]: [Solution(**one) for one in row["solutions"]] for row in found}
        rows += curve(solved, seed=cfg.seed, compare=cfg.answer.compare, n_subsets=cfg.subsets)
        alone = torch.tensor([sum(one.right or 0.0 for one in own) / cfg.n for own in solved.values()],
                             dtype=torch.float64)
    if "beam" in cfg.methods:
        told = torch.tensor([row["beam"]["right"] for row in found], dtype=torch.float64)
        gain = {} if alone is None else {"gain": summary(told - alone, cfg.seed, "gain", "beam")}
        rows.append({"method": "beam", "beams": cfg.beams, "expand": cfg.expand,
                     "accuracy": summary(told, cfg.seed, "beam"), **gain, "tokens": _mean(found, "n_sampled")})
    return rows


def _cost(cfg: ProcessSearchConfig, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tokens sampled per prompt, and the share of answers that were cut."""
    told = dict[str, Any]()
    if "best_of_n" in cfg.methods:
        solutions = [one for row in found for one in row["solutions"]]
        told["best_of_n"] = {"tokens": cfg.n * _mean(solutions, "n_tokens"), "cut_percent": _cut_percent(solutions)}
    if "beam" in cfg.methods:
        told["beam"] = {"tokens": _mean(found, "n_sampled"), "cut_percent": _cut_percent([r["beam"] for r in found])}
    return told


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _cut_percent(rows: Sequence[Mapping[str, Any]]) -> float:
    return 100 * sum(not row["ended"] for row in rows) / len(rows)


def _line(row: Mapping[str, Any]) -> str:
    how = f"{row['beams']} x {row['expand']}" if row["method"] == "beam" else f"of {row['n']}"
    told = row["accuracy"]
    return (f"{row['method']} {how}: right {100 * told['mean']:.1f}% [{100 * told['low']:.1f}, "
            f"{100 * told['high']:.1f}] over {told['n']} prompts, {row['tokens']:.0f} tokens each")
