"""A few items of a benchmark, asked again and again while a reward model learns."""

from math import isfinite

from torch import nn

from keel.bench.draws import draws_by_goal
from keel.bench.headline import headline, rule_of
from keel.bench.items import unique_responses
from keel.bench.marks import marks_of_scores
from keel.bench.scorer_models import Rows, RowScorer
from keel.bench.sources import BenchmarkConfig, load_benchmark
from keel.bench.tables import SETS, sheet
from keel.data.render import Template
from keel.models.forward import response_scores

__all__ = ["TrainingSlice"]


class TrainingSlice:
    """Items of a benchmark as rows of one model's tokens, made once.

    Attributes:
        n_items: how many are asked.
        counts: what the length limit did to their rows.

    Raises:
        ConfigError: settings of the benchmark that contradict each other.
        DataError: it cannot be read.
    """

    def __init__(self, cfg: BenchmarkConfig, model: nn.Module, words: Template, *, max_length: int, micro_tokens: int,
                 ) -> None:
        self._benchmark = load_benchmark(cfg)
        self._asked = unique_responses(self._benchmark.items)
        rows = Rows(words, max_length, "keep_response", False, micro_tokens)
        self._scorer = RowScorer("in training", {}, rows, model, lambda batch, _: response_scores(model, batch), 0.0)
        self._batches = self._scorer.plan(self._asked)
        self._goals = draws_by_goal(self._benchmark.items, seed=0, n_resamples=1)  # only the means are wanted
        self.n_items, self.counts = len(self._benchmark.items), self._scorer.counts

    def measures(self) -> dict[str, float]:
        """Accuracy on pairs and on lists, the goals weighing alike, and the benchmark's headline."""
        scores: dict[str, float] = {}
        for batch in self._batches:
            part = [self._asked[i] for i in batch]
            scores |= zip((one.id for one in part), self._scorer.score(part), strict=True)
        made = sheet(self._benchmark.items, marks_of_scores(self._benchmark.items, scores),
                     rule=rule_of(self._benchmark.name), goals=self._goals)
        means = {name: [drawn.mean for key, drawn in made.micro.items() if key[0] == name] for name in SETS}
        return {f"bench/{name}s": sum(found) / len(found) for name, found in means.items() if found} | {
            "bench/headline": headline(self._benchmark.name, made).value.mean,
            "bench/not_finite": float(sum(not isfinite(score) for score in scores.values()))}
