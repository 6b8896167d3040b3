"""What the user's messages foretell: the projection of the next response, and its change; and their themes.

Scores are out of fold: conversations that begin alike are left out together, and what is left out has no say in the
choice of the penalty either. Beside them stand what the same regression makes of shuffled messages, what the domain
alone tells, what the response before tells, and the score on the training rows, which is always too high.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from keel.config import Config
from keel.data.chat import Template
from keel.data.collate import budget_batches, collate
from keel.data.records import Message
from keel.data.render import Row
from keel.data.spans import render_conversation
from keel.functional.clusters import word_contrast
from keel.functional.directions import token_means
from keel.functional.drift import r_squared, ridge, ridge_out_of_fold
from keel.functional.resampling import cluster_draws, ratio_draws
from keel.models.encode import encoded_texts
from keel.models.forward import hidden_states
from keel.models.load import device_of
from keel.models.residual import Columns, attach
from keel.persona.drift import Course, estimate
from keel.rng import digest, shuffled, stream

__all__ = ["ForetellConfig", "Told", "foretold", "message_features", "themes", "told_rows"]

FEWEST_CLUSTERS = 3
"""Without three, nothing can be left out twice."""
SHOWN = 240
N_WORDS = 4


class ForetellConfig(Config):
    """How user messages become numbers, and what is made of them."""

    embed: Literal["model", "words", "encoder"] = Field("model", description="a message's vector: mean state of the "
                                                        "model itself, hashed word counts, or an encoder's mean state")
    encoder: str | None = Field(None, description="folder or hub name of the encoder")
    n_words: int = Field(512, ge=8, description="numbers that word counts are hashed to")
    folds: int = Field(5, ge=3, description="parts that are left out in turn; a conversation is never split")
    alphas: tuple[float, ...] = Field((0.001, 0.01, 0.1, 1.0, 10.0, 100.0), min_length=1, description="penalties that "
                                      "the regression may choose from, each above 0")
    n_shuffles: int = Field(5, ge=1, description="times the messages are shuffled for the control")
    n_themes: int = Field(8, ge=2, description="K-means clusters of messages")
    n_examples: int = Field(3, ge=1, description="messages shown of each theme, the most typical first")

    @model_validator(mode="after")
    def _check(self) -> "ForetellConfig":
        if (self.embed == "encoder") != (self.encoder is not None):
            raise ValueError(f"embed={self.embed!r} and encoder={self.encoder!r} do not go together: the one needs the "
                             "other")
        if min(self.alphas) <= 0:
            raise ValueError(f"alphas={self.alphas} holds a penalty that is not above 0")
        return self


@dataclass(frozen=True, eq=False)
class Told:
    """User messages and the responses to them.

    Attributes:
        texts: the user's last message before each response.
        next, previous: projection of the response to it, and of the response before it; NaN where there is none.
        domains: of each.
        clusters: number of its conversation; conversations with the same first message share one.
    """

    texts: tuple[str, ...]
    next: Float[Tensor, " N"]
    previous: Float[Tensor, " N"]
    domains: tuple[str, ...]
    clusters: Int[Tensor, " N"]


def told_rows(courses: Sequence[Course]) -> Told:
    """Every response of which both the message before it and its own projection are known."""
    texts, after, before, domains, clusters = [], [], [], [], []
    known: dict[str, int] = {}
    for one in courses:
        cluster = known.setdefault(one.asked[0].strip() if one.asked else one.id, len(known))
        for i, (text, value) in enumerate(zip(one.before, one.turns, strict=True)):
            if text is None or value is None:
                continue
            earlier = one.turns[i - 1] if i else None
            texts.append(text)
            after.append(value)
            before.append(math.nan if earlier is None else earlier)
            domains.append(one.domain)
            clusters.append(cluster)
    return Told(tuple(texts), torch.tensor(after, dtype=torch.float64), torch.tensor(before, dtype=torch.float64),
                tuple(domains), torch.tensor(clusters, dtype=torch.long))


# --- messages to numbers


def message_features(cfg: ForetellConfig, texts: Sequence[str], model: nn.Module, words: Template, *, layer: int,
                     width: int) -> Float[Tensor, "N D"]:
    """A vector of length 1 for each message, read by itself and not in its conversation.

    Args:
        cfg: how.
        texts: may repeat.
        model, words: the model itself and its template, for `embed = "model"`.
        layer: block at which its states are read.
        width: tokens that it reads at once; a longer message is cut.

    Raises:
        ModelError: no such encoder.
    """
    distinct = list(dict.fromkeys(texts))
    if cfg.embed == "words":
        found = _word_counts(distinct, cfg.n_words)
    elif cfg.encoder is not None:
        found = encoded_texts(cfg.encoder, distinct)
    else:
        found = _states(model, words, distinct, layer=layer, width=width)
    place = {text: i for i, text in enumerate(distinct)}
    of_each = found.double()[torch.tensor([place[text] for text in texts])]
    return of_each / of_each.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def _word_counts(texts: Sequence[str], n_words: int) -> Float[Tensor, "N D"]:
    from sklearn.feature_extraction.text import HashingVectorizer

    # Nothing is fitted: what is left out has no part in the features.
    counts = HashingVectorizer(n_features=n_words, alternate_sign=False, norm=None).transform(texts)
    return torch.from_numpy(counts.toarray())


@torch.no_grad()
def _states(model: nn.Module, words: Template, texts: Sequence[str], *, layer: int, width: int,
            ) -> Float[Tensor, "N D"]:
    """Mean state over the content of each message, alone in a conversation."""
    rendered = [render_conversation(words, [Message("user", text)], record_id=str(i)) for i, text in enumerate(texts)]
    rows = [Row(one.ids[:width], 0, one.record_id) for one in rendered]
    found: dict[int, Tensor] = {}
    content = torch.zeros(0, dtype=torch.bool)

    def tap(layer: int, hidden: Tensor, columns: Columns) -> None:
        means = token_means(hidden, content.to(hidden.device)).cpu()
        found.update(zip(part, means, strict=True))

    with attach(model, {layer: tap}):
        for part in budget_batches([row.n_tokens for row in rows], 8 * width):
            batch = collate([rows[i] for i in part], words.pad_id)
            content = torch.zeros_like(batch.attention_mask)
            for row, i in enumerate(part):
                content[row, rendered[i].turns[0].start:rendered[i].turns[0].end] = True
            hidden_states(model, batch.to(device_of(model)))
    return torch.stack([found[i] for i in range(len(rows))])


# --- what they foretell


def foretold(cfg: ForetellConfig, told: Told, features: Float[Tensor, "N D"], *, seed: int, n_draws: int,
             ) -> dict[str, dict[str, Any]]:
    """R2 for the next projection and for its change, each beside its controls; empty where nothing can be left out."""
    found = {}
    for name, target in (("projection", told.next), ("change", told.next - told.previous)):
        there = ~target.isnan()
        n_clusters = len(told.clusters[there].unique())
        if n_clusters >= FEWEST_CLUSTERS and len(target[there].unique()) > 1:
            found[name] = _scores(cfg, told, features, target, seed=seed, n_draws=n_draws)
    return found


def _scores(cfg: ForetellConfig, told: Told, features: Tensor, target: Tensor, *, seed: int, n_draws: int,
            ) -> dict[str, Any]:
    there = ~target.isnan()
    x, y, clusters = features[there], target[there], told.clusters[there]
    folds = _folds(clusters, cfg.folds, seed)
    names = sorted({*told.domains})
    domains = torch.tensor([[name == one for one in names] for name in told.domains], dtype=torch.float64)[there]
    previous = told.previous[there]
    draws = cluster_draws(int(clusters.max()) + 1, n_draws=n_draws, generator=stream(seed, "foretell", "draws"))

    def score(some: Tensor, rows: Tensor) -> dict[str, Any]:
        predicted = ridge_out_of_fold(some[rows], y[rows], folds[rows], alphas=cfg.alphas)
        return _interval(y[rows], predicted, clusters[rows], draws)

    every = torch.ones(len(y), dtype=torch.bool)
    found: dict[str, Any] = {"out of fold": score(x, every) | {"n": len(y)}}
    chance = [r_squared(y, ridge_out_of_fold(x[shuffled(len(x), seed, "foretell", "shuffle", i)], y, folds,
                                             alphas=cfg.alphas)) for i in range(cfg.n_shuffles)]
    found["shuffled messages"] = {"mean": sum(chance) / len(chance), "low": min(chance), "high": max(chance)}
    if len(names) > 1:
        found["domain alone"] = score(domains, every)
    known = ~previous.isnan()
    if len(folds[known].unique()) >= FEWEST_CLUSTERS and len(y[known].unique()) > 1:
        found["response before"] = score(previous[:, None], known)
    found["training rows"] = {"mean": _training(x, y, folds, cfg.alphas), "low": None, "high": None}
    return found


def _folds(clusters: Int[Tensor, " N"], n_folds: int, seed: int) -> Int[Tensor, " N"]:
    """Whole clusters to folds of about as many clusters each."""
    names = clusters.unique().tolist()
    order = shuffled(len(names), seed, "foretell", "folds")
    fold = torch.zeros(int(clusters.max()) + 1, dtype=torch.long)
    for place, i in enumerate(order):
        fold[names[i]] = place % n_folds
    return fold[clusters]


def _interval(y: Tensor, predicted: Tensor, clusters: Tensor, draws: Tensor) -> dict[str, Any]:
    """R2 with its interval over conversations."""
    places = y.new_zeros(draws.shape[1])
    errors = places.index_add(0, clusters, (y - predicted).square())
    about = places.index_add(0, clusters, (y - y.mean()).square())
    spread = 1 - ratio_draws(draws, errors[:, None], about[:, None])[:, 0]
    return estimate(torch.tensor(r_squared(y, predicted)), spread, len(clusters.unique()))


def _training(x: Tensor, y: Tensor, folds: Tensor, alphas: Sequence[float]) -> float:
    """The score that cross-validation chooses a penalty for, on the very rows that it was fitted to."""
    left_out = {alpha: r_squared(y, ridge_out_of_fold(x, y, folds, alphas=(alpha,))) for alpha in alphas}
    weights, intercept = ridge(x, y, alpha=max(left_out, key=left_out.__getitem__))
    return r_squared(y, x @ weights + intercept)


# --- themes


def themes(cfg: ForetellConfig, told: Told, features: Float[Tensor, "N D"], *, seed: int, n_draws: int,
           ) -> list[dict[str, Any]]:
    """Clusters of messages by the mean projection of the responses to them, the highest first.

    A theme is named by the words that are more frequent in it than elsewhere; its examples are the messages nearest to
    its centre.
    """
    from sklearn.cluster import KMeans

    n = min(cfg.n_themes, len(features.unique(dim=0)))
    if n < 2:
        return []
    fitted = KMeans(n, n_init=10, random_state=digest(seed, "foretell", "themes") % 2**32).fit(features.numpy())
    labels = torch.from_numpy(fitted.labels_).long()
    near = (features - torch.from_numpy(fitted.cluster_centers_)[labels]).norm(dim=1)
    draws = cluster_draws(int(told.clusters.max()) + 1, n_draws=n_draws, generator=stream(seed, "foretell", "themes"))
    counts = [Counter(_words(text)) for text in told.texts]
    found = []
    for theme in range(n):
        inside = labels == theme
        order = [i for i in near.argsort().tolist() if inside[i]]
        texts = list(dict.fromkeys(told.texts[i] for i in order))
        here, elsewhere = Counter[str](), Counter[str]()
        for i, words in enumerate(counts):
            (here if inside[i] else elsewhere).update(words)
        telling = [word for word, z in word_contrast(here, elsewhere)[:N_WORDS] if z > 0]
        found.append({"name": " ".join(telling) or "(no words)", "n": len(order),
                      "projection": _theme_mean(told, inside, draws),
                      "examples": [text[:SHOWN] for text in texts[: cfg.n_examples]]})
    return sorted(found, key=lambda row: -row["projection"]["mean"])


def _theme_mean(told: Told, inside: Tensor, draws: Tensor) -> dict[str, Any]:
    places = told.next.new_zeros(draws.shape[1])
    totals = places.index_add(0, told.clusters[inside], told.next[inside])
    sizes = places.index_add(0, told.clusters[inside], torch.ones_like(told.next[inside]))
    spread = ratio_draws(draws, totals[:, None], sizes[:, None])[:, 0]
    return estimate(told.next[inside].mean(), spread, len(told.clusters[inside].unique()))


def _words(text: str) -> list[str]:
    return [word for word in "".join(char if char.isalnum() else " " for char in text.lower()).split() if len(word) > 2]
