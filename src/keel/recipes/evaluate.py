"""Several models side by side: what their answers to the same prompts are worth, how varied, how long, which is better.

Every model answers every prompt once, on the same random streams: models that differ little then answer alike, and the
difference between them shows on fewer prompts. (`keel win-rate` asks another question, how often an answer of one beats
an independent answer of the other, and so draws each side by itself.)

Left out: training, and choosing. A model that was chosen by these prompts is no longer measured by them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from keel import runs
from keel.bench.answers import Answer, answers_given, keep_answers, kept_answers, made_by
from keel.bench.entrants import NamedModel, NamedResponses, loaded_entrant
from keel.bench.intervals import intervals
from keel.bench.judge_calls import Watch
from keel.bench.overlap import Overlap, fresh_prompts
from keel.bench.response_judge import Bout, ResponseJudgeConfig, judged_bouts
from keel.bench.rewards import SequenceRewardConfig, SequenceRewards
from keel.bench.side_by_side import COPIED, LENGTHS, TOTAL, Contestant, sample_rows, side_by_side, subsets_of, table
from keel.config import Config
from keel.data.files import FileConfig
from keel.data.load import read_prompts, read_responses
from keel.data.records import Demonstration, Graded, Prompt
from keel.data.render import PromptRow, Row, Template, Truncation, render_demonstrations, render_prompts, template
from keel.errors import ConfigError, DataError, ModelError
from keel.models.identity import tokenizer_identity
from keel.models.load import FrozenModelConfig, check_context, load_tokenizer
from keel.named import named_function
from keel.rng import shuffled
from keel.rollout.respond import respond
from keel.rollout.sample import SamplingConfig
from keel.runs import Run, Stopped
from keel.train.frozen import FrozenNumbers, row_digest, row_numbers
from keel.train.inputs import prompt_room

__all__ = ["EvaluateConfig", "NamedModel", "NamedResponses", "run"]

REFERENCE = ""
"""The reference's name among those of the models, none of which is empty."""


