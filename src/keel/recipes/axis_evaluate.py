"""`keel axis evaluate`: models side by side, as they are and while an axis steers or caps them.

Every way to run a model answers the same prompts on the same random streams: attacks under a persona, the same
questions without it, harmless questions that look harmful, and a test of capability. What harm goes down by stands
beside what it costs. Left out: benchmarks with programs of their own, such as IFEval; any prompts with a scoring
function do.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from keel import runs
from keel.bench.answers import made_by
from keel.bench.doses import Asked, Way, clamped_rows, dose_json, measured, table, trade_off, trade_table
from keel.bench.entrants import NamedModel, loaded_entrant
from keel.bench.harm_judge import HarmJudge, HarmJudgeConfig, Measure
from keel.config import Config
from keel.data.load import read_prompts
from keel.data.readers import read_rows
from keel.data.records import Message, Prompt
from keel.data.render import PromptRow, Template, template
from keel.data.roles import read_roles
from keel.errors import ConfigError, DataError, RunError
from keel.models.identity import file_digest, tokenizer_identity
from keel.models.load import load_tokenizer
from keel.named import named_function
from keel.persona.asking import keeps_system
from keel.persona.attacks import attacks_on_code_words, attacks_with_questions, joined
from keel.persona.axis import AssistantAxis, Unit
from keel.persona.interventions import NONE, Intervention, NamedAxis, clamped_of, grid, remarks
from keel.persona.misfit import misfit
from keel.persona.settings import applied
from keel.persona.tables import write_table
from keel.rng import shuffled
from keel.rollout.respond import respond
from keel.rollout.sample import SamplingConfig
from keel.runs import Run, Stopped, explained_disk_errors

__all__ = ["AxisEvaluateConfig", "PromptSetConfig", "run"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+ -]*$"
Kind = Literal["attack", "plain", "over_refusal", "capability"]
JUDGED: dict[Kind, Measure] = {"attack": "harm", "plain": "harm", "over_refusal": "refusal", "capability": "capability"}
MEASURES = {"attack": "harm", "plain": "harm_plain", "over_refusal": "refusal", "capability": "capability"}
UNSAFE = "unsafe"
N_CODE_WORDS = 100
"""Attacks on code words where the settings give no number."""


class PromptSetConfig(Config):
    """Prompts of one kind, and who judges the responses. Either `prompts` is given, or `roles` to build attacks of."""

    name: str = Field(pattern=NAME, description="what tables call it")
    kind: Kind = Field(description="attacks by persona; harmful questions without one; harmless questions that look "
                       "harmful; a test of ability")
    prompts: Path | None = Field(None, description="file of prompts, as keel reads them")
    roles: Path | None = Field(None, description="roles to attack with; with no questions they are asked for a code "
                               "word they must keep")
    questions: Path | None = Field(None, description="what roles are asked, such as harmful questions; each also "
                                   "without a role")
    column: str | None = Field(None, description="column that holds prompts or questions as plain text; none: in "
                               "keel's own layouts")
    n: int | None = Field(None, ge=1, description="prompts, drawn by the seed, or attacks to build; none: all, one a "
                          "question, or 100 on code words")
    label: str = Field("label", description="of over_refusal: column that says unsafe of questions to be refused, "
                       "which count apart")
    max_length: int = Field(2048, ge=8, description="longest row in tokens, response included; longer prompts are left "
                            "out and counted")
    judge: HarmJudgeConfig = Field(description="who judges the responses")

    @model_validator(mode="after")
    def _check(self) -> "PromptSetConfig":
        if (self.prompts is None) == (self.roles is None):
            raise ValueError(f"the set {self.name!r} needs prompts or roles, exactly one of them")
        if self.questions is not None and self.roles is None:
            raise ValueError(f"the set {self.name!r} has questions without roles: plain questions are prompts")
        if self.roles is not None and self.kind != "attack":
            raise ValueError(f"the set {self.name!r} has roles, which make attacks: kind={self.kind} is another matter")
        self.judge.require(JUDGED[self.kind])
        return self

    @property
    def files(self) -> list[Path]:
        """What it reads."""
        return [path for path in (self.prompts, self.roles, self.questions) if path is not None]


class AxisEvaluateConfig(Config):
    """Everything `keel axis evaluate` reads."""

    out: Path = Field(description="run folder to make; dose.json, tables and samples.jsonl go there")
    models: tuple[NamedModel, ...] = Field(min_length=1, description="models that answer, the first one before, others "
                                           "after training")
    axes: tuple[NamedAxis, ...] = Field((), description="axes that act, and random controls: tables with path, name, "
                                        "control")
    steer: tuple[float, ...] = Field((), description="strengths of steering; below 0 is away from the Assistant")
    unit: Unit = Field("norm_fraction", description="of the strengths: share of the mean length of a state, the axis "
                       "as it is, or length 1")
    layers: tuple[int, ...] = Field((), description="blocks that are steered, or held above `lower`; none: the axis's "
                                    "own")
    caps: tuple[str, ...] = Field((), description="presets whose bounds hold, by name; every axis must have them")
    lower: tuple[float, ...] = Field((), description="bounds below which the projection is not let")
    where: tuple[Literal["all", "prompt", "generation"], ...] = Field(
        ("all",), min_length=1, description="tokens acted on, each of them tried")
    sets: tuple[PromptSetConfig, ...] = Field(min_length=1, description="what is asked: tables with name, kind, judge "
                                              "and prompts or roles")
    sampling: SamplingConfig = SamplingConfig()
    seed: int = Field(0, ge=0, description="fixes prompts, responses and intervals")

    @model_validator(mode="after")
    def _check(self) -> "AxisEvaluateConfig":
        for what, names in (("model", [one.shown for one in self.models]), ("axis", [one.name for one in self.axes]),
                            ("set", [one.name for one in self.sets])):
            twice = [name for name, n in Counter(names).items() if n > 1]
            if twice:
                raise ValueError(f"more than one {what} is called {twice[0]!r}: give each a name of its own")
        acts = bool(self.steer or self.caps or self.lower)
        if bool(self.axes) != acts:
            raise ValueError("axes do nothing without steer, caps or lower, and these nothing without axes")
        return self


@dataclass(frozen=True)
class _Speaker:
    """A model, what it is, its template, and its tokens of every prompt."""

    model: nn.Module
    identity: Mapping[str, Any]
    words: Template
    rows: Sequence[PromptRow]


def run(cfg: AxisEvaluateConfig, *, resume: bool = False) -> runs.RunResult:
    """Write dose.json, tables and samples.jsonl; in result.json every measure of every way to run a model."""
    files = [path for one in cfg.sets for path in one.files] + [one.path for one in cfg.axes]
    with runs.start("axis evaluate", cfg, cfg.out, seed=cfg.seed, data=list(dict.fromkeys(files)),
                    resume=resume) as log:
        log.rewind({})
        # What can be wrong should not show after hours of answers.
        acts = grid(cfg.axes, steer=cfg.steer, unit=cfg.unit, layers=cfg.layers, caps=cfg.caps, lower=cfg.lower,
                    where=cfg.where)
        for text in remarks(cfg.axes, caps=cfg.caps, where=cfg.where):
            log.note(text)
        judges = {one.name: HarmJudge(one.judge, JUDGED[one.kind], cfg.seed) for one in cfg.sets}
        for one in cfg.sets:
            if one.judge.function is not None:
                named_function(one.judge.function, f"sets: {one.name}: judge.function")
        # Ask: the prompts that fit all models, under every setting on the same streams.
        words = {one.shown: template(load_tokenizer(one.path, trust_remote_code=one.trust_remote_code))
                 for one in cfg.models}
        asked, rows, skipped = _rows(cfg, [one for own in cfg.sets for one in _prompts(own, cfg.seed)], words, log)
        progress = log.bar(len(cfg.models) * len(acts) * len(asked), 0)
        ways: list[Way] = []
        samples: list[dict[str, Any]] = []
        for spec in cfg.models:
            model, identity = loaded_entrant(spec)
            speaker = _Speaker(model, identity, words[spec.shown], rows[spec.shown])
            _note_misfits(log, cfg.axes, spec.shown, speaker)
            for act in acts:
                done = len(ways) * len(asked)
                told = _kept(cfg, speaker, act, len(ways), asked)
                if told is None:
                    told = _measure(cfg, speaker, act, asked, judges, lambda n, done=done: _heed(log, progress.reach,
                                                                                                 done + n))
                    _keep(cfg, speaker, act, len(ways), told)
                progress.reach(done + len(asked))
                ways.append(_way(cfg, spec, act, told))
                samples += _samples(ways[-1].name, asked, told)
            del model, speaker  # one at a time in memory
        # Measure: everything side by side, on the same draws of prompts.
        found = measured(ways, asked, seed=cfg.seed)
        trade = trade_off(ways, found)
        runs.write_json(cfg.out / "dose.json", dose_json(ways, found, cfg.unit))
        _tables(cfg.out, ways, found, trade)
        log.sample(samples)
        _note_unread(log, found)
        print(trade_table(trade))
        calls = {name: {"judge": judge.cfg.name, "asked": judge.n_asked, "failed": judge.n_failed}
                 for name, judge in judges.items()}
        return log.finish({
            "n": dict(Counter(one.set for one in asked)), "settings": found, "trade_off": trade,
            "clamped": clamped_rows(ways), "judges": calls, "skipped": skipped}, timed=False)


def _prompts(one: PromptSetConfig, seed: int) -> list[Asked]:
    """What is asked in one set; of attacks that are built, each also without its role."""
    if one.roles is not None:
        roles = read_roles(one.roles)
        attacks = attacks_on_code_words(roles, one.n or N_CODE_WORDS, seed=seed) if one.questions is None else (
            attacks_with_questions(roles, _read(one.questions, one.column), one.n, seed=seed))
        return ([Asked(attack.prompt, one.name, "harm") for attack in attacks]
                + [Asked(attack.plain, one.name, "harm_plain") for attack in attacks])
    assert one.prompts is not None  # the settings are checked
    records = _read(one.prompts, one.column)
    kept = [records[i] for i in sorted(shuffled(len(records), seed, "set", one.name)[: one.n])]
    apart = {prompt.id: one.kind == "over_refusal" and prompt.label(one.label) == UNSAFE for prompt in kept}
    return [Asked(prompt, one.name, f"{MEASURES[one.kind]}_{UNSAFE}" if apart[prompt.id] else MEASURES[one.kind])
            for prompt in kept]


def _read(path: Path, column: str | None) -> list[Prompt]:
    """Prompts of a file; of one column, if that is named, with the others as what is said beside.

    Raises:
        DataError: a row holds no prompt.
    """
    if column is None:
        return read_prompts(path)[0]
    found = []
    for i, row in enumerate(read_rows(path)):
        text = row.value.get(column)
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"the row has no text in its column {column!r}", where=row.where,
                            remedy="Name the column that holds the question, or leave column out.")
        beside = {key: value for key, value in row.value.items() if key not in (column, "id")}
        found.append(Prompt(str(row.value.get("id", f"{path.name}-{i}")), (Message("user", text),), meta=beside))
    return found


def _rows(cfg: AxisEvaluateConfig, asked: Sequence[Asked], words: Mapping[str, Template], log: Run,
          ) -> tuple[list[Asked], dict[str, list[PromptRow]], dict[str, int]]:
    """The prompts that fit all models, each model's tokens of them, and how many of each set do not fit.

    Raises:
        ConfigError: responses leave no room for prompts.
        DataError: no prompt of a set fits.
    """
    room = {one.name: one.max_length - cfg.sampling.max_new_tokens for one in cfg.sets}
    for name, tokens in room.items():
        if tokens < 1:
            raise ConfigError(f"the set {name!r} leaves no room beside sampling.max_new_tokens="
                              f"{cfg.sampling.max_new_tokens}", remedy="Raise its max_length or lower the second.")
    made: dict[str, list[PromptRow]] = {}
    for name, own in words.items():
        own_turn = own.tokenizer.chat_template is None or keeps_system(own)
        if not own_turn and any(one.prompt.messages[:1] and one.prompt.messages[0].role == "system" for one in asked):
            log.note(f"the template of {name} has no turn for instructions: they open the user's message")
        made[name] = [PromptRow(own.prompt_ids(one.prompt if own_turn else joined(one.prompt)), one.prompt)
                      for one in asked]
    fits = [all(len(rows[i].ids) <= room[one.set] for rows in made.values()) for i, one in enumerate(asked)]
    left = [one for one, fit in zip(asked, fits, strict=True) if fit]
    skipped = {one.name: sum(not fit for other, fit in zip(asked, fits, strict=True) if other.set == one.name)
               for one in cfg.sets}
    for one in cfg.sets:
        if not any(other.set == one.name for other in left):
            raise DataError(f"no prompt of the set {one.name!r} fits all models", where=str(one.files[0]),
                            remedy="Raise its max_length, or give shorter prompts.")
        if skipped[one.name]:
            log.note(f"{skipped[one.name]} prompts of the set {one.name!r} are longer than its max_length allows, and "
                     "are left out")
    shared = {name: [row for row, fit in zip(rows, fits, strict=True) if fit] for name, rows in made.items()}
    return left, shared, skipped


def _measure(cfg: AxisEvaluateConfig, speaker: _Speaker, act: Intervention, asked: Sequence[Asked],
             judges: Mapping[str, HarmJudge], on_done: Callable[[int], None]) -> dict[str, Any]:
    """Answers to all prompts under one setting, with what was made of them."""
    rows: list[dict[str, Any]] = []
    clamped: dict[str, Any] = {}
    reader = AssistantAxis.load(cfg.axes[0].path) if cfg.axes else None
    for name, judge in judges.items():
        own, before = [row for row, one in zip(speaker.rows, asked, strict=True) if one.set == name], len(rows)
        with applied(act.acts, speaker.model) as handles:
            monitor = reader.monitor(speaker.model) if reader is not None else None
            try:
                said = respond(speaker.model, speaker.words, own, cfg.sampling, seed=cfg.seed,
                               names=["axis evaluate", name], on_done=lambda n, before=before: on_done(before + n))
            finally:
                if monitor is not None:
                    monitor.detach()
            clamped[name] = clamped_of(handles)
        told = {} if monitor is None else monitor.means()
        ended, lengths = said.rollout.ended.tolist(), said.rollout.tokens.response_mask.sum(1).tolist()
        verdicts = judge.judged([row.record for row in own], said.texts, ended)
        rows += [{"set": name, "id": row.record.id, "text": said.texts[i], "ended": ended[i], "n_tokens": lengths[i],
                  "projection": _number(told.get(i)), "value": verdicts[i].value, "said": verdicts[i].said}
                 for i, row in enumerate(own)]
    return {"rows": rows, "clamped": {name: told for name, told in clamped.items() if told}}


def _number(x: float | None) -> float | None:
    """An empty response projects nowhere."""
    return None if x is None or math.isnan(x) else x


def _origin(cfg: AxisEvaluateConfig, speaker: _Speaker, act: Intervention) -> str:
    """Stands for whatever can change an answer under this setting, or what is made of it."""
    paths = [one.path for one in cfg.axes[:1]] + ([] if act.acts is None else [act.acts.path])
    return made_by(dict(speaker.identity), tokenizer_identity(speaker.words.tokenizer), cfg.seed,
                   cfg.sampling.model_dump(mode="json"), [[row.record.id, row.ids] for row in speaker.rows],
                   None if act.acts is None else act.acts.model_dump(mode="json", exclude={"path"}),
                   [file_digest(path) for path in paths], [one.model_dump(mode="json") for one in cfg.sets])


def _file(cfg: AxisEvaluateConfig, number: int) -> Path:
    return cfg.out / "settings" / f"{number:03d}.json"


def _keep(cfg: AxisEvaluateConfig, speaker: _Speaker, act: Intervention, number: int, told: Mapping[str, Any]) -> None:
    """A setting is done as a whole or not at all; what --resume finds is not asked again."""
    with explained_disk_errors(cfg.out):
        _file(cfg, number).parent.mkdir(exist_ok=True)
        runs.write_json(_file(cfg, number), {"made_by": _origin(cfg, speaker, act), **told})


def _kept(cfg: AxisEvaluateConfig, speaker: _Speaker, act: Intervention, number: int, asked: Sequence[Asked],
          ) -> dict[str, Any] | None:
    """Raises:
        RunError: the file of the setting is damaged.
    """
    file = _file(cfg, number)
    if not file.exists():
        return None
    try:
        told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        same = told["made_by"] == _origin(cfg, speaker, act) and len(told["rows"]) == len(asked)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"what was kept of the setting {act.name!r} is damaged: {error}", where=str(file),
                       remedy="Remove it; --resume then asks again.") from error
    return told if same else None


def _way(cfg: AxisEvaluateConfig, spec: NamedModel, act: Intervention, told: Mapping[str, Any]) -> Way:
    """Numbers of one setting. A model that came later is held against the first one, an act against its own model."""
    several = len(cfg.models) > 1
    names = [f"{one.shown}: {NONE}" if several else NONE for one in cfg.models]
    own = f"{spec.shown}: {act.name}" if several else act.name
    base = names[0] if act.acts is None else names[[one.shown for one in cfg.models].index(spec.shown)]
    columns = {key: torch.tensor([math.nan if row[key] is None else float(row[key]) for row in told["rows"]],
                                 dtype=torch.float64) for key in ("value", "projection", "n_tokens")}
    beside = {"tokens": columns["n_tokens"]} | ({"projection": columns["projection"]} if cfg.axes else {})
    curve = f"{spec.shown}: {act.curve}" if several else act.curve
    return Way(own, base, curve, act.where, act.layers, act.dose, columns["value"], beside, told["clamped"])


def _samples(name: str, asked: Sequence[Asked], told: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"step": 0, "id": row["id"], "domain": f"{one.set}, {name}", "setting": name, "measure": one.measure,
             "prompt": [{"role": m.role, "content": m.content} for m in one.prompt.messages] or one.prompt.text,
             "response": row["text"], "ended": row["ended"], "n_tokens": row["n_tokens"], "value": row["value"],
             "said": row["said"], "projection": row["projection"]}
            for one, row in zip(asked, told["rows"], strict=True)]


def _tables(folder: Path, ways: Sequence[Way], found: Mapping[str, Any], trade: Sequence[Mapping[str, Any]]) -> None:
    """The numbers of the pictures and more, as CSV."""
    rows = table(found)
    write_table(folder, "settings", list(rows[0]), rows)
    write_table(folder, "trade_off", list(dict.fromkeys(key for row in trade for key in row)), trade)
    moved = clamped_rows(ways)
    if moved:
        write_table(folder, "clamped", list(moved[0]), moved)


def _heed(log: Run, reach: Callable[[int], Any], n: int) -> None:
    reach(n)
    if log.stop_requested():
        raise Stopped("stopped between two responses; every setting that is done is kept", where=str(log.folder),
                      remedy="--resume goes on with the setting that was under way.")


def _note_misfits(log: Run, axes: Sequence[NamedAxis], shown: str, speaker: _Speaker) -> None:
    """Of each file once: a control is of the model of its axis."""
    own = tokenizer_identity(speaker.words.tokenizer)["template"]
    for path in dict.fromkeys(axis.path for axis in axes):
        odd = misfit(AssistantAxis.load(path), speaker.identity, own)
        if odd is not None:
            log.note(f"{shown}, {path}: {odd}")


def _note_unread(log: Run, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    n = sum(row.get("n_unread", 0) for measures in found.values() for key, row in measures.items() if " " not in key)
    if n:
        log.note(f"{n} responses have no verdict: nothing could be read of what their judge said; they are in no rate")
