"""The Assistant Axis of a model: roles and questions asked, responses judged, states averaged, directions found.

States are read while responses are written, at every block, so nothing is computed twice and nothing is stored per
token. Left out: capping thresholds, which `keel axis calibrate` measures on a population that it names.
"""

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from keel import runs
from keel.bench.role_judge import Rated, RoleJudge, RoleJudgeConfig
from keel.config import Config
from keel.data.chat import Template, template
from keel.data.roles import Role, read_questions, read_roles, read_traits
from keel.errors import ConfigError, DataError, RunError
from keel.models.identity import model_identity, tokenizer_identity
from keel.models.load import FrozenModelConfig, causal_lm, load_tokenizer
from keel.models.residual import attach, n_blocks
from keel.persona.asking import Item, asked, keeps_system, role_units, short_name, trait_units
from keel.persona.extract import Heard, Listener, RoleSums, read_again, read_sums, sums_file
from keel.persona.files import AxisFile
from keel.persona.outcome import axis_of, summary_of, write_outcome
from keel.persona.published import write_published
from keel.persona.space import Rows, Scale, gathered, space_of
from keel.persona.stored import Stored, row_of, stored_units
from keel.rng import stream
from keel.rollout.sample import SamplingConfig, sample
from keel.runs import explained_disk_errors

__all__ = ["AxisExtractConfig", "run"]

SUMS, RESPONSES, PROGRESS = "sums", "responses.jsonl", "progress.json"
APART = 50
"""Points out of 100 by which the two responses of a trait's pair have to differ to count."""
OF_ASKING = ("roles", "questions")


class AxisExtractConfig(Config):
    """Everything `keel axis extract` reads."""

    out: Path = Field(description="run folder to make; the axis goes to axis.safetensors")
    model: FrozenModelConfig | None = Field(None, description="chat model whose axis is wanted")
    roles: Path | None = Field(None, description="roles with system prompts, the default among them: JSONL, or a "
                               "folder of the authors' files")
    questions: Path | None = Field(None, description="questions that all roles are asked; rows with a column question")
    traits: Path | None = Field(None, description="traits in pairs of system prompts, for their cosine with the axis")
    judge: RoleJudgeConfig | None = Field(None, description="who scores responses 0 to 3; none: all responses count")
    sampling: SamplingConfig = SamplingConfig(temperature=0.7, top_p=0.9, max_new_tokens=512)
    short_name: str | None = Field(None, description="stands for {model_name} in system prompts; none: from the "
                                   "model's folder")
    n_roles: int | None = Field(None, ge=1, description="first roles of the file beside the default; none: all")
    n_prompts: int | None = Field(None, ge=1, description="first system prompts of each role; none: all")
    n_questions: int | None = Field(None, ge=1, description="first questions of the file; none: all")
    n_traits: int | None = Field(None, ge=1, description="first traits of the file; none: all")
    responses: Path | None = Field(None, description="read these responses in place of sampling: a responses.jsonl, "
                                   "or the authors' folder; with a judge they are scored anew")
    batch: int = Field(256, ge=2, description="responses between two saves; memory holds batch x blocks x width "
                       "numbers")
    micro_tokens: int = Field(8192, ge=1, description="token positions per pass over stored responses")
    min_count: int = Field(10, ge=1, description="responses that a role vector needs; 10 in the paper, 50 in its code")
    layer: int | None = Field(None, ge=0, description="block of the persona space, from 0; none: blocks // 2")
    rows: Rows = Field("fully_and_somewhat", description="role vectors that span the persona space")
    scale: Scale = Field("as_is", description="whether centred role vectors count at their length or at length 1")
    shard: str | None = Field(None, pattern=r"^[1-9][0-9]*/[1-9][0-9]*$", description="part of the work, such as 2/8; "
                              "leaves sums that merge takes")
    merge: tuple[Path, ...] = Field((), description="run folders of all shards, to be made one axis; or one run, to "
                                    "conclude anew")
    authors_files: bool = Field(False, description="also write the authors' layout, to the folder published")
    seed: int = Field(0, ge=0, description="fixes every response")

    @model_validator(mode="after")
    def _check(self) -> "AxisExtractConfig":
        if self.merge and (self.shard or self.model or self.responses or self.layer is not None):
            raise ValueError("merge excludes shard, model, responses and layer: the parts say what was asked of whom")
        if not self.merge and self.model is None:
            raise ValueError("model is needed, unless merge names the folders of shards")
        if not self.merge and self.responses is None and (self.roles is None or self.questions is None):
            raise ValueError("roles and questions are needed, unless responses are given or shards merged")
        if self.responses is not None and (self.traits or self.questions):
            raise ValueError("responses excludes questions and traits: what is stored was asked already")
        if self.shard is not None and not 0 < self.part[0] <= self.part[1]:
            raise ValueError(f"shard={self.shard} is no part of {self.part[1]}: count from 1")
        return self

    @property
    def part(self) -> tuple[int, int]:
        """Which shard this is, of how many."""
        k, _, n = (self.shard or "1/1").partition("/")
        return int(k), int(n)

    @property
    def alike(self) -> dict[str, Any]:
        """What the shards of one extraction have in common."""
        own = ("out", "shard", "merge", "authors_files", "rows", "scale", "min_count")
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in own}


