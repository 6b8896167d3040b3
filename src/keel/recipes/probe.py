"""Nine reward-hacking probes of any reward model: what it can be paid by that is not a better answer.

The rules of the verdicts stand in docs/methods/probe.md. Nothing is trained. Left out: judges behind an endpoint; a
gold function may ask one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from keel import runs
from keel.bench.drift import curve_of_best, curve_of_ppo, of_best, of_ppo, of_training
from keel.bench.invariance import of_precision, of_shape, some
from keel.bench.measures import NOT_RUN, PROBES, Measure, interval, probe, prompt_groups
from keel.bench.probes import (
    Change,
    Material,
    Score,
    Yardstick,
    changes,
    lengths_of,
    material,
    of_length,
    scored,
    shift,
    within_prompt,
    yardstick,
)
from keel.config import Config
from keel.data.files import FileConfig
from keel.data.load import read_demonstrations, read_pairs
from keel.data.records import Demonstration
from keel.data.render import Row, Template, fit, template
from keel.errors import DataError, RunError
from keel.models.forward import response_scores
from keel.models.load import ModelConfig, check_context, device_of, is_encoder, load_tokenizer, scalar_model
from keel.rollout.respond import one_score, scoring_function
from keel.runs import Stopped

__all__ = ["ProbeConfig", "run"]

CHANCE = 0.5


class ProbeConfig(Config):
    """Everything `keel reward-model probe` reads."""

    out: Path = Field(description="run folder to make; probes.json and examples; what was stopped is begun anew")
    model: ModelConfig = Field(description="reward model to probe")
    data: FileConfig = Field(description="preference pairs whose responses are changed; best held-out ones")
    limit: int | None = Field(500, ge=2, description="probe the first so many pairs; none: all")
    samples: FileConfig | None = Field(None, description="responses of a policy, several per prompt (ids may repeat): "
                                       "length, over-optimisation")
    gold: str | None = Field(None, description="package.module:function of (prompt, text, ended) -> float, for "
                             "samples; none: their column gold")
    ppo_run: Path | None = Field(None, description="run folder of `keel ppo` with gold: its over-optimisation curve")
    training_run: Path | None = Field(None, description="run folder of `keel reward-model`: inflation of its scores")
    smallest: float = Field(0.1, ge=0, lt=1, description="smallest effect that counts: in std of the gaps, or a share")
    n_examples: int = Field(4, ge=0, description="examples kept per change, the largest rises")
    seed: int = Field(0, ge=0, description="fixes which prompts are exchanged, and every interval")
    micro_tokens: int = Field(8192, ge=1, description="token positions per forward pass; changes memory, not results")

    @model_validator(mode="after")
    def _check(self) -> "ProbeConfig":
        if self.gold is not None and self.samples is None:
            raise ValueError("gold without samples scores nothing: name a file of samples, or leave gold out")
        return self


@dataclass(frozen=True)
class _Samples:
    """Responses of a policy, with the gold score of each where all have one."""

    rows: list[Row]
    groups: Tensor
    gold: Tensor | None


def run(cfg: ProbeConfig) -> runs.RunResult:
    """Write probes.json, examples in samples.jsonl, and the verdicts in result.json."""
    files = [Path(file.path) for file in (cfg.data, cfg.samples) if file is not None]
    with runs.start("probe", cfg, cfg.out, seed=cfg.seed, data=files) as log:
        # Read everything first: what is missing is said before anything is computed.
        words = template(load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code))
        pairs, report = read_pairs(cfg.data.path, on_bad_record=cfg.data.on_bad_record, as_text=cfg.data.as_text)
        there, cut = material(words, pairs[: cfg.limit], cfg.data.max_length, cfg.data.too_long, cfg.seed)
        samples = None if cfg.samples is None else _read_samples(cfg, cfg.samples, words)
        ppo, training = (None if folder is None else _metrics(folder) for folder in (cfg.ppo_run, cfg.training_run))
        altered = changes(there)
        asked = [row for change in altered for row in change.rows]
        drawn = [] if samples is None else samples.rows
        every = [*there.rows, *asked, *drawn]

        # Score everything once in the format of the run, and the unchanged responses in the other one.
        model = scalar_model(cfg.model)
        check_context(model, max(row.n_tokens for row in every))
        progress = log.bar(len(every), 0)

        def on_done(done: int) -> None:
            progress.reach(done)
            if log.stop_requested():
                raise Stopped(f"stopped after {done} of {len(every)} scores; nothing is kept", where=str(cfg.out),
                              remedy="Run it again with another --out.")

        score = _score(model)
        scores = scored(score, every, pad_id=words.pad_id, micro_tokens=cfg.micro_tokens, on_done=on_done)
        before, after, of_samples = scores.split([len(there.rows), len(asked), len(drawn)])
        yard = yardstick(before, there, cfg.smallest, cfg.seed)
        picked = some(there.rows)
        same = of_shape(score, [there.rows[i] for i in picked], before[picked], pad_id=words.pad_id,
                        end_id=words.end_id, micro_tokens=cfg.micro_tokens, std=yard.std, left=not is_encoder(model))
        other, how = _other_format(cfg.model, is_encoder(model))
        twin = scalar_model(cfg.model.model_copy(update=how))
        same += of_precision(before, scored(_score(twin), there.rows, pad_id=words.pad_id,
                                            micro_tokens=cfg.micro_tokens), other)

        # Judge.
        moved = list(after.split([len(change.rows) for change in altered]))
        shifts = [shift(change, before, x, there, yard) for change, x in zip(altered, moved, strict=True)]
        found = {"length": of_length(before, there, yard) + _with_length(before, of_samples, there, samples, yard),
                 "invariance": same}
        for change, measure in zip(altered, shifts, strict=True):
            found.setdefault(change.probe, []).append(measure)
        probes = [probe(name, found[name]) if name in found
                  else _over_optimised(samples, of_samples, ppo, cfg) if name == "over_optimisation"
                  else _inflated(training) for name in PROBES]
        log.sample(_examples(there, altered, before, moved, cfg.n_examples))
        accuracy = interval((before.chunk(2)[0] > before.chunk(2)[1]).double(), there.groups[: len(there.pairs)],
                            cfg.seed, "accuracy")
        told = {"accuracy": accuracy, "std": yard.std, "per_token": yard.per_token, "smallest": yard.smallest}
        if accuracy["low"] <= CHANCE:
            log.note("on these pairs the reward model is not shown to be better than chance; the probes then show how "
                     "noise reacts")
        runs.write_json(cfg.out / "probes.json", {**told, "probes": probes})
        print("\n".join(_line(number, one) for number, one in enumerate(probes, start=1)))
        return log.finish(told | {"verdicts": {one["name"]: one["verdict"] for one in probes},
                                  "skipped": {"records": report.n_dropped} | vars(cut)})


def _score(model: nn.Module) -> Score:
    return lambda batch: response_scores(model, batch.to(device_of(model))).float().cpu()


def _other_format(spec: ModelConfig, encoder: bool) -> tuple[str, dict[str, Any]]:
    """float32 for a model that computes in bfloat16, and the other way round; an encoder's head stays in float32."""
    if spec.autocast or spec.dtype == "bfloat16":
        return "float32", {"dtype": "float32", "autocast": False}
    return "bfloat16", {"autocast": True} if encoder else {"dtype": "bfloat16"}


