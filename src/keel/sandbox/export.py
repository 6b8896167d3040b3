"""`keel sandbox export`: the town as files, in the conversational layout that TRL and keel's own readers share.

One JSON object a line: `prompt` is a list of messages, `completion` (or `chosen` and `rejected`) a list of one message,
`meta` an object with the domain and its slots, `truth` an object that only gold scoring and reports may read. Solutions
have `completions`, a list of lines, with `labels`, and `outcome`; their `meta` holds the answer too. Roles and the
questions for them have the columns of arXiv:2601.10387, which `keel axis extract` reads.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from keel.config import Config
from keel.data.records import Demonstration, PreferencePair, Prompt
from keel.data.traces import StepTrace
from keel.errors import RunError
from keel.rng import python_stream
from keel.sandbox.annotators import pairs, panel
from keel.sandbox.corpus import demonstrations, talk
from keel.sandbox.ledger_steps import solutions
from keel.sandbox.personas import PERSONAS, with_role
from keel.sandbox.probes import probes
from keel.sandbox.roles import question_rows, role_rows
from keel.sandbox.world import SPLITS, World

__all__ = ["SandboxExportConfig", "demonstration_row", "pair_row", "prompt_row", "run", "solution_row",
           "write_rows"]

Row = dict[str, Any]


class SandboxExportConfig(Config):
    """Everything `keel sandbox export` reads."""

    out: Path = Field(Path("town"), description="folder to write; made if missing, refused if it holds files")
    seed: int = Field(0, ge=0, description="fixes the facts and every draw; the base model knows the town of seed 0")
    n_prompts: int = Field(4000, ge=1, description="questions in prompts.jsonl, one line each")
    n_demonstrations: int = Field(3000, ge=1, description="answers to imitate in demonstrations.jsonl, one line each")
    n_pairs: int = Field(4000, ge=1, description="labelled pairs in pairs.jsonl, one line each")
    n_solutions: int = Field(2000, ge=0, description="ledger solutions in steps.jsonl, every line labelled exactly; 0 "
                             "writes no such file")
    n_heldout: int = Field(500, ge=1, description="lines in each validation, test and dialect file")
    n_probes: int = Field(64, ge=0, description="prompts of each kind in probes.jsonl, which persona.probes reads: "
                          "neutral, in a role, inviting drift; 0 writes no such file")
    n_talk: int = Field(0, ge=0, description="conversations of pre-training talk in talk.jsonl; 0 writes no such file")
    n_role_questions: int = Field(240, ge=0, description="questions that all roles are asked, in role_questions.jsonl, "
                                  "beside roles.jsonl; 0 writes neither")
    quality: float = Field(0.9, ge=0, le=1, description="quality of the demonstrations; 1 makes no mistake")
    unknown_share: float = Field(0.2, ge=0, lt=1, description="share of facts that nobody knows")
    max_steps: int = Field(4, ge=1, le=4, description="most additions that a ledger question needs")
    holdout_domain: str | None = Field(None, description="domain that the train files leave out; none: all are asked")
    n_annotators: int = Field(5, ge=1, description="people on the panel; each pair is labelled by one of them")
    sharpness: float = Field(
        4.0, ge=0, description="log-odds of a preference per point of gold score; more errs less"
    )
    length_bias: float = Field(0.0, description="log-odds of a preference per extra token; above 0 likes long answers")
    off_topic: float = Field(0.15, ge=0, le=1, description="share of pairs where one response answers another question")
    careless: float = Field(0.02, ge=0, le=0.5, description="share of labels turned over whatever they were")


def run(cfg: SandboxExportConfig) -> dict[str, int]:
    """Write every file; returns the number of lines by file name."""
    out = cfg.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            "the folder to export to is not empty",
            where=str(out),
            remedy="name a new folder with --out, or remove this one first",
        )
    out.mkdir(parents=True, exist_ok=True)
    world = World(cfg.seed, unknown_share=cfg.unknown_share, max_steps=cfg.max_steps, holdout_domain=cfg.holdout_domain)
    written: dict[str, int] = {}
    for split in SPLITS:
        suffix = "" if split == "train" else f"-{split}"
        for name, rows in _split_files(cfg, world, split, dialect=False).items():
            written[f"{name}{suffix}.jsonl"] = write_rows(out / f"{name}{suffix}.jsonl", rows)
    for name, rows in _split_files(cfg, world, "test", dialect=True).items():
        written[f"{name}-dialect.jsonl"] = write_rows(out / f"{name}-dialect.jsonl", rows)
    written["jailbreaks.jsonl"] = write_rows(out / "jailbreaks.jsonl", _jailbreaks(cfg, world))
    if cfg.n_role_questions:
        written["roles.jsonl"] = write_rows(out / "roles.jsonl", role_rows(world))
        written["role_questions.jsonl"] = write_rows(out / "role_questions.jsonl",
                                                     question_rows(world, cfg.n_role_questions))
    if cfg.n_probes:
        written["probes.jsonl"] = write_rows(out / "probes.jsonl", map(prompt_row, probes(world, cfg.n_probes)))
    if cfg.n_talk:
        rows = (demonstration_row(shown) for shown in talk(world, cfg.n_talk))
        written["talk.jsonl"] = write_rows(out / "talk.jsonl", rows)
    return written


def _split_files(cfg: SandboxExportConfig, world: World, split: str, *, dialect: bool) -> dict[str, Iterable[Row]]:
    """Prompts, demonstrations and pairs of one split, by file name."""
    count: Callable[[int], int] = (lambda n: n) if split == "train" else (lambda n: cfg.n_heldout)
    labellers = panel(
        cfg.n_annotators,
        sharpness=cfg.sharpness,
        length_bias=cfg.length_bias,
        careless=cfg.careless,
        seed=cfg.seed,
    )
    asked = world.prompts(count(cfg.n_prompts), "export", split=split, dialect=dialect)
    shown = demonstrations(world, count(cfg.n_demonstrations), cfg.quality, "export", split=split, dialect=dialect)
    judged = pairs(world, count(cfg.n_pairs), "export", annotators=labellers, off_topic=cfg.off_topic, split=split,
                   dialect=dialect)
    return {
        "prompts": map(prompt_row, asked),
        "demonstrations": map(demonstration_row, shown),
        "pairs": map(pair_row, judged),
    } | _solved(cfg, world, split, dialect=dialect)


def _solved(cfg: SandboxExportConfig, world: World, split: str, *, dialect: bool) -> dict[str, Iterable[Row]]:
    """Ledger solutions with labelled lines; none of a split that asks no ledger questions."""
    n = cfg.n_solutions if split == "train" else min(cfg.n_solutions, cfg.n_heldout)
    if not n or (split == "train" and world.holdout_domain == "ledger"):
        return {}
    return {"steps": map(solution_row, solutions(world, n, "export", part=split, dialect=dialect))}


def _jailbreaks(cfg: SandboxExportConfig, world: World) -> Iterable[Row]:
    """Guard questions of the test split under the roles that comply."""
    roles = [persona for persona in PERSONAS.values() if persona.behaviour == "complies"]
    for number, prompt in enumerate(world.prompts(cfg.n_heldout, "jailbreaks", split="test", domains=("guard",))):
        rng = python_stream(cfg.seed, "jailbreaks", number)
        yield prompt_row(with_role(prompt, rng.choice(roles), rng))


def prompt_row(prompt: Prompt) -> Row:
    """A question as one JSON object."""
    return {
        "id": prompt.id,
        "prompt": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "meta": dict(prompt.meta),
        "truth": dict(prompt.truth),
    }


def demonstration_row(shown: Demonstration) -> Row:
    """A question and its answer as one JSON object."""
    return prompt_row(shown.prompt) | {"completion": [{"role": "assistant", "content": shown.response}]}


def pair_row(pair: PreferencePair) -> Row:
    """A labelled pair as one JSON object."""
    return prompt_row(pair.prompt) | {
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


def solution_row(trace: StepTrace) -> Row:
    """A solution with labelled lines as one JSON object."""
    return prompt_row(trace.prompt) | {
        "completions": list(trace.steps), "labels": list(trace.labels), "outcome": trace.outcome}


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """One JSON object a line; returns their number."""
    n = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for n, row in enumerate(rows, start=1):  # noqa: B007 - n is the count after the loop
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return n
