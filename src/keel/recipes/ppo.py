"""PPO-max: policy-gradient RLHF that stays on its feet (Zheng et al. 2023, arXiv:2307.04964, sections 3 and 5).

One loop for PPO-max, its ablations and the estimators without a critic (RLOO, GRPO, REINFORCE++): they differ in their
terms, not in the order of steps. Left out: several processes in one run.
"""

from keel import runs
from keel.online.close import closed, finish
from keel.online.memory import Phase
from keel.online.settings import OnlineConfig
from keel.online.setup import begun, prepared
from keel.online.update import learned
from keel.rollout.credit import with_credit
from keel.rollout.monitor import monitors
from keel.rollout.respond import scoring_function
from keel.rollout.reward import merged_moments, processed, with_step_rewards
from keel.train.clock import Clock

__all__ = ["PPOConfig", "run"]


class PPOConfig(OnlineConfig):
    """Everything `keel ppo` reads. Defaults: PPO-max's switches, exact sampling; the preset is the report's."""


def run(cfg: PPOConfig, *, resume: bool = False) -> runs.RunResult:
    """Train, and leave the policy in `out/model` (and the best one in `out/best`, where `best` says by what)."""
    with runs.start("ppo", cfg, cfg.out, seed=cfg.seed, data=cfg.files, resume=resume) as log:
        setup = prepared(cfg, log)
        rewards = setup.rewards
        step, memory = begun(setup, resume=resume)
        clock, progress = Clock(), log.bar(cfg.critic.pretrain + cfg.steps, step)
        while not (memory["pretrained"] is not None and step == memory["pretrained"] + cfg.steps):
            phase = Phase.after(step, memory)
            step = phase.step
            # Write: sample once, then measure the same tokens with every model that has an opinion.
            responses = setup.respond(step)
            clock.phase("sample")
            rollout = setup.measure(responses)
            scored = rewards(responses)
            # Credit: one score per response, and one per step where steps are paid, become one advantage per token.
            memory["moments"] = merged_moments(memory["moments"], scored, rollout.tokens.response_mask)
            scores = processed(scored, memory["moments"], cfg.score, rewards.weights)
            rollout = with_step_rewards(rollout, scored, memory["moments"], cfg.score, rewards.weights)
            rollout = with_credit(rollout, scores, truncation=cfg.truncation, advantage=cfg.advantage,
                                  kl_coef=memory["kl_coef"] if cfg.kl.within == "reward" else 0.0)
            metrics = monitors(rollout, scored, scores, memory["moments"]) | {"kl/coef": memory["kl_coef"]}
            metrics |= setup.seen()
            if cfg.gold:
                metrics["gold/mean"] = float(responses.scored_by(scoring_function(cfg.gold)).mean())
            clock.phase("measure")
            # Learn: several passes over one rollout; what a token weighs is fixed before the micro-batches.
            metrics |= learned(setup, rollout, memory, phase)
            clock.phase("update")
            memory = closed(setup, memory, metrics, phase, clock)
            progress.reach(phase.shown if phase.pretraining else cfg.critic.pretrain + phase.shown,
                           f"score {metrics['score/mean']:.3f}  kl {metrics['kl/reference_k3']:.4f}")
        return finish(setup, memory)