@dataclass(frozen=True)
class Said:
    """A batch of responses, and what was heard of them."""

    items: list[Item]
    texts: list[str]
    ended: list[bool]
    heard: Heard
    scores: list[int | None]
    judged: list[bool]


@dataclass(frozen=True)
class Speaker:
    """The model that answers, its template, and whether system messages have a turn in that."""

    model: nn.Module
    words: Template
    own_turn: bool


def run(cfg: AxisExtractConfig, *, resume: bool = False) -> runs.RunResult:
    """Leave axis.safetensors, responses.jsonl, space.json and its tables; of a shard, the sums of its part."""
    files = [path for path in (cfg.roles, cfg.questions, cfg.traits, cfg.responses) if path is not None]
    with runs.start("axis extract", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        _require_fresh(cfg.out, resume)
        told = merged(cfg) if cfg.merge else extracted(cfg, log)
        counts = told["counts"]
        if cfg.shard is not None:
            return log.finish({"shard": cfg.shard, **counts}, timed=False)
        # Conclude: the axis is the default's mean less the mean of the roles' vectors, at every block.
        sums = [read_sums(cfg.out / SUMS / name) for name in told["files"]]
        found = gathered(sums, min_count=cfg.min_count)
        space = space_of(found, told["layer"], rows=cfg.rows, scale=cfg.scale)
        axis = axis_of(found, space, told["about"] | {"min_count": str(cfg.min_count)})
        write_outcome(cfg.out, found, space, axis)
        if cfg.authors_files and not (cfg.out / "published").exists():
            write_published(cfg.out / "published", AxisFile(axis.vectors, axis.default_mean, axis.role_mean, axis.roles,
                                                            axis.traits, None, {}, {}), log.note)
        if found.few:
            log.note(f"{len(found.few)} roles have fewer than {cfg.min_count} responses that play them, and are left "
                     f"out: {', '.join(found.few[:8])}{' ...' * (len(found.few) > 8)}")
        return log.finish({**counts, **summary_of(found, space)}, timed=False)


def extracted(cfg: AxisExtractConfig, log: runs.Run) -> dict[str, Any]:
    """Ask, or read what was said; judge; add to the sums. What is done is in the folder after every batch."""
    assert cfg.model is not None  # the settings are checked
    words = template(load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code))
    own_turn = keeps_system(words)
    roles = read_roles(cfg.roles) if cfg.roles is not None else []
    _require_default(roles, cfg)
    model = causal_lm(cfg.model.whole)
    judge = RoleJudge(cfg.judge, cfg.seed) if cfg.judge is not None else None
    done = _restored(cfg, log)
    done["about"] |= {
        "model": cfg.model.path, "template_hash": tokenizer_identity(words.tokenizer)["template"],
        "model_identity": json.dumps(model_identity(cfg.model.whole, model)),
        "judge": judge.name if judge else "as stored" if cfg.responses else "none: all responses count",
        "system_turn": "own turn" if own_turn else "joined with the question by a blank line: the template takes none"}
    speaker = Speaker(model, words, own_turn)
    done["layer"] = _layer(cfg, n_blocks(model))
    open_sums: dict[tuple[str, str], RoleSums] = {}
    progress = log.bar(sum(len(unit) for unit in _part(cfg, roles, own_turn)), done["counts"]["n_responses"])
    for number, batch in enumerate(batches(_part(cfg, roles, own_turn), cfg.batch), start=1):
        if number <= done["batches"]:
            continue
        said = spoken(cfg, speaker, batch) if cfg.responses is None else reread(cfg, speaker, batch)
        said = said if judge is None else judged(judge, said, own_turn)
        labels = labels_of(said, judge)
        open_sums = added(cfg.out / SUMS, said, labels, (number, done["layer"]), open_sums)
        log.log(number, numbers_of(said, labels), phase="extract")
        _save(cfg, log, done, said, number)
        progress.reach(done["counts"]["n_responses"])
        if log.stop_requested():
            log.stop(number)
    if not done["batches"]:
        raise DataError("there is nothing to extract from: no response in this part",
                        where=str(cfg.responses or cfg.out), remedy="Give more responses, or fewer shards.")
    done["complete"] = True
    runs.write_json(cfg.out / PROGRESS, done)
    return done


