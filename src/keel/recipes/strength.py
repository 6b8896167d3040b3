"""Preference strength: several reward models vote on every label of a data file; what they doubt is listed and mended.

Voters are trained one after another, each from the same trunk with a head and an order of the data of its own, or given
as finished reward models. Each judges in its own step, after its training; its scores are on disk before the next one
begins. Left out: regularisers of the reward model (methods of their own); a voter is plain Bradley-Terry.
"""

import contextlib
import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from keel import runs
from keel.batches import PairBatch, SharedPrompt
from keel.bench.audit import audit
from keel.bench.measures import prompt_groups
from keel.bench.pairwise import score_pairs
from keel.bench.suspects import oddities, suspects
from keel.config import Config
from keel.data.collate import pair_batches
from keel.data.load import read_pairs
from keel.data.records import PreferencePair, Strength
from keel.data.render import PairRow, Template, Truncation, render_pairs, template
from keel.data.write import Layout, write_records
from keel.errors import DataError, NumericsError
from keel.functional.ensemble import standardised
from keel.functional.masked import weighted_sum
from keel.functional.preference import bradley_terry, centring
from keel.functional.statistics import bootstrap_interval
from keel.functional.strength import quantile_of, votes
from keel.models.load import ModelConfig, check_context, device_of, load_tokenizer, save_model, scalar_model
from keel.models.members import fresh_member, save_adapter, shared_trunk
from keel.models.pairs import joining, pair_scores
from keel.rng import digest, shuffled, stream
from keel.train import checkpoint
from keel.train.clock import Clock
from keel.train.denoise import DenoiseConfig, denoised
from keel.train.inputs import FileConfig
from keel.train.order import batch_indices, n_steps
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally

__all__ = ["StrengthConfig", "run"]

FEW = 10  # pairs per quantile below which its numbers are noise


class StrengthConfig(Config):
    """Everything `keel strength` reads."""

    out: Path = Field(description="run folder to make; strength.jsonl, suspects.jsonl and audit.json go there")
    model: ModelConfig | None = Field(None, description="trunk of every voter: a causal LM (best the SFT policy) or an "
                                      "encoder; none: models vote")
    models: tuple[ModelConfig, ...] = Field((), description="finished reward models that vote instead of trained ones")
    data: FileConfig = Field(description="preference pairs to judge, and to train the voters on")
    voters: int = Field(10, ge=2, description="reward models to train; the paper: 10")
    folds: int = Field(0, ge=0, description="0: voters learn from all pairs. K: each judges one fold, learns from the "
                       "others; a pair gets voters / K votes")
    seed: int = Field(0, ge=0, description="fixes each voter's head and order, and the folds")
    epochs: float = Field(1.0, gt=0, description="passes of a voter over its pairs; a second one memorises labels")
    batch: int = Field(32, ge=1, description="pairs per optimiser step")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass; changes memory, not results")
    shared_prompt: SharedPrompt = Field("auto", description="run a pair's prompt once for both responses: where it "
                                        "saves time, always, or never; changes speed, not results")
    center_coef: float = Field(0.0, ge=0, description="weight of (chosen + rejected)^2; 0.01 keeps scores near zero")
    optimizer: OptimizerConfig = OptimizerConfig(lr=5e-6)
    one_scale: bool = Field(False, description="divide each voter's scores by the std of its differences; the paper "
                            "does not")
    clean: DenoiseConfig | None = Field(None, description="changes by strength; writes cleaned.jsonl")
    n_quantiles: int = Field(10, ge=2, description="groups of equal size, from the weakest pairs to the strongest")
    keep_models: bool = Field(True, description="save each voter as a reward model in members/NN/model; with "
                              "lora.rank as an adapter in members/NN/adapter")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")

    @model_validator(mode="after")
    def _check(self) -> "StrengthConfig":
        if (self.model is None) != bool(self.models):
            raise ValueError("give either model, the trunk of voters to be trained, or models, finished ones that vote")
        if len(self.models) == 1:
            raise ValueError("models names a single one; one voter has no spread, so give two or more")
        fixed = {name: type(self).model_fields[name].default for name in (
            "voters", "folds", "epochs", "center_coef", "batch", "optimizer", "keep_models")}
        if self.models and (moved := [name for name, value in fixed.items() if getattr(self, name) != value]):
            raise ValueError(f"models and {moved[0]} exclude each other: finished models are not trained")
        if self.folds == 1 or (self.folds and self.voters % self.folds):
            raise ValueError(f"voters={self.voters} and folds={self.folds}: folds is 0, or at least 2 and a divisor of "
                             "voters")
        return self

    @property
    def specs(self) -> tuple[ModelConfig, ...]:
        """The model of each voter."""
        return self.models if self.model is None else (self.model,) * self.voters


