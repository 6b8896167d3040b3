"""The town whose true reward is known: questions, writers, annotators, roles, and the gold score of any answer."""

from keel.sandbox.annotators import Annotator, pairs, panel
from keel.sandbox.corpus import demonstrations, talk
from keel.sandbox.gold import GoldScore, StepJudgement, gold_score, score
from keel.sandbox.ledger_steps import solutions, step_scores
from keel.sandbox.personas import PERSONAS, Persona, speak, with_role
from keel.sandbox.world import World
from keel.sandbox.writers import write

__all__ = [
    "PERSONAS",
    "Annotator",
    "GoldScore",
    "Persona",
    "StepJudgement",
    "World",
    "demonstrations",
    "gold_score",
    "pairs",
    "panel",
    "score",
    "solutions",
    "speak",
    "step_scores",
    "talk",
    "with_role",
    "write",
]