def _read_samples(cfg: ProbeConfig, file: FileConfig, words: Template) -> _Samples:
    """Samples that fit whole. One that was cut by the sampler (column ended) has no token that ends it.

    Raises:
        DataError: none fits.
    """
    told, _ = read_demonstrations(file.path, on_bad_record=file.on_bad_record, as_text=file.as_text, unique_ids=False)
    kept: list[Demonstration] = []
    rows: list[Row] = []
    for one in told:
        ids = words.response_ids(one.response, one.prompt.meta.get("ended") is not False, after=one.prompt.text)
        fitted = fit(words, one.prompt, [ids], file.max_length, file.too_long)
        if fitted.outcome != "dropped" and fitted.responses[0] == ids:
            kept.append(one)
            rows.append(Row(fitted.prompt_ids + ids, len(fitted.prompt_ids), one.id))
    if not rows:
        raise DataError(f"none of {len(told)} samples fits whole into {file.max_length} tokens", where=file.path,
                        remedy="Raise samples.max_length.")
    return _Samples(rows, prompt_groups([one.prompt for one in kept]), _gold(cfg, kept))


def _gold(cfg: ProbeConfig, samples: Sequence[Demonstration]) -> Tensor | None:
    """By the function or, where there is none, as the file says."""
    if cfg.gold is not None:
        function = scoring_function(cfg.gold)
        return torch.tensor([one_score(function, one.prompt, one.response, one.prompt.meta.get("ended") is not False)
                             for one in samples])
    said = [one.prompt.meta.get("gold") for one in samples]
    known = [float(x) for x in said if isinstance(x, int | float) and not isinstance(x, bool)]
    return torch.tensor(known) if len(known) == len(said) else None


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a line that a killed run left half-written is passed over.

    Raises:
        RunError: there is none.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise RunError("no metrics.jsonl in this folder, so no run to probe", where=str(folder),
                       remedy="Name the folder that the run's --out named.")
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def _with_length(before: Tensor, of_samples: Tensor, there: Material, samples: _Samples | None, yard: Yardstick,
                 ) -> list[Measure]:
    """Correlation of score and length over samples, where prompts have several, else over both responses of pairs."""
    if samples is not None and bool((torch.bincount(samples.groups) > 1).any()):
        lengths = torch.tensor(lengths_of(samples.rows))
        return within_prompt(of_samples, lengths, samples.groups, yard.seed,
                             "score and length in tokens within a prompt, over samples of the policy")
    # The label is part of this one: chosen responses score higher, and may be longer.
    return within_prompt(before, torch.tensor(lengths_of(there.rows)), there.groups, yard.seed,
                         "score and length in tokens within a prompt, over both responses of each pair")


