"""How informative a text is by TF-IDF: a reward that needs no model."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keel.bench.items import Asked
from keel.data.load import read_responses
from keel.errors import DataError

__all__ = ["FEWEST_TERMS", "Informativeness"]

BATCH = 1024
FEWEST_TERMS = 5
"""Texts with fewer different known terms count for less."""
FULL_TERMS = 10
"""Of a text of n < FEWEST_TERMS terms counts the n-th part of this."""


class Informativeness:
    """Mean TF-IDF weight of the known terms of a text, between 0 and 1; a `Scorer`.

        x_t = tf_t (ln((1 + N) / (1 + df_t)) + 1),   w = x / ||x||,   reward = mean of the n non-zero w_t * c(n)
        c(n) = n / 10 where n < 5, else 1

    N is the number of responses of the file, df_t how many of them have term t, tf_t its count in the text. Terms are
    runs of two or more letters, digits or underscores, lower-cased.

    The factor c is that of the released code and jumps from 0.4 to 1 between 4 and 5 terms. Beyond, longer texts score
    lower: n equal weights have the mean 1 / sqrt(n). A text without a known term scores 0.

    Source: Baheti et al. 2023, arXiv:2305.14718, the informativeness reward of the Reddit task.

    Attributes:
        name, fingerprint, concurrency, counts, flagged: see `Scorer`.
        resolution: 0: float64.
    """

    def __init__(self, name: str, path: str) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.name, self.concurrency, self.resolution = name, 1, 0.0
        told, report = read_responses(path, on_bad_record="skip")
        self._terms = TfidfVectorizer(norm="l2", use_idf=True, smooth_idf=True, sublinear_tf=False, dtype=np.float64)
        try:
            self._terms.fit([one.response for one in told])
        except ValueError as error:
            raise DataError(f"none of {len(told)} responses has a term, so there are no TF-IDF weights", where=path,
                            remedy="A term is two or more letters or digits; name a file of responses in words.",
                            ) from error
        words = "\n".join(self._terms.get_feature_names_out())
        digest = hashlib.sha256(words.encode("utf-8", "surrogatepass") + self._terms.idf_.tobytes()).hexdigest()[:16]
        self.fingerprint: Mapping[str, Any] = {"kind": "TF-IDF informativeness", "weights": digest}
        self.counts: Mapping[str, int] = {"responses fitted on": len(told), "rows not read": report.n_dropped,
                                          "terms": len(self._terms.vocabulary_)}
        self.flagged: Mapping[str, str] = {}

    def plan(self, asked: Sequence[Asked]) -> list[list[int]]:
        """As they come, some hundreds together."""
        return [list(range(start, min(start + BATCH, len(asked)))) for start in range(0, len(asked), BATCH)]

    def score(self, asked: Sequence[Asked]) -> list[float]:
        """Scores of a batch."""
        weights = self._terms.transform([one.response for one in asked])
        n = np.diff(weights.indptr)
        mean = np.asarray(weights.sum(1)).ravel() / np.maximum(n, 1)
        return [float(x) for x in mean * np.where(n < FEWEST_TERMS, n / FULL_TERMS, 1.0)]
