"""Preference optimisation without a reward model and without sampling: DPO and its relatives, from pairs.

One loop for all of them: they differ in the loss of a pair; KTO also takes single responses that are good or bad by
themselves. What the reference says of the data is computed before anything is learned, so that no second model is in
memory while the policy learns. Left out: pairs sampled from the policy on the way.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from keel import runs
from keel.batches import SharedPrompt
from keel.bench.exam import longer_wins
from keel.bench.measures import prompt_groups
from keel.config import Config
from keel.data.check import kind_of_files
from keel.data.collate import pair_batches
from keel.data.load import read_labelled
from keel.data.records import prompt_numbers
from keel.data.render import PairRow, PromptRow, Row, Template, render_pairs, render_prompts, template
from keel.errors import ConfigError, ModelError
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
from keel.online.anchor import AnchorConfig, Start
from keel.online.held import Held, held, refuse_both
from keel.online.watch import PersonaConfig, files_of, result_of, visited, watch
from keel.persona.settings import AxisConfig
from keel.rng import stream
from keel.rollout.measure import same_tokens
from keel.rollout.respond import respond, sample_rows
from keel.rollout.sample import SamplingConfig
from keel.train import checkpoint
from keel.train.clock import Clock
from keel.train.direct import (
    NO_REFERENCE,
    SOFT,
    Loss,
    Material,
    PairLoss,
    Passes,
    Sides,
    logprobs_of,
    mismatched,
    reference_says,
    require_known_labels,
)
from keel.train.frozen import FrozenNumbers, reference_identity
from keel.train.inputs import DataConfig, load_pairs, load_split, write_seen
from keel.train.labelled import KtoSettings, LabelledRow, Singles, balance_note, labelled_rows, mismatched_rows
from keel.train.order import batch_indices, n_steps
from keel.train.step import Learner, OptimizerConfig, require_finite
from keel.train.tally import Tally

__all__ = ["PreferenceConfig", "run"]

Rows = Sequence[PairRow] | Sequence[LabelledRow]
USUAL_GAMMA = 0.5
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
    data: DataConfig = Field(description="preference pairs; for kto also single responses with a label")
    seed: int = Field(0, ge=0, description="fixes order, split, samples and what is drawn anew")
    loss: Loss = Field("dpo", description="what a pair costs; ipo_mean: per token, as TRL has it, ipo_sum: as printed")
    beta: float | None = Field(None, gt=0, description="reward per nat of log-ratio, orpo: weight of its term; "
                               "none: 0.1, simpo 2, dpo_length_norm 5")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="chance that a label is wrong; on dpo this is cDPO")
    gamma: float | None = Field(None, ge=0, description="simpo: gap asked of the two rewards; none: 0.5")
    nll_coef: float | None = Field(None, ge=0, description="weight of the cross-entropy of chosen responses, per "
                                   "token; none: 1 for cpo and orpo, else 0")
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of good (chosen) responses")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of bad (rejected) responses")
    epochs: float = Field(1.0, gt=0, description="passes over the data")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: from epochs")
    batch: int = Field(32, ge=1, description="pairs, or labelled responses, per optimiser step")
    micro_tokens: int = Field(2048, ge=1, description="token positions per forward pass; changes memory, not results")
    shared_prompt: SharedPrompt = Field("auto", description="run a pair's prompt once for both responses: where it "
                                        "saves time, always, or never; changes speed, not results")
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-6)
    eval_every: int = Field(100, ge=1, description="steps between validation passes")
    eval_pairs: int = Field(2000, ge=1, description="validation records used at most")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=64)
    n_samples: int = Field(16, ge=0, description="validation prompts answered before and after, for the report")
    anchor: AnchorConfig | None = Field(None, description="price of states that leave the Assistant; none: no price")
    steered: AxisConfig | None = Field(None, description="acts in every training pass, and in nothing else; none: off")
    persona: PersonaConfig | None = Field(None, description="watches how Assistant-like the policy is; none: nobody")

    @model_validator(mode="after")
    def _check(self) -> "PreferenceConfig":
        refuse_both(self.anchor, self.steered)
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
    def of_a_pair(self) -> PairLoss:
        """The loss with its numbers."""
        return PairLoss(self.loss, self.reward_per_nat, self.target_gap, self.label_smoothing, self.desirable_weight,
                        self.undesirable_weight)

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
    files += files_of(cfg.anchor, cfg.persona, cfg.steered)
    with runs.start("preference", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        tokenizer = load_tokenizer(cfg.policy.path, trust_remote_code=cfg.policy.trust_remote_code)
        words = template(tokenizer)
        rows, held_rows, skipped = loaded(cfg, words, log.note)
        prompts = shown_prompts(cfg, words, held_rows)
        if cfg.loss == "kto" and (unbalanced := balance_note(rows, cfg.desirable_weight, cfg.undesirable_weight)):
            log.note(unbalanced)

        policy = causal_lm(cfg.policy, seed=cfg.seed)
        check_context(policy, max(row.longest for row in [*rows, *held_rows]))
        (material, unseen), counts = prepared(cfg, log, policy, words, [rows, held_rows])
        room = cfg.data.max_length - cfg.sampling.max_new_tokens
        start = Start(policy, words, cfg.sampling, room, cfg.micro_tokens, cfg.seed, log)
        holds = held(cfg.anchor, cfg.steered, start, [row.asked for row in rows])
        watched = watch(cfg.persona, start)
        total = n_steps(len(rows), cfg.batch, cfg.epochs, cfg.steps)
        learner = Learner.of([policy], cfg.optimizer, total)
        state: dict[str, Any] = {"modules": {"policy": policy}, "optimizers": {"optimizer": learner.optimizer}}
        done, extra = checkpoint.restore(log, **state) if resume else (0, {})
        found, before = extra.get("evaluation", {}), extra.get("before", {})
        if done == 0:
            found = before = evaluate(policy, unseen, cfg)
            log.log(0, before, "eval")
            visited(watched, policy, 0, last=False)
            show(log, 0, policy, words, prompts, cfg)

        batches, tally = batch_indices(len(rows), cfg.batch, cfg.seed, "preference", first_step=done + 1), Tally()
        clock, progress = Clock(), log.bar(total, done)
        unit = "responses" if isinstance(material, Singles) else "pairs"
        for step in range(done + 1, total + 1):
            picked = next(batches)
            # Sums of weights, and KTO's baseline, are over the whole step, whatever its micro-batches are.
            parts = (material.objectives(policy, picked, tally, holds) if isinstance(material, Singles)
                     else objectives(cfg, policy, material, picked, tally, holds))
            for ids, objective in parts:
                require_finite(objective.detach(), "loss", step, ids)
                objective.backward()
            metrics = tally.means() | learner.step(step, [rows[i].record_id for i in picked])
            log.log(step, metrics)
            log.time(step, clock.lap({unit: len(picked)}))
            if held_rows and (step % cfg.eval_every == 0 or step == total):
                found = evaluate(policy, unseen, cfg)
                log.log(step, found, "eval")
            visited(watched, policy, step, last=step == total)
            if step % cfg.save_every == 0 or step == total or log.stop_requested():
                checkpoint.save(log, step, **state, extra={"evaluation": found, "before": before})
            if log.stop_requested() and step < total:
                log.stop(step)
            seen = [name for name in ("loss", "accuracy") if name in metrics]
            progress.advance("  ".join(f"{name} {metrics[name]:.3f}" for name in seen))
        show(log, total, policy, words, prompts, cfg)
        save_model(policy, tokenizer, cfg.out / "model")
        return log.finish({
            "steps": total, "n_train": len(rows), "n_validation": len(held_rows), "evaluation": found,
            "before": before, "reference": counts, "skipped": skipped, "headline": headline(found)}
            | holds.result() | result_of(watched))


def loaded(cfg: PreferenceConfig, words: Template, note: Callable[[str], None],
           ) -> tuple[Rows, Rows, dict[str, int]]:
    """Training and held-out rows, all pairs or all labelled responses, and what was left out or cut.

    Raises:
        ConfigError: the file holds labelled responses, or margins of pairs, and the loss has no place for them.
    """
    data, kind = cfg.data, kind_of_files(cfg.data.path)
    if kind == "labelled" or (kind == "demonstrations" and cfg.loss == "kto"):
        if cfg.loss != "kto":
            raise ConfigError(f"loss = {cfg.loss} compares two responses, and the data hold single ones with a label",
                              where=data.path, remedy="Use loss = kto, or pairs: prompt, chosen, rejected.")
        read = partial(read_labelled, on_bad_record=data.on_bad_record, as_text=data.as_text)
        told, told_held, n_bad = load_split(data, cfg.seed, read, note)
        write_seen(cfg.out, [one.prompt for one in told], [one.prompt for one in told_held])
        singles, cut = labelled_rows(words, told, data.max_length, data.too_long)
        held = labelled_rows(words, told_held[: cfg.eval_pairs], data.max_length, data.too_long)[0]
        return singles, held, {"records": n_bad} | vars(cut)
    train, held_out, n_bad = load_pairs(data, cfg.seed, note)
    write_seen(cfg.out, [pair.prompt for pair in train], [pair.prompt for pair in held_out])
    rows, cut = render_pairs(words, train, data.max_length, data.too_long)
    held_rows, _ = render_pairs(words, held_out[: cfg.eval_pairs], data.max_length, data.too_long)
    require_known_labels(cfg.loss, [*rows, *held_rows])
    return rows, held_rows, {"records": n_bad} | vars(cut)


def prepared(cfg: PreferenceConfig, log: runs.Run, policy: nn.Module, words: Template, parts: Sequence[Rows],
             ) -> tuple[list[Material] | list[Singles], dict[str, int]]:
    """Training and held-out rows with what the reference says of them, computed or read from the cache; and how many of
    them had to be computed."""
    passes = Passes(words.pad_id, cfg.micro_tokens, cfg.shared_prompt)
    limits: dict[str, int] = {"max_length": cfg.data.max_length, "seed": cfg.seed}
    singles = [[row for row in rows if isinstance(row, LabelledRow)] for rows in parts]
    if any(singles):
        lent = [mismatched_rows(rows, **limits) for rows in singles]
        found, counts = asked(cfg, log, policy, words, [
            piece for rows, other in zip(singles, lent, strict=True) for piece in ([row.row for row in rows], other)])
        how = KtoSettings(cfg.reward_per_nat, cfg.desirable_weight, cfg.undesirable_weight, cfg.nll_weight)
        return [Singles(rows, found[2 * k][0], lent[k], found[2 * k + 1][0], how, passes)
                for k, rows in enumerate(singles)], counts
    pairs = [[row for row in rows if isinstance(row, PairRow)] for rows in parts]
    others = [mismatched(rows, **limits) if cfg.loss == "kto" else [] for rows in pairs]
    found, counts = asked(cfg, log, policy, words, [
        piece for both in zip(pairs, others, strict=True) for piece in both])
    return [Material(rows, found[2 * k], others[k], found[2 * k + 1], passes) for k, rows in enumerate(pairs)], counts


def asked(cfg: PreferenceConfig, log: runs.Run, policy: nn.Module, words: Template,
          pieces: Sequence[list[PairRow]] | Sequence[list[Row]]) -> tuple[Sequence[Tensor], dict[str, int]]:
    """Log-probabilities under the reference for each piece of the data.

    Called before the policy has learned anything, so the policy itself is the reference unless another one is named; an
    adapter that has learned nothing changes nothing.

    Raises:
        ModelError: the reference reads other tokens than the policy.
    """
    rows: list[Any] = [row for piece in pieces for row in piece]
    numbers, n_computed = torch.zeros(2, len(rows)), 0
    if cfg.has_reference:
        spec = cfg.policy if cfg.reference is None else cfg.reference.whole
        model = policy
        if cfg.reference is not None:
            if not same_tokens(words, template(load_tokenizer(spec.path, trust_remote_code=spec.trust_remote_code))):
                raise ModelError("the reference's tokenizer or chat template differs from the policy's",
                                 where="reference", remedy="Name a reference of the policy's family.")
            model = causal_lm(spec, seed=cfg.seed)
            check_context(model, max(row.n_tokens if isinstance(row, Row) else row.longest for row in rows))
        cache = FrozenNumbers(cfg.reference_cache or cfg.out / "reference", reference_identity(spec, model, cfg.seed))
        began_empty = cache.is_empty()
        numbers, n_computed = reference_says(cache, model, rows,
                                             Passes(words.pad_id, cfg.micro_tokens, cfg.shared_prompt))
        if n_computed and not began_empty:
            log.note(f"{cache.folder} lacked what this reference says of {n_computed} of {len(rows)} records; it "
                     "is computed now. The folder was filled by another model, from other tokens (data, template, "
                     "max_length), or by a run that was killed")
    unit = "pairs" if isinstance(rows[0], PairRow) else "responses"
    return numbers.split([len(piece) for piece in pieces], dim=1), {unit: len(rows), "computed": n_computed}


def objectives(cfg: PreferenceConfig, policy: nn.Module, material: Material, picked: Sequence[int], tally: Tally,
               holds: Held) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """What the micro-batches of a step's pairs add to the objective, with the ids of their records."""
    batch = [material.rows[i] for i in picked]
    with holds.passing(policy):
        baseline = material.baseline(policy, picked)
    weight = sum(row.pair.weight for row in batch)
    n_tokens = sum(row.pair.weight * len(row.chosen_ids) for row in batch)
    n_both = n_tokens + sum(row.pair.weight * len(row.rejected_ids) for row in batch)
    for part in pair_batches(batch, micro_tokens=cfg.micro_tokens, pad_id=material.passes.pad_id,
                             shared_prompt=joining(policy, cfg.shared_prompt)):
        there = part.to(device_of(policy))
        ids = part.tokens.record_ids[: part.n_pairs]
        with holds.passing(policy):
            logprobs = pair_logprobs(policy, there)
        sides = material.sides([material.places[name] for name in ids], logprobs)
        loss = told(cfg, sides, baseline, there.weight, tally)[0]
        objective = weighted_sum(loss, there.weight) / weight
        if cfg.nll_weight:
            objective = objective + cfg.nll_weight * weighted_sum(-sides.chosen, there.weight) / n_tokens
        of_tokens = there.tokens.response_mask * there.weight.repeat(2)[:, None]
        yield ids, objective + holds.cost(there.tokens, of_tokens, n_both, tally)


