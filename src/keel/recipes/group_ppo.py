"""Group-invariant PPO: returns that do not depend on the group (Zheng et al. 2023, arXiv:2310.11971; reconstructed).

PPO-max with three additions, each of which can be left out: groups of responses, inferred by a head on the critic or
known from the data; an objective that holds their returns together; a price of drift by group. Left out: EIIL's split
and IRMv1, which need the loss of single samples under a scaled model, and several processes in one run.
"""

from collections.abc import Iterator
from dataclasses import replace

from pydantic import model_validator

from keel import runs
from keel.data.records import Prompt
from keel.data.render import PromptRow
from keel.online.close import closed, finish
from keel.online.group_monitor import agreement, group_metrics
from keel.online.group_settings import LONGEST_RATIO, GroupConfig
from keel.online.groups import Groups, known_labels, with_places
from keel.online.memory import Phase
from keel.online.portrait import portrayed
from keel.online.settings import OnlineConfig
from keel.online.setup import begun, prepared
from keel.online.update import learned
from keel.rollout.credit import paid_in_all, with_credit
from keel.rollout.monitor import monitors
from keel.rollout.respond import scoring_function
from keel.rollout.reward import merged_moments, processed, with_step_rewards
from keel.train.clock import Clock

__all__ = ["GroupPPOConfig", "run"]


class GroupPPOConfig(OnlineConfig):
    """Everything `keel group-ppo` reads: all of `keel ppo`, and the groups."""

    groups: GroupConfig = GroupConfig()

    @model_validator(mode="after")
    def _check_groups(self) -> "GroupPPOConfig":
        for found, complaint in contradictions(self):
            if found:
                raise ValueError(complaint)
        return self


