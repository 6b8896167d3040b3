"""Collapse alarms: reward and loss curves do not show collapse, these do.

Source: arXiv:2307.04964, section 5.1 (length, KL and perplexity reveal what the reward hides), and arXiv:2310.02743
(reward models that disagree are being gamed); thresholds are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pydantic import Field

from keel.config import Config
from keel.errors import NumericsError

__all__ = ["DISSENT", "WATCHED", "Alarm", "RollbackConfig", "persona_drift", "raised", "rolled_back", "stop_on",
           "watch"]

WATCHED = ("response/cut", "response/length", "response/repetition", "score/mean", "score/std", "score/p95",
           "kl/reference_k3", "policy/entropy", "value/explained_variance", "steps/count", "score/outcome", "persona/z",
           "persona/neutral/z")
DISSENT = "/disagreement"
"""How the metrics of ensembles end, which are watched too: score/NAME/disagreement."""

PERSONA_FALL = 1.0
"""Standard deviations by which the mean projection may fall below that of the start."""
FEW = 5
"""Phases at the start and at the end whose medians are compared, where single phases are too unsteady."""

History = Sequence[dict[str, float]]
"""One row of metrics per rollout phase, oldest first."""


@dataclass(frozen=True)
class Alarm:
    """One alarm: what was seen against what limit, in plain words, with the usual remedy."""

    name: str
    value: float
    limit: float
    meaning: str
    remedy: str

    def row(self, step: int) -> dict[str, Any]:
        return {"step": step, **vars(self)}


class RollbackConfig(Config):
    """What on_alarm = rollback does: back to the last checkpoint that wrote a quiet phase, then on, more carefully."""

    most: int = Field(3, ge=1, description="times a run goes back; the next alarm stops it")
    kl_factor: float = Field(2.0, ge=1, description="kl.coef is multiplied by this each time")
    lr_factor: float = Field(0.5, gt=0, le=1, description="so is the policy's learning rate by this")


def rolled_back(to: int, times: int, most: int) -> Alarm:
    """The event of going back, as a row of alarms.jsonl."""
    return Alarm("rollback", times, most, f"Went back to the policy, critic and running moments of phase {to}.",
                 "Alarms that come again mean that the settings do not hold: raise kl.coef or lower the learning rate.")


def watch(memory: dict[str, Any], metrics: dict[str, Any]) -> list[Alarm]:
    """Add a phase to the history; every alarm it sets off.

    The responses of a phase were written by the policy as it was before it. So a quiet phase vouches for the checkpoint
    last saved, and what rings since the first phase came with the policy of the start.

    Args:
        memory: `history`, `n_alarms`, `from_start`, `saved` and `good` are read and brought up to date.
        metrics: of this phase.
    """
    memory["history"].append({name: x for name, x in metrics.items() if name in WATCHED or name.endswith(DISSENT)})
    found = raised(memory["history"])
    memory["n_alarms"] += len(found)
    names = [alarm.name for alarm in found]
    first = len(memory["history"]) == 1 and not memory["from_start"]
    memory["from_start"] = names if first else [name for name in memory["from_start"] if name in names]
    if all(alarm.name in memory["from_start"] for alarm in found):
        memory["good"] = memory["saved"]
    return found


def stop_on(alarm: Alarm, where: str) -> None:
    """End the run because of an alarm.

    Raises:
        NumericsError: always.
    """
    raise NumericsError(f"alarm {alarm.name}: {alarm.meaning}", where=where,
                        remedy=f"{alarm.remedy} The checkpoint of this step is kept; --resume goes on from it.")


def raised(history: History) -> list[Alarm]:
    """Every alarm that the newest row of the history sets off."""
    checks = (_truncation, _length_reward_race, _kl_jump, _entropy_drop, _score_long_tail, _repetition, _value_blind,
              _disagreement, _step_farming, _persona_drift)
    return [alarm for check in checks for alarm in check(history)]


def _truncation(history: History) -> list[Alarm]:
    cut = history[-1]["response/cut"]
    return [] if cut <= 0.5 else [Alarm(
        "truncation", cut, 0.5, "More than half of the responses were cut at the length limit.",
        "Raise max_new_tokens, or look whether the policy has learned that longer pays.")]


def _length_reward_race(history: History) -> list[Alarm]:
    start, now = history[0], history[-1]
    longer = now["response/length"] > 2 * start["response/length"]
    return [] if not (longer and now["score/mean"] > start["score/mean"]) else [Alarm(
        "length_reward_race", now["response/length"], 2 * start["response/length"],
        "Responses are twice as long as at the start while the score rises: the reward model may be paid by length.",
        "Raise kl.coef, and check the reward model against the baseline 'the longer answer wins'.")]


def _kl_jump(history: History) -> list[Alarm]:
    past = [row["kl/reference_k3"] for row in history[:-1]]
    limit = max(5 * median(past), 0.01) if len(past) >= 5 else float("inf")
    now = history[-1]["kl/reference_k3"]
    return [] if now <= limit else [Alarm(
        "kl_jump", now, limit, "Drift from the reference jumped to more than five times its median (nats per token).",
        "Lower the learning rate or raise kl.coef.")]


def _entropy_drop(history: History) -> list[Alarm]:
    seen = [row["policy/entropy"] for row in history if "policy/entropy" in row]  # not where no response counted
    limit, now = (0.6 * seen[0], seen[-1]) if seen else (0.0, 0.0)
    return [] if now >= limit else [Alarm(
        "entropy_drop", now, limit, "The policy lost over 40% of the entropy it began with: its answers become alike.",
        "Raise kl.coef, lower the learning rate, or stop earlier.")]


def _score_long_tail(history: History) -> list[Alarm]:
    start, now = history[0], history[-1]
    limit = start["score/p95"] + 3 * max(start["score/std"], 1e-6)
    return [] if now["score/p95"] <= limit else [Alarm(
        "score_long_tail", now["score/p95"], limit,
        "The best scores lie more than three standard deviations above the best at the start.",
        "The policy may have left the region the reward model knows: read the highest-scored samples.")]


def _repetition(history: History) -> list[Alarm]:
    limit, now = max(0.3, 2 * history[0]["response/repetition"]), history[-1]["response/repetition"]
    return [] if now <= limit else [Alarm(
        "repetition", now, limit, "Responses repeat themselves (share of four-token sequences seen before).",
        "A collapsed policy repeats until the limit: go back to an earlier checkpoint and raise kl.coef.")]


def _value_blind(history: History) -> list[Alarm]:
    recent = [row["value/explained_variance"] for row in history[-5:] if "value/explained_variance" in row]
    blind = len(history) >= 10 and max(recent, default=0.0) < 0.0
    return [] if not blind else [Alarm(
        "value_blind", recent[-1], 0.0, "The critic explains nothing of the returns for five rollouts.",
        "Pre-train the critic longer, or raise its learning rate.")]


def _step_farming(history: History) -> list[Alarm]:
    counts = [row["steps/count"] for row in history if "steps/count" in row]
    if len(counts) < 2 * FEW:
        return []
    earned = [row["score/outcome"] for row in history if "score/outcome" in row]
    gains = bool(earned) and median(earned[-FEW:]) > median(earned[:FEW])
    now, limit = median(counts[-FEW:]), 1.5 * median(counts[:FEW])
    return [] if now <= limit or gains else [Alarm(
        "step_farming", now, limit,
        "Responses have over 1.5 times the steps that they had at the start" + (
            ", and what is paid for whole responses does not rise." if earned else "; nothing is paid for whole ones."),
        "Steps that add nothing may be what is paid: use steps.credit min, mean or delta with gae or rloo, or "
        "steps.cap.")]


def _persona_drift(history: History) -> list[Alarm]:
    start, now = history[0].get("persona/z", 0.0), history[-1]
    return [alarm for name, first in (("persona/z", start), ("persona/neutral/z", 0.0)) if name in now
            for alarm in persona_drift(now[name], first)][:1]


def persona_drift(z: float, start: float = 0.0) -> list[Alarm]:
    """The alarm of responses that left the Assistant, or none.

    Args:
        z: mean over responses of their projection, in standard deviations of the neutral answers of the start.
        start: the same of the first responses, where they are not the neutral ones themselves.
    """
    limit = min(start, 0.0) - PERSONA_FALL
    return [] if z >= limit else [Alarm(
        "persona_drift", z, limit, "Responses moved away from the Assistant by over a standard deviation of the "
        "neutral answers of the start.", "Read samples; raise kl.coef or lower the learning rate, set anchor, or leave "
        "data out that rewards a role.")]


def _disagreement(history: History) -> list[Alarm]:
    found = []
    for name in [name for name in history[-1] if name.endswith(DISSENT)]:
        start, now = [row[name] for row in history[:5]], history[-1][name]
        limit = 2 * max(median(start), 1e-6)
        if len(history) > 5 and now > limit:
            found.append(Alarm("disagreement", now, limit,
                               f"The members of an ensemble are twice as far apart as in its first phases ({name}).",
                               "The policy leaves what they were trained on: raise kl.coef, or train them on pairs of "
                               "its responses."))
    return found
