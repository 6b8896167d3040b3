"""Scores from models: every response becomes a row of tokens once, and batches are fixed before the first score."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from keel.batches import TokenBatch
from keel.bench.items import Asked
from keel.bench.scorer_config import ScorerConfig, TooLong
from keel.bench.scorer_process import solution_scores
from keel.bench.scorer_templates import NAMES, QUESTION_ANSWER, with_template
from keel.data.chat import Template, template
from keel.data.collate import budget_batches, collate
from keel.data.records import Message, Prompt
from keel.data.render import Fitted, Row, fit
from keel.data.segment import steps_in_text
from keel.errors import ConfigError, ModelError
from keel.models.classifier import context_of, load_classifier
from keel.models.forward import token_logprobs
from keel.models.identity import model_identity, tokenizer_identity
from keel.models.load import ModelConfig, causal_lm, device_of, load_tokenizer, model_config
from keel.models.process import process_model

__all__ = ["RowScorer", "Rows", "log_ratio", "model_scorer", "policy_scorer", "process_scorer"]

UNBOUNDED = 1 << 31
AT_ONCE = 256
"""Responses per call of the tokenizer, which holds ten times their tokens until it returns."""


@dataclass(frozen=True)
class Rows:
    """How prompt and response become a row of tokens.

    Attributes:
        words: tokenizer and template.
        max_length: tokens of a row.
        too_long: what happens to longer ones.
        whole_template: rows end with all that the template writes, not with the token that ends the turn.
        micro_tokens: token positions per forward pass.
        questions: a plain text is a question too, and not continued.
        unknown: path of a model that nobody says how it reads conversations; none: that is known.
    """

    words: Template
    max_length: int
    too_long: TooLong
    whole_template: bool
    micro_tokens: int
    questions: bool = False
    unknown: str | None = None

    def read(self, prompt: Prompt) -> Prompt:
        """The prompt as the template gets it.

        Raises:
            ConfigError: a conversation, and it is not known how the model reads one.
        """
        if prompt.text is None and self.unknown is not None:
            raise ConfigError("the tokenizer has no chat template, so how this model reads a prompt and a response is "
                              "not known", where=self.unknown,
                              remedy=f"Set scorer.chat_template to what it was trained with: {', '.join(NAMES)}, or a "
                                     f"file with a Jinja template.")
        return prompt if prompt.text is None or not self.questions else replace(
            prompt, messages=(Message("user", prompt.text),), text=None)

    def spelled(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Prompt, list[int]]]:
        """Each response with its prompt as the template gets it, and with its tokens and what ends them.

        Raises:
            ConfigError: see `read`.
        """
        for start in range(0, len(asked), AT_ONCE):
            part = [(one, self.read(one.prompt)) for one in asked[start : start + AT_ONCE]]
            talk = [one.response for one, prompt in part if prompt.text is None and one.ended]
            found = iter(self.words.many_response_ids(talk, closed=self.whole_template))
            for one, prompt in part:
                # A plain text that is continued has no template, and nothing ends a response that was cut.
                yield one, prompt, (next(found) if prompt.text is None and one.ended
                                    else self.words.response_ids(one.response, one.ended, after=prompt.text))

    def step_ends(self, asked: Asked, separator: str) -> tuple[int, ...]:
        """Index, within the tokens of the whole response, of the token in which each of its steps ends."""
        ids = self.words.response_ids(asked.response, asked.ended, after=self.read(asked.prompt).text)
        return steps_in_text(self.words, asked.response, ids, separator, ended=asked.ended).ends


class RowScorer:
    """A model's scores; a `Scorer`.

    Attributes:
        name, fingerprint, concurrency, counts: see `Scorer`.
        resolution: spacing of numbers around 1 in the format that the scores were computed in.
        flagged: response key -> what became of its row in `plan`, where that is not whole: `fewer turns`, `prompt cut`,
            `response cut`, `no room`, `not Unicode`.
    """

    def __init__(self, name: str, fingerprint: Mapping[str, Any], rows: Rows, model: nn.Module,
                 score: Callable[[TokenBatch, Sequence[Asked]], Float[Tensor, " B"]], resolution: float) -> None:
        self.name, self.fingerprint, self.concurrency, self.resolution = name, fingerprint, 1, resolution
        self.counts: Mapping[str, int] = {}
        self.flagged: Mapping[str, str] = {}
        self._rows, self._model, self._score = rows, model, score
        # Ids as arrays of 4 bytes a token: lists of Python ints take nine times as much.
        self._planned: dict[str, tuple[np.ndarray, int]] = {}

    def plan(self, asked: Sequence[Asked]) -> list[list[int]]:
        """Rows of similar length together, the longest first; the same batches in whatever order they are given.

        Raises:
            ConfigError: a conversation, and it is not known how the model reads one.
            DataError: the template refuses a conversation, or too_long is `error` and a row is too long.
        """
        prompts: dict[Any, np.ndarray] = {}
        found = {one.id: "not Unicode" for one in asked if not _is_unicode(one)}
        self._planned = {name: (np.array([], dtype=np.int32), 0) for name in found}
        for one, prompt, response in self._rows.spelled([one for one in asked if one.id not in found]):
            key = (prompt.messages, prompt.text)
            if key not in prompts:
                prompts[key] = np.array(self._rows.words.prompt_ids(prompt), dtype=np.int32)
            fitted = fit(self._rows.words, prompt, [response], self._rows.max_length, self._rows.too_long,
                         prompts[key].tolist())
            found[one.id] = _outcome(fitted, response)
            ids = [] if fitted.outcome == "dropped" else [*fitted.prompt_ids, *fitted.responses[0]]
            self._planned[one.id] = (np.array(ids, dtype=np.int32), len(fitted.prompt_ids))
        self.counts = {f"rows: {name}": n for name, n in sorted(Counter(found.values()).items())}
        self.flagged = {name: outcome for name, outcome in found.items() if outcome != "whole"}
        order = sorted(range(len(asked)), key=lambda i: asked[i].id)
        lengths = [len(self._planned[asked[i].id][0]) for i in order]
        return [[order[i] for i in part] for part in budget_batches(lengths, self._rows.micro_tokens)]

    @torch.no_grad()
    def score(self, asked: Sequence[Asked]) -> list[float]:
        """Scores of a planned batch; NaN where the length limit left nothing, or where the text is none."""
        rows = [Row(ids.tolist(), n_prompt, one.id) for one in asked for ids, n_prompt in [self._planned[one.id]]]
        kept = [i for i, row in enumerate(rows) if row.ids]
        scores = [nan] * len(rows)
        if kept:
            batch = collate([rows[i] for i in kept], self._rows.words.pad_id).to(device_of(self._model))
            found = self._score(batch, [asked[i] for i in kept])
            for i, score in zip(kept, found.double().cpu().tolist(), strict=True):
                scores[i] = score
        return scores


def model_scorer(cfg: ScorerConfig, spec: ModelConfig) -> RowScorer:
    """A reward model.

    Raises:
        ModelError: it cannot be loaded, or which of its labels is the score is not said.
        ConfigError: a limit beyond its context, or a template that is not there.
    """
    tokenizer = _tokenizer(cfg, spec)
    found = load_classifier(spec, adapter=cfg.adapter, label=cfg.label, label_weights=cfg.label_weights,
                            probability=cfg.probability)
    if cfg.chat_template == QUESTION_ANSWER and (getattr(model_config(spec), "type_vocab_size", None) or 0) > 1:
        found = replace(found, two_texts=any(tokenizer("", "a").get("token_type_ids", ())))
    rows = _rows(cfg, spec, tokenizer, found.model)
    fingerprint = {"kind": "reward model", "model": model_identity(spec, found.model, cfg.adapter),
                   "label_weights": list(found.weights), **_row_settings(rows)}
    if found.probability:  # added only where it is set: scores that were kept before stay those of their scorer
        fingerprint["probability"] = True
    return RowScorer(cfg.shown, fingerprint, rows, found.model, lambda batch, _: found.scores(batch), _resolution(spec))


def process_scorer(cfg: ScorerConfig, spec: ModelConfig) -> RowScorer:
    """A process model, which reads each step of a response.

    Raises:
        ModelError: it cannot be loaded, or is no process model.
        ConfigError: a limit beyond its context, or a template that is not there.
    """
    tokenizer = _tokenizer(cfg, spec)
    model = process_model(spec).requires_grad_(False)
    rows = _rows(cfg, spec, tokenizer, model)
    fingerprint = {"kind": "process model", "model": model_identity(spec, model), "separator": cfg.separator,
                   "aggregate": cfg.aggregate, **_row_settings(rows)}

    def score(batch: TokenBatch, asked: Sequence[Asked]) -> Float[Tensor, " B"]:
        ends = [rows.step_ends(one, cfg.separator) for one in asked]
        return solution_scores(model, batch, ends, how=cfg.aggregate)

    return RowScorer(cfg.shown, fingerprint, rows, model, score, _resolution(spec))


def policy_scorer(cfg: ScorerConfig, spec: ModelConfig) -> RowScorer:
    """The implicit reward of a policy trained by DPO, without its factor beta.

    Raises:
        ModelError: policy or reference cannot be loaded, or their tokens differ.
        ConfigError: a limit beyond the context, or a template that is not there.
    """
    tokenizer = _tokenizer(cfg, spec)
    policy, reference = causal_lm(spec).requires_grad_(False), None
    if cfg.reference is not None:
        _require_same_tokens(tokenizer, cfg.reference.whole)
        reference = causal_lm(cfg.reference.whole).requires_grad_(False)
    rows = _rows(cfg, spec, tokenizer, policy, reference)
    fingerprint = {
        "kind": "log-probability (reference-free)" if reference is None else "implicit DPO reward",
        "policy": model_identity(spec, policy), "normalise": cfg.normalise,
        "reference": cfg.reference and model_identity(cfg.reference.whole, reference), **_row_settings(rows)}
    mean = cfg.normalise == "mean"
    return RowScorer(cfg.shown, fingerprint, rows, policy,
                     lambda batch, _: log_ratio(policy, reference, batch, mean=mean), _resolution(spec))


def log_ratio(policy: nn.Module, reference: nn.Module | None, batch: TokenBatch, *, mean: bool) -> Float[Tensor, " B"]:
    """log p(response | prompt) under the policy less that under the reference, in nats, float64.

    Args:
        policy: a causal language model.
        reference: none: nothing is subtracted.
        batch: rows; their response tokens count, the one that ends the turn included.
        mean: per token of the response.
    """
    total = token_logprobs(policy, batch)[0].double()
    if reference is not None:
        elsewhere = token_logprobs(reference, batch.to(device_of(reference)))[0]
        total = total - elsewhere.to(total.device).double()
    found = total.sum(1)
    return found / batch.response_mask.sum(1) if mean else found


def _tokenizer(cfg: ScorerConfig, spec: ModelConfig) -> Any:
    tokenizer = load_tokenizer(spec.path, trust_remote_code=spec.trust_remote_code)
    return tokenizer if cfg.chat_template is None else with_template(tokenizer, cfg.chat_template)


def _rows(cfg: ScorerConfig, spec: ModelConfig, tokenizer: Any, *models: Any) -> Rows:
    limits = [limit for limit in map(context_of, [model for model in models if model is not None]) if limit]
    limit = min(limits, default=None)
    if cfg.max_length is not None and limit is not None and cfg.max_length > limit:
        raise ConfigError(f"max_length={cfg.max_length} is beyond the model's context of {limit} tokens",
                          where=spec.path, remedy=f"Set it to {limit} or less, or leave it out.")
    # keel trains on rows that end with the turn; others on whole templates. Only what keel trained can do without a
    # template of its own: `template` knows what it was given then.
    own = cfg.adapter is not None or cfg.process is not None or getattr(models[0].config, "keel_rows", None) == "turn"
    unknown = None if own or tokenizer.chat_template is not None else spec.path
    ending = cfg.ending or ("turn" if own or cfg.policy is not None else "template")
    return Rows(template(tokenizer), cfg.max_length or limit or UNBOUNDED, cfg.too_long, ending == "template",
                cfg.micro_tokens, cfg.chat_template == QUESTION_ANSWER, unknown)


def _row_settings(rows: Rows) -> dict[str, Any]:
    return {**tokenizer_identity(rows.words.tokenizer), "max_length": rows.max_length, "too_long": rows.too_long,
            "ending": "template" if rows.whole_template else "turn", "micro_tokens": rows.micro_tokens}


def _resolution(spec: ModelConfig) -> float:
    return torch.finfo(torch.bfloat16 if spec.autocast else getattr(torch, spec.dtype)).eps


def _outcome(fitted: Fitted, response: list[int]) -> str:
    if fitted.outcome != "cut":
        return "no room" if fitted.outcome == "dropped" else fitted.outcome
    return "response cut" if fitted.responses[0] != response else "prompt cut"


def _is_unicode(asked: Asked) -> bool:
    """False where half a character (a lone surrogate, which JSON can spell) is in the text: tokenizers refuse it."""
    try:
        "".join([asked.response, asked.prompt.text or "", *(turn.content for turn in asked.prompt.messages)]).encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_same_tokens(ours: Any, reference: ModelConfig) -> None:
    """The reference reads the policy's tokens, so every token that both know must have one id."""
    theirs = load_tokenizer(reference.path, trust_remote_code=reference.trust_remote_code).get_vocab()
    differ = sorted(token for token, number in ours.get_vocab().items() if theirs.get(token, number) != number)
    if differ:
        raise ModelError(f"policy and reference number {len(differ)} tokens differently; the first is {differ[0]!r}",
                         where=reference.path, remedy="Name the model that the policy was trained from.")