@dataclass(frozen=True)
class _Voter:
    """One reward model. Its steps are `first` + 1 ... `end`, the last of which is its vote.

    Attributes:
        seed: of its head and order; none where it is finished.
        learns, judges: indices of the pairs it trains on and of those it scores.
    """

    number: int
    spec: ModelConfig
    seed: int | None
    learns: list[int]
    judges: list[int]
    first: int
    end: int

    @property
    def n_steps(self) -> int:
        return self.end - self.first - 1


def run(cfg: StrengthConfig, *, resume: bool = False) -> runs.RunResult:
    """Train or load the voters, let them judge, and write strength.jsonl, suspects.jsonl, cleaned.jsonl, audit.json."""
    with runs.start("strength", cfg, cfg.out, seed=cfg.seed, data=[Path(cfg.data.path)], resume=resume) as log:
        pairs, report = read_pairs(cfg.data.path, on_bad_record=cfg.data.on_bad_record, as_text=cfg.data.as_text)
        read = _rendered(cfg, pairs)
        judged = next(iter(read.rows.values()))  # the same pairs for every model, each in its own tokens
        plan = _planned(cfg, [row.pair for row in judged])
        _warn(cfg, log, len(judged))
        # What has voted is on disk; what was being trained is in the newest checkpoint.
        done, extra = checkpoint.restore(log, modules={}, optimizers={}) if resume else (0, {})
        seconds: list[float] = extra.get("seconds", [])
        trunk = shared_trunk(cfg.model) if cfg.model is not None and cfg.model.lora.rank is not None else None
        progress = log.bar(plan[-1].end, done)
        for voter in plan[len(seconds):]:
            began = time.monotonic() - (extra["so_far"] if done > voter.first else 0.0)
            words, rows = read.words[voter.spec.path], read.rows[voter.spec.path]
            opened = contextlib.ExitStack()
            model = opened.enter_context(_opened(voter, trunk))
            check_context(model, max(row.longest for row in rows))
            learner = Learner.of([model], cfg.optimizer, voter.n_steps)
            state: dict[str, Any] = {"modules": {"voter": model}, "optimizers": {"optimizer": learner.optimizer}}
            if done > voter.first:
                checkpoint.restore(log, **state)
            # Learn: plain Bradley-Terry; a finished model has no steps here.
            shared, tally, clock = joining(model, cfg.shared_prompt), Tally(), Clock()
            start = max(done, voter.first) + 1
            batches = batch_indices(len(voter.learns), cfg.batch, voter.seed or 0, "voter",
                                    first_step=start - voter.first)
            for step in range(start, voter.end):
                batch = [rows[voter.learns[i]] for i in next(batches)]
                parts = [part.to(device_of(model)) for part in pair_batches(
                    batch, micro_tokens=cfg.micro_tokens, pad_id=words.pad_id, shared_prompt=shared)]
                _learn(cfg, model, parts, tally, step)
                metrics = tally.means() | learner.step(step - voter.first, [row.record_id for row in batch])
                log.log(step, {"member": voter.number, **metrics})
                log.time(step, clock.lap({"pairs": len(batch)}))
                if (step - voter.first) % cfg.save_every == 0 or step == voter.end - 1 or log.stop_requested():
                    checkpoint.save(log, step, **state, extra={"seconds": seconds, "so_far": time.monotonic() - began})
                _heed(log, step)
                progress.advance(f"voter {voter.number}  accuracy {metrics['accuracy']:.2f}")
            # Vote: every pair it is to judge, in eval mode, cut as in training.
            scores = score_pairs(model, [rows[i] for i in voter.judges], pad_id=words.pad_id,
                                 micro_tokens=cfg.micro_tokens, shared_prompt=cfg.shared_prompt,
                                 on_done=lambda _, at=voter.end - 1: _heed(log, at))
            _keep(cfg, voter, model, words, scores)
            opened.close()
            del model, learner, state  # one model in memory at a time: this one goes before the next one comes
            log.log(voter.end, {"member": voter.number, **_against_labels(scores)}, "eval")
            seconds = [*seconds, time.monotonic() - began]
            log.time(voter.end, {"seconds": seconds[-1]}, "eval")
            checkpoint.save(log, voter.end, modules={}, optimizers={}, extra={"seconds": seconds})
            progress.advance()
        # Count the votes, and write what they say.
        voted = _counted(cfg, plan, [row.pair for row in judged])
        counts = _write_all(cfg, voted, [(len(row.chosen_ids), len(row.rejected_ids)) for row in judged])
        against = torch.tensor([float(pair.strength.mean < 0) for pair in voted if pair.strength])
        mean, low, high = bootstrap_interval(against, generator=stream(cfg.seed, "bootstrap"),
                                             groups=prompt_groups([pair.prompt for pair in voted]))
        print(_said(cfg, len(voted), mean, counts))
        return log.finish({
            "n": len(voted), **counts, "members": [_member(cfg, voter) for voter in plan], "member_seconds": seconds,
            "peak_memory_bytes": _peak_memory(), "score_dtype": "float32",
            "skipped": {"records": report.n_dropped} | vars(read.cut),
            "headline": {"metric": "share of labels that the voters side against", "higher_is_better": False,
                         "after": {"mean": mean, "low": low, "high": high, "n": len(voted)}}})