def run(cfg: GroupPPOConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave the policy in `out/model` and what the groups are in `out/groups.json`."""
    with runs.start("group_ppo", cfg, cfg.out, seed=cfg.seed, data=cfg.files, resume=resume) as log:
        labels: list[str] = []
        setup = prepared(cfg, log, look=lambda rows: labels.extend(labels_of(cfg, rows)))
        models, rewards = setup.models, setup.rewards
        groups = Groups(cfg.groups, models.critic, tuple(labels), seed=cfg.seed)
        setup = setup.with_state(groups.state)
        setup.exam.by_label(cfg.groups.column)
        for warning in warnings_of(cfg, groups, [row.record for row in setup.held_out]):
            log.note(warning)
        step, memory = begun(setup, resume=resume, more={"groups": groups.beginning()})
        clock, progress = Clock(), log.bar(cfg.critic.pretrain + cfg.steps, step)
        while not (memory["pretrained"] is not None and step == memory["pretrained"] + cfg.steps):
            phase = Phase.after(step, memory)
            step = phase.step
            # Write: sample once, then measure the same tokens with every model that has an opinion.
            responses = setup.respond(step)
            clock.phase("sample")
            rollout = with_places(responses.rollout, groups)
            rollout = setup.measure(replace(responses, rollout=rollout))
            scored = rewards(responses)
            memory["moments"] = merged_moments(memory["moments"], scored, rollout.tokens.response_mask)
            scores = processed(scored, memory["moments"], cfg.score, rewards.weights)
            rollout = with_step_rewards(rollout, scored, memory["moments"], cfg.score, rewards.weights)
            # Groups: prices by the memberships so far, then the head learns, then it says what advantages change.
            names, swaps = groups.names(memory["groups"]["order"]), memory["groups"]["swaps"]
            paid = paid_in_all(rollout, scores, cfg.truncation)
            asked = groups.ask(rollout, paid, responses.prompts, memory, phase, cfg.steps)
            # Credit: one score per response becomes one advantage per token.
            # DEVIATION(group_ppo-3): advantages are whitened only where advantage.normalise asks for it, as in PPO-max.
            in_reward = cfg.kl.within == "reward"
            rollout = with_credit(rollout, scores, truncation=cfg.truncation, advantage=cfg.advantage,
                                  kl_coef=asked.prices if in_reward else 0.0, factor=asked.factor,
                                  shaping=asked.shaping)
            rollout = replace(rollout, **groups.terms(rollout, asked, prices=not in_reward))
            metrics = monitors(rollout, scored, scores, memory["moments"]) | {"kl/coef": memory["kl_coef"]}
            metrics |= setup.seen()
            metrics |= group_metrics(asked, rollout, scored, names) | {"groups/swaps": swaps}
            if cfg.groups.source == "inferred":
                metrics |= agreement(asked.memberships, responses.prompts, cfg.groups.column)
            if cfg.gold:
                metrics["gold/mean"] = float(responses.scored_by(scoring_function(cfg.gold)).mean())
            clock.phase("measure")
            # Learn: several passes over one rollout; what a token weighs is fixed before the micro-batches.
            metrics |= learned(setup, rollout, memory, phase)
            clock.phase("update")
            memory = closed(setup, memory, metrics, phase, clock)
            progress.reach(phase.shown if phase.pretraining else cfg.critic.pretrain + phase.shown,
                           f"score {metrics['score/mean']:.3f}  worst group {metrics['groups/worst']:+.2f}")
        return finish(setup, memory, portrayed(setup, groups, memory))


def labels_of(cfg: GroupPPOConfig, rows: list[PromptRow]) -> tuple[str, ...]:
    """Names of the known groups; none where they are inferred."""
    if cfg.groups.source == "inferred":
        return ()
    return known_labels([row.record for row in rows], cfg.groups.column, most=cfg.rollouts // 2, where=cfg.prompts.path)


def warnings_of(cfg: GroupPPOConfig, groups: Groups, held_out: list[Prompt]) -> Iterator[str]:
    """What a reader of this run's numbers must know of its groups."""
    if cfg.rollouts < FEWEST:
        yield f"rollouts={cfg.rollouts}: means of groups are unsteady below {FEWEST} responses per phase."
    if groups.n * FEW > cfg.rollouts >= FEWEST:
        yield f"{groups.n} groups on {cfg.rollouts} responses per phase: their means are unsteady."
    if cfg.score.scale is None and cfg.advantage.normalise is None:
        yield ("score.scale and advantage.normalise are none: groups.coef acts on standardised returns, so how much it "
               "weighs beside the advantages depends on the scale of the scores.")
    labels = [prompt.label(cfg.groups.column) for prompt in held_out]
    if groups.labels:
        yield f"{groups.n} known groups: {', '.join(map(repr, groups.labels[:SHOWN]))}{', ...' * (groups.n > SHOWN)}"
        if strange := sum(label not in groups.labels for label in labels):
            yield f"{strange} of {len(labels)} held-out prompts are of no trained group: groups.json omits them."
    elif 0 < (without := sum(label is None for label in labels)) < len(labels):
        yield (f"{without} of {len(labels)} held-out prompts have no label {cfg.groups.column!r}: no agreement with "
               "the labels is measured on them.")
    if not held_out:
        yield "there are no held-out prompts: no groups.json will say what the groups are."
    if not groups.labels and cfg.groups.level == "trajectory":
        yield ("groups.level='trajectory': such groups largely follow the score itself; read what marks them in "
               "groups.json before calling them kinds of prompts.")


FEWEST = 64
"""Responses per phase below which group means are unsteady."""
FEW, SHOWN = 8, 20
"""Responses of a known group per phase, on average, that its mean needs; labels that are named."""


def contradictions(cfg: GroupPPOConfig) -> Iterator[tuple[bool, str]]:
    """Settings that exclude each other: whether they are there, and what to say."""
    groups = cfg.groups
    yield groups.source == "inferred" and not cfg.advantage.has_critic, (
        f"groups.source='inferred' and advantage.estimator={cfg.advantage.estimator!r} exclude each other: the head "
        "reads a critic; name known groups, or take gae")
    yield cfg.advantage.normalise == "minibatch" and groups.objective is not None, (
        "advantage.normalise='minibatch' would rescale what groups.objective adds to the advantages of each minibatch; "
        "use 'rollout', which comes before it, or none")
    yield groups.warmup >= cfg.steps, (
        f"groups.warmup={groups.warmup} and steps={cfg.steps}: the run would end before the groups act")
    yield groups.estimator == "ratio" and cfg.sampling.max_new_tokens > LONGEST_RATIO, (
        f"groups.estimator='ratio' and sampling.max_new_tokens={cfg.sampling.max_new_tokens}: ratios of whole "
        f"responses explode beyond {LONGEST_RATIO} tokens; use 'shaping'")
    yield groups.estimator == "ratio" and cfg.loss.reduction == "sequence", (
        "groups.estimator='ratio' moves every token of a response alike, and loss.reduction='sequence' weighs those of "
        "long responses less: use 'token'")
    yield groups.kl == "adaptive" and cfg.kl.coef == 0, (
        "groups.kl='adaptive' and kl.coef=0: there is no price of drift to share out; set groups.kl to equal")
    yield groups.returns == "kl_penalised" and cfg.kl.coef == 0, (
        "groups.returns='kl_penalised' and kl.coef=0: drift has no price to take off; use 'score'")
    yield cfg.truncation.how in ("mask", "bootstrap"), (
        f"truncation.how={cfg.truncation.how!r} says not what a cut response is worth, and the means of groups count "
        "every response: use score, penalty or constant")
