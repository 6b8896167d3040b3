"""The toy of personas, trained and examined: what an axis extracted from it is, and what steering and capping do."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keel.data.files import FileConfig
from keel.data.records import Demonstration, Message, Prompt
from keel.data.write import write_records
from keel.experiments.axis_settings import AxisTrialConfig
from keel.experiments.axis_speech import Speaker, area, speaker
from keel.experiments.rows import do
from keel.models.load import FrozenModelConfig, ModelConfig, ScratchConfig
from keel.persona.axis import AssistantAxis
from keel.recipes.axis_calibrate import AxisCalibrateConfig
from keel.recipes.axis_extract import AxisExtractConfig, RoleJudgeConfig
from keel.recipes.sft import SFTConfig
from keel.rng import python_stream
from keel.rollout.sample import SamplingConfig
from keel.runs import write_json
from keel.sandbox import troupe
from keel.sandbox.export import write_rows
from keel.train.inputs import DataConfig
from keel.train.step import OptimizerConfig

__all__ = ["CONTROL", "LAYER", "LAYERS", "STRENGTHS", "asked_in_roles", "extract_config", "toy", "train_config"]

LAYERS, LAYER = 4, 2
"""Blocks of the toy, and the one at which it is steered."""
STRENGTHS = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
GENTLE = (-0.25, 0.0, 0.25, 0.5)
CONTROL, N_RANDOM = 0.5, 5
BATCH, MAX_LENGTH, N_HELD_OUT = 64, 96, 300
RESPONSE_PERCENTILES, TOKEN_PERCENTILES = (0.25, 0.5, 0.75), (0.75, 0.9, 0.95, 0.99)
"""Of the role-playing direction: 0.25 is the 75th percentile on the axis, the authors' choice."""
SAMPLING = SamplingConfig(max_new_tokens=8)
FAR_BELOW = -1e6


def toy(cfg: AxisTrialConfig, seed: int) -> None:
    """Train, extract and examine the toy of a seed; what is measured goes to measured.json."""
    home = cfg.out / f"seed-{seed}/toy"
    if (home / "measured.json").exists():
        return
    told = troupe.conversations(BATCH * cfg.toy.steps, seed, "train")
    write_corpus(home, told, troupe.conversations(N_HELD_OUT, seed, "validation"))
    do(train_config(home, seed, cfg.toy.steps, cfg.toy.lr))
    do(extract_config(home / "model_run/model", home, home / "axis", seed, cfg.toy.n_questions))
    do(AxisExtractConfig(out=home / "axis_fully", merge=(home / "axis",), rows="fully"))
    one = speaker(home / "model_run/model", SAMPLING, max_length=MAX_LENGTH, seed=seed)
    axis = AssistantAxis.load(home / "axis/axis.safetensors")
    roles, default = asked_in_roles(cfg.toy.n_asked, seed), asked_as_default(4 * cfg.toy.n_asked, seed)
    write_json(home / "measured.json", {
        "axis": directions(home), "read": read(one, axis, cfg.toy.n_told, seed),
        "dose": doses(one, axis, roles, default), "caps": capped(one, axis, roles, default, home)})


# --- models and axes -------------------------------------------------------------------------------------------------


def write_corpus(home: Path, told: Sequence[Demonstration], held_out: Sequence[Demonstration]) -> None:
    """Tokenizer, roles, questions and the conversations to learn from; what is there stays."""
    troupe.write_tokenizer(home / "tokenizer")
    if not (home / "roles.jsonl").exists():
        write_records(told, home / "train.jsonl")
        write_records(held_out, home / "validation.jsonl")
        asked = troupe.questions()
        python_stream(0, "troupe questions").shuffle(asked)
        write_rows(home / "questions.jsonl", [{"question": question} for question in asked])
        write_rows(home / "roles.jsonl", troupe.role_rows())


def train_config(home: Path, seed: int, steps: int, lr: float) -> SFTConfig:
    """A small Llama from nothing: AdamW with cosine decay, loss on responses alone."""
    shape = ScratchConfig(hidden=64, layers=LAYERS, heads=4, intermediate=176, max_positions=MAX_LENGTH)
    return SFTConfig(
        out=home / "model_run", seed=seed, batch=BATCH, steps=steps, eval_every=steps, save_every=steps, n_samples=0,
        model=ModelConfig(path=str(home / "tokenizer"), init="scratch", scratch=shape), sampling=SAMPLING,
        data=DataConfig(path=str(home / "train.jsonl"), validation=str(home / "validation.jsonl"),
                        max_length=MAX_LENGTH),
        micro_tokens=4096, optimizer=OptimizerConfig(lr=lr))


def extract_config(model: Path, files: Path, out: Path, seed: int, n_questions: int) -> AxisExtractConfig:
    """`keel axis extract` as it is run for anybody, with the toy's rule for a judge."""
    return AxisExtractConfig(
        out=out, model=FrozenModelConfig(path=str(model)), roles=files / "roles.jsonl",
        questions=files / "questions.jsonl", n_questions=n_questions, sampling=SAMPLING, seed=seed, batch=1024,
        judge=RoleJudgeConfig(function="keel.sandbox.troupe:role_score"))


# --- what is asked ---------------------------------------------------------------------------------------------------


def asked_in_roles(n: int, seed: int, first: Sequence[str] = troupe.QUESTIONS) -> list[Prompt]:
    """`n` questions under every system prompt of every role."""
    return [prompt for role in troupe.ROLES for system in troupe.systems_of(role)
            for prompt in asked(n, seed, role, system, first)]