class EvaluateConfig(Config):
    """Everything `keel evaluate` reads."""

    out: Path = Field(description="run folder to make; what each model says goes to samples.jsonl")
    models: tuple[NamedModel, ...] = Field(description="models that answer, each a path, or a table with name and path")
    prompts: FileConfig = Field(description="prompts that all answer; responses in the file are ignored")
    limit: int | None = Field(None, ge=1, description="answer this many prompts, drawn by the seed; none: all")
    written: tuple[NamedResponses, ...] = Field((), description="responses from files beside the models', such as "
                                                "people's: tables with name and path")
    reuse: tuple[Path, ...] = Field((), description="other runs of evaluate: what the same model said to the same "
                                    "prompts, sampled alike, is taken over")
    sampling: SamplingConfig = SamplingConfig()
    seed: int = Field(0, ge=0, description="fixes every response and every interval")
    baseline: str | None = Field(None, description="name of the model that differences are taken to; none: the first")
    rewards: tuple[SequenceRewardConfig, ...] = Field((), description="rewards of the responses; their weighted sum is "
                                                      "the total")
    beside: tuple[SequenceRewardConfig, ...] = Field((), description="rewards that are shown and tested, and no "
                                                     "part of the total")
    data: FileConfig | None = Field(None, description="responses whose log-probability is compared with the "
                                    "reference's; none: not compared")
    which: Literal["chosen", "all"] = Field("chosen", description="of data with several responses to a prompt, the "
                                            "best or all")
    reference: FrozenModelConfig | None = Field(None, description="model that the log-probability of data is compared "
                                                "with; none: the baseline")
    subset: str | None = Field(None, description="what the prompts' file says beside, for rows of their own; none: "
                               "subset, or else domain")
    overlap: Overlap = Field("note", description="prompts that a model was trained on or chosen by: counted and said, "
                             "left out for all, or an error")
    judge: ResponseJudgeConfig | None = Field(None, description="compares each model with the baseline")
    self_bleu_responses: int = Field(100, ge=2, description="responses that self-BLEU is computed on")
    micro_tokens: int = Field(8192, ge=1, description="token positions per forward pass over data")

    @model_validator(mode="after")
    def _check(self) -> "EvaluateConfig":
        names = self.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if not self.models:
            raise ValueError("models is empty: there is nothing to evaluate")
        if twice:
            raise ValueError(f"more than one model is called {twice[0]!r}: give each a name")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"baseline={self.baseline!r} is none of the models ({', '.join(names)})")
        named = [reward.name for reward in (*self.rewards, *self.beside)]
        taken = sorted({*named} & {TOTAL, *LENGTHS, *COPIED})
        if taken:
            raise ValueError(f"a reward cannot be called {taken[0]!r}: that is the name of another number")
        if self.beside and not self.rewards:
            raise ValueError("beside does nothing without rewards: a reward that is measured alone belongs there")
        both = sorted({one.name for one in self.rewards} & {one.name for one in self.beside})
        if both:
            raise ValueError(f"the reward {both[0]!r} is in rewards and in beside: it counts or it does not")
        if self.reference is not None and self.data is None:
            raise ValueError("reference does nothing without data: it is what the log-probability of data is compared "
                             "with")
        if self.data is not None and self.reference is None and self.base not in self.names[: len(self.models)]:
            raise ValueError(f"data is compared with a model, and the baseline {self.base!r} is a file: give reference")
        if self.judge is not None and len(names) < 2:
            raise ValueError("judge does nothing with one model: each of the others is compared with the baseline")
        return self

    @property
    def names(self) -> list[str]:
        """Of everything that is compared, the models first."""
        return [model.shown for model in self.models] + [one.name for one in self.written]

    @property
    def tested(self) -> list[str]:
        """Rewards whose differences get a p value. A single part of the total has that of the total."""
        parts = [one.name for one in self.rewards]
        return [TOTAL, *(parts if len(parts) > 1 else []), *(one.name for one in self.beside)]

    @property
    def base(self) -> str:
        """Name of the model that differences are taken to."""
        return self.baseline or self.models[0].shown


@dataclass(frozen=True)
class _Court:
    """What a judge said: who judged, and of each model and prompt the outcome by question; none where nobody asked."""

    about: Mapping[str, Any] | None
    outcomes: Mapping[str, tuple[Mapping[str, Any] | None, ...]]


