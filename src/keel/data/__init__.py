"""Text in, padded tensors out; never sees a model. Importing it takes no torch."""

from keel.data.collate import budget_batches, collate, collate_pairs
from keel.data.load import (
    OnBadRecord,
    Turns,
    Which,
    iter_demonstrations,
    iter_labelled,
    iter_pairs,
    iter_prompts,
    iter_rankings,
    iter_traces,
    read_demonstrations,
    read_graded,
    read_labelled,
    read_pairs,
    read_prompts,
    read_rankings,
    read_responses,
    read_traces,
)
from keel.data.problems import Problem, ReadReport, RowError, Tally
from keel.data.readers import read_rows, scan_rows
from keel.data.records import (
    Demonstration,
    Graded,
    Labelled,
    Message,
    PreferencePair,
    Prompt,
    Ranking,
    check_demonstration,
    check_graded,
    check_pair,
    check_prompt,
    check_ranking,
)
from keel.data.render import (
    Fitted,
    PairRow,
    PromptRow,
    RankingRow,
    Row,
    Template,
    TooLong,
    Truncation,
    fit,
    render_demonstrations,
    render_pairs,
    render_prompts,
    render_rankings,
    template,
)
from keel.data.traces import StepTrace, check_trace

__all__ = [
    "Demonstration", "Fitted", "Graded", "Labelled", "Message", "OnBadRecord", "PairRow", "PreferencePair", "Problem",
    "Prompt", "PromptRow", "Ranking", "RankingRow", "ReadReport", "Row", "RowError", "StepTrace", "Tally", "Template",
    "TooLong", "Truncation", "Turns", "Which", "budget_batches", "check_demonstration", "check_graded", "check_pair",
    "check_prompt", "check_ranking", "check_trace", "collate", "collate_pairs", "fit", "iter_demonstrations",
    "iter_labelled", "iter_pairs", "iter_prompts", "iter_rankings", "iter_traces", "read_demonstrations",
    "read_graded", "read_labelled", "read_pairs", "read_prompts", "read_rankings", "read_responses", "read_rows",
    "read_traces", "render_demonstrations", "render_pairs", "render_prompts", "render_rankings", "scan_rows",
    "template",
]