def _learn(cfg: StrengthConfig, model: nn.Module, parts: Sequence[PairBatch], tally: Tally, step: int) -> None:
    """Gradients of a step. A function of its own, so that no graph holds a voter's weights after its time."""
    weight = max(sum(float(part.weight.sum()) for part in parts), 1e-9)
    for part in parts:
        chosen, rejected = pair_scores(model, part)
        loss, stats = bradley_terry(chosen, rejected, margin=part.margin, label_prob=part.label_prob)
        center = centring(chosen, rejected)
        objective = weighted_sum(loss + cfg.center_coef * center, part.weight) / weight
        tally.add({"loss": loss, "center": center, **stats}, part.weight)
        require_finite(objective.detach(), "loss", step, part.tokens.record_ids)
        objective.backward()


@contextlib.contextmanager
def _opened(voter: _Voter, trunk: nn.Module | None) -> Iterator[nn.Module]:
    """The voter's model: one of its own, or an adapter and a head on the trunk that all share."""
    if trunk is None or voter.seed is None:
        yield scalar_model(voter.spec, seed=voter.seed)
    else:
        with fresh_member(trunk, voter.spec.lora, voter.seed) as member:
            yield member


def _warn(cfg: StrengthConfig, log: runs.Run, n: int) -> None:
    if cfg.epochs > 1:
        log.note(f"epochs={cfg.epochs:g}: from the second pass on voters remember labels instead of judging them")
    if cfg.folds == cfg.voters:
        log.note(f"voters={cfg.voters} and folds={cfg.folds} leave each pair one vote, which has no spread")
    if n < FEW * cfg.n_quantiles:
        pairs = "1 pair" if n == 1 else f"{n} pairs"
        log.note(f"{pairs} in {cfg.n_quantiles} quantiles: fewer than {FEW} each, so their numbers are mostly noise")


@dataclass(frozen=True)
class _Read:
    """By model folder its template, and its tokens of the pairs that fit every model; what was cut or left out."""

    words: dict[str, Template]
    rows: dict[str, list[PairRow]]
    cut: Truncation