def _part(cfg: AxisExtractConfig, roles: Sequence[Role], own_turn: bool) -> Iterator[tuple[Any, ...]]:
    """The units of this shard, made as they are needed: items to ask, or responses that are stored."""
    units = asking(cfg, roles) if cfg.responses is None else stored_units(
        cfg.responses, {role.name: role for role in roles}, own_turn)
    return itertools.islice(units, cfg.part[0] - 1, None, cfg.part[1])


def asking(cfg: AxisExtractConfig, roles: Sequence[Role]) -> Iterator[tuple[Item, ...]]:
    """Everything that is asked, in order; what has to stay together is one tuple."""
    assert cfg.model is not None and cfg.questions is not None
    played = [role for role in roles if not role.is_default][: cfg.n_roles]
    questions = read_questions(cfg.questions)[: cfg.n_questions]
    name = cfg.short_name or short_name(cfg.model.path)
    yield from role_units([*played, *(role for role in roles if role.is_default)], questions, cfg.n_prompts, name)
    if cfg.traits is not None:
        yield from trait_units(read_traits(cfg.traits)[: cfg.n_traits], questions, cfg.n_prompts, name)


def batches(units: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[Any]]:
    """Units put together up to a size; a pair stays in one batch."""
    held: list[Any] = []
    for unit in units:
        if held and len(held) + len(unit) > size:
            yield held
            held = []
        held += unit
    if held:
        yield held


def spoken(cfg: AxisExtractConfig, speaker: Speaker, items: list[Item]) -> Said:
    """Responses written by keel's sampler, listened to on the way."""
    words, ids = speaker.words, [speaker.words.prompt_ids(asked(item, speaker.own_turn)) for item in items]
    listener = Listener(len(items), n_blocks(speaker.model))
    with attach(speaker.model, listener.taps):
        rollout = sample(speaker.model, ids, cfg.sampling, [stream(cfg.seed, "axis", item.id) for item in items],
                         stop_ids=words.stop_ids, pad_id=words.pad_id, record_ids=[item.id for item in items])
    written = zip(rollout.tokens.ids.cpu(), rollout.tokens.response_mask.cpu(), strict=True)
    texts = [words.decode(row[mask].tolist()) for row, mask in written]
    return Said(items, texts, rollout.ended.tolist(), listener.heard(), [None] * len(items), [False] * len(items))


def reread(cfg: AxisExtractConfig, speaker: Speaker, stored: list[Stored]) -> Said:
    """Responses that are there already, with the scores that they have."""
    said = [(speaker.words.prompt_ids(one.prompt), one.text, one.ended) for one in stored]
    heard = read_again(speaker.model, speaker.words, said, micro_tokens=cfg.micro_tokens)
    return Said([one.item for one in stored], [one.text for one in stored], [one.ended for one in stored], heard,
                [one.score for one in stored], [one.judged for one in stored])


