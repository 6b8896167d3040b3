"""The drift monitor: how far a policy's responses reach along an axis, against the model as it was at the start.

It only reads. The axis stays as it is in its file; `keel.online.fresh` says when that reading is no longer valid.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from keel.batches import Rollout
from keel.config import Config
from keel.data.collate import Tokens
from keel.data.load import read_prompts
from keel.data.render import PromptRow, Row, render_prompts
from keel.errors import DataError
from keel.functional.directions import project
from keel.functional.resampling import association_draws, cluster_draws, percentile_interval
from keel.functional.statistics import correlation
from keel.models.forward import hidden_states
from keel.models.residual import Columns, attach
from keel.online.anchor import AnchorConfig, Start
from keel.online.fresh import Fresh, FreshConfig, fresh
from keel.online.gauge import Gauge, SampledMeans, answer_rows, opened, readings, response_means
from keel.persona.settings import AxisConfig
from keel.rng import shuffled, stream
from keel.rollout.measure import parts_of
from keel.rollout.respond import respond
from keel.runs import write_json
from keel.train import alarms

__all__ = ["KINDS", "PersonaConfig", "Watch", "correlate", "files_of", "hearing", "read_bare", "reading", "result_of",
           "visited", "watch"]

FILE = "persona.json"
KINDS = ("neutral", "role", "drift")
LOWEST = 0.05
"""Share of the start's neutral answers below which a response counts as below."""
N_DRAWS = 1000
MOST_CORRELATED = 2000


class PersonaConfig(Config):
    """What watches how Assistant-like the policy is, and when."""

    path: Path = Field(description="axis.safetensors of the model that learns")
    layers: tuple[int, ...] = Field((), description="blocks to read at; none: the axis's own")
    probes: str = Field(description="prompts that are answered again and again, of three kinds: neutral, role, drift; "
                        "neutral ones set the scale")
    column: str = Field("probe", min_length=1, description="where a probe says what it is: neutral, role or drift")
    n_probes: int = Field(64, ge=2, description="of each kind at most, drawn by the seed")
    every: int = Field(100, ge=1, description="steps, or phases, between two visits to the probes")
    fresh: FreshConfig | None = Field(None, description="extracts the axis again from the policy; none: never")


