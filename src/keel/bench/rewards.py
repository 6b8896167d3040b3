"""Rewards of whole responses: any list of sources, each in a declared range, weighted and summed."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from keel.bench.engine import Cache, Scorer, fingerprint_key, score_all
from keel.bench.informativeness import Informativeness
from keel.bench.items import Asked, response_key
from keel.bench.scorer_functions import FunctionScorer
from keel.bench.scorers import ScorerConfig, load_scorer
from keel.config import Config
from keel.data.records import Graded, Prompt
from keel.errors import ConfigError, DataError, NumericsError
from keel.models.value_head import outside
from keel.runs import explained_disk_errors

__all__ = ["Rewarded", "SequenceRewardConfig", "SequenceRewards"]

OnDone = Callable[[int, int], None]
_Told = tuple[Prompt, str, bool]
SHOWN = 4
"""Responses that a message names."""


class SequenceRewardConfig(Config):
    """One reward of a whole response: a scorer, a number that the data hold, or how informative the text is."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="what its metrics are called: letters, digits, - and _")
    weight: float = Field(1.0, description="what it is multiplied by in the total; not 0")
    scorer: ScorerConfig | None = Field(None, description="model, function, endpoint or score file that gives it")
    stored: str | None = Field(None, min_length=1, description="name under `rewards` in the data: used for the "
                               "responses of the data; new text needs scorer")
    informative: str | None = Field(None, min_length=1, description="file of responses that TF-IDF weights are fitted "
                                    "on; the reward is how informative the text is by them")
    squash: Literal["sigmoid"] | None = Field(None, description="what makes a logit a number between 0 and 1; none: it "
                                              "is taken as it comes")
    low: float = Field(0.0, description="smallest possible reward, after squash and before weight")
    high: float = Field(1.0, description="largest possible reward, after squash and before weight")

    @model_validator(mode="after")
    def _check(self) -> "SequenceRewardConfig":
        if self.scorer is None and self.stored is None and self.informative is None:
            raise ValueError(f"reward {self.name!r} comes from nowhere: give scorer, stored or informative")
        if self.scorer is not None and self.informative is not None:
            raise ValueError(f"scorer and informative are two rewards, and {self.name!r} is one: make two tables "
                             "of them")
        if self.weight == 0:
            raise ValueError(f"reward {self.name!r} with weight=0 adds nothing to the total: remove it")
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} is not below high={self.high:g} in reward {self.name!r}")
        between = "informative" if self.informative is not None else (
            "scorer.probability" if self.scorer is not None and self.scorer.probability else None)
        if self.squash is not None and between is not None:
            raise ValueError(f"{between} gives {self.name!r} a value between 0 and 1 already: leave squash="
                             f"{self.squash!r} out")
        return self

    @property
    def scores_new_text(self) -> bool:
        """False where only the responses of a file have this reward."""
        return self.informative is not None or (self.scorer is not None and self.scorer.scores is None)


@dataclass(frozen=True)
class Rewarded:
    """What responses are worth, in their order.

    Attributes:
        total: weighted sum of the parts, float64.
        parts: each reward by its name, after squash and before weight, float64.
    """

    total: Float[Tensor, " N"]
    parts: dict[str, Float[Tensor, " N"]]