def judged(judge: RoleJudge, said: Said, own_turn: bool) -> Said:
    """The same with a score each. The default is not judged, and neither are traits by a function."""
    wanted = [item.kind == "role" or (item.kind == "trait" and judge.scores_traits) for item in said.items]
    asked_of = [i for i, want in enumerate(wanted) if want]
    found = judge.scores([Rated(asked(said.items[i], own_turn), said.texts[i], said.ended[i], said.items[i].question,
                                said.items[i].eval_prompt, 100 if said.items[i].kind == "trait" else 3)
                          for i in asked_of])
    scores = dict(zip(asked_of, found, strict=True))
    return Said(said.items, said.texts, said.ended, said.heard, [scores.get(i) for i in range(len(wanted))], wanted)


def labels_of(said: Said, judge: RoleJudge | None) -> list[str]:
    """The bucket of each response, and the half of the questions that it belongs to."""
    found = []
    for i, item in enumerate(said.items):
        if item.kind == "trait":
            pair = i - item.against
            score, other = said.scores[pair], said.scores[pair + 1]
            apart = not said.judged[pair] or (score is not None and other is not None and score - other >= APART)
            name = ("against" if item.against else "for") if apart else "alike"
        elif item.kind == "default" or not said.judged[i]:
            name = "all"
        else:
            name = "unscored" if said.scores[i] is None else str(said.scores[i])
        found.append(f"{name}/{item.half}")
    return found


def added(folder: Path, said: Said, labels: Sequence[str], where: tuple[int, int],
          before: dict[tuple[str, str], RoleSums]) -> dict[tuple[str, str], RoleSums]:
    """Add a batch to the sums of its roles and save these; those that the batch left are let go of.

    `where`: the number of the batch, and the block at which some of the default's responses are kept.
    """
    now, (number, layer) = dict[tuple[str, str], RoleSums](), where
    for kind, name in dict.fromkeys((item.kind, item.role) for item in said.items):
        mine = [i for i, item in enumerate(said.items) if (item.kind, item.role) == (kind, name)]
        file = sums_file(folder, kind, name)
        sums = before.get((kind, name)) or (read_sums(file) if file.exists() else RoleSums(name, kind))
        if sums.through < number:  # after a kill a batch is done again, and some of its roles may have it already
            heard = said.heard.picked(mine)
            sums.add([labels[i] for i in mine], heard)
            if kind == "default":
                sums.keep([said.items[i].id for i in mine], heard, layer)
            sums.through = number
            sums.save(folder)
        now[kind, name] = sums
    return now


def numbers_of(said: Said, labels: Sequence[str]) -> dict[str, float]:
    """What is logged of a batch."""
    n, roles = len(said.items), [label for item, label in zip(said.items, labels, strict=True) if item.kind == "role"]
    told = {"responses/n": float(n), "responses/tokens": float(said.heard.n_tokens.float().mean()),
            "responses/cut": sum(not ended for ended in said.ended) / n,
            "responses/empty": float((said.heard.n_tokens == 0).float().mean())}
    shares = {"judge/fully": "3/", "judge/somewhat": "2/", "judge/unscored": "unscored/"}
    if not roles or all(label.startswith("all/") for label in roles):
        return told
    return told | {name: sum(label.startswith(start) for label in roles) / len(roles) for name, start in shares.items()}


def _save(cfg: AxisExtractConfig, log: runs.Run, done: dict[str, Any], said: Said, number: int) -> None:
    """Texts to responses.jsonl, and the place from which a killed run goes on."""
    rows = [row_of(*one) for one in zip(said.items, said.texts, said.ended, said.scores, said.judged, strict=True)]
    with explained_disk_errors(cfg.out), (cfg.out / RESPONSES).open("ab") as file:
        file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        done["bytes"] = file.tell()
    done["batches"], done["offsets"] = number, log.offsets()
    counts = done["counts"]
    counts["n_responses"] += len(rows)
    counts["n_cut"] += sum(not ended for ended in said.ended)
    counts["n_empty"] += int((said.heard.n_tokens == 0).sum())
    counts["n_tokens"] += int(said.heard.n_tokens.sum())
    names = [sums_file(cfg.out / SUMS, item.kind, item.role).name for item in said.items]
    done["files"] = list(dict.fromkeys([*done["files"], *names]))
    runs.write_json(cfg.out / PROGRESS, done)


