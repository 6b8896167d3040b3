"""What a run needs before its first phase: data, models, rewards, learners, and the exam it sits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from keel.batches import Rollout
from keel.data.render import PromptRow, Row, Template, template
from keel.models.actors import Actors, critic_source, load_actors
from keel.models.forward import output_head, token_logprobs
from keel.models.load import load_tokenizer
from keel.online.anchor import Start
from keel.online.held import Held, PolicyAxis, held, policy_axis
from keel.online.memory import Memory, Phase, beginning
from keel.online.settings import OnlineConfig, warnings_of
from keel.online.watch import Watch, hearing, read_bare, reading, watch
from keel.rollout.evaluate import Exam, Found, keep_best
from keel.rollout.measure import KL, by_parts, measure, same_vocabulary
from keel.rollout.respond import Responses, respond
from keel.rollout.reward import RewardSources
from keel.runs import Run
from keel.train import checkpoint
from keel.train.inputs import load_demonstrations, load_prompts, prompt_room, write_seen
from keel.train.objective import require_reachable
from keel.train.order import batch_indices
from keel.train.step import Learner

__all__ = ["Setup", "begun", "prepared"]


@dataclass(frozen=True)
class Setup:
    """Everything that stays the same object from the first phase to the last.

    Attributes:
        cfg: settings.
        log: the run's folder.
        words: the policy's tokenizer and chat template.
        prompts, held_out: rendered prompts to learn from, and to be examined on.
        mix: demonstrations for the LM-mix loss.
        models: policy, reference and critic.
        rewards: every source of reward.
        learners: `policy`, and `critic` where there is one.
        state: modules and optimisers, as checkpoints keep them.
        exam: the held-out prompts with everyone who marks the answers.
        skipped: what was dropped or cut of the prompts.
        axis: acts on the policy.
        holds: prices its states while it learns.
        watch: reads how Assistant-like it is; none: nobody does.
    """

    cfg: OnlineConfig
    log: Run
    words: Template
    prompts: list[PromptRow]
    held_out: list[PromptRow]
    mix: list[Row]
    models: Actors
    rewards: RewardSources
    learners: dict[str, Learner]
    state: dict[str, Any]
    exam: Exam
    skipped: dict[str, int]
    axis: PolicyAxis
    holds: Held
    watch: Watch | None

    def with_state(self, more: Mapping[str, Mapping[str, Any]]) -> "Setup":
        """The same with further modules and optimisers in every checkpoint."""
        return replace(self, state={name: part | more[name] for name, part in self.state.items()})

    @property
    def heard(self) -> Watch | None:
        """Who reads passes that are made anyway: nobody where an axis acts, for the model that is saved is bare."""
        return None if self.axis.policy else self.watch

    def respond(self, step: int) -> Responses:
        """The responses of a phase: prompts in a seeded order, each answered `advantage.group` times."""
        cfg, group = self.cfg, self.cfg.advantage.group
        picked = next(batch_indices(len(self.prompts), cfg.rollouts // group, cfg.seed, "prompts", first_step=step))
        asked = [self.prompts[i] for i in picked for _ in range(group)]
        with self.axis.writing(), hearing(self.heard, self.models.policy, len(asked)):
            return respond(self.models.policy, self.words, asked, cfg.sampling, seed=cfg.seed, names=["sample", step])

    def measure(self, responses: Responses) -> Rollout:
        """The responses with what every model but the rewards says of them."""
        cfg, models = self.cfg, self.models
        with self.axis.within(), reading(self.heard, models.reference, responses.rollout, cfg.micro_tokens):
            rollout = measure(responses, policy=models.policy, reference=models.reference, critic=models.critic,
                              micro_tokens=cfg.micro_tokens, temperature=cfg.sampling.logprob_temperature,
                              kl=cfg.kl.estimator, bootstrap=cfg.truncation.how == "bootstrap")
        if self.axis.policy:
            read_bare(self.watch, models.policy, models.reference, rollout, cfg.micro_tokens)
        if not cfg.samples_otherwise or rollout.ref_logprobs is None:
            return rollout
        # What is charged and logged is the drift of the policy that learns, not that of the one that sampled.
        with torch.no_grad():
            own = by_parts(rollout, cfg.micro_tokens, lambda part: token_logprobs(
                models.policy, part, temperature=cfg.sampling.logprob_temperature)[0])
        full = cfg.kl.estimator == "full"
        return replace(rollout, own_logprobs=own,
                       kl=rollout.kl if full else KL[cfg.kl.estimator](own, rollout.ref_logprobs))

    def seen(self) -> dict[str, float]:
        """How Assistant-like the responses of the phase are, where somebody watches."""
        return {} if self.watch is None else self.watch.seen()

    def sit(self, step: int, start: Found) -> Found:
        """The exam, by the policy as it is; arguments as those of `Exam.sit`."""
        with self.axis.within():
            return self.exam.sit(self.models.policy, self.cfg.sampling, step, start, self.cfg.n_samples)

    def visited(self, phase: Phase) -> dict[str, float]:
        """What the probes show where they are due, of the bare policy."""
        if self.watch is None or phase.pretraining:
            return {}
        return self.watch.visit(self.models.policy, phase.shown, last=phase.is_last(self.cfg))

    def keep_best(self, memory: Memory, step: int) -> None:
        """Keep the policy that has just sat the exam if it is the best so far."""
        memory["best"] = keep_best(memory["best"], memory["after"], step, self.models.policy, self.words.tokenizer,
                                   self.cfg.out / "best", by=self.cfg.best, kl_budget=self.cfg.kl_budget)


def prepared(cfg: OnlineConfig, log: Run, look: Callable[[list[PromptRow]], object] = len) -> Setup:
    """Read the data and load the models.

    Args:
        cfg: settings.
        log: the run's folder.
        look: sees the prompts before any large model is loaded, and may refuse them.
    Raises:
        DataError, ModelError, ConfigError: what the settings name cannot be used.
    """
    tokenizer = load_tokenizer(cfg.policy.path, trust_remote_code=cfg.policy.trust_remote_code)
    words = template(tokenizer)
    prompts, held_out, skipped = load_prompts(cfg.prompts, words, max_new_tokens=cfg.sampling.max_new_tokens,
                                              n_held_out=cfg.eval_prompts, seed=cfg.seed, note=log.note)
    look(prompts)
    write_seen(cfg.out, [row.record for row in prompts], [row.record for row in held_out])
    mix = load_demonstrations(cfg.ptx, words) if cfg.ptx is not None and cfg.ptx_coef else []
    models, rewards = load_models(cfg, words), RewardSources(cfg.sources, words, cfg.micro_tokens)
    require_reachable(cfg.loss, len(output_head(models.policy)[0]))
    for warning in (*warnings_of(cfg), *rewards.notes):
        log.note(warning)
    learners = {"policy": Learner.of([models.policy], cfg.policy_optimizer, cfg.steps * cfg.updates)}
    if models.critic is not None:
        total = (cfg.critic.pretrain + cfg.steps) * cfg.updates
        learners["critic"] = Learner.of([models.critic], cfg.critic_optimizer, total)
    state: dict[str, Any] = {"modules": {name: getattr(models, name) for name in learners},
                             "optimizers": {name: learner.optimizer for name, learner in learners.items()}}
    exam = Exam(log, words, held_out, rewards, reference=models.reference, gold=cfg.gold, seed=cfg.seed,
                micro_tokens=cfg.micro_tokens)
    start = Start(models.reference, words, cfg.sampling, prompt_room(cfg.prompts, cfg.sampling.max_new_tokens),
                  cfg.micro_tokens, cfg.seed, log)
    axis = policy_axis(cfg.policy_axis, models.policy, models.reference)
    holds, watched = held(cfg.anchor, None, start, prompts), watch(cfg.persona, start)  # of the bare start
    return Setup(cfg, log, words, prompts, held_out, mix, models, rewards, learners, state, exam, skipped, axis, holds,
                 watched)


def load_models(cfg: OnlineConfig, words: Template) -> Actors:
    """Policy, reference and critic; the critic must read the policy's tokens."""
    rewarder = next((source.whole for source in cfg.sources if source.whole), None)
    if cfg.advantage.has_critic and cfg.topology == "separate":
        start = critic_source(cfg.policy, cfg.critic, rewarder)
        same_vocabulary(words, template(load_tokenizer(start.path, trust_remote_code=start.trust_remote_code)))
    return load_actors(cfg.policy, cfg.critic if cfg.advantage.has_critic else None, rewarder, topology=cfg.topology,
                       seed=cfg.seed)


def begun(setup: Setup, *, resume: bool, more: Memory | None = None) -> tuple[int, Memory]:
    """How many phases are done, and what is known of them: from the last checkpoint, or after the first exam and with
    `more` beside what PPO must know."""
    cfg = setup.cfg
    step, memory = checkpoint.restore(setup.log, **setup.state) if resume else (0, {})
    if memory:
        return step, memory
    memory = beginning(cfg) | (more or {})
    memory["before"] = memory["after"] = setup.sit(0, {})
    setup.keep_best(memory, 0)
    if cfg.on_alarm == "rollback":
        checkpoint.save(setup.log, 0, **setup.state, extra=memory)
    return step, memory
