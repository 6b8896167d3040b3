"""Responses as people read them: text beside tokens, with scores from a Python function where one is given."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from keel.batches import Rollout
from keel.data.records import Prompt
from keel.data.render import PromptRow, Template
from keel.errors import KeelError, NumericsError
from keel.functional.statistics import bootstrap_interval
from keel.named import named_function
from keel.rng import stream
from keel.rollout.sample import SamplingConfig, sample

__all__ = ["Responses", "one_score", "respond", "sample_rows", "scoring_function", "summary"]

ScoringFunction = Callable[[Prompt, str, bool], float]


@dataclass(frozen=True)
class Responses:
    """A rollout with its prompts and its texts, row for row."""

    rollout: Rollout
    prompts: tuple[Prompt, ...]
    texts: tuple[str, ...]

    def scored_by(self, function: ScoringFunction) -> torch.Tensor:
        """Score per response, from a function of prompt record, text, and whether the response ended by itself.

        Raises:
            NumericsError: the function failed, or gave something that is not a finite number.
        """
        ended = self.rollout.ended.tolist()
        return torch.tensor([one_score(function, p, t, e)
                             for p, t, e in zip(self.prompts, self.texts, ended, strict=True)], dtype=torch.float32)


def one_score(function: ScoringFunction, prompt: Prompt, text: str, ended: bool) -> float:
    """What the function says about one response.

    Raises:
        NumericsError: the function failed, or gave something that is not a finite number.
    """
    try:
        score = float(function(prompt, text, ended))
    except KeelError:
        raise
    except Exception as error:
        raise NumericsError(f"the scoring function failed: {type(error).__name__}: {error}",
                            where=f"record {prompt.id}", remedy="It must give a number for any text at all.") from error
    if not math.isfinite(score):
        raise NumericsError(f"the scoring function gave {score}", where=f"record {prompt.id}",
                            remedy="It must give a finite number for any text at all.")
    return score


def respond(policy: nn.Module, template: Template, rows: Sequence[PromptRow], sampling: SamplingConfig, *, seed: int,
            names: Sequence[str | int], on_done: Callable[[int], Any] | None = None) -> Responses:
    """Sample one response per prompt row; `names` and the record's id name the random stream of each."""
    streams = [stream(seed, *names, row.record.id, i) for i, row in enumerate(rows)]
    rollout = sample(policy, [row.ids for row in rows], sampling, streams, stop_ids=template.stop_ids,
                     pad_id=template.pad_id, record_ids=[row.record.id for row in rows], on_done=on_done)
    written = [ids[mask].tolist() for ids, mask in zip(rollout.tokens.ids.cpu(), rollout.tokens.response_mask.cpu(),
                                                       strict=True)]
    return Responses(rollout, tuple(row.record for row in rows), tuple(template.decode(ids) for ids in written))


def scoring_function(name: str) -> ScoringFunction:
    """The Python function `package.module:function` of (prompt record, response text, ended) -> float.

    Raises:
        ConfigError: the name has no colon, or the module or function does not exist.
    """
    return named_function(name)


def summary(values: torch.Tensor, seed: int, *names: str | int) -> dict[str, float]:
    """Mean with its 95% bootstrap interval, and how many values it stands on."""
    mean, low, high = bootstrap_interval(values, generator=stream(seed, "bootstrap", *names))
    return {"mean": mean, "low": low, "high": high, "n": values.numel()}


def sample_rows(step: int, responses: Responses, columns: dict[str, torch.Tensor], limit: int) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: the first `limit` responses with their numbers."""
    lengths = responses.rollout.tokens.response_mask.sum(1)
    rows = []
    for i in range(min(limit, len(responses.texts))):
        prompt = responses.prompts[i]
        shown = [{"role": m.role, "content": m.content} for m in prompt.messages] or prompt.text
        rows.append({
            "step": step, "id": prompt.id, "prompt": shown, "response": responses.texts[i],
            "ended": bool(responses.rollout.ended[i]), "n_tokens": int(lengths[i]),
            "domain": prompt.meta.get("domain"), **{
                name: None if x[i].isnan() else float(x[i]) for name, x in columns.items()}})
    return rows