def _restored(cfg: AxisExtractConfig, log: runs.Run) -> dict[str, Any]:
    """Where a run stands; what a killed one wrote behind its last save is cut off."""
    done: dict[str, Any] = {
        "batches": 0, "bytes": 0, "offsets": {}, "files": [], "alike": cfg.alike, "shard": cfg.shard or "1/1",
        "about": {}, "complete": False,
        "counts": dict.fromkeys(("n_responses", "n_cut", "n_empty", "n_tokens"), 0)}
    if (cfg.out / PROGRESS).exists():
        done |= json.loads((cfg.out / PROGRESS).read_text(encoding="utf-8"))
    log.rewind(done["offsets"])
    with explained_disk_errors(cfg.out), (cfg.out / RESPONSES).open("ab") as file:
        file.truncate(done["bytes"])
    return done


def merged(cfg: AxisExtractConfig) -> dict[str, Any]:
    """The shards' sums added up, role by role, and their responses one behind the other."""
    told = [_shard(folder) for folder in cfg.merge]
    expected = [f"{k}/{len(told)}" for k in range(1, len(told) + 1)]
    if sorted(str(one["shard"]) for one in told) != sorted(expected) or any(one["alike"] != told[0]["alike"]
                                                                            for one in told):
        raise RunError(f"these are not the {len(told)} shards of one extraction: "
                       f"{', '.join(str(one['shard']) for one in told)}", where="merge",
                       remedy="Name each shard's folder once; all must have had the same settings.")
    files = list(dict.fromkeys(name for one in told for name in one["files"]))
    for name in files:
        parts = [read_sums(folder / SUMS / name) for folder in cfg.merge if (folder / SUMS / name).exists()]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.merged(part)
        whole.save(cfg.out / SUMS)
    with explained_disk_errors(cfg.out), (cfg.out / RESPONSES).open("wb") as file:
        for folder in cfg.merge:
            with (folder / RESPONSES).open("rb") as own:
                shutil.copyfileobj(own, file)
    return {"about": told[0]["about"], "files": files, "layer": told[0]["layer"],
            "counts": {name: sum(one["counts"][name] for one in told) for name in told[0]["counts"]}}


def _shard(folder: Path) -> dict[str, Any]:
    told = json.loads((folder / PROGRESS).read_text(encoding="utf-8")) if (folder / PROGRESS).exists() else {}
    if not told.get("complete"):
        raise RunError("this part is not complete, or is no extraction", where=str(folder),
                       remedy="Finish it with `keel axis extract --resume`, then merge.")
    return dict(told)


def _layer(cfg: AxisExtractConfig, n_layers: int) -> int:
    if cfg.layer is not None and cfg.layer >= n_layers:
        raise ConfigError(f"layer={cfg.layer}, but the model has blocks 0 to {n_layers - 1}", where="layer",
                          remedy="Name one of its blocks, or leave layer out for the middle one.")
    return n_layers // 2 if cfg.layer is None else cfg.layer


def _require_fresh(folder: Path, resume: bool) -> None:
    if not resume and (folder / SUMS).exists():
        raise RunError("this folder holds sums of an extraction that was stopped", where=str(folder),
                       remedy=f"Continue it with `keel axis extract --resume {folder}`, or choose another --out.")


def _require_default(roles: Sequence[Role], cfg: AxisExtractConfig) -> None:
    if cfg.responses is None and not any(role.is_default for role in roles):
        raise DataError("none of the roles is the default, so there is nothing to compare them with",
                        where=str(cfg.roles), remedy='Add a row with "is_default": true and neutral system prompts.')