@dataclass
class Watch:
    """Who reads the policy, and what the model of the start showed.

    Attributes:
        cfg: settings.
        gauge: reads the projections.
        start: the run's; its model is read before it learns.
        probes: by kind.
        mean, std, low: of the start's neutral answers at each block: their mean, spread and lowest twentieth.
        answers: the start's own answers to the probes, by kind, that say something.
        then: where it stood on them. [S B]
        fresh: extracts the axis again; none: nobody does.
        last: what the last visit to the probes showed.
        advantage: correlation of the data's advantages with where the start stands, where there are such.
        sampled, held: the phase at hand as the policy wrote it and as the reference reads it; where an axis acts on the
            policy, as both read it without. [S B]
    """

    cfg: PersonaConfig
    gauge: Gauge
    start: Start
    probes: Mapping[str, list[PromptRow]]
    mean: Float[Tensor, " S"]
    std: Float[Tensor, " S"]
    low: Float[Tensor, " S"]
    answers: Mapping[str, list[Row]]
    then: Mapping[str, Float[Tensor, "S B"]]
    fresh: Fresh | None = None
    sampled: Tensor | None = None
    held: Tensor | None = None
    last: dict[str, float] = field(default_factory=dict)
    advantage: dict[str, float] = field(default_factory=dict)

    def numbers(self, prefix: str, means: Float[Tensor, "S B"], change: Float[Tensor, "S B"] | None,
                ) -> dict[str, float]:
        """Of responses: projection, z, share below, and the change on the same tokens; the first block unnamed."""
        found = dict[str, float]()
        for k, layer in enumerate(self.gauge.layers):
            name = prefix if k == 0 else f"{prefix}block_{layer}/"
            p = means[k][~means[k].isnan()]
            if len(p):
                found |= {f"{name}projection": float(p.mean()),
                          f"{name}z": float(((p - self.mean[k]) / self.std[k]).mean()),
                          f"{name}below": float((p < self.low[k]).float().mean())}
            if change is not None and not bool(change[k].isnan().all()):
                found[f"{name}delta"] = float(change[k].nanmean())
        return found

    def seen(self) -> dict[str, float]:
        """What the responses of the phase at hand show."""
        if self.sampled is None:
            return {}
        return self.numbers("persona/", self.sampled, None if self.held is None else self.sampled - self.held)

    def probe(self, model: nn.Module) -> dict[str, float]:
        """What the probes show: the model's own answers now, and what it makes of the start's answers."""
        found = dict[str, float]()
        for kind, asked in self.probes.items():
            now = response_means(self._read(model, self._answered(model, kind, asked)))
            again = response_means(self._read(model, self.answers[kind])) if self.answers[kind] else None
            found |= self.numbers(f"persona/{kind}/", now, None if again is None else again - self.then[kind])
        return found

    def visit(self, model: nn.Module, step: int, *, last: bool) -> dict[str, float]:
        """The probes, and a fresh axis, where they are due."""
        if step % self.cfg.every and not last:
            return {}
        self.last = self.probe(model)
        if self.fresh is not None and (last or self._is_due(step)):
            self.last |= self.fresh.compared(model, self.gauge.layers[0])
        return self.last

    def _is_due(self, step: int) -> bool:
        every = None if self.fresh is None else self.fresh.cfg.every
        return every is not None and step > 0 and step // self.cfg.every % every == 0

    def result(self) -> dict[str, Any]:
        """What result.json says."""
        return {"persona": {"layers": self.gauge.layers, "mean": self.mean.tolist(), "std": self.std.tolist(),
                            "low": self.low.tolist(), "n_probes": {kind: len(x) for kind, x in self.probes.items()},
                            "last": self.last} | (
            {"advantage": self.advantage} if self.advantage else {})}

    def correlated(self, rows: Sequence[Tokens], values: Sequence[float]) -> dict[str, float]:
        """Correlation of what responses are worth with where the start stands on them, with its 95% interval; it reads
        at most `MOST_CORRELATED` of them, drawn by the seed. Empty for fewer than two that say something."""
        picked = sorted(shuffled(len(rows), self.start.seed, "correlated")[:MOST_CORRELATED])
        p = response_means(self._read(self.start.model, [rows[i] for i in picked]))[0]
        worth = torch.tensor([float(values[i]) for i in picked])
        p, worth = p[~p.isnan()], worth[~p.isnan()]
        if len(p) < 2:
            return {}
        draws = cluster_draws(len(p), n_draws=N_DRAWS, generator=stream(self.start.seed, "bootstrap", "correlated"))
        low, high = percentile_interval(association_draws(p, worth, draws, how="pearson"))
        return {"mean": float(correlation(p, worth)), "low": float(low), "high": float(high), "n": len(p)}

    def _answered(self, model: nn.Module, kind: str, asked: list[PromptRow]) -> list[Row]:
        start = self.start
        return answer_rows(respond(model, start.words, asked, start.sampling, seed=start.seed,
                                   names=["persona", kind]), asked)

    def _read(self, model: nn.Module, rows: Sequence[Tokens]) -> list[Float[Tensor, "S N"]]:
        return readings(model, self.gauge, rows, self.start.words, self.start.micro_tokens)

    def begin(self) -> None:
        """Read the model of the start, whose neutral answers are what everything is scaled on.

        Raises:
            DataError: they say too little, or all the same.
        """
        for kind, asked in self.probes.items():
            rows = self._answered(self.start.model, kind, asked)
            found = self._read(self.start.model, rows)
            self.answers = {**self.answers, kind: [row for row, one in zip(rows, found, strict=True) if one.numel()]}
            self.then = {**self.then, kind: response_means([one for one in found if one.numel()] or found)}
        neutral = self.then["neutral"]
        spread = neutral.std(1) if neutral.shape[1] > 1 else torch.zeros(len(neutral))
        if not bool((spread > 0).all()):
            raise DataError(f"{len(self.answers['neutral'])} neutral answers of the start leave no spread to scale on",
                            where="persona.probes", remedy="Give more neutral prompts, or look why the model hardly "
                                                           "answers them.")
        self.mean, self.std, self.low = neutral.mean(1), spread, neutral.quantile(LOWEST, dim=1)

    def row(self) -> dict[str, Any]:
        """What the run folder keeps of the start."""
        return {"layers": self.gauge.layers, "mean": self.mean.tolist(), "std": self.std.tolist(),
                "low": self.low.tolist(), "then": {kind: x.tolist() for kind, x in self.then.items()},
                "answers": {kind: [vars(row) for row in rows] for kind, rows in self.answers.items()}}


def watch(cfg: PersonaConfig | None, start: Start) -> Watch | None:
    """Read the model of the start, or what it showed when the run began; none where nobody watches.

    Raises:
        DataError: a probe does not say what it is, none is neutral, or the answers cannot be scaled on.
        ModelError: the axis file is missing or does not fit the model.
    """
    if cfg is None:
        return None
    gauge, nothing = Gauge(opened(cfg.path, start.model, cfg.layers)), torch.zeros(0)
    found = Watch(cfg, gauge, start, probes_of(cfg, start), nothing, nothing, nothing, {}, {},
                  fresh(cfg.fresh, start, cfg.path))
    file = start.log.folder / FILE
    if not start.known(FILE):
        found.begin()
        write_json(file, found.row())
        return found
    held = json.loads(file.read_text(encoding="utf-8"))
    found.mean, found.std, found.low = (torch.tensor(held[name]) for name in ("mean", "std", "low"))
    found.then = {kind: torch.tensor(x) for kind, x in held["then"].items()}
    found.answers = {kind: [Row(**row) for row in rows] for kind, rows in held["answers"].items()}
    return found


