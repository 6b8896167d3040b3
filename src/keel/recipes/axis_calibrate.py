"""`keel axis calibrate`: thresholds for activation capping, at stated percentiles of a stated population.

Left out: choosing among the presets, which needs a measure of harm and of capability (`keel axis evaluate`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from keel import runs
from keel.config import Config
from keel.data.files import FileConfig
from keel.data.load import read_demonstrations
from keel.data.records import Demonstration
from keel.data.render import Row, Template, Truncation, render_demonstrations, template
from keel.errors import DataError
from keel.models.load import FrozenModelConfig, causal_lm, check_context, load_tokenizer
from keel.models.residual import n_blocks
from keel.persona.asking import keeps_system
from keel.persona.axis import AssistantAxis
from keel.persona.cap import axis_percentile, meaning, preset_lines
from keel.persona.misfit import misfit_of
from keel.persona.stored import is_stored, stored_units
from keel.persona.tables import write_table
from keel.persona.thresholds import Fit, Floor, Where, floors, in_force, presets, project_rows, windows_of
from keel.rng import shuffled

__all__ = ["AxisCalibrateConfig", "run"]

RESPONSES = ("responses.jsonl", "responses")
"""In the folder of an extract run: ours, and a folder as the authors' pipeline leaves it."""
FAR = 0.1
"""From a share that was meant to one that is found, so far that it has to be said."""
FEW = 10
"""Responses beyond a threshold, below which it rests on too few."""


class AxisCalibrateConfig(Config):
    """Everything `keel axis calibrate` reads."""

    out: Path = Field(description="run folder to make; the axis with its presets goes to axis.safetensors")
    axis: Path = Field(description="axis.safetensors to calibrate; its own presets stay")
    model: FrozenModelConfig = Field(description="model of the axis; it runs uncapped")
    responses: FileConfig = Field(description="what the model itself said: run folder of axis extract, or a file of "
                                  "prompts with responses")
    which: Literal["all", "default", "role", "trait"] = Field("all", description="of an extract run, whose responses "
                                                              "are the population; published: all")
    limit: int = Field(5000, ge=2, description="responses used, drawn by the seed")
    percentiles: tuple[float, ...] = Field((0.01, 0.25, 0.5, 0.75), min_length=1, description="of the role-playing "
                                           "direction: 0.25 is the axis's own 0.75; 25% stay, 75% are lifted")
    fit: Fit = Field("response", description="percentiles over means of responses, as published, or over single tokens")
    where: Where = Field("all", description="tokens that the presets are made for; generation begins at the last "
                         "prompt token")
    layers: tuple[str, ...] | None = Field(None, description="windows of blocks as slices, such as 46:54; none: "
                                           "windows of all widths")
    widths: tuple[int, ...] | None = Field(None, description="blocks in a window; none: an eighth of the model's")
    every: int | None = Field(None, ge=1, description="blocks between the beginnings of windows; none: half a width")
    check: int = Field(16, ge=0, description="responses on which every preset is tried out; 0: none")
    control: int | None = Field(None, ge=0, description="seed of a random direction of the same length, calibrated in "
                                "the axis's place")
    micro_tokens: int = Field(8192, ge=1, description="token positions per forward pass; changes memory, not results")
    seed: int = Field(0, ge=0, description="fixes which responses are drawn")

    @model_validator(mode="after")
    def _check(self) -> "AxisCalibrateConfig":
        if bad := [one for one in self.percentiles if not 0 < one < 1]:
            raise ValueError(f"percentiles has {bad[0]:g}; give shares between 0 and 1, such as 0.25")
        if self.layers is not None and (self.widths or self.every):
            raise ValueError("layers names the windows, so widths and every do nothing beside it")
        if self.widths is not None and (not self.widths or min(self.widths) < 1):
            raise ValueError(f"widths={self.widths} has no window of a block or more")
        return self