def _rendered(cfg: StrengthConfig, pairs: list[PreferencePair]) -> _Read:
    """The pairs as every model reads them.

    Raises:
        DataError: no pair fits all of them.
    """
    specs = {spec.path: spec for spec in cfg.specs}
    words = {path: template(load_tokenizer(path, trust_remote_code=spec.trust_remote_code))
             for path, spec in specs.items()}
    drawn = {path: render_pairs(own, pairs, cfg.data.max_length, cfg.data.too_long) for path, own in words.items()}
    ids = [frozenset(row.record_id for row in rows) for rows, _ in drawn.values()]
    rows = {path: [row for row in found if all(row.record_id in one for one in ids)]
            for path, (found, _) in drawn.items()}
    n = len(next(iter(rows.values())))
    if not n:
        raise DataError("no pair fits all the models", where=cfg.data.path,
                        remedy="Raise data.max_length, or choose another data.too_long.")
    cuts = [cut for _, cut in drawn.values()]
    return _Read(words, rows, Truncation(len(pairs), max(cut.n_fewer_turns for cut in cuts),
                                         max(cut.n_cut for cut in cuts), len(pairs) - n, cfg.data.max_length))


def _planned(cfg: StrengthConfig, pairs: Sequence[PreferencePair]) -> list[_Voter]:
    """Who learns from what and judges what, and on which steps of the run."""
    folds, everything = _folds(cfg, pairs), list(range(len(pairs)))
    plan, first = [], 0
    for number, spec in enumerate(cfg.specs):
        own = number % cfg.folds if cfg.folds else None
        judges = [i for i in everything if folds[i] == own] if cfg.folds else everything
        learns = [i for i in everything if folds[i] != own] if cfg.folds else everything
        steps = 0 if cfg.models else n_steps(len(learns), cfg.batch, cfg.epochs, None)
        seed = None if cfg.models else digest(cfg.seed, "voter", number)
        plan.append(_Voter(number, spec, seed, learns, judges, first, first + steps + 1))
        first = plan[-1].end
    return plan


def _folds(cfg: StrengthConfig, pairs: Sequence[PreferencePair]) -> list[int]:
    """The fold of each pair; pairs of one prompt share it, so that nobody judges a prompt that it has seen.

    Raises:
        DataError: there are fewer prompts than folds.
    """
    if not cfg.folds:
        return [0] * len(pairs)
    prompts = prompt_groups([pair.prompt for pair in pairs]).tolist()
    n = max(prompts) + 1
    if n < cfg.folds:
        raise DataError(f"{n} different prompts do not fill {cfg.folds} folds", where=cfg.data.path,
                        remedy="Lower folds, or give more data.")
    order = shuffled(n, cfg.seed, "folds")
    return [order[prompt] % cfg.folds for prompt in prompts]


def _heed(log: runs.Run, step: int) -> None:
    """Stop between two forward passes of a vote; the voter is in a checkpoint and votes again."""
    if log.stop_requested():
        log.stop(step)


def _keep(cfg: StrengthConfig, voter: _Voter, model: nn.Module, words: Template, scores: Tensor) -> None:
    """Write a voter's scores, and where asked for the voter, each whole or not at all.

    Raises:
        NumericsError: its differences have no spread, and one_scale needs one.
    """
    if cfg.one_scale and not float((scores[0] - scores[1]).std(correction=0)) > 0:
        raise NumericsError(f"voter {voter.number} gives every pair the same difference of scores",
                            where=str(voter.spec.path), remedy="It has learned nothing; set one_scale = false, or "
                            "leave it out.")
    folder = cfg.out / "members" / f"{voter.number:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_json(folder / "scores.json", {
        "voter": voter.number, "seed": voter.seed, "path": voter.spec.path, "weights_sha256": _digest(model),
        "dtype": "float32", "pairs": voter.judges, "chosen": scores[0].tolist(), "rejected": scores[1].tolist()})
    if cfg.keep_models and voter.seed is not None and voter.spec.lora.rank is not None:
        save_adapter(model, folder / "adapter")
    elif cfg.keep_models and voter.seed is not None:
        save_model(model, words.tokenizer, folder / "model", pad_id=words.pad_id)


def _digest(model: nn.Module) -> str:
    """One number for all weights of a model."""
    found = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        found.update(name.encode() + weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _against_labels(scores: Tensor) -> dict[str, float]:
    loss, stats = bradley_terry(scores[0], scores[1])
    return {"loss": float(loss.mean()), "accuracy": float(stats["accuracy"].mean()),
            "margin": float(stats["margin"].mean()), "margin_std": float(stats["margin"].std(correction=0))}


def _read(cfg: StrengthConfig, voter: _Voter) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cfg.out / "members" / f"{voter.number:02d}" / "scores.json").read_text())
    return found


