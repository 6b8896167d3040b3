"""Where conversations that took place lie on the Assistant Axis: every token, every turn, at any block.

With something that acts (`axis.cap`, `axis.steer`, ...) each conversation is read a second time while it acts. The text
stays what it was. Left out: a replay, in which the model would answer otherwise; that is sampling.
"""

from pathlib import Path

from pydantic import Field

from keel import runs
from keel.config import Config
from keel.data.render import template
from keel.models.load import FrozenModelConfig, causal_lm, load_tokenizer
from keel.persona.axis import AssistantAxis
from keel.persona.misfit import misfit_of
from keel.persona.readings import TalksConfig, both_ways, context, talks
from keel.persona.settings import AxisConfig
from keel.persona.written import role_means, write_drift, write_heat, write_trajectories
from keel.runs import Stopped

__all__ = ["AxisProjectConfig", "run"]


class AxisProjectConfig(Config):
    """Everything `keel axis project` reads."""

    out: Path = Field(description="run folder to make; trajectories, coloured tokens and tables go there")
    axis: AxisConfig = Field(description="axis to read along; what it is told to do is shown beside")
    model: FrozenModelConfig = Field(description="model of the axis, which reads the conversations")
    data: TalksConfig = Field(description="conversations")
    layers: tuple[int, ...] = Field((), description="further blocks to read, for the tables; what is drawn is at "
                                    "axis.monitor")
    centred: bool = Field(False, description="measure from the mean of the roles instead of from 0")
    texts: int = Field(3, ge=0, description="conversations whose tokens are written one by one")
    seed: int = Field(0, ge=0, description="fixes the resamples behind intervals")
    micro_tokens: int = Field(8192, ge=1, description="token positions per forward pass; changes memory, not results")


def run(cfg: AxisProjectConfig) -> runs.RunResult:
    """Write trajectories.jsonl, heat.json, drift.json and tables; mean projections by role in result.json."""
    data = [Path(cfg.data.path), cfg.axis.path]
    with runs.start("axis project", cfg, cfg.out, seed=cfg.seed, data=data) as log:
        axis = AssistantAxis.load(cfg.axis.path)
        model = causal_lm(cfg.model.whole)
        words = template(load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code))
        drawn = axis.middle if cfg.axis.monitor is None else cfg.axis.monitor
        layers = list(dict.fromkeys(axis.fitting(model, [drawn, *cfg.layers])))
        if (odd := misfit_of(axis, cfg.model.whole, model, words)) is not None:
            log.note(odd)
        found = talks(cfg.data, words, context(model, cfg.data.max_length))
        progress = log.bar(len(found.rendered) * (1 + cfg.axis.acts), 0)

        def on_done(n: int) -> None:
            progress.reach(n)
            if log.stop_requested():
                raise Stopped(f"stopped after {n} conversations were read along the axis; none is kept",
                              where=str(cfg.out), remedy="Run it again with another --out.")

        read = both_ways(model, words, found, layers=layers, acting=cfg.axis, cfg=cfg.data,
                         micro_tokens=cfg.micro_tokens, on_done=on_done)
        write_trajectories(log.folder, read.all, axis, centred=cfg.centred)
        write_heat(log.folder, [*read.plain[: cfg.texts], *read.acted[: cfg.texts]], axis, words, centred=cfg.centred)
        write_drift(log.folder, axis, drawn, centred=cfg.centred, found={"domains": [], "prediction": {}})
        means = role_means(read.all, axis, centred=cfg.centred, seed=cfg.seed)
        for line in means:
            who = f"{line['role']}, {line['label']}" if line["label"] else line["role"]
            print(f"{who}: {line['mean']:.4g} over {line['n']} turns")
        return log.finish({"n": len(found.dialogues), "n_tokens": sum(len(one.ids) for one in found.rendered),
                           "layer": drawn, "projection": means, "caps": read.caps,
                           "skipped": found.skipped, "handled": found.handled})