def told(cfg: PreferenceConfig, sides: Sides, baseline: Tensor | None, weight: Tensor, tally: Tally,
         ) -> tuple[Tensor, Stats]:
    """The loss of each pair and its stats; what is logged of them goes to the tally."""
    loss, stats = cfg.of_a_pair(sides, baseline)
    z = {} if baseline is None else {"kto/baseline": baseline.expand(len(loss))}
    tally.add({"loss": loss, **stats} | z, weight)
    sides.tell(tally, weight, drift=cfg.has_reference, nll=bool(cfg.nll_weight))
    return loss, stats


@torch.no_grad()
def evaluate(policy: nn.Module, held: Material | Singles, cfg: PreferenceConfig) -> dict[str, float]:
    """What the log says of steps, for held-out rows. Of pairs the accuracy with its interval over prompts, beside the
    baseline 'the longer answer wins'. Empty where none are held out."""
    if isinstance(held, Singles):
        return held.evaluate(policy, cfg.seed)
    if not held.rows:
        return {}
    everything, tally = list(range(len(held.rows))), Tally()
    sides = held.sides(everything, logprobs_of(policy, held.rows, held.passes).unbind())
    baseline = held.baseline(policy, everything)
    stats = told(cfg, sides, baseline, torch.ones(len(held.rows)), tally)[1]
    groups = prompt_groups([row.pair.prompt for row in held.rows])
    longer = torch.tensor([longer_wins(row) for row in held.rows])
    intervals = {f"{name}{end}": value for name, values in (("accuracy", stats["accuracy"]), ("longer_wins", longer))
                 for end, value in zip(("", "_low", "_high"), bootstrap_interval(
                     values, generator=stream(cfg.seed, "bootstrap"), groups=groups), strict=True)}
    return tally.means() | intervals | {"n": len(held.rows)}


def shown_prompts(cfg: PreferenceConfig, words: Template, rows: Rows) -> list[PromptRow]:
    """Different held-out prompts that leave room for an answer."""
    room = cfg.data.max_length - cfg.sampling.max_new_tokens
    asked = [row.pair.prompt if isinstance(row, PairRow) else row.record.prompt for row in rows]
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
    """How well the implied reward tells responses apart, against a rule by length, in the shape that the report
    reads."""
    pairs = ("held-out accuracy of the implied reward (before: the longer answer wins)", "longer_wins", "accuracy")
    singles = ("held-out area under the curve of the implied reward, good against bad responses (before: of length)",
               "length_auc", "auc")
    name, before, after = pairs if "accuracy" in found else singles
    if after not in found:
        return None
    return {"metric": name, "higher_is_better": True,
            **{when: {"mean": found[key], "low": found[f"{key}_low"], "high": found[f"{key}_high"], "n": found["n"]}
               for when, key in (("before", before), ("after", after))}}