class SequenceRewards:
    """All rewards of a run, loaded and ready to score.

    Attributes:
        low, high: bounds of the total, from the declared ranges and the weights.
        identity: by name, whatever can change a reward, as JSON: source, squash, range, weight.
        counts: by name, what each scorer noticed about the data, such as responses cut at their end; after `of_data`.
        notes: what a reader of the rewards must know, in words.

    Args:
        specs: one or more, of different names.
        folder: where scores of data are kept, so that a killed run goes on; made where it is not there.

    Raises:
        ConfigError: no reward, two of one name, or a function that is not there.
        ModelError: a model cannot be loaded.
        DataError: a file of responses or of scores cannot be read.
    """

    def __init__(self, specs: Sequence[SequenceRewardConfig], folder: Path) -> None:
        _require_names(specs)
        self._specs, self._folder = tuple(specs), folder
        self._scorers = {spec.name: _loaded(spec) for spec in specs if spec.scorer or spec.informative}
        self.low = sum(min(spec.weight * spec.low, spec.weight * spec.high) for spec in specs)
        self.high = sum(max(spec.weight * spec.low, spec.weight * spec.high) for spec in specs)
        self.identity: dict[str, Any] = {spec.name: self._identity_of(spec) for spec in specs}
        self.counts: dict[str, dict[str, int]] = {}
        self.notes: list[str] = []

    def _identity_of(self, spec: SequenceRewardConfig) -> dict[str, Any]:
        scorer = self._scorers.get(spec.name)
        return {"scorer": None if scorer is None else dict(scorer.fingerprint), "stored": spec.stored,
                "squash": spec.squash, "weight": spec.weight, "low": spec.low, "high": spec.high}

    def require_new_text(self) -> None:
        """Refuse rewards that only the responses of a file have; for callers that will score new text later.

        Raises:
            ConfigError: there is such a reward.
        """
        known = [spec.name for spec in self._specs if not spec.scores_new_text]
        if known:
            raise ConfigError(f"nothing scores new text for {', '.join(map(repr, known))}: the reward is known for the "
                              "responses of a file only", where="rewards",
                              remedy="Give it a scorer beside stored: a model, a function or an endpoint.")

    def of_data(self, told: Sequence[Graded], on_done: OnDone | None = None, ended: Sequence[bool] | None = None,
                ) -> Rewarded:
        """Rewards of the responses of a data set; scores are kept in the folder, and never asked for twice.

        Args:
            told: with the grades that their file holds.
            on_done: called with how many scores are there, and how many there will be.
            ended: whether each response ended by itself; none: all did, as those of data do.

        Raises:
            DataError: a response lacks a stored grade.
            NumericsError: a reward is not finite or out of its declared range.
        """
        whole = [True] * len(told) if ended is None else ended
        pairs = [(one.prompt, one.response, end) for one, end in zip(told, whole, strict=True)]
        ids = [one.id for one in told]
        todo, parts, before = _counts(self._specs, pairs), dict[str, Tensor](), 0
        with explained_disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._note_changed(todo)
        for spec in self._specs:
            if spec.stored is not None:
                parts[spec.name] = self._noted(spec, _stored(spec, told), ids)
                continue
            tell = partial(_tell, on_done, before, sum(todo.values()))
            parts[spec.name] = self._noted(spec, self._scored(spec, pairs, ids, (self._folder, tell)), ids)
            self.counts[spec.name] = dict(self._scorers[spec.name].counts)
            before += todo[spec.name]
        return self._summed(parts)

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], ended: Sequence[bool] | None = None,
                 ) -> Rewarded:
        """Rewards of new texts, which are not kept. A text may be empty.

        Args:
            prompts: that they answer.
            texts: the responses.
            ended: whether each response ended by itself; none: all did.

        Raises:
            ConfigError: a reward that only the data have.
            NumericsError: a reward is not finite or out of its declared range.
        """
        self.require_new_text()
        whole = [True] * len(texts) if ended is None else ended
        pairs, ids = list(zip(prompts, texts, whole, strict=True)), [prompt.id for prompt in prompts]
        parts = {}
        for spec in self._specs:
            # A cache that nobody reads again, so that new text goes through the one engine, threads included.
            with TemporaryDirectory() as folder:
                raw = self._scored(spec, pairs, ids, (Path(folder), lambda n: None))
            parts[spec.name] = ranged(spec, raw, ids)
        return self._summed(parts)

    def _scored(self, spec: SequenceRewardConfig, pairs: Sequence[_Told], ids: Sequence[str],
                kept: tuple[Path, Callable[[int], None]]) -> Float[Tensor, " N"]:
        """Scores as the scorer gives them; the same text to the same prompt is asked about once."""
        folder, on_done = kept
        scorer, keys = self._scorers[spec.name], [_key(spec, *told) for told in pairs]
        rows = {key: Asked(key, *told) for key, told in zip(keys, pairs, strict=True)}
        asked, named = [rows[key] for key in sorted(rows)], dict(zip(reversed(keys), reversed(ids), strict=True))
        found = score_all(_Heeded(scorer, spec, named), asked, Cache(folder, fingerprint_key(scorer.fingerprint)),
                          most_failed=1.0, on_done=on_done) if asked else {}
        return torch.tensor([found[key] for key in keys], dtype=torch.float64)

    def _noted(self, spec: SequenceRewardConfig, raw: Float[Tensor, " N"], ids: Sequence[str]) -> Float[Tensor, " N"]:
        """The reward; with a note where a sigmoid is taken of what looks like one already."""
        found = ranged(spec, raw, ids)
        if spec.squash is not None and len(raw) > 1 and bool(((raw >= 0) & (raw <= 1)).all()):
            note = (f"reward {spec.name!r}: all {len(raw)} numbers of the data lie between 0 and 1 before squash = "
                    "sigmoid; if they are probabilities already, leave squash out")
            self.notes += [] if note in self.notes else [note]
        return found

    def _note_changed(self, todo: Mapping[str, int]) -> None:
        """Say which of the rewards to score is none of those that the folder was filled with."""
        keys = {name: fingerprint_key(self._scorers[name].fingerprint) for name in todo}
        there = {key.decode() for file in sorted(self._folder.glob("scores*.jsonl"))
                 for key in re.findall(rb'"scorer": "([0-9a-f]{16})"', file.read_bytes())}
        # A folder that holds nothing but rewards of this run was filled by it, before it was killed.
        lacking = [name for name, key in keys.items() if key not in there] if there - {*keys.values()} else []
        self.notes += [f"{self._folder} holds scores of other scorers and none of reward {name!r} as it is now; all "
                       f"{todo[name]} are computed. A scorer is another one where its weights, its source or its "
                       "settings have changed" for name in lacking]

    def _summed(self, parts: dict[str, Float[Tensor, " N"]]) -> Rewarded:
        return Rewarded(torch.stack([spec.weight * parts[spec.name] for spec in self._specs]).sum(0), parts)


