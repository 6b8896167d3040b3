"""Preference optimisation without a reward model and without sampling: DPO and its relatives, from pairs.

One loop and one data path for all of them: they differ in the loss of a pair. What the reference says of the data is
computed before anything is learned, so that no second model is in memory while the policy learns. Left out: data in
which single responses are good or bad (KTO takes both responses of each pair), and pairs sampled from the policy on
the way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from keel import runs
from keel.batches import SharedPrompt
from keel.bench.exam import longer_wins
from keel.bench.measures import prompt_groups
from keel.config import Config
from keel.data.collate import pair_batches
from keel.data.records import prompt_numbers
from keel.data.render import PairRow, PromptRow, Template, render_pairs, render_prompts, template
from keel.errors import ConfigError, ModelError
from keel.functional import direct
from keel.functional.masked import Stats, weighted_sum
from keel.functional.statistics import bootstrap_interval
from keel.models.load import (
    FrozenModelConfig,
    ModelConfig,
    causal_lm,
    check_context,
    device_of,
    load_tokenizer,
    save_model,
)
from keel.models.pairs import joining, pair_logprobs
from keel.rng import stream
from keel.rollout.measure import same_tokens
from keel.rollout.respond import respond, sample_rows
from keel.rollout.sample import SamplingConfig
from keel.train import checkpoint
from keel.train.clock import Clock
from keel.train.direct import Material, Sides, mismatched
from keel.train.frozen import FrozenNumbers, pair_logprobs_of, pair_numbers, reference_identity, row_digest
from keel.train.inputs import DataConfig, load_pairs
from keel.train.order import batch_indices, n_steps
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally

__all__ = ["PreferenceConfig", "run"]

Loss = Literal["dpo", "dpo_length_norm", "dpo_no_reference", "dpo_robust", "ipo_mean", "ipo_sum", "hinge", "simpo",
               "cpo", "orpo", "kto"]
NO_REFERENCE = ("dpo_no_reference", "simpo", "cpo", "orpo")
PER_TOKEN = ("dpo_length_norm", "ipo_mean", "simpo", "orpo")
SOFT = ("dpo", "dpo_length_norm", "dpo_no_reference", "cpo", "simpo")
"""Losses that are Bradley-Terry on rewards, which label smoothing makes conservative."""
LABELLED = SOFT[:4]
"""Those that know the soft labels and margins of single pairs too; SimPO has a margin of its own."""
USUAL_GAMMA, MOST_UNEVEN = 0.5, 4 / 3
USUAL_BETA = {"simpo": 2.0, "dpo_length_norm": 5.0}
USUAL_NLL = {"cpo": 1.0, "orpo": 1.0}


class PreferenceConfig(Config):
    """Everything `keel preference` reads."""

    out: Path = Field(description="run folder to make")
    policy: ModelConfig = Field(description="policy to improve, from supervised fine-tuning")
    reference: FrozenModelConfig | None = Field(None, description="model that the policy is held against; none: the "
                                                "policy as it is at the start")
    reference_cache: Path | None = Field(None, description="folder for what the reference says of the data, to be "
                                         "shared by runs; none: in the run folder")
    data: DataConfig = Field(description="preference pairs")
    seed: int = Field(0, ge=0, description="fixes order, split, samples and what is drawn anew")
    loss: Loss = Field("dpo", description="what a pair costs; ipo_mean: per token, as TRL has it, ipo_sum: as printed")
    beta: float | None = Field(None, gt=0, description="reward per nat of log-ratio, orpo: weight of its term; "
                               "none: 0.1, simpo 2, dpo_length_norm 5")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="chance that a label is wrong; on dpo this is cDPO")
    gamma: float | None = Field(None, ge=0, description="simpo: gap asked of the two rewards; none: 0.5")
    nll_coef: float | None = Field(None, ge=0, description="weight of the cross-entropy of chosen responses, per "
                                   "token; none: 1 for cpo and orpo, else 0")
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of chosen responses")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of rejected responses")
    epochs: float = Field(1.0, gt=0, description="passes over the data")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: from epochs")
    batch: int = Field(32, ge=1, description="pairs per optimiser step")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass; changes memory, not results")
    shared_prompt: SharedPrompt = Field("auto", description="run a pair's prompt once for both responses: where it "
                                        "saves time, always, or never; changes speed, not results")
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-6)
    eval_every: int = Field(100, ge=1, description="steps between validation passes")
    eval_pairs: int = Field(2000, ge=1, description="validation pairs used at most")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=64)
    n_samples: int = Field(16, ge=0, description="validation prompts answered before and after, for the report")

    @model_validator(mode="after")
    def _check(self) -> "PreferenceConfig":
        for found, complaint in contradictions(self):
            if found:
                raise ValueError(complaint)
        return self

    @property
    def reward_per_nat(self) -> float:
        """beta, or what is usual for the loss."""
        return USUAL_BETA.get(self.loss, 0.1) if self.beta is None else self.beta

    @property
    def target_gap(self) -> float:
        """gamma, or what is usual."""
        return USUAL_GAMMA if self.gamma is None else self.gamma

    @property
    def nll_weight(self) -> float:
        """nll_coef, or what is usual for the loss."""
        return USUAL_NLL.get(self.loss, 0.0) if self.nll_coef is None else self.nll_coef

    @property
    def has_reference(self) -> bool:
        """Whether the loss looks at a reference."""
        return self.loss not in NO_REFERENCE


def contradictions(cfg: PreferenceConfig) -> list[tuple[bool, str]]:
    """Settings that exclude each other, and what to say about them."""
    loss = f"loss={cfg.loss!r}"
    weighted = cfg.desirable_weight != 1 or cfg.undesirable_weight != 1
    return [
        (cfg.label_smoothing > 0 and cfg.loss not in (*SOFT, "dpo_robust"),
         f"label_smoothing={cfg.label_smoothing} and {loss} do not go together: it is for {', '.join(SOFT)} and "
         "dpo_robust"),
        (cfg.label_smoothing == 0 and cfg.loss == "dpo_robust",
         f"{loss} needs label_smoothing, the chance that a label is wrong; with 0 it is dpo"),
        (cfg.gamma is not None and cfg.loss != "simpo", f"gamma={cfg.gamma} and {loss} do not go together: only simpo "
         "asks for a gap"),
        (weighted and cfg.loss != "kto", f"desirable_weight={cfg.desirable_weight}, undesirable_weight="
         f"{cfg.undesirable_weight} and {loss} do not go together: they are kto's"),
        (not cfg.has_reference and (cfg.reference is not None or cfg.reference_cache is not None),
         f"reference or reference_cache and {loss} do not go together: this loss looks at no reference"),
    ]


def run(cfg: PreferenceConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave the policy in `out/model`."""
    files = [Path(p) for p in (cfg.data.path, cfg.data.validation) if p]
    with runs.start("preference", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        tokenizer = load_tokenizer(cfg.policy.path, trust_remote_code=cfg.policy.trust_remote_code)
        words = template(tokenizer)
        train, held_out, n_bad = load_pairs(cfg.data, cfg.seed)
        rows, cut = render_pairs(words, train, cfg.data.max_length, cfg.data.too_long)
        held_rows, _ = render_pairs(words, held_out[: cfg.eval_pairs], cfg.data.max_length, cfg.data.too_long)
        require_known_labels(cfg, [*rows, *held_rows])
        prompts = shown_prompts(cfg, words, held_rows)

        uneven = cfg.desirable_weight / cfg.undesirable_weight  # there are as many good responses as bad ones
        if cfg.loss == "kto" and not 1 <= uneven <= MOST_UNEVEN:
            log.note(f"desirable_weight / undesirable_weight = {uneven:.2f}; KTO's authors keep it between 1 and 4/3")

        policy = causal_lm(cfg.policy, seed=cfg.seed)
        check_context(policy, max(row.longest for row in [*rows, *held_rows]))
        (material, held), counts = prepared(cfg, log, policy, words, [rows, held_rows])
        total = n_steps(len(rows), cfg.batch, cfg.epochs, cfg.steps)
        learner = Learner.of([policy], cfg.optimizer, total)
        state: dict[str, Any] = {"modules": {"policy": policy}, "optimizers": {"optimizer": learner.optimizer}}
        done, extra = checkpoint.restore(log, **state) if resume else (0, {})
        found, before = extra.get("evaluation", {}), extra.get("before", {})
        if done == 0:
            found = before = evaluate(policy, held, words.pad_id, cfg)
            log.log(0, before, "eval")
            show(log, 0, policy, words, prompts, cfg)

        batches, tally = batch_indices(len(rows), cfg.batch, cfg.seed, "preference", first_step=done + 1), Tally()
        shared, clock, progress = joining(policy, cfg.shared_prompt), Clock(), log.bar(total, done)
        for step in range(done + 1, total + 1):
            picked = next(batches)
            batch = [rows[i] for i in picked]
            parts = [part.to(device_of(policy)) for part in pair_batches(
                batch, micro_tokens=cfg.micro_tokens, pad_id=words.pad_id, shared_prompt=shared)]
            # What a pair weighs, and KTO's baseline, are fixed over the whole step before it is cut into micro-batches.
            baseline = baseline_of(policy, material, picked, words.pad_id, cfg)
            weight = sum(row.pair.weight for row in batch)
            n_tokens = sum(row.pair.weight * len(row.chosen_ids) for row in batch)
            for part in parts:
                ids = part.tokens.record_ids[: part.n_pairs]
                sides = material.sides([material.places[name] for name in ids], pair_logprobs(policy, part))
                loss, stats = preferred(cfg, sides, baseline)
                objective = weighted_sum(loss, part.weight) / weight
                if cfg.nll_weight:
                    objective = objective + cfg.nll_weight * weighted_sum(-sides.chosen, part.weight) / n_tokens
                require_finite(objective.detach(), "loss", step, ids)
                objective.backward()
                tell(tally, cfg, {"loss": loss, **stats}, sides, part.weight)
            metrics = tally.means() | learner.step(step, [row.record_id for row in batch])
            if baseline is not None:
                metrics["kto/baseline"] = float(baseline)
            log.log(step, metrics)
            log.time(step, clock.lap({"pairs": len(batch)}))
            if held_rows and (step % cfg.eval_every == 0 or step == total):
                found = evaluate(policy, held, words.pad_id, cfg)
                log.log(step, found, "eval")
            if step % cfg.save_every == 0 or step == total or log.stop_requested():
                checkpoint.save(log, step, **state, extra={"evaluation": found, "before": before})
            if log.stop_requested() and step < total:
                log.stop(step)
            progress.advance(f"loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.2f}")
        show(log, total, policy, words, prompts, cfg)
        save_model(policy, tokenizer, cfg.out / "model")
        return log.finish({
            "steps": total, "n_train": len(rows), "n_validation": len(held_rows), "evaluation": found,
            "before": before, "reference": counts, "skipped": {"records": n_bad} | vars(cut),
            "headline": headline(found)})


def prepared(cfg: PreferenceConfig, log: runs.Run, policy: nn.Module, words: Template,
             parts: Sequence[Sequence[PairRow]]) -> tuple[list[Material], dict[str, int]]:
    """What the reference says of training and held-out pairs, computed or read from the cache; and how many of them had
    to be computed.

    Called before the policy has learned anything, so the policy itself is the reference unless another one is named; an
    adapter that has learned nothing changes nothing.

    Raises:
        ModelError: the reference reads other tokens than the policy.
    """
    others = [mismatched(rows, max_length=cfg.data.max_length, seed=cfg.seed) if cfg.loss == "kto" else []
              for rows in parts]
    pieces = [piece for both in zip(parts, others, strict=True) for piece in both]
    everything = [row for piece in pieces for row in piece]
    numbers, n_computed = torch.zeros(2, len(everything)), 0
    if cfg.has_reference:
        spec = cfg.policy if cfg.reference is None else cfg.reference.whole
        model = policy
        if cfg.reference is not None:
            if not same_tokens(words, template(load_tokenizer(spec.path, trust_remote_code=spec.trust_remote_code))):
                raise ModelError("the reference's tokenizer or chat template differs from the policy's",
                                 where="reference", remedy="Name a reference of the policy's family.")
            model = causal_lm(spec, seed=cfg.seed)
            check_context(model, max(row.longest for row in everything))
        cache = FrozenNumbers(cfg.reference_cache or cfg.out / "reference", reference_identity(spec, model, cfg.seed))
        began_empty = cache.is_empty()
        said, n_computed = cache.fill(
            [row_digest(row) for row in everything],
            pair_numbers(model, everything, pad_id=words.pad_id, micro_tokens=2 * cfg.micro_tokens,
                         shared_prompt=cfg.shared_prompt), [row.record_id for row in everything])
        numbers = torch.tensor(np.array(said).reshape(-1, 2)).T
        if n_computed and not began_empty:
            log.note(f"{cache.folder} lacked what this reference says of {n_computed} of {len(everything)} pairs; it "
                     "is computed now. The folder was filled by another model, from other tokens (data, template, "
                     "max_length), or by a run that was killed")
    found = numbers.split([len(piece) for piece in pieces], dim=1)
    material = [Material(rows, found[2 * k], others[k], found[2 * k + 1]) for k, rows in enumerate(parts)]
    return material, {"pairs": len(everything), "computed": n_computed}


def require_known_labels(cfg: PreferenceConfig, rows: Sequence[PairRow]) -> None:
    """Soft labels and margins mean something to the losses that are Bradley-Terry on rewards.

    Raises:
        ConfigError: a pair has one, and the loss would pass over it.
    """
    odd = [row.record_id for row in rows if row.pair.margin != 0 or row.pair.label_prob != 1]
    if odd and cfg.loss not in LABELLED:
        raise ConfigError(f"loss = {cfg.loss} knows no margins and soft labels, and {len(odd)} pairs have one (first: "
                          f"{odd[0]})", remedy=f"Use {', '.join(LABELLED)}, or leave the columns out.")


def logprobs_of(policy: nn.Module, rows: Sequence[PairRow], pad_id: int, cfg: PreferenceConfig) -> Tensor:
    """Of both sides of pairs, on the CPU; without a backward pass twice as many positions fit. [2 N]"""
    numbers = torch.zeros(2, len(rows))
    for part, found in pair_logprobs_of(policy, rows, pad_id=pad_id, micro_tokens=2 * cfg.micro_tokens,
                                        shared_prompt=cfg.shared_prompt):
        numbers[:, torch.tensor(part)] = found
    return numbers


@torch.no_grad()
def baseline_of(policy: nn.Module, material: Material, picked: Sequence[int], pad_id: int, cfg: PreferenceConfig,
                ) -> Tensor | None:
    """KTO's z over all pairs of a step, whatever its micro-batches are; none for the other losses."""
    if cfg.loss != "kto":
        return None
    numbers = logprobs_of(policy, [material.others[i] for i in picked], pad_id, cfg)
    return direct.kto_baseline(numbers.flatten(), material.ref_others[:, torch.tensor(picked)].flatten())


def preferred(cfg: PreferenceConfig, sides: Sides, baseline: Tensor | None) -> tuple[Tensor, Stats]:
    """The loss of each pair, and its stats."""
    beta, e = cfg.reward_per_nat, cfg.label_smoothing
    s = sides.per_token() if cfg.loss in PER_TOKEN else sides
    four = (s.chosen, s.rejected, s.ref_chosen, s.ref_rejected)
    if cfg.loss == "simpo":
        found = direct.simpo(s.chosen, s.rejected, beta=beta, gamma=cfg.target_gap, label_smoothing=e)
    elif cfg.loss == "orpo":
        found = direct.orpo(s.chosen, s.rejected, beta=beta)
    elif cfg.loss in ("ipo_mean", "ipo_sum"):
        found = direct.ipo(*four, beta=beta)
    elif cfg.loss == "hinge":
        found = direct.hinge(*four, beta=beta)
    elif cfg.loss == "dpo_robust":
        found = direct.dpo_robust(*four, beta=beta, label_smoothing=e)
    elif cfg.loss == "kto":
        found = kto_of_pairs(cfg, s, baseline)
    else:
        found = direct.dpo(*four, beta=beta, label_smoothing=e, label_prob=s.label_prob, margin=s.margin)
    return found


def kto_of_pairs(cfg: PreferenceConfig, s: Sides, baseline: Tensor | None) -> tuple[Tensor, Stats]:
    """The mean of KTO's loss of both responses of a pair, of which it knows that one is good and the other bad."""
    assert baseline is not None, "measured before the step is cut into micro-batches"
    good, bad = torch.ones_like(s.chosen, dtype=torch.bool), torch.zeros_like(s.chosen, dtype=torch.bool)
    loss, _ = direct.kto(torch.cat([s.chosen, s.rejected]), torch.cat([s.ref_chosen, s.ref_rejected]),
                         torch.cat([good, bad]), baseline.to(s.chosen.device), beta=cfg.reward_per_nat,
                         desirable_weight=cfg.desirable_weight, undesirable_weight=cfg.undesirable_weight)
    stats = direct.dpo(s.chosen, s.rejected, s.ref_chosen, s.ref_rejected, beta=cfg.reward_per_nat)[1]
    return loss.unflatten(0, (2, -1)).mean(0), stats


def tell(tally: Tally, cfg: PreferenceConfig, stats: Stats, sides: Sides, weight: Tensor) -> None:
    """Put into the tally what is logged of some pairs; numbers per token are means over tokens."""
    tally.add(stats, weight)
    for name, sums, ref, n in (("chosen", sides.chosen, sides.ref_chosen, sides.n_chosen),
                               ("rejected", sides.rejected, sides.ref_rejected, sides.n_rejected)):
        tally.add({f"logps/{name}": direct.per_token(sums, n)}, weight * n)
        tally.add({f"length/{name}": n} | ({f"drift/{name}": sums - ref} if cfg.has_reference else {}), weight)
    if cfg.nll_weight:
        tally.add({"nll": -direct.per_token(sides.chosen, sides.n_chosen)}, weight * sides.n_chosen)


@torch.no_grad()
def evaluate(policy: nn.Module, held: Material, pad_id: int, cfg: PreferenceConfig) -> dict[str, float]:
    """What the log says of steps, for held-out pairs; accuracy with its interval over prompts, beside the baseline
    'the longer answer wins'. Empty where none are held out."""
    if not held.rows:
        return {}
    everything = list(range(len(held.rows)))
    sides = held.sides(everything, logprobs_of(policy, held.rows, pad_id, cfg).unbind())
    baseline = baseline_of(policy, held, everything, pad_id, cfg)
    loss, stats = preferred(cfg, sides, baseline)
    tally = Tally()
    tell(tally, cfg, {"loss": loss, **stats}, sides, torch.ones_like(loss))
    groups = prompt_groups([row.pair.prompt for row in held.rows])
    longer = torch.tensor([longer_wins(row) for row in held.rows])
    intervals = {f"{name}{end}": value for name, values in (("accuracy", stats["accuracy"]), ("longer_wins", longer))
                 for end, value in zip(("", "_low", "_high"), bootstrap_interval(
                     values, generator=stream(cfg.seed, "bootstrap"), groups=groups), strict=True)}
    z = {} if baseline is None else {"kto/baseline": float(baseline)}
    return tally.means() | z | intervals | {"n": len(held.rows)}


def shown_prompts(cfg: PreferenceConfig, words: Template, rows: Sequence[PairRow]) -> list[PromptRow]:
    """Different held-out prompts that leave room for an answer."""
    room = cfg.data.max_length - cfg.sampling.max_new_tokens
    asked = [row.pair.prompt for row in rows]
    first = {number: prompt for number, prompt in reversed(list(zip(prompt_numbers(asked), asked, strict=True)))}
    fitting = [first[number] for number in sorted(first) if len(words.prompt_ids(first[number])) <= room]
    return render_prompts(words, fitting[: cfg.n_samples], max(room, 1), "drop")[0]


def show(log: runs.Run, step: int, policy: nn.Module, words: Template, prompts: Sequence[PromptRow],
         cfg: PreferenceConfig) -> None:
    """Answers to a few held-out prompts, with the same random streams every time."""
    if prompts:
        said = respond(policy, words, prompts, cfg.sampling, seed=cfg.seed, names=["show"])
        log.sample(sample_rows(step, said, {}, cfg.n_samples))


def headline(found: dict[str, float]) -> dict[str, object] | None:
    """The accuracy of the implied reward against its baseline, in the shape that the report reads."""
    if not found:
        return None
    return {"metric": "held-out accuracy of the implied reward (before: the longer answer wins)",
            "higher_is_better": True, **{when: {"mean": found[name], "low": found[f"{name}_low"],
                                                "high": found[f"{name}_high"], "n": found["n"]}
                                         for when, name in (("before", "longer_wins"), ("after", "accuracy"))}}