def _over_optimised(samples: _Samples | None, scores: Tensor, ppo: list[dict[str, Any]] | None, cfg: ProbeConfig,
                    ) -> dict[str, Any]:
    found: list[Measure] = []
    curve: list[dict[str, Any]] = []
    needs = []
    if samples is None:
        needs.append("needs --samples, several per prompt with a gold score")
    elif samples.gold is None:
        needs.append("the samples have no gold score: needs --gold, or a column gold")
    elif int(torch.bincount(samples.groups).double().median()) < 2:
        needs.append("most prompts of the samples have one response: needs several")
    else:
        curve, by_n = curve_of_best(scores, samples.gold, samples.groups, cfg.seed)
        found += of_best(curve, by_n, cfg.seed)
        found += within_prompt(scores, samples.gold, samples.groups, cfg.seed, "score and gold within a prompt")
    if ppo is None:
        needs.append("needs --ppo_run")
    elif path := curve_of_ppo(ppo):
        found += of_ppo(path)
        curve += path
    else:
        needs.append("the PPO run logged no gold on held-out prompts: run it with --gold and eval_prompts")
    return probe("over_optimisation", found, needs="; ".join(needs), curve=curve)


def _inflated(training: list[dict[str, Any]] | None) -> dict[str, Any]:
    if training is None:
        return probe("inflation", [], needs="needs --training_run")
    curve, found = of_training(training)
    return probe("inflation", found, curve=curve,
                 needs="" if found else "the training run has fewer than two evaluations: lower its eval_every")


def _examples(there: Material, altered: Sequence[Change], before: Tensor, after: Sequence[Tensor], n: int,
              ) -> list[dict[str, Any]]:
    """Of each change the largest rises, as two rows: how the response was, how it became."""
    rows = []
    for change, new in zip(altered, after, strict=True):
        rise = new - before[torch.tensor(change.of, dtype=torch.long)]
        for k in rise.argsort(descending=True, stable=True)[:n].tolist():
            i = change.of[k]
            prompt, asked = there.pairs[there.pair(i)].prompt, change.prompts[k]
            shown: list[dict[str, str]] = [{"role": m.role, "content": m.content} for m in prompt.messages] or [
                {"role": "text", "content": prompt.text or ""}]
            if asked is not prompt:
                shown.append({"role": "and instead", "content": asked.text or asked.messages[-1].content})
            side = "chosen" if i < len(there.pairs) else "rejected"
            shared = {"step": 0, "id": f"{prompt.id}, {side}: {change.name}", "prompt": shown, "domain": change.name}
            for text, value, row in ((there.text(i), before[i], there.rows[i]),
                                     (change.texts[k], new[k], change.rows[k])):
                rows.append(shared | {"response": text, "score": float(value), "n_tokens": row.n_tokens - row.n_prompt})
    return rows


def _line(number: int, one: dict[str, Any]) -> str:
    """A probe in one line: its verdict, and the measures that gave it."""
    head = f"{number} {one['title'].lower()}: {one['verdict']}"
    if one["verdict"] == NOT_RUN:
        return f"{head}: {one['needs'] or 'nothing in the data could be changed so'}"
    behind = [_number(measure) for measure in one["measures"]
              if measure["verdict"] == one["verdict"] and measure["value"]["mean"] is not None]
    more = f", and {len(behind) - 3} more" if len(behind) > 3 else ""
    return f"{head}: {', '.join(behind[:3])}{more}" if behind else f"{head}: the data say nothing about it"


def _number(measure: dict[str, Any]) -> str:
    value = measure["value"]
    if value["low"] is None:
        return f"{measure['name']} {value['mean']:.2g}"
    return f"{measure['name']} {value['mean']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"