class _Heeded:
    """A scorer whose batches are looked at as they come, so that a wrong range costs one batch; a `Scorer`."""

    def __init__(self, scorer: Scorer, spec: SequenceRewardConfig, named: Mapping[str, str]) -> None:
        self.name, self.fingerprint, self.concurrency = scorer.name, scorer.fingerprint, scorer.concurrency
        self.counts, self.resolution, self.flagged = scorer.counts, scorer.resolution, scorer.flagged
        self._scorer, self._spec, self._named = scorer, spec, named

    def plan(self, asked: Sequence[Asked]) -> list[list[int]]:
        """See `Scorer`."""
        return self._scorer.plan(asked)

    def score(self, asked: Sequence[Asked]) -> list[float]:
        """See `Scorer`.

        Raises:
            NumericsError: a reward is not finite or out of its declared range.
        """
        # A function's errors name what it was asked about: by the record's id, not by a digest that nobody knows.
        named = isinstance(self._scorer, FunctionScorer)
        found = self._scorer.score([replace(one, id=self._named[one.id]) for one in asked] if named else asked)
        why = sorted({self._scorer.flagged[one.id] for one in asked if one.id in self._scorer.flagged})
        ranged(self._spec, torch.tensor(found, dtype=torch.float64), [self._named[one.id] for one in asked], why)
        return found


def ranged(spec: SequenceRewardConfig, raw: Float[Tensor, " N"], ids: Sequence[str],
           why: Sequence[str] = ()) -> Float[Tensor, " N"]:
    """Squashed as the settings say, and looked at.

    Args:
        spec: squash and range.
        raw: numbers as they come.
        ids: of the responses, for messages.
        why: what was done to rows of tokens, for messages.

    Raises:
        NumericsError: a reward is not finite or out of its declared range.
    """
    found = raw.sigmoid() if spec.squash == "sigmoid" else raw
    broken = (~raw.isfinite()).nonzero().flatten().tolist()
    if broken:
        cut = f" (rows of this batch: {', '.join(why)})" if why else ""
        raise NumericsError(f"reward {spec.name!r} is {float(raw[broken[0]])}, which is no reward{cut}",
                            where=_named_ids(ids, broken),
                            remedy="A reward must be a finite number for any text" + _mended(spec))
    missed = outside(found, spec.low, spec.high).nonzero().flatten().tolist()
    if missed:
        raise NumericsError(f"reward {spec.name!r} is {float(found[missed[0]]):.7g}, outside its declared range of "
                            f"{spec.low:g} to {spec.high:g}", where=_named_ids(ids, missed), remedy=_remedy(spec))
    return found


