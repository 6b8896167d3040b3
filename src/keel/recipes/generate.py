"""Sample responses to a file of prompts, with scores where a reward model or a Python function is given.

Left out: endpoints and judges; this is keel's own decode loop.
"""

import math
from pathlib import Path

import torch
from pydantic import Field

from keel import runs
from keel.config import Config
from keel.data.load import read_prompts
from keel.data.render import render_prompts, template
from keel.models.load import ModelConfig, causal_lm, load_tokenizer, scalar_model
from keel.persona.misfit import misfit_of
from keel.persona.settings import AxisConfig, watched
from keel.rollout.measure import Scorer
from keel.rollout.respond import respond, sample_rows, scoring_function, summary
from keel.rollout.sample import SamplingConfig
from keel.runs import Stopped
from keel.train.inputs import FileConfig, prompt_room

__all__ = ["GenerateConfig", "run"]


class GenerateConfig(Config):
    """Everything `keel generate` reads."""

    out: Path = Field(description="run folder to make; responses go to samples.jsonl")
    model: ModelConfig = Field(description="policy that answers")
    prompts: FileConfig = Field(description="prompts; responses in the file are ignored")
    limit: int | None = Field(None, ge=1, description="answer this many prompts; none: all")
    sampling: SamplingConfig = SamplingConfig()
    seed: int = Field(0, ge=0, description="fixes every response")
    reward_model: ModelConfig | None = Field(None, description="scores the responses")
    gold: str | None = Field(None, description="package.module:function of (prompt, text, ended) -> float")
    axis: AxisConfig | None = Field(None, description="Assistant Axis that steers or caps the policy as it writes; its "
                                    "projection is told of each response; none: neither")
    micro_tokens: int = Field(8192, ge=1, description="token positions per forward pass of the reward model")


def run(cfg: GenerateConfig, *, resume: bool = False) -> runs.RunResult:
    """Write samples.jsonl and, in result.json, mean scores with intervals."""
    with runs.start("generate", cfg, cfg.out, seed=cfg.seed, data=[Path(cfg.prompts.path)], resume=resume) as log:
        log.rewind({})
        words = template(load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code))
        records, report = read_prompts(cfg.prompts.path, on_bad_record=cfg.prompts.on_bad_record,
                                       as_text=cfg.prompts.as_text)
        room = prompt_room(cfg.prompts, cfg.sampling.max_new_tokens)
        rows, cut = render_prompts(words, records[: cfg.limit], room, cfg.prompts.too_long)
        policy = causal_lm(cfg.model)
        odd = None if cfg.axis is None else misfit_of(cfg.axis.read(), cfg.model, policy, words)
        if odd is not None:
            log.note(odd)
        progress = log.bar(len(rows), 0)

        def on_done(n: int) -> None:
            progress.reach(n)
            if log.stop_requested():
                raise Stopped(f"stopped after {n} of {len(rows)} responses; none is kept", where=str(cfg.out),
                              remedy="Run it again with another --out.")

        with watched(cfg.axis, policy) as monitor:
            responses = respond(policy, words, rows, cfg.sampling, seed=cfg.seed, names=["generate"], on_done=on_done)
        columns = {}
        if monitor is not None:
            told = monitor.means()
            columns["projection"] = torch.tensor([told.get(i, math.nan) for i in range(len(rows))])
        if cfg.reward_model is not None:
            own = template(load_tokenizer(cfg.reward_model.path, trust_remote_code=cfg.reward_model.trust_remote_code))
            columns["score"] = Scorer(scalar_model(cfg.reward_model), own, words, cfg.micro_tokens)(responses)
        if cfg.gold:
            columns["gold"] = responses.scored_by(scoring_function(cfg.gold))
        log.sample(sample_rows(0, responses, columns, len(rows)))
        said = {name: x[~x.isnan()] for name, x in columns.items()}  # an empty response projects nowhere
        return log.finish({name: summary(x, cfg.seed, name) for name, x in said.items() if len(x)} | {
            "n": len(rows), "skipped": {"records": report.n_dropped} | vars(cut)})
