"""How far the policy has moved on held-out responses."""

import numpy as np
import pytest
import tiny
import tolerances as tol

from keel.data.render import Row
from keel.models.load import ModelConfig, causal_lm
from keel.train.drift import drift


def test_drift_has_an_interval_over_prompts(tmp_path):
    """The same four responses ten times over, to four prompts: no more is known than from four."""
    policy = causal_lm(ModelConfig(path=str(tiny.llama(tmp_path / "base"))))
    rows = [Row([1, 5, 6 + i, 7, 2][: 4 + i % 2], 2, f"r{i}") for i in range(4)]
    said = [np.array([-1.0, -float(i), -2.0], dtype=np.float32) for i in range(4)]
    how = {"pad_id": 0, "micro_tokens": 40, "seed": 0}
    once = drift(policy, rows, said, [0, 1, 2, 3], **how)
    again = drift(policy, rows * 10, said * 10, [0, 1, 2, 3] * 10, **how)
    alone = drift(policy, rows * 10, said * 10, list(range(40)), **how)
    assert again["shift"] == pytest.approx(once["shift"] | {"n": 40}, rel=tol.GRADIENT32["rtol"])
    assert again["nll"]["mean"] == pytest.approx(once["nll"]["mean"], rel=tol.GRADIENT32["rtol"])
    widths = [one["shift"]["high"] - one["shift"]["low"] for one in (again, alone)]
    assert widths[1] < widths[0] / 2 and drift(policy, [], [], [], **how) == {}