def _mended(spec: SequenceRewardConfig) -> str:
    """Where to look for what made a reward that is no finite number."""
    if spec.stored is not None and spec.scorer is None:
        return ": mend the numbers in the data."
    if spec.scorer is not None and spec.scorer.process is not None:
        return ". A response without a step has no score of a process model: look at scorer.separator."
    if spec.scorer is not None and (spec.scorer.model is not None or spec.scorer.policy is not None):
        return (". Where a row of tokens has no room for its response, raise scorer.max_length or set scorer.too_long "
                "= keep_response.")
    if spec.scorer is not None and spec.scorer.function is not None:
        return f", an empty one too: mend {spec.scorer.function}."
    return ": mend its source."


def _remedy(spec: SequenceRewardConfig) -> str:
    if spec.squash is not None:
        return "A sigmoid lies between 0 and 1: set low = 0 and high = 1."
    if spec.low >= 0 and spec.high <= 1:
        return "If it is a logit, set squash = sigmoid; otherwise set low and high to the smallest and largest reward."
    return "Set low and high to the smallest and largest reward that there can be."


def _named_ids(ids: Sequence[str], places: Sequence[int]) -> str:
    shown = ", ".join(dict.fromkeys(ids[i] for i in places[:SHOWN]))
    return f"{len(places)} of {len(ids)} responses: {shown}{', ...' if len(places) > SHOWN else ''}"


def _stored(spec: SequenceRewardConfig, told: Sequence[Graded]) -> Float[Tensor, " N"]:
    """The numbers that the data hold.

    Raises:
        DataError: a response has none of this name.
    """
    assert spec.stored is not None
    lacking = [i for i, one in enumerate(told) if spec.stored not in one.grades]
    if lacking:
        there = ", ".join(sorted(told[lacking[0]].grades)) or "nothing"
        raise DataError(f"no number called {spec.stored!r} is stored under `rewards` for reward {spec.name!r}; the "
                        f"first of them has {there}", where=_named_ids([one.id for one in told], lacking),
                        remedy="Add the number to the data; or leave stored out and give a scorer.")
    return torch.tensor([one.grades[spec.stored] for one in told], dtype=torch.float64)


def _require_names(specs: Sequence[SequenceRewardConfig]) -> None:
    names = [spec.name for spec in specs]
    if not names:
        raise ConfigError("no reward is given, so responses are worth nothing", where="rewards",
                          remedy="Give one or more tables [[rewards]], each with a name and a source.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"the name {twice[0]!r} stands for more than one reward", where="rewards",
                          remedy="Metrics and tables go by the name: give each reward its own.")


def _loaded(spec: SequenceRewardConfig) -> Scorer:
    if spec.informative is not None:
        return Informativeness(spec.name, spec.informative)
    assert spec.scorer is not None
    return load_scorer(spec.scorer)


def _key(spec: SequenceRewardConfig, prompt: Prompt, text: str, ended: bool) -> str:
    """Of what the scorer sees: a function that gets the whole record sees more than the words of the prompt."""
    key = response_key(prompt, text) + ("" if ended else " cut")
    if spec.scorer is None or spec.scorer.prompt_as != "record":
        return key
    beside = json.dumps([key, prompt.id, prompt.meta, prompt.truth], sort_keys=True, default=repr)
    return hashlib.sha256(beside.encode()).hexdigest()[:16]


def _counts(specs: Sequence[SequenceRewardConfig], pairs: Sequence[_Told]) -> dict[str, int]:
    """How many scores each reward asks for."""
    return {spec.name: len({_key(spec, *told) for told in pairs}) for spec in specs
            if spec.stored is None}


def _tell(on_done: OnDone | None, before: int, total: int, done: int) -> None:
    if on_done is not None:
        on_done(before + done, total)