def run(cfg: EvaluateConfig, *, resume: bool = False) -> runs.RunResult:
    """Write samples.jsonl and, in result.json, everything that is known of each model."""
    files = [Path(file.path) for file in (cfg.prompts, cfg.data, *cfg.written) if file is not None]
    with runs.start("evaluate", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        log.rewind({})
        # What can be wrong should not show after hours of answers.
        rewards, beside = _scorers(cfg.rewards, cfg.out), _scorers(cfg.beside, cfg.out / "beside")
        _require_answers(cfg.reuse)
        if cfg.judge is not None and cfg.judge.function is not None:
            named_function(cfg.judge.function, "judge.function")
        # Ask: the prompts that fit all models, of which it is said whose run has used them.
        words = {model.shown: _template(model) for model in cfg.models}
        records, report = read_prompts(cfg.prompts.path, on_bad_record=cfg.prompts.on_bad_record,
                                       as_text=cfg.prompts.as_text)
        records, seen = fresh_prompts(_drawn(records, cfg.limit, cfg.seed), {spec.shown: spec.folders for spec in
                                      cfg.models}, cfg.overlap, where=cfg.prompts.path, note=log.note)
        rows, skipped = _rows_of_all(cfg, words, records)
        prompts = [row.record for row in rows[cfg.names[0]]]
        subsets = subsets_of(prompts, cfg.subset)
        given = {one.name: _given(cfg, one, prompts, words[cfg.names[0]]) for one in cfg.written}
        data = {} if cfg.data is None else _data_rows(cfg, cfg.data, words)
        progress = log.bar(len(cfg.models) * len(prompts), 0)
        answers, logprobs = dict[str, list[Answer]](), dict[str, Tensor]()
        if cfg.reference is not None:
            spec = NamedModel(**cfg.reference.model_dump())
            logprobs[REFERENCE] = _logprobs(cfg, spec, *loaded_entrant(spec), data[REFERENCE])
        for i, spec in enumerate(cfg.models):
            model, identity = loaded_entrant(spec)
            if data:
                logprobs[spec.shown] = _logprobs(cfg, spec, model, identity, data[spec.shown])
            answers[spec.shown] = _answers(cfg, spec.shown, (model, identity, words[spec.shown]), rows[spec.shown],
                                           partial(_heed, log, progress.reach, i * len(prompts)))
            del model  # one at a time in memory
        # Measure: what every answer is worth, then which is better, then everything side by side.
        answers |= given
        parts = _rewarded(log, (rewards, beside), prompts, answers)
        court = _Court(None, {}) if cfg.judge is None else _judged(cfg, cfg.judge, log, (prompts, subsets), answers)
        told = [Contestant(name, tuple(own), parts[name], court.outcomes.get(name, ()))
                for name, own in answers.items()]
        found = side_by_side(told, prompts, subsets, baseline=cfg.base, seed=cfg.seed,
                             most_self_bleu=cfg.self_bleu_responses, tested=cfg.tested)
        for name, path in _paths(cfg).items():
            found[name] |= {"path": path, "seen": seen.get(name), "shift": _shift(cfg, data, logprobs, name)}
        log.sample(sample_rows(told, prompts, subsets))
        print(table(found))
        return log.finish({
            "baseline": cfg.base, "n": len(prompts), "models": found,
            "rewards": None if rewards is None else {"low": rewards.low, "high": rewards.high,
                                                     "weights": {one.name: one.weight for one in cfg.rewards},
                                                     "beside": [one.name for one in cfg.beside], "tested": cfg.tested},
            "judge": court.about, "skipped": {"records": report.n_dropped} | skipped})


def _scorers(specs: Sequence[SequenceRewardConfig], folder: Path) -> SequenceRewards | None:
    """What scores the responses. Grades that data hold are of other responses.

    Raises:
        ConfigError: one of them scores no new text.
    """
    if not specs:
        return None
    found = SequenceRewards([spec.model_copy(update={"stored": None}) for spec in specs], folder)
    found.require_new_text()
    return found


def _require_answers(reuse: Sequence[Path]) -> None:
    """Raises:
        ConfigError: a run whose answers are to be taken over has none.
    """
    for folder in reuse:
        if not (folder / "answers").is_dir():
            raise ConfigError(f"there are no answers to take over in {folder}", where="reuse",
                              remedy="Name folders of `keel evaluate`, in which there is one called answers.")


def _drawn(records: Sequence[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    """All, or as many as were asked for, in the order of the file, which may be sorted by topic."""
    return [records[i] for i in sorted(shuffled(len(records), seed, "limit")[:limit])]


def _template(spec: FrozenModelConfig) -> Template:
    return template(load_tokenizer(spec.path, trust_remote_code=spec.trust_remote_code))


def _rows_of_all(cfg: EvaluateConfig, words: Mapping[str, Template], records: list[Prompt],
                 ) -> tuple[dict[str, list[PromptRow]], dict[str, int]]:
    """Each model's tokens of the prompts that fit all; and what did not fit, of the model that lost most.

    Raises:
        DataError: no prompt fits all.
    """
    room = prompt_room(cfg.prompts, cfg.sampling.max_new_tokens)
    made = {name: render_prompts(own, records, room, cfg.prompts.too_long) for name, own in words.items()}
    fits = [frozenset(row.record.id for row in rows) for rows, _ in made.values()]
    shared = {name: [row for row in rows if all(row.record.id in ids for ids in fits)] for name, (rows, _) in
              made.items()}
    n, cuts = min(map(len, shared.values())), [cut for _, cut in made.values()]
    if not n:
        raise DataError("no prompt fits all models", where=cfg.prompts.path,
                        remedy="Raise prompts.max_length, choose another prompts.too_long, or evaluate fewer models.")
    return shared, vars(Truncation(len(records), max(cut.n_fewer_turns for cut in cuts),
                                   max(cut.n_cut for cut in cuts), len(records) - n, room))


def _answers(cfg: EvaluateConfig, name: str, who: tuple[nn.Module, Mapping[str, Any], Template],
             rows: Sequence[PromptRow], on_done: Callable[[int], None]) -> list[Answer]:
    """What a model says to every prompt: as it is kept, or sampled and kept."""
    model, identity, words = who
    origin = made_by(dict(identity), tokenizer_identity(words.tokenizer), cfg.sampling.model_dump(mode="json"),
                     cfg.seed, [[row.record.id, row.ids] for row in rows])
    found = kept_answers([folder / "answers" for folder in (cfg.out, *cfg.reuse)], origin)
    if found is not None:
        on_done(len(found))
        keep_answers(cfg.out / "answers" / f"{name}.jsonl", origin, found)
        return found
    said = respond(model, words, rows, cfg.sampling, seed=cfg.seed, names=["evaluate"], on_done=on_done)
    lengths, ended = said.rollout.tokens.response_mask.sum(1).tolist(), said.rollout.ended.tolist()
    found = [Answer(prompt.id, text, whole, n) for prompt, text, whole, n in
             zip(said.prompts, said.texts, ended, lengths, strict=True)]
    keep_answers(cfg.out / "answers" / f"{name}.jsonl", origin, found)
    return found


def _given(cfg: EvaluateConfig, file: NamedResponses, prompts: Sequence[Prompt], words: Template) -> list[Answer]:
    """What a file holds as answers; tokens are counted as those of the first model."""
    told, _ = read_responses(file.path, which="chosen", on_bad_record=cfg.prompts.on_bad_record,
                             as_text=cfg.prompts.as_text)
    return answers_given(told, prompts, lambda prompt, text: len(words.response_ids(text, after=prompt.text)),
                         file.path)


def _paths(cfg: EvaluateConfig) -> dict[str, str]:
    """Where everything that is compared comes from."""
    return {model.shown: model.adapter or model.path for model in cfg.models} | {
        one.name: one.path for one in cfg.written}


def _heed(log: Run, reach: Callable[[int], None], before: int, done: int) -> None:
    reach(before + done)
    if log.stop_requested():
        raise Stopped("stopped while models answered; those that were done are kept", where=str(log.folder),
                      remedy="--resume asks the others.")


def _data_rows(cfg: EvaluateConfig, file: FileConfig, words: Mapping[str, Template],
               ) -> dict[str, list[tuple[Prompt, Row]]]:
    """The responses of the data as each model reads them, and the reference.

    Raises:
        ConfigError: two of them read other tokens, so that sums of their log-probabilities say nothing together.
    """
    told, _ = read_responses(file.path, which=cfg.which, on_bad_record=file.on_bad_record, as_text=file.as_text)
    prompts = {one.id: one.prompt for one in told}
    demonstrations = [Demonstration(one.prompt, one.response) for one in told]
    several = dict(words) if cfg.reference is None else words | {REFERENCE: _template(cfg.reference)}
    found = {name: render_demonstrations(own, demonstrations, file.max_length, file.too_long)[0]
             for name, own in several.items()}
    one = cfg.names[0]
    for name, rows in found.items():
        if [row_digest(row) for row in rows] != [row_digest(row) for row in found[one]]:
            raise ConfigError(f"{name or 'the reference'} reads the data as other tokens than {one}", where="data",
                              remedy="S - Q compares models of one tokenizer and template; leave data out, or evaluate "
                                     "the others by themselves.")
    return {name: [(prompts[row.record_id], row) for row in rows] for name, rows in found.items()}


def _logprobs(cfg: EvaluateConfig, spec: NamedModel, model: nn.Module, identity: Mapping[str, Any],
              rows: Sequence[tuple[Prompt, Row]]) -> Tensor:
    """Summed log-probability of each response of the data, in nats; kept in the run folder.

    Raises:
        ModelError: a row is longer than the model's context.
    """
    own = [row for _, row in rows]
    try:
        check_context(model, max((row.n_tokens for row in own), default=0))
    except ModelError as error:
        raise ModelError(f"the data do not fit this model: {error.what}", where=spec.path,
                         remedy=error.remedy) from error
    found, _ = FrozenNumbers(cfg.out / "logprobs", identity).fill(
        [row_digest(row) for row in own], row_numbers(model, own, pad_id=0, micro_tokens=cfg.micro_tokens),
        [row.record_id for row in own])
    return torch.tensor([float(x.sum(dtype="float64")) for x in found], dtype=torch.float64)


def _shift(cfg: EvaluateConfig, data: Mapping[str, list[tuple[Prompt, Row]]], logprobs: Mapping[str, Tensor],
           name: str) -> dict[str, Any] | None:
    """S - Q on the data: by how many nats the model finds a response more probable than the reference does."""
    if name not in logprobs:
        return None
    gap = logprobs[name] - logprobs[cfg.base if cfg.reference is None else REFERENCE]
    n_tokens = torch.tensor([row.n_tokens - row.n_prompt for _, row in data[name]], dtype=torch.float64)
    return intervals({"per_response": gap, "per_token": gap / n_tokens}, [prompt for prompt, _ in data[name]],
                     seed=cfg.seed, names=["shift"])


def _rewarded(log: Run, scorers: tuple[SequenceRewards | None, SequenceRewards | None], prompts: Sequence[Prompt],
              answers: Mapping[str, Sequence[Answer]]) -> dict[str, dict[str, Tensor]]:
    """Of each model the total, its parts and the rewards beside it; scores are kept, equal answers are scored once."""
    both = [(prompt, one) for own in answers.values() for prompt, one in zip(prompts, own, strict=True)]
    told, ended = [Graded(prompt, one.text, {}) for prompt, one in both], [one.ended for _, one in both]

    def on_done(done: int, total: int) -> None:
        if log.stop_requested():
            raise Stopped(f"stopped after {done} of {total} scores; every one of them is kept", where=str(log.folder),
                          remedy="--resume scores the rest.")

    columns = dict[str, Tensor]()
    for rewards in scorers:
        if rewards is not None:
            found = rewards.of_data(told, on_done, ended)
            columns |= found.parts if columns else {TOTAL: found.total, **found.parts}
            for note in rewards.notes:
                log.note(note)
    n = len(prompts)
    return {name: {key: x[i * n : (i + 1) * n] for key, x in columns.items()} for i, name in enumerate(answers)}


def _judged(cfg: EvaluateConfig, judge: ResponseJudgeConfig, log: Run,
            asked: tuple[Sequence[Prompt], Sequence[str | None]], answers: Mapping[str, Sequence[Answer]]) -> _Court:
    """Each model against the baseline, on prompts of each subset drawn by the seed: a file may be sorted by topic."""
    prompts, subsets = asked
    n_before, places = Counter[str | None](), list[int]()
    for i in shuffled(len(prompts), cfg.seed, "judge"):
        if judge.per_subset is None or n_before[subsets[i]] < judge.per_subset:
            places.append(i)
        n_before[subsets[i]] += 1
    places.sort()
    others = [name for name in answers if name != cfg.base]
    bouts = [Bout(prompts[i], answers[name][i].text, answers[cfg.base][i].text) for name in others for i in places]
    told = judged_bouts(judge, bouts, cfg.out, seed=cfg.seed, watch=Watch(stop=log.stop_requested))
    found = {name: dict(zip(places, told.outcomes[k * len(places):], strict=False)) for k, name in enumerate(others)}
    return _Court(told.about, {name: tuple(own.get(i) for i in range(len(prompts))) for name, own in found.items()})