def asked_as_default(n: int, seed: int, first: Sequence[str] = troupe.QUESTIONS) -> list[Prompt]:
    """`n` questions under every prompt that gives no role."""
    return [prompt for system in ("", *troupe.NEUTRAL) for prompt in asked(n, seed, "default", system, first)]


def asked(n: int, seed: int, role: str, system: str, first: Sequence[str]) -> list[Prompt]:
    """Questions under one system prompt."""
    rng, found = python_stream(seed, "troupe asked", role, system), []
    for number in range(n):
        topic = rng.choice(tuple(troupe.FACTS))
        turns = (*((Message("system", system),) if system else ()), Message("user", f"{rng.choice(first)} {topic}"))
        found.append(Prompt(f"{role}-{system}-{number}", turns, meta={"role": role, "topic": topic}))
    return found


# --- what is measured ------------------------------------------------------------------------------------------------


def directions(home: Path) -> dict[str, Any]:
    """Reliability of the axis, and its cosine with the first component of both sets of role vectors."""
    both, fully = (json.loads((home / name / "space.json").read_text()) for name in ("axis", "axis_fully"))
    return {"split_half": both["split_half"], "cosine_both": both["cosine_pc1"], "cosine_fully": fully["cosine_pc1"],
            "layer": both["layer"], "counts": both["counts"]}


def read(one: Speaker, axis: AssistantAxis, n: int, seed: int) -> dict[str, list[float]]:
    """How well projections tell who spoke, at every block, on new responses of the corpus."""
    told = troupe.conversations(n, seed, "told")
    states = one.states(told)
    in_role = [i for i, shown in enumerate(told) if shown.prompt.truth["mode"] == "role"]
    default = [i for i, shown in enumerate(told) if shown.prompt.meta["role"] == "default"]
    others = sorted({*range(len(told))} - {*in_role} - {*default})
    found = [axis.project(states[:, layer], layer) for layer in range(axis.n_layers)]
    return {"mode": [area(p[others], p[in_role]) for p in found],
            "default": [area(p[default], p[in_role]) for p in found]}


def scores(one: Speaker, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Share of the assistant's words, and of right facts, in what is said now."""
    said = one.says(prompts, "examination")
    return {"mass": sum(map(troupe.assistant_share, said.texts)) / len(prompts),
            "facts": sum(map(troupe.fact_share, said.prompts, said.texts)) / len(prompts)}


def doses(one: Speaker, axis: AssistantAxis, roles: Sequence[Prompt], default: Sequence[Prompt]) -> dict[str, Any]:
    """Steered along the axis by several strengths, and along random directions by one."""
    def steered(along: AssistantAxis, strength: float, prompts: Sequence[Prompt]) -> dict[str, float]:
        with along.steer(one.model, strength, layers=[LAYER]):
            return {"strength": strength} | scores(one, prompts)

    return {"axis": [steered(axis, strength, roles) for strength in STRENGTHS],
            "default": [steered(axis, strength, default) for strength in GENTLE],
            "random": [steered(axis.random(number), CONTROL, roles) for number in range(N_RANDOM)]}


def capped(one: Speaker, axis: AssistantAxis, roles: Sequence[Prompt], default: Sequence[Prompt], home: Path,
           ) -> dict[str, Any]:
    """Floors at percentiles of two populations, at all tokens and at generated ones: what each does and costs."""
    rows = []
    for population, fit, which, stated in (("responses", "response", "all", RESPONSE_PERCENTILES),
                                           ("default tokens", "token", "default", TOKEN_PERCENTILES)):
        config = AxisCalibrateConfig(
            out=home / f"floors_{fit}", axis=home / "axis/axis.safetensors", percentiles=stated, fit=fit, which=which,
            model=FrozenModelConfig(path=str(home / "model_run/model")), layers=(f"{LAYER}:{LAYER + 1}",),
            responses=FileConfig(path=str(home / "axis"), max_length=MAX_LENGTH), where="generation", check=0)
        do(config)
        found = json.loads((config.out / "calibration.json").read_text())["thresholds"]
        rows += [floor_row(one, axis, (roles, default), {
            "population": population, "percentile": 1 - row["stated"], "floor": row["floor"], "where": where})
            for row in found for where in ("all", "generation")]
    plain = one.says(roles, "examination").texts
    with axis.floor(one.model, FAR_BELOW, layers=[LAYER]):
        untouched = one.says(roles, "examination").texts == plain
    return {"none": scores(one, roles) | {"default_facts": scores(one, default)["facts"]}, "untouched": untouched,
            "rows": rows}


def floor_row(one: Speaker, axis: AssistantAxis, prompts: tuple[Sequence[Prompt], Sequence[Prompt]],
              row: dict[str, Any]) -> dict[str, Any]:
    """One floor: scores in roles, facts as default, and which share of the tokens in roles it moves."""
    with axis.floor(one.model, row["floor"], layers=[LAYER], where=row["where"]) as handle:
        found = scores(one, prompts[0])
        moved = handle.stats()[LAYER]
    with axis.floor(one.model, row["floor"], layers=[LAYER], where=row["where"]):
        facts = scores(one, prompts[1])["facts"]
    return row | found | {"default_facts": facts, "prompt": moved["prompt"]["clamped"],
                          "generation": moved["generation"]["clamped"]}