def run(cfg: AxisCalibrateConfig) -> runs.RunResult:
    """Write the axis with its presets, and what each of them would touch."""
    source = _extracted(cfg) or Path(cfg.responses.path)
    with runs.start("axis calibrate", cfg, cfg.out, seed=cfg.seed, data=[cfg.axis, source]) as log:
        axis = AssistantAxis.load(cfg.axis)
        if cfg.control is not None:
            axis = axis.random(cfg.control)
        words = template(load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code))
        model = causal_lm(cfg.model.whole)
        axis.fitting(model, None)
        windows = windows_of(n_blocks(model), cfg.layers, cfg.widths, cfg.every)
        # The population: what the uncapped model said, read by itself again.
        told = _population(cfg, words)
        composition = dict(sorted(Counter(str(one.prompt.meta.get("kind", "response")) for one in told).items()))
        rows, cut = render_demonstrations(words, told, cfg.responses.max_length, cfg.responses.too_long)
        rows, contents = with_content(words, rows)
        check_context(model, max(row.n_tokens for row in rows))
        layers = sorted({layer for start, stop in windows for layer in range(start, stop)})
        projected = project_rows(model, axis, rows, contents, layers, micro_tokens=cfg.micro_tokens,
                                 pad_id=words.pad_id)
        # The thresholds, and presets of them.
        stated = sorted(dict.fromkeys(cfg.percentiles))
        found = floors(projected, stated, cfg.fit, cfg.where)
        population = _said(cfg, len(rows), len(projected.response), composition)
        made = presets(found, windows, fit=cfg.fit, where=cfg.where, population=population, source=str(cfg.out))
        axis = replace(axis, caps=dict(axis.caps) | made)
        axis.save(cfg.out / "axis.safetensors")
        # Tried out: behind one cap of a window the next one sees what the first left.
        progress = log.bar(len(made), 0)
        tried = []
        for name in made if cfg.check else ():
            acted = in_force(model, axis, name, rows[: cfg.check], cfg.where, micro_tokens=cfg.micro_tokens,
                             pad_id=words.pad_id)
            tried += [{"preset": name, "layer": layer, "where": part, **numbers}
                      for layer, parts in acted.items() for part, numbers in parts.items()]
            progress.advance(name)
        for text in [*cautions(cfg, found, axis, len(rows), cut), misfit_of(axis, cfg.model.whole, model, words)]:
            if text is not None:
                log.note(text)
        table = [asdict(one) | {"percentile_on_axis": axis_percentile(one.stated)} for one in found]
        write_table(cfg.out, "thresholds", list(table[0]), table)
        write_table(cfg.out, "clamped", ("preset", "layer", "where", "n_tokens", "clamped", "correction"), tried)
        said = {"population": population, "meaning": [meaning(one) for one in stated]}
        runs.write_json(cfg.out / "calibration.json", said | {
            "fit": cfg.fit, "where": cfg.where, "presets": {name: list(cap.layers) for name, cap in made.items()},
            "thresholds": table, "clamped": tried})
        for line in (population, *preset_lines(made), *_shares(found, stated)):
            print(line)
        return log.finish(said | {
            "n_responses": len(rows), "n_response_tokens": len(projected.response), "composition": composition,
            "n_prompt_tokens": len(projected.prompt) + len(projected.last), "n_presets": len(made),
            "skipped": vars(cut) | {"without_content": len(told) - cut.n_dropped - len(rows)}})


def _extracted(cfg: AxisCalibrateConfig) -> Path | None:
    """The responses of an extract run, ours or the authors', by its folder or by themselves; none where a file of
    records was given."""
    given = Path(cfg.responses.path)
    if given.is_file() and is_stored(given):
        return given
    return next((given / name for name in RESPONSES if (given / name).exists()), None)


def _population(cfg: AxisCalibrateConfig, words: Template) -> list[Demonstration]:
    """Responses drawn by the seed."""
    file = _extracted(cfg)
    if file is not None:
        units = stored_units(file, {}, keeps_system(words))
        told = [Demonstration(one.prompt, one.text) for unit in units for one in unit
                if cfg.which in ("all", one.item.kind)]
    elif cfg.which != "all":
        raise DataError(f"which={cfg.which!r} picks from an extract run, and this is a file of responses",
                        where=cfg.responses.path, remedy="Leave which out: every response of a file counts.")
    else:
        told, _ = read_demonstrations(cfg.responses.path, on_bad_record=cfg.responses.on_bad_record,
                                      as_text=cfg.responses.as_text, unique_ids=False)
    return [told[i] for i in shuffled(len(told), cfg.seed, "calibrate")[: cfg.limit]]


