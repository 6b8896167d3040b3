"""The toy that hears feelings: drift over the turns of dialogues, and what fine-tuning on answers in roles does to it.

Arms of fine-tuning see the same responses in the same order; they differ in what acts on training passes alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keel.data.records import Demonstration, Message, Prompt
from keel.data.write import write_records
from keel.experiments.axis_settings import AxisTrialConfig
from keel.experiments.axis_speech import Answers, Speaker, area, speaker
from keel.experiments.axis_toy import (
    BATCH,
    MAX_LENGTH,
    N_HELD_OUT,
    SAMPLING,
    extract_config,
    train_config,
    write_corpus,
)
from keel.experiments.rows import do
from keel.functional.directions import cosine, project
from keel.functional.drift import ridge
from keel.functional.masked import masked_mean
from keel.models.forward import token_kl
from keel.models.load import FrozenModelConfig
from keel.persona.axis import AssistantAxis
from keel.persona.foretell import ForetellConfig
from keel.persona.readings import TalksConfig
from keel.persona.settings import AxisConfig
from keel.recipes.axis_drift import AxisDriftConfig
from keel.recipes.sft import SFTConfig
from keel.rng import python_stream, shuffled
from keel.runs import write_json
from keel.sandbox import troupe
from keel.sandbox.export import write_rows
from keel.train.inputs import DataConfig
from keel.train.step import OptimizerConfig

__all__ = ["ARMS", "CONTROL", "DOMAINS", "arms_of", "dialogues"]

DOMAINS = {"tasks": 0.0, "mixed": 0.5, "feelings": 1.0}
"""Share of messages about feelings."""
N_TURNS = 6
CONTROL = 1
"""Seed of the random direction that stands for the axis in the control arms."""
ARMS = {"plain": "plain", "anchor": "anchored", "anchor_random": "anchored, random direction",
        "steered": "steered away while training", "steered_random": "steered along a random direction"}
TAUGHT, KEPT = troupe.QUESTIONS[:6], troupe.QUESTIONS[6:]
"""First words of the questions that fine-tuning asks, and of those that examine it."""
RIDGE = 10.0
FORETELL = ForetellConfig(embed="words", n_words=128, alphas=(0.1, 1.0, 10.0), n_shuffles=3, n_themes=4)
"""Thirty-six words are all that a user says here."""


def dialogues(cfg: AxisTrialConfig, seed: int) -> None:
    """Train, measure drift, fine-tune every arm and examine it; what is measured goes to measured.json."""
    home = cfg.out / f"seed-{seed}/dialogues"
    if (home / "measured.json").exists():
        return
    size = cfg.dialogue
    write_corpus(home, corpus(BATCH * size.steps, seed, "train"), corpus(N_HELD_OUT, seed, "validation"))
    do(train_config(home, seed, size.steps, size.lr))
    do(extract_config(home / "model_run/model", home, home / "axis", seed, size.n_questions))
    begin = speaker(home / "model_run/model", SAMPLING, max_length=MAX_LENGTH, seed=seed)
    axis = AssistantAxis.load(home / "axis/axis.safetensors")
    drift = drifted(begin, axis, home, size.n_talks, seed)
    write_lessons(home, size.tune_steps, seed)
    tests = examination(size.n_asked, seed)
    arms = {"start": examined(begin, begin, axis, axis, tests)}
    for name, changes in arms_of(cfg, home).items():
        do(tune_config(cfg, home, name, changes, seed))
        do(extract_config(home / f"{name}/model", home, home / f"{name}_axis", seed, size.n_questions))
        fresh = AssistantAxis.load(home / f"{name}_axis/axis.safetensors")
        one = speaker(home / f"{name}/model", SAMPLING, max_length=MAX_LENGTH, seed=seed)
        arms[name] = examined(one, begin, axis, fresh, tests)
        arms[name]["loss"] = json.loads((home / name / "result.json").read_text())["headline"]["after"]["mean"]
    write_json(home / "measured.json", {"drift": drift, "arms": arms})


def corpus(n: int, seed: int, name: str) -> list[Demonstration]:
    """Half single questions with roles, half dialogues up to any of their turns."""
    told = troupe.conversations(n - n // 2, seed, name, secrets=True)
    return told + [one.demonstration(f"{name}-dialogue-{i}")
                   for i, one in enumerate(troupe.dialogues(n // 2, seed, name))]


# --- drift -----------------------------------------------------------------------------------------------------------


def drifted(one: Speaker, axis: AssistantAxis, home: Path, n: int, seed: int) -> dict[str, Any]:
    """What `keel axis drift` says of dialogues that the toy answers itself, and the shift that feelings make."""
    file = home / "talks.jsonl"
    if not file.exists():
        write_rows(file, [row for domain, share in DOMAINS.items() for row in talks(one, domain, share, n, seed)])
    do(AxisDriftConfig(
        out=home / "drift", axis=AxisConfig(path=home / "axis/axis.safetensors"), seed=seed,
        model=FrozenModelConfig(path=str(home / "model_run/model")), data=TalksConfig(path=str(file)),
        foretell=FORETELL, n_draws=200))
    found = json.loads((home / "drift/result.json").read_text())
    drift = json.loads((home / "drift/drift.json").read_text())
    after = [(turn["projection"], feels) for feels, turn in zip(
        [feels for row in map(json.loads, file.read_text().splitlines()) for feels in row["feelings"]],
        [turn for row in map(json.loads, (home / "drift/trajectories.jsonl").read_text().splitlines())
         for turn in row["turns"] if turn["role"] == "assistant"], strict=True) if turn["projection"] is not None]
    values, feelings = torch.tensor([x for x, _ in after]), torch.tensor([x for _, x in after])
    mixed = feelings[torch.tensor(shuffled(len(feelings), seed, "permuted classes"))]
    return {"slopes": {row["name"]: row["slope"] for row in found["domains"]},
            "positions": {row["name"]: [place["mean"] for place in row["positions"]] for row in drift["domains"]},
            "prediction": found["prediction"], "shift": shift(values, feelings), "permuted": shift(values, mixed)}


def shift(values: Tensor, feelings: Tensor) -> float:
    """Mean projection after tasks less that after feelings."""
    return float(values[~feelings].mean() - values[feelings].mean())


def talks(one: Speaker, domain: str, share: float, n: int, seed: int) -> list[dict[str, Any]]:
    """Dialogues whose messages are given and whose answers the model gives, turn by turn."""
    asked = troupe.dialogues(n, seed, "drift", domain, turns=(N_TURNS, N_TURNS), share=share, secrets=False)
    turns: list[tuple[Message, ...]] = [()] * n
    for number in range(N_TURNS):
        turns = [(*before, Message("user", talk.said[number])) for before, talk in zip(turns, asked, strict=True)]
        said = one.says([Prompt(f"{domain}-{i}-{number}", before) for i, before in enumerate(turns)], "drift")
        turns = [(*before, Message("assistant", text)) for before, text in zip(turns, said.texts, strict=True)]
    return [{"id": f"{domain}-{i}", "domain": domain, "feelings": list(talk.feelings),
             "messages": [{"role": turn.role, "content": turn.content} for turn in whole]}
            for i, (talk, whole) in enumerate(zip(asked, turns, strict=True))]


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def arms_of(cfg: AxisTrialConfig, home: Path) -> dict[str, dict[str, Any]]:
    """What each arm changes in `keel sft`, by its name."""
    path, push = str(home / "axis/axis.safetensors"), -cfg.dialogue.push
    anchor = {"path": path, "coef": cfg.dialogue.coef}
    steered = {"path": path, "steer": push}
    return {"plain": {}, "anchor": {"anchor": anchor}, "anchor_random": {"anchor": anchor | {"control": CONTROL}},
            "steered": {"steered": steered}, "steered_random": {"steered": steered | {"control": CONTROL}}}


def write_lessons(home: Path, steps: int, seed: int) -> None:
    """Responses to learn from, and others that hold them out; what is there stays."""
    for name, n in (("lessons", BATCH * steps), ("lessons-validation", N_HELD_OUT)):
        if not (home / f"{name}.jsonl").exists():
            write_records(troupe.lessons(n, seed, name, first=TAUGHT), home / f"{name}.jsonl")


def tune_config(cfg: AxisTrialConfig, home: Path, name: str, changes: Mapping[str, Any], seed: int) -> SFTConfig:
    """One pass over the lessons."""
    steps = cfg.dialogue.tune_steps
    return SFTConfig.checked({
        "out": home / name, "model": {"path": str(home / "model_run/model")}, "seed": seed, "batch": BATCH,
        "steps": steps, "eval_every": steps, "save_every": steps, "n_samples": 0, "sampling": SAMPLING,
        "micro_tokens": 4096, "optimizer": OptimizerConfig(lr=cfg.dialogue.tune_lr),
        "data": DataConfig(path=str(home / "lessons.jsonl"), validation=str(home / "lessons-validation.jsonl"),
                           max_length=MAX_LENGTH)} | dict(changes))


# --- the examination -------------------------------------------------------------------------------------------------


def examination(n: int, seed: int) -> dict[str, Any]:
    """What every arm is asked: for the new facts; in dialogues, half of whose messages are about feelings; for secrets
    after feelings. And responses whose speaker is known."""
    talked = troupe.dialogues(n, seed, "drift prompts", turns=(2, 4), secrets=False)
    secrets = []
    for i, felt in enumerate(troupe.dialogues(n, seed, "before secrets", turns=(2, 3), share=1.0)):
        topic = python_stream(seed, "secrets", i).choice(tuple(troupe.FACTS))
        secrets.append(Prompt(f"secret-{i}", (*felt.demonstration("").prompt.messages, Message(
            "assistant", felt.answers[-1]), Message("user", f"{troupe.SECRET} {topic}")), meta={"topic": topic}))
    return {"facts": [one.prompt for one in troupe.lessons(n, seed, "examination", first=KEPT, refused=0.0)],
            "drift": [one.demonstration(f"drift-{i}").prompt for i, one in enumerate(talked)], "secrets": secrets,
            "told": corpus(4 * n, seed, "told")}


def examined(one: Speaker, begin: Speaker, axis: AssistantAxis, fresh: AssistantAxis, tests: Mapping[str, Any],
             ) -> dict[str, Any]:
    """A model after fine-tuning, held against the one it began as.

    `reward`: share of new facts, asked with words that it was not taught with. `projection`: on the axis of the start,
    of its own answers in dialogues, and `in_role` the share of these without a word of the assistant's. `leaked`: share
    of secrets that are told. `fresh`: cosine of an axis extracted anew with that of the start. `area_axis` and
    `area_probe`: how well the speaker of given responses is told by the axis, and by a probe that is blind to it.
    `kl`: from the start, in nats per token of its answers in dialogues.
    """
    layer = axis.middle
    facts, drift, secrets = (one.says(tests[name], name) for name in ("facts", "drift", "secrets"))
    new = [troupe.fact_share(prompt, text, troupe.NEW_FACTS) for prompt, text in zip(
        facts.prompts, facts.texts, strict=True)]
    return {"reward": mean(new), "projection": float(one.projections(axis, drift, layer).nanmean()),
            "in_role": mean([troupe.said_in_role(text) for text in drift.texts]),
            "default_in_role": mean([troupe.said_in_role(text) for text in facts.texts]),
            "leaked": mean([not troupe.refuses(text) for text in secrets.texts]),
            "fresh": float(cosine(axis.vectors[layer], fresh.vectors[layer])), "kl": distance(one, begin, drift),
            **areas(one, axis, tests["told"])}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def distance(one: Speaker, begin: Speaker, said: Answers) -> float:
    """KL from the start on what was said, in nats per token."""
    with torch.no_grad():
        batch = said.said.rollout.tokens
        return float(masked_mean(token_kl(one.model, begin.model, batch), batch.response_mask))


def areas(one: Speaker, axis: AssistantAxis, told: Sequence[Demonstration]) -> dict[str, float]:
    """Area under the curve of telling the assistant from roles: by the axis, and by a probe orthogonal to it.

    The probe is fitted to the even responses, and both are measured on the odd ones.
    """
    layer, unit = axis.middle, axis.unit(axis.middle)
    states = one.states(told)[:, layer]
    rest = (states - project(states, unit)[:, None] * unit).double()
    assistant = torch.tensor([shown.prompt.truth["mode"] == "assistant" for shown in told])
    weights, _ = ridge(rest[::2], assistant[::2].double(), alpha=RIDGE)
    shown = assistant[1::2]
    found = {"area_axis": project(states, unit)[1::2], "area_probe": (rest @ weights)[1::2]}
    return {name: area(values[shown], values[~shown]) for name, values in found.items()}
