"""Does the assistant drift over the turns of conversations, in which domains, and what do the user's messages foretell?

Left out: a replay of the user's messages to the model; conversations are read as they took place. What two conditions
of the same user messages differ by is compared, where a file holds both or something acts (`axis.cap`, ...).
"""

from pathlib import Path
from typing import Any

from pydantic import Field

from keel import runs
from keel.config import Config
from keel.data.render import template
from keel.models.load import FrozenModelConfig, causal_lm, load_tokenizer
from keel.persona.axis import AssistantAxis
from keel.persona.drift import course, differences, domain_rows
from keel.persona.foretell import ForetellConfig, foretold, message_features, themes, told_rows
from keel.persona.misfit import misfit_of
from keel.persona.readings import TalksConfig, both_ways, context, talks
from keel.persona.settings import AxisConfig
from keel.persona.tables import write_table
from keel.persona.written import write_drift, write_trajectories
from keel.runs import Stopped

__all__ = ["AxisDriftConfig", "run"]


class AxisDriftConfig(Config):
    """Everything `keel axis drift` reads."""

    out: Path = Field(description="run folder to make; trajectories, slopes, prediction and tables go there")
    axis: AxisConfig = Field(description="axis to read along; what it is told to do is a condition of its own")
    model: FrozenModelConfig = Field(description="model of the axis, which reads the conversations")
    data: TalksConfig = Field(description="conversations, with a column that names their domain")
    centred: bool = Field(True, description="measure from the mean of the roles instead of from 0")
    fewest: int = Field(10, ge=1, description="conversations that have to reach a turn for it to count")
    foretell: ForetellConfig | None = Field(ForetellConfig(), description="prediction from user messages; none: left "
                                            "out")
    n_draws: int = Field(1000, ge=100, description="resamples of conversations behind every interval")
    seed: int = Field(0, ge=0, description="fixes resamples, folds, shuffles and themes")
    micro_tokens: int = Field(8192, ge=1, description="token positions per forward pass; changes memory, not results")


def run(cfg: AxisDriftConfig) -> runs.RunResult:
    """Write trajectories.jsonl, drift.json and tables; slopes and scores in result.json."""
    data = [Path(cfg.data.path), cfg.axis.path]
    with runs.start("axis drift", cfg, cfg.out, seed=cfg.seed, data=data) as log:
        axis = AssistantAxis.load(cfg.axis.path)
        model = causal_lm(cfg.model.whole)
        words = template(load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code))
        layer = axis.middle if cfg.axis.monitor is None else cfg.axis.monitor
        axis.fitting(model, [layer])
        if (odd := misfit_of(axis, cfg.model.whole, model, words)) is not None:
            log.note(odd)
        width = context(model, cfg.data.max_length)
        found = talks(cfg.data, words, width)
        progress = log.bar(len(found.rendered) * (1 + cfg.axis.acts), 0)

        def on_done(n: int) -> None:
            progress.reach(n)
            if log.stop_requested():
                raise Stopped(f"stopped after {n} conversations were read for drift; none is kept",
                              where=str(cfg.out), remedy="Run it again with another --out.")

        read = both_ways(model, words, found, layers=[layer], acting=cfg.axis, cfg=cfg.data,
                         micro_tokens=cfg.micro_tokens, on_done=on_done)
        write_trajectories(log.folder, read.all, axis, centred=cfg.centred)
        courses = [course(one, axis, layer, centred=cfg.centred) for one in read.all]
        domains = domain_rows(courses, fewest=cfg.fewest, seed=cfg.seed, n_draws=cfg.n_draws)
        plain, acted = courses[: len(read.plain)], courses[len(read.plain):]
        gaps = differences(plain, acted, seed=cfg.seed)
        if not any(row["positions"] for row in domains):
            log.note(f"no turn is reached by fewest={cfg.fewest} conversations of one domain and condition: there are "
                     "no curves and no slopes")
        prediction: dict[str, Any] = {}
        piles: list[dict[str, Any]] = []
        told = told_rows(plain)
        if cfg.foretell is not None and told.texts:
            features = message_features(cfg.foretell, told.texts, model, words, layer=layer, width=width)
            prediction = foretold(cfg.foretell, told, features, seed=cfg.seed, n_draws=cfg.n_draws)
            piles = themes(cfg.foretell, told, features, seed=cfg.seed, n_draws=cfg.n_draws)
        if cfg.foretell is not None and not prediction:
            log.note("fewer than three conversations that begin differently, or all responses alike: nothing can be "
                     "left out, so what the user's messages foretell is unknown")
        write_drift(log.folder, axis, layer, centred=cfg.centred, found={
            "domains": domains, "prediction": prediction, "themes": piles, "differences": gaps})
        write_tables(log.folder, domains, prediction, piles, gaps)
        for row in domains:
            print(line(row))
        return log.finish({"n": len(found.dialogues), "layer": layer, "domains": [
            {key: value for key, value in row.items() if key != "positions"} for row in domains],
            "prediction": prediction, "differences": gaps, "caps": read.caps,
            "skipped": found.skipped, "handled": found.handled})


def write_tables(folder: Path, domains: list[dict[str, Any]], prediction: dict[str, dict[str, Any]],
                 piles: list[dict[str, Any]], gaps: list[dict[str, Any]]) -> None:
    """The numbers of the pictures, one CSV for each."""
    ends = ("low", "high", "n")
    write_table(folder, "positions", ("name", "label", "turn", "mean", *ends),
                [{"name": row["name"], "label": row["label"]} | place for row in domains for place in row["positions"]])
    write_table(folder, "slopes", ("name", "label", "slope", *ends), domains)
    write_table(folder, "changes", ("name", "label", "mean", *ends), [row | row["change"] for row in domains])
    write_table(folder, "prediction", ("target", "score", "mean", *ends),
                [{"target": target, "score": name} | score for target, scores in prediction.items()
                 for name, score in scores.items()])
    write_table(folder, "themes", ("theme", "mean", *ends), [
        row["projection"] | {"theme": row["name"], "n": row["n"]} for row in piles])
    write_table(folder, "differences", ("domain", "first", "second", "mean", *ends), gaps)


def line(row: dict[str, Any]) -> str:
    """One domain under one condition, for the console."""
    who = ", ".join(filter(None, [row["name"] or "all", row["label"]]))
    if row["slope"] is None:
        return f"{who}: no slope from {row['n']} conversations"
    between = "" if row["low"] is None else f" ({row['low']:.3g} to {row['high']:.3g})"
    return f"{who}: slope {row['slope']:.3g}{between} a turn over {row['n']} conversations"