def with_content(words: Template, rows: Sequence[Row]) -> tuple[list[Row], list[tuple[int, int]]]:
    """Rows whose responses say something, and where: behind the template's own lead, before what ends the turn.

    Raises:
        DataError: fewer than two of them do.
    """
    lead = words.response_ids("", ended=False) if words.lead.strip() else []
    kept, contents = [], []
    for row in rows:
        response = row.ids[row.n_prompt :]
        start = row.n_prompt + (len(lead) if response[: len(lead)] == lead else 0)
        end = row.n_tokens - (response[-1:] == [words.end_id])
        if start < end:
            kept.append(row)
            contents.append((start, end))
    if len(kept) < 2:
        raise DataError(f"{len(kept)} of {len(rows)} responses have any text: no percentile can be taken",
                        where="responses", remedy="Give what the model said; with which, there may be none of a kind.")
    return kept, contents


def _said(cfg: AxisCalibrateConfig, n_responses: int, n_tokens: int, composition: Mapping[str, int]) -> str:
    """The population in words; it goes into the file with the presets."""
    tokens = "all tokens of prompts and responses" if cfg.where == "all" else "tokens from the last prompt token on"
    of = "means over response tokens" if cfg.fit == "response" else f"single tokens ({tokens})"
    parts = "" if "response" in composition else f" ({', '.join(f'{n} {kind}' for kind, n in composition.items())})"
    return (f"population: {of} of {n_responses} responses{parts} with {n_tokens} tokens, by the uncapped model; "
            f"made for {tokens}")


def cautions(cfg: AxisCalibrateConfig, found: Sequence[Floor], axis: AssistantAxis, n_responses: int, cut: Truncation,
             ) -> list[str]:
    """What a user of the presets has to know: tokens that were not fitted, few responses, cut ones, another model."""
    told = []
    for stated in dict.fromkeys(one.stated for one in found):
        here, meant = [one for one in found if one.stated == stated], axis_percentile(stated)
        parts = {"response tokens": [one.response for one in here]} | (
            {"prompt tokens": [one.prompt for one in here]} if cfg.where == "all" else {})
        far = {name: shares for name, shares in parts.items() if max(abs(x - meant) for x in shares) > FAR}
        if far and cfg.fit == "response":
            seen = " and ".join(f"{min(shares):.0%} to {max(shares):.0%} of {name}" for name, shares in far.items())
            told.append(f"the floors of p{stated:g} lift {meant:.0%} of the population, but {seen}: the population is "
                        "not what a cap acts on")
        if n_responses * min(stated, 1 - stated) < FEW:
            told.append(f"p{stated:g} rests on {n_responses} responses, of which fewer than {FEW} lie beyond it")
    if cut.n_dropped or cut.n_cut:
        told.append(f"{cut.n_dropped} responses were too long and left out, {cut.n_cut} rows were cut at "
                    f"{cut.max_length} tokens: raise responses.max_length where the long ones differ")
    model = axis.meta.get("model")
    by_name = "model_identity" not in axis.meta  # else it is compared by what it is
    if model is not None and by_name and Path(model).name != Path(cfg.model.path).name:
        told.append(f"the axis was extracted from {model}, and calibrated on {cfg.model.path}")
    return told


def _shares(found: Sequence[Floor], stated: Sequence[float]) -> list[str]:
    """How many tokens the floors touch, by percentile, from the least to the most over the blocks."""
    lines = []
    for one in stated:
        here = [floor for floor in found if floor.stated == one]
        parts = {"the population": [floor.population for floor in here],
                 "prompt tokens": [floor.prompt for floor in here],
                 "response tokens": [floor.response for floor in here]}
        spans = [f"{min(shares):.1%} to {max(shares):.1%} of {name}" for name, shares in parts.items()]
        lines.append(f"below the floors of p{one:g}, block by block: {', '.join(spans)}")
    return lines
