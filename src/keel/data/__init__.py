"""Text in, padded tensors out; never sees a model. Importing it takes no torch."""

from keel.data.collate import budget_batches, collate, collate_pairs
from keel.data.load import (
    OnBadRecord,
    Turns,
    iter_demonstrations,
    iter_pairs,
    iter_prompts,
    read_demonstrations,
    read_pairs,
    read_prompts,
)
from keel.data.problems import Problem, ReadReport, RowError, Tally
from keel.data.readers import read_rows, scan_rows
from keel.data.records import (
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    check_demonstration,
    check_pair,
    check_prompt,
)
from keel.data.render import (
    Fitted,
    PairRow,
    PromptRow,
    Row,
    Template,
    TooLong,
    Truncation,
    fit,
    render_demonstrations,
    render_pairs,
    render_prompts,
    template,
)

__all__ = [
    "Demonstration", "Fitted", "Message", "OnBadRecord", "PairRow", "PreferencePair", "Problem", "Prompt", "PromptRow",
    "ReadReport", "Row", "RowError", "Tally", "Template", "TooLong", "Truncation", "Turns", "budget_batches",
    "check_demonstration", "check_pair", "check_prompt", "collate", "collate_pairs", "fit", "iter_demonstrations",
    "iter_pairs", "iter_prompts", "read_demonstrations", "read_pairs", "read_prompts", "read_rows",
    "render_demonstrations", "render_pairs", "render_prompts", "scan_rows", "template",
]
