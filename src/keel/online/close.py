"""The end of a phase: log, alarms, exam, checkpoint; and the end of a run."""

from typing import Any

from keel import runs
from keel.models.load import save_model
from keel.online.memory import Memory, Phase, go_back, prepare_next
from keel.online.setup import Setup
from keel.online.watch import result_of
from keel.rollout.evaluate import headline, without_each
from keel.train import alarms, checkpoint
from keel.train.clock import Clock

__all__ = ["closed", "finish"]


def closed(setup: Setup, memory: Memory, metrics: dict[str, Any], phase: Phase, clock: Clock) -> Memory:
    """Log a phase, watch for collapse, sit the exam and write a checkpoint where they are due; what is known now.

    Raises:
        NumericsError: an alarm stops the run.
        Stopped: the user did, after a checkpoint.
    """
    cfg, log, shown = setup.cfg, setup.log, phase.shown
    metrics |= setup.visited(phase)
    found = [] if phase.pretraining else alarms.watch(memory, metrics)
    log.log(shown, metrics | {"alarms": len(found)}, phase.name)
    log.time(shown, clock.lap({"samples": cfg.rollouts, "tokens": metrics["response/tokens"]}), phase.name)
    for alarm in found:
        log.alarm(alarm.row(shown))
    prepare_next(memory, metrics, phase.step, cfg)
    new = [alarm for alarm in found if alarm.name not in memory["from_start"]]  # going back cures no other
    acting = {"warn": [], "stop": found, "rollback": new}[cfg.on_alarm]
    stops = bool(acting) and (cfg.on_alarm == "stop" or memory["rollbacks"] >= cfg.rollback.most)
    if acting and cfg.on_alarm == "rollback":
        memory = go_back(log, memory, setup.state, shown, cfg)
    last = phase.is_last(cfg)
    if not phase.pretraining and (shown % cfg.eval_every == 0 or last):
        memory["after"] = setup.sit(shown, memory["before"])
        setup.keep_best(memory, shown)
    ready = phase.pretraining and memory["pretrained"] is not None
    if phase.step % cfg.save_every == 0 or last or ready or stops or log.stop_requested():
        memory["saved"] = phase.step
        checkpoint.save(log, phase.step, **setup.state, extra=memory, keep=memory["good"])
    if stops:
        alarms.stop_on(acting[0], f"{cfg.out}, step {shown}")
    if log.stop_requested() and not last:
        log.stop(phase.step)
    clock.lap({})
    return memory


def finish(setup: Setup, memory: Memory, more: dict[str, Any] | None = None) -> runs.RunResult:
    """Save the policy and write result.json, with `more` in it."""
    cfg = setup.cfg
    save_model(setup.models.policy, setup.words.tokenizer, cfg.out / "model")
    return setup.log.finish({
        "steps": cfg.steps, "skipped": setup.skipped,
        "headline": headline(memory["before"], memory["after"], cfg.seed),
        **{name: without_each(memory[name]) for name in ("before", "after")}, "best": memory["best"],
        "n_alarms": memory["n_alarms"], "n_rollbacks": memory["rollbacks"],
        "calibration": setup.rewards.calibration} | setup.holds.result() | setup.axis.result() | result_of(setup.watch)
        | (more or {}))