def probes_of(cfg: PersonaConfig, start: Start) -> dict[str, list[PromptRow]]:
    """The probes of each kind that the file has, rendered. Raises: see `watch`."""
    prompts = read_prompts(cfg.probes)[0]
    kinds = [prompt.label(cfg.column) for prompt in prompts]
    odd = [prompt.id for prompt, kind in zip(prompts, kinds, strict=True) if kind not in KINDS]
    if odd:
        raise DataError(f"{len(odd)} probes do not say in {cfg.column!r} whether they are {', '.join(KINDS)} (first: "
                        f"{odd[0]})", where=cfg.probes, remedy="Give each probe one of these words there.")
    found = {}
    for kind in KINDS:
        mine = [prompt for prompt, own in zip(prompts, kinds, strict=True) if own == kind]
        some = [mine[i] for i in sorted(shuffled(len(mine), start.seed, "probes", kind)[: cfg.n_probes])]
        if some:
            found[kind] = render_prompts(start.words, some, max(start.room, 1), "drop")[0]
    if "neutral" not in found:
        raise DataError("no probe is neutral, and on neutral answers everything is scaled", where=cfg.probes,
                        remedy="Add prompts that the default Assistant answers.")
    return found


def visited(watched: Watch | None, model: nn.Module, step: int, *, last: bool) -> None:
    """Visit the probes where that is due, log what they show, and raise the alarm."""
    found = {} if watched is None else watched.visit(model, step, last=last)
    if watched is not None and found:
        watched.start.log.log(step, found, "eval")
        for alarm in alarms.persona_drift(found.get("persona/neutral/z", 0.0)):
            watched.start.log.alarm(alarm.row(step))


def files_of(anchor: AnchorConfig | None, persona: PersonaConfig | None, *axes: AxisConfig | None) -> list[Path]:
    """Every file that the settings of axes name, so that a resumed run can see whether one has changed."""
    named = [cfg.path for cfg in (anchor, persona, *axes) if cfg is not None]
    if anchor is not None and anchor.defaults is not None:
        named.append(Path(anchor.defaults))
    if persona is not None:
        named += [Path(persona.probes), *((persona.fresh.roles, persona.fresh.questions) if persona.fresh else ())]
    return list(dict.fromkeys(named))


def correlate(watched: Watch | None, rows: Sequence[Tokens], values: Sequence[float]) -> None:
    """Before anything is learned: does what is worth more lie further from the Assistant?"""
    if watched is None:
        return
    found = watched.advantage = watched.correlated(rows, values)
    if found and found["high"] < 0:
        watched.start.log.note(f"the more Assistant-like a response, the lower its advantage (correlation "
                               f"{found['mean']:.2f}, 95% {found['low']:.2f} to {found['high']:.2f}): expect drift")


def result_of(watched: Watch | None) -> dict[str, Any]:
    """What result.json says; nothing where nobody watches."""
    return {} if watched is None else watched.result()


@contextmanager
def hearing(watched: Watch | None, policy: nn.Module, n_responses: int) -> Iterator[None]:
    """The responses that the policy samples inside are those of the phase at hand."""
    if watched is None:
        yield
        return
    heard = SampledMeans(watched.gauge, n_responses)
    with heard.on(policy):
        yield
    watched.sampled = heard.means()


@contextmanager
def reading(watched: Watch | None, model: nn.Module, rollout: Rollout, micro_tokens: int, *, own: bool = False,
            ) -> Iterator[None]:
    """The same responses as the reference (`own`: the policy itself) reads them, in the first passes of this model
    inside, which are in the order of `parts_of`; those that `measure` makes anyway are."""
    if watched is None:
        yield
        return
    parts, passes = parts_of(rollout, micro_tokens), dict[int, list[Tensor]]()
    gauge = watched.gauge

    def look(layer: int, hidden: Tensor, columns: Columns) -> None:
        behind = columns.generated & columns.real
        # What the sampler fed of a response: all but its last token, and not the prompt's last one either.
        fed = behind & torch.nn.functional.pad(behind[:, :-1], (1, 0)) & torch.nn.functional.pad(behind[:, 1:], (0, 1))
        found = project(hidden, gauge.units[layer].to(hidden.device))
        means = torch.where(fed, found, 0.0).sum(1) / fed.sum(1)
        passes.setdefault(layer, []).append(means.cpu())

    with attach(model, dict.fromkeys(gauge.layers, look)):
        yield
    order = torch.tensor([i for part in parts for i in part]).argsort()
    found = torch.stack([torch.cat(passes[layer][: len(parts)])[order] for layer in gauge.layers])
    if own:
        watched.sampled = found
    else:
        watched.held = found


@torch.no_grad()
def read_bare(watched: Watch | None, policy: nn.Module, reference: nn.Module, rollout: Rollout, micro_tokens: int,
              ) -> None:
    """The responses of the phase at hand as policy and reference read them with nothing acting on either: where an axis
    does while responses are sampled, the sampler's own states say nothing of the model that is saved."""
    if watched is None:
        return
    for model, own in ((policy, True), (reference, False)):
        with reading(watched, model, rollout, micro_tokens, own=own):
            for part in parts_of(rollout, micro_tokens):
                hidden_states(model, rollout.rows(part).tokens)