def _counted(cfg: StrengthConfig, plan: list[_Voter], pairs: list[PreferencePair]) -> list[PreferencePair]:
    """The pairs with their votes; in meta the quantile of each, and the share of its voters that are for its label."""
    found, share_for = list(pairs), [0.0] * len(pairs)
    n_groups = cfg.folds or 1
    for group in range(n_groups):
        members = [_read(cfg, voter) for voter in plan[group::n_groups]]
        chosen, rejected = (torch.tensor([member[side] for member in members], dtype=torch.float64)
                            for side in ("chosen", "rejected"))
        counted = votes(chosen, rejected, one_scale=cfg.one_scale)
        if cfg.one_scale:
            spread = (chosen - rejected).std(1, correction=0)
            chosen, rejected = (standardised(side, torch.zeros_like(spread), spread) for side in (chosen, rejected))
        for place, i in enumerate(members[0]["pairs"]):
            strength = Strength(float(counted.mean[place]), float(counted.std[place]),
                                tuple(chosen[:, place].tolist()), tuple(rejected[:, place].tolist()))
            found[i], share_for[i] = replace(found[i], strength=strength), float(counted.share_for[place])
    means = torch.tensor([pair.strength.mean for pair in found if pair.strength], dtype=torch.float64)
    quantiles = quantile_of(means, n=cfg.n_quantiles).tolist()
    return [replace(pair, prompt=replace(pair.prompt, meta={**pair.prompt.meta, "quantile": q, "vote_share": share}))
            for pair, q, share in zip(found, quantiles, share_for, strict=True)]


def _write_all(cfg: StrengthConfig, voted: list[PreferencePair], lengths: list[tuple[int, int]]) -> dict[str, Any]:
    """Every file that the votes lead to; how many pairs each holds."""
    for litter in cfg.out.glob(".*.unfinished"):  # of a process that was killed here
        litter.unlink()
    doubted = suspects(voted, odd := oddities(voted))
    _write(voted, cfg.out / "strength.jsonl", "published")
    _write(doubted, cfg.out / "suspects.jsonl", "keel")
    counts: dict[str, Any] = {"n_suspects": len(doubted)}
    if cfg.clean is not None:
        cleaned, changes = denoised(voted, cfg.clean)
        _write(cleaned, cfg.out / "cleaned.jsonl", "keel")
        counts |= {"n_cleaned": len(cleaned), "changes": changes}
    runs.write_json(cfg.out / "audit.json", audit(voted, lengths, odd, n_quantiles=cfg.n_quantiles))
    return counts


def _write(pairs: Sequence[PreferencePair], file: Path, layout: Layout) -> None:
    file.unlink(missing_ok=True)  # of a process that was killed after it wrote this
    write_records(pairs, file, layout=layout)


def _member(cfg: StrengthConfig, voter: _Voter) -> dict[str, Any]:
    found = _read(cfg, voter)
    scores = torch.tensor([found["chosen"], found["rejected"]])
    return {"voter": voter.number, "seed": voter.seed, "path": voter.spec.path, "steps": voter.n_steps,
            "n_learned": len(voter.learns) if voter.seed is not None else 0, "n_judged": len(voter.judges),
            "accuracy": _against_labels(scores)["accuracy"], "weights_sha256": found["weights_sha256"]}


def _peak_memory() -> int:
    """Largest resident size of this process so far, in bytes; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _said(cfg: StrengthConfig, n: int, against: float, counts: dict[str, Any]) -> str:
    lines = [f"The voters side against {round(n * against):,} of {n:,} labels ({100 * against:.1f}%).",
             f"  {cfg.out}/strength.jsonl  the votes on every pair",
             f"  {cfg.out}/suspects.jsonl  what to look at, with reasons: {counts['n_suspects']:,}"]
    if cfg.clean is not None:
        changes = ", ".join(f"{name} {count:,}" for name, count in counts["changes"].items() if count) or "no change"
        lines.append(f"  {cfg.out}/cleaned.jsonl  what is left to train on: {counts['n_cleaned']:,} ({changes})")
    return "\n".join([*lines, f"Look at the data audit: keel report {cfg.out}"])
