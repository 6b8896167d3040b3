"""Everything that gives a response a number, behind one interface."""

from keel.bench.engine import Scorer
from keel.bench.scorer_config import EnsembleConfig, RequestConfig, ScorerConfig
from keel.bench.scorer_endpoint import EndpointScorer
from keel.bench.scorer_files import FileScorer
from keel.bench.scorer_functions import FunctionScorer
from keel.bench.scorer_models import model_scorer, policy_scorer, process_scorer

__all__ = ["EnsembleConfig", "RequestConfig", "ScorerConfig", "load_scorer"]


def load_scorer(cfg: ScorerConfig) -> Scorer:
    """What the settings name, ready to score.

    Raises:
        ConfigError: a function, a template or a file of that name is not there.
        ModelError: a model cannot be loaded.
        DataError: a score file cannot be read.
    """
    if cfg.model is not None:
        return model_scorer(cfg, cfg.model.whole)
    if cfg.process is not None:
        return process_scorer(cfg, cfg.process.whole)
    if cfg.policy is not None:
        return policy_scorer(cfg, cfg.policy.whole)
    if cfg.endpoint is not None:
        return EndpointScorer(cfg.shown, cfg.endpoint, cfg.request)
    if cfg.scores is not None:
        return FileScorer(cfg.shown, cfg.scores)
    assert cfg.function is not None
    return FunctionScorer(cfg.shown, cfg.function, cfg.prompt_as)
